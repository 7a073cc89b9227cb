//! Positions in a source's log.
//!
//! A position is opaque here: its text is the source's own (a PostgreSQL LSN, a
//! MySQL GTID set or `file:offset`, a MariaDB GTID list), and only the source
//! can tell whether one covers another. So nothing above the sources can compare
//! positions by accident.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A place in a source's log, in the source's own text.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(Arc<str>);

impl Position {
    /// A position from the source's text; the source validates it when it is used.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Position(text.into())
    }
    /// The source's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A point of the stream: where the source's log stands, and the last `_seq` given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPoint {
    /// Everything at or before this position is included.
    pub position: Position,
    /// The greatest `_seq` given to a row at or before it; 0 before the first.
    pub seq: i64,
}
