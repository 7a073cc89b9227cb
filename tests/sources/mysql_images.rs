//! Rows of which the log holds only a part: `binlog_row_image` NOBLOB and MINIMAL, and partial
//! updates of JSON. The oracle is the table: what the changes make of it must be what is in it.

use crate::database::{Database, Place, on, run_each};
use crate::rows::{copy, drain, start, tracked};
use caudal_model::Severity;
use caudal_sources::filter::{FilterSyntax, parse};
use caudal_sources::{SourceOptions, TableOptions, TrackedTable};
use caudal_tests::databases::Kind;
use std::collections::BTreeMap;

on!(
    mysql and mariadb: partial_rows_make_the_table,
    a_key_that_changes_during_the_copy_needs_the_whole_row,
    tables_that_need_whole_rows_say_so,
    tables_that_come_later_know_their_defaults,
    filters_choose_the_same_rows_in_copy_and_log,
);
on!(mariadb: virtual_columns_need_whole_rows);
on!(mysql: partial_updates_of_json, steps_without_their_document_stop_the_table);

/// Applies rows as `show` prints them to a table of one key column.
fn fold(rows: &[String]) -> Vec<String> {
    let mut table: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut removed = BTreeMap::new();
    for row in rows {
        let (head, cells) = row.split_once(' ').unwrap();
        let (cells, unchanged) = cells.split_once(" unchanged=").unwrap_or((cells, ""));
        let cells: BTreeMap<String, String> = cells
            .split(' ')
            .filter_map(|c| c.split_once('='))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect();
        let key = cells["id"].clone();
        let op = head.split_once(':').unwrap().1;
        if op == "d" {
            removed = table.remove(&key).unwrap_or_default();
            continue;
        }
        let before = match op {
            "u" => table.remove(&key).expect("a row to update"),
            _ => std::mem::take(&mut removed),
        };
        let mut after = cells;
        for name in unchanged.trim_matches(['[', ']']).split(", ") {
            if let Some(value) = before.get(name) {
                after.insert(name.to_owned(), value.clone());
            }
        }
        table.insert(key, after);
    }
    let mut out: Vec<String> = table
        .into_values()
        .map(|row| row.iter().map(|(a, b)| format!("{a}={b} ")).collect())
        .collect();
    out.sort();
    out
}

async fn expect_folded(db: &Database, options: SourceOptions, statements: &[&str]) {
    let source = db.open(options);
    let (tables, mut tail) = start(&*source).await;
    run_each(&mut db.session().await, statements).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(log.notable().is_empty(), "{:?}", log.events);
    let schema = &tables[0].schema;
    let (copied, _) = copy(&*source, schema, &log.reached, 1 << 20).await;
    assert_eq!(fold(&log.rows), fold(&copied), "{:?}", log.rows);
}

const TABLE: &str = "id int primary key, a int default 5, b varchar(10) default 'x''y', c text, \
     d int not null, e timestamp default current_timestamp, f mediumtext, g int as (a + 1) stored, \
     u int unique, dt datetime(3) default '2024-02-29 01:02:03.5', \
     da date not null default '2024-02-29', dc decimal(9,3) default 1.5, en enum('p','q') not null, \
     fl float default 0.25, n varchar(5) default null";

const STATEMENTS: &[&str] = &[
    "INSERT INTO t (id) VALUES (1)",
    "INSERT INTO t (id, a, d, f) VALUES (2, 5, 7, 'q')",
    "INSERT INTO t (id, a, b, c, d, n) VALUES (3, null, null, 'text', 8, 'n'), (4, 1, '', '', 0, null)",
    "UPDATE t SET a = 6 WHERE id = 2",
    "UPDATE t SET c = 'changed' WHERE id = 3",
    "UPDATE t SET id = 20, f = 'moved' WHERE id = 2",
    "UPDATE t SET id = id + 100 WHERE id > 2 ORDER BY id DESC",
    "REPLACE INTO t (id, d) VALUES (1, 9)",
    "INSERT INTO t (id, d) VALUES (1, 10) ON DUPLICATE KEY UPDATE n = 'dup'",
    "DELETE FROM t WHERE id = 104",
    "INSERT INTO t SELECT 50, 1, 's', 's', 1, now(), 's', default, default, 7, now(3), '2024-01-01', 2, 'q', 1.5, 'v'",
];

async fn partial_rows_make_the_table(place: Place) {
    let db = place.database(&[]).await;
    let mut session = db.session().await;
    // Computed when it is read; MariaDB leaves it out of partial images.
    let computed = if place.kind() == Kind::Mysql {
        ", h int as (a + 2) virtual"
    } else {
        ""
    };
    let create = format!("CREATE TABLE t ({TABLE}{computed}) CHARACTER SET utf8mb4");
    let [minimal, noblob, full] =
        ["MINIMAL", "NOBLOB", "FULL"].map(|i| format!("SET SESSION binlog_row_image = {i}"));
    for image in [&minimal, &noblob, &full] {
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let mut statements = vec![image.as_str()];
        // `default` of generated columns is one server's word only.
        statements.extend(STATEMENTS.iter().filter(|s| !s.contains("SELECT")));
        expect_folded(&db, db.options(), &statements).await;
    }
    // Each session as it likes.
    run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
    let mut statements: Vec<&str> = Vec::new();
    for (i, s) in STATEMENTS
        .iter()
        .filter(|s| !s.contains("SELECT"))
        .enumerate()
    {
        statements.push([&minimal, &full, &noblob][i % 3]);
        statements.push(s);
    }
    expect_folded(&db, db.options(), &statements).await;
}

async fn virtual_columns_need_whole_rows(place: Place) {
    let create = "CREATE TABLE t (id int primary key, a int, h int as (a + 2) virtual)";
    let db = place.database(&[create]).await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let statements = [
        "INSERT INTO t (id, a) VALUES (1, 1)",
        "SET SESSION binlog_row_image = NOBLOB",
        "UPDATE t SET a = 2",
        "SET SESSION binlog_row_image = MINIMAL",
        "UPDATE t SET a = 3",
    ];
    run_each(&mut db.session().await, &statements).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["t:c id=1 a=1 h=3", "t:u id=1 a=2 h=4"]);
    assert!(
        log.notable()[0].contains("virtual column"),
        "{:?}",
        log.events
    );
}

async fn a_key_that_changes_during_the_copy_needs_the_whole_row(place: Place) {
    let db = place
        .database(&["CREATE TABLE t (id int primary key, a int, b int)"])
        .await;
    let mut session = db.session().await;
    run_each(&mut session, &["INSERT INTO t VALUES (1, 1, 1), (2, 2, 2)"]).await;
    let source = db.open(db.options());
    let base = source.prepare(&[]).await.unwrap();
    let copying = TrackedTable {
        copying: true,
        ..tracked(&*source).await.remove(0)
    };
    let live = copying.schema.table.clone();
    let mut tail = source
        .open_tail(&base, vec![copying.clone()])
        .await
        .unwrap();
    let statements = [
        "SET SESSION binlog_row_image = MINIMAL",
        "UPDATE t SET a = 9 WHERE id = 1",
        "UPDATE t SET id = 3, a = 9, b = 9 WHERE id = 1",
    ];
    run_each(&mut session, &statements).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let expected = ["t:u id=1 a=9 unchanged=[b]", "t:d id=1", "t:c id=3 a=9 b=9"];
    assert_eq!(log.rows, expected);
    run_each(&mut session, &["UPDATE t SET id = 4 WHERE id = 2"]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(
        log.notable()[0].contains("another key during the copy"),
        "{:?}",
        log.events
    );
    // Once every row is in the lake, there is what to fill it from.
    let again = source.current_position().await.unwrap();
    let mut tail = source.open_tail(&again, vec![copying]).await.unwrap();
    tail.live(&live);
    run_each(&mut session, &["UPDATE t SET id = 5 WHERE id = 4"]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["t:d id=4", "t:c id=5 unchanged=[a, b]"]);
}

async fn tables_that_need_whole_rows_say_so(place: Place) {
    let creates = [
        "CREATE TABLE keyed (id int primary key, k int not null unique, v int)",
        "CREATE TABLE whole (i int, v int)",
        "CREATE TABLE uniq (i int not null unique, v int)",
        "CREATE TABLE zone (id int primary key, v int)",
    ];
    let db = place
        .private_database(&["--binlog-row-image=MINIMAL"], &creates)
        .await;
    let mut options = db.options();
    let own_key = TableOptions {
        key: Some(vec!["k".into()]),
        ..TableOptions::default()
    };
    options.tables.insert(db.table("keyed"), own_key);
    let by_value = TableOptions {
        filter: Some(parse("v > 1", FilterSyntax::MySql).unwrap()),
        ..TableOptions::default()
    };
    options.tables.insert(db.table("zone"), by_value);
    let source = db.open(options);
    let findings = source.check().await.unwrap();
    let image: Vec<_> = findings
        .iter()
        .filter(|f| f.check == "binlog_row_image")
        .collect();
    assert_eq!(image[0].severity, Severity::Info, "{image:?}");
    assert_eq!(
        image[1].subject,
        Some(db.table("keyed").to_string()),
        "{image:?}"
    );
    assert_eq!(
        image[2].subject,
        Some(db.table("zone").to_string()),
        "{image:?}"
    );
    let (_, mut tail) = start(&*source).await;
    let statements = [
        "INSERT INTO whole VALUES (1, 1)",
        "INSERT INTO whole (v) VALUES (2)",
        "UPDATE whole SET v = 3 WHERE i = 1",
        "DELETE FROM whole WHERE v = 2",
        "INSERT INTO uniq VALUES (1, 1)",
        "UPDATE uniq SET v = 2",
        "INSERT INTO keyed VALUES (1, 1, 1)",
        "UPDATE keyed SET v = 2",
        "INSERT INTO zone VALUES (1, 2)",
        "UPDATE zone SET v = 3",
    ];
    run_each(&mut db.session().await, &statements).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    // Without any key that the server knows, it logs the whole row before a change.
    let expected = [
        "whole:c i=1 v=1",
        "whole:c v=2",
        "whole:d i=1 v=1",
        "whole:c i=1 v=3",
        "whole:d v=2",
        "uniq:c i=1 v=1",
        "keyed:c id=1 k=1 v=1",
        "zone:c id=1 v=2",
    ];
    assert_eq!(log.rows, expected);
    let notable = log.notable();
    assert_eq!(notable.len(), 3, "{notable:?}");
    assert!(
        notable[2].contains("its filter looks at columns"),
        "{notable:?}"
    );
    assert!(notable[0].contains("uniq: ") && notable[0].contains("binlog_row_image = FULL"));
    assert!(notable[1].contains("without their key"), "{notable:?}");
}

/// A table that comes while the stream runs is described when its first rows come.
async fn tables_that_come_later_know_their_defaults(place: Place) {
    let db = place.database(&["CREATE TABLE first (i int)"]).await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let mut session = db.session().await;
    let statements = [
        "CREATE TABLE t (id int primary key, a int DEFAULT 7, b varchar(9) NOT NULL)",
        "CREATE TABLE u (i int not null unique, v int)",
    ];
    run_each(&mut session, &statements).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.notable(), ["catalog", "catalog"]);
    for table in tracked(&*source).await {
        if table.schema.table.name != "first" {
            tail.track(table);
        }
    }
    let statements = [
        "SET SESSION binlog_row_image = MINIMAL, sql_mode = ''",
        "INSERT INTO t (id) VALUES (1)",
        "INSERT INTO u VALUES (1, 1)",
        "ALTER TABLE t ALTER a SET DEFAULT 8",
    ];
    run_each(&mut session, &statements).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    // The first default was read too early or in time, which its place in the log tells.
    assert_eq!(log.rows[1..], ["u:c i=1 v=1"], "{:?}", log.notable());
    let rows = ["t:c id=1 a=7 b=", "t:c id=1 a=8 b="];
    assert!(rows.contains(&&*log.rows[0]), "{:?}", log.rows);
    let again = log
        .notable()
        .iter()
        .any(|e| e.starts_with("recopy") && e.contains("default"));
    assert_eq!(
        again,
        log.rows[0] == rows[1],
        "{:?} {:?}",
        log.rows,
        log.notable()
    );
    if again {
        return;
    }
    run_each(&mut session, &["INSERT INTO t (id) VALUES (2)"]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["t:c id=2 a=8 b="]);
}

async fn filters_choose_the_same_rows_in_copy_and_log(place: Place) {
    let create = "CREATE TABLE t (id int primary key, v varchar(9), w varchar(9) character set latin1, \
                  n decimal(9,2), d date, b bit(1), g varchar(9) character set gbk)";
    let db = place.database(&[create]).await;
    let mut session = db.session().await;
    let rows = [
        "INSERT INTO t VALUES (1, 'eu', 'é', 1.50, '2024-01-01', b'1', '日'), (2, 'EU', 'É', 1.51, '2024-01-02', b'0', '本')",
        "INSERT INTO t VALUES (3, 'eu ', 'e', -1, '0000-00-00', null, ''), (4, null, null, null, null, null, null), (5, '', '', 0, '2023-12-31', b'1', 'x')",
    ];
    run_each(&mut session, &rows).await;
    for (filter, expected) in [
        ("v = 'eu'", &[1][..]),
        ("v <> 'eu'", &[2, 3, 5]),
        ("w = 'é' OR w = ''", &[1, 5]),
        ("n >= 1.5 AND n < 1.51", &[1]),
        ("d >= '2024-01-01'", &[1, 2]),
        ("b = TRUE", &[1, 5]),
        ("NOT (v = 'eu') AND id IN (2, 4, 5)", &[2, 5]),
        ("g IN ('日', 'x')", &[1, 5]),
        ("v IS NULL", &[4]),
    ] {
        let mut options = db.options();
        let own = TableOptions {
            filter: Some(parse(filter, FilterSyntax::MySql).unwrap()),
            ..TableOptions::default()
        };
        options.tables.insert(db.table("t"), own);
        let source = db.open(options);
        let (tables, _) = start(&*source).await;
        let base = source.current_position().await.unwrap();
        let (copied, _) = copy(&*source, &tables[0].schema, &base, 1 << 20).await;
        let ids: Vec<String> = expected.iter().map(|i| format!("t:r id={i}")).collect();
        let shown: Vec<String> = copied
            .iter()
            .map(|r| r.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect();
        // A date that becomes null is the server's to compare, and the buffer's to leave out.
        assert_eq!(shown, ids, "{filter}");
    }
}

async fn partial_updates_of_json(place: Place) {
    let create = "CREATE TABLE t (id int primary key, j json, k json, v varchar(10))";
    let db = place.database(&[create]).await;
    let long = "a".repeat(300);
    let insert = format!(
        "INSERT INTO t VALUES (1, '{{\"a\": 1, \"b\": [1, 2, {{\"c\": \"x\"}}], \"é k\": \"{long}\", \"q\\\\\"\": null}}', \
         concat('[', repeat('1,', 300), '1]'), 'v'), (2, json_object('x', repeat('y', 70000), 'z', 1), '{{}}', 'w')"
    );
    let statements = [
        insert.as_str(),
        "SET SESSION binlog_row_value_options = PARTIAL_JSON",
        "UPDATE t SET j = JSON_SET(j, '$.a', 22, '$.new', 'n')",
        "UPDATE t SET j = JSON_REPLACE(j, '$.b[2].c', 'yy'), v = 'w' WHERE id = 1",
        "UPDATE t SET j = JSON_REMOVE(j, '$.b[0]'), k = JSON_ARRAY_APPEND(k, '$', 5) WHERE id = 1",
        "UPDATE t SET j = JSON_ARRAY_INSERT(j, '$.b[1]', CAST(1.5 AS DECIMAL(5,2))) WHERE id = 1",
        "UPDATE t SET j = JSON_SET(j, '$.\"é k\"', '\"', '$.\"q\\\\\"\"', CAST('2024-01-01' AS DATE)) WHERE id = 1",
        "UPDATE t SET j = JSON_SET(j, '$.z', JSON_OBJECT('deep', JSON_ARRAY(1, 2))) WHERE id = 2",
        "UPDATE t SET j = JSON_SET(j, '$.z.deep[0]', JSON_ARRAY()), k = JSON_SET(k, '$.m', 1) WHERE id = 2",
        "UPDATE t SET k = '[9]', j = JSON_REMOVE(j, '$.x') WHERE id = 2",
        "UPDATE t SET j = NULL WHERE id = 2",
        "UPDATE t SET id = 3, j = JSON_SET(j, '$.a', 'moved') WHERE id = 1",
        "SET SESSION binlog_row_value_options = ''",
        "UPDATE t SET j = JSON_SET(j, '$.a', 'whole') WHERE id = 3",
    ];
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let mut session = db.session().await;
    for statement in statements {
        run_each(&mut session, &[statement]).await;
        let log = drain(&*source, &mut *tail, 1 << 20).await;
        assert!(log.notable().is_empty(), "{statement}: {:?}", log.events);
        let schema = &tables[0].schema;
        let (copied, _) = copy(&*source, schema, &log.reached, 1 << 20).await;
        // The changed rows are now what the log said.
        for row in log.rows.iter().filter(|r| !r.starts_with("t:d")) {
            let now = format!("t:r{}", &row[3..]);
            assert!(
                copied.contains(&now),
                "{statement}: {row:.900} {copied:.900?}"
            );
        }
    }
}

async fn steps_without_their_document_stop_the_table(place: Place) {
    let create = "CREATE TABLE t (id int primary key, k json, j json)";
    let db = place.database(&[create]).await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let statements = [
        "INSERT INTO t VALUES (1, '[1, 2]', '{\"a\": \"0123456789\"}')",
        "SET SESSION binlog_row_value_options = PARTIAL_JSON, binlog_row_image = MINIMAL",
        "UPDATE t SET k = '[3]'",
        "UPDATE t SET j = JSON_SET(j, '$.a', 'x')",
    ];
    run_each(&mut db.session().await, &statements).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows[1], "t:u id=1 k=[3] unchanged=[j]");
    assert!(log.notable()[0].contains("column j"), "{:?}", log.events);
}
