//! MongoDB documents as Debezium writes them, to the canonical Extended JSON that the rest of Lakeward reads.
//!
//! `after` is Extended JSON v1 (bare NaN included), keys and updated fields are v2 relaxed, unwrapped records are plain JSON.
//! One reader takes them all: the wrapped forms of v1 and v2 do not contradict each other.

use super::value::fields;
use crate::codec::json::scan::{Bad, Parsed, Raw, Scanner, append_unescaped, is_number};
use crate::codec::json::text::{parse_timestamptz, write_int, write_string};
use crate::error::Result;

/// MongoDB takes 100 levels.
const MAX_DEPTH: usize = 256;

/// What the text may hold besides JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Types in objects whose names start with `$`.
    Extended,
    /// An object is a document, whatever its names.
    Plain,
}

/// Appends one whole value, and nothing more, as canonical Extended JSON v2.
pub(super) fn canonical(text: &[u8], dialect: Dialect, out: &mut Vec<u8>) -> Parsed<()> {
    let mut scanner = Scanner::new(text);
    value(&mut scanner, dialect, out, 0)?;
    scanner.end()
}

/// Appends a whole document of Extended JSON, which is one whatever its names look like.
pub(super) fn document(text: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
    let mut scanner = Scanner::new(text);
    object(&mut scanner, Dialect::Extended, out, 0)?;
    scanner.end()
}

fn value(scanner: &mut Scanner<'_>, dialect: Dialect, out: &mut Vec<u8>, depth: usize) -> Parsed<()> {
    if depth > MAX_DEPTH {
        return scanner.bad("nested too deeply");
    }
    match scanner.peek() {
        Some(b'"') => {
            let raw = scanner.string()?;
            copy_string(raw, out)
        }
        Some(b'{') => {
            let start = scanner.at();
            if dialect == Dialect::Extended && wrapped(scanner, out, depth)? {
                return Ok(());
            }
            scanner.rewind(start);
            object(scanner, dialect, out, depth)
        }
        Some(b'[') => {
            scanner.expect(b'[')?;
            out.push(b'[');
            if !scanner.take(b']') {
                loop {
                    value(scanner, dialect, out, depth + 1)?;
                    if !scanner.take(b',') {
                        scanner.expect(b']')?;
                        break;
                    }
                    out.push(b',');
                }
            }
            out.push(b']');
            Ok(())
        }
        _ => scalar(scanner, out),
    }
}

fn object(scanner: &mut Scanner<'_>, dialect: Dialect, out: &mut Vec<u8>, depth: usize) -> Parsed<()> {
    scanner.expect(b'{')?;
    out.push(b'{');
    if !scanner.take(b'}') {
        loop {
            let name = scanner.string()?;
            copy_string(name, out)?;
            scanner.expect(b':')?;
            out.push(b':');
            value(scanner, dialect, out, depth + 1)?;
            if !scanner.take(b',') {
                scanner.expect(b'}')?;
                break;
            }
            out.push(b',');
        }
    }
    out.push(b'}');
    Ok(())
}

/// Copies a string as it stands, once its escapes are known to be right.
fn copy_string(raw: Raw<'_>, out: &mut Vec<u8>) -> Parsed<()> {
    if raw.escaped {
        let start = out.len();
        append_unescaped(raw, out)?;
        out.truncate(start);
    }
    out.push(b'"');
    out.extend_from_slice(raw.bytes);
    out.push(b'"');
    Ok(())
}

fn scalar(scanner: &mut Scanner<'_>, out: &mut Vec<u8>) -> Parsed<()> {
    let at = scanner.at();
    let word = scanner.word();
    match word {
        b"true" | b"false" | b"null" => out.extend_from_slice(word),
        b"NaN" | b"Infinity" | b"-Infinity" => wrap(b"$numberDouble", word, out),
        _ if is_number(word) => number(word, out),
        _ => return Err(Bad { reason: "not a value".into(), at }),
    }
    Ok(())
}

fn wrap(name: &[u8], text: &[u8], out: &mut Vec<u8>) {
    for part in [&b"{\""[..], name, b"\":\"", text, b"\"}"] {
        out.extend_from_slice(part);
    }
}

/// A bare whole number is the narrowest type that holds it; its own type may have been wider, which Debezium does not say.
fn number(word: &[u8], out: &mut Vec<u8>) {
    let text = std::str::from_utf8(word).unwrap_or_default();
    let whole = !word.iter().any(|b| matches!(b, b'.' | b'e' | b'E'));
    match text.parse::<i64>() {
        Ok(value) if whole && text != "-0" => {
            wrap(if i32::try_from(value).is_ok() { b"$numberInt" } else { b"$numberLong" }, word, out);
        }
        _ => double(text.parse().unwrap_or(f64::NAN), out),
    }
}

fn double(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        wrap(b"$numberDouble", ryu::Buffer::new().format_finite(value).as_bytes(), out);
    } else if value.is_nan() {
        wrap(b"$numberDouble", b"NaN", out);
    } else {
        wrap(b"$numberDouble", if value > 0.0 { b"Infinity" } else { b"-Infinity" }, out);
    }
}

/// A value of a type that JSON has not; false: it is a document, and nothing was appended. The scanner is then anywhere.
fn wrapped(scanner: &mut Scanner<'_>, out: &mut Vec<u8>, depth: usize) -> Parsed<bool> {
    // Up to two names with what stands behind them: more, and it is a document.
    let mut parts: [(&[u8], &[u8]); 2] = [(b"", b""); 2];
    let mut count = 0;
    scanner.expect(b'{')?;
    if scanner.peek() != Some(b'"') {
        return Ok(false);
    }
    loop {
        let name = scanner.string()?;
        let known = !name.escaped && name.bytes.first() == Some(&b'$');
        if !known || count == parts.len() {
            return Ok(false);
        }
        scanner.expect(b':')?;
        let start = scanner.at();
        skip(scanner, depth)?;
        parts[count] = (name.bytes, &scanner.text()[start..scanner.at()]);
        count += 1;
        if !scanner.take(b',') {
            scanner.expect(b'}')?;
            break;
        }
    }
    let text = |raw: &[u8]| -> Option<Vec<u8>> {
        let mut inner = Scanner::new(raw);
        let raw = inner.string().ok()?;
        let mut text = Vec::with_capacity(raw.bytes.len());
        append_unescaped(raw, &mut text).ok()?;
        inner.end().ok()?;
        Some(text)
    };
    let start = out.len();
    let done = match (parts[0], parts[1]) {
        ((b"$numberLong", raw), (b"", _)) => text(raw).and_then(|t| {
            let value: i64 = std::str::from_utf8(&t).ok()?.parse().ok()?;
            out.extend_from_slice(b"{\"$numberLong\":\"");
            write_int(out, value);
            out.extend_from_slice(b"\"}");
            Some(())
        }),
        ((b"$numberInt", raw), (b"", _)) => text(raw).and_then(|t| {
            let value: i32 = std::str::from_utf8(&t).ok()?.parse().ok()?;
            out.extend_from_slice(b"{\"$numberInt\":\"");
            write_int(out, value);
            out.extend_from_slice(b"\"}");
            Some(())
        }),
        ((b"$numberDouble", raw), (b"", _)) => text(raw).and_then(|t| {
            let value: f64 = match t.as_slice() {
                b"NaN" => f64::NAN,
                b"Infinity" => f64::INFINITY,
                b"-Infinity" => f64::NEG_INFINITY,
                t if is_number(t) => std::str::from_utf8(t).ok()?.parse().ok()?,
                _ => return None,
            };
            double(value, out);
            Some(())
        }),
        ((b"$date", raw), (b"", _)) => date(raw).map(|millis| {
            out.extend_from_slice(b"{\"$date\":{\"$numberLong\":\"");
            write_int(out, millis);
            out.extend_from_slice(b"\"}}");
        }),
        ((b"$binary", raw), (b"$type", subtype)) => text(raw).zip(text(subtype)).and_then(|(bytes, subtype)| {
            let subtype = u8::from_str_radix(std::str::from_utf8(&subtype).ok()?, 16).ok()?;
            out.extend_from_slice(b"{\"$binary\":{\"base64\":");
            write_string(out, std::str::from_utf8(&bytes).ok()?);
            out.extend_from_slice(format!(",\"subType\":\"{subtype:02x}\"}}}}").as_bytes());
            Some(())
        }),
        ((b"$regex", raw), (b"$options", options)) if text(raw).is_some() && text(options).is_some() => {
            for part in
                [&b"{\"$regularExpression\":{\"pattern\":"[..], trim(raw), b",\"options\":", trim(options), b"}}"]
            {
                out.extend_from_slice(part);
            }
            Some(())
        }
        ((b"$code", raw), (b"", _)) if text(raw).is_some() => verbatim(b"$code", raw, out),
        ((b"$code", raw), (b"$scope", scope)) if text(raw).is_some() && trim(scope).starts_with(b"{") => {
            out.extend_from_slice(b"{\"$code\":");
            out.extend_from_slice(trim(raw));
            out.extend_from_slice(b",\"$scope\":");
            let mut inner = Scanner::new(scope);
            inner.peek();
            object(&mut inner, Dialect::Extended, out, depth + 1)?;
            out.push(b'}');
            Some(())
        }
        // The same in every dialect: copied without blanks.
        (
            (
                name @ (b"$oid"
                | b"$numberDecimal"
                | b"$timestamp"
                | b"$minKey"
                | b"$maxKey"
                | b"$undefined"
                | b"$symbol"
                | b"$binary"
                | b"$regularExpression"
                | b"$dbPointer"
                | b"$uuid"),
                raw,
            ),
            (b"", _),
        ) => verbatim(name, raw, out).filter(|()| is_type(name, raw)),
        _ => None,
    };
    if done.is_none() {
        out.truncate(start);
    }
    Ok(done.is_some())
}

/// Whether what stands behind the name is what the type has there: else it is a document that only looks like one.
fn is_type(name: &[u8], raw: &[u8]) -> bool {
    let raw = trim(raw);
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    match name {
        b"$oid" => raw.len() == 26 && inner.iter().all(u8::is_ascii_hexdigit),
        b"$numberDecimal" | b"$symbol" | b"$uuid" => raw.starts_with(b"\""),
        b"$minKey" | b"$maxKey" => raw == b"1",
        b"$undefined" => raw == b"true",
        _ => raw.starts_with(b"{"),
    }
}

fn verbatim(name: &[u8], raw: &[u8], out: &mut Vec<u8>) -> Option<()> {
    for part in [&b"{\""[..], name, b"\":"] {
        out.extend_from_slice(part);
    }
    compact(raw, out);
    out.push(b'}');
    Some(())
}

fn trim(raw: &[u8]) -> &[u8] {
    raw.trim_ascii()
}

/// Copies JSON without the blanks between its parts.
fn compact(raw: &[u8], out: &mut Vec<u8>) {
    let (mut quoted, mut escaped) = (false, false);
    for byte in raw {
        if quoted {
            quoted = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            quoted = *byte == b'"';
        }
        out.push(*byte);
    }
}

/// Milliseconds since 1970: a number (v1), ISO 8601 (v2 relaxed) or `$numberLong` (v2 canonical).
fn date(raw: &[u8]) -> Option<i64> {
    let mut scanner = Scanner::new(raw);
    match scanner.peek()? {
        b'"' => {
            let micros = parse_timestamptz(scanner.string().ok().filter(|raw| !raw.escaped)?.bytes)?;
            (micros % 1_000 == 0).then_some(micros / 1_000)
        }
        b'{' => {
            let mut millis = None;
            let read = fields(&mut scanner, |name, scanner| {
                millis = match name {
                    b"$numberLong" => std::str::from_utf8(scanner.string()?.bytes).ok().and_then(|t| t.parse().ok()),
                    _ => return scanner.bad("not a date"),
                };
                Ok(())
            });
            read.ok().and(millis)
        }
        _ => super::value::long(&mut scanner).ok(),
    }
}

/// Moves past any value, bare NaN and infinities included.
fn skip(scanner: &mut Scanner<'_>, depth: usize) -> Parsed<()> {
    if depth > MAX_DEPTH {
        return scanner.bad("nested too deeply");
    }
    match scanner.peek() {
        Some(b'"') => scanner.string().map(drop),
        Some(b'{') => fields(scanner, |_, scanner| skip(scanner, depth + 1)),
        Some(b'[') => {
            scanner.expect(b'[')?;
            if scanner.take(b']') {
                return Ok(());
            }
            loop {
                skip(scanner, depth + 1)?;
                if !scanner.take(b',') {
                    return scanner.expect(b']');
                }
            }
        }
        _ => {
            let at = scanner.at();
            match scanner.word() {
                b"true" | b"false" | b"null" | b"NaN" | b"Infinity" | b"-Infinity" => Ok(()),
                word if is_number(word) => Ok(()),
                _ => Err(Bad { reason: "not a value".into(), at }),
            }
        }
    }
}

/// Appends Debezium's update description in the form of [`apply_patch`](crate::document::apply_patch).
pub(super) fn patch(description: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
    let mut scanner = Scanner::new(description);
    let mut first = true;
    let mut part = |name: &[u8], out: &mut Vec<u8>| {
        out.push(if std::mem::take(&mut first) { b'{' } else { b',' });
        for piece in [&b"\""[..], name, b"\":"] {
            out.extend_from_slice(piece);
        }
    };
    fields(&mut scanner, |name, scanner| {
        match (name, scanner.peek()) {
            (b"updatedFields", Some(b'"')) => {
                let raw = scanner.string()?;
                let mut text = Vec::with_capacity(raw.bytes.len());
                append_unescaped(raw, &mut text)?;
                part(b"updatedFields", out);
                let mut inner = Scanner::new(&text);
                // The description itself is a document, whatever its paths look like.
                object(&mut inner, Dialect::Extended, out, 0)?;
                inner.end()
            }
            (b"removedFields", Some(b'[')) => {
                part(b"removedFields", out);
                out.extend_from_slice(scanner.value()?);
                Ok(())
            }
            (b"truncatedArrays", Some(b'[')) => {
                part(b"truncatedArrays", out);
                truncated(scanner, out)
            }
            _ => scanner.value().map(drop),
        }
    })?;
    scanner.end()?;
    if first {
        out.push(b'{');
    }
    out.push(b'}');
    Ok(())
}

/// `[{"field": path, "size": n}, …]` with the server's own name for the size.
fn truncated(scanner: &mut Scanner<'_>, out: &mut Vec<u8>) -> Parsed<()> {
    scanner.expect(b'[')?;
    out.push(b'[');
    if !scanner.take(b']') {
        loop {
            let (mut field, mut size) = (None, None);
            fields(scanner, |name, scanner| {
                match name {
                    b"field" => field = Some(scanner.string()?),
                    b"size" | b"newSize" => size = Some(super::value::long(scanner)?),
                    _ => drop(scanner.value()?),
                }
                Ok(())
            })?;
            let (Some(field), Some(size)) = (field, size) else {
                return scanner.bad("a truncated array without field or size");
            };
            out.extend_from_slice(b"{\"field\":");
            copy_string(field, out)?;
            out.extend_from_slice(b",\"newSize\":");
            write_int(out, size);
            out.push(b'}');
            if !scanner.take(b',') {
                scanner.expect(b']')?;
                break;
            }
            out.push(b',');
        }
    }
    out.push(b']');
    Ok(())
}

/// The text of an `_id` from the `id` of a record's key, which is all that deletes have. `flat`: the records are unwrapped, and
/// the id is a plain value; None: not known, so text that is no Extended JSON is a plain string.
pub(super) fn key_text(id: &[u8], flat: Option<bool>) -> Parsed<Result<String>> {
    let mut scanner = Scanner::new(id);
    let mut out = Vec::with_capacity(id.len() + 20);
    if scanner.peek() == Some(b'"') && flat != Some(true) {
        let mut text = Vec::with_capacity(id.len());
        append_unescaped(scanner.string()?, &mut text)?;
        scanner.end()?;
        match canonical(&text, Dialect::Extended, &mut out) {
            Ok(()) => {}
            Err(bad) if flat == Some(false) => return Err(bad),
            Err(_) => {
                out.clear();
                canonical(id, Dialect::Plain, &mut out)?;
            }
        }
    } else {
        canonical(id, Dialect::Plain, &mut out)?;
    }
    Ok(crate::document::id_text(&String::from_utf8_lossy(&out)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn becomes(text: &str, expected: &str) {
        let mut out = Vec::new();
        canonical(text.as_bytes(), Dialect::Extended, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn every_dialect_becomes_canonical() {
        becomes(
            r#"{"a": 1,"b": 3000000000,"c": 1.0E300,"d": NaN,"e": -Infinity,"f": -0.0, "g": [true, null, "x\n"]}"#,
            r#"{"a":{"$numberInt":"1"},"b":{"$numberLong":"3000000000"},"c":{"$numberDouble":"1e300"},"d":{"$numberDouble":"NaN"},"e":{"$numberDouble":"-Infinity"},"f":{"$numberDouble":"-0.0"},"g":[true,null,"x\n"]}"#,
        );
        becomes(r#"{"$binary": "AAH+/w==","$type": "0"}"#, r#"{"$binary":{"base64":"AAH+/w==","subType":"00"}}"#);
        becomes(
            r#"{"$binary": {"base64": "AQI=", "subType": "80"}}"#,
            r#"{"$binary":{"base64":"AQI=","subType":"80"}}"#,
        );
        becomes(r#"{"$date": -1}"#, r#"{"$date":{"$numberLong":"-1"}}"#);
        becomes(r#"{"$date": "2025-01-01T00:00:00Z"}"#, r#"{"$date":{"$numberLong":"1735689600000"}}"#);
        becomes(r#"{"$date": {"$numberLong": "5"}}"#, r#"{"$date":{"$numberLong":"5"}}"#);
        becomes(r#"{"$regex": "a\"b","$options": "i"}"#, r#"{"$regularExpression":{"pattern":"a\"b","options":"i"}}"#);
        becomes(r#"{"$code": "f","$scope": {"x": 1}}"#, r#"{"$code":"f","$scope":{"x":{"$numberInt":"1"}}}"#);
        becomes(r#"{"$timestamp": {"t": 1, "i": 2}}"#, r#"{"$timestamp":{"t":1,"i":2}}"#);
        becomes(r#"{"$minKey": 1}"#, r#"{"$minKey":1}"#);
        // Documents that only look like types.
        becomes(r#"{"$oid": "not an oid"}"#, r#"{"$oid":"not an oid"}"#);
        becomes(r#"{"$oid": 5}"#, r#"{"$oid":{"$numberInt":"5"}}"#);
        becomes(r#"{"$numberLong": "x", "y": NaN}"#, r#"{"$numberLong":"x","y":{"$numberDouble":"NaN"}}"#);
        becomes(
            r#"{"$ref": "x","$id": {"$oid": "65a1b2c3d4e5f60718293a4b"},"$db": "s"}"#,
            r#"{"$ref":"x","$id":{"$oid":"65a1b2c3d4e5f60718293a4b"},"$db":"s"}"#,
        );
    }

    #[test]
    fn keys_of_both_kinds_of_records() {
        let key = |id: &str, flat| key_text(id.as_bytes(), flat).unwrap().unwrap();
        assert_eq!(key(r#""7""#, None), r#"{"$numberInt":"7"}"#);
        assert_eq!(key(r#""\"7\"""#, None), "7");
        assert_eq!(key(r#""{\"$oid\": \"65a1b2c3d4e5f60718293a4b\"}""#, None), "65a1b2c3d4e5f60718293a4b");
        assert_eq!(key(r#""plain text""#, None), "plain text");
        assert_eq!(key("7", None), r#"{"$numberInt":"7"}"#);
        assert_eq!(key(r#""7""#, Some(true)), "7");
        assert_eq!(key(r#"{"a":1}"#, Some(true)), r#"{"a":{"$numberInt":"1"}}"#);
    }

    #[test]
    fn update_descriptions() {
        let mut out = Vec::new();
        let description = br#"{"removedFields":["a.b"],"updatedFields":"{\"n\": 1, \"$x\": {\"$date\": 5}}","truncatedArrays":[{"field":"l","size":2}]}"#;
        patch(description, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"removedFields":["a.b"],"updatedFields":{"n":{"$numberInt":"1"},"$x":{"$date":{"$numberLong":"5"}}},"truncatedArrays":[{"field":"l","newSize":2}]}"#
        );
        let mut out = Vec::new();
        patch(br#"{"removedFields":null,"updatedFields":null}"#, &mut out).unwrap();
        assert_eq!(out, b"{}");
    }

    proptest! {
        /// What comes out is what comes out again: canonical text stays as it is.
        #[test]
        fn canonical_is_a_fixed_point(text in "[\\[\\]{}:,\"$a-z0-9.NI\\-]{0,30}|\\{\"\\$(date|oid|binary|numberInt)\": ?(5|\"5\"|\\{\\})\\}") {
            let mut out = Vec::new();
            if canonical(text.as_bytes(), Dialect::Extended, &mut out).is_ok() {
                let mut again = Vec::new();
                canonical(&out, Dialect::Extended, &mut again).unwrap();
                prop_assert_eq!(out, again);
            }
        }

        #[test]
        fn nothing_panics(text in any::<Vec<u8>>()) {
            let mut out = Vec::new();
            let _ = canonical(&text, Dialect::Extended, &mut out);
            let _ = patch(&text, &mut out);
            let _ = key_text(&text, None);
        }
    }
}
