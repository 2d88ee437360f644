//! [`ChangeBatch`]: consecutive changes of one table under one schema version, as Arrow columns.
//!
//! `pgoutput / COPY / BSON -> builders -> ChangeBatch -> codec -> log -> codec -> ChangeBatch -> sink`
//!
//! The Arrow schema is fixed by `docs/adr/0001-change-batch.md`; [`ChangeBatch::schema`] is its one place in code.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayBuilder, ArrayRef, AsArray, BinaryArray, BinaryBuilder, ListArray, RecordBatch, StringArray,
    StringBuilder, StructArray, TimestampMicrosecondArray, TimestampMicrosecondBuilder, UInt8Array, UInt8Builder,
    UInt16Array, UInt16Builder, UInt64Array, UInt64Builder, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit, UInt8Type, UInt64Type};

use crate::error::{Error, Result};
use crate::schema::TableSchema;

/// What happened to a row. The values are the letters of Debezium's `op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// `after` is the new row. With `before`: the second half of a key change, and `before` holds the old key.
    Create = b'c',
    /// `after` is the new row, but for the columns in `unchanged`; `before` the old row where the source sent it. MongoDB
    /// without a whole document: `after` has `_id` only and `patch` says what changed.
    Update = b'u',
    /// `before` holds at least the key.
    Delete = b'd',
    /// Every row of the table is gone. Neither `before` nor `after`.
    Truncate = b't',
    /// `after` is a row as a snapshot read it.
    Read = b'r',
}

impl Op {
    pub fn from_u8(letter: u8) -> Option<Self> {
        Some(match letter {
            b'c' => Self::Create,
            b'u' => Self::Update,
            b'd' => Self::Delete,
            b't' => Self::Truncate,
            b'r' => Self::Read,
            _ => return None,
        })
    }
}

/// Consecutive changes of one table under one schema version.
///
/// | column | Arrow type | |
/// |---|---|---|
/// | `op` | uint8 | [`Op`] |
/// | `sequence` | uint64 | the publisher's counter, strictly increasing per source: the only order |
/// | `position` | uint64 | LSN of the change; MongoDB: cluster time |
/// | `tx` | uint64, null | PostgreSQL xid; MongoDB: hash of session id and transaction number |
/// | `commit_ts` | timestamp(us, UTC), null | when the source committed it (or the snapshot's moment) |
/// | `after` | struct, null | one child per column of the schema, in its order, all nullable |
/// | `before` | struct, null | same children: old key or whole old row, as the source sent it |
/// | `unchanged` | binary, null | bit `i % 8` of byte `i / 8`: the source left column `i` of `after` out (it is null there) |
/// | `patch` | utf8, null | MongoDB update description, canonical Extended JSON v2 |
/// | `misfits` | list of struct(side uint8, column uint16, text utf8), null | values that their column cannot hold (it is null there), `side` being `a`fter or `b`efore, with the source's text |
#[derive(Debug, Clone)]
pub struct ChangeBatch {
    schema: Arc<TableSchema>,
    batch: RecordBatch,
}

/// Indexes of a ChangeBatch's columns.
pub mod column {
    pub const OP: usize = 0;
    pub const SEQUENCE: usize = 1;
    pub const POSITION: usize = 2;
    pub const TX: usize = 3;
    pub const COMMIT_TS: usize = 4;
    pub const AFTER: usize = 5;
    pub const BEFORE: usize = 6;
    pub const UNCHANGED: usize = 7;
    pub const PATCH: usize = 8;
    pub const MISFITS: usize = 9;
}

fn misfit_fields() -> Fields {
    Fields::from(vec![
        Field::new("side", DataType::UInt8, false),
        Field::new("column", DataType::UInt16, false),
        Field::new("text", DataType::Utf8, false),
    ])
}

fn misfit_item() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Struct(misfit_fields()), false))
}

impl ChangeBatch {
    /// The Arrow schema of a batch of this table.
    pub fn schema(table: &TableSchema) -> SchemaRef {
        let row = || DataType::Struct(table.arrow_fields());
        Arc::new(Schema::new(vec![
            Field::new("op", DataType::UInt8, false),
            Field::new("sequence", DataType::UInt64, false),
            Field::new("position", DataType::UInt64, false),
            Field::new("tx", DataType::UInt64, true),
            Field::new("commit_ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("after", row(), true),
            Field::new("before", row(), true),
            Field::new("unchanged", DataType::Binary, true),
            Field::new("patch", DataType::Utf8, true),
            Field::new("misfits", DataType::List(misfit_item()), true),
        ]))
    }

    /// Puts the parts together; fails when lengths or types disagree.
    pub fn try_new(
        schema: Arc<TableSchema>,
        meta: ChangeColumns,
        after: StructArray,
        before: StructArray,
    ) -> Result<Self> {
        let arrow = Self::schema(&schema);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(meta.op),
            Arc::new(meta.sequence),
            Arc::new(meta.position),
            Arc::new(meta.tx),
            Arc::new(meta.commit_ts),
            Arc::new(after),
            Arc::new(before),
            Arc::new(meta.unchanged),
            Arc::new(meta.patch),
            Arc::new(meta.misfits),
        ];
        Ok(Self { schema, batch: RecordBatch::try_new(arrow, columns)? })
    }

    /// Takes a record batch that claims to be of this form (an `arrow` record).
    pub fn from_record_batch(schema: Arc<TableSchema>, batch: RecordBatch) -> Result<Self> {
        if batch.schema_ref().fields() != Self::schema(&schema).fields() {
            return Err(Error::malformed(
                format!("change batch of {}", schema.table),
                format!("columns are not those of schema version {}", schema.version),
            ));
        }
        Ok(Self { schema, batch })
    }

    pub fn table(&self) -> &Arc<TableSchema> {
        &self.schema
    }
    pub fn record_batch(&self) -> &RecordBatch {
        &self.batch
    }
    pub fn num_rows(&self) -> usize {
        self.batch.num_rows()
    }
    /// Letters of [`Op`].
    pub fn ops(&self) -> &[u8] {
        self.batch.column(column::OP).as_primitive::<UInt8Type>().values()
    }
    pub fn sequences(&self) -> &[u64] {
        self.batch.column(column::SEQUENCE).as_primitive::<UInt64Type>().values()
    }
    pub fn positions(&self) -> &[u64] {
        self.batch.column(column::POSITION).as_primitive::<UInt64Type>().values()
    }
    pub fn tx(&self) -> &UInt64Array {
        self.batch.column(column::TX).as_primitive()
    }
    pub fn commit_ts(&self) -> &TimestampMicrosecondArray {
        self.batch.column(column::COMMIT_TS).as_primitive()
    }
    pub fn after(&self) -> &StructArray {
        self.batch.column(column::AFTER).as_struct()
    }
    pub fn before(&self) -> &StructArray {
        self.batch.column(column::BEFORE).as_struct()
    }
    pub fn unchanged(&self) -> &BinaryArray {
        self.batch.column(column::UNCHANGED).as_binary()
    }
    pub fn patch(&self) -> &StringArray {
        self.batch.column(column::PATCH).as_string()
    }
    pub fn misfits(&self) -> Misfits<'_> {
        let list = self.batch.column(column::MISFITS).as_list::<i32>();
        let items = list.values().as_struct();
        Misfits {
            list,
            side: items.column(0).as_primitive(),
            column: items.column(1).as_primitive(),
            text: items.column(2).as_string(),
        }
    }

    /// The same batch with consecutive sequences from `first` on: the publisher numbers what it is about to append.
    pub fn with_sequences_from(self, first: u64) -> Result<Self> {
        let sequences = UInt64Array::from_iter_values((0..self.num_rows() as u64).map(|i| first + i));
        let mut columns = self.batch.columns().to_vec();
        columns[column::SEQUENCE] = Arc::new(sequences);
        Ok(Self { batch: RecordBatch::try_new(self.batch.schema(), columns)?, schema: self.schema })
    }

    /// The same batch with `base` added to every sequence (builders count from 0 over all tables of an append).
    pub fn with_sequence_base(self, base: u64) -> Result<Self> {
        let sequences = UInt64Array::from_iter_values(self.sequences().iter().map(|s| base + s));
        let mut columns = self.batch.columns().to_vec();
        columns[column::SEQUENCE] = Arc::new(sequences);
        Ok(Self { batch: RecordBatch::try_new(self.batch.schema(), columns)?, schema: self.schema })
    }

    /// A batch of one row with NULL in place of one value of `after` (`side` is `b'a'`) or `before` (`b'b'`), and `text` as its
    /// misfit.
    pub fn without_value(self, side: u8, column: usize, text: &str) -> Result<Self> {
        let index = if side == b'b' { column::BEFORE } else { column::AFTER };
        let rows = self.batch.column(index).as_struct();
        let (fields, mut values, nulls) = rows.clone().into_parts();
        if self.num_rows() != 1 || column >= values.len() {
            return Err(Error::inconsistent("value to leave out", format!("column {column}")));
        }
        values[column] = new_null_array(values[column].data_type(), 1);
        let mut misfits = ChangeMeta::default();
        for (side, column, text) in self.misfits().of(0).chain([(side, column, text)]) {
            misfits.misfit(side, column, text);
        }
        let (op, sequence, position) = (Op::Update, 0, 0);
        misfits.push(MetaRow { op, sequence, position, tx: None, commit_ts: None, unchanged: None, patch: None });
        let mut columns = self.batch.columns().to_vec();
        columns[index] = Arc::new(StructArray::try_new(fields, values, nulls)?);
        columns[column::MISFITS] = Arc::new(misfits.finish()?.misfits);
        Ok(Self { batch: RecordBatch::try_new(self.batch.schema(), columns)?, schema: self.schema })
    }

    /// Rows `offset..offset + length`, without a copy.
    pub fn slice(&self, offset: usize, length: usize) -> Self {
        Self { schema: self.schema.clone(), batch: self.batch.slice(offset, length) }
    }
}

/// Values that did not fit, by row.
pub struct Misfits<'a> {
    list: &'a ListArray,
    side: &'a UInt8Array,
    column: &'a UInt16Array,
    text: &'a StringArray,
}

impl<'a> Misfits<'a> {
    /// No row of the batch has one: the common case, and cheap to ask.
    pub fn is_empty(&self) -> bool {
        self.list.null_count() == self.list.len()
    }
    /// `(side, column, text)` of a row.
    pub fn of(&self, row: usize) -> impl Iterator<Item = (u8, usize, &'a str)> + '_ {
        let range = if self.list.is_null(row) {
            0..0
        } else {
            self.list.value_offsets()[row] as usize..self.list.value_offsets()[row + 1] as usize
        };
        range.map(|i| (self.side.value(i), usize::from(self.column.value(i)), self.text.value(i)))
    }
}

/// The columns of a batch other than `after` and `before`; made by [`ChangeMeta`].
pub struct ChangeColumns {
    pub op: UInt8Array,
    pub sequence: UInt64Array,
    pub position: UInt64Array,
    pub tx: UInt64Array,
    pub commit_ts: TimestampMicrosecondArray,
    pub unchanged: BinaryArray,
    pub patch: StringArray,
    pub misfits: ListArray,
}

/// Builds [`ChangeColumns`] a row at a time, without allocating per row.
///
/// For each row: any number of [`misfit`](Self::misfit) calls, then one [`push`](Self::push).
#[derive(Default)]
pub struct ChangeMeta {
    op: UInt8Builder,
    sequence: UInt64Builder,
    position: UInt64Builder,
    tx: UInt64Builder,
    commit_ts: TimestampMicrosecondBuilder,
    unchanged: BinaryBuilder,
    patch: StringBuilder,
    misfit_side: UInt8Builder,
    misfit_column: UInt16Builder,
    misfit_text: StringBuilder,
    misfit_ends: Vec<i32>,
    rows: usize,
}

/// One row's part in [`ChangeMeta`].
#[derive(Debug, Clone, Copy)]
pub struct MetaRow<'a> {
    pub op: Op,
    pub sequence: u64,
    pub position: u64,
    pub tx: Option<u64>,
    /// Microseconds since 1970.
    pub commit_ts: Option<i64>,
    pub unchanged: Option<&'a [u8]>,
    pub patch: Option<&'a str>,
}

impl ChangeMeta {
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Notes that `column` of the row being built (`side` is `b'a'` or `b'b'`) cannot hold the source's `text`.
    pub fn misfit(&mut self, side: u8, column: usize, text: &str) {
        self.misfit_side.append_value(side);
        self.misfit_column.append_value(u16::try_from(column).unwrap_or(u16::MAX));
        self.misfit_text.append_value(text);
    }

    pub fn push(&mut self, row: MetaRow<'_>) {
        self.op.append_value(row.op as u8);
        self.sequence.append_value(row.sequence);
        self.position.append_value(row.position);
        self.tx.append_option(row.tx);
        self.commit_ts.append_option(row.commit_ts);
        self.unchanged.append_option(row.unchanged);
        self.patch.append_option(row.patch);
        // Ends are kept only from the first misfit on: most batches have none.
        let end = self.misfit_side.len() as i32;
        if end > 0 {
            self.misfit_ends.resize(self.rows, 0);
            self.misfit_ends.push(end);
        }
        self.rows += 1;
    }

    /// Ends the batch and starts the next.
    pub fn finish(&mut self) -> Result<ChangeColumns> {
        let rows = std::mem::take(&mut self.rows);
        let mut ends = std::mem::take(&mut self.misfit_ends);
        ends.resize(rows, 0);
        let valid: Vec<bool> = (0..rows).map(|i| ends[i] > if i == 0 { 0 } else { ends[i - 1] }).collect();
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        offsets.extend(ends);
        let items = StructArray::try_new(
            misfit_fields(),
            vec![
                Arc::new(self.misfit_side.finish()),
                Arc::new(self.misfit_column.finish()),
                Arc::new(self.misfit_text.finish()),
            ],
            None,
        )?;
        Ok(ChangeColumns {
            op: self.op.finish(),
            sequence: self.sequence.finish(),
            position: self.position.finish(),
            tx: self.tx.finish(),
            commit_ts: self.commit_ts.finish().with_timezone("UTC"),
            unchanged: self.unchanged.finish(),
            patch: self.patch.finish(),
            misfits: ListArray::try_new(
                misfit_item(),
                OffsetBuffer::new(offsets.into()),
                Arc::new(items),
                Some(NullBuffer::from(valid)),
            )?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::schema::TableId;
    use arrow::array::new_null_array;

    fn row(op: Op, sequence: u64) -> MetaRow<'static> {
        MetaRow { op, sequence, position: 1, tx: None, commit_ts: Some(5), unchanged: None, patch: None }
    }

    #[test]
    fn misfits_stay_with_their_row() {
        let schema = Arc::new(TableSchema::documents(TableId::new("s", "d", "c")));
        let mut meta = ChangeMeta::default();
        for i in 0..5 {
            if i == 2 {
                meta.misfit(b'a', 1, "NaN");
                meta.misfit(b'b', 0, "Infinity");
            }
            meta.push(row(Op::Create, i));
        }
        let columns = meta.finish().unwrap();
        let rows = new_null_array(&DataType::Struct(schema.arrow_fields()), 5);
        let batch = ChangeBatch::try_new(schema, columns, rows.as_struct().clone(), rows.as_struct().clone()).unwrap();
        assert!(!batch.misfits().is_empty());
        let all: Vec<Vec<_>> = (0..5).map(|i| batch.misfits().of(i).collect()).collect();
        assert_eq!(all[2], [(b'a', 1, "NaN"), (b'b', 0, "Infinity")]);
        assert!([0, 1, 3, 4].iter().all(|i| all[*i].is_empty()));
        assert_eq!(batch.slice(2, 1).misfits().of(0).count(), 2);
        // the builder is ready for the next batch
        meta.push(row(Op::Delete, 9));
        assert_eq!(meta.finish().unwrap().misfits.null_count(), 1);
    }
}
