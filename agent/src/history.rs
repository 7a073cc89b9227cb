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

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use caudal_model::StreamPoint;
    use caudal_sinks::{
        Carried, EntryKind, Fault, MemoryStore, Operation, OperationKind, Rewind, StoreHook,
    };
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts the objects that are read.
    struct Reads(AtomicU64);

    #[async_trait]
    impl StoreHook for Reads {
        async fn before(&self, operation: &Operation) -> Fault {
            let read = operation.kind == OperationKind::Get;
            self.0.fetch_add(u64::from(read), Ordering::Relaxed);
            Fault::None
        }
    }

    fn point(n: u64) -> StreamPoint {
        StreamPoint {
            position: Position::new(n.to_string()),
            seq: n as i64,
        }
    }

    /// A log of this many commits after its fence, whose positions are their epochs.
    async fn log_of(store: &MemoryStore, commits: u64) -> CommitLog {
        let log = CommitLog::new(Arc::new(store.clone()), "shop");
        let fence = log
            .fence(None, point(1), |_| {
                Ok(Carried {
                    state: Some(Vec::new()),
                    ..Carried::default()
                })
            })
            .await;
        let mut head = fence.unwrap().entry().clone();
        for _ in 0..commits {
            head = append(&log, &head).await;
        }
        log
    }

    async fn append(log: &CommitLog, head: &LogEntry) -> LogEntry {
        let (epoch, after) = (head.epoch + 1, head.through.clone());
        let kind = EntryKind::Append;
        let through = point(epoch);
        let entry = log.entry(
            epoch,
            head.generation,
            kind,
            after,
            through,
            Vec::new(),
            epoch,
        );
        log.commit(entry).await.unwrap().entry().clone()
    }

    async fn rewind(store: &MemoryStore, to: u64) -> CommitLog {
        let log = CommitLog::new(Arc::new(store.clone()), "shop");
        let head = log.head(None).await.unwrap().unwrap();
        let through = log.read(to).await.unwrap().unwrap().through;
        let rewind = Rewind {
            to,
            through,
            server: None,
            tables: Vec::new(),
            state: Vec::new(),
        };
        let _ = log.rewind(&head, rewind).await.unwrap().unwrap();
        log
    }

    #[tokio::test]
    async fn history_goes_around_what_was_dropped() {
        let store = MemoryStore::new();
        let log = log_of(&store, 9).await;
        // 1..=10; back to 7, one more, then back to 4.
        drop(log);
        let log = rewind(&store, 7).await;
        let head = log.head(None).await.unwrap();
        let fence = log
            .fence(head.as_ref(), point(0), |_| {
                Ok(Carried {
                    state: Some(Vec::new()),
                    ..Carried::default()
                })
            })
            .await;
        append(&log, fence.unwrap().entry()).await;
        let log = rewind(&store, 4).await;
        let mut kept = Vec::new();
        let mut back = Backward::kept(&log, 14);
        while let Some((entry, dropped)) = back.next().await.unwrap() {
            assert_eq!(dropped, None);
            kept.push(entry.epoch);
        }
        assert_eq!(kept, [14, 4, 3, 2, 1]);
        let mut all = Vec::new();
        let mut back = Backward::all(&log, 14, 2);
        while let Some((_, dropped)) = back.next().await.unwrap() {
            all.push(dropped.map_or(0, |d| d.by));
        }
        assert_eq!(all, [0, 14, 14, 14, 14, 14, 14, 14, 14, 14, 0, 0, 0, 0]);
        assert_eq!(state_at(&log, 14).await.unwrap().through, point(4));
        assert_eq!(state_at(&log, 10).await.unwrap().through, point(10));
        let later = Utc::now() + chrono::Duration::hours(1);
        let position = position_before(&log, 14, later).await.unwrap();
        assert_eq!(position, Some(point(4).position));
        let earlier = Utc::now() - chrono::Duration::hours(1);
        assert_eq!(position_before(&log, 14, earlier).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_long_log_is_read_as_far_as_it_is_shown() {
        let store = MemoryStore::new();
        log_of(&store, 20_000).await;
        let reads = Arc::new(Reads(AtomicU64::new(0)));
        let log = CommitLog::new(Arc::new(store.with_hook(reads.clone())), "shop");
        let head = log.head(None).await.unwrap().unwrap();
        let mut back = Backward::all(&log, head.epoch, 20);
        for _ in 0..20 {
            back.next().await.unwrap().unwrap();
        }
        let read = reads.0.load(Ordering::Relaxed);
        assert!(read < 60, "{read} objects were read");
        position_before(&log, head.epoch, Utc::now()).await.unwrap();
        let read = reads.0.load(Ordering::Relaxed) - read;
        assert!(read < 20, "{read} objects were read");
        // Once back, once forward.
        state_at(&log, head.epoch).await.unwrap();
        assert!(reads.0.load(Ordering::Relaxed) < 2 * head.epoch + 200);
    }
}
