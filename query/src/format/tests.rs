//! Each format, to the letter.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{BooleanArray, Int64Array, StringArray};
use arrow::datatypes::{Field, Schema};

use super::*;

fn written(format: Format, batches: usize) -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("ok", DataType::Boolean, true),
    ]));
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(Int64Array::from(vec![1, 20])),
            Arc::new(StringArray::from(vec![Some("a,\"b\"\nc"), None])),
            Arc::new(BooleanArray::from(vec![Some(true), None])),
        ],
    )
    .unwrap();
    let mut out = Vec::new();
    let mut writer = Writer::new(format, &schema, &mut out).unwrap();
    for _ in 0..batches {
        writer.batch(&batch).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), 2 * batches as u64);
    out
}

fn text(format: Format, batches: usize) -> String {
    String::from_utf8(written(format, batches)).unwrap()
}

#[test]
fn csv() {
    assert_eq!(text(Format::Csv, 1), "id,name,ok\n1,\"a,\"\"b\"\"\nc\",true\n20,,\n");
}

#[test]
fn json() {
    let one = "{\"id\":1,\"name\":\"a,\\\"b\\\"\\nc\",\"ok\":true}";
    let two = "{\"id\":20,\"name\":null,\"ok\":null}";
    assert_eq!(text(Format::Ndjson, 1), format!("{one}\n{two}\n"));
    assert_eq!(text(Format::Json, 2), format!("[\n{one},\n{two},\n{one},\n{two}\n]\n"));
    assert_eq!(text(Format::Json, 0), "[]\n");
}

#[test]
fn table() {
    let expected =
        [" id | name  | ok", "----+-------+----", "  1 | a,\"b\" | t", "    | c     |", " 20 |       |", "(2 rows)"];
    assert_eq!(text(Format::Table, 1).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn arrow() {
    let bytes = written(Format::Arrow, 2);
    let reader = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None).unwrap();
    assert_eq!(reader.map(|b| b.unwrap().num_rows()).sum::<usize>(), 4);
}
