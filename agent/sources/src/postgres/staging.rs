//! Transactions in progress that the server streams: their messages wait here.
//!
//! The raw `pgoutput` messages are kept, not rows: they are compact, need no
//! numbering before the commit is known, and are decoded once, at the commit, by
//! the same code as every other message. What does not fit in memory goes to one
//! file a transaction, oldest messages first, so that file then memory is the order
//! in which they came. A file holds rows, so only its owner may read it, and it
//! goes with its transaction. Nothing here outlives the process: the server sends
//! an unfinished transaction again.

use caudal_model::{Error, Kind, Result};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Written at once to a file.
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

#[derive(Debug)]
struct Spill {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Drop for Spill {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove a spill file");
        }
    }
}

/// Messages, each after its length in four bytes.
#[derive(Debug, Default)]
struct Staged {
    memory: Vec<u8>,
    spill: Option<Spill>,
    aborted: HashSet<u32>,
}

/// Every transaction in progress.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    limit: usize,
    held: usize,
    transactions: HashMap<u32, Staged>,
    files: u64,
}

impl Staging {
    /// Empties the directory of what an earlier process left.
    pub fn open(dir: &Path, limit: usize) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
        for entry in std::fs::read_dir(dir).map_err(|e| failed(dir, e))? {
            let path = entry.map_err(|e| failed(dir, e))?.path();
            if path.extension().is_some_and(|x| x == SUFFIX) {
                std::fs::remove_file(&path).map_err(|e| failed(&path, e))?;
            }
        }
        Ok(Staging {
            dir: dir.to_owned(),
            limit,
            held: 0,
            transactions: HashMap::new(),
            files: 0,
        })
    }

    /// Bytes in memory.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Keeps a message of the top-level transaction `xid`.
    pub fn append(&mut self, xid: u32, message: &[u8]) -> Result<()> {
        let len = u32::try_from(message.len()).map_err(|_| Error::bug("a message of 4 GiB"))?;
        let staged = self.transactions.entry(xid).or_default();
        staged.memory.extend_from_slice(&len.to_le_bytes());
        staged.memory.extend_from_slice(message);
        self.held += message.len() + 4;
        while self.held > self.limit {
            self.spill_largest()?;
        }
        Ok(())
    }

    fn spill_largest(&mut self) -> Result<()> {
        let Some((xid, staged)) = self
            .transactions
            .iter_mut()
            .max_by_key(|(_, s)| s.memory.len())
        else {
            self.held = 0;
            return Ok(());
        };
        if staged.spill.is_none() {
            self.files += 1;
            let path = self.dir.join(format!("{xid}-{}.{SUFFIX}", self.files));
            let file = OpenOptions::new()
                .create_new(true)
                .read(true)
                .append(true)
                .mode(0o600)
                .open(&path)
                .map_err(|e| failed(&path, e))?;
            staged.spill = Some(Spill {
                file,
                path,
                bytes: 0,
            });
        }
        if let Some(spill) = &mut staged.spill {
            spill
                .file
                .write_all(&staged.memory)
                .map_err(|e| failed(&spill.path, e))?;
            spill.bytes += staged.memory.len() as u64;
        }
        self.held = self.held.saturating_sub(staged.memory.len());
        staged.memory = Vec::new();
        Ok(())
    }

    /// Forgets a subtransaction's changes, or the whole transaction's.
    pub fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            if let Some(staged) = self.transactions.remove(&xid) {
                self.held = self.held.saturating_sub(staged.memory.len());
            }
        } else if let Some(staged) = self.transactions.get_mut(&xid) {
            staged.aborted.insert(subxid);
        }
    }

    /// Takes a transaction out to read it.
    pub fn take(&mut self, xid: u32) -> Result<Replay> {
        let Staged {
            memory,
            spill,
            aborted,
        } = self.transactions.remove(&xid).unwrap_or_default();
        self.held = self.held.saturating_sub(memory.len());
        let file = match spill {
            None => None,
            Some(spill) => {
                let mut file = spill.file.try_clone().map_err(|e| failed(&spill.path, e))?;
                file.rewind().map_err(|e| failed(&spill.path, e))?;
                Some((
                    BufReader::with_capacity(READ_BUFFER, file.take(spill.bytes)),
                    spill,
                ))
            }
        };
        Ok(Replay {
            file,
            memory,
            at: 0,
            aborted,
            message: Vec::new(),
            have: false,
        })
    }
}

/// A committed transaction's messages, in order.
#[derive(Debug)]
pub struct Replay {
    file: Option<(BufReader<std::io::Take<File>>, Spill)>,
    memory: Vec<u8>,
    at: usize,
    aborted: HashSet<u32>,
    message: Vec<u8>,
    have: bool,
}

impl Replay {
    /// Whether the (sub)transaction rolled back.
    pub fn is_aborted(&self, xid: u32) -> bool {
        self.aborted.contains(&xid)
    }

    /// Bytes in memory.
    pub fn held(&self) -> usize {
        self.memory.len() + self.message.capacity()
    }

    /// Makes the next message ready; `false` behind the last. The same one again
    /// until [`Self::advance`].
    pub fn ready(&mut self) -> Result<bool> {
        if self.have {
            return Ok(true);
        }
        if let Some((reader, spill)) = &mut self.file {
            let mut len = [0u8; 4];
            if read_fully(reader, &mut len).map_err(|e| failed(&spill.path, e))? {
                self.message.resize(u32::from_le_bytes(len) as usize, 0);
                reader
                    .read_exact(&mut self.message)
                    .map_err(|e| failed(&spill.path, e))?;
                self.have = true;
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
        self.message.clear();
        self.message.extend_from_slice(message);
        self.at += 4 + len;
        self.have = true;
        Ok(true)
    }

    /// The message that is ready.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Done with it.
    pub fn advance(&mut self) {
        self.have = false;
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

    fn all(mut replay: Replay) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while replay.ready().unwrap() {
            out.push(replay.message().to_vec());
            replay.advance();
        }
        out
    }

    #[test]
    fn messages_come_back_in_order_from_file_and_memory() {
        let dir = std::env::temp_dir().join(format!("caudal-staging-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("9-1.staged"), b"left over").unwrap();
        let files = || std::fs::read_dir(&dir).unwrap().count();
        let mut staging = Staging::open(&dir, 100).unwrap();
        assert_eq!(files(), 0);
        let message = |i: u8| vec![i; usize::from(i)];
        for i in 0..40 {
            staging.append(7, &message(i)).unwrap();
            staging.append(8, b"other").unwrap();
            assert!(staging.held() <= 100);
        }
        assert!(files() > 0);
        staging.abort(7, 70);
        staging.abort(8, 8);
        let replay = staging.take(7).unwrap();
        assert!(replay.is_aborted(70) && !replay.is_aborted(7));
        assert_eq!(all(replay), (0..40).map(message).collect::<Vec<_>>());
        assert_eq!((files(), staging.held()), (0, 0));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
