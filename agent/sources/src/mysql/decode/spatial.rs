//! Geometries and vectors.
//!
//! Both servers keep a geometry as its SRID in four bytes and its WKB, little-endian, and
//! longitude first whatever the reference system's own order of axes is. EWKB is the
//! same with the SRID inside, where it is not 0.

use super::text;
use super::values::{TOO_LONG, UNFIT};
use super::{DecodeError, Decoded, Input};
use caudal_model::ColumnBuilder;

const BAD: DecodeError = DecodeError::Value("a geometry is not the server's own form");
/// The bit of the type that says that a SRID follows.
const SRID_FOLLOWS: u32 = 0x2000_0000;

/// Appends a geometry as EWKB.
pub(super) fn push_geometry(bytes: &[u8], out: &mut ColumnBuilder) -> Decoded<usize> {
    let ColumnBuilder::Binary(c) = out else {
        return text::push_binary(bytes, out);
    };
    let mut input = Input(bytes);
    let (srid, order) = (input.u32().map_err(|_| BAD)?, input.u8().map_err(|_| BAD)?);
    let kind = input.u32().map_err(|_| BAD)?;
    if order != 1 {
        return Err(BAD);
    }
    if !c.fits(bytes.len()) {
        return Err(TOO_LONG);
    }
    c.push_with(|data| {
        data.push(1);
        if srid == 0 {
            data.extend_from_slice(&kind.to_le_bytes());
        } else {
            data.extend_from_slice(&(kind | SRID_FOLLOWS).to_le_bytes());
            data.extend_from_slice(&srid.to_le_bytes());
        }
        data.extend_from_slice(input.rest());
        Ok::<_, DecodeError>(())
    })?;
    Ok(bytes.len())
}

/// Appends a vector: floats of four bytes, little-endian.
pub(super) fn push_vector(bytes: &[u8], out: &mut ColumnBuilder) -> Decoded<usize> {
    if !matches!(out, ColumnBuilder::List(_)) {
        return text::push_binary(bytes, out);
    }
    if !bytes.len().is_multiple_of(4) {
        return Err(UNFIT);
    }
    let ColumnBuilder::Float32(items) = out.list_items() else {
        return Err(UNFIT);
    };
    for value in bytes.chunks_exact(4) {
        items.push(f32::from_bits(super::little_endian(value) as u32));
    }
    out.close_list();
    Ok(bytes.len())
}
