//! Which columns a `Relation` message means, and what older rows hold in new ones.
//!
//! The message names a table's columns as they were at its place in the log, but without
//! their numbers (`attnum`), and a name alone does not tell a renamed column from a
//! dropped and an added one. The catalogue has the numbers, but as they are now, which
//! may be later. Three facts lie between the two: numbers only grow and never move, so
//! that a message lists its columns in their order; a column that the held schema has and
//! the catalogue still has was there in between; and one that was dropped never returns.
//! Of the ways to number the message's columns that keep to them, the one is taken in
//! which most names agree with the catalogue or with the held schema, and then most types.
//! Where two are as good, only a new copy is sure to be right.

use super::catalog::{CatalogColumn, ColumnType, TableState, TypeKey};
use super::partitions::Parts;
use super::relation::WireColumn;
use crate::TableOptions;
use caudal_model::schema::OlderRows;
use caudal_model::{LakeType, TableSchema};
use std::collections::HashMap;
use std::fmt;

/// What a table's columns are told apart by.
pub struct Shapes<'a> {
    /// The version that the lake has.
    pub held: &'a TableSchema,
    /// The table as it is now.
    pub now: &'a TableState,
    /// The table's override.
    pub options: Option<&'a TableOptions>,
    /// The types of the message's columns.
    pub types: &'a HashMap<TypeKey, ColumnType>,
    /// Whether the log has stored generated columns.
    pub generated: bool,
}

/// What a table is known by: its oid, the greatest number that a column of it had, carried
/// or not, and the file of its rows or its partitions. Its text is [`TableSchema::source_id`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Columns above it are new ones.
    pub greatest: i32,
    /// The file that held the rows when there was no newer column, if that is known.
    pub file: Option<u32>,
    /// The partitions that its rows come from, of a partitioned table.
    pub parts: Option<Parts>,
}

impl Identity {
    /// A table with these columns, and a file that was read no later than they were.
    pub fn of(oid: u32, columns: &[CatalogColumn], file: Option<u32>) -> Self {
        Identity {
            oid,
            greatest: columns.iter().map(|c| c.number).max().unwrap_or(0),
            file,
            parts: None,
        }
    }

    /// The same with these partitions.
    pub fn with_parts(self, parts: Option<Parts>) -> Self {
        Identity { parts, ..self }
    }

    /// The table of a version; `None` if it was written without.
    pub fn held(schema: &TableSchema) -> Option<Self> {
        let mut parts = schema.source_id.as_deref()?.split('/');
        Some(Identity {
            oid: parts.next()?.parse().ok()?,
            greatest: parts.next()?.parse().ok()?,
            file: parts.next().and_then(|f| f.parse().ok()),
            parts: parts.next().and_then(Parts::parse),
        })
    }

    /// Whether the rows of then cannot have been written anew since a column of this number
    /// was added.
    pub fn unwritten(&self, number: i32, file: Option<u32>) -> bool {
        self.file.is_some() && self.file == file && number > self.greatest
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.oid, self.greatest)?;
        match (self.file, &self.parts) {
            (None, None) => Ok(()),
            (Some(file), None) => write!(f, "/{file}"),
            (None, Some(parts)) => write!(f, "//{parts}"),
            (Some(file), Some(parts)) => write!(f, "/{file}/{parts}"),
        }
    }
}

/// What it costs to take a column of the message for one of a number: names that agree are
/// believed before anything else, and types decide between them.
mod cost {
    /// Name and type are those that the column has now or that the lake has of it; or it
    /// came and went since, so that nothing is known of it.
    pub const NONE: u32 = 0;
    /// The name is, the type is another.
    pub const TYPE: u32 = 1;
    /// The name is another: more than all types of a table.
    pub const NAME: u32 = 10_000;
}

impl Shapes<'_> {
    /// The numbers that the lake has columns of.
    fn held_numbers(&self) -> HashMap<i32, &caudal_model::schema::Column> {
        let live = |name: &str| {
            let column = self
                .now
                .columns
                .iter()
                .find(|c| !c.dropped && c.name == name);
            column.map(|c| c.number)
        };
        let columns = self.held.columns.iter();
        columns
            .filter_map(|c| Some((c.source_id.or_else(|| live(&c.name))?, c)))
            .collect()
    }

    fn excluded(&self, name: &str) -> bool {
        let mut excluded = self.options.iter().flat_map(|o| &o.exclude_columns);
        excluded.any(|c| c == name)
    }

    fn in_log(&self, c: &CatalogColumn) -> bool {
        c.dropped || c.generated.is_empty() || (c.generated == "s" && self.generated)
    }

    /// The number of each column of a message; `None` if they cannot be told.
    pub fn numbers(&self, wire: &[WireColumn]) -> Option<Vec<i32>> {
        let held = self.held_numbers();
        let known: Vec<&CatalogColumn> =
            self.now.columns.iter().filter(|c| self.in_log(c)).collect();
        let same =
            |(c, w): (&&CatalogColumn, &WireColumn)| c.name == w.name && c.type_key == w.type_key;
        let live: Vec<&CatalogColumn> = known.iter().filter(|c| !c.dropped).copied().collect();
        let gone = known
            .iter()
            .any(|c| c.dropped && held.contains_key(&c.number));
        if !gone && live.len() == wire.len() && live.iter().zip(wire).all(same) {
            return Some(live.iter().map(|c| c.number).collect());
        }
        let greatest = self.greatest(&held);
        let must: Vec<bool> = known
            .iter()
            .map(|c| {
                let was_there = held.contains_key(&c.number)
                    || (c.number <= greatest && self.excluded(&c.name));
                !c.dropped && was_there
            })
            .collect();
        let cost = |w: &WireColumn, c: &CatalogColumn| {
            let before = held.get(&c.number).copied();
            if c.dropped && before.is_none() {
                // A number that the lake skips was dropped before, or left out.
                let possible = c.number > greatest || self.excluded(&w.name);
                return possible.then_some(cost::NONE);
            }
            let type_name = self.types.get(&w.type_key).map(|t| t.name.as_str());
            let now = (!c.dropped && c.name == w.name).then_some(c.type_key == w.type_key);
            let then = before
                .filter(|b| b.name == w.name)
                .map(|b| Some(b.source_type.trim_end_matches(" hashed")) == type_name);
            Some(match now.max(then) {
                Some(true) => cost::NONE,
                Some(false) => cost::TYPE,
                None => cost::NAME,
            })
        };
        cheapest(wire, &known, &must, cost)
    }

    /// Columns above this number were added after the held version.
    fn greatest(&self, held: &HashMap<i32, &caudal_model::schema::Column>) -> i32 {
        let known = Identity::held(self.held).map_or(0, |h| h.greatest);
        held.keys().max().copied().unwrap_or(0).max(known)
    }

    /// What rows from before a column hold in it. `unwritten`: the table's rows have not
    /// been written anew since the column was added.
    pub fn older_rows(
        &self,
        number: i32,
        type_key: TypeKey,
        lake: &LakeType,
        unwritten: bool,
    ) -> OlderRows {
        let held = self.held_numbers();
        if held.contains_key(&number) {
            return OlderRows::Null;
        }
        let column = self.now.columns.iter().find(|c| c.number == number);
        // Below the greatest: it was there before and left out.
        let (Some(column), true) = (column, number > self.greatest(&held)) else {
            return OlderRows::Unknown;
        };
        if column.dropped {
            return OlderRows::Unknown;
        }
        match &column.missing {
            Some(_) if column.type_key != type_key => OlderRows::Unknown,
            Some(text) => constant(lake, text).map_or(OlderRows::Unknown, OlderRows::Constant),
            None if unwritten => OlderRows::Null,
            None => OlderRows::Unknown,
        }
    }
}

/// A constant as a schema's file writes it; `None` for what has no such form.
fn constant(lake: &LakeType, text: &str) -> Option<serde_json::Value> {
    use serde_json::{Number, Value};
    match lake {
        LakeType::Boolean => Some(Value::Bool(text == "t")),
        LakeType::Int8 | LakeType::Int16 | LakeType::Int32 | LakeType::Int64 => {
            text.parse::<i64>().ok().map(Value::from)
        }
        LakeType::Float32 | LakeType::Float64 => {
            let value: f64 = text.parse().ok()?;
            Number::from_f64(value).map(Value::Number)
        }
        LakeType::Utf8 => Some(Value::from(text)),
        LakeType::Decimal { .. } => {
            let plain = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'-' | b'.'));
            plain.then(|| Value::from(text))
        }
        // Infinity and years before Christ have no form that others read.
        LakeType::Date32 | LakeType::Time64 | LakeType::Timestamp | LakeType::TimestampUtc => {
            let plain = text.starts_with(|c: char| c.is_ascii_digit()) && !text.ends_with("BC");
            plain.then(|| Value::from(text))
        }
        LakeType::Binary | LakeType::List(_) | LakeType::Map => None,
    }
}

/// The cheapest way in which the message's columns are some of the known ones in their
/// order, all that `must` be there among them; `None` if there is none, or more than one.
fn cheapest(
    wire: &[WireColumn],
    known: &[&CatalogColumn],
    must: &[bool],
    cost: impl Fn(&WireColumn, &CatalogColumn) -> Option<u32>,
) -> Option<Vec<i32>> {
    // Cost of the rest, whether one way alone has it, and whether it begins by taking.
    type Best = Option<(u32, bool, bool)>;
    let width = known.len() + 1;
    // best[i * width + j]: of wire[i..] as some of known[j..].
    let mut best: Vec<Best> = vec![None; (wire.len() + 1) * width];
    let at = |best: &[Best], i: usize, j: usize| best.get(i * width + j).copied().flatten();
    for i in (0..=wire.len()).rev() {
        for j in (0..width).rev() {
            let here = match known.get(j) {
                None => (i == wire.len()).then_some((0, true, false)),
                Some(c) => {
                    let may_skip = must.get(j) != Some(&true);
                    let skipped = at(&best, i, j + 1).filter(|_| may_skip);
                    let taken = wire.get(i).and_then(|w| {
                        let (rest, one, _) = at(&best, i + 1, j + 1)?;
                        Some((rest.saturating_add(cost(w, c)?), one, true))
                    });
                    match (skipped, taken) {
                        (Some((s, one, _)), None) => Some((s, one, false)),
                        (Some((s, one, _)), Some((t, ..))) if s < t => Some((s, one, false)),
                        (Some((s, ..)), Some((t, ..))) if s == t => Some((t, false, true)),
                        (_, taken) => taken,
                    }
                }
            };
            if let Some(cell) = best.get_mut(i * width + j) {
                *cell = here;
            }
        }
    }
    let (_, true, _) = at(&best, 0, 0)? else {
        return None;
    };
    let mut numbers = Vec::with_capacity(wire.len());
    for (j, c) in known.iter().enumerate() {
        if let Some((_, _, true)) = at(&best, numbers.len(), j) {
            numbers.push(c.number);
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_model::TableName;
    use caudal_model::schema::ColumnSpec;

    const INT: TypeKey = (23, -1);
    const TEXT: TypeKey = (25, -1);

    fn types() -> HashMap<TypeKey, ColumnType> {
        let named = |name: &str| ColumnType {
            name: name.into(),
            mapped: Err("not needed"),
        };
        HashMap::from([(INT, named("integer")), (TEXT, named("text"))])
    }

    fn wire(columns: &[(&str, TypeKey)]) -> Vec<WireColumn> {
        let column = |(name, type_key): &(&str, TypeKey)| WireColumn {
            identity: false,
            name: (*name).into(),
            type_key: *type_key,
        };
        columns.iter().map(column).collect()
    }

    fn held(columns: &[(i32, &str, &str)]) -> TableSchema {
        let spec = |(number, name, source_type): &(i32, &str, &str)| ColumnSpec {
            source_id: Some(*number),
            ..ColumnSpec::new(*name, *source_type, LakeType::Utf8)
        };
        let specs = columns.iter().map(spec).collect();
        TableSchema::first(TableName::new("s", "t"), 1, specs, vec![])
    }

    /// `-` is a dropped column.
    fn now(columns: &[(&str, TypeKey)]) -> TableState {
        let column = |((name, type_key), number): (&(&str, TypeKey), i32)| CatalogColumn {
            number,
            name: (*name).into(),
            type_key: *type_key,
            dropped: *name == "-",
            ..CatalogColumn::default()
        };
        TableState {
            columns: columns.iter().zip(1..).map(column).collect(),
            ..TableState::default()
        }
    }

    fn numbers(
        h: &[(i32, &str, &str)],
        message: &[(&str, TypeKey)],
        n: &[(&str, TypeKey)],
    ) -> Option<Vec<i32>> {
        let options = TableOptions {
            exclude_columns: vec!["secret".into()],
            ..TableOptions::default()
        };
        let shapes = Shapes {
            held: &held(h),
            now: &now(n),
            options: Some(&options),
            types: &types(),
            generated: false,
        };
        shapes.numbers(&wire(message))
    }

    #[test]
    fn columns_are_numbered_although_the_catalogue_is_ahead() {
        let h = [(1, "id", "integer"), (2, "a", "text")];
        let m = |names: &[(&'static str, TypeKey)], n: &[(&str, TypeKey)]| numbers(&h, names, n);
        let (id, a, b, gone) = (("id", INT), ("a", TEXT), ("b", TEXT), ("-", (0, -1)));
        assert_eq!(m(&[id, a], &[id, a]), Some(vec![1, 2]));
        // Renamed now, then and in between.
        assert_eq!(m(&[id, b], &[id, b]), Some(vec![1, 2]));
        assert_eq!(m(&[id, a], &[id, b]), Some(vec![1, 2]));
        assert_eq!(m(&[id, ("x", TEXT)], &[id, b]), Some(vec![1, 2]));
        // Renamed, and another took its name: before, in between, after.
        let taken = [id, b, a];
        assert_eq!(m(&[id, a], &taken), Some(vec![1, 2]));
        assert_eq!(m(&[id, b], &taken), Some(vec![1, 2]));
        assert_eq!(m(&[id, b, a], &taken), Some(vec![1, 2, 3]));
        // Dropped and added with another type: before and after.
        let again = [id, gone, ("a", INT)];
        assert_eq!(m(&[id, a], &again), Some(vec![1, 2]));
        assert_eq!(m(&[id, ("a", INT)], &again), Some(vec![1, 3]));
        assert_eq!(m(&[id], &again), Some(vec![1]));
        // With the same type nothing tells them apart.
        assert_eq!(m(&[id, a], &[id, gone, a]), None);
        // Came and went since.
        assert_eq!(m(&[id, a, b], &[id, a, gone]), Some(vec![1, 2, 3]));
        assert_eq!(m(&[id, a], &[id, gone, gone]), None);
        // Renamed twice, and others came, while what the lake has is gone.
        let later = [id, b, ("c", INT), ("d", TEXT)];
        assert_eq!(
            m(&[id, ("x", TEXT), ("c", INT)], &later),
            Some(vec![1, 2, 3])
        );
        assert_eq!(m(&[id, a, b], &[id, a, gone, gone]), None);
        // A column that the lake skips was gone before.
        let skipped = [(1, "id", "integer"), (3, "a", "text")];
        let n = [id, gone, a];
        assert_eq!(numbers(&skipped, &[id, a], &n), Some(vec![1, 3]));
        let secret = ("secret", TEXT);
        let left_out = numbers(&skipped, &[id, secret, a], &[id, gone, a]);
        assert_eq!(left_out, Some(vec![1, 2, 3]));
        let renamed = [("key", INT), secret, ("c", TEXT)];
        assert_eq!(numbers(&skipped, &renamed, &renamed), Some(vec![1, 2, 3]));
    }

    #[test]
    fn older_rows_hold_what_the_server_shows() {
        let h = held(&[(1, "id", "integer"), (3, "a", "text")]);
        let mut n = now(&[
            ("id", INT),
            ("x", TEXT),
            ("a", TEXT),
            ("d", INT),
            ("e", INT),
        ]);
        n.columns[3].missing = Some("7".into());
        let types = types();
        let shapes = Shapes {
            held: &h,
            now: &n,
            options: None,
            types: &types,
            generated: false,
        };
        let older = |number, unwritten| shapes.older_rows(number, INT, &LakeType::Int32, unwritten);
        assert_eq!(older(2, true), OlderRows::Unknown, "left out before");
        assert_eq!(older(4, false), OlderRows::Constant(7.into()));
        assert_eq!(older(5, true), OlderRows::Null);
        assert_eq!(older(5, false), OlderRows::Unknown);
        assert_eq!(older(6, true), OlderRows::Unknown);
        let then = shapes.older_rows(4, TEXT, &LakeType::Utf8, true);
        assert_eq!(then, OlderRows::Unknown, "its type was another");
        assert_eq!(constant(&LakeType::Float32, "1.5"), Some(1.5.into()));
        assert_eq!(constant(&LakeType::Float64, "NaN"), None);
        assert_eq!(constant(&LakeType::Boolean, "f"), Some(false.into()));
        assert_eq!(constant(&LakeType::Date32, "infinity"), None);
    }
}
