//! [`Lake`]: the catalog and the storage together, the one thing every stage opens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iceberg::spec::{
    FormatVersion, MAIN_BRANCH, Operation, PartitionSpec, Schema, SortOrder, TableMetadataBuilder, TableProperties,
};
use iceberg::{MetadataLocation, NamespaceIdent, TableIdent};
use lakeward_runtime::config::{CatalogConfig, WarehouseConfig};
use lakeward_runtime::{Error, Result};
use uuid::Uuid;

use crate::catalog::{Catalog, Written};
use crate::commit::{self, Commit, SnapshotChange, TableChange};
use crate::errors;
use crate::row_delta;
use crate::storage::Storage;
use crate::table::Table;

/// Old metadata files kept for readers that are about to open them; each is as large as the newest.
const PREVIOUS_METADATA: &str = "20";
/// Tries to learn whether a table was created.
const CREATE_TRIES: u32 = 10;

/// Catalog and warehouse. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lake {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    catalog: Catalog,
    storage: Storage,
}

impl Lake {
    /// Connects to the catalog and creates its tables if missing; the warehouse is not touched yet.
    pub async fn open(catalog: &CatalogConfig, warehouse: &WarehouseConfig) -> Result<Self> {
        let storage = Storage::open(warehouse)?;
        let catalog = Catalog::open(catalog).await?;
        Ok(Self { inner: Arc::new(Inner { catalog, storage }) })
    }

    pub fn storage(&self) -> &Storage {
        &self.inner.storage
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// All namespaces that hold a table or were created, sorted.
    pub async fn namespaces(&self) -> Result<Vec<String>> {
        self.catalog().namespaces().await
    }

    /// All tables of the catalog, sorted.
    pub async fn tables(&self) -> Result<Vec<TableIdent>> {
        let mut tables: Vec<_> = self.metadata_locations().await?.into_keys().collect();
        tables.sort_by(|a, b| (&**a.namespace(), a.name()).cmp(&(&**b.namespace(), b.name())));
        Ok(tables)
    }

    /// A table at its newest metadata; None if the catalog does not know it.
    pub async fn load(&self, id: &TableIdent) -> Result<Option<Table>> {
        match self.catalog().location(id).await? {
            Some(location) => Ok(Some(Table::read(id, location, self.storage()).await?)),
            None => Ok(None),
        }
    }

    /// Where each table's newest metadata is, by one query: tells what changed without reading it.
    pub async fn metadata_locations(&self) -> Result<HashMap<TableIdent, String>> {
        self.catalog().locations().await
    }

    /// Creates a table (format v2) with a first, empty snapshot; `spec` None: unpartitioned. `Action::Rebase` if it exists.
    ///
    /// Its files go to a folder of its own, also when a table of that name was dropped before.
    pub async fn create(
        &self,
        id: &TableIdent,
        schema: Schema,
        spec: Option<PartitionSpec>,
        properties: HashMap<String, String>,
    ) -> Result<Table> {
        let exists = || Error::rebase("the table exists already").with("table", id);
        if self.catalog().location(id).await?.is_some() {
            return Err(exists());
        }
        let invalid = |e| errors::iceberg(e, "making the metadata of a new table").with("table", id);
        let uuid = Uuid::now_v7();
        let mut defaults = HashMap::from([
            (TableProperties::PROPERTY_METADATA_PREVIOUS_VERSIONS_MAX.to_owned(), PREVIOUS_METADATA.to_owned()),
            ("write.parquet.compression-codec".to_owned(), "zstd".to_owned()),
        ]);
        defaults.extend(properties);
        let wanted = schema.as_struct().clone();
        let built = TableMetadataBuilder::new(
            schema,
            spec.unwrap_or_else(PartitionSpec::unpartition_spec).into_unbound(),
            SortOrder::unsorted_order(),
            self.new_location(id, uuid),
            FormatVersion::V2,
            defaults,
        )
        .and_then(|builder| builder.assign_uuid(uuid).build())
        .map_err(invalid)?;
        // A new table's field ids are the crate's to give; other properties of ours name them already.
        if built.metadata.current_schema().as_struct() != &wanted {
            return Err(Error::bug(
                "the field ids of a new table must be 1, 2, … for its columns, then for their elements",
            )
            .with("table", id));
        }
        let prepared =
            row_delta::prepare(self.storage(), &built.metadata, &SnapshotChange::new(Operation::Append)).await?;
        let metadata = built
            .metadata
            .into_builder(None)
            .set_branch_snapshot(prepared.snapshot, MAIN_BRANCH)
            .and_then(|builder| builder.build())
            .map_err(invalid)?
            .metadata;
        let location = MetadataLocation::new_with_metadata(metadata.location(), &metadata);
        metadata.write_to(self.storage().file_io(), &location).await.map_err(invalid)?;
        let location = location.to_string();
        self.catalog().create_namespace(&namespace(id.namespace())).await?;
        if self.insert(id, &location).await? == Written::Refused {
            let mut files = prepared.written;
            files.push(location);
            self.storage().delete_quietly(&files).await;
            return Err(exists());
        }
        Ok(Table::new(id.clone(), Arc::new(metadata), location, self.storage().clone()))
    }

    /// Adds the row of a new table, and learns what came of it if the answer was lost.
    async fn insert(&self, id: &TableIdent, location: &str) -> Result<Written> {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.catalog().insert(id, location).await {
                Ok(Written::Refused) if tries > 1 => {
                    // Perhaps by our own earlier try.
                    let ours = self.catalog().location(id).await?.as_deref() == Some(location);
                    return Ok(if ours { Written::Done } else { Written::Refused });
                }
                Ok(written) => return Ok(written),
                Err(error) => error,
            };
            if tries == CREATE_TRIES || !error.is_retryable() {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn new_location(&self, id: &TableIdent, uuid: Uuid) -> String {
        let clean = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' }).collect()
        };
        let unique = uuid.simple().to_string();
        format!(
            "{}/{}/{}-{}",
            self.storage().warehouse_location(),
            clean(&namespace(id.namespace())),
            clean(id.name()),
            &unique[unique.len() - 12..]
        )
    }

    /// One atomic change on top of `table`, or the news that somebody else was first.
    ///
    /// Nothing is retried on a conflict. An error of `Action::Retry` can leave the outcome unknown (the catalog was away for
    /// minutes): load the table and look at it before anything is prepared again. After a conflict the change's data files are
    /// the caller's; an attempt that fails before the swap takes them with it, for a disk that is full would fill with tries.
    pub async fn commit(&self, table: &Table, change: TableChange) -> Result<Commit> {
        commit::commit(self, table, change).await
    }

    /// Problems with the catalog's and the bucket's rights, one sentence each; empty: none.
    pub async fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = self.catalog().probe().await {
            problems.push(error.to_string());
        }
        if let Err(error) = self.probe_storage().await {
            problems.push(error.to_string());
        }
        problems
    }

    /// Writes, reads, lists and deletes an object.
    async fn probe_storage(&self) -> Result<()> {
        let folder = format!("{}/.lakeward-check", self.storage().warehouse_location());
        let location = format!("{folder}/{}", Uuid::new_v4().simple());
        self.storage().put(&location, Bytes::from_static(b"lakeward check")).await?;
        let read = self.storage().get(&location).await;
        let listed = self.storage().list(&folder).await;
        self.storage().delete(&location).await?;
        if read? != Bytes::from_static(b"lakeward check") {
            return Err(Error::human("the warehouse does not return what was written").with("location", location));
        }
        if !listed?.contains(&location) {
            return Err(Error::human("the warehouse does not list what was written").with("location", location));
        }
        Ok(())
    }
}

fn namespace(namespace: &NamespaceIdent) -> String {
    namespace.join(".")
}
