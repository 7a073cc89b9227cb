//! What `information_schema` says of the tables, and what their types are in the lake.
//!
//! A column's type text (`int unsigned`, `enum('a','b')`) decides its lake type and how
//! its cells are read from a snapshot. The log's own description of a column decides how
//! they are read from the log; [`super::decode::rows`] compares the two.

use super::control::Ask;
use super::decode::charset::Charset;
use super::decode::values::Value;
use super::flavor::Flavor;
use super::wire::{TextRow, quote};
use crate::{DiscoveredTable, SourceOptions, TableOptions};
use caudal_model::schema::ColumnSpec;
use caudal_model::{Error, Finding, LakeType, Result, Severity, TableName};
use std::collections::{BTreeMap, HashMap};

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
            };
            tables.insert(table, t);
        }
    }
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, CHARACTER_SET_NAME, \
         COLLATION_NAME, IS_NULLABLE FROM information_schema.COLUMNS WHERE {} \
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
            });
        }
    }
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME FROM information_schema.STATISTICS \
         WHERE INDEX_NAME = 'PRIMARY' AND {} ORDER BY TABLE_SCHEMA, TABLE_NAME, SEQ_IN_INDEX",
        filter("")
    );
    for r in connection.query(&sql).await? {
        if let Some(t) = tables.get_mut(&name(&r)) {
            t.primary_key.push(r.text(2));
        }
    }
    Ok(tables.into_values().collect())
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
        match column_type(&c.column_type, c.charset.as_deref(), flavor) {
            Ok((_, lake_type)) => columns.push(ColumnSpec::new(
                c.name.clone(),
                c.column_type.clone(),
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
        let carried = columns.iter().any(|c| &c.name == k);
        let reason = match found {
            None => format!("key column {k} does not exist"),
            Some(_) if !carried && own.exclude_columns.contains(k) => {
                format!("key column {k} is excluded")
            }
            Some(c) if c.nullable => format!("key column {k} can be NULL"),
            Some(_) => continue,
        };
        problems.push(
            Finding::new(Severity::Error, "key", reason)
                .subject(&t.table)
                .mend("name a not-null unique key in `key` of [[tables.override]]"),
        );
    }
    if t.table_type == "SYSTEM VERSIONED" {
        problems.push(
            Finding::new(
                Severity::Error,
                "system_versioned",
                "system-versioned tables are not supported yet",
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

fn exclude(table: &TableName, column: &str) -> String {
    format!("[[tables.override]]\ntable = \"{table}\"\nexclude_columns = [\"{column}\"]")
}

/// Whether the engine gives consistent reads.
pub fn transactional(engine: &str) -> bool {
    matches!(engine.to_ascii_lowercase().as_str(), "innodb" | "rocksdb")
}

/// What a column's values are, and its lake type; otherwise why it cannot be carried.
///
/// `charset` decides whether the log's text can be decoded; a reader of snapshots, whose
/// text the server converts, gives `None`.
pub fn column_type(
    text: &str,
    charset: Option<&str>,
    flavor: Flavor,
) -> std::result::Result<(Value, LakeType), String> {
    let unsupported = || format!("type {text} is not supported yet");
    if text.contains("COMPRESSED*/") {
        return Err(unsupported());
    }
    let (base, arguments, rest) = split_type(text);
    let number = |i: usize| arguments.get(i).and_then(|a| a.trim().parse::<u16>().ok());
    let unsigned = rest.contains("unsigned") || rest.contains("zerofill");
    let digits = || number(0).unwrap_or(0).min(6) as u8;
    let int = |bytes| {
        let lake = match (bytes, unsigned) {
            (1, false) => LakeType::Int8,
            (1, true) | (2, false) => LakeType::Int16,
            (2, true) | (3, _) | (4, false) => LakeType::Int32,
            (4, true) | (_, false) => LakeType::Int64,
            _ => LakeType::Decimal {
                precision: 20,
                scale: 0,
            },
        };
        (Value::Int { bytes, unsigned }, lake)
    };
    Ok(match base.as_str() {
        "tinyint" => int(1),
        "smallint" => int(2),
        "mediumint" => int(3),
        "int" | "integer" => int(4),
        "bigint" => int(8),
        "decimal" | "numeric" => {
            let precision = number(0).unwrap_or(10) as u8;
            let scale = number(1).unwrap_or(0) as u8;
            decimal_type(precision, scale)
        }
        "float" => (Value::Float, LakeType::Float32),
        "double" | "real" => (Value::Double, LakeType::Float64),
        "bit" => bit_type(number(0).unwrap_or(1)),
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => {
            let name = charset.unwrap_or("utf8mb4");
            let charset = Charset::by_name(name)
                .ok_or_else(|| format!("charset {name} of a text column is not supported yet"))?;
            (Value::Text(charset), LakeType::Utf8)
        }
        "binary" => (Value::FixedBinary(number(0).unwrap_or(1)), LakeType::Binary),
        "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
            (Value::Binary, LakeType::Binary)
        }
        "date" => (Value::Date, LakeType::Date32),
        "datetime" => (Value::DateTime(digits()), LakeType::Timestamp),
        "timestamp" => (Value::Timestamp(digits()), LakeType::TimestampUtc),
        "time" => (Value::Time(digits()), LakeType::Utf8),
        "year" => (Value::Year, LakeType::Int16),
        "enum" => (Value::Enum(arguments.into()), LakeType::Utf8),
        "set" => (Value::Set(arguments.into()), LakeType::Utf8),
        "json" if flavor == Flavor::MySql => (Value::Json, LakeType::Utf8),
        "uuid" if flavor == Flavor::MariaDb => (Value::Uuid, LakeType::Utf8),
        "inet4" if flavor == Flavor::MariaDb => (Value::Inet4, LakeType::Utf8),
        "inet6" if flavor == Flavor::MariaDb => (Value::Inet6, LakeType::Utf8),
        _ => return Err(unsupported()),
    })
}

/// A decimal's lake type.
pub fn decimal_type(precision: u8, scale: u8) -> (Value, LakeType) {
    let value = Value::Decimal { precision, scale };
    if (1..=38).contains(&precision) && scale <= precision {
        (value, LakeType::Decimal { precision, scale })
    } else {
        (value, LakeType::Utf8)
    }
}

/// A bit column's lake type.
pub fn bit_type(bits: u16) -> (Value, LakeType) {
    (
        Value::Bit(bits),
        if bits == 1 {
            LakeType::Boolean
        } else {
            LakeType::Binary
        },
    )
}

/// Splits `enum('a','b''c') xyz` into name, arguments (unquoted) and the rest.
fn split_type(text: &str) -> (String, Vec<String>, String) {
    let Some((base, rest)) = text.split_once('(') else {
        let (base, rest) = text.split_once(' ').unwrap_or((text, ""));
        return (
            base.to_ascii_lowercase(),
            Vec::new(),
            rest.to_ascii_lowercase(),
        );
    };
    let mut arguments = Vec::new();
    let mut current = String::new();
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                while let Some(c) = chars.next() {
                    if c == '\'' && chars.next_if_eq(&'\'').is_none() {
                        break;
                    }
                    current.push(c);
                }
            }
            ',' => arguments.push(std::mem::take(&mut current)),
            ')' => break,
            c => current.push(c),
        }
    }
    arguments.push(current);
    let base = base.trim().to_ascii_lowercase();
    (
        base,
        arguments,
        chars.collect::<String>().to_ascii_lowercase(),
    )
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
    Error::data(table, format!("the table changed: {what}")).hint(format!(
        "run `caudal resnapshot {table}` to copy it again as it is now"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lake(text: &str) -> LakeType {
        column_type(text, None, Flavor::MySql).expect(text).1
    }

    #[test]
    fn types() {
        assert_eq!(lake("tinyint(1)"), LakeType::Int8);
        assert_eq!(lake("tinyint(3) unsigned zerofill"), LakeType::Int16);
        assert_eq!(lake("mediumint unsigned"), LakeType::Int32);
        assert_eq!(lake("int unsigned"), LakeType::Int64);
        assert_eq!(
            lake("bigint unsigned"),
            LakeType::Decimal {
                precision: 20,
                scale: 0
            }
        );
        assert_eq!(
            lake("decimal(12,2)"),
            LakeType::Decimal {
                precision: 12,
                scale: 2
            }
        );
        assert_eq!(lake("decimal(39,0)"), LakeType::Utf8);
        assert_eq!(lake("bit(1)"), LakeType::Boolean);
        assert_eq!(lake("bit(9)"), LakeType::Binary);
        let (value, _) = column_type("enum('a','b,''c)')", Some("utf8mb4"), Flavor::MySql).unwrap();
        assert_eq!(
            value,
            Value::Enum(["a".to_owned(), "b,'c)".to_owned()].into())
        );
        assert!(column_type("point", None, Flavor::MySql).is_err());
        assert!(
            column_type("varchar(3)", Some("gbk"), Flavor::MySql)
                .unwrap_err()
                .contains("gbk")
        );
        assert!(column_type("uuid", None, Flavor::MySql).is_err());
        assert!(column_type("uuid", None, Flavor::MariaDb).is_ok());
        assert!(column_type("text /*M!100301 COMPRESSED*/", None, Flavor::MariaDb).is_err());
    }
}
