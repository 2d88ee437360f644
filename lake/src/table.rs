//! [`Table`]: one table at one metadata file. Catalog row -> metadata.json -> readers and commits.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::TableIdent;
use iceberg::spec::{SnapshotRef, TableMetadata, TableMetadataRef};
use lakeward_runtime::error::Context;
use lakeward_runtime::{Error, Result};

use crate::errors;
use crate::files::{self, SnapshotFiles};
use crate::storage::Storage;

/// A table as one metadata file describes it; never changes. Cheap to clone.
#[derive(Clone)]
pub struct Table {
    inner: Arc<Inner>,
}

struct Inner {
    ident: TableIdent,
    metadata: TableMetadataRef,
    metadata_location: String,
    storage: Storage,
}

impl Table {
    pub(crate) fn new(
        ident: TableIdent,
        metadata: TableMetadataRef,
        metadata_location: String,
        storage: Storage,
    ) -> Self {
        Self { inner: Arc::new(Inner { ident, metadata, metadata_location, storage }) }
    }

    /// Reads the metadata file that the catalog names.
    pub(crate) async fn read(ident: &TableIdent, metadata_location: String, storage: &Storage) -> Result<Self> {
        let metadata = TableMetadata::read_from(storage.file_io(), &metadata_location)
            .await
            .map_err(|e| errors::iceberg(e, "reading the metadata file that the catalog names"))
            .with("table", ident)
            .with("metadata", &metadata_location)?;
        Ok(Self::new(ident.clone(), Arc::new(metadata), metadata_location, storage.clone()))
    }

    pub fn ident(&self) -> &TableIdent {
        &self.inner.ident
    }
    pub fn metadata(&self) -> &TableMetadata {
        &self.inner.metadata
    }
    /// Where the table's files are, without a slash at the end.
    pub fn location(&self) -> &str {
        self.inner.metadata.location()
    }
    /// The metadata file this was read from.
    pub fn metadata_location(&self) -> &str {
        &self.inner.metadata_location
    }
    /// The newest snapshot of main.
    pub fn snapshot(&self) -> Option<&SnapshotRef> {
        self.inner.metadata.current_snapshot()
    }
    pub fn snapshot_by_id(&self, id: i64) -> Option<&SnapshotRef> {
        self.inner.metadata.snapshot_by_id(id)
    }
    pub fn properties(&self) -> &HashMap<String, String> {
        self.inner.metadata.properties()
    }
    pub(crate) fn storage(&self) -> &Storage {
        &self.inner.storage
    }

    /// The live files of a snapshot. Manifests are read once per process and cached.
    pub async fn files(&self, snapshot_id: i64) -> Result<Arc<SnapshotFiles>> {
        let snapshot = self.snapshot_by_id(snapshot_id).ok_or_else(|| {
            Error::refused("the table does not have this snapshot, or not any more")
                .with("table", self.ident())
                .with("snapshot", snapshot_id)
        })?;
        files::read(&self.inner.storage, &self.inner.metadata, snapshot).await.with("table", self.ident())
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({} at {})", self.inner.ident, self.inner.metadata_location)
    }
}
