//! Values as the server prints them, into column builders.
//!
//! The forms are those of the pinned session settings: ISO dates in UTC, hex
//! bytea, shortest floats, C money.

use super::nested;
use super::value::{
    Codec, DAY_US, EPOCH_DAYS, EPOCH_US, ValueError, days_from_civil, fits_precision, power_of_ten,
};
use caudal_model::ColumnBuilder;

type Result<T> = std::result::Result<T, ValueError>;

/// Appends one value; on an error the builder is as it was.
#[inline]
pub fn append(codec: Codec, column: &mut ColumnBuilder, text: &[u8]) -> Result<()> {
    match (codec, column) {
        (Codec::Text | Codec::Jsonb | Codec::Uuid, ColumnBuilder::Utf8(c)) => {
            push_text(c, text)?;
        }
        (Codec::Int | Codec::Oid, ColumnBuilder::Int32(c)) => {
            c.push(i32::try_from(integer(text)?).map_err(|_| ValueError::Range)?);
        }
        (Codec::Int | Codec::Oid, ColumnBuilder::Int64(c)) => c.push(integer(text)?),
        (Codec::Int, ColumnBuilder::Int16(c)) => {
            c.push(i16::try_from(integer(text)?).map_err(|_| ValueError::Range)?);
        }
        (Codec::Numeric, ColumnBuilder::Decimal(c, precision, scale)) => {
            c.push(decimal(text, *precision, *scale)?);
        }
        (Codec::Money, ColumnBuilder::Decimal(c, precision, scale)) => {
            c.push(money(text, *precision, *scale)?);
        }
        (Codec::Timestamp, ColumnBuilder::Timestamp(c) | ColumnBuilder::TimestampUtc(c)) => {
            c.push(timestamp(text)?);
        }
        (Codec::Date, ColumnBuilder::Date32(c)) => c.push(date(text)?),
        (Codec::Time, ColumnBuilder::Time64(c)) => {
            let (us, rest) = clock(text)?;
            if !rest.is_empty() {
                return Err(ValueError::Form);
            }
            c.push(us);
        }
        (Codec::Bool, ColumnBuilder::Boolean(c)) => c.push(match text {
            b"t" => true,
            b"f" => false,
            _ => return Err(ValueError::Form),
        }),
        (Codec::Float4, ColumnBuilder::Float32(c)) => c.push(float::<f32>(text)?),
        (Codec::Float4, ColumnBuilder::Float64(c)) => c.push(f64::from(float::<f32>(text)?)),
        (Codec::Float8, ColumnBuilder::Float64(c)) => c.push(float::<f64>(text)?),
        (Codec::Bytea, ColumnBuilder::Binary(c)) => {
            let hex = text.strip_prefix(b"\\x").ok_or(ValueError::Form)?;
            if !c.fits(hex.len() / 2) {
                return Err(ValueError::Long);
            }
            c.push_with(|out| unhex(hex, out))?;
        }
        (Codec::Ewkb, ColumnBuilder::Binary(c)) => {
            if !c.fits(text.len() / 2) {
                return Err(ValueError::Long);
            }
            c.push_with(|out| unhex(text, out))?;
        }
        (Codec::List(item, delimiter), column @ ColumnBuilder::List(_)) => {
            nested::array_text(*item, delimiter, column, text)?;
        }
        (Codec::Vector, column @ ColumnBuilder::List(_)) => nested::vector_text(column, text)?,
        (Codec::Hstore, column @ ColumnBuilder::Map(..)) => nested::hstore_text(column, text)?,
        _ => return Err(ValueError::Mismatch),
    }
    Ok(())
}

/// Appends text, checking that it is UTF-8.
#[inline]
pub fn push_text(c: &mut caudal_model::column::Variable, text: &[u8]) -> Result<()> {
    if !c.fits(text.len()) {
        return Err(ValueError::Long);
    }
    std::str::from_utf8(text).map_err(|_| ValueError::Utf8)?;
    c.push(text);
    Ok(())
}

fn unhex(hex: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let (pairs, rest) = hex.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(ValueError::Form);
    }
    out.reserve(pairs.len());
    for [high, low] in pairs {
        out.push(nibble(*high)? << 4 | nibble(*low)?);
    }
    Ok(())
}

#[inline]
fn nibble(b: u8) -> Result<u8> {
    match b {
        b'0'..=b'9' => Ok(b - b'0'),
        b'a'..=b'f' => Ok(b - b'a' + 10),
        b'A'..=b'F' => Ok(b - b'A' + 10),
        _ => Err(ValueError::Form),
    }
}

/// A float as the server prints it.
pub(super) fn float<T: std::str::FromStr + From<f32>>(text: &[u8]) -> Result<T> {
    match text {
        b"NaN" => Ok(f32::NAN.into()),
        b"Infinity" => Ok(f32::INFINITY.into()),
        b"-Infinity" => Ok(f32::NEG_INFINITY.into()),
        _ => std::str::from_utf8(text)
            .ok()
            .and_then(|t| t.parse().ok())
            .ok_or(ValueError::Form),
    }
}

#[inline]
fn sign(text: &[u8]) -> (bool, &[u8]) {
    match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    }
}

/// A signed 64-bit integer.
#[inline]
pub fn integer(text: &[u8]) -> Result<i64> {
    let (negative, digits) = sign(text);
    if digits.is_empty() {
        return Err(ValueError::Form);
    }
    // Counted downwards, because the least value has no positive twin.
    let mut value = 0i64;
    for b in digits {
        if !b.is_ascii_digit() {
            return Err(ValueError::Form);
        }
        let digit = i64::from(b - b'0');
        value = value
            .checked_mul(10)
            .and_then(|v| v.checked_sub(digit))
            .ok_or(ValueError::Range)?;
    }
    if negative {
        Ok(value)
    } else {
        value.checked_neg().ok_or(ValueError::Range)
    }
}

/// A numeric as an unscaled integer of the given scale.
pub fn decimal(text: &[u8], precision: u8, scale: u8) -> Result<i128> {
    if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") {
        return Err(ValueError::NotANumber);
    }
    let (negative, digits) = sign(text);
    let mut value = 0i128;
    let (mut seen, mut point, mut fraction) = (false, false, 0u8);
    // Up to 18 digits fit 64 bits, whose arithmetic is far cheaper.
    let mut small = 0u64;
    let mut held = 0u32;
    for b in digits {
        match b {
            b'0'..=b'9' => {
                seen = true;
                if point {
                    if fraction == scale {
                        if *b != b'0' {
                            return Err(ValueError::Digits);
                        }
                        continue;
                    }
                    fraction += 1;
                }
                if held == 18 {
                    value = absorb(value, small, held)?;
                    (small, held) = (0, 0);
                }
                small = small * 10 + u64::from(b - b'0');
                held += 1;
            }
            b'.' if !point => point = true,
            _ => return Err(ValueError::Form),
        }
    }
    if !seen {
        return Err(ValueError::Form);
    }
    value = absorb(value, small, held)?;
    let missing = u32::from(scale.saturating_sub(fraction));
    if missing > 0 {
        value = power_of_ten(missing)
            .and_then(|p| value.checked_mul(p))
            .ok_or(ValueError::Digits)?;
    }
    if !fits_precision(value, precision) {
        return Err(ValueError::Digits);
    }
    Ok(if negative { -value } else { value })
}

#[inline]
fn absorb(value: i128, small: u64, digits: u32) -> Result<i128> {
    if value == 0 {
        return Ok(i128::from(small));
    }
    power_of_ten(digits)
        .and_then(|p| value.checked_mul(p))
        .and_then(|v| v.checked_add(i128::from(small)))
        .ok_or(ValueError::Digits)
}

/// Money in the C locale: `-$1,234.56`.
fn money(text: &[u8], precision: u8, scale: u8) -> Result<i128> {
    let mut plain = [0u8; 40];
    let mut len = 0;
    for b in text.iter().filter(|b| !matches!(b, b'$' | b',')) {
        *plain.get_mut(len).ok_or(ValueError::Form)? = *b;
        len += 1;
    }
    decimal(plain.get(..len).unwrap_or_default(), precision, scale)
}

/// Reads `count` or more digits (at most nine) from the front.
#[inline]
fn number(text: &[u8], least: usize) -> Result<(u32, &[u8])> {
    let mut value = 0u32;
    let mut n = 0;
    while let Some(b) = text.get(n).filter(|b| b.is_ascii_digit()) {
        if n == 9 {
            return Err(ValueError::Form);
        }
        value = value * 10 + u32::from(b - b'0');
        n += 1;
    }
    if n < least {
        return Err(ValueError::Form);
    }
    Ok((value, text.get(n..).unwrap_or_default()))
}

#[inline]
fn after(text: &[u8], byte: u8) -> Result<&[u8]> {
    match text.split_first() {
        Some((b, rest)) if *b == byte => Ok(rest),
        _ => Err(ValueError::Form),
    }
}

/// Year, month and day from the front of an ISO date.
#[inline]
fn civil(text: &[u8]) -> Result<(i64, u32, u32, &[u8])> {
    let (year, rest) = number(text, 4)?;
    let (month, rest) = number(after(rest, b'-')?, 2)?;
    let (day, rest) = number(after(rest, b'-')?, 2)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err(ValueError::Form);
    }
    Ok((i64::from(year), month, day, rest))
}

/// The year as astronomers count it, where 1 BC is 0.
fn era(year: i64, rest: &[u8]) -> Result<i64> {
    match rest {
        b"" => Ok(year),
        b" BC" => Ok(1 - year),
        _ => Err(ValueError::Form),
    }
}

/// Days since 1970.
pub fn date(text: &[u8]) -> Result<i32> {
    match text {
        b"infinity" => return Ok(i32::MAX),
        b"-infinity" => return Ok(-i32::MAX),
        _ => {}
    }
    let (year, month, day, rest) = civil(text)?;
    let days = days_from_civil(era(year, rest)?, month, day);
    i32::try_from(days).map_err(|_| ValueError::Late)
}

/// Microseconds since midnight from the front of an ISO time.
#[inline]
fn clock(text: &[u8]) -> Result<(i64, &[u8])> {
    let (hours, rest) = number(text, 2)?;
    let (minutes, rest) = number(after(rest, b':')?, 2)?;
    let (seconds, mut rest) = number(after(rest, b':')?, 2)?;
    if hours > 24 || minutes > 59 || seconds > 60 {
        return Err(ValueError::Form);
    }
    let mut micros = 0u32;
    if let Some(digits) = rest.strip_prefix(b".") {
        let (value, behind) = number(digits, 1)?;
        let n = digits.len() - behind.len();
        let missing = u32::try_from(n)
            .ok()
            .and_then(|n| 6u32.checked_sub(n))
            .ok_or(ValueError::Form)?;
        micros = value * 10u32.pow(missing);
        rest = behind;
    }
    let seconds = i64::from(hours) * 3600 + i64::from(minutes) * 60 + i64::from(seconds);
    Ok((seconds * 1_000_000 + i64::from(micros), rest))
}

/// Microseconds since 1970, of a timestamp without a zone or in UTC.
pub fn timestamp(text: &[u8]) -> Result<i64> {
    match text {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(-i64::MAX),
        _ => {}
    }
    let (year, month, day, rest) = civil(text)?;
    let (us, rest) = clock(after(rest, b' ')?)?;
    let rest = rest.strip_prefix(b"+00").unwrap_or(rest);
    let days = days_from_civil(era(year, rest)?, month, day);
    // Through 128 bits: the product overflows 64 before the sum returns into them.
    let total = i128::from(days) * i128::from(DAY_US) + i128::from(us);
    finite(total)
}

/// Checks that microseconds since 1970 fit, and are not what stands for infinity.
pub fn finite(us: i128) -> Result<i64> {
    i64::try_from(us)
        .ok()
        .filter(|v| *v != i64::MAX && *v > -i64::MAX)
        .ok_or(ValueError::Late)
}

/// Days since 1970 of days since 2000.
pub fn days_since_2000(days: i32) -> Result<i32> {
    match days {
        i32::MAX => Ok(i32::MAX),
        i32::MIN => Ok(-i32::MAX),
        _ => days.checked_add(EPOCH_DAYS).ok_or(ValueError::Late),
    }
}

/// Microseconds since 1970 of microseconds since 2000.
pub fn micros_since_2000(us: i64) -> Result<i64> {
    match us {
        i64::MAX => Ok(i64::MAX),
        i64::MIN => Ok(-i64::MAX),
        _ => finite(i128::from(us) + i128::from(EPOCH_US)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_reach_their_limits() {
        assert_eq!(integer(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(integer(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(integer(b"9223372036854775808"), Err(ValueError::Range));
        for bad in [&b""[..], b"-", b"1.0", b"+1", b" 1"] {
            assert_eq!(integer(bad), Err(ValueError::Form));
        }
    }

    #[test]
    fn decimals_keep_every_digit_or_fail() {
        assert_eq!(decimal(b"-123.40", 12, 2), Ok(-12340));
        assert_eq!(decimal(b"5", 12, 2), Ok(500));
        assert_eq!(decimal(b"0.10", 2, 1), Ok(1));
        assert_eq!(decimal(b"0.11", 2, 1), Err(ValueError::Digits));
        assert_eq!(decimal(b"100", 2, 0), Err(ValueError::Digits));
        assert_eq!(decimal(b"NaN", 2, 0), Err(ValueError::NotANumber));
        let nines = [b'9'; 38];
        assert_eq!(decimal(&nines, 38, 0), Ok(10i128.pow(38) - 1));
        assert_eq!(decimal(&[b'9'; 39], 38, 0), Err(ValueError::Digits));
        assert_eq!(decimal(&[b'9'; 60], 38, 0), Err(ValueError::Digits));
        for bad in [&b""[..], b".", b"1.2.3", b"1e5", b"--1"] {
            assert_eq!(decimal(bad, 38, 2), Err(ValueError::Form));
        }
        assert_eq!(
            money(b"-$92,233,720,368,547,758.08", 19, 2),
            Ok(i128::from(i64::MIN))
        );
    }

    #[test]
    fn dates_before_christ_and_beyond_the_calendar() {
        assert_eq!(date(b"1970-01-01"), Ok(0));
        assert_eq!(date(b"2000-02-29"), Ok(11_016));
        assert_eq!(date(b"0001-01-01"), Ok(-719_162));
        assert_eq!(date(b"0001-12-31 BC"), Ok(-719_163));
        assert_eq!(date(b"4714-11-24 BC"), Ok(-2_440_588));
        assert_eq!(date(b"5874897-12-31"), days_since_2000(2_145_031_948));
        assert_eq!(date(b"infinity"), days_since_2000(i32::MAX));
        assert_eq!(date(b"-infinity"), days_since_2000(i32::MIN));
        assert_eq!(date(b"2000-13-01"), Err(ValueError::Form));
    }

    #[test]
    fn timestamps_to_the_last_microsecond() {
        assert_eq!(timestamp(b"1970-01-01 00:00:00"), Ok(0));
        assert_eq!(
            timestamp(b"2024-02-29 23:59:59.123+00"),
            Ok(1_709_251_199_123_000)
        );
        assert_eq!(timestamp(b"1969-12-31 23:59:59.999999"), Ok(-1));
        assert_eq!(
            timestamp(b"294276-12-31 23:59:59.999999"),
            Err(ValueError::Late)
        );
        assert_eq!(timestamp(b"294247-01-10 04:00:54.775806"), Ok(i64::MAX - 1));
        assert_eq!(
            timestamp(b"0044-03-15 12:00:00+00 BC"),
            Ok(-63_517_780_800_000_000)
        );
        assert_eq!(timestamp(b"infinity"), Ok(i64::MAX));
        assert_eq!(timestamp(b"2024-02-29"), Err(ValueError::Form));
        assert_eq!(clock(b"24:00:00"), Ok((DAY_US, &b""[..])));
        assert_eq!(clock(b"00:00:00.1234567"), Err(ValueError::Form));
    }
}
