//! What other processes on the machine ask a running agent for.
//!
//! A request is a file in the state directory, where the agent's user alone may write; the
//! agent removes it once a commit holds what was asked for. So it survives a crash of
//! either side, and the HTTP port needs no write access.

use caudal_model::{Error, Kind, Result, TableName};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Tables to be copied again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resnapshot {
    /// The tables.
    pub tables: Vec<TableName>,
}

/// The directory of requests.
#[derive(Debug, Clone)]
pub struct Requests {
    dir: PathBuf,
}

impl Requests {
    /// Requests to the agent of this state directory.
    pub fn new(state_dir: &Path) -> Self {
        Requests {
            dir: state_dir.join("requests"),
        }
    }

    /// Leaves a request, and returns its file, which vanishes when it is granted.
    pub fn ask(&self, request: &Resnapshot) -> Result<PathBuf> {
        let failed = |e: std::io::Error| {
            let text = format!("a request cannot be left in {}", self.dir.display());
            Error::fatal(Kind::State, text)
                .hint("run the command as the agent's user")
                .caused_by(e)
        };
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let name = format!("{}-{}", crate::snapshot::now_us(), std::process::id());
        let bytes = serde_json::to_vec(request)
            .map_err(|e| Error::bug("a request cannot be written").caused_by(e))?;
        // Renamed when it is whole, so that no half of it is read.
        let (draft, whole) = (
            self.dir.join(format!(".{name}")),
            self.dir.join(name + ".json"),
        );
        std::fs::write(&draft, bytes).map_err(failed)?;
        std::fs::rename(&draft, &whole).map_err(failed)?;
        Ok(whole)
    }

    /// The requests that wait, oldest first. One that cannot be read is set aside.
    pub fn waiting(&self) -> Vec<(PathBuf, Resnapshot)> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .collect();
        paths.sort();
        let read = |path: PathBuf| {
            let bytes = std::fs::read(&path).ok()?;
            match serde_json::from_slice(&bytes) {
                Ok(request) => Some((path, request)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a request cannot be read; it is set aside");
                    let _ = std::fs::rename(&path, path.with_extension("unreadable"));
                    None
                }
            }
        };
        paths.into_iter().filter_map(read).collect()
    }

    /// The request is granted.
    pub fn granted(&self, path: &Path) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "a granted request cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_waits_until_it_is_granted() {
        let dir = tempfile::tempdir().unwrap();
        let requests = Requests::new(dir.path());
        assert_eq!(requests.waiting(), []);
        let request = Resnapshot {
            tables: vec![TableName::new("public", "orders")],
        };
        let path = requests.ask(&request).unwrap();
        std::fs::write(dir.path().join("requests/x.json"), "{").unwrap();
        assert_eq!(requests.waiting(), [(path.clone(), request)]);
        assert!(dir.path().join("requests/x.unreadable").exists());
        requests.granted(&path);
        assert_eq!(requests.waiting(), []);
    }
}
