//! Rows and events as text, read from a source through its tail or its chunks.

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use caudal_model::{ChangeBuffer, Position, TableBatch, TableName, TableSchema, TransactionMeta};
use caudal_sources::{
    ChunkEvent, ChunkReader, DiscoveredTable, Source, Tail, TailEvent, TrackedTable,
};
use std::sync::Arc;
use std::time::Duration;

/// How long an event may take; only a tail that stands still takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The numbers that times are, alone or in lists.
fn plain(shown: &DataType) -> Option<DataType> {
    match shown {
        DataType::Timestamp(..) | DataType::Time64(_) => Some(DataType::Int64),
        DataType::Date32 => Some(DataType::Int32),
        DataType::List(item) => {
            let item = item.as_ref().clone();
            let plain = plain(item.data_type())?;
            Some(DataType::List(Arc::new(item.with_data_type(plain))))
        }
        _ => None,
    }
}

/// Each change as text: table, op, then `column=value` of the cells that are not null, then
/// the unchanged columns.
pub fn show(batches: &[TableBatch]) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch.schema.columns.len();
        let format = FormatOptions::default();
        // Times as their numbers: infinity has no calendar date.
        let plain: Vec<_> = batch
            .rows
            .columns()
            .iter()
            .map(|column| match plain(column.data_type()) {
                Some(plain) => cast(column, &plain).unwrap(),
                None => column.clone(),
            })
            .collect();
        let text = |i: usize| ArrayFormatter::try_new(&plain[i], &format).unwrap();
        let cells: Vec<_> = (0..columns).map(text).collect();
        let (op, unchanged) = (text(columns), text(columns + 4));
        let order = batch.rows.column(columns + 1).as_primitive::<Int64Type>();
        for row in 0..batch.rows.num_rows() {
            let mut line = format!("{}:{}", batch.schema.table.name, op.value(row));
            for (i, cell) in cells.iter().enumerate() {
                if batch.rows.column(i).is_valid(row) {
                    let name = &batch.schema.columns[i].name;
                    line += &format!(" {name}={}", cell.value(row));
                }
            }
            if batch.rows.column(columns + 4).is_valid(row) {
                line += &format!(" unchanged={}", unchanged.value(row));
            }
            rows.push((order.value(row), line));
        }
    }
    rows.sort_by_key(|row| row.0);
    rows.into_iter().map(|row| row.1).collect()
}

/// What a tail gave.
pub struct Log {
    /// The changes in their order.
    pub rows: Vec<String>,
    /// The events in their order: `commit`, `full`, `schema <table> v<version>`, `failed …`.
    pub events: Vec<String>,
    /// The versions that it told of.
    pub schemas: Vec<Arc<TableSchema>>,
    /// Where the tail stands.
    pub reached: Position,
}

impl Log {
    /// The events that a stream does not have all day.
    pub fn notable(&self) -> Vec<&str> {
        let everyday = |e: &&str| *e != "commit" && *e != "full";
        self.events
            .iter()
            .map(String::as_str)
            .filter(everyday)
            .collect()
    }
}

/// The tail's next event.
pub async fn next(tail: &mut dyn Tail, into: &mut ChangeBuffer) -> TailEvent {
    tokio::time::timeout(PATIENCE, tail.next(into))
        .await
        .expect("the tail goes on")
        .unwrap()
}

/// Reads everything that is committed now, through a buffer of `limit` bytes.
pub async fn drain(source: &dyn Source, tail: &mut dyn Tail, limit: usize) -> Log {
    let target = source.current_position().await.unwrap();
    drain_to(source, tail, limit, &target).await
}

/// Reads until the tail covers `target`.
pub async fn drain_to(
    source: &dyn Source,
    tail: &mut dyn Tail,
    limit: usize,
    target: &Position,
) -> Log {
    let mut into = ChangeBuffer::new(1, limit);
    let mut rows = Vec::new();
    let mut events = Vec::new();
    let mut schemas = Vec::new();
    let mut reached = None;
    let started = std::time::Instant::now();
    loop {
        assert!(
            started.elapsed() < PATIENCE,
            "{target} is not reached: {rows:?} {events:?}"
        );
        match next(tail, &mut into).await {
            TailEvent::Commit { position, .. } => {
                events.push("commit".to_owned());
                reached = Some(position);
            }
            TailEvent::Heartbeat { position } => reached = Some(position),
            TailEvent::Schema(s) => {
                events.push(format!("schema {} v{}", s.table, s.version));
                schemas.push(s);
            }
            TailEvent::TableFailed { table, error } => {
                let hint = error.hint_text().unwrap_or("");
                events.push(format!("failed {table}: {error} [{hint}]"));
            }
            TailEvent::Recopy { table, reason } => events.push(format!("recopy {table}: {reason}")),
            TailEvent::Ended { table } => events.push(format!("ended {table}")),
            TailEvent::Catalog => events.push("catalog".to_owned()),
            TailEvent::Full => {
                events.push("full".to_owned());
                rows.extend(show(&into.take().unwrap()));
            }
        }
        if let Some(at) = &reached
            && source.covers(at, target).unwrap()
            && !tail.in_transaction()
        {
            break;
        }
    }
    rows.extend(show(&into.take().unwrap()));
    Log {
        rows,
        events,
        schemas,
        reached: reached.unwrap(),
    }
}

/// The selected tables as a stream first tracks them, in order of their names.
pub async fn tracked(source: &dyn Source) -> Vec<TrackedTable> {
    let mut tables = Vec::new();
    for found in source.discover().await.unwrap() {
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        tables.push(track(found));
    }
    tables
}

/// A table as a stream tracks it that has copied it.
pub fn track(found: DiscoveredTable) -> TrackedTable {
    let next_column_id = found.columns.len() as i32 + 1;
    let mut schema = TableSchema::first(found.table, 1, found.columns, found.key);
    schema.source_id = found.source_id;
    TrackedTable {
        schema: Arc::new(schema),
        next_column_id,
        mark: None,
        copying: false,
    }
}

/// The tables, and a tail from the position where a stream begins.
pub async fn start(source: &dyn Source) -> (Vec<TrackedTable>, Box<dyn Tail>) {
    let tables = tracked(source).await;
    let names: Vec<TableName> = tables.iter().map(|t| t.schema.table.clone()).collect();
    let from = source.prepare(&names).await.unwrap();
    let tail = source.open_tail(&from, tables.clone()).await.unwrap();
    (tables, tail)
}

/// A copy of a table in chunks of three rows and their number, through a buffer of `limit` bytes.
pub async fn copy(
    source: &dyn Source,
    schema: &Arc<TableSchema>,
    base: &Position,
    limit: usize,
) -> (Vec<String>, u32) {
    copy_in(3, source, schema, base, limit).await
}

/// The same in chunks of `chunk_rows`.
pub async fn copy_in(
    chunk_rows: u64,
    source: &dyn Source,
    schema: &Arc<TableSchema>,
    base: &Position,
    limit: usize,
) -> (Vec<String>, u32) {
    let mut reader = source.open_reader(true).await.unwrap();
    reader.await_visible(&schema.table, base).await.unwrap();
    if !schema.has_key() {
        reader.open_exact(schema, base).await.unwrap();
    }
    copy_rest(&mut *reader, schema, limit, chunk_rows).await
}

/// The copy of a reader that is ready for it.
pub async fn copy_rest(
    reader: &mut dyn ChunkReader,
    schema: &Arc<TableSchema>,
    limit: usize,
    chunk_rows: u64,
) -> (Vec<String>, u32) {
    let mut rows = Vec::new();
    let mut last = None;
    let mut chunks = 0;
    while let Some(chunk) = reader
        .plan(schema, last.as_ref(), chunk_rows)
        .await
        .unwrap()
    {
        chunks += 1;
        let mut into = ChangeBuffer::for_snapshot(1, limit);
        into.begin(TransactionMeta {
            committed_at_us: 0,
            position: "x".into(),
        });
        reader.start(schema, &chunk, None).await.unwrap();
        loop {
            let event = reader.next(&mut into).await.unwrap();
            rows.extend(show(&into.take().unwrap()));
            if matches!(event, ChunkEvent::Done) {
                break;
            }
        }
        last = Some(chunk);
    }
    (rows, chunks)
}

/// Fails unless a copy's rows are those that the log had as inserts, in the same order.
pub fn expect_same(logged: &[String], copied: &[String]) {
    assert_eq!(logged.len(), copied.len());
    for (log, copy) in logged.iter().zip(copied) {
        let log = log.replacen(":c ", ":r ", 1);
        // Word by word, because a row of all types is too long to be compared by eye.
        for (a, b) in log.split(' ').zip(copy.split(' ')) {
            assert_eq!(a, b, "of the log and of the copy");
        }
        assert_eq!(&log, copy);
    }
}
