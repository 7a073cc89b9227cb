//! One agent a state directory.
//!
//! The lock is a file of its own and not RocksDB's, so that it is held before the
//! database is looked at: a database is only ever moved aside by the one agent that
//! owns the directory. The kernel drops the lock with the process, however it ends.

use caudal_model::{Error, Kind, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

const FILE: &str = "agent.lock";

/// `caudal status` holds the lock for an instant to see whether it is free, which must
/// not look like an agent.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the directory, for as long as the file is open.
pub(crate) fn take(dir: &Path) -> Result<File> {
    let failed = |e: std::io::Error| {
        Error::fatal(
            Kind::State,
            format!("cannot lock the state directory {}", dir.display()),
        )
        .hint("the agent's user must own stream.state_dir, on a file system with locks")
        .caused_by(e)
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(FILE))
        .map_err(failed)?;
    for attempt in 1.. {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => break,
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
    Err(fenced(dir))
}

pub(crate) fn fenced(dir: &Path) -> Error {
    let dir = dir.display();
    Error::fatal(
        Kind::Fenced,
        format!("another agent runs on the state directory {dir}"),
    )
    .hint("stop that agent, or give each stream a stream.state_dir of its own")
}

/// Whether an agent runs on the directory. False where there is nothing to lock.
pub fn is_held(dir: &Path) -> bool {
    match File::open(dir.join(FILE)) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}
