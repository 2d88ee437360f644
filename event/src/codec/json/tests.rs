//! The codec as a whole: exact text, and any batch there and back.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Decimal128Array, Int32Array, Int64Array, StringArray, StructArray, TimestampMicrosecondArray,
};
use proptest::prelude::*;

use super::{JsonDecoder, JsonEncoder};
use crate::batch::{ChangeBatch, ChangeMeta, MetaRow, Op};
use crate::codec::samples::{any_batch, meta, record, row, rows, schema};
use crate::codec::{Decoder, Encoder, RecordBlock, RecordRef};
use crate::error::Error;
use crate::schema::{TableId, TableSchema};
use crate::types::LogicalType;

fn decoder(schema: &Arc<TableSchema>) -> JsonDecoder {
    let schema = schema.clone();
    JsonDecoder::new(Arc::new(move |version| (version == schema.version).then(|| schema.clone())))
}

fn encoder() -> JsonEncoder {
    JsonEncoder::with_database("shop").with_clock(|| 1_700_000_000_456)
}

fn encoded(batch: &ChangeBatch, partitions: i32) -> RecordBlock {
    let mut block = RecordBlock::default();
    encoder().encode(batch, partitions, &mut block).unwrap();
    block
}

/// The same with inlined schemas.
fn encoded_inline(batch: &ChangeBatch, partitions: i32) -> RecordBlock {
    let mut block = RecordBlock::default();
    encoder().with_inline_schemas(true).encode(batch, partitions, &mut block).unwrap();
    block
}

/// Key, value and header of each record, one part a line.
fn lines(block: &RecordBlock) -> String {
    let text = |part: Option<&[u8]>| part.map_or("null".into(), |part| String::from_utf8(part.to_vec()).unwrap());
    block.iter().map(|r| format!("{} {} {}\n{}\n", r.partition, text(r.key), text(r.header), text(r.value))).collect()
}

fn relational_changes() -> ChangeBatch {
    let schema = schema(
        vec![LogicalType::Int, LogicalType::Decimal { precision: 10, scale: 2 }, LogicalType::TimestampTz],
        vec![0],
    );
    let price = |values: Vec<Option<i128>>| {
        Arc::new(Decimal128Array::from(values).with_precision_and_scale(10, 2).unwrap()) as ArrayRef
    };
    let at =
        |values: Vec<Option<i64>>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef;
    let after = rows(
        &schema,
        vec![
            Arc::new(Int32Array::from(vec![Some(1), Some(1), Some(2), None, None])),
            price(vec![Some(1230), None, Some(-5), None, None]),
            at(vec![Some(0), None, Some(i64::MAX), None, None]),
        ],
        vec![true, true, true, false, false],
    );
    let before = rows(
        &schema,
        vec![
            Arc::new(Int32Array::from(vec![None, None, Some(1), Some(2), None])),
            price(vec![None; 5]),
            at(vec![None; 5]),
        ],
        vec![false, false, true, true, false],
    );
    let mut meta = ChangeMeta::default();
    meta.push(row(Op::Read, 10));
    meta.misfit(b'a', 1, "NaN");
    meta.push(MetaRow { unchanged: Some(&[0b100]), ..row(Op::Update, 11) });
    meta.push(row(Op::Create, 12));
    meta.push(row(Op::Delete, 13));
    meta.push(MetaRow { tx: None, commit_ts: None, ..row(Op::Truncate, 14) });
    ChangeBatch::try_new(schema, meta.finish().unwrap(), after, before).unwrap()
}

#[test]
fn the_text_of_a_relational_change() {
    insta::assert_snapshot!(lines(&encoded(&relational_changes(), 2)));
}

#[test]
fn the_text_of_a_relational_change_with_its_schema() {
    insta::assert_snapshot!(lines(&encoded_inline(&relational_changes().slice(0, 2), 2)));
}

fn mongodb_changes() -> ChangeBatch {
    let schema = Arc::new(TableSchema::documents(TableId::new("inventory", "shop", "items")));
    let text = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
    let after = rows(
        &schema,
        vec![
            text(vec![Some("a\"1"), Some("a\"1"), None]),
            text(vec![Some(r#"{"_id":"a\"1","n":{"$numberInt":"1"}}"#), None, None]),
        ],
        vec![true, true, false],
    );
    let before = rows(
        &schema,
        vec![text(vec![None, None, Some("a\"1")]), text(vec![None, None, None])],
        vec![false, false, true],
    );
    let at = MetaRow { position: (1_700_000_000 << 32) | 5, tx: Some(255), ..row(Op::Create, 1) };
    let patch = Some(r#"{"updatedFields":{"n":{"$numberInt":"2"}},"removedFields":[]}"#);
    let meta = meta(&[at, MetaRow { op: Op::Update, patch, ..at }, MetaRow { op: Op::Delete, ..at }]).finish();
    ChangeBatch::try_new(schema, meta.unwrap(), after, before).unwrap()
}

#[test]
fn the_text_of_a_mongodb_change() {
    insta::assert_snapshot!(lines(&encoded(&mongodb_changes(), 1)));
}

#[test]
fn the_text_of_a_mongodb_change_with_its_schema() {
    insta::assert_snapshot!(lines(&encoded_inline(&mongodb_changes().slice(1, 1), 1)));
}

/// Every type's schema, and what an unchanged value of it is.
#[test]
fn the_schema_and_the_unavailable_value_of_each_type() {
    let types = [
        LogicalType::Bool,
        LogicalType::Int,
        LogicalType::Long,
        LogicalType::Float,
        LogicalType::Double,
        LogicalType::Decimal { precision: 9, scale: 2 },
        LogicalType::String,
        LogicalType::Json,
        LogicalType::Uuid,
        LogicalType::Binary,
        LogicalType::Date,
        LogicalType::Timestamp,
        LogicalType::TimestampTz,
    ];
    let lists = types.iter().map(|ty| LogicalType::List(Box::new(ty.clone())));
    let schema = schema(types.iter().cloned().chain(lists).collect(), vec![2, 1]);
    let row = StructArray::new(
        schema.arrow_fields(),
        schema.columns.iter().map(|column| arrow::array::new_null_array(&column.ty.arrow(), 1)).collect(),
        None,
    );
    let before = StructArray::new_null(row.fields().clone(), 1);
    let mut meta = meta(&[MetaRow { unchanged: Some(&[0xff; 4]), ..super::tests::row(Op::Update, 1) }]);
    let batch = ChangeBatch::try_new(schema, meta.finish().unwrap(), row, before).unwrap();
    let block = encoded_inline(&batch, 1);
    let record = block.iter().next().unwrap();
    let [key, value] = [record.key, record.value].map(|part| std::str::from_utf8(part.unwrap()).unwrap());
    // A line for each schema, and then one for each value.
    let listed = format!("{key}\n{value}").replace("{\"type\"", "\n{\"type\"").replace(",\"c", ",\n\"c");
    insta::assert_snapshot!(listed);
}

/// What Debezium writes for the same `_id`s, and back.
#[test]
fn an_id_is_extended_json_in_a_key_with_schema() {
    for (id, json) in [
        ("7", r#""\"7\"""#),
        ("65a1b2c3d4e5f60718293a4b", r#""{\"$oid\":\"65a1b2c3d4e5f60718293a4b\"}""#),
        (r#""65a1b2c3d4e5f60718293a4b""#, r#""\"65a1b2c3d4e5f60718293a4b\"""#),
        ("a\"b\\c\n", r#""\"a\\\"b\\\\c\\n\"""#),
        (r#"{"$numberInt":"7"}"#, r#""{\"$numberInt\":\"7\"}""#),
        ("null", r#""null""#),
        (r#""null""#, r#""\"null\"""#),
        ("", r#""\"\"""#),
    ] {
        let mut out = b"before".to_vec();
        super::connect::write_json_id(id, &mut out);
        assert_eq!(std::str::from_utf8(&out[6..]).unwrap(), json, "{id}");
        let inner: String = serde_json::from_slice(&out[6..]).unwrap();
        if super::connect::reads_back(id) {
            let mut back = Vec::new();
            let raw = super::connect::read_json_id(inner.as_bytes()).unwrap();
            super::scan::append_unescaped(raw, &mut back).unwrap();
            assert_eq!(back, id.as_bytes());
        }
    }
}

#[test]
fn an_update_description_is_debeziums_under_a_schema() {
    for (patch, written) in [
        (
            r#"{"updatedFields":{"a.b":{"$numberInt":"2"}},"removedFields":["gone"],"truncatedArrays":[{"field":"c\"d","newSize":{"$numberInt":"12"}},{"newSize":3,"field":"e"}],"disambiguatedPaths":{}}"#,
            r#"{"removedFields":["gone"],"updatedFields":"{\"a.b\":{\"$numberInt\":\"2\"}}","truncatedArrays":[{"field":"c\"d","size":12},{"field":"e","size":3}]}"#,
        ),
        (
            r#"{"updatedFields":{},"removedFields":[],"truncatedArrays":[]}"#,
            r#"{"removedFields":null,"updatedFields":"{}","truncatedArrays":null}"#,
        ),
        ("{}", r#"{"removedFields":null,"updatedFields":null,"truncatedArrays":null}"#),
        ("-1", r#"{"removedFields":null,"updatedFields":null,"truncatedArrays":null}"#),
        (
            r#"{"truncatedArrays":[{"field":"a","newSize":1},2]}"#,
            r#"{"removedFields":null,"updatedFields":null,"truncatedArrays":null}"#,
        ),
    ] {
        let mut out = Vec::new();
        super::connect::write_update_description(patch, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), written);
    }
}

/// A table may change its schema, and a log the setting, in the middle: each record is read by what it has.
#[test]
fn schemas_come_and_go() {
    let batch = relational_changes();
    let mut decoder = decoder(batch.table());
    let (plain, inline) = (encoded(&batch, 1), encoded_inline(&batch, 1));
    let other = |value: &[u8]| {
        let text = std::str::from_utf8(value).unwrap();
        text.replacen("users.public.orders.Envelope", "another", 1).replacen(",\"payload\"", " , \"payload\" ", 1)
    };
    for (plain, inline) in plain.iter().zip(inline.iter()) {
        assert_eq!(plain.header, inline.header);
        assert_eq!(plain.partition, inline.partition);
        let other = other(inline.value.unwrap());
        for value in [plain.value.unwrap(), inline.value.unwrap(), inline.value.unwrap(), other.as_bytes()] {
            decoder.push(&RecordRef { value: Some(value), ..record(&plain) }).unwrap();
        }
        let value = std::str::from_utf8(inline.value.unwrap()).unwrap();
        for (from, to) in [
            ("{\"schema\":", "{\"schema\":}"),
            (",\"payload\"", ",\"pay\""),
            (",\"payload\":", ",\"payload\":null,\"x\":"),
            ("\"op\"", "\"xx\""),
        ] {
            let broken = value.replacen(from, to, if from == "\"op\"" { 2 } else { 1 });
            assert_ne!(broken, value);
            decoder.push(&RecordRef { value: Some(broken.as_bytes()), ..record(&plain) }).unwrap_err();
        }
        let short = &value.as_bytes()[..value.len() - 1];
        decoder.push(&RecordRef { value: Some(short), ..record(&plain) }).unwrap_err();
    }
    let decoded = decoder.flush().unwrap().remove(0);
    assert_eq!(decoded.num_rows(), 4 * batch.num_rows());
    for row in 0..decoded.num_rows() {
        assert_eq!(decoded.slice(row, 1).record_batch(), batch.slice(row / 4, 1).record_batch());
    }
}

#[test]
fn a_bad_record_leaves_the_rest_alone() {
    let schema = schema(vec![LogicalType::Long, LogicalType::String], vec![0]);
    let after = rows(
        &schema,
        vec![Arc::new(Int64Array::from(vec![1, 2])), Arc::new(StringArray::from(vec!["one", "two"]))],
        vec![true, true],
    );
    let before = after.slice(0, 0);
    let before = StructArray::new_null(before.fields().clone(), 2);
    let batch = ChangeBatch::try_new(
        schema.clone(),
        meta(&[row(Op::Create, 1), row(Op::Create, 2)]).finish().unwrap(),
        after,
        before,
    )
    .unwrap();
    let block = encoded(&batch, 1);
    let records: Vec<_> = block.iter().collect();
    let good = record(&records[0]);
    let value = std::str::from_utf8(good.value.unwrap()).unwrap();
    let mut decoder = decoder(&schema);
    decoder.push(&good).unwrap();
    for (broken, reason) in [
        (value.replace("\"c0\":1", "\"c0\":\"1\""), "not an integer"),
        (value.replace("\"c0\":1", "\"c0\":9223372036854775808"), "not an integer"),
        (value.replace("\"c0\":1", "\"c0\":1.0"), "not an integer"),
        (value.replace("\"c0\":1,", ""), "1 of 2 columns"),
        (value.replace("\"c0\":1", "\"c0\":1,\"c0\":1"), "twice"),
        (value.replace("\"c0\"", "\"c9\""), "not in schema version 7"),
        (value.replace("\"op\":\"c\"", "\"op\":\"x\""), "unknown op"),
        (value.replace("\"op\":\"c\",", ""), "no op"),
        (value.replace("\"before\":null,", ""), "not an envelope"),
        (value.replace("\"one\"", "\"o\\ud800ne\""), "unknown escape"),
        (format!("{value}x"), "bytes after the end"),
        (value[..value.len() - 1].to_owned(), "expected `}`"),
    ] {
        let error = decoder.push(&RecordRef { value: Some(broken.as_bytes()), ..good }).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(reason), "{text}");
        assert!(text.contains("users.public.orders partition 0 offset 3"), "{text}");
    }
    for header in [None, Some("7"), Some("8,1"), Some("x,1"), Some("7,1,zz"), Some("7,1,-,{\"a\":1}")] {
        assert!(decoder.push(&RecordRef { header: header.map(str::as_bytes), ..good }).is_err(), "{header:?}");
    }
    // a tombstone says nothing
    decoder.push(&RecordRef { value: None, header: None, ..good }).unwrap();
    decoder.push(&record(&records[1])).unwrap();
    assert_eq!(decoder.rows(), 2);
    let batches = decoder.flush().unwrap();
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].record_batch(), batch.record_batch());
    assert_eq!(decoder.rows(), 0);
}

#[test]
fn columns_may_come_in_any_order_and_spelling() {
    let schema = schema(vec![LogicalType::Long, LogicalType::String], vec![0]);
    let value = r#" { "op" : "c", "source": {"lsn": 5, "txId": null, "ts_us": 1, "more": [{"x": "\u0041"}]},
        "after": { "quo\"te\u000a" : "z\ud83d\ude00\/", "\u0063\u0030" : -9223372036854775808 }, "before": null, "x": 1e5 } "#;
    let mut decoder = decoder(&schema);
    let at = RecordRef {
        topic: "t",
        partition: 0,
        offset: 0,
        key: None,
        value: Some(value.as_bytes()),
        header: Some(b"7,18446744073709551615"),
    };
    decoder.push(&at).unwrap();
    let batch = decoder.flush().unwrap().remove(0);
    assert_eq!(batch.sequences(), [u64::MAX]);
    let expected = rows(
        &schema,
        vec![Arc::new(Int64Array::from(vec![i64::MIN])), Arc::new(StringArray::from(vec!["z\u{1f600}/"]))],
        vec![true],
    );
    assert_eq!(batch.after(), &expected);
}

#[test]
fn versions_are_runs() {
    let old = schema(vec![LogicalType::Int], vec![]);
    let new = Arc::new(TableSchema { version: 8, ..(*schema(vec![LogicalType::Long], vec![])).clone() });
    let known = [old.clone(), new];
    let source = known.clone();
    let mut decoder = JsonDecoder::new(Arc::new(move |version| source.iter().find(|s| s.version == version).cloned()));
    let value = br#"{"before":null,"after":{"c0":1},"source":{},"op":"c"}"#;
    let at = RecordRef { topic: "t", partition: 0, offset: 0, key: None, value: Some(value), header: None };
    let no_source = br#"{"before":null,"after":{"c0":true},"source":{"lsn":1},"op":"c"}"#;
    let at = RecordRef { value: Some(&value[..]), ..at };
    assert!(decoder.push(&RecordRef { value: Some(no_source), header: Some(b"7,1"), ..at }).is_err());
    let value = br#"{"before":null,"after":{"c0":1},"source":{"lsn":1},"op":"c"}"#;
    for header in ["7,1", "7,2", "8,3", "7,4"] {
        decoder.push(&RecordRef { value: Some(value), header: Some(header.as_bytes()), ..at }).unwrap();
        // a bad record of another version does not break the run
        let header = if header.starts_with('7') { "8,9" } else { "7,9" };
        decoder.push(&RecordRef { value: Some(b"{}"), header: Some(header.as_bytes()), ..at }).unwrap_err();
    }
    let rows: Vec<_> = decoder.flush().unwrap().iter().map(|b| (b.table().version, b.num_rows())).collect();
    assert_eq!(rows, [(7, 2), (8, 1), (7, 1)]);
}

#[test]
fn a_truncate_reaches_every_partition_and_keyless_rows_meet_their_delete() {
    let schema = schema(vec![LogicalType::Int], vec![]);
    let one = |valid| rows(&schema, vec![Arc::new(Int32Array::from(vec![5; 3]))], valid);
    let batch = ChangeBatch::try_new(
        schema.clone(),
        meta(&[row(Op::Create, 1), row(Op::Delete, 2), row(Op::Truncate, 3)]).finish().unwrap(),
        one(vec![true, false, false]),
        one(vec![false, true, false]),
    )
    .unwrap();
    let block = encoded(&batch, 5);
    let records: Vec<_> = block.iter().collect();
    assert_eq!(records[0].partition, records[1].partition);
    let truncates: Vec<_> = records[2..].iter().map(|r| (r.partition, r.key, r.header)).collect();
    let expected: Vec<_> = (0..5).map(|p| (p, None, Some(&b"7,3"[..]))).collect();
    assert_eq!(truncates, expected);
    assert!(records[2..].iter().all(|r| r.value == records[2].value));
}

/// What JsonConverter would object to, or read as something else (a text as the number 0): a payload that is not of its schema.
/// Key fields that are null are let pass, since these batches have such keys, which no table has; so are a float's texts.
fn check_schema(schema: &serde_json::Value, value: &serde_json::Value) {
    if value.is_null() {
        return;
    }
    let kind = schema["type"].as_str().unwrap();
    match kind {
        "struct" => {
            for field in schema["fields"].as_array().unwrap() {
                check_schema(field, &value[field["field"].as_str().unwrap()]);
            }
        }
        "array" => value.as_array().unwrap().iter().for_each(|element| check_schema(&schema["items"], element)),
        "string" => assert!(value.is_string(), "{value}"),
        "bytes" => {
            let mut out = Vec::new();
            super::text::parse_binary(value.as_str().unwrap().as_bytes(), &mut out).unwrap();
        }
        "boolean" => assert!(value.is_boolean(), "{value}"),
        "float" | "double" => {
            assert!(value.is_number() || matches!(value.as_str(), Some("NaN" | "Infinity" | "-Infinity")), "{value}");
        }
        "int32" | "int64" => assert!(value.is_i64() || value.is_u64(), "{value}"),
        other => panic!("{other}"),
    }
}

proptest! {
    #[test]
    fn any_batch_comes_back_equal(batch in any_batch(), from in 0usize..3) {
        // a slice too: offsets into arrays are where writers go wrong
        let batch = batch.slice(from.min(batch.num_rows()), batch.num_rows().saturating_sub(from));
        for (inline, block) in [(false, encoded(&batch, 1)), (true, encoded_inline(&batch, 1))] {
            let mut decoder = decoder(batch.table());
            for r in block.iter() {
                let value: serde_json::Value = serde_json::from_slice(r.value.unwrap()).unwrap();
                let envelope = if inline { &value["payload"] } else { &value };
                prop_assert_eq!(envelope["op"].as_str().unwrap().len(), 1);
                if inline {
                    check_schema(&value["schema"], envelope);
                    if let Some(key) = r.key {
                        let key: serde_json::Value = serde_json::from_slice(key).unwrap();
                        check_schema(&key["schema"], &key["payload"]);
                    }
                }
                decoder.push(&record(&r)).unwrap();
            }
            let mut decoded = decoder.flush().unwrap();
            if batch.num_rows() == 0 {
                prop_assert!(decoded.is_empty());
            } else {
                prop_assert_eq!(decoded.len(), 1);
                let decoded = decoded.remove(0);
                prop_assert_eq!(decoded.record_batch(), batch.record_batch());
                prop_assert_eq!(decoded.table(), batch.table());
            }
        }
    }

    #[test]
    fn corrupted_bytes_are_an_error_at_most(
        batch in any_batch(),
        flips in proptest::collection::vec((0usize..3, any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
        inline in any::<bool>(),
    ) {
        let block = if inline { encoded_inline(&batch, 1) } else { encoded(&batch, 1) };
        let mut damaged = decoder(batch.table());
        let mut taken = 0;
        for r in block.iter() {
            let mut parts = [r.key, r.value, r.header].map(|part| part.map(<[u8]>::to_vec));
            for (part, at, byte) in &flips {
                if let Some(bytes) = &mut parts[*part] && !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
            }
            if let (Some(cut), Some(value)) = (cut, &mut parts[1]) {
                value.truncate(cut.index(value.len()));
            }
            let [key, value, header] = &parts;
            let bad = RecordRef {
                key: key.as_deref(), value: value.as_deref(), header: header.as_deref(), ..record(&r)
            };
            taken += usize::from(damaged.push(&bad).is_ok());
            damaged.push(&record(&r)).unwrap();
            taken += 1;
            prop_assert_eq!(damaged.rows(), taken);
        }
        let rows: usize = damaged.flush().unwrap().iter().map(ChangeBatch::num_rows).sum();
        prop_assert_eq!(rows, taken);
    }

    #[test]
    fn a_key_stays_in_its_partition(batch in any_batch(), partitions in 1i32..9) {
        let block = encoded(&batch, partitions);
        let inline: Vec<_> = encoded_inline(&batch, partitions).iter().map(|r| r.partition).collect();
        prop_assert_eq!(block.iter().map(|r| r.partition).collect::<Vec<_>>(), inline);
        for r in block.iter() {
            prop_assert!((0..partitions).contains(&r.partition));
            if let Some(key) = r.key {
                prop_assert_eq!(r.partition, crate::partition::partition(key, partitions));
            }
        }
    }
}
