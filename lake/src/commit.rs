//! One atomic change of a table: prepared snapshot -> metadata.json -> compare-and-swap of the catalog's row.
//!
//! The swap names the exact metadata file the change was prepared on. So it succeeds only if the table's uuid, main's snapshot,
//! the schemas and the last field id are those of the caller's table, and every number in the prepared snapshot is right.
//! Anything else is a conflict, told with the newest table; the caller decides what its change means there.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::time::Duration;

use iceberg::spec::{DataFile, MAIN_BRANCH, Operation, Schema, TableMetadata};
use iceberg::{MetadataLocation, TableIdent};
use lakeward_runtime::error::Context;
use lakeward_runtime::{Error, Result, crash_point};

use crate::catalog::{Catalog, Written};
use crate::errors;
use crate::lake::Lake;
use crate::row_delta::{self, Prepared, now_ms};
use crate::table::Table;

/// Snapshots that stay in metadata.json; it is rewritten with every commit.
const KEPT_SNAPSHOTS: usize = 200;
/// Younger snapshots stay whatever their number: readers and the rows of `lakeward.checkpoints` name them.
const KEPT_AGE_MS: i64 = 60 * 60 * 1000;
/// How long an unknown outcome is asked for; beyond it the caller starts again from the table as it then is.
const SETTLE: Duration = Duration::from_secs(120);
const SETTLE_PAUSE: Duration = Duration::from_millis(500);

/// How an attempt to commit ended. An outcome that was unknown for a while has been settled.
#[derive(Debug)]
pub enum Commit {
    /// The change is in: the table with it.
    Done(Table),
    /// Somebody else was first, nothing was changed: the newest table. The change's data files are still the caller's.
    Conflict(Table),
}

/// One atomic change of a table: at most one snapshot.
#[derive(Debug, Default)]
pub struct TableChange {
    /// New current schema, with field ids given by [`crate::evolve`]; None: unchanged.
    pub schema: Option<Schema>,
    /// None: schema and properties only.
    pub snapshot: Option<SnapshotChange>,
    /// Set on the table, others stay.
    pub properties: HashMap<String, String>,
}

/// The files of a new snapshot, relative to the table's newest one.
#[derive(Debug)]
pub struct SnapshotChange {
    pub operation: Operation,
    /// Under the table's default partition spec.
    pub added_data: Vec<DataFile>,
    /// Position delete files; each names data files of one spec and partition.
    pub added_deletes: Vec<DataFile>,
    /// Live data or delete files to remove (truncate: all).
    pub removed: Vec<DataFile>,
    /// Extra summary properties (offsets, checkpoint).
    pub summary: HashMap<String, String>,
}

impl SnapshotChange {
    /// Without files or summary.
    pub fn new(operation: Operation) -> Self {
        Self { operation, added_data: vec![], added_deletes: vec![], removed: vec![], summary: HashMap::new() }
    }
}

/// See [`Lake::commit`].
pub(crate) async fn commit(lake: &Lake, table: &Table, change: TableChange) -> Result<Commit> {
    let added = change.snapshot.as_ref().map_or(Vec::new(), |s| {
        s.added_data.iter().chain(&s.added_deletes).map(|f| f.file_path().to_owned()).collect()
    });
    let prepared = match Change::prepare(table, change).await {
        Ok(prepared) => prepared,
        Err(error) => {
            lake.storage().delete_quietly(&added).await;
            return Err(error);
        }
    };
    crash_point!("lake.commit.manifests_written");
    let written = prepared.write(lake).await;
    if let Err(error) = written {
        lake.storage().delete_quietly(&prepared.files()).await;
        lake.storage().delete_quietly(&added).await;
        return Err(error);
    }
    crash_point!("lake.commit.before_swap");
    let outcome = swap(lake, table, &prepared).await?;
    crash_point!("lake.commit.after_swap");
    match outcome {
        Written::Done => {
            prepared.delete_expired(lake);
            let Change { metadata, location, .. } = prepared;
            Ok(Commit::Done(Table::new(table.ident().clone(), metadata.into(), location, lake.storage().clone())))
        }
        Written::Refused => {
            // Definite: nobody will ever read this attempt. Its data files stay, they are the caller's.
            lake.storage().delete_quietly(&prepared.files()).await;
            Ok(Commit::Conflict(newest(lake, table).await?))
        }
    }
}

/// The table as it is now, which must still be the same table.
async fn newest(lake: &Lake, table: &Table) -> Result<Table> {
    let Some(newest) = lake.load(table.ident()).await? else {
        return Err(
            Error::human("the table was dropped from the catalog by somebody else").with("table", table.ident())
        );
    };
    if newest.metadata().uuid() != table.metadata().uuid() {
        return Err(Error::human("the table's catalog row was changed by somebody else: it is another table now")
            .with("table", table.ident())
            .with("expected", table.metadata().uuid())
            .with("found", newest.metadata().uuid()));
    }
    Ok(newest)
}

/// A change with everything written or to be written for it.
struct Change {
    snapshot: Option<Prepared>,
    snapshot_id: Option<i64>,
    metadata: TableMetadata,
    /// Of the new metadata file.
    location: String,
    metadata_location: MetadataLocation,
    /// Metadata files that fell out of the log.
    expired: Vec<String>,
}

impl Change {
    async fn prepare(table: &Table, change: TableChange) -> Result<Self> {
        let invalid = |e| errors::iceberg(e, "preparing the table's new metadata").with("table", table.ident());
        let base = table.metadata();
        // The same steps twice: the snapshot must name the new schema, whose id only the finished metadata tells.
        let builder = || {
            let mut builder = base.clone().into_builder(Some(table.metadata_location().to_owned()));
            if let Some(schema) = &change.schema {
                builder = builder.add_current_schema(schema.clone())?;
            }
            builder.set_properties(change.properties.clone())
        };
        let mut next = builder().map_err(invalid)?;
        let mut prepared = None;
        if let Some(snapshot) = &change.snapshot {
            let with_schema = builder().and_then(|b| b.build()).map_err(invalid)?.metadata;
            let done =
                row_delta::prepare(table.storage(), &with_schema, snapshot).await.with("table", table.ident())?;
            next = next
                .set_branch_snapshot(done.snapshot.clone(), MAIN_BRANCH)
                .map_err(invalid)?
                .remove_snapshots(&outlived(base, now_ms()));
            prepared = Some(done);
        }
        let built = next.build().map_err(invalid)?;
        let location = MetadataLocation::from_str(table.metadata_location())
            .map_err(invalid)?
            .with_next_version()
            .with_new_metadata(&built.metadata);
        Ok(Self {
            snapshot_id: prepared.as_ref().map(|p| p.snapshot.snapshot_id()),
            snapshot: prepared,
            metadata: built.metadata,
            location: location.to_string(),
            metadata_location: location,
            expired: built.expired_metadata_logs.into_iter().map(|log| log.metadata_file).collect(),
        })
    }

    async fn write(&self, lake: &Lake) -> Result<()> {
        self.metadata
            .write_to(lake.storage().file_io(), &self.metadata_location)
            .await
            .map_err(|e| errors::iceberg(e, "writing the table's new metadata").with("location", &self.location))
    }

    /// Everything this attempt wrote but the data files.
    fn files(&self) -> Vec<String> {
        let manifests = self.snapshot.iter().flat_map(|p| p.written.iter().cloned());
        manifests.chain([self.location.clone()]).collect()
    }

    /// In the background: the commit is done, and a file that stays is an orphan for maintenance.
    fn delete_expired(&self, lake: &Lake) {
        if self.expired.is_empty() {
            return;
        }
        let (storage, expired) = (lake.storage().clone(), self.expired.clone());
        tokio::spawn(async move { storage.delete_quietly(&expired).await });
    }
}

/// Snapshots that metadata.json need not list any more. Their files stay for maintenance to remove.
fn outlived(metadata: &TableMetadata, now_ms: i64) -> Vec<i64> {
    let mut snapshots: Vec<_> =
        metadata.snapshots().map(|s| (s.sequence_number(), s.timestamp_ms(), s.snapshot_id())).collect();
    snapshots.sort_unstable_by(|a, b| b.cmp(a));
    let current = metadata.current_snapshot_id();
    // The one being added is the first of those that stay.
    let old = snapshots.into_iter().skip(KEPT_SNAPSHOTS - 1);
    old.filter(|(_, at, id)| now_ms - at > KEPT_AGE_MS && Some(*id) != current).map(|(_, _, id)| id).collect()
}

/// Swaps the catalog's row, and settles an unknown outcome: a lost answer does not mean a lost swap.
async fn swap(lake: &Lake, table: &Table, change: &Change) -> Result<Written> {
    let (catalog, id) = (lake.catalog(), table.ident());
    let mut unknown = match catalog.swap(id, table.metadata_location(), &change.location).await {
        Ok(written) => return Ok(written),
        Err(error) => error,
    };
    tracing::warn!(table = %id, error = %unknown, "the outcome of a commit is not known, asking for it");
    let deadline = tokio::time::Instant::now() + SETTLE;
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(SETTLE_PAUSE).await;
        // The swap again: it takes place at most once, since it names the row as it was before.
        match settle(catalog, lake, table, change).await {
            Ok(written) => return Ok(written),
            Err(error) => unknown = error,
        }
    }
    // The attempt's files stay: its swap can still land.
    Err(Error::retry("the outcome of a commit could not be learnt").with("table", id).source(unknown))
}

async fn settle(catalog: &Catalog, lake: &Lake, table: &Table, change: &Change) -> Result<Written> {
    let id: &TableIdent = table.ident();
    if catalog.swap(id, table.metadata_location(), &change.location).await? == Written::Done {
        return Ok(Written::Done);
    }
    // Somebody moved the row: we, or another writer before us, or another one after us.
    if catalog.location(id).await?.as_deref() == Some(change.location.as_str()) {
        return Ok(Written::Done);
    }
    let newest = newest(lake, table).await?;
    let metadata = newest.metadata();
    let known: HashSet<i64> = metadata.snapshots().map(|s| s.snapshot_id()).collect();
    let landed = change.snapshot_id.is_some_and(|snapshot| known.contains(&snapshot))
        || metadata.metadata_log().iter().any(|log| log.metadata_file == change.location);
    Ok(if landed { Written::Done } else { Written::Refused })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iceberg::spec::{FormatVersion, PartitionSpec, Snapshot, SortOrder, Summary, TableMetadataBuilder};

    fn table_of(snapshots: i64, now: i64, every_ms: i64) -> TableMetadata {
        let schema = Schema::builder().build().unwrap();
        let first = now - snapshots * every_ms;
        let mut metadata = TableMetadataBuilder::new(
            schema,
            PartitionSpec::unpartition_spec(),
            SortOrder::unsorted_order(),
            "file:///t".into(),
            FormatVersion::V2,
            HashMap::new(),
        )
        .unwrap();
        for i in 1..=snapshots {
            let snapshot = Snapshot::builder()
                .with_snapshot_id(i)
                .with_parent_snapshot_id((i > 1).then_some(i - 1))
                .with_sequence_number(i)
                .with_timestamp_ms(first + i * every_ms)
                .with_manifest_list(format!("file:///t/{i}.avro"))
                .with_summary(Summary { operation: Operation::Append, additional_properties: HashMap::new() })
                .build();
            metadata = metadata.set_branch_snapshot(snapshot, MAIN_BRANCH).unwrap();
        }
        metadata.build().unwrap().metadata
    }

    #[test]
    fn only_old_snapshots_beyond_the_bound_go() {
        let now = 1_800_000_000_000;
        // 300 snapshots a minute apart: beyond 199 are those older than about three hours.
        let gone = outlived(&table_of(300, now, 60_000), now);
        assert_eq!(gone.len(), 101);
        assert!(gone.iter().all(|id| *id <= 101));
        // A second apart: all are younger than an hour.
        assert!(outlived(&table_of(300, now, 1_000), now).is_empty());
        assert!(outlived(&table_of(10, now, 86_400_000), now).is_empty());
    }
}
