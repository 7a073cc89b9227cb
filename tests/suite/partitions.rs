//! A partitioned table is one table of the lake, and a partition that goes takes its rows with it.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::Kind;

on_every_source!(a_partition_that_is_dropped_takes_its_rows);

async fn a_partition_that_is_dropped_takes_its_rows(t: &Trial) -> Result<()> {
    let (create, drop) = match t.kind() {
        Kind::Postgres => (
            "create table r (id int primary key, v int) partition by range (id);
             create table r0 partition of r for values from (0) to (100);
             create table r1 partition of r for values from (100) to (200)",
            "drop table r0",
        ),
        Kind::Mysql | Kind::Mariadb => (
            "create table r (id int primary key, v int) partition by range (id)
             (partition r0 values less than (100), partition r1 values less than (200))",
            "alter table r drop partition r0",
        ),
    };
    t.source.exec(create).await?;
    t.source
        .fill("r", 0, 200, |i| format!("({i}, {i})"))
        .await?;
    let mut agent = t.agent()?;
    agent.config.set("snapshot.chunk_rows", 100);
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["r"]).await?;
    assert_eq!(report.count(&t.source.table("r"), "r"), 200);
    t.source
        .exec("update r set v = v + 1 where id > 150")
        .await?;
    t.source.exec(drop).await?;
    t.source.exec("delete from r where id = 120").await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["r"]).await?;
    Ok(())
}
