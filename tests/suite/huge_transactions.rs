//! INV-9 and INV-3 for transactions of any size: nothing of one that has not committed is ever
//! visible, others do not wait for it, memory is bounded and disk is given back.
//!
//! `CAUDAL_HUGE_ROWS=10000000` makes them as large as the name says.

// The figures are what a run with many rows is for.
#![allow(clippy::print_stderr)]

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::{Running, eventually};
use caudal_tests::databases::Kind;
use caudal_tests::{Agent, Result, Session};
use std::time::Instant;

on_every_source!(
    commits_and_rolls_back,
    has_many_savepoints,
    is_prepared_and_ended_later,
    is_loaded_from_a_file,
    has_little_disk,
);

fn rows() -> Result<u64> {
    match std::env::var("CAUDAL_HUGE_ROWS") {
        Ok(n) => Ok(n.parse()?),
        Err(_) => Ok(100_000),
    }
}

/// An agent with little memory, live on the tables `items` and `small`.
async fn live(t: &Trial, memory: &str) -> Result<(Agent, Running)> {
    t.source
        .exec(
            "create table items (id {int8} primary key, name varchar(200));
             create table small (id {int8} primary key)",
        )
        .await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("commit.memory", memory)
        .set("commit.max_delay", "300ms");
    agent.run_until_caught_up().await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    Ok((agent, running))
}

/// Inserts rows `first..first + n` into `items` with one statement, made by the server.
async fn insert(t: &Trial, session: &mut Session, first: u64, n: u64) -> Result<()> {
    let rows = match t.kind() {
        Kind::Postgres => format!(
            "select i, repeat('x', 100) from generate_series({first}, {}) i",
            first + n - 1
        ),
        _ => {
            let digit = "(select 0 d union all select 1 union all select 2 union all select 3 union all select 4
                          union all select 5 union all select 6 union all select 7 union all select 8 union all select 9)";
            let digits: Vec<String> = (0..8).map(|i| format!("{digit} d{i}")).collect();
            let width = n.to_string().len();
            let number: Vec<String> = (0..width)
                .map(|i| format!("d{i}.d * {}", 10u64.pow(i as u32)))
                .collect();
            let number = number.join(" + ");
            format!(
                "select {first} + {number}, repeat('x', 100) from {} where {number} < {n}",
                digits[..width].join(", ")
            )
        }
    };
    session.exec(&format!("insert into items {rows}")).await
}

/// Commits a row of `small`, and waits until the lake has it.
async fn others_go_on(t: &Trial, id: u64) -> Result<()> {
    t.source
        .exec(&format!("insert into small values ({id})"))
        .await?;
    let before = t.committed_rows("small")?;
    eventually("another transaction is in the lake", async || {
        Ok((t.committed_rows("small")? > before || before >= id).then_some(()))
    })
    .await
}

fn spilled(agent: &Agent) -> usize {
    std::fs::read_dir(agent.state_dir().join("spill")).map_or(0, Iterator::count)
}

async fn commits_and_rolls_back(t: &Trial) -> Result<()> {
    let n = rows()?;
    let (agent, running) = live(t, "256MiB").await?;
    let mut session = t.source.session().await?;
    let began = Instant::now();
    for (round, end) in ["rollback", "commit", "rollback"].iter().enumerate() {
        session.exec("begin").await?;
        // In parts, with others between them.
        for part in 0..5 {
            insert(t, &mut session, round as u64 * n + part * (n / 5), n / 5).await?;
            others_go_on(t, round as u64 * 5 + part + 1).await?;
        }
        assert_eq!(t.committed_rows("items")?, if round == 2 { n } else { 0 });
        session.exec(end).await?;
        if *end == "commit" {
            eventually("the huge transaction is in the lake", async || {
                Ok((t.committed_rows("items")? == n).then_some(()))
            })
            .await?;
        }
    }
    let peak = running.peak_memory()?;
    eventually("the disk is given back", async || {
        Ok((spilled(&agent) == 0).then_some(()))
    })
    .await?;
    eprintln!(
        "{n} rows, three times: {:.1?}; peak {} MiB",
        began.elapsed(),
        peak >> 20
    );
    assert!(
        peak < 512 << 20,
        "{} MiB with 256 MiB of buffers",
        peak >> 20
    );
    running.sigterm().await?.expect(0)?;
    let report = t.expect_equal(&["items", "small"]).await?;
    assert_eq!(report.count(&t.source.table("items"), "c") as u64, n);
    Ok(())
}

async fn has_many_savepoints(t: &Trial) -> Result<()> {
    let n = rows()? / 100;
    let (agent, running) = live(t, "64MiB").await?;
    let mut session = t.source.session().await?;
    session.exec("begin").await?;
    for first in (0..n).step_by(500) {
        let mut sql = String::new();
        for i in first..(first + 500).min(n) {
            sql += &format!("savepoint s{i}; insert into items values ({i}, 'x');");
            if i % 3 == 1 {
                sql += &format!("rollback to savepoint s{i};");
            }
        }
        for statement in sql.split_inclusive(';') {
            session.exec(statement).await?;
        }
    }
    session.exec("commit").await?;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["items"]).await?;
    let kept = (0..n).filter(|i| i % 3 != 1).count();
    assert_eq!(report.count(&t.source.table("items"), "c"), kept as u64);
    Ok(())
}

async fn is_prepared_and_ended_later(t: &Trial) -> Result<()> {
    let settings: &[&str] = match t.kind() {
        Kind::Postgres => &["max_prepared_transactions=10"],
        _ => &[],
    };
    let t = &t.on_private_server(settings).await?;
    let n = rows()? / 2;
    // A quarter of it is for what waits: the rest is on disk.
    let (agent, running) = live(t, "64MiB").await?;
    let mut xid = 0;
    let mut prepare = async |first: u64, n: u64| {
        xid += 1;
        let mut session = t.source.session().await?;
        match t.kind() {
            Kind::Postgres => {
                session.exec("begin").await?;
                insert(t, &mut session, first, n).await?;
                session.exec(&format!("prepare transaction 'x{xid}'")).await
            }
            _ => {
                session.exec(&format!("xa start 'x{xid}'")).await?;
                insert(t, &mut session, first, n).await?;
                session.exec(&format!("xa end 'x{xid}'")).await?;
                session.exec(&format!("xa prepare 'x{xid}'")).await
            }
        }
    };
    // Committed, rolled back, committed and rolled back after restarts.
    for i in 0..4 {
        prepare(i * n, n).await?;
    }
    let end = async |word: &str, xid: u64| {
        let sql = match t.kind() {
            Kind::Postgres => format!("{word} prepared 'x{xid}'"),
            _ => format!("xa {word} 'x{xid}'"),
        };
        // The session that prepared it may still be going.
        eventually("a prepared transaction can be ended", async || {
            Ok(t.source.session().await?.exec(&sql).await.ok())
        })
        .await
    };
    if t.kind() == Kind::Mysql {
        // Positions with holes: others need not wait.
        others_go_on(t, 1).await?;
    } else {
        t.source.exec("insert into small values (1)").await?;
    }
    eventually("what waits is on disk", async || {
        Ok((spilled(&agent) > 0).then_some(()))
    })
    .await?;
    assert_eq!(t.committed_rows("items")?, 0);
    end("commit", 1).await?;
    end("rollback", 2).await?;
    running.kill9().await?;
    let running = agent.spawn()?;
    let server = t.source.server_handle();
    tokio::task::spawn_blocking(move || server.restart()).await??;
    end("commit", 3).await?;
    end("rollback", 4).await?;
    eventually("both are in the lake", async || {
        Ok((t.committed_rows("items")? == 2 * n).then_some(()))
    })
    .await?;
    let peak = running.peak_memory()?;
    assert!(
        peak < 256 << 20,
        "{} MiB with 64 MiB of buffers",
        peak >> 20
    );
    running.sigterm().await?.expect(0)?;
    assert_eq!(spilled(&agent), 0);
    let report = t.expect_equal(&["items", "small"]).await?;
    assert_eq!(report.count(&t.source.table("items"), "c") as u64, 2 * n);
    Ok(())
}

async fn is_loaded_from_a_file(t: &Trial) -> Result<()> {
    let n = rows()?;
    let (agent, running) = live(t, "64MiB").await?;
    let dir = &t.source.address().dir;
    let file = dir.join(format!("{}.tsv", t.source.database()));
    {
        use std::io::Write;
        let mut out = std::io::BufWriter::new(std::fs::File::create(&file)?);
        for i in 0..n {
            writeln!(out, "{i}\t{i:0>100}")?;
        }
        out.flush()?;
    }
    let (table, path) = (t.source.table("items"), file.display());
    let load = match t.kind() {
        Kind::Postgres => format!("copy {table} from '{path}'"),
        _ => format!("load data infile '{path}' into table {table}"),
    };
    let loaded = t.source.superuser().await?.exec(&load).await;
    std::fs::remove_file(&file)?;
    loaded?;
    eventually("the load is in the lake", async || {
        Ok((t.committed_rows("items")? == n).then_some(()))
    })
    .await?;
    let peak = running.peak_memory()?;
    assert!(
        peak < 256 << 20,
        "{} MiB with 64 MiB of buffers",
        peak >> 20
    );
    running.sigterm().await?.expect(0)?;
    assert_eq!(spilled(&agent), 0);
    t.expect_equal(&["items"]).await?;
    Ok(())
}

/// What does not fit on the disk stays at the server, where the server can keep it.
async fn has_little_disk(t: &Trial) -> Result<()> {
    if t.kind() != Kind::Postgres {
        // Only prepared transactions wait at the agent, and they cannot be asked for again.
        return Ok(());
    }
    t.source
        .exec("create table items (id {int8} primary key, name varchar(200))")
        .await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("commit.memory", "64MiB")
        .set("commit.max_delay", "300ms")
        .set("limits.spill_bytes", "1MiB");
    agent.run_until_caught_up().await?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;
    let mut session = t.source.session().await?;
    session.exec("begin").await?;
    insert(t, &mut session, 0, 300_000).await?;
    eventually("the disk is too small for it", async || {
        Ok(running
            .log()
            .contains("once they have committed")
            .then_some(()))
    })
    .await?;
    session.exec("commit").await?;
    eventually("the transaction is in the lake", async || {
        Ok((t.committed_rows("items")? == 300_000).then_some(()))
    })
    .await?;
    running.sigterm().await?.expect(0)?;
    t.expect_equal(&["items"]).await?;
    Ok(())
}
