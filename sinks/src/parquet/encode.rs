//! Encoding: synchronous, output into memory that is taken away.
//!
//! A row group is encoded apart from its file ([`GroupEncoder`]), so that several cores can
//! work for one file, and rows of a chunk that fails never come near it.

use super::properties::{column_properties, file_properties};
use super::{FileEntry, WriterOptions, check_version};
use crate::layout::FileId;
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use caudal_model::{Error, Result, TableBatch, TableSchema};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;

/// Rows encoded at a time are about this many bytes of memory, so that a row group's
/// limit is looked at often enough for wide rows too.
const SLICE_BYTES: usize = 2 << 20;

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

fn file_writer<W: io::Write + Send>(
    output: W,
    arrow: &SchemaRef,
    properties: WriterProperties,
) -> Result<SerializedFileWriter<W>> {
    // Without the Arrow schema: it would make readers of Arrow give `_op` and
    // `_position` back as dictionaries.
    let schema = ArrowSchemaConverter::new().convert(arrow).map_err(broken)?;
    let root = schema.root_schema_ptr();
    SerializedFileWriter::new(output, root, Arc::new(properties)).map_err(broken)
}

/// An encoded row group, which is of no file yet.
pub struct RowGroup {
    schema: Arc<TableSchema>,
    columns: Vec<ArrowColumnChunk>,
    rows: u64,
    bytes: usize,
    first_seq: i64,
    last_seq: i64,
}

impl RowGroup {
    /// Encoded bytes, all held in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl std::fmt::Debug for RowGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowGroup({} rows, {} bytes)", self.rows, self.bytes)
    }
}

/// The row group that is open.
struct OpenGroup {
    schema: Arc<TableSchema>,
    columns: Vec<ArrowColumnWriter>,
    rows: u64,
    first_seq: i64,
    last_seq: i64,
}

/// Encodes batches of one schema version as row groups.
pub(super) struct GroupEncoder {
    schema: Arc<TableSchema>,
    arrow: SchemaRef,
    options: WriterOptions,
    /// Made with the first rows, which show what is worth a dictionary.
    factory: Option<ArrowRowGroupWriterFactory>,
    open: Option<OpenGroup>,
    full: Vec<RowGroup>,
}

impl GroupEncoder {
    pub(super) fn new(schema: Arc<TableSchema>, options: &WriterOptions) -> Self {
        GroupEncoder {
            arrow: schema.arrow_changes(),
            schema,
            options: options.clone(),
            factory: None,
            open: None,
            full: Vec::new(),
        }
    }

    fn columns(&mut self, sample: &RecordBatch) -> Result<Vec<ArrowColumnWriter>> {
        let factory = match self.factory.take() {
            Some(factory) => factory,
            None => {
                let properties = column_properties(&self.options, sample);
                let writer = file_writer(io::sink(), &self.arrow, properties)?;
                ArrowRowGroupWriterFactory::new(&writer, self.arrow.clone())
            }
        };
        // The number of a group matters where columns are encrypted, which these are not.
        let columns = factory.create_column_writers(0).map_err(broken)?;
        self.factory = Some(factory);
        Ok(columns)
    }

    /// Encodes rows until a row group is full; what it returns is to be written next.
    pub(super) fn write(&mut self, batch: TableBatch) -> Result<Option<TableBatch>> {
        let rows = batch.rows.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        let mut group = match self.open.take() {
            Some(group) => group,
            None => OpenGroup {
                schema: self.schema.clone(),
                columns: self.columns(&batch.rows)?,
                rows: 0,
                first_seq: i64::MAX,
                last_seq: i64::MIN,
            },
        };
        group.first_seq = group.first_seq.min(batch.first_seq);
        group.last_seq = group.last_seq.max(batch.last_seq);
        let row_bytes = sliced_bytes(&batch.rows).div_ceil(rows).max(1);
        let step = (SLICE_BYTES / row_bytes).clamp(1, 1 << 16);
        let mut at = 0;
        while at < rows && !self.is_full(&group) {
            let room = (self.options.row_group_rows as u64).saturating_sub(group.rows);
            let n = step.min(rows - at).min(room.max(1) as usize);
            group.write(&self.arrow, &batch.rows.slice(at, n))?;
            at += n;
        }
        if self.is_full(&group) {
            self.full.push(group.close()?);
        } else {
            self.open = Some(group);
        }
        Ok((at < rows).then(|| TableBatch {
            rows: batch.rows.slice(at, rows - at),
            ..batch
        }))
    }

    fn is_full(&self, group: &OpenGroup) -> bool {
        group.rows >= self.options.row_group_rows as u64
            || group.encoded_bytes() >= self.options.row_group_bytes
    }

    /// Bytes that everything not yet taken away holds.
    pub(super) fn memory_bytes(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |g| {
            g.columns.iter().map(ArrowColumnWriter::memory_size).sum()
        });
        open + self.full.iter().map(RowGroup::bytes).sum::<usize>()
    }

    /// About how many encoded bytes the rows not yet taken away are.
    pub(super) fn encoded_bytes(&self) -> usize {
        let open = self.open.as_ref().map_or(0, OpenGroup::encoded_bytes);
        open + self.full.iter().map(RowGroup::bytes).sum::<usize>()
    }

    /// The groups that are full.
    pub(super) fn take_full(&mut self) -> Vec<RowGroup> {
        std::mem::take(&mut self.full)
    }

    /// Every group, the open one included.
    pub(super) fn finish(mut self) -> Result<Vec<RowGroup>> {
        if let Some(group) = self.open.take() {
            self.full.push(group.close()?);
        }
        Ok(self.full)
    }
}

impl OpenGroup {
    fn write(&mut self, arrow: &SchemaRef, rows: &RecordBatch) -> Result<()> {
        let mut writers = self.columns.iter_mut();
        for (field, column) in arrow.fields().iter().zip(rows.columns()) {
            for leaf in compute_leaves(field, column).map_err(broken)? {
                let writer = writers.next();
                let writer = writer.ok_or_else(|| Error::bug("a file has too few columns"))?;
                writer.write(&leaf).map_err(broken)?;
            }
        }
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    fn encoded_bytes(&self) -> usize {
        let bytes = self.columns.iter();
        bytes
            .map(ArrowColumnWriter::get_estimated_total_bytes)
            .sum()
    }

    fn close(self) -> Result<RowGroup> {
        let columns: Vec<ArrowColumnChunk> = self
            .columns
            .into_iter()
            .map(ArrowColumnWriter::close)
            .collect::<Result<_, _>>()
            .map_err(broken)?;
        let bytes = columns.iter().map(|c| c.close().bytes_written).sum::<u64>();
        Ok(RowGroup {
            schema: self.schema,
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            columns,
            rows: self.rows,
            first_seq: self.first_seq,
            last_seq: self.last_seq,
        })
    }
}

/// Encodes one file: rows of its own, and row groups that were encoded apart.
pub(super) struct Encoder {
    groups: GroupEncoder,
    writer: SerializedFileWriter<Output>,
    rows: u64,
    first_seq: i64,
    last_seq: i64,
}

impl Encoder {
    pub(super) fn new(
        stream: &str,
        schema: Arc<TableSchema>,
        id: FileId,
        options: &WriterOptions,
    ) -> Result<Self> {
        let properties = file_properties(&schema, stream, id, options);
        let groups = GroupEncoder::new(schema, options);
        Ok(Encoder {
            writer: file_writer(Output::default(), &groups.arrow, properties)?,
            groups,
            rows: 0,
            first_seq: i64::MAX,
            last_seq: i64::MIN,
        })
    }

    /// Encodes rows until a row group is full; what it returns is to be written next.
    pub(super) fn write(&mut self, batch: TableBatch) -> Result<Option<TableBatch>> {
        let rest = self.groups.write(batch)?;
        for group in self.groups.take_full() {
            self.append(group)?;
        }
        Ok(rest)
    }

    /// Appends a row group of the file's schema version.
    pub(super) fn append(&mut self, group: RowGroup) -> Result<()> {
        check_version(&self.groups.schema, &group.schema)?;
        let mut writer = self.writer.next_row_group().map_err(broken)?;
        for column in group.columns {
            column.append_to_row_group(&mut writer).map_err(broken)?;
        }
        writer.close().map_err(broken)?;
        self.rows += group.rows;
        self.first_seq = self.first_seq.min(group.first_seq);
        self.last_seq = self.last_seq.max(group.last_seq);
        Ok(())
    }

    /// The bytes made since the last call.
    pub(super) fn take_output(&mut self) -> Result<Bytes> {
        // The file's offsets are counted beneath `inner`; taking what it holds does not shift them.
        self.writer.flush().map_err(|e| broken(e.into()))?;
        Ok(std::mem::take(&mut self.writer.inner_mut().pending).into())
    }

    /// Bytes that the open row group holds.
    pub(super) fn memory_bytes(&self) -> usize {
        self.groups.memory_bytes()
    }

    /// About how long the file is so far.
    pub(super) fn encoded_bytes(&self) -> usize {
        self.writer.inner().bytes as usize + self.groups.encoded_bytes()
    }

    /// The rest of the file, and its entry without a path.
    pub(super) fn finish(mut self) -> Result<(Bytes, FileEntry)> {
        let schema = self.groups.schema.clone();
        let options = self.groups.options.clone();
        let groups = std::mem::replace(&mut self.groups, GroupEncoder::new(schema, &options));
        for group in groups.finish()? {
            self.append(group)?;
        }
        let output = self.writer.into_inner().map_err(broken)?;
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
