//! What the server's catalogue says about types and columns.
//!
//! Discovery and the tail ask for types with the same query, so that a column whose
//! definition did not change is described by the same words in both.

use super::connect::Client;
use super::connect::{query_error, table_ident};
use super::mapping::{self, BaseType, Mapped};
use super::partitions::Parts;
use caudal_model::{Result, TableName};
use std::collections::HashMap;

/// A type with its modifier, as a column has it.
pub type TypeKey = (u32, i32);

/// What is known of a column's type.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnType {
    /// As the server prints it: `numeric(12,2)`.
    pub name: String,
    /// How it is carried, or why it cannot be.
    pub mapped: Result<Mapped, &'static str>,
}

/// What a domain, or a chain of them, stands for, and then what an array's elements are;
/// other types are their own. An array is what has an element type whose array it is:
/// int2vector has elements too.
const TYPES: &str = "
WITH RECURSIVE chain AS (
    SELECT a.type AS root, a.mod AS root_mod, a.type AS oid, a.mod, 0 AS depth, 0 AS arrays
      FROM unnest($1::oid[], $2::int4[]) AS a(type, mod)
    UNION ALL
    SELECT c.root, c.root_mod, next.oid, next.mod, c.depth + 1, c.arrays + next.arrays
      FROM chain c JOIN pg_type t ON t.oid = c.oid,
           LATERAL (SELECT t.typbasetype, t.typtypmod, 0 WHERE t.typtype = 'd'
                    UNION ALL
                    SELECT e.oid, c.mod, 1 FROM pg_type e
                     WHERE e.oid = t.typelem AND e.typarray = t.oid AND c.arrays = 0) AS next(oid, mod, arrays)
     WHERE c.depth < 64)
SELECT c.root, c.root_mod, format_type(c.root, c.root_mod), t.oid, c.mod, t.typname::text, t.typtype::text,
       c.arrays > 0, t.typdelim::text,
       (SELECT x.extname::text FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
         WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
           AND d.refclassid = 'pg_extension'::regclass LIMIT 1)
  FROM chain c JOIN pg_type t ON t.oid = c.oid
 WHERE c.depth = (SELECT max(depth) FROM chain d WHERE d.root = c.root AND d.root_mod = c.root_mod)";

/// Looks types up. Those that no longer exist come back as unknown.
pub async fn types(client: &Client, keys: &[TypeKey]) -> Result<HashMap<TypeKey, ColumnType>> {
    let (oids, mods): (Vec<u32>, Vec<i32>) = keys.iter().copied().unzip();
    let rows = client
        .query(TYPES, &[&oids, &mods])
        .await
        .map_err(query_error)?;
    let mut found: HashMap<TypeKey, ColumnType> = keys
        .iter()
        .map(|k| {
            let name = format!("type {} (dropped)", k.0);
            (
                *k,
                ColumnType {
                    name,
                    mapped: Err("its type no longer exists"),
                },
            )
        })
        .collect();
    for row in rows {
        let base = BaseType {
            oid: row.get(3),
            type_mod: row.get(4),
            name: row.get(5),
            kind: row.get(6),
            extension: row.get(9),
            delimiter: row.get::<_, String>(8).bytes().next().unwrap_or(b','),
        };
        let described = ColumnType {
            name: row.get(2),
            mapped: Ok(if row.get(7) {
                mapping::map_array(&base)
            } else {
                mapping::map(&base)
            }),
        };
        found.insert((row.get(0), row.get(1)), described);
    }
    Ok(found)
}

/// One column as the catalogue has it now, dropped ones included: their numbers stay.
#[derive(Debug, Clone, Default)]
pub struct CatalogColumn {
    /// `attnum`, which only grows and never moves.
    pub number: i32,
    /// Its name.
    pub name: String,
    /// Its type.
    pub type_key: TypeKey,
    /// `s`tored, `v`irtual or empty.
    pub generated: String,
    /// Whether it refuses null.
    pub not_null: bool,
    /// It was dropped; nothing else is known of it.
    pub dropped: bool,
    /// The text of the constant that rows from before it was added hold, if the server
    /// keeps one instead of having written it to them.
    pub missing: Option<String>,
}

/// The columns of tables, by the tables' oids, in the tables' order.
pub async fn columns(client: &Client, tables: &[u32]) -> Result<HashMap<u32, Vec<CatalogColumn>>> {
    let mut found = all_columns(client, tables).await?;
    for columns in found.values_mut() {
        columns.retain(|c| !c.dropped);
    }
    Ok(found)
}

/// The same with those that were dropped.
async fn all_columns(client: &Client, tables: &[u32]) -> Result<HashMap<u32, Vec<CatalogColumn>>> {
    let rows = client
        .query(
            "SELECT attrelid, attname::text, atttypid, atttypmod, attgenerated::text, attnotnull,
                    attnum::int4, attisdropped,
                    CASE WHEN atthasmissing AND NOT attisdropped THEN array_to_string(attmissingval, '') END
               FROM pg_attribute
              WHERE attrelid = ANY($1::oid[]) AND attnum > 0
              ORDER BY attrelid, attnum",
            &[&tables],
        )
        .await
        .map_err(query_error)?;
    let mut found: HashMap<u32, Vec<CatalogColumn>> = HashMap::new();
    for row in rows {
        found.entry(row.get(0)).or_default().push(CatalogColumn {
            name: row.get(1),
            type_key: (row.get(2), row.get(3)),
            generated: row.get(4),
            not_null: row.get(5),
            number: row.get(6),
            dropped: row.get(7),
            missing: row.get(8),
        });
    }
    Ok(found)
}

/// A table as the catalogue has it now, whatever the log has said of it so far.
#[derive(Debug, Clone, Default)]
pub struct TableState {
    /// Every column that it ever had.
    pub columns: Vec<CatalogColumn>,
    /// The numbers of the primary key's columns, in its order.
    pub primary: Vec<i32>,
    /// The file of its rows: another one whenever the table was rewritten or truncated.
    pub file: Option<u32>,
    /// A partitioned table's partitions.
    pub parts: Option<Vec<PartState>>,
}

/// A partition as the catalogue has it now.
#[derive(Debug, Clone)]
pub struct PartState {
    /// Its oid.
    pub oid: u32,
    /// See [`TableState::file`].
    pub file: Option<u32>,
    /// [`CatalogColumn::missing`] of its columns, by their names: their numbers are its own.
    pub missing: HashMap<String, String>,
}

impl TableState {
    /// The same as seen by rows of these partitions: what every one of them keeps for a column
    /// that was added is what older rows hold. `None` if they differ, or if one of them was
    /// written anew.
    pub fn of_parts(&self, held: &Parts) -> Option<TableState> {
        let now = self.parts.as_deref().unwrap_or_default();
        let mut older = Vec::new();
        for part in held.iter().filter(|p| p.file.is_some() && !p.met) {
            let same = |p: &&PartState| p.oid == part.oid && p.file == part.file;
            older.push(&now.iter().find(same)?.missing);
        }
        let mut state = self.clone();
        for column in state.columns.iter_mut().filter(|c| !c.dropped) {
            let mut kept = older.iter().map(|missing| missing.get(&column.name));
            let first = kept.next().flatten();
            if !kept.all(|value| value == first) {
                return None;
            }
            column.missing = first.cloned();
        }
        Some(state)
    }
}

/// A table by its oid; `None` if it was dropped.
pub async fn table_state(client: &Client, oid: u32) -> Result<Option<TableState>> {
    let before = primary_and_file(client, oid).await?;
    let columns = all_columns(client, &[oid]).await?.remove(&oid);
    let Some(((_, before, _), (primary, after, partitioned))) =
        before.zip(primary_and_file(client, oid).await?)
    else {
        return Ok(None);
    };
    Ok(Some(TableState {
        columns: columns.unwrap_or_default(),
        primary,
        // The file that the rows had both before and after the columns were read, or none.
        file: before.filter(|_| before == after),
        parts: if partitioned {
            Some(parts(client, oid).await?)
        } else {
            None
        },
    }))
}

/// A partitioned table's partitions of every depth.
async fn parts(client: &Client, root: u32) -> Result<Vec<PartState>> {
    let rows = client
        .query(
            "SELECT t.relid::oid, pg_relation_filenode(t.relid), a.attname::text,
                    array_to_string(a.attmissingval, '')
               FROM pg_partition_tree($1::oid) t
               LEFT JOIN pg_attribute a ON a.attrelid = t.relid AND a.atthasmissing AND NOT a.attisdropped
              WHERE t.level > 0",
            &[&root],
        )
        .await
        .map_err(query_error)?;
    let mut found: HashMap<u32, PartState> = HashMap::new();
    for row in rows {
        let (oid, file): (u32, Option<u32>) = (row.get(0), row.get(1));
        let part = found.entry(oid).or_insert_with(|| PartState {
            oid,
            file,
            missing: HashMap::new(),
        });
        if let (Some(column), Some(text)) = (row.get(2), row.get(3)) {
            part.missing.insert(column, text);
        }
    }
    Ok(found.into_values().collect())
}

type TableFacts = (Vec<i32>, Option<u32>, bool);

async fn primary_and_file(client: &Client, oid: u32) -> Result<Option<TableFacts>> {
    let row = client
        .query_opt(
            "SELECT pg_relation_filenode(c.oid::regclass),
                    (SELECT array_agg(k.attnum::int4 ORDER BY k.place)
                       FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
                      WHERE x.indrelid = c.oid AND x.indisprimary AND k.place <= x.indnkeyatts),
                    c.relkind = 'p'
               FROM pg_class c WHERE c.oid = $1",
            &[&oid],
        )
        .await
        .map_err(query_error)?;
    Ok(row.map(|r| {
        let primary = r.get::<_, Option<Vec<i32>>>(1).unwrap_or_default();
        (primary, r.get(0), r.get(2))
    }))
}

/// The oid of a table, and whether it is partitioned; `None` if it does not exist.
pub async fn table_oid(client: &Client, table: &TableName) -> Result<Option<(u32, bool)>> {
    let row = client
        .query_opt(
            "SELECT oid, relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)",
            &[&table_ident(table)],
        )
        .await
        .map_err(query_error)?;
    Ok(row.map(|r| (r.get(0), r.get(1))))
}

/// The server's version, as `server_version_num`: 180001.
pub async fn server_version(client: &Client) -> Result<i32> {
    let row = client
        .query_one("SELECT current_setting('server_version_num')::int4", &[])
        .await
        .map_err(query_error)?;
    Ok(row.get(0))
}

/// Whether stored generated columns are (or will be) in the log.
pub async fn carries_generated(client: &Client, publication: &str) -> Result<bool> {
    if server_version(client).await? < 180_000 {
        return Ok(false);
    }
    let row = client
        .query_opt(
            "SELECT pubgencols::text FROM pg_publication WHERE pubname = $1",
            &[&publication],
        )
        .await
        .map_err(query_error)?;
    Ok(row.is_none_or(|r| r.get::<_, String>(0) == "s"))
}
