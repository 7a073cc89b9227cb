//! Every path of the lake, and nothing else makes one.
//!
//! Names of streams, schemas and tables become path segments by percent-encoding
//! what a key, a directory or a reader could take for something else, so that
//! different names never meet in one path. Case is kept.

use caudal_model::{Error, Result, TableName};
use chrono::{DateTime, Utc};
use std::fmt::Write as _;

/// What a change file's name says: `<epoch>-<generation>-<n>.parquet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The epoch that was open when the file was begun.
    pub epoch: u64,
    /// The writer's generation.
    pub generation: u64,
    /// Tells apart the files of one table, epoch and generation; from 0.
    pub n: u32,
}

impl FileId {
    /// The file's name, without a directory.
    pub fn file_name(&self) -> String {
        format!(
            "{:020}-{:04}-{:02}.parquet",
            self.epoch, self.generation, self.n
        )
    }

    /// Parses the last segment of a path; `None` if it is not a change file's.
    pub fn parse(path: &str) -> Option<FileId> {
        let name = path.rsplit('/').next()?.strip_suffix(".parquet")?;
        let mut parts = name.split('-');
        let mut number = |digits: usize| {
            let part = parts.next()?;
            let plain = part.len() >= digits && part.bytes().all(|b| b.is_ascii_digit());
            if plain {
                part.parse::<u64>().ok()
            } else {
                None
            }
        };
        let id = FileId {
            epoch: number(20)?,
            generation: number(4)?,
            n: u32::try_from(number(2)?).ok()?,
        };
        // Only the spelling that `file_name` gives: one file has one name.
        (parts.next().is_none() && id.file_name().len() == name.len() + ".parquet".len())
            .then_some(id)
    }
}

/// The partition that a file belongs to: when it was begun, by the agent's clock in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(String);

impl Partition {
    /// `_date=YYYY-MM-DD`.
    pub fn day(at: DateTime<Utc>) -> Self {
        Partition(at.format("_date=%Y-%m-%d").to_string())
    }
    /// `_date=YYYY-MM-DD/_hour=HH`.
    pub fn hour(at: DateTime<Utc>) -> Self {
        Partition(at.format("_date=%Y-%m-%d/_hour=%H").to_string())
    }
    /// The day that it is now.
    pub fn now_by_day() -> Self {
        Self::day(Utc::now())
    }
    /// The hour that it is now.
    pub fn now_by_hour() -> Self {
        Self::hour(Utc::now())
    }
    /// The directory's name or names.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The paths of one stream. Keys (for a [`crate::Store`]) begin with the stream's
/// directory; paths (in log entries) are relative to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: String,
}

/// The digits of an epoch: as many as the greatest `u64` has, so that names sort as numbers.
const EPOCH_DIGITS: usize = 20;

impl Layout {
    /// The paths of a stream.
    pub fn new(stream: &str) -> Self {
        Layout {
            root: format!("{}/", segment(stream)),
        }
    }

    /// The stream's directory, with its slash.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The key of a path of this stream.
    pub fn key(&self, path: &str) -> String {
        format!("{}{path}", self.root)
    }

    /// The path of a key, if it is one of this stream.
    pub fn path<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(&self.root)
    }

    /// The key of the commit log's directory, with its slash.
    pub fn log_dir(&self) -> String {
        self.key("_log/")
    }

    /// The key of the directory where work is shared, with its slash.
    pub fn work_dir(&self) -> String {
        self.key("_work/")
    }

    /// The key of a log entry.
    pub fn log_entry(&self, epoch: u64) -> String {
        self.key(&format!("_log/{epoch:0EPOCH_DIGITS$}.json"))
    }

    /// The epoch of a log entry's key.
    pub fn log_epoch(key: &str) -> Option<u64> {
        let digits = key.rsplit('/').next()?.strip_suffix(".json")?;
        let plain = digits.len() == EPOCH_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        if plain { digits.parse().ok() } else { None }
    }

    /// A table's directory, relative to the stream, with its slash.
    pub fn table_dir(table: &TableName) -> String {
        format!("{}/{}/", segment(&table.schema), segment(&table.name))
    }

    /// The path of a schema version.
    pub fn schema(table: &TableName, version: u32) -> String {
        format!("{}_schema/{version:06}.json", Self::table_dir(table))
    }

    /// The directory of a table's change files, with its slash.
    pub fn changes_dir(table: &TableName) -> String {
        format!("{}changes/", Self::table_dir(table))
    }

    /// The path of a change file.
    pub fn change_file(table: &TableName, partition: &Partition, id: FileId) -> String {
        format!(
            "{}{}/{}",
            Self::changes_dir(table),
            partition.as_str(),
            id.file_name()
        )
    }

    /// The least name that a file of this epoch or a later one can have.
    pub fn first_file_of(epoch: u64) -> String {
        format!("{epoch:0EPOCH_DIGITS$}")
    }
}

/// A name as one path segment.
pub fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (i, c) in name.chars().enumerate() {
        let reserved = matches!(c, '/' | '\\' | '%' | '=') || c.is_control();
        // A leading dot hides a file, and makes `.` and `..`; `_log` and `_work` beside the schemas are ours.
        if reserved || (i == 0 && (c == '.' || matches!(name, "_log" | "_work"))) {
            let mut utf8 = [0; 4];
            for b in c.encode_utf8(&mut utf8).bytes() {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{b:02X}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The name that [`segment`] encoded.
///
/// # Errors
/// [`caudal_model::Kind::Corrupt`] if the segment is not one that `segment` makes.
pub fn name_of(segment_text: &str) -> Result<String> {
    let bad = || {
        Error::fatal(
            caudal_model::Kind::Corrupt,
            format!("`{segment_text}` is not a directory that caudal made"),
        )
    };
    let mut bytes = Vec::with_capacity(segment_text.len());
    let mut rest = segment_text.bytes();
    while let Some(b) = rest.next() {
        if b == b'%' {
            let digit = |d: Option<u8>| d.and_then(|d| char::from(d).to_digit(16));
            let high = digit(rest.next()).ok_or_else(bad)?;
            let low = digit(rest.next()).ok_or_else(bad)?;
            bytes.push(u8::try_from(high * 16 + low).map_err(|_| bad())?);
        } else {
            bytes.push(b);
        }
    }
    let name = String::from_utf8(bytes).map_err(|_| bad())?;
    if segment(&name) == segment_text {
        Ok(name)
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_interface() {
        let l = Layout::new("shop");
        let t = TableName::new("public", "orders");
        assert_eq!(l.log_entry(42), "shop/_log/00000000000000000042.json");
        assert_eq!(Layout::log_epoch(&l.log_entry(42)), Some(42));
        assert_eq!(Layout::log_epoch("shop/_log/42.json"), None);
        assert_eq!(Layout::schema(&t, 1), "public/orders/_schema/000001.json");
        let at = DateTime::parse_from_rfc3339("2026-11-21T10:00:00Z")
            .unwrap()
            .to_utc();
        let id = FileId {
            epoch: 42,
            generation: 1,
            n: 0,
        };
        assert_eq!(
            Layout::change_file(&t, &Partition::day(at), id),
            "public/orders/changes/_date=2026-11-21/00000000000000000042-0001-00.parquet"
        );
        assert_eq!(Partition::hour(at).as_str(), "_date=2026-11-21/_hour=10");
        assert_eq!(l.path("shop/public/x"), Some("public/x"));
        assert_eq!(l.path("shopping/x"), None);
    }

    #[test]
    fn file_names_parse_back_past_their_digits() {
        for id in [
            FileId {
                epoch: 1,
                generation: 1,
                n: 0,
            },
            FileId {
                epoch: u64::MAX,
                generation: 12_345,
                n: 100,
            },
        ] {
            assert_eq!(FileId::parse(&format!("a/b/{}", id.file_name())), Some(id));
        }
        for bad in [
            "",
            "x.parquet",
            "1-1-1.parquet",
            "00000000000000000042-0001-00.parquet.tmp",
            "00000000000000000042-0001-00-7.parquet",
            "00000000000000000042-00001-00.parquet",
            "99999999999999999999-0001-00.parquet",
            "0000000000000000+042-0001-00.parquet",
        ] {
            assert_eq!(FileId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_become_segments_and_back() {
        for (name, text) in [
            ("Orders", "Orders"),
            ("a/b", "a%2Fb"),
            ("100%", "100%25"),
            ("k=v", "k%3Dv"),
            ("..", "%2E."),
            (".", "%2E"),
            (".hidden", "%2Ehidden"),
            ("_log", "%5Flog"),
            ("_logs", "_logs"),
            ("ta\u{85}b\n", "ta%C2%85b%0A"),
            ("zażółć gęślą", "zażółć gęślą"),
            ("back\\slash", "back%5Cslash"),
        ] {
            assert_eq!(segment(name), text);
            assert_eq!(name_of(text).unwrap(), name);
        }
        for bad in ["a%2", "a%zz", "%41", "a=b", "%ff"] {
            assert!(name_of(bad).is_err(), "{bad}");
        }
    }
}
