//! Change data capture from relational databases to a Parquet lake, exactly once.

pub mod cli;
pub mod config;
pub mod crash;
pub mod epoch;
pub mod history;
pub mod http;
pub mod latest;
pub mod logging;
pub mod metrics;
pub mod pipeline;
pub mod progress;
pub mod recover;
pub mod requests;
pub mod rewind;
pub mod secret;
pub mod settings;
pub mod snapshot;
pub mod staging;
pub mod start;
pub mod status;
pub mod supervise;
mod text;
