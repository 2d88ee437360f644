//! Records of a real Debezium, and what its decoder must keep to whatever is made of them.

use std::sync::Arc;

use arrow::array::Array;
use lakeward_event::ChangeBatch;
use lakeward_event::codec::debezium::{DebeziumDecoder, Placeholder, UNAVAILABLE};
use lakeward_event::codec::{Decoder, RecordRef};

/// Topic, key, value.
pub type Recorded = (String, Option<Vec<u8>>, Option<Vec<u8>>);

const FILES: [&str; 6] = [
    include_str!("../../event/tests/golden/debezium/pg-other-modes.ndjson"),
    include_str!("../../event/tests/golden/debezium/pg-unwrapped.ndjson"),
    include_str!("../../event/tests/golden/debezium/mongo-update-description.ndjson"),
    include_str!("../../event/tests/golden/debezium/mongo-pre-image.ndjson"),
    include_str!("../../event/tests/golden/debezium/2.1/pg-default-schema.ndjson"),
    include_str!("../../event/tests/golden/debezium/2.7/mongo-unwrapped.ndjson"),
];

/// The golden records of the smaller files. A schema stands in a line of its own, before the records that have it.
pub fn recorded() -> Vec<Recorded> {
    let mut records = Vec::new();
    for file in FILES {
        let mut schemas = Vec::new();
        for line in file.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            if let Some(schema) = line["text"].as_str() {
                schemas.push(schema.to_owned());
                continue;
            }
            let part = |name: &str| {
                let text = line[name].as_str()?;
                let schema = line[format!("{name}_schema")].as_u64().and_then(|of| schemas.get(of as usize));
                let whole = schema.map(|schema| format!("{{\"schema\":{schema},\"payload\":{text}}}"));
                Some(whole.unwrap_or_else(|| text.to_owned()).into_bytes())
            };
            records.push((line["topic"].as_str().unwrap_or_default().to_owned(), part("key"), part("value")));
        }
    }
    records
}

/// One input: which record, and edits of it (part, place from the front or the end, new value); a record of nothing but input
/// where the first byte is 255.
pub fn run(real: &[Recorded], input: &[u8]) {
    let Some((first, input)) = input.split_first() else { return };
    let Some((second, input)) = input.split_first() else { return };
    let Some((topic, key, value)) = real.get((usize::from(*first) << 8 | usize::from(*second)) % real.len()) else {
        return;
    };
    let mut damaged = [key.clone(), value.clone()];
    if *first == 255 {
        let (key, value) = input.split_at(input.len().min(usize::from(*second)));
        damaged = [Some(key.to_vec()), Some(value.to_vec())];
    } else {
        for edit in input.chunks_exact(4) {
            let Some(bytes) = damaged[usize::from(edit[0] & 1)].as_mut().filter(|bytes| !bytes.is_empty()) else {
                continue;
            };
            let at = usize::from(u16::from_le_bytes([edit[1], edit[2]])) % bytes.len();
            let at = if edit[0] & 2 == 0 { at } else { bytes.len() - 1 - at };
            match edit[0] >> 2 & 3 {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, edit[3]),
                _ => bytes[at] = edit[3],
            }
        }
    }
    let placeholder = Arc::new(Placeholder::new(UNAVAILABLE));
    let mut decoder = DebeziumDecoder::new("legacy", "public", topic, placeholder, None);
    let mut push = |key: &Option<Vec<u8>>, value: &Option<Vec<u8>>| {
        let rows = decoder.rows();
        let record = RecordRef {
            topic,
            partition: 0,
            offset: 0,
            key: key.as_deref(),
            value: value.as_deref(),
            header: key.as_deref(),
        };
        let pushed = decoder.push(&record);
        assert!(pushed.is_ok() || decoder.rows() == rows, "a record that was refused left something behind");
    };
    push(&damaged[0], &damaged[1]);
    push(key, value);
    push(&damaged[0], &damaged[1]);
    let rows = decoder.rows();
    let batches = decoder.flush().expect("what was taken can be given back");
    assert_eq!(batches.iter().map(ChangeBatch::num_rows).sum::<usize>(), rows);
    for batch in batches {
        for column in batch.record_batch().columns() {
            column.to_data().validate_full().expect("sound arrays");
        }
    }
}
