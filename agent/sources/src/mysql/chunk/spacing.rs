//! Bounds of chunks without counting rows: where keys are numbers, the next bound is guessed by
//! how densely they lay so far.
//!
//! Counting `rows` keys to find a bound costs the server a third of reading the rows. A guess
//! costs two looks into the index: one finds the last key at or before the guess, the other is
//! the optimizer's own estimate of the rows up to it. A guess that is far off, as at a gap or
//! where keys become denser, is thrown away and the keys are counted. Bounds are keys of the
//! table either way, so a bad guess makes a chunk of another size and nothing worse.

use super::range::{Keys, Side};
use crate::mysql::connect::Server;
use crate::mysql::flavor::Flavor;
use crate::mysql::wire::Connection;
use caudal_model::{ChunkBound, Result, TableName};
use std::collections::BTreeMap;

/// The optimizer may be wrong by a factor of two either way.
const FAR_OFF: u64 = 5;

/// How far apart the keys of a table lie, in each column that grows while those before it
/// stay the same.
pub(in crate::mysql) type Spacing = BTreeMap<usize, f64>;

/// Notes that so many rows lie between two bounds.
pub(super) fn note(
    server: &Server,
    table: &TableName,
    keys: &Keys,
    bounds: (Option<&ChunkBound>, Option<&ChunkBound>),
    rows: u64,
) {
    let (Some(after), Some(through)) = bounds else {
        return;
    };
    if let (Some((column, distance)), Ok(mut spacings)) =
        (distance(keys, after, through, rows), server.spacings.lock())
    {
        let of = spacings.entry(table.clone()).or_default();
        of.insert(column, distance);
    }
}

fn distance(
    keys: &Keys,
    after: &ChunkBound,
    through: &ChunkBound,
    rows: u64,
) -> Option<(usize, f64)> {
    let column = after.iter().zip(through).position(|(a, b)| a != b)?;
    if rows == 0 || !keys.grows(column) {
        return None;
    }
    let span = number(through, column)?.checked_sub(number(after, column)?)?;
    (span > 0).then_some((column, span as f64 / rows as f64))
}

fn number(bound: &ChunkBound, column: usize) -> Option<i128> {
    bound.get(column)?.parse().ok()
}

/// The bound about `rows` rows after `after`, if it can be guessed.
pub(super) async fn guess(
    server: &Server,
    c: &mut Connection,
    table: (&TableName, &str),
    keys: &Keys,
    after: Option<&ChunkBound>,
    rows: u64,
) -> Result<Option<ChunkBound>> {
    let known = server.spacings.lock().ok();
    let spacing = known.and_then(|s| s.get(table.0).cloned());
    let (Some(spacing), Some(after)) = (spacing, after) else {
        return Ok(None);
    };
    // The last column first: the keys of one customer before those of the next ones.
    for (column, distance) in spacing.into_iter().rev() {
        let step = (distance * rows as f64).ceil();
        let (Some(number), true) = (number(after, column), step < 1e18 && keys.grows(column))
        else {
            continue;
        };
        let mut upper = after.clone();
        upper.truncate(column);
        upper.push((number + step as i128).to_string());
        let found = c.query(&keys.last_sql(table.1, after, &upper)?).await?;
        let bound = found.first().map(|r| keys.bound(r, Some(after)));
        if let Some(bound) = bound.transpose()?
            && holds_about(server, c, table.1, keys, (after, &bound), rows).await?
        {
            return Ok(Some(bound));
        }
    }
    Ok(None)
}

/// Whether the optimizer takes a range for one of about so many rows.
async fn holds_about(
    server: &Server,
    c: &mut Connection,
    table: &str,
    keys: &Keys,
    (after, through): (&ChunkBound, &ChunkBound),
    rows: u64,
) -> Result<bool> {
    // A hint that forces an index keeps MySQL from looking into it for the estimate.
    let explain = match server.flavor {
        Flavor::MySql => "EXPLAIN FORMAT=TRADITIONAL",
        Flavor::MariaDb => "EXPLAIN",
    };
    let sql = format!(
        "{explain} SELECT 1 FROM {}{} WHERE {} AND {}",
        table,
        keys.hint().replacen("FORCE", "USE", 1),
        keys.range(after, Side::After)?,
        keys.range(through, Side::Through)?
    );
    let (names, lines) = c.result(&sql).await?;
    let estimated = names.iter().position(|n| n == "rows");
    let estimated = estimated.and_then(|i| lines.first().map(|l| l.number(i)));
    Ok(estimated.is_some_and(|e| e / FAR_OFF <= rows && rows / FAR_OFF <= e))
}
