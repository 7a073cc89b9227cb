//! Row events as servers wrote them, decoded without a server: `tests/goldens/<kind>/<group>.txt`.
//!
//! A file has the table's schema, the charsets of the log's collations, the events' bodies in
//! hexadecimal, and the rows that must come out. [`capture`] writes them anew from the live
//! servers, after a look at what differs:
//!
//! ```sh
//! CAUDAL_CAPTURE=1 cargo nextest run --release --workspace --test sources -E 'test(capture)'
//! ```

use crate::database::{Place, on, run_each};
use crate::rows::{drain, show, start};
use caudal_model::{ChangeBuffer, Op, TableSchema, TransactionMeta};
use caudal_sources::mysql::Flavor;
use caudal_sources::mysql::charsets::Charsets;
use caudal_sources::mysql::decode::events::{self, HEADER, changes_rows, kind};
use caudal_sources::mysql::decode::rows::{self, Image, Missing, PlanOptions, TablePlan};
use caudal_sources::mysql::decode::table_map::{Collations, TableMap, table_map};
use caudal_sources::mysql::decode::values::Coerced;
use caudal_sources::mysql::schema::charsets;
use caudal_sources::mysql::wire::Connection;
use caudal_tests::databases::Kind;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A group of types: its name, the columns, and statements.
type Group = (&'static str, &'static str, &'static [&'static str]);

const BOTH: &[Group] = &[
    (
        "integers",
        "a tinyint, b tinyint unsigned, c smallint, d smallint unsigned, e mediumint, f mediumint unsigned, \
         g int, h int unsigned, i bigint, j bigint unsigned, y year",
        &[
            "INSERT INTO t VALUES (1, -128, 255, -32768, 65535, -8388608, 16777215, -2147483648, 4294967295, -9223372036854775808, 18446744073709551615, 1901)",
            "INSERT INTO t VALUES (2, null, null, null, null, null, null, null, null, null, null, null)",
            "UPDATE t SET a = 1, j = 0, y = 0",
            "DELETE FROM t WHERE id = 2",
        ],
    ),
    (
        "decimals",
        "a decimal(1,0), b decimal(9,2), c decimal(38,10), d decimal(65,30), e decimal(18,18), f float, g double",
        &[
            "INSERT INTO t VALUES (1, -9, 1234567.89, -9999999999999999999999999999.9999999999, 0.000000000000000000000000000001, -0.999999999999999999, 1.5, -2.5e300)",
            "UPDATE t SET b = -0.01, c = 0, f = -0.0",
        ],
    ),
    (
        "text",
        "a char(3), b varchar(300), c tinytext, d text, e mediumtext, f longtext, \
         g varchar(9) character set latin1, h char(90) character set utf16, i text character set utf32",
        &[
            "INSERT INTO t VALUES (1, 'a ', 'é\\n', 'ü', '日本', '😀', '', '€é', '😀', 'x日')",
            "UPDATE t SET a = null, b = repeat('é', 200), h = repeat('é', 90)",
        ],
    ),
    (
        "bytes",
        "a binary(4), b varbinary(300), c tinyblob, d blob, e mediumblob, f longblob, g bit(1), h bit(9), i bit(64), p geometry",
        &[
            "INSERT INTO t VALUES (1, 'a', x'00ff', '', x'00', x'01', x'02', b'1', b'100000001', b'1', ST_GeomFromText('POINT(1 2)', 4326))",
            "UPDATE t SET b = repeat(x'fe', 280), g = b'0', p = ST_GeomFromText('LINESTRING(0 0,1 1)')",
        ],
    ),
    (
        "moments",
        "a date, b datetime, c datetime(3), d datetime(6), e timestamp null, f timestamp(5) null, g time, h time(2), i time(3), j time(6)",
        &[
            "INSERT INTO t VALUES (1, '2024-02-29', '0001-01-01', '2024-01-01 01:02:03.004', '9999-12-31 23:59:59.999999', '2024-06-01 12:00:00', '2024-06-01 12:00:00.12345', '-838:59:59', '-00:00:01.1', '-12:34:56.789', '838:59:58.999999')",
            "UPDATE t SET a = '0000-00-00', b = '2024-00-15', e = 0, g = '0', h = '0'",
        ],
    ),
    (
        "labels",
        "a enum('x','ü','c,'''), b set('x','ü','z'), c enum('é') character set latin1, d varchar(5) character set latin1",
        &[
            "INSERT INTO t VALUES (1, 'ü', 'x,z', 'é', 'é'), (2, '', '', null, null)",
            "UPDATE t SET a = 'c,''', b = 'ü,z'",
        ],
    ),
    (
        "minimal",
        "a int default 5, b varchar(9) default 'x', c text, d int",
        &[
            "SET SESSION binlog_row_image = MINIMAL",
            "INSERT INTO t VALUES (1, 5, 'x', null, 7)",
            "UPDATE t SET c = 'y'",
            "UPDATE t SET id = 2, a = null",
            "SET SESSION binlog_row_image = NOBLOB",
            "UPDATE t SET d = 8",
            "DELETE FROM t",
        ],
    ),
];

const MYSQL: &[Group] = &[(
    "json",
    "j json, v vector(3)",
    &[
        "INSERT INTO t VALUES (1, '{\"b\": [1, 2.5, null, true, \"q\\\\\"\\\\n\"], \"a\": {\"x\": 1e20}}', TO_VECTOR('[1,2,3.5]'))",
        "UPDATE t SET j = json_array(cast('2024-01-02' as date), 1.50, x'00ff')",
        "SET SESSION binlog_row_value_options = PARTIAL_JSON",
        "UPDATE t SET j = json_set(j, '$[1]', 'a')",
    ],
)];

const MARIADB: &[Group] = &[(
    "own",
    "u uuid, a inet4, b inet6, j json, c text compressed, d varbinary(300) compressed",
    &[
        "INSERT INTO t VALUES (1, '123e4567-e89b-12d3-a456-426655440000', '10.0.0.1', '::1', '{\"a\":  1}', repeat('日', 200), 'x')",
        "UPDATE t SET u = '01890a5d-ac96-774b-bcce-b302099a8057', b = '2001:db8::ff00:42:8329', c = ''",
    ],
)];

on!(mysql and mariadb: capture);

fn groups(kind: Kind) -> impl Iterator<Item = &'static Group> {
    let own = if kind == Kind::Mysql { MYSQL } else { MARIADB };
    BOTH.iter().chain(own)
}

fn directory(kind: Kind) -> PathBuf {
    let name = if kind == Kind::Mysql {
        "mysql"
    } else {
        "mariadb"
    };
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("goldens")
        .join(name)
}

/// The events of a log file: type and body.
fn events_of(file: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut out = Vec::new();
    let mut at = 4;
    while let Some(rest) = file.get(at..)
        && let Ok((header, _)) = events::header(rest)
    {
        let event = &rest[..header.size as usize];
        let whole = events::verify(event).unwrap_or(&event[..event.len() - 4]);
        out.push((header.event_type, whole[HEADER..].to_vec()));
        at += header.size as usize;
    }
    out
}

async fn capture(place: Place) {
    // Only when it is asked for: the files are looked at before they are kept. Of MariaDB the
    // newest alone.
    if std::env::var_os("CAUDAL_CAPTURE").is_none() || !place.is_newest() {
        return;
    }
    let db = place.private_database(&[], &[]).await;
    let mut session = db.session().await;
    std::fs::create_dir_all(directory(place.kind())).unwrap();
    for (group, columns, statements) in groups(place.kind()) {
        let create =
            format!("CREATE TABLE t (id int primary key, {columns}) CHARACTER SET utf8mb4");
        let before = ["DROP TABLE IF EXISTS t", &create, "FLUSH BINARY LOGS"];
        run_each(&mut session, &before).await;
        let file = session
            .rows("SHOW BINARY LOGS")
            .await
            .unwrap()
            .pop()
            .unwrap()[0]
            .clone()
            .unwrap();
        let source = db.open(db.options());
        let (tables, mut tail) = start(&*source).await;
        run_each(&mut session, statements).await;
        let log = drain(&*source, &mut *tail, 1 << 20).await;
        assert!(log.notable().is_empty(), "{:?}", log.notable());
        run_each(&mut session, &["SET SESSION binlog_row_image = FULL"]).await;
        let mut connection = Connection::open(&db.options()).await.unwrap();
        let names = charsets(&mut connection).await.unwrap();
        let path = db.source.address().dir.join("data").join(file);
        let mut text = format!(
            "schema {}\n",
            serde_json::to_string(&*tables[0].schema).unwrap()
        );
        let events = events_of(&std::fs::read(path).unwrap());
        let mut known = Vec::new();
        for (event_type, body) in &events {
            if *event_type == kind::TABLE_MAP {
                let map = table_map(body, flavor(place.kind())).unwrap();
                for c in map.columns.iter().map(|c| c.collation) {
                    if let Some(name) = names.get(&c)
                        && !known.contains(&c)
                    {
                        known.push(c);
                        writeln!(text, "charset {c} {name}").unwrap();
                    }
                }
                writeln!(text, "map {}", hex::encode(body)).unwrap();
            } else if changes_rows(*event_type) {
                writeln!(text, "rows {event_type} {}", hex::encode(body)).unwrap();
            }
        }
        for row in &log.rows {
            writeln!(text, "expect {}", row.escape_debug()).unwrap();
        }
        std::fs::write(directory(place.kind()).join(format!("{group}.txt")), text).unwrap();
        run_each(&mut session, &["SET SESSION sql_mode = ''"]).await;
    }
}

fn flavor(kind: Kind) -> Flavor {
    match kind {
        Kind::Mysql => Flavor::MySql,
        _ => Flavor::MariaDb,
    }
}

/// What a file's events become.
struct Golden {
    flavor: Flavor,
    schema: Arc<TableSchema>,
    names: HashMap<u64, String>,
    tables: Charsets,
    map: Option<TableMap>,
    into: ChangeBuffer,
}

impl Golden {
    fn rows(&mut self, event_type: u8, body: &[u8]) {
        let options = PlanOptions {
            excluded: &[],
            own_key: false,
            flavor: self.flavor,
            collations: Collations {
                names: &self.names,
                tables: &self.tables,
            },
            value_bytes: usize::MAX,
        };
        let plan = TablePlan::new(self.map.as_ref().unwrap(), &self.schema, options).unwrap();
        let v2 = self.flavor == Flavor::MySql;
        let op = match event_type {
            kind::WRITE_ROWS | kind::WRITE_ROWS_V1 => Op::Insert,
            kind::DELETE_ROWS | kind::DELETE_ROWS_V1 => Op::Delete,
            _ => Op::Update,
        };
        let h = rows::rows_header(body, v2, op == Op::Update).unwrap();
        let slot = self.into.slot(&self.schema);
        let (mut before, mut after) = (Image::default(), Image::default());
        let mut at = h.start;
        while at < body.len() {
            at = rows::image(&plan, body, at, &h.before, &mut before).unwrap();
            let mut put = |op, image: &Image, missing| {
                let mut row = self.into.row(slot, op);
                let (first, c) = (Some(&before), &mut Coerced::default());
                rows::append(&plan, body, image, first, missing, &mut row, c).unwrap();
                row.finish();
            };
            if op != Op::Update {
                put(op, &before, Missing::Null);
                continue;
            }
            at = if event_type == kind::PARTIAL_UPDATE_ROWS {
                rows::partial_image(&plan, body, at, &h.after, &mut after).unwrap()
            } else {
                rows::image(&plan, body, at, &h.after, &mut after).unwrap()
            };
            after.fill(&before);
            if rows::same_key(&plan, body, &before, &after) {
                put(Op::Update, &after, Missing::Unchanged);
            } else {
                put(Op::Delete, &before, Missing::Null);
                put(Op::Insert, &after, Missing::Unchanged);
            }
        }
    }
}

#[test]
fn captured_events_decode_to_their_rows() {
    for kind in [Kind::Mysql, Kind::Mariadb] {
        for (group, ..) in groups(kind) {
            let path = directory(kind).join(format!("{group}.txt"));
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = || text.lines().filter_map(|l| l.split_once(' '));
            let (_, schema) = lines().find(|(word, _)| *word == "schema").unwrap();
            let mut golden = Golden {
                flavor: flavor(kind),
                schema: Arc::new(serde_json::from_str(schema).unwrap()),
                names: HashMap::new(),
                tables: Charsets::default(),
                map: None,
                into: ChangeBuffer::new(1, usize::MAX),
            };
            golden.into.begin(TransactionMeta {
                committed_at_us: 0,
                position: "x".into(),
            });
            let mut expected = Vec::new();
            for (word, rest) in lines() {
                let parts = || rest.split_once(' ').unwrap();
                match word {
                    "charset" => {
                        let (id, name) = parts();
                        golden.names.insert(id.parse().unwrap(), name.to_owned());
                    }
                    "map" => {
                        let body = hex::decode(rest).unwrap();
                        golden.map = Some(table_map(&body, golden.flavor).unwrap());
                    }
                    "rows" => {
                        let (event_type, body) = parts();
                        let body = hex::decode(body).unwrap();
                        golden.rows(event_type.parse().unwrap(), &body);
                    }
                    "expect" => expected.push(rest.to_owned()),
                    _ => assert_eq!(word, "schema", "{path:?}"),
                }
            }
            let rows = show(&golden.into.take().unwrap());
            let rows: Vec<String> = rows.iter().map(|r| r.escape_debug().to_string()).collect();
            assert_eq!(rows, expected, "{path:?}");
            assert!(!rows.is_empty());
        }
    }
}
