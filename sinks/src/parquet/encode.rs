//! The encoder of one file: synchronous, output into memory that is taken away.

use super::properties::writer_properties;
use super::{FileEntry, WriterOptions};
use crate::layout::FileId;
use arrow::array::{Array, RecordBatch};
use bytes::Bytes;
use caudal_model::{Error, Result, TableBatch, TableSchema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;

/// Rows encoded at a time are about this many bytes of memory, so that a row group's
/// limit is looked at often enough for wide rows too.
const SLICE_BYTES: usize = 2 << 20;

/// Encodes batches of one schema version.
pub(super) struct Encoder {
    schema: Arc<TableSchema>,
    stream: String,
    id: FileId,
    options: WriterOptions,
    /// Made with the first rows, which show what is worth a dictionary.
    writer: Option<ArrowWriter<Output>>,
    rows: u64,
    first_seq: i64,
    last_seq: i64,
}

/// Collects what is written, and digests it on the way.
#[derive(Default)]
struct Output {
    pending: Vec<u8>,
    digest: Sha256,
    bytes: u64,
}

impl io::Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(buf);
        self.digest.update(buf);
        self.bytes += buf.len() as u64;
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(e: parquet::errors::ParquetError) -> Error {
    Error::bug("rows cannot be encoded as Parquet").caused_by(e)
}

impl Encoder {
    pub(super) fn new(
        stream: &str,
        schema: Arc<TableSchema>,
        id: FileId,
        options: &WriterOptions,
    ) -> Self {
        Encoder {
            schema,
            stream: stream.to_owned(),
            id,
            options: options.clone(),
            writer: None,
            rows: 0,
            first_seq: i64::MAX,
            last_seq: i64::MIN,
        }
    }

    fn open(&self, sample: &RecordBatch) -> Result<ArrowWriter<Output>> {
        let properties =
            writer_properties(&self.schema, &self.stream, self.id, &self.options, sample);
        // Without the Arrow schema: it would make readers of Arrow give `_op` and
        // `_position` back as dictionaries.
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_skip_arrow_metadata(true);
        ArrowWriter::try_new_with_options(Output::default(), self.schema.arrow_changes(), options)
            .map_err(broken)
    }

    /// Encodes rows until a row group is full; what it returns is to be written next.
    pub(super) fn write(&mut self, batch: TableBatch) -> Result<Option<TableBatch>> {
        let rows = batch.rows.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.open(&batch.rows)?,
        };
        let groups = writer.flushed_row_groups().len();
        let row_bytes = sliced_bytes(&batch.rows).div_ceil(rows).max(1);
        let step = (SLICE_BYTES / row_bytes).clamp(1, 1 << 16);
        let mut at = 0;
        while at < rows && writer.flushed_row_groups().len() == groups {
            let n = step.min(rows - at);
            writer.write(&batch.rows.slice(at, n)).map_err(broken)?;
            at += n;
        }
        self.writer = Some(writer);
        if at < rows {
            let rest = batch.rows.slice(at, rows - at);
            self.rows += at as u64;
            return Ok(Some(TableBatch {
                rows: rest,
                ..batch
            }));
        }
        self.rows += rows as u64;
        self.first_seq = self.first_seq.min(batch.first_seq);
        self.last_seq = self.last_seq.max(batch.last_seq);
        Ok(None)
    }

    /// The bytes made since the last call.
    pub(super) fn take_output(&mut self) -> Bytes {
        // Writing to `inner` would shift the file's offsets; taking what it holds does not.
        match &mut self.writer {
            Some(writer) => std::mem::take(&mut writer.inner_mut().pending).into(),
            None => Bytes::new(),
        }
    }

    /// Bytes that the open row group holds.
    pub(super) fn memory_bytes(&self) -> usize {
        self.writer.as_ref().map_or(0, ArrowWriter::memory_size)
    }

    /// The rest of the file, and its entry without a path.
    pub(super) fn finish(mut self) -> Result<(Bytes, FileEntry)> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.open(&RecordBatch::new_empty(self.schema.arrow_changes()))?,
        };
        let output = writer.into_inner().map_err(broken)?;
        let entry = FileEntry {
            path: String::new(),
            rows: self.rows,
            bytes: output.bytes,
            first_seq: if self.rows == 0 { 0 } else { self.first_seq },
            last_seq: if self.rows == 0 { 0 } else { self.last_seq },
            sha256: hex::encode(output.digest.finalize()),
        };
        Ok((output.pending.into(), entry))
    }
}

/// Bytes of a batch's own rows; [`RecordBatch::get_array_memory_size`] counts whole
/// buffers, which a slice shares.
fn sliced_bytes(batch: &RecordBatch) -> usize {
    batch
        .columns()
        .iter()
        .map(|c| c.to_data().get_slice_memory_size().unwrap_or(0))
        .sum()
}
