//! How many rows the next chunk of a table has.
//!
//! A chunk is one short transaction at the source, so its size follows the time that
//! chunks take, and the width of rows: what a crash makes read again, and what a worker
//! holds in memory before it knows that the chunk is whole, stay small.

use std::time::Duration;

/// Bytes of rows (in memory) that a chunk aims at, at most.
const MOST_BYTES: u64 = 64 << 20;
/// Rows of the first chunk where nothing is known of the rows.
const CAUTIOUS_ROWS: u64 = 10_000;
/// No chunk that is adapted has fewer: finding its bound would cost more than reading it.
const LEAST_ROWS: u64 = 100;

/// What decides over the size of a table's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimits {
    /// Rows of the first chunk, where rows are not wide.
    pub first_rows: u64,
    /// No chunk aims at more rows.
    pub most_rows: u64,
    /// The time that a chunk aims at.
    pub target: Duration,
}

/// The size of one table's next chunk.
#[derive(Debug, Clone, Copy)]
pub struct ChunkSize {
    limits: SizeLimits,
    rows: u64,
}

impl ChunkSize {
    /// Of a table of about so many rows and bytes, as far as its server knows (0: not).
    pub fn first(limits: SizeLimits, table_rows: u64, table_bytes: u64) -> Self {
        let rows = match table_bytes.checked_div(table_rows) {
            Some(width) => limits.first_rows.min(MOST_BYTES / width.max(1)),
            None => limits.first_rows.min(CAUTIOUS_ROWS),
        };
        ChunkSize {
            rows: rows.max(LEAST_ROWS).min(limits.most_rows).max(1),
            limits,
        }
    }

    /// Rows that the next chunk aims at.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// A chunk that was planned with `planned` rows held `rows` of so many bytes in
    /// memory, and took this long.
    pub(super) fn read(&mut self, planned: u64, rows: u64, bytes: u64, took: Duration) {
        // The last chunk of a table, and one whose rows were deleted, says nothing.
        if rows == 0 || rows < planned / 2 {
            return;
        }
        let by_time = self.limits.target.as_secs_f64() / took.as_secs_f64().max(0.001);
        // Growing is slow and shrinking fast: one chunk may have been read from memory.
        let wanted = rows as f64 * by_time.clamp(0.25, 2.0);
        let by_width = MOST_BYTES / (bytes / rows).max(1);
        self.rows = (wanted as u64)
            .min(by_width)
            .max(LEAST_ROWS)
            .min(self.limits.most_rows)
            .max(1);
    }

    /// A chunk ran into a time limit of the source.
    pub(super) fn timed_out(&mut self) {
        self.rows = (self.rows / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SizeLimits = SizeLimits {
        first_rows: 100_000,
        most_rows: 1_000_000,
        target: Duration::from_secs(2),
    };

    #[test]
    fn the_first_chunk_follows_the_rows_width() {
        let rows = |rows, bytes| ChunkSize::first(LIMITS, rows, bytes).rows();
        assert_eq!(rows(50_000_000, 7_000_000_000), 100_000);
        assert_eq!(rows(1_000, 100 << 20), 640);
        assert_eq!(rows(10, 10 << 30), LEAST_ROWS);
        assert_eq!(rows(0, 0), CAUTIOUS_ROWS);
        let few = SizeLimits {
            first_rows: 20,
            most_rows: 20,
            ..LIMITS
        };
        assert_eq!(ChunkSize::first(few, 0, 0).rows(), 20);
    }

    #[test]
    fn the_size_follows_the_time_that_chunks_take() {
        let mut size = ChunkSize::first(LIMITS, 1_000_000, 100_000_000);
        size.read(100_000, 100_000, 10_000_000, Duration::from_millis(200));
        assert_eq!(size.rows(), 200_000);
        size.read(200_000, 200_000, 20_000_000, Duration::from_secs(4));
        assert_eq!(size.rows(), 100_000);
        size.read(100_000, 100_000, 10_000_000, Duration::from_secs(60));
        assert_eq!(size.rows(), 25_000);
        // Half empty: nothing is known.
        size.read(25_000, 10, 1000, Duration::from_micros(1));
        assert_eq!(size.rows(), 25_000);
        // Never more than fits, nor than is allowed.
        size.read(25_000, 25_000, 25_000 << 20, Duration::from_millis(1));
        assert_eq!(size.rows(), LEAST_ROWS);
        for _ in 0..20 {
            let n = size.rows();
            size.read(n, n, n, Duration::from_millis(1));
        }
        assert_eq!(size.rows(), LIMITS.most_rows);
        size.timed_out();
        assert_eq!(size.rows(), LIMITS.most_rows / 2);
    }
}
