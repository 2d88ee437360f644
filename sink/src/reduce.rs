//! Last change per key: `ChangeBatches of one commit -> Aligned -> reduce -> Reduction -> rows to write, keys to look up`
//!
//! Order is `sequence`: partitions interleave freely in what was read, and are merged here. Rows are never copied one by one:
//! a [`Source`] says where a row's values are, and columns are gathered at the end with `interleave` on index vectors.
//!
//! - A later change of a key replaces an earlier one.
//! - An update with values left out (TOAST) or a patch is a [`Partial`]: it takes the rest from the state of its key before
//!   it, which is another change of this commit or the row in the lake.
//! - A create with the old key (the second half of a key change) takes what is left out from the old key's row as of then,
//!   which the delete right before it has ended: a deleted key remembers its last state.
//! - A truncate ends everything before it, in this commit and in the lake.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array, new_empty_array, new_null_array};
use arrow::compute::{SortColumn, cast_with_options, interleave, lexsort_to_indices};
use arrow::datatypes::{DataType, SchemaRef};
use lakeward_event::key::CanonicalKeys;
use lakeward_event::{ChangeBatch, Op, TableSchema};
use lakeward_runtime::{Error, Result};

/// Hashes of keys; None where a part is NULL.
fn hash_keys(columns: &[ArrayRef], rows: usize) -> Result<Vec<Option<u128>>> {
    if columns.is_empty() {
        return Ok(vec![None; rows]);
    }
    let mut keys = CanonicalKeys::default();
    keys.set(columns, rows).map_err(|e| Error::human("the key cannot be compared").source(e))?;
    Ok((0..rows).map(|row| keys.is_complete(row).then(|| keys.hash(row))).collect())
}

/// The columns of a lake's table, and the source column that feeds each.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Arrow schema of the table's data files.
    pub schema: SchemaRef,
    pub columns: Vec<Feed>,
    /// Columns of the key, in key order. Empty: the table has no key.
    pub key: Vec<usize>,
}

/// What feeds a column of the lake's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// `Column::id` of the source's column; None: made by the sink.
    pub identity: Option<i32>,
    /// The source does not have the column any more, or has it under a type that this one cannot become: only batches of
    /// older schema versions have values for it.
    pub dropped: bool,
}

impl Layout {
    /// By column of the layout: the column of `table` that feeds it.
    fn sources(&self, table: &TableSchema) -> Vec<Option<usize>> {
        let mut sources = vec![None; self.columns.len()];
        for (source, column) in table.columns.iter().enumerate() {
            let fits = |target: &usize| {
                self.columns[*target].identity == Some(column.id)
                    && widens(&column.ty.arrow(), self.schema.field(*target).data_type())
            };
            // The live column, or else the newest of those it had before under another type.
            let target = (0..self.columns.len()).filter(fits).max_by_key(|t| (!self.columns[*t].dropped, *t));
            if let Some(target) = target {
                sources[target] = Some(source);
            }
        }
        sources
    }
}

/// Whether every value of `from` is one of `to`.
fn widens(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (DataType::Int32, DataType::Int64) | (DataType::Float32, DataType::Float64) => true,
        (DataType::Decimal128(p, s), DataType::Decimal128(q, t)) => s == t && p <= q,
        (DataType::List(from), DataType::List(to)) => widens(from.data_type(), to.data_type()),
        _ => from == to,
    }
}

/// What to do with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Put,
    Delete,
    Truncate,
    /// Cannot be applied: a dead letter as a whole.
    Refused(&'static str),
}

/// A batch in the layout of the lake's table.
#[derive(Debug)]
pub struct Aligned {
    batch: ChangeBatch,
    /// `after`, by column of the layout.
    after: Vec<ArrayRef>,
    /// By column of the layout: column of the batch's schema.
    source_column: Vec<Option<usize>>,
    kinds: Vec<Kind>,
    keys: Vec<u128>,
    /// The old key of a key change; empty where the batch has none.
    old_keys: Vec<Option<u128>>,
}

impl Aligned {
    /// Fails only when a value cannot be cast to the column that its schema says it fits, which is our own mistake.
    pub fn new(batch: ChangeBatch, layout: &Layout) -> Result<Self> {
        let table = batch.table().clone();
        let source_column = layout.sources(&table);
        let column = |rows: &arrow::array::StructArray, target: usize| -> Result<ArrayRef> {
            let wanted = layout.schema.field(target).data_type();
            match source_column[target] {
                None => Ok(new_null_array(wanted, rows.len())),
                Some(source) if rows.column(source).data_type() == wanted => Ok(rows.column(source).clone()),
                Some(source) => cast_with_options(rows.column(source), wanted, &STRICT).map_err(|e| {
                    Error::bug("a value does not fit its widened column").with("table", &table.table).source(e)
                }),
            }
        };
        let after = (0..layout.columns.len()).map(|t| column(batch.after(), t)).collect::<Result<Vec<_>>>()?;
        let rows = batch.num_rows();
        let mut aligned = Self {
            after,
            source_column: source_column.clone(),
            kinds: Vec::with_capacity(rows),
            keys: vec![0; rows],
            old_keys: Vec::new(),
            batch,
        };
        let key_of_after: Vec<ArrayRef> = layout.key.iter().map(|k| aligned.after[*k].clone()).collect();
        let after_keys = hash_keys(&key_of_after, rows)?;
        let has_before = aligned.batch.before().null_count() < rows;
        let before_keys = if has_before && !layout.key.is_empty() {
            let key: Vec<ArrayRef> =
                layout.key.iter().map(|k| column(aligned.batch.before(), *k)).collect::<Result<_>>()?;
            hash_keys(&key, rows)?
        } else {
            Vec::new()
        };
        let before_key = |row: usize| {
            if aligned.batch.before().is_null(row) { None } else { before_keys.get(row).copied().flatten() }
        };
        let keyed = !layout.key.is_empty();
        let mut old_keys = Vec::new();
        for row in 0..rows {
            let (kind, key) = match Op::from_u8(aligned.batch.ops()[row]) {
                Some(Op::Truncate) => (Kind::Truncate, 0),
                Some(Op::Delete) if !keyed => (Kind::Refused("a delete in a table without a key"), 0),
                Some(Op::Update) if !keyed => (Kind::Refused("an update in a table without a key"), 0),
                Some(Op::Delete) => match before_key(row) {
                    Some(key) => (Kind::Delete, key),
                    None => (Kind::Refused("a delete whose key is missing or cannot be held"), 0),
                },
                Some(Op::Create | Op::Update | Op::Read) if aligned.batch.after().is_null(row) => {
                    (Kind::Refused("a change without its row"), 0)
                }
                Some(op @ (Op::Create | Op::Update | Op::Read)) if keyed => {
                    let before = before_key(row);
                    // A key value that is itself left out is that of the row before.
                    let key = after_keys[row].or(if op == Op::Update { before } else { None });
                    match key {
                        Some(key) => {
                            if before.is_some_and(|old| old != key) {
                                old_keys.resize(rows, None);
                                old_keys[row] = before;
                            }
                            (Kind::Put, key)
                        }
                        None => (Kind::Refused("a row whose key is missing or cannot be held"), 0),
                    }
                }
                Some(Op::Create | Op::Update | Op::Read) => (Kind::Put, 0),
                None => (Kind::Refused("an unknown operation"), 0),
            };
            aligned.kinds.push(kind);
            aligned.keys[row] = key;
        }
        aligned.old_keys = old_keys;
        Ok(aligned)
    }

    pub fn batch(&self) -> &ChangeBatch {
        &self.batch
    }
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    fn is_partial(&self, row: usize) -> bool {
        let (unchanged, patch) = (self.batch.unchanged(), self.batch.patch());
        (unchanged.null_count() < unchanged.len()
            && unchanged.is_valid(row)
            && unchanged.value(row).iter().any(|b| *b != 0))
            || (patch.null_count() < patch.len() && patch.is_valid(row))
    }

    /// Whether the source left out the value of a column of the layout.
    fn left_out(&self, row: usize, target: usize) -> bool {
        let Some(column) = self.source_column[target] else { return false };
        let unchanged = self.batch.unchanged();
        unchanged.is_valid(row)
            && unchanged.value(row).get(column / 8).is_some_and(|byte| byte & (1 << (column % 8)) != 0)
    }
}

const STRICT: arrow::compute::CastOptions<'static> =
    arrow::compute::CastOptions { safe: false, format_options: arrow::util::display::FormatOptions::new() };

/// Where a row's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// All in one change.
    Row { batch: u32, row: u32 },
    /// In a change and what it builds on.
    Partial(u32),
    /// In the table before this commit: index into [`Reduction::lake`].
    Lake(u32),
    /// Nowhere: the key was not there.
    Missing,
}

/// A change with values left out, or a patch.
#[derive(Debug, Clone, Copy)]
pub struct Partial {
    pub batch: u32,
    pub row: u32,
    pub base: Source,
}

#[derive(Debug, Clone, Copy)]
enum KeyState {
    Live(Source),
    /// With the state it had, for the other half of a key change.
    Deleted(Source),
}

/// A hash is its own hash.
#[derive(Default)]
pub struct KeyHasher(u64);
impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}
type KeyMap<V> = HashMap<u128, V, BuildHasherDefault<KeyHasher>>;

/// What one commit makes of a table.
#[derive(Debug)]
pub struct Reduction {
    pub batches: Vec<Aligned>,
    /// All rows of the table before this commit are gone.
    pub truncated: bool,
    /// Sorted hashes of the keys whose old rows in the lake are gone. Empty where `truncated`.
    pub touched: Vec<u128>,
    /// Rows to write: hash of the key, and where its values are. Sorted by key once [`sort`](Self::sort) was called.
    pub rows: Vec<(u128, Source)>,
    pub partials: Vec<Partial>,
    /// Sorted by nothing: keys whose old row in the lake some row builds on.
    pub lake: Vec<u128>,
}

/// Reduces the batches of one commit.
pub fn reduce(batches: Vec<Aligned>, keyed: bool) -> Reduction {
    let order = merged_order(&batches);
    let mut out = Reduction {
        batches,
        truncated: false,
        touched: Vec::new(),
        rows: Vec::new(),
        partials: Vec::new(),
        lake: Vec::new(),
    };
    if !keyed {
        for (_, batch, row) in order {
            match out.batches[batch as usize].kinds[row as usize] {
                Kind::Truncate => {
                    out.truncated = true;
                    out.rows.clear();
                }
                Kind::Put => out.rows.push((0, Source::Row { batch, row })),
                Kind::Delete | Kind::Refused(_) => {}
            }
        }
        return out;
    }
    let mut states = KeyMap::<KeyState>::with_capacity_and_hasher(order.len(), BuildHasherDefault::default());
    let mut lake_index = KeyMap::<u32>::default();
    for (_, batch, row) in order {
        let aligned = &out.batches[batch as usize];
        let key = aligned.keys[row as usize];
        let mut before =
            |states: &KeyMap<KeyState>, truncated: bool, key: u128, deleted_too: bool| match states.get(&key) {
                Some(KeyState::Live(source)) => *source,
                Some(KeyState::Deleted(source)) if deleted_too => *source,
                Some(KeyState::Deleted(_)) => Source::Missing,
                None if truncated => Source::Missing,
                None => Source::Lake(*lake_index.entry(key).or_insert_with(|| {
                    out.lake.push(key);
                    out.lake.len() as u32 - 1
                })),
            };
        match aligned.kinds[row as usize] {
            Kind::Refused(_) => {}
            Kind::Truncate => {
                out.truncated = true;
                states.clear();
            }
            Kind::Delete => {
                let was = before(&states, out.truncated, key, true);
                states.insert(key, KeyState::Deleted(was));
            }
            Kind::Put => {
                let old = aligned.old_keys.get(row as usize).copied().flatten();
                let source = if aligned.is_partial(row as usize) {
                    let base = match old {
                        Some(old) => before(&states, out.truncated, old, true),
                        None => before(&states, out.truncated, key, false),
                    };
                    out.partials.push(Partial { batch, row, base });
                    Source::Partial(out.partials.len() as u32 - 1)
                } else {
                    Source::Row { batch, row }
                };
                if let Some(old) = old
                    && !matches!(states.get(&old), Some(KeyState::Deleted(_)))
                    && aligned.batch.ops()[row as usize] == Op::Update as u8
                {
                    // A key change told as one update: the old key goes here.
                    let was = before(&states, out.truncated, old, true);
                    states.insert(old, KeyState::Deleted(was));
                }
                states.insert(key, KeyState::Live(source));
            }
        }
    }
    if !out.truncated {
        out.touched = states.keys().copied().collect();
        out.touched.sort_unstable();
    }
    out.rows = states
        .into_iter()
        .filter_map(|(key, state)| match state {
            KeyState::Live(source) => Some((key, source)),
            KeyState::Deleted(_) => None,
        })
        .collect();
    out
}

/// (sequence, batch, row) of all rows, in order of sequence.
fn merged_order(batches: &[Aligned]) -> Vec<(u64, u32, u32)> {
    let mut order = Vec::with_capacity(batches.iter().map(|b| b.kinds.len()).sum());
    for (batch, aligned) in batches.iter().enumerate() {
        let sequences = aligned.batch.sequences();
        order.extend(sequences.iter().enumerate().map(|(row, sequence)| (*sequence, batch as u32, row as u32)));
    }
    if !order.is_sorted() {
        order.sort_unstable();
    }
    // A truncate stands in every partition under one sequence, and a source without sequences may repeat a record: the
    // second is the same change.
    order
}

/// Rows of the lake that some rows build on.
#[derive(Debug, Default)]
pub struct LakeRows {
    /// By index into [`Reduction::lake`]: row of `columns`; None: the table has no such key.
    pub rows: Vec<Option<u32>>,
    /// By column of the layout; empty where nothing was needed.
    pub columns: Vec<Option<ArrayRef>>,
}

impl Reduction {
    /// Columns of the layout that some partial row leaves out, and the lake's rows that rows to write need for them.
    pub fn needed(&self, columns: usize) -> (Vec<bool>, Vec<u32>) {
        let mut left_out = vec![false; columns];
        let mut needed = Vec::new();
        if self.partials.is_empty() {
            return (left_out, needed);
        }
        for (_, source) in &self.rows {
            let mut source = *source;
            while let Source::Partial(partial) = source {
                let partial = self.partials[partial as usize];
                let aligned = &self.batches[partial.batch as usize];
                for (target, flag) in left_out.iter_mut().enumerate() {
                    *flag |= aligned.left_out(partial.row as usize, target);
                }
                source = partial.base;
            }
            if let Source::Lake(index) = source {
                needed.push(index);
            }
        }
        (left_out, needed)
    }

    /// Values that were left out and are nowhere: batch, row and column of the layout, for some of the `columns`.
    pub fn nowhere(&self, lake: &LakeRows, columns: &[usize]) -> Vec<(u32, u32, usize)> {
        let is_nowhere = |source: Source| match source {
            Source::Lake(index) => lake.rows.get(index as usize).copied().flatten().is_none(),
            Source::Missing => true,
            Source::Row { .. } | Source::Partial(_) => false,
        };
        let mut found = Vec::new();
        for (_, source) in &self.rows {
            let Source::Partial(newest) = *source else { continue };
            let mut end = *source;
            while let Source::Partial(index) = end {
                end = self.partials[index as usize].base;
            }
            if is_nowhere(end) {
                let newest = self.partials[newest as usize];
                let lost = columns.iter().filter(|column| is_nowhere(self.resolve(*source, **column)));
                found.extend(lost.map(|column| (newest.batch, newest.row, *column)));
            }
        }
        found
    }

    /// Where a column's value of a row is, following what partial rows build on.
    fn resolve(&self, mut source: Source, target: usize) -> Source {
        while let Source::Partial(index) = source {
            let partial = self.partials[index as usize];
            if !self.batches[partial.batch as usize].left_out(partial.row as usize, target) {
                return Source::Row { batch: partial.batch, row: partial.row };
            }
            source = partial.base;
        }
        source
    }

    /// Sorts the rows to write by key, so that data files are.
    pub fn sort(&mut self, layout: &Layout, lake: &LakeRows) -> Result<()> {
        if layout.key.is_empty() || self.rows.len() < 2 {
            return Ok(());
        }
        let sortable = |t: &usize| !layout.schema.field(*t).data_type().is_nested();
        let key: Vec<SortColumn> = layout
            .key
            .iter()
            .filter(|t| sortable(t))
            .map(|t| Ok(SortColumn { values: self.gather(*t, 0..self.rows.len(), layout, lake, true)?, options: None }))
            .collect::<Result<_>>()?;
        if key.is_empty() {
            return Ok(());
        }
        let order: UInt32Array = lexsort_to_indices(&key, None).map_err(|e| Error::bug("sorting by key").source(e))?;
        self.rows = order.values().iter().map(|i| self.rows[*i as usize]).collect();
        Ok(())
    }

    /// One column of some of the rows. `left_out`: some row may have no value of its own.
    pub fn gather(
        &self,
        target: usize,
        range: std::ops::Range<usize>,
        layout: &Layout,
        lake: &LakeRows,
        left_out: bool,
    ) -> Result<ArrayRef> {
        let data_type = layout.schema.field(target).data_type();
        if range.is_empty() {
            return Ok(new_empty_array(data_type));
        }
        let none = new_null_array(data_type, 1);
        let mut arrays: Vec<&dyn Array> = self.batches.iter().map(|b| b.after[target].as_ref()).collect();
        let lake_place = arrays.len();
        let lake_column = lake.columns.get(target).and_then(Option::as_ref);
        arrays.push(lake_column.map_or(none.as_ref(), |c| c.as_ref()));
        let none_place = arrays.len();
        arrays.push(none.as_ref());
        let place = |source: Source| -> (usize, usize) {
            let source = match source {
                Source::Partial(index) if !left_out => {
                    let partial = self.partials[index as usize];
                    Source::Row { batch: partial.batch, row: partial.row }
                }
                other => self.resolve(other, target),
            };
            match source {
                Source::Row { batch, row } => (batch as usize, row as usize),
                Source::Lake(index) if lake_column.is_some() => {
                    match lake.rows.get(index as usize).copied().flatten() {
                        Some(row) => (lake_place, row as usize),
                        None => (none_place, 0),
                    }
                }
                _ => (none_place, 0),
            }
        };
        let places: Vec<(usize, usize)> = self.rows[range].iter().map(|(_, source)| place(*source)).collect();
        interleave(&arrays, &places).map_err(|e| Error::bug("gathering a column").source(e))
    }

    /// Some of the rows as a batch of the table.
    pub fn assemble(
        &self,
        range: std::ops::Range<usize>,
        layout: &Layout,
        lake: &LakeRows,
        left_out: &[bool],
    ) -> Result<arrow::array::RecordBatch> {
        let columns = (0..layout.columns.len())
            .map(|t| self.gather(t, range.clone(), layout, lake, left_out.get(t).copied().unwrap_or(false)))
            .collect::<Result<Vec<_>>>()?;
        arrow::array::RecordBatch::try_new(Arc::clone(&layout.schema), columns)
            .map_err(|e| Error::bug("rows do not have the table's form").source(e))
    }
}

#[cfg(test)]
mod tests;
