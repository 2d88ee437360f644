//! A reduction becomes a snapshot: `Reduction -> old rows by the key index -> data files + position deletes -> row delta`
//!
//! All decisions are relative to one base snapshot of the table. When somebody else commits first, they are taken again on
//! the newer one; data files that do not depend on the base are kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::concat;
use futures::TryStreamExt;
use iceberg::spec::{DataFile, Operation};
use lakeward_event::key::CanonicalKeys;
use lakeward_lake::system::DeadLetter;
use lakeward_lake::{
    Commit, DataFileWriter, Lake, LiveFile, SnapshotChange, SnapshotFiles, Table, TableChange, WriteOptions,
    position_deletes, write_position_deletes,
};
use lakeward_runtime::{Error, Result};
use roaring::RoaringTreemap;

use crate::commit::{Committed, is_ancestor};
use crate::dead_letter::{self, Places, Refusal};
use crate::key_index::{Entry, KeyIndex};
use crate::read::read_columns;
use crate::reduce::{LakeRows, Layout, Reduction};
use crate::table::{SinkTable, blocking};

/// Rows assembled and handed to Parquet at a time: enough for its vectors, little memory.
const CHUNK_ROWS: usize = 16_384;
/// Entries sorted and written as one run while an index is rebuilt: 32 MiB.
const REBUILD_ENTRIES: usize = 1 << 20;

/// What a commit did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Written {
    pub rows: usize,
    pub deletes: u64,
    pub files: usize,
}

/// The state of a table that a commit builds on.
pub(crate) struct Base {
    pub snapshot: i64,
    pub files: Arc<SnapshotFiles>,
    deleted: Arc<HashMap<String, Arc<RoaringTreemap>>>,
    /// Live data files by path.
    data: HashMap<String, usize>,
}

impl Base {
    pub(crate) async fn of(lake: &Lake, table: &Table) -> Result<Self> {
        let snapshot = table
            .snapshot()
            .ok_or_else(|| Error::human("the table has no snapshot").with("table", table.ident()))?
            .snapshot_id();
        let files = table.files(snapshot).await?;
        let deleted = position_deletes(lake, table, &files).await?;
        let data = files.data.iter().enumerate().map(|(i, f)| (f.file.file_path().to_owned(), i)).collect();
        Ok(Self { snapshot, files, deleted, data })
    }

    fn file(&self, path: &str) -> Option<&LiveFile> {
        self.data.get(path).map(|index| &self.files.data[*index])
    }

    fn is_live(&self, path: &str, row: u64) -> bool {
        self.data.contains_key(path) && !self.deleted.get(path).is_some_and(|rows| rows.contains(row))
    }
}

/// Rows of the lake, by path of their data file.
pub(crate) type Positions = BTreeMap<String, RoaringTreemap>;

/// Old rows that a reduction's keys stand at.
#[derive(Default)]
pub(crate) struct Hits {
    pub positions: Positions,
    /// By hash, of the keys that were asked for: the newest live row.
    pub rows: HashMap<u128, (String, u64)>,
}

/// Brings the index to the base's snapshot: forgets files that left, reads the keys of those that appeared.
pub(crate) async fn catch_up(
    lake: &Lake,
    table: &Table,
    layout: &Layout,
    base: &Base,
    mut index: KeyIndex,
) -> Result<KeyIndex> {
    if index.snapshot() == Some(base.snapshot) {
        return Ok(index);
    }
    // Merging has dropped entries of rows deleted in our snapshot. In another history they may be alive.
    if index.snapshot().is_some_and(|ours| !is_ancestor(table, ours)) {
        tracing::info!(table = %table.ident(), "the key index is of another history; building it anew");
        index.forget();
    }
    let difference = index.difference(base.data.keys().map(String::as_str));
    index.remove_files(difference.vanished.iter().map(String::as_str));
    if !difference.appeared.is_empty() {
        tracing::info!(table = %table.ident(), files = difference.appeared.len(), "reading keys of data files into the key index");
    }
    for path in &difference.appeared {
        let Some(live) = base.file(path) else { continue };
        let number = index.add_file(path);
        let mut rows = read_columns(lake, &live.file, &layout.schema, &layout.key, None).await?;
        let (mut entries, mut keys, mut row) = (Vec::new(), CanonicalKeys::default(), 0u32);
        while let Some(batch) = rows.try_next().await? {
            keys.set(batch.columns(), batch.num_rows()).map_err(|e| Error::human("reading keys").source(e))?;
            for i in 0..batch.num_rows() {
                if keys.is_complete(i) {
                    entries.push(Entry { hash: keys.hash(i), file: number, row: row + i as u32 });
                }
            }
            row = u32::try_from(batch.num_rows())
                .ok()
                .and_then(|n| row.checked_add(n))
                .ok_or_else(|| Error::human("a data file has too many rows").with("path", path))?;
            if entries.len() >= REBUILD_ENTRIES {
                let full = std::mem::take(&mut entries);
                index = blocking(move || index.add(full).map(|()| index)).await?;
            }
        }
        let deleted = base.deleted.clone();
        index = blocking(move || {
            index.add(entries)?;
            index.merge(|path, row| deleted.get(path).is_some_and(|rows| rows.contains(u64::from(row))))?;
            Ok(index)
        })
        .await?;
    }
    let snapshot = base.snapshot;
    blocking(move || index.save(snapshot).map(|()| index)).await
}

/// Looks up the keys that a reduction touches, in files and rows that are live in the base.
pub(crate) fn find(index: &KeyIndex, reduction: &Reduction, base: &Base) -> Hits {
    let mut hits = Hits::default();
    let wanted: HashSet<u128> = reduction.lake.iter().copied().collect();
    index.lookup(&reduction.touched, |place, entry| {
        let hash = reduction.touched[place];
        let Some(path) = index.path(entry.file) else { return };
        let row = u64::from(entry.row);
        if !base.is_live(path, row) {
            return;
        }
        match hits.positions.get_mut(path) {
            Some(rows) => drop(rows.insert(row)),
            None => drop(hits.positions.insert(path.to_owned(), RoaringTreemap::from_iter([row]))),
        }
        if wanted.contains(&hash) {
            let age = |path: &str| base.file(path).map(|f| f.sequence_number);
            let newer = hits.rows.get(&hash).is_none_or(|(known, at)| (age(known), *at) < (age(path), row));
            if newer {
                hits.rows.insert(hash, (path.to_owned(), row));
            }
        }
    });
    hits
}

/// Reads what rows to write take from the lake: `columns` of the old rows of `needed` (indexes into `reduction.lake`).
pub(crate) async fn read_lake(
    lake: &Lake,
    base: &Base,
    layout: &Layout,
    reduction: &Reduction,
    hits: &Hits,
    columns: &[usize],
    needed: &[u32],
) -> Result<LakeRows> {
    let mut out = LakeRows { rows: vec![None; reduction.lake.len()], columns: vec![None; layout.columns.len()] };
    let mut by_file = BTreeMap::<&str, Vec<(u64, u32)>>::new();
    for index in needed {
        if let Some((path, row)) = reduction.lake.get(*index as usize).and_then(|hash| hits.rows.get(hash)) {
            by_file.entry(path).or_default().push((*row, *index));
        }
    }
    let mut parts: Vec<RecordBatch> = Vec::new();
    let mut count = 0u32;
    for (path, mut rows) in by_file {
        let Some(live) = base.file(path) else { continue };
        rows.sort_unstable();
        let mut positions: Vec<u64> = rows.iter().map(|(row, _)| *row).collect();
        positions.dedup();
        for (row, index) in &rows {
            let place = positions.binary_search(row).unwrap_or_default() as u32;
            out.rows[*index as usize] = Some(count + place);
        }
        let read: Vec<RecordBatch> =
            read_columns(lake, &live.file, &layout.schema, columns, Some(&positions)).await?.try_collect().await?;
        if read.iter().map(RecordBatch::num_rows).sum::<usize>() != positions.len() {
            return Err(Error::human("a data file has fewer rows than its index").with("path", path));
        }
        parts.extend(read);
        count += positions.len() as u32;
    }
    if !parts.is_empty() {
        for (place, column) in columns.iter().enumerate() {
            let arrays: Vec<&dyn arrow::array::Array> = parts.iter().map(|p| p.column(place).as_ref()).collect();
            let whole: ArrayRef = concat(&arrays).map_err(|e| Error::bug("joining old rows").source(e))?;
            out.columns[*column] = Some(whole);
        }
    }
    Ok(out)
}

/// Data files of a commit and where each key's row is in them.
pub(crate) struct DataFiles {
    pub files: Vec<DataFile>,
    paths: Vec<String>,
    /// `file` is an index into `paths`.
    entries: Vec<Entry>,
    rows: usize,
}

/// What makes rows in pieces: the batch of a range of them, and the hashes of their keys.
pub(crate) trait Rows: Send + Sync + 'static {
    fn len(&self) -> usize;
    fn batch(&self, range: std::ops::Range<usize>) -> Result<RecordBatch>;
    fn hash(&self, row: usize) -> u128;
}

/// Writes rows as data files of the table.
pub(crate) async fn write_rows(
    lake: &Lake,
    table: &Table,
    rows: Arc<dyn Rows>,
    options: WriteOptions,
) -> Result<DataFiles> {
    let mut out = DataFiles { files: Vec::new(), paths: Vec::new(), entries: Vec::new(), rows: rows.len() };
    if rows.len() == 0 {
        return Ok(out);
    }
    out.entries.reserve_exact(rows.len());
    let mut writer = DataFileWriter::new(lake, table, options).await?;
    for start in (0..rows.len()).step_by(CHUNK_ROWS) {
        let range = start..rows.len().min(start + CHUNK_ROWS);
        let (source, piece) = (rows.clone(), range.clone());
        let batch = blocking(move || source.batch(piece)).await?;
        if out.paths.last().is_none_or(|last| last != writer.current_path()) {
            out.paths.push(writer.current_path().to_owned());
        }
        let (file, first) = (out.paths.len() as u32 - 1, writer.position());
        for (place, row) in range.enumerate() {
            let row_in_file =
                u32::try_from(first + place as u64).map_err(|e| Error::bug("a data file is too long").source(e))?;
            out.entries.push(Entry { hash: rows.hash(row), file, row: row_in_file });
        }
        writer.write(&batch).await?;
    }
    out.files = writer.finish().await?;
    Ok(out)
}

/// Rows of a reduction in the layout of the table.
struct ReducedRows {
    reduction: Arc<Reduction>,
    layout: Layout,
    lake: LakeRows,
    left_out: Vec<bool>,
}

impl Rows for ReducedRows {
    fn len(&self) -> usize {
        self.reduction.rows.len()
    }
    fn batch(&self, range: std::ops::Range<usize>) -> Result<RecordBatch> {
        self.reduction.assemble(range, &self.layout, &self.lake, &self.left_out)
    }
    fn hash(&self, row: usize) -> u128 {
        self.reduction.rows[row].0
    }
}

/// Takes the index out of the table (opened if need be) and brings it to the base.
pub(crate) async fn index_at(table: &mut SinkTable, layout: &Layout, base: &Base) -> Result<KeyIndex> {
    let index = match table.index.take() {
        Some(index) => index,
        None => table.open_index()?,
    };
    let (lake, current) = (table.shared.lake.clone(), table.existing()?.clone());
    catch_up(&lake, &current, layout, base, index).await
}

/// Writes and commits a reduction of a relational table, and before it `letters` and what turns out to be missing. While the table
/// is `converging`, nothing is: a change may come before the snapshot reads its row, which then has every value.
pub(crate) async fn commit(
    table: &mut SinkTable,
    reduction: Reduction,
    layout: Layout,
    target: Committed,
    letters: Vec<DeadLetter>,
    places: &[Places],
    converging: bool,
) -> Result<Written, Refusal> {
    let lake = table.shared.lake.clone();
    let mut reduction = Arc::new(reduction);
    let (left_out, needed) = reduction.needed(layout.columns.len());
    let columns: Vec<usize> = (0..left_out.len()).filter(|c| left_out[*c]).collect();
    if index_is_stale(table)? {
        table.index = None;
    }
    let mut kept: Option<DataFiles> = None;
    loop {
        let current = table.existing()?.clone();
        let base = Arc::new(Base::of(&lake, &current).await?);
        let hits = look_up(table, &layout, &reduction, &base).await?;
        let files = match kept.take() {
            // Values taken from the lake may be others now.
            Some(files) if needed.is_empty() => files,
            stale => {
                if let Some(stale) = stale {
                    remove(&lake, &stale.files).await;
                }
                let rows = read_lake(&lake, &base, &layout, &reduction, &hits, &columns, &needed).await?;
                let mut all = letters.clone();
                let name =
                    |(batch, row, column): (u32, u32, usize)| (batch, row, layout.schema.field(column).name().clone());
                let nowhere = if converging { Vec::new() } else { reduction.nowhere(&rows, &columns) };
                all.extend(dead_letter::of_left_out(
                    &table.id,
                    &table.name(),
                    &table.topic,
                    &reduction,
                    places,
                    nowhere.into_iter().map(name),
                ));
                // A try that comes after another writes none twice.
                dead_letter::write(&table.shared, all, target.offsets.clone()).await?;
                let (sorting, for_rows) = (layout.clone(), left_out.clone());
                let source = blocking(move || {
                    let mut own = Arc::try_unwrap(reduction).map_err(|_| Error::bug("a reduction is shared"))?;
                    own.sort(&sorting, &rows)?;
                    Ok(ReducedRows { reduction: Arc::new(own), layout: sorting, lake: rows, left_out: for_rows })
                })
                .await?;
                reduction = source.reduction.clone();
                write_rows(&lake, &current, Arc::new(source), WriteOptions::default()).await?
            }
        };
        match finish(table, &base, &hits, reduction.truncated, files, &target).await? {
            Outcome::Done(written) => return Ok(written),
            Outcome::Again(files) => kept = Some(files),
        }
    }
}

/// The index is of another key or encoding than the table's now.
pub(crate) fn index_is_stale(table: &SinkTable) -> Result<bool> {
    let key = table.key()?;
    Ok(table.index.as_ref().is_some_and(|index| index.key() != key))
}

/// Old rows of the keys that a reduction touches.
pub(crate) async fn look_up(
    table: &mut SinkTable,
    layout: &Layout,
    reduction: &Arc<Reduction>,
    base: &Arc<Base>,
) -> Result<Hits> {
    if layout.key.is_empty() {
        return Ok(Hits::default());
    }
    let index = index_at(table, layout, base).await?;
    if reduction.touched.is_empty() || index.is_empty() {
        table.index = Some(index);
        return Ok(Hits::default());
    }
    let (reduction, base) = (reduction.clone(), base.clone());
    let (index, hits) = blocking(move || {
        let hits = find(&index, &reduction, &base);
        drop(reduction);
        Ok((index, hits))
    })
    .await?;
    table.index = Some(index);
    Ok(hits)
}

/// How an attempt ended.
pub(crate) enum Outcome {
    Done(Written),
    /// Somebody else was first; the table is at its newest, the data files are still ours.
    Again(DataFiles),
}

/// Commits files and deletes as one snapshot, and follows with the index.
pub(crate) async fn finish(
    table: &mut SinkTable,
    base: &Arc<Base>,
    hits: &Hits,
    truncated: bool,
    files: DataFiles,
    target: &Committed,
) -> Result<Outcome> {
    let lake = table.shared.lake.clone();
    let current = table.existing()?.clone();
    let positions: Vec<(String, RoaringTreemap)> = hits.positions.clone().into_iter().collect();
    let deletes = positions.iter().map(|(_, rows)| rows.len()).sum();
    let added_deletes = if positions.is_empty() {
        Vec::new()
    } else {
        match write_position_deletes(&lake, &current, &base.files, &positions).await {
            Ok(deletes) => deletes,
            Err(error) => {
                remove(&lake, &files.files).await;
                return Err(error);
            }
        }
    };
    let removed: Vec<DataFile> = if truncated {
        base.files.data.iter().chain(&base.files.deletes).map(|live| live.file.as_ref().clone()).collect()
    } else {
        Vec::new()
    };
    let operation = if added_deletes.is_empty() && removed.is_empty() {
        Operation::Append
    } else if files.files.is_empty() {
        Operation::Delete
    } else {
        Operation::Overwrite
    };
    let written = Written { rows: files.rows, deletes, files: files.files.len() + added_deletes.len() };
    let change = TableChange {
        schema: None,
        snapshot: Some(SnapshotChange {
            operation,
            added_data: files.files.clone(),
            added_deletes: added_deletes.clone(),
            removed,
            summary: target.to_summary(),
        }),
        properties: target.to_properties(current.metadata().next_sequence_number()),
    };
    lakeward_runtime::crash_point!("sink.commit.data_written");
    lakeward_runtime::crash_point!("sink.commit.before_table");
    match lake.commit(&current, change).await? {
        Commit::Conflict(newest) => {
            remove(&lake, &added_deletes).await;
            let rebased = table.rebase(newest);
            if rebased.is_err() {
                remove(&lake, &files.files).await;
            }
            rebased?;
            Ok(Outcome::Again(files))
        }
        Commit::Done(newest) => {
            let snapshot = newest.snapshot().map(|s| s.snapshot_id());
            table.committed_at(newest, target.clone())?;
            if let (Some(snapshot), Some(index)) = (snapshot, table.index.take()) {
                table.index =
                    Some(follow(index, base.clone(), hits.positions.clone(), truncated, files, snapshot).await?);
            }
            Ok(Outcome::Done(written))
        }
    }
}

/// The index after a commit of ours.
async fn follow(
    mut index: KeyIndex,
    base: Arc<Base>,
    positions: Positions,
    truncated: bool,
    files: DataFiles,
    snapshot: i64,
) -> Result<KeyIndex> {
    blocking(move || {
        if truncated {
            index.remove_files(base.data.keys().map(String::as_str));
        }
        let numbers: Vec<u32> = files.paths.iter().map(|path| index.add_file(path)).collect();
        let mut entries = files.entries;
        for entry in &mut entries {
            entry.file = numbers[entry.file as usize];
        }
        index.add(entries)?;
        index.merge(|path, row| {
            let row = u64::from(row);
            positions.get(path).is_some_and(|rows| rows.contains(row))
                || base.deleted.get(path).is_some_and(|rows| rows.contains(row))
        })?;
        index.save(snapshot)?;
        Ok(index)
    })
    .await
}

/// Removes files of a refused attempt. What stays behind is an orphan, which costs space and nothing else.
async fn remove(lake: &Lake, files: &[DataFile]) {
    for file in files {
        if let Err(error) = lake.storage().delete(file.file_path()).await {
            tracing::warn!(path = file.file_path(), error = %error, "a file of a refused commit stays behind");
        }
    }
}
