//! Tables of MySQL and MariaDB that are not InnoDB's: those whose rows come through the log are
//! carried, and the others are refused with a reason.

use crate::database::{Database, Place, on, run_each};
use crate::rows::{copy, drain, start, tracked};
use caudal_model::Finding;
use caudal_tests::databases::Kind;

on!(
    mysql and mariadb: engines_without_transactions_are_carried_by_key,
    tables_whose_rows_are_elsewhere_are_refused,
    what_is_no_table_is_left_out,
    a_memory_table_that_a_restart_emptied_is_empty,
    names_are_compared_without_case_where_the_server_does,
);

async fn engines_without_transactions_are_carried_by_key(place: Place) {
    let db = place.database(&[]).await;
    let mut session = db.session().await;
    let more: &[&str] = match db.source.kind() {
        Kind::Mariadb => &["aria"],
        _ => &[],
    };
    for engine in ["myisam", "memory"].iter().chain(more) {
        let create = format!("CREATE TABLE t (id int primary key, v varchar(9)) ENGINE = {engine}");
        let fill = "INSERT INTO t VALUES (1, 'a'), (5, 'b'), (3, 'c'), (4, 'd')";
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create, fill]).await;
        let source = db.open(db.options());
        let (tables, mut tail) = start(&*source).await;
        let base = source.current_position().await.unwrap();
        // No view keeps what happens during the copy out of it: the log has it all again.
        run_each(
            &mut session,
            &[
                "UPDATE t SET v = 'e' WHERE id = 5",
                "DELETE FROM t WHERE id = 1",
            ],
        )
        .await;
        let (mut rows, _) = copy(&*source, &tables[0].schema, &base, 1 << 20).await;
        rows.sort();
        assert_eq!(
            rows,
            ["t:r id=3 v=c", "t:r id=4 v=d", "t:r id=5 v=e"],
            "{engine}"
        );
        let log = drain(&*source, &mut *tail, 1 << 20).await;
        assert_eq!(log.rows, ["t:u id=5 v=e", "t:d id=1 v=a"], "{engine}");
    }
}

async fn problems(db: &Database) -> String {
    let source = db.open(db.options());
    let found = source.discover().await.unwrap();
    let problems = found.iter().flat_map(|t| &t.problems);
    problems
        .map(|p| format!("{} {}\n", p.check, p.reason))
        .collect()
}

async fn tables_whose_rows_are_elsewhere_are_refused(place: Place) {
    let base = "CREATE TABLE base (id int primary key) ENGINE = MyISAM";
    let db = place.database(&[base]).await;
    let mut session = db.session().await;
    // MariaDB's servers come without the other ones.
    let elsewhere: &[&str] = match db.source.kind() {
        Kind::Mariadb => &["MRG_MyISAM UNION = (base)"],
        _ => &["MRG_MyISAM UNION = (base)", "BLACKHOLE"],
    };
    for engine in elsewhere {
        let create = format!("CREATE TABLE t (id int primary key) ENGINE = {engine}");
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let problems = problems(&db).await;
        assert!(problems.starts_with("engine"), "{engine}: {problems}");
    }
    // Read row by row, neither has a place in the log.
    let unkeyed: &[&str] = match db.source.kind() {
        Kind::Mariadb => &["CSV"],
        _ => &["CSV", "ARCHIVE"],
    };
    for engine in unkeyed {
        let create = format!("CREATE TABLE t (id int not null) ENGINE = {engine}");
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let problems = problems(&db).await;
        assert!(
            problems.starts_with("key a table without a key cannot"),
            "{engine}: {problems}"
        );
    }
    if db.source.kind() == Kind::Mariadb {
        let versioned = "CREATE TABLE v (id int primary key) WITH SYSTEM VERSIONING";
        run_each(&mut session, &["DROP TABLE t", versioned]).await;
        assert!(problems(&db).await.starts_with("system_versioned"));
    }
}

async fn what_is_no_table_is_left_out(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE t (id int primary key)",
            "CREATE VIEW v AS SELECT * FROM t",
        ])
        .await;
    let mut session = db.session().await;
    run_each(
        &mut session,
        &[
            "CREATE TEMPORARY TABLE own (id int primary key)",
            "INSERT INTO own VALUES (1)",
        ],
    )
    .await;
    if db.source.kind() == Kind::Mariadb {
        run_each(&mut session, &["CREATE SEQUENCE s", "DO NEXTVAL(s)"]).await;
    }
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    assert_eq!(tables.len(), 1);
    let mut changes = vec!["INSERT INTO own VALUES (2)", "INSERT INTO t VALUES (1)"];
    if db.source.kind() == Kind::Mariadb {
        changes.insert(0, "DO NEXTVAL(s)");
    }
    run_each(&mut session, &changes).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["t:c id=1"]);
    assert!(log.notable().is_empty(), "{:?}", log.events);
}

/// The server logs that it found the table empty, when somebody looks at it.
async fn a_memory_table_that_a_restart_emptied_is_empty(place: Place) {
    let create = "CREATE TABLE t (id int primary key) ENGINE = MEMORY";
    let db = place
        .private_database(&[], &[create, "INSERT INTO t VALUES (1), (2)"])
        .await;
    let source = db.open(db.options());
    let tables = tracked(&*source).await;
    let from = source.prepare(&[]).await.unwrap();
    db.source.server().restart().unwrap();
    let mut session = db.session().await;
    run_each(
        &mut session,
        &["SELECT * FROM t", "INSERT INTO t VALUES (1)"],
    )
    .await;
    let mut tail = source.open_tail(&from, tables).await.unwrap();
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["t:t", "t:c id=1"], "{:?}", log.events);
}

async fn names_are_compared_without_case_where_the_server_does(place: Place) {
    let create = "CREATE TABLE MiXed (Id int primary key, V int)";
    let db = place
        .private_database(
            &["--lower-case-table-names=1"],
            &[create, "INSERT INTO mixed VALUES (1, 1)"],
        )
        .await;
    let source = db.open(db.options());
    let findings = source.check().await.unwrap();
    let told = |f: &&Finding| f.check == "lower_case_table_names";
    assert!(
        findings
            .iter()
            .any(|f| told(&f) && f.reason.contains("lower case"))
    );
    let tables = tracked(&*source).await;
    let from = source.prepare(&[]).await.unwrap();
    let mut tail = source.open_tail(&from, tables.clone()).await.unwrap();
    let (rows, _) = copy(&*source, &tables[0].schema, &from, 1 << 20).await;
    assert_eq!(rows, ["mixed:r Id=1 V=1"]);
    let changes = [
        "INSERT INTO MIXED VALUES (2, 2)",
        "ALTER TABLE Mixed ADD COLUMN w int",
        "UPDATE mixed SET W = 3 WHERE iD = 2",
        "TRUNCATE TABLE MixeD",
    ];
    run_each(&mut db.session().await, &changes).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(
        log.rows,
        ["mixed:c Id=2 V=2", "mixed:u Id=2 V=2 w=3", "mixed:t"],
        "{:?}",
        log.events
    );
}
