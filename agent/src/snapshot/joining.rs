//! Chunks that another process planned: the side of `run --snapshot-worker`.
//!
//! It claims offers ([`caudal_sinks::work`]), reads them with the same [`Workers`] as the
//! agent itself, and reports the files. It writes nothing else: no log entry, no
//! checkpoint. Whatever it has not reported when it dies is read again by somebody else,
//! and its files are removed like those of any dead writer.

use super::sharing::FILES_EACH;
use super::{Base, ChunkSize, Copy, Gate, Message, Pace, Workers};
use crate::crash::CrashPoints;
use crate::latest::newest;
use crate::settings::Settings;
use crate::staging::Staging;
use crate::status::{StatusBoard, StreamState};
use caudal_model::{Chunk, Class, Error, Kind, Result, Rules, TableName, TableState};
use caudal_sinks::work::{Offer, Opened, Report, WorkRound};
use caudal_sinks::{CommitLog, FileEntry};
use caudal_sources::Source;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a round, or what is in it, is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often the owner hears of this process; a fraction of its patience.
const BEAT_EVERY: Duration = Duration::from_secs(4);
/// A table that nothing was offered of for this long has its connections closed.
const IDLE: Duration = Duration::from_secs(30);

/// A process that reads chunks for the agent that owns the stream.
pub struct Joining {
    /// The database.
    pub source: Arc<dyn Source>,
    /// The stream's log.
    pub log: Arc<CommitLog>,
    /// What is done to rows on their way.
    pub rules: Arc<Rules>,
    /// A digest of it, which the owner's must equal.
    pub digest: String,
    /// Chunks are read from a replica, which may be behind what the owner saw.
    pub reads_replica: bool,
    /// How to run.
    pub settings: Settings,
    /// What the world sees.
    pub board: StatusBoard,
    /// Where crashes are simulated.
    pub crash: CrashPoints,
}

/// Why a round was left.
enum Left {
    /// It is over, or its owner has ended this worker.
    Round,
    /// Somebody asked this process to stop, or its time is over.
    Stopped,
    /// Every table is copied.
    Done,
}

/// What this worker has in a round.
struct Desk {
    round: WorkRound,
    worker: u32,
    staging: Arc<Staging>,
    pace: Arc<Pace>,
    messages: mpsc::Sender<Message>,
    tasks: JoinSet<()>,
    copies: HashMap<(TableName, u32, i64), (Arc<Copy>, Instant)>,
    mine: HashMap<u64, (Arc<Copy>, u32)>,
    /// Tables and versions that could not be read here.
    refused: HashSet<(TableName, u32, i64)>,
    next_report: u64,
    beats: u64,
    beaten: Instant,
}

impl Joining {
    /// Reads chunks until every table of the stream is copied, `deadline` passes, or a stop
    /// is asked for.
    ///
    /// Errors: [`Kind::Config`] if the owner's configuration treats rows otherwise;
    /// [`Kind::Deadline`].
    pub async fn run(self, deadline: Option<Instant>, shutdown: &CancellationToken) -> Result<()> {
        let stop = shutdown.child_token();
        let mut pause = LOOK_EVERY;
        loop {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Err(Error::fatal(
                    Kind::Deadline,
                    "the deadline passed before every table was copied",
                ));
            }
            match self.once(deadline, &stop).await {
                Ok(true) => return Ok(()),
                Ok(false) => pause = LOOK_EVERY,
                Err(error) if error.class() == Class::Retryable => {
                    pause = (pause * 2).min(Duration::from_secs(60));
                    tracing::warn!(%error, hint = error.hint_text(), ?pause, "trying again");
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Works in the round that is open; whether there is nothing left to do.
    async fn once(&self, deadline: Option<Instant>, stop: &CancellationToken) -> Result<bool> {
        let Some((round, opened)) = WorkRound::find(&self.log).await? else {
            return self.is_copied().await;
        };
        if opened.rules != self.digest {
            return Err(Error::fatal(
                Kind::Config,
                "the agent of this stream has another [tables] section, or another hash_salt",
            )
            .hint("give every process of a stream the same configuration"));
        }
        let left = self.work(round, &opened, deadline, stop).await?;
        Ok(match left {
            Left::Round => false,
            Left::Stopped => stop.is_cancelled(),
            Left::Done => true,
        })
    }

    /// Whether the lake holds every table, as its log says.
    async fn is_copied(&self) -> Result<bool> {
        let state = newest(&self.log, None).await?;
        Ok(state.is_some_and(|s| {
            let over = |s: TableState| matches!(s, TableState::Live | TableState::Errored);
            !s.tables.is_empty() && s.tables.iter().all(|t| t.ended || over(t.state))
        }))
    }

    async fn work(
        &self,
        round: WorkRound,
        opened: &Opened,
        deadline: Option<Instant>,
        stop: &CancellationToken,
    ) -> Result<Left> {
        let threads = u32::try_from(self.settings.workers).unwrap_or(u32::MAX);
        let worker = round.join(threads).await?;
        tracing::info!(worker, round = round.name(), "reading chunks for the agent");
        self.board.set_state(StreamState::Snapshotting);
        let files = self.settings.files.clone();
        let staging = Staging::new(self.log.clone(), opened.generation, 1, files);
        let (messages, mut inbox) = mpsc::channel(16);
        let mut desk = Desk {
            round,
            worker,
            staging: Arc::new(staging.numbered_from(worker.saturating_mul(FILES_EACH))),
            pace: Arc::new(Pace::new(
                self.settings.workers,
                self.settings.max_source_rows_per_second,
                // The owner offers nothing while its own copies wait.
                Gate::default(),
            )),
            messages,
            tasks: JoinSet::new(),
            copies: HashMap::new(),
            mine: HashMap::new(),
            refused: HashSet::new(),
            next_report: 0,
            beats: 0,
            beaten: Instant::now(),
        };
        let outcome = self
            .serve(&mut desk, &mut inbox, threads, deadline, stop)
            .await;
        desk.tasks.shutdown().await;
        desk.leave(threads, !matches!(outcome, Ok(Left::Round)))
            .await;
        let keys: Vec<String> = desk
            .staging
            .unsettled()
            .iter()
            .map(|p| self.log.layout().key(p))
            .collect();
        if let Err(error) = self.log.store().delete(&keys).await {
            tracing::debug!(%error, "files that nobody wants were not removed");
        }
        outcome
    }

    async fn serve(
        &self,
        desk: &mut Desk,
        inbox: &mut mpsc::Receiver<Message>,
        threads: u32,
        deadline: Option<Instant>,
        stop: &CancellationToken,
    ) -> Result<Left> {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut asked = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Left::Stopped),
                Some(message) = inbox.recv() => {
                    if !desk.take(message).await? {
                        return Ok(Left::Round);
                    }
                    continue;
                }
                _ = tick.tick() => {}
            }
            self.board.touch();
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(Left::Stopped);
            }
            if desk.beaten.elapsed() >= BEAT_EVERY {
                desk.beats += 1;
                desk.round.beat(desk.worker, threads, desk.beats).await?;
                desk.beaten = Instant::now();
            }
            let seen = desk.round.look().await?;
            if !seen.open {
                return Ok(Left::Round);
            }
            // The owner may have died without closing the round.
            if desk.mine.is_empty() && asked.elapsed() >= IDLE / 3 {
                asked = Instant::now();
                if self.is_copied().await? {
                    return Ok(Left::Done);
                }
            }
            for n in seen.offers.difference(&seen.claims) {
                if desk.mine.len() >= 2 * threads as usize {
                    break;
                }
                self.claim(desk, *n, threads).await?;
            }
            desk.retire_idle().await;
        }
    }

    async fn claim(&self, desk: &mut Desk, n: u64, threads: u32) -> Result<()> {
        let Some(offer) = desk.round.read_offer(n).await? else {
            return Ok(());
        };
        let key = key_of(&offer);
        if desk.refused.contains(&key) || !desk.round.claim(n, Some(desk.worker)).await? {
            return Ok(());
        }
        let copy = match desk.copies.get(&key) {
            Some((copy, _)) => copy.clone(),
            None => {
                let copy = self.begin(desk, &offer, threads).await?;
                desk.copies
                    .insert(key.clone(), (copy.clone(), Instant::now()));
                copy
            }
        };
        if let Some((_, at)) = desk.copies.get_mut(&key) {
            *at = Instant::now();
        }
        desk.staging.raise_epoch(offer.epoch);
        desk.mine.insert(n, (copy.clone(), offer.chunk.id));
        copy.feed(offer.chunk).await;
        Ok(())
    }

    /// Begins to read one version of one table.
    async fn begin(&self, desk: &mut Desk, offer: &Offer, threads: u32) -> Result<Arc<Copy>> {
        let schema = self.log.read_schema(&offer.table, offer.schema_version);
        let schema = schema.await?.ok_or_else(|| {
            let text = format!("the schema of {} is not in the lake yet", offer.table);
            Error::retryable(Kind::Store, text)
        })?;
        let base = Base {
            seq: offer.base_seq,
            position: offer.base_position.clone(),
        };
        let size = ChunkSize::first(self.settings.chunks, 0, 0);
        let copy = Arc::new(Copy::fed(Arc::new(schema), base, size, !self.reads_replica));
        let workers = Arc::new(Workers {
            source: self.source.clone(),
            staging: desk.staging.clone(),
            rules: self.rules.clone(),
            copies: vec![copy.clone()],
            buffer_bytes: self.settings.worker_buffer_bytes,
            files: self.settings.copy_files,
            pace: desk.pace.clone(),
            board: self.board.clone(),
            crash: self.crash.clone(),
            messages: desk.messages.clone(),
        });
        for _ in 0..threads {
            desk.tasks.spawn(workers.clone().work());
        }
        Ok(copy)
    }
}

fn key_of(offer: &Offer) -> (TableName, u32, i64) {
    (offer.table.clone(), offer.schema_version, offer.base_seq)
}

impl Desk {
    /// `false` if the owner has ended this worker.
    async fn take(&mut self, message: Message) -> Result<bool> {
        match message {
            Message::Chunks {
                copy,
                chunks,
                files,
                ..
            } => self.report(&copy, &chunks, files).await,
            Message::Drifted { copy, error, .. } | Message::TableFailed { copy, error } => {
                copy.cancel();
                let refused = self.of(&copy);
                let gone: Vec<_> = self
                    .copies
                    .extract_if(|_, (c, _)| Arc::ptr_eq(c, &copy))
                    .map(|(key, _)| key)
                    .collect();
                self.refused.extend(gone);
                self.put(Report {
                    refused,
                    reason: Some(error.to_string()),
                    ..Report::default()
                })
                .await
            }
            Message::Failed(error) => Err(error),
            // A fed copy neither ends nor opens an exact read.
            Message::Done { .. } | Message::OpenExact { .. } => Ok(true),
        }
    }

    async fn report(
        &mut self,
        copy: &Arc<Copy>,
        chunks: &[Chunk],
        files: Vec<FileEntry>,
    ) -> Result<bool> {
        let finished: Vec<u64> = self
            .mine
            .iter()
            .filter(|(_, (c, id))| Arc::ptr_eq(c, copy) && chunks.iter().any(|ch| ch.id == *id))
            .map(|(n, _)| *n)
            .collect();
        let paths: Vec<String> = files.iter().map(|f| f.path.clone()).collect();
        let stands = self
            .put(Report {
                finished,
                files,
                ..Report::default()
            })
            .await?;
        if stands {
            // They are the owner's now.
            self.staging.settled(paths.iter().map(String::as_str));
        }
        Ok(stands)
    }

    async fn put(&mut self, report: Report) -> Result<bool> {
        let stands = self
            .round
            .report(self.worker, self.next_report, &report)
            .await?;
        self.next_report += 1;
        for n in report.finished.iter().chain(&report.refused) {
            self.mine.remove(n);
        }
        Ok(stands)
    }

    fn of(&self, copy: &Arc<Copy>) -> Vec<u64> {
        let mine = self.mine.iter().filter(|(_, (c, _))| Arc::ptr_eq(c, copy));
        mine.map(|(n, _)| *n).collect()
    }

    /// Leaves the round; gives back what was claimed if anybody is there to care.
    async fn leave(&mut self, threads: u32, give_back: bool) {
        let refused: Vec<u64> = self.mine.keys().copied().collect();
        let said = async {
            if give_back && !refused.is_empty() {
                let report = Report {
                    refused,
                    ..Report::default()
                };
                self.put(report).await?;
            }
            self.round.leave(self.worker, threads, self.beats).await
        };
        if let Err(error) = said.await {
            tracing::debug!(%error, "the owner will find out by itself");
        }
    }

    async fn retire_idle(&mut self) {
        let mut idle = Vec::new();
        for (key, (copy, at)) in &self.copies {
            if at.elapsed() >= IDLE && copy.unfinished().await == 0 {
                idle.push(key.clone());
            }
        }
        for key in idle {
            if let Some((copy, _)) = self.copies.remove(&key) {
                copy.cancel();
            }
        }
    }
}
