//! Files that a dead generation uploaded and never committed.
//!
//! Why it is safe: only files are deleted whose name carries a generation below the
//! one that this writer fenced, and that no entry names. That generation's last slot
//! is taken by the fence, so no entry can come to name them. Why it finds them: a
//! file named by epoch E was begun while E was open, so it is committed at E or
//! later, and lies in a partition no older than the commit before `staged_from`.

use super::CommitLog;
use crate::entry::LogEntry;
use crate::layout::{FileId, Layout, Partition};
use caudal_model::{Error, Result, TableName};
use chrono::{DateTime, Days, Utc};
use futures::{StreamExt, TryStreamExt};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Requests beside each other.
const CONCURRENCY: usize = 16;
/// Objects of one listing.
const PAGE: usize = 1000;

/// What [`CommitLog::remove_unreferenced`] took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Uploads that had been started and never finished.
    pub uploads: usize,
}

impl CommitLog {
    /// Deletes the change files that generations before this writer's left uncommitted,
    /// and drops their unfinished uploads. Call it after [`Self::fence`]; it may run
    /// beside commits, and until it has succeeded entries carry the old `staged_from`.
    ///
    /// # Errors
    /// [`caudal_model::Kind::Bug`] without a fence; else those of the store.
    pub async fn remove_unreferenced(&self) -> Result<Removed> {
        let (generation, head) = {
            let state = self.state.lock().await;
            match (state.generation, &state.head) {
                (Some(generation), Some(head)) => (generation, head.epoch),
                _ => {
                    return Err(Error::bug(
                        "unreferenced files are looked for after a fence",
                    ));
                }
            }
        };
        let from = self.uncleaned_from.load(Ordering::Acquire);
        if from == u64::MAX {
            return Ok(Removed::default());
        }
        let from = from.max(1);
        let committed: HashSet<String> = self
            .read_range(from..=head)
            .await?
            .into_iter()
            .flat_map(|e| e.tables)
            .flat_map(|t| t.files)
            .map(|f| f.path)
            .collect();
        let before = if from > 1 {
            self.read(from - 1).await?
        } else {
            None
        };
        let oldest = before.as_ref().and_then(oldest_partition);
        let is_dead = |key: &str| {
            self.layout.path(key).is_some_and(|path| {
                path.contains("/changes/")
                    && FileId::parse(path)
                        .is_some_and(|id| id.generation < generation && id.epoch >= from)
                    && !committed.contains(path)
            })
        };
        // An unfinished upload is in no commit, whatever its epoch: an attempt that failed
        // may have left it long before its process ended.
        let is_dead_upload = |key: &str| {
            let id = self.layout.path(key).and_then(FileId::parse);
            id.is_some_and(|id| id.generation < generation)
        };
        let mut removed = Removed {
            uploads: self
                .store
                .abort_uploads(self.layout.root(), &is_dead_upload)
                .await?,
            ..Removed::default()
        };
        let dirs = self.partitions(oldest.as_deref()).await?;
        let found: Vec<Vec<(String, u64)>> = futures::stream::iter(dirs)
            .map(|dir| self.files_since(dir, from))
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        let dead: Vec<(String, u64)> = found
            .into_iter()
            .flatten()
            .filter(|(key, _)| is_dead(key))
            .collect();
        removed.files = dead.len();
        removed.bytes = dead.iter().map(|(_, bytes)| bytes).sum();
        let keys: Vec<String> = dead.into_iter().map(|(key, _)| key).collect();
        self.store.delete(&keys).await?;
        self.uncleaned_from.store(u64::MAX, Ordering::Release);
        Ok(removed)
    }

    /// Deletes the files of a table that this generation's helper left: those numbered in
    /// `numbers` that are not in `keep` (paths), begun today or yesterday.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove_numbered(
        &self,
        table: &TableName,
        generation: u64,
        numbers: &Range<u32>,
        keep: &HashSet<String>,
    ) -> Result<()> {
        let yesterday = Utc::now().checked_sub_days(Days::new(1));
        let oldest = yesterday.map(|at| Partition::day(at).as_str().to_owned());
        let dir = self.layout.key(&Layout::changes_dir(table));
        let recent = |name: &str| oldest.as_deref().is_none_or(|o| name >= o);
        let days = self.below(vec![dir], recent).await?;
        let hours = self
            .below(days.clone(), |name| name.starts_with("_hour="))
            .await?;
        let mut dead = Vec::new();
        for dir in days.into_iter().chain(hours) {
            let files = self.files_since(dir, 0).await?.into_iter();
            dead.extend(files.map(|(key, _)| key).filter(|key| {
                let path = self.layout.path(key);
                let id = path.and_then(FileId::parse);
                id.is_some_and(|id| id.generation == generation && numbers.contains(&id.n))
                    && path.is_some_and(|p| !keep.contains(p))
            }));
        }
        self.store.delete(&dead).await
    }

    /// The directories of change files, of all tables, that are not older than `oldest`.
    async fn partitions(&self, oldest: Option<&str>) -> Result<Vec<String>> {
        let mut tables = Vec::new();
        for schema in self.store.list_dirs(self.layout.root()).await? {
            if schema != "_log" {
                tables.push(format!("{}{schema}/", self.layout.root()));
            }
        }
        let tables = self.below(tables, |_| true).await?;
        let changes: Vec<String> = tables.into_iter().map(|t| format!("{t}changes/")).collect();
        let recent = |name: &str| oldest.is_none_or(|o| name >= o);
        let days = self.below(changes, recent).await?;
        // A stream partitioned by the hour, now or earlier, has both.
        let hours = self
            .below(days.clone(), |name| name.starts_with("_hour="))
            .await?;
        Ok(days.into_iter().chain(hours).collect())
    }

    async fn below(&self, dirs: Vec<String>, keep: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let listed: Vec<Vec<String>> = futures::stream::iter(dirs)
            .map(|dir| async move {
                let names = self.store.list_dirs(&dir).await?;
                Ok::<_, Error>(names.into_iter().map(|n| format!("{dir}{n}/")).collect())
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        let name = |dir: &str| {
            dir.trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        Ok(listed
            .into_iter()
            .flatten()
            .filter(|d| keep(&name(d)))
            .collect())
    }

    /// The files of one partition that were begun in `epoch` or later.
    async fn files_since(&self, dir: String, epoch: u64) -> Result<Vec<(String, u64)>> {
        let mut after = format!("{dir}{}", Layout::first_file_of(epoch));
        let mut found = Vec::new();
        loop {
            let mut page = self.store.list(&dir, Some(&after), PAGE).await?;
            let listed = page.len();
            if let Some(last) = page.last() {
                after.clone_from(&last.key);
            }
            // Directories of hours sort after a day's own files, and are listed by themselves.
            page.retain(|o| {
                !o.key
                    .get(dir.len()..)
                    .is_some_and(|name| name.contains('/'))
            });
            let full = listed == PAGE && page.len() == PAGE;
            found.extend(page.into_iter().map(|o| (o.key, o.bytes)));
            if !full {
                return Ok(found);
            }
        }
    }
}

/// The least `_date=` that a file begun after this entry can have; a day is left for
/// the difference of two agents' clocks.
fn oldest_partition(before: &LogEntry) -> Option<String> {
    let at = DateTime::parse_from_rfc3339(&before.committed_at)
        .ok()?
        .to_utc();
    let at = at.checked_sub_days(Days::new(1))?;
    Some(Partition::day(at).as_str().to_owned())
}
