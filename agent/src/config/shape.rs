//! The config's shape, checked against its own JSON Schema: unknown keys, missing
//! keys, wrong types.
//!
//! Serde would stop at the first mistake and describe it in Rust's terms; walking the
//! schema finds all of them, and says what is allowed in the file's terms. The schema
//! is made from the types that serde fills, so the two cannot disagree.

use super::document::{Document, ENV_PREFIX, Problem, parse_value};
use super::units::{DURATION_FORMAT, SIZE_FORMAT};
use super::window::{WINDOW_EXAMPLE, WINDOW_FORMAT};
use crate::secret::SECRET_FORMAT;
use serde_json::{Map, Value};
use std::sync::OnceLock;

/// The JSON Schema of the config, without references.
pub(super) fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        schemars::generate::SchemaSettings::draft2020_12()
            .for_deserialize()
            .with(|s| s.inline_subschemas = true)
            .into_generator()
            .into_root_schema_for::<super::Config>()
            .to_value()
    })
}

/// Without the `null` that stands for an absent key: TOML has none.
fn present(schema: &Value) -> &Value {
    schema
        .get("anyOf")
        .and_then(Value::as_array)
        .and_then(|any| {
            any.iter()
                .find(|s| s.get("type") != Some(&Value::from("null")))
        })
        .unwrap_or(schema)
}

fn type_of(schema: &Value) -> Option<&str> {
    match schema.get("type") {
        Some(Value::String(t)) => Some(t),
        Some(Value::Array(types)) => types
            .iter()
            .filter_map(Value::as_str)
            .find(|t| *t != "null"),
        _ => None,
    }
}

fn choices(schema: &Value) -> Option<Vec<&str>> {
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return Some(list.iter().filter_map(Value::as_str).collect());
    }
    let one_of = schema.get("oneOf")?.as_array()?;
    let mut all = Vec::new();
    for s in one_of {
        match s.get("const") {
            Some(c) => all.extend(c.as_str()),
            None => all.extend(choices(s)?),
        }
    }
    Some(all)
}

fn format_of(schema: &Value) -> Option<&str> {
    schema.get("format").and_then(Value::as_str)
}

/// What is allowed, in words.
fn describe(schema: &Value) -> String {
    let schema = present(schema);
    if let Some(choices) = choices(schema) {
        let quoted: Vec<String> = choices.iter().map(|c| format!("\"{c}\"")).collect();
        return format!("one of {}", quoted.join(", "));
    }
    match (format_of(schema), type_of(schema)) {
        (Some(DURATION_FORMAT), _) => {
            "a duration with its unit, such as \"10s\", \"15m\" or \"30d\"".to_owned()
        }
        (Some(SIZE_FORMAT), _) => "a size with its unit, such as \"128MiB\" or \"1GB\"".to_owned(),
        (Some(WINDOW_FORMAT), _) => {
            format!("hours of the day, such as {WINDOW_EXAMPLE}, or a list of such")
        }
        (_, Some("boolean")) => "true or false".to_owned(),
        (_, Some("integer")) => {
            let bound = |name| schema.get(name).filter(|v| v.is_number());
            match (bound("minimum"), bound("maximum")) {
                (Some(a), Some(b)) if b.as_u64() < Some(i64::MAX as u64) => {
                    format!("a whole number from {a} to {b}")
                }
                (Some(a), _) => format!("a whole number, {a} or more"),
                _ => "a whole number".to_owned(),
            }
        }
        (_, Some("array")) => match schema.get("items").map(present) {
            Some(items) if type_of(items) == Some("string") => "a list of strings".to_owned(),
            _ => "a list of tables".to_owned(),
        },
        (_, Some("object")) => "a table".to_owned(),
        _ => "a string".to_owned(),
    }
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "a date",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a number with a fraction",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Every key that the schema knows, as a path without indexes.
fn all_keys(schema: &Value, path: &str, into: &mut Vec<String>) {
    let schema = present(schema);
    for (key, below) in properties(schema).into_iter().flatten() {
        let path = join(path, key);
        let below = present(below);
        all_keys(below.get("items").unwrap_or(below), &path, into);
        into.push(path);
    }
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// What to say of a key that is not known in `section`.
fn unknown(section: &str, known: &Map<String, Value>, key: &str) -> String {
    let key = key.to_lowercase();
    let near = known
        .keys()
        .map(|k| (strsim::damerau_levenshtein(k, &key), k))
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len() / 4);
    if let Some((_, k)) = near {
        return format!("unknown key; did you mean `{}`?", join(section, k));
    }
    let mut keys = Vec::new();
    all_keys(schema(), "", &mut keys);
    if let Some(elsewhere) = keys.iter().find(|k| last(k) == key) {
        return format!("unknown key here; did you mean `{elsewhere}`?");
    }
    let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
    names.sort_by_key(|k| strsim::damerau_levenshtein(k, &key));
    let names = names
        .iter()
        .map(|k| format!("`{k}`"))
        .collect::<Vec<_>>()
        .join(", ");
    format!("unknown key; the keys here are {names}")
}

/// Every mistake in the document's shape.
pub(super) fn problems(document: &Document) -> Vec<Problem> {
    let mut problems = Vec::new();
    walk(document, &document.root, schema(), "", &mut problems);
    problems
}

fn walk(document: &Document, value: &Value, schema: &Value, path: &str, out: &mut Vec<Problem>) {
    let schema = present(schema);
    let refuse = |out: &mut Vec<Problem>| {
        let mut message = format!("expected {}, found {}", describe(schema), found(value));
        if let (Some(choices), Some(text)) = (choices(schema), value.as_str()) {
            message = format!("`{text}` is not allowed; expected {}", describe(schema));
            let near = choices
                .iter()
                .min_by_key(|c| strsim::damerau_levenshtein(c, text));
            if let Some(near) = near.filter(|c| strsim::damerau_levenshtein(c, text) <= 2) {
                message.push_str(&format!("; did you mean \"{near}\"?"));
            }
        } else if value.is_i64() && type_of(schema) == Some("integer") {
            message = format!("expected {}, found {value}", describe(schema));
        }
        if format_of(schema) == Some(SECRET_FORMAT) {
            message = "expected a string: the secret, `env:NAME` or `file:/path`".to_owned();
        }
        out.push(document.places.problem(path, message));
    };
    if let Some(choices) = choices(schema) {
        if !value.as_str().is_some_and(|v| choices.contains(&v)) {
            refuse(out);
        }
        return;
    }
    match (type_of(schema), value) {
        (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) => {}
        (Some("string"), Value::Array(list))
            if format_of(schema) == Some(WINDOW_FORMAT) && list.iter().all(Value::is_string) => {}
        (Some("integer"), Value::Number(n)) if !n.is_f64() => {
            let low = schema
                .get("minimum")
                .and_then(Value::as_i64)
                .unwrap_or(i64::MIN);
            let high = schema
                .get("maximum")
                .and_then(Value::as_i64)
                .unwrap_or(i64::MAX);
            if !n.as_i64().is_some_and(|v| (low..=high).contains(&v)) {
                refuse(out);
            }
        }
        (Some("array"), Value::Array(list)) => {
            for (i, v) in list.iter().enumerate() {
                if let Some(items) = schema.get("items") {
                    walk(document, v, items, &format!("{path}[{i}]"), out);
                }
            }
        }
        (Some("object"), Value::Object(map)) => walk_table(document, map, schema, path, out),
        _ => refuse(out),
    }
}

fn walk_table(
    document: &Document,
    map: &Map<String, Value>,
    schema: &Value,
    path: &str,
    out: &mut Vec<Problem>,
) {
    let Some(known) = properties(schema) else {
        // A table with free keys, such as `as`.
        for (key, v) in map {
            if let Some(schema) = schema.get("additionalProperties").filter(|s| s.is_object()) {
                walk(document, v, schema, &join(path, key), out);
            }
        }
        return;
    };
    for (key, v) in map {
        let path_of_key = join(path, key);
        match known.get(key) {
            Some(schema) => walk(document, v, schema, &path_of_key, out),
            None => out.push(
                document
                    .places
                    .problem_with_key(&path_of_key, unknown(path, known, key)),
            ),
        }
    }
    let required = schema.get("required").and_then(Value::as_array);
    for key in required.into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(key) {
            let about = known
                .get(key)
                .and_then(|s| s.get("description"))
                .and_then(Value::as_str);
            let about = about.map_or(String::new(), |d| {
                format!(": {}", d.replace('\n', " ").trim_end_matches('.'))
            });
            out.push(
                document
                    .places
                    .problem(&join(path, key), format!("is required{about}")),
            );
        }
    }
}

/// The schema of a key, by its path without indexes.
fn schema_at(path: &str) -> Option<&'static Value> {
    let mut at = schema();
    for part in path.split('.') {
        at = properties(present(at))?.get(part)?;
    }
    Some(present(at))
}

/// Applies `CAUDAL__SECTION__KEY=value` and returns the mistakes among them. A key that
/// takes a string takes the variable as it stands; any other takes a TOML value.
pub(super) fn override_from(
    document: &mut Document,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut variables: Vec<_> = environment.into_iter().collect();
    variables.sort();
    for (name, text) in variables {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        let path = rest.to_lowercase().replace("__", ".");
        let Some(schema) = schema_at(&path) else {
            // An unknown key is found, and its nearest named, with those of the file.
            document.set(&path, Value::Null, &name);
            continue;
        };
        let value = match type_of(schema) {
            Some("integer" | "boolean" | "array" | "object") => parse_value(text.trim()),
            _ => Some(Value::String(text)),
        };
        match value {
            Some(value) => document.set(&path, value, &name),
            None => {
                document.set(&path, Value::Null, &name);
                let expected = format!("expected {}, written as in TOML", describe(schema));
                problems.push(document.places.problem(&path, expected));
            }
        }
    }
    problems
}

/// The default of a key, as the schema prints it.
pub(super) fn default_of(section: &str, key: &str) -> Option<&'static Value> {
    schema_at(&join(section, key))?
        .get("default")
        .filter(|d| !d.is_null())
}
