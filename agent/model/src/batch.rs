//! Rows under construction, table by table.
//!
//! A [`ChangeBuffer`] is what a tail and a chunk reader append to. It numbers rows
//! (`_seq`), knows the transaction that they belong to, and counts its bytes, so
//! that the reader can stop when it is full (INV-9). A row that is dropped before
//! [`RowWriter::finish`] leaves no trace, so a decoder can leave by `?` anywhere.

use crate::rules::{BoundRules, Rules};
use crate::schema::TableSchema;
use crate::{ColumnBuilder, Error, Op, Result, TableName, TransactionMeta};
use arrow::array::{
    ArrayRef, AsArray, DictionaryArray, Int8Array, Int32Array, Int64Array, ListArray, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use std::collections::HashMap;
use std::sync::Arc;

/// A table's place in a [`ChangeBuffer`]; valid for that buffer only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(u32);

/// Finished rows of one schema version of one table.
#[derive(Debug, Clone)]
pub struct TableBatch {
    /// The version that the rows were built with.
    pub schema: Arc<TableSchema>,
    /// The table's columns, then the meta columns, as [`TableSchema::arrow_changes`] says.
    pub rows: RecordBatch,
    /// The least `_seq`.
    pub first_seq: i64,
    /// The greatest `_seq`.
    pub last_seq: i64,
}

impl TableBatch {
    /// The rows of a staged transaction, once it has committed: `_seq` moves by
    /// `seq_offset`, and every row gets the commit's time and position.
    pub fn rebase(self, seq_offset: i64, meta: &TransactionMeta) -> Result<TableBatch> {
        let n = self.schema.columns.len();
        let rows = self.rows.num_rows();
        let mut columns = self.rows.columns().to_vec();
        let seq = columns[n + 1].as_primitive::<Int64Type>();
        columns[n + 1] = Arc::new(seq.unary::<_, Int64Type>(|v| v + seq_offset));
        columns[n + 2] = committed_at_array(vec![meta.committed_at_us; rows]);
        columns[n + 3] = position_array(vec![0; rows], std::slice::from_ref(&meta.position))?;
        let rows = RecordBatch::try_new(self.rows.schema(), columns)
            .map_err(|e| Error::bug("staged rows do not fit their schema").caused_by(e))?;
        Ok(TableBatch {
            rows,
            first_seq: self.first_seq + seq_offset,
            last_seq: self.last_seq + seq_offset,
            schema: self.schema,
        })
    }

    /// Bytes of memory that the rows hold.
    pub fn bytes(&self) -> usize {
        self.rows.get_array_memory_size()
    }
}

fn committed_at_array(values: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::new(ScalarBuffer::from(values), None).with_timezone("UTC"))
}

fn position_array(keys: Vec<i32>, positions: &[Arc<str>]) -> Result<ArrayRef> {
    let values = StringArray::from_iter_values(positions.iter().map(|p| &**p));
    let array = DictionaryArray::try_new(Int32Array::from(keys), Arc::new(values))
        .map_err(|e| Error::bug("positions out of range").caused_by(e))?;
    Ok(Arc::new(array))
}

#[derive(Debug)]
struct TableBuffer {
    schema: Arc<TableSchema>,
    arrow: Arc<Schema>,
    columns: Vec<ColumnBuilder>,
    ops: Vec<i8>,
    seqs: Vec<i64>,
    /// Index into `ChangeBuffer::transactions`, a row.
    transactions: Vec<u32>,
    /// (row, column), in the order of rows.
    unchanged: Vec<(u32, u16)>,
    ready: Vec<TableBatch>,
    rules: Option<BoundRules>,
    /// Bytes counted so far for the open rows.
    bytes: usize,
}

impl TableBuffer {
    fn seal(&mut self, transactions: &[TransactionMeta]) -> Result<()> {
        let rows = self.ops.len();
        if rows == 0 {
            return Ok(());
        }
        let mut arrays: Vec<ArrayRef> =
            self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        let codes = StringArray::from_iter_values(Op::ALL.iter().map(|o| o.code()));
        let ops = DictionaryArray::try_new(
            Int8Array::from(std::mem::take(&mut self.ops)),
            Arc::new(codes),
        );
        arrays.push(Arc::new(
            ops.map_err(|e| Error::bug("operation out of range").caused_by(e))?,
        ));
        let seqs = std::mem::take(&mut self.seqs);
        let (first_seq, last_seq) = seqs
            .iter()
            .fold((i64::MAX, i64::MIN), |(a, b), s| (a.min(*s), b.max(*s)));
        arrays.push(Arc::new(Int64Array::from(seqs)));

        // One dictionary entry a transaction of this batch, not of the whole buffer.
        let mut local: Vec<Arc<str>> = Vec::new();
        let mut last = None;
        let mut keys = Vec::with_capacity(rows);
        let mut times = Vec::with_capacity(rows);
        for t in std::mem::take(&mut self.transactions) {
            let meta = &transactions[t as usize];
            if last != Some(t) {
                local.push(meta.position.clone());
                last = Some(t);
            }
            keys.push(local.len() as i32 - 1);
            times.push(meta.committed_at_us);
        }
        arrays.push(committed_at_array(times));
        arrays.push(position_array(keys, &local)?);
        arrays.push(Arc::new(self.unchanged_array(rows)));
        self.unchanged.clear();
        self.bytes = 0;
        let rows = RecordBatch::try_new(self.arrow.clone(), arrays)
            .map_err(|e| Error::bug("rows do not fit their schema").caused_by(e))?;
        self.ready.push(TableBatch {
            schema: self.schema.clone(),
            rows,
            first_seq,
            last_seq,
        });
        Ok(())
    }

    fn unchanged_array(&self, rows: usize) -> ListArray {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        let mut valid = vec![false; rows];
        let mut at = 0;
        for (row, valid) in valid.iter_mut().enumerate() {
            while self
                .unchanged
                .get(at)
                .is_some_and(|(r, _)| *r as usize == row)
            {
                at += 1;
                *valid = true;
            }
            offsets.push(at as i32);
        }
        let names = self
            .unchanged
            .iter()
            .map(|(_, c)| &*self.schema.columns[*c as usize].name);
        ListArray::new(
            Arc::new(Field::new("element", DataType::Utf8, true)),
            OffsetBuffer::new(ScalarBuffer::from(offsets)),
            Arc::new(StringArray::from_iter_values(names)),
            Some(NullBuffer::from(valid)),
        )
    }

    fn truncate(&mut self, rows: usize) {
        for c in &mut self.columns {
            c.truncate(rows);
        }
        self.ops.truncate(rows);
        self.seqs.truncate(rows);
        self.transactions.truncate(rows);
        while self
            .unchanged
            .last()
            .is_some_and(|(r, _)| *r as usize >= rows)
        {
            self.unchanged.pop();
        }
    }
}

/// Rows of any number of tables, numbered in the order in which they are appended.
#[derive(Debug)]
pub struct ChangeBuffer {
    tables: Vec<TableBuffer>,
    slots: HashMap<(TableName, u32), Slot>,
    transactions: Vec<TransactionMeta>,
    next_seq: i64,
    bytes: usize,
    limit: usize,
    fixed_seq: bool,
    rules: Arc<Rules>,
}

/// The memory that a row holds besides its cells.
const ROW_OVERHEAD: usize = 13;

impl ChangeBuffer {
    /// A buffer whose first row gets `next_seq`, full at `limit` bytes.
    pub fn new(next_seq: i64, limit: usize) -> Self {
        ChangeBuffer {
            tables: Vec::new(),
            slots: HashMap::new(),
            transactions: Vec::new(),
            next_seq,
            bytes: 0,
            limit,
            fixed_seq: false,
            rules: Arc::default(),
        }
    }

    /// Applies these rules to every row. They must have passed [`Rules::check`] for every
    /// schema version that comes: of a table whose rules do not fit, no row is kept.
    pub fn with_rules(mut self, rules: Arc<Rules>) -> Self {
        self.rules = rules;
        self
    }

    /// A buffer for snapshot rows, which all get `base_seq`.
    pub fn for_snapshot(base_seq: i64, limit: usize) -> Self {
        ChangeBuffer {
            fixed_seq: true,
            ..Self::new(base_seq, limit)
        }
    }

    /// The table's place; the same schema version always has the same one.
    pub fn slot(&mut self, schema: &Arc<TableSchema>) -> Slot {
        let key = (schema.table.clone(), schema.version);
        *self.slots.entry(key).or_insert_with(|| {
            self.tables.push(TableBuffer {
                schema: schema.clone(),
                arrow: schema.arrow_changes(),
                columns: schema
                    .columns
                    .iter()
                    .map(|c| ColumnBuilder::new(&c.lake_type))
                    .collect(),
                ops: Vec::new(),
                seqs: Vec::new(),
                transactions: Vec::new(),
                unchanged: Vec::new(),
                ready: Vec::new(),
                rules: self
                    .rules
                    .bind(schema)
                    .unwrap_or_else(|_| Some(BoundRules::nothing())),
                bytes: 0,
            });
            Slot(self.tables.len() as u32 - 1)
        })
    }

    /// The schema version that a slot stands for.
    pub fn schema(&self, slot: Slot) -> &Arc<TableSchema> {
        &self.tables[slot.0 as usize].schema
    }

    /// Whether `slot` is this buffer's place for exactly this schema version, so that a
    /// decoder may keep it from call to call.
    #[inline]
    pub fn is_slot_of(&self, slot: Slot, schema: &Arc<TableSchema>) -> bool {
        self.tables
            .get(slot.0 as usize)
            .is_some_and(|t| Arc::ptr_eq(&t.schema, schema))
    }

    /// The rows that follow belong to this transaction (or snapshot read).
    pub fn begin(&mut self, meta: TransactionMeta) {
        self.transactions.push(meta);
    }

    /// Starts a row; its cells are appended in any order, and those that are not become null.
    ///
    /// # Panics
    /// If no transaction was begun: a bug of the caller.
    #[inline]
    pub fn row(&mut self, slot: Slot, op: Op) -> RowWriter<'_> {
        assert!(!self.transactions.is_empty(), "a row outside a transaction");
        let table = &mut self.tables[slot.0 as usize];
        let index = table.ops.len();
        table.ops.push(op as i8);
        table.seqs.push(self.next_seq);
        table.transactions.push(self.transactions.len() as u32 - 1);
        RowWriter {
            table,
            next_seq: &mut self.next_seq,
            total: &mut self.bytes,
            index,
            cell_bytes: 0,
            fixed_seq: self.fixed_seq,
            done: false,
        }
    }

    /// Adds finished rows, already numbered; rows appended so far to the table come first.
    ///
    /// Used for staged transactions: the caller takes the numbers by [`Self::reserve`].
    pub fn adopt(&mut self, batch: TableBatch) -> Result<()> {
        let slot = self.slot(&batch.schema);
        let table = &mut self.tables[slot.0 as usize];
        let open = table.bytes;
        table.seal(&self.transactions)?;
        let sealed = if open > 0 {
            table.ready.last().map_or(0, TableBatch::bytes)
        } else {
            0
        };
        self.bytes = (self.bytes + sealed + batch.bytes()).saturating_sub(open);
        table.ready.push(batch);
        Ok(())
    }

    /// Takes `count` numbers, and returns the first.
    pub fn reserve(&mut self, count: i64) -> i64 {
        let first = self.next_seq;
        self.next_seq += count;
        first
    }

    /// The number that the next row gets.
    pub fn next_seq(&self) -> i64 {
        self.next_seq
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the reader should stop and have the buffer flushed.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.limit
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.tables
            .iter()
            .all(|t| t.ops.is_empty() && t.ready.is_empty())
    }

    /// Drops the rows that are still held of one table, e.g. when it becomes `errored`.
    pub fn discard(&mut self, table: &TableName) {
        for t in self.tables.iter_mut().filter(|t| &t.schema.table == table) {
            let held = t.bytes + t.ready.iter().map(TableBatch::bytes).sum::<usize>();
            t.truncate(0);
            t.ready.clear();
            t.bytes = 0;
            self.bytes = self.bytes.saturating_sub(held);
        }
    }

    /// Takes the rows out, batches of one table in the order of `_seq`; slots stay valid,
    /// and so does the transaction begun last.
    pub fn take(&mut self) -> Result<Vec<TableBatch>> {
        let mut out = Vec::new();
        for t in &mut self.tables {
            t.seal(&self.transactions)?;
            out.append(&mut t.ready);
        }
        if self.transactions.len() > 1 {
            self.transactions.drain(..self.transactions.len() - 1);
        }
        self.bytes = 0;
        Ok(out)
    }
}

/// One row under construction; dropped without [`RowWriter::finish`], it never was.
#[derive(Debug)]
pub struct RowWriter<'a> {
    table: &'a mut TableBuffer,
    next_seq: &'a mut i64,
    total: &'a mut usize,
    index: usize,
    cell_bytes: usize,
    fixed_seq: bool,
    done: bool,
}

impl RowWriter<'_> {
    /// The builder of a column, to append exactly one cell to.
    #[inline]
    pub fn column(&mut self, index: usize) -> &mut ColumnBuilder {
        &mut self.table.columns[index]
    }

    /// The schema version of the row.
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.table.schema
    }

    /// Counts the bytes of a cell that is not of a fixed width.
    #[inline]
    pub fn count(&mut self, bytes: usize) {
        self.cell_bytes += bytes;
    }

    /// The source did not send this column because it did not change: null, and named in `_unchanged`.
    pub fn unchanged(&mut self, index: usize) {
        self.table.columns[index].push_null();
        self.table.unchanged.push((self.index as u32, index as u16));
    }

    /// Ends the row, and returns its `_seq`.
    ///
    /// # Panics
    /// If a column got two cells: a bug of the decoder.
    #[inline]
    pub fn finish(mut self) -> i64 {
        let rows = self.index + 1;
        let mut bytes = ROW_OVERHEAD + self.cell_bytes;
        for c in &mut self.table.columns {
            if c.len() < rows {
                c.push_null();
            }
            assert!(
                c.len() == rows,
                "two cells in one column of {}",
                self.table.schema.table
            );
            bytes += 8;
        }
        if self.table.rules.is_some() && !self.apply_rules() {
            return *self.next_seq;
        }
        self.done = true;
        self.table.bytes += bytes;
        *self.total += bytes;
        let seq = *self.next_seq;
        if !self.fixed_seq {
            *self.next_seq += 1;
        }
        seq
    }
}

impl RowWriter<'_> {
    /// Applies the table's rules to the row; false: it is not carried.
    fn apply_rules(&mut self) -> bool {
        let table = &mut *self.table;
        let Some(rules) = &table.rules else {
            return true;
        };
        let op = Op::ALL[table.ops[self.index] as usize];
        if op == Op::Truncate {
            return true;
        }
        // A delete may carry no more than the key, and deleting what is not there does no harm;
        // without a key it carries the whole row.
        let told = op != Op::Delete || rules.key.is_empty();
        if let Some(filter) = &rules.filter
            && told
            && !filter.carries(&table.columns)
        {
            if op != Op::Update {
                return false;
            }
            // It may have been carried before: it leaves the lake, and shows no more than its key.
            table.ops[self.index] = Op::Delete as i8;
            let row = self.index as u32;
            while table.unchanged.last().is_some_and(|(r, _)| *r == row) {
                table.unchanged.pop();
            }
            for (at, column) in table.columns.iter_mut().enumerate() {
                if !rules.key.contains(&at) {
                    column.truncate(self.index);
                    column.push_null();
                }
            }
        }
        rules.hash(&mut table.columns);
        true
    }
}

impl Drop for RowWriter<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.table.truncate(self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LakeType;
    use crate::schema::ColumnSpec;
    use arrow::array::Array;

    fn schema() -> Arc<TableSchema> {
        let spec = |name: &str, lake_type: LakeType| {
            ColumnSpec::new(name, lake_type.to_string(), lake_type)
        };
        Arc::new(TableSchema::first(
            TableName::new("s", "t"),
            1,
            vec![spec("id", LakeType::Int32), spec("v", LakeType::Utf8)],
            vec!["id".into()],
        ))
    }

    fn meta(position: &str) -> TransactionMeta {
        TransactionMeta {
            committed_at_us: 7,
            position: position.into(),
        }
    }

    fn insert(b: &mut ChangeBuffer, slot: Slot, id: i32, v: &str) -> i64 {
        let mut r = b.row(slot, Op::Insert);
        if let ColumnBuilder::Int32(c) = r.column(0) {
            c.push(id)
        }
        if let ColumnBuilder::Utf8(c) = r.column(1) {
            c.push(v.as_bytes())
        }
        r.finish()
    }

    #[test]
    fn an_unfinished_row_leaves_no_trace_and_no_number() {
        let mut b = ChangeBuffer::new(10, 1 << 20);
        let slot = b.slot(&schema());
        b.begin(meta("p1"));
        assert_eq!(insert(&mut b, slot, 1, "a"), 10);
        {
            let mut r = b.row(slot, Op::Update);
            r.unchanged(1);
        }
        let mut r = b.row(slot, Op::Update);
        if let ColumnBuilder::Int32(c) = r.column(0) {
            c.push(2)
        }
        r.unchanged(1);
        assert_eq!(r.finish(), 11);
        let batches = b.take().unwrap();
        assert_eq!(batches.len(), 1);
        let rows = &batches[0].rows;
        assert_eq!(rows.num_rows(), 2);
        assert_eq!((batches[0].first_seq, batches[0].last_seq), (10, 11));
        let unchanged = rows.column(6).as_list::<i32>();
        assert!(unchanged.is_null(0));
        assert_eq!(unchanged.value(1).as_string::<i32>().value(0), "v");
        assert!(b.is_empty() && b.bytes() == 0);
        // The transaction goes on after a flush.
        assert_eq!(insert(&mut b, slot, 3, "c"), 12);
    }

    #[test]
    fn adopted_rows_follow_the_open_ones_and_get_the_commit() {
        let mut staged = ChangeBuffer::new(0, 1 << 20);
        let s = staged.slot(&schema());
        staged.begin(meta(""));
        insert(&mut staged, s, 8, "x");
        insert(&mut staged, s, 9, "y");
        let mut b = ChangeBuffer::new(100, 1 << 20);
        let slot = b.slot(&schema());
        b.begin(meta("p1"));
        insert(&mut b, slot, 1, "a");
        let first = b.reserve(2);
        for t in staged.take().unwrap() {
            b.adopt(t.rebase(first, &meta("p2")).unwrap()).unwrap();
        }
        let out = b.take().unwrap();
        assert_eq!(
            out.iter()
                .map(|t| (t.first_seq, t.last_seq))
                .collect::<Vec<_>>(),
            [(100, 100), (101, 102)]
        );
        let positions = out[1].rows.column(5).as_any_dictionary();
        assert_eq!(positions.values().as_string::<i32>().value(0), "p2");
    }

    #[test]
    fn snapshot_rows_share_their_seq() {
        let mut b = ChangeBuffer::for_snapshot(5, 1 << 20);
        let slot = b.slot(&schema());
        b.begin(meta("p"));
        assert_eq!(
            (insert(&mut b, slot, 1, "a"), insert(&mut b, slot, 2, "b")),
            (5, 5)
        );
        assert_eq!(b.next_seq(), 5);
    }
}
