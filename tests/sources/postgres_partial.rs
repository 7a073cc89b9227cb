//! Rows of which PostgreSQL's log tells a part only, by the table's replica identity; and
//! filters, which need to know them whole.

use crate::database::{Place, on, run_script};
use crate::rows::{copy, drain, start};
use caudal_model::Severity;
use caudal_sources::TableOptions;
use caudal_sources::filter::{FilterSyntax, parse};

on!(
    postgres: unchanged_values_are_named_by_every_identity,
    filters_apply_to_the_log_and_to_a_copy,
    a_filter_needs_whole_rows,
    truncate_and_changes_in_one_transaction,
);

async fn unchanged_values_are_named_by_every_identity(place: Place) {
    let columns = "(id int PRIMARY KEY, u int NOT NULL UNIQUE, t text, n int); ALTER TABLE";
    let long = "ALTER t SET STORAGE EXTERNAL";
    let tables: Vec<String> = ["d", "f", "i", "n"]
        .iter()
        .map(|t| format!("CREATE TABLE {t} {columns} {t} {long}; INSERT INTO {t} VALUES (1, 1, repeat('x', 3000), 0)"))
        .collect();
    let mut setup: Vec<&str> = tables.iter().map(String::as_str).collect();
    setup.push("ALTER TABLE f REPLICA IDENTITY FULL; ALTER TABLE i REPLICA IDENTITY USING INDEX i_u_key; ALTER TABLE n REPLICA IDENTITY NOTHING");
    let db = place.database(&setup).await;
    let mut options = db.options();
    let key = TableOptions {
        key: Some(vec!["u".into()]),
        ..TableOptions::default()
    };
    options.tables.insert(db.table("i"), key);
    let findings = db.open(options.clone()).check().await.unwrap();
    let errors: Vec<_> = findings
        .iter()
        .filter(|f| f.severity == Severity::Error)
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0]
            .mend
            .as_deref()
            .unwrap()
            .contains("REPLICA IDENTITY DEFAULT")
    );
    run_script(&mut db.session().await, "DROP TABLE n").await;
    let source = db.open(options);
    let (_, mut tail) = start(&*source).await;
    for table in ["d", "f", "i"] {
        run_script(
            &mut db.session().await,
            &format!("BEGIN; UPDATE {table} SET n = 1; UPDATE {table} SET n = 2; UPDATE {table} SET t = 'short'; UPDATE {table} SET t = repeat('y', 3000), n = 3; COMMIT;
                      UPDATE {table} SET id = 2, u = 2; UPDATE {table} SET n = NULL; DELETE FROM {table}"),
        )
        .await;
    }
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let (x, y) = (
        format!("t={}", "x".repeat(3000)),
        format!("t={}", "y".repeat(3000)),
    );
    let rows: Vec<String> = log
        .rows
        .iter()
        .map(|r| r.replace(&x, "t=X").replace(&y, "t=Y"))
        .collect();
    let expected = |table: &str, whole: bool| {
        let cells = |cells: &str| {
            if whole {
                format!("{cells} t=X")
            } else {
                cells.to_owned()
            }
        };
        let rest = |long: &str, n: &str| match whole {
            true => format!(" t={long}{n}"),
            false => format!("{n} unchanged=[t]"),
        };
        let _ = cells;
        let (gone, last) = match (whole, table) {
            (true, _) => ("id=1 u=1 t=Y n=3", "id=2 u=2 t=Y"),
            (false, "i") => ("u=1", "u=2"),
            _ => ("id=1", "id=2"),
        };
        [
            format!("{table}:u id=1 u=1{}", rest("X", " n=1")),
            format!("{table}:u id=1 u=1{}", rest("X", " n=2")),
            format!("{table}:u id=1 u=1 t=short n=2"),
            format!("{table}:u id=1 u=1 t=Y n=3"),
            format!("{table}:d {gone}"),
            format!("{table}:c id=2 u=2{}", rest("Y", " n=3")),
            format!("{table}:u id=2 u=2{}", rest("Y", "")),
            format!("{table}:d {last}"),
        ]
    };
    let all = [
        expected("d", false),
        expected("f", true),
        expected("i", false),
    ]
    .concat();
    assert_eq!(rows, all, "{:?}", log.events);
}

async fn filters_apply_to_the_log_and_to_a_copy(place: Place) {
    // The buffer applies the rules; here a source's own part is looked at.
    let db = place
        .database(&[
            "CREATE TABLE r (id int PRIMARY KEY, region text COLLATE \"C\", c char(4), amount numeric(10,2), m money, d date, ok boolean, ip inet)",
            "INSERT INTO r VALUES (1, 'eu', 'ab', 1.5, 3, '2024-01-01', true, '10.0.0.1'), (2, 'EU', 'ab', 1.5, 3, '2024-01-01', true, '10.0.0.1'),
             (3, 'eu', 'ac', 1.5, 3, '2024-01-01', true, '10.0.0.1'), (4, 'eu', 'ab', 2, 3, '2024-01-01', true, '10.0.0.1'), (5, 'eu', 'ab', 1.5, 4, '2024-01-01', true, '10.0.0.1'),
             (6, 'eu', 'ab', 1.5, 3, '2023-12-31', true, '10.0.0.1'), (7, 'eu', 'ab', 1.5, 3, '2024-01-01', false, '10.0.0.1'), (8, 'eu', 'ab', 1.5, 3, '2024-01-01', true, '10.0.0.2')",
            "INSERT INTO r (id) VALUES (9)",
            "ALTER TABLE r REPLICA IDENTITY FULL",
        ])
        .await;
    let text = "region = 'eu' AND c = 'ab ' AND amount < 1.75 AND m IN (3) AND d >= DATE '2024-01-01' AND ok AND ip = '10.0.0.1' OR region IS NULL";
    let mut options = db.options();
    let filter = TableOptions {
        filter: Some(parse(text, FilterSyntax::Standard).unwrap()),
        ..TableOptions::default()
    };
    options.tables.insert(db.table("r"), filter);
    let source = db.open(options);
    let (tables, tail) = start(&*source).await;
    drop(tail);
    let now = source.current_position().await.unwrap();
    let (rows, _) = copy(&*source, &tables[0].schema, &now, 1 << 20).await;
    let ids: Vec<&str> = rows.iter().map(|r| r.split(' ').nth(1).unwrap()).collect();
    assert_eq!(ids, ["id=1", "id=9"]);
}

async fn a_filter_needs_whole_rows(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE r (id int PRIMARY KEY, region text); CREATE TABLE k (id int PRIMARY KEY)",
        ])
        .await;
    let mut options = db.options();
    let with = |text| TableOptions {
        filter: Some(parse(text, FilterSyntax::Standard).unwrap()),
        ..TableOptions::default()
    };
    options.tables.insert(db.table("r"), with("region = 'eu'"));
    options.tables.insert(db.table("k"), with("id > 5"));
    let source = db.open(options);
    let errors = |found: Vec<caudal_model::Finding>| {
        let errors = found.into_iter().filter(|f| f.severity == Severity::Error);
        errors
            .map(|f| (f.subject.unwrap_or_default(), f.mend.unwrap_or_default()))
            .collect::<Vec<_>>()
    };
    let s = db.source.schema();
    let found = errors(source.check().await.unwrap());
    let mend = format!("ALTER TABLE \"{s}\".\"r\" REPLICA IDENTITY FULL;");
    assert_eq!(found, [(format!("{s}.r"), mend.clone())]);
    run_script(&mut db.session().await, &mend).await;
    assert!(errors(source.check().await.unwrap()).is_empty());
    let (_, mut tail) = start(&*source).await;
    run_script(
        &mut db.session().await,
        "INSERT INTO r VALUES (1, 'eu'); ALTER TABLE r REPLICA IDENTITY DEFAULT; INSERT INTO r VALUES (2, 'eu'); INSERT INTO k VALUES (6)",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["r:c id=1 region=eu", "k:c id=6"]);
    let told = log.notable().join("");
    assert!(
        told.starts_with(&format!("failed {s}.r: ")) && told.contains("REPLICA IDENTITY FULL"),
        "{told}"
    );
}

async fn truncate_and_changes_in_one_transaction(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); CREATE TABLE c (id int PRIMARY KEY)",
            "INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1); INSERT INTO c VALUES (1)",
        ])
        .await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    run_script(
        &mut db.session().await,
        "BEGIN; INSERT INTO c VALUES (2); ALTER TABLE c ADD x int DEFAULT 1; TRUNCATE c, a CASCADE; INSERT INTO a VALUES (2); INSERT INTO c VALUES (3, 3); ALTER TABLE c DROP x; TRUNCATE c; COMMIT",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let mut rows = log.rows.clone();
    rows[1..4].sort_unstable();
    assert_eq!(rows[..1], ["c:c id=2"]);
    // The table was rewritten together with its change, and its new column is known by a new
    // copy only; the others go on.
    let told = log.notable();
    assert!(
        rows.contains(&"a:t".to_owned()) && rows.contains(&"b:t".to_owned()),
        "{rows:?} {told:?}"
    );
    assert!(rows.contains(&"a:c id=2".to_owned()), "{rows:?} {told:?}");
    assert!(told.iter().any(|e| e.contains(".c")), "{told:?}");
}
