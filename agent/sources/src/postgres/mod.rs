//! PostgreSQL 14 and later.
//!
//! The log is read with `pgoutput` over a replication connection, snapshots with
//! `COPY … (FORMAT binary)` over ordinary ones. What both must agree on lives in
//! `schema` (types) and `connect` (session settings).

use crate::{
    ChunkReader, DiscoveredTable, Source, SourceLoad, SourceOptions, SourceProgress, Tail,
    TrackedTable,
};
use async_trait::async_trait;
use caudal_model::{Finding, Position, Result, TableName};
use connect::Client;
use std::sync::Arc;

mod blocks;
pub(crate) mod catalog;
mod check;
mod chunk;
mod connect;
mod copy;
pub mod decode;
mod decoder;
mod filter;
mod identity;
mod load;
mod lsn;
pub(crate) mod mapping;
mod membership;
mod names;
mod partitions;
pub(crate) mod relation;
mod replica;
mod replication;
mod schema;
mod shape;
mod slot;
mod staging;
mod tail;
mod visibility;

pub use lsn::Lsn;

/// What the source, its tail and its readers share.
pub(crate) struct Shared {
    pub(crate) options: SourceOptions,
    /// INV-5: commits that the tail has delivered.
    pub(crate) delivered: visibility::Delivered,
    /// What chunks that a replica gives must see.
    pub(crate) bases: replica::Bases,
    /// What the catalogue was seen to call the selected tables.
    pub(crate) names: names::Names,
    /// Whether the publication still tells what is followed.
    pub(crate) membership: membership::Membership,
    /// The server process that reads the log for this agent, or did.
    pub(crate) walsender: std::sync::atomic::AtomicI32,
    /// The server's time when this agent first opened the log, as text.
    pub(crate) began: std::sync::OnceLock<String>,
    /// One connection for questions, opened when it is first needed.
    control: tokio::sync::Mutex<Option<Arc<Client>>>,
    /// Transactions are wanted only once they have committed.
    whole: std::sync::atomic::AtomicBool,
}

impl Shared {
    /// The database; like libpq, the user's name if none is given.
    pub(crate) fn database(&self) -> &str {
        self.options
            .database
            .as_deref()
            .unwrap_or(&self.options.user)
    }

    /// The slot's name.
    pub(crate) fn slot(&self) -> String {
        self.options
            .slot
            .clone()
            .unwrap_or_else(|| slot::default_name(&self.options.stream))
    }

    /// The publication's name.
    pub(crate) fn publication(&self) -> String {
        self.options
            .publication
            .clone()
            .unwrap_or_else(|| slot::default_name(&self.options.stream))
    }

    /// The connection for questions.
    pub(crate) async fn control(&self) -> Result<Arc<Client>> {
        let mut held = self.control.lock().await;
        if let Some(client) = held.as_ref().filter(|c| !c.is_closed()) {
            return Ok(client.clone());
        }
        let client = Arc::new(connect::connect(self).await?);
        *held = Some(client.clone());
        Ok(client)
    }
}

/// A PostgreSQL database.
pub struct PostgresSource {
    shared: Arc<Shared>,
}

impl PostgresSource {
    /// A source that connects when it is first used.
    ///
    /// Errors: [`caudal_model::Kind::Config`] for a slot name that the server would refuse.
    pub fn new(options: SourceOptions) -> Result<Self> {
        let shared = Shared {
            options,
            delivered: visibility::Delivered::default(),
            bases: replica::Bases::default(),
            names: names::Names::default(),
            membership: membership::Membership::default(),
            walsender: std::sync::atomic::AtomicI32::new(0),
            began: std::sync::OnceLock::new(),
            control: tokio::sync::Mutex::new(None),
            whole: false.into(),
        };
        slot::validate_name(&shared.slot())?;
        Ok(PostgresSource {
            shared: Arc::new(shared),
        })
    }
}

#[async_trait]
impl Source for PostgresSource {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        check::check(&self.shared).await
    }

    async fn discover(&self) -> Result<Vec<DiscoveredTable>> {
        schema::discover(&self.shared).await
    }

    async fn prepare(&self, tables: &[TableName]) -> Result<Position> {
        slot::prepare(&self.shared, tables).await
    }

    async fn add_tables(&self, tables: &[TableName]) -> Result<()> {
        slot::add_tables(&self.shared, tables).await
    }

    async fn catalog_mark(&self) -> Result<Option<String>> {
        names::look(&self.shared).await.map(Some)
    }

    async fn current_position(&self) -> Result<Position> {
        slot::current_position(&self.shared).await
    }

    async fn identity(&self) -> Result<String> {
        let server = identity::Server::ask(&self.shared).await?;
        Ok(server.to_string())
    }

    async fn recognize(&self, held: &str, reached: &Position) -> Result<String> {
        identity::recognize(&self.shared, held, Lsn::of(reached)?).await
    }

    async fn progress(&self, reached: &Position) -> Result<SourceProgress> {
        slot::progress(&self.shared, reached).await
    }

    fn covers(&self, reached: &Position, target: &Position) -> Result<bool> {
        Ok(Lsn::of(reached)? >= Lsn::of(target)?)
    }

    async fn replayable(&self, from: &Position) -> Result<()> {
        let control = self.shared.control().await?;
        slot::require(&control, &self.shared, Lsn::of(from)?).await?;
        Ok(())
    }

    fn keeps_until_acknowledged(&self) -> bool {
        true
    }

    async fn open_tail(&self, from: &Position, tables: Vec<TrackedTable>) -> Result<Box<dyn Tail>> {
        Ok(Box::new(
            tail::PostgresTail::open(self.shared.clone(), from, tables).await?,
        ))
    }

    async fn load(&self) -> Result<SourceLoad> {
        load::load(&self.shared).await
    }

    async fn open_reader(&self, exact: bool) -> Result<Box<dyn ChunkReader>> {
        Ok(Box::new(
            chunk::PostgresReader::open(self.shared.clone(), exact).await?,
        ))
    }
}
