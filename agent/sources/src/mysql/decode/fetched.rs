//! Single values of the binary protocol's rows.

use super::decimal::parse_decimal;
use super::temporal::Parts;
use super::values::{
    Coerced, UNFIT, Value, push_bit, push_bytes, push_date, push_int, push_moment, push_padded,
    push_text_with,
};
use super::{DecodeError, Decoded, Input, spatial, text};
use caudal_model::ColumnBuilder;

/// Appends one cell of a binary-protocol row of the given protocol type.
pub fn push_fetched(
    value: &Value,
    column_type: u8,
    unsigned: bool,
    input: &mut Input<'_>,
    out: &mut ColumnBuilder,
    coerced: &mut Coerced,
) -> Decoded<usize> {
    if let Value::Zerofilled(inner, width) = value {
        return text::push_zerofilled(*width, out, |o| {
            push_fetched(inner, column_type, unsigned, input, o, coerced)
        });
    }
    match column_type {
        13 if *value == Value::Year => text::push_year(input.uint(2)?, out)?,
        1 | 2 | 3 | 8 | 9 | 13 => {
            let n = match column_type {
                1 => 1,
                2 | 13 => 2,
                3 | 9 => 4,
                _ => 8,
            };
            let v = input.uint(n)?;
            let shift = 64 - 8 * n as u32;
            push_int(v, (v << shift) as i64 >> shift, unsigned, out)?;
        }
        4 => text::push_float(f32::from_bits(input.u32()?), out)?,
        5 => text::push_double(f64::from_bits(input.u64()?), out)?,
        7 | 10 | 12 => {
            let parts = fetched_datetime(input)?;
            match value {
                Value::Date => push_date(parts, out, coerced)?,
                Value::DateTime(digits) | Value::Timestamp(digits) => {
                    push_moment(parts, *digits, out, coerced)?;
                }
                _ => push_moment(parts, 0, out, coerced)?,
            }
        }
        11 => return push_fetched_time(value, input, out),
        _ => {
            let bytes = input.lenenc_bytes()?;
            return match value {
                Value::Decimal { scale, .. } => match out {
                    ColumnBuilder::Decimal(c, ..) => {
                        c.push(parse_decimal(bytes, *scale)?);
                        Ok(0)
                    }
                    _ if bytes.is_ascii() => push_bytes(bytes, out),
                    _ => Err(UNFIT),
                },
                Value::Bit(_) => push_bit(bytes, out),
                Value::FixedBinary(n) => push_padded(bytes, usize::from(*n), out),
                Value::Binary => text::push_binary(bytes, out),
                Value::Geometry => spatial::push_geometry(bytes, out),
                Value::Vector => spatial::push_vector(bytes, out),
                // As it is stored: see `chunk`.
                Value::Text(charset) => push_text_with(out, charset.bound(bytes.len()), |o| {
                    charset.decode(bytes, o)
                }),
                _ if std::str::from_utf8(bytes).is_ok() => push_bytes(bytes, out),
                _ => Err(DecodeError::Value("a text value is not valid UTF-8")),
            };
        }
    }
    Ok(0)
}

fn fetched_datetime(input: &mut Input<'_>) -> Decoded<Parts> {
    let len = input.u8()?;
    let mut v = Input(input.take(len.into())?);
    let mut parts = (0, 0, 0, 0, 0, 0, 0);
    if len >= 4 {
        (parts.0, parts.1, parts.2) = (v.u16()?.into(), v.u8()?.into(), v.u8()?.into());
    }
    if len >= 7 {
        (parts.3, parts.4, parts.5) = (v.u8()?.into(), v.u8()?.into(), v.u8()?.into());
    }
    if len >= 11 {
        parts.6 = v.u32()?;
    }
    Ok(parts)
}

fn push_fetched_time(
    value: &Value,
    input: &mut Input<'_>,
    out: &mut ColumnBuilder,
) -> Decoded<usize> {
    let len = input.u8()?;
    let mut v = Input(input.take(len.into())?);
    let (mut negative, mut hms, mut us) = (false, (0u64, 0u32, 0u32), 0);
    if len >= 8 {
        negative = v.u8()? != 0;
        let days = u64::from(v.u32()?);
        hms = (
            days * 24 + u64::from(v.u8()?),
            v.u8()?.into(),
            v.u8()?.into(),
        );
    }
    if len >= 12 {
        us = v.u32()?;
    }
    let digits = if let Value::Time(d) = value { *d } else { 0 };
    text::push_time(negative, hms, us, digits, out)
}
