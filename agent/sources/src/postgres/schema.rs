//! Tables as the stream sees them: discovery, and the mapping of types.

use super::Shared;
use super::catalog::{self, CatalogColumn, ColumnType, TypeKey};
use super::connect::{ident, query_error, table_ident};
use super::decode::value::Codec;
use crate::{DiscoveredTable, TableOptions};
use caudal_model::schema::{ColumnSpec, META_COLUMNS};
use caudal_model::{Finding, LakeType, Result, Severity, TableName};
use std::collections::{BTreeMap, HashMap};

/// A type that is no domain.
#[derive(Debug, Clone)]
pub struct BaseType {
    /// Its oid.
    pub oid: u32,
    /// The column's or the domain's modifier; -1 without one.
    pub type_mod: i32,
    /// Its name.
    pub name: String,
    /// `pg_type.typtype`.
    pub kind: String,
    /// `pg_type.typcategory`.
    pub category: String,
}

/// How a snapshot selects a column, so that it gives what the log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyForm {
    /// As it is, in its binary form.
    Plain,
    /// Cast to text, where the cast is the type's output function.
    Cast,
    /// Through the type's output function: casts of some types print otherwise
    /// (inet adds its mask, xml keeps the encoding, char drops its padding).
    Output,
}

/// How a type is carried.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapped {
    /// Its type in the lake.
    pub lake: LakeType,
    /// How its values are read.
    pub codec: Codec,
    /// How a snapshot selects it.
    pub form: CopyForm,
    /// Whether its operators are the system's own, which a session with a pinned
    /// `search_path` finds: others would be compared as what they cast to.
    pub ranged: bool,
}

/// The first oid that is not of the system itself.
const FIRST_USER_OID: u32 = 16_384;

/// How a type is carried, or why it cannot be yet.
pub fn map(base: &BaseType) -> Result<Mapped, &'static str> {
    let ranged = base.oid < FIRST_USER_OID || base.kind == "e";
    let plain = |lake, codec| {
        Ok(Mapped {
            lake,
            codec,
            form: CopyForm::Plain,
            ranged,
        })
    };
    let text = |form| {
        Ok(Mapped {
            lake: LakeType::Utf8,
            codec: Codec::Text,
            form,
            ranged,
        })
    };
    if base.category == "A" {
        return Err("arrays are not supported yet");
    }
    match base.oid {
        16 => plain(LakeType::Boolean, Codec::Bool),
        17 => plain(LakeType::Binary, Codec::Bytea),
        20 => plain(LakeType::Int64, Codec::Int),
        21 => plain(LakeType::Int16, Codec::Int),
        23 => plain(LakeType::Int32, Codec::Int),
        26 => plain(LakeType::Int64, Codec::Oid),
        700 => plain(LakeType::Float32, Codec::Float4),
        701 => plain(LakeType::Float64, Codec::Float8),
        790 => plain(
            LakeType::Decimal {
                precision: 19,
                scale: 2,
            },
            Codec::Money,
        ),
        1082 => plain(LakeType::Date32, Codec::Date),
        1083 => plain(LakeType::Time64, Codec::Time),
        1114 => plain(LakeType::Timestamp, Codec::Timestamp),
        1184 => plain(LakeType::TimestampUtc, Codec::Timestamp),
        1700 => match numeric(base.type_mod) {
            Some(lake) => plain(lake, Codec::Numeric),
            None => text(CopyForm::Cast),
        },
        2950 => plain(LakeType::Utf8, Codec::Uuid),
        3802 => plain(LakeType::Utf8, Codec::Jsonb),
        // text, varchar, char(n), name and json are their own text in binary.
        19 | 25 | 114 | 1042 | 1043 => text(CopyForm::Plain),
        18 | 142 | 650 | 869 => text(CopyForm::Output),
        oid if oid < FIRST_USER_OID => text(CopyForm::Cast),
        _ => match (base.kind.as_str(), base.name.as_str()) {
            // An enum's binary form is its label.
            ("e", _) => text(CopyForm::Plain),
            ("b", "citext") => text(CopyForm::Cast),
            ("b", "hstore") => Err("hstore is not supported yet"),
            ("b", "geometry" | "geography") => Err("PostGIS types are not supported yet"),
            ("b", "vector") => Err("pgvector's vector is not supported yet"),
            _ => text(CopyForm::Output),
        },
    }
}

/// The decimal of a numeric's modifier, if the lake has it.
fn numeric(type_mod: i32) -> Option<LakeType> {
    let packed = type_mod.checked_sub(4).filter(|p| *p >= 0)?;
    let precision = (packed >> 16) & 0xffff;
    // Eleven bits, signed; servers before 15 only wrote 0 to 1000.
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    if (1..=38).contains(&precision) && (0..=precision).contains(&scale) {
        let (precision, scale) = (u8::try_from(precision).ok()?, u8::try_from(scale).ok()?);
        return Some(LakeType::Decimal { precision, scale });
    }
    None
}

/// The expression that selects a column for a copy.
pub fn copy_expression(name: &str, form: CopyForm) -> String {
    let column = ident(name);
    match form {
        CopyForm::Plain => column,
        CopyForm::Cast => format!("{column}::text"),
        // num_nulls, because a composite of nulls IS NULL without being null.
        CopyForm::Output => {
            format!("CASE WHEN num_nulls({column}) = 0 THEN format('%s', {column}) END")
        }
    }
}

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
}

const TABLES: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
       c.relreplident::text, c.reltuples,
       CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) ELSE 0 END,
       has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT'),
       p.keys, i.keys
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
        match &described.mapped {
            Ok(mapped) => columns.push(ColumnSpec::new(
                c.name.clone(),
                described.name.clone(),
                mapped.lake.clone(),
            )),
            Err(why) => problems.push(
                error(
                    "unsupported_column",
                    format!("{} ({}): {why}", c.name, described.name),
                )
                .subject(&subject)
                .mend(exclude(t, &c.name)),
            ),
        }
    }
    let key = options
        .and_then(|o| o.key.clone())
        .unwrap_or_else(|| t.primary.clone());
    problems.extend(key_problems(t, &key, &columns));
    problems.extend(identity_problem(t, &key));
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
        columns,
        key,
        estimated_rows: if t.rows < 0.0 { guess } else { t.rows as u64 },
        estimated_bytes: bytes,
        problems,
    }
}

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

fn key_problems(t: &CatalogTable, key: &[String], columns: &[ColumnSpec]) -> Vec<Finding> {
    let mut problems = Vec::new();
    for k in key {
        let subject = format!("{}.{k}", t.table);
        let mut error = |check, reason: &str, mend: String| {
            let finding = Finding::new(Severity::Error, check, reason)
                .subject(&subject)
                .mend(mend);
            problems.push(finding);
        };
        let keep = "in the config: take it out of exclude_columns, or name another key".to_owned();
        match t.columns.iter().find(|c| &c.name == k) {
            None => error(
                "key",
                "the key names a column that the table does not have",
                keep,
            ),
            Some(_) if !columns.iter().any(|c| &c.name == k) => {
                error("key", "a key column is left out of the lake", keep);
            }
            // A range never finds null.
            Some(c) if !c.not_null => error(
                "key",
                "a key column may be null",
                format!(
                    "ALTER TABLE {} ALTER COLUMN {} SET NOT NULL;",
                    table_ident(&t.table),
                    ident(k)
                ),
            ),
            Some(_) => {}
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32, type_mod: i32) -> BaseType {
        BaseType {
            oid,
            type_mod,
            name: "t".into(),
            kind: "b".into(),
            category: "X".into(),
        }
    }

    #[test]
    fn numerics_become_decimals_only_where_the_lake_has_them() {
        let type_mod = |p: i32, s: i32| ((p << 16) | (s & 0x7ff)) + 4;
        let lake = |p, s| map(&base(1700, type_mod(p, s))).unwrap().lake;
        assert_eq!(
            lake(12, 2),
            LakeType::Decimal {
                precision: 12,
                scale: 2
            }
        );
        assert_eq!(
            lake(38, 38),
            LakeType::Decimal {
                precision: 38,
                scale: 38
            }
        );
        for (p, s) in [(39, 0), (5, -2), (3, 5), (1000, 1000)] {
            assert_eq!(lake(p, s), LakeType::Utf8, "{p} {s}");
        }
        assert_eq!(map(&base(1700, -1)).unwrap().lake, LakeType::Utf8);
    }

    #[test]
    fn types_without_a_plain_text_cast_go_through_their_output_function() {
        assert_eq!(map(&base(869, -1)).unwrap().form, CopyForm::Output);
        assert_eq!(map(&base(1186, -1)).unwrap().form, CopyForm::Cast);
        assert_eq!(map(&base(1042, 9)).unwrap().form, CopyForm::Plain);
        assert_eq!(map(&base(70_000, -1)).unwrap().form, CopyForm::Output);
        assert!(
            map(&BaseType {
                category: "A".into(),
                ..base(1007, -1)
            })
            .is_err()
        );
    }
}
