//! Chunks that other processes read: the side of the agent that owns the stream.
//!
//! It plans as a worker does and offers what it planned ([`caudal_sinks::work`]); what
//! comes back goes to the pipeline as if a worker of this process had read it. A chunk
//! that is offered counts as under way until its report is here, or its worker is ended,
//! or the offer is taken back: so nothing is read twice at a time and nothing is left out.
//! A base is offered only when this process has seen that it is visible (INV-5).

use super::files::Complete;
use super::{Copy, Job, Stop, Workers};
use crate::staging::Staging;
use caudal_model::{Error, Result, TableName};
use caudal_sinks::CommitLog;
use caudal_sinks::work::{Offer, Report, Seen, WorkRound};
use caudal_sources::ChunkReader;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How often the round is looked at while nobody else works…
const LOOK_ALONE: Duration = Duration::from_secs(5);
/// …and while somebody does.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A worker without a sign of life for this long is ended.
const LEASE: Duration = Duration::from_secs(20);
/// An offer that nobody has claimed for this long is taken back.
const UNCLAIMED: Duration = Duration::from_secs(10);
/// File numbers of one worker; the owner's own are below.
pub(super) const FILES_EACH: u32 = 1_000_000;
/// Tables are shared once so many chunks are planned: smaller ones are not worth it.
const WORTH_CHUNKS: u32 = 4;

/// The workers whose tables may be shared, as they are begun.
#[derive(Clone, Default)]
pub struct Shareable(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    sets: Vec<Arc<Workers>>,
    round: Option<WorkRound>,
}

impl Shareable {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More tables to be copied.
    pub fn add(&self, workers: Arc<Workers>) {
        self.inner().sets.push(workers);
    }

    /// Removes what a [`Sharing`] that was aborted has left, so that nobody works in vain.
    pub async fn close(&self) {
        let round = self.inner().round.take();
        if let Some(round) = round
            && let Err(error) = round.close().await
        {
            tracing::debug!(%error, "shared work was not removed; the next attempt does it");
        }
    }
}

/// Shares the chunks of an attempt's copies.
pub struct Sharing {
    /// The stream's log, whose store holds what is shared.
    pub log: Arc<CommitLog>,
    /// Names of files.
    pub staging: Arc<Staging>,
    /// This agent's generation.
    pub generation: u64,
    /// What other processes' configuration must agree with.
    pub rules: String,
    /// What may be shared.
    pub shareable: Shareable,
}

/// Another process that reads chunks.
struct Helper {
    beat: u64,
    threads: u32,
    heard: Instant,
    /// Its next report's number.
    next: u64,
    ended: bool,
    /// Paths of the files that it reported.
    reported: HashSet<String>,
}

struct Offered {
    workers: Arc<Workers>,
    job: Job,
    since: Instant,
    holder: Option<u32>,
}

struct Open {
    round: WorkRound,
    helpers: BTreeMap<u32, Helper>,
    offered: HashMap<u64, Offered>,
    next_offer: u64,
    reader: Option<Box<dyn ChunkReader>>,
    /// Copies that a helper could not go on with.
    unshared: Vec<Arc<Copy>>,
}

impl Sharing {
    /// Runs until it is aborted; errors of the store are tried again.
    pub async fn run(self) {
        self.staging.nothing_shared();
        let mut open: Option<Open> = None;
        loop {
            let pause = match self.step(&mut open).await {
                Ok(pause) => pause,
                Err(Stop::Gone) => return,
                Err(Stop::Unwanted) => LOOK_EVERY,
                Err(Stop::Retry(error) | Stop::Fail(error)) => {
                    tracing::warn!(%error, "work cannot be shared now");
                    if let Some(open) = &mut open {
                        open.reader = None;
                    }
                    LOOK_ALONE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn step(&self, open: &mut Option<Open>) -> Result<Duration, Stop> {
        let mut sets = Vec::new();
        let all = self.shareable.inner().sets.clone();
        for workers in all {
            if workers.has_shareable().await {
                sets.push(workers);
            }
        }
        if sets.is_empty() && open.as_ref().is_none_or(|o| o.offered.is_empty()) {
            if let Some(open) = open.take() {
                open.round.close().await?;
                self.shareable.inner().round = None;
            }
            return Ok(LOOK_EVERY);
        }
        let open = match open {
            Some(open) => open,
            None => {
                let now = super::now_us();
                let round = WorkRound::open(&self.log, self.generation, now, &self.rules).await?;
                self.shareable.inner().round = Some(round.clone());
                open.insert(Open {
                    round,
                    helpers: BTreeMap::new(),
                    offered: HashMap::new(),
                    next_offer: 1,
                    reader: None,
                    unshared: Vec::new(),
                })
            }
        };
        let seen = open.round.look().await?;
        open.hear(&seen);
        self.read_reports(open, &seen).await?;
        self.end_the_silent(open).await?;
        self.follow_claims(open, &seen).await?;
        let threads = open.threads();
        if threads > 0 {
            self.offer(open, &sets, threads).await?;
        }
        self.take_back(open, threads == 0).await?;
        Ok(match threads {
            0 => LOOK_ALONE,
            _ => LOOK_EVERY,
        })
    }

    async fn read_reports(&self, open: &mut Open, seen: &Seen) -> Result<(), Stop> {
        for (k, count) in &seen.reports {
            while let Some(next) = open.next_report(*k).filter(|n| n < count) {
                let Some(report) = open.round.read_report(*k, next).await? else {
                    break;
                };
                self.accept(open, *k, report).await?;
            }
        }
        Ok(())
    }

    async fn accept(&self, open: &mut Open, k: u32, report: Report) -> Result<(), Stop> {
        if let Some(helper) = open.helpers.get_mut(&k) {
            helper.next += 1;
            let paths = report.files.iter().map(|f| f.path.clone());
            helper.reported.extend(paths);
        }
        if let Some(reason) = &report.reason {
            tracing::warn!(worker = k, reason, "a snapshot worker gives chunks back");
        }
        for n in &report.refused {
            if let Some(offered) = open.offered.remove(n) {
                if report.reason.is_some() {
                    open.unshared.push(offered.job.copy.clone());
                }
                self.give_back(*n, offered).await;
                forget(&open.round, *n).await;
            }
        }
        let mut done = Complete::default();
        let mut whose = None;
        let paths = || report.files.iter().map(|f| f.path.as_str());
        for n in &report.finished {
            // What an ended worker reports is never read, so the offer is there.
            let Some(offered) = open.offered.remove(n) else {
                return Err(Stop::Fail(Error::bug(format!(
                    "worker {k} reported chunk offer {n}, which was not its own"
                ))));
            };
            self.staging.returned(*n, paths());
            done.chunks.push(offered.job.chunk);
            whose = Some((offered.workers, offered.job.copy));
        }
        if let Some((workers, copy)) = whose {
            let rows = report.files.iter().map(|f| f.rows).sum();
            workers.board.add_copied_rows(&copy.table, rows);
            done.files = report.files;
            workers.report(&copy, done).await?;
        }
        for n in &report.finished {
            forget(&open.round, *n).await;
        }
        Ok(())
    }

    /// Ends workers that have not been heard of, and reads their chunks again.
    async fn end_the_silent(&self, open: &mut Open) -> Result<(), Stop> {
        let silent: Vec<u32> = open
            .helpers
            .iter()
            .filter(|(_, h)| !h.ended && h.heard.elapsed() >= LEASE)
            .map(|(k, _)| *k)
            .collect();
        for k in silent {
            while let Some(next) = open.next_report(k) {
                match open.round.revoke(k, next).await? {
                    // It was faster.
                    Some(report) => self.accept(open, k, report).await?,
                    None => break,
                }
            }
            tracing::warn!(
                worker = k,
                "a snapshot worker is gone; its chunks are read again"
            );
            let mut reported = HashSet::new();
            if let Some(helper) = open.helpers.get_mut(&k) {
                helper.ended = true;
                reported = std::mem::take(&mut helper.reported);
            }
            let tables: BTreeSet<TableName> = open
                .offered
                .values()
                .filter(|o| o.holder == Some(k))
                .map(|o| o.job.copy.table.clone())
                .collect();
            self.free(open, k).await;
            // Nobody looks for them later: the next generation begins where this one stands.
            let numbers =
                k.saturating_mul(FILES_EACH)..k.saturating_add(1).saturating_mul(FILES_EACH);
            for table in &tables {
                self.log
                    .remove_numbered(table, self.generation, &numbers, &reported)
                    .await?;
            }
        }
        Ok(())
    }

    /// Gives back what an ended worker had claimed.
    async fn free(&self, open: &mut Open, k: u32) {
        let held: Vec<u64> = open
            .offered
            .iter()
            .filter(|(_, o)| o.holder == Some(k))
            .map(|(n, _)| *n)
            .collect();
        for n in held {
            if let Some(offered) = open.offered.remove(&n) {
                self.give_back(n, offered).await;
            }
            forget(&open.round, n).await;
        }
    }

    async fn follow_claims(&self, open: &mut Open, seen: &Seen) -> Result<(), Stop> {
        for n in &seen.claims {
            if open.offered.get(n).is_some_and(|o| o.holder.is_none())
                && let Some(claim) = open.round.read_claim(*n).await?
                && let Some(offered) = open.offered.get_mut(n)
            {
                offered.holder = claim.worker;
                // It may not know yet that it was ended.
                if let Some(k) = claim.worker
                    && open.helpers.get(&k).is_none_or(|h| h.ended)
                {
                    self.free(open, k).await;
                }
            }
        }
        Ok(())
    }

    async fn offer(
        &self,
        open: &mut Open,
        sets: &[Arc<Workers>],
        threads: usize,
    ) -> Result<(), Stop> {
        while open.unclaimed().count() < threads {
            let mut found = None;
            for workers in sets {
                let shared = |copy: &Arc<Copy>| {
                    copy.has_key
                        && copy.only.is_none()
                        && !open.unshared.iter().any(|u| Arc::ptr_eq(u, copy))
                };
                if let Some(job) = workers
                    .next_shared_job(&mut open.reader, &shared, WORTH_CHUNKS)
                    .await?
                {
                    found = Some((workers, job));
                    break;
                }
            }
            let Some((workers, job)) = found else {
                return Ok(());
            };
            let n = open.next_offer;
            open.next_offer += 1;
            let offer = self.describe(n, &job);
            open.offered.insert(
                n,
                Offered {
                    workers: workers.clone(),
                    job,
                    since: Instant::now(),
                    holder: None,
                },
            );
            // Whether or not the reply comes, the offer may be there, and is taken back in time.
            match offer {
                Ok((schema, offer)) => {
                    self.log.put_schema(&schema).await?;
                    open.round.offer(n, &offer).await?;
                }
                Err(e) => return Err(Stop::Fail(e)),
            }
        }
        Ok(())
    }

    fn describe(&self, n: u64, job: &Job) -> Result<(Arc<caudal_model::TableSchema>, Offer)> {
        let base = job
            .copy
            .base
            .get()
            .ok_or_else(|| Error::bug("a chunk without a base was offered"))?;
        let offer = Offer {
            table: job.copy.table.clone(),
            schema_version: job.schema.version,
            base_seq: base.seq,
            base_position: base.position.clone(),
            chunk: job.chunk.clone(),
            epoch: self.staging.share(n),
        };
        Ok((job.schema.clone(), offer))
    }

    /// Takes back what nobody wants, or (`all`) nobody is there to claim.
    async fn take_back(&self, open: &mut Open, all: bool) -> Result<(), Stop> {
        let old = open.unclaimed();
        let old: Vec<u64> = old
            .filter(|(_, o)| all || o.since.elapsed() >= UNCLAIMED)
            .map(|(n, _)| *n)
            .collect();
        for n in old {
            if open.round.claim(n, None).await?
                && let Some(offered) = open.offered.remove(&n)
            {
                self.give_back(n, offered).await;
                forget(&open.round, n).await;
            }
        }
        Ok(())
    }

    async fn give_back(&self, n: u64, offered: Offered) {
        self.staging.returned(n, std::iter::empty());
        let copy = offered.job.copy;
        offered
            .workers
            .give_back(&copy, vec![offered.job.chunk])
            .await;
    }
}

/// What stays goes with the round.
async fn forget(round: &WorkRound, n: u64) {
    if let Err(error) = round.forget(n).await {
        tracing::debug!(%error, "an offer was not removed");
    }
}

impl Open {
    fn hear(&mut self, seen: &Seen) {
        for (k, (beat, threads)) in &seen.workers {
            let helper = self.helpers.entry(*k).or_insert_with(|| {
                tracing::info!(worker = k, threads, "a snapshot worker has come");
                Helper {
                    beat: *beat,
                    threads: *threads,
                    heard: Instant::now(),
                    next: 0,
                    ended: false,
                    reported: HashSet::new(),
                }
            });
            if helper.beat != *beat {
                helper.beat = *beat;
                helper.heard = Instant::now();
            }
        }
    }

    fn next_report(&self, k: u32) -> Option<u64> {
        self.helpers.get(&k).filter(|h| !h.ended).map(|h| h.next)
    }

    /// Chunks that living workers read at a time.
    fn threads(&self) -> usize {
        let living = self.helpers.values().filter(|h| !h.ended);
        living.map(|h| h.threads as usize).sum()
    }

    fn unclaimed(&self) -> impl Iterator<Item = (&u64, &Offered)> {
        self.offered.iter().filter(|(_, o)| o.holder.is_none())
    }
}
