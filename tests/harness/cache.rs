//! Where the harness keeps what is expensive to get: unpacked servers, Python environments.

use crate::Result;
use std::fs::{File, create_dir_all};
use std::path::PathBuf;

/// `CAUDAL_DATABASES_DIR`, or `caudal-databases` in the user's cache directory.
pub fn cache_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("CAUDAL_DATABASES_DIR").filter(|d| !d.is_empty()) {
        return dir.into();
    }
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|d| !d.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")));
    base.unwrap_or_else(std::env::temp_dir)
        .join("caudal-databases")
}

/// An exclusive lock among all processes of this machine, held while the file is open.
pub fn lock(name: &str) -> Result<File> {
    let dir = cache_dir().join("locks");
    create_dir_all(&dir)?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(dir.join(name))?;
    file.lock()?;
    Ok(file)
}
