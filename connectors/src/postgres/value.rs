//! One value into its column: `text | binary bytes -> Column`.

use lakeward_event::{Error, Result};

use super::array;
use super::column::{Bytes, Column};
use super::composite;
use super::datetime;
use super::numeric::{self, Decimal};
use super::types::{Kind, Scalar};

/// Builds the array of one table column.
pub struct ColumnBuilder {
    kind: Kind,
    column: Column,
}

/// Whether a column took a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fit {
    Held,
    /// The column's type cannot hold it; nothing was appended.
    Misfit,
}

impl From<bool> for Fit {
    fn from(held: bool) -> Self {
        if held { Self::Held } else { Self::Misfit }
    }
}

impl ColumnBuilder {
    pub fn new(kind: &Kind) -> Self {
        Self { kind: kind.clone(), column: Column::new(&kind.logical()) }
    }

    pub fn column(&mut self) -> &mut Column {
        &mut self.column
    }

    /// Appends what the type's output function printed. `scratch` is free for use.
    #[inline]
    pub fn append_text(&mut self, text: &[u8], scratch: &mut Vec<u8>) -> Result<Fit> {
        match &self.kind {
            Kind::Scalar(scalar) => append_text(scalar, &mut self.column, text),
            Kind::List { element, marks } => {
                let Column::List(lists) = &mut self.column else { return Err(mismatch("list")) };
                let mut failed = None;
                let whole = array::elements(text, *marks, scratch, |value| match value {
                    None => {
                        lists.child.append_nulls(1);
                        true
                    }
                    Some(value) => match append_text(element, &mut lists.child, value) {
                        Ok(fit) => fit == Fit::Held,
                        Err(error) => {
                            failed = Some(error);
                            false
                        }
                    },
                });
                if let Some(error) = failed {
                    return Err(error);
                }
                if whole {
                    lists.end_list()?;
                } else {
                    lists.abandon_list();
                }
                Ok(whole.into())
            }
        }
    }

    /// Appends what the type's send function sent. A misfit's text, as the server would print it, is left in `text`.
    #[inline]
    pub fn append_binary(&mut self, bytes: &[u8], text: &mut Vec<u8>) -> Result<Fit> {
        let Kind::Scalar(scalar) = &self.kind else {
            return Err(Error::malformed("binary value", "arrays are read as text"));
        };
        append_binary(scalar, &mut self.column, bytes, text)
    }
}

#[cold]
fn mismatch(what: &str) -> Error {
    Error::inconsistent("column builder", format!("{what} in a column of another type"))
}

#[inline]
fn append_text(scalar: &Scalar, column: &mut Column, text: &[u8]) -> Result<Fit> {
    let held = match (scalar, column) {
        (Scalar::Int, Column::Int(c)) => {
            integer(text).and_then(|v| i32::try_from(v).ok()).map(|v| c.append(v)).is_some()
        }
        (Scalar::Long, Column::Long(c)) => integer(text).map(|v| c.append(v)).is_some(),
        (Scalar::Decimal { precision, scale }, Column::Decimal(c)) => {
            match numeric::decimal_from_text(text, *precision, *scale) {
                Decimal::Unscaled(value) => {
                    c.append(value);
                    true
                }
                Decimal::Misfit => false,
            }
        }
        (Scalar::Text | Scalar::Numeric | Scalar::Json | Scalar::Jsonb, Column::Text(c)) => {
            return append_utf8(c, text);
        }
        (Scalar::Bool, Column::Bool(c)) => match text {
            b"t" => {
                c.append(true);
                true
            }
            b"f" => {
                c.append(false);
                true
            }
            _ => false,
        },
        (Scalar::Float, Column::Float(c)) => parse::<f32>(text).map(|v| c.append(v)).is_some(),
        (Scalar::Double, Column::Double(c)) => parse::<f64>(text).map(|v| c.append(v)).is_some(),
        (Scalar::Date, Column::Date(c)) => datetime::date_from_text(text).map(|v| c.append(v)).is_some(),
        (Scalar::Timestamp, Column::Timestamp(c)) => {
            datetime::timestamp_from_text(text, false).map(|v| c.append(v)).is_some()
        }
        (Scalar::TimestampTz, Column::Timestamp(c)) => {
            datetime::timestamp_from_text(text, true).map(|v| c.append(v)).is_some()
        }
        (Scalar::Uuid, Column::Uuid(c)) => uuid(text).map(|v| c.append(&v)).is_some(),
        (Scalar::Bytea, Column::Binary(c)) => c.append_with(|out| hex(text, out))?,
        (Scalar::Composite(composite), Column::Text(c)) => {
            c.append_with(|out| composite::write_object(composite, text, out))?
        }
        (scalar, _) => return Err(mismatch(&format!("{scalar:?}"))),
    };
    Ok(held.into())
}

#[inline]
fn append_binary(scalar: &Scalar, column: &mut Column, bytes: &[u8], text: &mut Vec<u8>) -> Result<Fit> {
    match (scalar, column) {
        (Scalar::Int, Column::Int(c)) => match *bytes {
            [a, b, d, e] => c.append(i32::from_be_bytes([a, b, d, e])),
            [a, b] => c.append(i32::from(i16::from_be_bytes([a, b]))),
            _ => return Err(length("integer", bytes)),
        },
        (Scalar::Long, Column::Long(c)) => match *bytes {
            // oid has no sign
            [a, b, d, e] => c.append(i64::from(u32::from_be_bytes([a, b, d, e]))),
            _ => c.append(i64::from_be_bytes(array(bytes, "bigint")?)),
        },
        (Scalar::Decimal { precision, scale }, Column::Decimal(c)) => {
            let number = binary_numeric(bytes)?;
            match number.decimal(*precision, *scale) {
                Decimal::Unscaled(value) => c.append(value),
                Decimal::Misfit => {
                    text.clear();
                    number.write_text(text);
                    return Ok(Fit::Misfit);
                }
            }
        }
        (Scalar::Numeric, Column::Text(c)) => {
            let number = binary_numeric(bytes)?;
            c.append_with(|out| {
                number.write_text(out);
                true
            })?;
        }
        (Scalar::Text | Scalar::Json, Column::Text(c)) => return utf8_or_text(c, bytes, text),
        (Scalar::Jsonb, Column::Text(c)) => match bytes.split_first() {
            Some((1, json)) => return utf8_or_text(c, json, text),
            _ => return Err(Error::malformed("jsonb", "unknown version of its binary form")),
        },
        (Scalar::Bool, Column::Bool(c)) => c.append(array::<1>(bytes, "boolean")?[0] != 0),
        (Scalar::Float, Column::Float(c)) => c.append(f32::from_be_bytes(array(bytes, "real")?)),
        (Scalar::Double, Column::Double(c)) => c.append(f64::from_be_bytes(array(bytes, "double precision")?)),
        (Scalar::Date, Column::Date(c)) => {
            let days = i32::from_be_bytes(array(bytes, "date")?);
            match datetime::date_from_binary(days) {
                Some(days) => c.append(days),
                None => return Err(Error::malformed("date", format!("{days} days from 2000 is beyond any calendar"))),
            }
        }
        (Scalar::Timestamp | Scalar::TimestampTz, Column::Timestamp(c)) => {
            let micros = i64::from_be_bytes(array(bytes, "timestamp")?);
            match datetime::timestamp_from_binary(micros) {
                Some(micros) => c.append(micros),
                None => {
                    text.clear();
                    datetime::write_timestamp(micros, *scalar == Scalar::TimestampTz, text);
                    return Ok(Fit::Misfit);
                }
            }
        }
        (Scalar::Uuid, Column::Uuid(c)) => c.append(&array(bytes, "uuid")?),
        (Scalar::Bytea, Column::Binary(c)) => c.append(bytes)?,
        (Scalar::Composite(_), _) => return Err(Error::malformed("binary value", "rows are read as text")),
        (scalar, _) => return Err(mismatch(&format!("{scalar:?}"))),
    }
    Ok(Fit::Held)
}

fn utf8_or_text(column: &mut Bytes, bytes: &[u8], text: &mut Vec<u8>) -> Result<Fit> {
    let fit = append_utf8(column, bytes)?;
    if fit == Fit::Misfit {
        text.clear();
        text.extend_from_slice(bytes);
    }
    Ok(fit)
}

/// A server whose encoding is SQL_ASCII sends any bytes.
#[inline]
fn append_utf8(column: &mut Bytes, text: &[u8]) -> Result<Fit> {
    if std::str::from_utf8(text).is_err() {
        return Ok(Fit::Misfit);
    }
    column.append(text)?;
    Ok(Fit::Held)
}

fn binary_numeric(bytes: &[u8]) -> Result<numeric::Binary<'_>> {
    numeric::Binary::parse(bytes).ok_or_else(|| Error::malformed("numeric", "not the binary form of a number"))
}

#[inline]
fn array<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| length(what, bytes))
}

#[cold]
fn length(what: &str, bytes: &[u8]) -> Error {
    Error::malformed(what, format!("{} bytes", bytes.len()))
}

#[inline]
fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut value: u64 = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // 19 digits are less than 2^64.
        value = value * 10 + u64::from(digit);
    }
    if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn nibble(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut value = [0; 16];
    let mut digits = text.iter().filter(|b| **b != b'-');
    for byte in &mut value {
        *byte = nibble(*digits.next()?)? << 4 | nibble(*digits.next()?)?;
    }
    (text.len() == 36 && digits.next().is_none()).then_some(value)
}

/// `\x` and two digits per byte (`bytea_output = hex`).
fn hex(text: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(digits) = text.strip_prefix(b"\\x") else { return false };
    if digits.len() % 2 != 0 {
        return false;
    }
    out.reserve(digits.len() / 2);
    for pair in digits.chunks_exact(2) {
        match (nibble(pair[0]), nibble(pair[1])) {
            (Some(high), Some(low)) => out.push(high << 4 | low),
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
#[path = "value/tests.rs"]
mod tests;
