//! Tables as the stream sees them: discovery.

use super::Shared;
use super::catalog::{self, CatalogColumn, ColumnType, TypeKey};
use super::connect::{ident, query_error, table_ident};
use super::mapping;
use super::shape::Identity;
use crate::{DiscoveredTable, TableOptions, overrides};
use caudal_model::schema::{ColumnSpec, META_COLUMNS};
use caudal_model::{Finding, Result, Severity, TableName, TableSchema};
use std::collections::{BTreeMap, HashMap};

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
}

const TABLES: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
       c.relreplident::text, c.reltuples,
       CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) ELSE 0 END,
       has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT'),
       p.keys, i.keys, pg_relation_filenode(c.oid)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN LATERAL (
       SELECT array_agg(a.attname::text ORDER BY k.place) AS keys
         FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a
        WHERE x.indrelid = c.oid AND x.indisprimary AND k.place <= x.indnkeyatts
          AND a.attrelid = c.oid AND a.attnum = k.attnum) p ON true
  LEFT JOIN LATERAL (
       SELECT array_agg(a.attname::text ORDER BY k.place) AS keys
         FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, place), pg_attribute a
        WHERE x.indrelid = c.oid AND k.place <= x.indnkeyatts AND x.indisvalid AND x.indimmediate
          AND CASE c.relreplident WHEN 'd' THEN x.indisprimary WHEN 'i' THEN x.indisreplident ELSE false END
          AND a.attrelid = c.oid AND a.attnum = k.attnum) i ON true
 WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
 ORDER BY 2, 3";

/// The selected tables as the catalogue has them.
pub(super) async fn catalog_tables(
    client: &tokio_postgres::Client,
    shared: &Shared,
) -> Result<Vec<CatalogTable>> {
    let mut tables = Vec::new();
    for row in client.query(TABLES, &[]).await.map_err(query_error)? {
        let table = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        if !shared.options.selection.matches(&table) {
            continue;
        }
        tables.push(CatalogTable {
            oid: row.get(0),
            table,
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
        });
    }
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    let mut columns = catalog::columns(client, &oids).await?;
    for t in &mut tables {
        t.columns = columns.remove(&t.oid).unwrap_or_default();
    }
    Ok(tables)
}

/// The types of all columns.
pub(super) async fn column_types<'a>(
    client: &tokio_postgres::Client,
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
    let tables = catalog_tables(&client, shared).await?;
    let types = column_types(&client, tables.iter().flat_map(|t| &t.columns)).await?;
    let generated = catalog::carries_generated(&client, &shared.publication()).await?;
    for t in &tables {
        // The file was read before the columns were, so it is that of these columns or older.
        shared.names.saw(t.oid, t.file, &t.columns);
    }
    Ok(tables
        .iter()
        .map(|t| describe(shared, t, &types, generated))
        .collect())
}

fn describe(
    shared: &Shared,
    t: &CatalogTable,
    types: &HashMap<TypeKey, ColumnType>,
    generated: bool,
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
    problems.extend(identity_problem(t, &key));
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
    let bytes = u64::try_from(t.bytes).unwrap_or(0);
    // Never analysed: a guess from the size and the number of columns.
    let guess = bytes / (28 + 12 * t.columns.len().max(1) as u64);
    DiscoveredTable {
        table: t.table.clone(),
        source_id: Some(Identity::of(t.oid, &t.columns, t.file).to_string()),
        columns,
        key,
        estimated_rows: if t.rows < 0.0 { guess } else { t.rows as u64 },
        estimated_bytes: bytes,
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
    if t.kind == "r" && t.identity != "f" && options.filter_needs_whole_rows(key) {
        let table = table_ident(&t.table);
        problems.push(
            Finding::new(Severity::Error, "replica_identity", NEEDS_WHOLE_ROWS)
                .subject(&t.table)
                .mend(format!("ALTER TABLE {table} REPLICA IDENTITY FULL;")),
        );
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
    let leave_out = format!("in the config: [tables] exclude = [\"{}\"]", t.table);
    let problem = |reason: &str| {
        vec![
            Finding::new(Severity::Error, "table_kind", reason)
                .subject(&t.table)
                .mend(leave_out.clone()),
        ]
    };
    match (t.kind.as_str(), t.persistence.as_str()) {
        ("p", _) => problem(
            "partitioned tables are not supported as one table yet; their partitions are carried as tables of their own",
        ),
        ("f", _) => problem("the log does not carry foreign tables"),
        (_, "u") => problem("the log does not carry unlogged tables"),
        _ => Vec::new(),
    }
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

fn identity_problem(t: &CatalogTable, key: &[String]) -> Option<Finding> {
    if t.kind != "r" || t.identity == "f" {
        return None;
    }
    let covered = !key.is_empty() && key.iter().all(|k| t.identity_columns.contains(k));
    if covered {
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
            .subject(&t.table)
            .mend(mend),
    )
}
