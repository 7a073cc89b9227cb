//! Logs: through `tracing` to stderr, for people on a terminal and as JSON lines
//! otherwise, so that stdout holds nothing but a command's answer.

use caudal_model::{Error, Kind, Result};
use indicatif::MultiProgress;
use std::io::{IsTerminal, Write};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How much is logged where neither `CAUDAL_LOG` nor `RUST_LOG` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// What an agent does, for the record.
    Service,
    /// What goes wrong, for a command that answers by itself.
    Command,
}

impl Verbosity {
    fn filter(self) -> &'static str {
        match self {
            // The crates are all called caudal something.
            Verbosity::Service => "warn,caudal=info",
            Verbosity::Command => "error,caudal=warn",
        }
    }
}

/// Whether escape sequences may be written to this stream.
pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Installs the subscriber. What it writes goes between the redraws of `bars`.
///
/// Errors: [`Kind::Config`] for a filter that does not parse.
pub fn init(verbosity: Verbosity, bars: &MultiProgress) -> Result<()> {
    let (name, filter) = ["CAUDAL_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|n| Some((n, std::env::var(n).ok().filter(|v| !v.trim().is_empty())?)))
        .unwrap_or(("", verbosity.filter().to_owned()));
    let filter = EnvFilter::builder().parse(&filter).map_err(|e| {
        Error::fatal(
            Kind::Config,
            format!("environment variable {name} is not a log filter"),
        )
        .hint("write a level, or targets and levels: `info`, `warn,caudal_sources=debug`")
        .caused_by(e)
    })?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours(&std::io::stderr()))
        // It would report an event that cannot be written where it cannot be written, and panic.
        .log_internal_errors(false)
        .with_writer(BetweenRedraws(bars.clone()));
    // A second call in one process (tests) leaves the first in place.
    let _ = if terminal {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    Ok(())
}

/// Writes whole events to stderr while the progress display stands aside.
#[derive(Clone)]
struct BetweenRedraws(MultiProgress);

impl Write for BetweenRedraws {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        // A log's full disk must not stop the stream; what cannot be told is lost.
        let _ = self.0.suspend(|| std::io::stderr().lock().write_all(event));
        Ok(event.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for BetweenRedraws {
    type Writer = BetweenRedraws;
    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}
