//! What the server's catalogue says about types and columns.
//!
//! Discovery and the tail ask for types with the same query, so that a column whose
//! definition did not change is described by the same words in both.

use super::connect::{query_error, table_ident};
use super::schema::{self, Mapped};
use caudal_model::{Result, TableName};
use std::collections::HashMap;
use tokio_postgres::Client;

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

/// The base type that a domain, or a chain of them, stands for; other types are their own.
const TYPES: &str = "
WITH RECURSIVE chain AS (
    SELECT a.type AS root, a.mod AS root_mod, t.oid, a.mod, t.typname, t.typtype, t.typcategory,
           t.typbasetype, t.typtypmod, 0 AS depth
      FROM unnest($1::oid[], $2::int4[]) AS a(type, mod) JOIN pg_type t ON t.oid = a.type
    UNION ALL
    SELECT c.root, c.root_mod, t.oid, c.typtypmod, t.typname, t.typtype, t.typcategory,
           t.typbasetype, t.typtypmod, c.depth + 1
      FROM chain c JOIN pg_type t ON t.oid = c.typbasetype
     WHERE c.typtype = 'd' AND c.depth < 64)
SELECT root, root_mod, format_type(root, root_mod), oid, mod, typname::text, typtype::text, typcategory::text
  FROM chain WHERE typtype <> 'd'";

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
        let base = schema::BaseType {
            oid: row.get(3),
            type_mod: row.get(4),
            name: row.get(5),
            kind: row.get(6),
            category: row.get(7),
        };
        let described = ColumnType {
            name: row.get(2),
            mapped: schema::map(&base),
        };
        found.insert((row.get(0), row.get(1)), described);
    }
    Ok(found)
}

/// One column as the catalogue has it now.
#[derive(Debug, Clone)]
pub struct CatalogColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub type_key: TypeKey,
    /// `s`tored, `v`irtual or empty.
    pub generated: String,
    /// Whether it refuses null.
    pub not_null: bool,
}

/// The columns of tables, by the tables' oids, in the tables' order.
pub async fn columns(client: &Client, tables: &[u32]) -> Result<HashMap<u32, Vec<CatalogColumn>>> {
    let rows = client
        .query(
            "SELECT attrelid, attname::text, atttypid, atttypmod, attgenerated::text, attnotnull
               FROM pg_attribute
              WHERE attrelid = ANY($1::oid[]) AND attnum > 0 AND NOT attisdropped
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
        });
    }
    Ok(found)
}

/// The oid of a table, if it exists.
pub async fn table_oid(client: &Client, table: &TableName) -> Result<Option<u32>> {
    let row = client
        .query_one("SELECT to_regclass($1)::oid", &[&table_ident(table)])
        .await
        .map_err(query_error)?;
    Ok(row.get(0))
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
