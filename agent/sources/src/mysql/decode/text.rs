//! Values as the text that a SELECT shows, for columns that are carried `as = "string"`, and
//! the few other lake types that a user may choose.

use super::json::double_text;
use super::temporal::write_time;
use super::values::{TOO_LONG, UNFIT, push_bytes, push_text_with};
use super::{DecodeError, Decoded};
use caudal_model::{ColumnBuilder, LakeType};
use std::io::Write as _;

pub(super) const NOT_TEXT: DecodeError =
    DecodeError::Value("a value of bytes is not UTF-8, and its column is carried as a string");

/// Appends a short text.
pub(super) fn push(
    out: &mut ColumnBuilder,
    write: impl FnOnce(&mut Vec<u8>) -> Decoded<()>,
) -> Decoded<usize> {
    push_text_with(out, 512, write)
}

/// Appends bytes, which must be UTF-8 in a column of text.
pub(super) fn push_binary(bytes: &[u8], out: &mut ColumnBuilder) -> Decoded<usize> {
    if matches!(out, ColumnBuilder::Utf8(_)) && std::str::from_utf8(bytes).is_err() {
        return Err(NOT_TEXT);
    }
    push_bytes(bytes, out)
}

/// Appends a float.
pub(super) fn push_float(v: f32, out: &mut ColumnBuilder) -> Decoded<()> {
    match out {
        ColumnBuilder::Float32(c) => c.push(v),
        ColumnBuilder::Float64(c) => c.push(v.into()),
        out => {
            push(out, |o| {
                o.extend_from_slice(float_text(v).ok_or(UNFIT)?.as_bytes());
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Appends a double.
pub(super) fn push_double(v: f64, out: &mut ColumnBuilder) -> Decoded<()> {
    match out {
        ColumnBuilder::Float64(c) => c.push(v),
        out => {
            push(out, |o| {
                o.extend_from_slice(shown(v).ok_or(UNFIT)?.as_bytes());
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// The server's text of a double: that of JSON, without the `.0` of integers.
fn shown(v: f64) -> Option<String> {
    let text = double_text(v)?;
    Some(match text.strip_suffix(".0") {
        Some(whole) => whole.to_owned(),
        None => text,
    })
}

/// The server shows a float with six digits, by which not every float can be told.
fn float_text(v: f32) -> Option<String> {
    let rounded: f64 = format!("{:.5e}", f64::from(v)).parse().ok()?;
    shown(rounded)
}

/// Appends a year, which has four digits.
pub(super) fn push_year(year: u64, out: &mut ColumnBuilder) -> Decoded<()> {
    if matches!(out, ColumnBuilder::Utf8(_)) {
        push(out, |o| write!(o, "{year:04}").map_err(|_| UNFIT))?;
        return Ok(());
    }
    super::values::push_int(year, year as i64, true, out)
}

/// Appends a time: as text, or as the microseconds of a day if it is one's.
pub(super) fn push_time(
    negative: bool,
    hms: (u64, u32, u32),
    us: u32,
    digits: u8,
    out: &mut ColumnBuilder,
) -> Decoded<usize> {
    if let ColumnBuilder::Time64(c) = out {
        let (h, m, s) = hms;
        let seconds = h * 3600 + u64::from(m * 60 + s);
        let us = seconds.saturating_mul(1_000_000) + u64::from(us);
        if (negative && us > 0) || us > 86_400_000_000 {
            return Err(DecodeError::Value("a time is beyond a day"));
        }
        c.push(us as i64);
        return Ok(0);
    }
    push_text_with(out, 32, |o| {
        write_time(o, negative, hms, us, digits);
        Ok(())
    })
}

/// Appends a number's text with zeros before it.
pub(super) fn push_zerofilled(
    width: u8,
    out: &mut ColumnBuilder,
    push_number: impl FnOnce(&mut ColumnBuilder) -> Decoded<usize>,
) -> Decoded<usize> {
    let mut number = ColumnBuilder::new(&LakeType::Utf8);
    push_number(&mut number)?;
    let caudal_model::column::CellRef::Text(digits) = number.last() else {
        return Err(UNFIT);
    };
    let missing = usize::from(width).saturating_sub(digits.len());
    let ColumnBuilder::Utf8(c) = out else {
        return Err(UNFIT);
    };
    if !c.fits(digits.len() + missing) {
        return Err(TOO_LONG);
    }
    c.push_with(|o| {
        o.extend(std::iter::repeat_n(b'0', missing));
        o.extend_from_slice(digits);
        Ok::<_, DecodeError>(())
    })?;
    Ok(digits.len() + missing)
}
