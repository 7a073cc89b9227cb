//! Whether the whole log and every file that it names is as it was written.
//!
//! Entries are read a page at a time and files in parts, so that memory does not grow with
//! the log. What a `rewind` dropped is not looked for: a sweep may have taken it. Findings
//! are told as they are met, and the walk goes on behind them.

use super::{CommitLog, check, read, seal};
use crate::entry::{FileEntry, Kind as EntryKind, LogEntry};
use crate::layout::Layout;
use bytes::{Bytes, BytesMut};
use caudal_model::{Class, Kind, Result, TableName};
use futures::StreamExt;
use parquet::file::metadata::ParquetMetaDataReader;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Entries of one listing.
const PAGE: usize = 1000;
/// Entries read beside each other.
const ENTRIES_AT_A_TIME: usize = 16;
/// Files looked at beside each other…
const FILES_AT_A_TIME: usize = 4;
/// …and the part of one that is in memory.
const PART_BYTES: u64 = 8 << 20;
/// Length of a Parquet file's last field, the footer's length and the magic number.
const TRAILER: usize = 8;

/// How far the files that the log names are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Not at all.
    None,
    /// Whether they are there, with their size.
    Exist,
    /// Every byte of them: their SHA-256, their footer and its count of rows.
    Hash,
}

/// A file that is not as it was written, or not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The file, relative to the stream's directory.
    pub path: String,
    /// The commit that it is, or that names it.
    pub epoch: u64,
    /// The table that it belongs to.
    pub table: Option<TableName>,
    /// What is wrong.
    pub what: String,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries of the log.
    pub commits: u64,
    /// Of these, written by a version that knew no checksums.
    pub without_checksum: u64,
    /// Files that the log names, dropped ones left out.
    pub files: u64,
    /// Their bytes, by the log.
    pub bytes: u64,
    /// Files that a rewind dropped.
    pub dropped_files: u64,
}

/// What is known of the log so far, from its beginning.
#[derive(Default)]
struct Walk {
    before: Option<LogEntry>,
    next: u64,
    /// Hashes of paths: the paths of a long log would fill the memory.
    paths: HashSet<u64>,
    /// The base `_seq` of each table's newest copy.
    bases: BTreeMap<TableName, i64>,
    versions: BTreeMap<TableName, (u32, u64)>,
}

struct Named {
    epoch: u64,
    table: TableName,
    file: FileEntry,
}

impl CommitLog {
    /// Looks at the whole log, and tells `wrong` what is not right; `seen` is told how far it
    /// is, a page at a time.
    ///
    /// # Errors
    /// Those of the store, where it cannot be asked; what it says is wrong is no error.
    pub async fn verify(
        &self,
        extent: Extent,
        wrong: &mut (dyn FnMut(Wrong) + Send),
        seen: &mut (dyn FnMut(&Verified) + Send),
    ) -> Result<Verified> {
        let mut walk = Walk {
            next: 1,
            ..Walk::default()
        };
        let mut done = Verified::default();
        let mut after: Option<String> = None;
        let dropped = self.dropped().await?;
        loop {
            let page = self
                .store
                .list(&self.layout.log_dir(), after.as_deref(), PAGE)
                .await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            let keys = page.into_iter().map(|o| o.key);
            let reads = futures::stream::iter(keys)
                .map(|key| async move { (self.store.get(&key).await, key) });
            let mut reads = reads.buffered(ENTRIES_AT_A_TIME);
            let mut named = Vec::new();
            while let Some((bytes, key)) = reads.next().await {
                let Some(entry) = self.entry_of(&key, bytes?, &mut walk, wrong) else {
                    continue;
                };
                done.commits += 1;
                done.without_checksum += u64::from(entry.sha256.is_none());
                let is_dropped = dropped
                    .iter()
                    .any(|(to, by)| (to + 1..*by).contains(&entry.epoch));
                let files = walk.take(&entry, &mut |path, table, what| {
                    wrong(self.wrong(path, entry.epoch, table, what));
                });
                match is_dropped {
                    true => done.dropped_files += files.len() as u64,
                    false => named.extend(files),
                }
                walk.before = Some(entry);
            }
            done.files += named.len() as u64;
            done.bytes += named.iter().map(|n| n.file.bytes).sum::<u64>();
            self.verify_files(named, extent, wrong).await?;
            seen(&done);
        }
        for (table, (version, epoch)) in walk.versions {
            self.verify_schemas(&table, version, epoch, wrong).await?;
        }
        Ok(done)
    }

    /// The ranges of epochs that rewinds dropped, both ends excluded, as far as the log tells.
    async fn dropped(&self) -> Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        // A damaged log tells less, and the walk says so.
        let readable = |read: Result<Option<LogEntry>>| match read {
            Err(e) if e.class() == Class::Retryable => Err(e),
            read => Ok(read.ok().flatten()),
        };
        let mut newest = readable(self.find_head(None).await)?;
        while let Some(entry) = newest {
            if entry.last_rewind == 0 {
                break;
            }
            let rewind = readable(self.read(entry.last_rewind).await)?;
            let Some(to) = rewind.as_ref().and_then(|r| r.rewind_to) else {
                break;
            };
            found.push((to, entry.last_rewind));
            newest = readable(self.read(to).await)?;
        }
        Ok(found)
    }

    fn wrong(&self, path: &str, epoch: u64, table: Option<&TableName>, what: String) -> Wrong {
        Wrong {
            path: self.layout.path(path).unwrap_or(path).to_owned(),
            epoch,
            table: table.cloned(),
            what,
        }
    }

    /// The entry of a file below `_log/`, if it is one.
    fn entry_of(
        &self,
        key: &str,
        bytes: Option<Bytes>,
        walk: &mut Walk,
        wrong: &mut (dyn FnMut(Wrong) + Send),
    ) -> Option<LogEntry> {
        let mut tell = |key: &str, epoch, what: String| wrong(self.wrong(key, epoch, None, what));
        let Some(epoch) = Layout::log_epoch(key) else {
            tell(key, 0, "is not a commit's name".to_owned());
            return None;
        };
        while walk.next < epoch {
            let missing = self.layout.log_entry(walk.next);
            tell(&missing, walk.next, "is missing".to_owned());
            walk.next += 1;
            walk.before = None;
        }
        walk.next = epoch + 1;
        let Some(bytes) = bytes else {
            tell(key, epoch, "is listed and cannot be read".to_owned());
            walk.before = None;
            return None;
        };
        let entry = match read::parse(key, epoch, &bytes) {
            Ok(entry) => entry,
            Err(e) => {
                let text = e.message().to_owned();
                let what = text.strip_prefix(key).unwrap_or(&text).trim().to_owned();
                tell(key, epoch, what);
                walk.before = None;
                return None;
            }
        };
        if let Err(what) = walk.check(&entry, &bytes) {
            tell(key, epoch, what);
        }
        Some(entry)
    }

    async fn verify_files(
        &self,
        named: Vec<Named>,
        extent: Extent,
        wrong: &mut (dyn FnMut(Wrong) + Send),
    ) -> Result<()> {
        if extent == Extent::None {
            return Ok(());
        }
        let looks = futures::stream::iter(named).map(|n| async move {
            let key = self.layout.key(&n.file.path);
            let found = match extent {
                Extent::Hash => self.hash(&key, &n.file).await,
                _ => self.measure(&key, &n.file).await,
            };
            (found, n)
        });
        let mut looks = looks.buffer_unordered(FILES_AT_A_TIME);
        while let Some((found, n)) = looks.next().await {
            if let Some(what) = found? {
                wrong(self.wrong(&n.file.path, n.epoch, Some(&n.table), what));
            }
        }
        Ok(())
    }

    /// What is wrong with a file's presence and size.
    async fn measure(&self, key: &str, file: &FileEntry) -> Result<Option<String>> {
        let listed = self.store.list(key, None, 1).await?;
        let found = listed.into_iter().find(|o| o.key == key);
        Ok(match found {
            None => Some("does not exist".to_owned()),
            Some(o) if o.bytes != file.bytes => Some(size(o.bytes, file)),
            Some(_) => None,
        })
    }

    /// What is wrong with a file's bytes.
    async fn hash(&self, key: &str, file: &FileEntry) -> Result<Option<String>> {
        let mut digest = Sha256::new();
        // The footer lies in the last two parts, unless it is larger than one.
        let (mut before, mut last) = (Bytes::new(), Bytes::new());
        let mut bytes = 0;
        loop {
            let Some(part) = self.store.get_part(key, bytes, PART_BYTES).await? else {
                return Ok(Some("does not exist".to_owned()));
            };
            bytes += part.len() as u64;
            let ends = (part.len() as u64) < PART_BYTES;
            if !part.is_empty() {
                digest.update(&part);
                before = std::mem::replace(&mut last, part);
            }
            if ends {
                break;
            }
        }
        if bytes != file.bytes {
            return Ok(Some(size(bytes, file)));
        }
        let found = hex::encode(digest.finalize());
        if found != file.sha256 {
            let what = format!("has SHA-256 {found}, and the log says {}", file.sha256);
            return Ok(Some(what));
        }
        let mut end = BytesMut::with_capacity(before.len() + last.len());
        end.extend_from_slice(&before);
        end.extend_from_slice(&last);
        Ok(match rows_of(&end) {
            Ok(Some(rows)) if rows != file.rows => {
                Some(format!("has {rows} rows, and the log says {}", file.rows))
            }
            Ok(_) => None,
            Err(what) => Some(format!("is no readable Parquet file: {what}")),
        })
    }

    async fn verify_schemas(
        &self,
        table: &TableName,
        newest: u32,
        epoch: u64,
        wrong: &mut (dyn FnMut(Wrong) + Send),
    ) -> Result<()> {
        for version in 1..=newest {
            let what = match self.read_schema(table, version).await {
                Ok(Some(_)) => continue,
                Ok(None) => "does not exist".to_owned(),
                Err(e) if e.kind() == Kind::Corrupt => e.message().to_owned(),
                Err(e) => return Err(e),
            };
            let path = Layout::schema(table, version);
            wrong(self.wrong(&path, epoch, Some(table), what));
        }
        Ok(())
    }
}

impl Walk {
    /// What is wrong with an entry as the next one.
    fn check(&self, entry: &LogEntry, bytes: &[u8]) -> Result<(), String> {
        let ours = concat!("caudal ", env!("CARGO_PKG_VERSION"));
        if entry.agent == ours && !seal::is_canonical(entry, bytes) {
            return Err("is not as it was written: it has a field that nobody knows".to_owned());
        }
        if chrono::DateTime::parse_from_rfc3339(&entry.committed_at).is_err() {
            return Err("has no time of its commit".to_owned());
        }
        let Some(before) = &self.before else {
            return Ok(());
        };
        check::follows(Some(before), entry)?;
        check::chained(before, entry)?;
        if before.sha256.is_some() && (entry.sha256.is_none() || entry.previous.is_none()) {
            return Err("has lost its checksum, or its predecessor's".to_owned());
        }
        Ok(())
    }

    /// Takes note of an entry, tells what is wrong with what it says of files, and returns these.
    fn take(
        &mut self,
        entry: &LogEntry,
        wrong: &mut dyn FnMut(&str, Option<&TableName>, String),
    ) -> Vec<Named> {
        let mut named = Vec::new();
        for t in &entry.tables {
            if let Some(s) = &t.snapshot {
                self.bases.insert(t.table.clone(), s.base_seq);
            }
            let has_schema = t.snapshot.is_some() || !t.files.is_empty();
            if has_schema && entry.kind == EntryKind::Append {
                let newest = self.versions.entry(t.table.clone()).or_default();
                *newest = (newest.0.max(t.schema_version), entry.epoch);
            }
            for file in &t.files {
                let mut hasher = DefaultHasher::new();
                file.path.hash(&mut hasher);
                if !self.paths.insert(hasher.finish()) {
                    wrong(
                        &file.path,
                        Some(&t.table),
                        "is named by two commits".to_owned(),
                    );
                }
                let of_copy = file.first_seq == file.last_seq
                    && self.bases.get(&t.table) == Some(&file.first_seq);
                if !of_copy
                    && (file.first_seq <= entry.after.seq || file.last_seq > entry.through.seq)
                {
                    let what = format!(
                        "has _seq {} to {}, and its commit is of {} to {} (INV-7)",
                        file.first_seq,
                        file.last_seq,
                        entry.after.seq + 1,
                        entry.through.seq
                    );
                    wrong(&file.path, Some(&t.table), what);
                }
                named.push(Named {
                    epoch: entry.epoch,
                    table: t.table.clone(),
                    file: file.clone(),
                });
            }
        }
        named
    }
}

fn size(found: u64, file: &FileEntry) -> String {
    format!("has {found} bytes, and the log says {}", file.bytes)
}

/// The count of rows in a footer, `end` being the file's last bytes; `None` if it is longer.
fn rows_of(end: &[u8]) -> Result<Option<u64>, String> {
    let Some((rest, trailer)) = end.split_last_chunk::<TRAILER>() else {
        return Err("it is too short".to_owned());
    };
    let [a, b, c, d, magic @ ..] = trailer;
    if magic != b"PAR1" {
        return Err("it does not end as one".to_owned());
    }
    let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
    let Some(from) = rest.len().checked_sub(length) else {
        return Ok(None);
    };
    let footer = rest.get(from..).unwrap_or_default();
    let metadata = ParquetMetaDataReader::decode_metadata(footer).map_err(|e| e.to_string())?;
    let rows = metadata.file_metadata().num_rows();
    Ok(Some(u64::try_from(rows).unwrap_or(0)))
}
