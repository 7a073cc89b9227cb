//! Killed again and again, in every state and on every source: while tables are copied, while the
//! log is followed, while tables change and are copied again, and around rewinds; by SIGKILL at
//! random moments and at each named crash point (INV-1 to INV-8).
//!
//! `just chaos` kills a hundred times on each source (`CAUDAL_CHAOS_KILLS`).

// The figures are what a long run is for.
#![allow(clippy::print_stderr)]

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::Running;
use caudal_tests::{Agent, Result, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

on_every_source!(leaves_one_history);

/// The points of `agent/src/crash.rs` that `run` can die at.
const POINTS: [&str; 9] = [
    "fenced",
    "schema_written",
    "chunk_staged",
    "chunk_uploaded",
    "flushed",
    "uploaded",
    "committed",
    "checkpointed",
    "acknowledged",
];
/// Those that `checkpoints rewind` can die at.
const REWIND_POINTS: [&str; 2] = ["rewind_planned", "rewound"];
/// After so many kills the lake is compared with the source.
const COMPARE_EVERY: u64 = 20;
/// A life that meets no such point ends like this.
const LIFE: Duration = Duration::from_secs(4);

struct Chaos<'t> {
    t: &'t Trial,
    agent: Agent,
    dice: StdRng,
    lives: u64,
    killed: BTreeMap<String, u64>,
    columns: u32,
}

async fn leaves_one_history(t: &Trial) -> Result<()> {
    let kills: u64 = match std::env::var("CAUDAL_CHAOS_KILLS") {
        Ok(n) => n.parse()?,
        Err(_) => 12,
    };
    let seed = rand::rng().random();
    eprintln!("seed {seed}");
    load::prepare(&t.source, 3_000).await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.chunk_rows", 300)
        .set("snapshot.workers", 2)
        .set("commit.max_delay", "100ms")
        .set("checkpoints.replay_window", "1h");
    let mut chaos = Chaos {
        t,
        agent,
        dice: StdRng::seed_from_u64(seed),
        lives: 0,
        killed: BTreeMap::new(),
        columns: 0,
    };
    let began = Instant::now();
    while chaos.kills() < kills {
        let load = Load::start(&t.source, 2, chaos.dice.random_range(0..1_000)).await?;
        let until = (chaos.kills() + COMPARE_EVERY).min(kills);
        while chaos.kills() < until {
            chaos.life().await?;
        }
        load.stop().await?;
        chaos.compare().await?;
    }
    eprintln!(
        "{}: {} kills in {} lives, {:.0?}: {:?}",
        t.source.version(),
        chaos.kills(),
        chaos.lives,
        began.elapsed(),
        chaos.killed
    );
    Ok(())
}

impl Chaos<'_> {
    fn kills(&self) -> u64 {
        self.killed.values().sum()
    }

    fn died(&mut self, how: &str) {
        *self.killed.entry(how.to_owned()).or_default() += 1;
    }

    /// Another process of the same agent, which may be told where to die.
    fn doomed(&mut self, point: Option<&str>) -> Result<Agent> {
        self.lives += 1;
        let name = format!("life-{}", self.lives);
        let mut doomed = self.t.agent_with(&name, self.agent.config.clone())?;
        if let Some(point) = point {
            let count = self.dice.random_range(1..4);
            doomed.env("CAUDAL_CRASH_AT", &format!("{point}:{count}"));
        }
        Ok(doomed)
    }

    /// One life of the agent, which begins in a state that is made for it.
    async fn life(&mut self) -> Result<()> {
        match self.dice.random_range(0..10) {
            0 => self.change_a_table().await?,
            1 => self.copy_again().await?,
            2 => return self.rewind().await,
            _ => {}
        }
        let point = self
            .dice
            .random_bool(0.6)
            .then(|| POINTS.choose(&mut self.dice).copied())
            .flatten();
        let doomed = self.doomed(point)?;
        let mut running = doomed.spawn()?;
        let wait = match point {
            Some(_) => LIFE,
            None => Duration::from_millis(self.dice.random_range(30..2_000)),
        };
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if let Some(code) = running.ended()? {
                return self.ended(code, point.unwrap_or("run"), &doomed);
            }
            // pace: the moment is the input of this test, not a way to wait for something.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.kill(running).await
    }

    async fn kill(&mut self, running: Running) -> Result<()> {
        running.kill9().await?;
        self.died("SIGKILL");
        Ok(())
    }

    /// A process that ended by itself: killed at its point, or it should not have.
    fn ended(&mut self, code: Option<i32>, point: &str, life: &Agent) -> Result<()> {
        match code {
            None => {
                self.died(point);
                Ok(())
            }
            Some(code) => bail!("a life ended with {code}:\n{}", Agent::logs(life.dir())),
        }
    }

    async fn change_a_table(&mut self) -> Result<()> {
        self.columns += 1;
        let added = self.columns;
        let sql = match (added % 2, self.t.kind()) {
            (1, _) => format!("alter table accounts add column more_{added} {{int4}} default 7"),
            _ => format!("alter table accounts drop column more_{}", added - 1),
        };
        self.t.source.exec(&sql).await
    }

    /// By the agent of the next life.
    async fn copy_again(&mut self) -> Result<()> {
        let table = ["ledger", "visits"][self.dice.random_range(0..2)];
        let table = self.t.source.table(table);
        let outcome = self.agent.run(&["resnapshot", &table]).await?;
        // Before the first commit there is nothing to copy again.
        match outcome.code {
            Some(0 | 2) => Ok(()),
            code => bail!("resnapshot ended with {code:?}: {}", outcome.stderr),
        }
    }

    /// To one of the last commits, by a process that may die of it.
    async fn rewind(&mut self) -> Result<()> {
        let listed = self
            .agent
            .run(&["checkpoints", "list", "--limit", "20", "--json"])
            .await?;
        if listed.code != Some(0) {
            return Ok(());
        }
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout)?;
        let commits = listed["commits"].as_array().cloned().unwrap_or_default();
        let rewindable: Vec<u64> = commits
            .iter()
            .filter(|c| c["rewindable"] == true)
            .filter_map(|c| c["epoch"].as_u64())
            .collect();
        let Some(epoch) = rewindable.choose(&mut self.dice).copied() else {
            return Ok(());
        };
        let point = REWIND_POINTS.choose(&mut self.dice).copied();
        let point = point.filter(|_| self.dice.random_bool(0.7));
        let doomed = self.doomed(point)?;
        let outcome = doomed
            .run(&["checkpoints", "rewind", &epoch.to_string()])
            .await?;
        match outcome.code {
            None => self.died(point.unwrap_or("rewind")),
            // PostgreSQL may have let go of what came before the window was known.
            Some(0 | 3) => {}
            code => bail!("rewind ended with {code:?}: {}", outcome.stderr),
        }
        Ok(())
    }

    async fn compare(&mut self) -> Result<()> {
        self.agent.run_until_caught_up().await?;
        let report = self.t.expect_equal(&load::TABLES).await?;
        // Files of dead generations are removed when they are fenced.
        assert_eq!(report.unreferenced, Vec::<String>::new());
        self.agent
            .run(&["verify", "--log"])
            .await?
            .expect(0)
            .map(|_| ())
    }
}
