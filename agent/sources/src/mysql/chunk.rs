//! Snapshots: chunks of a table's key range, and one exact read of a table without a key.
//!
//! **INV-5, visibility.** A chunk may be read once everything that the tail delivered up to
//! the table's base is visible to a SELECT.
//! - MySQL with GTIDs: a transaction's GTID enters `gtid_executed` after the engine has
//!   committed it, so `WAIT_FOR_EXECUTED_GTID_SET(base)` is the wait itself.
//! - MySQL without GTIDs: a transaction keeps its metadata lock on the table until its engine
//!   commit is done, so once `LOCK TABLES … READ` is granted, every transaction of this table
//!   that stood in the log before it was asked is visible. It is released at once.
//! - MariaDB: `START TRANSACTION WITH CONSISTENT SNAPSHOT` stops commits between log and
//!   engine for a moment and says which log position its view shows. Views only grow, so when
//!   one covers the base, every later one does.
//!
//! **INV-6, an exact read.** MariaDB's consistent snapshot is exact by itself. MySQL: the
//! table is locked against writers on a second connection, the view opens here, the position is
//! read there, and the lock goes. No transaction of this table can be between log and engine
//! while it is locked, so the view holds exactly those that the position covers.
//!
//! Bounds are found and compared by the server alone, through the key's index; text bounds
//! travel as the column's own bytes with its collation.

use super::connect::{Server, lift_time_limit};
use super::decode::fetched::push_fetched;
use super::decode::rows::CellError;
use super::decode::values::{Coerced, Value};
use super::decode::{DecodeError, Input};
use super::flavor::Flavor;
use super::gtid::{Coordinate, GtidList, Place};
use super::replica;
use super::schema::{SourceTable, describe, drifted, read_table};
use super::tail::value_error;
use super::types::{Declared, column_type};
use super::wire::{ColumnDefinition, Connection, WireError, identifier, quote};
use crate::{ChunkEvent, ChunkReader};
use async_trait::async_trait;
use caudal_model::filter::FilterDialect;
use caudal_model::{
    ChangeBuffer, Chunk, Error, Filter, Kind, Mark, Op, Position, Result, TableName, TableSchema,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod range;
mod spacing;

use range::{Keys, Side};
pub(in crate::mysql) use spacing::Spacing;

/// How long one wait for a lock or a visible state may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The rows that are being read.
struct Reading {
    schema: Arc<TableSchema>,
    definitions: Vec<ColumnDefinition>,
    values: Vec<Value>,
    keys: Keys,
    chunk: Chunk,
    /// No filter leaves out rows that lie in the chunk.
    every_row: bool,
    rows: u64,
}

/// A connection that reads chunks.
pub struct Reader {
    server: Arc<Server>,
    /// The replica that it reads.
    replica: Option<String>,
    connection: Option<Connection>,
    reading: Option<Reading>,
    /// The table whose exact read is open on the connection.
    exact: Option<TableName>,
}

impl Reader {
    /// A reader of the replica, if there is one, and of the primary for an exact read.
    pub(super) async fn open(server: Arc<Server>, exact: bool) -> Result<Self> {
        let replica = server.options.replica.clone().filter(|_| !exact);
        let mut reader = Reader {
            server,
            replica,
            connection: None,
            reading: None,
            exact: None,
        };
        reader.connection().await?;
        Ok(reader)
    }

    /// The connection, a new one if the last result was not read to its end.
    async fn connection(&mut self) -> Result<&mut Connection> {
        if self.reading.take().is_some() || self.connection.is_none() {
            self.exact = None;
            let mut c = match &self.replica {
                Some(address) => replica::connect(&self.server, address).await?,
                None => self.server.connect().await?,
            };
            c.limit_packets(self.server.options.value_bytes, |_| true);
            self.connection = Some(c);
        }
        self.connection
            .as_mut()
            .ok_or_else(|| Error::bug("no connection to read chunks with"))
    }

    /// Checks the table against the schema that its rows are to have.
    async fn checked(&mut self, schema: &TableSchema) -> Result<SourceTable> {
        let server = self.server.clone();
        let c = self.connection().await?;
        let table = read_table(c, &schema.table)
            .await?
            .ok_or_else(|| drifted(&schema.table, "it does not exist any more"))?;
        let now = describe(&table, &server.options, c.flavor);
        if let Some(problem) = now.problems.first() {
            return Err(drifted(&schema.table, &problem.reason));
        }
        let same = now.columns.len() == schema.columns.len()
            && now.columns.iter().zip(&schema.columns).all(|(a, b)| {
                a.name == b.name && a.lake_type == b.lake_type && a.source_type == b.source_type
            });
        if !same || now.key != schema.key {
            return Err(drifted(
                &schema.table,
                "its columns or its key are not those of its schema",
            ));
        }
        Ok(table)
    }

    async fn maria_view(&mut self) -> Result<GtidList> {
        let c = self.connection().await?;
        c.query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            .await?;
        let status = c
            .query("SHOW STATUS WHERE Variable_name IN ('binlog_snapshot_file', 'binlog_snapshot_position')")
            .await?;
        let named = |name: &str| {
            let row = status.iter().find(|r| r.text(0).eq_ignore_ascii_case(name));
            row.map(|r| r.text(1)).unwrap_or_default()
        };
        let at = Coordinate {
            file: named("binlog_snapshot_file"),
            offset: named("binlog_snapshot_position").parse().unwrap_or(0),
        };
        let sql = format!("SELECT BINLOG_GTID_POS({}, {})", quote(&at.file), at.offset);
        let text = c.value(&sql).await?;
        text.as_deref().and_then(GtidList::parse).ok_or_else(|| {
            Error::retryable(
                Kind::Source,
                "the source gave no gtid for its consistent snapshot",
            )
        })
    }

    /// INV-6 on MySQL; see the header.
    async fn mysql_view(&mut self, table: &TableName) -> Result<Place> {
        let server = self.server.clone();
        let mut locker = server.connect().await?;
        let name = qualified(table);
        lock(&mut locker, &name).await?;
        let c = self.connection().await?;
        c.query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            .await?;
        let place = super::connect::current_place(&mut locker).await;
        locker.query("UNLOCK TABLES").await?;
        place
    }

    /// What the columns' cells are, with the tables of their charsets.
    async fn values(&mut self, schema: &TableSchema) -> Result<Vec<Value>> {
        let server = self.server.clone();
        let mut values = Vec::with_capacity(schema.columns.len());
        for c in &schema.columns {
            let declared = Declared::parse(&c.source_type);
            let (value, _) = column_type(&declared, server.flavor, Some(&c.lake_type))
                .map_err(|e| drifted(&schema.table, &e))?;
            let value = match server.charsets.resolve(value.clone()) {
                Ok(value) => value,
                Err(name) => {
                    server.load_charset(&name).await?;
                    server.charsets.resolve(value).unwrap_or(Value::Binary)
                }
            };
            values.push(value);
        }
        Ok(values)
    }

    /// Opens a transaction that holds the table's definition until it ends.
    async fn hold(&mut self, table: &TableName) -> Result<()> {
        let c = self.connection().await?;
        c.query("START TRANSACTION").await?;
        let sql = format!("SELECT 1 FROM {} LIMIT 0", qualified(table));
        c.query(&sql).await.map_err(|e| changed(table, e))?;
        Ok(())
    }

    /// Opens the chunk's transaction and its SELECT.
    async fn begin(
        &mut self,
        schema: &Arc<TableSchema>,
        chunk: &Chunk,
        only: Option<&Filter>,
    ) -> Result<()> {
        let exact = self.exact.clone();
        if exact.is_none() {
            self.hold(&schema.table).await?;
        }
        let table = self.checked(schema).await?;
        if !schema.has_key() && (exact.as_ref() != Some(&schema.table) || self.exact.is_none()) {
            return Err(Error::retryable(
                Kind::Source,
                "the exact read of the table was lost",
            ));
        }
        let values = self.values(schema).await?;
        let keys = Keys::of(&table, schema, self.server.flavor)?;
        let own = self.server.options.tables.get(&schema.table);
        let filters: Vec<&Filter> = own
            .and_then(|o| o.filter.as_ref())
            .into_iter()
            .chain(only)
            .collect();
        let sql = select(schema, &values, &keys, chunk, &filters)?;
        let every_row = filters.is_empty();
        let c = self.connection().await?;
        // Text as it is stored, of any length, decoded here as the log's is: the server would
        // show a `?` for bytes without a meaning.
        c.query("SET SESSION character_set_results = NULL").await?;
        let definitions = c.select(&sql).await;
        let definitions = definitions.map_err(|e| changed(&schema.table, e))?;
        if definitions.len() != values.len() {
            return Err(Error::bug(
                "a chunk's columns are not those that were asked for",
            ));
        }
        self.reading = Some(Reading {
            schema: schema.clone(),
            definitions,
            values,
            keys,
            chunk: chunk.clone(),
            every_row,
            rows: 0,
        });
        Ok(())
    }
}

/// The SELECT of a chunk.
fn select(
    schema: &TableSchema,
    values: &[Value],
    keys: &Keys,
    chunk: &Chunk,
    filters: &[&Filter],
) -> Result<String> {
    let column = |(c, value): (&caudal_model::Column, &Value)| {
        let name = identifier(&c.name);
        match value {
            // Their labels are known in UTF-8.
            Value::Enum(_) | Value::Set(_) => format!("CONVERT({name} USING utf8mb4)"),
            _ => name,
        }
    };
    let columns: Vec<String> = schema.columns.iter().zip(values).map(column).collect();
    let whole = chunk.after.is_none() && chunk.through.is_none();
    let mut sql = format!(
        "SELECT {} FROM {}{}",
        columns.join(", "),
        qualified(&schema.table),
        if whole { String::new() } else { keys.hint() }
    );
    let mut terms = Vec::new();
    for (bound, side) in [(&chunk.after, Side::After), (&chunk.through, Side::Through)] {
        if let Some(bound) = bound {
            terms.push(keys.range(bound, side)?);
        }
    }
    for filter in filters {
        let sql = filter.sql(schema, &Dialect);
        terms.push(format!(
            "({})",
            sql.map_err(|e| drifted(&schema.table, &e))?
        ));
    }
    if !terms.is_empty() {
        sql.push_str(&format!(" WHERE {}", terms.join(" AND ")));
    }
    Ok(sql)
}

/// A server's refusal of a table or column that its schema has.
fn changed(table: &TableName, e: WireError) -> Error {
    match e {
        WireError::Server {
            code: 1049 | 1054 | 1146 | 1412 | 1615,
            message,
        } => drifted(table, &format!("the source answered: {message}")),
        e => Error::from(e).in_table(table),
    }
}

/// A filter in the words of both servers.
struct Dialect;

impl FilterDialect for Dialect {
    fn identifier(&self, name: &str) -> String {
        identifier(name)
    }
    fn text(&self, value: &str) -> String {
        quote(value)
    }
    fn exact_text(&self, column: &caudal_model::Column) -> String {
        let name = identifier(&column.name);
        format!("CAST(CONVERT({name} USING utf8mb4) AS BINARY)")
    }
    fn exact_literal(&self, value: &str) -> String {
        format!("CAST({} AS BINARY)", quote(value))
    }
}

fn qualified(table: &TableName) -> String {
    format!("{}.{}", identifier(&table.schema), identifier(&table.name))
}

async fn lock(c: &mut Connection, name: &str) -> Result<()> {
    c.query(&format!(
        "SET SESSION lock_wait_timeout = {}",
        PATIENCE.as_secs() - 2
    ))
    .await?;
    match c.query(&format!("LOCK TABLES {name} READ")).await {
        Ok(_) => Ok(()),
        Err(WireError::Server { code: 1205, .. }) => Err(Error::retryable(
            Kind::Source,
            format!("no lock on {name}: a long transaction holds it"),
        )),
        Err(e) => Err(Error::from(e).context(format!("locking {name} for a moment"))),
    }
}

#[async_trait]
impl ChunkReader for Reader {
    async fn await_visible(&mut self, table: &TableName, base: &Position) -> Result<()> {
        let flavor = self.server.flavor;
        let not_yet = || {
            Error::retryable(
                Kind::Source,
                format!("position {base} is not visible to queries yet"),
            )
        };
        let place = Place::parse(flavor, base)?;
        if let Some(address) = self.replica.clone() {
            replica::remember(&self.server, &place);
            return replica::reach(self.connection().await?, &address, &place).await;
        }
        match place {
            Place::Gtids(set) if set.is_empty() => Ok(()),
            Place::Gtids(set) => {
                let seconds = PATIENCE.as_secs();
                let sql = format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{set}', {seconds})");
                match self.connection().await?.value(&sql).await?.as_deref() {
                    Some("0") => Ok(()),
                    _ => Err(not_yet()),
                }
            }
            Place::File(_) => {
                let name = qualified(table);
                let c = self.connection().await?;
                lock(c, &name).await?;
                c.query("UNLOCK TABLES").await?;
                Ok(())
            }
            Place::Domains(wanted) => {
                let until = Instant::now() + PATIENCE;
                loop {
                    let seen = self.maria_view().await;
                    self.connection().await?.query("ROLLBACK").await?;
                    if seen?.covers(&wanted) {
                        return Ok(());
                    }
                    if Instant::now() >= until {
                        return Err(not_yet());
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn open_exact(&mut self, schema: &Arc<TableSchema>, base: &Position) -> Result<Mark> {
        let base = Place::parse(self.server.flavor, base)?;
        self.checked(schema).await?;
        self.connection().await?.query("ROLLBACK").await?;
        lift_time_limit(self.connection().await?).await?;
        let place = match self.server.flavor {
            Flavor::MariaDb => Place::Domains(self.maria_view().await?),
            Flavor::MySql => self.mysql_view(&schema.table).await?,
        };
        if !place.covers(&base)? {
            self.connection().await?.query("ROLLBACK").await?;
            return Err(Error::retryable(
                Kind::Source,
                format!("position {base} is not visible to queries yet"),
            ));
        }
        self.exact = Some(schema.table.clone());
        Ok(place.to_string())
    }

    async fn plan(
        &mut self,
        schema: &Arc<TableSchema>,
        after: Option<&Chunk>,
        rows: u64,
    ) -> Result<Option<Chunk>> {
        let id = after.map_or(1, |c| c.id.saturating_add(1));
        if !schema.has_key() {
            return Ok(after.is_none().then_some(Chunk {
                id,
                after: None,
                through: None,
            }));
        }
        let lower = match after {
            None => None,
            Some(c) => match &c.through {
                Some(through) => Some(through.clone()),
                None => return Ok(None),
            },
        };
        let table = self.checked(schema).await?;
        let keys = Keys::of(&table, schema, self.server.flavor)?;
        if !keys.divisible() {
            return Ok(after.is_none().then_some(Chunk {
                id,
                after: None,
                through: None,
            }));
        }
        let server = self.server.clone();
        let (table, name) = (&schema.table, qualified(&schema.table));
        let c = self.connection().await?;
        let guess = spacing::guess(&server, c, (table, &name), &keys, lower.as_ref(), rows);
        let through = match guess.await? {
            Some(bound) => Some(bound),
            None => {
                let sql = keys.bound_sql(&name, lower.as_ref(), rows)?;
                let found = c.query(&sql).await?;
                let bound = found.first().map(|r| keys.bound(r, lower.as_ref()));
                let bound = bound.transpose()?;
                let bounds = (lower.as_ref(), bound.as_ref());
                spacing::note(&server, table, &keys, bounds, rows);
                bound
            }
        };
        Ok(Some(Chunk {
            id,
            after: lower,
            through,
        }))
    }

    async fn start(
        &mut self,
        schema: &Arc<TableSchema>,
        chunk: &Chunk,
        only: Option<&Filter>,
    ) -> Result<()> {
        let begun = self.begin(schema, chunk, only).await;
        if begun.is_err() {
            // Its transaction would hold the table's definition for as long as nobody asks.
            self.connection = None;
            self.exact = None;
        }
        begun
    }

    async fn next(&mut self, into: &mut ChangeBuffer) -> Result<ChunkEvent> {
        let (Some(reading), Some(connection)) = (&mut self.reading, &mut self.connection) else {
            return Ok(ChunkEvent::Done);
        };
        let slot = into.slot(&reading.schema);
        let mut coerced = Coerced::default();
        let mut rows_since_yield = 0;
        let event = loop {
            if into.is_full() {
                break ChunkEvent::Full;
            }
            let Some((row, oversized)) = connection.sized_row().await? else {
                break ChunkEvent::Done;
            };
            let limit = self.server.options.value_bytes;
            if let Some(bytes) = oversized {
                let mut e = append_row(reading, row, limit, into, slot, &mut coerced);
                if !matches!(&e, Err(e) if matches!(e.error, DecodeError::TooLarge(_))) {
                    e = Err(DecodeError::TooLarge(bytes).into());
                }
                e.map_err(|e| row_error(reading, e))?;
            }
            append_row(reading, row, limit, into, slot, &mut coerced)
                .map_err(|e| row_error(reading, e))?;
            reading.rows += 1;
            rows_since_yield += 1;
            if rows_since_yield == 4096 {
                rows_since_yield = 0;
                tokio::task::yield_now().await;
            }
        };
        self.server.coerced.add(coerced);
        if matches!(event, ChunkEvent::Done) {
            if reading.every_row {
                let bounds = (reading.chunk.after.as_ref(), reading.chunk.through.as_ref());
                let table = &reading.schema.table;
                spacing::note(&self.server, table, &reading.keys, bounds, reading.rows);
            }
            self.reading = None;
            self.exact = None;
            connection.query("SET NAMES utf8mb4").await?;
            connection.query("ROLLBACK").await?;
        }
        Ok(event)
    }
}

fn row_error(reading: &Reading, e: CellError) -> Error {
    let schema = &reading.schema;
    match e.error {
        DecodeError::Malformed(_) => Error::from(e.error).in_table(&schema.table),
        error => {
            let column = e.column.and_then(|i| schema.columns.get(i));
            let column = column.map(|c| c.name.as_str());
            value_error(error, column, &schema.table, "the copy").in_table(&schema.table)
        }
    }
}

fn append_row(
    reading: &Reading,
    row: &[u8],
    limit: usize,
    into: &mut ChangeBuffer,
    slot: caudal_model::Slot,
    coerced: &mut Coerced,
) -> Result<(), CellError> {
    let mut input = Input(row);
    let nulls = input.take((reading.values.len() + 9) / 8)?;
    let mut writer = into.row(slot, Op::Snapshot);
    for (i, (value, d)) in reading.values.iter().zip(&reading.definitions).enumerate() {
        if nulls
            .get((i + 2) / 8)
            .is_some_and(|b| b >> ((i + 2) % 8) & 1 == 1)
        {
            writer.column(i).push_null();
            continue;
        }
        let fail = |error| CellError {
            column: Some(i),
            error,
        };
        if lies_behind_its_length(d.column_type) {
            let len = Input(input.0).lenenc()?;
            if len > limit as u64 {
                return Err(fail(DecodeError::TooLarge(len)));
            }
        }
        let unsigned = d.flags & 0x20 != 0;
        let column = writer.column(i);
        let counted = push_fetched(value, d.column_type, unsigned, &mut input, column, coerced)
            .map_err(fail)?;
        writer.count(counted);
    }
    writer.finish();
    Ok(())
}

/// Whether a cell of this type of the protocol is bytes after their length.
fn lies_behind_its_length(column_type: u8) -> bool {
    !matches!(column_type, 1..=5 | 7..=13)
}
