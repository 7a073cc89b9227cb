//! SIGTERM ends the agent with 0 within ten seconds, at any time, and nothing is lost.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use std::time::Duration;

on_every_source!(ends_in_good_order);

async fn ends_in_good_order(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 20_000).await?;
    let load = Load::start(&t.source, 2, 3).await?;
    let mut agent = t.agent()?;
    // Slow enough that the copy is still going on at the first signal.
    agent
        .config
        .set("snapshot.chunk_rows", 200)
        .set("snapshot.workers", 1);
    for moment in ["while it copies", "while it tails"] {
        let mut running = agent.spawn()?;
        if moment == "while it copies" {
            running
                .wait_for_status("a chunk is committed", |s| {
                    s.tables
                        .iter()
                        .any(|t| t.chunks_done.is_some_and(|n| n > 0))
                })
                .await?;
        } else {
            running.wait_until_live().await?;
        }
        let outcome = running.sigterm().await?.expect(0)?;
        assert!(
            outcome.took < Duration::from_secs(10),
            "{moment}: {:?}",
            outcome.took
        );
    }
    load.stop().await?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&load::TABLES).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    Ok(())
}
