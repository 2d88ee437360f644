//! What we register: `TableSchema -> Avro schemas of key and value`, as text.

use std::fmt::Write;

use super::{COLUMN, TOPIC, names};
use crate::names::topic;
use crate::schema::{Column, TableKind, TableSchema};
use crate::types::LogicalType;

const JSON: &str = r#"{"type":"string","connect.version":1,"connect.name":"io.debezium.data.Json"}"#;
const TRANSACTION: &str = concat!(
    r#"{"type":"record","name":"block","namespace":"event","fields":[{"name":"id","type":"string"},"#,
    r#"{"name":"total_order","type":"long"},{"name":"data_collection_order","type":"long"}],"#,
    r#""connect.version":1,"connect.name":"event.block"}"#
);

/// The schema of a table's keys: a record of the key columns, in key order; of a collection's `id`. None: there are no keys.
pub fn key(table: &TableSchema) -> Option<String> {
    if table.key.is_empty() {
        return None;
    }
    let fields = match table.kind {
        TableKind::Documents => vec![optional("id", "\"string\"", "")],
        TableKind::Relational => {
            let fields = columns(table);
            table.key.iter().filter_map(|column| fields.get(*column).cloned()).collect()
        }
    };
    let namespace = names::namespace(table);
    Some(record("Key", &namespace, &fields, &format!("{}{}", renamed(table, &namespace), connect(&namespace, "Key"))))
}

/// The schema of a table's values: Debezium's envelope.
pub fn value(table: &TableSchema) -> String {
    let namespace = names::namespace(table);
    let mut fields = Vec::new();
    let connector = match table.kind {
        TableKind::Relational => {
            let row = record("Value", "", &columns(table), &connect(&namespace, "Value"));
            fields.extend([optional("before", &row, ""), optional("after", "\"Value\"", "")]);
            "postgresql"
        }
        TableKind::Documents => {
            fields.extend(["before", "after"].map(|name| optional(name, JSON, "")));
            fields.push(optional("updateDescription", &update_description(), ""));
            fields.push(optional("patch", JSON, ""));
            "mongo"
        }
    };
    fields.push(field("source", &source(table.kind, connector)));
    fields.push(optional("transaction", TRANSACTION, ""));
    fields.push(field("op", "\"string\""));
    fields.push(optional("ts_ms", "\"long\"", ""));
    let properties = format!("{},\"connect.version\":2{}", renamed(table, &namespace), connect(&namespace, "Envelope"));
    record("Envelope", &namespace, &fields, &properties)
}

/// A patch as Debezium has it.
fn update_description() -> String {
    const NAMESPACE: &str = "io.debezium.connector.mongodb.changestream";
    let of = |name, fields: &[String]| {
        record(name, NAMESPACE, fields, &format!(",\"connect.version\":1{}", connect(NAMESPACE, name)))
    };
    let list = |items: &str| format!(r#"{{"type":"array","items":{items}}}"#);
    let truncated = of("truncatedarray", &[field("field", "\"string\""), field("size", "\"int\"")]);
    of(
        "updatedescription",
        &[
            optional("removedFields", &list("\"string\""), ""),
            optional("updatedFields", JSON, ""),
            optional("truncatedArrays", &list(&truncated), ""),
        ],
    )
}

fn source(kind: TableKind, connector: &str) -> String {
    let namespace = format!("io.debezium.connector.{connector}");
    let mut fields: Vec<_> = ["version", "connector", "name"].map(|name| field(name, "\"string\"")).into();
    fields.extend(["ts_ms", "ts_us"].map(|name| optional(name, "\"long\"", "")));
    let (names, rest): (&[&str], _) = match kind {
        TableKind::Relational => {
            (&["snapshot", "db", "schema", "table"], [("txId", "long"), ("lsn", "long")].as_slice())
        }
        TableKind::Documents => (
            &["snapshot", "db", "collection"],
            [("txId", "string"), ("clusterTime", "long"), ("ord", "long")].as_slice(),
        ),
    };
    fields.extend(names.iter().map(|name| field(name, "\"string\"")));
    fields.extend(rest.iter().map(|(name, ty)| optional(name, &format!("\"{ty}\""), "")));
    record("Source", &namespace, &fields, &format!(",\"connect.version\":1{}", connect(&namespace, "Source")))
}

/// A nullable field for each column.
fn columns(table: &TableSchema) -> Vec<String> {
    let of = |(column, name): (&Column, String)| {
        let real = if name == column.name { String::new() } else { property(COLUMN, &column.name) };
        optional(&name, &ty(&column.ty), &real)
    };
    table.columns.iter().zip(names::fields(&table.columns)).map(of).collect()
}

/// The type of a column's values.
pub fn ty(ty: &LogicalType) -> String {
    match ty {
        LogicalType::Bool => "\"boolean\"".into(),
        LogicalType::Int => "\"int\"".into(),
        LogicalType::Long => "\"long\"".into(),
        LogicalType::Float => "\"float\"".into(),
        LogicalType::Double => "\"double\"".into(),
        LogicalType::Decimal { precision, scale } => {
            format!(r#"{{"type":"bytes","logicalType":"decimal","precision":{precision},"scale":{scale}}}"#)
        }
        LogicalType::String => "\"string\"".into(),
        LogicalType::Json => JSON.into(),
        LogicalType::Uuid => {
            r#"{"type":"string","logicalType":"uuid","connect.version":1,"connect.name":"io.debezium.data.Uuid"}"#
                .into()
        }
        LogicalType::Binary => "\"bytes\"".into(),
        LogicalType::Date => r#"{"type":"int","logicalType":"date"}"#.into(),
        // Kafka Connect has no logical type of this precision: it goes by Debezium's name.
        LogicalType::Timestamp => concat!(
            r#"{"type":"long","logicalType":"local-timestamp-micros","connect.version":1,"#,
            r#""connect.name":"io.debezium.time.MicroTimestamp"}"#
        )
        .into(),
        LogicalType::TimestampTz => r#"{"type":"long","logicalType":"timestamp-micros"}"#.into(),
        LogicalType::List(element) => format!(r#"{{"type":"array","items":["null",{}]}}"#, self::ty(element)),
    }
}

fn record(name: &str, namespace: &str, fields: &[String], properties: &str) -> String {
    let mut text = format!(r#"{{"type":"record","name":"{name}","#);
    if !namespace.is_empty() {
        // Names are of letters, digits and `_`: nothing to escape, and writing to a text cannot fail.
        let _ = write!(text, r#""namespace":"{namespace}","#);
    }
    let _ = write!(text, r#""fields":[{}]{properties}}}"#, fields.join(","));
    text
}

fn field(name: &str, ty: &str) -> String {
    format!(r#"{{"name":"{name}","type":{ty}}}"#)
}

fn optional(name: &str, ty: &str, properties: &str) -> String {
    format!(r#"{{"name":"{name}","type":["null",{ty}],"default":null{properties}}}"#)
}

/// The name that Kafka Connect gives the record.
fn connect(namespace: &str, name: &str) -> String {
    format!(r#","connect.name":"{namespace}.{name}""#)
}

/// The topic's own name, where the namespace is another.
fn renamed(table: &TableSchema, namespace: &str) -> String {
    let topic = topic(&table.table);
    if topic == namespace { String::new() } else { property(TOPIC, &topic) }
}

fn property(name: &str, text: &str) -> String {
    format!(",\"{name}\":{}", serde_json::Value::from(text))
}
