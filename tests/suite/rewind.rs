//! An older commit becomes the head again: readers see one history or the other, a running
//! agent is stopped, and the next run replays the source from there.

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::{PATIENCE, eventually};
use caudal_tests::databases::Kind;
use caudal_tests::{Agent, Result, Version, bail};
use serde_json::Value;

on_every_source!(
    by_epoch_by_time_and_by_position,
    a_running_agent_is_stopped,
    into_the_middle_of_a_copy,
    killed_on_its_way,
    refuses_what_cannot_be,
);

/// PostgreSQL alone is told what it may forget.
#[test]
fn what_is_older_than_the_window_is_let_go_postgres17() {
    crate::trial::run(Version::Postgres17, "let_go", what_is_older_is_let_go);
}

/// An agent whose source keeps its log for longer than the test lasts.
fn agent(t: &Trial) -> Result<Agent> {
    let mut agent = t.agent()?;
    agent.config.set("checkpoints.replay_window", "1h");
    Ok(agent)
}

async fn json(agent: &Agent, args: &[&str], code: i32) -> Result<Value> {
    let args: Vec<&str> = [&["checkpoints"], args, &["--json"]].concat();
    let outcome = agent.run(&args).await?.expect(code)?;
    Ok(serde_json::from_str(&outcome.stdout)?)
}

/// The newest commit as `list` tells it.
async fn newest(agent: &Agent) -> Result<Value> {
    let list = json(agent, &["list", "--limit", "1"], 0).await?;
    Ok(list["commits"][0].clone())
}

async fn seed(t: &Trial) -> Result<()> {
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
        .fill("items", 1, 500, |i| format!("({i}, 'a')"))
        .await?;
    t.source
        .fill("heap", 1, 50, |i| format!("({i}, 'h')"))
        .await
}

async fn by_epoch_by_time_and_by_position(t: &Trial) -> Result<()> {
    seed(t).await?;
    let agent = agent(t)?;
    agent.run_until_caught_up().await?;
    let first = newest(&agent).await?;
    let items = t.source.table("items");

    // Everything that can lie between: rows, columns, a new copy, a new table.
    t.source
        .exec(
            "delete from items where id < 100; update heap set b = 'x' where a < 10;
             alter table items add column more int default 7;
             insert into items values (1000, 'b', 1);
             create table late (id {int8} primary key); insert into late values (1)",
        )
        .await?;
    agent.run_until_caught_up().await?;
    agent
        .run(&["resnapshot", &t.source.table("heap")])
        .await?
        .expect(0)?;
    agent.run_until_caught_up().await?;
    let second = newest(&agent).await?;
    t.source
        .exec("alter table items add column again int; insert into items values (1001, 'c', 1, 2)")
        .await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items", "heap", "late"]).await?;

    let before = t.log_entries()?.len();
    let epoch = first["epoch"].to_string();
    let look = json(&agent, &["rewind", &epoch, "--dry-run"], 0).await?;
    assert_eq!(look["replayable"], true, "{look}");
    assert!(look["rows"].as_u64() > Some(100), "{look}");
    assert_eq!(t.log_entries()?.len(), before, "a dry run wrote something");

    let done = json(&agent, &["rewind", &epoch], 0).await?;
    let again = json(&agent, &["rewind", &epoch], 0).await?;
    assert_eq!(again["already"], true, "{again}");
    assert_eq!(t.log_entries()?.len(), before + 1, "{done}");
    let report = t.oracle()?.inspect().await?;
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(
        (report.table(&items).rows, report.count(&items, "d")),
        (500, 0)
    );
    assert_eq!(
        report.position,
        first["position"].as_str().unwrap_or_default()
    );
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items", "heap", "late"]).await?;
    assert_eq!(report.count(&items, "d"), 99, "replayed once");
    assert_eq!(report.unreferenced, Vec::<String>::new());

    // The commits between are gone, and their number says so.
    let dropped = second["epoch"].to_string();
    let outcome = agent
        .run(&["checkpoints", "rewind", &dropped])
        .await?
        .expect(2)?;
    assert!(
        outcome.stderr.contains("was dropped by the rewind"),
        "{}",
        outcome.stderr
    );
    let shown = json(&agent, &["show", &dropped], 0).await?;
    assert_eq!(shown["commit"]["rewindable"], false, "{shown}");

    // Beyond a rewind, by position and by time.
    let third = newest(&agent).await?;
    t.source
        .exec("insert into items values (1002, 'd', 1, 2); delete from heap where a = 20")
        .await?;
    agent.run_until_caught_up().await?;
    let position = third["position"].as_str().unwrap_or_default();
    let done = json(&agent, &["rewind", "--to-position", position], 0).await?;
    assert_eq!(done["position"], third["position"], "{done}");
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items", "heap", "late"]).await?;
    let time = first["committed_at"].as_str().unwrap_or_default();
    let done = json(&agent, &["rewind", "--to-time", time], 0).await?;
    assert_eq!(done["to"], first["epoch"], "{done}");
    // The log alone knows what has happened.
    std::fs::remove_dir_all(agent.state_dir())?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items", "heap", "late"]).await?;
    assert_eq!(report.count(&items, "d"), 99);
    agent.run(&["verify", "--log"]).await?.expect(0)?;
    Ok(())
}

async fn a_running_agent_is_stopped(t: &Trial) -> Result<()> {
    seed(t).await?;
    let agent = agent(t)?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let first = newest(&agent).await?;
    t.source.exec("delete from items where id > 400").await?;
    let epoch = first["epoch"].as_u64().unwrap_or_default();
    running
        .wait_for_status("the delete is committed", |s| s.epoch > epoch)
        .await?;
    json(&agent, &["rewind", &epoch.to_string()], 0).await?;
    t.source
        .exec("insert into items values (2000, 'z')")
        .await?;
    let fenced = running.wait(PATIENCE).await?.expect(4)?;
    assert!(
        fenced.stderr.contains("rewound to commit"),
        "{}",
        fenced.stderr
    );
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items", "heap"]).await?;
    assert_eq!(report.count(&t.source.table("items"), "d"), 100);
    Ok(())
}

async fn into_the_middle_of_a_copy(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 2_000, |i| format!("({i}, 'a')"))
        .await?;
    let mut agent = agent(t)?;
    agent
        .config
        .set("snapshot.chunk_rows", 100)
        .set("snapshot.workers", 1)
        .set("snapshot.max_source_rows_per_second", 2_000)
        .set("commit.max_delay", "100ms");
    agent.run_until_caught_up().await?;
    let items = t.source.table("items");
    t.source
        .exec("delete from items where id % 7 = 0; update items set name = 'b' where id % 5 = 0")
        .await?;
    agent.run_until_caught_up().await?;
    let middle = t.log_entries()?.into_iter().find(|e| {
        let chunks = e["tables"][0]["snapshot"]["chunks"].as_array();
        chunks.is_some_and(|c| !c.is_empty()) && e["tables"][0]["snapshot"]["done"] == false
    });
    let Some(middle) = middle else {
        bail!("no commit has a part of the copy")
    };
    let done = json(&agent, &["rewind", &middle["epoch"].to_string()], 0).await?;
    let then = done["tables"][0]["then"].as_str().unwrap_or_default();
    assert!(then.starts_with("goes on being copied"), "{done}");
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items"]).await?;
    assert_eq!(report.count(&items, "t"), 0, "the copy goes on");
    // To the very beginning: all is copied again.
    json(&agent, &["rewind", "1"], 0).await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;
    Ok(())
}

async fn killed_on_its_way(t: &Trial) -> Result<()> {
    seed(t).await?;
    let agent = agent(t)?;
    agent.run_until_caught_up().await?;
    let epoch = newest(&agent).await?["epoch"].to_string();
    t.source.exec("delete from items where id > 400").await?;
    agent.run_until_caught_up().await?;
    for (point, written) in [("rewind_planned", 0), ("rewound", 1)] {
        let before = t.log_entries()?.len();
        let mut doomed = t.agent_with(&format!("doomed-{point}"), agent.config.clone())?;
        doomed.env("CAUDAL_CRASH_AT", point);
        let outcome = doomed.run(&["checkpoints", "rewind", &epoch]).await?;
        assert_eq!(outcome.code, None, "{point}: {}", outcome.stderr);
        assert_eq!(t.log_entries()?.len(), before + written, "{point}");
        t.oracle()?.inspect().await?;
        agent.run_until_caught_up().await?;
        t.expect_equal(&["items", "heap"]).await?;
    }
    Ok(())
}

/// Nothing is written, and the message says what to do.
async fn refuses_what_cannot_be(t: &Trial) -> Result<()> {
    if t.kind() == Kind::Postgres {
        return refuses(t).await;
    }
    // Its log is thrown away.
    refuses(&t.on_private_server(&[]).await?).await
}

async fn refuses(t: &Trial) -> Result<()> {
    seed(t).await?;
    // What has been committed, PostgreSQL forgets.
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    let epoch = newest(&agent).await?["epoch"].to_string();
    t.source.exec("delete from items where id > 400").await?;
    agent.run_until_caught_up().await?;
    let mut superuser = t.source.superuser().await?;
    if t.kind() != Kind::Postgres {
        if t.source.version() == Version::Mariadb118 {
            superuser
                .exec("set global slave_connections_needed_for_purge = 0")
                .await?;
        }
        superuser.exec("flush binary logs").await?;
        eventually("the old log is purged", async || {
            let mut superuser = t.source.superuser().await?;
            superuser
                .exec("purge binary logs before now() + interval 1 day")
                .await?;
            let dry = agent
                .run(&["checkpoints", "rewind", &epoch, "--dry-run"])
                .await?;
            Ok((dry.code == Some(3)).then_some(()))
        })
        .await?;
    }
    let before = t.log_entries()?.len();
    let look = json(&agent, &["rewind", &epoch, "--dry-run"], 3).await?;
    assert_eq!(look["replayable"], false, "{look}");
    assert!(look["files"].as_u64() > Some(0), "{look}");
    let outcome = agent
        .run(&["checkpoints", "rewind", &epoch])
        .await?
        .expect(3)?;
    assert!(outcome.stderr.contains("resnapshot"), "{}", outcome.stderr);
    for (args, code) in [
        (["rewind", "99999"].as_slice(), 2),
        (&["rewind", "0"], 2),
        (&["rewind"], 2),
        (&["rewind", &epoch, "--to-time", "2026-01-01"], 2),
        (&["rewind", "--to-time", "2001-01-01"], 2),
        (&["rewind", "--to-time", "soon"], 2),
        (&["rewind", "--to-position", "nowhere"], 2),
        (&["show", "99999"], 2),
    ] {
        let args = [&["checkpoints"], args].concat();
        agent.run(&args).await?.expect(code)?;
    }
    let mut strict = t.agent_with("strict", agent.config.clone())?;
    strict.config.set("checkpoints.keep", "1ms");
    let outcome = strict
        .run(&["checkpoints", "rewind", &epoch])
        .await?
        .expect(2)?;
    assert!(
        outcome.stderr.contains("checkpoints.keep"),
        "{}",
        outcome.stderr
    );
    assert_eq!(t.log_entries()?.len(), before, "something was written");
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items", "heap"]).await?;
    Ok(())
}

/// Also by runs that are shorter than the window.
async fn what_is_older_is_let_go(t: &Trial) -> Result<()> {
    seed(t).await?;
    let mut agent = agent(t)?;
    agent.run_until_caught_up().await?;
    let epoch = newest(&agent).await?["epoch"].to_string();
    t.source.exec("delete from items where id = 1").await?;
    agent.run_until_caught_up().await?;
    json(&agent, &["rewind", &epoch, "--dry-run"], 0).await?;
    agent.config.set("checkpoints.replay_window", "2s");
    eventually("the source forgets what is older", async || {
        t.source
            .exec("update items set name = name || 'x' where id = 2")
            .await?;
        agent.run_until_caught_up().await?;
        let dry = agent
            .run(&["checkpoints", "rewind", &epoch, "--dry-run"])
            .await?;
        Ok((dry.code == Some(3)).then_some(()))
    })
    .await?;
    let epoch = newest(&agent).await?["epoch"].to_string();
    json(&agent, &["rewind", &epoch, "--dry-run"], 0).await?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items", "heap"]).await?;
    Ok(())
}
