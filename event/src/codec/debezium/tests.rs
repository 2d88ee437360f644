//! The decoder against records of a real Debezium (`tests/golden/debezium`), made-up ones, and damaged ones.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Date32Type, Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;

use super::*;
use crate::codec::{Decoder, RecordRef};
use crate::schema::{Column, TableId, TableKind};
use crate::types::{DATE_INFINITY, LogicalType, TIMESTAMP_INFINITY};
use crate::{ChangeBatch, Op};

#[derive(Debug, Clone)]
struct Recorded {
    topic: String,
    offset: i64,
    key: Option<String>,
    value: Option<String>,
    old_key: Option<String>,
}

impl Recorded {
    fn record(&self) -> RecordRef<'_> {
        RecordRef {
            topic: &self.topic,
            partition: 0,
            offset: self.offset,
            key: self.key.as_deref().map(str::as_bytes),
            value: self.value.as_deref().map(str::as_bytes),
            header: self.old_key.as_deref().map(str::as_bytes),
        }
    }
}

const FILES: [&str; 24] = [
    "pg-default-schema",
    "pg-noschema-string",
    "pg-unwrapped",
    "pg-other-modes",
    "pg-isostring",
    "pg-nanoseconds",
    "mongo-default",
    "mongo-update-description",
    "mongo-pre-image",
    "mongo-unwrapped",
    "2.7/pg-default-schema",
    "2.7/pg-noschema-string",
    "2.7/pg-unwrapped",
    "2.7/pg-other-modes",
    "2.7/mongo-default",
    "2.7/mongo-update-description",
    "2.7/mongo-pre-image",
    "2.7/mongo-unwrapped",
    "2.1/pg-default-schema",
    "2.1/pg-noschema-string",
    "2.1/pg-other-modes",
    "2.1/mongo-default",
    "2.1/mongo-update-description",
    "2.1/mongo-unwrapped",
];

/// Records of the tables' topics, in order of topic and offset. A schema stands in a line of its own, before the records that have it.
fn golden(file: &str) -> Vec<Recorded> {
    let path = format!("{}/tests/golden/debezium/{file}.ndjson", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut schemas = Vec::new();
    let mut records = Vec::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(schema) = line["text"].as_str() {
            schemas.push(schema.to_owned());
            continue;
        }
        let part = |name: &str| {
            let text = line[name].as_str()?;
            let schema = line[format!("{name}_schema")].as_u64().map(|of| &schemas[of as usize]);
            Some(schema.map_or(text.to_owned(), |schema| format!("{{\"schema\":{schema},\"payload\":{text}}}")))
        };
        let headers = line["headers"].as_array().unwrap();
        let old_key = headers.iter().find(|h| h["key"] == OLD_KEY).and_then(|h| h["value"].as_str());
        records.push(Recorded {
            topic: line["topic"].as_str().unwrap().to_owned(),
            offset: line["offset"].as_i64().unwrap(),
            key: part("key"),
            value: part("value"),
            old_key: old_key.map(str::to_owned),
        });
    }
    records.retain(|r| r.topic.matches('.').count() == 2);
    records.sort_by(|a, b| (&a.topic, a.offset).cmp(&(&b.topic, b.offset)));
    records
}

static GOLDEN: LazyLock<Vec<Recorded>> = LazyLock::new(|| FILES.iter().flat_map(|file| golden(file)).collect());

fn decoder(topic: &str, placeholder: &str) -> DebeziumDecoder {
    DebeziumDecoder::new("legacy", "public", topic, Arc::new(Placeholder::new(placeholder)), None)
}

/// The batches of each topic of a file.
fn decoded(file: &str) -> BTreeMap<String, Vec<ChangeBatch>> {
    let placeholder = if file.ends_with("pg-other-modes") { "<<unavailable>>" } else { UNAVAILABLE };
    let mut decoders = BTreeMap::<String, DebeziumDecoder>::new();
    for record in golden(file) {
        let decoder = decoders.entry(record.topic.clone()).or_insert_with(|| decoder(&record.topic, placeholder));
        decoder.push(&record.record()).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    decoders.into_iter().map(|(topic, mut decoder)| (topic, decoder.flush().unwrap())).collect()
}

fn push(decoder: &mut DebeziumDecoder, key: Option<&str>, value: Option<&str>) -> crate::Result<()> {
    decoder.push(&RecordRef {
        topic: "t",
        partition: 0,
        offset: 0,
        key: key.map(str::as_bytes),
        value: value.map(str::as_bytes),
        header: None,
    })
}

fn column(batch: &ChangeBatch, name: &str) -> usize {
    batch.table().columns.iter().position(|c| c.name == name).unwrap_or_else(|| panic!("no column {name}"))
}

/// Every record of every kind is understood, and no more than a few values do not fit their columns.
#[test]
fn all_golden_records_are_read() {
    let mut misfits = Vec::new();
    for file in FILES {
        for (topic, batches) in decoded(file) {
            let mut last = None;
            for batch in batches {
                for row in 0..batch.num_rows() {
                    misfits.extend(
                        batch
                            .misfits()
                            .of(row)
                            .map(|(_, column, text)| format!("{topic}.{} {text}", batch.table().columns[column].name)),
                    );
                    assert!(last < Some(batch.sequences()[row]), "{topic}: order");
                    last = Some(batch.sequences()[row]);
                }
            }
        }
    }
    // Beyond what a 64-bit number of microseconds holds.
    let mut expected = Vec::new();
    for (prefix, ts) in [
        ("gd", Some("-9223372036853775810")),
        ("g37i", Some("+294276-12-31T23:59:59.999999Z")),
        // Null in the record.
        ("g37n", None),
        ("g27d", Some("-9223372036853775810")),
    ] {
        for _snapshot_and_stream in 0..2 {
            expected.extend(ts.map(|ts| format!("{prefix}.shop.time_special.ts {ts}")));
            expected.push(format!("{prefix}.shop.time_special.tstz +294276-12-31T23:59:59.999999Z"));
        }
    }
    assert_eq!(misfits, expected);
}

#[test]
fn a_schema_says_what_columns_are() {
    let batches = &decoded("pg-default-schema")["gd.shop.all_types"];
    assert_eq!(batches.len(), 1, "one schema");
    let batch = &batches[0];
    let table = batch.table();
    assert_eq!(table.table, TableId::new("legacy", "shop", "all_types"));
    assert_eq!(table.key, [column(batch, "id")]);
    let ty = |name: &str| &table.columns[column(batch, name)].ty;
    assert_eq!(ty("c_numeric_10_2"), &LogicalType::Decimal { precision: 10, scale: 2 });
    assert_eq!(ty("c_numeric"), &LogicalType::String);
    assert_eq!(ty("c_date_arr"), &LogicalType::List(Box::new(LogicalType::Date)));
    assert_eq!(ty("c_ts0"), &LogicalType::Timestamp);
    let after = batch.after();
    assert_eq!(after.column(column(batch, "c_numeric_10_2")).as_primitive::<Decimal128Type>().value(0), 1_234_567);
    assert_eq!(after.column(column(batch, "c_date")).as_primitive::<Date32Type>().value(0), 19_782);
    assert_eq!(after.column(column(batch, "c_numeric")).as_string::<i32>().value(0), "3.14159265358979323846");
    assert_eq!(after.column(column(batch, "c_time")).as_string::<i32>().value(0), "13:14:15.123456");
    // Snapshot, insert, update, the two halves of a key change and what follows each of its deletes.
    assert_eq!(batch.ops(), b"rrrcudd".iter().chain(b"cdd").copied().collect::<Vec<_>>());
    // The second half of the key change knows the old key; invented values of deletes are not believed.
    let change = batch.ops().iter().rposition(|op| *op == Op::Create as u8).unwrap();
    assert_eq!(batch.before().column(column(batch, "id")).as_primitive::<Int64Type>().value(change), 4);
    let delete = batch.ops().iter().position(|op| *op == Op::Delete as u8).unwrap();
    assert!(batch.before().column(column(batch, "c_bool")).is_null(delete));
}

/// As snapshots and streams of two versions have them, each in its own way.
#[test]
fn infinities_are_known() {
    for (file, topic) in [
        ("pg-default-schema", "gd.shop.time_special"),
        ("pg-isostring", "g37i.shop.time_special"),
        ("pg-nanoseconds", "g37n.shop.time_special"),
        ("2.7/pg-default-schema", "g27d.shop.time_special"),
    ] {
        let batch = &decoded(file)[topic][0];
        let ids = batch.after().column(column(batch, "id")).as_primitive::<Int32Type>();
        let moments = |id: i32| {
            let row = ids.iter().position(|of| of == Some(id)).unwrap();
            let timestamp = |name: &str| {
                batch.after().column(column(batch, name)).as_primitive::<TimestampMicrosecondType>().value(row)
            };
            let date = batch.after().column(column(batch, "d")).as_primitive::<Date32Type>().value(row);
            (date, ["ts", "ts3", "tstz"].map(timestamp))
        };
        let infinity = (DATE_INFINITY, [TIMESTAMP_INFINITY; 3]);
        assert_eq!([moments(1), moments(11)], [infinity; 2], "{file}");
        assert_eq!(moments(2), (-DATE_INFINITY, [-TIMESTAMP_INFINITY; 3]), "{file}");
    }
    // What these files do not have: the stream's other date, and `time.precision.mode = connect`.
    for (name, ty, value, infinity) in [
        ("io.debezium.time.Date", "int32", "-2147472691", -i64::from(DATE_INFINITY)),
        ("org.apache.kafka.connect.data.Date", "int32", "-2147472692", i64::from(DATE_INFINITY)),
        ("io.debezium.time.IsoDate", "string", r#""-5877611-06-22Z""#, -i64::from(DATE_INFINITY)),
        // PostgreSQL's last day.
        ("io.debezium.time.IsoDate", "string", r#""+5874897-12-31Z""#, 2_145_042_905),
        ("org.apache.kafka.connect.data.Timestamp", "int64", "9223372036825200", TIMESTAMP_INFINITY),
        ("org.apache.kafka.connect.data.Timestamp", "int64", "-9223372036832400", -TIMESTAMP_INFINITY),
        ("org.apache.kafka.connect.data.Timestamp", "int64", "9223372036825200000", TIMESTAMP_INFINITY),
        ("io.debezium.time.MicroTimestamp", "int64", "-9223372036832400000", -TIMESTAMP_INFINITY),
    ] {
        let mut decoder = decoder("p.s.t", UNAVAILABLE);
        let field = format!(r#"{{"type":"{ty}","name":"{name}","field":"v"}}"#);
        let row = format!(r#"{{"schema":{{"type":"struct","fields":[{field}]}},"payload":{{"v":{value}}}}}"#);
        push(&mut decoder, None, Some(&row)).unwrap();
        let after = decoder.flush().unwrap().remove(0).after().column(0).clone();
        let whole = match after.as_primitive_opt::<Date32Type>() {
            Some(days) => i64::from(days.value(0)),
            None => after.as_primitive::<TimestampMicrosecondType>().value(0),
        };
        assert_eq!(whole, infinity, "{name} {value}");
    }
}

/// Version 2.1 has neither `ts_us` nor `ts_ns`.
#[test]
fn the_moment_of_a_change_is_known_from_milliseconds() {
    for (file, topic) in
        [("2.1/pg-noschema-string", "g21s.shop.customers"), ("2.1/mongo-default", "g21md.store.orders")]
    {
        let batch = &decoded(file)[topic][0];
        let changes = golden(file).into_iter().filter(|r| r.topic == topic && r.value.is_some());
        let told: Vec<i64> = changes
            .map(|record| {
                let value: serde_json::Value = serde_json::from_str(&record.value.unwrap()).unwrap();
                assert!(value["source"]["ts_us"].is_null() && value["ts_us"].is_null());
                value["source"]["ts_ms"].as_i64().unwrap() * 1_000
            })
            .collect();
        // A tombstone has none.
        assert_eq!(batch.commit_ts().iter().flatten().collect::<Vec<_>>(), told, "{file}");
    }
}

/// Every form of the placeholder, of all files that have it.
#[test]
fn values_left_out_are_known_by_the_placeholder() {
    for (file, topic, all) in [
        ("pg-default-schema", "gd.shop.toast", 9),
        ("pg-other-modes", "gm.shop.toast", 4),
        ("pg-unwrapped", "gu.shop.toast", 9),
        ("2.7/pg-default-schema", "g27d.shop.toast", 9),
        ("2.7/pg-other-modes", "g27m.shop.toast", 4),
        ("2.7/pg-unwrapped", "g27u.shop.toast", 9),
        // Without the uuid[], which is null.
        ("2.1/pg-default-schema", "g21d.shop.toast", 8),
    ] {
        let batches = &decoded(file)[topic];
        let batch = &batches[0];
        let update = batch.ops().iter().position(|op| *op == Op::Update as u8).unwrap();
        let bits: u32 = batch.unchanged().value(update).iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(bits, all, "{file}");
        let key_change = (0..batch.num_rows())
            .find(|row| batch.ops()[*row] == Op::Create as u8 && batch.unchanged().is_valid(*row))
            .unwrap();
        assert!(batch.before().is_valid(key_change), "{file}: the old key, for what is left out");
    }
    // An inserted text that reads like it is a text.
    let mut decoder = decoder("p.s.t", UNAVAILABLE);
    let row = format!(
        r#"{{"before":null,"after":{{"id":1,"t":"{UNAVAILABLE}"}},"source":{{"schema":"s","table":"t"}},"op":"c"}}"#
    );
    push(&mut decoder, Some(r#"{"id":1}"#), Some(&row)).unwrap();
    let batch = decoder.flush().unwrap().remove(0);
    assert_eq!(batch.after().column(1).as_string::<i32>().value(0), UNAVAILABLE);
}

#[test]
fn columns_appear_widen_and_are_replaced() {
    let mut decoder = decoder("p.s.t", UNAVAILABLE);
    let mut row = |json: &str| {
        push(&mut decoder, Some(r#"{"id":1}"#), Some(json)).unwrap();
        let batch = decoder.flush().unwrap().remove(0);
        let columns = &batch.table().columns;
        let text = columns.iter().map(|c| format!("{} {:?}", c.name, c.ty)).collect::<Vec<_>>().join(", ");
        (text, batch.misfits().of(0).count())
    };
    assert_eq!(row(r#"{"id":1,"a":null,"f":"NaN"}"#), ("id Long, f Double".to_owned(), 0));
    assert_eq!(row(r#"{"id":1,"a":[],"f":1.5}"#), ("id Long, f Double, a List(String)".to_owned(), 0));
    let replaced = "id Long, f Double, a List(Long)";
    assert_eq!(row(r#"{"id":1,"a":[1,null],"__op":"u"}"#), (replaced.to_owned(), 0));
    assert_eq!(
        row(r#"{"id":1,"a":["late"]}"#),
        (replaced.to_owned(), 1),
        "a type that it had before does not come back"
    );
    let schema = |ty: &str| {
        format!(
            r#"{{"schema":{{"type":"struct","fields":[{{"type":"int32","field":"id"}},{{"type":"{ty}","field":"f"}}]}},"payload":{{"id":1,"f":2.5}}}}"#
        )
    };
    assert_eq!(row(&schema("float")).0, replaced, "what a column has is wider");
}

#[test]
fn identities_follow_from_names() {
    let one = |row: &str| {
        let mut decoder = decoder("p.s.t", UNAVAILABLE);
        push(&mut decoder, Some(r#"{"id":1}"#), Some(row)).unwrap();
        let columns = decoder.flush().unwrap().remove(0).table().columns.clone();
        columns.into_iter().map(|c| (c.name, c.id)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(one(r#"{"id":1,"a":1,"b":2}"#), one(r#"{"b":2,"id":1,"a":1}"#));
}

#[test]
fn a_decoder_goes_on_with_what_the_lake_knows() {
    let known = KnownTable {
        table: TableId::new("legacy", "s", "T"),
        kind: TableKind::Relational,
        columns: vec![Column {
            id: 7,
            name: "id".into(),
            ty: LogicalType::Long,
            source_type: String::new(),
            nullable: true,
        }],
        retired: vec![(7, LogicalType::String)],
        key: vec!["id".into()],
    };
    let mut decoder =
        DebeziumDecoder::new("legacy", "public", "x", Arc::new(Placeholder::new(UNAVAILABLE)), Some(known));
    push(&mut decoder, Some(r#"{"id":5}"#), None).unwrap();
    push(&mut decoder, Some(r#"{"id":5}"#), Some(r#"{"id":5,"__deleted":"false"}"#)).unwrap();
    let batches = decoder.flush().unwrap();
    assert_eq!(batches[0].ops(), b"du");
    assert_eq!((batches[0].table().columns[0].id, batches[0].table().table.name.as_str()), (7, "T"));
}

#[test]
fn what_cannot_be_read_leaves_nothing() {
    let mut decoder = decoder("p.s.t", UNAVAILABLE);
    let good = r#"{"id":1,"v":"x"}"#;
    push(&mut decoder, Some(r#"{"id":1}"#), Some(good)).unwrap();
    for (key, value) in [
        (Some("not json"), Some(good)),
        (Some("1"), Some(good)),
        (Some(r#"{"other":1}"#), Some(good)),
        (Some(r#"{"id":1}"#), Some("[1]")),
        (Some(r#"{"id":1}"#), Some(r#"{"id":1,"new":1,"id":2}"#)),
        (Some(r#"{"id":"x"}"#), None),
        (Some(r#"{"id":1}"#), Some(r#"{"schema":{"type":5},"payload":{"id":1}}"#)),
        (None, Some(r#"{"op":"x","source":{},"after":{"id":1}}"#)),
        (None, Some(r#"{"op":"u","source":{},"after":null}"#)),
    ] {
        let error = push(&mut decoder, key, value).unwrap_err().to_string();
        assert!(error.contains("partition 0 offset 0"), "{error}");
        assert_eq!(decoder.rows(), 1, "{key:?} {value:?}");
    }
    let batches = decoder.flush().unwrap();
    assert_eq!(batches[0].table().columns.len(), 2, "nor a column");
}

#[test]
fn messages_and_what_deletes_nothing_are_no_rows() {
    let mut decoder = decoder("p.s.t", UNAVAILABLE);
    let message = r#"{"op":"m","ts_ms":1,"source":{"lsn":1},"message":{"prefix":"p","content":""}}"#;
    push(&mut decoder, Some(r#"{"prefix":"p"}"#), Some(message)).unwrap();
    push(&mut decoder, Some(r#"{"id":1}"#), None).unwrap();
    push(&mut decoder, None, Some(r#"{"op":"t","source":{"lsn":1},"before":null,"after":null}"#)).unwrap();
    assert!(decoder.rows() == 0 && decoder.table().is_none());
}

#[test]
fn unwrapped_documents_are_documents() {
    for (file, topic) in [
        ("mongo-unwrapped", "gmgx.store.people"),
        ("2.7/mongo-unwrapped", "g27mx.store.people"),
        ("2.1/mongo-unwrapped", "g21mx.store.people"),
    ] {
        let batches = &decoded(file)[topic];
        let batch = &batches[0];
        assert_eq!((batch.table().kind, batches.len()), (TableKind::Documents, 1));
        let (ids, documents) = (batch.after().column(0).as_string::<i32>(), batch.after().column(1).as_string::<i32>());
        assert_eq!(ids.value(0), r#"{"$numberInt":"1"}"#);
        assert_eq!(documents.value(3), r#"{"_id":{"$numberInt":"4"},"name":"Dee","age":{"$numberDouble":"4.5"}}"#);
        let delete = batch.ops().iter().position(|op| *op == Op::Delete as u8).unwrap();
        assert_eq!(batch.before().column(0).as_string::<i32>().value(delete), r#"{"$numberInt":"4"}"#);
    }
    // An update of a document that is gone by then, as 2.1 says it.
    let mut decoder = decoder("p.store.people", UNAVAILABLE);
    for row in [r#"{"_id":1,"n":1,"__deleted":false,"__op":"r"}"#, r#"{"__deleted":true,"__op":"u"}"#] {
        push(&mut decoder, Some(r#"{"id":1}"#), Some(row)).unwrap();
    }
    assert_eq!(decoder.flush().unwrap()[0].ops(), b"rd");
}

/// Damages a record; whatever comes of it, the decoder goes on, and what it gives back is sound.
fn damaged(record: &Recorded, edits: &[(u8, u16, u8)]) {
    let mut parts =
        [record.key.clone(), record.value.clone(), record.old_key.clone()].map(|p| p.map(String::into_bytes));
    for (part, at, byte) in edits {
        let Some(bytes) = parts[usize::from(part % 3)].as_mut().filter(|bytes| !bytes.is_empty()) else { continue };
        // Schemas come first and are long: half of the edits count from the end.
        let at = usize::from(*at) % bytes.len();
        let at = if part & 4 == 0 { at } else { bytes.len() - 1 - at };
        match part >> 3 & 3 {
            0 => bytes[at] = *byte,
            1 => bytes.truncate(at),
            2 => drop(bytes.remove(at)),
            _ => bytes.insert(at, b"{}[]\",:0-.\\nN"[usize::from(*byte) % 13]),
        }
    }
    let mut decoder = decoder(&record.topic, UNAVAILABLE);
    for round in 0..3 {
        let rows = decoder.rows();
        let given = if round == 1 {
            let [key, value, header] = &parts;
            decoder.push(&RecordRef {
                key: key.as_deref(),
                value: value.as_deref(),
                header: header.as_deref(),
                ..record.record()
            })
        } else {
            decoder.push(&record.record())
        };
        assert!(given.is_ok() || decoder.rows() == rows);
    }
    let rows = decoder.rows();
    let batches = decoder.flush().unwrap();
    assert_eq!(batches.iter().map(ChangeBatch::num_rows).sum::<usize>(), rows);
    for batch in batches {
        for column in batch.record_batch().columns() {
            column.to_data().validate_full().unwrap();
        }
    }
}

proptest! {
    #[test]
    fn no_damage_is_too_much(
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<u8>(), any::<u16>(), any::<u8>()), 1..6),
    ) {
        damaged(&GOLDEN[which.index(GOLDEN.len())], &edits);
    }

    #[test]
    fn no_bytes_are_too_much(key in prop::option::of(any::<Vec<u8>>()), value in prop::option::of("[\\[\\]{}:,\"a-c0-9 opsaftrucehmd_.-]{0,60}")) {
        let mut decoder = decoder("t", UNAVAILABLE);
        let value = value.map(String::into_bytes);
        let _ = decoder.push(&RecordRef { topic: "t", partition: 0, offset: 0, key: key.as_deref(), value: value.as_deref(), header: key.as_deref() });
        let rows = decoder.rows();
        prop_assert_eq!(decoder.flush().unwrap().iter().map(ChangeBatch::num_rows).sum::<usize>(), rows);
    }
}
