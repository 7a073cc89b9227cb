//! The terminal's view of a run: the snapshot's progress while there is one, then one
//! line about the tail.
//!
//! It reads the [`StatusBoard`] a few times a second and nothing else, so it cannot
//! disturb the pipeline. Where stderr is not a terminal, it is not started.

use crate::status::{CopyProgress, StatusBoard, StatusReport, StreamState, TableStatus};
use caudal_model::{TableName, TableState};
use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
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
                display.draw(&board.report(), &board.copies());
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
        .with_key("rate", |state: &ProgressState, w: &mut dyn Write| {
            // A template's text cannot fail to be written.
            let _ = write!(w, "{}/s", HumanCount(state.per_sec() as u64));
        })
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

    fn draw(&mut self, report: &StatusReport, copies: &[(TableStatus, CopyProgress)]) {
        self.line.set_message(headline(report));
        self.line.tick();
        let sum = total(copies);
        match (&self.total, sum) {
            (None, Some(_)) => {
                let bar = ProgressBar::new(0).with_style(style(
                    "  {bar:24} {human_pos} of ~{human_len} rows  {rate}  eta {eta}  {msg}",
                ));
                self.total = Some(self.bars.add(bar));
            }
            (Some(bar), None) => {
                bar.finish_and_clear();
                self.total = None;
            }
            _ => {}
        }
        if let (Some(bar), Some(sum)) = (&self.total, sum) {
            bar.set_length(sum.estimated.max(sum.rows));
            bar.set_position(sum.rows);
            bar.set_message(format!("chunks {}/{}", sum.chunks_done, sum.chunks_total));
        }
        let current: BTreeMap<_, _> = copies
            .iter()
            .filter(|(t, _)| t.state == TableState::Snapshotting)
            .take(SHOWN)
            .map(|c| (c.0.table.clone(), c))
            .collect();
        self.tables.retain(|table, bar| {
            let stays = current.contains_key(table);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for (table, (status, copy)) in current {
            let bar = self.tables.entry(table).or_insert_with_key(|table| {
                let bar = ProgressBar::new(0)
                    .with_style(style(
                        "    {bar:22} {human_pos} of ~{human_len}  {prefix}  {msg}",
                    ))
                    .with_prefix(table.to_string());
                self.bars.add(bar)
            });
            bar.set_length(copy.estimated_rows.max(copy.rows_read));
            bar.set_position(copy.rows_read);
            bar.set_message(format!(
                "chunks {}/{}",
                status.chunks_done, status.chunks_total
            ));
        }
    }

    fn clear(&mut self) {
        for bar in self.tables.values().chain(&self.total) {
            bar.finish_and_clear();
        }
        self.line.finish_and_clear();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Total {
    rows: u64,
    estimated: u64,
    chunks_done: u64,
    chunks_total: u64,
}

/// All tables together, while any of them is still to be copied.
fn total(copies: &[(TableStatus, CopyProgress)]) -> Option<Total> {
    let copying = |s| matches!(s, TableState::Pending | TableState::Snapshotting);
    copies.iter().any(|(t, _)| copying(t.state)).then(|| {
        copies.iter().fold(Total::default(), |sum, (t, c)| Total {
            rows: sum.rows.saturating_add(c.rows_read),
            // A finished table's estimate no longer counts, only what it had.
            estimated: sum.estimated.saturating_add(if copying(t.state) {
                c.estimated_rows.max(c.rows_read)
            } else {
                c.rows_read
            }),
            chunks_done: sum.chunks_done + u64::from(t.chunks_done),
            chunks_total: sum.chunks_total + u64::from(t.chunks_total),
        })
    })
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
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_model::TableProgress;

    fn table(
        name: &str,
        state: TableState,
        rows_read: u64,
        estimated_rows: u64,
    ) -> (TableStatus, CopyProgress) {
        let mut progress = TableProgress::pending(TableName::new("s", name));
        progress.state = state;
        progress.chunks_total = 3;
        (
            TableStatus::from(&progress),
            CopyProgress {
                rows_read,
                estimated_rows,
            },
        )
    }

    #[test]
    fn the_total_ends_with_the_snapshot() {
        let live = table("a", TableState::Live, 90, 100);
        let copying = table("b", TableState::Snapshotting, 30, 20);
        let pending = table("c", TableState::Pending, 0, 50);
        let sum = total(&[live.clone(), copying, pending]).unwrap();
        assert_eq!(
            sum,
            Total {
                rows: 120,
                estimated: 170,
                chunks_done: 3,
                chunks_total: 9
            }
        );
        assert_eq!(total(&[live]), None);
    }

    #[test]
    fn a_hidden_display_draws_and_clears() {
        let bars = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let mut display = Display::new(bars);
        let report = StatusReport::empty("shop", "mysql", StreamState::Snapshotting);
        display.draw(&report, &[table("a", TableState::Snapshotting, 1, 2)]);
        assert_eq!((display.tables.len(), display.total.is_some()), (1, true));
        display.draw(&report, &[table("a", TableState::Live, 2, 2)]);
        assert_eq!((display.tables.len(), display.total.is_some()), (0, false));
        display.clear();
        assert_eq!(
            headline(&report),
            "shop snapshotting · commit 0 · 0 of 0 tables live"
        );
    }
}
