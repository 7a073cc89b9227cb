//! Tables that join a running stream: whatever was writing to them then, each row comes once,
//! with the copy or with the log.

use crate::database::{Place, on, run_each, run_script};
use crate::rows::{copy, drain, start, tracked};
use caudal_model::Class;
use std::time::Duration;

on!(
    postgres: rows_of_open_transactions_are_copied_or_logged,
    a_transaction_that_does_not_end_is_named,
);

async fn rows_of_open_transactions_are_copied_or_logged(place: Place) {
    let db = place
        .database(&["CREATE TABLE a (id int PRIMARY KEY)"])
        .await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let (mut session, mut open) = (db.session().await, db.session().await);
    run_each(&mut session, &["CREATE TABLE n (id int PRIMARY KEY)"]).await;
    run_script(&mut open, "BEGIN; INSERT INTO n VALUES (1)").await;
    let name = db.table("n");
    let joining = async { source.add_tables(std::slice::from_ref(&name)).await };
    let writing = async {
        // Once the table is in the publication, which the open transaction cannot see.
        let published = format!(
            "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'n' AND pubname = 'caudal_{}'",
            db.stream()
        );
        caudal_tests::agent::eventually("the table is published", async || {
            Ok((db.source.scalar(&published).await? == "1").then_some(()))
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        run_script(
            &mut open,
            "INSERT INTO n VALUES (2); COMMIT; INSERT INTO n VALUES (3)",
        )
        .await;
    };
    let (joined, ()) = tokio::join!(joining, writing);
    joined.unwrap();
    run_each(&mut session, &["INSERT INTO n VALUES (4)"]).await;
    let base = drain(&*source, &mut *tail, 1 << 20).await.reached;
    let table = tracked(&*source)
        .await
        .into_iter()
        .find(|t| t.schema.table == name)
        .unwrap();
    let (copied, _) = copy(&*source, &table.schema, &base, 1 << 20).await;
    assert_eq!(copied, ["n:r id=1", "n:r id=2", "n:r id=3", "n:r id=4"]);
    tail.track(table);
    // The server must not have kept for good what it had answered for the open transaction.
    run_each(&mut session, &["INSERT INTO n VALUES (5)"]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["n:c id=5"], "{:?}", log.events);
}

async fn a_transaction_that_does_not_end_is_named(place: Place) {
    let db = place
        .database(&["CREATE TABLE a (id int PRIMARY KEY)"])
        .await;
    let source = db.open(db.options());
    let (_, _tail) = start(&*source).await;
    let (mut session, mut open) = (db.session().await, db.session().await);
    run_each(&mut session, &["CREATE TABLE n (id int PRIMARY KEY)"]).await;
    run_script(&mut open, "BEGIN; INSERT INTO n VALUES (1)").await;
    let name = db.table("n");
    // Again, although the table is in the publication by then.
    for _ in 0..2 {
        let error = source
            .add_tables(std::slice::from_ref(&name))
            .await
            .unwrap_err();
        assert_eq!(error.class(), Class::Retryable, "{error:?}");
        assert!(
            error
                .to_string()
                .contains("waits for a transaction of process "),
            "{error}"
        );
        assert!(error.hint_text().unwrap().contains("pg_terminate_backend("));
    }
    run_script(&mut open, "COMMIT").await;
    source
        .add_tables(std::slice::from_ref(&name))
        .await
        .unwrap();
}
