//! Columns of data files: `DataFile -> Parquet pages -> columns of the table`, all rows (to rebuild the key index) or a few
//! (to complete updates). Columns are found by field id, never by name.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{Schema, SchemaRef};
use futures::stream::{BoxStream, StreamExt};
use iceberg::spec::DataFile;
use lakeward_lake::Lake;
use lakeward_runtime::{Action, Error, Result};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, RowSelection};
use parquet::arrow::async_reader::ParquetObjectReader;
use parquet::arrow::{PARQUET_FIELD_ID_META_KEY, ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::file::metadata::PageIndexPolicy;

/// Rows of a batch as they are read.
const BATCH_ROWS: usize = 8_192;

/// Reads `columns` (indexes into `schema`) of a data file, in their order. `rows`: sorted row numbers, None: all. Columns
/// that the file does not have are NULL, narrower ones are widened.
pub async fn read_columns(
    lake: &Lake,
    file: &DataFile,
    schema: &SchemaRef,
    columns: &[usize],
    rows: Option<&[u64]>,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    let failed = {
        let path = file.file_path().to_owned();
        move |error: parquet::errors::ParquetError| {
            let action =
                if matches!(error, parquet::errors::ParquetError::External(_)) { Action::Retry } else { Action::Human };
            Error::new(action, "reading a data file").with("path", &path).source(error)
        }
    };
    let path = lake.storage().path(file.file_path())?;
    let reader =
        ParquetObjectReader::new(lake.storage().object_store(), path).with_file_size(file.file_size_in_bytes());
    let pages = if rows.is_some() { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
    let options = ArrowReaderOptions::new().with_page_index_policy(pages);
    let builder = ParquetRecordBatchStreamBuilder::new_with_options(reader, options).await.map_err(failed.clone())?;

    let field_id = |field: &arrow::datatypes::Field| field.metadata().get(PARQUET_FIELD_ID_META_KEY).cloned();
    let in_file: Vec<Option<usize>> = columns
        .iter()
        .map(|c| {
            let id = field_id(schema.field(*c))?;
            builder.schema().fields().iter().position(|f| field_id(f).as_ref() == Some(&id))
        })
        .collect();
    // The batches hold the projected columns in the file's order.
    let mut projected: Vec<usize> = in_file.iter().flatten().copied().collect();
    projected.sort_unstable();
    projected.dedup();
    let places: Vec<Option<usize>> =
        in_file.iter().map(|f| f.and_then(|f| projected.iter().position(|p| *p == f))).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), projected);
    let total = usize::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let mut builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
    if let Some(rows) = rows {
        let ranges = rows.iter().map(|row| *row as usize..*row as usize + 1);
        builder = builder.with_row_selection(RowSelection::from_consecutive_ranges(ranges, total));
    }
    let wanted: SchemaRef =
        Arc::new(Schema::new(columns.iter().map(|c| schema.field(*c).clone().with_nullable(true)).collect::<Vec<_>>()));
    let stream = builder.build().map_err(failed.clone())?;
    let convert = move |batch: RecordBatch| -> Result<RecordBatch> {
        let columns = places
            .iter()
            .zip(wanted.fields())
            .map(|(place, field)| -> Result<ArrayRef, arrow::error::ArrowError> {
                match place {
                    None => Ok(new_null_array(field.data_type(), batch.num_rows())),
                    Some(place) if batch.column(*place).data_type() == field.data_type() => {
                        Ok(batch.column(*place).clone())
                    }
                    Some(place) => cast(batch.column(*place), field.data_type()),
                }
            })
            .collect::<Result<Vec<_>, _>>();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        columns
            .and_then(|columns| RecordBatch::try_new_with_options(wanted.clone(), columns, &options))
            .map_err(|e| Error::human("a data file's columns are not those of its table").source(e))
    };
    Ok(stream.map(move |batch| batch.map_err(failed.clone()).and_then(&convert)).boxed())
}
