//! What the server has to do beside the agent.

use super::Shared;
use super::connect::query_error;
use crate::SourceLoad;
use caudal_model::Result;
use std::time::Duration;

/// [`crate::Source::load`].
///
/// Standbys are those that stream or catch up; a base backup and the readers of logical slots,
/// this agent among them, are none. A standby that has replayed everything has no lag, whatever
/// it was last measured to be; one whose lag was not measured yet is not counted.
/// Without `pg_read_all_stats` (part of `pg_monitor`) the server shows neither the state of
/// others' connections nor that of standbys: nothing can be told then.
pub(super) async fn load(shared: &Shared) -> Result<SourceLoad> {
    let client = shared.control().await?;
    let row = client
        .query_one(
            "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
                    (SELECT extract(epoch FROM max(CASE WHEN r.replay_lsn >= pg_current_wal_flush_lsn()
                                                        THEN interval '0' ELSE r.replay_lag END))::float8
                       FROM pg_stat_replication r
                      WHERE r.state IN ('streaming', 'catchup')
                        AND NOT EXISTS (SELECT FROM pg_replication_slots s
                                         WHERE s.active_pid = r.pid AND s.slot_type = 'logical')),
                    (SELECT count(*) FROM pg_stat_activity a
                      WHERE a.xact_start IS NOT NULL AND a.backend_type = 'client backend'
                        AND a.pid <> pg_backend_pid() AND a.application_name <> $1)
                    + (SELECT count(*) FROM pg_prepared_xacts)",
            &[&shared.application()],
        )
        .await
        .map_err(query_error)?;
    if !row.get::<_, bool>(0) {
        return Ok(SourceLoad::default());
    }
    let lag = row.get::<_, Option<f64>>(1);
    Ok(SourceLoad {
        replica_lag: lag.and_then(|s| Duration::try_from_secs_f64(s.max(0.0)).ok()),
        open_transactions: u64::try_from(row.get::<_, i64>(2)).ok(),
    })
}
