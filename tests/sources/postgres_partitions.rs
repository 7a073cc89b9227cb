//! Partitioned tables, and others whose rows are not all their own: what is carried under
//! which name, and what becomes of a root whose partitions come and go.

use crate::database::{Database, Place, on, run_each, run_script};
use crate::rows::{Log, copy, drain, start, track, tracked};
use caudal_model::{Selection, Severity};
use caudal_sources::{Source, Tail};

on!(
    postgres: a_root_is_one_table,
    rows_that_came_or_went_with_a_partition,
    partitions_that_brought_no_rows,
    columns_and_identities_of_partitions,
    publications_of_others,
    tables_that_are_not_carried,
);

const ROOT: &str =
    "CREATE TABLE r (id int, k text, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (id);
    CREATE TABLE r0 PARTITION OF r FOR VALUES FROM (0) TO (10);
    CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (10) TO (20) PARTITION BY LIST (k);
    CREATE TABLE r1a PARTITION OF r1 FOR VALUES IN ('a');
    CREATE TABLE r1b PARTITION OF r1 DEFAULT";

fn selected(db: &Database, include: &[&str]) -> Box<dyn Source> {
    let mut options = db.options();
    let include: Vec<String> = include.iter().map(|t| format!("public.{t}")).collect();
    options.selection = Selection::new(&include, &[]).unwrap();
    db.open(options)
}

/// What follows once a look at the catalogue was taken and the tail has passed it.
async fn drain_behind_a_look(db: &Database, source: &dyn Source, tail: &mut dyn Tail) -> Log {
    source.catalog_mark().await.unwrap();
    // Where nothing is written, nothing is to be waited for.
    db.source.exec("SELECT pg_current_xact_id()").await.unwrap();
    drain(source, tail, 1 << 20).await
}

async fn a_root_is_one_table(place: Place) {
    let db = place.database(&[]).await;
    let mut session = db.session().await;
    run_script(&mut session, ROOT).await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let names: Vec<&str> = tables.iter().map(|t| &*t.schema.table.name).collect();
    assert_eq!(names, ["r"]);
    run_script(
        &mut session,
        "INSERT INTO r SELECT i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'v' FROM generate_series(1, 19) i;
         INSERT INTO r0 VALUES (0, 'x', 'direct'); UPDATE r SET id = 14, v = 'moved' WHERE id = 3;
         UPDATE r SET v = 'changed' WHERE id = 12; DELETE FROM r WHERE id = 11; UPDATE r1b SET k = 'c' WHERE id = 15",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows.len(), 20 + 2 + 1 + 1 + 2, "{:?}", log.rows);
    assert_eq!(
        log.rows[19..],
        [
            "r:c id=0 k=x v=direct",
            "r:d id=3 k=b",
            "r:c id=14 k=b v=moved",
            "r:u id=12 k=a v=changed",
            "r:d id=11 k=b",
            "r:d id=15 k=b",
            "r:c id=15 k=c v=v",
        ]
    );
    assert_eq!(log.notable(), Vec::<&str>::new());
    let base = source.current_position().await.unwrap();
    let (mut copied, chunks) = copy(&*source, &tables[0].schema, &base, 200).await;
    assert!(chunks > 5, "{chunks}");
    assert_eq!(copied.len(), 19, "{copied:?}");
    copied.sort();
    copied.dedup();
    assert_eq!(copied.len(), 19, "{copied:?}");
    run_script(&mut session, "TRUNCATE r").await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["r:t"]);
    // Partitions without their root are tables of their own, and a root in the middle is one.
    let source = selected(&db, &["r0", "r1"]);
    let tables = tracked(&*source).await;
    let names: Vec<&str> = tables.iter().map(|t| &*t.schema.table.name).collect();
    assert_eq!(names, ["r0", "r1"]);
}

/// Makes the table anew, does something, and gives the notable events.
async fn after(
    db: &Database,
    source: &dyn Source,
    tail: &mut dyn Tail,
    script: &str,
) -> Vec<String> {
    let mut session = db.session().await;
    tail.untrack(&db.table("r"));
    run_each(
        &mut session,
        &["DROP TABLE IF EXISTS r, loose, n, r0, r1, r1a"],
    )
    .await;
    run_script(&mut session, ROOT).await;
    run_script(
        &mut session,
        "CREATE TABLE loose (LIKE r INCLUDING ALL); INSERT INTO r VALUES (1, 'a', 'v'), (11, 'a', 'v')",
    )
    .await;
    source.add_tables(&[db.table("r")]).await.unwrap();
    let found = source.discover().await.unwrap().remove(0);
    drain_behind_a_look(db, source, tail).await;
    tail.track(track(found));
    run_script(&mut session, script).await;
    let mut told = Vec::new();
    // A look counts once the tail has passed it; once told, nothing comes after it.
    for expected in [true, true, false] {
        let log = drain_behind_a_look(db, source, tail).await;
        assert!(expected || log.notable().is_empty(), "{:?}", log.events);
        told.extend(log.notable().into_iter().map(str::to_owned));
    }
    told
}

/// A tail that tracks nothing.
async fn followed(db: &Database) -> (Box<dyn Source>, Box<dyn Tail>) {
    let source = selected(db, &["r"]);
    let (_, tail) = start(&*source).await;
    (source, tail)
}

async fn rows_that_came_or_went_with_a_partition(place: Place) {
    let db = place.database(&[]).await;
    let (source, mut tail) = followed(&db).await;
    for (script, reason) in [
        ("ALTER TABLE r DETACH PARTITION r0", "detached or dropped"),
        ("DROP TABLE r1a", "detached or dropped"),
        ("ALTER TABLE r DETACH PARTITION r1", "detached or dropped"),
        (
            "INSERT INTO loose VALUES (20, 'x'); ALTER TABLE r ATTACH PARTITION loose FOR VALUES FROM (20) TO (30)",
            "a partition with rows was attached",
        ),
        (
            "BEGIN; CREATE TABLE n (LIKE r INCLUDING ALL); INSERT INTO n VALUES (20, 'x');
             ALTER TABLE r ATTACH PARTITION n FOR VALUES FROM (20) TO (30); COMMIT",
            "a partition with rows was attached",
        ),
        // Below one that is attached with it.
        (
            "CREATE TABLE n (LIKE r INCLUDING ALL) PARTITION BY LIST (k); CREATE TABLE m PARTITION OF n DEFAULT;
             INSERT INTO n VALUES (20, 'x'); ALTER TABLE r ATTACH PARTITION n FOR VALUES FROM (20) TO (30)",
            "a partition with rows was attached",
        ),
        ("TRUNCATE r0", "truncated or written anew"),
        ("VACUUM FULL r0", "truncated or written anew"),
        // Nobody looked while it was there, but its row was in the log.
        (
            "CREATE TABLE n PARTITION OF r FOR VALUES FROM (20) TO (30); INSERT INTO r VALUES (20, 'x'); DROP TABLE n",
            "detached or dropped",
        ),
        (
            "CREATE TABLE n (LIKE r INCLUDING ALL); INSERT INTO n VALUES (20, 'x');
             ALTER TABLE r ATTACH PARTITION n FOR VALUES FROM (20) TO (30); INSERT INTO r VALUES (21, 'x')",
            "a partition with rows was attached",
        ),
    ] {
        let told = after(&db, &*source, &mut *tail, script).await;
        let last = told.last().unwrap_or_else(|| panic!("{script}: nothing"));
        assert!(
            last.starts_with("recopy public.r: ") && last.contains(reason),
            "{script}: {told:?}"
        );
    }
}

async fn partitions_that_brought_no_rows(place: Place) {
    let db = place.database(&[]).await;
    let (source, mut tail) = followed(&db).await;
    for script in [
        "CREATE TABLE n PARTITION OF r FOR VALUES FROM (20) TO (30); INSERT INTO r VALUES (20, 'x')",
        "BEGIN; CREATE TABLE n PARTITION OF r FOR VALUES FROM (20) TO (30); INSERT INTO n VALUES (20, 'x'); COMMIT",
        "ALTER TABLE r ATTACH PARTITION loose FOR VALUES FROM (20) TO (30)",
        "CREATE TABLE n PARTITION OF r FOR VALUES FROM (20) TO (30) PARTITION BY LIST (k);
         CREATE TABLE m PARTITION OF n DEFAULT; INSERT INTO r VALUES (20, 'x')",
    ] {
        let told = after(&db, &*source, &mut *tail, script).await;
        assert!(
            !told.is_empty() && told.iter().all(|e| e.starts_with("schema public.r v")),
            "{script}: {told:?}"
        );
    }
    // What is known of partitions survives the process.
    drop(tail);
    let db = place.database(&[]).await;
    let mut session = db.session().await;
    run_script(&mut session, ROOT).await;
    let source = selected(&db, &["r"]);
    let (mut tables, mut tail) = start(&*source).await;
    run_script(
        &mut session,
        "CREATE TABLE n PARTITION OF r FOR VALUES FROM (20) TO (30); INSERT INTO n VALUES (20, 'x')",
    )
    .await;
    let mut log = drain_behind_a_look(&db, &*source, &mut *tail).await;
    tables[0].schema = log.schemas.last().unwrap().clone();
    log = drain_behind_a_look(&db, &*source, &mut *tail).await;
    tables[0].schema = log.schemas.pop().unwrap_or(tables[0].schema.clone());
    drop(tail);
    run_script(&mut session, "DROP TABLE n").await;
    let source = selected(&db, &["r"]);
    let mut tail = source.open_tail(&log.reached, tables).await.unwrap();
    let mut log = drain(&*source, &mut *tail, 1 << 20).await;
    let told = drain_behind_a_look(&db, &*source, &mut *tail).await.events;
    log.events.extend(told);
    let gone = "recopy public.r: a partition was detached or dropped";
    assert_eq!(log.notable(), [gone]);
    // The copy that follows begins with the partitions that there are.
    let found = source.discover().await.unwrap().remove(0);
    tail.track(track(found));
    run_script(&mut session, "INSERT INTO r VALUES (1, 'new')").await;
    let log = drain_behind_a_look(&db, &*source, &mut *tail).await;
    assert_eq!(
        (log.rows.len(), log.notable().len()),
        (1, 0),
        "{:?}",
        log.events
    );
}

async fn columns_and_identities_of_partitions(place: Place) {
    let db = place.database(&[]).await;
    let mut session = db.session().await;
    run_script(&mut session, ROOT).await;
    run_script(
        &mut session,
        "CREATE TABLE w (a int, b text) PARTITION BY LIST (a); ALTER TABLE w REPLICA IDENTITY FULL;
         CREATE TABLE w1 PARTITION OF w FOR VALUES IN (1); ALTER TABLE w1 REPLICA IDENTITY FULL;
         CREATE TABLE f (id int PRIMARY KEY, b text) PARTITION BY LIST (id); ALTER TABLE f REPLICA IDENTITY FULL;
         CREATE TABLE f1 PARTITION OF f FOR VALUES IN (1);
         INSERT INTO r VALUES (1, 'a', 'v'); INSERT INTO f VALUES (1, repeat(md5(random()::text), 2000))",
    )
    .await;
    run_script(
        &mut session,
        "ALTER TABLE f1 ALTER b SET STORAGE EXTERNAL; UPDATE f SET b = b || 'x'",
    )
    .await;
    let source = selected(&db, &["r", "w", "f"]);
    let (_, mut tail) = start(&*source).await;
    run_script(
        &mut session,
        "ALTER TABLE r ADD c int DEFAULT 7, ADD d text; INSERT INTO r VALUES (2, 'a', 'v', 8, 'd');
         INSERT INTO w VALUES (1, 'x'); UPDATE w SET b = 'y'; DELETE FROM w; UPDATE f SET id = 1;
         CREATE TABLE w2 (b text, a int, PRIMARY KEY (a)); ALTER TABLE w ATTACH PARTITION w2 FOR VALUES IN (2);
         INSERT INTO w VALUES (2, 'x'); UPDATE w SET b = 'y'",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(
        log.rows,
        [
            "r:c id=2 k=a v=v c=8 d=d",
            "w:c a=1 b=x",
            "w:d a=1 b=x",
            "w:c a=1 b=y",
            "w:d a=1 b=y",
            // The root is FULL, its partition is not: what was not sent did not change.
            "f:u id=1 unchanged=[b]",
        ],
        "{:?}",
        log.events
    );
    let r = log.schemas.iter().find(|s| s.table.name == "r").unwrap();
    assert_eq!(r.columns[3].default, Some(7.into()));
    assert_eq!(r.columns[4].default, None);
    let failed = log
        .notable()
        .into_iter()
        .find(|e| e.starts_with("failed"))
        .unwrap();
    assert!(
        failed.contains("public.w2") && failed.contains("\"w2\" REPLICA IDENTITY FULL"),
        "{failed}"
    );
    let found = source.discover().await.unwrap();
    let problems: Vec<&str> = found
        .iter()
        .flat_map(|t| &t.problems)
        .filter_map(|p| p.mend.as_deref())
        .collect();
    assert_eq!(
        problems,
        ["ALTER TABLE \"public\".\"w2\" REPLICA IDENTITY FULL;"]
    );
}

async fn publications_of_others(place: Place) {
    let db = place.database(&[]).await;
    run_script(&mut db.session().await, ROOT).await;
    let name = format!("p_{}", db.stream());
    let mut admin = db.source.superuser().await.unwrap();
    let open = |include: &str| {
        let mut options = db.options();
        options.publication = Some(name.clone());
        options.selection = Selection::new(&[include], &[]).unwrap();
        db.open(options)
    };
    let publication_errors = async |source: &dyn Source| {
        let findings = source.check().await.unwrap();
        let wrong = findings
            .into_iter()
            .filter(|f| f.check == "publication_root");
        wrong.filter_map(|f| f.mend).collect::<Vec<_>>()
    };
    run_each(
        &mut admin,
        &[&format!("CREATE PUBLICATION {name} FOR TABLE r")],
    )
    .await;
    let source = open("public.r");
    let mend = format!("ALTER PUBLICATION \"{name}\" SET (publish_via_partition_root = true);");
    assert_eq!(
        publication_errors(&*source).await,
        std::slice::from_ref(&mend)
    );
    let error = source.prepare(&[db.table("r")]).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains(&mend), "{error:?}");
    run_each(&mut admin, &[&mend]).await;
    assert!(publication_errors(&*source).await.is_empty());
    source.prepare(&[db.table("r")]).await.unwrap();
    // A partition alone, whose rows come as the root's.
    let source = open("public.r0");
    assert_eq!(publication_errors(&*source).await.len(), 1);
    let error = source.prepare(&[db.table("r0")]).await.unwrap_err();
    assert!(error.to_string().contains("public.r"), "{error}");
}

async fn tables_that_are_not_carried(place: Place) {
    let db = place.database(&[]).await;
    let mut admin = db.source.superuser().await.unwrap();
    run_script(
        &mut admin,
        "SET ROLE app; CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
         CREATE UNLOGGED TABLE un (id int PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS a;
         CREATE MATERIALIZED VIEW mv AS SELECT 1 AS a; INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2);
         RESET ROLE; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
         CREATE FOREIGN TABLE ft (a int) SERVER s",
    )
    .await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let names: Vec<&str> = tables.iter().map(|t| &*t.schema.table.name).collect();
    assert_eq!(names, ["child", "parent"]);
    let findings = source.check().await.unwrap();
    let told: Vec<(Severity, &str)> = findings
        .iter()
        .filter(|f| f.check == "table_kind")
        .filter_map(|f| Some((f.severity, f.subject.as_deref()?)))
        .collect();
    let expected = ["child", "parent", "ft", "mv", "un", "v"];
    let expected = expected.map(|t| (Severity::Info, db.table(t).to_string()));
    assert_eq!(told, expected.each_ref().map(|(s, t)| (*s, &**t)));
    run_script(
        &mut db.session().await,
        "INSERT INTO child VALUES (3); UPDATE parent SET id = id + 10",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let mut rows = log.rows;
    rows.sort();
    let moved = [
        "child:c id=12",
        "child:c id=13",
        "child:c id=3",
        "child:d id=2",
        "child:d id=3",
    ];
    assert_eq!(rows[..5], moved);
    assert_eq!(rows[5..], ["parent:c id=11", "parent:d id=1"]);
    let (copied, _) = copy(&*source, &tables[1].schema, &log.reached, 200).await;
    assert_eq!(copied, ["parent:r id=11"]);
    for name in ["un", "v", "mv", "ft"] {
        let found = selected(&db, &[name]).discover().await.unwrap();
        assert_eq!(found[0].problems[0].check, "table_kind", "{name}");
    }
}
