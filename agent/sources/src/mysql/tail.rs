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

use super::connect::{Server, current_coordinate};
use super::ddl::{self, Statement};
use super::decode::events::{self, FLAG_IGNORABLE, FLAG_MARIA_SKIP, HEADER, Header, kind};
use super::decode::rows::{self, Image, Misfit, RowsHeader, TableMap, TablePlan};
use super::decode::values::Coerced;
use super::decode::{DecodeError, Input};
use super::dump::{Block, Dump};
use super::gtid::{Coordinate, MariaGtid, Origin, Place, uuid_text};
use super::schema::{charsets, describe, drifted, read_table};
use crate::{Tail, TailEvent, TrackedTable};
use async_trait::async_trait;
use caudal_model::schema::Evolution;
use caudal_model::{
    ChangeBuffer, Error, Kind, Op, Position, Result, TableName, TableSchema, TransactionMeta,
};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::sync::Arc;

/// Transactions without rows of interest that pass before a heartbeat is due.
const QUIET_TRANSACTIONS: u32 = 1000;

struct Tracked {
    schema: Arc<TableSchema>,
    next_column_id: i32,
    mark: Option<Place>,
}

/// Who committed the transaction that is open.
#[derive(Debug, Clone)]
enum Identity {
    Gtid(Origin, u64),
    Maria(MariaGtid),
    File(Coordinate),
}

impl Identity {
    fn covered_by(&self, mark: &Place) -> bool {
        match (self, mark) {
            (Identity::Gtid(origin, gno), Place::Gtids(set)) => set.contains(origin, *gno),
            (Identity::Maria(g), Place::Domains(list)) => list.contains(*g),
            (Identity::File(start), Place::File(end)) => start.order() < end.order(),
            _ => false,
        }
    }

    fn text(&self) -> String {
        match self {
            Identity::Gtid((uuid, tag), gno) if tag.is_empty() => {
                format!("{}:{gno}", uuid_text(uuid))
            }
            Identity::Gtid((uuid, tag), gno) => format!("{}:{tag}:{gno}", uuid_text(uuid)),
            Identity::Maria(g) => g.to_string(),
            Identity::File(c) => c.to_string(),
        }
    }
}

struct Transaction {
    identity: Identity,
    committed_at_us: i64,
    /// BEGIN came, or is implied: the end is a commit, not the first statement.
    begun: bool,
    /// Rows of tracked tables were appended, or would have been.
    touched: Vec<TableName>,
    /// Since the last call the buffer knows this transaction.
    announced: bool,
    /// Events that wait for their XA COMMIT: the xid is known at the end only.
    xa: Option<Vec<u8>>,
}

/// A prepared XA transaction.
struct Prepared {
    identity: Identity,
    events: Vec<u8>,
}

/// A rows event that is being read.
struct RowsInProgress {
    /// The table's schema and how its images are read.
    plan: Arc<(Arc<TableSchema>, TablePlan)>,
    op: Op,
    data: Data,
    at: usize,
}

/// Where an event's bytes are.
enum Data {
    /// In the block, from here to there.
    Block(usize, usize),
    /// Unpacked, or out of a compressed transaction.
    Own(Vec<u8>),
}

/// Where the rows of an event begin, and the rows themselves if they were compressed.
struct RowsStart {
    plan: Arc<(Arc<TableSchema>, TablePlan)>,
    op: Op,
    at: usize,
    unpacked: Option<Vec<u8>>,
}

enum Planned {
    Ready(Arc<(Arc<TableSchema>, TablePlan)>),
    /// Not of the stream, or failed.
    Ignored,
}

/// What handling one event came to.
enum Step {
    Next,
    Rows(RowsStart),
    Emit(TailEvent),
    /// The table's description must be read first; the event is handled again.
    Describe(Arc<TableMap>, String),
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
        let mut control = server.connect().await?;
        let charsets = charsets(&mut control).await?;
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
            events: VecDeque::new(),
            quiet: 0,
            held: false,
            log_bytes: 0,
            staged: 0,
        };
        for t in tables {
            tail.track_table(t)?;
        }
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
        };
        self.tracked.insert(table, tracked);
        self.plans.clear();
        Ok(())
    }

    fn fail(&mut self, table: &TableName, error: Error) {
        self.tracked.remove(table);
        self.plans.clear();
        let error = error.in_table(table);
        self.events.push_back(TailEvent::TableFailed {
            table: table.clone(),
            error,
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
            match next_of_payload(payload)? {
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
                });
                Ok((Step::Next, None))
            }
            step @ Step::Describe(..) => Ok((step, Some(data))),
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
            kind::PARTIAL_UPDATE_ROWS => self.partial_rows(body),
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
                Ok(Step::Emit(self.heartbeat()))
            }
            kind::INCIDENT => Err(Error::fatal(
                Kind::PositionLost,
                "the source reports that events are missing from its log (incident)",
            )
            .hint("changes may be lost: run `caudal resnapshot` for every table")),
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

    fn begin_gtid(&mut self, header: &Header, g: events::MysqlGtid) -> Result<Step> {
        let identity = if g.gno == 0 || !self.holes {
            let start = self.coordinate.offset.saturating_sub(header.size.into());
            Identity::File(Coordinate {
                file: self.coordinate.file.clone(),
                offset: start,
            })
        } else {
            Identity::Gtid(g.origin, g.gno)
        };
        let at = if g.committed_at_us > 0 {
            g.committed_at_us as i64
        } else {
            seconds(header)
        };
        self.begin(identity, at, false, None);
        Ok(Step::Next)
    }

    fn begin(
        &mut self,
        identity: Identity,
        committed_at_us: i64,
        begun: bool,
        xa: Option<Vec<u8>>,
    ) {
        self.transaction = Some(Transaction {
            identity,
            committed_at_us,
            begun,
            touched: Vec::new(),
            announced: false,
            xa,
        });
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

    fn table_map(&mut self, body: &[u8]) -> Result<Step> {
        // Every statement repeats the map; within a file the same id means the same table.
        let id = Input(body).uint(6)?;
        if let Entry::Vacant(unknown) = self.maps.entry(id) {
            unknown.insert(Arc::new(rows::table_map(body)?));
            self.plans.remove(&id);
        }
        if self.plans.contains_key(&id) {
            Ok(Step::Next)
        } else {
            self.plan(id)
        }
    }

    /// Joins the table map with what the stream carries of the table.
    fn plan(&mut self, id: u64) -> Result<Step> {
        let Some(map) = self.maps.get(&id).cloned() else {
            return Err(DecodeError::Malformed("rows of a table that was not announced").into());
        };
        let table = TableName::new(map.database.clone(), map.table.clone());
        let Some(tracked) = self.tracked.get(&table) else {
            self.plans.insert(id, Planned::Ignored);
            return Ok(Step::Next);
        };
        match self.join(&map, &table, &tracked.schema) {
            Ok(plan) => {
                let plan = Planned::Ready(Arc::new((tracked.schema.clone(), plan)));
                self.plans.insert(id, plan);
            }
            Err(Misfit::Changed(why)) => return Ok(Step::Describe(map, why)),
            Err(Misfit::Unreadable(why)) => {
                let error = Error::data(&table, why).hint(format!(
                    "SET GLOBAL binlog_row_metadata = FULL, exclude the column if its type is not \
                     supported, then run `caudal resnapshot {table}`"
                ));
                self.fail(&table, error);
            }
        }
        Ok(Step::Next)
    }

    fn join(
        &self,
        map: &TableMap,
        table: &TableName,
        schema: &TableSchema,
    ) -> Result<TablePlan, Misfit> {
        let own = self.server.options.tables.get(table);
        let excluded = own.map_or(&[][..], |o| &o.exclude_columns);
        let own_key = own.is_some_and(|o| o.key.is_some());
        TablePlan::new(map, schema, excluded, own_key, &self.charsets)
    }

    /// Reads the table's description, and takes it over if the log agrees with it.
    async fn describe(&mut self, map: &TableMap, why: &str, since_seq: i64) -> Result<()> {
        let table = TableName::new(map.database.clone(), map.table.clone());
        let mut control = self.server.connect().await?;
        let now = read_table(&mut control, &table).await?;
        let Some(tracked) = self.tracked.get(&table) else {
            return Ok(());
        };
        let Some(now) = now else {
            self.fail(&table, drifted(&table, "it does not exist any more"));
            return Ok(());
        };
        let now = describe(&now, &self.server.options, self.server.flavor);
        if let Some(p) = now.problems.first() {
            let error = drifted(&table, &p.reason);
            self.fail(&table, error);
            return Ok(());
        }
        match tracked
            .schema
            .evolve(since_seq, &now.columns, &now.key, tracked.next_column_id)
        {
            Evolution::Next(schema) if self.join(map, &table, &schema).is_ok() => {
                let schema = Arc::new(schema);
                let next = schema.columns.iter().map(|c| c.id + 1).max().unwrap_or(1);
                if let Some(tracked) = self.tracked.get_mut(&table) {
                    tracked.next_column_id = tracked.next_column_id.max(next);
                    tracked.schema = schema.clone();
                }
                self.plans.clear();
                self.events.push_back(TailEvent::Schema(schema));
            }
            Evolution::Recopy(reason) => self.fail(&table, drifted(&table, &reason)),
            _ => self.fail(&table, drifted(&table, why)),
        }
        Ok(())
    }

    fn rows(&mut self, event_type: u8, body: &[u8]) -> Result<Step> {
        let compressed = event_type >= kind::MARIA_WRITE_ROWS_COMPRESSED_V1;
        let v2 = (kind::WRITE_ROWS..=kind::PARTIAL_UPDATE_ROWS).contains(&event_type)
            || event_type >= kind::MARIA_WRITE_ROWS_COMPRESSED;
        let op = match event_type {
            kind::WRITE_ROWS_V1
            | kind::WRITE_ROWS
            | kind::MARIA_WRITE_ROWS_COMPRESSED_V1
            | kind::MARIA_WRITE_ROWS_COMPRESSED => Op::Insert,
            kind::DELETE_ROWS_V1
            | kind::DELETE_ROWS
            | kind::MARIA_DELETE_ROWS_COMPRESSED_V1
            | kind::MARIA_DELETE_ROWS_COMPRESSED => Op::Delete,
            _ => Op::Update,
        };
        let id = Input(body).uint(6)?;
        if !self.plans.contains_key(&id)
            && let step @ Step::Describe(..) = self.plan(id)?
        {
            return Ok(step);
        }
        let plan = match self.plans.get(&id) {
            Some(Planned::Ready(plan)) => plan.clone(),
            Some(Planned::Ignored) | None => return Ok(Step::Next),
        };
        let h: RowsHeader = rows::rows_header(body, v2, op == Op::Update)?;
        let table = &plan.0.table;
        let Some(transaction) = &mut self.transaction else {
            return Err(DecodeError::Malformed("rows outside a transaction").into());
        };
        let mark = self.tracked.get(table).and_then(|t| t.mark.as_ref());
        if mark.is_some_and(|m| transaction.identity.covered_by(m)) {
            return Ok(Step::Next);
        }
        if !h.full {
            let error = Error::data(table, "the log holds only part of its rows").hint(format!(
                "SET GLOBAL binlog_row_image = FULL, then run `caudal resnapshot {table}`"
            ));
            let table = table.clone();
            self.fail(&table, error);
            return Ok(Step::Next);
        }
        if !transaction.touched.contains(table) {
            transaction.touched.push(table.clone());
        }
        let unpacked = if compressed {
            let mut rows = Vec::new();
            events::inflate(body.get(h.start..).unwrap_or_default(), &mut rows)?;
            Some(rows)
        } else {
            None
        };
        Ok(Step::Rows(RowsStart {
            plan,
            op,
            at: HEADER + h.start,
            unpacked,
        }))
    }

    fn partial_rows(&mut self, body: &[u8]) -> Result<Step> {
        let id = Input(body).uint(6)?;
        if let Some(Planned::Ready(plan)) = self.plans.get(&id) {
            let table = plan.0.table.clone();
            let error =
                Error::data(&table, "partial updates of json are not supported yet").hint(format!(
                    "SET GLOBAL binlog_row_value_options = '', then run `caudal resnapshot {table}`"
                ));
            self.fail(&table, error);
        }
        Ok(Step::Next)
    }

    /// Appends rows until the event ends or the buffer is full; returns whether it is full.
    fn append_rows(&mut self, into: &mut ChangeBuffer) -> Result<bool> {
        let Some(mut rows) = self.rows.take() else {
            return Ok(false);
        };
        let Some(transaction) = &mut self.transaction else {
            return Ok(false);
        };
        if !transaction.announced {
            transaction.announced = true;
            into.begin(TransactionMeta {
                committed_at_us: transaction.committed_at_us,
                position: transaction.identity.text().into(),
            });
        }
        let mut coerced = Coerced::default();
        let event = bytes_of(&rows.data, self.block.as_ref());
        let slot = into.slot(&rows.plan.0);
        let (schema, plan) = &*rows.plan;
        let (before, after) = &mut self.images;
        let mut outcome = Ok(false);
        while rows.at < event.len() {
            if into.is_full() {
                outcome = Ok(true);
                break;
            }
            let step = append_change(
                plan,
                schema.has_key(),
                rows.op,
                event,
                rows.at,
                (before, after),
                into,
                slot,
                &mut coerced,
            );
            match step {
                Ok(end) if end > rows.at => rows.at = end,
                Ok(_) => {
                    outcome = Err(DecodeError::Malformed("a row without columns"));
                    break;
                }
                Err(e) => {
                    outcome = Err(e);
                    break;
                }
            }
        }
        self.server.coerced.add(coerced);
        match outcome {
            Ok(full) => {
                if rows.at < event.len() {
                    self.rows = Some(rows);
                }
                Ok(full)
            }
            Err(e @ DecodeError::Value(_)) => {
                let table = schema.table.clone();
                let error = Error::from(e).hint(format!(
                    "exclude the column or repair the value, then run `caudal resnapshot {table}`"
                ));
                self.fail(&table, error);
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn query(
        &mut self,
        header: &Header,
        body: &[u8],
        compressed: bool,
        into: &mut ChangeBuffer,
    ) -> Result<Step> {
        let q = events::query(body, compressed)?;
        let (sql, database) = (
            String::from_utf8_lossy(&q.sql),
            String::from_utf8_lossy(q.database),
        );
        if self.transaction.is_none() {
            // MySQL without any GTID event: a server before 5.7's format, or a replayed file.
            let start = self.coordinate.offset.saturating_sub(header.size.into());
            let at = Coordinate {
                file: self.coordinate.file.clone(),
                offset: start,
            };
            self.begin(Identity::File(at), seconds(header), false, None);
        }
        let statement = ddl::parse(&sql, &database);
        match &statement {
            Statement::Begin => {
                if let Some(t) = &mut self.transaction {
                    t.begun = true;
                    if sql.get(..2).is_some_and(|s| s.eq_ignore_ascii_case("xa")) && t.xa.is_none()
                    {
                        t.xa = Some(Vec::new());
                    }
                }
                return Ok(Step::Next);
            }
            Statement::Commit => return self.commit(header),
            Statement::Rollback | Statement::RollbackTo => {
                self.rolled_back();
                if statement == Statement::Rollback {
                    return self.commit(header);
                }
                return Ok(Step::Next);
            }
            Statement::XaCommit(xid) => return self.xa_end(header, xid, true),
            Statement::XaRollback(xid) => return self.xa_end(header, xid, false),
            Statement::Nothing => return Ok(Step::Next),
            _ => {}
        }
        self.statement(statement, into);
        if self.transaction.as_ref().is_some_and(|t| !t.begun) {
            return self.commit(header);
        }
        Ok(Step::Next)
    }

    /// Rows that stand in the log although their transaction was rolled back: some of its
    /// statements could not be (a table without transactions), and which ones is not logged.
    fn rolled_back(&mut self) {
        let touched = self
            .transaction
            .as_mut()
            .map(|t| std::mem::take(&mut t.touched));
        for table in touched.unwrap_or_default() {
            let error = Error::data(
                &table,
                "a transaction that was rolled back stands in the log",
            )
            .hint(format!("run `caudal resnapshot {table}`"));
            self.fail(&table, error);
        }
    }

    fn statement(&mut self, statement: Statement, into: &mut ChangeBuffer) {
        let covered = |tail: &Self, table: &TableName| {
            let mark = tail.tracked.get(table).and_then(|t| t.mark.as_ref());
            let identity = tail.transaction.as_ref().map(|t| &t.identity);
            matches!((mark, identity), (Some(m), Some(i)) if i.covered_by(m))
        };
        match statement {
            Statement::Truncate(table) => {
                if covered(self, &table) {
                    return;
                }
                let Some(tracked) = self.tracked.get(&table) else {
                    return;
                };
                let Some(t) = &mut self.transaction else {
                    return;
                };
                into.begin(TransactionMeta {
                    committed_at_us: t.committed_at_us,
                    position: t.identity.text().into(),
                });
                t.touched.push(table);
                let slot = into.slot(&tracked.schema);
                into.row(slot, Op::Truncate).finish();
            }
            Statement::Replaced { tables, what } => {
                for t in tables {
                    if self.tracked.contains_key(&t) && !covered(self, &t) {
                        self.fail(&t, drifted(&t, what));
                    }
                }
            }
            Statement::DropDatabase(name) => {
                let gone: Vec<_> = self
                    .tracked
                    .keys()
                    .filter(|t| t.schema == name)
                    .cloned()
                    .collect();
                for t in gone {
                    self.fail(&t, drifted(&t, "its database was dropped"));
                }
            }
            Statement::Rows(tables) => {
                for t in tables {
                    if self.tracked.contains_key(&t) && !covered(self, &t) {
                        let error = Error::data(&t, "rows were changed by a statement in the log")
                            .hint(format!(
                                "SET GLOBAL binlog_format = ROW, reconnect its sessions, then run \
                                 `caudal resnapshot {t}`"
                            ));
                        self.fail(&t, error);
                    }
                }
            }
            // A table map that no longer fits shows what the statement changed.
            _ => {}
        }
    }

    fn xa_prepare(&mut self, header: &Header, body: &[u8]) -> Result<Step> {
        let (xid, one_phase) = events::xa_prepare(body)?;
        let Some(mut t) = self.transaction.take() else {
            return Ok(Step::Next);
        };
        let events = t.xa.take().unwrap_or_default();
        if one_phase {
            self.staged = self.staged.saturating_sub(events.len());
            self.replay.extend(events);
            self.transaction = Some(t);
            return self.finish_replay(header);
        }
        if events.is_empty() {
            // Nothing waits: its commit may be reported like any other.
            self.transaction = Some(t);
            return self.commit(header);
        }
        self.prepared.insert(
            xid,
            Prepared {
                identity: t.identity,
                events,
            },
        );
        Ok(Step::Next)
    }

    fn xa_end(&mut self, header: &Header, xid: &str, commit: bool) -> Result<Step> {
        if let Some(p) = self.prepared.remove(xid) {
            self.staged = self.staged.saturating_sub(p.events.len());
            // Both GTIDs count as executed from the end of this transaction on.
            self.advance(&p.identity);
            if commit {
                self.replay.extend(p.events);
                return self.finish_replay(header);
            }
        }
        self.commit(header)
    }

    /// Ends the replayed events with a commit of their own.
    fn finish_replay(&mut self, header: &Header) -> Result<Step> {
        if let Some(t) = &mut self.transaction {
            t.begun = true;
            t.xa = None;
        }
        let mut end = header.timestamp.to_le_bytes().to_vec();
        end.push(kind::XID);
        end.extend_from_slice(&[0; HEADER - 5]);
        self.replay.extend((end.len() as u32).to_le_bytes());
        self.replay.extend(end);
        self.replayed = true;
        // The prepared events may be of a server's earlier life, which numbered its tables
        // differently; they bring their own maps.
        self.maps.clear();
        self.plans.clear();
        Ok(Step::Next)
    }

    fn advance(&mut self, identity: &Identity) {
        match (&mut self.place, identity) {
            (Place::Gtids(set), Identity::Gtid(origin, gno)) => set.add(origin, *gno),
            (Place::Domains(list), Identity::Maria(g)) => list.add(*g),
            (Place::File(at), _) => at.clone_from(&self.coordinate),
            _ => {}
        }
    }

    fn commit(&mut self, _header: &Header) -> Result<Step> {
        let Some(t) = self.transaction.take() else {
            return Err(DecodeError::Malformed("a commit outside a transaction").into());
        };
        self.advance(&t.identity);
        if self.replayed {
            self.replayed = false;
            self.maps.clear();
            self.plans.clear();
        }
        if let Ok(mut reached) = self.server.reached.lock() {
            reached
                .get_or_insert_with(|| self.coordinate.clone())
                .clone_from(&self.coordinate);
        }
        // See the header: without holes a waiting XA transaction holds commits back.
        if !self.holes && !self.prepared.is_empty() {
            self.held |= !t.touched.is_empty();
            return Ok(Step::Next);
        }
        let held = std::mem::take(&mut self.held);
        if t.touched.is_empty() && !held && self.events.is_empty() {
            self.quiet += 1;
            if self.quiet < QUIET_TRANSACTIONS {
                return Ok(Step::Next);
            }
            return Ok(Step::Emit(self.heartbeat()));
        }
        self.quiet = 0;
        Ok(Step::Emit(TailEvent::Commit {
            position: self.place.position(),
            committed_at_us: t.committed_at_us,
            log_bytes: std::mem::take(&mut self.log_bytes),
        }))
    }

    fn heartbeat(&mut self) -> TailEvent {
        self.quiet = 0;
        TailEvent::Heartbeat {
            position: self.place.position(),
        }
    }
}

fn changes_rows(event_type: u8) -> bool {
    matches!(
        event_type,
        kind::WRITE_ROWS_V1..=kind::DELETE_ROWS_V1
            | kind::WRITE_ROWS..=kind::DELETE_ROWS
            | kind::PARTIAL_UPDATE_ROWS
            | kind::MARIA_WRITE_ROWS_COMPRESSED_V1..=kind::MARIA_DELETE_ROWS_COMPRESSED
    )
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
fn next_of_payload(payload: &mut (dyn Read + Send + Sync)) -> Result<Option<Vec<u8>>> {
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
    // `take` and not a buffer of the promised size: the promise comes from outside.
    payload
        .take(rest as u64)
        .read_to_end(&mut event)
        .map_err(broken_payload)?;
    if event.len() != HEADER + rest {
        return Err(DecodeError::Malformed("a compressed transaction ends too early").into());
    }
    Ok(Some(event))
}

/// Appends one change, of one image or two, and returns where the next begins.
#[allow(clippy::too_many_arguments)]
fn append_change(
    plan: &TablePlan,
    keyed: bool,
    op: Op,
    event: &[u8],
    at: usize,
    (before, after): (&mut Image, &mut Image),
    into: &mut ChangeBuffer,
    slot: caudal_model::Slot,
    coerced: &mut Coerced,
) -> super::decode::Decoded<usize> {
    let end = rows::image(plan, event, at, before)?;
    let mut put = |op: Op, image: &Image| {
        let mut row = into.row(slot, op);
        rows::append(plan, event, image, &mut row, coerced)?;
        row.finish();
        Ok(())
    };
    if op != Op::Update {
        put(op, before)?;
        return Ok(end);
    }
    let end = rows::image(plan, event, end, after)?;
    if keyed && rows::same_key(plan, event, before, after) {
        put(Op::Update, after)?;
    } else {
        put(Op::Delete, before)?;
        put(Op::Insert, after)?;
    }
    Ok(end)
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
            match self.take_event()? {
                Some(data) => {
                    let (step, data) = self.handle(data, into)?;
                    match (step, data) {
                        (Step::Next, _) => {}
                        (Step::Emit(event), _) if self.events.is_empty() => return Ok(event),
                        (Step::Emit(event), _) => self.events.push_back(event),
                        (Step::Describe(map, why), Some(data)) => {
                            self.put_back(data);
                            self.describe(&map, &why, into.next_seq()).await?;
                        }
                        (Step::Describe(..), None) | (Step::Rows(_), _) => {}
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

    fn live(&mut self, _table: &TableName) {
        // Every change is decoded from its own images: nothing depends on older rows.
    }

    fn untrack(&mut self, table: &TableName) {
        self.tracked.remove(table);
        self.plans.clear();
    }

    fn in_transaction(&self) -> bool {
        self.transaction.is_some() || self.held || self.rows.is_some()
    }

    fn staged_bytes(&self) -> usize {
        self.staged
    }
}

/// Bytes of log between where a tail stands and the end.
pub(super) async fn lag_bytes(
    server: &Server,
    c: &mut super::wire::Connection,
) -> Result<Option<u64>> {
    let reached = server.reached.lock().ok().and_then(|r| r.clone());
    let Some(reached) = reached else {
        return Ok(None);
    };
    let end = current_coordinate(c).await?;
    if end.file == reached.file {
        return Ok(Some(end.offset.saturating_sub(reached.offset)));
    }
    let number = Coordinate::file_number;
    let mut lag = 0u64;
    for (file, size) in super::connect::log_files(c).await? {
        if number(&file) > number(&reached.file) {
            lag += size;
        } else if file == reached.file {
            lag += size.saturating_sub(reached.offset);
        }
    }
    Ok(Some(lag))
}
