//! Row text to a JSON object: `(1,"a ""b""",,t) -> {"a":1,"b":"a \"b\"","c":null,"d":true}`.
//!
//! Grammar: <https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX>. Numbers keep the server's digits; what
//! JSON has no form for is a string, the server's text.

use super::array;
use super::types::{Composite, Kind, Scalar};

/// Appends the object; false, maybe after some bytes, where `text` is not a row of this type.
pub fn write_object(composite: &Composite, text: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(mut rest) = text.strip_prefix(b"(").and_then(|t| t.strip_suffix(b")")) else { return false };
    let mut value = Vec::new();
    out.push(b'{');
    for (index, (name, kind)) in composite.fields.iter().enumerate() {
        if index > 0 {
            match rest.strip_prefix(b",") {
                Some(after) => rest = after,
                None => return false,
            }
            out.push(b',');
        }
        let Some((is_null, after)) = field(rest, &mut value) else { return false };
        rest = after;
        write_string(name.as_bytes(), out);
        out.push(b':');
        if is_null {
            out.extend_from_slice(b"null");
        } else if !write_value(kind, &value, out) {
            return false;
        }
    }
    out.push(b'}');
    rest.is_empty()
}

/// Reads one field into `value`: whether it is null, and what follows it.
fn field<'a>(mut rest: &'a [u8], value: &mut Vec<u8>) -> Option<(bool, &'a [u8])> {
    value.clear();
    if rest.is_empty() || rest.starts_with(b",") {
        return Some((true, rest));
    }
    let mut quoted = false;
    loop {
        match rest {
            [] if quoted => return None,
            [] => return Some((false, rest)),
            [b',', ..] if !quoted => return Some((false, rest)),
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
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
        }
    }
}

fn write_value(kind: &Kind, text: &[u8], out: &mut Vec<u8>) -> bool {
    match kind {
        Kind::List { element, marks } => {
            let start = out.len();
            out.push(b'[');
            let mut first = true;
            let whole = array::elements(text, *marks, &mut Vec::new(), |value| {
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                match value {
                    None => out.extend_from_slice(b"null"),
                    Some(value) => return write_scalar(element, value, out),
                }
                true
            });
            if whole {
                out.push(b']');
                return true;
            }
            // Another dimension or lower bound: its text says so.
            out.truncate(start);
            write_string(text, out)
        }
        Kind::Scalar(scalar) => write_scalar(scalar, text, out),
    }
}

fn write_scalar(scalar: &Scalar, text: &[u8], out: &mut Vec<u8>) -> bool {
    match scalar {
        Scalar::Bool => match text {
            b"t" => out.extend_from_slice(b"true"),
            b"f" => out.extend_from_slice(b"false"),
            _ => return false,
        },
        Scalar::Composite(composite) => return write_object(composite, text, out),
        Scalar::Json | Scalar::Jsonb if std::str::from_utf8(text).is_ok() => out.extend_from_slice(text),
        Scalar::Int | Scalar::Long | Scalar::Float | Scalar::Double | Scalar::Decimal { .. } | Scalar::Numeric
            if is_number(text) =>
        {
            out.extend_from_slice(text);
        }
        _ => return write_string(text, out),
    }
    true
}

/// NaN and the infinities are not; nothing else that a number type prints begins with a letter.
fn is_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    digits.first().is_some_and(u8::is_ascii_digit)
        && digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
}

fn write_string(text: &[u8], out: &mut Vec<u8>) -> bool {
    match std::str::from_utf8(text) {
        Ok(text) => serde_json::to_writer(out, text).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn composite(fields: Vec<(&str, Kind)>) -> Composite {
        Composite { fields: fields.into_iter().map(|(n, k)| (n.to_owned(), k)).collect() }
    }

    fn sample() -> Composite {
        let inner = composite(vec![("x", Kind::Scalar(Scalar::Int)), ("y", Kind::Scalar(Scalar::Text))]);
        let ints = Kind::List { element: Scalar::Int, marks: array::Punctuation::array(b',') };
        composite(vec![
            ("n", Kind::Scalar(Scalar::Numeric)),
            ("s", Kind::Scalar(Scalar::Text)),
            ("b", Kind::Scalar(Scalar::Bool)),
            ("i", Kind::Scalar(Scalar::Composite(Arc::new(inner)))),
            ("a", ints),
        ])
    }

    fn json(text: &str) -> Option<String> {
        let mut out = Vec::new();
        write_object(&sample(), text.as_bytes(), &mut out).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn rows_become_objects() {
        assert_eq!(
            json(r#"(1.50,"a ""q"" \\ ,",t,"(7,""z """"y"""")"")","{1,NULL}")"#).unwrap(),
            r#"{"n":1.50,"s":"a \"q\" \\ ,","b":true,"i":{"x":7,"y":"z \"y\")"},"a":[1,null]}"#
        );
        assert_eq!(json(r#"(NaN,"",,,"{{1,2}}")"#).unwrap(), r#"{"n":"NaN","s":"","b":null,"i":null,"a":"{{1,2}}"}"#);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "(", "(1)", "(1,2,t,,,)", "(1,\"2,t,,)", "1,2,t,,"] {
            assert_eq!(json(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[(),\"\\\\a1{}]*") {
            json(&text);
        }
    }
}
