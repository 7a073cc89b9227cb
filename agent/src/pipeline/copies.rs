//! Copies that begin: which tables there are, what they are numbered with, and the
//! exact reads of tables without a key (INV-4, INV-6).

use super::renewal::problem;
use super::{ExactRequest, Pipeline};
use crate::epoch::OpenEpoch;
use crate::metrics;
use crate::settings::SnapshotMode;
use crate::snapshot::{self, Base, ChunkSize, Copy};
use crate::status::TableStatus;
use caudal_model::schema::Evolution;
use caudal_model::{
    Error, Finding, Kind, Position, Result, Severity, TableName, TableProgress, TableSchema,
    TableState,
};
use caudal_sinks::SnapshotEntry;
use caudal_sources::{DiscoveredTable, Tail, TrackedTable, filter};
use std::collections::HashMap;
use std::sync::Arc;

impl Pipeline<'_> {
    /// INV-6: while the tail stands between transactions, opens exact reads.
    pub(super) async fn open_exact(
        &mut self,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) -> Result<()> {
        for request in std::mem::take(&mut self.exact_requests) {
            let ExactRequest {
                copy,
                mut reader,
                reply,
            } = request;
            let table = copy.table.clone();
            let Some(schema) = self.schemas.get(&table).cloned() else {
                return Err(Error::bug(format!(
                    "an exact read of {table}, which has no schema"
                )));
            };
            let position = epoch.boundary.position.clone();
            let mark = match reader.open_exact(&schema, &position).await {
                Ok(mark) => mark,
                Err(e) => {
                    // The worker decides; it may be gone.
                    let _ = reply.send(Err(e));
                    continue;
                }
            };
            let progress = self.state.tables.iter().find(|t| t.table == table);
            let number = progress.map_or(0, |p| p.copy) + 1;
            let seq = snapshot::begin_copy(&mut epoch.buffer, &schema, number, &position);
            // The rows of a new copy begin at a boundary, which the number above moved.
            epoch.set_boundary(position.clone());
            let entry = copy_entry(number, seq, position.clone(), Some(mark.clone()));
            epoch.snapshot_mut(&table, || entry.clone());
            self.copies.insert(table.clone(), entry);
            tail.track(TrackedTable {
                next_column_id: self.next_column_id(&table),
                schema,
                mark: Some(mark),
                copying: true,
            });
            let _ = reply.send(Ok((reader, Base { seq, position })));
        }
        Ok(())
    }

    fn next_column_id(&self, table: &TableName) -> i32 {
        self.next_column_ids.get(table).copied().unwrap_or(1)
    }

    /// Takes up the copies that an earlier attempt began and that can go on: those with a
    /// key. Exact reads ended with their connections and begin anew with [`Self::begin_copies`].
    ///
    /// Errors: [`Kind::Corrupt`] if a copy's condition cannot be read.
    pub(super) fn resume_copies(&mut self, found: &[DiscoveredTable]) -> Result<Vec<Arc<Copy>>> {
        self.note_estimates(found);
        let mut copies = Vec::new();
        let mut tables = self.state.tables.clone();
        let by_name: HashMap<&TableName, &DiscoveredTable> =
            found.iter().map(|t| (&t.table, t)).collect();
        let order = &self.parts.settings.order;
        tables.sort_by_cached_key(|p| by_name.get(&p.table).map(|t| order.key(t)));
        for p in tables {
            let (Some(base), Some(schema)) = (&p.base_position, self.schemas.get(&p.table)) else {
                continue;
            };
            if matches!(p.state, TableState::Live | TableState::Errored) {
                continue;
            }
            if let Some(live_at) = &p.live_at {
                self.awaiting_live.insert(p.table.clone(), live_at.clone());
                let mut entry = copy_entry(p.copy, p.base_seq, base.clone(), p.mark.clone());
                entry.only = p.only.clone();
                entry.done = true;
                entry.live_at = Some(live_at.clone());
                self.copies.insert(p.table.clone(), entry);
            } else if schema.has_key() {
                let schema = schema.clone();
                let position = base.clone();
                let base = Base {
                    seq: p.base_seq,
                    position,
                };
                copies.push(self.begin_keyed(schema, base, &p, p.copy)?);
            }
        }
        Ok(copies)
    }

    /// Shows a copy that begins or goes on.
    pub(super) fn show_copy(&self, table: &TableName) {
        let Some(p) = self.state.tables.iter().find(|p| p.table == *table) else {
            return;
        };
        self.parts.board.update_table(TableStatus::from(p));
        // What fulfils a condition, no statistics tell.
        let size = self.estimates.get(table).filter(|_| p.only.is_none());
        let rows = size.map_or(0, |(rows, _)| *rows);
        self.parts.board.begin_copy(table, p.snapshot_rows, rows);
        metrics::snapshot_estimate(table, rows);
    }

    /// Tables that were rewound to a version which is not the greatest go on under a number
    /// of their own: those between were committed once, and never mean anything else.
    pub(super) fn number_anew(&mut self, epoch: &mut OpenEpoch) {
        let behind = |p: &&TableProgress| !p.ended && p.greatest_version > p.schema_version;
        for p in self.state.tables.iter().filter(behind) {
            let Some(schema) = self.schemas.get_mut(&p.table) else {
                continue;
            };
            *schema = Arc::new(TableSchema {
                version: p.greatest_version + 1,
                since_seq: epoch.buffer.next_seq(),
                ..(**schema).clone()
            });
            epoch.add_schema(schema.clone());
        }
    }

    pub(super) fn note_estimates(&mut self, found: &[DiscoveredTable]) {
        let sizes = found.iter();
        let sizes = sizes.map(|t| (t.table.clone(), (t.estimated_rows, t.estimated_bytes)));
        self.estimates = sizes.collect();
    }

    fn chunk_size(&self, table: &TableName) -> ChunkSize {
        let (rows, bytes) = self.estimates.get(table).copied().unwrap_or_default();
        ChunkSize::first(self.parts.settings.chunks, rows, bytes)
    }

    fn begin_keyed(
        &mut self,
        schema: Arc<TableSchema>,
        base: Base,
        progress: &TableProgress,
        number: u32,
    ) -> Result<Arc<Copy>> {
        let table = schema.table.clone();
        let mut entry = copy_entry(number, base.seq, base.position.clone(), None);
        entry.only = progress.only.clone();
        self.copies.insert(table.clone(), entry);
        let size = self.chunk_size(&table);
        let syntax = self.parts.settings.filter_syntax;
        let only = progress.only.as_deref().map(|c| filter::parse(c, syntax));
        let only = only.transpose().map_err(|e| {
            let text = format!("the condition of {table}'s copy {e}");
            Error::fatal(Kind::Corrupt, text)
                .hint("go on with the version of caudal that began the copy")
        })?;
        let copy = Arc::new(Copy::keyed(schema, base, progress, size, only));
        self.active.insert(table, copy.clone());
        Ok(copy)
    }

    /// Between transactions: begins the copies of some rows that were asked for. The table
    /// is `snapshotting` again, but it is not emptied: what is not read stays.
    /// The tail carries it as before: the lake holds the rows that key changes remove.
    pub(super) fn begin_partial(&mut self, epoch: &mut OpenEpoch) -> Result<()> {
        let mut copies = Vec::new();
        for (table, condition) in std::mem::take(&mut self.partial) {
            let known = self.state.tables.iter().find(|p| p.table == table);
            let (Some(p), Some(schema)) = (known, self.schemas.get(&table).cloned()) else {
                continue;
            };
            let number = p.copy + 1;
            let position = epoch.boundary.position.clone();
            let seq = epoch.buffer.reserve(1);
            epoch.set_boundary(position.clone());
            let fresh = TableProgress {
                only: Some(condition.clone()),
                ..TableProgress::pending(table.clone())
            };
            let mut entry = copy_entry(number, seq, position.clone(), None);
            entry.only = Some(condition);
            epoch.snapshot_mut(&table, || entry);
            // Not live until its rows are there; its commit has yet to say so.
            self.live.remove(&table);
            self.parts.board.begin_copy(&table, 0, 0);
            copies.push(self.begin_keyed(schema, Base { seq, position }, &fresh, number)?);
        }
        self.spawn_workers(copies);
        Ok(())
    }

    /// Between transactions, at or after the position of `found`: begins the copies of
    /// tables that the lake does not hold.
    pub(super) fn begin_copies(
        &mut self,
        mut found: Vec<DiscoveredTable>,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) -> Result<Vec<Arc<Copy>>> {
        self.carried = found.iter().map(|t| t.table.clone()).collect();
        self.note_estimates(&found);
        let order = &self.parts.settings.order;
        found.sort_by_cached_key(|t| order.key(t));
        let mut copies = Vec::new();
        for t in &found {
            let p = match self.state.tables.iter().find(|p| p.table == t.table) {
                Some(p) => p.clone(),
                None => TableProgress::pending(t.table.clone()),
            };
            let over = matches!(p.state, TableState::Live | TableState::Errored);
            if over
                || self.failed.contains(&t.table)
                || self.live.contains(&t.table)
                || self.active.contains_key(&t.table)
                || self.copies.contains_key(&t.table)
            {
                continue;
            }
            if let Some(finding) = problem(t) {
                self.refuse(t, finding, epoch, tail);
                continue;
            }
            let schema = self.schema_for_copy(t, epoch);
            if let Err(reason) = self.parts.rules.check(&schema) {
                let finding = Finding::new(Severity::Error, "override", reason)
                    .subject(&t.table)
                    .mend("correct the table's [[tables.override]]");
                self.refuse(t, &finding, epoch, tail);
                continue;
            }
            if !self.state.tables.iter().any(|p| p.table == t.table) {
                self.state.tables.push(p.clone());
            }
            self.show_copy(&t.table);
            copies.extend(self.begin_copy(schema, &p, epoch, tail)?);
        }
        if !copies.is_empty() {
            self.publish_state();
        }
        Ok(copies)
    }

    /// Begins one copy, or carries the table without one.
    fn begin_copy(
        &mut self,
        schema: Arc<TableSchema>,
        p: &TableProgress,
        epoch: &mut OpenEpoch,
        tail: &mut dyn Tail,
    ) -> Result<Option<Arc<Copy>>> {
        let table = schema.table.clone();
        if self.parts.settings.mode == SnapshotMode::Never {
            let position = epoch.boundary.position.clone();
            let mut entry = copy_entry(p.copy + 1, 0, position.clone(), None);
            entry.done = true;
            entry.live_at = Some(position.clone());
            self.copies.insert(table.clone(), entry.clone());
            epoch.snapshot_mut(&table, || entry);
            self.track(schema, tail);
            self.awaiting_live.insert(table, position);
            return Ok(None);
        }
        if !schema.has_key() {
            let copy = Arc::new(Copy::exact(schema, self.chunk_size(&table)));
            self.active.insert(table, copy.clone());
            return Ok(Some(copy));
        }
        let position = epoch.boundary.position.clone();
        let number = p.copy + 1;
        let seq = snapshot::begin_copy(&mut epoch.buffer, &schema, number, &position);
        epoch.set_boundary(position.clone());
        let entry = copy_entry(number, seq, position.clone(), None);
        epoch.snapshot_mut(&table, || entry);
        self.track(schema.clone(), tail);
        // Nothing of an earlier copy counts for this one.
        let fresh = TableProgress::pending(table);
        let copy = self.begin_keyed(schema, Base { seq, position }, &fresh, number)?;
        Ok(Some(copy))
    }

    fn track(&self, schema: Arc<TableSchema>, tail: &mut dyn Tail) {
        tail.track(TrackedTable {
            next_column_id: self.next_column_id(&schema.table),
            schema,
            mark: None,
            copying: true,
        });
    }

    /// The version that a copy which begins now has: the table as it is now.
    fn schema_for_copy(&mut self, t: &DiscoveredTable, epoch: &mut OpenEpoch) -> Arc<TableSchema> {
        let since = epoch.buffer.next_seq();
        let taken = self.state.tables.iter().find(|p| p.table == t.table);
        let taken = taken.map_or(0, |p| p.greatest_version);
        let mut schema = match self.schemas.get(&t.table) {
            None => TableSchema::first(t.table.clone(), since, t.columns.clone(), t.key.clone()),
            Some(old) => {
                let next_id = self.next_column_id(&t.table);
                match old.recopied(since, &t.columns, &t.key, next_id) {
                    Evolution::Next(schema) => schema,
                    _ if old.source_id == t.source_id && old.version >= taken => {
                        return old.clone();
                    }
                    // Another table of the same name and shape.
                    _ => TableSchema {
                        version: old.version + 1,
                        since_seq: since,
                        ..(**old).clone()
                    },
                }
            }
        };
        schema.version = schema.version.max(taken + 1);
        schema.source_id = t.source_id.clone();
        self.note_column_ids(&schema);
        let schema = Arc::new(schema);
        self.schemas.insert(t.table.clone(), schema.clone());
        epoch.add_schema(schema.clone());
        schema
    }

    /// What the tail carries from the start: everything but tables that wait for an exact read.
    pub(super) fn tracked(&self) -> Vec<TrackedTable> {
        let tables = self.state.tables.iter().filter(|p| match p.state {
            TableState::Errored => false,
            TableState::Live => true,
            TableState::Pending | TableState::Snapshotting => self.copies.contains_key(&p.table),
        });
        tables
            .filter_map(|p| {
                let schema = self.schemas.get(&p.table)?.clone();
                let next_column_id = self.next_column_id(&p.table);
                let copying = p.state != TableState::Live && p.only.is_none();
                Some(TrackedTable {
                    schema,
                    next_column_id,
                    mark: p.mark.clone(),
                    copying,
                })
            })
            .collect()
    }
}

fn copy_entry(
    copy: u32,
    base_seq: i64,
    base_position: Position,
    mark: Option<String>,
) -> SnapshotEntry {
    SnapshotEntry {
        mark,
        ..SnapshotEntry::begun(copy, base_seq, base_position)
    }
}
