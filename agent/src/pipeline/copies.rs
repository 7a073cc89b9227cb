//! Copies that begin: which tables there are, what they are numbered with, and the
//! exact reads of tables without a key (INV-4, INV-6).

use super::{ExactRequest, Pipeline};
use crate::epoch::OpenEpoch;
use crate::snapshot::{self, Base, Copy};
use crate::status::TableStatus;
use crate::supervise::SnapshotMode;
use caudal_model::schema::Evolution;
use caudal_model::{
    Error, Position, Result, Severity, TableName, TableProgress, TableSchema, TableState,
};
use caudal_sinks::SnapshotEntry;
use caudal_sources::{Tail, TrackedTable};
use std::collections::HashSet;
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
                table,
                mut reader,
                reply,
            } = request;
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

    /// Finds new tables, gives them a base, and lists the copies that have work left.
    pub(super) async fn begin_copies(&mut self, epoch: &mut OpenEpoch) -> Result<Vec<Arc<Copy>>> {
        let mut found = self.parts.discover().await?;
        // Those that may not be carried were refused at the start of the process; one that
        // turned up since waits.
        found.retain(|t| !t.problems.iter().any(|p| p.severity == Severity::Error));
        self.add_new_tables(&found, epoch).await?;
        self.carried = found.iter().map(|t| t.table.clone()).collect();
        for p in &mut self.state.tables {
            if !self.carried.contains(&p.table) && p.base_position.is_some() {
                tracing::warn!(table = %p.table, "is not selected any more, or was dropped: it ends here");
                epoch.end_table(&p.table);
                p.base_position = None;
            }
        }
        found.sort_by_key(|t| t.estimated_rows);
        let mut copies = Vec::new();
        for t in &found {
            let Some(at) = self.state.tables.iter().position(|p| p.table == t.table) else {
                continue;
            };
            let p = self.state.tables[at].clone();
            if matches!(p.state, TableState::Live | TableState::Errored) {
                continue;
            }
            if p.base_position.is_none() {
                self.renew_schema(t, epoch);
            }
            let Some(schema) = self.schemas.get(&t.table).cloned() else {
                continue;
            };
            self.parts.board.update_table(TableStatus::from(&p));
            self.parts
                .board
                .begin_copy(&t.table, p.snapshot_rows, t.estimated_rows);
            if let (Some(live_at), Some(base)) = (&p.live_at, &p.base_position) {
                self.awaiting_live.insert(t.table.clone(), live_at.clone());
                let mut entry = copy_entry(p.copy, p.base_seq, base.clone(), p.mark.clone());
                entry.done = true;
                entry.live_at = Some(live_at.clone());
                self.copies.insert(t.table.clone(), entry);
            } else if schema.has_key() {
                let base = match &p.base_position {
                    Some(position) => Base {
                        seq: p.base_seq,
                        position: position.clone(),
                    },
                    None => {
                        let position = epoch.boundary.position.clone();
                        let copy = p.copy + 1;
                        let seq = snapshot::begin_copy(&mut epoch.buffer, &schema, copy, &position);
                        epoch.set_boundary(position.clone());
                        let entry = copy_entry(copy, seq, position.clone(), None);
                        epoch.snapshot_mut(&t.table, || entry);
                        Base { seq, position }
                    }
                };
                let number = p.copy.max(1);
                let entry = copy_entry(number, base.seq, base.position.clone(), None);
                self.copies.insert(t.table.clone(), entry);
                copies.push(Arc::new(Copy::keyed(schema, base, &p)));
            } else {
                copies.push(Arc::new(Copy::exact(schema)));
            }
        }
        Ok(copies)
    }

    /// A copy that begins takes the table as it is now.
    fn renew_schema(&mut self, t: &caudal_sources::DiscoveredTable, epoch: &mut OpenEpoch) {
        let Some(old) = self.schemas.get(&t.table) else {
            return;
        };
        let next_id = self.next_column_id(&t.table);
        let since = epoch.buffer.next_seq();
        if let Evolution::Next(schema) = old.recopied(since, &t.columns, &t.key, next_id) {
            let greatest = schema.columns.iter().map(|c| c.id + 1).max().unwrap_or(1);
            self.next_column_ids
                .insert(t.table.clone(), greatest.max(next_id));
            let schema = Arc::new(schema);
            self.schemas.insert(t.table.clone(), schema.clone());
            epoch.add_schema(schema);
        }
    }

    /// Tables that the stream does not know yet.
    async fn add_new_tables(
        &mut self,
        found: &[caudal_sources::DiscoveredTable],
        epoch: &mut OpenEpoch,
    ) -> Result<()> {
        let known: HashSet<&TableName> = self.state.tables.iter().map(|t| &t.table).collect();
        let new: Vec<_> = found.iter().filter(|t| !known.contains(&t.table)).collect();
        let names: Vec<TableName> = new.iter().map(|t| t.table.clone()).collect();
        if names.is_empty() {
            return Ok(());
        }
        if self.state.epoch > 1 {
            self.parts.source.add_tables(&names).await?;
        }
        for t in new {
            let schema = TableSchema::first(
                t.table.clone(),
                epoch.buffer.next_seq(),
                t.columns.clone(),
                t.key.clone(),
            );
            self.next_column_ids
                .insert(t.table.clone(), t.columns.len() as i32 + 1);
            let schema = Arc::new(schema);
            self.schemas.insert(t.table.clone(), schema.clone());
            epoch.add_schema(schema);
            self.state
                .tables
                .push(TableProgress::pending(t.table.clone()));
            if self.parts.settings.mode == SnapshotMode::Never {
                let position = epoch.boundary.position.clone();
                let mut entry = copy_entry(1, 0, position.clone(), None);
                entry.done = true;
                entry.live_at = Some(position.clone());
                self.copies.insert(t.table.clone(), entry.clone());
                epoch.snapshot_mut(&t.table, || entry);
                if let Some(p) = self.state.tables.last_mut() {
                    p.copy = 1;
                    p.base_position = Some(position.clone());
                    p.live_at = Some(position);
                }
            }
        }
        Ok(())
    }

    /// What the tail carries from the start: everything but tables that wait for an exact read.
    pub(super) fn tracked(&self) -> Vec<TrackedTable> {
        let tables = self.state.tables.iter().filter(|p| match p.state {
            _ if !self.carried.contains(&p.table) => false,
            TableState::Errored => false,
            TableState::Live => true,
            TableState::Pending | TableState::Snapshotting => {
                p.live_at.is_some() || self.schemas.get(&p.table).is_some_and(|s| s.has_key())
            }
        });
        tables
            .filter_map(|p| {
                let schema = self.schemas.get(&p.table)?.clone();
                let next_column_id = self.next_column_id(&p.table);
                let copying = p.state != TableState::Live;
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
        chunks: Vec::new(),
        done: false,
        copy,
        base_seq,
        base_position,
        bounds: Vec::new(),
        planned: 0,
        mark,
        live_at: None,
        live: false,
    }
}
