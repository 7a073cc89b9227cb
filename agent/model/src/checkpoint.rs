//! What the agent remembers between commits: the stream's point and each table's progress.
//!
//! The commit log in the lake is the truth (INV-1); a checkpoint is its digest,
//! kept locally so that a start does not read the whole log.

use crate::{Position, StreamPoint, TableName};
use serde::{Deserialize, Serialize};

/// One bound of a chunk: the key columns' values in the source's own text form,
/// to be compared by the server only, never here.
pub type ChunkBound = Vec<String>;

/// A source's opaque note of which transactions an exact read saw (INV-6).
pub type Mark = String;

/// A range of one table's key: `after` is exclusive, `through` inclusive, `None` unbounded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The chunk's number within its table's copy, from 1.
    pub id: u32,
    /// The exclusive lower bound.
    pub after: Option<ChunkBound>,
    /// The inclusive upper bound; `None` for the last chunk.
    pub through: Option<ChunkBound>,
}

/// A table's state, as `status` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableState {
    /// Known, and not yet begun.
    Pending,
    /// Chunks are being read, or the tail has not passed the last one's position.
    Snapshotting,
    /// Every committed change is in the lake.
    Live,
    /// Stopped by a data error; `error` says why.
    Errored,
}

/// One table's progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableProgress {
    /// The table.
    pub table: TableName,
    /// Where it stands.
    pub state: TableState,
    /// The version of its schema that new files have.
    pub schema_version: u32,
    /// The greatest version that a commit ever had, one that a rewind dropped included: its
    /// number is never given to another. 0 where it is `schema_version`.
    #[serde(default)]
    pub greatest_version: u32,
    /// The `_seq` that its snapshot rows share; 0 without a snapshot.
    pub base_seq: i64,
    /// The tail's position when `base_seq` was fixed.
    pub base_position: Option<Position>,
    /// The copies begun so far, from 1: after the first, a copy starts with a `t` row.
    pub copy: u32,
    /// INV-6: which transactions the exact read saw; the tail leaves their changes out.
    pub mark: Option<Mark>,
    /// Finished chunks, in no particular order. A chunk that is absent between two of
    /// them is theirs to bound; after the greatest `through`, planning goes on.
    pub chunks: Vec<Chunk>,
    /// The number of chunks planned so far; an estimate until `planned`.
    pub chunks_total: u32,
    /// Set once every chunk is finished: the table is live when the tail covers it.
    pub live_at: Option<Position>,
    /// Rows that the lake holds of the snapshot.
    pub snapshot_rows: u64,
    /// Bytes of the files that hold them.
    #[serde(default)]
    pub snapshot_bytes: u64,
    /// The condition of the rows that this copy reads; of all rows if absent.
    #[serde(default)]
    pub only: Option<String>,
    /// Rows written to `changes`, all operations.
    pub rows: u64,
    /// Why the table is `errored`.
    pub error: Option<String>,
    /// The table has left the stream: dropped, renamed, or not selected any more. It is
    /// pending again when it comes back.
    #[serde(default)]
    pub ended: bool,
}

impl TableProgress {
    /// The greatest version of its schema that is taken.
    pub fn last_version(&self) -> u32 {
        self.schema_version.max(self.greatest_version)
    }

    /// A table that nothing has been read of.
    pub fn pending(table: TableName) -> Self {
        TableProgress {
            table,
            state: TableState::Pending,
            schema_version: 1,
            greatest_version: 0,
            base_seq: 0,
            base_position: None,
            copy: 0,
            mark: None,
            chunks: Vec::new(),
            chunks_total: 0,
            live_at: None,
            snapshot_rows: 0,
            snapshot_bytes: 0,
            only: None,
            rows: 0,
            error: None,
            ended: false,
        }
    }
}

/// The digest of the commit log through `epoch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last commit that it includes.
    pub epoch: u64,
    /// The writer's generation.
    pub generation: u64,
    /// How far that commit reaches.
    pub through: StreamPoint,
    /// Which server's that position is, in the source's own words; unknown in the logs of
    /// older versions.
    #[serde(default)]
    pub server: Option<String>,
    /// Every table of the stream.
    pub tables: Vec<TableProgress>,
}
