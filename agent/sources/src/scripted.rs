//! A source that follows a script: for simulations, where thousands of seeded runs must
//! meet every order of events within seconds.
//!
//! It is a small database with the properties that make real ones hard. The log runs
//! ahead of what a SELECT sees (INV-5), an acknowledged position cannot be read again
//! (INV-3), a tail stops in the middle of a transaction when the buffer is full, and any
//! call may fail where the script says so. Positions are the transactions' numbers from 1.

use crate::{
    ChunkEvent, ChunkReader, DiscoveredTable, Source, SourceProgress, Tail, TailEvent, TrackedTable,
};
use async_trait::async_trait;
use caudal_model::schema::ColumnSpec;
use caudal_model::{
    ChangeBuffer, Chunk, ColumnBuilder, Error, Finding, Kind, LakeType, Mark, Op, Position, Result,
    TableName, TableSchema, TransactionMeta,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A row: `id`, `value`, and `big`, which an update that leaves it alone does not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The key of a table that has one.
    pub id: i64,
    /// Any value.
    pub value: i64,
    /// A value as if stored out of line.
    pub big: i64,
}

/// One change of a transaction.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new row.
    Insert(TableName, Row),
    /// A row before and after.
    Update(TableName, Row, Row),
    /// A row that goes.
    Delete(TableName, Row),
    /// Every row of the table goes.
    Truncate(TableName),
    /// The schema changes and every value grows by 100, of which the log says no more
    /// than that it happened.
    Rewrite(TableName),
    /// The table goes.
    Drop(TableName),
    /// A table that was dropped is there again, empty.
    Create(TableName),
}

impl Change {
    fn table(&self) -> &TableName {
        match self {
            Change::Insert(t, _)
            | Change::Update(t, ..)
            | Change::Delete(t, _)
            | Change::Truncate(t)
            | Change::Rewrite(t)
            | Change::Drop(t)
            | Change::Create(t) => t,
        }
    }
}

/// Where a call may fail; the script answers with an error to raise.
pub type FaultHook = dyn Fn(&'static str) -> Option<Error> + Send + Sync;

struct Database {
    /// Table → whether it has a key.
    tables: BTreeMap<TableName, bool>,
    log: Vec<Vec<Change>>,
    visible: u64,
    acknowledged: u64,
    prepared: bool,
    server: String,
    fault: Arc<FaultHook>,
}

/// The scripted database; clones share it.
#[derive(Clone)]
pub struct Script(Arc<Mutex<Database>>);

/// The rows of every table.
pub type State = BTreeMap<TableName, Vec<Row>>;

impl Script {
    /// A database with these tables (name, has a key).
    pub fn new(tables: impl IntoIterator<Item = (TableName, bool)>) -> Self {
        Script(Arc::new(Mutex::new(Database {
            tables: tables.into_iter().collect(),
            log: Vec::new(),
            visible: 0,
            acknowledged: 0,
            prepared: false,
            server: "scripted".to_owned(),
            fault: Arc::new(|_| None),
        })))
    }

    fn db(&self) -> MutexGuard<'_, Database> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks `hook` before every call.
    pub fn set_faults(&self, hook: Arc<FaultHook>) {
        self.db().fault = hook;
    }

    fn fault(&self, call: &'static str) -> Result<()> {
        let hook = self.db().fault.clone();
        match hook(call) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Writes a transaction to the log; a SELECT does not see it yet.
    pub fn commit(&self, changes: Vec<Change>) {
        self.db().log.push(changes);
    }

    /// Lets SELECTs see up to `count` more transactions.
    pub fn reveal(&self, count: u64) {
        let mut db = self.db();
        db.visible = (db.visible + count).min(db.log.len() as u64);
    }

    /// The number of transactions.
    pub fn end(&self) -> u64 {
        self.db().log.len() as u64
    }

    /// The position that the source may forget up to.
    pub fn acknowledged(&self) -> u64 {
        self.db().acknowledged
    }

    /// Every table's rows, sorted, after the first `position` transactions.
    pub fn state_at(&self, position: u64) -> State {
        self.db().state_at(position)
    }
}

impl Database {
    fn state_at(&self, position: u64) -> State {
        let mut state: State = self
            .tables
            .keys()
            .map(|t| (t.clone(), Vec::new()))
            .collect();
        for change in self.log.iter().take(position as usize).flatten() {
            if matches!(change, Change::Drop(_)) {
                state.remove(change.table());
                continue;
            }
            let rows = state.entry(change.table().clone()).or_default();
            let mut remove = |row: &Row| {
                if let Some(at) = rows.iter().position(|r| r == row) {
                    rows.swap_remove(at);
                }
            };
            match change {
                Change::Insert(_, row) => rows.push(*row),
                Change::Update(_, old, new) => {
                    remove(old);
                    rows.push(*new);
                }
                Change::Delete(_, row) => remove(row),
                Change::Truncate(_) => rows.clear(),
                Change::Rewrite(_) => rows.iter_mut().for_each(|r| r.value += 100),
                Change::Drop(_) | Change::Create(_) => {}
            }
        }
        for rows in state.values_mut() {
            rows.sort_unstable();
        }
        state
    }
}

fn parse(position: &Position) -> Result<u64> {
    position.as_str().parse().map_err(|_| {
        Error::fatal(
            Kind::Corrupt,
            format!("`{position}` is not a position of a scripted source"),
        )
    })
}

fn position(n: u64) -> Position {
    Position::new(n.to_string())
}

fn push(row: &mut caudal_model::RowWriter<'_>, column: usize, value: i64) {
    if let ColumnBuilder::Int64(c) = row.column(column) {
        c.push(value);
    }
}

fn push_row(into: &mut ChangeBuffer, schema: &Arc<TableSchema>, op: Op, r: &Row, big: bool) {
    let slot = into.slot(schema);
    let mut row = into.row(slot, op);
    push(&mut row, 0, r.id);
    push(&mut row, 1, r.value);
    if big {
        push(&mut row, 2, r.big);
    } else {
        row.unchanged(2);
    }
    row.finish();
}

#[async_trait]
impl Source for Script {
    fn kind(&self) -> &'static str {
        "scripted"
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    async fn discover(&self) -> Result<Vec<DiscoveredTable>> {
        self.fault("discover")?;
        let column = |name: &str| ColumnSpec::new(name, "bigint", LakeType::Int64);
        let db = self.db();
        let there = db.state_at(db.visible.max(db.acknowledged));
        let tables = db.tables.iter().filter(|(t, _)| there.contains_key(t));
        let tables = tables.map(|(table, keyed)| DiscoveredTable {
            source_id: None,
            table: table.clone(),
            columns: vec![column("id"), column("value"), column("big")],
            key: if *keyed {
                vec!["id".to_owned()]
            } else {
                Vec::new()
            },
            estimated_rows: 0,
            estimated_bytes: 0,
            problems: Vec::new(),
        });
        Ok(tables.collect())
    }

    async fn prepare(&self, _tables: &[TableName]) -> Result<Position> {
        self.fault("prepare")?;
        let mut db = self.db();
        if !db.prepared {
            db.prepared = true;
            db.acknowledged = db.log.len() as u64;
        }
        Ok(position(db.acknowledged))
    }

    async fn add_tables(&self, _tables: &[TableName]) -> Result<()> {
        self.fault("add_tables")
    }

    async fn current_position(&self) -> Result<Position> {
        self.fault("current_position")?;
        Ok(position(self.end()))
    }

    async fn identity(&self) -> Result<String> {
        Ok(self.db().server.clone())
    }

    async fn recognize(&self, held: &str, _reached: &Position) -> Result<String> {
        self.fault("recognize")?;
        let now = self.identity().await?;
        if now != held {
            let text = format!("this is {now}, and the position is of {held}");
            return Err(Error::fatal(Kind::PositionLost, text));
        }
        Ok(now)
    }

    async fn progress(&self, reached: &Position) -> Result<SourceProgress> {
        let end = self.end();
        let lag_bytes = Some(end.saturating_sub(parse(reached)?));
        Ok(SourceProgress {
            position: position(end),
            lag_bytes,
            retained_bytes: None,
        })
    }

    fn covers(&self, reached: &Position, target: &Position) -> Result<bool> {
        Ok(parse(reached)? >= parse(target)?)
    }

    async fn replayable(&self, from: &Position) -> Result<()> {
        let from = parse(from)?;
        if from < self.db().acknowledged {
            return Err(Error::fatal(
                Kind::PositionLost,
                format!("{from} was acknowledged and is gone"),
            ));
        }
        Ok(())
    }

    fn keeps_until_acknowledged(&self) -> bool {
        true
    }

    async fn open_tail(&self, from: &Position, tables: Vec<TrackedTable>) -> Result<Box<dyn Tail>> {
        self.fault("open_tail")?;
        self.replayable(from).await?;
        let from = parse(from)?;
        let mut tail = ScriptedTail {
            script: self.clone(),
            at: from,
            within: 0,
            tables: HashMap::new(),
        };
        for t in tables {
            tail.track(t);
        }
        Ok(Box::new(tail))
    }

    async fn open_reader(&self, _exact: bool) -> Result<Box<dyn ChunkReader>> {
        self.fault("open_reader")?;
        let rows = VecDeque::new();
        Ok(Box::new(ScriptedReader {
            script: self.clone(),
            schema: None,
            rows,
            exact: None,
        }))
    }
}

struct Carried {
    schema: Arc<TableSchema>,
    mark: u64,
    copying: bool,
}

struct ScriptedTail {
    script: Script,
    /// Transactions delivered.
    at: u64,
    /// Changes of the next one that are in the buffer already.
    within: usize,
    tables: HashMap<TableName, Carried>,
}

impl ScriptedTail {
    /// Appends one change; those that an exact read saw are left out (INV-6).
    fn append(&self, number: u64, change: &Change, into: &mut ChangeBuffer) {
        let Some(Carried {
            schema,
            mark,
            copying,
        }) = self.tables.get(change.table())
        else {
            return;
        };
        if number <= *mark {
            return;
        }
        // The row that the key change removes may be missing while the table is copied.
        let whole = |old: &Row, new: &Row| *copying || old.big != new.big;
        match change {
            Change::Insert(_, row) => push_row(into, schema, Op::Insert, row, true),
            Change::Delete(_, row) => push_row(into, schema, Op::Delete, row, true),
            Change::Update(_, old, new) if !schema.has_key() => {
                push_row(into, schema, Op::Delete, old, true);
                push_row(into, schema, Op::Insert, new, true);
            }
            Change::Update(_, old, new) if old.id != new.id => {
                push_row(into, schema, Op::Delete, old, true);
                push_row(into, schema, Op::Insert, new, whole(old, new));
            }
            Change::Update(_, old, new) => {
                push_row(into, schema, Op::Update, new, old.big != new.big);
            }
            Change::Truncate(_) => {
                let slot = into.slot(schema);
                into.row(slot, Op::Truncate).finish();
            }
            Change::Rewrite(_) | Change::Drop(_) | Change::Create(_) => {}
        }
    }

    /// What a change of the schema makes the tail say.
    fn schema_change(&mut self, number: u64, change: &Change) -> Option<TailEvent> {
        let table = change.table().clone();
        let carried = self.tables.get(&table).is_some_and(|t| number > t.mark);
        match change {
            Change::Create(_) => Some(TailEvent::Catalog),
            Change::Rewrite(_) if carried => {
                self.tables.remove(&table);
                let reason = "its rows were rewritten".to_owned();
                Some(TailEvent::Recopy { table, reason })
            }
            Change::Drop(_) if carried => {
                self.tables.remove(&table);
                Some(TailEvent::Ended { table })
            }
            _ => None,
        }
    }
}

#[async_trait]
impl Tail for ScriptedTail {
    async fn next(&mut self, into: &mut ChangeBuffer) -> Result<TailEvent> {
        self.script.fault("tail_next")?;
        let next = self.script.db().log.get(self.at as usize).cloned();
        let Some(changes) = next else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Ok(TailEvent::Heartbeat {
                position: position(self.at),
            });
        };
        let number = self.at + 1;
        if self.within == 0 {
            into.begin(TransactionMeta {
                committed_at_us: number as i64,
                position: number.to_string().into(),
            });
        }
        while let Some(change) = changes.get(self.within) {
            if into.is_full() {
                return Ok(TailEvent::Full);
            }
            self.append(number, change, into);
            self.within += 1;
            if let Some(event) = self.schema_change(number, change) {
                return Ok(event);
            }
        }
        self.at = number;
        self.within = 0;
        Ok(TailEvent::Commit {
            position: position(number),
            committed_at_us: number as i64,
            log_bytes: 1,
        })
    }

    fn acknowledge(&mut self, through: &Position) {
        if let Ok(n) = parse(through) {
            let mut db = self.script.db();
            db.acknowledged = db.acknowledged.max(n);
        }
    }

    fn track(&mut self, table: TrackedTable) {
        let mark = table.mark.and_then(|m| m.parse().ok()).unwrap_or(0);
        let TrackedTable {
            schema, copying, ..
        } = table;
        self.tables.insert(
            schema.table.clone(),
            Carried {
                schema,
                mark,
                copying,
            },
        );
    }

    fn live(&mut self, table: &TableName) {
        if let Some(t) = self.tables.get_mut(table) {
            t.copying = false;
        }
    }

    fn untrack(&mut self, table: &TableName) {
        self.tables.remove(table);
    }

    fn staged_bytes(&self) -> usize {
        0
    }

    fn in_transaction(&self) -> bool {
        self.within > 0
    }
}

struct ScriptedReader {
    script: Script,
    schema: Option<Arc<TableSchema>>,
    rows: VecDeque<Row>,
    exact: Option<Vec<Row>>,
}

fn bound(b: &Option<caudal_model::ChunkBound>) -> Option<i64> {
    b.as_ref()
        .and_then(|b| b.first())
        .and_then(|b| b.parse().ok())
}

impl ScriptedReader {
    fn visible_rows(&self, table: &TableName) -> Result<Vec<Row>> {
        let db = self.script.db();
        let rows = db.state_at(db.visible).remove(table);
        rows.ok_or_else(|| Error::drift(table, "it does not exist any more"))
    }
}

#[async_trait]
impl ChunkReader for ScriptedReader {
    async fn await_visible(&mut self, _table: &TableName, base: &Position) -> Result<()> {
        self.script.fault("await_visible")?;
        let base = parse(base)?;
        let mut db = self.script.db();
        db.visible = db.visible.max(base);
        Ok(())
    }

    async fn open_exact(&mut self, schema: &Arc<TableSchema>, base: &Position) -> Result<Mark> {
        self.await_visible(&schema.table, base).await?;
        self.exact = Some(self.visible_rows(&schema.table)?);
        Ok(self.script.db().visible.to_string())
    }

    async fn plan(
        &mut self,
        schema: &Arc<TableSchema>,
        after: Option<&Chunk>,
        rows: u64,
    ) -> Result<Option<Chunk>> {
        self.script.fault("plan")?;
        let id = after.map_or(1, |c| c.id + 1);
        if !schema.has_key() {
            return Ok(after.is_none().then_some(Chunk {
                id,
                after: None,
                through: None,
            }));
        }
        let lower = after.and_then(|c| c.through.clone());
        let floor = bound(&lower);
        let size = rows.max(1) as usize;
        let visible = self.visible_rows(&schema.table)?;
        let mut keys = visible
            .iter()
            .map(|r| r.id)
            .filter(|id| floor.is_none_or(|f| *id > f));
        let through = keys.nth(size - 1).map(|k| vec![k.to_string()]);
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
        _only: Option<&caudal_model::Filter>,
    ) -> Result<()> {
        self.script.fault("start")?;
        self.schema = Some(schema.clone());
        let rows = match (schema.has_key(), self.exact.take()) {
            (true, _) => self.visible_rows(&schema.table)?,
            (false, Some(rows)) => rows,
            (false, None) => return Err(Error::bug("a chunk without its exact read")),
        };
        let (lower, upper) = (bound(&chunk.after), bound(&chunk.through));
        self.rows = rows
            .into_iter()
            .filter(|r| {
                !schema.has_key()
                    || (lower.is_none_or(|l| r.id > l) && upper.is_none_or(|u| r.id <= u))
            })
            .collect();
        Ok(())
    }

    async fn next(&mut self, into: &mut ChangeBuffer) -> Result<ChunkEvent> {
        self.script.fault("chunk_next")?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let Some(schema) = self.schema.clone() else {
            return Err(Error::bug("no chunk was started"));
        };
        while let Some(row) = self.rows.front() {
            if into.is_full() {
                return Ok(ChunkEvent::Full);
            }
            push_row(into, &schema, Op::Snapshot, row, true);
            self.rows.pop_front();
        }
        Ok(ChunkEvent::Done)
    }
}
