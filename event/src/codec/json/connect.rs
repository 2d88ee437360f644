//! What Kafka Connect's JsonConverter needs to know (`schemas.enable=true`): `TableSchema -> schema text before key and value`,
//! as Debezium writes it, and the value forms that such a schema asks for.
//!
//! Columns are optional but for the key's: a delete's `before` holds the key alone, and nothing is invented for the others.

use super::scan::{Parsed, Raw, Scanner};
use super::{UNAVAILABLE, text};
use crate::names::topic;
use crate::schema::{TableKind, TableSchema};
use crate::types::LogicalType;

/// The text before the payload, for one version of a table.
#[derive(Debug)]
pub(super) struct Schemas {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl Schemas {
    pub fn new(schema: &TableSchema) -> Self {
        let topic = topic(&schema.table);
        let (key, value) = match schema.kind {
            TableKind::Relational => (relational_key(schema, &topic), relational_value(schema, &topic)),
            TableKind::Documents => (
                structure(&[named(STRING, "id")], false, Some((&format!("{topic}.Key"), None))),
                documents_value(&topic),
            ),
        };
        let before_payload = |schema: String| format!("{{\"schema\":{schema}}},\"payload\":").into_bytes();
        Self { key: before_payload(key), value: before_payload(value) }
    }
}

// Schemas are written without their closing brace: as a field of a struct they go on with their name.

const STRING: &str = r#"{"type":"string","optional":false"#;
const OPTIONAL_STRING: &str = r#"{"type":"string","optional":true"#;
const INT: &str = r#"{"type":"int32","optional":false"#;
const LONG: &str = r#"{"type":"int64","optional":false"#;
const OPTIONAL_LONG: &str = r#"{"type":"int64","optional":true"#;
const JSON_TEXT: &str = r#"{"type":"string","optional":true,"name":"io.debezium.data.Json","version":1"#;
const SNAPSHOT: &str = r#"{"type":"string","optional":true,"name":"io.debezium.data.Enum","version":1,"parameters":{"allowed":"true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},"default":"false""#;

/// A field of a struct.
fn named(schema: &str, field: &str) -> String {
    format!("{schema},\"field\":{}}}", quoted(field))
}

fn quoted(name: &str) -> String {
    let mut out = Vec::new();
    text::write_string(&mut out, name);
    String::from_utf8_lossy(&out).into_owned()
}

fn structure(fields: &[String], optional: bool, name: Option<(&str, Option<u32>)>) -> String {
    let mut out = format!("{{\"type\":\"struct\",\"fields\":[{}],\"optional\":{optional}", fields.join(","));
    if let Some((name, version)) = name {
        out.push_str(&format!(",\"name\":{}", quoted(name)));
        if let Some(version) = version {
            out.push_str(&format!(",\"version\":{version}"));
        }
    }
    out
}

fn array(items: &str, optional: bool) -> String {
    format!("{{\"type\":\"array\",\"items\":{items}}},\"optional\":{optional}")
}

/// The schema of the value forms of [`super`].
fn column(ty: &LogicalType, optional: bool) -> String {
    let (kind, name) = match ty {
        LogicalType::Bool => ("boolean", None),
        LogicalType::Int => ("int32", None),
        LogicalType::Long => ("int64", None),
        LogicalType::Float => ("float", None),
        LogicalType::Double => ("double", None),
        LogicalType::Decimal { .. } | LogicalType::String => ("string", None),
        LogicalType::Json => ("string", Some("io.debezium.data.Json")),
        LogicalType::Uuid => ("string", Some("io.debezium.data.Uuid")),
        LogicalType::Binary => ("bytes", None),
        LogicalType::Date => ("int32", Some("io.debezium.time.Date")),
        LogicalType::Timestamp => ("int64", Some("io.debezium.time.MicroTimestamp")),
        LogicalType::TimestampTz => ("string", Some("io.debezium.time.ZonedTimestamp")),
        LogicalType::List(element) => return array(&column(element, true), optional),
    };
    let name = name.map(|name| format!(",\"name\":\"{name}\",\"version\":1")).unwrap_or_default();
    format!("{{\"type\":\"{kind}\",\"optional\":{optional}{name}")
}

fn relational_key(schema: &TableSchema, topic: &str) -> String {
    let fields: Vec<_> = schema
        .key
        .iter()
        .map(|index| &schema.columns[*index])
        .map(|key| named(&column(&key.ty, false), &key.name))
        .collect();
    structure(&fields, false, Some((&format!("{topic}.Key"), None)))
}

fn relational_value(schema: &TableSchema, topic: &str) -> String {
    let columns: Vec<_> = schema
        .columns
        .iter()
        .enumerate()
        .map(|(index, each)| named(&column(&each.ty, !schema.is_key(index)), &each.name))
        .collect();
    let row = structure(&columns, true, Some((&format!("{topic}.Value"), None)));
    let source = [
        named(STRING, "version"),
        named(STRING, "connector"),
        named(STRING, "name"),
        named(OPTIONAL_LONG, "ts_ms"),
        named(OPTIONAL_LONG, "ts_us"),
        named(SNAPSHOT, "snapshot"),
        named(STRING, "db"),
        named(STRING, "schema"),
        named(STRING, "table"),
        named(OPTIONAL_LONG, "txId"),
        named(OPTIONAL_LONG, "lsn"),
    ];
    let fields = [
        named(&row, "before"),
        named(&row, "after"),
        named(&structure(&source, false, Some(("io.debezium.connector.postgresql.Source", Some(1)))), "source"),
        named(&transaction(), "transaction"),
        named(STRING, "op"),
        named(OPTIONAL_LONG, "ts_ms"),
    ];
    structure(&fields, false, Some((&format!("{topic}.Envelope"), Some(2))))
}

fn documents_value(topic: &str) -> String {
    const UPDATE: &str = "io.debezium.connector.mongodb.changestream.updatedescription";
    const TRUNCATED: &str = "io.debezium.connector.mongodb.changestream.truncatedarray";
    let truncated = structure(&[named(STRING, "field"), named(INT, "size")], false, Some((TRUNCATED, Some(1))));
    let update = [
        named(&array(STRING, true), "removedFields"),
        named(JSON_TEXT, "updatedFields"),
        named(&array(&truncated, true), "truncatedArrays"),
    ];
    let source = [
        named(STRING, "version"),
        named(STRING, "connector"),
        named(STRING, "name"),
        named(OPTIONAL_LONG, "ts_ms"),
        named(OPTIONAL_LONG, "ts_us"),
        named(SNAPSHOT, "snapshot"),
        named(STRING, "db"),
        named(STRING, "collection"),
        named(OPTIONAL_STRING, "txId"),
        named(LONG, "clusterTime"),
        named(INT, "ord"),
    ];
    let fields = [
        named(JSON_TEXT, "before"),
        named(JSON_TEXT, "after"),
        named(&structure(&update, true, Some((UPDATE, Some(1)))), "updateDescription"),
        named(&structure(&source, false, Some(("io.debezium.connector.mongo.Source", None))), "source"),
        named(OPTIONAL_STRING, "op"),
        named(OPTIONAL_LONG, "ts_ms"),
        named(&transaction(), "transaction"),
    ];
    structure(&fields, false, Some((&format!("{topic}.Envelope"), None)))
}

fn transaction() -> String {
    let fields = [named(STRING, "id"), named(LONG, "total_order"), named(LONG, "data_collection_order")];
    structure(&fields, true, Some(("event.block", Some(1))))
}

/// [`UNAVAILABLE`] in base64.
const UNAVAILABLE_BINARY: &str = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
/// The name-based UUID of [`UNAVAILABLE`].
pub(in crate::codec) const UNAVAILABLE_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

/// What an unchanged value of this type is written as: Debezium's forms, which are such that the type's schema takes them.
pub(super) fn unavailable(ty: &LogicalType) -> Vec<u8> {
    let text = match ty {
        LogicalType::List(element) => match **element {
            // Its bytes, as numbers.
            LogicalType::Int
            | LogicalType::Long
            | LogicalType::Float
            | LogicalType::Double
            | LogicalType::Date
            | LogicalType::Timestamp => {
                let numbers: Vec<_> = UNAVAILABLE.bytes().map(|byte| byte.to_string()).collect();
                format!("[{}]", numbers.join(","))
            }
            LogicalType::Uuid => format!("[\"{UNAVAILABLE_UUID}\"]"),
            _ => return [b"[", unavailable(element).as_slice(), b"]"].concat(),
        },
        LogicalType::Binary => format!("\"{UNAVAILABLE_BINARY}\""),
        LogicalType::Decimal { .. }
        | LogicalType::String
        | LogicalType::Json
        | LogicalType::Uuid
        | LogicalType::TimestampTz => format!("\"{UNAVAILABLE}\""),
        // No value of these is ever left out; a text would be read as 0.
        LogicalType::Bool
        | LogicalType::Int
        | LogicalType::Long
        | LogicalType::Float
        | LogicalType::Double
        | LogicalType::Date
        | LogicalType::Timestamp => "null".into(),
    };
    text.into_bytes()
}

// The key of a document: Debezium has `_id` as Extended JSON, ours is shorter where it can be (`document::id_text`).

pub(in crate::codec) const OID: &str = "{\"$oid\":\"";

/// Writes the JSON string that holds an `_id` as Extended JSON, given our text of it.
pub(super) fn write_json_id(id: &str, out: &mut Vec<u8>) {
    if id.starts_with(['{', '"']) || matches!(id, "null" | "true" | "false") {
        text::write_string(out, id);
    } else if is_oid(id.as_bytes()) {
        out.extend_from_slice(br#""{\"$oid\":\""#);
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(br#"\"}""#);
    } else {
        // A JSON string within one: written at the end, then moved into its own quotes with the escapes doubled.
        let start = out.len();
        text::write_string(out, id);
        let end = out.len();
        out.push(b'"');
        for at in start..end {
            let byte = out[at];
            if matches!(byte, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(byte);
        }
        out.push(b'"');
        out.drain(start..end);
    }
}

/// Whether [`read_json_id`] makes the same text again of what [`write_json_id`] writes.
pub(in crate::codec) fn reads_back(id: &str) -> bool {
    !id.starts_with('"') && !id.starts_with(OID)
}

/// Our text of an `_id` that is Extended JSON: the inverse of [`write_json_id`] for what [`reads_back`].
pub(in crate::codec) fn read_json_id(json: &[u8]) -> Parsed<Raw<'_>> {
    if let Some(hex) = json.strip_prefix(OID.as_bytes()).and_then(|rest| rest.strip_suffix(b"\"}"))
        && is_oid(hex)
    {
        return Ok(Raw { bytes: hex, escaped: false, at: 0 });
    }
    if json.first() == Some(&b'"') {
        let mut scanner = Scanner::new(json);
        let text = scanner.string()?;
        scanner.end()?;
        return Ok(text);
    }
    Ok(Raw { bytes: json, escaped: false, at: 0 })
}

pub(in crate::codec) fn is_oid(text: &[u8]) -> bool {
    text.len() == 24 && text.iter().all(u8::is_ascii_hexdigit)
}

/// Writes a patch (MongoDB's own update description) in Debezium's form: what was set as text, sizes as numbers.
pub(super) fn write_update_description(patch: &str, out: &mut Vec<u8>) {
    let parts = description(patch).unwrap_or_default();
    out.extend_from_slice(b"{\"removedFields\":");
    out.extend_from_slice(parts.removed.filter(|removed| *removed != "[]").unwrap_or("null").as_bytes());
    out.extend_from_slice(b",\"updatedFields\":");
    match parts.updated {
        Some(updated) => text::write_string(out, updated),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"truncatedArrays\":");
    let start = out.len();
    if parts.truncated.and_then(|truncated| write_truncated(truncated, out).ok()) != Some(true) {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
    out.push(b'}');
}

#[derive(Default)]
struct Description<'a> {
    removed: Option<&'a str>,
    updated: Option<&'a str>,
    truncated: Option<&'a str>,
}

fn description(patch: &str) -> Parsed<Description<'_>> {
    let mut parts = Description::default();
    let mut scanner = Scanner::new(patch.as_bytes());
    scanner.expect(b'{')?;
    if scanner.take(b'}') {
        return Ok(parts);
    }
    loop {
        let name = scanner.string()?;
        scanner.expect(b':')?;
        let value = std::str::from_utf8(scanner.value()?).ok().filter(|value| *value != "null");
        match name.bytes {
            b"removedFields" => parts.removed = value,
            b"updatedFields" => parts.updated = value,
            b"truncatedArrays" => parts.truncated = value,
            _ => {}
        }
        if !scanner.take(b',') {
            return Ok(parts);
        }
    }
}

/// `[{"field":"a","newSize":{"$numberInt":"2"}}]` as `[{"field":"a","size":2}]`; false where there is none.
fn write_truncated(arrays: &str, out: &mut Vec<u8>) -> Parsed<bool> {
    let mut scanner = Scanner::new(arrays.as_bytes());
    scanner.expect(b'[')?;
    if scanner.take(b']') {
        return Ok(false);
    }
    out.push(b'[');
    loop {
        scanner.expect(b'{')?;
        let (mut field, mut size): (&[u8], _) = (b"\"\"", 0u32);
        loop {
            let name = scanner.string()?;
            scanner.expect(b':')?;
            let value = scanner.value()?;
            match name.bytes {
                b"field" => field = value,
                b"newSize" => {
                    let digits = value.iter().filter(|byte| byte.is_ascii_digit());
                    size = digits
                        .fold(0u32, |size, digit| size.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
                }
                _ => {}
            }
            if !scanner.take(b',') {
                break;
            }
        }
        scanner.expect(b'}')?;
        out.extend_from_slice(b"{\"field\":");
        out.extend_from_slice(field);
        out.extend_from_slice(b",\"size\":");
        text::write_int(out, size);
        out.push(b'}');
        if !scanner.take(b',') {
            break;
        }
        out.push(b',');
    }
    out.push(b']');
    Ok(true)
}
