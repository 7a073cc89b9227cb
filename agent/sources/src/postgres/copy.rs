//! A copy's rows, as they arrive.

use super::decode::binary::{self, Row};
use super::decode::pgoutput::Reader;
use super::decode::text;
use super::decode::value::{Codec, ValueError};
use super::mapping::CopyForm;
use bytes::{Buf, Bytes, BytesMut};
use caudal_model::{ChangeBuffer, Error, Kind, Op, Result, Slot, TableName, TableSchema};
use std::pin::Pin;
use std::sync::Arc;
use tokio_postgres::CopyOutStream;

/// A copy that is being read.
pub(super) struct Copy {
    /// What the server sends.
    pub stream: Pin<Box<CopyOutStream>>,
    /// The version that the rows have.
    pub schema: Arc<TableSchema>,
    /// How each column is read.
    pub columns: Vec<(Codec, CopyForm)>,
    /// Columns whose size stands in one more cell behind the row where it is past the limit,
    /// while their own cell is null.
    pub guards: Vec<usize>,
    /// The most bytes of one value.
    pub value_bytes: usize,
    /// The table's place in the buffer.
    pub slot: Option<Slot>,
    /// The header has not come yet.
    pub header: bool,
    /// What arrived and is not decoded yet.
    pub rest: Bytes,
    /// The end of the copy was read.
    pub ended: bool,
}

impl Copy {
    /// Takes what has arrived.
    pub fn receive(&mut self, bytes: Bytes) {
        if self.rest.is_empty() {
            self.rest = bytes;
        } else {
            let mut joined = BytesMut::with_capacity(self.rest.len() + bytes.len());
            joined.extend_from_slice(&self.rest);
            joined.extend_from_slice(&bytes);
            self.rest = joined.freeze();
        }
    }

    /// Decodes whole rows; `true` if the buffer is full and rows may be left.
    pub fn decode(&mut self, into: &mut ChangeBuffer) -> Result<bool> {
        // Taken, not cloned: rows come one in a buffer, and shared counts cost more than a cell.
        let mut held = std::mem::take(&mut self.rest);
        let outcome = self.decode_from(&mut held, into);
        self.rest = held;
        outcome
    }

    fn decode_from(&mut self, held: &mut Bytes, into: &mut ChangeBuffer) -> Result<bool> {
        let mut at = 0;
        let table = &self.schema.table;
        if self.header {
            match binary::header_len(held) {
                Ok(Some(len)) => {
                    at = len;
                    self.header = false;
                }
                Ok(None) => return Ok(false),
                Err(e) => return Err(malformed(table, e)),
            }
        }
        let mut full = false;
        while !self.ended {
            if into.is_full() {
                full = true;
                break;
            }
            let bytes = held.get(at..).unwrap_or_default();
            match binary::row(bytes).map_err(|e| malformed(table, e))? {
                Row::Whole(count, cells, len) => {
                    if usize::from(count) != self.columns.len() + self.guards.len() {
                        return Err(malformed(table, ValueError::Form));
                    }
                    let slot = match self.slot {
                        Some(slot) if into.is_slot_of(slot, &self.schema) => slot,
                        _ => *self.slot.insert(into.slot(&self.schema)),
                    };
                    self.append_row(into, slot, cells)?;
                    at += len;
                }
                Row::End => {
                    at += 2;
                    self.ended = true;
                }
                Row::Partial => break,
            }
        }
        held.advance(at.min(held.len()));
        Ok(full)
    }

    #[inline]
    fn append_row(&self, into: &mut ChangeBuffer, slot: Slot, cells: &[u8]) -> Result<()> {
        let mut row = into.row(slot, Op::Snapshot);
        let mut cells = Reader(cells);
        for (index, (codec, form)) in self.columns.iter().enumerate() {
            let outcome = match binary::cell(&mut cells) {
                Ok(None) => {
                    row.column(index).push_null();
                    continue;
                }
                Ok(Some(value)) if value.len() > self.value_bytes => Err(ValueError::Large {
                    bytes: value.len(),
                    limit: self.value_bytes,
                }),
                Ok(Some(value)) => {
                    if codec.is_variable() {
                        row.count(value.len());
                    }
                    // What was selected as text is text.
                    match form {
                        CopyForm::Plain => binary::append(*codec, row.column(index), value),
                        CopyForm::Cast | CopyForm::Output => {
                            text::append(*codec, row.column(index), value)
                        }
                    }
                }
                Err(e) => Err(e),
            };
            outcome.map_err(|e| cell_error(&self.schema, index, e))?;
        }
        for index in &self.guards {
            let size = binary::cell(&mut cells).map_err(|e| malformed(&self.schema.table, e))?;
            if let Some(size) = size {
                let bytes = size.first_chunk().map_or(0, |b| u32::from_be_bytes(*b)) as usize;
                let limit = self.value_bytes;
                let large = ValueError::Large { bytes, limit };
                return Err(cell_error(&self.schema, *index, large));
            }
        }
        row.finish();
        Ok(())
    }
}

fn cell_error(schema: &TableSchema, index: usize, e: ValueError) -> Error {
    let column = schema.columns.get(index).map_or("?", |c| c.name.as_str());
    let table = &schema.table;
    let hint = if matches!(e, ValueError::Large { .. }) {
        format!(
            "raise limits.value_bytes or add {column} to exclude_columns of this table, then run `caudal resnapshot {table}`"
        )
    } else if e.text_helps() {
        format!(
            "set as = {{ {column} = \"string\" }} for this table, then run `caudal resnapshot {table}`"
        )
    } else {
        format!(
            "add {column} to exclude_columns of this table or mend the value, then run `caudal resnapshot {table}`"
        )
    };
    Error::data(table, format!("column {column} {e}")).hint(hint)
}

fn malformed(table: &TableName, e: ValueError) -> Error {
    Error::fatal(
        Kind::Corrupt,
        format!("table {table}: the server's copy {e}"),
    )
}
