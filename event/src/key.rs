//! The canonical form of keys: `key columns -> CanonicalKeys -> bytes, 128-bit hashes`, for the key index and for reducing
//! changes to the last one of each key.
//!
//! Two keys are equal exactly when their canonical bytes are. The form does not depend on how wide a column is, so a key
//! survives the widening of its column (int to long, float to double, more decimal digits), and a column read back from
//! Parquet has the keys that it was written with. It is stored (as hashes, in the key index): a change of the form is a new
//! [`VERSION`], and a new version rebuilds the index.
//!
//! # Form, version 1
//! One part per key column, in key order, each a tag byte and then:
//!
//! | tag | columns | bytes |
//! |---|---|---|
//! | 1 | bool | one: 0 or 1 |
//! | 2 | integers | 8, little-endian, as i64 |
//! | 3 | floats | 8, little-endian bits of the f64; -0.0 as 0.0, every NaN as one: they are equal in PostgreSQL |
//! | 4 | decimals | 16, little-endian unscaled value without trailing zeros, then one byte, the scale that is left |
//! | 5 | text | length as 4 bytes little-endian, then UTF-8 |
//! | 6 | binary, uuid | length as 4 bytes little-endian, then the bytes |
//! | 7 | dates | 4, little-endian, days since 1970 |
//! | 8 | timestamps, times | 8, little-endian, microseconds |
//!
//! Every part says where it ends, so no two composite keys share their bytes.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, Time64MicrosecondType, TimeUnit,
    TimestampMicrosecondType,
};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::{Error, Result};

/// Version of the canonical form. Indexes of another version are rebuilt.
pub const VERSION: u32 = 1;

/// The keys of some rows. Reuse it from batch to batch: it keeps its buffers.
#[derive(Debug, Default)]
pub struct CanonicalKeys {
    data: Vec<u8>,
    /// Ends of the rows in `data`, a 0 first.
    ends: Vec<usize>,
    /// Per row: a key column is null.
    incomplete: Vec<bool>,
    any_incomplete: bool,
}

impl CanonicalKeys {
    /// Makes the keys of `rows` from its columns `key`, in that order. `rows` is `after` or `before` of a batch, or the key
    /// columns of a file; null structs and null key values make keys that are [incomplete](Self::is_complete).
    pub fn set_rows(&mut self, rows: &StructArray, key: &[usize]) -> Result<()> {
        let columns =
            key.iter()
                .map(|i| {
                    rows.columns().get(*i).cloned().ok_or_else(|| {
                        Error::inconsistent("key", format!("names column {i} of {}", rows.num_columns()))
                    })
                })
                .collect::<Result<Vec<_>>>()?;
        self.set(&columns, rows.len())?;
        if let Some(nulls) = rows.nulls() {
            for (row, valid) in nulls.iter().enumerate() {
                self.incomplete[row] |= !valid;
            }
            self.any_incomplete |= nulls.null_count() > 0;
        }
        Ok(())
    }

    /// Makes the keys of `rows` rows from the key columns, in key order.
    pub fn set(&mut self, columns: &[ArrayRef], rows: usize) -> Result<()> {
        self.data.clear();
        self.ends.clear();
        self.ends.push(0);
        self.incomplete.clear();
        self.incomplete.resize(rows, false);
        self.any_incomplete = false;
        let columns = columns.iter().map(|column| widened(column, rows)).collect::<Result<Vec<_>>>()?;
        let parts = columns.iter().map(Part::new).collect::<Result<Vec<_>>>()?;
        for column in &columns {
            if let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) {
                self.any_incomplete = true;
                for (incomplete, valid) in self.incomplete.iter_mut().zip(nulls.iter()) {
                    *incomplete |= !valid;
                }
            }
        }
        for row in 0..rows {
            if !self.incomplete[row] {
                for part in &parts {
                    part.write(row, &mut self.data);
                }
            }
            self.ends.push(self.data.len());
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.incomplete.len()
    }
    pub fn is_empty(&self) -> bool {
        self.incomplete.is_empty()
    }

    /// Every row has a whole key: the common case, and cheap to ask.
    pub fn all_complete(&self) -> bool {
        !self.any_incomplete
    }

    /// The row has a value in every key column. One that has not cannot be applied: nothing in the table is its old row.
    pub fn is_complete(&self, row: usize) -> bool {
        !self.incomplete[row]
    }

    /// The canonical bytes of a row's key; meaningless where it is incomplete.
    pub fn bytes(&self, row: usize) -> &[u8] {
        &self.data[self.range(row)]
    }

    /// xxh3 of [`bytes`](Self::bytes).
    pub fn hash(&self, row: usize) -> u128 {
        xxh3_128(self.bytes(row))
    }

    fn range(&self, row: usize) -> Range<usize> {
        self.ends[row]..self.ends[row + 1]
    }
}

/// A key column, in the widest type of its kind.
enum Part<'a> {
    Bool(&'a arrow::array::BooleanArray),
    Long(&'a [i64]),
    Double(&'a [f64]),
    Decimal(&'a [i128], i8),
    Text(&'a arrow::array::StringArray),
    Binary(&'a arrow::array::BinaryArray),
    Fixed(&'a arrow::array::FixedSizeBinaryArray),
    Date(&'a [i32]),
    Micros(&'a [i64]),
}

/// Brings a column to the type that its kind is written from; most are in it already.
fn widened(column: &ArrayRef, rows: usize) -> Result<ArrayRef> {
    if column.len() != rows {
        return Err(Error::inconsistent("key", format!("column of {} rows where there are {rows}", column.len())));
    }
    use DataType as T;
    let widest = match column.data_type() {
        T::Int8 | T::Int16 | T::Int32 | T::UInt8 | T::UInt16 | T::UInt32 => T::Int64,
        T::Float16 | T::Float32 => T::Float64,
        T::Utf8View | T::LargeUtf8 => T::Utf8,
        T::BinaryView | T::LargeBinary => T::Binary,
        T::Decimal32(precision, scale) | T::Decimal64(precision, scale) => T::Decimal128(*precision, *scale),
        T::Timestamp(TimeUnit::Second | TimeUnit::Millisecond, zone) => {
            T::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        T::Dictionary(_, value) => value.as_ref().clone(),
        _ => return Ok(column.clone()),
    };
    let column = cast(column, &widest)?;
    // A dictionary's values may need widening in their turn.
    if matches!(widest, T::Int64 | T::Float64 | T::Utf8 | T::Binary | T::Decimal128(..) | T::Timestamp(..)) {
        Ok(column)
    } else {
        widened(&column, rows)
    }
}

impl<'a> Part<'a> {
    fn new(column: &'a ArrayRef) -> Result<Self> {
        Ok(match column.data_type() {
            DataType::Boolean => Self::Bool(column.as_boolean()),
            DataType::Int64 => Self::Long(column.as_primitive::<Int64Type>().values()),
            DataType::Float64 => Self::Double(column.as_primitive::<Float64Type>().values()),
            DataType::Decimal128(_, scale) => Self::Decimal(column.as_primitive::<Decimal128Type>().values(), *scale),
            DataType::Utf8 => Self::Text(column.as_string()),
            DataType::Binary => Self::Binary(column.as_binary()),
            DataType::FixedSizeBinary(_) => Self::Fixed(column.as_fixed_size_binary()),
            DataType::Date32 => Self::Date(column.as_primitive::<Date32Type>().values()),
            DataType::Time64(TimeUnit::Microsecond) => {
                Self::Micros(column.as_primitive::<Time64MicrosecondType>().values())
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Self::Micros(column.as_primitive::<TimestampMicrosecondType>().values())
            }
            other => return Err(Error::Unsupported(format!("a column of type {other} cannot be part of a key"))),
        })
    }

    #[inline]
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Bool(values) => out.extend_from_slice(&[1, u8::from(values.value(row))]),
            Self::Long(values) => tagged(2, values[row].to_le_bytes(), out),
            Self::Double(values) => tagged(3, canonical_float(values[row]).to_bits().to_le_bytes(), out),
            Self::Decimal(values, scale) => {
                let (value, scale) = stripped(values[row], *scale);
                tagged(4, value.to_le_bytes(), out);
                out.push(scale as u8);
            }
            Self::Text(values) => counted(5, values.value(row).as_bytes(), out),
            Self::Binary(values) => counted(6, values.value(row), out),
            Self::Fixed(values) => counted(6, values.value(row), out),
            Self::Date(values) => tagged(7, values[row].to_le_bytes(), out),
            Self::Micros(values) => tagged(8, values[row].to_le_bytes(), out),
        }
    }
}

#[inline]
fn tagged<const N: usize>(tag: u8, bytes: [u8; N], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&bytes);
}

/// Arrow's offsets are 32 bits wide, so a value's length is too.
#[inline]
fn counted(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    tagged(tag, (bytes.len() as u32).to_le_bytes(), out);
    out.extend_from_slice(bytes);
}

fn canonical_float(value: f64) -> f64 {
    if value.is_nan() {
        f64::NAN
    } else if value == 0.0 {
        0.0
    } else {
        value
    }
}

/// 12.30 and 12.300 are one value: no trailing zeros, and a zero has scale 0.
fn stripped(mut value: i128, mut scale: i8) -> (i128, i8) {
    if value == 0 {
        return (0, 0);
    }
    // Most decimals fit 64 bits, where a division is several times cheaper.
    if let Ok(mut small) = i64::try_from(value) {
        while scale > 0 && small % 10 == 0 {
            small /= 10;
            scale -= 1;
        }
        return (small.into(), scale);
    }
    while scale > 0 && value % 10 == 0 {
        value /= 10;
        scale -= 1;
    }
    (value, scale)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array, Float64Array, Int16Array,
        Int32Array, Int64Array, LargeStringArray, StringArray, StringViewArray, TimestampMicrosecondArray,
    };
    use arrow::buffer::NullBuffer;
    use arrow::datatypes::{Field, Fields, Int32Type};
    use proptest::prelude::*;

    use super::*;

    fn keys(columns: &[ArrayRef]) -> CanonicalKeys {
        let mut keys = CanonicalKeys::default();
        keys.set(columns, columns[0].len()).unwrap();
        keys
    }

    fn all(keys: &CanonicalKeys) -> Vec<(Vec<u8>, u128)> {
        (0..keys.len()).map(|row| (keys.bytes(row).to_vec(), keys.hash(row))).collect()
    }

    /// Trap: a widened key column must find the rows written before.
    #[test]
    fn widening_keeps_keys() {
        let narrow: [ArrayRef; 2] =
            [Arc::new(Int16Array::from(vec![-1, 0, 300])), Arc::new(Int32Array::from(vec![-1, 0, 300]))];
        let wide: ArrayRef = Arc::new(Int64Array::from(vec![-1, 0, 300]));
        for narrow in narrow {
            assert_eq!(all(&keys(&[narrow])), all(&keys(std::slice::from_ref(&wide))));
        }
        let decimal = |values: Vec<i128>, precision, scale| -> ArrayRef {
            Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap())
        };
        assert_eq!(
            all(&keys(&[decimal(vec![1230, 0, -5, 100, 12_345_678_901_234_567_890_100], 30, 2)])),
            all(&keys(&[decimal(vec![123_000, 0, -500, 10_000, 1_234_567_890_123_456_789_010_000], 38, 4)])),
        );
        let float: ArrayRef = Arc::new(Float32Array::from(vec![1.5, 0.0, f32::NAN]));
        let double: ArrayRef = Arc::new(Float64Array::from(vec![1.5, -0.0, -f64::NAN]));
        assert_eq!(all(&keys(&[float])), all(&keys(&[double])));
    }

    #[test]
    fn encodings_of_parquet_readers_do_not_matter() {
        let text = vec!["a", "", "ü"];
        let expected = all(&keys(&[Arc::new(StringArray::from(text.clone()))]));
        let others: [ArrayRef; 3] = [
            Arc::new(StringViewArray::from(text.clone())),
            Arc::new(LargeStringArray::from(text.clone())),
            Arc::new(text.into_iter().collect::<arrow::array::DictionaryArray<Int32Type>>()),
        ];
        for other in others {
            assert_eq!(all(&keys(&[other])), expected);
        }
        let uuid: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter([[7u8; 16]].iter()).unwrap());
        let binary: ArrayRef = Arc::new(BinaryArray::from(vec![&[7u8; 16][..]]));
        assert_eq!(all(&keys(&[uuid])), all(&keys(&[binary])));
        let naive: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![5]));
        let zoned: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![5]).with_timezone("+00:00"));
        assert_eq!(all(&keys(&[naive])), all(&keys(&[zoned])));
    }

    /// The form is stored: these bytes may only change together with the version.
    #[test]
    fn the_form_of_version_1() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(vec![-2])),
            Arc::new(StringArray::from(vec!["ab"])),
            Arc::new(Date32Array::from(vec![1])),
            Arc::new(Decimal128Array::from(vec![1230]).with_precision_and_scale(6, 2).unwrap()),
        ];
        let keys = keys(&columns);
        let mut expected = vec![2, 254, 255, 255, 255, 255, 255, 255, 255];
        expected.extend([5, 2, 0, 0, 0, b'a', b'b']);
        expected.extend([7, 1, 0, 0, 0]);
        expected.extend([4, 123, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(keys.bytes(0), expected);
        assert_eq!((VERSION, keys.hash(0)), (1, xxh3_128(&expected)));
    }

    #[test]
    fn null_keys_are_reported() {
        let fields = Fields::from(vec![
            Field::new("v", DataType::Utf8, true),
            Field::new("a", DataType::Int32, true),
            Field::new("b", DataType::Int32, true),
        ]);
        let rows = StructArray::new(
            fields,
            vec![
                Arc::new(StringArray::from(vec![None::<&str>; 4])),
                Arc::new(Int32Array::from(vec![Some(1), None, Some(3), Some(4)])),
                Arc::new(Int32Array::from(vec![Some(1), Some(2), Some(3), None])),
            ],
            Some(NullBuffer::from(vec![true, true, false, true])),
        );
        let mut keys = CanonicalKeys::default();
        keys.set_rows(&rows, &[2, 1]).unwrap();
        assert!(!keys.all_complete());
        assert_eq!((0..4).map(|i| keys.is_complete(i)).collect::<Vec<_>>(), [true, false, false, false]);
        // a slice, and the same buffers again
        keys.set_rows(&rows.slice(0, 1), &[1]).unwrap();
        assert!(keys.all_complete());
        assert_eq!(keys.len(), 1);
        assert!(keys.set_rows(&rows, &[3]).is_err());
    }

    #[test]
    fn lists_are_no_keys() {
        let list = arrow::array::ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]);
        let refused = CanonicalKeys::default().set(&[Arc::new(list)], 1);
        assert!(matches!(refused, Err(Error::Unsupported(_))));
    }

    proptest! {
        #[test]
        fn composite_keys_are_unambiguous(
            a in proptest::collection::vec(("[a\\x00\\x05]{0,3}", "[a\\x00\\x05]{0,3}", -2i64..2), 2..12)
        ) {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(a.iter().map(|k| &k.0))),
                Arc::new(StringArray::from_iter_values(a.iter().map(|k| &k.1))),
                Arc::new(Int64Array::from_iter_values(a.iter().map(|k| k.2))),
            ];
            let keys = keys(&columns);
            for i in 0..a.len() {
                for j in 0..a.len() {
                    prop_assert_eq!(a[i] == a[j], keys.bytes(i) == keys.bytes(j));
                    prop_assert_eq!(a[i] == a[j], keys.hash(i) == keys.hash(j));
                }
            }
        }

        #[test]
        fn decimals_are_equal_by_value(value in any::<i64>(), scale in 0i8..10, more in 0u32..10) {
            let wide = i128::from(value) * 10i128.pow(more);
            prop_assert_eq!(stripped(value.into(), scale), stripped(wide, scale + more as i8));
        }
    }
}
