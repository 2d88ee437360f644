//! The checkpoint: the last record of every append. connector -> `<source>.__checkpoints` -> connector (resume), sink (cuts),
//! readers (freshness).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::position::Position;

/// End offsets (offset after the last record) by topic and partition.
pub type Ends = BTreeMap<String, BTreeMap<i32, i64>>;

/// A promise about a source's log: everything before `position` is in it, at offsets below `ends`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Grows for ever: last + 1, and at least the wall clock in microseconds.
    pub id: i64,
    #[serde(flatten)]
    pub draft: CheckpointDraft,
    /// Wall clock of the publisher when it was appended, microseconds since 1970.
    pub wall_clock: i64,
    /// End offset of every data topic-partition touched since the checkpoint before; of all where `complete`.
    pub ends: Ends,
    pub complete: bool,
}

/// A checkpoint before the log has put ids and offsets into it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointDraft {
    pub position: Position,
    /// The next value of the publisher's counter; order is `sequence`, nothing else.
    pub next_sequence: u64,
    /// Progress of unfinished snapshots. The connector's own: nobody else reads it.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub snapshot: serde_json::Value,
    /// Tables (`schema.name`) whose snapshot is not finished; all others are exact at a `cut`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub converging: Vec<String>,
    /// The tick (microseconds since 1970, a multiple of `checkpoint_interval`) after the source's last published commit.
    pub watermark_from: i64,
    /// Every commit acknowledged by the source before this tick of its clock is included.
    pub watermark: i64,
    /// At a transaction boundary and on the grid (or asked for by `verify`): tables may be read together here.
    pub cut: bool,
}
