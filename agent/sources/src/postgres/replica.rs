//! Chunks from a physical standby, while the log is read from the primary.
//!
//! The standby's rows are the primary's as of what it has replayed. A commit is seen on a standby
//! from the moment on that its record is replayed, and `pg_last_wal_replay_lsn` moves past a
//! record only when that is done; so what a tail at `base` has delivered is visible as soon as
//! that function gives `base` or more (INV-5). Running transactions and synchronous standbys, for
//! which the primary must be watched, do not matter here. The catalogue that a chunk is
//! compared with is as old as its rows.
//!
//! A standby that is promoted gets rows that the primary's log does not have. A chunk that has
//! ended in recovery has seen none of them.
//!
//! Each reader connects by itself, and a name may stand for several standbys: so each chunk waits
//! for its table's base.

use super::connect::Client;
use super::connect::query_error;
use super::{Lsn, Shared, slot};
use caudal_model::{Error, Kind, Result, TableName};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a standby may be behind before a worker gives its turn to another try.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// What tables' chunks must see.
#[derive(Debug, Default)]
pub struct Bases(Mutex<HashMap<TableName, Lsn>>);

impl Bases {
    /// Notes the base of a copy that begins.
    pub fn note(&self, table: &TableName, base: Lsn) {
        let mut bases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bases.insert(table.clone(), base);
    }

    fn get(&self, table: &TableName) -> Option<Lsn> {
        let bases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bases.get(table).copied()
    }
}

/// Host and port of `host`, `host:port` or `[address]:port`.
pub fn address(text: &str, port: u16) -> (String, u16) {
    let plain = |host: &str| host.trim_matches(['[', ']']).to_owned();
    match text.rsplit_once(':') {
        Some((host, after)) if !host.contains(':') || host.ends_with(']') => match after.parse() {
            Ok(port) => (plain(host), port),
            Err(_) => (plain(text), port),
        },
        _ => (plain(text), port),
    }
}

/// Checks that a connection is one to a standby of the source.
pub async fn verify(client: &Client, shared: &Shared) -> Result<()> {
    const WHO: &str =
        "SELECT pg_is_in_recovery(), system_identifier::text FROM pg_control_system()";
    let row = client.query_one(WHO, &[]).await.map_err(query_error)?;
    let primary = shared.control().await?;
    let source = primary.query_one(WHO, &[]).await.map_err(query_error)?;
    let wrong = |text: &str| {
        Err(Error::fatal(Kind::Prerequisite, text)
            .hint("set the replica to a streaming standby of [source] host, or take it out"))
    };
    if row.get::<_, String>(1) != source.get::<_, String>(1) {
        return wrong("the replica is another server, not a standby of the source");
    }
    if !row.get::<_, bool>(0) {
        return wrong("the replica is no standby: it is not in recovery");
    }
    Ok(())
}

/// Waits until the standby has replayed what a chunk of the table must see.
pub async fn await_base(client: &Client, shared: &Shared, table: &TableName) -> Result<()> {
    match shared.bases.get(table) {
        Some(base) => await_replay(client, base).await,
        None => Ok(()),
    }
}

/// Waits until the standby has replayed everything that the primary has now.
pub async fn await_primary(client: &Client, shared: &Shared) -> Result<()> {
    let (now, _) = slot::log_ends(&*shared.control().await?).await?;
    await_replay(client, now).await
}

/// Waits until the standby has replayed the log up to `through`.
pub async fn await_replay(client: &Client, through: Lsn) -> Result<()> {
    let started = Instant::now();
    loop {
        let row = client
            .query_one(
                "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text",
                &[],
            )
            .await
            .map_err(query_error)?;
        if !row.get::<_, bool>(0) {
            return Err(promoted());
        }
        let replayed = row.get::<_, Option<String>>(1).and_then(|t| t.parse().ok());
        if replayed.is_some_and(|at: Lsn| at >= through) {
            return Ok(());
        }
        if started.elapsed() >= PATIENCE {
            let text = format!("the replica has not replayed the log up to {through} yet");
            return Err(Error::retryable(Kind::Source, text)
                .hint("see pg_stat_replication on the primary, and recovery_min_apply_delay on the replica"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Checks that the standby is one still, after a chunk.
pub async fn still_standby(client: &Client) -> Result<()> {
    let row = client
        .query_one("SELECT pg_is_in_recovery()", &[])
        .await
        .map_err(query_error)?;
    if row.get(0) { Ok(()) } else { Err(promoted()) }
}

fn promoted() -> Error {
    Error::retryable(Kind::Source, "the replica was promoted while it was read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let a = |text| address(text, 5432);
        assert_eq!(a("db"), ("db".to_owned(), 5432));
        assert_eq!(a("db:6000"), ("db".to_owned(), 6000));
        assert_eq!(a("[::1]:6000"), ("::1".to_owned(), 6000));
        assert_eq!(a("::1"), ("::1".to_owned(), 5432));
    }
}
