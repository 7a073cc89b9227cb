//! What is told of a MySQL or MariaDB source while it is followed, and chunks that the server cuts off.

use crate::database::{Place, on, run_each};
use crate::rows::{drain, start, tracked};
use caudal_model::{ChangeBuffer, Class, Kind, TransactionMeta};
use caudal_sources::ChunkEvent;
use caudal_tests::agent::eventually;

on!(
    mysql and mariadb: an_idle_streams_position_follows_what_it_does_not_carry,
    a_chunk_that_the_server_cuts_off_may_be_tried_again_in_smaller_ones,
    a_time_limit_for_statements_is_kept_to,
);

async fn an_idle_streams_position_follows_what_it_does_not_carry(place: Place) {
    let creates = [
        "CREATE TABLE t (id int primary key)",
        "CREATE TABLE other (id int primary key)",
    ];
    let db = place.private_database(&[], &creates).await;
    let mut options = db.options();
    options.selection = caudal_model::Selection::new(&[db.table("t").to_string()], &[]).unwrap();
    let source = db.open(options);
    let (_, mut tail) = start(&*source).await;
    let mut session = db.session().await;
    let own = ["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"];
    run_each(&mut session, &own).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows.len(), 2);
    let progress = source.progress(&log.reached).await.unwrap();
    assert_eq!(
        (progress.lag_bytes, progress.retained_bytes),
        (Some(0), Some(0))
    );
    // Unread log is what would be lost first, in this file and the next.
    let others = [
        "INSERT INTO other VALUES (1)",
        "FLUSH BINARY LOGS",
        "INSERT INTO other VALUES (2)",
    ];
    run_each(&mut session, &others).await;
    let progress = source.progress(&log.reached).await.unwrap();
    assert!(!source.covers(&log.reached, &progress.position).unwrap());
    assert!(progress.lag_bytes > Some(300), "{progress:?}");
    assert_eq!(progress.retained_bytes, progress.lag_bytes);
    // Nothing of it is the stream's; the position comes with the server's next sign of life.
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(log.rows.is_empty() && source.covers(&log.reached, &progress.position).unwrap());
    let progress = source.progress(&log.reached).await.unwrap();
    assert_eq!(progress.lag_bytes, Some(0), "{progress:?}");
}

async fn a_chunk_that_the_server_cuts_off_may_be_tried_again_in_smaller_ones(place: Place) {
    let db = place
        .database(&["CREATE TABLE t (id int primary key, v longtext)"])
        .await;
    let mut session = db.session().await;
    for id in 0..40 {
        let insert = format!("INSERT INTO t VALUES ({id}, repeat('x', 1000000))");
        run_each(&mut session, &[&insert]).await;
    }
    let source = db.open(db.options());
    let schema = tracked(&*source).await.remove(0).schema;
    let mut reader = source.open_reader(false).await.unwrap();
    let chunk = reader.plan(&schema, None, 1000).await.unwrap().unwrap();
    // The server fills the socket, and waits.
    reader.start(&schema, &chunk, None).await.unwrap();
    let table = db.table("t");
    let sending = format!(
        "SELECT ID FROM information_schema.PROCESSLIST \
         WHERE USER = 'cdc' AND INFO LIKE '%FROM `{}`.`{}`%'",
        table.schema, table.name
    );
    let id = eventually("the server sends", async || {
        let rows = db.source.session().await?.rows(&sending).await?;
        Ok(rows
            .into_iter()
            .next()
            .and_then(|r| r.into_iter().next().flatten()))
    })
    .await
    .unwrap();
    run_each(&mut session, &[&format!("KILL QUERY {id}")]).await;
    let error = loop {
        let mut into = ChangeBuffer::for_snapshot(1, 4 << 20);
        into.begin(TransactionMeta {
            committed_at_us: 0,
            position: "x".into(),
        });
        match reader.next(&mut into).await {
            Ok(ChunkEvent::Full) => drop(into.take().unwrap()),
            Ok(ChunkEvent::Done) => panic!("the chunk was read to its end"),
            Err(error) => break error,
        }
    };
    assert_eq!(
        (error.class(), error.kind()),
        (Class::Retryable, Kind::Timeout),
        "{error}"
    );
    // The reader goes on with another connection.
    let chunk = reader.plan(&schema, None, 2).await.unwrap().unwrap();
    reader.start(&schema, &chunk, None).await.unwrap();
}

async fn a_time_limit_for_statements_is_kept_to(place: Place) {
    let db = place
        .private_database(&[], &["CREATE TABLE t (id int primary key)"])
        .await;
    let limit = match db.source.kind() {
        caudal_tests::databases::Kind::Mysql => "max_execution_time = 1",
        _ => "max_statement_time = 0.0001",
    };
    let source = db.open(db.options());
    let schema = tracked(&*source).await.remove(0).schema;
    let mut reader = source.open_reader(false).await.unwrap();
    let mut root = db.source.superuser().await.unwrap();
    run_each(&mut root, &[&format!("SET GLOBAL {limit}")]).await;
    // One that is connected keeps the limit of its time.
    assert!(reader.plan(&schema, None, 10).await.is_ok());
    let error = eventually("a statement takes longer", async || {
        let reader = source.open_reader(false).await;
        let planned = match reader {
            Ok(mut reader) => reader.plan(&schema, None, 10).await.map(|_| ()),
            Err(error) => Err(error),
        };
        Ok(planned.err())
    })
    .await
    .unwrap();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
}
