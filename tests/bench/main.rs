//! Throughput beside the databases' own clients, as one JSON document.
//!
//! Every figure of caudal stands beside that of the plainest program which reads the same
//! bytes from the same server in the same run and throws them away, so that the ratio says
//! something on any machine.

// Progress on standard error, the document on standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod measure;
#[path = "../demo/tpch.rs"]
mod tpch;
mod yardstick;

use caudal_tests::agent::Agent;
use caudal_tests::databases::Kind;
use caudal_tests::{Result, Server, Session, Source, Version, bail};
use clap::Parser;
use measure::Taken;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Measures caudal beside the databases' own clients; prints one JSON document.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// TPC-H scale factor of lineitem
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Rows of each backlog
    #[arg(long, default_value_t = 500_000)]
    backlog: u64,
    /// Workers of the copies to measure, with commas
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    workers: Vec<u32>,
    /// Sources, with commas: postgres, mysql
    #[arg(long, value_delimiter = ',', default_values_t = ["postgres".to_owned(), "mysql".to_owned()])]
    only: Vec<String>,
}

/// Rows of a transaction of the second backlog.
const BATCH: u64 = 1000;
/// No single measurement takes as long.
const PATIENCE: Duration = Duration::from_secs(3600);

/// One process's figures for a number of rows.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    taken: Taken,
    rows_per_second: f64,
    cpu_seconds_per_million_rows: f64,
    /// What the server spent meanwhile.
    server_cpu_seconds: f64,
}

impl Figures {
    fn new(taken: Taken, rows: u64, server_cpu_seconds: f64) -> Figures {
        let rows = rows as f64;
        Figures {
            taken,
            rows_per_second: (rows / taken.wall_seconds).round(),
            cpu_seconds_per_million_rows: taken.cpu_seconds * 1e6 / rows,
            server_cpu_seconds,
        }
    }
}

fn progress(began: Instant, text: &str) {
    eprintln!("{:>5} s  {text}", began.elapsed().as_secs());
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = tokio::runtime::Runtime::new()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(&arguments)));
    match done {
        Ok(document) => {
            println!("{document:#}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(70)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Value> {
    let began = Instant::now();
    let mut sources = serde_json::Map::new();
    for name in &arguments.only {
        let (version, settings): (_, &[&str]) = match name.as_str() {
            "postgres" => (
                Version::Postgres18,
                &["shared_buffers=1GB", "max_wal_size=16GB"],
            ),
            "mysql" => (
                Version::Mysql97,
                &[
                    "--innodb-buffer-pool-size=1G",
                    "--innodb-redo-log-capacity=4G",
                    "--innodb-flush-log-at-trx-commit=0",
                ],
            ),
            other => bail!("--only {other}: postgres or mysql"),
        };
        progress(began, &format!("starting {version}"));
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        let server =
            tokio::task::spawn_blocking(move || Server::start(version, &settings)).await??;
        let source = Source::named(Arc::new(server), "bench".to_owned()).await?;
        sources.insert(name.clone(), one_source(&source, arguments, began).await?);
    }
    Ok(json!({
        "caudal": env!("CARGO_PKG_VERSION"),
        "at": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "cores": std::thread::available_parallelism().map_or(0, |n| n.get()),
        "scale": arguments.scale,
        "backlog_rows": arguments.backlog,
        "sources": sources,
    }))
}

async fn one_source(source: &Source, arguments: &Arguments, began: Instant) -> Result<Value> {
    let directory = tempfile::Builder::new().prefix("caudal-bench-").tempdir()?;
    Ok(json!({
        "version": source.version().to_string(),
        "snapshot": snapshot(source, arguments, directory.path(), began).await?,
        "backlog_of_single_rows": backlog(source, arguments.backlog, 1, directory.path(), began).await?,
        "backlog_of_thousands": backlog(source, arguments.backlog, BATCH, directory.path(), began).await?,
    }))
}

/// An agent of one table, writing to a directory.
fn agent(source: &Source, stream: &str, table: &str, directory: &Path) -> Result<Agent> {
    let dir = directory.join(stream);
    let mut config = source.config(stream, &dir.join("state"));
    config.set("tables.include", vec![source.table(table)]);
    config.set("sink.url", format!("file://{}", dir.join("lake").display()));
    // The defaults of a user, not of a test.
    config.unset("commit.max_delay");
    Agent::new(&dir, config)
}

async fn drain(agent: &Agent) -> Result<Taken> {
    let running = agent.start(&["run", "--until-caught-up"])?;
    let pid = running.pid();
    let (outcome, taken) = measure::watch(pid, running.wait(PATIENCE)).await?;
    outcome.expect(0)?;
    Ok(taken)
}

fn server_pid(source: &Source) -> Result<u32> {
    Ok(std::fs::read_to_string(source.address().dir.join("pid"))?
        .trim()
        .parse()?)
}

/// Both figures, and how much of the yardstick's speed caudal reaches.
fn beside(rows: u64, caudal: Figures, yardstick: Figures, command: &str) -> Value {
    json!({
        "rows": rows,
        "caudal": caudal,
        "yardstick": yardstick,
        "yardstick_command": command,
        "ratio": yardstick.taken.wall_seconds / caudal.taken.wall_seconds,
    })
}

/// A copy with each number of workers, each right after a reading of the yardstick.
async fn snapshot(
    source: &Source,
    arguments: &Arguments,
    directory: &Path,
    began: Instant,
) -> Result<Vec<Value>> {
    let Some(table) = tpch::TABLES.iter().find(|t| t.name == "lineitem") else {
        bail!("TPC-H has a table lineitem");
    };
    let scale = arguments.scale;
    progress(began, &format!("loading lineitem at scale {scale}"));
    let mut session = source.session().await?;
    let rows = tpch::load(&mut session, table, scale).await?;
    let pid = server_pid(source)?;

    progress(
        began,
        &format!("{rows} rows; the yardstick, unmeasured: it warms the caches"),
    );
    yardstick::read_table(source, table.name).await?;
    let mut measured = Vec::new();
    for workers in &arguments.workers {
        progress(began, "the yardstick");
        let before = measure::server_cpu_seconds(pid);
        let (raw, command) = yardstick::read_table(source, table.name).await?;
        let raw = Figures::new(raw, rows, measure::server_cpu_seconds(pid) - before);

        progress(began, &format!("the snapshot, {workers} workers"));
        let mut agent = agent(
            source,
            &format!("snapshot_{workers}"),
            table.name,
            directory,
        )?;
        agent.config.set("snapshot.workers", *workers);
        let before = measure::server_cpu_seconds(pid);
        let taken = drain(&agent).await?;
        let caudal = Figures::new(taken, rows, measure::server_cpu_seconds(pid) - before);
        std::fs::remove_dir_all(agent.dir())?;
        let mut figures = beside(rows, caudal, raw, &command);
        figures["workers"] = json!(workers);
        measured.push(figures);
    }
    Ok(measured)
}

const LEDGER: &str = "id bigint NOT NULL, account integer NOT NULL, amount decimal(12,2) NOT NULL, \
    booked date NOT NULL, note varchar(60) NOT NULL, PRIMARY KEY (id)";

async fn backlog(
    source: &Source,
    rows: u64,
    batch: u64,
    directory: &Path,
    began: Instant,
) -> Result<Value> {
    let stream = format!("backlog_{batch}");
    let table = format!("ledger_{batch}");
    source
        .exec(&format!("CREATE TABLE {table} ({LEDGER})"))
        .await?;
    // Copies the empty table; from here on only the log has anything to say.
    let agent = agent(source, &stream, &table, directory)?;
    drain(&agent).await?;
    let from = yardstick::mark(source, &stream).await?;

    progress(
        began,
        &format!("writing {rows} rows in transactions of {batch}"),
    );
    write(source, &table, rows, batch).await?;

    let pid = server_pid(source)?;
    progress(began, "the yardstick");
    let before = measure::server_cpu_seconds(pid);
    let (raw, command) = yardstick::read_log(source, &stream, &from, directory).await?;
    let raw = Figures::new(raw, rows, measure::server_cpu_seconds(pid) - before);

    progress(began, "the backlog");
    let before = measure::server_cpu_seconds(pid);
    let taken = drain(&agent).await?;
    let caudal = Figures::new(taken, rows, measure::server_cpu_seconds(pid) - before);
    std::fs::remove_dir_all(agent.dir())?;
    Ok(beside(rows, caudal, raw, &command))
}

/// Writes the rows inside the server: a client would be the slowest part.
async fn write(source: &Source, table: &str, rows: u64, batch: u64) -> Result<()> {
    let mut session: Session = source.session().await?;
    match source.kind() {
        Kind::Postgres => {
            session
                .exec(&format!(
                    "DO $$ BEGIN FOR i IN 1..{rows} LOOP \
                     INSERT INTO {table} VALUES (i, i % 1000, i / 100.0, date '2026-01-01' + i % 365, \
                     'entry ' || i); \
                     IF i % {batch} = 0 THEN COMMIT; END IF; END LOOP; END $$"
                ))
                .await
        }
        Kind::Mysql | Kind::Mariadb => {
            session
                .exec(&format!(
                    "CREATE PROCEDURE fill_{table}() BEGIN DECLARE i BIGINT DEFAULT 1; \
                     SET autocommit = 0; WHILE i <= {rows} DO \
                     INSERT INTO {table} VALUES (i, i % 1000, i / 100, date '2026-01-01' + INTERVAL (i % 365) DAY, \
                     concat('entry ', i)); \
                     IF i % {batch} = 0 THEN COMMIT; END IF; SET i = i + 1; END WHILE; COMMIT; END"
                ))
                .await?;
            session.exec(&format!("CALL fill_{table}()")).await
        }
    }
}
