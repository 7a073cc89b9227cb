//! The config file as a tree of values, and where each of them stands.
//!
//! Values and places are kept apart: the tree is deserialized like any other, and the
//! places are looked up by the path that an error names. Messages never repeat a
//! line of the file, which may hold a secret.

use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use toml_edit::{Item, TableLike};

/// What the environment variables that override keys begin with.
pub(super) const ENV_PREFIX: &str = "CAUDAL__";

/// Where a key was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Line and column of the file, from 1.
    File { line: usize, column: usize },
    /// An environment variable.
    Environment(String),
}

/// Where every key of a config was set.
#[derive(Debug, Clone, Default)]
pub struct Places {
    file: String,
    keys: HashMap<String, Place>,
    values: HashMap<String, Place>,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    file: String,
    place: Option<Place>,
    key: String,
    message: String,
}

impl Problem {
    pub(super) fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(Place::File { line, column }) => write!(f, "{}:{line}:{column}: ", self.file)?,
            Some(Place::Environment(name)) => write!(f, "environment variable {name}: ")?,
            None => write!(f, "{}: ", self.file)?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// The path one step up: `tables.override[0].key` → `tables.override[0]` → `tables.override`.
fn parent(path: &str) -> Option<&str> {
    let end = path.rfind(['.', '['])?;
    Some(&path[..end])
}

impl Places {
    /// A mistake in a key's value; the place is the nearest one that is known.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        let mut at = Some(key);
        let mut place = None;
        while let Some(path) = at {
            place = self
                .values
                .get(path)
                .or_else(|| self.keys.get(path))
                .cloned();
            if place.is_some() {
                break;
            }
            at = parent(path);
        }
        Problem {
            file: self.file.clone(),
            place,
            key: key.to_owned(),
            message: message.into(),
        }
    }

    /// A mistake in a key itself.
    pub(super) fn problem_with_key(&self, key: &str, message: impl Into<String>) -> Problem {
        match self.keys.get(key) {
            Some(place) => Problem {
                file: self.file.clone(),
                place: Some(place.clone()),
                key: key.to_owned(),
                message: message.into(),
            },
            None => self.problem(key, message),
        }
    }

    /// Whether the file or the environment sets this key.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }
}

/// A parsed file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) root: Value,
    pub(super) places: Places,
}

/// Byte offsets to lines and columns (in characters).
struct Lines<'t>(&'t str);

impl Lines<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.0.get(..span.start).unwrap_or(self.0);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        Place::File {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

struct Reader<'t> {
    lines: Lines<'t>,
    places: Places,
}

impl Document {
    /// Parses TOML. The error is the first mistake in its syntax.
    pub(super) fn parse(text: &str, file: &str) -> Result<Document, Problem> {
        let lines = Lines(text);
        let parsed = toml_edit::Document::parse(text).map_err(|e| Problem {
            file: file.to_owned(),
            place: e.span().map(|s| lines.place(&s)),
            key: String::new(),
            message: format!(
                "not TOML: {}",
                e.message().lines().collect::<Vec<_>>().join("; ")
            ),
        })?;
        let places = Places {
            file: file.to_owned(),
            ..Places::default()
        };
        let mut reader = Reader { lines, places };
        let root = reader.table(parsed.as_table(), "");
        Ok(Document {
            root,
            places: reader.places,
        })
    }

    /// Sets a value from an environment variable, making sections as needed.
    pub(super) fn set(&mut self, path: &str, value: Value, variable: &str) {
        let mut at = &mut self.root;
        for part in path.split('.') {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            let Value::Object(map) = at else { return };
            at = map.entry(part).or_insert(Value::Null);
        }
        *at = value;
        let below = |k: &String| {
            k.strip_prefix(path)
                .is_some_and(|r| r.starts_with(['.', '[']) || r.is_empty())
        };
        self.places.values.retain(|k, _| !below(k));
        self.places.keys.retain(|k, _| !below(k));
        let place = Place::Environment(variable.to_owned());
        self.places.values.insert(path.to_owned(), place.clone());
        self.places.keys.insert(path.to_owned(), place);
    }
}

/// Parses one TOML value, as an environment variable holds it.
pub(super) fn parse_value(text: &str) -> Option<Value> {
    let text = format!("v = {text}");
    let mut document = Document::parse(&text, "").ok()?;
    let map = document.root.as_object_mut()?;
    (map.len() == 1).then(|| map.remove("v")).flatten()
}

impl Reader<'_> {
    fn table(&mut self, table: &dyn TableLike, path: &str) -> Value {
        let mut map = Map::new();
        for (name, item) in table.iter() {
            let path = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            };
            let key_span = table.get_key_value(name).and_then(|(k, _)| k.span());
            if let Some(span) = key_span.or_else(|| item.span()) {
                let place = self.lines.place(&span);
                self.places.keys.insert(path.clone(), place);
            }
            let value = self.item(item, &path);
            map.insert(name.to_owned(), value);
        }
        Value::Object(map)
    }

    fn item(&mut self, item: &Item, path: &str) -> Value {
        if let Some(span) = item.span() {
            let place = self.lines.place(&span);
            self.places.values.insert(path.to_owned(), place);
        }
        match item {
            Item::None => Value::Null,
            Item::Table(t) => self.table(t, path),
            Item::ArrayOfTables(tables) => {
                let mut list = Vec::new();
                for (i, t) in tables.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    if let Some(span) = t.span() {
                        let place = self.lines.place(&span);
                        self.places.values.insert(path.clone(), place);
                    }
                    list.push(self.table(t, &path));
                }
                Value::Array(list)
            }
            Item::Value(v) => self.value(v, path),
        }
    }

    fn value(&mut self, value: &toml_edit::Value, path: &str) -> Value {
        match value {
            toml_edit::Value::String(s) => Value::from(s.value().as_str()),
            toml_edit::Value::Integer(i) => Value::from(*i.value()),
            toml_edit::Value::Boolean(b) => Value::from(*b.value()),
            toml_edit::Value::Float(f) => Value::from(*f.value()),
            // No key takes a date; as a null it is refused by its type.
            toml_edit::Value::Datetime(_) => Value::Null,
            toml_edit::Value::InlineTable(t) => self.table(t, path),
            toml_edit::Value::Array(a) => {
                let mut list = Vec::new();
                for (i, v) in a.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    if let Some(span) = v.span() {
                        let place = self.lines.place(&span);
                        self.places.values.insert(path.clone(), place);
                    }
                    list.push(self.value(v, &path));
                }
                Value::Array(list)
            }
        }
    }
}
