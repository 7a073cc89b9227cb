//! INV-5 and INV-6: which transactions a SELECT sees, against which the tail has delivered.
//!
//! A commit is in the log before other sessions see it: between writing the commit
//! record and leaving the list of running transactions, a backend may even wait for
//! a synchronous standby. A snapshot that trusted positions would miss such a row,
//! and the tail, already past it, would not bring it again.
//!
//! The tail therefore notes the id of every transaction that it delivers, with its
//! position, in [`Delivered`]. A reader takes the server's snapshot and waits until
//! none of those at or before its base is still running in it. That is exact, and
//! ids that are older than every running transaction are forgotten.
//!
//! What an earlier process delivered is not in the list. The first reader of a
//! process (and the first after the list overflowed) therefore looks at every
//! transaction that holds an id at that moment: one that an earlier process
//! delivered is either among them or visible already, since it leaves the running
//! list and becomes visible in one step. Each is waited for until it
//!
//! 1. is gone, or
//! 2. is seen idle inside its transaction: it is not committing, so its commit
//!    record comes later than everything delivered before, or
//! 3. has been seen for [`GRACE`] without waiting for a standby. Its commit record, if it
//!    was delivered, had been flushed before the first look; from there a backend
//!    has no work left but to wait for a standby and to leave the list.
//!
//! A backend that waits for a standby is waited for without limit. Where the user may
//! not see what backends wait for (no `pg_read_all_stats`) and the server has
//! synchronous standbys, rule 3 does not apply.

use super::Lsn;
use super::connect::Client;
use super::connect::query_error;
use caudal_model::{Error, Kind, Result};
use std::collections::{HashMap, VecDeque};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// See rule 3 above.
const GRACE: Duration = Duration::from_secs(2);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(50);
/// Deliveries remembered: 2 MiB.
const REMEMBERED: usize = 1 << 17;

/// The server's `pg_snapshot`: 64-bit transaction ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    running: Arc<[u64]>,
}

impl FromStr for Snapshot {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::fatal(
                Kind::Corrupt,
                format!("`{text}` is not a transaction snapshot"),
            )
        };
        let mut parts = text.split(':');
        let mut number = || parts.next().and_then(|p| p.parse().ok()).ok_or_else(bad);
        let (xmin, xmax) = (number()?, number()?);
        let list = parts.next().ok_or_else(bad)?;
        let mut running = Vec::new();
        for id in list.split(',').filter(|p| !p.is_empty()) {
            running.push(id.parse().map_err(|_| bad())?);
        }
        running.sort_unstable();
        if parts.next().is_some() || xmin > xmax {
            return Err(bad());
        }
        Ok(Snapshot {
            xmin,
            xmax,
            running: running.into(),
        })
    }
}

impl Snapshot {
    /// The server's snapshot of the current statement or transaction, with its text.
    pub async fn take(client: &Client) -> Result<(Self, String)> {
        let row = client
            .query_one("SELECT pg_current_snapshot()::text", &[])
            .await
            .map_err(query_error)?;
        let text: String = row.get(0);
        Ok((text.parse()?, text))
    }

    /// Whether a committed transaction's changes are seen.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }

    /// The id that the next transaction gets, or a lower one.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }
}

/// Gives the log's 32-bit transaction ids their epoch.
///
/// Ids in use lie within 2^31 of one another, so the nearest to a known one is meant.
#[derive(Debug, Clone, Copy)]
pub struct XidClock(u64);

impl XidClock {
    /// A clock near this id.
    pub fn at(xid: u64) -> Self {
        XidClock(xid)
    }

    /// The 64-bit id; the clock follows it forward.
    pub fn extend(&mut self, xid: u32) -> u64 {
        let full = nearest(xid, self.0);
        self.0 = self.0.max(full);
        full
    }
}

fn nearest(xid: u32, to: u64) -> u64 {
    // The low half of the reference is meant.
    let distance = xid.wrapping_sub(to as u32) as i32;
    to.saturating_add_signed(i64::from(distance))
}

#[derive(Debug, Default)]
struct State {
    commits: VecDeque<(u32, Lsn)>,
    /// Every transaction that was delivered and may be running is in `commits`.
    complete: bool,
}

/// Transactions that the tail has delivered lately.
#[derive(Debug, Default)]
pub struct Delivered(Mutex<State>);

impl Delivered {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the list worse than incomplete in its last entry.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tail is about to hand out this commit.
    pub fn note(&self, xid: u32, position: Lsn) {
        let mut state = self.state();
        if state.commits.len() == REMEMBERED {
            state.commits.drain(..REMEMBERED / 2);
            state.complete = false;
        }
        state.commits.push_back((xid, position));
    }

    /// Whether everything noted at or before `base` is seen, and forgets what everybody sees.
    fn all_seen(&self, snapshot: &Snapshot, base: Lsn) -> bool {
        let mut state = self.state();
        while let Some((xid, _)) = state.commits.front() {
            if nearest(*xid, snapshot.xmax) >= snapshot.xmin {
                break;
            }
            state.commits.pop_front();
        }
        state
            .commits
            .iter()
            .all(|(xid, at)| *at > base || snapshot.sees(nearest(*xid, snapshot.xmax)))
    }

    /// Waits until everything delivered at or before `base` is visible to a statement
    /// that starts afterwards.
    pub async fn await_visible(&self, client: &Client, base: Lsn) -> Result<()> {
        self.await_earlier(client).await?;
        let mut waited = Waited::new();
        loop {
            let (snapshot, _) = Snapshot::take(client).await?;
            if self.all_seen(&snapshot, base) {
                return Ok(());
            }
            waited.tick("a commit that is not visible yet").await;
        }
    }

    /// The same for the snapshot that an open transaction already has.
    pub fn seen_by(&self, snapshot: &Snapshot, base: Lsn) -> bool {
        self.all_seen(snapshot, base)
    }

    /// Waits for what an earlier process may have delivered (see the header).
    pub async fn await_earlier(&self, client: &Client) -> Result<()> {
        if self.state().complete {
            return Ok(());
        }
        let mut suspects: Option<HashMap<String, Instant>> = None;
        let mut waited = Waited::new();
        loop {
            let now = Instant::now();
            let running = look(client).await?;
            match &mut suspects {
                None => suspects = Some(running.keys().map(|x| (x.clone(), now)).collect()),
                Some(known) => known.retain(|xid, since| {
                    running
                        .get(xid)
                        .is_some_and(|r| !r.harmless(now.duration_since(*since)))
                }),
            }
            if suspects.as_ref().is_some_and(HashMap::is_empty) {
                self.state().complete = true;
                return Ok(());
            }
            waited
                .tick("transactions that were running at the start")
                .await;
        }
    }
}

struct Waited {
    since: Instant,
    told: Duration,
}

impl Waited {
    fn new() -> Self {
        Waited {
            since: Instant::now(),
            told: Duration::ZERO,
        }
    }

    async fn tick(&mut self, what: &str) {
        tokio::time::sleep(POLL).await;
        let waited = self.since.elapsed();
        if waited >= self.told + Duration::from_secs(10) {
            self.told = waited;
            tracing::warn!(
                waited_seconds = waited.as_secs(),
                "a table's copy waits for {what}; a synchronous standby may be down, or caudal's user lacks pg_monitor"
            );
        }
    }
}

/// What a running transaction does.
#[derive(Debug)]
struct Running {
    /// Nothing can be said while this is false.
    known: bool,
    idle: bool,
    waits_for_standby: bool,
}

impl Running {
    fn harmless(&self, seen_for: Duration) -> bool {
        self.idle || (self.known && !self.waits_for_standby && seen_for >= GRACE)
    }
}

/// Every transaction that holds an id, by it.
///
/// A prepared transaction has no backend: it may be what a COMMIT PREPARED that waits
/// for a standby is committing, so it counts as waiting while any backend does.
async fn look(client: &Client) -> Result<HashMap<String, Running>> {
    const LOOK: &str = "
WITH a AS (SELECT backend_xid, state, wait_event, backend_type FROM pg_stat_activity),
     s AS (SELECT current_setting('synchronous_standby_names') = '' AS alone,
                  pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sighted,
                  (SELECT count(*) FROM a WHERE wait_event = 'SyncRep') > 0 AS waiting)
SELECT a.backend_xid::text, s.alone OR s.sighted,
       coalesce(a.state LIKE 'idle in transaction%', false), coalesce(a.wait_event = 'SyncRep', false)
  FROM a, s WHERE a.backend_xid IS NOT NULL
UNION ALL
SELECT p.transaction::text, s.alone OR s.sighted, false, s.waiting FROM pg_prepared_xacts p, s";
    let rows = client.query(LOOK, &[]).await.map_err(query_error)?;
    Ok(rows
        .iter()
        .map(|r| {
            let running = Running {
                known: r.get(1),
                idle: r.get(2),
                waits_for_standby: r.get(3),
            };
            (r.get(0), running)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_ended_before_it() {
        let s: Snapshot = "100:110:100,105".parse().unwrap();
        for (xid, seen) in [
            (99, true),
            (100, false),
            (101, true),
            (105, false),
            (109, true),
            (110, false),
        ] {
            assert_eq!(s.sees(xid), seen, "{xid}");
        }
        assert!("100:100:".parse::<Snapshot>().unwrap().sees(99));
        for bad in ["", "1", "1:2", "2:1:", "1:2:x", "1:2::"] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_keep_their_epoch_over_a_wraparound() {
        let mut clock = XidClock::at((7 << 32) - 10);
        assert_eq!(clock.extend(u32::MAX - 20), (7 << 32) - 21);
        assert_eq!(clock.extend(5), (7 << 32) + 5);
        assert_eq!(clock.extend(u32::MAX), (7 << 32) - 1);
        assert_eq!(clock.extend(6), (7 << 32) + 6);
    }

    #[test]
    fn deliveries_are_waited_for_up_to_the_base_and_then_forgotten() {
        let delivered = Delivered::default();
        for (xid, at) in [(98, 10), (105, 20), (111, 30)] {
            delivered.note(xid, Lsn(at));
        }
        let s: Snapshot = "100:110:105".parse().unwrap();
        assert!(delivered.all_seen(&s, Lsn(19)));
        assert!(!delivered.all_seen(&s, Lsn(20)));
        assert_eq!(delivered.state().commits.len(), 2);
        let s: Snapshot = "110:110:".parse().unwrap();
        assert!(delivered.all_seen(&s, Lsn(20)));
        assert!(
            !delivered.all_seen(&s, Lsn(30)),
            "its id was given out after the snapshot"
        );
        let s: Snapshot = "112:112:".parse().unwrap();
        assert!(delivered.all_seen(&s, Lsn(30)) && delivered.state().commits.is_empty());
    }
}
