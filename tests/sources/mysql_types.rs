//! Types of MySQL and MariaDB against what the server itself says of the same values: text in
//! every charset, every type as a string, geometries, vectors, and what a user may choose.

use crate::database::{Database, Place, on, run_each};
use crate::rows::{copy, drain, expect_same, start};
use caudal_model::LakeType;
use caudal_sources::{SourceOptions, TableOptions};
use caudal_tests::Session;
use caudal_tests::databases::Kind;

on!(
    mysql and mariadb: every_charset_means_what_the_server_means,
    bytes_without_a_meaning_stop_their_table,
    every_type_as_the_text_that_a_select_shows,
    other_lake_types_that_lose_nothing,
    lake_types_that_would_lose_are_refused,
    geometries_are_ewkb,
    hashed_columns_are_read_as_text,
);
on!(mysql: vectors);
on!(mariadb: compressed_columns, system_versioned_tables_are_refused);

/// The table's rows from the log and from a copy, which must be the same; and the events.
async fn both(db: &Database, options: SourceOptions, rows: &[&str]) -> (Vec<String>, Vec<String>) {
    let source = db.open(options);
    let (tables, mut tail) = start(&*source).await;
    run_each(&mut db.session().await, rows).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let events: Vec<String> = log.notable().iter().map(|e| (*e).to_owned()).collect();
    if events.is_empty() {
        let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, 1 << 20).await;
        expect_same(&log.rows, &copied);
    }
    (log.rows, events)
}

/// The value of column `x` in a row as `show` prints it.
fn x(row: &str) -> Option<&str> {
    row.split_once(" x=").map(|(_, v)| v)
}

async fn selected(session: &mut Session, expression: &str) -> Vec<Option<String>> {
    let sql = format!("SELECT {expression} FROM t ORDER BY id");
    let rows = session.rows(&sql).await.unwrap();
    rows.into_iter().map(|mut row| row.remove(0)).collect()
}

/// A session whose text is in UTC, as the lake's.
async fn oracle(db: &Database) -> Session {
    let mut session = db.session().await;
    run_each(&mut session, &["SET time_zone = '+00:00'"]).await;
    session
}

const LETTERS: &str = "aZ9~ éäßÿ čřžőű ğışİ абвёїґЯ αβγΩ אבג ابت กขค ąčęėįšųū €„“ \
     日本語 漢字 かな カナ ｱｲｳ 한국어 简体 繁體 丂 ① ㈱ ∑ ※ № ™ 😀 𠀀";

async fn every_charset_means_what_the_server_means(place: Place) {
    let db = place.database(&[]).await;
    let mut session = oracle(&db).await;
    let charsets = "SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS \
                    WHERE CHARACTER_SET_NAME <> 'binary' ORDER BY 1";
    let charsets = session.rows(charsets).await.unwrap();
    assert!(charsets.len() >= 38, "{}", charsets.len());
    for charset in charsets {
        let charset = charset[0].clone().unwrap();
        let create = format!(
            "CREATE TABLE t (id int primary key auto_increment, c char(3) character set {charset}, \
             e enum('é','a') character set {charset}, x varchar(40) character set {charset})"
        );
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let mut inserts: Vec<String> = LETTERS
            .chars()
            .map(|c| format!("INSERT INTO t (c, e, x) VALUES ('{c}', 2, '{c}')"))
            .collect();
        inserts.push("INSERT INTO t (c, e, x) VALUES ('a ', 1, ' é a ')".into());
        let inserts: Vec<&str> = inserts.iter().map(String::as_str).collect();
        let (rows, events) = both(&db, db.options(), &inserts).await;
        assert!(events.is_empty(), "{charset}: {events:?}");
        let expected = selected(&mut session, "x").await;
        for (row, expected) in rows.iter().zip(&expected) {
            assert_eq!(x(row), expected.as_deref(), "{charset}: {row}");
        }
        assert_eq!(rows.len(), expected.len());
        let label = selected(&mut session, "e").await.pop().unwrap().unwrap();
        assert!(
            rows.last().unwrap().contains(&format!(" e={label} ")),
            "{charset}: {label}"
        );
    }
}

async fn bytes_without_a_meaning_stop_their_table(place: Place) {
    let db = place.database(&[]).await;
    let mut session = db.session().await;
    for (charset, bytes) in [("hebrew", "A1"), ("cp1257", "A1"), ("tis620", "DB")] {
        let create =
            format!("CREATE TABLE t (id int primary key, x varchar(9) character set {charset})");
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let source = db.open(db.options());
        let (tables, mut tail) = start(&*source).await;
        let insert = format!("INSERT INTO t VALUES (1, CAST(x'{bytes}' AS BINARY))");
        run_each(&mut session, &[&insert]).await;
        let log = drain(&*source, &mut *tail, 1 << 20).await;
        let notable = log.notable();
        assert!(
            notable[0].contains("column x") && notable[0].contains("charset"),
            "{notable:?}"
        );
        let mut reader = source.open_reader(true).await.unwrap();
        let schema = &tables[0].schema;
        let chunk = reader.plan(schema, None, 1000).await.unwrap().unwrap();
        reader.start(schema, &chunk, None).await.unwrap();
        let mut into = caudal_model::ChangeBuffer::for_snapshot(1, 1 << 20);
        into.begin(caudal_model::TransactionMeta {
            committed_at_us: 0,
            position: "x".into(),
        });
        let error = reader.next(&mut into).await.unwrap_err();
        assert_eq!(error.kind(), caudal_model::Kind::Data, "{error:?}");
        assert!(error.to_string().contains("column x"), "{error}");
    }
}

/// Types with values whose text is not that of their lake type.
const TEXTS: &[(&str, &str)] = &[
    ("tinyint(1)", "0, 1, -128, 127"),
    ("bigint unsigned", "0, 18446744073709551615"),
    ("int(7) zerofill", "0, 42, 4294967295"),
    ("decimal(8,3) zerofill", "0, 1.5, 99999.999"),
    ("decimal(12,2)", "-1.5, 0, 1234567890.12"),
    (
        "float",
        "0, -0.0, 1, 1.1, 0.1, 123456, 1234567, 12345678, 1e10, 1e14, 1e15, 1e16, 1.5e20, -3.4e38, 1e-5, 1e-10, 1.17e-38, 16777216, 0.000123456, 3.14159274, 999999.5, 100000000",
    ),
    (
        "double",
        "0, 1, 0.1, 1e14, 1e15, 1e16, 1e17, 1.5e16, 123456789012345678, 1e-5, 1e-15, 1e-16, 1.7976931348623157e308, 5e-324, -2.2250738585072014e-308, 0.30000000000000004, 1234567.125",
    ),
    ("bit(1)", "b'1', b'0'"),
    ("bit(14)", "b'1000000', b'10000101000001'"),
    ("binary(3)", "'a', 'abc'"),
    ("varbinary(9)", "'é', ''"),
    ("blob", "'text', ''"),
    ("char(5)", "'a ', ''"),
    (
        "date",
        "'2024-02-29', '0000-00-00', '2024-00-15', '0001-01-01', '9999-12-31'",
    ),
    (
        "datetime",
        "'2024-02-29 01:02:03', '0000-00-00', '2024-02-31 00:00:00'",
    ),
    ("datetime(3)", "'2024-02-29 01:02:03.004', '0000-00-00'"),
    (
        "timestamp",
        "'2024-02-29 01:02:03', 0, '1970-01-02 00:00:01', '2038-01-19 03:14:07'",
    ),
    (
        "timestamp(6)",
        "'2024-12-31 23:59:59.000001', '2000-02-29 00:00:00', 0",
    ),
    ("time", "'-838:59:59', '0', '100:00:00'"),
    ("time(2)", "'-00:00:00.05', '838:59:58.99'"),
    ("year", "0, 1901, 2155"),
    ("enum('a','b')", "'a', '', 'b'"),
    ("set('a','b')", "'a,b', '', 'b'"),
];

async fn every_type_as_the_text_that_a_select_shows(place: Place) {
    let db = place.database(&[]).await;
    let mut session = oracle(&db).await;
    let mut options = db.options();
    let as_text = TableOptions {
        lake_types: [("x".to_owned(), LakeType::Utf8)].into(),
        ..TableOptions::default()
    };
    options.tables.insert(db.table("t"), as_text);
    for (definition, values) in TEXTS {
        let create =
            format!("CREATE TABLE t (id int primary key auto_increment, x {definition} NULL)");
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let values: Vec<String> = values.split(", ").map(|v| format!("({v})")).collect();
        let insert = format!("INSERT INTO t (x) VALUES {}, (NULL)", values.join(","));
        let (rows, events) = both(&db, options.clone(), &[&insert]).await;
        assert!(events.is_empty(), "{definition}: {events:?}");
        let expected = selected(&mut session, "x").await;
        assert_eq!(rows.len(), expected.len());
        for (row, expected) in rows.iter().zip(&expected) {
            // The oracle's bits are bytes too.
            assert_eq!(x(row), expected.as_deref(), "{definition}: {row}");
        }
    }
    // Bytes that are no text are an error, whichever way they come.
    let create = "CREATE TABLE t (id int primary key auto_increment, x blob)";
    run_each(&mut session, &["DROP TABLE IF EXISTS t", create]).await;
    let (_, events) = both(&db, options, &["INSERT INTO t (x) VALUES (x'ff')"]).await;
    assert!(
        events[0].contains("column x") && events[0].contains("UTF-8"),
        "{events:?}"
    );
}

async fn other_lake_types_that_lose_nothing(place: Place) {
    let db = place.database(&[]).await;
    let mut session = db.session().await;
    for (definition, wanted, values, expected) in [
        ("tinyint(1)", "boolean", "(0),(1)", &["false", "true"][..]),
        ("int", "int64", "(-5)", &["-5"]),
        (
            "bigint unsigned",
            "decimal(38,0)",
            "(18446744073709551615)",
            &["18446744073709551615"],
        ),
        ("decimal(5,2)", "decimal(20,2)", "(-1.5)", &["-1.50"]),
        ("float", "float64", "(0.5)", &["0.5"]),
        ("year", "int32", "(2024)", &["2024"]),
        ("bit(9)", "int64", "(b'100000001')", &["257"]),
        (
            "time(3)",
            "time",
            "('23:59:59.5'),('24:00:00')",
            &["86399500000", "86400000000"],
        ),
    ] {
        let mut options = db.options();
        let own = TableOptions {
            lake_types: [("x".to_owned(), wanted.parse().unwrap())].into(),
            ..TableOptions::default()
        };
        options.tables.insert(db.table("t"), own);
        let create = format!("CREATE TABLE t (id int primary key auto_increment, x {definition})");
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let insert = format!("INSERT INTO t (x) VALUES {values}");
        let (rows, events) = both(&db, options.clone(), &[&insert]).await;
        assert!(events.is_empty(), "{definition}: {events:?}");
        let shown: Vec<&str> = rows.iter().filter_map(|r| x(r)).collect();
        assert_eq!(shown, expected, "{definition} as {wanted}");
        if wanted == "boolean" || wanted == "time" {
            let odd = if wanted == "time" { "('-1:00')" } else { "(2)" };
            let insert = format!("INSERT INTO t (x) VALUES {odd}");
            let (_, events) = both(&db, options, &[&insert]).await;
            assert!(events[0].contains("column x"), "{events:?}");
        }
    }
}

async fn lake_types_that_would_lose_are_refused(place: Place) {
    let create = "CREATE TABLE t (id int primary key, x bigint, d date)";
    let db = place.database(&[create]).await;
    let mut options = db.options();
    let own = TableOptions {
        lake_types: [
            ("x".to_owned(), LakeType::Int8),
            ("d".to_owned(), LakeType::Timestamp),
        ]
        .into(),
        hash_columns: vec!["nothing".into()],
        ..TableOptions::default()
    };
    options.tables.insert(db.table("t"), own);
    let source = db.open(options);
    let found = source.discover().await.unwrap().remove(0).problems;
    let reasons: Vec<&str> = found.iter().map(|p| p.reason.as_str()).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(
        reasons[0].contains("allowed are int64, string"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].contains("allowed are date, string"),
        "{reasons:?}"
    );
    let told = source.check().await.unwrap();
    assert!(reasons.iter().all(|r| told.iter().any(|f| f.reason == *r)));
}

async fn geometries_are_ewkb(place: Place) {
    // Text on both sides of it: the log lists charsets of text alone.
    let create = "CREATE TABLE t (id int primary key auto_increment, a varchar(9) character set latin1, \
                  g geometry, b varchar(9) character set utf8mb4, p point, x geometry)";
    let db = place.database(&[create]).await;
    let mut session = oracle(&db).await;
    let texts = [
        "'POINT(1 2)'",
        "'POINT(1 2)', 4326",
        "'LINESTRING(0 0,1 1,2 5)', 4326",
        "'POLYGON((0 0,0 4,4 4,0 0),(1 1,1 2,2 2,1 1))'",
        "'MULTIPOINT(1 2,3 4)'",
        "'MULTIPOLYGON(((0 0,0 4,4 4,0 0)))', 3857",
        "'GEOMETRYCOLLECTION(POINT(1 2),LINESTRING(0 0,1 1))', 4326",
        "'GEOMETRYCOLLECTION EMPTY'",
    ];
    let values =
        texts.map(|t| format!("('ä', ST_GeomFromText({t}), 'ü', NULL, ST_GeomFromText({t}))"));
    let insert = format!("INSERT INTO t (a, g, b, p, x) VALUES {}", values.join(","));
    let (rows, events) = both(&db, db.options(), &[&insert]).await;
    assert!(events.is_empty(), "{events:?}");
    assert!(
        rows.iter()
            .all(|r| r.contains(" a=ä ") && r.contains(" b=ü ")),
        "{rows:?}"
    );
    let wkb = if place.kind() == Kind::Mysql {
        "HEX(ST_AsBinary(x, 'axis-order=long-lat'))"
    } else {
        "HEX(ST_AsBinary(x))"
    };
    let wkb = selected(&mut session, wkb).await;
    let srid = selected(&mut session, "ST_SRID(x)").await;
    for ((row, wkb), srid) in rows.iter().zip(wkb).zip(srid) {
        let wkb = wkb.unwrap().to_lowercase();
        let srid: u32 = srid.unwrap().parse().unwrap();
        // Byte order, type, and the rest.
        let expected = match srid {
            0 => wkb,
            n => format!(
                "{}20{}{}",
                &wkb[..8],
                hex::encode(n.to_le_bytes()),
                &wkb[10..]
            ),
        };
        assert_eq!(x(row), Some(&*expected), "{row}");
    }
}

async fn hashed_columns_are_read_as_text(place: Place) {
    let create = "CREATE TABLE t (id int primary key, x date)";
    let db = place.database(&[create]).await;
    let mut options = db.options();
    let own = TableOptions {
        hash_columns: vec!["x".into()],
        ..TableOptions::default()
    };
    options.tables.insert(db.table("t"), own);
    let found = db.open(options.clone()).discover().await.unwrap().remove(0);
    assert_eq!(found.columns[1].source_type, "date hashed");
    assert_eq!(found.columns[1].lake_type, LakeType::Utf8);
    let (rows, events) = both(&db, options, &["INSERT INTO t VALUES (1, '2024-00-00')"]).await;
    assert!(events.is_empty(), "{events:?}");
    // The hash is the buffer's, which has no rules here.
    assert_eq!(rows, ["t:c id=1 x=2024-00-00"]);
}

async fn vectors(place: Place) {
    let create = "CREATE TABLE t (id int primary key auto_increment, a varchar(5) character set latin1, \
                  x vector(4), b text character set utf8mb4)";
    let db = place.database(&[create]).await;
    let insert =
        "INSERT INTO t (a, x, b) VALUES ('ä', TO_VECTOR('[1,-2.5,3e38]'), 'ü'), ('', NULL, '')";
    let (rows, events) = both(&db, db.options(), &[insert]).await;
    assert!(events.is_empty(), "{events:?}");
    assert_eq!(rows[0], "t:c id=1 a=ä x=[1.0, -2.5, 3e38] b=ü");
}

async fn system_versioned_tables_are_refused(place: Place) {
    let create = "CREATE TABLE t (id int primary key) WITH SYSTEM VERSIONING";
    let db = place.database(&[create]).await;
    let found = db.open(db.options()).discover().await.unwrap().remove(0);
    let checks: Vec<&str> = found.problems.iter().map(|p| p.check).collect();
    assert_eq!(checks, ["system_versioned"]);
}

async fn compressed_columns(place: Place) {
    let create = "CREATE TABLE t (id int primary key auto_increment, a text compressed, \
                  b varchar(300) compressed character set latin1, c blob compressed, \
                  d varbinary(300) compressed, e varchar(20) character set latin1)";
    let db = place.database(&[create]).await;
    let rows = [
        "INSERT INTO t (a, b, c, d, e) VALUES (repeat('日本', 500), repeat('é', 200), repeat(x'00ff', 300), repeat('z', 300), 'é')",
        "INSERT INTO t (a, b, c, d, e) VALUES ('', '', '', '', ''), ('a', 'é', x'ff', x'00', 'é'), (NULL, NULL, NULL, NULL, NULL)",
        "INSERT INTO t (a) VALUES (repeat('x', 60000))",
    ];
    let (rows, events) = both(&db, db.options(), &rows).await;
    assert!(events.is_empty(), "{events:?}");
    assert!(rows[0].contains(&"日本".repeat(500)) && rows[0].contains(&"é".repeat(200)));
    if place.kind() == Kind::Mariadb && db.source.version() == caudal_tests::Version::Mariadb118 {
        let create = "CREATE TABLE v (id int primary key, x vector(3) not null)";
        let drop = "DROP TABLE t";
        run_each(&mut db.session().await, &[drop, create]).await;
        let insert = "INSERT INTO v VALUES (1, VEC_FromText('[1,-2.5,1000]'))";
        let (rows, events) = both(&db, db.options(), &[insert]).await;
        assert!(events.is_empty(), "{events:?}");
        assert_eq!(rows, ["v:c id=1 x=[1.0, -2.5, 1000.0]"]);
    }
}
