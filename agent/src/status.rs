//! What the stream is doing right now: the one place that `status`, the page,
//! readiness and the terminal's progress read, and that the pipeline writes.
//!
//! The board is in memory and never the truth: a reader that finds no agent builds
//! the same [`StatusReport`] from the checkpoint and the commit log. Writers hold the
//! lock for a few assignments and never across an await, so no reader can hold the
//! pipeline back.

use caudal_model::{Position, StreamPoint, TableName, TableProgress, TableState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the pipeline may make no progress before `/healthz` fails. It is well
/// above every backoff and heartbeat, which count as progress.
pub const STALL_LIMIT: Duration = Duration::from_secs(300);

/// The stream's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamState {
    /// Connecting, recovering, taking the stream over.
    Starting,
    /// At least one table is being copied.
    Snapshotting,
    /// Every table that can be is live.
    Running,
    /// No agent runs, or it has ended cleanly.
    Stopped,
    /// The agent has ended with an error.
    Failed,
}

impl StreamState {
    /// The name that `status` prints.
    pub fn label(self) -> &'static str {
        match self {
            StreamState::Starting => "starting",
            StreamState::Snapshotting => "snapshotting",
            StreamState::Running => "running",
            StreamState::Stopped => "stopped",
            StreamState::Failed => "failed",
        }
    }
}

impl fmt::Display for StreamState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// The name that `status` and the metrics give to a table's state.
pub fn table_state_label(state: TableState) -> &'static str {
    match state {
        TableState::Pending => "pending",
        TableState::Snapshotting => "snapshotting",
        TableState::Live => "live",
        TableState::Errored => "errored",
    }
}

/// One table of a [`StatusReport`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    /// The table.
    pub table: TableName,
    /// Where it stands.
    pub state: TableState,
    /// Rows written to `changes`, all operations.
    pub rows: u64,
    /// Chunks of the copy that are committed.
    pub chunks_done: u32,
    /// Chunks planned, or estimated until planning is over.
    pub chunks_total: u32,
    /// The newest schema version.
    pub schema_version: u32,
    /// Why the table is `errored`.
    pub error: Option<String>,
    /// Rows of `changes` that `current` does not hold yet.
    pub changes_pending_merge: u64,
}

impl From<&TableProgress> for TableStatus {
    fn from(p: &TableProgress) -> Self {
        let chunks_done = match p.state {
            // A finished copy keeps its count, not its chunks.
            TableState::Live => p.chunks_total,
            _ => u32::try_from(p.chunks.len()).unwrap_or(u32::MAX),
        };
        TableStatus {
            table: p.table.clone(),
            state: p.state,
            rows: p.rows,
            chunks_done,
            chunks_total: p.chunks_total.max(chunks_done),
            schema_version: p.schema_version,
            error: p.error.clone(),
            // Nothing is folded yet, so everything written is pending.
            changes_pending_merge: p.rows,
        }
    }
}

/// `caudal status --json` and `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The stream's name.
    pub stream: String,
    /// The stream's state.
    pub state: StreamState,
    /// `postgres`, `mysql` or `mariadb`.
    pub source: String,
    /// The last commit; 0 before the first.
    pub epoch: u64,
    /// How far the lake reaches in the source's log.
    pub position: Option<Position>,
    /// How far the source itself has got, when it was last asked.
    pub source_position: Option<Position>,
    /// Bytes of log between the two, where the source can tell.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest change that the lake does not hold; 0 when caught up.
    pub lag_seconds: Option<f64>,
    /// The writer's generation.
    pub generation: u64,
    /// Every table, in order of their names.
    pub tables: Vec<TableStatus>,
}

impl StatusReport {
    /// A report of a stream that nothing is known of yet.
    pub fn empty(stream: impl Into<String>, source: impl Into<String>, state: StreamState) -> Self {
        StatusReport {
            stream: stream.into(),
            state,
            source: source.into(),
            epoch: 0,
            position: None,
            source_position: None,
            lag_bytes: None,
            lag_seconds: None,
            generation: 0,
            tables: Vec::new(),
        }
    }

    /// How many tables are in the given state.
    pub fn tables_in(&self, state: TableState) -> usize {
        self.tables.iter().filter(|t| t.state == state).count()
    }
}

/// How far a table's copy is, in rows: what the progress display needs beyond chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyProgress {
    /// Rows read from the source in this copy, committed or not.
    pub rows_read: u64,
    /// The planner's estimate of the table's rows.
    pub estimated_rows: u64,
}

#[derive(Debug)]
struct State {
    report: StatusReport,
    tables: BTreeMap<TableName, (TableStatus, CopyProgress)>,
    last_progress: Instant,
    last_commit: Option<Instant>,
}

/// The stream's status, shared by everything in the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StatusBoard {
    shared: Arc<Mutex<State>>,
}

impl StatusBoard {
    /// A board of a stream that is starting. `source` is `postgres`, `mysql` or `mariadb`.
    pub fn new(stream: impl Into<String>, source: impl Into<String>) -> Self {
        StatusBoard {
            shared: Arc::new(Mutex::new(State {
                report: StatusReport::empty(stream, source, StreamState::Starting),
                tables: BTreeMap::new(),
                last_progress: Instant::now(),
                last_commit: None,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panicking writer leaves plain values behind, at worst half updated.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something moved: an event, a heartbeat, a commit, an attempt to reconnect. The
    /// stall watchdog fails after [`STALL_LIMIT`] without a call.
    pub fn touch(&self) {
        self.lock().last_progress = Instant::now();
    }

    /// Sets the stream's state.
    pub fn set_state(&self, state: StreamState) {
        let mut s = self.lock();
        s.report.state = state;
        s.last_progress = Instant::now();
    }

    /// The stream's state.
    pub fn state(&self) -> StreamState {
        self.lock().report.state
    }

    /// The lake's head: after recovery, and after every commit.
    pub fn set_commit(&self, epoch: u64, generation: u64, through: &StreamPoint) {
        let mut s = self.lock();
        s.report.epoch = epoch;
        s.report.generation = generation;
        s.report.position = Some(through.position.clone());
        let now = Instant::now();
        s.last_progress = now;
        s.last_commit = Some(now);
    }

    /// How far the source is ahead of the lake.
    pub fn set_lag(
        &self,
        source_position: Option<Position>,
        lag_bytes: Option<u64>,
        lag_seconds: Option<f64>,
    ) {
        let mut s = self.lock();
        if source_position.is_some() {
            s.report.source_position = source_position;
        }
        s.report.lag_bytes = lag_bytes;
        // A clock's noise is not a lag.
        s.report.lag_seconds = lag_seconds.map(|v| (v * 1000.0).round() / 1000.0);
    }

    /// Sets what a table's committed progress says; its row counters stay.
    pub fn update_table(&self, table: TableStatus) {
        let mut s = self.lock();
        match s.tables.get_mut(&table.table) {
            Some((status, _)) => *status = table,
            None => {
                s.tables
                    .insert(table.table.clone(), (table, CopyProgress::default()));
            }
        }
        s.last_progress = Instant::now();
    }

    /// Takes a table off the board: it left the stream.
    pub fn remove_table(&self, table: &TableName) {
        self.lock().tables.remove(table);
    }

    /// The planner's estimate for a table, which begins a copy: its row counter restarts
    /// at `rows_read` (rows of chunks that an earlier run has finished).
    pub fn begin_copy(&self, table: &TableName, rows_read: u64, estimated_rows: u64) {
        if let Some((_, copy)) = self.lock().tables.get_mut(table) {
            *copy = CopyProgress {
                rows_read,
                estimated_rows,
            };
        }
    }

    /// Rows that were just read from the source for a table's copy.
    pub fn add_copied_rows(&self, table: &TableName, rows: u64) {
        let mut s = self.lock();
        if let Some((_, copy)) = s.tables.get_mut(table) {
            copy.rows_read = copy.rows_read.saturating_add(rows);
        }
        s.last_progress = Instant::now();
    }

    /// Every table's copy, in order of their names.
    pub fn copies(&self) -> Vec<(TableStatus, CopyProgress)> {
        self.lock().tables.values().cloned().collect()
    }

    /// What `/status` answers.
    pub fn report(&self) -> StatusReport {
        let s = self.lock();
        let mut report = s.report.clone();
        report.tables = s.tables.values().map(|(t, _)| t.clone()).collect();
        report
    }

    /// `/readyz`: connected, recovered, and reading.
    pub fn ready(&self) -> bool {
        matches!(
            self.state(),
            StreamState::Snapshotting | StreamState::Running
        )
    }

    /// `/healthz`: not failed, and something moved within [`STALL_LIMIT`].
    pub fn healthy(&self) -> bool {
        self.healthy_at(Instant::now())
    }

    fn healthy_at(&self, now: Instant) -> bool {
        let s = self.lock();
        s.report.state != StreamState::Failed
            && now.saturating_duration_since(s.last_progress) < STALL_LIMIT
    }

    /// How long ago something moved.
    pub fn idle(&self) -> Duration {
        self.lock().last_progress.elapsed()
    }

    /// How long ago the last commit of this process was, if there was one.
    pub fn since_commit(&self) -> Option<Duration> {
        self.lock().last_commit.map(|t| t.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> TableStatus {
        TableStatus {
            table: TableName::new("public", "orders"),
            state: TableState::Live,
            rows: 120_000,
            chunks_done: 12,
            chunks_total: 12,
            schema_version: 1,
            error: None,
            changes_pending_merge: 75,
        }
    }

    #[test]
    fn the_report_has_the_documented_shape() {
        let board = StatusBoard::new("shop", "postgres");
        board.set_state(StreamState::Running);
        board.set_commit(
            42,
            1,
            &StreamPoint {
                position: Position::new("0/1A2B4F8"),
                seq: 1275,
            },
        );
        board.set_lag(Some(Position::new("0/1A2B5D0")), Some(216), Some(1.2));
        board.update_table(orders());
        let expected = serde_json::json!({
            "stream": "shop", "state": "running", "source": "postgres", "epoch": 42,
            "position": "0/1A2B4F8", "source_position": "0/1A2B5D0", "lag_bytes": 216,
            "lag_seconds": 1.2, "generation": 1,
            "tables": [{"table": "public.orders", "state": "live", "rows": 120000,
                        "chunks_done": 12, "chunks_total": 12, "schema_version": 1,
                        "error": null, "changes_pending_merge": 75}]
        });
        assert_eq!(serde_json::to_value(board.report()).unwrap(), expected);
        let back: StatusReport = serde_json::from_value(expected).unwrap();
        assert_eq!(back, board.report());
    }

    #[test]
    fn readiness_follows_the_state_and_health_the_watchdog() {
        let board = StatusBoard::new("shop", "mysql");
        assert!(!board.ready() && board.healthy());
        board.set_state(StreamState::Snapshotting);
        assert!(board.ready() && board.healthy());
        assert!(!board.healthy_at(Instant::now() + STALL_LIMIT));
        board.set_state(StreamState::Failed);
        assert!(!board.ready() && !board.healthy());
    }

    #[test]
    fn an_update_keeps_the_copy_counters() {
        let board = StatusBoard::new("shop", "mysql");
        let t = orders();
        board.update_table(t.clone());
        board.begin_copy(&t.table, 10, 1000);
        board.add_copied_rows(&t.table, 5);
        board.update_table(t.clone());
        assert_eq!(
            board.copies()[0].1,
            CopyProgress {
                rows_read: 15,
                estimated_rows: 1000
            }
        );
        board.remove_table(&t.table);
        assert!(board.report().tables.is_empty());
    }
}
