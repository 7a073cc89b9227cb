//! Where the rows of chunks go: row groups that each worker encodes beside the others,
//! and files of the configured size that they are appended to.
//!
//! A worker's row groups are appended to the table's open file only when the chunks that
//! they hold are complete, so a chunk that fails spoils no other worker's. The rows of an
//! exact read, and of a chunk too large to be held, go into files of their own, which are
//! named together with it.

use super::copy::Copy;
use crate::staging::Staging;
use caudal_model::{Chunk, Error, Result, TableBatch, TableSchema};
use caudal_sinks::{FileEntry, FileWriter, GroupWriter, RowGroup};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// When files and row groups are finished.
#[derive(Debug, Clone, Copy)]
pub struct FileLimits {
    /// A file is finished at this size (bytes as written)…
    pub file_bytes: usize,
    /// …or at this age: its chunks are in the lake no later than that.
    pub file_age: Duration,
    /// Row groups are appended to a file at about this size (bytes as written)…
    pub group_bytes: usize,
    /// …and at this one, which is held in memory, a chunk gets a file of its own.
    pub held_bytes: usize,
}

/// What one worker has read of one version of a table and not yet handed over.
pub(super) struct Gathered {
    pub(super) copy: Arc<Copy>,
    pub(super) schema: Arc<TableSchema>,
    /// Complete chunks.
    pub(super) chunks: Vec<Chunk>,
    rows: Rows,
    since: Instant,
}

enum Rows {
    /// For the table's open file.
    Groups(Option<GroupWriter>),
    /// In files of their own.
    Own(Option<FileWriter>, Vec<FileEntry>),
}

/// A file of a copy under construction, with the chunks that it will complete.
#[derive(Debug)]
pub(super) struct CopyFile {
    pub(super) schema: Arc<TableSchema>,
    pub(super) chunks: Vec<Chunk>,
    writer: Option<FileWriter>,
    bytes: usize,
    since: Instant,
}

impl Gathered {
    pub(super) fn new(copy: Arc<Copy>, schema: Arc<TableSchema>) -> Self {
        let rows = match copy.has_key {
            true => Rows::Groups(None),
            false => Rows::Own(None, Vec::new()),
        };
        Gathered {
            copy,
            schema,
            chunks: Vec::new(),
            rows,
            since: Instant::now(),
        }
    }

    /// Whether the rows are of this copy and version.
    pub(super) fn is_of(&self, copy: &Arc<Copy>, schema: &Arc<TableSchema>) -> bool {
        Arc::ptr_eq(&self.copy, copy) && Arc::ptr_eq(&self.schema, schema)
    }

    /// Appends rows of a chunk.
    pub(super) async fn write(
        &mut self,
        batch: TableBatch,
        staging: &Staging,
        limits: &FileLimits,
    ) -> Result<()> {
        if let Rows::Groups(groups) = &mut self.rows
            && groups
                .as_ref()
                .is_some_and(|g| g.encoded_bytes() >= limits.held_bytes)
        {
            let mut own = staging.begin(&self.schema, None).await?;
            if let Some(groups) = groups.take() {
                for group in groups.finish().await? {
                    own.append(group).await?;
                }
            }
            self.rows = Rows::Own(Some(own), Vec::new());
        }
        match &mut self.rows {
            Rows::Groups(groups) => {
                let groups = groups.get_or_insert_with(|| staging.groups(&self.schema));
                groups.write(batch).await
            }
            Rows::Own(writer, files) => {
                if writer
                    .as_ref()
                    .is_some_and(|w| w.encoded_bytes() >= limits.file_bytes)
                    && let Some(full) = writer.take()
                {
                    files.push(full.finish().await?);
                }
                if writer.is_none() {
                    *writer = Some(staging.begin(&self.schema, None).await?);
                }
                match writer {
                    Some(w) => w.write(batch).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// Whether it should be handed over, now that a chunk is complete.
    pub(super) fn is_due(&self, limits: &FileLimits) -> bool {
        match &self.rows {
            Rows::Own(..) => true,
            Rows::Groups(groups) => {
                let bytes = groups.as_ref().map_or(0, GroupWriter::encoded_bytes);
                bytes >= limits.group_bytes || self.since.elapsed() >= limits.file_age / 2
            }
        }
    }

    /// Hands the rows to the copy's open file, and returns what is complete with them.
    /// `close`: the open file is finished whatever its size.
    pub(super) async fn hand_over(
        self,
        staging: &Staging,
        limits: &FileLimits,
        close: bool,
    ) -> Result<Complete, Lost> {
        let mut at_risk = self.chunks.clone();
        let done = match self.rows {
            Rows::Own(writer, files) => finish_own(self.chunks, writer, files).await,
            Rows::Groups(groups) => {
                let (copy, schema, chunks) = (self.copy, self.schema, self.chunks);
                append_all(
                    &copy,
                    (schema, chunks, groups),
                    staging,
                    limits,
                    close,
                    &mut at_risk,
                )
                .await
            }
        };
        done.map_err(|error| Lost {
            error,
            chunks: at_risk,
        })
    }

    /// Gives the rows up; returns the chunks that must be read again.
    pub(super) async fn abandon(self) -> Vec<Chunk> {
        if let Rows::Own(Some(writer), _) = self.rows {
            writer.abort().await;
        }
        self.chunks
    }
}

/// Chunks with the files that hold their rows.
#[derive(Default)]
pub(super) struct Complete {
    pub(super) chunks: Vec<Chunk>,
    pub(super) files: Vec<FileEntry>,
}

/// Chunks that must be read again, and why.
pub(super) struct Lost {
    pub(super) error: Error,
    pub(super) chunks: Vec<Chunk>,
}

async fn finish_own(
    chunks: Vec<Chunk>,
    writer: Option<FileWriter>,
    mut files: Vec<FileEntry>,
) -> Result<Complete> {
    if let Some(writer) = writer {
        files.push(writer.finish().await?);
    }
    Ok(Complete { chunks, files })
}

/// Appends to the copy's open file, and finishes it if it is due; `at_risk` grows by the
/// chunks of files that an error takes with it.
async fn append_all(
    copy: &Copy,
    (schema, mut chunks, groups): (Arc<TableSchema>, Vec<Chunk>, Option<GroupWriter>),
    staging: &Staging,
    limits: &FileLimits,
    close: bool,
    at_risk: &mut Vec<Chunk>,
) -> Result<Complete> {
    let groups = match groups {
        Some(groups) => groups.finish().await?,
        None => Vec::new(),
    };
    // Whoever waits here has row groups of its own for the same file.
    let mut open = copy.file.lock().await;
    let before = open.take_if(|f| !Arc::ptr_eq(&f.schema, &schema));
    let mut file = open.take().unwrap_or_else(|| CopyFile::new(schema));
    at_risk.extend(before.iter().chain([&file]).flat_map(|f| f.chunks.clone()));
    for group in groups {
        file.append(group, staging).await?;
    }
    file.chunks.append(&mut chunks);
    let mut finishing = Vec::from_iter(before);
    if close || file.is_due(limits) || copy.ends_with(&file.chunks).await {
        finishing.push(file);
    } else {
        *open = Some(file);
    }
    drop(open);
    let mut done = Complete::default();
    for file in finishing {
        let mut one = file.finish().await?;
        done.chunks.append(&mut one.chunks);
        done.files.append(&mut one.files);
    }
    Ok(done)
}

impl CopyFile {
    fn new(schema: Arc<TableSchema>) -> Self {
        CopyFile {
            schema,
            chunks: Vec::new(),
            writer: None,
            bytes: 0,
            since: Instant::now(),
        }
    }

    async fn append(&mut self, group: RowGroup, staging: &Staging) -> Result<()> {
        self.bytes += group.bytes();
        if self.writer.is_none() {
            self.writer = Some(staging.begin(&self.schema, None).await?);
        }
        match &mut self.writer {
            Some(writer) => writer.append(group).await,
            None => Ok(()),
        }
    }

    pub(super) fn is_due(&self, limits: &FileLimits) -> bool {
        self.bytes >= limits.file_bytes || self.since.elapsed() >= limits.file_age
    }

    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    pub(super) async fn abort(self) {
        if let Some(writer) = self.writer {
            writer.abort().await;
        }
    }

    pub(super) async fn finish(self) -> Result<Complete> {
        finish_own(self.chunks, self.writer, Vec::new()).await
    }
}
