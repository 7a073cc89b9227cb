//! One life: rounds of agents that die, and a last one that must set everything right.

use crate::lake;
use async_trait::async_trait;
use caudal::crash::CrashPoints;
use caudal::rewind::{Rewinding, Target};
use caudal::settings::{OnChange, Order, Settings, SnapshotMode};
use caudal::snapshot::{Budgets, FileLimits, SizeLimits};
use caudal::status::StatusBoard;
use caudal::supervise::{self, Goal, Outcome, Parts};
use caudal_model::{Error, Kind, Result, TableName};
use caudal_sinks::store::memory::StoreHook;
use caudal_sinks::{Codec, CommitLog, Fault, MemoryStore, Operation, WriterOptions};
use caudal_sources::filter::FilterSyntax;
use caudal_sources::scripted::{Change, Row, Script};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What went on, to see that enough went wrong.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Commits in the lake at the end.
    pub commits: u64,
    /// Simulated crashes.
    pub crashes: u64,
    /// Agents that found the stream taken over.
    pub fenced: u64,
    /// Times that checkpoints vanished.
    pub rebuilds: u64,
    /// Faults of the store, replies lost included.
    pub store_faults: u64,
    /// Source transactions.
    pub transactions: u64,
    /// Tables rewritten, dropped and created again.
    pub schema_changes: u64,
    /// Rewinds that stand.
    pub rewinds: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, o: Tally) {
        self.commits += o.commits;
        self.crashes += o.crashes;
        self.fenced += o.fenced;
        self.rebuilds += o.rebuilds;
        self.store_faults += o.store_faults;
        self.transactions += o.transactions;
        self.schema_changes += o.schema_changes;
        self.rewinds += o.rewinds;
    }
}

type Dice = Arc<Mutex<StdRng>>;

fn chance(dice: &Dice, one_in: u32) -> bool {
    dice.lock().unwrap().random_ratio(1, one_in)
}

/// Lives one life, and panics if an invariant breaks.
pub fn live(seed: u64) -> Tally {
    simulated(seed, |life| life.run())
}

/// A scheduler's week: a run until it is caught up every five minutes.
pub fn week(seed: u64) -> Tally {
    simulated(seed, |life| life.week())
}

fn simulated<F: Future<Output = Tally>>(seed: u64, live: impl FnOnce(Life) -> F) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let agents = tokio::task::LocalSet::new();
        runtime.block_on(agents.run_until(live(Life::new(seed))))
    }));
    outcome.unwrap_or_else(|e| {
        eprintln!(
            "the life of seed {seed} went wrong: CAUDAL_SIM_SEEDS={seed}..{}",
            seed + 1
        );
        std::panic::resume_unwind(e)
    })
}

struct Faulty {
    dice: Dice,
    one_in: u32,
    faults: Arc<AtomicU64>,
    /// The agent's process is gone: what its tasks still try does not reach the store.
    dead: Arc<AtomicBool>,
    /// Requests that do not reach the store, for the network between is split.
    cut_off: AtomicU32,
}

#[async_trait]
impl StoreHook for Faulty {
    async fn before(&self, _operation: &Operation) -> Fault {
        let (pause, kind) = {
            let mut dice = self.dice.lock().unwrap();
            let mut pause = dice.random_range(0..4);
            // Rarely a store stands still for so long that others give up waiting for it.
            if dice.random_ratio(1, 500) {
                pause = dice.random_range(10_000..120_000);
            }
            // Or nothing reaches it for a while.
            if self.cut_off.load(Ordering::Relaxed) == 0 && dice.random_ratio(1, 300) {
                self.cut_off
                    .store(dice.random_range(1..25), Ordering::Relaxed);
            }
            let kind = if dice.random_ratio(1, self.one_in) {
                dice.random_range(1..3)
            } else {
                0
            };
            (pause, kind)
        };
        if pause > 0 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        if self.dead.load(Ordering::Relaxed) {
            return Fault::Fail;
        }
        if self.cut_off.load(Ordering::Relaxed) > 0 {
            self.cut_off.fetch_sub(1, Ordering::Relaxed);
            self.faults.fetch_add(1, Ordering::Relaxed);
            return Fault::Fail;
        }
        match kind {
            0 => return Fault::None,
            1 => self.faults.fetch_add(1, Ordering::Relaxed),
            _ => {
                self.faults.fetch_add(1, Ordering::Relaxed);
                return Fault::LoseReply;
            }
        };
        Fault::Fail
    }
}

struct Life {
    seed: u64,
    dice: Dice,
    tables: BTreeMap<TableName, bool>,
    script: Script,
    lake: MemoryStore,
    checkpoints: caudal_checkpoints::MemoryStore,
    model: BTreeMap<TableName, Vec<Row>>,
    next_id: i64,
    /// Two agents ran at once, or one was rewound under.
    rivals: bool,
    /// Where it is not zero, the source keeps everything, and the stream is rewound.
    replay_window: Duration,
    tally: Tally,
}

impl Life {
    fn new(seed: u64) -> Self {
        let dice = StdRng::seed_from_u64(seed);
        let tables: BTreeMap<TableName, bool> = [("a", true), ("b", true), ("heap", false)]
            .map(|(name, keyed)| (TableName::new("s", name), keyed))
            .into();
        let script = Script::new(tables.clone());
        let mut life = Life {
            seed,
            dice: Arc::new(Mutex::new(dice)),
            model: tables.keys().map(|t| (t.clone(), Vec::new())).collect(),
            tables,
            script,
            lake: MemoryStore::new(),
            checkpoints: caudal_checkpoints::MemoryStore::new(),
            next_id: 1,
            rivals: false,
            replay_window: Duration::ZERO,
            tally: Tally::default(),
        };
        if chance(&life.dice, 3) {
            life.replay_window = Duration::from_secs(86_400);
        }
        for _ in 0..life.roll(0..20) {
            life.transaction();
        }
        life.script.reveal(u64::MAX / 2);
        life
    }

    fn roll(&self, range: std::ops::Range<u64>) -> u64 {
        self.dice.lock().unwrap().random_range(range)
    }

    fn chunk_sizes(&self) -> SizeLimits {
        SizeLimits {
            first_rows: self.roll(1..8),
            most_rows: self.roll(1..12),
            target: Duration::from_millis(self.roll(1..20)),
        }
    }

    fn file_limits(&self) -> FileLimits {
        FileLimits {
            file_bytes: self.roll(100..20_000) as usize,
            file_age: Duration::from_millis(self.roll(1..40)),
            group_bytes: self.roll(50..4000) as usize,
            held_bytes: self.roll(100..4000) as usize,
        }
    }

    /// Commits one random transaction at the source.
    fn transaction(&mut self) {
        let mut dice = self.dice.lock().unwrap();
        let mut changes = Vec::new();
        let size = if dice.random_ratio(1, 12) {
            40
        } else {
            dice.random_range(1..5)
        };
        for _ in 0..size {
            let at = dice.random_range(0..self.tables.len());
            let (table, keyed) = self.tables.iter().nth(at).unwrap();
            if dice.random_ratio(1, 60) || !self.model.contains_key(table) {
                let several = self.model.len() > 1;
                let change = match self.model.get_mut(table) {
                    None => {
                        self.model.insert(table.clone(), Vec::new());
                        Change::Create(table.clone())
                    }
                    // A stream that selects nothing does not start.
                    Some(_) if several && dice.random_ratio(1, 3) => {
                        self.model.remove(table);
                        Change::Drop(table.clone())
                    }
                    Some(rows) => {
                        rows.iter_mut().for_each(|r| r.value += 100);
                        Change::Rewrite(table.clone())
                    }
                };
                changes.push(change);
                self.tally.schema_changes += 1;
                continue;
            }
            let rows = self.model.get_mut(table).unwrap();
            let value = dice.random_range(0..5);
            let big = dice.random_range(0..3);
            let kind = dice.random_range(0..20);
            if rows.is_empty() || kind < 8 {
                // Deleted keys come back now and then.
                let back = *keyed && dice.random_ratio(1, 3);
                let mut id = if back {
                    dice.random_range(1..=self.next_id)
                } else {
                    self.next_id
                };
                if *keyed && rows.iter().any(|r| r.id == id) {
                    id = self.next_id;
                }
                self.next_id = self.next_id.max(id) + 1;
                let row = Row { id, value, big };
                rows.push(row);
                changes.push(Change::Insert(table.clone(), row));
                continue;
            }
            let at = dice.random_range(0..rows.len());
            let old = rows[at];
            match kind {
                8..13 => {
                    let big = if dice.random_ratio(1, 2) {
                        old.big
                    } else {
                        big
                    };
                    let new = Row {
                        id: old.id,
                        value,
                        big,
                    };
                    rows[at] = new;
                    changes.push(Change::Update(table.clone(), old, new));
                }
                13..15 => {
                    let new = Row {
                        id: self.next_id,
                        value,
                        big: old.big,
                    };
                    self.next_id += 1;
                    rows[at] = new;
                    changes.push(Change::Update(table.clone(), old, new));
                }
                19 if dice.random_ratio(1, 6) => {
                    rows.clear();
                    changes.push(Change::Truncate(table.clone()));
                }
                _ => {
                    rows.swap_remove(at);
                    changes.push(Change::Delete(table.clone(), old));
                }
            }
        }
        drop(dice);
        self.script.commit(changes);
        self.tally.transactions += 1;
    }

    fn parts(
        &self,
        store: MemoryStore,
        checkpoints: caudal_checkpoints::MemoryStore,
        crash: CrashPoints,
    ) -> Parts {
        let store: Arc<dyn caudal_sinks::Store> = Arc::new(store);
        let files = WriterOptions {
            compression: Codec::None,
            ..WriterOptions::default()
        };
        Parts {
            source: Arc::new(self.script.clone()),
            log: Arc::new(CommitLog::new(store, "sim")),
            reread_source: None,
            checkpoints: Box::new(checkpoints),
            settings: Settings {
                mode: SnapshotMode::Initial,
                on_change: OnChange::Evolve,
                workers: 2,
                max_source_rows_per_second: 0,
                order: Order::Smallest,
                budgets: Budgets::default(),
                warn_retained_log: 0,
                filter_syntax: FilterSyntax::Standard,
                max_delay: Duration::from_millis(self.roll(1..40)),
                max_bytes: self.roll(50..4000) as usize,
                buffer_bytes: self.roll(50..2000) as usize,
                chunks: self.chunk_sizes(),
                share: None,
                worker_buffer_bytes: self.roll(50..2000) as usize,
                copy_files: self.file_limits(),
                replay_window: self.replay_window,
                idle_commit: Duration::from_millis(200),
                lag_every: Duration::from_secs(1),
                stall_after: Duration::from_secs(60),
                reopen_after: Duration::from_secs(600),
                first_pause: Duration::from_millis(5),
                tick: Duration::from_millis(2),
                files,
            },
            rules: Arc::default(),
            requests: None,
            board: StatusBoard::new("sim", "scripted"),
            crash,
        }
    }

    fn crash_points(&self, one_in: u32, dead: Arc<AtomicBool>) -> CrashPoints {
        let dice = self.dice.clone();
        CrashPoints::hook(move |_| {
            let dies = chance(&dice, one_in);
            dead.fetch_or(dies, Ordering::Relaxed);
            dies
        })
    }

    /// Every five minutes for seven days. Some runs have nothing to do, some die, some are
    /// stopped, some are overtaken by the next one.
    async fn week(mut self) -> Tally {
        // One commit a run, and room for what a run takes.
        self.replay_window = Duration::ZERO;
        let (mut settled, mut idle) = (false, 0);
        for call in 0..7 * 24 * 12 {
            tokio::time::sleep(Duration::from_secs(300)).await;
            let news = self.roll(0..2) * self.roll(0..4);
            for _ in 0..news {
                self.transaction();
            }
            self.script.reveal(u64::MAX / 2);
            let files = self.data_files();
            let calls = if self.roll(0..40) == 0 { 2 } else { 1 };
            let mut runs = Vec::new();
            for overlapping in 0..calls {
                let dead = Arc::new(AtomicBool::new(false));
                let crash = match self.roll(0..8) {
                    0 => self.crash_points(10, dead.clone()),
                    _ => CrashPoints::none(),
                };
                let faulty = Faulty {
                    dice: self.dice.clone(),
                    one_in: 400,
                    faults: Arc::default(),
                    dead: dead.clone(),
                    cut_off: AtomicU32::new(0),
                };
                // Each call of a scheduler may be on another machine.
                let checkpoints = match overlapping {
                    0 if self.roll(0..20) > 0 => self.checkpoints.clone(),
                    _ => caudal_checkpoints::MemoryStore::new(),
                };
                let parts = self.parts(self.lake.with_hook(Arc::new(faulty)), checkpoints, crash);
                let goal = Goal {
                    until_caught_up: true,
                    deadline: Some(Duration::from_secs(240)),
                };
                let stop = CancellationToken::new();
                if self.roll(0..30) == 0 {
                    let (stop, after) = (stop.clone(), self.roll(1..60));
                    tokio::task::spawn_local(async move {
                        tokio::time::sleep(Duration::from_millis(after)).await;
                        stop.cancel();
                    });
                }
                self.rivals |= overlapping > 0;
                runs.push(tokio::task::spawn_local(async move {
                    let outcome = supervise::run(parts, &goal, &stop).await;
                    dead.store(true, Ordering::Relaxed);
                    outcome
                }));
            }
            let mut caught_up = true;
            for run in runs {
                let ended = run.await;
                let well = matches!(&ended, Ok(Ok(o)) if o.ending == supervise::Ending::CaughtUp);
                caught_up &= well;
                if !matches!(&ended, Ok(Err(e)) if e.kind() == Kind::Deadline) {
                    self.note(ended);
                }
            }
            if settled && news == 0 && caught_up {
                idle += 1;
                // It may remove what an earlier one had left.
                assert!(self.data_files() <= files, "an idle run wrote files");
            }
            settled = caught_up && calls == 1;
            if call % 200 == 0 {
                self.examine();
            }
        }
        assert!(idle > 500, "{idle} idle runs");
        self.run().await
    }

    /// The Parquet files of the lake, committed or not.
    fn data_files(&self) -> usize {
        let objects = self.lake.objects();
        objects.keys().filter(|k| k.ends_with(".parquet")).count()
    }

    async fn run(mut self) -> Tally {
        let rounds = self.roll(1..6);
        for _ in 0..rounds {
            self.round().await;
            self.examine();
        }
        self.script.set_faults(Arc::new(|_| None));
        let goal = Goal {
            until_caught_up: true,
            deadline: None,
        };
        let parts = self.parts(
            self.lake.clone(),
            self.checkpoints.clone(),
            CrashPoints::none(),
        );
        let end = self.script.end();
        supervise::run(parts, &goal, &CancellationToken::new())
            .await
            .expect("a run without faults");
        let lake = self.examine().expect("a lake");
        assert!(
            lake.position >= end,
            "seed {}: caught up at {} of {end}",
            self.seed,
            lake.position
        );
        let source = self.script.state_at(lake.position);
        assert!(
            source.keys().eq(lake.live.iter()),
            "seed {}: tables not live: {:?}",
            self.seed,
            lake.live
        );
        assert_eq!(
            lake.state, source,
            "seed {}: the lake differs from the source",
            self.seed
        );
        // What a fenced agent uploads after the new owner has cleaned up is its own to remove;
        // one that dies before it can leaves it to `sweep`.
        if !self.rivals {
            assert!(
                lake.unreferenced.is_empty(),
                "seed {}: left: {:?}",
                self.seed,
                lake.unreferenced
            );
            assert!(
                self.lake.unfinished().is_empty(),
                "seed {}: unfinished uploads",
                self.seed
            );
        }
        self.tally.commits = lake.epoch;
        self.tally
    }

    /// One agent, or two, until a crash, a stop or the end of their work.
    async fn round(&mut self) {
        let faults = Arc::new(AtomicU64::new(0));
        let store_faults = self.roll(15..200) as u32;
        let dice = self.dice.clone();
        let source_faults = self.roll(50..1000) as u32;
        self.script.set_faults(Arc::new(move |call| {
            chance(&dice, source_faults)
                .then(|| Error::retryable(Kind::Source, format!("{call} failed by the script")))
        }));
        match self.roll(0..8) {
            0 => {
                self.checkpoints.lose_everything();
                self.tally.rebuilds += 1;
            }
            1 => self.checkpoints.lose_last_write(),
            _ => {}
        }
        if self.rewinds() {
            match self.rewind(&self.lake).await {
                Ok(stands) => self.tally.rewinds += u64::from(stands),
                Err(e) => self.refuse_strange(&e),
            }
            self.examine();
        }
        let crash_one_in = self.roll(5..60) as u32;
        let goal = Goal {
            until_caught_up: self.roll(0..2) == 0,
            deadline: None,
        };
        let stop = CancellationToken::new();
        let agent = |checkpoints: caudal_checkpoints::MemoryStore| {
            let dead = Arc::new(AtomicBool::new(false));
            let crash = self.crash_points(crash_one_in, dead.clone());
            let faulty = Faulty {
                dice: self.dice.clone(),
                one_in: store_faults,
                faults: faults.clone(),
                dead: dead.clone(),
                cut_off: AtomicU32::new(0),
            };
            let parts = self.parts(self.lake.with_hook(Arc::new(faulty)), checkpoints, crash);
            let (goal, stop) = (goal.clone(), stop.clone());
            tokio::task::spawn_local(async move {
                let outcome = supervise::run(parts, &goal, &stop).await;
                dead.store(true, Ordering::Relaxed);
                outcome
            })
        };
        let first = agent(self.checkpoints.clone());
        // The second has a state directory of its own, as on another machine.
        let second = (self.roll(0..3) == 0).then(|| agent(caudal_checkpoints::MemoryStore::new()));
        for _ in 0..self.roll(0..30) {
            self.transaction();
            let behind = self.roll(0..3);
            self.script.reveal(behind);
            tokio::time::sleep(Duration::from_millis(self.roll(0..20))).await;
            if self.rewinds() && chance(&self.dice, 8) {
                // Under an agent that runs, through a store that fails, by a process that dies.
                let faulty = Faulty {
                    dice: self.dice.clone(),
                    one_in: store_faults,
                    faults: faults.clone(),
                    dead: Arc::default(),
                    cut_off: AtomicU32::new(0),
                };
                let stands = self.rewind(&self.lake.with_hook(Arc::new(faulty))).await;
                self.rivals = true;
                match stands {
                    Ok(stands) => self.tally.rewinds += u64::from(stands),
                    Err(e) => self.refuse_strange(&e),
                }
            }
        }
        self.script.reveal(u64::MAX / 2);
        tokio::time::sleep(Duration::from_millis(self.roll(1..300))).await;
        stop.cancel();
        self.note(first.await);
        if let Some(second) = second {
            self.rivals = true;
            self.note(second.await);
        }
        self.tally.store_faults += faults.load(Ordering::Relaxed);
    }

    fn rewinds(&self) -> bool {
        !self.replay_window.is_zero() && chance(&self.dice, 3)
    }

    /// Rewinds to any commit, time or position; whether something was written.
    async fn rewind(&self, store: &MemoryStore) -> Result<bool> {
        let log = CommitLog::new(Arc::new(store.clone()), "sim");
        let Some(head) = log.head(None).await? else {
            return Ok(false);
        };
        let target = match self.roll(0..3) {
            0 => Target::Position(caudal_model::Position::new(
                self.roll(0..self.script.end() + 1).to_string(),
            )),
            _ => Target::Epoch(self.roll(1..head.epoch + 1)),
        };
        let rewinding = Rewinding {
            log: &log,
            source: &self.script,
            keep: Duration::from_secs(86_400),
            crash: self.crash_points(10, Arc::default()),
        };
        let effect = rewinding.execute(&target).await?;
        Ok(effect.epoch.is_some())
    }

    /// A rewind may be refused, crash, or meet a store that fails.
    fn refuse_strange(&self, e: &Error) {
        let expected = e.kind() == Kind::Config
            || e.class() == caudal_model::Class::Retryable
            || e.message().starts_with("simulated crash");
        assert!(expected, "seed {}: a rewind failed: {e:?}", self.seed);
    }

    /// An agent may end well, crash, or be fenced; anything else is a finding.
    fn note(&mut self, outcome: std::result::Result<Result<Outcome>, tokio::task::JoinError>) {
        match outcome.expect("an agent panicked") {
            Ok(_) => {}
            Err(e) if e.message().starts_with("simulated crash") => self.tally.crashes += 1,
            Err(e) if e.kind() == Kind::Fenced => self.tally.fenced += 1,
            Err(e) => panic!("seed {}: an agent failed: {e:?}", self.seed),
        }
    }

    fn examine(&self) -> Option<lake::Lake> {
        let lake = lake::read(&self.lake.objects(), &self.tables);
        let acknowledged = self.script.acknowledged();
        let prepared = lake.as_ref().map_or(u64::MAX, |l| l.position);
        // Before the first commit the source starts at its own end.
        assert!(
            acknowledged <= prepared,
            "seed {}: INV-3: {acknowledged} acknowledged, {prepared} committed",
            self.seed
        );
        if let Some(l) = &lake {
            let mut source = self.script.state_at(l.position);
            // A table that is gone ends with the commit that covers its end at the latest.
            assert!(
                l.live.iter().all(|t| source.contains_key(t)),
                "seed {}: a table outlived its end",
                self.seed
            );
            source.retain(|t, _| l.live.contains(t));
            assert_eq!(l.state, source, "seed {}: a live lake differs", self.seed);
        }
        lake
    }
}
