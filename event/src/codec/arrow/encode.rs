//! `ChangeBatch -> records`: rows are dealt to partitions, and each partition's rows become one message, or several where they
//! are large.

use arrow::array::Array;
use arrow::ipc;
use flatbuffers::FlatBufferBuilder;

use super::view::{ALIGNMENT, Body, Pick, View};
use super::{COLUMNS, MAX_BATCH_BYTES, MAX_ROWS, NAME, REQUIRED, SPLIT_BYTES, row_width};
use crate::batch::{ChangeBatch, Op};
use crate::codec::json::JsonEncoder;
use crate::codec::{Encoder, RecordBlock};
use crate::error::{Error, Result};

/// Encoder of the `arrow` codec. One serves all tables of a source.
pub struct ArrowEncoder {
    /// Knows the partition of a row.
    keys: JsonEncoder,
    /// Rows of the batch by partition.
    dealt: Vec<Vec<u32>>,
    message: Message,
}

/// What a message is written with, used again.
struct Message {
    body: Body,
    metadata: FlatBufferBuilder<'static>,
}

/// A batch being encoded.
struct Batch<'a> {
    batch: &'a ChangeBatch,
    views: Vec<View<'a>>,
    header: String,
    row_width: usize,
    /// One row of the largest could not fill a record: sizes need not be counted row by row.
    small: bool,
}

impl ArrowEncoder {
    /// Fails only where zstd cannot be set up.
    pub fn new() -> Result<Self> {
        let message = Message { body: Body::new()?, metadata: FlatBufferBuilder::new() };
        Ok(Self { keys: JsonEncoder::default(), dealt: Vec::new(), message })
    }
}

impl Encoder for ArrowEncoder {
    fn encode(&mut self, batch: &ChangeBatch, partitions: i32, out: &mut RecordBlock) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let encoding = Batch::new(batch)?;
        if partitions <= 1 {
            if let Some(bad) = batch.ops().iter().find(|letter| Op::from_u8(**letter).is_none()) {
                return Err(Error::inconsistent(format!("batch of {}", batch.table().table), format!("op {bad}")));
            }
            return encoding.records(0, Pick::Range(0..batch.num_rows()), &mut self.message, out);
        }
        self.dealt.iter_mut().for_each(Vec::clear);
        self.dealt.resize_with(partitions as usize, Vec::new);
        let dealt = &mut self.dealt;
        self.keys.partitions_of(batch, partitions, |row, partition| match partition {
            Some(partition) => dealt[partition as usize].push(row as u32),
            None => dealt.iter_mut().for_each(|rows| rows.push(row as u32)),
        })?;
        for (partition, rows) in (0..).zip(&self.dealt) {
            if !rows.is_empty() {
                encoding.records(partition, Pick::rows(rows), &mut self.message, out)?;
            }
        }
        Ok(())
    }
}

impl<'a> Batch<'a> {
    fn new(batch: &'a ChangeBatch) -> Result<Self> {
        let columns = batch.record_batch().columns();
        let schema = batch.record_batch().schema_ref();
        let mut header = format!("{NAME},{},", batch.table().version);
        let mut views = Vec::with_capacity(COLUMNS);
        for (i, column) in columns.iter().enumerate() {
            if REQUIRED.contains(&i) || column.null_count() < column.len() {
                if !views.is_empty() {
                    header.push(' ');
                }
                header.push_str(schema.field(i).name());
                views.push(View::new(column)?);
            }
        }
        let mut this = Self { batch, views, header, row_width: row_width(schema), small: true };
        this.small = this.bytes(&Pick::Range(0..batch.num_rows())) <= SPLIT_BYTES;
        Ok(this)
    }

    /// What the reader will hold of these rows.
    fn bytes(&self, pick: &Pick<'_>) -> usize {
        pick.len() * self.row_width + self.views.iter().map(|view| view.variable_bytes(pick)).sum::<usize>()
    }

    /// Makes as many records of the rows as their size asks for.
    fn records(&self, partition: i32, pick: Pick<'_>, message: &mut Message, out: &mut RecordBlock) -> Result<()> {
        let bytes = if self.small { 0 } else { self.bytes(&pick) };
        if pick.len() > 1 && (bytes > SPLIT_BYTES || pick.len() > MAX_ROWS) {
            let [front, back] = pick.halves();
            self.records(partition, front, message, out)?;
            return self.records(partition, back, message, out);
        }
        if bytes > MAX_BATCH_BYTES {
            return Err(Error::Unsupported(format!(
                "a row of {} has {bytes} bytes, and a record takes at most {MAX_BATCH_BYTES}: exclude the table, or keep \
                 such values elsewhere",
                self.batch.table().table
            )));
        }
        let buffer = out.buffer();
        let start = buffer.len();
        message.write(&self.views, &pick, buffer);
        let value = start..buffer.len();
        buffer.extend_from_slice(self.header.as_bytes());
        let header = value.end..buffer.len();
        out.push_written(partition, start, None, Some(value), Some(header))
    }
}

impl Message {
    /// Appends one encapsulated message with a record batch of these rows.
    fn write(&mut self, views: &[View<'_>], pick: &Pick<'_>, out: &mut Vec<u8>) {
        self.body.clear();
        for view in views {
            self.body.write(view, pick);
        }
        let metadata = &mut self.metadata;
        metadata.reset();
        let buffers = metadata.create_vector(&self.body.buffers);
        let nodes = metadata.create_vector(&self.body.nodes);
        let mut compression = ipc::BodyCompressionBuilder::new(metadata);
        compression.add_codec(ipc::CompressionType::ZSTD);
        compression.add_method(ipc::BodyCompressionMethod::BUFFER);
        let compression = compression.finish();
        let mut batch = ipc::RecordBatchBuilder::new(metadata);
        batch.add_length(pick.len() as i64);
        batch.add_nodes(nodes);
        batch.add_buffers(buffers);
        batch.add_compression(compression);
        let batch = batch.finish().as_union_value();
        let mut message = ipc::MessageBuilder::new(metadata);
        message.add_version(ipc::MetadataVersion::V5);
        message.add_header_type(ipc::MessageHeader::RecordBatch);
        message.add_bodyLength(self.body.bytes.len() as i64);
        message.add_header(batch);
        let message = message.finish();
        metadata.finish(message, None);
        let metadata = metadata.finished_data();
        // The body starts at a multiple of the alignment, counted from the message's first byte.
        let padded = (8 + metadata.len()).next_multiple_of(ALIGNMENT) - 8;
        out.extend_from_slice(&[0xFF; 4]);
        out.extend_from_slice(&(padded as u32).to_le_bytes());
        out.extend_from_slice(metadata);
        out.resize(out.len() + padded - metadata.len(), 0);
        out.extend_from_slice(&self.body.bytes);
    }
}
