//! Readers of source databases: snapshots in chunks and the log's tail.
//!
//! One trait family for every database. A source knows its database's protocol,
//! positions and types; it knows nothing of the lake, of commits or of the other
//! sources. Everything that it reads goes straight into the column builders of a
//! [`ChangeBuffer`].

use async_trait::async_trait;
use caudal_model::schema::ColumnSpec;
use caudal_model::{
    ChangeBuffer, Chunk, Error, Filter, Finding, LakeType, Mark, Position, Result, Selection,
    TableName, TableSchema,
};
use secrecy::SecretString;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub mod filter;
#[doc(hidden)]
pub mod fuzz;
pub mod mysql;
pub mod overrides;
pub mod postgres;
pub mod scripted;
pub(crate) mod spill;
pub mod tls;

/// How far the connection's peer is checked; the names are libpq's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Plain text.
    Disable,
    /// TLS if the server offers it, unverified.
    Prefer,
    /// TLS or no connection, unverified.
    Require,
    /// The certificate must be signed by a known authority.
    VerifyCa,
    /// And it must name the host.
    VerifyFull,
}

/// TLS of a source's connections.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// How far the peer is checked.
    pub mode: TlsMode,
    /// PEM file of the authorities; the system's if absent.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's key.
    pub key_file: Option<PathBuf>,
}

/// What a user overrides for one table.
#[derive(Debug, Clone, Default)]
pub struct TableOptions {
    /// Columns that never leave the source.
    pub exclude_columns: Vec<String>,
    /// Columns whose text is replaced by its hash before it is staged anywhere; to a
    /// source they are `as = "string"`, and their source type is marked by
    /// [`TableOptions::source_type`]. The hash itself is the buffer's ([`caudal_model::Rules`]).
    pub hash_columns: Vec<String>,
    /// Other lake types for single columns (`as`).
    pub lake_types: BTreeMap<String, LakeType>,
    /// The rows to carry. The buffer applies it to every row; a source adds it to a
    /// chunk's SELECT so that the others need not be read.
    pub filter: Option<Filter>,
    /// The key of a table without a primary key, or a unique index to be used as one.
    pub key: Option<Vec<String>>,
}

impl TableOptions {
    /// The lake type that the user asks for: `string` for a hashed column.
    pub fn lake_type(&self, column: &str) -> Option<&LakeType> {
        if self.hash_columns.iter().any(|c| c == column) {
            return Some(&LakeType::Utf8);
        }
        self.lake_types.get(column)
    }

    /// The column's type as the schema tells it: a column that begins or ends to be
    /// hashed is another one, whose table must be copied again.
    pub fn source_type(&self, column: &str, source_type: &str) -> String {
        if self.hash_columns.iter().any(|c| c == column) {
            format!("{source_type} hashed")
        } else {
            source_type.to_owned()
        }
    }

    /// Whether the filter looks at columns outside the key, so that an update can be told
    /// only where the log carries whole rows (replica identity FULL, row image FULL).
    pub fn filter_needs_whole_rows(&self, key: &[String]) -> bool {
        let filter = self.filter.as_ref();
        filter.is_some_and(|f| f.columns().iter().any(|c| !key.contains(c)))
    }
}

/// Everything that a source needs to know.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Names the slot, the publication and the connections.
    pub stream: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The database; MySQL and MariaDB may do without.
    pub database: Option<String>,
    /// The user.
    pub user: String,
    /// The password.
    pub password: SecretString,
    /// TLS.
    pub tls: TlsOptions,
    /// MySQL, MariaDB: the replica's server id; derived from the stream's name if absent.
    pub server_id: Option<u32>,
    /// PostgreSQL: the slot; `caudal_<stream>` if absent.
    pub slot: Option<String>,
    /// PostgreSQL: the publication; `caudal_<stream>` if absent.
    pub publication: Option<String>,
    /// Which tables.
    pub selection: Selection,
    /// Overrides by table.
    pub tables: HashMap<TableName, TableOptions>,
    /// A directory that the source may spill staged transactions to; it is emptied at start.
    pub spill_dir: PathBuf,
    /// Bytes that staged transactions may hold in memory before they spill.
    pub staging_bytes: usize,
    /// Bytes that staged transactions may have in that directory.
    pub spill_bytes: u64,
    /// The largest single value that is carried, bytes as the source sends it; a larger
    /// one is a data error of its table, and is not held in memory.
    pub value_bytes: usize,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long the server may be silent while something is awaited of it; then the connection
    /// is given up, and the error is retryable.
    pub read_timeout: Duration,
    /// A replica that copies are read from, as `host` or `host:port`; the log is always
    /// read from [`SourceOptions::host`].
    pub replica: Option<String>,
    /// MySQL, MariaDB: replicas whose lag is looked at, as `host` or `host:port`. PostgreSQL
    /// knows its replicas itself.
    pub watch_replicas: Vec<String>,
}

/// A table as the source describes it now.
#[derive(Debug, Clone)]
pub struct DiscoveredTable {
    /// Its name.
    pub table: TableName,
    /// What the source knows it by whatever its name; see [`TableSchema::source_id`].
    pub source_id: Option<String>,
    /// The columns that the lake gets, in the source's order.
    pub columns: Vec<ColumnSpec>,
    /// The key's columns in their order; empty without one.
    pub key: Vec<String>,
    /// The planner's estimate.
    pub estimated_rows: u64,
    /// Bytes on the source's disk, without indexes.
    pub estimated_bytes: u64,
    /// Why the table cannot be carried as it is: an unsupported column, a clashing
    /// name, a missing replica identity. `run` refuses to start while there is one.
    pub problems: Vec<Finding>,
}

/// A table that the tail carries.
#[derive(Debug, Clone)]
pub struct TrackedTable {
    /// The version that new rows get until the log says otherwise.
    pub schema: Arc<TableSchema>,
    /// One more than the greatest column id of any version.
    pub next_column_id: i32,
    /// INV-6: changes of the transactions that this exact read saw are left out.
    pub mark: Option<Mark>,
    /// The table is being copied: the lake may not hold the row that a key change
    /// removes, so nothing can be filled from it. [`Tail::live`] ends this.
    pub copying: bool,
}

/// What [`Tail::next`] has to say.
#[derive(Debug)]
pub enum TailEvent {
    /// A transaction ended; its rows are in the buffer, and the stream may be
    /// committed through `position`.
    Commit {
        /// Where the log stands after the transaction.
        position: Position,
        /// Its commit time at the source, microseconds since 1970 UTC.
        committed_at_us: i64,
        /// Bytes of the source's log that came since the last event, for the lag.
        log_bytes: u64,
    },
    /// Nothing of interest up to `position`; never inside an open transaction.
    Heartbeat {
        /// Where the log stands.
        position: Position,
    },
    /// A table has a new schema version; rows that follow have it. The stream may
    /// not be committed at this event unless it stands between transactions.
    Schema(Arc<TableSchema>),
    /// A table cannot go on; its rows have been left out from here on. The
    /// error's class is [`caudal_model::Class::Data`].
    TableFailed {
        /// The table.
        table: TableName,
        /// Why.
        error: Error,
    },
    /// A table's rows can no longer be told by what the lake holds of it (another key or
    /// type, a default that is not constant, rows rewritten without a word in the log):
    /// its rows have been left out from here on, and a new copy under its new schema mends it.
    Recopy {
        /// The table.
        table: TableName,
        /// What changed, for the log and for `pause`.
        reason: String,
    },
    /// The table was dropped or renamed at this place in the log; its rows have been
    /// left out from here on. One of the same name that comes later is another table.
    Ended {
        /// The table.
        table: TableName,
    },
    /// Tables that the selection names may have come or gone at this place in the log:
    /// they must be discovered again.
    Catalog,
    /// The buffer has reached its limit inside a transaction: take the rows out
    /// (without committing them) and call again.
    Full,
}

/// How far the source itself has got, for the lag.
#[derive(Debug, Clone)]
pub struct SourceProgress {
    /// Everything that was committed when this was asked is at or before it.
    pub position: Position,
    /// Bytes of log between a given position and this one, where the source can tell.
    pub lag_bytes: Option<u64>,
    /// Bytes of log that the source keeps because of this stream.
    pub retained_bytes: Option<u64>,
}

/// What the source's work with others says of whether a copy should wait; `None` where the
/// source cannot tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SourceLoad {
    /// How far the slowest replica is behind.
    pub replica_lag: Option<Duration>,
    /// Transactions that are open, the agent's own left out.
    pub open_transactions: Option<u64>,
}

/// A database that a stream reads.
#[async_trait]
pub trait Source: Send + Sync {
    /// `postgres`, `mysql` or `mariadb`.
    fn kind(&self) -> &'static str;

    /// Every prerequisite at once. An error means that the source could not be asked.
    async fn check(&self) -> Result<Vec<Finding>>;

    /// The selected tables, in order of their names.
    async fn discover(&self) -> Result<Vec<DiscoveredTable>>;

    /// Prepares the log for its first reading (publication and slot, where the user
    /// may create them), and returns the position from which nothing is missing.
    /// Called again after a crash before the first commit: it must be idempotent.
    ///
    /// Errors: [`caudal_model::Kind::Prerequisite`] with the SQL that a DBA must run.
    async fn prepare(&self, tables: &[TableName]) -> Result<Position>;

    /// Makes the log carry tables that were added to the stream later.
    async fn add_tables(&self, tables: &[TableName]) -> Result<()>;

    /// A position that covers everything committed when it is called.
    async fn current_position(&self) -> Result<Position>;

    /// Which server and database this is, in a text that [`Source::recognize`] knows again:
    /// a position means nothing on another.
    async fn identity(&self) -> Result<String>;

    /// [`Source::identity`], once it is sure that everything through `reached` has happened
    /// on this server as it had on `held`, and nothing else: it is the same, or one that took
    /// over from it (a standby that was promoted).
    ///
    /// Errors: [`caudal_model::Kind::PositionLost`] if it is not.
    async fn recognize(&self, held: &str, reached: &Position) -> Result<String>;

    /// How far the source has got beyond `reached`.
    async fn progress(&self, reached: &Position) -> Result<SourceProgress>;

    /// A text that changes when a selected table comes, goes or is renamed, cheap to ask
    /// for every few seconds; `None` where the log itself tells ([`TailEvent::Catalog`]).
    async fn catalog_mark(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// What [`SourceLoad`] tells, asked every few seconds while tables are copied.
    async fn load(&self) -> Result<SourceLoad> {
        Ok(SourceLoad::default())
    }

    /// Values that were changed on their way so far, by reason.
    fn coerced(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Whether a tail that stands at `reached` has delivered everything up to `target`.
    /// Errors if either text is not a position of this source.
    fn covers(&self, reached: &Position, target: &Position) -> Result<bool>;

    /// Whether the log after `from` can be read, without reading it.
    ///
    /// Errors: [`caudal_model::Kind::PositionLost`] as [`Source::open_tail`].
    async fn replayable(&self, from: &Position) -> Result<()>;

    /// Whether the source keeps its log until [`Tail::acknowledge`] lets it go. Where it does
    /// not, holding an acknowledgement back keeps nothing.
    fn keeps_until_acknowledged(&self) -> bool {
        false
    }

    /// Opens the log after `from`.
    ///
    /// Errors: [`caudal_model::Kind::PositionLost`] if the source no longer has it,
    /// saying what was lost and what to run.
    async fn open_tail(&self, from: &Position, tables: Vec<TrackedTable>) -> Result<Box<dyn Tail>>;

    /// A connection for reading chunks, of [`SourceOptions::replica`] if there is one; each
    /// worker has its own. `exact` asks for one that can open an exact read (INV-6).
    async fn open_reader(&self, exact: bool) -> Result<Box<dyn ChunkReader>>;
}

/// The source's log, from a position on.
#[async_trait]
pub trait Tail: Send {
    /// Appends what comes next to `into` and says what it was.
    ///
    /// Cancel safe: a dropped call has lost nothing, and what it appended stays.
    /// Transactions come in commit order and never interleave in `into`: rows of
    /// a transaction that has not committed wait inside the tail (INV-3). A
    /// retryable error ends the tail: the caller drops the uncommitted rows and
    /// opens a new one at its last commit.
    async fn next(&mut self, into: &mut ChangeBuffer) -> Result<TailEvent>;

    /// Everything through this position is durable in the lake (INV-3): the source
    /// may forget it.
    fn acknowledge(&mut self, through: &Position);

    /// Everything through this position is durable in the lake, and the source is to keep it
    /// until [`Tail::acknowledge`].
    fn written(&mut self, through: &Position) {
        let _ = through;
    }

    /// Carries one more table, or one more time after a new copy began. Takes effect
    /// for the events that [`Tail::next`] has not yet returned.
    fn track(&mut self, table: TrackedTable);

    /// The table's copy is complete: from now on the lake holds every row.
    fn live(&mut self, table: &TableName);

    /// Leaves a table's changes out from now on.
    fn untrack(&mut self, table: &TableName);

    /// Bytes held in memory for transactions that have not committed.
    fn staged_bytes(&self) -> usize;

    /// Bytes held on disk for them ([`SourceOptions::spill_dir`]).
    fn spilled_bytes(&self) -> u64 {
        0
    }

    /// Whether the last event left a transaction open in `into`: the caller may open
    /// an exact read (INV-6) or stop cleanly only where this is false.
    fn in_transaction(&self) -> bool;
}

/// What [`ChunkReader::next`] has to say.
#[derive(Debug)]
pub enum ChunkEvent {
    /// The buffer is full: take the rows out and call again.
    Full,
    /// Every row of the chunk is in the buffer.
    Done,
}

/// A connection that reads a table's rows chunk by chunk.
#[async_trait]
pub trait ChunkReader: Send {
    /// INV-5: returns once everything that a tail at `base` has delivered is visible
    /// to a SELECT that starts now.
    async fn await_visible(&mut self, table: &TableName, base: &Position) -> Result<()>;

    /// INV-6: opens one consistent read of a table without a key, and says which
    /// transactions it sees. The tail stands still while this runs, at `base`.
    /// A retryable error after at most ten seconds if a lock or a visible state
    /// cannot be had: the caller lets the tail go on and tries again.
    async fn open_exact(&mut self, schema: &Arc<TableSchema>, base: &Position) -> Result<Mark>;

    /// The chunk that follows `after` (`None`: the first), with bounds found by the
    /// server through the key's index; `None` for a table (or rest) that needs none.
    /// It holds about `rows` rows (at least one). The last chunk has no upper bound. A
    /// table without a key is one chunk.
    async fn plan(
        &mut self,
        schema: &Arc<TableSchema>,
        after: Option<&Chunk>,
        rows: u64,
    ) -> Result<Option<Chunk>>;

    /// Starts reading a chunk, in a transaction of its own (a table without a key:
    /// in the one that [`Self::open_exact`] opened). The table is checked against
    /// `schema` first: a difference is an error of [`caudal_model::Kind::Drift`]. Only rows
    /// that fulfil `only` are read, beside what the table's own filter lets through.
    async fn start(
        &mut self,
        schema: &Arc<TableSchema>,
        chunk: &Chunk,
        only: Option<&Filter>,
    ) -> Result<()>;

    /// Appends rows of the chunk as [`caudal_model::Op::Snapshot`] until it is done or
    /// `into` is full. The caller has begun the buffer's transaction.
    async fn next(&mut self, into: &mut ChangeBuffer) -> Result<ChunkEvent>;
}
