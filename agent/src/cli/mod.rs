//! The command line: one file a command, and what they share.
//!
//! A command returns what it has to say by its own exit code, or an error; only
//! [`main`] prints errors and only [`exit_code`] turns them into codes.

mod check;
mod checkpoints;
mod output;
mod resnapshot;
mod run;
mod schema;
mod snapshot;
mod status;
mod tables;
mod verify;

use crate::config::{Config, units};
use crate::logging::{self, Verbosity};
use caudal_model::{Error, Kind, Result, TableName};
use clap::{Parser, Subcommand};
use indicatif::MultiProgress;
use output::Output;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Change data capture from relational databases to a Parquet lake, exactly once.
#[derive(Debug, Parser)]
#[command(name = "caudal", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    /// Config file.
    #[arg(
        short,
        long,
        global = true,
        env = "CAUDAL_CONFIG",
        default_value = "caudal.toml"
    )]
    config: PathBuf,

    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 a check failed; 2 usage or config error; \
    3 the source no longer has the position; 4 another agent owns the stream; \
    5 done, but some tables are errored; 6 the deadline passed; 70 a bug.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Snapshot what is new and follow the log.
    Run(RunArguments),
    /// Check every prerequisite of the source, the sink and this machine.
    Check,
    /// List the selected tables: size, key, planned chunks, columns and their lake types.
    Tables,
    /// Have tables copied again, by the running agent or by the next run.
    Resnapshot(ResnapshotArguments),
    /// Let copies wait or go on, with the agent up or down.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Show the state of the stream and its tables, with the agent up or down.
    Status,
    /// The commit history, and the way back in it.
    #[command(subcommand)]
    Checkpoints(CheckpointsCommand),
    /// Check that the lake is as it was written.
    Verify(VerifyArguments),
    /// Print the JSON Schema of the config file.
    Schema,
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// End once every table is live and everything that the source had committed when
    /// the command started is committed to the lake.
    #[arg(long)]
    until_caught_up: bool,

    /// End with exit code 6 if that takes longer, such as "15m".
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    deadline: Option<Duration>,

    /// Read chunks for the agent that owns the stream, which runs elsewhere with the same
    /// configuration, until every table is copied. Needs no state directory.
    #[arg(long, conflicts_with = "until_caught_up")]
    snapshot_worker: bool,
}

#[derive(Debug, clap::Args)]
struct ResnapshotArguments {
    /// Tables as `schema.table`; `*` and `?` are patterns. Naming all of them also moves
    /// the stream to where the source's log is now.
    #[arg(required = true, value_name = "TABLE")]
    tables: Vec<String>,

    /// Read again only the rows that fulfil this condition (as `filter` of an override), and
    /// leave the others as they are: rows that the source has are added and corrected, and
    /// none is removed.
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
}

#[derive(Debug, Subcommand)]
enum CheckpointsCommand {
    /// List commits, newest first.
    List {
        /// How many.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: u64,
        /// Only those that name this table, as `schema.table`.
        #[arg(long, value_name = "TABLE")]
        table: Option<TableName>,
    },
    /// Show one commit whole, and every table's state at it.
    Show {
        /// The commit's number.
        epoch: u64,
    },
    /// Make an older commit the head again. The next run replays the source from there; readers
    /// see one history or the other. A running agent ends with exit code 4.
    Rewind(RewindArguments),
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
struct RewindArguments {
    /// The commit's number.
    #[arg(group = "target")]
    epoch: Option<u64>,

    /// The newest commit that was made by then, such as `2026-11-21T10:00:00Z`.
    #[arg(long, group = "target", value_name = "TIME", value_parser = checkpoints::parse_time)]
    to_time: Option<chrono::DateTime<chrono::Utc>>,

    /// The newest commit that reaches no further than this position of the source.
    #[arg(long, group = "target", value_name = "POSITION")]
    to_position: Option<String>,

    /// Say what would be dropped, and whether the source could replay it; change nothing.
    #[arg(long)]
    dry_run: bool,

    /// Do not ask. Without a terminal nothing is asked in any case.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
struct VerifyArguments {
    /// Walk the whole commit log, and look at every file that it names.
    #[arg(long)]
    log: bool,

    /// How far files are looked at: `exist` lists them and compares sizes, `hash` reads every byte.
    #[arg(long, value_enum, default_value_t = FilesExtent::Hash)]
    files: FilesExtent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FilesExtent {
    /// Not at all.
    None,
    /// Whether they are there, with their size.
    Exist,
    /// Every byte.
    Hash,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Let no further chunk be read until `resume`; the log is followed on.
    Pause(SnapshotArguments),
    /// Let copies go on.
    Resume(SnapshotArguments),
}

#[derive(Debug, clap::Args)]
struct SnapshotArguments {
    /// Tables as `schema.table`; `*` and `?` are patterns. All copies, if absent.
    #[arg(value_name = "TABLE")]
    tables: Vec<String>,
}

/// The exit code of a command that failed.
pub fn exit_code(error: &Error) -> u8 {
    match error.kind() {
        Kind::Config => 2,
        Kind::PositionLost => 3,
        Kind::Fenced => 4,
        Kind::Deadline => 6,
        Kind::Bug => 70,
        Kind::Prerequisite
        | Kind::Source
        | Kind::Timeout
        | Kind::Store
        | Kind::Data
        | Kind::Drift
        | Kind::Corrupt
        | Kind::State => 1,
    }
}

/// A command's own exit code where it ended without an error.
mod code {
    pub(super) const DONE: u8 = 0;
    pub(super) const FINDINGS: u8 = 1;
    pub(super) const ERRORED_TABLES: u8 = 5;
    pub(super) const BUG: u8 = 70;
}

/// The program.
pub fn main() -> ExitCode {
    // Usage errors exit with 2, help and version with 0.
    let cli = Cli::parse();
    let bars = MultiProgress::new();
    let code = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| execute(cli, &bars)))
    {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            print_error(&error);
            exit_code(&error)
        }
        // The panic's own message is on stderr.
        Err(_) => code::BUG,
    };
    ExitCode::from(code)
}

/// The error and what to do about it, on stderr.
fn print_error(error: &Error) {
    let mut stderr = std::io::stderr().lock();
    // There is nobody left to tell if stderr is closed.
    let _ = writeln!(stderr, "error: {error}");
    if let Some(hint) = error.hint_text() {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

fn execute(cli: Cli, bars: &MultiProgress) -> Result<u8> {
    let verbosity = match cli.command {
        Command::Run(_) => Verbosity::Service,
        _ => Verbosity::Command,
    };
    logging::init(verbosity, bars)?;
    // Two libraries bring a provider each, and rustls will not choose. A second call in
    // one process leaves the first in place.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let output = Output::new(cli.json);
    if let Command::Schema = cli.command {
        return schema::execute(&output);
    }
    let config = Config::load(&cli.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::fatal(Kind::State, "cannot start threads").caused_by(e))?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Run(arguments) => {
                Box::pin(run::execute(&config, &arguments, &output, bars)).await
            }
            Command::Check => Box::pin(check::execute(&config, &output)).await,
            Command::Tables => Box::pin(tables::execute(&config, &output)).await,
            Command::Resnapshot(arguments) => {
                Box::pin(resnapshot::execute(&config, &arguments, &output)).await
            }
            Command::Snapshot(command) => {
                Box::pin(snapshot::execute(&config, &command, &output)).await
            }
            Command::Checkpoints(command) => {
                Box::pin(checkpoints::execute(&config, &command, &output)).await
            }
            Command::Verify(arguments) => {
                Box::pin(verify::execute(&config, &arguments, &output)).await
            }
            Command::Status => Box::pin(status::execute(&config, &output)).await,
            Command::Schema => schema::execute(&output),
        }
    });
    // A query that hangs at the source must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["caudal", "run", "--until-caught-up", "--deadline", "15m"]);
        let Command::Run(run) = cli.unwrap().command else {
            panic!("not run")
        };
        assert!(run.until_caught_up);
        assert_eq!(run.deadline, Some(Duration::from_secs(900)));
        let e = Cli::try_parse_from(["caudal", "run", "--deadline", "15"]).unwrap_err();
        assert_eq!(e.exit_code(), 2);
        assert!(e.to_string().contains("`15` has no unit"), "{e}");
        let rewind = |more: &[&str]| {
            let args = [&["caudal", "checkpoints", "rewind"], more].concat();
            Cli::try_parse_from(args).is_ok()
        };
        assert!(rewind(&["7"]) && rewind(&["7", "--dry-run", "--yes"]));
        assert!(rewind(&["--to-time", "2026-11-21", "--dry-run"]));
        assert!(!rewind(&["--dry-run"]) && !rewind(&["7", "--to-position", "0/1"]));
        assert_eq!(
            Cli::try_parse_from(["caudal", "merge"])
                .unwrap_err()
                .exit_code(),
            2
        );
        assert_eq!(
            Cli::try_parse_from(["caudal", "--help"])
                .unwrap_err()
                .exit_code(),
            0
        );
    }

    #[test]
    fn kinds_have_the_documented_exit_codes() {
        let code = |kind| exit_code(&Error::fatal(kind, ""));
        assert_eq!(code(Kind::Prerequisite), 1);
        assert_eq!(code(Kind::Config), 2);
        assert_eq!(code(Kind::PositionLost), 3);
        assert_eq!(code(Kind::Fenced), 4);
        assert_eq!(code(Kind::Deadline), 6);
        assert_eq!(code(Kind::Bug), 70);
    }
}
