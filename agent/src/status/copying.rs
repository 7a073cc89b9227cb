//! How far the copies are: rates, what is left, and the time that it takes.
//!
//! A rate is smoothed over the last while, and time in which a copy had to wait does not
//! count. What cannot be known (a table without statistics, or with more rows than they
//! say) is left open, not guessed.

use super::TableStatus;
use caudal_model::TableState;
use serde::{Deserialize, Serialize};

/// Seconds over which a rate is smoothed.
const SMOOTH: f64 = 20.0;

/// A table is being read if rows came within so many seconds.
const RECENT: f64 = 3.0;
/// Below so many tables a second, it is rows that take the time.
const MANY_TABLES: f64 = 1.0;

/// Rows a second, smoothed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Meter {
    seen: u64,
    worked: f64,
    /// Seconds since the count rose.
    idle: f64,
    rate: Option<f64>,
}

impl Meter {
    /// Begins at a count.
    pub(super) fn at(rows: u64) -> Meter {
        Meter {
            seen: rows,
            ..Meter::default()
        }
    }

    /// The count rose to `rows` within `seconds`. Where it `waits`, standing still says nothing.
    pub(super) fn sample(&mut self, rows: u64, seconds: f64, waits: bool) {
        let read = rows.saturating_sub(self.seen);
        self.seen = rows;
        self.idle = if read > 0 { 0.0 } else { self.idle + seconds };
        if seconds <= 0.0 || (read == 0 && (waits || self.rate.is_none())) {
            return;
        }
        self.worked += seconds;
        let now = read as f64 / seconds;
        let old = self.rate.unwrap_or(now);
        // The first samples weigh alike.
        let weight = (1.0 - (-seconds / SMOOTH).exp()).max(seconds / self.worked);
        self.rate = Some(old + (now - old) * weight.min(1.0));
    }

    /// With one decimal.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate.map(|r| (r * 10.0).round() / 10.0)
    }

    /// Whole seconds that so many rows take, if they can be told.
    fn seconds(&self, rows: Option<u64>) -> Option<u64> {
        match (rows?, self.rate) {
            (0, _) => Some(0),
            (rows, Some(rate)) if rate >= 0.1 => Some((rows as f64 / rate).ceil() as u64),
            _ => None,
        }
    }
}

/// How far a table's copy is: what this process knows beyond what is committed.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct CopyProgress {
    /// Rows read from the source in this copy, committed or not.
    pub(super) rows_read: u64,
    /// The planner's estimate of the table's rows; 0 where it has none.
    pub(super) estimated_rows: u64,
    /// Why it waits.
    pub(super) paused: Option<String>,
    /// Copied since the last time that nothing was to be copied.
    pub(super) counts: bool,
    /// Every row has been read.
    pub(super) over: bool,
    pub(super) meter: Meter,
}

pub(super) fn is_copying(state: TableState) -> bool {
    matches!(state, TableState::Pending | TableState::Snapshotting)
}

impl CopyProgress {
    /// The table's status with what this process knows of its copy.
    pub(super) fn describe(&self, committed: &TableStatus) -> TableStatus {
        let mut t = committed.clone();
        if !is_copying(t.state) {
            return t;
        }
        t.snapshot_rows = t.snapshot_rows.max(self.rows_read);
        t.copied |= self.over;
        // Nothing waits where nothing is left to read.
        t.paused
            .clone_from(if t.copied { &None } else { &self.paused });
        if t.copied {
            t.estimated_rows = Some(t.snapshot_rows);
        } else if self.estimated_rows > 0 {
            t.estimated_rows = Some(self.estimated_rows.max(t.snapshot_rows));
        }
        t.reading = !t.copied && self.meter.rate.is_some() && self.meter.idle < RECENT;
        t.rows_per_second = self.meter.rate();
        t.seconds_left = self.meter.seconds(self.left(&t));
        t
    }

    /// Rows left to read, if they can be told.
    fn left(&self, t: &TableStatus) -> Option<u64> {
        if t.copied || !is_copying(t.state) {
            return Some(0);
        }
        match t.estimated_rows {
            Some(estimate) if estimate > t.snapshot_rows => Some(estimate - t.snapshot_rows),
            // Statistics are not exact: it may be the last rows, or it is anybody's guess.
            Some(_) if self.estimated_rows / 10 * 11 >= t.snapshot_rows => Some(0),
            // An empty table has an estimate of nothing.
            None if t.snapshot_rows == 0 => Some(0),
            _ => None,
        }
    }
}

/// All copies together, while there is one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Tables that are live, of `tables_total`.
    pub tables_done: u64,
    /// Tables of this copy.
    pub tables_total: u64,
    /// Rows read so far.
    pub rows: u64,
    /// Rows in all, as far as the source's statistics say.
    pub estimated_rows: u64,
    /// Rows read in a second, smoothed.
    pub rows_per_second: Option<f64>,
    /// Bytes of the copies' committed files.
    pub bytes: u64,
    /// Chunks that are committed.
    pub chunks_done: u64,
    /// Chunks planned so far.
    pub chunks_total: u64,
    /// Seconds that what is left takes at this rate; unknown where a table has more rows
    /// than the statistics say.
    pub seconds_left: Option<u64>,
    /// Why every copy waits.
    pub paused: Option<String>,
}

/// How fast all copies are together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Pulse {
    pub(super) rows: Meter,
    /// Tables begun: of many small ones, each takes its time whatever its rows.
    pub(super) tables: Meter,
}

impl Pulse {
    fn seconds(&self, rows: Option<u64>, tables: u64) -> Option<u64> {
        let rows = self.rows.seconds(rows)?;
        let many = self.tables.rate.filter(|r| *r >= MANY_TABLES);
        Some(many.map_or(rows, |r| rows.max((tables as f64 / r).ceil() as u64)))
    }
}

/// Whether anything of the table has been read.
fn is_begun(t: &TableStatus, copy: &CopyProgress) -> bool {
    !is_copying(t.state) || t.copied || copy.rows_read > 0
}

/// Whether this process has begun to read the table.
pub(super) fn is_begun_here(t: &TableStatus, copy: &CopyProgress) -> bool {
    copy.counts && (copy.meter.rate.is_some() || !is_copying(t.state))
}

impl SnapshotStatus {
    /// Over all tables; `None` when none is being copied.
    pub(super) fn of<'t>(
        tables: impl Iterator<Item = (&'t TableStatus, &'t CopyProgress)> + Clone,
        pulse: &Pulse,
        paused: Option<&String>,
    ) -> Option<SnapshotStatus> {
        tables.clone().find(|(t, _)| is_copying(t.state))?;
        let mut sum = SnapshotStatus::default();
        let mut left = Some(0_u64);
        let mut waiting = 0;
        for (t, copy) in tables.filter(|(t, c)| c.counts || is_copying(t.state)) {
            sum.tables_total += 1;
            sum.tables_done += u64::from(t.state == TableState::Live);
            sum.rows = sum.rows.saturating_add(t.snapshot_rows);
            let estimate = t.estimated_rows.unwrap_or(t.snapshot_rows);
            sum.estimated_rows = sum.estimated_rows.saturating_add(estimate);
            sum.bytes = sum.bytes.saturating_add(t.bytes);
            sum.chunks_done += u64::from(t.chunks_done);
            sum.chunks_total += u64::from(t.chunks_total);
            waiting += u64::from(!is_begun(t, copy));
            left = left.zip(copy.left(t)).map(|(a, b)| a.saturating_add(b));
        }
        sum.rows_per_second = pulse.rows.rate();
        sum.seconds_left = pulse.seconds(left, waiting);
        sum.paused = paused.cloned();
        Some(sum)
    }
}

/// What is known without an agent: the totals of what is committed.
pub fn committed(tables: &[TableStatus]) -> Option<SnapshotStatus> {
    let nothing = CopyProgress::default();
    let all = tables.iter().map(|t| (t, &nothing));
    let mut sum = SnapshotStatus::of(all, &Pulse::default(), None)?;
    sum.seconds_left = None;
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_model::{TableName, TableProgress};

    fn table(name: &str, state: TableState, committed: u64) -> TableStatus {
        let mut p = TableProgress::pending(TableName::new("s", name));
        p.state = state;
        p.snapshot_rows = committed;
        p.chunks_total = 3;
        TableStatus::from(&p)
    }

    fn copy(rows_read: u64, estimated_rows: u64, rate: u64) -> CopyProgress {
        let mut meter = Meter::at(rows_read - rate.min(rows_read));
        meter.sample(rows_read, 1.0, false);
        CopyProgress {
            rows_read,
            estimated_rows,
            counts: true,
            over: false,
            meter,
            paused: None,
        }
    }

    #[test]
    fn a_rate_is_smooth_and_ignores_pauses() {
        let mut m = Meter::at(500);
        m.sample(500, 1.0, false);
        assert_eq!(m.rate(), None, "nothing was read yet");
        m.sample(600, 1.0, false);
        m.sample(800, 1.0, false);
        assert_eq!(m.rate(), Some(150.0));
        for _ in 0..100 {
            m.sample(800, 1.0, true);
        }
        assert_eq!(m.rate(), Some(150.0));
        assert_eq!(m.seconds(Some(301)), Some(3));
        for second in 1..200_u64 {
            m.sample(800 + 1000 * second, 1.0, false);
        }
        assert!((m.rate().unwrap() - 1000.0).abs() < 1.0, "{m:?}");
        for _ in 0..1000 {
            m.sample(0, 1.0, false);
        }
        assert_eq!((m.seconds(Some(5)), m.seconds(Some(0))), (None, Some(0)));
    }

    #[test]
    fn what_is_left_is_told_only_where_it_is_known() {
        let copying = table("a", TableState::Snapshotting, 10);
        let t = copy(100, 1000, 90).describe(&copying);
        assert_eq!((t.snapshot_rows, t.estimated_rows), (100, Some(1000)));
        assert_eq!((t.rows_per_second, t.seconds_left), (Some(90.0), Some(10)));
        let t = copy(1050, 1000, 90).describe(&copying);
        assert_eq!((t.estimated_rows, t.seconds_left), (Some(1050), Some(0)));
        // More rows than the statistics say.
        let t = copy(2000, 1000, 90).describe(&copying);
        assert_eq!((t.estimated_rows, t.seconds_left), (Some(2000), None));
        // No statistics at all.
        let t = copy(100, 0, 90).describe(&copying);
        assert_eq!((t.estimated_rows, t.seconds_left), (None, None));
        // Read to its end, and not yet live.
        let read = TableStatus {
            copied: true,
            ..copying
        };
        let t = copy(100, 1000, 90).describe(&read);
        assert_eq!((t.estimated_rows, t.seconds_left), (Some(100), Some(0)));
        let uncommitted = CopyProgress {
            over: true,
            paused: Some("why".into()),
            ..copy(1000, 1000, 90)
        };
        let t = uncommitted.describe(&table("a", TableState::Snapshotting, 10));
        assert_eq!(
            (t.seconds_left, t.paused, t.reading),
            (Some(0), None, false)
        );
        let live = copy(100, 1000, 90).describe(&table("a", TableState::Live, 100));
        assert_eq!((live.rows_per_second, live.estimated_rows), (None, None));
    }

    #[test]
    fn the_total_is_of_the_tables_that_are_copied_together() {
        let old = (table("a", TableState::Live, 999), CopyProgress::default());
        let done = (table("b", TableState::Live, 90), copy(90, 100, 1));
        let pending = (table("d", TableState::Pending, 0), copy(0, 50, 0));
        let copying = |rows, estimate| {
            (
                table("c", TableState::Snapshotting, 0),
                copy(rows, estimate, 1),
            )
        };
        let sum = |all: &[(TableStatus, CopyProgress)], tables: u64| {
            let all: Vec<_> = all.iter().map(|(t, c)| (c.describe(t), c)).collect();
            let pulse = Pulse {
                rows: copy(10, 0, 10).meter,
                tables: copy(tables, 0, tables).meter,
            };
            SnapshotStatus::of(all.iter().map(|(t, c)| (t, *c)), &pulse, None)
        };
        let all = [old.clone(), done.clone(), copying(30, 70), pending];
        let s = sum(&all, 0).unwrap();
        assert_eq!((s.tables_done, s.tables_total), (1, 3));
        assert_eq!((s.rows, s.estimated_rows), (120, 210));
        assert_eq!((s.chunks_done, s.chunks_total), (3, 9));
        assert_eq!((s.rows_per_second, s.seconds_left), (Some(10.0), Some(9)));
        assert_eq!(sum(&[copying(30, 20)], 0).unwrap().seconds_left, None);
        let many = vec![(table("d", TableState::Pending, 0), copy(0, 1, 0)); 100];
        assert_eq!(sum(&many, 2).unwrap().seconds_left, Some(50));
        assert_eq!(sum(&[old, done], 0), None);
    }
}
