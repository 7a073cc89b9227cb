//! MySQL's binary JSON, written as the server prints it.
//!
//! The layout is that of the server's `json_binary.h`. Offsets come from outside, so
//! each is checked, nesting is limited as the server limits it, and the output is
//! limited too: a damaged document may refer to one value from many places.

use super::decimal::decimal_text;
use super::temporal::{unpack_datetime, unpack_time, write_time};
use super::{DecodeError, Decoded, Input};
use std::io::Write as _;

const BAD: DecodeError = DecodeError::Malformed("a json value");
/// The server refuses deeper documents.
pub(super) const MAX_DEPTH: u32 = 100;

/// Appends the text of a binary document.
pub fn write(bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    let Some((kind, value)) = bytes.split_first() else {
        // What the server itself reads an empty document as.
        out.extend_from_slice(b"null");
        return Ok(());
    };
    Writer::new(out, text_limit(bytes.len())).value(*kind, value, MAX_DEPTH + 1)
}

/// The most that so many bytes of documents are printed as.
pub(super) fn text_limit(bytes: usize) -> usize {
    // Printing makes at most six bytes of one, and ten of an element's entry.
    bytes.saturating_mul(16).saturating_add(512)
}

/// Calls `part` with each element of an array, or each member of an object with its key: its
/// type and the bytes that begin with its value.
pub(super) fn each<'a>(
    doc: &'a [u8],
    width: usize,
    object: bool,
    mut part: impl FnMut(Option<&'a [u8]>, u8, &'a [u8]) -> Decoded<()>,
) -> Decoded<()> {
    let mut input = Input(doc);
    let count = input.uint(width)? as usize;
    let size = input.uint(width)? as usize;
    let doc = doc.get(..size).ok_or(BAD)?;
    let keys_at = 2 * width;
    let key_entry = width + 2;
    let values_at = keys_at
        + if object {
            count.checked_mul(key_entry).ok_or(BAD)?
        } else {
            0
        };
    let entry = |at: usize, n: usize| {
        doc.get(at..)
            .map(Input)
            .ok_or(BAD)
            .and_then(|mut i| i.take(n))
    };
    for i in 0..count {
        let mut key = None;
        if object {
            let mut entry_of = Input(entry(keys_at + i * key_entry, key_entry)?);
            let (at, len) = (entry_of.uint(width)? as usize, usize::from(entry_of.u16()?));
            key = Some(entry(at, len)?);
        }
        let e = entry(values_at + i * (1 + width), 1 + width)?;
        let (kind, inline) = e.split_first().ok_or(BAD)?;
        let inlined = matches!(kind, 4..=6) || (width == 4 && matches!(kind, 7 | 8));
        if inlined {
            part(key, *kind, inline)?;
        } else {
            let at = super::little_endian(inline) as usize;
            part(key, *kind, doc.get(at..).ok_or(BAD)?)?;
        }
    }
    Ok(())
}

pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
}

impl<'o> Writer<'o> {
    /// Writes behind what is there, at most `limit` bytes.
    pub(super) fn new(out: &'o mut Vec<u8>, limit: usize) -> Self {
        let limit = out.len().saturating_add(limit);
        Writer { out, limit }
    }

    pub(super) fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    pub(super) fn value(&mut self, kind: u8, value: &[u8], depth: u32) -> Decoded<()> {
        if depth == 0 || self.out.len() > self.limit {
            return Err(BAD);
        }
        let mut input = Input(value);
        match kind {
            0 => return self.container(value, 2, true, depth),
            1 => return self.container(value, 4, true, depth),
            2 => return self.container(value, 2, false, depth),
            3 => return self.container(value, 4, false, depth),
            4 => match input.u8()? {
                0 => self.put("null"),
                1 => self.put("true"),
                2 => self.put("false"),
                _ => return Err(BAD),
            },
            5 => self.display(input.u16()? as i16),
            6 => self.display(input.u16()?),
            7 => self.display(input.u32()? as i32),
            8 => self.display(input.u32()?),
            9 => self.display(input.u64()? as i64),
            10 => self.display(input.u64()?),
            11 => {
                let text = double_text(f64::from_bits(input.u64()?)).ok_or(BAD)?;
                self.put(&text);
            }
            12 => {
                let len = length(&mut input)?;
                self.string(input.take(len)?)?;
            }
            15 => {
                let field_type = input.u8()?;
                let len = length(&mut input)?;
                self.opaque(field_type, input.take(len)?)?;
            }
            _ => return Err(BAD),
        }
        Ok(())
    }

    fn display(&mut self, v: impl std::fmt::Display) {
        // Writing to a vector cannot fail.
        let _ = write!(self.out, "{v}");
    }

    fn container(&mut self, doc: &[u8], width: usize, object: bool, depth: u32) -> Decoded<()> {
        self.put(if object { "{" } else { "[" });
        let mut first = true;
        each(doc, width, object, |key, kind, value| {
            if !std::mem::take(&mut first) {
                self.put(", ");
            }
            if let Some(key) = key {
                self.string(key)?;
                self.put(": ");
            }
            self.value(kind, value, depth - 1)
        })?;
        self.put(if object { "}" } else { "]" });
        Ok(())
    }

    pub(super) fn string(&mut self, bytes: &[u8]) -> Decoded<()> {
        let text = std::str::from_utf8(bytes).map_err(|_| BAD)?;
        self.out.push(b'"');
        for b in text.bytes() {
            match b {
                b'"' => self.put("\\\""),
                b'\\' => self.put("\\\\"),
                8 => self.put("\\b"),
                9 => self.put("\\t"),
                10 => self.put("\\n"),
                12 => self.put("\\f"),
                13 => self.put("\\r"),
                0..0x20 => {
                    let _ = write!(self.out, "\\u{b:04x}");
                }
                _ => self.out.push(b),
            }
        }
        self.out.push(b'"');
        Ok(())
    }

    fn opaque(&mut self, field_type: u8, data: &[u8]) -> Decoded<()> {
        let mut input = Input(data);
        match field_type {
            246 => {
                let (precision, scale) = (input.u8()?, input.u8()?);
                return decimal_text(input.rest(), precision, scale, self.out);
            }
            7 | 10 | 12 => {
                let (y, mo, d, h, mi, s, us) = unpack_datetime(input.u64()?);
                let _ = match field_type {
                    10 => write!(self.out, "\"{y:04}-{mo:02}-{d:02}\""),
                    _ => write!(
                        self.out,
                        "\"{y:04}-{mo:02}-{d:02} {h:02}:{mi:02}:{s:02}.{us:06}\""
                    ),
                };
            }
            11 => {
                let (negative, hms, us) = unpack_time(input.u64()? as i64);
                self.out.push(b'"');
                write_time(self.out, negative, hms, us, 6);
                self.out.push(b'"');
            }
            _ => {
                let _ = write!(self.out, "\"base64:type{field_type}:");
                self.base64(data);
                self.out.push(b'"');
            }
        }
        Ok(())
    }

    /// The server's base64 breaks lines after 76 characters, and prints the break escaped.
    fn base64(&mut self, data: &[u8]) {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digit = |v: u32| DIGITS.get((v & 63) as usize).copied().unwrap_or(b'=');
        for (i, group) in data.chunks(3).enumerate() {
            if i > 0 && i.is_multiple_of(19) {
                self.put("\\n");
            }
            let at = |n: usize| group.get(n).copied().map_or(0, u32::from);
            let v = at(0) << 16 | at(1) << 8 | at(2);
            let mut four = [digit(v >> 18), digit(v >> 12), digit(v >> 6), digit(v)];
            if group.len() < 3 {
                four[3] = b'=';
            }
            if group.len() < 2 {
                four[2] = b'=';
            }
            self.out.extend_from_slice(&four);
        }
    }
}

/// A length of seven bits a byte, at most five bytes.
fn length(input: &mut Input<'_>) -> Decoded<usize> {
    let mut len: u64 = 0;
    for i in 0..5 {
        let b = input.u8()?;
        len |= u64::from(b & 0x7f) << (7 * i);
        if b & 0x80 == 0 {
            return usize::try_from(len).map_err(|_| BAD);
        }
    }
    Err(BAD)
}

/// The server's text of a double: the shortest digits that read back the same, with an
/// exponent where the point lies more than fifteen places away, and `.0` where the
/// number would read as an integer. A number with digits after its point has no exponent.
pub fn double_text(v: f64) -> Option<String> {
    if !v.is_finite() {
        return None;
    }
    if v == 0.0 {
        return Some(if v.is_sign_negative() { "-0.0" } else { "0.0" }.to_owned());
    }
    let (digits, point) = shortest(v.abs())?;
    let n = digits.len() as i32;
    let mut out = if v < 0.0 {
        "-".to_owned()
    } else {
        String::new()
    };
    let plain = (-14..=15).contains(&point) || (point > 15 && n > point);
    if !plain {
        let (first, rest) = digits.split_at_checked(1)?;
        out.push_str(first);
        if !rest.is_empty() {
            out.push('.');
            out.push_str(rest);
        }
        out.push_str(&format!("e{}", point - 1));
    } else if point <= 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', point.unsigned_abs() as usize));
        out.push_str(&digits);
    } else if point >= n {
        out.push_str(&digits);
        out.extend(std::iter::repeat_n('0', (point - n) as usize));
        out.push_str(".0");
    } else {
        let (whole, part) = digits.split_at_checked(point as usize)?;
        out.push_str(whole);
        out.push('.');
        out.push_str(part);
    }
    Some(out)
}

/// The shortest digits that read back the same, and how many of them stand before the point.
fn shortest(v: f64) -> Option<(String, i32)> {
    // Of two that are equally near the server takes the even one, and so does ryu; the
    // standard library takes the greater.
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format_finite(v);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{part}");
    let digits = all.trim_start_matches('0');
    let leading = i32::try_from(all.len() - digits.len()).ok()?;
    let point = i32::try_from(whole.len()).ok()? - leading + exponent.parse::<i32>().ok()?;
    Some((digits.trim_end_matches('0').to_owned(), point))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Decoded<String> {
        let mut out = Vec::new();
        write(bytes, &mut out)?;
        Ok(String::from_utf8(out).expect("utf8"))
    }

    #[test]
    fn a_small_object() {
        // {"a": 1, "b": [true]}
        let doc = [
            0, 2, 0, 28, 0, 18, 0, 1, 0, 19, 0, 1, 0, 5, 1, 0, 2, 20, 0, b'a', b'b', 1, 0, 7, 0, 4,
            1, 0, 0,
        ];
        assert_eq!(text(&doc).unwrap(), "{\"a\": 1, \"b\": [true]}");
        for n in 1..doc.len() - 1 {
            assert!(text(&doc[..n]).is_err(), "{n}");
        }
    }

    #[test]
    fn a_document_that_contains_itself_ends() {
        let doc = [2, 2, 0, 10, 0, 2, 0, 0, 2, 0, 0];
        assert!(text(&doc).is_err());
    }

    #[test]
    fn strings_and_literals() {
        assert_eq!(text(&[]).unwrap(), "null");
        assert_eq!(text(&[12, 3, b'a', b'"', 1]).unwrap(), "\"a\\\"\\u0001\"");
        assert!(text(&[12, 1, 0xff]).is_err());
        assert!(text(&[4, 3]).is_err());
    }

    #[test]
    fn doubles() {
        for (v, t) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (1e15, "1e15"),
            (123456789012345.0, "123456789012345.0"),
            (1.5e-10, "0.00000000015"),
            (1e-20, "1e-20"),
            (1e14, "100000000000000.0"),
            (1.23e-15, "0.00000000000000123"),
            (1234567890123456.5, "1234567890123456.5"),
            (800_420_960_429_844.0 + 0.25, "800420960429844.2"),
            (800_420_960_429_844.0 + 0.75, "800420960429844.8"),
            (1.7976931348623157e308, "1.7976931348623157e308"),
        ] {
            assert_eq!(double_text(v).as_deref(), Some(t));
        }
    }
}
