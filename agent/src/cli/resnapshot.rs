//! `caudal resnapshot`: has tables copied again by the next run.
//!
//! It takes the stream over for one commit, so it waits for no agent and none can
//! undo it: one that runs on the same state directory makes it exit 4 at once.

use super::output::Output;
use super::{ResnapshotArguments, code};
use crate::config::Config;
use caudal_model::{Error, Kind, Result, Selection};
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    tables: Vec<String>,
}

pub(super) async fn execute(
    config: &Config,
    arguments: &ResnapshotArguments,
    output: &Output,
) -> Result<u8> {
    let none: [String; 0] = [];
    let selection = Selection::new(arguments.tables.as_slice(), none.as_slice())
        .map_err(|e| Error::fatal(Kind::Config, e).hint("name tables as `schema.table`"))?;
    let tables = crate::start::resnapshot(config, &selection).await?;
    let report = Report {
        tables: tables.iter().map(ToString::to_string).collect(),
    };
    if output.is_json() {
        output.json(&report)?;
    } else {
        let names = report.tables.join(", ");
        output.text(&format!("the next run copies again: {names}\n"))?;
    }
    Ok(code::DONE)
}
