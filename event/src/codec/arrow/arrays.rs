//! A message's body as arrays: `nodes, buffers, bytes -> checked lengths -> decompressed buffers -> arrays`.
//!
//! Everything here comes from the network. How long a column is follows from the batch (and from its offsets, for list
//! elements), so each length that the message claims is compared with what it must be before anything is allocated, and what is
//! allocated in all is bounded.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, PrimitiveArray,
    StringArray, StructArray,
};
use arrow::buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType, UInt8Type, UInt16Type, UInt64Type,
};
use arrow::ipc;
use zstd::bulk::Decompressor;

use super::view::NOT_COMPRESSED;
use super::width;

/// Other writers may round a buffer's length up to this.
const PADDING: usize = 64;

/// The parts of one record batch message, taken front to back.
pub(super) struct Arrays<'a, N, B> {
    pub nodes: N,
    pub buffers: B,
    pub body: &'a [u8],
    pub is_compressed: bool,
    /// Bytes that may still be held.
    pub budget: usize,
    pub decompressor: &'a mut Decompressor<'static>,
}

impl<'a, 'm, N, B> Arrays<'a, N, B>
where
    N: Iterator<Item = &'m ipc::FieldNode>,
    B: Iterator<Item = &'m ipc::Buffer>,
{
    /// The next column, which has `rows` rows. `Err` says what is wrong with it.
    pub fn next(&mut self, field: &Field, rows: usize) -> Result<ArrayRef, String> {
        self.array(field, rows).map_err(|reason| format!("column {}: {reason}", field.name()))
    }

    /// Nothing may be left over.
    pub fn end(mut self) -> Result<(), String> {
        if self.nodes.next().is_some() || self.buffers.next().is_some() {
            return Err("more columns than its header names".into());
        }
        Ok(())
    }

    /// Counts bytes that are about to be held.
    pub fn charge(&mut self, bytes: usize) -> Result<(), String> {
        self.budget = self.budget.checked_sub(bytes).ok_or("more than a record may hold")?;
        Ok(())
    }

    fn array(&mut self, field: &Field, rows: usize) -> Result<ArrayRef, String> {
        let node = self.nodes.next().ok_or("fewer columns than its header names")?;
        if usize::try_from(node.length()) != Ok(rows) {
            return Err(format!("{} rows instead of {rows}", node.length()));
        }
        let nulls = self.nulls(rows, node.null_count())?;
        if nulls.is_some() && !field.is_nullable() {
            return Err("null where none may be".into());
        }
        let failed = |error: arrow::error::ArrowError| error.to_string();
        Ok(match field.data_type() {
            DataType::Boolean => {
                let bits = self.buffer(rows.div_ceil(8))?;
                Arc::new(BooleanArray::new(BooleanBuffer::new(bits, 0, rows), nulls))
            }
            DataType::UInt8 => Arc::new(self.primitive::<UInt8Type>(rows, nulls)?),
            DataType::UInt16 => Arc::new(self.primitive::<UInt16Type>(rows, nulls)?),
            DataType::UInt64 => Arc::new(self.primitive::<UInt64Type>(rows, nulls)?),
            DataType::Int32 => Arc::new(self.primitive::<Int32Type>(rows, nulls)?),
            DataType::Int64 => Arc::new(self.primitive::<Int64Type>(rows, nulls)?),
            DataType::Float32 => Arc::new(self.primitive::<Float32Type>(rows, nulls)?),
            DataType::Float64 => Arc::new(self.primitive::<Float64Type>(rows, nulls)?),
            DataType::Date32 => Arc::new(self.primitive::<Date32Type>(rows, nulls)?),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                let array = self.primitive::<TimestampMicrosecondType>(rows, nulls)?;
                Arc::new(array.with_timezone_opt(zone.clone()))
            }
            DataType::Decimal128(precision, scale) => {
                let array = self.primitive::<Decimal128Type>(rows, nulls)?;
                let array = array.with_precision_and_scale(*precision, *scale).map_err(failed)?;
                array.validate_decimal_precision(*precision).map_err(failed)?;
                Arc::new(array)
            }
            DataType::FixedSizeBinary(16) => {
                let bytes = self.buffer(rows * 16)?;
                Arc::new(FixedSizeBinaryArray::try_new(16, bytes, nulls).map_err(failed)?)
            }
            DataType::Utf8 => {
                let (offsets, bytes) = self.bytes(rows)?;
                Arc::new(StringArray::try_new(offsets, bytes, nulls).map_err(failed)?)
            }
            DataType::Binary => {
                let (offsets, bytes) = self.bytes(rows)?;
                Arc::new(BinaryArray::try_new(offsets, bytes, nulls).map_err(failed)?)
            }
            DataType::List(item) => {
                let (offsets, elements) = self.offsets(rows)?;
                self.charge(elements.saturating_mul(width(item.data_type())))?;
                let values = self.array(item, elements)?;
                Arc::new(ListArray::try_new(item.clone(), offsets, values, nulls).map_err(failed)?)
            }
            DataType::Struct(fields) => {
                let children: Vec<_> = fields.iter().map(|f| self.next(f, rows)).collect::<Result<_, _>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), children, nulls, rows).map_err(failed)?)
            }
            other => return Err(format!("a column of type {other}")),
        })
    }

    fn nulls(&mut self, rows: usize, null_count: i64) -> Result<Option<NullBuffer>, String> {
        if null_count == 0 {
            // The bits may be there all the same: they say nothing.
            self.skip()?;
            return Ok(None);
        }
        let nulls = NullBuffer::new(BooleanBuffer::new(self.buffer(rows.div_ceil(8))?, 0, rows));
        if usize::try_from(null_count) != Ok(nulls.null_count()) {
            return Err(format!("{null_count} nulls by its node, {} by its bits", nulls.null_count()));
        }
        Ok(Some(nulls))
    }

    fn primitive<T: ArrowPrimitiveType>(
        &mut self,
        rows: usize,
        nulls: Option<NullBuffer>,
    ) -> Result<PrimitiveArray<T>, String> {
        let bytes = self.buffer(rows * size_of::<T::Native>())?;
        PrimitiveArray::try_new(ScalarBuffer::new(bytes, 0, rows), nulls).map_err(|error| error.to_string())
    }

    fn bytes(&mut self, rows: usize) -> Result<(OffsetBuffer<i32>, Buffer), String> {
        let (offsets, length) = self.offsets(rows)?;
        self.charge(length)?;
        Ok((offsets, self.buffer(length)?))
    }

    /// Offsets that grow, and the last of them.
    fn offsets(&mut self, rows: usize) -> Result<(OffsetBuffer<i32>, usize), String> {
        if rows == 0 {
            self.skip()?;
            return Ok((OffsetBuffer::new_empty(), 0));
        }
        let offsets: ScalarBuffer<i32> = ScalarBuffer::new(self.buffer((rows + 1) * 4)?, 0, rows + 1);
        let grow = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        match (offsets.first(), offsets.last()) {
            (Some(first), Some(last)) if *first >= 0 && grow => {
                let end = *last as usize;
                Ok((OffsetBuffer::new(offsets), end))
            }
            _ => Err("offsets that do not grow".into()),
        }
    }

    /// Where the next buffer lies in the body.
    fn place(&mut self) -> Result<&'a [u8], String> {
        let buffer = self.buffers.next().ok_or("fewer buffers than its columns need")?;
        let place = || {
            let start = usize::try_from(buffer.offset()).ok()?;
            self.body.get(start..start.checked_add(usize::try_from(buffer.length()).ok()?)?)
        };
        place().ok_or_else(|| "a buffer outside of the message".into())
    }

    fn skip(&mut self) -> Result<(), String> {
        self.place().map(|_| ())
    }

    /// The next buffer's first `wanted` bytes, in memory aligned for any type.
    fn buffer(&mut self, wanted: usize) -> Result<Buffer, String> {
        let place = self.place()?;
        let short = |length: usize| format!("a buffer of {length} bytes instead of {wanted}");
        if wanted == 0 {
            return Ok(MutableBuffer::new(0).into());
        }
        if !self.is_compressed {
            return Ok(Buffer::from_slice_ref(place.get(..wanted).ok_or_else(|| short(place.len()))?));
        }
        let (length, bytes) = place.split_first_chunk::<8>().ok_or_else(|| short(0))?;
        let length = i64::from_le_bytes(*length);
        if length == NOT_COMPRESSED {
            return Ok(Buffer::from_slice_ref(bytes.get(..wanted).ok_or_else(|| short(bytes.len()))?));
        }
        let length = usize::try_from(length).map_err(|_| format!("a buffer of {length} bytes"))?;
        if length < wanted || length > wanted.saturating_add(PADDING) {
            return Err(short(length));
        }
        let mut buffer = MutableBuffer::from_len_zeroed(length);
        match self.decompressor.decompress_to_buffer(bytes, buffer.as_slice_mut()) {
            Ok(written) if written == length => {}
            Ok(written) => return Err(short(written)),
            Err(error) => return Err(format!("a buffer that cannot be decompressed: {error}")),
        }
        buffer.truncate(wanted);
        Ok(buffer.into())
    }
}
