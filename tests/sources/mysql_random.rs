//! Random values of every type, through the log and through a copy, against what the server
//! shows of them. The seed is printed, and `CAUDAL_SEED` (32 hexadecimal digits) sets it.

use crate::database::{Database, Place, on, run_each};
use crate::rows::{copy_in, drain, expect_same, start};
use caudal_model::LakeType;
use caudal_sources::TableOptions;
use caudal_tests::databases::Kind;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

on!(mysql and mariadb: random_values_are_the_server_s);

/// Rows of a run.
const ROWS: usize = 300;

/// A column, and literals of its values.
type Column = (&'static str, BoxedStrategy<String>);

fn hex_text(text: &str) -> String {
    if text.is_empty() {
        return "''".to_owned();
    }
    format!("_utf8mb4 x'{}'", hex::encode(text))
}

fn int(low: i128, high: i128) -> BoxedStrategy<String> {
    prop_oneof![
        Just(low.to_string()),
        Just(high.to_string()),
        Just("0".to_owned()),
        (low..=high).prop_map(|v| v.to_string()),
    ]
    .boxed()
}

fn text(pattern: &'static str) -> BoxedStrategy<String> {
    pattern.prop_map(|t| hex_text(&t)).boxed()
}

fn decimal(digits: usize, scale: usize) -> BoxedStrategy<String> {
    let whole = proptest::collection::vec(0u8..10, 0..=digits - scale);
    let part = proptest::collection::vec(0u8..10, 0..=scale);
    (any::<bool>(), whole, part)
        .prop_map(|(negative, whole, part)| {
            let of = |d: Vec<u8>| d.iter().map(u8::to_string).collect::<String>();
            format!(
                "{}0{}.{}0",
                if negative { "-" } else { "" },
                of(whole),
                of(part)
            )
        })
        .boxed()
}

fn date() -> BoxedStrategy<String> {
    // Zero and impossible dates too.
    (0u32..10000, 0u32..13, 0u32..32)
        .prop_map(|(y, m, d)| format!("{y:04}-{m:02}-{d:02}"))
        .boxed()
}

fn clock() -> BoxedStrategy<String> {
    (0u32..24, 0u32..60, 0u32..60, 0u32..1_000_000)
        .prop_map(|(h, m, s, us)| format!("{h:02}:{m:02}:{s:02}.{us:06}"))
        .boxed()
}

fn moment() -> BoxedStrategy<String> {
    (date(), clock())
        .prop_map(|(d, t)| format!("'{d} {t}'"))
        .boxed()
}

/// Not within an hour that a time zone may leave out: the session's is an offset.
fn timestamp() -> BoxedStrategy<String> {
    let zero = Just("0".to_owned());
    let seconds = (1u64..2_147_483_000, 0u32..1_000_000);
    prop_oneof![1 => zero, 9 => seconds.prop_map(|(s, us)| format!("from_unixtime({s}.{us:06})"))]
        .boxed()
}

fn time() -> BoxedStrategy<String> {
    (
        any::<bool>(),
        0u32..838,
        0u32..60,
        0u32..60,
        0u32..1_000_000,
    )
        .prop_map(|(n, h, m, s, us)| {
            format!("'{}{h:02}:{m:02}:{s:02}.{us:06}'", if n { "-" } else { "" })
        })
        .boxed()
}

fn bytes(len: usize) -> BoxedStrategy<String> {
    proptest::collection::vec(any::<u8>(), 0..=len)
        .prop_map(|b| {
            if b.is_empty() {
                "''".into()
            } else {
                format!("x'{}'", hex::encode(b))
            }
        })
        .boxed()
}

fn json() -> BoxedStrategy<String> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
        "[\\x00-\\x1f\"\\\\]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map("\\PC{0,4}", inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
    .prop_map(|v| hex_text(&v.to_string()))
    .boxed()
}

fn geometry() -> BoxedStrategy<String> {
    let x = -1000i32..1000;
    let points = proptest::collection::vec((x.clone(), x), 2..6);
    let srid = prop_oneof![Just(0u32), Just(3857)];
    (points, srid)
        .prop_map(|(points, srid)| {
            let list: Vec<String> = points.iter().map(|(x, y)| format!("{x}.5 {y}")).collect();
            format!("ST_GeomFromText('LINESTRING({})', {srid})", list.join(","))
        })
        .boxed()
}

/// Columns whose text is a string, and then those of bytes.
fn columns(kind: Kind) -> (Vec<Column>, Vec<Column>) {
    let float = prop::num::f32::NORMAL | prop::num::f32::ZERO;
    // Numbers that lie in the middle between two texts of sixteen digits are among them.
    let middle = (1u64 << 49..1 << 52).prop_map(|v| v as f64 / 4.0);
    let double = prop_oneof![prop::num::f64::NORMAL | prop::num::f64::ZERO, middle];
    let texts: Vec<Column> = vec![
        ("i1 tinyint", int(-128, 127)),
        ("u1 tinyint unsigned", int(0, 255)),
        ("i2 smallint", int(-32768, 32767)),
        ("u2 smallint unsigned", int(0, 65535)),
        ("i3 mediumint", int(-8_388_608, 8_388_607)),
        ("u3 mediumint unsigned", int(0, 16_777_215)),
        ("i4 int", int(i32::MIN.into(), i32::MAX.into())),
        ("u4 int unsigned", int(0, u32::MAX.into())),
        ("i8 bigint", int(i64::MIN.into(), i64::MAX.into())),
        ("u8 bigint unsigned", int(0, u64::MAX.into())),
        ("z int(6) zerofill", int(0, 9_999_999)),
        ("d1 decimal(9,2)", decimal(9, 2)),
        ("d2 decimal(38,19)", decimal(38, 19)),
        ("d3 decimal(65,30)", decimal(65, 30)),
        (
            "d4 decimal(20,0) unsigned zerofill",
            int(0, u64::MAX.into()),
        ),
        ("d5 decimal(18,18)", decimal(18, 18)),
        ("f float", float.prop_map(|v| format!("{v:e}")).boxed()),
        ("g double", double.prop_map(|v| format!("{v:e}")).boxed()),
        (
            "y year",
            prop_oneof![Just(0), 1901u32..2156]
                .prop_map(|v| v.to_string())
                .boxed(),
        ),
        ("c char(9)", text("\\PC{0,9}")),
        ("v varchar(60)", text("(\\PC|[\\x00-\\x1f]){0,60}")),
        ("t text", text("\\PC{0,200}")),
        (
            "l varchar(20) character set latin1",
            text("[ -~\u{a0}-\u{ff}€„“]{0,20}"),
        ),
        (
            "k varchar(20) character set koi8r",
            text("[ -~а-яА-ЯёЁ]{0,20}"),
        ),
        (
            "s varchar(20) character set sjis",
            text("[ -~ぁ-んァ-ヶ亜-熙]{0,20}"),
        ),
        ("gb varchar(20) character set gbk", text("[ -~一-龥]{0,20}")),
        ("u16 varchar(20) character set utf16", text("\\PC{0,20}")),
        ("u32 varchar(20) character set utf32", text("\\PC{0,20}")),
        ("da date", date().prop_map(|d| format!("'{d}'")).boxed()),
        ("dt0 datetime", moment()),
        ("dt6 datetime(6)", moment()),
        ("dt3 datetime(3)", moment()),
        ("ts timestamp null", timestamp()),
        ("ts4 timestamp(4) null", timestamp()),
        ("t0 time", time()),
        ("t1 time(1)", time()),
        ("t5 time(5)", time()),
        ("t6 time(6)", time()),
        ("e enum('a','ü','c,''')", int(0, 3)),
        ("st set('a','ü','c','d','e','f','g','h','i')", int(0, 511)),
        ("j json", json()),
    ];
    let mut bytes_of: Vec<Column> = vec![
        ("b1 bit(1)", int(0, 1)),
        ("b33 bit(33)", int(0, (1 << 33) - 1)),
        ("b64 bit(64)", int(0, u64::MAX.into())),
        ("bi binary(7)", bytes(7)),
        ("vb varbinary(300)", bytes(300)),
        ("bl blob", bytes(300)),
        ("ge geometry", geometry()),
    ];
    if kind == Kind::Mysql {
        let floats = proptest::collection::vec(prop::num::f32::NORMAL, 1..5);
        let vector = floats.prop_map(|f| {
            let bytes: Vec<u8> = f.iter().flat_map(|v| v.to_le_bytes()).collect();
            format!("x'{}'", hex::encode(bytes))
        });
        bytes_of.push(("ve vector(5)", vector.boxed()));
    } else {
        bytes_of.push(("tc text compressed", text("\\PC{0,300}")));
        bytes_of.push(("bc blob compressed", bytes(300)));
    }
    (texts, bytes_of)
}

#[allow(clippy::print_stderr)]
fn runner() -> TestRunner {
    let seed = match std::env::var("CAUDAL_SEED") {
        Ok(text) => hex::decode(text).expect("CAUDAL_SEED is hexadecimal"),
        Err(_) => rand::random::<[u8; 16]>().to_vec(),
    };
    eprintln!("CAUDAL_SEED={}", hex::encode(&seed));
    TestRunner::new_with_rng(
        Config::default(),
        TestRng::from_seed(RngAlgorithm::XorShift, &seed),
    )
}

fn name(column: &Column) -> &'static str {
    column.0.split(' ').next().unwrap()
}

/// Inserts random rows, several a statement.
fn inserts(runner: &mut TestRunner, columns: &[Column]) -> Vec<String> {
    let names: Vec<&str> = columns.iter().map(name).collect();
    let mut out = Vec::new();
    for first in (0..ROWS).step_by(20) {
        let row = |id: usize, runner: &mut TestRunner| {
            let mut cells = vec![(id + 1).to_string()];
            for (_, strategy) in columns {
                let null = (0u8..10).new_tree(runner).unwrap().current() == 0;
                let literal = strategy.new_tree(runner).unwrap().current();
                cells.push(if null { "NULL".to_owned() } else { literal });
            }
            format!("({})", cells.join(","))
        };
        let rows: Vec<String> = (first..first + 20).map(|id| row(id, runner)).collect();
        out.push(format!(
            "INSERT INTO t (id, {}) VALUES {}",
            names.join(","),
            rows.join(",")
        ));
    }
    out
}

async fn log_and_copy(db: &Database, own: TableOptions, inserts: &[String]) -> Vec<String> {
    let mut options = db.options();
    options.tables.insert(db.table("t"), own);
    let source = db.open(options);
    let (tables, mut tail) = start(&*source).await;
    let inserts: Vec<&str> = inserts.iter().map(String::as_str).collect();
    let mut session = db.session().await;
    run_each(
        &mut session,
        &["SET sql_mode = 'ALLOW_INVALID_DATES'", "DELETE FROM t"],
    )
    .await;
    run_each(&mut session, &inserts).await;
    let log = drain(&*source, &mut *tail, 16 << 10).await;
    assert!(log.notable().is_empty(), "{:?}", log.notable());
    let (copied, _) = copy_in(100, &*source, &tables[0].schema, &log.reached, 16 << 10).await;
    let logged: Vec<String> = log
        .rows
        .into_iter()
        .filter(|r| r.starts_with("t:c"))
        .collect();
    assert_eq!(logged.len(), ROWS);
    expect_same(&logged, &copied);
    copied
}

async fn random_values_are_the_server_s(place: Place) {
    let (texts, bytes) = columns(place.kind());
    let all: Vec<Column> = texts.iter().chain(&bytes).cloned().collect();
    let definitions: Vec<&str> = all.iter().map(|c| c.0).collect();
    let create = format!(
        "CREATE TABLE t (id int primary key, {}) CHARACTER SET utf8mb4",
        definitions.join(",")
    );
    let db = place.database(&[&create]).await;
    let mut runner = runner();
    log_and_copy(&db, TableOptions::default(), &inserts(&mut runner, &all)).await;

    // The same as text, of which the server itself is the oracle.
    let own = TableOptions {
        exclude_columns: bytes.iter().map(|c| name(c).to_owned()).collect(),
        lake_types: texts
            .iter()
            .map(|c| (name(c).to_owned(), LakeType::Utf8))
            .collect(),
        ..TableOptions::default()
    };
    let rows = log_and_copy(&db, own, &inserts(&mut runner, &all)).await;
    let mut session = db.session().await;
    run_each(&mut session, &["SET time_zone = '+00:00'"]).await;
    let names: Vec<&str> = texts.iter().map(name).collect();
    let select = format!("SELECT id, {} FROM t ORDER BY id", names.join(","));
    let shown = session.rows(&select).await.unwrap();
    for (row, cells) in rows.iter().zip(&shown) {
        let mut expected = "t:r".to_owned();
        for (name, cell) in ["id"].iter().chain(&names).zip(cells) {
            if let Some(cell) = cell {
                expected += &format!(" {name}={cell}");
                assert!(row.starts_with(&expected), "{name}={cell}\n{row}");
            }
        }
        assert_eq!(*row, expected);
    }
}
