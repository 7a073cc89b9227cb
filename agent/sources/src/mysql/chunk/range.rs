//! Bounds of chunks: key columns as the server selects, compares and prints them.

use crate::mysql::decode::values::Value;
use crate::mysql::flavor::Flavor;
use crate::mysql::schema::{SourceTable, drifted};
use crate::mysql::types::{Declared, column_type};
use crate::mysql::wire::identifier;
use caudal_model::{ChunkBound, Error, Kind, Result, TableSchema};

/// A key column, and how its bounds are written.
pub(super) struct KeyColumn {
    pub(super) name: String,
    /// What selects its bound's text.
    pub(super) selected: String,
    literal: Literal,
}

enum Literal {
    /// Digits, a sign, a point, an exponent.
    Number,
    /// Hexadecimal digits of the column's own bytes, with this introducer and collation.
    Hex(String, String),
    /// A date or time.
    Quoted,
}

/// The columns of a schema's key.
pub(super) fn key_columns(table: &SourceTable, schema: &TableSchema) -> Result<Vec<KeyColumn>> {
    let of = |name: &String| {
        let c = table.columns.iter().find(|c| &c.name == name);
        let c = c.ok_or_else(|| drifted(&schema.table, "a key column is gone"))?;
        // The flavor matters only for whether a type exists at all.
        let declared = Declared::parse(&c.column_type);
        let (value, _) = column_type(&declared, Flavor::MySql, None)
            .or_else(|_| column_type(&declared, Flavor::MariaDb, None))
            .map_err(|e| drifted(&schema.table, &e))?;
        let name = identifier(&c.name);
        let (selected, literal) = match value {
            Value::Text(_) => {
                let charset = c.charset.clone().unwrap_or_else(|| "utf8mb4".to_owned());
                let collation = c.collation.as_deref().unwrap_or("utf8mb4_bin");
                let literal = Literal::Hex(format!("_{charset} "), format!(" COLLATE {collation}"));
                (format!("HEX({name})"), literal)
            }
            Value::Binary | Value::FixedBinary(_) => (
                format!("HEX({name})"),
                Literal::Hex(String::new(), String::new()),
            ),
            Value::Float => (
                format!("CAST(CAST({name} AS DOUBLE) AS CHAR)"),
                Literal::Number,
            ),
            // By their number, which is how their index is sorted.
            Value::Enum(_) | Value::Set(_) | Value::Bit(_) => {
                (format!("CAST({name} + 0 AS CHAR)"), Literal::Number)
            }
            Value::Int { .. } | Value::Decimal { .. } | Value::Double | Value::Year => {
                (format!("CAST({name} AS CHAR)"), Literal::Number)
            }
            _ => (format!("CAST({name} AS CHAR)"), Literal::Quoted),
        };
        Ok(KeyColumn {
            name,
            selected,
            literal,
        })
    };
    schema.key.iter().map(of).collect()
}

impl KeyColumn {
    fn bound(&self, text: &str) -> Result<String> {
        let ok = match self.literal {
            Literal::Number => text
                .bytes()
                .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)),
            Literal::Hex(..) => text.bytes().all(|b| b.is_ascii_hexdigit()),
            Literal::Quoted => text
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || b" -:.".contains(&b)),
        };
        if !ok {
            return Err(Error::fatal(
                Kind::Corrupt,
                "a chunk's bound is not a literal of its column",
            )
            .hint("delete the state directory; it is rebuilt from the lake"));
        }
        Ok(match &self.literal {
            Literal::Number => text.to_owned(),
            Literal::Hex(introducer, collation) => format!("{introducer}x'{text}'{collation}"),
            Literal::Quoted => format!("'{text}'"),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The key is greater than the bound.
    After,
    /// The key is at most the bound.
    Through,
}

/// `(a, b) > (x, y)` as `a >= x AND (a > x OR (a = x AND b > y))`: the servers use an index for
/// the first term, and not for the comparison of rows.
pub(super) fn range(keys: &[KeyColumn], bound: &ChunkBound, side: Side) -> Result<String> {
    let (strict, loose) = if side == Side::After {
        (">", ">=")
    } else {
        ("<", "<=")
    };
    let mut out = String::new();
    for (i, (k, text)) in keys.iter().zip(bound).enumerate().rev() {
        let literal = k.bound(text)?;
        let name = &k.name;
        out = if i + 1 == keys.len() {
            let last = if side == Side::After { strict } else { loose };
            format!("{name} {last} {literal}")
        } else {
            format!(
                "{name} {loose} {literal} AND ({name} {strict} {literal} OR ({name} = {literal} AND {out}))"
            )
        };
    }
    if out.is_empty() || bound.len() != keys.len() {
        return Err(Error::fatal(
            Kind::Corrupt,
            "a chunk's bound does not fit the table's key",
        ));
    }
    Ok(format!("({out})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, literal: Literal) -> KeyColumn {
        KeyColumn {
            name: identifier(name),
            selected: String::new(),
            literal,
        }
    }

    #[test]
    fn ranges_of_composite_keys_lead_with_a_term_that_an_index_serves() {
        let keys = [
            key("a", Literal::Number),
            key(
                "b",
                Literal::Hex("_latin1 ".into(), " COLLATE latin1_bin".into()),
            ),
        ];
        let bound = vec!["7".to_owned(), "FF".to_owned()];
        assert_eq!(
            range(&keys, &bound, Side::After).unwrap(),
            "(`a` >= 7 AND (`a` > 7 OR (`a` = 7 AND `b` > _latin1 x'FF' COLLATE latin1_bin)))"
        );
        assert_eq!(
            range(&keys[..1], &vec!["7".to_owned()], Side::Through).unwrap(),
            "(`a` <= 7)"
        );
        for bad in [
            vec!["7".to_owned()],
            vec!["7 or 1".to_owned(), "FF".to_owned()],
            vec![],
        ] {
            assert!(range(&keys, &bad, Side::After).is_err());
        }
    }
}
