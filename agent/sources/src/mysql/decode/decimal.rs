//! Decimals of the log's packed form and of the protocol's text.

use super::values::UNFIT;
use super::{DecodeError, Decoded, Input, big_endian};

const DIGIT_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

/// Bytes of a decimal in the log; `None` for an impossible type.
pub fn decimal_len(precision: u8, scale: u8) -> Option<usize> {
    let (p, s) = (usize::from(precision), usize::from(scale));
    let whole = p.checked_sub(s)?;
    let part = |digits: usize| Some(digits / 9 * 4 + DIGIT_BYTES.get(digits % 9)?);
    if p == 0 || p > 65 {
        None
    } else {
        Some(part(whole)? + part(s)?)
    }
}

/// Calls `each` with the value and the number of digits of each group, most significant first.
pub(super) fn decimal_groups(
    bytes: &[u8],
    precision: u8,
    scale: u8,
    mut each: impl FnMut(u32, usize),
) -> Decoded<bool> {
    const BAD: DecodeError = DecodeError::Malformed("a decimal");
    let mut input = Input(bytes);
    let first = *bytes.first().ok_or(BAD)?;
    let negative = first & 0x80 == 0;
    let mask: u32 = if negative { u32::MAX } else { 0 };
    let mut at_start = true;
    let mut group = |digits: usize| -> Decoded<()> {
        let n = *DIGIT_BYTES.get(digits).ok_or(BAD)?;
        if n == 0 {
            return Ok(());
        }
        let mut v = big_endian(input.take(n)?) as u32;
        let width = 8 * n as u32;
        if at_start {
            v ^= 1 << (width - 1);
            at_start = false;
        }
        v ^= if width == 32 {
            mask
        } else {
            mask & ((1 << width) - 1)
        };
        if v >= 10u32.pow(digits as u32) {
            return Err(BAD);
        }
        each(v, digits);
        Ok(())
    };
    let whole = usize::from(precision.saturating_sub(scale));
    let scale = usize::from(scale);
    group(whole % 9)?;
    for _ in 0..whole / 9 {
        group(9)?;
    }
    for _ in 0..scale / 9 {
        group(9)?;
    }
    group(scale % 9)?;
    Ok(negative)
}

/// A decimal of the log as its unscaled value; at most 38 digits.
pub fn decimal_value(bytes: &[u8], precision: u8, scale: u8) -> Decoded<i128> {
    if precision > 38 || scale > precision {
        return Err(UNFIT);
    }
    let mut v: i128 = 0;
    let negative = decimal_groups(bytes, precision, scale, |group, digits| {
        v = v * 10i128.pow(digits as u32) + i128::from(group);
    })?;
    Ok(if negative { -v } else { v })
}

/// A decimal of the log as the server prints it.
pub fn decimal_text(bytes: &[u8], precision: u8, scale: u8, out: &mut Vec<u8>) -> Decoded<()> {
    let mut digits = String::with_capacity(usize::from(precision));
    let negative = decimal_groups(bytes, precision, scale, |group, n| {
        use std::fmt::Write;
        let _ = write!(digits, "{group:0n$}");
    })?;
    let point = digits.len().saturating_sub(usize::from(scale));
    let (whole, part) = digits.split_at_checked(point).unwrap_or((&digits, ""));
    if negative {
        out.push(b'-');
    }
    let whole = whole.trim_start_matches('0');
    out.extend_from_slice(if whole.is_empty() { "0" } else { whole }.as_bytes());
    if !part.is_empty() {
        out.push(b'.');
        out.extend_from_slice(part.as_bytes());
    }
    Ok(())
}

/// The unscaled value of a decimal's text.
pub(in crate::mysql) fn parse_decimal(text: &[u8], scale: u8) -> Decoded<i128> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    if let Some(v) = parse_short_decimal(digits, scale) {
        return Ok(if negative { -v } else { v }.into());
    }
    let mut v: i128 = 0;
    let mut after: Option<u8> = None;
    for b in digits {
        match b {
            b'.' if after.is_none() => after = Some(0),
            b'0'..=b'9' => {
                v = v
                    .checked_mul(10)
                    .and_then(|v| v.checked_add(i128::from(b - b'0')))
                    .ok_or(UNFIT)?;
                after = after.map(|n| n.saturating_add(1));
            }
            _ => return Err(UNFIT),
        }
    }
    let missing = scale.checked_sub(after.unwrap_or(0)).ok_or(UNFIT)?;
    let v = v
        .checked_mul(10i128.checked_pow(missing.into()).ok_or(UNFIT)?)
        .ok_or(UNFIT)?;
    Ok(if negative { -v } else { v })
}

/// The common case, in which nothing can overflow: at most 18 digits, with all their decimals.
fn parse_short_decimal(digits: &[u8], scale: u8) -> Option<i64> {
    let scale = usize::from(scale);
    let point = digits.len().checked_sub(scale + 1).filter(|_| scale > 0);
    if digits.is_empty() || digits.len() > 18 || scale > 0 && point.is_none() {
        return None;
    }
    let mut v = 0i64;
    for (i, b) in digits.iter().enumerate() {
        match b {
            b'0'..=b'9' if Some(i) != point => v = v * 10 + i64::from(b - b'0'),
            b'.' if Some(i) == point => {}
            _ => return None,
        }
    }
    Some(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_decimals() {
        for (text, scale, value) in [
            ("1.50", 2, 150),
            ("-0.07", 2, -7),
            ("12", 0, 12),
            ("12", 2, 1200),
            ("1.5", 2, 150),
            ("0.00", 2, 0),
            (
                "-99999999999999999999.99",
                2,
                -9_999_999_999_999_999_999_999,
            ),
            ("123456789012345678", 0, 123_456_789_012_345_678),
        ] {
            assert_eq!(parse_decimal(text.as_bytes(), scale), Ok(value), "{text}");
        }
        for (bad, scale) in [("1.505", 2), ("1..0", 1), ("a", 0), ("1.5", 0), ("1e5", 1)] {
            assert!(parse_decimal(bad.as_bytes(), scale).is_err(), "{bad}");
        }
    }
}
