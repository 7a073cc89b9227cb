//! Change files: rows in, Parquet out, straight into an upload.
//!
//! A [`FileWriter`] owns a task. Batches reach it through a bounded queue, encoding
//! runs on the blocking pool (as many encoders at once as there are cores), and the
//! bytes go to the store as they are made, so that decoding, encoding and uploading
//! run beside each other and memory stays bounded (INV-9): the queue, one open row
//! group, and the parts in flight. A writer that is dropped, aborted or failed leaves
//! no object, because an upload appears only when it is finished.
//!
//! A [`GroupWriter`] encodes row groups that are of no file yet, beside others for the
//! same file: readers of chunks work in parallel, and their files need not be small.

mod encode;
mod groups;
mod properties;

pub use encode::RowGroup;
pub use groups::GroupWriter;

use crate::entry::FileEntry;
use crate::layout::{FileId, Layout, Partition};
use crate::store::{Store, Upload};
use caudal_model::{Error, Result, TableBatch, TableSchema};
use chrono::{DateTime, Utc};
use encode::Encoder;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

/// Batches that may wait for the encoder.
const QUEUED_BATCHES: usize = 2;

/// Encoders at work at once, of all writers.
static ENCODERS: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
});

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// Zstandard, level 1.
    #[default]
    Zstd,
    /// Snappy.
    Snappy,
    /// Not at all.
    None,
}

/// How long a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PartitionBy {
    /// `_date=YYYY-MM-DD`
    #[default]
    Day,
    /// `_date=YYYY-MM-DD/_hour=HH`
    Hour,
}

impl PartitionBy {
    /// The partition of a file that is begun at this time.
    pub fn at(self, time: DateTime<Utc>) -> Partition {
        match self {
            PartitionBy::Day => Partition::day(time),
            PartitionBy::Hour => Partition::hour(time),
        }
    }
}

/// How change files are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterOptions {
    /// How pages are compressed.
    pub compression: Codec,
    /// How long a partition is.
    pub partition: PartitionBy,
    /// A row group ends at this many rows.
    pub row_group_rows: usize,
    /// A row group ends at about this many encoded bytes, which the encoder holds in memory.
    pub row_group_bytes: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        WriterOptions {
            compression: Codec::default(),
            partition: PartitionBy::default(),
            row_group_rows: 1 << 20,
            row_group_bytes: 32 << 20,
        }
    }
}

enum Message {
    Batch(TableBatch),
    Group(RowGroup),
    Finish,
}

/// One change file being written: rows of one schema version of one table.
pub struct FileWriter {
    path: String,
    schema: Arc<TableSchema>,
    queue: mpsc::Sender<Message>,
    task: Option<JoinHandle<Result<FileEntry>>>,
    /// Dropped with the writer: the task then gives the file up, wherever it waits.
    _wanted: watch::Sender<()>,
    /// Bytes queued and held by the encoder.
    held: Arc<AtomicUsize>,
    /// Bytes encoded.
    encoded: Arc<AtomicUsize>,
}

impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileWriter({})", self.path)
    }
}

impl FileWriter {
    /// Begins the file `path` (relative to the stream) of a stream; see
    /// [`crate::CommitLog::file_writer`], which makes the path too.
    ///
    /// # Errors
    /// Those of [`Store::upload`].
    pub async fn create(
        store: &Arc<dyn Store>,
        layout: &Layout,
        path: String,
        stream: &str,
        schema: Arc<TableSchema>,
        id: FileId,
        options: &WriterOptions,
    ) -> Result<FileWriter> {
        let encoder = Encoder::new(stream, schema.clone(), id, options)?;
        let upload = store.upload(&layout.key(&path)).await?;
        let (queue, messages) = mpsc::channel(QUEUED_BATCHES);
        let held = Arc::new(AtomicUsize::new(0));
        let encoded = Arc::new(AtomicUsize::new(0));
        let counters = (held.clone(), encoded.clone());
        let (wanted, dropped) = watch::channel(());
        let task = tokio::spawn(write_file(
            encoder,
            upload,
            (messages, dropped),
            path.clone(),
            counters,
        ));
        Ok(FileWriter {
            path,
            schema,
            queue,
            task: Some(task),
            _wanted: wanted,
            held,
            encoded,
        })
    }

    /// The file's path, relative to the stream: what its entry will name.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The schema version that the rows must have.
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    /// Bytes of memory held by rows that wait and by the open row group.
    pub fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// About how long the file is with what is encoded so far.
    pub fn encoded_bytes(&self) -> usize {
        self.encoded.load(Ordering::Relaxed)
    }

    /// Appends rows; waits while the encoder is behind.
    ///
    /// # Errors
    /// What broke the file: a retryable error of the store, or [`caudal_model::Kind::Bug`]
    /// for rows of another schema version. The writer is then of no more use.
    pub async fn write(&mut self, batch: TableBatch) -> Result<()> {
        check_version(&self.schema, &batch.schema)?;
        let bytes = batch.bytes();
        self.send(Message::Batch(batch), bytes).await
    }

    /// Appends a row group that a [`GroupWriter`] of this schema version encoded.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    pub async fn append(&mut self, group: RowGroup) -> Result<()> {
        let bytes = group.bytes();
        self.send(Message::Group(group), bytes).await
    }

    async fn send(&mut self, message: Message, bytes: usize) -> Result<()> {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        if self.queue.send(message).await.is_err() {
            // The task ends early only by an error.
            self.outcome().await?;
        }
        Ok(())
    }

    /// Ends the file: all of it is in the store, durably, and its entry can be committed.
    ///
    /// # Errors
    /// What broke the file; it then does not exist.
    pub async fn finish(mut self) -> Result<FileEntry> {
        // If the task is gone, its error says more than the closed queue.
        let _ = self.queue.send(Message::Finish).await;
        self.outcome().await
    }

    /// Gives the file up, leaving nothing behind where the store can be reached.
    pub async fn abort(mut self) {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.queue, closed));
        // It ends with an error that says that it was given up.
        let _ = self.outcome().await;
    }

    async fn outcome(&mut self) -> Result<FileEntry> {
        match self.task.take() {
            Some(task) => task
                .await
                .map_err(|e| Error::bug("a file's writer ended abnormally").caused_by(e))?,
            None => Err(Error::bug(format!(
                "{} was used after it failed",
                self.path
            ))),
        }
    }
}

fn check_version(file: &TableSchema, rows: &TableSchema) -> Result<()> {
    if rows.table == file.table && rows.version == file.version {
        return Ok(());
    }
    Err(Error::bug(format!(
        "rows of {} version {} were given to a file of {} version {}",
        rows.table, rows.version, file.table, file.version
    )))
}

async fn write_file(
    encoder: Encoder,
    mut upload: Box<dyn Upload>,
    (mut messages, mut dropped): (mpsc::Receiver<Message>, watch::Receiver<()>),
    path: String,
    counters: (Arc<AtomicUsize>, Arc<AtomicUsize>),
) -> Result<FileEntry> {
    // A slow store would keep the rows of an attempt that is over in memory, beside the next one's.
    let encoded = tokio::select! {
        encoded = encode_all(encoder, &mut upload, &mut messages, &path, &counters) => encoded,
        _ = dropped.changed() => Err(given_up()),
    };
    match encoded {
        Ok(entry) => {
            upload
                .finish()
                .await
                .map_err(|e| e.context(format!("writing {path}")))?;
            Ok(entry)
        }
        Err(e) => {
            // What it leaves is found by `Store::abort_uploads`.
            if let Err(left) = upload.abort().await {
                tracing::debug!(path, error = %left, "an upload could not be aborted");
            }
            Err(e.context(format!("writing {path}")))
        }
    }
}

fn given_up() -> Error {
    Error::bug("the file was given up before it was finished")
}

async fn encode_all(
    mut encoder: Encoder,
    upload: &mut Box<dyn Upload>,
    messages: &mut mpsc::Receiver<Message>,
    path: &str,
    (held, encoded): &(Arc<AtomicUsize>, Arc<AtomicUsize>),
) -> Result<FileEntry> {
    let mut open_group = 0;
    loop {
        let message = match messages.recv().await {
            Some(Message::Finish) => break,
            Some(rows) => rows,
            None => return Err(given_up()),
        };
        let bytes = match &message {
            Message::Batch(batch) => batch.bytes(),
            Message::Group(group) => group.bytes(),
            Message::Finish => 0,
        };
        let mut rest = Some(message);
        while let Some(rows) = rest.take() {
            // Row groups go out as they are full, not when the whole batch is encoded.
            let (back, left, out) = on_encoder_pool(move || {
                let left = match rows {
                    Message::Batch(batch) => encoder.write(batch)?,
                    Message::Group(group) => {
                        encoder.append(group)?;
                        None
                    }
                    Message::Finish => None,
                };
                let out = encoder.take_output()?;
                Ok((encoder, left.map(Message::Batch), out))
            })
            .await?;
            (encoder, rest) = (back, left);
            if !out.is_empty() {
                upload.write(out).await?;
            }
        }
        let now = encoder.memory_bytes();
        held.fetch_add(now, Ordering::Relaxed);
        held.fetch_sub(open_group + bytes, Ordering::Relaxed);
        open_group = now;
        encoded.store(encoder.encoded_bytes(), Ordering::Relaxed);
    }
    let (out, entry) = on_encoder_pool(move || encoder.finish()).await?;
    upload.write(out).await?;
    held.fetch_sub(open_group, Ordering::Relaxed);
    Ok(FileEntry {
        path: path.to_owned(),
        ..entry
    })
}

async fn on_encoder_pool<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let _turn = ENCODERS
        .acquire()
        .await
        .map_err(|e| Error::bug("the encoders' permits are gone").caused_by(e))?;
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::bug("an encoder ended abnormally").caused_by(e))?
}

#[cfg(test)]
mod tests;
