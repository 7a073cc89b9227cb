//! The lake: Parquet files, the commit log, and the stores that hold them.
//!
//! [`Store`] is the one thing that differs between S3, a local directory and the
//! in-memory fake; everything above it (paths, files, commits) is the same code.
//!
//! How an agent uses it, in order (INV-1, INV-3):
//!
//! ```
//! # use caudal_model::{Position, Result, StreamPoint, TableBatch, TableSchema};
//! use caudal_sinks::{CommitLog, EntryKind, MemoryStore, TableEntry, WriterOptions};
//! # use std::sync::Arc;
//!
//! # async fn agent(schema: Arc<TableSchema>, batch: TableBatch) -> Result<()> {
//! // `caudal_sinks::open("s3://lake/raw", &StoreOptions::default()).await?` in the agent.
//! let store = Arc::new(MemoryStore::new());
//! // One a process and stream, for as long as the process lives.
//! let log = CommitLog::new(store, "shop");
//!
//! // 1. Where the lake stands; the checkpoint's epoch is the hint.
//! let head = log.head(None).await?;
//! let start = StreamPoint { position: Position::new("0/0"), seq: 0 };
//! // 2. Take the stream over: older generations can no longer commit. The closure sees the
//! //    entries that an earlier owner commits meanwhile, and returns the tables' progress.
//! let fence = log.fence(head.as_ref(), start, |_newer| Ok(Default::default())).await?;
//! log.remove_unreferenced().await?;
//!
//! // 3. Files. Nothing that they hold exists before a commit names them.
//! log.put_schema(&schema).await?;
//! let (epoch, generation) = (fence.entry().epoch + 1, fence.entry().generation);
//! let options = WriterOptions::default();
//! let mut file = log.file_writer(schema.clone(), epoch, generation, 0, &options).await?;
//! let last_seq = batch.last_seq;
//! file.write(batch).await?;
//! let mut table = TableEntry::untouched(schema.table.clone(), schema.version);
//! table.files.push(file.finish().await?);
//!
//! // 4. The commit. After a retryable error the same entry may be committed again.
//! let after = fence.through().clone();
//! let through = StreamPoint { position: Position::new("0/1A2B4F8"), seq: last_seq };
//! let kind = EntryKind::Append;
//! let entry = log.entry(epoch, generation, kind, after, through, vec![table], epoch);
//! let receipt = log.commit(entry).await?;
//! // 5. Only now, and only from the receipt: the checkpoint, then the source.
//! let _acknowledge = receipt.through();
//! # Ok(())
//! # }
//! ```

pub mod entry;
pub mod layout;
pub mod log;
pub mod parquet;
pub mod store;
pub mod work;

pub use entry::{FileEntry, Kind as EntryKind, LogEntry, SnapshotEntry, TableEntry};
pub use layout::{FileId, Layout, Partition};
pub use log::{Carried, CommitLog, CommitReceipt, Extent, Removed, Rewind, Verified, Wrong};
pub use parquet::{Codec, FileWriter, GroupWriter, PartitionBy, RowGroup, WriterOptions};
pub use store::local::LocalStore;
pub use store::memory::{Fault, MemoryStore, Operation, OperationKind, StoreHook};
pub use store::s3::S3Store;
pub use store::{ListedObject, PutOutcome, Store, StoreOptions, Upload, open};
