//! What `caudal check` finds.

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The prerequisite holds.
    Ok,
    /// Something a user should know: a coercion, a column that is left out.
    Info,
    /// It works, but a setting is risky.
    Warning,
    /// `run` would refuse to start.
    Error,
}

/// One prerequisite, whether it holds, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// A stable name, e.g. `wal_level`, `binlog_row_metadata`, `sink_conditional_put`.
    pub check: &'static str,
    /// The table or column that it concerns, if it is not the whole source.
    pub subject: Option<String>,
    /// What was found and why it matters.
    pub reason: String,
    /// The exact SQL or setting that mends it.
    pub mend: Option<String>,
}

impl Finding {
    /// A finding about the whole source or sink.
    pub fn new(severity: Severity, check: &'static str, reason: impl Into<String>) -> Self {
        Finding {
            severity,
            check,
            subject: None,
            reason: reason.into(),
            mend: None,
        }
    }
    /// Names the table or column.
    pub fn subject(mut self, subject: impl ToString) -> Self {
        self.subject = Some(subject.to_string());
        self
    }
    /// Adds the exact SQL or setting that mends it.
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}
