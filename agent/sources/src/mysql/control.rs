//! The control plane: everything that asks a server about itself goes through mysql_async.
//!
//! Prerequisites, schemas and positions are small results in the text protocol, where a driver
//! that others maintain is worth more than borrowed bytes. Rows and events do not pass here:
//! they are [`super::wire`]'s. Errors are the same on both, so that a caller that
//! knows a server's error number need not know who asked.
//!
//! **TLS.** The modes mean what [`crate::tls`] says. mysql_async's own verifier is never more
//! lenient than that, but at times stricter: it has no `verify-ca` for a certificate without
//! the host's name, and does not take one that stands in `ca_file` itself. So when it refuses
//! a certificate, a connection of [`super::wire`] decides by the rules of `crate::tls`, and
//! asks the questions if they hold.

use super::flavor::{Flavor, Version, parse_version};
use super::login::unknown_plugin;
use super::wire::{Connection, TextRow, Wire, WireError, within};
use crate::{SourceOptions, TlsMode};
use async_trait::async_trait;
use caudal_model::{Error, Kind};
use mysql_async::prelude::Queryable;
use mysql_async::{
    ClientIdentity, Conn, DriverError, IoError, Opts, OptsBuilder, Row, SslOpts, Value,
};
use rustls::crypto::aws_lc_rs;
use secrecy::ExposeSecret;
use std::fmt;
use std::time::Duration;
use tokio::task::JoinSet;

/// What answers statements in the text protocol.
#[async_trait]
pub trait Ask: Send {
    /// The server's family.
    fn flavor(&self) -> Flavor;

    /// Runs a statement, and returns its rows.
    async fn query(&mut self, sql: &str) -> Wire<Vec<TextRow>> {
        Ok(self.result(sql).await?.1)
    }

    /// The same with the columns' names, which a result without rows may lack.
    async fn result(&mut self, sql: &str) -> Wire<(Vec<String>, Vec<TextRow>)>;

    /// The first cell of a statement's first row.
    async fn value(&mut self, sql: &str) -> Wire<Option<String>> {
        Ok(self.query(sql).await?.first().and_then(|r| r.get(0)))
    }
}

#[async_trait]
impl Ask for Connection {
    fn flavor(&self) -> Flavor {
        self.flavor
    }
    async fn result(&mut self, sql: &str) -> Wire<(Vec<String>, Vec<TextRow>)> {
        Connection::result(self, sql).await
    }
}

/// A logged-in connection for questions.
pub struct Control {
    link: Link,
    /// How long an answer may take.
    patience: Duration,
    encrypted: bool,
    /// The server's family.
    pub(super) flavor: Flavor,
    /// The server's version.
    pub(super) version: Version,
}

enum Link {
    Driver(Conn),
    /// The certificate holds by the rules of `crate::tls` alone.
    Own(Box<Connection>),
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({} {})", self.flavor.name(), self.version)
    }
}

impl Control {
    /// Connects and logs in within the options' timeout.
    pub(super) async fn open(options: &SourceOptions) -> Wire<Control> {
        let waited = tokio::time::timeout(options.connect_timeout, Self::connect(options)).await;
        waited.map_err(|_| {
            let (host, port) = (&options.host, options.port);
            let text = format!(
                "no connection to {host}:{port} within {:?}",
                options.connect_timeout
            );
            WireError::Other(Error::retryable(Kind::Source, text))
        })?
    }

    async fn connect(options: &SourceOptions) -> Wire<Control> {
        let mut encrypted = options.tls.mode != TlsMode::Disable;
        let mut opened = log_in(opts(options, encrypted)).await;
        if matches!(&opened, Err(e) if no_tls(e)) && options.tls.mode == TlsMode::Prefer {
            encrypted = false;
            opened = log_in(opts(options, encrypted)).await;
        }
        let conn = match opened {
            Ok(conn) => conn,
            Err(e) if verifies(options.tls.mode) && refused_certificate(&e) => {
                let own = Connection::open(options).await?;
                return Ok(Control {
                    encrypted: own.encrypted(),
                    flavor: own.flavor,
                    version: own.version,
                    link: Link::Own(Box::new(own)),
                    patience: options.read_timeout,
                });
            }
            Err(e) => return Err(login_error(e, options)),
        };
        let mut control = Control {
            link: Link::Driver(conn),
            patience: options.read_timeout,
            encrypted,
            flavor: Flavor::MySql,
            version: Version(0, 0, 0),
        };
        // The greeting's text is not kept by the driver.
        let text = control.value("SELECT VERSION()").await?;
        (control.flavor, control.version) = parse_version(&text.unwrap_or_default());
        Ok(control)
    }

    /// Whether TLS is on.
    pub(super) fn encrypted(&self) -> bool {
        self.encrypted
    }
}

#[async_trait]
impl Ask for Control {
    fn flavor(&self) -> Flavor {
        self.flavor
    }

    async fn result(&mut self, sql: &str) -> Wire<(Vec<String>, Vec<TextRow>)> {
        let conn = match &mut self.link {
            Link::Driver(conn) => conn,
            Link::Own(own) => return own.result(sql).await,
        };
        let answer = async { Ok(conn.query(sql).await) };
        let rows: Vec<Row> = within(self.patience, answer).await?.map_err(wire_error)?;
        let cell = |value| match value {
            Value::NULL => None,
            Value::Bytes(bytes) => Some(bytes),
            // The text protocol has no other.
            other => Some(other.as_sql(true).into_bytes()),
        };
        let columns = rows.first().map(|r| r.columns());
        let names = columns.iter().flat_map(|c| c.iter());
        let names = names.map(|c| c.name_str().into_owned()).collect();
        let cells = |row: Row| TextRow(row.unwrap().into_iter().map(cell).collect());
        Ok((names, rows.into_iter().map(cells).collect()))
    }
}

fn verifies(mode: TlsMode) -> bool {
    matches!(mode, TlsMode::VerifyCa | TlsMode::VerifyFull)
}

fn opts(options: &SourceOptions, encrypted: bool) -> Opts {
    OptsBuilder::default()
        .ip_or_hostname(options.host.clone())
        .tcp_port(options.port)
        .user(Some(options.user.clone()))
        .pass(Some(options.password.expose_secret()))
        .db_name(options.database.clone().filter(|d| !d.is_empty()))
        // A socket that the server names may be another server's on this host.
        .prefer_socket(false)
        .connect_attribute("program_name", "caudal")
        .enable_cleartext_plugin(encrypted)
        .ssl_opts(encrypted.then(|| ssl_opts(options)))
        .into()
}

fn ssl_opts(options: &SourceOptions) -> SslOpts {
    let tls = &options.tls;
    let identity = match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => {
            Some(ClientIdentity::new(cert.clone().into(), key.clone().into()))
        }
        _ => None,
    };
    let ssl = SslOpts::default().with_client_identity(identity);
    if !verifies(tls.mode) {
        return ssl
            .with_danger_accept_invalid_certs(true)
            .with_danger_skip_domain_validation(true);
    }
    let ssl = ssl
        .with_disable_built_in_roots(true)
        .with_danger_skip_domain_validation(tls.mode == TlsMode::VerifyCa);
    match &tls.ca_file {
        Some(path) => ssl.with_root_certs(vec![path.clone().into()]),
        None => {
            // One that does not parse would fail them all.
            let parses = |c: &rustls::pki_types::CertificateDer<'static>| {
                rustls::RootCertStore::empty().add(c.clone()).is_ok()
            };
            let found = rustls_native_certs::load_native_certs().certs;
            let usable = found.into_iter().filter(parses);
            ssl.with_root_certs(usable.map(|c| c.as_ref().to_vec().into()).collect())
        }
    }
}

/// Logs in, in a task of its own: the parser of a server's public key panics on a malformed one.
async fn log_in(opts: Opts) -> mysql_async::Result<Conn> {
    // mysql_async takes the process's provider. An error means that there is one already.
    let _ = aws_lc_rs::default_provider().install_default();
    // A set aborts its tasks when it is dropped, as the timeout does.
    let mut tasks = JoinSet::new();
    tasks.spawn(Conn::new(opts));
    match tasks.join_next().await {
        Some(Ok(opened)) => opened,
        _ => Err(mysql_async::Error::Io(IoError::Io(
            std::io::ErrorKind::InvalidData.into(),
        ))),
    }
}

fn no_tls(e: &mysql_async::Error) -> bool {
    let mysql_async::Error::Driver(e) = e else {
        return false;
    };
    matches!(e, DriverError::NoClientSslFlagFromServer)
}

/// Whether the handshake failed on what the server showed, and not on the network.
fn refused_certificate(e: &mysql_async::Error) -> bool {
    match e {
        mysql_async::Error::Io(IoError::Tls(_)) => true,
        mysql_async::Error::Io(IoError::Io(e)) => {
            e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
        }
        _ => false,
    }
}

fn login_error(e: mysql_async::Error, options: &SourceOptions) -> WireError {
    if no_tls(&e) {
        return super::login::no_tls();
    }
    if refused_certificate(&e) {
        let text = "the TLS handshake with the source failed";
        return WireError::Other(
            Error::fatal(Kind::Prerequisite, text)
                .hint("check source.tls, source.ca_file and the server's certificate")
                .caused_by(e),
        );
    }
    match e {
        mysql_async::Error::Driver(DriverError::UnknownAuthPlugin { name }) => {
            unknown_plugin(&name, options.tls.mode != TlsMode::Disable)
        }
        mysql_async::Error::Driver(DriverError::CleartextPluginDisabled) => {
            unknown_plugin("mysql_clear_password", false)
        }
        mysql_async::Error::Driver(DriverError::MysqlOldPasswordDisabled) => {
            unknown_plugin("mysql_old_password", true)
        }
        mysql_async::Error::Io(e) => {
            let text = format!("cannot connect to {}:{}", options.host, options.port);
            WireError::Other(Error::retryable(Kind::Source, text).caused_by(e))
        }
        e => wire_error(e),
    }
}

fn wire_error(e: mysql_async::Error) -> WireError {
    match e {
        mysql_async::Error::Server(e) => WireError::Server {
            code: e.code,
            message: e.message,
        },
        mysql_async::Error::Io(IoError::Io(e)) => WireError::Io(e),
        mysql_async::Error::Driver(DriverError::ConnectionClosed) => {
            WireError::Io(std::io::ErrorKind::UnexpectedEof.into())
        }
        mysql_async::Error::Driver(
            DriverError::UnexpectedPacket { .. } | DriverError::PacketOutOfOrder,
        ) => WireError::Protocol("a packet out of its place"),
        e => WireError::Other(
            Error::retryable(Kind::Source, "the source could not be asked").caused_by(e),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_error_keeps_its_number() {
        let e = mysql_async::Error::Server(mysql_async::ServerError {
            code: 1064,
            message: "syntax".to_owned(),
            state: "42000".to_owned(),
        });
        assert!(matches!(
            wire_error(e),
            WireError::Server { code: 1064, .. }
        ));
    }

    #[test]
    fn a_lost_connection_is_tried_again() {
        let e = mysql_async::Error::Driver(DriverError::ConnectionClosed);
        assert_eq!(
            Error::from(wire_error(e)).class(),
            caudal_model::Class::Retryable
        );
    }
}
