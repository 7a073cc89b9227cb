//! A table that stops with an error is brought back by `resnapshot`, while the others go on.

use crate::load::{self, Load, TABLES};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::Kind;

on_every_source!(
    brings_an_errored_table_back,
    a_running_agent_copies_again_under_load
);

async fn brings_an_errored_table_back(t: &Trial) -> Result<()> {
    t.source
        .exec(
            "create table items (id {int8} primary key, name {text});
             create table other (id {int8} primary key, name {text})",
        )
        .await?;
    t.source
        .fill("items", 1, 1_500, |i| format!("({i}, '{i}')"))
        .await?;
    let mut config = t.config();
    config.set("schema_change.policy", "pause");
    let agent = t.agent_with("agent", config)?;
    agent.run_until_caught_up().await?;
    // Text becomes a number: old files cannot be read as the new type.
    t.source
        .exec(match t.kind() {
            Kind::Postgres => "alter table items alter column name type int using name::int",
            _ => "alter table items modify column name int",
        })
        .await?;
    t.source
        .exec(
            "insert into items values (5000, 7); insert into other values (1, 'a');
             delete from items where id < 100",
        )
        .await?;
    agent.run(&["run", "--until-caught-up"]).await?.expect(5)?;
    t.expect_equal(&["other"]).await?;
    let items = t.source.table("items");
    agent
        .run(&["resnapshot", "no.such_table"])
        .await?
        .expect(2)?;
    agent.run(&["resnapshot", &items]).await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items", "other"]).await?;
    assert_eq!(report.count(&items, "t"), 1);
    Ok(())
}

/// Only the tables that were asked for are copied again, with a key and without, while
/// all of them are being written to.
async fn a_running_agent_copies_again_under_load(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 3_000).await?;
    let agent = t.agent()?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let load = Load::start(&t.source, 2, 33).await?;
    let (accounts, visits) = (t.source.table("accounts"), t.source.table("visits"));
    for _ in 0..2 {
        let outcome = agent
            .run(&["resnapshot", &accounts, &visits])
            .await?
            .expect(0)?;
        assert!(
            outcome.stdout.contains("copies again"),
            "{}",
            outcome.stdout
        );
        running.wait_until_live().await?;
    }
    load.stop().await?;
    agent
        .run(&["resnapshot", "no.such_table"])
        .await?
        .expect(2)?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&TABLES).await?;
    assert_eq!(report.count(&accounts, "t"), 2);
    assert_eq!(report.count(&visits, "t"), 2);
    assert_eq!(report.count(&t.source.table("ledger"), "t"), 0);
    Ok(())
}
