use super::*;
use caudal_model::schema::ColumnSpec;
use caudal_model::{Chunk, LakeType, Position, TableName, TableState};
use std::os::unix::fs::PermissionsExt;

fn head(epoch: u64) -> Checkpoint {
    let position = Position::new(format!("0/{epoch:X}"));
    let through = StreamPoint {
        position,
        seq: epoch as i64 * 10,
    };
    Checkpoint {
        epoch,
        generation: 1,
        through,
        server: Some(format!("server {}", epoch % 2)),
        tables: Vec::new(),
    }
}

fn progress(name: &str, rows: u64) -> TableProgress {
    let mut t = TableProgress::pending(TableName::new("public", name));
    t.state = TableState::Snapshotting;
    t.rows = rows;
    t.chunks = vec![Chunk {
        id: 1,
        after: None,
        through: Some(vec!["100".into()]),
    }];
    t
}

fn schema(name: &str, version: u32) -> TableSchema {
    let column = ColumnSpec::new("id", "int4", LakeType::Int32);
    let table = TableName::new("public", name);
    TableSchema {
        version,
        ..TableSchema::first(table, 1, vec![column], vec!["id".into()])
    }
}

fn open(dir: &Path) -> RocksStore {
    let opened = RocksStore::open(dir, "shop").unwrap();
    assert_eq!(opened.set_aside, None);
    opened.store
}

/// A database with enough in it to have table files and a log, closed again.
fn filled(dir: &Path) {
    let mut store = open(dir);
    for epoch in 1..=20 {
        let tables: Vec<_> = (0..50).map(|i| progress(&format!("t{i}"), epoch)).collect();
        store.advance(&head(epoch), &tables).unwrap();
    }
    store.db.as_ref().unwrap().flush().unwrap();
    store.advance(&head(21), &[progress("t0", 21)]).unwrap();
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir.join(DATABASE))
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.to_string_lossy().ends_with(suffix))
        .filter(|p| p.metadata().unwrap().len() > 0)
        .collect();
    found.sort();
    found
}

fn damage(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Opens a damaged database: it is empty now, and the old one lies beside it.
fn is_moved_aside(dir: &Path, reason: &str) {
    let Opened { store, set_aside } = RocksStore::open(dir, "shop").unwrap();
    let set_aside = set_aside.unwrap();
    assert!(set_aside.reason.contains(reason), "{set_aside:?}");
    assert!(set_aside.path.join("CURRENT").exists() || reason == "cannot be read");
    let name = set_aside
        .path
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    assert!(name.starts_with("db.corrupt-20"), "{name}");
    assert_eq!(store.load().unwrap(), None);
    drop(store);
    open(dir);
}

#[test]
fn what_is_written_is_read_after_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("a/b");
    let mut store = open(&dir);
    assert_eq!(
        std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert_eq!(store.load().unwrap(), None);
    store
        .advance(&head(1), &[progress("b", 1), progress("a", 2)])
        .unwrap();
    store.put_schema(&schema("a", 2)).unwrap();
    store.put_schema(&schema("a", 1)).unwrap();
    store.advance(&head(2), &[progress("b", 3)]).unwrap();
    drop(store);

    let mut store = open(&dir);
    let expected = Checkpoint {
        tables: vec![progress("a", 2), progress("b", 3)],
        ..head(2)
    };
    assert_eq!(store.load().unwrap(), Some(expected.clone()));
    assert_eq!(store.schemas().unwrap(), [schema("a", 1), schema("a", 2)]);

    let mut rebuilt = head(7);
    rebuilt.tables = vec![progress("c", 1)];
    store.replace(&rebuilt).unwrap();
    assert_eq!(store.load().unwrap(), Some(rebuilt));
    assert_eq!(store.schemas().unwrap(), []);
}

#[test]
fn the_memory_store_behaves_alike() {
    let memory = crate::MemoryStore::new();
    let mut store = memory.clone();
    store
        .advance(&head(1), &[progress("b", 1), progress("a", 2)])
        .unwrap();
    store.put_schema(&schema("a", 1)).unwrap();
    store.advance(&head(2), &[progress("b", 3)]).unwrap();
    let tables = vec![progress("a", 2), progress("b", 3)];
    assert_eq!(
        store.load().unwrap(),
        Some(Checkpoint { tables, ..head(2) })
    );
    memory.lose_last_write();
    assert_eq!(store.load().unwrap().unwrap().epoch, 1);
    assert_eq!(store.schemas().unwrap(), [schema("a", 1)]);
    memory.lose_everything();
    assert_eq!(store.load().unwrap(), None);
}

#[test]
fn a_second_agent_is_fenced_and_moves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    assert!(crate::is_held(tmp.path()));
    let e = RocksStore::open(tmp.path(), "shop").unwrap_err();
    assert_eq!(e.kind(), Kind::Fenced, "{e}");
    let e = RocksStore::open(tmp.path(), "other").unwrap_err();
    assert_eq!(e.kind(), Kind::Fenced, "{e}");
    drop(store);
    assert!(!crate::is_held(tmp.path()));
    open(tmp.path());
}

#[test]
fn a_reader_sees_what_a_running_agent_has_written() {
    let tmp = tempfile::tempdir().unwrap();
    assert!(
        RocksStore::open_read_only(tmp.path(), "shop")
            .unwrap()
            .is_none()
    );
    let mut owner = open(tmp.path());
    for epoch in 1..5 {
        owner
            .advance(&head(epoch), &[progress("a", epoch)])
            .unwrap();
        let mut reader = RocksStore::open_read_only(tmp.path(), "shop")
            .unwrap()
            .unwrap();
        assert_eq!(reader.load().unwrap(), owner.load().unwrap());
        assert!(reader.advance(&head(9), &[]).is_err());
    }
    let e = RocksStore::open_read_only(tmp.path(), "other").unwrap_err();
    assert!(
        e.to_string()
            .contains("belongs to the stream `shop`, not `other`"),
        "{e}"
    );
    assert_eq!(files(tmp.path(), "LOG"), Vec::<PathBuf>::new());
}

#[test]
fn a_foreign_database_is_moved_aside() {
    let tmp = tempfile::tempdir().unwrap();
    drop(RocksStore::open(tmp.path(), "other").unwrap());
    is_moved_aside(tmp.path(), "it belongs to the stream `other`, not `shop`");

    let store = open(tmp.path());
    store
        .db
        .as_ref()
        .unwrap()
        .put(keys::FORMAT_KEY, "2")
        .unwrap();
    drop(store);
    is_moved_aside(tmp.path(), "it has format 2, newer than this version's 1");

    let tmp = tempfile::tempdir().unwrap();
    let mut create = Options::default();
    create.create_if_missing(true);
    DB::open(&create, tmp.path().join(DATABASE))
        .unwrap()
        .put("k", "v")
        .unwrap();
    is_moved_aside(tmp.path(), "it is not a checkpoint database");
}

#[test]
fn damaged_table_files_are_moved_aside() {
    let flips: [fn(&mut Vec<u8>); 4] = [
        |b| {
            let middle = b.len() / 3;
            b[middle] ^= 0x10;
        },
        |b| b.truncate(b.len() / 2),
        |b| b.clear(),
        |b| {
            let last = b.len() - 20;
            b[last] ^= 0x01;
        },
    ];
    for flip in flips {
        let tmp = tempfile::tempdir().unwrap();
        filled(tmp.path());
        for file in files(tmp.path(), ".sst") {
            damage(&file, flip);
        }
        is_moved_aside(tmp.path(), "cannot be read");
    }
}

#[test]
fn a_damaged_list_of_files_is_moved_aside() {
    for (name, remove) in [
        ("CURRENT", false),
        ("MANIFEST", false),
        ("MANIFEST", true),
        ("sst", true),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        filled(tmp.path());
        let all = files(tmp.path(), "");
        for file in all.iter().filter(|f| f.to_string_lossy().contains(name)) {
            if remove {
                std::fs::remove_file(file).unwrap();
            } else {
                damage(file, |b| b.iter_mut().for_each(|b| *b ^= 0xFF));
            }
        }
        is_moved_aside(tmp.path(), "cannot be read");
    }
}

#[test]
fn a_record_that_does_not_parse_moves_the_database_aside() {
    for (key, value) in [
        (keys::HEAD_KEY.to_vec(), "{}"),
        (keys::table(&TableName::new("public", "t0")), "[1"),
        (b"z".to_vec(), "?"),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        filled(tmp.path());
        let store = open(tmp.path());
        store.db.as_ref().unwrap().put(key, value).unwrap();
        drop(store);
        is_moved_aside(tmp.path(), "does not parse");
    }
    // A record under another's key.
    let tmp = tempfile::tempdir().unwrap();
    filled(tmp.path());
    let store = open(tmp.path());
    let other = serde_json::to_vec(&progress("t1", 1)).unwrap();
    store
        .db
        .as_ref()
        .unwrap()
        .put(keys::table(&TableName::new("public", "t0")), other)
        .unwrap();
    drop(store);
    is_moved_aside(tmp.path(), "does not parse");
}

/// A torn or damaged log gives an older checkpoint, whole, or an empty store.
#[test]
fn a_torn_log_gives_an_older_checkpoint() {
    for cut in [1, 10, 100, 1000] {
        for flip in [false, true] {
            let tmp = tempfile::tempdir().unwrap();
            let mut store = open(tmp.path());
            for epoch in 1..=9 {
                store
                    .advance(&head(epoch), &[progress("a", epoch), progress("b", epoch)])
                    .unwrap();
            }
            drop(store);
            for log in files(tmp.path(), ".log") {
                damage(&log, |b| {
                    let at = b.len().saturating_sub(cut);
                    if flip { b[at] ^= 0x40 } else { b.truncate(at) }
                });
            }
            let store = RocksStore::open(tmp.path(), "shop").unwrap().store;
            let Some(found) = store.load().unwrap() else {
                continue;
            };
            assert!(found.epoch < 9, "cut {cut}, flip {flip}: {}", found.epoch);
            for t in &found.tables {
                assert_eq!(t.rows, found.epoch);
            }
        }
    }
}

#[test]
fn older_formats_are_upgraded_where_there_is_a_way() {
    let to_format_0 = |dir: &Path| {
        filled(dir);
        let store = open(dir);
        store
            .db
            .as_ref()
            .unwrap()
            .put(keys::FORMAT_KEY, "0")
            .unwrap();
    };
    let tmp = tempfile::tempdir().unwrap();
    to_format_0(tmp.path());
    let way: Upgrade = |db, from| {
        assert_eq!(from, 0);
        Some(db.delete(keys::table(&TableName::new("public", "t7"))))
    };
    let opened = RocksStore::open_upgrading(tmp.path(), "shop", way).unwrap();
    assert_eq!(opened.set_aside, None);
    assert_eq!(opened.store.load().unwrap().unwrap().tables.len(), 49);
    drop(opened);
    open(tmp.path());

    let tmp = tempfile::tempdir().unwrap();
    to_format_0(tmp.path());
    is_moved_aside(tmp.path(), "it has format 0, which cannot be upgraded");
}
