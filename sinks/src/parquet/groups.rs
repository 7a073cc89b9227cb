//! Row groups encoded apart from any file.

use super::encode::{GroupEncoder, RowGroup};
use super::{QUEUED_BATCHES, WriterOptions, check_version, on_encoder_pool};
use caudal_model::{Error, Result, TableBatch, TableSchema};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Encodes rows of one schema version of one table as row groups in memory. One that is
/// dropped leaves nothing.
pub struct GroupWriter {
    schema: Arc<TableSchema>,
    queue: mpsc::Sender<TableBatch>,
    task: JoinHandle<Result<Vec<RowGroup>>>,
    encoded: Arc<AtomicUsize>,
}

impl fmt::Debug for GroupWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupWriter({})", self.schema.table)
    }
}

impl GroupWriter {
    /// For rows of this version.
    pub fn new(schema: Arc<TableSchema>, options: &WriterOptions) -> Self {
        let encoder = GroupEncoder::new(schema.clone(), options);
        let (queue, batches) = mpsc::channel(QUEUED_BATCHES);
        let encoded = Arc::new(AtomicUsize::new(0));
        GroupWriter {
            task: tokio::spawn(encode_all(encoder, batches, encoded.clone())),
            schema,
            queue,
            encoded,
        }
    }

    /// About how many bytes the rows have become that are encoded so far; all of them are
    /// held in memory.
    pub fn encoded_bytes(&self) -> usize {
        self.encoded.load(Ordering::Relaxed)
    }

    /// Appends rows; waits while the encoder is behind.
    ///
    /// # Errors
    /// [`caudal_model::Kind::Bug`] for rows of another schema version, or that cannot be
    /// encoded.
    pub async fn write(&mut self, batch: TableBatch) -> Result<()> {
        check_version(&self.schema, &batch.schema)?;
        if self.queue.send(batch).await.is_err() {
            // The task ends early only by an error, which `finish` returns.
            return Err(Error::bug("row groups were written to after they failed"));
        }
        Ok(())
    }

    /// The row groups, in the order of their rows.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    pub async fn finish(self) -> Result<Vec<RowGroup>> {
        drop(self.queue);
        self.task
            .await
            .map_err(|e| Error::bug("an encoder ended abnormally").caused_by(e))?
    }
}

async fn encode_all(
    mut encoder: GroupEncoder,
    mut batches: mpsc::Receiver<TableBatch>,
    encoded: Arc<AtomicUsize>,
) -> Result<Vec<RowGroup>> {
    while let Some(batch) = batches.recv().await {
        let mut rest = Some(batch);
        while let Some(batch) = rest.take() {
            (encoder, rest) = on_encoder_pool(move || {
                let left = encoder.write(batch)?;
                Ok((encoder, left))
            })
            .await?;
        }
        encoded.store(encoder.encoded_bytes(), Ordering::Relaxed);
    }
    on_encoder_pool(move || encoder.finish()).await
}
