//! Positions: MySQL GTID sets, MariaDB GTID lists, and `file:offset`.
//!
//! A MySQL set is kept as sorted, disjoint, non-adjacent intervals a (uuid, tag),
//! so printing is canonical and equal sets print equally. MariaDB's list holds the
//! last GTID of each domain: within one the sequence number only grows (strict mode).

use super::decode::{DecodeError, Decoded, Input};
use super::flavor::Flavor;
use caudal_model::{Error, Kind, Position, Result};
use std::collections::BTreeMap;
use std::fmt;

/// A server's UUID and a tag, empty for none.
pub type Origin = ([u8; 16], String);

/// A set of MySQL GTIDs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GtidSet {
    /// Inclusive intervals.
    origins: BTreeMap<Origin, Vec<(u64, u64)>>,
}

/// `3e11fa47-71ca-11e1-9e33-c80aa9429562` of 16 bytes.
pub fn uuid_text(u: &[u8; 16]) -> String {
    let h = hex::encode(u);
    let part = |a, b| h.get(a..b).unwrap_or("");
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

fn parse_uuid(s: &str) -> Option<[u8; 16]> {
    let digits: String = s.chars().filter(|c| *c != '-').collect();
    let mut out = [0; 16];
    hex::decode_to_slice(digits, &mut out).ok().map(|()| out)
}

fn is_tag(s: &str) -> bool {
    s.len() <= 32
        && s.bytes()
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == b'_')
        && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

/// The server's last number: encoded intervals end one past theirs.
const MAX_GNO: u64 = i64::MAX as u64 - 1;

impl GtidSet {
    /// Parses the server's text, newlines and blanks included.
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = GtidSet::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let mut fields = part.split(':').map(str::trim);
            let uuid = parse_uuid(fields.next()?)?;
            let mut origin = (uuid, String::new());
            let mut any = false;
            for f in fields {
                if is_tag(f) {
                    origin.1 = f.to_ascii_lowercase();
                    continue;
                }
                let (a, b) = f.split_once('-').unwrap_or((f, f));
                let (a, b) = (a.trim().parse().ok()?, b.trim().parse().ok()?);
                if a == 0 || a > b || b > MAX_GNO {
                    return None;
                }
                set.add_range(&origin, a, b);
                any = true;
            }
            if !any {
                return None;
            }
        }
        Some(set)
    }

    /// Adds one GTID; the common case, the next number of its origin, is constant time.
    pub fn add(&mut self, origin: &Origin, gno: u64) {
        if let Some(last) = self.origins.get_mut(origin).and_then(|i| i.last_mut())
            && last.1.checked_add(1) == Some(gno)
        {
            last.1 = gno;
            return;
        }
        self.add_range(origin, gno, gno);
    }

    fn add_range(&mut self, origin: &Origin, mut start: u64, mut end: u64) {
        let list = self.origins.entry(origin.clone()).or_default();
        let from = list.partition_point(|i| i.1.saturating_add(1) < start);
        let to = list.partition_point(|i| i.0 <= end.saturating_add(1));
        if let (Some(first), Some(last)) = (list.get(from), list.get(to.wrapping_sub(1)))
            && from < to
        {
            start = start.min(first.0);
            end = end.max(last.1);
        }
        list.splice(from..to.max(from), [(start, end)]);
    }

    /// Whether it holds this GTID.
    pub fn contains(&self, origin: &Origin, gno: u64) -> bool {
        self.holds(origin, gno, gno)
    }

    fn holds(&self, origin: &Origin, start: u64, end: u64) -> bool {
        self.origins.get(origin).is_some_and(|list| {
            let at = list.partition_point(|i| i.1 < start);
            list.get(at).is_some_and(|i| i.0 <= start && end <= i.1)
        })
    }

    /// Whether every GTID of `other` is in it.
    pub fn covers(&self, other: &GtidSet) -> bool {
        other
            .origins
            .iter()
            .all(|(o, list)| list.iter().all(|i| self.holds(o, i.0, i.1)))
    }

    /// The GTIDs of `self` that `other` lacks.
    pub fn minus(&self, other: &GtidSet) -> GtidSet {
        let mut out = GtidSet::default();
        for (origin, list) in &self.origins {
            let cuts = other.origins.get(origin).map_or(&[][..], Vec::as_slice);
            for &(start, end) in list {
                let mut next = start;
                for &(a, b) in cuts.iter().filter(|c| c.1 >= start && c.0 <= end) {
                    if a > next {
                        out.add_range(origin, next, a - 1);
                    }
                    next = next.max(b.saturating_add(1));
                }
                if next <= end {
                    out.add_range(origin, next, end);
                }
            }
        }
        out
    }

    /// Whether both have transactions of one server and tag.
    pub fn shares_an_origin(&self, other: &GtidSet) -> bool {
        self.origins.keys().any(|o| other.origins.contains_key(o))
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// The body of COM_BINLOG_DUMP_GTID; the tagged format only where it is needed,
    /// because servers before 8.3 do not know it.
    pub fn encode(&self) -> Vec<u8> {
        let tagged = self.origins.keys().any(|o| !o.1.is_empty());
        let n = self.origins.len() as u64;
        let header = if tagged { 1 << 56 | n << 8 | 1 } else { n };
        let mut out = header.to_le_bytes().to_vec();
        for ((uuid, tag), list) in &self.origins {
            out.extend_from_slice(uuid);
            if tagged {
                // A tag has at most 32 bytes, so its length is one byte of the varint.
                out.push((tag.len() as u8) << 1);
                out.extend_from_slice(tag.as_bytes());
            }
            out.extend_from_slice(&(list.len() as u64).to_le_bytes());
            for (a, b) in list {
                out.extend_from_slice(&a.to_le_bytes());
                out.extend_from_slice(&b.saturating_add(1).to_le_bytes());
            }
        }
        out
    }

    /// Decodes [`Self::encode`]'s format: the body of a PREVIOUS_GTIDS event.
    pub fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut input = Input(bytes);
        let header = input.u64()?;
        let tagged = header >> 56 == 1;
        let n = if tagged { header << 8 >> 16 } else { header };
        let mut set = GtidSet::default();
        for _ in 0..n {
            let mut uuid = [0; 16];
            uuid.copy_from_slice(input.take(16)?);
            let mut tag = String::new();
            if tagged {
                let len = input.varint()?;
                let bytes = input.take(usize::try_from(len).unwrap_or(usize::MAX))?;
                tag = String::from_utf8_lossy(bytes).into_owned();
            }
            let origin = (uuid, tag);
            for _ in 0..input.u64()? {
                let (a, b) = (input.u64()?, input.u64()?);
                if a == 0 || b <= a {
                    return Err(DecodeError::Malformed("an interval of a gtid set"));
                }
                set.add_range(&origin, a, b - 1);
            }
        }
        Ok(set)
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last: Option<&[u8; 16]> = None;
        for ((uuid, tag), list) in &self.origins {
            if last != Some(uuid) {
                if last.is_some() {
                    f.write_str(",")?;
                }
                f.write_str(&uuid_text(uuid))?;
                last = Some(uuid);
            }
            if !tag.is_empty() {
                write!(f, ":{tag}")?;
            }
            for (a, b) in list {
                if a == b {
                    write!(f, ":{a}")?
                } else {
                    write!(f, ":{a}-{b}")?
                }
            }
        }
        Ok(())
    }
}

/// A MariaDB GTID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MariaGtid {
    /// The replication domain.
    pub domain: u32,
    /// The server that wrote the transaction first.
    pub server: u32,
    /// The number within the domain.
    pub seq: u64,
}

impl fmt::Display for MariaGtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.seq)
    }
}

/// The last GTID of each domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GtidList {
    domains: BTreeMap<u32, (u32, u64)>,
}

impl GtidList {
    /// Parses `0-1-100,1-2-7`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut list = GtidList::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let mut f = part.split('-');
            let domain = f.next()?.parse().ok()?;
            let server = f.next()?.parse().ok()?;
            let seq = f.next()?.parse().ok()?;
            if f.next().is_some() {
                return None;
            }
            list.add(MariaGtid {
                domain,
                server,
                seq,
            });
        }
        Some(list)
    }

    /// The domain now stands at this GTID.
    pub fn add(&mut self, g: MariaGtid) {
        self.domains.insert(g.domain, (g.server, g.seq));
    }

    /// Forgets a domain.
    pub fn remove(&mut self, domain: u32) {
        self.domains.remove(&domain);
    }

    /// Whether the domain has got to this GTID.
    pub fn contains(&self, g: MariaGtid) -> bool {
        self.domains
            .get(&g.domain)
            .is_some_and(|(_, seq)| *seq >= g.seq)
    }

    /// Whether every domain has got as far as in `other`.
    pub fn covers(&self, other: &GtidList) -> bool {
        other.gtids().all(|g| self.contains(g))
    }

    /// Whether both have a domain that one of `other`'s servers wrote last.
    pub fn shares_an_origin(&self, other: &GtidList) -> bool {
        let ours = |g: MariaGtid| self.domains.get(&g.domain).map(|(server, _)| *server);
        other.gtids().any(|g| ours(g) == Some(g.server))
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// The GTIDs.
    pub fn gtids(&self) -> impl Iterator<Item = MariaGtid> + '_ {
        self.domains
            .iter()
            .map(|(&domain, &(server, seq))| MariaGtid {
                domain,
                server,
                seq,
            })
    }
}

impl fmt::Display for GtidList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, g) in self.gtids().enumerate() {
            write!(f, "{}{g}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// A place in a server's binary log files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinate {
    /// The file's name.
    pub file: String,
    /// Bytes from its beginning.
    pub offset: u64,
}

impl Coordinate {
    /// The number after the name's last dot: it outgrows six digits, so names do not sort.
    pub fn file_number(file: &str) -> u64 {
        file.rsplit_once('.')
            .and_then(|(_, n)| n.parse().ok())
            .unwrap_or(0)
    }

    /// Sorts coordinates of one server.
    pub fn order(&self) -> (u64, u64) {
        (Self::file_number(&self.file), self.offset)
    }
}

impl fmt::Display for Coordinate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

/// A position of one of the three kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// MySQL with GTIDs: everything that was executed.
    Gtids(GtidSet),
    /// MySQL without.
    File(Coordinate),
    /// MariaDB.
    Domains(GtidList),
}

impl Place {
    /// Parses a position of this flavor.
    pub fn parse(flavor: Flavor, position: &Position) -> Result<Place> {
        let text = position.as_str();
        let parsed = match flavor {
            Flavor::MariaDb => GtidList::parse(text).map(Place::Domains),
            Flavor::MySql => match GtidSet::parse(text) {
                Some(set) => Some(Place::Gtids(set)),
                None => text.rsplit_once(':').and_then(|(file, offset)| {
                    let offset = offset.parse().ok()?;
                    (!file.is_empty() && !file.contains([':', ','])).then(|| {
                        Place::File(Coordinate {
                            file: file.to_owned(),
                            offset,
                        })
                    })
                }),
            },
        };
        parsed.ok_or_else(|| {
            Error::fatal(
                Kind::Corrupt,
                format!("`{text}` is not a position of this source"),
            )
            .hint("the stream was written by a source of another kind; use another stream name")
        })
    }

    /// The text that the lake and the checkpoint hold.
    pub fn position(&self) -> Position {
        Position::new(self.to_string())
    }

    /// Whether a tail that stands at `self` has delivered everything up to `target`.
    pub fn covers(&self, target: &Place) -> Result<bool> {
        match (self, target) {
            (Place::Gtids(a), Place::Gtids(b)) => Ok(a.covers(b)),
            (Place::File(a), Place::File(b)) => Ok(a.order() >= b.order()),
            (Place::Domains(a), Place::Domains(b)) => Ok(a.covers(b)),
            _ => Err(Error::fatal(
                Kind::PositionLost,
                "the source changed between gtid and file positions",
            )
            .hint("set gtid_mode back, or copy the stream again under another name")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Gtids(s) => s.fmt(f),
            Place::File(c) => c.fmt(f),
            Place::Domains(l) => l.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "5e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn set(s: &str) -> GtidSet {
        GtidSet::parse(s).expect(s)
    }

    #[test]
    fn sets_print_canonically() {
        for (text, canonical) in [
            (format!("{B}:1,\n{A}:5-7:1-3"), format!("{A}:1-3:5-7,{B}:1")),
            (format!("{A}:1-3:4"), format!("{A}:1-4")),
            (format!("{A}:2:Tag_1:1-5:9"), format!("{A}:2:tag_1:1-5:9")),
            (format!("{A}:x:1,{A}:7"), format!("{A}:7:x:1")),
            (String::new(), String::new()),
        ] {
            assert_eq!(set(&text).to_string(), canonical);
            assert_eq!(set(&canonical), set(&text));
        }
        for bad in [
            "x",
            A,
            &format!("{A}:0"),
            &format!("{A}:3-1"),
            &format!("{A}:tag"),
        ] {
            assert!(GtidSet::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn adding_joins_neighbours() {
        let origin = (parse_uuid(A).unwrap_or_default(), String::new());
        let mut s = set(&format!("{A}:1-3:5:9"));
        for n in [4, 10, 20, 7, 6, 8] {
            assert!(!s.contains(&origin, n));
            s.add(&origin, n);
            s.add(&origin, n);
            assert!(s.contains(&origin, n));
        }
        assert_eq!(s.to_string(), format!("{A}:1-10:20"));
        assert!(s.covers(&set(&format!("{A}:2-9"))));
        assert!(!s.covers(&set(&format!("{A}:9-11"))));
        assert!(!s.covers(&set(&format!("{A}:t:1"))));
        assert_eq!(
            s.minus(&set(&format!("{A}:3-4:8-30"))).to_string(),
            format!("{A}:1-2:5-7")
        );
        assert_eq!(set(&format!("{A}:5-9")).minus(&s).to_string(), "");
    }

    #[test]
    fn encodings_are_inverse() {
        for text in [
            format!("{A}:1-3:5,{B}:1"),
            format!("{A}:1:t:2-4"),
            String::new(),
        ] {
            let s = set(&text);
            assert_eq!(GtidSet::decode(&s.encode()), Ok(s));
        }
        assert!(GtidSet::decode(&[1, 0, 0, 0, 0, 0, 0, 0, 7]).is_err());
    }

    #[test]
    fn places_compare_by_their_own_order() -> Result<()> {
        let place = |f, s: &str| Place::parse(f, &Position::new(s));
        let my = Flavor::MySql;
        assert!(place(my, "binlog.1000000:4")?.covers(&place(my, "binlog.999999:900")?)?);
        assert!(!place(my, "b.000002:4")?.covers(&place(my, "b.000002:5")?)?);
        assert!(
            place(my, "b.000002:4")?
                .covers(&place(my, &format!("{A}:1"))?)
                .is_err()
        );
        let ma = Flavor::MariaDb;
        assert!(place(ma, "0-1-100,1-2-7")?.covers(&place(ma, "0-9-99")?)?);
        assert!(!place(ma, "0-1-100")?.covers(&place(ma, "1-1-1")?)?);
        assert_eq!(place(ma, "1-2-7, 0-1-100")?.to_string(), "0-1-100,1-2-7");
        assert!(place(ma, "0-1").is_err() && place(my, "0-1-1").is_err());
        Ok(())
    }
}
