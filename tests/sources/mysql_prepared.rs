//! Prepared transactions of MySQL and MariaDB (INV-3): their rows come with their commit,
//! also where the log has them before it and a restart lies between.

use crate::database::{Place, on, run_each};
use crate::rows::{drain, next, show, tracked};
use caudal_model::ChangeBuffer;
use caudal_sources::TailEvent;
use caudal_tests::Session;
use caudal_tests::databases::Kind;

on!(mysql and mariadb: they_wait_for_their_commit);

async fn prepare(session: &mut Session, id: &str, row: u32) {
    let insert = format!("INSERT INTO t VALUES ({row})");
    let [start, end, prepare] = ["START", "END", "PREPARE"].map(|verb| format!("XA {verb} '{id}'"));
    run_each(session, &[&start, &insert, &end, &prepare]).await;
}

/// On a server of its own: a prepared transaction outlives a test that failed, and its locks
/// with it.
async fn they_wait_for_their_commit(place: Place) {
    let create = "CREATE TABLE t (id int primary key)";
    let db = place.private_database(&[], &[create]).await;
    let source = db.open(db.options());
    let tables = tracked(&*source).await;
    let base = source.prepare(&[]).await.unwrap();
    let (mut session, mut other) = (db.session().await, db.session().await);
    prepare(&mut session, "p1", 1).await;
    run_each(&mut other, &["INSERT INTO t VALUES (2)"]).await;
    let mut tail = source.open_tail(&base, tables.clone()).await.unwrap();
    if place.kind() == Kind::Mysql {
        // Another transaction is reported while one waits; a restart there reads it again.
        let mut into = ChangeBuffer::new(1, 1 << 20);
        let position = loop {
            if let TailEvent::Commit { position, .. } = next(&mut *tail, &mut into).await {
                break position;
            }
        };
        assert_eq!(show(&into.take().unwrap()), ["t:c id=2"]);
        tail = source.open_tail(&position, tables).await.unwrap();
    }
    run_each(&mut session, &["XA COMMIT 'p1'"]).await;
    prepare(&mut session, "p2", 3).await;
    let end = ["XA ROLLBACK 'p2'", "INSERT INTO t VALUES (4)"];
    run_each(&mut session, &end).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let expected: &[&str] = match place.kind() {
        Kind::Mariadb => &["t:c id=2", "t:c id=1", "t:c id=4"],
        _ => &["t:c id=1", "t:c id=4"],
    };
    assert_eq!(log.rows, expected);
}
