//! A connection to the source that breaks off, falls silent or is slow costs time, never
//! rows: while tables are copied and while the log is followed.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::agent::{Agent, eventually};
use caudal_tests::proxy::{Cut, Direction, Proxy, Traffic};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

on_every_source!(
    cut_in_the_middle_of_frames,
    half_open_while_copying,
    half_open_while_tailing,
    refused_and_ended_for_a_while,
    slow,
);

/// An agent whose source is behind a proxy, and which waits for an answer a moment only.
fn behind_a_proxy(t: &Trial) -> Result<(Agent, Proxy)> {
    let mut agent = t.agent()?;
    agent
        .config
        .set("source.connect_timeout", "3s")
        .set("source.read_timeout", "3s")
        .set("commit.max_delay", "100ms");
    let proxy = Proxy::before_source(&mut agent.config)?;
    Ok((agent, proxy))
}

/// Ends the agent, lets another run catch up, and compares.
async fn nothing_lost_nothing_twice(t: &Trial, agent: &Agent) -> Result<()> {
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&load::TABLES).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    Ok(())
}

async fn cut_in_the_middle_of_frames(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 4_000).await?;
    let (mut agent, proxy) = behind_a_proxy(t)?;
    agent
        .config
        .set("snapshot.chunk_rows", 500)
        .set("snapshot.max_source_rows_per_second", 4_000);
    let load = Load::start(&t.source, 2, 11).await?;
    let mut running = agent.spawn()?;
    running.wait_for_status("it has begun", |_| true).await?;
    let mut random = StdRng::seed_from_u64(11);
    for round in 0..10u64 {
        let direction = if round % 3 == 2 {
            Direction::Up
        } else {
            Direction::Down
        };
        let most = if direction == Direction::Up {
            600
        } else {
            60_000
        };
        let epoch = running.status().await?.epoch;
        proxy.cut_after(direction, random.random_range(1..most));
        eventually("a connection was cut", async || {
            Ok((proxy.resets() > round).then_some(()))
        })
        .await?;
        running
            .wait_for_status("it goes on", |s| s.epoch > epoch + 1)
            .await?;
    }
    load.stop().await?;
    running.wait_until_live().await?;
    running.sigterm().await?.expect(0)?;
    nothing_lost_nothing_twice(t, &agent).await
}

async fn half_open_while_copying(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 4_000).await?;
    let (mut agent, proxy) = behind_a_proxy(t)?;
    agent
        .config
        .set("snapshot.chunk_rows", 200)
        .set("snapshot.max_source_rows_per_second", 2_000);
    let mut running = agent.spawn()?;
    for part in 1..3 {
        running
            .wait_for_status("a part is copied", |s| {
                s.snapshot.as_ref().is_some_and(|c| c.rows > part * 1_500)
            })
            .await?;
        proxy.strand();
    }
    running.wait_until_live().await?;
    running.sigterm().await?.expect(0)?;
    nothing_lost_nothing_twice(t, &agent).await
}

async fn half_open_while_tailing(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 500).await?;
    let (agent, proxy) = behind_a_proxy(t)?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let load = Load::start(&t.source, 2, 12).await?;
    for _ in 0..2 {
        let done = load.done();
        let epoch = running.status().await?.epoch;
        proxy.strand();
        eventually("transactions meanwhile", async || {
            Ok((load.done() > done + 50).then_some(()))
        })
        .await?;
        // The commits after the one that may have been under way.
        running
            .wait_for_status("commits go on", |s| {
                s.state == "running" && s.epoch > epoch + 2
            })
            .await?;
    }
    load.stop().await?;
    running.sigterm().await?.expect(0)?;
    nothing_lost_nothing_twice(t, &agent).await
}

async fn refused_and_ended_for_a_while(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 500).await?;
    let (agent, proxy) = behind_a_proxy(t)?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let load = Load::start(&t.source, 2, 13).await?;
    for how in [Cut::Reset, Cut::Close] {
        let came = proxy.accepted();
        proxy.refuse(true);
        proxy.cut(how);
        eventually("it tried again", async || {
            Ok((proxy.accepted() > came + 2).then_some(()))
        })
        .await?;
        let epoch = running.status().await?.epoch;
        proxy.mend();
        running
            .wait_for_status("commits go on", |s| {
                s.state == "running" && s.epoch > epoch + 1
            })
            .await?;
    }
    load.stop().await?;
    running.sigterm().await?.expect(0)?;
    nothing_lost_nothing_twice(t, &agent).await
}

async fn slow(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 3_000).await?;
    let (agent, proxy) = behind_a_proxy(t)?;
    proxy.set_one(Direction::Down, Traffic::Slow(150_000));
    let load = Load::start(&t.source, 1, 14).await?;
    eventually("some transactions", async || {
        Ok((load.done() > 200).then_some(()))
    })
    .await?;
    load.stop().await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    running.sigterm().await?.expect(0)?;
    assert!(
        !running_again(&agent),
        "a slow connection was taken for a dead one"
    );
    nothing_lost_nothing_twice(t, &agent).await
}

/// Whether a run gave a connection up.
fn running_again(agent: &Agent) -> bool {
    Agent::logs(agent.dir()).contains("trying again")
}
