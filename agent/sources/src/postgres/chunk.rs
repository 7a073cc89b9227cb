//! A table's rows in ranges of its key, by `COPY … (FORMAT binary)`.
//!
//! Bounds are found by the server through the key's index (see `blocks` for others) and come back as text;
//! they are compared by the server only, as row values, with the column's own type
//! and collation. Rows are decoded from the buffers in which they arrive.
//!
//! A chunk is one statement, with a snapshot of its own. The table is locked against
//! schema changes first (ACCESS SHARE, what any SELECT takes), then compared with the
//! schema that the rows will have, so that the two cannot part in between.

use super::blocks::{Blocks, Bound};
use super::catalog::{self, CatalogColumn};
use super::connect::Client;
use super::connect::{self, ident, literal, query_error, table_ident};
use super::copy::Copy;
use super::mapping::{self, Mapped};
use super::schema;
use super::shape::Identity;
use super::visibility::Snapshot;
use super::{Lsn, Shared, filter, replica};
use crate::{ChunkEvent, ChunkReader};
use async_trait::async_trait;
use bytes::Bytes;
use caudal_model::schema::{Column, ColumnSpec, Evolution};
use caudal_model::{
    ChangeBuffer, Chunk, Class, Error, Filter, Kind, Mark, Position, Result, TableName, TableSchema,
};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// How long an exact read tries to get a lock and a state that shows everything.
const EXACT_PATIENCE: Duration = Duration::from_secs(9);

/// A connection that reads chunks.
pub struct PostgresReader {
    shared: Arc<Shared>,
    client: Client,
    /// A transaction is open: the one of the chunk, or of an exact read.
    in_transaction: bool,
    exact: Option<TableName>,
    copy: Option<Copy>,
    /// A statement was abandoned while it ran.
    broken: bool,
    /// How the table that was asked for last is read.
    ways: Option<(Arc<TableSchema>, Way)>,
    /// The server is a standby of the source: its host and port.
    replica: Option<(String, u16)>,
}

/// How a table is read.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// Ranges of its key can be compared here.
    ranged: bool,
    /// Its rows are its partitions'.
    partitioned: bool,
}

/// A table that was found to have the schema that its rows will have.
struct Compared {
    columns: Vec<(String, Mapped)>,
    partitioned: bool,
}

/// What a table's own rows, or its partitions', are selected from.
fn from(table: &TableName, partitioned: bool) -> String {
    let only = if partitioned { "" } else { "ONLY " };
    format!("{only}{}", table_ident(table))
}

impl PostgresReader {
    /// Connects, to the replica unless an exact read is wanted.
    pub async fn open(shared: Arc<Shared>, exact: bool) -> Result<Self> {
        let replica = shared.options.replica.as_deref().filter(|_| !exact);
        let replica = replica.map(|r| replica::address(r, shared.options.port));
        let client = Self::connect(&shared, replica.as_ref()).await?;
        Ok(PostgresReader {
            shared,
            client,
            in_transaction: false,
            exact: None,
            copy: None,
            broken: false,
            ways: None,
            replica,
        })
    }

    /// A session that reads ranges through the key's index even where statistics are
    /// stale: one wrong plan a chunk makes a copy quadratic.
    async fn connect(shared: &Shared, replica: Option<&(String, u16)>) -> Result<Client> {
        let options = &shared.options;
        let (host, port) = match replica {
            Some((host, port)) => (host, *port),
            None => (&options.host, options.port),
        };
        let client = connect::connect_to(shared, (host, port), true).await?;
        client
            .batch_execute(
                "SET enable_seqscan = off; SET enable_sort = off; SET max_parallel_workers_per_gather = 0;
                 SET default_transaction_read_only = on; SET cursor_tuple_fraction = 1.0;
                 SELECT set_config('lock_timeout', '8000', false) WHERE current_setting('lock_timeout') = '0'",
            )
            .await
            .map_err(query_error)?;
        if replica.is_some() {
            replica::verify(&client, shared).await?;
        }
        Ok(client)
    }

    /// Leaves whatever an earlier use left open.
    async fn reset(&mut self) -> Result<()> {
        if self.copy.is_some() || self.broken || self.client.is_closed() {
            // Rows of an abandoned copy would have to be read to their end; a new
            // connection is cheaper.
            self.copy = None;
            self.exact = None;
            self.in_transaction = false;
            self.client = Self::connect(&self.shared, self.replica.as_ref()).await?;
            self.broken = false;
        } else if self.in_transaction {
            self.client
                .batch_execute("ROLLBACK")
                .await
                .map_err(query_error)?;
            self.in_transaction = false;
            self.exact = None;
        }
        Ok(())
    }

    /// Opens transactions until one sees everything at or before `base`.
    async fn exact_read(&mut self, table: &TableName, base: Lsn) -> Result<Mark> {
        self.reset().await?;
        self.shared.delivered.await_earlier(&self.client).await?;
        loop {
            self.reset().await?;
            // LOCK takes no snapshot; the first query does, for the whole transaction.
            self.begin("REPEATABLE READ", table).await?;
            let (snapshot, text) = Snapshot::take(&self.client).await?;
            if self.shared.delivered.seen_by(&snapshot, base) {
                self.exact = Some(table.clone());
                return Ok(text);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where a chunk begins whose bounds are blocks.
    async fn block(
        &self,
        schema: &TableSchema,
        chunk: &Chunk,
        ranged: bool,
    ) -> Result<Option<Bound>> {
        if let Some(after) = &chunk.after {
            return Bound::of(after);
        }
        let blocks = Blocks::read(&self.client, schema).await?;
        let better = blocks.filter(|b| b.are_better(ranged));
        Ok(better.map(|b| Bound {
            file: b.file,
            block: 0,
        }))
    }

    /// Whether the rows are where they were when the chunk's bounds were found.
    async fn same_file(&self, schema: &TableSchema, chunk: &Chunk) -> Result<()> {
        for bound in [&chunk.after, &chunk.through].into_iter().flatten() {
            if let Some(bound) = Bound::of(bound)? {
                let now = Blocks::read(&self.client, schema).await?;
                if now.is_none_or(|b| b.file != bound.file) {
                    let text = "is not as it was: its rows were written anew while it was copied";
                    return Err(Error::drift(&schema.table, text));
                }
                break;
            }
        }
        Ok(())
    }

    /// How the table is read.
    async fn way(&mut self, schema: &Arc<TableSchema>) -> Result<Way> {
        if let Some((asked, way)) = &self.ways
            && Arc::ptr_eq(asked, schema)
        {
            return Ok(*way);
        }
        let compared = self.compare(schema).await?;
        let way = Way {
            ranged: compared
                .columns
                .iter()
                .all(|(name, m)| m.ranged || !schema.key.contains(name)),
            partitioned: compared.partitioned,
        };
        self.ways = Some((schema.clone(), way));
        Ok(way)
    }

    async fn begin(&mut self, isolation: &str, table: &TableName) -> Result<()> {
        let sql = format!(
            "BEGIN ISOLATION LEVEL {isolation} READ ONLY; LOCK TABLE ONLY {} IN ACCESS SHARE MODE",
            table_ident(table)
        );
        self.in_transaction = true;
        self.client
            .batch_execute(&sql)
            .await
            .map_err(|e| table_error(table, e))
    }

    /// The columns with how to read them, if the table has the schema.
    async fn compare(&self, schema: &TableSchema) -> Result<Compared> {
        let table = &schema.table;
        let changed = |why: &str| Error::drift(table, format!("is not as it was: {why}"));
        let (oid, partitioned) = catalog::table_oid(&self.client, table)
            .await?
            .ok_or_else(|| changed("it does not exist any more"))?;
        if Identity::held(schema).is_some_and(|held| held.oid != oid) {
            return Err(changed("another table has its name"));
        }
        let mut columns = catalog::columns(&self.client, &[oid]).await?;
        let columns = columns.remove(&oid).unwrap_or_default();
        let generated =
            catalog::carries_generated(&self.client, &self.shared.publication()).await?;
        let options = self.shared.options.tables.get(table);
        let carried: Vec<CatalogColumn> = columns
            .into_iter()
            .filter(|c| schema::carried(c, options, generated))
            .collect();
        let types = schema::column_types(&self.client, carried.iter()).await?;
        let mut specs = Vec::new();
        let mut selected = Vec::new();
        for c in &carried {
            let Some(described) = types.get(&c.type_key) else {
                continue;
            };
            let (spec, mapped) = mapping::describe(&c.name, described, options).map_err(|why| {
                let text = format!("column {} ({}): {why}", c.name, described.name);
                Error::data(table, text)
                    .hint(format!("add {} to exclude_columns of this table", c.name))
            })?;
            specs.push(ColumnSpec {
                source_id: Some(c.number),
                ..spec
            });
            selected.push((c.name.clone(), mapped));
        }
        let compared = Compared {
            columns: selected,
            partitioned,
        };
        match schema.evolve(0, &specs, &schema.key, i32::MAX - 4096, mapping::retains) {
            Evolution::Same => Ok(compared),
            Evolution::Next(next) if unnumbered(schema) == unnumbered(&next) => Ok(compared),
            Evolution::Next(_) => Err(changed("columns were added, dropped, renamed or widened")),
            Evolution::Recopy(why) => Err(changed(&why)),
        }
    }

    /// Whether the table may hold a value past the limit: what is longer than a page is stored
    /// out of line, and in line nothing compresses to less than a 256th.
    async fn holds_long_values(&self, table: &TableName) -> Result<bool> {
        const LARGEST_PAGE: usize = 32 << 10;
        if self.shared.options.value_bytes < LARGEST_PAGE * 256 {
            return Ok(true);
        }
        let row = self
            .client
            .query_one(
                "SELECT coalesce(max(pg_relation_size(reltoastrelid)), 0) > 0 FROM pg_class
                  WHERE reltoastrelid <> 0 AND (oid = to_regclass($1)
                        OR oid IN (SELECT relid FROM pg_partition_tree(to_regclass($1))))",
                &[&table_ident(table)],
            )
            .await
            .map_err(query_error)?;
        Ok(row.get(0))
    }

    /// The key's columns with their types, as the server prints them.
    fn key_columns<'a>(&self, schema: &'a TableSchema) -> Result<Vec<(&'a str, &'a str)>> {
        schema
            .key
            .iter()
            .map(|k| {
                let column = schema.columns.iter().find(|c| &c.name == k);
                column
                    .map(|c| (c.name.as_str(), c.source_type.as_str()))
                    .ok_or_else(|| Error::bug(format!("key column {k} is not in the schema")))
            })
            .collect()
    }

    /// [`ChunkReader::start`], whose transaction an error leaves open.
    async fn start_copy(
        &mut self,
        schema: &Arc<TableSchema>,
        chunk: &Chunk,
        only: Option<&Filter>,
    ) -> Result<()> {
        let exact = !schema.has_key() && self.exact.as_ref() == Some(&schema.table);
        if !exact {
            if !schema.has_key() {
                return Err(Error::bug(
                    "a table without a key is read without open_exact",
                ));
            }
            self.reset().await?;
            if self.replica.is_some() {
                replica::await_base(&self.client, &self.shared, &schema.table).await?;
            }
            self.begin("READ COMMITTED", &schema.table).await?;
        }
        let Compared {
            columns: selected,
            partitioned,
        } = self.compare(schema).await?;
        self.same_file(schema, chunk).await?;
        let limit = self.shared.options.value_bytes;
        // Two expressions a column at most, of the 1,664 that a statement may have.
        let guarded = selected.len() <= 800 && self.holds_long_values(&schema.table).await?;
        let mut list = Vec::new();
        let mut sizes = Vec::new();
        let mut guards = Vec::new();
        for (index, (name, m)) in selected.iter().enumerate() {
            let value = mapping::copy_expression(name, m.form);
            let size = m.size_expression(name).filter(|_| guarded);
            if let Some(size) = size {
                list.push(format!("CASE WHEN {size} <= {limit} THEN {value} END"));
                sizes.push(format!("CASE WHEN {size} > {limit} THEN {size} END"));
                guards.push(index);
            } else {
                list.push(value);
            }
        }
        list.append(&mut sizes);
        let sql = format!(
            "COPY (SELECT {} FROM {}{}) TO STDOUT (FORMAT binary)",
            list.join(", "),
            from(&schema.table, partitioned),
            self.carried(schema, chunk, only)?,
        );
        let stream = self
            .client
            .copy_out(&sql)
            .await
            .map_err(|e| table_error(&schema.table, e))?;
        self.copy = Some(Copy {
            stream: Box::pin(stream),
            schema: schema.clone(),
            columns: selected
                .into_iter()
                .map(|(_, m)| (m.codec, m.form))
                .collect(),
            guards,
            value_bytes: limit,
            slot: None,
            header: true,
            rest: Bytes::new(),
            ended: false,
        });
        Ok(())
    }

    /// The condition of a chunk's rows that the table's filter and `only` let through.
    fn carried(
        &self,
        schema: &TableSchema,
        chunk: &Chunk,
        only: Option<&Filter>,
    ) -> Result<String> {
        let mut condition = self.condition(schema, chunk)?;
        let options = self.shared.options.tables.get(&schema.table);
        let own = options.and_then(|o| o.filter.as_ref());
        for f in own.into_iter().chain(only) {
            let word = if condition.is_empty() { "WHERE" } else { "AND" };
            condition += &format!(" {word} ({})", filter::condition(f, schema)?);
        }
        Ok(condition)
    }

    fn condition(&self, schema: &TableSchema, chunk: &Chunk) -> Result<String> {
        let key = self.key_columns(schema)?;
        let mut parts = Vec::new();
        if let Some(after) = &chunk.after {
            parts.push(match Bound::of(after)? {
                Some(bound) => bound.condition(">="),
                None => comparison(&key, ">", after)?,
            });
        }
        if let Some(through) = &chunk.through {
            parts.push(match Bound::of(through)? {
                Some(bound) => bound.condition("<"),
                None => comparison(&key, "<=", through)?,
            });
        }
        Ok(if parts.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", parts.join(" AND "))
        })
    }
}

/// The columns without their numbers at the source, which older versions do not have.
fn unnumbered(schema: &TableSchema) -> Vec<Column> {
    let columns = schema.columns.iter();
    columns
        .map(|c| Column {
            source_id: None,
            ..c.clone()
        })
        .collect()
}

fn comparison(key: &[(&str, &str)], operator: &str, bound: &[String]) -> Result<String> {
    if bound.len() != key.len() {
        return Err(Error::bug("a chunk's bound does not fit the key"));
    }
    let names: Vec<String> = key.iter().map(|(name, _)| ident(name)).collect();
    let values: Vec<String> = bound
        .iter()
        .zip(key)
        .map(|(v, (_, kind))| format!("{}::{kind}", literal(v)))
        .collect();
    // One column without parentheses: a row of one is no row value.
    if let ([name], [value]) = (names.as_slice(), values.as_slice()) {
        return Ok(format!("{name} {operator} {value}"));
    }
    let row = format!("({}) {operator} ({})", names.join(", "), values.join(", "));
    // Partitions are chosen by single columns alone; the first one's order is the row's.
    Ok(match (names.first(), values.first()) {
        (Some(name), Some(value)) => format!(
            "{row} AND {name} {}= {value}",
            operator.trim_end_matches('=')
        ),
        _ => row,
    })
}

/// An error of a statement on one table: what is wrong with the table stops it alone.
fn table_error(table: &TableName, e: tokio_postgres::Error) -> Error {
    let code = e.code().map(|c| c.code().to_owned()).unwrap_or_default();
    let error = query_error(e);
    match code.as_str() {
        "42P01" | "42703" | "3F000" => Error::drift(table, "is not as it was").caused_by(error),
        "42501" => Error::data(table, "the table cannot be read")
            .caused_by(error)
            .hint("run `caudal check`: it prints what is missing"),
        // Corrupt rows, or a value that its own output function refuses, or a row that does not
        // fit the server's own gigabyte.
        code if code.starts_with("22")
            || code == "XX001"
            || code.starts_with("54")
            || error
                .message()
                .contains("invalid memory alloc request size") =>
        {
            Error::data(table, "the server cannot read a row").caused_by(error)
        }
        _ => error.in_table(table),
    }
}

/// A table without a key is one statement, which no other try makes shorter.
fn unsplittable(schema: &TableSchema, error: Error) -> Error {
    if schema.has_key() || error.kind() != Kind::Timeout {
        return error;
    }
    Error::data(&schema.table, "its copy, which is one statement for want of a key, is too long")
        .caused_by(error)
        .hint(format!(
            "raise statement_timeout (or what the server names) for the user, or give the table a key; then run `caudal resnapshot {}`",
            schema.table
        ))
}

#[async_trait]
impl ChunkReader for PostgresReader {
    async fn await_visible(&mut self, table: &TableName, base: &Position) -> Result<()> {
        self.reset().await?;
        let base = Lsn::of(base)?;
        if self.replica.is_some() {
            self.shared.bases.note(table, base);
            return replica::await_replay(&self.client, base).await;
        }
        let delivered = &self.shared.delivered;
        delivered.await_visible(&self.client, base).await
    }

    async fn open_exact(&mut self, schema: &Arc<TableSchema>, base: &Position) -> Result<Mark> {
        match tokio::time::timeout(
            EXACT_PATIENCE,
            self.exact_read(&schema.table, Lsn::of(base)?),
        )
        .await
        {
            Ok(mark) => mark,
            Err(_) => {
                self.broken = true;
                let text = format!("table {}: no exact read yet", schema.table);
                Err(Error::retryable(Kind::Source, text).hint(
                    "a lock on the table, a transaction that wrote to it, or a synchronous standby holds it up",
                ))
            }
        }
    }

    async fn plan(
        &mut self,
        schema: &Arc<TableSchema>,
        after: Option<&Chunk>,
        rows: u64,
    ) -> Result<Option<Chunk>> {
        let id = after.map_or(1, |c| c.id + 1);
        let lower = match after {
            None => None,
            Some(Chunk { through: None, .. }) => return Ok(None),
            Some(Chunk {
                through: Some(bound),
                ..
            }) => Some(bound.clone()),
        };
        let mut chunk = Chunk {
            id,
            after: lower,
            through: None,
        };
        if !schema.has_key() {
            return Ok(Some(chunk));
        }
        self.reset().await?;
        let way = self.way(schema).await?;
        if let Some(from) = self.block(schema, &chunk, way.ranged).await? {
            let end = match Blocks::read(&self.client, schema).await? {
                Some(blocks) => blocks.end(&self.client, schema, from.block, rows).await?,
                None => None,
            };
            // Of the file that the copy began with, whichever there is now: its reader compares.
            let end = end.map(|end| Bound {
                file: from.file,
                ..end
            });
            chunk.through = end.map(Bound::text);
            return Ok(Some(chunk));
        }
        if !way.ranged {
            return Ok(Some(chunk));
        }
        let key = self.key_columns(schema)?;
        let names: Vec<String> = key.iter().map(|(name, _)| ident(name)).collect();
        let texts: Vec<String> = names.iter().map(|n| format!("format('%s', {n})")).collect();
        let sql = format!(
            "SELECT {} FROM {}{} ORDER BY {} OFFSET {} LIMIT 1",
            texts.join(", "),
            from(&schema.table, way.partitioned),
            self.condition(schema, &chunk)?,
            names.join(", "),
            rows.max(1) - 1,
        );
        let row = self
            .client
            .query_opt(&sql, &[])
            .await
            .map_err(|e| table_error(&schema.table, e))?;
        chunk.through = row.map(|r| (0..names.len()).map(|i| r.get(i)).collect());
        Ok(Some(chunk))
    }

    async fn start(
        &mut self,
        schema: &Arc<TableSchema>,
        chunk: &Chunk,
        only: Option<&Filter>,
    ) -> Result<()> {
        let mut started = self.start_copy(schema, chunk, only).await;
        let drifted = |s: &Result<()>| s.as_ref().is_err_and(|e| e.kind() == Kind::Drift);
        if self.replica.is_some() && drifted(&started) {
            // The version may be one that the replica does not have yet.
            self.reset().await?;
            replica::await_primary(&self.client, &self.shared).await?;
            started = self.start_copy(schema, chunk, only).await;
        }
        if started.is_err() && self.in_transaction {
            // Its lock would hold up who changes the table, until the reader is used again.
            let _ = self.reset().await;
        }
        started.map_err(|e| unsplittable(schema, e))
    }

    async fn next(&mut self, into: &mut ChangeBuffer) -> Result<ChunkEvent> {
        let copy = self
            .copy
            .as_mut()
            .ok_or_else(|| Error::bug("no chunk was started"))?;
        loop {
            if copy.decode(into)? {
                return Ok(ChunkEvent::Full);
            }
            match self.client.within(copy.stream.next()).await {
                Some(Ok(bytes)) => copy.receive(bytes),
                Some(Err(e)) => {
                    let error = unsplittable(&copy.schema, table_error(&copy.schema.table, e));
                    if error.class() == Class::Data {
                        // The server has ended the copy; only the transaction is open.
                        self.copy = None;
                    }
                    return Err(error);
                }
                None => break,
            }
        }
        if !copy.ended || !copy.rest.is_empty() {
            return Err(Error::retryable(
                Kind::Source,
                "a copy ended before its end",
            ));
        }
        self.copy = None;
        self.exact = None;
        if self.replica.is_some() {
            replica::still_standby(&self.client).await?;
        }
        self.client
            .batch_execute("COMMIT")
            .await
            .map_err(query_error)?;
        self.in_transaction = false;
        Ok(ChunkEvent::Done)
    }
}
