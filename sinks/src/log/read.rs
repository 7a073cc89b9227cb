//! Reading the log: one entry, a range, and the head of a log of any length.

use super::{CommitLog, check, seal};
use crate::entry::LogEntry;
use crate::layout::Layout;
use bytes::Bytes;
use caudal_model::{Error, Kind, Result};
use futures::{StreamExt, TryStreamExt};
use std::ops::RangeInclusive;

/// Entries read beside each other.
const READ_AHEAD: usize = 16;

/// A file of the lake that does not say what it must.
pub(super) fn damaged(key: &str, what: &str) -> Error {
    Error::fatal(Kind::Corrupt, format!("{key} is damaged: {what}")).hint(
        "something else than caudal has written here; restore the file from the bucket's versions \
         or a backup",
    )
}

/// An entry from its bytes.
pub(super) fn parse(key: &str, epoch: u64, bytes: &Bytes) -> Result<LogEntry> {
    // The format first: a later one may not parse as this one.
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    let json = |e: serde_json::Error| damaged(key, &e.to_string());
    let Format { format } = serde_json::from_slice(bytes).map_err(json)?;
    if format != super::FORMAT {
        return Err(Error::fatal(
            Kind::Corrupt,
            format!(
                "{key} has format {format}, and this program knows {}",
                super::FORMAT
            ),
        )
        .hint("run the version of caudal that wrote it, or a later one"));
    }
    let entry: LogEntry = serde_json::from_slice(bytes).map_err(json)?;
    if entry.epoch != epoch {
        return Err(damaged(
            key,
            &format!("it says that it is commit {}", entry.epoch),
        ));
    }
    seal::verify(&entry, bytes).map_err(|what| damaged(key, &format!("it {what}")))?;
    check::sound(&entry).map_err(|what| damaged(key, &format!("it {what}")))?;
    Ok(entry)
}

impl CommitLog {
    pub(super) fn corrupt(&self, epoch: u64, what: &str) -> Error {
        damaged(&self.layout.log_entry(epoch), &format!("it {what}"))
    }

    /// One entry, or `None` if it was never committed.
    ///
    /// # Errors
    /// [`Kind::Corrupt`], naming the file, if it is no entry of this epoch.
    pub async fn read(&self, epoch: u64) -> Result<Option<LogEntry>> {
        let key = self.layout.log_entry(epoch);
        match self.store.get(&key).await? {
            Some(bytes) => parse(&key, epoch, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Entries in order, each checked to follow the one before (INV-2).
    ///
    /// # Errors
    /// [`Kind::Corrupt`], naming the file, if one is missing or does not follow.
    pub async fn read_range(&self, epochs: RangeInclusive<u64>) -> Result<Vec<LogEntry>> {
        let reads = futures::stream::iter(epochs).map(|epoch| async move {
            let missing = || damaged(&self.layout.log_entry(epoch), "it is missing");
            self.read(epoch).await?.ok_or_else(missing)
        });
        let entries: Vec<LogEntry> = reads.buffered(READ_AHEAD).try_collect().await?;
        for pair in entries.windows(2) {
            if let [before, entry] = pair {
                check::follows(Some(before), entry)
                    .and_then(|()| check::chained(before, entry))
                    .map_err(|what| self.corrupt(entry.epoch, &what))?;
            }
        }
        Ok(entries)
    }

    /// `first` and every entry after it.
    pub(super) async fn read_following(&self, first: LogEntry) -> Result<Vec<LogEntry>> {
        let mut entries = vec![first];
        while let Some(last) = entries.last() {
            let Some(next) = self.read(last.epoch + 1).await? else {
                break;
            };
            let linked = check::follows(Some(last), &next);
            let linked = linked.and_then(|()| check::chained(last, &next));
            linked.map_err(|what| self.corrupt(next.epoch, &what))?;
            entries.push(next);
        }
        Ok(entries)
    }

    /// The newest entry, or `None` for a stream without one. This writer's next commit
    /// must follow it.
    ///
    /// `hint` is an epoch that was committed once, such as the checkpoint's: with a good
    /// one it takes three requests, without one some logarithm of the log's length.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if entries are missing below the newest one.
    pub async fn head(&self, hint: Option<u64>) -> Result<Option<LogEntry>> {
        let mut state = self.state.lock().await;
        let known = state.head.as_ref().map(|h| h.epoch);
        let head = self.find_head(hint.max(known)).await?;
        state.head = head.clone();
        Ok(head)
    }

    pub(super) async fn find_head(&self, hint: Option<u64>) -> Result<Option<LogEntry>> {
        let mut low = match self.first_known(hint).await? {
            Some(entry) => entry,
            None => return Ok(None),
        };
        loop {
            // Entries have no gaps, so existence is monotone: step out, then halve.
            let mut step = 1_u64;
            let mut high = loop {
                let probe = low.epoch.saturating_add(step);
                match self.read(probe).await? {
                    Some(entry) => low = entry,
                    None => break probe,
                }
                step = step.saturating_mul(2);
            };
            while high - low.epoch > 1 {
                let middle = low.epoch + (high - low.epoch) / 2;
                match self.read(middle).await? {
                    Some(entry) => low = entry,
                    None => high = middle,
                }
            }
            // And nothing may lie beyond, or there is a gap after all.
            match self.first_after(Some(low.epoch)).await? {
                None => return Ok(Some(low)),
                Some(epoch) if epoch == low.epoch + 1 => {}
                Some(epoch) => {
                    let missing = self.layout.log_entry(low.epoch + 1);
                    return Err(damaged(
                        &missing,
                        &format!("it is missing, and {epoch} is there"),
                    ));
                }
            }
        }
    }

    /// An entry that exists: the hinted one, else the log's first.
    async fn first_known(&self, hint: Option<u64>) -> Result<Option<LogEntry>> {
        if let Some(hint) = hint.filter(|h| *h > 0)
            && let Some(entry) = self.read(hint).await?
        {
            return Ok(Some(entry));
        }
        match self.first_after(None).await? {
            Some(epoch) => self.read(epoch).await,
            None => Ok(None),
        }
    }

    /// The least epoch above `epoch` that the store lists.
    async fn first_after(&self, epoch: Option<u64>) -> Result<Option<u64>> {
        let after = epoch.map(|e| self.layout.log_entry(e));
        let listed = self
            .store
            .list(&self.layout.log_dir(), after.as_deref(), 1)
            .await?;
        let Some(object) = listed.into_iter().next() else {
            return Ok(None);
        };
        match Layout::log_epoch(&object.key) {
            Some(epoch) => Ok(Some(epoch)),
            None => Err(damaged(&object.key, "it is not a commit's name")),
        }
    }
}
