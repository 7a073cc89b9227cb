//! The state directory is a cache (INV-1): without it, or with a damaged one, the agent
//! goes on from the lake's log.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;

on_every_source!(goes_on_from_the_log);

async fn goes_on_from_the_log(t: &Trial) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 2_000, |i| format!("({i}, 'a')"))
        .await?;
    let mut agent = t.agent()?;
    agent.config.set("snapshot.chunk_rows", 300);
    agent.run_until_caught_up().await?;
    for (round, damage) in ["gone", "damaged"].into_iter().enumerate() {
        let first = 10_000 * (round as i64 + 1);
        t.source
            .fill("items", first, 500, |i| format!("({i}, 'b')"))
            .await?;
        if damage == "gone" {
            std::fs::remove_dir_all(agent.state_dir())?;
        } else {
            let damaged = damage_files(&agent.state_dir())?;
            assert!(damaged > 0, "the state directory holds no database");
        }
        agent.run_until_caught_up().await?;
        let report = t.expect_equal(&["items"]).await?;
        let items = t.source.table("items");
        assert_eq!(report.count(&items, "r"), 2_000, "{damage}: copied again");
        assert_eq!(
            report.count(&items, "c"),
            500 * (round as u64 + 1),
            "{damage}"
        );
    }
    Ok(())
}

/// Overwrites every manifest and CURRENT file below `dir`.
fn damage_files(dir: &std::path::Path) -> Result<u32> {
    let mut damaged = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            damaged += damage_files(&path)?;
        } else if path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n == "CURRENT" || n.starts_with("MANIFEST"))
        {
            std::fs::write(&path, b"not what it was")?;
            damaged += 1;
        }
    }
    Ok(damaged)
}
