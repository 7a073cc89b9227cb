//! What the rows that were there hold in a column that was added after them.
//!
//! The servers fill such a column without a word in the log: with null, with the constant of
//! its DEFAULT, or with a value that only a new copy shows (ADR 0036).

use super::decode::decimal::parse_decimal;
use super::decode::json::double_text;
use super::decode::temporal::{Parts, days, instant};
use super::decode::values::{Value, push_int};
use super::decode::{DecodeError, Decoded};
use super::flavor::Flavor;
use super::schema::SourceColumn;
use super::types::{Declared, column_type, source_type};
use caudal_model::schema::{ColumnSpec, OlderRows};
use caudal_model::{ColumnBuilder, LakeType};
use serde_json::Value as Json;

/// What older rows hold in a column that the lake has as `spec` says.
pub fn older_rows(c: &SourceColumn, spec: &ColumnSpec, flavor: Flavor) -> OlderRows {
    let told = of_type(c, &spec.lake_type, flavor);
    let hashed = Declared::parse(&spec.source_type).hashed;
    match told {
        // A schema must not tell what its rows hide.
        OlderRows::Constant(_) if hashed => OlderRows::Unknown,
        told => told,
    }
}

fn of_type(c: &SourceColumn, lake: &LakeType, flavor: Flavor) -> OlderRows {
    let extra = c.extra.to_ascii_uppercase();
    if c.generated() || extra.contains("AUTO_INCREMENT") || extra.contains("DEFAULT_GENERATED") {
        return OlderRows::Unknown;
    }
    let text = match (&c.default, flavor) {
        (Some(text), Flavor::MySql) => Some(text.clone()),
        (Some(text), Flavor::MariaDb) => match literal(text) {
            Some(literal) => literal,
            None => return OlderRows::Unknown,
        },
        (None, _) => None,
    };
    let d = Declared::parse(&source_type(&c.column_type, c.charset.as_deref()));
    let Ok((value, natural)) = column_type(&d, flavor, None) else {
        return OlderRows::Unknown;
    };
    match text {
        None if c.nullable => OlderRows::Null,
        // Another lake type would need the value in its form.
        _ if natural != *lake => OlderRows::Unknown,
        None => implicit(&value),
        Some(text) => constant(&value, &text),
    }
    .unwrap_or_unknown(lake)
}

/// Appends the default of a column to a row whose image in the log does not have it: with
/// `binlog_row_image` MINIMAL or NOBLOB, an insert names the columns that its statement gave.
pub fn push_default(default: &OlderRows, out: &mut ColumnBuilder) -> Decoded<()> {
    let value = match default {
        OlderRows::Null => {
            out.push_null();
            return Ok(());
        }
        OlderRows::Constant(value) => value,
        OlderRows::Unknown => return Err(NO_DEFAULT),
    };
    match (out, value) {
        (ColumnBuilder::Boolean(c), Json::Bool(v)) => c.push(*v),
        (ColumnBuilder::Float32(c), Json::Number(v)) => {
            c.push(v.as_f64().ok_or(NO_DEFAULT)? as f32);
        }
        (ColumnBuilder::Float64(c), Json::Number(v)) => c.push(v.as_f64().ok_or(NO_DEFAULT)?),
        (out, Json::Number(v)) => {
            let v = v.as_i64().ok_or(NO_DEFAULT)?;
            push_int(v as u64, v, false, out)?;
        }
        (ColumnBuilder::Decimal(c, _, scale), Json::String(text)) => {
            c.push(parse_decimal(text.as_bytes(), *scale)?);
        }
        (ColumnBuilder::Utf8(c), Json::String(text)) => c.push(text.as_bytes()),
        (ColumnBuilder::Date32(c), Json::String(text)) => {
            let (y, m, d, ..) = moment_of(text).ok_or(NO_DEFAULT)?;
            c.push(days(y, m, d).ok_or(NO_DEFAULT)?);
        }
        (ColumnBuilder::Timestamp(c), Json::String(text)) => {
            let parts = moment_of(text).ok_or(NO_DEFAULT)?;
            c.push(instant(parts).ok_or(NO_DEFAULT)?);
        }
        _ => return Err(NO_DEFAULT),
    }
    Ok(())
}

const NO_DEFAULT: DecodeError = DecodeError::Value(
    "the log leaves a column of a new row out whose default is not a known constant",
);

/// The parts of `2024-01-02[ 03:04:05[.678]]`.
fn moment_of(text: &str) -> Option<Parts> {
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok();
    let time = |from: usize| match text.len() {
        10 => Some(0),
        _ => part(from, from + 2),
    };
    let digits = text.get(20..).unwrap_or_default();
    let us = format!("{digits:0<6}").get(..6)?.parse().ok()?;
    let date = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    Some((date.0, date.1, date.2, time(11)?, time(14)?, time(17)?, us))
}

trait OrUnknown {
    fn unwrap_or_unknown(self, lake: &LakeType) -> OlderRows;
}

impl OrUnknown for OlderRows {
    /// Decimals and text are written as text, and nothing else may be.
    fn unwrap_or_unknown(self, lake: &LakeType) -> OlderRows {
        let fits = match &self {
            OlderRows::Constant(Json::String(_)) => !matches!(
                lake,
                LakeType::Int8
                    | LakeType::Int16
                    | LakeType::Int32
                    | LakeType::Int64
                    | LakeType::Binary
            ),
            _ => true,
        };
        if fits { self } else { OlderRows::Unknown }
    }
}

/// MariaDB's literal as a value; the outer `None` is an expression.
fn literal(text: &str) -> Option<Option<String>> {
    if text.eq_ignore_ascii_case("NULL") {
        return Some(None);
    }
    if let Some(inner) = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        return unescaped(inner).map(Some);
    }
    let number = text
        .bytes()
        .all(|b| b.is_ascii_digit() || b"+-.e".contains(&b));
    let bits = text.starts_with("b'") && text.ends_with('\'');
    (number || bits).then(|| Some(text.to_owned()))
}

/// The inside of a literal as MariaDB writes it; `None` for an escape that it does not write.
fn unescaped(inner: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next()? {
                '\\' => '\\',
                'n' => '\n',
                'r' => '\r',
                '0' => '\0',
                _ => return None,
            },
            '\'' if chars.next() == Some('\'') => '\'',
            '\'' => return None,
            c => c,
        });
    }
    Some(out)
}

/// The value of a column that is not null and has no default.
fn implicit(value: &Value) -> OlderRows {
    let text = |t: &str| OlderRows::Constant(Json::String(t.to_owned()));
    match value {
        Value::Int {
            bytes: 8,
            unsigned: true,
        } => text("0"),
        Value::Int { .. } | Value::Year => OlderRows::Constant(0.into()),
        Value::Decimal { scale, .. } => match *scale {
            0 => text("0"),
            scale => text(&format!("0.{}", "0".repeat(scale.into()))),
        },
        Value::Float | Value::Double => OlderRows::Constant(0.0.into()),
        Value::Text(_) | Value::Set(_) => text(""),
        Value::Enum(labels) => labels.first().map_or(OlderRows::Unknown, |l| text(l)),
        // The zero date.
        Value::Date | Value::DateTime(_) | Value::Timestamp(_) => OlderRows::Null,
        Value::Bit(1) => OlderRows::Constant(false.into()),
        _ => OlderRows::Unknown,
    }
}

fn constant(value: &Value, text: &str) -> OlderRows {
    let known = |json: Option<Json>| json.map_or(OlderRows::Unknown, OlderRows::Constant);
    let as_text = || OlderRows::Constant(Json::String(text.to_owned()));
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    match value {
        Value::Int {
            bytes: 8,
            unsigned: true,
        } => known(
            text.parse::<u64>()
                .ok()
                .map(|v| Json::String(v.to_string())),
        ),
        Value::Int { .. } | Value::Year => known(text.parse::<i64>().ok().map(Json::from)),
        Value::Decimal { scale, .. } => {
            // As the column itself shows it, or not at all.
            let fraction = text.split_once('.').map_or(0, |(_, f)| f.len());
            let plain = text
                .bytes()
                .all(|b| b.is_ascii_digit() || b"-.".contains(&b));
            if plain && digits > 0 && fraction == usize::from(*scale) {
                as_text()
            } else {
                OlderRows::Unknown
            }
        }
        // What is shown has six digits; fewer are exact.
        Value::Float if digits < 6 => known(text.parse::<f64>().ok().map(Json::from)),
        Value::Double => {
            let exact = text
                .parse::<f64>()
                .ok()
                .filter(|v| double_text(*v).is_some());
            known(exact.map(Json::from))
        }
        Value::Text(_) | Value::Enum(_) | Value::Set(_) | Value::Time(_) => as_text(),
        Value::Date | Value::DateTime(_) => {
            let part = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok();
            match (part(0, 4), part(5, 7), part(8, 10)) {
                (Some(y), Some(m), Some(d)) if days(y, m, d).is_some() => as_text(),
                (Some(_), Some(_), Some(_)) => OlderRows::Null,
                _ => OlderRows::Unknown,
            }
        }
        Value::Bit(1) => match text {
            "b'0'" => OlderRows::Constant(false.into()),
            "b'1'" => OlderRows::Constant(true.into()),
            _ => OlderRows::Unknown,
        },
        _ => OlderRows::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(column_type: &str, nullable: bool, default: Option<&str>, flavor: Flavor) -> OlderRows {
        let c = SourceColumn {
            name: "x".into(),
            column_type: column_type.into(),
            charset: None,
            collation: None,
            nullable,
            default: default.map(Into::into),
            extra: String::new(),
        };
        let d = Declared::parse(column_type);
        let (_, lake) = column_type_of(&d, flavor);
        of_type(&c, &lake, flavor)
    }

    fn column_type_of(d: &Declared, flavor: Flavor) -> (Value, LakeType) {
        column_type(d, flavor, None).unwrap()
    }

    #[test]
    fn constants_of_both_servers() {
        let text = |t: &str| OlderRows::Constant(t.into());
        let my = |t, d| of(t, true, d, Flavor::MySql);
        let maria = |t, d| of(t, true, d, Flavor::MariaDb);
        assert_eq!(my("int", None), OlderRows::Null);
        assert_eq!(my("int", Some("7")), OlderRows::Constant(7.into()));
        assert_eq!(maria("int(11)", Some("NULL")), OlderRows::Null);
        assert_eq!(maria("varchar(9)", Some("'it''s'")), text("it's"));
        assert_eq!(maria("varchar(9)", Some("concat('a')")), OlderRows::Unknown);
        assert_eq!(my("varchar(9)", Some("NULL")), text("NULL"));
        assert_eq!(
            my("bigint unsigned", Some("18446744073709551615")),
            text("18446744073709551615")
        );
        assert_eq!(my("decimal(5,2)", Some("1.50")), text("1.50"));
        assert_eq!(my("decimal(5,2)", Some("1.5")), OlderRows::Unknown);
        assert_eq!(my("float", Some("1.1")), OlderRows::Constant(1.1.into()));
        assert_eq!(my("float", Some("1.23457")), OlderRows::Unknown);
        assert_eq!(my("datetime", Some("0000-00-00 00:00:00")), OlderRows::Null);
        assert_eq!(my("date", Some("2024-02-29")), text("2024-02-29"));
        assert_eq!(my("binary(3)", Some("0x61")), OlderRows::Unknown);
        assert_eq!(my("bit(1)", Some("b'1'")), OlderRows::Constant(true.into()));
    }

    #[test]
    fn columns_without_a_default_that_are_not_null() {
        let of = |t| of(t, false, None, Flavor::MySql);
        assert_eq!(of("int"), OlderRows::Constant(0.into()));
        assert_eq!(of("decimal(4,2)"), OlderRows::Constant("0.00".into()));
        assert_eq!(of("enum('b','a')"), OlderRows::Constant("b".into()));
        assert_eq!(of("date"), OlderRows::Null);
        assert_eq!(of("json"), OlderRows::Unknown);
    }
}
