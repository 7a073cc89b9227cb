//! The tail: events of the binary log into rows of the stream's tables.
//!
//! **Order and atomicity.** The log holds whole transactions in commit order, so rows go
//! straight into the caller's buffer; a commit is reported only at the event that ends the
//! transaction, and its position is the only kind that is ever given out (INV-2, INV-3).
//! Row events' own offsets are not used: MariaDB 11.4 and later write 0 there.
//!
//! **Prepared XA transactions** stand in the log when they are prepared. Their events wait here
//! until `XA COMMIT`, which decodes them. MySQL's GTID set leaves a waiting transaction's GTID out,
//! so that a restart reads it again. MariaDB's and file positions cannot have such holes:
//! commits are held back while one waits, so that the whole span becomes durable at once.
//!
//! **INV-6.** Changes of transactions that an exact read saw are left out of its table.
//!
//! **Cancel safety.** State changes only between await points; the two awaits (for a block, and
//! for a table's description) happen before the event they serve is taken.

use super::connect::{Server, current_place};
use super::control::Ask;
use super::decode::events::{
    self, FLAG_IGNORABLE, FLAG_MARIA_SKIP, HEADER, Header, changes_rows, kind,
};
use super::decode::rows::Image;
use super::decode::table_map::TableMap;
use super::decode::{DecodeError, Input};
use super::dump::{Block, Dump};
use super::gtid::{Coordinate, Place};
use super::schema::{charsets, selected_tables};
use super::wire::packet_limit;
use crate::{Tail, TailEvent, TrackedTable};
use async_trait::async_trait;
use caudal_model::{ChangeBuffer, Error, Kind, Position, Result, TableName, TableSchema};
use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::sync::Arc;

mod changes;
mod statements;
mod tables;
mod transaction;

use caudal_model::schema::OlderRows;
use changes::{Answer, Pending};
pub(super) use tables::value_error;
use tables::{Planned, RowsInProgress, RowsStart};
use transaction::{Identity, Prepared, Transaction};

struct Tracked {
    schema: Arc<TableSchema>,
    next_column_id: i32,
    mark: Option<Place>,
    /// The definition was taken over before its time: what follows up to this place may
    /// already be in it.
    early: Option<Place>,
    /// What an insert's image leaves out holds this.
    defaults: HashMap<String, OlderRows>,
    /// The log's end when the defaults were asked for.
    assumed: Option<Place>,
    /// Defaults stood for a row's cells.
    used_default: bool,
    /// It has no primary key: the log may call its first unique one so.
    no_primary_key: bool,
    /// Columns that MariaDB computes when they are read: a partial image leaves them out,
    /// changed or not.
    virtual_columns: Vec<String>,
    copying: bool,
}

/// Where an event's bytes are.
enum Data {
    /// In the block, from here to there.
    Block(usize, usize),
    /// Unpacked, or out of a compressed transaction.
    Own(Vec<u8>),
}

/// What handling one event came to.
enum Step {
    Next,
    Rows(RowsStart),
    Emit(TailEvent),
    /// The table's description must be read first; the event is handled again.
    Describe(Arc<TableMap>),
    /// The same for the tables that a statement changes.
    Ask(Vec<TableName>),
    /// The same for a charset.
    Charset(Arc<str>),
}

/// The log of one source.
pub struct MysqlTail {
    server: Arc<Server>,
    dump: Dump,
    block: Option<Block>,
    cursor: usize,
    /// Events out of a compressed transaction.
    payload: Option<Box<dyn Read + Send + Sync>>,
    /// One event of `payload` that must be handled again.
    again: Option<Vec<u8>>,
    /// Events of an XA transaction that has committed.
    replay: VecDeque<u8>,
    /// The open transaction came out of `replay`.
    replayed: bool,
    rows: Option<RowsInProgress>,
    images: (Image, Image),
    place: Place,
    coordinate: Coordinate,
    transaction: Option<Transaction>,
    prepared: HashMap<String, Prepared>,
    tracked: HashMap<TableName, Tracked>,
    /// What the server calls each table since its log file began.
    maps: HashMap<u64, Arc<TableMap>>,
    /// Made of `maps` and `tracked`, and dropped when either changes.
    plans: HashMap<u64, Planned>,
    charsets: HashMap<u64, String>,
    /// Definitions that have not been taken over.
    pending: HashMap<TableName, Pending>,
    /// What the server said of the tables of the statement that is being handled.
    answer: Option<Answer>,
    /// Names of tables are kept in lower case.
    lower_case: bool,
    events: VecDeque<TailEvent>,
    holes: bool,
    /// Transactions since the last event that had no rows of interest.
    quiet: u32,
    /// Rows were appended whose commit is held back.
    held: bool,
    /// Bytes of log since the last commit that was reported.
    log_bytes: u64,
    /// Bytes of `prepared`.
    staged: usize,
}

impl MysqlTail {
    pub(super) async fn open(
        server: Arc<Server>,
        from: &Position,
        tables: Vec<TrackedTable>,
    ) -> Result<Self> {
        let place = Place::parse(server.flavor, from)?;
        let mut control = server.control().await?;
        let charsets = charsets(&mut control).await?;
        let names = control
            .value("SELECT @@GLOBAL.lower_case_table_names")
            .await?;
        let found = selected_tables(&mut control, &server.options).await?;
        let until = current_place(&mut control).await?;
        drop(control);
        let dump = Dump::open(&server, &place).await?;
        let coordinate = match &place {
            Place::File(c) => c.clone(),
            _ => Coordinate {
                file: String::new(),
                offset: 0,
            },
        };
        let mut tail = MysqlTail {
            holes: server.flavor.positions_have_holes(&place),
            server,
            dump,
            block: None,
            cursor: 0,
            payload: None,
            again: None,
            replay: VecDeque::new(),
            replayed: false,
            rows: None,
            images: Default::default(),
            place,
            coordinate,
            transaction: None,
            prepared: HashMap::new(),
            tracked: HashMap::new(),
            maps: HashMap::new(),
            plans: HashMap::new(),
            charsets,
            pending: HashMap::new(),
            answer: None,
            lower_case: names.as_deref() == Some("1"),
            events: VecDeque::new(),
            quiet: 0,
            held: false,
            log_bytes: 0,
            staged: 0,
        };
        for t in tables {
            tail.track_table(t)?;
        }
        tail.compare(found, &until);
        Ok(tail)
    }

    fn track_table(&mut self, t: TrackedTable) -> Result<()> {
        let mark = t
            .mark
            .map(|m| Place::parse(self.server.flavor, &Position::new(m)))
            .transpose()?;
        let table = t.schema.table.clone();
        let tracked = Tracked {
            schema: t.schema,
            next_column_id: t.next_column_id,
            mark,
            early: None,
            defaults: HashMap::new(),
            assumed: None,
            no_primary_key: false,
            virtual_columns: Vec::new(),
            used_default: false,
            copying: t.copying,
        };
        self.pending.remove(&table);
        self.tracked.insert(table, tracked);
        self.plans.clear();
        Ok(())
    }

    fn leave_out(&mut self, table: &TableName) {
        self.tracked.remove(table);
        self.pending.remove(table);
        self.plans.clear();
    }

    fn fail(&mut self, table: &TableName, error: Error) {
        self.leave_out(table);
        let error = error.in_table(table);
        self.events.push_back(TailEvent::TableFailed {
            table: table.clone(),
            error,
        });
    }

    fn recopy(&mut self, table: &TableName, reason: String) {
        self.leave_out(table);
        self.events.push_back(TailEvent::Recopy {
            table: table.clone(),
            reason,
        });
    }

    fn ended(&mut self, table: &TableName) {
        self.leave_out(table);
        self.events.push_back(TailEvent::Ended {
            table: table.clone(),
        });
    }

    /// Takes the next event from wherever it waits.
    fn take_event(&mut self) -> Result<Option<Data>> {
        if let Some(event) = self.again.take() {
            return Ok(Some(Data::Own(event)));
        }
        if !self.replay.is_empty() {
            let mut length = [0; 4];
            self.replay
                .read_exact(&mut length)
                .map_err(broken_payload)?;
            let mut event = vec![0; u32::from_le_bytes(length) as usize];
            self.replay.read_exact(&mut event).map_err(broken_payload)?;
            return Ok(Some(Data::Own(event)));
        }
        if let Some(payload) = &mut self.payload {
            let limit = packet_limit(self.server.options.value_bytes);
            match next_of_payload(payload, limit)? {
                Some(event) => return Ok(Some(Data::Own(event))),
                None => self.payload = None,
            }
        }
        let Some(block) = &self.block else {
            return Ok(None);
        };
        let mut input = Input(block.bytes.get(self.cursor..).unwrap_or_default());
        if input.is_empty() {
            self.block = None;
            return Ok(None);
        }
        let len = input.u32()? as usize;
        let start = self.cursor + 4;
        input.take(len)?;
        self.cursor = start + len;
        self.log_bytes += len as u64;
        Ok(Some(Data::Block(start, start + len)))
    }

    /// Puts an event back that must be handled again.
    fn put_back(&mut self, data: Data) {
        match data {
            Data::Block(start, end) => {
                self.cursor = start - 4;
                self.log_bytes -= (end - start) as u64;
            }
            Data::Own(event) => self.again = Some(event),
        }
    }

    fn handle(&mut self, data: Data, into: &mut ChangeBuffer) -> Result<(Step, Option<Data>)> {
        // The block is taken out for the time that its bytes are borrowed.
        let block = self.block.take();
        let outcome = {
            let event = bytes_of(&data, block.as_ref());
            self.event(event, matches!(data, Data::Block(..)), into)
        };
        self.block = block;
        match outcome? {
            Step::Rows(start) => {
                let (data, at) = match start.unpacked {
                    Some(unpacked) => (Data::Own(unpacked), 0),
                    None => (data, start.at),
                };
                self.rows = Some(RowsInProgress {
                    plan: start.plan,
                    op: start.op,
                    data,
                    at,
                    before: start.before,
                    after: start.after,
                    partial: start.partial,
                    copying: start.copying,
                    defaults: start.defaults,
                });
                Ok((Step::Next, None))
            }
            step @ (Step::Describe(_) | Step::Ask(_) | Step::Charset(_)) => Ok((step, Some(data))),
            step => Ok((step, None)),
        }
    }

    fn event(&mut self, event: &[u8], outer: bool, into: &mut ChangeBuffer) -> Result<Step> {
        let (header, body) = events::header(event)?;
        if outer && header.log_position > 0 && header.flags & events::FLAG_ARTIFICIAL == 0 {
            self.coordinate.offset = header.log_position.into();
        }
        if let Some(xa) = self.transaction.as_mut().and_then(|t| t.xa.as_mut())
            && (header.event_type == kind::TABLE_MAP || changes_rows(header.event_type))
        {
            let limit = self.server.options.staging_bytes.max(1 << 20);
            if self.staged + event.len() > limit {
                return Err(Error::fatal(
                    Kind::Source,
                    format!("prepared XA transactions hold more than {limit} bytes"),
                )
                .hint("raise commit.memory, or commit the prepared transactions (XA RECOVER)"));
            }
            xa.extend_from_slice(&(event.len() as u32).to_le_bytes());
            xa.extend_from_slice(event);
            self.staged += event.len() + 4;
            return Ok(Step::Next);
        }
        match header.event_type {
            kind::TABLE_MAP => self.table_map(body),
            kind::OVERSIZED => self.oversized(body),
            kind::XID => self.commit(&header),
            kind::QUERY => self.query(&header, body, false, into),
            kind::MARIA_QUERY_COMPRESSED => self.query(&header, body, true, into),
            other if changes_rows(other) => self.rows(other, body),
            _ => self.control(&header, body),
        }
    }

    /// Events that carry neither rows nor statements.
    fn control(&mut self, header: &Header, body: &[u8]) -> Result<Step> {
        match header.event_type {
            kind::ROTATE => {
                let (offset, file) = events::rotate(body)?;
                self.coordinate = Coordinate { file, offset };
                self.between_files();
                Ok(Step::Next)
            }
            kind::PREVIOUS_GTIDS => {
                self.between_files();
                Ok(Step::Next)
            }
            kind::FORMAT_DESCRIPTION => {
                // A restarted server numbers its tables anew, always in a new file.
                self.maps.clear();
                self.plans.clear();
                Ok(Step::Next)
            }
            kind::GTID => self.begin_gtid(header, events::gtid(body)?),
            kind::GTID_TAGGED => self.begin_gtid(header, events::gtid_tagged(body)?),
            kind::ANONYMOUS_GTID => self.begin_gtid(header, events::gtid(body)?),
            kind::MARIA_GTID => {
                let g = events::maria_gtid(header, body)?;
                let xa = (g.flags & 64 != 0).then(Vec::new);
                self.begin(
                    Identity::Maria(g.gtid),
                    seconds(header),
                    !g.standalone(),
                    xa,
                );
                Ok(Step::Next)
            }
            kind::TRANSACTION_PAYLOAD => self.open_payload(body),
            kind::XA_PREPARE => self.xa_prepare(header, body),
            kind::HEARTBEAT | kind::HEARTBEAT_V2 => {
                let waits = !self.holes && (self.held || !self.prepared.is_empty());
                if waits || self.transaction.is_some() {
                    return Ok(Step::Next);
                }
                self.stands(None);
                Ok(Step::Emit(self.heartbeat()))
            }
            kind::INCIDENT => Err(Error::fatal(
                Kind::PositionLost,
                "the source reports that events are missing from its log (incident)",
            )
            .hint("changes may be lost: run `caudal resnapshot '*.*'`")),
            kind::MARIA_START_ENCRYPTION
            | kind::STOP
            | kind::INTVAR
            | kind::RAND
            | kind::USER_VAR
            | kind::IGNORABLE
            | kind::ROWS_QUERY
            | kind::TRANSACTION_CONTEXT
            | kind::VIEW_CHANGE
            | kind::MARIA_ANNOTATE_ROWS
            | kind::MARIA_BINLOG_CHECKPOINT
            | kind::MARIA_GTID_LIST => Ok(Step::Next),
            _ if header.flags & (FLAG_IGNORABLE | FLAG_MARIA_SKIP) != 0 => Ok(Step::Next),
            other => Err(Error::fatal(
                Kind::Source,
                format!("the source's log has an event of type {other}, which is not known"),
            )
            .hint("the server may be newer than this version of caudal: upgrade it")),
        }
    }

    fn open_payload(&mut self, body: &[u8]) -> Result<Step> {
        let payload = events::payload(body)?;
        let bytes = std::io::Cursor::new(payload.bytes.to_vec());
        self.payload = Some(if payload.zstd {
            let decoder = zstd::stream::read::Decoder::new(bytes).map_err(broken_payload)?;
            Box::new(std::io::BufReader::with_capacity(64 << 10, decoder))
        } else {
            Box::new(bytes)
        });
        Ok(Step::Next)
    }

    /// At the end of a file and at the beginning of the next, file positions move on.
    fn between_files(&mut self) {
        if self.transaction.is_none() && matches!(self.place, Place::File(_)) {
            self.place = Place::File(self.coordinate.clone());
            if self.prepared.is_empty() && !self.held {
                self.quiet += 1;
            }
        }
    }
}

fn seconds(header: &Header) -> i64 {
    i64::from(header.timestamp) * 1_000_000
}

fn bytes_of<'a>(data: &'a Data, block: Option<&'a Block>) -> &'a [u8] {
    match data {
        Data::Block(start, end) => block
            .and_then(|b| b.bytes.get(*start..*end))
            .unwrap_or_default(),
        Data::Own(event) => event,
    }
}

fn broken_payload(e: std::io::Error) -> Error {
    Error::retryable(Kind::Corrupt, "a compressed transaction cannot be unpacked").caused_by(e)
}

/// The next event of a compressed transaction, one at a time: the whole is never held unpacked.
/// Of one with rows that is beyond `limit` bytes only the beginning is kept.
pub(crate) fn next_of_payload(
    payload: &mut (dyn Read + Send + Sync),
    limit: usize,
) -> Result<Option<Vec<u8>>> {
    let mut event = Vec::with_capacity(HEADER);
    payload
        .take(HEADER as u64)
        .read_to_end(&mut event)
        .map_err(broken_payload)?;
    if event.is_empty() {
        return Ok(None);
    }
    let (header, _) = events::header(&event)?;
    let rest = (header.size as usize)
        .checked_sub(HEADER)
        .filter(|n| *n <= 1 << 30)
        .ok_or(DecodeError::Malformed(
            "an event of a compressed transaction",
        ))?;
    let skipped = rest > limit && changes_rows(header.event_type);
    let kept = if skipped { 1 << 20 } else { rest };
    // `take` and not a buffer of the promised size: the promise comes from outside.
    payload
        .take(kept as u64)
        .read_to_end(&mut event)
        .map_err(broken_payload)?;
    let mut read = event.len() - HEADER;
    if skipped {
        let behind = (rest - kept) as u64;
        read += std::io::copy(&mut payload.take(behind), &mut std::io::sink())
            .map_err(broken_payload)? as usize;
        event = events::beginning(&event, rest as u64)?;
    }
    if read != rest {
        return Err(DecodeError::Malformed("a compressed transaction ends too early").into());
    }
    Ok(Some(event))
}

#[async_trait]
impl Tail for MysqlTail {
    async fn next(&mut self, into: &mut ChangeBuffer) -> Result<TailEvent> {
        // The buffer may be another one than last time: it learns of the transaction again.
        if let Some(t) = &mut self.transaction {
            t.announced = false;
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if self.rows.is_some() {
                if self.append_rows(into)? {
                    return Ok(TailEvent::Full);
                }
                continue;
            }
            if self.transaction.is_none() && !self.pending.is_empty() {
                self.settle(into.next_seq());
                if !self.events.is_empty() {
                    continue;
                }
            }
            match self.take_event()? {
                Some(data) => {
                    let (step, data) = self.handle(data, into)?;
                    match (step, data) {
                        (Step::Next, _) => {}
                        (Step::Emit(event), _) if self.events.is_empty() => return Ok(event),
                        (Step::Emit(event), _) => self.events.push_back(event),
                        (Step::Describe(map), Some(data)) => {
                            self.put_back(data);
                            self.describe(&map, into.next_seq()).await?;
                        }
                        (Step::Ask(tables), Some(data)) => {
                            self.put_back(data);
                            self.answer = Some(self.ask(&tables).await?);
                        }
                        (Step::Charset(name), Some(data)) => {
                            self.put_back(data);
                            self.server.clone().load_charset(&name).await?;
                        }
                        (Step::Describe(_) | Step::Ask(_) | Step::Charset(_), None)
                        | (Step::Rows(_), _) => {}
                    }
                }
                None => {
                    let block = match self.dump.try_next() {
                        Some(block) => block?,
                        None if self.quiet > 0 && self.transaction.is_none() => {
                            return Ok(self.heartbeat());
                        }
                        None => self.dump.next().await?,
                    };
                    self.block = Some(block);
                    self.cursor = 0;
                }
            }
        }
    }

    fn acknowledge(&mut self, _through: &Position) {
        // The server keeps its log by time, whatever its readers have read.
    }

    fn track(&mut self, table: TrackedTable) {
        let name = table.schema.table.clone();
        if let Err(e) = self.track_table(table) {
            self.fail(&name, e);
        }
    }

    fn live(&mut self, table: &TableName) {
        if let Some(tracked) = self.tracked.get_mut(table) {
            tracked.copying = false;
        }
    }

    fn untrack(&mut self, table: &TableName) {
        self.leave_out(table);
    }

    fn in_transaction(&self) -> bool {
        self.transaction.is_some() || self.held || self.rows.is_some()
    }

    fn staged_bytes(&self) -> usize {
        self.staged
    }
}
