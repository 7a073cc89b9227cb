//! What other processes on the machine ask a running agent for.
//!
//! A request is a file in the state directory, where the agent's user alone may write; the
//! agent removes it once a commit holds what was asked for. So it survives a crash of
//! either side, and the HTTP port needs no write access.

use caudal_model::{Error, Kind, Result, TableName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The file of [`Paused`], in the directory of requests.
const PAUSED: &str = "paused";

/// Tables to be copied again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resnapshot {
    /// The tables.
    pub tables: Vec<TableName>,
    /// Only the rows that fulfil this condition, on top of what the lake has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
}

/// Copies that wait until somebody lets them go on; it outlives the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Every copy.
    pub all: bool,
    /// These tables' copies.
    pub tables: BTreeSet<TableName>,
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
        let name = format!("{}-{}.json", crate::snapshot::now_us(), std::process::id());
        self.write(request, &name)
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

    /// Copies that wait. What cannot be read is set aside, and nothing waits.
    pub fn paused(&self) -> Paused {
        let path = self.dir.join(PAUSED);
        let Ok(bytes) = std::fs::read(&path) else {
            return Paused::default();
        };
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what is paused cannot be read; it is set aside");
            let _ = std::fs::rename(&path, path.with_extension("unreadable"));
            Paused::default()
        })
    }

    /// Changes which copies wait, for an agent that runs and for those that will.
    pub fn set_paused(&self, change: impl FnOnce(&mut Paused)) -> Result<Paused> {
        let failed = |e: std::io::Error| self.failed("what is paused", e);
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        // Two commands at a time must not undo one another.
        let lock = std::fs::File::create(self.dir.join(".lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut paused = self.paused();
        change(&mut paused);
        self.write(&paused, PAUSED)?;
        Ok(paused)
    }

    fn failed(&self, what: &str, e: std::io::Error) -> Error {
        let text = format!("{what} cannot be left in {}", self.dir.display());
        Error::fatal(Kind::State, text)
            .hint("run the command as the agent's user")
            .caused_by(e)
    }

    /// Writes a file that appears when it is whole, so that no half of it is read.
    fn write(&self, content: &impl Serialize, name: &str) -> Result<PathBuf> {
        let failed = |e: std::io::Error| self.failed("a request", e);
        let bytes = serde_json::to_vec(content)
            .map_err(|e| Error::bug("a request cannot be written").caused_by(e))?;
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        let draft = self.dir.join(format!(".{name}.draft"));
        let whole = self.dir.join(name);
        std::fs::write(&draft, bytes).map_err(failed)?;
        std::fs::rename(&draft, &whole).map_err(failed)?;
        Ok(whole)
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
            only: None,
        };
        let path = requests.ask(&request).unwrap();
        std::fs::write(dir.path().join("requests/x.json"), "{").unwrap();
        assert_eq!(requests.waiting(), [(path.clone(), request)]);
        assert!(dir.path().join("requests/x.unreadable").exists());
        requests.granted(&path);
        assert_eq!(requests.waiting(), []);
    }

    #[test]
    fn what_is_paused_stays_until_it_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let requests = Requests::new(dir.path());
        assert_eq!(requests.paused(), Paused::default());
        let orders = TableName::new("public", "orders");
        let paused = requests
            .set_paused(|p| p.tables.extend([orders.clone()]))
            .unwrap();
        assert_eq!(Requests::new(dir.path()).paused(), paused);
        assert!(paused.tables.contains(&orders) && !paused.all);
        assert_eq!(requests.waiting(), []);
        requests.set_paused(|p| *p = Paused::default()).unwrap();
        assert_eq!(requests.paused(), Paused::default());
        std::fs::write(dir.path().join("requests/paused"), "{").unwrap();
        assert_eq!(requests.paused(), Paused::default());
        assert!(dir.path().join("requests/paused.unreadable").exists());
    }
}
