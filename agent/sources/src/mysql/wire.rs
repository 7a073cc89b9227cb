//! A connection of the client/server protocol, as thin as replication and bulk reads need.
//! Questions about the server go through [`super::control`] instead.
//!
//! Packets are borrowed from one buffer that is used again and again; a packet of
//! 16 MiB and more is joined in a second one. Nothing is decoded here beyond the
//! framing, and the shape of results; the login is [`super::login`]'s: rows and events go to the decoders
//! as bytes. A connection whose result was not read to its end is not used again.

use super::decode::{DecodeError, Input};
use super::flavor::{Flavor, Version, parse_version};
use super::login::parse_greeting;
use crate::SourceOptions;
use bytes::{Buf, BytesMut};
use caudal_model::{Error, Kind};
use std::fmt;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Why the connection could not do what was asked.
#[derive(Debug)]
pub enum WireError {
    /// The server's own error.
    Server {
        /// Its number.
        code: u16,
        /// Its text.
        message: String,
    },
    /// The network.
    Io(std::io::Error),
    /// Bytes that do not fit the protocol.
    Protocol(&'static str),
    /// An error that is complete already: TLS files, an unknown login method.
    Other(Error),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Server { code, message } => write!(f, "{message} (error {code})"),
            WireError::Io(e) => e.fmt(f),
            WireError::Protocol(what) => write!(f, "unexpected bytes: {what}"),
            WireError::Other(e) => e.fmt(f),
        }
    }
}
impl std::error::Error for WireError {}

impl From<std::io::Error> for WireError {
    fn from(e: std::io::Error) -> Self {
        WireError::Io(e)
    }
}
impl From<DecodeError> for WireError {
    fn from(e: DecodeError) -> Self {
        match e {
            DecodeError::Malformed(w) | DecodeError::Value(w) => WireError::Protocol(w),
            DecodeError::TooLarge(_) => WireError::Protocol("a packet beyond the limit"),
        }
    }
}

impl From<WireError> for Error {
    fn from(e: WireError) -> Error {
        match e {
            WireError::Other(e) => e,
            WireError::Io(io) => {
                Error::retryable(Kind::Source, "the connection to the source broke").caused_by(io)
            }
            WireError::Protocol(what) => Error::retryable(
                Kind::Corrupt,
                format!("the source sent bytes that do not fit its protocol: {what}"),
            ),
            WireError::Server { code, message } => server_error(code, &message),
        }
    }
}

/// The server's error in the terms of the supervisor.
fn server_error(code: u16, message: &str) -> Error {
    let text = format!("the source answered: {message} (error {code})");
    match code {
        // Access denied, of a user, a database or a privilege.
        1044 | 1045 | 1698 | 1862 | 3118 => Error::fatal(Kind::Prerequisite, text)
            .hint("check source.user and source.password, and the account's host and TLS rules"),
        1142 | 1143 | 1227 | 1370 => Error::fatal(Kind::Prerequisite, text)
            .hint("run `caudal check`: it prints the GRANT that is missing"),
        1049 => Error::fatal(Kind::Config, text).hint("check source.database"),
        // Too many connections, shutdown, killed, lock waits, deadlocks, aborted,
        // gone while waiting, read timeouts.
        1040
        | 1053
        | 1152
        | 1158..=1161
        | 1203
        | 1205
        | 1213
        | 1226
        | 1077
        | 1079
        | 4031
        | 1129
        | 1412
        | 1927 => Error::retryable(Kind::Source, text),
        // Cancelled by somebody, max_execution_time, max_statement_time.
        1317 | 3024 | 1969 => Error::retryable(Kind::Timeout, text)
            .hint("raise the server's limit for statements, or choose smaller chunks"),
        _ => Error::fatal(Kind::Source, text),
    }
}

/// What the wire returns.
pub type Wire<T> = Result<T, WireError>;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The longest packet that a server can send: its `max_allowed_packet` and some overhead.
pub(super) const MAX_PACKET: usize = (1 << 30) + (1 << 24);
const FULL_FRAME: usize = 0xff_ffff;
/// What is kept of a packet that is read past.
const BEGINNING: usize = 1 << 20;

/// Bytes that a packet of values within the limit may have.
pub fn packet_limit(value_bytes: usize) -> usize {
    value_bytes.saturating_mul(2).saturating_add(64 << 20)
}

const READ_BUFFER: usize = 256 << 10;

/// The first byte of each command packet.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub enum Command {
    /// COM_QUERY
    Query = 0x03,
    /// COM_BINLOG_DUMP
    BinlogDump = 0x12,
    /// COM_REGISTER_SLAVE
    RegisterReplica = 0x15,
    /// COM_STMT_PREPARE
    Prepare = 0x16,
    /// COM_STMT_EXECUTE
    Execute = 0x17,
    /// COM_STMT_CLOSE
    CloseStatement = 0x19,
    /// COM_BINLOG_DUMP_GTID
    BinlogDumpGtid = 0x1e,
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDefinition {
    /// Its name or alias.
    pub name: String,
    /// The protocol's type number.
    pub column_type: u8,
    /// Bit 5: unsigned.
    pub flags: u16,
}

/// One row of a query in the text protocol.
#[derive(Debug, Clone)]
pub struct TextRow(pub(super) Vec<Option<Vec<u8>>>);

impl TextRow {
    /// A cell as text; `None` for NULL and for a column that is not there.
    pub fn get(&self, i: usize) -> Option<String> {
        let bytes = self.0.get(i)?.as_ref()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
    /// A cell as text, empty for NULL.
    pub fn text(&self, i: usize) -> String {
        self.get(i).unwrap_or_default()
    }
    /// A cell as a number, 0 for NULL.
    pub fn number(&self, i: usize) -> u64 {
        self.get(i).and_then(|t| t.parse().ok()).unwrap_or(0)
    }
}

/// A logged-in connection.
pub struct Connection {
    pub(super) stream: Box<dyn Stream>,
    buffer: BytesMut,
    /// Bytes of `buffer` that the packet handed out last occupies.
    consumed: usize,
    joined: Vec<u8>,
    /// The last packet is `joined`.
    is_joined: bool,
    /// Packets that are longer are read past, except for their beginning.
    limit: usize,
    /// Tells by their beginning which packets may be.
    may_skip: fn(&[u8]) -> bool,
    /// The bytes of the last packet, if it was read past.
    oversized: Option<u64>,
    sequence: u8,
    /// How long a read or a write may wait for the server.
    silence: Duration,
    pub(super) encrypted: bool,
    /// The server's family.
    pub flavor: Flavor,
    /// The server's version.
    pub version: Version,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({} {})", self.flavor.name(), self.version)
    }
}

impl Connection {
    /// Connects and logs in within the options' timeout.
    pub async fn open(options: &SourceOptions) -> Wire<Connection> {
        let waited = tokio::time::timeout(options.connect_timeout, Self::connect(options)).await;
        waited.map_err(|_| {
            WireError::Other(Error::retryable(
                Kind::Source,
                format!(
                    "no connection to {}:{} within {:?}",
                    options.host, options.port, options.connect_timeout
                ),
            ))
        })?
    }

    async fn connect(options: &SourceOptions) -> Wire<Connection> {
        let tcp = TcpStream::connect((options.host.as_str(), options.port))
            .await
            .map_err(|e| {
                let text = format!("cannot connect to {}:{}", options.host, options.port);
                WireError::Other(Error::retryable(Kind::Source, text).caused_by(e))
            })?;
        tcp.set_nodelay(true)?;
        let mut c = Connection {
            stream: Box::new(tcp),
            buffer: BytesMut::with_capacity(READ_BUFFER),
            consumed: 0,
            joined: Vec::new(),
            is_joined: false,
            limit: MAX_PACKET,
            may_skip: |_| false,
            oversized: None,
            sequence: 0,
            silence: options.read_timeout,
            encrypted: false,
            flavor: Flavor::MySql,
            version: Version(0, 0, 0),
        };
        let greeting = parse_greeting(c.read().await?)?;
        (c.flavor, c.version) = parse_version(&greeting.version);
        c.log_in(options, greeting).await?;
        Ok(c)
    }

    /// Whether TLS is on.
    pub fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// How long a read or a write may wait from now on: less than the options say.
    pub fn limit_silence(&mut self, most: Duration) {
        self.silence = self.silence.min(most);
    }

    pub(super) async fn write(&mut self, payload: &[u8]) -> Wire<()> {
        let mut out = Vec::with_capacity(payload.len() + 4);
        // A payload that ends on a full frame (or is empty) is closed by an empty one.
        let empty = payload.len().is_multiple_of(FULL_FRAME);
        let tail = empty.then_some(&[][..]);
        for chunk in payload.chunks(FULL_FRAME) {
            self.frame(&mut out, chunk);
        }
        if let Some(tail) = tail {
            self.frame(&mut out, tail);
        }
        let sent = async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        };
        Ok(within(self.silence, sent).await?)
    }

    fn frame(&mut self, out: &mut Vec<u8>, chunk: &[u8]) {
        let [a, b, c, _] = (chunk.len() as u32).to_le_bytes();
        out.extend_from_slice(&[a, b, c, self.sequence]);
        out.extend_from_slice(chunk);
        self.sequence = self.sequence.wrapping_add(1);
    }

    async fn fill(&mut self) -> Wire<()> {
        self.buffer.reserve(READ_BUFFER / 2);
        let read = self.stream.read_buf(&mut self.buffer);
        if within(self.silence, read).await? == 0 {
            return Err(WireError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// The length of the frame at the buffer's start, once its header is there.
    fn frame_len(&self) -> Option<usize> {
        let header = self.buffer.get(self.consumed..self.consumed + 3)?;
        Some(super::decode::little_endian(header) as usize)
    }

    /// Whether a whole packet waits in the buffer, so that [`Self::packet`] needs no I/O.
    pub fn has_packet(&self) -> bool {
        self.frame_len()
            .is_some_and(|n| n < FULL_FRAME && self.buffer.len() >= self.consumed + 4 + n)
    }

    async fn frame_in(&mut self) -> Wire<usize> {
        self.buffer.advance(std::mem::take(&mut self.consumed));
        while self.buffer.len() < 4 {
            self.fill().await?;
        }
        let len = self.frame_len().unwrap_or(0);
        while self.buffer.len() < 4 + len {
            self.fill().await?;
        }
        self.sequence = self.buffer.get(3).map_or(0, |s| s.wrapping_add(1));
        self.consumed = 4 + len;
        Ok(len)
    }

    /// The next packet, whatever it is; valid until the next call.
    pub async fn packet(&mut self) -> Wire<&[u8]> {
        self.oversized = None;
        let mut len = self.frame_in().await?;
        self.is_joined = len == FULL_FRAME;
        if len < FULL_FRAME {
            return Ok(self.buffer.get(4..4 + len).unwrap_or_default());
        }
        self.joined.clear();
        // One outsized row must not be paid for until the connection ends.
        self.joined.shrink_to(READ_BUFFER);
        let mut total = 0;
        loop {
            total += len;
            if self.oversized.is_none() {
                self.joined
                    .extend_from_slice(self.buffer.get(4..4 + len).unwrap_or_default());
            }
            if self.joined.len() > self.limit && (self.may_skip)(&self.joined) {
                self.joined.truncate(BEGINNING);
                self.joined.shrink_to_fit();
                self.oversized = Some(0);
            }
            if len < FULL_FRAME {
                self.oversized = self.oversized.map(|_| total as u64);
                return Ok(&self.joined);
            }
            if total > MAX_PACKET {
                return Err(WireError::Protocol("a packet beyond 1 GiB"));
            }
            len = self.frame_in().await?;
        }
    }

    /// [`Self::packet`], and its bytes if only its beginning was kept.
    pub async fn sized_packet(&mut self) -> Wire<(&[u8], Option<u64>)> {
        self.packet().await?;
        let oversized = self.oversized;
        Ok((self.last_packet(), oversized))
    }

    /// The packet that was read last.
    fn last_packet(&self) -> &[u8] {
        if self.is_joined {
            return &self.joined;
        }
        self.buffer.get(4..self.consumed).unwrap_or_default()
    }

    /// Reads past packets that hold more than two values of `value_bytes` and that
    /// `may_skip` agrees to, so that a value beyond the limit is never held (INV-9).
    pub fn limit_packets(&mut self, value_bytes: usize, may_skip: fn(&[u8]) -> bool) {
        // An update has each value twice.
        self.limit = packet_limit(value_bytes);
        self.may_skip = may_skip;
    }

    /// The next packet; the server's error packet becomes an error.
    pub async fn read(&mut self) -> Wire<&[u8]> {
        let packet = self.packet().await?;
        match packet.split_first() {
            Some((0xff, rest)) => Err(error_packet(rest)),
            _ => Ok(packet),
        }
    }

    /// Sends a command; its answer is read with [`Self::read`].
    pub async fn command(&mut self, command: Command, body: &[u8]) -> Wire<()> {
        self.sequence = 0;
        let mut payload = Vec::with_capacity(body.len() + 1);
        payload.push(command as u8);
        payload.extend_from_slice(body);
        self.write(&payload).await
    }

    async fn definitions(&mut self, count: u64) -> Wire<Vec<ColumnDefinition>> {
        let mut out = Vec::new();
        for _ in 0..count {
            out.push(parse_definition(self.read().await?)?);
        }
        if count > 0 && !is_eof(self.read().await?) {
            return Err(WireError::Protocol("no end of the column definitions"));
        }
        Ok(out)
    }

    /// Runs a statement in the text protocol, and returns its rows.
    pub async fn query(&mut self, sql: &str) -> Wire<Vec<TextRow>> {
        Ok(self.result(sql).await?.1)
    }

    /// [`Self::query`] with the columns' names.
    pub async fn result(&mut self, sql: &str) -> Wire<(Vec<String>, Vec<TextRow>)> {
        self.command(Command::Query, sql.as_bytes()).await?;
        let first = self.read().await?;
        if first.first() == Some(&0) {
            return Ok(Default::default());
        }
        let count = Input(first).lenenc()?;
        let columns = self.definitions(count).await?;
        let names = columns.into_iter().map(|c| c.name).collect();
        let mut rows = Vec::new();
        loop {
            let packet = self.read().await?;
            if is_eof(packet) {
                return Ok((names, rows));
            }
            let mut input = Input(packet);
            let mut row = Vec::new();
            for _ in 0..count {
                if input.0.first() == Some(&0xfb) {
                    input.u8()?;
                    row.push(None);
                } else {
                    row.push(Some(input.lenenc_bytes()?.to_vec()));
                }
            }
            rows.push(TextRow(row));
        }
    }

    /// The first cell of a statement's first row.
    pub async fn value(&mut self, sql: &str) -> Wire<Option<String>> {
        Ok(self.query(sql).await?.first().and_then(|r| r.get(0)))
    }

    /// Starts a SELECT in the binary protocol; its rows follow with [`Self::row`].
    pub async fn select(&mut self, sql: &str) -> Wire<Vec<ColumnDefinition>> {
        self.command(Command::Prepare, sql.as_bytes()).await?;
        let mut input = Input(self.read().await?);
        input.u8()?;
        let statement = input.u32()?;
        let columns = input.u16()?;
        let parameters = input.u16()?;
        self.definitions(parameters.into()).await?;
        self.definitions(columns.into()).await?;
        let mut body = statement.to_le_bytes().to_vec();
        // No cursor, one iteration.
        body.extend_from_slice(&[0, 1, 0, 0, 0]);
        self.command(Command::Execute, &body).await?;
        let count = Input(self.read().await?).lenenc()?;
        let definitions = self.definitions(count).await?;
        // The statement is closed while its rows still come: the server reads the
        // command afterwards, and it has no answer.
        self.command(Command::CloseStatement, &statement.to_le_bytes())
            .await?;
        Ok(definitions)
    }

    /// The next row of [`Self::select`], without its header byte; `None` at the end.
    pub async fn row(&mut self) -> Wire<Option<&[u8]>> {
        let packet = self.read().await?;
        if is_eof(packet) {
            return Ok(None);
        }
        match packet.split_first() {
            Some((0, row)) => Ok(Some(row)),
            _ => Err(WireError::Protocol("a binary row")),
        }
    }

    /// [`Self::sized_row`] of a packet that waits in the buffer ([`Self::has_packet`]): most rows
    /// come this way, without a turn through the runtime.
    pub fn waiting_row(&mut self) -> Wire<Option<(&[u8], Option<u64>)>> {
        (self.oversized, self.is_joined) = (None, false);
        self.buffer.advance(std::mem::take(&mut self.consumed));
        let len = self.frame_len().unwrap_or(0);
        self.sequence = self.buffer.get(3).map_or(0, |s| s.wrapping_add(1));
        self.consumed = 4 + len;
        match self.last_packet().split_first() {
            Some((0, row)) => Ok(Some((row, None))),
            Some((0xff, rest)) => Err(error_packet(rest)),
            Some((0xfe, rest)) if rest.len() < 8 => Ok(None),
            _ => Err(WireError::Protocol("a binary row")),
        }
    }

    /// [`Self::row`], and the row's bytes if only its beginning was kept.
    pub async fn sized_row(&mut self) -> Wire<Option<(&[u8], Option<u64>)>> {
        if self.row().await?.is_none() {
            return Ok(None);
        }
        let row = self.last_packet().get(1..).unwrap_or_default();
        Ok(Some((row, self.oversized)))
    }
}

/// Waits for the network, as long as the server may be silent.
pub(super) async fn within<T>(
    silence: Duration,
    io: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    match tokio::time::timeout(silence, io).await {
        Ok(done) => done,
        Err(_) => {
            let text = format!("the source has been silent for {silence:?}");
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
        }
    }
}

fn is_eof(packet: &[u8]) -> bool {
    packet.first() == Some(&0xfe) && packet.len() < 9
}

/// Whether a packet of the binary log's dump is its end.
pub fn is_end_of_log(packet: &[u8]) -> bool {
    is_eof(packet)
}

/// Parses an error packet after its first byte.
fn error_packet(rest: &[u8]) -> WireError {
    let mut input = Input(rest);
    let code = input.u16().unwrap_or(0);
    let mut text = input.rest();
    if text.first() == Some(&b'#') {
        text = text.get(6..).unwrap_or_default();
    }
    WireError::Server {
        code,
        message: String::from_utf8_lossy(text).into_owned(),
    }
}

fn parse_definition(packet: &[u8]) -> Wire<ColumnDefinition> {
    let mut input = Input(packet);
    for _ in 0..4 {
        input.lenenc_bytes()?;
    }
    let name = String::from_utf8_lossy(input.lenenc_bytes()?).into_owned();
    input.lenenc_bytes()?;
    input.lenenc()?;
    input.take(6)?;
    Ok(ColumnDefinition {
        name,
        column_type: input.u8()?,
        flags: input.u16()?,
    })
}

/// A string literal that any sql_mode reads as the same bytes.
pub fn quote(text: &str) -> String {
    if text.is_empty() {
        return "''".to_owned();
    }
    format!("_utf8mb4 x'{}'", hex::encode(text))
}

/// An identifier between backquotes.
pub fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_the_server() {
        let WireError::Server { code, message } = error_packet(b"\x15\x04#28000Access denied")
        else {
            panic!("an error packet")
        };
        assert_eq!((code, message.as_str()), (1045, "Access denied"));
        assert!(parse_definition(b"\x03def").is_err());
        assert!(is_eof(&[0xfe, 0, 0, 2, 0]) && !is_eof(&[0xfe; 9]));
    }
}
