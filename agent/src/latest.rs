//! The stream's newest state as the lake's log tells it, for whoever does not own the stream.

use crate::recover::{self, Resume};
use caudal_model::{Checkpoint, Error, Kind, Result};
use caudal_sinks::CommitLog;

/// The newest state of the stream, reading the log from the checkpoint on.
pub async fn newest(log: &CommitLog, checkpoint: Option<Checkpoint>) -> Result<Option<Checkpoint>> {
    let Some(head) = log.head(checkpoint.as_ref().map(|c| c.epoch)).await? else {
        return Ok(checkpoint);
    };
    let at = match &checkpoint {
        Some(c) if c.epoch == head.epoch => Some(head.clone()),
        Some(c) if (1..head.epoch).contains(&c.epoch) => log.read(c.epoch).await?,
        _ => None,
    };
    let mut state = match recover::plan_resume(Some(&head), checkpoint, at.as_ref())? {
        Resume::Fresh => return Ok(None),
        Resume::Checkpoint(state) => *state,
        Resume::Rebuild(_) => {
            let mut entry = head.clone();
            loop {
                if let Some(state) = recover::from_state(&entry) {
                    break state;
                }
                if entry.epoch == 1 {
                    let mut state = recover::genesis(entry.after.clone());
                    recover::apply(&mut state, &entry)?;
                    break state;
                }
                entry = read(log, entry.epoch - 1).await?;
            }
        }
    };
    while state.epoch < head.epoch {
        let entry = read(log, state.epoch + 1).await?;
        recover::apply(&mut state, &entry)?;
    }
    Ok(Some(state))
}

async fn read(log: &CommitLog, epoch: u64) -> Result<caudal_sinks::LogEntry> {
    log.read(epoch).await?.ok_or_else(|| {
        Error::fatal(
            Kind::Corrupt,
            format!("commit {epoch} of the log is missing"),
        )
    })
}
