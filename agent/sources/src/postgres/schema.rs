//! Tables as the stream sees them: discovery.

use super::Shared;
use super::catalog::{self, CatalogColumn, ColumnType, TypeKey};
use super::connect::Client;
use super::connect::{ident, query_error, table_ident};
use super::mapping;
use super::names::{self, Look};
use super::partitions;
use super::shape::Identity;
use crate::{DiscoveredTable, TableOptions, overrides};
use caudal_model::schema::{ColumnSpec, META_COLUMNS};
use caudal_model::{Finding, Result, Severity, TableName, TableSchema};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What the catalogue says about a table.
pub(super) struct CatalogTable {
    pub oid: u32,
    pub table: TableName,
    pub kind: String,
    pub persistence: String,
    /// `d`, `n`, `f` or `i`.
    pub identity: String,
    pub rows: f32,
    pub bytes: i64,
    pub readable: bool,
    /// The primary key, in its order.
    pub primary: Vec<String>,
    /// Columns of the identity that updates and deletes carry, unless it is FULL.
    pub identity_columns: Vec<String>,
    pub columns: Vec<CatalogColumn>,
    /// See [`catalog::TableState::file`].
    pub file: Option<u32>,
    /// It is part of this table.
    pub parent: Option<u32>,
    /// It has child tables, or is one, by INHERITS.
    pub inherits: bool,
    /// Its partitions of every depth, if it is partitioned.
    pub parts: Vec<CatalogTable>,
}

impl CatalogTable {
    /// Whether changes are logged with these columns of the old row.
    fn identifies(&self, key: &[String]) -> bool {
        let covered = !key.is_empty() && key.iter().all(|k| self.identity_columns.contains(k));
        self.identity == "f" || covered
    }

    /// The planner's estimate; a guess from the size and the number of columns if the table
    /// was never analysed.
    fn estimated_rows(&self, columns: &[CatalogColumn]) -> f32 {
        if self.rows >= 0.0 {
            return self.rows;
        }
        self.bytes.max(0) as f32 / (28 + 12 * columns.len().max(1)) as f32
    }

    /// Why the log cannot carry a table of this kind.
    pub fn unlogged(&self) -> Option<&'static str> {
        match (self.kind.as_str(), self.persistence.as_str()) {
            ("f", _) => Some("the log does not carry foreign tables"),
            ("v", _) => Some("the log does not carry views"),
            ("m", _) => Some("the log does not carry materialized views"),
            (_, "u") => Some("the log does not carry unlogged tables"),
            _ => None,
        }
    }
}

/// What the selection says of the catalogue.
pub(super) struct Catalog {
    /// The tables that the stream carries, or that are named and cannot be carried.
    pub tables: Vec<CatalogTable>,
    /// What a wildcard meant and the log does not carry.
    pub left_out: Vec<CatalogTable>,
}

const TABLES: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
       c.relreplident::text, c.reltuples,
       CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) ELSE 0 END,
       has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT'),
       p.keys, i.keys, pg_relation_filenode(c.oid), h.inhparent,
       c.relkind = 'r' AND NOT c.relispartition
           AND EXISTS (SELECT FROM pg_inherits x WHERE c.oid IN (x.inhparent, x.inhrelid))
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_inherits h ON h.inhrelid = c.oid AND c.relispartition
  LEFT JOIN LATERAL (
       SELECT array_agg(a.attname::text ORDER BY k.place) AS keys
         FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a
        WHERE x.indrelid = c.oid AND x.indisprimary AND k.place <= x.indnkeyatts
          AND (x.indisvalid OR c.relkind <> 'p')
          AND a.attrelid = c.oid AND a.attnum = k.attnum) p ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(a.attname::text ORDER BY k.place) AS keys
         FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a
        WHERE x.indrelid = c.oid AND k.place <= x.indnkeyatts AND x.indisvalid AND x.indimmediate
          AND CASE c.relreplident WHEN 'd' THEN x.indisprimary WHEN 'i' THEN x.indisreplident ELSE false END
          AND a.attrelid = c.oid AND a.attnum = k.attnum) i ON true
 WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
 ORDER BY 2, 3";

/// The selected tables as the catalogue has them, partitions with their root.
pub(super) async fn catalog_tables(client: &Client, shared: &Shared) -> Result<Catalog> {
    let rows = client.query(TABLES, &[]).await.map_err(query_error)?;
    let selection = &shared.options.selection;
    let all: Vec<CatalogTable> = rows.iter().map(catalog_table).collect();
    let parents: HashMap<u32, u32> = all
        .iter()
        .filter_map(|t| Some((t.oid, t.parent?)))
        .collect();
    let roots: HashSet<u32> = all
        .iter()
        .filter(|t| t.kind == "p" && selection.matches(&t.table))
        .map(|t| t.oid)
        .collect();
    let mut tables = Vec::new();
    let mut left_out = Vec::new();
    let mut parts: HashMap<u32, Vec<CatalogTable>> = HashMap::new();
    for t in all {
        if let Some(root) = partitions::root(t.oid, &parents, |a| roots.contains(&a)) {
            parts.entry(root).or_default().push(t);
        } else if selection.matches(&t.table) {
            if t.unlogged().is_none() || selection.names(&t.table) {
                tables.push(t);
            } else {
                left_out.push(t);
            }
        }
    }
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    let mut columns = catalog::columns(client, &oids).await?;
    for t in &mut tables {
        t.columns = columns.remove(&t.oid).unwrap_or_default();
        t.parts = parts.remove(&t.oid).unwrap_or_default();
        t.bytes += t.parts.iter().map(|p| p.bytes).sum::<i64>();
        if t.kind == "p" {
            // Its own estimate is as old as the last ANALYZE of the root, if there was one.
            t.rows = t.parts.iter().map(|p| p.estimated_rows(&t.columns)).sum();
        }
    }
    Ok(Catalog { tables, left_out })
}

fn catalog_table(row: &tokio_postgres::Row) -> CatalogTable {
    CatalogTable {
        oid: row.get(0),
        table: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        kind: row.get(3),
        persistence: row.get(4),
        identity: row.get(5),
        rows: row.get(6),
        bytes: row.get(7),
        readable: row.get(8),
        primary: row.get::<_, Option<Vec<String>>>(9).unwrap_or_default(),
        identity_columns: row.get::<_, Option<Vec<String>>>(10).unwrap_or_default(),
        columns: Vec::new(),
        file: row.get(11),
        parent: row.get(12),
        inherits: row.get(13),
        parts: Vec::new(),
    }
}

/// The types of all columns.
pub(super) async fn column_types<'a>(
    client: &Client,
    columns: impl Iterator<Item = &'a CatalogColumn>,
) -> Result<HashMap<TypeKey, ColumnType>> {
    let keys: BTreeMap<TypeKey, ()> = columns.map(|c| (c.type_key, ())).collect();
    catalog::types(client, &keys.into_keys().collect::<Vec<_>>()).await
}

/// Whether the log and the lake carry this column.
pub(super) fn carried(
    column: &CatalogColumn,
    options: Option<&TableOptions>,
    generated: bool,
) -> bool {
    let excluded = options.is_some_and(|o| o.exclude_columns.contains(&column.name));
    let in_log = column.generated.is_empty() || (column.generated == "s" && generated);
    in_log && !excluded
}

/// [`crate::Source::discover`].
pub(super) async fn discover(shared: &Shared) -> Result<Vec<DiscoveredTable>> {
    let client = shared.control().await?;
    let tables = catalog_tables(&client, shared).await?.tables;
    // After the tables, so that no partition is known that a later look does not show.
    let (look, _) = names::take(shared).await?;
    let types = column_types(&client, tables.iter().flat_map(|t| &t.columns)).await?;
    let generated = catalog::carries_generated(&client, &shared.publication()).await?;
    for t in &tables {
        // The file was read before the columns were, so it is that of these columns or older.
        shared.names.saw(t.oid, t.file, &t.columns);
    }
    Ok(tables
        .iter()
        .map(|t| describe(shared, t, &types, generated, &look))
        .collect())
}

fn describe(
    shared: &Shared,
    t: &CatalogTable,
    types: &HashMap<TypeKey, ColumnType>,
    generated: bool,
    look: &Look,
) -> DiscoveredTable {
    let options = shared.options.tables.get(&t.table);
    let mut problems = kind_problems(t);
    let error = |check, reason: String| Finding::new(Severity::Error, check, reason);
    let mut columns = Vec::new();
    for c in t.columns.iter().filter(|c| carried(c, options, generated)) {
        let subject = format!("{}.{}", t.table, c.name);
        if META_COLUMNS.iter().any(|(name, _)| *name == c.name) {
            let reason = format!("the lake has a column {} of its own", c.name);
            problems.push(
                error("column_name", reason)
                    .subject(&subject)
                    .mend(exclude(t, &c.name)),
            );
        }
        let Some(described) = types.get(&c.type_key) else {
            continue;
        };
        match mapping::describe(&c.name, described, options) {
            Ok((spec, _)) => columns.push(ColumnSpec {
                source_id: Some(c.number),
                ..spec
            }),
            Err(why) => {
                let asked = options.is_some_and(|o| o.lake_type(&c.name).is_some());
                let mend = match asked {
                    true => format!(
                        "in the config, the override of {}: as = {{ {} = \"string\" }}, or take it out of `as`",
                        t.table, c.name
                    ),
                    false => exclude(t, &c.name),
                };
                problems.push(
                    error(
                        "unsupported_column",
                        format!("{} ({}): {why}", c.name, described.name),
                    )
                    .subject(&subject)
                    .mend(mend),
                );
            }
        }
    }
    let key = options
        .and_then(|o| o.key.clone())
        .unwrap_or_else(|| t.primary.clone());
    problems.extend(key_problems(t, &key, &columns));
    problems.extend(identity_problems(t, &key));
    if let Some(options) = options {
        problems.extend(override_problems(t, options, &key, &columns));
    }
    if !t.readable {
        let reason = "the user may not read the table".to_owned();
        let user = ident(&shared.options.user);
        let mend = format!(
            "GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {} TO {user};",
            ident(&t.table.schema),
            table_ident(&t.table)
        );
        problems.push(error("select", reason).subject(&t.table).mend(mend));
    }
    let identity = Identity::of(t.oid, &t.columns, t.file);
    DiscoveredTable {
        table: t.table.clone(),
        source_id: Some(identity.with_parts(look.parts(t.oid)).to_string()),
        columns,
        key,
        estimated_rows: t.estimated_rows(&t.columns) as u64,
        estimated_bytes: u64::try_from(t.bytes).unwrap_or(0),
        problems,
    }
}

/// What the override asks for and cannot be had.
fn override_problems(
    t: &CatalogTable,
    options: &TableOptions,
    key: &[String],
    columns: &[ColumnSpec],
) -> Vec<Finding> {
    let names: Vec<String> = t.columns.iter().map(|c| c.name.clone()).collect();
    let mut problems = overrides::problems(&t.table, &names, key, options);
    let schema = TableSchema::first(t.table.clone(), 0, columns.to_vec(), key.to_vec());
    problems.extend(overrides::filter_problem(&schema, options));
    let logged = [t].into_iter().chain(&t.parts);
    for logged in logged.filter(|_| options.filter_needs_whole_rows(key)) {
        if logged.unlogged().is_none() && logged.identity != "f" {
            let table = table_ident(&logged.table);
            problems.push(
                Finding::new(Severity::Error, "replica_identity", NEEDS_WHOLE_ROWS)
                    .subject(&t.table)
                    .mend(format!("ALTER TABLE {table} REPLICA IDENTITY FULL;")),
            );
        }
    }
    problems
}

/// Why a filter needs replica identity FULL.
pub(super) const NEEDS_WHOLE_ROWS: &str =
    "the filter looks at columns outside the key, so the log must carry whole old rows";

fn exclude(t: &CatalogTable, column: &str) -> String {
    format!(
        "in the config: [[tables.override]] table = \"{}\", exclude_columns = [\"{column}\"]",
        t.table
    )
}

fn kind_problems(t: &CatalogTable) -> Vec<Finding> {
    let problem = |reason: String, mend: String| {
        Finding::new(Severity::Error, "table_kind", reason)
            .subject(&t.table)
            .mend(mend)
    };
    if let Some(reason) = t.unlogged() {
        let leave_out = format!("in the config: [tables] exclude = [\"{}\"]", t.table);
        return vec![problem(reason.to_owned(), leave_out)];
    }
    let carried = t.parts.iter().filter_map(|p| Some((p, p.unlogged()?)));
    carried
        .map(|(p, reason)| {
            problem(
                format!("{reason}, and {} is a partition of it", p.table),
                format!(
                    "ALTER TABLE {} DETACH PARTITION {}; or exclude the table",
                    table_ident(&t.table),
                    table_ident(&p.table)
                ),
            )
        })
        .collect()
}

/// A key column that may be null, which a range never finds, or that the log does not carry.
fn key_problems(t: &CatalogTable, key: &[String], columns: &[ColumnSpec]) -> Vec<Finding> {
    let mut problems = Vec::new();
    for c in t.columns.iter().filter(|c| key.contains(&c.name)) {
        let (reason, mend) = if !c.generated.is_empty() && !columns.iter().any(|s| s.name == c.name)
        {
            (
                "the log does not carry the key's generated column",
                format!(
                    "in the config: [[tables.override]] table = \"{}\", key = [another unique key], or [tables] exclude",
                    t.table
                ),
            )
        } else if !c.not_null {
            let (table, column) = (table_ident(&t.table), ident(&c.name));
            (
                "a key column may be null",
                format!("ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;"),
            )
        } else {
            continue;
        };
        problems.push(
            Finding::new(Severity::Error, "key", reason)
                .subject(format!("{}.{}", t.table, c.name))
                .mend(mend),
        );
    }
    problems
}

/// What the log must carry of old rows, of the table and of each of its partitions: their
/// replica identity is their own, whatever the root's.
fn identity_problems(t: &CatalogTable, key: &[String]) -> Vec<Finding> {
    let mut problems: Vec<Finding> = identity_problem(t, &t.table, key).into_iter().collect();
    for part in t.parts.iter().filter(|p| p.kind == "r") {
        problems.extend(identity_problem(part, &t.table, key));
    }
    problems
}

fn identity_problem(t: &CatalogTable, subject: &TableName, key: &[String]) -> Option<Finding> {
    if t.unlogged().is_some() || t.identifies(key) {
        return None;
    }
    let table = table_ident(&t.table);
    let primary = !key.is_empty() && key == t.primary.as_slice();
    let (reason, mend) = match t.identity.as_str() {
        _ if key.is_empty() => (
            "the table has no key, so the log must carry whole old rows",
            format!("ALTER TABLE {table} REPLICA IDENTITY FULL;"),
        ),
        "d" if primary => (
            "the primary key is deferrable, and cannot identify rows in the log",
            format!("ALTER TABLE {table} REPLICA IDENTITY FULL;"),
        ),
        _ if primary => (
            "the log does not carry the primary key of changed rows",
            format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT;"),
        ),
        _ => (
            "the log does not carry the key of changed rows",
            format!("ALTER TABLE {table} REPLICA IDENTITY FULL;"),
        ),
    };
    Some(
        Finding::new(Severity::Error, "replica_identity", reason)
            .subject(subject)
            .mend(mend),
    )
}
