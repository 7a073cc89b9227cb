//! Whether the stream can make progress at this moment, and if not, why: what `/readyz`
//! answers and the watchdog warns of.
//!
//! Nothing is derived from silence alone: a stream that has nothing to do is well. Work that
//! does not move is known by what is asked of a peer and not answered, by a commit that goes
//! on and on, and by a source that is ahead of a log that gives nothing.

use super::{StatusBoard, StreamState};
use caudal_model::Position;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long a question to the source or the store may go unanswered before it counts as
/// unreachable, unless stalls are noticed earlier.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What keeps a stream from making progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// One of [`Trouble::LABELS`].
    pub reason: String,
    /// Since when, as far as is known.
    pub seconds: u64,
    /// For people.
    pub message: String,
}

/// Those that come while a stream runs, and are warned of.
pub(crate) const STALLS: [&str; 5] = ["source", "store", "log", "commit", "pipeline"];

impl Trouble {
    /// `starting`: connecting and recovering. `retrying`: after an error, with the error.
    /// `source`, `store`: it does not answer, or with an error. `log`: the source is ahead, and
    /// its log gives nothing. `commit`: one is under way for too long. `pipeline`: it stands
    /// still. `stopped`, `failed`: the stream has ended.
    pub const LABELS: [&str; 9] = [
        "starting", "retrying", "source", "store", "log", "commit", "pipeline", "stopped", "failed",
    ];
}

/// Whom the agent needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The database.
    Source,
    /// The lake's store.
    Store,
}

#[derive(Debug, Default)]
struct Answers {
    asked: Option<Instant>,
    answered: Option<Instant>,
    failed: Option<(Instant, String)>,
}

impl Answers {
    fn answer(&mut self, error: Option<String>, now: Instant) {
        let asked = self.asked.take().unwrap_or(now);
        self.failed = error.map(|text| {
            let since = self.failed.take().map_or(asked, |(since, _)| since);
            (since, text)
        });
        if self.failed.is_none() {
            self.answered = Some(now);
        }
    }

    fn trouble(&self, name: &str, patience: Duration, now: Instant) -> Option<Trouble> {
        if let Some((since, text)) = &self.failed {
            return Some(trouble(name, *since, now, text.clone()));
        }
        let asked = self.asked?;
        let waited = now.saturating_duration_since(asked);
        (waited > patience).then(|| {
            let text = format!("the {name} has not answered for {} s", waited.as_secs());
            trouble(name, asked, now, text)
        })
    }
}

fn trouble(reason: &str, since: Instant, now: Instant, message: String) -> Trouble {
    Trouble {
        reason: reason.to_owned(),
        seconds: now.saturating_duration_since(since).as_secs(),
        message,
    }
}

/// How the pipeline stands, as of its last turn.
#[derive(Debug)]
struct Turn {
    at: Instant,
    /// Changes with everything that the log gives.
    given: (u64, usize),
    moved: Instant,
    reached: Position,
}

#[derive(Debug)]
pub(super) struct Vitals {
    stall_after: Duration,
    source: Answers,
    store: Answers,
    retrying: Option<(Instant, String)>,
    commit: Option<Instant>,
    turn: Option<Turn>,
    /// Since when the source is known to be ahead of the log's reader.
    ahead: Option<Instant>,
    began: Instant,
}

impl Vitals {
    pub(super) fn new() -> Self {
        Vitals {
            stall_after: Duration::from_secs(60),
            source: Answers::default(),
            store: Answers::default(),
            retrying: None,
            commit: None,
            turn: None,
            ahead: None,
            began: Instant::now(),
        }
    }

    fn commit_trouble(&self, now: Instant) -> Option<Trouble> {
        let since = self.commit?;
        let taken = now.saturating_duration_since(since);
        (taken > self.stall_after).then(|| {
            let text = format!("a commit has been under way for {} s", taken.as_secs());
            trouble("commit", since, now, text)
        })
    }

    fn log_trouble(&self, now: Instant) -> Option<Trouble> {
        let turn = self.turn.as_ref()?;
        let since = turn.moved.max(self.ahead?);
        let silent = now.saturating_duration_since(since);
        // Held back by what stands behind it, the log is not to blame.
        let held_back = self.commit.is_some() || self.pipeline_trouble(now).is_some();
        (silent > self.stall_after && !held_back).then(|| {
            let text = format!(
                "the source has gone on, and its log has given nothing for {} s",
                silent.as_secs()
            );
            trouble("log", since, now, text)
        })
    }

    fn pipeline_trouble(&self, now: Instant) -> Option<Trouble> {
        let turn = self.turn.as_ref()?;
        let still = now.saturating_duration_since(turn.at);
        (still > self.stall_after).then(|| {
            let text = format!("the pipeline has stood still for {} s", still.as_secs());
            trouble("pipeline", turn.at, now, text)
        })
    }

    fn troubles(&self, state: StreamState, now: Instant) -> Vec<Trouble> {
        match state {
            StreamState::Starting => {
                let found = match &self.retrying {
                    Some((since, text)) => trouble("retrying", *since, now, text.clone()),
                    None => trouble("starting", self.began, now, "not yet connected".into()),
                };
                vec![found]
            }
            StreamState::Stopped | StreamState::Failed => {
                let text = format!("the stream has {}", state.label());
                vec![trouble(state.label(), now, now, text)]
            }
            StreamState::Snapshotting | StreamState::Running => {
                let patience = ANSWER_WITHIN.min(self.stall_after);
                [
                    self.source.trouble("source", patience, now),
                    self.store.trouble("store", patience, now),
                    self.log_trouble(now),
                    self.commit_trouble(now),
                    self.pipeline_trouble(now),
                ]
                .into_iter()
                .flatten()
                .collect()
            }
        }
    }
}

impl StatusBoard {
    /// How long work may stand still before that is trouble.
    pub fn set_stall_after(&self, stall_after: Duration) {
        self.lock().vitals.stall_after = stall_after;
    }

    /// An attempt has ended; what follows is another one, because of this error.
    pub fn set_retrying(&self, error: String) {
        let mut s = self.lock();
        let v = &mut s.vitals;
        let since = v
            .retrying
            .take()
            .map_or_else(Instant::now, |(since, _)| since);
        *v = Vitals {
            stall_after: v.stall_after,
            retrying: Some((since, error)),
            ..Vitals::new()
        };
        for label in STALLS {
            s.warnings.remove(label);
        }
    }

    /// The attempt reads the log.
    pub(crate) fn attempt_runs(&self) {
        self.lock().vitals.retrying = None;
    }

    /// A question is on its way.
    pub fn asked(&self, peer: Peer) {
        self.lock().answers(peer).asked = Some(Instant::now());
    }

    /// It was answered, or failed.
    pub fn answered(&self, peer: Peer, error: Option<String>) {
        self.lock().answers(peer).answer(error, Instant::now());
    }

    /// How long ago a peer last did what was asked.
    pub fn since_answer(&self, peer: Peer) -> Option<Duration> {
        self.lock().answers(peer).answered.map(|t| t.elapsed())
    }

    /// A commit has begun, or it stands.
    pub fn set_committing(&self, committing: bool) {
        let mut s = self.lock();
        s.vitals.commit = committing.then(Instant::now);
        if !committing {
            s.vitals.store.answer(None, Instant::now());
        }
    }

    /// The pipeline's turn: `given` changes with everything that the log gives.
    pub fn turn(&self, given: (u64, usize), reached: &Position) {
        let now = Instant::now();
        let mut s = self.lock();
        s.last_progress = now;
        match &mut s.vitals.turn {
            Some(turn) => {
                turn.at = now;
                if turn.given != given {
                    (turn.given, turn.moved) = (given, now);
                    turn.reached.clone_from(reached);
                }
            }
            none => {
                *none = Some(Turn {
                    at: now,
                    given,
                    moved: now,
                    reached: reached.clone(),
                });
            }
        }
    }

    /// How far the log's reader has come, committed or not.
    pub fn reached(&self) -> Option<Position> {
        self.lock().vitals.turn.as_ref().map(|t| t.reached.clone())
    }

    /// Whether the source has more than the log's reader has come to.
    pub fn set_ahead(&self, ahead: bool) {
        let mut s = self.lock();
        let since = s.vitals.ahead.unwrap_or_else(Instant::now);
        s.vitals.ahead = ahead.then_some(since);
    }

    /// What keeps the stream from making progress now; nothing if it is ready.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.troubles_at(Instant::now())
    }

    pub(super) fn troubles_at(&self, now: Instant) -> Vec<Trouble> {
        let s = self.lock();
        s.vitals.troubles(s.report.state, now)
    }
}

impl super::State {
    fn answers(&mut self, peer: Peer) -> &mut Answers {
        match peer {
            Peer::Source => &mut self.vitals.source,
            Peer::Store => &mut self.vitals.store,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(board: &StatusBoard, later: u64) -> Vec<String> {
        let found = board.troubles_at(Instant::now() + Duration::from_secs(later));
        found.into_iter().map(|t| t.reason).collect()
    }

    fn running() -> StatusBoard {
        let board = StatusBoard::new("shop", "mysql");
        assert_eq!(reasons(&board, 0), ["starting"]);
        board.set_state(StreamState::Running);
        board.turn((0, 0), &Position::new("1"));
        board
    }

    #[test]
    fn an_idle_stream_is_well_and_one_that_stands_still_is_not() {
        let board = running();
        assert!(reasons(&board, 59).is_empty());
        assert_eq!(reasons(&board, 61), ["pipeline"]);
        // Its turns go on, and the log gives nothing.
        if let Some(turn) = &mut board.lock().vitals.turn {
            turn.at += Duration::from_secs(61);
        }
        assert!(reasons(&board, 61).is_empty());
        board.set_ahead(true);
        assert_eq!(reasons(&board, 61), ["log"]);
        board.set_committing(true);
        assert_eq!(reasons(&board, 61), ["commit"]);
        board.set_committing(false);
        board.set_ahead(false);
        assert!(reasons(&board, 61).is_empty());
        board.set_ahead(true);
        board.set_stall_after(Duration::from_secs(1));
        assert_eq!(reasons(&board, 2), ["log"]);
    }

    #[test]
    fn who_does_not_answer_or_with_an_error_is_named() {
        let board = running();
        board.asked(Peer::Source);
        assert!(reasons(&board, 9).is_empty());
        assert_eq!(reasons(&board, 11), ["source"]);
        board.answered(Peer::Source, Some("refused".into()));
        let found = board.troubles();
        assert_eq!((found.len(), found[0].message.as_str()), (1, "refused"));
        board.answered(Peer::Source, None);
        board.answered(Peer::Store, Some("slow down".into()));
        assert_eq!(reasons(&board, 0), ["store"]);
        // A commit is an answer of the store.
        board.set_committing(true);
        board.set_committing(false);
        assert!(reasons(&board, 0).is_empty());
    }

    #[test]
    fn after_an_error_nothing_of_the_attempt_counts() {
        let board = running();
        board.set_committing(true);
        board.answered(Peer::Store, Some("gone".into()));
        board.set_retrying("the connection broke".into());
        board.set_state(StreamState::Starting);
        assert_eq!(reasons(&board, 100), ["retrying"]);
        board.set_state(StreamState::Running);
        board.attempt_runs();
        assert!(reasons(&board, 100).is_empty());
        board.set_state(StreamState::Failed);
        assert_eq!(reasons(&board, 0), ["failed"]);
    }
}
