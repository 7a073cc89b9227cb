//! A database of its own for each test, on the servers that the tests share, and the
//! options with which a source reads it.

use caudal_model::{Selection, TableName};
use caudal_sources::mysql::{Flavor, MysqlSource};
use caudal_sources::postgres::PostgresSource;
use caudal_sources::{Source, SourceOptions, TlsMode, TlsOptions};
use caudal_tests::databases::Kind;
use caudal_tests::{Session, Version};
use std::collections::HashMap;
use std::time::Duration;
use tempfile::TempDir;

/// Makes a test for every server of a kind of each `async fn(Place)`.
macro_rules! on {
    (postgres: $($name:ident),+ $(,)?) => {$(
        mod $name {
            $crate::database::on!(@ postgres15, Postgres15, $name);
            $crate::database::on!(@ postgres17, Postgres17, $name);
            $crate::database::on!(@ postgres18, Postgres18, $name);
        }
    )+};
    (mysql: $($name:ident),+ $(,)?) => {$(
        mod $name {
            $crate::database::on!(@ mysql97, Mysql97, $name);
        }
    )+};
    (mariadb: $($name:ident),+ $(,)?) => {$(
        mod $name {
            $crate::database::on!(@ mariadb1011, Mariadb1011, $name);
            $crate::database::on!(@ mariadb118, Mariadb118, $name);
        }
    )+};
    (mysql and mariadb: $($name:ident),+ $(,)?) => {$(
        mod $name {
            $crate::database::on!(@ mysql97, Mysql97, $name);
            $crate::database::on!(@ mariadb1011, Mariadb1011, $name);
            $crate::database::on!(@ mariadb118, Mariadb118, $name);
        }
    )+};
    (@ $server:ident, $version:ident, $name:ident) => {
        #[test]
        fn $server() {
            let version = caudal_tests::Version::$version;
            $crate::database::run(version, stringify!($name), super::$name);
        }
    };
}
pub(crate) use on;

/// Runs a test to its end. Threads beside the test's own let connections close while it ends.
pub fn run(version: Version, name: &'static str, test: impl AsyncFnOnce(Place)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(Place { version, name }));
}

/// The server's version that a test is for, and the test's name.
#[derive(Clone, Copy)]
pub struct Place {
    version: Version,
    name: &'static str,
}

impl Place {
    /// PostgreSQL, MySQL or MariaDB.
    pub fn kind(self) -> Kind {
        self.version.kind()
    }

    /// Whether the server is the newest of its kind.
    pub fn is_newest(self) -> bool {
        matches!(
            self.version,
            Version::Postgres18 | Version::Mysql97 | Version::Mariadb118
        )
    }

    /// A new database on the server that all tests share, with these statements run in it.
    pub async fn database(self, statements: &[&str]) -> Database {
        let source = caudal_tests::Source::shared(self.version, self.name).await;
        Database::new(source.unwrap(), statements).await
    }

    /// The same on a server of its own, for what other tests of the server would see.
    pub async fn private_database(self, settings: &[&str], statements: &[&str]) -> Database {
        let source = caudal_tests::Source::private(self.version, settings, self.name).await;
        Database::new(source.unwrap(), statements).await
    }
}

/// A test's database.
pub struct Database {
    /// The harness's side of it, which removes it in the end.
    pub source: caudal_tests::Source,
    dir: TempDir,
}

impl Database {
    async fn new(source: caudal_tests::Source, statements: &[&str]) -> Database {
        let database = Database {
            source,
            dir: tempfile::Builder::new()
                .prefix("caudal-test-")
                .tempdir()
                .unwrap(),
        };
        run_each(&mut database.session().await, statements).await;
        database
    }

    /// A connection of the tables' owner.
    pub async fn session(&self) -> Session {
        let mut session = self.source.session().await.unwrap();
        if self.source.kind() != Kind::Postgres {
            // Zero dates and the like are refused otherwise; the source must carry them.
            let settings =
                "SET NAMES utf8mb4, lock_wait_timeout = 20, sql_mode = '', time_zone = '+02:00'";
            session.exec(settings).await.unwrap();
        }
        session
    }

    /// The full name of a table.
    pub fn table(&self, name: &str) -> TableName {
        TableName::new(self.source.schema(), name)
    }

    /// The stream's name; no other stream on the server has it.
    pub fn stream(&self) -> &str {
        self.source.database().trim_start_matches("t_")
    }

    /// All tables of the database, read as the user who may do no more than caudal needs.
    pub fn options(&self) -> SourceOptions {
        let address = self.source.address();
        let database = self.source.database().to_owned();
        SourceOptions {
            stream: self.stream().to_owned(),
            host: address.host.clone(),
            port: address.port,
            database: (self.source.kind() == Kind::Postgres).then_some(database),
            user: "cdc".into(),
            password: "cdcpw".to_owned().into(),
            tls: TlsOptions {
                mode: TlsMode::Prefer,
                ca_file: None,
                cert_file: None,
                key_file: None,
            },
            server_id: None,
            slot: None,
            publication: None,
            selection: Selection::new(&[format!("{}.*", self.source.schema())], &[]).unwrap(),
            tables: HashMap::new(),
            replica: None,
            watch_replicas: Vec::new(),
            spill_dir: self.dir.path().join("spill"),
            staging_bytes: 64 << 10,
            spill_bytes: u64::MAX,
            value_bytes: 512 << 20,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(60),
        }
    }

    /// The reader of the database.
    pub fn open(&self, options: SourceOptions) -> Box<dyn Source> {
        match self.source.kind() {
            Kind::Postgres => Box::new(PostgresSource::new(options).unwrap()),
            Kind::Mysql => Box::new(MysqlSource::new(options, Flavor::MySql).unwrap()),
            Kind::Mariadb => Box::new(MysqlSource::new(options, Flavor::MariaDb).unwrap()),
        }
    }
}

/// Runs statements one by one: sent together they would be one transaction in PostgreSQL.
pub async fn run_each(session: &mut Session, statements: &[&str]) {
    for statement in statements {
        session.exec(statement).await.unwrap();
    }
}

/// The same for statements in one text, none of which has a semicolon inside.
pub async fn run_script(session: &mut Session, script: &str) {
    let statements: Vec<&str> = script.split(';').collect();
    run_each(session, &statements).await;
}

impl Database {
    /// Waits until PostgreSQL knows that a position was acknowledged.
    pub async fn expect_acknowledged(&self, position: &caudal_model::Position) {
        let confirmed = format!(
            "select count(*) from pg_replication_slots \
             where database = '{}' and confirmed_flush_lsn >= '{position}'",
            self.source.database()
        );
        caudal_tests::agent::eventually("the position is acknowledged", async || {
            Ok((self.source.scalar(&confirmed).await? == "1").then_some(()))
        })
        .await
        .unwrap();
    }
}
