//! The files of a copy have the configured size however small its chunks are, and each
//! chunk is in one of them.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use std::collections::BTreeMap;

on_every_source!(are_large_though_chunks_are_small);

const MIB: u64 = 1 << 20;

async fn are_large_though_chunks_are_small(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    // Text that does not compress: hexadecimal digests halve at most.
    t.source
        .fill("items", 1, 40_000, |i| {
            let digest = |n: u64| {
                format!(
                    "{:016x}",
                    (i as u64 + n)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .rotate_left(n as u32)
                )
            };
            let text: String = (0..16).map(|n| digest(n * 7919)).collect();
            format!("({i}, '{text}')")
        })
        .await?;
    let mut agent = t.agent()?;
    agent
        .config
        .set("snapshot.chunk_rows", 200)
        .set("snapshot.workers", 3)
        .set("sink.target_file_size", "1MiB")
        .set("commit.memory", "64MiB")
        .set("commit.max_delay", "60s");
    agent.run_until_caught_up().await?;
    t.expect_equal(&["items"]).await?;

    let table = t.source.table("items");
    let mut sizes = Vec::new();
    let mut chunks: BTreeMap<u64, u32> = BTreeMap::new();
    for entry in t.log_entries()? {
        for part in entry["tables"].as_array().into_iter().flatten() {
            if part["table"] != table.as_str() {
                continue;
            }
            let ids = part["snapshot"]["chunks"].as_array();
            for id in ids.into_iter().flatten() {
                *chunks.entry(id.as_u64().unwrap_or(0)).or_default() += 1;
            }
            let files = part["files"].as_array().into_iter().flatten();
            sizes.extend(files.filter_map(|f| f["bytes"].as_u64()));
        }
    }
    sizes.sort_unstable();
    assert_eq!(
        chunks.keys().copied().collect::<Vec<_>>(),
        (1..=chunks.len() as u64).collect::<Vec<_>>()
    );
    assert!(
        chunks.len() >= 200 && chunks.values().all(|n| *n == 1),
        "{chunks:?}"
    );
    // The last of all may be small, and each of the others holds a row group too much at most.
    let small = sizes.iter().filter(|b| **b < MIB).count();
    assert!(small <= 1, "{sizes:?}");
    assert!(sizes.len() >= 2, "{sizes:?}");
    Ok(())
}
