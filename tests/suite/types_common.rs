//! Every common type with its boundaries: what arrives by copy and what arrives by log
//! both equal SELECT.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;
use caudal_tests::databases::Kind;

on_every_source!(copy_and_log_equal_select);

/// A column: its type, and the literals that it is tried with. NULL is always among them.
struct Column(&'static str, &'static [&'static str]);

const POSTGRES: &[Column] = &[
    Column("boolean", &["true", "false"]),
    Column("smallint", &["-32768", "32767", "0"]),
    Column("integer", &["-2147483648", "2147483647", "0"]),
    Column(
        "bigint",
        &["-9223372036854775808", "9223372036854775807", "0"],
    ),
    Column("oid", &["0", "4294967295"]),
    Column(
        "real",
        &[
            "'NaN'",
            "'-Infinity'",
            "'-0'",
            "3.4028235e38",
            "1e-45",
            "0.1",
            "16777217",
        ],
    ),
    Column(
        "double precision",
        &[
            "'NaN'",
            "'Infinity'",
            "'-0'",
            "1.7976931348623157e308",
            "5e-324",
            "0.1",
        ],
    ),
    Column(
        "numeric(38,10)",
        &[
            "9999999999999999999999999999.9999999999",
            "-0.0000000001",
            "0",
            "1.5",
        ],
    ),
    Column("numeric(5,0)", &["-99999", "99999", "0"]),
    Column(
        "numeric(18,18)",
        &["0.999999999999999999", "-0.000000000000000001"],
    ),
    Column(
        "numeric",
        &[
            "1.10",
            "1e30",
            "'NaN'",
            "-123456789012345678901234567890123456789.000100",
        ],
    ),
    Column(
        "numeric(50,5)",
        &["123456789012345678901234567890123456789012345.12345"],
    ),
    Column(
        "money",
        &["-92233720368547758.08", "92233720368547758.07", "0.01"],
    ),
    Column(
        "text",
        &[
            "''",
            "'NULL'",
            "E'a\\tb\\nc\\\\d\\r\"e\"'",
            "'ünïcödé 漢字 🦀'",
            "repeat('long', 3000)",
        ],
    ),
    Column("varchar(10)", &["''", "'0123456789'", "'trail   '"]),
    Column("char(6)", &["'ab'", "''", "'abcdef'"]),
    Column("name", &["'pg_class'"]),
    Column(
        "bytea",
        &["''", "'\\x00ff5c27'", "decode(repeat('00ff', 3000), 'hex')"],
    ),
    Column(
        "uuid",
        &[
            "'00000000-0000-0000-0000-000000000000'",
            "'FFFFFFFF-ffff-ffff-ffff-ffffffffffff'",
        ],
    ),
    Column(
        "date",
        &[
            "'infinity'",
            "'-infinity'",
            "'0001-01-01'",
            "'4713-01-01 BC'",
            "'9999-12-31'",
            "'1970-01-01'",
            "'2024-02-29'",
        ],
    ),
    Column("time", &["'00:00:00'", "'23:59:59.999999'", "'24:00:00'"]),
    Column("time(3)", &["'12:34:56.789'"]),
    Column(
        "timestamp",
        &[
            "'infinity'",
            "'-infinity'",
            "'0001-01-01 00:00:00'",
            "'4713-01-01 00:00:00 BC'",
            "'9999-12-31 23:59:59.999999'",
            "'1969-12-31 23:59:59.999999'",
            "'294246-12-31 23:59:59.999999'",
        ],
    ),
    Column(
        "timestamptz",
        &[
            "'infinity'",
            "'2024-03-31 02:30:00+02'",
            "'1900-01-01 00:00:00+00'",
            "'9999-12-31 23:59:59.999999-12'",
        ],
    ),
    Column("timetz", &["'12:34:56.789+05:30'", "'00:00:00-15:59'"]),
    Column(
        "interval",
        &["'1 year 2 mons -3 days 04:05:06.789'", "'-1 second'", "'0'"],
    ),
    Column(
        "json",
        &[
            "'{\"a\" : [1, 2.50, null], \"b\":\"x\\u00e9\"}'",
            "'null'",
            "'\"\"'",
        ],
    ),
    Column(
        "jsonb",
        &["'{\"b\": 1, \"a\": {\"deep\": [1.50, true]}}'", "'[]'"],
    ),
    Column("inet", &["'192.168.0.1/24'", "'::1'"]),
    Column("cidr", &["'10.0.0.0/8'"]),
    Column("macaddr", &["'08:00:2b:01:02:03'"]),
    Column("bit(5)", &["B'10101'"]),
    Column("varbit", &["B''", "B'1'"]),
    Column("int4range", &["'[1,10)'", "'empty'"]),
    Column("pg_lsn", &["'16/B374D848'"]),
    Column("mood", &["'sad'", "'ok'", "'it''s'"]),
    Column("positive", &["1", "2147483647"]),
];

/// MySQL's and MariaDB's common ones.
const MYSQL: &[Column] = &[
    Column("tinyint", &["-128", "127", "0"]),
    Column("tinyint(1)", &["-128", "1", "0"]),
    Column("tinyint unsigned", &["0", "255"]),
    Column("smallint", &["-32768", "32767"]),
    Column("smallint unsigned", &["0", "65535"]),
    Column("mediumint", &["-8388608", "8388607"]),
    Column("mediumint unsigned", &["0", "16777215"]),
    Column("int", &["-2147483648", "2147483647"]),
    Column("int unsigned", &["0", "4294967295"]),
    Column("bigint", &["-9223372036854775808", "9223372036854775807"]),
    Column(
        "bigint unsigned",
        &["0", "18446744073709551615", "9223372036854775808"],
    ),
    Column(
        "decimal(38,10)",
        &[
            "9999999999999999999999999999.9999999999",
            "-0.0000000001",
            "1.5",
        ],
    ),
    Column("decimal(5,0)", &["-99999", "99999", "0"]),
    Column(
        "decimal(18,18)",
        &["0.999999999999999999", "-0.000000000000000001"],
    ),
    Column(
        "decimal(65,30)",
        &[
            "12345678901234567890123456789012345.123456789012345678901234567890",
            "-1",
        ],
    ),
    Column(
        "float",
        &["3.4028234e38", "1.5e-38", "0.1", "-0.0e0", "16777216"],
    ),
    Column(
        "double",
        &["1.7976931348623157e308", "5e-324", "0.1", "-0.0e0"],
    ),
    Column("bit(1)", &["b'1'", "b'0'"]),
    Column("bit(12)", &["b'101010101010'", "b'1'"]),
    Column(
        "bit(64)",
        &["b'1111111111111111111111111111111111111111111111111111111111111111'"],
    ),
    Column("char(6)", &["'ab'", "''", "'abcdef'"]),
    Column(
        "varchar(300)",
        &[
            "''",
            "'NULL'",
            "'ünïcödé 漢字 🦀'",
            "'trail   '",
            "'a\\tb\\nc\\\\d\\r\"e\"'",
        ],
    ),
    Column("varchar(20) character set latin1", &["'äöü€'"]),
    Column("tinytext", &["''", "'tiny'"]),
    Column("longtext", &["repeat('long', 30000)", "''"]),
    Column("binary(4)", &["x'00'", "x'ff00ff00'", "x'61000000'", "''"]),
    Column("varbinary(20)", &["''", "x'00ff5c27'"]),
    Column("blob", &["''", "x'00ff5c270a0d'"]),
    Column("longblob", &["repeat(x'00ff', 3000)"]),
    Column(
        "date",
        &[
            "'1000-01-01'",
            "'9999-12-31'",
            "'1970-01-01'",
            "'2024-02-29'",
        ],
    ),
    Column(
        "datetime",
        &["'1000-01-01 00:00:00'", "'9999-12-31 23:59:59'"],
    ),
    Column("datetime(3)", &["'1969-12-31 23:59:59.999'"]),
    Column(
        "datetime(6)",
        &[
            "'1000-01-01 00:00:00.000001'",
            "'9999-12-31 23:59:59.999999'",
        ],
    ),
    Column(
        "timestamp null",
        &["'1970-01-02 00:00:01'", "'2038-01-18 03:14:07'"],
    ),
    Column("timestamp(6) null", &["'2024-03-31 02:30:00.123456'"]),
    Column(
        "time",
        &["'-838:59:59'", "'838:59:59'", "'00:00:00'", "'-00:00:01'"],
    ),
    Column(
        "time(6)",
        &[
            "'-838:59:58.999999'",
            "'00:00:00.000001'",
            "'-00:00:00.000001'",
        ],
    ),
    Column("year", &["1901", "2155", "0"]),
    Column("enum('sad','ok','it''s')", &["'sad'", "'it''s'", "2"]),
    Column("set('a','b','c')", &["''", "'a,c'", "'a,b,c'"]),
    Column(
        "json",
        &[
            "'{\"b\": 1, \"a\": {\"deep\": [1.50, true, null]}}'",
            "'[]'",
            "'\"x\\\\u00e9\"'",
        ],
    ),
];

async fn copy_and_log_equal_select(t: &Trial) -> Result<()> {
    let columns = if t.kind() == Kind::Postgres {
        POSTGRES
    } else {
        MYSQL
    };
    if t.kind() == Kind::Postgres {
        t.source
            .exec(
                "create type mood as enum ('sad', 'ok', 'it''s');
                 create domain positive as integer check (value > 0)",
            )
            .await?;
    }
    let definitions: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(i, c)| format!("c{i} {}", c.0))
        .collect();
    let definitions = definitions.join(", ");
    for table in ["copied", "logged"] {
        t.source
            .exec(&format!(
                "create table {table} (id {{int4}} primary key, {definitions})"
            ))
            .await?;
    }
    // As many rows as the longest list, then one of NULLs; shorter lists begin again.
    let rows = columns.iter().map(|c| c.1.len()).max().unwrap_or_default();
    let row = |i: usize| {
        let cells: Vec<&str> = columns
            .iter()
            .map(|c| if i < rows { c.1[i % c.1.len()] } else { "null" })
            .collect();
        format!("({i}, {})", cells.join(", "))
    };
    let insert = |table: &str| {
        let all: Vec<String> = (0..=rows).map(row).collect();
        format!("insert into {table} values {}", all.join(", "))
    };
    t.source.exec(&insert("copied")).await?;
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    t.source.exec(&insert("logged")).await?;
    // Every value once more as the new row of an update, and of one to NULL and back.
    let set: Vec<String> = (0..columns.len()).map(|c| format!("c{c} = null")).collect();
    t.source
        .exec(&format!(
            "update copied set {} where id % 2 = 0; delete from copied where id % 4 = 1",
            set.join(", ")
        ))
        .await?;
    agent.run_until_caught_up().await?;
    let report = t.expect_equal(&["copied", "logged"]).await?;
    assert_eq!(report.count(&t.source.table("logged"), "r"), 0);
    assert_eq!(
        report.count(&t.source.table("copied"), "r"),
        rows as u64 + 1
    );
    Ok(())
}
