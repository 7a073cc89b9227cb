//! `COPY … (FORMAT binary)`: its framing, and values in binary into column builders.
//!
//! The cells must equal what `text` makes of the same values.

use super::nested;
use super::pgoutput::Reader;
use super::text::{days_since_2000, micros_since_2000, push_text};
use super::value::{Codec, ValueError, fits_precision, power_of_ten};
use caudal_model::ColumnBuilder;

type Result<T> = std::result::Result<T, ValueError>;

/// What a file in this format begins with.
pub const SIGNATURE: [u8; 11] = *b"PGCOPY\n\xff\r\n\0";

/// The length of the header at the front of `buf`; `None` if it is not whole yet.
pub fn header_len(buf: &[u8]) -> Result<Option<usize>> {
    let Some((fixed, _)) = buf.split_first_chunk::<19>() else {
        return Ok(None);
    };
    if !fixed.starts_with(&SIGNATURE) {
        return Err(ValueError::Form);
    }
    let [.., a, b, c, d] = *fixed;
    let len = 19 + u32::from_be_bytes([a, b, c, d]) as usize;
    Ok((buf.len() >= len).then_some(len))
}

/// What stands at the front of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row<'a> {
    /// A row: its number of cells, its cells, and its whole length.
    Whole(u16, &'a [u8], usize),
    /// The end of the copy.
    End,
    /// The row has not arrived in full.
    Partial,
}

/// Finds the row at the front of `buf`.
#[inline]
pub fn row(buf: &[u8]) -> Result<Row<'_>> {
    let Some((count, mut rest)) = buf.split_first_chunk::<2>() else {
        return Ok(Row::Partial);
    };
    let count = i16::from_be_bytes(*count);
    if count == -1 {
        return Ok(Row::End);
    }
    let count = u16::try_from(count).map_err(|_| ValueError::Form)?;
    let cells = rest;
    for _ in 0..count {
        let Some((len, behind)) = rest.split_first_chunk::<4>() else {
            return Ok(Row::Partial);
        };
        rest = behind;
        let len = i32::from_be_bytes(*len);
        if len >= 0 {
            match rest.get(len as usize..) {
                Some(behind) => rest = behind,
                None => return Ok(Row::Partial),
            }
        } else if len != -1 {
            return Err(ValueError::Form);
        }
    }
    let used = cells.len() - rest.len();
    Ok(Row::Whole(
        count,
        cells.get(..used).unwrap_or_default(),
        used + 2,
    ))
}

/// The next cell of a row; `None` is null.
#[inline]
pub fn cell<'a>(cells: &mut Reader<'a>) -> Result<Option<&'a [u8]>> {
    let len = cells.u32().map_err(|_| ValueError::Form)? as i32;
    if len < 0 {
        return Ok(None);
    }
    cells
        .take(len as usize)
        .map(Some)
        .map_err(|_| ValueError::Form)
}

#[inline]
fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| ValueError::Form)
}

/// Appends one value; on an error the builder is as it was.
#[inline]
pub fn append(codec: Codec, column: &mut ColumnBuilder, bytes: &[u8]) -> Result<()> {
    match (codec, column) {
        (Codec::Text, ColumnBuilder::Utf8(c)) => push_text(c, bytes)?,
        (Codec::Int, ColumnBuilder::Int32(c)) => {
            c.push(i32::try_from(integer(bytes)?).map_err(|_| ValueError::Range)?);
        }
        (Codec::Int, ColumnBuilder::Int64(c)) => c.push(integer(bytes)?),
        (Codec::Int, ColumnBuilder::Int16(c)) => {
            c.push(i16::try_from(integer(bytes)?).map_err(|_| ValueError::Range)?);
        }
        (Codec::Oid, ColumnBuilder::Int64(c)) => c.push(u32::from_be_bytes(array(bytes)?).into()),
        (Codec::Numeric, ColumnBuilder::Decimal(c, precision, scale)) => {
            c.push(decimal(bytes, *precision, *scale)?);
        }
        (Codec::Date, ColumnBuilder::Date32(c)) => {
            c.push(days_since_2000(i32::from_be_bytes(array(bytes)?))?);
        }
        (Codec::Timestamp, ColumnBuilder::Timestamp(c) | ColumnBuilder::TimestampUtc(c)) => {
            c.push(micros_since_2000(i64::from_be_bytes(array(bytes)?))?);
        }
        (Codec::Time, ColumnBuilder::Time64(c)) => c.push(i64::from_be_bytes(array(bytes)?)),
        (Codec::Bool, ColumnBuilder::Boolean(c)) => c.push(array::<1>(bytes)? != [0]),
        (Codec::Float4, ColumnBuilder::Float32(c)) => c.push(f32::from_be_bytes(array(bytes)?)),
        (Codec::Float4, ColumnBuilder::Float64(c)) => {
            c.push(f32::from_be_bytes(array(bytes)?).into());
        }
        (Codec::Float8, ColumnBuilder::Float64(c)) => c.push(f64::from_be_bytes(array(bytes)?)),
        (Codec::Bytea, ColumnBuilder::Binary(c)) => {
            if !c.fits(bytes.len()) {
                return Err(ValueError::Long);
            }
            c.push(bytes);
        }
        (Codec::Jsonb, ColumnBuilder::Utf8(c)) => match bytes.split_first() {
            Some((1, text)) => push_text(c, text)?,
            _ => return Err(ValueError::Form),
        },
        (Codec::Uuid, ColumnBuilder::Utf8(c)) => {
            let text = uuid(array(bytes)?);
            if !c.fits(text.len()) {
                return Err(ValueError::Long);
            }
            c.push(&text);
        }
        (Codec::Money, ColumnBuilder::Decimal(c, precision, 2)) => {
            let cents = i64::from_be_bytes(array(bytes)?).into();
            if !fits_precision(cents, *precision) {
                return Err(ValueError::Digits);
            }
            c.push(cents);
        }
        (Codec::Ewkb, ColumnBuilder::Binary(c)) => {
            if !c.fits(bytes.len()) {
                return Err(ValueError::Long);
            }
            c.push(bytes);
        }
        (Codec::List(item, _), column @ ColumnBuilder::List(_)) => {
            nested::array_binary(*item, column, bytes)?;
        }
        (Codec::Vector, column @ ColumnBuilder::List(_)) => nested::vector_binary(column, bytes)?,
        (Codec::Hstore, column @ ColumnBuilder::Map(..)) => nested::hstore_binary(column, bytes)?,
        _ => return Err(ValueError::Mismatch),
    }
    Ok(())
}

#[inline]
fn integer(bytes: &[u8]) -> Result<i64> {
    match bytes.len() {
        4 => Ok(i32::from_be_bytes(array(bytes)?).into()),
        8 => Ok(i64::from_be_bytes(array(bytes)?)),
        2 => Ok(i16::from_be_bytes(array(bytes)?).into()),
        _ => Err(ValueError::Form),
    }
}

fn uuid(bytes: [u8; 16]) -> [u8; 36] {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    let mut out = [b'-'; 36];
    let mut places = (0..36).filter(|i| !matches!(i, 8 | 13 | 18 | 23));
    for b in bytes {
        for nibble in [b >> 4, b & 15] {
            if let Some(place) = places.next().and_then(|p| out.get_mut(p)) {
                *place = HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
            }
        }
    }
    out
}

const NEGATIVE: u16 = 0x4000;
const POSITIVE: u16 = 0;

/// A numeric as an unscaled integer: base-10000 digits, the first of them worth
/// 10000^weight.
pub fn decimal(bytes: &[u8], precision: u8, scale: u8) -> Result<i128> {
    let mut r = Reader(bytes);
    let mut next = || r.u16().map_err(|_| ValueError::Form);
    let (digits, weight, sign) = (next()?, next()? as i16, next()?);
    next()?;
    match sign {
        POSITIVE | NEGATIVE => {}
        // NaN and the infinities.
        0xC000 | 0xD000 | 0xF000 => return Err(ValueError::NotANumber),
        _ => return Err(ValueError::Form),
    }
    let scale = i32::from(scale);
    if let Some(value) = short(r.0, digits, i32::from(weight), scale) {
        let value = i128::from(if sign == NEGATIVE { -value } else { value });
        return match fits_precision(value, precision) {
            true => Ok(value),
            false => Err(ValueError::Digits),
        };
    }
    let mut value = 0i128;
    // The exponent of ten that a digit's unit has in the unscaled result.
    let mut exponent = i32::from(weight) * 4 + scale;
    for _ in 0..digits {
        let digit = i128::from(r.u16().map_err(|_| ValueError::Form)?);
        if digit > 9999 {
            return Err(ValueError::Form);
        }
        if exponent >= 0 {
            value = value
                .checked_mul(10_000)
                .and_then(|v| v.checked_add(digit))
                .ok_or(ValueError::Digits)?;
        } else if exponent > -4 {
            // The scale cuts through this digit; what it cuts off must be zero.
            let cut = power_of_ten(exponent.unsigned_abs()).ok_or(ValueError::Form)?;
            if digit % cut != 0 {
                return Err(ValueError::Digits);
            }
            value = power_of_ten((4 + exponent).unsigned_abs())
                .and_then(|p| value.checked_mul(p))
                .and_then(|v| v.checked_add(digit / cut))
                .ok_or(ValueError::Digits)?;
        } else if digit != 0 {
            return Err(ValueError::Digits);
        }
        exponent -= 4;
    }
    // The last digit read had the exponent one step up; zeros behind it are not sent.
    let behind = exponent + 4;
    if behind > 0 && value != 0 {
        value = power_of_ten(behind.unsigned_abs())
            .and_then(|p| value.checked_mul(p))
            .ok_or(ValueError::Digits)?;
    }
    if !fits_precision(value, precision) {
        return Err(ValueError::Digits);
    }
    Ok(if sign == NEGATIVE { -value } else { value })
}

/// The digits of a numeric as an unscaled integer, where 64 bits are enough on the way:
/// nearly every one, in a fraction of the time of 128.
#[inline]
fn short(bytes: &[u8], digits: u16, weight: i32, scale: i32) -> Option<i64> {
    let (groups, rest) = bytes.as_chunks::<2>();
    if digits > 4 || groups.len() != usize::from(digits) || !rest.is_empty() {
        return None;
    }
    let mut value = 0i64;
    for group in groups {
        let digit = i64::from(u16::from_be_bytes(*group));
        if digit > 9999 {
            return None;
        }
        value = value * 10_000 + digit;
    }
    // The exponent of ten that the last group's unit has in the unscaled result.
    let exponent = (weight - i32::from(digits) + 1) * 4 + scale;
    let factor = 10i64.checked_pow(exponent.unsigned_abs().min(19))?;
    if exponent >= 0 {
        value.checked_mul(factor)
    } else {
        (value % factor == 0).then(|| value / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(weight: i16, sign: u16, dscale: u16, digits: &[u16]) -> Vec<u8> {
        let head = [digits.len() as u16, weight as u16, sign, dscale];
        head.iter()
            .chain(digits)
            .flat_map(|v| v.to_be_bytes())
            .collect()
    }

    #[test]
    fn numerics_of_every_weight() {
        let d = |w, s, ds, digits: &[u16], p, sc| decimal(&numeric(w, s, ds, digits), p, sc);
        assert_eq!(d(0, 0, 2, &[], 12, 2), Ok(0));
        assert_eq!(d(0, NEGATIVE, 2, &[123, 4000], 12, 2), Ok(-12340));
        assert_eq!(d(1, 0, 0, &[1], 12, 2), Ok(1_000_000));
        assert_eq!(d(-1, 0, 4, &[1], 12, 4), Ok(1));
        assert_eq!(d(-2, 0, 8, &[1234], 12, 8), Ok(1234));
        assert_eq!(d(-2, 0, 6, &[1200], 12, 6), Ok(12));
        assert_eq!(d(-2, 0, 7, &[1234], 12, 6), Err(ValueError::Digits));
        assert_eq!(d(0, 0, 1, &[1, 5000], 5, 1), Ok(15));
        assert_eq!(d(0, 0, 0, &[100], 2, 0), Err(ValueError::Digits));
        assert_eq!(d(0, 0xC000, 0, &[], 2, 0), Err(ValueError::NotANumber));
        assert_eq!(
            d(
                9,
                0,
                0,
                &[99, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999],
                38,
                0
            ),
            Ok(10i128.pow(38) - 1)
        );
        assert_eq!(d(30, 0, 0, &[1], 38, 0), Err(ValueError::Digits));
        assert_eq!(d(i16::MIN, 0, 0, &[1], 38, 0), Err(ValueError::Digits));
        assert_eq!(
            decimal(&[0, 1, 0, 0, 0, 0, 0, 0], 38, 0),
            Err(ValueError::Form)
        );
    }

    #[test]
    fn rows_are_found_only_when_they_are_whole() {
        let bytes = [0, 2, 0, 0, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for n in 0..11 {
            assert_eq!(row(&bytes[..n]), Ok(Row::Partial), "{n}");
        }
        assert_eq!(row(&bytes), Ok(Row::Whole(2, &bytes[2..11], 11)));
        assert_eq!(row(&bytes[11..]), Ok(Row::End));
        assert_eq!(row(&[0xff, 0xfe]), Err(ValueError::Form));
        let uuid = uuid([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(uuid, *b"00010203-0405-0607-0809-0a0b0c0d0eff");
    }
}
