//! Column builders that decoders append to, cell by cell.
//!
//! Arrow's own builders cannot take a cell back. A decoder may fail in the
//! middle of a row, and a rolled-back row must vanish, so these keep plain
//! vectors and can be truncated; the vectors become Arrow buffers without a copy.

use crate::LakeType;
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Decimal128Array, ListArray,
    MapArray, PrimitiveArray, StringArray, StructArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Field, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, Time64MicrosecondType, TimestampMicrosecondType,
};
use std::sync::Arc;

/// Validity of a column's cells; nothing is stored until the first null.
#[derive(Debug, Default)]
struct Validity {
    bits: Option<BooleanBufferBuilder>,
    len: usize,
}

impl Validity {
    #[inline]
    fn valid(&mut self) {
        if let Some(b) = &mut self.bits {
            b.append(true);
        }
        self.len += 1;
    }
    #[inline]
    fn null(&mut self) {
        let len = self.len;
        let bits = self.bits.get_or_insert_with(|| {
            let mut b = BooleanBufferBuilder::new(len.max(1024));
            b.append_n(len, true);
            b
        });
        bits.append(false);
        self.len += 1;
    }
    fn last(&self) -> bool {
        let bits = self.bits.as_ref();
        self.len > 0 && bits.is_none_or(|b| b.get_bit(self.len - 1))
    }
    fn truncate(&mut self, len: usize) {
        if let Some(b) = &mut self.bits {
            b.truncate(len);
        }
        self.len = len;
    }
    fn take(&mut self) -> Option<NullBuffer> {
        self.len = 0;
        self.bits.take().map(|mut b| NullBuffer::new(b.finish()))
    }
}

/// Cells of a fixed width.
#[derive(Debug)]
pub struct Fixed<T> {
    values: Vec<T>,
    validity: Validity,
}

impl<T: Copy + Default> Fixed<T> {
    fn new() -> Self {
        Fixed {
            values: Vec::new(),
            validity: Validity::default(),
        }
    }
    /// Appends a cell.
    #[inline]
    pub fn push(&mut self, v: T) {
        self.values.push(v);
        self.validity.valid();
    }
    #[inline]
    fn null(&mut self) {
        self.values.push(T::default());
        self.validity.null();
    }
    fn last(&self) -> Option<T> {
        self.values.last().copied().filter(|_| self.validity.last())
    }
    fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.validity.truncate(len);
    }
}

fn primitive<P: ArrowPrimitiveType>(c: &mut Fixed<P::Native>) -> PrimitiveArray<P> {
    let values = std::mem::take(&mut c.values);
    PrimitiveArray::new(ScalarBuffer::from(values), c.validity.take())
}

/// Cells of any length: text and bytes.
#[derive(Debug)]
pub struct Variable {
    offsets: Vec<i32>,
    data: Vec<u8>,
    validity: Validity,
}

impl Variable {
    fn new() -> Self {
        Variable {
            offsets: vec![0],
            data: Vec::new(),
            validity: Validity::default(),
        }
    }
    #[inline]
    fn close(&mut self) {
        // ChangeBuffer is flushed far below 2 GiB; a single cell past it is
        // refused by `fits` before it is appended.
        self.offsets.push(self.data.len() as i32);
    }
    /// Appends a cell. In a text column the bytes must be UTF-8.
    #[inline]
    pub fn push(&mut self, v: &[u8]) {
        self.data.extend_from_slice(v);
        self.close();
        self.validity.valid();
    }
    /// Appends a cell that `write` produces in place; nothing is kept if it fails.
    #[inline]
    pub fn push_with<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.data.len();
        if let Err(e) = write(&mut self.data) {
            self.data.truncate(start);
            return Err(e);
        }
        self.close();
        self.validity.valid();
        Ok(())
    }
    /// Replaces the last cell, unless it is null.
    pub fn replace_last(&mut self, with: impl FnOnce(&[u8]) -> Vec<u8>) {
        let Some(cell) = self.last() else { return };
        let new = with(cell);
        self.offsets.pop();
        let start = self.offsets.last().copied().unwrap_or(0) as usize;
        self.data.truncate(start);
        self.data.extend_from_slice(&new);
        self.close();
    }
    /// The last cell; `None` if it is null or there is none.
    fn last(&self) -> Option<&[u8]> {
        let from = *self
            .offsets
            .len()
            .checked_sub(2)
            .map(|at| &self.offsets[at])?;
        self.validity.last().then(|| &self.data[from as usize..])
    }
    /// Whether `len` more bytes keep the column's offsets within 32 bits.
    #[inline]
    pub fn fits(&self, len: usize) -> bool {
        self.data.len().saturating_add(len) <= i32::MAX as usize
    }
    #[inline]
    fn null(&mut self) {
        self.close();
        self.validity.null();
    }
    fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        self.data.truncate(self.offsets[len] as usize);
        self.validity.truncate(len);
    }
    fn take(&mut self) -> (OffsetBuffer<i32>, Buffer, Option<NullBuffer>) {
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let data = std::mem::take(&mut self.data);
        (
            OffsetBuffer::new(ScalarBuffer::from(offsets)),
            Buffer::from_vec(data),
            self.validity.take(),
        )
    }
}

/// Cells that are lists.
#[derive(Debug)]
pub struct List {
    offsets: Vec<i32>,
    items: Box<ColumnBuilder>,
    validity: Validity,
}

/// The value of one cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CellRef<'a> {
    /// Null.
    Null,
    /// A boolean.
    Boolean(bool),
    /// An integer of any width, a date's days, a time's or a timestamp's microseconds.
    Integer(i64),
    /// An unscaled decimal with its scale.
    Decimal(i128, u8),
    /// A float of either width.
    Float(f64),
    /// Text or bytes.
    Text(&'a [u8]),
    /// A list or a map.
    Nested,
}

/// One column under construction. Decoders match on the variant once a cell.
#[derive(Debug)]
pub enum ColumnBuilder {
    /// [`LakeType::Boolean`]
    Boolean(Fixed<bool>),
    /// [`LakeType::Int8`]
    Int8(Fixed<i8>),
    /// [`LakeType::Int16`]
    Int16(Fixed<i16>),
    /// [`LakeType::Int32`]
    Int32(Fixed<i32>),
    /// [`LakeType::Int64`]
    Int64(Fixed<i64>),
    /// [`LakeType::Float32`]
    Float32(Fixed<f32>),
    /// [`LakeType::Float64`]
    Float64(Fixed<f64>),
    /// [`LakeType::Decimal`]: the unscaled value, with precision and scale
    Decimal(Fixed<i128>, u8, u8),
    /// [`LakeType::Utf8`]
    Utf8(Variable),
    /// [`LakeType::Binary`]
    Binary(Variable),
    /// [`LakeType::Date32`]
    Date32(Fixed<i32>),
    /// [`LakeType::Time64`]
    Time64(Fixed<i64>),
    /// [`LakeType::Timestamp`]
    Timestamp(Fixed<i64>),
    /// [`LakeType::TimestampUtc`]
    TimestampUtc(Fixed<i64>),
    /// [`LakeType::List`]
    List(List),
    /// [`LakeType::Map`]: offsets over keys and values
    Map(Vec<i32>, Variable, Variable, MapValidity),
}

/// The validity of a map column.
#[derive(Debug, Default)]
pub struct MapValidity(Validity);

impl ColumnBuilder {
    /// An empty column.
    pub fn new(lake_type: &LakeType) -> Self {
        match lake_type {
            LakeType::Boolean => ColumnBuilder::Boolean(Fixed::new()),
            LakeType::Int8 => ColumnBuilder::Int8(Fixed::new()),
            LakeType::Int16 => ColumnBuilder::Int16(Fixed::new()),
            LakeType::Int32 => ColumnBuilder::Int32(Fixed::new()),
            LakeType::Int64 => ColumnBuilder::Int64(Fixed::new()),
            LakeType::Float32 => ColumnBuilder::Float32(Fixed::new()),
            LakeType::Float64 => ColumnBuilder::Float64(Fixed::new()),
            LakeType::Decimal { precision, scale } => {
                ColumnBuilder::Decimal(Fixed::new(), *precision, *scale)
            }
            LakeType::Utf8 => ColumnBuilder::Utf8(Variable::new()),
            LakeType::Binary => ColumnBuilder::Binary(Variable::new()),
            LakeType::Date32 => ColumnBuilder::Date32(Fixed::new()),
            LakeType::Time64 => ColumnBuilder::Time64(Fixed::new()),
            LakeType::Timestamp => ColumnBuilder::Timestamp(Fixed::new()),
            LakeType::TimestampUtc => ColumnBuilder::TimestampUtc(Fixed::new()),
            LakeType::List(item) => ColumnBuilder::List(List {
                offsets: vec![0],
                items: Box::new(ColumnBuilder::new(item)),
                validity: Validity::default(),
            }),
            LakeType::Map => ColumnBuilder::Map(
                vec![0],
                Variable::new(),
                Variable::new(),
                MapValidity::default(),
            ),
        }
    }

    /// The number of cells.
    #[inline]
    pub fn len(&self) -> usize {
        self.validity().len
    }

    /// Whether there is no cell.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cell that was appended last; null if there is none.
    pub fn last(&self) -> CellRef<'_> {
        let cell = match self {
            ColumnBuilder::Boolean(c) => c.last().map(CellRef::Boolean),
            ColumnBuilder::Int8(c) => c.last().map(|v| CellRef::Integer(v.into())),
            ColumnBuilder::Int16(c) => c.last().map(|v| CellRef::Integer(v.into())),
            ColumnBuilder::Int32(c) | ColumnBuilder::Date32(c) => {
                c.last().map(|v| CellRef::Integer(v.into()))
            }
            ColumnBuilder::Int64(c)
            | ColumnBuilder::Time64(c)
            | ColumnBuilder::Timestamp(c)
            | ColumnBuilder::TimestampUtc(c) => c.last().map(CellRef::Integer),
            ColumnBuilder::Float32(c) => c.last().map(|v| CellRef::Float(v.into())),
            ColumnBuilder::Float64(c) => c.last().map(CellRef::Float),
            ColumnBuilder::Decimal(c, _, scale) => c.last().map(|v| CellRef::Decimal(v, *scale)),
            ColumnBuilder::Utf8(c) | ColumnBuilder::Binary(c) => c.last().map(CellRef::Text),
            ColumnBuilder::List(c) => c.validity.last().then_some(CellRef::Nested),
            ColumnBuilder::Map(.., v) => v.0.last().then_some(CellRef::Nested),
        };
        cell.unwrap_or(CellRef::Null)
    }

    fn validity(&self) -> &Validity {
        match self {
            ColumnBuilder::Boolean(c) => &c.validity,
            ColumnBuilder::Int8(c) => &c.validity,
            ColumnBuilder::Int16(c) => &c.validity,
            ColumnBuilder::Int32(c) | ColumnBuilder::Date32(c) => &c.validity,
            ColumnBuilder::Int64(c)
            | ColumnBuilder::Time64(c)
            | ColumnBuilder::Timestamp(c)
            | ColumnBuilder::TimestampUtc(c) => &c.validity,
            ColumnBuilder::Float32(c) => &c.validity,
            ColumnBuilder::Float64(c) => &c.validity,
            ColumnBuilder::Decimal(c, ..) => &c.validity,
            ColumnBuilder::Utf8(c) | ColumnBuilder::Binary(c) => &c.validity,
            ColumnBuilder::List(c) => &c.validity,
            ColumnBuilder::Map(.., v) => &v.0,
        }
    }

    /// Appends a null.
    #[inline]
    pub fn push_null(&mut self) {
        match self {
            ColumnBuilder::Boolean(c) => c.null(),
            ColumnBuilder::Int8(c) => c.null(),
            ColumnBuilder::Int16(c) => c.null(),
            ColumnBuilder::Int32(c) | ColumnBuilder::Date32(c) => c.null(),
            ColumnBuilder::Int64(c)
            | ColumnBuilder::Time64(c)
            | ColumnBuilder::Timestamp(c)
            | ColumnBuilder::TimestampUtc(c) => c.null(),
            ColumnBuilder::Float32(c) => c.null(),
            ColumnBuilder::Float64(c) => c.null(),
            ColumnBuilder::Decimal(c, ..) => c.null(),
            ColumnBuilder::Utf8(c) | ColumnBuilder::Binary(c) => c.null(),
            ColumnBuilder::List(c) => {
                c.offsets.push(c.items.len() as i32);
                c.validity.null();
            }
            ColumnBuilder::Map(offsets, keys, _, v) => {
                offsets.push(keys.validity.len as i32);
                v.0.null();
            }
        }
    }

    /// The item builder of a list cell under construction; [`Self::close_list`] ends the cell.
    ///
    /// # Panics
    /// If the column is not a list: a decoder that does not fit its schema.
    pub fn list_items(&mut self) -> &mut ColumnBuilder {
        match self {
            ColumnBuilder::List(c) => &mut c.items,
            other => panic!("not a list column: {other:?}"),
        }
    }

    /// Ends a list or map cell with the items pushed since the last cell.
    pub fn close_list(&mut self) {
        match self {
            ColumnBuilder::List(c) => {
                c.offsets.push(c.items.len() as i32);
                c.validity.valid();
            }
            ColumnBuilder::Map(offsets, keys, _, v) => {
                offsets.push(keys.validity.len as i32);
                v.0.valid();
            }
            other => panic!("not a list or map column: {other:?}"),
        }
    }

    /// Appends one entry to a map cell under construction.
    ///
    /// # Panics
    /// If the column is not a map.
    pub fn push_entry(&mut self, key: &str, value: Option<&str>) {
        match self {
            ColumnBuilder::Map(_, keys, values, _) => {
                keys.push(key.as_bytes());
                match value {
                    Some(v) => values.push(v.as_bytes()),
                    None => values.null(),
                }
            }
            other => panic!("not a map column: {other:?}"),
        }
    }

    /// Drops every cell past the first `len`, and items of an unfinished list cell.
    pub fn truncate(&mut self, len: usize) {
        match self {
            ColumnBuilder::Boolean(c) => c.truncate(len),
            ColumnBuilder::Int8(c) => c.truncate(len),
            ColumnBuilder::Int16(c) => c.truncate(len),
            ColumnBuilder::Int32(c) | ColumnBuilder::Date32(c) => c.truncate(len),
            ColumnBuilder::Int64(c)
            | ColumnBuilder::Time64(c)
            | ColumnBuilder::Timestamp(c)
            | ColumnBuilder::TimestampUtc(c) => c.truncate(len),
            ColumnBuilder::Float32(c) => c.truncate(len),
            ColumnBuilder::Float64(c) => c.truncate(len),
            ColumnBuilder::Decimal(c, ..) => c.truncate(len),
            ColumnBuilder::Utf8(c) | ColumnBuilder::Binary(c) => c.truncate(len),
            ColumnBuilder::List(c) => {
                c.offsets.truncate(len + 1);
                c.items.truncate(c.offsets[len] as usize);
                c.validity.truncate(len);
            }
            ColumnBuilder::Map(offsets, keys, values, v) => {
                offsets.truncate(len + 1);
                keys.truncate(offsets[len] as usize);
                values.truncate(offsets[len] as usize);
                v.0.truncate(len);
            }
        }
    }

    /// Bytes held by the cells, validity aside.
    pub fn bytes(&self) -> usize {
        match self {
            ColumnBuilder::Boolean(c) => c.values.len(),
            ColumnBuilder::Int8(c) => c.values.len(),
            ColumnBuilder::Int16(c) => c.values.len() * 2,
            ColumnBuilder::Int32(c) | ColumnBuilder::Date32(c) => c.values.len() * 4,
            ColumnBuilder::Int64(c)
            | ColumnBuilder::Time64(c)
            | ColumnBuilder::Timestamp(c)
            | ColumnBuilder::TimestampUtc(c) => c.values.len() * 8,
            ColumnBuilder::Float32(c) => c.values.len() * 4,
            ColumnBuilder::Float64(c) => c.values.len() * 8,
            ColumnBuilder::Decimal(c, ..) => c.values.len() * 16,
            ColumnBuilder::Utf8(c) | ColumnBuilder::Binary(c) => c.data.len() + c.offsets.len() * 4,
            ColumnBuilder::List(c) => c.items.bytes() + c.offsets.len() * 4,
            ColumnBuilder::Map(o, k, v, _) => k.data.len() + v.data.len() + o.len() * 12,
        }
    }

    /// The cells as an Arrow array; the builder is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        match self {
            ColumnBuilder::Boolean(c) => {
                let values = std::mem::take(&mut c.values);
                Arc::new(BooleanArray::new(values.into(), c.validity.take()))
            }
            ColumnBuilder::Int8(c) => Arc::new(primitive::<Int8Type>(c)),
            ColumnBuilder::Int16(c) => Arc::new(primitive::<Int16Type>(c)),
            ColumnBuilder::Int32(c) => Arc::new(primitive::<Int32Type>(c)),
            ColumnBuilder::Int64(c) => Arc::new(primitive::<Int64Type>(c)),
            ColumnBuilder::Float32(c) => Arc::new(primitive::<Float32Type>(c)),
            ColumnBuilder::Float64(c) => Arc::new(primitive::<Float64Type>(c)),
            ColumnBuilder::Decimal(c, precision, scale) => {
                let values = std::mem::take(&mut c.values);
                let array = Decimal128Array::new(ScalarBuffer::from(values), c.validity.take());
                Arc::new(array.with_data_type(DataType::Decimal128(*precision, *scale as i8)))
            }
            ColumnBuilder::Utf8(c) => {
                let (offsets, data, nulls) = c.take();
                Arc::new(StringArray::new(offsets, data, nulls))
            }
            ColumnBuilder::Binary(c) => {
                let (offsets, data, nulls) = c.take();
                Arc::new(BinaryArray::new(offsets, data, nulls))
            }
            ColumnBuilder::Date32(c) => Arc::new(primitive::<Date32Type>(c)),
            ColumnBuilder::Time64(c) => Arc::new(primitive::<Time64MicrosecondType>(c)),
            ColumnBuilder::Timestamp(c) => Arc::new(primitive::<TimestampMicrosecondType>(c)),
            ColumnBuilder::TimestampUtc(c) => {
                Arc::new(primitive::<TimestampMicrosecondType>(c).with_timezone("UTC"))
            }
            ColumnBuilder::List(c) => {
                let offsets = std::mem::replace(&mut c.offsets, vec![0]);
                let items = c.items.finish();
                let field = Arc::new(Field::new("element", items.data_type().clone(), true));
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(ListArray::new(field, offsets, items, c.validity.take()))
            }
            ColumnBuilder::Map(offsets, keys, values, v) => {
                let offsets = std::mem::replace(offsets, vec![0]);
                let text = |c: &mut Variable| {
                    let (offsets, data, nulls) = c.take();
                    Arc::new(StringArray::new(offsets, data, nulls)) as ArrayRef
                };
                let DataType::Map(entry, _) = LakeType::Map.arrow() else {
                    unreachable!()
                };
                let DataType::Struct(fields) = entry.data_type() else {
                    unreachable!()
                };
                let entries =
                    StructArray::new(fields.clone(), vec![text(keys), text(values)], None);
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(MapArray::new(entry, offsets, entries, v.0.take(), false))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};

    #[test]
    fn a_truncated_cell_leaves_no_trace() {
        let mut c = ColumnBuilder::new(&LakeType::Utf8);
        let ColumnBuilder::Utf8(v) = &mut c else {
            unreachable!()
        };
        v.push(b"one");
        v.push(b"two");
        c.push_null();
        c.truncate(1);
        c.push_null();
        let a = c.finish();
        assert_eq!(a.len(), 2);
        assert_eq!(a.as_string::<i32>().value(0), "one");
        assert!(a.is_null(1));
        assert!(c.is_empty());
    }

    #[test]
    fn an_unfinished_list_is_dropped_by_truncate() {
        let mut c = ColumnBuilder::new(&LakeType::List(Box::new(LakeType::Int32)));
        let push = |c: &mut ColumnBuilder, v| match c.list_items() {
            ColumnBuilder::Int32(i) => i.push(v),
            _ => unreachable!(),
        };
        push(&mut c, 1);
        c.close_list();
        push(&mut c, 2);
        c.truncate(1);
        push(&mut c, 3);
        c.close_list();
        c.push_null();
        let a = c.finish();
        let l = a.as_list::<i32>();
        assert_eq!((l.len(), l.value(1).len(), l.is_null(2)), (3, 1, true));
    }
}
