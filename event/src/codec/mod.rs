//! The seam between columns and the log's bytes: `ChangeBatch -> Encoder -> RecordBlock -> log -> RecordRef -> Decoder ->
//! ChangeBatch`.
//!
//! # Layout
//! - [`json`]: a record per change, Debezium's envelope
//! - [`arrow`]: a record per batch of one table and partition, Arrow IPC
//! - [`avro`]: a record per change, Debezium's envelope too, with schemas in a registry
//! - [`any`]: the decoder of a topic, whichever of them wrote its records
//! - [`debezium`]: topics that a Debezium writes; read only
//! - [`registry`]: where schemas are kept that records name by number

pub mod any;
pub mod arrow;
pub mod avro;
pub mod debezium;
pub mod json;
pub mod registry;
#[cfg(test)]
mod samples;

use std::ops::Range;
use std::sync::Arc;

use crate::batch::ChangeBatch;
use crate::error::{Error, Result};
use crate::schema::{TableKind, TableSchema};

/// The largest record, key and header included, that topics of ours take. PostgreSQL values reach 1 GiB, but a row of more
/// than this is a mistake more often than a row; the default of Kafka (1 MiB) is exceeded by ordinary documents.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// The header of every data record of ours. Its form is the codec's business, but it always tells which codec that is: `json`
/// starts with a digit, every other codec with its name and a comma.
pub const HEADER: &str = "lakeward";

/// Turns batches into records. One encoder serves one source; it keeps no state between batches but buffers.
pub trait Encoder: Send {
    /// Appends the batch's rows to `out` as records of a topic with `partitions` partitions. A row's partition is murmur2 of
    /// its key in the `json` form (of the whole row where there is no key); a truncate goes to every partition. The order of
    /// rows is kept within each partition.
    fn encode(&mut self, batch: &ChangeBatch, partitions: i32, out: &mut RecordBlock) -> Result<()>;
}

/// Turns one topic's records into batches. Records of several schema versions end up in several batches.
pub trait Decoder: Send {
    /// Takes one record. On an error the decoder is as it was before: the record is a dead letter and the rest goes on.
    fn push(&mut self, record: &RecordRef<'_>) -> Result<()>;
    /// Rows taken since the last flush.
    fn rows(&self) -> usize;
    /// Everything taken since the last flush, rows in the order of `push`, a batch per run of one schema version.
    fn flush(&mut self) -> Result<Vec<ChangeBatch>>;
}

/// Finds the schema of a version of the decoder's table. None: not known yet; the caller reads `<source>.__schemas` again
/// and offers the record once more.
pub type SchemaSource = Arc<dyn Fn(u32) -> Option<Arc<TableSchema>> + Send + Sync>;

/// The schema that a record names, with columns that a decoder can fill.
fn find_schema(schemas: &SchemaSource, version: u32) -> Result<Arc<TableSchema>, String> {
    let Some(schema) = schemas(version) else { return Err(format!("schema version {version} is not known")) };
    if schema.kind == TableKind::Documents && schema.columns != TableSchema::documents(schema.table.clone()).columns {
        return Err(format!("schema version {version} of a collection has unknown columns"));
    }
    Ok(schema)
}

/// A record as a reader of the log sees it.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<&'a [u8]>,
    /// None: a tombstone.
    pub value: Option<&'a [u8]>,
    /// Value of the header [`HEADER`]; of a record without it, of [`debezium::OLD_KEY`].
    pub header: Option<&'a [u8]>,
}

impl RecordRef<'_> {
    /// Says that the record is not what it claims, and where it is.
    fn malformed(&self, reason: impl Into<String>) -> Error {
        let what = format!("record of {} partition {} offset {}", self.topic, self.partition, self.offset);
        Error::malformed(what, reason)
    }
}

/// Encoded records of one topic, in one buffer.
#[derive(Debug, Default)]
pub struct RecordBlock {
    data: Vec<u8>,
    records: Vec<Span>,
}

#[derive(Debug, Clone)]
struct Span {
    partition: i32,
    /// key `start..key_end`, value `key_end..value_end`, header `value_end..end`
    start: usize,
    key_end: usize,
    value_end: usize,
    end: usize,
    key: bool,
    value: bool,
    header: bool,
}

/// A record of a block.
#[derive(Debug, Clone, Copy)]
pub struct BlockRecord<'a> {
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub header: Option<&'a [u8]>,
}

impl RecordBlock {
    pub fn len(&self) -> usize {
        self.records.len()
    }
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
    /// Bytes of keys, values and headers.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }
    pub fn clear(&mut self) {
        self.data.clear();
        self.records.clear();
    }

    /// Where encoders write; what they have written since becomes a record by [`push_written`](Self::push_written).
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }

    /// Makes a record of the bytes in the buffer from `start` on, which lie as key, value, header; a range of `None` says
    /// the part is absent.
    pub fn push_written(
        &mut self,
        partition: i32,
        start: usize,
        key: Option<Range<usize>>,
        value: Option<Range<usize>>,
        header: Option<Range<usize>>,
    ) -> Result<()> {
        let key_end = key.as_ref().map_or(start, |r| r.end);
        let value_end = value.as_ref().map_or(key_end, |r| r.end);
        let end = header.as_ref().map_or(value_end, |r| r.end);
        let adjoin = key.as_ref().is_none_or(|r| r.start == start)
            && value.as_ref().is_none_or(|r| r.start == key_end)
            && header.as_ref().is_none_or(|r| r.start == value_end);
        if !adjoin || end > self.data.len() || start > key_end || key_end > value_end || value_end > end {
            return Err(Error::inconsistent("record block", "key, value and header must follow each other"));
        }
        self.records.push(Span {
            partition,
            start,
            key_end,
            value_end,
            end,
            key: key.is_some(),
            value: value.is_some(),
            header: header.is_some(),
        });
        Ok(())
    }

    /// Copies a whole record in: for control records and barriers, not for the hot path.
    pub fn push(&mut self, partition: i32, key: Option<&[u8]>, value: Option<&[u8]>, header: Option<&[u8]>) {
        let start = self.data.len();
        for part in [key, value, header].into_iter().flatten() {
            self.data.extend_from_slice(part);
        }
        let key_end = start + key.map_or(0, <[u8]>::len);
        let value_end = key_end + value.map_or(0, <[u8]>::len);
        self.records.push(Span {
            partition,
            start,
            key_end,
            value_end,
            end: self.data.len(),
            key: key.is_some(),
            value: value.is_some(),
            header: header.is_some(),
        });
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = BlockRecord<'_>> {
        self.records.iter().map(|s| BlockRecord {
            partition: s.partition,
            key: s.key.then(|| &self.data[s.start..s.key_end]),
            value: s.value.then(|| &self.data[s.key_end..s.value_end]),
            header: s.header.then(|| &self.data[s.value_end..s.end]),
        })
    }
}
