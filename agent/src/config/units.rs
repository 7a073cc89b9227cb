//! Durations and sizes as people write them: a number and its unit.
//!
//! A bare number is refused, because nobody can tell seconds from milliseconds by
//! looking at it. Printing gives the largest unit that keeps the value whole, so that
//! what `caudal schema` shows as a default parses to the same value.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;
use std::time::Duration;

/// Schema formats that this module gives to its strings.
pub(super) const DURATION_FORMAT: &str = "caudal-duration";
/// See [`DURATION_FORMAT`].
pub(super) const SIZE_FORMAT: &str = "caudal-size";

const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

fn parse(text: &str, units: &[(&str, u64)], what: &str, example: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let names = || {
        units
            .iter()
            .rev()
            .map(|u| u.0)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Ok(number) = number.parse::<u64>() else {
        return Err(format!(
            "`{text}` is not {what}; write a whole number and a unit, like {example}"
        ));
    };
    let unit = unit.trim();
    if unit.is_empty() {
        return Err(format!(
            "`{text}` has no unit; write it like {example} (units: {})",
            names()
        ));
    }
    let Some((_, factor)) = units.iter().find(|u| u.0 == unit) else {
        return Err(format!(
            "`{unit}` is not a unit of {what}; the units are {}",
            names()
        ));
    };
    number
        .checked_mul(*factor)
        .ok_or_else(|| format!("`{text}` is too large"))
}

fn print(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    if value == 0 {
        return zero.to_owned();
    }
    units
        .iter()
        .find(|(_, factor)| value.is_multiple_of(*factor))
        .map_or_else(
            || value.to_string(),
            |(unit, factor)| format!("{}{unit}", value / factor),
        )
}

/// Parses `10s`, `15m`, `30d`, `500ms`, `0s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(
        text.trim(),
        &DURATION_UNITS,
        "a duration",
        "\"10s\" or \"15m\"",
    )
    .map(Duration::from_millis)
}

/// Parses `128MiB`, `1GB`, `0B`; the result is in bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse(text.trim(), &SIZE_UNITS, "a size", "\"128MiB\" or \"1GB\"")
}

/// A duration as the config file writes it.
pub fn print_duration(value: Duration) -> String {
    print(
        u64::try_from(value.as_millis()).unwrap_or(u64::MAX),
        &DURATION_UNITS,
        "0s",
    )
}

/// A size in bytes as the config file writes it.
pub fn print_size(bytes: u64) -> String {
    print(bytes, &SIZE_UNITS, "0B")
}

macro_rules! text_field {
    ($module:ident, $value:ty, $parse:path, $print:path, $doc:literal) => {
        #[doc = $doc]
        pub(super) mod $module {
            use serde::{Deserialize, Deserializer, Serializer};

            pub fn serialize<S: Serializer>(v: &$value, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&$print(*v))
            }
            pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<$value, D::Error> {
                $parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_field!(
    duration,
    std::time::Duration,
    super::parse_duration,
    super::print_duration,
    "A duration field."
);
text_field!(
    size,
    u64,
    super::parse_size,
    super::print_size,
    "A size field."
);

/// The schema of a duration.
pub(super) struct DurationText;

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": DURATION_FORMAT,
            "pattern": "^[0-9]+(ms|s|m|h|d)$",
            "examples": ["10s", "15m", "30d"],
        })
    }
}

/// The schema of a size.
pub(super) struct SizeText;

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": SIZE_FORMAT,
            "pattern": "^[0-9]+(B|KB|KiB|MB|MiB|GB|GiB|TB|TiB)$",
            "examples": ["128MiB", "1GB"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_and_parsing_are_inverse() {
        for text in ["10s", "15m", "30d", "500ms", "0s", "1500ms", "2h"] {
            assert_eq!(print_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["128MiB", "1GB", "0B", "1500B", "1TiB", "7KB"] {
            assert_eq!(print_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(print_duration(parse_duration("120s").unwrap()), "2m");
    }

    #[test]
    fn mistakes_say_what_is_allowed() {
        let duration = |t| parse_duration(t).unwrap_err();
        assert_eq!(
            duration("10"),
            "`10` has no unit; write it like \"10s\" or \"15m\" (units: ms, s, m, h, d)"
        );
        assert_eq!(
            duration("10sec"),
            "`sec` is not a unit of a duration; the units are ms, s, m, h, d"
        );
        assert_eq!(
            duration("soon"),
            "`soon` is not a duration; write a whole number and a unit, like \"10s\" or \"15m\""
        );
        assert_eq!(duration("-1s"), duration("soon").replace("soon", "-1s"));
        assert_eq!(
            duration("99999999999999999999d"),
            duration("soon").replace("soon", "99999999999999999999d")
        );
        assert_eq!(
            duration("9999999999999999d"),
            "`9999999999999999d` is too large"
        );
        assert_eq!(
            parse_size("128mb").unwrap_err(),
            "`mb` is not a unit of a size; the units are B, KB, KiB, MB, MiB, GB, GiB, TB, TiB"
        );
    }
}
