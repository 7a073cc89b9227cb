//! Every key of the database, and nothing else that knows their bytes.
//!
//! A key is a letter, and for what belongs to a table the table's printed name, a zero
//! byte (no database allows one in a name) and, for schemas, the version in big-endian
//! order. So one prefix lists a kind, in order of table and version.

use caudal_model::TableName;

/// The format of keys and values; it changes when either does.
pub(crate) const FORMAT: u32 = 1;

/// Holds [`FORMAT`] as decimal text, whatever the format: it is read before all else.
pub(crate) const FORMAT_KEY: &[u8] = b"!format";
/// Holds the stream's name as text.
pub(crate) const STREAM_KEY: &[u8] = b"!stream";
/// Holds the checkpoint without its tables.
pub(crate) const HEAD_KEY: &[u8] = b"h";
/// Begins the keys of tables' progress.
pub(crate) const TABLES: &[u8] = b"t";
/// Begins the keys of schema versions.
pub(crate) const SCHEMAS: &[u8] = b"v";

fn of_table(prefix: &[u8], table: &TableName) -> Vec<u8> {
    let mut key = prefix.to_vec();
    key.extend_from_slice(table.to_string().as_bytes());
    key.push(0);
    key
}

/// The key of a table's progress.
pub(crate) fn table(table: &TableName) -> Vec<u8> {
    of_table(TABLES, table)
}

/// The key of a schema version.
pub(crate) fn schema(table: &TableName, version: u32) -> Vec<u8> {
    let mut key = of_table(SCHEMAS, table);
    key.extend_from_slice(&version.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_table_and_version() {
        let t = |n: &str| TableName::new("public", n);
        let mut keys = [
            schema(&t("b"), 1),
            schema(&t("a"), 256),
            table(&t("a")),
            schema(&t("a"), 2),
            schema(&t("a1"), 1),
        ];
        keys.sort();
        let expected = [
            table(&t("a")),
            schema(&t("a"), 2),
            schema(&t("a"), 256),
            schema(&t("a1"), 1),
            schema(&t("b"), 1),
        ];
        assert_eq!(keys, expected);
        assert_ne!(
            table(&TableName::new("a.b", "c")),
            table(&TableName::new("a", "b.c"))
        );
    }
}
