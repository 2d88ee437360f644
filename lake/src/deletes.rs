//! Position deletes of a snapshot: delete files -> one bitmap of deleted row numbers per data file.
//!
//! A delete file never changes, so each is read once per process and kept, as bitmaps, within a bound.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use futures::{StreamExt, TryStreamExt};
use iceberg::metadata_columns::{RESERVED_FIELD_ID_DELETE_FILE_PATH, RESERVED_FIELD_ID_DELETE_FILE_POS};
use iceberg::spec::{DataContentType, DataFile, DataFileFormat};
use lakeward_runtime::{Error, Result};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;

use crate::cache::Cache;
use crate::errors;
use crate::files::{LiveFile, SnapshotFiles};
use crate::lake::Lake;
use crate::storage::Storage;
use crate::table::Table;

/// Bytes, about: bitmaps take one to two per deleted row.
const CACHED: u64 = 64 << 20;
/// Delete files read at once.
const READS: usize = 8;

/// Row numbers by data file path, of one delete file.
type Positions = HashMap<String, Arc<RoaringTreemap>>;

static POSITIONS: LazyLock<Cache<Positions>> = LazyLock::new(|| Cache::new(CACHED));

/// Deleted row numbers by data file path, of the live data files that have any.
///
/// A delete file counts for data files of its own spec and partition whose sequence number is not greater than its own. Equality
/// deletes (no writer of ours makes them) are `Action::Human`: ignoring them would bring rows back.
pub async fn position_deletes(
    lake: &Lake,
    table: &Table,
    files: &SnapshotFiles,
) -> Result<Arc<HashMap<String, Arc<RoaringTreemap>>>> {
    if let Some(other) = files.deletes.iter().find(|f| f.file.content_type() != DataContentType::PositionDeletes) {
        return Err(Error::human(
            "the table has equality deletes, made by another writer; compact it with that writer",
        )
        .with("table", table.ident())
        .with("file", other.file.file_path()));
    }
    let data: HashMap<&str, &LiveFile> = files.data.iter().map(|f| (f.file.file_path(), f)).collect();
    // Owned throughout: a stream of borrowed futures cannot be proved `Send`.
    let mut wanted = Vec::new();
    for delete in &files.deletes {
        if delete.file.referenced_data_file().is_none_or(|path| data.contains_key(path.as_str())) {
            wanted.push(read_delete(lake.storage().clone(), delete.clone()));
        }
    }
    let read: Vec<(LiveFile, Arc<Positions>)> = futures::stream::iter(wanted)
        .buffered(READS)
        .try_collect()
        .await
        .map_err(|e| e.with("table", table.ident()))?;
    let mut deleted: Positions = HashMap::new();
    for (delete, positions) in read {
        for (path, rows) in positions.iter() {
            let Some(target) = data.get(path.as_str()) else { continue };
            let same_place = target.spec_id == delete.spec_id && target.file.partition() == delete.file.partition();
            if !same_place || target.sequence_number > delete.sequence_number {
                continue;
            }
            match deleted.get_mut(path) {
                Some(all) => *Arc::make_mut(all) |= &**rows,
                // Most data files have one delete file: its bitmap is shared with the cache.
                None => {
                    deleted.insert(path.clone(), rows.clone());
                }
            }
        }
    }
    Ok(Arc::new(deleted))
}

async fn read_delete(storage: Storage, delete: LiveFile) -> Result<(LiveFile, Arc<Positions>)> {
    let positions = positions(&storage, &delete.file).await?;
    Ok((delete, positions))
}

async fn positions(storage: &Storage, file: &DataFile) -> Result<Arc<Positions>> {
    let location = file.file_path();
    if let Some(positions) = POSITIONS.get(location) {
        return Ok(positions);
    }
    if file.file_format() != DataFileFormat::Parquet {
        return Err(Error::human("delete files of this format cannot be read").with("file", location));
    }
    let bytes = storage.get(location).await?;
    let owned = location.to_owned();
    let positions = tokio::task::spawn_blocking(move || parse(bytes, &owned))
        .await
        .map_err(|e| Error::bug("reading a delete file").with("file", location).source(e))??;
    let positions = Arc::new(positions);
    let weight: usize = positions.iter().map(|(path, rows)| path.len() + rows.serialized_size() + 100).sum();
    POSITIONS.insert(location.to_owned(), positions.clone(), weight as u64);
    Ok(positions)
}

fn parse(bytes: bytes::Bytes, location: &str) -> Result<Positions> {
    let failed = |e| errors::parquet(e, "reading a delete file", location);
    let malformed =
        |what: &'static str| Error::human("a delete file is malformed").with("file", location).with("what", what);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(failed)?.with_batch_size(65_536);
    // By field id where the writer gave them, by the reserved names else.
    let column = |id: i32, name: &str| {
        let schema = reader.schema();
        let by_id = |f: &&arrow::datatypes::FieldRef| {
            f.metadata().get(PARQUET_FIELD_ID_META_KEY).is_some_and(|v| *v == id.to_string())
        };
        let field = schema.fields().iter().find(by_id).map(|f| f.name().clone());
        schema.index_of(field.as_deref().unwrap_or(name)).map_err(|_| malformed("a column is missing"))
    };
    let path_column = column(RESERVED_FIELD_ID_DELETE_FILE_PATH, "file_path")?;
    let pos_column = column(RESERVED_FIELD_ID_DELETE_FILE_POS, "pos")?;
    let mut rows: HashMap<String, RoaringTreemap> = HashMap::new();
    for batch in reader.build().map_err(failed)? {
        let batch = batch.map_err(|e| malformed("it cannot be decoded").source(e))?;
        let paths = batch.column(path_column);
        let paths = arrow::compute::cast(paths, &DataType::Utf8).map_err(|e| malformed("file_path").source(e))?;
        let paths = paths.as_string::<i32>();
        let positions = batch.column(pos_column).as_primitive_opt::<Int64Type>().ok_or_else(|| malformed("pos"))?;
        // Sorted by path: one look-up per run of equal paths.
        let mut start = 0;
        while start < batch.num_rows() {
            let path = paths.value(start);
            let end = (start + 1..batch.num_rows()).find(|i| paths.value(*i) != path).unwrap_or(batch.num_rows());
            if !rows.contains_key(path) {
                rows.insert(path.to_owned(), RoaringTreemap::new());
            }
            let bitmap = rows.get_mut(path).expect("broken invariant: inserted above");
            for position in &positions.values()[start..end] {
                bitmap.insert(u64::try_from(*position).map_err(|_| malformed("a negative position"))?);
            }
            start = end;
        }
    }
    Ok(rows.into_iter().map(|(path, rows)| (path, Arc::new(rows))).collect())
}
