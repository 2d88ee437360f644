//! The codec as a whole: exact bytes, any batch there and back, and bytes that nobody wrote.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, StringArray, StructArray, UInt32Array};
use arrow::compute::take_record_batch;
use proptest::prelude::*;

use super::{ArrowDecoder, ArrowEncoder, MAX_BATCH_BYTES, MAX_ROWS, SPLIT_BYTES};
use crate::batch::{ChangeBatch, MetaRow, Op};
use crate::codec::any::AnyDecoder;
use crate::codec::json::JsonEncoder;
use crate::codec::samples::{any_batch, meta, record, row, rows, schema};
use crate::codec::{BlockRecord, Decoder, Encoder, RecordBlock, RecordRef};
use crate::error::Error;
use crate::schema::{TableId, TableSchema};
use crate::types::LogicalType;

fn decoder(schema: &Arc<TableSchema>) -> ArrowDecoder {
    let schema = schema.clone();
    ArrowDecoder::new(Arc::new(move |version| (version == schema.version).then(|| schema.clone()))).unwrap()
}

fn encoded(batch: &ChangeBatch, partitions: i32) -> RecordBlock {
    let mut block = RecordBlock::default();
    ArrowEncoder::new().unwrap().encode(batch, partitions, &mut block).unwrap();
    block
}

fn decoded<'a>(schema: &Arc<TableSchema>, records: impl IntoIterator<Item = BlockRecord<'a>>) -> Vec<ChangeBatch> {
    let mut decoder = decoder(schema);
    records.into_iter().for_each(|r| decoder.push(&record(&r)).unwrap());
    decoder.flush().unwrap()
}

fn header(record: &BlockRecord<'_>) -> String {
    String::from_utf8(record.header.unwrap().to_vec()).unwrap()
}

/// Inserts of a number and a text each.
fn inserts(texts: &[&str]) -> ChangeBatch {
    let schema = schema(vec![LogicalType::Long, LogicalType::String], vec![0]);
    let numbers = Int64Array::from_iter_values(0..texts.len() as i64);
    let after =
        rows(&schema, vec![Arc::new(numbers), Arc::new(StringArray::from(texts.to_vec()))], vec![true; texts.len()]);
    let before = StructArray::new_null(schema.arrow_fields(), texts.len());
    let all: Vec<_> = (0..texts.len()).map(|i| row(Op::Create, i as u64 + 1)).collect();
    ChangeBatch::try_new(schema, meta(&all).finish().unwrap(), after, before).unwrap()
}

/// The form is stored in logs: these bytes may only change together with the codec's name. Lengths and the flat buffer are
/// those of the IPC format; a few rows are too short to be compressed, so all of it can be read here.
#[test]
fn the_bytes_of_a_record() {
    let block = encoded(&inserts(&["one", "two"]), 1);
    let records: Vec<_> = block.iter().collect();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].key, header(&records[0])), (None, "arrow,7,op sequence position tx commit_ts after".into()));
    let lines: Vec<String> = records[0]
        .value
        .unwrap()
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

/// The same for the schema message, by its length and hash: pyarrow reads it in the test of docs/log.md.
#[test]
fn the_schema_stands_in_its_record() {
    let table = TableSchema::documents(TableId::new("inventory", "shop", "items"));
    let value: serde_json::Value = serde_json::from_slice(&table.to_record().unwrap()).unwrap();
    use base64::Engine;
    let message = base64::engine::general_purpose::STANDARD.decode(value["arrow"].as_str().unwrap()).unwrap();
    let mut reader = arrow::ipc::reader::StreamReader::try_new(message.as_slice(), None).unwrap();
    assert_eq!(reader.schema(), ChangeBatch::schema(&table));
    assert!(reader.next().is_none());
    let read: TableSchema = serde_json::from_value(value).unwrap();
    assert_eq!(read, table, "what we read ourselves does not depend on it");
}

/// What any reader of Arrow sees in a record.
#[test]
fn arrows_own_reader_agrees() {
    let texts: Vec<String> = (0..1000).map(|i| format!("text {i}")).collect();
    let batch = inserts(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let block = encoded(&batch, 1);
    let value = block.iter().next().unwrap().value.unwrap();
    let mut stream = Vec::new();
    let columns = [0, 1, 2, 3, 4, 5];
    let schema = batch.record_batch().schema().project(&columns).unwrap();
    let writer = arrow::ipc::writer::StreamWriter::try_new(&mut stream, &schema).unwrap();
    drop(writer);
    stream.extend_from_slice(value);
    let mut reader = arrow::ipc::reader::StreamReader::try_new(stream.as_slice(), None).unwrap();
    assert_eq!(reader.next().unwrap().unwrap(), batch.record_batch().project(&columns).unwrap());
    assert!(value.len() < 1000 * 20, "{} bytes: it is compressed", value.len());
}

#[test]
fn large_batches_are_split_and_rows_keep_their_order() {
    let long = "x".repeat(300_000);
    let texts: Vec<&str> = (0..100).map(|i| if i % 3 == 0 { "short" } else { &long }).collect();
    let batch = inserts(&texts);
    for partitions in [1, 3] {
        let block = encoded(&batch, partitions);
        assert!(block.len() > partitions as usize, "{} records", block.len());
        for r in block.iter() {
            let part = decoded(batch.table(), [r]).remove(0);
            let bytes: usize = part.after().column(1).get_array_memory_size();
            assert!(bytes <= SPLIT_BYTES, "{bytes}");
        }
        for partition in 0..partitions {
            let all = decoded(batch.table(), block.iter().filter(|r| r.partition == partition));
            assert_eq!(all.len(), 1);
            assert!(all[0].sequences().is_sorted());
        }
        let all = decoded(batch.table(), block.iter());
        assert_eq!(all[0].num_rows(), 100);
    }
    let many = inserts(&vec!["a"; MAX_ROWS + 1]);
    let block = encoded(&many, 1);
    assert!(block.len() > 1);
    assert_eq!(decoded(many.table(), block.iter())[0].record_batch(), many.record_batch());
}

#[test]
fn a_row_that_no_record_takes_is_named() {
    let long = "x".repeat(MAX_BATCH_BYTES);
    let mut block = RecordBlock::default();
    let error = ArrowEncoder::new().unwrap().encode(&inserts(&["a", &long]), 1, &mut block).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("public.orders"), "{error}");
    // one that just fits does, however it was compressed
    let fits = inserts(&[&long[..MAX_BATCH_BYTES - 200]]);
    let block = encoded(&fits, 1);
    assert_eq!(decoded(fits.table(), block.iter())[0].record_batch(), fits.record_batch());
}

#[test]
fn a_truncate_reaches_every_partition() {
    let schema = schema(vec![LogicalType::Long], vec![0]);
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 0, 2]));
    let after = rows(&schema, vec![numbers], vec![true, false, true]);
    let before = StructArray::new_null(schema.arrow_fields(), 3);
    let meta = meta(&[row(Op::Create, 1), MetaRow { tx: None, ..row(Op::Truncate, 2) }, row(Op::Create, 3)]).finish();
    let batch = ChangeBatch::try_new(schema, meta.unwrap(), after, before).unwrap();
    let block = encoded(&batch, 5);
    assert_eq!(block.iter().map(|r| r.partition).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let mut others = 0;
    for r in block.iter() {
        let part = decoded(batch.table(), [r]).remove(0);
        assert_eq!(part.ops().iter().filter(|op| **op == b't').count(), 1);
        assert!(part.sequences().is_sorted());
        others += part.num_rows() - 1;
    }
    assert_eq!(others, 2);
}

/// A topic in which the codec changed, and changed back.
#[test]
fn codecs_may_change_half_way() {
    let batch = inserts(&["a", "b", "c", "d", "e", "f"]);
    let mut block = RecordBlock::default();
    let (mut json, mut arrow) = (JsonEncoder::default(), ArrowEncoder::new().unwrap());
    json.encode(&batch.slice(0, 2), 1, &mut block).unwrap();
    arrow.encode(&batch.slice(2, 2), 1, &mut block).unwrap();
    arrow.encode(&batch.slice(4, 1), 1, &mut block).unwrap();
    json.encode(&batch.slice(5, 1), 1, &mut block).unwrap();
    let schema = batch.table().clone();
    let mut decoder = AnyDecoder::new(Arc::new(move |_| Some(schema.clone())), None).unwrap();
    let bad = RecordRef {
        topic: "t",
        partition: 0,
        offset: 0,
        key: None,
        value: Some(b"{}"),
        header: Some(b"arrow,7,op sequence position"),
    };
    let mut taken = Vec::new();
    for r in block.iter() {
        decoder.push(&bad).unwrap_err();
        decoder.push(&RecordRef { header: None, ..bad }).unwrap_err();
        decoder.push(&record(&r)).unwrap();
        taken.push(decoder.rows());
    }
    assert_eq!(taken, [1, 2, 4, 5, 6]);
    let sequences: Vec<u64> = decoder.flush().unwrap().iter().flat_map(|b| b.sequences().to_vec()).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5, 6]);
    assert_eq!(decoder.rows(), 0);
}

#[test]
fn what_a_header_or_message_must_not_say() {
    let batch = inserts(&["one", "two"]);
    let block = encoded(&batch, 1);
    let r = block.iter().next().unwrap();
    let good = record(&r);
    let mut decoder = decoder(batch.table());
    decoder.push(&good).unwrap();
    for (header, reason) in [
        ("arrow", "not of this codec"),
        ("arrow,x,op", "not of this codec"),
        ("arrow,8,op sequence position", "schema version 8 is not known"),
        ("arrow,7,op sequence", "no column `position`"),
        ("arrow,7,op sequence position tx commit_ts", "more columns"),
        ("arrow,7,op sequence position tx commit_ts after patch", "fewer columns"),
        ("arrow,7,op op sequence position", "twice"),
        ("arrow,7,sequence op position", "another order"),
        ("arrow,7,op sequence position rows", "a column `rows`"),
        ("arrow,7,op sequence position tx commit_ts misfits", "column misfits"),
    ] {
        let error = decoder.push(&RecordRef { header: Some(header.as_bytes()), ..good }).unwrap_err().to_string();
        assert!(error.contains(reason), "{header}: {error}");
        assert!(error.contains("users.public.orders partition 0 offset 3"), "{error}");
    }
    let value = r.value.unwrap();
    let broken = [value.len() - 1, value.len() / 2, 9, 8, 7, 3, 0].map(|length| &value[..length]);
    for value in broken {
        assert!(decoder.push(&RecordRef { value: Some(value), ..good }).is_err());
    }
    let schema = super::schema_message(batch.table()).unwrap();
    let error = decoder.push(&RecordRef { value: Some(&schema), ..good }).unwrap_err().to_string();
    assert!(error.contains("where a record batch must be"), "{error}");
    // a tombstone says nothing
    decoder.push(&RecordRef { value: None, ..good }).unwrap();
    assert_eq!(decoder.rows(), 2);
    assert_eq!(decoder.flush().unwrap()[0].record_batch(), batch.record_batch());
}

/// A few bytes that claim to be a gigabyte: refused before anything is allocated for them.
#[test]
fn a_small_record_cannot_become_a_large_batch() {
    let nothing = "\0".repeat(1 << 20);
    let batch = inserts(&[&nothing]);
    let block = encoded(&batch, 1);
    let r = block.iter().next().unwrap();
    let value = r.value.unwrap();
    assert!(value.len() < 4096);
    let length = (1u64 << 20).to_le_bytes();
    let at = value.windows(8).rposition(|bytes| bytes == length).unwrap();
    for claim in [1u64 << 40, 1 << 21, u64::MAX / 2, 0, 5] {
        let mut bomb = value.to_vec();
        bomb[at..at + 8].copy_from_slice(&claim.to_le_bytes());
        let error = decoder(batch.table()).push(&RecordRef { value: Some(&bomb), ..record(&r) }).unwrap_err();
        assert!(error.to_string().contains("a buffer of"), "{error}");
    }
}

#[test]
fn versions_are_runs() {
    let old = inserts(&["a", "b", "c"]);
    let new = Arc::new(TableSchema { version: 8, ..(**old.table()).clone() });
    let known = [old.table().clone(), new.clone()];
    let of = |version: u32, rows: std::ops::Range<usize>| {
        let batch = old.slice(rows.start, rows.len());
        if version == 7 {
            return encoded(&batch, 1);
        }
        encoded(&ChangeBatch::from_record_batch(new.clone(), batch.record_batch().clone()).unwrap(), 1)
    };
    let mut decoder =
        ArrowDecoder::new(Arc::new(move |version| known.iter().find(|s| s.version == version).cloned())).unwrap();
    for block in [of(7, 0..1), of(7, 1..2), of(8, 2..3), of(7, 0..3)] {
        block.iter().for_each(|r| decoder.push(&record(&r)).unwrap());
        let bad = RecordRef {
            topic: "t",
            partition: 0,
            offset: 0,
            key: None,
            value: Some(b""),
            header: Some(b"arrow,8,op sequence position"),
        };
        decoder.push(&bad).unwrap_err();
    }
    let rows: Vec<_> = decoder.flush().unwrap().iter().map(|b| (b.table().version, b.num_rows())).collect();
    assert_eq!(rows, [(7, 2), (8, 1), (7, 3)]);
}

/// Many records of a row each are put together in steps.
#[test]
fn small_records_become_one_batch() {
    let texts: Vec<String> = (0..700).map(|i| format!("t{i}")).collect();
    let batch = inserts(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let mut block = RecordBlock::default();
    let mut encoder = ArrowEncoder::new().unwrap();
    (0..700).for_each(|i| encoder.encode(&batch.slice(i, 1), 1, &mut block).unwrap());
    let all = decoded(batch.table(), block.iter());
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].record_batch(), batch.record_batch());
}

fn json_partitions(batch: &ChangeBatch, partitions: i32) -> Vec<Vec<u64>> {
    let mut block = RecordBlock::default();
    JsonEncoder::default().encode(batch, partitions, &mut block).unwrap();
    let mut by_partition = vec![Vec::new(); partitions as usize];
    for r in block.iter() {
        let text = String::from_utf8_lossy(r.header.unwrap()).into_owned();
        by_partition[r.partition as usize].push(text.split(',').nth(1).unwrap().parse().unwrap());
    }
    by_partition
}

proptest! {
    #[test]
    fn any_batch_comes_back_equal(batch in any_batch(), from in 0usize..3) {
        // a slice too: offsets into arrays are where writers go wrong
        let batch = batch.slice(from.min(batch.num_rows()), batch.num_rows().saturating_sub(from));
        let decoded = decoded(batch.table(), encoded(&batch, 1).iter());
        if batch.num_rows() == 0 {
            prop_assert!(decoded.is_empty());
        } else {
            prop_assert_eq!(decoded.len(), 1);
            prop_assert_eq!(decoded[0].record_batch(), batch.record_batch());
            prop_assert_eq!(decoded[0].table(), batch.table());
        }
    }

    #[test]
    fn partitions_are_those_of_json(batch in any_batch(), partitions in 2i32..6) {
        let block = encoded(&batch, partitions);
        let expected = json_partitions(&batch, partitions);
        for (partition, sequences) in (0..).zip(expected) {
            let batches = decoded(batch.table(), block.iter().filter(|r| r.partition == partition));
            let Some(part) = batches.first() else {
                prop_assert!(sequences.is_empty());
                continue;
            };
            prop_assert_eq!(part.sequences(), sequences.as_slice());
            // the very rows, column by column
            let mut left = sequences.iter().peekable();
            let rows: Vec<u32> = (0..batch.num_rows())
                .filter(|row| left.next_if(|s| **s == batch.sequences()[*row]).is_some())
                .map(|row| row as u32)
                .collect();
            let rows = take_record_batch(batch.record_batch(), &UInt32Array::from(rows)).unwrap();
            prop_assert_eq!(part.record_batch(), &rows);
        }
    }

    #[test]
    fn corrupted_bytes_are_an_error_at_most(
        batch in any_batch(),
        flips in proptest::collection::vec((0usize..3, any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let block = encoded(&batch, 2);
        let mut damaged = decoder(batch.table());
        let mut taken = 0;
        for r in block.iter() {
            let (mut value, mut header) = (r.value.unwrap().to_vec(), r.header.unwrap().to_vec());
            for (part, at, byte) in &flips {
                let bytes = if *part == 0 { &mut header } else { &mut value };
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Some(cut) = cut {
                value.truncate(cut.index(value.len()));
            }
            let bad = RecordRef { value: Some(&value), header: Some(&header), ..record(&r) };
            let before = damaged.rows();
            if damaged.push(&bad).is_err() {
                prop_assert_eq!(damaged.rows(), before);
            }
            damaged.push(&record(&r)).unwrap();
            taken = damaged.rows();
        }
        let rows: usize = damaged.flush().unwrap().iter().map(ChangeBatch::num_rows).sum();
        prop_assert_eq!(rows, taken);
    }
}
