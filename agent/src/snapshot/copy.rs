//! One table's copy: what is left to read, and what its rows are numbered with.

use super::files::CopyFile;
use super::now_us;
use super::size::ChunkSize;
use caudal_model::{
    ChangeBuffer, Chunk, Filter, Op, Position, TableName, TableProgress, TableSchema,
    TransactionMeta,
};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell};

/// What a copy's rows are numbered with.
#[derive(Debug, Clone)]
pub struct Base {
    /// The `_seq` that they share.
    pub seq: i64,
    /// The tail's position when it was fixed.
    pub position: Position,
}

#[derive(Debug)]
pub(super) struct Planner {
    /// Ranges between finished chunks that a crash left unread.
    pub(super) gaps: VecDeque<Chunk>,
    /// The chunk planned last.
    pub(super) cursor: Option<Chunk>,
    /// Nothing lies after the cursor.
    pub(super) exhausted: bool,
    pub(super) in_flight: u32,
    pub(super) planned: u32,
    /// `Done` was sent, or the table failed.
    pub(super) over: bool,
    /// How many rows the next chunk has.
    pub(super) size: ChunkSize,
    /// Its chunks come one by one from the process that plans them.
    pub(super) fed: bool,
}

/// A fed copy's file is finished if no chunk has come for it for this time.
const FED_IDLE: Duration = Duration::from_secs(2);

/// One table being copied.
#[derive(Debug)]
pub struct Copy {
    /// The table.
    pub table: TableName,
    /// Whether the table has a key; one that gains or loses it is copied again.
    pub has_key: bool,
    /// The rows that are read, beside what the table's own filter says; all if absent.
    pub(super) only: Option<Filter>,
    /// The version that the next chunk's rows get.
    schema: RwLock<Arc<TableSchema>>,
    /// The pipeline does not want it any more.
    cancelled: AtomicBool,
    /// A chunk met a table of another shape.
    pub(super) waiting: AtomicBool,
    /// Fixed at once for a table with a key, at its exact read for one without.
    pub(super) base: OnceLock<Base>,
    pub(super) visible: OnceCell<()>,
    pub(super) planner: Mutex<Planner>,
    /// What the workers' row groups are appended to; locked before the planner, never after it.
    pub(super) file: Mutex<Option<CopyFile>>,
}

impl Copy {
    /// A copy with a key, from what earlier runs have finished.
    pub fn keyed(
        schema: Arc<TableSchema>,
        base: Base,
        progress: &TableProgress,
        size: ChunkSize,
        only: Option<Filter>,
    ) -> Self {
        Copy {
            only,
            base: OnceLock::from(base),
            planner: Mutex::new(Planner::resume(&progress.chunks, size)),
            ..Self::exact(schema, size)
        }
    }

    /// A copy without a key; it always begins anew.
    pub fn exact(schema: Arc<TableSchema>, size: ChunkSize) -> Self {
        Copy {
            table: schema.table.clone(),
            has_key: schema.has_key(),
            only: None,
            schema: RwLock::new(schema),
            cancelled: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            base: OnceLock::new(),
            visible: OnceCell::new(),
            planner: Mutex::new(Planner::resume(&[], size)),
            file: Mutex::new(None),
        }
    }

    /// Whether these chunks are all that is under way, and nothing is left to be planned.
    pub(super) async fn ends_with(&self, chunks: &[Chunk]) -> bool {
        let p = self.planner.lock().await;
        p.is_exhausted() && p.in_flight as usize == chunks.len()
    }

    /// A copy whose chunks another process plans ([`Self::feed`]). `visible`: what its base
    /// needs to see was seen at the same server.
    pub(crate) fn fed(
        schema: Arc<TableSchema>,
        base: Base,
        size: ChunkSize,
        visible: bool,
    ) -> Self {
        let mut planner = Planner::resume(&[], size);
        (planner.exhausted, planner.fed) = (true, true);
        Copy {
            base: OnceLock::from(base),
            planner: Mutex::new(planner),
            visible: match visible {
                true => OnceCell::from(()),
                false => OnceCell::new(),
            },
            ..Self::exact(schema, size)
        }
    }

    /// Whether a fed copy has no other chunk than those of this file, for a while now.
    pub(super) async fn waits_for(&self, file: &CopyFile) -> bool {
        let p = self.planner.lock().await;
        p.fed
            && p.gaps.is_empty()
            && p.in_flight as usize == file.chunks.len()
            && file.age() >= FED_IDLE
    }

    /// Gives the open file up, leaving no upload behind.
    pub(crate) async fn abandon_file(&self) {
        let open = self.file.lock().await.take();
        if let Some(file) = open {
            file.abort().await;
        }
    }

    /// One more chunk to be read.
    pub(crate) async fn feed(&self, chunk: Chunk) {
        self.planner.lock().await.gaps.push_back(chunk);
    }

    /// Chunks that wait or are being read.
    pub(crate) async fn unfinished(&self) -> usize {
        let p = self.planner.lock().await;
        p.gaps.len() + p.in_flight as usize
    }

    /// The version that the next chunk's rows get.
    pub fn schema(&self) -> Arc<TableSchema> {
        let schema = self.schema.read();
        schema.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Chunks that begin from now on are read as this version of the table; those that
    /// were read stay, for files name the version that they were written with.
    pub fn go_on(&self, schema: Arc<TableSchema>) {
        *self.schema.write().unwrap_or_else(PoisonError::into_inner) = schema;
        self.waiting.store(false, Ordering::Release);
    }

    /// No chunk begins any more, and nothing that comes of those under way is wanted.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }
}

impl Planner {
    /// A chunk will be read again; one of an exact read cannot, and its copy is over.
    pub(super) fn give_back(&mut self, chunk: Chunk, has_key: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if has_key {
            self.gaps.push_back(chunk);
        } else {
            self.over = true;
        }
    }

    /// A chunk was more than a statement may take: if nothing was planned after it, it is
    /// planned anew, smaller; else it is read again as it is.
    pub(super) fn timed_out(&mut self, chunk: Chunk) {
        self.size.timed_out();
        if self.cursor.as_ref() != Some(&chunk) {
            return self.give_back(chunk, true);
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.exhausted = false;
        self.planned = chunk.id - 1;
        self.cursor = chunk.after.clone().map(|bound| Chunk {
            id: chunk.id - 1,
            after: None,
            through: Some(bound),
        });
    }

    /// Finds what lies between, before and after finished chunks, by their numbers:
    /// chunks are numbered in the order of their ranges, and a chunk's upper bound
    /// is its successor's lower one.
    fn resume(finished: &[Chunk], size: ChunkSize) -> Planner {
        let mut chunks: Vec<&Chunk> = finished.iter().collect();
        chunks.sort_by_key(|c| c.id);
        let mut gaps = VecDeque::new();
        let mut before: Option<&Chunk> = None;
        for c in &chunks {
            let (id, through) = before.map_or((1, None), |b| (b.id + 1, b.through.clone()));
            if through != c.after {
                gaps.push_back(Chunk {
                    id,
                    after: through,
                    through: c.after.clone(),
                });
            }
            before = Some(c);
        }
        Planner {
            planned: chunks.last().map_or(0, |c| c.id),
            exhausted: chunks.last().is_some_and(|c| c.through.is_none()),
            cursor: chunks.last().map(|c| (*c).clone()),
            gaps,
            in_flight: 0,
            over: false,
            size,
            fed: false,
        }
    }

    /// Whether nothing is left to be planned or read anew.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted && self.gaps.is_empty() && !self.fed
    }
}

/// Appends the `t` row that begins a second copy, and returns the copy's base `_seq`.
///
/// The first copy of a table has nothing to empty: it only takes a number.
pub fn begin_copy(
    buffer: &mut ChangeBuffer,
    schema: &Arc<TableSchema>,
    copy: u32,
    position: &Position,
) -> i64 {
    if copy <= 1 {
        return buffer.reserve(1);
    }
    let slot = buffer.slot(schema);
    buffer.begin(TransactionMeta {
        committed_at_us: now_us(),
        position: position.as_str().into(),
    });
    buffer.row(slot, Op::Truncate).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(id: u32, after: Option<&str>, through: Option<&str>) -> Chunk {
        let bound = |b: Option<&str>| b.map(|b| vec![b.to_owned()]);
        Chunk {
            id,
            after: bound(after),
            through: bound(through),
        }
    }

    fn size() -> ChunkSize {
        let limits = crate::snapshot::SizeLimits {
            first_rows: 10,
            most_rows: 10,
            target: std::time::Duration::from_secs(1),
        };
        ChunkSize::first(limits, 0, 0)
    }

    #[test]
    fn a_chunk_that_takes_too_long_is_planned_smaller() {
        let mut p = Planner::resume(&[chunk(1, None, Some("10"))], size());
        let second = chunk(2, Some("10"), None);
        (p.cursor, p.planned, p.exhausted, p.in_flight) = (Some(second.clone()), 2, true, 1);
        p.timed_out(second);
        assert_eq!((p.planned, p.exhausted, p.in_flight), (1, false, 0));
        assert_eq!(p.cursor, Some(chunk(1, None, Some("10"))));
        assert_eq!((p.size.rows(), p.gaps.len()), (5, 0));
        // Something was planned after it: its bounds stand.
        p.timed_out(chunk(7, Some("70"), Some("80")));
        assert_eq!((p.gaps.len(), p.size.rows()), (1, 2));
        // The first of all.
        let mut p = Planner::resume(&[], size());
        p.cursor = Some(chunk(1, None, None));
        p.timed_out(chunk(1, None, None));
        assert_eq!((p.cursor, p.planned), (None, 0));
    }

    #[test]
    fn a_resumed_copy_reads_the_gaps_and_goes_on_after_the_last_chunk() {
        let p = Planner::resume(
            &[
                chunk(5, Some("50"), Some("60")),
                chunk(2, Some("20"), Some("30")),
            ],
            size(),
        );
        assert_eq!(
            p.gaps,
            [chunk(1, None, Some("20")), chunk(3, Some("30"), Some("50"))]
        );
        assert_eq!((p.planned, p.exhausted), (5, false));
        assert_eq!(p.cursor, Some(chunk(5, Some("50"), Some("60"))));
        let p = Planner::resume(&[chunk(1, None, None)], size());
        assert!(p.gaps.is_empty() && p.exhausted);
        let p = Planner::resume(&[], size());
        assert!(p.gaps.is_empty() && !p.exhausted && p.cursor.is_none());
    }
}
