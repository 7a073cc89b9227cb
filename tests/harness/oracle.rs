//! The oracle: reads the lake and says whether it equals the source, with none of
//! caudal's own code.
//!
//! `oracle.py` (PyArrow and DuckDB, in an environment of its own) reads the commit
//! log and the Parquet files, checks the log's invariants, folds the changes and
//! compares the result with CSV exports of the source's tables.

use crate::source::Source;
use crate::{Context, Result, bail, venv};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::process::Command;

const SCRIPT: &str = include_str!("oracle.py");
/// What the Python environment `oracle` has.
pub const PACKAGES: &[&str] = &["duckdb", "pyarrow", "numpy"];

/// What the oracle found about one table.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct TableReport {
    /// Rows in change files, by `_op`.
    #[serde(default)]
    pub ops: BTreeMap<String, u64>,
    /// Rows after folding.
    #[serde(default)]
    pub rows: u64,
    /// Change files that are committed.
    #[serde(default)]
    pub files: u64,
    /// The newest schema version.
    #[serde(default)]
    pub schema_version: u64,
    /// Whether the last copy of the table is complete.
    #[serde(default)]
    pub snapshot_done: bool,
    /// Whether an entry says that the table is live.
    #[serde(default)]
    pub live: bool,
    /// Lake types by column, from the newest schema version.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
}

/// What the oracle found.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Report {
    /// Everything that is wrong: broken invariants and differences, each a sentence.
    pub problems: Vec<String>,
    /// Files under `changes/` that no entry names; allowed, but worth a look.
    #[serde(default)]
    pub unreferenced: Vec<String>,
    /// Entries of the log.
    pub epochs: u64,
    /// Entries that append.
    #[serde(default)]
    pub appends: u64,
    /// The last generation.
    pub generation: u64,
    /// The last `_seq`.
    #[serde(default)]
    pub seq: i64,
    /// The position of the head.
    #[serde(default)]
    pub position: String,
    /// By table.
    pub tables: BTreeMap<String, TableReport>,
}

impl Report {
    /// The report of a table, or an empty one.
    pub fn table(&self, name: &str) -> TableReport {
        self.tables.get(name).cloned().unwrap_or_default()
    }

    /// Rows of an `_op` in a table's change files.
    pub fn count(&self, table: &str, op: &str) -> u64 {
        self.table(table).ops.get(op).copied().unwrap_or_default()
    }
}

/// Reads one stream's lake in a directory.
#[derive(Debug, Clone)]
pub struct Oracle {
    python: PathBuf,
    lake: PathBuf,
}

impl Oracle {
    /// An oracle of `<lake>/<stream>`; `lake` is a `file://` sink's path or a dump of a bucket.
    pub fn new(lake: &Path, stream: &str) -> Result<Oracle> {
        Ok(Oracle {
            python: venv::python("oracle", PACKAGES)?,
            lake: lake.join(stream),
        })
    }

    /// Checks the log alone.
    pub async fn inspect(&self) -> Result<Report> {
        self.run(&[]).await
    }

    /// Checks the log, and that each table in the lake equals its export:
    /// `(schema.table, CSV file)`.
    pub async fn compare(&self, exports: &[(String, PathBuf)]) -> Result<Report> {
        self.run(exports).await
    }

    /// [`Self::compare`] with these tables of a source as they are now; fails with
    /// every problem found. Exports go to `scratch`.
    pub async fn expect_equal(
        &self,
        source: &Source,
        tables: &[&str],
        scratch: &Path,
    ) -> Result<Report> {
        let same: Vec<(&str, &str)> = tables.iter().map(|t| (*t, *t)).collect();
        self.expect_equal_to(source, &same, scratch).await
    }

    /// The same with tables that shall equal a view of the source: `(table, view)`.
    pub async fn expect_equal_to(
        &self,
        source: &Source,
        tables: &[(&str, &str)],
        scratch: &Path,
    ) -> Result<Report> {
        let mut exports = Vec::new();
        for (table, view) in tables {
            let file = scratch.join(format!("{table}.csv"));
            source.export(view, &[], &file).await?;
            exports.push((source.table(table), file));
        }
        let report = self.compare(&exports).await?;
        if !report.problems.is_empty() {
            bail!(
                "the lake differs from {} ({} problems):\n  {}",
                source.version(),
                report.problems.len(),
                report.problems.join("\n  ")
            );
        }
        Ok(report)
    }

    async fn run(&self, exports: &[(String, PathBuf)]) -> Result<Report> {
        let mut command = Command::new(&self.python);
        command.arg("-c").arg(SCRIPT).arg(&self.lake);
        for (table, file) in exports {
            command.arg(format!("{table}={}", file.display()));
        }
        let output = command.output().await.context("cannot run the oracle")?;
        if !output.status.success() {
            bail!(
                "the oracle failed:\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        serde_json::from_slice(&output.stdout).context(format!(
            "oracle: {}",
            String::from_utf8_lossy(&output.stdout)
        ))
    }
}
