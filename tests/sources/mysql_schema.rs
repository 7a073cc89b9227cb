//! Definitions of MySQL and MariaDB that change in the log: by statements in every spelling,
//! seen at once, and seen late, when the server has changed again.

use crate::database::{Database, Place, on, run_each};
use crate::rows::{drain, start, tracked};
use caudal_model::Selection;
use caudal_sources::{Source, SourceOptions, Tail};
use caudal_tests::Session;

on!(
    mysql and mariadb: changes_seen_at_once,
    changes_seen_late_are_never_wrong,
    tables_that_come_and_go,
    online_migrations_leave_the_renamed_table,
    defaults_of_added_columns_are_the_server_s,
    names_are_read_as_their_session_means_them,
    a_changed_table_stops_its_copy,
    changes_without_a_log_are_found_when_it_is_opened,
);
on!(mysql: instant_and_invisible_columns, changes_are_told_without_gtids);
on!(mariadb: names_in_lower_case);

/// A definition, statements, the rows that must come and the events, in which `t` stands
/// for the table.
struct Case {
    create: &'static str,
    statements: &'static [&'static str],
    rows: &'static [&'static str],
    events: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        create: "id int primary key, a int",
        statements: &[
            "INSERT INTO t VALUES (1, 1)",
            "ALTER TABLE t ADD COLUMN b varchar(10) FIRST, ADD c int DEFAULT 7 AFTER id, MODIFY a bigint",
            "INSERT INTO t (id, a, b) VALUES (2, 9223372036854775807, 'new')",
        ],
        rows: &["t:c id=1 a=1", "t:c b=new id=2 c=7 a=9223372036854775807"],
        events: &["schema t v2"],
    },
    Case {
        create: "id int primary key, a int, b int",
        statements: &[
            "ALTER TABLE t RENAME COLUMN a TO b, RENAME COLUMN b TO a",
            "INSERT INTO t (id, a, b) VALUES (1, 10, 20)",
            "ALTER TABLE t CHANGE a `x y` bigint, DROP COLUMN b",
            "INSERT INTO t VALUES (2, 5)",
        ],
        rows: &["t:c id=1 b=20 a=10", "t:c id=2 x y=5"],
        events: &["schema t v2", "schema t v3"],
    },
    Case {
        create: "id int primary key, a int, b varchar(9)",
        statements: &[
            "ALTER TABLE t MODIFY a int AFTER b",
            "INSERT INTO t VALUES (1, 'b', 2)",
        ],
        rows: &["t:c id=1 b=b a=2"],
        events: &["schema t v2"],
    },
    Case {
        create: "id int primary key, e enum('a','b')",
        statements: &[
            "INSERT INTO t VALUES (1, 'b')",
            "ALTER TABLE t MODIFY e enum('c','a','b')",
            "INSERT INTO t VALUES (2, 'a')",
        ],
        rows: &["t:c id=1 e=b", "t:c id=2 e=a"],
        events: &["schema t v2"],
    },
    Case {
        create: "id int primary key, a varchar(10) character set latin1",
        statements: &[
            "ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4",
            "INSERT INTO t VALUES (1, 'é€日')",
        ],
        rows: &["t:c id=1 a=é€日"],
        events: &["schema t v2"],
    },
    // What leaves nothing to be told by older rows.
    Case {
        create: "id int primary key, a varchar(10)",
        statements: &[
            "ALTER TABLE t CONVERT TO CHARACTER SET latin1",
            "INSERT INTO t VALUES (1, 'é')",
        ],
        rows: &[],
        events: &[
            "recopy t: column a changed from varchar(10) to varchar(10) character set latin1",
        ],
    },
    Case {
        create: "id int primary key, a varchar(10)",
        statements: &[
            "ALTER TABLE t MODIFY a varchar(5)",
            "INSERT INTO t VALUES (1, 'x')",
        ],
        rows: &[],
        events: &["recopy t: column a changed from varchar(10) to varchar(5)"],
    },
    Case {
        create: "id int primary key, a int",
        statements: &["ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (a, id)"],
        rows: &[],
        events: &["recopy t: its key changed from (id) to (a, id)"],
    },
    Case {
        create: "id int primary key, a datetime(6)",
        statements: &[
            "ALTER TABLE t MODIFY a datetime(3)",
            "INSERT INTO t VALUES (1, '2024-01-01')",
        ],
        rows: &[],
        events: &["recopy t: column a changed from datetime(6) to datetime(3)"],
    },
    Case {
        create: "id int primary key, a int",
        statements: &["ALTER TABLE t ADD b timestamp NULL DEFAULT CURRENT_TIMESTAMP"],
        rows: &[],
        events: &["recopy t: column b was added with a value for each row that is there"],
    },
    Case {
        create: "id int primary key, a int, b int",
        statements: &["ALTER TABLE t DROP COLUMN b, ADD COLUMN b int"],
        rows: &[],
        events: &["recopy t: column b was dropped and added again"],
    },
    Case {
        create: "id int primary key, a int, g int AS (a + 1) STORED",
        statements: &["ALTER TABLE t MODIFY g int AS (a + 2) STORED"],
        rows: &[],
        events: &["recopy t: column g is computed anew"],
    },
    // What changes nothing that the lake shows.
    Case {
        create: "id int primary key, a int",
        statements: &[
            "ALTER TABLE t ADD INDEX i (a), COMMENT = 'x, RENAME TO y'",
            "CREATE INDEX j ON t (a, id)",
            "OPTIMIZE TABLE t",
            "INSERT INTO t VALUES (1, 2)",
        ],
        rows: &["t:c id=1 a=2"],
        events: &[],
    },
];

fn named(db: &Database, text: &str, table: &str) -> String {
    text.replacen(&format!(" {}", db.table(table)), &format!(" {table}"), 1)
}

/// Reads what is there, and what the tail makes of it when it stands between transactions.
async fn read_all(
    db: &Database,
    source: &dyn Source,
    tail: &mut dyn Tail,
    session: &mut Session,
) -> (Vec<String>, Vec<String>) {
    let mut log = drain(source, tail, 1 << 20).await;
    run_each(session, &["INSERT INTO other VALUES (1)"]).await;
    let rest = drain(source, tail, 1 << 20).await;
    log.rows.extend(rest.rows.clone());
    log.events.extend(rest.events);
    log.rows.retain(|r| !r.starts_with("other:"));
    let notable = log.notable();
    let events = notable.iter().map(|e| named(db, e, "t")).collect();
    (log.rows, events)
}

fn options(db: &Database) -> SourceOptions {
    let selected = [db.table("t"), db.table("other")].map(|t| t.to_string());
    SourceOptions {
        selection: Selection::new(&selected, &[]).unwrap(),
        ..db.options()
    }
}

const OTHER: &str = "CREATE TABLE other (i int)";

async fn changes_seen_at_once(place: Place) {
    follow_cases(&place.database(&[OTHER]).await).await;
}

async fn follow_cases(db: &Database) {
    let mut session = db.session().await;
    run_each(&mut session, &["SET sql_mode = 'STRICT_ALL_TABLES'"]).await;
    for case in CASES {
        let create = format!("CREATE TABLE t ({}) CHARACTER SET utf8mb4", case.create);
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let source = db.open(options(db));
        let (_, mut tail) = start(&*source).await;
        let (mut rows, mut events) = (Vec::new(), Vec::new());
        for statement in case.statements {
            run_each(&mut session, &[statement]).await;
            let log = read_all(db, &*source, &mut *tail, &mut session).await;
            rows.extend(log.0);
            events.extend(log.1);
        }
        assert_eq!(events, case.events, "{:?}", case.statements);
        assert_eq!(rows, case.rows, "{:?}", case.statements);
    }
}

/// The log is read when all is over. A row is then as it should be, or it does not come and
/// the table is copied again.
async fn changes_seen_late_are_never_wrong(place: Place) {
    let db = place.database(&[OTHER]).await;
    let mut session = db.session().await;
    run_each(&mut session, &["SET sql_mode = 'STRICT_ALL_TABLES'"]).await;
    for case in CASES {
        let create = format!("CREATE TABLE t ({}) CHARACTER SET utf8mb4", case.create);
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create]).await;
        let source = db.open(options(&db));
        let tables = tracked(&*source).await;
        let base = source.prepare(&[]).await.unwrap();
        run_each(&mut session, case.statements).await;
        let mut tail = source.open_tail(&base, tables).await.unwrap();
        let (rows, events) = read_all(&db, &*source, &mut *tail, &mut session).await;
        let again = events.iter().any(|e| e.starts_with("recopy"));
        let failed = events.iter().any(|e| e.starts_with("failed"));
        assert!(
            !failed && rows.len() <= case.rows.len() && rows == case.rows[..rows.len()],
            "{rows:?} {events:?}"
        );
        assert!(again || rows == case.rows, "{rows:?} {events:?}");
        if case.events.iter().any(|e| e.starts_with("recopy")) {
            assert!(again, "{:?}: {events:?}", case.statements);
        }
        // The last definition is the stream's, or the table's next copy has it.
        let altered = !case.events.is_empty();
        let told = events.iter().any(|e| e.starts_with("schema"));
        assert_eq!(altered, again || told, "{:?}: {events:?}", case.statements);
    }
}

async fn tables_that_come_and_go(place: Place) {
    let db = place.database(&[OTHER]).await;
    let mut session = db.session().await;
    let cases: &[(&str, &[&str])] = &[
        ("DROP TABLE IF EXISTS nothing, `t`", &["ended t"]),
        ("RENAME TABLE t TO u", &["ended t"]),
        ("ALTER TABLE t ADD x int, RENAME AS u", &["ended t"]),
        (
            "RENAME TABLE t TO tmp, v TO t, tmp TO v",
            &["ended t", "catalog"],
        ),
        ("CREATE TABLE IF NOT EXISTS t (id int primary key)", &[]),
        ("DROP TEMPORARY TABLE IF EXISTS t", &[]),
        ("/* x */ DROP /*!40000 TABLE */ t -- y", &["ended t"]),
    ];
    for (statement, expected) in cases {
        let statements = [
            "DROP TABLE IF EXISTS t, u, v",
            "CREATE TABLE t (id int primary key)",
            "CREATE TABLE v (id int primary key, w int)",
        ];
        run_each(&mut session, &statements).await;
        let source = db.open(options(&db));
        let (_, mut tail) = start(&*source).await;
        run_each(&mut session, &["INSERT INTO t VALUES (1)", statement]).await;
        let (rows, events) = read_all(&db, &*source, &mut *tail, &mut session).await;
        assert_eq!(events, *expected, "{statement}");
        assert_eq!(rows, ["t:c id=1"], "{statement}");
    }
    // What the selection does not name is no matter; what it names is discovered.
    run_each(&mut session, &["DROP TABLE IF EXISTS t"]).await;
    let source = db.open(options(&db));
    let (_, mut tail) = start(&*source).await;
    let statements = [
        "CREATE TABLE x (i int)",
        "DROP TABLE x",
        "RENAME TABLE v TO w",
    ];
    run_each(&mut session, &statements).await;
    let (_, events) = read_all(&db, &*source, &mut *tail, &mut session).await;
    assert_eq!(events, [""; 0]);
    for create in [
        "CREATE TABLE t LIKE other",
        "CREATE TABLE t AS SELECT 1 AS x",
        "RENAME TABLE w TO t",
    ] {
        run_each(&mut session, &["DROP TABLE IF EXISTS t", create]).await;
        let (_, events) = read_all(&db, &*source, &mut *tail, &mut session).await;
        assert_eq!(events, ["catalog"], "{create}");
    }
    // Rows that go without a word.
    let parts = "CREATE TABLE t (id int primary key) \
                 PARTITION BY RANGE (id) (PARTITION p VALUES LESS THAN (10), PARTITION q VALUES LESS THAN (20))";
    for statement in [
        "ALTER TABLE t TRUNCATE PARTITION p",
        "ALTER TABLE t DROP PARTITION p",
        "ALTER TABLE t EXCHANGE PARTITION p WITH TABLE x",
    ] {
        let statements = [
            "DROP TABLE IF EXISTS t, x",
            parts,
            "CREATE TABLE x (id int primary key)",
        ];
        run_each(&mut session, &statements).await;
        let source = db.open(options(&db));
        let (_, mut tail) = start(&*source).await;
        run_each(&mut session, &["INSERT INTO t VALUES (1)", statement]).await;
        let (rows, events) = read_all(&db, &*source, &mut *tail, &mut session).await;
        assert_eq!(
            events,
            ["recopy t: a partition was dropped, emptied or exchanged"]
        );
        assert_eq!(rows, ["t:c id=1"]);
    }
}

/// gh-ost's and pt-online-schema-change's order of things, helpers left out.
async fn online_migrations_leave_the_renamed_table(place: Place) {
    let db = place.database(&[OTHER]).await;
    let mut session = db.session().await;
    let gh_ost = [
        "CREATE TABLE _t_ghc (id int primary key, v varchar(10))",
        "CREATE TABLE _t_gho LIKE t",
        "ALTER TABLE _t_gho ADD COLUMN b int",
        "INSERT INTO _t_gho (id) SELECT id FROM t",
        "UPDATE t SET id = 2 WHERE id = 1",
        "CREATE TABLE _t_del (id int)",
        "DROP TABLE _t_del",
        "RENAME TABLE t TO _t_del, _t_gho TO t",
        "INSERT INTO t VALUES (3, 4)",
        "DROP TABLE _t_ghc",
    ];
    let pt = [
        "CREATE TABLE _t_new LIKE t",
        "ALTER TABLE _t_new ADD COLUMN b int",
        "CREATE TRIGGER pt_osc_ins AFTER INSERT ON t FOR EACH ROW REPLACE INTO _t_new (id) VALUES (NEW.id)",
        "INSERT LOW_PRIORITY IGNORE INTO _t_new (id) SELECT id FROM t",
        "UPDATE t SET id = 2 WHERE id = 1",
        "RENAME TABLE t TO _t_old, _t_new TO t",
        "INSERT INTO t VALUES (3, 4)",
        "DROP TABLE _t_old",
        "DROP TRIGGER IF EXISTS pt_osc_ins",
    ];
    for statements in [&gh_ost[..], &pt[..]] {
        let create = "CREATE TABLE t (id int primary key)";
        let before = "DROP TABLE IF EXISTS t, _t_del, _t_old, _t_ghc";
        run_each(&mut session, &[before, create, "INSERT INTO t VALUES (1)"]).await;
        // The whole database is selected.
        let source = db.open(db.options());
        let (_, mut tail) = start(&*source).await;
        let mut events = Vec::new();
        let mut rows = Vec::new();
        for statement in statements {
            run_each(&mut session, &[statement]).await;
            let log = read_all(&db, &*source, &mut *tail, &mut session).await;
            rows.extend(log.0);
            events.extend(log.1);
            let found = source.discover().await.unwrap();
            let names: Vec<&str> = found.iter().map(|t| t.table.name.as_str()).collect();
            assert_eq!(names, ["other", "t"], "{statement}");
        }
        assert_eq!(events, ["ended t", "catalog"]);
        assert_eq!(rows, ["t:d id=1", "t:c id=2"]);
    }
    // A name of its own in the selection means the table.
    run_each(
        &mut session,
        &["CREATE TABLE IF NOT EXISTS _t_del (id int)"],
    )
    .await;
    let mut named = options(&db);
    let selected = [db.table("t"), db.table("_t_del")].map(|t| t.to_string());
    named.selection = Selection::new(&selected, &[]).unwrap();
    let found = db.open(named).discover().await.unwrap();
    assert_eq!(found.len(), 2);
}

/// Columns that are added, whose default the older rows have.
const DEFAULTS: &[&str] = &[
    "int DEFAULT 7",
    "int NOT NULL",
    "int NOT NULL DEFAULT -1",
    "bigint unsigned DEFAULT 18446744073709551615",
    "varchar(20) DEFAULT 'it''s; a \\\\ \"é\"'",
    "varchar(20) NOT NULL",
    "varchar(20) DEFAULT 'NULL'",
    "varchar(20) DEFAULT NULL",
    "char(5) CHARACTER SET latin1 DEFAULT 'é'",
    "decimal(8,3) DEFAULT 1.5",
    "decimal(8,3) NOT NULL",
    "double DEFAULT 1.5e-7",
    "float DEFAULT 1.25",
    "date DEFAULT '2024-02-29'",
    "datetime(3) DEFAULT '2024-02-29 01:02:03.5'",
    "datetime NOT NULL",
    "time(2) DEFAULT '-01:02:03.5'",
    "year DEFAULT 2024",
    "enum('x','y') DEFAULT 'y'",
    "enum('x','y') NOT NULL",
    "set('x','y') DEFAULT 'x,y'",
    "bit(1) DEFAULT b'1'",
];

async fn defaults_of_added_columns_are_the_server_s(place: Place) {
    let db = place.database(&[OTHER]).await;
    let mut session = db.session().await;
    for definition in DEFAULTS {
        let statements = [
            "DROP TABLE IF EXISTS t",
            "CREATE TABLE t (id int primary key) CHARACTER SET utf8mb4",
            "INSERT INTO t VALUES (1)",
        ];
        run_each(&mut session, &statements).await;
        let source = db.open(options(&db));
        let (tables, mut tail) = start(&*source).await;
        run_each(
            &mut session,
            &[&format!("ALTER TABLE t ADD x {definition}")],
        )
        .await;
        let mut into = caudal_model::ChangeBuffer::new(1, 1 << 20);
        run_each(&mut session, &["INSERT INTO other VALUES (1)"]).await;
        let schema = loop {
            match crate::rows::next(&mut *tail, &mut into).await {
                caudal_sources::TailEvent::Schema(schema) => break schema,
                caudal_sources::TailEvent::Recopy { reason, .. } => {
                    panic!("{definition}: {reason}")
                }
                _ => {}
            }
        };
        assert_eq!(schema.columns[0], tables[1].schema.columns[0]);
        // The oracle is the row that was there.
        let base = source.current_position().await.unwrap();
        let (rows, _) = crate::rows::copy(&*source, &schema, &base, 200).await;
        let shown = rows[0].split_once(" x=").map(|(_, v)| v.to_owned());
        let default = schema.columns[1].default.as_ref();
        let ours = default.map(|v| match (v, &schema.columns[1].lake_type) {
            (serde_json::Value::String(s), caudal_model::LakeType::Date32) => days(s).to_string(),
            (serde_json::Value::String(s), caudal_model::LakeType::Timestamp) => {
                (days(&s[..10]) * 86_400_000_000 + 3_723_500_000).to_string()
            }
            (serde_json::Value::String(s), _) => s.clone(),
            (v, _) => v.to_string(),
        });
        assert_eq!(ours, shown, "{definition}");
    }
}

fn days(text: &str) -> i64 {
    assert_eq!(text, "2024-02-29");
    19_782
}

async fn names_are_read_as_their_session_means_them(place: Place) {
    let db = place.database(&[OTHER]).await;
    let mut session = db.session().await;
    let name = "a.b`ü\"c";
    let create = "CREATE TABLE `a.b``ü\"c` (`id'x` int primary key, `co,l(` int)";
    let pattern = format!("{}.a?b*", db.source.schema());
    let mut options = options(&db);
    options.selection = Selection::new(&[pattern, db.table("other").to_string()], &[]).unwrap();
    let schema = db.source.schema().to_owned();
    for (settings, statement, expected) in [
        (
            "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'",
            "ALTER TABLE \"a.b`ü\"\"c\" ADD \"n\\\" int DEFAULT 5",
            "schema",
        ),
        (
            "SET NAMES utf8mb4",
            "/*!50100 DROP */ TABLE `a.b``ü\"c`",
            "ended",
        ),
        (
            "USE other_db",
            "DROP TABLE /* c */ SCHEMA . `a.b``ü\"c`",
            "ended",
        ),
    ] {
        run_each(&mut session, &["DROP TABLE IF EXISTS `a.b``ü\"c`", create]).await;
        let source = db.open(options.clone());
        let (_, mut tail) = start(&*source).await;
        let mut other = db.session().await;
        if settings.starts_with("USE") {
            run_each(&mut other, &["CREATE DATABASE IF NOT EXISTS other_db"]).await;
        }
        run_each(&mut other, &[settings]).await;
        let statement = statement.replace("SCHEMA", &format!("`{schema}`"));
        run_each(&mut other, &[&statement]).await;
        let mut log = read_all(&db, &*source, &mut *tail, &mut session).await;
        let full = db.table(name).to_string();
        log.1.retain(|e| e.contains(&full));
        assert_eq!(log.1.len(), 1, "{statement}: {:?}", log.1);
        assert!(log.1[0].starts_with(expected), "{statement}: {:?}", log.1);
    }
}

async fn a_changed_table_stops_its_copy(place: Place) {
    let db = place
        .database(&["CREATE TABLE t (id int primary key, a int)"])
        .await;
    let source = db.open(db.options());
    let schema = tracked(&*source).await.remove(0).schema;
    let mut session = db.session().await;
    let chunk = async |reader: &mut dyn caudal_sources::ChunkReader| {
        let chunk = caudal_model::Chunk {
            id: 1,
            after: None,
            through: None,
        };
        reader
            .start(&schema, &chunk, None)
            .await
            .map_err(|e| e.kind())
    };
    let mut first = source.open_reader(true).await.unwrap();
    assert_eq!(chunk(&mut *first).await, Ok(()));
    drop(first);
    // A reader that was refused holds nothing, however long it lives.
    let mut refused = Vec::new();
    for statement in [
        "ALTER TABLE t MODIFY a int unsigned",
        "ALTER TABLE t DROP COLUMN a",
        "DROP TABLE t",
    ] {
        run_each(&mut session, &[statement]).await;
        let mut reader = source.open_reader(true).await.unwrap();
        let outcome = chunk(&mut *reader).await;
        assert_eq!(outcome, Err(caudal_model::Kind::Drift), "{statement}");
        refused.push(reader);
    }
}

async fn changes_without_a_log_are_found_when_it_is_opened(place: Place) {
    let db = place
        .database(&[OTHER, "CREATE TABLE t (id int primary key, a varchar(10))"])
        .await;
    let source = db.open(options(&db));
    let tables = tracked(&*source).await;
    let mut session = db.session().await;
    run_each(&mut session, &["ALTER TABLE t MODIFY a varchar(5)"]).await;
    let after = source.current_position().await.unwrap();
    let mut tail = source.open_tail(&after, tables).await.unwrap();
    let (_, events) = read_all(&db, &*source, &mut *tail, &mut session).await;
    assert_eq!(
        events,
        ["recopy t: column a changed from varchar(10) to varchar(5)"]
    );
}

async fn changes_are_told_without_gtids(place: Place) {
    let off = ["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"];
    let db = place.private_database(&off, &[OTHER]).await;
    follow_cases(&db).await;
}

async fn instant_and_invisible_columns(place: Place) {
    let db = place
        .database(&[OTHER, "CREATE TABLE t (id int primary key, a int)"])
        .await;
    let mut session = db.session().await;
    run_each(&mut session, &["INSERT INTO t VALUES (1, 1)"]).await;
    let source = db.open(options(&db));
    let (_, mut tail) = start(&*source).await;
    for statement in [
        "ALTER TABLE t ADD COLUMN b int DEFAULT 3 INVISIBLE, ALGORITHM=INSTANT",
        "ALTER TABLE t DROP COLUMN a, ALGORITHM=INSTANT",
        "ALTER TABLE t RENAME COLUMN b TO c, ALGORITHM=INSTANT",
    ] {
        run_each(&mut session, &[statement]).await;
        let (_, events) = read_all(&db, &*source, &mut *tail, &mut session).await;
        assert!(
            matches!(&events[..], [e] if e.starts_with("schema t")),
            "{events:?}"
        );
    }
    run_each(
        &mut session,
        &["UPDATE t SET c = c + 1", "INSERT INTO t VALUES (2)"],
    )
    .await;
    let (rows, _) = read_all(&db, &*source, &mut *tail, &mut session).await;
    assert_eq!(rows, ["t:u id=1 c=4", "t:c id=2 c=3"]);
}

async fn names_in_lower_case(place: Place) {
    let settings = ["--lower-case-table-names=1"];
    let db = place
        .private_database(&settings, &[OTHER, "CREATE TABLE T (id int primary key)"])
        .await;
    let mut session = db.session().await;
    let source = db.open(db.options());
    let (_, mut tail) = start(&*source).await;
    let statements = [
        "INSERT INTO T VALUES (1)",
        "ALTER TABLE `T` ADD a int",
        "INSERT INTO t VALUES (2, 3)",
        "TRUNCATE T",
        "RENAME TABLE T TO U",
    ];
    let (mut rows, mut events) = (Vec::new(), Vec::new());
    for statement in statements {
        run_each(&mut session, &[statement]).await;
        let log = read_all(&db, &*source, &mut *tail, &mut session).await;
        rows.extend(log.0);
        events.extend(log.1);
    }
    assert_eq!(events, ["schema t v2", "ended t", "catalog"]);
    assert_eq!(rows, ["t:c id=1", "t:c id=2 a=3", "t:t"]);
}
