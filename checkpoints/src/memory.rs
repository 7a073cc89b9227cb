//! A store in memory that can forget, for the simulation.
//!
//! Clones share their content: the simulation keeps one while the agent that holds
//! another crashes.

use crate::CheckpointStore;
use caudal_model::{Checkpoint, Result, TableName, TableProgress, TableSchema};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Clone, Default)]
struct Content {
    checkpoint: Option<Checkpoint>,
    schemas: BTreeMap<(TableName, u32), TableSchema>,
}

#[derive(Debug, Default)]
struct State {
    now: Content,
    before_last_write: Content,
}

/// Checkpoints in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, change: impl FnOnce(&mut Content)) {
        let mut state = self.lock();
        state.before_last_write = state.now.clone();
        change(&mut state.now);
    }

    /// Forgets everything, as if the disk were new.
    pub fn lose_everything(&self) {
        *self.lock() = State::default();
    }

    /// Forgets the last write, as if the process had ended before it.
    pub fn lose_last_write(&self) {
        let mut state = self.lock();
        state.now = state.before_last_write.clone();
    }
}

impl CheckpointStore for MemoryStore {
    fn load(&self) -> Result<Option<Checkpoint>> {
        Ok(self.lock().now.checkpoint.clone())
    }

    fn advance(&mut self, head: &Checkpoint, changed: &[TableProgress]) -> Result<()> {
        self.write(|content| {
            let kept = content
                .checkpoint
                .take()
                .map(|c| c.tables)
                .unwrap_or_default();
            let mut tables: BTreeMap<TableName, TableProgress> =
                kept.into_iter().map(|t| (t.table.clone(), t)).collect();
            tables.extend(changed.iter().map(|t| (t.table.clone(), t.clone())));
            let tables = tables.into_values().collect();
            content.checkpoint = Some(Checkpoint {
                tables,
                ..head.clone()
            });
        });
        Ok(())
    }

    fn replace(&mut self, whole: &Checkpoint) -> Result<()> {
        let mut whole = whole.clone();
        whole.tables.sort_by(|a, b| a.table.cmp(&b.table));
        self.write(|content| {
            *content = Content {
                checkpoint: Some(whole),
                schemas: BTreeMap::new(),
            };
        });
        Ok(())
    }

    fn put_schema(&mut self, schema: &TableSchema) -> Result<()> {
        self.write(|content| {
            content
                .schemas
                .insert((schema.table.clone(), schema.version), schema.clone());
        });
        Ok(())
    }

    fn schemas(&self) -> Result<Vec<TableSchema>> {
        Ok(self.lock().now.schemas.values().cloned().collect())
    }
}
