//! Which table has which name: what the log does not tell.
//!
//! `pgoutput` says nothing of a table that is renamed, dropped or created until a row of it
//! comes, and then gives the name that it has there. A table is followed by its oid; the
//! catalogue is looked at now and then, and a name that has gone to another table ends
//! once the tail has passed the place where the look was taken, so that every row of the
//! old one has come before.

use super::catalog::CatalogColumn;
use super::connect::query_error;
use super::partitions::{self, HARMLESS, Part, Parts, Seen};
use super::{Lsn, Shared, membership, slot};
use caudal_model::{Result, TableName};
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_postgres::Row;

/// One look at the catalogue.
#[derive(Debug, Default)]
pub struct Look {
    /// Tells looks apart: the log may end where it did at the one before.
    pub number: u64,
    /// Everything that it shows was in the log before this.
    pub at: Lsn,
    /// The selected tables' oids.
    pub tables: HashMap<TableName, u32>,
    /// The partitions of those that are partitioned, by their oids.
    pub parts: HashMap<u32, Vec<Seen>>,
}

impl Look {
    /// The partitions of a partitioned table.
    pub fn parts(&self, oid: u32) -> Option<Parts> {
        let seen = self.parts.get(&oid)?;
        Some(seen.iter().map(|s| s.part).collect())
    }
}

#[derive(Debug, Default)]
struct State {
    latest: Option<Arc<Look>>,
    /// By oid: the file of the table's rows, and the greatest column number at that time.
    files: HashMap<u32, (Option<u32>, i32)>,
}

/// What the catalogue was seen to say of the selected tables.
#[derive(Debug, Default)]
pub struct Names {
    state: Mutex<State>,
    /// One look at a time, so that the latest is the last.
    looking: tokio::sync::Mutex<()>,
}

impl Names {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest look.
    pub fn latest(&self) -> Option<Arc<Look>> {
        self.state().latest.clone()
    }

    /// Notes a look; an older one than the latest changes nothing.
    fn took(&self, look: Look) -> Arc<Look> {
        let mut state = self.state();
        let before = state.latest.as_ref().map(|l| (l.number, l.at));
        let look = Arc::new(Look {
            number: before.map_or(1, |(number, _)| number + 1),
            ..look
        });
        if before.is_none_or(|(_, at)| look.at >= at) {
            state.latest = Some(look.clone());
        }
        look
    }

    /// Notes a table's file, which was read no later than its columns were.
    pub fn saw(&self, oid: u32, file: Option<u32>, columns: &[CatalogColumn]) {
        let greatest = columns.iter().map(|c| c.number).max().unwrap_or(0);
        self.state().files.insert(oid, (file, greatest));
    }

    /// Whether a table's rows cannot have been written anew since column `number` was
    /// added: its file is the first one, or the one that it had before the column.
    pub fn unwritten(&self, oid: u32, file: Option<u32>, number: i32) -> bool {
        if file == Some(oid) {
            return true;
        }
        let seen = self.state().files.get(&oid).copied();
        file.is_some() && seen.is_some_and(|(before, greatest)| before == file && greatest < number)
    }
}

/// Looks at the names, kinds, identities, keys and partitions of the selected tables; the
/// result is another text whenever one of them is another.
pub(super) async fn look(shared: &Shared) -> Result<String> {
    Ok(take(shared).await?.1)
}

/// The same with what was seen.
pub(super) async fn take(shared: &Shared) -> Result<(Arc<Look>, String)> {
    let client = shared.control().await?;
    let _alone = shared.names.looking.lock().await;
    let sql = format!(
        "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relreplident::text, x.indkey::text,
       p.inhparent, pg_relation_filenode(c.oid), CASE WHEN p.inhparent IS NOT NULL THEN {HARMLESS} END,
       c.relpersistence::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_index x ON x.indrelid = c.oid AND x.indisprimary
  LEFT JOIN pg_inherits p ON p.inhrelid = c.oid AND c.relispartition
 WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
 ORDER BY 1"
    );
    let rows = client.query(&sql, &[]).await.map_err(query_error)?;
    let (at, _) = slot::log_ends(&client).await?;
    membership::look(shared, &client).await?;
    let name = |row: &Row| TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
    let mut parents: HashMap<u32, u32> = HashMap::new();
    let mut roots: HashSet<u32> = HashSet::new();
    for row in &rows {
        if let Some(parent) = row.get::<_, Option<u32>>(6) {
            parents.insert(row.get(0), parent);
        }
        if row.get::<_, String>(3) == "p" && shared.options.selection.matches(&name(row)) {
            roots.insert(row.get(0));
        }
    }
    let mut look = Look {
        at,
        ..Look::default()
    };
    let mut hash = DefaultHasher::new();
    for row in &rows {
        let oid: u32 = row.get(0);
        if let Some(root) = partitions::root(oid, &parents, |a| roots.contains(&a)) {
            let part = Part {
                oid,
                file: row.get(7),
                met: false,
            };
            (root, part).hash(&mut hash);
            let harmless = row.get::<_, Option<bool>>(8).unwrap_or(false);
            let seen = Seen { part, harmless };
            look.parts.entry(root).or_default().push(seen);
            continue;
        }
        let table = name(row);
        if !shared.options.selection.matches(&table) {
            continue;
        }
        (oid, &table).hash(&mut hash);
        for column in [3, 4, 5, 9] {
            row.get::<_, Option<String>>(column).hash(&mut hash);
        }
        if roots.contains(&oid) {
            look.parts.entry(oid).or_default();
        }
        look.tables.insert(table, oid);
    }
    let mark = format!("{} {:016x}", look.tables.len(), hash.finish());
    Ok((shared.names.took(look), mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_s_rows_are_known_to_be_old_by_its_file() {
        let names = Names::default();
        let column = |number| CatalogColumn {
            number,
            ..CatalogColumn::default()
        };
        assert!(names.unwritten(7, Some(7), 3), "never written anew");
        assert!(
            !names.unwritten(7, Some(8), 3),
            "nothing is known of before"
        );
        names.saw(7, Some(8), &[column(1), column(2)]);
        assert!(names.unwritten(7, Some(8), 3));
        assert!(!names.unwritten(7, Some(9), 3));
        assert!(
            !names.unwritten(7, Some(8), 2),
            "it was there when the file was seen"
        );
        assert!(!names.unwritten(7, None, 3));
    }
}
