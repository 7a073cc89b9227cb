//! One attempt: from the log's head to the end of the run, or to the first error.
//!
//! A single task owns everything that has an order: it polls the tail, takes the
//! snapshot workers' messages, numbers, seals and applies commits. Uploading and
//! committing one epoch runs beside reading the next. The order of INV-3 is in
//! [`Pipeline::settle`] and nowhere else.

mod copies;

use crate::crash;
use crate::epoch::{Committed, OpenEpoch};
use crate::metrics;
use crate::recover;
use crate::snapshot::{self, Base, Copy, Message, Workers};
use crate::staging::Staging;
use crate::status::{StreamState, TableStatus};
use crate::supervise::{Ending, Parts, Until};
use caudal_model::{
    Checkpoint, Class, Error, Kind, Op, Position, Result, TableName, TableProgress, TableSchema,
    TableState,
};
use caudal_sinks::SnapshotEntry;
use caudal_sources::{ChunkReader, Tail, TailEvent};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The state of one attempt.
pub struct Pipeline<'p> {
    parts: &'p mut Parts,
    staging: Arc<Staging>,
    generation: u64,
    state: Checkpoint,
    schemas: HashMap<TableName, Arc<TableSchema>>,
    next_column_ids: HashMap<TableName, i32>,
    /// The copies under way, as the next commit describes them.
    copies: HashMap<TableName, SnapshotEntry>,
    /// Copies whose chunks are complete, and the position that makes them live.
    awaiting_live: HashMap<TableName, Position>,
    /// Tables that became live in this attempt, committed or not.
    live: HashSet<TableName>,
    /// Tables that failed in this attempt, committed or not.
    failed: HashSet<TableName>,
    /// Tables that are selected and exist; others wait until they do.
    carried: HashSet<TableName>,
    exact_requests: Vec<ExactRequest>,
    closing: Option<JoinHandle<Result<Committed>>>,
    epoch_sealed: u64,
    reached: watch::Sender<Position>,
    last_commit: Instant,
}

struct ExactRequest {
    table: TableName,
    reader: Box<dyn ChunkReader>,
    reply: oneshot::Sender<Result<(Box<dyn ChunkReader>, Base)>>,
}

/// What recovery hands to an attempt.
pub struct Recovered {
    /// The state at the log's head.
    pub state: Checkpoint,
    /// Every table's newest committed schema version.
    pub schemas: HashMap<TableName, Arc<TableSchema>>,
    /// One more than the greatest column id of any version, by table.
    pub next_column_ids: HashMap<TableName, i32>,
}

impl<'p> Pipeline<'p> {
    /// Over what recovery found.
    pub fn new(
        parts: &'p mut Parts,
        staging: Arc<Staging>,
        generation: u64,
        recovered: Recovered,
    ) -> Self {
        let epoch_sealed = recovered.state.epoch;
        let (reached, _) = watch::channel(recovered.state.through.position.clone());
        Pipeline {
            parts,
            staging,
            generation,
            state: recovered.state,
            schemas: recovered.schemas,
            next_column_ids: recovered.next_column_ids,
            copies: HashMap::new(),
            awaiting_live: HashMap::new(),
            live: HashSet::new(),
            failed: HashSet::new(),
            carried: HashSet::new(),
            exact_requests: Vec::new(),
            closing: None,
            epoch_sealed,
            reached,
            last_commit: Instant::now(),
        }
    }

    /// Reads, commits and acknowledges until `until` is reached or an error ends it.
    pub async fn run(mut self, until: &Until, shutdown: &CancellationToken) -> Result<Ending> {
        let limit = self.parts.settings.buffer_bytes;
        let mut epoch = OpenEpoch::new(self.state.through.clone(), limit);
        self.staging.set_epoch(self.epoch_sealed + 1);
        let copies = self.begin_copies(&mut epoch).await?;
        let tracked = self.tracked();
        let from = self.state.through.position.clone();
        let mut tail = self.parts.source.open_tail(&from, tracked).await?;
        // A crash may have come between the commit and its acknowledgement.
        tail.acknowledge(&from);
        self.publish_tables();

        let (sender, messages) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        self.spawn_workers(copies, sender, &mut tasks);
        self.spawn_watch(&mut tasks);
        let outcome = self
            .pump(&mut epoch, tail.as_mut(), messages, until, shutdown)
            .await;
        tasks.abort_all();
        if let Some(closing) = self.closing.take() {
            closing.abort();
        }
        epoch.abandon().await;
        outcome
    }

    async fn pump(
        &mut self,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
        mut messages: mpsc::Receiver<Message>,
        until: &Until,
        shutdown: &CancellationToken,
    ) -> Result<Ending> {
        let mut tick = tokio::time::interval(self.parts.settings.tick);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stopping: Option<Ending> = None;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if stopping.is_none() => {
                    stopping = Some(Ending::Stopped);
                }
                done = join(&mut self.closing), if self.closing.is_some() => {
                    self.settle(done?, tail)?;
                }
                _ = tick.tick() => {}
                Some(message) = messages.recv(), if stopping.is_none() => {
                    self.message(message, epoch, tail)?;
                    continue;
                }
                event = tail.next(&mut epoch.buffer), if stopping.is_none() || tail.in_transaction() => {
                    let full = matches!(event, Ok(TailEvent::Full));
                    self.event(event?, epoch, tail).await?;
                    // The clock is looked at on ticks; a loaded stream need not ask each time.
                    if !full && !self.is_due(epoch) {
                        continue;
                    }
                }
            }
            self.parts.board.touch();
            metrics::memory((epoch.buffer.bytes() + tail.staged_bytes()) as u64);
            if until.deadline_passed() && stopping.is_none() {
                stopping = Some(Ending::DeadlinePassed);
            }
            if tail.in_transaction() {
                // An epoch closes on a transaction's boundary only.
                if epoch.buffer.is_full() {
                    self.flush(epoch).await?;
                }
                continue;
            }
            if !self.exact_requests.is_empty() {
                self.open_exact(epoch, tail).await?;
            }
            self.mark_live(epoch, tail)?;
            let caught_up = self.all_settled()
                && until.reached_at(&*self.parts.source, &epoch.boundary.position)?;
            if let Some(ending) = self.finished(epoch, caught_up, stopping) {
                return Ok(ending);
            }
            let leave = stopping.is_some() || caught_up;
            if self.closing.is_none() && (self.is_due(epoch) || (leave && epoch.moved())) {
                self.seal(epoch)?;
            } else if epoch.buffer.is_full() {
                self.flush(epoch).await?;
            }
        }
    }

    /// Whether the run is over: nothing is open and nothing is being committed.
    fn finished(
        &self,
        epoch: &OpenEpoch,
        caught_up: bool,
        stopping: Option<Ending>,
    ) -> Option<Ending> {
        if self.closing.is_some() || epoch.moved() {
            return None;
        }
        stopping.or(caught_up.then_some(Ending::CaughtUp))
    }

    /// Whether every table is live or errored, committed or not.
    fn all_settled(&self) -> bool {
        self.awaiting_live.is_empty()
            && self.state.tables.iter().all(|t| {
                matches!(t.state, TableState::Live | TableState::Errored)
                    || self.failed.contains(&t.table)
                    || self.live.contains(&t.table)
                    || !self.carried.contains(&t.table)
            })
    }

    fn is_due(&self, epoch: &OpenEpoch) -> bool {
        let s = &self.parts.settings;
        match epoch.since {
            Some(since) => epoch.bytes() >= s.max_bytes || since.elapsed() >= s.max_delay,
            // A position alone is committed now and then, so that the source can forget.
            None => epoch.moved() && self.last_commit.elapsed() >= s.idle_commit,
        }
    }

    fn seal(&mut self, epoch: &mut OpenEpoch) -> Result<()> {
        let limit = self.parts.settings.buffer_bytes;
        let sealed = epoch.seal(limit, |t| self.schemas.get(t).map_or(1, |s| s.version))?;
        self.epoch_sealed += 1;
        self.staging.set_epoch(self.epoch_sealed + 1);
        self.closing = Some(tokio::spawn(sealed.commit(
            self.epoch_sealed,
            self.generation,
            self.parts.log.clone(),
            self.staging.clone(),
            self.parts.crash.clone(),
        )));
        Ok(())
    }

    async fn flush(&mut self, epoch: &mut OpenEpoch) -> Result<()> {
        epoch.touch();
        epoch.flush(&self.staging).await?;
        self.parts.crash.reach(crash::FLUSHED)
    }

    /// Steps three and four of INV-3: RocksDB, then the acknowledgement.
    fn settle(&mut self, done: Committed, tail: &mut dyn Tail) -> Result<()> {
        self.parts.crash.reach(crash::COMMITTED)?;
        let changed = recover::apply(&mut self.state, done.receipt.entry())?;
        let changed: Vec<TableProgress> = changed
            .into_iter()
            .map(|at| self.state.tables[at].clone())
            .collect();
        for schema in &done.schemas {
            self.parts.checkpoints.put_schema(schema)?;
        }
        self.parts.checkpoints.advance(&self.state, &changed)?;
        self.parts.crash.reach(crash::CHECKPOINTED)?;
        tail.acknowledge(&done.receipt.through().position);
        self.parts.crash.reach(crash::ACKNOWLEDGED)?;

        let files = || done.receipt.entry().tables.iter().flat_map(|t| &t.files);
        self.staging.settled(files().map(|f| f.path.as_str()));
        self.last_commit = Instant::now();
        self.reached
            .send_replace(self.state.through.position.clone());
        let bytes = files().map(|f| f.bytes).sum();
        metrics::commit(self.state.epoch, done.took, bytes, files().count() as u64);
        for (op, n) in Op::ALL.into_iter().zip(done.operations) {
            metrics::changes(op, n);
        }
        for t in &changed {
            self.parts.board.update_table(TableStatus::from(t));
        }
        self.parts
            .board
            .set_commit(self.state.epoch, self.generation, &self.state.through);
        self.publish_state();
        Ok(())
    }

    async fn event(
        &mut self,
        event: TailEvent,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) -> Result<()> {
        match event {
            TailEvent::Commit { position, .. } => {
                if epoch.buffer.next_seq() - 1 > epoch.boundary.seq {
                    epoch.touch();
                }
                epoch.set_boundary(position);
            }
            TailEvent::Heartbeat { position } => epoch.set_boundary(position),
            TailEvent::Schema(schema) => {
                tracing::info!(table = %schema.table, version = schema.version, "new schema version");
                let next = schema.columns.iter().map(|c| c.id + 1).max().unwrap_or(1);
                let ids = self
                    .next_column_ids
                    .entry(schema.table.clone())
                    .or_insert(next);
                *ids = next.max(*ids);
                self.schemas.insert(schema.table.clone(), schema.clone());
                epoch.add_schema(schema);
            }
            TailEvent::TableFailed { table, error } => self.fail_table(&table, &error, epoch, tail),
            TailEvent::Recopy { table, reason } => {
                let error = Error::drift(&table, reason);
                self.fail_table(&table, &error, epoch, tail);
            }
            TailEvent::Ended { table } => epoch.end_table(&table),
            TailEvent::Catalog => {}
            TailEvent::Full => self.flush(epoch).await?,
        }
        Ok(())
    }

    fn fail_table(
        &mut self,
        table: &TableName,
        error: &Error,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) {
        tracing::error!(%table, %error, hint = error.hint_text(), "table errored");
        metrics::error(error);
        tail.untrack(table);
        self.awaiting_live.remove(table);
        self.copies.remove(table);
        self.failed.insert(table.clone());
        epoch.fail_table(table, error);
    }

    fn message(
        &mut self,
        message: Message,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) -> Result<()> {
        match message {
            Message::Chunks {
                table,
                chunks,
                files,
                planned,
            } => {
                if self.failed.contains(&table) {
                    return Ok(());
                }
                let rows = files.iter().map(|f| f.rows).sum();
                metrics::snapshot_rows(&table, rows);
                let first = self.copy_entry(&table)?;
                epoch.add_chunks(&table, || first, chunks, files, planned);
            }
            Message::Done { table, live_at } => {
                if self.failed.contains(&table) {
                    return Ok(());
                }
                let mut copy = self.copy_entry(&table)?;
                copy.done = true;
                copy.live_at = Some(live_at.clone());
                let entry = epoch.snapshot_mut(&table, || copy.clone());
                entry.done = true;
                entry.live_at = Some(live_at.clone());
                self.copies.insert(table.clone(), copy);
                self.awaiting_live.insert(table, live_at);
            }
            Message::OpenExact {
                table,
                reader,
                reply,
            } => {
                self.exact_requests.push(ExactRequest {
                    table,
                    reader,
                    reply,
                });
            }
            Message::TableFailed { table, error } => self.fail_table(&table, &error, epoch, tail),
            Message::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn copy_entry(&self, table: &TableName) -> Result<SnapshotEntry> {
        let entry = self.copies.get(table).cloned();
        entry.ok_or_else(|| Error::bug(format!("chunks of {table}, which is not being copied")))
    }

    /// Tables whose last chunk's position the tail has passed become live (INV-4).
    fn mark_live(&mut self, epoch: &mut OpenEpoch, tail: &mut dyn Tail) -> Result<()> {
        if self.awaiting_live.is_empty() {
            return Ok(());
        }
        let mut live = Vec::new();
        for (table, at) in &self.awaiting_live {
            if self.parts.source.covers(&epoch.boundary.position, at)? {
                live.push(table.clone());
            }
        }
        for table in live {
            self.awaiting_live.remove(&table);
            let mut copy = self.copy_entry(&table)?;
            copy.live = true;
            self.copies.remove(&table);
            epoch.snapshot_mut(&table, || copy).live = true;
            tail.live(&table);
            self.live.insert(table.clone());
            tracing::info!(%table, "live");
        }
        Ok(())
    }

    fn spawn_workers(
        &self,
        copies: Vec<Arc<Copy>>,
        messages: mpsc::Sender<Message>,
        tasks: &mut JoinSet<()>,
    ) {
        if copies.is_empty() {
            return;
        }
        let s = &self.parts.settings;
        let workers = Arc::new(Workers {
            source: self.parts.source.clone(),
            staging: self.staging.clone(),
            copies,
            buffer_bytes: s.worker_buffer_bytes,
            file_bytes: s.file_bytes,
            file_age: s.max_delay / 2,
            limiter: snapshot::Limiter::new(s.max_source_rows_per_second),
            board: self.parts.board.clone(),
            crash: self.parts.crash.clone(),
            messages,
        });
        for _ in 0..s.workers.max(1) {
            tasks.spawn(workers.clone().work());
        }
    }

    /// Asks the source now and then how far it has got, for the lag, and clears away what
    /// failed attempts left.
    fn spawn_watch(&self, tasks: &mut JoinSet<()>) {
        let source = self.parts.source.clone();
        let board = self.parts.board.clone();
        let mut reached = self.reached.subscribe();
        let every = self.parts.settings.lag_every;
        let (staging, log) = (self.staging.clone(), self.parts.log.clone());
        tasks.spawn(async move {
            let mut caught_up_at = Instant::now();
            let mut coerced: HashMap<&'static str, u64> = HashMap::new();
            loop {
                let asked = Instant::now();
                let at = reached.borrow_and_update().clone();
                match source.progress(&at).await {
                    Ok(p) => {
                        if source.covers(&at, &p.position).unwrap_or(false) {
                            caught_up_at = asked;
                        }
                        // What the source had when it was last covered was in the lake; so the
                        // oldest change that is not cannot be older than that moment.
                        let seconds = asked.duration_since(caught_up_at).as_secs_f64();
                        board.set_lag(Some(p.position), p.lag_bytes, Some(seconds));
                        metrics::lag(Some(seconds), p.lag_bytes);
                        if let Some(retained) = p.retained_bytes {
                            metrics::log_retained(retained);
                        }
                    }
                    Err(error) => tracing::debug!(%error, "the lag cannot be read now"),
                }
                for (reason, total) in source.coerced() {
                    let seen = coerced.entry(reason).or_insert(0);
                    metrics::coerced(reason, total.saturating_sub(*seen));
                    *seen = total;
                }
                let old = staging.expired();
                if !old.is_empty() {
                    let keys: Vec<String> = old.iter().map(|p| log.layout().key(p)).collect();
                    match log.store().delete(&keys).await {
                        Ok(()) => staging.settled(old.iter().map(String::as_str)),
                        Err(error) => tracing::debug!(%error, "old files were not removed"),
                    }
                }
                // A commit makes what was said of the lag untrue.
                tokio::time::sleep(every / 10).await;
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    _ = reached.changed() => {}
                }
            }
        });
    }

    fn publish_tables(&self) {
        for t in &self.state.tables {
            self.parts.board.update_table(TableStatus::from(t));
        }
        self.parts
            .board
            .set_commit(self.state.epoch, self.generation, &self.state.through);
        self.publish_state();
    }

    fn publish_state(&self) {
        let copying = self
            .state
            .tables
            .iter()
            .any(|t| matches!(t.state, TableState::Pending | TableState::Snapshotting));
        self.parts.board.set_state(if copying {
            StreamState::Snapshotting
        } else {
            StreamState::Running
        });
        for state in [
            TableState::Pending,
            TableState::Snapshotting,
            TableState::Live,
            TableState::Errored,
        ] {
            let n = self
                .state
                .tables
                .iter()
                .filter(|t| t.state == state)
                .count();
            metrics::tables(state, n);
        }
    }
}

async fn join(closing: &mut Option<JoinHandle<Result<Committed>>>) -> Result<Committed> {
    let Some(handle) = closing else {
        return std::future::pending().await;
    };
    let done = handle.await;
    *closing = None;
    match done {
        Ok(outcome) => outcome,
        Err(e) => Err(Error::new(Class::Fatal, Kind::Bug, "a commit's task died").caused_by(e)),
    }
}
