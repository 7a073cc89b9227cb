//! Frames of `pgoutput` as servers sent them, decoded again: a server is not needed to see
//! that a decoder still reads what it read before.
//!
//! `tests/goldens/postgres/<version>-<group>.frames` holds protocol messages, `.rows` what they
//! decode to. Both are captured anew from live servers by
//! `cargo nextest run --release --workspace --test sources --run-ignored only -E 'test(goldens)'`;
//! a difference in `.rows` then needs a reason.

use crate::database::{Database, Place, run_script};
use crate::rows::show;
use std::path::{Path, PathBuf};

mod captured {
    use super::capture;

    #[test]
    #[ignore = "writes into tests/goldens"]
    fn postgres15() {
        let version = caudal_tests::Version::Postgres15;
        crate::database::run(version, "goldens", async |place| capture(place, "15").await);
    }

    #[test]
    #[ignore = "writes into tests/goldens"]
    fn postgres18() {
        let version = caudal_tests::Version::Postgres18;
        crate::database::run(version, "goldens", async |place| capture(place, "18").await);
    }
}

/// Each group with its tables and what happens to them.
const GROUPS: [(&str, &str, &str); 5] = [
    (
        "numbers",
        "CREATE TABLE g (id int PRIMARY KEY, b boolean, i2 smallint, i8 bigint, o oid, f4 real, f8 float8, n numeric(12,2), nn numeric, m money)",
        "INSERT INTO g VALUES (1, true, -32768, 9223372036854775807, 4294967295, 1.1, 1e-310, -1.10, 1.500, '$1,234.50'),
           (2, false, 0, 0, 0, 'NaN', '-Infinity', 0, 'NaN', '-$0.01'), (3, NULL, NULL, NULL, NULL, '-0', 5e-324, 9999999999.99, '-Infinity', NULL)",
    ),
    (
        "texts",
        "CREATE TABLE g (id int PRIMARY KEY, t text, v varchar(9), c char(5), n name, b bytea, u uuid, j json, jb jsonb, x xml, q \"char\")",
        "INSERT INTO g VALUES (1, E'häß\\n\"''\\\\', 'x', 'ab', 'nm', '\\x00ff10', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{\"a\" :  1}', '{\"b\":2, \"a\":[1,null]}', '<a>x</a>', 'q'),
           (2, '', '', '', '', '', NULL, 'null', 'null', '', '')",
    ),
    (
        "times",
        "CREATE TABLE g (id int PRIMARY KEY, d date, t time, tt timetz, i interval, ts timestamp, tz timestamptz)",
        "INSERT INTO g VALUES (1, '2024-02-29', '24:00:00', '12:00:00.5+05:30', '1 year -2 days 03:04:05.678', '1999-12-31 23:59:59.999999', '2024-06-01 12:00:00+02'),
           (2, 'infinity', '00:00:00', '00:00:00+00', '-1 mon', 'infinity', '-infinity'), (3, '0044-03-15 BC', NULL, NULL, NULL, '4713-01-01 00:00:00 BC', '294246-12-31 23:59:59.999999')",
    ),
    (
        "arrays",
        "CREATE TABLE g (id int PRIMARY KEY, i int[], t text[], n numeric[], b bytea[], f float8[], ts timestamp[], jb jsonb[], ip inet, r int4range, bi bit(3), p point)",
        "INSERT INTO g VALUES (1, '{1,NULL,-3}', '{a,NULL,\"NULL\",\"\",\"b \\\"c\\\" \\\\\",\"x,y\"}', '{1.50,NaN}', '{\"\\\\x00ff\"}', '{NaN,-0}', '{infinity,2024-01-01}', '{\"{\\\"a\\\": 1}\"}', '10.1.2.3/8', '[1,5)', B'101', '(1.5,2)'),
           (2, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '::1', 'empty', NULL, NULL)",
    ),
    (
        "changes",
        "CREATE TABLE g (id int PRIMARY KEY, t text, n int); ALTER TABLE g ALTER t SET STORAGE EXTERNAL; CREATE TABLE k (a int); ALTER TABLE k REPLICA IDENTITY FULL",
        "INSERT INTO g VALUES (1, repeat('x', 2100), 1), (2, 'b', 2); UPDATE g SET n = 5 WHERE id = 1; UPDATE g SET id = 3 WHERE id = 1; DELETE FROM g WHERE id = 2;
         ALTER TABLE g ADD z text DEFAULT 'd'; INSERT INTO g VALUES (4, 'd', 4, 'e'); INSERT INTO k VALUES (1), (2); UPDATE k SET a = 3 WHERE a = 1; DELETE FROM k; TRUNCATE g, k",
    ),
];

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/postgres")
}

fn decoded(frames: &[u8]) -> String {
    let batches = caudal_sources::fuzz::pgoutput_rows(frames).unwrap();
    show(&batches)
        .iter()
        .map(|row| format!("{row}\n"))
        .collect()
}

async fn capture(place: Place, version: &str) {
    for (group, tables, changes) in GROUPS {
        let db = place.database(&[]).await;
        run_script(&mut db.session().await, tables).await;
        let frames = captured_frames(&db, changes).await;
        let file = |suffix: &str| goldens().join(format!("{version}-{group}.{suffix}"));
        std::fs::create_dir_all(goldens()).unwrap();
        std::fs::write(file("rows"), decoded(&frames)).unwrap();
        std::fs::write(file("frames"), frames).unwrap();
    }
}

/// The messages that a slot gives for the changes, each as the server would send it.
async fn captured_frames(db: &Database, changes: &str) -> Vec<u8> {
    let mut superuser = db.source.superuser().await.unwrap();
    let slot = format!("goldens_{}", std::process::id());
    for sql in [
        "CREATE PUBLICATION goldens FOR ALL TABLES",
        "SET datestyle = ISO",
        "SET intervalstyle = iso_8601",
        "SET extra_float_digits = 1",
        "SET timezone = UTC",
        "SET bytea_output = hex",
        "SET lc_monetary = 'C'",
    ] {
        superuser.exec(sql).await.unwrap();
    }
    let create = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    superuser.rows(&create).await.unwrap();
    run_script(&mut db.session().await, changes).await;
    let sql = format!(
        "SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('{slot}', NULL, NULL, 'proto_version', '2', 'publication_names', 'goldens')"
    );
    let messages = superuser.rows(&sql).await.unwrap();
    superuser
        .rows(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await
        .unwrap();
    let mut frames = Vec::new();
    for message in messages {
        let body = hex::decode(message[0].as_deref().unwrap()).unwrap();
        frames.push(b'd');
        frames.extend((4 + 25 + body.len() as u32).to_be_bytes());
        frames.push(b'w');
        frames.extend([0; 24]);
        frames.extend(body);
    }
    frames
}

#[test]
fn kept_frames_decode_to_the_rows_that_they_did() {
    let mut seen = 0;
    for version in ["15", "18"] {
        for (group, ..) in GROUPS {
            let file = |suffix: &str| goldens().join(format!("{version}-{group}.{suffix}"));
            let frames = std::fs::read(file("frames")).unwrap();
            let rows = std::fs::read_to_string(file("rows")).unwrap();
            assert_eq!(decoded(&frames), rows, "{version} {group}");
            seen += rows.lines().count();
        }
    }
    assert!(seen > 40, "{seen}");
}
