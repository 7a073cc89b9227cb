//! Tables of PostgreSQL that change while they are followed: what the tail makes of columns
//! that come, go and change, although the catalogue is ahead of the log.

use crate::database::{Database, Place, on, run_each, run_script};
use crate::rows::{Log, copy_rest, drain, start, track, tracked};
use caudal_model::{Class, Kind, TableSchema};
use caudal_sources::{Source, TableOptions, Tail};
use std::sync::Arc;

on!(
    postgres: columns_are_followed_through_one_transaction,
    older_rows_hold_the_constant_or_the_table_is_copied_again,
    types_widen_or_the_table_is_copied_again,
    keys_change,
    a_restart_between_a_change_and_the_next_row,
    a_streamed_transaction_meets_changes_of_others,
    a_copy_refuses_another_table,
    tables_are_renamed_dropped_and_created,
);

async fn follow(db: &Database, script: &str) -> (Box<dyn Source>, Log) {
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    run_script(&mut db.session().await, script).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    (source, log)
}

/// `name:id:default` of each column.
fn columns(schema: &TableSchema) -> String {
    let columns = schema.columns.iter().map(|c| match &c.default {
        Some(default) => format!("{}:{}={default}", c.name, c.id),
        None => format!("{}:{}", c.name, c.id),
    });
    columns.collect::<Vec<_>>().join(" ")
}

async fn columns_are_followed_through_one_transaction(place: Place) {
    let db = place
        .database(&["CREATE TABLE e (id int PRIMARY KEY, a int, b text)"])
        .await;
    let (_, log) = follow(
        &db,
        "BEGIN; INSERT INTO e VALUES (1, 1, 'x'); ALTER TABLE e RENAME a TO aa; INSERT INTO e VALUES (2, 2, 'y');
         ALTER TABLE e ADD c int DEFAULT 7; INSERT INTO e VALUES (3, 3, 'z', 8);
         ALTER TABLE e DROP b; INSERT INTO e VALUES (4, 4, 9); ALTER TABLE e ADD b bigint;
         INSERT INTO e VALUES (5, 5, 10, 11); ALTER TABLE e RENAME b TO a; ALTER TABLE e RENAME aa TO b;
         UPDATE e SET a = 12, b = 13 WHERE id = 5; COMMIT; INSERT INTO e VALUES (6, 6, 6, 6)",
    )
    .await;
    assert_eq!(
        log.rows,
        [
            "e:c id=1 a=1 b=x",
            "e:c id=2 aa=2 b=y",
            "e:c id=3 aa=3 b=z c=8",
            "e:c id=4 aa=4 c=9",
            "e:c id=5 aa=5 c=10 b=11",
            "e:u id=5 b=13 c=10 a=12",
            "e:c id=6 b=6 c=6 a=6",
        ]
    );
    let versions: Vec<String> = log.schemas.iter().map(|s| columns(s)).collect();
    assert_eq!(
        versions,
        [
            "id:1 aa:2 b:3",
            "id:1 aa:2 b:3 c:4=7",
            "id:1 aa:2 c:4=7",
            "id:1 aa:2 c:4=7 b:5",
            "id:1 b:2 c:4=7 a:5",
        ]
    );
    assert_eq!(log.notable().len(), 5, "{:?}", log.notable());
}

async fn older_rows_hold_the_constant_or_the_table_is_copied_again(place: Place) {
    let db = place
        .database(&[
            "CREATE DOMAIN filled AS int DEFAULT 4 NOT NULL; CREATE SEQUENCE q",
            "CREATE TABLE k (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY)",
            "CREATE TABLE volatile (id int PRIMARY KEY); CREATE TABLE identity (id int PRIMARY KEY)",
            "CREATE TABLE serial (id int PRIMARY KEY); CREATE TABLE domain (id int PRIMARY KEY)",
            "CREATE TABLE dropped (id int PRIMARY KEY); CREATE TABLE same (id int PRIMARY KEY, a text)",
            "CREATE TABLE rewritten (id int PRIMARY KEY); CREATE TABLE hidden (id int PRIMARY KEY, a text, secret text)",
            "INSERT INTO k VALUES (1); INSERT INTO late VALUES (1); INSERT INTO volatile VALUES (1)",
        ])
        .await;
    let mut options = db.options();
    let secret = TableOptions {
        exclude_columns: vec!["secret".into()],
        ..TableOptions::default()
    };
    options.tables.insert(db.table("hidden"), secret);
    let source = db.open(options);
    let (_, mut tail) = start(&*source).await;
    run_script(
        &mut db.session().await,
        "ALTER TABLE k ADD i smallint DEFAULT -3, ADD f real DEFAULT 1.5, ADD b boolean DEFAULT true, ADD n numeric(5,2) DEFAULT 1.5,
           ADD t text DEFAULT 'a''b', ADD d date DEFAULT '2024-02-29', ADD z timestamptz DEFAULT '2024-06-01 12:00:00+02',
           ADD j jsonb DEFAULT '{\"b\": 1,\"a\":2}', ADD u uuid DEFAULT 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', ADD plain text;
         ALTER TABLE k ALTER i DROP DEFAULT, ALTER t SET DEFAULT 'later'; INSERT INTO k (id, i) VALUES (2, 1);
         ALTER TABLE late ADD a int; ALTER TABLE late ALTER a SET DEFAULT 5; INSERT INTO late VALUES (2);
         ALTER TABLE volatile ADD a float8 DEFAULT random(); ALTER TABLE volatile ALTER a DROP DEFAULT; INSERT INTO volatile VALUES (2, 0.5);
         ALTER TABLE identity ADD a int GENERATED ALWAYS AS IDENTITY; INSERT INTO identity VALUES (2);
         ALTER TABLE serial ADD a int DEFAULT nextval('q'); INSERT INTO serial VALUES (2);
         ALTER TABLE domain ADD a filled; INSERT INTO domain VALUES (2);
         ALTER TABLE dropped ADD a text DEFAULT 'x'; INSERT INTO dropped VALUES (2); ALTER TABLE dropped DROP a; INSERT INTO dropped VALUES (3);
         ALTER TABLE same DROP a; ALTER TABLE same ADD a text; INSERT INTO same VALUES (2, 'new');
         ALTER TABLE rewritten ADD a int DEFAULT 3; CLUSTER rewritten USING rewritten_pkey; INSERT INTO rewritten VALUES (2);
         ALTER TABLE hidden RENAME secret TO shown; INSERT INTO hidden VALUES (1, 'a', 'b')",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let version = |name: &str| {
        let found = log.schemas.iter().find(|s| s.table == db.table(name));
        columns(found.unwrap_or_else(|| panic!("{name}: {:?}", log.events)))
    };
    assert_eq!(
        version("k"),
        "id:1 i:2=-3 f:3=1.5 b:4=true n:5=\"1.50\" t:6=\"a'b\" d:7=\"2024-02-29\" \
         z:8=\"2024-06-01 10:00:00+00\" j:9=\"{\\\"a\\\": 2, \\\"b\\\": 1}\" \
         u:10=\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\" plain:11"
    );
    assert_eq!(version("late"), "id:1 a:2");
    let copied = |name: &str| {
        let told = format!("recopy {}: ", db.table(name));
        log.events.iter().any(|e| e.starts_with(&told))
    };
    for name in [
        "volatile",
        "identity",
        "serial",
        "domain",
        "dropped",
        "same",
        "rewritten",
        "hidden",
    ] {
        assert!(copied(name), "{name}: {:?}", log.events);
        assert!(
            !log.rows.iter().any(|r| r.starts_with(&format!("{name}:"))),
            "{:?}",
            log.rows
        );
    }
    // A table that is followed again has its new column, and goes on.
    let found = source.discover().await.unwrap();
    let name = db.table("volatile");
    let found = found.into_iter().find(|t| t.table == name).unwrap();
    tail.track(track(found));
    run_each(
        &mut db.session().await,
        &["INSERT INTO volatile VALUES (3, 1.5)"],
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["volatile:c id=3 a=1.5"], "{:?}", log.events);
}

async fn types_widen_or_the_table_is_copied_again(place: Place) {
    let db = place
        .database(&[
            "CREATE TYPE mood AS ENUM ('sad', 'happy')",
            "CREATE TABLE w (id smallint PRIMARY KEY, i int, v varchar(3), n numeric(5,2), m mood, t timestamp(3), a varchar(2)[])",
            "CREATE TABLE x (id int PRIMARY KEY, a numeric(5,2))",
            "CREATE TABLE y (id int PRIMARY KEY, a char(3))",
            "CREATE TABLE z (id int PRIMARY KEY, a int)",
        ])
        .await;
    let (_, log) = follow(
        &db,
        "INSERT INTO w VALUES (1, 1, 'abc', 1.25, 'sad', '2024-01-01 00:00:00.123', '{ab}');
         ALTER TABLE w ALTER id TYPE int, ALTER i TYPE bigint, ALTER v TYPE varchar(5), ALTER n TYPE numeric(8,2), ALTER t TYPE timestamp, ALTER a TYPE text[];
         ALTER TYPE mood ADD VALUE 'content' BEFORE 'happy';
         INSERT INTO w VALUES (70000, 5000000000, 'abcde', 100000.25, 'content', '2024-01-01 00:00:00.123456', '{abc}');
         ALTER TABLE w ALTER v TYPE text; INSERT INTO w (id, v) VALUES (3, 'abcdefghi');
         INSERT INTO x VALUES (1, 1); ALTER TABLE x ALTER a TYPE numeric(6,3); INSERT INTO x VALUES (2, 2);
         INSERT INTO y VALUES (1, 'a'); ALTER TABLE y ALTER a TYPE char(5); INSERT INTO y VALUES (2, 'b');
         INSERT INTO z VALUES (1, 1); ALTER TABLE z ALTER a TYPE text; INSERT INTO z VALUES (2, 'b')",
    )
    .await;
    assert_eq!(
        log.rows,
        [
            "w:c id=1 i=1 v=abc n=1.25 m=sad t=1704067200123000 a=[ab]",
            "w:c id=70000 i=5000000000 v=abcde n=100000.25 m=content t=1704067200123456 a=[abc]",
            "w:c id=3 v=abcdefghi",
            "x:c id=1 a=1.00",
            "y:c id=1 a=a  ",
            "z:c id=1 a=1",
        ]
    );
    let (s, notable) = (db.source.schema(), log.notable());
    assert_eq!(
        notable[..2],
        [format!("schema {s}.w v2"), format!("schema {s}.w v3")]
    );
    for (table, column, old, new) in [
        ("x", "a", "numeric(5,2)", "numeric(6,3)"),
        ("y", "a", "character(3)", "character(5)"),
        ("z", "a", "integer", "text"),
    ] {
        let told = format!("recopy {s}.{table}: column {column} changed from {old} to {new}");
        assert!(notable.contains(&told.as_str()), "{notable:?}");
    }
}

async fn keys_change(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL); CREATE TABLE b (id int PRIMARY KEY, b int NOT NULL)",
            "CREATE TABLE c (id int PRIMARY KEY, b int NOT NULL); ALTER TABLE c REPLICA IDENTITY FULL",
            "CREATE TABLE d (id int, b int NOT NULL); ALTER TABLE d REPLICA IDENTITY FULL",
            "CREATE TABLE e (x int, id int, PRIMARY KEY (id, x))",
            "CREATE TABLE f (id int PRIMARY KEY, u int NOT NULL UNIQUE); ALTER TABLE f REPLICA IDENTITY USING INDEX f_u_key",
        ])
        .await;
    let mut options = db.options();
    let key = TableOptions {
        key: Some(vec!["u".into()]),
        ..TableOptions::default()
    };
    options.tables.insert(db.table("f"), key);
    let source = db.open(options);
    let (_, mut tail) = start(&*source).await;
    run_script(
        &mut db.session().await,
        "ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (id, b); INSERT INTO a VALUES (1, 1);
         ALTER TABLE b DROP CONSTRAINT b_pkey; INSERT INTO b VALUES (1, 1);
         ALTER TABLE c DROP CONSTRAINT c_pkey; INSERT INTO c VALUES (1, 1);
         ALTER TABLE d ADD PRIMARY KEY (id); INSERT INTO d VALUES (1, 1);
         INSERT INTO e VALUES (1, 2); ALTER TABLE e RENAME x TO y; ALTER TABLE e REPLICA IDENTITY FULL; UPDATE e SET y = 5; DELETE FROM e;
         INSERT INTO f VALUES (1, 1); UPDATE f SET id = 2; UPDATE f SET u = 2; ALTER TABLE f RENAME u TO v; DELETE FROM f",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(
        log.rows,
        [
            "e:c x=1 id=2",
            "e:d y=1 id=2",
            "e:c y=5 id=2",
            "e:d y=5 id=2",
            "f:c id=1 u=1",
            "f:u id=2 u=1",
            "f:d u=1",
            "f:c id=2 u=2",
        ],
        "{:?}",
        log.events
    );
    let told = |start: &str| log.events.iter().any(|e| e.starts_with(start));
    let s = db.source.schema();
    assert!(
        told(&format!(
            "recopy {s}.a: its key changed from (id) to (id, b)"
        )),
        "{:?}",
        log.events
    );
    assert!(told(&format!(
        "failed {s}.b: table {s}.b: its primary key was dropped"
    )));
    assert!(
        log.events
            .iter()
            .any(|e| e.contains("REPLICA IDENTITY FULL"))
    );
    assert!(told(&format!(
        "recopy {s}.c: its key changed from (id) to ()"
    )));
    assert!(told(&format!(
        "recopy {s}.d: its key changed from () to (id)"
    )));
    // The key that the override names is no column any more.
    assert!(
        told(&format!("recopy {s}.f: its key changed from (u) to (u)")),
        "{:?}",
        log.events
    );
}

async fn a_restart_between_a_change_and_the_next_row(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE e (id int PRIMARY KEY, a int); CREATE TABLE n (id int PRIMARY KEY)",
        ])
        .await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let mut session = db.session().await;
    run_script(&mut session, "INSERT INTO e VALUES (1, 1)").await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    tail.acknowledge(&log.reached);
    db.expect_acknowledged(&log.reached).await;
    run_script(
        &mut session,
        "INSERT INTO e VALUES (2, 2); ALTER TABLE e RENAME a TO b; ALTER TABLE e ADD a text DEFAULT 'old'",
    )
    .await;
    drop(tail);
    // A process that knows no more than the lake does.
    let source = db.open(db.options());
    let mut tail = source
        .open_tail(&log.reached, tables.clone())
        .await
        .unwrap();
    run_script(&mut session, "INSERT INTO e VALUES (3, 3, 'c')").await;
    let second = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(
        second.rows,
        ["e:c id=2 a=2", "e:c id=3 b=3 a=c"],
        "{:?}",
        second.events
    );
    assert_eq!(columns(&second.schemas[0]), "id:1 b:2 a:3=\"old\"");
    // Renamed while nobody looked: its rows are no rows of the name that it had, and the
    // table that took the name is another one.
    drop(tail);
    run_script(
        &mut session,
        "INSERT INTO e VALUES (4, 4, 'd'); ALTER TABLE n RENAME TO o; ALTER TABLE e RENAME TO n;
         INSERT INTO n VALUES (5, 5, 'e'); INSERT INTO o VALUES (6)",
    )
    .await;
    let source = db.open(db.options());
    let mut tail = source.open_tail(&log.reached, tables).await.unwrap();
    let third = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(
        third.rows,
        ["e:c id=2 a=2", "e:c id=3 b=3 a=c", "e:c id=4 b=4 a=d"],
        "{:?}",
        third.events
    );
    let s = db.source.schema();
    for name in ["e", "n"] {
        assert!(
            third.events.contains(&format!("ended {s}.{name}")),
            "{:?}",
            third.events
        );
    }
    assert!(third.events.contains(&"catalog".to_owned()));
}

async fn a_streamed_transaction_meets_changes_of_others(place: Place) {
    let db = place
        .database(&["CREATE TABLE s (id int PRIMARY KEY, t text); CREATE TABLE e (id int PRIMARY KEY, a int)"])
        .await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let (mut large, mut other) = (db.session().await, db.session().await);
    run_script(
        &mut large,
        "BEGIN; INSERT INTO s SELECT i, repeat('x', 100) FROM generate_series(1, 3000) i; ALTER TABLE s ADD n int DEFAULT 1;
         INSERT INTO s SELECT i, repeat('x', 100), 2 FROM generate_series(3001, 6000) i;
         SAVEPOINT p; ALTER TABLE s ADD gone int; INSERT INTO s VALUES (0, 'g', 1, 1); ROLLBACK TO p",
    )
    .await;
    run_script(
        &mut other,
        "INSERT INTO e VALUES (1, 1); ALTER TABLE e ADD b int",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["e:c id=1 a=1"]);
    run_script(
        &mut large,
        "INSERT INTO e VALUES (2, 2, 2); ALTER TABLE s RENAME t TO u; INSERT INTO s VALUES (6001, 'last', 3); COMMIT",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows.len(), 6002, "{:?}", log.notable());
    assert_eq!(log.rows[6000], "e:c id=2 a=2 b=2");
    assert_eq!(log.rows[6001], "s:c id=6001 u=last n=3");
    let versions: Vec<String> = log.schemas.iter().map(|s| columns(s)).collect();
    assert_eq!(
        versions,
        ["id:1 t:2 n:3=1", "id:1 a:2 b:3", "id:1 u:2 n:3=1"]
    );
}

async fn a_copy_refuses_another_table(place: Place) {
    let db = place
        .database(&["CREATE TABLE e (id int PRIMARY KEY, a int); INSERT INTO e VALUES (1, 1)"])
        .await;
    let source = db.open(db.options());
    let schema = tracked(&*source).await.remove(0).schema;
    let mut reader = source.open_reader(true).await.unwrap();
    let (rows, _) = copy_rest(&mut *reader, &schema, 1 << 20, 3).await;
    assert_eq!(rows, ["e:r id=1 a=1"]);
    let chunk = reader.plan(&schema, None, 1000).await.unwrap().unwrap();
    for change in [
        "ALTER TABLE e RENAME a TO b",
        "ALTER TABLE e RENAME b TO a; ALTER TABLE e DROP a; ALTER TABLE e ADD a int",
        "DROP TABLE e; CREATE TABLE e (id int PRIMARY KEY, a int)",
        "DROP TABLE e",
    ] {
        run_script(&mut db.session().await, change).await;
        let error = reader.start(&schema, &chunk, None).await.unwrap_err();
        let told = (error.class(), error.kind());
        assert_eq!(told, (Class::Data, Kind::Drift), "{change}: {error:?}");
    }
    // A version without numbers is still this table.
    run_script(
        &mut db.session().await,
        "CREATE TABLE e (id int PRIMARY KEY, a int)",
    )
    .await;
    let mut old = (*schema).clone();
    old.source_id = None;
    old.columns.iter_mut().for_each(|c| c.source_id = None);
    reader.start(&Arc::new(old), &chunk, None).await.unwrap();
}

async fn tables_are_renamed_dropped_and_created(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)",
            "CREATE TABLE c (id int PRIMARY KEY); CREATE TABLE d (id int PRIMARY KEY); CREATE SCHEMA other",
        ])
        .await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let mut session = db.session().await;
    let s = db.source.schema();
    let mut mark = source.catalog_mark().await.unwrap();
    assert_eq!(mark, source.catalog_mark().await.unwrap());
    let mut changed = async |source: &dyn Source| {
        let now = source.catalog_mark().await.unwrap();
        std::mem::replace(&mut mark, now.clone()) != now
    };
    // Two tables exchange their names.
    run_script(
        &mut session,
        "INSERT INTO a VALUES (1); ALTER TABLE a RENAME TO t; ALTER TABLE b RENAME TO a; ALTER TABLE t RENAME TO b;
         INSERT INTO a VALUES (2); INSERT INTO b VALUES (3)",
    )
    .await;
    assert!(changed(&*source).await);
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["a:c id=1"]);
    let mut told = log.notable();
    told.sort_unstable();
    told.dedup();
    assert_eq!(
        told,
        ["catalog", &format!("ended {s}.a"), &format!("ended {s}.b")]
    );
    // A table is dropped and created again: the log has nothing of the new one, whose rows
    // are not published, but its name has gone to another table.
    run_script(
        &mut session,
        "INSERT INTO c VALUES (1); DROP TABLE c; CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (2)",
    )
    .await;
    assert!(changed(&*source).await);
    let mut told = Vec::new();
    for id in 1..3 {
        run_each(&mut session, &[&format!("INSERT INTO d VALUES ({id})")]).await;
        let log = drain(&*source, &mut *tail, 1 << 20).await;
        told.extend(log.rows);
        told.extend(log.events.into_iter().filter(|e| e != "commit"));
    }
    told.sort_unstable();
    let ended = format!("ended {s}.c");
    assert_eq!(
        told,
        ["c:c id=1", "catalog", "d:c id=1", "d:c id=2", &ended]
    );
    expect_new_table(&db, &*source, &mut *tail, &mut session).await;
    for change in [
        "ALTER TABLE d SET SCHEMA other",
        "ALTER TABLE other.d SET SCHEMA public",
        "CREATE TABLE fresh (id int PRIMARY KEY)",
        "ALTER TABLE fresh REPLICA IDENTITY FULL",
        "ALTER TABLE fresh DROP CONSTRAINT fresh_pkey",
        "DROP TABLE fresh",
    ] {
        run_each(&mut session, &[change]).await;
        assert!(changed(&*source).await, "{change}");
        assert!(!changed(&*source).await, "{change}");
    }
}

/// The table that took the name joins the stream.
async fn expect_new_table(
    db: &Database,
    source: &dyn Source,
    tail: &mut dyn Tail,
    session: &mut caudal_tests::Session,
) {
    let name = db.table("c");
    source
        .add_tables(std::slice::from_ref(&name))
        .await
        .unwrap();
    let tables = tracked(source).await;
    let new = tables.into_iter().find(|t| t.schema.table == name).unwrap();
    tail.track(new);
    run_script(session, "INSERT INTO c VALUES (3)").await;
    let log = drain(source, tail, 1 << 20).await;
    assert_eq!(
        (log.rows, log.events.len()),
        (vec!["c:c id=3".to_owned()], 1)
    );
}
