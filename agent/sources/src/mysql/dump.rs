//! The replication connection: opening the binary log at a position, and a task that reads it.
//!
//! The task keeps the connection drained while the consumer is busy, up to [`WINDOW`] bytes
//! (INV-9), checks every event's CRC32, and hands blocks of whole events over. A block
//! returns its bytes to the window when it is dropped.

use super::connect::{Server, executed, has_gtids, log_files};
use super::control::Ask;
use super::decode::events::{self, changes_rows, kind};
use super::decode::{Decoded, Input};
use super::flavor::Flavor;
use super::gtid::{Coordinate, Place};
use super::wire::{Command, Connection, WireError, is_end_of_log, quote};
use caudal_model::{Error, Kind, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

/// Bytes of events that wait for the consumer.
const WINDOW: usize = 16 << 20;
/// A block is handed over at this size, or when the connection has nothing more.
const BLOCK: usize = 256 << 10;
/// Between heartbeats of an idle server, at most.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long the server tries to send to a reader that takes nothing.
const WRITE_WITHIN: Duration = Duration::from_secs(300);
/// Ends the dump where the log ends, instead of waiting for more.
const DUMP_NON_BLOCK: u16 = 1;
/// The position is a set of GTIDs.
const DUMP_THROUGH_GTID: u16 = 4;
/// What makes a replica's id another one.
const PROBE_ID: u32 = 0x4000_0000;
/// An idle connection without them is dead.
const SILENCE: Duration = Duration::from_secs(60);

/// Whole events, each after its length in four bytes, without checksums.
#[derive(Debug)]
pub struct Block {
    /// The events.
    pub bytes: Vec<u8>,
    _window: OwnedSemaphorePermit,
}

/// A running reader of the log.
#[derive(Debug)]
pub struct Dump {
    blocks: mpsc::Receiver<Result<Block>>,
    task: JoinHandle<()>,
}

impl Drop for Dump {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dump {
    /// Asks for the log after `from`, and waits for the server's first answer.
    pub async fn open(server: &Arc<Server>, from: &Place) -> Result<Dump> {
        check_position(&mut server.control().await?, from).await?;
        let mut c = server.connect().await?;
        c.limit_packets(server.options.value_bytes, may_skip);
        c.limit_silence(SILENCE);
        prepare_session(&mut c, server, from).await?;
        request(&mut c, server.server_id(), from, 0).await?;
        // A refusal comes in place of the first event.
        let first = c.read().await.map_err(|e| refused(e, from))?.to_vec();
        let (sender, blocks) = mpsc::channel(64);
        let pump = Pump {
            connection: c,
            sender,
            window: Arc::new(Semaphore::new(WINDOW)),
            block: Vec::new(),
            checksummed: None,
            from: from.clone(),
        };
        let task = tokio::spawn(pump.run(first));
        Ok(Dump { blocks, task })
    }

    /// The next block. Cancel safe.
    pub async fn next(&mut self) -> Result<Block> {
        match self.blocks.recv().await {
            Some(block) => block,
            None => Err(Error::retryable(
                Kind::Source,
                "the reader of the source's log ended",
            )),
        }
    }

    /// A block that is there already.
    pub fn try_next(&mut self) -> Option<Result<Block>> {
        self.blocks.try_recv().ok()
    }
}

/// Whether the log after `from` can be read.
///
/// MariaDB compares positions itself, and only when it is asked for the log. It is asked under
/// another id than the stream's, whose reader it would end.
pub(super) async fn probe(server: &Server, from: &Place) -> Result<()> {
    check_position(&mut server.control().await?, from).await?;
    if !matches!(from, Place::Domains(_)) {
        return Ok(());
    }
    let mut c = server.connect().await?;
    prepare_session(&mut c, server, from).await?;
    request(&mut c, server.server_id() ^ PROBE_ID, from, 0).await?;
    c.read().await.map_err(|e| refused(e, from))?;
    Ok(())
}

async fn prepare_session(c: &mut Connection, server: &Server, from: &Place) -> Result<()> {
    let heartbeat = HEARTBEAT.min(server.options.read_timeout / 4);
    let nanoseconds = heartbeat.as_nanos();
    let hash = u128::from(crc32fast::hash(server.options.stream.as_bytes())) << 64;
    let unique = hash | u128::from(server.server_id());
    let uuid = super::gtid::uuid_text(&unique.to_be_bytes());
    let mut sets = vec![
        format!(
            "SET @master_heartbeat_period = {nanoseconds}, @source_heartbeat_period = {nanoseconds}"
        ),
        "SET @master_binlog_checksum = 'CRC32', @source_binlog_checksum = 'CRC32'".to_owned(),
        format!("SET @slave_uuid = '{uuid}', @replica_uuid = '{uuid}'"),
    ];
    // MariaDB lets a new reader of the same server id wait until the old one's write has failed:
    // a half-open connection must not hold the log for longer than this. One that is kept
    // waiting by a slow store for so long begins anew at its last commit.
    let most = server
        .options
        .read_timeout
        .clamp(Duration::from_secs(1), WRITE_WITHIN);
    sets.push(format!(
        "SET SESSION net_write_timeout = {}",
        most.as_secs()
    ));
    if let Place::Domains(list) = from {
        sets.push("SET @mariadb_slave_capability = 4".to_owned());
        sets.push(format!(
            "SET @slave_connect_state = {}",
            quote(&list.to_string())
        ));
        sets.push("SET @slave_gtid_strict_mode = 1, @slave_gtid_ignore_duplicates = 0".to_owned());
    }
    for sql in sets {
        c.query(&sql).await?;
    }
    Ok(())
}

async fn request(c: &mut Connection, server_id: u32, from: &Place, flags: u16) -> Result<()> {
    // Host, user and password of a replica are for display only: left empty.
    let mut body = server_id.to_le_bytes().to_vec();
    body.extend_from_slice(&[0; 3 + 2 + 4 + 4]);
    c.command(Command::RegisterReplica, &body).await?;
    c.read().await?;
    let mut body = Vec::new();
    match from {
        Place::Gtids(set) => {
            body.extend_from_slice(&(flags | DUMP_THROUGH_GTID).to_le_bytes());
            body.extend_from_slice(&server_id.to_le_bytes());
            body.extend_from_slice(&0u32.to_le_bytes());
            body.extend_from_slice(&4u64.to_le_bytes());
            let data = set.encode();
            body.extend_from_slice(&(data.len() as u32).to_le_bytes());
            body.extend_from_slice(&data);
            c.command(Command::BinlogDumpGtid, &body).await?;
        }
        Place::File(at) => {
            let offset = u32::try_from(at.offset).map_err(|_| {
                Error::fatal(
                    Kind::PositionLost,
                    format!("{at} is beyond 4 GiB of its file"),
                )
                .hint("turn gtid_mode on")
            })?;
            body.extend_from_slice(&offset.to_le_bytes());
            body.extend_from_slice(&flags.to_le_bytes());
            body.extend_from_slice(&server_id.to_le_bytes());
            body.extend_from_slice(at.file.as_bytes());
            c.command(Command::BinlogDump, &body).await?;
        }
        Place::Domains(_) => {
            // The position is @slave_connect_state; flag 2 asks for annotate events,
            // which are of no use here.
            body.extend_from_slice(&4u32.to_le_bytes());
            body.extend_from_slice(&flags.to_le_bytes());
            body.extend_from_slice(&server_id.to_le_bytes());
            c.command(Command::BinlogDump, &body).await?;
        }
    }
    Ok(())
}

/// Goes through the log from a file's beginning to its end of now, until `found` of an event's
/// type and bytes has something to tell: the whole event of MariaDB's, else its body.
pub(super) async fn scan(
    server: &Arc<Server>,
    file: &str,
    mut found: impl FnMut(u8, &[u8]) -> Decoded<Option<String>>,
) -> Result<Option<String>> {
    let beginning = Place::File(Coordinate {
        file: file.to_owned(),
        offset: 4,
    });
    let mut c = server.connect().await?;
    c.limit_packets(server.options.value_bytes, may_skip);
    prepare_session(&mut c, server, &beginning).await?;
    if server.flavor == Flavor::MariaDb {
        // Without it the server leaves GTIDs out.
        c.query("SET @mariadb_slave_capability = 4").await?;
    }
    request(&mut c, server.server_id(), &beginning, DUMP_NON_BLOCK).await?;
    let (mut event, mut checksummed) = (Vec::new(), None);
    loop {
        let read = tokio::time::timeout(SILENCE, c.sized_packet()).await;
        let (packet, oversized) = read.map_err(|_| silent())??;
        if let Some(e) = refusal(packet, &beginning) {
            return Err(e);
        }
        if is_end_of_log(packet) {
            return Ok(None);
        }
        if oversized.is_some() {
            continue;
        }
        event.clear();
        append(&mut event, &mut checksummed, packet)?;
        let event = event.get(4..).unwrap_or_default();
        let (header, body) = events::header(event)?;
        let bytes = if server.flavor == Flavor::MariaDb {
            event
        } else {
            body
        };
        if let Some(found) = found(header.event_type, bytes)? {
            return Ok(Some(found));
        }
    }
}

/// An error packet in place of an event.
fn refusal(packet: &[u8], from: &Place) -> Option<Error> {
    if packet.first() != Some(&0xff) {
        return None;
    }
    let mut input = Input(packet.get(1..).unwrap_or_default());
    let code = input.u16().unwrap_or(0);
    let text = input.rest();
    let text = if text.first() == Some(&b'#') {
        text.get(6..)
    } else {
        Some(text)
    };
    let message = String::from_utf8_lossy(text.unwrap_or_default()).into_owned();
    Some(refused(WireError::Server { code, message }, from))
}

fn silent() -> Error {
    Error::retryable(
        Kind::Source,
        format!("the source has been silent for {} s", SILENCE.as_secs()),
    )
}

/// Whether the source still has everything after the position, and has got to it at all.
pub(super) async fn check_position(c: &mut dyn Ask, from: &Place) -> Result<()> {
    let with_gtids = has_gtids(c).await?;
    match from {
        Place::Gtids(set) => {
            if !with_gtids {
                return Err(lost(from, "gtid_mode is not ON any more"));
            }
            let missing = executed(c, "gtid_purged").await?.minus(set);
            if !missing.is_empty() {
                return Err(lost(from, &format!("the source has purged {missing}")));
            }
            let ahead = set.minus(&executed(c, "gtid_executed").await?);
            if !ahead.is_empty() {
                let what =
                    format!("the source never executed {ahead}: it was restored or replaced");
                return Err(lost(from, &what));
            }
        }
        Place::File(at) => {
            let files = log_files(c).await?;
            match files.iter().find(|(name, _)| name == &at.file) {
                None => return Err(lost(from, &format!("the source has no file {}", at.file))),
                Some((_, size)) if at.offset > *size => {
                    return Err(lost(from, &format!("{} ends at {size}", at.file)));
                }
                Some(_) => {}
            }
        }
        // The server compares every domain itself, and refuses the dump.
        Place::Domains(_) => {}
    }
    Ok(())
}

fn lost(from: &Place, what: &str) -> Error {
    Error::fatal(
        Kind::PositionLost,
        format!("the source no longer has position {from}: {what}"),
    )
    .hint(
        "changes after the position are lost to this stream: copy every table again, `caudal resnapshot '*.*'` \
         and then `caudal run`; keep the binary log longer (binlog_expire_logs_seconds)",
    )
}

/// The server's refusal of a dump, in the terms of the exit codes.
fn refused(e: WireError, from: &Place) -> Error {
    // MariaDB 10.11 and later give the second reader of one id a code of its own.
    let WireError::Server {
        code: 1236 | 4052,
        message,
    } = &e
    else {
        return Error::from(e).context("reading the source's log");
    };
    let text = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
    // What the servers say of a position that they cannot serve.
    if says(&[
        "purged",
        "could not find first log",
        "could not find gtid",
        "not in the master's binlog",
        "missing the gtid",
        "position > file size",
        "impossible position",
        "more gtids",
    ]) {
        return lost(from, &format!("it answers: {message}"));
    }
    // Another reader with our id or uuid, or a server that stops.
    if says(&[
        "same server_uuid",
        "same server_id",
        "same 'server_id'",
        "shutdown",
        "killed",
    ]) {
        return Error::retryable(Kind::Source, format!("the source ended the log: {message}"))
            .hint("if it repeats, give source.server_id a value that no replica uses");
    }
    Error::fatal(
        Kind::Source,
        format!("the source cannot send its log: {message}"),
    )
}

struct Pump {
    connection: Connection,
    sender: mpsc::Sender<Result<Block>>,
    window: Arc<Semaphore>,
    block: Vec<u8>,
    /// Whether events carry a checksum; unknown before the first format description.
    checksummed: Option<bool>,
    from: Place,
}

impl Pump {
    async fn run(mut self, first: Vec<u8>) {
        let outcome = match self.packet(&first) {
            Ok(()) => self.pump().await,
            Err(e) => Err(e),
        };
        if let Err(e) = outcome {
            // What came before the error is still good.
            let _ = self.flush().await;
            let _ = self.sender.send(Err(e)).await;
        }
    }

    async fn pump(&mut self) -> Result<()> {
        loop {
            if self.block.len() >= BLOCK
                || (!self.block.is_empty() && !self.connection.has_packet())
            {
                self.flush().await?;
            }
            let (packet, oversized) = self.connection.sized_packet().await?;
            if let Some(e) = refusal(packet, &self.from) {
                return Err(e);
            }
            if is_end_of_log(packet) {
                return Err(Error::retryable(Kind::Source, "the source ended the log"));
            }
            match oversized {
                None => append(&mut self.block, &mut self.checksummed, packet)?,
                Some(bytes) => append_beginning(&mut self.block, bytes, packet)?,
            }
        }
    }

    fn packet(&mut self, packet: &[u8]) -> Result<()> {
        Ok(append(&mut self.block, &mut self.checksummed, packet)?)
    }

    async fn flush(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.block);
        let permits = bytes.len().min(WINDOW) as u32;
        let gone = || Error::retryable(Kind::Source, "the tail was closed");
        let window = self
            .window
            .clone()
            .acquire_many_owned(permits)
            .await
            .map_err(|_| gone())?;
        self.sender
            .send(Ok(Block {
                bytes,
                _window: window,
            }))
            .await
            .map_err(|_| gone())
    }
}

/// Whether a packet's event may be known by its beginning alone: one with rows, or with the
/// statement that made them.
fn may_skip(packet: &[u8]) -> bool {
    packet.get(5).is_some_and(|t| {
        changes_rows(*t) || matches!(*t, kind::ROWS_QUERY | kind::MARIA_ANNOTATE_ROWS)
    })
}

/// Appends the beginning of an event that was read past; its checksum went with the rest.
fn append_beginning(block: &mut Vec<u8>, bytes: u64, packet: &[u8]) -> Decoded<()> {
    let mut input = Input(packet);
    input.u8()?;
    let event = events::beginning(input.rest(), bytes)?;
    block.extend_from_slice(&(event.len() as u32).to_le_bytes());
    block.extend_from_slice(&event);
    Ok(())
}

/// Appends a packet's event, checked and without its checksum.
fn append(block: &mut Vec<u8>, checksummed: &mut Option<bool>, packet: &[u8]) -> Decoded<()> {
    let mut input = Input(packet);
    input.u8()?;
    let event = input.rest();
    let (header, _) = events::header(event)?;
    let event = if header.event_type == kind::FORMAT_DESCRIPTION {
        *checksummed = Some(events::checksummed(event)?);
        if *checksummed == Some(true) {
            events::verify(event)?
        } else {
            event
        }
    } else {
        match *checksummed {
            Some(true) => events::verify(event)?,
            Some(false) => event,
            // The rotation that opens the dump comes before the description, with or without.
            None => events::verify(event).unwrap_or(event),
        }
    };
    block.extend_from_slice(&(event.len() as u32).to_le_bytes());
    block.extend_from_slice(event);
    Ok(())
}

impl Flavor {
    /// Whether positions of this flavor can leave out single transactions.
    pub(super) fn positions_have_holes(self, from: &Place) -> bool {
        self == Flavor::MySql && matches!(from, Place::Gtids(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mysql::gtid::GtidList;

    #[test]
    fn refusals_are_told_apart() {
        let from = Place::Domains(GtidList::default());
        let refuse = |message: &str| {
            refused(
                WireError::Server {
                    code: 1236,
                    message: message.to_owned(),
                },
                &from,
            )
        };
        assert_eq!(
            refuse("Could not find first log file name in binary log index file").kind(),
            Kind::PositionLost
        );
        let e =
            refuse("A replica with the same server_uuid/server_id as this replica has connected");
        assert_eq!(e.class(), caudal_model::Class::Retryable);
        let e = refuse("log event entry exceeded max_allowed_packet");
        assert_eq!(
            (e.class(), e.kind()),
            (caudal_model::Class::Fatal, Kind::Source)
        );
    }
}
