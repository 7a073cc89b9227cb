//! Chunks of PostgreSQL's tables: by keys of every order, by blocks, within a user's limits, and
//! from a standby.

use crate::database::{Database, Place, on, run_each, run_script};
use crate::rows::{copy_in, copy_rest, show, tracked};
use caudal_model::{ChangeBuffer, Chunk, Class, Kind, TableSchema, TransactionMeta};
use caudal_sources::{ChunkEvent, ChunkReader, Source};
use std::sync::Arc;

on!(
    postgres: keys_of_every_order_are_chunked_without_gaps,
    bounds_are_found_through_the_index,
    large_tables_are_read_by_blocks,
    a_user_s_limits_are_kept,
    a_standby_gives_what_the_base_shows,
    the_load_counts_others,
);

/// Keys with rows, each of them another key.
const KEYS: &[(&str, &str)] = &[
    (
        "a bigint, PRIMARY KEY (a)",
        "(-9223372036854775808), (-5), (0), (7), (8), (1000000000000), (9223372036854775807)",
    ),
    (
        "a numeric, PRIMARY KEY (a)",
        "('NaN'), (-1e100), (-1.5), (0), (1.50), (1.51), (1e-30), (1e100)",
    ),
    (
        "a numeric(38,10), PRIMARY KEY (a)",
        "(-1), (0.0000000001), (9999999999999999999999999999.9), (5)",
    ),
    (
        "a float8, b real, PRIMARY KEY (a, b)",
        "('NaN', 'NaN'), ('NaN', 1), ('Infinity', 0.1), ('-Infinity', 0.1), (0.1, 0.2), (0.1, 0.3), (0.30000000000000004, 0), (0.3, 0)",
    ),
    (
        "a text COLLATE \"C\", PRIMARY KEY (a)",
        "(''), ('a'), ('A'), ('a '), ('ab'), ('ä'), ('''x'), ('\\x'), ('Z'), ('日本')",
    ),
    (
        "a text COLLATE \"de-x-icu\", PRIMARY KEY (a)",
        "(''), ('a'), ('A'), ('a '), ('ab'), ('ä'), ('Ä'), ('a-b'), ('Z'), ('z')",
    ),
    // Keys that are equal in one column, whose texts differ.
    (
        "a text COLLATE caseless, b int, PRIMARY KEY (a, b)",
        "('a', 1), ('A', 2), ('a', 3), ('Á', 4), ('á', 1), ('b', 1), ('B', 2), ('b', 9), ('B', 10)",
    ),
    (
        "a char(4), b varchar(3), PRIMARY KEY (a, b)",
        "('a', 'x'), ('a', 'x '), ('ab', ''), (' a', ' '), ('A', 'x'), ('', '')",
    ),
    (
        "a uuid, PRIMARY KEY (a)",
        "('00000000-0000-0000-0000-000000000000'), ('ffffffff-ffff-ffff-ffff-ffffffffffff'), ('80000000-0000-0000-0000-000000000000'), ('7fffffff-0000-0000-0000-000000000000')",
    ),
    (
        "a timestamptz, b date, PRIMARY KEY (a, b)",
        "('-infinity', '2024-01-01'), ('infinity', 'infinity'), ('infinity', '-infinity'), ('2024-01-01 00:00:00.000001+00', '2024-01-01'), \
         ('2024-01-01 00:00:00+00', '0044-03-15 BC'), ('0044-03-15 BC', '2024-01-01')",
    ),
    (
        "a time, b timestamp, PRIMARY KEY (b, a)",
        "('24:00', '2024-01-01'), ('00:00', '2024-01-01'), ('23:59:59.999999', '2024-01-01'), ('12:00', 'infinity')",
    ),
    (
        "a bytea, PRIMARY KEY (a)",
        "(''), ('\\x00'), ('\\x0000'), ('\\xff'), ('\\x7f80'), ('\\x41')",
    ),
    (
        "a boolean, b mood, PRIMARY KEY (a, b)",
        "(true, 'sad'), (true, 'ok'), (false, 'happy'), (false, 'sad'), (true, 'happy')",
    ),
    (
        "a interval, PRIMARY KEY (a)",
        "('1 month'), ('31 days'), ('-1 day'), ('1 year 2 months 3 days 04:05:06.789'), ('-1 year 1 day'), ('0')",
    ),
    (
        "a inet, b cidr, PRIMARY KEY (a, b)",
        "('10.0.0.1', '10.0.0.0/8'), ('10.0.0.1/24', '10.0.0.0/8'), ('::1', '::/0'), ('10.0.0.1', '10.0.0.0/9'), ('9.255.0.0', '0.0.0.0/0')",
    ),
    (
        "a macaddr, b bit(3), c money, PRIMARY KEY (a, b, c)",
        "('08:00:2b:01:02:03', B'101', 1.5), ('08:00:2b:01:02:03', B'001', -3), ('00:00:00:00:00:00', B'111', 0), ('ff:ff:ff:ff:ff:ff', B'000', 7)",
    ),
    (
        "a int4range, b int[], PRIMARY KEY (a, b)",
        "('empty', '{}'), ('[1,5)', '{1,2}'), ('[1,5)', '{1}'), ('(,3)', '{2}'), ('[2,)', '{1,null}')",
    ),
    (
        "c01 int, c02 int, c03 int, c04 int, c05 int, c06 int, c07 int, c08 int, c09 int, c10 int, c11 int, c12 int, c13 int, c14 int, c15 int, c16 text, \
         PRIMARY KEY (c16, c15, c14, c13, c12, c11, c10, c09, c08, c07, c06, c05, c04, c03, c02, c01)",
        "(1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,'x'), (2,1,1,1,1,1,1,1,1,1,1,1,1,1,1,'x'), (1,1,1,1,1,1,1,1,1,1,1,1,1,1,2,'w'), (3,1,1,1,1,1,1,1,1,1,1,1,1,1,1,'x')",
    ),
];

async fn expect_each_row_once(source: &dyn Source, schema: &Arc<TableSchema>, expected: usize) {
    let base = source.current_position().await.unwrap();
    for chunk_rows in [1, 2, 1000] {
        let (mut rows, chunks) = copy_in(chunk_rows, source, schema, &base, 300).await;
        assert_eq!(rows.len(), expected, "{schema:?} by {chunk_rows}: {rows:?}");
        rows.sort();
        rows.dedup();
        assert_eq!(rows.len(), expected, "{schema:?} by {chunk_rows}: {rows:?}");
        assert!(
            chunk_rows > 1 || chunks as usize >= expected / 2,
            "{chunks}"
        );
    }
}

async fn keys_of_every_order_are_chunked_without_gaps(place: Place) {
    let db = place.database(&[]).await;
    let mut session = db.session().await;
    let mut admin = db.source.superuser().await.unwrap();
    run_script(
        &mut admin,
        "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
         CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    )
    .await;
    for (definition, values) in KEYS {
        let insert = format!("INSERT INTO t VALUES {values}");
        let create = format!("CREATE TABLE t ({definition})");
        run_each(&mut session, &["DROP TABLE IF EXISTS t", &create, &insert]).await;
        let expected = db.source.scalar("SELECT count(*) FROM t").await.unwrap();
        let source = db.open(db.options());
        let schema = tracked(&*source).await.remove(0).schema;
        expect_each_row_once(&*source, &schema, expected.parse().unwrap()).await;
    }
    // A skewed text key: most of it in one prefix, longer than any histogram tells apart.
    run_script(
        &mut session,
        "DROP TABLE t; CREATE TABLE t (a text, b int, PRIMARY KEY (a, b));
         INSERT INTO t SELECT repeat('x', 200) || CASE WHEN i % 50 = 0 THEN i::text ELSE '' END, i FROM generate_series(1, 300) i;
         INSERT INTO t VALUES ('', 0), ('zz', 0)",
    )
    .await;
    let source = db.open(db.options());
    let schema = tracked(&*source).await.remove(0).schema;
    expect_each_row_once(&*source, &schema, 302).await;
    // The key is of a type whose operators a pinned path does not find: one chunk, or blocks.
    run_script(
        &mut session,
        "DROP TABLE t; CREATE TABLE t (a public.citext PRIMARY KEY); INSERT INTO t VALUES ('a'), ('B'), ('c')",
    )
    .await;
    let source = db.open(db.options());
    let schema = tracked(&*source).await.remove(0).schema;
    let base = source.current_position().await.unwrap();
    let (rows, chunks) = copy_in(1, &*source, &schema, &base, 200).await;
    assert_eq!((rows.len(), chunks), (3, 1));
}

async fn bounds_are_found_through_the_index(place: Place) {
    let db = place
        .private_database(
            &[
                "shared_preload_libraries=auto_explain",
                "auto_explain.log_min_duration=0",
            ],
            &[],
        )
        .await;
    let mut session = db.session().await;
    // Without statistics, and with an index whose order is another.
    run_script(
        &mut session,
        "CREATE TABLE t (a int, b text, c text) WITH (autovacuum_enabled = false); INSERT INTO t SELECT i / 7, i::text, 'c' FROM generate_series(1, 20000) i;
         CREATE UNIQUE INDEX i ON t (a DESC, b); ALTER TABLE t ADD PRIMARY KEY (a, b);
         CREATE TABLE p (a int, b text, PRIMARY KEY (a, b)) PARTITION BY HASH (a); CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO p SELECT a, b FROM t",
    )
    .await;
    let source = db.open(db.options());
    for table in tracked(&*source).await {
        let mut reader = source.open_reader(false).await.unwrap();
        let (rows, chunks) = copy_rest(&mut *reader, &table.schema, 1 << 20, 3000).await;
        assert_eq!((rows.len(), chunks), (20_000, 7));
    }
    let log = std::fs::read_to_string(db.source.address().dir.join("server.log")).unwrap();
    let plans: Vec<&str> = log
        .split("duration:")
        .filter(|p| p.contains("plan:"))
        .collect();
    let of = |what: &str| plans.iter().filter(|p| p.contains(what)).count();
    assert!(of("OFFSET 2999") >= 2, "{log}");
    assert!(of("COPY (SELECT") >= 14, "{log}");
    for plan in plans
        .iter()
        .filter(|p| p.contains("OFFSET 2999") || p.contains("COPY (SELECT"))
    {
        assert!(
            !plan.contains("Seq Scan") && !plan.contains("->  Sort"),
            "{plan}"
        );
    }
}

/// Reads one chunk.
async fn read(
    reader: &mut dyn ChunkReader,
    schema: &Arc<TableSchema>,
    chunk: &Chunk,
) -> Vec<String> {
    let mut into = ChangeBuffer::for_snapshot(1, 1 << 20);
    into.begin(TransactionMeta {
        committed_at_us: 0,
        position: "x".into(),
    });
    reader.start(schema, chunk, None).await.unwrap();
    let mut rows = Vec::new();
    loop {
        let event = reader.next(&mut into).await.unwrap();
        rows.extend(show(&into.take().unwrap()));
        if matches!(event, ChunkEvent::Done) {
            return rows;
        }
    }
}

async fn large(db: &Database) -> (Box<dyn Source>, Arc<TableSchema>) {
    // 20 MB.
    run_script(
        &mut db.session().await,
        "CREATE TABLE t (id int PRIMARY KEY, pad char(500)); ALTER TABLE t ALTER pad SET STORAGE PLAIN;
         ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t SELECT i, 'x' FROM generate_series(1, 40000) i ORDER BY i * 7919 % 40009; ANALYZE t",
    )
    .await;
    let source = db.open(db.options());
    let schema = tracked(&*source).await.remove(0).schema;
    (source, schema)
}

async fn large_tables_are_read_by_blocks(place: Place) {
    let db = place.database(&[]).await;
    let (source, schema) = large(&db).await;
    let mut reader = source.open_reader(false).await.unwrap();
    let first = reader.plan(&schema, None, 5000).await.unwrap().unwrap();
    let bound = first.through.clone().unwrap();
    assert!(bound[0].starts_with('\0') && bound.len() == 3, "{bound:?}");
    // Rows that move while the table is read are behind the base in the log; no other is
    // missed, or read twice.
    let mut seen = read(&mut *reader, &schema, &first).await;
    let mut session = db.session().await;
    run_script(
        &mut session,
        "UPDATE t SET pad = 'moved' WHERE id % 1000 = 0; INSERT INTO t VALUES (50000, 'new')",
    )
    .await;
    let mut last = first;
    let mut chunks = 1;
    while let Some(chunk) = reader.plan(&schema, Some(&last), 5000).await.unwrap() {
        seen.extend(read(&mut *reader, &schema, &chunk).await);
        last = chunk;
        chunks += 1;
    }
    assert!((6..=12).contains(&chunks), "{chunks}");
    let id = |row: &String| -> u32 {
        let at = row.split_once("id=").unwrap().1;
        at.split(' ').next().unwrap().parse().unwrap()
    };
    let mut still: Vec<u32> = seen.iter().map(id).filter(|id| id % 1000 != 0).collect();
    still.sort_unstable();
    let all: Vec<u32> = (1..=40_000).filter(|id| id % 1000 != 0).collect();
    assert_eq!(still, all);
    // A chunk whose bounds are keys goes on as it began.
    let by_key = Chunk {
        id: 7,
        after: None,
        through: Some(vec!["39999".into()]),
    };
    let next = reader
        .plan(&schema, Some(&by_key), 5000)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (next.after.as_deref(), next.through),
        (Some(&["39999".to_owned()][..]), None)
    );
    // In another file, the rows are elsewhere.
    let first = reader.plan(&schema, None, 5000).await.unwrap().unwrap();
    run_script(&mut session, "CLUSTER t USING t_pkey").await;
    let error = reader.start(&schema, &first, None).await.unwrap_err();
    assert_eq!(
        (error.class(), error.kind()),
        (Class::Data, Kind::Drift),
        "{error:?}"
    );
    // Where something is stored out of line, rows that move come whole with FULL alone.
    run_script(
        &mut session,
        "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, pad text); ALTER TABLE t ALTER pad SET STORAGE EXTERNAL;
         INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 40000) i ORDER BY i * 7919 % 40009;
         ANALYZE t",
    )
    .await;
    let schema = tracked(&*source).await.remove(0).schema;
    let mut bounds = Vec::new();
    for change in [
        "ALTER TABLE t REPLICA IDENTITY DEFAULT",
        "INSERT INTO t VALUES (0, repeat('x', 5000))",
        "ALTER TABLE t REPLICA IDENTITY FULL",
    ] {
        run_each(&mut session, &[change]).await;
        let first = reader.plan(&schema, None, 5000).await.unwrap().unwrap();
        bounds.push(first.through.unwrap().len());
    }
    assert_eq!(bounds, [3, 1, 3]);
    // In the key's order, its ranges are as good.
    run_script(&mut session, "CLUSTER t USING t_pkey; ANALYZE t").await;
    let first = reader.plan(&schema, None, 5000).await.unwrap().unwrap();
    assert_eq!(first.through.unwrap().len(), 1);
}

/// Waits until the reader's copy has run longer than the user may.
async fn outlast(db: &Database) {
    let late = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY (SELECT%' \
                AND clock_timestamp() - query_start > interval '1200 ms'";
    caudal_tests::agent::eventually("the copy has run for long", async || {
        let mut admin = db.source.superuser().await?;
        Ok((admin.scalar(late).await? == "1").then_some(()))
    })
    .await
    .unwrap();
}

async fn a_user_s_limits_are_kept(place: Place) {
    let creates = [
        "CREATE TABLE n (v text); ALTER TABLE n REPLICA IDENTITY FULL; CREATE TABLE t (id int PRIMARY KEY, v text)",
        // More than what lies in sockets on the way.
        "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 100000) i; INSERT INTO n SELECT v FROM t",
    ];
    let db = place.private_database(&[], &creates).await;
    let mut admin = db.source.superuser().await.unwrap();
    run_each(&mut admin, &["ALTER ROLE cdc SET statement_timeout = '1s'"]).await;
    let source = db.open(db.options());
    let tables = tracked(&*source).await;
    let mut reader = source.open_reader(true).await.unwrap();
    let schema = &tables[1].schema;
    let whole = reader.plan(schema, None, 1_000_000).await.unwrap().unwrap();
    reader.start(schema, &whole, None).await.unwrap();
    outlast(&db).await;
    let error = to_the_end(&mut *reader).await;
    assert_eq!(
        (error.class(), error.kind()),
        (Class::Retryable, Kind::Timeout),
        "{error:?}"
    );
    let part = reader.plan(schema, None, 1000).await.unwrap().unwrap();
    let rows = read(&mut *reader, schema, &part).await.len();
    assert!((900..1100).contains(&rows), "{rows}");
    // A table without a key has no smaller parts.
    let schema = &tables[0].schema;
    let base = source.current_position().await.unwrap();
    reader.open_exact(schema, &base).await.unwrap();
    let whole = reader.plan(schema, None, 1000).await.unwrap().unwrap();
    reader.start(schema, &whole, None).await.unwrap();
    outlast(&db).await;
    let error = to_the_end(&mut *reader).await;
    assert_eq!(error.class(), Class::Data, "{error:?}");
    assert!(
        error.hint_text().unwrap().contains("statement_timeout"),
        "{error:?}"
    );
}

/// The error that ends a chunk.
async fn to_the_end(reader: &mut dyn ChunkReader) -> caudal_model::Error {
    let mut into = ChangeBuffer::for_snapshot(1, 1 << 20);
    into.begin(TransactionMeta {
        committed_at_us: 0,
        position: "x".into(),
    });
    loop {
        match reader.next(&mut into).await {
            Ok(ChunkEvent::Full) => drop(into.take().unwrap()),
            Ok(ChunkEvent::Done) => panic!("it ends"),
            Err(e) => return e,
        }
    }
}

async fn a_standby_gives_what_the_base_shows(place: Place) {
    let db = place
        .private_database(&[], &["CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i"])
        .await;
    let mut admin = db.source.superuser().await.unwrap();
    run_each(&mut admin, &["GRANT pg_monitor TO cdc"]).await;
    let primary = db.source.server_handle();
    let standby = tokio::task::spawn_blocking(move || primary.standby(&[]))
        .await
        .unwrap()
        .unwrap();
    let (host, port) = (standby.address().host.clone(), standby.address().port);
    let with = |replica: &str| {
        let mut options = db.options();
        options.replica = Some(replica.to_owned());
        db.open(options)
    };
    let source = with(&format!("{host}:{port}"));
    let schema = tracked(&*source).await.remove(0).schema;
    let mut on_standby =
        caudal_tests::Session::connect(standby.address(), db.source.database(), "postgres", "")
            .await
            .unwrap();
    // What is not replayed yet is waited for.
    run_each(&mut on_standby, &["SELECT pg_wal_replay_pause()"]).await;
    run_each(
        &mut db.session().await,
        &["INSERT INTO t VALUES (101, 'late')"],
    )
    .await;
    let base = source.current_position().await.unwrap();
    caudal_tests::agent::eventually("the standby is seen to be behind", async || {
        let load = source.load().await.unwrap();
        Ok(load.replica_lag.filter(|lag| !lag.is_zero()).map(|_| ()))
    })
    .await
    .unwrap();
    let mut reader = source.open_reader(false).await.unwrap();
    let waiting = reader.await_visible(&schema.table, &base);
    let resume = run_each(&mut on_standby, &["SELECT pg_wal_replay_resume()"]);
    let (visible, ()) = tokio::join!(waiting, resume);
    visible.unwrap();
    let (rows, chunks) = copy_rest(&mut *reader, &schema, 1 << 20, 30).await;
    assert_eq!((rows.len(), chunks), (101, 4));
    let senders = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'caudal %' AND query LIKE '%COMMIT%'";
    assert_eq!(
        on_standby.scalar(senders).await.unwrap(),
        "1",
        "it was the standby that was read"
    );
    // Neither the primary itself, nor another server, nor one that was promoted.
    let address = db.source.address();
    let error = with(&format!("{}:{}", address.host, address.port))
        .open_reader(false)
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Prerequisite, "{error:?}");
    run_each(&mut on_standby, &["SELECT pg_promote()"]).await;
    let chunk = reader.plan(&schema, None, 30).await.unwrap().unwrap();
    let error = reader.start(&schema, &chunk, None).await.unwrap_err();
    assert!(error.to_string().contains("promoted"), "{error:?}");
    assert!(source.open_reader(false).await.is_err());
}

async fn the_load_counts_others(place: Place) {
    let db = place.private_database(&[], &[]).await;
    let source = db.open(db.options());
    assert_eq!(
        source.load().await.unwrap().open_transactions,
        None,
        "the user may not see"
    );
    let mut admin = db.source.superuser().await.unwrap();
    run_each(&mut admin, &["GRANT pg_monitor TO cdc"]).await;
    let source = db.open(db.options());
    assert_eq!(source.load().await.unwrap().open_transactions, Some(0));
    let mut other = db.session().await;
    run_each(&mut other, &["BEGIN", "SELECT 1"]).await;
    let load = source.load().await.unwrap();
    assert_eq!((load.open_transactions, load.replica_lag), (Some(1), None));
}
