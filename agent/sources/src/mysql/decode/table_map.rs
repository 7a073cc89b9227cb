//! Table maps: what the log says of a table before its rows.
//!
//! With `binlog_row_metadata=FULL` a map holds names, types, charsets, labels and the primary
//! key. It decides whether the schema version that the stream carries still fits (ADR 0033).

use super::charset::Charset;
use super::decimal::decimal_len;
use super::{Decoded, Input};
use crate::mysql::charsets::Charsets;
use crate::mysql::flavor::Flavor;
use crate::mysql::types::{Declared, canonical, max_character_bytes};
use std::collections::HashMap;

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

pub(super) mod types {
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

    /// Whether the lists of charsets have the column: MariaDB's count geometries as text.
    fn text(&self, flavor: Flavor) -> bool {
        (self.real_type == GEOMETRY && flavor == Flavor::MariaDb)
            || matches!(
                self.real_type,
                STRING
                    | VAR_STRING
                    | VARCHAR
                    | BLOB
                    | VECTOR
                    | MARIA_BLOB_COMPRESSED
                    | MARIA_VARCHAR_COMPRESSED
            )
    }

    fn labelled(&self) -> bool {
        matches!(self.real_type, ENUM | SET)
    }

    /// How an image's bytes are delimited.
    pub(super) fn span(&self) -> Option<Span> {
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
}

/// Parses a TABLE_MAP event.
pub fn table_map(body: &[u8], flavor: Flavor) -> Decoded<TableMap> {
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
        metadata(&mut map, field, input.lenenc_bytes()?, flavor)?;
    }
    Ok(map)
}

fn metadata(map: &mut TableMap, field: u8, value: &[u8], flavor: Flavor) -> Decoded<()> {
    let mut input = Input(value);
    let text = |c: &&mut MapColumn| c.text(flavor);
    match field {
        1 => {
            let numeric = map.columns.iter_mut().filter(|c| c.numeric());
            for (i, c) in numeric.enumerate() {
                let byte = value.get(i / 8).copied().unwrap_or(0);
                c.unsigned = byte >> (7 - i % 8) & 1 == 1;
            }
        }
        2 => default_collation(map.columns.iter_mut().filter(text), input)?,
        3 => each_collation(map.columns.iter_mut().filter(text), input)?,
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

/// How a value's bytes are delimited in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// So many bytes.
    Fixed(usize),
    /// A length in so many bytes, then the bytes.
    Prefixed(u8),
}

/// What the log's collation ids mean.
#[derive(Debug, Clone, Copy)]
pub struct Collations<'a> {
    /// The charset of each collation id.
    pub names: &'a HashMap<u64, String>,
    /// The charsets' tables.
    pub tables: &'a Charsets,
}

impl Collations<'_> {
    /// A collation's charset.
    pub fn charset(&self, collation: u64) -> Option<&str> {
        self.names.get(&collation).map(|n| canonical(n))
    }
}

impl MapColumn {
    /// Whether the image's form is exactly that of the declared type, so that nothing of the
    /// column has changed that the log could show.
    pub fn agrees(&self, d: &Declared, collations: Collations<'_>) -> bool {
        let meta = u32::from(self.meta);
        let number = |i| d.number(i).unwrap_or(0);
        let size = d.number(0).unwrap_or(1);
        let wide = size * max_character_bytes(&d.charset);
        let in_charset = || collations.charset(self.collation) == Some(d.charset.as_str());
        let binary = self.collation == BINARY_COLLATION;
        let plain = if d.compressed {
            MARIA_VARCHAR_COMPRESSED
        } else {
            VARCHAR
        };
        let large = if d.compressed {
            MARIA_BLOB_COMPRESSED
        } else {
            BLOB
        };
        if let Some(bytes) = d.int_bytes() {
            let logged = match bytes {
                1 => TINY,
                2 => SHORT,
                3 => INT24,
                4 => LONG,
                _ => LONGLONG,
            };
            return self.real_type == logged && self.unsigned == d.unsigned;
        }
        if let Some(prefix) = d.blob_prefix() {
            let text = d.base.ends_with("text");
            return self.real_type == large
                && self.meta == u16::from(prefix)
                && if text { in_charset() } else { binary };
        }
        match d.base.as_str() {
            "decimal" | "numeric" => {
                let [precision, scale] = self.meta.to_be_bytes();
                self.real_type == NEWDECIMAL
                    && d.number(0).unwrap_or(10) == u32::from(precision)
                    && number(1) == u32::from(scale)
                    && self.unsigned == d.unsigned
            }
            "float" => self.real_type == FLOAT,
            "double" | "real" => self.real_type == DOUBLE,
            "bit" => {
                let [bits, bytes] = self.meta.to_le_bytes();
                self.real_type == BIT && size == u32::from(bytes) * 8 + u32::from(bits)
            }
            "char" => self.real_type == STRING && meta == wide && in_charset(),
            // One more byte says how a compressed value is packed.
            "varchar" => {
                self.real_type == plain && meta == wide + u32::from(d.compressed) && in_charset()
            }
            "binary" => self.real_type == STRING && meta == size && binary,
            "varbinary" => {
                self.real_type == plain && meta == size + u32::from(d.compressed) && binary
            }
            "date" => matches!(self.real_type, DATE | NEWDATE),
            "datetime" => self.moment(DATETIME2, DATETIME, number(0)),
            "timestamp" => self.moment(TIMESTAMP2, TIMESTAMP, number(0)),
            "time" => self.moment(TIME2, TIME, number(0)),
            "year" => self.real_type == YEAR,
            "enum" => self.real_type == ENUM && self.labels_are(d, collations),
            "set" => self.real_type == SET && self.labels_are(d, collations),
            "json" => self.real_type == JSON,
            "vector" => {
                self.real_type == VECTOR
                    || (self.real_type == VARCHAR && meta == 4 * size && binary)
            }
            "uuid" | "inet6" => self.real_type == STRING && meta == 16,
            "inet4" => self.real_type == STRING && meta == 4,
            _ => d.geometry() && self.real_type == GEOMETRY,
        }
    }

    fn moment(&self, packed: u8, old: u8, digits: u32) -> bool {
        match self.real_type {
            t if t == packed => u32::from(self.meta) == digits,
            // The form of before 5.6 has no digits after the second.
            t => t == old && digits == 0,
        }
    }

    fn labels_are(&self, d: &Declared, collations: Collations<'_>) -> bool {
        let name = collations.charset(self.collation);
        let binary = self.collation == BINARY_COLLATION;
        let charset = match name {
            _ if binary => Charset::Utf8,
            Some(name) => match collations.tables.get(name) {
                Some(charset) => charset,
                // Without its table the number of labels must do.
                None => return name == d.charset && self.labels.len() == d.arguments.len(),
            },
            None => return false,
        };
        let same = |(logged, label): (&Vec<u8>, &String)| {
            let mut text = Vec::new();
            charset.decode(logged, &mut text).is_ok() && text == label.as_bytes()
        };
        (binary || name == Some(d.charset.as_str()))
            && self.labels.len() == d.arguments.len()
            && self.labels.iter().zip(&d.arguments).all(same)
    }
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
}
