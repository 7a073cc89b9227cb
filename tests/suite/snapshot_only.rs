//! `mode = "only"` copies every table, once, and ends.

use crate::load;
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;

on_every_source!(copies_every_table);

async fn copies_every_table(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 5_000).await?;
    t.source
        .exec("create table nothing (id {int4} primary key, what {text})")
        .await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.mode", "only")
        .set("snapshot.chunk_rows", 700);
    agent.run_until_caught_up().await?;
    let report = t
        .expect_equal(&["accounts", "ledger", "visits", "nothing"])
        .await?;
    for (table, found) in &report.tables {
        let copied = found.ops.get("r").copied().unwrap_or_default();
        assert_eq!(
            found.ops.values().sum::<u64>(),
            copied,
            "{table} holds more than a copy"
        );
        assert!(found.snapshot_done, "{table}");
    }
    assert_eq!(report.count(&t.source.table("accounts"), "r"), 5_000);

    // Once more: there is nothing to do.
    agent.run_until_caught_up().await?;
    let again = t.oracle()?.inspect().await?;
    assert_eq!(again.count(&t.source.table("accounts"), "r"), 5_000);
    Ok(())
}
