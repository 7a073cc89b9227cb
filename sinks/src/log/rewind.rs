//! An older commit becomes the head again.
//!
//! Why it is correct: a rewind is one entry in the slot after the head, with a generation
//! above it. So it is there or not, readers see one history or the other, and whoever wrote
//! before finds its next slot taken by a newer generation (INV-1, INV-8). It carries the
//! whole state at its target, so that nobody who starts after it reads what it dropped.

use super::{CommitLog, CommitReceipt, Placed, check, seal};
use crate::entry::{Kind as EntryKind, LogEntry, TableEntry};
use caudal_model::{Error, Result, StreamPoint, TableProgress};

/// What becomes the lake's state again.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewind {
    /// The target's number.
    pub to: u64,
    /// How far the target reached.
    pub through: StreamPoint,
    /// Which server's that is ([`LogEntry::server`]).
    pub server: Option<String>,
    /// Every table that dropped commits name, with the files that it loses.
    pub tables: Vec<TableEntry>,
    /// The progress of every table at the target.
    pub state: Vec<TableProgress>,
}

impl CommitLog {
    /// Makes `rewind` the entry after `head`; `None` if another took the place, and what is
    /// to be dropped must be looked at again.
    ///
    /// After a retryable error it is unknown whether the entry stands: [`Self::head`] is
    /// then a rewind of [`Self::writer`], or it does not.
    ///
    /// # Errors
    /// Those of the store; [`caudal_model::Kind::Bug`] if `rewind` cannot follow `head`.
    pub async fn rewind(&self, head: &LogEntry, rewind: Rewind) -> Result<Option<CommitReceipt>> {
        let mut state = self.state.lock().await;
        let mut entry = self.entry(
            head.epoch + 1,
            head.generation + 1,
            EntryKind::Rewind,
            head.through.clone(),
            rewind.through,
            rewind.tables,
            head.staged_from,
        );
        entry.server = rewind.server;
        entry.rewind_to = Some(rewind.to);
        entry.state = Some(rewind.state);
        check::follows(Some(head), &entry)
            .map_err(|what| Error::bug(format!("rewind {} refused: it {what}", entry.epoch)))?;
        let (entry, bytes) = seal::seal(entry, Some(head))?;
        Ok(match self.place(entry.epoch, bytes).await? {
            Placed::Own => {
                state.head = Some(entry.clone());
                Some(CommitReceipt { entry })
            }
            Placed::Taken(_) => None,
        })
    }
}
