//! What sink and query share of Iceberg: catalog, storage, schemas, and our own commits.
//!
//! `sink -> Lake::commit -> manifests, metadata.json in the warehouse -> compare-and-swap in the catalog -> query`
//!
//! # Layout
//! - [`storage`]: iceberg's `Storage` over object_store
//! - [`catalog`]: SQL catalogs (SQLite, PostgreSQL) in the schema Iceberg's JDBC catalog uses
//! - [`types`]: logical types to Iceberg's
//! - [`evolution`]: what a table's schema must become, a pure function
//! - [`row_delta`]: one snapshot of data files and delete files
//! - [`deletes`]: position deletes of a snapshot
