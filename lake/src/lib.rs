//! What sink and query share of Iceberg: catalog, storage, schemas, and our own commits.
//!
//! `sink -> Lake::commit -> manifests, metadata.json in the warehouse -> compare-and-swap in the catalog -> query`
//!
//! # Layout
//! - [`storage`]: iceberg's `Storage` over object_store; `local`: durable writes to a local directory
//! - [`catalog`]: SQL catalogs (SQLite, PostgreSQL) in the schema Iceberg's JDBC catalog uses
//! - [`lake`]: [`Lake`], the catalog and the storage together
//! - [`table`]: [`Table`], one table at one metadata file
//! - [`types`]: logical types to Iceberg's, Iceberg schemas to Arrow's
//! - [`evolution`]: what a table's schema must become, a pure function
//! - [`row_delta`]: one snapshot of data files and delete files, prepared
//! - [`commit`]: the prepared change, swapped in or refused
//! - [`files`]: live data and delete files of a snapshot
//! - [`deletes`]: position deletes of a snapshot
//! - [`writing`]: data files and position delete files; `metrics`: what their manifest entries say about them
//! - [`system`]: `lakeward.checkpoints` and `lakeward.dead_letters`

mod cache;
pub mod catalog;
pub mod commit;
pub mod deletes;
mod errors;
pub mod evolution;
pub mod files;
pub mod lake;
mod local;
mod metrics;
pub mod row_delta;
pub mod storage;
pub mod system;
pub mod table;
pub mod types;
pub mod writing;

pub use commit::{Commit, SnapshotChange, TableChange};
pub use deletes::position_deletes;
pub use evolution::{ColumnMap, Evolution, MappedColumn, SourceColumn, evolve};
pub use files::{LiveFile, SnapshotFiles};
pub use lake::Lake;
pub use storage::Storage;
pub use table::Table;
pub use types::{arrow_schema, iceberg_type};
pub use writing::{DataFileWriter, WriteOptions, write_position_deletes};

/// Table property: JSON list of the field ids of the key, in key order; `[]` where there is none.
pub const KEY_PROPERTY: &str = "lakeward.key";
/// Table property: [`ColumnMap`] as JSON.
pub const COLUMNS_PROPERTY: &str = "lakeward.columns";
/// Table property: JSON object of `source`, `schema` and `name`, the table as its source spells it.
pub const SOURCE_PROPERTY: &str = "lakeward.source";
