//! Killed at each named point between two steps whose order matters, the agent goes on
//! from what is committed: in the copy first, then in the log.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::Kind;

on_every_source!(killed_at_every_point);

/// The points that a copy reaches, and those that following the log reaches.
const POINTS: [(&str, i64); 9] = [
    ("fenced", 1),
    ("schema_written", 1),
    ("chunk_staged", 2),
    ("chunk_uploaded", 2),
    ("uploaded", 1),
    ("committed", 1),
    ("checkpointed", 1),
    ("acknowledged", 1),
    ("fenced", 1),
];

async fn killed_at_every_point(t: &Trial) -> Result<()> {
    t.source
        .exec(
            "create table items (id {int8} primary key, name {text});
             create table heap (a {int8}, b {text})",
        )
        .await?;
    if t.kind() == Kind::Postgres {
        t.source
            .exec("alter table heap replica identity full")
            .await?;
    }
    t.source
        .fill("items", 1, 3_000, |i| format!("({i}, 'a')"))
        .await?;
    t.source
        .fill("heap", 1, 300, |i| format!("({i}, 'h')"))
        .await?;
    let mut agent = t.agent()?;
    agent.config.set("snapshot.chunk_rows", 500);
    let mut killed = 0;
    for (round, (point, count)) in POINTS.iter().enumerate() {
        let mut doomed = t.agent_with(&format!("doomed-{round}"), agent.config.clone())?;
        doomed.env("CAUDAL_CRASH_AT", &format!("{point}:{count}"));
        let outcome = doomed.run(&["run", "--until-caught-up"]).await?;
        killed += i32::from(outcome.code.is_none());
        let first = 100_000 * (round as i64 + 1);
        t.source
            .fill("items", first, 50, |i| format!("({i}, '{point}')"))
            .await?;
        t.source
            .exec(&format!(
                "update items set name = '{point}' where id < 20;
                 delete from items where id = {};
                 delete from heap where a = {}",
                30 + round,
                30 + round
            ))
            .await?;
    }
    // A test in which nobody dies proves nothing.
    assert!(killed >= 6, "only {killed} of {} were killed", POINTS.len());
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items", "heap"]).await?;
    Ok(())
}
