//! The agent as its users run it: the built binary, a config file, signals and exit codes.
//!
//! Nothing here sleeps to synchronise: every wait has a condition and a deadline.

use crate::databases::{free_port, send_signal};
use crate::{Context, Failure, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// How long the harness waits for anything that should happen; far above what is needed.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// A config file's content, set by dotted keys.
#[derive(Debug, Clone, Default)]
pub struct Config {
    table: toml::Table,
}

impl Config {
    /// Sets `section.key`; a later call wins.
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>) -> &mut Self {
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        let table = self
            .table
            .entry(section)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let toml::Value::Table(table) = table {
            table.insert(key.to_owned(), value.into());
        }
        self
    }

    /// Removes `section.key`.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        if let Some((section, key)) = key.split_once('.')
            && let Some(toml::Value::Table(table)) = self.table.get_mut(section)
        {
            table.remove(key);
        }
        self
    }

    /// A value as text, empty if it is not set.
    pub fn get(&self, key: &str) -> String {
        let value = key
            .split_once('.')
            .and_then(|(s, k)| self.table.get(s)?.get(k));
        match value {
            Some(toml::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    /// Adds a `[[tables.override]]` given as TOML.
    pub fn override_table(&mut self, toml: &str) -> Result<&mut Self> {
        let entry: toml::Table = toml.parse()?;
        let tables = self
            .table
            .entry("tables")
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let toml::Value::Table(tables) = tables {
            let list = tables
                .entry("override")
                .or_insert_with(|| toml::Value::Array(Vec::new()));
            if let toml::Value::Array(list) = list {
                list.push(toml::Value::Table(entry));
            }
        }
        Ok(self)
    }

    /// The file's text.
    pub fn toml(&self) -> String {
        self.table.to_string()
    }
}

/// `caudal status --json` and `GET /status`, as far as tests look at it.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// `starting`, `snapshotting`, `running`, `stopped` or `failed`.
    pub state: String,
    /// The last commit.
    pub epoch: u64,
    /// The writer's generation.
    pub generation: u64,
    /// How far behind, where it is known.
    pub lag_bytes: Option<f64>,
    /// How far behind, where it is known.
    pub lag_seconds: Option<f64>,
    /// The tables.
    pub tables: Vec<TableStatus>,
    /// All copies together, while there is one.
    pub snapshot: Option<SnapshotStatus>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// The copies of a [`Status`].
#[derive(Debug, Clone, Deserialize)]
pub struct SnapshotStatus {
    /// Rows read so far.
    pub rows: u64,
    /// Rows in all, as far as the source's statistics say.
    pub estimated_rows: u64,
    /// Why every copy waits.
    pub paused: Option<String>,
}

/// One table of a [`Status`].
#[derive(Debug, Clone, Deserialize)]
pub struct TableStatus {
    /// `schema.table`
    pub table: String,
    /// `pending`, `snapshotting`, `live` or `errored`.
    pub state: String,
    /// Chunks of the copy that are committed.
    pub chunks_done: Option<u64>,
    /// Why it is `errored`.
    pub error: Option<String>,
    /// Rows of its copy.
    pub snapshot_rows: u64,
    /// Why its copy waits.
    pub paused: Option<String>,
}

impl Status {
    /// The table of this name.
    pub fn table(&self, name: &str) -> Option<&TableStatus> {
        self.tables.iter().find(|t| t.table == name)
    }

    /// Whether there is a table and every one is live.
    pub fn all_live(&self) -> bool {
        !self.tables.is_empty() && self.tables.iter().all(|t| t.state == "live")
    }
}

/// How a process ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit code; `None` if a signal killed it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
    /// From start (or from the signal) to end.
    pub took: Duration,
}

impl Outcome {
    /// Fails, showing the log, unless the exit code is `code`.
    pub fn expect(self, code: i32) -> Result<Outcome> {
        if self.code == Some(code) {
            return Ok(self);
        }
        bail!(
            "exit code {:?} instead of {code}\n{}",
            self.code,
            self.describe()
        )
    }

    fn describe(&self) -> String {
        format!(
            "--- stdout\n{}\n--- log\n{}",
            tail(&self.stdout, 40),
            tail(&self.stderr, 60)
        )
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The binary under test: `CAUDAL_BIN`, or `caudal` in the directory that this
/// executable was built into.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CAUDAL_BIN").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    let this = std::env::current_exe()?;
    // …/release/deps/suite-<hash>, or …/release/<program>
    let found = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("caudal"))
        .find(|p| p.is_file());
    found.ok_or_else(|| {
        Failure::new(format!(
            "there is no `caudal` beside {}: build it first in the same profile \
             (`cargo build --release -p caudal`), or name it in CAUDAL_BIN",
            this.display()
        ))
    })
}

/// An agent's directory and config; it can be run any number of times.
#[derive(Debug)]
pub struct Agent {
    dir: PathBuf,
    /// Written to the config file before each run.
    pub config: Config,
    env: BTreeMap<String, String>,
    runs: AtomicU32,
}

impl Agent {
    /// An agent whose config file and logs are in `dir`, which is created.
    pub fn new(dir: impl Into<PathBuf>, config: Config) -> Result<Agent> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)?;
        let env = [
            ("CAUDAL_TEST_PASSWORD", "cdcpw"),
            ("AWS_ACCESS_KEY_ID", crate::s3::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", crate::s3::SECRET_KEY),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        let env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        Ok(Agent {
            dir,
            config,
            env,
            runs: AtomicU32::new(0),
        })
    }

    /// Sets an environment variable of its runs.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Takes an environment variable from its runs.
    pub fn env_remove(&mut self, name: &str) -> &mut Self {
        self.env.remove(name);
        self
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its state directory, from the config.
    pub fn state_dir(&self) -> PathBuf {
        self.config.get("stream.state_dir").into()
    }

    /// Starts `caudal <args> --config <file>`.
    pub fn start(&self, args: &[&str]) -> Result<Running> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let port = free_port()?;
        let mut config = self.config.clone();
        if config.get("http.listen").is_empty() {
            config.set("http.listen", format!("127.0.0.1:{port}"));
        }
        let http = config.get("http.listen");
        let file = self.dir.join("caudal.toml");
        std::fs::write(&file, config.toml())?;
        let log = self.dir.join(format!("run-{run}.log"));
        let printed = self.dir.join(format!("run-{run}.out"));
        let program = binary()?;
        let child = Command::new(&program)
            .args(args)
            .arg("--config")
            .arg(&file)
            .env_remove("CAUDAL_CONFIG")
            .envs(&self.env)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&printed)?)
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .context(format!("cannot start {}", program.display()))?;
        Ok(Running {
            child,
            log,
            printed,
            http,
            started: Instant::now(),
        })
    }

    /// Runs a command to its end.
    pub async fn run(&self, args: &[&str]) -> Result<Outcome> {
        self.start(args)?.wait(PATIENCE).await
    }

    /// `caudal run`, in the background.
    pub fn spawn(&self) -> Result<Running> {
        self.start(&["run"])
    }

    /// `caudal run --until-caught-up`, which must end with 0.
    pub async fn run_until_caught_up(&self) -> Result<Outcome> {
        self.run(&["run", "--until-caught-up"]).await?.expect(0)
    }

    /// `caudal status --json`; works with the agent up or down.
    pub async fn status(&self) -> Result<Status> {
        let outcome = self.run(&["status", "--json"]).await?.expect(0)?;
        serde_json::from_str(&outcome.stdout).context(format!("status: {}", outcome.stdout))
    }

    /// The last lines of every run's log, for a failed test.
    pub fn logs(dir: &Path) -> String {
        let mut text = String::new();
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
            .map(|d| d.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        files.sort();
        for file in files
            .iter()
            .filter(|f| f.extension().is_some_and(|e| e == "log"))
        {
            let content =
                String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
            let _ = write!(text, "--- {}\n{}\n", file.display(), tail(&content, 40));
        }
        text
    }
}

/// The password and the key that every test's agent has: no output may hold them.
const SECRETS: [&str; 2] = ["cdcpw", crate::s3::SECRET_KEY];

/// Fails if something that the agent has printed, logged or answered holds a secret.
fn no_secret(text: &str) -> Result<()> {
    let Some(at) = SECRETS.iter().find_map(|s| text.find(s)) else {
        return Ok(());
    };
    let from = text[..at].rfind('\n').map_or(0, |n| n + 1);
    bail!("the agent told a secret: {}…", &text[from..at])
}

/// An agent's process. Killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
    printed: PathBuf,
    http: String,
    started: Instant,
}

impl Running {
    /// Its process id, while it has not been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Where its HTTP server listens.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The most memory that it has held so far, in bytes (`VmHWM`).
    pub fn peak_memory(&self) -> Result<u64> {
        let Some(pid) = self.child.id() else {
            bail!("the agent has ended already")
        };
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        text.lines()
            .find_map(|l| {
                l.strip_prefix("VmHWM:")?
                    .trim()
                    .strip_suffix("kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .map(|kib| kib * 1024)
            .ok_or_else(|| Failure::new("/proc tells no VmHWM"))
    }

    /// Waits for its end; kills it and fails after `patience`.
    pub async fn wait(mut self, patience: Duration) -> Result<Outcome> {
        let started = self.started;
        self.wait_since(started, patience).await
    }

    async fn wait_since(&mut self, since: Instant, patience: Duration) -> Result<Outcome> {
        let ended = tokio::time::timeout(patience, self.child.wait()).await;
        let read = |path: &Path| std::fs::read(path).unwrap_or_default();
        let outcome = |code| Outcome {
            code,
            stdout: String::from_utf8_lossy(&read(&self.printed)).into_owned(),
            stderr: String::from_utf8_lossy(&read(&self.log)).into_owned(),
            took: since.elapsed(),
        };
        match ended {
            Ok(status) => {
                let outcome = outcome(status?.code());
                no_secret(&outcome.stdout)?;
                no_secret(&outcome.stderr)?;
                Ok(outcome)
            }
            Err(_) => {
                let text = outcome(None).describe();
                self.child.kill().await?;
                bail!("the agent did not end within {patience:?}\n{text}")
            }
        }
    }

    /// SIGTERM, and its end.
    pub async fn sigterm(mut self) -> Result<Outcome> {
        self.signal("TERM")?;
        self.wait_since(Instant::now(), PATIENCE).await
    }

    /// SIGKILL, and its end.
    pub async fn kill9(mut self) -> Result<()> {
        self.child.kill().await?;
        no_secret(&self.log())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: &str) -> Result<()> {
        match self.child.id() {
            Some(pid) => send_signal(pid, signal),
            None => bail!("the agent has ended already"),
        }
    }

    /// Whether the process has ended by itself, and how.
    pub fn ended(&mut self) -> Result<Option<Option<i32>>> {
        Ok(self.child.try_wait()?.map(|status| status.code()))
    }

    /// `GET` of a path on its HTTP server: status code and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let answer = http_get(&self.http, path).await?;
        no_secret(&answer.1)?;
        Ok(answer)
    }

    /// `GET /status`.
    pub async fn status(&self) -> Result<Status> {
        let (code, body) = self.get("/status").await?;
        if code != 200 {
            bail!("GET /status: {code} {body}");
        }
        serde_json::from_str(&body).context(format!("GET /status: {body}"))
    }

    /// Waits until a status fulfils `condition`; `what` names it in the failure.
    pub async fn wait_for_status(
        &mut self,
        what: &str,
        condition: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = match tokio::time::timeout(Duration::from_secs(5), self.status()).await {
                Ok(Ok(status)) if condition(&status) => return Ok(status),
                Ok(Ok(status)) => format!("{status:?}"),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "GET /status: no answer within 5 s".into(),
            };
            if let Some(code) = self.ended()? {
                bail!(
                    "the agent ended ({code:?}) before: {what}\n{}",
                    tail(&self.log(), 60)
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "not within {PATIENCE:?}: {what}; last {last}\n{}",
                    tail(&self.log(), 60)
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until every table is live.
    pub async fn wait_until_live(&mut self) -> Result<Status> {
        self.wait_for_status("every table is live", Status::all_live)
            .await
    }
}

/// Waits until `condition` gives something; `what` names it in the failure.
pub async fn eventually<T, F, R>(what: &str, mut condition: F) -> Result<T>
where
    F: FnMut() -> R,
    R: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("not within {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A plain HTTP/1.0 request; enough for a server on the same machine.
pub async fn http_get(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| Failure::new(format!("{address}{path}: no HTTP answer")))?;
    let code = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| Failure::new(format!("{address}{path}: no status code in `{head}`")))?;
    Ok((code, body.to_owned()))
}
