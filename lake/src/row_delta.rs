//! One snapshot of added and removed files, prepared: change -> manifests, manifest list -> [`Snapshot`], not yet in the table.
//!
//! Entries that stay keep their snapshot id and sequence numbers, totals stay exact, manifests without a live file are dropped,
//! and many small manifests are merged into one.

use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use iceberg::metadata_columns::RESERVED_FIELD_ID_DELETE_FILE_PATH;
use iceberg::spec::{
    DataContentType, DataFile, FormatVersion, ManifestContentType, ManifestFile, ManifestListWriter, ManifestWriter,
    ManifestWriterBuilder, PartitionSpecRef, PrimitiveLiteral, Snapshot, SnapshotSummaryCollector, Summary,
    TableMetadata,
};
use lakeward_runtime::{Error, Result};
use uuid::Uuid;

use crate::commit::SnapshotChange;
use crate::errors;
use crate::files::{self, Entry};
use crate::storage::Storage;

/// Planning reads every manifest, so their number is bounded; below this a commit only adds its own.
const MERGE_ABOVE: usize = 100;
/// Bytes. A manifest this large is not worth rewriting for the sake of its number (Iceberg's own target).
const MERGED_SIZE: i64 = 8 << 20;

/// A file within a table: several deletion vectors share a path.
type FileKey = (String, Option<i64>);

fn key(file: &DataFile) -> FileKey {
    (file.file_path().to_owned(), file.content_offset())
}

/// A prepared snapshot and the files that hold it.
pub(crate) struct Prepared {
    pub(crate) snapshot: Snapshot,
    /// Manifests and manifest list of this attempt.
    pub(crate) written: Vec<String>,
}

/// Writes the manifests of `change` on top of `metadata`'s newest snapshot; `metadata` has the new schema already. What was
/// written by an attempt that fails is deleted.
pub(crate) async fn prepare(storage: &Storage, metadata: &TableMetadata, change: &SnapshotChange) -> Result<Prepared> {
    let mut attempt = Attempt {
        storage,
        metadata,
        snapshot_id: new_snapshot_id(metadata),
        uuid: Uuid::now_v7(),
        written: Vec::new(),
        summary: SnapshotSummaryCollector::default(),
    };
    match attempt.run(change).await {
        Ok(snapshot) => Ok(Prepared { snapshot, written: attempt.written }),
        Err(error) => {
            storage.delete_quietly(&attempt.written).await;
            Err(error)
        }
    }
}

struct Attempt<'a> {
    storage: &'a Storage,
    metadata: &'a TableMetadata,
    snapshot_id: i64,
    /// In the names of all its files.
    uuid: Uuid,
    written: Vec<String>,
    summary: SnapshotSummaryCollector,
}

impl Attempt<'_> {
    async fn run(&mut self, change: &SnapshotChange) -> Result<Snapshot> {
        if self.metadata.format_version() != FormatVersion::V2 {
            return Err(Error::human("only tables of format version 2 can be written")
                .with("version", self.metadata.format_version()));
        }
        let parent = self.metadata.current_snapshot();
        let inherited = match parent {
            Some(parent) => files::manifest_list(self.storage, self.metadata, parent).await?,
            None => Default::default(),
        };

        let mut manifests = self.add(change, &inherited).await?;
        let (carried, rewritten) = self.remove(change, &inherited).await?;
        manifests.extend(rewritten);
        manifests.extend(self.merge(carried).await?);

        let list = format!("{}/metadata/snap-{}-1-{}.avro", self.metadata.location(), self.snapshot_id, self.uuid);
        let failed = |e| errors::iceberg(e, "writing a manifest list");
        let output = self.storage.file_io().new_output(&list).map_err(failed)?;
        self.written.push(list.clone());
        let sequence_number = self.metadata.next_sequence_number();
        let parent_id = parent.map(|p| p.snapshot_id());
        let file = output.writer().await.map_err(failed)?;
        let mut writer = ManifestListWriter::v2(file, self.snapshot_id, parent_id, sequence_number);
        writer.add_manifests(manifests.into_iter()).map_err(failed)?;
        writer.close().await.map_err(failed)?;

        let mut properties = change.summary.clone();
        properties.extend(self.summary.build());
        totals(&mut properties, parent.map(|p| p.summary()));
        Ok(Snapshot::builder()
            .with_manifest_list(list)
            .with_snapshot_id(self.snapshot_id)
            .with_parent_snapshot_id(parent_id)
            .with_sequence_number(sequence_number)
            .with_summary(Summary { operation: change.operation.clone(), additional_properties: properties })
            .with_schema_id(self.metadata.current_schema_id())
            // Never before the table's last change, whatever this machine's clock says.
            .with_timestamp_ms(now_ms().max(self.metadata.last_updated_ms()))
            .build())
    }

    /// Manifests of the added files.
    async fn add(&mut self, change: &SnapshotChange, inherited: &[ManifestFile]) -> Result<Vec<ManifestFile>> {
        let mut manifests = Vec::new();
        let default = self.metadata.default_partition_spec().clone();
        if !change.added_data.is_empty() {
            manifests.push(self.add_files(ManifestContentType::Data, &default, &change.added_data).await?);
        }
        if !change.added_deletes.is_empty() {
            let mut by_spec: HashMap<i32, Vec<DataFile>> = HashMap::new();
            for file in &change.added_deletes {
                let spec = self.spec_of_delete(file, change, inherited).await?;
                by_spec.entry(spec).or_default().push(file.clone());
            }
            for (spec_id, files) in by_spec {
                let spec = self.spec(spec_id)?;
                manifests.push(self.add_files(ManifestContentType::Deletes, &spec, &files).await?);
            }
        }
        Ok(manifests)
    }

    async fn add_files(
        &mut self,
        content: ManifestContentType,
        spec: &PartitionSpecRef,
        files: &[DataFile],
    ) -> Result<ManifestFile> {
        let mut writer = self.writer(content, spec)?;
        for file in files {
            self.summary.add_file(file, self.metadata.current_schema().clone(), spec.clone());
            // A negative number is inherited from the commit.
            writer.add_file(file.clone(), -1).map_err(|e| errors::iceberg(e, "adding a file to a manifest"))?;
        }
        finish(writer).await
    }

    /// A delete file is found only through the spec of the data files it names; a wrong one brings rows back.
    async fn spec_of_delete(
        &self,
        file: &DataFile,
        change: &SnapshotChange,
        inherited: &[ManifestFile],
    ) -> Result<i32> {
        let default = self.metadata.default_partition_spec_id();
        if self.metadata.partition_specs_iter().len() == 1 {
            return Ok(default);
        }
        let lower = file.lower_bounds().get(&RESERVED_FIELD_ID_DELETE_FILE_PATH).map(|d| d.literal().clone());
        let target = match (file.referenced_data_file(), lower) {
            (Some(path), _) | (None, Some(PrimitiveLiteral::String(path))) => path,
            _ => {
                return Err(
                    Error::bug("a delete file does not say which data files it names").with("file", file.file_path())
                );
            }
        };
        if change.added_data.iter().any(|f| f.file_path() == target) {
            return Ok(default);
        }
        for manifest in inherited.iter().filter(|m| m.content == ManifestContentType::Data && files::has_live(m)) {
            let entries = files::entries(self.storage, manifest).await?;
            if entries.iter().any(|e| e.file.file_path() == target) {
                return Ok(manifest.partition_spec_id);
            }
        }
        Err(Error::bug("a delete file names a data file that is not live").with("file", target))
    }

    /// Splits the inherited manifests into those that stay as they are and, for those with a removed file, new ones.
    async fn remove(
        &mut self,
        change: &SnapshotChange,
        inherited: &[ManifestFile],
    ) -> Result<(Vec<ManifestFile>, Vec<ManifestFile>)> {
        let mut missing: HashSet<FileKey> = change.removed.iter().map(key).collect();
        let contents: Vec<_> = [ManifestContentType::Data, ManifestContentType::Deletes]
            .into_iter()
            .filter(|content| {
                change
                    .removed
                    .iter()
                    .any(|f| (f.content_type() == DataContentType::Data) == (*content == ManifestContentType::Data))
            })
            .collect();
        let (mut carried, mut rewritten) = (Vec::new(), Vec::new());
        for manifest in inherited.iter().filter(|m| files::has_live(m)) {
            if missing.is_empty() || !contents.contains(&manifest.content) {
                carried.push(manifest.clone());
                continue;
            }
            let entries = files::entries(self.storage, manifest).await?;
            if !entries.iter().any(|e| missing.contains(&key(&e.file))) {
                carried.push(manifest.clone());
                continue;
            }
            let spec = self.spec(manifest.partition_spec_id)?;
            let mut writer = self.writer(manifest.content, &spec)?;
            for entry in entries.iter() {
                if missing.remove(&key(&entry.file)) {
                    self.summary.remove_file(&entry.file, self.metadata.current_schema().clone(), spec.clone());
                    writer
                        .add_delete_file((*entry.file).clone(), entry.sequence_number, Some(entry.file_sequence_number))
                        .map_err(|e| errors::iceberg(e, "removing a file in a manifest"))?;
                } else {
                    add_existing(&mut writer, entry)?;
                }
            }
            rewritten.push(finish(writer).await?);
        }
        match missing.into_iter().next() {
            None => Ok((carried, rewritten)),
            Some((path, _)) => {
                Err(Error::bug("a file to remove is not live in the table's newest snapshot").with("file", path))
            }
        }
    }

    /// Merges small manifests of one content and spec when there are many.
    async fn merge(&mut self, manifests: Vec<ManifestFile>) -> Result<Vec<ManifestFile>> {
        let mut groups: HashMap<(i32, i32), Vec<ManifestFile>> = HashMap::new();
        for manifest in manifests {
            groups.entry((manifest.content as i32, manifest.partition_spec_id)).or_default().push(manifest);
        }
        let mut merged = Vec::new();
        for ((_, spec_id), group) in groups {
            let (small, large): (Vec<_>, Vec<_>) = group.into_iter().partition(|m| m.manifest_length < MERGED_SIZE);
            merged.extend(large);
            let Some(first) = small.first().filter(|_| small.len() > MERGE_ABOVE) else {
                merged.extend(small);
                continue;
            };
            let spec = self.spec(spec_id)?;
            let content = first.content;
            let mut writer = self.writer(content, &spec)?;
            let mut size = 0;
            for manifest in &small {
                if size > MERGED_SIZE {
                    merged.push(finish(std::mem::replace(&mut writer, self.writer(content, &spec)?)).await?);
                    size = 0;
                }
                for entry in files::entries(self.storage, manifest).await?.iter() {
                    add_existing(&mut writer, entry)?;
                }
                size += manifest.manifest_length;
            }
            merged.push(finish(writer).await?);
        }
        Ok(merged)
    }

    fn writer(&mut self, content: ManifestContentType, spec: &PartitionSpecRef) -> Result<ManifestWriter> {
        let location = format!("{}/metadata/{}-m{}.avro", self.metadata.location(), self.uuid, self.written.len());
        let output = self
            .storage
            .file_io()
            .new_output(&location)
            .map_err(|e| errors::iceberg(e, "writing a manifest").with("location", &location))?;
        self.written.push(location);
        let schema = self.metadata.current_schema().clone();
        let builder = ManifestWriterBuilder::new(output, Some(self.snapshot_id), schema, spec.as_ref().clone());
        Ok(match content {
            ManifestContentType::Data => builder.build_v2_data(),
            ManifestContentType::Deletes => builder.build_v2_deletes(),
        })
    }

    fn spec(&self, id: i32) -> Result<PartitionSpecRef> {
        let spec = self.metadata.partition_spec_by_id(id);
        spec.cloned()
            .ok_or_else(|| Error::human("a manifest names a partition spec the table does not have").with("spec", id))
    }
}

fn add_existing(writer: &mut ManifestWriter, entry: &Entry) -> Result<()> {
    writer
        .add_existing_file(
            (*entry.file).clone(),
            entry.snapshot_id,
            entry.sequence_number,
            Some(entry.file_sequence_number),
        )
        .map_err(|e| errors::iceberg(e, "carrying a file over into a manifest"))
}

async fn finish(writer: ManifestWriter) -> Result<ManifestFile> {
    writer.write_manifest_file().await.map_err(|e| errors::iceberg(e, "writing a manifest"))
}

fn new_snapshot_id(metadata: &TableMetadata) -> i64 {
    loop {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        // Positive: readers print it, and some parse it unsigned.
        let id = ((high ^ low) & i64::MAX as u64) as i64;
        if id != 0 && metadata.snapshot_by_id(id).is_none() {
            return id;
        }
    }
}

pub(crate) fn now_ms() -> i64 {
    // Before 1970 only if the clock is broken; then the table's own last change is used.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// Totals of the snapshot from its parent's. A total that the parent does not know stays unknown.
fn totals(properties: &mut HashMap<String, String>, parent: Option<&Summary>) {
    const TOTALS: [(&str, &str, &str); 6] = [
        ("total-data-files", "added-data-files", "deleted-data-files"),
        ("total-delete-files", "added-delete-files", "removed-delete-files"),
        ("total-records", "added-records", "deleted-records"),
        ("total-files-size", "added-files-size", "removed-files-size"),
        ("total-position-deletes", "added-position-deletes", "removed-position-deletes"),
        ("total-equality-deletes", "added-equality-deletes", "removed-equality-deletes"),
    ];
    let number = |map: &HashMap<String, String>, key: &str| map.get(key).and_then(|v| v.parse::<i64>().ok());
    for (total, added, removed) in TOTALS {
        // Only this is the total; one that came with the change would be somebody else's.
        properties.remove(total);
        let before = match parent {
            None => Some(0),
            Some(parent) => number(&parent.additional_properties, total),
        };
        if let Some(before) = before {
            let now = before + number(properties, added).unwrap_or(0) - number(properties, removed).unwrap_or(0);
            properties.insert(total.into(), now.to_string());
        }
    }
}
