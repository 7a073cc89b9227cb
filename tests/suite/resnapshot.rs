//! A table that stops with an error is brought back by `resnapshot`, while the others go on.

use crate::load::{self, Load, TABLES};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::Kind;

on_every_source!(
    brings_an_errored_table_back,
    a_running_agent_copies_again_under_load,
    reads_some_rows_again,
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

/// On top of what the lake has: the table is not emptied, and nothing else is read.
async fn reads_some_rows_again(t: &Trial) -> Result<()> {
    t.source
        .exec(
            "create table items (id {int8} primary key, name {text});
             create table loose (id {int8})",
        )
        .await?;
    t.source
        .fill("items", 1, 1_000, |i| format!("({i}, 'a')"))
        .await?;
    if t.kind() == Kind::Postgres {
        t.source
            .exec("alter table loose replica identity full")
            .await?;
    }
    // The lake has the table's changes and none of its rows.
    let mut agent = t.agent()?;
    agent.config.set("snapshot.mode", "never");
    agent.run_until_caught_up().await?;
    agent
        .config
        .set("snapshot.mode", "initial")
        .set("snapshot.chunk_rows", 150);
    t.source
        .exec("update items set name = 'b' where id between 200 and 400; delete from items where id = 250")
        .await?;
    agent.run_until_caught_up().await?;
    let (items, loose) = (t.source.table("items"), t.source.table("loose"));
    for refused in [
        [&items, "nothing = 1"],
        [&items, "id + 1 = 2"],
        [&loose, "id = 1"],
    ] {
        let [table, condition] = refused;
        agent
            .run(&["resnapshot", table, "--where", condition])
            .await?
            .expect(2)?;
    }
    let again = |condition| ["resnapshot", items.as_str(), "--where", condition];
    agent.run(&again("id <= 300")).await?.expect(0)?;
    // The log alone knows what is left to do.
    std::fs::remove_dir_all(agent.state_dir())?;
    agent.run_until_caught_up().await?;
    let report = t.oracle()?.inspect().await?;
    assert_eq!(report.count(&items, "r"), 299);
    assert_eq!(
        report.table(&items).rows,
        399,
        "100 more are there by their updates"
    );

    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let load = async {
        for i in 0..20 {
            let sql = format!("update items set name = 'c{i}' where id % 20 = {i}");
            t.source.exec(&sql).await?;
        }
        t.source.exec("delete from items where id = 900").await
    };
    let again = again("id > 300");
    let asked = agent.run(&again);
    let (loaded, asked) = tokio::join!(load, asked);
    loaded?;
    asked?.expect(0)?;
    running.wait_until_live().await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items"]).await?;
    assert_eq!(report.count(&items, "t"), 0);
    let read = report.count(&items, "r");
    assert!(
        (299 + 699..=299 + 700).contains(&read),
        "{read} rows were read"
    );
    Ok(())
}
