//! One entry of the commit log, as its JSON stands in `_log/<epoch>.json`.
//!
//! Fields that the format does not name are additions for recovery; readers that
//! do not know them may ignore them.

use caudal_model::{Chunk, Position, StreamPoint, TableName, TableProgress};
use serde::{Deserialize, Serialize};

/// What a commit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Adds change files and moves the positions.
    Append,
    /// Replaces files of `current`; positions stay.
    Merge,
    /// A new generation takes the stream; positions stay.
    Fence,
    /// An older commit becomes the head again.
    Rewind,
}

/// One commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The format; 1.
    pub format: u32,
    /// The commit's number, from 1, without gaps.
    pub epoch: u64,
    /// The writer's generation; every fence raises it.
    pub generation: u64,
    /// Random, one a process: tells a writer's own lost reply from another's commit (INV-8).
    pub writer: String,
    /// What the commit does.
    pub kind: Kind,
    /// The head's `through` before this commit (INV-2).
    pub after: StreamPoint,
    /// How far the lake reaches with this commit.
    pub through: StreamPoint,
    /// RFC 3339 UTC with microseconds.
    pub committed_at: String,
    /// `caudal <version>`.
    pub agent: String,
    /// What it did to each table; tables it did not touch are absent.
    pub tables: Vec<TableEntry>,
    /// Every file of this generation that is named by a lower epoch is committed or
    /// does not exist: bounds the search for files that a dead generation left.
    pub staged_from: u64,
    /// Which server's the positions are, in the source's own words: in a `fence`, and where
    /// another server's begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The progress of every table, in a `fence` and a `rewind`: recovery reads no further back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Vec<TableProgress>>,
    /// In a `rewind`: the commit that is the lake's state again. Those between the two are
    /// dropped, and so is what they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewind_to: Option<u64>,
    /// The epoch of the newest `rewind` up to this entry; 0 without one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_rewind: u64,
    /// The `sha256` of the entry before, so that the log is a chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// SHA-256, lower-case hex, of the file's bytes before this field and its comma. Always
    /// the last field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// One table's part of a commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableEntry {
    /// The table.
    pub table: TableName,
    /// The newest schema version at this commit.
    pub schema_version: u32,
    /// Progress of the table's copy, if the commit carries any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotEntry>,
    /// Files that the commit adds, in the order of `_seq`.
    pub files: Vec<FileEntry>,
    /// Why the table became `errored` with this commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The table left the stream with this commit; its files stay. If it comes back, it
    /// is copied again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ended: bool,
    /// With `ended`: it left only to be copied again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub again: bool,
    /// In a `rewind`: the paths of files of dropped commits, which no reader may use any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

impl TableEntry {
    /// A table that a commit names and does nothing to.
    pub fn untouched(table: TableName, schema_version: u32) -> Self {
        TableEntry {
            table,
            schema_version,
            snapshot: None,
            files: Vec::new(),
            error: None,
            ended: false,
            again: false,
            removed: Vec::new(),
        }
    }
}

fn is_false(b: &bool) -> bool {
    !b
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Progress of a table's copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// Chunks whose rows are complete with this commit.
    pub chunks: Vec<u32>,
    /// Whether every chunk is now complete.
    pub done: bool,
    /// The number of this copy of the table, from 1.
    pub copy: u32,
    /// The `_seq` that the copy's rows share.
    pub base_seq: i64,
    /// The tail's position when it was fixed.
    pub base_position: Position,
    /// The bounds of `chunks`.
    #[serde(default)]
    pub bounds: Vec<Chunk>,
    /// Chunks planned so far.
    #[serde(default)]
    pub planned: u32,
    /// The condition of the rows that this copy reads; of all rows if absent. Such a copy
    /// begins without a `t`: what it does not read stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// INV-6: which transactions an exact read saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// The position after the last chunk: the table is live once the tail covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_at: Option<Position>,
    /// Set when the tail had covered `live_at` at this commit.
    #[serde(default)]
    pub live: bool,
}

impl SnapshotEntry {
    /// A copy that has just begun.
    pub fn begun(copy: u32, base_seq: i64, base_position: Position) -> Self {
        SnapshotEntry {
            chunks: Vec::new(),
            done: false,
            copy,
            base_seq,
            base_position,
            bounds: Vec::new(),
            planned: 0,
            only: None,
            mark: None,
            live_at: None,
            live: false,
        }
    }
}

/// One file of a commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to `<sink.url>/<stream.name>/`.
    pub path: String,
    /// Rows in the file.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The least `_seq`.
    pub first_seq: i64,
    /// The greatest `_seq`.
    pub last_seq: i64,
    /// SHA-256 of the file's bytes, lower-case hex.
    pub sha256: String,
}
