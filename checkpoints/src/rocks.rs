//! The RocksDB store.
//!
//! # Consistency
//! Each commit is one synced write batch, so that the head and the tables' progress are
//! of one epoch. RocksDB recovers its log up to the first record that is torn or
//! damaged: the result is an older checkpoint, which the caller notices by its epoch
//! (INV-1). Opening reads and parses every record, so that damage in a table file shows
//! then and not later.
//!
//! # What is never trusted
//! A database that cannot be read, is of another stream, or has a newer format is moved
//! aside, with a warning, and an empty one takes its place. It is not deleted: somebody
//! may have pointed the agent at the wrong directory. Errors of the disk itself (no
//! space, no permission) are errors, since an empty database would meet them too.

use crate::{CheckpointStore, keys, lock};
use caudal_model::{Checkpoint, Error, Kind, Result, StreamPoint, TableProgress, TableSchema};
use rocksdb::{
    BlockBasedOptions, Cache, DB, Direction, ErrorKind, InfoLogger, IteratorMode, LogLevel,
    Options, WriteBatch, WriteOptions,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DATABASE: &str = "db";
const CACHE_BYTES: usize = 1 << 20;
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// Turns a database of one format into one of the next; `None` where there is no way,
/// and the database is rebuilt.
type Upgrade = fn(&DB, u32) -> Option<std::result::Result<(), rocksdb::Error>>;

/// Format 1 is the first: there is nothing to upgrade from yet.
fn upgrade(_: &DB, _from: u32) -> Option<std::result::Result<(), rocksdb::Error>> {
    None
}

/// Checkpoints in RocksDB.
#[derive(Debug)]
pub struct RocksStore {
    /// `None` after it could not be opened again.
    db: Option<DB>,
    path: PathBuf,
    stream: String,
    /// A write failed, after which the database takes no other until it is opened again.
    broken: bool,
    /// Keeps other agents out until the store is dropped; absent when read-only.
    _lock: Option<File>,
}

/// What [`RocksStore::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// The store, possibly empty.
    pub store: RocksStore,
    /// A database that was moved out of the way.
    pub set_aside: Option<SetAside>,
}

/// A database that was moved out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// The checkpoint without its tables, as [`keys::HEAD_KEY`] holds it.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    epoch: u64,
    generation: u64,
    through: StreamPoint,
    #[serde(default)]
    server: Option<String>,
}

/// Why a database was not opened.
enum Refusal {
    /// Its content: it is moved aside.
    Content(String),
    /// Anything else.
    Failure(Error),
}

impl RocksStore {
    /// Opens the store of a stream in its state directory, which is made (0700) if it
    /// does not exist.
    ///
    /// Errors: [`Kind::Fenced`] while another agent has the directory, [`Kind::State`] if
    /// the disk fails.
    pub fn open(dir: &Path, stream: &str) -> Result<Opened> {
        Self::open_upgrading(dir, stream, upgrade)
    }

    fn open_upgrading(dir: &Path, stream: &str, upgrade: Upgrade) -> Result<Opened> {
        make_private(dir)?;
        let lock = lock::take(dir)?;
        let path = dir.join(DATABASE);
        let (db, set_aside) = open_or_set_aside(dir, &path, stream, upgrade)?;
        let store = RocksStore {
            db: Some(db),
            path,
            stream: stream.to_owned(),
            broken: false,
            _lock: Some(lock),
        };
        Ok(Opened { store, set_aside })
    }

    /// Opens the store as it is now, beside a running agent or without one; `None` where
    /// there is no database. Nothing is moved, and writing to it fails.
    ///
    /// Errors: [`Kind::State`] if it cannot be read, is of another stream or newer.
    pub fn open_read_only(dir: &Path, stream: &str) -> Result<Option<RocksStore>> {
        let path = dir.join(DATABASE);
        if !path.join("CURRENT").exists() {
            return Ok(None);
        }
        // The owner may delete a file between our reading of the list and of the file.
        let mut attempt = 0;
        let db = loop {
            attempt += 1;
            match DB::open_for_read_only(&options(), &path, false) {
                Ok(db) => break db,
                Err(_) if attempt < 3 => std::thread::sleep(Duration::from_millis(50)),
                Err(e) => return Err(state(&path, "cannot be read").caused_by(e)),
            }
        };
        match identity(&db, stream) {
            Ok(Some(keys::FORMAT)) => Ok(Some(RocksStore {
                db: Some(db),
                path,
                stream: stream.to_owned(),
                broken: false,
                _lock: None,
            })),
            Ok(None) => Ok(None),
            Ok(Some(format)) => Err(state(&path, &format!("has the older format {format}"))),
            Err(Refusal::Content(reason)) => Err(state(&path, &reason)),
            Err(Refusal::Failure(e)) => Err(e),
        }
    }

    fn failed(&self, e: rocksdb::Error) -> Error {
        state(&self.path, "failed").caused_by(e)
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        let Some(db) = &self.db else { return Ok(None) };
        let Some(bytes) = db.get_pinned(key).map_err(|e| self.failed(e))? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| self.unreadable(e))
    }

    fn list<T: DeserializeOwned>(&self, prefix: &[u8]) -> Result<Vec<T>> {
        let mut values = Vec::new();
        let entries = self.db.iter();
        for item in
            entries.flat_map(|db| db.iterator(IteratorMode::From(prefix, Direction::Forward)))
        {
            let (key, value) = item.map_err(|e| self.failed(e))?;
            if !key.starts_with(prefix) {
                break;
            }
            values.push(serde_json::from_slice(&value).map_err(|e| self.unreadable(e))?);
        }
        Ok(values)
    }

    fn unreadable(&self, e: serde_json::Error) -> Error {
        let path = self.path.display();
        Error::fatal(
            Kind::Corrupt,
            format!("the checkpoints in {path} do not parse"),
        )
        .hint("remove that directory; it is rebuilt from the lake")
        .caused_by(e)
    }

    /// Errors: a retryable one if the disk does not take it. What the store has is then older
    /// than it should be, which the lake's log makes up for.
    fn write(&mut self, batch: WriteBatch) -> Result<()> {
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let written = self.writable()?.write_opt(batch, &synced);
        written.map_err(|e| {
            self.broken = true;
            self.refused(e)
        })
    }

    /// The database, opened again if it has to be.
    fn writable(&mut self) -> Result<&DB> {
        if self.broken && self._lock.is_some() {
            // It keeps its own lock on the directory for as long as it is open.
            self.db = None;
        }
        match &mut self.db {
            Some(db) => Ok(db),
            none => {
                let dir = self.path.parent().unwrap_or(&self.path);
                let opened = open_or_set_aside(dir, &self.path, &self.stream, upgrade);
                let (db, _) = opened.map_err(|e| again(&self.path).caused_by(e))?;
                self.broken = false;
                Ok(none.insert(db))
            }
        }
    }

    fn refused(&self, e: rocksdb::Error) -> Error {
        again(&self.path).caused_by(e)
    }

    /// Deletes, within the batch, every key of a kind.
    fn clear(&self, batch: &mut WriteBatch, prefix: &[u8]) -> Result<()> {
        let entries = self.db.iter();
        for item in
            entries.flat_map(|db| db.iterator(IteratorMode::From(prefix, Direction::Forward)))
        {
            let (key, _) = item.map_err(|e| self.failed(e))?;
            if !key.starts_with(prefix) {
                break;
            }
            batch.delete(&key);
        }
        Ok(())
    }
}

fn put<T: Serialize>(batch: &mut WriteBatch, key: impl AsRef<[u8]>, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| Error::bug("a checkpoint does not serialize").caused_by(e))?;
    batch.put(key, bytes);
    Ok(())
}

fn put_checkpoint(
    batch: &mut WriteBatch,
    head: &Checkpoint,
    tables: &[TableProgress],
) -> Result<()> {
    let through = head.through.clone();
    let head = Head {
        epoch: head.epoch,
        generation: head.generation,
        through,
        server: head.server.clone(),
    };
    put(batch, keys::HEAD_KEY, &head)?;
    for t in tables {
        put(batch, keys::table(&t.table), t)?;
    }
    Ok(())
}

impl CheckpointStore for RocksStore {
    fn load(&self) -> Result<Option<Checkpoint>> {
        let Some(head) = self.get::<Head>(keys::HEAD_KEY)? else {
            return Ok(None);
        };
        let tables = self.list(keys::TABLES)?;
        let Head {
            epoch,
            generation,
            through,
            server,
        } = head;
        Ok(Some(Checkpoint {
            epoch,
            generation,
            through,
            server,
            tables,
        }))
    }

    fn advance(&mut self, head: &Checkpoint, changed: &[TableProgress]) -> Result<()> {
        let mut batch = WriteBatch::default();
        put_checkpoint(&mut batch, head, changed)?;
        self.write(batch)
    }

    fn replace(&mut self, whole: &Checkpoint) -> Result<()> {
        // What is to be cleared must be there to be seen.
        self.writable()?;
        let mut batch = WriteBatch::default();
        self.clear(&mut batch, keys::TABLES)?;
        self.clear(&mut batch, keys::SCHEMAS)?;
        put_checkpoint(&mut batch, whole, &whole.tables)?;
        self.write(batch)
    }

    fn put_schema(&mut self, schema: &TableSchema) -> Result<()> {
        let mut batch = WriteBatch::default();
        put(
            &mut batch,
            keys::schema(&schema.table, schema.version),
            schema,
        )?;
        self.write(batch)
    }

    fn schemas(&self) -> Result<Vec<TableSchema>> {
        self.list(keys::SCHEMAS)
    }
}

/// A write that may succeed later.
fn again(path: &Path) -> Error {
    let path = path.display();
    Error::retryable(
        Kind::State,
        format!("the checkpoint database {path} takes no writes"),
    )
    .hint("free space below stream.state_dir, or mend its disk; nothing is lost, for the lake's log is the truth")
}

fn state(path: &Path, what: &str) -> Error {
    let path = path.display();
    Error::fatal(
        Kind::State,
        format!("the checkpoint database {path} {what}"),
    )
}

/// Makes the state directory: it holds staged rows, so nobody else may read it.
fn make_private(dir: &Path) -> Result<()> {
    let failed = |e: std::io::Error| {
        Error::fatal(
            Kind::State,
            format!("cannot make the state directory {}", dir.display()),
        )
        .hint("make it, owned by the agent's user, or change stream.state_dir")
        .caused_by(e)
    };
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(_) if dir.is_dir() => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

fn options() -> Options {
    let mut o = Options::default();
    o.create_if_missing(true);
    o.set_paranoid_checks(true);
    // A few kilobytes a commit: the smallest of everything.
    o.set_write_buffer_size(WRITE_BUFFER_BYTES);
    o.set_max_write_buffer_number(2);
    o.set_max_total_wal_size(4 * WRITE_BUFFER_BYTES as u64);
    o.set_max_background_jobs(2);
    o.set_max_open_files(64);
    o.set_stats_dump_period_sec(0);
    o.set_stats_persist_period_sec(0);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    o.set_block_based_table_factory(&table);
    // RocksDB would keep a log file of its own, and a reader would rotate the owner's.
    o.set_info_logger(InfoLogger::new_callback_logger(
        LogLevel::Error,
        |_, line| {
            tracing::debug!(target: "rocksdb", "{}", line.trim_end());
        },
    ));
    o
}

/// Opens the database, or a new one in the place of one that is not usable.
fn open_or_set_aside(
    dir: &Path,
    path: &Path,
    stream: &str,
    upgrade: Upgrade,
) -> Result<(DB, Option<SetAside>)> {
    let reason = match open_database(path, stream, upgrade) {
        Ok(db) => return Ok((db, None)),
        Err(Refusal::Failure(e)) => return Err(e),
        Err(Refusal::Content(reason)) => reason,
    };
    let moved = move_aside(dir, path)?;
    tracing::warn!(
        moved_to = %moved.display(),
        reason = %reason,
        "the local checkpoints were not usable and were moved aside; they are rebuilt from the lake"
    );
    let db = open_database(path, stream, upgrade).map_err(|refusal| match refusal {
        Refusal::Failure(e) => e,
        Refusal::Content(reason) => {
            Error::bug(format!("a new checkpoint database is not usable: {reason}"))
        }
    })?;
    let set_aside = SetAside {
        path: moved,
        reason,
    };
    Ok((db, Some(set_aside)))
}

fn open_database(path: &Path, stream: &str, upgrade: Upgrade) -> std::result::Result<DB, Refusal> {
    let db = DB::open(&options(), path).map_err(|e| refusal(path, e))?;
    match identity(&db, stream)? {
        None => {
            let mut batch = WriteBatch::default();
            batch.put(keys::FORMAT_KEY, keys::FORMAT.to_string());
            batch.put(keys::STREAM_KEY, stream);
            let mut synced = WriteOptions::default();
            synced.set_sync(true);
            db.write_opt(batch, &synced).map_err(|e| refusal(path, e))?;
        }
        Some(format) => {
            for from in format..keys::FORMAT {
                match upgrade(&db, from) {
                    Some(Ok(())) => db
                        .put(keys::FORMAT_KEY, (from + 1).to_string())
                        .map_err(|e| refusal(path, e))?,
                    Some(Err(e)) => return Err(refusal(path, e)),
                    None => {
                        let reason = format!("it has format {from}, which cannot be upgraded");
                        return Err(Refusal::Content(reason));
                    }
                }
            }
            verify(&db, path)?;
        }
    }
    Ok(db)
}

/// Whose database it is: the format, or `None` if it is empty.
fn identity(db: &DB, stream: &str) -> std::result::Result<Option<u32>, Refusal> {
    let text = |key: &[u8]| match db.get(key) {
        Ok(bytes) => Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned())),
        Err(e) => Err(refusal(db.path(), e)),
    };
    let content = |reason: String| Err(Refusal::Content(reason));
    let Some(format) = text(keys::FORMAT_KEY)? else {
        return match db.iterator(IteratorMode::Start).next() {
            None => Ok(None),
            Some(Err(e)) => Err(refusal(db.path(), e)),
            Some(Ok(_)) => content("it is not a checkpoint database".into()),
        };
    };
    let Ok(format) = format.parse::<u32>() else {
        return content("its format is not a number".into());
    };
    if format > keys::FORMAT {
        let known = keys::FORMAT;
        return content(format!(
            "it has format {format}, newer than this version's {known}"
        ));
    }
    match text(keys::STREAM_KEY)? {
        Some(owner) if owner == stream => Ok(Some(format)),
        Some(owner) => content(format!(
            "it belongs to the stream `{owner}`, not `{stream}`"
        )),
        None => content("it names no stream".into()),
    }
}

/// Reads and parses every record.
fn verify(db: &DB, path: &Path) -> std::result::Result<(), Refusal> {
    let damaged = |key: &[u8]| {
        Err(Refusal::Content(format!(
            "the record {} does not parse",
            key.escape_ascii()
        )))
    };
    for item in db.iterator(IteratorMode::Start) {
        let (key, value) = item.map_err(|e| refusal(path, e))?;
        let whole = match key.first() {
            Some(b'!') => true,
            Some(b'h') => parses::<Head>(&value, |_| *key == *keys::HEAD_KEY),
            Some(b't') => parses::<TableProgress>(&value, |t| *key == *keys::table(&t.table)),
            Some(b'v') => {
                parses::<TableSchema>(&value, |s| *key == *keys::schema(&s.table, s.version))
            }
            _ => false,
        };
        if !whole {
            return damaged(&key);
        }
    }
    Ok(())
}

fn parses<T: DeserializeOwned>(value: &[u8], belongs: impl Fn(&T) -> bool) -> bool {
    serde_json::from_slice::<T>(value).is_ok_and(|v| belongs(&v))
}

/// Tells a database that is damaged from a disk that fails.
fn refusal(path: &Path, e: rocksdb::Error) -> Refusal {
    let text = e.to_string();
    let disk = e.kind() == ErrorKind::IOError && !text.contains("No such file");
    if disk && text.to_lowercase().contains("lock") {
        let dir = path.parent().unwrap_or(path);
        return Refusal::Failure(lock::fenced(dir).caused_by(e));
    }
    if disk {
        return Refusal::Failure(
            state(path, "cannot be opened")
                .hint("check the disk's space and the directory's owner")
                .caused_by(e),
        );
    }
    Refusal::Content(format!("it cannot be read: {text}"))
}

fn move_aside(dir: &Path, path: &Path) -> Result<PathBuf> {
    let now = chrono::Utc::now().format("%Y%m%dT%H%M%SZ");
    let name = format!("{DATABASE}.corrupt-{now}");
    let free = (1..).map(|n| {
        if n == 1 {
            name.clone()
        } else {
            format!("{name}-{n}")
        }
    });
    let target = free
        .map(|n| dir.join(n))
        .find(|p| !p.exists())
        .unwrap_or_else(|| dir.join(&name));
    std::fs::rename(path, &target).map_err(|e| {
        state(path, "cannot be moved aside")
            .hint("remove it; it is rebuilt from the lake")
            .caused_by(e)
    })?;
    Ok(target)
}

#[cfg(test)]
#[path = "rocks_tests.rs"]
mod tests;
