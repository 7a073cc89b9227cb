//! However many agents of one stream run, and whatever happens to them, there is one history:
//! the last to take the stream over goes on, the others end with 4 (INV-8).

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::{PATIENCE, Running, eventually};
use caudal_tests::proxy::Proxy;
use caudal_tests::{Agent, Result, S3Server, clock};
use std::collections::BTreeSet;

on_every_source!(
    three_at_once,
    in_turns_paused_and_resumed,
    clocks_apart,
    cut_off_from_the_store
);

/// One of several agents of the same stream, as on another machine.
fn rival(t: &Trial, number: usize) -> Result<Agent> {
    let mut config = t.config();
    config.set("commit.max_delay", "100ms").set(
        "stream.state_dir",
        t.dir()
            .join(format!("state-{number}"))
            .display()
            .to_string(),
    );
    t.agent_with(&format!("agent-{number}"), config)
}

async fn one_history(t: &Trial, agent: &Agent) -> Result<()> {
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&load::TABLES).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    Ok(())
}

/// Waits until all but one have ended with 4; the one that is left.
async fn last_of(mut agents: Vec<Running>) -> Result<Running> {
    let mut look = || {
        let mut left = Vec::new();
        for mut agent in agents.drain(..) {
            match agent.ended()? {
                None => left.push(agent),
                Some(code) => assert_eq!(code, Some(4), "{}", agent.log()),
            }
        }
        agents = left;
        assert!(!agents.is_empty(), "every agent has ended");
        Ok((agents.len() == 1).then(|| agents.pop()).flatten())
    };
    eventually("all agents but one have ended", || {
        std::future::ready(look())
    })
    .await
}

async fn three_at_once(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 1_000).await?;
    let load = Load::start(&t.source, 1, 31).await?;
    let agents = [rival(t, 0)?, rival(t, 1)?, rival(t, 2)?];
    for _ in 0..3 {
        let running = [agents[0].spawn()?, agents[1].spawn()?, agents[2].spawn()?];
        let mut winner = last_of(running.into()).await?;
        winner.wait_until_live().await?;
        let before = winner.status().await?;
        winner
            .wait_for_status("it goes on", |s| s.epoch > before.epoch + 2)
            .await?;
        assert_eq!(winner.status().await?.generation, before.generation);
        winner.kill9().await?;
    }
    load.stop().await?;
    one_history(t, &agents[1]).await
}

async fn in_turns_paused_and_resumed(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 500).await?;
    let agents = [rival(t, 0)?, rival(t, 1)?, rival(t, 2)?];
    let load = Load::start(&t.source, 1, 32).await?;
    let mut owner = agents[0].spawn()?;
    owner.wait_until_live().await?;
    for turn in 1..5 {
        owner.signal("STOP")?;
        let mut next = agents[turn % 3].spawn()?;
        let taken = next.wait_until_live().await?;
        next.wait_for_status("the next one commits", |s| s.epoch > taken.epoch + 1)
            .await?;
        owner.signal("CONT")?;
        owner.wait(PATIENCE).await?.expect(4)?;
        owner = next;
    }
    load.stop().await?;
    owner.sigterm().await?.expect(0)?;
    one_history(t, &agents[2]).await
}

/// Nothing is decided by the time of day. The clocks are less than a day apart, which is what
/// the search for files of dead generations leaves room for.
async fn clocks_apart(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 500).await?;
    let mut agents = [rival(t, 0)?, rival(t, 1)?, rival(t, 2)?];
    for (agent, seconds) in agents.iter_mut().zip([40_000, -40_000, 0]) {
        let dir = agent.dir().to_owned();
        clock::set_apart(agent, seconds, &dir)?;
    }
    let load = Load::start(&t.source, 1, 33).await?;
    let mut owner = agents[0].spawn()?;
    owner.wait_until_live().await?;
    for turn in 1..4 {
        let mut next = agents[turn % 3].spawn()?;
        owner.wait(PATIENCE).await?.expect(4)?;
        let taken = next.wait_until_live().await?;
        next.wait_for_status("the next one commits", |s| s.epoch > taken.epoch + 1)
            .await?;
        owner = next;
    }
    load.stop().await?;
    owner.sigterm().await?.expect(0)?;
    let hours: BTreeSet<String> = t
        .log_entries()?
        .iter()
        .filter_map(|e| Some(e["committed_at"].as_str()?.get(..13)?.to_owned()))
        .collect();
    assert!(hours.len() > 2, "the clocks were not apart: {hours:?}");
    one_history(t, &agents[2]).await
}

/// An agent that lost the store comes back to a stream that another one has taken over.
async fn cut_off_from_the_store(t: &Trial) -> Result<()> {
    let s3 = S3Server::start(&["lake"])?;
    load::prepare(&t.source, 500).await?;
    let mut agents = [rival(t, 0)?, rival(t, 1)?];
    for agent in &mut agents {
        s3.configure(&mut agent.config, "lake", "raw");
    }
    let proxy = Proxy::before_store(&mut agents[0].config)?;
    let load = Load::start(&t.source, 1, 34).await?;
    let mut first = agents[0].spawn()?;
    first.wait_until_live().await?;
    proxy.part();
    eventually("it has noticed", async || {
        Ok((first.get("/readyz").await?.0 == 503).then_some(()))
    })
    .await?;
    let mut second = agents[1].spawn()?;
    let taken = second.wait_until_live().await?;
    second
        .wait_for_status("the other one commits", |s| s.epoch > taken.epoch + 2)
        .await?;
    assert_eq!(first.ended()?, None, "cut off, it cannot know");
    proxy.mend();
    first.wait(PATIENCE).await?.expect(4)?;
    load.stop().await?;
    second.sigterm().await?.expect(0)?;
    agents[1].run_until_caught_up().await?;
    let lake = t.dir().join("dump");
    s3.dump("lake", "raw", &lake)?;
    let report = t.expect_equal_in(&lake, &load::TABLES).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    Ok(())
}
