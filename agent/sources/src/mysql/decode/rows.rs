//! Table maps, and row images into column builders.
//!
//! A [`TablePlan`] joins a table map of the log with the schema version that the stream
//! carries: for each column of the image, how many bytes it has, what they mean, and which
//! builder takes them. Rows are then decoded in two passes over bytes that are in the
//! cache: the first finds the cells (needed anyway to compare keys), the second appends.

use super::charset::Charset;
use super::decimal::decimal_len;
use super::values::{Coerced, Value, push_logged};
use super::{DecodeError, Decoded, Input};
use crate::mysql::flavor::Flavor;
use crate::mysql::schema::{bit_type, column_type, decimal_type};
use caudal_model::{LakeType, RowWriter, TableSchema};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A TABLE_MAP event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableMap {
    /// What the rows events that follow call the table.
    pub id: u64,
    /// The database.
    pub database: String,
    /// The table.
    pub table: String,
    /// The columns, in the order of the images.
    pub columns: Vec<MapColumn>,
    /// Positions of the primary key's columns, if the log says.
    pub primary_key: Option<Vec<u64>>,
    /// Whether the column names are there (`binlog_row_metadata=FULL`).
    pub named: bool,
}

/// A column of a table map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapColumn {
    /// The type of the image; for `STRING` the real one.
    pub real_type: u8,
    /// The type's parameters.
    pub meta: u16,
    /// Of a number.
    pub unsigned: bool,
    /// Its name.
    pub name: String,
    /// The collation of text, enum and set.
    pub collation: u64,
    /// Of enum and set, in the column's charset.
    pub labels: Vec<Vec<u8>>,
}

mod types {
    pub const TINY: u8 = 1;
    pub const SHORT: u8 = 2;
    pub const LONG: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const TIMESTAMP: u8 = 7;
    pub const LONGLONG: u8 = 8;
    pub const INT24: u8 = 9;
    pub const DATE: u8 = 10;
    pub const TIME: u8 = 11;
    pub const DATETIME: u8 = 12;
    pub const YEAR: u8 = 13;
    pub const NEWDATE: u8 = 14;
    pub const VARCHAR: u8 = 15;
    pub const BIT: u8 = 16;
    pub const TIMESTAMP2: u8 = 17;
    pub const DATETIME2: u8 = 18;
    pub const TIME2: u8 = 19;
    pub const MARIA_BLOB_COMPRESSED: u8 = 140;
    pub const MARIA_VARCHAR_COMPRESSED: u8 = 141;
    pub const VECTOR: u8 = 242;
    pub const JSON: u8 = 245;
    pub const NEWDECIMAL: u8 = 246;
    pub const ENUM: u8 = 247;
    pub const SET: u8 = 248;
    pub const BLOB: u8 = 252;
    pub const VAR_STRING: u8 = 253;
    pub const STRING: u8 = 254;
    pub const GEOMETRY: u8 = 255;
}
use types::*;

/// The collation `binary`.
const BINARY_COLLATION: u64 = 63;

fn meta_len(column_type: u8) -> usize {
    match column_type {
        FLOAT
        | DOUBLE
        | BLOB
        | GEOMETRY
        | JSON
        | VECTOR
        | TIME2
        | DATETIME2
        | TIMESTAMP2
        | MARIA_BLOB_COMPRESSED => 1,
        VARCHAR
        | BIT
        | NEWDECIMAL
        | STRING
        | VAR_STRING
        | ENUM
        | SET
        | MARIA_VARCHAR_COMPRESSED => 2,
        _ => 0,
    }
}

impl MapColumn {
    fn new(column_type: u8, meta: &[u8]) -> MapColumn {
        let mut c = MapColumn {
            real_type: column_type,
            ..MapColumn::default()
        };
        c.meta = match *meta {
            [a] => a.into(),
            // These two hold a type or a precision first, and a length or scale second.
            [a, b] if matches!(column_type, STRING | NEWDECIMAL) => u16::from_be_bytes([a, b]),
            [a, b] => u16::from_le_bytes([a, b]),
            _ => 0,
        };
        if column_type == STRING {
            let [kind, len] = c.meta.to_be_bytes();
            // Lengths above 255 lend two bits to the type, complemented.
            c.real_type = kind | 0x30;
            c.meta = u16::from(len) | (u16::from((kind & 0x30) ^ 0x30) << 4);
        }
        c
    }

    fn numeric(&self) -> bool {
        matches!(
            self.real_type,
            TINY | SHORT | LONG | LONGLONG | INT24 | FLOAT | DOUBLE | NEWDECIMAL | YEAR
        )
    }

    fn text(&self) -> bool {
        matches!(
            self.real_type,
            STRING | VAR_STRING | VARCHAR | BLOB | MARIA_BLOB_COMPRESSED | MARIA_VARCHAR_COMPRESSED
        )
    }

    fn labelled(&self) -> bool {
        matches!(self.real_type, ENUM | SET)
    }

    /// How an image's bytes are delimited.
    fn span(&self) -> Option<Span> {
        let fraction = usize::from(self.meta.min(6)).div_ceil(2);
        let prefix = if self.meta > 255 { 2 } else { 1 };
        Some(match self.real_type {
            TINY | YEAR => Span::Fixed(1),
            SHORT => Span::Fixed(2),
            INT24 | DATE | NEWDATE | TIME => Span::Fixed(3),
            LONG | FLOAT | TIMESTAMP => Span::Fixed(4),
            LONGLONG | DOUBLE | DATETIME => Span::Fixed(8),
            TIMESTAMP2 => Span::Fixed(4 + fraction),
            DATETIME2 => Span::Fixed(5 + fraction),
            TIME2 => Span::Fixed(3 + fraction),
            NEWDECIMAL => {
                let [precision, scale] = self.meta.to_be_bytes();
                Span::Fixed(decimal_len(precision, scale)?)
            }
            BIT => {
                let [bits, bytes] = self.meta.to_le_bytes();
                Span::Fixed(usize::from(bytes) + usize::from(bits > 0))
            }
            ENUM | SET => Span::Fixed(usize::from(self.meta & 0xff)),
            VARCHAR | VAR_STRING | STRING | MARIA_VARCHAR_COMPRESSED => Span::Prefixed(prefix),
            BLOB | JSON | GEOMETRY | VECTOR | MARIA_BLOB_COMPRESSED => Span::Prefixed(
                u8::try_from(self.meta)
                    .ok()
                    .filter(|n| (1..=4).contains(n))?,
            ),
            _ => return None,
        })
    }

    /// What the log says the values are; `source_type` tells apart what the log does not.
    fn value(
        &self,
        source_type: &str,
        charsets: &HashMap<u64, String>,
    ) -> Result<(Value, LakeType), String> {
        let unsigned = self.unsigned;
        let int = |bytes: u8| {
            let name = match bytes {
                1 => "tinyint",
                2 => "smallint",
                3 => "mediumint",
                4 => "int",
                _ => "bigint",
            };
            let name = format!("{name}{}", if unsigned { " unsigned" } else { "" });
            column_type(&name, None, Flavor::MySql)
        };
        let digits = self.meta.min(6) as u8;
        Ok(match self.real_type {
            TINY => int(1)?,
            SHORT => int(2)?,
            INT24 => int(3)?,
            LONG => int(4)?,
            LONGLONG => int(8)?,
            FLOAT => (Value::Float, LakeType::Float32),
            DOUBLE => (Value::Double, LakeType::Float64),
            YEAR => (Value::Year, LakeType::Int16),
            DATE | NEWDATE => (Value::Date, LakeType::Date32),
            TIMESTAMP => (Value::OldTimestamp, LakeType::TimestampUtc),
            TIMESTAMP2 => (Value::Timestamp(digits), LakeType::TimestampUtc),
            DATETIME => (Value::OldDateTime, LakeType::Timestamp),
            DATETIME2 => (Value::DateTime(digits), LakeType::Timestamp),
            TIME => (Value::OldTime, LakeType::Utf8),
            TIME2 => (Value::Time(digits), LakeType::Utf8),
            NEWDECIMAL => {
                let [precision, scale] = self.meta.to_be_bytes();
                decimal_type(precision, scale)
            }
            BIT => {
                let [bits, bytes] = self.meta.to_le_bytes();
                bit_type(u16::from(bytes) * 8 + u16::from(bits))
            }
            ENUM => (Value::Enum(self.label_text(charsets)?), LakeType::Utf8),
            SET => (Value::Set(self.label_text(charsets)?), LakeType::Utf8),
            JSON => (Value::Json, LakeType::Utf8),
            VARCHAR | VAR_STRING | STRING | BLOB => self.string(source_type, charsets)?,
            other => return Err(format!("log type {other} is not supported yet")),
        })
    }

    fn string(
        &self,
        source_type: &str,
        charsets: &HashMap<u64, String>,
    ) -> Result<(Value, LakeType), String> {
        if self.real_type == STRING {
            let own = match source_type {
                "uuid" => Some((Value::Uuid, 16)),
                "inet6" => Some((Value::Inet6, 16)),
                "inet4" => Some((Value::Inet4, 4)),
                _ => None,
            };
            if let Some((value, len)) = own
                && self.meta == len
            {
                return Ok((value, LakeType::Utf8));
            }
        }
        if self.collation == BINARY_COLLATION {
            let fixed = self.real_type == STRING;
            let value = if fixed {
                Value::FixedBinary(self.meta)
            } else {
                Value::Binary
            };
            return Ok((value, LakeType::Binary));
        }
        Ok((Value::Text(self.charset(charsets)?), LakeType::Utf8))
    }

    fn charset(&self, charsets: &HashMap<u64, String>) -> Result<Charset, String> {
        let name = charsets
            .get(&self.collation)
            .ok_or_else(|| format!("collation {} is not known", self.collation))?;
        Charset::by_name(name).ok_or_else(|| format!("charset {name} is not supported yet"))
    }

    fn label_text(&self, charsets: &HashMap<u64, String>) -> Result<Arc<[String]>, String> {
        let binary = self.collation == BINARY_COLLATION;
        let value = Value::Text(if binary {
            Charset::Utf8
        } else {
            self.charset(charsets)?
        });
        let text = |label: &Vec<u8>| {
            let mut c = caudal_model::ColumnBuilder::new(&LakeType::Utf8);
            push_logged(&value, label, &mut c, &mut Coerced::default())
                .map_err(|_| "a label is not valid text".to_owned())?;
            use arrow::array::AsArray;
            Ok(c.finish().as_string::<i32>().value(0).to_owned())
        };
        self.labels.iter().map(text).collect()
    }
}

/// Parses a TABLE_MAP event.
pub fn table_map(body: &[u8]) -> Decoded<TableMap> {
    let mut input = Input(body);
    let id = input.uint(6)?;
    input.u16()?;
    let mut name = || -> Decoded<String> {
        let len = usize::from(input.u8()?);
        let name = String::from_utf8_lossy(input.take(len)?).into_owned();
        input.u8()?;
        Ok(name)
    };
    let (database, table) = (name()?, name()?);
    let count = input.lenenc()? as usize;
    let column_types = input.take(count)?;
    let mut meta = Input(input.lenenc_bytes()?);
    let mut columns = Vec::with_capacity(count);
    for t in column_types {
        columns.push(MapColumn::new(*t, meta.take(meta_len(*t))?));
    }
    input.take(count.div_ceil(8))?;
    let mut map = TableMap {
        id,
        database,
        table,
        columns,
        primary_key: None,
        named: false,
    };
    while !input.is_empty() {
        let field = input.u8()?;
        metadata(&mut map, field, input.lenenc_bytes()?)?;
    }
    Ok(map)
}

fn metadata(map: &mut TableMap, field: u8, value: &[u8]) -> Decoded<()> {
    let mut input = Input(value);
    match field {
        1 => {
            let numeric = map.columns.iter_mut().filter(|c| c.numeric());
            for (i, c) in numeric.enumerate() {
                let byte = value.get(i / 8).copied().unwrap_or(0);
                c.unsigned = byte >> (7 - i % 8) & 1 == 1;
            }
        }
        2 => default_collation(map.columns.iter_mut().filter(|c| c.text()), input)?,
        3 => each_collation(map.columns.iter_mut().filter(|c| c.text()), input)?,
        4 => {
            for c in &mut map.columns {
                c.name = String::from_utf8_lossy(input.lenenc_bytes()?).into_owned();
            }
            map.named = true;
        }
        5 => labels(map.columns.iter_mut().filter(|c| c.real_type == SET), input)?,
        6 => labels(
            map.columns.iter_mut().filter(|c| c.real_type == ENUM),
            input,
        )?,
        8 | 9 => {
            let mut key = Vec::new();
            while !input.is_empty() {
                key.push(input.lenenc()?);
                if field == 9 {
                    input.lenenc()?;
                }
            }
            map.primary_key = Some(key);
        }
        10 => default_collation(map.columns.iter_mut().filter(|c| c.labelled()), input)?,
        11 => each_collation(map.columns.iter_mut().filter(|c| c.labelled()), input)?,
        _ => {}
    }
    Ok(())
}

fn default_collation<'a>(
    columns: impl Iterator<Item = &'a mut MapColumn>,
    mut input: Input<'_>,
) -> Decoded<()> {
    let default = input.lenenc()?;
    let mut own = HashMap::new();
    while !input.is_empty() {
        let column = input.lenenc()?;
        own.insert(column, input.lenenc()?);
    }
    for (i, c) in columns.enumerate() {
        c.collation = own.get(&(i as u64)).copied().unwrap_or(default);
    }
    Ok(())
}

fn each_collation<'a>(
    columns: impl Iterator<Item = &'a mut MapColumn>,
    mut input: Input<'_>,
) -> Decoded<()> {
    for c in columns {
        c.collation = input.lenenc()?;
    }
    Ok(())
}

fn labels<'a>(
    columns: impl Iterator<Item = &'a mut MapColumn>,
    mut input: Input<'_>,
) -> Decoded<()> {
    for c in columns {
        // At most 65,535 labels; the count itself comes from outside.
        let count = input.lenenc()?;
        for _ in 0..count {
            c.labels.push(input.lenenc_bytes()?.to_vec());
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    Fixed(usize),
    Prefixed(u8),
}

#[derive(Debug, Clone)]
struct ColumnPlan {
    span: Span,
    /// The builder, and what the bytes mean; `None` for a column that is left out.
    target: Option<(usize, Value)>,
}

/// How the rows of one table map become rows of one schema version.
#[derive(Debug, Clone)]
pub struct TablePlan {
    columns: Vec<ColumnPlan>,
    /// Positions in the image.
    key: Vec<usize>,
}

/// Why a table map does not fit a schema version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// The table was changed: another version may fit.
    Changed(String),
    /// No version can: a setting, or a type that is not supported.
    Unreadable(String),
}

impl TablePlan {
    /// Joins a table map with a schema version.
    ///
    /// `excluded` are columns that never leave the source; `own_key` says that the key is
    /// the user's choice, so that the table's primary key does not matter.
    pub fn new(
        map: &TableMap,
        schema: &TableSchema,
        excluded: &[String],
        own_key: bool,
        charsets: &HashMap<u64, String>,
    ) -> Result<TablePlan, Misfit> {
        if !map.named {
            return Err(Misfit::Unreadable(
                "the log does not name its columns: binlog_row_metadata was not FULL".to_owned(),
            ));
        }
        // A row gives each of its table's columns one cell.
        let mut names = HashSet::with_capacity(map.columns.len());
        if !map.columns.iter().all(|c| names.insert(c.name.as_str())) {
            return Err(Misfit::Unreadable(
                "the log names a column twice".to_owned(),
            ));
        }
        let mut columns = Vec::with_capacity(map.columns.len());
        let mut found = 0;
        for c in &map.columns {
            let span = c.span().ok_or_else(|| {
                Misfit::Unreadable(format!("log type {} is not supported yet", c.real_type))
            })?;
            let at = schema.columns.iter().position(|s| s.name == c.name);
            let Some((i, own)) = at.and_then(|i| Some((i, schema.columns.get(i)?))) else {
                if excluded.contains(&c.name) {
                    columns.push(ColumnPlan { span, target: None });
                    continue;
                }
                return Err(Misfit::Changed(format!("column {} is new", c.name)));
            };
            let (value, lake_type) = c
                .value(&own.source_type, charsets)
                .map_err(|e| Misfit::Unreadable(format!("column {}: {e}", c.name)))?;
            if lake_type != own.lake_type {
                return Err(Misfit::Changed(format!(
                    "column {} has another type",
                    c.name
                )));
            }
            found += 1;
            columns.push(ColumnPlan {
                span,
                target: Some((i, value)),
            });
        }
        if found != schema.columns.len() {
            return Err(Misfit::Changed("a column is gone".to_owned()));
        }
        let key: Vec<usize> = schema
            .key
            .iter()
            .filter_map(|k| map.columns.iter().position(|c| &c.name == k))
            .collect();
        let logged: Vec<usize> = map
            .primary_key
            .iter()
            .flatten()
            .map(|k| *k as usize)
            .collect();
        if !own_key && logged != key {
            return Err(Misfit::Changed("its primary key is another".to_owned()));
        }
        Ok(TablePlan { columns, key })
    }
}

/// A rows event's own header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsHeader {
    /// The table map's.
    pub table_id: u64,
    /// Columns in the image.
    pub columns: usize,
    /// Whether every column is in the images (`binlog_row_image=FULL`).
    pub full: bool,
    /// Where the rows begin in the body.
    pub start: usize,
}

/// Parses the part of a rows event before its rows. `v2`: there is a block of extra
/// data; `update`: two images a row.
pub fn rows_header(body: &[u8], v2: bool, update: bool) -> Decoded<RowsHeader> {
    let mut input = Input(body);
    let table_id = input.uint(6)?;
    input.u16()?;
    if v2 {
        // The length counts itself.
        let extra = usize::from(input.u16()?).checked_sub(2);
        input.take(extra.ok_or(DecodeError::Malformed("a rows event"))?)?;
    }
    let columns = usize::try_from(input.lenenc()?).unwrap_or(usize::MAX);
    let mut full = true;
    for _ in 0..=usize::from(update) {
        let present = input.take(columns.div_ceil(8))?;
        let ones: u32 = present.iter().map(|b| b.count_ones()).sum();
        full &= ones as usize >= columns;
    }
    Ok(RowsHeader {
        table_id,
        columns,
        full,
        start: body.len() - input.len(),
    })
}

/// The cells of one image: where each begins and ends in the event; `None` for NULL.
#[derive(Debug, Default)]
pub struct Image {
    cells: Vec<Option<(u32, u32)>>,
}

/// Finds the cells of the image that begins at `at`, and returns where it ends.
pub fn image(plan: &TablePlan, event: &[u8], at: usize, image: &mut Image) -> Decoded<usize> {
    let mut input = Input(event.get(at..).unwrap_or_default());
    let nulls = input.take(plan.columns.len().div_ceil(8))?;
    image.cells.clear();
    for (i, c) in plan.columns.iter().enumerate() {
        if nulls.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1) {
            image.cells.push(None);
            continue;
        }
        let len = match c.span {
            Span::Fixed(n) => n,
            Span::Prefixed(n) => input.uint(n.into())? as usize,
        };
        let start = event.len() - input.len();
        input.take(len)?;
        // An event is below 4 GiB: its header's size has 32 bits.
        image.cells.push(Some((start as u32, (start + len) as u32)));
    }
    Ok(event.len() - input.len())
}

fn cell(event: &[u8], span: Option<(u32, u32)>) -> Option<&[u8]> {
    span.and_then(|(a, b)| event.get(a as usize..b as usize))
}

/// Whether two images of one row have the same key.
///
/// The bytes are compared: each lake value has one form in a table's images, so equal
/// bytes are equal values and the reverse.
pub fn same_key(plan: &TablePlan, event: &[u8], a: &Image, b: &Image) -> bool {
    plan.key.iter().all(|k| {
        let of = |i: &Image| cell(event, i.cells.get(*k).copied().flatten());
        of(a) == of(b)
    })
}

/// Appends the image's cells to a row.
pub fn append(
    plan: &TablePlan,
    event: &[u8],
    image: &Image,
    row: &mut RowWriter<'_>,
    coerced: &mut Coerced,
) -> Decoded<()> {
    for (c, span) in plan.columns.iter().zip(&image.cells) {
        let Some((i, value)) = &c.target else {
            continue;
        };
        match cell(event, *span) {
            Some(bytes) => {
                let counted = push_logged(value, bytes, row.column(*i), coerced)?;
                row.count(counted);
            }
            None => row.column(*i).push_null(),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_char_columns_lend_bits_to_their_type() {
        let c = MapColumn::new(STRING, &[0xee, 0xfc]);
        assert_eq!((c.real_type, c.meta), (STRING, 0x1fc));
        let c = MapColumn::new(STRING, &[247, 1]);
        assert_eq!(
            (c.real_type, c.meta, c.span()),
            (ENUM, 1, Some(Span::Fixed(1)))
        );
        let c = MapColumn::new(BIT, &[1, 1]);
        assert_eq!(c.span(), Some(Span::Fixed(2)));
        assert_eq!(MapColumn::new(BLOB, &[9]).span(), None);
    }

    #[test]
    fn a_rows_header_says_whether_the_image_is_whole() {
        let body = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0b111, 0b101];
        let h = rows_header(&body, true, true).unwrap();
        assert_eq!((h.table_id, h.columns, h.full, h.start), (1, 3, false, 13));
        assert!(rows_header(&body, true, false).unwrap().full);
        assert!(rows_header(&body[..9], true, false).is_err());
        assert!(rows_header(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3], true, false).is_err());
    }
}
