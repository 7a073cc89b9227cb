//! The terminal's view of a run: the snapshot's progress while there is one, then one
//! line about the tail.
//!
//! It reads the [`StatusBoard`] a few times a second and nothing else, so it cannot
//! disturb the pipeline. Where stderr is not a terminal, it is not started.

use crate::status::{SnapshotStatus, StatusBoard, StatusReport, StreamState, TableStatus};
use crate::text::{bytes, grouped, span};
use caudal_model::{TableName, TableState};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const REDRAW: Duration = Duration::from_millis(250);
/// Tables with a bar of their own.
const SHOWN: usize = 8;

/// A display that is running; it clears itself when it is stopped.
#[derive(Debug)]
pub struct Progress {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Progress {
    /// Starts to draw.
    pub fn start(board: StatusBoard, bars: MultiProgress) -> Progress {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut display = Display::new(bars);
            while stopped
                .run_until_cancelled(tokio::time::sleep(REDRAW))
                .await
                .is_some()
            {
                display.draw(&board.report());
            }
            display.clear();
        });
        Progress { stop, task }
    }

    /// Stops drawing and leaves the terminal clean.
    pub async fn stop(self) {
        self.stop.cancel();
        // A display that failed has nothing left to clean.
        let _ = self.task.await;
    }
}

struct Display {
    bars: MultiProgress,
    line: ProgressBar,
    total: Option<ProgressBar>,
    tables: BTreeMap<TableName, ProgressBar>,
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Display {
    fn new(bars: MultiProgress) -> Self {
        let line = bars.add(ProgressBar::new_spinner().with_style(style("{spinner} {wide_msg}")));
        Display {
            bars,
            line,
            total: None,
            tables: BTreeMap::new(),
        }
    }

    fn draw(&mut self, report: &StatusReport) {
        self.line.set_message(headline(report));
        self.line.tick();
        match (&self.total, &report.snapshot) {
            (None, Some(_)) => {
                let bar = ProgressBar::new(0).with_style(style("  {bar:20} {wide_msg}"));
                self.total = Some(self.bars.insert_after(&self.line, bar));
            }
            (Some(bar), None) => {
                bar.finish_and_clear();
                self.total = None;
            }
            _ => {}
        }
        if let (Some(bar), Some(all)) = (&self.total, &report.snapshot) {
            bar.set_length(all.estimated_rows.max(all.rows));
            bar.set_position(all.rows);
            bar.set_message(total(all));
        }
        // Of thousands of tables, those that are being read.
        let read = |t: &&TableStatus| t.reading && t.paused.is_none();
        let current: BTreeMap<_, _> = report
            .tables
            .iter()
            .filter(read)
            .take(SHOWN)
            .map(|t| (t.table.clone(), t))
            .collect();
        self.tables.retain(|table, bar| {
            let stays = current.contains_key(table);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for (table, t) in current {
            let bar = self.tables.entry(table).or_insert_with(|| {
                let bar = ProgressBar::new(0).with_style(style("    {bar:18} {wide_msg}"));
                self.bars.add(bar)
            });
            bar.set_length(t.estimated_rows.unwrap_or(0).max(t.snapshot_rows));
            bar.set_position(t.snapshot_rows);
            bar.set_message(one(t));
        }
    }

    fn clear(&mut self) {
        for bar in self.tables.values().chain(&self.total) {
            bar.finish_and_clear();
        }
        self.line.finish_and_clear();
    }
}

/// What is most worth knowing comes first, for a narrow terminal cuts the rest.
fn total(all: &SnapshotStatus) -> String {
    if let Some(why) = &all.paused {
        return format!("waiting: {why}");
    }
    let mut parts = vec![rows(all.rows, Some(all.estimated_rows))];
    parts.extend(
        all.rows_per_second
            .map(|r| format!("{}/s", grouped(r as u64))),
    );
    parts.extend(all.seconds_left.map(|s| format!("{} left", span(s))));
    parts.push(format!("{}/{} chunks", all.chunks_done, all.chunks_total));
    parts.push(bytes(all.bytes));
    parts.join(" · ")
}

fn one(t: &TableStatus) -> String {
    let mut parts = vec![t.table.to_string(), rows(t.snapshot_rows, t.estimated_rows)];
    parts.extend(t.seconds_left.map(|s| format!("{} left", span(s))));
    parts.push(format!("{}/{} chunks", t.chunks_done, t.chunks_total));
    parts.join(" · ")
}

fn rows(done: u64, estimate: Option<u64>) -> String {
    match estimate {
        Some(estimate) if estimate > done => {
            format!("{} of ~{} rows", grouped(done), grouped(estimate))
        }
        _ => format!("{} rows", grouped(done)),
    }
}

fn headline(report: &StatusReport) -> String {
    let mut line = format!("{} {}", report.stream, report.state);
    if report.state == StreamState::Starting && report.epoch == 0 {
        return line;
    }
    // Writing to a string cannot fail.
    let _ = write!(line, " · commit {}", report.epoch);
    let live = report.tables_in(TableState::Live);
    let _ = write!(line, " · {live} of {} tables live", report.tables.len());
    if let Some(lag) = report.lag_seconds {
        let _ = write!(line, " · lag {lag:.1} s");
    }
    match report.tables_in(TableState::Errored) {
        0 => {}
        n => {
            let _ = write!(line, " · {n} errored");
        }
    }
    let paused = report.tables.iter().filter(|t| t.paused.is_some()).count();
    if paused > 0 {
        let _ = write!(line, " · {paused} paused");
    }
    if !report.warnings.is_empty() {
        let _ = write!(line, " · {}", report.warnings.join(" · "));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_model::TableProgress;

    fn table(name: &str, state: TableState, read: u64, reading: bool) -> TableStatus {
        let mut progress = TableProgress::pending(TableName::new("s", name));
        progress.state = state;
        progress.chunks_total = 3;
        TableStatus {
            snapshot_rows: read,
            estimated_rows: Some(2_000),
            reading,
            seconds_left: Some(90),
            ..TableStatus::from(&progress)
        }
    }

    #[test]
    fn lines_say_first_what_is_most_worth_knowing() {
        let mut all = SnapshotStatus {
            rows: 1_200,
            estimated_rows: 2_000,
            rows_per_second: Some(75.0),
            seconds_left: Some(4_000),
            chunks_done: 1,
            chunks_total: 3,
            bytes: 2048,
            ..SnapshotStatus::default()
        };
        let line = "1,200 of ~2,000 rows · 75/s · 1h 6m left · 1/3 chunks · 2.0 KiB";
        assert_eq!(total(&all), line);
        all.paused = Some("because".into());
        assert_eq!(total(&all), "waiting: because");
        let t = table("a", TableState::Snapshotting, 3_000, true);
        assert_eq!(one(&t), "s.a · 3,000 rows · 1m left · 0/3 chunks");
    }

    #[test]
    fn a_hidden_display_draws_and_clears() {
        let bars = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let mut display = Display::new(bars);
        let mut report = StatusReport::empty("shop", "mysql", StreamState::Snapshotting);
        report.tables = (0..20)
            .map(|i| table(&format!("t{i}"), TableState::Snapshotting, 1, true))
            .collect();
        report.snapshot = Some(SnapshotStatus::default());
        display.draw(&report);
        assert_eq!(
            (display.tables.len(), display.total.is_some()),
            (SHOWN, true)
        );
        report.tables = vec![
            table("a", TableState::Snapshotting, 1, false),
            table("b", TableState::Snapshotting, 1, true),
            table("c", TableState::Live, 1, false),
        ];
        display.draw(&report);
        let shown: Vec<&TableName> = display.tables.keys().collect();
        assert_eq!(shown, [&TableName::new("s", "b")]);
        report.snapshot = None;
        report.tables.clear();
        display.draw(&report);
        assert_eq!((display.tables.len(), display.total.is_some()), (0, false));
        display.clear();
        assert_eq!(
            headline(&report),
            "shop snapshotting · commit 0 · 0 of 0 tables live"
        );
    }
}
