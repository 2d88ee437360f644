//! The `arrow` codec: one record per batch of one table and one partition, as a message of Arrow IPC.
//!
//! `ChangeBatch -> ArrowEncoder -> records -> log -> records -> ArrowDecoder -> ChangeBatch`, exactly the same batch where a
//! topic has one partition; with more, its rows by partition, each with its `sequence`.
//!
//! # Record
//! - **Key**: none. A row's partition is that of its key in the `json` form, whatever the codec; a truncate is in every
//!   partition's batch.
//! - **Value**: one encapsulated IPC message (`0xFFFFFFFF`, length, metadata, body) that holds a record batch, its buffers
//!   compressed with zstd one by one. The schema message is not sent along: it follows from the `TableSchema` of the version
//!   that the header names ([`ChangeBatch::schema`]), and stands in that version's record on `<source>.__schemas` for those who
//!   do not know our types ([`schema_message`]).
//! - **Header** `lakeward`: `arrow,<version>,<columns>`, the batch's columns by name, each followed by a space but the last.
//!   Those that hold nothing but nulls are left out: for a batch of inserts that is `before`, `unchanged`, `patch` and
//!   `misfits`.
//!
//! There are no dictionaries: no column of a `ChangeBatch` has that type, and zstd does their work. A message with one is
//! refused.
//!
//! # Size
//! A record holds at most [`MAX_ROWS`] rows, and at most [`MAX_BATCH_BYTES`] before compression, counted as the reader holds
//! them. The writer splits larger batches (it aims at records of [`SPLIT_BYTES`]); the reader allocates nothing beyond it,
//! whatever a record claims.
//!
//! # Layout
//! - [`encode`], [`view`]: columns to a message
//! - [`decode`], [`arrays`]: a message to columns, trusting none of it

mod arrays;
mod decode;
mod encode;
mod view;

#[cfg(test)]
mod tests;

use arrow::datatypes::{DataType, Schema};
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions, write_message};

use super::MAX_RECORD_BYTES;
use crate::batch::{ChangeBatch, column};
use crate::error::Result;
use crate::schema::TableSchema;

pub use decode::ArrowDecoder;
pub use encode::ArrowEncoder;

/// What the header of each of our records starts with.
pub(super) const NAME: &str = "arrow";

/// Rows of a record, at most.
pub const MAX_ROWS: usize = 65_536;
/// Bytes of a record's columns before compression, at most. The rest up to the largest record is for what surrounds them: 16
/// bytes of metadata and up to 16 of framing per buffer, also where no buffer can be compressed.
pub const MAX_BATCH_BYTES: usize = MAX_RECORD_BYTES - (1 << 20);
/// Bytes before compression at which a batch is split: large enough that metadata and zstd's start cost nothing, small enough
/// that a reader's memory is counted in records.
pub const SPLIT_BYTES: usize = 4 << 20;

/// Columns that every record has.
const REQUIRED: [usize; 3] = [column::OP, column::SEQUENCE, column::POSITION];
/// How many columns a batch has.
const COLUMNS: usize = 10;

/// The schema message of a table's batches, as IPC frames it: what `pyarrow.ipc.read_schema` reads.
pub fn schema_message(table: &TableSchema) -> Result<Vec<u8>> {
    let options = IpcWriteOptions::default();
    let schema = ChangeBatch::schema(table);
    let encoded = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(
        &schema,
        &mut DictionaryTracker::new(true),
        &options,
    );
    let mut message = Vec::new();
    write_message(&mut message, encoded, &options)?;
    Ok(message)
}

/// Bytes of a row of a type but for texts and list elements, a byte for its null bit included.
fn width(ty: &DataType) -> usize {
    1 + match ty {
        DataType::Boolean => 1,
        DataType::Utf8 | DataType::Binary | DataType::List(_) => 4,
        DataType::FixedSizeBinary(bytes) => usize::try_from(*bytes).unwrap_or(0),
        DataType::Struct(fields) => fields.iter().map(|field| width(field.data_type())).sum(),
        fixed => fixed.primitive_width().unwrap_or(0),
    }
}

/// [`width`] of a whole row. Columns that a record leaves out count too: the reader makes them.
fn row_width(schema: &Schema) -> usize {
    schema.fields().iter().map(|field| width(field.data_type())).sum()
}
