//! What the rows that were there hold in a column that was added after them.
//!
//! The servers fill such a column without a word in the log: with null, with the constant of
//! its DEFAULT, or with a value that only a new copy shows (ADR 0036).

use super::decode::json::double_text;
use super::decode::temporal::days;
use super::decode::values::Value;
use super::flavor::Flavor;
use super::schema::SourceColumn;
use super::types::{Declared, column_type, source_type};
use caudal_model::LakeType;
use caudal_model::schema::OlderRows;
use serde_json::Value as Json;

/// What older rows hold in a column whose lake type is `lake`.
pub fn older_rows(c: &SourceColumn, lake: &LakeType, flavor: Flavor) -> OlderRows {
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
        older_rows(&c, &lake, flavor)
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
