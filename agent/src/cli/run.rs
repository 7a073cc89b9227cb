//! `caudal run`: the agent, with what surrounds it: signals, the server, the progress
//! display and the summary.

use super::output::Output;
use super::{RunArguments, code};
use crate::config::Config;
use crate::progress::Progress;
use crate::status::{StatusBoard, StatusReport};
use crate::supervise::{Ending, Goal, Outcome};
use crate::text::grouped;
use caudal_model::{Error, Kind, Result, TableState};
use indicatif::MultiProgress;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a stop may take in all: service managers kill after ten seconds.
const STOP_WITHIN: Duration = Duration::from_millis(9_500);
/// The exit code of a process that a second signal ends: 128 and SIGINT.
const INTERRUPTED: i32 = 130;

pub(super) async fn execute(
    config: &Config,
    arguments: &RunArguments,
    output: &Output,
    bars: &MultiProgress,
) -> Result<u8> {
    let board = StatusBoard::new(&config.stream.name, config.source.kind.label());
    let shutdown = CancellationToken::new();
    watch_signals(shutdown.clone())?;
    let metrics = crate::metrics::install(&config.stream.name)?;
    // The server outlives the stop, so that what happens during it can be seen.
    let server = CancellationToken::new();
    crate::http::start(config, board.clone(), metrics, server.clone()).await?;
    tracing::info!(
        stream = config.stream.name,
        source = config.source.kind.label(),
        sink = config.sink.url,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    let draw = !output.is_json() && std::io::stderr().is_terminal();
    let progress = draw.then(|| Progress::start(board.clone(), bars.clone()));

    if arguments.snapshot_worker {
        let joined = crate::start::join(config, arguments.deadline, board, &shutdown).await;
        server.cancel();
        return joined.map(|()| code::DONE);
    }
    let goal = Goal {
        until_caught_up: arguments.until_caught_up,
        deadline: arguments.deadline,
    };
    let stream = crate::start::run(config, &goal, board.clone(), shutdown.clone());
    let ended = tokio::select! {
        ended = Box::pin(stream) => Some(ended),
        () = overdue(&shutdown) => None,
    };
    if let Some(progress) = progress {
        progress.stop().await;
    }
    server.cancel();
    match ended {
        Some(Ok(outcome)) => {
            summarize(output, &board.report(), Some(&outcome))?;
            Ok(if outcome.errored.is_empty() {
                code::DONE
            } else {
                code::ERRORED_TABLES
            })
        }
        Some(Err(error)) => {
            // On a terminal the command's own message is enough.
            if !std::io::stderr().is_terminal() {
                tracing::error!(
                    kind = error.kind().label(),
                    hint = error.hint_text(),
                    "the stream has ended: {error}"
                );
            }
            Err(error)
        }
        None => {
            // What was not committed is not in the lake (INV-1), and is read again.
            tracing::warn!("the open commit could not be finished in time and was dropped");
            summarize(output, &board.report(), None)?;
            Ok(code::DONE)
        }
    }
}

/// Returns when a stop has taken too long; never without one.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_WITHIN).await;
}

/// The first SIGTERM or SIGINT stops the stream, the second ends the process at once.
fn watch_signals(shutdown: CancellationToken) -> Result<()> {
    let failed = |e: std::io::Error| Error::fatal(Kind::State, "cannot watch signals").caused_by(e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if shutdown.is_cancelled() {
                std::process::exit(INTERRUPTED);
            }
            tracing::info!(
                signal = name,
                "stopping; a second signal ends the process at once"
            );
            shutdown.cancel();
        }
    });
    Ok(())
}

fn summarize(output: &Output, report: &StatusReport, outcome: Option<&Outcome>) -> Result<()> {
    if output.is_json() {
        output.json(report)
    } else {
        output.text(&summary(report, outcome))
    }
}

fn summary(report: &StatusReport, outcome: Option<&Outcome>) -> String {
    let ending = match outcome.map(|o| o.ending) {
        Some(Ending::CaughtUp) => "caught up",
        Some(Ending::DeadlinePassed) => "deadline passed",
        Some(Ending::Stopped) | None => "stopped",
    };
    let rows: u64 = report.tables.iter().map(|t| t.rows).sum();
    let position = report
        .position
        .as_ref()
        .map(|p| format!(" at {p}"))
        .unwrap_or_default();
    let mut text = format!(
        "{}: {ending} with commit {}{position}; {} of {} tables live, {} rows in the lake\n",
        report.stream,
        report.epoch,
        report.tables_in(TableState::Live),
        report.tables.len(),
        grouped(rows)
    );
    for t in report
        .tables
        .iter()
        .filter(|t| t.state == TableState::Errored)
    {
        let why = t.error.as_deref().unwrap_or("no reason is known");
        text.push_str(&format!("{}: errored: {why}\n", t.table));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{StreamState, TableStatus};
    use caudal_model::{Position, TableName, TableProgress};

    #[test]
    fn the_summary_names_what_is_errored() {
        let mut report = StatusReport::empty("shop", "mysql", StreamState::Stopped);
        report.epoch = 7;
        report.position = Some(Position::new("b.1:4"));
        let mut t = TableProgress::pending(TableName::new("shop", "t"));
        t.state = TableState::Errored;
        t.rows = 1234;
        t.error = Some("column `x` changed".into());
        report.tables.push(TableStatus::from(&t));
        let outcome = Outcome {
            ending: Ending::CaughtUp,
            epoch: 7,
            position: Position::new("b.1:4"),
            errored: vec![t.table],
        };
        assert_eq!(
            summary(&report, Some(&outcome)),
            "shop: caught up with commit 7 at b.1:4; 0 of 1 tables live, 1,234 rows in the lake\n\
             shop.t: errored: column `x` changed\n"
        );
    }
}
