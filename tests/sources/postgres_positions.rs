//! Where PostgreSQL's log meets an exact read (INV-6), and that an idle server's end is reached.

use crate::database::{Place, on, run_each};
use crate::rows::{copy_rest, drain, drain_to, start};
use caudal_model::{ChangeBuffer, Kind};
use caudal_sources::{TailEvent, TrackedTable};
use std::time::{Duration, Instant};

on!(
    postgres: an_exact_read_and_the_log_meet_without_a_gap,
    an_idle_server_s_position_is_reached,
    a_slot_follows_while_only_others_write,
    a_position_is_held_back_and_the_server_stops_all_the_same,
);

async fn an_exact_read_and_the_log_meet_without_a_gap(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE h (a int); ALTER TABLE h REPLICA IDENTITY FULL; INSERT INTO h VALUES (1)",
        ])
        .await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let (mut session, mut open) = (db.session().await, db.session().await);
    run_each(&mut open, &["BEGIN", "INSERT INTO h VALUES (2)"]).await;
    run_each(&mut session, &["INSERT INTO h VALUES (3)"]).await;
    let base = source.current_position().await.unwrap();
    drain_to(&*source, &mut *tail, 1 << 20, &base).await;
    run_each(&mut session, &["INSERT INTO h VALUES (4)"]).await;
    let schema = &tables[0].schema;
    let mut reader = source.open_reader(true).await.unwrap();
    let mark = reader.open_exact(schema, &base).await.unwrap();
    tail.track(TrackedTable {
        mark: Some(mark),
        ..tables[0].clone()
    });
    run_each(&mut open, &["COMMIT"]).await;
    let both = "INSERT INTO h VALUES (5); UPDATE h SET a = 10 WHERE a = 1";
    run_each(&mut session, &[both]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let (rows, chunks) = copy_rest(&mut *reader, schema, 1 << 20, 3).await;
    assert_eq!(chunks, 1);
    assert_eq!(rows, ["h:r a=1", "h:r a=3", "h:r a=4"]);
    assert_eq!(log.rows, ["h:c a=2", "h:c a=5", "h:d a=1", "h:c a=10"]);
}

/// On a server of its own, since another test's writes would move the position on.
async fn an_idle_server_s_position_is_reached(place: Place) {
    let db = place
        .private_database(&[], &["CREATE TABLE i (id int PRIMARY KEY, t text)"])
        .await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let mut session = db.session().await;
    let mut superuser = db.source.superuser().await.unwrap();
    run_each(&mut session, &["SET synchronous_commit = off"]).await;
    for n in 0..40 {
        let size = n * 90;
        let insert = format!("INSERT INTO i VALUES ({n}, repeat('x', {size}))");
        match n % 4 {
            0 => run_each(&mut superuser, &["SELECT pg_switch_wal()"]).await,
            1 => run_each(&mut session, &[&insert]).await,
            2 => run_each(&mut session, &["BEGIN", &insert]).await,
            _ => run_each(&mut session, &["ROLLBACK"]).await,
        }
        let started = Instant::now();
        drain(&*source, &mut *tail, 1 << 20).await;
        // Far less than the time after which the server would speak by itself.
        let took = started.elapsed();
        assert!(took < Duration::from_secs(8), "step {n} took {took:?}");
    }
    let now = source.current_position().await.unwrap();
    let progress = source.progress(&now).await.unwrap();
    assert_eq!(progress.lag_bytes, Some(0));
    assert!(progress.retained_bytes.is_some());
}

/// The log is all databases': the slot must not stay behind while only others are written to.
async fn a_slot_follows_while_only_others_write(place: Place) {
    let db = place
        .database(&["CREATE TABLE t (id int PRIMARY KEY)"])
        .await;
    let other = place.database(&["CREATE TABLE o (id int)"]).await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let before = source.current_position().await.unwrap();
    let write = "INSERT INTO o SELECT generate_series(1, 10000)";
    run_each(&mut other.session().await, &[write]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(log.rows.is_empty() && !source.covers(&before, &log.reached).unwrap());
    tail.acknowledge(&log.reached);
    db.expect_acknowledged(&log.reached).await;
}

/// A server that shuts down waits for its readers, but not for what they let it keep.
async fn a_position_is_held_back_and_the_server_stops_all_the_same(place: Place) {
    let db = place
        .private_database(&[], &["CREATE TABLE t (id int PRIMARY KEY)"])
        .await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let first = source.current_position().await.unwrap();
    let mut session = db.session().await;
    run_each(&mut session, &["INSERT INTO t VALUES (1)"]).await;
    let second = drain(&*source, &mut *tail, 1 << 20).await.reached;
    run_each(&mut session, &["INSERT INTO t VALUES (2)"]).await;
    let third = drain(&*source, &mut *tail, 1 << 20).await.reached;
    tail.written(&third);
    tail.acknowledge(&second);
    tail.written(&third);
    db.expect_acknowledged(&second).await;
    let lost = source.replayable(&first).await.unwrap_err();
    assert_eq!(lost.kind(), Kind::PositionLost);
    source.replayable(&second).await.unwrap();

    let following = tokio::spawn(async move {
        let mut buffer = ChangeBuffer::new(1, 1 << 20);
        loop {
            match tail.next(&mut buffer).await {
                Ok(TailEvent::Commit { position, .. } | TailEvent::Heartbeat { position }) => {
                    tail.written(&position);
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
    let server = db.source.server_handle();
    let started = Instant::now();
    let stopping = server.clone();
    let stopped = tokio::task::spawn_blocking(move || stopping.stop());
    stopped.await.unwrap().unwrap();
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(20),
        "the server stopped in {took:?}"
    );
    following.await.unwrap();
    server.resume().unwrap();
    // What was only written is still there.
    source.replayable(&second).await.unwrap();
}
