//! Further processes read chunks of the same stream; one of them is killed, and nothing is
//! lost or doubled.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::agent::{Agent, eventually};
use std::collections::BTreeSet;
use std::time::Duration;

on_every_source!(share_the_chunks, end_when_there_is_nothing_to_do);

/// Files of the worker with this number are numbered from a million times it.
fn readers(t: &Trial) -> Result<BTreeSet<u64>> {
    let mut readers = BTreeSet::new();
    for entry in t.log_entries()? {
        for part in entry["tables"].as_array().into_iter().flatten() {
            for file in part["files"].as_array().into_iter().flatten() {
                let n = file["path"].as_str().and_then(|p| {
                    let name = p.rsplit('/').next()?.strip_suffix(".parquet")?;
                    name.rsplit('-').next()?.parse::<u64>().ok()
                });
                readers.extend(n.map(|n| n / 1_000_000));
            }
        }
    }
    Ok(readers)
}

fn worker(t: &Trial, name: &str) -> Result<Agent> {
    let mut worker = t.agent_with(name, t.config())?;
    worker
        .config
        .set("snapshot.workers", 1)
        .set("commit.max_delay", "500ms");
    Ok(worker)
}

async fn share_the_chunks(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 40_000).await?;
    let load = Load::start(&t.source, 2, 9).await?;
    let mut agent = t.agent()?;
    // Slow enough for others to come, and to be of use.
    agent
        .config
        .set("snapshot.chunk_rows", 200)
        .set("snapshot.workers", 1)
        .set("snapshot.max_source_rows_per_second", 1_500)
        .set("commit.max_delay", "200ms");
    let mut running = agent.spawn()?;
    let (mut first, mut second) = (worker(t, "first")?, worker(t, "second")?);
    for w in [&mut first, &mut second] {
        w.config.set("snapshot.max_source_rows_per_second", 1_000);
    }
    let first = first.start(&["run", "--snapshot-worker"])?;
    let second = second.start(&["run", "--snapshot-worker"])?;
    eventually("all three have read", || async {
        Ok((readers(t)?.len() >= 3).then_some(()))
    })
    .await?;
    second.kill9().await?;
    let done = load.stop().await?;
    assert!(done > 0);
    running.wait_until_live().await?;
    first.wait(Duration::from_secs(60)).await?.expect(0)?;
    eventually("the work is cleared away", || async {
        let files = walk(&t.lake())?;
        let work = files
            .iter()
            .filter(|f| f.to_string_lossy().contains("/_work/"));
        Ok((work.count() == 0).then_some(()))
    })
    .await?;
    running.sigterm().await?.expect(0)?;
    // What the killed one had uploaded is removed by the next generation.
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&load::TABLES).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    Ok(())
}

/// Every file below a directory.
fn walk(dir: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    if !dir.exists() {
        return Ok(files);
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => files.extend(walk(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}

async fn end_when_there_is_nothing_to_do(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 500).await?;
    let worker = worker(t, "late")?;
    // Before the stream exists it waits, until its deadline.
    let early = worker
        .run(&["run", "--snapshot-worker", "--deadline", "1s"])
        .await?;
    early.expect(6)?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    let late = worker.run(&["run", "--snapshot-worker"]).await?;
    late.expect(0)?;
    Ok(())
}
