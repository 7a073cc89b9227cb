//! Tests of the commit log on the in-memory store.

use super::*;
use crate::entry::{FileEntry, SnapshotEntry};
use crate::store::memory::{Fault, MemoryStore, Operation, OperationKind, StoreHook};
use async_trait::async_trait;
use caudal_model::schema::ColumnSpec;
use caudal_model::{Class, LakeType, Position};
use std::sync::atomic::{AtomicU32, Ordering};

fn point(position: &str, seq: i64) -> StreamPoint {
    StreamPoint {
        position: Position::new(position),
        seq,
    }
}

fn orders() -> TableName {
    TableName::new("public", "orders")
}

fn log(store: &MemoryStore, writer: &str) -> CommitLog {
    CommitLog::new(Arc::new(store.clone()), "shop").with_writer(writer)
}

/// A log that owns the stream from its first entry on.
async fn owner(store: &MemoryStore, writer: &str) -> CommitLog {
    let log = log(store, writer);
    let head = log.head(None).await.unwrap();
    let _ = log
        .fence(head.as_ref(), point("p0", 0), |_| Ok(Carried::default()))
        .await
        .unwrap();
    log
}

/// The entry that follows the log's head, with `rows` more rows.
async fn following(log: &CommitLog, rows: i64) -> LogEntry {
    let head = log.state.lock().await.head.clone().unwrap();
    let seq = head.through.seq + rows;
    log.entry(
        head.epoch + 1,
        head.generation,
        EntryKind::Append,
        head.through.clone(),
        point(&format!("p{seq}"), seq),
        Vec::new(),
        head.epoch + 1,
    )
}

async fn commit_next(log: &CommitLog) -> Result<CommitReceipt> {
    let entry = following(log, 5).await;
    log.commit(entry).await
}

fn file_entry(path: &str, last_seq: i64) -> FileEntry {
    FileEntry {
        path: path.into(),
        rows: 1,
        bytes: 1,
        first_seq: last_seq,
        last_seq,
        sha256: String::new(),
    }
}

fn naming(mut entry: LogEntry, files: Vec<FileEntry>) -> LogEntry {
    let table = TableEntry {
        files,
        ..TableEntry::untouched(orders(), 1)
    };
    entry.tables = vec![table];
    entry
}

/// Fails or loses the first operations of one kind.
struct On(OperationKind, Fault, AtomicU32);

#[async_trait]
impl StoreHook for On {
    async fn before(&self, operation: &Operation) -> Fault {
        let left = || {
            self.2
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
        };
        if operation.kind == self.0 && left().is_ok() {
            self.1
        } else {
            Fault::None
        }
    }
}

fn faulty(store: &MemoryStore, kind: OperationKind, fault: Fault, times: u32) -> MemoryStore {
    store.with_hook(Arc::new(On(kind, fault, times.into())))
}

#[tokio::test]
async fn entries_have_the_format_of_the_interface() {
    let store = MemoryStore::new();
    let log = owner(&store, "w").await;
    let entry = naming(
        following(&log, 75).await,
        vec![file_entry("public/orders/x.parquet", 75)],
    );
    let receipt = log.commit(entry).await.unwrap();
    assert_eq!(
        (receipt.epoch(), receipt.generation(), receipt.through().seq),
        (2, 1, 75)
    );
    let text = &store.objects()["shop/_log/00000000000000000002.json"];
    let json: serde_json::Value = serde_json::from_slice(text).unwrap();
    for (pointer, expected) in [
        ("/format", serde_json::json!(1)),
        ("/epoch", serde_json::json!(2)),
        ("/generation", serde_json::json!(1)),
        ("/kind", serde_json::json!("append")),
        ("/after", serde_json::json!({"position": "p0", "seq": 0})),
        (
            "/through",
            serde_json::json!({"position": "p75", "seq": 75}),
        ),
        ("/tables/0/table", serde_json::json!("public.orders")),
        ("/tables/0/files/0/last_seq", serde_json::json!(75)),
    ] {
        assert_eq!(json.pointer(pointer), Some(&expected), "{pointer}");
    }
    let at = json["committed_at"].as_str().unwrap();
    assert!(
        at.len() == "2026-11-21T10:00:00.123456Z".len() && at.ends_with('Z'),
        "{at}"
    );
    assert!(json["agent"].as_str().unwrap().starts_with("caudal "));
    assert_eq!(log.read(2).await.unwrap().as_ref(), Some(receipt.entry()));
}

#[tokio::test]
async fn the_head_of_a_log_of_any_length_is_found_with_any_hint() {
    for length in [0_u64, 1, 2, 3, 7, 8, 9, 100] {
        let store = MemoryStore::new();
        if length > 0 {
            let log = owner(&store, "w").await;
            for _ in 1..length {
                let _ = commit_next(&log).await.unwrap();
            }
        }
        for hint in [
            None,
            Some(0),
            Some(1),
            Some(length / 2),
            Some(length),
            Some(length + 5),
        ] {
            let head = log(&store, "r").head(hint).await.unwrap();
            assert_eq!(head.map_or(0, |h| h.epoch), length, "hint {hint:?}");
        }
    }
}

struct Count(AtomicU32);

#[async_trait]
impl StoreHook for Count {
    async fn before(&self, _: &Operation) -> Fault {
        self.0.fetch_add(1, Ordering::SeqCst);
        Fault::None
    }
}

#[tokio::test]
async fn a_good_hint_finds_the_head_in_three_requests() {
    let store = MemoryStore::new();
    let owner = owner(&store, "w").await;
    for _ in 0..200 {
        let _ = commit_next(&owner).await.unwrap();
    }
    let count = Arc::new(Count(AtomicU32::new(0)));
    let log = CommitLog::new(Arc::new(store.with_hook(count.clone())), "shop");
    assert_eq!(log.head(Some(201)).await.unwrap().unwrap().epoch, 201);
    assert_eq!(count.0.swap(0, Ordering::SeqCst), 3);
    let log = CommitLog::new(Arc::new(store.with_hook(count.clone())), "shop");
    assert_eq!(log.head(None).await.unwrap().unwrap().epoch, 201);
    assert!(count.0.load(Ordering::SeqCst) < 25);
}

#[tokio::test]
async fn inv_2_an_entry_that_does_not_follow_the_head_is_refused() {
    let store = MemoryStore::new();
    let log = owner(&store, "w").await;
    let _ = commit_next(&log).await.unwrap();
    let good = following(&log, 5).await;
    let bad = [
        LogEntry {
            epoch: good.epoch + 1,
            ..good.clone()
        },
        LogEntry {
            after: point("p5", 4),
            ..good.clone()
        },
        LogEntry {
            after: point("p4", 5),
            ..good.clone()
        },
        LogEntry {
            through: point("p1", 1),
            ..good.clone()
        },
        LogEntry {
            generation: 7,
            ..good.clone()
        },
        LogEntry {
            kind: EntryKind::Merge,
            ..good.clone()
        },
        LogEntry {
            format: 2,
            ..good.clone()
        },
        LogEntry {
            writer: "other".into(),
            ..good.clone()
        },
        naming(good.clone(), vec![file_entry("x", 11)]),
    ];
    let before = store.objects();
    for entry in bad {
        let error = log.commit(entry).await.unwrap_err();
        assert_eq!(
            (error.class(), error.kind()),
            (Class::Fatal, Kind::Bug),
            "{error}"
        );
    }
    assert_eq!(store.objects(), before);
    let merge = LogEntry {
        kind: EntryKind::Merge,
        through: good.after.clone(),
        ..good
    };
    let _ = log.commit(merge).await.unwrap();
}

#[tokio::test]
async fn a_writer_that_took_no_generation_cannot_commit() {
    let store = MemoryStore::new();
    let entry = following(&owner(&store, "w").await, 1).await;
    let log = log(&store, "w");
    log.head(None).await.unwrap();
    assert_eq!(log.commit(entry).await.unwrap_err().kind(), Kind::Bug);
}

#[tokio::test]
async fn inv_8_a_newer_generation_stops_the_older_one_at_its_next_commit() {
    let store = MemoryStore::new();
    let first = owner(&store, "first").await;
    let _ = commit_next(&first).await.unwrap();
    let second = owner(&store, "second").await;
    let error = commit_next(&first).await.unwrap_err();
    assert_eq!((error.class(), error.kind()), (Class::Fatal, Kind::Fenced));
    assert!(error.message().contains("generation 2"), "{error}");
    // Also once the second has gone on.
    let receipt = commit_next(&second).await.unwrap();
    assert_eq!((receipt.epoch(), receipt.generation()), (4, 2));
    assert_eq!(commit_next(&first).await.unwrap_err().kind(), Kind::Fenced);
    let entries = log(&store, "r").read_range(1..=4).await.unwrap();
    assert_eq!(
        entries.iter().map(|e| e.generation).collect::<Vec<_>>(),
        [1, 1, 2, 2]
    );
}

#[tokio::test]
async fn inv_8_a_lost_reply_is_recognised() {
    let store = MemoryStore::new();
    // Of the fence; the store's own retry would see 412, here the caller's does.
    let lossy = faulty(&store, OperationKind::PutIfAbsent, Fault::LoseReply, 1);
    let log = CommitLog::new(Arc::new(lossy), "shop");
    assert!(
        log.fence(None, point("p0", 0), |_| Ok(Carried::default()))
            .await
            .is_err()
    );
    let head = log.head(None).await.unwrap();
    assert_eq!(head.as_ref().map(|h| h.epoch), Some(1));
    let fence = log
        .fence(head.as_ref(), point("p0", 0), |_| Ok(Carried::default()))
        .await
        .unwrap();
    assert_eq!((fence.epoch(), fence.generation()), (2, 2));

    // Of a commit: the same entry again stands; another one must look first.
    let lossy = faulty(&store, OperationKind::PutIfAbsent, Fault::LoseReply, 2);
    let log = CommitLog {
        store: Arc::new(lossy),
        ..log
    };
    let entry = following(&log, 3).await;
    let error = log.commit(entry.clone()).await.unwrap_err();
    assert_eq!(
        (error.class(), error.kind()),
        (Class::Retryable, Kind::Store)
    );
    assert!(log.commit(entry.clone()).await.is_err());
    for _ in 0..2 {
        let receipt = log.commit(entry.clone()).await.unwrap();
        assert!(seal::is_same(receipt.entry(), &entry));
    }
    assert_eq!(log.read_range(1..=3).await.unwrap().len(), 3);
}

#[tokio::test]
async fn inv_8_another_entry_after_a_lost_reply_sends_the_writer_back_to_the_head() {
    let store = MemoryStore::new();
    let log = owner(&store, "w").await;
    let lossy = faulty(&store, OperationKind::PutIfAbsent, Fault::LoseReply, 1);
    let log = CommitLog {
        store: Arc::new(lossy),
        ..log
    };
    assert!(commit_next(&log).await.is_err());
    let other = following(&log, 9).await;
    let error = log.commit(other).await.unwrap_err();
    assert_eq!(
        (error.class(), error.kind()),
        (Class::Retryable, Kind::Store)
    );
    assert_eq!(
        log.head(None).await.unwrap().unwrap().through,
        point("p5", 5)
    );
    assert_eq!(commit_next(&log).await.unwrap().epoch(), 3);
}

#[tokio::test]
async fn a_fence_that_comes_second_folds_what_came_first() {
    let store = MemoryStore::new();
    let first = owner(&store, "first").await;
    let stale = log(&store, "second").head(None).await.unwrap();
    let _ = commit_next(&first).await.unwrap();
    let _ = commit_next(&first).await.unwrap();
    let second = log(&store, "second");
    let mut seen = Vec::new();
    let fence = second
        .fence(stale.as_ref(), point("unused", 0), |newer| {
            seen.push(newer.iter().map(|e| e.epoch).collect::<Vec<_>>());
            Ok(Carried {
                server: Some("db1".to_owned()),
                state: Some(vec![TableProgress::pending(orders())]),
            })
        })
        .await
        .unwrap();
    assert_eq!(seen, [vec![], vec![2, 3]]);
    assert_eq!(
        (fence.epoch(), fence.generation(), fence.through()),
        (4, 2, &point("p10", 10))
    );
    let told = second.read(4).await.unwrap().unwrap();
    assert_eq!(told.state.unwrap().len(), 1);
    assert_eq!(told.server.unwrap(), "db1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_agents_that_start_together_each_gets_its_own_generation() {
    let store = MemoryStore::new();
    let agents = (0..16).map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            let log = owner(&store, &format!("w{i}")).await;
            let generation = log.state.lock().await.generation;
            (generation.unwrap(), commit_next(&log).await.is_ok())
        })
    });
    let mut generations = Vec::new();
    for agent in futures::future::join_all(agents).await {
        generations.push(agent.unwrap().0);
    }
    generations.sort_unstable();
    assert_eq!(generations, (1..=16).collect::<Vec<_>>());
    let head = log(&store, "r").head(None).await.unwrap().unwrap();
    assert_eq!(head.generation, 16);
    log(&store, "r").read_range(1..=head.epoch).await.unwrap();
}

#[tokio::test]
async fn a_damaged_log_is_refused_and_the_file_named() {
    let store = MemoryStore::new();
    let owner = owner(&store, "w").await;
    for _ in 0..6 {
        let _ = commit_next(&owner).await.unwrap();
    }
    let key = "shop/_log/00000000000000000004.json";
    let good = store.objects()[key].clone();
    let text = String::from_utf8(good.to_vec()).unwrap();
    let damage = [
        String::new(),
        "{".to_owned(),
        text.replace("\"format\":1", "\"format\":2"),
        text.replace("\"epoch\":4", "\"epoch\":5"),
        text.replace("append", "splice"),
        text.replace("\"position\":\"p10\"", "\"position\":\"p11\""),
        text.replace("\"generation\":1", "\"generation\":0"),
    ];
    for bad in damage {
        assert_ne!(bad, text);
        store.overwrite(key, bad.clone());
        let error = log(&store, "r").read_range(1..=7).await.unwrap_err();
        assert_eq!(
            (error.class(), error.kind()),
            (Class::Fatal, Kind::Corrupt),
            "{bad}"
        );
        assert!(error.to_string().contains(key), "{error}");
    }
    store.remove(key);
    for hint in [None, Some(2), Some(3), Some(5)] {
        let found = log(&store, "r").head(hint).await;
        // With a hint past the gap only a reader of the range meets it.
        if let Err(error) = &found {
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.to_string().contains(key), "{error}");
        } else {
            assert_eq!(found.unwrap().unwrap().epoch, 7);
        }
    }
    let error = log(&store, "r").head(Some(3)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let error = log(&store, "r").read_range(1..=7).await.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    store.overwrite(key, good);
    assert_eq!(log(&store, "r").read_range(1..=7).await.unwrap().len(), 7);
    store.overwrite("shop/_log/notes.txt", "x");
    assert_eq!(
        log(&store, "r").head(None).await.unwrap_err().kind(),
        Kind::Corrupt
    );
}

#[tokio::test]
async fn a_schema_version_never_changes() {
    let log = owner(&MemoryStore::new(), "w").await;
    let spec = |name: &str| ColumnSpec::new(name, "int4", LakeType::Int32);
    let v1 = TableSchema::first(orders(), 1, vec![spec("id")], vec!["id".into()]);
    assert_eq!(log.read_schema(&orders(), 1).await.unwrap(), None);
    log.put_schema(&v1).await.unwrap();
    log.put_schema(&v1).await.unwrap();
    // A replay may come to another number.
    log.put_schema(&TableSchema {
        since_seq: 9,
        ..v1.clone()
    })
    .await
    .unwrap();
    assert_eq!(
        log.read_schema(&orders(), 1).await.unwrap().as_ref(),
        Some(&v1)
    );
    let other = TableSchema::first(orders(), 1, vec![spec("id"), spec("b")], vec!["id".into()]);
    let error = log.put_schema(&other).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(
        error
            .to_string()
            .contains("public/orders/_schema/000001.json"),
        "{error}"
    );
    log.put_schema(&TableSchema {
        version: 2,
        ..other.clone()
    })
    .await
    .unwrap();
    assert_eq!(log.read_schemas(&orders()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn snapshot_progress_survives_the_log() {
    let log = owner(&MemoryStore::new(), "w").await;
    let mut entry = naming(following(&log, 5).await, vec![]);
    entry.tables[0].snapshot = Some(SnapshotEntry {
        chunks: vec![3, 4],
        done: false,
        copy: 1,
        base_seq: 2,
        base_position: Position::new("p0"),
        bounds: vec![caudal_model::Chunk {
            id: 3,
            after: Some(vec!["1".into()]),
            through: None,
        }],
        planned: 4,
        only: Some("id > 5".into()),
        mark: Some("10:20:".into()),
        live_at: None,
        live: false,
    });
    let receipt = log.commit(entry.clone()).await.unwrap();
    let read = log.read(receipt.epoch()).await.unwrap().unwrap();
    assert_eq!(&read, receipt.entry());
    assert!(seal::is_same(&read, &entry));
}

async fn put_file(store: &MemoryStore, epoch: u64, generation: u64, partition: &str) -> String {
    let name = FileId {
        epoch,
        generation,
        n: 0,
    }
    .file_name();
    let path = format!("public/orders/changes/{partition}/{name}");
    store.overwrite(&format!("shop/{path}"), "rows");
    path
}

#[tokio::test]
async fn files_of_a_dead_generation_go_and_committed_ones_stay() {
    let store = MemoryStore::new();
    let first = owner(&store, "first").await;
    let today = Partition::now_by_day();
    let today = today.as_str();
    let committed = put_file(&store, 2, 1, today).await;
    let entry = naming(following(&first, 5).await, vec![file_entry(&committed, 5)]);
    let _ = first.commit(entry).await.unwrap();
    // Begun in epoch 3 and still open in epoch 4: `staged_from` says so.
    let long = put_file(&store, 3, 1, today).await;
    let entry = LogEntry {
        staged_from: 3,
        ..following(&first, 5).await
    };
    let _ = first.commit(entry).await.unwrap();
    let hourly = put_file(&store, 4, 1, &format!("{today}/_hour=00")).await;
    let old = put_file(&store, 4, 1, "_date=2001-01-01").await;
    let mut upload = store
        .upload(&format!("shop/{hourly}x.parquet"))
        .await
        .unwrap();
    upload.write("x".into()).await.unwrap();
    let name = FileId {
        epoch: 4,
        generation: 1,
        n: 7,
    }
    .file_name();
    let dead_upload = format!("shop/public/orders/changes/{today}/{name}");
    drop(store.upload(&dead_upload).await.unwrap());

    // A second agent dies before it has looked; the third still finds them.
    let second = owner(&store, "second").await;
    let receipt = commit_next(&second).await.unwrap();
    assert_eq!(receipt.entry().staged_from, 3, "not forgotten");
    let dead_too = put_file(&store, 6, 2, today).await;
    let third = owner(&store, "third").await;
    let own = put_file(&store, 7, 3, today).await;
    let removed = third.remove_unreferenced().await.unwrap();
    assert_eq!(
        removed,
        Removed {
            files: 3,
            bytes: 12,
            uploads: 1
        }
    );
    let left = store.objects();
    let is_left = |path: &String| left.contains_key(&format!("shop/{path}"));
    assert!(
        [&long, &hourly, &dead_too].into_iter().all(|p| !is_left(p)),
        "{:?}",
        left.keys()
    );
    assert!(
        [&committed, &own, &old].into_iter().all(is_left),
        "{:?}",
        left.keys()
    );
    // Once is enough, and then it is forgotten.
    assert_eq!(
        third.remove_unreferenced().await.unwrap(),
        Removed::default()
    );
    assert_eq!(commit_next(&third).await.unwrap().entry().staged_from, 7);
}

#[tokio::test]
async fn a_failed_removal_is_done_again() {
    let store = MemoryStore::new();
    drop(owner(&store, "first").await);
    put_file(&store, 2, 1, Partition::now_by_day().as_str()).await;
    let second = owner(&store, "second").await;
    let failing = faulty(&store, OperationKind::Delete, Fault::Fail, 1);
    let second = CommitLog {
        store: Arc::new(failing),
        ..second
    };
    assert!(second.remove_unreferenced().await.is_err());
    assert_eq!(second.remove_unreferenced().await.unwrap().files, 1);
}

/// What `verify` says of the log alone.
async fn findings(store: &MemoryStore) -> Vec<String> {
    let mut found = Vec::new();
    let mut wrong = |w: Wrong| found.push(format!("{} {}", w.path, w.what));
    let log = log(store, "r");
    log.verify(Extent::None, &mut wrong, &mut |_| {})
        .await
        .unwrap();
    found
}

#[tokio::test]
async fn every_flipped_bit_of_the_log_is_noticed() {
    let store = MemoryStore::new();
    let log = owner(&store, "w").await;
    for _ in 0..2 {
        let _ = commit_next(&log).await.unwrap();
    }
    assert_eq!(findings(&store).await, Vec::<String>::new());
    for (key, whole) in store.objects() {
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.to_vec();
                bytes[at] ^= 1 << bit;
                store.overwrite(&key, bytes);
                let found = findings(&store).await;
                let path = key.strip_prefix("shop/").unwrap();
                assert!(
                    found.iter().any(|f| f.starts_with(path)),
                    "bit {bit} of byte {at} of {key}: {found:?}"
                );
            }
        }
        for cut in 0..whole.len() {
            store.overwrite(&key, whole.slice(..cut));
            assert!(!findings(&store).await.is_empty(), "{cut} bytes of {key}");
        }
        store.overwrite(&key, whole);
    }
    let second = log.layout().log_entry(2);
    store.remove(&second);
    assert!(findings(&store).await[0].ends_with("is missing"));
}

#[tokio::test]
async fn inv_8_a_rewind_stops_the_writer_before_it() {
    let store = MemoryStore::new();
    let first = owner(&store, "first").await;
    for _ in 0..3 {
        let _ = commit_next(&first).await.unwrap();
    }
    let other = log(&store, "other");
    let head = other.head(None).await.unwrap().unwrap();
    let target = other.read(2).await.unwrap().unwrap();
    let rewind = Rewind {
        to: 2,
        through: target.through.clone(),
        server: Some("db1".to_owned()),
        tables: Vec::new(),
        state: Vec::new(),
    };
    // Somebody was faster: what is dropped must be looked at again.
    let _ = commit_next(&first).await.unwrap();
    let lost = other.rewind(&head, rewind.clone()).await.unwrap();
    assert!(lost.is_none());
    let head = other.head(None).await.unwrap().unwrap();
    let receipt = other.rewind(&head, rewind.clone()).await.unwrap().unwrap();
    assert_eq!((receipt.epoch(), receipt.generation()), (6, 2));
    assert_eq!(*receipt.through(), target.through);
    let error = commit_next(&first).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Fenced);
    assert!(error.message().contains("rewound to commit 2"), "{error}");
    let last = owner(&store, "last").await;
    let receipt = commit_next(&last).await.unwrap();
    assert_eq!(receipt.entry().after, target.through);
    assert_eq!(receipt.entry().last_rewind, 6);
    assert_eq!(findings(&store).await, Vec::<String>::new());
}
