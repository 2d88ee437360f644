//! What a change is: the types every stage of Lakeward shares. No I/O, no Iceberg types.
//!
//! `source rows -> ChangeBatch -> log record -> ChangeBatch -> rows of a table`
//!
//! # Layout
//! - [`types`]: logical types of columns and their Arrow form
//! - [`schema`]: a table's identity, columns and key under one schema version
//! - [`batch`]: [`ChangeBatch`], the unit of work: consecutive changes of one table, as columns
//! - [`position`]: a place in a source
//! - [`checkpoint`]: what a connector writes last into every append
//! - [`key`]: keys as bytes and hashes, whatever the width of their columns
//! - [`names`]: topics, namespaces, tables
//! - [`partition`]: a key's partition, as Kafka's own clients choose it
//! - [`document`]: MongoDB documents and patches to columns
//! - [`codec`]: bytes of the log to and from `ChangeBatch`

pub mod batch;
pub mod checkpoint;
pub mod codec;
pub mod document;
pub mod error;
pub mod key;
pub mod names;
pub mod partition;
pub mod position;
pub mod schema;
pub mod types;

pub use batch::{ChangeBatch, ChangeColumns, ChangeMeta, Op};
pub use checkpoint::{Checkpoint, CheckpointDraft, Ends};
pub use error::{Error, Result};
pub use partition::partition;
pub use position::Position;
pub use schema::{Column, TableId, TableSchema};
pub use types::LogicalType;
