//! The form of each change in the logs of MySQL and MariaDB, in every form that a log itself
//! can have, and where an exact read meets it (INV-6).

use crate::database::{Database, Place, on, run_each};
use crate::rows::{copy, copy_rest, drain, tracked};
use caudal_model::Selection;
use caudal_sources::{SourceOptions, TrackedTable};

on!(
    mysql and mariadb: changes_arrive_in_order_and_only_once,
    a_buffer_may_be_full_after_each_row,
    exact_reads_leave_nothing_out_and_nothing_double,
);
on!(mysql: compressed_transactions, tagged_gtids, file_positions_without_gtids);
on!(mariadb: compressed_events);

const TABLES: &[&str] = &[
    "CREATE TABLE k (a int, b varchar(10), v varchar(20), primary key (b, a))",
    "CREATE TABLE n (i int, v varchar(20))",
    "CREATE TABLE other (i int)",
];

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

/// The changes, by a session with these settings, through a buffer of `limit` bytes.
async fn expect_changes(db: &Database, settings: &[&str], limit: usize) {
    let mut session = db.session().await;
    run_each(&mut session, settings).await;
    let mut options = db.options();
    let selected = [db.table("k"), db.table("n")].map(|t| t.to_string());
    options.selection = Selection::new(&selected, &[]).unwrap();
    let source = db.open(options.clone());
    let tables = tracked(&*source).await;
    let base = source.prepare(&[]).await.unwrap();
    let mut live = source.open_tail(&base, tables.clone()).await.unwrap();
    run_each(&mut session, CHANGES).await;
    let log = drain(&*source, &mut *live, limit).await;
    assert!(log.notable().is_empty(), "{:?}", log.events);
    assert_eq!(log.rows, CHANGED, "{settings:?}");

    // From the end nothing comes again, and what follows does.
    let second = db.open(SourceOptions {
        stream: format!("{}_2", options.stream),
        ..options
    });
    let mut resumed = second.open_tail(&log.reached, tables).await.unwrap();
    run_each(&mut session, &["INSERT INTO k VALUES (50, 'r', 'after')"]).await;
    for tail in [&mut resumed, &mut live] {
        let log = drain(&*source, &mut **tail, limit).await;
        assert_eq!(log.rows, ["k:c a=50 b=r v=after"]);
    }
}

async fn changes_arrive_in_order_and_only_once(place: Place) {
    expect_changes(&place.database(TABLES).await, &[], 1 << 20).await;
}

async fn a_buffer_may_be_full_after_each_row(place: Place) {
    expect_changes(&place.database(TABLES).await, &[], 1).await;
}

async fn compressed_transactions(place: Place) {
    let on = ["SET SESSION binlog_transaction_compression = ON"];
    expect_changes(&place.database(TABLES).await, &on, 1).await;
}

async fn compressed_events(place: Place) {
    // A setting of the server, not of a session.
    let on = ["--log-bin-compress=ON", "--log-bin-compress-min-len=10"];
    let db = place.private_database(&on, TABLES).await;
    expect_changes(&db, &[], 1 << 20).await;
}

async fn tagged_gtids(place: Place) {
    // The tag stays in the server's set of transactions.
    let db = place.private_database(&[], TABLES).await;
    expect_changes(&db, &["SET gtid_next = 'AUTOMATIC:shop'"], 1 << 20).await;
}

async fn file_positions_without_gtids(place: Place) {
    let off = ["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"];
    let db = place.private_database(&off, TABLES).await;
    expect_changes(&db, &[], 1 << 20).await;
    let source = db.open(db.options());
    let before = source.current_position().await.unwrap();
    let mut tail = source.open_tail(&before, vec![]).await.unwrap();
    let flush = ["FLUSH BINARY LOGS", "FLUSH BINARY LOGS"];
    run_each(&mut db.session().await, &flush).await;
    let after = drain(&*source, &mut *tail, 1 << 20).await.reached;
    assert!(source.covers(&after, &before).unwrap());
    assert!(!source.covers(&before, &after).unwrap());
    let tables = tracked(&*source).await;
    let n = tables.iter().find(|t| t.schema.table.name == "n").unwrap();
    let (rows, _) = copy(&*source, &n.schema, &after, 200).await;
    assert_eq!(rows, ["n:r i=8 v=last"]);
}

async fn exact_reads_leave_nothing_out_and_nothing_double(place: Place) {
    let db = place
        .database(&["CREATE TABLE n (i int, v varchar(20))"])
        .await;
    let source = db.open(db.options());
    let table = tracked(&*source).await.remove(0);
    let base = source.prepare(&[]).await.unwrap();
    let mut session = db.session().await;
    let before = "INSERT INTO n VALUES (1, 'a'), (1, 'a'), (2, 'b')";
    run_each(&mut session, &[before]).await;
    let mut reader = source.open_reader(true).await.unwrap();
    let mark = reader.open_exact(&table.schema, &base).await.unwrap();
    let after = [
        "INSERT INTO n VALUES (3, 'after')",
        "DELETE FROM n WHERE i = 2",
    ];
    run_each(&mut session, &after).await;
    let (rows, chunks) = copy_rest(&mut *reader, &table.schema, 1 << 20, 3).await;
    assert_eq!(chunks, 1);
    assert_eq!(rows, ["n:r i=1 v=a", "n:r i=1 v=a", "n:r i=2 v=b"]);
    let marked = TrackedTable {
        mark: Some(mark),
        ..table
    };
    let mut tail = source.open_tail(&base, vec![marked]).await.unwrap();
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["n:c i=3 v=after", "n:d i=2 v=b"]);
}
