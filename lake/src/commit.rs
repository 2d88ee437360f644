//! One atomic change of a table.

use std::collections::HashMap;

use iceberg::spec::{DataFile, Operation, Schema};

use crate::table::Table;

/// How an attempt to commit ended. An outcome that was unknown for a while has been settled.
pub enum Commit {
    /// The change is in: the table with it.
    Done(Table),
    /// Somebody else was first, nothing was changed: the newest table. The change's data files are still the caller's.
    Conflict(Table),
}

/// One atomic change of a table: at most one snapshot.
#[derive(Default)]
pub struct TableChange {
    /// New current schema, with field ids given by [`crate::evolve`]; None: unchanged.
    pub schema: Option<Schema>,
    /// None: schema and properties only.
    pub snapshot: Option<SnapshotChange>,
    /// Set on the table, others stay.
    pub properties: HashMap<String, String>,
}

/// The files of a new snapshot, relative to the table's newest one.
pub struct SnapshotChange {
    pub operation: Operation,
    /// Under the table's default partition spec.
    pub added_data: Vec<DataFile>,
    /// Position delete files; each names data files of one spec and partition.
    pub added_deletes: Vec<DataFile>,
    /// Live data or delete files to remove (truncate: all).
    pub removed: Vec<DataFile>,
    /// Extra summary properties (offsets, checkpoint).
    pub summary: HashMap<String, String>,
}
