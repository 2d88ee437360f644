//! BSON to text: `raw BSON -> canonical Extended JSON v2`, and the text of an `_id`.
//!
//! Canonical means that every value names its type, so nothing is lost between the server and the reader:
//! <https://github.com/mongodb/specifications/blob/master/source/extended-json/extended-json.md>

use std::fmt::Write;

use base64::Engine;
use bson::RawBsonRef;
use bson::raw::{RawArray, RawDocument};

/// BSON that cannot be read; the server never sends such a document.
pub type BsonError = bson::raw::Error;

/// Appends a document.
pub fn document(out: &mut String, document: &RawDocument) -> Result<(), BsonError> {
    out.push('{');
    for (i, element) in document.iter().enumerate() {
        let (name, value) = element?;
        if i > 0 {
            out.push(',');
        }
        string(out, name);
        out.push(':');
        self::value(out, value)?;
    }
    out.push('}');
    Ok(())
}

fn array(out: &mut String, array: &RawArray) -> Result<(), BsonError> {
    out.push('[');
    for (i, item) in array.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        value(out, item?)?;
    }
    out.push(']');
    Ok(())
}

/// Appends any value.
pub fn value(out: &mut String, value: RawBsonRef<'_>) -> Result<(), BsonError> {
    // Writing to a String cannot fail.
    let _ = match value {
        RawBsonRef::Null => write!(out, "null"),
        RawBsonRef::Boolean(b) => write!(out, "{b}"),
        RawBsonRef::String(text) => {
            string(out, text);
            Ok(())
        }
        RawBsonRef::Document(inner) => return document(out, inner),
        RawBsonRef::Array(inner) => return array(out, inner),
        RawBsonRef::Int32(n) => wrapped(out, "{\"$numberInt\":\"", itoa::Buffer::new().format(n), "\"}"),
        RawBsonRef::Int64(n) => wrapped(out, "{\"$numberLong\":\"", itoa::Buffer::new().format(n), "\"}"),
        RawBsonRef::Double(n) if n.is_nan() => write!(out, "{{\"$numberDouble\":\"NaN\"}}"),
        RawBsonRef::Double(n) if n.is_infinite() => {
            write!(out, "{{\"$numberDouble\":\"{}Infinity\"}}", if n < 0.0 { "-" } else { "" })
        }
        // The shortest text that reads back as the same double.
        RawBsonRef::Double(n) => wrapped(out, "{\"$numberDouble\":\"", ryu::Buffer::new().format_finite(n), "\"}"),
        RawBsonRef::Decimal128(n) => write!(out, "{{\"$numberDecimal\":\"{n}\"}}"),
        RawBsonRef::ObjectId(id) => {
            out.push_str("{\"$oid\":\"");
            hex(out, &id.bytes());
            out.push_str("\"}");
            Ok(())
        }
        RawBsonRef::DateTime(t) => {
            let mut millis = itoa::Buffer::new();
            wrapped(out, "{\"$date\":{\"$numberLong\":\"", millis.format(t.timestamp_millis()), "\"}}")
        }
        RawBsonRef::Binary(binary) => {
            out.push_str("{\"$binary\":{\"base64\":\"");
            base64::engine::general_purpose::STANDARD.encode_string(binary.bytes, out);
            write!(out, "\",\"subType\":\"{:02x}\"}}}}", u8::from(binary.subtype))
        }
        RawBsonRef::RegularExpression(regex) => {
            out.push_str("{\"$regularExpression\":{\"pattern\":");
            string(out, regex.pattern);
            out.push_str(",\"options\":");
            string(out, regex.options);
            write!(out, "}}}}")
        }
        RawBsonRef::Timestamp(t) => write!(out, "{{\"$timestamp\":{{\"t\":{},\"i\":{}}}}}", t.time, t.increment),
        RawBsonRef::JavaScriptCode(code) => {
            out.push_str("{\"$code\":");
            string(out, code);
            write!(out, "}}")
        }
        RawBsonRef::JavaScriptCodeWithScope(code) => {
            out.push_str("{\"$code\":");
            string(out, code.code);
            out.push_str(",\"$scope\":");
            document(out, code.scope)?;
            write!(out, "}}")
        }
        RawBsonRef::Symbol(text) => {
            out.push_str("{\"$symbol\":");
            string(out, text);
            write!(out, "}}")
        }
        RawBsonRef::Undefined => write!(out, "{{\"$undefined\":true}}"),
        RawBsonRef::MinKey => write!(out, "{{\"$minKey\":1}}"),
        RawBsonRef::MaxKey => write!(out, "{{\"$maxKey\":1}}"),
        // Deprecated since 2012; the library has no accessors for its parts, but knows its canonical form.
        RawBsonRef::DbPointer(_) => match bson::Bson::try_from(value) {
            Ok(pointer) => write!(out, "{}", pointer.into_canonical_extjson()),
            Err(e) => return Err(e),
        },
    };
    Ok(())
}

fn wrapped(out: &mut String, before: &str, text: &str, after: &str) -> std::fmt::Result {
    out.push_str(before);
    out.push_str(text);
    out.push_str(after);
    Ok(())
}

fn hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Appends a JSON string.
pub fn string(out: &mut String, text: &str) {
    out.push('"');
    let mut clean = 0;
    for (i, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&text[clean..i]);
        if escape.is_empty() {
            let _ = write!(out, "\\u{byte:04x}");
        } else {
            out.push_str(escape);
        }
        clean = i + 1;
    }
    out.push_str(&text[clean..]);
    out.push('"');
}

/// Appends the text of an `_id`: the hex of an ObjectId, a string as it is, canonical Extended JSON for anything else; a
/// string that could be taken for one of the others is written as a JSON string, so that no two ids share a text.
pub fn id_text(out: &mut String, id: RawBsonRef<'_>) -> Result<(), BsonError> {
    match id {
        RawBsonRef::ObjectId(id) => hex(out, &id.bytes()),
        RawBsonRef::String(text) if looks_like_another(text) => string(out, text),
        RawBsonRef::String(text) => out.push_str(text),
        other => return value(out, other),
    }
    Ok(())
}

fn looks_like_another(text: &str) -> bool {
    (text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()))
        || matches!(text, "null" | "true" | "false")
        || text.starts_with(['{', '"'])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use bson::{Bson, doc, rawdoc};

    #[test]
    fn reads_back_as_the_same_document() {
        let original = doc! {
            "i": 5_i32, "l": i64::MIN, "d": 1e300, "z": -0.0, "nan": f64::NAN, "inf": f64::NEG_INFINITY, "s": "a\"\\\u{1}\u{7f}é\n",
            "o": bson::oid::ObjectId::new(), "t": bson::DateTime::from_millis(-1), "n": Bson::Null, "u": Bson::Undefined,
            "b": bson::Binary { subtype: bson::spec::BinarySubtype::UserDefined(0x85), bytes: vec![0, 255, 3] },
            "r": bson::Regex { pattern: "^a/".into(), options: "i".into() }, "ts": bson::Timestamp { time: 7, increment: 9 },
            "m": [Bson::MinKey, Bson::MaxKey, Bson::Boolean(true)], "a.b": { "": [[], {}] },
            "dec": "1.50E+3".parse::<bson::Decimal128>().unwrap(), "code": Bson::JavaScriptCode("f()".into()),
        };
        let raw = bson::RawDocumentBuf::from_document(&original).unwrap();
        let mut text = String::new();
        document(&mut text, &raw).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let back = Bson::try_from(json.as_object().unwrap().clone()).unwrap();
        // NaN is not equal to itself; everything else must be, type for type
        assert_eq!(format!("{back:?}"), format!("{:?}", Bson::Document(original)));
    }

    #[test]
    fn no_two_ids_share_a_text() {
        let hex = "0123456789abcdef01234567";
        let ids = [
            rawdoc! { "_id": bson::oid::ObjectId::parse_str(hex).unwrap() },
            rawdoc! { "_id": hex },
            rawdoc! { "_id": 7_i32 },
            rawdoc! { "_id": 7_i64 },
            rawdoc! { "_id": "{\"$numberInt\":\"7\"}" },
            rawdoc! { "_id": null },
            rawdoc! { "_id": "null" },
            rawdoc! { "_id": "\"null\"" },
            rawdoc! { "_id": { "a": 1 } },
        ];
        let mut texts: Vec<String> = ids
            .iter()
            .map(|d| {
                let mut text = String::new();
                id_text(&mut text, d.get("_id").unwrap().unwrap()).unwrap();
                text
            })
            .collect();
        assert_eq!((texts[0].as_str(), texts[1].as_str()), (hex, "\"0123456789abcdef01234567\""));
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), ids.len());
    }
}
