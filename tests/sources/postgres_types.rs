//! Types of PostgreSQL that hold values, and other lake types by override: the same from the
//! log and from a copy, and what does not fit stops its table.

use crate::database::{Place, on, run_each, run_script};
use crate::rows::{copy, drain, start};
use caudal_model::{LakeType, Severity};
use caudal_sources::TableOptions;

on!(
    postgres: arrays_hstore_and_domains,
    columns_as_text_are_the_server_s_text,
    other_lake_types_hold_every_value_or_the_table_stops,
    what_a_list_cannot_hold_stops_the_table,
    types_of_extensions_that_are_installed,
);

fn options(lake_types: &[(&str, &str)], hash: &[&str]) -> TableOptions {
    let typed = |(c, t): &(&str, &str)| ((*c).to_owned(), t.parse::<LakeType>().unwrap());
    TableOptions {
        lake_types: lake_types.iter().map(typed).collect(),
        hash_columns: hash.iter().map(|c| (*c).to_owned()).collect(),
        ..TableOptions::default()
    }
}

/// The rows of the log without table and operation, and that a copy gives the same.
async fn both(place: Place, setup: &[&str], insert: &str, o: TableOptions) -> Vec<String> {
    let db = place.database(setup).await;
    let mut options = db.options();
    options.tables.insert(db.table("v"), o);
    let source = db.open(options);
    let (tables, mut tail) = start(&*source).await;
    run_script(&mut db.session().await, insert).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(log.notable().is_empty(), "{:?}", log.events);
    let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, 1 << 20).await;
    let logged: Vec<String> = log.rows.iter().map(|r| r.replacen("v:c ", "", 1)).collect();
    let copied: Vec<String> = copied.iter().map(|r| r.replacen("v:r ", "", 1)).collect();
    assert_eq!(logged, copied);
    logged
}

async fn arrays_hstore_and_domains(place: Place) {
    let rows = both(
        place,
        &[
            "CREATE EXTENSION hstore SCHEMA public; CREATE TYPE mood AS ENUM ('sad', 'it''s, ok')",
            "CREATE DOMAIN price AS numeric(10,3); CREATE DOMAIN prices AS price[]; CREATE TYPE pair AS (a int, b text)",
            "CREATE DOMAIN matrix AS int[]; CREATE DOMAIN attributes AS hstore",
            "CREATE TABLE v (id int PRIMARY KEY, b boolean[], i2 smallint[], i4 int[], i8 bigint[], o oid[], f4 real[], f8 float8[],
               n numeric(12,2)[], nn numeric[], m money[], t text[], vc varchar(5)[], c char(3)[], by bytea[], u uuid[], d date[], ti time[], iv interval[],
               ts timestamp[], tz timestamptz[], j json[], jb jsonb[], ip inet[], bx box[], r int4range[], e mood[], p price[], pp prices, co pair[],
               h hstore, hh hstore[], a attributes, mm matrix[], iv2 int2vector, x xml[], q \"char\"[])",
        ],
        "INSERT INTO v VALUES (1, '{t,NULL,f}', '{-32768}', '{1,NULL,-2147483648}', '{9223372036854775807}', '{4294967295}', '{1.1,NaN,-0}', '{-Infinity,1e-310}',
           '{-1.10,NULL}', '{1.500,NaN}', '{\"$1,234.50\"}', '{a,NULL,\"NULL\",\"\",\"b \\\"c\\\" \\\\\",\"x,y\",\"{z}\",häß}', '{ab}', '{a}', '{\"\\\\x00ff\"}',
           '{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}', '{2024-02-29,infinity,\"0044-03-15 BC\"}', '{24:00:00}', '{\"1 year -2 days\"}', '{infinity,\"2024-01-01 00:00:00.5\"}', '{\"2024-06-01 12:00:00+02\"}',
           '{\"{\\\"a\\\" :  1}\"}', '{\"{\\\"b\\\":2, \\\"a\\\":[1,null]}\"}', '{192.168.1.1,10.1.2.3/8}', ARRAY[box '(1,2),(3,4)', box '(5,6),(7,8)'], '{\"[1,5)\"}', '{sad,\"it''s, ok\"}',
           '{1.5}', '{2.25,NULL}', ARRAY[ROW(1,'x y')::pair, NULL], 'a=>1, \"b \\\"\\\\\"=>NULL, c=>\"x, y=>z\"', ARRAY['a=>1'::hstore], 'k=>v', ARRAY['{1,2}'::matrix], '1 2 3', '{<a/>}', '{q}');
         INSERT INTO v (id, i4, t, h) VALUES (2, '{}', '{}', ''); INSERT INTO v (id) VALUES (3)",
        TableOptions::default(),
    )
    .await;
    for expected in [
        " b=[true, , false] i2=[-32768] i4=[1, , -2147483648] i8=[9223372036854775807] o=[4294967295] f4=[1.1, NaN, -0.0] f8=[-inf, 1e-310]",
        " n=[-1.10, ] nn=[1.500, NaN] m=[1234.50] t=[a, , NULL, , b \"c\" \\, x,y, {z}, häß] vc=[ab] c=[a  ] by=[00ff] u=[a0eebc99-",
        " iv=[P1Y-2D] ",
        " ip=[192.168.1.1, 10.1.2.3/8] bx=[(3,4),(1,2), (7,8),(5,6)] r=[[1,5)] e=[sad, it's, ok] p=[1.500] pp=[2.250, ] co=[(1,\"x y\"), ] h={a: 1, c: x, y=>z, b \"\\: } hh=[{a: 1}] a={k: v} mm=[{1,2}] iv2=1 2 3 x=[<a/>] q=[q]",
    ] {
        assert!(rows[0].contains(expected), "{expected}\n{}", rows[0]);
    }
    assert_eq!(rows[1..], ["id=2 i4=[] t=[] h={}", "id=3"]);
}

async fn columns_as_text_are_the_server_s_text(place: Place) {
    let names = [
        "b", "i", "f", "n", "m", "by", "d", "ti", "ts", "tz", "jb", "a", "c", "ip", "co",
    ];
    let typed: Vec<(&str, &str)> = names.iter().map(|n| (*n, "string")).collect();
    let rows = both(
        place,
        &[
            "CREATE TYPE pair AS (a int, b text)",
            "CREATE TABLE v (id int PRIMARY KEY, b boolean, i int, f real, n numeric(5,2), m money, by bytea, d date, ti time, ts timestamp,
               tz timestamptz, jb jsonb, a int[], c char(4), ip inet, co pair, secret int, email text)",
        ],
        "INSERT INTO v VALUES (1, true, 7, 1.1, 'NaN', '$1,234.50', '\\x00ff', '0044-03-15 BC', '24:00:00', '294276-12-31 23:59:59.999999', '2024-06-01 12:00:00+02',
           '{\"b\":2, \"a\":1}', '[0:1][1:1]={{1},{2}}', 'ab', '10.0.0.1', ROW(NULL, NULL), 5, 'a@b');
         INSERT INTO v (id) VALUES (2)",
        options(&typed, &["secret", "email"]),
    )
    .await;
    let start = "id=1 b=t i=7 f=1.1 n=NaN m=$1,234.50 by=\\x00ff d=0044-03-15 BC ti=24:00:00 ts=294276-12-31 23:59:59.999999 tz=2024-06-01 10:00:00+00 \
                 jb={\"a\": 1, \"b\": 2} a=[0:1][1:1]={{1},{2}} c=ab   ip=10.0.0.1 co=(,) secret=5 email=a@b";
    assert_eq!(rows, [start, "id=2"]);
}

async fn other_lake_types_hold_every_value_or_the_table_stops(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE v (id smallint PRIMARY KEY, n numeric, f real, a int[], h text)",
            "CREATE TABLE bad (id int PRIMARY KEY, i bigint, t text, n numeric, secret text)",
        ])
        .await;
    let mut all = db.options();
    let good = [
        ("id", "int64"),
        ("n", "decimal(6,2)"),
        ("f", "float64"),
        ("a", "list<int64>"),
    ];
    all.tables.insert(db.table("v"), options(&good, &["h"]));
    let bad = [
        ("i", "int32"),
        ("t", "int64"),
        ("n", "float64"),
        ("gone", "string"),
    ];
    all.tables.insert(db.table("bad"), options(&bad, &["id"]));
    let findings = db.open(all.clone()).check().await.unwrap();
    let of = |subject: &str| {
        let subject = format!("{}.bad.{subject}", db.source.schema());
        let found = findings
            .iter()
            .find(|f| f.subject.as_deref() == Some(&subject));
        let found = found.unwrap_or_else(|| panic!("{subject}: {findings:?}"));
        assert!(found.severity == Severity::Error && found.mend.is_some());
        found.reason.clone()
    };
    assert!(of("i").contains("allowed are int64, string"), "{}", of("i"));
    assert!(
        of("t").contains("allowed are string, string"),
        "{}",
        of("t")
    );
    assert!(of("n").contains("decimal(p,s)"), "{}", of("n"));
    assert!(of("gone").contains("does not have") && of("id").contains("hashed"));
    run_script(&mut db.session().await, "DROP TABLE bad").await;
    all.tables.remove(&db.table("bad"));
    let source = db.open(all);
    let (tables, mut tail) = start(&*source).await;
    assert_eq!(tables[0].schema.columns[4].source_type, "text hashed");
    run_script(
        &mut db.session().await,
        "INSERT INTO v VALUES (1, 1.5, 0.5, '{1,NULL}', 'x'); INSERT INTO v VALUES (2, 1.234)",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert_eq!(log.rows, ["v:c id=1 n=1.50 f=0.5 a=[1, ] h=x"]);
    let told = log.notable().join("");
    assert!(
        told.contains("column n holds a number with more digits"),
        "{told}"
    );
    let mut reader = source.open_reader(true).await.unwrap();
    let chunk = reader
        .plan(&tables[0].schema, None, 1000)
        .await
        .unwrap()
        .unwrap();
    reader.start(&tables[0].schema, &chunk, None).await.unwrap();
    let error = read(&mut *reader).await;
    assert!(
        error.contains("column n holds a number with more digits"),
        "{error}"
    );
}

/// What a copy says of a row that cannot be carried.
async fn read(reader: &mut dyn caudal_sources::ChunkReader) -> String {
    let mut into = caudal_model::ChangeBuffer::for_snapshot(1, 1 << 20);
    into.begin(caudal_model::TransactionMeta {
        committed_at_us: 0,
        position: "x".into(),
    });
    let error = reader.next(&mut into).await.unwrap_err();
    assert_eq!(error.class(), caudal_model::Class::Data);
    format!("{error} {}", error.hint_text().unwrap_or(""))
}

async fn what_a_list_cannot_hold_stops_the_table(place: Place) {
    let db = place
        .database(&[
            "CREATE TABLE a (id int PRIMARY KEY, v int[]); CREATE TABLE b (id int PRIMARY KEY, v text[])",
            "CREATE TABLE c (id int PRIMARY KEY, v timestamp); CREATE TABLE d (id int PRIMARY KEY, v numeric(3,1)[])",
        ])
        .await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    run_script(
        &mut db.session().await,
        "INSERT INTO a VALUES (1, '{{1,2},{3,4}}'); INSERT INTO b VALUES (1, '[0:0]={x}');
         INSERT INTO c VALUES (1, '294276-12-31 23:59:59.999999'); INSERT INTO d VALUES (1, '{1,NaN}')",
    )
    .await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(log.rows.is_empty(), "{:?}", log.rows);
    for (table, why) in tables.iter().zip([
        "an array of several dimensions or with another lower bound",
        "an array of several dimensions or with another lower bound",
        "a time past the year 294247",
        "NaN or infinity",
    ]) {
        let name = &table.schema.table;
        let told = log
            .events
            .iter()
            .find(|e| e.starts_with(&format!("failed {name}")));
        let told = told.unwrap_or_else(|| panic!("{name}: {:?}", log.events));
        let mut reader = source.open_reader(true).await.unwrap();
        let chunk = reader
            .plan(&table.schema, None, 1000)
            .await
            .unwrap()
            .unwrap();
        reader.start(&table.schema, &chunk, None).await.unwrap();
        let copied = read(&mut *reader).await;
        for told in [told, &copied] {
            assert!(told.contains(&format!("column v holds {why}")), "{told}");
            assert!(told.contains("as = { v = \"string\" }"), "{told}");
        }
    }
}

/// PostGIS and pgvector are not part of the servers that the tests unpack: with the packages
/// postgresql-15-postgis-3 and postgresql-18-pgvector unpacked beside them (see
/// `CAUDAL_DATABASES_DIR`) this reads their values, and otherwise it has nothing to do.
async fn types_of_extensions_that_are_installed(place: Place) {
    let setup = [
        (
            "vector",
            "v vector(3), l vector[]",
            "'[1,-2.5,1e-05]', ARRAY['[1,2,3]'::vector]",
        ),
        (
            "postgis",
            "g geometry, p geography(Point, 4326), l geometry[]",
            "'POINT(1 2)', 'SRID=4326;POINT(3 4)', ARRAY['SRID=3857;LINESTRING(0 0,1 1)'::geometry, NULL]",
        ),
    ];
    for (extension, columns, values) in setup {
        let db = place.database(&[]).await;
        let mut superuser = db.source.superuser().await.unwrap();
        let available =
            format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{extension}'");
        if superuser.scalar(&available).await.unwrap() == "0" {
            continue;
        }
        superuser
            .exec(&format!("CREATE EXTENSION {extension} SCHEMA public"))
            .await
            .unwrap();
        let mut options = db.options();
        options.selection = caudal_model::Selection::new(&["public.e".to_owned()], &[]).unwrap();
        let source = db.open(options);
        let mut session = db.session().await;
        run_script(
            &mut session,
            &format!("CREATE TABLE e (id int PRIMARY KEY, {columns})"),
        )
        .await;
        let (tables, mut tail) = start(&*source).await;
        run_each(
            &mut session,
            &[&format!("INSERT INTO e VALUES (1, {values})")],
        )
        .await;
        let log = drain(&*source, &mut *tail, 1 << 20).await;
        assert!(log.notable().is_empty(), "{:?}", log.events);
        let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, 1 << 20).await;
        assert_eq!(copied, [log.rows[0].replacen("e:c", "e:r", 1)]);
        let expected = match extension {
            "vector" => "e:r id=1 v=[1.0, -2.5, 0.00001] l=[[1.0, 2.0, 3.0]]".to_owned(),
            _ => {
                // Little-endian, with the SRID only where there is one: POINT(1 2), POINT(3 4).
                let (one, two, three, four) = (
                    "000000000000f03f",
                    "0000000000000040",
                    "0000000000000840",
                    "0000000000001040",
                );
                let line =
                    format!("0102000020110f00000200000000000000000000000000000000000000{one}{one}");
                format!(
                    "e:r id=1 g=0101000000{one}{two} p=0101000020e6100000{three}{four} l=[{line}, ]"
                )
            }
        };
        assert_eq!(copied, [expected]);
    }
}
