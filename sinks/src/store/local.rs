//! A store in a directory, with the guarantees of an object store.
//!
//! Why it is correct: an object is written to a file below `.staging/`, synced, and
//! then given its name in one step: by `link`, which fails if the name is taken, or
//! by `rename`. The directories that hold the name are synced before the call
//! returns, so what was reported as done outlives a power cut. Listings never show
//! `.staging/`, and no key begins with it. The file system must have hard links and
//! be shared by every agent of the stream.

use super::{ListedObject, PutOutcome, Store, Upload};
use async_trait::async_trait;
use bytes::Bytes;
use caudal_model::{Error, Kind, Result};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const STAGING: &str = ".staging";
/// Marks the temporary file of a `put_if_absent`, which lives for one call.
const PUT_MARK: &str = ".put-";
/// Marks the temporary file of an upload.
const UPLOAD_MARK: &str = ".upload-";
/// After this, the temporary file of a put belongs to a process that is gone.
const PUT_TIME_LIMIT: Duration = Duration::from_secs(3600);

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct LocalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Directories known to be durable: synced since this process started.
    synced: Mutex<HashSet<PathBuf>>,
}

impl LocalStore {
    /// Opens a directory, which is made if it is missing.
    ///
    /// # Errors
    /// [`Kind::Prerequisite`] if it cannot be made or written to.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root: PathBuf = root.into();
        let inner = Arc::new(Inner {
            root,
            synced: Mutex::default(),
        });
        let made = inner.clone();
        blocking(move || {
            let staging = made.root.join(STAGING);
            fs::create_dir_all(&staging).map_err(|e| refused(&made.root, e))?;
            // Its ancestors too: they may be as new as it is.
            for dir in staging.ancestors().skip(1) {
                match File::open(dir).and_then(|d| d.sync_all()) {
                    Ok(()) => {}
                    // A parent that cannot be read was made by somebody else.
                    Err(e) if e.kind() == ErrorKind::PermissionDenied => break,
                    Err(e) => return Err(refused(dir, e)),
                }
            }
            Ok(())
        })
        .await?;
        Ok(LocalStore { inner })
    }
}

fn refused(path: &Path, e: io::Error) -> Error {
    Error::fatal(
        Kind::Prerequisite,
        format!("cannot use the directory {}", path.display()),
    )
    .hint("give caudal's user the right to make and write this directory, or change sink.url")
    .caused_by(e)
}

fn failed(doing: &str, path: &Path, e: io::Error) -> Error {
    let message = format!("cannot {doing} {}", path.display());
    let error = match e.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Error::fatal(Kind::Prerequisite, message)
                .hint("give caudal's user the right to write below sink.url")
        }
        ErrorKind::Unsupported => Error::fatal(Kind::Prerequisite, message)
            .hint("use a file system with hard links for sink.url, or an S3-compatible store"),
        ErrorKind::InvalidFilename => Error::fatal(Kind::Store, message)
            .hint("a name of the stream or of a table is too long for this file system"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::retryable(Kind::Store, message).hint("free space below sink.url")
        }
        _ => Error::retryable(Kind::Store, message),
    };
    error.caused_by(e)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::bug("file work ended abnormally").caused_by(e))?
}

impl Inner {
    /// The path of a key's object.
    fn object(&self, key: &str) -> Result<PathBuf> {
        self.below(&self.root, key)
    }

    fn below(&self, dir: &Path, key: &str) -> Result<PathBuf> {
        let bad = |s: &str| s.is_empty() || s == "." || s == ".." || s.contains('\0');
        if key.split('/').any(bad) || key == STAGING || key.starts_with(".staging/") {
            return Err(Error::bug(format!(
                "`{key}` is not a key that a directory can hold"
            )));
        }
        Ok(dir.join(key))
    }

    fn new_temporary(&self, key: &str, mark: &str) -> Result<(PathBuf, File)> {
        let nonce: u64 = rand::random();
        let path = self.below(
            &self.root.join(STAGING),
            &format!("{key}{mark}{nonce:016x}"),
        )?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|e| failed("make", dir, e))?;
        }
        let file = File::create_new(&path).map_err(|e| failed("create", &path, e))?;
        Ok((path, file))
    }

    /// Makes the directory of `path`, durably.
    fn make_parent(&self, path: &Path) -> Result<()> {
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        let known = |dir: &Path| {
            self.synced
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(dir)
        };
        if known(parent) {
            return Ok(());
        }
        fs::create_dir_all(parent).map_err(|e| failed("make", parent, e))?;
        let mut dirs: Vec<&Path> = parent
            .ancestors()
            .take_while(|d| *d != self.root && !known(d))
            .collect();
        // From the top: a directory counts as durable only when those above it are.
        dirs.reverse();
        for dir in dirs {
            sync_parent(dir)?;
            self.synced
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(dir.to_owned());
        }
        Ok(())
    }

    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<PutOutcome> {
        let object = self.object(key)?;
        self.make_parent(&object)?;
        let outcome = if object.exists() {
            PutOutcome::Exists
        } else {
            let (temporary, mut file) = self.new_temporary(key, PUT_MARK)?;
            let written = file.write_all(bytes).and_then(|()| file.sync_all());
            let linked = written.and_then(|()| fs::hard_link(&temporary, &object));
            // Whatever happened, the object's own link is what counts.
            let _ = fs::remove_file(&temporary);
            match linked {
                Ok(()) => PutOutcome::Created,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => PutOutcome::Exists,
                Err(e) => return Err(failed("create", &object, e)),
            }
        };
        // Also where it exists: its creator may not have come this far.
        sync_parent(&object)?;
        Ok(outcome)
    }

    fn abort_uploads(
        &self,
        prefix: &str,
        dead: &(dyn for<'k> Fn(&'k str) -> bool + Sync),
    ) -> Result<usize> {
        let staging = Inner {
            root: self.root.join(STAGING),
            synced: Mutex::default(),
        };
        let mut found = Vec::new();
        staging.walk(
            &staging.root,
            "",
            &Range {
                prefix,
                after: "",
                limit: usize::MAX,
            },
            &mut found,
        )?;
        let mut aborted = 0;
        for ListedObject { key: file, .. } in found {
            let path = staging.root.join(&file);
            let (leftover, is_upload) =
                match (file.rsplit_once(UPLOAD_MARK), file.contains(PUT_MARK)) {
                    (Some((key, _)), _) => (key.starts_with(prefix) && dead(key), true),
                    (None, true) => (age(&path) > PUT_TIME_LIMIT, false),
                    (None, false) => (false, false),
                };
            if !leftover {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => aborted += usize::from(is_upload),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(failed("remove", &path, e)),
            }
        }
        Ok(aborted)
    }

    /// Appends the objects below `dir`, whose key is `dir_key`, in the order of their keys.
    fn walk(
        &self,
        dir: &Path,
        dir_key: &str,
        range: &Range<'_>,
        found: &mut Vec<ListedObject>,
    ) -> Result<()> {
        for key in self.entries(dir, dir_key)? {
            if found.len() >= range.limit {
                return Ok(());
            }
            if let Some(sub) = key.strip_suffix('/') {
                let before = *key < *range.after && !range.after.starts_with(&key);
                let related = key.starts_with(range.prefix) || range.prefix.starts_with(&key);
                if related && !before {
                    self.walk(&self.root.join(sub), &key, range, found)?;
                }
            } else if key.starts_with(range.prefix) && *key > *range.after {
                let path = self.root.join(&key);
                match fs::symlink_metadata(&path) {
                    Ok(m) => found.push(ListedObject {
                        key,
                        bytes: m.len(),
                    }),
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(failed("read", &path, e)),
                }
            }
        }
        Ok(())
    }

    /// The keys of a directory's entries in byte order; those of directories end in a
    /// slash, which has its place in that order.
    fn entries(&self, dir: &Path, dir_key: &str) -> Result<Vec<String>> {
        let read = match fs::read_dir(dir) {
            Ok(read) => read,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(e) => return Err(failed("read", dir, e)),
        };
        let mut entries = Vec::new();
        for entry in read {
            let entry = entry.map_err(|e| failed("read", dir, e))?;
            let file_type = entry.file_type().map_err(|e| failed("read", dir, e))?;
            // A name that is not UTF-8 is none of ours.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if dir_key.is_empty() && name == STAGING {
                continue;
            }
            let slash = if file_type.is_dir() { "/" } else { "" };
            entries.push(format!("{dir_key}{name}{slash}"));
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn has_objects(&self, dir: &Path, dir_key: &str) -> Result<bool> {
        let mut found = Vec::new();
        self.walk(
            dir,
            dir_key,
            &Range {
                prefix: "",
                after: "",
                limit: 1,
            },
            &mut found,
        )?;
        Ok(!found.is_empty())
    }
}

struct Range<'a> {
    prefix: &'a str,
    after: &'a str,
    limit: usize,
}

fn age(path: &Path) -> Duration {
    let modified = fs::metadata(path).and_then(|m| m.modified());
    modified
        .ok()
        .and_then(|m| m.elapsed().ok())
        .unwrap_or_default()
}

fn sync_parent(path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| failed("sync", dir, e))
}

#[async_trait]
impl Store for LocalStore {
    fn url(&self) -> String {
        format!("file://{}", self.inner.root.display())
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome> {
        let (inner, key) = (self.inner.clone(), key.to_owned());
        blocking(move || inner.put_if_absent(&key, &bytes)).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let object = self.inner.object(key)?;
        blocking(move || match fs::read(&object) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(failed("read", &object, e)),
        })
        .await
    }

    async fn get_part(&self, key: &str, offset: u64, length: u64) -> Result<Option<Bytes>> {
        let object = self.inner.object(key)?;
        blocking(move || {
            if !object.is_file() {
                return Ok(None);
            }
            let mut part = Vec::new();
            File::open(&object)
                .and_then(|mut file| {
                    file.seek(SeekFrom::Start(offset))?;
                    file.take(length).read_to_end(&mut part)
                })
                .map_err(|e| failed("read", &object, e))?;
            Ok(Some(part.into()))
        })
        .await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>> {
        let inner = self.inner.clone();
        let (object, key) = (inner.object(key)?, key.to_owned());
        blocking(move || {
            let (temporary, file) = inner.new_temporary(&key, UPLOAD_MARK)?;
            Ok(Box::new(LocalUpload {
                inner,
                object,
                temporary,
                file: Some(file),
            }) as _)
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ListedObject>> {
        let (inner, prefix) = (self.inner.clone(), prefix.to_owned());
        let after = start_after.unwrap_or_default().to_owned();
        blocking(move || {
            // Begin at the deepest directory that the prefix names.
            let dir_key = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
            let mut found = Vec::new();
            let range = Range {
                prefix: &prefix,
                after: &after,
                limit,
            };
            inner.walk(&inner.root.join(dir_key), dir_key, &range, &mut found)?;
            Ok(found)
        })
        .await
    }

    async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>> {
        let (inner, prefix) = (self.inner.clone(), prefix.to_owned());
        blocking(move || {
            let mut names = Vec::new();
            for key in inner.entries(&inner.root.join(&prefix), &prefix)? {
                let Some(name) = key.strip_prefix(&prefix).and_then(|n| n.strip_suffix('/')) else {
                    continue;
                };
                if inner.has_objects(&inner.root.join(&key), &key)? {
                    names.push(name.to_owned());
                }
            }
            // The slash had its place in the keys' order; the names have their own.
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let inner = self.inner.clone();
        let paths = keys
            .iter()
            .map(|k| inner.object(k))
            .collect::<Result<Vec<_>>>()?;
        blocking(move || {
            for path in paths {
                match fs::remove_file(&path) {
                    Ok(()) => {}
                    Err(e)
                        if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                    Err(e) => return Err(failed("remove", &path, e)),
                }
            }
            Ok(())
        })
        .await
    }

    async fn abort_uploads(
        &self,
        prefix: &str,
        dead: &(dyn for<'k> Fn(&'k str) -> bool + Sync),
    ) -> Result<usize> {
        // Borrowed, so it cannot move to another thread; few files are ever there.
        self.inner.abort_uploads(prefix, dead)
    }
}

struct LocalUpload {
    inner: Arc<Inner>,
    object: PathBuf,
    temporary: PathBuf,
    /// Absent after a write that failed.
    file: Option<File>,
}

impl LocalUpload {
    fn broken(&self) -> Error {
        Error::retryable(
            Kind::Store,
            format!("writing {} failed before", self.object.display()),
        )
    }
}

#[async_trait]
impl Upload for LocalUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let mut file = self.file.take().ok_or_else(|| self.broken())?;
        let temporary = self.temporary.clone();
        let file = blocking(move || {
            file.write_all(&bytes)
                .map_err(|e| failed("write", &temporary, e))?;
            Ok(file)
        })
        .await?;
        self.file = Some(file);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        let file = self.file.take().ok_or_else(|| self.broken())?;
        blocking(move || {
            file.sync_all()
                .map_err(|e| failed("sync", &self.temporary, e))?;
            self.inner.make_parent(&self.object)?;
            fs::rename(&self.temporary, &self.object)
                .map_err(|e| failed("create", &self.object, e))?;
            sync_parent(&self.object)
        })
        .await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        blocking(move || match fs::remove_file(&self.temporary) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", &self.temporary, e)),
            _ => Ok(()),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn local_conforms() {
        let dir = tempfile::tempdir().unwrap();
        let n = std::sync::atomic::AtomicU32::new(0);
        conformance(async || {
            let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let root = dir.path().join(format!("lake {n}"));
            Arc::new(LocalStore::open(root).await.unwrap()) as Arc<dyn Store>
        })
        .await;
    }

    #[tokio::test]
    async fn keys_that_leave_the_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path().join("lake")).await.unwrap();
        for key in [
            "",
            "/etc/x",
            "../x",
            "a/../b",
            "a//b",
            "a/./b",
            ".staging/x",
            "a/",
        ] {
            assert_eq!(store.get(key).await.unwrap_err().kind(), Kind::Bug, "{key}");
            assert!(
                store.put_if_absent(key, Bytes::new()).await.is_err(),
                "{key}"
            );
        }
    }

    #[tokio::test]
    async fn staged_files_are_never_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).await.unwrap();
        let mut upload = store.upload("s/t/x").await.unwrap();
        upload.write(Bytes::from_static(b"half")).await.unwrap();
        assert!(store.list("", None, 10).await.unwrap().is_empty());
        assert!(store.list_dirs("").await.unwrap().is_empty());
        drop(upload);
        // A process that is gone leaves it; another one finds it by its key.
        let other = LocalStore::open(dir.path()).await.unwrap();
        assert_eq!(
            other.abort_uploads("s/", &|k| k == "s/t/x").await.unwrap(),
            1
        );
        assert_eq!(other.abort_uploads("", &|_| true).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_file_where_a_directory_should_be_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = LocalStore::open(file.join("lake")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Prerequisite);
    }
}
