//! `records -> ChangeBatch`: each message becomes arrays, which are put together when the batch is asked for.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, new_null_array};
use arrow::compute::concat;
use arrow::datatypes::{SchemaRef, UInt8Type, UInt16Type};
use arrow::ipc;
use zstd::bulk::Decompressor;

use super::arrays::Arrays;
use super::{COLUMNS, MAX_BATCH_BYTES, MAX_ROWS, NAME, REQUIRED, row_width};
use crate::batch::{ChangeBatch, Op, column};
use crate::codec::{Decoder, RecordRef, SchemaSource, find_schema};
use crate::error::{Error, Result};
use crate::schema::TableSchema;

/// Records of a run that are put together early: each array costs a few hundred bytes besides its values.
const RECORDS_PER_CHUNK: usize = 256;
/// Bytes of a run, at most: the offsets of its texts must stay below 2 GiB.
const MAX_RUN_BYTES: usize = 1 << 30;

/// Decoder of the `arrow` codec, for the records of one topic.
pub struct ArrowDecoder {
    schemas: SchemaSource,
    /// Runs of records of one version each; the last one is being filled.
    runs: Vec<Run>,
    decompressor: Decompressor<'static>,
}

/// Some rows' columns; None: nothing but nulls.
type Columns = [Option<ArrayRef>; COLUMNS];

/// Columns of as many rows.
struct Part {
    rows: usize,
    columns: Columns,
}

/// Records of one schema version.
struct Run {
    schema: Arc<TableSchema>,
    arrow: SchemaRef,
    row_width: usize,
    /// Parts that are not put together any more before the end.
    chunks: Vec<Part>,
    records: Vec<Part>,
    rows: usize,
    bytes: usize,
}

impl ArrowDecoder {
    pub fn new(schemas: SchemaSource) -> Result<Self> {
        let decompressor =
            Decompressor::new().map_err(|error| Error::inconsistent("zstd", format!("decompressor: {error}")))?;
        Ok(Self { schemas, runs: Vec::new(), decompressor })
    }
}

impl Decoder for ArrowDecoder {
    fn push(&mut self, record: &RecordRef<'_>) -> Result<()> {
        let Some(value) = record.value else { return Ok(()) };
        let malformed = |reason: String| record.malformed(reason);
        let header = record.header.ok_or_else(|| malformed("it has no header `lakeward`".into()))?;
        let (version, columns) = header_parts(header)
            .ok_or_else(|| malformed(format!("header `{}` is not of this codec", String::from_utf8_lossy(header))))?;
        let run = match self.runs.last_mut() {
            Some(run) if run.schema.version == version && run.bytes < MAX_RUN_BYTES => run,
            _ => {
                let run = Run::new(find_schema(&self.schemas, version).map_err(malformed)?);
                self.runs.push(run);
                let Some(run) = self.runs.last_mut() else { return Ok(()) };
                run
            }
        };
        let taken = run.read(value, columns, &mut self.decompressor);
        let taken = taken.and_then(|(part, bytes)| run.take(part, bytes).map_err(|error| error.to_string()));
        if run.rows == 0 {
            self.runs.pop();
        }
        taken.map_err(malformed)
    }

    fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.rows).sum()
    }

    fn flush(&mut self) -> Result<Vec<ChangeBatch>> {
        self.runs.drain(..).map(Run::finish).collect()
    }
}

/// Version and columns that a header names.
fn header_parts(header: &[u8]) -> Option<(u32, &str)> {
    let (version, columns) =
        std::str::from_utf8(header).ok()?.strip_prefix(NAME)?.strip_prefix(',')?.split_once(',')?;
    Some((version.parse().ok()?, columns))
}

impl Run {
    fn new(schema: Arc<TableSchema>) -> Self {
        let arrow = ChangeBatch::schema(&schema);
        let row_width = row_width(&arrow);
        Self { schema, arrow, row_width, chunks: Vec::new(), records: Vec::new(), rows: 0, bytes: 0 }
    }

    /// The columns of one message, and the bytes that they hold. Changes nothing.
    fn read(
        &self,
        message: &[u8],
        columns: &str,
        decompressor: &mut Decompressor<'static>,
    ) -> Result<(Part, usize), String> {
        let names = self.present(columns)?;
        let (metadata, body) = split(message).ok_or("not an encapsulated message")?;
        let message = ipc::root_as_message(metadata).map_err(|error| format!("metadata: {error}"))?;
        if message.version() != ipc::MetadataVersion::V5 {
            return Err(format!("metadata version {:?}", message.version()));
        }
        let Some(batch) = message.header_as_record_batch() else {
            return Err(format!("a message of type {:?} where a record batch must be", message.header_type()));
        };
        if usize::try_from(message.bodyLength()) != Ok(body.len()) {
            return Err(format!("a body of {} bytes where {} were announced", body.len(), message.bodyLength()));
        }
        let is_compressed = match batch.compression() {
            None => false,
            Some(c) if c.codec() == ipc::CompressionType::ZSTD && c.method() == ipc::BodyCompressionMethod::BUFFER => {
                true
            }
            Some(other) => return Err(format!("compression {:?}", other.codec())),
        };
        let rows = usize::try_from(batch.length()).ok().filter(|rows| (1..=MAX_ROWS).contains(rows));
        let rows = rows.ok_or_else(|| format!("{} rows", batch.length()))?;
        let mut arrays = Arrays {
            nodes: batch.nodes().into_iter().flatten(),
            buffers: batch.buffers().into_iter().flatten(),
            body,
            is_compressed,
            budget: MAX_BATCH_BYTES,
            decompressor,
        };
        arrays.charge(rows.saturating_mul(self.row_width))?;
        let mut columns = Columns::default();
        for (i, column) in columns.iter_mut().enumerate().filter(|(i, _)| names & 1 << i != 0) {
            *column = Some(arrays.next(self.arrow.field(i), rows)?);
        }
        let bytes = MAX_BATCH_BYTES - arrays.budget;
        arrays.end()?;
        self.check(&columns)?;
        Ok((Part { rows, columns }, bytes))
    }

    /// Bits of the columns that a header names.
    fn present(&self, columns: &str) -> Result<u16, String> {
        let mut bits = 0u16;
        for name in columns.split(' ') {
            let index = self.arrow.index_of(name).map_err(|_| format!("its header names a column `{name}`"))?;
            if bits >> index != 0 {
                return Err("its header names columns twice or in another order".into());
            }
            bits |= 1 << index;
        }
        match REQUIRED.into_iter().find(|i| bits & 1 << i == 0) {
            Some(missing) => Err(format!("no column `{}`", self.arrow.field(missing).name())),
            None => Ok(bits),
        }
    }

    /// What types do not say.
    fn check(&self, columns: &Columns) -> Result<(), String> {
        let ops = columns[column::OP].as_ref().map(|ops| ops.as_primitive::<UInt8Type>().values());
        if let Some(bad) = ops.into_iter().flatten().find(|op| Op::from_u8(**op).is_none()) {
            return Err(format!("unknown op {bad}"));
        }
        let Some(misfits) = &columns[column::MISFITS] else { return Ok(()) };
        let misfits = misfits.as_list::<i32>().values().as_struct();
        let sides = misfits.column(0).as_primitive::<UInt8Type>().values();
        if sides.iter().any(|side| !matches!(side, b'a' | b'b')) {
            return Err("a misfit of neither side".into());
        }
        let of = misfits.column(1).as_primitive::<UInt16Type>().values();
        if of.iter().any(|column| usize::from(*column) >= self.schema.columns.len()) {
            return Err("a misfit of a column that the schema does not have".into());
        }
        Ok(())
    }

    fn take(&mut self, part: Part, bytes: usize) -> Result<()> {
        if self.records.len() == RECORDS_PER_CHUNK {
            let chunk = join(&self.arrow, &self.records)?;
            self.records.clear();
            self.chunks.push(chunk);
        }
        self.rows += part.rows;
        self.bytes += bytes;
        self.records.push(part);
        Ok(())
    }

    fn finish(mut self) -> Result<ChangeBatch> {
        self.chunks.append(&mut self.records);
        let Part { rows, columns } = join(&self.arrow, &self.chunks)?;
        let null = |i: usize| new_null_array(self.arrow.field(i).data_type(), rows);
        let columns = columns.into_iter().enumerate().map(|(i, column)| column.unwrap_or_else(|| null(i)));
        ChangeBatch::from_record_batch(self.schema, RecordBatch::try_new(self.arrow.clone(), columns.collect())?)
    }
}

/// Metadata and body of an encapsulated message.
fn split(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = message.strip_prefix(&[0xFF; 4])?.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(i32::from_le_bytes(*length)).ok()?)
}

/// The rows of all parts, in their order.
fn join(schema: &SchemaRef, parts: &[Part]) -> Result<Part> {
    let rows = parts.iter().map(|part| part.rows).sum();
    let mut columns = Columns::default();
    for (i, column) in columns.iter_mut().enumerate() {
        if parts.iter().all(|part| part.columns[i].is_none()) {
            continue;
        }
        let ty = schema.field(i).data_type();
        let arrays: Vec<ArrayRef> =
            parts.iter().map(|p| p.columns[i].clone().unwrap_or_else(|| new_null_array(ty, p.rows))).collect();
        *column = Some(match arrays.as_slice() {
            [one] => one.clone(),
            _ => concat(&arrays.iter().map(|array| array.as_ref() as &dyn Array).collect::<Vec<_>>())?,
        });
    }
    Ok(Part { rows, columns })
}
