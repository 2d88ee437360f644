//! What could not be applied: `records, misfits, refused rows -> lakeward.dead_letters`, before the table's own commit.
//!
//! A retry writes none twice: the dead letter table keeps the offsets done with its letters and skips what lies below.

use std::sync::Arc;

use arrow::array::Array;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lakeward_event::codec::RecordRef;
use lakeward_event::schema::TableKind;
use lakeward_event::{ChangeBatch, Ends, TableId};
use lakeward_lake::system::DeadLetter;
use lakeward_runtime::{Error, Result};

use crate::reduce::{Kind, Reduction};
use crate::table::Shared;

/// Which record each row of a batch came in: the first row, partition and offset of each record.
#[derive(Debug, Default, Clone)]
pub struct Places(Vec<(u32, i32, i64)>);

impl Places {
    /// The next record has its first row at `row`.
    pub fn push(&mut self, row: u32, partition: i32, offset: i64) {
        self.0.push((row, partition, offset));
    }
    /// Partition and offset of a row's record.
    pub fn of(&self, row: usize) -> (i32, i64) {
        let after = self.0.partition_point(|(first, ..)| *first as usize <= row);
        after.checked_sub(1).and_then(|i| self.0.get(i)).map_or((0, 0), |(_, partition, offset)| (*partition, *offset))
    }
    pub fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<(u32, i32, i64)>()
    }
    /// Cuts off the places of the first `rows` rows, and numbers the others from 0.
    pub fn split_front(&mut self, rows: u32) -> Self {
        let cut = self.0.partition_point(|(first, ..)| *first < rows);
        let rest = self.0.split_off(cut);
        let front = std::mem::replace(&mut self.0, rest);
        for place in &mut self.0 {
            place.0 -= rows;
        }
        Self(front)
    }
}

/// Microseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A record that cannot be read.
pub fn of_record(source: &str, table: &str, record: &RecordRef<'_>, error: &impl std::fmt::Display) -> DeadLetter {
    DeadLetter {
        at: now(),
        source: source.to_owned(),
        table: table.to_owned(),
        column: None,
        key: record.key.map(text_of),
        position: None,
        topic: record.topic.to_owned(),
        partition: record.partition,
        offset: record.offset,
        error: error.to_string(),
        payload: record.value.map(text_of),
        attempt: 1,
    }
}

/// Values that their columns cannot hold, and rows that cannot be applied.
pub fn of_reduction(
    id: &TableId,
    table: &str,
    topic: &str,
    reduction: &Reduction,
    places: &[Places],
) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    for (aligned, places) in reduction.batches.iter().zip(places) {
        let batch = aligned.batch();
        let letter = |row: usize, column: Option<String>, error: String, payload: Option<String>| {
            let (partition, offset) = places.of(row);
            DeadLetter {
                at: now(),
                source: id.source.clone(),
                table: table.to_owned(),
                column,
                key: Some(key_json(batch, row)),
                position: Some(position(batch, row)),
                topic: topic.to_owned(),
                partition,
                offset,
                error,
                payload,
                attempt: 1,
            }
        };
        let misfits = batch.misfits();
        if !misfits.is_empty() {
            for row in 0..batch.num_rows() {
                // The old row's values are in the lake already, as far as they can be.
                for (_, column, text) in misfits.of(row).filter(|(side, ..)| *side == b'a') {
                    let column = batch.table().columns.get(column);
                    let error = format!("a value that {} cannot hold", column.map_or("the column", |c| &c.source_type));
                    letters.push(letter(row, column.map(|c| c.name.clone()), error, Some(text.to_owned())));
                }
            }
        }
        for (row, kind) in aligned.kinds().iter().enumerate() {
            if let Kind::Refused(reason) = kind {
                letters.push(letter(row, None, (*reason).to_owned(), Some(row_json(batch, row))));
            }
        }
    }
    letters
}

/// Values that the source left out and that no row is there to take from, by batch, row and name of the column.
pub fn of_left_out(
    id: &TableId,
    table: &str,
    topic: &str,
    reduction: &Reduction,
    places: &[Places],
    nowhere: impl Iterator<Item = (u32, u32, String)>,
) -> Vec<DeadLetter> {
    let letter = |(batch, row, column): (u32, u32, String)| {
        let (batch, places) = (reduction.batches.get(batch as usize)?.batch(), places.get(batch as usize)?);
        let row = row as usize;
        let (partition, offset) = places.of(row);
        Some(DeadLetter {
            at: now(),
            source: id.source.clone(),
            table: table.to_owned(),
            column: Some(column),
            key: Some(key_json(batch, row)),
            position: Some(position(batch, row)),
            topic: topic.to_owned(),
            partition,
            offset,
            error: "the source left this value out, and the lake has no row to take it from".to_owned(),
            payload: None,
            attempt: 1,
        })
    };
    nowhere.filter_map(letter).collect()
}

/// Why a table's changes are not in the lake.
pub enum Refusal {
    /// A record cannot be applied, and such records stop their table: nothing of the commit was written.
    BadRecord(Error),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Writes letters, and that everything below `done` has been judged.
pub async fn write(shared: &Arc<Shared>, letters: Vec<DeadLetter>, done: Ends) -> Result<(), Refusal> {
    let Some(first) = letters.first() else { return Ok(()) };
    if shared.stop_on_bad_record {
        let error = Error::human(format!("a record cannot be applied: {}", first.error))
            .with("table", &first.table)
            .with("topic", &first.topic)
            .with("partition", first.partition)
            .with("offset", first.offset);
        return Err(Refusal::BadRecord(error));
    }
    tracing::warn!(
        table = %first.table, topic = %first.topic, partition = first.partition, offset = first.offset,
        letters = letters.len(), error = %first.error, "writing dead letters"
    );
    metrics::counter!("lakeward_sink_dead_letters_total", "table" => first.table.clone())
        .increment(letters.len() as u64);
    shared.dead_letters.append(&letters, &done).await?;
    lakeward_runtime::crash_point!("sink.dead_letters.written");
    Ok(())
}

fn position(batch: &ChangeBatch, row: usize) -> String {
    let position = batch.positions()[row];
    match batch.table().kind {
        TableKind::Relational => lakeward_event::position::format_lsn(position),
        TableKind::Documents => format!("{}.{}", position >> 32, position & 0xFFFF_FFFF),
    }
}

/// The key as a JSON object, from the side of the row that has it.
pub(crate) fn key_json(batch: &ChangeBatch, row: usize) -> String {
    let key = &batch.table().key;
    let side = if batch.after().is_valid(row) { batch.after() } else { batch.before() };
    json(batch, side, key.iter().copied(), row)
}

fn row_json(batch: &ChangeBatch, row: usize) -> String {
    let side = if batch.after().is_valid(row) { batch.after() } else { batch.before() };
    json(batch, side, 0..batch.table().columns.len(), row)
}

/// Values as text: a dead letter is for a person, and replay reads the record again.
fn json(
    batch: &ChangeBatch,
    side: &arrow::array::StructArray,
    columns: impl Iterator<Item = usize>,
    row: usize,
) -> String {
    let options = FormatOptions::new();
    let mut object = serde_json::Map::new();
    for column in columns {
        let Some(name) = batch.table().columns.get(column).map(|c| c.name.clone()) else { continue };
        let values = side.column(column);
        let text = if side.is_null(row) || values.is_null(row) {
            None
        } else {
            ArrayFormatter::try_new(values, &options).and_then(|f| f.value(row).try_to_string()).ok()
        };
        let value = match text {
            None => serde_json::Value::Null,
            Some(text) if values.data_type().is_integer() => serde_json::from_str(&text).unwrap_or_default(),
            Some(text) => text.into(),
        };
        object.insert(name, value);
    }
    serde_json::Value::Object(object).to_string()
}

/// UTF-8 as it is, anything else as `\\x…`, PostgreSQL's spelling of bytes.
fn text_of(bytes: &[u8]) -> String {
    use std::fmt::Write;
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("\\x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}
