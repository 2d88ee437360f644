//! Values of Extended JSON v2: `text -> what BSON type it stands for`, and from canonical to relaxed.

use crate::codec::json::scan::{Bad, Parsed, Raw, Scanner, is_number};
use crate::codec::json::text::{write_date_millis, write_int};

/// A value, as far as columns tell BSON's types apart.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(Raw<'a>),
    /// 24 hexadecimal digits.
    ObjectId(&'a [u8]),
    /// The number as the server prints it.
    Decimal(&'a [u8]),
    /// Milliseconds since 1970.
    Date(i64),
    /// Base64 and subtype.
    Binary(&'a [u8], u8),
    /// A document, an array, or a type without a column of its own: the text.
    Json(&'a [u8]),
}

impl<'a> Value<'a> {
    /// What `raw`, one whole value, stands for. A document that only looks like a wrapped type is a document.
    pub fn parse(raw: &'a [u8]) -> Parsed<Self> {
        Ok(match raw.first() {
            Some(b'"') => Self::Text(Scanner::new(raw).string()?),
            Some(b'{') => plain(raw).or_else(|| wrapped(raw)).unwrap_or(Self::Json(raw)),
            Some(b'[') => Self::Json(raw),
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'n') => Self::Null,
            // Canonical text wraps every number; relaxed text is read for what it most likely was.
            _ => match number(raw) {
                Some(value) => value,
                None => return Err(Bad { reason: "not a value".into(), at: 0 }),
            },
        })
    }
}

fn parsed<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn number<'a>(raw: &[u8]) -> Option<Value<'a>> {
    if !is_number(raw) {
        return None;
    }
    parsed(raw).map(Value::Int).or_else(|| parsed(raw).map(Value::Long)).or_else(|| parsed(raw).map(Value::Double))
}

fn double(text: &[u8]) -> Option<f64> {
    match text {
        b"NaN" => Some(f64::NAN),
        b"Infinity" => Some(f64::INFINITY),
        b"-Infinity" => Some(f64::NEG_INFINITY),
        _ if is_number(text) => parsed(text),
        _ => None,
    }
}

/// The same as [`wrapped`] of the text that connectors write, `{"$name":"text"}` without blanks and escapes, read once; None: it is
/// to be read properly.
fn plain(raw: &[u8]) -> Option<Value<'_>> {
    let between = |start: &[u8], end: &[u8]| {
        let text = raw.strip_prefix(start)?.strip_suffix(end)?;
        text.iter().all(|byte| !matches!(byte, b'"' | b'\\')).then_some(text)
    };
    // By the first letters of the name, so that a document is not searched for what it cannot be.
    match raw.get(..10)? {
        br#"{"$numberI"# => parsed(between(br#"{"$numberInt":""#, br#""}"#)?).map(Value::Int),
        br#"{"$numberL"# => parsed(between(br#"{"$numberLong":""#, br#""}"#)?).map(Value::Long),
        br#"{"$numberD"# => double(between(br#"{"$numberDouble":""#, br#""}"#)?).map(Value::Double),
        br#"{"$date":{"# => parsed(between(br#"{"$date":{"$numberLong":""#, br#""}}"#)?).map(Value::Date),
        _ => {
            let hex = between(br#"{"$oid":""#, br#""}"#)?;
            (hex.len() == 24 && hex.iter().all(u8::is_ascii_hexdigit)).then_some(Value::ObjectId(hex))
        }
    }
}

/// The type that `{"$…": …}` stands for; None: it is a document, or a type without a column of its own.
fn wrapped(raw: &[u8]) -> Option<Value<'_>> {
    let mut fields = Fields::new(raw).ok()?;
    let (name, value) = fields.next().ok()??;
    if !name.bytes.starts_with(b"$") || fields.next().ok()?.is_some() {
        return None;
    }
    let text = || Scanner::new(value).string().ok().filter(|raw| !raw.escaped).map(|raw| raw.bytes);
    match name.bytes {
        b"$numberInt" => parsed(text()?).map(Value::Int),
        b"$numberLong" => parsed(text()?).map(Value::Long),
        b"$numberDouble" => double(text()?).map(Value::Double),
        b"$numberDecimal" => text().map(Value::Decimal),
        b"$oid" => text().filter(|hex| hex.len() == 24 && hex.iter().all(u8::is_ascii_hexdigit)).map(Value::ObjectId),
        b"$date" => match wrapped(value)? {
            Value::Long(millis) => Some(Value::Date(millis)),
            _ => None,
        },
        b"$binary" => {
            let (mut base64, mut subtype) = (None, None);
            let mut fields = Fields::new(value).ok()?;
            while let Some((name, value)) = fields.next().ok()? {
                let text = Scanner::new(value).string().ok()?;
                match name.bytes {
                    b"base64" => base64 = Some(text.bytes).filter(|_| !text.escaped),
                    b"subType" => subtype = Some(u8::from_str_radix(std::str::from_utf8(text.bytes).ok()?, 16).ok()?),
                    _ => return None,
                }
            }
            Some(Value::Binary(base64?, subtype?))
        }
        _ => None,
    }
}

/// The fields of a document, in order, with their values as text.
pub(crate) struct Fields<'a> {
    scanner: Scanner<'a>,
    started: bool,
    ended: bool,
}

impl<'a> Fields<'a> {
    pub fn new(document: &'a [u8]) -> Parsed<Self> {
        let mut scanner = Scanner::new(document);
        scanner.expect(b'{')?;
        Ok(Self { scanner, started: false, ended: false })
    }

    /// The next name and value; None at the end, which is checked to be the document's.
    pub fn next(&mut self) -> Parsed<Option<(Raw<'a>, &'a [u8])>> {
        if self.ended {
            return Ok(None);
        }
        let more = if self.started { self.scanner.take(b',') } else { self.scanner.peek() != Some(b'}') };
        self.started = true;
        if !more {
            self.scanner.expect(b'}')?;
            self.scanner.end()?;
            self.ended = true;
            return Ok(None);
        }
        let name = self.scanner.string()?;
        self.scanner.expect(b':')?;
        Ok(Some((name, self.scanner.value()?)))
    }
}

/// The elements of an array, in order, as text.
pub(crate) fn elements<'a>(array: &'a [u8], mut each: impl FnMut(&'a [u8]) -> Parsed<()>) -> Parsed<()> {
    let mut scanner = Scanner::new(array);
    scanner.expect(b'[')?;
    if !scanner.take(b']') {
        loop {
            each(scanner.value()?)?;
            if !scanner.take(b',') {
                scanner.expect(b']')?;
                break;
            }
        }
    }
    scanner.end()
}

/// Appends the relaxed form of a value in canonical form: bare numbers, and ISO dates from 1970 to 9999.
pub(crate) fn write_relaxed(raw: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
    match Value::parse(raw)? {
        Value::Int(value) => write_int(out, value),
        Value::Long(value) => write_int(out, value),
        Value::Double(value) if value.is_finite() => {
            out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
        }
        Value::Date(millis) if (0..=LAST_ISO_DATE).contains(&millis) => {
            out.extend_from_slice(b"{\"$date\":\"");
            write_date_millis(out, millis);
            out.extend_from_slice(b"\"}");
        }
        Value::Json(document) if document.starts_with(b"{") => {
            out.push(b'{');
            let mut fields = Fields::new(document)?;
            let mut first = true;
            while let Some((name, value)) = fields.next()? {
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                out.push(b'"');
                out.extend_from_slice(name.bytes);
                out.extend_from_slice(b"\":");
                write_relaxed(value, out)?;
            }
            out.push(b'}');
        }
        Value::Json(array) => {
            out.push(b'[');
            let mut first = true;
            elements(array, |value| {
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                write_relaxed(value, out)
            })?;
            out.push(b']');
        }
        _ => out.extend_from_slice(raw),
    }
    Ok(())
}

/// 9999-12-31T23:59:59.999Z; later dates stay canonical, as the specification of Extended JSON says.
const LAST_ISO_DATE: i64 = 253_402_300_799_999;

/// True for wrapped types that have no relaxed form and no column type: they stay canonical as a whole.
pub(crate) fn is_special(raw: &[u8]) -> bool {
    const SPECIAL: [&[u8]; 8] = [
        b"$timestamp",
        b"$regularExpression",
        b"$code",
        b"$symbol",
        b"$dbPointer",
        b"$minKey",
        b"$maxKey",
        b"$undefined",
    ];
    Fields::new(raw)
        .and_then(|mut fields| fields.next())
        .is_ok_and(|first| first.is_some_and(|(name, _)| SPECIAL.contains(&name.bytes)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// What is read at a glance is what is read properly.
        #[test]
        fn the_short_way_is_the_long_way(
            name in "numberInt|numberLong|numberDouble|oid|date|numberIn",
            text in "-?[0-9]{0,20}|[0-9a-f]{24}|[-+0-9.eE]{0,6}|NaN|[0-9]\\\\u0031|1\"|1\",\"a\":\"2",
            shape in 0..4,
        ) {
            let raw = match shape {
                0 => format!("{{\"${name}\":\"{text}\"}}"),
                1 => format!("{{\"${name}\":{{\"$numberLong\":\"{text}\"}}}}"),
                2 => format!("{{\"${name}\": \"{text}\"}}"),
                _ => format!("{{\"${name}\":\"{text}\",\"a\":\"1\"}}"),
            };
            // Only whole values are ever asked about.
            if Scanner::new(raw.as_bytes()).value().is_ok_and(|value| value.len() == raw.len())
                && let Some(value) = plain(raw.as_bytes())
            {
                proptest::prop_assert_eq!(format!("{value:?}"), format!("{:?}", wrapped(raw.as_bytes()).unwrap()));
            }
        }
    }

    #[test]
    fn what_connectors_write_is_read_at_a_glance() {
        for (raw, value) in [
            (r#"{"$numberInt":"-7"}"#, "Int(-7)"),
            (r#"{"$numberLong":"9223372036854775807"}"#, "Long(9223372036854775807)"),
            (r#"{"$numberDouble":"-0.0"}"#, "Double(-0.0)"),
            (r#"{"$numberDouble":"NaN"}"#, "Double(NaN)"),
            (r#"{"$date":{"$numberLong":"-5"}}"#, "Date(-5)"),
        ] {
            assert_eq!(plain(raw.as_bytes()).map(|v| format!("{v:?}")).as_deref(), Some(value));
        }
        assert!(matches!(plain(br#"{"$oid":"65a1b2c3d4e5f60718293a4b"}"#), Some(Value::ObjectId(_))));
        for raw in [r#"{"$oid":"no"}"#, r#"{"$numberInt":"7","a":"1"}"#, r#"{"a":"b"}"#, "{}"] {
            assert!(plain(raw.as_bytes()).is_none(), "{raw}");
        }
    }

    #[test]
    fn relaxed_text_is_the_specifications() {
        let canonical = r#"{"i":{"$numberInt":"-1"},"l":{"$numberLong":"9223372036854775807"},"d":{"$numberDouble":"1.0"},
            "n":{"$numberDouble":"NaN"},"t":{"$date":{"$numberLong":"1356351330501"}},"old":{"$date":{"$numberLong":"-1"}},
            "o":{"$oid":"65a1b2c3d4e5f60718293a4b"},"x":{"$numberDecimal":"1.0E+3"},"a":[{"$numberInt":"1"},null,"s\n"],
            "ts":{"$timestamp":{"t":1,"i":2}},"like":{"$oid":"no"},"b":{"$binary":{"base64":"AQ==","subType":"00"}}}"#;
        let mut out = Vec::new();
        write_relaxed(canonical.as_bytes(), &mut out).unwrap();
        let expected = [
            r#"{"i":-1,"l":9223372036854775807,"d":1.0,"n":{"$numberDouble":"NaN"},"#,
            r#""t":{"$date":"2012-12-24T12:15:30.501Z"},"old":{"$date":{"$numberLong":"-1"}},"#,
            r#""o":{"$oid":"65a1b2c3d4e5f60718293a4b"},"x":{"$numberDecimal":"1.0E+3"},"a":[1,null,"s\n"],"#,
            r#""ts":{"$timestamp":{"t":1,"i":2}},"like":{"$oid":"no"},"b":{"$binary":{"base64":"AQ==","subType":"00"}}}"#,
        ];
        assert_eq!(String::from_utf8(out).unwrap(), expected.concat());
    }
}
