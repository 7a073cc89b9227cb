//! What the lake asks of a store of objects.
//!
//! The conformance suite in `conformance` states these rules as tests; S3, the
//! local directory and the in-memory fake all pass it.

use async_trait::async_trait;
use bytes::Bytes;
use caudal_model::Result;

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

/// A flat name space of immutable objects. Keys use `/`; all errors but those named
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
