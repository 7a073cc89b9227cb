//! `caudal snapshot pause|resume`: lets copies wait or go on.
//!
//! What waits stands in the state directory; a running agent looks there every second, and
//! the next one before it begins a copy. So a copy that was paused stays so through restarts.

use super::output::Output;
use super::{SnapshotArguments, SnapshotCommand, code, status};
use crate::config::Config;
use crate::requests::{Paused, Requests};
use caudal_model::{Error, Kind, Result, Selection, TableName};
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    /// Whether every copy waits.
    all: bool,
    /// The tables whose copies wait.
    tables: Vec<String>,
}

pub(super) async fn execute(
    config: &Config,
    command: &SnapshotCommand,
    output: &Output,
) -> Result<u8> {
    let (SnapshotCommand::Pause(arguments) | SnapshotCommand::Resume(arguments)) = command;
    let pauses = matches!(command, SnapshotCommand::Pause(_));
    let tables = chosen(config, arguments).await?;
    let requests = Requests::new(&config.stream.state_dir);
    if !pauses && !tables.is_empty() && requests.paused().all {
        return Err(
            Error::fatal(Kind::Config, "every copy is paused, not single tables").hint(
                "`caudal snapshot resume` lets all of them go on; then pause those that shall wait",
            ),
        );
    }
    let paused = requests.set_paused(|p| match (pauses, tables.is_empty()) {
        (true, true) => p.all = true,
        (false, true) => *p = Paused::default(),
        (true, false) => p.tables.extend(tables),
        (false, false) => p.tables.retain(|t| !tables.contains(t)),
    })?;
    let report = Report {
        all: paused.all,
        tables: paused.tables.iter().map(ToString::to_string).collect(),
    };
    if output.is_json() {
        output.json(&report)?;
    } else {
        output.text(&render(&report))?;
    }
    Ok(code::DONE)
}

fn render(report: &Report) -> String {
    match (report.all, report.tables.is_empty()) {
        (true, _) => {
            "every copy waits once its chunks are read; the log is followed on\n".to_owned()
        }
        (false, true) => "no copy is paused\n".to_owned(),
        (false, false) => format!(
            "these copies wait once their chunks are read; the log is followed on: {}\n",
            report.tables.join(", ")
        ),
    }
}

/// The tables that the arguments name: of the stream, or of the source where the stream
/// does not have them yet.
///
/// Errors: [`Kind::Config`] with the nearest name, for one that names none.
async fn chosen(config: &Config, arguments: &SnapshotArguments) -> Result<Vec<TableName>> {
    if arguments.tables.is_empty() {
        return Ok(Vec::new());
    }
    let known = status::current(config).await?.tables;
    let mut known: Vec<TableName> = known.into_iter().map(|t| t.table).collect();
    if pick(&known, &arguments.tables).is_err() {
        let found = crate::start::source(config)?.discover().await?;
        known.extend(found.into_iter().map(|t| t.table));
    }
    pick(&known, &arguments.tables)
}

fn pick(known: &[TableName], patterns: &[String]) -> Result<Vec<TableName>> {
    let none: [String; 0] = [];
    let mut tables = Vec::new();
    for pattern in patterns {
        let selection = Selection::new(std::slice::from_ref(pattern), &none)
            .map_err(|e| Error::fatal(Kind::Config, e).hint("name tables as `schema.table`"))?;
        let before = tables.len();
        tables.extend(known.iter().filter(|t| selection.matches(t)).cloned());
        if tables.len() > before {
            continue;
        }
        let names = known.iter().map(ToString::to_string);
        let near = names.min_by_key(|n| strsim::damerau_levenshtein(n, pattern));
        let text = format!("the stream has no table `{pattern}`");
        return Err(Error::fatal(Kind::Config, text).hint(match near {
            Some(near) => {
                format!("did you mean `{near}`? `caudal status` lists the stream's tables")
            }
            None => "`caudal tables` lists what is selected".to_owned(),
        }));
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_known_has_the_nearest_one_beside_it() {
        let known = ["orders", "customers"].map(|n| TableName::new("public", n));
        let picked = |p: &str| pick(&known, &[p.to_owned()]);
        assert_eq!(picked("public.*").unwrap(), known);
        assert_eq!(picked("public.orders").unwrap(), known[..1]);
        let e = picked("public.order").unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
        assert!(e.hint_text().unwrap().contains("`public.orders`"), "{e}");
        assert!(picked("orders").is_err());
    }
}
