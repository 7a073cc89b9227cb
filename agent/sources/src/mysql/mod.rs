//! MySQL 8.0 and later, MariaDB 10.6 and later.
//!
//! One implementation for both: they share the client protocol, the row images and most
//! events, and differ in positions ([`gtid`]), a handful of events and how a consistent read
//! is had ([`chunk`]). Questions (prerequisites, schemas, positions) go through
//! mysql_async ([`control`]); rows and the log come over connections of [`wire`], because
//! the column builders take bytes straight from packets and events.

use crate::{
    ChunkReader, DiscoveredTable, Source, SourceLoad, SourceOptions, SourceProgress, Tail,
    TrackedTable,
};
use async_trait::async_trait;
use caudal_model::{Error, Finding, Kind, Position, Result, Severity, TableName};
use std::sync::Arc;

pub mod charsets;
mod check;
pub mod chunk;
mod connect;
mod control;
pub mod ddl;
pub mod decode;
mod dump;
pub mod flavor;
pub mod gtid;
mod identity;
mod login;
mod older;
mod replica;
pub mod schema;
pub(crate) mod tail;
pub mod types;
mod watch;
pub mod wire;

pub use connect::Coercions;
pub use flavor::Flavor;

use connect::{Server, current_place};
use gtid::Place;

/// A MySQL or MariaDB server.
#[derive(Debug, Clone)]
pub struct MysqlSource {
    server: Arc<Server>,
}

impl MysqlSource {
    /// A source; nothing is connected yet.
    ///
    /// Errors: [`Kind::Config`] if the TLS files cannot be read.
    pub fn new(options: SourceOptions, flavor: Flavor) -> Result<Self> {
        crate::tls::client_config(&options.tls)?;
        Ok(MysqlSource {
            server: Arc::new(Server::new(options, flavor)),
        })
    }

    /// Values that were changed on their way, by reason: `caudal_values_coerced_total{reason}`.
    pub fn coerced(&self) -> [(&'static str, u64); 1] {
        self.server.coerced.counts()
    }
}

#[async_trait]
impl Source for MysqlSource {
    fn coerced(&self) -> Vec<(&'static str, u64)> {
        MysqlSource::coerced(self).to_vec()
    }

    fn kind(&self) -> &'static str {
        self.server.flavor.name()
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        check::check(&self.server).await
    }

    async fn discover(&self) -> Result<Vec<DiscoveredTable>> {
        let mut c = self.server.control().await?;
        let options = &self.server.options;
        let tables = schema::selected_tables(&mut c, options).await?;
        Ok(tables
            .iter()
            .map(|t| schema::describe(t, options, self.server.flavor))
            .collect())
    }

    async fn prepare(&self, _tables: &[TableName]) -> Result<Position> {
        let mut c = self.server.control().await?;
        let findings = check::settings(&mut c, &self.server).await?;
        let broken: Vec<&Finding> = findings
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .collect();
        if let Some(first) = broken.first() {
            let mends: Vec<&str> = broken.iter().filter_map(|f| f.mend.as_deref()).collect();
            return Err(
                Error::fatal(Kind::Prerequisite, first.reason.clone()).hint(mends.join("\n"))
            );
        }
        Ok(current_place(&mut c).await?.position())
    }

    async fn add_tables(&self, _tables: &[TableName]) -> Result<()> {
        // The log carries every table.
        Ok(())
    }

    async fn current_position(&self) -> Result<Position> {
        let mut c = self.server.control().await?;
        Ok(current_place(&mut c).await?.position())
    }

    async fn identity(&self) -> Result<String> {
        identity::identity(&self.server).await
    }

    async fn recognize(&self, held: &str, reached: &Position) -> Result<String> {
        identity::recognize(&self.server, held, reached).await
    }

    async fn progress(&self, _reached: &Position) -> Result<SourceProgress> {
        self.server.progress().await
    }

    async fn load(&self) -> Result<SourceLoad> {
        self.server.load().await
    }

    fn covers(&self, reached: &Position, target: &Position) -> Result<bool> {
        let parse = |p| Place::parse(self.server.flavor, p);
        parse(reached)?.covers(&parse(target)?)
    }

    async fn replayable(&self, from: &Position) -> Result<()> {
        let place = Place::parse(self.server.flavor, from)?;
        dump::probe(&self.server, &place).await
    }

    async fn open_tail(&self, from: &Position, tables: Vec<TrackedTable>) -> Result<Box<dyn Tail>> {
        Ok(Box::new(
            tail::MysqlTail::open(self.server.clone(), from, tables).await?,
        ))
    }

    async fn open_reader(&self, exact: bool) -> Result<Box<dyn ChunkReader>> {
        let reader = chunk::Reader::open(self.server.clone(), exact).await?;
        Ok(Box::new(reader))
    }
}
