//! Text of the log in the charset of its column, as UTF-8.
//!
//! The Unicode charsets and latin1 are decoded by rule. Every other one by a table that the
//! server itself was asked for ([`crate::mysql::charsets`]), so that a byte means here what
//! it means there. Bytes without a meaning are an error, where the server shows a `?`.

use super::{DecodeError, Decoded, big_endian};
use std::collections::HashMap;
use std::sync::Arc;

/// How a text column's bytes are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charset {
    /// utf8mb3, utf8mb4, ascii
    Utf8,
    /// MySQL's latin1, which is Windows-1252 with the C1 controls in its gaps
    Latin1,
    /// ucs2, utf16
    Utf16,
    /// utf16le
    Utf16Le,
    /// utf32
    Utf32,
    /// One whose table has not been read.
    Named(Arc<str>),
    /// By table.
    Table(Arc<Table>),
}

/// The characters of a charset by their codes.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// Of one byte; `None` is no character, or the first byte of one.
    single: Box<[Option<char>]>,
    /// Of two bytes, by both; 0 is none.
    double: Box<[u32]>,
    /// Of three and four bytes.
    longer: HashMap<u32, char>,
    /// gb18030: codes from 0x90308130 on are U+10000 and what follows.
    linear: bool,
}

impl Table {
    /// A table of codes, each with its bytes.
    pub fn new(codes: impl IntoIterator<Item = (Vec<u8>, char)>, linear: bool) -> Table {
        let mut table = Table {
            single: vec![None; 256].into(),
            double: vec![0; 1 << 16].into(),
            longer: HashMap::new(),
            linear,
        };
        for (code, c) in codes {
            let at = big_endian(&code) as usize;
            match code.len() {
                1 => {
                    if let Some(slot) = table.single.get_mut(at) {
                        *slot = Some(c);
                    }
                }
                2 => {
                    if let Some(slot) = table.double.get_mut(at) {
                        *slot = c.into();
                    }
                }
                _ => {
                    table.longer.insert(at as u32, c);
                }
            }
        }
        table
    }

    /// The first character, and its bytes.
    fn first(&self, bytes: &[u8]) -> Option<(char, usize)> {
        let single = *bytes.first()?;
        if let Some(c) = self.single.get(usize::from(single)).copied().flatten() {
            return Some((c, 1));
        }
        if let Some(two) = bytes.get(..2)
            && let Some(c) = self.double.get(big_endian(two) as usize)
            && *c != 0
        {
            return Some((char::from_u32(*c)?, 2));
        }
        for n in [3, 4] {
            let Some(code) = bytes.get(..n) else { break };
            if let Some(c) = self.longer.get(&(big_endian(code) as u32)) {
                return Some((*c, n));
            }
        }
        if let (true, Some(&[a, b, c, d])) = (self.linear, bytes.first_chunk::<4>()) {
            let digit = |b: u8, low: u8, high: u8| {
                (low..=high)
                    .contains(&b)
                    .then(|| u32::from(b) - u32::from(low))
            };
            let at = digit(a, 0x90, 0xe3)? * 12_600
                + digit(b, 0x30, 0x39)? * 1260
                + digit(c, 0x81, 0xfe)? * 10
                + digit(d, 0x30, 0x39)?;
            return Some((char::from_u32(0x10000 + at)?, 4));
        }
        None
    }
}

const BAD: DecodeError = DecodeError::Value("a text value is not valid in its column's charset");

impl Charset {
    /// The charset of that name at the server.
    pub fn by_name(name: &str) -> Charset {
        match name {
            "utf8mb4" | "utf8mb3" | "utf8" | "ascii" => Charset::Utf8,
            "latin1" => Charset::Latin1,
            "ucs2" | "utf16" => Charset::Utf16,
            "utf16le" => Charset::Utf16Le,
            "utf32" => Charset::Utf32,
            other => Charset::Named(other.into()),
        }
    }

    /// The most bytes that `len` bytes become in UTF-8.
    pub(super) fn bound(&self, len: usize) -> usize {
        match self {
            Charset::Utf8 => len,
            // A byte may stand for any character of the basic plane.
            _ => len.saturating_mul(3),
        }
    }

    /// Appends `bytes` as UTF-8.
    pub fn decode(&self, bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
        fn push(out: &mut Vec<u8>, c: char) {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        let units = |read: fn([u8; 2]) -> u16| {
            char::decode_utf16(bytes.chunks_exact(2).map(move |u| match *u {
                [a, b] => read([a, b]),
                _ => 0,
            }))
        };
        match self {
            Charset::Utf8 => {
                std::str::from_utf8(bytes).map_err(|_| BAD)?;
                out.extend_from_slice(bytes);
            }
            Charset::Latin1 => bytes.iter().for_each(|b| push(out, latin1(*b))),
            Charset::Utf16 | Charset::Utf16Le => {
                if !bytes.len().is_multiple_of(2) {
                    return Err(BAD);
                }
                let read = if *self == Charset::Utf16 {
                    u16::from_be_bytes
                } else {
                    u16::from_le_bytes
                };
                for c in units(read) {
                    push(out, c.map_err(|_| BAD)?);
                }
            }
            Charset::Utf32 => {
                if !bytes.len().is_multiple_of(4) {
                    return Err(BAD);
                }
                for u in bytes.chunks_exact(4) {
                    push(out, char::from_u32(big_endian(u) as u32).ok_or(BAD)?);
                }
            }
            Charset::Table(table) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let (c, n) = table.first(rest).ok_or(BAD)?;
                    push(out, c);
                    rest = rest.get(n..).unwrap_or_default();
                }
            }
            Charset::Named(_) => {
                return Err(DecodeError::Value("a text value's charset is not known"));
            }
        }
        Ok(())
    }
}

fn latin1(b: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match b {
        0x80..=0x9f => HIGH.get(usize::from(b) - 0x80).copied().unwrap_or('?'),
        _ => char::from(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_codes_of_every_length() {
        let codes = [
            (vec![b'a'], 'a'),
            (vec![0x81, 0x40], '丂'),
            (vec![0x8f, 0xb0, 0xa1], '丂'),
            (vec![0x81, 0x30, 0x81, 0x30], '\u{80}'),
        ];
        let table = Charset::Table(Arc::new(Table::new(codes, true)));
        let text = |bytes: &[u8]| {
            let mut out = Vec::new();
            table.decode(bytes, &mut out)?;
            Ok::<_, DecodeError>(String::from_utf8(out).unwrap())
        };
        assert_eq!(text(b"a\x81\x40a").unwrap(), "a丂a");
        assert_eq!(text(b"\x8f\xb0\xa1").unwrap(), "丂");
        assert_eq!(text(b"\x81\x30\x81\x30").unwrap(), "\u{80}");
        assert_eq!(text(b"\x90\x30\x81\x30").unwrap(), "\u{10000}");
        for bad in [&b"\x81"[..], b"b", b"\x81\x41", b"\xff\x30\x81\x30"] {
            assert!(text(bad).is_err());
        }
    }
}
