//! Bounds of chunks: a key as the server sorts, selects, compares and prints it.
//!
//! The next bound is always greater than the last one by the server's own comparison, so chunks
//! neither overlap nor leave a gap whatever an index says; indexes only decide what a
//! bound costs. A key whose index sorts its columns in different directions is cut in the
//! index's order, which its bounds then name in one more element: they keep their
//! meaning if the index is made anew while the table is copied.

use crate::mysql::decode::values::Value;
use crate::mysql::flavor::Flavor;
use crate::mysql::schema::{SourceColumn, SourceIndex, SourceTable, drifted};
use crate::mysql::types::{Declared, column_type};
use crate::mysql::wire::{TextRow, identifier};
use caudal_model::{ChunkBound, Error, Kind, Result, TableSchema};

/// The members of a set beyond which the servers compare its number with the wrong sign.
const SIGNED_MEMBERS: usize = 63;
/// The numbers of an enum or set that are listed one by one.
const LISTED: u64 = 256;

/// A key, and how chunks are cut by it.
#[derive(Debug)]
pub(super) struct Keys {
    columns: Vec<KeyColumn>,
    /// The index that leads with the key's columns.
    index: Option<String>,
    /// Columns that the index sorts from the greatest on, where not all are sorted alike.
    directions: Option<Vec<bool>>,
    /// Whether the index has its columns' first characters only.
    prefix: bool,
}

/// A key column, and how its bounds are written.
#[derive(Debug)]
struct KeyColumn {
    name: String,
    /// What selects its bound's text.
    selected: String,
    literal: Literal,
    /// Whether it is a whole number.
    whole: bool,
}

#[derive(Debug, PartialEq)]
enum Literal {
    /// Digits, a sign, a point, an exponent.
    Number,
    /// Digits of one of so many numbers; the servers find equal ones by an index, not greater ones.
    Listed(u64),
    /// Hexadecimal digits of the column's own bytes, with this introducer and collation.
    Hex(String, String),
    /// A date or time.
    Quoted,
    /// The server does not compare it in the order in which it sorts it.
    None,
}

impl Keys {
    /// The key of a schema.
    pub(super) fn of(table: &SourceTable, schema: &TableSchema, flavor: Flavor) -> Result<Keys> {
        let column = |name: &String| {
            let c = table.columns.iter().find(|c| &c.name == name);
            let c = c.ok_or_else(|| drifted(&schema.table, "a key column is gone"))?;
            key_column(c, flavor).map_err(|e| drifted(&schema.table, &e))
        };
        let columns = schema.key.iter().map(column).collect::<Result<_>>()?;
        let leads = |i: &&SourceIndex| {
            i.parts.len() >= schema.key.len()
                && i.parts.iter().zip(&schema.key).all(|(p, k)| &p.column == k)
        };
        let part = |i: &SourceIndex| {
            let key = i.parts.iter().take(schema.key.len());
            let descending: Vec<bool> = key.clone().map(|p| p.descending).collect();
            (key.clone().any(|p| p.prefix), descending)
        };
        // Whole values first; then the primary key, in whose order a table is stored.
        let indexes = table.indexes.iter().filter(|_| !schema.key.is_empty());
        let mut leading: Vec<_> = indexes.filter(leads).collect();
        leading.sort_by_key(|i| (part(i).0, i.name != "PRIMARY"));
        let best = leading.first();
        let (prefix, descending) = best.map(|i| part(i)).unwrap_or_default();
        let mixed = descending.iter().any(|d| *d) && !descending.iter().all(|d| *d);
        Ok(Keys {
            columns,
            index: best.map(|i| i.name.clone()),
            directions: mixed.then_some(descending),
            prefix,
        })
    }

    /// Whether bounds can be told to the server.
    pub(super) fn divisible(&self) -> bool {
        self.columns.iter().all(|c| c.literal != Literal::None)
    }

    /// What makes the server read by the key's index.
    pub(super) fn hint(&self) -> String {
        let index = self.index.as_ref();
        index.map_or_else(String::new, |i| format!(" FORCE INDEX ({})", identifier(i)))
    }

    /// The statement whose one row is the bound of the `rows`-th key after `after`.
    pub(super) fn bound_sql(
        &self,
        table: &str,
        after: Option<&ChunkBound>,
        rows: u64,
    ) -> Result<String> {
        let selected: Vec<&str> = self.columns.iter().map(|k| &*k.selected).collect();
        let mut sql = format!("SELECT {} FROM {table}{}", selected.join(", "), self.hint());
        if let Some(b) = after {
            sql.push_str(&format!(" WHERE {}", self.range(b, Side::After)?));
        }
        // Sorted by its beginnings, an index cannot give whole values in their order; nor is
        // that order needed, for any value after the last bound can be the next one.
        if !self.prefix {
            let directions = match after {
                Some(b) => self.directions_of(b)?,
                None => self.directions.clone(),
            };
            let by = |(i, k): (usize, &KeyColumn)| {
                let down = directions.as_ref().and_then(|d| d.get(i)) == Some(&true);
                format!("{}{}", k.name, if down { " DESC" } else { "" })
            };
            let by: Vec<String> = self.columns.iter().enumerate().map(by).collect();
            sql.push_str(&format!(" ORDER BY {}", by.join(", ")));
        }
        sql.push_str(&format!(" LIMIT 1 OFFSET {}", rows.max(1) - 1));
        Ok(sql)
    }

    /// Whether a column is a whole number that the index sorts from the smallest on.
    pub(super) fn grows(&self, column: usize) -> bool {
        let plain = self.directions.is_none() && !self.prefix && self.index.is_some();
        plain && self.columns.get(column).is_some_and(|c| c.whole)
    }

    /// The statement whose one row is the last key after `after` that begins with the values
    /// of `upper` or with a smaller last one.
    pub(super) fn last_sql(
        &self,
        table: &str,
        after: &ChunkBound,
        upper: &ChunkBound,
    ) -> Result<String> {
        let selected: Vec<&str> = self.columns.iter().map(|k| &*k.selected).collect();
        let mut terms = vec![self.range(after, Side::After)?];
        for (i, (k, text)) in self.columns.iter().zip(upper).enumerate() {
            let operator = if i + 1 == upper.len() { "<=" } else { "=" };
            terms.push(k.term(operator, text)?);
        }
        let by: Vec<String> = self
            .columns
            .iter()
            .map(|k| format!("{} DESC", k.name))
            .collect();
        Ok(format!(
            "SELECT {} FROM {table}{} WHERE {} ORDER BY {} LIMIT 1",
            selected.join(", "),
            self.hint(),
            terms.join(" AND "),
            by.join(", ")
        ))
    }

    /// The bound that a row of [`Self::bound_sql`] tells; `after` is the one before it.
    pub(super) fn bound(&self, row: &TextRow, after: Option<&ChunkBound>) -> Result<ChunkBound> {
        let mut bound: ChunkBound = (0..self.columns.len()).map(|i| row.text(i)).collect();
        let directions = match after {
            Some(b) => self.directions_of(b)?,
            None => self.directions.clone(),
        };
        let letter = |down: &bool| if *down { 'd' } else { 'a' };
        bound.extend(directions.map(|d| d.iter().map(letter).collect()));
        Ok(bound)
    }

    fn directions_of(&self, bound: &ChunkBound) -> Result<Option<Vec<bool>>> {
        let Some(text) = bound.get(self.columns.len()) else {
            return Ok(None);
        };
        let fits = text.len() == self.columns.len() && text.bytes().all(|b| b"ad".contains(&b));
        if !fits {
            return Err(unfit());
        }
        Ok(Some(text.bytes().map(|b| b == b'd').collect()))
    }

    /// `(a, b) > (x, y)` as `a >= x AND (a > x OR (a = x AND b > y))`: the servers use an index
    /// for these terms, and not for the comparison of rows.
    pub(super) fn range(&self, bound: &ChunkBound, side: Side) -> Result<String> {
        let n = self.columns.len();
        let directions = self.directions_of(bound)?;
        if n == 0 || bound.len() != n + usize::from(directions.is_some()) {
            return Err(unfit());
        }
        let mut out = String::new();
        for (i, (k, text)) in self.columns.iter().zip(bound).enumerate().rev() {
            let down = directions.as_ref().and_then(|d| d.get(i)) == Some(&true);
            let (strict, loose) = match (side == Side::After) != down {
                true => (">", ">="),
                false => ("<", "<="),
            };
            out = if i + 1 == n {
                let last = if side == Side::After { strict } else { loose };
                k.term(last, text)?
            } else {
                let (wide, narrow) = (k.term(loose, text)?, k.term(strict, text)?);
                format!(
                    "{wide} AND ({narrow} OR ({} AND {out}))",
                    k.term("=", text)?
                )
            };
        }
        Ok(format!("({out})"))
    }
}

fn unfit() -> Error {
    Error::fatal(
        Kind::Corrupt,
        "a chunk's bound does not fit the table's key",
    )
}

/// Whether MariaDB compares a column otherwise than it sorts it: its indexes hold `char` with
/// blanks at the end, before which a character below the blank sorts, and which a
/// collation that does not pad takes for greater than nothing.
fn padded_unlike_compared(flavor: Flavor, declared: &Declared, collation: &str) -> bool {
    let pads = !collation.contains("nopad") && !collation.contains("_0900_");
    flavor == Flavor::MariaDb && declared.base == "char" && !pads
}

fn key_column(c: &SourceColumn, flavor: Flavor) -> Result<KeyColumn, String> {
    let declared = Declared::parse(&c.column_type);
    let (value, _) = column_type(&declared, flavor, None)?;
    let name = identifier(&c.name);
    let whole = matches!(value, Value::Int { .. });
    let text = format!("CAST({name} AS CHAR)");
    let (selected, literal) = match value {
        Value::Text(_) => {
            let charset = c.charset.as_deref().unwrap_or("utf8mb4");
            let collation = c.collation.as_deref().unwrap_or("utf8mb4_bin");
            let literal = if padded_unlike_compared(flavor, &declared, collation) {
                Literal::None
            } else {
                Literal::Hex(format!("_{charset} "), format!(" COLLATE {collation}"))
            };
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
        Value::Set(members) if members.len() > SIGNED_MEMBERS => (text, Literal::None),
        // By their number, which is how their index is sorted.
        Value::Enum(members) => numbered(&name, members.len() as u64 + 1),
        Value::Set(members) => numbered(&name, 1 << members.len()),
        Value::Bit(_) => numbered(&name, u64::MAX),
        Value::Int { .. } | Value::Decimal { .. } | Value::Double | Value::Year => {
            (text, Literal::Number)
        }
        _ => (text, Literal::Quoted),
    };
    Ok(KeyColumn {
        name,
        selected,
        literal,
        whole,
    })
}

fn numbered(name: &str, numbers: u64) -> (String, Literal) {
    let literal = match numbers {
        0..=LISTED => Literal::Listed(numbers),
        _ => Literal::Number,
    };
    (format!("CAST({name} + 0 AS CHAR)"), literal)
}

impl KeyColumn {
    /// The comparison of the column with a bound's text.
    fn term(&self, operator: &str, text: &str) -> Result<String> {
        let (name, literal) = (&self.name, self.bound(text)?);
        let (Literal::Listed(numbers), Ok(bound)) = (&self.literal, literal.parse::<u64>()) else {
            return Ok(format!("{name} {operator} {literal}"));
        };
        let listed: Vec<String> = match operator {
            ">" => bound.saturating_add(1)..*numbers,
            ">=" => bound..*numbers,
            "<" => 0..bound.min(*numbers),
            "<=" => 0..bound.saturating_add(1).min(*numbers),
            _ => return Ok(format!("{name} {operator} {literal}")),
        }
        .map(|n| n.to_string())
        .collect();
        Ok(match listed.is_empty() {
            true => "FALSE".to_owned(),
            false => format!("{name} IN ({})", listed.join(", ")),
        })
    }

    fn bound(&self, text: &str) -> Result<String> {
        let ok = match self.literal {
            Literal::Number | Literal::Listed(_) => text
                .bytes()
                .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)),
            Literal::Hex(..) => text.bytes().all(|b| b.is_ascii_hexdigit()),
            Literal::Quoted => text
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || b" -:.".contains(&b)),
            Literal::None => false,
        };
        if !ok {
            return Err(Error::fatal(
                Kind::Corrupt,
                "a chunk's bound is not a literal of its column",
            )
            .hint("delete the state directory; it is rebuilt from the lake"));
        }
        Ok(match &self.literal {
            Literal::Hex(introducer, collation) => format!("{introducer}x'{text}'{collation}"),
            Literal::Quoted => format!("'{text}'"),
            Literal::Number | Literal::Listed(_) | Literal::None => text.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(columns: Vec<(&str, Literal)>) -> Keys {
        let column = |(name, literal)| KeyColumn {
            name: identifier(name),
            selected: String::new(),
            literal,
            whole: false,
        };
        Keys {
            columns: columns.into_iter().map(column).collect(),
            index: None,
            directions: None,
            prefix: false,
        }
    }

    fn bound(texts: &[&str]) -> ChunkBound {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn ranges_of_composite_keys_lead_with_a_term_that_an_index_serves() {
        let hex = || Literal::Hex("_latin1 ".into(), " COLLATE latin1_bin".into());
        let pair = keys(vec![("a", Literal::Number), ("b", hex())]);
        assert_eq!(
            pair.range(&bound(&["7", "FF"]), Side::After).unwrap(),
            "(`a` >= 7 AND (`a` > 7 OR (`a` = 7 AND `b` > _latin1 x'FF' COLLATE latin1_bin)))"
        );
        assert_eq!(
            pair.range(&bound(&["7", "FF", "da"]), Side::Through)
                .unwrap(),
            "(`a` >= 7 AND (`a` > 7 OR (`a` = 7 AND `b` <= _latin1 x'FF' COLLATE latin1_bin)))"
        );
        let one = keys(vec![("a", Literal::Number)]);
        assert_eq!(
            one.range(&bound(&["7"]), Side::Through).unwrap(),
            "(`a` <= 7)"
        );
        for bad in [
            &["7"][..],
            &["7 or 1", "FF"],
            &["7", "FF", "x"],
            &["7", "FF", "aa", "aa"],
            &[],
        ] {
            assert!(pair.range(&bound(bad), Side::After).is_err(), "{bad:?}");
        }
    }
}
