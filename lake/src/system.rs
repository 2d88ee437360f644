//! `lakeward.checkpoints` and `lakeward.dead_letters`: Iceberg tables of our own, which any engine can read.
//!
//! `sink -> append, by compare-and-swap -> rows -> query (cuts), operators (dead letters)`
//!
//! An append is a small file; when there are many, the same commit replaces them by one, so that reading stays cheap without
//! anybody's maintenance.

mod columns;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{Operation, Schema};
use iceberg::{NamespaceIdent, TableIdent};
use lakeward_runtime::{Action, Error, Result};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;

use crate::cache::Cache;
use crate::commit::{Commit, SnapshotChange, TableChange};
use crate::deletes::position_deletes;
use crate::errors;
use crate::files::LiveFile;
use crate::lake::Lake;
use crate::table::Table;
use crate::types;
use crate::writing::{DataFileWriter, WriteOptions};

/// Namespace of the system tables.
pub const NAMESPACE: &str = "lakeward";
/// Name of the table of [`CheckpointRow`]s.
pub const CHECKPOINTS: &str = "checkpoints";
/// Name of the table of [`DeadLetter`]s.
pub const DEAD_LETTERS: &str = "dead_letters";
/// Table property of `dead_letters`: JSON, topic to partition to the offset below which every letter is in the table.
pub const DONE_PROPERTY: &str = "lakeward.dead-letters-done";

/// Beyond this many files an append of checkpoints replaces the small ones by one.
const FILES: usize = 32;
/// Files with as many rows are large: they are not rewritten again.
const LARGE_FILE_ROWS: u64 = 10_000;
/// Conflicts in a row before an append gives up: every worker of a source appends, each now and then.
const TRIES: u32 = 50;
const READS: usize = 16;

/// Rows of checkpoint files by location: they never change.
static ROWS: LazyLock<Cache<Vec<CheckpointRow>>> = LazyLock::new(|| Cache::new(64 << 20));

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
    Refused {
        source: String,
        newest: i64,
    },
}

/// `lakeward.checkpoints`.
#[derive(Clone, Debug)]
pub struct CheckpointTable {
    lake: Lake,
    id: TableIdent,
}

impl CheckpointTable {
    /// Creates the table if it is missing.
    pub async fn open(lake: &Lake) -> Result<Self> {
        let id = ident(CHECKPOINTS);
        create(lake, &id, columns::checkpoints()?).await?;
        Ok(Self { lake: lake.clone(), id })
    }

    /// Each source's newest row.
    pub async fn newest(&self) -> Result<HashMap<String, CheckpointRow>> {
        let table = load(&self.lake, &self.id).await?;
        Ok(newest(self.read(&table).await?.into_iter().flat_map(|(_, rows)| rows)))
    }

    /// Rows of a source, newest first: all whose watermark is greater than `newer_than_watermark`, then on down to the newest
    /// `complete` row at or below it, so that every table's snapshot at that moment is among them. None: from the newest row
    /// down to the newest complete one.
    pub async fn rows(&self, source: &str, newer_than_watermark: Option<i64>) -> Result<Vec<CheckpointRow>> {
        let table = load(&self.lake, &self.id).await?;
        let files = self.read(&table).await?;
        let mut rows: Vec<_> =
            files.into_iter().flat_map(|(_, rows)| rows).filter(|row| row.source == source).collect();
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.checkpoint));
        let last = rows
            .iter()
            .position(|row| row.complete && newer_than_watermark.is_none_or(|watermark| row.watermark <= watermark));
        if let Some(last) = last {
            rows.truncate(last + 1);
        }
        Ok(rows)
    }

    /// Appends rows, all or none, by compare-and-swap. Re-reads first: refuses a row whose checkpoint is not greater than its
    /// source's newest.
    pub async fn append(&self, rows: Vec<CheckpointRow>) -> Result<Appended> {
        if rows.is_empty() {
            return Ok(Appended::Done);
        }
        let mut table = load(&self.lake, &self.id).await?;
        for _ in 0..TRIES {
            let files = self.read(&table).await?;
            let newest = newest(files.iter().flat_map(|(_, rows)| rows.iter().cloned()));
            for row in &rows {
                if let Some(newest) = newest.get(&row.source).filter(|newest| newest.checkpoint >= row.checkpoint) {
                    return Ok(Appended::Refused { source: row.source.clone(), newest: newest.checkpoint });
                }
            }
            let mut written = rows.clone();
            let mut change = SnapshotChange::new(Operation::Append);
            if files.len() > FILES {
                change.operation = Operation::Overwrite;
                for (file, rows) in files.into_iter().filter(|(f, _)| f.file.record_count() < LARGE_FILE_ROWS) {
                    change.removed.push((*file.file).clone());
                    written.extend(rows);
                }
            }
            let batch = columns::encode_checkpoints(&table, &written)?;
            match write_and_commit(&self.lake, &table, change, &batch, HashMap::new()).await? {
                None => return Ok(Appended::Done),
                Some(newest) => table = newest,
            }
        }
        Err(Error::rebase("too many writers append to lakeward.checkpoints at once"))
    }

    /// Every live file with its live rows.
    async fn read(&self, table: &Table) -> Result<Vec<(LiveFile, Vec<CheckpointRow>)>> {
        let Some(snapshot) = table.snapshot() else { return Ok(Vec::new()) };
        let files = table.files(snapshot.snapshot_id()).await?;
        let deleted = position_deletes(&self.lake, table, &files).await?;
        // Owned throughout: a stream of borrowed futures cannot be proved `Send`.
        let live: Vec<_> = files
            .data
            .iter()
            .map(|live| read_live(self.lake.clone(), live.clone(), deleted.get(live.file.file_path()).cloned()))
            .collect();
        futures::stream::iter(live).buffered(READS).try_collect().await
    }
}

/// A checkpoint file with its live rows.
async fn read_live(
    lake: Lake,
    live: LiveFile,
    gone: Option<Arc<RoaringTreemap>>,
) -> Result<(LiveFile, Vec<CheckpointRow>)> {
    let path = live.file.file_path();
    let rows = match ROWS.get(path) {
        Some(rows) => rows,
        None => {
            let mut rows = Vec::new();
            for batch in read_batches(&lake, path).await? {
                rows.extend(columns::decode_checkpoints(&batch).map_err(|e| e.with("file", path))?);
            }
            let rows = Arc::new(rows);
            ROWS.insert(path.to_owned(), rows.clone(), weight(&rows));
            rows
        }
    };
    let alive = rows.iter().enumerate().filter(|(i, _)| !gone.as_ref().is_some_and(|gone| gone.contains(*i as u64)));
    let alive = alive.map(|(_, row)| row.clone()).collect();
    Ok((live, alive))
}

fn weight(rows: &[CheckpointRow]) -> u64 {
    let names =
        |row: &CheckpointRow| row.tables.keys().chain(&row.converging).map(|name| name.len() + 48).sum::<usize>();
    rows.iter().map(|row| 200 + row.position.len() as u64 + names(row) as u64).sum()
}

fn newest(rows: impl Iterator<Item = CheckpointRow>) -> HashMap<String, CheckpointRow> {
    let mut newest: HashMap<String, CheckpointRow> = HashMap::new();
    for row in rows {
        if newest.get(&row.source).is_none_or(|other| other.checkpoint < row.checkpoint) {
            newest.insert(row.source.clone(), row);
        }
    }
    newest
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

/// Topic to partition to the offset after the last one.
pub type Offsets = BTreeMap<String, BTreeMap<i32, i64>>;

/// `lakeward.dead_letters`.
#[derive(Clone, Debug)]
pub struct DeadLetterTable {
    lake: Lake,
    id: TableIdent,
}

impl DeadLetterTable {
    /// Creates the table if it is missing.
    pub async fn open(lake: &Lake) -> Result<Self> {
        let id = ident(DEAD_LETTERS);
        create(lake, &id, columns::dead_letters()?).await?;
        Ok(Self { lake: lake.clone(), id })
    }

    /// Appends letters. `done` (topic to partition to end offset) is merged into the offsets kept with the table in the same
    /// commit; letters at an offset below what the table already says are skipped, so that a retry writes none twice.
    pub async fn append(&self, letters: &[DeadLetter], done: &Offsets) -> Result<()> {
        let mut table = load(&self.lake, &self.id).await?;
        for _ in 0..TRIES {
            let mut known = done_offsets(&table)?;
            let new: Vec<_> = letters
                .iter()
                .filter(|l| known.get(&l.topic).and_then(|p| p.get(&l.partition)).is_none_or(|end| l.offset >= *end))
                .cloned()
                .collect();
            // Offsets alone are not worth a commit: the letters below them, if any, are in already.
            if new.is_empty() {
                return Ok(());
            }
            for (topic, partitions) in done {
                let known = known.entry(topic.clone()).or_default();
                for (partition, end) in partitions {
                    let known = known.entry(*partition).or_insert(*end);
                    *known = (*known).max(*end);
                }
            }
            let property = serde_json::to_string(&known).map_err(|e| Error::bug("writing offsets").source(e))?;
            let batch = columns::encode_dead_letters(&table, &new)?;
            let properties = HashMap::from([(DONE_PROPERTY.to_owned(), property)]);
            let change = SnapshotChange::new(Operation::Append);
            match write_and_commit(&self.lake, &table, change, &batch, properties).await? {
                None => return Ok(()),
                Some(newest) => table = newest,
            }
        }
        Err(Error::rebase("too many writers append to lakeward.dead_letters at once"))
    }

    /// All letters, in no order.
    pub async fn all(&self) -> Result<Vec<DeadLetter>> {
        let table = load(&self.lake, &self.id).await?;
        let Some(snapshot) = table.snapshot() else { return Ok(Vec::new()) };
        let files = table.files(snapshot.snapshot_id()).await?;
        let deleted = position_deletes(&self.lake, &table, &files).await?;
        let mut letters = Vec::new();
        for live in &files.data {
            let path = live.file.file_path();
            let mut row = 0;
            for batch in read_batches(&self.lake, path).await? {
                for letter in columns::decode_dead_letters(&batch).map_err(|e| e.with("file", path))? {
                    if !deleted.get(path).is_some_and(|gone| gone.contains(row)) {
                        letters.push(letter);
                    }
                    row += 1;
                }
            }
        }
        Ok(letters)
    }
}

fn done_offsets(table: &Table) -> Result<Offsets> {
    match table.properties().get(DONE_PROPERTY) {
        None => Ok(Offsets::new()),
        Some(text) => serde_json::from_str(text).map_err(|e| {
            Error::human("the table property of done offsets cannot be read").with("table", table.ident()).source(e)
        }),
    }
}

fn ident(name: &str) -> TableIdent {
    TableIdent::new(NamespaceIdent::new(NAMESPACE.to_owned()), name.to_owned())
}

async fn create(lake: &Lake, id: &TableIdent, schema: Schema) -> Result<()> {
    if lake.load(id).await?.is_some() {
        return Ok(());
    }
    match lake.create(id, schema, None, HashMap::new()).await {
        Err(error) if error.action() != Action::Rebase => Err(error),
        // Created, by us or by somebody who was faster.
        _ => Ok(()),
    }
}

async fn load(lake: &Lake, id: &TableIdent) -> Result<Table> {
    lake.load(id).await?.ok_or_else(|| Error::human("a system table was dropped by somebody else").with("table", id))
}

/// Writes the batch as one file and commits it; on a conflict deletes the file and returns the newest table.
async fn write_and_commit(
    lake: &Lake,
    table: &Table,
    mut change: SnapshotChange,
    batch: &RecordBatch,
    properties: HashMap<String, String>,
) -> Result<Option<Table>> {
    let mut writer = DataFileWriter::new(lake, table, WriteOptions::default()).await?;
    writer.write(batch).await?;
    change.added_data = writer.finish().await?;
    let written: Vec<String> = change.added_data.iter().map(|f| f.file_path().to_owned()).collect();
    match lake.commit(table, TableChange { schema: None, snapshot: Some(change), properties }).await? {
        Commit::Done(_) => Ok(None),
        Commit::Conflict(newest) => {
            lake.storage().delete_quietly(&written).await;
            // Writers that collided once do not start again in step.
            let pause = uuid::Uuid::new_v4().as_bytes()[0];
            tokio::time::sleep(Duration::from_millis(u64::from(pause) / 4)).await;
            Ok(Some(newest))
        }
    }
}

/// The columns of the schema, empty, for encoding.
fn arrow_of(table: &Table) -> Result<arrow::datatypes::SchemaRef> {
    types::arrow_schema(table.metadata().current_schema())
}

async fn read_batches(lake: &Lake, location: &str) -> Result<Vec<RecordBatch>> {
    let bytes = lake.storage().get(location).await?;
    let failed = |e| errors::parquet(e, "reading a file of a system table", location);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(failed)?.build().map_err(failed)?;
    reader
        .collect::<Result<_, _>>()
        .map_err(|e| Error::human("a file of a system table cannot be decoded").with("file", location).source(e))
}
