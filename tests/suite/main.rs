//! The behaviour suite: one file a behaviour, each written once and run on every source.
//!
//! A test drives the built agent as its users do (config file, signals, exit codes)
//! against a real server, and the oracle says whether the lake equals the source. What
//! a source must be able to do is in the behaviours; how its SQL differs is in the
//! harness's dialect.

mod load;
mod trial;

mod backpressure;
mod chaos;
mod config_errors;
mod connection_faults;
mod crash_points;
mod disk_full;
mod failover;
mod fencing;
mod health;
mod huge_transactions;
mod huge_values;
mod key_change;
mod keyless_table;
mod large_table;
mod large_transaction_streamed;
mod least_privileges;
mod many_tables;
mod multi_table_transaction;
mod oracle_sees;
mod overrides;
mod partitions;
mod power_cut;
mod publication;
mod resnapshot;
mod restart;
mod rewind;
mod rocksdb_deleted;
mod rollback_and_savepoint;
mod runbook;
mod s3_failing_and_slow;
mod schema_change;
mod sigkill;
mod sigterm;
mod snapshot_control;
mod snapshot_files;
mod snapshot_only;
mod snapshot_resume;
mod snapshot_under_writes;
mod snapshot_workers;
mod source_restarted;
mod store_faults;
mod tables_come_and_go;
mod tail_only;
mod tls_verify_full;
mod types_common;
mod until_caught_up;
mod verify_log;
mod wrong_password;
mod zombie_fenced;
