//! `caudal checkpoints rewind`: an older commit becomes the head again.
//!
//! What would be dropped is gathered from the log alone, and the source is asked whether it
//! still has its log from there; then one entry does it all (INV-1). Whoever commits between
//! the two takes the entry's place, and everything is looked at again. The command needs no
//! state directory: a running agent is fenced by the entry's generation (INV-8), and the next
//! start finds the entry in the log as any other, with the whole state in it.

use crate::crash::{self, CrashPoints};
use crate::history::{self, Backward, Dropped};
use crate::text::grouped;
use caudal_model::{
    Checkpoint, Class, Error, Kind, Position, Result, TableName, TableProgress, TableState,
};
use caudal_sinks::{CommitLog, LogEntry, Rewind, TableEntry};
use caudal_sources::Source;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Attempts to be the one whose entry follows the head.
const ATTEMPTS: u32 = 20;

/// Which commit is to be the head again.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// This one.
    Epoch(u64),
    /// The newest that was committed by then.
    Time(DateTime<Utc>),
    /// The newest that reaches no further than this position of the source.
    Position(Position),
}

/// What becomes of one table.
#[derive(Debug, Clone, Serialize)]
pub struct TableEffect {
    /// The table.
    pub table: TableName,
    /// Files that readers lose.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// What the next run does with it.
    pub then: String,
}

/// What a rewind does, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct Effect {
    /// The commit that is the head again.
    pub to: u64,
    /// When that was committed.
    pub committed_at: String,
    /// How far the lake reaches with it.
    pub position: Position,
    /// The `_seq` after which numbers go on.
    pub seq: i64,
    /// The head that is left.
    pub from: u64,
    /// How far the lake reached with that.
    pub from_position: Position,
    /// Commits that are dropped.
    pub commits: u64,
    /// Files that are dropped, and stay in the store until a sweep.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The tables of the stream.
    pub tables: Vec<TableEffect>,
    /// Whether the source still has its log from there.
    pub replayable: bool,
    /// Why it has not.
    pub lost: Option<String>,
    /// The lake is in that state already: there is nothing to do.
    pub already: bool,
    /// The entry that did it.
    pub epoch: Option<u64>,
}

/// What a rewind needs.
pub struct Rewinding<'a> {
    /// The lake.
    pub log: &'a CommitLog,
    /// The database.
    pub source: &'a dyn Source,
    /// How long commits can be rewound to.
    pub keep: Duration,
    /// Where crashes are simulated.
    pub crash: CrashPoints,
}

struct Plan {
    head: LogEntry,
    rewind: Rewind,
    effect: Effect,
}

/// What dropped commits did, by table.
#[derive(Default)]
struct Lost {
    files: Vec<String>,
    rows: u64,
}

impl Rewinding<'_> {
    /// What a rewind would do. Whether the source could replay is in [`Effect::lost`].
    ///
    /// Errors: [`Kind::Config`] if there is no such commit to rewind to.
    pub async fn look(&self, target: &Target) -> Result<Effect> {
        let Plan {
            mut effect, rewind, ..
        } = self.plan(target).await?;
        match self.replayable(&rewind).await {
            Ok(()) => effect.replayable = true,
            Err(e) if e.kind() == Kind::PositionLost => effect.lost = Some(e.to_string()),
            Err(e) => return Err(e),
        }
        Ok(effect)
    }

    /// Rewinds. If the target is the head already, nothing is written.
    ///
    /// Errors: as [`Self::look`]; [`Kind::PositionLost`] if the source has no longer what
    /// would have to be replayed.
    pub async fn execute(&self, target: &Target) -> Result<Effect> {
        for _ in 0..ATTEMPTS {
            let Plan {
                head,
                rewind,
                mut effect,
            } = self.plan(target).await?;
            self.require(&effect, &rewind).await?;
            effect.replayable = true;
            if effect.already {
                return Ok(effect);
            }
            self.crash.reach(crash::REWIND_PLANNED)?;
            let receipt = match self.log.rewind(&head, rewind.clone()).await {
                Ok(receipt) => receipt.map(|r| r.epoch()),
                // The entry may stand all the same.
                Err(e) if e.class() == Class::Retryable => match self.log.head(None).await? {
                    Some(h) if h.writer == self.log.writer() => Some(h.epoch),
                    _ => return Err(e),
                },
                Err(e) => return Err(e),
            };
            if receipt.is_some() {
                self.crash.reach(crash::REWOUND)?;
                effect.epoch = receipt;
                // What an agent had in hand when it was fenced may have been let go since.
                self.require(&effect, &rewind).await?;
                return Ok(effect);
            }
        }
        Err(Error::retryable(
            Kind::Store,
            format!("another agent's commits came first {ATTEMPTS} times"),
        )
        .hint("stop the agent, then rewind again"))
    }

    /// Whether this is the server that the target was of (INV-10), and still has the log.
    async fn replayable(&self, rewind: &Rewind) -> Result<()> {
        let position = &rewind.through.position;
        if let Some(held) = &rewind.server {
            self.source.recognize(held, position).await?;
        }
        self.source.replayable(position).await
    }

    async fn require(&self, effect: &Effect, rewind: &Rewind) -> Result<()> {
        self.replayable(rewind).await.map_err(|e| {
            if e.kind() != Kind::PositionLost {
                return e;
            }
            let what = format!("cannot replay from commit {}: {e}", effect.to);
            let written = match effect.epoch {
                None => "nothing was changed",
                Some(_) => "the rewind stands; `caudal resnapshot` for every table begins anew",
            };
            Error::fatal(Kind::PositionLost, what).hint(format!(
                "{written}. `caudal checkpoints list` shows younger commits; PostgreSQL keeps what \
                 checkpoints.replay_window says, MySQL and MariaDB what binlog_expire_logs_seconds \
                 says. `caudal resnapshot TABLE` copies a table as it is now"
            ))
        })
    }

    async fn plan(&self, target: &Target) -> Result<Plan> {
        let Some(head) = self.log.head(None).await? else {
            return Err(refused("the stream has no commit yet"));
        };
        let mut lost: BTreeMap<TableName, Lost> = BTreeMap::new();
        let mut ranges: Vec<Dropped> = Vec::new();
        let (mut commits, mut bytes) = (0, 0);
        let mut back = Backward::kept(self.log, head.epoch);
        let to = loop {
            let Some((entry, _)) = back.next().await? else {
                return Err(self.none(target, &head, &ranges));
            };
            if self.is_target(target, &entry)? {
                break entry;
            }
            if matches!(target, Target::Epoch(e) if *e > entry.epoch) {
                return Err(self.none(target, &head, &ranges));
            }
            commits += 1;
            if let Some(to) = entry.rewind_to {
                let by = entry.epoch;
                ranges.push(Dropped { to, by });
            }
            for t in &entry.tables {
                let lost = lost.entry(t.table.clone()).or_default();
                for f in &t.files {
                    lost.files.push(f.path.clone());
                    lost.rows += f.rows;
                    bytes += f.bytes;
                }
            }
        };
        self.refuse_expired(&to)?;
        let now = history::state_at(self.log, head.epoch).await?;
        let then = history::state_at(self.log, to.epoch).await?;
        let (state, tables) = after(&then, &now, &lost);
        let effects = now.tables.iter().filter(|t| !t.ended);
        let effects = effects.map(|now| {
            let then = then.tables.iter().find(|t| t.table == now.table);
            let lost = lost.get(&now.table);
            TableEffect {
                table: now.table.clone(),
                files: lost.map_or(0, |l| l.files.len() as u64),
                rows: lost.map_or(0, |l| l.rows),
                then: fate(then, now),
            }
        });
        let effect = Effect {
            to: to.epoch,
            committed_at: to.committed_at.clone(),
            position: to.through.position.clone(),
            seq: to.through.seq,
            from: head.epoch,
            from_position: head.through.position.clone(),
            commits,
            files: lost.values().map(|l| l.files.len() as u64).sum(),
            rows: lost.values().map(|l| l.rows).sum(),
            bytes,
            tables: effects.collect(),
            replayable: false,
            lost: None,
            already: to.epoch == head.epoch || head.rewind_to == Some(to.epoch),
            epoch: None,
        };
        let rewind = Rewind {
            to: to.epoch,
            through: to.through,
            server: then.server,
            tables,
            state,
        };
        Ok(Plan {
            head,
            rewind,
            effect,
        })
    }

    fn is_target(&self, target: &Target, entry: &LogEntry) -> Result<bool> {
        Ok(match target {
            Target::Epoch(epoch) => entry.epoch == *epoch,
            Target::Time(time) => history::committed_at(entry).is_some_and(|at| at <= *time),
            Target::Position(position) => {
                let covered = self.source.covers(position, &entry.through.position);
                covered.map_err(|e| refused(format!("--to-position: {e}")))?
            }
        })
    }

    fn refuse_expired(&self, to: &LogEntry) -> Result<()> {
        let age = history::committed_at(to).and_then(|at| (Utc::now() - at).to_std().ok());
        match age {
            Some(age) if age > self.keep => Err(refused(format!(
                "commit {} was committed at {}, which is longer ago than checkpoints.keep",
                to.epoch, to.committed_at
            ))
            .hint("raise checkpoints.keep if its files are still there")),
            _ => Ok(()),
        }
    }

    /// Why there is nothing to rewind to.
    fn none(&self, target: &Target, head: &LogEntry, ranges: &[Dropped]) -> Error {
        let hint = "`caudal checkpoints list` shows the commits that can be rewound to";
        let Target::Epoch(epoch) = target else {
            return refused("no commit is that old").hint(hint);
        };
        let what = match ranges.iter().find(|d| d.holds(*epoch)) {
            Some(d) => format!(
                "commit {epoch} was dropped by the rewind {}, which went back to commit {}: commits up \
                 to {} and from {} on can be chosen",
                d.by, d.to, d.to, d.by
            ),
            None => format!(
                "commit {epoch} does not exist: there are 1 to {}",
                head.epoch
            ),
        };
        refused(what).hint(hint)
    }
}

fn refused(what: impl Into<String>) -> Error {
    Error::fatal(Kind::Config, what)
}

/// The state after the rewind, and what its entry says of the tables that dropped commits name.
///
/// Numbers of schema versions and of copies that were committed are never given again:
/// whoever has read them keeps their meaning. So a table that joined the stream after the
/// target stays known as one that has left it, and is copied again when it is found.
fn after(
    then: &Checkpoint,
    now: &Checkpoint,
    lost: &BTreeMap<TableName, Lost>,
) -> (Vec<TableProgress>, Vec<TableEntry>) {
    let mut state = then.tables.clone();
    let mut joined = BTreeSet::new();
    for n in &now.tables {
        match state.iter_mut().find(|t| t.table == n.table) {
            Some(t) if n.last_version() > t.schema_version => t.greatest_version = n.last_version(),
            Some(_) => {}
            None => {
                joined.insert(&n.table);
                state.push(TableProgress {
                    schema_version: n.schema_version,
                    greatest_version: n.greatest_version,
                    copy: n.copy,
                    ended: true,
                    ..TableProgress::pending(n.table.clone())
                });
            }
        }
    }
    let mut tables = Vec::with_capacity(lost.len());
    for p in &state {
        let touched = lost.get(&p.table);
        if touched.is_none() && !joined.contains(&p.table) {
            continue;
        }
        tables.push(TableEntry {
            removed: touched.map(|l| l.files.clone()).unwrap_or_default(),
            ended: p.ended,
            again: joined.contains(&p.table),
            ..TableEntry::untouched(p.table.clone(), p.schema_version)
        });
    }
    (state, tables)
}

/// What the next run does with a table.
fn fate(then: Option<&TableProgress>, now: &TableProgress) -> String {
    let Some(then) = then.filter(|t| !t.ended) else {
        return "joined the stream later: is copied again when the log has told of it".to_owned();
    };
    let done = then.chunks.len();
    match then.state {
        TableState::Live if then.copy == now.copy => "stays live".to_owned(),
        TableState::Live => "is live with the copy before; the newer one is dropped".to_owned(),
        TableState::Snapshotting => format!(
            "goes on being copied, with {} of {} known chunks",
            grouped(done as u64),
            grouped(u64::from(then.chunks_total))
        ),
        TableState::Pending => "is copied again".to_owned(),
        TableState::Errored => format!(
            "is errored again: {}",
            then.error.as_deref().unwrap_or("no reason was given")
        ),
    }
}
