//! Values at the limit and beyond it, and tables of unusual breadth.

use crate::database::{Database, Place, on, run_each};
use crate::rows::{copy, drain, expect_same, start};
use caudal_sources::SourceOptions;
use caudal_tests::databases::Kind;

on!(
    mysql and mariadb: a_hundred_megabytes_pass,
    larger_values_stop_their_table_alone,
    a_thousand_columns,
);
on!(mysql: larger_values_in_compressed_transactions);
on!(mariadb: larger_values_in_compressed_events);

const MIB: usize = 1 << 20;

/// The server's packets are larger for the writer than for the reader.
async fn with_large_packets(place: Place, settings: &[&str], statements: &[&str]) -> Database {
    let mut all = vec!["--max-allowed-packet=1073741824"];
    all.extend(settings);
    place.private_database(&all, statements).await
}

async fn a_hundred_megabytes_pass(place: Place) {
    let create = "CREATE TABLE t (id int primary key, v longtext, b longblob, \
                  g longtext character set gbk, j longtext character set latin1)";
    let db = with_large_packets(place, &[], &[create]).await;
    let mut session = db.session().await;
    if place.kind() == Kind::Mysql {
        // MariaDB 10.11 reads its own log within this limit when it is asked for a position.
        run_each(&mut session, &["SET GLOBAL max_allowed_packet = 1048576"]).await;
    }
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let rows = [
        "INSERT INTO t VALUES (1, repeat('x', 100 << 20), null, null, null)",
        "INSERT INTO t VALUES (2, '', repeat('y', 40 << 20), repeat('日', 10 << 20), repeat('é', 10 << 20))",
    ];
    run_each(&mut session, &rows).await;
    let log = drain(&*source, &mut *tail, MIB).await;
    let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, MIB).await;
    let lengths: Vec<usize> = log.rows.iter().map(String::len).collect();
    assert_eq!(
        lengths[0],
        100 * MIB + "t:c id=1 v=".len(),
        "{:?}",
        log.notable()
    );
    let cells = (40 * 2 + 10 * 3 + 10 * 2) * MIB;
    assert_eq!(lengths[1], cells + "t:c id=2 v= b= g= j=".len());
    // Not compared by an assertion, which would print them.
    let equal = |(log, copy): (&String, &String)| log.replacen("t:c", "t:r", 1) == *copy;
    assert!(copied.len() == 2 && log.rows.iter().zip(&copied).all(equal));
}

const TABLES: &[&str] = &[
    "CREATE TABLE t (id int primary key, s varchar(9), `big one` longblob)",
    "CREATE TABLE other (i int primary key)",
];

/// Values of this size and more make packets that are read past.
const HUGE: &str = "100 << 20";

fn limited(db: &Database) -> SourceOptions {
    SourceOptions {
        spill_bytes: u64::MAX,
        value_bytes: MIB,
        ..db.options()
    }
}

async fn larger_values_stop_their_table_alone(place: Place) {
    let db = with_large_packets(place, &[], TABLES).await;
    expect_stopped(&db, &[]).await;
    // The same in a copy.
    let source = db.open(limited(&db));
    let mut session = db.session().await;
    for (bytes, told) in [
        ("1 << 20", None),
        ("(1 << 20) + 1", Some(1048577)),
        (HUGE, Some(100 << 20)),
    ] {
        let set = format!("UPDATE t SET `big one` = repeat('z', {bytes}) WHERE id = 1");
        let delete = "DELETE FROM t WHERE id > 1";
        run_each(&mut session, &[delete, &set]).await;
        let (tables, _) = start(&*source).await;
        let schema = &tables[1].schema;
        let mut reader = source.open_reader(true).await.unwrap();
        let chunk = reader.plan(schema, None, 1000).await.unwrap().unwrap();
        reader.start(schema, &chunk, None).await.unwrap();
        let mut into = caudal_model::ChangeBuffer::for_snapshot(1, 10 * MIB);
        into.begin(caudal_model::TransactionMeta {
            committed_at_us: 0,
            position: "x".into(),
        });
        let outcome = reader.next(&mut into).await;
        match told {
            None => assert!(outcome.is_ok(), "{outcome:?}"),
            Some(bytes) => expect_told(&outcome.unwrap_err().to_string(), bytes),
        }
    }
}

fn expect_told(text: &str, bytes: usize) {
    for part in ["column big one", &bytes.to_string(), "limits.value_bytes"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Each change with a larger value ends its table; the stream goes on with the other.
async fn expect_stopped(db: &Database, settings: &[&str]) {
    let mut session = db.session().await;
    run_each(&mut session, settings).await;
    let source = db.open(limited(db));
    let statements = [
        "INSERT INTO t VALUES (1, 'a', repeat('x', (1 << 20) + 1))".to_owned(),
        "UPDATE t SET `big one` = 'small'".to_owned(),
        format!("INSERT INTO t VALUES (2, 'b', repeat('x', {HUGE}))"),
        "UPDATE t SET s = 'c' WHERE id = 2".to_owned(),
        "DELETE FROM t WHERE id = 2".to_owned(),
    ];
    for (i, statement) in statements.iter().enumerate() {
        let (tables, mut tail) = start(&*source).await;
        run_each(&mut session, &["DELETE FROM other"]).await;
        run_each(&mut session, &[statement, "INSERT INTO other VALUES (1)"]).await;
        let log = drain(&*source, &mut *tail, 10 * MIB).await;
        let last = log.rows.last().map(String::as_str);
        assert_eq!(last, Some("other:c i=1"), "{statement}");
        let notable = log.notable();
        if i == 1 {
            // What the row was before is not carried.
            let expected = ["t:u id=1 s=a big one=736d616c6c", "other:c i=1"];
            assert_eq!(
                (&log.rows[1..], notable.len()),
                (&expected.map(String::from)[..], 0)
            );
            continue;
        }
        assert_eq!(notable.len(), 1, "{statement}: {notable:?}");
        let bytes = if i == 0 { MIB + 1 } else { 100 * MIB };
        expect_told(notable[0], bytes);
        assert!(notable[0].contains(" at "), "{notable:?}");
        assert_eq!(tables.len(), 2);
    }
}

async fn larger_values_in_compressed_transactions(place: Place) {
    let db = with_large_packets(place, &[], TABLES).await;
    expect_stopped(&db, &["SET SESSION binlog_transaction_compression = ON"]).await;
}

async fn larger_values_in_compressed_events(place: Place) {
    let on = ["--log-bin-compress=ON", "--log-bin-compress-min-len=10"];
    let db = with_large_packets(place, &on, TABLES).await;
    let mut session = db.session().await;
    let source = db.open(limited(&db));
    for (bytes, column) in [
        ("(1 << 20) + 1", "column big one"),
        ("300 << 20", "limits.value_bytes"),
    ] {
        let (_, mut tail) = start(&*source).await;
        let insert = format!("INSERT INTO t VALUES (1, 'a', repeat('x', {bytes}))");
        run_each(&mut session, &[&insert, "INSERT INTO other VALUES (1)"]).await;
        let log = drain(&*source, &mut *tail, 10 * MIB).await;
        assert_eq!(log.rows, ["other:c i=1"]);
        assert!(log.notable()[0].contains(column), "{:?}", log.notable());
        run_each(&mut session, &["DELETE FROM t", "DELETE FROM other"]).await;
    }
}

async fn a_thousand_columns(place: Place) {
    let names: Vec<String> = (0..1000).map(|i| format!("`spalte {i} ü.\"{i}`")).collect();
    let columns: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(i, n)| {
            format!(
                "{n} {}",
                [
                    "int",
                    "varchar(5) character set latin1",
                    "bit(1)",
                    "date",
                    "double"
                ][i % 5]
            )
        })
        .collect();
    let create = format!(
        "CREATE TABLE `w ide` (id int primary key, {})",
        columns.join(",")
    );
    let db = place.database(&[&create]).await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let values: Vec<&str> = (0..1000)
        .map(|i| ["7", "'é'", "b'1'", "'2024-01-01'", "1.5"][i % 5])
        .collect();
    let nulls = vec!["null"; 1000].join(",");
    let insert = format!(
        "INSERT INTO `w ide` VALUES (1, {}), (2, {nulls}), (3, {})",
        values.join(","),
        values.join(",")
    );
    run_each(&mut db.session().await, &[&insert]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, 1 << 20).await;
    assert_eq!(log.rows.len(), 3);
    expect_same(&log.rows, &copied);
    assert!(
        log.rows[2].ends_with("spalte 999 ü.\"999=1.5"),
        "{}",
        &log.rows[2][..200]
    );
}
