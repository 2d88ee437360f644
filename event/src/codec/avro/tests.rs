//! The codec as a whole: exact bytes, any batch there and back, and damage.
#![allow(clippy::unwrap_used)]

mod opinion;
mod reading;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Int32Array, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::Int32Type;
use proptest::prelude::*;

use super::{AvroDecoder, AvroEncoder};
use crate::batch::{ChangeBatch, ChangeMeta, MetaRow, Op};
use crate::codec::any::AnyDecoder;
use crate::codec::arrow::ArrowEncoder;
use crate::codec::json::JsonEncoder;
use crate::codec::registry::{RegisteredSchema, SchemaRegistry};
use crate::codec::samples::{any_batch, meta, record, row, rows, schema};
use crate::codec::{Decoder, Encoder, RecordBlock, RecordRef};
use crate::error::{Error, Result};
use crate::schema::{TableId, TableSchema};
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

#[test]
fn versions_are_runs() {
    let old = schema(vec![LogicalType::Int], vec![]);
    let new = Arc::new(TableSchema { version: 8, ..(*old).clone() });
    let registry = Arc::<Registry>::default();
    let of = |schema: &Arc<TableSchema>, sequence| {
        let after = rows(schema, vec![Arc::new(Int32Array::from(vec![1]))], vec![true]);
        let before = StructArray::new_null(schema.arrow_fields(), 1);
        let meta = meta(&[row(Op::Create, sequence)]).finish().unwrap();
        encoded(&ChangeBatch::try_new(schema.clone(), meta, after, before).unwrap(), 1, &registry)
    };
    let mut decoder = decoder(&[&old, &new], &registry);
    for (schema, other, sequence) in [(&old, &new, 1), (&old, &new, 2), (&new, &old, 3), (&old, &new, 4)] {
        decoder.push(&record(&of(schema, sequence).iter().next().unwrap())).unwrap();
        // a bad record of another version does not break the run
        let block = of(other, 9);
        let r = block.iter().next().unwrap();
        let value = [r.value.unwrap(), b"x"].concat();
        decoder.push(&RecordRef { value: Some(&value), ..record(&r) }).unwrap_err();
    }
    let rows: Vec<_> = decoder.flush().unwrap().iter().map(|b| (b.table().version, b.num_rows())).collect();
    assert_eq!(rows, [(7, 2), (8, 1), (7, 1)]);
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
    // Without the column that had the name, another one gets it: the property decides, not the field's name.
    let mut renamed = (*table).clone();
    renamed.version = 8;
    renamed.columns.remove(2);
    let renamed = Arc::new(renamed);
    let mut decoder = decoder(&[&table, &renamed], &registry);
    decoder.push(&record(&r)).unwrap();
    decoder.push(&RecordRef { header: Some(b"avro,8,1"), ..record(&r) }).unwrap();
    let batches = decoder.flush().unwrap();
    assert_eq!(batches[0].record_batch(), batch.record_batch());
    let values: Vec<_> = batches[1].after().columns().iter().map(|c| c.as_primitive::<Int32Type>().value(0)).collect();
    assert_eq!(values, [0, 1, 3]);
    // a registry that keeps nothing but Avro's own properties
    let bare = text.replace("lakeward.column", "dropped").replace("lakeward.topic", "dropped");
    let id = registry.add(&bare, &[]);
    let value = [&[0][..], &id.to_be_bytes(), &r.value.unwrap()[5..]].concat();
    decoder.push(&RecordRef { value: Some(&value), ..record(&r) }).unwrap();
    assert_eq!(decoder.flush().unwrap()[0].record_batch(), batch.record_batch());
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
}
