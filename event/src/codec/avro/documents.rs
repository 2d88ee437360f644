//! What Debezium's `ExtractNewDocumentState` asks of MongoDB's records: `text of _id <-> Extended JSON` in the key, and
//! `update description -> record` beside our exact text of it.

use super::cells::{NULL, PRESENT};
use super::wire::{write_bytes, write_long};
use crate::codec::json::connect::{OID, is_oid};
use crate::codec::json::scan::{Bad, Parsed, Scanner, append_unescaped};
use crate::codec::json::text::write_string;
use crate::document::value::{Fields, Value, elements};

/// Appends an `_id` as Extended JSON, given our text of it ([`id_text`](crate::document::id_text)). The decoder reads it by
/// [`read_json_id`](crate::codec::json::connect::read_json_id).
pub fn write_id(id: &str, out: &mut Vec<u8>) {
    if id.starts_with(['{', '"']) || matches!(id, "null" | "true" | "false") {
        return write_bytes(out, id.as_bytes());
    }
    let start = out.len();
    if is_oid(id.as_bytes()) {
        out.extend_from_slice(OID.as_bytes());
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(b"\"}");
    } else {
        write_string(out, id);
    }
    write_length_before(start, out);
}

/// Appends a patch (MongoDB's own update description) as Debezium's record; null where it is none.
pub fn write_update_description(patch: &str, out: &mut Vec<u8>) {
    let start = out.len();
    if write_parts(patch.as_bytes(), out).is_err() {
        out.truncate(start);
        out.push(NULL);
    }
}

fn write_parts(patch: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
    let (mut removed, mut updated, mut truncated) = (None, None, None);
    let mut fields = Fields::new(patch)?;
    while let Some((name, raw)) = fields.next()? {
        let part = (raw != b"null").then_some(raw);
        match name.bytes {
            b"removedFields" => removed = part,
            b"updatedFields" => updated = part,
            b"truncatedArrays" => truncated = part,
            _ => {}
        }
    }
    out.push(PRESENT);
    write_list(removed, out, write_text)?;
    match updated {
        None => out.push(NULL),
        Some(updated) => {
            out.push(PRESENT);
            write_bytes(out, updated);
        }
    }
    write_list(truncated, out, |array, out| {
        let (mut field, mut size) = (None, None);
        let mut parts = Fields::new(array)?;
        while let Some((name, raw)) = parts.next()? {
            match name.bytes {
                b"field" => field = Some(raw),
                b"newSize" => {
                    size = match Value::parse(raw)? {
                        Value::Int(size) => Some(size),
                        Value::Long(size) => i32::try_from(size).ok(),
                        _ => None,
                    }
                }
                _ => {}
            }
        }
        let (Some(field), Some(size)) = (field, size) else {
            return Err(Bad { reason: "a truncated array without field or size".into(), at: 0 });
        };
        write_text(field, out)?;
        write_long(out, size.into());
        Ok(())
    })
}

/// Appends a nullable list; null where there is nothing in it.
fn write_list(
    array: Option<&[u8]>,
    out: &mut Vec<u8>,
    mut item: impl FnMut(&[u8], &mut Vec<u8>) -> Parsed<()>,
) -> Parsed<()> {
    let start = out.len();
    out.push(PRESENT);
    if let Some(array) = array {
        elements(array, |raw| {
            // A block each: nobody has counted them.
            write_long(out, 1);
            item(raw, out)
        })?;
    }
    if out.len() == start + 1 {
        out[start] = NULL;
    } else {
        out.push(0);
    }
    Ok(())
}

/// Appends what a JSON string says.
fn write_text(json: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
    let start = out.len();
    append_unescaped(Scanner::new(json).string()?, out)?;
    write_length_before(start, out);
    Ok(())
}

/// Puts the length of what was written since `start` before it.
fn write_length_before(start: usize, out: &mut Vec<u8>) {
    let end = out.len();
    write_long(out, (end - start) as i64);
    let length = out.len() - end;
    out[start..].rotate_right(length);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::codec::avro::wire::Cursor;
    use crate::codec::json::connect::{read_json_id, reads_back};
    use crate::document::{id_text, id_text_of_string};
    use proptest::prelude::*;

    fn written(id: &str) -> String {
        let mut out = Vec::new();
        write_id(id, &mut out);
        let mut cursor = Cursor::new(&out, 0);
        let text = cursor.text().unwrap().to_owned();
        cursor.end().unwrap();
        text
    }

    #[test]
    fn ids_are_extended_json() {
        for (json, reads_as_it_was) in [
            (r#"{"$oid":"65a1b2c3d4e5f60718293a4b"}"#, true),
            (r#""65a1b2c3d4e5f60718293a4b""#, false),
            (r#""plain ü \"\n""#, true),
            (r#""""#, true),
            (r#""7""#, true),
            (r#"{"$numberInt":"7"}"#, true),
            ("null", true),
            (r#""null""#, false),
            (r#"{"a":{"$numberInt":"1"}}"#, true),
        ] {
            let id = id_text(json).unwrap();
            assert_eq!(written(&id), json);
            assert_eq!(reads_back(&id), reads_as_it_was, "{json}");
        }
    }

    proptest! {
        #[test]
        fn what_reads_back_does(id in "\\PC{0,30}|[0-9a-f]{24}|[{\"][\\PC]{0,9}|null|[\\x00-\\x1f\"\\\\]{0,6}") {
            let json = written(&id);
            if reads_back(&id) {
                let mut text = Vec::new();
                append_unescaped(read_json_id(json.as_bytes()).unwrap(), &mut text).unwrap();
                prop_assert_eq!(String::from_utf8(text).unwrap(), id.as_str());
            }
            // an `_id` that is a string is one in JSON
            let string = written(&id_text_of_string(&id));
            prop_assert_eq!(serde_json::from_str::<String>(&string).unwrap(), id);
        }
    }
}
