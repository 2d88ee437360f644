//! [`Lake`]: the catalog and the storage together, the one thing every stage opens.

use std::collections::HashMap;

use iceberg::TableIdent;
use iceberg::spec::{PartitionSpec, Schema};
use lakeward_runtime::Result;
use lakeward_runtime::config::{CatalogConfig, WarehouseConfig};

use crate::commit::{Commit, TableChange};
use crate::storage::Storage;
use crate::table::Table;

/// Catalog and warehouse. Cheap to clone.
#[derive(Clone)]
pub struct Lake;

impl Lake {
    /// Connects to the catalog and creates its tables if missing; the warehouse is not touched yet.
    pub async fn open(_catalog: &CatalogConfig, _warehouse: &WarehouseConfig) -> Result<Self> {
        todo!()
    }
    pub fn storage(&self) -> &Storage {
        todo!()
    }
    /// All namespaces that hold a table or were created, sorted.
    pub async fn namespaces(&self) -> Result<Vec<String>> {
        todo!()
    }
    /// All tables of the catalog, sorted.
    pub async fn tables(&self) -> Result<Vec<TableIdent>> {
        todo!()
    }
    /// A table at its newest metadata; None if the catalog does not know it.
    pub async fn load(&self, _id: &TableIdent) -> Result<Option<Table>> {
        todo!()
    }
    /// Where each table's newest metadata is, by one query: tells what changed without reading it.
    pub async fn metadata_locations(&self) -> Result<HashMap<TableIdent, String>> {
        todo!()
    }
    /// Creates a table (format v2) with a first, empty snapshot. Refused with `Action::Rebase` if it exists.
    pub async fn create(
        &self,
        _id: &TableIdent,
        _schema: Schema,
        _spec: Option<PartitionSpec>,
        _properties: HashMap<String, String>,
    ) -> Result<Table> {
        todo!()
    }
    /// One atomic change on top of `table`, or the news that somebody else was first.
    pub async fn commit(&self, _table: &Table, _change: TableChange) -> Result<Commit> {
        todo!()
    }
    /// Problems with the catalog's and the bucket's rights, one sentence each; empty: none.
    pub async fn check(&self) -> Vec<String> {
        todo!()
    }
}
