//! Hashes of keys: `key columns -> canonical bytes -> 128 bits -> reduce, key index`
//!
//! The canonical form is of what a value *is*, not of how wide its column happens to be: int and long, float and double,
//! and decimals of any precision and scale of one value agree, so a widened column keeps its keys. A change of this form is
//! a change of [`ENCODING`], and every index is built anew.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType,
};
use lakeward_runtime::{Error, Result};
use xxhash_rust::xxh3::xxh3_128;

/// Version of the canonical form.
pub const ENCODING: u32 = 1;

/// One hash per row; None where a part of the key is NULL. Without key columns: None for all.
pub fn hash_keys(columns: &[ArrayRef], rows: usize) -> Result<Vec<Option<u128>>> {
    let mut out = vec![None; rows];
    if columns.is_empty() {
        return Ok(out);
    }
    let appenders = columns.iter().map(|c| appender(c)).collect::<Result<Vec<_>>>()?;
    let mut bytes = Vec::with_capacity(64);
    for (row, hash) in out.iter_mut().enumerate() {
        if columns.iter().any(|c| c.is_null(row)) {
            continue;
        }
        bytes.clear();
        for append in &appenders {
            append(row, &mut bytes);
        }
        *hash = Some(xxh3_128(&bytes));
    }
    Ok(out)
}

type Append<'a> = Box<dyn Fn(usize, &mut Vec<u8>) + 'a>;

/// Appends a tag and the value; what has no fixed length starts with its length, so that parts cannot run together.
fn appender(column: &ArrayRef) -> Result<Append<'_>> {
    fn sized(tag: u8, value: &[u8], out: &mut Vec<u8>) {
        out.push(tag);
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        out.extend_from_slice(value);
    }
    fn integer(tag: u8, value: i64, out: &mut Vec<u8>) {
        out.push(tag);
        out.extend_from_slice(&value.to_le_bytes());
    }
    fn float(value: f64, out: &mut Vec<u8>) {
        // PostgreSQL has one zero and one NaN.
        let value = if value == 0.0 { 0.0 } else if value.is_nan() { f64::NAN } else { value };
        integer(b'f', value.to_bits() as i64, out);
    }
    Ok(match column.data_type() {
        DataType::Boolean => {
            let values = column.as_boolean();
            Box::new(move |row, out| integer(b'b', i64::from(values.value(row)), out))
        }
        DataType::Int32 => {
            let values = column.as_primitive::<Int32Type>();
            Box::new(move |row, out| integer(b'i', i64::from(values.value(row)), out))
        }
        DataType::Int64 => {
            let values = column.as_primitive::<Int64Type>();
            Box::new(move |row, out| integer(b'i', values.value(row), out))
        }
        DataType::Float32 => {
            let values = column.as_primitive::<Float32Type>();
            Box::new(move |row, out| float(f64::from(values.value(row)), out))
        }
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>();
            Box::new(move |row, out| float(values.value(row), out))
        }
        DataType::Decimal128(_, scale) => {
            let values = column.as_primitive::<Decimal128Type>();
            let scale = *scale;
            Box::new(move |row, out| {
                let (mut value, mut scale) = (values.value(row), scale);
                if value == 0 {
                    scale = 0;
                }
                while value != 0 && value % 10 == 0 {
                    value /= 10;
                    scale -= 1;
                }
                out.push(b'n');
                out.extend_from_slice(&value.to_le_bytes());
                out.push(scale as u8);
            })
        }
        DataType::Date32 => {
            let values = column.as_primitive::<Date32Type>();
            Box::new(move |row, out| integer(b'd', i64::from(values.value(row)), out))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let values = column.as_primitive::<TimestampMicrosecondType>();
            Box::new(move |row, out| integer(b't', values.value(row), out))
        }
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            Box::new(move |row, out| sized(b's', values.value(row).as_bytes(), out))
        }
        DataType::Binary => {
            let values = column.as_binary::<i32>();
            Box::new(move |row, out| sized(b'x', values.value(row), out))
        }
        DataType::FixedSizeBinary(_) => {
            let values = column.as_fixed_size_binary();
            Box::new(move |row, out| sized(b'x', values.value(row), out))
        }
        DataType::List(_) => {
            let values = column.as_list::<i32>();
            let items = values.values();
            let append = appender(items)?;
            Box::new(move |row, out| {
                let (from, to) = (values.value_offsets()[row] as usize, values.value_offsets()[row + 1] as usize);
                integer(b'l', (to - from) as i64, out);
                for item in from..to {
                    if items.is_null(item) { out.push(b'0') } else { append(item, out) }
                }
            })
        }
        other => return Err(Error::human(format!("a column of type {other} cannot be in a key"))),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use arrow::array::{Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array, StringArray};
    use std::sync::Arc;

    fn hashes(columns: Vec<ArrayRef>) -> Vec<Option<u128>> {
        let rows = columns[0].len();
        hash_keys(&columns, rows).unwrap()
    }

    /// Trap 29: an int key that became a bigint is the same key.
    #[test]
    fn widening_keeps_a_key() {
        let narrow = hashes(vec![Arc::new(Int32Array::from(vec![1, -7]))]);
        assert_eq!(narrow, hashes(vec![Arc::new(Int64Array::from(vec![1, -7]))]));
        let narrow = hashes(vec![Arc::new(Float32Array::from(vec![0.5, -0.0]))]);
        assert_eq!(narrow, hashes(vec![Arc::new(Float64Array::from(vec![0.5, 0.0]))]));
        let decimal = |values: Vec<i128>, precision, scale| -> ArrayRef {
            Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap())
        };
        let narrow = hashes(vec![decimal(vec![150, 0, -1], 5, 2)]);
        assert_eq!(narrow, hashes(vec![decimal(vec![15_000, 0, -100], 9, 4)]));
    }

    #[test]
    fn parts_do_not_run_together_and_null_is_no_key() {
        let column = |values: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(values)) };
        let a = hashes(vec![column(vec![Some("a"), Some("x")]), column(vec![Some("bc"), None])]);
        let b = hashes(vec![column(vec![Some("ab"), Some("x")]), column(vec![Some("c"), None])]);
        assert_ne!(a[0], b[0]);
        assert_eq!(a[1], None);
    }
}
