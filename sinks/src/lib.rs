//! The lake: Parquet files, the commit log, and the stores that hold them.
//!
//! [`Store`] is the one thing that differs between S3, a local directory and the
//! in-memory fake; everything above it (paths, files, commits) is the same code.

pub mod entry;
pub mod store;

pub use entry::{FileEntry, Kind as EntryKind, LogEntry, SnapshotEntry, TableEntry};
pub use store::{ListedObject, PutOutcome, Store, Upload};
