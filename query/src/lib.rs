//! SQL over the lake, at one consistent moment. Iceberg -> SQL rows; never reads the log.
//!
//! `text -> statement -> tables it names -> cut -> snapshot of each table -> plan -> batches -> table, csv, json, arrow`
//!
//! # Layout
//! - [`engine`]: [`Engine`], one statement from text to a stream of batches
//! - [`cut`]: the moment that a query reads, a pure function over rows of `lakeward.checkpoints`
//! - [`catalog`]: the catalog `lake`, bound to the snapshots of one query
//! - [`tables`]: what the lake holds now, re-read cheaply: tables, checkpoint rows, cuts
//! - [`scan`]: a table at a snapshot as DataFusion's Parquet scan, with position deletes and columns by field id
//! - [`system`]: the views `lakeward.freshness`, `lakeward.tables`, `lakeward.sources`
//! - [`pg`]: PostgreSQL's habits that DataFusion lacks: uuid, infinities, text forms
//! - [`format`]: answers as table, csv, json, ndjson, arrow

pub mod catalog;
pub mod cut;
pub mod engine;
pub mod format;
pub mod pg;
pub mod scan;
mod statement;
pub mod system;
pub mod tables;

pub use cut::{AsOf, Cut};
pub use engine::{Answer, Engine, Session};
pub use format::Format;
pub use statement::{Statement, parse};
