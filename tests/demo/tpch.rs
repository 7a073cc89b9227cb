//! TPC-H: the eight tables, their keys, and their rows at any scale.
//!
//! One set of `CREATE TABLE` statements and one text format serve PostgreSQL
//! (`COPY … FROM STDIN`), MySQL and MariaDB (`LOAD DATA LOCAL INFILE`): the types
//! are standard SQL and no generated value holds the delimiter or a backslash.

use bytes::Bytes;
use caudal_tests::session::Session;
use caudal_tests::{Result, bail};
use futures::{SinkExt, StreamExt};
use mysql_async::prelude::Queryable;
use std::fmt::{Display, Write as _};
use std::pin::pin;
use tokio::sync::mpsc;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

/// One of the eight tables.
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Columns and key, as `CREATE TABLE` wants them.
    pub columns: &'static str,
}

/// The eight tables, parents before children.
pub const TABLES: [Table; 8] = [
    Table {
        name: "region",
        columns: "r_regionkey integer NOT NULL, r_name char(25) NOT NULL, \
                  r_comment varchar(152) NOT NULL, PRIMARY KEY (r_regionkey)",
    },
    Table {
        name: "nation",
        columns: "n_nationkey integer NOT NULL, n_name char(25) NOT NULL, \
                  n_regionkey integer NOT NULL, n_comment varchar(152) NOT NULL, \
                  PRIMARY KEY (n_nationkey)",
    },
    Table {
        name: "supplier",
        columns: "s_suppkey bigint NOT NULL, s_name char(25) NOT NULL, \
                  s_address varchar(40) NOT NULL, s_nationkey integer NOT NULL, \
                  s_phone char(15) NOT NULL, s_acctbal decimal(15,2) NOT NULL, \
                  s_comment varchar(101) NOT NULL, PRIMARY KEY (s_suppkey)",
    },
    Table {
        name: "customer",
        columns: "c_custkey bigint NOT NULL, c_name varchar(25) NOT NULL, \
                  c_address varchar(40) NOT NULL, c_nationkey integer NOT NULL, \
                  c_phone char(15) NOT NULL, c_acctbal decimal(15,2) NOT NULL, \
                  c_mktsegment char(10) NOT NULL, c_comment varchar(117) NOT NULL, \
                  PRIMARY KEY (c_custkey)",
    },
    Table {
        name: "part",
        columns: "p_partkey bigint NOT NULL, p_name varchar(55) NOT NULL, \
                  p_mfgr char(25) NOT NULL, p_brand char(10) NOT NULL, \
                  p_type varchar(25) NOT NULL, p_size integer NOT NULL, \
                  p_container char(10) NOT NULL, p_retailprice decimal(15,2) NOT NULL, \
                  p_comment varchar(23) NOT NULL, PRIMARY KEY (p_partkey)",
    },
    Table {
        name: "partsupp",
        columns: "ps_partkey bigint NOT NULL, ps_suppkey bigint NOT NULL, \
                  ps_availqty integer NOT NULL, ps_supplycost decimal(15,2) NOT NULL, \
                  ps_comment varchar(199) NOT NULL, PRIMARY KEY (ps_partkey, ps_suppkey)",
    },
    Table {
        name: "orders",
        columns: "o_orderkey bigint NOT NULL, o_custkey bigint NOT NULL, \
                  o_orderstatus char(1) NOT NULL, o_totalprice decimal(15,2) NOT NULL, \
                  o_orderdate date NOT NULL, o_orderpriority char(15) NOT NULL, \
                  o_clerk char(15) NOT NULL, o_shippriority integer NOT NULL, \
                  o_comment varchar(79) NOT NULL, PRIMARY KEY (o_orderkey)",
    },
    Table {
        name: "lineitem",
        columns: "l_orderkey bigint NOT NULL, l_partkey bigint NOT NULL, \
                  l_suppkey bigint NOT NULL, l_linenumber integer NOT NULL, \
                  l_quantity decimal(15,2) NOT NULL, l_extendedprice decimal(15,2) NOT NULL, \
                  l_discount decimal(15,2) NOT NULL, l_tax decimal(15,2) NOT NULL, \
                  l_returnflag char(1) NOT NULL, l_linestatus char(1) NOT NULL, \
                  l_shipdate date NOT NULL, l_commitdate date NOT NULL, \
                  l_receiptdate date NOT NULL, l_shipinstruct char(25) NOT NULL, \
                  l_shipmode char(10) NOT NULL, l_comment varchar(44) NOT NULL, \
                  PRIMARY KEY (l_orderkey, l_linenumber)",
    },
];

/// Bytes that one message to the server aims at.
const CHUNK_BYTES: usize = 1 << 20;

/// Formats rows into chunks of whole lines; ends early when nobody listens.
fn send_rows<R: Display>(rows: impl Iterator<Item = R>, to: &mpsc::Sender<Bytes>) -> u64 {
    let mut chunk = String::with_capacity(CHUNK_BYTES + 4096);
    let mut count = 0;
    for row in rows {
        // The TBL format ends every line with a delimiter that COPY would take for one more column.
        if write!(chunk, "{row}").is_err() || chunk.pop() != Some('|') {
            return count;
        }
        chunk.push('\n');
        count += 1;
        if chunk.len() >= CHUNK_BYTES {
            let full = std::mem::replace(&mut chunk, String::with_capacity(CHUNK_BYTES + 4096));
            if to.blocking_send(full.into()).is_err() {
                return count;
            }
        }
    }
    if !chunk.is_empty() {
        let _ = to.blocking_send(chunk.into());
    }
    count
}

/// The rows of a table as chunks of `|`-separated lines, made on a thread of their own,
/// and their number once the stream has ended.
fn rows(table: &'static str, scale: f64) -> (mpsc::Receiver<Bytes>, tokio::task::JoinHandle<u64>) {
    let (to, from) = mpsc::channel(4);
    let made = tokio::task::spawn_blocking(move || match table {
        "region" => send_rows(RegionGenerator::new(scale, 1, 1).iter(), &to),
        "nation" => send_rows(NationGenerator::new(scale, 1, 1).iter(), &to),
        "supplier" => send_rows(SupplierGenerator::new(scale, 1, 1).iter(), &to),
        "customer" => send_rows(CustomerGenerator::new(scale, 1, 1).iter(), &to),
        "part" => send_rows(PartGenerator::new(scale, 1, 1).iter(), &to),
        "partsupp" => send_rows(PartSuppGenerator::new(scale, 1, 1).iter(), &to),
        "orders" => send_rows(OrderGenerator::new(scale, 1, 1).iter(), &to),
        "lineitem" => send_rows(LineItemGenerator::new(scale, 1, 1).iter(), &to),
        _ => 0,
    });
    (from, made)
}

/// Creates one table in the connection's database and fills it; returns its number of rows.
pub async fn load(session: &mut Session, table: &Table, scale: f64) -> Result<u64> {
    session
        .exec(&format!("CREATE TABLE {} ({})", table.name, table.columns))
        .await?;
    let (chunks, made) = rows(table.name, scale);
    let loaded = match session {
        Session::Postgres(client) => copy_in(client, table.name, chunks).await?,
        Session::Mysql(conn) => load_data(conn, table.name, chunks).await?,
    };
    expect_all(table, loaded, made.await?)?;
    // Estimates of the number of rows come from the statistics.
    let analyze = if matches!(session, Session::Postgres(_)) {
        "ANALYZE"
    } else {
        "ANALYZE TABLE"
    };
    session.rows(&format!("{analyze} {}", table.name)).await?;
    Ok(loaded)
}

async fn copy_in(
    client: &tokio_postgres::Client,
    table: &str,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<u64> {
    let copy = format!("COPY {table} FROM STDIN WITH (FORMAT text, DELIMITER '|')");
    let mut sink = pin!(client.copy_in::<_, Bytes>(&copy).await?);
    while let Some(chunk) = chunks.recv().await {
        sink.send(chunk).await?;
    }
    Ok(sink.finish().await?)
}

async fn load_data(
    conn: &mut mysql_async::Conn,
    table: &str,
    chunks: mpsc::Receiver<Bytes>,
) -> Result<u64> {
    let stream = futures::stream::unfold(chunks, |mut chunks| async move {
        chunks.recv().await.map(|chunk| (Ok(chunk), chunks))
    });
    conn.set_infile_handler(async move { Ok(stream.boxed()) });
    conn.query_drop(format!(
        "LOAD DATA LOCAL INFILE 'rows' INTO TABLE {table} \
         FIELDS TERMINATED BY '|' LINES TERMINATED BY '\\n'"
    ))
    .await?;
    Ok(conn.affected_rows())
}

fn expect_all(table: &Table, loaded: u64, made: u64) -> Result<()> {
    if loaded != made {
        bail!(
            "{}: {made} rows were generated, but {loaded} were loaded",
            table.name
        );
    }
    Ok(())
}
