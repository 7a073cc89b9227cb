//! The commit log: numbered entries, each created once and never changed.
//!
//! Why it is correct: an entry's slot is its epoch, and creating it is atomic, so of
//! all writers one fills it (INV-1). A writer fills only the slot after the head that
//! it knows, with `after` equal to that head's `through` (INV-2). A fence is an entry
//! too: it takes the slot that the older generation would have used, which stops it
//! there (INV-8). A writer that finds its slot taken reads it: its own bytes mean
//! that the reply to an earlier attempt was lost, and the commit stands. A rewind is an
//! entry like a fence, which goes back to an older commit's positions.

mod check;
mod garbage;
mod read;
mod rewind;
mod seal;
mod verify;

use crate::entry::{Kind as EntryKind, LogEntry, TableEntry};
#[cfg(test)]
use crate::layout::Partition;
use crate::layout::{FileId, Layout};
use crate::parquet::{FileWriter, WriterOptions};
use crate::store::{PutOutcome, Store};
use bytes::Bytes;
use caudal_model::{Error, Kind, Result, StreamPoint, TableName, TableProgress, TableSchema};
use chrono::{SecondsFormat, Utc};
use std::fmt;
use std::sync::Arc;
use tokio::sync::Mutex;

pub use garbage::Removed;
pub use rewind::Rewind;
pub use verify::{Extent, Verified, Wrong};

/// The format of entries that this program writes and reads.
pub const FORMAT: u32 = 1;

/// Fences tried before the store is called unusable: each lost one had a rival's commit.
const FENCE_ATTEMPTS: u32 = 100;

/// The commit log of one stream, and one writer of it.
///
/// One a process and stream, for as long as the process lives: the nonce that tells
/// its own entries from others' is drawn when it is made.
pub struct CommitLog {
    store: Arc<dyn Store>,
    layout: Layout,
    stream: String,
    writer: String,
    /// Held for the length of a commit or fence, so that one goes after the other.
    state: Mutex<State>,
    /// The least epoch in the name of a file that a dead generation may have left;
    /// `u64::MAX` if there is none. Apart from `state`, so that [`Self::entry`] need not wait.
    uncleaned_from: std::sync::atomic::AtomicU64,
}

#[derive(Default)]
struct State {
    /// The newest entry that this writer has seen.
    head: Option<LogEntry>,
    /// What this writer took by its last fence.
    generation: Option<u64>,
}

/// Proof that an entry stands in the log: nothing else permits an acknowledgement (INV-3).
#[derive(Debug)]
#[must_use = "only a receipt permits the acknowledgement to the source"]
pub struct CommitReceipt {
    entry: LogEntry,
}

impl CommitReceipt {
    /// The entry as it stands in the log.
    pub fn entry(&self) -> &LogEntry {
        &self.entry
    }
    /// How far the lake reaches with it: everything through here may be acknowledged.
    pub fn through(&self) -> &StreamPoint {
        &self.entry.through
    }
    /// The commit's number.
    pub fn epoch(&self) -> u64 {
        self.entry.epoch
    }
    /// The writer's generation.
    pub fn generation(&self) -> u64 {
        self.entry.generation
    }
}

impl fmt::Debug for CommitLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CommitLog({}/{} as {})",
            self.store.url(),
            self.layout.root(),
            self.writer
        )
    }
}

impl CommitLog {
    /// The log of a stream in a store. Reads nothing yet.
    pub fn new(store: Arc<dyn Store>, stream: &str) -> Self {
        CommitLog {
            store,
            layout: Layout::new(stream),
            stream: stream.to_owned(),
            writer: format!("{:032x}", rand::random::<u128>()),
            state: Mutex::default(),
            uncleaned_from: u64::MAX.into(),
        }
    }

    /// The same with a given nonce, for a seeded simulation.
    pub fn with_writer(mut self, writer: impl Into<String>) -> Self {
        self.writer = writer.into();
        self
    }

    /// The store that holds the stream.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The stream's paths.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The nonce of this process.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// Begins a change file, named for the epoch that is open now and partitioned by the
    /// time that it is now. Nothing is sent before rows are written.
    ///
    /// # Errors
    /// Those of [`Store::upload`].
    pub async fn file_writer(
        &self,
        schema: Arc<TableSchema>,
        epoch: u64,
        generation: u64,
        n: u32,
        options: &WriterOptions,
    ) -> Result<FileWriter> {
        let id = FileId {
            epoch,
            generation,
            n,
        };
        let path = Layout::change_file(&schema.table, &options.partition.at(Utc::now()), id);
        FileWriter::create(
            &self.store,
            &self.layout,
            path,
            &self.stream,
            schema,
            id,
            options,
        )
        .await
    }

    /// An entry of this writer, now. `staged_from` is lowered while files of a dead
    /// generation have not been looked for, so that a crash does not forget them.
    #[allow(clippy::too_many_arguments)]
    pub fn entry(
        &self,
        epoch: u64,
        generation: u64,
        kind: EntryKind,
        after: StreamPoint,
        through: StreamPoint,
        tables: Vec<TableEntry>,
        staged_from: u64,
    ) -> LogEntry {
        let uncleaned = self
            .uncleaned_from
            .load(std::sync::atomic::Ordering::Acquire);
        LogEntry {
            format: FORMAT,
            epoch,
            generation,
            writer: self.writer.clone(),
            kind,
            after,
            through,
            committed_at: Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
            agent: concat!("caudal ", env!("CARGO_PKG_VERSION")).to_owned(),
            tables,
            staged_from: staged_from.min(uncleaned),
            server: None,
            state: None,
            rewind_to: None,
            last_rewind: 0,
            previous: None,
            sha256: None,
        }
    }

    /// Makes an entry the head: the only commit point (INV-1).
    ///
    /// After a retryable error it is unknown whether the entry stands; the same entry
    /// may be committed again, and a new one only after [`Self::head`] was asked.
    ///
    /// # Errors
    /// [`Kind::Fenced`] if another agent owns the stream (INV-8); [`Kind::Bug`] if the
    /// entry does not follow the head (INV-2) or this writer's fence; [`Kind::Corrupt`]
    /// if something else than an entry is in its place.
    pub async fn commit(&self, entry: LogEntry) -> Result<CommitReceipt> {
        let mut state = self.state.lock().await;
        // A second attempt of what already stands.
        if let Some(head) = state.head.as_ref().filter(|h| seal::is_same(h, &entry)) {
            let entry = head.clone();
            return Ok(CommitReceipt { entry });
        }
        check::follows(state.head.as_ref(), &entry)
            .map_err(|what| Error::bug(format!("commit {} refused: it {what}", entry.epoch)))?;
        if entry.writer != self.writer || Some(entry.generation) != state.generation {
            return Err(Error::bug(format!(
                "commit {} refused: generation {} is not what this writer fenced",
                entry.epoch, entry.generation
            )));
        }
        let (entry, bytes) = seal::seal(entry, state.head.as_ref())?;
        match self.place(entry.epoch, bytes).await? {
            Placed::Own => {
                state.head = Some(entry.clone());
                Ok(CommitReceipt { entry })
            }
            Placed::Taken(other) if other.writer == self.writer => {
                state.head = None;
                Err(Error::retryable(
                    Kind::Store,
                    format!(
                        "an earlier attempt of this agent at commit {} has succeeded with other \
                         contents; start again from the log's head",
                        entry.epoch
                    ),
                ))
            }
            Placed::Taken(other) => Err(fenced(&entry, &other)),
        }
    }

    /// Takes the stream over with a new generation, above that of `head`, which is what
    /// [`Self::head`] found. On return no older generation can commit again.
    ///
    /// `start` is where an empty log begins. `fold` is called before every attempt with
    /// the entries that others committed since the last one (first: none), and returns
    /// what the fence carries for recovery: the progress of all tables at that point.
    ///
    /// # Errors
    /// Those of the store and of `fold`.
    pub async fn fence(
        &self,
        head: Option<&LogEntry>,
        start: StreamPoint,
        mut fold: impl FnMut(&[LogEntry]) -> Result<Carried> + Send,
    ) -> Result<CommitReceipt> {
        use std::sync::atomic::Ordering;
        let mut state = self.state.lock().await;
        let mut head = head.cloned();
        let mut newer: Vec<LogEntry> = Vec::new();
        for _ in 0..FENCE_ATTEMPTS {
            let carried = fold(&newer)?;
            let point = head.as_ref().map_or(&start, |h| &h.through).clone();
            let epoch = head.as_ref().map_or(0, |h| h.epoch) + 1;
            let generation = head.as_ref().map_or(0, |h| h.generation) + 1;
            let staged_from = head.as_ref().map_or(epoch, |h| h.staged_from);
            let mut entry = self.entry(
                epoch,
                generation,
                EntryKind::Fence,
                point.clone(),
                point,
                Vec::new(),
                staged_from,
            );
            (entry.server, entry.state) = (carried.server, carried.state);
            let (entry, bytes) = seal::seal(entry, head.as_ref())?;
            match self.place(epoch, bytes).await? {
                Placed::Own => {
                    state.generation = Some(generation);
                    state.head = Some(entry.clone());
                    if head.is_some() {
                        self.uncleaned_from
                            .fetch_min(entry.staged_from, Ordering::AcqRel);
                    }
                    return Ok(CommitReceipt { entry });
                }
                Placed::Taken(other) => {
                    check::follows(head.as_ref(), &other)
                        .map_err(|what| self.corrupt(epoch, &what))?;
                    newer = self.read_following(*other).await?;
                    head = newer.last().cloned();
                }
            }
        }
        Err(Error::retryable(
            Kind::Store,
            format!("another agent's commits came first {FENCE_ATTEMPTS} times"),
        )
        .hint("stop the other agent of this stream"))
    }

    /// Writes a schema version. It never changes: written again it must be the same but
    /// for `since_seq`, which a replay after a crash may give another value.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the version exists with other columns or another key.
    pub async fn put_schema(&self, schema: &TableSchema) -> Result<()> {
        let key = self
            .layout
            .key(&Layout::schema(&schema.table, schema.version));
        let bytes = serde_json::to_vec_pretty(schema)
            .map_err(|e| Error::bug("a schema cannot be written as JSON").caused_by(e))?;
        if self.store.put_if_absent(&key, bytes.into()).await? == PutOutcome::Created {
            return Ok(());
        }
        let there = self.read_schema(&schema.table, schema.version).await?;
        let there = there.ok_or_else(|| vanished(&key))?;
        let same = TableSchema {
            since_seq: schema.since_seq,
            ..there
        };
        if same == *schema {
            return Ok(());
        }
        Err(Error::fatal(
            Kind::Corrupt,
            format!("{key} exists and describes other columns than the table has now"),
        )
        .hint("a version that no commit names may be deleted by hand; then start again"))
    }

    /// Reads a schema version.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the file is none.
    pub async fn read_schema(
        &self,
        table: &TableName,
        version: u32,
    ) -> Result<Option<TableSchema>> {
        let key = self.layout.key(&Layout::schema(table, version));
        let Some(bytes) = self.store.get(&key).await? else {
            return Ok(None);
        };
        let schema: TableSchema =
            serde_json::from_slice(&bytes).map_err(|e| read::damaged(&key, &e.to_string()))?;
        if schema.format != 1 || schema.version != version || schema.table != *table {
            return Err(read::damaged(
                &key,
                "it describes another table, version or format",
            ));
        }
        Ok(Some(schema))
    }

    /// Every version of a table's schema in the lake, in order, committed or not.
    ///
    /// # Errors
    /// As [`Self::read_schema`].
    pub async fn read_schemas(&self, table: &TableName) -> Result<Vec<TableSchema>> {
        let mut all = Vec::new();
        for version in 1.. {
            match self.read_schema(table, version).await? {
                Some(schema) => all.push(schema),
                None => break,
            }
        }
        Ok(all)
    }

    /// Creates an entry's file, or says what is in its place.
    async fn place(&self, epoch: u64, bytes: Bytes) -> Result<Placed> {
        let key = self.layout.log_entry(epoch);
        if self.store.put_if_absent(&key, bytes.clone()).await? == PutOutcome::Created {
            return Ok(Placed::Own);
        }
        let there = self.store.get(&key).await?.ok_or_else(|| vanished(&key))?;
        if there == bytes {
            return Ok(Placed::Own);
        }
        Ok(Placed::Taken(Box::new(read::parse(&key, epoch, &there)?)))
    }
}

/// What a fence tells whoever recovers from it.
#[derive(Debug, Clone, Default)]
pub struct Carried {
    /// See [`LogEntry::server`].
    pub server: Option<String>,
    /// See [`LogEntry::state`].
    pub state: Option<Vec<TableProgress>>,
}

enum Placed {
    /// By this call, or by an attempt whose reply was lost.
    Own,
    /// By another, or by this writer with other contents.
    Taken(Box<LogEntry>),
}

fn fenced(ours: &LogEntry, theirs: &LogEntry) -> Error {
    if let Some(to) = theirs.rewind_to {
        return Error::fatal(
            Kind::Fenced,
            format!(
                "the stream was rewound to commit {to}, by commit {}",
                theirs.epoch
            ),
        )
        .hint("start the agent again: it replays the source from there");
    }
    Error::fatal(
        Kind::Fenced,
        format!(
            "another agent owns the stream: commit {} was made by generation {} ({}, {}), and this \
             agent is generation {}",
            theirs.epoch, theirs.generation, theirs.agent, theirs.committed_at, ours.generation
        ),
    )
    .hint("run one agent a stream; this one stops, and what it had not committed is read again")
}

fn vanished(key: &str) -> Error {
    Error::retryable(Kind::Store, format!("{key} exists and cannot be read"))
}

#[cfg(test)]
mod tests;
