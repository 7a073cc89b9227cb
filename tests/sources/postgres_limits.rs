//! Long values of PostgreSQL: 100 MB pass, what is past `limits.value_bytes` stops its table
//! alone and is not held in memory, whichever way it comes.

use crate::database::{Place, on, run_script};
use crate::rows::{drain, start};
use caudal_model::{ChangeBuffer, TransactionMeta};
use caudal_sources::{ChunkEvent, Source, TailEvent, TrackedTable};

on!(
    postgres: a_hundred_megabytes_pass,
    a_value_past_the_limit_stops_its_table_alone,
);

const HUNDRED: usize = 100 << 20;

/// The length of each cell of the second column and the third.
fn lengths(into: &mut ChangeBuffer, lengths: &mut Vec<(usize, usize)>) {
    use arrow::array::AsArray;
    for batch in into.take().unwrap() {
        let text = batch.rows.column(1).as_string::<i32>();
        let bytes = batch.rows.column(2).as_binary::<i32>();
        let cells = text.iter().zip(bytes.iter());
        lengths.extend(cells.map(|(t, b)| (t.map_or(0, str::len), b.map_or(0, <[u8]>::len))));
    }
}

async fn copied(source: &dyn Source, table: &TrackedTable) -> Result<Vec<(usize, usize)>, String> {
    let mut reader = source.open_reader(true).await.unwrap();
    let chunk = reader
        .plan(&table.schema, None, 1000)
        .await
        .unwrap()
        .unwrap();
    reader.start(&table.schema, &chunk, None).await.unwrap();
    let mut into = ChangeBuffer::for_snapshot(1, 1 << 20);
    into.begin(TransactionMeta {
        committed_at_us: 0,
        position: "x".into(),
    });
    let mut out = Vec::new();
    loop {
        let event = reader.next(&mut into).await.map_err(|e| e.to_string())?;
        lengths(&mut into, &mut out);
        if matches!(event, ChunkEvent::Done) {
            return Ok(out);
        }
    }
}

async fn a_hundred_megabytes_pass(place: Place) {
    let db = place
        .database(&["CREATE TABLE l (id int PRIMARY KEY, t text, b bytea)"])
        .await;
    let mut options = db.options();
    options.value_bytes = HUNDRED;
    let source = db.open(options);
    let (tables, mut tail) = start(&*source).await;
    // One transaction that is sent whole, and one that is streamed.
    let row = |id: u8| {
        format!(
            "INSERT INTO l VALUES ({id}, repeat('x', {HUNDRED}), decode(repeat('00', {HUNDRED}), 'hex'))"
        )
    };
    let (first, second) = (row(1), row(2));
    let script = format!(
        "{first}; BEGIN; INSERT INTO l SELECT i, repeat('y', 100) FROM generate_series(10, 2000) i; {second}; COMMIT"
    );
    run_script(&mut db.session().await, &script).await;
    let mut into = ChangeBuffer::new(1, 1 << 20);
    let mut out = Vec::new();
    let target = source.current_position().await.unwrap();
    loop {
        let event = crate::rows::next(&mut *tail, &mut into).await;
        lengths(&mut into, &mut out);
        match event {
            TailEvent::Commit { position, .. } | TailEvent::Heartbeat { position } => {
                if source.covers(&position, &target).unwrap() {
                    break;
                }
            }
            TailEvent::Full => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(out.len(), 1993);
    assert_eq!(
        (out[0], out[1992]),
        ((HUNDRED, HUNDRED), (HUNDRED, HUNDRED))
    );
    let copied = copied(&*source, &tables[0]).await;
    let long = |rows: Vec<(usize, usize)>| rows.iter().filter(|r| r.0 == HUNDRED).count();
    assert_eq!(copied.map(long), Ok(2));
}

async fn a_value_past_the_limit_stops_its_table_alone(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE t1 (id int PRIMARY KEY, t text, b bytea); CREATE TABLE t2 (id int PRIMARY KEY, t text, b bytea)",
            "CREATE TABLE t3 (id int PRIMARY KEY, t text, b bytea); CREATE TABLE t4 (id int PRIMARY KEY, t text, b bytea)",
            "CREATE TABLE ok (id int PRIMARY KEY, t text, b bytea)",
        ])
        .await;
    let mut options = db.options();
    options.value_bytes = 10_000;
    let source = db.open(options);
    let (tables, mut tail) = start(&*source).await;
    run_script(
        &mut db.session().await,
        "INSERT INTO ok VALUES (1, repeat('x', 10000), decode(repeat('00', 10000), 'hex'));
         INSERT INTO t1 VALUES (1, repeat('x', 10001)); INSERT INTO t1 VALUES (2); INSERT INTO t2 VALUES (1, NULL, decode(repeat('00', 10001), 'hex'));
         INSERT INTO t3 VALUES (1, repeat('x', 80000000)); INSERT INTO ok VALUES (2);
         BEGIN; INSERT INTO ok SELECT i, repeat('y', 100) FROM generate_series(10, 2000) i; INSERT INTO t4 VALUES (1, 'short', decode(repeat('00', 8000000), 'hex')); COMMIT;
         INSERT INTO ok VALUES (3)",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows.len(), 1994);
    assert_eq!(log.rows[1993], "ok:c id=3");
    assert!(log.rows.iter().all(|r| r.starts_with("ok:c ")));
    let s = db.source.schema();
    for (table, column, bytes) in [
        ("t1", "t", 10001),
        ("t2", "b", 10001),
        ("t3", "t", 80_000_000),
        ("t4", "b", 8_000_000),
    ] {
        let told = format!(
            "failed {s}.{table}: table {s}.{table}: column {column} holds a value of {bytes} bytes; the limit is 10000 (at "
        );
        let found = log.events.iter().find(|e| e.starts_with(&told));
        let found = found.unwrap_or_else(|| panic!("{told}: {:?}", log.events));
        assert!(found.contains("limits.value_bytes"), "{found}");
        let tracked = tables
            .iter()
            .find(|t| t.schema.table == db.table(table))
            .unwrap();
        let error = copied(&*source, tracked).await.unwrap_err();
        assert!(
            error.contains(&format!(
                "column {column} holds a value of {bytes} bytes; the limit is 10000"
            )),
            "{error}"
        );
    }
    let ok = tables
        .iter()
        .find(|t| t.schema.table == db.table("ok"))
        .unwrap();
    assert_eq!(copied(&*source, ok).await.unwrap()[0], (10000, 10000));
}
