//! Which server a position belongs to, and whether another one has the same past.
//!
//! GTIDs mean the same on every server of a topology, so a stream may go on from a replica that
//! was promoted. It must have everything that the stream has read, which opening the log
//! checks, and nothing else *before* that: a transaction that somebody ran on the replica while
//! it was one (errant) is not in the lake, and reading it now would apply it in the wrong place,
//! over later values of the old primary. So the new server's own log is read around the stream's
//! place, GTIDs alone:
//!
//! - MySQL: a transaction that the stream lacks, in front of one of another origin that it has.
//!   Of the same origin it is merely late: a replica may write transactions of one primary
//!   in another order where they do not conflict.
//! - MariaDB, whose positions say no more than the last GTID of each domain: one in front of the
//!   place by a server that the old one knew nothing of.
//!
//! Only files that can hold such a transaction are read: the server tells what is in front of each.

use super::connect::{Server, log_files};
use super::control::Ask;
use super::decode::Decoded;
use super::decode::events::{self, kind};
use super::dump;
use super::flavor::Flavor;
use super::gtid::{GtidList, GtidSet, MariaGtid, Place};
use caudal_model::{Error, Kind, Position, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The last number of each server in each domain.
type Numbers = BTreeMap<(u32, u32), u64>;

/// What tells a server from others.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    /// `server_uuid`.
    Mysql(String),
    /// `server_id`, and what its log had of other servers (`gtid_binlog_state`).
    Maria { id: u32, others: Numbers },
}

impl Identity {
    async fn ask(c: &mut dyn Ask) -> Result<Identity> {
        if c.flavor() == Flavor::MySql {
            let uuid = c.value("SELECT @@GLOBAL.server_uuid").await?;
            return Ok(Identity::Mysql(uuid.unwrap_or_default()));
        }
        let rows = c
            .query("SELECT @@GLOBAL.server_id, @@GLOBAL.gtid_binlog_state")
            .await?;
        let row = rows.first();
        let id = row.map_or(0, |r| r.number(0)) as u32;
        let mut others = numbers(&row.map(|r| r.text(1)).unwrap_or_default());
        others.retain(|(_, server), _| *server != id);
        Ok(Identity::Maria { id, others })
    }

    fn parse(text: &str) -> Option<Identity> {
        if let Some(uuid) = text.strip_prefix("server_uuid ") {
            return Some(Identity::Mysql(uuid.to_owned()));
        }
        let (id, others) = text.strip_prefix("server_id ")?.split_once(" besides ")?;
        Some(Identity::Maria {
            id: id.parse().ok()?,
            others: numbers(others),
        })
    }

    /// Whether this is that server, whatever else its log has got since.
    fn is(&self, other: &Identity) -> bool {
        match (self, other) {
            (Identity::Mysql(a), Identity::Mysql(b)) => a == b,
            (Identity::Maria { id: a, .. }, Identity::Maria { id: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Identity::Mysql(uuid) => write!(f, "server_uuid {uuid}"),
            Identity::Maria { id, others } => {
                write!(f, "server_id {id} besides ")?;
                for (i, ((domain, server), seq)) in others.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{domain}-{server}-{seq}")?;
                }
                Ok(())
            }
        }
    }
}

/// The greatest number of each server in each domain of a list of GTIDs, brackets or not.
fn numbers(text: &str) -> Numbers {
    let mut out = Numbers::new();
    for g in text.trim_matches(['[', ']']).split(',') {
        let mut fields = g.trim().split('-').map(str::parse::<u64>);
        if let (Some(Ok(domain)), Some(Ok(server)), Some(Ok(seq))) =
            (fields.next(), fields.next(), fields.next())
        {
            let held = out.entry((domain as u32, server as u32)).or_default();
            *held = seq.max(*held);
        }
    }
    out
}

/// [`crate::Source::identity`].
pub(super) async fn identity(server: &Server) -> Result<String> {
    Ok(Identity::ask(&mut server.control().await?)
        .await?
        .to_string())
}

/// [`crate::Source::recognize`].
pub(super) async fn recognize(
    server: &Arc<Server>,
    held: &str,
    reached: &Position,
) -> Result<String> {
    let mut c = server.control().await?;
    let now = Identity::ask(&mut c).await?;
    let Some(before) = Identity::parse(held) else {
        return Err(lost(format!(
            "the stream's position is of `{held}`, which is no {} server",
            server.flavor.name()
        )));
    };
    let place = Place::parse(server.flavor, reached)?;
    let same = now.is(&before);
    if same || matches!(place, Place::Gtids(_)) {
        dump::check_position(&mut c, &place).await?;
    }
    if same {
        return Ok(held.to_owned());
    }
    match (place, before) {
        (Place::Gtids(set), _) => foreign_to_mysql(server, &mut c, &set).await?,
        (Place::Domains(list), Identity::Maria { id, others }) => {
            let mut past = MariaPast {
                id,
                others,
                reached: list,
            };
            foreign_to_mariadb(server, &mut c, &mut past).await?;
        }
        _ => {
            return Err(lost(format!(
                "this is {now}, and the stream's position {reached} is a place in the files of {held}"
            ))
            .hint(
                "if [source] names the wrong server, mend it; to follow this one from now on, run \
                 `caudal resnapshot '*.*'`, and turn gtid_mode on, so that positions hold on replicas too",
            ));
        }
    }
    Ok(now.to_string())
}

fn lost(text: String) -> Error {
    Error::fatal(Kind::PositionLost, text).hint(
        "if [source] names the wrong server, mend it; if this one is to be followed from now on, \
         run `caudal resnapshot '*.*'`: what the lake has may differ from it",
    )
}

fn errant(gtid: &str) -> Error {
    lost(format!(
        "transaction {gtid} is in this server's log in front of others that the stream has read from another server, \
         and is not in the lake: somebody wrote to a replica (an errant transaction)"
    ))
}

/// What a file of the log had in front of it, as its first events tell.
async fn in_front(c: &mut dyn Ask, file: &str, event: &str) -> Result<Option<String>> {
    // A name of the server's own; the statement takes no literal with a charset.
    let name = file.replace(['\'', '\\'], "");
    // The description, the list, and what encryption may put between them.
    let sql = format!("SHOW BINLOG EVENTS IN '{name}' LIMIT 4");
    let rows = c.query(&sql).await?;
    let row = rows.iter().find(|r| r.text(2) == event);
    Ok(row.map(|r| r.text(5)))
}

/// Looks for an errant transaction in a MySQL server's log.
async fn foreign_to_mysql(server: &Arc<Server>, c: &mut dyn Ask, held: &GtidSet) -> Result<()> {
    let files = log_files(c).await?;
    let mut past = MysqlPast::new(held);
    for (file, _) in files.iter().rev() {
        let before = in_front(c, file, "Previous_gtids").await?;
        if GtidSet::parse(&before.unwrap_or_default()).is_some_and(|b| held.covers(&b)) {
            let errant = dump::scan(server, file, |event_type, event| {
                past.errant(event_type, event)
            });
            return match errant.await? {
                Some(found) => Err(self::errant(&found)),
                None => Ok(()),
            };
        }
    }
    // What is in front of every file is purged, which opening the log refuses.
    Ok(())
}

/// Goes through GTIDs in the order of a log.
struct MysqlPast<'a> {
    held: &'a GtidSet,
    /// The first of each origin that is not held.
    lacking: Vec<(super::gtid::Origin, u64)>,
}

impl<'a> MysqlPast<'a> {
    fn new(held: &'a GtidSet) -> Self {
        MysqlPast {
            held,
            lacking: Vec::new(),
        }
    }

    fn errant(&mut self, event_type: u8, body: &[u8]) -> Decoded<Option<String>> {
        let gtid = match event_type {
            kind::GTID => events::gtid(body)?,
            kind::GTID_TAGGED => events::gtid_tagged(body)?,
            _ => return Ok(None),
        };
        Ok(self.see(gtid.origin, gtid.gno))
    }

    fn see(&mut self, origin: super::gtid::Origin, gno: u64) -> Option<String> {
        if self.held.contains(&origin, gno) {
            let strange = self.lacking.iter().find(|(o, _)| o.0 != origin.0);
            return strange.map(|(o, n)| {
                let mut set = GtidSet::default();
                set.add(o, *n);
                set.to_string()
            });
        }
        if !self.lacking.iter().any(|(o, _)| *o == origin) {
            self.lacking.push((origin, gno));
        }
        None
    }
}

/// Looks for an errant transaction in a MariaDB server's log.
async fn foreign_to_mariadb(
    server: &Arc<Server>,
    c: &mut dyn Ask,
    past: &mut MariaPast,
) -> Result<()> {
    let files = log_files(c).await?;
    for (file, _) in files.iter().rev() {
        let Some(before) = in_front(c, file, "Gtid_list").await? else {
            continue;
        };
        let before = numbers(&before);
        if past.is_behind(&before) {
            continue;
        }
        if let Some(found) = past.unknown(&before) {
            return Err(errant(&found));
        }
        let found = dump::scan(server, file, |event_type, event| {
            past.errant(event_type, event)
        });
        return match found.await? {
            Some(found) => Err(errant(&found)),
            None => Ok(()),
        };
    }
    Ok(())
}

/// What the stream has read from a MariaDB server.
struct MariaPast {
    /// Its `server_id`.
    id: u32,
    /// What its log had of others.
    others: Numbers,
    /// Where the stream stands; a domain is taken out where the log has got there.
    reached: GtidList,
}

impl MariaPast {
    /// Whether the stream's place in one of the domains is in front of a file with this list.
    fn is_behind(&self, before: &Numbers) -> bool {
        self.reached.gtids().any(|g| {
            let there = before.get(&(g.domain, g.server));
            there.is_some_and(|seq| *seq >= g.seq)
        })
    }

    fn known(&self, g: MariaGtid) -> bool {
        let held = self.others.get(&(g.domain, g.server));
        g.server == self.id || held.is_some_and(|seq| *seq >= g.seq)
    }

    /// One of a list in front of the stream's place that the old server did not have.
    fn unknown(&self, before: &Numbers) -> Option<String> {
        let gtids = before.iter().map(|(&(domain, server), &seq)| MariaGtid {
            domain,
            server,
            seq,
        });
        let mut strange = gtids.filter(|g| !self.known(*g));
        strange.next().map(|g| g.to_string())
    }

    fn errant(&mut self, event_type: u8, event: &[u8]) -> Decoded<Option<String>> {
        if event_type != kind::MARIA_GTID {
            return Ok(None);
        }
        let (header, body) = events::header(event)?;
        Ok(self.see(events::maria_gtid(&header, body)?.gtid))
    }

    fn see(&mut self, g: MariaGtid) -> Option<String> {
        let place = self.reached.gtids().find(|r| r.domain == g.domain)?;
        if (place.server, place.seq) == (g.server, g.seq) {
            // What follows in this domain is read from here on.
            self.reached.remove(g.domain);
            return None;
        }
        (!self.known(g)).then(|| g.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_parsed_as_they_are_printed() {
        for text in [
            "server_uuid 3e11fa47-71ca-11e1-9e33-c80aa9429562",
            "server_id 7 besides ",
            "server_id 7 besides 0-1-12,1-9-4",
        ] {
            assert_eq!(Identity::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Identity::parse("system 1, database 2, timeline 1"), None);
        let id = |text| Identity::parse(text).unwrap();
        assert!(id("server_id 7 besides ").is(&id("server_id 7 besides 0-1-12")));
        assert!(!id("server_id 7 besides ").is(&id("server_id 8 besides ")));
    }

    #[test]
    fn a_transaction_in_front_of_what_was_read_is_errant_on_mysql() {
        const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        let (a, b) = (([0x3e; 16], String::new()), ([0x5e; 16], String::new()));
        let mut held = GtidSet::default();
        (1..=5).for_each(|n| held.add(&a, n));
        let seen = |list: &[(&super::super::gtid::Origin, u64)]| {
            let mut past = MysqlPast::new(&held);
            list.iter().find_map(|(o, n)| past.see((*o).clone(), *n))
        };
        assert_eq!(seen(&[(&a, 4), (&a, 5), (&b, 1), (&b, 2)]), None);
        // A replica's workers overtake each other.
        assert_eq!(seen(&[(&a, 4), (&a, 6), (&a, 5), (&b, 1)]), None);
        let found = seen(&[(&a, 4), (&b, 1), (&a, 5)]).unwrap();
        assert!(
            found.starts_with("5e5e") && found.ends_with(":1"),
            "{found}"
        );
        assert!(GtidSet::parse(&format!("{A}:1")).is_some());
    }

    #[test]
    fn a_transaction_in_front_of_the_place_is_errant_on_mariadb() {
        let past = || MariaPast {
            id: 1,
            others: numbers("0-3-50"),
            reached: GtidList::parse("0-1-105,4-1-7").unwrap(),
        };
        let gtid = |text: &str| GtidList::parse(text).unwrap().gtids().next().unwrap();
        let seen = |list: &[&str]| {
            let mut past = past();
            list.iter().find_map(|g| past.see(gtid(g)))
        };
        assert_eq!(seen(&["0-1-104", "0-3-50", "0-1-105", "0-2-106"]), None);
        assert_eq!(seen(&["0-1-104", "0-2-105", "0-1-105"]).unwrap(), "0-2-105");
        assert_eq!(seen(&["0-1-105", "4-2-3"]).unwrap(), "4-2-3");
        assert_eq!(past().unknown(&numbers("[0-1-9,0-3-40]")), None);
        assert_eq!(
            past().unknown(&numbers("[0-1-9, 0-3-51]")).unwrap(),
            "0-3-51"
        );
        assert!(past().is_behind(&numbers("0-1-105")));
        assert!(!past().is_behind(&numbers("0-1-104,4-1-6,4-2-90")));
    }
}
