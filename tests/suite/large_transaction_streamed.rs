//! A transaction larger than the agent's memory (INV-9): streamed while it is open (PostgreSQL,
//! with subtransactions that abort), compressed as a whole (MySQL) or by event (MariaDB).

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::Kind;

on_every_source!(arrives_whole);

const ROWS: i64 = 120_000;

async fn arrives_whole(t: &Trial) -> Result<()> {
    // MariaDB's compression is a setting of the server.
    let private;
    let t = if t.kind() == Kind::Mariadb {
        private = t.on_private_server(&["--log-bin-compress=ON"]).await?;
        &private
    } else {
        t
    };
    t.source
        .exec(
            "create table items (id {int8} primary key, name {text});
             create table small (id {int8} primary key)",
        )
        .await?;
    let mut agent = t.agent()?;
    agent.config.set("commit.memory", "64MiB");
    agent.run_until_caught_up().await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let mut session = t.source.session().await?;
    if t.kind() == Kind::Mysql {
        session
            .exec("set session binlog_transaction_compression = on")
            .await?;
    }
    session.exec("begin").await?;
    let filler = "x".repeat(300);
    for first in (0..ROWS).step_by(2_000) {
        session.exec("savepoint part").await?;
        let rows: Vec<String> = (first..first + 2_000)
            .map(|i| format!("({i}, '{i} {filler}')"))
            .collect();
        session
            .exec(&format!("insert into items values {}", rows.join(", ")))
            .await?;
        if first % 10_000 == 4_000 {
            session.exec("rollback to savepoint part").await?;
        } else {
            session.exec("release savepoint part").await?;
        }
        // Others commit meanwhile, and must not wait for it.
        t.source
            .exec(&format!("insert into small values ({first})"))
            .await?;
    }
    session
        .exec("update items set name = 'changed' where id < 1000")
        .await?;
    session.exec("commit").await?;
    caudal_tests::agent::eventually("the large transaction is committed", async || {
        Ok((t.committed_rows("items")? as i64 >= ROWS / 5 * 4 + 1000).then_some(()))
    })
    .await?;
    // INV-9: what it holds is bounded by its buffers, not by the transaction.
    let peak = running.peak_memory()?;
    assert!(
        peak < 256 << 20,
        "{} MiB with 64 MiB of buffers",
        peak >> 20
    );
    running.sigterm().await?.expect(0)?;
    let report = t.expect_equal(&["items", "small"]).await?;
    assert_eq!(
        report.count(&t.source.table("items"), "c") as i64,
        ROWS / 5 * 4
    );
    Ok(())
}
