//! The lake's side: `checkpoint row -> snapshot -> data files - position deletes -> Row`.
//!
//! Every row of every live file is read in order and the deleted ones are left out one by one: no pruning, no selection, nothing
//! of the query engine.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::TableIdent;
use lakeward_lake::system::{CheckpointRow, CheckpointTable};
use lakeward_lake::{COLUMNS_PROPERTY, ColumnMap, Lake, LiveFile, MappedColumn, Table};
use lakeward_runtime::error::Context;
use lakeward_runtime::{Action, Error, Result};
use parquet::arrow::async_reader::ParquetObjectReader;
use parquet::arrow::{PARQUET_FIELD_ID_META_KEY, ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;

use super::compare::Side;
use super::document::Fields;
use super::text::{Printer, Row};

/// Between looks at the lake.
const LOOK: Duration = Duration::from_millis(300);
const BATCH_ROWS: usize = 8_192;

/// Each table's snapshot at a checkpoint that has its row in `lakeward.checkpoints`.
#[derive(Debug, Clone)]
pub struct LakeCut {
    pub row: CheckpointRow,
    /// `namespace.table` to snapshot id.
    pub snapshots: BTreeMap<String, i64>,
}

impl LakeCut {
    /// Folds rows, newest first, from the one of this checkpoint back to the newest complete one.
    fn fold(rows: &[CheckpointRow], checkpoint: i64) -> Option<Self> {
        let start = rows.iter().position(|row| row.checkpoint == checkpoint)?;
        let mut snapshots = BTreeMap::new();
        for row in &rows[start..] {
            for (table, snapshot) in &row.tables {
                snapshots.entry(table.clone()).or_insert(*snapshot);
            }
            if row.complete {
                break;
            }
        }
        Some(Self { row: rows[start].clone(), snapshots })
    }

    /// The newest row of a source.
    pub async fn newest(checkpoints: &CheckpointTable, source: &str) -> Result<Option<Self>> {
        let rows = checkpoints.rows(source, None).await?;
        Ok(rows.first().and_then(|row| Self::fold(&rows, row.checkpoint)))
    }
}

/// What came of waiting for a checkpoint's row.
pub enum Awaited {
    Cut(LakeCut),
    /// The sink has written a newer row and none for this one.
    Passed,
}

/// Waits until the sink has committed a checkpoint; goes on waiting as long as newer rows come. Errors: no row for `patience`
/// (retry).
pub async fn await_cut(
    checkpoints: &CheckpointTable,
    source: &str,
    checkpoint: i64,
    watermark: i64,
    patience: Duration,
) -> Result<Awaited> {
    let mut newest = None;
    let mut moved = Instant::now();
    loop {
        // One below, for the row of the checkpoint itself.
        let rows = checkpoints.rows(source, Some(watermark.saturating_sub(1))).await?;
        if let Some(cut) = LakeCut::fold(&rows, checkpoint) {
            return Ok(Awaited::Cut(cut));
        }
        let first = rows.first().map(|row| row.checkpoint);
        if first.is_some_and(|id| id > checkpoint) {
            return Ok(Awaited::Passed);
        }
        if first != newest {
            newest = first;
            moved = Instant::now();
        }
        if moved.elapsed() > patience {
            return Err(Error::retry(format!(
                "the lake did not reach checkpoint {checkpoint} in {} s: is `lakeward run` (the sink) running?",
                patience.as_secs()
            ))
            .with("source", source));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A column of a table of the lake, as verify reads it.
#[derive(Debug, Clone)]
pub struct LakeColumn {
    pub field_id: i32,
    /// Narrower values in older files are widened to this.
    pub arrow: DataType,
    /// JSON made of a composite type.
    pub leaves: bool,
}

/// A table of the lake at one snapshot, with the columns in the order of the source's.
pub struct LakeSide {
    lake: Lake,
    table: Table,
    snapshot_id: i64,
    /// None: the lake does not have the column.
    columns: Vec<Option<LakeColumn>>,
    shape: Shape,
}

/// How a row is made of the columns.
pub enum Shape {
    /// As they are, with the indexes of the key's.
    Relational { key: Vec<usize> },
    /// `_id`, fields, and last `_doc`.
    Documents(Fields),
}

/// Loads a table whose metadata has the snapshot.
pub async fn load(lake: &Lake, name: &str) -> Result<Table> {
    let id = ident(name)?;
    lake.load(&id).await?.ok_or_else(|| Error::refused("the lake does not have the table").with("table", name))
}

fn ident(name: &str) -> Result<TableIdent> {
    let (namespace, table) = name
        .split_once('.')
        .ok_or_else(|| Error::bug("a table's name in a checkpoint has no namespace").with("table", name))?;
    TableIdent::from_strs([namespace, table]).map_err(|e| Error::bug("a table's name").with("table", name).source(e))
}

/// Where a table's columns come from.
pub fn column_map(table: &Table) -> Result<ColumnMap> {
    match table.properties().get(COLUMNS_PROPERTY) {
        Some(property) => ColumnMap::parse(property),
        None => Err(Error::human("the lake's table has no property lakeward.columns").with("table", table.ident())),
    }
}

impl LakeColumn {
    pub fn new(column: &MappedColumn, leaves: bool) -> Self {
        Self { field_id: column.field_id, arrow: column.ty.arrow(), leaves }
    }
}

impl LakeSide {
    pub fn new(lake: &Lake, table: Table, snapshot_id: i64, columns: Vec<Option<LakeColumn>>, shape: Shape) -> Self {
        Self { lake: lake.clone(), table, snapshot_id, columns, shape }
    }
}

impl Side for LakeSide {
    async fn scan(&mut self, visit: &mut (dyn FnMut(&Row) + Send)) -> Result<()> {
        let files = self.table.files(self.snapshot_id).await?;
        let deletes = lakeward_lake::position_deletes(&self.lake, &self.table, &files).await?;
        let fields: Vec<Option<i32>> = self.columns.iter().map(|c| c.as_ref().map(|c| c.field_id)).collect();
        let mut row = Row::default();
        for file in &files.data {
            let deleted = deletes.get(file.file.file_path());
            let mut batches = read_file(&self.lake, file, &fields).await?;
            let mut number = 0_u64;
            while let Some(batch) = batches.try_next().await? {
                let arrays = widen(batch.columns, &self.columns).with("path", file.file.file_path())?;
                let printers = printers(&arrays, &self.columns)?;
                for index in 0..batch.rows {
                    if deleted.is_none_or(|deleted| !deleted.contains(number)) {
                        row.clear();
                        match &mut self.shape {
                            Shape::Relational { key } => {
                                for printer in &printers {
                                    row.push(|out| printer.write(index, out));
                                }
                                row.finish(key);
                            }
                            Shape::Documents(fields) => fields.of_lake(&printers, index, &mut row),
                        }
                        visit(&row);
                    }
                    number += 1;
                }
            }
        }
        Ok(())
    }
}

fn widen(arrays: Vec<Option<ArrayRef>>, columns: &[Option<LakeColumn>]) -> Result<Vec<Option<ArrayRef>>> {
    let cast_one = |(array, column): (Option<ArrayRef>, &Option<LakeColumn>)| match (array, column) {
        (Some(array), Some(column)) if *array.data_type() != column.arrow => cast(&array, &column.arrow)
            .map(Some)
            .map_err(|e| Error::human("a data file's column is not of its table's type").source(e)),
        (array, _) => Ok(array),
    };
    arrays.into_iter().zip(columns).map(cast_one).collect()
}

fn printers<'a>(arrays: &'a [Option<ArrayRef>], columns: &[Option<LakeColumn>]) -> Result<Vec<Printer<'a>>> {
    let one = |(array, column): (&'a Option<ArrayRef>, &Option<LakeColumn>)| match array {
        None => Ok(Printer::Missing),
        Some(array) => match (Printer::new(array.as_ref())?, column) {
            (Printer::Text(text), Some(LakeColumn { leaves: true, .. })) => Ok(Printer::Leaves(text)),
            (printer, _) => Ok(printer),
        },
    };
    arrays.iter().zip(columns).map(one).collect()
}

/// Columns of a batch of a data file, in the order asked for; None: the file does not have the field.
pub struct FileBatch {
    pub columns: Vec<Option<ArrayRef>>,
    pub rows: usize,
}

/// All rows of a data file, in order.
async fn read_file(
    lake: &Lake,
    file: &LiveFile,
    fields: &[Option<i32>],
) -> Result<BoxStream<'static, Result<FileBatch>>> {
    let location = file.file.file_path().to_owned();
    let failed = move |error: ParquetError| {
        let action = if matches!(error, ParquetError::External(_)) { Action::Retry } else { Action::Human };
        Error::new(action, "reading a data file").with("path", &location).source(error)
    };
    let path = lake.storage().path(file.file.file_path())?;
    let reader =
        ParquetObjectReader::new(lake.storage().object_store(), path).with_file_size(file.file.file_size_in_bytes());
    let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(failed.clone())?;
    let id_of = |field: &Field| field.metadata().get(PARQUET_FIELD_ID_META_KEY).and_then(|id| id.parse::<i32>().ok());
    let in_file: Vec<Option<i32>> = builder.schema().fields().iter().map(|f| id_of(f)).collect();
    let projected: Vec<usize> =
        (0..in_file.len()).filter(|root| in_file[*root].is_some_and(|id| fields.contains(&Some(id)))).collect();
    // A projection keeps the file's order.
    let places: Vec<Option<usize>> = fields
        .iter()
        .map(|field| {
            let id = (*field)?;
            projected.iter().position(|root| in_file[*root] == Some(id))
        })
        .collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), projected);
    let stream = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(failed.clone())?;
    Ok(stream
        .map_err(failed)
        .map_ok(move |batch: RecordBatch| FileBatch {
            columns: places.iter().map(|place| place.map(|p| batch.column(p).clone())).collect(),
            rows: batch.num_rows(),
        })
        .boxed())
}

/// What `lakeward.dead_letters` has about one table: values and rows that the lake does not hold, by key and column.
#[derive(Debug, Default)]
pub struct DeadLetters {
    /// Key in [`key_text`]'s form, column (None: the whole row).
    letters: HashSet<(String, Option<String>)>,
}

impl DeadLetters {
    /// Reads the letters of a table (`namespace.table`) as of now: they are written before what they are about.
    pub async fn read(lake: &Lake, name: &str) -> Result<Self> {
        let table = load(lake, "lakeward.dead_letters").await?;
        let mut letters = HashSet::new();
        let Some(snapshot) = table.snapshot() else { return Ok(Self { letters }) };
        let schema = table.metadata().current_schema();
        let field = |name: &str| schema.field_by_name(name).map(|f| f.id);
        let fields = [field("table"), field("column"), field("key")];
        let files = table.files(snapshot.snapshot_id()).await?;
        for file in &files.data {
            let mut batches = read_file(lake, file, &fields).await?;
            while let Some(batch) = batches.try_next().await? {
                let [tables, columns, keys] = batch.columns.as_slice() else { continue };
                let text = |array: &Option<ArrayRef>, row: usize| -> Option<String> {
                    let array = array.as_ref()?.as_string_opt::<i32>()?;
                    array.is_valid(row).then(|| array.value(row).to_owned())
                };
                for row in 0..batch.rows {
                    if text(tables, row).as_deref() == Some(name)
                        && let Some(key) = text(keys, row)
                    {
                        letters.insert((json_key_text(&key), text(columns, row)));
                    }
                }
            }
        }
        Ok(Self { letters })
    }

    pub fn has(&self, key: String, column: Option<&str>) -> bool {
        self.letters.contains(&(key, column.map(str::to_owned)))
    }
}

/// A key as text: its columns by name.
pub fn key_text<'a>(columns: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let fields: BTreeMap<&str, &str> = columns.collect();
    serde_json::to_string(&fields).unwrap_or_default()
}

/// The same of a dead letter's key, a JSON object.
fn json_key_text(json: &str) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(json) else { return json.to_owned() };
    let texts: Vec<(String, String)> = fields
        .into_iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect();
    key_text(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())))
}
