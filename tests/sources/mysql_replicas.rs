//! Replicas of MySQL and MariaDB: copies are read from one only when it shows what the tail has
//! delivered, and what keeps copies waiting is told.

use crate::database::{Database, Place, on, run_each};
use crate::rows::{copy_rest, tracked};
use caudal_model::{Kind, Severity};
use caudal_tests::Session;
use caudal_tests::agent::eventually;
use caudal_tests::databases::Kind as Family;
use std::time::Duration;

on!(
    mysql and mariadb: copies_are_read_from_a_replica_that_has_come_to_their_base,
    load_is_told_by_transactions_and_replicas,
);

/// A server that replicates another one.
struct Replica {
    db: Database,
    root: Session,
    family: Family,
}

impl Replica {
    async fn of(primary: &Database, place: Place) -> Replica {
        // Its own database would stand in the way of the primary's numbers.
        let db = place
            .private_database(&["--server-id=2", "--skip-log-bin"], &[])
            .await;
        let mut replica = Replica {
            root: db.source.superuser().await.unwrap(),
            family: db.source.kind(),
            db,
        };
        let address = primary.source.address();
        let (host, port) = (&address.host, address.port);
        let follow = match replica.family {
            Family::Mysql => format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '{host}', SOURCE_PORT = {port}, \
                 SOURCE_USER = 'cdc', SOURCE_PASSWORD = 'cdcpw', SOURCE_SSL = 1, \
                 SOURCE_AUTO_POSITION = 1"
            ),
            _ => format!(
                "CHANGE MASTER TO MASTER_HOST = '{host}', MASTER_PORT = {port}, MASTER_USER = 'cdc', \
                 MASTER_PASSWORD = 'cdcpw', MASTER_SSL_VERIFY_SERVER_CERT = 0, \
                 MASTER_USE_GTID = slave_pos"
            ),
        };
        let monitor = "GRANT PROCESS, SLAVE MONITOR ON *.* TO cdc";
        let privileges: &[&str] = match replica.family {
            Family::Mysql => &[],
            _ => &[monitor],
        };
        run_each(&mut replica.root, privileges).await;
        run_each(&mut replica.root, &[&follow]).await;
        replica.run("START", "").await;
        replica
    }

    async fn run(&mut self, verb: &str, thread: &str) {
        let name = match self.family {
            Family::Mysql => "REPLICA",
            _ => "SLAVE",
        };
        run_each(&mut self.root, &[&format!("{verb} {name} {thread}")]).await;
    }

    fn address(&self) -> String {
        let address = self.db.source.address();
        format!("{}:{}", address.host, address.port)
    }

    /// Waits until a query's one cell is `wanted`.
    async fn expect(&self, query: &str, wanted: &str) {
        eventually(query, async || {
            let mut session = self.db.source.superuser().await?;
            // The table may not have come yet.
            let found = session.scalar(query).await.unwrap_or_default();
            Ok((found == wanted).then_some(()))
        })
        .await
        .unwrap();
    }
}

async fn copies_are_read_from_a_replica_that_has_come_to_their_base(place: Place) {
    let create = "CREATE TABLE t (id int primary key)";
    let primary = place
        .private_database(&[], &[create, "INSERT INTO t VALUES (1), (2)"])
        .await;
    let mut replica = Replica::of(&primary, place).await;
    let table = primary.table("t");
    replica
        .expect(&format!("SELECT count(*) FROM {table}"), "2")
        .await;
    // Told from the primary by a row that only the replica has.
    let own = format!("INSERT INTO {table} VALUES (1000)");
    run_each(&mut replica.root, &[&own]).await;
    let mut options = primary.options();
    options.replica = Some(replica.address());
    let source = primary.open(options);
    let schema = tracked(&*source).await.remove(0).schema;

    replica.run("STOP", "SQL_THREAD").await;
    run_each(&mut primary.session().await, &["INSERT INTO t VALUES (3)"]).await;
    let base = source.current_position().await.unwrap();
    let (waiting, reads) = (&source, schema.clone());
    let copy = async {
        let mut reader = waiting.open_reader(false).await.unwrap();
        reader.await_visible(&reads.table, &base).await.unwrap();
        copy_rest(&mut *reader, &reads, 1 << 20, 2).await.0
    };
    let waits = "SELECT count(*) FROM information_schema.PROCESSLIST \
                 WHERE USER = 'cdc' AND INFO LIKE '%GTID%WAIT%' OR INFO LIKE 'SELECT WAIT_FOR_EXEC%'";
    let go_on = async {
        replica.expect(waits, "1").await;
        replica.run("START", "SQL_THREAD").await;
    };
    let (rows, ()) = tokio::join!(copy, go_on);
    assert_eq!(rows, ["t:r id=1", "t:r id=2", "t:r id=3", "t:r id=1000"]);
    // A new connection, which may have come to another server, waits for the same base.
    let mut reader = source.open_reader(false).await.unwrap();
    assert_eq!(
        copy_rest(&mut *reader, &schema, 1 << 20, 100).await.0.len(),
        4
    );
    let findings = source.check().await.unwrap();
    let fine = |f: &&caudal_model::Finding| f.check == "replica" && f.severity == Severity::Ok;
    assert!(findings.iter().find(fine).is_some(), "{findings:?}");

    // One that leaves tables out.
    replica.run("STOP", "").await;
    let filter = match replica.family {
        Family::Mysql => "CHANGE REPLICATION FILTER REPLICATE_IGNORE_DB = (shop)",
        _ => "SET GLOBAL replicate_ignore_db = 'shop'",
    };
    run_each(&mut replica.root, &[filter]).await;
    let error = source.open_reader(false).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Prerequisite, "{error}");
    assert!(error.to_string().contains("shop"), "{error}");

    // One of another primary; and none.
    let other = place
        .private_database(&["--server-id=3"], &["CREATE TABLE x (id int)"])
        .await;
    let mut options = other.options();
    options.replica = Some(replica.address());
    let stranger = other.open(options);
    let base = stranger.current_position().await.unwrap();
    let unfiltered = match replica.family {
        Family::Mysql => "CHANGE REPLICATION FILTER REPLICATE_IGNORE_DB = ()",
        _ => "SET GLOBAL replicate_ignore_db = ''",
    };
    run_each(&mut replica.root, &[unfiltered]).await;
    let mut reader = stranger.open_reader(false).await.unwrap();
    let error = reader
        .await_visible(&other.table("x"), &base)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Prerequisite, "{error}");
    let mut options = primary.options();
    let address = other.source.address();
    options.replica = Some(format!("{}:{}", address.host, address.port));
    let source = primary.open(options);
    if replica.family == Family::Mariadb {
        let mut root = other.source.superuser().await.unwrap();
        run_each(&mut root, &["GRANT SLAVE MONITOR ON *.* TO cdc"]).await;
    }
    let base = source.current_position().await.unwrap();
    let error = match source.open_reader(false).await {
        Ok(mut reader) => reader.await_visible(&table, &base).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.to_string().contains("not a replica"), "{error}");
}

async fn load_is_told_by_transactions_and_replicas(place: Place) {
    let creates = [
        "CREATE TABLE t (id int primary key)",
        "INSERT INTO t VALUES (1), (2)",
    ];
    let primary = place.private_database(&[], &creates).await;
    let mut replica = Replica::of(&primary, place).await;
    let mut options = primary.options();
    options.watch_replicas = vec![replica.address()];
    let source = primary.open(options);
    assert_eq!(source.load().await.unwrap().open_transactions, None);
    let mut root = primary.source.superuser().await.unwrap();
    run_each(&mut root, &["GRANT PROCESS ON *.* TO cdc"]).await;
    let source = primary.open(source_options(&primary, vec![replica.address()]));
    // Those of chunks are the agent's own.
    let schema = tracked(&*source).await.remove(0).schema;
    let mut reader = source.open_reader(false).await.unwrap();
    let chunk = reader.plan(&schema, None, 1).await.unwrap().unwrap();
    reader.start(&schema, &chunk, None).await.unwrap();
    assert_eq!(source.load().await.unwrap().open_transactions, Some(0));
    let mut writer = primary.session().await;
    run_each(
        &mut writer,
        &["START TRANSACTION", "INSERT INTO t VALUES (3)"],
    )
    .await;
    // The server makes its list anew only when nobody has asked for a tenth of a second.
    run_each(&mut writer, &["DO SLEEP(0.2)"]).await;
    assert_eq!(source.load().await.unwrap().open_transactions, Some(1));
    run_each(&mut writer, &["COMMIT"]).await;

    let lag = async || source.load().await.unwrap().replica_lag;
    eventually("the replica has caught up", async || {
        Ok((lag().await == Some(Duration::ZERO)).then_some(()))
    })
    .await
    .unwrap();
    replica.run("STOP", "SQL_THREAD").await;
    assert_eq!(lag().await, Some(Duration::MAX));
    replica.run("START", "SQL_THREAD").await;
    eventually("the replica goes on", async || {
        Ok((lag().await == Some(Duration::ZERO)).then_some(()))
    })
    .await
    .unwrap();
    // Nothing is told by one that does not answer, until it does again.
    replica.db.source.server().stop().unwrap();
    assert_eq!(lag().await, None);
    replica.db.source.server().resume().unwrap();
    eventually("the replica is back", async || Ok(lag().await.map(|_| ())))
        .await
        .unwrap();
    // One that is none.
    let source = primary.open(source_options(&primary, vec!["127.0.0.1".into()]));
    assert_eq!(source.load().await.unwrap().replica_lag, None);
}

fn source_options(db: &Database, watch_replicas: Vec<String>) -> caudal_sources::SourceOptions {
    caudal_sources::SourceOptions {
        watch_replicas,
        ..db.options()
    }
}
