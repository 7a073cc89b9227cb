//! A stopped agent goes on where it was: nothing is missing, nothing is copied again.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;

on_every_source!(goes_on_where_it_was, survives_a_restart_of_the_server);

async fn goes_on_where_it_was(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 1_000, |i| format!("({i}, 'a')"))
        .await?;
    let agent = t.agent()?;
    let items = t.source.table("items");
    for round in 0..4 {
        agent.run_until_caught_up().await?;
        let report = t.expect_equal(&["items"]).await?;
        assert_eq!(report.count(&items, "r"), 1_000, "round {round}");
        assert_eq!(report.count(&items, "c"), 100 * round, "round {round}");
        let first = 10_000 * (round as i64 + 1);
        t.source
            .fill("items", first, 100, |i| format!("({i}, 'b')"))
            .await?;
        t.source
            .exec(&format!("update items set name = 'r{round}' where id < 50"))
            .await?;
    }
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;
    Ok(())
}

/// The agent reconnects by itself when the server comes back, and is still exact.
async fn survives_a_restart_of_the_server(t: &Trial) -> Result<()> {
    let t = &t.on_private_server(&[]).await?;
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 1_000, |i| format!("({i}, 'a')"))
        .await?;
    let agent = t.agent()?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    for round in 1..3i64 {
        t.source
            .fill("items", round * 100_000, 500, |i| format!("({i}, 'b')"))
            .await?;
        let server = t.source.server_handle();
        let kill = round == 2;
        tokio::task::spawn_blocking(move || {
            if kill {
                server.kill9().and_then(|()| server.resume())
            } else {
                server.restart()
            }
        })
        .await??;
        t.source
            .fill("items", round * 100_000 + 50_000, 500, |i| {
                format!("({i}, 'c')")
            })
            .await?;
    }
    caudal_tests::agent::eventually("the changes after the restarts are committed", async || {
        Ok((t.committed_rows("items")? >= 3_000).then_some(()))
    })
    .await?;
    running.sigterm().await?.expect(0)?;
    t.expect_equal(&["items"]).await?;
    Ok(())
}
