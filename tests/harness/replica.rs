//! A server that replicates another one, and takes over from it.

use crate::agent::eventually;
use crate::databases::{Kind, Version};
use crate::source::Source;
use crate::{Result, Session};
use std::sync::Arc;

/// A replica, or a standby.
pub struct Replica {
    /// The database of the primary's source on it.
    pub source: Source,
    root: Session,
    stopped: bool,
}

impl Replica {
    /// Of a private server. `settings` as for [`crate::Server::start`], behind what makes it one.
    ///
    /// From PostgreSQL 17 on it keeps a copy of the primary's slots that survive a failover.
    pub async fn of(primary: &Source, settings: &[&str]) -> Result<Replica> {
        match primary.kind() {
            Kind::Postgres => Self::standby(primary, settings).await,
            Kind::Mysql | Kind::Mariadb => Self::replica(primary, settings).await,
        }
    }

    async fn standby(primary: &Source, settings: &[&str]) -> Result<Replica> {
        let address = primary.address();
        let mut all: Vec<String> = vec![
            format!(
                "primary_conninfo=host={} port={} user=cdc password=cdcpw dbname=postgres",
                address.host, address.port
            ),
            "primary_slot_name=standby".to_owned(),
            "hot_standby_feedback=on".to_owned(),
            "wal_receiver_status_interval=1s".to_owned(),
        ];
        if primary.version() != Version::Postgres15 {
            all.push("sync_replication_slots=on".to_owned());
        }
        all.extend(settings.iter().map(|s| (*s).to_owned()));
        primary
            .superuser()
            .await?
            .exec("select pg_create_physical_replication_slot('standby', true)")
            .await?;
        let server = primary.server_handle();
        let server = tokio::task::spawn_blocking(move || {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            server.standby(&all)
        })
        .await??;
        let source = primary.also_on(Arc::new(server));
        Ok(Replica {
            root: source.superuser().await?,
            source,
            stopped: false,
        })
    }

    async fn replica(primary: &Source, settings: &[&str]) -> Result<Replica> {
        let mut all = vec!["--server-id=2", "--log-bin=replica"];
        if primary.kind() == Kind::Mariadb {
            all.push("--log-slave-updates=ON");
        }
        all.extend(settings);
        let own = Source::private(primary.version(), &all, "replica").await?;
        let mut root = own.superuser().await?;
        let address = primary.address();
        let (host, port) = (&address.host, address.port);
        // What its own database brought into its log would stand in the way of the primary's numbers.
        let statements = match primary.kind() {
            Kind::Mysql => [
                "RESET BINARY LOGS AND GTIDS".to_owned(),
                format!(
                    "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '{host}', SOURCE_PORT = {port}, \
                     SOURCE_USER = 'cdc', SOURCE_PASSWORD = 'cdcpw', SOURCE_SSL = 1, \
                     SOURCE_AUTO_POSITION = 1"
                ),
                "START REPLICA".to_owned(),
            ],
            _ => [
                "RESET MASTER".to_owned(),
                format!(
                    "CHANGE MASTER TO MASTER_HOST = '{host}', MASTER_PORT = {port}, MASTER_USER = 'cdc', \
                     MASTER_PASSWORD = 'cdcpw', MASTER_SSL_VERIFY_SERVER_CERT = 0, \
                     MASTER_USE_GTID = slave_pos"
                ),
                "START SLAVE".to_owned(),
            ],
        };
        for sql in &statements {
            root.exec(sql).await?;
        }
        Ok(Replica {
            source: primary.also_on(own.server_handle()),
            root,
            stopped: false,
        })
    }

    /// Its superuser.
    pub fn root(&mut self) -> &mut Session {
        &mut self.root
    }

    /// Runs `START` or `STOP` for `thread`, or for both if it is empty.
    pub async fn run(&mut self, verb: &str, thread: &str) -> Result<()> {
        let name = match self.source.kind() {
            Kind::Mysql => "REPLICA",
            _ => "SLAVE",
        };
        self.root.exec(&format!("{verb} {name} {thread}")).await
    }

    /// Waits until a query's one cell is `wanted`.
    pub async fn expect(&self, query: &str, wanted: &str) -> Result<()> {
        eventually(query, async || {
            let mut session = self.source.superuser().await?;
            // The table may not have come yet.
            let found = session.scalar(query).await.unwrap_or_default();
            Ok((found == wanted).then_some(()))
        })
        .await
    }

    /// Stops what comes from the primary, without a promotion.
    pub async fn cut_off(&mut self) -> Result<()> {
        match self.source.kind() {
            Kind::Postgres => {
                let server = self.source.server_handle();
                tokio::task::spawn_blocking(move || server.stop()).await??;
                self.stopped = true;
                Ok(())
            }
            Kind::Mysql | Kind::Mariadb => self.run("STOP", "").await,
        }
    }

    /// Makes it a primary.
    pub async fn promote(&mut self) -> Result<()> {
        match self.source.kind() {
            Kind::Postgres => {
                if std::mem::take(&mut self.stopped) {
                    let server = self.source.server_handle();
                    tokio::task::spawn_blocking(move || server.resume()).await??;
                    self.root = self.source.superuser().await?;
                }
                self.root.exec("select pg_promote()").await
            }
            Kind::Mysql => {
                self.run("STOP", "").await?;
                self.root.exec("RESET REPLICA ALL").await
            }
            Kind::Mariadb => {
                self.run("STOP", "").await?;
                self.root.exec("RESET SLAVE ALL").await
            }
        }
    }
}
