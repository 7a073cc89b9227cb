//! Transactions in progress that the server streams: their messages wait here.
//!
//! The raw `pgoutput` messages are kept, not rows: they are compact, need no
//! numbering before the commit is known, and are decoded once, at the commit, by
//! the same code as every other message. What does not fit in memory goes to one
//! file a transaction (see [`crate::spill`]).

use crate::spill::{Held, Messages, SpillDir};
use caudal_model::Result;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// One transaction's messages.
#[derive(Debug, Default)]
struct Staged {
    held: Held,
    aborted: HashSet<u32>,
}

/// Every transaction in progress.
#[derive(Debug)]
pub struct Staging {
    dir: SpillDir,
    limit: usize,
    held: usize,
    transactions: HashMap<u32, Staged>,
}

impl Staging {
    /// Empties the directory of what an earlier process left.
    pub fn open(dir: &Path, limit: usize) -> Result<Self> {
        Ok(Staging {
            dir: SpillDir::open(dir)?,
            limit,
            held: 0,
            transactions: HashMap::new(),
        })
    }

    /// Bytes in memory.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes in files.
    pub fn spilled(&self) -> u64 {
        self.dir.bytes()
    }

    /// Keeps a message of the top-level transaction `xid`.
    pub fn append(&mut self, xid: u32, message: &[u8]) -> Result<()> {
        let staged = self.transactions.entry(xid).or_default();
        self.held += staged.held.push(message)?;
        while self.held > self.limit {
            let all = self.transactions.values_mut().map(|s| &mut s.held);
            let Some(largest) = all.max_by_key(|h| h.in_memory()) else {
                self.held = 0;
                break;
            };
            self.held = self.held.saturating_sub(largest.spill(&mut self.dir)?);
        }
        Ok(())
    }

    /// Forgets a subtransaction's changes, or the whole transaction's.
    pub fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            if let Some(staged) = self.transactions.remove(&xid) {
                self.held = self.held.saturating_sub(staged.held.in_memory());
            }
        } else if let Some(staged) = self.transactions.get_mut(&xid) {
            staged.aborted.insert(subxid);
        }
    }

    /// Takes a transaction out to read it.
    pub fn take(&mut self, xid: u32) -> Result<Replay> {
        let Staged { held, aborted } = self.transactions.remove(&xid).unwrap_or_default();
        self.held = self.held.saturating_sub(held.in_memory());
        Ok(Replay {
            messages: held.read()?,
            aborted,
            message: Vec::new(),
            have: false,
        })
    }
}

/// A committed transaction's messages, in order.
#[derive(Debug)]
pub struct Replay {
    messages: Messages,
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
        self.messages.in_memory() + self.message.capacity()
    }

    /// Makes the next message ready; `false` behind the last. The same one again
    /// until [`Self::advance`].
    pub fn ready(&mut self) -> Result<bool> {
        self.have = self.have || self.messages.next(&mut self.message)?;
        Ok(self.have)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_transaction_goes_to_a_file_and_the_aborted_leaves_none() {
        let dir = std::env::temp_dir().join(format!("caudal-staging-{}", std::process::id()));
        let files = || std::fs::read_dir(&dir).unwrap().count();
        let mut staging = Staging::open(&dir, 100).unwrap();
        let message = |i: u8| vec![i; usize::from(i)];
        for i in 0..40 {
            staging.append(7, &message(i)).unwrap();
            staging.append(8, b"other").unwrap();
            assert!(staging.held() <= 100);
        }
        assert!(files() > 0 && staging.spilled() > 0);
        staging.abort(7, 70);
        staging.abort(8, 8);
        let mut replay = staging.take(7).unwrap();
        assert!(replay.is_aborted(70) && !replay.is_aborted(7));
        for i in 0..40 {
            assert!(replay.ready().unwrap() && replay.ready().unwrap());
            assert_eq!(replay.message(), message(i));
            replay.advance();
        }
        assert!(!replay.ready().unwrap());
        assert_eq!((files(), staging.held(), staging.spilled()), (0, 0, 0));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
