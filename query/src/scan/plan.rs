//! What a scan of one snapshot reads: manifests and position deletes -> Parquet files with access plans and statistics.
//!
//! A snapshot never changes, so a plan is made once. The next snapshot's plan takes over every file whose deletes are the same.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::SchemaRef;
use datafusion::common::Statistics;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess};
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, DataFileFormat};
use lakeward_lake::{Lake, LiveFile, SnapshotFiles, Table, arrow_schema, position_deletes};
use lakeward_runtime::error::Context;
use lakeward_runtime::{Error, Result};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use roaring::RoaringTreemap;

use super::statistics;

/// Footers read at once while planning; only files with deletes need theirs.
const FOOTERS_AT_ONCE: usize = 32;
/// Bytes fetched from a file's end at first: footer and metadata of most files in one request.
const FOOTER_HINT: usize = 64 << 10;
/// Files in all cached plans together. A file costs about a kilobyte and its selections.
const CACHED_FILES: usize = 100_000;

/// A scan of one snapshot.
pub struct Plan {
    pub snapshot_id: i64,
    /// The table's schema as of the snapshot.
    pub schema: SchemaRef,
    /// Root of the object store.
    pub(super) store_url: String,
    pub(super) files: Vec<PartitionedFile>,
    pub(super) statistics: Statistics,
    /// Some file has deleted rows.
    pub(super) has_selections: bool,
    /// Field ids of float columns not known to be free of NaN.
    pub(super) may_hold_nan: Arc<HashSet<i32>>,
    /// By location, what the next snapshot's plan may take over.
    known: HashMap<String, Known>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("snapshot_id", &self.snapshot_id)
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

struct Known {
    deleted: Option<Arc<RoaringTreemap>>,
    index: usize,
}

type Key = (uuid::Uuid, i64);

/// Makes plans and keeps them.
pub struct Planner {
    lake: Lake,
    runtime: Arc<RuntimeEnv>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    plans: HashMap<Key, Arc<Plan>>,
    /// Oldest first.
    order: VecDeque<Key>,
    files: usize,
}

impl Planner {
    /// `runtime`: of the sessions that will scan; footers go to its cache.
    pub fn new(lake: Lake, runtime: Arc<RuntimeEnv>) -> Self {
        Self { lake, runtime, cache: Mutex::default() }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // The cache is only a cache: what a panicking thread left is still whole entries.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scan of a table's snapshot.
    pub async fn plan(&self, table: &Table, snapshot_id: i64) -> Result<Arc<Plan>> {
        let key = (table.metadata().uuid(), snapshot_id);
        let before = {
            let cache = self.cache();
            if let Some(plan) = cache.plans.get(&key) {
                return Ok(Arc::clone(plan));
            }
            cache.order.iter().rev().find(|k| k.0 == key.0).and_then(|k| cache.plans.get(k)).cloned()
        };
        let plan = Arc::new(self.make(table, snapshot_id, before.as_deref()).await.with("table", table.ident())?);
        self.cache().insert(key, Arc::clone(&plan));
        Ok(plan)
    }

    async fn make(&self, table: &Table, snapshot_id: i64, before: Option<&Plan>) -> Result<Plan> {
        let Some(snapshot) = table.snapshot_by_id(snapshot_id) else {
            return Err(Error::refused(format!("snapshot {snapshot_id} has expired")));
        };
        let iceberg_schema = match snapshot.schema_id() {
            Some(id) => table.metadata().schema_by_id(id).unwrap_or_else(|| table.metadata().current_schema()),
            None => table.metadata().current_schema(),
        };
        let schema = arrow_schema(iceberg_schema)?;
        let files = table.files(snapshot_id).await?;
        let deletes = position_deletes(&self.lake, table, &files).await?;
        let storage = self.lake.storage();
        let reader = Reader {
            store: storage.object_store(),
            store_url: storage.url().to_string(),
            footers: self.runtime.cache_manager.get_file_metadata_cache(),
            path: &|location| storage.path(location),
        };
        reader.plan(snapshot_id, schema, &files, &deletes, before).await
    }
}

/// Where data files are read from.
pub(super) struct Reader<'a> {
    pub store: Arc<dyn ObjectStore>,
    pub store_url: String,
    pub footers: Arc<dyn FileMetadataCache>,
    /// The path in the store of a file's location.
    pub path: &'a (dyn Fn(&str) -> Result<Path> + Sync),
}

impl Reader<'_> {
    /// The plan of a snapshot from its live files and their deleted rows; files that `before` has as they are now are taken over.
    pub async fn plan(
        &self,
        snapshot_id: i64,
        schema: SchemaRef,
        files: &SnapshotFiles,
        deletes: &HashMap<String, Arc<RoaringTreemap>>,
        before: Option<&Plan>,
    ) -> Result<Plan> {
        for delete in &files.deletes {
            if delete.file.content_type() != DataContentType::PositionDeletes {
                return Err(Error::refused("the table has equality deletes, which are not supported")
                    .with("file", delete.file.file_path()));
            }
        }
        let reusable = before.filter(|b| b.schema == schema);
        let planned = futures::stream::iter(files.data.iter().map(|live| {
            let deleted = deletes.get(live.file.file_path()).filter(|d| !d.is_empty()).cloned();
            let known = reusable.and_then(|plan| {
                let known = plan.known.get(live.file.file_path())?;
                let same = match (&known.deleted, &deleted) {
                    (None, None) => true,
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
                    _ => false,
                };
                same.then(|| plan.files.get(known.index).cloned()).flatten()
            });
            let schema = &schema;
            async move {
                let file = match known {
                    Some(file) => file,
                    None => self.file(schema, live, deleted.as_deref()).await?,
                };
                Ok::<_, Error>((live, deleted, file))
            }
        }))
        .buffered(FOOTERS_AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;

        let mut known = HashMap::with_capacity(planned.len());
        let mut out = Vec::with_capacity(planned.len());
        let mut gone = 0;
        for (index, (live, deleted, file)) in planned.into_iter().enumerate() {
            gone += deleted.as_ref().map_or(0, |d| d.len());
            known.insert(live.file.file_path().to_string(), Known { deleted, index });
            out.push(file);
        }
        Ok(Plan {
            snapshot_id,
            statistics: statistics::of_table(&schema, out.iter().filter_map(|f| f.statistics.as_deref()), gone),
            may_hold_nan: Arc::new(statistics::may_hold_nan(&schema, files.data.iter().map(|f| f.file.as_ref()))),
            schema,
            store_url: self.store_url.clone(),
            files: out,
            has_selections: gone > 0,
            known,
        })
    }

    async fn file(
        &self,
        schema: &SchemaRef,
        live: &LiveFile,
        deleted: Option<&RoaringTreemap>,
    ) -> Result<PartitionedFile> {
        let file = &live.file;
        if file.file_format() != DataFileFormat::Parquet {
            return Err(Error::refused(format!("data files in {:?} are not supported", file.file_format()))
                .with("file", file.file_path()));
        }
        let meta = ObjectMeta {
            location: (self.path)(file.file_path())?,
            // Files never change: a constant keeps the cached footer valid.
            last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
            size: file.file_size_in_bytes(),
            e_tag: None,
            version: None,
        };
        let mut planned = PartitionedFile::new_from_meta(meta)
            .with_statistics(Arc::new(statistics::of_file(schema, file)))
            .with_metadata_size_hint(FOOTER_HINT);
        if let Some(deleted) = deleted {
            let footer = DFParquetMetadata::new(&self.store, &planned.object_meta)
                .with_metadata_size_hint(Some(FOOTER_HINT))
                .with_file_metadata_cache(Some(Arc::clone(&self.footers)))
                .fetch_metadata()
                .await
                .map_err(|e| crate::engine::from_datafusion(e).with("file", file.file_path()))?;
            let rows: Vec<u64> = footer.row_groups().iter().map(|g| g.num_rows().max(0) as u64).collect();
            planned = planned.with_extension(ParquetAccessPlan::new(access(&rows, deleted)));
        }
        Ok(planned)
    }
}

impl Cache {
    fn insert(&mut self, key: Key, plan: Arc<Plan>) {
        self.files += plan.files.len().max(1);
        if let Some(old) = self.plans.insert(key, plan) {
            self.files -= old.files.len().max(1);
        } else {
            self.order.push_back(key);
        }
        while self.files > CACHED_FILES && self.order.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(old) = self.plans.remove(&oldest) {
                self.files -= old.files.len().max(1);
            }
        }
    }
}

/// Which rows of each row group are live. `groups`: rows per row group; `deleted`: row numbers in the file.
pub(super) fn access(groups: &[u64], deleted: &RoaringTreemap) -> Vec<RowGroupAccess> {
    let mut positions = deleted.iter().peekable();
    let mut start = 0u64;
    groups
        .iter()
        .map(|rows| {
            let end = start + rows;
            let mut selectors: Vec<RowSelector> = Vec::new();
            let mut next = start; // first row not yet in a selector
            let mut gone = 0u64;
            while let Some(position) = positions.next_if(|p| *p < end) {
                if position > next {
                    selectors.push(RowSelector::select((position - next) as usize));
                }
                match selectors.last_mut() {
                    Some(last) if last.skip && position == next => last.row_count += 1,
                    _ => selectors.push(RowSelector::skip(1)),
                }
                gone += 1;
                next = position + 1;
            }
            if next < end {
                selectors.push(RowSelector::select((end - next) as usize));
            }
            start = end;
            match gone {
                0 => RowGroupAccess::Scan,
                gone if gone == *rows => RowGroupAccess::Skip,
                _ => RowGroupAccess::Selection(RowSelection::from(selectors)),
            }
        })
        .collect()
}
