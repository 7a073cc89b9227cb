//! Wrong credentials end `run` with 1 at once; they are neither retried nor told.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use std::time::Duration;

on_every_source!(ends_with_1_at_once);

async fn ends_with_1_at_once(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key)")
        .await?;
    let mut agent = t.agent()?;
    agent.env("CAUDAL_TEST_PASSWORD", "hunter2-is-wrong");
    let outcome = agent.run(&["run"]).await?.expect(1)?;
    assert!(outcome.took < Duration::from_secs(10), "{:?}", outcome.took);
    let text = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(
        !text.contains("hunter2"),
        "the password is in the output:\n{text}"
    );
    Ok(())
}
