//! Table maps joined with the stream's tables, and rows events into their builders.

use super::{Data, MysqlTail, Step, bytes_of};
use crate::TailEvent;
use crate::mysql::decode::events::{self, HEADER, kind};
use crate::mysql::decode::rows::{self, Image, Misfit, RowsHeader, TableMap, TablePlan};
use crate::mysql::decode::values::Coerced;
use crate::mysql::decode::{DecodeError, Decoded, Input};
use crate::mysql::schema::{describe, drifted, read_table};
use caudal_model::schema::Evolution;
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
}

/// Where the rows of an event begin, and the rows themselves if they were compressed.
pub(super) struct RowsStart {
    pub(super) plan: Arc<(Arc<TableSchema>, TablePlan)>,
    pub(super) op: Op,
    pub(super) at: usize,
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
    pub(super) fn plan(&mut self, id: u64) -> Result<Step> {
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

    pub(super) fn join(
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
    pub(super) async fn describe(
        &mut self,
        map: &TableMap,
        why: &str,
        since_seq: i64,
    ) -> Result<()> {
        let table = TableName::new(map.database.clone(), map.table.clone());
        let mut control = self.server.control().await?;
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
        match tracked.schema.evolve(
            since_seq,
            &now.columns,
            &now.key,
            tracked.next_column_id,
            |_, _| true,
        ) {
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

    pub(super) fn rows(&mut self, event_type: u8, body: &[u8]) -> Result<Step> {
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

    pub(super) fn partial_rows(&mut self, body: &[u8]) -> Result<Step> {
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
    slot: Slot,
    coerced: &mut Coerced,
) -> Decoded<usize> {
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
