//! The stream's newest state as the lake's log tells it, for whoever does not own the stream.

use crate::history;
use crate::recover::{self, Resume};
use caudal_model::{Checkpoint, Result};
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
        Resume::Rebuild(_) => history::state_at(log, head.epoch).await?,
    };
    history::advance(log, &mut state, head.epoch).await?;
    Ok(Some(state))
}
