//! Names of files that no commit refers to yet.
//!
//! A file's name holds the epoch that was open when it was begun; a chunk's file may
//! be committed some epochs later. What is begun here and not yet committed bounds
//! `staged_from` of every log entry, which is where the next generation begins to
//! look for files that this one left behind. Files of an attempt that failed are
//! this process's own garbage and deleted by the next attempt.

use caudal_model::{Result, TableSchema};
use caudal_sinks::{CommitLog, FileId, FileWriter, GroupWriter, Layout, WriterOptions};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Gives out file names, and remembers those not committed.
pub struct Staging {
    generation: u64,
    log: Arc<CommitLog>,
    options: WriterOptions,
    first_n: u32,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    epoch: u64,
    greatest: u64,
    next: u32,
    /// Path → the epoch in its name.
    open: BTreeMap<String, u64>,
    /// Paths of failed attempts, and when they were deleted first. An upload that was under
    /// way may appear after that, so they are deleted once more before they are forgotten.
    garbage: BTreeMap<String, Instant>,
    /// Chunks that other processes read → the epoch by which they may name their files.
    shared: BTreeMap<u64, u64>,
    /// A commit was begun of which it is not known whether it stands or may yet stand.
    in_doubt: bool,
}

/// No upload of an attempt that has failed can appear later than this.
const AFTERMATH: Duration = Duration::from_secs(300);

impl Staging {
    /// For one generation, whose first epoch is `epoch`.
    pub fn new(log: Arc<CommitLog>, generation: u64, epoch: u64, options: WriterOptions) -> Self {
        let inner = Inner {
            epoch,
            greatest: epoch,
            next: 0,
            open: BTreeMap::new(),
            garbage: BTreeMap::new(),
            shared: BTreeMap::new(),
            in_doubt: false,
        };
        Staging {
            generation,
            log,
            options,
            first_n: 0,
            inner: Mutex::new(inner),
        }
    }

    /// For a process that reads chunks for the one that owns the generation: its files are
    /// numbered from `n`, so that they meet nobody else's.
    pub fn numbered_from(mut self, n: u32) -> Self {
        self.first_n = n;
        self.inner().next = n;
        self
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change below leaves the map whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch that is open. Numbers are not given twice even if an attempt failed and
    /// begins the same epoch again: they start anew only where the epoch has never been.
    pub fn set_epoch(&self, epoch: u64) {
        let mut inner = self.inner();
        if epoch > inner.greatest {
            inner.greatest = epoch;
            // The epoch before may still be writing its files.
            inner.next = if inner.open.is_empty() {
                self.first_n
            } else {
                inner.next
            };
        }
        inner.epoch = epoch;
    }

    /// The epoch that is open at the owner of the generation, as far as this process knows.
    pub fn raise_epoch(&self, epoch: u64) {
        let mut inner = self.inner();
        inner.epoch = inner.epoch.max(epoch);
    }

    /// Begins a file of `schema`'s table that `epoch` will commit, or (`None`) the open
    /// epoch or a later one: no file is committed before the epoch in its name.
    pub async fn begin(&self, schema: &Arc<TableSchema>, epoch: Option<u64>) -> Result<FileWriter> {
        let (id, path) = {
            let mut inner = self.inner();
            let epoch = epoch.unwrap_or(inner.epoch);
            let id = FileId {
                epoch,
                generation: self.generation,
                n: inner.next,
            };
            inner.next += 1;
            let partition = self.options.partition.at(chrono::Utc::now());
            let path = Layout::change_file(&schema.table, &partition, id);
            inner.open.insert(path.clone(), id.epoch);
            (id, path)
        };
        let (store, layout) = (self.log.store(), self.log.layout());
        let stream = self.log.stream();
        FileWriter::create(
            store,
            layout,
            path,
            stream,
            schema.clone(),
            id,
            &self.options,
        )
        .await
    }

    /// Begins row groups of `schema`'s table that are of no file yet.
    pub fn groups(&self, schema: &Arc<TableSchema>) -> GroupWriter {
        GroupWriter::new(schema.clone(), &self.options)
    }

    /// The epoch that is open; a chunk that is offered under it may come back in files of
    /// this epoch or later ones.
    pub fn share(&self, offer: u64) -> u64 {
        let mut inner = self.inner();
        let epoch = inner.epoch;
        inner.shared.insert(offer, epoch);
        epoch
    }

    /// An offered chunk came back in these files (none: it was taken back), which are now
    /// this process's to commit.
    pub fn returned<'p>(&self, offer: u64, files: impl Iterator<Item = &'p str>) {
        let mut inner = self.inner();
        for path in files {
            if let Some(id) = FileId::parse(path) {
                inner.open.insert(path.to_owned(), id.epoch);
            }
        }
        inner.shared.remove(&offer);
    }

    /// Nothing is shared any more.
    pub fn nothing_shared(&self) {
        self.inner().shared.clear();
    }

    /// These files are committed, or gone.
    pub fn settled<'p>(&self, paths: impl Iterator<Item = &'p str>) {
        let mut inner = self.inner();
        for p in paths {
            inner.open.remove(p);
            inner.garbage.remove(p);
        }
    }

    /// These files of a failed attempt were deleted, and may yet appear again.
    pub fn deleted(&self, paths: &[String]) {
        let mut inner = self.inner();
        for p in paths {
            inner.garbage.entry(p.clone()).or_insert_with(Instant::now);
        }
    }

    /// These complete files will not be committed by this attempt or any other.
    pub fn unwanted(&self, paths: &[String]) {
        // An attempt's end deletes what is open, and `expired` what has waited long enough.
        self.deleted(paths);
    }

    /// Files of failed attempts that can be deleted for good.
    pub fn expired(&self) -> Vec<String> {
        let inner = self.inner();
        let old = inner
            .garbage
            .iter()
            .filter(|(_, at)| at.elapsed() >= AFTERMATH);
        old.map(|(p, _)| p.clone()).collect()
    }

    /// Every path begun and not settled: garbage, if no attempt is running. None while a
    /// commit is in doubt, for it may name any of them.
    pub fn unsettled(&self) -> Vec<String> {
        let inner = self.inner();
        if inner.in_doubt {
            return Vec::new();
        }
        inner.open.keys().cloned().collect()
    }

    /// A commit begins (`true`), or it is known whether it stands: its task ended, or a
    /// later commit took its number.
    pub fn set_in_doubt(&self, in_doubt: bool) {
        self.inner().in_doubt = in_doubt;
    }

    /// The least epoch in the name of a file that is not settled, at most `epoch`.
    pub fn staged_from(&self, epoch: u64) -> u64 {
        let inner = self.inner();
        let epochs = inner.open.values().chain(inner.shared.values());
        epochs.copied().min().map_or(epoch, |e| e.min(epoch))
    }
}
