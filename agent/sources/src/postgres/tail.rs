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

use super::catalog::{self, ColumnType, TypeKey};
use super::decode::pgoutput::{self, Envelope, Message, Reader, RowBody};
use super::relation::Relation;
use super::replication::{ReplicationConnection, ReplicationStream};
use super::staging::{Replay, Staging};
use super::visibility::{Snapshot, XidClock};
use super::{Lsn, Shared, slot};
use crate::{Tail, TailEvent, TrackedTable};
use async_trait::async_trait;
use bytes::Bytes;
use caudal_model::schema::Evolution;
use caudal_model::{ChangeBuffer, Error, Kind, Position, Result, TableName, TransactionMeta};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::task::JoinHandle;

type Lookup = JoinHandle<Result<HashMap<TypeKey, ColumnType>>>;

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

/// What a message led to.
enum Outcome {
    /// Nothing to tell; it is consumed.
    Done,
    /// It is consumed.
    Event(TailEvent),
    /// The event comes first; the message stays.
    Before(TailEvent),
    /// Types must be looked up first; the message stays.
    Unknown(Vec<TypeKey>),
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
        slot::require(&control, &shared, from).await?;
        let (snapshot, _) = Snapshot::take(&control).await?;
        let staging = Staging::open(&shared.options.spill_dir, shared.options.staging_bytes)?;
        let mut decoder = Decoder::new(shared.clone(), XidClock::at(snapshot.xmax()));
        for table in tables {
            decoder.track(table)?;
        }
        let stream = slot::retry_while_active(|| async {
            let connection = ReplicationConnection::open(&shared)
                .await
                .map_err(|e| (String::new(), e))?;
            connection
                .start(&shared.slot(), &shared.publication(), from)
                .await
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
            Outcome::Unknown(keys) => {
                let shared = self.shared.clone();
                self.lookup = Some(tokio::spawn(async move {
                    catalog::types(&*shared.control().await?, &keys).await
                }));
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
                    return Ok(Outcome::Done);
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
            if let Some(lookup) = &mut self.lookup {
                let found = lookup.await;
                self.lookup = None;
                let found =
                    found.map_err(|e| Error::bug("a look-up of types failed").caused_by(e))?;
                self.decoder.types.extend(found?);
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

    fn track(&mut self, table: TrackedTable) {
        let name = table.schema.table.clone();
        if let Err(e) = self.decoder.track(table) {
            tracing::error!(table = %name, error = %e, "a table's mark cannot be read");
        }
    }

    fn live(&mut self, table: &TableName) {
        self.decoder.live(table);
    }

    fn untrack(&mut self, table: &TableName) {
        self.decoder.untrack(table);
    }

    fn staged_bytes(&self) -> usize {
        self.staging.held() + self.replay.as_ref().map_or(0, |(r, ..)| r.held())
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

struct OpenTransaction {
    xid: u32,
    /// With its epoch.
    full_xid: u64,
    commit_lsn: Lsn,
    committed_at_us: i64,
    /// The buffer knows of it.
    begun: bool,
}

struct Tracked {
    table: TrackedTable,
    mark: Option<Snapshot>,
}

/// Changes into rows: everything of the tail that knows no connection.
struct Decoder {
    shared: Arc<Shared>,
    tracked: HashMap<TableName, Tracked>,
    /// Counts changes of `tracked`; plans made before are stale.
    tracking: u64,
    relations: HashMap<u32, Relation>,
    types: HashMap<TypeKey, ColumnType>,
    clock: XidClock,
    open: Option<OpenTransaction>,
}

impl Decoder {
    fn new(shared: Arc<Shared>, clock: XidClock) -> Self {
        Decoder {
            shared,
            tracked: HashMap::new(),
            tracking: 1,
            relations: HashMap::new(),
            types: HashMap::new(),
            clock,
            open: None,
        }
    }

    fn track(&mut self, table: TrackedTable) -> Result<()> {
        let mark = table.mark.as_deref().map(str::parse).transpose()?;
        self.tracking += 1;
        self.tracked
            .insert(table.schema.table.clone(), Tracked { table, mark });
        Ok(())
    }

    fn untrack(&mut self, table: &TableName) {
        self.tracking += 1;
        self.tracked.remove(table);
    }

    fn live(&mut self, table: &TableName) {
        if let Some(tracked) = self.tracked.get_mut(table) {
            tracked.table.copying = false;
            self.tracking += 1;
        }
    }

    fn begin(&mut self, xid: u32, commit_lsn: Lsn, committed_at_us: i64) {
        let full_xid = self.clock.extend(xid);
        self.open = Some(OpenTransaction {
            xid,
            full_xid,
            commit_lsn,
            committed_at_us,
            begun: false,
        });
    }

    fn change(&mut self, message: &Message<'_>, into: &mut ChangeBuffer) -> Result<Outcome> {
        match message {
            Message::Relation { relation, .. } => {
                self.relations
                    .insert(relation.oid, Relation::new(relation)?);
                Ok(Outcome::Done)
            }
            Message::Row { relation, row, .. } => self.row(*relation, row, into),
            Message::Truncate { relations, .. } => self.truncate(relations, into),
            Message::Other => Ok(Outcome::Done),
            _ => Err(Error::fatal(
                Kind::Corrupt,
                "replication stream: a message out of order",
            )),
        }
    }

    #[inline]
    fn row(&mut self, oid: u32, row: &RowBody<'_>, into: &mut ChangeBuffer) -> Result<Outcome> {
        if let Some(outcome) = self.ready(oid, into)? {
            return Ok(outcome);
        }
        let Some(open) = &mut self.open else {
            return Err(outside());
        };
        let Some(relation) = self.relations.get_mut(&oid) else {
            return Ok(Outcome::Done);
        };
        let Some(plan) = &mut relation.plan else {
            return Ok(Outcome::Done);
        };
        if plan.hidden.as_ref().is_some_and(|s| s.sees(open.full_xid)) {
            return Ok(Outcome::Done);
        }
        open.begin(into);
        let at = open.commit_lsn;
        match plan.write(into, row) {
            Ok(()) => Ok(Outcome::Done),
            Err(e) => {
                let (table, error) = (relation.table.clone(), relation.row_error(e, at));
                self.untrack(&table);
                Ok(Outcome::Event(TailEvent::TableFailed { table, error }))
            }
        }
    }

    fn truncate(&mut self, relations: &[u8], into: &mut ChangeBuffer) -> Result<Outcome> {
        let (oids, _) = relations.as_chunks::<4>();
        let oids = oids.iter().map(|b| u32::from_be_bytes(*b));
        // All before the first row, so that the message can be handled again from its start.
        for oid in oids.clone() {
            if let Some(outcome) = self.ready(oid, into)? {
                return Ok(outcome);
            }
        }
        let Some(open) = &mut self.open else {
            return Err(outside());
        };
        for oid in oids {
            let Some(relation) = self.relations.get_mut(&oid) else {
                continue;
            };
            let Some(plan) = &mut relation.plan else {
                continue;
            };
            if !plan.hidden.as_ref().is_some_and(|s| s.sees(open.full_xid)) {
                open.begin(into);
                plan.truncate(into);
            }
        }
        Ok(Outcome::Done)
    }

    /// Sees to it that the table's plan is up to date. `None`: it is.
    #[inline]
    fn ready(&mut self, oid: u32, into: &ChangeBuffer) -> Result<Option<Outcome>> {
        let Some(relation) = self.relations.get(&oid) else {
            return Err(Error::fatal(
                Kind::Corrupt,
                "replication stream: a row of an unknown table",
            ));
        };
        if relation.planned == self.tracking {
            Ok(None)
        } else {
            self.plan(oid, into)
        }
    }

    fn plan(&mut self, oid: u32, into: &ChangeBuffer) -> Result<Option<Outcome>> {
        let Some(relation) = self.relations.get_mut(&oid) else {
            return Ok(None);
        };
        let Some(tracked) = self.tracked.get_mut(&relation.table) else {
            relation.plan = None;
            relation.planned = self.tracking;
            return Ok(None);
        };
        let unknown = relation.unknown_types(&self.types);
        if !unknown.is_empty() {
            return Ok(Some(Outcome::Unknown(unknown)));
        }
        let name = relation.table.clone();
        let options = self.shared.options.tables.get(&name);
        let overridden = options.is_some_and(|o| o.key.is_some());
        let held = &tracked.table.schema;
        let evolution = match relation.specs(&self.types, options) {
            Ok(specs) => {
                let key = relation.visible_key(&held.key, overridden);
                held.evolve(
                    into.next_seq(),
                    &specs,
                    &key,
                    tracked.table.next_column_id,
                    |_, _| true,
                )
            }
            Err(error) => {
                self.untrack(&name);
                return Ok(Some(Outcome::Before(TailEvent::TableFailed {
                    table: name,
                    error,
                })));
            }
        };
        match evolution {
            Evolution::Same => {
                relation.make_plan(
                    held,
                    &self.types,
                    tracked.mark.clone(),
                    tracked.table.copying,
                )?;
                relation.planned = self.tracking;
                Ok(None)
            }
            Evolution::Next(next) => {
                let highest = next.columns.iter().map(|c| c.id).max().unwrap_or(0);
                tracked.table.next_column_id = tracked.table.next_column_id.max(highest + 1);
                let next = Arc::new(next);
                tracked.table.schema = next.clone();
                relation.make_plan(
                    &next,
                    &self.types,
                    tracked.mark.clone(),
                    tracked.table.copying,
                )?;
                relation.planned = self.tracking;
                Ok(Some(Outcome::Before(TailEvent::Schema(next))))
            }
            Evolution::Recopy(why) => {
                let at = self.open.as_ref().map(|o| o.commit_lsn).unwrap_or_default();
                let error = Error::data(&name, format!("{why} (at {at})")).hint(format!(
                    "run `caudal resnapshot {name}` to copy it under its new schema"
                ));
                self.untrack(&name);
                Ok(Some(Outcome::Before(TailEvent::TableFailed {
                    table: name,
                    error,
                })))
            }
        }
    }
}

impl OpenTransaction {
    #[inline]
    fn begin(&mut self, into: &mut ChangeBuffer) {
        if !self.begun {
            self.begun = true;
            into.begin(TransactionMeta {
                committed_at_us: self.committed_at_us,
                position: self.commit_lsn.to_string().into(),
            });
        }
    }
}

fn outside() -> Error {
    Error::fatal(
        Kind::Corrupt,
        "replication stream: a change outside a transaction",
    )
}
