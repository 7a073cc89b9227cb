//! INV-3: what was not durable when the power went is gone from a directory's lake and from
//! RocksDB, and nothing that the source was told to forget is among it.

use crate::trial::{Trial, on_every_source};
use caudal_tests::power::{self, Power};
use caudal_tests::{Agent, Result};
use std::collections::HashSet;
use std::path::PathBuf;

on_every_source!(loses_nothing_that_was_acknowledged);

/// Where the power goes, and at which time that the point is reached.
const POINTS: [(&str, u32); 10] = [
    ("chunk_uploaded", 2),
    ("schema_written", 1),
    ("committed", 2),
    ("acknowledged", 1),
    ("uploaded", 1),
    ("committed", 1),
    ("checkpointed", 1),
    ("acknowledged", 1),
    ("fenced", 1),
    ("acknowledged", 2),
];

async fn loses_nothing_that_was_acknowledged(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 2_000, |i| format!("({i}, 'a')"))
        .await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.chunk_rows", 300)
        .set("commit.max_delay", "100ms");
    let state = agent.state_dir();
    let (mut died, mut lost) = (0, 0);
    for (round, (point, count)) in POINTS.iter().enumerate() {
        let mut doomed = t.agent_with(&format!("doomed-{round}"), agent.config.clone())?;
        let power = Power::new(doomed.dir())?;
        power.watch(&mut doomed);
        doomed.env("CAUDAL_CRASH_AT", &format!("{point}:{count}"));
        let durable = |dir: &PathBuf| -> Result<HashSet<PathBuf>> {
            Ok(power::files(dir)?.into_iter().collect())
        };
        let (lake_before, state_before) = (durable(&t.lake())?, durable(&state)?);
        t.source
            .fill("items", 10_000 * (round as i64 + 1), 50, |i| {
                format!("({i}, '{point}')")
            })
            .await?;
        let running = doomed.start(&["run", "--until-caught-up"])?;
        let outcome = running.wait(caudal_tests::agent::PATIENCE).await?;
        died += u32::from(outcome.code.is_none());
        for (dir, before) in [(&t.lake(), &lake_before), (&state, &state_before)] {
            let taken = power.cut(dir, before)?;
            lost += taken.files + taken.cut;
            assert!(
                round == 0 || taken.kept > 0,
                "nothing of {} was durable: {taken:?}",
                dir.display()
            );
        }
        sees_only_whole_commits(&agent).await?;
    }
    // A test in which nobody dies, or nothing is lost, proves nothing.
    assert!(died >= 6, "only {died} of {} died", POINTS.len());
    assert!(lost > 10, "{lost} files were lost");
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;
    Ok(())
}

/// Every file that a durable entry of the log names is durable too.
async fn sees_only_whole_commits(agent: &Agent) -> Result<()> {
    let outcome = agent.run(&["verify", "--log"]).await?;
    // Before the first commit there is no log.
    assert!(
        outcome.code == Some(0) || outcome.stdout.is_empty(),
        "{}\n{}",
        outcome.stdout,
        outcome.stderr
    );
    Ok(())
}
