//! `caudal resnapshot`: has tables copied again while the rest of the stream goes on.
//!
//! A running agent on the same state directory is asked by a request, and copies the tables
//! by itself. Without one, the command takes the stream over for one commit that ends the
//! tables, and the next run copies them; an agent on another machine is fenced by that.
//! With `--where`, only some rows are read again, on top of what the lake has.

use super::output::Output;
use super::{ResnapshotArguments, code, status};
use crate::config::Config;
use crate::recover;
use crate::requests::{Requests, Resnapshot};
use caudal_model::{Error, Kind, Result, Selection, TableName};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// How long to wait for the agent's next commit.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Report {
    tables: Vec<String>,
    /// `running`: an agent copies them now. `asked`: it has not yet begun. `next_run`.
    by: &'static str,
}

pub(super) async fn execute(
    config: &Config,
    arguments: &ResnapshotArguments,
    output: &Output,
) -> Result<u8> {
    let none: [String; 0] = [];
    let selection = Selection::new(arguments.tables.as_slice(), none.as_slice())
        .map_err(|e| Error::fatal(Kind::Config, e).hint("name tables as `schema.table`"))?;
    let only = arguments.condition.as_deref();
    if let Some(condition) = only {
        refuse_unfit(config, &selection, condition).await?;
    }
    let (tables, by) = if caudal_checkpoints::is_held(&config.stream.state_dir) {
        ask_agent(config, &selection, only).await?
    } else {
        let tables = crate::start::resnapshot(config, &selection, only).await?;
        (tables, "next_run")
    };
    let report = Report {
        tables: tables.iter().map(ToString::to_string).collect(),
        by,
    };
    if output.is_json() {
        output.json(&report)?;
    } else {
        let names = report.tables.join(", ");
        let names = match only {
            Some(condition) => format!("{names}, the rows with {condition}"),
            None => names,
        };
        let text = match by {
            "running" => format!("the agent copies again: {names}\n"),
            "asked" => format!("the agent will copy again with its next commit: {names}\n"),
            _ => format!("the next run copies again: {names}\n"),
        };
        output.text(&text)?;
    }
    Ok(code::DONE)
}

/// Says before anything is asked for why some rows of a table cannot be read again.
async fn refuse_unfit(config: &Config, selection: &Selection, condition: &str) -> Result<()> {
    let log = crate::start::log(config, &crate::start::store(config).await?);
    let syntax = config.source.kind.filter_syntax();
    for t in status::current(config).await?.tables {
        if !selection.matches(&t.table) {
            continue;
        }
        let fit = match log.read_schema(&t.table, t.schema_version).await? {
            Some(schema) => recover::may_reread(Some(t.state), &schema, condition, syntax),
            None => Err("has not been copied yet".to_owned()),
        };
        fit.map_err(|why| Error::fatal(Kind::Config, format!("{} {why}", t.table)))?;
    }
    Ok(())
}

async fn ask_agent(
    config: &Config,
    selection: &Selection,
    only: Option<&str>,
) -> Result<(Vec<TableName>, &'static str)> {
    let known = status::current(config).await?.tables.into_iter();
    let tables: Vec<TableName> = known
        .map(|t| t.table)
        .filter(|t| selection.matches(t))
        .collect();
    if tables.is_empty() {
        return Err(crate::supervise::no_such_table());
    }
    let requests = Requests::new(&config.stream.state_dir);
    let request = Resnapshot {
        tables: tables.clone(),
        only: only.map(str::to_owned),
    };
    let path = requests.ask(&request)?;
    let until = Instant::now() + PATIENCE;
    while path.exists() {
        if Instant::now() >= until {
            return Ok((tables, "asked"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok((tables, "running"))
}
