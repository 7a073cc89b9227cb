//! Table maps joined with the stream's tables, and rows events into their builders.

use super::{Data, MysqlTail, Step, bytes_of};
use crate::mysql::decode::events::{self, HEADER, changes_rows, kind};
use crate::mysql::decode::rows::{
    self, CellError, Image, Misfit, Missing, PlanOptions, Present, RowsHeader, TablePlan,
};
use crate::mysql::decode::table_map::{self, Collations, TableMap};
use crate::mysql::decode::values::Coerced;
use crate::mysql::decode::{DecodeError, Input};
use crate::mysql::wire::packet_limit;
use caudal_model::schema::OlderRows;
use caudal_model::{
    ChangeBuffer, Error, Op, Result, Slot, TableName, TableSchema, TransactionMeta,
};
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// A rows event that is being read.
pub(super) struct RowsInProgress {
    /// The table's schema and how its images are read.
    pub(super) plan: Arc<(Arc<TableSchema>, TablePlan)>,
    pub(super) op: Op,
    pub(super) data: Data,
    pub(super) at: usize,
    pub(super) before: Present,
    pub(super) after: Present,
    /// Json may stand as steps in the image after.
    pub(super) partial: bool,
    /// The lake may not hold the row that a key change removes.
    pub(super) copying: bool,
    /// What cells of an insert hold that its image does not have.
    pub(super) defaults: Arc<[OlderRows]>,
}

/// Where the rows of an event begin, and the rows themselves if they were compressed.
pub(super) struct RowsStart {
    pub(super) plan: Arc<(Arc<TableSchema>, TablePlan)>,
    pub(super) op: Op,
    pub(super) at: usize,
    pub(super) before: Present,
    pub(super) after: Present,
    /// Json may stand as steps in the image after.
    pub(super) partial: bool,
    /// The lake may not hold the row that a key change removes.
    pub(super) copying: bool,
    /// What cells of an insert hold that its image does not have.
    pub(super) defaults: Arc<[OlderRows]>,
    pub(super) unpacked: Option<Vec<u8>>,
}

pub(super) enum Planned {
    Ready(Arc<(Arc<TableSchema>, TablePlan)>),
    /// Not of the stream, or failed.
    Ignored,
}

impl MysqlTail {
    pub(super) fn table_map(&mut self, body: &[u8]) -> Result<Step> {
        // Every statement repeats the map; within a file the same id means the same table.
        let id = Input(body).uint(6)?;
        if let Entry::Vacant(unknown) = self.maps.entry(id) {
            unknown.insert(Arc::new(table_map::table_map(body, self.server.flavor)?));
            self.plans.remove(&id);
        }
        if self.plans.contains_key(&id) {
            Ok(Step::Next)
        } else {
            self.plan(id)
        }
    }

    /// Joins the table map with what the stream carries of the table.
    pub(super) fn plan(&mut self, id: u64) -> Result<Step> {
        let Some(map) = self.maps.get(&id).cloned() else {
            return Err(DecodeError::Malformed("rows of a table that was not announced").into());
        };
        let table = TableName::new(map.database.clone(), map.table.clone());
        let Some(tracked) = self.tracked.get(&table) else {
            self.plans.insert(id, Planned::Ignored);
            return Ok(Step::Next);
        };
        // Names that fit may belong to other columns by now.
        // And a table that came later has not been described.
        if tracked.assumed.is_none() || self.has_changed_columns(&table) {
            return Ok(Step::Describe(map));
        }
        match self.join(&map, &table, &tracked.schema) {
            Ok(plan) => {
                let plan = Planned::Ready(Arc::new((tracked.schema.clone(), plan)));
                self.plans.insert(id, plan);
            }
            Err(Misfit::Changed(_)) => return Ok(Step::Describe(map)),
            Err(Misfit::Charset(name)) => return Ok(Step::Charset(name)),
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

    pub(super) fn join(
        &self,
        map: &TableMap,
        table: &TableName,
        schema: &TableSchema,
    ) -> Result<TablePlan, Misfit> {
        let own = self.server.options.tables.get(table);
        let excluded = own.map_or(&[][..], |o| &o.exclude_columns);
        let tracked = self.tracked.get(table);
        let promoted = schema.key.is_empty() && tracked.is_some_and(|t| t.no_primary_key);
        let own_key = promoted || own.is_some_and(|o| o.key.is_some());
        let options = PlanOptions {
            excluded,
            own_key,
            flavor: self.server.flavor,
            collations: Collations {
                names: &self.charsets,
                tables: &self.server.charsets,
            },
            value_bytes: self.server.options.value_bytes,
        };
        TablePlan::new(map, schema, options)
    }

    pub(super) fn rows(&mut self, event_type: u8, body: &[u8]) -> Result<Step> {
        let compressed = event_type >= kind::MARIA_WRITE_ROWS_COMPRESSED_V1;
        let (v2, _) = shape(event_type);
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
            && let step @ (Step::Describe(_) | Step::Charset(_)) = self.plan(id)?
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
        let tracked = self.tracked.get(table);
        let copying = tracked.is_some_and(|t| t.copying);
        let mark = tracked.and_then(|t| t.mark.as_ref());
        if mark.is_some_and(|m| transaction.identity.covered_by(m)) {
            return Ok(Step::Next);
        }
        let own = self.server.options.tables.get(table);
        let whole = own.is_some_and(|o| o.filter_needs_whole_rows(&plan.0.key));
        let computed = tracked.map_or(&[][..], |t| &t.virtual_columns);
        if let Some(why) = unusable(&plan, &h, op, whole, computed) {
            let error = Error::data(table, why).hint(format!(
                "SET GLOBAL binlog_row_image = FULL, reconnect its sessions, then run \
                 `caudal resnapshot {table}`"
            ));
            let table = table.clone();
            self.fail(&table, error);
            return Ok(Step::Next);
        }
        if !transaction.touched.contains(table) {
            transaction.touched.push(table.clone());
        }
        let defaults = match (op, &h.before) {
            (Op::Insert, Some(_)) => self.defaults(&plan.0),
            _ => Arc::default(),
        };
        let unpacked = if compressed {
            let mut rows = Vec::new();
            let packed = body.get(h.start..).unwrap_or_default();
            let bytes = events::inflated_len(packed)?;
            if bytes > packet_limit(self.server.options.value_bytes) {
                let e = DecodeError::TooLarge(bytes as u64);
                let at = self.transaction.as_ref().map(|t| t.identity.text());
                let error = value_error(e, None, table, &at.unwrap_or_default());
                let table = table.clone();
                self.fail(&table, error);
                return Ok(Step::Next);
            }
            events::inflate(packed, &mut rows)?;
            Some(rows)
        } else {
            None
        };
        Ok(Step::Rows(RowsStart {
            plan,
            op,
            at: HEADER + h.start,
            partial: event_type == kind::PARTIAL_UPDATE_ROWS,
            defaults,
            copying,
            before: h.before,
            after: h.after,
            unpacked,
        }))
    }

    /// An event with rows beyond what may be held: its table cannot go on.
    pub(super) fn oversized(&mut self, body: &[u8]) -> Result<Step> {
        let mut input = Input(body);
        let (event_type, bytes) = (input.u8()?, input.u64()?);
        let body = input.rest();
        if !changes_rows(event_type) {
            return Ok(Step::Next);
        }
        let id = Input(body).uint(6)?;
        if !self.plans.contains_key(&id)
            && let step @ (Step::Describe(_) | Step::Charset(_)) = self.plan(id)?
        {
            return Ok(step);
        }
        let (Some(Planned::Ready(plan)), Some(transaction)) =
            (self.plans.get(&id), &self.transaction)
        else {
            return Ok(Step::Next);
        };
        let joined = plan.clone();
        let (schema, plan) = &*joined;
        let mark = self
            .tracked
            .get(&schema.table)
            .and_then(|t| t.mark.as_ref());
        if mark.is_some_and(|m| transaction.identity.covered_by(m)) {
            return Ok(Step::Next);
        }
        let (v2, update) = shape(event_type);
        let compressed = event_type >= kind::MARIA_WRITE_ROWS_COMPRESSED_V1;
        let found = rows::rows_header(body, v2, update)
            .ok()
            .filter(|_| !compressed);
        let found = found.and_then(|h| rows::too_large(plan, body, &h));
        let (column, bytes) = found.map_or((None, bytes), |(c, n)| (Some(c), n));
        let column = column.and_then(|i| schema.columns.get(i));
        let column = column.map(|c| c.name.clone());
        let table = schema.table.clone();
        let at = transaction.identity.text();
        let error = value_error(DecodeError::TooLarge(bytes), column.as_deref(), &table, &at);
        self.fail(&table, error);
        Ok(Step::Next)
    }

    /// The defaults of a schema's columns.
    fn defaults(&mut self, schema: &TableSchema) -> Arc<[OlderRows]> {
        let Some(tracked) = self.tracked.get_mut(&schema.table) else {
            return Arc::default();
        };
        tracked.used_default = true;
        let of = |c: &caudal_model::Column| tracked.defaults.get(&c.name).cloned();
        let all = schema.columns.iter().map(of);
        all.map(|d| d.unwrap_or(OlderRows::Unknown)).collect()
    }

    /// Appends rows until the event ends or the buffer is full; returns whether it is full.
    pub(super) fn append_rows(&mut self, into: &mut ChangeBuffer) -> Result<bool> {
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
        let schema = &rows.plan.0;
        let (before, after) = &mut self.images;
        let mut outcome = Ok(false);
        while rows.at < event.len() {
            if into.is_full() {
                outcome = Ok(true);
                break;
            }
            let step = append_change(&rows, event, (before, after), into, slot, &mut coerced);
            match step {
                Ok(end) if end > rows.at => rows.at = end,
                Ok(_) => {
                    outcome = Err(DecodeError::Malformed("a row without columns").into());
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
            Err(CellError {
                error: e @ (DecodeError::Value(_) | DecodeError::TooLarge(_)),
                column,
            }) => {
                let table = schema.table.clone();
                let column = column.and_then(|i| schema.columns.get(i));
                let column = column.map(|c| c.name.clone());
                let error = value_error(e, column.as_deref(), &table, &transaction.identity.text());
                self.fail(&table, error);
                Ok(false)
            }
            Err(e) => Err(e.error.into()),
        }
    }
}

/// Whether a rows event has extra data before its rows, and two images a row.
fn shape(event_type: u8) -> (bool, bool) {
    let v2 = (kind::WRITE_ROWS..=kind::PARTIAL_UPDATE_ROWS).contains(&event_type)
        || event_type >= kind::MARIA_WRITE_ROWS_COMPRESSED;
    let update = matches!(
        event_type,
        kind::UPDATE_ROWS_V1
            | kind::UPDATE_ROWS
            | kind::PARTIAL_UPDATE_ROWS
            | kind::MARIA_UPDATE_ROWS_COMPRESSED_V1
            | kind::MARIA_UPDATE_ROWS_COMPRESSED
    );
    (v2, update)
}

/// The error of a value, with what mends it.
pub(in crate::mysql) fn value_error(
    e: DecodeError,
    column: Option<&str>,
    table: &TableName,
    at: &str,
) -> Error {
    let hint = match (e, column) {
        (DecodeError::TooLarge(_), _) => format!(
            "raise limits.value_bytes, or exclude the column, then run `caudal resnapshot {table}`"
        ),
        (_, Some(column)) => format!(
            "as = {{ {column} = \"string\" }} in [[tables.override]] carries any text; or exclude \
             the column or repair the value; then run `caudal resnapshot {table}`"
        ),
        _ => format!("run `caudal resnapshot {table}`"),
    };
    let error = Error::from(e).hint(hint).context(format!("at {at}"));
    match column {
        Some(column) => error.context(format!("column {column}")),
        None => error,
    }
}

/// Why the rows of an event cannot be told by the columns that they have.
fn unusable(
    plan: &(Arc<TableSchema>, TablePlan),
    h: &RowsHeader,
    op: Op,
    whole: bool,
    computed: &[String],
) -> Option<&'static str> {
    let (schema, plan) = plan;
    if h.columns != plan.width() {
        return Some("its rows in the log have another number of columns than it says");
    }
    // The image after an update is filled from that before it; what an insert leaves out is
    // the column's default.
    if !schema.has_key() && op != Op::Insert && h.before.is_some() {
        return Some("it has no key, and the log holds only part of its rows");
    }
    let key = |present: &Present| match present {
        None => true,
        Some(bits) => plan.key().iter().all(|k| bits.get(*k) == Some(&true)),
    };
    if !key(&h.before) && op != Op::Insert {
        return Some("the log holds its rows without their key");
    }
    if whole && (h.before.is_some() || h.after.is_some()) {
        return Some("its filter looks at columns that the log leaves out");
    }
    let image = if op == Op::Insert {
        &h.before
    } else {
        &h.after
    };
    if let (Some(bits), false) = (image, op == Op::Delete) {
        let left_out = |(at, has): (usize, &bool)| {
            let column = plan.column(at).and_then(|i| schema.columns.get(i));
            !has && column.is_some_and(|c| computed.contains(&c.name))
        };
        if bits.iter().enumerate().any(left_out) {
            return Some("the log leaves out a virtual column, changed or not");
        }
    }
    None
}

/// Appends one change, of one image or two, and returns where the next begins.
fn append_change(
    rows: &RowsInProgress,
    event: &[u8],
    (before, after): (&mut Image, &mut Image),
    into: &mut ChangeBuffer,
    slot: Slot,
    coerced: &mut Coerced,
) -> Result<usize, CellError> {
    let (schema, plan) = &*rows.plan;
    let end = rows::image(plan, event, rows.at, &rows.before, before)?;
    let mut put = |op: Op, image: &Image, before: Option<&Image>, missing: Missing<'_>| {
        let mut row = into.row(slot, op);
        rows::append(plan, event, image, before, missing, &mut row, coerced)?;
        row.finish();
        Ok::<_, CellError>(())
    };
    match rows.op {
        Op::Insert => {
            put(Op::Insert, before, None, Missing::Defaults(&rows.defaults))?;
            return Ok(end);
        }
        Op::Delete => {
            put(Op::Delete, before, None, Missing::Null)?;
            return Ok(end);
        }
        _ => {}
    }
    let end = if rows.partial {
        rows::partial_image(plan, event, end, &rows.after, after)?
    } else {
        rows::image(plan, event, end, &rows.after, after)?
    };
    // What did not change is left out after it, and may stand before it.
    if rows.after.is_some() {
        after.fill(before);
    }
    if schema.has_key() && rows::same_key(plan, event, before, after) {
        put(Op::Update, after, Some(before), Missing::Unchanged)?;
    } else {
        if rows.copying && schema.has_key() && after.has_gaps() {
            return Err(UNFILLED.into());
        }
        put(Op::Delete, before, None, Missing::Null)?;
        put(Op::Insert, after, Some(before), Missing::Unchanged)?;
    }
    Ok(end)
}

/// A row got another key while its table was copied, and cells that did not change were not
/// sent: neither the copy nor the log may ever hold them.
const UNFILLED: DecodeError =
    DecodeError::Value("a row got another key during the copy, and the log holds only part of it");
