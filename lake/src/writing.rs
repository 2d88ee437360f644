//! Data files and position delete files: Arrow batches -> Parquet -> storage -> `DataFile` for a manifest.

use arrow::array::RecordBatch;
use iceberg::spec::DataFile;
use lakeward_runtime::Result;
use roaring::RoaringTreemap;

use crate::files::SnapshotFiles;
use crate::lake::Lake;
use crate::table::Table;

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

/// Writes batches of [`crate::arrow_schema`] of the table's current schema, one file at a time.
pub struct DataFileWriter;

impl DataFileWriter {
    pub async fn new(_lake: &Lake, _table: &Table, _options: WriteOptions) -> Result<Self> {
        todo!()
    }
    /// Appends a batch to the current file, whole: a batch is never split over two files.
    pub async fn write(&mut self, _batch: &RecordBatch) -> Result<()> {
        todo!()
    }
    /// Row number, in [`Self::current_path`], that the next written row gets.
    pub fn position(&self) -> u64 {
        todo!()
    }
    /// Location of the file that the next row goes to.
    pub fn current_path(&self) -> &str {
        todo!()
    }
    /// Ends the last file. Files without a row are not written.
    pub async fn finish(self) -> Result<Vec<DataFile>> {
        todo!()
    }
}

/// Position delete files for rows of live data files: one per data file while few are touched, beyond that one per partition. `files` is the snapshot the positions are of: it knows each data file's spec and partition.
pub async fn write_position_deletes(
    _lake: &Lake,
    _table: &Table,
    _files: &SnapshotFiles,
    _deletes: &[(String, RoaringTreemap)],
) -> Result<Vec<DataFile>> {
    todo!()
}
