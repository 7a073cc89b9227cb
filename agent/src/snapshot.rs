//! The initial copy: tables cut into chunks, read by parallel workers.
//!
//! Why it is correct. A table's base `_seq` is fixed before its first chunk, and
//! every later change of a row has a greater one and wins (INV-4). A chunk is read
//! only when everything that the tail delivered up to the base is visible to it
//! (INV-5); what happens after the base is delivered by the tail again. So chunks
//! need no lock and no common moment. A table without a key is one chunk of one
//! exact read, and the tail leaves out what that read saw (INV-6).
//!
//! A copy of some rows only (`resnapshot --where`) is the same without the `t` row that
//! empties the table first: its rows have a base `_seq` of their own, above everything that
//! the lake held when it began, so each replaces what the lake has of its key, and every
//! later change wins over it again. Rows that it does not read stay as they are.
//!
//! A chunk becomes part of the lake whole or not at all: its rows are encoded
//! while it is read, and named by a commit only when it is complete. So a row is
//! never in the lake twice with the same `_seq`.

mod copy;
mod files;
mod gate;
mod joining;
mod pace;
mod sharing;
mod size;

pub use copy::{Base, Copy, begin_copy};
pub use files::FileLimits;
pub use gate::{Budgets, Gate, Pause};
pub use joining::Joining;
pub use pace::Pace;
pub use sharing::{Shareable, Sharing};
pub use size::{ChunkSize, SizeLimits};

use crate::crash::{self, CrashPoints};
use crate::staging::Staging;
use crate::status::StatusBoard;
use caudal_model::{
    ChangeBuffer, Chunk, Class, Error, Kind, Position, Result, Rules, TableSchema, TransactionMeta,
};
use caudal_sinks::FileEntry;
use caudal_sources::{ChunkEvent, ChunkReader, Source};
use copy::Planner;
use files::{Complete, Gathered, Lost};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// What workers tell the pipeline.
pub enum Message {
    /// These chunks' rows are uploaded in these files.
    Chunks {
        /// The copy.
        copy: Arc<Copy>,
        /// Complete chunks.
        chunks: Vec<Chunk>,
        /// Their files.
        files: Vec<FileEntry>,
        /// Chunks planned so far.
        planned: u32,
    },
    /// Every chunk of the table has been reported.
    Done {
        /// The copy.
        copy: Arc<Copy>,
        /// A position read after the last chunk.
        live_at: Position,
    },
    /// A table without a key is next: open its exact read while the tail stands still.
    OpenExact {
        /// The copy.
        copy: Arc<Copy>,
        /// The connection that will read it.
        reader: Box<dyn ChunkReader>,
        /// The connection, and the base of the copy.
        reply: oneshot::Sender<Result<(Box<dyn ChunkReader>, Base)>>,
    },
    /// The table cannot be copied.
    TableFailed {
        /// The copy.
        copy: Arc<Copy>,
        /// Why.
        error: Error,
    },
    /// The table is not as the copy's schema says, and the tail may not yet have come to
    /// what changed it. The copy waits for [`Copy::go_on`] or [`Copy::cancel`].
    Drifted {
        /// The copy.
        copy: Arc<Copy>,
        /// The version that did not fit.
        version: u32,
        /// What does not fit.
        error: Error,
        /// Whatever changed the table stands at or before this position.
        at: Position,
    },
    /// The attempt cannot go on.
    Failed(Error),
}

/// What every worker shares.
pub struct Workers {
    /// The database.
    pub source: Arc<dyn Source>,
    /// Names of files.
    pub staging: Arc<Staging>,
    /// What is done to rows on their way.
    pub rules: Arc<Rules>,
    /// The tables to copy, in the order in which they are begun.
    pub copies: Vec<Arc<Copy>>,
    /// Bytes that a worker gathers before it hands rows to the encoder.
    pub buffer_bytes: usize,
    /// When files are finished.
    pub files: FileLimits,
    /// What all workers of the stream share, whichever tables they were begun for.
    pub pace: Arc<Pace>,
    /// For the progress display.
    pub board: StatusBoard,
    /// Where crashes are simulated.
    pub crash: CrashPoints,
    /// To the pipeline.
    pub messages: mpsc::Sender<Message>,
}

struct Job {
    copy: Arc<Copy>,
    schema: Arc<TableSchema>,
    chunk: Chunk,
    /// Rows that the chunk was planned with; more than any for one that was planned before.
    planned_rows: u64,
}

impl Workers {
    /// One worker; returns when no table has work left, or the pipeline is gone.
    pub async fn work(self: Arc<Self>) {
        if let Err(e) = self.work_until_done().await {
            // The pipeline may be gone already; then nobody wants to know.
            let _ = self
                .messages
                .send(Message::Failed(e.context("snapshot")))
                .await;
        }
    }

    async fn work_until_done(&self) -> Result<()> {
        let mut reader: Option<Box<dyn ChunkReader>> = None;
        let mut gathered: Option<Gathered> = None;
        let mut failures = 0;
        loop {
            match self.step(&mut reader, &mut gathered).await {
                Ok(true) => failures = 0,
                Ok(false) => return Ok(()),
                Err(Stop::Retry(e)) if failures < 5 => {
                    failures += 1;
                    tracing::warn!(error = %e, attempt = failures, "a snapshot read failed; it is tried again");
                    reader = None;
                    let pause = 100 * (1 << failures) + rand_jitter(failures);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                Err(Stop::Retry(e) | Stop::Fail(e)) => return Err(e),
                Err(Stop::Unwanted) => reader = None,
                Err(Stop::Gone) => return Ok(()),
            }
        }
    }

    /// Reads one chunk; `false` when there is none left.
    async fn step(
        &self,
        reader: &mut Option<Box<dyn ChunkReader>>,
        gathered: &mut Option<Gathered>,
    ) -> Result<bool, Stop> {
        self.close_due_files().await?;
        if reader.is_none() {
            *reader = Some(self.source.open_reader(false).await?);
        }
        let Some(job) = self.next_job(reader).await? else {
            if let Some(g) = gathered.take() {
                self.hand_over(g, false).await?;
            }
            // Another worker's chunk may yet come back as a gap.
            return Ok(self.wait_for_others().await);
        };
        if !gathered
            .as_ref()
            .is_some_and(|g| g.is_of(&job.copy, &job.schema))
            && let Some(g) = gathered.take()
            && let Err(stop) = self.hand_over(g, false).await
        {
            return Err(self.give_back_job(job, stop).await);
        }
        // Copies that begin later bring workers of their own, and no more reads at a time.
        let turn = tokio::time::timeout(self.files.file_age, self.pace.turn()).await;
        let turn = match turn {
            Ok(turn) => turn,
            Err(_) => {
                // What is read already does not wait for what may take hours.
                if let Some(g) = gathered.take()
                    && let Err(stop) = self.hand_over(g, true).await
                {
                    return Err(self.give_back_job(job, stop).await);
                }
                self.pace.turn().await
            }
        };
        let into =
            gathered.get_or_insert_with(|| Gathered::new(job.copy.clone(), job.schema.clone()));
        let read = self.read_chunk(reader, &job, into).await;
        drop(turn);
        if let Err(stop) = read {
            // Rows of the unfinished chunk are among the others, so they go,
            // and the chunks that they were of are read again.
            if let Some(g) = gathered.take() {
                self.give_back(&job.copy, g.abandon().await).await;
            }
            return self.after_failure(reader, job, stop).await;
        }
        if let Some(g) = gathered.as_mut() {
            g.chunks.push(job.chunk);
            if (g.is_due(&self.files) || self.nothing_left(&g.copy).await)
                && let Some(g) = gathered.take()
            {
                if !g.copy.has_key {
                    // Exact reads have a connection of their own kind.
                    *reader = None;
                }
                self.hand_over(g, false).await?;
            }
        }
        Ok(true)
    }

    /// What becomes of a chunk that was not read to its end.
    async fn after_failure(
        &self,
        reader: &mut Option<Box<dyn ChunkReader>>,
        job: Job,
        stop: Stop,
    ) -> Result<bool, Stop> {
        let mut p = job.copy.planner.lock().await;
        match &stop {
            Stop::Retry(e) if e.kind() == Kind::Timeout && job.copy.has_key => {
                p.timed_out(job.chunk);
            }
            _ => p.give_back(job.chunk, job.copy.has_key),
        }
        drop(p);
        match stop {
            Stop::Retry(e) if e.class() == Class::Data => {
                self.give_up(&job.copy, job.schema.version, e).await?;
                Ok(true)
            }
            // The exact read ended with its connection: only a new copy is exact again.
            Stop::Retry(e) if !job.copy.has_key => Err(Stop::Fail(e)),
            Stop::Unwanted => {
                // The connection is in the middle of a chunk.
                *reader = None;
                Ok(true)
            }
            other => Err(other),
        }
    }

    /// The next chunk of the first table that has one, planned if need be.
    async fn next_job(
        &self,
        reader: &mut Option<Box<dyn ChunkReader>>,
    ) -> Result<Option<Job>, Stop> {
        self.next_job_of(self.copies.iter().collect(), reader).await
    }

    /// The same for another process, of the tables that `wanted` says and that have so many
    /// chunks that it is worth it.
    async fn next_shared_job(
        &self,
        reader: &mut Option<Box<dyn ChunkReader>>,
        wanted: &(dyn Fn(&Arc<Copy>) -> bool + Sync),
        worth: u32,
    ) -> Result<Option<Job>, Stop> {
        let mut copies = Vec::new();
        for copy in self.copies.iter().filter(|c| c.only.is_none() && wanted(c)) {
            let p = copy.planner.lock().await;
            if p.planned >= worth && !p.is_exhausted() {
                copies.push(copy);
            }
        }
        if reader.is_none() && !copies.is_empty() {
            *reader = Some(self.source.open_reader(false).await?);
        }
        self.next_job_of(copies, reader).await
    }

    /// Whether a table has chunks that another process could read.
    async fn has_shareable(&self) -> bool {
        for copy in self
            .copies
            .iter()
            .filter(|c| c.has_key && c.only.is_none() && !c.is_cancelled())
        {
            if !copy.planner.lock().await.over {
                return true;
            }
        }
        false
    }

    async fn next_job_of(
        &self,
        copies: Vec<&Arc<Copy>>,
        reader: &mut Option<Box<dyn ChunkReader>>,
    ) -> Result<Option<Job>, Stop> {
        for copy in copies {
            if copy.is_cancelled() || copy.is_waiting() || self.pace.holds(&copy.table) {
                continue;
            }
            let mut p = copy.planner.lock().await;
            if p.over {
                continue;
            }
            let schema = copy.schema();
            let mut chunk = p.gaps.pop_front();
            let mut planned_rows = u64::MAX;
            if chunk.is_none() && !p.exhausted {
                if let Err(stop) = self.begin_copy(copy, reader).await {
                    if let Stop::Retry(e) = stop {
                        if e.class() != Class::Data {
                            return Err(Stop::Retry(e));
                        }
                        drop(p);
                        self.give_up(copy, schema.version, e).await?;
                        continue;
                    }
                    return Err(stop);
                }
                let Some(r) = reader.as_mut() else {
                    return Err(Stop::Gone);
                };
                planned_rows = p.size.rows();
                match r.plan(&schema, p.cursor.as_ref(), planned_rows).await {
                    Ok(Some(c)) => {
                        p.exhausted = c.through.is_none();
                        p.planned = p.planned.max(c.id);
                        p.cursor = Some(c.clone());
                        chunk = Some(c);
                    }
                    Ok(None) => p.exhausted = true,
                    Err(e) if e.class() == Class::Data => {
                        drop(p);
                        self.give_up(copy, schema.version, e).await?;
                        continue;
                    }
                    // The exact read ended with its connection: only a new copy is exact again.
                    Err(e) if !copy.has_key => {
                        p.over = true;
                        return Err(Stop::Fail(e));
                    }
                    Err(e) => {
                        if e.kind() == Kind::Timeout {
                            p.size.timed_out();
                        }
                        return Err(Stop::from(e));
                    }
                }
            }
            if let Some(chunk) = chunk {
                p.in_flight += 1;
                drop(p);
                let job = Job {
                    copy: copy.clone(),
                    schema,
                    chunk,
                    planned_rows,
                };
                // A gap's copy began in an earlier run; its base is as visible as any.
                return match self.begin_copy(copy, reader).await {
                    Ok(()) => Ok(Some(job)),
                    Err(stop) => Err(self.give_back_job(job, stop).await),
                };
            }
            self.finish_copy(copy, &mut p).await?;
        }
        Ok(None)
    }

    /// Fixes the base of a table without a key, and waits until a base is visible.
    async fn begin_copy(
        &self,
        copy: &Arc<Copy>,
        reader: &mut Option<Box<dyn ChunkReader>>,
    ) -> Result<(), Stop> {
        if copy.base.get().is_none() {
            loop {
                *reader = None;
                let fresh = self.source.open_reader(true).await?;
                let (reply, answer) = oneshot::channel();
                self.send(Message::OpenExact {
                    copy: copy.clone(),
                    reader: fresh,
                    reply,
                })
                .await?;
                match answer.await.map_err(|_| Stop::Gone)? {
                    Ok((r, base)) => {
                        *reader = Some(r);
                        // Only the worker that holds the planner's lock comes here.
                        let _ = copy.base.set(base);
                        return Ok(());
                    }
                    Err(e) if e.class() == Class::Retryable => {
                        tracing::warn!(table = %copy.table, error = %e, "no exact read yet; it is tried again");
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    Err(e) => return Err(Stop::from(e)),
                }
            }
        }
        let (Some(base), Some(r)) = (copy.base.get(), reader.as_mut()) else {
            return Err(Stop::Gone);
        };
        if copy.has_key {
            copy.visible
                .get_or_try_init(|| r.await_visible(&copy.table, &base.position))
                .await?;
        }
        Ok(())
    }

    async fn read_chunk(
        &self,
        reader: &mut Option<Box<dyn ChunkReader>>,
        job: &Job,
        into: &mut Gathered,
    ) -> Result<(), Stop> {
        let (Some(r), Some(base)) = (reader.as_mut(), job.copy.base.get()) else {
            return Err(Stop::Gone);
        };
        let began = Instant::now();
        r.start(&job.schema, &job.chunk, job.copy.only.as_ref())
            .await?;
        let mut buffer =
            ChangeBuffer::for_snapshot(base.seq, self.buffer_bytes).with_rules(self.rules.clone());
        buffer.begin(TransactionMeta {
            committed_at_us: now_us(),
            position: base.position.as_str().into(),
        });
        let (mut rows, mut bytes) = (0, 0);
        loop {
            if job.copy.is_cancelled() {
                return Err(Stop::Unwanted);
            }
            let event = r.next(&mut buffer).await?;
            for batch in buffer.take()? {
                let n = batch.rows.num_rows() as u64;
                rows += n;
                bytes += batch.bytes() as u64;
                into.write(batch, &self.staging, &self.files).await?;
                self.board.add_copied_rows(&job.copy.table, n);
                self.crash.reach(crash::CHUNK_STAGED)?;
                self.pace.spend(n).await;
            }
            if matches!(event, ChunkEvent::Done) {
                let mut p = job.copy.planner.lock().await;
                p.size.read(job.planned_rows, rows, bytes, began.elapsed());
                return Ok(());
            }
        }
    }

    /// Hands rows to the table's open file, and what is complete with them to the pipeline.
    async fn hand_over(&self, g: Gathered, close: bool) -> Result<(), Stop> {
        let copy = g.copy.clone();
        // Nobody may come back to a table that waits.
        let close = close || self.pace.holds(&copy.table);
        match g.hand_over(&self.staging, &self.files, close).await {
            Ok(done) => self.report(&copy, done).await,
            Err(Lost { error, chunks }) => {
                self.give_back(&copy, chunks).await;
                Err(Stop::from(error))
            }
        }
    }

    async fn report(&self, copy: &Arc<Copy>, done: Complete) -> Result<(), Stop> {
        if done.chunks.is_empty() {
            return Ok(());
        }
        self.crash.reach(crash::CHUNK_UPLOADED)?;
        let mut p = copy.planner.lock().await;
        let count = done.chunks.len() as u32;
        let message = Message::Chunks {
            copy: copy.clone(),
            chunks: done.chunks,
            files: done.files,
            planned: p.planned,
        };
        self.send(message).await?;
        p.in_flight = p.in_flight.saturating_sub(count);
        self.finish_copy(copy, &mut p).await
    }

    /// Says `Done` once, when no chunk is left or under way.
    async fn finish_copy(&self, copy: &Arc<Copy>, p: &mut Planner) -> Result<(), Stop> {
        if p.over || !p.is_exhausted() || p.in_flight > 0 {
            return Ok(());
        }
        let live_at = self.source.current_position().await?;
        p.over = true;
        self.send(Message::Done {
            copy: copy.clone(),
            live_at,
        })
        .await
    }

    /// Puts chunks back whose rows were lost.
    async fn give_back(&self, copy: &Copy, chunks: Vec<Chunk>) {
        let mut p = copy.planner.lock().await;
        for chunk in chunks {
            p.give_back(chunk, copy.has_key);
        }
    }

    /// Puts a chunk back that was not begun.
    async fn give_back_job(&self, job: Job, stop: Stop) -> Stop {
        let mut p = job.copy.planner.lock().await;
        p.give_back(job.chunk, job.copy.has_key);
        match stop {
            // Its exact read ends with the connection.
            Stop::Retry(e) if !job.copy.has_key => Stop::Fail(e),
            stop => stop,
        }
    }

    /// The copy cannot go on as it is. One whose table has another shape than `version`
    /// waits; any other is over.
    async fn give_up(&self, copy: &Arc<Copy>, version: u32, error: Error) -> Result<(), Stop> {
        if error.kind() == Kind::Drift && copy.has_key {
            copy.waiting.store(true, Ordering::Release);
            // The version may have come in between; then the mark above must not stand.
            if copy.schema().version != version {
                copy.waiting.store(false, Ordering::Release);
                return Ok(());
            }
            let at = self.source.current_position().await?;
            return self
                .send(Message::Drifted {
                    copy: copy.clone(),
                    version,
                    error,
                    at,
                })
                .await;
        }
        copy.planner.lock().await.over = true;
        self.send(Message::TableFailed {
            copy: copy.clone(),
            error,
        })
        .await
    }

    async fn nothing_left(&self, copy: &Copy) -> bool {
        copy.planner.lock().await.is_exhausted()
    }

    /// Whether a table is not over yet; waits a little, for its last chunks may come back.
    async fn wait_for_others(&self) -> bool {
        for copy in self.copies.iter().filter(|c| !c.is_cancelled()) {
            if !copy.planner.lock().await.over {
                tokio::time::sleep(Duration::from_millis(100)).await;
                return true;
            }
        }
        false
    }

    /// Finishes the files that are due: of a table that is paused, or whose last chunks
    /// another process reads, nobody may come to append for a long time.
    async fn close_due_files(&self) -> Result<(), Stop> {
        for copy in &self.copies {
            if copy.is_cancelled() {
                copy.abandon_file().await;
                continue;
            }
            // Whoever holds it sees to it.
            let Ok(mut open) = copy.file.try_lock() else {
                continue;
            };
            let due = match open.as_ref() {
                Some(file) => file.is_due(&self.files) || copy.waits_for(file).await,
                None => false,
            };
            let Some(file) = open.take_if(|_| due) else {
                continue;
            };
            drop(open);
            let chunks = file.chunks.clone();
            match file.finish().await {
                Ok(done) => self.report(copy, done).await?,
                Err(e) => {
                    self.give_back(copy, chunks).await;
                    return Err(Stop::from(e));
                }
            }
        }
        Ok(())
    }

    async fn send(&self, message: Message) -> Result<(), Stop> {
        self.messages.send(message).await.map_err(|_| Stop::Gone)
    }
}

/// Why a worker stops what it does.
#[derive(Debug)]
enum Stop {
    /// The source or one chunk failed; a data error fails its table, another is tried again.
    Retry(Error),
    /// The attempt is over.
    Fail(Error),
    /// The copy was cancelled.
    Unwanted,
    /// The pipeline is gone.
    Gone,
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        match e.class() {
            Class::Fatal => Stop::Fail(e),
            _ => Stop::Retry(e),
        }
    }
}

/// Now, in microseconds since 1970 UTC.
pub fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_micros() as i64)
}

fn rand_jitter(seed: u32) -> u64 {
    // The clock's low digits differ between workers, which is all that is needed.
    (now_us() as u64 ^ u64::from(seed)) % 100
}
