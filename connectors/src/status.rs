//! What running connectors tell of themselves: connector -> [`StatusBoard`] -> `lakeward status`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lakeward_event::Checkpoint;
use serde::Serialize;

/// A source as its connector sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SourceStatus {
    /// What it is doing, in a few words: `streaming`, `waiting for transaction 812 before the snapshot`.
    pub state: String,
    /// The last committed checkpoint.
    pub checkpoint: Option<i64>,
    pub position: Option<String>,
    /// Microseconds since 1970.
    pub watermark: Option<i64>,
    pub converging: Vec<String>,
    /// Rows handed to the log since the process started.
    pub rows: u64,
    /// Source's clock minus ours, microseconds.
    pub clock_offset: i64,
    /// Tables that match the configuration and are not captured, with the reason.
    pub left_out: Vec<String>,
    pub last_error: Option<String>,
}

/// The status of every source of this process.
#[derive(Debug, Default)]
pub struct StatusBoard {
    // Held for a few assignments only, never across an await.
    sources: Mutex<BTreeMap<String, SourceStatus>>,
}

impl StatusBoard {
    pub fn update(&self, source: &str, change: impl FnOnce(&mut SourceStatus)) {
        change(self.lock().entry(source.to_owned()).or_default());
    }

    /// Notes a committed checkpoint, and tells it to the metrics.
    pub fn committed(&self, source: &str, checkpoint: &Checkpoint, rows: u64) {
        metrics::counter!("lakeward_published_rows_total", "source" => source.to_owned()).increment(rows);
        metrics::gauge!("lakeward_watermark_seconds", "source" => source.to_owned())
            .set(checkpoint.draft.watermark as f64 / 1e6);
        self.update(source, |status| {
            status.checkpoint = Some(checkpoint.id);
            status.position = Some(checkpoint.draft.position.to_string());
            status.watermark = Some(checkpoint.draft.watermark);
            status.converging.clone_from(&checkpoint.draft.converging);
            status.rows += rows;
        });
    }

    /// All sources, by name.
    pub fn sources(&self) -> BTreeMap<String, SourceStatus> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, SourceStatus>> {
        // A panic elsewhere leaves at worst a half-updated status.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
