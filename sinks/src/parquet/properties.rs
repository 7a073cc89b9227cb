//! How a file's columns are encoded, chosen by its first rows.

use super::{Codec, WriterOptions};
use crate::layout::FileId;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use caudal_model::TableSchema;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};
use parquet::schema::types::ColumnPath;
use std::collections::HashSet;

/// Rows looked at to tell whether a column repeats its values.
const SAMPLE_ROWS: usize = 2048;
/// Longer values are cut in statistics and indexes: a bound is enough to skip pages.
const STATISTICS_BYTES: usize = 64;

/// Of a file whose row groups may have been encoded apart from it.
pub(super) fn file_properties(
    schema: &TableSchema,
    stream: &str,
    id: FileId,
    options: &WriterOptions,
) -> WriterProperties {
    let meta = |key: &str, value: String| KeyValue::new(format!("caudal.{key}"), value);
    builder(options)
        .set_created_by(concat!("caudal version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![
            meta("stream", stream.to_owned()),
            meta("table", schema.table.to_string()),
            meta("schema_version", schema.version.to_string()),
            meta("epoch", id.epoch.to_string()),
        ]))
        .build()
}

fn builder(options: &WriterOptions) -> WriterPropertiesBuilder {
    let codec = match options.compression {
        // The least level: encoders share the cores with the decoders.
        Codec::Zstd => Compression::ZSTD(ZstdLevel::default()),
        Codec::Snappy => Compression::SNAPPY,
        Codec::None => Compression::UNCOMPRESSED,
    };
    WriterProperties::builder()
        // Version 1 data pages and plain encodings: every reader has them.
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(codec)
        // Pages with statistics make the column index; the offset index is on by default.
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(Some(STATISTICS_BYTES))
        .set_column_index_truncate_length(Some(STATISTICS_BYTES))
}

/// Of the columns of row groups that begin with these rows.
pub(super) fn column_properties(options: &WriterOptions, sample: &RecordBatch) -> WriterProperties {
    let mut builder = builder(options);
    for (field, column) in sample.schema_ref().fields().iter().zip(sample.columns()) {
        if !worth_a_dictionary(column) {
            let path = ColumnPath::from(field.name().as_str());
            builder = builder.set_column_dictionary_enabled(path, false);
        }
    }
    builder.build()
}

/// Whether the values repeat enough: hashing every value of a key, a counter or a
/// free text into a dictionary that overflows in the end is most of encoding's cost.
fn worth_a_dictionary(column: &ArrayRef) -> bool {
    let rows = column.len().min(SAMPLE_ROWS);
    // Spread over the batch: neighbours repeat in data sorted by something else.
    let step = (column.len() / rows.max(1)).max(1);
    let picked = (0..rows).map(|i| i * step).filter(|i| column.is_valid(*i));
    let (mut seen, mut distinct) = (0_usize, HashSet::new());
    match column.data_type() {
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            for i in picked {
                seen += 1;
                distinct.insert(values.value(i).as_bytes());
            }
        }
        DataType::Binary => {
            let values = column.as_binary::<i32>();
            for i in picked {
                seen += 1;
                distinct.insert(values.value(i));
            }
        }
        DataType::Dictionary(_, _) => {
            let values = column.as_any_dictionary();
            return values.values().len() <= 2 || values.values().len() * 2 < column.len();
        }
        // Bits are never put in a dictionary; one of nested values costs little.
        DataType::Boolean | DataType::List(_) | DataType::Map(_, _) => return true,
        fixed => {
            let data = column.to_data();
            let Some(width) = fixed.primitive_width() else {
                return true;
            };
            let Some(buffer) = data.buffers().first() else {
                return true;
            };
            let mut distinct = HashSet::new();
            for i in picked {
                let at = (data.offset() + i) * width;
                seen += 1;
                distinct.insert(buffer.as_slice().get(at..at + width).unwrap_or_default());
            }
            return repeats(seen, distinct.len());
        }
    }
    repeats(seen, distinct.len())
}

fn repeats(seen: usize, distinct: usize) -> bool {
    // A few rows say nothing, and cost nothing.
    seen < 16 || distinct * 2 < seen
}
