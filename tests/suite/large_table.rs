//! A large table, copied while it is written to and with the agent killed five times, is
//! equal at the end, in bounded memory.
//!
//! `CAUDAL_LARGE_ROWS=50000000` makes it as large as the name says; so many rows need 12 GB in
//! the temporary directory, and longer than the test runner allows: the test's own binary with
//! `--exact --nocapture` has no limit. Without it the table is small.

// The figures are what a run with many rows is for.
#![allow(clippy::print_stderr)]

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::eventually;
use caudal_tests::databases::Kind;
use caudal_tests::{Result, Source, bail, oracle, venv};
use rand::Rng;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

on_every_source!(is_equal_after_five_kills);

const SCRIPT: &str = include_str!("large_table.py");
/// Rows of one statement that fills the table.
const STEP: u64 = 2_000_000;
/// The most memory that the agent may ever hold, whatever the table.
const MOST_MEMORY: u64 = 512 << 20;

#[derive(Debug, Deserialize)]
struct Sums {
    sums: String,
    copied: u64,
    copied_twice: u64,
    chunks: u64,
    chunks_twice: u64,
    files: u64,
    bytes: u64,
}

async fn is_equal_after_five_kills(t: &Trial) -> Result<()> {
    let rows: u64 = match std::env::var("CAUDAL_LARGE_ROWS") {
        Ok(n) => n.parse()?,
        Err(_) => 60_000,
    };
    t.source
        .exec("create table big (id {int8} primary key, k {int4}, name varchar(64), amount decimal(14,2))")
        .await?;
    fill(&t.source, rows).await?;
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let writer = tokio::spawn(write(
        t.source.session().await?,
        rows,
        stop.clone(),
        done.clone(),
    ));

    let mut agent = t.agent()?;
    agent.config.set("commit.max_delay", "2s");
    if rows < STEP {
        agent
            .config
            .set("snapshot.chunk_rows", 500)
            .set("snapshot.max_source_rows_per_second", (rows / 5) as i64)
            .set("commit.max_delay", "100ms");
    }
    let began = Instant::now();
    let mut peak = 0;
    for fifth in 1..=5 {
        let running = agent.spawn()?;
        let wanted = rows * fifth / 6;
        copied(t, wanted).await?;
        peak = peak.max(running.peak_memory()?);
        running.kill9().await?;
    }
    let mut running = agent.spawn()?;
    copied(t, rows).await?;
    running.wait_until_live().await?;
    let took = began.elapsed();
    peak = peak.max(running.peak_memory()?);
    stop.store(true, Ordering::Relaxed);
    writer.await??;
    running.sigterm().await?.expect(0)?;
    agent.run_until_caught_up().await?;

    let expected = source_sums(&t.source).await?;
    let found = lake_sums(t).await?;
    eprintln!(
        "{rows} rows in {took:.1?} ({:.0} rows/s), five kills, {} changes meanwhile; {} chunks in {} files of {} MiB; peak {} MiB",
        rows as f64 / took.as_secs_f64(),
        done.load(Ordering::Relaxed),
        found.chunks,
        found.files,
        found.bytes >> 20,
        peak >> 20,
    );
    assert_eq!(found.sums, expected);
    assert_eq!((found.copied_twice, found.chunks_twice), (0, 0));
    assert!(found.copied > rows / 2, "{found:?}");
    assert!(peak < MOST_MEMORY, "{} MiB", peak >> 20);
    Ok(())
}

/// Waits until so many rows are committed, however long that takes if it goes on.
async fn copied(t: &Trial, wanted: u64) -> Result<()> {
    loop {
        let before = t.committed_rows("big")?;
        if before >= wanted {
            return Ok(());
        }
        eventually("more of the copy is committed", || async {
            Ok((t.committed_rows("big")? > before).then_some(()))
        })
        .await?;
    }
}

async fn fill(source: &Source, rows: u64) -> Result<()> {
    let mut there = 0;
    while there < rows {
        let n = (rows - there).min(if source.kind() == Kind::Postgres || there == 0 {
            STEP
        } else {
            there.min(STEP)
        });
        let from = match (source.kind(), there) {
            (Kind::Postgres, _) => format!("generate_series({}, {}) as s(i)", there + 1, there + n),
            // Recursion is limited to a thousand rows; the rest is doubled.
            (_, 0) => {
                let n = n.min(1000);
                let list: Vec<String> = (1..=n).map(|i| format!("({i}, 0, '', 0)")).collect();
                source
                    .exec(&format!("insert into big values {}", list.join(",")))
                    .await?;
                source
                    .exec("update big set k = id % 1000, name = sha2(id, 256), amount = (id % 1000000) / 100")
                    .await?;
                there = n;
                continue;
            }
            (..) => format!("(select id + {there} as i from big where id <= {n}) s"),
        };
        let text = match source.kind() {
            Kind::Postgres => "encode(sha256(i::text::bytea), 'hex')",
            _ => "sha2(i, 256)",
        };
        source
            .exec(&format!(
                "insert into big select i, i % 1000, {text}, (i % 1000000) / 100.0 from {from}"
            ))
            .await?;
        there += n;
    }
    if source.kind() == Kind::Postgres {
        source.exec("vacuum analyze big").await?;
    }
    Ok(())
}

/// Updates, deletes and inserts single rows until it is told to stop.
async fn write(
    mut session: caudal_tests::Session,
    rows: u64,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Result<()> {
    let mut next = rows;
    while !stop.load(Ordering::Relaxed) {
        let (a, b) = {
            let mut dice = rand::rng();
            (dice.random_range(1..=rows), dice.random_range(1..=rows))
        };
        next += 1;
        session
            .exec(&format!(
                "update big set k = k + 1, name = 'changed' where id = {a}"
            ))
            .await?;
        session
            .exec(&format!("delete from big where id = {b}"))
            .await?;
        session
            .exec(&format!("insert into big values ({next}, 7, 'new', 1.50)"))
            .await?;
        done.fetch_add(3, Ordering::Relaxed);
        // pace: a steady load beside the copy, not as much as the machine can.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

async fn source_sums(source: &Source) -> Result<String> {
    let row = "concat_ws('|', id, k, name, amount)";
    let digest = match source.kind() {
        Kind::Postgres => {
            format!("('x' || substr(encode(sha256({row}::bytea), 'hex'), 1, 8))::bit(32)::bigint")
        }
        _ => format!("cast(conv(substr(sha2({row}, 256), 1, 8), 16, 10) as unsigned)"),
    };
    let sql =
        format!("select concat_ws(' ', count(*), sum(id), sum(amount), sum({digest})) from big");
    source.scalar(&sql).await
}

async fn lake_sums(t: &Trial) -> Result<Sums> {
    let python = venv::python("oracle", oracle::PACKAGES)?;
    let script = t.dir().join("large_table.py");
    std::fs::write(&script, SCRIPT)?;
    let output = tokio::process::Command::new(python)
        .arg(&script)
        .arg(t.lake().join(&t.stream))
        .arg(t.source.table("big"))
        .output()
        .await?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
