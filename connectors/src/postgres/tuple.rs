//! signatures first; bodies follow in the next commits
use std::sync::Arc;
use lakeward_event::{ChangeBatch, Result};
use super::{catalog::TableShape, pgoutput::{Old, Relation, Tuple}};

/// A row's place in the source, the same for every row of its change.
#[derive(Debug, Clone, Copy)]
pub struct RowMeta {
    /// The first row's; a key change makes two rows, the second has `sequence + 1`.
    pub sequence: u64,
    /// LSN of the change.
    pub position: u64,
    pub tx: Option<u64>,
    /// Microseconds since 1970.
    pub commit_ts: Option<i64>,
}

/// Where each value of a relation's tuples goes: made once per Relation message.
#[derive(Debug, Clone)]
pub struct Binding { /* private */ }

impl Binding {
    /// `None`: the relation is not (or no longer) of this shape, a column was added, dropped, renamed or retyped, or the key is another: read the catalog again.
    pub fn of(relation: &Relation<'_>, shape: &TableShape) -> Option<Self> { unimplemented!() }
}

/// Builds `ChangeBatch`es of one table under one schema version.
pub struct TableBuilder { /* private */ }

impl TableBuilder {
    pub fn new(shape: &TableShape) -> Self { unimplemented!() }
    // Each returns how many rows (= sequences) it made: 1, or 2 for a key change.
    pub fn insert(&mut self, binding: &Binding, new: &Tuple<'_>, meta: RowMeta) -> Result<u64> { unimplemented!() }
    pub fn update(&mut self, binding: &Binding, old: Option<&Old<'_>>, new: &Tuple<'_>, meta: RowMeta) -> Result<u64> { unimplemented!() }
    pub fn delete(&mut self, binding: &Binding, old: &Old<'_>, meta: RowMeta) -> Result<u64> { unimplemented!() }
    pub fn truncate(&mut self, meta: RowMeta) -> Result<u64> { unimplemented!() }
    /// Rows so far.
    pub fn rows(&self) -> usize { unimplemented!() }
    pub fn is_empty(&self) -> bool { unimplemented!() }
    /// About how many bytes the source sent for the rows so far (cheap).
    pub fn bytes(&self) -> usize { unimplemented!() }
    /// Ends the batch; the builder starts the next one. Sequences are those of the metas.
    pub fn finish(&mut self) -> Result<ChangeBatch> { unimplemented!() }
    pub fn schema(&self) -> &Arc<lakeward_event::TableSchema> { unimplemented!() }
}
