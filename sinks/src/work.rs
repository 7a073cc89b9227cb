//! Chunks of a copy that other processes read: offers, claims and reports, as objects
//! of the store and nothing else.
//!
//! ```text
//! _work/<round>/open.json                          by the agent that owns the stream
//! _work/<round>/offers/<n>.json                    a chunk to be read
//! _work/<round>/claims/<n>.json                    whose it is: a worker's, or taken back
//! _work/<round>/workers/<k>/beats/<threads>-<i>    a worker lives
//! _work/<round>/workers/<k>/reports/<i>.json       chunks with their files; or the worker's end
//! ```
//!
//! Why it is correct: whoever creates an object decides what it says, by a conditional
//! PUT, so a chunk has one reader. A worker's reports are numbered without gaps, and the
//! owner ends a worker by taking its next number: after that no report of it can exist,
//! so what the worker had claimed and not reported is free. Nobody but the owner commits
//! (INV-1): a file that a worker uploads exists for readers once the owner's commit names
//! it. A round belongs to one attempt of one generation; the next attempt opens another,
//! and what the old one had not committed is read again.

use crate::entry::FileEntry;
use crate::log::CommitLog;
use crate::store::{PutOutcome, Store};
use caudal_model::{Chunk, Error, Kind, Position, Result, TableName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The format of these objects.
const FORMAT: u32 = 1;
/// Objects of one listing.
const PAGE: usize = 1000;
/// The digits of numbers in names, so that names sort as numbers.
const DIGITS: usize = 10;

/// What a round's workers must agree with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The format; 1.
    pub format: u32,
    /// The owner's generation, which files are named by.
    pub generation: u64,
    /// A digest of what the configuration does to tables and rows.
    pub rules: String,
}

/// A chunk to be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The table.
    pub table: TableName,
    /// The schema version that its rows get; it is in the lake.
    pub schema_version: u32,
    /// What the rows share as `_seq`.
    pub base_seq: i64,
    /// What must be visible, and the rows' `_position`.
    pub base_position: Position,
    /// The chunk.
    pub chunk: Chunk,
    /// The owner's open epoch, by which files are named.
    pub epoch: u64,
}

/// Whose an offer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The worker's number; `None`: the owner has taken it back.
    pub worker: Option<u32>,
}

/// What a worker has done, or that it can do nothing more.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Offers whose rows are in `files`, all of one table.
    pub finished: Vec<u64>,
    /// The files, whole and durable.
    pub files: Vec<FileEntry>,
    /// Offers that the worker gives back.
    pub refused: Vec<u64>,
    /// Why, for the owner's log.
    pub reason: Option<String>,
    /// The owner has ended the worker.
    pub revoked: bool,
}

/// What a round's directory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The round is open; one that is not has been left by its owner.
    pub open: bool,
    /// Offers, claimed or not.
    pub offers: BTreeSet<u64>,
    /// Offers that are somebody's.
    pub claims: BTreeSet<u64>,
    /// Every worker's latest sign of life, and how many chunks it reads at a time.
    pub workers: BTreeMap<u32, (u64, u32)>,
    /// How many reports each worker has, its end included.
    pub reports: BTreeMap<u32, u64>,
}

/// One round of shared work.
#[derive(Clone)]
pub struct WorkRound {
    store: Arc<dyn Store>,
    dir: String,
    name: String,
}

impl std::fmt::Debug for WorkRound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WorkRound({})", self.dir)
    }
}

impl WorkRound {
    /// Opens a round of the owner's, and removes every other.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open(log: &CommitLog, generation: u64, now_us: i64, rules: &str) -> Result<Self> {
        let root = log.layout().work_dir();
        for other in log.store().list_dirs(&root).await? {
            Self::at(log, &other).close().await?;
        }
        let round = Self::at(log, &format!("{generation:0DIGITS$}-{now_us:020}"));
        let opened = Opened {
            format: FORMAT,
            generation,
            rules: rules.to_owned(),
        };
        round.create("open.json", &opened).await?;
        Ok(round)
    }

    /// The newest round, if one is open, and what it asks of its workers.
    ///
    /// # Errors
    /// Those of the store; [`Kind::Corrupt`] for objects of another format.
    pub async fn find(log: &CommitLog) -> Result<Option<(Self, Opened)>> {
        let names = log.store().list_dirs(&log.layout().work_dir()).await?;
        let Some(name) = names.last() else {
            return Ok(None);
        };
        let round = Self::at(log, name);
        let opened: Option<Opened> = round.get("open.json").await?;
        match opened {
            Some(o) if o.format != FORMAT => Err(Error::fatal(
                Kind::Corrupt,
                "the agent of this stream shares its work in another format",
            )
            .hint("run the same version of caudal everywhere")),
            // It is being closed, or not yet open.
            opened => Ok(opened.map(|o| (round, o))),
        }
    }

    fn at(log: &CommitLog, name: &str) -> Self {
        WorkRound {
            store: log.store().clone(),
            dir: format!("{}{name}/", log.layout().work_dir()),
            name: name.to_owned(),
        }
    }

    /// Tells one round from another.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is there now, by listing names only.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn look(&self) -> Result<Seen> {
        let mut seen = Seen::default();
        for key in self.keys().await? {
            let Some(path) = key.strip_prefix(&self.dir) else {
                continue;
            };
            let path = path.strip_suffix(".json").unwrap_or(path);
            match path.split('/').collect::<Vec<_>>()[..] {
                ["open"] => seen.open = true,
                ["offers", n] => seen.offers.extend(n.parse::<u64>()),
                ["claims", n] => seen.claims.extend(n.parse::<u64>()),
                ["workers", k, "beats", beat] => {
                    let parsed = beat.split_once('-').map(|(t, i)| (t.parse(), i.parse()));
                    if let (Ok(k), Some((Ok(threads), Ok(i)))) = (k.parse(), parsed) {
                        seen.workers.insert(k, (i, threads));
                    }
                }
                ["workers", k, "reports", i] => {
                    if let (Ok(k), Ok(i)) = (k.parse(), i.parse::<u64>()) {
                        let n = seen.reports.entry(k).or_default();
                        *n = (*n).max(i + 1);
                    }
                }
                _ => {}
            }
        }
        Ok(seen)
    }

    /// Offers a chunk.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn offer(&self, n: u64, offer: &Offer) -> Result<()> {
        self.create(&offer_path(n), offer).await.map(|_| ())
    }

    /// An offer, unless it is gone.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_offer(&self, n: u64) -> Result<Option<Offer>> {
        self.get(&offer_path(n)).await
    }

    /// Takes an offer, for a worker or (`None`) back; `false` if it is somebody else's.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn claim(&self, n: u64, worker: Option<u32>) -> Result<bool> {
        let claim = Claim { worker };
        if self.create(&claim_path(n), &claim).await? {
            return Ok(true);
        }
        // The reply to an earlier attempt of this very call may have been lost.
        Ok(self.read_claim(n).await? == Some(claim))
    }

    /// Whose an offer is.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_claim(&self, n: u64) -> Result<Option<Claim>> {
        self.get(&claim_path(n)).await
    }

    /// A number for a worker that reads `threads` chunks at a time; from 1.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn join(&self, threads: u32) -> Result<u32> {
        let mut k = self.look().await?.workers.keys().max().map_or(1, |k| k + 1);
        loop {
            let name = format!("workers/{k:0DIGITS$}/joined.json");
            if self.create(&name, &FORMAT).await? {
                self.beat(k, threads, 0).await?;
                return Ok(k);
            }
            k += 1;
        }
    }

    /// A worker's `i`th sign of life, which replaces the one before.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn beat(&self, worker: u32, threads: u32, i: u64) -> Result<()> {
        self.create(&beat_path(worker, threads, i), &FORMAT).await?;
        if let Some(before) = i.checked_sub(1) {
            self.remove(&[beat_path(worker, threads, before)]).await?;
        }
        Ok(())
    }

    /// Takes back a worker's last sign of life.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn leave(&self, worker: u32, threads: u32, i: u64) -> Result<()> {
        self.remove(&[
            beat_path(worker, threads, i),
            format!("workers/{worker:0DIGITS$}/joined.json"),
        ])
        .await
    }

    /// Puts a worker's `i`th report; `false` if the owner has ended the worker.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn report(&self, worker: u32, i: u64, report: &Report) -> Result<bool> {
        if self.create(&report_path(worker, i), report).await? {
            return Ok(true);
        }
        let there: Option<Report> = self.get(&report_path(worker, i)).await?;
        Ok(there.as_ref() == Some(report))
    }

    /// A worker's `i`th report.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_report(&self, worker: u32, i: u64) -> Result<Option<Report>> {
        self.get(&report_path(worker, i)).await
    }

    /// Ends a worker at its `i`th report; the report, if the worker was faster.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn revoke(&self, worker: u32, i: u64) -> Result<Option<Report>> {
        let end = Report {
            revoked: true,
            ..Report::default()
        };
        if self.report(worker, i, &end).await? {
            return Ok(None);
        }
        self.read_report(worker, i).await
    }

    /// Removes what an offer left.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn forget(&self, n: u64) -> Result<()> {
        self.remove(&[offer_path(n), claim_path(n)]).await
    }

    /// Removes the round; `open.json` first, so that nobody joins what is going away.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn close(&self) -> Result<()> {
        self.remove(&["open.json".to_owned()]).await?;
        let keys = self.keys().await?;
        self.store.delete(&keys).await
    }

    async fn keys(&self) -> Result<Vec<String>> {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let after = keys.last().cloned();
            let page = self.store.list(&self.dir, after.as_deref(), PAGE).await?;
            let last = page.len() < PAGE;
            keys.extend(page.into_iter().map(|o| o.key));
            if last {
                return Ok(keys);
            }
        }
    }

    async fn create<T: Serialize>(&self, path: &str, what: &T) -> Result<bool> {
        let bytes = serde_json::to_vec(what)
            .map_err(|e| Error::bug("shared work cannot be written as JSON").caused_by(e))?;
        let key = format!("{}{path}", self.dir);
        let outcome = self.store.put_if_absent(&key, bytes.into()).await?;
        Ok(outcome == PutOutcome::Created)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let key = format!("{}{path}", self.dir);
        let Some(bytes) = self.store.get(&key).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::fatal(Kind::Corrupt, format!("{key} is damaged: {e}"))
                .hint("delete the stream's _work directory; its chunks are read again")
        })
    }

    async fn remove(&self, paths: &[String]) -> Result<()> {
        let keys: Vec<String> = paths.iter().map(|p| format!("{}{p}", self.dir)).collect();
        self.store.delete(&keys).await
    }
}

fn offer_path(n: u64) -> String {
    format!("offers/{n:0DIGITS$}.json")
}

fn claim_path(n: u64) -> String {
    format!("claims/{n:0DIGITS$}.json")
}

fn beat_path(worker: u32, threads: u32, i: u64) -> String {
    format!("workers/{worker:0DIGITS$}/beats/{threads}-{i:0DIGITS$}")
}

fn report_path(worker: u32, i: u64) -> String {
    format!("workers/{worker:0DIGITS$}/reports/{i:0DIGITS$}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn log(store: &MemoryStore) -> CommitLog {
        CommitLog::new(Arc::new(store.clone()), "shop")
    }

    fn offer(id: u32) -> Offer {
        Offer {
            table: TableName::new("public", "orders"),
            schema_version: 1,
            base_seq: 7,
            base_position: Position::new("0/1"),
            chunk: Chunk {
                id,
                after: None,
                through: None,
            },
            epoch: 3,
        }
    }

    #[tokio::test]
    async fn a_chunk_has_one_reader() {
        let store = MemoryStore::new();
        let round = WorkRound::open(&log(&store), 2, 5, "r").await.unwrap();
        round.offer(1, &offer(1)).await.unwrap();
        let (found, opened) = WorkRound::find(&log(&store)).await.unwrap().unwrap();
        assert_eq!((found.name(), opened.generation), (round.name(), 2));
        let (a, b) = (found.join(4).await.unwrap(), found.join(2).await.unwrap());
        assert_eq!((a, b), (1, 2));
        assert!(found.claim(1, Some(a)).await.unwrap());
        assert!(found.claim(1, Some(a)).await.unwrap(), "its own, again");
        assert!(!found.claim(1, Some(b)).await.unwrap());
        assert!(!round.claim(1, None).await.unwrap());
        found.beat(a, 4, 1).await.unwrap();
        let seen = round.look().await.unwrap();
        assert_eq!(seen.workers, BTreeMap::from([(1, (1, 4)), (2, (0, 2))]));
        assert_eq!(
            (seen.offers, seen.claims),
            (BTreeSet::from([1]), BTreeSet::from([1]))
        );
        assert_eq!(round.read_offer(1).await.unwrap(), Some(offer(1)));
        round.forget(1).await.unwrap();
        assert_eq!(round.read_offer(1).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_ended_worker_reports_nothing_more() {
        let store = MemoryStore::new();
        let round = WorkRound::open(&log(&store), 1, 5, "r").await.unwrap();
        let k = round.join(1).await.unwrap();
        let first = Report {
            finished: vec![1],
            ..Report::default()
        };
        assert!(round.report(k, 0, &first).await.unwrap());
        assert!(round.report(k, 0, &first).await.unwrap(), "a lost reply");
        // The owner comes too late for the first, and in time for the second.
        assert_eq!(round.revoke(k, 0).await.unwrap(), Some(first.clone()));
        assert_eq!(round.revoke(k, 1).await.unwrap(), None);
        assert!(!round.report(k, 1, &first).await.unwrap());
        assert_eq!(
            round.look().await.unwrap().reports,
            BTreeMap::from([(k, 2)])
        );
    }

    #[tokio::test]
    async fn a_new_round_removes_the_others() {
        let store = MemoryStore::new();
        let old = WorkRound::open(&log(&store), 1, 9, "r").await.unwrap();
        old.offer(1, &offer(1)).await.unwrap();
        let new = WorkRound::open(&log(&store), 2, 5, "r").await.unwrap();
        assert_eq!(old.look().await.unwrap(), Seen::default());
        let found = WorkRound::find(&log(&store)).await.unwrap();
        assert_eq!(found.unwrap().0.name(), new.name());
        new.close().await.unwrap();
        assert!(WorkRound::find(&log(&store)).await.unwrap().is_none());
        assert!(store.objects().is_empty());
    }
}
