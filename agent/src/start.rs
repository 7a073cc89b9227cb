//! From a config to a running stream: the only file that names concrete sources and sinks.

use crate::config::{self, Config, SourceKind};
use crate::crash::CrashPoints;
use crate::requests::Requests;
use crate::settings::{OnChange, Order, Settings, SnapshotMode};
use crate::snapshot::{Budgets, FileLimits, Joining, SizeLimits};
use crate::status::StatusBoard;
use crate::supervise::{self, Goal, Outcome, Parts};
use caudal_checkpoints::RocksStore;
use caudal_model::{Error, Kind, Result, Selection, TableName};
use caudal_sinks::{Codec, CommitLog, PartitionBy, Store, WriterOptions};
use caudal_sources::Source;
use caudal_sources::mysql::{Flavor, MysqlSource};
use caudal_sources::postgres::PostgresSource;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The configured source.
pub fn source(config: &Config) -> Result<Arc<dyn Source>> {
    let options = config.source_options()?;
    Ok(match config.source.kind {
        SourceKind::Postgres => Arc::new(PostgresSource::new(options)?),
        SourceKind::Mysql => Arc::new(MysqlSource::new(options, Flavor::MySql)?),
        SourceKind::Mariadb => Arc::new(MysqlSource::new(options, Flavor::MariaDb)?),
        SourceKind::Sqlserver => {
            return Err(Error::fatal(
                Kind::Config,
                "source.kind = \"sqlserver\" is not supported by this version",
            ));
        }
    })
}

/// The configured store.
pub async fn store(config: &Config) -> Result<Arc<dyn Store>> {
    caudal_sinks::open(&config.sink.url, &config.store_options()).await
}

/// The configured stream's commit log in `store`.
pub fn log(config: &Config, store: &Arc<dyn Store>) -> CommitLog {
    CommitLog::new(store.clone(), &config.stream.name)
}

fn order(config: &Config) -> Order {
    match config.snapshot.order {
        config::SnapshotOrder::Smallest => Order::Smallest,
        config::SnapshotOrder::Largest => Order::Largest,
        config::SnapshotOrder::Name => Order::Name,
        config::SnapshotOrder::Listed => {
            let none: [String; 0] = [];
            let patterns = config.tables.include.iter();
            // The config's rules have checked every pattern.
            let patterns =
                patterns.filter_map(|p| Selection::new(std::slice::from_ref(p), &none).ok());
            Order::Listed(patterns.collect())
        }
    }
}

/// Rows of a table's first chunk, if nothing else is said.
const FIRST_CHUNK_ROWS: u64 = 100_000;
/// No chunk aims at more rows.
const MOST_CHUNK_ROWS: u64 = 10_000_000;

/// What decides over the size of chunks.
pub fn chunk_sizes(config: &Config) -> SizeLimits {
    let s = &config.snapshot;
    SizeLimits {
        first_rows: s.chunk_rows.unwrap_or(FIRST_CHUNK_ROWS),
        most_rows: s.chunk_rows.unwrap_or(MOST_CHUNK_ROWS),
        target: s.chunk_time,
    }
}

/// Reads chunks for the agent that owns the configured stream, until every table is copied.
pub async fn join(
    config: &Config,
    deadline: Option<Duration>,
    board: StatusBoard,
    shutdown: &CancellationToken,
) -> Result<()> {
    let store = store(config).await?;
    let joining = Joining {
        source: source(config)?,
        log: Arc::new(log(config, &store)),
        rules: Arc::new(config.rules()?),
        digest: config.tables_digest()?,
        reads_replica: config.source_options()?.replica.is_some(),
        settings: settings(config)?,
        board,
        crash: CrashPoints::from_env(),
    };
    joining
        .run(deadline.map(|d| Instant::now() + d), shutdown)
        .await
}

fn settings(config: &Config) -> Result<Settings> {
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let workers = (config.snapshot.workers as usize).max(1);
    let memory = bytes(config.commit.memory);
    let held_bytes = (memory / (6 * workers)).clamp(2 << 20, 64 << 20);
    Ok(Settings {
        mode: match config.snapshot.mode {
            config::SnapshotMode::Initial => SnapshotMode::Initial,
            config::SnapshotMode::Never => SnapshotMode::Never,
            config::SnapshotMode::Only => SnapshotMode::Only,
        },
        on_change: match config.schema_change.policy {
            config::SchemaChangePolicy::Evolve => OnChange::Evolve,
            config::SchemaChangePolicy::Pause => OnChange::Pause,
        },
        workers,
        max_source_rows_per_second: config.snapshot.max_source_rows_per_second,
        order: order(config),
        budgets: Budgets {
            window: config.snapshot.window.clone(),
            max_replica_lag: config.snapshot.max_replica_lag,
            max_open_transactions: config.snapshot.max_open_transactions,
            max_retained_log: config.snapshot.max_retained_log,
        },
        warn_retained_log: config.snapshot.warn_retained_log,
        filter_syntax: config.source.kind.filter_syntax(),
        max_delay: config.commit.max_delay,
        max_bytes: bytes(config.commit.max_bytes),
        buffer_bytes: (memory / 16).clamp(1 << 20, 32 << 20),
        chunks: chunk_sizes(config),
        worker_buffer_bytes: (memory / (32 * workers)).clamp(1 << 20, 16 << 20),
        tick: Duration::from_millis(50),
        copy_files: FileLimits {
            file_bytes: bytes(config.sink.target_file_size),
            file_age: config.commit.max_delay,
            group_bytes: held_bytes / 2,
            held_bytes,
        },
        share: Some(config.tables_digest()?),
        replay_window: config.checkpoints.replay_window,
        // PostgreSQL waits at its shutdown until a replica has confirmed what was sent.
        idle_commit: config.commit.max_delay.max(Duration::from_secs(10)),
        lag_every: Duration::from_secs(5).min(config.stream.stall_after / 2),
        stall_after: config.stream.stall_after,
        reopen_after: config.source.read_timeout.max(config.stream.stall_after),
        first_pause: Duration::from_millis(500),
        files: WriterOptions {
            compression: match config.sink.compression {
                config::Compression::Zstd => Codec::Zstd,
                config::Compression::Snappy => Codec::Snappy,
                config::Compression::None => Codec::None,
            },
            partition: match config.sink.partition {
                config::Partition::Day => PartitionBy::Day,
                config::Partition::Hour => PartitionBy::Hour,
            },
            ..WriterOptions::default()
        },
    })
}

/// Runs the configured stream until its goal is reached, somebody asks it to stop, or it fails.
pub async fn run(
    config: &Config,
    goal: &Goal,
    board: StatusBoard,
    shutdown: CancellationToken,
) -> Result<Outcome> {
    let mut parts = parts(config, board).await?;
    parts.crash = CrashPoints::from_env();
    supervise::run(parts, goal, &shutdown).await
}

/// Has the matching tables copied again by the next run, or the rows of them that fulfil
/// `only`; returns their names.
pub async fn resnapshot(
    config: &Config,
    tables: &Selection,
    only: Option<&str>,
) -> Result<Vec<TableName>> {
    let board = StatusBoard::new(&config.stream.name, config.source.kind.label());
    supervise::resnapshot(parts(config, board).await?, tables, only).await
}

async fn parts(config: &Config, board: StatusBoard) -> Result<Parts> {
    // First of all, because it is what keeps a second agent off this state directory.
    let opened = RocksStore::open(&config.stream.state_dir, &config.stream.name)?;
    let source = source(config)?;
    let store = store(config).await?;
    let again = config.clone();
    Ok(Parts {
        reread_source: Some(Box::new(move || self::source(&again))),
        log: Arc::new(log(config, &store)),
        source,
        checkpoints: Box::new(opened.store),
        settings: settings(config)?,
        rules: Arc::new(config.rules()?),
        requests: Some(Requests::new(&config.stream.state_dir)),
        board,
        crash: CrashPoints::none(),
    })
}
