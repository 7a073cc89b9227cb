//! Framing of binary log events, and the events that carry no rows.
//!
//! Layouts are those of the servers' replication protocol: MySQL's events 0–42 and
//! MariaDB's 160–171. An event's checksum is cut off by [`verify`] before it comes here.

use super::{DecodeError, Decoded, Input, little_endian};
use crate::mysql::gtid::MariaGtid;

/// Event types by their number.
pub mod kind {
    #![allow(missing_docs)]
    pub const QUERY: u8 = 2;
    pub const STOP: u8 = 3;
    pub const ROTATE: u8 = 4;
    pub const INTVAR: u8 = 5;
    pub const RAND: u8 = 13;
    pub const USER_VAR: u8 = 14;
    pub const FORMAT_DESCRIPTION: u8 = 15;
    pub const XID: u8 = 16;
    pub const TABLE_MAP: u8 = 19;
    pub const WRITE_ROWS_V1: u8 = 23;
    pub const UPDATE_ROWS_V1: u8 = 24;
    pub const DELETE_ROWS_V1: u8 = 25;
    pub const INCIDENT: u8 = 26;
    pub const HEARTBEAT: u8 = 27;
    pub const IGNORABLE: u8 = 28;
    pub const ROWS_QUERY: u8 = 29;
    pub const WRITE_ROWS: u8 = 30;
    pub const UPDATE_ROWS: u8 = 31;
    pub const DELETE_ROWS: u8 = 32;
    pub const GTID: u8 = 33;
    pub const ANONYMOUS_GTID: u8 = 34;
    pub const PREVIOUS_GTIDS: u8 = 35;
    pub const TRANSACTION_CONTEXT: u8 = 36;
    pub const VIEW_CHANGE: u8 = 37;
    pub const XA_PREPARE: u8 = 38;
    pub const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub const TRANSACTION_PAYLOAD: u8 = 40;
    pub const HEARTBEAT_V2: u8 = 41;
    pub const GTID_TAGGED: u8 = 42;
    pub const MARIA_ANNOTATE_ROWS: u8 = 160;
    pub const MARIA_BINLOG_CHECKPOINT: u8 = 161;
    pub const MARIA_GTID: u8 = 162;
    pub const MARIA_GTID_LIST: u8 = 163;
    pub const MARIA_START_ENCRYPTION: u8 = 164;
    pub const MARIA_QUERY_COMPRESSED: u8 = 165;
    pub const MARIA_WRITE_ROWS_COMPRESSED_V1: u8 = 166;
    pub const MARIA_UPDATE_ROWS_COMPRESSED_V1: u8 = 167;
    pub const MARIA_DELETE_ROWS_COMPRESSED_V1: u8 = 168;
    pub const MARIA_WRITE_ROWS_COMPRESSED: u8 = 169;
    pub const MARIA_UPDATE_ROWS_COMPRESSED: u8 = 170;
    pub const MARIA_DELETE_ROWS_COMPRESSED: u8 = 171;
    /// Of no server: the beginning of an event that was read past.
    pub const OVERSIZED: u8 = 253;
}

/// Whether an event of this type has rows.
pub fn changes_rows(event_type: u8) -> bool {
    matches!(
        event_type,
        kind::WRITE_ROWS_V1..=kind::DELETE_ROWS_V1
            | kind::WRITE_ROWS..=kind::DELETE_ROWS
            | kind::PARTIAL_UPDATE_ROWS
            | kind::MARIA_WRITE_ROWS_COMPRESSED_V1..=kind::MARIA_DELETE_ROWS_COMPRESSED
    )
}

/// Bytes of an event's header.
pub const HEADER: usize = 19;
/// The server did not write this event to its log: made for this connection.
pub const FLAG_ARTIFICIAL: u16 = 0x20;
/// A reader that does not know the event may skip it.
pub const FLAG_IGNORABLE: u16 = 0x80;
/// MariaDB: the reader may skip it.
pub const FLAG_MARIA_SKIP: u16 = 0x8000;

/// What stands before every event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Seconds since 1970 of the statement.
    pub timestamp: u32,
    /// See [`kind`].
    pub event_type: u8,
    /// The server that wrote it first.
    pub server_id: u32,
    /// Bytes of the event, with header and checksum.
    pub size: u32,
    /// Where the next event begins in the file; 0 where the server does not say.
    pub log_position: u32,
    /// See the flags above.
    pub flags: u16,
}

/// Splits an event into its header and body.
pub fn header(event: &[u8]) -> Decoded<(Header, &[u8])> {
    let mut input = Input(event);
    let header = Header {
        timestamp: input.u32()?,
        event_type: input.u8()?,
        server_id: input.u32()?,
        size: input.u32()?,
        log_position: input.u32()?,
        flags: input.u16()?,
    };
    Ok((header, input.rest()))
}

/// The beginning of an event of `bytes` bytes as one of its own: the header, then its type and
/// its bytes, then what is there of the body.
pub fn beginning(event: &[u8], bytes: u64) -> Decoded<Vec<u8>> {
    let (header, body) = header(event)?;
    let mut out = Vec::with_capacity(event.len() + 9);
    out.extend_from_slice(event.get(..HEADER).unwrap_or_default());
    if let Some(t) = out.get_mut(4) {
        *t = kind::OVERSIZED;
    }
    out.push(header.event_type);
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(body);
    Ok(out)
}

/// Checks an event's CRC32, and returns the event without it.
pub fn verify(event: &[u8]) -> Decoded<&[u8]> {
    let (body, sum) = event
        .len()
        .checked_sub(4)
        .and_then(|n| event.split_at_checked(n))
        .ok_or(DecodeError::Malformed("an event without its checksum"))?;
    if u64::from(crc32fast::hash(body)) != little_endian(sum) {
        return Err(DecodeError::Malformed("an event's checksum is wrong"));
    }
    Ok(body)
}

/// Whether the events that follow a FORMAT_DESCRIPTION carry a CRC32; `event` still
/// has its own four bytes of checksum, which that event always has room for.
pub fn checksummed(event: &[u8]) -> Decoded<bool> {
    let at = event
        .len()
        .checked_sub(5)
        .ok_or(DecodeError::Malformed("a format description"))?;
    match event.get(at) {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => Err(DecodeError::Malformed("an unknown checksum algorithm")),
    }
}

/// The next file's name and the position in it.
pub fn rotate(body: &[u8]) -> Decoded<(u64, String)> {
    let mut input = Input(body);
    let position = input.u64()?;
    Ok((position, String::from_utf8_lossy(input.rest()).into_owned()))
}

/// The GTID of a MySQL transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MysqlGtid {
    /// The server's UUID, and the tag, empty for none.
    pub origin: ([u8; 16], String),
    /// The number; 0 for an anonymous transaction.
    pub gno: u64,
    /// When this server committed it, microseconds since 1970; 0 if it does not say.
    pub committed_at_us: u64,
}

/// GTID and ANONYMOUS_GTID.
pub fn gtid(body: &[u8]) -> Decoded<MysqlGtid> {
    let mut input = Input(body);
    input.u8()?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(input.take(16)?);
    let gno = input.u64()?;
    let mut committed_at_us = 0;
    if input.0.first() == Some(&2) {
        // The type code, then last_committed and sequence_number.
        input.take(17)?;
        if input.len() >= 7 {
            // Bit 55 says that the original time follows.
            committed_at_us = input.uint(7)? & !(1 << 55);
        }
    }
    Ok(MysqlGtid {
        origin: (uuid, String::new()),
        gno,
        committed_at_us,
    })
}

/// GTID_TAGGED: MySQL's serialization library, version 2 of its envelope.
pub fn gtid_tagged(body: &[u8]) -> Decoded<MysqlGtid> {
    const BAD: DecodeError = DecodeError::Malformed("a tagged gtid event");
    let mut input = Input(body);
    if input.u8()? != 2 {
        return Err(DecodeError::Malformed(
            "an unknown version of a tagged gtid event",
        ));
    }
    let size = usize::try_from(input.varint()?).map_err(|_| BAD)?;
    let needed = input.varint()?;
    let fields = size.checked_sub(body.len() - input.len()).ok_or(BAD)?;
    let mut input = Input(input.take(fields)?);
    let mut out = MysqlGtid {
        origin: ([0; 16], String::new()),
        gno: 0,
        committed_at_us: 0,
    };
    while !input.is_empty() {
        match input.varint()? {
            1 => {
                for b in &mut out.origin.0 {
                    *b = u8::try_from(input.varint()?).map_err(|_| BAD)?;
                }
            }
            2 => out.gno = u64::try_from(input.signed_varint()?).map_err(|_| BAD)?,
            3 => {
                let len = usize::try_from(input.varint()?).map_err(|_| BAD)?;
                let tag = std::str::from_utf8(input.take(len)?).map_err(|_| BAD)?;
                out.origin.1 = tag.to_owned();
            }
            6 => out.committed_at_us = input.varint()?,
            0 | 7..=11 => {
                input.varint()?;
            }
            4 | 5 => {
                input.signed_varint()?;
            }
            // A field's length is not written, so nothing after it can be read.
            id if id <= needed => return Err(BAD),
            _ => break,
        }
    }
    if out.gno == 0 { Err(BAD) } else { Ok(out) }
}

/// MariaDB's GTID event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MariaGtidEvent {
    /// The transaction's GTID; its server is the header's.
    pub gtid: MariaGtid,
    /// Bit 0: one event without a commit follows. Bit 6: an XA prepare. Bit 7: its end.
    pub flags: u8,
}

impl MariaGtidEvent {
    /// The group is one statement that commits by itself.
    pub fn standalone(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// MariaDB's GTID event.
pub fn maria_gtid(header: &Header, body: &[u8]) -> Decoded<MariaGtidEvent> {
    let mut input = Input(body);
    let seq = input.u64()?;
    let domain = input.u32()?;
    let flags = input.u8()?;
    Ok(MariaGtidEvent {
        gtid: MariaGtid {
            domain,
            server: header.server_id,
            seq,
        },
        flags,
    })
}

/// A statement in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    /// The session's current database.
    pub database: &'a [u8],
    /// The statement, in the session's character set.
    pub sql: std::borrow::Cow<'a, [u8]>,
    /// The session's `sql_mode`, 0 if it is not logged.
    pub sql_mode: u64,
    /// The collation of the session's character set, 0 if it is not logged.
    pub collation: u64,
}

/// The bit of `sql_mode` by which double quotes stand around names.
pub const ANSI_QUOTES: u64 = 1 << 2;
/// The bit by which a backslash is a character like any other.
pub const NO_BACKSLASH_ESCAPES: u64 = 1 << 20;
/// The bits by which a value that does not fit is an error.
pub const STRICT: u64 = 1 << 21 | 1 << 22;

/// QUERY, and MariaDB's compressed form of it.
pub fn query(body: &[u8], compressed: bool) -> Decoded<Query<'_>> {
    let mut input = Input(body);
    input.take(8)?;
    let database = usize::from(input.u8()?);
    input.u16()?;
    let status = usize::from(input.u16()?);
    let (sql_mode, collation) = status_of(Input(input.take(status)?));
    let database = input.take(database)?;
    input.u8()?;
    let sql = input.rest();
    let sql = if compressed {
        let mut out = Vec::new();
        inflate(sql, &mut out)?;
        out.into()
    } else {
        sql.into()
    };
    Ok(Query {
        database,
        sql,
        sql_mode,
        collation,
    })
}

/// `sql_mode` and the client's collation out of a statement's status variables. They stand
/// first, in this order; what follows has codes that differ between servers.
fn status_of(mut input: Input<'_>) -> (u64, u64) {
    let (mut sql_mode, mut collation) = (0, 0);
    while let Ok(code) = input.u8() {
        let read = match code {
            0 | 3 => input.u32().map(drop),
            1 => input.u64().map(|v| sql_mode = v),
            4 => input.uint(6).map(|v| collation = v & 0xffff),
            6 => input.u8().and_then(|n| input.take(n.into()).map(drop)),
            _ => break,
        };
        if read.is_err() {
            break;
        }
    }
    (sql_mode, collation)
}

/// The most that one compressed event may unpack to: what a server's packet can hold.
const MAX_EVENT: usize = 1 << 30;

/// The bytes that MariaDB's `log_bin_compress` format unpacks to.
pub fn inflated_len(bytes: &[u8]) -> Decoded<usize> {
    let mut input = Input(bytes);
    let len = usize::from(input.u8()? & 7);
    Ok(super::big_endian(input.take(len)?) as usize)
}

/// Unpacks MariaDB's `log_bin_compress` format, appending to `out`.
pub fn inflate(bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    use std::io::Read;
    const BAD: DecodeError = DecodeError::Malformed("a compressed event");
    let mut input = Input(bytes);
    let head = input.u8()?;
    // Bit 7: compressed; bits 4 to 6: the algorithm, 0 is zlib; bits 0 to 2: bytes of the length.
    if head & 0xf0 != 0x80 || !(1..=4).contains(&(head & 7)) {
        return Err(BAD);
    }
    let len = super::big_endian(input.take(usize::from(head & 7))?) as usize;
    if len > MAX_EVENT {
        return Err(DecodeError::Malformed("a compressed event beyond 1 GiB"));
    }
    let start = out.len();
    let mut decoder = flate2::read::ZlibDecoder::new(input.0).take(len as u64 + 1);
    decoder.read_to_end(out).map_err(|_| BAD)?;
    if out.len() - start == len {
        Ok(())
    } else {
        Err(BAD)
    }
}

/// Unpacks a value of one of MariaDB's compressed columns.
pub fn inflate_column(bytes: &[u8]) -> Decoded<Vec<u8>> {
    use std::io::Read;
    const BAD: DecodeError = DecodeError::Malformed("a compressed value");
    let mut input = Input(bytes);
    if input.is_empty() {
        return Ok(Vec::new());
    }
    let head = input.u8()?;
    if head == 0 {
        return Ok(input.rest().to_vec());
    }
    // Bits 4 to 7: the method, 8 is zlib; bit 3: without zlib's frame; bits 0 to 2: bytes of
    // the length.
    if head & 0xf0 != 0x80 || !(1..=4).contains(&(head & 7)) {
        return Err(BAD);
    }
    let len = super::big_endian(input.take(usize::from(head & 7))?) as usize;
    if len > MAX_EVENT {
        return Err(BAD);
    }
    let mut out = Vec::new();
    let limit = len as u64 + 1;
    let read = if head & 8 != 0 {
        let decoder = flate2::read::DeflateDecoder::new(input.0);
        decoder.take(limit).read_to_end(&mut out)
    } else {
        let decoder = flate2::read::ZlibDecoder::new(input.0);
        decoder.take(limit).read_to_end(&mut out)
    };
    match read {
        Ok(n) if n == len => Ok(out),
        _ => Err(BAD),
    }
}

/// MySQL's TRANSACTION_PAYLOAD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    /// Whether `bytes` are zstd; otherwise they are the events themselves.
    pub zstd: bool,
    /// The events.
    pub bytes: &'a [u8],
}

/// Parses a TRANSACTION_PAYLOAD's own fields.
pub fn payload(body: &[u8]) -> Decoded<Payload<'_>> {
    let mut input = Input(body);
    let (mut zstd, mut size) = (false, None);
    loop {
        let field = input.lenenc()?;
        if field == 0 {
            break;
        }
        let mut value = Input(input.lenenc_bytes()?);
        match field {
            1 => size = Some(value.lenenc()?),
            2 => match value.lenenc()? {
                0 => zstd = true,
                255 => zstd = false,
                _ => {
                    return Err(DecodeError::Malformed(
                        "an unknown compression of a transaction",
                    ));
                }
            },
            _ => {}
        }
    }
    let bytes = input.rest();
    match size {
        Some(n) if n != bytes.len() as u64 => Err(DecodeError::Malformed("a transaction payload")),
        _ => Ok(Payload { zstd, bytes }),
    }
}

/// The xid of an XA_PREPARE, printed as the servers print it in `XA COMMIT`, and
/// whether it committed at once.
pub fn xa_prepare(body: &[u8]) -> Decoded<(String, bool)> {
    let mut input = Input(body);
    let one_phase = input.u8()? != 0;
    let format = input.u32()?;
    let (gtrid, bqual) = (input.u32()? as usize, input.u32()? as usize);
    let gtrid = input.take(gtrid)?;
    let bqual = input.take(bqual)?;
    let xid = format!(
        "X'{}',X'{}',{format}",
        hex::encode(gtrid),
        hex::encode(bqual)
    );
    Ok((xid, one_phase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_checked() {
        let mut event = vec![1, 2, 3];
        event.extend_from_slice(&crc32fast::hash(&[1, 2, 3]).to_le_bytes());
        assert_eq!(verify(&event), Ok(&[1, 2, 3][..]));
        event[0] = 9;
        assert!(verify(&event).is_err());
        assert!(verify(&[1]).is_err());
    }

    #[test]
    fn a_gtid_without_and_with_times() {
        let mut body = vec![1];
        body.extend_from_slice(&[7; 16]);
        body.extend_from_slice(&5u64.to_le_bytes());
        assert_eq!(gtid(&body).map(|g| (g.gno, g.committed_at_us)), Ok((5, 0)));
        body.push(2);
        body.extend_from_slice(&[0; 16]);
        body.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0x80]);
        assert_eq!(gtid(&body).map(|g| (g.gno, g.committed_at_us)), Ok((5, 1)));
    }

    #[test]
    fn compressed_statements_unpack_and_bombs_do_not() {
        use std::io::Write;
        let mut z = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        z.write_all(b"truncate t").unwrap();
        let packed = z.finish().unwrap();
        let event = |len: u8| [&[0x81, len][..], &packed].concat();
        let mut out = Vec::new();
        assert_eq!(inflate(&event(10), &mut out), Ok(()));
        assert_eq!(out, b"truncate t");
        assert!(inflate(&event(9), &mut Vec::new()).is_err());
        assert!(inflate(&event(11), &mut Vec::new()).is_err());
        assert!(inflate(&[0x84, 0xff, 0xff, 0xff, 0xff], &mut Vec::new()).is_err());
    }

    #[test]
    fn xids_print_as_the_server_prints_them() {
        let mut body = vec![0];
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(&2u32.to_le_bytes());
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(b"abc");
        assert_eq!(xa_prepare(&body), Ok(("X'6162',X'63',1".to_owned(), false)));
    }
}
