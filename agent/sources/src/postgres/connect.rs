//! Ordinary connections: sessions that print values the same way, and errors by class.
//!
//! Every setting that changes a value's text is pinned at connect, here and on the
//! replication connection alike, because a role or a database may have its own
//! (`ALTER ROLE … SET datestyle`): a snapshot and the log would then differ.

use super::Shared;
use crate::{TlsMode, tls};
use caudal_model::{Class, Error, Kind, Result};
use secrecy::ExposeSecret;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, CopyOutStream, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connection that is not needed any more may take to end.
const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

type Answer<T> = std::result::Result<T, tokio_postgres::Error>;

/// A connection whose answers are waited for within a limit: past it the connection is
/// given up, so that a half-open one holds nobody up for ever.
pub struct Client {
    inner: tokio_postgres::Client,
    driver: AbortHandle,
    patience: Duration,
}

impl Drop for Client {
    fn drop(&mut self) {
        // A server that never reads would keep the driver waiting to say goodbye.
        let driver = self.driver.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(GOODBYE_WITHIN).await;
                driver.abort();
            });
        }
    }
}

impl Client {
    /// Waits for an answer, or for the next piece of one.
    pub async fn within<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = pin!(answer);
        match tokio::time::timeout(self.patience, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                tracing::warn!(patience = ?self.patience, "the source does not answer; its connection is given up");
                // Whatever waits for this connection now fails with its end.
                self.driver.abort();
                answer.await
            }
        }
    }

    /// [`tokio_postgres::Client::query`]
    pub async fn query(&self, sql: &str, with: &[&(dyn ToSql + Sync)]) -> Answer<Vec<Row>> {
        self.within(self.inner.query(sql, with)).await
    }

    /// [`tokio_postgres::Client::query_one`]
    pub async fn query_one(&self, sql: &str, with: &[&(dyn ToSql + Sync)]) -> Answer<Row> {
        self.within(self.inner.query_one(sql, with)).await
    }

    /// [`Self::query_one`] of what the server may rightly take any time for: the caller sees to
    /// it that the server is still there.
    pub async fn query_one_at_leisure(
        &self,
        sql: &str,
        with: &[&(dyn ToSql + Sync)],
    ) -> Answer<Row> {
        self.inner.query_one(sql, with).await
    }

    /// [`tokio_postgres::Client::query_opt`]
    pub async fn query_opt(&self, sql: &str, with: &[&(dyn ToSql + Sync)]) -> Answer<Option<Row>> {
        self.within(self.inner.query_opt(sql, with)).await
    }

    /// [`tokio_postgres::Client::batch_execute`]
    pub async fn batch_execute(&self, sql: &str) -> Answer<()> {
        self.within(self.inner.batch_execute(sql)).await
    }

    /// [`tokio_postgres::Client::copy_out`]; what it sends is awaited by [`Self::within`].
    pub async fn copy_out(&self, sql: &str) -> Answer<CopyOutStream> {
        self.within(self.inner.copy_out(sql)).await
    }

    /// [`tokio_postgres::Client::is_closed`]
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }
}

/// Settings of every session.
///
/// `search_path` keeps type names qualified, whatever the role's own path is, and
/// keeps operators from being shadowed. `lc_monetary` C gives money two decimals.
pub const SESSION: [(&str, &str); 15] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "iso_8601"),
    ("extra_float_digits", "1"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    ("client_encoding", "UTF8"),
    ("standard_conforming_strings", "on"),
    ("search_path", "pg_catalog"),
    ("statement_timeout", "0"),
    ("lock_timeout", "8000"),
    ("idle_in_transaction_session_timeout", "0"),
    ("jit", "off"),
    ("row_security", "off"),
];

/// Limits of a role or a database that a session which reads chunks keeps to: a chunk that
/// runs into one is read in smaller parts.
const LIMITS: [&str; 3] = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
];

/// The settings as the startup packet's `options`. `limited`: without [`LIMITS`].
pub fn session_options(limited: bool) -> String {
    SESSION
        .iter()
        .filter(|(k, _)| !limited || !LIMITS.contains(k))
        .map(|(k, v)| format!("-c {k}={v}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Opens a connection, whose driver task ends with the client.
pub async fn connect(shared: &Shared) -> Result<Client> {
    let o = &shared.options;
    connect_to(shared, (&o.host, o.port), false).await
}

/// Opens a connection to a server. `limited`: with the limits that the user has there.
pub async fn connect_to(
    shared: &Shared,
    (host, port): (&str, u16),
    limited: bool,
) -> Result<Client> {
    let o = &shared.options;
    let at = format!("{host}:{port}");
    let mut config = Config::new();
    config
        .host(host)
        .port(port)
        .user(&o.user)
        .password(o.password.expose_secret())
        .dbname(shared.database())
        .application_name(shared.application())
        .options(session_options(limited))
        .connect_timeout(o.connect_timeout)
        .keepalives_idle(Duration::from_secs(60))
        .ssl_mode(match o.tls.mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        });
    let attempt = async {
        let (inner, driver) = match tls::client_config(&o.tls)? {
            None => {
                let (client, connection) = config
                    .connect(NoTls)
                    .await
                    .map_err(|e| connect_error(e, &at))?;
                (client, tokio::spawn(connection).abort_handle())
            }
            Some(tls) => {
                let connector = MakeRustlsConnect::new(Arc::unwrap_or_clone(tls));
                let (client, connection) = config
                    .connect(connector)
                    .await
                    .map_err(|e| connect_error(e, &at))?;
                (client, tokio::spawn(connection).abort_handle())
            }
        };
        Ok(Client {
            inner,
            driver,
            patience: o.read_timeout,
        })
    };
    // The driver's own timeout covers the TCP connect only.
    match tokio::time::timeout(o.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(&at, o.connect_timeout)),
    }
}

impl Shared {
    /// `host:port`, for messages.
    pub(super) fn server(&self) -> String {
        format!("{}:{}", self.options.host, self.options.port)
    }

    pub(super) fn timed_out(&self) -> Error {
        timed_out(&self.server(), self.options.connect_timeout)
    }

    /// What the agent's sessions are called.
    pub(super) fn application(&self) -> String {
        format!("caudal {}", self.options.stream)
    }
}

fn timed_out(server: &str, limit: Duration) -> Error {
    Error::retryable(
        Kind::Source,
        format!("{server} did not answer within {limit:?}"),
    )
    .hint("check [source] host and port, the firewall, and that the server runs")
}

fn connect_error(e: tokio_postgres::Error, server: &str) -> Error {
    use std::error::Error as _;
    let at = format!("cannot connect to {server}");
    if e.as_db_error().is_some() {
        return query_error(e).context(at);
    }
    let text = e.to_string();
    if tls::is_refusal(&e) || text.contains("does not support TLS") {
        return tls_error(e.source().map_or(text, ToString::to_string)).context(at);
    }
    if text.contains("authentication") || text.contains("password missing") {
        return Error::fatal(Kind::Prerequisite, text)
            .hint("check [source] user and password")
            .context(at);
    }
    Error::retryable(Kind::Source, at).caused_by(e)
}

/// A TLS handshake that failed: waiting does not mend it.
pub fn tls_error(text: String) -> Error {
    Error::fatal(
        Kind::Prerequisite,
        format!("the TLS handshake failed: {text}"),
    )
    .hint("check [source] tls, ca_file and host against the server's ssl settings and certificate")
}

/// An error that the server or the driver reports for a statement.
///
/// The server's `DETAIL` may hold a row's values and is left out.
pub fn query_error(e: tokio_postgres::Error) -> Error {
    match e.as_db_error() {
        Some(db) => server_error(db.code().code(), db.message()),
        None => Error::retryable(Kind::Source, "the connection to the server broke").caused_by(e),
    }
}

/// A statement, a transaction or its idle time was too long for a limit, or for a standby that
/// must replay what it holds up.
const LIMIT_REACHED: [&str; 4] = ["57014", "25P03", "25P04", "40001"];

/// An error by its SQLSTATE.
pub fn server_error(code: &str, message: &str) -> Error {
    let text = format!("the server says: {message} ({code})");
    let class = code.get(..2).unwrap_or("");
    match class {
        // A retry would meet it again, and so would every one.
        _ if message.contains("invalid memory alloc request size") => Error::fatal(Kind::Source, text)
            .hint("a row is longer than the gigabyte that the server can send (bytea counts twice); if the log holds it, the slot cannot pass it: drop the slot, exclude the table, and run `caudal resnapshot` for the others"),
        // What `membership` finds as well, if it comes first.
        _ if code == SqlState::UNDEFINED_OBJECT.code() && message.contains("publication") => Error::fatal(Kind::PositionLost, text)
            .hint("the changes since it was dropped are lost: drop the slot (pg_drop_replication_slot), then `caudal resnapshot '*.*'` and `caudal run`"),
        _ if LIMIT_REACHED.contains(&code) => Error::retryable(Kind::Timeout, text),
        "28" => Error::fatal(Kind::Prerequisite, text)
            .hint("check [source] user and password, and the server's pg_hba.conf"),
        "3D" => Error::fatal(Kind::Prerequisite, text).hint("check [source] database"),
        "08" | "40" | "53" | "57" | "58" | "XX" => Error::retryable(Kind::Source, text),
        _ if code == SqlState::LOCK_NOT_AVAILABLE.code()
            || code == SqlState::OBJECT_IN_USE.code()
            || code == SqlState::TOO_MANY_CONNECTIONS.code() =>
        {
            Error::retryable(Kind::Source, text)
        }
        _ if code == SqlState::INSUFFICIENT_PRIVILEGE.code() => {
            Error::fatal(Kind::Prerequisite, text)
                .hint("run `caudal check`: it prints the missing grants")
        }
        _ => Error::fatal(Kind::Source, text),
    }
}

/// Whether the server refused for want of a privilege.
pub fn is_denied(e: &Error) -> bool {
    e.class() == Class::Fatal && e.kind() == Kind::Prerequisite
}

/// An SQL identifier in double quotes.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL string literal; `standard_conforming_strings` is on in every session.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A table's name in SQL.
pub fn table_ident(table: &caudal_model::TableName) -> String {
    format!("{}.{}", ident(&table.schema), ident(&table.name))
}
