//! A transaction over several tables becomes visible at once: no commit holds a part of it.

use crate::trial::{Trial, on_every_source, rows_of};
use caudal_tests::Result;
use caudal_tests::agent::eventually;

on_every_source!(becomes_visible_at_once);

async fn becomes_visible_at_once(t: &Trial) -> Result<()> {
    const TRANSACTIONS: u64 = 400;
    t.source
        .exec(
            "create table debit (id {int8} primary key, amount {decimal});
             create table credit (id {int8} primary key, amount {decimal})",
        )
        .await?;
    let mut agent = t.agent()?;
    agent.config.set("commit.max_delay", "100ms");
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let mut session = t.source.session().await?;
    for i in 0..TRANSACTIONS {
        session
            .exec(&format!(
                "begin; insert into debit values ({i}, -1.5); insert into credit values ({i}, 1.5); commit"
            ))
            .await?;
    }
    eventually("every transaction is committed to the lake", async || {
        Ok((t.committed_rows("credit")? >= TRANSACTIONS).then_some(()))
    })
    .await?;
    running.sigterm().await?.expect(0)?;
    let (debit, credit) = (t.source.table("debit"), t.source.table("credit"));
    for entry in t.log_entries()? {
        let halves = (rows_of(&entry, &debit), rows_of(&entry, &credit));
        assert_eq!(
            halves.0, halves.1,
            "epoch {} holds a part of a transaction",
            entry["epoch"]
        );
    }
    t.expect_equal(&["debit", "credit"]).await?;
    Ok(())
}
