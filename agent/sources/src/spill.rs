//! Messages of a transaction whose end is not known yet: in memory, and past a limit in a file.
//!
//! A file holds rows, so only its owner may read it, and it goes with its transaction. Nothing
//! here outlives the process: the source sends an unfinished transaction again. What was spilled
//! comes before what is in memory, so that file then memory is the order of the messages.

use caudal_model::{Error, Kind, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const READ_BUFFER: usize = 256 << 10;
/// The suffix of the files.
const SUFFIX: &str = "staged";

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::retryable(
        Kind::State,
        format!("cannot spill a transaction to {}", path.display()),
    )
    .hint("free space in state_dir, or raise commit.memory")
    .caused_by(e)
}

/// Where transactions are spilled to.
#[derive(Debug)]
pub struct SpillDir {
    dir: PathBuf,
    files: u64,
    bytes: Arc<AtomicU64>,
}

impl SpillDir {
    /// Empties the directory of what an earlier process left.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
        for entry in std::fs::read_dir(dir).map_err(|e| failed(dir, e))? {
            let path = entry.map_err(|e| failed(dir, e))?.path();
            if path.extension().is_some_and(|x| x == SUFFIX) {
                std::fs::remove_file(&path).map_err(|e| failed(&path, e))?;
            }
        }
        Ok(SpillDir {
            dir: dir.to_owned(),
            files: 0,
            bytes: Arc::default(),
        })
    }

    /// Bytes in files now.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn create(&mut self) -> Result<Spill> {
        self.files += 1;
        let path = self.dir.join(format!("{}.{SUFFIX}", self.files));
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed(&path, e))?;
        Ok(Spill {
            file,
            path,
            bytes: 0,
            all: self.bytes.clone(),
        })
    }
}

/// One transaction's file.
#[derive(Debug)]
struct Spill {
    file: File,
    path: PathBuf,
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Drop for Spill {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove a spill file");
        }
    }
}

/// One transaction's messages, each after its length in four bytes.
#[derive(Debug, Default)]
pub struct Held {
    memory: Vec<u8>,
    spill: Option<Spill>,
}

impl Held {
    /// Appends a message; what that adds to [`Self::in_memory`].
    pub fn push(&mut self, message: &[u8]) -> Result<usize> {
        let len = u32::try_from(message.len()).map_err(|_| Error::bug("a message of 4 GiB"))?;
        self.memory.extend_from_slice(&len.to_le_bytes());
        self.memory.extend_from_slice(message);
        Ok(message.len() + 4)
    }

    /// Bytes in memory.
    pub fn in_memory(&self) -> usize {
        self.memory.len()
    }

    /// Whether it has no message.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.spill.is_none()
    }

    /// Moves what is in memory to the file; how many bytes that were.
    ///
    /// Errors: [`Kind::State`] if the disk does not take them.
    pub fn spill(&mut self, dir: &mut SpillDir) -> Result<usize> {
        let spill = match &mut self.spill {
            Some(spill) => spill,
            none => none.insert(dir.create()?),
        };
        let written = spill.file.write_all(&self.memory);
        written.map_err(|e| failed(&spill.path, e))?;
        let bytes = self.memory.len();
        spill.bytes += bytes as u64;
        spill.all.fetch_add(bytes as u64, Ordering::Relaxed);
        self.memory = Vec::new();
        Ok(bytes)
    }

    /// The messages, to be read once.
    pub fn read(self) -> Result<Messages> {
        let file = match self.spill {
            None => None,
            Some(spill) => {
                let mut file = spill.file.try_clone().map_err(|e| failed(&spill.path, e))?;
                file.rewind().map_err(|e| failed(&spill.path, e))?;
                let reader = BufReader::with_capacity(READ_BUFFER, file.take(spill.bytes));
                Some((reader, spill))
            }
        };
        Ok(Messages {
            file,
            memory: self.memory,
            at: 0,
        })
    }
}

/// A transaction's messages, in order.
#[derive(Debug)]
pub struct Messages {
    file: Option<(BufReader<std::io::Take<File>>, Spill)>,
    memory: Vec<u8>,
    at: usize,
}

impl Messages {
    /// Bytes in memory.
    pub fn in_memory(&self) -> usize {
        self.memory.len()
    }

    /// Puts the next message in place of what is in `into`; `false` behind the last.
    pub fn next(&mut self, into: &mut Vec<u8>) -> Result<bool> {
        if let Some((reader, spill)) = &mut self.file {
            let mut len = [0u8; 4];
            if read_fully(reader, &mut len).map_err(|e| failed(&spill.path, e))? {
                into.resize(u32::from_le_bytes(len) as usize, 0);
                let read = reader.read_exact(into);
                read.map_err(|e| failed(&spill.path, e))?;
                return Ok(true);
            }
            self.file = None;
        }
        let rest = self.memory.get(self.at..).unwrap_or_default();
        let Some((len, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(false);
        };
        let len = u32::from_le_bytes(*len) as usize;
        let message = rest
            .get(..len)
            .ok_or_else(|| Error::bug("a staged message is cut"))?;
        into.clear();
        into.extend_from_slice(message);
        self.at += 4 + len;
        Ok(true)
    }
}

/// Fills `buf`; `false` at the end of the file.
fn read_fully(reader: &mut impl Read, buf: &mut [u8]) -> std::io::Result<bool> {
    let first = loop {
        match reader.read(buf) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(false);
    }
    reader.read_exact(buf.get_mut(first..).unwrap_or_default())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_in_order_from_file_and_memory() {
        let dir = std::env::temp_dir().join(format!("caudal-spill-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("9.staged"), b"left over").unwrap();
        let files = || std::fs::read_dir(&dir).unwrap().count();
        let mut spills = SpillDir::open(&dir).unwrap();
        assert_eq!(files(), 0);
        let message = |i: u8| vec![i; usize::from(i)];
        let mut held = Held::default();
        assert!(held.is_empty());
        for i in 0..40 {
            held.push(&message(i)).unwrap();
            if i % 7 == 6 {
                held.spill(&mut spills).unwrap();
            }
        }
        assert_eq!((files(), held.is_empty()), (1, false));
        assert_eq!(spills.bytes(), (0..35).map(|i| i + 4).sum::<u64>());
        let (mut messages, mut found) = (held.read().unwrap(), Vec::new());
        let mut one = Vec::new();
        while messages.next(&mut one).unwrap() {
            found.push(one.clone());
        }
        assert_eq!(found, (0..40).map(message).collect::<Vec<_>>());
        assert_eq!((files(), spills.bytes()), (0, 0));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
