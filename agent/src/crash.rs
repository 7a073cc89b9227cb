//! Named points at which a crash is interesting.
//!
//! Each stands between two steps whose order an invariant fixes. The simulation
//! makes them fail in process; the built binary kills itself at the point that
//! `CAUDAL_CRASH_AT=name[:count]` names, with no chance to clean up.

use caudal_model::{Error, Kind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// After the fence of a new generation, before anything else.
pub const FENCED: &str = "fenced";
/// Every file of the epoch is uploaded; the log entry is not written.
pub const UPLOADED: &str = "uploaded";
/// The log entry is written; RocksDB is not.
pub const COMMITTED: &str = "committed";
/// RocksDB is written; the source has no acknowledgement.
pub const CHECKPOINTED: &str = "checkpointed";
/// The source has the acknowledgement.
pub const ACKNOWLEDGED: &str = "acknowledged";
/// Rows of a chunk are staged; the chunk is not complete.
pub const CHUNK_STAGED: &str = "chunk_staged";
/// A chunk's file is uploaded; no commit names it.
pub const CHUNK_UPLOADED: &str = "chunk_uploaded";
/// A schema version is written; no commit names it.
pub const SCHEMA_WRITTEN: &str = "schema_written";
/// Rows of an epoch are taken out of the buffer in the middle of a transaction.
pub const FLUSHED: &str = "flushed";

/// What a rewind drops is known; its log entry is not written.
pub const REWIND_PLANNED: &str = "rewind_planned";
/// A rewind's log entry is written; nobody has been told.
pub const REWOUND: &str = "rewound";

/// Every point, for tests that go through all of them.
pub const ALL: [&str; 11] = [
    FENCED,
    UPLOADED,
    COMMITTED,
    CHECKPOINTED,
    ACKNOWLEDGED,
    CHUNK_STAGED,
    CHUNK_UPLOADED,
    SCHEMA_WRITTEN,
    FLUSHED,
    REWIND_PLANNED,
    REWOUND,
];

type Hook = dyn Fn(&'static str) -> bool + Send + Sync;

/// Decides at each point whether the process dies there.
#[derive(Clone)]
pub struct CrashPoints(Option<Arc<Hook>>);

impl CrashPoints {
    /// Never crashes.
    pub fn none() -> Self {
        CrashPoints(None)
    }

    /// Reads `CAUDAL_CRASH_AT=name[:count]`: the process is killed the `count`-th
    /// time (default the first) that it reaches the point.
    pub fn from_env() -> Self {
        let Ok(spec) = std::env::var("CAUDAL_CRASH_AT") else {
            return Self::none();
        };
        let (name, count) = spec.split_once(':').unwrap_or((&spec, "1"));
        let (name, count) = (name.to_owned(), count.parse().unwrap_or(1));
        let seen = AtomicU64::new(0);
        Self::hook(move |point| {
            if point == name && seen.fetch_add(1, Ordering::Relaxed) + 1 == count {
                tracing::warn!(point, "killed by CAUDAL_CRASH_AT");
                // Not a panic: destructors must not run, as in a power cut.
                std::process::abort();
            }
            false
        })
    }

    /// Asks `hook` at every point; `true` makes the step fail as a crash would.
    pub fn hook(hook: impl Fn(&'static str) -> bool + Send + Sync + 'static) -> Self {
        CrashPoints(Some(Arc::new(hook)))
    }

    /// Marks a point. An error means that the simulated process has died here.
    pub fn reach(&self, point: &'static str) -> Result<()> {
        match &self.0 {
            Some(hook) if hook(point) => Err(Error::fatal(
                Kind::Bug,
                format!("simulated crash at {point}"),
            )),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for CrashPoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "CrashPoints(armed)"
        } else {
            "CrashPoints(none)"
        })
    }
}
