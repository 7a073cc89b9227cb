//! The commit log read back from its head: the commits that make the lake, and its state at
//! any of them.
//!
//! A `rewind` drops the commits between its target and itself, so the history is not every
//! entry: it goes from a rewind straight to its target. Entries are read a page at a time, so
//! that memory does not grow with the log, and nothing is read that was not asked for.

use crate::recover;
use caudal_model::{Checkpoint, Error, Kind, Position, Result};
use caudal_sinks::{CommitLog, LogEntry};
use chrono::{DateTime, Utc};
use std::collections::VecDeque;

/// Entries read at a time, at most.
const PAGE: u64 = 256;

/// Commits that a rewind dropped: those after `to` and before `by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The commit that became the lake's state again.
    pub to: u64,
    /// The rewind.
    pub by: u64,
}

impl Dropped {
    /// Whether the commit is one of them.
    pub fn holds(self, epoch: u64) -> bool {
        epoch > self.to && epoch < self.by
    }
}

/// Entries from a head back to the first.
pub struct Backward<'l> {
    log: &'l CommitLog,
    /// The next to be read from the store; 0 at the end.
    next: u64,
    page: u64,
    ready: VecDeque<LogEntry>,
    /// The range that is passed through now.
    dropped: Option<Dropped>,
    /// Whether dropped commits are passed over unread.
    skip: bool,
}

impl<'l> Backward<'l> {
    /// Every entry from `head` on, and whether it was dropped; reads `expected` at first.
    pub fn all(log: &'l CommitLog, head: u64, expected: u64) -> Self {
        Backward {
            log,
            next: head,
            page: expected.clamp(1, PAGE),
            ready: VecDeque::new(),
            dropped: None,
            skip: false,
        }
    }

    /// The entries from `head` on that were not dropped.
    pub fn kept(log: &'l CommitLog, head: u64) -> Self {
        Backward {
            skip: true,
            ..Self::all(log, head, 16)
        }
    }

    /// The entry before; `None` after the first.
    pub async fn next(&mut self) -> Result<Option<(LogEntry, Option<Dropped>)>> {
        if self.ready.is_empty() {
            if self.next == 0 {
                return Ok(None);
            }
            let first = self.next.saturating_sub(self.page - 1).max(1);
            let page = self.log.read_range(first..=self.next).await?;
            self.ready.extend(page.into_iter().rev());
            self.next = first - 1;
            self.page = (self.page * 2).min(PAGE);
        }
        let Some(entry) = self.ready.pop_front() else {
            return Ok(None);
        };
        let dropped = self.dropped.filter(|d| d.holds(entry.epoch));
        if let (None, Some(to)) = (dropped, entry.rewind_to) {
            let by = entry.epoch;
            self.dropped = Some(Dropped { to, by });
            if self.skip {
                self.ready.retain(|e| e.epoch <= to);
                self.next = self.next.min(to);
            }
        }
        Ok(Some((entry, dropped)))
    }
}

/// The lake's state at a commit: every table's progress, and how far it reaches.
///
/// Errors: [`Kind::Corrupt`] if an entry is missing or damaged.
pub async fn state_at(log: &CommitLog, epoch: u64) -> Result<Checkpoint> {
    // Entries are read twice rather than kept: there may be very many before one with a state.
    let mut back = Backward::all(log, epoch, 16);
    let mut state = loop {
        let Some((entry, _)) = back.next().await? else {
            return Err(missing(epoch));
        };
        if let Some(state) = recover::from_state(&entry) {
            break state;
        }
        if entry.epoch == 1 {
            let mut state = recover::genesis(entry.after.clone());
            recover::apply(&mut state, &entry)?;
            break state;
        }
    };
    advance(log, &mut state, epoch).await?;
    Ok(state)
}

/// Applies the entries after a state, up to `epoch`.
///
/// Errors: as [`state_at`].
pub async fn advance(log: &CommitLog, state: &mut Checkpoint, epoch: u64) -> Result<()> {
    while state.epoch < epoch {
        let last = (state.epoch + PAGE).min(epoch);
        for entry in log.read_range(state.epoch + 1..=last).await? {
            recover::apply(state, &entry)?;
        }
    }
    Ok(())
}

/// The newest position of the history up to `head` that was committed at `time` or before.
/// Where commits' clocks disagree it may be one before that; it is never one that a rewind
/// went back behind.
pub async fn position_before(
    log: &CommitLog,
    head: u64,
    time: DateTime<Utc>,
) -> Result<Option<Position>> {
    let Some(newest) = log.read(head).await? else {
        return Err(missing(head));
    };
    let (mut low, mut high) = (newest.last_rewind.max(1), head + 1);
    let mut found = None;
    while low < high {
        let middle = low + (high - low) / 2;
        let Some(entry) = log.read(middle).await? else {
            return Err(missing(middle));
        };
        if committed_at(&entry).is_some_and(|at| at <= time) {
            found = Some(entry.through.position);
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(found)
}

/// When an entry was committed, by its agent's clock.
pub fn committed_at(entry: &LogEntry) -> Option<DateTime<Utc>> {
    let at = DateTime::parse_from_rfc3339(&entry.committed_at).ok()?;
    Some(at.to_utc())
}

fn missing(epoch: u64) -> Error {
    Error::fatal(
        Kind::Corrupt,
        format!("commit {epoch} of the log is missing"),
    )
    .hint("`caudal verify --log` names every file that is not as it was written")
}
