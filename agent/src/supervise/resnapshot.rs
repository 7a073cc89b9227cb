//! New copies that are asked for while no agent runs: one commit says so, and the next run
//! begins them.

use super::{Parts, Run, Until, recover_state, server_now};
use crate::recover;
use caudal_model::{Error, Kind, Result, Selection, TableName, TableProgress, TableState};
use caudal_sinks::{EntryKind, SnapshotEntry, TableEntry};

/// Takes the stream over for one commit that ends the matching tables, so that the next
/// run copies them again. If none is left, nothing binds the stream to its old position,
/// and it goes on from where the source's log is now: the way out of a lost position.
///
/// With `only`, the commit begins a copy of the rows that fulfil this condition, and the
/// tables keep what the lake has of them.
///
/// Errors: [`Kind::Config`] if no table of the stream matches, or if one is not live that
/// `only` asks for.
pub async fn resnapshot(
    mut parts: Parts,
    tables: &Selection,
    only: Option<&str>,
) -> Result<Vec<TableName>> {
    let (state, head) = recover_state(&mut parts).await?;
    let known = state.as_ref().map(|s| s.tables.as_slice());
    let there = || known.unwrap_or_default().iter().filter(|t| !t.ended);
    let chosen: Vec<TableProgress> = there()
        .filter(|t| tables.matches(&t.table))
        .cloned()
        .collect();
    if chosen.is_empty() {
        return Err(no_such_table());
    }
    let begun = chosen.iter().find(|t| t.state != TableState::Live);
    if let (Some(begun), true) = (begun, only.is_some()) {
        let text = format!(
            "{} is not live, so it has no rows to be read again",
            begun.table
        );
        return Err(Error::fatal(Kind::Config, text));
    }
    let everything = only.is_none() && chosen.len() == there().count();
    let mut run = Run {
        until: Until::default(),
        until_caught_up: false,
        staging: None,
        cleaning: None,
        refused_since: None,
    };
    // A stream of which nothing is kept may go on from any server: then what ends the tables
    // says so, for until it stands the position is the old one's.
    let server = match &state {
        Some(s) if everything => s.server.clone(),
        _ => server_now(&parts, state.as_ref()).await?,
    };
    let (mut state, staging, generation) = run.take_over(&mut parts, state, head, server).await?;
    let names: Vec<TableName> = chosen.iter().map(|t| t.table.clone()).collect();
    let mut through = state.through.clone();
    let mut begins_on = None;
    if everything {
        through.position = parts.source.prepare(&names).await?;
        begins_on = Some(parts.source.identity().await?);
    }
    let mut entries = Vec::with_capacity(chosen.len());
    for t in &chosen {
        let mut entry = TableEntry {
            ended: true,
            again: true,
            ..TableEntry::untouched(t.table.clone(), t.schema_version)
        };
        if let Some(condition) = only {
            through.seq += 1;
            (entry.ended, entry.again) = (false, false);
            entry.snapshot = Some(SnapshotEntry {
                only: Some(condition.to_owned()),
                ..SnapshotEntry::begun(t.copy + 1, through.seq, through.position.clone())
            });
        }
        entries.push(entry);
    }
    let epoch = state.epoch + 1;
    let mut entry = parts.log.entry(
        epoch,
        generation,
        EntryKind::Append,
        state.through.clone(),
        through,
        entries,
        staging.staged_from(epoch),
    );
    entry.server = begins_on;
    let receipt = parts.log.commit(entry).await?;
    recover::apply(&mut state, receipt.entry())?;
    parts.checkpoints.replace(&state)?;
    run.finish_cleaning().await;
    Ok(names)
}

/// What `resnapshot` says where no table matches.
pub fn no_such_table() -> Error {
    Error::fatal(Kind::Config, "no table of the stream has such a name")
        .hint("`caudal status` lists the stream's tables")
}
