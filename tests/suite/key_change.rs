//! An update that changes the key is a delete of the old one and an insert of the new one.

use crate::trial::{Trial, on_every_source};
use caudal_tests::{Result, dialect};

on_every_source!(is_a_delete_and_an_insert);

async fn is_a_delete_and_an_insert(t: &Trial) -> Result<()> {
    t.source
        .exec(
            "create table items (id {int8} primary key, name {text}, large {text});
             create table pairs (a {int4} not null, b varchar(40) not null, n {int4}, primary key (b, a))",
        )
        .await?;
    // Larger than a page and not compressible, so that PostgreSQL does not send it again.
    let large: String = (0..4000u64)
        .map(|i| format!("{:016x}", i.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
        .collect();
    t.source
        .fill("items", 1, 20, |i| format!("({i}, 'name', '{i}{large}')"))
        .await?;
    t.source
        .fill("pairs", 1, 20, |i| format!("({i}, 'key {i}', 0)"))
        .await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    t.source
        .exec(
            "update items set id = -id where id <= 10;
             update items set name = 'twice' where id = -1;
             update items set id = 100, name = 'both' where id = 11;
             begin; update items set id = 200 where id = 12; update items set id = 12 where id = 13;
             update items set id = 13 where id = 200; commit;
             update pairs set b = 'other' where a = 1;
             update pairs set a = a + 1000, n = 5 where a between 2 and 4;
             update pairs set n = 7 where a = 5",
        )
        .await?;
    t.source
        .exec(&dialect::upsert(
            t.kind(),
            "items",
            "id",
            &["id", "name", "large"],
            "(14, 'again', 'short')",
        ))
        .await?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items", "pairs"]).await?;
    let items = t.source.table("items");
    assert_eq!(report.count(&items, "d"), 14);
    assert_eq!(report.count(&items, "c"), 14);
    assert_eq!(report.count(&items, "u"), 2);
    let pairs = t.source.table("pairs");
    assert_eq!(
        (
            report.count(&pairs, "d"),
            report.count(&pairs, "c"),
            report.count(&pairs, "u")
        ),
        (4, 4, 1)
    );
    Ok(())
}
