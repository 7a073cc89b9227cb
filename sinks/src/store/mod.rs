//! What the lake asks of a store of objects.
//!
//! The conformance suite in `conformance` states these rules as tests; S3, the
//! local directory and the in-memory fake all pass it.

use async_trait::async_trait;
use bytes::Bytes;
use caudal_model::{Error, Kind, Result};
use std::sync::Arc;
use std::time::Duration;

pub mod conformance;
pub mod local;
pub mod memory;
pub mod s3;

/// What `[sink]` says of the store besides its URL; only S3 reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// An S3-compatible server's URL; AWS itself if absent.
    pub endpoint: Option<String>,
    /// The bucket's region; that of the environment if absent.
    pub region: Option<String>,
    /// `endpoint/bucket/key` in place of `bucket.endpoint/key`.
    pub path_style: bool,
    /// Encrypts objects with this key of AWS KMS; the bucket's own default if absent.
    pub sse_kms_key_id: Option<String>,
    /// How long the store may be silent before a request is repeated; 30 s if absent. One
    /// attempt may take four times as long, and with its repetitions a request ten times; one
    /// that uploads has the time of a slow line besides.
    pub read_timeout: Option<Duration>,
}

/// Opens the store of a `[sink] url`: `s3://bucket/prefix` or `file:///path`. Keys are
/// relative to it. Nothing is sent to the store yet.
///
/// # Errors
/// [`Kind::Config`] for any other URL; for a directory, also what
/// [`local::LocalStore::open`] says.
pub async fn open(url: &str, options: &StoreOptions) -> Result<Arc<dyn Store>> {
    let refuse = |why: &str| {
        Err(
            Error::fatal(Kind::Config, format!("sink.url `{url}` {why}"))
                .hint("write `s3://bucket/prefix` or `file:///absolute/path`"),
        )
    };
    if let Some(path) = url.strip_prefix("file://") {
        return match path {
            p if !p.starts_with('/') => refuse("has no absolute path"),
            "/" => refuse("is the root of the file system"),
            p => Ok(Arc::new(local::LocalStore::open(p).await?)),
        };
    }
    let Some(rest) = url.strip_prefix("s3://") else {
        return refuse("is of a kind that caudal does not know");
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/');
    if bucket.is_empty() {
        return refuse("names no bucket");
    }
    if rest.contains(['?', '#', '@']) || prefix.split('/').any(|s| matches!(s, "." | "..")) {
        return refuse("holds more than a bucket and a prefix");
    }
    Ok(Arc::new(s3::S3Store::open(bucket, prefix, options).await?))
}

/// How a conditional PUT ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is there with these bytes, written by this call.
    Created,
    /// Somebody's object is there already, possibly this caller's own from an attempt
    /// whose reply was lost: the caller reads it back to know.
    Exists,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// The full key.
    pub key: String,
    /// Bytes.
    pub bytes: u64,
}

/// A flat name space of immutable objects, shared by everyone who opens the same place. Keys use `/`; all errors but those named
/// here are retryable ones of kind `Store`, after the store's own few retries.
#[async_trait]
pub trait Store: Send + Sync {
    /// Where this is, for messages: `s3://bucket/prefix` or `file:///path`.
    fn url(&self) -> String;

    /// Creates an object unless it exists, atomically: of any number of concurrent
    /// callers exactly one gets [`PutOutcome::Created`]. Durable on return.
    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome>;

    /// The whole object, or `None` if there is none. Sees every completed write.
    async fn get(&self, key: &str) -> Result<Option<Bytes>>;

    /// At most `length` bytes of the object from `offset` on, fewer at its end; `None` if
    /// there is none.
    async fn get_part(&self, key: &str, offset: u64, length: u64) -> Result<Option<Bytes>>;

    /// Starts writing an object of any length. It appears under its key only when
    /// [`Upload::finish`] returns, whole and durable; until then, and after a crash, it
    /// does not exist.
    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>>;

    /// At most `limit` objects whose keys begin with `prefix` and are greater than
    /// `start_after`, in the byte order of their keys.
    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ListedObject>>;

    /// The distinct next path segments below `prefix` (which ends in `/`), without
    /// slashes, in order.
    async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>>;

    /// Deletes objects; those that do not exist are no error.
    async fn delete(&self, keys: &[String]) -> Result<()>;

    /// Drops uploads below `prefix` that were started and never finished, where `dead`
    /// says so of the key. Returns how many.
    async fn abort_uploads(
        &self,
        prefix: &str,
        dead: &(dyn for<'k> Fn(&'k str) -> bool + Sync),
    ) -> Result<usize>;
}

/// An object being written.
#[async_trait]
pub trait Upload: Send {
    /// Appends bytes. Back-pressure: returns when few enough are in flight.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// Makes the object appear; the store holds all of it durably on return.
    async fn finish(self: Box<Self>) -> Result<()>;

    /// Leaves nothing behind. A dropped upload may leave parts that
    /// [`Store::abort_uploads`] finds.
    async fn abort(self: Box<Self>) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_of_another_kind_is_a_config_error() {
        for bad in [
            "",
            "lake",
            "/srv/lake",
            "gs://lake/raw",
            "file://srv/lake",
            "file:///",
            "s3://",
            "s3:///raw",
            "s3://key:secret@lake/raw",
            "s3://lake/a/../b",
        ] {
            let error = open(bad, &StoreOptions::default())
                .await
                .map(|s| s.url())
                .unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{bad}");
            assert!(error.hint_text().is_some());
        }
    }

    #[tokio::test]
    async fn a_store_says_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/lake", dir.path().display());
        assert_eq!(
            open(&url, &StoreOptions::default()).await.unwrap().url(),
            url
        );
        let options = StoreOptions {
            endpoint: Some("http://127.0.0.1:1".into()),
            path_style: true,
            ..StoreOptions::default()
        };
        for url in ["s3://lake/raw/", "s3://lake/raw"] {
            assert_eq!(open(url, &options).await.unwrap().url(), "s3://lake/raw");
        }
        assert_eq!(
            open("s3://lake", &options).await.unwrap().url(),
            "s3://lake"
        );
    }
}
