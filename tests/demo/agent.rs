//! The agent as the process that a user runs: its config file, its log, its status page.

use crate::tpch::Outcome;
use caudal_tests::databases::{Address, Kind};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How long an agent has between SIGTERM and its end, as its contract says, and some.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// What a config file says.
pub struct Settings<'a> {
    /// The stream's name.
    pub stream: &'a str,
    /// RocksDB's directory.
    pub state_dir: &'a Path,
    /// The source.
    pub source: &'a Address,
    /// PostgreSQL: the database to connect to. MySQL, MariaDB: the same, to be precise.
    pub database: &'a str,
    /// Patterns of tables.
    pub include: &'a [String],
    /// The lines of `[sink]`.
    pub sink: &'a str,
    /// More sections, as they stand in the file.
    pub more: &'a str,
    /// The port of `[http] listen`.
    pub http_port: u16,
}

impl Settings<'_> {
    /// The file's text. The password comes from the environment, as it should.
    pub fn toml(&self) -> String {
        let Address { host, port, ca_file, version, .. } = self.source;
        let kind = version.kind().config_name();
        let include: Vec<String> = self.include.iter().map(|p| format!("{p:?}")).collect();
        let mut text = String::new();
        let _ = write!(
            text,
            "[stream]\nname = \"{stream}\"\nstate_dir = \"{state}\"\n\n\
             [source]\nkind = \"{kind}\"\nhost = \"{host}\"\nport = {port}\ndatabase = \"{database}\"\n\
             user = \"cdc\"\npassword = \"env:SOURCE_PASSWORD\"\ntls = \"verify-full\"\nca_file = \"{ca}\"\n\n\
             [tables]\ninclude = [{include}]\n\n\
             [sink]\n{sink}\n\n[http]\nlisten = \"127.0.0.1:{http}\"\n\n{more}",
            stream = self.stream,
            state = self.state_dir.display(),
            database = self.database,
            ca = ca_file.display(),
            include = include.join(", "),
            sink = self.sink,
            http = self.http_port,
            more = self.more,
        );
        text
    }
}

/// The pattern of all tables of a database in a source's own terms.
pub fn all_tables(kind: Kind, database: &str) -> String {
    match kind {
        Kind::Postgres => "public.*".to_owned(),
        Kind::Mysql | Kind::Mariadb => format!("{database}.*"),
    }
}

/// The release binary, which lies beside the one that runs this.
pub fn binary() -> Outcome<PathBuf> {
    let path = match std::env::var_os("CAUDAL_BIN") {
        Some(path) => path.into(),
        None => std::env::current_exe()?.with_file_name("caudal"),
    };
    if !path.exists() {
        return Err(format!("{} is missing: cargo build --release --workspace --bins", path.display()).into());
    }
    Ok(path)
}

/// `caudal <arguments>` with this config; its log goes to `log`.
pub fn command(config: &Path, log: &Path, arguments: &[&str]) -> Outcome<Command> {
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(binary()?);
    command
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env("SOURCE_PASSWORD", "cdcpw")
        .env("AWS_ACCESS_KEY_ID", "demo")
        .env("AWS_SECRET_ACCESS_KEY", "demo-secret")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

/// An agent that runs.
pub struct Agent {
    child: Child,
    http_port: u16,
    log: PathBuf,
}

impl Agent {
    /// Starts `caudal run`.
    pub fn start(config: &Path, log: &Path, http_port: u16) -> Outcome<Agent> {
        let child = command(config, log, &["run"])?.spawn()?;
        Ok(Agent { child, http_port, log: log.to_owned() })
    }

    /// `GET /status`; `None` while the agent does not answer.
    ///
    /// Errors: the agent has ended, with the end of its log.
    pub async fn status(&mut self) -> Outcome<Option<Value>> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("the agent ended ({status}):\n{}", tail(&self.log)).into());
        }
        let answer = tokio::time::timeout(Duration::from_secs(5), self.get("/status")).await;
        Ok(answer.ok().and_then(Result::ok))
    }

    async fn get(&self, path: &str) -> Outcome<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port)).await?;
        // 1.0: the answer's end is the connection's end.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok(serde_json::from_str(body)?)
    }

    /// SIGTERM, and how it ended.
    pub async fn terminate(mut self) -> Outcome<ExitStatus> {
        if let Some(pid) = self.child.id() {
            Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        }
        match tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => Err(format!("the agent ignored SIGTERM for {STOP_PATIENCE:?}").into()),
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
