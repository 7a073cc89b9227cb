//! Replicas: copies may be read from one while the log is read from the primary.
//!
//! **INV-5 on a replica.** A chunk may be read once the replica has committed everything that the
//! tail delivered up to the base. Both families tell by global transaction ids, after the
//! engine's commit: MySQL's WAIT_FOR_EXECUTED_GTID_SET, MariaDB's MASTER_GTID_WAIT on what its
//! applier has come to. File positions of two servers cannot be related. A name may lead to another
//! server with each connection, so every one of them waits for the bases of all copies.
//!
//! A chunk that shows less than the primary has is as good as one that was read earlier: what
//! is missing comes by the tail. A table is live only past a position of the primary.

use super::connect::{Server, has_gtids};
use super::control::Ask;
use super::flavor::Flavor;
use super::gtid::{GtidList, Place};
use super::wire::{Connection, TextRow, WireError};
use crate::SourceOptions;
use caudal_model::{Error, Finding, Kind, Result, Severity};
use std::time::{Duration, Instant};

/// How long a replica may take to come to a base.
const PATIENCE: Duration = Duration::from_secs(600);
/// Seconds of one wait inside the server.
const SLICE_SECONDS: u64 = 10;

/// Schemas of the servers' own, which providers leave out of replication.
const SYSTEM: [&str; 5] = [
    "mysql",
    "sys",
    "performance_schema",
    "information_schema",
    "innodb_memcache",
];

/// The options of another server of the same kind: `host`, `host:port` or `[address]:port`.
///
/// Errors: [`Kind::Config`] for a port that is none.
pub(super) fn options_at(options: &SourceOptions, address: &str) -> Result<SourceOptions> {
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.starts_with('[') => (host, Some(port)),
        _ => (address, None),
    };
    let port = match port.map(str::parse) {
        None => options.port,
        Some(Ok(port)) => port,
        Some(Err(_)) => {
            let text = format!("`{address}` is neither a host nor host:port");
            return Err(Error::fatal(Kind::Config, text));
        }
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(SourceOptions {
        host: host.to_owned(),
        port,
        ..options.clone()
    })
}

/// One of a replica's connections to a primary.
#[derive(Debug)]
pub(super) struct Channel {
    fields: Vec<(String, String)>,
}

impl Channel {
    /// A field that MySQL has renamed since, by what follows `Replica_`, `Source_` and the like.
    fn get(&self, names: &[&str]) -> &str {
        let found = self
            .fields
            .iter()
            .find(|(n, _)| names.contains(&n.as_str()));
        found.map_or("", |(_, v)| v)
    }

    /// How far behind it is; [`Duration::MAX`] if it stands still.
    pub(super) fn lag(&self) -> Duration {
        let runs = |names: &[&str]| self.get(names) == "Yes";
        let running = runs(&["Replica_IO_Running", "Slave_IO_Running"])
            && runs(&["Replica_SQL_Running", "Slave_SQL_Running"]);
        let behind = self.get(&["Seconds_Behind_Source", "Seconds_Behind_Master"]);
        match behind.parse() {
            Ok(seconds) if running => Duration::from_secs(seconds),
            _ => Duration::MAX,
        }
    }

    /// A filter that may leave out tables of the stream.
    fn filter(&self) -> Option<String> {
        let filters = self
            .fields
            .iter()
            .filter(|(n, v)| !v.is_empty() && (n.starts_with("Replicate_")));
        let mut may_hide = filters.filter(|(name, value)| {
            let ignores = name.contains("_Ignore_") && !name.contains("Domain");
            let database = |entry: &str| {
                let first = entry.trim().split('.').next().unwrap_or_default();
                first.replace("\\_", "_").to_ascii_lowercase()
            };
            !ignores || !value.split(',').all(|e| SYSTEM.contains(&&*database(e)))
        });
        may_hide.next().map(|(n, v)| format!("{n} is {v}"))
    }
}

/// The channels through which a server replicates; none if it is no replica.
pub(super) async fn channels(c: &mut dyn Ask) -> Result<Vec<Channel>> {
    let forms: &[&str] = match c.flavor() {
        Flavor::MySql => &["SHOW REPLICA STATUS", "SHOW SLAVE STATUS"],
        Flavor::MariaDb => &["SHOW ALL SLAVES STATUS"],
    };
    for sql in forms {
        let (names, rows) = match c.result(sql).await {
            Ok(found) => found,
            // Before 8.0.22.
            Err(WireError::Server { code: 1064, .. }) => continue,
            Err(WireError::Server {
                code: 1227,
                message,
            }) => {
                let grant = match c.flavor() {
                    Flavor::MySql => "REPLICATION CLIENT",
                    Flavor::MariaDb => "REPLICA MONITOR",
                };
                let text = format!("the replica answered: {message}");
                return Err(Error::fatal(Kind::Prerequisite, text)
                    .hint(format!("GRANT {grant} ON *.* TO the agent's user")));
            }
            Err(e) => return Err(e.into()),
        };
        let fields = |r: &TextRow| {
            let value = |(i, n): (usize, &String)| (n.clone(), r.text(i));
            names.iter().enumerate().map(value).collect()
        };
        let channel = |r: &TextRow| Channel { fields: fields(r) };
        return Ok(rows.iter().map(channel).collect());
    }
    Ok(Vec::new())
}

fn prerequisite(address: &str, what: impl std::fmt::Display, hint: &str) -> Error {
    Error::fatal(
        Kind::Prerequisite,
        format!("copies cannot be read from {address}: {what}"),
    )
    .hint(hint.to_owned())
}

/// Connects to the replica, and waits until it has come to the bases of all copies.
pub(super) async fn connect(server: &Server, address: &str) -> Result<Connection> {
    let options = options_at(&server.options, address)?;
    let mut c = Connection::open(&options).await?;
    server.set_up(&mut c).await?;
    verify(&mut c, address).await?;
    let bases = server.bases.lock().map(|b| b.clone()).unwrap_or_default();
    for base in &bases {
        reach(&mut c, address, base).await?;
    }
    Ok(c)
}

/// Notes a base, which every later connection waits for as well.
pub(super) fn remember(server: &Server, base: &Place) {
    if let Ok(mut bases) = server.bases.lock() {
        bases.retain(|b| !base.covers(b).unwrap_or(false));
        bases.push(base.clone());
    }
}

/// Refuses a server that is no replica or lacks tables.
async fn verify(c: &mut dyn Ask, address: &str) -> Result<()> {
    let channels = channels(c).await?;
    if c.flavor() == Flavor::MySql && !has_gtids(c).await? {
        return Err(unrelated(address));
    }
    if channels.is_empty() && c.flavor() == Flavor::MariaDb {
        return Err(no_replica(address));
    }
    match channels.iter().find_map(Channel::filter) {
        None => Ok(()),
        Some(filter) => Err(prerequisite(
            address,
            format!("it does not replicate everything: {filter}"),
            "remove the filter, or read copies from the primary (snapshot.replica)",
        )),
    }
}

fn unrelated(address: &str) -> Error {
    prerequisite(
        address,
        "positions of two servers can be related by GTIDs alone",
        "set gtid_mode = ON on both servers, or remove snapshot.replica",
    )
}

fn no_replica(address: &str) -> Error {
    prerequisite(
        address,
        "it is not a replica of the source",
        "name a replica of source.host in snapshot.replica, or remove it",
    )
}

/// Whether the server's transactions came from where the base's did.
async fn related(c: &mut Connection, base: &Place) -> Result<bool> {
    let channels = channels(c).await?;
    Ok(match base {
        Place::File(_) => false,
        Place::Gtids(set) => {
            let executed = super::connect::executed(c, "gtid_executed").await?;
            // One that was just set up has none yet.
            executed.shares_an_origin(set) || executed.is_empty() && !channels.is_empty()
        }
        Place::Domains(list) => {
            let applied = c.value("SELECT @@GLOBAL.gtid_slave_pos").await?;
            let applied = applied.as_deref().and_then(GtidList::parse);
            // After a failover, the next primary has written nothing that was applied.
            let follows = channels.iter().any(|c| {
                let primary = c.get(&["Master_Server_Id"]).parse::<u32>();
                list.gtids().any(|g| primary == Ok(g.server))
            });
            follows || applied.is_some_and(|a| a.shares_an_origin(list))
        }
    })
}

/// INV-5: returns once the replica shows everything up to `base`.
pub(super) async fn reach(c: &mut Connection, address: &str, base: &Place) -> Result<()> {
    let sql = match base {
        Place::File(_) => return Err(unrelated(address)),
        Place::Gtids(set) if set.is_empty() => return Ok(()),
        Place::Domains(list) if list.is_empty() => return Ok(()),
        Place::Gtids(set) => {
            format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{set}', {SLICE_SECONDS})")
        }
        Place::Domains(list) => format!("SELECT MASTER_GTID_WAIT('{list}', {SLICE_SECONDS})"),
    };
    if !related(c, base).await? {
        return Err(no_replica(address));
    }
    let started = Instant::now();
    let mut warned = false;
    loop {
        let come = match c.value(&sql).await {
            Ok(answer) => answer.as_deref() == Some("0"),
            // Its time limit for statements is shorter than the wait.
            Err(WireError::Server {
                code: 1969 | 3024, ..
            }) => false,
            Err(e) => return Err(e.into()),
        };
        if come {
            return Ok(());
        }
        let waited = started.elapsed().as_secs();
        if started.elapsed() >= PATIENCE {
            let text = format!("{address} has not come to position {base} in {waited} s");
            return Err(Error::retryable(Kind::Source, text)
                .hint("see whether it replicates, or remove snapshot.replica"));
        }
        if !std::mem::replace(&mut warned, true) {
            tracing::warn!(replica = %address, "waiting until the replica shows the position where the copy begins");
        }
    }
}

/// What is wrong with the replicas that the options name.
pub(super) async fn findings(server: &Server, now: &Place) -> Vec<Finding> {
    let mut out = Vec::new();
    if let Some(address) = &server.options.replica {
        let checked = async {
            if matches!(now, Place::File(_)) {
                return Err(unrelated(address));
            }
            let options = options_at(&server.options, address)?;
            let mut c = Connection::open(&options).await?;
            server.set_up(&mut c).await?;
            verify(&mut c, address).await
        };
        out.push(finding("replica", address, checked.await));
    }
    for address in &server.options.watch_replicas {
        let checked = async {
            let options = options_at(&server.options, address)?;
            let mut c = Connection::open(&options).await?;
            match channels(&mut c).await?.is_empty() {
                true => Err(no_replica(address)),
                false => Ok(()),
            }
        };
        out.push(finding("watch_replicas", address, checked.await));
    }
    out
}

fn finding(check: &'static str, address: &str, outcome: Result<()>) -> Finding {
    match outcome {
        Ok(()) => Finding::new(Severity::Ok, check, format!("{address} replicates")),
        Err(e) => {
            let severity = match e.kind() {
                Kind::Prerequisite | Kind::Config => Severity::Error,
                _ => Severity::Warning,
            };
            let found = Finding::new(severity, check, e.to_string()).subject(address);
            match e.hint_text() {
                Some(hint) => found.mend(hint),
                None => found,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(fields: &[(&str, &str)]) -> Channel {
        let field = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
        Channel {
            fields: fields.iter().map(field).collect(),
        }
    }

    #[test]
    fn lag_of_channels() {
        let running = [("Slave_IO_Running", "Yes"), ("Slave_SQL_Running", "Yes")];
        let with = |more: &[(&str, &str)]| channel(&[&running[..], more].concat()).lag();
        assert_eq!(
            with(&[("Seconds_Behind_Master", "7")]),
            Duration::from_secs(7)
        );
        assert_eq!(with(&[("Seconds_Behind_Master", "")]), Duration::MAX);
        let stopped = [
            ("Replica_IO_Running", "Connecting"),
            ("Replica_SQL_Running", "Yes"),
            ("Seconds_Behind_Source", "0"),
        ];
        assert_eq!(channel(&stopped).lag(), Duration::MAX);
    }

    #[test]
    fn filters_that_hide_tables() {
        let hides = |n, v| channel(&[(n, v)]).filter().is_some();
        assert!(hides("Replicate_Do_DB", "a"));
        assert!(hides("Replicate_Ignore_Table", "mysql.x,shop.y"));
        assert!(hides("Replicate_Ignore_Domain_Ids", "2"));
        assert!(hides("Replicate_Rewrite_DB", "(a,b)"));
        assert!(!hides(
            "Replicate_Ignore_Table",
            "mysql.rds_history,mysql.x"
        ));
        assert!(!hides("Replicate_Wild_Ignore_Table", ""));
    }
}
