//! The log from a position on, into the buffer, transaction by transaction.
//!
//! A transaction that the server sends whole (Begin … Commit) is decoded straight
//! into the buffer. One that it streams while it runs is kept aside as raw messages
//! (see `staging`) and decoded when its StreamCommit comes; so the buffer's rows are
//! always in commit order, and an abort costs nothing (INV-3).
//!
//! Positions. The stream's position is the end of a commit record: the server sends,
//! from a position on, the transactions whose commit record begins at or after it.
//! A keepalive's position is the end of the last record that the server has read
//! and sent, so every commit before it has been delivered in front of it in the
//! same connection. Transactions still open there do not matter: their commit
//! records come later, and the server keeps the log from the start of the oldest of
//! them (`restart_lsn`), so a stream that starts again at the keepalive's position gets
//! each of them whole, staged ones too. Inside Begin … Commit no heartbeat is given.
//!
//! Cancel safety. A message is consumed only when all of its effects are in the
//! buffer or in this struct, and the only waits are on a channel and on a task's
//! result, both of which lose nothing when dropped.

use super::catalog;
use super::decode::pgoutput::{self, Envelope, Message, Reader};
use super::decoder::{Answer, Decoder, Outcome, Question};
use super::replication::{ReplicationConnection, ReplicationStream};
use super::staging::{Replay, Staging};
use super::visibility::{Snapshot, XidClock};
use super::{Lsn, Shared, names, slot};
use crate::{Tail, TailEvent, TrackedTable};
use async_trait::async_trait;
use bytes::Bytes;
use caudal_model::{ChangeBuffer, Error, Kind, Position, Result, TableName};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::JoinHandle;

type Lookup = JoinHandle<Result<Answer>>;

/// A slot's changes.
pub struct PostgresTail {
    shared: Arc<Shared>,
    stream: ReplicationStream,
    /// Whole protocol messages, consumed up to `at`.
    buffer: Bytes,
    at: usize,
    decoder: Decoder,
    /// A commit whose streamed messages are being decoded.
    replay: Option<(Replay, u32, Lsn)>,
    staging: Staging,
    /// The top-level transaction of the part that is being streamed.
    streaming: Option<u32>,
    /// Given to the caller.
    reached: Lsn,
    heartbeat: Lsn,
    lookup: Option<Lookup>,
}

impl PostgresTail {
    /// Opens the slot at `from`.
    pub async fn open(
        shared: Arc<Shared>,
        from: &Position,
        tables: Vec<TrackedTable>,
    ) -> Result<Self> {
        let from = Lsn::of(from)?;
        let control = shared.control().await?;
        slot::note_beginning(&shared, &control).await?;
        let confirmed = slot::require(&control, &shared, from).await?;
        let (snapshot, _) = Snapshot::take(&control).await?;
        let staging = Staging::open(&shared.options.spill_dir, shared.options.staging_bytes)?;
        let followed = tables.iter().map(|t| &*t.schema);
        shared.membership.begin(followed);
        // A name may have gone to another table while nobody looked, or a table out of the publication.
        names::look(&shared).await?;
        let mut decoder = Decoder::new(shared.clone(), XidClock::at(snapshot.xmax()));
        for table in tables {
            decoder.track(table)?;
        }
        let stream = slot::retry_while_active(&shared, || async {
            let connection = ReplicationConnection::open(&shared)
                .await
                .map_err(|e| (String::new(), e))?;
            let process = connection.server_process;
            let stream = connection
                .start(
                    &shared.slot(),
                    &shared.publication(),
                    (from, confirmed),
                    !shared.whole.load(Ordering::Relaxed),
                )
                .await?;
            shared.walsender.store(process, Ordering::Relaxed);
            Ok(stream)
        })
        .await?;
        Ok(PostgresTail {
            shared,
            stream,
            buffer: Bytes::new(),
            at: 0,
            decoder,
            replay: None,
            staging,
            streaming: None,
            reached: from,
            heartbeat: from,
            lookup: None,
        })
    }

    /// Handles messages that have arrived, until there is something to tell.
    fn step(&mut self, into: &mut ChangeBuffer) -> Result<Option<TailEvent>> {
        if let Some((table, error)) = self.shared.membership.lost(&self.shared)? {
            self.decoder.untrack(&table);
            return Ok(Some(TailEvent::TableFailed { table, error }));
        }
        if self.replay.is_some()
            && let Some(event) = self.step_replay(into)?
        {
            return Ok(Some(event));
        }
        let buffer = self.buffer.clone();
        while self.lookup.is_none() && self.replay.is_none() {
            let mut rest = Reader(buffer.get(self.at..).unwrap_or_default());
            if rest.0.is_empty() {
                break;
            }
            let outcome = match pgoutput::envelope(&mut rest)? {
                Envelope::Data(data) => self.message(data, into)?,
                Envelope::Keepalive { wal_end } => {
                    self.heartbeat = self.heartbeat.max(wal_end);
                    Outcome::Done
                }
                Envelope::End => {
                    return Err(Error::retryable(
                        Kind::Source,
                        "the server ended replication",
                    ));
                }
                Envelope::Other => Outcome::Done,
            };
            let consumed = !matches!(outcome, Outcome::Before(_) | Outcome::Unknown(_));
            if consumed {
                self.at = buffer.len() - rest.0.len();
            }
            if let Some(event) = self.conclude(outcome, into) {
                return Ok(Some(event));
            }
        }
        if self.replay.is_some() && self.lookup.is_none() {
            return self.step_replay(into);
        }
        Ok(None)
    }

    fn conclude(&mut self, outcome: Outcome, into: &ChangeBuffer) -> Option<TailEvent> {
        match outcome {
            Outcome::Event(event) | Outcome::Before(event) => Some(event),
            Outcome::Unknown(question) => {
                self.lookup = Some(tokio::spawn(look_up(self.shared.clone(), question)));
                None
            }
            Outcome::Done if self.decoder.open.is_some() && into.is_full() => Some(TailEvent::Full),
            Outcome::Done => None,
        }
    }

    fn message(&mut self, data: &[u8], into: &mut ChangeBuffer) -> Result<Outcome> {
        if let Some(xid) = self.streaming {
            match data.first() {
                Some(b'I' | b'U' | b'D' | b'T' | b'R') => {
                    self.staging.append(xid, data)?;
                    return self.within_the_disk().map(|()| Outcome::Done);
                }
                Some(b'O' | b'Y' | b'M') => return Ok(Outcome::Done),
                _ => {}
            }
        }
        match pgoutput::parse(data, false)? {
            Message::Begin {
                final_lsn,
                committed_at_us,
                xid,
            } => {
                self.decoder.begin(xid, final_lsn, committed_at_us);
                Ok(Outcome::Done)
            }
            Message::Commit { end_lsn } => Ok(self.commit(end_lsn)),
            Message::StreamStart { xid } => {
                self.streaming = Some(xid);
                Ok(Outcome::Done)
            }
            Message::StreamStop => {
                self.streaming = None;
                Ok(Outcome::Done)
            }
            Message::StreamAbort { xid, subxid } => {
                self.staging.abort(xid, subxid);
                Ok(Outcome::Done)
            }
            Message::StreamCommit {
                xid,
                commit_lsn,
                end_lsn,
                committed_at_us,
            } => {
                self.decoder.begin(xid, commit_lsn, committed_at_us);
                self.replay = Some((self.staging.take(xid)?, xid, end_lsn));
                Ok(Outcome::Done)
            }
            message => self.decoder.change(&message, into),
        }
    }

    /// Past the limit, the server is asked to keep transactions itself until they commit.
    fn within_the_disk(&self) -> Result<()> {
        let (spilled, limit) = (self.staging.spilled(), self.shared.options.spill_bytes);
        if spilled <= limit {
            return Ok(());
        }
        self.shared.whole.store(true, Ordering::Relaxed);
        let text = format!(
            "transactions that have not ended fill {spilled} bytes of disk, of {limit} that they may"
        );
        Err(Error::retryable(Kind::State, text)
            .hint("from here on the server sends transactions once they have committed; limits.spill_bytes says how much may wait here"))
    }

    fn step_replay(&mut self, into: &mut ChangeBuffer) -> Result<Option<TailEvent>> {
        loop {
            let Some((replay, _, end_lsn)) = &mut self.replay else {
                return Ok(None);
            };
            let end_lsn = *end_lsn;
            if !replay.ready()? {
                self.replay = None;
                return Ok(match self.commit(end_lsn) {
                    Outcome::Event(event) => Some(event),
                    _ => None,
                });
            }
            let message = pgoutput::parse(replay.message(), true)?;
            let outcome = match message {
                // What a rolled-back part told of a table still stands for the messages
                // after it: the server does not repeat it.
                Message::Row { xid, .. } | Message::Truncate { xid, .. }
                    if xid.is_some_and(|x| replay.is_aborted(x)) =>
                {
                    Outcome::Done
                }
                message => self.decoder.change(&message, into)?,
            };
            if !matches!(outcome, Outcome::Before(_) | Outcome::Unknown(_)) {
                replay.advance();
            }
            if let Some(event) = self.conclude(outcome, into) {
                return Ok(Some(event));
            }
            if self.lookup.is_some() {
                return Ok(None);
            }
        }
    }

    /// Ends the open transaction. One without rows is worth no more than a heartbeat.
    fn commit(&mut self, end_lsn: Lsn) -> Outcome {
        let Some(open) = self.decoder.open.take() else {
            return Outcome::Done;
        };
        self.shared.delivered.note(open.xid, end_lsn);
        if !open.begun {
            self.heartbeat = self.heartbeat.max(end_lsn);
            return Outcome::Done;
        }
        let log_bytes = end_lsn.0.saturating_sub(self.reached.0);
        self.reached = self.reached.max(end_lsn);
        Outcome::Event(TailEvent::Commit {
            position: end_lsn.position(),
            committed_at_us: open.committed_at_us,
            log_bytes,
        })
    }

    fn take_heartbeat(&mut self) -> Option<TailEvent> {
        if self.decoder.open.is_some() || self.heartbeat <= self.reached {
            return None;
        }
        self.reached = self.heartbeat;
        Some(TailEvent::Heartbeat {
            position: self.reached.position(),
        })
    }
}

#[async_trait]
impl Tail for PostgresTail {
    async fn next(&mut self, into: &mut ChangeBuffer) -> Result<TailEvent> {
        loop {
            if self.decoder.open.is_none() {
                self.decoder.follow_names(self.reached, into.next_seq());
            }
            if let Some(event) = self.decoder.queued.pop_front() {
                return Ok(event);
            }
            if let Some(lookup) = &mut self.lookup {
                let found = lookup.await;
                self.lookup = None;
                let found =
                    found.map_err(|e| Error::bug("a look-up of types failed").caused_by(e))?;
                self.decoder.learn(found?);
            }
            if let Some(event) = self.step(into)? {
                return Ok(event);
            }
            if self.lookup.is_some() {
                continue;
            }
            if let Some(event) = self.take_heartbeat() {
                return Ok(event);
            }
            self.buffer = self.stream.next().await?;
            self.at = 0;
        }
    }

    fn acknowledge(&mut self, through: &Position) {
        match Lsn::of(through) {
            Ok(lsn) => self.stream.acknowledge(lsn),
            Err(e) => tracing::error!(error = %e, "a position cannot be acknowledged"),
        }
    }

    fn written(&mut self, through: &Position) {
        match Lsn::of(through) {
            Ok(lsn) => self.stream.written(lsn),
            Err(e) => tracing::error!(error = %e, "a position cannot be reported"),
        }
    }

    fn track(&mut self, table: TrackedTable) {
        let name = table.schema.table.clone();
        self.shared.membership.follow(&table.schema);
        if let Err(e) = self.decoder.track(table) {
            tracing::error!(table = %name, error = %e, "a table's mark cannot be read");
        }
    }

    fn live(&mut self, table: &TableName) {
        self.decoder.live(table);
    }

    fn untrack(&mut self, table: &TableName) {
        self.shared.membership.leave(table);
        self.decoder.untrack(table);
    }

    fn staged_bytes(&self) -> usize {
        self.staging.held() + self.replay.as_ref().map_or(0, |(r, ..)| r.held())
    }

    fn spilled_bytes(&self) -> u64 {
        self.staging.spilled()
    }

    fn in_transaction(&self) -> bool {
        self.decoder.open.as_ref().is_some_and(|o| o.begun)
    }
}

impl Drop for PostgresTail {
    fn drop(&mut self) {
        if let Some(lookup) = &self.lookup {
            lookup.abort();
        }
    }
}

/// A table as it is now, and types.
async fn look_up(shared: Arc<Shared>, question: Question) -> Result<Answer> {
    let client = shared.control().await?;
    Ok(Answer {
        oid: question.oid,
        table: catalog::table_state(&client, question.oid).await?,
        types: catalog::types(&client, &question.types).await?,
        generated: catalog::carries_generated(&client, &shared.publication()).await?,
    })
}
