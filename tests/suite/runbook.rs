//! What the runbook says to do, done: the commands in their order, and the lake equals its
//! source again.

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::eventually;
use caudal_tests::databases::Kind;
use caudal_tests::{Agent, Result, Version, bail};

on_every_source!(exit_3_the_position_is_lost, a_damaged_file);

async fn seed(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 500, |i| format!("({i}, 'a')"))
        .await
}

async fn exit_3_the_position_is_lost(t: &Trial) -> Result<()> {
    if t.kind() == Kind::Postgres {
        return loses_its_position(t).await;
    }
    // Its log is thrown away.
    loses_its_position(&t.on_private_server(&[]).await?).await
}

async fn loses_its_position(t: &Trial) -> Result<()> {
    seed(t).await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    t.source.exec("delete from items where id > 400").await?;
    forget(t, &agent).await?;
    let outcome = agent.run(&["run", "--until-caught-up"]).await?.expect(3)?;
    assert!(outcome.stderr.contains("resnapshot"), "{}", outcome.stderr);
    agent.run(&["resnapshot", "*.*"]).await?.expect(0)?;
    t.source
        .exec("insert into items values (1000, 'b')")
        .await?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items"]).await?;
    assert_eq!(report.count(&t.source.table("items"), "t"), 1);
    Ok(())
}

/// Has the server lose what the lake has not read.
async fn forget(t: &Trial, agent: &Agent) -> Result<()> {
    let mut superuser = t.source.superuser().await?;
    if t.kind() == Kind::Postgres {
        let slot = format!("caudal_{}", t.stream);
        let sql = format!("select pg_drop_replication_slot('{slot}')");
        return superuser.exec(&sql).await;
    }
    if t.source.version() == Version::Mariadb118 {
        superuser
            .exec("set global slave_connections_needed_for_purge = 0")
            .await?;
    }
    superuser.exec("flush binary logs").await?;
    let epoch = t.log_entries()?.len().to_string();
    eventually("the old log is purged", async || {
        let mut superuser = t.source.superuser().await?;
        superuser
            .exec("purge binary logs before now() + interval 1 day")
            .await?;
        let dry = agent
            .run(&["checkpoints", "rewind", &epoch, "--dry-run"])
            .await?;
        Ok((dry.code == Some(3)).then_some(()))
    })
    .await
}

async fn a_damaged_file(t: &Trial) -> Result<()> {
    seed(t).await?;
    let mut agent = t.agent()?;
    agent.config.set("checkpoints.replay_window", "1h");
    agent.run_until_caught_up().await?;
    t.source.exec("delete from items where id > 400").await?;
    agent.run_until_caught_up().await?;
    let entries = t.log_entries()?;
    let newest = entries.iter().rev().find_map(|e| {
        let file = e["tables"][0]["files"][0]["path"].as_str()?;
        Some((e["epoch"].as_u64()?, file.to_owned()))
    });
    let Some((epoch, path)) = newest else {
        bail!("no commit has a file")
    };
    let file = t.lake().join(&t.stream).join(&path);
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes)?;
    let found = agent.run(&["verify", "--log"]).await?.expect(1)?;
    let before = format!("caudal checkpoints rewind {}", epoch - 1);
    assert!(
        found.stdout.contains(&path) && found.stdout.contains(&before),
        "{}",
        found.stdout
    );
    let before = (epoch - 1).to_string();
    agent
        .run(&["checkpoints", "rewind", &before, "--dry-run"])
        .await?
        .expect(0)?;
    agent
        .run(&["checkpoints", "rewind", &before])
        .await?
        .expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;
    agent.run(&["verify", "--log"]).await?.expect(0)?;
    Ok(())
}
