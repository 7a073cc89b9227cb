//! Checkpoints of a stream in RocksDB: the local digest of the commit log.
//!
//! The store is a cache (INV-1). What it says is used only when its epoch and
//! generation agree with the lake's head; a database that is missing, behind,
//! corrupt or foreign is rebuilt by the caller from the log.

mod keys;
mod lock;
mod memory;
mod rocks;

pub use lock::is_held;
pub use memory::MemoryStore;
pub use rocks::{Opened, RocksStore, SetAside};

use caudal_model::{Checkpoint, Result, TableProgress, TableSchema};

/// Where checkpoints are kept.
pub trait CheckpointStore: Send + Sync {
    /// The last checkpoint, or `None` for an empty store.
    fn load(&self) -> Result<Option<Checkpoint>>;

    /// Replaces the checkpoint's head and the given tables' progress in one synced
    /// write; tables that are not given stay as they are.
    fn advance(&mut self, head: &Checkpoint, changed: &[TableProgress]) -> Result<()>;

    /// Replaces everything, e.g. after a rebuild from the log. Schemas go too: the
    /// caller puts those of the rebuilt checkpoint afterwards.
    fn replace(&mut self, whole: &Checkpoint) -> Result<()>;

    /// Remembers a schema version.
    fn put_schema(&mut self, schema: &TableSchema) -> Result<()>;

    /// Every remembered schema version, by table and version.
    fn schemas(&self) -> Result<Vec<TableSchema>>;
}
