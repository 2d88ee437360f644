//! Changes of one table to a batch: `Tuple | COPY row -> TableBuilder -> ChangeBatch`.

use std::sync::Arc;

use arrow::array::{NullBufferBuilder, StructArray};
use arrow::datatypes::Fields;
use lakeward_event::batch::MetaRow;
use lakeward_event::{ChangeBatch, ChangeMeta, Error, Op, Result, TableSchema};

use super::catalog::{ReplicaIdentity, TableShape};
use super::pgoutput::{Old, OldKind, Relation, Tuple, Value};
use super::value::{ColumnBuilder, Fit};

/// A row's place in the source, the same for every row of its change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowMeta {
    /// The first row's. A key change makes two rows, the second has `sequence + 1`.
    pub sequence: u64,
    /// LSN of the change.
    pub position: u64,
    pub tx: Option<u64>,
    /// Microseconds since 1970.
    pub commit_ts: Option<i64>,
}

/// Which column of the schema each value of a relation's tuples belongs to. Made once per Relation message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    columns: Vec<usize>,
}

impl Binding {
    /// `None`: the relation is not, or no longer, of this shape (a column added, dropped, renamed or retyped, another key or
    /// replica identity), and the catalog has to be read again. Why is logged at debug.
    pub fn of(relation: &Relation<'_>, shape: &TableShape) -> Option<Self> {
        Self::try_of(relation, shape)
            .inspect_err(|reason| tracing::debug!(table = %shape.schema().table, reason, "relation has another shape"))
            .ok()
    }

    /// Whether values come in the order of the schema, as a server sends them.
    pub fn in_order(&self) -> bool {
        self.columns.is_sorted()
    }

    fn try_of(relation: &Relation<'_>, shape: &TableShape) -> Result<Self, String> {
        let schema = shape.schema();
        if relation.columns.len() != schema.columns.len() {
            return Err(format!("{} columns, not {}", relation.columns.len(), schema.columns.len()));
        }
        if relation.replica_identity != shape.replica_identity().letter() {
            return Err("another replica identity".into());
        }
        // Under the other two the flags say nothing about the key.
        let flags = matches!(shape.replica_identity(), ReplicaIdentity::Default | ReplicaIdentity::Index);
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in &relation.columns {
            let found = schema.columns.iter().position(|c| c.name == column.name);
            let index = found.ok_or_else(|| format!("column {:?} is new", column.name))?;
            if shape.column_oid(index) != Some((column.type_oid, column.type_modifier)) {
                return Err(format!("column {:?} has another type", column.name));
            }
            if flags && column.key != schema.is_key(index) {
                return Err(format!("column {:?} entered or left the key", column.name));
            }
            if columns.contains(&index) {
                return Err(format!("column {:?} twice", column.name));
            }
            columns.push(index);
        }
        Ok(Self { columns })
    }
}

/// Builds batches of one table under one schema version.
///
/// After an error its state is undefined: drop it and go on from the last checkpoint.
pub struct TableBuilder {
    schema: Arc<TableSchema>,
    fields: Fields,
    /// A snapshot selects the column as text.
    copied_as_text: Vec<bool>,
    after: Side,
    before: Side,
    meta: ChangeMeta,
    bytes: usize,
    /// Bitmap of the row at hand, one bit per column.
    unchanged: Vec<u8>,
    scratch: Vec<u8>,
}

/// The parts of a row other than its values, in bytes, for [`TableBuilder::bytes`].
const META_BYTES: usize = 48;

/// The `after` or `before` struct.
struct Side {
    /// How misfits name it.
    letter: u8,
    columns: Vec<ColumnBuilder>,
    nulls: NullBufferBuilder,
    /// Null rows that the columns do not have yet: a side that is never used costs nothing.
    owed: usize,
}

impl Side {
    fn new(letter: u8, shape: &TableShape) -> Self {
        let columns = shape.kinds().map(ColumnBuilder::new).collect();
        Self { letter, columns, nulls: NullBufferBuilder::new(0), owed: 0 }
    }

    fn skip(&mut self) {
        self.owed += 1;
    }

    fn pay(&mut self) {
        if self.owed > 0 {
            for column in &mut self.columns {
                column.column().append_nulls(self.owed);
            }
            self.nulls.append_n_nulls(self.owed);
            self.owed = 0;
        }
    }

    /// Begins a row; every column must then get exactly one value.
    fn row(&mut self) {
        self.pay();
        self.nulls.append_non_null();
    }

    /// Appends to one column; a misfit is noted and null.
    #[inline]
    fn append(&mut self, index: usize, value: Value<'_>, meta: &mut ChangeMeta, scratch: &mut Vec<u8>) -> Result<()> {
        let Some(column) = self.columns.get_mut(index) else {
            return Err(Error::inconsistent("tuple", format!("it has no column {index}")));
        };
        match value {
            Value::Null | Value::Unchanged => column.column().append_nulls(1),
            Value::Text(text) => {
                if column.append_text(text, scratch)? == Fit::Misfit {
                    column.column().append_nulls(1);
                    meta.misfit(self.letter, index, &String::from_utf8_lossy(text));
                }
            }
            Value::Binary(bytes) => {
                if column.append_binary(bytes, scratch)? == Fit::Misfit {
                    column.column().append_nulls(1);
                    meta.misfit(self.letter, index, &String::from_utf8_lossy(scratch));
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, fields: &Fields, rows: usize) -> Result<StructArray> {
        if self.owed == rows {
            self.owed = 0;
            return Ok(StructArray::new_null(fields.clone(), rows));
        }
        self.pay();
        let mut arrays = Vec::with_capacity(self.columns.len());
        for column in &mut self.columns {
            arrays.push(column.column().finish()?);
        }
        Ok(StructArray::try_new_with_length(fields.clone(), arrays, self.nulls.finish(), rows)?)
    }
}

impl TableBuilder {
    pub fn new(shape: &TableShape) -> Self {
        let schema = shape.schema().clone();
        Self {
            fields: schema.arrow_fields(),
            copied_as_text: shape.copied_as_text().collect(),
            after: Side::new(b'a', shape),
            before: Side::new(b'b', shape),
            meta: ChangeMeta::default(),
            bytes: 0,
            unchanged: vec![0; schema.columns.len().div_ceil(8)],
            scratch: Vec::new(),
            schema,
        }
    }

    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }
    /// Rows since the last [`finish`](Self::finish).
    pub fn rows(&self) -> usize {
        self.meta.rows()
    }
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }
    /// About how many bytes the rows take: what the source sent, and a little for each row.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an insert. Like its siblings it answers how many rows, and so sequences, it made.
    pub fn insert(&mut self, binding: &Binding, new: &Tuple<'_>, meta: RowMeta) -> Result<u64> {
        self.before.skip();
        self.after_row(binding, None, new)?;
        self.push(Op::Create, meta, new.byte_len());
        Ok(1)
    }

    /// Adds an update. Where it changes the key it is two rows: a delete of the old key, then a create with the old key in
    /// `before`. Values that the server left out are taken from the old row where that was sent.
    pub fn update(
        &mut self,
        binding: &Binding,
        old: Option<&Old<'_>>,
        new: &Tuple<'_>,
        mut meta: RowMeta,
    ) -> Result<u64> {
        let Some(old) = old else {
            self.before.skip();
            self.after_row(binding, None, new)?;
            self.push(Op::Update, meta, new.byte_len());
            return Ok(1);
        };
        let moved = self.key_changed(binding, &old.tuple, new);
        if moved {
            self.after.skip();
            self.before_row(binding, old)?;
            self.push(Op::Delete, meta, old.tuple.byte_len());
            meta.sequence += 1;
        }
        self.before_row(binding, old)?;
        self.after_row(binding, Some(old), new)?;
        self.push(if moved { Op::Create } else { Op::Update }, meta, old.tuple.byte_len() + new.byte_len());
        Ok(1 + u64::from(moved))
    }

    pub fn delete(&mut self, binding: &Binding, old: &Old<'_>, meta: RowMeta) -> Result<u64> {
        self.after.skip();
        self.before_row(binding, old)?;
        self.push(Op::Delete, meta, old.tuple.byte_len());
        Ok(1)
    }

    pub fn truncate(&mut self, meta: RowMeta) -> Result<u64> {
        self.after.skip();
        self.before.skip();
        self.push(Op::Truncate, meta, 0);
        Ok(1)
    }

    /// Adds one row of a snapshot: for each column of the schema, in its order, a length (-1: null) and so many bytes, as COPY
    /// BINARY sends [`TableShape::snapshot_select`].
    pub(super) fn read(&mut self, row: &[u8], meta: RowMeta) -> Result<()> {
        let Self { after, meta: rows, scratch, copied_as_text, .. } = self;
        self.before.skip();
        after.row();
        let mut rest = row;
        for (index, as_text) in copied_as_text.iter().enumerate() {
            let (length, behind) = rest.split_first_chunk().ok_or_else(short_row)?;
            let value = match u32::from_be_bytes(*length) {
                u32::MAX => {
                    rest = behind;
                    Value::Null
                }
                length => {
                    let (value, behind) = behind.split_at_checked(length as usize).ok_or_else(short_row)?;
                    rest = behind;
                    if *as_text { Value::Text(value) } else { Value::Binary(value) }
                }
            };
            after.append(index, value, rows, scratch)?;
        }
        if !rest.is_empty() {
            return Err(short_row());
        }
        self.push(Op::Read, meta, row.len());
        Ok(())
    }

    /// Ends the batch; the builder starts the next one. Sequences are those of the rows' [`RowMeta`].
    pub fn finish(&mut self) -> Result<ChangeBatch> {
        let rows = self.rows();
        self.bytes = 0;
        let after = self.after.finish(&self.fields, rows)?;
        let before = self.before.finish(&self.fields, rows)?;
        ChangeBatch::try_new(self.schema.clone(), self.meta.finish()?, after, before)
    }

    fn push(&mut self, op: Op, meta: RowMeta, bytes: usize) {
        let sent_whole = self.unchanged.iter().all(|b| *b == 0);
        self.meta.push(MetaRow {
            op,
            sequence: meta.sequence,
            position: meta.position,
            tx: meta.tx,
            commit_ts: meta.commit_ts,
            unchanged: if sent_whole { None } else { Some(&self.unchanged) },
            patch: None,
        });
        if !sent_whole {
            self.unchanged.fill(0);
        }
        self.bytes += bytes + META_BYTES;
    }

    fn after_row(&mut self, binding: &Binding, old: Option<&Old<'_>>, new: &Tuple<'_>) -> Result<()> {
        self.check_length(binding, new)?;
        self.after.row();
        let mut old_values = old.map(|old| (old.kind, old.tuple.iter()));
        for (index, mut value) in binding.columns.iter().copied().zip(new.iter()) {
            let old_value = old_values.as_mut().and_then(|(kind, values)| Some((*kind, values.next()?)));
            if value == Value::Unchanged {
                match old_value {
                    // A key's tuple has nulls for the columns that are not in it.
                    Some((kind, old)) if kind == OldKind::Row || self.schema.is_key(index) => value = old,
                    _ => self.unchanged[index / 8] |= 1 << (index % 8),
                }
            }
            self.after.append(index, value, &mut self.meta, &mut self.scratch)?;
        }
        Ok(())
    }

    fn before_row(&mut self, binding: &Binding, old: &Old<'_>) -> Result<()> {
        self.check_length(binding, &old.tuple)?;
        self.before.row();
        for (index, value) in binding.columns.iter().copied().zip(old.tuple.iter()) {
            if value == Value::Unchanged {
                return Err(Error::malformed("old row", "a value is left out"));
            }
            self.before.append(index, value, &mut self.meta, &mut self.scratch)?;
        }
        Ok(())
    }

    fn check_length(&self, binding: &Binding, tuple: &Tuple<'_>) -> Result<()> {
        if tuple.len() != binding.columns.len() || tuple.len() != self.schema.columns.len() {
            return Err(Error::malformed(
                format!("row of {}", self.schema.table),
                format!("{} values for {} columns", tuple.len(), binding.columns.len()),
            ));
        }
        Ok(())
    }

    /// Compared as the server sent it: numerics that are equal but print differently count as a change, which does no harm.
    fn key_changed(&self, binding: &Binding, old: &Tuple<'_>, new: &Tuple<'_>) -> bool {
        let columns = binding.columns.iter().zip(old.iter()).zip(new.iter());
        columns
            .into_iter()
            .any(|((index, old), new)| self.schema.is_key(*index) && new != Value::Unchanged && old != new)
    }
}

#[cold]
fn short_row() -> Error {
    Error::malformed("COPY row", "its fields are not those of the snapshot's columns")
}

#[cfg(test)]
#[path = "tuple/tests.rs"]
mod tests;
