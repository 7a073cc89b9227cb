//! Every damage to the log or to a file that it names is noticed, and the file is named.

use crate::trial::{Trial, on_every_source};
use caudal_tests::{Agent, Result, S3Server, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::path::PathBuf;

on_every_source!(in_a_directory, in_a_bucket);

const DAMAGES: u64 = 12;

async fn in_a_directory(t: &Trial) -> Result<()> {
    let agent = t.agent()?;
    fill(t, &agent).await?;
    let root = t.lake().join(&t.stream);
    let files = fs::read_dir(root.join("_log"))?.map(|e| Ok(e?.path()));
    let log: Vec<PathBuf> = files.collect::<Result<_>>()?;
    let mut changes = Vec::new();
    for entry in t.log_entries()? {
        for table in entry["tables"].as_array().into_iter().flatten() {
            let files = table["files"].as_array().into_iter().flatten();
            changes.extend(files.filter_map(|f| Some(root.join(f["path"].as_str()?))));
        }
    }
    for (kind, paths) in [("log", log), ("change", changes)] {
        for seed in 0..DAMAGES {
            let path = &paths[seed as usize % paths.len()];
            let whole = fs::read(path)?;
            let damaged = damage(&whole, seed);
            match &damaged {
                Some(bytes) => fs::write(path, bytes)?,
                None => fs::remove_file(path)?,
            }
            let name = path.strip_prefix(&root)?.display().to_string();
            // The end of the log may go: then the log is shorter, and nothing tells.
            if damaged.is_some() || kind == "change" {
                expect_named(&agent, &name, &format!("{kind}, seed {seed}")).await?;
            }
            fs::write(path, whole)?;
        }
    }
    agent.run(&["verify", "--log"]).await?.expect(0)?;
    Ok(())
}

async fn in_a_bucket(t: &Trial) -> Result<()> {
    let s3 = S3Server::start(&["lake"])?;
    let mut agent = t.agent()?;
    s3.configure(&mut agent.config, "lake", "raw");
    fill(t, &agent).await?;
    let root = format!("raw/{}/", t.stream);
    let keys = s3.keys("lake", &root);
    let keys = keys
        .iter()
        .filter(|k| k.contains("/_log/") || k.ends_with(".parquet"));
    let keys: Vec<&String> = keys.collect();
    for seed in 0..DAMAGES {
        let key = keys[seed as usize * 5 % keys.len()];
        let Some(whole) = s3.object("lake", key) else {
            bail!("{key} is gone")
        };
        let Some(damaged) = damage(&whole, seed + 1) else {
            continue;
        };
        s3.damage("lake", key, damaged);
        let name = key.trim_start_matches(&root);
        expect_named(&agent, name, &format!("seed {seed}")).await?;
        s3.damage("lake", key, whole);
    }
    agent.run(&["verify", "--log"]).await?.expect(0)?;
    Ok(())
}

/// A copy and some commits after it.
async fn fill(t: &Trial, agent: &Agent) -> Result<()> {
    t.source
        .exec("create table items (id {int8} primary key, name {text})")
        .await?;
    t.source
        .fill("items", 1, 500, |i| format!("({i}, 'a')"))
        .await?;
    agent.run_until_caught_up().await?;
    for round in 0..2 {
        let sql = format!("update items set name = 'b{round}' where id % 3 = {round}");
        t.source.exec(&sql).await?;
        agent.run_until_caught_up().await?;
    }
    agent.run(&["verify", "--log"]).await?.expect(0)?;
    Ok(())
}

/// A bit flipped, the end cut off, or nothing left.
fn damage(whole: &[u8], seed: u64) -> Option<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bytes = whole.to_vec();
    let at = random.random_range(0..bytes.len());
    match seed % 6 {
        4 => bytes.truncate(at),
        5 => return None,
        _ => bytes[at] ^= 1 << random.random_range(0..8),
    }
    Some(bytes)
}

async fn expect_named(agent: &Agent, name: &str, what: &str) -> Result<()> {
    let outcome = agent.run(&["verify", "--log", "--json"]).await?.expect(1)?;
    let found: serde_json::Value = serde_json::from_str(&outcome.stdout)?;
    let findings = found["findings"].as_array().into_iter().flatten();
    let named = findings.filter(|f| f["path"] == name).count();
    if named == 0 {
        bail!("{name} ({what}) is not named:\n{}", outcome.stdout);
    }
    Ok(())
}
