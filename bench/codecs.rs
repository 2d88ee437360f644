//! What a change costs in each codec: `rows made here -> ChangeBatches -> encode -> records -> decode -> ChangeBatches`, beside
//! what stock parts need for the same: Arrow's own IPC writer and reader on the same batches, arrow-json on the same text.
//!
//! CPU time of this thread, nothing else runs in it; the least of some rounds, in each of which everything is measured, for the
//! machine's speed changes with its neighbours. One line of JSON on stdout, for bench/run.py.
//!
//!   cargo bench -p lakeward-event --bench codecs -- [--changes N] [--rounds N]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, StructArray, new_null_array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimestampMicrosecondType};
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
    let (changes, rounds) = (number("--changes", 1_000_000), number("--rounds", 5));
    let schema = changes::table("users");
    let batches = changes::batches(&schema, changes);
    let memory: usize = batches.iter().map(|b| b.record_batch().get_array_memory_size()).sum();

    let registry = Arc::<Registry>::default();
    let mut encoders: [(&str, Box<dyn Encoder>); 3] = [
        ("json", Box::<JsonEncoder>::default()),
        ("avro", Box::new(AvroEncoder::new(registry.clone()))),
        ("arrow", Box::new(ArrowEncoder::new().unwrap())),
    ];
    // What is read, by codec.
    let blocks = encoders.each_mut().map(|(_, encoder)| {
        let blocks = batches.iter().map(|batch| encoded(encoder.as_mut(), batch));
        blocks.collect::<Vec<_>>()
    });
    let mut stream = Vec::new();
    let envelopes: Vec<RecordBatch> = batches.iter().map(envelope).collect();
    let mut least: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for _ in 0..rounds.max(1) {
        let mut time = |name: String, work: &mut dyn FnMut() -> usize| {
            let begun = cpu();
            let bytes = black_box(work());
            let seconds = cpu() - begun;
            let of = least.entry(name).or_insert((seconds, bytes));
            of.0 = of.0.min(seconds);
        };
        for ((name, encoder), blocks) in encoders.iter_mut().zip(&blocks) {
            let mut all = || batches.iter().map(|batch| black_box(encoded(encoder.as_mut(), batch)).bytes()).sum();
            time(format!("{name}_encode"), &mut all);
            time(format!("{name}_decode"), &mut || decode(&schema, &registry, blocks, changes));
        }
        time("ipc_encode".into(), &mut || ipc_encode(&batches, &mut stream));
        time("ipc_decode".into(), &mut || ipc_decode(&stream, changes));
        time("arrow_json_encode".into(), &mut || json_encode(&envelopes));
        time("arrow_json_decode".into(), &mut || json_decode(&envelopes[0].schema(), &blocks[0], changes));
    }
    let per_change = |(seconds, bytes): (f64, usize)| serde_json::json!({ "us_per_change": seconds * 1e6 / changes as f64, "bytes_per_change": bytes as f64 / changes as f64 });
    let results: serde_json::Map<_, _> = least.into_iter().map(|(name, least)| (name, per_change(least))).collect();
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

fn encoded(encoder: &mut dyn Encoder, batch: &ChangeBatch) -> RecordBlock {
    let mut block = RecordBlock::default();
    encoder.encode(batch, PARTITIONS, &mut block).unwrap();
    block
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

/// Moments with the offset of UTC instead of its name, which arrow-json knows in some builds only.
fn with_offset(rows: &StructArray) -> StructArray {
    let column = |column: &ArrayRef| -> ArrayRef {
        match column.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(moments) => Arc::new(moments.clone().with_timezone("+00:00")),
            None => column.clone(),
        }
    };
    let columns: Vec<ArrayRef> = rows.columns().iter().map(column).collect();
    let named = rows.fields().iter().zip(&columns);
    let fields = named.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true)).collect();
    StructArray::new(fields, columns, rows.nulls().cloned())
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
        ("before", new_null_array(with_offset(batch.before()).data_type(), rows)),
        ("after", Arc::new(with_offset(batch.after()))),
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
