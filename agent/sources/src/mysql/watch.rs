//! What is asked of the servers again and again while the stream runs: how far the log has
//! got and how long it will stay, and what keeps copies waiting.
//!
//! **Retention.** The server keeps nothing for its readers: a log file goes when its last event
//! is older than `binlog_expire_logs_seconds`, read or not. What is told as retained is
//! therefore what has not been read, and a warning comes while there is time to act on it.
//!
//! **Load.** A replica that does not apply its primary's log, for whatever reason, is infinitely
//! behind; one that cannot be asked says nothing, which is warned of once.

use super::connect::{Reached, Server, current_coordinate, current_place, log_files};
use super::control::{Ask, Control};
use super::gtid::Coordinate;
use super::replica::{self, Channel};
use super::wire::WireError;
use crate::{SourceLoad, SourceProgress};
use caudal_model::{Error, Kind, Result};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Mutex;

/// Connections that stay open for questions, and what has been said once.
#[derive(Debug, Default)]
pub(super) struct Watch {
    primary: Mutex<Option<Control>>,
    replicas: Mutex<HashMap<String, Watched>>,
    /// The log's end of life was warned of.
    expiring: AtomicBool,
    /// That transactions cannot be counted was said.
    uncounted: AtomicBool,
}

#[derive(Debug, Default)]
struct Watched {
    control: Option<Control>,
    silent: bool,
}

impl Server {
    /// How far the log has got, and how much of it the tail has not read.
    pub(super) async fn progress(&self) -> Result<SourceProgress> {
        let mut kept = self.watch.primary.lock().await;
        let mut c = match kept.take() {
            Some(c) => c,
            None => self.control().await?,
        };
        let position = current_place(&mut c).await?.position();
        let reached = self.reached.lock().ok().and_then(|r| r.clone());
        let mut unread = None;
        if let Some(reached) = reached {
            let bytes = unread_bytes(&mut c, &reached.at).await?;
            self.warn_of_expiry(&mut c, &reached, bytes).await?;
            unread = Some(bytes);
        }
        *kept = Some(c);
        Ok(SourceProgress {
            position,
            lag_bytes: unread,
            retained_bytes: unread,
        })
    }

    /// Says, once each time, that less than a quarter of the time is left for which the server
    /// keeps what has not been read.
    async fn warn_of_expiry(&self, c: &mut Control, reached: &Reached, bytes: u64) -> Result<()> {
        let kept = retention(c).await?;
        let left = reached.committed_at_us.and_then(|at| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
            let age = now.saturating_sub(Duration::from_micros(at.try_into().ok()?));
            (bytes > 0 && !kept.is_zero()).then(|| kept.saturating_sub(age))
        });
        let expiring = left.is_some_and(|left| left < kept / 4);
        if !self.watch.expiring.swap(expiring, Ordering::Relaxed)
            && let Some(left) = left.filter(|_| expiring)
        {
            tracing::warn!(
                unread_bytes = bytes,
                seconds_left = left.as_secs(),
                retention_seconds = kept.as_secs(),
                "the source will delete log that has not been read: raise \
                 binlog_expire_logs_seconds until the stream has caught up"
            );
        }
        Ok(())
    }

    /// What copies may have to wait for.
    pub(super) async fn load(&self) -> Result<SourceLoad> {
        Ok(SourceLoad {
            open_transactions: self.open_transactions().await?,
            replica_lag: self.replica_lag().await,
        })
    }

    /// Open transactions but those of the agent's own user: chunks are some, too.
    async fn open_transactions(&self) -> Result<Option<u64>> {
        let mut kept = self.watch.primary.lock().await;
        let mut c = match kept.take() {
            Some(c) => c,
            None => self.control().await?,
        };
        let ids = "SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX \
                   WHERE trx_mysql_thread_id > 0";
        let open = match c.query(ids).await {
            Ok(rows) => rows.iter().map(|r| r.number(0)).collect::<Vec<_>>(),
            Err(WireError::Server { code: 1227, .. }) => {
                if !self.watch.uncounted.swap(true, Ordering::Relaxed) {
                    tracing::warn!("open transactions cannot be counted: grant PROCESS on *.*");
                }
                *kept = Some(c);
                return Ok(None);
            }
            Err(e) => return Err(e.into()),
        };
        // An account always sees its own connections.
        let own = "SELECT ID FROM information_schema.PROCESSLIST \
                   WHERE USER = SUBSTRING_INDEX(USER(), '@', 1)";
        let own: HashSet<u64> = c.query(own).await?.iter().map(|r| r.number(0)).collect();
        *kept = Some(c);
        Ok(Some(
            open.iter().filter(|id| !own.contains(id)).count() as u64
        ))
    }

    /// The greatest lag of the replicas that can be asked.
    async fn replica_lag(&self) -> Option<Duration> {
        let mut replicas = self.watch.replicas.lock().await;
        let mut greatest = None;
        for address in &self.options.watch_replicas {
            let watched = replicas.entry(address.clone()).or_default();
            let patience = self.options.connect_timeout;
            let asked = tokio::time::timeout(patience, self.lag_of(address, watched)).await;
            let asked =
                asked.unwrap_or_else(|_| Err(Error::retryable(Kind::Source, "it does not answer")));
            match asked {
                Ok(lag) => {
                    watched.silent = false;
                    greatest = greatest.max(Some(lag));
                }
                Err(error) => {
                    watched.control = None;
                    if !std::mem::replace(&mut watched.silent, true) {
                        let hint = error.hint_text().unwrap_or_default();
                        tracing::warn!(
                            replica = %address, %error, hint,
                            "the replica's lag cannot be told, and copies do not wait for it"
                        );
                    }
                }
            }
        }
        greatest
    }

    async fn lag_of(&self, address: &str, watched: &mut Watched) -> Result<Duration> {
        let mut c = match watched.control.take() {
            Some(c) => c,
            None => {
                let options = replica::options_at(&self.options, address)?;
                let mut c = Control::open(&options).await?;
                self.set_up(&mut c).await?;
                c
            }
        };
        let channels = replica::channels(&mut c).await?;
        watched.control = Some(c);
        let lag = channels.iter().map(Channel::lag).max();
        lag.ok_or_else(|| Error::retryable(Kind::Source, "it is no replica"))
    }
}

/// How long the server keeps its log; zero for ever.
pub(super) async fn retention(c: &mut dyn Ask) -> Result<Duration> {
    let names = "SHOW GLOBAL VARIABLES WHERE Variable_name IN \
                 ('binlog_expire_logs_seconds', 'expire_logs_days', 'binlog_expire_logs_auto_purge')";
    let mut seconds = 0.0;
    for row in c.query(names).await? {
        let number = row.text(1).parse::<f64>().unwrap_or(0.0);
        match row.text(0).to_ascii_lowercase().as_str() {
            "binlog_expire_logs_auto_purge" if row.text(1) == "OFF" => return Ok(Duration::ZERO),
            "binlog_expire_logs_seconds" if number > 0.0 => seconds = number,
            "expire_logs_days" if seconds == 0.0 => seconds = number * 86_400.0,
            _ => {}
        }
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// Bytes of log between a place and the end.
async fn unread_bytes(c: &mut dyn Ask, reached: &Coordinate) -> Result<u64> {
    let end = current_coordinate(c).await?;
    if end.file == reached.file {
        return Ok(end.offset.saturating_sub(reached.offset));
    }
    let number = Coordinate::file_number;
    let mut unread = 0u64;
    for (file, size) in log_files(c).await? {
        if number(&file) > number(&reached.file) {
            unread += size;
        } else if file == reached.file {
            unread += size.saturating_sub(reached.offset);
        }
    }
    Ok(unread)
}
