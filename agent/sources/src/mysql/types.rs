//! Declared types: what a column's text says of its values, of its bytes in the log, and of
//! what an ALTER keeps.
//!
//! The text is `COLUMN_TYPE` of `information_schema`, followed by ` character set <name>` for
//! text that is not utf8mb4, and by ` hashed` for a column whose hash alone leaves the source.
//! It is a column's `source_type` in the lake, so that a table map of the log can be compared
//! with a schema version without asking the server.

use super::decode::charset::Charset;
use super::decode::values::Value;
use super::flavor::Flavor;
use caudal_model::LakeType;

/// The parts of a type's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// `varchar`, lower case.
    pub base: String,
    /// What stands between the parentheses, without quotes.
    pub arguments: Vec<String>,
    /// Of an integer, a decimal or a float.
    pub unsigned: bool,
    /// Shown with leading zeros.
    pub zerofill: bool,
    /// MariaDB's compressed columns.
    pub compressed: bool,
    /// Of text, enum and set.
    pub charset: String,
    /// Its hash alone leaves the source.
    pub hashed: bool,
}

/// A column's whole type text: the server's, and its charset where it is not utf8mb4.
pub fn source_type(column_type: &str, charset: Option<&str>) -> String {
    match charset.map(canonical) {
        Some(cs) if cs != "utf8mb4" && !json_text(column_type) => {
            format!("{column_type} character set {cs}")
        }
        _ => column_type.to_owned(),
    }
}

fn json_text(column_type: &str) -> bool {
    column_type.eq_ignore_ascii_case("json")
}

/// One name for a charset that the servers call differently.
pub fn canonical(charset: &str) -> &str {
    match charset {
        "utf8" => "utf8mb3",
        other => other,
    }
}

impl Declared {
    /// Reads a type's text.
    pub fn parse(text: &str) -> Declared {
        let (text, hashed) = match text.strip_suffix(" hashed") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        // A label may hold these words, but then a quote follows them.
        let (text, charset) = match text.rsplit_once(" character set ") {
            Some((rest, cs)) if !cs.contains('\'') => (rest, cs),
            _ => (text, "utf8mb4"),
        };
        let (base, arguments, rest) = split_type(text);
        Declared {
            unsigned: rest.contains("unsigned") || rest.contains("zerofill"),
            zerofill: rest.contains("zerofill"),
            compressed: rest.contains("compressed"),
            base,
            arguments,
            charset: charset.to_owned(),
            hashed,
        }
    }

    /// An argument as a number.
    pub fn number(&self, i: usize) -> Option<u32> {
        self.arguments.get(i)?.trim().parse().ok()
    }

    /// Bytes of an integer type.
    pub fn int_bytes(&self) -> Option<u8> {
        Some(match self.base.as_str() {
            "tinyint" => 1,
            "smallint" => 2,
            "mediumint" => 3,
            "int" | "integer" => 4,
            "bigint" => 8,
            _ => return None,
        })
    }

    /// Bytes of the length of a text or blob, which tell the four sizes apart in the log.
    pub fn blob_prefix(&self) -> Option<u8> {
        Some(match self.base.as_str() {
            "tinytext" | "tinyblob" => 1,
            "text" | "blob" => 2,
            "mediumtext" | "mediumblob" => 3,
            "longtext" | "longblob" => 4,
            _ => return None,
        })
    }

    /// Whether the values are text in a charset.
    pub fn text(&self) -> bool {
        matches!(self.base.as_str(), "char" | "varchar") || self.base.ends_with("text")
    }

    /// Whether the values are geometries.
    pub fn geometry(&self) -> bool {
        matches!(
            self.base.as_str(),
            "geometry"
                | "point"
                | "linestring"
                | "polygon"
                | "multipoint"
                | "multilinestring"
                | "multipolygon"
                | "geometrycollection"
                | "geomcollection"
        )
    }
}

/// The most bytes that a character of a charset takes: what the log multiplies lengths by.
pub fn max_character_bytes(charset: &str) -> u32 {
    match charset {
        "utf8mb4" | "utf16" | "utf16le" | "utf32" | "gb18030" => 4,
        "utf8mb3" | "ujis" | "eucjpms" => 3,
        "ucs2" | "gbk" | "gb2312" | "big5" | "sjis" | "cp932" | "euckr" => 2,
        _ => 1,
    }
}

/// Whether every value of the type `old` is surely the same value after an ALTER to `new`,
/// and, where `text` says that the lake holds the source's text, the same text.
pub fn retains(old: &str, new: &str, text: bool) -> bool {
    let (a, b) = (Declared::parse(old), Declared::parse(new));
    if a == b {
        return true;
    }
    if a.hashed != b.hashed || (a.zerofill || b.zerofill) && a.arguments != b.arguments {
        return false;
    }
    if let (Some(from), Some(to)) = (a.int_bytes(), b.int_bytes()) {
        return a.zerofill == b.zerofill
            && match (a.unsigned, b.unsigned) {
                (true, false) => to > from,
                (false, true) => false,
                _ => to >= from,
            };
    }
    if a.text() && b.text() {
        return retains_text(&a, &b);
    }
    let wider = || b.number(0).unwrap_or(1) >= a.number(0).unwrap_or(1);
    match (a.base.as_str(), b.base.as_str()) {
        ("decimal", "decimal") => {
            a.number(1) == b.number(1)
                && a.zerofill == b.zerofill
                && (a.unsigned || !b.unsigned)
                && wider()
        }
        ("float", "float" | "double") | ("double", "double") => {
            a.zerofill == b.zerofill
                && (a.unsigned || !b.unsigned)
                && b.arguments.is_empty()
                && (!text || a.base == b.base && a.arguments.is_empty())
                && (a.base == b.base || a.arguments.is_empty())
        }
        ("datetime", "datetime") | ("timestamp", "timestamp") => {
            !text && b.number(0).unwrap_or(0) >= a.number(0).unwrap_or(0)
        }
        ("bit", "bit") => {
            let bits = |d: &Declared| d.number(0).unwrap_or(1);
            bits(&a) > 1 && wider() && bits(&a).div_ceil(8) == bits(&b).div_ceil(8)
        }
        ("binary" | "varbinary", "varbinary") => wider(),
        ("varbinary", _) if b.base.ends_with("blob") => {
            u64::from(a.number(0).unwrap_or(1)) < blob_capacity(&b)
        }
        (x, y) if x.ends_with("blob") && y.ends_with("blob") => a.blob_prefix() <= b.blob_prefix(),
        ("enum", "enum") => {
            a.charset == b.charset && a.arguments.iter().all(|l| b.arguments.contains(l))
        }
        // A set prints its labels in their order.
        ("set", "set") => {
            let mut labels = b.arguments.iter();
            a.charset == b.charset && a.arguments.iter().all(|l| labels.any(|m| m == l))
        }
        (_, "geometry") => a.geometry(),
        ("year", "year") => true,
        _ => false,
    }
}

fn blob_capacity(d: &Declared) -> u64 {
    1u64 << (8 * u32::from(d.blob_prefix().unwrap_or(0)))
}

fn retains_text(a: &Declared, b: &Declared) -> bool {
    let unicode = ["utf8mb4", "utf16", "utf16le", "utf32"];
    let same = a.charset == b.charset;
    // What the servers cannot convert exactly shows as `?` afterwards.
    let superset = a.charset != "binary" && unicode.contains(&b.charset.as_str());
    if !same && !superset {
        return false;
    }
    let bytes_of = |d: &Declared| {
        let characters = u64::from(d.number(0).unwrap_or(1));
        match d.blob_prefix() {
            Some(_) => blob_capacity(d) - 1,
            None => characters * u64::from(max_character_bytes(&d.charset)),
        }
    };
    match (a.blob_prefix(), b.blob_prefix()) {
        (None, None) => {
            // char strips blanks at the end.
            b.number(0).unwrap_or(1) >= a.number(0).unwrap_or(1)
                && (b.base == "varchar" || a.base == "char")
        }
        (None, Some(_)) => {
            let characters = u64::from(a.number(0).unwrap_or(1));
            characters * u64::from(max_character_bytes(&b.charset)) < blob_capacity(b)
        }
        // One byte may become four.
        (Some(_), Some(_)) if !same => bytes_of(a) * 4 < blob_capacity(b),
        (Some(from), Some(to)) => from <= to,
        (Some(_), None) => false,
    }
}

/// What a column's values are, and its lake type; otherwise why it cannot be carried.
///
/// `wanted` is the lake type that the user asks for (`as`), or that a schema version has.
pub fn column_type(
    d: &Declared,
    flavor: Flavor,
    wanted: Option<&LakeType>,
) -> Result<(Value, LakeType), String> {
    let (value, natural) = natural_type(d, flavor)?;
    let Some(wanted) = wanted.filter(|w| **w != natural) else {
        return Ok((value, natural));
    };
    if *wanted == LakeType::Utf8 {
        return Ok((zerofilled(d, value), LakeType::Utf8));
    }
    let allowed = match (&value, wanted) {
        (
            Value::Int { bytes, unsigned },
            LakeType::Decimal {
                precision,
                scale: 0,
            },
        ) => *precision >= int_digits(*bytes, *unsigned),
        (Value::Int { bytes: 1, .. }, LakeType::Boolean) => true,
        (Value::Bit(2..=63), LakeType::Int64) => true,
        (Value::Time(_) | Value::OldTime, LakeType::Time64) => true,
        _ => natural.widens_to(wanted),
    };
    if allowed {
        return Ok((value, wanted.clone()));
    }
    let more = match &value {
        Value::Int { bytes: 1, .. } => ", boolean, a wider integer or decimal",
        Value::Int { .. } => ", a wider integer or decimal",
        Value::Decimal { .. } => ", a decimal of the same scale with more digits",
        Value::Float => ", float64",
        Value::Year => ", int32, int64",
        Value::Bit(2..=63) => ", int64",
        Value::Time(_) => ", time",
        _ => "",
    };
    Err(format!(
        "{} cannot be carried as {wanted}; allowed are {natural}, string{more}",
        d.base
    ))
}

fn int_digits(bytes: u8, unsigned: bool) -> u8 {
    match (bytes, unsigned) {
        (1, _) => 3,
        (2, _) => 5,
        (3, false) => 7,
        (3, true) => 8,
        (4, _) => 10,
        (_, false) => 19,
        (_, true) => 20,
    }
}

/// A number that a SELECT shows with leading zeros.
fn zerofilled(d: &Declared, value: Value) -> Value {
    if !d.zerofill {
        return value;
    }
    let width = match &value {
        Value::Decimal { precision, scale } => precision + u8::from(*scale > 0),
        _ => d.number(0).unwrap_or(0).min(255) as u8,
    };
    Value::Zerofilled(Box::new(value), width)
}

fn natural_type(d: &Declared, flavor: Flavor) -> Result<(Value, LakeType), String> {
    let digits = || d.number(0).unwrap_or(0).min(6) as u8;
    let size = || d.number(0).unwrap_or(1).min(u16::MAX.into()) as u16;
    let maria = flavor == Flavor::MariaDb;
    if let Some(bytes) = d.int_bytes() {
        let unsigned = d.unsigned;
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
        return Ok((Value::Int { bytes, unsigned }, lake));
    }
    if d.text() {
        return Ok((Value::Text(Charset::by_name(&d.charset)), LakeType::Utf8));
    }
    let labels = || d.arguments.clone().into();
    Ok(match d.base.as_str() {
        "decimal" | "numeric" => {
            let precision = d.number(0).unwrap_or(10).min(255) as u8;
            decimal_type(precision, d.number(1).unwrap_or(0).min(255) as u8)
        }
        "float" => (Value::Float, LakeType::Float32),
        "double" | "real" => (Value::Double, LakeType::Float64),
        "bit" => bit_type(size()),
        "binary" => (Value::FixedBinary(size()), LakeType::Binary),
        "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
            (Value::Binary, LakeType::Binary)
        }
        "date" => (Value::Date, LakeType::Date32),
        "datetime" => (Value::DateTime(digits()), LakeType::Timestamp),
        "timestamp" => (Value::Timestamp(digits()), LakeType::TimestampUtc),
        "time" => (Value::Time(digits()), LakeType::Utf8),
        "year" => (Value::Year, LakeType::Int16),
        "enum" => (Value::Enum(labels()), LakeType::Utf8),
        "set" => (Value::Set(labels()), LakeType::Utf8),
        "json" if !maria => (Value::Json, LakeType::Utf8),
        "uuid" if maria => (Value::Uuid, LakeType::Utf8),
        "inet4" if maria => (Value::Inet4, LakeType::Utf8),
        "inet6" if maria => (Value::Inet6, LakeType::Utf8),
        "vector" => (Value::Vector, LakeType::List(Box::new(LakeType::Float32))),
        _ if d.geometry() => (Value::Geometry, LakeType::Binary),
        other => return Err(format!("type {other} is not supported")),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lake(text: &str) -> LakeType {
        column_type(&Declared::parse(text), Flavor::MySql, None)
            .expect(text)
            .1
    }

    #[test]
    fn types() {
        let decimal = |precision, scale| LakeType::Decimal { precision, scale };
        assert_eq!(lake("tinyint(1)"), LakeType::Int8);
        assert_eq!(lake("tinyint(3) unsigned zerofill"), LakeType::Int16);
        assert_eq!(lake("mediumint unsigned"), LakeType::Int32);
        assert_eq!(lake("int unsigned"), LakeType::Int64);
        assert_eq!(lake("bigint unsigned"), decimal(20, 0));
        assert_eq!(lake("decimal(12,2)"), decimal(12, 2));
        assert_eq!(lake("decimal(39,0)"), LakeType::Utf8);
        assert_eq!(lake("bit(1)"), LakeType::Boolean);
        assert_eq!(lake("bit(9)"), LakeType::Binary);
        assert_eq!(lake("point"), LakeType::Binary);
        let d = Declared::parse("enum('a','b,''c)',' character set x') character set latin2");
        assert_eq!(d.charset, "latin2");
        assert_eq!(d.arguments, ["a", "b,'c)", " character set x"]);
        let of = |text, flavor| column_type(&Declared::parse(text), flavor, None);
        assert!(of("uuid", Flavor::MySql).is_err());
        assert!(of("uuid", Flavor::MariaDb).is_ok());
        assert!(Declared::parse("text /*M!100301 COMPRESSED*/").compressed);
    }

    #[test]
    fn other_lake_types_are_taken_where_they_lose_nothing() {
        let wants = |text: &str, wanted: &str| {
            let wanted = wanted.parse().unwrap();
            column_type(&Declared::parse(text), Flavor::MySql, Some(&wanted)).map(|t| t.1)
        };
        for (text, wanted) in [
            ("tinyint(1)", "boolean"),
            ("int", "int64"),
            ("bigint unsigned", "decimal(38,0)"),
            ("blob", "string"),
            ("float", "float64"),
            ("time(3)", "time"),
            ("point", "string"),
        ] {
            assert_eq!(wants(text, wanted).unwrap().to_string(), wanted, "{text}");
        }
        for (text, wanted) in [
            ("int", "int8"),
            ("bigint", "decimal(10,0)"),
            ("date", "timestamp"),
        ] {
            assert!(
                wants(text, wanted).unwrap_err().contains("string"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_an_alter_keeps() {
        for (old, new) in [
            ("int(11)", "bigint(20)"),
            ("int", "int(5)"),
            ("smallint unsigned", "int"),
            ("varchar(10)", "varchar(20)"),
            ("char(3)", "varchar(3)"),
            ("varchar(10) character set latin1", "varchar(10)"),
            ("varchar(10) character set utf8mb3", "varchar(10)"),
            ("varchar(10)", "text"),
            ("text character set latin1", "mediumtext"),
            ("decimal(5,2)", "decimal(9,2)"),
            ("enum('a','b')", "enum('c','b','a')"),
            ("set('a','b')", "set('a','x','b')"),
            ("datetime(3)", "datetime(6)"),
            ("float", "double"),
            ("point", "geometry"),
            ("varbinary(3)", "blob"),
            ("text", "text /*M!100301 COMPRESSED*/"),
        ] {
            assert!(retains(old, new, false), "{old} to {new}");
        }
        for (old, new) in [
            ("bigint", "int"),
            ("int", "int unsigned"),
            ("int unsigned", "int"),
            ("varchar(20)", "varchar(10)"),
            ("varchar(3)", "char(3)"),
            ("varchar(10)", "varchar(10) character set latin1"),
            ("varchar(10)", "varchar(10) character set utf8mb3"),
            ("text character set latin1", "text"),
            ("varchar(60000)", "tinytext"),
            ("decimal(5,2)", "decimal(9,3)"),
            ("enum('a','b')", "enum('a')"),
            ("set('a','b')", "set('b','a')"),
            ("datetime(6)", "datetime(3)"),
            ("time(3)", "time(6)"),
            ("binary(3)", "binary(4)"),
            ("bit(1)", "bit(2)"),
            ("text", "json"),
            ("int", "int hashed"),
            ("float", "float(7,2)"),
            ("int(5) zerofill", "int(6) zerofill"),
        ] {
            assert!(!retains(old, new, false), "{old} to {new}");
        }
        assert!(!retains("datetime(3)", "datetime(6)", true));
        assert!(!retains("float", "double", true));
    }
}
