//! Whether copies may read now: the hours of the day, the source's load, and what users ask.
//!
//! Only chunks that would begin wait; one that is being read is finished, so nothing stays
//! open at the source. The log is read all the time, which is also what lets the source
//! forget it: copies that wait for retained log wait for the lake to catch up.

use crate::config::Windows;
use crate::requests::Paused;
use crate::text;
use caudal_model::TableName;
use caudal_sources::SourceLoad;
use chrono::{DateTime, SecondsFormat, Utc};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Growth of the retained log below this is the ordinary coming and going of commits.
const GROWTH: u64 = 64 << 20;

/// What the source is to be spared.
#[derive(Debug, Clone, Default)]
pub struct Budgets {
    /// The hours of copies.
    pub window: Windows,
    /// The most that a replica may be behind; zero is no limit.
    pub max_replica_lag: Duration,
    /// The most transactions that may be open; zero is no limit.
    pub max_open_transactions: u64,
    /// The most bytes of log that the source may keep for the stream; zero is no limit.
    pub max_retained_log: u64,
}

impl Budgets {
    /// Whether [`caudal_sources::Source::load`] must be asked for them.
    pub fn need_load(&self) -> bool {
        !self.max_replica_lag.is_zero() || self.max_open_transactions > 0
    }
}

/// Why copies wait.
#[derive(Debug, Clone, PartialEq)]
pub enum Pause {
    /// Somebody asked.
    Request,
    /// No window is open before this moment.
    Window(DateTime<Utc>),
    /// The source keeps this much log, and may keep this much.
    RetainedLog(u64, u64),
    /// A replica is this far behind, and may be this far.
    ReplicaLag(Duration, Duration),
    /// So many transactions are open, and may be.
    OpenTransactions(u64, u64),
    /// The source has not yet told what a budget needs.
    Unknown,
}

impl Pause {
    /// Every label, for the metric.
    pub const LABELS: [&'static str; 6] = [
        "request",
        "window",
        "retained_log",
        "replica_lag",
        "open_transactions",
        "unknown",
    ];

    /// The reason in one word.
    pub fn label(&self) -> &'static str {
        Self::LABELS[match self {
            Pause::Request => 0,
            Pause::Window(_) => 1,
            Pause::RetainedLog(..) => 2,
            Pause::ReplicaLag(..) => 3,
            Pause::OpenTransactions(..) => 4,
            Pause::Unknown => 5,
        }]
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pause::Request => f.write_str("paused by `caudal snapshot pause`"),
            Pause::Window(opens) => {
                let opens = opens.to_rfc3339_opts(SecondsFormat::Secs, true);
                write!(f, "outside snapshot.window until {opens}")
            }
            Pause::RetainedLog(is, most) => write!(
                f,
                "the source keeps {} of log, over snapshot.max_retained_log ({})",
                text::bytes(*is),
                text::bytes(*most)
            ),
            // What does not apply its log at all is behind by no number.
            Pause::ReplicaLag(is, _) if is.as_secs() > u64::from(u32::MAX) => {
                f.write_str("a replica does not apply its log (snapshot.max_replica_lag)")
            }
            Pause::ReplicaLag(is, most) => write!(
                f,
                "a replica is {} s behind, over snapshot.max_replica_lag ({} s)",
                is.as_secs(),
                most.as_secs()
            ),
            Pause::OpenTransactions(is, most) => write!(
                f,
                "{is} transactions are open, over snapshot.max_open_transactions ({most})"
            ),
            Pause::Unknown => f.write_str("the source has not yet told its load"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    load: Option<SourceLoad>,
    retained: Option<Option<u64>>,
    asked: Paused,
    pause: Option<Pause>,
    /// The least retained log since copies wait for it.
    least_retained: Option<u64>,
}

/// Lets chunks begin, or not.
#[derive(Debug, Default)]
pub struct Gate {
    budgets: Budgets,
    state: Mutex<State>,
}

/// Whether an amount is over its budget. Who waits goes on only well below it, so that
/// copies do not stop and go with every chunk.
fn over(is: u64, most: u64, waits: bool) -> bool {
    most > 0 && is > if waits { most / 5 * 4 } else { most }
}

impl Gate {
    /// A gate that is closed until the budgets are known to be kept.
    pub fn new(budgets: Budgets, asked: Paused) -> Self {
        let gate = Gate {
            budgets,
            state: Mutex::default(),
        };
        gate.ask(asked);
        gate.look(Utc::now());
        gate
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the source's load must be asked for.
    pub fn needs_load(&self) -> bool {
        self.budgets.need_load()
    }

    /// What users ask for.
    pub fn ask(&self, asked: Paused) {
        let mut s = self.lock();
        if s.asked.tables != asked.tables {
            let tables: Vec<String> = asked.tables.iter().map(ToString::to_string).collect();
            tracing::info!(
                tables = tables.join(", "),
                "tables whose copies wait by request"
            );
        }
        s.asked = asked;
    }

    /// What the source says of its load.
    pub fn load(&self, load: SourceLoad) {
        self.lock().load = Some(load);
    }

    /// Bytes of log that the source keeps for the stream, where it can tell.
    pub fn retained(&self, bytes: Option<u64>) {
        self.lock().retained = Some(bytes);
    }

    /// Decides anew, at this moment, whether copies wait; says why.
    pub fn look(&self, now: DateTime<Utc>) -> Option<Pause> {
        let mut s = self.lock();
        let pause = decide(&self.budgets, &s, now);
        let retained = s.retained.flatten().unwrap_or(0);
        s.least_retained = match pause {
            Some(Pause::RetainedLog(..)) => {
                Some(s.least_retained.map_or(retained, |l| l.min(retained)))
            }
            _ => None,
        };
        s.pause.clone_from(&pause);
        pause
    }

    /// By how much the retained log has grown since copies began to wait for it, if by
    /// more than commits make it come and go.
    pub fn grown(&self) -> Option<u64> {
        let s = self.lock();
        let (least, now) = (s.least_retained?, s.retained.flatten()?);
        Some(now.saturating_sub(least)).filter(|g| *g > GROWTH)
    }

    /// The budget that cannot be kept because the source tells nothing for it.
    pub fn untold(&self) -> Option<&'static str> {
        let (b, s) = (&self.budgets, self.lock());
        let load = s.load.as_ref();
        if b.max_open_transactions > 0 && load.is_some_and(|l| l.open_transactions.is_none()) {
            return Some("max_open_transactions");
        }
        if !b.max_replica_lag.is_zero() && load.is_some_and(|l| l.replica_lag.is_none()) {
            return Some("max_replica_lag");
        }
        // Retained log is told by every source, sooner or later.
        None
    }

    /// Why this table's copy waits, by the last look.
    pub fn holds(&self, table: &TableName) -> Option<Pause> {
        let s = self.lock();
        match &s.pause {
            None if s.asked.tables.contains(table) => Some(Pause::Request),
            pause => pause.clone(),
        }
    }
}

fn decide(b: &Budgets, s: &State, now: DateTime<Utc>) -> Option<Pause> {
    if s.asked.all {
        return Some(Pause::Request);
    }
    if let Some(opens) = b.window.closed_until(now) {
        return Some(Pause::Window(opens));
    }
    let waits = |p: &str| s.pause.as_ref().is_some_and(|w| w.label() == p);
    if b.max_retained_log > 0 {
        match s.retained {
            None => return Some(Pause::Unknown),
            Some(Some(is)) if over(is, b.max_retained_log, waits("retained_log")) => {
                return Some(Pause::RetainedLog(is, b.max_retained_log));
            }
            Some(_) => {}
        }
    }
    if !b.need_load() {
        return None;
    }
    let Some(load) = s.load else {
        return Some(Pause::Unknown);
    };
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    if let Some(lag) = load.replica_lag
        && over(millis(lag), millis(b.max_replica_lag), waits("replica_lag"))
    {
        return Some(Pause::ReplicaLag(lag, b.max_replica_lag));
    }
    let open = load.open_transactions?;
    over(open, b.max_open_transactions, waits("open_transactions"))
        .then_some(Pause::OpenTransactions(open, b.max_open_transactions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> DateTime<Utc> {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn label(gate: &Gate) -> Option<&'static str> {
        gate.look(noon()).map(|p| p.label())
    }

    #[test]
    fn copies_wait_over_a_budget_and_go_on_well_below_it() {
        let gate = Gate::new(
            Budgets {
                max_replica_lag: Duration::from_secs(10),
                max_retained_log: 1 << 30,
                ..Budgets::default()
            },
            Paused::default(),
        );
        assert_eq!(label(&gate), Some("unknown"));
        gate.retained(Some(0));
        assert_eq!(label(&gate), Some("unknown"));
        let lag = |s| {
            gate.load(SourceLoad {
                replica_lag: Some(Duration::from_secs(s)),
                open_transactions: None,
            });
            label(&gate)
        };
        assert_eq!(lag(10), None);
        assert_eq!(lag(11), Some("replica_lag"));
        assert_eq!(lag(9), Some("replica_lag"), "it flaps");
        assert_eq!(lag(8), None);
        assert_eq!(lag(9), None);
        assert_eq!(lag(u64::MAX), Some("replica_lag"));
        assert!(!gate.look(noon()).unwrap().to_string().contains("1844"));
        assert_eq!(lag(0), None);
        gate.retained(Some(2 << 30));
        assert_eq!(label(&gate), Some("retained_log"));
        assert_eq!(gate.grown(), None);
        gate.retained(Some(3 << 30));
        assert_eq!(label(&gate), Some("retained_log"));
        assert_eq!(gate.grown(), Some(1 << 30));
        // A source that cannot tell is not waited for.
        gate.retained(None);
        gate.load(SourceLoad::default());
        assert_eq!(label(&gate), None);
        assert_eq!(gate.grown(), None);
        assert_eq!(gate.untold(), Some("max_replica_lag"));
        assert_eq!(lag(1), None);
        assert_eq!(gate.untold(), None);
    }

    #[test]
    fn a_window_and_a_request_hold_what_they_name() {
        let (a, b) = (TableName::new("s", "a"), TableName::new("s", "b"));
        let gate = Gate::new(
            Budgets {
                window: serde_json::from_str("\"22:00-06:00\"").unwrap(),
                ..Budgets::default()
            },
            Paused::default(),
        );
        assert_eq!(label(&gate), Some("window"));
        let night = "2026-11-21T23:00:00Z".parse().unwrap();
        assert_eq!(gate.look(night), None);
        assert_eq!(gate.holds(&a), None);
        gate.ask(Paused {
            all: false,
            tables: [a.clone()].into(),
        });
        assert_eq!(gate.look(night), None);
        assert_eq!(gate.holds(&a), Some(Pause::Request));
        assert_eq!(gate.holds(&b), None);
        gate.ask(Paused {
            all: true,
            tables: [].into(),
        });
        assert_eq!(gate.look(night), Some(Pause::Request));
        assert_eq!(gate.holds(&b), Some(Pause::Request));
    }
}
