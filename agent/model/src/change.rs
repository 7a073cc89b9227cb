//! One change and the transaction that it belongs to.

use std::sync::Arc;

/// What happened to a row; the `_op` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// A row that a snapshot read.
    Snapshot = 0,
    /// An insert.
    Insert = 1,
    /// An update that left the key as it was.
    Update = 2,
    /// A delete.
    Delete = 3,
    /// The whole table was emptied.
    Truncate = 4,
}

impl Op {
    /// Every operation, in the order of its discriminant.
    pub const ALL: [Op; 5] = [
        Op::Snapshot,
        Op::Insert,
        Op::Update,
        Op::Delete,
        Op::Truncate,
    ];

    /// The text in the `_op` column.
    pub fn code(self) -> &'static str {
        match self {
            Op::Snapshot => "r",
            Op::Insert => "c",
            Op::Update => "u",
            Op::Delete => "d",
            Op::Truncate => "t",
        }
    }
}

/// What every row of one source transaction shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionMeta {
    /// Commit time at the source, microseconds since 1970 UTC (snapshot: read time).
    pub committed_at_us: i64,
    /// The transaction's own LSN, GTID or binlog coordinate: the `_position` column.
    pub position: Arc<str>,
}
