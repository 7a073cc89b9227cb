//! What differs between the databases' SQL, so that a behaviour is written once.

use crate::databases::Kind;

/// Replaces `{name}` in SQL by the database's own word:
///
/// | placeholder | PostgreSQL | MySQL, MariaDB |
/// |---|---|---|
/// | `{int2}` `{int4}` `{int8}` | smallint, integer, bigint | smallint, int, bigint |
/// | `{text}` `{bytes}` | text, bytea | longtext, longblob |
/// | `{double}` `{decimal}` | double precision, numeric(18,4) | double, decimal(18,4) |
/// | `{timestamp}` `{timestamptz}` | timestamp, timestamptz | datetime(6), timestamp(6) |
/// | `{now}` | clock_timestamp() | now(6) |
/// | `{json}` | jsonb | json |
///
/// Anything else in braces stays as it is.
pub fn translate(kind: Kind, sql: &str) -> String {
    let words: [(&str, &str, &str); 11] = [
        ("{int2}", "smallint", "smallint"),
        ("{int4}", "integer", "int"),
        ("{int8}", "bigint", "bigint"),
        ("{text}", "text", "longtext"),
        ("{bytes}", "bytea", "longblob"),
        ("{double}", "double precision", "double"),
        ("{decimal}", "numeric(18,4)", "decimal(18,4)"),
        ("{timestamp}", "timestamp", "datetime(6)"),
        ("{timestamptz}", "timestamptz", "timestamp(6) null"),
        ("{now}", "clock_timestamp()", "now(6)"),
        ("{json}", "jsonb", "json"),
    ];
    let mut text = sql.to_owned();
    for (name, postgres, mysql) in words {
        text = text.replace(
            name,
            if kind == Kind::Postgres {
                postgres
            } else {
                mysql
            },
        );
    }
    text
}

/// An insert that replaces the row of the same key: `values` is what follows VALUES,
/// `columns` are all columns, the key's first.
pub fn upsert(kind: Kind, table: &str, key: &str, columns: &[&str], values: &str) -> String {
    let list = columns.join(", ");
    let rest = columns.iter().filter(|c| **c != key);
    match kind {
        Kind::Postgres => {
            let set: Vec<String> = rest.map(|c| format!("{c} = excluded.{c}")).collect();
            format!(
                "insert into {table} ({list}) values {values} on conflict ({key}) do update set {}",
                set.join(", ")
            )
        }
        Kind::Mysql | Kind::Mariadb => {
            let set: Vec<String> = rest.map(|c| format!("{c} = values({c})")).collect();
            format!(
                "insert into {table} ({list}) values {values} on duplicate key update {}",
                set.join(", ")
            )
        }
    }
}

/// A binary literal of these bytes in hex.
pub fn bytes(kind: Kind, hex: &str) -> String {
    match kind {
        Kind::Postgres => format!("'\\x{hex}'::bytea"),
        Kind::Mysql | Kind::Mariadb => format!("x'{hex}'"),
    }
}

/// Quotes a name.
pub fn name(kind: Kind, name: &str) -> String {
    match kind {
        Kind::Postgres => format!("\"{}\"", name.replace('"', "\"\"")),
        Kind::Mysql | Kind::Mariadb => format!("`{}`", name.replace('`', "``")),
    }
}

/// An expression that prints a column in the oracle's canonical text, by the column's
/// type at the source:
///
/// booleans `true`/`false`; integers and decimals plainly; floats as the shortest text
/// of the double; binary in lower-case hex; dates as days and times and timestamps as
/// microseconds since 1970-01-01 (UTC) or midnight; everything else as the text that
/// the lake holds. `data_type` is `format_type`'s text in PostgreSQL, `column_type` in MySQL.
pub fn canonical(kind: Kind, column: &str, data_type: &str) -> String {
    let c = name(kind, column);
    let t = data_type.to_ascii_lowercase();
    match kind {
        Kind::Postgres => canonical_postgres(&c, &t),
        Kind::Mysql | Kind::Mariadb => canonical_mysql(&c, &t),
    }
}

fn canonical_postgres(c: &str, t: &str) -> String {
    let micros = |max: i64| {
        format!(
            "case when {c} = 'infinity' then '{max}' when {c} = '-infinity' then '-{max}' \
             else trunc(extract(epoch from {c}) * 1000000)::text end"
        )
    };
    if t.starts_with("timestamp") {
        return micros(i64::MAX);
    }
    match t {
        "boolean" | "smallint" | "integer" | "bigint" | "oid" => format!("{c}::text"),
        "real" | "double precision" => format!("{c}::float8::text"),
        "money" => format!("{c}::numeric(19,2)::text"),
        "bytea" => format!("encode({c}, 'hex')"),
        "date" => format!(
            "case when {c} = 'infinity' then '{0}' when {c} = '-infinity' then '-{0}' \
             else ({c} - date '1970-01-01')::text end",
            i32::MAX
        ),
        "time without time zone" => {
            format!("trunc(extract(epoch from {c}) * 1000000)::text")
        }
        _ if t.starts_with("time(") && t.ends_with("without time zone") => {
            format!("trunc(extract(epoch from {c}) * 1000000)::text")
        }
        // format() calls the type's output function: a cast would strip a char(n)'s padding.
        _ => format!("case when {c} is not null then format('%s', {c}) end"),
    }
}

fn canonical_mysql(c: &str, t: &str) -> String {
    let base: String = t.chars().take_while(char::is_ascii_alphabetic).collect();
    match base.as_str() {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" => {
            format!("cast({c} as char)")
        }
        // The year 0 prints as 0000.
        "year" => format!("cast({c} + 0 as char)"),
        // A float prints six digits only; the product is a double, and keeps a zero's sign.
        "float" => format!("cast({c} * 1e0 as char)"),
        "double" => format!("cast({c} as char)"),
        "bit" => {
            let bits: u32 = t
                .trim_start_matches("bit(")
                .trim_end_matches(')')
                .parse()
                .unwrap_or(1);
            if bits == 1 {
                format!("if({c} is null, null, if({c} + 0, 'true', 'false'))")
            } else {
                format!("lpad(lower(hex({c} + 0)), {}, '0')", bits.div_ceil(8) * 2)
            }
        }
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
            format!("lower(hex({c}))")
        }
        "date" => format!("cast(to_days({c}) - to_days('1970-01-01') as char)"),
        "datetime" | "timestamp" => {
            format!("cast(timestampdiff(microsecond, '1970-01-01 00:00:00.000000', {c}) as char)")
        }
        _ => format!("cast({c} as char character set utf8mb4)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_become_the_databases_own_words() {
        let sql = "create table t (a {int8}, b {text}, c {other})";
        assert_eq!(
            translate(Kind::Mariadb, sql),
            "create table t (a bigint, b longtext, c {other})"
        );
        assert!(
            upsert(Kind::Postgres, "t", "a", &["a", "b"], "(1, 2)")
                .ends_with("on conflict (a) do update set b = excluded.b")
        );
    }
}
