//! Every type of MySQL and MariaDB: the same text from the log and from a copy.

use crate::database::{Place, on, run_each};
use crate::rows::{copy, drain, expect_same, start};
use caudal_tests::databases::Kind;

on!(mysql and mariadb: the_log_and_a_copy_give_the_same);
on!(mysql: json_is_the_server_s_own_text, rows_longer_than_a_packet);
on!(mariadb: types_of_mariadb_alone);

const TYPES: &[&str] = &[
    "id int unsigned primary key",
    "i1 tinyint",
    "u1 tinyint unsigned",
    "i2 smallint",
    "y year",
    "u2 smallint unsigned",
    "i3 mediumint",
    "u3 mediumint unsigned",
    "i8 bigint",
    "u8 bigint unsigned",
    "d1 decimal(12,2)",
    "d2 decimal(38,10)",
    "d3 decimal(65,30)",
    "f float",
    "g double",
    "b1 bit(1)",
    "b9 bit(9)",
    "c char(10)",
    "v varchar(300)",
    "tx text",
    "l varchar(20) character set latin1",
    "u16 varchar(20) character set utf16",
    "bi binary(5)",
    "vb varbinary(300)",
    "bl mediumblob",
    "da date",
    "dt datetime",
    "dt3 datetime(3)",
    "dt6 datetime(6)",
    "ts timestamp null",
    "ts5 timestamp(5) null",
    "t0 time",
    "t1 time(1)",
    "t3 time(3)",
    "t6 time(6)",
    "e enum('a','b,''c','ü')",
    "s set('x','y','z')",
    "j json",
    "gv int as (i1 + 1) virtual",
    "gs int as (i1 + 2) stored",
];

const VALUES: &[&str] = &[
    "(1, -128, 255, -32768, 1901, 65535, -8388608, 16777215, -9223372036854775808, \
     18446744073709551615, -1234567890.12, 9999999999999999999999999999.9999999999, \
     -99999999999999999999999999999999999.999999999999999999999999999999, 1.1, -2.5e300, b'1', \
     b'100000001', 'ab  ', '日本', 'é\\n', 'é€', '😀é', 'ab', 'cd\\0', repeat('x', 70000), \
     '2024-02-29', '0001-01-01 00:00:00', '2024-01-01 01:02:03.004', '9999-12-31 23:59:59.999999', \
     '2024-06-01 12:00:00', '2024-06-01 12:00:00.12345', '-838:59:59', '-00:00:01.1', \
     '-12:34:56.789', '838:59:58.999999', 'ü', 'x,z', \
     '{\"b\": [1, 2.5, null, true, \"q\\\\\"\\\\n\"], \"a\": {\"x\": 1e20}}')",
    "(2, 127, 0, 32767, 2155, 0, 8388607, 0, 9223372036854775807, 0, 0.05, -0.0000000001, 0.5, \
     -0.0, 0, b'0', b'0', '', '', '', '', '', '', '', '', '0000-00-00', '0000-00-00', \
     '2024-00-15 00:00:00', '2024-02-31 00:00:00', 0, 0, '0', '0', '-00:00:00.001', \
     '-00:00:00.000001', '', '', '[]')",
    "(3, null, null, null, 0, null, null, null, null, null, null, null, null, null, null, null, \
     null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, \
     null, null, null, null, null, null)",
];

async fn the_log_and_a_copy_give_the_same(place: Place) {
    let columns = TYPES.join(", ");
    let create = format!("CREATE TABLE t ({columns}) CHARACTER SET utf8mb4");
    let db = place.database(&[&create]).await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let names: Vec<&str> = TYPES
        .iter()
        .map(|t| t.split(' ').next().unwrap())
        .filter(|n| !["gv", "gs"].contains(n))
        .collect();
    let (names, values) = (names.join(","), VALUES.join(","));
    let insert = format!("INSERT INTO t ({names}) VALUES {values}");
    run_each(&mut db.session().await, &[&insert]).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    assert!(log.notable().is_empty(), "{:?}", log.events);
    let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, 200).await;
    assert_eq!(log.rows.len(), 3);
    expect_same(&log.rows, &copied);
    let first = &log.rows[0];
    for expected in [
        " u8=18446744073709551615 ",
        " d1=-1234567890.12 ",
        " c=ab ",
        " l=é€ ",
        " u16=😀é ",
        " bi=6162000000 ",
        " t0=-838:59:59 ",
        " t1=-00:00:01.1 ",
        " t3=-12:34:56.789 ",
        " t6=838:59:58.999999 ",
        " e=ü ",
        " s=x,z ",
        // 2024-06-01 10:00:00 UTC: the session's zone is two hours ahead.
        " ts=1717236000000000 ",
        " b1=true ",
        " y=1901 ",
        " gv=-127 ",
        " gs=-126",
    ] {
        assert!(first.contains(expected), "{expected}: {}", &first[..600]);
    }
    if place.kind() == Kind::Mysql {
        let json = r#" j={"a": {"x": 1e20}, "b": [1, 2.5, null, true, "q\"\n"]} "#;
        let at = first.find(" j=").unwrap();
        assert!(first.contains(json), "{}", &first[at..]);
    }
    assert!(source.coerced()[0].1 >= 12, "{:?}", source.coerced());
}

/// Numbers at the edges of their forms, opaque values, escapes, and lengths of each size.
const JSON: &[&str] = &[
    "'[1e14,1e15,1e16,1.5e-10,1e-5,1e-14,1e-15,1e-16,1.23e-15,1.23e-16,1.5e15,1234567890123456.5,-0.0,1e300,5e-324,0.1,12345678901234567890,-1,255,65536,-2147483649]'",
    "'[12345678901234567.0, 123456789012345678.0, 1.2345678901234567e17, 9007199254740993.5, 1e22, 4.35, 1.7976931348623157e308, 0.000001234567890123456]'",
    "json_array(cast('2024-01-02' as date), cast('2024-01-02 03:04:05.678' as datetime(6)), cast('-12:34:56.7' as time(6)), 1.50, cast(-0.05 as decimal(20,10)), cast(1 as unsigned))",
    "json_array(cast('2024-01-02' as datetime), timestamp'2024-01-02 00:00:00', cast(x'00ff10' as binary), cast(repeat('z', 200) as binary), b'101', cast('x' as json) )",
    "json_object('k', json_array(), 'a', json_object(), '', '', 'ü😀', repeat('\\\\ \\'\"\t\r\\n\\b/', 3), 'long', repeat('ä', 300))",
    "json_array(repeat('y', 70000), json_object('b', repeat('w', 70000), 'aa', 2147483648, 'i', 70000, 'u', 4294967295, 't', true, 'n', null))",
    "'true'",
    "'null'",
    "'\"x\"'",
    "'123'",
    "'{}'",
    "'[]'",
    "null",
    "json_array(st_geomfromtext('POINT(1 2)'))",
    "'\"\\\\u0000\\\\u0001\\\\u001f\\\\u007f\"'",
];

async fn json_is_the_server_s_own_text(place: Place) {
    let create = "CREATE TABLE t (id int primary key auto_increment, j json)";
    let db = place.database(&[create]).await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let mut session = db.session().await;
    let mut inserted = 0;
    for json in JSON {
        // A server may refuse some of them.
        let insert = format!("INSERT INTO t (j) VALUES ({json})");
        inserted += usize::from(session.exec(&insert).await.is_ok());
    }
    assert!(inserted >= 12, "{inserted}");
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, 200).await;
    assert_eq!(log.rows.len(), inserted);
    expect_same(&log.rows, &copied);
}

async fn types_of_mariadb_alone(place: Place) {
    let create = "CREATE TABLE t (id int primary key, u uuid, a inet4, b inet6, j json)";
    let db = place.database(&[create]).await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let rows = [
        "INSERT INTO t VALUES (1, '123e4567-e89b-12d3-a456-426655440000', '10.0.0.1', '::1', '{\"a\":  1}')",
        "INSERT INTO t VALUES (2, '01890a5d-ac96-774b-bcce-b302099a8057', '0.0.0.0', '2001:db8::ff00:42:8329', '[]')",
        "INSERT INTO t VALUES (3, '00000000-0000-0000-0000-000000000000', '255.255.255.0', '::ffff:1.2.3.4', null)",
        "INSERT INTO t VALUES (4, 'ffffffff-ffff-ffff-ffff-ffffffffffff', '1.0.0.0', '::', null)",
        "INSERT INTO t VALUES (5, '550e8400-e29b-41d4-a716-446655440000', null, '::1.2.3.4', null)",
        "INSERT INTO t VALUES (6, '550e8400-e29b-61d4-a716-446655440000', null, '1:0:0:2::', null)",
        "INSERT INTO t VALUES (7, null, null, '1:0:2:3:4:5:6:7', null), (8, null, null, '::1:2', null), (9, null, null, '1::2:0:0:3', null)",
    ];
    run_each(&mut db.session().await, &rows).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, 200).await;
    assert_eq!(log.rows.len(), 9);
    expect_same(&log.rows, &copied);
}

async fn rows_longer_than_a_packet(place: Place) {
    let db = place
        .database(&["CREATE TABLE t (id int primary key, v longtext)"])
        .await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    let rows = [
        "INSERT INTO t VALUES (1, repeat('x', 40 << 20)), (2, repeat('y', (16 << 20) - 20))",
        "INSERT INTO t VALUES (3, 'short')",
    ];
    run_each(&mut db.session().await, &rows).await;
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let (copied, _) = copy(&*source, &tables[0].schema, &log.reached, 200).await;
    let lengths: Vec<usize> = log.rows.iter().map(String::len).collect();
    assert_eq!(lengths, [41943051, 16777207, 16]);
    let equal = |(log, copy): (&String, &String)| log.replacen("t:c", "t:r", 1) == *copy;
    // Not compared by an assertion, which would print them.
    assert!(log.rows.iter().zip(&copied).all(equal));
    assert_eq!(copied.len(), 3);
}
