//! Single values of the log's row images, straight into column builders; those of the
//! binary protocol are in [`super::fetched`].
//!
//! Both forms of a value end in the same call of the same builder, which is what
//! makes a snapshot's cell equal the log's.

use super::charset::Charset;
use super::decimal::{decimal_text, decimal_value};
use super::temporal::{
    Parts, days, fraction, instant, log_time, moment, unpack_datetime, unpack_time, write_moment,
};
use super::{
    DecodeError, Decoded, big_endian, events, json, json_diff, little_endian, spatial, text,
};
use caudal_model::ColumnBuilder;
use std::io::Write as _;
use std::sync::Arc;

/// What a column's values are, at the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// tinyint to bigint
    Int {
        /// 1, 2, 3, 4 or 8
        bytes: u8,
        /// unsigned
        unsigned: bool,
    },
    /// decimal
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// float
    Float,
    /// double
    Double,
    /// bit(n)
    Bit(u16),
    /// char, varchar, text
    Text(Charset),
    /// varbinary, blob
    Binary,
    /// binary(n): the log leaves trailing zeros out
    FixedBinary(u16),
    /// date
    Date,
    /// datetime, with its digits after the second
    DateTime(u8),
    /// datetime of before 5.6, as a decimal number
    OldDateTime,
    /// timestamp, with its digits after the second
    Timestamp(u8),
    /// timestamp of before 5.6
    OldTimestamp,
    /// time, with its digits after the second
    Time(u8),
    /// time of before 5.6, as a decimal number
    OldTime,
    /// year
    Year,
    /// enum, with its labels
    Enum(Arc<[String]>),
    /// set, with its labels
    Set(Arc<[String]>),
    /// MySQL's json
    Json,
    /// geometry and its kin
    Geometry,
    /// vector, with its dimensions
    Vector,
    /// MariaDB's compressed columns, in the log
    Compressed(Box<Value>),
    /// A number whose text has at least so many characters, zeros first
    Zerofilled(Box<Value>, u8),
    /// MariaDB's uuid
    Uuid,
    /// MariaDB's inet4
    Inet4,
    /// MariaDB's inet6
    Inet6,
}

pub(super) const UNFIT: DecodeError = DecodeError::Value("a value does not fit its column's type");
pub(super) const TOO_LONG: DecodeError =
    DecodeError::Value("a value is too long for a column batch");

/// Counts of the coercions that a decoder made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coerced {
    /// Zero and partial dates that became null.
    pub zero_dates: u64,
}

pub(in crate::mysql) fn push_int(
    v: u64,
    signed: i64,
    unsigned: bool,
    out: &mut ColumnBuilder,
) -> Decoded<()> {
    let wide: i128 = if unsigned { v.into() } else { signed.into() };
    match out {
        ColumnBuilder::Int8(c) => c.push(wide.try_into().map_err(|_| UNFIT)?),
        ColumnBuilder::Int16(c) => c.push(wide.try_into().map_err(|_| UNFIT)?),
        ColumnBuilder::Int32(c) => c.push(wide.try_into().map_err(|_| UNFIT)?),
        ColumnBuilder::Int64(c) => c.push(wide.try_into().map_err(|_| UNFIT)?),
        ColumnBuilder::Decimal(c, _, 0) => c.push(wide),
        ColumnBuilder::Boolean(c) if (0..=1).contains(&wide) => c.push(wide == 1),
        ColumnBuilder::Boolean(_) => {
            return Err(DecodeError::Value("a value is neither 0 nor 1"));
        }
        out => {
            text::push(out, |o| write!(o, "{wide}").map_err(|_| UNFIT))?;
        }
    }
    Ok(())
}

pub(super) fn push_bytes(bytes: &[u8], out: &mut ColumnBuilder) -> Decoded<usize> {
    match out {
        ColumnBuilder::Binary(c) | ColumnBuilder::Utf8(c) => {
            if !c.fits(bytes.len()) {
                return Err(TOO_LONG);
            }
            c.push(bytes);
            Ok(bytes.len())
        }
        _ => Err(UNFIT),
    }
}

pub(super) fn push_text_with(
    out: &mut ColumnBuilder,
    bound: usize,
    write: impl FnOnce(&mut Vec<u8>) -> Decoded<()>,
) -> Decoded<usize> {
    let ColumnBuilder::Utf8(c) = out else {
        return Err(UNFIT);
    };
    if !c.fits(bound) {
        return Err(TOO_LONG);
    }
    let mut written = 0;
    c.push_with(|data| {
        let start = data.len();
        write(data)?;
        written = data.len() - start;
        Ok(())
    })?;
    Ok(written)
}

pub(super) fn push_date(
    parts: Parts,
    out: &mut ColumnBuilder,
    coerced: &mut Coerced,
) -> Decoded<()> {
    let (y, m, d, ..) = parts;
    match (days(y, m, d), out) {
        (Some(days), ColumnBuilder::Date32(c)) => c.push(days),
        (None, out @ ColumnBuilder::Date32(_)) => {
            coerced.zero_dates += 1;
            out.push_null();
        }
        // The text has the zero date too.
        (_, out) => {
            text::push(out, |o| {
                write!(o, "{y:04}-{m:02}-{d:02}").map_err(|_| UNFIT)
            })?;
        }
    }
    Ok(())
}

pub(super) fn push_moment(
    parts: Parts,
    digits: u8,
    out: &mut ColumnBuilder,
    coerced: &mut Coerced,
) -> Decoded<()> {
    match (instant(parts), out) {
        (Some(us), ColumnBuilder::Timestamp(c) | ColumnBuilder::TimestampUtc(c)) => c.push(us),
        (None, out @ (ColumnBuilder::Timestamp(_) | ColumnBuilder::TimestampUtc(_))) => {
            coerced.zero_dates += 1;
            out.push_null();
        }
        (_, out) => {
            text::push(out, |o| {
                write_moment(o, parts, digits);
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn push_set(mask: u64, labels: &[String], out: &mut Vec<u8>) {
    let mut first = true;
    for (i, label) in labels.iter().enumerate().take(64) {
        if mask >> i & 1 == 1 {
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(label.as_bytes());
        }
    }
}

/// Appends one value of a row image. Returns its bytes where they are of no fixed width.
#[inline]
pub fn push_logged(
    value: &Value,
    bytes: &[u8],
    out: &mut ColumnBuilder,
    coerced: &mut Coerced,
) -> Decoded<usize> {
    match value {
        Value::Int { bytes: n, unsigned } => {
            let v = little_endian(bytes);
            let shift = 64 - 8 * u32::from(*n).clamp(1, 8);
            push_int(v, (v << shift) as i64 >> shift, *unsigned, out)?;
        }
        Value::Text(Charset::Utf8) => {
            // The same check as `Charset::decode`, without its second buffer call.
            if std::str::from_utf8(bytes).is_err() {
                return Err(DecodeError::Value(
                    "a text value is not valid in its column's charset",
                ));
            }
            return push_bytes(bytes, out);
        }
        Value::Text(charset) => {
            return push_text_with(out, charset.bound(bytes.len()), |o| {
                charset.decode(bytes, o)
            });
        }
        Value::Binary => return text::push_binary(bytes, out),
        Value::Decimal { precision, scale } => match out {
            ColumnBuilder::Decimal(c, ..) => c.push(decimal_value(bytes, *precision, *scale)?),
            _ => return push_text_with(out, 80, |o| decimal_text(bytes, *precision, *scale, o)),
        },
        Value::Float => text::push_float(f32::from_bits(little_endian(bytes) as u32), out)?,
        Value::Double => text::push_double(f64::from_bits(little_endian(bytes)), out)?,
        _ => return push_logged_rare(value, bytes, out, coerced),
    }
    Ok(0)
}

fn push_logged_rare(
    value: &Value,
    bytes: &[u8],
    out: &mut ColumnBuilder,
    coerced: &mut Coerced,
) -> Decoded<usize> {
    match value {
        Value::Bit(_) => return push_bit(bytes, out),
        Value::FixedBinary(n) => return push_padded(bytes, usize::from(*n), out),
        Value::Date => {
            let v = little_endian(bytes) as u32;
            push_date((v >> 9, (v >> 5) & 15, v & 31, 0, 0, 0, 0), out, coerced)?;
        }
        Value::DateTime(digits) => {
            let (whole, part) = bytes.split_at_checked(5).unwrap_or((bytes, &[]));
            let v = big_endian(whole).wrapping_sub(0x80_0000_0000) & 0xff_ffff_ffff;
            let (y, mo, d, h, mi, s, _) = unpack_datetime(v << 24);
            push_moment((y, mo, d, h, mi, s, fraction(part)), *digits, out, coerced)?;
        }
        Value::OldDateTime => {
            let v = little_endian(bytes);
            let two = |v: u64| (v % 100) as u32;
            let (d, t) = (v / 1_000_000, v % 1_000_000);
            let year = u32::try_from(d / 10_000).unwrap_or(0);
            let (hour, minute) = (two(t / 10_000), two(t / 100));
            let parts = (year, two(d / 100), two(d), hour, minute, two(t), 0);
            push_moment(parts, 0, out, coerced)?;
        }
        Value::Timestamp(_) | Value::OldTimestamp => {
            let (whole, part) = bytes.split_at_checked(4).unwrap_or((bytes, &[]));
            let old = matches!(value, Value::OldTimestamp);
            let seconds = if old {
                little_endian(whole)
            } else {
                big_endian(whole)
            };
            let digits = if let Value::Timestamp(d) = value {
                *d
            } else {
                0
            };
            push_moment(moment(seconds, fraction(part)), digits, out, coerced)?;
        }
        Value::Time(digits) => {
            let (negative, hms, us) = unpack_time(log_time(bytes));
            return text::push_time(negative, hms, us, *digits, out);
        }
        Value::OldTime => {
            let v = ((little_endian(bytes) << 40) as i64) >> 40;
            let a = v.unsigned_abs();
            let hms = (a / 10_000, (a / 100 % 100) as u32, (a % 100) as u32);
            return text::push_time(v < 0, hms, 0, 0, out);
        }
        Value::Year => {
            let v = little_endian(bytes);
            text::push_year(if v == 0 { 0 } else { v + 1900 }, out)?;
        }
        Value::Enum(labels) => {
            let v = little_endian(bytes) as usize;
            let label = match v.checked_sub(1) {
                None => "",
                Some(i) => labels.get(i).ok_or(UNFIT)?,
            };
            return push_bytes(label.as_bytes(), out);
        }
        Value::Set(labels) => {
            let bound = labels.iter().map(|l| l.len() + 1).sum();
            let mask = little_endian(bytes);
            return push_text_with(out, bound, |o| {
                push_set(mask, labels, o);
                Ok(())
            });
        }
        Value::Json => {
            return push_text_with(out, json_bound(bytes.len()), |o| json::write(bytes, o));
        }
        Value::Geometry => return spatial::push_geometry(bytes, out),
        Value::Vector => return spatial::push_vector(bytes, out),
        Value::Compressed(inner) => {
            let unpacked = events::inflate_column(bytes)?;
            return push_logged(inner, &unpacked, out, coerced);
        }
        Value::Zerofilled(inner, width) => {
            return text::push_zerofilled(*width, out, |o| push_logged(inner, bytes, o, coerced));
        }
        Value::Uuid | Value::Inet4 | Value::Inet6 => {
            return push_text_with(out, 64, |o| write_fixed(value, bytes, o));
        }
        // Handled by the caller.
        _ => return Err(UNFIT),
    }
    Ok(0)
}

/// The most that a document's text has: a control character of one byte becomes six.
fn json_bound(bytes: usize) -> usize {
    bytes.saturating_mul(6)
}

/// Appends the document that `diff` makes of `before`.
pub fn push_patched(before: &[u8], diff: &[u8], out: &mut ColumnBuilder) -> Decoded<usize> {
    let bound = json_bound(before.len().saturating_add(diff.len()));
    push_text_with(out, bound, |o| json_diff::write(before, diff, o))
}

pub(super) fn push_bit(bytes: &[u8], out: &mut ColumnBuilder) -> Decoded<usize> {
    match out {
        ColumnBuilder::Boolean(c) => {
            c.push(bytes.iter().any(|b| *b != 0));
            Ok(0)
        }
        ColumnBuilder::Int64(c) => {
            c.push(i64::try_from(big_endian(bytes)).map_err(|_| UNFIT)?);
            Ok(0)
        }
        _ => text::push_binary(bytes, out),
    }
}

pub(super) fn push_padded(bytes: &[u8], len: usize, out: &mut ColumnBuilder) -> Decoded<usize> {
    if bytes.len() > len {
        return Err(UNFIT);
    }
    let (ColumnBuilder::Binary(c) | ColumnBuilder::Utf8(c)) = &mut *out else {
        return Err(UNFIT);
    };
    if !c.fits(len) {
        return Err(TOO_LONG);
    }
    if matches!(out, ColumnBuilder::Utf8(_)) && std::str::from_utf8(bytes).is_err() {
        return Err(text::NOT_TEXT);
    }
    let (ColumnBuilder::Binary(c) | ColumnBuilder::Utf8(c)) = out else {
        return Err(UNFIT);
    };
    c.push_with(|data| {
        data.extend_from_slice(bytes);
        data.resize(data.len() + len - bytes.len(), 0);
        Ok::<_, DecodeError>(())
    })?;
    Ok(len)
}

/// MariaDB's fixed binary types as text; trailing zeros may be missing in the log.
fn write_fixed(value: &Value, bytes: &[u8], out: &mut Vec<u8>) -> Decoded<()> {
    let mut raw = [0u8; 16];
    raw.get_mut(..bytes.len())
        .ok_or(UNFIT)?
        .copy_from_slice(bytes);
    let written = match value {
        Value::Uuid => {
            let u = uuid_from_record(raw);
            write!(out, "{}", crate::mysql::gtid::uuid_text(&u))
        }
        Value::Inet4 => {
            let [a, b, c, d, ..] = raw;
            write!(out, "{a}.{b}.{c}.{d}")
        }
        _ => write_inet6(raw, out),
    };
    written.map_err(|_| UNFIT)
}

/// An IPv6 address as MariaDB prints it: the first of the longest runs of zero groups is left
/// out even if it is one group, and addresses that hold an IPv4 address end in it.
fn write_inet6(raw: [u8; 16], out: &mut Vec<u8>) -> std::io::Result<()> {
    let groups = std::net::Ipv6Addr::from(raw).segments();
    let (mut start, mut len) = (0, 0);
    for i in 0..groups.len() {
        let run = groups.iter().skip(i).take_while(|g| **g == 0).count();
        if run > len {
            (start, len) = (i, run);
        }
    }
    let [.., a, b, c, d] = raw;
    match (start, len, groups[5]) {
        (0, 6, _) => return write!(out, "::{a}.{b}.{c}.{d}"),
        (0, 5, 0xffff) => return write!(out, "::ffff:{a}.{b}.{c}.{d}"),
        _ => {}
    }
    for (i, g) in groups.iter().enumerate() {
        if len > 0 && i == start {
            out.extend_from_slice(b"::");
        } else if i < start || i >= start + len {
            let first = i == 0 || (len > 0 && i == start + len);
            write!(out, "{}{g:x}", if first { "" } else { ":" })?;
        }
    }
    Ok(())
}

/// MariaDB stores UUIDs of versions 1 to 5 with their groups reversed, so that they
/// sort by time; others as they are.
fn uuid_from_record(r: [u8; 16]) -> [u8; 16] {
    let swapped = r[6] & 0x80 != 0 && (1..0x60).contains(&r[8]);
    if !swapped {
        return r;
    }
    let [
        n0,
        n1,
        n2,
        n3,
        n4,
        n5,
        c0,
        c1,
        h0,
        h1,
        m0,
        m1,
        l0,
        l1,
        l2,
        l3,
    ] = r;
    [
        l0, l1, l2, l3, m0, m1, h0, h1, c0, c1, n0, n1, n2, n3, n4, n5,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::super::decimal::{decimal_len, parse_decimal};
    use super::super::fetched::push_fetched;
    use super::*;
    use arrow::array::{Array, AsArray};
    use caudal_model::LakeType;

    fn text(value: Value, bytes: &[u8]) -> Decoded<String> {
        let mut c = ColumnBuilder::new(&LakeType::Utf8);
        push_logged(&value, bytes, &mut c, &mut Coerced::default())?;
        Ok(c.finish().as_string::<i32>().value(0).to_owned())
    }

    #[test]
    fn decimals() {
        // 1234567890.1234 of decimal(14,4), from the reference manual.
        let bytes = [0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2];
        assert_eq!(decimal_len(14, 4), Some(7));
        assert_eq!(decimal_value(&bytes, 14, 4), Ok(12_345_678_901_234));
        let negative: Vec<u8> = bytes.iter().map(|b| !b).collect();
        assert_eq!(decimal_value(&negative, 14, 4), Ok(-12_345_678_901_234));
        let mut out = Vec::new();
        decimal_text(&negative, 14, 4, &mut out).unwrap();
        assert_eq!(out, b"-1234567890.1234");
        assert_eq!(
            parse_decimal(b"-1234567890.1234", 4),
            Ok(-12_345_678_901_234)
        );
        assert_eq!(parse_decimal(b"5", 2), Ok(500));
        assert!(parse_decimal(b"5.123", 2).is_err());
        assert!(decimal_value(&[0xff; 7], 14, 4).is_err());
        assert!(decimal_value(&[], 14, 4).is_err());
        assert_eq!(decimal_len(3, 4), None);
    }

    #[test]
    fn dates() {
        assert_eq!(days(1970, 1, 1), Some(0));
        assert_eq!(days(2000, 2, 29), Some(11_016));
        assert_eq!(days(1, 1, 1), Some(-719_162));
        assert_eq!(days(9999, 12, 31), Some(2_932_896));
        for (y, m, d) in [
            (0, 1, 1),
            (2024, 0, 15),
            (2024, 2, 30),
            (1900, 2, 29),
            (2024, 13, 1),
        ] {
            assert_eq!(days(y, m, d), None);
        }
    }

    #[test]
    fn times_of_every_precision() {
        let v = |n| Value::Time(n);
        assert_eq!(text(v(0), &[0x80, 0, 0]).unwrap(), "00:00:00");
        assert_eq!(text(v(0), &[0xb4, 0x6e, 0xfb]).unwrap(), "838:59:59");
        assert_eq!(text(v(0), &[0x4b, 0x91, 0x05]).unwrap(), "-838:59:59");
        // -00:00:01.10 and -00:00:00.99 of time(2)
        assert_eq!(
            text(v(2), &[0x7f, 0xff, 0xfe, 0xf6]).unwrap(),
            "-00:00:01.10"
        );
        assert_eq!(
            text(v(2), &[0x7f, 0xff, 0xff, 0x9d]).unwrap(),
            "-00:00:00.99"
        );
        assert_eq!(
            text(v(6), &[0x80, 0, 1, 0, 0, 1]).unwrap(),
            "00:00:01.000001"
        );
    }

    #[test]
    fn charsets_become_utf8() {
        assert_eq!(
            text(Value::Text(Charset::Latin1), &[0x80, 0xe9, 0x81]).unwrap(),
            "€é\u{81}"
        );
        assert_eq!(
            text(Value::Text(Charset::Utf16), &[0xd8, 0x3d, 0xde, 0x00]).unwrap(),
            "😀"
        );
        assert_eq!(text(Value::Text(Charset::Utf16Le), b"a\0").unwrap(), "a");
        assert_eq!(
            text(Value::Text(Charset::Utf32), &[0, 1, 0xf6, 0]).unwrap(),
            "😀"
        );
        for (c, bad) in [
            (Charset::Utf8, &[0xff][..]),
            (Charset::Utf16, &[0xd8, 0]),
            (Charset::Utf32, &[1]),
        ] {
            assert!(matches!(
                text(Value::Text(c), bad),
                Err(DecodeError::Value(_))
            ));
        }
    }

    #[test]
    fn labels_and_padding() {
        let labels: Arc<[String]> = ["a".to_owned(), "b".to_owned(), "c".to_owned()].into();
        assert_eq!(text(Value::Enum(labels.clone()), &[0]).unwrap(), "");
        assert_eq!(text(Value::Enum(labels.clone()), &[3]).unwrap(), "c");
        assert!(text(Value::Enum(labels.clone()), &[4]).is_err());
        assert_eq!(text(Value::Set(labels), &[5]).unwrap(), "a,c");
        let mut c = ColumnBuilder::new(&LakeType::Binary);
        push_logged(
            &Value::FixedBinary(3),
            b"x",
            &mut c,
            &mut Coerced::default(),
        )
        .unwrap();
        assert_eq!(c.finish().as_binary::<i32>().value(0), b"x\0\0");
    }

    #[test]
    fn zero_dates_become_null_and_are_counted() {
        let mut coerced = Coerced::default();
        let mut c = ColumnBuilder::new(&LakeType::Timestamp);
        push_logged(
            &Value::DateTime(0),
            &[0x80, 0, 0, 0, 0],
            &mut c,
            &mut coerced,
        )
        .unwrap();
        let mut d = ColumnBuilder::new(&LakeType::Date32);
        push_fetched(
            &Value::Date,
            10,
            false,
            &mut Input(&[0]),
            &mut d,
            &mut coerced,
        )
        .unwrap();
        assert!(c.finish().is_null(0) && d.finish().is_null(0));
        assert_eq!(coerced.zero_dates, 2);
    }

    #[test]
    fn uuids_of_both_orders() {
        let plain = *b"\x55\x0e\x84\x00\xe2\x9b\x71\xd4\x07\x16\x44\x66\x55\x44\x00\x00";
        assert_eq!(uuid_from_record(plain), plain);
        let record = *b"\x44\x66\x55\x44\x00\x00\xa7\x16\x41\xd4\xe2\x9b\x55\x0e\x84\x00";
        let value = *b"\x55\x0e\x84\x00\xe2\x9b\x41\xd4\xa7\x16\x44\x66\x55\x44\x00\x00";
        assert_eq!(uuid_from_record(record), value);
    }
}
