//! `lakeward.checkpoints` and `lakeward.dead_letters`, tables of our own.

use std::collections::{BTreeMap, HashMap};

use lakeward_runtime::Result;

use crate::lake::Lake;

/// Namespace of the system tables.
pub const NAMESPACE: &str = "lakeward";

/// One complete cut of a source. Times are microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRow {
    pub source: String,
    pub checkpoint: i64,
    pub position: String,
    pub watermark_from: i64,
    pub watermark: i64,
    pub committed_at: i64,
    /// `namespace.table` of tables whose snapshot is not finished.
    pub converging: Vec<String>,
    /// `tables` holds all tables of the source.
    pub complete: bool,
    /// `namespace.table` to snapshot id.
    pub tables: BTreeMap<String, i64>,
}

/// What came of appending checkpoint rows.
#[derive(Debug, PartialEq, Eq)]
pub enum Appended {
    Done,
    /// Nothing was written: the source already has this checkpoint or a newer one.
    Refused { source: String, newest: i64 },
}

/// `lakeward.checkpoints`.
#[derive(Clone)]
pub struct CheckpointTable;

impl CheckpointTable {
    /// Creates the table if it is missing.
    pub async fn open(_lake: &Lake) -> Result<Self> {
        todo!()
    }
    /// Each source's newest row.
    pub async fn newest(&self) -> Result<HashMap<String, CheckpointRow>> {
        todo!()
    }
    /// Rows of a source, newest first: all whose watermark is greater than `newer_than_watermark`, then on down to the newest `complete` row at or below it, so that every table's snapshot at that moment is among them. None: from the newest row down to the newest complete one.
    pub async fn rows(&self, _source: &str, _newer_than_watermark: Option<i64>) -> Result<Vec<CheckpointRow>> {
        todo!()
    }
    /// Appends rows, all or none, by compare-and-swap. Re-reads first: refuses a row whose checkpoint is not greater than its source's newest.
    pub async fn append(&self, _rows: Vec<CheckpointRow>) -> Result<Appended> {
        todo!()
    }
}

/// One value or row that could not be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Microseconds.
    pub at: i64,
    pub source: String,
    /// `namespace.table`
    pub table: String,
    /// None: the whole row.
    pub column: Option<String>,
    /// JSON.
    pub key: Option<String>,
    pub position: Option<String>,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub error: String,
    pub payload: Option<String>,
    pub attempt: i32,
}

/// `lakeward.dead_letters`.
#[derive(Clone)]
pub struct DeadLetterTable;

impl DeadLetterTable {
    /// Creates the table if it is missing.
    pub async fn open(_lake: &Lake) -> Result<Self> {
        todo!()
    }
    /// Appends letters. `done` (topic to partition to end offset) is merged into the offsets kept with the table: letters at an offset below what it already says are skipped, so that a retry writes none twice.
    pub async fn append(&self, _letters: Vec<DeadLetter>, _done: BTreeMap<String, BTreeMap<i32, i64>>) -> Result<()> {
        todo!()
    }
}
