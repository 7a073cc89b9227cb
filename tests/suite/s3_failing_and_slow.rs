//! An object store that fails, resets, loses replies and is slow costs time, never rows.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::eventually;
use caudal_tests::moto::Moto;
use caudal_tests::s3::Fault;
use caudal_tests::{Oracle, Result, S3Server};
use std::time::Duration;

on_every_source!(
    costs_time_but_no_rows,
    lost_replies_of_commits_are_recognised,
    another_s3_server
);

async fn costs_time_but_no_rows(t: &Trial) -> Result<()> {
    let s3 = S3Server::start(&["lake"])?;
    load::prepare(&t.source, 5_000).await?;
    let mut agent = t.agent()?;
    s3.configure(&mut agent.config, "lake", "raw");
    agent.config.set("snapshot.chunk_rows", 500);
    {
        let mut faults = s3.faults();
        faults.seed(1);
        faults.status_fraction = 0.10;
        faults.reset_fraction = 0.03;
        faults.lost_reply_fraction = 0.05;
        faults.delay = Duration::from_millis(15);
    }
    let load = Load::start(&t.source, 2, 5).await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    eventually("faults have happened", async || {
        Ok((s3.faults().injected > 20).then_some(()))
    })
    .await?;
    load.stop().await?;
    s3.faults().clear();
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let lake = t.dir().join("dump");
    s3.dump("lake", "raw", &lake)?;
    let report = t.expect_equal_in(&lake, &load::TABLES).await?;
    assert!(report.unreferenced.is_empty(), "{:?}", report.unreferenced);
    assert_eq!(s3.open_uploads(), 0, "multipart uploads were left open");
    Ok(())
}

/// A 412 after a retry may be the writer's own commit: it must go on, in the same generation.
async fn lost_replies_of_commits_are_recognised(t: &Trial) -> Result<()> {
    let s3 = S3Server::start(&["lake"])?;
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    let mut agent = t.agent()?;
    s3.configure(&mut agent.config, "lake", "raw");
    agent.config.set("commit.max_delay", "100ms");
    let mut running = agent.spawn()?;
    let before = running.wait_until_live().await?;
    for round in 0..10i64 {
        let injected = {
            let mut faults = s3.faults();
            faults.only_path = "/_log/".into();
            faults.only_method = "PUT".into();
            faults.next = vec![Fault::LostReply];
            faults.injected
        };
        t.source
            .fill("items", round * 1_000, 50, |i| format!("({i}, 'b')"))
            .await?;
        eventually("a commit has lost its reply", async || {
            Ok((s3.faults().injected > injected).then_some(()))
        })
        .await?;
    }
    s3.faults().clear();
    let after = running.status().await?;
    assert_eq!(
        after.generation, before.generation,
        "it took its own commit for another's"
    );
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let lake = t.dir().join("dump");
    s3.dump("lake", "raw", &lake)?;
    let report = t.expect_equal_in(&lake, &["items"]).await?;
    assert_eq!(report.count(&t.source.table("items"), "c"), 500);
    Ok(())
}

/// The same client against a server that others wrote.
async fn another_s3_server(t: &Trial) -> Result<()> {
    let moto = tokio::task::spawn_blocking(|| Moto::start(&["lake"])).await??;
    load::prepare(&t.source, 2_000).await?;
    let mut agent = t.agent()?;
    moto.configure(&mut agent.config, "lake", "a/b");
    agent.run_until_caught_up().await?;
    let load = Load::start(&t.source, 2, 6).await?;
    eventually("some transactions", async || {
        Ok((load.done() > 50).then_some(()))
    })
    .await?;
    load.stop().await?;
    agent.run_until_caught_up().await?;
    let lake = t.dir().join("dump");
    moto.dump("lake", "a/b", &lake)?;
    let scratch = t.dir().join("exports");
    std::fs::create_dir_all(&scratch)?;
    Oracle::new(&lake, &t.stream)?
        .expect_equal(&t.source, &load::TABLES, &scratch)
        .await?;
    Ok(())
}
