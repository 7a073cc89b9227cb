//! `run --until-caught-up` ends when the lake has what the source had, and `--deadline`
//! ends it in any case.

use crate::load::{self, Load};
use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::free_port;
use std::time::Duration;

on_every_source!(ends_with_everything, ends_at_the_deadline);

/// What was committed when it started is there, although the load never pauses.
async fn ends_with_everything(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 2_000).await?;
    t.source
        .exec("create table marker (id {int8} primary key)")
        .await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    let load = Load::start(&t.source, 2, 2).await?;
    for round in 0..3u64 {
        t.source
            .exec(&format!("insert into marker values ({round})"))
            .await?;
        agent.run_until_caught_up().await?;
        let report = t.expect_equal(&["marker"]).await?;
        assert_eq!(report.count(&t.source.table("marker"), "c"), round + 1);
    }
    load.stop().await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&load::TABLES).await?;
    let status = agent.status().await?;
    assert!(status.all_live(), "{status:?}");
    Ok(())
}

/// Exit 6: an unreachable source is retried until then.
async fn ends_at_the_deadline(t: &Trial) -> Result<()> {
    let mut agent = t.agent()?;
    agent.config.set("source.port", i64::from(free_port()?));
    let outcome = agent
        .run(&["run", "--until-caught-up", "--deadline", "3s"])
        .await?
        .expect(6)?;
    assert!(outcome.took >= Duration::from_secs(2), "{:?}", outcome.took);
    assert!(outcome.took < Duration::from_secs(20), "{:?}", outcome.took);
    Ok(())
}
