//! MongoDB documents and their rows in the lake, in one form: `BSON document | columns and _doc -> Row`.
//!
//! A field's value is in its column, or, where the column cannot hold it, NULL there and in the whole document in `_doc`; which of the
//! two depends on what the column was when the row was written. So the lake's value of a field is its column's, else the one in
//! `_doc`; the source's is the field's. Where a row has both, they have to agree. Values are taken from BSON here by the rules of
//! the surface, nothing is shared with the code that made the columns.

use std::collections::HashSet;
use std::fmt::Write as _;

use lakeward_event::LogicalType;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Bson, Document};
use serde_json::Value;

use super::text::{Printer, Row, write_double, write_hex, write_timestamp, write_uuid};

/// The fields of a collection that have columns in the lake.
#[derive(Debug, Clone)]
pub struct Fields {
    fields: Vec<(String, LogicalType)>,
    names: HashSet<String>,
    /// `document = "never"`: what no column holds is nowhere.
    never: bool,
}

/// The name under which differences in fields without a column are told.
pub const OTHERS: &str = "(fields without a column)";

impl Fields {
    pub fn new(fields: Vec<(String, LogicalType)>, never: bool) -> Self {
        let names = fields.iter().map(|(name, _)| name.clone()).collect();
        Self { fields, names, never }
    }

    /// `_id`, the fields, and what has no column.
    pub fn columns(&self) -> Vec<String> {
        let fields = self.fields.iter().map(|(name, _)| name.clone());
        std::iter::once("_id".to_owned()).chain(fields).chain([OTHERS.to_owned()]).collect()
    }

    /// A document of the source.
    pub fn of_source(&self, document: &Document, row: &mut Row) {
        row.clear();
        row.push(|out| {
            out.extend_from_slice(id_text(document.get("_id").unwrap_or(&Bson::Null)).as_bytes());
            true
        });
        for (name, ty) in &self.fields {
            row.push(|out| self.field(document.get(name), ty, out));
        }
        row.push(|out| self.others(document, out));
        row.finish(&[0]);
    }

    /// A row of the lake: `printers` are those of `_id`, the fields, and `_doc`.
    pub fn of_lake(&self, printers: &[Printer<'_>], index: usize, row: &mut Row) {
        row.clear();
        let mut text = Vec::new();
        let document = printers.last().filter(|doc| doc.write(index, &mut text)).map(|_| parse(&text));
        let parsed = document.as_ref().and_then(|d| d.as_ref());
        row.push(|out| printers.first().is_some_and(|id| id.write(index, out)));
        for ((name, ty), printer) in self.fields.iter().zip(printers.iter().skip(1)) {
            row.push(|out| {
                let start = out.len();
                if !printer.write(index, out) {
                    return parsed.is_some_and(|document| self.field(document.get(name), ty, out));
                }
                if *ty == LogicalType::Json {
                    let normal = normal_json(&out[start..]);
                    out.truncate(start);
                    out.extend_from_slice(normal.as_bytes());
                }
                if let Some(document) = parsed {
                    let mut other = Vec::new();
                    if !self.field(document.get(name), ty, &mut other) || other != out[start..] {
                        out.extend_from_slice(b" (in _doc: ");
                        out.extend_from_slice(&other);
                        out.push(b')');
                    }
                }
                true
            });
        }
        row.push(|out| match (&document, parsed) {
            (_, Some(document)) => self.others(document, out),
            (Some(_), None) => {
                out.extend_from_slice(b"_doc is not Extended JSON");
                true
            }
            (None, None) => false,
        });
        row.finish(&[0]);
    }

    /// A field's value in the form of its column; what that cannot hold is canonical Extended JSON.
    fn field(&self, value: Option<&Bson>, ty: &LogicalType, out: &mut Vec<u8>) -> bool {
        let Some(value) = value.filter(|value| !matches!(value, Bson::Null)) else { return false };
        if write_in_column(value, ty, out) {
            return true;
        }
        if self.never {
            return false;
        }
        out.extend_from_slice(canonical(value).as_bytes());
        true
    }

    /// Fields that have no column, by name.
    fn others(&self, document: &Document, out: &mut Vec<u8>) -> bool {
        if self.never {
            return false;
        }
        let mut others: Vec<(&String, &Bson)> = document
            .iter()
            .filter(|(name, value)| *name != "_id" && !matches!(value, Bson::Null) && !self.names.contains(*name))
            .collect();
        others.sort_by_key(|(name, _)| *name);
        for (name, value) in &others {
            let mut text = String::new();
            // Writing to a String does not fail.
            let _ = write!(text, "{name:?}: {} ", canonical(value));
            out.extend_from_slice(text.as_bytes());
        }
        !others.is_empty()
    }
}

/// Appends the value if a column of this type holds exactly it.
fn write_in_column(value: &Bson, ty: &LogicalType, out: &mut Vec<u8>) -> bool {
    use LogicalType as T;
    match (ty, value) {
        (T::Bool, Bson::Boolean(value)) => out.push(if *value { b't' } else { b'f' }),
        (T::Int | T::Long, Bson::Int32(value)) => out.extend_from_slice(value.to_string().as_bytes()),
        (T::Long, Bson::Int64(value)) => out.extend_from_slice(value.to_string().as_bytes()),
        (T::Double, Bson::Double(value)) => write_double(*value, out),
        (T::Double, Bson::Int32(value)) => write_double(f64::from(*value), out),
        (T::Double, Bson::Int64(value)) => {
            let double = *value as f64;
            // i64::MAX becomes 2^63, which casts back to i64::MAX: widths tell them apart.
            if i128::from(*value) != double as i128 {
                return false;
            }
            write_double(double, out);
        }
        (T::String, Bson::String(value)) => out.extend_from_slice(value.as_bytes()),
        (T::String, Bson::ObjectId(value)) => out.extend_from_slice(value.to_hex().as_bytes()),
        (T::String, Bson::Decimal128(value)) => out.extend_from_slice(value.to_string().as_bytes()),
        (T::TimestampTz, Bson::DateTime(value)) => match value.timestamp_millis().checked_mul(1000) {
            Some(micros) => write_timestamp(micros, true, out),
            None => return false,
        },
        (T::Uuid, Bson::Binary(value)) if value.subtype == BinarySubtype::Uuid && value.bytes.len() == 16 => {
            write_uuid(&value.bytes, out);
        }
        (T::Binary, Bson::Binary(value)) if value.subtype != BinarySubtype::Uuid || value.bytes.len() != 16 => {
            out.extend_from_slice(b"\\x");
            write_hex(&value.bytes, out);
        }
        (
            T::Json,
            Bson::Document(_)
            | Bson::Array(_)
            | Bson::Timestamp(_)
            | Bson::RegularExpression(_)
            | Bson::JavaScriptCode(_)
            | Bson::JavaScriptCodeWithScope(_)
            | Bson::Symbol(_)
            | Bson::DbPointer(_)
            | Bson::MinKey
            | Bson::MaxKey
            | Bson::Undefined,
        ) => out.extend_from_slice(normal(value.clone().into_relaxed_extjson()).as_bytes()),
        _ => return false,
    }
    true
}

fn canonical(value: &Bson) -> String {
    value.clone().into_canonical_extjson().to_string()
}

fn parse(text: &[u8]) -> Option<Document> {
    match Bson::try_from(serde_json::from_slice::<Value>(text).ok()?).ok()? {
        Bson::Document(document) => Some(document),
        _ => None,
    }
}

/// Relaxed Extended JSON has more than one text for a value (digits of doubles, fractions of seconds): it is read and written
/// again, on both sides.
fn normal(value: Value) -> String {
    match Bson::try_from(value.clone()) {
        Ok(bson) => bson.into_canonical_extjson().to_string(),
        // A document that only looks like a wrapped type.
        Err(_) => value.to_string(),
    }
}

fn normal_json(text: &[u8]) -> String {
    match serde_json::from_slice(text) {
        Ok(value) => normal(value),
        Err(_) => String::from_utf8_lossy(text).into_owned(),
    }
}

/// The key's text of an `_id`.
fn id_text(id: &Bson) -> String {
    match id {
        Bson::ObjectId(id) => id.to_hex(),
        Bson::String(text) => {
            let hex = text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit());
            let taken = hex || matches!(text.as_str(), "null" | "true" | "false") || text.starts_with(['{', '"']);
            if taken { Value::String(text.clone()).to_string() } else { text.clone() }
        }
        other => canonical(other),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray};
    use mongodb::bson::{doc, oid::ObjectId};

    use super::*;

    fn of_lake(fields: &Fields, columns: &[ArrayRef]) -> Row {
        let printers: Vec<_> = columns.iter().map(|c| Printer::new(c.as_ref()).unwrap()).collect();
        let mut row = Row::default();
        fields.of_lake(&printers, 0, &mut row);
        row
    }

    fn of_source(fields: &Fields, document: &Document) -> Row {
        let mut row = Row::default();
        fields.of_source(document, &mut row);
        row
    }

    fn text(value: Option<&str>) -> ArrayRef {
        Arc::new(StringArray::from(vec![value]))
    }

    #[test]
    fn a_value_is_in_its_column_or_in_the_document() {
        let fields = Fields::new(vec![("n".into(), LogicalType::Long), ("j".into(), LogicalType::Json)], false);
        let document =
            doc! { "_id": "a", "n": 5, "j": { "x": [1, 2.5, 7_i64], "t": mongodb::bson::DateTime::from_millis(1000) } };
        let source = of_source(&fields, &document);
        let json = r#"{"x":[1,2.50,7],"t":{"$date":"1970-01-01T00:00:01Z"}}"#;
        let n = |value: Option<i64>| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
        assert_eq!(of_lake(&fields, &[text(Some("a")), n(Some(5)), text(Some(json)), text(None)]), source);
        // lost
        assert_ne!(of_lake(&fields, &[text(Some("a")), n(None), text(Some(json)), text(None)]), source);
        assert_ne!(of_lake(&fields, &[text(Some("a")), n(Some(6)), text(Some(json)), text(None)]), source);
        // kept in the document
        let doc = Bson::from(document.clone()).into_canonical_extjson().to_string();
        assert_eq!(of_lake(&fields, &[text(Some("a")), n(None), text(Some(json)), text(Some(&doc))]), source);
        // which must say the same as the column
        assert_ne!(of_lake(&fields, &[text(Some("a")), n(Some(6)), text(Some(json)), text(Some(&doc))]), source);
    }

    #[test]
    fn what_has_no_column_must_be_in_the_document() {
        let fields = Fields::new(vec![("d".into(), LogicalType::Double)], false);
        let document =
            doc! { "_id": ObjectId::parse_str("65a1b2c3d4e5f60718293a4b").unwrap(), "d": "text", "": 1, "D": 2 };
        let source = of_source(&fields, &document);
        let d: ArrayRef = Arc::new(Float64Array::from(vec![None::<f64>]));
        let doc = Bson::from(document.clone()).into_canonical_extjson().to_string();
        let id = text(Some("65a1b2c3d4e5f60718293a4b"));
        assert_eq!(of_lake(&fields, &[id.clone(), d.clone(), text(Some(&doc))]), source);
        let without = doc.replace("\"D\":{\"$numberInt\":\"2\"}", "\"D\":{\"$numberInt\":\"3\"}");
        assert_ne!(without, doc);
        assert_ne!(of_lake(&fields, &[id.clone(), d.clone(), text(Some(&without))]), source);
        assert_ne!(of_lake(&fields, &[id, d, text(None)]), source);
    }

    #[test]
    fn longs_that_no_double_holds_are_not_rounded() {
        let mut out = Vec::new();
        assert!(write_in_column(&Bson::Int64(1 << 53), &LogicalType::Double, &mut out));
        assert!(!write_in_column(&Bson::Int64((1 << 53) + 1), &LogicalType::Double, &mut out));
        assert!(!write_in_column(&Bson::Int64(i64::MAX), &LogicalType::Double, &mut out));
        assert!(!write_in_column(&Bson::Double(1.0), &LogicalType::Long, &mut out));
    }

    #[test]
    fn no_two_ids_share_a_text() {
        assert_eq!(id_text(&Bson::String("65a1b2c3d4e5f60718293a4b".into())), "\"65a1b2c3d4e5f60718293a4b\"");
        assert_eq!(id_text(&Bson::String("plain".into())), "plain");
        assert_eq!(id_text(&Bson::String("{}".into())), "\"{}\"");
        assert_eq!(id_text(&Bson::Int32(7)), "{\"$numberInt\":\"7\"}");
        assert_eq!(id_text(&Bson::Null), "null");
    }
}
