//! The harness of caudal's tests, demo and benchmarks: real database servers, S3
//! servers whose faults can be switched, the agent as a process, and an oracle that
//! reads the lake without any of caudal's own code.
//!
//! Everything here cleans up after itself, also when a test panics or is killed: a
//! database server belongs to a keeper process that stops it once no test holds a
//! lease on it. `CAUDAL_KEEP=1` keeps servers and directories, and says where.

use std::fmt;

pub mod agent;
pub mod cache;
pub mod clock;
pub mod databases;
pub mod dialect;
pub mod disk;
pub mod moto;
pub mod oracle;
pub mod power;
mod preload;
pub mod proxy;
pub mod replica;
pub mod s3;
pub mod session;
pub mod source;
pub mod venv;

pub use agent::Agent;
pub use databases::{Server, Version};
pub use oracle::Oracle;
pub use s3::S3Server;
pub use session::Session;
pub use source::Source;

/// What went wrong in the harness, with everything that a reader of a test's output
/// needs: there is nobody who could handle it.
#[derive(Clone)]
pub struct Failure(String);

impl Failure {
    /// A failure that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Failure(message.into())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// `Failure` is not an `Error` itself, so that every error converts into it with its causes.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(c) = cause {
            let more = c.to_string();
            if !text.contains(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = c.source();
        }
        Failure(text)
    }
}

/// The harness's result.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Puts `what` before the failure's text.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Failure(format!("{what}: {}", e.into())))
    }
}

/// Fails with a formatted message.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::Failure::new(format!($($arg)*))) };
}

/// Whether servers and directories are to be kept for a look at them (`CAUDAL_KEEP=1`).
pub fn keep() -> bool {
    std::env::var_os("CAUDAL_KEEP").is_some_and(|v| !v.is_empty() && v != "0")
}
