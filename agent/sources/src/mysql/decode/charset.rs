//! Text of the log in the charset of its column, as UTF-8.

use super::{DecodeError, Decoded, big_endian};

/// How a text column's bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

impl Charset {
    /// The charset of that name at the server, if it can be decoded.
    pub fn by_name(name: &str) -> Option<Charset> {
        Some(match name {
            "utf8mb4" | "utf8mb3" | "utf8" | "ascii" => Charset::Utf8,
            "latin1" => Charset::Latin1,
            "ucs2" | "utf16" => Charset::Utf16,
            "utf16le" => Charset::Utf16Le,
            "utf32" => Charset::Utf32,
            _ => return None,
        })
    }

    /// Appends `bytes` as UTF-8.
    pub(super) fn decode(self, bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
        const BAD: DecodeError =
            DecodeError::Value("a text value is not valid in its column's charset");
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
                let read = if self == Charset::Utf16 {
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
