//! Which table has which name: what the log does not tell.
//!
//! `pgoutput` says nothing of a table that is renamed, dropped or created until a row of it
//! comes, and then gives the name that it has there. A table is followed by its oid; the
//! catalogue is looked at now and then, and a name that has gone to another table ends
//! once the tail has passed the place where the look was taken, so that every row of the
//! old one has come before.

use super::catalog::CatalogColumn;
use super::connect::query_error;
use super::{Lsn, Shared, slot};
use caudal_model::{Result, TableName};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One look at the catalogue.
#[derive(Debug, Default)]
pub struct Look {
    /// Everything that it shows was in the log before this.
    pub at: Lsn,
    /// The selected tables' oids.
    pub tables: HashMap<TableName, u32>,
}

#[derive(Debug, Default)]
struct State {
    latest: Option<Arc<Look>>,
    /// By oid: the file of the table's rows, and the greatest column number at that time.
    files: HashMap<u32, (Option<u32>, i32)>,
}

/// What the catalogue was seen to say of the selected tables.
#[derive(Debug, Default)]
pub struct Names(Mutex<State>);

impl Names {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest look.
    pub fn latest(&self) -> Option<Arc<Look>> {
        self.state().latest.clone()
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

/// Looks at the names, kinds, identities and keys of the selected tables; the result is
/// another text whenever one of them is another.
pub(super) async fn look(shared: &Shared) -> Result<String> {
    const NAMES: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relreplident::text, x.indkey::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_index x ON x.indrelid = c.oid AND x.indisprimary
 WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
 ORDER BY 1";
    let client = shared.control().await?;
    let rows = client.query(NAMES, &[]).await.map_err(query_error)?;
    let (at, _) = slot::log_ends(&client).await?;
    let mut tables = HashMap::new();
    let mut hash = DefaultHasher::new();
    for row in rows {
        let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        if !shared.options.selection.matches(&table) {
            continue;
        }
        let oid: u32 = row.get(0);
        (oid, &table).hash(&mut hash);
        for column in 3..6 {
            row.get::<_, Option<String>>(column).hash(&mut hash);
        }
        tables.insert(table, oid);
    }
    let mark = format!("{} {:016x}", tables.len(), hash.finish());
    shared.names.state().latest = Some(Arc::new(Look { at, tables }));
    Ok(mark)
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
