//! Collections of MongoDB, by each way that records say what is in them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{beside, load, topics};
use crate::harness::Lakeward;

/// How the records of a file say what the source held.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Documents,
    /// Updates without a document: an integer does not say how wide it is.
    Descriptions,
    /// Types as JSON has them.
    Unwrapped,
}

/// A document of the source as it stands in the lake, where the records say it otherwise than the server does.
fn as_recorded(mode: Mode, document: &Value) -> Value {
    match mode {
        Mode::Documents => normal(document),
        Mode::Descriptions => widthless(&normal(document)),
        Mode::Unwrapped => widthless(&normal(&plain(document))),
    }
}

/// Numbers by value, whatever their digits: `1e300` and `1E+300`.
fn normal(value: &Value) -> Value {
    match value {
        // What made the list has no such types, and took them for these.
        Value::Object(map) if map.len() == 1 && map.contains_key("$undefined") => Value::Null,
        Value::Object(map) if map.len() == 1 && map.contains_key("$symbol") => map["$symbol"].clone(),
        Value::Object(map) => match (map.get("$numberDouble").and_then(Value::as_str), map.len()) {
            (Some(text), 1) => json!({ "$numberDouble": text.parse::<f64>().unwrap().to_string() }),
            _ => Value::Object(map.iter().map(|(name, value)| (name.clone(), normal(value))).collect()),
        },
        Value::Array(items) => Value::Array(items.iter().map(normal).collect()),
        other => other.clone(),
    }
}

/// Integers without their width.
fn widthless(value: &Value) -> Value {
    match value {
        Value::Object(map) => match (map.get("$numberInt").or(map.get("$numberLong")), map.len()) {
            (Some(text), 1) => json!({ "$number": text }),
            _ => Value::Object(map.iter().map(|(name, value)| (name.clone(), widthless(value))).collect()),
        },
        Value::Array(items) => Value::Array(items.iter().map(widthless).collect()),
        other => other.clone(),
    }
}

/// A document without the types that `ExtractNewDocumentState` does not keep.
fn plain(value: &Value) -> Value {
    let Value::Object(map) = value else {
        let Value::Array(items) = value else { return value.clone() };
        return Value::Array(items.iter().map(plain).collect());
    };
    let long = |millis: i64| json!({ "$numberLong": millis.to_string() });
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    match map.iter().next().map(|(name, value)| (name.as_str(), value)) {
        Some(("$oid" | "$numberDecimal" | "$code", value)) => value.clone(),
        Some(("$numberDouble", value)) if text(value).ends_with(['N', 'y']) => value.clone(),
        Some(("$numberInt" | "$numberLong" | "$numberDouble", _)) => value.clone(),
        Some(("$date", value)) => value.clone(),
        Some(("$binary", value)) => value["base64"].clone(),
        // 2^32-1 seconds are a negative number to it.
        Some(("$timestamp", value)) => long(i64::from(value["t"].as_i64().unwrap() as u32 as i32) * 1_000),
        Some(("$regularExpression", value)) => json!({ "regex": value["pattern"], "options": value["options"] }),
        _ => Value::Object(map.iter().map(|(name, value)| (name.clone(), plain(value))).collect()),
    }
}

/// Compares `_doc` of all collections that the file has records of, but for some.
fn compare(file: &str, mode: Mode, (lake, name): &(Lakeward, String), but: &[&str]) {
    let topics = topics(file);
    let mut expected = BTreeMap::<(String, String), Value>::new();
    for line in beside(file, "mongo-final-docs") {
        let collection = line["collection"].as_str().unwrap();
        if topics.contains(collection) && !but.contains(&collection) {
            let document: Value = serde_json::from_str(line["document"].as_str().unwrap()).unwrap();
            let document = as_recorded(mode, &document);
            expected.insert((collection.to_owned(), document["_id"].to_string()), document);
        }
    }
    assert!(!expected.is_empty());
    let mut wrong = Vec::new();
    for collection in topics.iter().filter(|topic| topic.contains('.') && !but.contains(&topic.as_str())) {
        let (database, table) = collection.split_once('.').unwrap();
        let space = if database == "store" { name.clone() } else { format!("{name}__{database}") };
        for row in lake.sql(&format!("select _id, _doc from {space}.\"{table}\"")) {
            let document: Value = serde_json::from_str(row["_doc"].as_str().unwrap()).unwrap();
            let document = if mode == Mode::Documents { normal(&document) } else { widthless(&normal(&document)) };
            match expected.remove(&(collection.clone(), document["_id"].to_string())) {
                Some(source) if source == document => {}
                Some(source) => wrong.push(format!("{collection}: {document}\nfor {source}")),
                None => wrong.push(format!("{collection}: {document} is not there")),
            }
        }
    }
    wrong.extend(expected.into_keys().map(|(collection, id)| format!("{collection}: {id} is missing")));
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

/// Dropped or renamed, of which there is no record; and one of documents that look like Extended JSON.
const NOT_THERE: [&str; 4] = ["store.late", "store.lookalikes", "store.renamed", "store.short_lived"];

fn whole_documents(file: &str) -> (Lakeward, String) {
    let lake = load(file, "schema = \"store\"");
    compare(file, Mode::Documents, &lake, &NOT_THERE);
    lake
}

#[test]
fn whole_documents_make_the_sources_collections() {
    let (lake, name) = whole_documents("mongo-default");
    // Fields are columns as of our own MongoDB sources.
    assert_eq!(lake.value(&format!("select age from {name}.people where name = 'Ann'")), json!(31));
    let ids = lake.rows(&format!("select _id from {name}.ids order by 1"));
    assert!(ids.contains(&vec![Some("string id".to_owned())]), "{ids:?}");
}

#[test]
fn whole_documents_of_2_7_make_the_sources_collections() {
    whole_documents("2.7/mongo-default");
}

/// With `patch` and `filter` in each envelope, and the replica set in `source`.
#[test]
fn whole_documents_of_2_1_make_the_sources_collections() {
    whole_documents("2.1/mongo-default");
}

/// Updates without documents, applied by the sink.
fn descriptions(file: &str) {
    compare(file, Mode::Descriptions, &load(file, "schema = \"store\""), &NOT_THERE);
}

#[test]
fn update_descriptions_make_the_sources_collections() {
    descriptions("mongo-update-description");
}

#[test]
fn update_descriptions_of_2_7_make_the_sources_collections() {
    descriptions("2.7/mongo-update-description");
}

#[test]
fn update_descriptions_of_2_1_make_the_sources_collections() {
    descriptions("2.1/mongo-update-description");
}

#[test]
fn pre_images_are_read_over() {
    whole_documents("mongo-pre-image");
}

#[test]
fn pre_images_of_2_7_are_read_over() {
    whole_documents("2.7/mongo-pre-image");
}

fn unwrapped(file: &str) {
    compare(file, Mode::Unwrapped, &load(file, "schema = \"store\""), &[]);
}

#[test]
fn unwrapped_documents_make_the_sources_collections() {
    unwrapped("mongo-unwrapped");
}

#[test]
fn unwrapped_documents_of_2_7_make_the_sources_collections() {
    unwrapped("2.7/mongo-unwrapped");
}

#[test]
fn unwrapped_documents_of_2_1_make_the_sources_collections() {
    unwrapped("2.1/mongo-unwrapped");
}
