//! One attempt: from the log's head to the end of the run, or to the first error.
//!
//! A single task owns everything that has an order: it polls the tail, takes the
//! snapshot workers' messages, numbers, seals and applies commits. Uploading and
//! committing one epoch runs beside reading the next. The order of INV-3 is in
//! [`Pipeline::settle`] and nowhere else.

mod copies;
mod renewal;
mod replay;
mod watch;

use crate::crash;
use crate::epoch::{Committed, OpenEpoch};
use crate::metrics;
use crate::recover;
use crate::requests::Requests;
use crate::snapshot::{Base, Copy, Gate, Message, Pace, Shareable, Sharing, Workers};
use crate::staging::Staging;
use crate::status::{StreamState, TableStatus};
use crate::supervise::{Ending, Parts, Until};
use caudal_model::{
    Checkpoint, Class, Error, Kind, Op, Position, Result, TableName, TableProgress, TableSchema,
    TableState,
};
use caudal_sinks::SnapshotEntry;
use caudal_sources::{ChunkReader, Tail, TailEvent};
use renewal::Renewal;
use replay::ReplayWindow;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{self, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use watch::Notice;

/// How long the end of an attempt waits for a commit that is under way.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);

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
    /// Rows and bytes of tables, as far as the source knows.
    estimates: HashMap<TableName, (u64, u64)>,
    /// The copies that workers have; messages of any other are late.
    active: HashMap<TableName, Arc<Copy>>,
    /// Copies that met a table of another shape: what was different, and the position
    /// by which the tail must have told why.
    drifted: HashMap<TableName, (String, Position)>,
    /// Copies whose chunks are complete, and the position that makes them live.
    awaiting_live: HashMap<TableName, Position>,
    /// Tables that became live in this attempt, committed or not.
    live: HashSet<TableName>,
    /// Tables that failed in this attempt, committed or not.
    failed: HashSet<TableName>,
    /// Tables that are selected and exist; others wait until they do.
    carried: HashSet<TableName>,
    /// Tables that leave the stream with a commit that does not stand yet.
    ending: HashSet<TableName>,
    renewal: Renewal,
    /// Requests, and their tables that have not ended yet.
    granting: HashMap<PathBuf, HashSet<TableName>>,
    /// Copies of some rows that were asked for and have not begun.
    partial: Vec<(TableName, String)>,
    /// Every copy that workers were given in this attempt.
    begun: Vec<Arc<Copy>>,
    pace: Arc<Pace>,
    /// What other processes may read, once there is any.
    shareable: Option<Shareable>,
    messages: Option<mpsc::Sender<Message>>,
    tasks: JoinSet<()>,
    exact_requests: Vec<ExactRequest>,
    closing: Option<JoinHandle<Result<Committed>>>,
    epoch_sealed: u64,
    reached: sync::watch::Sender<Position>,
    last_commit: Instant,
    /// What the log has given in this attempt.
    given: u64,
    replay: ReplayWindow,
}

/// What reaches the pipeline from beside the log.
struct Inboxes {
    messages: mpsc::Receiver<Message>,
    notices: mpsc::Receiver<Notice>,
}

struct ExactRequest {
    copy: Arc<Copy>,
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
        let s = &parts.settings;
        let holds = parts.source.keeps_until_acknowledged();
        let window = if holds {
            s.replay_window
        } else {
            Duration::ZERO
        };
        let asked = parts.requests.as_ref().map(Requests::paused);
        let gate = Gate::new(s.budgets.clone(), asked.unwrap_or_default());
        let pace = Arc::new(Pace::new(s.workers, s.max_source_rows_per_second, gate));
        let (reached, _) = sync::watch::channel(recovered.state.through.position.clone());
        Pipeline {
            parts,
            staging,
            generation,
            state: recovered.state,
            schemas: recovered.schemas,
            next_column_ids: recovered.next_column_ids,
            copies: HashMap::new(),
            estimates: HashMap::new(),
            active: HashMap::new(),
            drifted: HashMap::new(),
            awaiting_live: HashMap::new(),
            live: HashSet::new(),
            failed: HashSet::new(),
            carried: HashSet::new(),
            ending: HashSet::new(),
            renewal: Renewal::default(),
            granting: HashMap::new(),
            partial: Vec::new(),
            begun: Vec::new(),
            pace,
            shareable: None,
            messages: None,
            tasks: JoinSet::new(),
            exact_requests: Vec::new(),
            closing: None,
            epoch_sealed,
            reached,
            last_commit: Instant::now(),
            given: 0,
            replay: ReplayWindow::new(window),
        }
    }

    /// Reads, commits and acknowledges until `until` is reached or an error ends it.
    pub async fn run(mut self, until: &Until, shutdown: &CancellationToken) -> Result<Ending> {
        let limit = self.parts.settings.buffer_bytes;
        let rules = self.parts.rules.clone();
        let mut epoch = OpenEpoch::new(self.state.through.clone(), limit, rules);
        self.staging.set_epoch(self.epoch_sealed + 1);
        // Read before the tables are, so that no change of theirs can fall in between.
        let mark = self.parts.source.catalog_mark().await?;
        let discovery = renewal::discover(self.parts.source.clone(), self.held()).await?;
        self.carried = discovery.found.iter().map(|t| t.table.clone()).collect();
        self.number_anew(&mut epoch);
        let copies = self.resume_copies(&discovery.found)?;
        let tracked = self.tracked();
        let from = self.state.through.position.clone();
        let mut tail = self.parts.source.open_tail(&from, tracked).await?;
        // A crash may have come between the commit and its acknowledgement.
        let (log, head) = (self.parts.log.clone(), self.state.epoch);
        self.replay.opened(&log, head, &from, tail.as_mut()).await?;
        self.renewal.settle(Ok(discovery))?;
        self.parts.board.attempt_runs();
        self.publish_tables();
        for copy in &copies {
            self.show_copy(&copy.table);
        }

        let (sender, messages) = mpsc::channel(16);
        self.messages = Some(sender);
        let (noticed, notices) = mpsc::channel(4);
        self.spawn_workers(copies);
        self.spawn_watch(mark, noticed);
        let inboxes = Inboxes { messages, notices };
        let outcome = self
            .pump(&mut epoch, tail.as_mut(), inboxes, until, shutdown)
            .await;
        self.tasks.shutdown().await;
        for copy in &self.begun {
            copy.abandon_file().await;
        }
        if let Some(shareable) = self.shareable.take() {
            let _ = tokio::time::timeout(CLOSE_WITHIN / 6, shareable.close()).await;
        }
        self.finish_closing().await;
        epoch.abandon().await;
        outcome
    }

    /// Whether a commit that is under way stands must be known before anybody deletes the
    /// files that it names.
    async fn finish_closing(&mut self) {
        let Some(mut closing) = self.closing.take() else {
            return;
        };
        if tokio::time::timeout(CLOSE_WITHIN, &mut closing)
            .await
            .is_err()
        {
            closing.abort();
        } else {
            self.staging.set_in_doubt(false);
        }
    }

    async fn pump(
        &mut self,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
        mut inboxes: Inboxes,
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
                Some(message) = inboxes.messages.recv(), if stopping.is_none() => {
                    self.message(message, epoch, tail)?;
                    continue;
                }
                Some(notice) = inboxes.notices.recv(), if stopping.is_none() => {
                    match notice {
                        Notice::Catalog => self.renewal.want(),
                        Notice::Asked(path, request) => self.grant(path, request, epoch, tail),
                        Notice::Stalled(error) => return Err(error),
                    }
                }
                answer = self.renewal.answer() => self.renewal.settle(answer)?,
                event = tail.next(&mut epoch.buffer), if stopping.is_none() || tail.in_transaction() => {
                    let full = matches!(event, Ok(TailEvent::Full));
                    self.event(event?, epoch, tail).await?;
                    // The clock is looked at on ticks; a loaded stream need not ask each time.
                    if !full && !self.is_due(epoch) {
                        continue;
                    }
                }
            }
            let held = epoch.buffer.bytes() + tail.staged_bytes();
            let board = &self.parts.board;
            board.turn((self.given, held), &epoch.boundary.position);
            metrics::memory(held as u64);
            metrics::spilled(tail.spilled_bytes());
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
            if stopping.is_none() {
                self.look_at_drifted(epoch, tail)?;
                self.renew(epoch, tail)?;
                self.begin_partial(epoch)?;
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
            && self.ending.is_empty()
            && self.partial.is_empty()
            && self.renewal.is_idle()
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
            // A new copy waits for it.
            Some(_) if !self.ending.is_empty() => true,
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
        self.staging.set_in_doubt(true);
        self.parts.board.set_committing(true);
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
        self.staging.set_in_doubt(false);
        self.parts.board.set_committing(false);
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
        let through = &done.receipt.through().position;
        self.replay.settled(through, tail);
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
        let entries = || done.receipt.entry().tables.iter();
        self.ended(entries().filter(|t| t.ended).map(|t| t.table.clone()));
        let partial = entries().filter(|t| t.snapshot.as_ref().is_some_and(|s| s.only.is_some()));
        self.granted(partial.map(|t| &t.table));
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
        self.given += 1;
        match event {
            TailEvent::Commit { position, .. } => {
                if epoch.buffer.next_seq() - 1 > epoch.boundary.seq {
                    epoch.touch();
                }
                epoch.set_boundary(position);
            }
            TailEvent::Heartbeat { position } => epoch.set_boundary(position),
            TailEvent::Schema(schema) => self.new_version(schema, epoch, tail),
            TailEvent::TableFailed { table, error } => self.fail_table(&table, &error, epoch, tail),
            TailEvent::Recopy { table, reason } => self.recopy(&table, &reason, epoch, tail),
            TailEvent::Ended { table } => {
                self.end_table(&table, epoch, tail);
                self.renewal.want();
            }
            TailEvent::Catalog => self.renewal.want(),
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
        self.forget_copy(table);
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
                copy,
                chunks,
                files,
                planned,
            } => {
                if !self.is_active(&copy) {
                    let paths: Vec<String> = files.into_iter().map(|f| f.path).collect();
                    self.staging.unwanted(&paths);
                    return Ok(());
                }
                let rows = files.iter().map(|f| f.rows).sum();
                metrics::snapshot_rows(&copy.table, rows);
                metrics::snapshot_bytes(&copy.table, files.iter().map(|f| f.bytes).sum());
                let first = self.copy_entry(&copy.table)?;
                epoch.add_chunks(&copy.table, || first, chunks, files, planned);
            }
            Message::Done { copy, live_at } => {
                if !self.is_active(&copy) {
                    return Ok(());
                }
                self.active.remove(&copy.table);
                self.parts.board.end_reading(&copy.table);
                let mut entry = self.copy_entry(&copy.table)?;
                entry.done = true;
                entry.live_at = Some(live_at.clone());
                let part = epoch.snapshot_mut(&copy.table, || entry.clone());
                part.done = true;
                part.live_at = Some(live_at.clone());
                self.copies.insert(copy.table.clone(), entry);
                self.awaiting_live.insert(copy.table.clone(), live_at);
            }
            Message::OpenExact {
                copy,
                reader,
                reply,
            } => {
                // Without an answer, the worker finds that its copy was cancelled.
                if self.is_active(&copy) {
                    self.exact_requests.push(ExactRequest {
                        copy,
                        reader,
                        reply,
                    });
                }
            }
            Message::TableFailed { copy, error } => {
                if self.is_active(&copy) && error.kind() == Kind::Drift {
                    self.recopy(&copy.table, &error.to_string(), epoch, tail);
                } else if self.is_active(&copy) {
                    self.fail_table(&copy.table, &error, epoch, tail);
                }
            }
            Message::Drifted {
                copy,
                version,
                error,
                at,
            } => {
                let newer = self
                    .schemas
                    .get(&copy.table)
                    .filter(|s| s.version > version);
                match newer {
                    _ if !self.is_active(&copy) => {}
                    Some(schema) => copy.go_on(schema.clone()),
                    None => {
                        self.drifted
                            .insert(copy.table.clone(), (error.to_string(), at));
                    }
                }
            }
            Message::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn is_active(&self, copy: &Arc<Copy>) -> bool {
        let active = self.active.get(&copy.table);
        active.is_some_and(|a| Arc::ptr_eq(a, copy))
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

    fn spawn_workers(&mut self, copies: Vec<Arc<Copy>>) {
        let Some(messages) = self.messages.clone().filter(|_| !copies.is_empty()) else {
            return;
        };
        self.begun.extend(copies.iter().cloned());
        let s = &self.parts.settings;
        let workers = Arc::new(Workers {
            source: self.parts.source.clone(),
            staging: self.staging.clone(),
            rules: self.parts.rules.clone(),
            copies,
            buffer_bytes: s.worker_buffer_bytes,
            files: s.copy_files,
            pace: self.pace.clone(),
            board: self.parts.board.clone(),
            crash: self.parts.crash.clone(),
            messages,
        });
        for _ in 0..s.workers.max(1) {
            self.tasks.spawn(workers.clone().work());
        }
        self.share(workers);
    }

    /// Lets other processes read chunks of these tables too.
    fn share(&mut self, workers: Arc<Workers>) {
        let Some(rules) = self.parts.settings.share.clone() else {
            return;
        };
        let first = self.shareable.is_none();
        let shareable = self.shareable.get_or_insert_default().clone();
        shareable.add(workers);
        if first {
            let sharing = Sharing {
                log: self.parts.log.clone(),
                staging: self.staging.clone(),
                generation: self.generation,
                rules,
                shareable,
            };
            self.tasks.spawn(sharing.run());
        }
    }

    fn publish_tables(&self) {
        for t in self.state.tables.iter().filter(|t| !t.ended) {
            self.parts.board.update_table(TableStatus::from(t));
        }
        self.parts
            .board
            .set_commit(self.state.epoch, self.generation, &self.state.through);
        self.publish_state();
    }

    fn publish_state(&self) {
        let tables = || self.state.tables.iter().filter(|t| !t.ended);
        let copying =
            tables().any(|t| matches!(t.state, TableState::Pending | TableState::Snapshotting));
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
            let n = tables().filter(|t| t.state == state).count();
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
