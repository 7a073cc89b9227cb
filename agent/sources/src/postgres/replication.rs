//! The replication connection: handshake, and a pump that keeps it alive.
//!
//! A message that is longer than any value may be is collected without the values that are
//! too long (see `decode::oversize`), so that one row neither fills the memory nor stops
//! the stream.
//!
//! The pump is a task of its own. It answers keepalives and reports the
//! acknowledged position on time whatever the pipeline does: while the queue to the
//! tail is full it stops reading, so the server's socket fills and the server waits
//! (that is the back-pressure), but it goes on writing status updates, which the
//! server reads even while it waits to send. The reported position moves by
//! acknowledgement alone (INV-3).
//!
//! Whole protocol messages travel to the tail in the buffer that the socket was
//! read into: one queue operation and no copy for some hundred messages. The queue
//! holds at most [`QUEUE`] such buffers (INV-9).

use super::connect::{self, SESSION, server_error, tls_error};
use super::decode::oversize::{self, Oversize};
use super::decode::pgoutput;
use super::{Lsn, Shared};
use crate::{TlsMode, tls};
use bytes::{BufMut, Bytes, BytesMut};
use caudal_model::{Error, Kind, Result};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{ErrorFields, Message};
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Buffers between the pump and the tail.
const QUEUE: usize = 8;
/// What the pump reads at once.
const READ_BYTES: usize = 256 << 10;
/// No message is longer than this: the server makes each in one allocation, of which none
/// exceeds 1 GiB.
const MAX_MESSAGE: usize = (1 << 30) + (64 << 10);
/// For a database of SQL_ASCII, whose text may be anything: the server would check it against
/// another encoding, and end the stream at the first that is not; here it ends its table.
const UNCHECKED: &str = "SET client_encoding = 'SQL_ASCII'";
/// How often the pump asks an idle server where its log stands.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// The longest that a server takes to answer while it is busy with a transaction that the
/// publication leaves out: then it tells of itself at half of `wal_sender_timeout`.
const SILENCE: Duration = Duration::from_secs(120);

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection in replication mode, before or after `START_REPLICATION`.
pub struct ReplicationConnection {
    io: Box<dyn Io>,
    buf: BytesMut,
    /// The longest text of a value that is carried.
    longest: usize,
    /// Nothing for so long, from a server that is asked every second, is a dead connection.
    silence: Duration,
    /// The id of the server's process.
    pub server_process: i32,
}

/// The stream of a slot's changes.
pub struct ReplicationStream {
    buffers: mpsc::Receiver<Result<Bytes>>,
    reported: watch::Sender<Reported>,
    pump: JoinHandle<()>,
}

impl ReplicationStream {
    /// The next buffer of whole protocol messages. Cancel safe.
    pub async fn next(&mut self) -> Result<Bytes> {
        match self.buffers.recv().await {
            Some(buffer) => buffer,
            None => Err(broken("the replication connection ended")),
        }
    }

    /// Reports a position as durable, at once.
    pub fn acknowledge(&self, through: Lsn) {
        self.report(through, through);
    }

    /// Reports a position as written, which the server is to keep.
    pub fn written(&self, through: Lsn) {
        self.report(through, Lsn(0));
    }

    fn report(&self, written: Lsn, flushed: Lsn) {
        self.reported.send_if_modified(|held| {
            let now = Reported {
                written: held.written.max(written),
                flushed: held.flushed.max(flushed),
            };
            let moved = now != *held;
            *held = now;
            moved
        });
    }
}

impl Drop for ReplicationStream {
    fn drop(&mut self) {
        // The socket closes with the task, and the server frees the slot.
        self.pump.abort();
    }
}

fn broken(message: &str) -> Error {
    Error::retryable(Kind::Source, message)
}

fn io_error(e: std::io::Error) -> Error {
    broken("the replication connection broke").caused_by(e)
}

/// An `ErrorResponse`'s SQLSTATE and message.
fn response_error(fields: &mut ErrorFields<'_>) -> (String, Error) {
    use postgres_protocol::message::backend::ErrorField;
    let (mut code, mut message) = (String::new(), String::new());
    while let Ok(Some(field)) = fallible_next(fields) {
        let value = |f: &ErrorField<'_>| String::from_utf8_lossy(f.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = value(&field),
            b'M' => message = value(&field),
            _ => {}
        }
    }
    let error = server_error(&code, &message);
    (code, error)
}

fn fallible_next<'a>(
    fields: &mut ErrorFields<'a>,
) -> std::io::Result<Option<postgres_protocol::message::backend::ErrorField<'a>>> {
    use tokio_postgres::fallible_iterator::FallibleIterator;
    fields.next()
}

impl ReplicationConnection {
    /// Connects and authenticates.
    pub async fn open(shared: &Shared) -> Result<Self> {
        let limit = shared.options.connect_timeout;
        match tokio::time::timeout(limit, Self::handshake(shared)).await {
            Ok(result) => result,
            Err(_) => Err(shared.timed_out()),
        }
    }

    async fn handshake(shared: &Shared) -> Result<Self> {
        let o = &shared.options;
        let unreachable = |e: std::io::Error| {
            Error::retryable(
                Kind::Source,
                format!("cannot connect to {}", shared.server()),
            )
            .caused_by(e)
        };
        let io: Box<dyn Io> = if o.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", o.host, o.port);
            Box::new(UnixStream::connect(path).await.map_err(unreachable)?)
        } else {
            let socket = TcpStream::connect((o.host.as_str(), o.port))
                .await
                .map_err(unreachable)?;
            socket.set_nodelay(true).map_err(io_error)?;
            Self::encrypt(shared, socket).await?
        };
        let mut connection = ReplicationConnection {
            io,
            buf: BytesMut::with_capacity(READ_BYTES),
            // Bytes come as hex, behind a prefix.
            longest: o.value_bytes.saturating_mul(2).saturating_add(2),
            silence: o.read_timeout.min(SILENCE),
            server_process: 0,
        };
        connection.startup(shared).await?;
        Ok(connection)
    }

    async fn encrypt(shared: &Shared, mut socket: TcpStream) -> Result<Box<dyn Io>> {
        let Some(config) = tls::client_config(&shared.options.tls)? else {
            return Ok(Box::new(socket));
        };
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await.map_err(io_error)?;
        // One byte and no more: what follows belongs to the TLS layer, and bytes that a
        // man in the middle put before it must never be taken for the server's.
        let mut answer = [0u8];
        socket.read_exact(&mut answer).await.map_err(io_error)?;
        if answer != *b"S" {
            if shared.options.tls.mode == TlsMode::Prefer {
                return Ok(Box::new(socket));
            }
            return Err(tls_error("the server does not offer TLS".into()));
        }
        let mut connector = MakeRustlsConnect::new(Arc::unwrap_or_clone(config));
        let Ok(connect) =
            MakeTlsConnect::<TcpStream>::make_tls_connect(&mut connector, &shared.options.host);
        let stream = connect.connect(socket).await;
        let stream = stream.map_err(|e| match tls::is_refusal(&e) {
            true => tls_error(e.to_string()),
            false => broken("the TLS handshake broke off").caused_by(e),
        })?;
        Ok(Box::new(stream))
    }

    async fn startup(&mut self, shared: &Shared) -> Result<()> {
        let o = &shared.options;
        let name = format!("caudal {}", o.stream);
        let mut parameters = vec![
            ("user", o.user.as_str()),
            ("database", shared.database()),
            ("replication", "database"),
            ("application_name", name.as_str()),
            // Far above the status interval: a server's own setting may be a second.
            ("wal_sender_timeout", "60s"),
        ];
        parameters.extend(SESSION);
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|e| {
            Error::fatal(Kind::Config, "user or database holds a zero byte").caused_by(e)
        })?;
        self.send(&out).await?;
        let mut unchecked = false;
        loop {
            match self.message().await? {
                Message::AuthenticationOk => {}
                Message::AuthenticationCleartextPassword => {
                    let password = o.password.expose_secret().as_bytes();
                    self.password(password).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let password = o.password.expose_secret().as_bytes();
                    let hash = md5_hash(o.user.as_bytes(), password, body.salt());
                    self.password(hash.as_bytes()).await?;
                }
                Message::AuthenticationSasl(_) => self.scram(shared).await?,
                Message::ReadyForQuery(_) => {
                    if std::mem::take(&mut unchecked) {
                        out.clear();
                        frontend::query(UNCHECKED, &mut out).map_err(io_error)?;
                        self.send(&out).await?;
                        continue;
                    }
                    return Ok(());
                }
                Message::ErrorResponse(body) => return Err(response_error(&mut body.fields()).1),
                Message::ParameterStatus(body) => {
                    let told = (body.name().ok(), body.value().ok());
                    unchecked |= told == (Some("server_encoding"), Some("SQL_ASCII"));
                }
                Message::BackendKeyData(body) => self.server_process = body.process_id(),
                Message::CommandComplete(_) | Message::NoticeResponse(_) => {}
                _ => {
                    return Err(Error::fatal(
                        Kind::Prerequisite,
                        "the server asks for an authentication method that caudal does not speak",
                    )
                    .hint("use scram-sha-256 for this user in pg_hba.conf"));
                }
            }
        }
    }

    async fn password(&mut self, password: &[u8]) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::password_message(password, &mut out).map_err(|e| {
            Error::fatal(Kind::Config, "the password holds a zero byte").caused_by(e)
        })?;
        self.send(&out).await
    }

    /// SCRAM-SHA-256. Channel binding is not offered: the TLS layer in use does not
    /// show the server's certificate here.
    async fn scram(&mut self, shared: &Shared) -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::fatal(Kind::Prerequisite, "authentication failed").caused_by(e)
        };
        let password = shared.options.password.expose_secret().as_bytes();
        let mut scram = sasl::ScramSha256::new(password, sasl::ChannelBinding::unsupported());
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), &mut out)
            .map_err(failed)?;
        self.send(&out).await?;
        match self.message().await? {
            Message::AuthenticationSaslContinue(body) => {
                scram.update(body.data()).map_err(failed)?
            }
            Message::ErrorResponse(body) => return Err(response_error(&mut body.fields()).1),
            _ => return Err(broken("unexpected message during authentication")),
        }
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).map_err(failed)?;
        self.send(&out).await?;
        match self.message().await? {
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(failed),
            Message::ErrorResponse(body) => Err(response_error(&mut body.fields()).1),
            _ => Err(broken("unexpected message during authentication")),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.io.write_all(bytes).await.map_err(io_error)?;
        self.io.flush().await.map_err(io_error)
    }

    async fn message(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = Message::parse(&mut self.buf).map_err(io_error)? {
                return Ok(message);
            }
            self.buf.reserve(READ_BYTES);
            if self.io.read_buf(&mut self.buf).await.map_err(io_error)? == 0 {
                return Err(broken("the server closed the replication connection"));
            }
        }
    }

    /// The history file of a timeline, as its text; empty for the first, which has none.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<String> {
        if timeline <= 1 {
            return Ok(String::new());
        }
        let limit = self.silence;
        let told = tokio::time::timeout(limit, self.history_of(timeline)).await;
        told.unwrap_or_else(|_| {
            Err(broken(&format!(
                "the source did not answer within {limit:?}"
            )))
        })
    }

    async fn history_of(&mut self, timeline: u32) -> Result<String> {
        let mut out = BytesMut::new();
        frontend::query(&format!("TIMELINE_HISTORY {timeline}"), &mut out).map_err(io_error)?;
        self.send(&out).await?;
        use tokio_postgres::fallible_iterator::FallibleIterator;
        let mut text = String::new();
        let mut refused = None;
        loop {
            match self.message().await? {
                Message::DataRow(row) => {
                    // The file's name, and its bytes as they are.
                    let content = row.ranges().nth(1).map_err(io_error)?;
                    let bytes = content.flatten().and_then(|at| row.buffer().get(at));
                    text = String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
                }
                Message::ErrorResponse(body) => {
                    refused = Some(response_error(&mut body.fields()).1);
                }
                Message::ReadyForQuery(_) => break,
                _ => {}
            }
        }
        match refused {
            Some(e) => Err(e.context(format!("asking for the history of timeline {timeline}"))),
            None => Ok(text),
        }
    }

    /// Starts streaming after `from`, large transactions before their end if `unfinished`; the
    /// error's SQLSTATE comes with it.
    pub async fn start(
        self,
        slot: &str,
        publication: &str,
        places: (Lsn, Lsn),
        unfinished: bool,
    ) -> Result<ReplicationStream, (String, Error)> {
        let limit = self.silence;
        let begun =
            tokio::time::timeout(limit, self.begin(slot, publication, places, unfinished)).await;
        begun.unwrap_or_else(|_| {
            let text = format!("the source did not start its stream within {limit:?}");
            Err((String::new(), broken(&text)))
        })
    }

    async fn begin(
        mut self,
        slot: &str,
        publication: &str,
        (from, confirmed): (Lsn, Lsn),
        unfinished: bool,
    ) -> Result<ReplicationStream, (String, Error)> {
        let none = |e: Error| (String::new(), e);
        // The option's value is itself a list of identifiers, each of which may be quoted.
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '2', streaming '{}', publication_names {})",
            connect::ident(slot),
            if unfinished { "on" } else { "off" },
            connect::literal(&connect::ident(publication)),
        );
        let mut out = BytesMut::new();
        frontend::query(&sql, &mut out).map_err(|e| {
            none(
                Error::fatal(Kind::Config, "a slot or publication name cannot be sent")
                    .caused_by(e),
            )
        })?;
        self.send(&out).await.map_err(none)?;
        loop {
            // CopyBothResponse is the one message that the parser does not know.
            if let Some(len) = self.whole_message().map_err(none)? {
                if self.buf.first() == Some(&b'W') {
                    let _ = self.buf.split_to(len);
                    break;
                }
            } else {
                self.buf.reserve(READ_BYTES);
                if self
                    .io
                    .read_buf(&mut self.buf)
                    .await
                    .map_err(|e| none(io_error(e)))?
                    == 0
                {
                    return Err(none(broken("the server closed the replication connection")));
                }
                continue;
            }
            if let Message::ErrorResponse(body) = self.message().await.map_err(none)? {
                return Err(response_error(&mut body.fields()));
            }
        }
        let (sender, buffers) = mpsc::channel(QUEUE);
        let (reported, acks) = watch::channel(Reported {
            written: from,
            flushed: confirmed,
        });
        let pump = Pump {
            io: self.io,
            buf: self.buf,
            acks,
            flushed: Lsn(0),
            asked: false,
            longest: self.longest,
            in_stream: false,
            oversize: None,
            silence: self.silence,
            heard: Instant::now(),
        };
        let pump = tokio::spawn(pump.run(sender));
        Ok(ReplicationStream {
            buffers,
            reported,
            pump,
        })
    }

    fn whole_message(&self) -> Result<Option<usize>> {
        pgoutput::message_len(&self.buf, MAX_MESSAGE).map(|n| n.filter(|n| *n <= self.buf.len()))
    }
}

/// What the server is told of the stream's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reported {
    /// Durable in the lake.
    written: Lsn,
    /// The server may forget it.
    flushed: Lsn,
}

/// Length of a status update as a CopyData message.
const STATUS_BYTES: usize = 39;

fn put_status(out: &mut BytesMut, written: Lsn, flushed: Lsn, reply: bool) {
    out.put_u8(b'd');
    out.put_u32(STATUS_BYTES as u32 - 1);
    out.put_u8(b'r');
    out.put_u64(written.0);
    out.put_u64(flushed.0);
    out.put_u64(flushed.0);
    out.put_i64(pgoutput::now());
    out.put_u8(u8::from(reply));
}

struct Pump {
    io: Box<dyn Io>,
    buf: BytesMut,
    acks: watch::Receiver<Reported>,
    /// The position that the slot was last told.
    flushed: Lsn,
    /// The server wants a status update now.
    asked: bool,
    /// See [`ReplicationConnection::longest`].
    longest: usize,
    /// Between the start and the stop of a part of a streamed transaction.
    in_stream: bool,
    /// A message that is being read without its long values.
    oversize: Option<Oversize>,
    /// See [`ReplicationConnection::silence`].
    silence: Duration,
    /// When something was read, or reading began again after the tail had kept it waiting.
    heard: Instant,
}

impl Pump {
    async fn run(mut self, sender: mpsc::Sender<Result<Bytes>>) {
        if let Err(e) = self.stream(&sender).await {
            // A closed queue means that the tail is gone, and nobody is left to tell.
            let _ = sender.send(Err(e)).await;
        }
    }

    async fn stream(&mut self, sender: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let mut status = tokio::time::interval(STATUS_EVERY);
        status.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ready: Option<Bytes> = None;
        loop {
            if ready.is_none() {
                ready = self.whole_messages()?;
            }
            if std::mem::take(&mut self.asked) {
                self.report(false).await?;
            }
            tokio::select! {
                biased;
                _ = status.tick() => {
                    if ready.is_none() && self.heard.elapsed() > self.silence {
                        let text = format!("the source has been silent for {:?}", self.silence);
                        return Err(broken(&text));
                    }
                    self.report(true).await?;
                }
                changed = self.acks.changed() => match changed {
                    Ok(()) => self.report(false).await?,
                    Err(_) => return Ok(()),
                },
                permit = sender.reserve(), if ready.is_some() => match permit {
                    Ok(permit) => if let Some(buffer) = ready.take() {
                        permit.send(Ok(buffer));
                        self.heard = Instant::now();
                    },
                    Err(_) => return Ok(()),
                },
                read = self.io.read_buf(&mut self.buf), if ready.is_none() => {
                    if read.map_err(io_error)? == 0 {
                        return Err(broken("the server closed the replication connection"));
                    }
                    self.heard = Instant::now();
                }
            }
        }
    }

    /// Splits off every whole message that has been read.
    fn whole_messages(&mut self) -> Result<Option<Bytes>> {
        let mut at = 0;
        if self.oversize.is_none()
            && pgoutput::message_len(&self.buf, MAX_MESSAGE)?.is_some_and(|n| n > self.longest)
        {
            self.oversize = Oversize::begin(&mut self.buf, self.longest, self.in_stream)?;
        }
        if let Some(oversize) = &mut self.oversize {
            let whole = oversize.feed(&mut self.buf)?;
            if whole.is_some() {
                self.oversize = None;
            } else {
                self.buf.reserve(READ_BYTES);
            }
            return Ok(whole);
        }
        while let Some(rest) = self.buf.get(at..) {
            match pgoutput::message_len(rest, MAX_MESSAGE)? {
                // What stands in front of it goes first.
                Some(len) if len > self.longest && at > 0 => break,
                Some(len) if len <= rest.len() => {
                    let message = rest.get(..len).unwrap_or_default();
                    self.asked |= pgoutput::wants_reply(message);
                    match oversize::kind(message) {
                        Some(b'S') => self.in_stream = true,
                        Some(b'E') => self.in_stream = false,
                        _ => {}
                    }
                    if message.first() == Some(&b'E') {
                        return Err(self.server_error(at));
                    }
                    at += len;
                }
                // Too little to tell what it is: a row is not collected.
                Some(len) if len > self.longest && rest.len() < 64 => {
                    self.buf.reserve(READ_BYTES);
                    break;
                }
                Some(len) => {
                    // The whole of a long message at once, instead of doubling towards it.
                    self.buf
                        .reserve((at + len).saturating_sub(self.buf.len()).max(READ_BYTES));
                    break;
                }
                None => {
                    self.buf.reserve(READ_BYTES);
                    break;
                }
            }
        }
        Ok((at > 0).then(|| self.buf.split_to(at).freeze()))
    }

    fn server_error(&mut self, at: usize) -> Error {
        let mut rest = self.buf.split_off(at);
        match Message::parse(&mut rest) {
            Ok(Some(Message::ErrorResponse(body))) => response_error(&mut body.fields()).1,
            _ => broken("the server ended replication with an error"),
        }
    }

    /// A standby status update.
    ///
    /// The slot moves to the position that is reported as flushed. A server that shuts down
    /// waits until everything is flushed, or, where that is reported as unknown (0), written:
    /// so a position that is held back is told once, and is unknown from then on
    /// (`WalSndDone` and `ProcessStandbyReplyMessage` in walsender.c).
    async fn report(&mut self, reply: bool) -> Result<()> {
        let Reported { written, flushed } = *self.acks.borrow_and_update();
        let mut out = BytesMut::with_capacity(2 * STATUS_BYTES);
        if flushed == written {
            put_status(&mut out, written, flushed, reply);
        } else {
            if flushed > self.flushed {
                put_status(&mut out, written, flushed, false);
            }
            put_status(&mut out, written, Lsn(0), reply);
        }
        self.flushed = flushed;
        let sent = async {
            self.io.write_all(&out).await?;
            self.io.flush().await
        };
        match tokio::time::timeout(self.silence, sent).await {
            Ok(sent) => sent.map_err(io_error),
            Err(_) => Err(broken("the source takes no status updates")),
        }
    }
}
