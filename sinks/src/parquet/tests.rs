//! Tests of the writer: what it writes is read back by the same library; other readers
//! are tried in the integration tests.

use super::*;
use crate::store::memory::{Fault, MemoryStore, Operation, OperationKind, StoreHook};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Decimal128Type, Int64Type, TimestampMicrosecondType};
use async_trait::async_trait;
use bytes::Bytes;
use caudal_model::schema::{ColumnSpec, META_COLUMNS};
use caudal_model::{ChangeBuffer, ColumnBuilder, Kind, LakeType, Op, TableName, TransactionMeta};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Encoding;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use sha2::{Digest, Sha256};

fn columns() -> Vec<(&'static str, LakeType)> {
    vec![
        ("id", LakeType::Int64),
        ("small", LakeType::Int8),
        ("flag", LakeType::Boolean),
        ("ratio", LakeType::Float64),
        (
            "amount",
            LakeType::Decimal {
                precision: 38,
                scale: 4,
            },
        ),
        (
            "price",
            LakeType::Decimal {
                precision: 12,
                scale: 2,
            },
        ),
        ("status", LakeType::Utf8),
        ("note", LakeType::Utf8),
        ("raw", LakeType::Binary),
        ("day", LakeType::Date32),
        ("at", LakeType::Time64),
        ("local", LakeType::Timestamp),
        ("instant", LakeType::TimestampUtc),
        ("tags", LakeType::List(Box::new(LakeType::Utf8))),
        ("attributes", LakeType::Map),
    ]
}

fn schema() -> Arc<TableSchema> {
    let specs = columns()
        .into_iter()
        .map(|(name, lake_type)| ColumnSpec::new(name, lake_type.to_string(), lake_type));
    let table = TableName::new("public", "orders");
    Arc::new(TableSchema::first(
        table,
        1,
        specs.collect(),
        vec!["id".into()],
    ))
}

fn append_row(buffer: &mut ChangeBuffer, schema: &Arc<TableSchema>, i: i64) {
    let slot = buffer.slot(schema);
    let mut row = buffer.row(slot, Op::Insert);
    for at in 0..schema.columns.len() {
        // Every column but the key is null in some rows.
        if at > 0 && (i as usize + at).is_multiple_of(7) {
            row.column(at).push_null();
            continue;
        }
        match row.column(at) {
            ColumnBuilder::Boolean(c) => c.push(i % 2 == 0),
            ColumnBuilder::Int8(c) => c.push((i % 100) as i8),
            ColumnBuilder::Int64(c) => c.push(i),
            ColumnBuilder::Float64(c) => c.push(i as f64 / 3.0),
            ColumnBuilder::Decimal(c, ..) => c.push(i128::from(i) * 101),
            ColumnBuilder::Date32(c) => c.push(20_000 + (i % 50) as i32),
            ColumnBuilder::Time64(c) => c.push(i * 1_000_003 % 86_400_000_000),
            ColumnBuilder::Timestamp(c) => c.push(1_700_000_000_000_000 + i),
            ColumnBuilder::TimestampUtc(c) => c.push(1_700_000_000_000_000 + i),
            ColumnBuilder::Utf8(c) if at == 6 => c.push(["new", "paid"][i as usize % 2].as_bytes()),
            ColumnBuilder::Utf8(c) => c.push(format!("note {i} ü").as_bytes()),
            ColumnBuilder::Binary(c) => c.push(&i.to_be_bytes()),
            other => fill_nested(other, i),
        }
    }
    row.finish();
}

fn fill_nested(column: &mut ColumnBuilder, i: i64) {
    if matches!(column, ColumnBuilder::Map(..)) {
        column.push_entry("k", (i % 2 == 0).then_some("v"));
        column.close_list();
        return;
    }
    for n in 0..i % 3 {
        match column.list_items() {
            ColumnBuilder::Utf8(items) if n == 0 => items.push(b"tag"),
            items => items.push_null(),
        }
    }
    column.close_list();
}

fn batch(schema: &Arc<TableSchema>, first_seq: i64, rows: i64) -> TableBatch {
    let mut buffer = ChangeBuffer::new(first_seq, usize::MAX);
    for i in 0..rows {
        if i % 10 == 0 {
            let position = format!("0/{:X}", first_seq + i);
            buffer.begin(TransactionMeta {
                committed_at_us: i,
                position: position.into(),
            });
        }
        append_row(&mut buffer, schema, first_seq + i);
    }
    buffer.take().unwrap().remove(0)
}

async fn begin(store: &MemoryStore, options: &WriterOptions) -> FileWriter {
    let store: Arc<dyn Store> = Arc::new(store.clone());
    let id = FileId {
        epoch: 42,
        generation: 1,
        n: 0,
    };
    let layout = Layout::new("shop");
    let path = Layout::change_file(&schema().table, &Partition::now_by_day(), id);
    FileWriter::create(&store, &layout, path, "shop", schema(), id, options)
        .await
        .unwrap()
}

async fn write(options: &WriterOptions, batches: Vec<TableBatch>) -> (FileEntry, Bytes) {
    let store = MemoryStore::new();
    let mut writer = begin(&store, options).await;
    for batch in batches {
        writer.write(batch).await.unwrap();
    }
    let entry = writer.finish().await.unwrap();
    let bytes = store.objects()[&format!("shop/{}", entry.path)].clone();
    (entry, bytes)
}

fn read(bytes: &Bytes) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap();
    reader
        .with_batch_size(100_000)
        .build()
        .unwrap()
        .map(|b| b.unwrap())
        .collect()
}

fn metadata(bytes: &Bytes) -> ParquetMetaData {
    ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(bytes)
        .unwrap()
}

#[tokio::test]
async fn what_was_written_is_read_back() {
    for compression in [Codec::Zstd, Codec::Snappy, Codec::None] {
        let options = WriterOptions {
            compression,
            ..WriterOptions::default()
        };
        let written = [batch(&schema(), 101, 1000), batch(&schema(), 1101, 10)];
        let (entry, bytes) = write(&options, written.to_vec()).await;
        assert_eq!(
            (entry.rows, entry.first_seq, entry.last_seq),
            (1010, 101, 1110)
        );
        assert_eq!(entry.bytes, bytes.len() as u64);
        assert_eq!(entry.sha256, hex::encode(Sha256::digest(&bytes)));
        assert!(
            entry.path.starts_with("public/orders/changes/_date="),
            "{}",
            entry.path
        );
        let rows = read(&bytes).remove(0);
        assert_eq!(rows.num_rows(), 1010);
        for (at, (name, lake_type)) in columns().iter().enumerate() {
            assert_eq!(rows.schema().field(at).name(), name);
            // The map's inner names are the reader's own.
            if !matches!(lake_type, LakeType::Map) {
                assert_eq!(rows.column(at).data_type(), &lake_type.arrow(), "{name}");
                assert_eq!(
                    &rows.column(at).slice(0, 1000),
                    written[0].rows.column(at),
                    "{name}"
                );
            }
        }
        let n = columns().len();
        let types: Vec<&DataType> = rows.columns()[n..].iter().map(|c| c.data_type()).collect();
        assert_eq!(types[0], &DataType::Utf8, "no dictionary leaks");
        assert_eq!(types[3], &DataType::Utf8, "no dictionary leaks");
        assert_eq!(rows.column(n).as_string::<i32>().value(7), "c");
        assert_eq!(
            rows.column(n + 1).as_primitive::<Int64Type>().value(1009),
            1110
        );
        assert_eq!(
            rows.column(n + 2)
                .as_primitive::<TimestampMicrosecondType>()
                .value(999),
            990
        );
        assert_eq!(rows.column(n + 3).as_string::<i32>().value(1009), "0/44D");
        assert_eq!(
            rows.column(4).as_primitive::<Decimal128Type>().value(1),
            102 * 101
        );
    }
}

#[tokio::test]
async fn files_carry_field_ids_indexes_statistics_and_their_origin() {
    let (_, bytes) = write(&WriterOptions::default(), vec![batch(&schema(), 1, 50_000)]).await;
    let metadata = metadata(&bytes);
    let fields = metadata.file_metadata().schema().get_fields();
    let ids: Vec<i32> = fields.iter().map(|f| f.get_basic_info().id()).collect();
    let meta = META_COLUMNS.map(|(_, id)| id);
    assert_eq!(ids, (1..=15).chain(meta).collect::<Vec<_>>());
    let pairs = metadata.file_metadata().key_value_metadata().unwrap();
    let value = |k: &str| {
        pairs
            .iter()
            .find(|p| p.key == k)
            .and_then(|p| p.value.as_deref())
    };
    assert_eq!(value("caudal.stream"), Some("shop"));
    assert_eq!(value("caudal.table"), Some("public.orders"));
    assert_eq!(value("caudal.schema_version"), Some("1"));
    assert_eq!(value("caudal.epoch"), Some("42"));
    assert_eq!(value("ARROW:schema"), None);
    let group = metadata.row_group(0);
    for column in group.columns() {
        let path = column.column_path().string();
        assert!(column.statistics().is_some(), "{path}");
        assert!(column.column_index_offset().is_some(), "{path}");
        assert!(column.offset_index_offset().is_some(), "{path}");
    }
    let has_dictionary = |name: &str| {
        let column = group
            .columns()
            .iter()
            .find(|c| c.column_path().string() == name)
            .unwrap();
        column
            .encodings()
            .any(|e| e == Encoding::RLE_DICTIONARY || e == Encoding::PLAIN_DICTIONARY)
    };
    for (name, dictionary) in [
        ("id", false),
        ("note", false),
        ("_seq", false),
        ("status", true),
        ("_op", true),
        ("_position", true),
        ("small", true),
    ] {
        assert_eq!(has_dictionary(name), dictionary, "{name}");
    }
}

#[tokio::test]
async fn row_groups_are_bounded_by_rows_and_by_bytes() {
    let batches = || {
        vec![
            batch(&schema(), 1, 30_000),
            batch(&schema(), 30_001, 30_000),
        ]
    };
    let by_rows = WriterOptions {
        row_group_rows: 25_000,
        ..WriterOptions::default()
    };
    let (entry, bytes) = write(&by_rows, batches()).await;
    assert_eq!(
        (entry.rows, entry.first_seq, entry.last_seq),
        (60_000, 1, 60_000)
    );
    let groups = |bytes: &Bytes| {
        metadata(bytes)
            .row_groups()
            .iter()
            .map(|g| g.num_rows())
            .collect::<Vec<_>>()
    };
    assert_eq!(groups(&bytes), [25_000, 25_000, 10_000]);
    let by_bytes = WriterOptions {
        row_group_bytes: 100_000,
        ..WriterOptions::default()
    };
    let (_, bytes) = write(&by_bytes, batches()).await;
    assert!(groups(&bytes).len() >= 3, "{:?}", groups(&bytes));
    assert_eq!(
        read(&bytes)
            .iter()
            .map(RecordBatch::num_rows)
            .sum::<usize>(),
        60_000
    );
}

#[tokio::test]
async fn row_groups_are_encoded_beside_each_other() {
    let options = WriterOptions {
        row_group_rows: 25_000,
        ..WriterOptions::default()
    };
    let mut first = GroupWriter::new(schema(), &options);
    let mut second = GroupWriter::new(schema(), &options);
    for writer in [&mut first, &mut second] {
        writer.write(batch(&schema(), 1, 30_000)).await.unwrap();
    }
    let other = Arc::new(TableSchema {
        version: 2,
        ..(*schema()).clone()
    });
    assert_eq!(
        second.write(batch(&other, 1, 1)).await.unwrap_err().kind(),
        Kind::Bug
    );
    let store = MemoryStore::new();
    let mut file = begin(&store, &options).await;
    for group in second.finish().await.unwrap() {
        file.append(group).await.unwrap();
    }
    file.write(batch(&schema(), 30_001, 10)).await.unwrap();
    for group in first.finish().await.unwrap() {
        file.append(group).await.unwrap();
    }
    let entry = file.finish().await.unwrap();
    assert_eq!(
        (entry.rows, entry.first_seq, entry.last_seq),
        (60_010, 1, 30_010)
    );
    let bytes = store.objects()[&format!("shop/{}", entry.path)].clone();
    assert_eq!(entry.bytes, bytes.len() as u64);
    assert_eq!(entry.sha256, hex::encode(Sha256::digest(&bytes)));
    let groups = metadata(&bytes);
    let groups: Vec<i64> = groups.row_groups().iter().map(|g| g.num_rows()).collect();
    assert_eq!(groups, [25_000, 5_000, 25_000, 5_000, 10]);
    let (many, few) = (
        batch(&schema(), 1, 30_000).rows,
        batch(&schema(), 30_001, 10).rows,
    );
    let back = read(&bytes);
    let ids = |batches: &[RecordBatch]| -> i128 {
        let ids = batches
            .iter()
            .map(|b| b.column(0).as_primitive::<Int64Type>());
        ids.flat_map(|c| {
            c.values()
                .iter()
                .map(|v| i128::from(*v))
                .collect::<Vec<_>>()
        })
        .sum()
    };
    assert_eq!(ids(&back), ids(&[many.clone(), many, few]));
}

#[tokio::test]
async fn a_file_without_rows_is_still_a_file() {
    let (entry, bytes) = write(&WriterOptions::default(), vec![]).await;
    assert_eq!((entry.rows, entry.first_seq, entry.last_seq), (0, 0, 0));
    assert!(read(&bytes).is_empty());
}

#[tokio::test]
async fn an_aborted_or_dropped_file_leaves_nothing() {
    let store = MemoryStore::new();
    let mut writer = begin(&store, &WriterOptions::default()).await;
    writer.write(batch(&schema(), 1, 100)).await.unwrap();
    writer.abort().await;
    let mut writer = begin(&store, &WriterOptions::default()).await;
    writer.write(batch(&schema(), 1, 100)).await.unwrap();
    drop(writer);
    for _ in 0..1000 {
        if store.unfinished().is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(store.unfinished().is_empty() && store.objects().is_empty());
}

#[tokio::test]
async fn rows_of_another_version_are_refused() {
    let mut writer = begin(&MemoryStore::new(), &WriterOptions::default()).await;
    let other = Arc::new(TableSchema {
        version: 2,
        ..(*schema()).clone()
    });
    let error = writer.write(batch(&other, 1, 1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Bug);
}

struct FailWrites;

#[async_trait]
impl StoreHook for FailWrites {
    async fn before(&self, operation: &Operation) -> Fault {
        match operation.kind {
            OperationKind::UploadWrite => Fault::Fail,
            _ => Fault::None,
        }
    }
}

#[tokio::test]
async fn a_store_that_fails_is_seen_by_the_writer() {
    let store = MemoryStore::new().with_hook(Arc::new(FailWrites));
    let options = WriterOptions {
        row_group_rows: 10,
        ..WriterOptions::default()
    };
    let mut writer = begin(&store, &options).await;
    let mut failed = None;
    for i in 0..100 {
        if let Err(e) = writer.write(batch(&schema(), i * 100, 100)).await {
            failed = Some(e);
            break;
        }
    }
    let error = failed.expect("the queue is bounded, so a writer learns of it");
    assert_eq!(
        (error.class(), error.kind()),
        (caudal_model::Class::Retryable, Kind::Store)
    );
    assert!(writer.finish().await.is_err());
    assert!(store.unfinished().is_empty());
}

/// Writes a file for other readers, and measures: `cargo test --release -p caudal-sinks
/// measure -- --ignored --nocapture` with `CAUDAL_TEST_OUT` naming a directory.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)]
async fn measure() {
    let out = std::env::var("CAUDAL_TEST_OUT").expect("set CAUDAL_TEST_OUT");
    let store: Arc<dyn Store> = Arc::new(crate::LocalStore::open(&out).await.unwrap());
    let log = crate::CommitLog::new(store, "shop");
    let schema = schema();
    let batches: Vec<_> = (0..20)
        .map(|i| batch(&schema, i * 50_000 + 1, 50_000))
        .collect();
    let memory: usize = batches.iter().map(TableBatch::bytes).sum();
    for (n, compression) in [Codec::Zstd, Codec::Snappy, Codec::None]
        .into_iter()
        .enumerate()
    {
        let options = WriterOptions {
            compression,
            ..WriterOptions::default()
        };
        let started = std::time::Instant::now();
        let mut writer = log
            .file_writer(schema.clone(), 1, 1, n as u32, &options)
            .await
            .unwrap();
        let mut most = 0;
        for batch in &batches {
            writer.write(batch.clone()).await.unwrap();
            most = most.max(writer.held_bytes());
        }
        let entry = writer.finish().await.unwrap();
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{compression:?}: {:.0} rows/s, {:.0} MB/s of memory, {} bytes, held {most}: {}",
            entry.rows as f64 / seconds,
            memory as f64 / 1e6 / seconds,
            entry.bytes,
            entry.path
        );
    }
}

struct StallWrites;

#[async_trait]
impl StoreHook for StallWrites {
    async fn before(&self, operation: &Operation) -> Fault {
        if operation.kind == OperationKind::UploadWrite {
            std::future::pending::<()>().await;
        }
        Fault::None
    }
}

/// INV-9: what an attempt that is over had in memory is not kept until a slow store gives in.
#[tokio::test]
async fn a_dropped_file_does_not_wait_for_its_store() {
    let store = MemoryStore::new().with_hook(Arc::new(StallWrites));
    let options = WriterOptions {
        row_group_rows: 10,
        ..WriterOptions::default()
    };
    let mut writer = begin(&store, &options).await;
    let full = async {
        loop {
            writer.write(batch(&schema(), 1, 100)).await.unwrap();
        }
    };
    let full = tokio::time::timeout(std::time::Duration::from_millis(300), full).await;
    assert!(full.is_err(), "the store's stall is felt");
    drop(writer);
    for _ in 0..1000 {
        if store.unfinished().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the upload waits for ever");
}
