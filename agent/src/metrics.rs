//! The metrics: every name, its meaning and its labels in one place.
//!
//! Code calls the functions below, never the facade by name, so that a name cannot be
//! misspelt. Without [`install`] (tests, the simulation) every call is a no-op. The
//! recorder has no listener of its own: `/metrics` of the agent's server renders it.

use crate::snapshot::Pause;
use crate::status::{SnapshotStatus, Trouble};
use caudal_model::{Error, Op, Result, TableName, TableState};
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::time::Duration;

/// Seconds between the newest committed change's commit at the source and now.
pub const LAG_SECONDS: &str = "caudal_lag_seconds";
/// Bytes of the source's log that the lake does not hold yet.
pub const LAG_BYTES: &str = "caudal_lag_bytes";
/// Changes committed to the lake, by `op`.
pub const CHANGES_TOTAL: &str = "caudal_changes_total";
/// Snapshot rows committed to the lake, by `table`.
pub const SNAPSHOT_ROWS_TOTAL: &str = "caudal_snapshot_rows_total";
/// Commits of this process.
pub const COMMITS_TOTAL: &str = "caudal_commits_total";
/// Seconds from closing an epoch to its commit.
pub const COMMIT_SECONDS: &str = "caudal_commit_seconds";
/// Bytes of committed files.
pub const FILES_BYTES_TOTAL: &str = "caudal_files_bytes_total";
/// Committed files.
pub const FILES_TOTAL: &str = "caudal_files_total";
/// Bytes that all buffers hold.
pub const MEMORY_BYTES: &str = "caudal_memory_bytes";
/// Bytes on disk of transactions that have not ended.
pub const SPILL_BYTES: &str = "caudal_spill_bytes";
/// Bytes of log that the source keeps because of this stream.
pub const SOURCE_LOG_RETAINED_BYTES: &str = "caudal_source_log_retained_bytes";
/// Rows that copies will have, by the source's statistics, by `table`.
pub const SNAPSHOT_ROWS_ESTIMATED: &str = "caudal_snapshot_rows_estimated";
/// Bytes of the copies' committed files, by `table`.
pub const SNAPSHOT_BYTES_TOTAL: &str = "caudal_snapshot_bytes_total";
/// Chunks of the tables that are being copied together, by `state`: `done` or `planned`.
pub const SNAPSHOT_CHUNKS: &str = "caudal_snapshot_chunks";
/// Seconds that what is left of the copies takes; NaN where that is unknown, 0 without a copy.
pub const SNAPSHOT_SECONDS_LEFT: &str = "caudal_snapshot_seconds_left";
/// 1 while every copy waits, by `reason`.
pub const SNAPSHOT_PAUSED: &str = "caudal_snapshot_paused";
/// Tables, by `state`.
pub const TABLES: &str = "caudal_tables";
/// Errors, by `class`.
pub const ERRORS_TOTAL: &str = "caudal_errors_total";
/// Values that a documented coercion changed, by `reason`.
pub const VALUES_COERCED_TOTAL: &str = "caudal_values_coerced_total";
/// The last commit's number.
pub const EPOCH: &str = "caudal_epoch_number";

/// 1 while the stream can make progress.
pub const READY: &str = "caudal_ready";
/// 1 while this keeps the stream from making progress, by `reason`.
pub const TROUBLE: &str = "caudal_trouble";
/// How often the log was opened anew because it had stalled.
pub const STALLS_TOTAL: &str = "caudal_stalls_total";

const COMMIT_BUCKETS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Reads the recorder's state.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}

#[cfg(test)]
impl Metrics {
    /// Metrics that hold one value and stay apart from the process's.
    pub(crate) fn local(stream: &str) -> Metrics {
        let recorder = recorder(stream).unwrap();
        metrics::with_local_recorder(&recorder, || memory(5));
        Metrics(recorder.handle())
    }
}

fn recorder(stream: &str) -> Result<metrics_exporter_prometheus::PrometheusRecorder> {
    let recorder = PrometheusBuilder::new()
        .add_global_label("stream", stream)
        .set_buckets_for_metric(Matcher::Full(COMMIT_SECONDS.to_owned()), &COMMIT_BUCKETS)
        .map_err(|e| Error::bug("the metrics' buckets are invalid").caused_by(e))?
        .build_recorder();
    Ok(recorder)
}

/// Installs the recorder for the process, with the label `stream` on everything.
/// Errors when one is installed already.
pub fn install(stream: &str) -> Result<Metrics> {
    let recorder = recorder(stream)?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|e| Error::bug(format!("the metrics are installed already: {e}")))?;
    describe();
    Ok(Metrics(handle))
}

/// Says what each metric means, and makes those that alerts watch exist from the start.
fn describe() {
    describe_gauge!(
        LAG_SECONDS,
        Unit::Seconds,
        "Age of the oldest change that the lake does not hold"
    );
    describe_gauge!(
        LAG_BYTES,
        Unit::Bytes,
        "Bytes of the source's log that the lake does not hold"
    );
    describe_counter!(CHANGES_TOTAL, "Changes committed to the lake, by operation");
    describe_counter!(
        SNAPSHOT_ROWS_TOTAL,
        "Snapshot rows committed to the lake, by table"
    );
    describe_counter!(COMMITS_TOTAL, "Commits of this process");
    describe_histogram!(
        COMMIT_SECONDS,
        Unit::Seconds,
        "Seconds from closing an epoch to its commit"
    );
    describe_counter!(FILES_BYTES_TOTAL, Unit::Bytes, "Bytes of committed files");
    describe_counter!(FILES_TOTAL, "Committed files");
    describe_gauge!(MEMORY_BYTES, Unit::Bytes, "Bytes that all buffers hold");
    describe_gauge!(
        SPILL_BYTES,
        Unit::Bytes,
        "Bytes on disk of transactions that have not ended"
    );
    describe_gauge!(
        SOURCE_LOG_RETAINED_BYTES,
        Unit::Bytes,
        "Bytes of log that the source keeps because of this stream"
    );
    describe_gauge!(
        SNAPSHOT_ROWS_ESTIMATED,
        "Rows that a table's copy will have, by the source's statistics"
    );
    describe_counter!(
        SNAPSHOT_BYTES_TOTAL,
        Unit::Bytes,
        "Bytes of the copies' committed files, by table"
    );
    describe_gauge!(
        SNAPSHOT_CHUNKS,
        "Chunks of the copies under way, done and planned"
    );
    describe_gauge!(
        SNAPSHOT_SECONDS_LEFT,
        Unit::Seconds,
        "Time that what is left of the copies takes; NaN where unknown"
    );
    describe_gauge!(SNAPSHOT_PAUSED, "1 while every copy waits, by reason");
    describe_gauge!(TABLES, "Tables, by state");
    describe_counter!(ERRORS_TOTAL, "Errors, by class");
    describe_counter!(
        VALUES_COERCED_TOTAL,
        "Values that a documented coercion changed, by reason"
    );
    describe_gauge!(EPOCH, "Number of the last commit");
    describe_gauge!(READY, "1 while the stream can make progress");
    describe_gauge!(
        TROUBLE,
        "1 while this keeps the stream from making progress"
    );
    describe_counter!(STALLS_TOTAL, "Times that a stalled log was opened anew");
    counter!(STALLS_TOTAL).absolute(0);
    for class in ["retryable", "data", "fatal"] {
        counter!(ERRORS_TOTAL, "class" => class).absolute(0);
    }
    counter!(COMMITS_TOTAL).absolute(0);
    counter!(FILES_BYTES_TOTAL).absolute(0);
}

/// Changes of the log that a commit carried.
pub fn changes(op: Op, n: u64) {
    counter!(CHANGES_TOTAL, "op" => op.code()).increment(n);
}

/// Snapshot rows of one table that a commit carried.
pub fn snapshot_rows(table: &TableName, n: u64) {
    counter!(SNAPSHOT_ROWS_TOTAL, "table" => table.to_string()).increment(n);
}

/// Bytes of one table's copy that a commit carried.
pub fn snapshot_bytes(table: &TableName, n: u64) {
    counter!(SNAPSHOT_BYTES_TOTAL, "table" => table.to_string()).increment(n);
}

/// The planner's estimate of a table whose copy begins.
pub fn snapshot_estimate(table: &TableName, rows: u64) {
    gauge!(SNAPSHOT_ROWS_ESTIMATED, "table" => table.to_string()).set(rows as f64);
}

/// All copies together; `None` without a copy.
pub fn snapshot(all: Option<&SnapshotStatus>, paused: Option<&Pause>) {
    let chunks = |f: fn(&SnapshotStatus) -> u64| all.map_or(0, f) as f64;
    gauge!(SNAPSHOT_CHUNKS, "state" => "done").set(chunks(|s| s.chunks_done));
    gauge!(SNAPSHOT_CHUNKS, "state" => "planned").set(chunks(|s| s.chunks_total));
    let left = all.map_or(0.0, |s| s.seconds_left.map_or(f64::NAN, |l| l as f64));
    gauge!(SNAPSHOT_SECONDS_LEFT).set(left);
    for label in Pause::LABELS {
        let is = all.and(paused).is_some_and(|p| p.label() == label);
        gauge!(SNAPSHOT_PAUSED, "reason" => label).set(f64::from(u8::from(is)));
    }
}

/// One commit: the time from closing its epoch, and its files.
pub fn commit(epoch: u64, took: Duration, bytes: u64, files: u64) {
    counter!(COMMITS_TOTAL).increment(1);
    histogram!(COMMIT_SECONDS).record(took.as_secs_f64());
    counter!(FILES_BYTES_TOTAL).increment(bytes);
    counter!(FILES_TOTAL).increment(files);
    gauge!(EPOCH).set(epoch as f64);
}

/// An error that the supervisor saw, fatal or not.
pub fn error(error: &Error) {
    let class = match error.class() {
        caudal_model::Class::Retryable => "retryable",
        caudal_model::Class::Data => "data",
        caudal_model::Class::Fatal => "fatal",
    };
    counter!(ERRORS_TOTAL, "class" => class).increment(1);
}

/// How far the source is ahead of the lake, where it can tell.
pub fn lag(seconds: Option<f64>, bytes: Option<u64>) {
    if let Some(s) = seconds {
        gauge!(LAG_SECONDS).set(s);
    }
    if let Some(b) = bytes {
        gauge!(LAG_BYTES).set(b as f64);
    }
}

/// Bytes of log that the source keeps because of this stream.
pub fn log_retained(bytes: u64) {
    gauge!(SOURCE_LOG_RETAINED_BYTES).set(bytes as f64);
}

/// What keeps the stream from making progress.
pub fn troubles(found: &[Trouble]) {
    gauge!(READY).set(f64::from(u8::from(found.is_empty())));
    for label in Trouble::LABELS {
        let is = found.iter().any(|t| t.reason == label);
        gauge!(TROUBLE, "reason" => label).set(f64::from(u8::from(is)));
    }
}

/// The log is opened anew because it has stalled.
pub fn stall() {
    counter!(STALLS_TOTAL).increment(1);
}

/// Bytes that all buffers hold.
pub fn memory(bytes: u64) {
    gauge!(MEMORY_BYTES).set(bytes as f64);
}

/// Bytes on disk of transactions that have not ended.
pub fn spilled(bytes: u64) {
    gauge!(SPILL_BYTES).set(bytes as f64);
}

/// How many tables are in a state.
pub fn tables(state: TableState, n: usize) {
    gauge!(TABLES, "state" => crate::status::table_state_label(state)).set(n as f64);
}

/// Values that a documented coercion changed: `zero_date`, `sub_microsecond`, `offset`.
pub fn coerced(reason: &'static str, n: u64) {
    counter!(VALUES_COERCED_TOTAL, "reason" => reason).increment(n);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_with_its_labels() {
        let recorder = recorder("shop").unwrap();
        let handle = Metrics(recorder.handle());
        metrics::with_local_recorder(&recorder, || {
            describe();
            changes(Op::Insert, 3);
            changes(Op::Delete, 1);
            snapshot_rows(&TableName::new("public", "orders"), 7);
            commit(42, Duration::from_millis(40), 1000, 2);
            error(&Error::retryable(caudal_model::Kind::Store, "busy"));
            lag(Some(1.5), Some(216));
            log_retained(10);
            snapshot_bytes(&TableName::new("public", "orders"), 5);
            snapshot_estimate(&TableName::new("public", "orders"), 9);
            let all = SnapshotStatus {
                chunks_done: 2,
                chunks_total: 3,
                ..SnapshotStatus::default()
            };
            snapshot(Some(&all), Some(&Pause::Request));
            memory(99);
            tables(TableState::Live, 4);
            coerced("zero_date", 2);
        });
        let text = handle.render();
        for line in [
            r#"caudal_changes_total{stream="shop",op="c"} 3"#,
            r#"caudal_changes_total{stream="shop",op="d"} 1"#,
            r#"caudal_snapshot_rows_total{stream="shop",table="public.orders"} 7"#,
            r#"caudal_commits_total{stream="shop"} 1"#,
            r#"caudal_commit_seconds_bucket{stream="shop",le="0.05"} 1"#,
            r#"caudal_commit_seconds_count{stream="shop"} 1"#,
            r#"caudal_files_bytes_total{stream="shop"} 1000"#,
            r#"caudal_errors_total{stream="shop",class="fatal"} 0"#,
            r#"caudal_errors_total{stream="shop",class="retryable"} 1"#,
            r#"caudal_lag_seconds{stream="shop"} 1.5"#,
            r#"caudal_lag_bytes{stream="shop"} 216"#,
            r#"caudal_source_log_retained_bytes{stream="shop"} 10"#,
            r#"caudal_memory_bytes{stream="shop"} 99"#,
            r#"caudal_snapshot_bytes_total{stream="shop",table="public.orders"} 5"#,
            r#"caudal_snapshot_rows_estimated{stream="shop",table="public.orders"} 9"#,
            r#"caudal_snapshot_chunks{stream="shop",state="done"} 2"#,
            r#"caudal_snapshot_chunks{stream="shop",state="planned"} 3"#,
            r#"caudal_snapshot_seconds_left{stream="shop"} NaN"#,
            r#"caudal_snapshot_paused{stream="shop",reason="request"} 1"#,
            r#"caudal_snapshot_paused{stream="shop",reason="window"} 0"#,
            r#"caudal_tables{stream="shop",state="live"} 4"#,
            r#"caudal_values_coerced_total{stream="shop",reason="zero_date"} 2"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
