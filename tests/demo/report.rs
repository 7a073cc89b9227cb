//! What is printed at the end, from what others than the agents say.

use crate::follow::Landed;
use crate::note;
use crate::tpch;
use crate::workload::Operations;
use caudal_tests::{Context, Oracle, Result, Source, bail, oracle, venv};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const READER: &str = include_str!("landed.py");

/// What DuckDB counted in the lake.
#[derive(Deserialize)]
struct Counted {
    commits: BTreeMap<String, u64>,
    tables: BTreeMap<String, Table>,
    position: String,
    /// Seconds from commit to commit: the median and the longest.
    lag: Option<(f64, f64)>,
}

#[derive(Deserialize)]
struct Table {
    /// By `_op`.
    counts: BTreeMap<String, u64>,
    files: u64,
    bytes: u64,
}

impl Table {
    fn count(&self, op: &str) -> u64 {
        self.counts.get(op).copied().unwrap_or(0)
    }
}

fn read(stream_dir: &Path, options: &[&str]) -> Result<String> {
    let python = venv::python("oracle", oracle::PACKAGES)?;
    let output = Command::new(python)
        .args(["-c", READER])
        .arg(stream_dir)
        .args(options)
        .output()
        .context("cannot run python")?;
    if !output.status.success() {
        bail!(
            "reading the lake: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn with_commas(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// Tables, rows, changes, commits, lag and bytes of one source.
pub fn landed(one: &Landed) -> Result<bool> {
    let counted: Counted = serde_json::from_str(&read(&one.stream_dir(), &[])?)?;
    note(&format!("\x1b[1m{}\x1b[0m  {}", one.name, one.url));
    note(&format!(
        "{:12} {:>12} {:>9} {:>9} {:>9} {:>7} {:>12}",
        "table", "copied", "inserts", "updates", "deletes", "files", "bytes"
    ));
    let mut as_done = true;
    let mut sums = [0; 6];
    for (name, table) in &counted.tables {
        let short = name.rsplit('.').next().unwrap_or(name);
        let numbers = [
            table.count("r"),
            table.count("c"),
            table.count("u"),
            table.count("d"),
            table.files,
            table.bytes,
        ];
        for (sum, n) in sums.iter_mut().zip(numbers) {
            *sum += n;
        }
        print_row(short, &numbers);
        let expected = one.done.tables.get(short).copied().unwrap_or_default();
        let arrived = Operations {
            inserts: numbers[1],
            updates: numbers[2],
            deletes: numbers[3],
        };
        if arrived != expected {
            as_done = false;
            note(&format!("  DIFFERS: what was done is {expected:?}"));
        }
    }
    print_row("all", &sums);
    let commits: Vec<String> = counted
        .commits
        .iter()
        .map(|(k, n)| format!("{n} {k}"))
        .collect();
    let rows: u64 = one.loaded.iter().map(|(_, n)| n).sum();
    note(&format!(
        "{} transactions ({} more rolled back) changed {} rows; {}",
        with_commas(one.done.committed),
        with_commas(one.done.rolled_back),
        with_commas(one.done.rows()),
        if as_done {
            "each arrived once, none twice"
        } else {
            "NOT WHAT ARRIVED"
        },
    ));
    note(&format!(
        "copied {} rows in {:.1} s; {} commits; lag from source to lake {}; through {}",
        with_commas(rows),
        one.snapshot.as_secs_f64(),
        commits.join(", "),
        lag(counted.lag),
        counted.position
    ));
    println!();
    Ok(as_done)
}

fn print_row(name: &str, n: &[u64; 6]) {
    let [copied, inserts, updates, deletes, files, bytes] = n.map(with_commas);
    note(&format!(
        "{name:12} {copied:>12} {inserts:>9} {updates:>9} {deletes:>9} {files:>7} {bytes:>12}"
    ));
}

fn lag(seconds: Option<(f64, f64)>) -> String {
    match seconds {
        Some((median, longest)) => format!("{median:.1} s median, {longest:.1} s at most"),
        None => "no change".to_owned(),
    }
}

/// Prints the result of a query over the lake.
pub fn query(stream_dir: &Path) -> Result<()> {
    for line in read(stream_dir, &["--query"])?.lines() {
        note(line);
    }
    Ok(())
}

/// Compares every table of the lake, folded, with the source as it is now; whether all are equal.
pub async fn compare(source: &Source, one: &Landed, scratch: &Path) -> Result<bool> {
    let scratch = scratch.join(format!("{}-exports", one.stream));
    std::fs::create_dir_all(&scratch)?;
    let mut exports = Vec::new();
    for table in &tpch::TABLES {
        let file = scratch.join(format!("{}.csv", table.name));
        source.export(table.name, &[], &file).await?;
        exports.push((source.table(table.name), file));
    }
    let found = Oracle::new(&one.lake, one.stream)?
        .compare(&exports)
        .await?;
    std::fs::remove_dir_all(&scratch)?;
    note(&format!("\x1b[1m{}\x1b[0m", one.name));
    note(&format!(
        "{:12} {:>14} {:>14}",
        "table", "rows at source", "rows in lake"
    ));
    for table in &tpch::TABLES {
        let at_source = source
            .scalar(&format!("select count(*) from {}", table.name))
            .await?;
        let full = source.table(table.name);
        let differs = found.problems.iter().any(|p| p.contains(&full));
        note(&format!(
            "{:12} {:>14} {:>14}  {}",
            table.name,
            with_commas(at_source.parse()?),
            with_commas(found.table(&full).rows),
            if differs {
                "DIFFERS"
            } else {
                "equal, every value"
            },
        ));
    }
    for problem in &found.problems {
        note(&format!("  {problem}"));
    }
    println!();
    Ok(found.problems.is_empty())
}
