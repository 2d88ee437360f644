//! Typed access to the columns of a batch, found once per batch: `struct array -> Cells -> text of one cell`.

use arrow::array::{Array, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, StringArray, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};

use super::text;
use crate::types::LogicalType;

/// One column (or the elements of a list), ready to be written cell by cell.
pub(in crate::codec) struct Cells<'a> {
    nulls: Option<&'a NullBuffer>,
    pub values: Values<'a>,
}

pub(in crate::codec) enum Values<'a> {
    Bool(&'a BooleanArray),
    I32(&'a [i32]),
    I64(&'a [i64]),
    Float(&'a [f32]),
    Double(&'a [f64]),
    Decimal(&'a [i128], i8),
    Text(&'a StringArray),
    Uuid(&'a FixedSizeBinaryArray),
    Binary(&'a BinaryArray),
    TimestampTz(&'a [i64]),
    List(&'a [i32], Box<Cells<'a>>),
}

impl<'a> Cells<'a> {
    /// The columns of `rows`, whose types are those of `types` (a `ChangeBatch` cannot be made otherwise).
    pub fn of_rows(rows: &'a StructArray, types: impl Iterator<Item = &'a LogicalType>) -> Vec<Self> {
        rows.columns().iter().zip(types).map(|(array, ty)| Self::new(array.as_ref(), ty)).collect()
    }

    fn new(array: &'a dyn Array, ty: &LogicalType) -> Self {
        let values = match ty {
            LogicalType::Bool => Values::Bool(array.as_boolean()),
            LogicalType::Int => Values::I32(array.as_primitive::<Int32Type>().values()),
            LogicalType::Date => Values::I32(array.as_primitive::<Date32Type>().values()),
            LogicalType::Long => Values::I64(array.as_primitive::<Int64Type>().values()),
            LogicalType::Timestamp => Values::I64(array.as_primitive::<TimestampMicrosecondType>().values()),
            LogicalType::TimestampTz => Values::TimestampTz(array.as_primitive::<TimestampMicrosecondType>().values()),
            LogicalType::Float => Values::Float(array.as_primitive::<Float32Type>().values()),
            LogicalType::Double => Values::Double(array.as_primitive::<Float64Type>().values()),
            LogicalType::Decimal { scale, .. } => {
                Values::Decimal(array.as_primitive::<Decimal128Type>().values(), *scale)
            }
            LogicalType::String | LogicalType::Json => Values::Text(array.as_string()),
            LogicalType::Uuid => Values::Uuid(array.as_fixed_size_binary()),
            LogicalType::Binary => Values::Binary(array.as_binary()),
            LogicalType::List(element) => {
                let list = array.as_list::<i32>();
                Values::List(list.value_offsets(), Box::new(Self::new(list.values().as_ref(), element)))
            }
        };
        Self { nulls: array.nulls(), values }
    }

    #[inline]
    pub fn is_null(&self, row: usize) -> bool {
        self.nulls.is_some_and(|nulls| nulls.is_null(row))
    }

    /// The text of a column of strings.
    pub fn text(&self, row: usize) -> Option<&'a str> {
        match &self.values {
            Values::Text(array) if !self.is_null(row) => Some(array.value(row)),
            _ => None,
        }
    }

    /// Appends the cell as JSON.
    #[inline]
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            out.extend_from_slice(b"null");
            return;
        }
        match &self.values {
            Values::Bool(array) => out.extend_from_slice(if array.value(row) { b"true" } else { b"false" }),
            Values::I32(values) => text::write_int(out, values[row]),
            Values::I64(values) => text::write_int(out, values[row]),
            Values::Float(values) => text::write_float(out, values[row]),
            Values::Double(values) => text::write_float(out, values[row]),
            Values::Decimal(values, scale) => text::write_decimal(out, values[row], *scale),
            Values::Text(array) => text::write_string(out, array.value(row)),
            Values::Uuid(array) => text::write_uuid(out, array.value(row)),
            Values::Binary(array) => text::write_binary(out, array.value(row)),
            Values::TimestampTz(values) => text::write_timestamptz(out, values[row]),
            Values::List(offsets, elements) => {
                out.push(b'[');
                let range = offsets[row] as usize..offsets[row + 1] as usize;
                for i in range.clone() {
                    if i > range.start {
                        out.push(b',');
                    }
                    elements.write(i, out);
                }
                out.push(b']');
            }
        }
    }
}
