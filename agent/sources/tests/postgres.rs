//! The PostgreSQL source against a real server.
//!
//! Set `CAUDAL_TEST_PG_URL` to `host:port:database:user:password` of a superuser
//! whose server has `wal_level = logical`; without it these tests pass without doing anything.
//!
//! length: every case needs the same live server and the same reader of its events.

#![allow(clippy::unwrap_used)]

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use caudal_model::{
    ChangeBuffer, Position, Selection, TableBatch, TableName, TableSchema, TransactionMeta,
};
use caudal_sources::postgres::PostgresSource;
use caudal_sources::{
    ChunkEvent, Source, SourceOptions, TableOptions, Tail, TailEvent, TlsMode, TlsOptions,
    TrackedTable,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

struct Server {
    host: String,
    port: u16,
    database: String,
    user: String,
    password: String,
}

fn server() -> Option<Server> {
    let url = std::env::var("CAUDAL_TEST_PG_URL").ok()?;
    let mut parts = url.split(':').map(str::to_owned);
    Some(Server {
        host: parts.next()?,
        port: parts.next()?.parse().ok()?,
        database: parts.next()?,
        user: parts.next()?,
        password: parts.next()?,
    })
}

impl Server {
    async fn client(&self) -> Client {
        let text = format!(
            "host={} port={} dbname={} user={} password={}",
            self.host, self.port, self.database, self.user, self.password
        );
        let (client, connection) = tokio_postgres::connect(&text, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn options(&self, stream: &str) -> SourceOptions {
        SourceOptions {
            stream: stream.into(),
            host: self.host.clone(),
            port: self.port,
            database: Some(self.database.clone()),
            user: self.user.clone(),
            password: self.password.clone().into(),
            tls: TlsOptions {
                mode: TlsMode::Prefer,
                ca_file: None,
                cert_file: None,
                key_file: None,
            },
            server_id: None,
            slot: None,
            publication: None,
            selection: Selection::new(&[format!("{stream}.*")], &[]).unwrap(),
            tables: HashMap::new(),
            chunk_rows: 100,
            spill_dir: std::env::temp_dir()
                .join(format!("caudal-test-{stream}-{}", std::process::id())),
            staging_bytes: 64 << 10,
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// A fresh schema of the stream's name, and no slot or publication left from before.
    async fn fresh(&self, stream: &str, ddl: &str) -> Client {
        let client = self.client().await;
        let slot = format!("caudal_{stream}");
        client
            .batch_execute(&format!(
                "SET client_min_messages = warning;
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}';
                 DROP PUBLICATION IF EXISTS {slot};
                 DROP SCHEMA IF EXISTS {stream} CASCADE; CREATE SCHEMA {stream}; SET search_path = {stream}, public"
            ))
            .await
            .unwrap();
        client.batch_execute(ddl).await.unwrap();
        client
    }
}

/// Each statement on its own: together they would be one transaction.
async fn run(client: &Client, statements: &str) {
    for statement in statements.split(';') {
        client.batch_execute(statement).await.unwrap();
    }
}

/// One change as text: op, then `column=value` of cells that are not null, then unchanged columns.
fn show(batches: &[TableBatch]) -> Vec<(i64, String)> {
    let mut rows = Vec::new();
    for b in batches {
        let n = b.schema.columns.len();
        let format = FormatOptions::default();
        // Times as their numbers: infinity has no calendar date.
        let plain = |i: usize| {
            let column = b.rows.column(i);
            match column.data_type() {
                DataType::Timestamp(..) | DataType::Time64(_) => {
                    cast(column, &DataType::Int64).unwrap()
                }
                DataType::Date32 => cast(column, &DataType::Int32).unwrap(),
                _ => column.clone(),
            }
        };
        let arrays: Vec<_> = (0..b.rows.num_columns()).map(plain).collect();
        let column = |i: usize| ArrayFormatter::try_new(&arrays[i], &format).unwrap();
        let columns: Vec<_> = (0..n).map(column).collect();
        let op = column(n);
        let seq = b
            .rows
            .column(n + 1)
            .as_primitive::<arrow::datatypes::Int64Type>();
        for row in 0..b.rows.num_rows() {
            let mut text = format!("{}:{}", b.schema.table.name, op.value(row));
            for (i, c) in columns.iter().enumerate() {
                if b.rows.column(i).is_valid(row) {
                    text += &format!(" {}={}", b.schema.columns[i].name, c.value(row));
                }
            }
            if b.rows.column(n + 4).is_valid(row) {
                text += &format!(" unchanged={}", column(n + 4).value(row));
            }
            rows.push((seq.value(row), text));
        }
    }
    rows.sort();
    rows
}

struct Log {
    rows: Vec<String>,
    events: Vec<String>,
    reached: Position,
}

async fn drain(
    source: &dyn Source,
    tail: &mut dyn Tail,
    into: &mut ChangeBuffer,
    target: &Position,
) -> Log {
    let mut log = Log {
        rows: Vec::new(),
        events: Vec::new(),
        reached: Position::new("0/0"),
    };
    let mut batches = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), tail.next(into))
            .await
            .expect("the tail reaches the target")
            .unwrap();
        match event {
            TailEvent::Commit { position, .. } => {
                log.events.push("commit".into());
                log.reached = position;
            }
            TailEvent::Heartbeat { position } => log.reached = position,
            TailEvent::Schema(s) => log
                .events
                .push(format!("schema {} v{}", s.table, s.version)),
            TailEvent::TableFailed { table, error } => {
                log.events.push(format!(
                    "failed {table}: {error} [{}]",
                    error.hint_text().unwrap_or("")
                ));
            }
            TailEvent::Full => {
                log.events.push("full".into());
                batches.extend(into.take().unwrap());
            }
        }
        if source.covers(&log.reached, target).unwrap() && !tail.in_transaction() {
            break;
        }
    }
    batches.extend(into.take().unwrap());
    log.rows = show(&batches).into_iter().map(|(_, t)| t).collect();
    log
}

async fn tracked(source: &dyn Source) -> Vec<TrackedTable> {
    let mut tables = Vec::new();
    for d in source.discover().await.unwrap() {
        assert!(d.problems.is_empty(), "{:?}", d.problems);
        let next_column_id = d.columns.len() as i32 + 1;
        let schema = Arc::new(TableSchema::first(d.table, 1, d.columns, d.key));
        tables.push(TrackedTable {
            schema,
            next_column_id,
            mark: None,
            copying: false,
        });
    }
    tables
}

async fn copy(
    source: &dyn Source,
    schema: &Arc<TableSchema>,
    base: &Position,
    limit: usize,
) -> (Vec<String>, u32) {
    let mut reader = source.open_reader().await.unwrap();
    reader.await_visible(&schema.table, base).await.unwrap();
    let mut rows = Vec::new();
    let mut last = None;
    let mut chunks = 0;
    while let Some(chunk) = reader.plan(schema, last.as_ref()).await.unwrap() {
        chunks += 1;
        let mut into = ChangeBuffer::for_snapshot(1, limit);
        into.begin(TransactionMeta {
            committed_at_us: 0,
            position: "x".into(),
        });
        reader.start(schema, &chunk).await.unwrap();
        loop {
            let event = reader.next(&mut into).await.unwrap();
            rows.extend(show(&into.take().unwrap()).into_iter().map(|(_, t)| t));
            if matches!(event, ChunkEvent::Done) {
                break;
            }
        }
        last = Some(chunk);
    }
    (rows, chunks)
}

async fn start(source: &dyn Source) -> (Vec<TrackedTable>, Box<dyn Tail>) {
    let tables = tracked(source).await;
    let names: Vec<TableName> = tables.iter().map(|t| t.schema.table.clone()).collect();
    let from = source.prepare(&names).await.unwrap();
    assert_eq!(
        source.prepare(&names).await.unwrap(),
        from,
        "prepare is idempotent"
    );
    let tail = source.open_tail(&from, tables.clone()).await.unwrap();
    (tables, tail)
}

#[tokio::test]
async fn values_are_the_same_from_the_snapshot_and_from_the_log() {
    let Some(server) = server() else { return };
    let ddl = "
        CREATE TYPE mood AS ENUM ('sad', 'it''s ok'); CREATE DOMAIN price AS numeric(10,3);
        CREATE TYPE pair AS (a int, b text); CREATE DOMAIN dd AS price;
        CREATE TABLE v (id bigint PRIMARY KEY, b boolean, i2 smallint, i4 int, o oid, f4 real, f8 float8,
          n1 numeric(12,2), n2 numeric(38,10), n3 numeric, n4 numeric(50,3), n5 numeric(4,-2), m money,
          t text, vc varchar(9), c char(6), nm name, by bytea, u uuid, d date, ti time, tt timetz,
          iv interval, ts timestamp, tz timestamptz, j json, jb jsonb, x xml, ip inet, cd cidr, ma macaddr,
          bi bit(5), vb varbit, r int4range, tv tsvector, ls pg_lsn, e mood, p price, pp dd, co pair, pt point, ch \"char\",
          g bigint GENERATED ALWAYS AS (i4 + 1::bigint) STORED);
        CREATE FUNCTION fill(base bigint) RETURNS void LANGUAGE sql AS $$
        INSERT INTO v VALUES
         (base + 1, true, -32768, 2147483647, 4294967295, 1.1, 1e-310, -1.10, 1234567890123456789012345678.0123456789, 1.500, 0.001, 12345, '$1,234.50',
          'häß\"''\\ ', 'x', 'ab', 'nm', '\\x00ff10', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '2024-02-29', '24:00:00', '12:00:00.5+05:30',
          '1 year -2 days 03:04:05.678', '1999-12-31 23:59:59.999999', '2024-06-01 12:00:00+02', '{\"a\" :  1}', '{\"b\":2, \"a\":[1,null]}', '<a>x</a>',
          '192.168.1.1', '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', B'1', '[1,5)', 'a fat cat', '16/B374D848', 'it''s ok', 1.5, 2.25, ROW(1,'x y'), '(1.5,2)', 'q'),
         (base + 2, false, 0, -1, 0, 'NaN', '-Infinity', 0, 0, 'NaN', '-0.5', 0, '-$0.01', '', '', '', '', '', NULL, 'infinity', '00:00:00', '00:00:00+00',
          '-1 mon', 'infinity', '-infinity', 'null', 'null', '', '::1/128', '::/0', NULL, B'00000', B'', 'empty', '', '0/0', 'sad', 0, 0, ROW(NULL,NULL), NULL, NULL),
         (base + 3, NULL, NULL, NULL, NULL, '-0', 'Infinity', 9999999999.99, -0.0000000001, '123456789012345678901234567890.0', NULL, NULL, '-$92,233,720,368,547,758.08',
          E'\\n\\t', NULL, NULL, NULL, NULL, NULL, '-infinity', '12:34:56.789', NULL, NULL, '4713-01-01 00:00:00 BC', '0044-03-15 12:00:00+00 BC', '  [1]  ', '1.10', NULL, '10.1.2.3/8', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
         (base + 4, NULL, NULL, NULL, NULL, 3.4028235e38, 5e-324, NULL, NULL, '-Infinity', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '5874897-12-31', NULL, NULL, NULL,
          '294246-12-31 23:59:59.999999', '0001-01-01 00:00:00+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)
        $$;
        SELECT fill(0)";
    let version15 = "SHOW server_version_num";
    let client = server.client().await;
    let version: String = client.query_one(version15, &[]).await.unwrap().get(0);
    // Before 15 a numeric has no negative scale.
    let ddl = if version.parse::<i32>().unwrap() < 150_000 {
        ddl.replace("numeric(4,-2)", "numeric")
    } else {
        ddl.into()
    };
    let client = server.fresh("vals", &ddl).await;
    let mut options = server.options("vals");
    options.chunk_rows = 3;
    let source = PostgresSource::new(options).unwrap();
    let (tables, mut tail) = start(&source).await;
    client
        .batch_execute("SET datestyle = german; SELECT fill(10)")
        .await
        .unwrap();
    let target = source.current_position().await.unwrap();
    let mut into = ChangeBuffer::new(1, 1 << 20);
    let log = drain(&source, &mut *tail, &mut into, &target).await;
    let (copied, chunks) = copy(&source, &tables[0].schema, &target, 1 << 20).await;
    assert_eq!(
        (copied.len(), chunks, log.rows.len()),
        (8, 3, 4),
        "{:?} {:?}",
        copied,
        log.rows
    );
    for (i, line) in log.rows.iter().enumerate() {
        println!("{line}");
        let like_copy = line.replace("v:c id=1", "v:r id=1");
        let i4 = copied
            .iter()
            .find(|c| c.split(' ').nth(1) == line.split(' ').nth(1))
            .unwrap();
        assert_eq!(i4, &like_copy, "row {i}");
    }
    assert!(
        log.rows[0].contains("ip=192.168.1.1 cd=10.0.0.0/8"),
        "{}",
        log.rows[0]
    );
    assert!(
        log.rows[0].contains("iv=P1Y-2DT3H4M5.678S"),
        "{}",
        log.rows[0]
    );
}

#[tokio::test]
async fn updates_deletes_and_key_changes() {
    let Some(server) = server() else { return };
    let client = server
        .fresh(
            "ops",
            "CREATE TABLE k (a int, b text, big text, PRIMARY KEY (b, a)); ALTER TABLE k ALTER big SET STORAGE EXTERNAL;
             CREATE TABLE nokey (a int, big text); ALTER TABLE nokey REPLICA IDENTITY FULL; ALTER TABLE nokey ALTER big SET STORAGE EXTERNAL;
             CREATE TABLE other (id int PRIMARY KEY)",
        )
        .await;
    let source = PostgresSource::new(server.options("ops")).unwrap();
    let (_, mut tail) = start(&source).await;
    run(
        &client,
            "INSERT INTO k VALUES (1, 'x', repeat('z', 5000));
             UPDATE k SET a = 2; UPDATE k SET a = 2; UPDATE k SET b = 'y', big = 'small'; DELETE FROM k;
             INSERT INTO nokey VALUES (1, repeat('q', 4000)), (1, NULL);
             UPDATE nokey SET a = 3 WHERE big IS NOT NULL; DELETE FROM nokey WHERE big IS NULL;
             BEGIN; INSERT INTO k VALUES (5, 'r', NULL); ROLLBACK;
             BEGIN; INSERT INTO other VALUES (1); SAVEPOINT s; INSERT INTO other VALUES (2); ROLLBACK TO s; INSERT INTO other VALUES (3); COMMIT;
             TRUNCATE k, other",
    )
    .await;
    let target = source.current_position().await.unwrap();
    let mut into = ChangeBuffer::new(1, 1 << 20);
    let log = drain(&source, &mut *tail, &mut into, &target).await;
    let z = "z".repeat(5000);
    let q = "q".repeat(4000);
    let expected = vec![
        format!("k:c a=1 b=x big={z}"),
        "k:d a=1 b=x".into(),
        "k:c a=2 b=x unchanged=[big]".into(),
        "k:u a=2 b=x unchanged=[big]".into(),
        "k:d a=2 b=x".into(),
        "k:c a=2 b=y big=small".into(),
        "k:d a=2 b=y".into(),
        format!("nokey:c a=1 big={q}"),
        "nokey:c a=1".into(),
        format!("nokey:d a=1 big={q}"),
        format!("nokey:c a=3 big={q}"),
        "nokey:d a=1".into(),
        "other:c id=1".into(),
        "other:c id=3".into(),
        "k:t".into(),
        "other:t".into(),
    ];
    for (i, (a, b)) in log.rows.iter().zip(&expected).enumerate() {
        assert_eq!(&a[..a.len().min(80)], &b[..b.len().min(80)], "row {i}");
    }
    assert_eq!(log.rows, expected);

    // Nothing was acknowledged: a new tail at the start replays, one at the end does not.
    drop(tail);
    let from = source.prepare(&[]).await.unwrap();
    let mut tail = source
        .open_tail(&from, tracked(&source).await)
        .await
        .unwrap();
    assert_eq!(
        drain(&source, &mut *tail, &mut into, &target).await.rows,
        expected
    );
    tail.acknowledge(&target);
    client
        .batch_execute("INSERT INTO other VALUES (9)")
        .await
        .unwrap();
    let next = source.current_position().await.unwrap();
    assert_eq!(
        drain(&source, &mut *tail, &mut into, &next).await.rows,
        ["other:c id=9"]
    );
    drop(tail);
    let mut tail = source
        .open_tail(&target, tracked(&source).await)
        .await
        .unwrap();
    assert_eq!(
        drain(&source, &mut *tail, &mut into, &next).await.rows,
        ["other:c id=9"]
    );
    drop(tail);
    let error = source
        .open_tail(&from, tracked(&source).await)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), caudal_model::Kind::PositionLost, "{error}");
}

#[tokio::test]
async fn a_key_change_during_the_copy_never_loses_an_unchanged_cell() {
    let Some(server) = server() else { return };
    let client = server
        .fresh(
            "moving",
            "CREATE TABLE m (id int PRIMARY KEY, big text); ALTER TABLE m ALTER big SET STORAGE EXTERNAL",
        )
        .await;
    let source = PostgresSource::new(server.options("moving")).unwrap();
    let (mut tables, mut tail) = start(&source).await;
    tables[0].copying = true;
    tail.track(tables[0].clone());
    run(
        &client,
        "INSERT INTO m VALUES (1, repeat('z', 5000)); ALTER TABLE m REPLICA IDENTITY FULL; UPDATE m SET id = 2;
         ALTER TABLE m REPLICA IDENTITY DEFAULT; UPDATE m SET id = 3",
    )
    .await;
    let target = source.current_position().await.unwrap();
    let mut into = ChangeBuffer::new(1, 1 << 20);
    let log = drain(&source, &mut *tail, &mut into, &target).await;
    assert_eq!(
        log.rows.iter().map(|r| &r[..8]).collect::<Vec<_>>(),
        ["m:c id=1", "m:d id=1", "m:c id=2"]
    );
    assert!(log.rows[2].ends_with('z'));
    assert!(
        log.events
            .iter()
            .any(|e| e.contains("got another key while the table was copied")),
        "{:?}",
        log.events
    );
    tables[0].copying = true;
    tail.track(tables[0].clone());
    tail.live(&tables[0].schema.table);
    client.batch_execute("UPDATE m SET id = 4").await.unwrap();
    let target = source.current_position().await.unwrap();
    let log = drain(&source, &mut *tail, &mut into, &target).await;
    assert_eq!(log.rows, ["m:d id=3", "m:c id=4 unchanged=[big]"]);
}

#[tokio::test]
async fn streamed_transactions_spill_commit_and_abort() {
    let Some(server) = server() else { return };
    let client = server
        .fresh(
            "streamed",
            "CREATE TABLE s (id int PRIMARY KEY, t text); CREATE TABLE u (id int PRIMARY KEY)",
        )
        .await;
    client
        .batch_execute("SET logical_decoding_work_mem = '64kB'")
        .await
        .unwrap();
    let source = PostgresSource::new(server.options("streamed")).unwrap();
    let (_, mut tail) = start(&source).await;
    let other = server.client().await;
    client
        .batch_execute("BEGIN; INSERT INTO s SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i; SAVEPOINT a;
             INSERT INTO s SELECT i, 'gone' FROM generate_series(5001, 9000) i; ROLLBACK TO a;
             INSERT INTO s SELECT i, 'kept' FROM generate_series(9001, 9010) i")
        .await
        .unwrap();
    run(
        &other,
        "SET search_path = streamed; INSERT INTO u VALUES (1); BEGIN;
         INSERT INTO s SELECT i, repeat('y', 50) FROM generate_series(20000, 24000) i; ROLLBACK",
    )
    .await;
    let middle = source.current_position().await.unwrap();
    let mut into = ChangeBuffer::new(1, 100 << 10);
    let log = drain(&source, &mut *tail, &mut into, &middle).await;
    assert_eq!(log.rows, ["u:c id=1"]);
    assert!(tail.staged_bytes() <= 64 << 10, "{}", tail.staged_bytes());
    let spilled = || {
        std::fs::read_dir(server.options("streamed").spill_dir)
            .unwrap()
            .count()
    };
    assert_eq!(spilled(), 1);
    client.batch_execute("COMMIT").await.unwrap();
    let target = source.current_position().await.unwrap();
    let log = drain(&source, &mut *tail, &mut into, &target).await;
    assert_eq!(log.rows.len(), 5010);
    assert!(
        log.events.iter().filter(|e| *e == "full").count() > 3,
        "{:?}",
        log.events
    );
    assert_eq!(log.rows[5009], "s:c id=9010 t=kept");
    assert_eq!((tail.staged_bytes(), spilled()), (0, 0));

    // A stream that starts again between the parts of a transaction gets it whole.
    client
        .batch_execute(
            "BEGIN; INSERT INTO s SELECT i, repeat('x', 100) FROM generate_series(30000, 33000) i",
        )
        .await
        .unwrap();
    other
        .batch_execute("INSERT INTO u VALUES (2)")
        .await
        .unwrap();
    let middle = source.current_position().await.unwrap();
    let log = drain(&source, &mut *tail, &mut into, &middle).await;
    assert_eq!(log.rows, ["u:c id=2"]);
    tail.acknowledge(&log.reached);
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(tail);
    let mut tail = source
        .open_tail(&log.reached, tracked(&source).await)
        .await
        .unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    let target = source.current_position().await.unwrap();
    assert_eq!(
        drain(&source, &mut *tail, &mut into, &target)
            .await
            .rows
            .len(),
        3001
    );
}

#[tokio::test]
async fn schema_changes_and_data_errors_stop_one_table() {
    let Some(server) = server() else { return };
    let client = server
        .fresh("evolving", "CREATE TABLE e (id int PRIMARY KEY, a int, secret text); CREATE TABLE bad (id int PRIMARY KEY, n numeric(5,1)); CREATE TABLE ok (id int PRIMARY KEY)")
        .await;
    let mut options = server.options("evolving");
    let secret = TableOptions {
        exclude_columns: vec!["secret".into()],
        key: None,
    };
    options
        .tables
        .insert(TableName::new("evolving", "e"), secret);
    let source = PostgresSource::new(options).unwrap();
    let (_, mut tail) = start(&source).await;
    run(
        &client,
            "INSERT INTO e VALUES (1, 1, 'no'); ALTER TABLE e ADD n text DEFAULT 'd', ALTER a TYPE bigint; INSERT INTO e VALUES (2, 5000000000, 'no', 'x');
             INSERT INTO bad VALUES (1, 'NaN'); INSERT INTO bad VALUES (2, 1); INSERT INTO ok VALUES (1);
             CREATE TYPE evolving.color AS ENUM ('red'); ALTER TABLE ok ADD c evolving.color; INSERT INTO ok VALUES (2, 'red');
             ALTER TABLE e DROP a; UPDATE e SET n = 'y' WHERE id = 2; ALTER TABLE e ALTER id TYPE text; INSERT INTO e VALUES ('3', NULL); INSERT INTO ok VALUES (3)",
    )
    .await;
    let target = source.current_position().await.unwrap();
    let mut into = ChangeBuffer::new(1, 1 << 20);
    let log = drain(&source, &mut *tail, &mut into, &target).await;
    assert_eq!(
        log.rows,
        [
            "e:c id=1 a=1",
            "e:c id=2 a=5000000000 n=x",
            "ok:c id=1",
            "ok:c id=2 c=red",
            "e:u id=2 n=y",
            "ok:c id=3"
        ],
        "{:?}",
        log.events
    );
    let notable: Vec<&String> = log.events.iter().filter(|e| *e != "commit").collect();
    println!("{notable:#?}");
    assert_eq!(notable.len(), 5, "{notable:?}");
    assert!(
        notable[1].contains("column n holds NaN") && notable[1].contains("as = { n = \"string\" }"),
        "{notable:?}"
    );
}

#[tokio::test]
async fn an_exact_read_and_the_log_meet_without_a_gap() {
    let Some(server) = server() else { return };
    let client = server
        .fresh(
            "exact",
            "CREATE TABLE h (a int); ALTER TABLE h REPLICA IDENTITY FULL; INSERT INTO h VALUES (1)",
        )
        .await;
    let source = PostgresSource::new(server.options("exact")).unwrap();
    let (tables, mut tail) = start(&source).await;
    let open = server.client().await;
    open.batch_execute("SET search_path = exact; BEGIN; INSERT INTO h VALUES (2)")
        .await
        .unwrap();
    client
        .batch_execute("INSERT INTO h VALUES (3)")
        .await
        .unwrap();
    let base = source.current_position().await.unwrap();
    let mut into = ChangeBuffer::new(1, 1 << 20);
    drain(&source, &mut *tail, &mut into, &base).await;
    client
        .batch_execute("INSERT INTO h VALUES (4)")
        .await
        .unwrap();
    let schema = tables[0].schema.clone();
    let mut reader = source.open_reader().await.unwrap();
    let mark = reader.open_exact(&schema, &base).await.unwrap();
    tail.track(TrackedTable {
        mark: Some(mark),
        ..tables[0].clone()
    });
    open.batch_execute("COMMIT").await.unwrap();
    client
        .batch_execute("INSERT INTO h VALUES (5); UPDATE h SET a = 10 WHERE a = 1")
        .await
        .unwrap();
    let target = source.current_position().await.unwrap();
    let log = drain(&source, &mut *tail, &mut into, &target).await;
    let chunk = reader.plan(&schema, None).await.unwrap().unwrap();
    assert!(reader.plan(&schema, Some(&chunk)).await.unwrap().is_none());
    let mut rows = ChangeBuffer::for_snapshot(1, 1 << 20);
    rows.begin(TransactionMeta {
        committed_at_us: 0,
        position: "x".into(),
    });
    reader.start(&schema, &chunk).await.unwrap();
    assert!(matches!(
        reader.next(&mut rows).await.unwrap(),
        ChunkEvent::Done
    ));
    let rows: Vec<String> = show(&rows.take().unwrap())
        .into_iter()
        .map(|(_, t)| t)
        .collect();
    assert_eq!(rows, ["h:r a=1", "h:r a=3", "h:r a=4"]);
    assert_eq!(log.rows, ["h:c a=2", "h:c a=5", "h:d a=1", "h:c a=10"]);
}

#[tokio::test]
async fn an_idle_server_s_position_is_reached() {
    let Some(server) = server() else { return };
    let client = server
        .fresh("idle", "CREATE TABLE i (id int PRIMARY KEY, t text)")
        .await;
    let source = PostgresSource::new(server.options("idle")).unwrap();
    let (_, mut tail) = start(&source).await;
    let mut into = ChangeBuffer::new(1, 1 << 20);
    for n in 0..40 {
        match n % 4 {
            0 => client
                .batch_execute("SELECT pg_switch_wal()")
                .await
                .unwrap(),
            1 => {
                run(
                    &client,
                    &format!(
                        "SET synchronous_commit = off; INSERT INTO i VALUES ({n}, repeat('x', {}))",
                        n * 90
                    ),
                )
                .await
            }
            2 => run(&client, "BEGIN; INSERT INTO i VALUES (1000, 'open')").await,
            _ => client.batch_execute("ROLLBACK").await.unwrap(),
        }
        let target = source.current_position().await.unwrap();
        let started = std::time::Instant::now();
        drain(&source, &mut *tail, &mut into, &target).await;
        assert!(
            started.elapsed() < Duration::from_secs(3),
            "step {n} took {:?}",
            started.elapsed()
        );
    }
    let progress = source
        .progress(&source.current_position().await.unwrap())
        .await
        .unwrap();
    assert_eq!(progress.lag_bytes, Some(0));
    assert!(progress.retained_bytes.is_some());
}

#[tokio::test]
async fn check_names_what_is_missing_and_the_sql_that_mends_it() {
    let Some(server) = server() else { return };
    server
        .fresh(
            "checked",
            "CREATE TABLE fine (id int PRIMARY KEY); CREATE TABLE nokey (a int); CREATE TABLE arr (id int PRIMARY KEY, a int[]);
             CREATE UNLOGGED TABLE un (id int PRIMARY KEY); CREATE TABLE part (id int) PARTITION BY RANGE (id);
             CREATE TABLE clash (id int PRIMARY KEY, _op text); CREATE TABLE nulls (id int UNIQUE);
             CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE)",
        )
        .await;
    let mut options = server.options("checked");
    let key = TableOptions {
        exclude_columns: vec![],
        key: Some(vec!["id".into()]),
    };
    options
        .tables
        .insert(TableName::new("checked", "nulls"), key);
    let source = PostgresSource::new(options).unwrap();
    let findings = source.check().await.unwrap();
    for f in &findings {
        println!(
            "{:?} {} {:?}: {} => {:?}",
            f.severity, f.check, f.subject, f.reason, f.mend
        );
    }
    let errors: Vec<(&str, &str)> = findings
        .iter()
        .filter(|f| f.severity == caudal_model::Severity::Error)
        .map(|f| (f.check, f.subject.as_deref().unwrap_or("")))
        .collect();
    for expected in [
        ("unsupported_column", "checked.arr.a"),
        ("column_name", "checked.clash._op"),
        ("replica_identity", "checked.deferred"),
        ("replica_identity", "checked.nokey"),
        ("key", "checked.nulls.id"),
        ("table_kind", "checked.part"),
        ("table_kind", "checked.un"),
    ] {
        assert!(errors.contains(&expected), "{expected:?} in {errors:?}");
    }
    assert!(
        findings
            .iter()
            .filter(|f| f.severity == caudal_model::Severity::Error)
            .all(|f| f.mend.is_some())
    );
    assert!(
        !errors.iter().any(|(_, s)| *s == "checked.fine"),
        "{errors:?}"
    );
}

#[tokio::test]
async fn tls_verifies_and_wrong_credentials_are_told_apart() {
    let Some(server) = server() else { return };
    server
        .fresh("secure", "CREATE TABLE t (id int PRIMARY KEY)")
        .await;
    let attempt = |options: SourceOptions| async move {
        let source = PostgresSource::new(options).unwrap();
        source.check().await
    };
    let mut wrong = server.options("secure");
    wrong.password = "wrong".to_owned().into();
    let error = attempt(wrong).await.unwrap_err();
    assert_eq!(
        (error.class(), error.kind()),
        (caudal_model::Class::Fatal, caudal_model::Kind::Prerequisite),
        "{error}"
    );
    let mut absent = server.options("secure");
    absent.port = 1;
    assert_eq!(
        attempt(absent).await.unwrap_err().class(),
        caudal_model::Class::Retryable
    );
    let Ok(ca) = std::env::var("CAUDAL_TEST_PG_CA") else {
        return;
    };
    let mut full = server.options("secure");
    full.tls.mode = TlsMode::VerifyFull;
    full.tls.ca_file = Some(ca.into());
    let findings = attempt(full.clone()).await.unwrap();
    assert!(
        findings.iter().any(
            |f| f.check == "replication_connection" && f.severity == caudal_model::Severity::Ok
        )
    );
    full.tls.ca_file = None;
    assert_eq!(
        attempt(full).await.unwrap_err().kind(),
        caudal_model::Kind::Prerequisite
    );
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_copy_and_log() {
    let Some(server) = server() else { return };
    let client = server
        .fresh(
            "speed",
            "CREATE TABLE l (orderkey bigint, partkey bigint, suppkey bigint, linenumber int, quantity numeric(15,2), price numeric(15,2),
               discount numeric(15,2), tax numeric(15,2), flag char(1), status char(1), ship date, com date, rec date,
               instruct char(25), mode char(10), comment varchar(44), PRIMARY KEY (orderkey, linenumber));
             INSERT INTO l SELECT i / 4, i % 200000, i % 10000, i % 4, i % 50, (i % 100000) * 1.37, 0.05, 0.02, 'N', 'O', '1996-01-01'::date + i % 2000,
               '1996-02-01', '1996-03-01', 'DELIVER IN PERSON', 'TRUCK', 'egular courts above the ' || i FROM generate_series(1, 1500000) i;
             ANALYZE l",
        )
        .await;
    let mut options = server.options("speed");
    options.chunk_rows = 100_000;
    options.staging_bytes = 64 << 20;
    let source = PostgresSource::new(options).unwrap();
    let (tables, mut tail) = start(&source).await;
    let base = source.current_position().await.unwrap();
    let schema = &tables[0].schema;
    let mut reader = source.open_reader().await.unwrap();
    reader.await_visible(&schema.table, &base).await.unwrap();
    let started = std::time::Instant::now();
    let (mut rows, mut last) = (0, None);
    while let Some(chunk) = reader.plan(schema, last.as_ref()).await.unwrap() {
        let mut into = ChangeBuffer::for_snapshot(1, 8 << 20);
        into.begin(TransactionMeta {
            committed_at_us: 0,
            position: "x".into(),
        });
        reader.start(schema, &chunk).await.unwrap();
        loop {
            let event = reader.next(&mut into).await.unwrap();
            rows += into
                .take()
                .unwrap()
                .iter()
                .map(|b| b.rows.num_rows())
                .sum::<usize>();
            if matches!(event, ChunkEvent::Done) {
                break;
            }
        }
        last = Some(chunk);
    }
    eprintln!(
        "snapshot: {rows} rows, {:.0} rows/s",
        rows as f64 / started.elapsed().as_secs_f64()
    );
    client.batch_execute("DO $$ BEGIN FOR i IN 1..100000 LOOP INSERT INTO l VALUES (-i, 1, 1, 1, 1.5, 2.5, 0.1, 0.2, 'N', 'O', '1996-01-01', '1996-01-01', '1996-01-01', 'x', 'y', 'small'); COMMIT; END LOOP; END $$").await.unwrap();
    client.batch_execute("INSERT INTO l SELECT i / 4, i % 200000, i % 10000, i % 4, i % 50, (i % 100000) * 1.37, 0.05, 0.02, 'N', 'O', '1996-01-01'::date + i % 2000, '1996-02-01', '1996-03-01', 'DELIVER IN PERSON', 'TRUCK', 'egular courts above the ' || i FROM generate_series(2000000, 2500000) i").await.unwrap();
    let target = source.current_position().await.unwrap();
    let mut into = ChangeBuffer::new(1, 8 << 20);
    let started = std::time::Instant::now();
    let (mut rows, mut commits) = (0usize, 0);
    loop {
        let position = match tail.next(&mut into).await.unwrap() {
            TailEvent::Commit { position, .. } => {
                commits += 1;
                if commits == 100_000 {
                    eprintln!(
                        "small transactions: {:.0} commits/s",
                        commits as f64 / started.elapsed().as_secs_f64()
                    );
                }
                Some(position)
            }
            TailEvent::Heartbeat { position } => Some(position),
            _ => None,
        };
        if into.is_full() || position.is_some() && commits % 5000 == 0 {
            rows += into
                .take()
                .unwrap()
                .iter()
                .map(|b| b.rows.num_rows())
                .sum::<usize>();
        }
        if position.is_some_and(|p| source.covers(&p, &target).unwrap()) {
            break;
        }
    }
    eprintln!("log: {rows} rows in {:?}", started.elapsed());
}
