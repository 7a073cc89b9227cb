//! `caudal status`: from the running agent, or from what it left behind.
//!
//! Without an agent that answers, the checkpoint says how far the stream got, and the
//! lake's log whether that is still the newest (INV-1): another agent, on another
//! machine, may have gone on. A lake that cannot be reached leaves the checkpoint.

use super::code;
use super::output::{Output, align, bytes, grouped};
use crate::config::Config;
use crate::http::fetch_status;
use crate::latest::newest;
use crate::status::{StatusReport, StreamState, TableStatus};
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
    Ok(report(config, known, running))
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
    for (name, value) in facts {
        text.push_str(&format!("  {name:<16}{value}\n"));
    }
    if r.tables.is_empty() {
        return text + "no table is known yet\n";
    }
    let rows: Vec<Vec<String>> = r
        .tables
        .iter()
        .map(|t| {
            vec![
                t.table.to_string(),
                crate::status::table_state_label(t.state).to_owned(),
                grouped(t.rows),
                format!("{}/{}", t.chunks_done, t.chunks_total),
                t.schema_version.to_string(),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&align(
        &["table", "state", "rows", "chunks", "schema"],
        &rows,
    ));
    for t in &r.tables {
        if let Some(error) = &t.error {
            text.push_str(&output.alarm(&format!("\n{}: {error}\n", t.table)));
        }
    }
    text
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
        assert_eq!(report(&config, None, true).state, StreamState::Starting);
    }
}
