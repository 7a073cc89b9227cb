//! What every [`Store`] must do, as one suite of tests that an implementor calls.
//!
//! Panics where a store breaks a rule. Needs a multi-threaded runtime to mean much.

use super::{PutOutcome, Store};
use bytes::Bytes;
use caudal_model::Result;
use std::sync::Arc;

/// Runs every rule, each on an empty store that `make` gives.
pub async fn conformance(make: impl AsyncFn() -> Arc<dyn Store>) {
    one_creator_wins(make().await).await;
    an_object_is_read_back_whole(make().await).await;
    an_unfinished_upload_does_not_exist(make().await).await;
    a_finished_upload_replaces(make().await).await;
    uploads_of_any_length_arrive(make().await).await;
    a_failed_name_leaves_others_alone(make().await).await;
    listings_are_ordered_and_bounded(make().await).await;
    directories_are_listed(make().await).await;
    missing_objects_are_deleted_without_error(make().await).await;
    dead_uploads_are_aborted(make().await).await;
}

#[track_caller]
fn ok<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("the store failed: {e:?}"),
    }
}

async fn keys(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    ok(store.list(prefix, after, limit).await)
        .into_iter()
        .map(|o| o.key)
        .collect()
}

async fn put(store: &dyn Store, key: &str, bytes: impl Into<Bytes>) {
    assert_eq!(
        ok(store.put_if_absent(key, bytes.into()).await),
        PutOutcome::Created,
        "{key}"
    );
}

async fn upload(store: &dyn Store, key: &str, chunks: &[Bytes]) {
    let mut upload = ok(store.upload(key).await);
    for chunk in chunks {
        ok(upload.write(chunk.clone()).await);
    }
    ok(upload.finish().await);
}

/// A pattern that shows a chunk left out, doubled or moved.
fn pattern(seed: u32, bytes: usize) -> Bytes {
    let words = (0..bytes.div_ceil(4) as u32)
        .flat_map(|i| (i ^ seed).wrapping_mul(0x9E37_79B1).to_le_bytes());
    words.take(bytes).collect::<Vec<u8>>().into()
}

async fn one_creator_wins(store: Arc<dyn Store>) {
    for round in 0..8 {
        let key = format!("_log/{round:020}.json");
        let racers = (0..16).map(|i| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                let body = Bytes::from(format!("racer {i}").repeat(200));
                (i, ok(store.put_if_absent(&key, body).await))
            })
        });
        let mut winners = Vec::new();
        for racer in futures::future::join_all(racers).await {
            match racer {
                Ok((i, PutOutcome::Created)) => winners.push(i),
                Ok((_, PutOutcome::Exists)) => {}
                Err(e) => panic!("a racer ended abnormally: {e}"),
            }
        }
        assert_eq!(winners.len(), 1, "exactly one creator wins: {winners:?}");
        let body = ok(store.get(&key).await);
        let expected = format!("racer {}", winners[0]).repeat(200);
        assert_eq!(
            body.as_deref(),
            Some(expected.as_bytes()),
            "the winner's bytes are there"
        );
    }
}

async fn an_object_is_read_back_whole(store: Arc<dyn Store>) {
    let names = [
        "plain",
        "a b/c d",
        "100%/50%25/%2F",
        "zażółć/日本語/🦀",
        "a+b&c=d/'quoted\"/x,y;z",
        "x/_date=2026-11-21/00000000000000000042-0001-00.parquet",
    ];
    for (i, key) in names.iter().enumerate() {
        assert_eq!(ok(store.get(key).await), None, "{key}");
        put(&*store, key, pattern(i as u32, 1000)).await;
        let again = ok(store.put_if_absent(key, Bytes::from_static(b"other")).await);
        assert_eq!(again, PutOutcome::Exists, "{key}");
        assert_eq!(
            ok(store.get(key).await),
            Some(pattern(i as u32, 1000)),
            "{key}"
        );
    }
    put(&*store, "empty", Bytes::new()).await;
    assert_eq!(ok(store.get("empty").await), Some(Bytes::new()));
    let whole = pattern(0, 1000);
    for (offset, length) in [(0, 10), (10, 5000), (990, 10), (999, 7), (0, 1000), (5, 0)] {
        let end = (offset + length).min(1000);
        assert_eq!(
            ok(store.get_part("plain", offset as u64, length as u64).await),
            Some(whole.slice(offset..end)),
            "{length} bytes from {offset}"
        );
    }
    assert_eq!(ok(store.get_part("nothing here", 0, 10).await), None);
    let mut sorted = names.map(str::to_owned).to_vec();
    sorted.push("empty".to_owned());
    sorted.sort_unstable();
    assert_eq!(keys(&*store, "", None, 100).await, sorted);
    // A directory is not an object.
    assert_eq!(ok(store.get("a b").await), None);
}

async fn an_unfinished_upload_does_not_exist(store: Arc<dyn Store>) {
    let mut open = ok(store.upload("t/x").await);
    ok(open.write(pattern(1, 100)).await);
    let mut large = ok(store.upload("t/y").await);
    ok(large.write(pattern(2, 20 << 20)).await);
    for key in ["t/x", "t/y"] {
        assert_eq!(ok(store.get(key).await), None);
    }
    assert!(keys(&*store, "", None, 10).await.is_empty());
    assert!(ok(store.list_dirs("").await).is_empty());
    ok(open.finish().await);
    ok(large.abort().await);
    assert_eq!(keys(&*store, "", None, 10).await, ["t/x"]);
    // Dropped: never an object, whatever it leaves.
    let mut dropped = ok(store.upload("t/z").await);
    ok(dropped.write(pattern(3, 9 << 20)).await);
    drop(dropped);
    assert_eq!(keys(&*store, "", None, 10).await, ["t/x"]);
}

async fn a_finished_upload_replaces(store: Arc<dyn Store>) {
    upload(&*store, "k", &[pattern(1, 5000)]).await;
    let mut second = ok(store.upload("k").await);
    ok(second.write(pattern(2, 10)).await);
    assert_eq!(ok(store.get("k").await), Some(pattern(1, 5000)));
    ok(second.finish().await);
    assert_eq!(ok(store.get("k").await), Some(pattern(2, 10)));
    assert_eq!(
        ok(store.put_if_absent("k", Bytes::new()).await),
        PutOutcome::Exists
    );
}

async fn uploads_of_any_length_arrive(store: Arc<dyn Store>) {
    upload(&*store, "nothing", &[]).await;
    assert_eq!(ok(store.get("nothing").await), Some(Bytes::new()));
    let lengths: [&[usize]; 5] = [
        &[1],
        &[0, 5, 0],
        &[8 << 20],
        &[(8 << 20) - 1, 2, 8 << 20],
        &[33 << 20, 7],
    ];
    for (i, lengths) in lengths.iter().enumerate() {
        let key = format!("large/{i}");
        let chunks: Vec<Bytes> = lengths
            .iter()
            .enumerate()
            .map(|(n, l)| pattern(n as u32, *l))
            .collect();
        upload(&*store, &key, &chunks).await;
        let whole = chunks.concat();
        let read = ok(store.get(&key).await).unwrap_or_default();
        assert!(
            read == whole,
            "{key}: {} of {} bytes, or others",
            read.len(),
            whole.len()
        );
        let listed = ok(store.list(&key, None, 1).await);
        assert_eq!(listed.first().map(|o| o.bytes), Some(whole.len() as u64));
    }
    // A file of many small writes.
    let chunks: Vec<Bytes> = (0..300).map(|i| pattern(i, 70_001)).collect();
    upload(&*store, "many", &chunks).await;
    assert!(ok(store.get("many").await).unwrap_or_default() == chunks.concat());
}

async fn a_failed_name_leaves_others_alone(store: Arc<dyn Store>) {
    let mut a = ok(store.upload("same").await);
    let mut b = ok(store.upload("same").await);
    ok(a.write(pattern(1, 100)).await);
    ok(b.write(pattern(2, 100)).await);
    ok(a.abort().await);
    ok(b.finish().await);
    assert_eq!(ok(store.get("same").await), Some(pattern(2, 100)));
}

async fn listings_are_ordered_and_bounded(store: Arc<dyn Store>) {
    let mut all: Vec<String> = (0..25).map(|i| format!("s/_log/{i:020}.json")).collect();
    // `-` and `.` sort before `/`, digits after it.
    all.extend(["s-1", "s.x", "s/a", "s/a-b/c", "s/a/b", "s0"].map(str::to_owned));
    all.retain(|k| k != "s/a");
    for key in &all {
        put(&*store, key, "x").await;
    }
    all.sort_unstable();
    assert_eq!(keys(&*store, "", None, 1000).await, all);
    assert_eq!(keys(&*store, "s/", None, 1000).await.len(), all.len() - 3);
    assert_eq!(
        keys(&*store, "s/_log/", None, 3).await,
        all_of(&all, "s/_log/", 0, 3)
    );
    let after = format!("s/_log/{:020}.json", 6);
    assert_eq!(
        keys(&*store, "s/_log/", Some(&after), 4).await,
        all_of(&all, "s/_log/", 7, 4)
    );
    // Between two keys, before the prefix, after everything below it.
    let between = format!("s/_log/{:020}", 6);
    assert_eq!(
        keys(&*store, "s/_log/", Some(&between), 1).await,
        all_of(&all, "s/_log/", 6, 1)
    );
    assert_eq!(
        keys(&*store, "s/_log/", Some("a"), 1).await,
        all_of(&all, "s/_log/", 0, 1)
    );
    assert!(
        keys(&*store, "s/_log/", Some("s/_log/9"), 10)
            .await
            .is_empty()
    );
    assert!(keys(&*store, "s/_log/", Some("t"), 10).await.is_empty());
    assert!(keys(&*store, "nothing/", None, 10).await.is_empty());
    // A prefix need not end at a slash.
    assert_eq!(keys(&*store, "s/a", None, 10).await, ["s/a-b/c", "s/a/b"]);
    assert_eq!(
        keys(&*store, "", Some("s/a"), 10).await,
        ["s/a-b/c", "s/a/b", "s0"]
    );
    assert_eq!(keys(&*store, "", Some("s/a/b"), 10).await, ["s0"]);
}

fn all_of(all: &[String], prefix: &str, skip: usize, take: usize) -> Vec<String> {
    all.iter()
        .filter(|k| k.starts_with(prefix))
        .skip(skip)
        .take(take)
        .cloned()
        .collect()
}

async fn directories_are_listed(store: Arc<dyn Store>) {
    for key in [
        "s/b/1",
        "s/b/2/x",
        "s/a-b/1",
        "s/a/1",
        "s/d e/ü/1",
        "s/file",
        "sx/no/1",
    ] {
        put(&*store, key, "x").await;
    }
    assert_eq!(ok(store.list_dirs("s/").await), ["a", "a-b", "b", "d e"]);
    assert_eq!(ok(store.list_dirs("").await), ["s", "sx"]);
    assert_eq!(ok(store.list_dirs("s/d e/").await), ["ü"]);
    assert!(ok(store.list_dirs("s/none/").await).is_empty());
    // A directory is its objects: it ends with the last one.
    ok(store
        .delete(&["s/a/1".to_owned(), "s/d e/ü/1".to_owned()])
        .await);
    assert_eq!(ok(store.list_dirs("s/").await), ["a-b", "b"]);
}

async fn missing_objects_are_deleted_without_error(store: Arc<dyn Store>) {
    put(&*store, "a/1", "x").await;
    put(&*store, "a/2 ü", "x").await;
    let gone = ["a/1", "a/none", "none/at/all", "a/2 ü"].map(str::to_owned);
    ok(store.delete(&gone).await);
    ok(store.delete(&gone).await);
    ok(store.delete(&[]).await);
    assert!(keys(&*store, "", None, 10).await.is_empty());
    // The name is free again.
    put(&*store, "a/1", "y").await;
}

async fn dead_uploads_are_aborted(store: Arc<dyn Store>) {
    let mut uploads = Vec::new();
    for key in ["s/dead 1", "s/live", "other/dead 2"] {
        let mut upload = ok(store.upload(key).await);
        // Enough that a store which defers the start has begun.
        ok(upload.write(pattern(1, 17 << 20)).await);
        uploads.push(upload);
    }
    let dead = |key: &str| key.contains("dead");
    assert_eq!(ok(store.abort_uploads("s/", &dead).await), 1);
    assert_eq!(ok(store.abort_uploads("s/", &dead).await), 0);
    let mut finished = Vec::new();
    for upload in uploads {
        finished.push(upload.finish().await.is_ok());
    }
    assert_eq!(
        finished,
        [false, true, true],
        "an aborted upload cannot finish"
    );
    assert_eq!(
        keys(&*store, "", None, 10).await,
        ["other/dead 2", "s/live"]
    );
}
