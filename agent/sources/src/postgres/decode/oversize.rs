//! Messages with values past the limit, read without the values.
//!
//! A message of the log may be as long as a gigabyte. One that is longer than any value may
//! be is not collected: its cells are taken over one by one as they arrive, and in
//! the place of a cell that is too long stands its length ([`Cell::Large`]). The message
//! that is left has the form of the whole one.
//!
//! [`Cell::Large`]: super::pgoutput::Cell::Large

use super::pgoutput::{LARGE, message_len};
use bytes::{Buf, Bytes, BytesMut};
use caudal_model::{Error, Kind, Result};

/// Tag and length of the protocol's message, `w`, three numbers of 64 bits.
const ENVELOPE: usize = 5 + 25;

/// What a `pgoutput` message inside a protocol message is; `None` if not enough of it is
/// there, or if it is something else.
#[inline]
pub fn kind(message: &[u8]) -> Option<u8> {
    match (message.first(), message.get(5)) {
        (Some(b'd'), Some(b'w')) => message.get(ENVELOPE).copied(),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// A tuple's number of cells comes next.
    Count,
    /// So many cells are left of a tuple.
    Cells(u16),
    /// So many bytes of a cell are left to take over, and then so many cells.
    Keep(usize, u16),
    /// The same to leave out.
    Drop(usize, u16),
    /// The message is of no interest.
    Discard,
}

/// A long message on its way.
#[derive(Debug)]
pub struct Oversize {
    state: State,
    /// Bytes of the message that have not come.
    left: usize,
    /// The longest cell that is kept.
    limit: usize,
    out: BytesMut,
}

fn damaged() -> Error {
    Error::fatal(
        Kind::Corrupt,
        "replication stream: a long message does not have the form of a row",
    )
    .hint("please report this with the server's version; another try starts at the last commit")
}

impl Oversize {
    /// The message that `buf` begins with, if it is long because of what it carries: a row or a
    /// logical message. `None`: it is something else, or too little of it is there.
    pub fn begin(buf: &mut BytesMut, limit: usize, in_stream: bool) -> Result<Option<Self>> {
        let (Some(len), Some(kind)) = (message_len(buf, usize::MAX)?, kind(buf)) else {
            return Ok(None);
        };
        let head = match kind {
            b'I' | b'U' | b'D' => ENVELOPE + 1 + if in_stream { 4 } else { 0 } + 4 + 1,
            b'M' => 0,
            _ => return Ok(None),
        };
        if buf.len() < head || len < head {
            return Ok(None);
        }
        Ok(Some(Oversize {
            state: if head == 0 {
                State::Discard
            } else {
                State::Count
            },
            left: len - head,
            limit,
            out: buf.split_to(head),
        }))
    }

    /// Consumes what has arrived; the message that is left once it has come to its end, empty
    /// if it was of no interest.
    pub fn feed(&mut self, buf: &mut BytesMut) -> Result<Option<Bytes>> {
        loop {
            if self.left == 0 {
                return self.end().map(Some);
            }
            let here = buf.len().min(self.left);
            if here == 0 {
                return Ok(None);
            }
            match self.state {
                State::Discard => self.skip(buf, here),
                State::Count => {
                    let Some(count) = buf.get(..here.min(2)).and_then(<[u8]>::first_chunk) else {
                        return self.more(here);
                    };
                    self.state = State::Cells(u16::from_be_bytes(*count));
                    self.keep(buf, 2);
                }
                // A new row behind the old one, or nothing.
                State::Cells(0) => {
                    self.state = State::Count;
                    self.keep(buf, 1);
                }
                State::Cells(cells) => {
                    let cell = buf.get(..here).unwrap_or_default();
                    match *cell {
                        [b'n' | b'u', ..] => {
                            self.keep(buf, 1);
                            self.state = State::Cells(cells - 1);
                        }
                        [b't' | b'b', a, b, c, d, ..] => {
                            let bytes = [a, b, c, d];
                            let len = u32::from_be_bytes(bytes) as usize;
                            if len > self.limit {
                                self.skip(buf, 5);
                                self.out.extend_from_slice(&[LARGE]);
                                self.out.extend_from_slice(&bytes);
                                self.state = State::Drop(len, cells - 1);
                            } else {
                                self.keep(buf, 5);
                                self.state = State::Keep(len, cells - 1);
                            }
                            // An empty cell is over at once.
                            if len == 0 {
                                self.state = State::Cells(cells - 1);
                            }
                        }
                        [b't' | b'b', ..] => return self.more(here),
                        _ => return Err(damaged()),
                    }
                }
                State::Keep(len, cells) => {
                    let n = here.min(len);
                    self.keep(buf, n);
                    self.state = match len - n {
                        0 => State::Cells(cells),
                        rest => State::Keep(rest, cells),
                    };
                }
                State::Drop(len, cells) => {
                    let n = here.min(len);
                    self.skip(buf, n);
                    self.state = match len - n {
                        0 => State::Cells(cells),
                        rest => State::Drop(rest, cells),
                    };
                }
            }
        }
    }

    /// Too little has arrived, unless the message ends here.
    fn more(&self, here: usize) -> Result<Option<Bytes>> {
        if here == self.left {
            return Err(damaged());
        }
        Ok(None)
    }

    fn keep(&mut self, buf: &mut BytesMut, n: usize) {
        self.out.extend_from_slice(buf.get(..n).unwrap_or_default());
        self.skip(buf, n);
    }

    fn skip(&mut self, buf: &mut BytesMut, n: usize) {
        buf.advance(n.min(buf.len()));
        self.left = self.left.saturating_sub(n);
    }

    fn end(&mut self) -> Result<Bytes> {
        match self.state {
            State::Discard => return Ok(Bytes::new()),
            State::Cells(0) => {}
            _ => return Err(damaged()),
        }
        let len = u32::try_from(self.out.len() - 1).map_err(|_| damaged())?;
        if let Some(place) = self.out.get_mut(1..5) {
            place.copy_from_slice(&len.to_be_bytes());
        }
        Ok(std::mem::take(&mut self.out).freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pgoutput::{
        Cell, Envelope, Message, Reader, RowBody, Tuple, envelope, parse,
    };
    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut out = vec![b'd'];
        out.extend((4 + 25 + body.len() as u32).to_be_bytes());
        out.push(b'w');
        out.extend([0; 24]);
        out.extend(body);
        out
    }

    fn tuple(cells: &[Option<&str>]) -> Vec<u8> {
        let mut out = (cells.len() as u16).to_be_bytes().to_vec();
        for cell in cells {
            match cell {
                None => out.push(b'n'),
                Some("-") => out.push(b'u'),
                Some(text) => {
                    out.push(b't');
                    out.extend((text.len() as u32).to_be_bytes());
                    out.extend(text.as_bytes());
                }
            }
        }
        out
    }

    /// The message that is left, read in pieces of `step` bytes.
    fn slim(message: &[u8], in_stream: bool, step: usize) -> Result<Bytes> {
        let (mut buf, mut oversize) = (BytesMut::new(), None);
        for piece in message.chunks(step) {
            buf.extend_from_slice(piece);
            if oversize.is_none() {
                oversize = Oversize::begin(&mut buf, 10, in_stream)?;
            }
            if let Some(o) = &mut oversize
                && let Some(out) = o.feed(&mut buf)?
            {
                assert!(buf.is_empty());
                return Ok(out);
            }
        }
        panic!("the message does not end")
    }

    fn cells(t: &Tuple<'_>) -> Vec<String> {
        let mut cells = t.cells();
        let mut out = Vec::new();
        while let Some(cell) = cells.next_cell().unwrap() {
            out.push(match cell {
                Cell::Text(t) => String::from_utf8_lossy(t).into_owned(),
                Cell::Large(n) => format!("large {n}"),
                other => format!("{other:?}"),
            });
        }
        out
    }

    #[test]
    fn long_cells_are_left_out_whatever_the_pieces() {
        let long = "x".repeat(40);
        let old = tuple(&[Some("key"), Some(&long)]);
        let new = tuple(&[
            Some("key"),
            Some(""),
            None,
            Some("-"),
            Some(&long),
            Some("ten bytes!"),
        ]);
        let update = [b"U\0\0\0\x07\0\0\0\x09O", &old[..], b"N", &new[..]].concat();
        for step in [1, 3, 7, 64, 1000] {
            let out = slim(&frame(&update), true, step).unwrap();
            let Envelope::Data(data) = envelope(&mut Reader(&out)).unwrap() else {
                panic!("no data")
            };
            let Message::Row {
                row:
                    RowBody::Update {
                        old: Some(old),
                        new,
                    },
                ..
            } = parse(data, true).unwrap()
            else {
                panic!("no update")
            };
            assert_eq!(cells(&old.tuple), ["key", "large 40"]);
            let expected = ["key", "", "Null", "Unchanged", "large 40", "ten bytes!"];
            assert_eq!(cells(&new), expected, "{step}");
        }
        let logical = frame(&[b"M", long.as_bytes()].concat());
        assert_eq!(slim(&logical, false, 5).unwrap(), Bytes::new());
    }

    #[test]
    fn damaged_messages_are_refused() {
        let insert = |t: &[u8]| frame(&[b"I\0\0\0\x09N", t].concat());
        for bad in [
            &[0, 1][..],
            &[0, 2, b'n'],
            &[0, 1, b't', 0, 0],
            &[0, 1, b'x'],
            &[0, 1, b't', 0, 0, 0, 9, b'a'],
            &[0],
        ] {
            assert!(slim(&insert(bad), false, 1000).is_err(), "{bad:?}");
        }
        assert!(slim(&insert(&[0, 1, b'n']), false, 1).is_ok());
        let mut relation = BytesMut::from(&frame(b"R\0\0\0\x09")[..]);
        assert!(Oversize::begin(&mut relation, 10, false).unwrap().is_none());
    }
}
