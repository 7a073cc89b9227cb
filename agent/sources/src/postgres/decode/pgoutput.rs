//! Messages of the replication stream and of `pgoutput` inside it.
//!
//! Layouts: PostgreSQL's documentation, "Streaming Replication Protocol" and
//! "Logical Replication Message Formats". Protocol version 2 is asked for;
//! the kinds of versions 3 and 4 are told apart in the error.

use super::super::Lsn;
use caudal_model::{Error, Kind, Result};
use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds from 1970 to 2000, PostgreSQL's own epoch.
pub const EPOCH_US: i64 = 946_684_800_000_000;

/// Now, in microseconds since 2000, as status updates carry it.
pub fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros())
        .unwrap_or(i64::MAX)
        .saturating_sub(EPOCH_US)
}

fn corrupt(what: &str) -> Error {
    Error::fatal(Kind::Corrupt, format!("replication stream: {what}"))
        .hint("please report this with the server's version; another try starts at the last commit")
}

/// Bytes that are consumed from the front.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `n` bytes.
    #[inline]
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        match self.0.split_at_checked(n) {
            Some((head, rest)) => {
                self.0 = rest;
                Ok(head)
            }
            None => Err(corrupt("a message ends early")),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.0.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.0 = rest;
                Ok(*head)
            }
            None => Err(corrupt("a message ends early")),
        }
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }
    /// Two bytes, big-endian.
    #[inline]
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    /// Four bytes, big-endian.
    #[inline]
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    /// Eight bytes, big-endian.
    #[inline]
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    /// Eight bytes, big-endian, signed.
    #[inline]
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// Text that ends with a zero byte.
    pub fn text(&mut self) -> Result<&'a str> {
        let end = memchr::memchr(0, self.0).ok_or_else(|| corrupt("a text does not end"))?;
        let text = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(text).map_err(|_| corrupt("a name is not UTF-8"))
    }
}

/// The length of the protocol message at the front of `buf`, tag included; it may
/// exceed what has arrived. `None`: not even the length has arrived.
pub fn message_len(buf: &[u8], limit: usize) -> Result<Option<usize>> {
    let Some(header) = buf.first_chunk::<5>() else {
        return Ok(None);
    };
    let [_, a, b, c, d] = *header;
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if len < 4 {
        return Err(corrupt("a message with an impossible length"));
    }
    if len > limit {
        return Err(Error::fatal(
            Kind::Source,
            format!("the log holds a row of {len} bytes; the limit is {limit}"),
        )
        .hint("exclude the table, or the column that is this large (exclude_columns)"));
    }
    Ok(Some(len + 1))
}

/// Whether a whole protocol message is a keepalive that asks for a reply.
pub fn wants_reply(message: &[u8]) -> bool {
    message.first() == Some(&b'd') && message.get(5) == Some(&b'k') && message.get(22) == Some(&1)
}

/// What one protocol message brings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Envelope<'a> {
    /// A `pgoutput` message.
    Data(&'a [u8]),
    /// Everything before `wal_end` has been sent.
    Keepalive {
        /// The end of the last record that the server has read.
        wal_end: Lsn,
    },
    /// The server ends the stream.
    End,
    /// Nothing that matters here (a notice, a changed parameter).
    Other,
}

/// Splits the first protocol message off `buf`, which holds whole messages.
pub fn envelope<'a>(buf: &mut Reader<'a>) -> Result<Envelope<'a>> {
    let tag = buf.u8()?;
    let len = buf.u32()? as usize;
    let mut body = Reader(buf.take(len.checked_sub(4).ok_or_else(|| corrupt("bad length"))?)?);
    match tag {
        b'd' => match body.u8()? {
            b'w' => {
                // Start, end and send time; the messages inside have their own.
                body.take(24)?;
                Ok(Envelope::Data(body.0))
            }
            b'k' => Ok(Envelope::Keepalive {
                wal_end: Lsn(body.u64()?),
            }),
            other => Err(corrupt(&format!("unknown kind {other:#04x} of copy data"))),
        },
        b'c' | b'C' => Ok(Envelope::End),
        _ => Ok(Envelope::Other),
    }
}

/// A `pgoutput` message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// A transaction that has committed begins.
    Begin {
        /// The LSN of its commit record.
        final_lsn: Lsn,
        /// Its commit time, microseconds since 1970.
        committed_at_us: i64,
        /// Its id, without the epoch.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Behind its commit record.
        end_lsn: Lsn,
    },
    /// A table's columns; comes before its rows, and again whenever they change.
    Relation {
        /// The (sub)transaction, in a stream.
        xid: Option<u32>,
        /// The table.
        relation: RelationBody<'a>,
    },
    /// A row.
    Row {
        /// The (sub)transaction, in a stream.
        xid: Option<u32>,
        /// The table's oid.
        relation: u32,
        /// What happened.
        row: RowBody<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// The (sub)transaction, in a stream.
        xid: Option<u32>,
        /// Their oids, four bytes each.
        relations: &'a [u8],
    },
    /// A part of a transaction in progress begins.
    StreamStart {
        /// The top-level transaction.
        xid: u32,
    },
    /// The part ends.
    StreamStop,
    /// A transaction whose parts have been sent commits.
    StreamCommit {
        /// The top-level transaction.
        xid: u32,
        /// The LSN of its commit record.
        commit_lsn: Lsn,
        /// Behind its commit record.
        end_lsn: Lsn,
        /// Its commit time, microseconds since 1970.
        committed_at_us: i64,
    },
    /// It, or one of its subtransactions, rolls back.
    StreamAbort {
        /// The top-level transaction.
        xid: u32,
        /// The one that rolls back.
        subxid: u32,
    },
    /// Origin, type or logical message: of no interest.
    Other,
}

/// What a [`Message::Relation`] says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelationBody<'a> {
    /// The table's oid.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// `d`efault, `n`othing, `f`ull or `i`ndex.
    pub identity: u8,
    columns: u16,
    body: &'a [u8],
}

/// One column of a [`RelationBody`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelationColumn<'a> {
    /// Whether it is part of the replica identity.
    pub identity: bool,
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub type_oid: u32,
    /// Its type's modifier; -1 without one.
    pub type_mod: i32,
}

impl<'a> RelationBody<'a> {
    /// The columns, in the order in which rows have them.
    pub fn columns(&self) -> Result<Vec<RelationColumn<'a>>> {
        let mut r = Reader(self.body);
        (0..self.columns)
            .map(|_| {
                Ok(RelationColumn {
                    identity: r.u8()? & 1 == 1,
                    name: r.text()?,
                    type_oid: r.u32()?,
                    type_mod: r.u32()? as i32,
                })
            })
            .collect()
    }
}

/// A row's tuples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowBody<'a> {
    /// Inserted.
    Insert(Tuple<'a>),
    /// Updated; the old tuple if the server sent it.
    Update {
        /// The old tuple, if the identity changed or is FULL.
        old: Option<Old<'a>>,
        /// The new row.
        new: Tuple<'a>,
    },
    /// Deleted.
    Delete(Old<'a>),
}

/// An old tuple.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Old<'a> {
    /// Whether it is the whole row (FULL), or the identity's columns with null elsewhere.
    pub whole: bool,
    /// Its cells.
    pub tuple: Tuple<'a>,
}

/// A tuple's cells, not yet split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuple<'a> {
    /// The number of cells.
    pub columns: u16,
    body: &'a [u8],
}

/// One cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    /// Null.
    Null,
    /// Stored out of line, and not changed.
    Unchanged,
    /// The value's text.
    Text(&'a [u8]),
    /// A value of this length, which was left out on its way (see `replication`).
    Large(usize),
}

/// The kind of a [`Cell::Large`]; the server has none of this name.
pub const LARGE: u8 = b'L';

/// The cells of a [`Tuple`].
#[derive(Debug, Clone, Copy)]
pub struct Cells<'a> {
    left: u16,
    body: Reader<'a>,
}

impl<'a> Tuple<'a> {
    /// The cells in order.
    #[inline]
    pub fn cells(&self) -> Cells<'a> {
        Cells {
            left: self.columns,
            body: Reader(self.body),
        }
    }
}

impl<'a> Cells<'a> {
    /// The next cell; `None` behind the last.
    #[inline]
    pub fn next_cell(&mut self) -> Result<Option<Cell<'a>>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        Ok(Some(match self.body.u8()? {
            b't' => {
                let len = self.body.u32()? as usize;
                Cell::Text(self.body.take(len)?)
            }
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            LARGE => Cell::Large(self.body.u32()? as usize),
            b'b' => return Err(corrupt("a binary cell, which was not asked for")),
            other => return Err(corrupt(&format!("unknown kind {other:#04x} of cell"))),
        }))
    }
}

/// Splits the tuple at the front of `r`, checking that its cells are whole.
fn tuple<'a>(r: &mut Reader<'a>) -> Result<Tuple<'a>> {
    let columns = r.u16()?;
    let start = r.0;
    let mut cells = Cells {
        left: columns,
        body: *r,
    };
    while cells.next_cell()?.is_some() {}
    *r = cells.body;
    let len = start.len() - r.0.len();
    Ok(Tuple {
        columns,
        body: start.get(..len).unwrap_or_default(),
    })
}

/// The tuple that a message ends with: nothing follows it, so its end need not be found.
fn last_tuple<'a>(r: &mut Reader<'a>) -> Result<Tuple<'a>> {
    Ok(Tuple {
        columns: r.u16()?,
        body: r.0,
    })
}

/// Parses one message. `in_stream`: it stands between `StreamStart` and `StreamStop`,
/// where changes carry their transaction's id.
pub fn parse(data: &[u8], in_stream: bool) -> Result<Message<'_>> {
    let mut r = Reader(data);
    let kind = r.u8()?;
    let xid = |r: &mut Reader<'_>| -> Result<Option<u32>> {
        if in_stream {
            r.u32().map(Some)
        } else {
            Ok(None)
        }
    };
    Ok(match kind {
        b'B' => Message::Begin {
            final_lsn: Lsn(r.u64()?),
            committed_at_us: r.i64()?.saturating_add(EPOCH_US),
            xid: r.u32()?,
        },
        b'C' => {
            r.take(9)?;
            Message::Commit {
                end_lsn: Lsn(r.u64()?),
            }
        }
        b'R' => {
            let xid = xid(&mut r)?;
            let relation = RelationBody {
                oid: r.u32()?,
                schema: r.text()?,
                name: r.text()?,
                identity: r.u8()?,
                columns: r.u16()?,
                body: r.0,
            };
            Message::Relation { xid, relation }
        }
        b'I' => {
            let xid = xid(&mut r)?;
            let relation = r.u32()?;
            expect(&mut r, b'N')?;
            Message::Row {
                xid,
                relation,
                row: RowBody::Insert(last_tuple(&mut r)?),
            }
        }
        b'U' => {
            let xid = xid(&mut r)?;
            let relation = r.u32()?;
            let old = match r.u8()? {
                b'N' => None,
                kind @ (b'K' | b'O') => {
                    let old = Old {
                        whole: kind == b'O',
                        tuple: tuple(&mut r)?,
                    };
                    expect(&mut r, b'N')?;
                    Some(old)
                }
                _ => return Err(corrupt("an update without a new row")),
            };
            Message::Row {
                xid,
                relation,
                row: RowBody::Update {
                    old,
                    new: last_tuple(&mut r)?,
                },
            }
        }
        b'D' => {
            let xid = xid(&mut r)?;
            let relation = r.u32()?;
            let whole = match r.u8()? {
                b'O' => true,
                b'K' => false,
                _ => return Err(corrupt("a delete without an old row")),
            };
            Message::Row {
                xid,
                relation,
                row: RowBody::Delete(Old {
                    whole,
                    tuple: last_tuple(&mut r)?,
                }),
            }
        }
        b'T' => {
            let xid = xid(&mut r)?;
            let count = r.u32()? as usize;
            r.u8()?;
            let bytes = count
                .checked_mul(4)
                .ok_or_else(|| corrupt("too many tables"))?;
            Message::Truncate {
                xid,
                relations: r.take(bytes)?,
            }
        }
        b'S' => Message::StreamStart { xid: r.u32()? },
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = r.u32()?;
            r.u8()?;
            Message::StreamCommit {
                xid,
                commit_lsn: Lsn(r.u64()?),
                end_lsn: Lsn(r.u64()?),
                committed_at_us: r.i64()?.saturating_add(EPOCH_US),
            }
        }
        b'A' => Message::StreamAbort {
            xid: r.u32()?,
            subxid: r.u32()?,
        },
        b'O' | b'Y' | b'M' => Message::Other,
        b'b' | b'P' | b'K' | b'r' | b'p' => {
            return Err(corrupt("a two-phase message, which was not asked for")
                .hint("create the slot without two_phase, or let caudal create it"));
        }
        other => return Err(corrupt(&format!("unknown message {other:#04x}"))),
    })
}

fn expect(r: &mut Reader<'_>, tag: u8) -> Result<()> {
    if r.u8()? == tag {
        Ok(())
    } else {
        Err(corrupt("a change without a new row"))
    }
}

#[cfg(test)]
#[path = "pgoutput_tests.rs"]
mod tests;
