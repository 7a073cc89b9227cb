//! Chunks of a keyed table by ranges of its blocks, `ctid >= '(a,0)' AND ctid < '(b,0)'`.
//!
//! Reading in the order of a key costs one visit of a page for each row where the rows lie in
//! another order; reading in the order of blocks costs one for each page. Bounds cost nothing.
//!
//! A row that is updated may move from one block to another while the table is copied, so that
//! a copy may read it twice or not at all. Both are right, because such an update came after the
//! copy's base: each chunk sees every transaction up to the base (INV-5), so the one that a
//! chunk did not see is behind it in the log, and wins over what was read (INV-4). That holds
//! only if the log then has the whole row, for the copy may never hold it: the server leaves a
//! value out of the log that is stored out of line and did not change, unless the replica
//! identity is FULL. So only tables that store nothing out of line, or whose identity is FULL, are
//! read in this way.
//!
//! VACUUM FULL, CLUSTER, pg_repack and some forms of ALTER TABLE move rows without a word in the
//! log, always into another file. A bound therefore names the file, which each chunk compares
//! under its lock; with another one the copy must begin anew.
//!
//! A partitioned table has no order of blocks. A table without a key needs one exact read (INV-6).

use super::connect::{query_error, table_ident};
use caudal_model::{ChunkBound, Error, Result, TableSchema};
use tokio_postgres::Client;

/// What the first text of such a bound is: no value of a key, for the server has no text with
/// a zero byte.
const MARK: &str = "\0ctid";
/// Smaller tables are read by their keys: 16 MiB of 8 KiB pages.
const MIN_BLOCKS: i64 = 2048;
/// Below it, a range of the key is spread over many more pages than it would fill.
const ORDERED: f32 = 0.9;

/// A place between two blocks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// `pg_relation_filenode` of the table.
    pub file: u32,
    /// The block behind it.
    pub block: u32,
}

impl Bound {
    /// The place of a chunk's bound; `None` for values of a key.
    pub fn of(bound: &[String]) -> Result<Option<Self>> {
        let [mark, file, block] = bound else {
            return Ok(None);
        };
        if mark != MARK {
            return Ok(None);
        }
        let number = |text: &str| {
            let parsed: Result<u32, _> = text.parse();
            parsed.map_err(|_| Error::bug("a chunk's bound names no block"))
        };
        Ok(Some(Bound {
            file: number(file)?,
            block: number(block)?,
        }))
    }

    /// As a chunk has it.
    pub fn text(self) -> ChunkBound {
        vec![
            MARK.to_owned(),
            self.file.to_string(),
            self.block.to_string(),
        ]
    }

    /// The condition of the rows behind it (`>=`), or in front of it (`<`).
    pub fn condition(self, operator: &str) -> String {
        format!("ctid {operator} '({},0)'::tid", self.block)
    }
}

/// A table's blocks.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// The file of its rows now.
    pub file: u32,
    /// The blocks that it has.
    count: i64,
    /// Rows in one of them, about.
    rows: f64,
    /// Rows that move come whole in the log.
    safe: bool,
    /// How well the rows' order is that of the key's first column, from 0 to 1.
    correlation: Option<f32>,
}

impl Blocks {
    /// Asks the server; `None` for a table without a file.
    pub async fn read(client: &Client, schema: &TableSchema) -> Result<Option<Self>> {
        let table = &schema.table;
        let first = schema.key.first().map_or("", String::as_str);
        let row = client
            .query_opt(
                "SELECT pg_relation_filenode(c.oid), pg_relation_size(c.oid) / current_setting('block_size')::int8,
                        (c.reltuples / nullif(c.relpages, 0))::float8,
                        c.relkind = 'r' AND (c.relreplident = 'f' OR c.reltoastrelid = 0),
                        (SELECT abs(s.correlation) FROM pg_stats s
                          WHERE s.schemaname = $2 AND s.tablename = $3 AND s.attname = $4 AND NOT s.inherited)
                   FROM pg_class c WHERE c.oid = to_regclass($1)",
                &[&table_ident(table), &table.schema, &table.name, &first],
            )
            .await
            .map_err(query_error)?;
        let Some(row) = row else { return Ok(None) };
        let Some(file) = row.get(0) else {
            return Ok(None);
        };
        // Never analysed: a guess from the number of columns.
        let guess = 8192.0 / (28 + 12 * schema.columns.len()) as f64;
        let rows: Option<f64> = row.get(2);
        Ok(Some(Blocks {
            file,
            count: row.get::<_, Option<i64>>(1).unwrap_or(0),
            rows: rows.filter(|r| *r > 0.0).unwrap_or(guess),
            safe: row.get(3),
            correlation: row.get(4),
        }))
    }

    /// Whether a copy that begins now is read in this way. `ranged`: its key can be split.
    pub fn are_better(&self, ranged: bool) -> bool {
        let scattered = self.correlation.is_some_and(|c| c < ORDERED);
        self.safe && self.count >= MIN_BLOCKS && (scattered || !ranged)
    }

    /// The end of a chunk of about `rows` rows that begins at a block; `None` if it is the last.
    pub fn end(&self, from: u32, rows: u64) -> Option<Bound> {
        let blocks = (rows as f64 / self.rows.max(0.01)).ceil().max(1.0);
        // A float's cast saturates.
        let block = from.saturating_add(blocks as u32);
        (i64::from(block) < self.count).then_some(Bound {
            file: self.file,
            block,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_blocks_are_no_values_of_keys() {
        let bound = Bound { file: 7, block: 12 };
        assert_eq!(Bound::of(&bound.text()).unwrap(), Some(bound));
        let key = ["ctid", "7", "12"].map(str::to_owned);
        assert!(Bound::of(&key).unwrap().is_none());
        assert_eq!(bound.condition(">="), "ctid >= '(12,0)'::tid");
    }

    #[test]
    fn chunks_end_with_the_table() {
        let blocks = Blocks {
            file: 7,
            count: 5000,
            rows: 50.0,
            safe: true,
            correlation: Some(0.2),
        };
        assert_eq!(blocks.end(0, 1).unwrap().block, 1);
        assert_eq!(blocks.end(4000, 40_000).unwrap().block, 4800);
        assert!(blocks.end(4800, 40_000).is_none() && blocks.end(9, u64::MAX).is_none());
        assert!(blocks.are_better(true));
        let ordered = Blocks {
            correlation: Some(0.95),
            ..blocks
        };
        assert!(!ordered.are_better(true) && ordered.are_better(false));
        let unsafe_to_move = Blocks {
            safe: false,
            ..blocks
        };
        assert!(!unsafe_to_move.are_better(false));
    }
}
