//! The vocabulary of caudal: positions, schemas, changes, checkpoints and errors.
//!
//! Everything here is plain data and pure functions. No async, no I/O: the crate
//! is the lowest floor, so that sources, sinks and checkpoints can share it
//! without knowing one another.

pub mod batch;
pub mod change;
pub mod checkpoint;
pub mod column;
pub mod error;
pub mod filter;
pub mod finding;
pub mod position;
pub mod rules;
pub mod schema;
pub mod selection;
pub mod table;

pub use batch::{ChangeBuffer, RowWriter, Slot, TableBatch};
pub use change::{Op, TransactionMeta};
pub use checkpoint::{Checkpoint, Chunk, ChunkBound, Mark, TableProgress, TableState};
pub use column::ColumnBuilder;
pub use error::{Class, Error, Kind, Result};
pub use filter::Filter;
pub use finding::{Finding, Severity};
pub use position::{Position, StreamPoint};
pub use rules::{Rules, TableRules};
pub use schema::{Column, LakeType, TableSchema};
pub use selection::Selection;
pub use table::TableName;
