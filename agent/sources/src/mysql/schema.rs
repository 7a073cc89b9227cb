//! What `information_schema` says of the tables, and what their types are in the lake.
//!
//! A column's type text (`int unsigned`, `enum('a','b')`) decides its lake type and how
//! its cells are read; [`super::decode::table_map`] compares it with the log's own description.

use super::control::Ask;
use super::flavor::Flavor;
use super::types::{Declared, column_type, source_type};
use super::wire::{TextRow, quote};
use crate::{DiscoveredTable, SourceOptions, TableOptions};
use caudal_model::schema::ColumnSpec;
use caudal_model::{Error, Finding, Result, Severity, TableName, TableSchema};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A column as `information_schema` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// `COLUMN_TYPE`.
    pub column_type: String,
    /// Of a text column.
    pub charset: Option<String>,
    /// Of a text column.
    pub collation: Option<String>,
    /// Whether it can hold NULL.
    pub nullable: bool,
    /// `COLUMN_DEFAULT`: MySQL gives the value, MariaDB the literal.
    pub default: Option<String>,
    /// `EXTRA`: generated, `auto_increment`, `DEFAULT_GENERATED`.
    pub extra: String,
}

impl SourceColumn {
    /// Whether its values are computed.
    pub fn generated(&self) -> bool {
        let extra = self.extra.to_ascii_uppercase();
        extra.contains("GENERATED") && !extra.contains("DEFAULT_GENERATED")
            || extra.contains("PERSISTENT")
    }
}

/// A table as `information_schema` describes it.
#[derive(Debug, Clone)]
pub struct SourceTable {
    /// Its name.
    pub table: TableName,
    /// `BASE TABLE`, `SYSTEM VERSIONED`.
    pub table_type: String,
    /// The storage engine.
    pub engine: String,
    /// Estimated rows.
    pub rows: u64,
    /// Bytes of the data.
    pub bytes: u64,
    /// Every column, in the server's order.
    pub columns: Vec<SourceColumn>,
    /// The primary key's columns in its order.
    pub primary_key: Vec<String>,
    /// Its sorted indexes, the primary key's among them.
    pub indexes: Vec<SourceIndex>,
}

/// An index that can be read in order.
#[derive(Debug, Clone)]
pub struct SourceIndex {
    /// Its name.
    pub name: String,
    /// Its columns in their order.
    pub parts: Vec<IndexPart>,
}

/// A column of an index.
#[derive(Debug, Clone)]
pub struct IndexPart {
    /// The column; empty for an expression.
    pub column: String,
    /// Sorted from the greatest value on.
    pub descending: bool,
    /// Sorted by its first characters alone.
    pub prefix: bool,
}

impl SourceTable {
    /// Columns that MariaDB computes when they are read. Its log has them in whole images
    /// only; MySQL's has them wherever they changed.
    pub fn virtual_columns(&self, flavor: Flavor) -> Vec<String> {
        let computed = |c: &&SourceColumn| {
            flavor == Flavor::MariaDb && c.extra.to_ascii_uppercase().contains("VIRTUAL")
        };
        let names = self.columns.iter().filter(computed);
        names.map(|c| c.name.clone()).collect()
    }
}

const SYSTEM: &str = "('mysql','information_schema','performance_schema','sys')";

/// Reads the tables that `wanted` chooses; `only` limits the question to one table.
pub async fn read_tables(
    connection: &mut dyn Ask,
    only: Option<&TableName>,
    wanted: impl Fn(&TableName) -> bool,
) -> Result<Vec<SourceTable>> {
    let filter = |prefix: &str| match only {
        Some(t) => format!(
            "{prefix}TABLE_SCHEMA = {} AND {prefix}TABLE_NAME = {}",
            quote(&t.schema),
            quote(&t.name)
        ),
        None => format!("{prefix}TABLE_SCHEMA NOT IN {SYSTEM}"),
    };
    let name = |r: &TextRow| TableName::new(r.text(0), r.text(1));
    let mut tables: BTreeMap<TableName, SourceTable> = BTreeMap::new();
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE, TABLE_ROWS, DATA_LENGTH \
         FROM information_schema.TABLES \
         WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND {}",
        filter("")
    );
    for r in connection.query(&sql).await? {
        let table = name(&r);
        if wanted(&table) {
            let t = SourceTable {
                table: table.clone(),
                table_type: r.text(2),
                engine: r.text(3),
                rows: r.number(4),
                bytes: r.number(5),
                columns: Vec::new(),
                primary_key: Vec::new(),
                indexes: Vec::new(),
            };
            tables.insert(table, t);
        }
    }
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, \
         COLLATION_NAME, IS_NULLABLE, COLUMN_DEFAULT, EXTRA \
         FROM information_schema.COLUMNS WHERE {} \
         ORDER BY TABLE_SCHEMA, TABLE_NAME, ORDINAL_POSITION",
        filter("")
    );
    for r in connection.query(&sql).await? {
        if let Some(t) = tables.get_mut(&name(&r)) {
            t.columns.push(SourceColumn {
                name: r.text(2),
                column_type: r.text(3),
                charset: r.get(4),
                collation: r.get(5),
                nullable: r.text(6) == "YES",
                default: r.get(7),
                extra: r.text(8),
            });
        }
    }
    // The servers call it differently, and refuse to be told to use a hidden index.
    let shown = match connection.flavor() {
        Flavor::MySql => "IS_VISIBLE = 'YES'",
        Flavor::MariaDb => "IGNORED = 'NO'",
    };
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, INDEX_NAME, COLUMN_NAME, COLLATION, SUB_PART, \
         INDEX_TYPE = 'BTREE' AND {shown} FROM information_schema.STATISTICS WHERE {} \
         ORDER BY TABLE_SCHEMA, TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX",
        filter("")
    );
    for r in connection.query(&sql).await? {
        if let Some(t) = tables.get_mut(&name(&r)) {
            add_part(t, &r);
        }
    }
    Ok(tables.into_values().collect())
}

/// Adds a column to the index that it is the next of.
fn add_part(t: &mut SourceTable, r: &TextRow) {
    let (index, column) = (r.text(2), r.text(3));
    if index == "PRIMARY" {
        t.primary_key.push(column.clone());
    }
    if r.number(6) == 0 {
        return;
    }
    let part = IndexPart {
        column,
        descending: r.text(4) == "D",
        prefix: r.get(5).is_some(),
    };
    match t.indexes.last_mut() {
        Some(last) if last.name == index => last.parts.push(part),
        _ => t.indexes.push(SourceIndex {
            name: index,
            parts: vec![part],
        }),
    }
}

/// The tables that the options select, without the helpers of online migrations.
pub async fn selected_tables(
    connection: &mut dyn Ask,
    options: &SourceOptions,
) -> Result<Vec<SourceTable>> {
    let selection = &options.selection;
    let mut tables = read_tables(connection, None, |t| selection.matches(t)).await?;
    let names: HashSet<TableName> = tables.iter().map(|t| t.table.clone()).collect();
    tables
        .retain(|t| selection.names(&t.table) || !is_helper(&t.table, |name| names.contains(name)));
    Ok(tables)
}

/// A table as the agent sees it, with what keeps it from being carried.
pub fn describe(t: &SourceTable, options: &SourceOptions, flavor: Flavor) -> DiscoveredTable {
    let none = TableOptions::default();
    let own = options.tables.get(&t.table).unwrap_or(&none);
    let mut problems = Vec::new();
    let mut columns = Vec::new();
    for c in t
        .columns
        .iter()
        .filter(|c| !own.exclude_columns.contains(&c.name))
    {
        let full = source_type(&c.column_type, c.charset.as_deref());
        match column_type(&Declared::parse(&full), flavor, own.lake_type(&c.name)) {
            Ok((_, lake_type)) => columns.push(ColumnSpec::new(
                c.name.clone(),
                own.source_type(&c.name, &full),
                lake_type,
            )),
            Err(reason) => problems.push(
                Finding::new(Severity::Error, "unsupported_column", reason)
                    .subject(format!("{}.{}", t.table, c.name))
                    .mend(exclude(&t.table, &c.name)),
            ),
        }
        if caudal_model::schema::META_COLUMNS
            .iter()
            .any(|(m, _)| c.name.eq_ignore_ascii_case(m))
        {
            problems.push(
                Finding::new(
                    Severity::Error,
                    "column_name",
                    format!(
                        "column {} has the name of a column that caudal adds",
                        c.name
                    ),
                )
                .subject(format!("{}.{}", t.table, c.name))
                .mend(exclude(&t.table, &c.name)),
            );
        }
    }
    let key = own.key.clone().unwrap_or_else(|| t.primary_key.clone());
    for k in &key {
        let found = t.columns.iter().find(|c| &c.name == k);
        // What is not there or left out is told with the other mistakes of the override.
        let reason = match found {
            Some(c) if c.nullable => format!("key column {k} can be NULL"),
            _ => continue,
        };
        problems.push(
            Finding::new(Severity::Error, "key", reason)
                .subject(&t.table)
                .mend("name a not-null unique key in `key` of [[tables.override]]"),
        );
    }
    let names: Vec<String> = t.columns.iter().map(|c| c.name.clone()).collect();
    problems.extend(crate::overrides::problems(&t.table, &names, &key, own));
    let schema = TableSchema::first(t.table.clone(), 1, columns.clone(), key.clone());
    problems.extend(crate::overrides::filter_problem(&schema, own));
    if t.table_type == "SYSTEM VERSIONED" {
        problems.push(
            Finding::new(
                Severity::Error,
                "system_versioned",
                "system-versioned tables are not supported: their history is no part of the log",
            )
            .subject(&t.table)
            .mend(format!("[tables]\nexclude = [\"{}\"]", t.table)),
        );
    }
    if key.is_empty() && !transactional(&t.engine) {
        problems.push(
            Finding::new(
                Severity::Error,
                "key",
                format!(
                    "a table without a key cannot be read at one position in engine {}",
                    t.engine
                ),
            )
            .subject(&t.table)
            .mend("add a primary key, or ALTER TABLE … ENGINE=InnoDB"),
        );
    }
    DiscoveredTable {
        source_id: None,
        table: t.table.clone(),
        columns,
        key,
        estimated_rows: t.rows,
        estimated_bytes: t.bytes,
        problems,
    }
}

/// Whether a table is the helper of an online migration: gh-ost's `_t_gho`, `_t_ghc` and
/// `_t_del`, pt-online-schema-change's `_t_new` and `_t_old`, of a table that is there too.
/// They come and go, and hold no rows that their table does not have or get.
pub fn is_helper(table: &TableName, there: impl Fn(&TableName) -> bool) -> bool {
    let Some(inner) = table.name.strip_prefix('_') else {
        return false;
    };
    let suffix = ["_gho", "_ghc", "_del", "_new", "_old"]
        .iter()
        .find_map(|s| inner.strip_suffix(s));
    let Some(inner) = suffix else { return false };
    let stamped = inner
        .rsplit_once('_')
        .filter(|(_, stamp)| stamp.len() == 14 && stamp.bytes().all(|b| b.is_ascii_digit()));
    // pt-online-schema-change puts more underscores before the name if one is taken.
    let names = [Some(inner), stamped.map(|(name, _)| name)];
    names.into_iter().flatten().any(|name| {
        let of = |name: &str| there(&TableName::new(table.schema.clone(), name));
        of(name) || of(name.trim_start_matches('_'))
    })
}

fn exclude(table: &TableName, column: &str) -> String {
    format!("[[tables.override]]\ntable = \"{table}\"\nexclude_columns = [\"{column}\"]")
}

/// Whether the engine gives consistent reads.
pub fn transactional(engine: &str) -> bool {
    matches!(engine.to_ascii_lowercase().as_str(), "innodb" | "rocksdb")
}

/// The charset of each collation id, for text in the log.
pub async fn charsets(connection: &mut dyn Ask) -> Result<HashMap<u64, String>> {
    // MariaDB's newer collations have one id for each charset they apply to.
    let applicability = "SELECT ID, CHARACTER_SET_NAME \
         FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY WHERE ID IS NOT NULL";
    let collations = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS \
         WHERE ID IS NOT NULL AND CHARACTER_SET_NAME IS NOT NULL";
    let rows = match connection.query(applicability).await {
        Ok(rows) => rows,
        Err(super::wire::WireError::Server { code: 1054, .. }) => {
            connection.query(collations).await?
        }
        Err(e) => return Err(e.into()),
    };
    Ok(rows.iter().map(|r| (r.number(0), r.text(1))).collect())
}

/// The table's present columns as the lake would have them, in `describe`'s terms.
pub async fn read_table(
    connection: &mut dyn Ask,
    table: &TableName,
) -> Result<Option<SourceTable>> {
    Ok(read_tables(connection, Some(table), |t| t == table)
        .await?
        .into_iter()
        .next())
}

/// The error of a table that is not as its schema says.
pub fn drifted(table: &TableName, what: &str) -> Error {
    Error::drift(table, format!("the table changed: {what}")).hint(format!(
        "run `caudal resnapshot {table}` to copy it again as it is now"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_of_online_migrations() {
        let there = |t: &TableName| ["t", "a_b"].contains(&t.name.as_str());
        for name in [
            "_t_gho",
            "_t_ghc",
            "_t_del",
            "_t_new",
            "_t_old",
            "__t_new",
            "_t_20261121101112_del",
            "_a_b_gho",
        ] {
            assert!(is_helper(&TableName::new("d", name), there), "{name}");
        }
        for name in ["t", "t_new", "_u_new", "_t", "_t_x", "_t_2026_del"] {
            assert!(!is_helper(&TableName::new("d", name), there), "{name}");
        }
    }
}
