//! A store that is ten times slower than the source: the agent's memory stays flat, its
//! connections stay alive, nothing is lost, and it catches up once the store is fast again.
//!
//! `CAUDAL_SLOW_STORE_SECONDS=600` makes it last ten minutes; without it, some seconds. So
//! long a run exceeds the test runner's limit: the test's own binary with `--exact
//! --nocapture` has none.

// The figures are what a long run is for.
#![allow(clippy::print_stderr)]

use crate::trial::{Trial, on_every_source};
use caudal_tests::agent::eventually;
use caudal_tests::proxy::{Direction, Proxy, Traffic};
use caudal_tests::{Result, S3Server};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

on_every_source!(memory_stays_flat);

/// Bytes that the source writes in a second; random, so that nothing compresses them much.
const SOURCE_RATE: u64 = 2_000_000;
/// A row's payload.
const PAYLOAD: usize = 2_000;
/// What the agent may hold beyond `commit.memory`: its code, its threads, RocksDB, the SDK.
const BESIDE: u64 = 160 << 20;
const MEMORY: u64 = 64 << 20;

async fn memory_stays_flat(t: &Trial) -> Result<()> {
    let seconds: u64 = match std::env::var("CAUDAL_SLOW_STORE_SECONDS") {
        Ok(n) => n.parse()?,
        Err(_) => 8,
    };
    let s3 = S3Server::start(&["lake"])?;
    t.source
        .exec("create table items (id {int8} primary key, payload {text})")
        .await?;
    let mut agent = t.agent()?;
    s3.configure(&mut agent.config, "lake", "raw");
    agent
        .config
        .set("commit.memory", "64MiB")
        .set("commit.max_bytes", "8MiB")
        .set("commit.max_delay", "500ms");
    let proxy = Proxy::before_store(&mut agent.config)?;
    let mut running = agent.spawn()?;
    running.wait_until_live().await?;

    proxy.set_one(Direction::Up, Traffic::Slow(SOURCE_RATE / 2 / 10));
    let began = Instant::now();
    let mut random = StdRng::seed_from_u64(41);
    let mut session = t.source.session().await?;
    let mut rows = 0u64;
    let mut peaks = Vec::new();
    while began.elapsed() < Duration::from_secs(seconds) {
        let mut sql = String::from("insert into items values ");
        for _ in 0..100 {
            let comma = if sql.ends_with(')') { ", " } else { "" };
            let _ = write!(sql, "{comma}({rows}, '");
            for _ in 0..PAYLOAD / 16 {
                let _ = write!(sql, "{:016x}", random.random::<u64>());
            }
            sql.push_str("')");
            rows += 1;
        }
        session.exec(&sql).await?;
        // pace: what the source writes in a second is the input of this test.
        let due = Duration::from_secs_f64((rows * PAYLOAD as u64) as f64 / SOURCE_RATE as f64);
        tokio::time::sleep_until((began + due).into()).await;
        if rows.is_multiple_of(1_000) {
            peaks.push(running.peak_memory()?);
        }
    }
    let behind = running.status().await?;
    assert!(running.ended()?.is_none(), "{}", running.log());
    let sent = proxy.passed(Direction::Up);

    proxy.mend();
    let fast = Instant::now();
    let head = t.source.scalar("select count(*) from items").await?;
    running
        .wait_for_status("it has caught up", |s| {
            s.epoch > behind.epoch && s.lag_seconds.is_some_and(|l| l < 1.0)
        })
        .await?;
    let caught_up = fast.elapsed();
    let peak = running.peak_memory()?;
    let log = running.log();
    let retries = log.matches("trying again").count();
    running.sigterm().await?.expect(0)?;
    eprintln!(
        "{}: {head} rows ({} MiB) in {seconds} s, {} MiB of them through the slow store; {retries} attempts failed; \
         peak memory {} MiB ({} MiB after a third); caught up in {caught_up:.1?}",
        t.source.version(),
        (rows * PAYLOAD as u64) >> 20,
        sent >> 20,
        peak >> 20,
        peaks.get(peaks.len() / 3).copied().unwrap_or_default() >> 20,
    );
    assert!(peak < MEMORY + BESIDE, "{} MiB", peak >> 20);
    assert_eq!(retries, 0, "a slow store is no reason to give up:\n{log}");
    agent.run_until_caught_up().await?;
    let lake = t.dir().join("dump");
    s3.dump("lake", "raw", &lake)?;
    let report = t.expect_equal_in(&lake, &["items"]).await?;
    assert_eq!(report.count(&t.source.table("items"), "c"), rows);
    eventually("no upload is left", async || {
        Ok((s3.open_uploads() == 0).then_some(()))
    })
    .await
}
