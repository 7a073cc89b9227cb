//! Leases on servers: who uses one holds a shared lock, and a keeper process stops
//! the server when nobody has held one for a while.
//!
//! A lock is dropped by the kernel with the process that holds it, so that a test
//! which panics, is killed or times out cannot leave a server behind; and no test
//! has to know whether it is the last one.

use crate::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const KEEPER: &str = include_str!("keeper.sh");

/// The right to use a server, until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    lock: PathBuf,
    _held: File,
}

impl Lease {
    /// Waits for a keeper that is just stopping the server.
    pub(super) fn take(lock: &Path) -> Result<Lease> {
        let held = File::options().create(true).append(true).open(lock)?;
        held.lock_shared()?;
        Ok(Lease {
            lock: lock.to_owned(),
            _held: held,
        })
    }

    /// Starts the process that stops the server in `dir` when `grace_seconds` have
    /// passed without a lease, and removes `dir` and `ready`.
    pub(super) fn keep_server(&self, grace_seconds: u32, dir: &Path, ready: &Path) -> Result<()> {
        // A session of its own, so that it outlives this process and its terminal.
        let mut keeper = Command::new("setsid")
            .args(["sh", "-c", KEEPER, "caudal-keeper"])
            .arg(&self.lock)
            .arg(grace_seconds.to_string())
            .arg(dir)
            .arg(ready)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the keeper (needs setsid and flock of util-linux)")?;
        std::thread::spawn(move || keeper.wait());
        Ok(())
    }
}
