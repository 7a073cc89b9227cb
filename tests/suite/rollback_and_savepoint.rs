//! What a transaction took back is never seen, however large it was.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;

on_every_source!(shows_nothing_of_what_was_taken_back);

async fn shows_nothing_of_what_was_taken_back(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    let many: Vec<String> = (10_000..15_000)
        .map(|i| format!("({i}, 'a rather long text that fills the log {i}')"))
        .collect();
    let many = many.join(", ");
    t.source
        .exec(&format!(
            "begin; insert into items values (1, 'gone'); rollback;
             begin; insert into items values (2, 'kept'); savepoint a;
             insert into items values (3, 'gone'); savepoint b; insert into items values (4, 'gone');
             rollback to savepoint a; insert into items values (5, 'kept'); commit;
             begin; insert into items values {many}; rollback;
             begin; insert into items values (6, 'kept'); savepoint c;
             insert into items values {many}; rollback to savepoint c;
             savepoint d; insert into items values (7, 'kept'); release savepoint d; commit;
             begin; delete from items where id = 2; rollback"
        ))
        .await?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items"]).await?;
    let items = report.table(&t.source.table("items"));
    assert_eq!(items.ops.get("c"), Some(&4), "{:?}", items.ops);
    assert_eq!(items.ops.get("d"), Some(&0), "{:?}", items.ops);
    assert_eq!(items.rows, 4);
    Ok(())
}
