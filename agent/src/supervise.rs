//! Runs attempts until the work is done: what an error means is decided here.
//!
//! | class | what happens |
//! |---|---|
//! | retryable | back off with jitter, recover from the lake's head, try again |
//! | data | never comes here: the pipeline makes the table `errored` |
//! | fatal | the run ends with the error |
//!
//! The process takes the stream over once, by a fence; later attempts of the same
//! process go on under the same generation, for nobody else can have written
//! without a fence of their own, which the next commit finds (INV-8).

mod resnapshot;

pub use resnapshot::{no_such_table, resnapshot};

use crate::crash::{self, CrashPoints};
use crate::history;
use crate::metrics;
use crate::pipeline::{Pipeline, Recovered};
use crate::recover::{self, Resume};
use crate::requests::Requests;
use crate::settings::{Settings, SnapshotMode};
use crate::staging::Staging;
use crate::status::{StatusBoard, StreamState};
use backon::{BackoffBuilder, ExponentialBuilder};
use caudal_checkpoints::CheckpointStore;
use caudal_model::{
    Checkpoint, Class, Error, Kind, Position, Result, Rules, Severity, StreamPoint, TableName,
    TableSchema, TableState,
};
use caudal_sinks::{Carried, CommitLog, FileId, Layout, LogEntry};
use caudal_sources::{DiscoveredTable, Source};
use futures::{StreamExt, TryStreamExt};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a stop may take to finish the open commit; less than the ten seconds
/// that a service manager is promised.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// See [`Parts::reread_source`].
pub type RereadSource = Box<dyn Fn() -> Result<Arc<dyn Source>> + Send + Sync>;

/// What a stream is made of.
pub struct Parts {
    /// The database.
    pub source: Arc<dyn Source>,
    /// Makes the source anew, with its secrets read again; `None` where they cannot change.
    pub reread_source: Option<RereadSource>,
    /// The lake.
    pub log: Arc<CommitLog>,
    /// The local cache.
    pub checkpoints: Box<dyn CheckpointStore>,
    /// How to run.
    pub settings: Settings,
    /// What is done to rows on their way.
    pub rules: Arc<Rules>,
    /// Where other processes ask for copies; `None` where nobody can.
    pub requests: Option<Requests>,
    /// What the world sees.
    pub board: StatusBoard,
    /// Where crashes are simulated.
    pub crash: CrashPoints,
}

impl Parts {
    /// The selected tables.
    pub async fn discover(&self) -> Result<Vec<DiscoveredTable>> {
        self.source.discover().await
    }
}

/// When to end by oneself.
#[derive(Debug, Clone, Default)]
pub struct Until {
    /// Once the lake covers what the source had committed when the run began.
    pub caught_up: Option<Position>,
    /// Once every table is copied.
    pub copied: bool,
    /// At this moment in any case.
    pub deadline: Option<Instant>,
}

impl Until {
    /// Whether a tail at `position` has come far enough, all tables being settled.
    pub fn reached_at(&self, source: &dyn Source, position: &Position) -> Result<bool> {
        match &self.caught_up {
            Some(target) => source.covers(position, target),
            None => Ok(self.copied),
        }
    }

    /// Whether the deadline has passed.
    pub fn deadline_passed(&self) -> bool {
        self.deadline.is_some_and(|d| Instant::now() >= d)
    }
}

/// Why a run ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The lake holds what it should.
    CaughtUp,
    /// Somebody asked.
    Stopped,
    /// The deadline passed first.
    DeadlinePassed,
}

/// What a run is asked for.
#[derive(Debug, Clone, Default)]
pub struct Goal {
    /// End once everything that was committed at the start is in the lake.
    pub until_caught_up: bool,
    /// End after this time in any case.
    pub deadline: Option<Duration>,
}

/// What a run leaves behind.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Why it ended.
    pub ending: Ending,
    /// The last commit.
    pub epoch: u64,
    /// How far the lake reaches.
    pub position: Position,
    /// Tables that are `errored`.
    pub errored: Vec<TableName>,
}

/// Runs a stream.
pub async fn run(mut parts: Parts, goal: &Goal, shutdown: &CancellationToken) -> Result<Outcome> {
    let mut run = Run {
        until: Until {
            caught_up: None,
            copied: parts.settings.mode == SnapshotMode::Only,
            deadline: goal.deadline.map(|d| Instant::now() + d),
        },
        until_caught_up: goal.until_caught_up,
        staging: None,
        cleaning: None,
        refused_since: None,
    };
    let builder = backoff(parts.settings.first_pause);
    parts.board.set_stall_after(parts.settings.stall_after);
    let mut pauses = builder.build();
    loop {
        let began = Instant::now();
        let epoch = parts.board.report().epoch;
        let error = match run.attempt_or_stop(&mut parts, shutdown).await {
            Ok(ending) => {
                // Files of copies that were given up, for one.
                let _ = tokio::time::timeout(STOP_WITHIN, run.leave_nothing(&parts)).await;
                run.finish_cleaning().await;
                return run.outcome(&parts, ending);
            }
            Err(e) => e,
        };
        // What worked for a while, or got something done, begins with the shortest pause again.
        let advanced = epoch > 0 && parts.board.report().epoch > epoch;
        if began.elapsed() > LONGEST_PAUSE || advanced {
            run.refused_since = None;
            pauses = builder.build();
        }
        metrics::error(&error);
        if error.class() != Class::Retryable && !run.may_be_rotated(&mut parts, &error) {
            if error.kind() == Kind::Fenced {
                // Every number that this generation could take is taken: the log tells which
                // commits of its stand, also of the one that failed.
                if let Some((staging, _)) = &run.staging {
                    staging.set_in_doubt(false);
                }
                run.leave_nothing(&parts).await;
            }
            parts.board.set_state(StreamState::Failed);
            return Err(error);
        }
        let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
        tracing::warn!(%error, hint = error.hint_text(), ?pause, "trying again");
        parts.board.set_retrying(error.to_string());
        parts.board.set_state(StreamState::Starting);
        let deadline = run.until.deadline;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return run.outcome(&parts, Ending::Stopped),
            () = sleep_until(deadline) => {
                return Err(Error::fatal(Kind::Deadline, "the deadline passed before the stream was caught up")
                    .caused_by(error));
            }
        }
    }
}

/// The longest pause between attempts, without its jitter.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a login may be refused that had worked before: a password that is being changed
/// reaches the server and the agent at different moments.
const ROTATION: Duration = Duration::from_secs(600);

/// Pauses that double from `first` to half a minute, each lengthened by a random part of itself:
/// agents that lost the same server do not come back in step.
fn backoff(first: Duration) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(d) => tokio::time::sleep_until(d).await,
        None => std::future::pending().await,
    }
}

struct Run {
    until: Until,
    until_caught_up: bool,
    /// Set once the process has its generation.
    staging: Option<(Arc<Staging>, u64)>,
    cleaning: Option<tokio::task::JoinHandle<()>>,
    /// Since when something is refused that had been granted.
    refused_since: Option<Instant>,
}

impl Run {
    /// Whether the refusal may be of a password that has changed since it was read: then
    /// the source is made anew with what the secret says now.
    fn may_be_rotated(&mut self, parts: &mut Parts, error: &Error) -> bool {
        let Some(reread) = &parts.reread_source else {
            return false;
        };
        // Before it has ever worked, waiting does not mend it.
        if error.kind() != Kind::Prerequisite || self.staging.is_none() {
            return false;
        }
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        if since.elapsed() > ROTATION {
            return false;
        }
        match reread() {
            Ok(source) => parts.source = source,
            Err(error) => tracing::warn!(%error, "the source's secrets cannot be read again"),
        }
        true
    }

    async fn attempt_or_stop(
        &mut self,
        parts: &mut Parts,
        shutdown: &CancellationToken,
    ) -> Result<Ending> {
        let deadline = self.until.deadline;
        let patience = async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = sleep_until(deadline) => {}
            }
            tokio::time::sleep(STOP_WITHIN).await;
        };
        tokio::select! {
            ending = self.attempt(parts, shutdown) => ending,
            // Dropping an attempt drops its open epoch; nothing of it was committed.
            () = patience => Ok(if shutdown.is_cancelled() { Ending::Stopped } else { Ending::DeadlinePassed }),
        }
    }

    async fn attempt(&mut self, parts: &mut Parts, shutdown: &CancellationToken) -> Result<Ending> {
        // Asked first, so that "when the command started" is true of it.
        if self.until_caught_up && self.until.caught_up.is_none() {
            self.until.caught_up = Some(parts.source.current_position().await?);
        }
        let (state, head) = recover_state(parts).await?;
        if let Some((staging, generation)) = &self.staging {
            self.refuse_foreign(&head, *generation)?;
            self.delete_own_garbage(parts, staging, &head).await;
            if state.is_none() {
                return Err(lost_log(&parts.log));
            }
        }
        let server = server_now(parts, state.as_ref()).await?;
        let (state, staging, generation) = match (&self.staging, state) {
            (Some((staging, generation)), Some(state)) if state.server == server => {
                (state, staging.clone(), *generation)
            }
            // Where another server goes on, a generation begins, whose fence says so.
            (_, state) => self.take_over(parts, state, head, server).await?,
        };
        let recovered = load_schemas(parts, state).await?;
        let outcome = Pipeline::new(parts, staging, generation, recovered)
            .run(&self.until, shutdown)
            .await;
        // A new owner may have moved on since the head was read: then nothing is lost (INV-8).
        if matches!(&outcome, Err(e) if e.kind() == Kind::PositionLost) {
            self.refuse_foreign(&parts.log.head(None).await?, generation)?;
        }
        outcome
    }

    /// Takes a new generation, and has what older ones left behind removed.
    async fn take_over(
        &mut self,
        parts: &mut Parts,
        state: Option<Checkpoint>,
        head: Option<LogEntry>,
        mut server: Option<String>,
    ) -> Result<(Checkpoint, Arc<Staging>, u64)> {
        let found = parts.discover().await?;
        if state.is_none() {
            // Of a stream that runs, a table that turned up and cannot be carried is one
            // `errored` table, and no reason to stop the others.
            refuse_problems(found.iter())?;
        }
        let state = match state {
            Some(state) => state,
            None => {
                if found.is_empty() {
                    return Err(Error::fatal(Kind::Prerequisite, "no table of the source is selected")
                        .hint("`tables.include` takes `schema.table` patterns; `caudal tables` lists what matches"));
                }
                let names: Vec<TableName> = found.iter().map(|t| t.table.clone()).collect();
                let position = parts.source.prepare(&names).await?;
                server = Some(parts.source.identity().await?);
                recover::genesis(StreamPoint { position, seq: 0 })
            }
        };
        let mut state = state;
        let through = state.through.clone();
        // An earlier owner may go on committing until our fence stands.
        let fence = parts
            .log
            .fence(head.as_ref(), through, |newer| {
                for entry in newer {
                    recover::apply(&mut state, entry)?;
                }
                Ok(Carried {
                    server: server.clone(),
                    state: Some(state.tables.clone()),
                })
            })
            .await?;
        parts.crash.reach(crash::FENCED)?;
        let generation = fence.generation();
        state.epoch = fence.epoch();
        state.generation = generation;
        state.server = server;
        parts.checkpoints.replace(&state)?;
        remove_uncommitted_schemas(&parts.log, &state, &found).await?;
        let staging = Staging::new(
            parts.log.clone(),
            generation,
            fence.epoch() + 1,
            parts.settings.files.clone(),
        );
        let staging = Arc::new(staging);
        self.staging = Some((staging.clone(), generation));
        if head.is_some() {
            self.finish_cleaning().await;
            let log = parts.log.clone();
            self.cleaning = Some(tokio::spawn(async move {
                match log.remove_unreferenced().await {
                    Ok(removed) if removed.files + removed.uploads > 0 => tracing::info!(
                        files = removed.files,
                        uploads = removed.uploads,
                        "removed what an earlier agent had not committed"
                    ),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "files of an earlier agent were not removed; the next start tries again")
                    }
                }
            }));
        }
        Ok((state, staging, generation))
    }

    fn refuse_foreign(&self, head: &Option<LogEntry>, generation: u64) -> Result<()> {
        match head {
            Some(h) if h.generation > generation => Err(Error::fatal(
                Kind::Fenced,
                format!(
                    "generation {} has taken the stream over; this agent had {generation}",
                    h.generation
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The new owner has removed what it found when it took over; what this agent
    /// uploaded since is its own to remove.
    async fn leave_nothing(&self, parts: &Parts) {
        let Some((staging, _)) = &self.staging else {
            return;
        };
        if staging.unsettled().is_empty() {
            return;
        }
        match parts.log.head(None).await {
            Ok(head) => self.delete_own_garbage(parts, staging, &head).await,
            Err(error) => tracing::warn!(%error, "uncommitted files were not removed"),
        }
    }

    /// Files of this process's failed attempts that no commit names.
    async fn delete_own_garbage(&self, parts: &Parts, staging: &Staging, head: &Option<LogEntry>) {
        let garbage = staging.unsettled();
        if garbage.is_empty() {
            return;
        }
        match self.remove_uncommitted(parts, &garbage, head).await {
            Ok(()) => staging.deleted(&garbage),
            Err(error) => {
                tracing::warn!(%error, "files of a failed attempt were not removed; the next one tries again");
            }
        }
    }

    /// Deletes those of `paths` that no entry since the oldest of them names. The lost
    /// reply of a commit may have left its files committed.
    async fn remove_uncommitted(
        &self,
        parts: &Parts,
        paths: &[String],
        head: &Option<LogEntry>,
    ) -> Result<()> {
        let Some(head) = head else { return Ok(()) };
        let mut garbage: HashSet<&str> = paths.iter().map(String::as_str).collect();
        let oldest = paths
            .iter()
            .filter_map(|p| FileId::parse(p))
            .map(|id| id.epoch)
            .min();
        for epoch in oldest.unwrap_or(head.epoch)..=head.epoch {
            if let Some(entry) = parts.log.read(epoch).await? {
                for f in entry.tables.iter().flat_map(|t| &t.files) {
                    garbage.remove(f.path.as_str());
                }
            }
        }
        let layout = parts.log.layout();
        let keys: Vec<String> = garbage.into_iter().map(|p| layout.key(p)).collect();
        parts.log.store().delete(&keys).await
    }

    async fn finish_cleaning(&mut self) {
        if let Some(cleaning) = self.cleaning.take() {
            // Only a panic can make it fail, and that has been reported.
            let _ = tokio::time::timeout(STOP_WITHIN, cleaning).await;
        }
    }

    fn outcome(&self, parts: &Parts, ending: Ending) -> Result<Outcome> {
        if ending == Ending::DeadlinePassed {
            parts.board.set_state(StreamState::Stopped);
            return Err(Error::fatal(
                Kind::Deadline,
                "the deadline passed before the stream was caught up",
            )
            .hint("what was committed is in the lake; the next run goes on from there"));
        }
        parts.board.set_state(StreamState::Stopped);
        let report = parts.board.report();
        let errored = report
            .tables
            .iter()
            .filter(|t| t.state == TableState::Errored);
        Ok(Outcome {
            ending,
            epoch: report.epoch,
            position: report.position.unwrap_or_else(|| Position::new("")),
            errored: errored.map(|t| t.table.clone()).collect(),
        })
    }
}

/// Deletes schema versions above the committed ones: a dead generation wrote them, and
/// this one may find other columns. Only right after a fence, for then nobody else can
/// commit a version.
async fn remove_uncommitted_schemas(
    log: &CommitLog,
    state: &Checkpoint,
    found: &[DiscoveredTable],
) -> Result<()> {
    let mut committed: HashMap<&TableName, u32> = found.iter().map(|t| (&t.table, 0)).collect();
    committed.extend(state.tables.iter().map(|t| (&t.table, t.last_version())));
    futures::stream::iter(committed)
        .map(|(table, version)| async move {
            let key = |v| log.layout().key(&Layout::schema(table, v));
            // Versions have no gaps, so one absent version ends them.
            let mut next = version + 1;
            while log.store().get(&key(next)).await?.is_some() {
                log.store().delete(&[key(next)]).await?;
                next += 1;
            }
            Ok::<(), Error>(())
        })
        .buffer_unordered(16)
        .try_collect::<()>()
        .await
}

/// Which server the source is now, and that the stream's position holds there.
async fn server_now(parts: &Parts, state: Option<&Checkpoint>) -> Result<Option<String>> {
    let Some(state) = state else { return Ok(None) };
    let Some(held) = state.server.as_deref() else {
        return parts.source.identity().await.map(Some);
    };
    let now = parts
        .source
        .recognize(held, &state.through.position)
        .await?;
    if now != held {
        tracing::info!(before = held, now, "the stream goes on from another server");
    }
    Ok(Some(now))
}

fn lost_log(log: &CommitLog) -> Error {
    Error::fatal(Kind::Corrupt, format!("the commit log below {} has vanished", log.store().url()))
        .hint("restore `_log/` from the bucket's versions; this agent stops so that nothing is overwritten")
}

fn refuse_problems<'t>(found: impl Iterator<Item = &'t DiscoveredTable>) -> Result<()> {
    let problems: Vec<String> = found
        .flat_map(|t| t.problems.iter().map(move |p| (t, p)))
        .filter(|(_, p)| p.severity == Severity::Error)
        .map(|(t, p)| {
            let subject = p.subject.clone().unwrap_or_else(|| t.table.to_string());
            let mend = p
                .mend
                .as_ref()
                .map(|m| format!(" — {m}"))
                .unwrap_or_default();
            format!("{subject}: {}{mend}", p.reason)
        })
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::fatal(
        Kind::Prerequisite,
        format!("{} selected table(s) or column(s) cannot be carried:\n  {}", problems.len(), problems.join("\n  ")),
    )
    .hint("mend them, or leave them out by `tables.exclude` or `exclude_columns`; `caudal check` lists everything"))
}

/// The state at the lake's head, and the head; RocksDB agrees with it on return (INV-1).
async fn recover_state(parts: &mut Parts) -> Result<(Option<Checkpoint>, Option<LogEntry>)> {
    let checkpoint = parts.checkpoints.load()?;
    let head = parts.log.head(checkpoint.as_ref().map(|c| c.epoch)).await?;
    let at = match (&head, &checkpoint) {
        (Some(h), Some(c)) if c.epoch == h.epoch => Some(h.clone()),
        (Some(h), Some(c)) if c.epoch > 0 && c.epoch < h.epoch => parts.log.read(c.epoch).await?,
        _ => None,
    };
    let mut rebuilt = false;
    let mut state = match recover::plan_resume(head.as_ref(), checkpoint, at.as_ref())? {
        Resume::Fresh => return Ok((None, None)),
        Resume::Checkpoint(state) => *state,
        Resume::Rebuild(why) => {
            tracing::warn!(why, "rebuilding the checkpoint from the lake's log");
            // The head is there: without one the stream is fresh.
            let head = head.as_ref().map_or(0, |h| h.epoch);
            rebuilt = true;
            history::state_at(&parts.log, head).await?
        }
    };
    let Some(head) = head else {
        return Ok((None, None));
    };
    if rebuilt || state.epoch < head.epoch {
        history::advance(&parts.log, &mut state, head.epoch).await?;
        parts.checkpoints.replace(&state)?;
    }
    Ok((Some(state), Some(head)))
}

/// Every committed schema version's newest, from RocksDB or the lake.
async fn load_schemas(parts: &mut Parts, state: Checkpoint) -> Result<Recovered> {
    let mut local: HashMap<(TableName, u32), TableSchema> = HashMap::new();
    for s in parts.checkpoints.schemas()? {
        local.insert((s.table.clone(), s.version), s);
    }
    let wanted = state.tables.iter();
    let wanted = wanted.flat_map(|p| (1..=p.last_version()).map(|v| (p.table.clone(), v)));
    let absent: Vec<_> = wanted.filter(|w| !local.contains_key(w)).collect();
    let log = &parts.log;
    let fetched: Vec<TableSchema> = futures::stream::iter(absent)
        .map(|(table, version)| async move {
            log.read_schema(&table, version).await?.ok_or_else(|| {
                let text = format!("schema version {version} of {table} is missing from the lake");
                Error::fatal(Kind::Corrupt, text)
            })
        })
        .buffer_unordered(16)
        .try_collect()
        .await?;
    for s in fetched {
        parts.checkpoints.put_schema(&s)?;
        local.insert((s.table.clone(), s.version), s);
    }
    let mut schemas = HashMap::new();
    let mut next_column_ids = HashMap::new();
    for p in &state.tables {
        let mut next_id = 1;
        for version in 1..=p.last_version() {
            let Some(schema) = local.remove(&(p.table.clone(), version)) else {
                return Err(Error::bug("a schema version was not fetched"));
            };
            next_id = schema
                .columns
                .iter()
                .map(|c| c.id + 1)
                .max()
                .unwrap_or(1)
                .max(next_id);
            if version == p.schema_version {
                schemas.insert(p.table.clone(), Arc::new(schema));
            }
        }
        next_column_ids.insert(p.table.clone(), next_id);
    }
    Ok(Recovered {
        state,
        schemas,
        next_column_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_half_a_minute_with_jitter() {
        let first = Duration::from_millis(500);
        let runs: Vec<Vec<Duration>> = (0..50)
            .map(|_| backoff(first).build().take(12).collect())
            .collect();
        for pauses in &runs {
            let mut least = first;
            for pause in pauses {
                assert!(*pause >= least && *pause <= least * 2, "{pauses:?}");
                least = (least * 2).min(LONGEST_PAUSE);
            }
        }
        let different: HashSet<Duration> = runs.iter().map(|r| r[0]).collect();
        assert!(different.len() > 25, "no jitter: {different:?}");
    }
}
