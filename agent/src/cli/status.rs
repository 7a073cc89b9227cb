//! `caudal status`: from the running agent, or from what it left behind.
//!
//! Without an agent that answers, the checkpoint says how far the stream got, and the
//! lake's log whether that is still the newest (INV-1): another agent, on another
//! machine, may have gone on. A lake that cannot be reached leaves the checkpoint.

use super::code;
use super::output::{Output, align};
use crate::config::Config;
use crate::http::fetch_status;
use crate::latest::newest;
use crate::requests::Requests;
use crate::snapshot::Pause;
use crate::status::{SnapshotStatus, StatusReport, StreamState, TableStatus};
use crate::text::{bytes, grouped, span};
use caudal_checkpoints::{CheckpointStore, RocksStore};
use caudal_model::{Checkpoint, Error, Kind, Result, TableState};
use std::time::Duration;

const LAKE_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn execute(config: &Config, output: &Output) -> Result<u8> {
    let report = current(config).await?;
    if output.is_json() {
        output.json(&report)?;
    } else {
        output.text(&render(output, &report))?;
    }
    Ok(code::DONE)
}

/// The stream's status, from the agent if it answers.
pub(super) async fn current(config: &Config) -> Result<StatusReport> {
    let answered = match config.http_listen() {
        Some(listen) => fetch_status(listen, &config.stream.name).await,
        None => None,
    };
    match answered {
        Some(report) => Ok(report),
        None => without_agent(config).await,
    }
}

async fn without_agent(config: &Config) -> Result<StatusReport> {
    let dir = &config.stream.state_dir;
    let local = RocksStore::open_read_only(dir, &config.stream.name)
        .and_then(|store| store.map_or(Ok(None), |s| s.load()))
        .unwrap_or_else(|error| {
            tracing::warn!(%error, "the checkpoints cannot be read; the lake is asked alone");
            None
        });
    let from_lake = async {
        let store = crate::start::store(config).await?;
        newest(&crate::start::log(config, &store), local.clone()).await
    };
    let known = match tokio::time::timeout(LAKE_TIMEOUT, from_lake).await {
        Ok(Ok(newest)) => newest,
        // Nothing is known of the stream, and what would know cannot be asked.
        Ok(Err(e)) if local.is_none() => return Err(e),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the lake cannot be read; this is the local checkpoint");
            local
        }
        Err(_) if local.is_none() => {
            return Err(Error::retryable(
                Kind::Store,
                "the lake did not answer in time",
            ));
        }
        Err(_) => {
            tracing::warn!("the lake did not answer in time; this is the local checkpoint");
            local
        }
    };
    let running = caudal_checkpoints::is_held(dir);
    let mut report = report(config, known, running);
    let paused = Requests::new(dir).paused();
    let why = || Some(Pause::Request.to_string());
    for t in &mut report.tables {
        let copying = matches!(t.state, TableState::Pending | TableState::Snapshotting);
        if copying && (paused.all || paused.tables.contains(&t.table)) {
            t.paused = why();
        }
    }
    if let Some(snapshot) = report.snapshot.as_mut().filter(|_| paused.all) {
        snapshot.paused = why();
    }
    Ok(report)
}

/// `running` says that an agent holds the state directory, though none answered.
fn report(config: &Config, known: Option<Checkpoint>, running: bool) -> StatusReport {
    let mut report = StatusReport::empty(
        &config.stream.name,
        config.source.kind.label(),
        StreamState::Stopped,
    );
    if let Some(c) = known {
        report.epoch = c.epoch;
        report.generation = c.generation;
        report.position = Some(c.through.position);
        let tables = c.tables.iter().filter(|t| !t.ended);
        report.tables = tables.map(TableStatus::from).collect();
        report.tables.sort_by(|a, b| a.table.cmp(&b.table));
        report.snapshot = crate::status::committed(&report.tables);
    }
    if running {
        let copying =
            report.tables_in(TableState::Snapshotting) + report.tables_in(TableState::Pending);
        report.state = match (report.epoch, copying) {
            (0, _) => StreamState::Starting,
            (_, 0) => StreamState::Running,
            _ => StreamState::Snapshotting,
        };
    }
    report
}

fn render(output: &Output, r: &StatusReport) -> String {
    let mut text = format!("{} {} ({})\n", output.strong(&r.stream), r.state, r.source);
    let shown = |p: &Option<caudal_model::Position>| {
        p.as_ref()
            .map_or_else(|| "none".to_owned(), ToString::to_string)
    };
    let mut facts = vec![
        (
            "commit",
            format!("{} (generation {})", r.epoch, r.generation),
        ),
        ("position", shown(&r.position)),
    ];
    if r.source_position.is_some() {
        facts.push(("source position", shown(&r.source_position)));
    }
    let lag: Vec<String> = [
        r.lag_seconds.map(|s| format!("{s:.1} s")),
        r.lag_bytes.map(bytes),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !lag.is_empty() {
        facts.push(("lag", lag.join(", ")));
    }
    if let Some(retained) = r.source_log_retained_bytes {
        facts.push(("retained log", bytes(retained)));
    }
    if let Some(all) = &r.snapshot {
        facts.push(("copy", copy(all)));
        if let Some(why) = &all.paused {
            facts.push(("paused", why.clone()));
        }
    }
    for (name, value) in facts {
        text.push_str(&format!("  {name:<16}{value}\n"));
    }
    for warning in &r.warnings {
        text.push_str(&output.alarm(&format!("  warning: {warning}\n")));
    }
    if r.tables.is_empty() {
        return text + "no table is known yet\n";
    }
    let mut header = vec!["table", "state", "rows", "chunks"];
    header.extend(match r.snapshot {
        Some(_) => ["copied", "left"].as_slice(),
        None => &["schema"],
    });
    let rows: Vec<Vec<String>> = r
        .tables
        .iter()
        .map(|t| {
            let state = match &t.paused {
                Some(_) => "paused",
                None => crate::status::table_state_label(t.state),
            };
            let mut cells = vec![
                t.table.to_string(),
                state.to_owned(),
                grouped(t.rows),
                format!("{}/{}", t.chunks_done, t.chunks_total),
            ];
            if r.snapshot.is_some() {
                cells.extend([copied(t), t.seconds_left.map_or_else(String::new, span)]);
            } else {
                cells.push(t.schema_version.to_string());
            }
            cells
        })
        .collect();
    text.push('\n');
    text.push_str(&align(&header, &rows));
    for t in &r.tables {
        if let Some(error) = &t.error {
            text.push_str(&output.alarm(&format!("\n{}: {error}\n", t.table)));
        }
    }
    text
}

/// The copies together, in one line.
fn copy(all: &SnapshotStatus) -> String {
    let mut parts = vec![format!("{} rows", grouped(all.rows))];
    if all.estimated_rows > all.rows {
        parts[0] = format!(
            "{} of ~{} rows",
            grouped(all.rows),
            grouped(all.estimated_rows)
        );
    }
    parts.extend(
        all.rows_per_second
            .map(|r| format!("{}/s", grouped(r as u64))),
    );
    parts.push(bytes(all.bytes));
    parts.push(format!("chunks {}/{}", all.chunks_done, all.chunks_total));
    parts.push(format!("tables {}/{}", all.tables_done, all.tables_total));
    parts.extend(all.seconds_left.map(|s| format!("{} left", span(s))));
    parts.join(", ")
}

/// How much of a table is copied.
fn copied(t: &TableStatus) -> String {
    match t.estimated_rows {
        _ if t.state == TableState::Live => "100%".to_owned(),
        // Statistics are not exact: only a copy that is over is whole.
        Some(rows) if rows > 0 => format!("{}%", (t.snapshot_rows * 100 / rows).min(99)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_model::{Position, StreamPoint, TableName, TableProgress};

    #[test]
    fn people_see_what_json_holds() {
        let mut broken = TableProgress::pending(TableName::new("public", "bad"));
        broken.state = TableState::Errored;
        broken.error = Some("column `x` changed".into());
        let mut good = TableProgress::pending(TableName::new("public", "orders"));
        good.state = TableState::Live;
        good.rows = 120_000;
        let text = "[stream]\nname = \"shop\"\nstate_dir = \"/tmp/shop\"\n[source]\nkind = \"mysql\"\n\
             host = \"db\"\nuser = \"caudal\"\n[tables]\ninclude = [\"shop.*\"]\n[sink]\nurl = \"file:///lake\"\n";
        let config = Config::parse(text, "caudal.toml", []).unwrap();
        let checkpoint = Checkpoint {
            epoch: 42,
            generation: 2,
            through: StreamPoint {
                position: Position::new("0/1A"),
                seq: 7,
            },
            server: None,
            tables: vec![good, broken],
        };
        let r = report(&config, Some(checkpoint), false);
        assert_eq!(
            render(&Output::new(true), &r),
            "shop stopped (mysql)\n  commit          42 (generation 2)\n  position        0/1A\n\n\
             table          state       rows  chunks  schema\n\
             public.bad     errored        0     0/0       1\n\
             public.orders  live     120,000     0/0       1\n\
             \npublic.bad: column `x` changed\n"
        );
        let mut copying = TableProgress::pending(TableName::new("public", "orders"));
        copying.state = TableState::Snapshotting;
        (copying.rows, copying.snapshot_rows) = (50, 50);
        let mut r = StatusReport::empty("shop", "mysql", StreamState::Snapshotting);
        let mut t = TableStatus::from(&copying);
        (t.estimated_rows, t.seconds_left) = (Some(200), Some(75));
        t.paused = Some("because".into());
        r.snapshot = crate::status::committed(std::slice::from_ref(&t));
        r.source_log_retained_bytes = Some(1536);
        r.warnings.push("look".into());
        r.tables.push(t);
        let text = render(&Output::new(true), &r);
        for line in [
            "  retained log    1.5 KiB",
            "  copy            50 of ~200 rows, 0 B, chunks 0/0, tables 0/1",
            "  warning: look",
            "table          state   rows  chunks  copied  left",
            "public.orders  paused    50     0/0     25%    1m",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!(report(&config, None, true).state, StreamState::Starting);
    }
}
