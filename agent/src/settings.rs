//! What an attempt needs to know besides its parts: the configuration as the pipeline uses it.

use crate::snapshot::{FileLimits, SizeLimits};
use caudal_sinks::WriterOptions;
use std::time::Duration;

/// When the initial copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Tables that the lake does not hold are copied.
    Initial,
    /// No table is copied; its changes are carried from the moment it joins.
    Never,
    /// The run ends when every table is copied.
    Only,
}

/// What a changed table means for the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// The lake follows.
    Evolve,
    /// The table stops, the stream goes on.
    Pause,
}

/// What a run needs to know besides its parts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// When the initial copy is made.
    pub mode: SnapshotMode,
    /// What a changed table means for the stream.
    pub on_change: OnChange,
    /// Parallel readers of chunks.
    pub workers: usize,
    /// A limit on rows read by the copy; 0 is none.
    pub max_source_rows_per_second: u64,
    /// A commit closes after this time…
    pub max_delay: Duration,
    /// …or at this size (bytes in memory).
    pub max_bytes: usize,
    /// Bytes that the log's rows may take before they go to an encoder.
    pub buffer_bytes: usize,
    /// How many rows chunks have.
    pub chunks: SizeLimits,
    /// Bytes that a reader of chunks gathers before they go to an encoder.
    pub worker_buffer_bytes: usize,
    /// When the files of a copy are finished.
    pub copy_files: FileLimits,
    /// A position without changes is committed this often.
    pub idle_commit: Duration,
    /// How often the source is asked how far it has got.
    pub lag_every: Duration,
    /// The first pause after a retryable error; it doubles up to a minute.
    pub first_pause: Duration,
    /// How often time limits are looked at.
    pub tick: Duration,
    /// How files are written.
    pub files: WriterOptions,
}
