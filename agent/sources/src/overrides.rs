//! Mistakes in a table's override that no source can carry out: what is named is not there,
//! or two wishes contradict each other.
//!
//! A name that fits no column is an error and no warning: a column that was to be left out or
//! hashed would leave the source as it is.

use crate::TableOptions;
use caudal_model::{Finding, LakeType, Severity, TableName, TableSchema};

/// What is wrong with a table's override.
///
/// `columns` are all columns that the table has, those that are left out included; `key` is
/// the key in use, named by the override or not.
pub fn problems(
    table: &TableName,
    columns: &[String],
    key: &[String],
    options: &TableOptions,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut report = |setting: &'static str, column: &str, reason: String, mend: &str| {
        found.push(
            Finding::new(Severity::Error, setting, reason)
                .subject(format!("{table}.{column}"))
                .mend(format!("in the config, the override of {table}: {mend}")),
        );
    };
    let excluded = |c: &String| options.exclude_columns.contains(c);
    let filtered = options.filter.as_ref().map(|f| f.columns());
    let filtered: Vec<String> = filtered.into_iter().flatten().collect();
    let typed: Vec<String> = options.lake_types.keys().cloned().collect();
    let own_key = options.key.clone().unwrap_or_default();
    let named: [(&'static str, &[String]); 5] = [
        ("exclude_columns", &options.exclude_columns),
        ("hash_columns", &options.hash_columns),
        ("as", &typed),
        ("filter", &filtered),
        ("key", &own_key),
    ];
    for (setting, names) in named {
        for name in names.iter().filter(|n| !columns.contains(n)) {
            let near = columns.iter().find(|c| c.eq_ignore_ascii_case(name));
            let mend = match near {
                Some(c) => format!("write {c} in {setting}"),
                None => format!("take {name} out of {setting}, or name a column of the table"),
            };
            let reason = format!("{setting} names a column that the table does not have");
            report(setting, name, reason, &mend);
        }
    }
    for name in filtered.iter().filter(|n| excluded(n)) {
        let reason = "the filter looks at a column that is left out".to_owned();
        let mend = format!("take {name} out of exclude_columns, or out of the filter");
        report("filter", name, reason, &mend);
    }
    for name in &options.hash_columns {
        if key.contains(name) {
            let reason = "a key column cannot be hashed: rows are told apart by its value";
            let mend = format!("take {name} out of hash_columns, or name another key");
            report("hash_columns", name, reason.to_owned(), &mend);
        }
        if excluded(name) {
            let reason = "the column is both hashed and left out".to_owned();
            let mend = format!("take {name} out of exclude_columns or out of hash_columns");
            report("hash_columns", name, reason, &mend);
        }
        if options
            .lake_types
            .get(name)
            .is_some_and(|t| *t != LakeType::Utf8)
        {
            let reason = "a hash is a text and can have no other lake type".to_owned();
            let mend = format!("take {name} out of `as`");
            report("as", name, reason, &mend);
        }
    }
    for (at, name) in key.iter().enumerate() {
        if columns.contains(name) && excluded(name) {
            let reason = "a key column is left out of the lake".to_owned();
            let mend = format!("take {name} out of exclude_columns, or name another key");
            report("key", name, reason, &mend);
        }
        if key.iter().take(at).any(|k| k == name) {
            let reason = "the key names a column twice".to_owned();
            report("key", name, reason, "name each key column once");
        }
    }
    found
}

/// Why a table's filter cannot be applied to its columns of these types, if it cannot.
/// Columns that are not there are [`problems`]' matter.
pub fn filter_problem(schema: &TableSchema, options: &TableOptions) -> Option<Finding> {
    let filter = options.filter.as_ref()?;
    let there = |name: &String| schema.columns.iter().any(|c| &c.name == name);
    if !filter.columns().iter().all(there) {
        return None;
    }
    let why = filter.bind(schema).err()?;
    let mend = format!("in the config, the override of {}: filter", schema.table);
    Some(
        Finding::new(Severity::Error, "filter", why)
            .subject(&schema.table)
            .mend(mend),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{FilterSyntax, parse};
    use caudal_model::schema::ColumnSpec;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    fn told(options: &TableOptions) -> Vec<String> {
        let table = TableName::new("s", "t");
        let columns = names(&["id", "Email", "region"]);
        let found = problems(&table, &columns, &names(&["id"]), options);
        assert!(found.iter().all(|f| f.severity == Severity::Error));
        assert!(found.iter().all(|f| f.mend.is_some()));
        let line = |f: Finding| format!("{} {}", f.check, f.subject.unwrap_or_default());
        found.into_iter().map(line).collect()
    }

    #[test]
    fn names_of_no_column_are_found_in_every_setting() {
        let options = TableOptions {
            exclude_columns: names(&["ssn"]),
            hash_columns: names(&["email", "Email"]),
            lake_types: [("amount".to_owned(), LakeType::Utf8)].into(),
            filter: Some(parse("country = 'x'", FilterSyntax::Standard).unwrap()),
            key: Some(names(&["no"])),
        };
        let expected = [
            "exclude_columns s.t.ssn",
            "hash_columns s.t.email",
            "as s.t.amount",
            "filter s.t.country",
            "key s.t.no",
        ];
        assert_eq!(told(&options), expected);
        assert_eq!(told(&TableOptions::default()), [""; 0]);
    }

    #[test]
    fn contradictions_are_found() {
        let options = TableOptions {
            exclude_columns: names(&["region", "Email"]),
            hash_columns: names(&["id", "Email"]),
            lake_types: [("Email".to_owned(), LakeType::Int64)].into(),
            filter: Some(parse("region = 'x'", FilterSyntax::Standard).unwrap()),
            key: None,
        };
        let expected = [
            "filter s.t.region",
            "hash_columns s.t.id",
            "hash_columns s.t.Email",
            "as s.t.Email",
        ];
        assert_eq!(told(&options), expected);
    }

    #[test]
    fn a_filter_that_its_columns_types_do_not_allow_is_found() {
        let id = ColumnSpec::new("id", "int4", LakeType::Int32);
        let schema = TableSchema::first(TableName::new("s", "t"), 1, vec![id], vec![]);
        let with = |text| TableOptions {
            filter: Some(parse(text, FilterSyntax::Standard).unwrap()),
            ..TableOptions::default()
        };
        assert!(filter_problem(&schema, &with("id > 1")).is_none());
        assert!(filter_problem(&schema, &with("id = 'x'")).is_some());
        assert!(filter_problem(&schema, &with("gone = 'x'")).is_none());
    }
}
