//! Copies that wait: because somebody asked, or because the hour is not theirs. The log is
//! followed on, and what waited is exact at the end.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::agent::{PATIENCE, Running};
use caudal_tests::databases::Kind;
use std::time::Instant;

on_every_source!(
    a_paused_table_waits_through_restarts,
    every_copy_pauses_and_goes_on,
    copies_wait_for_their_window,
    copies_wait_for_retained_log,
    copies_wait_for_open_transactions,
);

async fn create(t: &Trial, table: &str, rows: i64) -> Result<()> {
    t.source
        .exec(&format!(
            "create table {table} (id {{int8}} primary key, name {{text}})"
        ))
        .await?;
    t.source
        .fill(table, 1, rows, |i| format!("({i}, '{table}{i}')"))
        .await
}

/// Waits until `small` is live and nothing of `large` has been read.
async fn wait_for_pause(t: &Trial, running: &mut Running) -> Result<()> {
    let (small, large) = (t.source.table("small"), t.source.table("large"));
    running
        .wait_for_status("small is live, large waits", |s| {
            s.table(&small).is_some_and(|t| t.state == "live")
                && s.table(&large)
                    .is_some_and(|t| t.state == "snapshotting" && t.paused.is_some())
        })
        .await?;
    let status = running.status().await?;
    let large = status.table(&large).map(|t| t.snapshot_rows);
    assert_eq!(large, Some(0), "{status:?}");
    Ok(())
}

async fn a_paused_table_waits_through_restarts(t: &Trial) -> Result<()> {
    create(t, "small", 100).await?;
    create(t, "large", 3_000).await?;
    let mut agent = t.agent()?;
    agent.config.set("snapshot.chunk_rows", 500);
    let large = t.source.table("large");
    let wrong = agent
        .run(&["snapshot", "pause", &format!("{large}s")])
        .await?
        .expect(2)?;
    assert!(wrong.stderr.contains(&large), "{}", wrong.stderr);
    agent.run(&["snapshot", "pause", &large]).await?.expect(0)?;

    let mut running = agent.spawn()?;
    wait_for_pause(t, &mut running).await?;
    t.source
        .exec("insert into small values (500, 'x'); update large set name = 'y' where id < 10")
        .await?;
    caudal_tests::agent::eventually("the changes are committed", async || {
        Ok((t.committed_rows("small")? > 100 && t.committed_rows("large")? >= 9).then_some(()))
    })
    .await?;
    running.kill9().await?;

    let status = agent.status().await?;
    assert!(
        status.table(&large).is_some_and(|t| t.paused.is_some()),
        "{status:?}"
    );
    agent
        .run(&["run", "--until-caught-up", "--deadline", "4s"])
        .await?
        .expect(6)?;
    let mut running = agent.spawn()?;
    wait_for_pause(t, &mut running).await?;
    agent
        .run(&["snapshot", "resume", &large])
        .await?
        .expect(0)?;
    running.wait_until_live().await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["small", "large"]).await?;
    Ok(())
}

async fn every_copy_pauses_and_goes_on(t: &Trial) -> Result<()> {
    create(t, "small", 10).await?;
    create(t, "large", 6_000).await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.chunk_rows", 100)
        .set("snapshot.workers", 2)
        .set("snapshot.max_source_rows_per_second", 1_000);
    let mut running = agent.spawn()?;
    let (small, large) = (t.source.table("small"), t.source.table("large"));
    running
        .wait_for_status("large is being copied, and small is live", |s| {
            s.table(&large).is_some_and(|t| t.snapshot_rows > 0)
                && s.table(&small).is_some_and(|t| t.state == "live")
        })
        .await?;
    agent.run(&["snapshot", "pause"]).await?.expect(0)?;
    running
        .wait_for_status("every copy waits", |s| {
            s.snapshot.as_ref().is_some_and(|c| c.paused.is_some())
        })
        .await?;
    let metrics = running.get("/metrics").await?.1;
    let line = metrics
        .lines()
        .find(|l| l.starts_with("caudal_snapshot_paused") && l.contains("\"request\""));
    assert!(line.is_some_and(|l| l.ends_with(" 1")), "{line:?}");
    // Single tables cannot go on while all of them wait.
    agent
        .run(&["snapshot", "resume", &large])
        .await?
        .expect(2)?;
    t.source
        .exec("insert into small values (500, 'x'); delete from large where id < 100")
        .await?;
    caudal_tests::agent::eventually("the changes are committed", async || {
        Ok((t.committed_rows("small")? > 10).then_some(()))
    })
    .await?;
    let status = running.status().await?;
    let rows = status.table(&large).map_or(0, |t| t.snapshot_rows);
    assert!((1..6_000).contains(&rows), "{status:?}");
    agent.run(&["snapshot", "resume"]).await?.expect(0)?;
    running.wait_until_live().await?;
    let status = running.status().await?;
    assert!(status.snapshot.is_none(), "{status:?}");
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["small", "large"]).await?;
    Ok(())
}

async fn copies_wait_for_their_window(t: &Trial) -> Result<()> {
    create(t, "large", 500).await?;
    let mut agent = t.agent()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let later = (now.as_secs() / 3600 + 2) % 24;
    agent
        .config
        .set("snapshot.window", format!("{later:02}:00-{later:02}:30"));
    let closed = agent
        .run(&["run", "--until-caught-up", "--deadline", "4s"])
        .await?
        .expect(6)?;
    assert!(
        closed.stderr.contains("snapshot.window"),
        "{}",
        closed.stderr
    );
    t.source.exec("insert into large values (900, 'x')").await?;
    let report = t.oracle()?.inspect().await?;
    assert_eq!(report.count(&t.source.table("large"), "r"), 0);
    agent.config.set(
        "snapshot.window",
        vec!["00:00-12:00".to_owned(), "12:00-24:00".to_owned()],
    );
    agent.run_until_caught_up().await?;
    t.expect_equal(&["large"]).await?;
    Ok(())
}

/// PostgreSQL alone tells how much log a stream makes it keep.
async fn copies_wait_for_retained_log(t: &Trial) -> Result<()> {
    if t.kind() != Kind::Postgres {
        return Ok(());
    }
    // On a server of its own, for all of a server's log counts.
    let t = &t.on_private_server(&[]).await?;
    create(t, "small", 10).await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("tables.exclude", vec![t.source.table("noise")]);
    agent.run_until_caught_up().await?;
    create(t, "large", 2_000).await?;
    t.source
        .exec("create table noise as select repeat('x', 1000) from generate_series(1, 8000)")
        .await?;
    agent
        .config
        .set("snapshot.max_retained_log", "1MiB")
        .set("snapshot.warn_retained_log", "1MiB");
    let mut running = agent.spawn()?;
    let large = t.source.table("large");
    let paused = running
        .wait_for_status("the copy waits, and a warning says why", |s| {
            !s.warnings.is_empty() && s.table(&large).is_some_and(|t| t.paused.is_some())
        })
        .await?;
    let why = paused.table(&large).and_then(|t| t.paused.clone());
    assert!(
        why.is_some_and(|w| w.contains("snapshot.max_retained_log")),
        "{paused:?}"
    );
    // What was read of the log is acknowledged, and the server forgets it at a checkpoint.
    let mut superuser = t.source.superuser().await?;
    let deadline = Instant::now() + PATIENCE;
    for id in 100.. {
        t.source
            .exec(&format!("insert into small values ({id}, 'x')"))
            .await?;
        superuser.exec("checkpoint").await?;
        let status = running.status().await?;
        if status.all_live() && status.warnings.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the copy still waits: {status:?}"
        );
    }
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&["small", "large"]).await?;
    Ok(())
}

async fn copies_wait_for_open_transactions(t: &Trial) -> Result<()> {
    // On a server of its own, for everybody's transactions count.
    let t = &t.on_private_server(&[]).await?;
    create(t, "large", 2_000).await?;
    let mut agent = t.agent()?;
    agent.config.set("snapshot.max_open_transactions", 1);
    let user = agent.config.get("source.user");
    let mut open = [t.source.superuser().await?, t.source.superuser().await?];
    let (grant, begin) = match t.kind() {
        Kind::Postgres => (
            format!("grant pg_monitor to {user}"),
            "begin; select count(*) from large",
        ),
        _ => (
            format!("grant process on *.* to '{user}'@'%'"),
            "start transaction; select count(*) from large",
        ),
    };
    open[0].exec(&grant).await?;
    for session in &mut open {
        session.exec(begin).await?;
    }
    let mut running = agent.spawn()?;
    let large = t.source.table("large");
    let paused = running
        .wait_for_status("the copy waits for transactions", |s| {
            let why = s.table(&large).and_then(|t| t.paused.as_ref());
            why.is_some_and(|w| w.contains("snapshot.max_open_transactions"))
        })
        .await?;
    let rows = paused.table(&large).map(|t| t.snapshot_rows);
    assert_eq!(rows, Some(0), "{paused:?}");
    for session in &mut open {
        session.exec("commit").await?;
    }
    running.wait_until_live().await?;
    running.sigterm().await?.expect(0)?;
    t.expect_equal(&["large"]).await?;
    Ok(())
}
