//! Tables of MySQL and MariaDB: definitions that change, and columns
//! that cannot be carried.

use crate::database::{Place, on, run_each};
use crate::rows::{drain, start, tracked};
use caudal_model::Severity;
use caudal_sources::TableOptions;

on!(
    mysql and mariadb: schema_changes_show_in_the_next_table_map,
    columns_that_are_left_out,
    rows_that_foreign_keys_change,
);

async fn schema_changes_show_in_the_next_table_map(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE t (id int primary key, a int)",
            "CREATE TABLE d (id int primary key)",
        ])
        .await;
    let source = db.open(db.options());
    let tables = tracked(&*source).await;
    let base = source.prepare(&[]).await.unwrap();
    // The tail sees all of it late: it knows only what the log says.
    let statements = [
        "INSERT INTO t VALUES (1, 1)",
        "ALTER TABLE t ADD COLUMN b varchar(10), MODIFY a bigint",
        "INSERT INTO t VALUES (2, 9223372036854775807, 'new')",
        "INSERT INTO d VALUES (1)",
        "DROP TABLE d",
    ];
    run_each(&mut db.session().await, &statements).await;
    let mut tail = source.open_tail(&base, tables).await.unwrap();
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let last = "t:c id=2 a=9223372036854775807 b=new".to_owned();
    assert!(log.rows.contains(&last), "{:?}", log.rows);
    let notable = log.notable();
    assert_eq!(notable[0], format!("schema {} v2", db.table("t")));
    assert_eq!(notable[1], format!("ended {}", db.table("d")));
}

/// MySQL logs what its foreign keys do; MariaDB does not, and `check` says so.
async fn rows_that_foreign_keys_change(place: Place) {
    let creates = [
        "CREATE TABLE parent (id int primary key)",
        "CREATE TABLE child (id int primary key, p int, constraint fk foreign key (p) \
         references parent (id) on delete cascade on update cascade)",
    ];
    let db = place.database(&creates).await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let statements = [
        "INSERT INTO parent VALUES (1), (2)",
        "INSERT INTO child VALUES (10, 1), (20, 2)",
        "DELETE FROM parent WHERE id = 1",
        "UPDATE parent SET id = 3",
    ];
    run_each(&mut db.session().await, &statements).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let logged = ["child:d id=10 p=1", "child:u id=20 p=3"];
    let in_log = logged.iter().all(|r| log.rows.iter().any(|l| l == r));
    let findings = source.check().await.unwrap();
    let told = findings.iter().any(|f| {
        f.check == "foreign_key" && f.subject.as_deref() == Some(&*db.table("child").to_string())
    });
    assert_ne!(in_log, told, "{:?}", log.rows);
}

async fn columns_that_are_left_out(place: Place) {
    let create = "CREATE TABLE t (id int primary key, p point, g varchar(5) character set gbk)";
    let db = place.database(&[create]).await;
    let table = db.table("t");
    let mut options = db.options();
    let without = TableOptions {
        exclude_columns: vec!["p".into(), "g".into()],
        ..TableOptions::default()
    };
    options.tables.insert(table, without);
    let source = db.open(options);
    let (_, mut tail) = start(&*source).await;
    let insert = "INSERT INTO t VALUES (1, st_geomfromtext('POINT(1 1)'), 'x')";
    run_each(&mut db.session().await, &[insert]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["t:c id=1"]);
    assert!(log.notable().is_empty(), "{:?}", log.events);
    let findings = source.check().await.unwrap();
    let checks_metadata = |f: &caudal_model::Finding| f.check == "binlog_row_metadata";
    assert!(findings.iter().any(checks_metadata), "{findings:?}");
    let refused = findings.iter().any(|f| f.severity == Severity::Error);
    assert!(!refused, "{findings:?}");
}
