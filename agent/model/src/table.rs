//! Names of tables.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A table's schema (MySQL: database) and name, as the source spells them.
///
/// Printed as `schema.table`; a part that holds a dot, a double quote or white
/// space is put in double quotes, with quotes inside doubled, so that printing
/// and parsing are inverse.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// PostgreSQL, SQL Server: the schema. MySQL, MariaDB: the database.
    pub schema: String,
    /// The table's own name.
    pub name: String,
}

impl TableName {
    /// A table name from its two parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        TableName {
            schema: schema.into(),
            name: name.into(),
        }
    }
}

fn needs_quotes(s: &str) -> bool {
    s.is_empty() || s.chars().any(|c| c == '.' || c == '"' || c.is_whitespace())
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in [&self.schema, &self.name].into_iter().enumerate() {
            if i == 1 {
                f.write_str(".")?;
            }
            if needs_quotes(part) {
                write!(f, "\"{}\"", part.replace('"', "\"\""))?;
            } else {
                f.write_str(part)?;
            }
        }
        Ok(())
    }
}
impl fmt::Debug for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for TableName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut chars = s.chars().peekable();
        loop {
            let mut part = String::new();
            if chars.peek() == Some(&'"') {
                chars.next();
                loop {
                    match chars.next() {
                        Some('"') if chars.peek() == Some(&'"') => {
                            chars.next();
                            part.push('"');
                        }
                        Some('"') => break,
                        Some(c) => part.push(c),
                        None => return Err(format!("`{s}`: a double quote is not closed")),
                    }
                }
            } else {
                while let Some(c) = chars.next_if(|c| *c != '.') {
                    part.push(c);
                }
            }
            parts.push(part);
            match chars.next() {
                Some('.') => {}
                Some(_) => return Err(format!("`{s}`: expected a dot after a quoted part")),
                None => break,
            }
        }
        match <[String; 2]>::try_from(parts) {
            Ok([schema, name]) if !schema.is_empty() && !name.is_empty() => {
                Ok(TableName { schema, name })
            }
            _ => Err(format!(
                "`{s}` is not `schema.table` (MySQL: `database.table`)"
            )),
        }
    }
}

impl Serialize for TableName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_and_parsing_are_inverse() {
        for (a, b) in [
            ("public", "orders"),
            ("we.ird", "t"),
            ("s", "a\"b"),
            ("s p", "ü"),
        ] {
            let t = TableName::new(a, b);
            assert_eq!(t.to_string().parse::<TableName>().unwrap(), t, "{t}");
        }
        assert_eq!(TableName::new("we.ird", "t").to_string(), "\"we.ird\".t");
        for bad in ["orders", "", ".", "a.", ".b", "a.b.c", "\"a.b", "\"a\"b.c"] {
            assert!(bad.parse::<TableName>().is_err(), "{bad}");
        }
    }
}
