//! A server that is killed and comes back, while tables are copied and while the log is
//! followed, costs time, never rows.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;

on_every_source!(killed_while_copying_and_tailing);

async fn killed_while_copying_and_tailing(t: &Trial) -> Result<()> {
    let t = &t.on_private_server(&[]).await?;
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 6_000, |i| format!("({i}, 'a')"))
        .await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.chunk_rows", 250)
        .set("snapshot.max_source_rows_per_second", 2_500);
    let mut running = agent.spawn()?;
    for round in 1..5i64 {
        if round < 3 {
            let part = round as u64 * 1_500;
            running
                .wait_for_status("a part is copied", |s| {
                    s.snapshot.as_ref().is_some_and(|c| c.rows > part)
                })
                .await?;
        } else {
            running.wait_until_live().await?;
        }
        let server = t.source.server_handle();
        tokio::task::spawn_blocking(move || server.kill9().and_then(|()| server.resume()))
            .await??;
        t.source
            .fill("items", round * 100_000, 200, |i| format!("({i}, 'b')"))
            .await?;
        t.source
            .exec(&format!("update items set name = 'r{round}' where id < 50"))
            .await?;
    }
    running.wait_until_live().await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items"]).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    Ok(())
}
