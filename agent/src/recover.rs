//! From the commit log to the state that a run starts with; pure.
//!
//! The log is the truth and RocksDB its digest (INV-1). [`plan_resume`] takes what
//! both say and decides which entries must be read; [`apply`] is the one function
//! that turns an entry into progress. The pipeline applies its own commits with
//! it too, so that a state reached by running and one reached by replaying the
//! log cannot differ.

use caudal_model::{
    Checkpoint, Error, Kind, Result, StreamPoint, TableProgress, TableSchema, TableState,
};
use caudal_sinks::{EntryKind, LogEntry, SnapshotEntry, TableEntry};
use caudal_sources::filter::{self, FilterSyntax};

/// How to get from what is known locally to the log's head.
#[derive(Debug, Clone, PartialEq)]
pub enum Resume {
    /// No commit exists: the stream begins.
    Fresh,
    /// Start from the local checkpoint and apply the entries after it.
    Checkpoint(Box<Checkpoint>),
    /// The local checkpoint is missing or does not belong to this log: go back to the
    /// last entry that carries the whole state, and apply what follows.
    Rebuild(&'static str),
}

/// Chooses between the local checkpoint and a rebuild.
///
/// `at_checkpoint` is the log's entry at the checkpoint's epoch, if there is one.
pub fn plan_resume(
    head: Option<&LogEntry>,
    checkpoint: Option<Checkpoint>,
    at_checkpoint: Option<&LogEntry>,
) -> Result<Resume> {
    let Some(head) = head else {
        return match checkpoint {
            Some(c) if c.epoch > 0 => Err(Error::fatal(
                Kind::Corrupt,
                format!(
                    "the lake holds no commit of this stream, but the state directory knows epoch {}",
                    c.epoch
                ),
            )
            .hint(
                "check `sink.url` and `stream.name`; to begin the stream anew on purpose, move the \
                 state directory away",
            )),
            _ => Ok(Resume::Fresh),
        };
    };
    let Some(checkpoint) = checkpoint else {
        return Ok(Resume::Rebuild("the state directory holds no checkpoint"));
    };
    if checkpoint.epoch > head.epoch {
        return Ok(Resume::Rebuild("the checkpoint is ahead of the lake"));
    }
    match at_checkpoint {
        Some(e) if e.generation == checkpoint.generation && e.through == checkpoint.through => {
            Ok(Resume::Checkpoint(Box::new(checkpoint)))
        }
        _ => Ok(Resume::Rebuild(
            "the checkpoint does not agree with the lake's log",
        )),
    }
}

/// The state before the first commit.
pub fn genesis(through: StreamPoint) -> Checkpoint {
    Checkpoint {
        epoch: 0,
        generation: 0,
        through,
        server: None,
        tables: Vec::new(),
    }
}

/// The state that an entry with `state` stands for: where a rebuild starts.
pub fn from_state(entry: &LogEntry) -> Option<Checkpoint> {
    Some(Checkpoint {
        epoch: entry.epoch,
        generation: entry.generation,
        through: entry.through.clone(),
        server: entry.server.clone(),
        tables: entry.state.clone()?,
    })
}

/// Applies one entry; returns the indices of the tables that it changed.
///
/// Errors: [`Kind::Corrupt`] if the entry does not follow the state (INV-2).
pub fn apply(state: &mut Checkpoint, entry: &LogEntry) -> Result<Vec<usize>> {
    let gap = |what: String| {
        Err(Error::fatal(
            Kind::Corrupt,
            format!("commit {} of the log {what}", entry.epoch),
        )
        .hint(
            "the log was changed by something else than caudal; restore the missing or changed \
             file under _log/ from the bucket's versions",
        ))
    };
    if entry.epoch != state.epoch + 1 {
        return gap(format!("follows commit {}", state.epoch));
    }
    if entry.generation < state.generation {
        return gap(format!(
            "has generation {} after {}",
            entry.generation, state.generation
        ));
    }
    if entry.after != state.through && state.epoch > 0 {
        return gap("does not begin where its predecessor ends".to_owned());
    }
    state.epoch = entry.epoch;
    state.generation = entry.generation;
    state.through = entry.through.clone();
    if entry.server.is_some() {
        state.server.clone_from(&entry.server);
    }
    if let Some(tables) = &entry.state {
        state.tables = tables.clone();
    }
    if entry.kind == EntryKind::Rewind {
        // What it says of single tables is for readers: which files are gone.
        return Ok((0..state.tables.len()).collect());
    }
    let mut changed = Vec::with_capacity(entry.tables.len());
    for table in &entry.tables {
        let at = match state.tables.iter().position(|p| p.table == table.table) {
            Some(at) => at,
            None => {
                state
                    .tables
                    .push(TableProgress::pending(table.table.clone()));
                state.tables.len() - 1
            }
        };
        apply_table(&mut state.tables[at], table);
        changed.push(at);
    }
    Ok(changed)
}

fn apply_table(p: &mut TableProgress, entry: &TableEntry) {
    p.schema_version = entry.schema_version;
    p.ended = false;
    if let Some(s) = &entry.snapshot {
        apply_snapshot(p, s);
    }
    for f in &entry.files {
        p.rows += f.rows;
        // Only rows of a copy share one number.
        if p.base_seq > 0 && f.first_seq == p.base_seq && f.last_seq == p.base_seq {
            p.snapshot_rows += f.rows;
            p.snapshot_bytes += f.bytes;
        }
    }
    if entry.ended {
        *p = TableProgress {
            schema_version: p.schema_version,
            greatest_version: p.greatest_version,
            rows: p.rows,
            copy: p.copy,
            ended: !entry.again,
            ..TableProgress::pending(p.table.clone())
        };
    }
    if let Some(error) = &entry.error {
        p.state = TableState::Errored;
        p.error = Some(error.clone());
    }
}

fn apply_snapshot(p: &mut TableProgress, s: &SnapshotEntry) {
    if s.copy != p.copy {
        *p = TableProgress {
            schema_version: p.schema_version,
            greatest_version: p.greatest_version,
            rows: p.rows,
            copy: s.copy,
            ..TableProgress::pending(p.table.clone())
        };
    }
    p.state = TableState::Snapshotting;
    p.base_seq = s.base_seq;
    p.base_position = Some(s.base_position.clone());
    p.mark = s.mark.clone();
    p.only = s.only.clone();
    p.chunks.extend(s.bounds.iter().cloned());
    p.chunks_total = p.chunks_total.max(s.planned);
    if s.done {
        p.live_at = s.live_at.clone();
    }
    if s.live {
        p.state = TableState::Live;
        p.chunks_total = p.chunks.len() as u32;
        // A fence carries every table's progress: bounds of finished copies would only grow it.
        p.chunks.clear();
        p.live_at = None;
        p.mark = None;
        p.only = None;
    }
}

/// Whether the rows of a table that fulfil `condition` can be read again, on top of what
/// the lake has of it.
///
/// Errors: why not, to follow the table's name.
pub fn may_reread(
    state: Option<TableState>,
    schema: &TableSchema,
    condition: &str,
    syntax: FilterSyntax,
) -> Result<(), String> {
    match state {
        Some(TableState::Live) => {}
        Some(TableState::Errored) => {
            return Err("is errored: copy it again without --where".to_owned());
        }
        _ => return Err("is being copied; wait until it is live".to_owned()),
    }
    if !schema.has_key() {
        return Err(
            "has no key: rows that were read again would be there twice; copy it again without --where"
                .to_owned(),
        );
    }
    filter::parse(condition, syntax)
        .and_then(|f| f.bind(schema))
        .map(|_| ())
        .map_err(|e| format!("cannot be told by this condition: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_model::{Chunk, Position, TableName};
    use caudal_sinks::FileEntry;

    fn point(position: &str, seq: i64) -> StreamPoint {
        StreamPoint {
            position: Position::new(position),
            seq,
        }
    }

    fn entry(epoch: u64, generation: u64, after: StreamPoint, through: StreamPoint) -> LogEntry {
        LogEntry {
            format: 1,
            epoch,
            generation,
            writer: "w".into(),
            kind: EntryKind::Append,
            after,
            through,
            committed_at: String::new(),
            agent: String::new(),
            tables: Vec::new(),
            staged_from: epoch,
            server: None,
            state: None,
            rewind_to: None,
            last_rewind: 0,
            previous: None,
            sha256: None,
        }
    }

    #[test]
    fn inv_1_a_checkpoint_is_used_only_where_it_agrees_with_the_log() {
        let e1 = entry(1, 1, point("a", 0), point("a", 0));
        let e2 = entry(2, 1, point("a", 0), point("b", 5));
        let good = Checkpoint {
            epoch: 1,
            generation: 1,
            through: point("a", 0),
            server: None,
            tables: vec![],
        };
        let resume = plan_resume(Some(&e2), Some(good.clone()), Some(&e1)).unwrap();
        assert_eq!(resume, Resume::Checkpoint(Box::new(good.clone())));
        let other = Checkpoint {
            generation: 2,
            ..good.clone()
        };
        assert!(matches!(
            plan_resume(Some(&e2), Some(other), Some(&e1)),
            Ok(Resume::Rebuild(_))
        ));
        let ahead = Checkpoint {
            epoch: 9,
            ..good.clone()
        };
        assert!(matches!(
            plan_resume(Some(&e2), Some(ahead), None),
            Ok(Resume::Rebuild(_))
        ));
        assert!(matches!(
            plan_resume(Some(&e2), None, None),
            Ok(Resume::Rebuild(_))
        ));
        assert_eq!(plan_resume(None, None, None).unwrap(), Resume::Fresh);
        assert_eq!(
            plan_resume(None, Some(good), None).unwrap_err().kind(),
            Kind::Corrupt
        );
    }

    #[test]
    fn inv_2_a_gap_is_fatal() {
        let mut s = Checkpoint {
            epoch: 1,
            generation: 1,
            through: point("a", 3),
            server: None,
            tables: vec![],
        };
        let gap = entry(3, 1, point("a", 3), point("b", 4));
        assert_eq!(
            apply(&mut s.clone(), &gap).unwrap_err().kind(),
            Kind::Corrupt
        );
        let torn = entry(2, 1, point("a", 2), point("b", 4));
        assert_eq!(
            apply(&mut s.clone(), &torn).unwrap_err().kind(),
            Kind::Corrupt
        );
        apply(&mut s, &entry(2, 1, point("a", 3), point("b", 4))).unwrap();
        assert_eq!((s.epoch, s.through), (2, point("b", 4)));
    }

    #[test]
    fn a_copy_goes_from_chunks_to_live_and_a_new_copy_begins_anew() {
        let mut s = genesis(point("a", 0));
        let t = TableName::new("s", "t");
        let snapshot = |copy, ids: &[u32], done: bool, live: bool| SnapshotEntry {
            chunks: ids.to_vec(),
            done,
            copy,
            base_seq: i64::from(copy),
            base_position: Position::new("a"),
            bounds: ids
                .iter()
                .map(|id| Chunk {
                    id: *id,
                    after: None,
                    through: None,
                })
                .collect(),
            planned: 3,
            only: None,
            mark: None,
            live_at: done.then(|| Position::new("z")),
            live,
        };
        let file = |seq| FileEntry {
            path: String::new(),
            rows: 10,
            bytes: 1,
            first_seq: seq,
            last_seq: seq,
            sha256: String::new(),
        };
        let mut commit = |snapshot, files| {
            let mut e = entry(s.epoch + 1, 1, s.through.clone(), s.through.clone());
            e.tables = vec![TableEntry {
                snapshot,
                files,
                ..TableEntry::untouched(t.clone(), 1)
            }];
            apply(&mut s, &e).unwrap();
            s.tables[0].clone()
        };
        let p = commit(Some(snapshot(1, &[2], false, false)), vec![file(1)]);
        assert_eq!(
            (p.state, p.chunks.len(), p.snapshot_rows, p.snapshot_bytes),
            (TableState::Snapshotting, 1, 10, 1)
        );
        let p = commit(
            Some(snapshot(1, &[1, 3], true, false)),
            vec![file(1), file(7)],
        );
        assert_eq!((p.chunks.len(), p.snapshot_rows, p.rows), (3, 20, 30));
        assert_eq!(p.live_at, Some(Position::new("z")));
        let p = commit(Some(snapshot(1, &[], true, true)), vec![]);
        assert_eq!(
            (p.state, p.chunks_total, p.live_at),
            (TableState::Live, 3, None)
        );
        let p = commit(Some(snapshot(2, &[], false, false)), vec![]);
        assert_eq!(
            (p.state, p.copy, p.chunks.len()),
            (TableState::Snapshotting, 2, 0)
        );
    }
}
