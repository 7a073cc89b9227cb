//! What the stream is doing right now: the one place that `status`, the page,
//! readiness and the terminal's progress read, and that the pipeline writes.
//!
//! The board is in memory and never the truth: a reader that finds no agent builds
//! the same [`StatusReport`] from the checkpoint and the commit log. Writers hold the
//! lock for a few assignments and never across an await, so no reader can hold the
//! pipeline back.

mod copying;
mod health;

pub use copying::{SnapshotStatus, committed};
pub(crate) use health::STALLS;
pub use health::{Peer, Trouble};

use copying::{CopyProgress, Meter, Pulse, is_begun_here, is_copying};
use health::Vitals;

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
    /// Rows of the table's copy: read so far, and once it is live those that the lake holds.
    #[serde(default)]
    pub snapshot_rows: u64,
    /// Rows that the copy will have, by the source's statistics; while it is copied.
    #[serde(default)]
    pub estimated_rows: Option<u64>,
    /// Rows of the copy read in a second, smoothed, pauses left out; while it is copied.
    #[serde(default)]
    pub rows_per_second: Option<f64>,
    /// Bytes of the copy's committed files.
    #[serde(default)]
    pub bytes: u64,
    /// Seconds that the rest of the copy takes at this rate, where that can be told.
    #[serde(default)]
    pub seconds_left: Option<u64>,
    /// Why the copy waits.
    #[serde(default)]
    pub paused: Option<String>,
    /// Every chunk is read: the table is live once the tail has followed.
    #[serde(skip)]
    pub copied: bool,
    /// Rows came within the last seconds.
    #[serde(skip)]
    pub reading: bool,
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
            snapshot_rows: p.snapshot_rows,
            estimated_rows: None,
            rows_per_second: None,
            bytes: p.snapshot_bytes,
            seconds_left: None,
            paused: None,
            copied: p.live_at.is_some(),
            reading: false,
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
    /// All copies together, while there is one.
    #[serde(default)]
    pub snapshot: Option<SnapshotStatus>,
    /// Bytes of log that the source keeps for the stream, where it can tell.
    #[serde(default)]
    pub source_log_retained_bytes: Option<u64>,
    /// What somebody should look at.
    #[serde(default)]
    pub warnings: Vec<String>,
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
            snapshot: None,
            source_log_retained_bytes: None,
            warnings: Vec::new(),
        }
    }

    /// How many tables are in the given state.
    pub fn tables_in(&self, state: TableState) -> usize {
        self.tables.iter().filter(|t| t.state == state).count()
    }
}

#[derive(Debug)]
struct State {
    report: StatusReport,
    tables: BTreeMap<TableName, (TableStatus, CopyProgress)>,
    last_progress: Instant,
    last_commit: Option<Instant>,
    /// Rows read for any copy, and how fast.
    rows_read: u64,
    pulse: Pulse,
    sampled: Instant,
    paused: Option<String>,
    warnings: BTreeMap<&'static str, String>,
    vitals: Vitals,
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
                rows_read: 0,
                pulse: Pulse::default(),
                sampled: Instant::now(),
                paused: None,
                warnings: BTreeMap::new(),
                vitals: Vitals::new(),
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

    /// The planner's estimate for a table, which begins a copy (0: none): its row counter
    /// restarts at `rows_read` (rows of chunks that an earlier run has finished).
    pub fn begin_copy(&self, table: &TableName, rows_read: u64, estimated_rows: u64) {
        if let Some((_, copy)) = self.lock().tables.get_mut(table) {
            *copy = CopyProgress {
                rows_read,
                estimated_rows,
                paused: None,
                counts: true,
                over: false,
                meter: Meter::at(rows_read),
            };
        }
    }

    /// Every row of a table's copy has been read, committed or not.
    pub fn end_reading(&self, table: &TableName) {
        if let Some((_, copy)) = self.lock().tables.get_mut(table) {
            copy.over = true;
        }
    }

    /// Rows that were just read from the source for a table's copy.
    pub fn add_copied_rows(&self, table: &TableName, rows: u64) {
        let mut s = self.lock();
        if let Some((_, copy)) = s.tables.get_mut(table) {
            copy.rows_read = copy.rows_read.saturating_add(rows);
        }
        s.rows_read = s.rows_read.saturating_add(rows);
        s.last_progress = Instant::now();
    }

    /// Whether a table is being copied, or waits for it.
    pub fn is_copying(&self) -> bool {
        let s = self.lock();
        s.tables.values().any(|(t, _)| is_copying(t.state))
    }

    /// Which copies wait, and why; measures the rates since the last call.
    pub fn set_paused(&self, every: Option<String>, table: impl Fn(&TableName) -> Option<String>) {
        let mut s = self.lock();
        let s = &mut *s;
        let seconds = s.sampled.elapsed().as_secs_f64();
        s.sampled = Instant::now();
        let waits = every.is_some();
        s.pulse.rows.sample(s.rows_read, seconds, waits);
        let begun = s
            .tables
            .values()
            .filter(|(t, c)| is_begun_here(t, c))
            .count() as u64;
        s.pulse.tables.sample(begun, seconds, waits);
        s.paused = every;
        let mut copying = false;
        for (name, (t, copy)) in &mut s.tables {
            if is_copying(t.state) {
                copying = true;
                copy.paused = table(name);
                let waits = copy.paused.is_some();
                copy.meter.sample(copy.rows_read, seconds, waits);
            }
        }
        if !copying {
            // What is copied next is a copy of its own.
            s.pulse = Pulse {
                rows: Meter::at(s.rows_read),
                tables: Meter::at(begun),
            };
            for (_, copy) in s.tables.values_mut() {
                copy.counts = false;
            }
        }
    }

    /// Bytes of log that the source keeps for the stream, where it can tell.
    pub fn set_retained(&self, bytes: Option<u64>) {
        self.lock().report.source_log_retained_bytes = bytes;
    }

    /// Sets or ends the warning of this name; says whether it is a new one.
    pub fn set_warning(&self, name: &'static str, text: Option<String>) -> bool {
        let mut s = self.lock();
        match text {
            Some(text) => s.warnings.insert(name, text).is_none(),
            None => {
                s.warnings.remove(name);
                false
            }
        }
    }

    /// What `/status` answers.
    pub fn report(&self) -> StatusReport {
        let s = self.lock();
        let mut report = s.report.clone();
        report.tables = s.tables.values().map(|(t, c)| c.describe(t)).collect();
        let copies = s.tables.values().map(|(_, copy)| copy);
        let copies = report.tables.iter().zip(copies);
        report.snapshot = SnapshotStatus::of(copies, &s.pulse, s.paused.as_ref());
        report.warnings = s.warnings.values().cloned().collect();
        report
    }

    /// `/readyz`: nothing keeps the stream from making progress.
    pub fn ready(&self) -> bool {
        self.troubles().is_empty()
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
        let mut p = caudal_model::TableProgress::pending(TableName::new("public", "orders"));
        p.state = TableState::Live;
        (p.rows, p.snapshot_rows, p.snapshot_bytes) = (120_000, 110_000, 4096);
        p.chunks_total = 12;
        TableStatus {
            changes_pending_merge: 75,
            ..TableStatus::from(&p)
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
        board.set_retained(Some(77));
        assert!(board.set_warning("log", Some("look".into())));
        assert!(!board.set_warning("log", Some("look".into())));
        let expected = serde_json::json!({
            "stream": "shop", "state": "running", "source": "postgres", "epoch": 42,
            "position": "0/1A2B4F8", "source_position": "0/1A2B5D0", "lag_bytes": 216,
            "lag_seconds": 1.2, "generation": 1,
            "tables": [{"table": "public.orders", "state": "live", "rows": 120000,
                        "chunks_done": 12, "chunks_total": 12, "schema_version": 1,
                        "error": null, "changes_pending_merge": 75, "snapshot_rows": 110000,
                        "estimated_rows": null, "rows_per_second": null, "bytes": 4096,
                        "seconds_left": null, "paused": null}],
            "snapshot": null, "source_log_retained_bytes": 77, "warnings": ["look"]
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
        let mut t = orders();
        (t.state, t.snapshot_rows) = (TableState::Snapshotting, 10);
        board.update_table(t.clone());
        board.begin_copy(&t.table, 10, 1000);
        board.add_copied_rows(&t.table, 5);
        board.update_table(t.clone());
        let because = || Some("because".to_owned());
        board.set_paused(because(), |_| because());
        let report = board.report();
        let shown = &report.tables[0];
        assert_eq!(
            (shown.snapshot_rows, shown.estimated_rows),
            (15, Some(1000))
        );
        assert_eq!(shown.paused, because());
        let all = report.snapshot.unwrap();
        assert_eq!(
            (all.rows, all.estimated_rows, all.paused),
            (15, 1000, because())
        );
        t.state = TableState::Live;
        board.update_table(t.clone());
        board.set_paused(None, |_| None);
        assert_eq!(board.report().snapshot, None);
        assert_eq!(board.report().tables[0].snapshot_rows, 10);
        board.remove_table(&t.table);
        assert!(board.report().tables.is_empty());
    }
}
