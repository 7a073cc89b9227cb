//! One error type for the whole program.
//!
//! [`Class`] decides what the supervisor does, [`Kind`] decides the exit code
//! and the metric's label. Messages are lower case, never hold a row's values
//! or a secret, and `hint` says what to do next.

use std::error::Error as StdError;
use std::fmt;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the supervisor does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Back off and start again from the last commit.
    Retryable,
    /// One table becomes `errored`; the rest of the stream goes on.
    Data,
    /// Stop the agent.
    Fatal,
}

/// What went wrong, in the terms of the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The command line or the config file is wrong (exit 2).
    Config,
    /// Wrong credentials, a missing grant or setting (exit 1).
    Prerequisite,
    /// The source cannot be reached, or the connection broke.
    Source,
    /// A statement ran into a time limit of the source: a smaller chunk may not;
    /// always [`Class::Retryable`].
    Timeout,
    /// The object store cannot be reached, or answered with an error.
    Store,
    /// The source no longer has the position (exit 3).
    PositionLost,
    /// Another agent owns the stream (exit 4).
    Fenced,
    /// A value or a schema that cannot arrive exactly; always [`Class::Data`].
    Data,
    /// A table is not as its schema says and has to be copied again, which the agent
    /// does by itself; always [`Class::Data`].
    Drift,
    /// Bytes that were written by caudal or by the source do not parse.
    Corrupt,
    /// The local disk or the state directory failed.
    State,
    /// The deadline passed before the stream was caught up (exit 6).
    Deadline,
    /// A broken invariant: a bug in caudal (exit 70).
    Bug,
}

impl Kind {
    /// The label of `caudal_errors_total{class}` and of JSON logs.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Config => "config",
            Kind::Prerequisite => "prerequisite",
            Kind::Source => "source",
            Kind::Timeout => "timeout",
            Kind::Store => "store",
            Kind::PositionLost => "position_lost",
            Kind::Fenced => "fenced",
            Kind::Data => "data",
            Kind::Drift => "drift",
            Kind::Corrupt => "corrupt",
            Kind::State => "state",
            Kind::Deadline => "deadline",
            Kind::Bug => "bug",
        }
    }
}

/// An error with its class, its remedy and the path that it took.
pub struct Error(Box<Inner>);

struct Inner {
    class: Class,
    kind: Kind,
    message: String,
    hint: Option<String>,
    table: Option<crate::TableName>,
    context: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error of the given class and kind.
    pub fn new(class: Class, kind: Kind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            class,
            kind,
            message: message.into(),
            hint: None,
            table: None,
            context: Vec::new(),
            source: None,
        }))
    }

    /// Retryable: a connection that broke, a store that is busy.
    pub fn retryable(kind: Kind, message: impl Into<String>) -> Self {
        Self::new(Class::Retryable, kind, message)
    }

    /// Fatal: retrying cannot help.
    pub fn fatal(kind: Kind, message: impl Into<String>) -> Self {
        Self::new(Class::Fatal, kind, message)
    }

    /// A value or schema of one table that cannot arrive exactly.
    pub fn data(table: &crate::TableName, message: impl Into<String>) -> Self {
        let mut e = Self::new(Class::Data, Kind::Data, message);
        e.0.table = Some(table.clone());
        e
    }

    /// A table that is not as its schema says; see [`Kind::Drift`].
    pub fn drift(table: &crate::TableName, message: impl Into<String>) -> Self {
        let mut e = Self::new(Class::Data, Kind::Drift, message);
        e.0.table = Some(table.clone());
        e
    }

    /// A broken invariant.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::fatal(Kind::Bug, message)
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds what was being done, outermost last.
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.0.context.push(context.into());
        self
    }

    /// Keeps the error that caused this one.
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Names the table that a data error belongs to, where it was not known.
    pub fn in_table(mut self, table: &crate::TableName) -> Self {
        self.0.table.get_or_insert_with(|| table.clone());
        self
    }

    /// What the supervisor does about it.
    pub fn class(&self) -> Class {
        self.0.class
    }
    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
    /// The message without hint or context.
    pub fn message(&self) -> &str {
        &self.0.message
    }
    /// What to do next, if it is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
    /// The table of a data error.
    pub fn table(&self) -> Option<&crate::TableName> {
        self.0.table.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.context.iter().rev() {
            write!(f, "{c}: ")?;
        }
        if let Some(t) = &self.0.table {
            write!(f, "table {t}: ")?;
        }
        f.write_str(&self.0.message)?;
        let mut cause: Option<&(dyn StdError + 'static)> = self
            .0
            .source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static));
        let mut last = self.0.message.clone();
        while let Some(c) = cause {
            let text = c.to_string();
            // Several crates repeat their source's text in their own.
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = c.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?}, {:?})", self.0.class, self.0.kind)?;
        if let Some(h) = &self.0.hint {
            write!(f, "; {h}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static))
    }
}
