//! A store in memory that can be told to fail: for tests and the simulation.
//!
//! All handles cloned from one share their objects, so two agents can see one lake;
//! each handle can have its own [`StoreHook`], which decides before every operation
//! whether it fails, or succeeds with its reply lost, and sees when it is done. An
//! operation takes effect in one step, between `before` and `after`, so a hook that
//! waits there decides how agents interleave.

use super::{ListedObject, PutOutcome, Store, Upload};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use caudal_model::{Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum OperationKind {
    PutIfAbsent,
    Get,
    UploadStart,
    UploadWrite,
    UploadFinish,
    UploadAbort,
    List,
    ListDirs,
    Delete,
    AbortUploads,
}

/// One operation, as a hook sees it.
#[derive(Debug, Clone)]
pub struct Operation {
    /// What it does.
    pub kind: OperationKind,
    /// The key or prefix; the first key of a delete.
    pub key: String,
    /// Counts the operations of all handles, from 1.
    pub number: u64,
}

/// How an operation goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not.
    None,
    /// A retryable error; nothing was done.
    Fail,
    /// A retryable error; everything was done.
    LoseReply,
}

/// Decides what becomes of operations.
#[async_trait]
pub trait StoreHook: Send + Sync {
    /// Called before an operation takes effect.
    async fn before(&self, operation: &Operation) -> Fault;

    /// Called once it has taken effect, before the caller knows.
    async fn after(&self, operation: &Operation) {
        let _ = operation;
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    uploads: BTreeMap<u64, String>,
    operations: u64,
    next_upload: u64,
}

/// A store in memory.
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    hook: Option<Arc<dyn StoreHook>>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} objects)", self.state().objects.len())
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle on the same objects whose operations go through `hook`.
    pub fn with_hook(&self, hook: Arc<dyn StoreHook>) -> Self {
        MemoryStore {
            state: self.state.clone(),
            hook: Some(hook),
        }
    }

    /// Every object, as it is now; no hook sees this.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.state().objects.clone()
    }

    /// The keys of uploads that were started and neither finished nor aborted.
    pub fn unfinished(&self) -> Vec<String> {
        self.state().uploads.values().cloned().collect()
    }

    /// Puts or replaces an object behind everybody's back.
    pub fn overwrite(&self, key: &str, bytes: impl Into<Bytes>) {
        self.state().objects.insert(key.to_owned(), bytes.into());
    }

    /// Takes an object away behind everybody's back.
    pub fn remove(&self, key: &str) {
        self.state().objects.remove(key);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each operation changes the state in one step, so a panic elsewhere left it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T>(
        &self,
        kind: OperationKind,
        key: &str,
        effect: impl FnOnce(&mut State) -> T,
    ) -> Result<T> {
        let number = {
            let mut state = self.state();
            state.operations += 1;
            state.operations
        };
        let operation = Operation {
            kind,
            key: key.to_owned(),
            number,
        };
        let fault = match &self.hook {
            Some(hook) => hook.before(&operation).await,
            None => Fault::None,
        };
        let error = |what: &str| {
            Error::retryable(Kind::Store, format!("injected: {what} of {kind:?} {key}"))
        };
        if fault == Fault::Fail {
            return Err(error("failure"));
        }
        let value = effect(&mut self.state());
        if let Some(hook) = &self.hook {
            hook.after(&operation).await;
        }
        if fault == Fault::LoseReply {
            Err(error("lost reply"))
        } else {
            Ok(value)
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> String {
        "memory:".to_owned()
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome> {
        self.run(OperationKind::PutIfAbsent, key, |state| {
            if state.objects.contains_key(key) {
                return PutOutcome::Exists;
            }
            state.objects.insert(key.to_owned(), bytes);
            PutOutcome::Created
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.run(OperationKind::Get, key, |state| {
            state.objects.get(key).cloned()
        })
        .await
    }

    async fn get_part(&self, key: &str, offset: u64, length: u64) -> Result<Option<Bytes>> {
        self.run(OperationKind::Get, key, |state| {
            let object = state.objects.get(key)?;
            let at = |n: u64| usize::try_from(n).map_or(object.len(), |n| n.min(object.len()));
            Some(object.slice(at(offset)..at(offset.saturating_add(length))))
        })
        .await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>> {
        let id = self
            .run(OperationKind::UploadStart, key, |state| {
                state.next_upload += 1;
                state.uploads.insert(state.next_upload, key.to_owned());
                state.next_upload
            })
            .await?;
        let (store, key) = (self.clone(), key.to_owned());
        Ok(Box::new(MemoryUpload {
            store,
            key,
            id,
            bytes: BytesMut::new(),
        }))
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ListedObject>> {
        self.run(OperationKind::List, prefix, |state| {
            let from = match start_after {
                Some(after) if after >= prefix => Bound::Excluded(after),
                _ => Bound::Included(prefix),
            };
            state
                .objects
                .range::<str, _>((from, Bound::Unbounded))
                .take_while(|(k, _)| k.starts_with(prefix))
                .take(limit)
                .map(|(k, v)| ListedObject {
                    key: k.clone(),
                    bytes: v.len() as u64,
                })
                .collect()
        })
        .await
    }

    async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>> {
        self.run(OperationKind::ListDirs, prefix, |state| {
            let below = state
                .objects
                .range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
            let names: BTreeSet<&str> = below
                .map_while(|(k, _)| k.strip_prefix(prefix))
                .filter_map(|rest| rest.split_once('/'))
                .map(|(name, _)| name)
                .collect();
            names.into_iter().map(str::to_owned).collect()
        })
        .await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let Some(first) = keys.first() else {
            return Ok(());
        };
        self.run(OperationKind::Delete, first, |state| {
            for key in keys {
                state.objects.remove(key);
            }
        })
        .await
    }

    async fn abort_uploads(
        &self,
        prefix: &str,
        dead: &(dyn for<'k> Fn(&'k str) -> bool + Sync),
    ) -> Result<usize> {
        self.run(OperationKind::AbortUploads, prefix, |state| {
            let before = state.uploads.len();
            state
                .uploads
                .retain(|_, key| !(key.starts_with(prefix) && dead(key)));
            before - state.uploads.len()
        })
        .await
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: String,
    id: u64,
    bytes: BytesMut,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let own = &mut self.bytes;
        let effect = |_: &mut State| own.extend_from_slice(&bytes);
        self.store
            .run(OperationKind::UploadWrite, &self.key, effect)
            .await
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let MemoryUpload {
            store,
            key,
            id,
            bytes,
        } = *self;
        let known = store
            .run(OperationKind::UploadFinish, &key, |state| {
                let known = state.uploads.remove(&id).is_some();
                if known {
                    state.objects.insert(key.clone(), bytes.freeze());
                }
                known
            })
            .await?;
        if known {
            return Ok(());
        }
        Err(Error::retryable(
            Kind::Store,
            format!("the upload of {key} was aborted by another"),
        ))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        let effect = |state: &mut State| {
            state.uploads.remove(&self.id);
        };
        self.store
            .run(OperationKind::UploadAbort, &self.key, effect)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn memory_conforms() {
        conformance(async || Arc::new(MemoryStore::new()) as Arc<dyn Store>).await;
    }

    struct Script(Mutex<Vec<Fault>>);

    #[async_trait]
    impl StoreHook for Script {
        async fn before(&self, _: &Operation) -> Fault {
            self.0.lock().unwrap().pop().unwrap_or(Fault::None)
        }
    }

    #[tokio::test]
    async fn a_lost_reply_has_done_its_work_and_a_failure_has_not() {
        let store = MemoryStore::new();
        let faulty = store.with_hook(Arc::new(Script(Mutex::new(vec![
            Fault::LoseReply,
            Fault::Fail,
        ]))));
        for exists in [false, true] {
            let error = faulty
                .put_if_absent("k", Bytes::from_static(b"v"))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), Kind::Store);
            assert_eq!(store.get("k").await.unwrap().is_some(), exists);
        }
        assert_eq!(
            faulty.put_if_absent("k", Bytes::new()).await.unwrap(),
            PutOutcome::Exists
        );
    }
}
