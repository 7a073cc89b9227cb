//! Chunks of a keyed table by ranges of its blocks, `ctid >= '(a,0)' AND ctid < '(b,0)'`.
//!
//! A range of a key costs the server a sixth more than the same rows by their blocks where they
//! lie in the key's order (measured on PostgreSQL 18, bounds included), and a visit of a page for
//! each row where they do not. So large tables are read like this whose rows lie in another
//! order, or whose key has none that can be asked for, if it is safe; the others are not, for
//! ranges of a key give every key once.
//!
//! A row that is updated may move from one block to another while the table is copied, so that
//! a copy may read it twice or not at all. Both are right, because such an update came after the
//! copy's base: each chunk sees every transaction up to the base (INV-5), so the one that a
//! chunk did not see is behind it in the log, and wins over what was read (INV-4). That holds
//! only if the log then has the whole row, for the copy may never hold it: the server leaves a
//! value out of the log that is stored out of line and did not change, unless the replica
//! identity is FULL. So only tables whose identity is FULL, or that store nothing out of line when
//! the copy begins, are read in this way: what such a table stores out of line later was
//! written, as a whole, behind the base. (The first chunk is planned once the base is visible;
//! a store without a page holds nothing that was committed before.)
//!
//! VACUUM FULL, CLUSTER, pg_repack and some forms of ALTER TABLE move rows without a word in the
//! log, always into another file. A bound therefore names the file, which each chunk compares
//! under its lock; with another one the copy must begin anew.
//!
//! A partitioned table has no order of blocks. A table without a key needs one exact read (INV-6).

use super::connect::Client;
use super::connect::{query_error, table_ident};
use caudal_model::{ChunkBound, Error, Result, TableSchema};

/// What the first text of such a bound is: no value of a key, for the server has no text with
/// a zero byte.
const MARK: &str = "\0ctid";
/// Smaller tables are read by their keys: 16 MiB of 8 KiB pages.
const MIN_BLOCKS: i64 = 2048;
/// Rows whose first key column is correlated with their place this much (`pg_stats`) lie in its order.
const IN_ORDER: f32 = 0.9;
/// How many blocks are looked into for the rows in one of them, where the server has not counted.
const SAMPLE: u32 = 16;

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
    /// Rows in one of them, as the server counted last.
    rows: Option<f64>,
    /// Rows that move come whole in the log.
    safe: bool,
    /// The rows lie in another order than their key's.
    scattered: bool,
}

impl Blocks {
    /// Asks the server; `None` for a table without a file.
    pub async fn read(client: &Client, schema: &TableSchema) -> Result<Option<Self>> {
        let row = client
            .query_opt(
                "SELECT pg_relation_filenode(c.oid), pg_relation_size(c.oid) / current_setting('block_size')::int8,
                        (c.reltuples / nullif(c.relpages, 0))::float8,
                        c.relkind = 'r' AND (c.relreplident = 'f' OR c.reltoastrelid = 0
                                             OR pg_relation_size(c.reltoastrelid) = 0),
                        (SELECT abs(s.correlation) < $2 FROM pg_stats s
                          WHERE s.schemaname = $3 AND s.tablename = $4 AND s.attname = $5 AND NOT s.inherited)
                   FROM pg_class c WHERE c.oid = to_regclass($1)",
                &[
                    &table_ident(&schema.table),
                    &IN_ORDER,
                    &schema.table.schema,
                    &schema.table.name,
                    &schema.key.first(),
                ],
            )
            .await
            .map_err(query_error)?;
        let Some(row) = row else { return Ok(None) };
        let Some(file) = row.get(0) else {
            return Ok(None);
        };
        Ok(Some(Blocks {
            file,
            count: row.get::<_, Option<i64>>(1).unwrap_or(0),
            rows: row.get::<_, Option<f64>>(2).filter(|r| *r > 0.0),
            safe: row.get::<_, Option<bool>>(3).unwrap_or(false),
            scattered: row.get::<_, Option<bool>>(4).unwrap_or(false),
        }))
    }

    /// Whether a copy that begins now is read in this way; `ranged`: ranges of its key are
    /// another one.
    pub fn are_better(&self, ranged: bool) -> bool {
        self.safe && self.count >= MIN_BLOCKS && (self.scattered || !ranged)
    }

    /// The end of a chunk of about `rows` rows that begins at a block; `None` if it is the last.
    pub async fn end(
        &self,
        client: &Client,
        schema: &TableSchema,
        from: u32,
        rows: u64,
    ) -> Result<Option<Bound>> {
        let per_block = match self.rows {
            Some(rows) => rows,
            None => sample(client, schema, from).await?,
        };
        Ok(self.behind(from, rows, per_block))
    }

    fn behind(&self, from: u32, rows: u64, per_block: f64) -> Option<Bound> {
        let blocks = (rows as f64 / per_block.max(0.01)).ceil().max(1.0);
        // A float's cast saturates.
        let block = from.saturating_add(blocks as u32);
        (i64::from(block) < self.count).then_some(Bound {
            file: self.file,
            block,
        })
    }
}

/// Rows in a block, from the first ones behind `from`.
async fn sample(client: &Client, schema: &TableSchema, from: u32) -> Result<f64> {
    let [first, behind] = [from, from.saturating_add(SAMPLE)].map(|block| Bound { file: 0, block });
    let sql = format!(
        "SELECT count(*) FROM ONLY {} WHERE {} AND {}",
        table_ident(&schema.table),
        first.condition(">="),
        behind.condition("<")
    );
    let row = client.query_one(&sql, &[]).await.map_err(query_error)?;
    Ok(row.get::<_, i64>(0) as f64 / f64::from(SAMPLE))
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
            rows: Some(50.0),
            safe: true,
            scattered: true,
        };
        let end = |from, rows| blocks.behind(from, rows, 50.0).map(|b| b.block);
        assert_eq!((end(0, 1), end(4000, 40_000)), (Some(1), Some(4800)));
        assert_eq!((end(4800, 40_000), end(9, u64::MAX)), (None, None));
        assert!(blocks.are_better(true));
        let in_order = Blocks {
            scattered: false,
            ..blocks
        };
        assert!(!in_order.are_better(true) && in_order.are_better(false));
        let small = Blocks {
            count: 100,
            ..blocks
        };
        assert!(!small.are_better(true));
        let unsafe_to_move = Blocks {
            safe: false,
            ..blocks
        };
        assert!(!unsafe_to_move.are_better(false));
    }
}
