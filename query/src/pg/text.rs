//! Arrow values -> text as PostgreSQL prints it (`DateStyle = ISO`, UTC, `bytea_output = hex`), and as JSON.

use std::fmt::Write as _;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Date32Type, Float32Type, Float64Type, TimeUnit};
use arrow::datatypes::{
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lakeward_event::types::{DATE_INFINITY, TIMESTAMP_INFINITY};

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// What the text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As `value::text` and psql print it, but for booleans: `true`, `false`.
    Text,
    /// A JSON value.
    Json,
}

/// Appends the text of a row's value; a NULL appends nothing in [`Style::Text`], `null` in [`Style::Json`].
pub type Printer<'a> = Box<dyn Fn(usize, &mut String) + 'a>;

/// The printer of a column.
pub fn printer(array: &ArrayRef, style: Style) -> Result<Printer<'_>, ArrowError> {
    let value = value_printer(array, style)?;
    let null = if style == Style::Json { "null" } else { "" };
    let array = array.as_ref();
    let nulls = array.logical_nulls();
    Ok(Box::new(move |row, out| match &nulls {
        Some(nulls) if nulls.is_null(row) => out.push_str(null),
        _ => value(row, out),
    }))
}

fn value_printer(array: &ArrayRef, style: Style) -> Result<Printer<'_>, ArrowError> {
    let json = style == Style::Json;
    Ok(match array.data_type() {
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            text(move |row| values.value(row), style)
        }
        DataType::LargeUtf8 => {
            let values = array.as_string::<i64>();
            text(move |row| values.value(row), style)
        }
        DataType::Utf8View => {
            let values = array.as_string_view();
            text(move |row| values.value(row), style)
        }
        // No other type of the lake has 16 fixed bytes.
        DataType::FixedSizeBinary(16) => {
            let values = array.as_fixed_size_binary();
            quoted(move |row, out| uuid_text(values.value(row), out), style)
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            quoted(move |row, out| bytea_text(values.value(row), json, out), style)
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            quoted(move |row, out| bytea_text(values.value(row), json, out), style)
        }
        DataType::LargeBinary => {
            let values = array.as_binary::<i64>();
            quoted(move |row, out| bytea_text(values.value(row), json, out), style)
        }
        DataType::BinaryView => {
            let values = array.as_binary_view();
            quoted(move |row, out| bytea_text(values.value(row), json, out), style)
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>();
            Box::new(move |row, out| {
                let v = values.value(row);
                float_text(f64::from(v), v.is_finite().then(|| format!("{v:e}")), 6, json, out);
            })
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            Box::new(move |row, out| {
                let v = values.value(row);
                float_text(v, v.is_finite().then(|| format!("{v:e}")), 15, json, out);
            })
        }
        DataType::Date32 => {
            let values = array.as_primitive::<Date32Type>();
            quoted(move |row, out| date_text(values.value(row), out), style)
        }
        DataType::Timestamp(unit, zone) => {
            let zone = zone.is_some();
            let separator = if json { 'T' } else { ' ' };
            macro_rules! timestamps {
                ($ty:ty, $micros:expr) => {{
                    let values = array.as_primitive::<$ty>();
                    let micros: fn(i64) -> i64 = $micros;
                    quoted(move |row, out| timestamp_text(micros(values.value(row)), zone, separator, out), style)
                }};
            }
            match unit {
                TimeUnit::Second => timestamps!(TimestampSecondType, |v| v.saturating_mul(MICROS_PER_SECOND)),
                TimeUnit::Millisecond => timestamps!(TimestampMillisecondType, |v| v.saturating_mul(1000)),
                TimeUnit::Microsecond => timestamps!(TimestampMicrosecondType, |v| v),
                TimeUnit::Nanosecond => timestamps!(TimestampNanosecondType, |v| v.div_euclid(1000)),
            }
        }
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let offsets = lists.value_offsets();
            let element = printer(lists.values(), style)?;
            let values = lists.values();
            Box::new(move |row, out| {
                let range = offsets[row] as usize..offsets[row + 1] as usize;
                out.push(if json { '[' } else { '{' });
                let mut scratch = String::new();
                for (i, index) in range.enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    if json {
                        element(index, out);
                    } else if values.is_null(index) {
                        out.push_str("NULL");
                    } else {
                        scratch.clear();
                        element(index, &mut scratch);
                        array_element(&scratch, out);
                    }
                }
                out.push(if json { ']' } else { '}' });
            })
        }
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => displayed(array, false)?,
        DataType::Null => Box::new(move |_, out| out.push_str(if json { "null" } else { "" })),
        // Intervals, maps, structs: only expressions make them; Arrow's own form.
        _ => displayed(array, json)?,
    })
}

/// Arrow's own text.
fn displayed(array: &ArrayRef, quote: bool) -> Result<Printer<'_>, ArrowError> {
    const OPTIONS: FormatOptions<'static> = FormatOptions::new();
    let formatter = ArrayFormatter::try_new(array.as_ref(), &OPTIONS)?;
    Ok(Box::new(move |row, out| {
        if quote {
            json_string(&formatter.value(row).to_string(), out);
        } else {
            let start = out.len();
            if write!(out, "{}", formatter.value(row)).is_err() {
                out.truncate(start);
            }
        }
    }))
}

fn text<'a>(get: impl Fn(usize) -> &'a str + 'a, style: Style) -> Printer<'a> {
    match style {
        Style::Text => Box::new(move |row, out| out.push_str(get(row))),
        Style::Json => Box::new(move |row, out| json_string(get(row), out)),
    }
}

/// A value whose text needs no escape, in quotes where it is JSON.
fn quoted<'a>(print: impl Fn(usize, &mut String) + 'a, style: Style) -> Printer<'a> {
    match style {
        Style::Text => Box::new(print),
        Style::Json => Box::new(move |row, out| {
            out.push('"');
            print(row, out);
            out.push('"');
        }),
    }
}

/// Appends a JSON string.
pub(crate) fn json_string(value: &str, out: &mut String) {
    out.push('"');
    let mut start = 0;
    for (i, byte) in value.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&value[start..i]);
        if escape.is_empty() {
            let _ = write!(out, "\\u{byte:04x}");
        } else {
            out.push_str(escape);
        }
        start = i + 1;
    }
    out.push_str(&value[start..]);
    out.push('"');
}

/// An element of an array's text, in quotes where PostgreSQL puts them.
fn array_element(value: &str, out: &mut String) {
    let plain = !value.is_empty()
        && !value.eq_ignore_ascii_case("null")
        && !value
            .contains(|c: char| matches!(c, '{' | '}' | '"' | '\\' | ',') || c.is_ascii_whitespace() || c == '\x0b');
    if plain {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

fn uuid_text(bytes: &[u8], out: &mut String) {
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        hex(*byte, out);
    }
}

fn bytea_text(bytes: &[u8], json: bool, out: &mut String) {
    out.push_str(if json { "\\\\x" } else { "\\x" });
    for byte in bytes {
        hex(*byte, out);
    }
}

fn hex(byte: u8, out: &mut String) {
    for nibble in [byte >> 4, byte & 15] {
        out.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
    }
}

/// The 16 bytes of a uuid in any form PostgreSQL reads: upper case, without hyphens, in braces.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let text = text.trim();
    let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
    let mut bytes = [0u8; 16];
    let mut digits = 0usize;
    let mut after_hyphen = true; // none at the start, none after another
    for c in text.chars() {
        if c == '-' {
            if after_hyphen || !digits.is_multiple_of(4) || digits == 32 {
                return None;
            }
            after_hyphen = true;
            continue;
        }
        after_hyphen = false;
        let value = c.to_digit(16)?;
        let byte = bytes.get_mut(digits / 2)?;
        *byte = *byte << 4 | value as u8;
        digits += 1;
    }
    (digits == 32).then_some(bytes)
}

/// Shortest digits that read back the same; an exponent where PostgreSQL writes one (`digits`: its type's decimal digits).
fn float_text(value: f64, scientific: Option<String>, digits: i32, json: bool, out: &mut String) {
    let Some(scientific) = scientific else {
        let name = if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        if json {
            json_string(name, out);
        } else {
            out.push_str(name);
        }
        return;
    };
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return out.push_str(&scientific) };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if exponent < -4 || exponent >= digits {
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "{mantissa}e{sign}{:02}", exponent.abs());
        return;
    }
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |m| ("-", m));
    let all: String = mantissa.chars().filter(|c| *c != '.').collect();
    out.push_str(sign);
    if exponent < 0 {
        out.push_str("0.");
        (1..-exponent).for_each(|_| out.push('0'));
        out.push_str(&all);
        return;
    }
    let whole = exponent as usize + 1;
    for i in 0..whole {
        out.push(all.as_bytes().get(i).map_or('0', |b| char::from(*b)));
    }
    if all.len() > whole {
        out.push('.');
        out.push_str(&all[whole..]);
    }
}

/// Year, month and day of a day number; the proleptic Gregorian calendar, over the whole range of i64 that a microsecond has.
fn civil(days: i64) -> (i64, u32, u32) {
    // Years start in March here, so that a leap day is a year's last; eras have 400 years.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

/// The date without its era; true: it is BC.
fn civil_text(days: i64, out: &mut String) -> bool {
    let (year, month, day) = civil(days);
    let bc = year <= 0;
    let _ = write!(out, "{:04}-{month:02}-{day:02}", if bc { 1 - year } else { year });
    bc
}

fn date_text(days: i32, out: &mut String) {
    match days {
        DATE_INFINITY => out.push_str("infinity"),
        days if days == -DATE_INFINITY => out.push_str("-infinity"),
        days => {
            if civil_text(i64::from(days), out) {
                out.push_str(" BC");
            }
        }
    }
}

fn timestamp_text(micros: i64, zone: bool, separator: char, out: &mut String) {
    if micros == TIMESTAMP_INFINITY {
        return out.push_str("infinity");
    }
    if micros == -TIMESTAMP_INFINITY {
        return out.push_str("-infinity");
    }
    let seconds = micros.div_euclid(MICROS_PER_SECOND);
    let bc = civil_text(seconds.div_euclid(SECONDS_PER_DAY), out);
    let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
    let _ = write!(out, "{separator}{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60);
    let fraction = micros.rem_euclid(MICROS_PER_SECOND);
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
    if zone {
        out.push_str(if separator == 'T' { "+00:00" } else { "+00" });
    }
    if bc {
        out.push_str(" BC");
    }
}

/// Microseconds since 1970 as PostgreSQL prints a timestamptz in UTC.
pub fn timestamptz_text(micros: i64) -> String {
    let mut out = String::new();
    timestamp_text(micros, true, ' ', &mut out);
    out
}
