//! What another implementation of Avro reads of our bytes.

use std::sync::Arc;

use apache_avro::types::Value;
use arrow::array::{Array, ArrayRef, AsArray, StringArray, StructArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use md5::Digest;
use proptest::prelude::*;

use super::{Registry, decoder, encoded};
use crate::batch::{ChangeBatch, MetaRow, Op};
use crate::codec::Decoder;
use crate::codec::json::UNAVAILABLE;
use crate::codec::registry::SchemaRegistry;
use crate::codec::samples::{any_batch, meta, record, row, rows, schema};
use crate::schema::{TableId, TableKind, TableSchema};
use crate::types::LogicalType;

fn fields(value: Value) -> Vec<(String, Value)> {
    match value {
        Value::Record(fields) => fields,
        other => panic!("{other:?} is no record"),
    }
}

/// The value of a union with null.
fn present(value: Value) -> Option<Value> {
    match value {
        Value::Union(0, null) if *null == Value::Null => None,
        Value::Union(1, value) => Some(*value),
        other => panic!("{other:?} is no union with null"),
    }
}

/// The other implementation's value of a cell, as ours should be written.
fn expected(array: &dyn Array, ty: &LogicalType, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Union(0, Box::new(Value::Null));
    }
    let long = || array.as_primitive::<TimestampMicrosecondType>().value(row);
    let value = match ty {
        LogicalType::Bool => Value::Boolean(array.as_boolean().value(row)),
        LogicalType::Int => Value::Int(array.as_primitive::<Int32Type>().value(row)),
        LogicalType::Long => Value::Long(array.as_primitive::<Int64Type>().value(row)),
        LogicalType::Float => Value::Float(array.as_primitive::<Float32Type>().value(row)),
        LogicalType::Double => Value::Double(array.as_primitive::<Float64Type>().value(row)),
        LogicalType::Decimal { .. } => {
            let bytes = array.as_primitive::<Decimal128Type>().value(row).to_be_bytes();
            Value::Decimal(apache_avro::Decimal::from(bytes.to_vec()))
        }
        LogicalType::String | LogicalType::Json => Value::String(array.as_string::<i32>().value(row).into()),
        LogicalType::Uuid => Value::Uuid(uuid::Uuid::from_slice(array.as_fixed_size_binary().value(row)).unwrap()),
        LogicalType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).into()),
        LogicalType::Date => Value::Date(array.as_primitive::<Date32Type>().value(row)),
        LogicalType::Timestamp => Value::LocalTimestampMicros(long()),
        LogicalType::TimestampTz => Value::TimestampMicros(long()),
        LogicalType::List(element) => {
            let list = array.as_list::<i32>().value(row);
            Value::Array((0..list.len()).map(|i| expected(list.as_ref(), element, i)).collect())
        }
    };
    Value::Union(1, Box::new(value))
}

/// Values with NaN are equal where they are the same in text.
fn same(left: &Value, right: &Value) -> bool {
    left == right || format!("{left:?}") == format!("{right:?}")
}

/// A consumer written for Debezium finds its text where a value was left out; we go by the header.
#[test]
fn what_is_left_out_has_debeziums_text() {
    let list = |ty| LogicalType::List(Box::new(ty));
    let types = vec![
        LogicalType::String,
        LogicalType::Binary,
        list(LogicalType::Json),
        LogicalType::Long,
        list(LogicalType::Long),
        list(LogicalType::Double),
        list(LogicalType::Uuid),
        list(LogicalType::Bool),
        LogicalType::Uuid,
        LogicalType::Decimal { precision: 5, scale: 2 },
    ];
    let schema = schema(types, vec![]);
    let columns = schema.columns.iter().map(|column| arrow::array::new_null_array(&column.ty.arrow(), 1)).collect();
    let after = rows(&schema, columns, vec![true]);
    let before = StructArray::new_null(schema.arrow_fields(), 1);
    let meta = meta(&[MetaRow { unchanged: Some(&[0b1111_1111, 0b11]), ..row(Op::Update, 1) }]).finish().unwrap();
    let batch = ChangeBatch::try_new(schema.clone(), meta, after, before).unwrap();
    let registry = Arc::<Registry>::default();
    let block = encoded(&batch, 1, &registry);
    let r = block.iter().next().unwrap();
    let of = apache_avro::Schema::parse_str(&registry.text("users.public.orders-value")).unwrap();
    let envelope = fields(apache_avro::from_avro_datum(&of, &mut &r.value.unwrap()[5..], None).unwrap());
    let values: Vec<_> = fields(present(envelope[1].1.clone()).unwrap()).into_iter().map(|(_, v)| present(v)).collect();
    let array =
        |items: Vec<Value>| Some(Value::Array(items.into_iter().map(|item| Value::Union(1, Box::new(item))).collect()));
    // As Java makes one of a name.
    let mut uuid = md5::Md5::digest(UNAVAILABLE);
    (uuid[6], uuid[8]) = (uuid[6] & 0x0F | 0x30, uuid[8] & 0x3F | 0x80);
    assert_eq!(
        values,
        [
            Some(Value::String(UNAVAILABLE.into())),
            Some(Value::Bytes(UNAVAILABLE.into())),
            array(vec![Value::String(UNAVAILABLE.into())]),
            None,
            array(UNAVAILABLE.bytes().map(|byte| Value::Long(byte.into())).collect()),
            array(UNAVAILABLE.bytes().map(|byte| Value::Double(byte.into())).collect()),
            array(vec![Value::Uuid(uuid::Uuid::from_slice(&uuid).unwrap())]),
            None,
            None,
            None,
        ]
    );
    let mut decoder = decoder(&[&schema], &registry);
    decoder.push(&record(&r)).unwrap();
    assert_eq!(decoder.flush().unwrap()[0].record_batch(), batch.record_batch());
}

/// A patch in Debezium's form, with every part; one that is something else is not in it. Ours stands beside it.
#[test]
fn a_patch_is_debeziums_record() {
    let schema = Arc::new(TableSchema::documents(TableId::new("inventory", "shop", "items")));
    let patches = [
        r#"{"updatedFields":{"a.b":{"$numberInt":"1"}},"removedFields":["x","quo\"te"],"truncatedArrays":[{"field":"l\u00fc","newSize":{"$numberInt":"2"}},{"newSize":3,"field":"m"}],"disambiguatedPaths":null}"#,
        r#"{"updatedFields":null,"removedFields":[],"truncatedArrays":[]}"#,
        r#"{"truncatedArrays":[{"field":"l"}]}"#,
        "[]",
    ];
    let text = |text: &str| Arc::new(StringArray::from(vec![text; 4])) as ArrayRef;
    let after = rows(
        &schema,
        vec![text("65a1b2c3d4e5f60718293a4b"), arrow::array::new_null_array(&DataType::Utf8, 4)],
        vec![true; 4],
    );
    let before = StructArray::new_null(schema.arrow_fields(), 4);
    let all = patches.map(|patch| MetaRow { patch: Some(patch), ..row(Op::Update, 1) });
    let batch = ChangeBatch::try_new(schema.clone(), meta(&all).finish().unwrap(), after, before).unwrap();
    let registry = Arc::<Registry>::default();
    let block = encoded(&batch, 1, &registry);
    let [value, key] = ["value", "key"]
        .map(|of| apache_avro::Schema::parse_str(&registry.text(&format!("inventory.shop.items-{of}"))).unwrap());
    let text = |text: &str| Value::String(text.into());
    let some = |value: Value| Value::Union(1, Box::new(value));
    let null = || Value::Union(0, Box::new(Value::Null));
    let truncated =
        |field: &str, size| Value::Record(vec![("field".into(), text(field)), ("size".into(), Value::Int(size))]);
    let record_of = |removed: Value, updated: Value, truncated: Value| {
        some(Value::Record(vec![
            ("removedFields".into(), removed),
            ("updatedFields".into(), updated),
            ("truncatedArrays".into(), truncated),
        ]))
    };
    let expected = [
        record_of(
            some(Value::Array(vec![text("x"), text("quo\"te")])),
            some(text(r#"{"a.b":{"$numberInt":"1"}}"#)),
            some(Value::Array(vec![truncated("lü", 2), truncated("m", 3)])),
        ),
        record_of(null(), null(), null()),
        null(),
        null(),
    ];
    let mut decoder = decoder(&[&schema], &registry);
    for ((r, expected), patch) in block.iter().zip(expected).zip(patches) {
        let envelope = fields(apache_avro::from_avro_datum(&value, &mut &r.value.unwrap()[5..], None).unwrap());
        assert_eq!(envelope[2], ("updateDescription".into(), expected));
        assert_eq!(envelope[3], ("patch".into(), some(text(patch))));
        let key = fields(apache_avro::from_avro_datum(&key, &mut &r.key.unwrap()[5..], None).unwrap());
        assert_eq!(key, [("id".into(), some(text(r#"{"$oid":"65a1b2c3d4e5f60718293a4b"}"#)))]);
        decoder.push(&record(&r)).unwrap();
    }
    assert_eq!(decoder.flush().unwrap()[0].record_batch(), batch.record_batch());
}

proptest! {
    #[test]
    fn another_implementation_reads_the_same(batch in any_batch()) {
        let registry = Arc::<Registry>::default();
        let block = encoded(&batch, 1, &registry);
        let schema_of = |part: &[u8]| {
            let id = u32::from_be_bytes(part[1..5].try_into().unwrap());
            let schema = registry.schema(id).unwrap().unwrap();
            apache_avro::Schema::parse_str(&schema.text).unwrap()
        };
        let table = batch.table();
        let relational = table.kind == TableKind::Relational;
        for (row, r) in block.iter().enumerate() {
            let value = r.value.unwrap();
            let mut rest = &value[5..];
            let envelope = fields(apache_avro::from_avro_datum(&schema_of(value), &mut rest, None).unwrap());
            prop_assert!(rest.is_empty());
            let get = |name: &str| envelope.iter().find(|(of, _)| of == name).unwrap().1.clone();
            prop_assert_eq!(get("op"), Value::String(char::from(batch.ops()[row]).into()));
            let unchanged = batch.unchanged().is_valid(row).then(|| batch.unchanged().value(row));
            for (name, side, unchanged) in [("before", batch.before(), None), ("after", batch.after(), unchanged)] {
                let written = present(get(name));
                if !relational {
                    let document = if side.is_null(row) { None } else { present(expected(side.column(1), &LogicalType::Json, row)) };
                    prop_assert_eq!(written, document);
                    continue;
                }
                prop_assert_eq!(written.is_some(), side.is_valid(row));
                for (i, (_, written)) in written.map(fields).into_iter().flatten().enumerate() {
                    if unchanged.is_none_or(|bits| bits[i / 8] >> (i % 8) & 1 == 0) {
                        let expected = expected(side.column(i), &table.columns[i].ty, row);
                        prop_assert!(same(&written, &expected), "{:?} for {:?}", written, expected);
                    }
                }
            }
            if let Some(key) = r.key {
                let mut rest = &key[5..];
                let key = fields(apache_avro::from_avro_datum(&schema_of(key), &mut rest, None).unwrap());
                prop_assert!(rest.is_empty());
                prop_assert_eq!(key.len(), table.key.len());
                if relational && batch.ops()[row] == b'd' {
                    for ((_, written), column) in key.iter().zip(&table.key) {
                        let expected = expected(batch.before().column(*column), &table.columns[*column].ty, row);
                        prop_assert!(same(written, &expected), "{:?} for {:?}", written, expected);
                    }
                }
            }
        }
    }
}
