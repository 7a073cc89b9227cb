//! One stream has one agent (INV-8): a later one takes it over, and the earlier one ends
//! with 4 before it can commit anything more.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::agent::{PATIENCE, eventually};
use std::time::Duration;

on_every_source!(ends_with_4);

async fn ends_with_4(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 500, |i| format!("({i}, 'a')"))
        .await?;
    let earlier = t.agent()?;
    let mut first = earlier.spawn()?;
    let before = first.wait_until_live().await?;

    // The same state directory: there can be no doubt who was first.
    let same = t.agent_with("agent-same", t.config())?;
    let outcome = same.run(&["run"]).await?.expect(4)?;
    assert!(outcome.took < Duration::from_secs(10), "{:?}", outcome.took);

    // Another one, as on another machine: the later agent takes over.
    let mut config = t.config();
    config.set(
        "stream.state_dir",
        t.dir().join("state-later").display().to_string(),
    );
    let later = t.agent_with("agent-later", config)?;
    let mut second = later.spawn()?;
    let after = second
        .wait_for_status("the later agent has taken over", |s| {
            s.generation > before.generation && s.all_live()
        })
        .await?;
    t.source
        .fill("items", 1_000, 500, |i| format!("({i}, 'b')"))
        .await?;
    let fenced = first.wait(PATIENCE).await?.expect(4)?;
    assert!(!fenced.stderr.contains("panicked"), "{}", fenced.stderr);
    eventually("the later agent commits", async || {
        Ok((t.committed_rows("items")? >= 1_000).then_some(()))
    })
    .await?;
    second.sigterm().await?.expect(0)?;
    let report = t.expect_equal(&["items"]).await?;
    assert_eq!(report.generation, after.generation);
    assert_eq!(report.count(&t.source.table("items"), "c"), 500);
    Ok(())
}
