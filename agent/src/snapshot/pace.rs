//! How much is read from the source for copies at a time.

use super::gate::Gate;
use caudal_model::TableName;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// A limit on rows read from the source, shared by the workers.
#[derive(Debug)]
struct Limiter {
    rows_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Limiter {
    /// 0 means no limit.
    fn new(rows_per_second: u64) -> Self {
        Limiter {
            rows_per_second,
            free_at: Mutex::new(Instant::now()),
        }
    }

    async fn spend(&self, rows: u64) {
        if self.rows_per_second == 0 {
            return;
        }
        let wait = {
            let mut free_at = self.free_at.lock().await;
            let start = (*free_at).max(Instant::now());
            *free_at = start + Duration::from_secs_f64(rows as f64 / self.rows_per_second as f64);
            start.saturating_duration_since(Instant::now())
        };
        tokio::time::sleep(wait).await;
    }
}

/// How much is read from the source for copies at a time.
#[derive(Debug)]
pub struct Pace {
    limiter: Limiter,
    /// One for each chunk that may be read at the same time.
    turns: Semaphore,
    gate: Gate,
}

impl Pace {
    /// `workers` chunks at a time; 0 rows per second means no limit.
    pub fn new(workers: usize, rows_per_second: u64, gate: Gate) -> Self {
        Pace {
            limiter: Limiter::new(rows_per_second),
            turns: Semaphore::new(workers.max(1)),
            gate,
        }
    }

    /// What lets chunks begin.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether no chunk of the table may begin now.
    pub(super) fn holds(&self, table: &TableName) -> bool {
        self.gate.holds(table).is_some()
    }

    /// Waits until one more chunk may be read; its turn ends when the answer is dropped.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.turns.acquire().await.ok()
    }

    /// Waits as long as these rows, which were just read, may take.
    pub(super) async fn spend(&self, rows: u64) {
        self.limiter.spend(rows).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_limit_is_of_all_workers_together() {
        let pace = Pace::new(4, 2_000, Gate::default());
        let began = Instant::now();
        let worker = async || {
            for _ in 0..5 {
                pace.spend(20).await;
            }
        };
        tokio::join!(worker(), worker(), worker(), worker());
        // Rows are paid for after they are read, so the last ones cost nothing yet.
        let least = Duration::from_millis((400 - 20) * 1000 / 2_000);
        assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    }
}
