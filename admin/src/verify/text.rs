//! Values as text, from both sides: `COPY text | Arrow column -> canonical bytes -> Row`.
//!
//! The source's side is the server's own text; the lake's side is printed here, by the rules of PostgreSQL's output functions, with
//! nothing shared with the code that decoded the value on its way in. Where one value has more than one text (floats), both
//! sides are brought to the same one.

use std::io::Write as _;

use arrow::array::{
    Array, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, PrimitiveArray, StringArray,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType,
};
use lakeward_event::LogicalType;
use lakeward_event::types::{DATE_INFINITY, TIMESTAMP_INFINITY};
use lakeward_runtime::{Error, Result};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// One row: its key and all its columns, each value as canonical bytes. Reused from row to row.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Row {
    /// `tag, length, bytes` per column.
    bytes: Vec<u8>,
    /// Where each column begins in `bytes`.
    starts: Vec<usize>,
    /// The same of the key's columns, in the key's order.
    key: Vec<u8>,
}

const NULL: u8 = 0;
const VALUE: u8 = 1;

impl Row {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
        self.key.clear();
    }

    /// Appends a column; `write` leaves its canonical bytes, and answers false for NULL.
    pub fn push(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend([VALUE, 0, 0, 0, 0]);
        if write(&mut self.bytes) {
            // A field of PostgreSQL or MongoDB is below 1 GiB.
            let length = u32::try_from(self.bytes.len() - start - 5).unwrap_or(u32::MAX);
            self.bytes[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
        } else {
            self.bytes.truncate(start);
            self.bytes.push(NULL);
        }
    }

    /// After the last column: takes the key's columns.
    pub fn finish(&mut self, key: &[usize]) {
        for column in key {
            let range = self.range(*column);
            self.key.extend_from_slice(&self.bytes[range]);
        }
    }

    fn range(&self, column: usize) -> std::ops::Range<usize> {
        let start = self.starts.get(column).copied().unwrap_or(self.bytes.len());
        start..self.starts.get(column + 1).copied().unwrap_or(self.bytes.len())
    }

    /// A column's canonical bytes; None: NULL.
    pub fn value(&self, column: usize) -> Option<&[u8]> {
        match &self.bytes[self.range(column)] {
            [VALUE, _, _, _, _, value @ ..] => Some(value),
            _ => None,
        }
    }

    pub fn key_hash(&self) -> u128 {
        xxh3_128(&self.key)
    }
    pub fn hash(&self) -> u64 {
        xxh3_64(&self.bytes)
    }
    pub fn wide_hash(&self) -> u128 {
        xxh3_128(&self.bytes)
    }
}

/// What has to be done to a source's text before it can be compared with the printed value of a lake's column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Canon {
    /// Nothing: the value has one text.
    Exact,
    Float,
    Double,
    /// NaN and infinities cannot be held.
    Decimal,
    /// Years beyond 64 bits of microseconds cannot be held.
    Timestamp,
    /// Arrays of other than one dimension, or that begin elsewhere than at 1, cannot be held.
    List {
        element: Box<Canon>,
        /// `pg_type.typdelim` of the element type: `,` for all but box.
        delimiter: u8,
    },
    /// A composite type against our JSON: by its leaves.
    Composite,
}

impl Canon {
    /// For a source column that the lake holds as this type.
    pub fn of(ty: &LogicalType, delimiter: u8) -> Self {
        match ty {
            LogicalType::Float => Self::Float,
            LogicalType::Double => Self::Double,
            LogicalType::Decimal { .. } => Self::Decimal,
            LogicalType::Timestamp | LogicalType::TimestampTz => Self::Timestamp,
            LogicalType::List(element) => Self::List { element: Box::new(Self::of(element, delimiter)), delimiter },
            _ => Self::Exact,
        }
    }

    /// Appends the canonical form of the server's text; false: the lake's type cannot hold the value.
    pub fn write(&self, text: &[u8], out: &mut Vec<u8>) -> bool {
        match self {
            Self::Exact => out.extend_from_slice(text),
            Self::Float => match std::str::from_utf8(text).ok().and_then(|t| t.parse::<f32>().ok()) {
                Some(value) => write_float(value, out),
                None => out.extend_from_slice(text),
            },
            Self::Double => match std::str::from_utf8(text).ok().and_then(|t| t.parse::<f64>().ok()) {
                Some(value) => write_double(value, out),
                None => out.extend_from_slice(text),
            },
            Self::Decimal => {
                if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") {
                    return false;
                }
                out.extend_from_slice(text);
            }
            Self::Timestamp => {
                if !timestamp_fits(text) {
                    return false;
                }
                out.extend_from_slice(text);
            }
            Self::List { element, delimiter } => return write_list(element, *delimiter, text, out),
            Self::Composite => write_leaves(text, out),
        }
        true
    }
}

fn write_float(value: f32, out: &mut Vec<u8>) {
    // NaNs are one value in PostgreSQL; everything else is told apart, -0 from 0 too.
    let _ = write!(out, "{value:?}");
}

pub fn write_double(value: f64, out: &mut Vec<u8>) {
    let _ = write!(out, "{value:?}");
}

/// The largest timestamp that 64 bits of microseconds since 1970 hold, `i64::MAX` itself being infinity's.
const LAST_TIMESTAMP: &[u8] = b"294247-01-10 04:00:54.775806";

fn timestamp_fits(text: &[u8]) -> bool {
    // Years of six digits are the only ones that may not fit, and those BC reach back to 4713 only.
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits < 6 {
        return true;
    }
    let bare = text.strip_suffix(b"+00").unwrap_or(text);
    // ISO texts of one width of year order as their moments do; a fraction only adds to the end.
    bare <= LAST_TIMESTAMP
}

/// `{1,NULL,"a b"}` with each element in its canonical form.
fn write_list(element: &Canon, delimiter: u8, text: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut scratch = Vec::new();
    let mut rest = match text {
        [b'{' | b'[', rest @ ..] => rest,
        _ => return false,
    };
    // `[2:3]={…}` is a lower bound; pgvector's `[1,2]` has no `=`.
    if text.starts_with(b"[") && text.contains(&b'=') {
        return false;
    }
    out.push(b'{');
    if matches!(rest, b"}" | b"]") {
        out.push(b'}');
        return true;
    }
    loop {
        scratch.clear();
        let quoted = rest.first() == Some(&b'"');
        if quoted {
            rest = &rest[1..];
        }
        let ended = loop {
            match rest {
                [b'\\', escaped, after @ ..] => {
                    scratch.push(*escaped);
                    rest = after;
                }
                [b'"', after @ ..] if quoted => {
                    rest = after;
                    break true;
                }
                [byte, ..] if !quoted && (*byte == delimiter || matches!(byte, b'}' | b']')) => break true,
                [b'{', ..] if !quoted => break false,
                [byte, after @ ..] => {
                    scratch.push(*byte);
                    rest = after;
                }
                [] => break false,
            }
        };
        if !ended {
            out.truncate(start);
            return false;
        }
        if !quoted && scratch == b"NULL" {
            out.extend_from_slice(b"NULL");
        } else {
            let begin = out.len();
            if !element.write(&scratch, out) {
                out.truncate(start);
                return false;
            }
            quote_element(out, begin);
        }
        match rest {
            [byte, after @ ..] if *byte == delimiter => {
                out.push(b',');
                rest = after;
            }
            [b'}' | b']'] => {
                out.push(b'}');
                return true;
            }
            _ => {
                out.truncate(start);
                return false;
            }
        }
    }
}

/// Quotes what was written from `begin` on, if PostgreSQL's `array_out` would.
fn quote_element(out: &mut Vec<u8>, begin: usize) {
    let element = &out[begin..];
    let special = |b: &u8| matches!(b, b'"' | b'\\' | b'{' | b'}' | b',' | b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    if !element.is_empty() && !element.eq_ignore_ascii_case(b"NULL") && !element.iter().any(special) {
        return;
    }
    let mut quoted = Vec::with_capacity(element.len() + 2);
    quoted.push(b'"');
    for byte in element {
        if matches!(byte, b'"' | b'\\') {
            quoted.push(b'\\');
        }
        quoted.push(*byte);
    }
    quoted.push(b'"');
    out.truncate(begin);
    out.extend_from_slice(&quoted);
}

/// A composite's text, or the JSON object that the lake holds for it, to its leaves one after another: names and nesting are in
/// the type, and the type is the same on both sides.
fn write_leaves(text: &[u8], out: &mut Vec<u8>) {
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(text)
        && value.is_object()
    {
        json_leaves(&value, out);
        return;
    }
    text_leaves(text, out);
}

fn json_leaves(value: &serde_json::Value, out: &mut Vec<u8>) {
    match value {
        serde_json::Value::Object(fields) => fields.values().for_each(|v| json_leaves(v, out)),
        serde_json::Value::Array(elements) => elements.iter().for_each(|v| json_leaves(v, out)),
        serde_json::Value::Null => leaf(b"", out),
        serde_json::Value::Bool(true) => leaf(b"t", out),
        serde_json::Value::Bool(false) => leaf(b"f", out),
        serde_json::Value::Number(number) => leaf(number.to_string().as_bytes(), out),
        serde_json::Value::String(string) => text_leaves(string.as_bytes(), out),
    }
}

/// A row's or array's text is taken apart; anything else is a leaf.
fn text_leaves(text: &[u8], out: &mut Vec<u8>) {
    let inner = match text {
        [b'(', inner @ .., b')'] | [b'{', inner @ .., b'}'] => inner,
        _ => return leaf(text, out),
    };
    let mut value = Vec::new();
    let mut rest = inner;
    let mut quoted = false;
    loop {
        match rest {
            [b'"', b'"', after @ ..] if quoted => {
                value.push(b'"');
                rest = after;
            }
            [b'"', after @ ..] => {
                quoted = !quoted;
                rest = after;
            }
            [b'\\', escaped, after @ ..] => {
                value.push(*escaped);
                rest = after;
            }
            [b',', after @ ..] if !quoted => {
                text_leaves(&value, out);
                value.clear();
                rest = after;
            }
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return text_leaves(&value, out),
        }
    }
}

fn leaf(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(text);
    out.push(0x1f);
}

/// A lake's column, ready to print its values as PostgreSQL does.
pub enum Printer<'a> {
    Bool(&'a BooleanArray),
    Int(&'a PrimitiveArray<Int32Type>),
    Long(&'a PrimitiveArray<Int64Type>),
    Float(&'a PrimitiveArray<Float32Type>),
    Double(&'a PrimitiveArray<Float64Type>),
    Decimal(&'a PrimitiveArray<Decimal128Type>, i8),
    Text(&'a StringArray),
    Uuid(&'a FixedSizeBinaryArray),
    Binary(&'a BinaryArray),
    Date(&'a PrimitiveArray<Date32Type>),
    Timestamp(&'a PrimitiveArray<TimestampMicrosecondType>, bool),
    List(&'a ListArray, Box<Printer<'a>>),
    /// A composite's JSON, by its leaves.
    Leaves(&'a StringArray),
    /// The lake does not have the column.
    Missing,
}

impl<'a> Printer<'a> {
    pub fn new(array: &'a dyn Array) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::Boolean => Self::Bool(array.as_boolean()),
            DataType::Int32 => Self::Int(array.as_primitive()),
            DataType::Int64 => Self::Long(array.as_primitive()),
            DataType::Float32 => Self::Float(array.as_primitive()),
            DataType::Float64 => Self::Double(array.as_primitive()),
            DataType::Decimal128(_, scale) => Self::Decimal(array.as_primitive(), *scale),
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::FixedSizeBinary(16) => Self::Uuid(array.as_fixed_size_binary()),
            DataType::Binary => Self::Binary(array.as_binary()),
            DataType::Date32 => Self::Date(array.as_primitive()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => Self::Timestamp(array.as_primitive(), zone.is_some()),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                Self::List(list, Box::new(Self::new(list.values())?))
            }
            other => {
                return Err(
                    Error::human("the lake has a column of a type that Lakeward does not write").with("type", other)
                );
            }
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Bool(a) => a.is_null(row),
            Self::Int(a) => a.is_null(row),
            Self::Long(a) => a.is_null(row),
            Self::Float(a) => a.is_null(row),
            Self::Double(a) => a.is_null(row),
            Self::Decimal(a, _) => a.is_null(row),
            Self::Text(a) | Self::Leaves(a) => a.is_null(row),
            Self::Uuid(a) => a.is_null(row),
            Self::Binary(a) => a.is_null(row),
            Self::Date(a) => a.is_null(row),
            Self::Timestamp(a, _) => a.is_null(row),
            Self::List(a, _) => a.is_null(row),
            Self::Missing => true,
        }
    }

    /// Appends the value's canonical bytes; false: NULL.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) -> bool {
        if self.is_null(row) {
            return false;
        }
        // Writing to a Vec does not fail.
        match self {
            Self::Bool(a) => out.push(if a.value(row) { b't' } else { b'f' }),
            Self::Int(a) => drop(write!(out, "{}", a.value(row))),
            Self::Long(a) => drop(write!(out, "{}", a.value(row))),
            Self::Float(a) => write_float(a.value(row), out),
            Self::Double(a) => write_double(a.value(row), out),
            Self::Decimal(a, scale) => write_decimal(a.value(row), *scale, out),
            Self::Text(a) => out.extend_from_slice(a.value(row).as_bytes()),
            Self::Leaves(a) => write_leaves(a.value(row).as_bytes(), out),
            Self::Uuid(a) => write_uuid(a.value(row), out),
            Self::Binary(a) => {
                out.extend_from_slice(b"\\x");
                write_hex(a.value(row), out);
            }
            Self::Date(a) => write_date(a.value(row), out),
            Self::Timestamp(a, zone) => write_timestamp(a.value(row), *zone, out),
            Self::List(a, elements) => {
                out.push(b'{');
                let offsets = a.value_offsets();
                for element in offsets[row]..offsets[row + 1] {
                    if element > offsets[row] {
                        out.push(b',');
                    }
                    let begin = out.len();
                    if elements.write(element as usize, out) {
                        quote_element(out, begin);
                    } else {
                        out.extend_from_slice(b"NULL");
                    }
                }
                out.push(b'}');
            }
            Self::Missing => return false,
        }
        true
    }
}

/// `numeric_out`: exactly `scale` digits after the point.
fn write_decimal(value: i128, scale: i8, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    let scale = usize::try_from(scale).unwrap_or(0);
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    out.extend_from_slice(whole.as_bytes());
    if scale > 0 {
        out.push(b'.');
        out.extend_from_slice(fraction.as_bytes());
    }
}

pub fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

pub fn write_uuid(bytes: &[u8], out: &mut Vec<u8>) {
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        write_hex(&[*byte], out);
    }
}

/// Year, month, day of days since 1970-01-01, in the proleptic Gregorian calendar (year 0 is 1 BC).
/// Algorithm: <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The date; whether ` BC` has to follow.
fn write_civil(days: i64, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil(days);
    let (shown, bc) = if year > 0 { (year, false) } else { (1 - year, true) };
    let _ = write!(out, "{shown:04}-{month:02}-{day:02}");
    bc
}

fn write_date(days: i32, out: &mut Vec<u8>) {
    match days {
        DATE_INFINITY => out.extend_from_slice(b"infinity"),
        days if days == -DATE_INFINITY => out.extend_from_slice(b"-infinity"),
        days => {
            if write_civil(i64::from(days), out) {
                out.extend_from_slice(b" BC");
            }
        }
    }
}

pub fn write_timestamp(micros: i64, zone: bool, out: &mut Vec<u8>) {
    match micros {
        TIMESTAMP_INFINITY => return out.extend_from_slice(b"infinity"),
        micros if micros == -TIMESTAMP_INFINITY => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    let bc = write_civil(micros.div_euclid(86_400_000_000), out);
    let within = micros.rem_euclid(86_400_000_000);
    let (seconds, fraction) = (within / 1_000_000, within % 1_000_000);
    let _ = write!(out, " {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        let _ = write!(out, ".{fraction:06}");
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
    if zone {
        out.extend_from_slice(b"+00");
    }
    if bc {
        out.extend_from_slice(b" BC");
    }
}

/// Microseconds since 1970 as people read them.
pub fn moment(micros: i64) -> String {
    let mut out = Vec::new();
    write_timestamp(micros, false, &mut out);
    out.push(b'Z');
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
