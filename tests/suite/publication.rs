//! PostgreSQL's log is silent about what its publication leaves out: a table that is taken out of it
//! ends, and a publication that is dropped ends the stream, with a way back that works.

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::eventually;
use caudal_tests::databases::Kind;
use caudal_tests::{Agent, Result};

on_every_source!(
    a_table_that_is_taken_out_ends,
    a_publication_that_is_dropped_ends_the_stream,
);

async fn seed(t: &Trial) -> Result<Agent> {
    for table in ["items", "others"] {
        t.source
            .exec(&format!(
                "create table {table} (id {{int8}} primary key, name {{text}})"
            ))
            .await?;
        t.source
            .fill(table, 1, 100, |i| format!("({i}, 'a')"))
            .await?;
    }
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    Ok(agent)
}

async fn administer(t: &Trial, sql: &str) -> Result<()> {
    t.source.superuser().await?.exec(sql).await
}

async fn write(t: &Trial, from: i64) -> Result<()> {
    for table in ["items", "others"] {
        t.source
            .fill(table, from, 10, |i| format!("({i}, 'b')"))
            .await?;
    }
    Ok(())
}

async fn a_table_that_is_taken_out_ends(t: &Trial) -> Result<()> {
    if t.kind() != Kind::Postgres {
        // Their logs have every table.
        return Ok(());
    }
    let agent = seed(t).await?;
    let publication = format!("caudal_{}", t.stream);
    let (out, back) = (
        format!("alter publication {publication} drop table items"),
        format!("alter publication {publication} add table only items"),
    );
    // Under a running agent, then while none runs.
    let items = t.source.table("items");
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    administer(t, &out).await?;
    write(t, 1_000).await?;
    running
        .wait_for_status("the table ends", |s| {
            s.table(&items).is_some_and(|t| t.state == "errored")
        })
        .await?;
    administer(t, &back).await?;
    agent.run(&["resnapshot", &items]).await?.expect(0)?;
    eventually("it is copied again", async || {
        let status = running.status().await?;
        Ok((status.all_live() && t.committed_rows("items")? >= 210).then_some(()))
    })
    .await?;
    running.sigterm().await?.expect(0)?;
    t.expect_equal(&["items", "others"]).await?;

    administer(t, &out).await?;
    write(t, 2_000).await?;
    let outcome = agent.run(&["run", "--until-caught-up"]).await?.expect(5)?;
    assert!(outcome.stderr.contains("ADD TABLE"), "{}", outcome.stderr);
    t.expect_equal(&["others"]).await?;
    administer(t, &back).await?;
    agent.run(&["resnapshot", &items]).await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items", "others"]).await?;
    Ok(())
}

async fn a_publication_that_is_dropped_ends_the_stream(t: &Trial) -> Result<()> {
    if t.kind() != Kind::Postgres {
        return Ok(());
    }
    let agent = seed(t).await?;
    let publication = format!("caudal_{}", t.stream);
    let begin_again = async || {
        let slot = format!("select pg_drop_replication_slot('{publication}')");
        eventually("the slot is free", async || {
            Ok(administer(t, &slot).await.ok())
        })
        .await?;
        agent.run(&["resnapshot", "*.*"]).await?.expect(0)?;
        agent.run_until_caught_up().await?;
        t.expect_equal(&["items", "others"]).await?;
        Ok::<(), caudal_tests::Failure>(())
    };
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    administer(t, &format!("drop publication {publication}")).await?;
    write(t, 1_000).await?;
    let outcome = running
        .wait(caudal_tests::agent::PATIENCE)
        .await?
        .expect(3)?;
    assert!(outcome.stderr.contains("resnapshot"), "{}", outcome.stderr);
    begin_again().await?;

    // Dropped and made again while nobody looks.
    let again = format!(
        "drop publication {publication}; create publication {publication} for table only items, only others"
    );
    administer(t, &again).await?;
    let outcome = agent.run(&["run", "--until-caught-up"]).await?.expect(3)?;
    assert!(outcome.stderr.contains("made again"), "{}", outcome.stderr);
    begin_again().await
}
