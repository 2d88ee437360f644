//! Position deletes of a snapshot: delete files -> one bitmap of deleted row numbers per data file.

use std::collections::HashMap;
use std::sync::Arc;

use lakeward_runtime::Result;
use roaring::RoaringTreemap;

use crate::files::SnapshotFiles;
use crate::lake::Lake;
use crate::table::Table;

/// Deleted row numbers by data file path, of the live data files that have any. Delete files are read once per process and cached within a bound.
pub async fn position_deletes(
    _lake: &Lake,
    _table: &Table,
    _files: &SnapshotFiles,
) -> Result<Arc<HashMap<String, Arc<RoaringTreemap>>>> {
    todo!()
}
