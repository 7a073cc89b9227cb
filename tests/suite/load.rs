//! A load of several sessions on three tables: transactions of every kind, rollbacks,
//! key changes and large values included. It goes on until it is stopped.

use caudal_tests::databases::Kind;
use caudal_tests::{Result, Session, Source, dialect};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::task::JoinHandle;

/// The tables of the load.
pub const TABLES: [&str; 3] = ["accounts", "ledger", "visits"];

/// Creates the tables and `rows` rows in each of the first two.
pub async fn prepare(source: &Source, rows: i64) -> Result<()> {
    source
        .exec(
            "create table accounts (id {int8} primary key, balance {decimal}, note {text}, \
             payload {bytes}, rate {double}, changed {timestamp});
             create table ledger (account {int8} not null, line {int4} not null, amount {decimal}, \
             primary key (account, line));
             create table visits (who {int8}, what {text});",
        )
        .await?;
    if source.kind() == Kind::Postgres {
        source
            .exec("alter table visits replica identity full")
            .await?;
    }
    let kind = source.kind();
    source
        .fill("accounts", 1, rows, |i| {
            let payload = dialect::bytes(kind, &format!("{i:08x}ff00"));
            format!("({i}, {i}.5, 'note {i}', {payload}, {i}.25, '2026-01-01 00:00:00.123456')")
        })
        .await?;
    source
        .fill("ledger", 1, rows, |i| {
            format!("({}, {}, 1.0001)", i / 3, i % 3)
        })
        .await?;
    source
        .fill("visits", 1, rows.min(500), |i| {
            format!("({}, 'first')", i % 7)
        })
        .await
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    sessions: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts `sessions` sessions; what they do follows from `seed`, when they do it does not.
    pub async fn start(source: &Source, sessions: u64, seed: u64) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut handles = Vec::new();
        for number in 0..sessions {
            let session = source.session().await?;
            let (kind, stop, done) = (source.kind(), Arc::clone(&stop), Arc::clone(&done));
            let random = StdRng::seed_from_u64(seed * 1000 + number);
            // Ids of its own, also beside what another seed's load has left.
            let next_id = 1_000_000_000 * (number as i64 + 1) + 1_000_000 * seed as i64;
            handles.push(tokio::spawn(work(
                session, kind, next_id, random, stop, done,
            )));
        }
        Ok(Load {
            stop,
            done,
            sessions: handles,
        })
    }

    /// Transactions committed so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Stops; everything it did is committed or rolled back on return.
    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session.await??;
        }
        Ok(self.done.load(Ordering::Relaxed))
    }
}

async fn work(
    mut session: Session,
    kind: Kind,
    mut next_id: i64,
    mut random: StdRng,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let statements = random.random_range(1..6);
        let mut failed = session.exec("begin").await.is_err();
        for _ in 0..statements {
            let sql = statement(kind, &mut next_id, &mut random);
            if session.exec(&sql).await.is_err() {
                // A deadlock or a taken key: the whole transaction goes.
                failed = true;
                break;
            }
        }
        if failed || random.random_bool(0.1) {
            session.exec("rollback").await?;
        } else {
            session.exec("commit").await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn statement(kind: Kind, next_id: &mut i64, random: &mut StdRng) -> String {
    let id = random.random_range(1..3000);
    let amount = format!(
        "{}.{:04}",
        random.random_range(-1000..1000),
        random.random_range(0..10000)
    );
    match random.random_range(0..100) {
        0..30 => {
            *next_id += 1;
            // Now and then larger than a page, so that PostgreSQL stores it out of line.
            let words = if random.random_bool(0.1) { 2500 } else { 2 };
            let note: String = (0..words)
                .map(|_| format!("{:08x}", random.random::<u32>()))
                .collect();
            let payload = dialect::bytes(kind, &format!("{:016x}", random.random::<u64>()));
            format!(
                "insert into accounts (id, balance, note, payload, rate, changed) values ({next_id}, {amount}, '{note}', {payload}, {}, \
                 '2026-02-03 04:05:06.789')",
                random.random::<f64>()
            )
        }
        30..55 => format!(
            "update accounts set balance = {amount} where id between {id} and {}",
            id + 3
        ),
        55..65 => format!("update accounts set note = null, rate = rate * -1 where id = {id}"),
        65..70 => {
            *next_id += 1;
            format!("update accounts set id = {next_id} where id = {id}")
        }
        70..78 => format!("delete from accounts where id between {id} and {}", id + 1),
        78..84 => dialect::upsert(
            kind,
            "ledger",
            "line",
            &["line", "account", "amount"],
            &format!("(0, {id}, {amount})"),
        )
        .replace("on conflict (line)", "on conflict (account, line)"),
        84..90 => format!(
            "update ledger set amount = amount + 1 where account = {}",
            id / 3
        ),
        90..95 => format!(
            "insert into visits values ({}, 'visit {id}'), ({}, 'visit {id}')",
            id % 7,
            id % 7
        ),
        95..98 => format!("update visits set who = who + 1 where what = 'visit {id}'"),
        _ => format!(
            "delete from visits where who = {} and what = 'first'",
            id % 7
        ),
    }
}
