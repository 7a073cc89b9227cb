//! Which server and database a position belongs to, and whether another one has the same past.
//!
//! A cluster keeps its system identifier for life, standbys and restored backups have it too,
//! and each promotion begins a timeline: what was written on the old one behind the place of
//! the switch does not exist on the new. So a position holds on a server of the same system
//! whose timeline left the position's behind it. The log's numbers alone do not show this: a
//! promoted standby that had missed the last transactions soon passes the position with others.

use super::connect::query_error;
use super::lsn::Lsn;
use super::replication::ReplicationConnection;
use super::{Shared, membership};
use caudal_model::{Error, Kind, Result};
use std::fmt;
use std::str::FromStr;

/// What tells a database of a server from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// `pg_control_system().system_identifier`.
    system: u64,
    /// `pg_database.oid`.
    database: u32,
    /// The timeline that is written now.
    timeline: u32,
    /// `pg_publication.oid` of the stream's publication, once it is there.
    publication: Option<u32>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Server {
            system,
            database,
            timeline,
            publication,
        } = self;
        write!(
            f,
            "system {system}, database {database}, timeline {timeline}"
        )?;
        match publication {
            Some(oid) => write!(f, ", publication {oid}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Server {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut fields = text.split(", ");
        let mut field = |name: &str| {
            let value = fields.next().and_then(|f| f.strip_prefix(name));
            value.and_then(|v| v.trim().parse::<u64>().ok())
        };
        let parsed = (field("system"), field("database"), field("timeline"));
        let publication = field("publication");
        if let (Some(system), Some(database), Some(timeline)) = parsed
            && let (Ok(database), Ok(timeline)) = (database.try_into(), timeline.try_into())
        {
            return Ok(Server {
                system,
                database,
                timeline,
                publication: publication.and_then(|p| p.try_into().ok()),
            });
        }
        Err(lost(format!(
            "the stream's position is of `{text}`, which is no PostgreSQL server"
        )))
    }
}

impl Server {
    /// The server that is connected now.
    ///
    /// Errors: [`Kind::Prerequisite`] if it is a standby.
    pub async fn ask(shared: &Shared) -> Result<Self> {
        match Self::primary(shared).await? {
            Some(server) => Ok(server),
            None => Err(Error::fatal(
                Kind::Prerequisite,
                format!(
                    "{} is a standby, whose log cannot be followed",
                    shared.server()
                ),
            )
            .hint(
                "set [source] host to the primary; a standby can be named in [snapshot] replica",
            )),
        }
    }

    /// `None` for a standby.
    async fn primary(shared: &Shared) -> Result<Option<Self>> {
        let client = shared.control().await?;
        let row = client
            .query_one(
                "SELECT (SELECT system_identifier FROM pg_control_system()),
                        (SELECT oid FROM pg_database WHERE datname = current_database()),
                        CASE WHEN NOT pg_is_in_recovery()
                             THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END,
                        (SELECT oid FROM pg_publication WHERE pubname = $1)",
                &[&shared.publication()],
            )
            .await
            .map_err(query_error)?;
        let timeline: Option<String> = row.get(2);
        let Some(timeline) = timeline.and_then(|t| u32::from_str_radix(&t, 16).ok()) else {
            return Ok(None);
        };
        Ok(Some(Server {
            // Unsigned, which SQL has no type for.
            system: row.get::<_, i64>(0).cast_unsigned(),
            database: row.get(1),
            timeline,
            publication: row.get(3),
        }))
    }
}

/// [`crate::Source::recognize`].
pub(super) async fn recognize(shared: &Shared, held: &str, reached: Lsn) -> Result<String> {
    let before: Server = held.parse()?;
    let Some(now) = Server::primary(shared).await? else {
        let text = format!("{} is a standby", shared.server());
        return Err(Error::retryable(Kind::Source, text)
            .hint("waiting until it is promoted; or set [source] host to the primary"));
    };
    if (before.system, before.database) != (now.system, now.database) {
        return Err(lost(format!(
            "this is another database ({now}) than the one that the stream's position {reached} is of ({held})"
        )));
    }
    match (before.publication, now.publication) {
        (Some(_), None) => return Err(membership::broken(shared, "was dropped")),
        (Some(a), Some(b)) if a != b => {
            return Err(membership::broken(shared, "was dropped and made again"));
        }
        _ => {}
    }
    if before.timeline != now.timeline {
        let mut connection = ReplicationConnection::open(shared).await?;
        let history = connection.timeline_history(now.timeline).await?;
        follows(&history, before.timeline, reached).map_err(|why| {
            lost(format!(
                "the server writes timeline {} now, and the stream's position {reached} is of timeline {}: {why}",
                now.timeline, before.timeline
            ))
        })?;
    }
    Ok(now.to_string())
}

/// Whether a timeline with this history has everything that `timeline` had up to `reached`.
///
/// The history is the file's text: a line for each timeline that this one came from, with the
/// place where it was left (PostgreSQL manual, "Continuous Archiving", "Timelines").
fn follows(history: &str, timeline: u32, reached: Lsn) -> std::result::Result<(), String> {
    let mut left = history.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        let of: u32 = fields.next()?.trim().parse().ok()?;
        let at: Lsn = fields.next()?.trim().parse().ok()?;
        (of == timeline).then_some(at)
    });
    match left.next() {
        None => Err("it did not come from that one".to_owned()),
        Some(at) if at < reached => Err(format!(
            "it left that one at {at}, so what came behind has been lost in the failover"
        )),
        Some(_) => Ok(()),
    }
}

fn lost(text: String) -> Error {
    Error::fatal(Kind::PositionLost, text).hint(
        "if [source] names the wrong server, mend it; if this one is to be followed from now on, \
         run `caudal resnapshot '*.*'`: what the lake has may differ from it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str =
        "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-11-21\n";

    #[test]
    fn identities_are_parsed_as_they_are_printed() {
        let server = Server {
            system: u64::MAX,
            database: 16384,
            timeline: 3,
            publication: None,
        };
        let published = Server {
            publication: Some(16_390),
            ..server
        };
        for server in [server, published] {
            assert_eq!(server.to_string().parse::<Server>().unwrap(), server);
        }
        for text in [
            "",
            "uuid 1",
            "system 1, database 2",
            "system 1, database 2, timeline x",
        ] {
            let refused = text.parse::<Server>().unwrap_err();
            assert_eq!(refused.kind(), Kind::PositionLost);
        }
    }

    #[test]
    fn a_timeline_has_the_past_of_those_it_left() {
        let at = |text: &str| text.parse::<Lsn>().unwrap();
        assert_eq!(follows(HISTORY, 1, at("0/3000148")), Ok(()));
        assert!(
            follows(HISTORY, 1, at("0/3000149"))
                .unwrap_err()
                .contains("0/3000148")
        );
        assert_eq!(follows(HISTORY, 2, at("0/4FFFFFF")), Ok(()));
        assert!(follows(HISTORY, 7, at("0/1")).is_err());
        assert!(follows("", 1, at("0/1")).is_err());
    }
}
