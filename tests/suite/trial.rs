//! One run of a behaviour on one source: a database of its own, a lake in a directory,
//! and everything told if it fails.

use caudal_tests::agent::Config;
use caudal_tests::databases::Kind;
use caudal_tests::oracle::Report;
use caudal_tests::{Agent, Oracle, Result, Source, Version};
use std::path::{Path, PathBuf};

/// Makes a test for every source of each behaviour, an `async fn(&Trial) -> Result<()>`.
macro_rules! on_every_source {
    ($($behaviour:ident),+ $(,)?) => {$(
        mod $behaviour {
            #[test]
            fn postgres15() {
                crate::trial::run(caudal_tests::Version::Postgres15, stringify!($behaviour), super::$behaviour);
            }
            #[test]
            fn postgres17() {
                crate::trial::run(caudal_tests::Version::Postgres17, stringify!($behaviour), super::$behaviour);
            }
            #[test]
            fn postgres18() {
                crate::trial::run(caudal_tests::Version::Postgres18, stringify!($behaviour), super::$behaviour);
            }
            #[test]
            fn mysql97() {
                crate::trial::run(caudal_tests::Version::Mysql97, stringify!($behaviour), super::$behaviour);
            }
            #[test]
            fn mariadb1011() {
                crate::trial::run(caudal_tests::Version::Mariadb1011, stringify!($behaviour), super::$behaviour);
            }
            #[test]
            fn mariadb118() {
                crate::trial::run(caudal_tests::Version::Mariadb118, stringify!($behaviour), super::$behaviour);
            }
        }
    )+};
}
pub(crate) use on_every_source;

/// What a behaviour works with.
pub struct Trial {
    /// The source's database.
    pub source: Source,
    /// The stream's name; no other test on the same server has it.
    pub stream: String,
    dir: PathBuf,
}

impl Trial {
    /// PostgreSQL, MySQL or MariaDB.
    pub fn kind(&self) -> Kind {
        self.source.kind()
    }

    /// The same trial on a server of its own with additional settings.
    pub async fn on_private_server(&self, settings: &[&str]) -> Result<Trial> {
        let source = Source::private(self.source.version(), settings, &self.stream).await?;
        Ok(Trial {
            source,
            stream: self.stream.clone(),
            dir: self.dir.clone(),
        })
    }

    /// The same trial, lake and state on another source.
    pub fn with_source(&self, source: Source) -> Trial {
        Trial {
            source,
            stream: self.stream.clone(),
            dir: self.dir.clone(),
        }
    }

    /// The directory of a `file://` sink.
    pub fn lake(&self) -> PathBuf {
        self.dir.join("lake")
    }

    /// A directory for anything.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A config with a `file://` sink and little delay.
    pub fn config(&self) -> Config {
        let mut config = self.source.config(&self.stream, &self.dir.join("state"));
        config.set("sink.url", format!("file://{}", self.lake().display()));
        config
    }

    /// The trial's agent.
    pub fn agent(&self) -> Result<Agent> {
        self.agent_with("agent", self.config())
    }

    /// An agent with another config; `name` is its directory.
    pub fn agent_with(&self, name: &str, config: Config) -> Result<Agent> {
        Agent::new(self.dir.join(name), config)
    }

    /// The oracle of the `file://` sink's lake.
    pub fn oracle(&self) -> Result<Oracle> {
        Oracle::new(&self.lake(), &self.stream)
    }

    /// Fails unless the lake equals these tables of the source as they are now.
    pub async fn expect_equal(&self, tables: &[&str]) -> Result<Report> {
        self.expect_equal_in(&self.lake(), tables).await
    }

    /// Fails unless each table in the lake equals its view at the source: `(table, view)`.
    pub async fn expect_equal_to(&self, tables: &[(&str, &str)]) -> Result<Report> {
        let scratch = self.dir.join("exports");
        std::fs::create_dir_all(&scratch)?;
        self.oracle()?
            .expect_equal_to(&self.source, tables, &scratch)
            .await
    }

    /// The same for a lake in another directory.
    pub async fn expect_equal_in(&self, lake: &Path, tables: &[&str]) -> Result<Report> {
        let scratch = self.dir.join("exports");
        std::fs::create_dir_all(&scratch)?;
        Oracle::new(lake, &self.stream)?
            .expect_equal(&self.source, tables, &scratch)
            .await
    }

    /// The commit log's entries, oldest first.
    pub fn log_entries(&self) -> Result<Vec<serde_json::Value>> {
        let dir = self.lake().join(&self.stream).join("_log");
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "json"));
        files.sort();
        files
            .iter()
            .map(|f| Ok(serde_json::from_slice(&std::fs::read(f)?)?))
            .collect()
    }

    /// Rows that the log's entries name for a table, copies and changes together.
    pub fn committed_rows(&self, table: &str) -> Result<u64> {
        let name = self.source.table(table);
        Ok(self
            .log_entries()?
            .iter()
            .map(|entry| rows_of(entry, &name))
            .sum())
    }
}

/// Rows that one log entry names for a table.
pub fn rows_of(entry: &serde_json::Value, table: &str) -> u64 {
    let tables = entry["tables"].as_array().into_iter().flatten();
    let files = tables
        .filter(|t| t["table"] == table)
        .flat_map(|t| t["files"].as_array().into_iter().flatten());
    files.filter_map(|f| f["rows"].as_u64()).sum()
}

/// Runs a behaviour to its end, and panics with its failure and the agents' logs.
pub fn run(version: Version, name: &str, behaviour: impl AsyncFnOnce(&Trial) -> Result<()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let dir = tempfile::Builder::new()
        .prefix("caudal-test-")
        .disable_cleanup(caudal_tests::keep())
        .tempdir()
        .expect("a directory for the test");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let source = Source::shared(version, name).await?;
            let stream = source.database().trim_start_matches("t_").to_owned();
            let trial = Trial {
                source,
                stream,
                dir: dir.path().to_owned(),
            };
            behaviour(&trial).await
        })
    }));
    let failure = match result {
        Ok(Ok(())) => return,
        Ok(Err(failure)) => failure.to_string(),
        Err(_) => "it panicked (see above)".to_owned(),
    };
    panic!("{name} on {version}: {failure}\n{}", logs(dir.path()));
}

fn logs(dir: &Path) -> String {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(dir)
        .map(|d| d.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    dirs.sort();
    dirs.iter()
        .filter(|d| d.join("caudal.toml").exists())
        .map(|d| Agent::logs(d))
        .collect()
}
