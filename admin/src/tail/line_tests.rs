//! Lines of `tail` for changes of every kind: batches made here -> text and JSON, compared letter by letter.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray, new_null_array};
use arrow::datatypes::{DataType, Int32Type};
use lakeward_event::batch::MetaRow;
use lakeward_event::{ChangeMeta, Column, TableId};

use super::*;

fn schema() -> Arc<TableSchema> {
    let column = |id, name: &str, ty| Column { id, name: name.into(), ty, source_type: "x".into(), nullable: true };
    Arc::new(TableSchema {
        table: TableId::new("users", "public", "orders"),
        kind: TableKind::Relational,
        version: 1,
        columns: vec![
            column(1, "id", LogicalType::Long),
            column(2, "note", LogicalType::String),
            column(3, "doc", LogicalType::Json),
            column(4, "tags", LogicalType::List(Box::new(LogicalType::Int))),
        ],
        key: vec![0],
    })
}

fn meta(op: Op, sequence: u64, unchanged: Option<&'static [u8]>) -> MetaRow<'static> {
    let commit_ts = Some(1_704_067_200_000_000);
    MetaRow { op, sequence, position: 0x16_B374_D848, tx: Some(9), commit_ts, unchanged, patch: None }
}

fn batch() -> ChangeBatch {
    let schema = schema();
    let mut of = ChangeMeta::default();
    of.push(meta(Op::Create, 1, None));
    of.misfit(b'a', 1, "Na\"N");
    of.push(meta(Op::Update, 2, Some(&[0b0100])));
    of.push(meta(Op::Delete, 3, None));
    of.push(meta(Op::Truncate, 4, None));
    let after: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(7), Some(8), None, None])),
        Arc::new(StringArray::from(vec![Some("a \"b\"\nc"), None, None, None])),
        Arc::new(StringArray::from(vec![Some("{\"x\":\n 12345678901234567890.10}"), None, None, None])),
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None]), None, None, None])),
    ];
    let after: Vec<ArrayRef> = after
        .into_iter()
        .zip(schema.arrow_fields().iter())
        .map(|(array, field)| arrow::compute::cast(&array, field.data_type()).unwrap())
        .collect();
    let valid = |rows: [bool; 4]| Some(arrow::buffer::NullBuffer::from(rows.to_vec()));
    let mut before: Vec<ArrayRef> =
        schema.arrow_fields().iter().map(|field| new_null_array(field.data_type(), 4)).collect();
    before[0] = Arc::new(Int64Array::from(vec![None, Some(7), Some(8), None]));
    before[1] = Arc::new(StringArray::from(vec![None, None, Some("old"), None]));
    let fields = schema.arrow_fields();
    let after = StructArray::try_new(fields.clone(), after, valid([true, true, false, false])).unwrap();
    let before = StructArray::try_new(fields, before, valid([false, true, true, false])).unwrap();
    assert_eq!(
        after.column(3).data_type(),
        &DataType::List(Arc::new(arrow::datatypes::Field::new("element", DataType::Int32, true)))
    );
    ChangeBatch::try_new(schema, of.finish().unwrap(), after, before).unwrap()
}

const PLACE: Place<'static> = Place { topic: "users.public.orders", partition: 2, offset: 1201 };

fn lines(print: impl Fn(&ChangeBatch, usize, &Place<'_>, &mut Vec<u8>) -> Result<()>) -> Vec<String> {
    let batch = batch();
    let line = |row| {
        let mut out = Vec::new();
        print(&batch, row, &PLACE, &mut out).unwrap();
        let line = String::from_utf8(out).unwrap();
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "one line: {line}");
        line.trim_end().to_owned()
    };
    (0..4).map(line).collect()
}

#[test]
fn a_change_is_one_json_object() {
    let end = ",\"topic\":\"users.public.orders\",\"partition\":2,\"offset\":1201}";
    let middle = |sequence| {
        format!(
            ",\"position\":\"16/B374D848\",\"sequence\":{sequence},\"tx\":9,\"commit_time\":\"2024-01-01 00:00:00Z\"{end}"
        )
    };
    let expected = [
        r#"{"op":"c","key":{"id":7},"before":null,"after":{"id":7,"note":"a \"b\"\nc","doc":{"x":  12345678901234567890.10},"tags":[1,null]}"#,
        r#"{"op":"u","key":{"id":8},"before":{"id":7},"after":{"id":8,"note":null,"tags":null},"unchanged":["doc"],"misfits":{"before":{},"after":{"note":"Na\"N"}}"#,
        r#"{"op":"d","key":{"id":8},"before":{"id":8,"note":"old"},"after":null"#,
        r#"{"op":"t","key":null,"before":null,"after":null"#,
    ];
    let lines = lines(json);
    for (n, (line, expected)) in lines.iter().zip(expected).enumerate() {
        assert_eq!(*line, format!("{expected}{}", middle(n + 1)));
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn a_change_is_a_line_that_people_can_read() {
    assert_eq!(
        lines(text),
        [
            r#"2024-01-01 00:00:00Z        insert   id=7 note="a \"b\"\nc" doc={"x":  12345678901234567890.10} tags=[1,null]  [16/B374D848 2@1201]"#,
            r#"2024-01-01 00:00:00Z        update   id=8 tags=null note=(does not fit: Na"N) doc=(unchanged) (was id=7)  [16/B374D848 2@1201]"#,
            r#"2024-01-01 00:00:00Z        delete   id=8 (was note="old")  [16/B374D848 2@1201]"#,
            "2024-01-01 00:00:00Z        truncate  [16/B374D848 2@1201]",
        ]
    );
}
