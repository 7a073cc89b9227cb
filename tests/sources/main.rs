//! The readers of the sources on real servers, one floor below the suite: what a tail and
//! a chunk reader give for what a server did, row by row and event by event.
//!
//! The suite shows that a lake equals its source. What it cannot show is in here: which
//! form each change has, that a value is the same text from the log and from a copy, where
//! a position stands between transactions, and what a reader says about a server that it
//! cannot read.

#![allow(clippy::unwrap_used)]

mod database;
mod rows;

mod documented_types;
mod mysql_changes;
mod mysql_goldens;
mod mysql_images;
mod mysql_keys;
mod mysql_large;
mod mysql_logins;
mod mysql_prepared;
mod mysql_random;
mod mysql_replicas;
mod mysql_schema;
mod mysql_tables;
mod mysql_types;
mod mysql_values;
mod postgres_breadth;
mod postgres_changes;
mod postgres_chunks;
mod postgres_goldens;
mod postgres_joining;
mod postgres_limits;
mod postgres_partial;
mod postgres_partitions;
mod postgres_positions;
mod postgres_roundtrip;
mod postgres_schemas;
mod postgres_streamed;
mod postgres_tables;
mod postgres_types;
mod postgres_values;
mod refusals;
