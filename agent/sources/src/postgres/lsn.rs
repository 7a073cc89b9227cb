//! Log sequence numbers and their text.
//!
//! A PostgreSQL position is an LSN, printed as the server prints it (`16/B374D848`)
//! and compared as the 64-bit number that it is.

use caudal_model::{Error, Kind, Position, Result};
use std::fmt;
use std::str::FromStr;

/// The header of a WAL page, `SizeOfXLogShortPHD`.
const PAGE_HEADER: u64 = 24;
/// The header of a segment's first page, `SizeOfXLogLongPHD`.
const SEGMENT_HEADER: u64 = 40;

/// A byte's place in the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The LSN that a position's text stands for.
    pub fn of(position: &Position) -> Result<Lsn> {
        position.as_str().parse().map_err(|()| {
            Error::fatal(Kind::Corrupt, format!("`{position}` is not a PostgreSQL position"))
                .hint("the stream's lake was written from another kind of source; check [source] kind and [stream] name")
        })
    }

    /// The position of this LSN.
    pub fn position(self) -> Position {
        Position::new(self.to_string())
    }

    /// Where the last record ended, from where the next one would start.
    ///
    /// The server reports an insert position just behind a page's header where the
    /// last record filled the page before it, but a reader of the log stands at the
    /// page's start then. Without this, a tail would never reach the position of an
    /// idle server.
    pub fn end_of_last_record(self, page_bytes: u64, segment_bytes: u64) -> Lsn {
        if page_bytes == 0 || segment_bytes == 0 {
            return self;
        }
        if self.0 % segment_bytes == SEGMENT_HEADER {
            Lsn(self.0 - SEGMENT_HEADER)
        } else if self.0 % page_bytes == PAGE_HEADER && self.0 % segment_bytes > page_bytes {
            Lsn(self.0 - PAGE_HEADER)
        } else {
            self
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        let (high, low) = s.split_once('/').ok_or(())?;
        let part = |t: &str| {
            let hex = !t.is_empty() && t.len() <= 8 && t.bytes().all(|b| b.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(t, 16).ok())
                .flatten()
                .ok_or(())
        };
        Ok(Lsn(part(high)? << 32 | part(low)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsns_print_and_parse_as_the_server_does() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/1A2B3C0"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for bad in ["", "/", "1", "1/", "1/+2", "1/123456789", "g/0", "0/0/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
        assert!("1/0".parse::<Lsn>() > "0/FFFFFFFF".parse::<Lsn>());
    }

    #[test]
    fn an_insert_position_behind_a_header_is_the_boundary() {
        let (page, segment) = (8192, 16 << 20);
        let at = |v: u64| Lsn(v).end_of_last_record(page, segment).0;
        assert_eq!(at(8192 * 3 + 24), 8192 * 3);
        assert_eq!(at((16 << 20) * 2 + 40), (16 << 20) * 2);
        assert_eq!(at(8192 * 3 + 32), 8192 * 3 + 32);
        assert_eq!(at(8192 * 3 + 40), 8192 * 3 + 40);
        assert_eq!(at(8192 * 3), 8192 * 3);
    }
}
