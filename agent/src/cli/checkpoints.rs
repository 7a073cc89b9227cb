//! `caudal checkpoints`: the commit history, and the way back in it.
//!
//! Everything is read from the lake's log, so it is the same with the agent up or down and on
//! any machine. `list` reads the entries that it prints and, for the newest, some logarithm of
//! the log's length.

use super::output::{Output, align};
use super::{CheckpointsCommand, RewindArguments, code};
use crate::config::Config;
use crate::crash::CrashPoints;
use crate::history::{self, Backward, Dropped};
use crate::rewind::{Effect, Rewinding, Target};
use crate::text::{bytes, grouped};
use caudal_model::{Error, Kind, Position, Result, TableName, TableProgress};
use caudal_sinks::{EntryKind, LogEntry};
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use serde::Serialize;
use std::io::{IsTerminal, Write};

#[derive(Debug, Serialize)]
struct History<'a> {
    stream: &'a str,
    commits: Vec<Commit>,
}

#[derive(Debug, Serialize)]
struct Commit {
    epoch: u64,
    kind: EntryKind,
    generation: u64,
    committed_at: String,
    position: Position,
    seq: i64,
    rows: u64,
    files: u64,
    bytes: u64,
    tables: Vec<TableName>,
    /// Of a rewind: the commit that became the head again.
    rewind_to: Option<u64>,
    /// The rewind that dropped the commit.
    dropped_by: Option<u64>,
    /// It is part of the history, and not older than `checkpoints.keep`.
    rewindable: bool,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    stream: &'a str,
    commit: Commit,
    entry: &'a LogEntry,
    /// Every table's progress at this commit.
    state: Vec<TableProgress>,
}

impl Commit {
    fn new(entry: &LogEntry, dropped: Option<Dropped>, config: &Config) -> Self {
        let files = || entry.tables.iter().flat_map(|t| &t.files);
        let age = history::committed_at(entry).and_then(|at| (Utc::now() - at).to_std().ok());
        Commit {
            epoch: entry.epoch,
            kind: entry.kind,
            generation: entry.generation,
            committed_at: entry.committed_at.clone(),
            position: entry.through.position.clone(),
            seq: entry.through.seq,
            rows: files().map(|f| f.rows).sum(),
            files: files().count() as u64,
            bytes: files().map(|f| f.bytes).sum(),
            tables: entry.tables.iter().map(|t| t.table.clone()).collect(),
            rewind_to: entry.rewind_to,
            dropped_by: dropped.map(|d| d.by),
            rewindable: dropped.is_none() && age.is_none_or(|a| a <= config.checkpoints.keep),
        }
    }

    fn label(&self) -> String {
        let kind = match self.kind {
            EntryKind::Append => "append",
            EntryKind::Merge => "merge",
            EntryKind::Fence => "fence",
            EntryKind::Rewind => "rewind",
        };
        match (self.rewind_to, self.dropped_by) {
            (_, Some(by)) => format!("{kind}, dropped by {by}"),
            (Some(to), None) => format!("{kind} to {to}"),
            (None, None) => kind.to_owned(),
        }
    }
}

pub(super) async fn execute(
    config: &Config,
    command: &CheckpointsCommand,
    output: &Output,
) -> Result<u8> {
    match command {
        CheckpointsCommand::List { limit, table } => {
            list(config, *limit, table.as_ref(), output).await
        }
        CheckpointsCommand::Show { epoch } => show(config, *epoch, output).await,
        CheckpointsCommand::Rewind(arguments) => rewind(config, arguments, output).await,
    }
}

async fn list(
    config: &Config,
    limit: u64,
    table: Option<&TableName>,
    output: &Output,
) -> Result<u8> {
    let store = crate::start::store(config).await?;
    let log = crate::start::log(config, &store);
    let mut commits = Vec::new();
    if let Some(head) = log.head(None).await? {
        let mut back = Backward::all(&log, head.epoch, limit);
        while (commits.len() as u64) < limit {
            let Some((entry, dropped)) = back.next().await? else {
                break;
            };
            if table.is_none_or(|t| entry.tables.iter().any(|e| e.table == *t)) {
                commits.push(Commit::new(&entry, dropped, config));
            }
        }
    }
    if output.is_json() {
        output.json(&History {
            stream: &config.stream.name,
            commits,
        })?;
        return Ok(code::DONE);
    }
    if commits.is_empty() {
        output.text("no commit yet\n")?;
        return Ok(code::DONE);
    }
    let rows: Vec<Vec<String>> = commits
        .iter()
        .map(|c| {
            vec![
                c.epoch.to_string(),
                c.label(),
                c.generation.to_string(),
                c.committed_at.get(..19).unwrap_or_default().to_owned() + "Z",
                grouped(c.rows),
                c.files.to_string(),
                bytes(c.bytes),
                short(c.position.as_str()),
                names(&c.tables),
            ]
        })
        .collect();
    let header = [
        "epoch",
        "kind",
        "generation",
        "committed",
        "rows",
        "files",
        "bytes",
        "position",
        "tables",
    ];
    output.text(&align(&header, &rows))?;
    Ok(code::DONE)
}

/// A GTID set may be longer than any line.
fn short(position: &str) -> String {
    const SHOWN: usize = 40;
    match position.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", position.get(..at).unwrap_or_default()),
        None => position.to_owned(),
    }
}

fn names(tables: &[TableName]) -> String {
    let shown: Vec<String> = tables.iter().take(3).map(ToString::to_string).collect();
    match tables.len().saturating_sub(3) {
        0 => shown.join(", "),
        more => format!("{}, {more} more", shown.join(", ")),
    }
}

async fn show(config: &Config, epoch: u64, output: &Output) -> Result<u8> {
    let store = crate::start::store(config).await?;
    let log = crate::start::log(config, &store);
    let Some(entry) = log.read(epoch).await? else {
        let text = format!("commit {epoch} does not exist");
        return Err(Error::fatal(Kind::Config, text).hint("`caudal checkpoints list` shows them"));
    };
    let dropped = dropped(&log, epoch).await?;
    let commit = Commit::new(&entry, dropped, config);
    let state = history::state_at(&log, epoch).await?.tables;
    if output.is_json() {
        output.json(&Shown {
            stream: &config.stream.name,
            commit,
            entry: &entry,
            state,
        })?;
        return Ok(code::DONE);
    }
    let mut text = format!(
        "{} ({})\n  committed       {} by {}, generation {}\n  position        {}\n  _seq            {} to {}\n",
        output.strong(&format!("commit {epoch}")),
        commit.label(),
        entry.committed_at,
        entry.agent,
        entry.generation,
        entry.through.position,
        entry.after.seq + 1,
        entry.through.seq
    );
    for t in &entry.tables {
        for f in &t.files {
            text.push_str(&format!(
                "  file            {} ({} rows, {})\n",
                f.path,
                grouped(f.rows),
                bytes(f.bytes)
            ));
        }
        for path in &t.removed {
            text.push_str(&format!("  removed         {path}\n"));
        }
    }
    let rows: Vec<Vec<String>> = state
        .iter()
        .filter(|t| !t.ended)
        .map(|t| {
            vec![
                t.table.to_string(),
                crate::status::table_state_label(t.state).to_owned(),
                grouped(t.rows),
                t.schema_version.to_string(),
                t.copy.to_string(),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&align(&["table", "state", "rows", "schema", "copy"], &rows));
    output.text(&text)?;
    Ok(code::DONE)
}

/// The rewind that dropped a commit; reads the history after it.
async fn dropped(log: &caudal_sinks::CommitLog, epoch: u64) -> Result<Option<Dropped>> {
    let Some(mut newest) = log.head(Some(epoch)).await? else {
        return Ok(None);
    };
    // Every entry names the newest rewind before it, so only rewinds are read.
    while newest.last_rewind > epoch {
        let by = newest.last_rewind;
        let rewind = log.read(by).await?;
        let Some(to) = rewind.and_then(|r| r.rewind_to) else {
            return Ok(None);
        };
        let range = Dropped { to, by };
        if range.holds(epoch) {
            return Ok(Some(range));
        }
        match log.read(to).await? {
            Some(entry) => newest = entry,
            None => return Ok(None),
        }
    }
    Ok(None)
}

async fn rewind(config: &Config, arguments: &RewindArguments, output: &Output) -> Result<u8> {
    let target = target(arguments)?;
    let store = crate::start::store(config).await?;
    let log = crate::start::log(config, &store);
    let source = crate::start::source(config)?;
    let rewinding = Rewinding {
        log: &log,
        source: source.as_ref(),
        keep: config.checkpoints.keep,
        crash: CrashPoints::from_env(),
    };
    if arguments.dry_run {
        let effect = rewinding.look(&target).await?;
        tell(output, &effect)?;
        return match effect.lost {
            None => Ok(code::DONE),
            Some(lost) => Err(Error::fatal(Kind::PositionLost, lost)
                .hint("choose a younger commit, or copy tables anew with `caudal resnapshot`")),
        };
    }
    let asks = !arguments.yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if asks {
        let effect = rewinding.look(&target).await?;
        tell(output, &effect)?;
        if effect.lost.is_none() && !confirmed()? {
            return Err(Error::fatal(Kind::Config, "nothing was changed"));
        }
    }
    let effect = rewinding.execute(&target).await?;
    tell(output, &effect)?;
    Ok(code::DONE)
}

fn target(arguments: &RewindArguments) -> Result<Target> {
    match (&arguments.epoch, &arguments.to_time, &arguments.to_position) {
        (Some(epoch), None, None) => Ok(Target::Epoch(*epoch)),
        (None, Some(time), None) => Ok(Target::Time(*time)),
        (None, None, Some(position)) => Ok(Target::Position(Position::new(position.as_str()))),
        // clap has the group required and exclusive.
        _ => Err(Error::bug("a rewind without one target")),
    }
}

/// `2026-11-21T10:00:00Z`, with any offset; without one, and without a time of day, UTC.
pub(super) fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    for format in [
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%d %H:%M",
    ] {
        if let Ok(at) = NaiveDateTime::parse_from_str(text, format) {
            return Ok(at.and_utc());
        }
    }
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    let midnight = day.and_then(|d| d.and_hms_opt(0, 0, 0));
    midnight
        .map(|at| at.and_utc())
        .ok_or_else(|| format!("`{text}` is not a time; write it like 2026-11-21T10:00:00Z"))
}

fn confirmed() -> Result<bool> {
    let failed = |e: std::io::Error| Error::fatal(Kind::State, "cannot ask").caused_by(e);
    let mut stderr = std::io::stderr();
    write!(stderr, "rewind? [y/N] ").map_err(failed)?;
    stderr.flush().map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn tell(output: &Output, e: &Effect) -> Result<()> {
    if output.is_json() {
        return output.json(e);
    }
    let did = match (e.epoch, e.already) {
        (Some(epoch), _) => format!("commit {epoch} made commit {} the head again", e.to),
        (None, true) => format!("commit {} is the head already", e.to),
        (None, false) => format!("a rewind would make commit {} the head again", e.to),
    };
    let mut text = format!(
        "{} (committed at {})\n  position        {} (now {})\n  dropped         {} commits, {} files, {} rows, {}\n",
        output.strong(&did),
        e.committed_at,
        e.position,
        e.from_position,
        grouped(e.commits),
        grouped(e.files),
        grouped(e.rows),
        bytes(e.bytes)
    );
    let source = match &e.lost {
        None => "the source still has its log from there".to_owned(),
        Some(lost) => output.alarm(lost),
    };
    text.push_str(&format!("  source          {source}\n"));
    let rows: Vec<Vec<String>> = e
        .tables
        .iter()
        .map(|t| {
            vec![
                t.table.to_string(),
                grouped(t.files),
                grouped(t.rows),
                t.then.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&align(
            &["table", "files dropped", "rows dropped", "then"],
            &rows,
        ));
    }
    output.text(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_unless_they_say_otherwise() {
        for text in [
            "2026-11-21T10:00:00Z",
            "2026-11-21T11:00:00+01:00",
            "2026-11-21T10:00:00",
            "2026-11-21 10:00:00.0",
            "2026-11-21 10:00",
        ] {
            let at = parse_time(text).unwrap();
            assert_eq!(at.to_rfc3339(), "2026-11-21T10:00:00+00:00", "{text}");
        }
        assert!(parse_time("2026-11-21").is_ok() && parse_time("yesterday").is_err());
    }
}
