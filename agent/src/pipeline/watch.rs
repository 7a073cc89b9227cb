//! What is looked at beside the log: how far the source has got, its catalog, requests of
//! other processes, and what failed attempts left.

use super::Pipeline;
use crate::metrics;
use crate::requests::Resnapshot;
use crate::snapshot::Pause;
use crate::status::{Peer, STALLS, StatusBoard};
use crate::text;
use caudal_model::{Error, Kind};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often requests are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the watch has to say.
pub(super) enum Notice {
    /// Tables may have come or gone.
    Catalog,
    /// Another process asks for new copies.
    Asked(PathBuf, Resnapshot),
    /// The attempt makes no progress that another one could not make.
    Stalled(Error),
}

/// Shows a warning while it is true, and logs it once.
fn warn(board: &StatusBoard, name: &'static str, text: Option<String>) {
    let logged = text.clone().unwrap_or_default();
    if board.set_warning(name, text) {
        tracing::warn!("{logged}");
    }
}

impl Pipeline<'_> {
    pub(super) fn spawn_watch(&mut self, mark: Option<String>, notices: mpsc::Sender<Notice>) {
        self.watch_lag();
        self.watch_load();
        self.watch_copies();
        self.watch_catalog(mark, notices.clone());
        self.watch_store();
        self.watch_stalls(notices.clone());
        self.watch_requests(notices);
    }

    fn watch_catalog(&mut self, mut mark: Option<String>, notices: mpsc::Sender<Notice>) {
        if mark.is_none() {
            return;
        }
        let source = self.parts.source.clone();
        let every = self.parts.settings.lag_every;
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                match source.catalog_mark().await {
                    Ok(now) if now == mark => {}
                    Ok(now) => {
                        mark = now;
                        if notices.send(Notice::Catalog).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::debug!(%error, "the catalog cannot be read now"),
                }
            }
        });
    }

    /// Asks the store while nothing is committed, so that a stream without changes knows too
    /// whether it could go on.
    fn watch_store(&mut self) {
        let (board, log) = (self.parts.board.clone(), self.parts.log.clone());
        let every = self.parts.settings.lag_every * 2;
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                if board
                    .since_answer(Peer::Store)
                    .is_some_and(|ago| ago < every)
                {
                    continue;
                }
                board.asked(Peer::Store);
                let head = log.layout().log_entry(board.report().epoch);
                let answer = log.store().get(&head).await;
                board.answered(Peer::Store, answer.err().map(|e| e.to_string()));
            }
        });
    }

    /// The watchdog: says what keeps the stream from making progress, and has the log opened
    /// anew if that may help. What waits for the network otherwise has bounds of its own.
    fn watch_stalls(&mut self, notices: mpsc::Sender<Notice>) {
        let board = self.parts.board.clone();
        let reopen_after = self.parts.settings.reopen_after;
        let every = LOOK_EVERY.min(self.parts.settings.stall_after / 4);
        self.tasks.spawn(async move {
            loop {
                let troubles = board.troubles();
                for label in STALLS {
                    let found = troubles.iter().find(|t| t.reason == label);
                    warn(&board, label, found.map(|t| t.message.clone()));
                }
                let log = troubles.iter().find(|t| t.reason == "log");
                if let Some(t) = log.filter(|t| t.seconds > reopen_after.as_secs()) {
                    metrics::stall();
                    let error = Error::retryable(Kind::Source, t.message.clone());
                    if notices.send(Notice::Stalled(error)).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(every).await;
            }
        });
    }

    fn watch_requests(&mut self, notices: mpsc::Sender<Notice>) {
        let Some(requests) = self.parts.requests.clone() else {
            return;
        };
        self.tasks.spawn(async move {
            let mut seen = HashSet::new();
            loop {
                for (path, request) in requests.waiting() {
                    if seen.insert(path.clone())
                        && notices.send(Notice::Asked(path, request)).await.is_err()
                    {
                        return;
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }

    /// Asks for the source's load while it matters. A replica that does not answer takes its
    /// time, so nothing else waits for this.
    fn watch_load(&mut self) {
        let (source, board) = (self.parts.source.clone(), self.parts.board.clone());
        let (pace, every) = (self.pace.clone(), self.parts.settings.lag_every);
        if !pace.gate().needs_load() {
            return;
        }
        self.tasks.spawn(async move {
            loop {
                if !board.is_copying() {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                match source.load().await {
                    Ok(load) => pace.gate().load(load),
                    Err(error) => tracing::debug!(%error, "the load cannot be read now"),
                }
                tokio::time::sleep(every).await;
            }
        });
    }

    /// Decides which copies wait, and tells how far all of them are.
    fn watch_copies(&mut self) {
        let (board, pace) = (self.parts.board.clone(), self.pace.clone());
        let requests = self.parts.requests.clone();
        self.tasks.spawn(async move {
            let gate = pace.gate();
            let mut said = None;
            loop {
                if let Some(requests) = &requests {
                    gate.ask(requests.paused());
                }
                let pause = gate.look(chrono::Utc::now());
                // While nothing is copied, nobody wants to know.
                let label = pause.as_ref().filter(|_| board.is_copying());
                let label = label.map(Pause::label);
                if label != said {
                    match &pause {
                        Some(reason) if label.is_some() => {
                            tracing::info!(%reason, "copies wait; the log is read on");
                        }
                        _ => tracing::info!("copies go on"),
                    }
                    said = label;
                }
                let text = pause.as_ref().map(ToString::to_string);
                board.set_paused(text, |t| gate.holds(t).map(|p| p.to_string()));
                metrics::snapshot(board.report().snapshot.as_ref(), pause.as_ref());
                let grown = gate.grown().map(|grown| {
                    format!(
                        "the source's log has grown by {} while copies wait for it: something else than copies \
                         keeps the lake behind",
                        text::bytes(grown)
                    )
                });
                warn(&board, "retained_log_grows", grown);
                let untold = gate.untold().filter(|_| board.is_copying()).map(|key| {
                    format!(
                        "snapshot.{key} cannot be kept: the source does not tell what it needs (a missing \
                         right, or no replica); copies do not wait for it"
                    )
                });
                warn(&board, "untold", untold);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }

    /// Asks the source now and then how far it has got, for the lag, and clears away what
    /// failed attempts left.
    fn watch_lag(&mut self) {
        let source = self.parts.source.clone();
        let board = self.parts.board.clone();
        let mut reached = self.reached.subscribe();
        let (every, most) = {
            let s = &self.parts.settings;
            (s.lag_every, s.warn_retained_log)
        };
        let pace = self.pace.clone();
        let (staging, log) = (self.staging.clone(), self.parts.log.clone());
        self.tasks.spawn(async move {
            let mut caught_up_at = Instant::now();
            let mut coerced: HashMap<&'static str, u64> = HashMap::new();
            loop {
                let asked = Instant::now();
                let at = reached.borrow_and_update().clone();
                board.asked(Peer::Source);
                let progress = source.progress(&at).await;
                let failed = progress.as_ref().err().map(ToString::to_string);
                board.answered(Peer::Source, failed);
                match progress {
                    Ok(p) => {
                        let reached = board.reached();
                        let covers = |r| source.covers(&r, &p.position).unwrap_or(true);
                        board.set_ahead(!reached.is_none_or(covers));
                        if source.covers(&at, &p.position).unwrap_or(false) {
                            caught_up_at = asked;
                        }
                        // What the source had when it was last covered was in the lake; so the
                        // oldest change that is not cannot be older than that moment.
                        let seconds = asked.duration_since(caught_up_at).as_secs_f64();
                        board.set_lag(Some(p.position), p.lag_bytes, Some(seconds));
                        metrics::lag(Some(seconds), p.lag_bytes);
                        pace.gate().retained(p.retained_bytes);
                        board.set_retained(p.retained_bytes);
                        if let Some(retained) = p.retained_bytes {
                            metrics::log_retained(retained);
                        }
                        let over = p.retained_bytes.filter(|r| most > 0 && *r > most);
                        let over = over.map(|retained| {
                            format!(
                                "the source keeps {} of log for this stream, over snapshot.warn_retained_log ({})",
                                text::bytes(retained),
                                text::bytes(most)
                            )
                        });
                        warn(&board, "retained_log", over);
                    }
                    Err(error) => tracing::debug!(%error, "the lag cannot be read now"),
                }
                for (reason, total) in source.coerced() {
                    let seen = coerced.entry(reason).or_insert(0);
                    metrics::coerced(reason, total.saturating_sub(*seen));
                    *seen = total;
                }
                let old = staging.expired();
                if !old.is_empty() {
                    let keys: Vec<String> = old.iter().map(|p| log.layout().key(p)).collect();
                    match log.store().delete(&keys).await {
                        Ok(()) => staging.settled(old.iter().map(String::as_str)),
                        Err(error) => tracing::debug!(%error, "old files were not removed"),
                    }
                }
                // A commit makes what was said of the lag untrue.
                tokio::time::sleep(every / 10).await;
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    _ = reached.changed() => {}
                }
            }
        });
    }
}
