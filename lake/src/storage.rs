//! The warehouse: one object store for Parquet, Iceberg metadata and DataFusion.

use std::sync::Arc;

use bytes::Bytes;
use lakeward_runtime::Result;
use object_store::ObjectStore;
use object_store::path::Path;
use url::Url;

/// The warehouse's object store. Cheap to clone. A *location* is a full URL as Iceberg writes it, `file:///…` or `s3://bucket/…`.
#[derive(Clone)]
pub struct Storage;

impl Storage {
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        todo!()
    }
    /// Root of the store, for DataFusion's registration: `file:///` or `s3://bucket`.
    pub fn url(&self) -> &Url {
        todo!()
    }
    /// `file:///…` or `s3://bucket/prefix`, no slash at the end.
    pub fn warehouse_location(&self) -> &str {
        todo!()
    }
    /// The path of a location in [`Self::object_store`].
    pub fn path(&self, _location: &str) -> Result<Path> {
        todo!()
    }
    pub async fn put(&self, _location: &str, _bytes: Bytes) -> Result<()> {
        todo!()
    }
    pub async fn get(&self, _location: &str) -> Result<Bytes> {
        todo!()
    }
    /// A missing object is no error.
    pub async fn delete(&self, _location: &str) -> Result<()> {
        todo!()
    }
    /// Locations under a prefix (a folder), any order.
    pub async fn list(&self, _prefix: &str) -> Result<Vec<String>> {
        todo!()
    }
}
