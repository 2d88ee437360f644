//! `ChangeBatch -> records`: schemas are registered when a table's version is first seen, and what does not depend on a row is
//! bytes from then on; the rest goes from the arrays into the block's buffer.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::Array;

use super::cells::{NULL, PRESENT, write};
use super::wire::{MAGIC, PREFIX, write_bytes, write_long};
use super::{NAME, documents, names, schema};
use crate::batch::{ChangeBatch, Op};
use crate::codec::json::connect::{UNAVAILABLE_UUID, reads_back};
use crate::codec::json::encode::{Rows, Side, is_unchanged, wall_clock};
use crate::codec::json::{JsonEncoder, UNAVAILABLE, text};
use crate::codec::registry::SchemaRegistry;
use crate::codec::{Encoder, RecordBlock};
use crate::error::Result;
use crate::names::topic;
use crate::schema::{TableId, TableKind, TableSchema};
use crate::types::LogicalType;

/// Encoder of the `avro` codec. One serves all tables of a source.
pub struct AvroEncoder {
    registry: Arc<dyn SchemaRegistry>,
    /// `source.db` of PostgreSQL's records; empty: the source's name.
    database: String,
    /// Wall clock in milliseconds since 1970, for the envelope's `ts_ms`.
    clock: fn() -> i64,
    /// Knows keys, partitions and headers.
    json: JsonEncoder,
    layouts: HashMap<TableId, Arc<Layout>>,
    scratch: Vec<u8>,
}

/// The bytes that are the same in every record of a table under one schema version.
struct Layout {
    schema: Arc<TableSchema>,
    /// What a key starts with; None: the table has no key.
    key: Option<[u8; PREFIX]>,
    value: [u8; PREFIX],
    /// `source` up to its name.
    source: Vec<u8>,
    /// `source` from the database to the table.
    source_names: Vec<u8>,
    /// Per column, what an unchanged value is written as.
    unavailable: Vec<Vec<u8>>,
}

impl AvroEncoder {
    /// An encoder that registers its schemas here.
    pub fn new(registry: Arc<dyn SchemaRegistry>) -> Self {
        Self {
            registry,
            database: String::new(),
            clock: wall_clock,
            json: JsonEncoder::default(),
            layouts: HashMap::new(),
            scratch: Vec::new(),
        }
    }

    /// Writes `database` as `source.db` of PostgreSQL's records (MongoDB's name their own).
    pub fn with_database(self, database: impl Into<String>) -> Self {
        Self { database: database.into(), ..self }
    }

    /// Takes the envelope's `ts_ms` from `clock` (milliseconds since 1970).
    pub fn with_clock(self, clock: fn() -> i64) -> Self {
        Self { clock, ..self }
    }

    fn layout(&mut self, schema: &Arc<TableSchema>) -> Result<Arc<Layout>> {
        if let Some(layout) = self.layouts.get(&schema.table)
            && (Arc::ptr_eq(&layout.schema, schema) || layout.schema == *schema)
        {
            return Ok(layout.clone());
        }
        let layout = Arc::new(Layout::new(schema.clone(), &self.database, self.registry.as_ref())?);
        self.layouts.insert(schema.table.clone(), layout.clone());
        Ok(layout)
    }
}

impl Layout {
    fn new(table: Arc<TableSchema>, database: &str, registry: &dyn SchemaRegistry) -> Result<Self> {
        let topic = topic(&table.table);
        let prefix = |id: u32| {
            let [a, b, c, d] = id.to_be_bytes();
            [MAGIC, a, b, c, d]
        };
        let key = match schema::key(&table) {
            Some(key) => Some(prefix(registry.register(&names::key_subject(&topic), &key)?)),
            None => None,
        };
        let value = prefix(registry.register(&names::value_subject(&topic), &schema::value(&table))?);
        let texts = |texts: &[&str]| {
            let mut out = Vec::new();
            texts.iter().for_each(|text| write_bytes(&mut out, text.as_bytes()));
            out
        };
        let TableId { source, schema: namespace, name } = &table.table;
        let (connector, source_names) = match table.kind {
            TableKind::Relational => {
                ("postgresql", texts(&[if database.is_empty() { source } else { database }, namespace, name]))
            }
            TableKind::Documents => ("mongodb", texts(&[namespace, name])),
        };
        Ok(Self {
            key,
            value,
            source: texts(&[env!("CARGO_PKG_VERSION"), connector, source]),
            source_names,
            unavailable: table.columns.iter().map(|column| unavailable(&column.ty)).collect(),
            schema: table,
        })
    }
}

/// What a column that the source left out is written as: Debezium's forms, where the type has room for them, else null.
fn unavailable(ty: &LogicalType) -> Vec<u8> {
    let mut out = vec![PRESENT];
    match ty {
        LogicalType::String | LogicalType::Json | LogicalType::Binary => write_bytes(&mut out, UNAVAILABLE.as_bytes()),
        LogicalType::List(element) => {
            let number: Option<fn(u8, &mut Vec<u8>)> = match **element {
                LogicalType::Int
                | LogicalType::Long
                | LogicalType::Date
                | LogicalType::Timestamp
                | LogicalType::TimestampTz => Some(|byte, out| write_long(out, byte.into())),
                LogicalType::Float => Some(|byte, out| out.extend_from_slice(&f32::from(byte).to_le_bytes())),
                LogicalType::Double => Some(|byte, out| out.extend_from_slice(&f64::from(byte).to_le_bytes())),
                _ => None,
            };
            match (number, &**element) {
                // The text's bytes, as numbers.
                (Some(write), _) => {
                    write_long(&mut out, UNAVAILABLE.len() as i64);
                    for byte in UNAVAILABLE.bytes() {
                        out.push(PRESENT);
                        write(byte, &mut out);
                    }
                }
                (None, LogicalType::Uuid) => {
                    write_long(&mut out, 1);
                    out.push(PRESENT);
                    write_bytes(&mut out, UNAVAILABLE_UUID.as_bytes());
                }
                (None, LogicalType::String | LogicalType::Json | LogicalType::Binary) => {
                    write_long(&mut out, 1);
                    out.extend_from_slice(&unavailable(element));
                }
                _ => return vec![NULL],
            }
            out.push(0);
        }
        _ => return vec![NULL],
    }
    out
}

impl Encoder for AvroEncoder {
    fn encode(&mut self, batch: &ChangeBatch, partitions: i32, out: &mut RecordBlock) -> Result<()> {
        let layout = self.layout(batch.table())?;
        let text = self.json.layout(batch.table());
        let rows = Rows::new(&text, batch, 0)?;
        let encoding = Encoding { layout: &layout, rows, batch, partitions, now: (self.clock)() };
        for row in 0..batch.num_rows() {
            encoding.encode(row, &mut self.scratch, out)?;
        }
        Ok(())
    }
}

/// A batch being encoded.
struct Encoding<'a> {
    layout: &'a Layout,
    rows: Rows<'a>,
    batch: &'a ChangeBatch,
    partitions: i32,
    now: i64,
}

impl Encoding<'_> {
    fn encode(&self, row: usize, scratch: &mut Vec<u8>, block: &mut RecordBlock) -> Result<()> {
        let op = self.batch.ops()[row];
        let partition = match self.partitions {
            ..=1 if op != Op::Truncate as u8 => Some(0),
            partitions => self.rows.partition(row, partitions, scratch),
        };
        let out = block.buffer();
        let start = out.len();
        let key = self.write_key(row, op, out);
        let value_start = out.len();
        let patch_written = self.write_value(row, op, out);
        let value = value_start..out.len();
        let patch = self.batch.patch();
        let patch = (!patch_written && patch.is_valid(row)).then(|| patch.value(row));
        out.extend_from_slice(NAME.as_bytes());
        out.push(b',');
        self.rows.write_header(row, op, patch, reads_back, out)?;
        let header = value.end..out.len();
        if let Some(partition) = partition {
            return block.push_written(partition, start, key, Some(value), Some(header));
        }
        block.push_written(0, start, None, Some(value.clone()), Some(header.clone()))?;
        for partition in 1..self.partitions {
            let out = block.buffer();
            let again = out.len();
            out.extend_from_within(start..header.end);
            let shift = |range: &Range<usize>| range.start - start + again..range.end - start + again;
            block.push_written(partition, again, None, Some(shift(&value)), Some(shift(&header)))?;
        }
        Ok(())
    }

    fn write_key(&self, row: usize, op: u8, out: &mut Vec<u8>) -> Option<Range<usize>> {
        let key = self.rows.key_of(row, op)?;
        let start = out.len();
        out.extend_from_slice(self.layout.key.as_ref()?);
        if self.layout.schema.kind == TableKind::Documents {
            let side = if key.is_before(0) { &self.rows.before } else { &self.rows.after };
            write_optional(side.cells[0].text(row), out, |out, id| documents::write_id(id, out));
            return Some(start..out.len());
        }
        for column in &self.layout.schema.key {
            let side = if key.is_before(*column) { &self.rows.before } else { &self.rows.after };
            write(&side.cells[*column], row, out);
        }
        Some(start..out.len())
    }

    /// Writes the envelope; the answer is whether the patch is in it.
    fn write_value(&self, row: usize, op: u8, out: &mut Vec<u8>) -> bool {
        let (batch, layout) = (self.batch, self.layout);
        let relational = layout.schema.kind == TableKind::Relational;
        out.extend_from_slice(&layout.value);
        self.write_side(&self.rows.before, row, None, out);
        self.write_side(&self.rows.after, row, self.rows.unchanged(row), out);
        if !relational {
            let patch = batch.patch();
            let patch = patch.is_valid(row).then(|| patch.value(row));
            match patch {
                Some(patch) => documents::write_update_description(patch, out),
                None => out.push(NULL),
            }
            write_optional(patch.map(str::as_bytes), out, write_bytes);
        }
        out.extend_from_slice(&layout.source);
        let commit_ts = batch.commit_ts();
        let micros = commit_ts.is_valid(row).then(|| commit_ts.value(row));
        write_optional(micros.map(|micros| micros.div_euclid(1000)), out, write_long);
        write_optional(micros, out, write_long);
        let snapshot = op == Op::Read as u8;
        write_bytes(out, if snapshot { b"true" } else { b"false" });
        out.extend_from_slice(&layout.source_names);
        let tx = batch.tx();
        let tx = tx.is_valid(row).then(|| tx.value(row));
        let position = batch.positions()[row];
        if relational {
            // Both have 64 bits, and the highest is never set by a server.
            write_optional(tx.map(|xid| xid as i64), out, write_long);
            write_optional(Some(position as i64), out, write_long);
        } else {
            write_optional(tx, out, |out, hash| {
                write_long(out, 16);
                text::write_hex(out, &hash.to_be_bytes());
            });
            write_optional(Some((position >> 32) as i64), out, write_long);
            write_optional(Some((position & 0xFFFF_FFFF) as i64), out, write_long);
        }
        // transaction
        out.push(NULL);
        write_bytes(out, &[op]);
        write_optional(Some(self.now), out, write_long);
        !relational
    }

    fn write_side(&self, side: &Side<'_>, row: usize, unchanged: Option<&[u8]>, out: &mut Vec<u8>) {
        if !side.has(row) {
            out.push(NULL);
        } else if self.layout.schema.kind == TableKind::Documents {
            write(&side.cells[1], row, out);
        } else {
            out.push(PRESENT);
            for (column, cells) in side.cells.iter().enumerate() {
                if unchanged.is_some() && is_unchanged(unchanged, column) {
                    out.extend_from_slice(&self.layout.unavailable[column]);
                } else {
                    write(cells, row, out);
                }
            }
        }
    }
}

fn write_optional<T>(value: Option<T>, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        None => out.push(NULL),
        Some(value) => {
            out.push(PRESENT);
            write(out, value);
        }
    }
}
