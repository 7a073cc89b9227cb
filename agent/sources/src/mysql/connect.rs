//! Connections as the stream needs them, and the questions that more than one part asks.

use super::charsets::Charsets;
use super::control::{Ask, Control};
use super::decode::values::Coerced;
use super::flavor::Flavor;
use super::gtid::{Coordinate, GtidList, GtidSet, Place};
use super::wire::{Connection, WireError};
use crate::SourceOptions;
use caudal_model::{Error, Kind, Result, TableName};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Values that were changed on their way, since the source was made.
#[derive(Debug, Default)]
pub struct Coercions {
    zero_dates: AtomicU64,
}

impl Coercions {
    pub(super) fn add(&self, c: Coerced) {
        if c.zero_dates > 0 {
            self.zero_dates.fetch_add(c.zero_dates, Ordering::Relaxed);
        }
    }

    /// The count of each reason, for `caudal_values_coerced_total{reason}`.
    pub fn counts(&self) -> [(&'static str, u64); 1] {
        [("zero_date", self.zero_dates.load(Ordering::Relaxed))]
    }
}

/// What a source, its tail and its readers share.
#[derive(Debug)]
pub struct Server {
    pub(super) options: SourceOptions,
    pub(super) flavor: Flavor,
    pub(super) coerced: Coercions,
    pub(super) charsets: Charsets,
    /// Where the tail stands in the server's files.
    pub(super) reached: Mutex<Option<Reached>>,
    /// What watches over the source keep.
    pub(super) watch: super::watch::Watch,
    /// Positions that a replica must have come to before it is read.
    pub(super) bases: Mutex<Vec<Place>>,
    /// How densely the keys of tables that are copied lie.
    pub(super) spacings: Mutex<HashMap<TableName, super::chunk::Spacing>>,
}

/// Where a tail stands in the server's files.
#[derive(Debug, Clone)]
pub struct Reached {
    pub(super) at: Coordinate,
    /// When what it read last was committed, microseconds since 1970 UTC; `None` at the
    /// end of the log.
    pub(super) committed_at_us: Option<i64>,
}

impl Server {
    pub(super) fn new(options: SourceOptions, flavor: Flavor) -> Self {
        Server {
            options,
            flavor,
            coerced: Coercions::default(),
            charsets: Charsets::default(),
            reached: Mutex::default(),
            watch: super::watch::Watch::default(),
            bases: Mutex::default(),
            spacings: Mutex::default(),
        }
    }

    /// A connection for rows or the log, with the session's settings.
    pub(super) async fn connect(&self) -> Result<Connection> {
        let mut c = Connection::open(&self.options).await?;
        self.set_up(&mut c).await?;
        Ok(c)
    }

    /// A connection for questions, with the same settings.
    pub(super) async fn control(&self) -> Result<Control> {
        let mut c = Control::open(&self.options).await?;
        self.set_up(&mut c).await?;
        Ok(c)
    }

    pub(super) async fn set_up(&self, c: &mut dyn Ask) -> Result<()> {
        let found = c.flavor().name();
        if c.flavor() != self.flavor {
            return Err(Error::fatal(
                Kind::Config,
                format!(
                    "source.kind is {}, but the server is {found}",
                    self.flavor.name()
                ),
            )
            .hint(format!("set source.kind = \"{found}\"")));
        }
        session(c).await
    }

    /// Reads a charset's table.
    pub(super) async fn load_charset(&self, name: &str) -> Result<()> {
        self.charsets.load(&mut self.control().await?, name).await
    }

    /// The replica's id: the configured one, or one made of the stream's name.
    pub(super) fn server_id(&self) -> u32 {
        let derived = crc32fast::hash(self.options.stream.as_bytes());
        // High, where people rarely number their servers; never 0.
        self.options.server_id.unwrap_or(derived | 0x8000_0000)
    }
}

/// The settings that decide what values look like and how long a slow reader is waited for.
///
/// `sql_mode` without strictness or NO_ZERO_DATE, and with ALLOW_INVALID_DATES: every date that
/// a table can hold can be read and compared.
async fn session(c: &mut dyn Ask) -> Result<()> {
    for sql in [
        "SET NAMES utf8mb4",
        "SET SESSION time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES', autocommit = 1, \
         net_write_timeout = 3600, net_read_timeout = 3600, wait_timeout = 86400",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    ] {
        c.query(sql)
            .await
            .map_err(|e| Error::from(e).context("setting up the session"))?;
    }
    Ok(())
}

/// Lifts the limit that a DBA has set for the time of a statement. Chunks keep to it and become
/// smaller; a read that cannot be divided would never end.
pub(super) async fn lift_time_limit(c: &mut dyn Ask) -> Result<()> {
    let limit = match c.flavor() {
        Flavor::MySql => "SET SESSION max_execution_time = 0",
        Flavor::MariaDb => "SET SESSION max_statement_time = 0",
    };
    c.query(limit).await?;
    Ok(())
}

/// Whether the server is MySQL with GTIDs on.
pub(super) async fn has_gtids(c: &mut dyn Ask) -> Result<bool> {
    if c.flavor() == Flavor::MariaDb {
        return Ok(false);
    }
    Ok(c.value("SELECT @@GLOBAL.gtid_mode").await?.as_deref() == Some("ON"))
}

/// The end of the binary log now.
pub(super) async fn current_coordinate(c: &mut dyn Ask) -> Result<Coordinate> {
    let mut found = Vec::new();
    for sql in ["SHOW BINARY LOG STATUS", "SHOW MASTER STATUS"] {
        match c.query(sql).await {
            Ok(rows) => {
                found = rows;
                break;
            }
            // MySQL before 8.2 and MariaDB know only the second form.
            Err(WireError::Server { code: 1064, .. }) => continue,
            Err(e) => return Err(e.into()),
        }
    }
    let row = found.first().ok_or_else(no_log)?;
    Ok(Coordinate {
        file: row.text(0),
        offset: row.number(1),
    })
}

pub(super) fn no_log() -> Error {
    Error::fatal(Kind::Prerequisite, "the source writes no binary log")
        .hint("set log_bin in the server's configuration and restart it")
}

/// A position that covers everything committed before it was asked.
pub(super) async fn current_place(c: &mut dyn Ask) -> Result<Place> {
    if c.flavor() == Flavor::MariaDb {
        let text = c
            .value("SELECT @@GLOBAL.gtid_binlog_pos")
            .await?
            .unwrap_or_default();
        let list = GtidList::parse(&text);
        return list
            .map(Place::Domains)
            .ok_or_else(|| odd("gtid_binlog_pos"));
    }
    if has_gtids(c).await? {
        let set = executed(c, "gtid_executed").await?;
        return Ok(Place::Gtids(set));
    }
    Ok(Place::File(current_coordinate(c).await?))
}

/// `gtid_executed` or `gtid_purged`.
pub(super) async fn executed(c: &mut dyn Ask, variable: &str) -> Result<GtidSet> {
    let text = c
        .value(&format!("SELECT @@GLOBAL.{variable}"))
        .await?
        .unwrap_or_default();
    GtidSet::parse(&text).ok_or_else(|| odd(variable))
}

fn odd(variable: &str) -> Error {
    Error::retryable(
        Kind::Corrupt,
        format!("the source's {variable} does not parse"),
    )
}

/// The server's log files and their sizes, oldest first.
pub(super) async fn log_files(c: &mut dyn Ask) -> Result<Vec<(String, u64)>> {
    let rows = c.query("SHOW BINARY LOGS").await?;
    Ok(rows.iter().map(|r| (r.text(0), r.number(1))).collect())
}
