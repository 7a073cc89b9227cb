//! What PostgreSQL allows at its edges: encodings, names, numbers of columns, generated
//! columns, and columns that were dropped.

use crate::database::{Database, Place, on, run_each, run_script};
use crate::rows::{copy, drain, start};
use caudal_tests::Session;

on!(
    postgres: databases_of_other_encodings,
    names_and_numbers_of_columns_at_their_limits,
    generated_columns_come_where_the_log_has_them,
);

/// Makes the test's database anew with another encoding.
async fn encode(db: &Database, encoding: &str) {
    let address = db.source.address();
    let mut admin = Session::connect(address, "postgres", "postgres", "")
        .await
        .unwrap();
    let name = db.source.database();
    let create = format!(
        "CREATE DATABASE {name} OWNER app ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    );
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    let grant = format!("GRANT CREATE ON DATABASE {name} TO cdc");
    run_each(&mut admin, &[&drop, &create, &grant]).await;
    let mut superuser = db.source.superuser().await.unwrap();
    run_each(&mut superuser, &["GRANT ALL ON SCHEMA public TO app"]).await;
}

async fn databases_of_other_encodings(place: Place) {
    for (encoding, text) in [
        ("LATIN1", "häß ÿ"),
        ("EUC_JP", "日本語カナ"),
        ("SQL_ASCII", "plain häß"),
    ] {
        let db = place.database(&[]).await;
        encode(&db, encoding).await;
        let mut session = db.session().await;
        let table = if encoding == "LATIN1" { "täble" } else { "t" };
        run_script(
            &mut session,
            &format!("CREATE TABLE \"{table}\" (id int PRIMARY KEY, v text, a text[], n name); CREATE TABLE ok (id int PRIMARY KEY)"),
        )
        .await;
        let source = db.open(db.options());
        let (tables, mut tail) = start(&*source).await;
        run_script(
            &mut session,
            &format!("INSERT INTO \"{table}\" VALUES (1, '{text}', ARRAY['{text}'], '{text}'); INSERT INTO ok VALUES (1)"),
        )
        .await;
        let log = drain(&*source, &mut *tail, 1 << 20).await;
        let row = format!("id=1 v={text} a=[{text}] n={text}");
        assert_eq!(
            log.rows,
            [format!("{table}:c {row}"), "ok:c id=1".to_owned()],
            "{:?}",
            log.events
        );
        let schema = &tables
            .iter()
            .find(|t| t.schema.table == db.table(table))
            .unwrap()
            .schema;
        let (copied, _) = copy(&*source, schema, &log.reached, 1 << 20).await;
        assert_eq!(copied, [format!("{table}:r {row}")]);
        if encoding == "SQL_ASCII" {
            run_script(
                &mut session,
                "INSERT INTO t VALUES (2, convert_from('\\x61ff62', 'SQL_ASCII')); INSERT INTO ok VALUES (2)",
            )
            .await;
            let log = drain(&*source, &mut *tail, 1 << 20).await;
            assert_eq!(log.rows, ["ok:c id=2"], "{:?}", log.events);
            let told = log.notable().join("");
            assert!(
                told.contains("column v holds text that is not UTF-8"),
                "{told}"
            );
            let mut reader = source.open_reader(true).await.unwrap();
            let chunk = reader.plan(schema, None, 1000).await.unwrap().unwrap();
            let mut into = caudal_model::ChangeBuffer::for_snapshot(1, 1 << 20);
            into.begin(caudal_model::TransactionMeta {
                committed_at_us: 0,
                position: "x".into(),
            });
            reader.start(schema, &chunk, None).await.unwrap();
            let error = reader.next(&mut into).await.unwrap_err();
            assert_eq!(error.class(), caudal_model::Class::Data, "{error:?}");
        }
    }
}

async fn names_and_numbers_of_columns_at_their_limits(place: Place) {
    let long = "é".repeat(31) + "x";
    let odd = "od\"d na.me; -- 'x'";
    let quoted = odd.replace('"', "\"\"");
    let many: Vec<String> = (1..1600)
        .map(|n| format!("c{n} smallint DEFAULT {n}"))
        .collect();
    let db = place
        .database(&[
            &format!("CREATE TABLE \"{quoted}\" (\"{quoted}\" int PRIMARY KEY, \"{long}\" text, \"UPPER\" int, \"select\" int, dropped int)"),
            &format!("CREATE TABLE \"{long}\" (id int, \"{long}\" text, PRIMARY KEY (\"{long}\", id))"),
            &format!("CREATE TABLE many (id int PRIMARY KEY, {})", many.join(", ")),
            &format!("ALTER TABLE \"{quoted}\" DROP dropped"),
        ])
        .await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    run_each(
        &mut db.session().await,
        &[
            &format!("INSERT INTO \"{quoted}\" VALUES (1, 'a', 2, 3); "),
            &format!("UPDATE \"{quoted}\" SET \"{quoted}\" = 2"),
            &format!(
                "INSERT INTO \"{long}\" VALUES (1, 'a'), (2, 'a'), (3, 'a'), (4, 'b'), (5, 'b')"
            ),
            "INSERT INTO many (id) VALUES (1)",
        ],
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(log.notable().is_empty(), "{:?}", log.events);
    assert_eq!(log.rows.len(), 9);
    assert_eq!(
        log.rows[2],
        format!("{odd}:c {odd}=2 {long}=a UPPER=2 select=3")
    );
    for table in &tables {
        let (mut copied, _) = copy(&*source, &table.schema, &log.reached, 1 << 20).await;
        let name = &table.schema.table.name;
        let start = format!("{name}:");
        let live = log.rows.iter().filter(|r| r.starts_with(&start));
        let mut live: Vec<String> = live.map(|r| r.replacen(":c ", ":r ", 1)).collect();
        live.retain(|r| r.contains(":r ") && !r.starts_with(&format!("{start}r {odd}=1")));
        live.sort_unstable();
        copied.sort_unstable();
        assert_eq!(live, copied);
    }
    // Another column makes one too many for the server: one goes first.
    run_script(
        &mut db.session().await,
        "ALTER TABLE many RENAME c5 TO five; INSERT INTO many (id) VALUES (2)",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.schemas[0].columns[5].name, "five");
    assert_eq!(log.schemas[0].columns[5].id, 6);
}

async fn generated_columns_come_where_the_log_has_them(place: Place) {
    let db = place
        .database(&["CREATE TABLE g (id int PRIMARY KEY, s int GENERATED ALWAYS AS (id * 2) STORED, t text)"])
        .await;
    let mut session = db.session().await;
    let version: i32 = session
        .scalar("SHOW server_version_num")
        .await
        .unwrap()
        .parse()
        .unwrap();
    let carried = version >= 180_000;
    if carried {
        run_each(
            &mut session,
            &["ALTER TABLE g ADD v int GENERATED ALWAYS AS (id * 3) VIRTUAL"],
        )
        .await;
    }
    let source = db.open(db.options());
    let findings = source.check().await.unwrap();
    let left_out: Vec<String> = findings
        .into_iter()
        .filter(|f| f.check == "generated_column")
        .filter_map(|f| f.subject)
        .collect();
    let s = db.source.schema();
    assert_eq!(
        left_out,
        [format!("{s}.g.{}", if carried { "v" } else { "s" })]
    );
    // A key that the log does not carry cannot tell rows apart.
    run_script(
        &mut session,
        "CREATE TABLE h (id int, k int GENERATED ALWAYS AS (id + 1) STORED PRIMARY KEY)",
    )
    .await;
    let found = source.discover().await.unwrap();
    let told = found[1]
        .problems
        .iter()
        .any(|p| p.check == "key" && p.mend.is_some());
    assert_eq!(told, !carried, "{:?}", found[1].problems);
    run_script(&mut session, "DROP TABLE h").await;
    let (tables, mut tail) = start(&*source).await;
    run_script(
        &mut session,
        "INSERT INTO g (id, t) VALUES (1, 'a'); ALTER TABLE g ADD z int DEFAULT 5; INSERT INTO g (id, t) VALUES (2, 'b'); UPDATE g SET id = 3 WHERE id = 2",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let cell = |n: i32| {
        if carried {
            format!(" s={n}")
        } else {
            String::new()
        }
    };
    let expected = [
        format!("g:c id=1{} t=a", cell(2)),
        format!("g:c id=2{} t=b z=5", cell(4)),
        "g:d id=2".to_owned(),
        format!("g:c id=3{} t=b z=5", cell(6)),
    ];
    assert_eq!(log.rows, expected, "{:?}", log.events);
    let mut schema = tables[0].schema.clone();
    schema = log.schemas.last().cloned().unwrap_or(schema);
    let (copied, _) = copy(&*source, &schema, &log.reached, 1 << 20).await;
    assert_eq!(copied[1], expected[3].replacen(":c", ":r", 1));
    // Before 18 it becomes a column of the log only by becoming an ordinary one, and then its
    // older rows are known by a new copy.
    run_script(
        &mut session,
        "ALTER TABLE g ALTER s DROP EXPRESSION; INSERT INTO g VALUES (4, 9)",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    if carried {
        assert_eq!(log.rows, ["g:c id=4 s=9 z=5"], "{:?}", log.events);
    } else {
        assert!(
            log.notable()[0].starts_with(&format!("recopy {s}.g: ")),
            "{:?}",
            log.events
        );
    }
}
