//! Random values of PostgreSQL's types, with the live server as the oracle: each arrives as
//! what the server itself says of it, through the log and through a copy.
//!
//! The values follow from a seed, which is printed; `CAUDAL_SEED` names another one.

use crate::database::{Place, on, run_each};
use crate::rows::{copy, drain, start};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;

on!(postgres: random_values_arrive_as_the_server_has_them);

/// Values of each type.
const CASES: usize = 150;

/// A type, how a value is written in SQL, and what the server must say of it.
struct Kind {
    name: &'static str,
    value: BoxedStrategy<String>,
    oracle: &'static str,
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text() -> impl Strategy<Value = String> {
    let any = any::<String>().prop_map(|s| s.replace('\0', ""));
    let special = "[ ,{}\"\\\\'NUL\t\né日𝄞]{0,12}".prop_map(|s| s);
    prop_oneof![any, special, Just("NULL".to_owned()), Just(String::new())]
}

fn list(item: impl Strategy<Value = String> + 'static, of: &'static str) -> BoxedStrategy<String> {
    let item = prop_oneof![4 => item, 1 => Just("NULL".to_owned())];
    let items = prop::collection::vec(item, 0..6);
    items
        .prop_map(move |v| format!("ARRAY[{}]::{of}", v.join(", ")))
        .boxed()
}

fn digits(most: usize) -> impl Strategy<Value = String> {
    (any::<bool>(), prop::collection::vec(0u8..10, 1..=most)).prop_map(|(negative, d)| {
        let digits: String = d.iter().map(u8::to_string).collect();
        format!("{}{digits}", if negative { "-" } else { "" })
    })
}

fn kinds() -> Vec<Kind> {
    let kind = |name, value: BoxedStrategy<String>, oracle| Kind {
        name,
        value,
        oracle,
    };
    let day = 86_400_000_000i64;
    // Days from 4713 BC to what the lake's microseconds can count.
    let moment = move |of: &'static str| {
        let parts = (-2_451_507i32..106_740_000, 0..day);
        let random = parts.prop_map(move |(d, us)| {
            format!(
                "((date '2000-01-01' + {d})::timestamp + {us} * interval '1 microsecond')::{of}"
            )
        });
        let infinite = prop_oneof![Just("infinity"), Just("-infinity")];
        let infinite = infinite.prop_map(move |i| format!("'{i}'::{of}"));
        prop_oneof![9 => random, 1 => infinite].boxed()
    };
    let micros = "CASE v WHEN 'infinity' THEN '9223372036854775807' WHEN '-infinity' THEN '-9223372036854775807' \
                  ELSE (extract(epoch FROM v) * 1000000)::bigint::text END";
    let int = || any::<i32>().prop_map(|v| v.to_string());
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    let hex = |v: Vec<u8>| v.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let float = |v: f64| match v {
        v if v.is_nan() => "'NaN'".to_owned(),
        v if v.is_infinite() => format!("'{}Infinity'", if v < 0.0 { "-" } else { "" }),
        v => format!("'{v:e}'"),
    };
    vec![
        kind("boolean", any::<bool>().prop_map(|v| v.to_string()).boxed(), "v::text"),
        kind("smallint", any::<i16>().prop_map(|v| format!("'{v}'")).boxed(), "v::text"),
        kind("integer", int().prop_map(|v| format!("'{v}'")).boxed(), "v::text"),
        kind("bigint", any::<i64>().prop_map(|v| format!("'{v}'")).boxed(), "v::text"),
        kind("real", any::<f32>().prop_map(move |v| float(v.into())).boxed(), "v::text"),
        kind("double precision", any::<f64>().prop_map(float).boxed(), "v::text"),
        kind("numeric(38,10)", (digits(28), 0u64..10_000_000_000).prop_map(|(d, f)| format!("{d}.{f:010}")).boxed(), "v::text"),
        kind("numeric(5,0)", digits(5).boxed(), "v::text"),
        kind(
            "numeric",
            prop_oneof![(digits(60), digits(30)).prop_map(|(d, f)| format!("{d}.{}", f.trim_start_matches('-'))), Just("'NaN'".to_owned()), Just("'-Infinity'".to_owned())].boxed(),
            "v::text",
        ),
        kind("money", (-900_000_000_000i64..900_000_000_000, 0..100).prop_map(|(w, c)| format!("'{w}.{c:02}'::numeric::money")).boxed(), "v::numeric::text"),
        kind("text", text().prop_map(|t| quote(&t)).boxed(), "v"),
        kind("character(9)", "[a-z é]{0,9}".prop_map(|t: String| quote(&t)).boxed(), "CASE WHEN v IS NOT NULL THEN format('%s', v) END"),
        kind("bytea", bytes.prop_map(move |v| format!("'\\x{}'", hex(v))).boxed(), "encode(v, 'hex')"),
        kind("uuid", any::<u128>().prop_map(|v| format!("'{v:032x}'")).boxed(), "v::text"),
        kind(
            "date",
            prop_oneof![9 => (-2_451_507i32..2_145_031_948).prop_map(|d| format!("date '2000-01-01' + {d}")), 1 => Just("'infinity'".to_owned())].boxed(),
            "CASE v WHEN 'infinity' THEN '2147483647' ELSE (v - date '1970-01-01')::text END",
        ),
        kind("time", (0..=day).prop_map(move |us| if us == day { "'24:00:00'".to_owned() } else { format!("time '00:00' + {us} * interval '1 microsecond'") }).boxed(), "(extract(epoch FROM v) * 1000000)::bigint::text"),
        kind("timestamp", moment("timestamp"), micros),
        kind("timestamptz", moment("timestamptz"), micros),
        kind("timetz", (0..day, -15i32..15).prop_map(|(us, z)| format!("((time '00:00' + {us} * interval '1 microsecond')::text || '{z:+03}')::timetz")).boxed(), "v::text"),
        kind("interval", (-9999..9999, -9999..9999, -(1i64 << 40)..1 << 40).prop_map(|(m, d, us)| format!("make_interval(months => {m}, days => {d}) + {us} * interval '1 microsecond'")).boxed(), "v::text"),
        kind("jsonb", (text(), int()).prop_map(|(t, n)| format!("jsonb_build_object({}, {n}, 'b', ARRAY[{}])", quote(&t), quote(&t))).boxed(), "v::text"),
        kind("json", (text(), int()).prop_map(|(t, n)| format!("json_build_object({}, {n})", quote(&("k".to_owned() + &t)))).boxed(), "v::text"),
        kind("bit varying", "[01]{0,20}".prop_map(|b: String| format!("B'{b}'")).boxed(), "v::text"),
        kind("inet", (any::<u32>(), 0..33).prop_map(|(a, m)| format!("('0.0.0.0/{m}'::inet + {a})")).boxed(), "CASE WHEN v IS NOT NULL THEN format('%s', v) END"),
        kind("int8range", (any::<i32>(), 0..1000i32).prop_map(|(a, n)| format!("int8range({a}, {a}::bigint + {n})")).boxed(), "v::text"),
        kind("integer[]", list(int().prop_map(|v| format!("'{v}'")), "integer[]"), "'[' || array_to_string(v, ', ', '') || ']'"),
        kind("numeric(12,3)[]", list(digits(9), "numeric(12,3)[]"), "'[' || array_to_string(v, ', ', '') || ']'"),
        kind("text[]", list(text().prop_map(|t| quote(&t)), "text[]"), "'[' || array_to_string(v, ', ', '') || ']'"),
        kind("bytea[]", list(prop::collection::vec(any::<u8>(), 0..9).prop_map(move |v| format!("'\\x{}'", hex(v))), "bytea[]"), "CASE WHEN v IS NOT NULL THEN (SELECT '[' || coalesce(string_agg(coalesce(encode(b, 'hex'), ''), ', ' ORDER BY n), '') || ']' FROM unnest(v) WITH ORDINALITY AS u(b, n)) END"),
        kind("interval[]", list((-9999..9999).prop_map(|d| format!("make_interval(days => {d})")), "interval[]"), "'[' || array_to_string(v, ', ', '') || ']'"),
    ]
}

/// By id, what is behind `v=`; null if nothing is.
fn values(rows: &[String], operation: &str) -> BTreeMap<i32, Option<String>> {
    let cell = |row: &String| {
        let (_, rest) = row.split_once(operation).unwrap();
        let (id, value) = match rest.split_once(" v=") {
            Some((id, value)) => (id, Some(value.to_owned())),
            None => (rest, None),
        };
        (id.parse().unwrap(), value)
    };
    rows.iter().map(cell).collect()
}

/// Floats are compared by value: the two print them in other ways.
fn same(kind: &str, expected: &Option<String>, found: &Option<String>) -> bool {
    let (Some(a), Some(b)) = (expected, found) else {
        return expected == found;
    };
    let parsed = |t: &str| t.parse::<f64>().unwrap().to_bits();
    match kind {
        "real" => {
            a.parse::<f32>().unwrap().to_bits() == b.parse::<f32>().unwrap().to_bits()
                || (a, b.as_str()) == (&"NaN".to_owned(), "NaN")
        }
        "double precision" => parsed(a) == parsed(b) || a == b,
        _ => a == b,
    }
}

#[allow(clippy::print_stdout)]
async fn random_values_arrive_as_the_server_has_them(place: Place) {
    let seed: u64 = std::env::var("CAUDAL_SEED")
        .ok()
        .map_or(20_240_229, |s| s.parse().unwrap());
    println!("CAUDAL_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let kinds = kinds();
    let tables: Vec<String> = kinds
        .iter()
        .enumerate()
        .map(|(n, k)| format!("CREATE TABLE p{n} (id int PRIMARY KEY, v {})", k.name))
        .collect();
    let db = place
        .database(&tables.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let options = db.options();
    let source = db.open(options);
    let (tracked, mut tail) = start(&*source).await;
    let mut session = db.session().await;
    for (n, kind) in kinds.iter().enumerate() {
        let row = |id: usize, runner: &mut TestRunner| {
            let value = kind.value.new_tree(runner).unwrap().current();
            format!("({id}, {value})")
        };
        let mut rows: Vec<String> = (1..=CASES).map(|id| row(id, &mut runner)).collect();
        rows.push("(0, NULL)".to_owned());
        let insert = format!("INSERT INTO p{n} VALUES {}", rows.join(", "));
        run_each(&mut session, &[&insert]).await;
    }
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(log.notable().is_empty(), "{:?}", log.notable());
    run_each(
        &mut session,
        &[
            "SET datestyle = ISO",
            "SET intervalstyle = iso_8601",
            "SET timezone = UTC",
            "SET extra_float_digits = 1",
            "SET bytea_output = hex",
        ],
    )
    .await;
    for (n, kind) in kinds.iter().enumerate() {
        let sql = format!("SELECT id::text, {} FROM p{n}", kind.oracle);
        let said = session.rows(&sql).await.unwrap();
        let said: BTreeMap<i32, Option<String>> = said
            .into_iter()
            .map(|row| (row[0].as_deref().unwrap().parse().unwrap(), row[1].clone()))
            .collect();
        let name = format!("p{n}:c id=");
        let logged: Vec<String> = log
            .rows
            .iter()
            .filter(|r| r.starts_with(&name))
            .cloned()
            .collect();
        let schema = &tracked
            .iter()
            .find(|t| t.schema.table == db.table(&format!("p{n}")))
            .unwrap()
            .schema;
        let (copied, _) = copy(&*source, schema, &log.reached, 1 << 20).await;
        for (way, values) in [
            ("log", values(&logged, ":c id=")),
            ("copy", values(&copied, ":r id=")),
        ] {
            assert_eq!(values.len(), said.len(), "{} by {way}", kind.name);
            for (id, value) in &values {
                assert!(
                    same(kind.name, &said[id], value),
                    "{} by {way}, id {id}: {:?} became {value:?}",
                    kind.name,
                    said[id]
                );
            }
        }
    }
}
