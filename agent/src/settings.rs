//! What an attempt needs to know besides its parts: the configuration as the pipeline uses it.

use crate::snapshot::{Budgets, FileLimits, SizeLimits};
use caudal_model::{Selection, TableName};
use caudal_sinks::WriterOptions;
use caudal_sources::DiscoveredTable;
use caudal_sources::filter::FilterSyntax;
use std::time::Duration;

/// When the initial copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Tables that the lake does not hold are copied.
    Initial,
    /// No table is copied; its changes are carried from the moment it joins.
    Never,
    /// The run ends when every table is copied.
    Only,
}

/// Which table is copied first.
#[derive(Debug, Clone)]
pub enum Order {
    /// The smallest.
    Smallest,
    /// The largest.
    Largest,
    /// By name.
    Name,
    /// By the first of these patterns that it matches.
    Listed(Vec<Selection>),
}

impl Order {
    /// What puts tables in the order of their copies; by name where they are alike.
    pub fn key(&self, t: &DiscoveredTable) -> (u64, u64, TableName) {
        let (major, minor) = match self {
            Order::Smallest => (t.estimated_bytes, t.estimated_rows),
            Order::Largest => (u64::MAX - t.estimated_bytes, u64::MAX - t.estimated_rows),
            Order::Name => (0, 0),
            Order::Listed(patterns) => (place(patterns, &t.table), 0),
        };
        (major, minor, t.table.clone())
    }
}

fn place(patterns: &[Selection], table: &TableName) -> u64 {
    let at = patterns.iter().position(|p| p.matches(table));
    at.map_or(u64::MAX, |at| at as u64)
}

/// What a changed table means for the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// The lake follows.
    Evolve,
    /// The table stops, the stream goes on.
    Pause,
}

/// What a run needs to know besides its parts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// When the initial copy is made.
    pub mode: SnapshotMode,
    /// What a changed table means for the stream.
    pub on_change: OnChange,
    /// Parallel readers of chunks.
    pub workers: usize,
    /// A limit on rows read by the copy; 0 is none.
    pub max_source_rows_per_second: u64,
    /// Which table is copied first.
    pub order: Order,
    /// What the source is to be spared.
    pub budgets: Budgets,
    /// Bytes of retained log that are worth a warning; 0 is none.
    pub warn_retained_log: u64,
    /// How the source writes conditions.
    pub filter_syntax: FilterSyntax,
    /// A commit closes after this time…
    pub max_delay: Duration,
    /// …or at this size (bytes in memory).
    pub max_bytes: usize,
    /// Bytes that the log's rows may take before they go to an encoder.
    pub buffer_bytes: usize,
    /// How many rows chunks have.
    pub chunks: SizeLimits,
    /// Bytes that a reader of chunks gathers before they go to an encoder.
    pub worker_buffer_bytes: usize,
    /// When the files of a copy are finished.
    pub copy_files: FileLimits,
    /// Where it is set, other processes may read chunks whose configuration has this digest.
    pub share: Option<String>,
    /// How long the source keeps its log behind the lake, so that the stream can be rewound.
    pub replay_window: Duration,
    /// A position without changes is committed this often.
    pub idle_commit: Duration,
    /// How often the source is asked how far it has got.
    pub lag_every: Duration,
    /// The first pause after a retryable error; it doubles up to a minute.
    pub first_pause: Duration,
    /// Work that stands still for so long is a stall.
    pub stall_after: Duration,
    /// A log that has given nothing for so long, of a source that has gone on, is opened anew.
    pub reopen_after: Duration,
    /// How often time limits are looked at.
    pub tick: Duration,
    /// How files are written.
    pub files: WriterOptions,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_copied_in_their_order() {
        let table = |name: &str, bytes: u64| DiscoveredTable {
            table: TableName::new("s", name),
            source_id: None,
            columns: Vec::new(),
            key: Vec::new(),
            estimated_rows: 0,
            estimated_bytes: bytes,
            problems: Vec::new(),
        };
        let pattern = |p: &str| Selection::new(&[p], &[]).unwrap();
        let sorted = |order: Order| {
            let mut tables = [table("c", 1), table("a", 3), table("b", 2), table("d", 2)];
            tables.sort_by_cached_key(|t| order.key(t));
            tables.map(|t| t.table.name).concat()
        };
        assert_eq!(sorted(Order::Smallest), "cbda");
        assert_eq!(sorted(Order::Largest), "abdc");
        assert_eq!(sorted(Order::Name), "abcd");
        let listed = Order::Listed(vec![pattern("s.d"), pattern("s.*")]);
        assert_eq!(sorted(listed), "dabc");
    }
}
