//! Columns as they are written: `arrays -> View -> the rows picked, as the buffers of an IPC message`.
//!
//! A row is never copied by itself: a buffer is gathered for all picked rows at once (that is the `take` of a partition's rows)
//! and compressed from where it was gathered.

use std::ops::Range;

use arrow::array::{Array, ArrowPrimitiveType, AsArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
    UInt8Type, UInt16Type, UInt64Type,
};
use arrow::ipc;
use zstd::bulk::Compressor;

use super::width;
use crate::error::{Error, Result};

/// The level that costs least: a log's bytes live for days, its CPU is paid for each row.
const LEVEL: i32 = 1;
/// Shorter buffers stay as they are: zstd's frame alone takes a dozen bytes.
const WORTH_COMPRESSING: usize = 64;
/// Instead of a length: the bytes are not compressed. Set by the IPC format.
pub(super) const NOT_COMPRESSED: i64 = -1;
/// Every buffer starts at a multiple of this many bytes of the body.
pub(super) const ALIGNMENT: usize = 8;

/// A column of a batch, borrowed.
pub(super) struct View<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

enum Values<'a> {
    Fixed(&'a [u8], usize),
    Bool(&'a BooleanBuffer),
    Bytes(&'a [i32], &'a [u8]),
    /// Offsets, elements, and an element's [`width`].
    List(&'a [i32], Box<View<'a>>, usize),
    Struct(Vec<View<'a>>),
}

/// Rows of a view, in order.
#[derive(Clone)]
pub(super) enum Pick<'a> {
    Range(Range<usize>),
    Rows(&'a [u32]),
}

impl<'a> Pick<'a> {
    /// Rows that lie side by side are a range: nothing need be gathered.
    pub fn rows(rows: &'a [u32]) -> Self {
        match (rows.first(), rows.last()) {
            (Some(first), Some(last)) if (last - first) as usize + 1 == rows.len() => {
                Self::Range(*first as usize..*last as usize + 1)
            }
            _ => Self::Rows(rows),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Range(range) => range.len(),
            Self::Rows(rows) => rows.len(),
        }
    }

    pub fn halves(&self) -> [Self; 2] {
        let middle = self.len() / 2;
        match self {
            Self::Range(range) => {
                let middle = range.start + middle;
                [Self::Range(range.start..middle), Self::Range(middle..range.end)]
            }
            Self::Rows(rows) => [Self::rows(&rows[..middle]), Self::rows(&rows[middle..])],
        }
    }
}

impl<'a> View<'a> {
    /// Fails for types that no `ChangeBatch` has.
    pub fn new(array: &'a dyn Array) -> Result<Self> {
        fn fixed<T: ArrowPrimitiveType>(array: &dyn Array) -> Values<'_> {
            Values::Fixed(array.as_primitive::<T>().values().inner().as_slice(), size_of::<T::Native>())
        }
        let values = match array.data_type() {
            DataType::Boolean => Values::Bool(array.as_boolean().values()),
            DataType::UInt8 => fixed::<UInt8Type>(array),
            DataType::UInt16 => fixed::<UInt16Type>(array),
            DataType::UInt64 => fixed::<UInt64Type>(array),
            DataType::Int32 => fixed::<Int32Type>(array),
            DataType::Int64 => fixed::<Int64Type>(array),
            DataType::Float32 => fixed::<Float32Type>(array),
            DataType::Float64 => fixed::<Float64Type>(array),
            DataType::Date32 => fixed::<Date32Type>(array),
            DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _) => fixed::<TimestampMicrosecondType>(array),
            DataType::Decimal128(..) => fixed::<Decimal128Type>(array),
            DataType::FixedSizeBinary(16) => Values::Fixed(array.as_fixed_size_binary().value_data(), 16),
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                Values::Bytes(array.value_offsets(), array.value_data())
            }
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Values::Bytes(array.value_offsets(), array.value_data())
            }
            DataType::List(item) => {
                let list = array.as_list::<i32>();
                Values::List(list.value_offsets(), Box::new(Self::new(list.values())?), width(item.data_type()))
            }
            DataType::Struct(_) => {
                let children = array.as_struct().columns();
                Values::Struct(children.iter().map(|child| Self::new(child)).collect::<Result<_>>()?)
            }
            other => return Err(Error::inconsistent("change batch", format!("a column of type {other}"))),
        };
        Ok(Self { nulls: array.nulls(), values })
    }

    /// Bytes of texts and list elements in the rows.
    pub fn variable_bytes(&self, pick: &Pick<'_>) -> usize {
        match pick {
            Pick::Range(range) => self.variable_bytes_of(range.clone()),
            Pick::Rows(rows) if self.is_variable() => {
                rows.iter().map(|row| self.variable_bytes_of(*row as usize..*row as usize + 1)).sum()
            }
            Pick::Rows(_) => 0,
        }
    }

    fn is_variable(&self) -> bool {
        match &self.values {
            Values::Bytes(..) | Values::List(..) => true,
            Values::Fixed(..) | Values::Bool(_) => false,
            Values::Struct(children) => children.iter().any(View::is_variable),
        }
    }

    fn variable_bytes_of(&self, rows: Range<usize>) -> usize {
        match &self.values {
            Values::Bytes(offsets, _) => span(offsets, &rows).len(),
            Values::List(offsets, elements, width) => {
                let span = span(offsets, &rows);
                span.len() * width + elements.variable_bytes_of(span)
            }
            Values::Struct(children) => children.iter().map(|child| child.variable_bytes_of(rows.clone())).sum(),
            Values::Fixed(..) | Values::Bool(_) => 0,
        }
    }
}

/// Where the values of consecutive rows lie.
fn span(offsets: &[i32], rows: &Range<usize>) -> Range<usize> {
    offsets[rows.start] as usize..offsets[rows.end] as usize
}

/// The body of a message being written, and what its metadata will say of it. Used again from message to message.
pub(super) struct Body {
    pub bytes: Vec<u8>,
    pub nodes: Vec<ipc::FieldNode>,
    pub buffers: Vec<ipc::Buffer>,
    gathered: Vec<u8>,
    compressor: Compressor<'static>,
}

impl Body {
    pub fn new() -> Result<Self> {
        let compressor = Compressor::new(LEVEL)
            .map_err(|error| Error::inconsistent("zstd", format!("compression level {LEVEL}: {error}")))?;
        Ok(Self { bytes: Vec::new(), nodes: Vec::new(), buffers: Vec::new(), gathered: Vec::new(), compressor })
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.nodes.clear();
        self.buffers.clear();
    }

    /// Appends the rows of one column, depth first as IPC wants it.
    pub fn write(&mut self, view: &View<'_>, pick: &Pick<'_>) {
        let mut gathered = std::mem::take(&mut self.gathered);
        self.write_nulls(view.nulls, pick, &mut gathered);
        match &view.values {
            Values::Fixed(bytes, width) => match pick {
                Pick::Range(range) => self.buffer(&bytes[range.start * width..range.end * width]),
                Pick::Rows(rows) => {
                    match width {
                        1 => gather::<1>(bytes, rows, &mut gathered),
                        2 => gather::<2>(bytes, rows, &mut gathered),
                        4 => gather::<4>(bytes, rows, &mut gathered),
                        8 => gather::<8>(bytes, rows, &mut gathered),
                        _ => gather::<16>(bytes, rows, &mut gathered),
                    }
                    self.buffer(&gathered);
                }
            },
            Values::Bool(bits) => {
                gather_bits(bits, pick, &mut gathered);
                self.buffer(&gathered);
            }
            Values::Bytes(offsets, data) => {
                write_offsets(offsets, pick, &mut gathered);
                self.buffer(&gathered);
                match pick {
                    Pick::Range(range) => self.buffer(&data[span(offsets, range)]),
                    Pick::Rows(rows) => {
                        gathered.clear();
                        for row in *rows {
                            gathered.extend_from_slice(&data[span(offsets, &(*row as usize..*row as usize + 1))]);
                        }
                        self.buffer(&gathered);
                    }
                }
            }
            Values::List(offsets, elements, _) => {
                write_offsets(offsets, pick, &mut gathered);
                self.buffer(&gathered);
                self.gathered = std::mem::take(&mut gathered);
                match pick {
                    Pick::Range(range) => self.write(elements, &Pick::Range(span(offsets, range))),
                    Pick::Rows(rows) => {
                        let of = |row: &u32| offsets[*row as usize] as u32..offsets[*row as usize + 1] as u32;
                        let picked: Vec<u32> = rows.iter().flat_map(of).collect();
                        self.write(elements, &Pick::rows(&picked));
                    }
                }
                return;
            }
            Values::Struct(children) => {
                self.gathered = std::mem::take(&mut gathered);
                for child in children {
                    self.write(child, pick);
                }
                return;
            }
        }
        self.gathered = gathered;
    }

    /// A column's node and its null bits; none where no picked row is null.
    fn write_nulls(&mut self, nulls: Option<&NullBuffer>, pick: &Pick<'_>, gathered: &mut Vec<u8>) {
        let rows = pick.len();
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        let null_count = nulls.map_or(0, |nulls| {
            gather_bits(nulls.inner(), pick, gathered);
            // The last byte's spare bits are not set.
            rows - gathered.iter().map(|byte| byte.count_ones() as usize).sum::<usize>()
        });
        self.nodes.push(ipc::FieldNode::new(rows as i64, null_count as i64));
        self.buffer(if null_count > 0 { gathered } else { &[] });
    }

    /// Appends a buffer, compressed where that makes it smaller.
    fn buffer(&mut self, bytes: &[u8]) {
        let start = self.bytes.len();
        if !bytes.is_empty() {
            self.bytes.extend_from_slice(&(bytes.len() as i64).to_le_bytes());
            let at = self.bytes.len();
            let compressed = if bytes.len() < WORTH_COMPRESSING {
                None
            } else {
                // No room for more than the bytes themselves: zstd gives up as soon as it does not pay.
                self.bytes.resize(at + bytes.len(), 0);
                self.compressor.compress_to_buffer(bytes, &mut self.bytes[at..]).ok()
            };
            match compressed {
                Some(length) if length < bytes.len() => self.bytes.truncate(at + length),
                _ => {
                    self.bytes.truncate(start);
                    self.bytes.extend_from_slice(&NOT_COMPRESSED.to_le_bytes());
                    self.bytes.extend_from_slice(bytes);
                }
            }
        }
        self.buffers.push(ipc::Buffer::new(start as i64, (self.bytes.len() - start) as i64));
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

fn gather<const WIDTH: usize>(bytes: &[u8], rows: &[u32], out: &mut Vec<u8>) {
    let (values, _) = bytes.as_chunks::<WIDTH>();
    out.clear();
    out.resize(rows.len() * WIDTH, 0);
    for (to, row) in out.as_chunks_mut::<WIDTH>().0.iter_mut().zip(rows) {
        *to = values[*row as usize];
    }
}

fn gather_bits(bits: &BooleanBuffer, pick: &Pick<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.resize(pick.len().div_ceil(8), 0);
    match pick {
        Pick::Range(range) => {
            let slice = bits.slice(range.start, range.len());
            // Chunks hold 64 bits, shifted to where they belong.
            for (to, chunk) in out.chunks_mut(8).zip(slice.bit_chunks().iter_padded()) {
                to.copy_from_slice(&chunk.to_le_bytes()[..to.len()]);
            }
        }
        Pick::Rows(rows) => {
            for (i, row) in rows.iter().enumerate() {
                out[i / 8] |= u8::from(bits.value(*row as usize)) << (i % 8);
            }
        }
    }
}

/// Offsets of the picked rows, from 0 on.
fn write_offsets(offsets: &[i32], pick: &Pick<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.resize((pick.len() + 1) * 4, 0);
    let to = out.as_chunks_mut::<4>().0.iter_mut();
    match pick {
        Pick::Range(range) => {
            let base = offsets[range.start];
            for (to, offset) in to.zip(&offsets[range.start..=range.end]) {
                *to = (offset - base).to_le_bytes();
            }
        }
        Pick::Rows(rows) => {
            let mut end = 0;
            for (to, row) in to.skip(1).zip(*rows) {
                end += offsets[*row as usize + 1] - offsets[*row as usize];
                *to = end.to_le_bytes();
            }
        }
    }
}
