//! The form of each change in PostgreSQL's log, and what a tail gives again or not after a
//! restart.

use crate::database::{Place, on, run_script};
use crate::rows::{drain, drain_to, start, tracked};
use caudal_model::Kind;

on!(
    postgres: each_change_has_its_form,
    a_restart_replays_what_was_not_acknowledged,
    a_key_change_during_the_copy_never_loses_an_unchanged_cell,
);

async fn each_change_has_its_form(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE k (a int, b text, big text, PRIMARY KEY (b, a)); ALTER TABLE k ALTER big SET STORAGE EXTERNAL",
            "CREATE TABLE nokey (a int, big text); ALTER TABLE nokey REPLICA IDENTITY FULL; ALTER TABLE nokey ALTER big SET STORAGE EXTERNAL",
            "CREATE TABLE other (id int PRIMARY KEY)",
        ])
        .await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    run_script(
        &mut db.session().await,
        "INSERT INTO k VALUES (1, 'x', repeat('z', 5000));
         UPDATE k SET a = 2; UPDATE k SET a = 2; UPDATE k SET b = 'y', big = 'small'; DELETE FROM k;
         INSERT INTO nokey VALUES (1, repeat('q', 4000)), (1, NULL);
         UPDATE nokey SET a = 3 WHERE big IS NOT NULL; DELETE FROM nokey WHERE big IS NULL;
         BEGIN; INSERT INTO k VALUES (5, 'r', NULL); ROLLBACK;
         BEGIN; INSERT INTO other VALUES (1); SAVEPOINT s; INSERT INTO other VALUES (2); ROLLBACK TO s; INSERT INTO other VALUES (3); COMMIT;
         TRUNCATE k, other",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let z = "z".repeat(5000);
    let q = "q".repeat(4000);
    let expected = [
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
    assert_eq!(log.rows, expected);
}

async fn a_restart_replays_what_was_not_acknowledged(place: Place) {
    let db = place
        .database(&["CREATE TABLE t (id int PRIMARY KEY)"])
        .await;
    let source = db.open(db.options());
    let tables = tracked(&*source).await;
    let names = [db.table("t")];
    let from = source.prepare(&names).await.unwrap();
    assert_eq!(source.prepare(&names).await.unwrap(), from);
    let mut session = db.session().await;
    run_script(&mut session, "INSERT INTO t VALUES (1)").await;

    let mut tail = source.open_tail(&from, tables.clone()).await.unwrap();
    let first = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(first.rows, ["t:c id=1"]);
    drop(tail);
    let mut tail = source.open_tail(&from, tables.clone()).await.unwrap();
    let again = drain_to(&*source, &mut *tail, 1 << 20, &first.reached).await;
    assert_eq!(again.rows, ["t:c id=1"]);

    tail.acknowledge(&first.reached);
    run_script(&mut session, "INSERT INTO t VALUES (9)").await;
    let second = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(second.rows, ["t:c id=9"]);
    db.expect_acknowledged(&first.reached).await;
    drop(tail);
    let mut tail = source
        .open_tail(&first.reached, tables.clone())
        .await
        .unwrap();
    let again = drain_to(&*source, &mut *tail, 1 << 20, &second.reached).await;
    assert_eq!(again.rows, ["t:c id=9"]);
    drop(tail);
    let error = source.open_tail(&from, tables).await.err().unwrap();
    assert_eq!(error.kind(), Kind::PositionLost, "{error}");
}

async fn a_key_change_during_the_copy_never_loses_an_unchanged_cell(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE m (id int PRIMARY KEY, big text); ALTER TABLE m ALTER big SET STORAGE EXTERNAL",
        ])
        .await;
    let source = db.open(db.options());
    let (mut tables, mut tail) = start(&*source).await;
    tables[0].copying = true;
    tail.track(tables[0].clone());
    let mut session = db.session().await;
    run_script(
        &mut session,
        "INSERT INTO m VALUES (1, repeat('z', 5000)); ALTER TABLE m REPLICA IDENTITY FULL; UPDATE m SET id = 2;
         ALTER TABLE m REPLICA IDENTITY DEFAULT; UPDATE m SET id = 3",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let starts: Vec<&str> = log.rows.iter().map(|r| &r[..8]).collect();
    assert_eq!(starts, ["m:c id=1", "m:d id=1", "m:c id=2"]);
    assert!(log.rows[2].ends_with('z'));
    let why = "got another key while the table was copied";
    let events = log.notable();
    assert!(events.iter().any(|e| e.contains(why)), "{events:?}");

    tail.track(tables[0].clone());
    tail.live(&tables[0].schema.table);
    run_script(&mut session, "UPDATE m SET id = 4").await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["m:d id=3", "m:c id=4 unchanged=[big]"]);
}
