//! The open commit: what has been read since the last one, until it is sealed.
//!
//! An epoch is sealed only between transactions, so a commit holds whole
//! transactions (INV-3). Sealing fixes its positions; uploading and committing
//! go on beside the next epoch ([`Sealed::commit`]), one commit at a time.

use crate::crash::{self, CrashPoints};
use crate::staging::Staging;
use arrow::array::{Array, DictionaryArray};
use arrow::datatypes::Int8Type;
use caudal_model::{
    ChangeBuffer, Chunk, Error, Op, Position, Result, Rules, StreamPoint, TableBatch, TableName,
    TableSchema,
};
use caudal_sinks::{
    CommitLog, CommitReceipt, EntryKind, FileEntry, FileWriter, SnapshotEntry, TableEntry,
};
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Schema versions that are written to the store at a time.
const SCHEMAS_AT_A_TIME: usize = 16;

/// Everything that the next commit will carry.
pub struct OpenEpoch {
    /// Rows not yet handed to an encoder.
    pub buffer: ChangeBuffer,
    /// Where the log stood after the last complete transaction.
    pub boundary: StreamPoint,
    /// When the first thing worth a commit came.
    pub since: Option<Instant>,
    after: StreamPoint,
    /// Bytes handed to encoders.
    flushed_bytes: usize,
    operations: [u64; Op::ALL.len()],
    writers: HashMap<(TableName, u32), FileWriter>,
    tables: BTreeMap<TableName, Part>,
    schemas: Vec<Arc<TableSchema>>,
}

/// One table's part of the epoch, tail's files aside.
#[derive(Debug, Default)]
struct Part {
    snapshot: Option<SnapshotEntry>,
    snapshot_files: Vec<FileEntry>,
    error: Option<String>,
    ended: bool,
    again: bool,
}

impl OpenEpoch {
    /// An epoch that follows `after`, with a buffer full at `limit` bytes, whose rows are
    /// subject to `rules`.
    pub fn new(after: StreamPoint, limit: usize, rules: Arc<Rules>) -> Self {
        OpenEpoch {
            buffer: ChangeBuffer::new(after.seq + 1, limit).with_rules(rules),
            boundary: after.clone(),
            since: None,
            after,
            flushed_bytes: 0,
            operations: [0; Op::ALL.len()],
            writers: HashMap::new(),
            tables: BTreeMap::new(),
            schemas: Vec::new(),
        }
    }

    /// Bytes gathered so far, encoded or not.
    pub fn bytes(&self) -> usize {
        self.flushed_bytes + self.buffer.bytes()
    }

    /// Whether a commit would carry more than a position.
    pub fn has_content(&self) -> bool {
        !self.tables.is_empty()
            || !self.schemas.is_empty()
            || !self.writers.is_empty()
            || !self.buffer.is_empty()
    }

    /// Whether a commit would change anything at all.
    pub fn moved(&self) -> bool {
        self.has_content() || self.boundary != self.after
    }

    /// A transaction ended here, or nothing of interest lies before here.
    pub fn set_boundary(&mut self, position: Position) {
        self.boundary = StreamPoint {
            position,
            seq: self.buffer.next_seq() - 1,
        };
    }

    /// Notes that the epoch has something worth a commit.
    pub fn touch(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// A new schema version.
    pub fn add_schema(&mut self, schema: Arc<TableSchema>) {
        self.touch();
        self.schemas.push(schema);
    }

    /// The table's part of its copy, made by `first` where the epoch has none yet.
    pub fn snapshot_mut(
        &mut self,
        table: &TableName,
        first: impl FnOnce() -> SnapshotEntry,
    ) -> &mut SnapshotEntry {
        self.touch();
        self.tables
            .entry(table.clone())
            .or_default()
            .snapshot
            .get_or_insert_with(first)
    }

    /// Chunks of a copy that are complete.
    pub fn add_chunks(
        &mut self,
        table: &TableName,
        first: impl FnOnce() -> SnapshotEntry,
        chunks: Vec<Chunk>,
        files: Vec<FileEntry>,
        planned: u32,
    ) {
        let entry = self.snapshot_mut(table, first);
        entry.chunks.extend(chunks.iter().map(|c| c.id));
        entry.bounds.extend(chunks);
        entry.planned = entry.planned.max(planned);
        self.tables
            .entry(table.clone())
            .or_default()
            .snapshot_files
            .extend(files);
    }

    /// The table stops with this commit.
    pub fn fail_table(&mut self, table: &TableName, error: &Error) {
        self.touch();
        let said = error.to_string();
        // Whoever shows it names the table.
        let said = said
            .strip_prefix(&format!("table {table}: "))
            .unwrap_or(&said);
        let text = match error.hint_text() {
            Some(hint) => format!("{said} ({hint})"),
            None => said.to_owned(),
        };
        self.tables.entry(table.clone()).or_default().error = Some(text);
    }

    /// The table leaves the stream with this commit; if it comes back, it is copied anew.
    /// `again`: it leaves only to be copied again.
    pub fn end_table(&mut self, table: &TableName, again: bool) {
        self.touch();
        let part = self.tables.entry(table.clone()).or_default();
        (part.ended, part.again, part.error) = (true, again, None);
    }

    /// Hands the buffer's rows to encoders without committing anything (INV-9).
    pub async fn flush(&mut self, staging: &Staging) -> Result<()> {
        self.flushed_bytes += self.buffer.bytes();
        let batches = self.buffer.take()?;
        count_operations(&batches, &mut self.operations);
        write_all(&mut self.writers, batches, staging, None).await
    }

    /// Closes the epoch at its boundary, which must be where the buffer ends, and
    /// leaves the next one open in its place.
    ///
    /// `versions` gives the newest schema version of each table.
    pub fn seal(&mut self, limit: usize, versions: impl Fn(&TableName) -> u32) -> Result<Sealed> {
        if self.boundary.seq != self.buffer.next_seq() - 1 {
            return Err(Error::bug("an epoch was sealed inside a transaction"));
        }
        // The buffer, and its rules with it, goes on in the next epoch.
        let next = OpenEpoch::new(self.boundary.clone(), limit, Arc::default());
        let mut sealed = std::mem::replace(self, next);
        // A table's slot in the buffer belongs to its reader; it must stay valid.
        std::mem::swap(&mut self.buffer, &mut sealed.buffer);
        let batches = self.buffer.take()?;
        count_operations(&batches, &mut sealed.operations);
        let tables = batches.iter().map(|b| &b.schema.table);
        let tables = tables.chain(sealed.writers.keys().map(|(t, _)| t)).cloned();
        let mut parts: BTreeMap<TableName, (u32, Part)> = BTreeMap::new();
        for t in tables.chain(sealed.schemas.iter().map(|s| s.table.clone())) {
            parts.entry(t).or_default();
        }
        for (t, part) in sealed.tables {
            parts.insert(t, (0, part));
        }
        for (t, (version, _)) in &mut parts {
            *version = versions(t);
        }
        Ok(Sealed {
            after: sealed.after,
            through: sealed.boundary,
            schemas: sealed.schemas,
            writers: sealed.writers,
            bytes: sealed.flushed_bytes,
            operations: sealed.operations,
            batches,
            parts,
        })
    }

    /// Drops everything that was not committed, leaving no upload behind.
    pub async fn abandon(self) {
        for w in self.writers.into_values() {
            w.abort().await;
        }
    }
}

fn count_operations(batches: &[TableBatch], counts: &mut [u64; Op::ALL.len()]) {
    for batch in batches {
        // `_op` follows the table's columns; its keys are the operations' discriminants.
        let column = batch.rows.column(batch.schema.columns.len());
        let Some(ops) = column.as_any().downcast_ref::<DictionaryArray<Int8Type>>() else {
            continue;
        };
        for key in ops.keys().values() {
            if let Some(n) = counts.get_mut(*key as usize) {
                *n += 1;
            }
        }
    }
}

/// Writes schema versions, of several tables at a time: a new stream brings thousands. Those
/// of one table go one after another, so that a crash leaves no gap in its numbers.
async fn put_schemas(
    schemas: &[Arc<TableSchema>],
    log: &CommitLog,
    crash: &CrashPoints,
) -> Result<()> {
    let mut tables: BTreeMap<&TableName, Vec<&TableSchema>> = BTreeMap::new();
    for schema in schemas {
        tables.entry(&schema.table).or_default().push(schema);
    }
    futures::stream::iter(tables.into_values())
        .map(Ok)
        .try_for_each_concurrent(SCHEMAS_AT_A_TIME, async |versions| {
            for schema in versions {
                log.put_schema(schema).await?;
                crash.reach(crash::SCHEMA_WRITTEN)?;
            }
            Ok(())
        })
        .await
}

async fn write_all(
    writers: &mut HashMap<(TableName, u32), FileWriter>,
    batches: Vec<TableBatch>,
    staging: &Staging,
    epoch: Option<u64>,
) -> Result<()> {
    for batch in batches {
        let key = (batch.schema.table.clone(), batch.schema.version);
        let writer = match writers.entry(key) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(staging.begin(&batch.schema, epoch).await?)
            }
        };
        writer.write(batch).await?;
    }
    Ok(())
}

/// An epoch whose contents are fixed.
pub struct Sealed {
    after: StreamPoint,
    through: StreamPoint,
    schemas: Vec<Arc<TableSchema>>,
    writers: HashMap<(TableName, u32), FileWriter>,
    batches: Vec<TableBatch>,
    parts: BTreeMap<TableName, (u32, Part)>,
    bytes: usize,
    operations: [u64; Op::ALL.len()],
}

/// What a commit left behind.
pub struct Committed {
    /// The entry, and the proof that it stands in the log.
    pub receipt: CommitReceipt,
    /// Schema versions that it introduced.
    pub schemas: Vec<Arc<TableSchema>>,
    /// How long uploading and committing took.
    pub took: Duration,
    /// Changes from the log, by operation in the order of [`Op::ALL`].
    pub operations: [u64; Op::ALL.len()],
}

impl Sealed {
    /// Uploads the files and commits them: steps one and two of INV-3.
    pub async fn commit(
        mut self,
        epoch: u64,
        generation: u64,
        log: Arc<CommitLog>,
        staging: Arc<Staging>,
        crash: CrashPoints,
    ) -> Result<Committed> {
        let started = Instant::now();
        put_schemas(&self.schemas, &log, &crash).await?;
        write_all(
            &mut self.writers,
            std::mem::take(&mut self.batches),
            &staging,
            Some(epoch),
        )
        .await?;
        // Every writer uploads in a task of its own; here they are only awaited.
        let finished = futures::future::try_join_all(
            self.writers
                .drain()
                .map(|((table, _), w)| async move { Ok::<_, Error>((table, w.finish().await?)) }),
        )
        .await?;
        crash.reach(crash::UPLOADED)?;
        let mut files: BTreeMap<TableName, Vec<FileEntry>> = BTreeMap::new();
        for (table, file) in finished {
            files.entry(table).or_default().push(file);
        }
        let mut tables = Vec::with_capacity(self.parts.len());
        for (table, (schema_version, part)) in self.parts {
            let mut all = part.snapshot_files;
            all.extend(files.remove(&table).unwrap_or_default());
            all.sort_by_key(|f| (f.first_seq, f.last_seq));
            tables.push(TableEntry {
                snapshot: part.snapshot,
                files: all,
                error: part.error,
                ended: part.ended,
                again: part.again,
                ..TableEntry::untouched(table, schema_version)
            });
        }
        let entry = log.entry(
            epoch,
            generation,
            EntryKind::Append,
            self.after,
            self.through,
            tables,
            staging.staged_from(epoch),
        );
        let receipt = log.commit(entry).await?;
        tracing::debug!(epoch, bytes = self.bytes, "committed");
        Ok(Committed {
            receipt,
            schemas: self.schemas,
            took: started.elapsed(),
            operations: self.operations,
        })
    }
}
