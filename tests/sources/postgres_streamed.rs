//! Transactions that PostgreSQL sends while they are open (INV-3): they wait outside of the
//! memory until they commit, and leave nothing behind.

use crate::database::{Place, on, run_script};
use crate::rows::{drain, start, tracked};

on!(
    postgres: they_spill_commit_and_abort,
    a_restart_between_the_parts_gives_the_whole,
);

const TABLES: &str =
    "CREATE TABLE s (id int PRIMARY KEY, t text); CREATE TABLE u (id int PRIMARY KEY)";

async fn they_spill_commit_and_abort(place: Place) {
    let db = place.database(&[TABLES]).await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let (mut large, mut other) = (db.session().await, db.session().await);
    run_script(
        &mut large,
        "BEGIN; INSERT INTO s SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i; SAVEPOINT a;
         INSERT INTO s SELECT i, 'gone' FROM generate_series(5001, 9000) i; ROLLBACK TO a;
         INSERT INTO s SELECT i, 'kept' FROM generate_series(9001, 9010) i",
    )
    .await;
    run_script(
        &mut other,
        "INSERT INTO u VALUES (1);
         BEGIN; INSERT INTO s SELECT i, repeat('y', 50) FROM generate_series(20000, 24000) i; ROLLBACK",
    )
    .await;
    let log = drain(&*source, &mut *tail, 100 << 10).await;
    assert_eq!(log.rows, ["u:c id=1"]);
    let limit = db.options().staging_bytes;
    assert!(tail.staged_bytes() <= limit, "{}", tail.staged_bytes());
    let spilled = || std::fs::read_dir(db.options().spill_dir).unwrap().count();
    assert_eq!(spilled(), 1);

    run_script(&mut large, "COMMIT").await;
    let log = drain(&*source, &mut *tail, 100 << 10).await;
    assert_eq!(log.rows.len(), 5010);
    assert_eq!(log.rows[5009], "s:c id=9010 t=kept");
    let full = log.events.iter().filter(|e| *e == "full").count();
    assert!(full > 3, "{:?}", log.events);
    assert_eq!((tail.staged_bytes(), spilled()), (0, 0));
}

async fn a_restart_between_the_parts_gives_the_whole(place: Place) {
    let db = place.database(&[TABLES]).await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let (mut large, mut other) = (db.session().await, db.session().await);
    run_script(
        &mut large,
        "BEGIN; INSERT INTO s SELECT i, repeat('x', 100) FROM generate_series(1, 3000) i",
    )
    .await;
    run_script(&mut other, "INSERT INTO u VALUES (2)").await;
    let log = drain(&*source, &mut *tail, 100 << 10).await;
    assert_eq!(log.rows, ["u:c id=2"]);
    tail.acknowledge(&log.reached);
    db.expect_acknowledged(&log.reached).await;
    drop(tail);
    let tables = tracked(&*source).await;
    let mut tail = source.open_tail(&log.reached, tables).await.unwrap();
    run_script(&mut large, "COMMIT").await;
    let log = drain(&*source, &mut *tail, 100 << 10).await;
    assert_eq!(log.rows.len(), 3000);
}
