//! Arrow columns that can take values back: `value -> Column -> ArrayRef`.
//!
//! Arrow's own builders cannot shrink, and a list is known to fit only once its last element is read. Their string builders
//! also panic when a column outgrows 2 GiB; these say so.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, FixedSizeBinaryArray, ListArray, NullBufferBuilder,
    PrimitiveArray, StringArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use lakeward_event::types::LIST_ELEMENT;
use lakeward_event::{Error, LogicalType, Result};

/// The column under construction of one logical type.
pub enum Column {
    Bool(Bools),
    Int(Primitives<Int32Type>),
    Long(Primitives<Int64Type>),
    Float(Primitives<Float32Type>),
    Double(Primitives<Float64Type>),
    Decimal(Primitives<Decimal128Type>),
    Date(Primitives<Date32Type>),
    Timestamp(Primitives<TimestampMicrosecondType>),
    /// UTF-8: who appends checks.
    Text(Bytes),
    Binary(Bytes),
    Uuid(Uuids),
    List(Lists),
}

impl Column {
    pub fn new(logical: &LogicalType) -> Self {
        match logical {
            LogicalType::Bool => Self::Bool(Bools::new()),
            LogicalType::Int => Self::Int(Primitives::new(logical)),
            LogicalType::Long => Self::Long(Primitives::new(logical)),
            LogicalType::Float => Self::Float(Primitives::new(logical)),
            LogicalType::Double => Self::Double(Primitives::new(logical)),
            LogicalType::Decimal { .. } => Self::Decimal(Primitives::new(logical)),
            LogicalType::Date => Self::Date(Primitives::new(logical)),
            LogicalType::Timestamp | LogicalType::TimestampTz => Self::Timestamp(Primitives::new(logical)),
            LogicalType::String | LogicalType::Json => Self::Text(Bytes::new()),
            LogicalType::Binary => Self::Binary(Bytes::new()),
            LogicalType::Uuid => Self::Uuid(Uuids::new()),
            LogicalType::List(element) => Self::List(Lists::new(element)),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Bool(c) => c.nulls.len(),
            Self::Int(c) => c.len(),
            Self::Long(c) => c.len(),
            Self::Float(c) => c.len(),
            Self::Double(c) => c.len(),
            Self::Decimal(c) => c.len(),
            Self::Date(c) => c.len(),
            Self::Timestamp(c) => c.len(),
            Self::Text(c) | Self::Binary(c) => c.nulls.len(),
            Self::Uuid(c) => c.nulls.len(),
            Self::List(c) => c.nulls.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn append_nulls(&mut self, count: usize) {
        match self {
            Self::Bool(c) => {
                c.values.append_n(count, false);
                c.nulls.append_n_nulls(count);
            }
            Self::Int(c) => c.append_nulls(count),
            Self::Long(c) => c.append_nulls(count),
            Self::Float(c) => c.append_nulls(count),
            Self::Double(c) => c.append_nulls(count),
            Self::Decimal(c) => c.append_nulls(count),
            Self::Date(c) => c.append_nulls(count),
            Self::Timestamp(c) => c.append_nulls(count),
            Self::Text(c) | Self::Binary(c) => c.append_nulls(count),
            Self::Uuid(c) => {
                c.data.resize(c.data.len() + 16 * count, 0);
                c.nulls.append_n_nulls(count);
            }
            Self::List(c) => {
                let end = c.ends();
                c.offsets.resize(c.offsets.len() + count, end);
                c.nulls.append_n_nulls(count);
            }
        }
    }

    /// Keeps the first `length` values.
    pub fn truncate(&mut self, length: usize) {
        match self {
            Self::Bool(c) => {
                c.values.truncate(length);
                c.nulls.truncate(length);
            }
            Self::Int(c) => c.truncate(length),
            Self::Long(c) => c.truncate(length),
            Self::Float(c) => c.truncate(length),
            Self::Double(c) => c.truncate(length),
            Self::Decimal(c) => c.truncate(length),
            Self::Date(c) => c.truncate(length),
            Self::Timestamp(c) => c.truncate(length),
            Self::Text(c) | Self::Binary(c) => c.truncate(length),
            Self::Uuid(c) => {
                c.data.truncate(16 * length);
                c.nulls.truncate(length);
            }
            Self::List(c) => {
                c.offsets.truncate(length + 1);
                c.child.truncate(c.ends() as usize);
                c.nulls.truncate(length);
            }
        }
    }

    /// Ends the array; the column starts the next one with room for about as many values.
    pub fn finish(&mut self) -> Result<ArrayRef> {
        Ok(match self {
            Self::Bool(c) => Arc::new(BooleanArray::new(c.values.finish(), c.nulls.finish())),
            Self::Int(c) => c.finish()?,
            Self::Long(c) => c.finish()?,
            Self::Float(c) => c.finish()?,
            Self::Double(c) => c.finish()?,
            Self::Decimal(c) => c.finish()?,
            Self::Date(c) => c.finish()?,
            Self::Timestamp(c) => c.finish()?,
            Self::Text(c) => {
                let (offsets, data, nulls) = c.finish();
                Arc::new(StringArray::try_new(offsets, data, nulls)?)
            }
            Self::Binary(c) => {
                let (offsets, data, nulls) = c.finish();
                Arc::new(BinaryArray::try_new(offsets, data, nulls)?)
            }
            Self::Uuid(c) => {
                let room = Vec::with_capacity(c.data.len().min(ROOM));
                let data = std::mem::replace(&mut c.data, room);
                Arc::new(FixedSizeBinaryArray::try_new(16, Buffer::from_vec(data), c.nulls.finish())?)
            }
            Self::List(c) => {
                let offsets = std::mem::replace(&mut c.offsets, vec![0]);
                let field = Arc::new(Field::new(LIST_ELEMENT, c.element.clone(), true));
                let child = c.child.finish()?;
                Arc::new(ListArray::try_new(field, OffsetBuffer::new(offsets.into()), child, c.nulls.finish())?)
            }
        })
    }
}

/// At most so many values, or bytes of values, are room for the next batch: every table of a source keeps its columns.
const ROOM: usize = 65_536;

fn nulls() -> NullBufferBuilder {
    NullBufferBuilder::new(0)
}

/// Numbers, dates and times.
pub struct Primitives<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    nulls: NullBufferBuilder,
    data_type: DataType,
}

impl<T: ArrowPrimitiveType> Primitives<T> {
    /// `logical` is of the variant that has `T` as its Arrow type.
    fn new(logical: &LogicalType) -> Self {
        Self { values: Vec::new(), nulls: nulls(), data_type: logical.arrow() }
    }
    fn len(&self) -> usize {
        self.values.len()
    }
    #[inline]
    pub fn append(&mut self, value: T::Native) {
        self.values.push(value);
        self.nulls.append_non_null();
    }
    fn append_nulls(&mut self, count: usize) {
        self.values.resize(self.values.len() + count, T::Native::default());
        self.nulls.append_n_nulls(count);
    }
    fn truncate(&mut self, length: usize) {
        self.values.truncate(length);
        self.nulls.truncate(length);
    }
    fn finish(&mut self) -> Result<ArrayRef> {
        let room = Vec::with_capacity(self.values.len().min(ROOM));
        let values = std::mem::replace(&mut self.values, room);
        let array = PrimitiveArray::<T>::try_new(ScalarBuffer::from(values), self.nulls.finish())?;
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }
}

pub struct Bools {
    values: BooleanBufferBuilder,
    nulls: NullBufferBuilder,
}

impl Bools {
    fn new() -> Self {
        Self { values: BooleanBufferBuilder::new(0), nulls: nulls() }
    }
    #[inline]
    pub fn append(&mut self, value: bool) {
        self.values.append(value);
        self.nulls.append_non_null();
    }
}

/// Text or binary.
pub struct Bytes {
    data: Vec<u8>,
    /// One more than values.
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
}

impl Bytes {
    fn new() -> Self {
        Self { data: Vec::new(), offsets: vec![0], nulls: nulls() }
    }
    #[inline]
    pub fn append(&mut self, value: &[u8]) -> Result<()> {
        self.data.extend_from_slice(value);
        self.end_value()
    }
    /// Appends the value that `write` adds to the bytes; nothing where it answers false.
    #[inline]
    pub fn append_with(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> Result<bool> {
        let start = self.data.len();
        if write(&mut self.data) {
            self.end_value()?;
            return Ok(true);
        }
        self.data.truncate(start);
        Ok(false)
    }
    #[inline]
    fn end_value(&mut self) -> Result<()> {
        let end = i32::try_from(self.data.len())
            .map_err(|_| Error::Unsupported("a column's values in one batch are more than 2 GiB".into()))?;
        self.offsets.push(end);
        self.nulls.append_non_null();
        Ok(())
    }
    fn append_nulls(&mut self, count: usize) {
        let end = self.offsets.last().copied().unwrap_or(0);
        self.offsets.resize(self.offsets.len() + count, end);
        self.nulls.append_n_nulls(count);
    }
    fn truncate(&mut self, length: usize) {
        self.offsets.truncate(length + 1);
        self.data.truncate(self.offsets.last().copied().unwrap_or(0) as usize);
        self.nulls.truncate(length);
    }
    fn finish(&mut self) -> (OffsetBuffer<i32>, Buffer, Option<arrow::buffer::NullBuffer>) {
        let mut offsets = Vec::with_capacity(self.offsets.len().min(ROOM));
        offsets.push(0);
        let offsets = std::mem::replace(&mut self.offsets, offsets);
        let room = Vec::with_capacity(self.data.len().min(ROOM));
        let data = std::mem::replace(&mut self.data, room);
        (OffsetBuffer::new(offsets.into()), Buffer::from_vec(data), self.nulls.finish())
    }
}

pub struct Uuids {
    data: Vec<u8>,
    nulls: NullBufferBuilder,
}

impl Uuids {
    fn new() -> Self {
        Self { data: Vec::new(), nulls: nulls() }
    }
    #[inline]
    pub fn append(&mut self, value: &[u8; 16]) {
        self.data.extend_from_slice(value);
        self.nulls.append_non_null();
    }
}

/// One-dimensional lists of scalars.
pub struct Lists {
    pub child: Box<Column>,
    element: DataType,
    /// One more than lists.
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
}

impl Lists {
    fn new(element: &LogicalType) -> Self {
        Self { child: Box::new(Column::new(element)), element: element.arrow(), offsets: vec![0], nulls: nulls() }
    }
    fn ends(&self) -> i32 {
        self.offsets.last().copied().unwrap_or(0)
    }
    /// The elements appended to `child` since the last list are one list.
    pub fn end_list(&mut self) -> Result<()> {
        let end = i32::try_from(self.child.len())
            .map_err(|_| Error::Unsupported("a column's list elements in one batch are more than 2^31".into()))?;
        self.offsets.push(end);
        self.nulls.append_non_null();
        Ok(())
    }
    /// Takes back what was appended to `child` since the last list.
    pub fn abandon_list(&mut self) {
        let end = self.ends() as usize;
        self.child.truncate(end);
    }
}
