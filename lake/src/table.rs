//! [`Table`]: one table at one metadata file. Catalog row -> metadata.json -> readers and commits.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::TableIdent;
use iceberg::spec::{SnapshotRef, TableMetadata};
use lakeward_runtime::Result;

use crate::files::SnapshotFiles;

/// A table as one metadata file describes it; never changes. Cheap to clone.
#[derive(Clone)]
pub struct Table;

impl Table {
    pub fn ident(&self) -> &TableIdent {
        todo!()
    }
    pub fn metadata(&self) -> &TableMetadata {
        todo!()
    }
    /// Where the table's files are, without a slash at the end.
    pub fn location(&self) -> &str {
        todo!()
    }
    /// The metadata file this was read from.
    pub fn metadata_location(&self) -> &str {
        todo!()
    }
    /// The newest snapshot of main.
    pub fn snapshot(&self) -> Option<&SnapshotRef> {
        todo!()
    }
    pub fn snapshot_by_id(&self, _id: i64) -> Option<&SnapshotRef> {
        todo!()
    }
    pub fn properties(&self) -> &HashMap<String, String> {
        todo!()
    }
    /// The live files of a snapshot. Manifests are read once per process and cached.
    pub async fn files(&self, _snapshot_id: i64) -> Result<Arc<SnapshotFiles>> {
        todo!()
    }
}
