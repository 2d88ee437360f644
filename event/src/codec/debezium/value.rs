//! One value of a record to its column: `JSON value in some form -> Column`, and what a value is where no schema tells.

use super::form::Form;
use super::text;
use crate::codec::json::columns::Column;
use crate::codec::json::scan::{Parsed, Scanner, append_unescaped, is_number};
use crate::codec::json::text::{parse_binary, parse_date, parse_decimal, parse_timestamptz, write_string};
use crate::types::{DATE_INFINITY, LogicalType, TIMESTAMP_INFINITY};

/// PostgreSQL's first and last day, and its first microsecond: what lies beyond is a value that Debezium broke.
const DATES: std::ops::RangeInclusive<i64> = -2_440_588..=2_145_042_905;
const FIRST_TIMESTAMP: i64 = -210_866_803_200_000_000;
/// What `infinity` and `-infinity` become: as a snapshot reads them, as the stream does, and as that of Debezium 2 does.
const DATE_INFINITIES: [i64; 3] = [-622_191_234, 2_146_033_979, -2_147_472_692];
const DATE_MINUS_INFINITIES: [i64; 2] = [-625_821_272, -2_147_472_691];
/// The same in ISO 8601.
const ISO_DATE_INFINITIES: [&[u8]; 2] = [b"+292278994-08-16", b"+5877611-06-21"];
const ISO_DATE_MINUS_INFINITIES: [&[u8]; 2] = [b"+292269055-12-02", b"-5877611-06-22"];
/// The JDBC driver's infinities. Debezium 3 hands them on as milliseconds, and says the ends of 64 bits for microseconds; to
/// Debezium 2 they are microseconds, and milliseconds a thousandth of them.
const INFINITY: i64 = 9_223_372_036_825_200_000;
const MINUS_INFINITY: i64 = -9_223_372_036_832_400_000;
const MILLIS_INFINITY: i64 = INFINITY / 1_000;
const MILLIS_MINUS_INFINITY: i64 = MINUS_INFINITY / 1_000;

/// Buffers that are used again from value to value.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub text: Vec<u8>,
    pub bytes: Vec<u8>,
}

/// Appends the value that is next; false, or an error: the column cannot hold it, and may hold half of it.
pub(super) fn append(
    form: &Form,
    column: &mut Column,
    scanner: &mut Scanner<'_>,
    scratch: &mut Scratch,
) -> Parsed<bool> {
    if scanner.take_null() {
        column.append_null();
        return Ok(true);
    }
    match form {
        Form::Plain => plain(column, scanner, scratch),
        Form::Date => {
            let days = long(scanner)?;
            let days = match days {
                days if DATES.contains(&days) => days,
                days if DATE_INFINITIES.contains(&days) => i64::from(DATE_INFINITY),
                days if DATE_MINUS_INFINITIES.contains(&days) => -i64::from(DATE_INFINITY),
                _ => return Ok(false),
            };
            Ok(column.append_long(days))
        }
        Form::IsoDate => {
            string(scanner, scratch)?;
            let day = scratch.text.strip_suffix(b"Z").unwrap_or(&scratch.text);
            let days = if ISO_DATE_INFINITIES.contains(&day) {
                Some(i64::from(DATE_INFINITY))
            } else if ISO_DATE_MINUS_INFINITIES.contains(&day) {
                Some(-i64::from(DATE_INFINITY))
            } else {
                parse_date(day).filter(|(days, rest)| rest.is_empty() && DATES.contains(days)).map(|(days, _)| days)
            };
            Ok(days.is_some_and(|days| column.append_long(days)))
        }
        Form::Time(per_second) => {
            let value = long(scanner)?;
            let micros = in_micros(value, *per_second);
            Ok(micros.is_some_and(|micros| column.append_with(|out| text::write_time(micros, out))))
        }
        Form::IsoTime => {
            string(scanner, scratch)?;
            let clock = scratch.text.strip_suffix(b"Z").unwrap_or(&scratch.text);
            Ok(column.append_with(|out| {
                out.extend_from_slice(clock);
                Some(())
            }))
        }
        Form::ZonedTime => {
            string(scanner, scratch)?;
            Ok(column.append_with(|out| text::write_zoned_time(&scratch.text, out)))
        }
        Form::Timestamp(per_second) => {
            let value = long(scanner)?;
            let micros = match (per_second, value) {
                (1_000 | 1_000_000, INFINITY) | (1_000, MILLIS_INFINITY) | (_, i64::MAX) => Some(TIMESTAMP_INFINITY),
                (1_000 | 1_000_000, MINUS_INFINITY) | (1_000, MILLIS_MINUS_INFINITY) | (_, i64::MIN) => {
                    Some(-TIMESTAMP_INFINITY)
                }
                _ => in_micros(value, *per_second).filter(|micros| *micros >= FIRST_TIMESTAMP),
            };
            Ok(micros.is_some_and(|micros| column.append_long(micros)))
        }
        Form::IsoTimestamp => {
            string(scanner, scratch)?;
            if !scratch.text.ends_with(b"Z") {
                scratch.text.push(b'Z');
            }
            // The driver's infinities: years of nine digits, which the server has not.
            let micros = match scratch.text.as_slice() {
                [sign @ (b'+' | b'-'), year @ ..] if year.iter().position(|b| *b == b'-') == Some(9) => {
                    Some(if *sign == b'+' { TIMESTAMP_INFINITY } else { -TIMESTAMP_INFINITY })
                }
                text => parse_timestamptz(text),
            };
            Ok(micros.is_some_and(|micros| column.append_long(micros)))
        }
        Form::Interval => {
            string(scanner, scratch)?;
            Ok(column.append_with(|out| text::write_interval(&scratch.text, out)))
        }
        Form::Decimal { scale } => decimal(column, *scale, scanner, scratch),
        Form::VariableDecimal => {
            let (mut scale, mut found) = (None, false);
            scratch.bytes.clear();
            fields(scanner, |name, scanner| {
                match name {
                    b"scale" => scale = i32::try_from(long(scanner)?).ok(),
                    b"value" => {
                        let raw = scanner.string()?;
                        scratch.text.clear();
                        append_unescaped(raw, &mut scratch.text)?;
                        found = parse_binary(&scratch.text, &mut scratch.bytes).is_some();
                    }
                    _ => drop(scanner.value()?),
                }
                Ok(())
            })?;
            let Some(scale) = scale.filter(|_| found) else { return Ok(false) };
            Ok(column.append_with(|out| text::write_decimal(&scratch.bytes, scale, out)))
        }
        Form::Bits(length) => {
            base64(scanner, scratch)?;
            Ok(column.append_with(|out| text::write_bits(&scratch.bytes, *length, out)))
        }
        Form::Point => {
            let point = point(scanner)?;
            Ok(column.append_with(|out| point.map(|point| text::write_point(point, out))))
        }
        Form::Line => {
            let [mut a, mut b, mut c] = [None; 3];
            fields(scanner, |name, scanner| {
                match name {
                    b"a" => a = double(scanner)?,
                    b"b" => b = double(scanner)?,
                    b"c" => c = double(scanner)?,
                    _ => drop(scanner.value()?),
                }
                Ok(())
            })?;
            let (Some(a), Some(b), Some(c)) = (a, b, c) else { return Ok(false) };
            Ok(column.append_with(|out| {
                text::write_line([a, b, c], out);
                Some(())
            }))
        }
        Form::Circle => {
            let (mut center, mut radius) = (None, None);
            fields(scanner, |name, scanner| {
                match name {
                    b"center" => center = point(scanner)?,
                    b"radius" => radius = double(scanner)?,
                    _ => drop(scanner.value()?),
                }
                Ok(())
            })?;
            let (Some(center), Some(radius)) = (center, radius) else { return Ok(false) };
            Ok(column.append_with(|out| {
                text::write_circle(center, radius, out);
                Some(())
            }))
        }
        Form::Shape => shape(column, scanner, scratch),
        Form::List(form) => column.append_list(|elements| {
            scanner.expect(b'[')?;
            if scanner.take(b']') {
                return Ok(true);
            }
            loop {
                if !append(form, elements, scanner, scratch)? {
                    return Ok(false);
                }
                if !scanner.take(b',') {
                    scanner.expect(b']')?;
                    return Ok(true);
                }
            }
        }),
    }
}

/// A value whose JSON says all there is.
fn plain(column: &mut Column, scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Parsed<bool> {
    match (column.ty(), scanner.peek()) {
        // Objects, lists of anything and long numbers in a column of text: as they stand.
        (LogicalType::String | LogicalType::Json, Some(first)) if first != b'"' => {
            let raw = scanner.value()?;
            Ok(column.append_with(|out| {
                out.extend_from_slice(raw);
                Some(())
            }))
        }
        (LogicalType::Decimal { scale, .. }, _) => {
            let scale = i32::from(*scale);
            decimal_text(column, scale, scanner, scratch)
        }
        (LogicalType::List(_), _) => append(&Form::List(Box::new(Form::Plain)), column, scanner, scratch),
        _ => column.parse(scanner).map(|()| true),
    }
}

fn decimal(column: &mut Column, scale: i32, scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Parsed<bool> {
    // JsonConverter's decimal.format is BASE64 or NUMERIC.
    if scanner.peek() != Some(b'"') {
        return decimal_text(column, scale, scanner, scratch);
    }
    base64(scanner, scratch)?;
    if matches!(column.ty(), LogicalType::Decimal { scale: own, .. } if i32::from(*own) == scale) {
        return Ok(text::to_i128(&scratch.bytes).is_some_and(|unscaled| column.append_decimal(unscaled)));
    }
    Ok(column.append_with(|out| text::write_decimal(&scratch.bytes, scale, out)))
}

/// A decimal as a number or as text; into a column of text with all its `scale` digits.
fn decimal_text(column: &mut Column, scale: i32, scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Parsed<bool> {
    let text = if scanner.peek() == Some(b'"') {
        string(scanner, scratch)?;
        scratch.text.as_slice()
    } else {
        scanner.word()
    };
    match column.ty() {
        LogicalType::Decimal { precision, scale } => {
            let unscaled = parse_decimal(text, *precision, *scale);
            Ok(unscaled.is_some_and(|unscaled| column.append_decimal(unscaled)))
        }
        _ if !is_number(text) || text.contains(&b'e') || text.contains(&b'E') => Ok(false),
        _ => Ok(column.append_with(|out| {
            out.extend_from_slice(text);
            let digits = text.iter().position(|b| *b == b'.').map_or(0, |point| text.len() - point - 1);
            let missing = usize::try_from(scale).unwrap_or(0).saturating_sub(digits);
            if missing > 0 && missing <= 16_383 {
                if digits == 0 {
                    out.push(b'.');
                }
                out.resize(out.len() + missing, b'0');
            }
            Some(())
        })),
    }
}

/// WKB with its PostgreSQL type beside; anything else of the kind (PostGIS) stays JSON.
fn shape(column: &mut Column, scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Parsed<bool> {
    let start = scanner.at();
    let raw = scanner.value()?;
    let end = scanner.at();
    scanner.rewind(start);
    let (mut kind, mut closed, mut known) = ([0u8; 8], true, false);
    scratch.bytes.clear();
    fields(scanner, |name, scanner| {
        match name {
            b"wkb" => {
                let raw = scanner.string()?;
                scratch.text.clear();
                append_unescaped(raw, &mut scratch.text)?;
                known = parse_binary(&scratch.text, &mut scratch.bytes).is_some();
            }
            b"extensions" if scanner.peek() == Some(b'{') => fields(scanner, |name, scanner| {
                match (name, scanner.peek()) {
                    (b"type", Some(b'"')) => {
                        let text = scanner.string()?.bytes;
                        let length = text.len().min(kind.len());
                        kind[..length].copy_from_slice(&text[..length]);
                    }
                    (b"closed", Some(b'"')) => closed = scanner.string()?.bytes == b"true",
                    _ => drop(scanner.value()?),
                }
                Ok(())
            })?,
            _ => drop(scanner.value()?),
        }
        Ok(())
    })?;
    scanner.rewind(end);
    let kind = kind.split(|b| *b == 0).next().unwrap_or_default();
    if known && column.append_with(|out| text::write_shape(&scratch.bytes, kind, closed, out)) {
        return Ok(true);
    }
    Ok(column.append_with(|out| {
        out.extend_from_slice(raw);
        Some(())
    }))
}

fn point(scanner: &mut Scanner<'_>) -> Parsed<Option<(f64, f64)>> {
    let (mut x, mut y) = (None, None);
    fields(scanner, |name, scanner| {
        match name {
            b"x" => x = double(scanner)?,
            b"y" => y = double(scanner)?,
            _ => drop(scanner.value()?),
        }
        Ok(())
    })?;
    Ok(x.zip(y))
}

/// The fields of a text that is one object and nothing more.
pub(super) fn all_fields<'a>(text: &'a [u8], each: impl FnMut(&'a [u8], &mut Scanner<'a>) -> Parsed<()>) -> Parsed<()> {
    let mut scanner = Scanner::new(text);
    fields(&mut scanner, each)?;
    scanner.end()
}

/// The fields of the object that is next.
pub(super) fn fields<'a>(
    scanner: &mut Scanner<'a>,
    mut each: impl FnMut(&'a [u8], &mut Scanner<'a>) -> Parsed<()>,
) -> Parsed<()> {
    scanner.expect(b'{')?;
    if scanner.take(b'}') {
        return Ok(());
    }
    loop {
        let name = scanner.string()?;
        scanner.expect(b':')?;
        each(name.bytes, scanner)?;
        if !scanner.take(b',') {
            return scanner.expect(b'}');
        }
    }
}

fn string(scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Parsed<()> {
    let raw = scanner.string()?;
    scratch.text.clear();
    append_unescaped(raw, &mut scratch.text)
}

fn base64(scanner: &mut Scanner<'_>, scratch: &mut Scratch) -> Parsed<()> {
    string(scanner, scratch)?;
    scratch.bytes.clear();
    match parse_binary(&scratch.text, &mut scratch.bytes) {
        Some(()) => Ok(()),
        None => scanner.bad("not base64"),
    }
}

pub(super) fn long(scanner: &mut Scanner<'_>) -> Parsed<i64> {
    let word = scanner.word();
    match std::str::from_utf8(word).ok().filter(|_| is_number(word)).and_then(|word| word.parse().ok()) {
        Some(value) => Ok(value),
        None => scanner.bad("not a whole number"),
    }
}

fn double(scanner: &mut Scanner<'_>) -> Parsed<Option<f64>> {
    let word = if scanner.peek() == Some(b'"') { scanner.string()?.bytes } else { scanner.word() };
    Ok(match word {
        b"NaN" => Some(f64::NAN),
        b"Infinity" => Some(f64::INFINITY),
        b"-Infinity" => Some(f64::NEG_INFINITY),
        word if is_number(word) => std::str::from_utf8(word).ok().and_then(|word| word.parse().ok()),
        _ => None,
    })
}

/// Fewer than a microsecond are cut off, as the server has none.
fn in_micros(value: i64, per_second: i64) -> Option<i64> {
    if per_second > 1_000_000 {
        return Some(value.div_euclid(per_second / 1_000_000));
    }
    value.checked_mul(1_000_000 / per_second.max(1))
}

/// The type that a value without a schema asks for; None: null fits every type.
pub(super) fn infer(raw: &[u8]) -> Option<LogicalType> {
    match raw.first()? {
        b'n' => None,
        b't' | b'f' => Some(LogicalType::Bool),
        // A float column that starts with one of these is likelier than a text column that does.
        b'"' if matches!(raw, b"\"NaN\"" | b"\"Infinity\"" | b"\"-Infinity\"") => Some(LogicalType::Double),
        b'"' => Some(LogicalType::String),
        b'{' => Some(LogicalType::Json),
        b'[' => Some(infer_list(raw).unwrap_or(LogicalType::Json)),
        _ if raw.iter().any(|b| matches!(b, b'.' | b'e' | b'E')) => Some(LogicalType::Double),
        _ if std::str::from_utf8(raw).is_ok_and(|text| text.parse::<i64>().is_ok()) => Some(LogicalType::Long),
        // Beyond 64 bits: exact only as text.
        _ => Some(LogicalType::String),
    }
}

/// A list of one scalar type; of nothing but nulls it is a list of text. None: a list of several types, or of lists.
fn infer_list(raw: &[u8]) -> Option<LogicalType> {
    let mut scanner = Scanner::new(raw);
    let mut element: Option<LogicalType> = None;
    scanner.expect(b'[').ok()?;
    if !scanner.take(b']') {
        loop {
            match infer(scanner.value().ok()?) {
                None => {}
                Some(LogicalType::Json | LogicalType::List(_)) => return None,
                Some(ty) if element.as_ref().is_none_or(|known| *known == ty) => element = Some(ty),
                // "NaN" among texts.
                Some(LogicalType::Double) if element == Some(LogicalType::String) => {}
                Some(LogicalType::String) if element == Some(LogicalType::Double) => {
                    element = Some(LogicalType::String);
                }
                Some(_) => return None,
            }
            if !scanner.take(b',') {
                break;
            }
        }
    }
    Some(LogicalType::List(Box::new(element.unwrap_or(LogicalType::String))))
}

/// Whether a column of this type takes the value as it is, without a schema.
pub(super) fn fits(ty: &LogicalType, raw: &[u8]) -> bool {
    use LogicalType as T;
    let Some(wanted) = infer(raw) else { return true };
    let is_text = raw.first() == Some(&b'"');
    match (ty, &wanted) {
        (ty, wanted) if ty == wanted => true,
        (T::Float, T::Double) | (T::Json, T::String | T::List(_)) => true,
        // A whole number in a column of floats is an SMT's doing; beyond 53 bits it would not be the same number.
        (T::Double, T::Long) => parsed(raw).is_some_and(|n| n.unsigned_abs() <= 1 << 53),
        (T::Int, T::Long) => parsed(raw).is_some_and(|n| i32::try_from(n).is_ok()),
        (T::Date, T::Long) => true,
        (T::Decimal { .. }, T::Long | T::Double) => true,
        // Known from records that had a schema.
        (T::String | T::Uuid | T::Binary | T::TimestampTz | T::Decimal { .. }, _) => is_text,
        (T::List(known), T::List(element)) => fits_list(known, element, raw),
        _ => false,
    }
}

fn fits_list(known: &LogicalType, element: &LogicalType, raw: &[u8]) -> bool {
    if known == element {
        return true;
    }
    let mut scanner = Scanner::new(raw);
    if scanner.expect(b'[').is_err() {
        return false;
    }
    if scanner.take(b']') {
        return true;
    }
    loop {
        if !scanner.value().is_ok_and(|value| fits(known, value)) {
            return false;
        }
        if !scanner.take(b',') {
            return true;
        }
    }
}

fn parsed(raw: &[u8]) -> Option<i64> {
    std::str::from_utf8(raw).ok()?.parse().ok()
}

/// The type that holds what a column has and what comes now; None: there is none.
pub(super) fn join(has: &LogicalType, comes: &LogicalType) -> Option<LogicalType> {
    use LogicalType as T;
    Some(match (has, comes) {
        (has, comes) if has == comes => has.clone(),
        (T::Int, T::Long) | (T::Long, T::Int) => T::Long,
        (T::Float, T::Double) | (T::Double, T::Float) => T::Double,
        (T::Decimal { precision: p, scale: s }, T::Decimal { precision: q, scale: t }) if s == t => {
            T::Decimal { precision: *p.max(q), scale: *s }
        }
        (T::String, T::Json) | (T::Json, T::String) => T::Json,
        (T::List(has), T::List(comes)) => T::List(Box::new(join(has, comes)?)),
        _ => return None,
    })
}

/// What a source says in the place of a value that it left out, in each of its forms.
#[derive(Debug, Clone)]
pub struct Placeholder {
    /// Whole JSON values.
    forms: Vec<Vec<u8>>,
}

impl Placeholder {
    /// Of Debezium's `unavailable.value.placeholder`.
    pub fn new(text: &str) -> Self {
        let quoted = |text: &str| {
            let mut out = Vec::new();
            write_string(&mut out, text);
            out
        };
        let joined = |parts: &[&[u8]]| parts.concat();
        let plain = quoted(text);
        let bytes = {
            let mut out = Vec::new();
            crate::codec::json::text::write_binary(&mut out, text.as_bytes());
            out
        };
        let numbers = {
            let list: Vec<String> = text.bytes().map(|byte| (byte as i8).to_string()).collect();
            format!("[{}]", list.join(",")).into_bytes()
        };
        let map = joined(&[b"{", &plain, b":", &plain, b"}"]);
        let map_text = quoted(&String::from_utf8_lossy(&map));
        let uuid = quoted(&name_uuid(text.as_bytes()).hyphenated().to_string());
        let listed = |one: &[u8]| joined(&[b"[", one, b"]"]);
        Self { forms: vec![listed(&plain), listed(&uuid), plain, bytes, numbers, map, map_text] }
    }

    /// Moves past the placeholder if it is the value that is next.
    pub(super) fn take(&self, scanner: &mut Scanner<'_>) -> bool {
        match scanner.peek() {
            Some(b'"' | b'[' | b'{') => self.forms.iter().any(|form| scanner.take_exactly(form)),
            _ => false,
        }
    }

    pub(super) fn is(&self, raw: &[u8]) -> bool {
        matches!(raw.first(), Some(b'"' | b'[' | b'{')) && self.forms.iter().any(|form| form == raw)
    }
}

/// Java's `UUID.nameUUIDFromBytes`: version 3 without a name space.
fn name_uuid(name: &[u8]) -> uuid::Uuid {
    use md5::Digest;
    uuid::Builder::from_md5_bytes(md5::Md5::digest(name).into()).into_uuid()
}
