//! The MySQL and MariaDB source against real servers.
//!
//! Set `CAUDAL_TEST_MYSQL_URLS` to `kind:host:port:user:password` (several separated by
//! commas) of accounts that may do everything; without it these tests pass without doing
//! anything.
//!
//! length: every case needs the same live server and the same reader of its events.

#![allow(clippy::unwrap_used)]

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use caudal_model::{
    ChangeBuffer, Kind, Position, Selection, TableBatch, TableName, TableSchema, TransactionMeta,
};
use caudal_sources::mysql::wire::Connection;
use caudal_sources::mysql::{Flavor, MysqlSource};
use caudal_sources::{
    ChunkEvent, Source, SourceOptions, TableOptions, Tail, TailEvent, TlsMode, TlsOptions,
    TrackedTable,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone)]
struct Server {
    flavor: Flavor,
    host: String,
    port: u16,
    user: String,
    password: String,
}

fn servers() -> Vec<Server> {
    let urls = std::env::var("CAUDAL_TEST_MYSQL_URLS").unwrap_or_default();
    let parse = |url: &str| {
        let mut parts = url.split(':').map(str::to_owned);
        let flavor = if parts.next()? == "mariadb" {
            Flavor::MariaDb
        } else {
            Flavor::MySql
        };
        Some(Server {
            flavor,
            host: parts.next()?,
            port: parts.next()?.parse().ok()?,
            user: parts.next()?,
            password: parts.next()?,
        })
    };
    urls.split(',').filter_map(parse).collect()
}

impl Server {
    fn options(&self, database: &str) -> SourceOptions {
        SourceOptions {
            stream: format!("{database}-{}", self.port),
            host: self.host.clone(),
            port: self.port,
            database: None,
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
            selection: Selection::new(&[format!("{database}.*")], &[]).unwrap(),
            tables: HashMap::new(),
            chunk_rows: 3,
            spill_dir: std::env::temp_dir(),
            staging_bytes: 1 << 20,
            connect_timeout: Duration::from_secs(10),
        }
    }

    async fn client(&self) -> Connection {
        Connection::open(&self.options("mysql")).await.unwrap()
    }

    /// A fresh database.
    async fn fresh(&self, database: &str, statements: &[&str]) -> Connection {
        let mut c = self.client().await;
        run(
            &mut c,
            &[
                "SET NAMES utf8mb4, lock_wait_timeout = 20",
                "SET sql_mode = '', time_zone = '+02:00'",
            ],
        )
        .await;
        run(&mut c, &[&format!("DROP DATABASE IF EXISTS {database}")]).await;
        run(
            &mut c,
            &[
                &format!("CREATE DATABASE {database}"),
                &format!("USE {database}"),
            ],
        )
        .await;
        run(&mut c, statements).await;
        c
    }

    fn source(&self, options: SourceOptions) -> MysqlSource {
        MysqlSource::new(options, self.flavor).unwrap()
    }
}

async fn run(c: &mut Connection, statements: &[&str]) {
    for s in statements {
        if let Err(e) = c.query(s).await {
            panic!("{s}: {e}");
        }
    }
}

/// Each change as text: table, op, then `column=value` of cells that are not null.
fn show(batches: &[TableBatch]) -> Vec<String> {
    let mut rows = Vec::new();
    for b in batches {
        let n = b.schema.columns.len();
        let format = FormatOptions::default();
        // Without the time-zone database, only instants without a zone can be printed.
        let plain: Vec<_> = b
            .rows
            .columns()
            .iter()
            .map(|c| match c.data_type() {
                DataType::Timestamp(unit, Some(_)) => {
                    arrow::compute::cast(c, &DataType::Timestamp(*unit, None)).unwrap()
                }
                _ => c.clone(),
            })
            .collect();
        let column = |i: usize| ArrayFormatter::try_new(&plain[i], &format).unwrap();
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
            rows.push((seq.value(row), text));
        }
    }
    rows.sort_by_key(|r| r.0);
    rows.into_iter().map(|r| r.1).collect()
}

async fn schemas(source: &MysqlSource) -> Vec<Arc<TableSchema>> {
    let tables = source.discover().await.unwrap();
    for t in &tables {
        assert!(t.problems.is_empty(), "{:?}", t.problems);
    }
    tables
        .into_iter()
        .map(|t| Arc::new(TableSchema::first(t.table, 1, t.columns, t.key)))
        .collect()
}

fn tracked(schema: &Arc<TableSchema>) -> TrackedTable {
    TrackedTable {
        schema: schema.clone(),
        next_column_id: schema.columns.len() as i32 + 1,
        mark: None,
        copying: false,
    }
}

/// Reads until the tail covers what the source has now. Returns the rows and other events.
async fn drain(
    source: &MysqlSource,
    tail: &mut Box<dyn Tail>,
    limit: usize,
) -> (Vec<String>, Vec<TailEvent>, Position) {
    let target = source.current_position().await.unwrap();
    let mut rows = Vec::new();
    let mut others = Vec::new();
    let mut into = ChangeBuffer::new(1, limit);
    let started = std::time::Instant::now();
    loop {
        assert!(
            started.elapsed().as_secs() < 20,
            "{target} is not reached: {rows:?} {others:?}"
        );
        let next = tokio::time::timeout(Duration::from_secs(20), tail.next(&mut into));
        let event = next.await.expect("the tail stands still").unwrap();
        let position = match event {
            TailEvent::Full => {
                rows.extend(show(&into.take().unwrap()));
                continue;
            }
            TailEvent::Commit { position, .. } => position,
            TailEvent::Heartbeat { position } => position,
            other => {
                others.push(other);
                continue;
            }
        };
        if source.covers(&position, &target).unwrap() {
            rows.extend(show(&into.take().unwrap()));
            return (rows, others, position);
        }
    }
}

async fn snapshot(source: &MysqlSource, schema: &Arc<TableSchema>, base: &Position) -> Vec<String> {
    let mut reader = source.open_reader().await.unwrap();
    reader.await_visible(&schema.table, base).await.unwrap();
    if !schema.has_key() {
        reader.open_exact(schema, base).await.unwrap();
    }
    let mut rows = Vec::new();
    let mut last = None;
    while let Some(chunk) = reader.plan(schema, last.as_ref()).await.unwrap() {
        reader.start(schema, &chunk).await.unwrap();
        let mut into = ChangeBuffer::for_snapshot(1, 200);
        into.begin(TransactionMeta {
            committed_at_us: 0,
            position: "p".into(),
        });
        loop {
            let event = reader.next(&mut into).await.unwrap();
            rows.extend(show(&into.take().unwrap()));
            if matches!(event, ChunkEvent::Done) {
                break;
            }
        }
        last = Some(chunk);
    }
    rows
}

const TYPES: &[&str] = &[
    "id int unsigned primary key",
    "i1 tinyint",
    "u1 tinyint unsigned",
    "i2 smallint",
    "y year",
    "u2 smallint unsigned",
    "i3 mediumint",
    "u3 mediumint unsigned",
    "i8 bigint",
    "u8 bigint unsigned",
    "d1 decimal(12,2)",
    "d2 decimal(38,10)",
    "d3 decimal(65,30)",
    "f float",
    "g double",
    "b1 bit(1)",
    "b9 bit(9)",
    "c char(10)",
    "v varchar(300)",
    "tx text",
    "l varchar(20) character set latin1",
    "u16 varchar(20) character set utf16",
    "bi binary(5)",
    "vb varbinary(300)",
    "bl mediumblob",
    "da date",
    "dt datetime",
    "dt3 datetime(3)",
    "dt6 datetime(6)",
    "ts timestamp null",
    "ts5 timestamp(5) null",
    "t0 time",
    "t1 time(1)",
    "t3 time(3)",
    "t6 time(6)",
    "e enum('a','b,''c','ü')",
    "s set('x','y','z')",
    "j json",
    "gv int as (i1 + 1) virtual",
    "gs int as (i1 + 2) stored",
];

const VALUES: &[&str] = &[
    "(1, -128, 255, -32768, 1901, 65535, -8388608, 16777215, -9223372036854775808, \
     18446744073709551615, -1234567890.12, 9999999999999999999999999999.9999999999, \
     -99999999999999999999999999999999999.999999999999999999999999999999, 1.1, -2.5e300, b'1', \
     b'100000001', 'ab  ', '日本', 'é\\n', 'é€', '😀é', 'ab', 'cd\\0', repeat('x', 70000), \
     '2024-02-29', '0001-01-01 00:00:00', '2024-01-01 01:02:03.004', '9999-12-31 23:59:59.999999', \
     '2024-06-01 12:00:00', '2024-06-01 12:00:00.12345', '-838:59:59', '-00:00:01.1', \
     '-12:34:56.789', '838:59:58.999999', 'ü', 'x,z', \
     '{\"b\": [1, 2.5, null, true, \"q\\\\\"\\\\n\"], \"a\": {\"x\": 1e20}}')",
    "(2, 127, 0, 32767, 2155, 0, 8388607, 0, 9223372036854775807, 0, 0.05, -0.0000000001, 0.5, \
     -0.0, 0, b'0', b'0', '', '', '', '', '', '', '', '', '0000-00-00', '0000-00-00', \
     '2024-00-15 00:00:00', '2024-02-31 00:00:00', 0, 0, '0', '0', '-00:00:00.001', \
     '-00:00:00.000001', '', '', '[]')",
    "(3, null, null, null, 0, null, null, null, null, null, null, null, null, null, null, null, \
     null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, \
     null, null, null, null, null, null)",
];

#[tokio::test]
async fn values_from_snapshot_and_log_are_the_same() {
    for server in servers() {
        let create = format!(
            "CREATE TABLE t ({}) CHARACTER SET utf8mb4",
            TYPES.join(", ")
        );
        let mut c = server.fresh("caudal_values", &[&create]).await;
        let source = server.source(server.options("caudal_values"));
        let schema = schemas(&source).await.remove(0);
        let base = source.prepare(&[]).await.unwrap();
        let names: Vec<&str> = TYPES
            .iter()
            .map(|t| t.split(' ').next().unwrap())
            .filter(|n| !n.starts_with('g') || *n == "g")
            .collect();
        let insert = format!(
            "INSERT INTO t ({}) VALUES {}",
            names.join(","),
            VALUES.join(",")
        );
        run(&mut c, &[&insert]).await;
        let mut tail = source
            .open_tail(&base, vec![tracked(&schema)])
            .await
            .unwrap();
        let (logged, others, at) = drain(&source, &mut tail, 1 << 20).await;
        assert!(others.is_empty(), "{others:?}");
        let copied = snapshot(&source, &schema, &at).await;
        let logged: Vec<String> = logged.iter().map(|r| r.replacen("t:c", "t:r", 1)).collect();
        for (a, b) in logged.iter().zip(&copied) {
            for (x, y) in a.split(' ').zip(b.split(' ')) {
                assert_eq!(x, y, "log and snapshot of {:?}", server.flavor);
            }
        }
        assert_eq!(logged, copied);
        let first = &logged[0];
        for expected in [
            " u8=18446744073709551615 ",
            " d1=-1234567890.12 ",
            " c=ab ",
            " l=é€ ",
            " u16=😀é ",
            " bi=6162000000 ",
            " t0=-838:59:59 ",
            " t1=-00:00:01.1 ",
            " t3=-12:34:56.789 ",
            " t6=838:59:58.999999 ",
            " e=ü ",
            " s=x,z ",
            " ts=2024-06-01T10:00:00 ",
            " b1=true ",
            " y=1901 ",
            " gv=-127 ",
            " gs=-126",
        ] {
            assert!(first.contains(expected), "{expected}: {}", &first[..600]);
        }
        if server.flavor == Flavor::MySql {
            let j = " j={\"a\": {\"x\": 1e20}, \"b\": [1, 2.5, null, true, \"q\\\"\\n\"]} ";
            assert!(
                first.contains(j),
                "{}",
                first[first.find(" j=").unwrap()..].to_owned()
            );
        }
        assert!(source.coerced()[0].1 >= 12, "{:?}", source.coerced());
    }
}

#[tokio::test]
async fn json_is_the_servers_own_text() {
    for server in servers().into_iter().filter(|s| s.flavor == Flavor::MySql) {
        let mut c = server
            .fresh(
                "caudal_json",
                &["CREATE TABLE t (id int primary key auto_increment, j json)"],
            )
            .await;
        let source = server.source(server.options("caudal_json"));
        let schema = schemas(&source).await.remove(0);
        let base = source.prepare(&[]).await.unwrap();
        for j in [
            "'[1e14,1e15,1e16,1.5e-10,1e-5,1e-14,1e-15,1e-16,1.23e-15,1.23e-16,1.5e15,1234567890123456.5,-0.0,1e300,5e-324,0.1,12345678901234567890,-1,255,65536,-2147483649]'",
            "'[12345678901234567.0, 123456789012345678.0, 1.2345678901234567e17, 9007199254740993.5, 1e22, 4.35, 1.7976931348623157e308, 0.000001234567890123456]'",
            "json_array(cast('2024-01-02' as date), cast('2024-01-02 03:04:05.678' as datetime(6)), cast('-12:34:56.7' as time(6)), 1.50, cast(-0.05 as decimal(20,10)), cast(1 as unsigned))",
            "json_array(cast('2024-01-02' as datetime), timestamp'2024-01-02 00:00:00', cast(x'00ff10' as binary), cast(repeat('z', 200) as binary), b'101', cast('x' as json) )",
            "json_object('k', json_array(), 'a', json_object(), '', '', 'ü😀', repeat('\\\\ \\'\"\t\r\\n\\b/', 3), 'long', repeat('ä', 300))",
            "json_array(repeat('y', 70000), json_object('b', repeat('w', 70000), 'aa', 2147483648, 'i', 70000, 'u', 4294967295, 't', true, 'n', null))",
            "'true'",
            "'null'",
            "'\"x\"'",
            "'123'",
            "'{}'",
            "'[]'",
            "null",
            "json_array(st_geomfromtext('POINT(1 2)'))",
            "'\"\\\\u0000\\\\u0001\\\\u001f\\\\u007f\"'",
        ] {
            let sql = format!("INSERT INTO t (j) VALUES ({j})");
            if c.query(&sql).await.is_err() {
                continue;
            }
        }
        let mut tail = source
            .open_tail(&base, vec![tracked(&schema)])
            .await
            .unwrap();
        let (logged, _, at) = drain(&source, &mut tail, 1 << 20).await;
        let copied = snapshot(&source, &schema, &at).await;
        assert!(copied.len() >= 12);
        for (a, b) in logged.iter().zip(&copied) {
            assert_eq!(a.replacen("t:c", "t:r", 1), *b);
        }
    }
}

#[tokio::test]
async fn rows_longer_than_a_packet_of_the_protocol() {
    for server in servers().into_iter().filter(|s| s.flavor == Flavor::MySql) {
        let create = "CREATE TABLE t (id int primary key, v longtext)";
        let mut c = server.fresh("caudal_long", &[create]).await;
        let source = server.source(server.options("caudal_long"));
        let schema = schemas(&source).await.remove(0);
        let base = source.prepare(&[]).await.unwrap();
        run(
            &mut c,
            &["INSERT INTO t VALUES (1, repeat('x', 40 << 20)), (2, repeat('y', (16 << 20) - 20))"],
        )
        .await;
        run(&mut c, &["INSERT INTO t VALUES (3, 'short')"]).await;
        let mut tail = source
            .open_tail(&base, vec![tracked(&schema)])
            .await
            .unwrap();
        let (logged, _, at) = drain(&source, &mut tail, 1 << 20).await;
        let copied = snapshot(&source, &schema, &at).await;
        assert_eq!(
            logged.iter().map(String::len).collect::<Vec<_>>(),
            [41943051, 16777207, 16]
        );
        for (a, b) in logged.iter().zip(&copied) {
            assert!(a.replacen("t:c", "t:r", 1) == *b);
        }
        run(&mut c, &["DROP TABLE t"]).await;
    }
}

#[tokio::test]
async fn logins_with_and_without_tls() {
    for server in servers() {
        // Forgets the password's hash, so that caching_sha2_password runs to its end.
        let forget = "FLUSH PRIVILEGES";
        for mode in [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require] {
            run(&mut server.client().await, &[forget]).await;
            for _ in 0..2 {
                let mut options = server.options("mysql");
                options.tls.mode = mode;
                let c = Connection::open(&options).await.unwrap();
                assert_eq!(c.encrypted(), mode != TlsMode::Disable);
            }
        }
        let mut options = server.options("mysql");
        options.tls.mode = TlsMode::VerifyFull;
        let error = server.source(options).current_position().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Prerequisite, "{error:?}");
        if let Ok(ca) = std::env::var("CAUDAL_TEST_MYSQL_CA_FILES") {
            let file = ca
                .split(',')
                .find(|f| f.starts_with(&format!("{}=", server.port)));
            let Some((_, file)) = file.and_then(|f| f.split_once('=')) else {
                continue;
            };
            let mut options = server.options("mysql");
            options.tls = TlsOptions {
                mode: TlsMode::VerifyCa,
                ca_file: Some(file.into()),
                ..options.tls
            };
            assert!(Connection::open(&options).await.unwrap().encrypted());
        }
    }
}

#[tokio::test]
async fn mariadbs_own_types() {
    for server in servers()
        .into_iter()
        .filter(|s| s.flavor == Flavor::MariaDb)
    {
        let create = "CREATE TABLE t (id int primary key, u uuid, a inet4, b inet6, j json)";
        let mut c = server.fresh("caudal_maria", &[create]).await;
        let source = server.source(server.options("caudal_maria"));
        let schema = schemas(&source).await.remove(0);
        let base = source.prepare(&[]).await.unwrap();
        run(
            &mut c,
            &[
                "INSERT INTO t VALUES (1, '123e4567-e89b-12d3-a456-426655440000', '10.0.0.1', '::1', '{\"a\":  1}')",
                "INSERT INTO t VALUES (2, '01890a5d-ac96-774b-bcce-b302099a8057', '0.0.0.0', '2001:db8::ff00:42:8329', '[]')",
                "INSERT INTO t VALUES (3, '00000000-0000-0000-0000-000000000000', '255.255.255.0', '::ffff:1.2.3.4', null)",
                "INSERT INTO t VALUES (4, 'ffffffff-ffff-ffff-ffff-ffffffffffff', '1.0.0.0', '::', null)",
                "INSERT INTO t VALUES (5, '550e8400-e29b-41d4-a716-446655440000', null, '::1.2.3.4', null)",
                "INSERT INTO t VALUES (6, '550e8400-e29b-61d4-a716-446655440000', null, '1:0:0:2::', null)",
                "INSERT INTO t VALUES (7, null, null, '1:0:2:3:4:5:6:7', null), (8, null, null, '::1:2', null), (9, null, null, '1::2:0:0:3', null)",
            ],
        )
        .await;
        let mut tail = source
            .open_tail(&base, vec![tracked(&schema)])
            .await
            .unwrap();
        let (logged, _, at) = drain(&source, &mut tail, 1 << 20).await;
        let copied = snapshot(&source, &schema, &at).await;
        for (a, b) in logged.iter().zip(&copied) {
            assert_eq!(a.replacen("t:c", "t:r", 1), *b);
        }
        assert_eq!(logged.len(), 9);
    }
}

const CHANGES: &[&str] = &[
    "INSERT INTO k VALUES (1, 'a', 'one'), (2, 'b', 'two'), (3, 'c', 'three')",
    "UPDATE k SET v = 'TWO' WHERE a = 2",
    "UPDATE k SET a = 9 WHERE a = 3",
    "DELETE FROM k WHERE a = 1",
    "INSERT INTO n VALUES (1, 'x'), (1, 'x')",
    "UPDATE n SET v = 'y' LIMIT 1",
    "DELETE FROM n LIMIT 1",
    "BEGIN",
    "INSERT INTO k VALUES (20, 'z', 'kept')",
    "SAVEPOINT s",
    "INSERT INTO k VALUES (21, 'z', 'gone')",
    "ROLLBACK TO s",
    "INSERT INTO n VALUES (7, 'multi')",
    "COMMIT",
    "BEGIN",
    "INSERT INTO k VALUES (30, 'z', 'gone')",
    "ROLLBACK",
    "/* c */ truncate -- x\n `n`",
    "INSERT INTO other VALUES (1)",
    "INSERT INTO n VALUES (8, 'last')",
];

const CHANGED: &[&str] = &[
    "k:c a=1 b=a v=one",
    "k:c a=2 b=b v=two",
    "k:c a=3 b=c v=three",
    "k:u a=2 b=b v=TWO",
    "k:d a=3 b=c v=three",
    "k:c a=9 b=c v=three",
    "k:d a=1 b=a v=one",
    "n:c i=1 v=x",
    "n:c i=1 v=x",
    "n:d i=1 v=x",
    "n:c i=1 v=y",
    "n:d i=1 v=y",
    "k:c a=20 b=z v=kept",
    "n:c i=7 v=multi",
    "n:t",
    "n:c i=8 v=last",
];

async fn changes(server: &Server, database: &str, before: &[&str], limit: usize) {
    let mut c = server
        .fresh(
            database,
            &[
                "CREATE TABLE k (a int, b varchar(10), v varchar(20), primary key (b, a))",
                "CREATE TABLE n (i int, v varchar(20))",
                "CREATE TABLE other (i int)",
            ],
        )
        .await;
    run(&mut c, before).await;
    let mut options = server.options(database);
    options.selection =
        Selection::new(&[format!("{database}.k"), format!("{database}.n")], &[]).unwrap();
    let source = server.source(options.clone());
    let schemas = schemas(&source).await;
    let base = source.prepare(&[]).await.unwrap();
    let mut live = source
        .open_tail(&base, schemas.iter().map(tracked).collect())
        .await
        .unwrap();
    run(&mut c, CHANGES).await;
    let (rows, others, position) = drain(&source, &mut live, limit).await;
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(rows, CHANGED, "{database} {before:?}");

    // From the end nothing comes again, and what follows does.
    let second = server.source(SourceOptions {
        stream: format!("{database}-2"),
        ..options
    });
    let mut resumed = second
        .open_tail(&position, schemas.iter().map(tracked).collect())
        .await
        .unwrap();
    run(&mut c, &["INSERT INTO k VALUES (50, 'r', 'after')"]).await;
    let (rows, ..) = drain(&source, &mut resumed, limit).await;
    assert_eq!(rows, ["k:c a=50 b=r v=after"]);
    let (rows, ..) = drain(&source, &mut live, limit).await;
    assert_eq!(rows, ["k:c a=50 b=r v=after"]);
}

#[tokio::test]
async fn changes_arrive_in_order_and_only_once() {
    for server in servers() {
        changes(&server, "caudal_changes", &[], 1 << 20).await;
        // A buffer that is full after each row.
        changes(&server, "caudal_changes", &[], 1).await;
    }
}

#[tokio::test]
async fn compressed_transactions_and_events() {
    for server in servers() {
        match server.flavor {
            Flavor::MySql => {
                let on = ["SET SESSION binlog_transaction_compression = ON"];
                changes(&server, "caudal_packed", &on, 1).await;
            }
            Flavor::MariaDb => {
                let on = [
                    "SET GLOBAL log_bin_compress = 1",
                    "SET GLOBAL log_bin_compress_min_len = 10",
                ];
                changes(&server, "caudal_packed", &on, 1 << 20).await;
                run(
                    &mut server.client().await,
                    &["SET GLOBAL log_bin_compress = 0"],
                )
                .await;
            }
        }
    }
}

#[tokio::test]
async fn tagged_gtids() {
    for server in servers().into_iter().filter(|s| s.flavor == Flavor::MySql) {
        changes(
            &server,
            "caudal_tags",
            &["SET gtid_next = 'AUTOMATIC:shop'"],
            1 << 20,
        )
        .await;
    }
}

#[tokio::test]
async fn exact_reads_leave_nothing_out_and_nothing_double() {
    for server in servers() {
        let mut c = server
            .fresh("caudal_exact", &["CREATE TABLE n (i int, v varchar(20))"])
            .await;
        let source = server.source(server.options("caudal_exact"));
        let schema = schemas(&source).await.remove(0);
        let base = source.prepare(&[]).await.unwrap();
        run(
            &mut c,
            &["INSERT INTO n VALUES (1, 'a'), (1, 'a'), (2, 'b')"],
        )
        .await;
        let mut reader = source.open_reader().await.unwrap();
        let mark = reader.open_exact(&schema, &base).await.unwrap();
        run(
            &mut c,
            &[
                "INSERT INTO n VALUES (3, 'after')",
                "DELETE FROM n WHERE i = 2",
            ],
        )
        .await;
        let chunk = reader.plan(&schema, None).await.unwrap().unwrap();
        reader.start(&schema, &chunk).await.unwrap();
        let mut into = ChangeBuffer::for_snapshot(1, 1 << 20);
        into.begin(TransactionMeta {
            committed_at_us: 0,
            position: "p".into(),
        });
        assert!(matches!(
            reader.next(&mut into).await.unwrap(),
            ChunkEvent::Done
        ));
        assert_eq!(
            show(&into.take().unwrap()),
            ["n:r i=1 v=a", "n:r i=1 v=a", "n:r i=2 v=b"]
        );
        let marked = TrackedTable {
            mark: Some(mark),
            ..tracked(&schema)
        };
        let mut tail = source.open_tail(&base, vec![marked]).await.unwrap();
        let (rows, ..) = drain(&source, &mut tail, 1 << 20).await;
        assert_eq!(rows, ["n:c i=3 v=after", "n:d i=2 v=b"]);
    }
}

#[tokio::test]
async fn keys_of_many_types_are_chunked_without_gaps() {
    for server in servers() {
        for (definition, values) in [
            (
                "a int, b varchar(5) collate utf8mb4_general_ci, primary key (a, b)",
                "(1,'a'),(1,'B'),(1,'c'),(1,'D'),(2,'ä'),(2,'b'),(3,''),(3,'x'),(4,'y'),(5,'z')",
            ),
            (
                "a varchar(5) character set latin1, primary key (a)",
                "('é'),('a'),('B'),('c '),('Z'),('ß'),('x''y'),('\\\\')",
            ),
            (
                "a enum('z','y','x','w','v'), b bit(3), primary key (a, b)",
                "('z',b'1'),('z',b'10'),('y',0),('x',7),('w',1),('v',1),('v',2)",
            ),
            (
                "a datetime(6), b decimal(10,3), primary key (b, a)",
                "('2024-01-01',1.5),('2024-01-01 00:00:00.000001',1.5),('0000-00-00',-1),('2023-05-05',0),('2024-01-02',1.5)",
            ),
            (
                "a varbinary(4), primary key (a)",
                "(x'00'),(x'0000'),(x'ff'),(''),(x'7f80'),(x'41')",
            ),
            (
                "a float, b double, primary key (a, b)",
                "(0.1,0.1),(0.1,0.2),(-1e30,5),(1e30,1e300),(3.3,2),(3.3,3)",
            ),
            (
                "a timestamp(3), b time(2), c year, primary key (a, b, c)",
                "('2024-01-01',1,2000),('2024-01-01',1,2001),('2024-01-01','-5:00',2001),('2024-01-02',1,2000)",
            ),
            (
                "a bigint unsigned, primary key (a)",
                "(18446744073709551615),(0),(9223372036854775808),(5),(7)",
            ),
        ] {
            let create = format!("CREATE TABLE t ({definition}) CHARACTER SET utf8mb4");
            let insert = format!("INSERT INTO t VALUES {values}");
            server.fresh("caudal_keys", &[&create, &insert]).await;
            for chunk_rows in [1, 2, 1000] {
                let options = SourceOptions {
                    chunk_rows,
                    ..server.options("caudal_keys")
                };
                let source = server.source(options);
                let schema = schemas(&source).await.remove(0);
                let base = source.current_position().await.unwrap();
                let mut rows = snapshot(&source, &schema, &base).await;
                let n = rows.len();
                rows.sort();
                rows.dedup();
                assert_eq!(
                    (rows.len(), n),
                    (values.matches("),(").count() + 1, n),
                    "{definition}"
                );
                assert_eq!(rows.len(), n, "{definition}: {rows:?}");
            }
        }
    }
}

#[tokio::test]
async fn prepared_transactions_wait_for_their_commit() {
    for server in servers() {
        // Prepared transactions outlive a test that failed, and their locks with them.
        for id in ["p1", "p2"] {
            let _ = server
                .client()
                .await
                .query(&format!("XA ROLLBACK '{id}'"))
                .await;
        }
        let mut c = server
            .fresh("caudal_xa", &["CREATE TABLE t (id int primary key)"])
            .await;
        let source = server.source(server.options("caudal_xa"));
        let schema = schemas(&source).await.remove(0);
        let base = source.prepare(&[]).await.unwrap();
        let xa = |id: &str, row: u32| {
            [
                format!("XA START '{id}'"),
                format!("INSERT INTO t VALUES ({row})"),
                format!("XA END '{id}'"),
                format!("XA PREPARE '{id}'"),
            ]
        };
        for s in xa("p1", 1) {
            run(&mut c, &[&s]).await;
        }
        let mut d = server.client().await;
        run(&mut d, &["INSERT INTO caudal_xa.t VALUES (2)"]).await;
        let mut tail = source
            .open_tail(&base, vec![tracked(&schema)])
            .await
            .unwrap();
        let mut into = ChangeBuffer::new(1, 1 << 20);
        if server.flavor == Flavor::MySql {
            // Another transaction is reported while one waits; a restart there reads it again.
            let position = loop {
                if let TailEvent::Commit { position, .. } = tail.next(&mut into).await.unwrap() {
                    break position;
                }
            };
            assert_eq!(show(&into.take().unwrap()), ["t:c id=2"]);
            tail = source
                .open_tail(&position, vec![tracked(&schema)])
                .await
                .unwrap();
        }
        run(&mut c, &["XA COMMIT 'p1'"]).await;
        for s in xa("p2", 3) {
            run(&mut c, &[&s]).await;
        }
        run(&mut c, &["XA ROLLBACK 'p2'", "INSERT INTO t VALUES (4)"]).await;
        let (rows, ..) = drain(&source, &mut tail, 1 << 20).await;
        let expected: &[&str] = match server.flavor {
            Flavor::MySql => &["t:c id=1", "t:c id=4"],
            Flavor::MariaDb => &["t:c id=2", "t:c id=1", "t:c id=4"],
        };
        assert_eq!(rows, expected);
    }
}

#[tokio::test]
async fn schema_changes_show_in_the_next_table_map() {
    for server in servers() {
        let mut c = server
            .fresh(
                "caudal_ddl",
                &[
                    "CREATE TABLE t (id int primary key, a int)",
                    "CREATE TABLE d (id int primary key)",
                ],
            )
            .await;
        let source = server.source(server.options("caudal_ddl"));
        let schemas = schemas(&source).await;
        let base = source.prepare(&[]).await.unwrap();
        run(
            &mut c,
            &[
                "INSERT INTO t VALUES (1, 1)",
                "ALTER TABLE t ADD COLUMN b varchar(10), MODIFY a bigint",
                "INSERT INTO t VALUES (2, 9223372036854775807, 'new')",
                "INSERT INTO d VALUES (1)",
                "DROP TABLE d",
            ],
        )
        .await;
        let mut tail = source
            .open_tail(&base, schemas.iter().map(tracked).collect())
            .await
            .unwrap();
        let (rows, others, _) = drain(&source, &mut tail, 1 << 20).await;
        assert!(
            rows.contains(&"t:c id=2 a=9223372036854775807 b=new".to_owned()),
            "{rows:?}"
        );
        assert!(
            matches!(&others[0], TailEvent::Schema(s) if s.version == 2),
            "{others:?}"
        );
        assert!(
            matches!(&others[1], TailEvent::TableFailed { table, .. } if table == &TableName::new("caudal_ddl", "d")),
            "{others:?}"
        );
    }
}

#[tokio::test]
async fn lost_positions_and_bad_logins_are_told_apart() {
    for server in servers() {
        let source = server.source(server.options("mysql"));
        let lost = match server.flavor {
            Flavor::MySql => "aaaaaaaa-71ca-11e1-9e33-c80aa9429562:1-5",
            Flavor::MariaDb => "0-1-99999999",
        };
        let error = match source.open_tail(&Position::new(lost), vec![]).await {
            Err(e) => e,
            Ok(mut tail) => tail.next(&mut ChangeBuffer::new(1, 1)).await.unwrap_err(),
        };
        assert_eq!(error.kind(), Kind::PositionLost, "{error:?}");
        let options = SourceOptions {
            password: "wrong".to_owned().into(),
            ..server.options("mysql")
        };
        let error = server.source(options).current_position().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Prerequisite, "{error:?}");
        assert!(!error.to_string().contains("wrong"));
    }
}

#[tokio::test]
async fn unsupported_columns_are_refused_by_name() {
    for server in servers() {
        server
            .fresh(
                "caudal_types",
                &["CREATE TABLE t (id int primary key, p point, g varchar(5) character set gbk)"],
            )
            .await;
        let source = server.source(server.options("caudal_types"));
        let tables = source.discover().await.unwrap();
        let subjects: Vec<_> = tables[0]
            .problems
            .iter()
            .filter_map(|p| p.subject.clone())
            .collect();
        assert_eq!(subjects, ["caudal_types.t.p", "caudal_types.t.g"]);
        let mut options = server.options("caudal_types");
        let own = TableOptions {
            exclude_columns: vec!["p".into(), "g".into()],
            key: None,
        };
        options
            .tables
            .insert(TableName::new("caudal_types", "t"), own);
        let source = server.source(options);
        let schema = schemas(&source).await.remove(0);
        let base = source.prepare(&[]).await.unwrap();
        let mut c = server.client().await;
        run(
            &mut c,
            &["INSERT INTO caudal_types.t VALUES (1, st_geomfromtext('POINT(1 1)'), 'x')"],
        )
        .await;
        let mut tail = source
            .open_tail(&base, vec![tracked(&schema)])
            .await
            .unwrap();
        let (rows, others, _) = drain(&source, &mut tail, 1 << 20).await;
        assert_eq!((rows, others.len()), (vec!["t:c id=1".to_owned()], 0));
        let findings = source.check().await.unwrap();
        assert!(
            findings.iter().any(|f| f.check == "binlog_row_metadata"),
            "{findings:?}"
        );
        let errors: Vec<_> = findings
            .iter()
            .filter(|f| f.severity == caudal_model::Severity::Error)
            .collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[tokio::test]
async fn file_positions_without_gtids() {
    let Ok(url) = std::env::var("CAUDAL_TEST_MYSQL_FILE_URL") else {
        return;
    };
    let server = servers_of(&url).remove(0);
    changes(&server, "caudal_files", &[], 1 << 20).await;
    let source = server.source(server.options("caudal_files"));
    let before = source.current_position().await.unwrap();
    let mut c = server.client().await;
    let mut tail = source.open_tail(&before, vec![]).await.unwrap();
    run(&mut c, &["FLUSH BINARY LOGS", "FLUSH BINARY LOGS"]).await;
    let (_, _, after) = drain(&source, &mut tail, 1 << 20).await;
    assert!(source.covers(&after, &before).unwrap() && !source.covers(&before, &after).unwrap());
    let schema = schemas(&source)
        .await
        .into_iter()
        .find(|s| s.table.name == "n")
        .unwrap();
    let rows = snapshot(&source, &schema, &after).await;
    assert_eq!(rows, ["n:r i=8 v=last"]);
}

fn servers_of(url: &str) -> Vec<Server> {
    let mut parts = url.split(':').map(str::to_owned);
    let flavor = if parts.next().unwrap() == "mariadb" {
        Flavor::MariaDb
    } else {
        Flavor::MySql
    };
    vec![Server {
        flavor,
        host: parts.next().unwrap(),
        port: parts.next().unwrap().parse().unwrap(),
        user: parts.next().unwrap(),
        password: parts.next().unwrap(),
    }]
}
