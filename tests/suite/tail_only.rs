//! `mode = "never"` takes changes from the first run on, and no rows from before.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;

on_every_source!(takes_changes_alone);

async fn takes_changes_alone(t: &Trial) -> Result<()> {
    t.source
        .exec(
            "create table items (id {int8} primary key, name {text});
             create table old (id {int8} primary key);
             insert into old values (1), (2)",
        )
        .await?;
    let mut agent = t.agent()?;
    agent.config.set("snapshot.mode", "never");
    agent.run_until_caught_up().await?;
    t.source
        .fill("items", 1, 2_500, |i| format!("({i}, 'name {i}')"))
        .await?;
    t.source
        .exec(
            "update items set name = 'other' where id between 10 and 19;
             delete from items where id > 2400;
             update old set id = 3 where id = 2",
        )
        .await?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items"]).await?;
    let items = t.source.table("items");
    assert_eq!(report.count(&items, "r"), 0);
    assert_eq!(report.count(&items, "c"), 2_500);
    assert_eq!(report.count(&items, "u"), 10);
    assert_eq!(report.count(&items, "d"), 100);
    let old = t.source.table("old");
    assert_eq!(
        (
            report.count(&old, "r"),
            report.count(&old, "d"),
            report.count(&old, "c")
        ),
        (0, 1, 1)
    );
    Ok(())
}
