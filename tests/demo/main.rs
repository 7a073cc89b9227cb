//! The main job on real databases, from nothing to a comparison that can fail.
//!
//! Starts private servers, loads TPC-H, lets one agent a source copy it and follow the
//! log while rows change, stops them, and shows what the lake holds. It is right because
//! nothing that it prints comes from the agents: rows and operations are counted in the
//! Parquet by DuckDB, and every table is compared with its source by the tests' oracle.

// The report is what this program is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod follow;
mod progress;
mod report;
mod tpch;
mod workload;

use caudal_tests::{Result, Server, Source, Version, bail};
use clap::{Parser, ValueEnum};
use follow::{Lake, Landed};
use futures::future::try_join_all;
use progress::Progress;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Copies TPC-H from real databases into Parquet, follows their logs, and compares.
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// TPC-H scale factor, from 0.01: 87,000 rows a source
    #[arg(long, default_value_t = 0.01)]
    scale: f64,
    /// Sources, with commas
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Which::Postgres, Which::Mysql, Which::Mariadb])]
    only: Vec<Which>,
    /// Where the lake is: an S3 server on this machine, or a directory
    #[arg(long, value_enum, default_value_t = SinkKind::S3)]
    sink: SinkKind,
    /// How long rows change while the agents follow
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Leave the Parquet, the configs and the logs
    #[arg(long)]
    keep: bool,
    /// Change one row of each source after its agent has stopped: the comparison must find it
    #[arg(long)]
    spoil: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Postgres,
    Mysql,
    Mariadb,
}

impl Which {
    fn version(self) -> Version {
        match self {
            Which::Postgres => Version::Postgres18,
            Which::Mysql => Version::Mysql97,
            Which::Mariadb => Version::Mariadb118,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SinkKind {
    S3,
    File,
}

/// A step of the whole.
pub fn say(text: &str) {
    println!("\x1b[1m==>\x1b[0m {text}");
}

/// A detail of a step.
pub fn note(text: &str) {
    println!("    {text}");
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(70);
        }
    };
    let code = runtime.block_on(async {
        // Dropping the work is what cleans up: agents are killed, servers stopped, files removed.
        tokio::select! {
            done = run(&arguments) => match done {
                Ok(true) => 0,
                Ok(false) => 1,
                Err(e) => {
                    eprintln!("\nerror: {e}\n(--keep leaves the files and logs)");
                    70
                }
            },
            _ = interrupted() => {
                eprintln!("\ninterrupted; cleaning up");
                130
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    ExitCode::from(code)
}

async fn interrupted() {
    match (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) {
        (Ok(mut int), Ok(mut term)) => {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}

async fn start(version: Version) -> Result<Source> {
    let server = tokio::task::spawn_blocking(move || Server::start::<&str>(version, &[])).await??;
    Source::named(Arc::new(server), "tpch".to_owned()).await
}

/// Whether every table of the lake equals its source.
async fn run(arguments: &Arguments) -> Result<bool> {
    if !(0.01..=30.0).contains(&arguments.scale) {
        bail!("--scale must be from 0.01 (below it TPC-H's own keys are not unique) to 30");
    }
    let began = Instant::now();
    caudal_tests::agent::binary()?;
    let mut directory = tempfile::Builder::new().prefix("caudal-demo-").tempdir()?;
    if arguments.keep {
        // From the start: what went wrong is worth a look too.
        directory.disable_cleanup(true);
        say(&format!(
            "files will be kept in {}",
            directory.path().display()
        ));
    }
    let mut which = arguments.only.clone();
    which.dedup();

    let names: Vec<String> = which.iter().map(|w| w.version().to_string()).collect();
    say(&format!(
        "starting private servers on free ports of 127.0.0.1: {}",
        names.join(", ")
    ));
    let lake = match arguments.sink {
        SinkKind::File => Lake::directory(directory.path())?,
        SinkKind::S3 => Lake::s3(directory.path())?,
    };
    let sources = try_join_all(which.iter().map(|w| start(w.version()))).await?;

    let progress = Progress::new();
    progress.say(&format!(
        "loading TPC-H at scale {}, copying it, then changing rows for {} s",
        arguments.scale, arguments.seconds
    ));
    let how_long = Duration::from_secs(arguments.seconds);
    let work = sources.iter().map(|source| {
        let line = progress.line(source.version().to_string());
        follow::follow(
            source,
            &lake,
            directory.path(),
            arguments.scale,
            how_long,
            line,
        )
    });
    let landed: Vec<Landed> = try_join_all(work).await?;

    say("what landed in the lake");
    let mut equal = true;
    for one in &landed {
        equal &= report::landed(one)?;
    }
    if let Some(first) = landed.first() {
        say(&format!(
            "TPC-H query 1 by DuckDB over the Parquet of {}",
            first.name
        ));
        report::query(&first.stream_dir())?;
    }
    if arguments.spoil {
        say("--spoil: changing one row of each source behind the lake's back");
        for source in &sources {
            source
                .exec("UPDATE orders SET o_comment = 'spoiled' WHERE o_orderkey = 1")
                .await?;
        }
    }
    say("source against lake");
    for (source, one) in sources.iter().zip(&landed) {
        equal &= report::compare(source, one, directory.path()).await?;
    }
    farewell(arguments, directory.path(), &landed);
    say(&format!(
        "{} in {} s",
        if equal {
            "every table of the lake equals its source"
        } else {
            "THE LAKE DIFFERS from its source"
        },
        began.elapsed().as_secs()
    ));
    Ok(equal)
}

/// Says where the files are, or how to keep them.
fn farewell(arguments: &Arguments, directory: &Path, landed: &[Landed]) {
    if !arguments.keep {
        note(
            "the servers are stopped and the files removed; --keep leaves the Parquet, the configs and the logs",
        );
        return;
    }
    note("the servers are stopped; what is kept:");
    for one in landed {
        note(&format!("  {:16} {}", one.name, one.stream_dir().display()));
    }
    note(&format!(
        "  configs and logs  {}/<stream>/",
        directory.display()
    ));
    note(&format!(
        "remove it all with: rm -r {}",
        directory.display()
    ));
}
