//! What a change costs in each codec: `rows made here -> ChangeBatches -> encode -> records -> decode -> ChangeBatches`, beside
//! what stock parts need for the same: Arrow's own IPC writer and reader on the same batches, arrow-json on the same text.
//!
//! CPU time of this thread, nothing else runs in it; the best of some rounds, for the machine may be busy. One line of JSON on
//! stdout, for bench/run.py.
//!
//!   cargo bench --workspace --bench codecs -- [--changes N] [--rounds N]
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, StructArray, new_null_array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use lakeward_event::codec::any::AnyDecoder;
use lakeward_event::codec::arrow::ArrowEncoder;
use lakeward_event::codec::avro::AvroEncoder;
use lakeward_event::codec::json::JsonEncoder;
use lakeward_event::codec::{Decoder, Encoder, RecordBlock, RecordRef};
use lakeward_event::{ChangeBatch, TableSchema};

#[path = "changes.rs"]
mod changes;
use changes::{BATCH, PARTITIONS, Registry};

fn main() {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|a| a == name);
        at.map_or(default, |at| arguments[at + 1].parse().unwrap_or_else(|_| panic!("{name} wants a number")))
    };
    let (changes, rounds) = (number("--changes", 1_000_000), number("--rounds", 3));
    let schema = changes::table("users");
    let batches = changes::batches(&schema, changes);
    let memory: usize = batches.iter().map(|b| b.record_batch().get_array_memory_size()).sum();

    let mut results = serde_json::Map::new();
    let mut note = |name: &str, (seconds, bytes): (f64, usize)| {
        let of = serde_json::json!({ "us_per_change": seconds * 1e6 / changes as f64, "bytes_per_change": bytes as f64 / changes as f64 });
        results.insert(name.into(), of);
    };
    let registry = Arc::<Registry>::default();
    let encoders: [(&str, Box<dyn Encoder>); 3] = [
        ("json", Box::<JsonEncoder>::default()),
        ("avro", Box::new(AvroEncoder::new(registry.clone()))),
        ("arrow", Box::new(ArrowEncoder::new().unwrap())),
    ];
    let mut text = Vec::new();
    for (name, mut encoder) in encoders {
        let mut blocks: Vec<RecordBlock> = Vec::new();
        let encoded = best(rounds, || {
            blocks.clear();
            for batch in &batches {
                let mut block = RecordBlock::default();
                encoder.encode(batch, PARTITIONS, &mut block).unwrap();
                blocks.push(block);
            }
            blocks.iter().map(RecordBlock::bytes).sum()
        });
        note(&format!("{name}_encode"), encoded);
        note(&format!("{name}_decode"), best(rounds, || decode(&schema, &registry, &blocks, changes)));
        if name == "json" {
            text = blocks;
        }
    }
    let mut stream = Vec::new();
    note("ipc_encode", best(rounds, || ipc_encode(&batches, &mut stream)));
    note("ipc_decode", best(rounds, || ipc_decode(&stream, changes)));
    let envelopes: Vec<RecordBatch> = batches.iter().map(envelope).collect();
    note("arrow_json_encode", best(rounds, || json_encode(&envelopes)));
    note("arrow_json_decode", best(rounds, || json_decode(&envelopes[0].schema(), &text, changes)));
    let answer = serde_json::json!({
        "changes": changes, "bytes_per_change": memory as f64 / changes as f64, "partitions": PARTITIONS, "batch": BATCH,
        "rounds": rounds, "results": results,
    });
    println!("{answer}");
}

/// CPU seconds of this thread since it began.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells a thread's time");
    let nanoseconds: u64 = text.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    nanoseconds as f64 / 1e9
}

/// The least CPU time of the rounds, and what the work answered.
fn best(rounds: usize, mut work: impl FnMut() -> usize) -> (f64, usize) {
    (0..rounds.max(1)).fold((f64::MAX, 0), |(least, _), _| {
        let begun = cpu();
        let answer = black_box(work());
        (least.min(cpu() - begun), answer)
    })
}

fn decode(schema: &Arc<TableSchema>, registry: &Arc<Registry>, blocks: &[RecordBlock], changes: usize) -> usize {
    let schema = schema.clone();
    let mut decoder = AnyDecoder::new(Arc::new(move |_| Some(schema.clone())), Some(registry.clone())).unwrap();
    let (mut rows, mut bytes) = (0, 0);
    for block in blocks {
        for r in block.iter() {
            let (key, value, header) = (r.key, r.value, r.header);
            let record = RecordRef { topic: "t", partition: r.partition, offset: 0, key, value, header };
            decoder.push(&record).unwrap();
        }
        // As often as the sink asks, roughly.
        if decoder.rows() >= 8 * BATCH {
            rows += decoder.flush().unwrap().iter().map(ChangeBatch::num_rows).sum::<usize>();
        }
        bytes += block.bytes();
    }
    rows += decoder.flush().unwrap().iter().map(ChangeBatch::num_rows).sum::<usize>();
    assert_eq!(rows, changes);
    bytes
}

fn ipc_encode(batches: &[ChangeBatch], stream: &mut Vec<u8>) -> usize {
    stream.clear();
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD)).unwrap();
    let mut writer =
        StreamWriter::try_new_with_options(&mut *stream, &batches[0].record_batch().schema(), options).unwrap();
    batches.iter().for_each(|batch| writer.write(batch.record_batch()).unwrap());
    writer.finish().unwrap();
    drop(writer);
    stream.len()
}

fn ipc_decode(stream: &[u8], changes: usize) -> usize {
    let rows: usize = StreamReader::try_new(stream, None).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows, changes);
    stream.len()
}

/// The same changes as a batch of Debezium's envelope, for arrow-json.
fn envelope(batch: &ChangeBatch) -> RecordBatch {
    let rows = batch.num_rows();
    let text = |value: &str| Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, rows))) as ArrayRef;
    let long = |f: &dyn Fn(usize) -> i64| Arc::new(Int64Array::from_iter_values((0..rows).map(f))) as ArrayRef;
    let of = |columns: Vec<(&str, ArrayRef)>| -> (Fields, Vec<ArrayRef>) {
        let fields = columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
        (fields, columns.into_iter().map(|(_, column)| column).collect())
    };
    let micros = |row: usize| batch.commit_ts().value(row);
    let (fields, columns) = of(vec![
        ("version", text("0.1.0")),
        ("connector", text("postgresql")),
        ("name", text("users")),
        ("ts_ms", long(&|row| micros(row) / 1000)),
        ("ts_us", long(&micros)),
        ("snapshot", text("false")),
        ("db", text("users")),
        ("schema", text("public")),
        ("table", text("orders")),
        ("txId", long(&|row| batch.tx().value(row) as i64)),
        ("lsn", long(&|row| batch.positions()[row] as i64)),
    ]);
    let source = StructArray::new(fields, columns, None);
    let op = |row: usize| char::from(batch.ops()[row]).to_string();
    let (fields, columns) = of(vec![
        ("before", new_null_array(batch.before().data_type(), rows)),
        ("after", Arc::new(batch.after().clone())),
        ("source", Arc::new(source)),
        ("transaction", new_null_array(&DataType::Utf8, rows)),
        ("op", Arc::new(StringArray::from_iter_values((0..rows).map(op)))),
        ("ts_ms", long(&|row| micros(row) / 1000)),
    ]);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn json_encode(envelopes: &[RecordBatch]) -> usize {
    let mut bytes = 0;
    for batch in envelopes {
        let builder = arrow_json::writer::WriterBuilder::new().with_explicit_nulls(true);
        let mut writer = builder.build::<_, arrow_json::writer::LineDelimited>(Vec::new());
        writer.write(batch).unwrap();
        writer.finish().unwrap();
        bytes += black_box(writer.into_inner()).len();
    }
    bytes
}

/// Reads the very text that our encoder wrote.
fn json_decode(schema: &SchemaRef, blocks: &[RecordBlock], changes: usize) -> usize {
    let builder = arrow_json::ReaderBuilder::new(schema.clone()).with_batch_size(8 * BATCH);
    let mut decoder = builder.build_decoder().unwrap();
    let (mut rows, mut bytes) = (0, 0);
    for block in blocks {
        for record in block.iter() {
            let mut value = record.value.unwrap();
            bytes += value.len();
            while !value.is_empty() {
                value = &value[decoder.decode(value).unwrap()..];
                if !value.is_empty() {
                    rows += decoder.flush().unwrap().map_or(0, |batch| batch.num_rows());
                }
            }
        }
    }
    rows += decoder.flush().unwrap().map_or(0, |batch| batch.num_rows());
    assert_eq!(rows, changes);
    bytes
}
