//! A database of its own on a test server, as a behaviour of the suite sees it: the
//! same for every kind, so that a behaviour is written once.

use crate::agent::Config;
use crate::databases::{Address, Kind, Server, Version, unique};
use crate::dialect;
use crate::session::Session;
use crate::{Context, Result};
use std::path::Path;
use std::sync::Arc;

/// A database that one test owns. Dropped with everything that a stream left on the
/// server (slots, publications) when this value is.
#[derive(Debug)]
pub struct Source {
    server: Arc<Server>,
    database: String,
}

impl Source {
    /// A new database on the shared server of this version. `label` becomes part of
    /// its name, for a look at the server.
    pub async fn shared(version: Version, label: &str) -> Result<Source> {
        let server = tokio::task::spawn_blocking(move || Server::shared(version)).await??;
        Self::on(Arc::new(server), label).await
    }

    /// A new database on a server of its own, with additional settings (see [`Server::start`]).
    pub async fn private(version: Version, settings: &[&str], label: &str) -> Result<Source> {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        let server =
            tokio::task::spawn_blocking(move || Server::start(version, &settings)).await??;
        Self::on(Arc::new(server), label).await
    }

    /// A new database on a given server.
    pub async fn on(server: Arc<Server>, label: &str) -> Result<Source> {
        let label: String = label
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '_'
                }
            })
            .take(30)
            .collect();
        Self::named(server, format!("t_{label}_{}", unique().replace('-', "_"))).await
    }

    /// A new database of this name, which people will read, on a given server.
    pub async fn named(server: Arc<Server>, database: String) -> Result<Source> {
        let source = Source { server, database };
        let mut admin = source.superuser_on(source.default_database()).await?;
        match source.kind() {
            Kind::Postgres => {
                admin
                    .exec(&format!("create database {} owner app", source.database))
                    .await?;
                admin
                    .exec(&format!(
                        "grant create on database {} to cdc",
                        source.database
                    ))
                    .await?;
                // Before 15 everybody may create tables in `public`, since then its owner.
                source
                    .superuser()
                    .await?
                    .exec("grant all on schema public to app")
                    .await?;
            }
            Kind::Mysql | Kind::Mariadb => {
                admin
                    .exec(&format!(
                        "create database {} character set utf8mb4",
                        source.database
                    ))
                    .await?;
            }
        }
        Ok(source)
    }

    /// The same database on another server, which has it already.
    pub fn also_on(&self, server: Arc<Server>) -> Source {
        Source {
            server,
            database: self.database.clone(),
        }
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }
    /// The server, for another database on it.
    pub fn server_handle(&self) -> Arc<Server> {
        Arc::clone(&self.server)
    }
    /// Where the server is.
    pub fn address(&self) -> &Address {
        self.server.address()
    }
    /// PostgreSQL, MySQL or MariaDB.
    pub fn kind(&self) -> Kind {
        self.server.version().kind()
    }
    /// The version.
    pub fn version(&self) -> Version {
        self.server.version()
    }
    /// The test's own database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The first part of its tables' names: the schema in PostgreSQL, else the database.
    pub fn schema(&self) -> &str {
        match self.kind() {
            Kind::Postgres => "public",
            Kind::Mysql | Kind::Mariadb => &self.database,
        }
    }

    /// The full name of one of its tables, as config, log and status have it.
    pub fn table(&self, name: &str) -> String {
        format!("{}.{name}", self.schema())
    }

    /// SQL with the placeholders of [`dialect::translate`] replaced.
    pub fn sql(&self, sql: &str) -> String {
        dialect::translate(self.kind(), sql)
    }

    /// A new client connection as the user who owns the tables.
    pub async fn session(&self) -> Result<Session> {
        Session::connect(self.address(), &self.database, "app", "apppw").await
    }

    /// Runs statements (with placeholders) on a connection of their own.
    pub async fn exec(&self, sql: &str) -> Result<()> {
        self.session().await?.exec(&self.sql(sql)).await
    }

    /// The first cell of a query's first row.
    pub async fn scalar(&self, sql: &str) -> Result<String> {
        self.session().await?.scalar(&self.sql(sql)).await
    }

    /// A connection as the superuser.
    pub async fn superuser(&self) -> Result<Session> {
        self.superuser_on(&self.database).await
    }

    async fn superuser_on(&self, database: &str) -> Result<Session> {
        let user = if self.kind() == Kind::Postgres {
            "postgres"
        } else {
            "root"
        };
        Session::connect(self.address(), database, user, "").await
    }

    fn default_database(&self) -> &'static str {
        if self.kind() == Kind::Postgres {
            "postgres"
        } else {
            "mysql"
        }
    }

    /// Inserts `count` rows from `first` on in statements of up to 1,000 rows, each
    /// committed by itself; `row` gives a row's values in parentheses.
    pub async fn fill(
        &self,
        table: &str,
        first: i64,
        count: i64,
        row: impl Fn(i64) -> String,
    ) -> Result<()> {
        let mut session = self.session().await?;
        let end = first + count;
        let mut next = first;
        while next < end {
            let last = (next + 1000).min(end);
            let rows: Vec<String> = (next..last).map(&row).collect();
            session
                .exec(&format!("insert into {table} values {}", rows.join(", ")))
                .await?;
            next = last;
        }
        Ok(())
    }

    /// The config of a stream that reads this database with little delay; its sink is
    /// to be set. Tables are all of this database unless overridden.
    pub fn config(&self, stream: &str, state_dir: &Path) -> Config {
        let a = self.address();
        let mut config = Config::default();
        config.set("stream.name", stream);
        config.set("stream.state_dir", state_dir.display().to_string());
        config.set("source.kind", self.kind().config_name());
        config.set("source.host", a.host.clone());
        config.set("source.port", i64::from(a.port));
        config.set("source.database", self.database.clone());
        config.set("source.user", "cdc");
        config.set("source.password", "env:CAUDAL_TEST_PASSWORD");
        config.set("tables.include", vec![format!("{}.*", self.schema())]);
        config.set("commit.max_delay", "200ms");
        config
    }

    /// Writes a table as CSV in the oracle's canonical text. `columns` limits it; all
    /// columns if empty.
    pub async fn export(&self, table: &str, columns: &[&str], to: &Path) -> Result<u64> {
        let mut session = self.session().await?;
        let sql = match self.kind() {
            Kind::Postgres => {
                session.exec(POSTGRES_TEXT).await?;
                format!(
                    "select attname, format_type(atttypid, atttypmod) from pg_attribute \
                     where attrelid = '{}'::regclass and attnum > 0 and not attisdropped order by attnum",
                    dialect::name(Kind::Postgres, table)
                )
            }
            kind => {
                session.exec("set time_zone = '+00:00'").await?;
                if kind == Kind::Mariadb {
                    // A temporary table of a sort may be smaller than a row of the export.
                    session.exec("set sql_mode = ''").await?;
                }
                format!(
                    "select column_name, column_type from information_schema.columns \
                     where table_schema = '{}' and table_name = '{table}' order by ordinal_position",
                    self.database
                )
            }
        };
        let mut names = Vec::new();
        let mut expressions = Vec::new();
        for row in session.rows(&sql).await? {
            if let [Some(name), Some(data_type)] = row.as_slice()
                && (columns.is_empty() || columns.contains(&name.as_str()))
            {
                expressions.push(dialect::canonical(self.kind(), name, data_type));
                names.push(name.clone());
            }
        }
        let select = format!(
            "select {} from {}",
            expressions.join(", "),
            dialect::name(self.kind(), table)
        );
        session
            .write_csv(&names, &select, to)
            .await
            .context(format!("cannot export {table} of {}", self.version()))
    }

    async fn remove(&self) -> Result<()> {
        let mut admin = self.superuser_on(self.default_database()).await?;
        if self.kind() == Kind::Postgres {
            let slots = admin
                .rows(&format!(
                    "select slot_name, active_pid from pg_replication_slots where database = '{}'",
                    self.database
                ))
                .await?;
            for slot in slots {
                if let [Some(name), pid] = slot.as_slice() {
                    if let Some(pid) = pid {
                        admin
                            .rows(&format!("select pg_terminate_backend({pid}, 5000)"))
                            .await?;
                    }
                    admin
                        .rows(&format!("select pg_drop_replication_slot('{name}')"))
                        .await?;
                }
            }
            return admin
                .exec(&format!("drop database {} with (force)", self.database))
                .await;
        }
        admin
            .exec(&format!("drop database {}", self.database))
            .await
    }
}

const POSTGRES_TEXT: &str = "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; \
    set intervalstyle = 'iso_8601'; set extra_float_digits = 1; set bytea_output = 'hex'";

impl Drop for Source {
    fn drop(&mut self) {
        // A private server is removed whole.
        if crate::keep() || Arc::strong_count(&self.server) > 1 {
            return;
        }
        // A runtime of its own: the test's may be shutting down after a panic.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                if let Ok(runtime) = runtime {
                    let patience = std::time::Duration::from_secs(15);
                    let _ = runtime
                        .block_on(async { tokio::time::timeout(patience, self.remove()).await });
                }
            });
        });
    }
}
