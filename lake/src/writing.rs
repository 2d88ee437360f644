//! Data files and position delete files: Arrow batches -> Parquet -> storage -> `DataFile` for a manifest.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, SchemaRef as ArrowSchemaRef};
use iceberg::metadata_columns::{delete_file_path_field, delete_file_pos_field};
use iceberg::spec::{DataContentType, DataFile, PrimitiveType, Schema, SchemaRef, Struct, Type};
use lakeward_runtime::{Error, Result};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::async_writer::ParquetObjectWriter;
use parquet::arrow::{ArrowSchemaConverter, AsyncArrowWriter};
use parquet::basic::{Compression, LogicalType as ParquetLogicalType, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::{SchemaDescriptor, Type as ParquetType};
use roaring::RoaringTreemap;
use uuid::Uuid;

use crate::files::SnapshotFiles;
use crate::lake::Lake;
use crate::storage::Storage;
use crate::table::Table;
use crate::{errors, metrics, types};

/// Bytes of a text or binary bound kept in statistics and manifests; the rest of a long text says little.
const BOUND_LENGTH: usize = 64;
/// Delete files that name one data file each are the cheapest to read and to replace; beyond this many the files themselves
/// cost more, and one per partition is written.
const SINGLE_TARGETS: usize = 64;
/// Rows handed to Parquet at once.
const DELETE_BATCH: usize = 65_536;

/// How data files are cut.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Bytes; a file is finished with the batch that reaches it.
    pub target_file_size: u64,
    /// Rows per data page at most; small pages make single rows cheap to read.
    pub max_page_rows: usize,
    /// Rows per row group at most.
    pub max_row_group_rows: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { target_file_size: 128 << 20, max_page_rows: 20_000, max_row_group_rows: 131_072 }
    }
}

/// Writes batches of [`crate::arrow_schema`] of the table's current schema, one file at a time. Unpartitioned tables only.
///
/// Dropped without [`Self::finish`], it leaves at most objects or parts that nothing names; after a failure nothing at all, so
/// that a disk that is full does not fill with tries.
pub struct DataFileWriter {
    storage: Storage,
    folder: String,
    schema: SchemaRef,
    arrow: ArrowSchemaRef,
    parquet: SchemaDescriptor,
    properties: WriterProperties,
    target_file_size: u64,
    /// Top-level columns with floats in them: index and the field id of the float.
    floats: Vec<(usize, i32)>,
    spec_id: i32,
    location: String,
    current: Option<File>,
    done: Vec<DataFile>,
}

/// A file being written.
struct File {
    writer: AsyncArrowWriter<ParquetObjectWriter>,
    rows: u64,
    nan_counts: HashMap<i32, u64>,
}

impl DataFileWriter {
    pub async fn new(lake: &Lake, table: &Table, options: WriteOptions) -> Result<Self> {
        let spec = table.metadata().default_partition_spec();
        if !spec.is_unpartitioned() {
            return Err(Error::configuration("partitioned tables cannot be written yet").with("table", table.ident()));
        }
        let schema = table.metadata().current_schema().clone();
        let arrow = types::arrow_schema(&schema)?;
        let folder = format!("{}/data", table.location());
        let mut writer = Self {
            storage: lake.storage().clone(),
            parquet: parquet_schema(&arrow)?,
            floats: floats(&schema),
            schema,
            arrow,
            properties: properties(&options, Some(BOUND_LENGTH)),
            target_file_size: options.target_file_size,
            spec_id: spec.spec_id(),
            location: String::new(),
            folder,
            current: None,
            done: Vec::new(),
        };
        writer.location = writer.next_location();
        Ok(writer)
    }

    fn next_location(&self) -> String {
        format!("{}/{}.parquet", self.folder, Uuid::now_v7())
    }

    /// The schema that batches must have (names and types; metadata is not compared).
    pub fn arrow_schema(&self) -> &ArrowSchemaRef {
        &self.arrow
    }

    /// Appends a batch to the current file, whole: a batch is never split over two files.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self.append(batch).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.discard(error).await),
        }
    }

    /// Removes the files that are done.
    async fn discard(&mut self, error: Error) -> Error {
        let done: Vec<String> = self.done.drain(..).map(|f| f.file_path().to_owned()).collect();
        self.storage.delete_quietly(&done).await;
        error
    }

    async fn append(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let failed = |e, location: &str| errors::parquet(e, "writing a data file", location);
        let file = match &mut self.current {
            Some(file) => file,
            None => {
                let writer =
                    parquet_writer(&self.storage, &self.location, &self.arrow, &self.parquet, &self.properties)?;
                self.current.insert(File { writer, rows: 0, nan_counts: HashMap::new() })
            }
        };
        for (index, id) in &self.floats {
            let column = batch.columns().get(*index).ok_or_else(|| Error::bug("a batch lacks columns of the table"))?;
            *file.nan_counts.entry(*id).or_default() += nans(column);
        }
        file.writer.write(batch).await.map_err(|e| failed(e, &self.location))?;
        file.rows += batch.num_rows() as u64;
        if (file.writer.bytes_written() + file.writer.in_progress_size()) as u64 >= self.target_file_size {
            self.end_file().await?;
        }
        Ok(())
    }

    /// Row number, in [`Self::current_path`], that the next written row gets.
    pub fn position(&self) -> u64 {
        self.current.as_ref().map_or(0, |f| f.rows)
    }

    /// Location of the file that the next row goes to.
    pub fn current_path(&self) -> &str {
        &self.location
    }

    /// Bytes of memory that the file being written holds.
    pub fn memory(&self) -> usize {
        self.current.as_ref().map_or(0, |f| f.writer.memory_size())
    }

    /// Ends the current file early; the next row begins another one.
    pub async fn end_file(&mut self) -> Result<()> {
        let Some(mut file) = self.current.take() else { return Ok(()) };
        let next = self.next_location();
        let location = std::mem::replace(&mut self.location, next);
        let failed = |e| errors::parquet(e, "ending a data file", &location);
        let footer = file.writer.finish().await.map_err(failed)?;
        let size = file.writer.bytes_written() as u64;
        let data_file = metrics::data_file(&self.schema, &footer, size, file.nan_counts)
            .file_path(location)
            .partition(Struct::empty())
            .partition_spec_id(self.spec_id)
            .build()
            .map_err(|e| Error::bug("describing a data file").source(e))?;
        self.done.push(data_file);
        Ok(())
    }

    /// Ends the last file. Files without a row are not written.
    pub async fn finish(mut self) -> Result<Vec<DataFile>> {
        match self.end_file().await {
            Ok(()) => Ok(self.done),
            Err(error) => Err(self.discard(error).await),
        }
    }
}

fn properties(options: &WriteOptions, bound_length: Option<usize>) -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(true)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(bound_length)
        .set_column_index_truncate_length(Some(BOUND_LENGTH))
        .set_max_row_group_row_count(Some(options.max_row_group_rows))
        .set_data_page_row_count_limit(options.max_page_rows)
        .set_write_batch_size(options.max_page_rows.min(1024))
        .set_created_by(concat!("lakeward ", env!("CARGO_PKG_VERSION")).to_owned())
        .build()
}

fn parquet_writer(
    storage: &Storage,
    location: &str,
    arrow: &ArrowSchemaRef,
    parquet: &SchemaDescriptor,
    properties: &WriterProperties,
) -> Result<AsyncArrowWriter<ParquetObjectWriter>> {
    let options = ArrowWriterOptions::new()
        .with_properties(properties.clone())
        .with_parquet_schema(parquet.clone())
        // Readers take the types from Iceberg; Arrow's own copy of the schema would be most of a small file.
        .with_skip_arrow_metadata(true);
    let upload = ParquetObjectWriter::from_buf_writer(storage.writer(location)?);
    AsyncArrowWriter::try_new_with_options(upload, arrow.clone(), options)
        .map_err(|e| errors::parquet(e, "starting a Parquet file", location))
}

/// The Parquet schema of an Arrow schema, with uuids marked as such: engines read sixteen bytes without the mark as binary.
fn parquet_schema(arrow: &ArrowSchemaRef) -> Result<SchemaDescriptor> {
    let failed = |e: ParquetError| Error::bug("making the Parquet schema of a table").source(e);
    let plain = ArrowSchemaConverter::new().convert(arrow).map_err(failed)?;
    let root = mark_uuids(plain.root_schema()).map_err(failed)?;
    Ok(SchemaDescriptor::new(Arc::new(root)))
}

fn mark_uuids(ty: &ParquetType) -> parquet::errors::Result<ParquetType> {
    let info = ty.get_basic_info();
    let id = info.has_id().then(|| info.id());
    match ty {
        ParquetType::GroupType { fields, .. } => {
            let fields = fields.iter().map(|f| mark_uuids(f).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
            let mut builder = ParquetType::group_type_builder(info.name())
                .with_fields(fields)
                .with_converted_type(info.converted_type())
                .with_logical_type(info.logical_type_ref().cloned())
                .with_id(id);
            if info.has_repetition() {
                builder = builder.with_repetition(info.repetition());
            }
            builder.build()
        }
        // Only uuid columns are sixteen plain bytes: decimals of that width carry their own logical type.
        ParquetType::PrimitiveType { physical_type, type_length: 16, .. }
            if *physical_type == parquet::basic::Type::FIXED_LEN_BYTE_ARRAY && info.logical_type_ref().is_none() =>
        {
            ParquetType::primitive_type_builder(info.name(), *physical_type)
                .with_length(16)
                .with_repetition(info.repetition())
                .with_logical_type(Some(ParquetLogicalType::Uuid))
                .with_id(id)
                .build()
        }
        ParquetType::PrimitiveType { .. } => Ok(ty.clone()),
    }
}

/// Top-level float columns and lists of floats: column index, field id of the float.
fn floats(schema: &Schema) -> Vec<(usize, i32)> {
    let is_float = |ty: &Type| matches!(ty, Type::Primitive(PrimitiveType::Float | PrimitiveType::Double));
    let fields = schema.as_struct().fields().iter().enumerate();
    fields
        .filter_map(|(index, field)| match &*field.field_type {
            ty if is_float(ty) => Some((index, field.id)),
            Type::List(list) if is_float(&list.element_field.field_type) => Some((index, list.element_field.id)),
            _ => None,
        })
        .collect()
}

fn nans(column: &ArrayRef) -> u64 {
    let count = match column.data_type() {
        DataType::Float32 => column.as_primitive::<Float32Type>().iter().flatten().filter(|v| v.is_nan()).count(),
        DataType::Float64 => column.as_primitive::<Float64Type>().iter().flatten().filter(|v| v.is_nan()).count(),
        DataType::List(_) => {
            let lists: &ListArray = column.as_list();
            let (from, to) = (lists.value_offsets().first(), lists.value_offsets().last());
            let (from, to) = (from.map_or(0, |o| *o as usize), to.map_or(0, |o| *o as usize));
            return nans(&lists.values().slice(from, to - from));
        }
        _ => 0,
    };
    count as u64
}

/// A data file's path and its rows to delete.
type Target = (String, RoaringTreemap);
/// Spec and partition of a data file, which its delete file shares.
type Home<'a> = (i32, &'a Struct);

/// Position delete files for rows of live data files: one per data file while few are touched, beyond that one per partition.
///
/// `files` is the snapshot the positions are of: it knows each data file's spec and partition. A data file it does not have is
/// taken to be one added by the same commit, which is unpartitioned.
pub async fn write_position_deletes(
    lake: &Lake,
    table: &Table,
    files: &SnapshotFiles,
    deletes: &[Target],
) -> Result<Vec<DataFile>> {
    let homes: HashMap<&str, Home<'_>> =
        files.data.iter().map(|f| (f.file.file_path(), (f.spec_id, f.file.partition()))).collect();
    let new = (table.metadata().default_partition_spec_id(), &Struct::empty());
    let mut groups: Vec<(Home<'_>, Vec<&Target>)> = Vec::new();
    let single = deletes.len() <= SINGLE_TARGETS;
    for delete in deletes.iter().filter(|(_, rows)| !rows.is_empty()) {
        let home = *homes.get(delete.0.as_str()).unwrap_or(&new);
        match groups.iter_mut().find(|(other, _)| !single && *other == home) {
            Some((_, group)) => group.push(delete),
            None => groups.push((home, vec![delete])),
        }
    }
    let mut written = Vec::with_capacity(groups.len());
    for ((spec_id, partition), mut group) in groups {
        // The specification's order, which lets readers stop early.
        group.sort_by(|a, b| a.0.cmp(&b.0));
        match write_delete_file(lake.storage(), table, spec_id, partition, &group).await {
            Ok(file) => written.push(file),
            Err(error) => {
                let done: Vec<String> = written.iter().map(|f: &DataFile| f.file_path().to_owned()).collect();
                lake.storage().delete_quietly(&done).await;
                return Err(error.with("table", table.ident()));
            }
        }
    }
    Ok(written)
}

async fn write_delete_file(
    storage: &Storage,
    table: &Table,
    spec_id: i32,
    partition: &Struct,
    targets: &[&Target],
) -> Result<DataFile> {
    let schema = Schema::builder()
        .with_fields([delete_file_path_field().clone(), delete_file_pos_field().clone()])
        .build()
        .map_err(|e| errors::iceberg(e, "making the schema of delete files"))?;
    let arrow = types::arrow_schema(&schema)?;
    // Bounds of the path must be exact: readers match a delete file to a data file by them.
    let properties = properties(&WriteOptions::default(), None);
    let location = format!("{}/data/{}-deletes.parquet", table.location(), Uuid::now_v7());
    let failed = |e| errors::parquet(e, "writing a delete file", &location);
    let mut writer = parquet_writer(storage, &location, &arrow, &parquet_schema(&arrow)?, &properties)?;
    for (path, rows) in targets {
        let mut rows = rows.iter();
        loop {
            let positions: Int64Array = rows.by_ref().take(DELETE_BATCH).map(|row| Some(row as i64)).collect();
            if positions.is_empty() {
                break;
            }
            let paths = StringArray::from_iter_values(std::iter::repeat_n(path, positions.len()));
            let batch = RecordBatch::try_new(arrow.clone(), vec![Arc::new(paths), Arc::new(positions)])
                .map_err(|e| Error::bug("making a batch of deletes").source(e))?;
            writer.write(&batch).await.map_err(failed)?;
        }
    }
    let footer = writer.finish().await.map_err(failed)?;
    let size = writer.bytes_written() as u64;
    let mut builder = metrics::data_file(&schema, &footer, size, HashMap::new());
    if let [(path, _)] = targets {
        builder.referenced_data_file(Some(path.clone()));
    }
    builder
        .content(DataContentType::PositionDeletes)
        .file_path(location)
        .partition(partition.clone())
        .partition_spec_id(spec_id)
        .build()
        .map_err(|e| Error::bug("describing a delete file").source(e))
}
