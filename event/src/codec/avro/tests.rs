//! The codec as a whole: any batch there and back, schemas of others, damage, and a second opinion.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use apache_avro::types::Value;
use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array, StringArray,
    StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use proptest::prelude::*;

use super::wire::write_long;
use super::{AvroDecoder, AvroEncoder};
use crate::batch::{ChangeBatch, ChangeMeta, MetaRow, Op};
use crate::codec::any::AnyDecoder;
use crate::codec::arrow::ArrowEncoder;
use crate::codec::json::tests::{any_batch, meta, record, row, rows, schema};
use crate::codec::json::{JsonEncoder, UNAVAILABLE};
use crate::codec::registry::{RegisteredSchema, SchemaRegistry};
use crate::codec::{Decoder, Encoder, RecordBlock, RecordRef};
use crate::error::{Error, Result};
use crate::schema::{Column, TableId, TableSchema};
use crate::types::LogicalType;

/// A registry in memory. Ids are places in the list, from 1 on.
#[derive(Default)]
struct Registry {
    known: Mutex<Vec<(String, Arc<RegisteredSchema>)>>,
    asked: AtomicUsize,
    is_away: AtomicBool,
}

impl Registry {
    /// Registers a schema that refers to others.
    fn add(&self, text: &str, references: &[&str]) -> u32 {
        let references = references.iter().map(|text| (*text).to_owned()).collect();
        let mut known = self.known.lock().unwrap();
        known.push((String::new(), Arc::new(RegisteredSchema { text: text.into(), references })));
        known.len() as u32
    }

    fn answer(&self) -> Result<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.is_away.load(Ordering::Relaxed) {
            true => Err(Error::Registry("the registry is away".into())),
            false => Ok(()),
        }
    }

    fn text(&self, subject: &str) -> String {
        let known = self.known.lock().unwrap();
        known.iter().find(|(of, _)| of == subject).unwrap().1.text.clone()
    }
}

impl SchemaRegistry for Registry {
    fn register(&self, subject: &str, schema: &str) -> Result<u32> {
        self.answer()?;
        let mut known = self.known.lock().unwrap();
        let found = known.iter().position(|(of, known)| of == subject && known.text == schema);
        if let Some(found) = found {
            return Ok(found as u32 + 1);
        }
        let schema = RegisteredSchema { text: schema.into(), references: Vec::new() };
        known.push((subject.into(), Arc::new(schema)));
        Ok(known.len() as u32)
    }

    fn schema(&self, id: u32) -> Result<Option<Arc<RegisteredSchema>>> {
        self.answer()?;
        let known = self.known.lock().unwrap();
        Ok((id as usize).checked_sub(1).and_then(|at| known.get(at)).map(|(_, schema)| schema.clone()))
    }
}

fn encoder(registry: &Arc<Registry>) -> AvroEncoder {
    AvroEncoder::new(registry.clone()).with_database("shop").with_clock(|| 1_700_000_000_456)
}

fn decoder(schemas: &[&Arc<TableSchema>], registry: &Arc<Registry>) -> AvroDecoder {
    let schemas: Vec<_> = schemas.iter().copied().cloned().collect();
    let find = move |version| schemas.iter().find(|s| s.version == version).cloned();
    AvroDecoder::new(Arc::new(find), registry.clone())
}

fn encoded(batch: &ChangeBatch, partitions: i32, registry: &Arc<Registry>) -> RecordBlock {
    let mut block = RecordBlock::default();
    encoder(registry).encode(batch, partitions, &mut block).unwrap();
    block
}

fn hex(bytes: Option<&[u8]>) -> String {
    bytes.map_or("null".into(), |bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Each subject's schema, laid out; then key, header and value of each record.
fn golden(batch: &ChangeBatch, partitions: i32) -> String {
    let registry = Arc::default();
    let block = encoded(batch, partitions, &registry);
    let mut text = String::new();
    for (subject, schema) in registry.known.lock().unwrap().iter() {
        // A line per field: the order of what stands there is ours, and part of what is shown.
        let laid_out = schema.text.replace("{\"name\"", "\n  {\"name\"");
        text.push_str(&format!("{subject}\n{laid_out}\n\n"));
    }
    for r in block.iter() {
        let header = String::from_utf8(r.header.unwrap().to_vec()).unwrap();
        text.push_str(&format!("{} {} {header}\n{}\n", r.partition, hex(r.key), hex(r.value)));
    }
    text
}

fn one_of_each(schema: &Arc<TableSchema>) -> ChangeBatch {
    let price = |values: Vec<Option<i128>>| {
        Arc::new(Decimal128Array::from(values).with_precision_and_scale(10, 2).unwrap()) as ArrayRef
    };
    let at =
        |values: Vec<Option<i64>>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef;
    let text = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
    let after = rows(
        schema,
        vec![
            Arc::new(Int32Array::from(vec![Some(1), Some(1), Some(2), None, None])),
            price(vec![Some(1230), None, Some(-5), None, None]),
            at(vec![Some(0), None, Some(i64::MAX), None, None]),
            text(vec![Some("a"), None, None, None, None]),
        ],
        vec![true, true, true, false, false],
    );
    let before = rows(
        schema,
        vec![
            Arc::new(Int32Array::from(vec![None, None, Some(1), Some(2), None])),
            price(vec![None; 5]),
            at(vec![None; 5]),
            text(vec![None; 5]),
        ],
        vec![false, false, true, true, false],
    );
    let mut meta = ChangeMeta::default();
    meta.push(row(Op::Read, 10));
    meta.misfit(b'a', 1, "NaN");
    meta.push(MetaRow { unchanged: Some(&[0b1100]), ..row(Op::Update, 11) });
    meta.push(row(Op::Create, 12));
    meta.push(row(Op::Delete, 13));
    meta.push(MetaRow { tx: None, commit_ts: None, ..row(Op::Truncate, 14) });
    ChangeBatch::try_new(schema.clone(), meta.finish().unwrap(), after, before).unwrap()
}

fn four_columns() -> Arc<TableSchema> {
    let decimal = LogicalType::Decimal { precision: 10, scale: 2 };
    schema(vec![LogicalType::Int, decimal, LogicalType::TimestampTz, LogicalType::String], vec![0])
}

#[test]
fn the_bytes_of_a_relational_change() {
    insta::assert_snapshot!(golden(&one_of_each(&four_columns()), 2));
}

#[test]
fn the_bytes_of_a_mongodb_change() {
    let schema = Arc::new(TableSchema::documents(TableId::new("inventory", "shop", "Odd items")));
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
    let batch = ChangeBatch::try_new(schema, meta.unwrap(), after, before).unwrap();
    insta::assert_snapshot!(golden(&batch, 1));
}

#[test]
fn the_schema_of_every_type() {
    let types = [
        LogicalType::Bool,
        LogicalType::Int,
        LogicalType::Long,
        LogicalType::Float,
        LogicalType::Double,
        LogicalType::Decimal { precision: 38, scale: 10 },
        LogicalType::String,
        LogicalType::Json,
        LogicalType::Uuid,
        LogicalType::Binary,
        LogicalType::Date,
        LogicalType::Timestamp,
        LogicalType::TimestampTz,
        LogicalType::List(Box::new(LogicalType::Uuid)),
    ];
    let text = super::schema::value(&schema(types.into(), vec![]));
    apache_avro::Schema::parse_str(&text).unwrap();
    insta::assert_snapshot!(text.replace("{\"name\"", "\n  {\"name\""));
}

/// Only what changes is asked for, and only once.
#[test]
fn schemas_are_registered_once_per_version() {
    let (registry, schema) = (Arc::<Registry>::default(), four_columns());
    let mut encoder = encoder(&registry);
    let mut block = RecordBlock::default();
    let batch = one_of_each(&schema);
    encoder.encode(&batch, 1, &mut block).unwrap();
    let same = Arc::new((*schema).clone());
    encoder.encode(&one_of_each(&same), 1, &mut block).unwrap();
    assert_eq!(registry.asked.load(Ordering::Relaxed), 2);
    let next = Arc::new(TableSchema { version: 8, key: vec![], ..(*schema).clone() });
    encoder.encode(&one_of_each(&next), 1, &mut block).unwrap();
    assert_eq!(registry.asked.load(Ordering::Relaxed), 3);
    let subjects: Vec<_> = registry.known.lock().unwrap().iter().map(|(subject, _)| subject.clone()).collect();
    assert_eq!(subjects, ["users.public.orders-key", "users.public.orders-value"]);
    // a reader asks once, too
    let mut decoder = decoder(&[&schema, &next], &registry);
    block.iter().for_each(|r| decoder.push(&record(&r)).unwrap());
    assert_eq!(registry.asked.load(Ordering::Relaxed), 5);
}

/// A registry that is away is no record's fault, and leaves nothing behind.
#[test]
fn a_registry_that_is_away() {
    let (registry, schema) = (Arc::<Registry>::default(), four_columns());
    let batch = one_of_each(&schema);
    let mut writer = encoder(&registry);
    let mut block = RecordBlock::default();
    registry.is_away.store(true, Ordering::Relaxed);
    assert!(matches!(writer.encode(&batch, 1, &mut block), Err(Error::Registry(_))));
    assert!(block.is_empty() && block.bytes() == 0);
    registry.is_away.store(false, Ordering::Relaxed);
    writer.encode(&batch, 1, &mut block).unwrap();

    let mut reader = decoder(&[&schema], &registry);
    let records: Vec<_> = block.iter().collect();
    for r in &records {
        registry.is_away.store(true, Ordering::Relaxed);
        let rows = reader.rows();
        let answer = reader.push(&record(r));
        if rows == 0 {
            assert!(matches!(&answer, Err(error @ Error::Registry(_)) if error.to_string() == "the registry is away"));
            assert_eq!(reader.rows(), 0);
            registry.is_away.store(false, Ordering::Relaxed);
            reader.push(&record(r)).unwrap();
        }
    }
    registry.is_away.store(false, Ordering::Relaxed);
    assert_eq!(reader.flush().unwrap()[0].record_batch(), batch.record_batch());
    assert!(reader.flush().unwrap().is_empty());

    // the key's schema of a collection is asked for as well
    let documents = Arc::new(TableSchema::documents(TableId::new("inventory", "shop", "items")));
    let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let after = rows(&documents, vec![text("1"), text("{}")], vec![true]);
    let before = StructArray::new_null(documents.arrow_fields(), 1);
    let meta = meta(&[row(Op::Create, 1)]).finish().unwrap();
    let batch = ChangeBatch::try_new(documents.clone(), meta, after, before).unwrap();
    let block = encoded(&batch, 1, &registry);
    let r = block.iter().next().unwrap();
    let mut reader = decoder(&[&documents], &registry);
    // known: the value's schema, by a record without a key, which is refused for want of it
    reader.push(&RecordRef { key: None, ..record(&r) }).unwrap_err();
    registry.is_away.store(true, Ordering::Relaxed);
    assert!(matches!(reader.push(&record(&r)), Err(Error::Registry(_))));
    registry.is_away.store(false, Ordering::Relaxed);
    reader.push(&record(&r)).unwrap();
    assert_eq!(reader.flush().unwrap()[0].record_batch(), batch.record_batch());
}

#[test]
fn a_bad_record_leaves_the_rest_alone() {
    let (registry, schema) = (Arc::<Registry>::default(), four_columns());
    let batch = one_of_each(&schema);
    let block = encoded(&batch, 1, &registry);
    let records: Vec<_> = block.iter().collect();
    let good = record(&records[0]);
    let value = good.value.unwrap();
    let mut decoder = decoder(&[&schema], &registry);
    decoder.push(&good).unwrap();
    let with = |at: usize, byte: u8| {
        let mut value = value.to_vec();
        value[at] = byte;
        value
    };
    let text = br#"{"before":null}"#;
    // prefix, before (null), after (a row), id (present), 1, price (present), …
    for (broken, reason) in [
        (text.to_vec(), "does not start with a schema id"),
        (value[..4].to_vec(), "does not start with a schema id"),
        (with(4, 99), "schema 99: the registry does not have it"),
        (with(4, 1), "schema 1: it is no envelope: it has no field before"),
        (with(5, 4), "branch 2 of a union of 2"),
        (with(6, 1), "branch -1 of a union of 2"),
        ([&with(8, 0xff)[..9], &[0xff, 0xff, 0xff, 0xff]].concat(), "number"),
        (with(10, 10), "not a value of type Decimal"),
        (with(10, 0xc0), "bytes where"),
        (value[..value.len() - 1].to_vec(), "a number without an end"),
        ([value, b"x"].concat(), "bytes after the end"),
    ] {
        let error = decoder.push(&RecordRef { value: Some(&broken), ..good }).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(reason), "{text}: {reason}");
        assert!(text.contains("users.public.orders partition 0 offset 3"), "{text}");
    }
    for header in [None, Some("7,1"), Some("avro"), Some("avro,8,1"), Some("avro,x,1"), Some("avrox,7,1")] {
        assert!(decoder.push(&RecordRef { header: header.map(str::as_bytes), ..good }).is_err(), "{header:?}");
    }
    // a tombstone says nothing
    decoder.push(&RecordRef { value: None, header: None, ..good }).unwrap();
    assert_eq!(decoder.rows(), 1);
    records[1..].iter().for_each(|r| decoder.push(&record(r)).unwrap());
    let batches = decoder.flush().unwrap();
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].record_batch(), batch.record_batch());
    assert_eq!(decoder.rows(), 0);
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
    ];
    let schema = schema(types, vec![]);
    let columns = schema.columns.iter().map(|column| arrow::array::new_null_array(&column.ty.arrow(), 1)).collect();
    let after = rows(&schema, columns, vec![true]);
    let before = StructArray::new_null(schema.arrow_fields(), 1);
    let meta = meta(&[MetaRow { unchanged: Some(&[0b11111]), ..row(Op::Update, 1) }]).finish().unwrap();
    let batch = ChangeBatch::try_new(schema.clone(), meta, after, before).unwrap();
    let registry = Arc::<Registry>::default();
    let block = encoded(&batch, 1, &registry);
    let r = block.iter().next().unwrap();
    let of = apache_avro::Schema::parse_str(&registry.text("users.public.orders-value")).unwrap();
    let envelope = fields(apache_avro::from_avro_datum(&of, &mut &r.value.unwrap()[5..], None).unwrap());
    let values: Vec<_> = fields(present(envelope[1].1.clone()).unwrap()).into_iter().map(|(_, v)| present(v)).collect();
    assert_eq!(
        values,
        [
            Some(Value::String(UNAVAILABLE.into())),
            Some(Value::Bytes(UNAVAILABLE.into())),
            Some(Value::Array(vec![Value::Union(1, Box::new(Value::String(UNAVAILABLE.into())))])),
            None,
            None,
        ]
    );
    let mut decoder = decoder(&[&schema], &registry);
    decoder.push(&record(&r)).unwrap();
    assert_eq!(decoder.flush().unwrap()[0].record_batch(), batch.record_batch());
}

/// Column names that Avro does not take, and that would be the same.
#[test]
fn odd_names_come_back() {
    let mut table = (*schema(vec![LogicalType::Int; 4], vec![0])).clone();
    table.table = TableId::new("users", "public", "odd-table");
    for (column, name) in table.columns.iter_mut().zip(["a b", "a-b", "a_b", "ä"]) {
        column.name = name.into();
    }
    let table = Arc::new(table);
    let columns = (0..4).map(|i| Arc::new(Int32Array::from(vec![i])) as ArrayRef).collect();
    let after = rows(&table, columns, vec![true]);
    let before = StructArray::new_null(table.arrow_fields(), 1);
    let meta = meta(&[row(Op::Create, 1)]).finish().unwrap();
    let batch = ChangeBatch::try_new(table.clone(), meta, after, before).unwrap();
    let registry = Arc::<Registry>::default();
    let block = encoded(&batch, 1, &registry);
    let text = registry.text("users.public.odd-table-value");
    apache_avro::Schema::parse_str(&text).unwrap();
    for part in [
        r#""namespace":"users.public.odd_table""#,
        r#""lakeward.topic":"users.public.odd-table""#,
        r#""connect.name":"users.public.odd_table.Envelope""#,
        r#""lakeward.column":"a b""#,
        r#""lakeward.column":"ä""#,
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let r = block.iter().next().unwrap();
    // A column that goes by the name that another had to give up: the property decides, not the field's name.
    let mut renamed = (*table).clone();
    renamed.version = 8;
    renamed.columns.swap(0, 2);
    let renamed = Arc::new(renamed);
    let mut decoder = decoder(&[&table, &renamed], &registry);
    decoder.push(&record(&r)).unwrap();
    decoder.push(&RecordRef { header: Some(b"avro,8,1"), ..record(&r) }).unwrap();
    let batches = decoder.flush().unwrap();
    assert_eq!(batches[0].record_batch(), batch.record_batch());
    let values: Vec<_> = batches[1].after().columns().iter().map(|c| c.as_primitive::<Int32Type>().value(0)).collect();
    assert_eq!(values, [2, 1, 0, 3]);
}

fn columns(of: &[(&str, LogicalType)]) -> Vec<Column> {
    let column = |(i, (name, ty)): (usize, &(&str, LogicalType))| Column {
        id: i as i32 + 1,
        name: (*name).into(),
        ty: ty.clone(),
        source_type: String::new(),
        nullable: true,
    };
    of.iter().enumerate().map(column).collect()
}

/// The same records under the version before and the one after.
#[test]
fn versions_read_each_other() {
    let base = schema(vec![], vec![]);
    let version = |version, of: &[(&str, LogicalType)]| {
        Arc::new(TableSchema { version, columns: columns(of), ..(*base).clone() })
    };
    use LogicalType::{Double, Float, Int, Long, String};
    let old = version(1, &[("id", Int), ("name", String), ("ratio", Float)]);
    let new = version(2, &[("ratio", Double), ("added", String), ("id", Long)]);
    let other = version(3, &[("id", String)]);
    let registry = Arc::<Registry>::default();
    let of = |schema: &Arc<TableSchema>, columns: Vec<ArrayRef>| {
        let meta = meta(&[row(Op::Create, 1)]).finish().unwrap();
        let before = StructArray::new_null(schema.arrow_fields(), 1);
        let after = rows(schema, columns, vec![true]);
        encoded(&ChangeBatch::try_new(schema.clone(), meta, after, before).unwrap(), 1, &registry)
    };
    let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let by_old =
        of(&old, vec![Arc::new(Int32Array::from(vec![-7])), text("n"), Arc::new(Float32Array::from(vec![0.5]))]);
    let by_new =
        of(&new, vec![Arc::new(Float64Array::from(vec![0.1])), text("a"), Arc::new(Int64Array::from(vec![9]))]);
    let mut decoder = decoder(&[&old, &new, &other], &registry);
    let mut read = |block: &RecordBlock, header: &str| {
        let r = block.iter().next().unwrap();
        decoder.push(&RecordRef { header: Some(header.as_bytes()), ..record(&r) })?;
        Ok::<_, Error>(decoder.flush()?.remove(0).after().clone())
    };
    let expected = rows(
        &new,
        vec![
            Arc::new(Float64Array::from(vec![0.5])),
            Arc::new(StringArray::new_null(1)),
            Arc::new(Int64Array::from(vec![-7])),
        ],
        vec![true],
    );
    assert_eq!(read(&by_old, "avro,2,1").unwrap(), expected);
    // narrower columns do not take wider types, whatever the value
    let error = read(&by_new, "avro,1,1").unwrap_err().to_string();
    assert!(error.contains("field ratio is not of type Float, as version 1 has it"), "{error}");
    assert!(read(&by_old, "avro,3,1").unwrap_err().to_string().contains("field id is not of type String"));
    let narrow = version(4, &[("added", String), ("gone", Int)]);
    let mut decoder = self::decoder(&[&narrow], &registry);
    let r = by_new.iter().next().unwrap();
    decoder.push(&RecordRef { header: Some(b"avro,4,1"), ..record(&r) }).unwrap();
    let expected = rows(&narrow, vec![text("a"), Arc::new(Int32Array::new_null(1))], vec![true]);
    assert_eq!(decoder.flush().unwrap()[0].after(), &expected);
}

/// A record by a schema that we did not write: other orders, unions the other way round or none, fields that we do not
/// know, types defined elsewhere.
#[test]
fn schemas_of_others_are_read_by_name() {
    let row = r#"{"type":"record","name":"shared.Row","fields":[
        {"name":"unknown","type":{"type":"map","values":{"type":"array","items":"shared.Kind"}}},
        {"name":"c2","type":["string","null"]},
        {"name":"c1","type":{"type":"fixed","name":"Uuid","size":16}},
        {"name":"c0","type":["double","null","int"]},
        {"name":"c3","type":{"type":"array","items":"string"}},
        {"name":"c4","type":{"type":"fixed","name":"Money","size":20,"logicalType":"decimal","precision":30,"scale":2}},
        {"name":"nested","type":["null","shared.Row"]}]}"#;
    let kind = r#"{"type":"enum","name":"shared.Kind","symbols":["A","B"]}"#;
    let envelope = r#"{"type":"record","name":"E","namespace":"other","fields":[
        {"name":"op","type":["null","string"]},
        {"name":"source","type":{"type":"record","name":"S","fields":[
            {"name":"more","type":["null",{"type":"record","name":"M","fields":[{"name":"f","type":"double"}]}]},
            {"name":"lsn","type":"int"},{"name":"ts_us","type":["long","null"]}]}},
        {"name":"after","type":["shared.Row","null"]},
        {"name":"before","type":["null","shared.Row"]}]}"#;
    let parsed = apache_avro::Schema::parse_list([kind, row, envelope]).unwrap();
    let text = |text: &str| Value::String(text.into());
    let some = |branch: u32, value: Value| Value::Union(branch, Box::new(value));
    let of = |c0: Value, nested: Value| {
        Value::Record(vec![
            (
                "unknown".into(),
                Value::Map([("k".to_owned(), Value::Array(vec![Value::Enum(1, "B".into()); 3]))].into()),
            ),
            ("c2".into(), some(0, text("ü"))),
            ("c1".into(), Value::Fixed(16, vec![7; 16])),
            ("c0".into(), c0),
            ("c3".into(), Value::Array(vec![text("x"), text("")])),
            ("c4".into(), Value::Decimal(apache_avro::Decimal::from([&[0xff; 18][..], &[0xfb, 0x32]].concat()))),
            ("nested".into(), nested),
        ])
    };
    let nested = some(1, of(some(2, Value::Int(2)), some(0, Value::Null)));
    let envelope_of = |c0: Value| {
        Value::Record(vec![
            ("op".into(), some(1, text("c"))),
            (
                "source".into(),
                Value::Record(vec![
                    ("more".into(), some(1, Value::Record(vec![("f".into(), Value::Double(1.5))]))),
                    ("lsn".into(), Value::Int(77)),
                    ("ts_us".into(), some(0, Value::Long(5))),
                ]),
            ),
            ("after".into(), some(0, of(c0, nested.clone()))),
            ("before".into(), some(0, Value::Null)),
        ])
    };
    let datum =
        |c0: Value| apache_avro::to_avro_datum_schemata(&parsed[2], parsed.iter().collect(), envelope_of(c0)).unwrap();

    let decimal = LogicalType::Decimal { precision: 12, scale: 2 };
    let list = LogicalType::List(Box::new(LogicalType::String));
    let mut table = (*schema(vec![], vec![])).clone();
    table.columns = columns(&[
        ("c0", LogicalType::Long),
        ("c1", LogicalType::Uuid),
        ("c2", LogicalType::String),
        ("c3", list),
        ("c4", decimal),
        ("c5", LogicalType::Bool),
    ]);
    let table = Arc::new(table);
    let registry = Arc::<Registry>::default();
    let id = registry.add(envelope, &[kind, row]);
    let value = |id: u32, c0: Value| [&[0][..], &id.to_be_bytes(), &datum(c0)].concat();
    let one = value(id, some(2, Value::Int(1)));
    let at = RecordRef {
        topic: "t",
        partition: 0,
        offset: 0,
        key: None,
        value: Some(&one),
        header: Some(b"avro,7,18446744073709551615"),
    };
    let mut decoder = decoder(&[&table], &registry);
    decoder.push(&at).unwrap();
    let batch = decoder.flush().unwrap().remove(0);
    assert_eq!((batch.sequences(), batch.positions()), (&[u64::MAX][..], &[77][..]));
    assert_eq!((batch.commit_ts().value(0), batch.ops()[0]), (5, b'c'));
    let after = batch.after();
    assert_eq!(after.column(0).as_primitive::<Int64Type>().value(0), 1);
    assert_eq!(after.column(1).as_fixed_size_binary().value(0), [7; 16]);
    assert_eq!(after.column(2).as_string::<i32>().value(0), "ü");
    assert_eq!(after.column(3).as_list::<i32>().value(0).as_string::<i32>(), &StringArray::from(vec!["x", ""]));
    assert_eq!(after.column(4).as_primitive::<Decimal128Type>().value(0), -1230);
    assert!(after.column(5).is_null(0) && batch.before().is_null(0));
    // a branch that is no whole number, in a column of them
    let error = decoder.push(&RecordRef { value: Some(&value(id, some(0, Value::Double(1.0)))), ..at }).unwrap_err();
    assert!(error.to_string().contains("branch 0 of a union, which is of another type"), "{error}");
    // a schema whose reference is missing
    let id = registry.add(envelope, &[kind]);
    let error = decoder.push(&RecordRef { value: Some(&value(id, some(1, Value::Null))), ..at }).unwrap_err();
    assert!(error.to_string().contains("nothing says what type shared.Row is"), "{error}");
    assert_eq!(decoder.rows(), 0);
}

/// A type that only looks like the column's would give other values: it is refused, before any is read.
#[test]
fn types_are_not_guessed() {
    let decimal = |scale| LogicalType::Decimal { precision: 10, scale };
    let list = |ty| LogicalType::List(Box::new(ty));
    use LogicalType::{Binary, Bool, Date, Int, Json, Long, String, Timestamp, TimestampTz, Uuid};
    for (ty, takes) in [
        (r#""int""#, vec![Int, Long, Date]),
        (r#"{"type":"int","logicalType":"date"}"#, vec![Date]),
        (r#"{"type":"int","logicalType":"time-millis"}"#, vec![]),
        (r#""long""#, vec![Long, Timestamp, TimestampTz]),
        (r#"{"type":"long","logicalType":"timestamp-millis"}"#, vec![]),
        (r#"{"type":"long","logicalType":"timestamp-micros"}"#, vec![TimestampTz]),
        (r#"{"type":"long","logicalType":"local-timestamp-micros"}"#, vec![Timestamp]),
        (r#"{"type":"long","logicalType":"timestamp-nanos"}"#, vec![]),
        (r#""float""#, vec![LogicalType::Float, LogicalType::Double]),
        (r#""double""#, vec![LogicalType::Double]),
        (r#""boolean""#, vec![Bool]),
        (r#""bytes""#, vec![Binary]),
        (r#"{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}"#, vec![decimal(2)]),
        (r#"{"type":"bytes","logicalType":"decimal","precision":10}"#, vec![decimal(0)]),
        (r#""string""#, vec![String, Json, Uuid]),
        (r#"{"type":"string","logicalType":"uuid"}"#, vec![String, Uuid]),
        (r#"{"type":"array","items":["int","null"]}"#, vec![list(Int), list(Long), list(Date)]),
        (r#"{"type":"map","values":"int"}"#, vec![]),
        (r#"{"type":"enum","name":"N","symbols":["A"]}"#, vec![]),
        (r#"{"type":"fixed","name":"F","size":16}"#, vec![Uuid, Binary]),
        (r#"{"type":"fixed","name":"F","size":15}"#, vec![Binary]),
        (r#""E""#, vec![]),
    ] {
        let ours = [
            Bool,
            Int,
            Long,
            LogicalType::Float,
            LogicalType::Double,
            decimal(0),
            decimal(2),
            String,
            Json,
            Uuid,
            Binary,
            Date,
            Timestamp,
            TimestampTz,
            list(Int),
            list(Long),
            list(Date),
            list(String),
        ];
        for ours in ours {
            let table = schema(vec![ours.clone()], vec![]);
            let text = super::schema::value(&table).replacen(&super::schema::ty(&ours), ty, 1);
            let schema = RegisteredSchema { text: text.replace("Envelope", "E"), references: Vec::new() };
            let schema = super::registered::Registered::parse(&schema).unwrap();
            let taken = super::plan::Envelope::new(schema, &table);
            assert_eq!(taken.is_ok(), takes.contains(&ours), "{ty} in a column of {ours:?}");
        }
    }
}

/// Schemas and data that are made to hurt: refused soon, and before anything is allocated for them.
#[test]
fn nothing_grows_out_of_proportion() {
    let table = schema(
        vec![LogicalType::List(Box::new(LogicalType::Int)), LogicalType::Decimal { precision: 3, scale: 1 }],
        vec![],
    );
    let registry = Arc::<Registry>::default();
    let mut decoder = decoder(&[&table], &registry);
    let mut refused = |text: &str, references: &[&str], datum: &[u8]| {
        let id = registry.add(text, references);
        let value = [&[0][..], &id.to_be_bytes(), datum].concat();
        let at = RecordRef {
            topic: "t",
            partition: 0,
            offset: 0,
            key: None,
            value: Some(&value),
            header: Some(b"avro,7,1"),
        };
        let begun = std::time::Instant::now();
        let error = decoder.push(&at).unwrap_err().to_string();
        assert!(begun.elapsed().as_secs() < 5, "{error}");
        assert_eq!(decoder.rows(), 0);
        error
    };
    // An envelope whose first field is of this type; the rest would be read after it.
    let envelope = |ty: &str| {
        format!(
            r#"{{"type":"record","name":"E","fields":[{{"name":"x","type":{ty}}},{{"name":"op","type":"string"}},
            {{"name":"source","type":{{"type":"record","name":"S","fields":[]}}}},{{"name":"before","type":"null"}},
            {{"name":"after","type":{{"type":"record","name":"R","fields":[
            {{"name":"c0","type":{{"type":"array","items":["null","int"]}}}}]}}}}]}}"#
        )
    };
    let count = |count: i64| {
        let mut out = Vec::new();
        write_long(&mut out, count);
        out
    };
    // items that take no bytes, in number
    let nulls = envelope(r#"{"type":"array","items":"null"}"#);
    assert!(refused(&nulls, &[], &count(i64::MAX)).contains("too many values for its bytes"));
    assert!(refused(&nulls, &[], &count(i64::MIN)).contains("a number without an end"));
    let empty = envelope(r#"{"type":"array","items":{"type":"record","name":"Z","fields":[]}}"#);
    assert!(refused(&empty, &[], &count(1 << 40)).contains("too many values for its bytes"));
    // a record in itself, of no bytes
    let inside = envelope(r#"{"type":"record","name":"A","fields":[{"name":"a","type":"A"},{"name":"b","type":"A"}]}"#);
    assert!(refused(&inside, &[], &[]).contains("nested too deeply"));
    // 2^40 values by 40 names
    let doubling: Vec<_> = (0..40)
        .map(|i| {
            let of = if i == 0 { "null".to_owned() } else { format!("D{}", i - 1) };
            format!(r#"{{"type":"record","name":"D{i}","fields":[{{"name":"a","type":"{of}"}},{{"name":"b","type":"{of}"}}]}}"#)
        })
        .collect();
    let references: Vec<_> = doubling.iter().map(String::as_str).collect();
    assert!(refused(&envelope("\"D39\""), &references, &[]).contains("too many values for its bytes"));
    // lengths
    for (ty, datum, reason) in [
        ("\"bytes\"", count(i64::MAX), "bytes where 0 are left"),
        ("\"string\"", count(-1), "-1 bytes"),
        (r#"{"type":"fixed","name":"F","size":4294967296}"#, vec![], "4294967296 bytes where 0 are left"),
        (r#"{"type":"map","values":"int"}"#, count(1 << 50), "a number without an end"),
        (r#"["null","int"]"#, count(1 << 50), "of a union of 2"),
    ] {
        let error = refused(&envelope(ty), &[], &datum);
        assert!(error.contains(reason), "{error}");
    }
    // elements of our own column
    let ours = envelope("\"null\"");
    let datum = |elements: Vec<u8>| [&b"\x02c"[..], &elements].concat();
    for elements in [count(i64::MAX), [count(i64::MAX), vec![0; 100]].concat(), [count(i64::MIN), vec![2, 0]].concat()]
    {
        let error = refused(&ours, &[], &datum(elements));
        assert!(error.contains("a number without an end"), "{error}");
    }
    // schemas that are none
    let deep = format!("{}\"int\"{}", "[".repeat(100_000), "]".repeat(100_000));
    for (text, reason) in [
        ("{", "not a schema"),
        (deep.as_str(), "not a schema: recursion limit"),
        ("7", "7 where a type must be"),
        ("[\"int\",[\"null\"]]", "a union in a union"),
        ("\"E\"", "nothing says what type E is"),
        ("{}", "without `type`"),
        (r#"{"type":"record","fields":[]}"#, "without a name"),
        (r#"{"type":"record","name":"E"}"#, "no fields"),
        (r#"{"type":"fixed","name":"E","size":0}"#, "no size"),
        (r#"{"type":"array"}"#, "null where a type must be"),
        (
            r#"{"type":"record","name":"E","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}"#,
            "two fields a",
        ),
        (r#"["null",{"type":"record","name":"E","fields":[]}]"#, "it is no record"),
        ("\"int\"", "it is no record"),
    ] {
        let error = refused(text, &[], &[]);
        assert!(error.contains(reason), "{text}: {error}");
    }
    let twice = r#"{"type":"record","name":"E","fields":[]}"#;
    assert!(refused(twice, &[twice], &[]).contains("E is defined twice"));
    assert!(refused(&" ".repeat(17 << 20), &[], &[]).contains("a schema of 17825792 bytes"));
    // what is no envelope of this table
    for (from, to, reason) in [
        (r#"["null","int"]"#, "\"null\"", "field c0 is not of type List(Int)"),
        (r#"["null","int"]"#, "\"string\"", "field c0 is not of type List(Int)"),
        (r#"{"name":"c0","#, r#"{"name":"d","lakeward.column":"c0","type":"int"},{"name":"c0","#, "is not of type"),
        (r#""name":"after""#, r#""name":"afterwards""#, "no field after"),
        (r#""type":"string""#, r#""type":"bytes""#, "field op is no text"),
        (
            r#""name":"S","fields":[]"#,
            r#""name":"S","fields":[{"name":"lsn","type":"string"}]"#,
            "source.lsn is no number",
        ),
        (r#""name":"before","type":"null""#, r#""name":"before","type":"int""#, "its field before: no record"),
    ] {
        assert!(ours.contains(from), "{from}");
        let error = refused(&ours.replace(from, to), &[], &[]);
        assert!(error.contains(reason), "{error}");
    }
}

/// A topic in which the codec changed, and changed back.
#[test]
fn codecs_may_change_half_way() {
    let schema = schema(vec![LogicalType::Int], vec![0]);
    let after = rows(&schema, vec![Arc::new(Int32Array::from_iter_values(0..8))], vec![true; 8]);
    let before = StructArray::new_null(schema.arrow_fields(), 8);
    let all: Vec<_> = (1..9).map(|sequence| row(Op::Create, sequence)).collect();
    let batch = ChangeBatch::try_new(schema.clone(), meta(&all).finish().unwrap(), after, before).unwrap();
    let registry = Arc::<Registry>::default();
    let mut encoders: [Box<dyn Encoder>; 3] =
        [Box::new(JsonEncoder::default()), Box::new(encoder(&registry)), Box::new(ArrowEncoder::new().unwrap())];
    let mut block = RecordBlock::default();
    for (i, by) in [0, 1, 1, 2, 1, 0, 2, 1].into_iter().enumerate() {
        encoders[by].encode(&batch.slice(i, 1), 1, &mut block).unwrap();
    }
    let find = move |_| Some(schema.clone());
    let mut decoder = AnyDecoder::new(Arc::new(find.clone()), Some(registry.clone())).unwrap();
    let bad = RecordRef {
        topic: "t",
        partition: 0,
        offset: 0,
        key: None,
        value: Some(b"{}"),
        header: Some(b"arrow,7,op sequence position"),
    };
    for (i, r) in block.iter().enumerate() {
        decoder.push(&bad).unwrap_err();
        decoder.push(&RecordRef { header: Some(b"avro,7,1"), ..bad }).unwrap_err();
        decoder.push(&record(&r)).unwrap();
        assert_eq!(decoder.rows(), i + 1);
    }
    let sequences: Vec<u64> = decoder.flush().unwrap().iter().flat_map(|b| b.sequences().to_vec()).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(decoder.rows(), 0);

    let mut decoder = AnyDecoder::new(Arc::new(find), None).unwrap();
    let answers: Vec<_> = block.iter().map(|r| decoder.push(&record(&r)).map_err(|error| error.to_string())).collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4);
    let error = answers[1].clone().unwrap_err();
    assert!(error.ends_with("set `[log] registry` to where its schemas are"), "{error}");
    let sequences: Vec<u64> = decoder.flush().unwrap().iter().flat_map(|b| b.sequences().to_vec()).collect();
    assert_eq!(sequences, [1, 4, 6, 7]);
}

// What another implementation reads of our bytes.

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

/// Each record's partition, and whether it has a key.
fn dealt(block: &RecordBlock) -> Vec<(i32, bool)> {
    block.iter().map(|r| (r.partition, r.key.is_some())).collect()
}

proptest! {
    #[test]
    fn any_batch_comes_back_equal(batch in any_batch(), from in 0usize..3) {
        // a slice too: offsets into arrays are where writers go wrong
        let batch = batch.slice(from.min(batch.num_rows()), batch.num_rows().saturating_sub(from));
        let registry = Arc::<Registry>::default();
        let block = encoded(&batch, 1, &registry);
        let mut decoder = decoder(&[batch.table()], &registry);
        for r in block.iter() {
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
        let relational = table.kind == crate::schema::TableKind::Relational;
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
                if batch.ops()[row] == b'd' {
                    for ((_, written), column) in key.iter().zip(&table.key) {
                        let expected = expected(batch.before().column(*column), &table.columns[*column].ty, row);
                        prop_assert!(same(written, &expected), "{:?} for {:?}", written, expected);
                    }
                }
            }
        }
    }

    #[test]
    fn partitions_are_those_of_json(batch in any_batch(), partitions in 1i32..6) {
        let mut json = RecordBlock::default();
        JsonEncoder::default().encode(&batch, partitions, &mut json).unwrap();
        prop_assert_eq!(dealt(&encoded(&batch, partitions, &Arc::default())), dealt(&json));
    }

    #[test]
    fn no_damage_is_too_much(
        batch in any_batch(),
        flips in proptest::collection::vec((0usize..3, any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let registry = Arc::<Registry>::default();
        let block = encoded(&batch, 1, &registry);
        let mut damaged = decoder(&[batch.table()], &registry);
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
        let batches = damaged.flush().unwrap();
        prop_assert_eq!(batches.iter().map(ChangeBatch::num_rows).sum::<usize>(), taken);
        for batch in batches {
            for column in batch.record_batch().columns() {
                column.to_data().validate_full().unwrap();
            }
        }
    }

    /// A schema whose text was damaged is refused or reads something; it never hurts.
    #[test]
    fn no_schema_is_too_odd(
        batch in any_batch(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), "[\\[\\]{}\",:a-z0-9]"), 1..4),
        swap in any::<bool>(),
    ) {
        let registry = Arc::<Registry>::default();
        let block = encoded(&batch, 1, &registry);
        for (_, schema) in registry.known.lock().unwrap().iter_mut() {
            let mut text = schema.text.clone();
            if swap {
                text = text.replace("[\"null\",\"string\"]", "[\"string\",\"null\"]");
            }
            for (at, character) in &flips {
                let at = at.index(text.len());
                if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                    text.replace_range(at..=at, character);
                }
            }
            *schema = Arc::new(RegisteredSchema { text, references: Vec::new() });
        }
        let mut decoder = decoder(&[batch.table()], &registry);
        let taken = block.iter().filter(|r| decoder.push(&record(r)).is_ok()).count();
        let rows: usize = decoder.flush().unwrap().iter().map(ChangeBatch::num_rows).sum();
        prop_assert_eq!(rows, taken);
    }
}
