//! `ChangeBatch -> records`: everything that does not depend on a row is text beforehand, and the rest goes from the arrays
//! into the block's buffer.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::{Array, StructArray};

use super::cells::Cells;
use super::connect::{self, Schemas};
use super::header::{Rest, RowId};
use super::text;
use crate::batch::{ChangeBatch, Op};
use crate::codec::{Encoder, RecordBlock};
use crate::error::{Error, Result};
use crate::partition::partition;
use crate::schema::{TableId, TableKind, TableSchema};

/// Encoder of the `json` codec. One serves all tables of a source.
#[derive(Debug)]
pub struct JsonEncoder {
    /// `source.db` of PostgreSQL's records; empty: the source's name.
    database: String,
    /// Whether each key and value carries its schema.
    inline_schemas: bool,
    /// Wall clock in milliseconds since 1970, for the envelope's `ts_ms`.
    clock: fn() -> i64,
    layouts: HashMap<TableId, Arc<Layout>>,
}

/// The text that is the same in every record of a table under one schema version.
#[derive(Debug)]
pub(in crate::codec) struct Layout {
    schema: Arc<TableSchema>,
    /// `"name":` per column, from the second on with a comma before it.
    columns: Vec<Vec<u8>>,
    /// Per column, what an unchanged value is written as.
    unavailable: Vec<Vec<u8>>,
    /// The same as `columns` for the key's columns, in key order.
    key: Vec<Vec<u8>>,
    /// From the comma after `after` to `ts_ms` of `source`.
    source: Vec<u8>,
    /// From `snapshot`'s comma to the row's own last fields.
    source_names: Vec<u8>,
    /// `version,` of the header.
    header: Vec<u8>,
    /// What stands before key and value where they carry their schema; then `}` ends them.
    schemas: Option<Schemas>,
}

impl Default for JsonEncoder {
    fn default() -> Self {
        Self { database: String::new(), inline_schemas: false, clock: wall_clock, layouts: HashMap::new() }
    }
}

pub(in crate::codec) fn wall_clock() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

impl JsonEncoder {
    /// An encoder that writes `database` as `source.db` of PostgreSQL's records (MongoDB's name their own).
    pub fn with_database(database: impl Into<String>) -> Self {
        Self { database: database.into(), ..Self::default() }
    }

    /// Writes each key and value as `{"schema":…,"payload":…}`, as Kafka Connect's JsonConverter does with `schemas.enable`.
    pub fn with_inline_schemas(self, inline_schemas: bool) -> Self {
        Self { inline_schemas, ..self }
    }

    /// Takes the envelope's `ts_ms` from `clock` (milliseconds since 1970).
    pub fn with_clock(self, clock: fn() -> i64) -> Self {
        Self { clock, ..self }
    }

    pub(in crate::codec) fn layout(&mut self, schema: &Arc<TableSchema>) -> Arc<Layout> {
        if let Some(layout) = self.layouts.get(&schema.table)
            && (Arc::ptr_eq(&layout.schema, schema) || layout.schema == *schema)
        {
            return layout.clone();
        }
        let layout = Arc::new(Layout::new(schema.clone(), &self.database, self.inline_schemas));
        self.layouts.insert(schema.table.clone(), layout.clone());
        layout
    }
}

impl Layout {
    fn new(schema: Arc<TableSchema>, database: &str, inline_schemas: bool) -> Self {
        let field = |i: usize, name: &str| {
            let mut text = if i == 0 { Vec::new() } else { vec![b','] };
            text::write_string(&mut text, name);
            text.push(b':');
            text
        };
        let quoted = |text: &str| {
            let mut out = Vec::new();
            text::write_string(&mut out, text);
            String::from_utf8_lossy(&out).into_owned()
        };
        let columns = schema.columns.iter().enumerate().map(|(i, column)| field(i, &column.name)).collect();
        let unavailable = schema.columns.iter().map(|column| connect::unavailable(&column.ty)).collect();
        let key = match schema.kind {
            TableKind::Relational => {
                schema.key.iter().enumerate().map(|(i, column)| field(i, &schema.columns[*column].name)).collect()
            }
            TableKind::Documents => vec![field(0, "id")],
        };
        let connector = match schema.kind {
            TableKind::Relational => "postgresql",
            TableKind::Documents => "mongodb",
        };
        let table = &schema.table;
        let source = format!(
            ",\"source\":{{\"version\":\"{}\",\"connector\":\"{connector}\",\"name\":{},\"ts_ms\":",
            env!("CARGO_PKG_VERSION"),
            quoted(&table.source)
        );
        let source_names = match schema.kind {
            TableKind::Relational => format!(
                ",\"db\":{},\"schema\":{},\"table\":{},\"txId\":",
                quoted(if database.is_empty() { &table.source } else { database }),
                quoted(&table.schema),
                quoted(&table.name)
            ),
            TableKind::Documents => {
                format!(",\"db\":{},\"collection\":{},\"txId\":", quoted(&table.schema), quoted(&table.name))
            }
        };
        let header = format!("{},", schema.version).into_bytes();
        Self {
            columns,
            unavailable,
            key,
            source: source.into_bytes(),
            source_names: source_names.into_bytes(),
            header,
            schemas: inline_schemas.then(|| Schemas::new(&schema)),
            schema,
        }
    }
}

/// One side (`after` or `before`) of the batch's rows.
pub(in crate::codec) struct Side<'a> {
    rows: &'a StructArray,
    pub cells: Vec<Cells<'a>>,
}

impl<'a> Side<'a> {
    fn new(rows: &'a StructArray, schema: &'a TableSchema) -> Self {
        Self { rows, cells: Cells::of_rows(rows, schema.columns.iter().map(|column| &column.ty)) }
    }
    pub fn has(&self, row: usize) -> bool {
        self.rows.is_valid(row)
    }
}

/// Whether the bitmap names the column.
pub(in crate::codec) fn is_unchanged(bitmap: Option<&[u8]>, column: usize) -> bool {
    bitmap.is_some_and(|bits| bits.get(column / 8).is_some_and(|byte| byte >> (column % 8) & 1 == 1))
}

impl Encoder for JsonEncoder {
    fn encode(&mut self, batch: &ChangeBatch, partitions: i32, out: &mut RecordBlock) -> Result<()> {
        let layout = self.layout(batch.table());
        let rows = Rows::new(&layout, batch, (self.clock)())?;
        for row in 0..batch.num_rows() {
            rows.encode(row, partitions, out)?;
        }
        Ok(())
    }
}

impl JsonEncoder {
    /// The partition of each row, as [`encode`](Encoder::encode) chooses it; None: all of them (a truncate). Other codecs ask
    /// here, so that a row's partition does not depend on the codec.
    pub(in crate::codec) fn partitions_of(
        &mut self,
        batch: &ChangeBatch,
        partitions: i32,
        mut each: impl FnMut(usize, Option<i32>),
    ) -> Result<()> {
        let layout = self.layout(batch.table());
        let rows = Rows::new(&layout, batch, 0)?;
        let mut text = Vec::new();
        for row in 0..batch.num_rows() {
            each(row, rows.partition(row, partitions, &mut text));
        }
        Ok(())
    }
}

/// A batch being encoded.
pub(in crate::codec) struct Rows<'a> {
    layout: &'a Layout,
    pub after: Side<'a>,
    pub before: Side<'a>,
    batch: &'a ChangeBatch,
    misfits: bool,
    now: i64,
}

/// Whose values a row's key has.
pub(in crate::codec) struct KeyOf<'a> {
    before: bool,
    /// Key columns that the source left out of `after`, where `before` has them.
    unchanged: Option<&'a [u8]>,
}

impl KeyOf<'_> {
    /// Whether the value of a key column is that of `before`.
    pub fn is_before(&self, column: usize) -> bool {
        self.before || is_unchanged(self.unchanged, column)
    }
}

impl<'a> Rows<'a> {
    pub fn new(layout: &'a Layout, batch: &'a ChangeBatch, now: i64) -> Result<Self> {
        if let Some(bad) = batch.ops().iter().find(|letter| Op::from_u8(**letter).is_none()) {
            return Err(Error::inconsistent(format!("batch of {}", layout.schema.table), format!("op {bad}")));
        }
        Ok(Self {
            layout,
            after: Side::new(batch.after(), &layout.schema),
            before: Side::new(batch.before(), &layout.schema),
            batch,
            misfits: !batch.misfits().is_empty(),
            now,
        })
    }

    fn encode(&self, row: usize, partitions: i32, block: &mut RecordBlock) -> Result<()> {
        let op = self.batch.ops()[row];
        let out = block.buffer();
        let start = out.len();
        let schemas = self.layout.schemas.as_ref();
        out.extend_from_slice(schemas.map_or(&[], |schemas| &schemas.key));
        let payload = out.len();
        let mut chosen = None;
        let key = if self.write_key(row, op, out) {
            // Of the key alone, in its one form: no key moves when schemas are switched on or off.
            chosen = Some(partition(&out[payload..], partitions));
            if schemas.is_some() {
                if self.layout.schema.kind == TableKind::Documents {
                    out.truncate(payload);
                    self.write_json_id(row, op, out);
                }
                out.push(b'}');
            }
            Some(start..out.len())
        } else {
            out.truncate(start);
            None
        };
        let value_start = out.len();
        out.extend_from_slice(schemas.map_or(&[], |schemas| &schemas.value));
        let body = self.write_value(row, op, out);
        if schemas.is_some() {
            out.push(b'}');
        }
        let value = value_start..out.len();
        let in_key: fn(&str) -> bool = if schemas.is_some() { connect::reads_back } else { |_| true };
        self.write_header(row, op, None, in_key, out)?;
        let header = value.end..out.len();
        if op == Op::Truncate as u8 {
            let length = out.len() - start;
            block.push_written(0, start, None, Some(value.clone()), Some(header.clone()))?;
            for partition in 1..partitions {
                let out = block.buffer();
                let again = out.len();
                out.extend_from_within(start..start + length);
                let shift = |range: Range<usize>| range.start - start + again..range.end - start + again;
                block.push_written(partition, again, None, Some(shift(value.clone())), Some(shift(header.clone())))?;
            }
            return Ok(());
        }
        // Without a key the row itself decides, so that a row and its deletion meet in one partition.
        let partition = chosen.unwrap_or_else(|| partition(&out[body], partitions));
        block.push_written(partition, start, key, Some(value), Some(header))
    }

    /// The partition of a row, by its key or else by all of it; None: every partition (a truncate). `text` is room to work in.
    pub fn partition(&self, row: usize, partitions: i32, text: &mut Vec<u8>) -> Option<i32> {
        let op = self.batch.ops()[row];
        if op == Op::Truncate as u8 {
            return None;
        }
        text.clear();
        if !self.write_key(row, op, text) {
            let after = self.after.has(row);
            let (side, unchanged) = if after { (&self.after, self.unchanged(row)) } else { (&self.before, None) };
            self.write_side(side, row, unchanged, text);
        }
        Some(partition(text, partitions))
    }

    /// The key is of the row that the change leaves behind; of a delete's old row. None: there is none.
    pub fn key_of(&self, row: usize, op: u8) -> Option<KeyOf<'_>> {
        let schema = &self.layout.schema;
        let deleted = op == Op::Delete as u8 || !self.after.has(row);
        let side = if deleted { &self.before } else { &self.after };
        if schema.key.is_empty() || op == Op::Truncate as u8 || !side.has(row) {
            return None;
        }
        // A key value that the source left out is the old one.
        let old = schema.kind == TableKind::Relational && !deleted && self.before.has(row);
        Some(KeyOf { before: deleted, unchanged: if old { self.unchanged(row) } else { None } })
    }

    /// Writes the key, if there is one.
    fn write_key(&self, row: usize, op: u8, out: &mut Vec<u8>) -> bool {
        let Some(key) = self.key_of(row, op) else { return false };
        out.push(b'{');
        for (name, column) in self.layout.key.iter().zip(&self.layout.schema.key) {
            out.extend_from_slice(name);
            let side = if key.is_before(*column) { &self.before } else { &self.after };
            side.cells[*column].write(row, out);
        }
        out.push(b'}');
        true
    }

    /// The key of a document as Debezium has it: `_id` as JSON in a string.
    fn write_json_id(&self, row: usize, op: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        let is_before = self.key_of(row, op).is_some_and(|key| key.is_before(0));
        let side = if is_before { &self.before } else { &self.after };
        match side.cells[0].text(row) {
            Some(id) => connect::write_json_id(id, out),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }

    /// Bits of the columns that the source left out of `after`.
    pub fn unchanged(&self, row: usize) -> Option<&[u8]> {
        let unchanged = self.batch.unchanged();
        unchanged.is_valid(row).then(|| unchanged.value(row))
    }

    /// Writes the envelope; the answer is where the row itself stands.
    fn write_value(&self, row: usize, op: u8, out: &mut Vec<u8>) -> Range<usize> {
        let relational = self.layout.schema.kind == TableKind::Relational;
        out.extend_from_slice(b"{\"before\":");
        let before = self.write_side(&self.before, row, None, out);
        out.extend_from_slice(b",\"after\":");
        let after = self.write_side(&self.after, row, self.unchanged(row), out);
        let patch = self.batch.patch();
        if patch.is_valid(row) {
            if self.layout.schemas.is_some() {
                out.extend_from_slice(b",\"updateDescription\":");
                connect::write_update_description(patch.value(row), out);
                out.extend_from_slice(b",\"patch\":");
            } else {
                out.extend_from_slice(b",\"updateDescription\":");
            }
            out.extend_from_slice(patch.value(row).as_bytes());
        } else if !relational {
            out.extend_from_slice(b",\"updateDescription\":null");
        }
        out.extend_from_slice(&self.layout.source);
        let commit_ts = self.batch.commit_ts();
        if commit_ts.is_valid(row) {
            let micros = commit_ts.value(row);
            text::write_int(out, micros.div_euclid(1000));
            out.extend_from_slice(b",\"ts_us\":");
            text::write_int(out, micros);
        } else {
            out.extend_from_slice(b"null,\"ts_us\":null");
        }
        let snapshot = op == Op::Read as u8;
        out.extend_from_slice(if snapshot { b",\"snapshot\":\"true\"" } else { b",\"snapshot\":\"false\"" });
        out.extend_from_slice(&self.layout.source_names);
        let tx = self.batch.tx();
        let tx = tx.is_valid(row).then(|| tx.value(row));
        let position = self.batch.positions()[row];
        match tx {
            None => out.extend_from_slice(b"null"),
            Some(xid) if relational => text::write_int(out, xid),
            Some(hash) => {
                out.push(b'"');
                text::write_hex(out, &hash.to_be_bytes());
                out.push(b'"');
            }
        }
        if relational {
            out.extend_from_slice(b",\"lsn\":");
            text::write_int(out, position);
        } else {
            out.extend_from_slice(b",\"clusterTime\":");
            text::write_int(out, position >> 32);
            out.extend_from_slice(b",\"ord\":");
            text::write_int(out, position & 0xFFFF_FFFF);
        }
        out.extend_from_slice(b"},\"transaction\":null,\"op\":\"");
        out.push(op);
        out.extend_from_slice(b"\",\"ts_ms\":");
        text::write_int(out, self.now);
        out.push(b'}');
        if self.after.has(row) { after } else { before }
    }

    fn write_side(&self, side: &Side<'_>, row: usize, unchanged: Option<&[u8]>, out: &mut Vec<u8>) -> Range<usize> {
        let start = out.len();
        if !side.has(row) {
            out.extend_from_slice(b"null");
        } else if self.layout.schema.kind == TableKind::Documents {
            side.cells[1].write(row, out);
        } else {
            out.push(b'{');
            for (column, (name, cells)) in self.layout.columns.iter().zip(&side.cells).enumerate() {
                out.extend_from_slice(name);
                if unchanged.is_some() && is_unchanged(unchanged, column) {
                    out.extend_from_slice(&self.layout.unavailable[column]);
                } else {
                    cells.write(row, out);
                }
            }
            out.push(b'}');
        }
        start..out.len()
    }

    /// Appends the header; with the patch where the record has no place for it, and with ids that its key does not hold as
    /// `in_key` has it.
    pub fn write_header(
        &self,
        row: usize,
        op: u8,
        patch: Option<&str>,
        in_key: fn(&str) -> bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        out.extend_from_slice(&self.layout.header);
        text::write_int(out, self.batch.sequences()[row]);
        let unchanged = self.unchanged(row);
        let misfits: Vec<_> = if self.misfits {
            let misfits = self.batch.misfits();
            misfits.of(row).map(|(side, column, text)| (char::from(side), column as u16, text.to_owned())).collect()
        } else {
            Vec::new()
        };
        let ids = match self.layout.schema.kind {
            TableKind::Documents => self.unusual_ids(row, op, in_key),
            TableKind::Relational => None,
        };
        if unchanged.is_none() && misfits.is_empty() && ids.is_none() && patch.is_none() {
            return Ok(());
        }
        out.push(b',');
        match unchanged {
            Some(bitmap) => text::write_hex(out, bitmap),
            None => out.push(b'-'),
        }
        out.push(b',');
        serde_json::to_writer(&mut *out, &Rest { misfits, ids, patch: patch.map(str::to_owned) })?;
        Ok(())
    }

    /// The ids of both sides, where a reader would not get them from key and `op`.
    fn unusual_ids(&self, row: usize, op: u8, in_key: fn(&str) -> bool) -> Option<[RowId; 2]> {
        let [after, before] = [&self.after, &self.before].map(|side| side.has(row).then(|| side.cells[0].text(row)));
        let expected = implied_sides(op, self.has_document(&self.after, row), self.has_document(&self.before, row));
        let key = match op {
            op if op == Op::Truncate as u8 => None,
            op if op == Op::Delete as u8 || after.is_none() => before,
            _ => after,
        };
        let usual = |side: Option<Option<&str>>, expected: bool| match side {
            None => !expected,
            Some(id) => expected && id.is_some_and(in_key) && Some(id) == key,
        };
        if usual(after, expected.0) && usual(before, expected.1) {
            return None;
        }
        Some([after, before].map(|side| match side {
            None => RowId::Absent(false),
            Some(id) => RowId::Present(id.map(str::to_owned)),
        }))
    }

    fn has_document(&self, side: &Side<'_>, row: usize) -> bool {
        side.has(row) && !side.cells[1].is_null(row)
    }
}

/// Whether a MongoDB change has a row (after, before) by its `op` and the documents that are there: a patch's row is its
/// `_id` alone, and so is a deleted one without a pre-image.
pub(super) fn implied_sides(op: u8, after_document: bool, before_document: bool) -> (bool, bool) {
    let writes = [Op::Create, Op::Update, Op::Read].iter().any(|write| *write as u8 == op);
    (after_document || writes, before_document || op == Op::Delete as u8)
}
