//! Killed at ten random moments under load, the agent loses nothing and doubles nothing.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use rand::Rng;
use std::time::Duration;

on_every_source!(at_ten_random_moments);

async fn at_ten_random_moments(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 10_000).await?;
    let load = Load::start(&t.source, 3, 4).await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.chunk_rows", 500)
        .set("snapshot.workers", 2)
        .set("commit.max_delay", "100ms");
    for _ in 0..10 {
        let running = agent.spawn()?;
        let moment = Duration::from_millis(rand::rng().random_range(50..2_000));
        // pace: the moment is the input of this test, not a way to wait for something.
        tokio::time::sleep(moment).await;
        running.kill9().await?;
    }
    let done = load.stop().await?;
    assert!(done > 100, "only {done} transactions");
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&load::TABLES).await?;
    // Files of dead generations are removed when they are fenced.
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    Ok(())
}
