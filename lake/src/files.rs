//! Live files of a snapshot: manifest list -> manifests -> [`SnapshotFiles`].

use std::sync::Arc;

use iceberg::spec::DataFile;

/// All live files of one snapshot.
#[derive(Debug, Default)]
pub struct SnapshotFiles {
    pub data: Vec<LiveFile>,
    /// Position and equality deletes.
    pub deletes: Vec<LiveFile>,
}

/// A live file with what its manifest entry says.
#[derive(Debug, Clone)]
pub struct LiveFile {
    /// Shared with the cache of manifests.
    pub file: Arc<DataFile>,
    /// The data sequence number: a position delete applies to data files with the same or a smaller one.
    pub sequence_number: i64,
    pub spec_id: i32,
}
