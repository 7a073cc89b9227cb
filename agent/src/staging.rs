//! Names of files that no commit refers to yet.
//!
//! A file's name holds the epoch that was open when it was begun; a chunk's file may
//! be committed some epochs later. What is begun here and not yet committed bounds
//! `staged_from` of every log entry, which is where the next generation begins to
//! look for files that this one left behind. Files of an attempt that failed are
//! this process's own garbage and deleted by the next attempt.

use caudal_model::{Result, TableSchema};
use caudal_sinks::{FileId, FileOptions, FileWriter, Layout, Partition, Store};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How files are named and written.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// Compression and the like.
    pub options: FileOptions,
    /// A folder an hour instead of a day.
    pub hourly: bool,
}

/// Gives out file names, and remembers those not committed.
pub struct Staging {
    generation: u64,
    store: Arc<dyn Store>,
    files: FileSettings,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    epoch: u64,
    next: u32,
    /// Path → the epoch in its name.
    open: BTreeMap<String, u64>,
}

impl Staging {
    /// For one generation, whose first epoch is `epoch`.
    pub fn new(store: Arc<dyn Store>, generation: u64, epoch: u64, files: FileSettings) -> Self {
        let inner = Inner { epoch, next: 0, open: BTreeMap::new() };
        Staging { generation, store, files, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change below leaves the map whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch that new names get; numbers within one are never given twice, even
    /// if an attempt failed and began the same epoch again.
    pub fn set_epoch(&self, epoch: u64) {
        let mut inner = self.inner();
        if inner.epoch != epoch {
            inner.epoch = epoch;
            inner.next = 0;
        }
    }

    /// Begins a file of `schema`'s table.
    pub async fn begin(&self, schema: &Arc<TableSchema>) -> Result<FileWriter> {
        let partition =
            if self.files.hourly { Partition::now_by_hour() } else { Partition::now_by_day() };
        let (epoch, path) = {
            let mut inner = self.inner();
            let id = FileId { epoch: inner.epoch, generation: self.generation, n: inner.next };
            inner.next += 1;
            let path = Layout::change_file(&schema.table, &partition, id);
            inner.open.insert(path.clone(), id.epoch);
            (id.epoch, path)
        };
        FileWriter::create(&self.store, &path, schema.clone(), epoch, &self.files.options).await
    }

    /// These files are committed, or gone.
    pub fn settled<'p>(&self, paths: impl Iterator<Item = &'p str>) {
        let mut inner = self.inner();
        for p in paths {
            inner.open.remove(p);
        }
    }

    /// Every path begun and not settled: garbage, if no attempt is running.
    pub fn unsettled(&self) -> Vec<String> {
        self.inner().open.keys().cloned().collect()
    }

    /// The least epoch in the name of a file that is not settled, at most `epoch`.
    pub fn staged_from(&self, epoch: u64) -> u64 {
        self.inner().open.values().copied().min().map_or(epoch, |e| e.min(epoch))
    }
}
