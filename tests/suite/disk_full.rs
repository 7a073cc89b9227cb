//! The disk of the lake, of the state directory, or of both is full for a while: nothing is lost, the
//! agent says so, and goes on by itself once there is room.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::agent::eventually;
use caudal_tests::disk::Disk;

on_every_source!(is_waited_for);

async fn is_waited_for(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 2_000).await?;
    let load = Load::start(&t.source, 2, 11).await?;
    for (round, below) in ["lake", "state", ""].iter().enumerate() {
        let mut config = t.config();
        config
            .set("commit.max_delay", "100ms")
            .set("snapshot.chunk_rows", 300);
        let mut agent = t.agent_with(&format!("agent-{round}"), config)?;
        let disk = Disk::of(&mut agent, &t.dir().join(below))?;
        let mut running = agent.spawn()?;
        // The first round fills it while tables are copied.
        if round > 0 {
            running.wait_until_live().await?;
        } else {
            eventually("the first commit", async || {
                Ok((!t.log_entries()?.is_empty()).then_some(()))
            })
            .await?;
        }
        disk.fill()?;
        eventually("it says that it cannot go on", async || {
            let (code, body) = running.get("/readyz").await?;
            Ok((code == 503 && body.contains("retrying")).then_some(()))
        })
        .await?;
        disk.free()?;
        let before = t.log_entries()?.len();
        eventually("it goes on", async || {
            Ok((t.log_entries()?.len() > before + 3).then_some(()))
        })
        .await?;
        running.wait_until_live().await?;
        running.sigterm().await?.expect(0)?;
    }
    load.stop().await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&load::TABLES).await?;
    assert_eq!(report.unreferenced, Vec::<String>::new());
    agent.run(&["verify", "--log"]).await?.expect(0)?;
    Ok(())
}
