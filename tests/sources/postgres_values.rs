//! Every type of PostgreSQL: the same text from the log and from a copy, whatever the
//! writer's settings are.

use crate::database::{Place, on};
use crate::rows::{copy, drain, start};

on!(postgres: the_log_and_a_copy_give_the_same);

const TABLE: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'it''s ok'); CREATE DOMAIN price AS numeric(10,3);
    CREATE TYPE pair AS (a int, b text); CREATE DOMAIN dd AS price;
    CREATE TABLE v (id bigint PRIMARY KEY, b boolean, i2 smallint, i4 int, o oid, f4 real, f8 float8,
      n1 numeric(12,2), n2 numeric(38,10), n3 numeric, n4 numeric(50,3), n5 numeric(4,-2), m money,
      t text, vc varchar(9), c char(6), nm name, by bytea, u uuid, d date, ti time, tt timetz,
      iv interval, ts timestamp, tz timestamptz, j json, jb jsonb, x xml, ip inet, cd cidr, ma macaddr,
      bi bit(5), vb varbit, r int4range, tv tsvector, ls pg_lsn, e mood, p price, pp dd, co pair, pt point, ch \"char\",
      g bigint GENERATED ALWAYS AS (i4 + 1::bigint) STORED);";

/// Rows of ordinary values, of least ones, of extremes of one sign and of the other.
const FILL: &str = "
    CREATE FUNCTION fill(base bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO v VALUES
     (base + 1, true, -32768, 2147483647, 4294967295, 1.1, 1e-310, -1.10, 1234567890123456789012345678.0123456789, 1.500, 0.001, 12345, '$1,234.50',
      'häß\"''\\ ', 'x', 'ab', 'nm', '\\x00ff10', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '2024-02-29', '24:00:00', '12:00:00.5+05:30',
      '1 year -2 days 03:04:05.678', '1999-12-31 23:59:59.999999', '2024-06-01 12:00:00+02', '{\"a\" :  1}', '{\"b\":2, \"a\":[1,null]}', '<a>x</a>',
      '192.168.1.1', '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', B'1', '[1,5)', 'a fat cat', '16/B374D848', 'it''s ok', 1.5, 2.25, ROW(1,'x y'), '(1.5,2)', 'q'),
     (base + 2, false, 0, -1, 0, 'NaN', '-Infinity', 0, 0, 'NaN', '-0.5', 0, '-$0.01', '', '', '', '', '', NULL, 'infinity', '00:00:00', '00:00:00+00',
      '-1 mon', 'infinity', '-infinity', 'null', 'null', '', '::1/128', '::/0', NULL, B'00000', B'', 'empty', '', '0/0', 'sad', 0, 0, ROW(NULL,NULL), NULL, NULL),
     (base + 3, NULL, NULL, NULL, NULL, '-0', 'Infinity', 9999999999.99, -0.0000000001, '123456789012345678901234567890.0', NULL, NULL, '-$92,233,720,368,547,758.08',
      E'\\n\\t', NULL, NULL, NULL, NULL, NULL, '-infinity', '12:34:56.789', NULL, NULL, '4713-01-01 00:00:00 BC', '0044-03-15 12:00:00+00 BC', '  [1]  ', '1.10', NULL, '10.1.2.3/8', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
     (base + 4, NULL, NULL, NULL, NULL, 3.4028235e38, 5e-324, NULL, NULL, '-Infinity', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '5874897-12-31', NULL, NULL, NULL,
      '294246-12-31 23:59:59.999999', '0001-01-01 00:00:00+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)
    $$;
    SELECT fill(0)";

async fn the_log_and_a_copy_give_the_same(place: Place) {
    let db = place.database(&[TABLE, FILL]).await;
    let source = db.open(db.options());
    let (tables, mut tail) = start(&*source).await;
    db.session()
        .await
        .exec("SET datestyle = german; SELECT fill(10)")
        .await
        .unwrap();
    let log = drain(&*source, &mut *tail, 1 << 20).await;
    let (copied, chunks) = copy(&*source, &tables[0].schema, &log.reached, 1 << 20).await;
    assert_eq!((copied.len(), chunks, log.rows.len()), (8, 3, 4));
    for logged in &log.rows {
        // A copy of the row that the log tells of, and the same values four rows before it.
        let id: i64 = logged.split(['=', ' ']).nth(2).unwrap().parse().unwrap();
        for id in [id, id - 10] {
            let prefix = format!("v:r id={id} ");
            let found = copied.iter().find_map(|c| c.strip_prefix(&prefix)).unwrap();
            assert_eq!(Some(found), logged.splitn(3, ' ').nth(2));
        }
    }
    let first = &log.rows[0];
    for expected in [" ip=192.168.1.1 cd=10.0.0.0/8 ", " iv=P1Y-2DT3H4M5.678S "] {
        assert!(first.contains(expected), "{expected}: {first}");
    }
}
