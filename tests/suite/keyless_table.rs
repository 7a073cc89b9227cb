//! A table without a key is a multiset: equal rows are counted, an update is a delete of
//! the whole old row and an insert.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::Kind;

on_every_source!(counts_equal_rows);

async fn counts_equal_rows(t: &Trial) -> Result<()> {
    t.source
        .exec("create table marks (who {int4}, what {text}, score {double}, data {bytes})")
        .await?;
    if t.kind() == Kind::Postgres {
        t.source
            .exec("alter table marks replica identity full")
            .await?;
    }
    t.source
        .fill("marks", 1, 3_000, |i| {
            format!("({}, 'same', {}.5, null)", i % 10, i % 4)
        })
        .await?;
    t.source
        .exec("insert into marks values (null, null, null, null), (null, null, null, null)")
        .await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["marks"]).await?;
    let marks = t.source.table("marks");
    assert_eq!(report.count(&marks, "r"), 3_002);
    let one = match t.kind() {
        Kind::Postgres => {
            "delete from marks where ctid = (select min(ctid) from marks where who = 3)"
        }
        Kind::Mysql | Kind::Mariadb => "delete from marks where who = 3 limit 1",
    };
    t.source
        .exec(&format!(
            "insert into marks values (1, 'same', 0.5, null), (1, 'same', 0.5, null);
             update marks set what = 'other' where who = 2;
             {one};
             delete from marks where who is null;
             insert into marks values (99, '', -0.0, null)"
        ))
        .await?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["marks"]).await?;
    assert_eq!(report.count(&marks, "u"), 0);
    assert_eq!(report.count(&marks, "d"), 300 + 1 + 2);
    assert_eq!(report.count(&marks, "c"), 300 + 2 + 1);
    Ok(())
}
