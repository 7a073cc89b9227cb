//! The sections of the config file: what each key is, its type, its default.
//!
//! The doc comments are the descriptions that `caudal schema` and errors print.

use super::units::{self, DurationText, SizeText};
use super::window::{Windows, WindowsText};
use crate::secret::SecretRef;
use caudal_sources::filter::FilterSyntax;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// `[stream]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamSection {
    /// Name of the stream: names the lake prefix, the slot and the label of the metrics.
    pub name: String,
    /// Directory of the local state (RocksDB, spilled rows); one a stream.
    pub state_dir: PathBuf,
    /// How long work may stand still (a commit under way, a log that gives nothing although
    /// the source has gone on) before `/readyz` fails and a warning comes.
    #[serde(default = "a_minute", with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub stall_after: Duration,
}

fn a_minute() -> Duration {
    Duration::from_secs(60)
}

/// The kind of source database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// PostgreSQL 14 and later.
    Postgres,
    /// MySQL 8.0 and later.
    Mysql,
    /// MariaDB 10.6 and later.
    Mariadb,
    /// SQL Server 2016 and later.
    Sqlserver,
}

impl SourceKind {
    /// The name in the config file and in `status`.
    pub fn label(self) -> &'static str {
        match self {
            SourceKind::Postgres => "postgres",
            SourceKind::Mysql => "mysql",
            SourceKind::Mariadb => "mariadb",
            SourceKind::Sqlserver => "sqlserver",
        }
    }
}

impl SourceKind {
    /// How the kind writes a filter.
    pub fn filter_syntax(self) -> FilterSyntax {
        match self {
            SourceKind::Postgres | SourceKind::Sqlserver => FilterSyntax::Standard,
            SourceKind::Mysql | SourceKind::Mariadb => FilterSyntax::MySql,
        }
    }
}

/// How far the connection's peer is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// Plain text.
    Disable,
    /// TLS if the server offers it, unverified.
    #[default]
    Prefer,
    /// TLS or no connection, unverified.
    Require,
    /// The certificate must be signed by a known authority.
    VerifyCa,
    /// The certificate must be signed by a known authority and name the host.
    VerifyFull,
}

/// `[source]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSection {
    /// Kind of database.
    pub kind: SourceKind,
    /// Host name or address of the server.
    pub host: String,
    /// TCP port of the server; 5432 for postgres, 3306 for mysql and mariadb, if absent.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Database to connect to; required for postgres.
    #[serde(default)]
    pub database: Option<String>,
    /// User to connect as.
    pub user: String,
    /// Password: `env:NAME`, `file:/path` or the password itself; empty if absent.
    #[serde(default)]
    pub password: Option<SecretRef>,
    /// How far the server's identity is checked.
    #[serde(default)]
    pub tls: Tls,
    /// PEM file of the authorities that may sign the server's certificate; the system's if absent.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's key.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// mysql, mariadb: server id of this replica, unique among all of them; derived from
    /// the stream's name if absent.
    #[serde(default)]
    #[schemars(range(min = 1, max = 4294967295u32))]
    pub server_id: Option<u32>,
    /// postgres: replication slot; `caudal_<stream.name>` if absent.
    #[serde(default)]
    pub slot: Option<String>,
    /// postgres: publication; `caudal_<stream.name>` if absent.
    #[serde(default)]
    pub publication: Option<String>,
    /// How long to wait for a connection.
    #[serde(default = "ten_seconds", with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub connect_timeout: Duration,
    /// How long the server may be silent while an answer, rows of a copy or the log's next
    /// heartbeat are awaited; then the connection is given up and opened anew. The log's
    /// connection waits a minute (postgres: two) at most.
    #[serde(default = "ten_minutes", with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub read_timeout: Duration,
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

/// `[tables]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TablesSection {
    /// Patterns `schema.table` (mysql, mariadb: `database.table`) of the tables to carry;
    /// `*` stands for any characters, `?` for one.
    pub include: Vec<String>,
    /// Patterns of tables to leave out; they win over `include`.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Salt of `hash_columns`, a secret.
    #[serde(default)]
    pub hash_salt: Option<SecretRef>,
    /// Settings of single tables.
    #[serde(default, rename = "override")]
    pub overrides: Vec<TableOverride>,
}

/// `[[tables.override]]`
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableOverride {
    /// Table as `schema.table` (mysql, mariadb: `database.table`).
    pub table: String,
    /// Columns that never leave the source.
    #[serde(default)]
    pub exclude_columns: Vec<String>,
    /// Columns replaced by their salted SHA-256.
    #[serde(default)]
    pub hash_columns: Vec<String>,
    /// Other lake types for single columns.
    #[serde(default, rename = "as")]
    pub lake_types: BTreeMap<String, String>,
    /// SQL condition of the rows to carry.
    #[serde(default)]
    pub filter: Option<String>,
    /// Key of a table without a primary key, or a unique index to be used as one.
    #[serde(default)]
    pub key: Option<Vec<String>>,
}

/// What is copied before the log is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotMode {
    /// Copy every new table, then follow the log.
    #[default]
    Initial,
    /// Follow the log only.
    Never,
    /// Copy and stop.
    Only,
}

/// Which table is copied first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotOrder {
    /// The smallest, so that most tables are live soon.
    #[default]
    Smallest,
    /// The largest.
    Largest,
    /// By name.
    Name,
    /// In the order of the patterns of `tables.include`.
    Listed,
}

/// `[snapshot]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotSection {
    /// What is copied before the log is followed.
    pub mode: SnapshotMode,
    /// Chunks read at the same time, each through a connection of its own.
    #[schemars(range(min = 1, max = 64))]
    pub workers: u32,
    /// Most rows of a chunk. Without it, chunks begin with 100,000 rows (fewer where rows
    /// are wide) and grow and shrink towards `chunk_time`.
    #[schemars(range(min = 100, max = 100000000))]
    pub chunk_rows: Option<u64>,
    /// Time that reading a chunk aims at: each is one short transaction at the source.
    #[serde(with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub chunk_time: Duration,
    /// Limit on the rows that snapshots read from the source in a second; 0 is no limit.
    #[schemars(range(min = 0, max = 9223372036854775807u64))]
    pub max_source_rows_per_second: u64,
    /// Which table is copied first.
    pub order: SnapshotOrder,
    /// Hours of the day in which copies read: `22:00-06:00`, or a list of such; UTC unless
    /// an offset (`+02:00`) or `local`, the machine's time, follows. Always, if absent.
    #[schemars(with = "WindowsText")]
    pub window: Windows,
    /// Copies wait while a replica of the source is further behind than this; 0s is no limit.
    #[serde(with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub max_replica_lag: Duration,
    /// Copies wait while the source has more open transactions than this; 0 is no limit.
    #[schemars(range(min = 0, max = 1000000))]
    pub max_open_transactions: u64,
    /// Copies wait while the source keeps more log than this for the stream; 0B is no limit.
    #[serde(with = "units::size")]
    #[schemars(with = "SizeText")]
    pub max_retained_log: u64,
    /// A warning when the source keeps more log than this for the stream, whether tables
    /// are copied or not; 0B is none.
    #[serde(with = "units::size")]
    #[schemars(with = "SizeText")]
    pub warn_retained_log: u64,
    /// Replica that copies are read from, as `host` or `host:port`; the log is always read
    /// from `source.host`.
    pub replica: Option<String>,
    /// mysql, mariadb: replicas whose lag `max_replica_lag` looks at, as `host` or `host:port`.
    pub watch_replicas: Vec<String>,
}

impl Default for SnapshotSection {
    fn default() -> Self {
        SnapshotSection {
            mode: SnapshotMode::Initial,
            workers: 4,
            chunk_rows: None,
            chunk_time: Duration::from_secs(2),
            max_source_rows_per_second: 0,
            order: SnapshotOrder::Smallest,
            window: Windows::default(),
            max_replica_lag: Duration::ZERO,
            max_open_transactions: 0,
            max_retained_log: 0,
            warn_retained_log: 10 << 30,
            replica: None,
            watch_replicas: Vec::new(),
        }
    }
}

/// `[commit]`: a commit closes at whichever comes first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CommitSection {
    /// Longest time that a change waits for its commit to close.
    #[serde(with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub max_delay: Duration,
    /// Bytes of files after which a commit closes.
    #[serde(with = "units::size")]
    #[schemars(with = "SizeText")]
    pub max_bytes: u64,
    /// Bytes that all buffers together may hold; past it, rows spill to `state_dir` or
    /// the source is held back.
    #[serde(with = "units::size")]
    #[schemars(with = "SizeText")]
    pub memory: u64,
}

impl Default for CommitSection {
    fn default() -> Self {
        CommitSection {
            max_delay: Duration::from_secs(10),
            max_bytes: 128 << 20,
            memory: 512 << 20,
        }
    }
}

/// Width of the `_date=` folders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Partition {
    /// A folder a day.
    #[default]
    Day,
    /// A folder an hour.
    Hour,
}

/// Compression of Parquet files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard.
    #[default]
    Zstd,
    /// Snappy.
    Snappy,
    /// None.
    None,
}

/// `[sink]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SinkSection {
    /// Where the lake is: `s3://bucket/prefix` or `file:///path`.
    pub url: String,
    /// s3: URL of an S3-compatible server.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// s3: region; the environment's if absent.
    #[serde(default)]
    pub region: Option<String>,
    /// s3: the bucket in the path instead of the host name; on if absent and there is an
    /// `endpoint`.
    #[serde(default)]
    pub path_style: Option<bool>,
    /// s3: KMS key that encrypts the objects.
    #[serde(default)]
    pub sse_kms_key_id: Option<String>,
    /// s3: how long the store may be silent before a request is repeated. One attempt may take
    /// four times as long, and a request with its repetitions ten times; an upload has the time
    /// of a line of 64 KiB/s besides.
    #[serde(default = "half_a_minute", with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub read_timeout: Duration,
    /// Width of the `_date=` folders.
    #[serde(default)]
    pub partition: Partition,
    /// Compression of the files.
    #[serde(default)]
    pub compression: Compression,
    /// Size that a copy's files are finished at, if `commit.max_delay` has not passed before.
    #[serde(default = "quarter_gigabyte", with = "units::size")]
    #[schemars(with = "SizeText")]
    pub target_file_size: u64,
    /// How long folded change files are kept.
    #[serde(default = "thirty_days", with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub retain_changes: Duration,
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

fn quarter_gigabyte() -> u64 {
    256 << 20
}

pub(super) fn thirty_days() -> Duration {
    Duration::from_secs(30 * 86_400)
}

/// What a delete does to a row of `current`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Deletes {
    /// The row goes.
    #[default]
    Drop,
    /// The row stays, with `_deleted` set.
    Flag,
}

/// The catalog that knows the merged tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Catalog {
    /// None.
    #[default]
    None,
    /// AWS Glue.
    Glue,
    /// An Iceberg REST catalog.
    Rest,
}

/// `[merge]`
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MergeSection {
    /// How often the agent folds by itself; `0s` leaves it to the command.
    #[serde(with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub every: Duration,
    /// What a delete does to a row of `current`.
    pub deletes: Deletes,
    /// The catalog that knows the merged tables.
    pub catalog: Catalog,
}

/// What a changed table means for the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SchemaChangePolicy {
    /// The lake follows.
    #[default]
    Evolve,
    /// The table stops, the stream goes on.
    Pause,
}

/// `[schema_change]`
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SchemaChangeSection {
    /// What a changed table means for the stream.
    pub policy: SchemaChangePolicy,
}

/// `[http]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSection {
    /// Address and port of /metrics, /healthz, /readyz, /status and the page; `off` for
    /// no server. Where it is not set and another process has the default port, the
    /// agent goes on without.
    pub listen: String,
}

impl Default for HttpSection {
    fn default() -> Self {
        HttpSection {
            listen: "127.0.0.1:9464".to_owned(),
        }
    }
}

/// `[checkpoints]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointsSection {
    /// How long the acknowledgement to the source is held back, so that the stream can
    /// be rewound by as much. postgres alone needs it, and keeps that much more log.
    #[serde(with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub replay_window: Duration,
    /// How long a commit can be rewound to, by when it was committed.
    #[serde(with = "units::duration")]
    #[schemars(with = "DurationText")]
    pub keep: Duration,
}

impl Default for CheckpointsSection {
    fn default() -> Self {
        CheckpointsSection {
            replay_window: Duration::ZERO,
            keep: thirty_days(),
        }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Largest single value that is carried.
    #[serde(with = "units::size")]
    #[schemars(with = "SizeText")]
    pub value_bytes: u64,
    /// Disk in `state_dir` for transactions that have not ended.
    #[serde(with = "units::size")]
    #[schemars(with = "SizeText")]
    pub spill_bytes: u64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        LimitsSection {
            value_bytes: 512 << 20,
            spill_bytes: 64 << 30,
        }
    }
}
