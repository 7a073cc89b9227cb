//! The oracle is worth something only if it sees what is wrong: a row, a cell, a file, a commit.

use crate::load;
use crate::trial::{Trial, on_every_source};
use caudal_tests::{Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

on_every_source!(differences_and_damage);

async fn differences_and_damage(t: &Trial) -> Result<()> {
    load::prepare(&t.source, 300).await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    t.expect_equal(&load::TABLES).await?;

    // The source goes on without the agent.
    t.source
        .exec(
            "update accounts set rate = -0.0 where id = 1; update accounts set note = 'Note 2' where id = 2;
             update accounts set payload = null where id = 3; delete from accounts where id = 4;
             insert into accounts (id) values (9999); update accounts set balance = 5.5001 where id = 5;
             update accounts set changed = '2026-01-01 00:00:00.123457' where id = 6",
        )
        .await?;
    t.source
        .exec("insert into visits values (3, 'first')")
        .await?;
    let Err(found) = t.expect_equal(&load::TABLES).await else {
        bail!("the oracle calls a different source equal");
    };
    let found = found.to_string();
    for wanted in [
        "key ('1') column rate",
        "key ('2') column note",
        "key ('3') column payload",
        "key ('4'): only in the lake",
        "key ('9999'): only at the source",
        "key ('5') column balance",
        "key ('6') column changed",
        "row ('3', 'first'): 1 more at the source",
    ] {
        assert!(found.contains(wanted), "not seen: {wanted}\n{found}");
    }
    assert!(
        found.contains("(9 problems)"),
        "more than was changed: {found}"
    );

    // Once caught up, it is equal again; from here on the lake is damaged.
    agent.run_until_caught_up().await?;
    t.expect_equal(&load::TABLES).await?;
    let lake = t.lake().join(&t.stream);
    let file = first_file(&lake, "parquet")?;
    let whole = fs::read(&file)?;
    let mut longer = whole.clone();
    longer.splice(4..4, [0u8; 3]);
    expect_problem(t, &file, &longer, "bytes, not").await?;
    fs::write(&file, &whole)?;
    fs::write(
        file.with_file_name("00000000000000000099-0001-00.parquet"),
        b"PAR1",
    )?;
    assert_eq!(t.oracle()?.inspect().await?.unreferenced.len(), 1);

    let entries = t.log_entries()?;
    let entry = lake.join("_log").join(format!("{:020}.json", 2));
    let text = fs::read(&entry)?;
    let mut changed = entries[1].clone();
    changed["after"]["seq"] = 77.into();
    expect_problem(
        t,
        &entry,
        &serde_json::to_vec(&changed)?,
        "but the one before reaches",
    )
    .await?;
    fs::remove_file(&entry)?;
    let gap = t.oracle()?.inspect().await?.problems.join("\n");
    assert!(gap.contains("a gap"), "{gap}");
    fs::write(&entry, text)?;
    Ok(())
}

/// Replaces a file for one look of the oracle.
async fn expect_problem(t: &Trial, file: &Path, bytes: &[u8], wanted: &str) -> Result<()> {
    let before = fs::read(file)?;
    fs::write(file, bytes)?;
    // The oracle may refuse to read it at all, which is as good.
    let seen = match t.oracle()?.inspect().await {
        Ok(report) => report.problems.join("\n"),
        Err(failure) => failure.to_string(),
    };
    fs::write(file, before)?;
    if !seen.contains(wanted) && !seen.contains("Invalid") {
        bail!("not seen: {wanted}\n{seen}");
    }
    Ok(())
}

fn first_file(dir: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    match found.into_iter().next() {
        Some(file) => Ok(file),
        None => bail!("no {extension} file below the lake"),
    }
}
