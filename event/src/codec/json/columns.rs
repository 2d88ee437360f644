//! Builders of a decoded batch's columns: `JSON value -> Column -> array`. Unlike Arrow's own builders they can be cut back,
//! so that a record that turns out to be bad leaves no trace.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array,
    FixedSizeBinaryArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray, NullBufferBuilder,
    StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field};

use super::scan::{Parsed, Raw, Scanner, append_unescaped, is_number};
use super::text;
use crate::error::Result;
use crate::schema::TableSchema;
use crate::types::{LIST_ELEMENT, LogicalType};

/// The rows of one side (`after` or `before`).
#[derive(Debug)]
pub(in crate::codec) struct Rows {
    columns: Vec<Column>,
    validity: NullBufferBuilder,
    rows: usize,
    /// Rows of `rows` that are in the columns; those behind are null. `before` often is null in every row.
    filled: usize,
}

/// One column, or the elements of a list column.
#[derive(Debug)]
pub(in crate::codec) struct Column {
    ty: LogicalType,
    values: Values,
    validity: NullBufferBuilder,
    scratch: Vec<u8>,
}

#[derive(Debug)]
enum Values {
    Bool(BooleanBufferBuilder),
    I32(Vec<i32>),
    I64(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    Decimal(Vec<i128>),
    Bytes(Vec<i32>, Vec<u8>),
    Uuid(Vec<u8>),
    List(Vec<i32>, Box<Column>),
}

impl Rows {
    pub fn new(schema: &TableSchema) -> Self {
        Self {
            columns: schema.columns.iter().map(|column| Column::new(&column.ty)).collect(),
            validity: NullBufferBuilder::new(0),
            rows: 0,
            filled: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn append_null(&mut self) {
        self.validity.append_null();
        self.rows += 1;
    }

    /// Columns to fill with one value each; then [`end_row`](Self::end_row).
    pub fn start_row(&mut self) -> &mut [Column] {
        for column in &mut self.columns {
            column.append_nulls(self.rows - self.filled);
        }
        self.filled = self.rows;
        &mut self.columns
    }

    pub fn end_row(&mut self) {
        self.validity.append_non_null();
        self.rows += 1;
        self.filled = self.rows;
    }

    pub fn truncate(&mut self, rows: usize) {
        self.filled = self.filled.min(rows);
        for column in &mut self.columns {
            column.truncate(self.filled);
        }
        self.validity.truncate(rows);
        self.rows = rows;
    }

    pub fn finish(&mut self, schema: &TableSchema) -> Result<StructArray> {
        self.start_row();
        let arrays = self.columns.iter_mut().map(Column::finish).collect::<Result<Vec<_>>>()?;
        let (rows, validity) = (std::mem::take(&mut self.rows), self.validity.finish());
        self.filled = 0;
        if arrays.is_empty() {
            return Ok(StructArray::new_empty_fields(rows, validity));
        }
        Ok(StructArray::try_new(schema.arrow_fields(), arrays, validity)?)
    }
}

impl Column {
    fn new(ty: &LogicalType) -> Self {
        let values = match ty {
            LogicalType::Bool => Values::Bool(BooleanBufferBuilder::new(0)),
            LogicalType::Int | LogicalType::Date => Values::I32(Vec::new()),
            LogicalType::Long | LogicalType::Timestamp | LogicalType::TimestampTz => Values::I64(Vec::new()),
            LogicalType::Float => Values::Float(Vec::new()),
            LogicalType::Double => Values::Double(Vec::new()),
            LogicalType::Decimal { .. } => Values::Decimal(Vec::new()),
            LogicalType::String | LogicalType::Json | LogicalType::Binary => Values::Bytes(vec![0], Vec::new()),
            LogicalType::Uuid => Values::Uuid(Vec::new()),
            LogicalType::List(element) => Values::List(vec![0], Box::new(Self::new(element))),
        };
        Self { ty: ty.clone(), values, validity: NullBufferBuilder::new(0), scratch: Vec::new() }
    }

    pub fn ty(&self) -> &LogicalType {
        &self.ty
    }

    pub fn len(&self) -> usize {
        self.validity.len()
    }

    pub fn append_null(&mut self) {
        self.append_nulls(1);
    }

    fn append_nulls(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        match &mut self.values {
            Values::Bool(values) => values.append_n(count, false),
            Values::I32(values) => values.resize(values.len() + count, 0),
            Values::I64(values) => values.resize(values.len() + count, 0),
            Values::Float(values) => values.resize(values.len() + count, 0.0),
            Values::Double(values) => values.resize(values.len() + count, 0.0),
            Values::Decimal(values) => values.resize(values.len() + count, 0),
            Values::Uuid(values) => values.resize(values.len() + 16 * count, 0),
            Values::Bytes(ends, _) | Values::List(ends, _) => {
                let end = ends.last().copied().unwrap_or(0);
                ends.resize(ends.len() + count, end);
            }
        }
        self.validity.append_n_nulls(count);
    }

    /// Takes one JSON value, null included. On an error the column may hold half of it: cut it back.
    pub fn parse(&mut self, scanner: &mut Scanner<'_>) -> Parsed<()> {
        if scanner.take_null() {
            self.append_null();
            return Ok(());
        }
        match &mut self.values {
            Values::Bool(values) => {
                values.append(match scanner.word() {
                    b"true" => true,
                    b"false" => false,
                    _ => return scanner.bad("expected true or false"),
                });
            }
            Values::I32(values) => values.push(integer(scanner)?),
            Values::I64(values) if self.ty == LogicalType::TimestampTz => {
                let micros = plain(scanner, &mut self.scratch, text::parse_timestamptz)?;
                let Some(micros) = micros else { return scanner.bad("not a timestamp with time zone") };
                values.push(micros);
            }
            Values::I64(values) => values.push(integer(scanner)?),
            Values::Float(values) => values.push(float(scanner, f32::NAN, f32::INFINITY)?),
            Values::Double(values) => values.push(float(scanner, f64::NAN, f64::INFINITY)?),
            Values::Decimal(values) => {
                let LogicalType::Decimal { precision, scale } = self.ty else {
                    return scanner.bad("column of another type");
                };
                let value = plain(scanner, &mut self.scratch, |digits| text::parse_decimal(digits, precision, scale))?;
                let Some(value) = value else {
                    return scanner.bad(format!("not a decimal({precision},{scale})"));
                };
                values.push(value);
            }
            Values::Bytes(ends, data) => {
                if self.ty == LogicalType::Binary {
                    let decoded = plain(scanner, &mut self.scratch, |digits| text::parse_binary(digits, data))?;
                    if decoded.is_none() {
                        return scanner.bad("not base64");
                    }
                } else {
                    append_unescaped(scanner.string()?, data)?;
                }
                let Ok(end) = i32::try_from(data.len()) else {
                    return scanner.bad("more than 2 GiB of one column in one batch");
                };
                ends.push(end);
            }
            Values::Uuid(values) => {
                let Some(uuid) = plain(scanner, &mut self.scratch, text::parse_uuid)? else {
                    return scanner.bad("not a uuid");
                };
                values.extend_from_slice(&uuid);
            }
            Values::List(ends, elements) => {
                scanner.expect(b'[')?;
                if !scanner.take(b']') {
                    loop {
                        elements.parse(scanner)?;
                        if !scanner.take(b',') {
                            scanner.expect(b']')?;
                            break;
                        }
                    }
                }
                let Ok(end) = i32::try_from(elements.len()) else {
                    return scanner.bad("more than 2^31 elements of one column in one batch");
                };
                ends.push(end);
            }
        }
        self.validity.append_non_null();
        Ok(())
    }

    /// Appends a whole number; false: the column is of another type or narrower, and unchanged.
    pub fn append_long(&mut self, value: i64) -> bool {
        match &mut self.values {
            Values::I32(values) => match i32::try_from(value) {
                Ok(value) => values.push(value),
                Err(_) => return false,
            },
            Values::I64(values) => values.push(value),
            _ => return false,
        }
        self.validity.append_non_null();
        true
    }

    /// Appends a truth; false as for [`append_long`](Self::append_long).
    pub fn append_bool(&mut self, value: bool) -> bool {
        let Values::Bool(values) = &mut self.values else { return false };
        values.append(value);
        self.validity.append_non_null();
        true
    }

    /// Appends a float of 32 bits, to a column of 64 too; false as for [`append_long`](Self::append_long).
    pub fn append_float(&mut self, value: f32) -> bool {
        match &mut self.values {
            Values::Float(values) => values.push(value),
            Values::Double(values) => values.push(value.into()),
            _ => return false,
        }
        self.validity.append_non_null();
        true
    }

    /// Appends a float of 64 bits; false as for [`append_long`](Self::append_long).
    pub fn append_double(&mut self, value: f64) -> bool {
        let Values::Double(values) = &mut self.values else { return false };
        values.push(value);
        self.validity.append_non_null();
        true
    }

    /// Appends a uuid; false as for [`append_long`](Self::append_long).
    pub fn append_uuid(&mut self, value: &[u8; 16]) -> bool {
        let Values::Uuid(values) = &mut self.values else { return false };
        values.extend_from_slice(value);
        self.validity.append_non_null();
        true
    }

    /// Appends a decimal's unscaled value; false as for [`append_long`](Self::append_long).
    pub fn append_decimal(&mut self, unscaled: i128) -> bool {
        let (Values::Decimal(values), LogicalType::Decimal { precision, .. }) = (&mut self.values, &self.ty) else {
            return false;
        };
        if 10u128.checked_pow(u32::from(*precision)).is_none_or(|limit| unscaled.unsigned_abs() >= limit) {
            return false;
        }
        values.push(unscaled);
        self.validity.append_non_null();
        true
    }

    /// Appends to a column of strings or bytes what `write` does; None of it: nothing is appended, and false returned.
    pub fn append_with(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> bool {
        let Values::Bytes(ends, data) = &mut self.values else { return false };
        let start = data.len();
        match write(data).and_then(|()| i32::try_from(data.len()).ok()) {
            Some(end) => {
                ends.push(end);
                self.validity.append_non_null();
                true
            }
            None => {
                data.truncate(start);
                false
            }
        }
    }

    /// Appends a list of what `fill` appends to the elements, when it says true.
    pub fn append_list(&mut self, fill: impl FnOnce(&mut Self) -> Parsed<bool>) -> Parsed<bool> {
        let Values::List(ends, elements) = &mut self.values else { return Ok(false) };
        let start = elements.len();
        let filled = fill(elements);
        match (filled, i32::try_from(elements.len())) {
            (Ok(true), Ok(end)) => {
                ends.push(end);
                self.validity.append_non_null();
                Ok(true)
            }
            (filled, _) => {
                elements.truncate(start);
                filled.map(|_| false)
            }
        }
    }

    /// Appends text to a column of strings.
    pub fn append_text(&mut self, text: Raw<'_>) -> Parsed<()> {
        let Values::Bytes(ends, data) = &mut self.values else { return Ok(()) };
        append_unescaped(text, data)?;
        ends.push(i32::try_from(data.len()).map_err(|_| super::scan::Bad {
            reason: "more than 2 GiB of one column in one batch".into(),
            at: text.at,
        })?);
        self.validity.append_non_null();
        Ok(())
    }

    pub fn truncate(&mut self, len: usize) {
        match &mut self.values {
            Values::Bool(values) => values.truncate(len),
            Values::I32(values) => values.truncate(len),
            Values::I64(values) => values.truncate(len),
            Values::Float(values) => values.truncate(len),
            Values::Double(values) => values.truncate(len),
            Values::Decimal(values) => values.truncate(len),
            Values::Uuid(values) => values.truncate(16 * len),
            Values::Bytes(ends, data) => {
                ends.truncate(len + 1);
                data.truncate(ends.last().map_or(0, |end| *end as usize));
            }
            Values::List(ends, elements) => {
                ends.truncate(len + 1);
                elements.truncate(ends.last().map_or(0, |end| *end as usize));
            }
        }
        self.validity.truncate(len);
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        let nulls: Option<NullBuffer> = self.validity.finish();
        fn offsets(ends: &mut Vec<i32>) -> OffsetBuffer<i32> {
            OffsetBuffer::new(std::mem::replace(ends, vec![0]).into())
        }
        Ok(match &mut self.values {
            Values::Bool(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::I32(values) => {
                let values = std::mem::take(values).into();
                match self.ty {
                    LogicalType::Date => Arc::new(Date32Array::try_new(values, nulls)?),
                    _ => Arc::new(Int32Array::try_new(values, nulls)?) as ArrayRef,
                }
            }
            Values::I64(values) => {
                let values = std::mem::take(values).into();
                match self.ty {
                    LogicalType::Timestamp => Arc::new(TimestampMicrosecondArray::try_new(values, nulls)?),
                    LogicalType::TimestampTz => {
                        Arc::new(TimestampMicrosecondArray::try_new(values, nulls)?.with_timezone("UTC"))
                    }
                    _ => Arc::new(Int64Array::try_new(values, nulls)?) as ArrayRef,
                }
            }
            Values::Float(values) => Arc::new(Float32Array::try_new(std::mem::take(values).into(), nulls)?),
            Values::Double(values) => Arc::new(Float64Array::try_new(std::mem::take(values).into(), nulls)?),
            Values::Decimal(values) => {
                let array = Decimal128Array::try_new(std::mem::take(values).into(), nulls)?;
                let DataType::Decimal128(precision, scale) = self.ty.arrow() else { return Ok(Arc::new(array)) };
                Arc::new(array.with_precision_and_scale(precision, scale)?)
            }
            Values::Bytes(ends, data) => {
                let (offsets, data) = (offsets(ends), Buffer::from_vec(std::mem::take(data)));
                match self.ty {
                    LogicalType::Binary => Arc::new(BinaryArray::try_new(offsets, data, nulls)?),
                    _ => Arc::new(StringArray::try_new(offsets, data, nulls)?) as ArrayRef,
                }
            }
            Values::Uuid(values) => {
                Arc::new(FixedSizeBinaryArray::try_new(16, Buffer::from_vec(std::mem::take(values)), nulls)?)
            }
            Values::List(ends, elements) => {
                let values = elements.finish()?;
                let field = Arc::new(Field::new(LIST_ELEMENT, values.data_type().clone(), true));
                Arc::new(ListArray::try_new(field, offsets(ends), values, nulls)?)
            }
        })
    }
}

/// What stands in a string of a form that never needs escapes; one that has them anyway goes through `scratch`.
fn plain<T>(scanner: &mut Scanner<'_>, scratch: &mut Vec<u8>, parse: impl FnOnce(&[u8]) -> T) -> Parsed<T> {
    let raw = scanner.string()?;
    if !raw.escaped {
        return Ok(parse(raw.bytes));
    }
    scratch.clear();
    append_unescaped(raw, scratch)?;
    Ok(parse(scratch))
}

#[inline]
fn integer<T: TryFrom<i64>>(scanner: &mut Scanner<'_>) -> Parsed<T> {
    let word = scanner.word();
    let digits = word.strip_prefix(b"-").unwrap_or(word);
    let value = if digits.is_empty() {
        None
    } else {
        // Counted downwards: the smallest value has no positive counterpart.
        digits.iter().try_fold(0i64, |value, byte| {
            if !byte.is_ascii_digit() {
                return None;
            }
            value.checked_mul(10)?.checked_sub(i64::from(byte - b'0'))
        })
    };
    let value = if digits.len() < word.len() { value } else { value.and_then(i64::checked_neg) };
    match value.and_then(|value| T::try_from(value).ok()) {
        Some(value) => Ok(value),
        None => scanner.bad("not an integer of this column's range"),
    }
}

fn float<T: std::str::FromStr + std::ops::Neg<Output = T>>(
    scanner: &mut Scanner<'_>,
    nan: T,
    infinity: T,
) -> Parsed<T> {
    if scanner.peek() == Some(b'"') {
        return match scanner.string()?.bytes {
            b"NaN" => Ok(nan),
            b"Infinity" => Ok(infinity),
            b"-Infinity" => Ok(-infinity),
            _ => scanner.bad("not a float"),
        };
    }
    let word = scanner.word();
    let value = if is_number(word) { std::str::from_utf8(word).ok().and_then(|word| word.parse().ok()) } else { None };
    match value {
        Some(value) => Ok(value),
        None => scanner.bad("not a float"),
    }
}
