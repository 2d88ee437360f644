//! Live files of a snapshot: manifest list -> manifests -> [`SnapshotFiles`].
//!
//! Lists and manifests never change, so each is read once per process and kept within a bound; the next snapshot shares most of
//! its manifests with this one.

use std::sync::{Arc, LazyLock};

use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, DataFile, ManifestFile, ManifestList, SnapshotRef, TableMetadata};
use lakeward_runtime::{Error, Result};

use crate::cache::Cache;
use crate::errors;
use crate::storage::Storage;

/// Bytes, about. A manifest entry of a 20-column table takes 3 to 5 kB in memory.
const CACHED_MANIFESTS: u64 = 96 << 20;
const CACHED_LISTS: u64 = 16 << 20;
/// Parsed entries against their Avro bytes, which are compressed.
const GROWTH: u64 = 12;
/// Manifests read at once.
const READS: usize = 16;

static MANIFESTS: LazyLock<Cache<Vec<Entry>>> = LazyLock::new(|| Cache::new(CACHED_MANIFESTS));
static LISTS: LazyLock<Cache<Vec<ManifestFile>>> = LazyLock::new(|| Cache::new(CACHED_LISTS));

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

/// A live entry of a manifest, with everything needed to carry it over into another manifest.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) file: Arc<DataFile>,
    /// The snapshot that added the file.
    pub(crate) snapshot_id: i64,
    pub(crate) sequence_number: i64,
    pub(crate) file_sequence_number: i64,
}

/// The manifests of a snapshot.
pub(crate) async fn manifest_list(
    storage: &Storage,
    metadata: &TableMetadata,
    snapshot: &SnapshotRef,
) -> Result<Arc<Vec<ManifestFile>>> {
    let location = snapshot.manifest_list();
    if let Some(list) = LISTS.get(location) {
        return Ok(list);
    }
    let bytes = storage.get(location).await?;
    let weight = bytes.len() as u64 * GROWTH;
    let list = ManifestList::parse_with_version(&bytes, metadata.format_version())
        .map_err(|e| errors::iceberg(e, "parsing a manifest list").with("location", location))?;
    let list = Arc::new(list.entries().to_vec());
    LISTS.insert(location.to_owned(), list.clone(), weight);
    Ok(list)
}

/// The live entries of a manifest.
pub(crate) async fn entries(storage: &Storage, manifest: &ManifestFile) -> Result<Arc<Vec<Entry>>> {
    if let Some(entries) = MANIFESTS.get(&manifest.manifest_path) {
        return Ok(entries);
    }
    let failed = |e| errors::iceberg(e, "reading a manifest").with("location", &manifest.manifest_path);
    let parsed = manifest.load_manifest(storage.file_io()).await.map_err(failed)?;
    let incomplete =
        || Error::human("a manifest entry lacks a sequence number").with("location", &manifest.manifest_path);
    let mut entries = Vec::with_capacity(parsed.entries().len());
    for entry in parsed.entries().iter().filter(|e| e.is_alive()) {
        entries.push(Entry {
            file: Arc::new(entry.data_file().clone()),
            snapshot_id: entry.snapshot_id().ok_or_else(incomplete)?,
            sequence_number: entry.sequence_number().ok_or_else(incomplete)?,
            file_sequence_number: entry.file_sequence_number.ok_or_else(incomplete)?,
        });
    }
    let entries = Arc::new(entries);
    MANIFESTS.insert(manifest.manifest_path.clone(), entries.clone(), manifest.manifest_length.max(0) as u64 * GROWTH);
    Ok(entries)
}

/// A manifest that only says what was removed says nothing about later snapshots.
pub(crate) fn has_live(manifest: &ManifestFile) -> bool {
    manifest.has_added_files() || manifest.has_existing_files()
}

async fn read_manifest(storage: Storage, manifest: ManifestFile) -> Result<(i32, Arc<Vec<Entry>>)> {
    let entries = entries(&storage, &manifest).await?;
    Ok((manifest.partition_spec_id, entries))
}

pub(crate) async fn read(
    storage: &Storage,
    metadata: &TableMetadata,
    snapshot: &SnapshotRef,
) -> Result<Arc<SnapshotFiles>> {
    let list = manifest_list(storage, metadata, snapshot).await?;
    // Owned throughout: a stream of borrowed futures cannot be proved `Send`.
    let reads: Vec<_> =
        list.iter().filter(|m| has_live(m)).map(|manifest| read_manifest(storage.clone(), manifest.clone())).collect();
    let manifests: Vec<_> = futures::stream::iter(reads).buffered(READS).try_collect().await?;
    let mut files = SnapshotFiles::default();
    for (spec_id, entries) in manifests {
        for entry in entries.iter() {
            let live = LiveFile { file: entry.file.clone(), sequence_number: entry.sequence_number, spec_id };
            match entry.file.content_type() {
                DataContentType::Data => files.data.push(live),
                DataContentType::PositionDeletes | DataContentType::EqualityDeletes => files.deletes.push(live),
            }
        }
    }
    Ok(Arc::new(files))
}
