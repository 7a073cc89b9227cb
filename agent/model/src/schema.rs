//! Tables' schemas in the lake, and how they change.
//!
//! A schema version is immutable: files name the version they were written
//! with. A column's `id` stays with it through versions, so that folding can
//! follow ids where names change.

use crate::TableName;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A column's type in the lake: what Athena, Spark, Trino and DuckDB all read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LakeType {
    /// true, false
    Boolean,
    /// −128 … 127
    Int8,
    /// 16 bits, signed
    Int16,
    /// 32 bits, signed
    Int32,
    /// 64 bits, signed
    Int64,
    /// IEEE 754 single
    Float32,
    /// IEEE 754 double
    Float64,
    /// Exact decimal: precision 1 to 38, scale 0 to precision.
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// UTF-8 text
    Utf8,
    /// Bytes
    Binary,
    /// Days since 1970-01-01, 32 bits
    Date32,
    /// Microseconds since midnight, 64 bits; 24:00:00 is kept
    Time64,
    /// Microseconds since 1970-01-01 00:00:00 without a zone
    Timestamp,
    /// Microseconds since 1970-01-01 00:00:00 UTC
    TimestampUtc,
    /// A list with nulls
    List(Box<LakeType>),
    /// text → text
    Map,
}

impl LakeType {
    /// The Arrow type of a column of this type.
    pub fn arrow(&self) -> DataType {
        match self {
            LakeType::Boolean => DataType::Boolean,
            LakeType::Int8 => DataType::Int8,
            LakeType::Int16 => DataType::Int16,
            LakeType::Int32 => DataType::Int32,
            LakeType::Int64 => DataType::Int64,
            LakeType::Float32 => DataType::Float32,
            LakeType::Float64 => DataType::Float64,
            // Scale is at most 38, so it fits the signed byte.
            LakeType::Decimal { precision, scale } => {
                DataType::Decimal128(*precision, *scale as i8)
            }
            LakeType::Utf8 => DataType::Utf8,
            LakeType::Binary => DataType::Binary,
            LakeType::Date32 => DataType::Date32,
            LakeType::Time64 => DataType::Time64(TimeUnit::Microsecond),
            LakeType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            LakeType::TimestampUtc => {
                DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
            }
            LakeType::List(item) => {
                DataType::List(Arc::new(Field::new("element", item.arrow(), true)))
            }
            LakeType::Map => DataType::Map(
                Arc::new(Field::new_struct(
                    "key_value",
                    vec![
                        Field::new("key", DataType::Utf8, false),
                        Field::new("value", DataType::Utf8, true),
                    ],
                    false,
                )),
                false,
            ),
        }
    }

    /// Whether every value of `self` is exactly a value of `wider`, and files of
    /// the one can be read as the other.
    pub fn widens_to(&self, wider: &LakeType) -> bool {
        use LakeType::*;
        match (self, wider) {
            (a, b) if a == b => true,
            (Int8, Int16 | Int32 | Int64) | (Int16, Int32 | Int64) | (Int32, Int64) => true,
            (Float32, Float64) => true,
            // Iceberg's rule: the scale must stay.
            (
                Decimal {
                    precision: p,
                    scale: s,
                },
                Decimal {
                    precision: q,
                    scale: t,
                },
            ) => s == t && p <= q,
            _ => false,
        }
    }
}

impl fmt::Display for LakeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LakeType::Boolean => f.write_str("boolean"),
            LakeType::Int8 => f.write_str("int8"),
            LakeType::Int16 => f.write_str("int16"),
            LakeType::Int32 => f.write_str("int32"),
            LakeType::Int64 => f.write_str("int64"),
            LakeType::Float32 => f.write_str("float32"),
            LakeType::Float64 => f.write_str("float64"),
            LakeType::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            LakeType::Utf8 => f.write_str("string"),
            LakeType::Binary => f.write_str("binary"),
            LakeType::Date32 => f.write_str("date"),
            LakeType::Time64 => f.write_str("time"),
            LakeType::Timestamp => f.write_str("timestamp"),
            LakeType::TimestampUtc => f.write_str("timestamptz"),
            LakeType::List(item) => write!(f, "list<{item}>"),
            LakeType::Map => f.write_str("map<string,string>"),
        }
    }
}

/// Bytes of a type's text: what no table needs, and no stack minds.
const MAX_TYPE_TEXT: usize = 256;

impl FromStr for LakeType {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "`{s}` is not a lake type; allowed are boolean, int8, int16, int32, int64, float32, \
                 float64, decimal(p,s) with s ≤ p ≤ 38, string, binary, date, time, timestamp, \
                 timestamptz, list<T>, map<string,string>"
            )
        };
        // Lists nest by recursion, here and wherever a type is walked or dropped.
        if s.len() > MAX_TYPE_TEXT {
            return Err(format!("a lake type has at most {MAX_TYPE_TEXT} bytes"));
        }
        Ok(match s {
            "boolean" => LakeType::Boolean,
            "int8" => LakeType::Int8,
            "int16" => LakeType::Int16,
            "int32" => LakeType::Int32,
            "int64" => LakeType::Int64,
            "float32" => LakeType::Float32,
            "float64" => LakeType::Float64,
            "string" => LakeType::Utf8,
            "binary" => LakeType::Binary,
            "date" => LakeType::Date32,
            "time" => LakeType::Time64,
            "timestamp" => LakeType::Timestamp,
            "timestamptz" => LakeType::TimestampUtc,
            "map<string,string>" => LakeType::Map,
            _ => {
                if let Some(item) = s.strip_prefix("list<").and_then(|r| r.strip_suffix('>')) {
                    return Ok(LakeType::List(Box::new(item.parse()?)));
                }
                let (p, sc) = s
                    .strip_prefix("decimal(")
                    .and_then(|r| r.strip_suffix(')'))
                    .and_then(|r| r.split_once(','))
                    .ok_or_else(bad)?;
                let precision: u8 = p.trim().parse().map_err(|_| bad())?;
                let scale: u8 = sc.trim().parse().map_err(|_| bad())?;
                if precision == 0 || precision > 38 || scale > precision {
                    return Err(bad());
                }
                LakeType::Decimal { precision, scale }
            }
        })
    }
}

impl Serialize for LakeType {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for LakeType {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A column as a source describes it, before the lake gives it an id.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSpec {
    /// The column's name at the source.
    pub name: String,
    /// The source's own type, with its modifiers: `numeric(12,2)`, `int unsigned`.
    pub source_type: String,
    /// Its type in the lake.
    pub lake_type: LakeType,
    /// What the source itself calls the column whatever its name (PostgreSQL: `attnum`);
    /// `None` where it has no such number.
    pub source_id: Option<i32>,
    /// The name of the held version's column that this one continues, where the source
    /// knows of a rename by its names only.
    pub renamed_from: Option<String>,
    /// What rows that are older than the column hold.
    pub older_rows: OlderRows,
}

impl ColumnSpec {
    /// A column that is known by its name, and null in rows from before it was added.
    pub fn new(
        name: impl Into<String>,
        source_type: impl Into<String>,
        lake_type: LakeType,
    ) -> Self {
        ColumnSpec {
            name: name.into(),
            source_type: source_type.into(),
            lake_type,
            source_id: None,
            renamed_from: None,
            older_rows: OlderRows::Null,
        }
    }
}

/// What rows hold in a column that was added after them, at the source and without a
/// word of it in the log.
#[derive(Debug, Clone, PartialEq)]
pub enum OlderRows {
    /// Null.
    Null,
    /// One value, as [`Column::default`] writes it.
    Constant(serde_json::Value),
    /// A value of their own each, or one that the source does not tell: only a new copy
    /// of the table shows it.
    Unknown,
}

/// A column of one schema version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Stays with the column through versions and renames; from 1.
    pub id: i32,
    /// The column's name at the source and in the files.
    pub name: String,
    /// The source's own type, with its modifiers.
    pub source_type: String,
    /// Its type in the files of this version.
    pub lake_type: LakeType,
    /// The constant that older rows show at the source; `null` if there is none. Numbers
    /// and booleans as in JSON where JSON holds them exactly (integers and floats),
    /// anything else as the text that `as = "string"` would give.
    #[serde(default)]
    pub default: Option<serde_json::Value>,
    /// What the source calls the column whatever its name; see [`ColumnSpec::source_id`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<i32>,
}

impl Column {
    fn new(id: i32, spec: &ColumnSpec) -> Self {
        Column {
            id,
            name: spec.name.clone(),
            source_type: spec.source_type.clone(),
            lake_type: spec.lake_type.clone(),
            default: None,
            source_id: spec.source_id,
        }
    }
}

/// One version of a table's schema: `_schema/<version>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The file's format; 1.
    pub format: u32,
    /// The table.
    pub table: TableName,
    /// From 1.
    pub version: u32,
    /// The first `_seq` that may have this version.
    pub since_seq: i64,
    /// The key columns in their order; empty for a table without a key.
    pub key: Vec<String>,
    /// The columns, in the source's order.
    pub columns: Vec<Column>,
    /// What the source knows the table by whatever its name, in its own words, so that
    /// another table that takes the name is not taken for this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
}

/// The names that caudal adds to every file under `changes/`, with their field ids.
///
/// The ids lie far above any column's, and below the range that Iceberg reserves
/// for itself (2147483447 and above).
pub const META_COLUMNS: [(&str, i32); 5] = [
    ("_op", 1_000_000_001),
    ("_seq", 1_000_000_002),
    ("_committed_at", 1_000_000_003),
    ("_position", 1_000_000_004),
    ("_unchanged", 1_000_000_005),
];

/// What a changed set of columns means for a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Evolution {
    /// Nothing that the lake shows has changed.
    Same,
    /// A new version; old files are read with it.
    Next(TableSchema),
    /// Old rows cannot be read as the new version: the table must be copied again.
    Recopy(String),
}

impl TableSchema {
    /// Version 1 of a table.
    pub fn first(
        table: TableName,
        since_seq: i64,
        specs: Vec<ColumnSpec>,
        key: Vec<String>,
    ) -> Self {
        let columns = specs.iter().zip(1..).map(|(s, id)| Column::new(id, s));
        let columns = columns.collect();
        TableSchema {
            format: 1,
            table,
            version: 1,
            since_seq,
            key,
            columns,
            source_id: None,
        }
    }

    /// Compares the source's columns with this version.
    ///
    /// A column continues one of this version by [`ColumnSpec::renamed_from`], else by
    /// [`ColumnSpec::source_id`] where both have one, else by its name. `next_id` is one
    /// more than the greatest id of any version of the table, so that a column dropped
    /// and added again gets a new one. `retains` says of two source types whether every
    /// value of the first is the same value as the second, although the server may have
    /// rewritten the rows without a word in the log.
    pub fn evolve(
        &self,
        since_seq: i64,
        specs: &[ColumnSpec],
        key: &[String],
        next_id: i32,
        retains: impl Fn(&str, &str) -> bool,
    ) -> Evolution {
        let mut next_id = next_id;
        let mut columns = Vec::with_capacity(specs.len());
        for spec in specs {
            let column = match self.continued_by(spec) {
                Some(old)
                    if old.lake_type.widens_to(&spec.lake_type)
                        && (old.source_type == spec.source_type
                            || retains(&old.source_type, &spec.source_type)) =>
                {
                    Column {
                        default: old.default.clone(),
                        source_id: spec.source_id.or(old.source_id),
                        ..Column::new(old.id, spec)
                    }
                }
                Some(old) => {
                    return Evolution::Recopy(format!(
                        "column {} changed from {} to {}",
                        spec.name, old.source_type, spec.source_type
                    ));
                }
                None => {
                    next_id += 1;
                    let mut column = Column::new(next_id - 1, spec);
                    match &spec.older_rows {
                        OlderRows::Null => {}
                        OlderRows::Constant(value) => column.default = Some(value.clone()),
                        OlderRows::Unknown => {
                            return Evolution::Recopy(format!(
                                "column {} was added with a value for each row that is there",
                                spec.name
                            ));
                        }
                    }
                    column
                }
            };
            columns.push(column);
        }
        let id_of = |columns: &[Column], name: &String| {
            columns.iter().find(|c| &c.name == name).map(|c| c.id)
        };
        let same_key = key.len() == self.key.len()
            && key.iter().zip(&self.key).all(|(new, old)| {
                let id = id_of(&columns, new);
                id.is_some() && id == id_of(&self.columns, old)
            });
        if !same_key {
            return Evolution::Recopy(format!(
                "its key changed from ({}) to ({})",
                self.key.join(", "),
                key.join(", ")
            ));
        }
        self.next_version(since_seq, columns, key)
    }

    /// The column of this version that `spec` continues.
    fn continued_by(&self, spec: &ColumnSpec) -> Option<&Column> {
        if let Some(before) = &spec.renamed_from {
            return self.columns.iter().find(|c| &c.name == before);
        }
        let Some(id) = spec.source_id else {
            return self.columns.iter().find(|c| c.name == spec.name);
        };
        // Versions written without numbers are still followed by their names.
        let by_id = self.columns.iter().find(|c| c.source_id == Some(id));
        let unnumbered = |c: &&Column| c.source_id.is_none() && c.name == spec.name;
        by_id.or_else(|| self.columns.iter().find(unnumbered))
    }

    /// The version with which the table is copied again: nothing older has to be read as
    /// it, so any column and key may change. A column keeps its id where its values do.
    pub fn recopied(
        &self,
        since_seq: i64,
        specs: &[ColumnSpec],
        key: &[String],
        next_id: i32,
    ) -> Evolution {
        let mut next_id = next_id;
        let columns: Vec<Column> = specs
            .iter()
            .map(|spec| {
                let old = self.continued_by(spec);
                let old = old.filter(|c| c.lake_type.widens_to(&spec.lake_type));
                let id = old.map_or(next_id, |c| c.id);
                next_id += i32::from(old.is_none());
                Column::new(id, spec)
            })
            .collect();
        self.next_version(since_seq, columns, key)
    }

    fn next_version(&self, since_seq: i64, columns: Vec<Column>, key: &[String]) -> Evolution {
        if columns == self.columns && key == self.key {
            return Evolution::Same;
        }
        Evolution::Next(TableSchema {
            format: 1,
            table: self.table.clone(),
            version: self.version + 1,
            since_seq,
            key: key.to_vec(),
            columns,
            source_id: self.source_id.clone(),
        })
    }

    /// Whether the table has a key.
    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// The columns' positions of the key, in the key's order.
    pub fn key_indices(&self) -> Vec<usize> {
        self.key
            .iter()
            .filter_map(|k| self.columns.iter().position(|c| &c.name == k))
            .collect()
    }

    /// The Arrow schema of a change batch: the table's columns, then [`META_COLUMNS`].
    pub fn arrow_changes(&self) -> Arc<Schema> {
        let with_id = |f: Field, id: i32| {
            f.with_metadata(HashMap::from([(
                "PARQUET:field_id".to_owned(),
                id.to_string(),
            )]))
        };
        let mut fields: Vec<Field> = self
            .columns
            .iter()
            .map(|c| with_id(Field::new(&c.name, c.lake_type.arrow(), true), c.id))
            .collect();
        let dictionary =
            |key: DataType| DataType::Dictionary(Box::new(key), Box::new(DataType::Utf8));
        let types = [
            (dictionary(DataType::Int8), false),
            (DataType::Int64, false),
            (LakeType::TimestampUtc.arrow(), false),
            (dictionary(DataType::Int32), false),
            (LakeType::List(Box::new(LakeType::Utf8)).arrow(), true),
        ];
        for ((name, id), (data_type, nullable)) in META_COLUMNS.iter().zip(types) {
            fields.push(with_id(Field::new(*name, data_type, nullable), *id));
        }
        Arc::new(Schema::new(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, lake_type: LakeType) -> ColumnSpec {
        ColumnSpec::new(name, lake_type.to_string(), lake_type)
    }

    #[test]
    fn lake_types_print_and_parse() {
        use LakeType::*;
        for t in [
            Boolean,
            Int8,
            Decimal {
                precision: 38,
                scale: 0,
            },
            List(Box::new(Decimal {
                precision: 5,
                scale: 2,
            })),
            Map,
            TimestampUtc,
        ] {
            assert_eq!(t.to_string().parse::<LakeType>().unwrap(), t);
        }
        for bad in [
            "int128",
            "decimal(39,0)",
            "decimal(2,3)",
            "list<x>",
            "decimal(0,0)",
        ] {
            assert!(bad.parse::<LakeType>().is_err(), "{bad}");
        }
    }

    #[test]
    fn evolution_keeps_ids_and_asks_for_a_copy_when_values_cannot_be_kept() {
        let v1 = TableSchema::first(
            TableName::new("s", "t"),
            1,
            vec![spec("id", LakeType::Int32), spec("a", LakeType::Utf8)],
            vec!["id".into()],
        );
        let key = ["id".to_string()];
        let any = |_: &str, _: &str| true;
        assert_eq!(
            v1.evolve(
                5,
                &[spec("id", LakeType::Int32), spec("a", LakeType::Utf8)],
                &key,
                3,
                any
            ),
            Evolution::Same
        );
        let Evolution::Next(v2) = v1.evolve(
            5,
            &[spec("b", LakeType::Date32), spec("id", LakeType::Int64)],
            &key,
            3,
            any,
        ) else {
            panic!("widening and adding make a new version")
        };
        assert_eq!((v2.version, v2.since_seq), (2, 5));
        assert_eq!(v2.columns.iter().map(|c| c.id).collect::<Vec<_>>(), [3, 1]);
        assert!(matches!(
            v1.evolve(5, &[spec("id", LakeType::Utf8)], &key, 3, any),
            Evolution::Recopy(_)
        ));
        assert!(matches!(
            v1.evolve(5, &[spec("id", LakeType::Int32)], &[], 3, any),
            Evolution::Recopy(_)
        ));
        let Evolution::Next(v2) = v1.recopied(
            9,
            &[spec("id", LakeType::Utf8), spec("a", LakeType::Utf8)],
            &[],
            3,
        ) else {
            panic!("another type and key make a new version")
        };
        assert_eq!(v2.columns.iter().map(|c| c.id).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn a_column_is_followed_by_its_number_or_by_a_known_rename_and_else_by_its_name() {
        let numbered = |name: &str, id| ColumnSpec {
            source_id: Some(id),
            ..spec(name, LakeType::Int32)
        };
        let any = |_: &str, _: &str| true;
        let key = ["id".to_string()];
        let v1 = TableSchema::first(
            TableName::new("s", "t"),
            1,
            vec![numbered("id", 1), numbered("a", 2)],
            key.to_vec(),
        );
        // `a` was dropped and added again, `id` got another name and is still the key.
        let Evolution::Next(v2) = v1.evolve(
            5,
            &[numbered("nr", 1), numbered("a", 3)],
            &["nr".into()],
            3,
            any,
        ) else {
            panic!("a renamed key is the same key")
        };
        assert_eq!(v2.columns.iter().map(|c| c.id).collect::<Vec<_>>(), [1, 3]);
        let renamed = ColumnSpec {
            renamed_from: Some("a".into()),
            ..spec("b", LakeType::Int32)
        };
        let Evolution::Next(v2) =
            v1.evolve(5, &[spec("id", LakeType::Int32), renamed], &key, 3, any)
        else {
            panic!("a rename makes a new version")
        };
        assert_eq!(v2.columns.iter().map(|c| c.id).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn older_rows_get_their_constant_or_a_new_copy() {
        let v1 = TableSchema::first(
            TableName::new("s", "t"),
            1,
            vec![spec("id", LakeType::Int32)],
            vec!["id".into()],
        );
        let evolve = |older_rows, retains: bool, source_type: &str| {
            let mut id = spec("id", LakeType::Int32);
            id.source_type = source_type.into();
            let added = ColumnSpec {
                older_rows,
                ..spec("a", LakeType::Int32)
            };
            v1.evolve(5, &[id, added], &["id".into()], 2, |_, _| retains)
        };
        let five = serde_json::Value::from(5);
        let Evolution::Next(v2) = evolve(OlderRows::Constant(five.clone()), false, "int32") else {
            panic!("a constant needs no copy")
        };
        assert_eq!(v2.columns[1].default, Some(five));
        assert!(matches!(
            evolve(OlderRows::Unknown, false, "int32"),
            Evolution::Recopy(_)
        ));
        assert!(matches!(
            evolve(OlderRows::Null, false, "int4"),
            Evolution::Recopy(_)
        ));
        assert!(matches!(
            evolve(OlderRows::Null, true, "int4"),
            Evolution::Next(_)
        ));
    }
}
