//! Libraries that an agent is started with, in front of the C library's own functions.

use crate::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds a library in `dir` with the C compiler that the workspace needs anyway.
pub(crate) fn build(dir: &Path, name: &str, source: &str) -> Result<PathBuf> {
    let (file, library) = (
        dir.join(format!("{name}.c")),
        dir.join(format!("{name}.so")),
    );
    std::fs::write(&file, source)?;
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &file])
        .output()
        .context("cannot run cc")?;
    if !built.status.success() {
        bail!("cc: {}", String::from_utf8_lossy(&built.stderr));
    }
    Ok(library)
}
