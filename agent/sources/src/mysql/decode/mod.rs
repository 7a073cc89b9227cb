//! Pure decoders of MySQL and MariaDB bytes: bytes in, builder calls out.
//!
//! Nothing here does I/O, allocates a cell, or panics, whatever the bytes are;
//! every length is checked against what is there. The functions that take bytes
//! from outside are the fuzzers' entry points.

pub mod charset;
pub mod decimal;
pub mod events;
pub mod fetched;
pub mod fuzz;
pub mod json;
pub mod json_diff;
pub mod rows;
pub mod spatial;
pub mod table_map;
pub mod temporal;
pub mod text;
pub mod values;

use caudal_model::{Class, Error, Kind};

/// Why bytes could not be decoded; without the bytes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes are not what the protocol says: the log or the connection is damaged.
    Malformed(&'static str),
    /// One value that cannot arrive exactly: its table's problem.
    Value(&'static str),
    /// One value beyond the limit, with its bytes.
    TooLarge(u64),
}

/// The result of a decoder.
pub type Decoded<T> = Result<T, DecodeError>;

impl From<DecodeError> for Error {
    fn from(e: DecodeError) -> Error {
        match e {
            DecodeError::Malformed(what) => Error::retryable(
                Kind::Corrupt,
                format!("the source sent malformed bytes: {what}"),
            ),
            DecodeError::Value(what) => Error::new(Class::Data, Kind::Data, what),
            DecodeError::TooLarge(bytes) => Error::new(
                Class::Data,
                Kind::Data,
                format!("a value of {bytes} bytes is beyond limits.value_bytes"),
            ),
        }
    }
}

const SHORT: DecodeError = DecodeError::Malformed("they end too early");

/// A cursor over bytes that never reads past their end.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Bytes that are left.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `n` bytes.
    #[inline]
    pub fn take(&mut self, n: usize) -> Decoded<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(SHORT)?;
        self.0 = tail;
        Ok(head)
    }

    /// Everything that is left.
    #[inline]
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A little-endian unsigned integer of `n` bytes, at most eight.
    #[inline]
    pub fn uint(&mut self, n: usize) -> Decoded<u64> {
        Ok(little_endian(self.take(n)?))
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Decoded<u8> {
        let (first, rest) = self.0.split_first().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*first)
    }

    /// Two bytes, little-endian.
    #[inline]
    pub fn u16(&mut self) -> Decoded<u16> {
        Ok(self.uint(2)? as u16)
    }

    /// Four bytes, little-endian.
    #[inline]
    pub fn u32(&mut self) -> Decoded<u32> {
        Ok(self.uint(4)? as u32)
    }

    /// Eight bytes, little-endian.
    #[inline]
    pub fn u64(&mut self) -> Decoded<u64> {
        self.uint(8)
    }

    /// A length-encoded integer.
    #[inline]
    pub fn lenenc(&mut self) -> Decoded<u64> {
        match self.u8()? {
            0xfc => self.uint(2),
            0xfd => self.uint(3),
            0xfe => self.uint(8),
            0xfb | 0xff => Err(DecodeError::Malformed("a length-encoded integer")),
            v => Ok(v.into()),
        }
    }

    /// Bytes with a length-encoded length.
    #[inline]
    pub fn lenenc_bytes(&mut self) -> Decoded<&'a [u8]> {
        let n = usize::try_from(self.lenenc()?).map_err(|_| SHORT)?;
        self.take(n)
    }

    /// Bytes up to a zero byte, which is dropped.
    pub fn until_zero(&mut self) -> Decoded<&'a [u8]> {
        let at = memchr::memchr(0, self.0).ok_or(SHORT)?;
        let head = self.take(at)?;
        self.u8()?;
        Ok(head)
    }

    /// An unsigned integer of MySQL's serialization library: the low one-bits of
    /// the first byte count the bytes that follow.
    pub fn varint(&mut self) -> Decoded<u64> {
        let first = *self.0.first().ok_or(SHORT)?;
        let ones = first.trailing_ones() as usize;
        if ones == 8 {
            self.u8()?;
            return self.u64();
        }
        Ok(self.uint(ones + 1)? >> (ones + 1))
    }

    /// A signed integer of the same library, zig-zag.
    pub fn signed_varint(&mut self) -> Decoded<i64> {
        let v = self.varint()?;
        let magnitude = (v >> 1) as i64;
        Ok(if v & 1 == 1 {
            -magnitude - 1
        } else {
            magnitude
        })
    }
}

/// Up to eight bytes, least significant first.
#[inline]
pub fn little_endian(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => bytes
            .iter()
            .take(8)
            .rev()
            .fold(0, |v, b| v << 8 | u64::from(*b)),
    }
}

/// Up to eight bytes, most significant first.
#[inline]
pub fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |v, b| v << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_length() {
        assert_eq!(little_endian(&[1, 2, 3]), 0x030201);
        assert_eq!(big_endian(&[1, 2, 3]), 0x010203);
        assert_eq!(Input(&[0xfc, 1, 2]).lenenc(), Ok(0x0201));
        assert!(Input(&[0xfb]).lenenc().is_err());
        assert_eq!(Input(&[0x02]).varint(), Ok(1));
        assert_eq!(Input(&[0xff, 1, 0, 0, 0, 0, 0, 0, 0]).varint(), Ok(1));
        assert_eq!(Input(&[0x06]).signed_varint(), Ok(-2));
        assert!(Input(&[0x03]).varint().is_err());
        assert_eq!(Input(b"ab\0c").until_zero(), Ok(&b"ab"[..]));
        assert!(Input(b"ab").take(3).is_err());
    }
}
