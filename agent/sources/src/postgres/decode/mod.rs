//! Decoders: bytes in, builder calls out.
//!
//! Everything here is pure and checks every bound, because the bytes come from
//! outside: no input may panic. `pgoutput` frames the log's messages, `text` reads
//! the values that they carry, `binary` the values of `COPY`, `nested` what holds values in
//! either form, and `oversize` drops values past the limit before they are held. `text` and `binary` must give the same cells for the same value.

pub mod binary;
pub mod nested;
pub mod oversize;
pub mod pgoutput;
pub mod text;
pub mod value;
