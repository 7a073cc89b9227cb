//! Which positions the source may forget: those of commits that are older than
//! `checkpoints.replay_window`, so that the stream can be rewound behind younger ones.
//!
//! A position is let go only when a commit settles. So once a rewind stands, nothing more is:
//! the agent before it cannot commit again (INV-8).

use caudal_model::{Position, Result};
use caudal_sinks::CommitLog;
use caudal_sources::Tail;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Positions that are remembered; more would only let go a little earlier.
const REMEMBERED: u32 = 64;

/// Positions that the source keeps a while longer.
pub(super) struct ReplayWindow {
    window: Duration,
    held: VecDeque<(Instant, Position)>,
}

impl ReplayWindow {
    /// Zero holds nothing back.
    pub(super) fn new(window: Duration) -> Self {
        ReplayWindow {
            window,
            held: VecDeque::new(),
        }
    }

    /// The tail was opened at the log's `head`, which reaches `from`.
    ///
    /// Errors: those of reading the log.
    pub(super) async fn opened(
        &mut self,
        log: &CommitLog,
        head: u64,
        from: &Position,
        tail: &mut dyn Tail,
    ) -> Result<()> {
        let Ok(window) = chrono::Duration::from_std(self.window) else {
            return Ok(());
        };
        if !self.window.is_zero() {
            // Short runs would hold everything for ever if each counted from its own start.
            let until = chrono::Utc::now() - window;
            if let Some(old) = crate::history::position_before(log, head, until).await? {
                tail.acknowledge(&old);
            }
        }
        self.settled(from, tail);
        Ok(())
    }

    /// A commit through this position stands (INV-3).
    pub(super) fn settled(&mut self, through: &Position, tail: &mut dyn Tail) {
        if self.window.is_zero() {
            tail.acknowledge(through);
            return;
        }
        tail.written(through);
        let mut old = None;
        while self
            .held
            .front()
            .is_some_and(|(at, _)| at.elapsed() >= self.window)
        {
            old = self.held.pop_front();
        }
        if let Some((_, position)) = old {
            tail.acknowledge(&position);
        }
        let newest = self.held.back();
        if newest.is_none_or(|(at, _)| at.elapsed() >= self.window / REMEMBERED) {
            self.held.push_back((Instant::now(), through.clone()));
        }
    }
}
