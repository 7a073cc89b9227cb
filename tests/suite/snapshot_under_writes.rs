//! A copy while everything changes: INV-4, INV-5 and, for the table without a key, INV-6.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;

on_every_source!(copies_what_changes_meanwhile);

async fn copies_what_changes_meanwhile(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 20_000).await?;
    let load = Load::start(&t.source, 4, 1).await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.chunk_rows", 500)
        .set("snapshot.workers", 4);
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let done = load.stop().await?;
    assert!(done > 50, "only {done} transactions ran beside the copy");
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&load::TABLES).await?;
    assert!(report.count(&t.source.table("accounts"), "u") > 0);
    Ok(())
}
