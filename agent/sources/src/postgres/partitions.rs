//! Partitioned tables: which tables are parts of which, and rows that come and go with them.
//!
//! A selected root is one table of the stream. Its publication has `publish_via_partition_root`,
//! so that the log tells the rows of every partition, at whatever depth, as the root's; a copy
//! reads the root. What the log does not tell is that a partition itself came or went:
//!
//! - A new partition that was *created* as one held no row before, and its rows have been the
//!   root's in the log ever since. It is known by its columns in the catalogue: ATTACH writes
//!   each of them anew, so one that was written by the same command as the table's system
//!   columns shows that there was no ATTACH.
//! - One that was *attached* may have held rows of which the log knows nothing. If it has no page at
//!   a look after the ATTACH, what comes to it later is in the log as the root's; otherwise the root
//!   must be copied again.
//! - One that was detached or dropped took its rows with it, without a word: the root is copied
//!   again.
//! - TRUNCATE of a partition alone is not in the log, and gives it another file, as every
//!   statement does that writes it anew (VACUUM FULL, CLUSTER). The two cannot be told apart
//!   afterwards, so the root is copied again. TRUNCATE of the root is in the log and changes the
//!   files too: the copy that follows finds few rows.
//!
//! The partitions that the lake's rows come from are therefore part of the version's
//! [`super::shape::Identity`], and each look at the catalogue is compared with them once the tail has
//! passed it. A look that only adds to them makes a version of its own, and so does a row of a
//! partition that was not known: a partition is known, across restarts too, before any of its
//! rows is in the lake, so that none can go unnoticed.

use std::collections::HashMap;
use std::fmt;

/// One partition, of whatever depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The file of its rows; one that is partitioned itself has none.
    pub file: Option<u32>,
    /// A row of it was in the log, and no look has shown it yet: whether it brought others
    /// is not known.
    pub met: bool,
}

/// The partitions of a table, in order of their oids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts(Vec<Part>);

impl FromIterator<Part> for Parts {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Self {
        let mut parts: Vec<Part> = parts.into_iter().collect();
        parts.sort_unstable();
        Parts(parts)
    }
}

impl Parts {
    /// From its text; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let part = |text: &str| {
            let plain = text.trim_end_matches('?');
            let (oid, file) = match plain.split_once(':') {
                Some((oid, file)) => (oid, Some(file.parse().ok()?)),
                None => (plain, None),
            };
            Some(Part {
                oid: oid.parse().ok()?,
                file,
                met: plain != text,
            })
        };
        let parts = text.split(',').filter(|t| !t.is_empty());
        parts.map(part).collect()
    }

    /// The partitions.
    pub fn iter(&self) -> impl Iterator<Item = Part> + '_ {
        self.0.iter().copied()
    }

    /// The same with a partition of which a row is in the log.
    pub fn with(&self, oid: u32) -> Self {
        let met = Part {
            oid,
            file: None,
            met: true,
        };
        self.iter().chain([met]).collect()
    }

    /// The partition of this oid.
    pub fn get(&self, oid: u32) -> Option<Part> {
        let found = self.0.binary_search_by_key(&oid, |p| p.oid).ok()?;
        self.0.get(found).copied()
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{}", part.oid)?;
            if let Some(file) = part.file {
                write!(f, ":{file}")?;
            }
            if part.met {
                f.write_str("?")?;
            }
        }
        Ok(())
    }
}

/// A partition as a look at the catalogue shows it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The partition.
    pub part: Part,
    /// If it is new, it brought no rows: it was created as a partition, or is empty.
    pub harmless: bool,
}

/// What a look means for the rows that the lake has of a table.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// There are more partitions, which brought no rows.
    Grown,
    /// Rows came or went that the log does not tell of.
    Recopy(&'static str),
}

/// Compares the partitions that the lake's rows come from with those of a later look.
pub fn compare(held: &Parts, seen: &[Seen]) -> Change {
    let now: HashMap<u32, Option<u32>> = seen.iter().map(|s| (s.part.oid, s.part.file)).collect();
    if held.iter().any(|p| !now.contains_key(&p.oid)) {
        return Change::Recopy("a partition was detached or dropped");
    }
    let new = |s: &&Seen| held.get(s.part.oid).is_none_or(|p| p.met);
    if seen.iter().filter(new).any(|s| !s.harmless) {
        return Change::Recopy("a partition with rows was attached");
    }
    let written = |p: &Part| !p.met && now.get(&p.oid) != Some(&p.file);
    if held.iter().any(|p| written(&p)) {
        return Change::Recopy("a partition was truncated or written anew");
    }
    if seen.iter().any(|s| new(&s)) {
        Change::Grown
    } else {
        Change::None
    }
}

/// The topmost of a table's ancestors that is `chosen`, by the tables' parents.
pub fn root(oid: u32, parents: &HashMap<u32, u32>, chosen: impl Fn(u32) -> bool) -> Option<u32> {
    let mut found = None;
    let mut at = oid;
    // The catalogue has no cycles; it is read while it changes, though.
    for _ in 0..parents.len() {
        let Some(parent) = parents.get(&at).copied() else {
            break;
        };
        if chosen(parent) {
            found = Some(parent);
        }
        at = parent;
    }
    found
}

/// Whether a partition that is new brought no rows; `c` is its row of `pg_class`. See the header.
pub const HARMLESS: &str = "
(EXISTS (SELECT FROM pg_attribute u JOIN pg_attribute s ON s.attrelid = u.attrelid AND s.attnum = -1
          WHERE u.attrelid = c.oid AND u.attnum > 0 AND u.xmin = s.xmin AND u.cmin = s.cmin)
 OR CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) = 0 ELSE false END)";

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(oid: u32, file: u32, harmless: bool) -> Seen {
        let part = Part {
            oid,
            file: Some(file),
            met: false,
        };
        Seen { part, harmless }
    }

    #[test]
    fn partitions_that_come_and_go_are_told_by_their_oids_and_files() {
        let held = Parts::parse("3,7:7,9:12").unwrap();
        assert_eq!(held.to_string(), "3,7:7,9:12");
        assert_eq!(Parts::parse(""), Some(Parts::default()));
        assert_eq!(Parts::parse("x"), None);
        let sub = Seen {
            part: Part {
                oid: 3,
                file: None,
                met: false,
            },
            harmless: false,
        };
        let same = [sub, seen(7, 7, false), seen(9, 12, false)];
        let with = |more: Seen| compare(&held, &[&same[..], &[more]].concat());
        assert_eq!(compare(&held, &same), Change::None);
        assert_eq!(with(seen(8, 8, true)), Change::Grown);
        assert!(matches!(with(seen(8, 8, false)), Change::Recopy(_)));
        assert!(matches!(compare(&held, &same[1..]), Change::Recopy(_)));
        let met = held.with(8);
        assert_eq!(met.to_string(), "3,7:7,8?,9:12");
        assert_eq!(Parts::parse("3,7:7,8?,9:12").as_ref(), Some(&met));
        let then = |more: Seen| compare(&met, &[&same[..], &[more]].concat());
        assert_eq!(then(seen(8, 8, true)), Change::Grown);
        assert!(matches!(then(seen(8, 8, false)), Change::Recopy(_)));
        assert!(matches!(compare(&met, &same), Change::Recopy(_)));
        let emptied = [sub, seen(7, 8, false), seen(9, 12, false)];
        assert!(matches!(compare(&held, &emptied), Change::Recopy(_)));
    }

    #[test]
    fn the_root_is_the_topmost_table_that_was_chosen() {
        let parents = HashMap::from([(3, 2), (2, 1)]);
        assert_eq!(root(3, &parents, |_| true), Some(1));
        assert_eq!(root(3, &parents, |oid| oid == 2), Some(2));
        assert_eq!(root(1, &parents, |_| true), None);
    }
}
