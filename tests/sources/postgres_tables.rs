//! Tables of PostgreSQL that change or cannot be read: what the tail and the check say.

use crate::database::{Place, on, run_script};
use crate::rows::{drain, start};
use caudal_model::Severity;
use caudal_sources::TableOptions;

on!(
    postgres: schema_changes_and_data_errors_stop_one_table,
    check_names_what_is_missing_and_how_to_mend_it,
);

async fn schema_changes_and_data_errors_stop_one_table(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE e (id int PRIMARY KEY, a int, secret text)",
            "CREATE TABLE bad (id int PRIMARY KEY, n numeric(5,1)); CREATE TABLE ok (id int PRIMARY KEY)",
        ])
        .await;
    let mut options = db.options();
    let secret = TableOptions {
        exclude_columns: vec!["secret".into()],
        ..TableOptions::default()
    };
    options.tables.insert(db.table("e"), secret);
    let source = db.open(options);
    let (_, mut tail) = start(&*source).await;
    run_script(
        &mut db.session().await,
        "INSERT INTO e VALUES (1, 1, 'no'); ALTER TABLE e ALTER a TYPE bigint; ALTER TABLE e ADD n text DEFAULT 'd'; INSERT INTO e VALUES (2, 5000000000, 'no', 'x');
         INSERT INTO bad VALUES (1, 'NaN'); INSERT INTO bad VALUES (2, 1); INSERT INTO ok VALUES (1);
         CREATE TYPE color AS ENUM ('red'); ALTER TABLE ok ADD c color; INSERT INTO ok VALUES (2, 'red');
         ALTER TABLE e DROP a; UPDATE e SET n = 'y' WHERE id = 2; INSERT INTO ok VALUES (3)",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(
        log.rows,
        [
            "e:c id=1 a=1",
            "e:c id=2 a=5000000000 n=x",
            "ok:c id=1",
            "ok:c id=2 c=red",
            "e:u id=2 n=y",
            "ok:c id=3"
        ],
        "{:?}",
        log.events
    );
    let notable = log.notable();
    assert_eq!(notable.len(), 4, "{notable:?}");
    assert!(
        notable[1].contains("column n holds NaN") && notable[1].contains("as = { n = \"string\" }"),
        "{notable:?}"
    );
}

async fn check_names_what_is_missing_and_how_to_mend_it(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE fine (id int PRIMARY KEY); CREATE TABLE nokey (a int); CREATE TABLE arr (id int PRIMARY KEY, a int[])",
            "CREATE UNLOGGED TABLE un (id int PRIMARY KEY); CREATE TABLE part (id int) PARTITION BY RANGE (id)",
            "CREATE TABLE clash (id int PRIMARY KEY, _op text); CREATE TABLE nulls (id int UNIQUE)",
            "CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE)",
        ])
        .await;
    let mut options = db.options();
    let key = TableOptions {
        key: Some(vec!["id".into()]),
        ..TableOptions::default()
    };
    options.tables.insert(db.table("nulls"), key);
    let findings = db.open(options).check().await.unwrap();
    let errors: Vec<_> = findings
        .iter()
        .filter(|f| f.severity == Severity::Error)
        .collect();
    let told: Vec<(&str, &str)> = errors
        .iter()
        .map(|f| (f.check, f.subject.as_deref().unwrap_or("")))
        .collect();
    for expected in [
        ("column_name", "public.clash._op"),
        ("replica_identity", "public.deferred"),
        ("replica_identity", "public.nokey"),
        ("key", "public.nulls.id"),
        ("replica_identity", "public.part"),
    ] {
        assert!(told.contains(&expected), "{expected:?} in {told:?}");
    }
    assert!(errors.iter().all(|f| f.mend.is_some()), "{errors:?}");
    assert!(!told.iter().any(|t| t.1 == "public.fine"), "{told:?}");
}
