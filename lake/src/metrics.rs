//! What a manifest says about a Parquet file: counts, sizes and bounds, from the footer just written.
//!
//! The iceberg crate's own writer is not used for this: it leaves a row group's truncated bound out instead of taking it, so that
//! a file of two row groups gets the bound of one, and rows of the other are pruned.

use std::collections::{HashMap, HashSet};

use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Datum, PrimitiveType, Schema, Type};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;

/// What a data file's manifest entry says about its columns, without content, path and partition.
///
/// `nan_counts` by field id: float columns, as counted while writing. Bounds of a column with any NaN are left out: Parquet's
/// ignore them. Bounds are inclusive; those of long text and binary are truncated, the upper ones rounded up.
pub(crate) fn data_file(
    schema: &Schema,
    metadata: &ParquetMetaData,
    size: u64,
    nan_counts: HashMap<i32, u64>,
) -> DataFileBuilder {
    let mut columns: HashMap<i32, Column> = HashMap::new();
    for group in metadata.row_groups() {
        for chunk in group.columns() {
            let basic = chunk.column_descr().self_type().get_basic_info();
            if !basic.has_id() {
                continue;
            }
            let id = basic.id();
            let column = columns.entry(id).or_default();
            column.size += chunk.compressed_size().max(0) as u64;
            column.values += chunk.num_values().max(0) as u64;
            // Elements of lists have no bounds; a group whose statistics are missing makes the file's unknown.
            let nested = chunk.column_descr().max_rep_level() > 0;
            match chunk.statistics() {
                Some(statistics) => {
                    column.nulls = column.nulls.zip(statistics.null_count_opt()).map(|(a, b)| a + b);
                    let all_null = statistics.null_count_opt() == Some(chunk.num_values().max(0) as u64);
                    if !all_null && !nested {
                        let ty = schema.field_by_id(id).and_then(|f| f.field_type.as_primitive_type());
                        column.widen(ty, statistics);
                    }
                }
                None => {
                    column.nulls = None;
                    column.unbounded = true;
                }
            }
            column.unbounded |= nested || nan_counts.get(&id).is_some_and(|n| *n > 0);
        }
    }
    let floats: HashSet<i32> = schema
        .field_id_to_fields()
        .iter()
        .filter(|(_, f)| matches!(*f.field_type, Type::Primitive(PrimitiveType::Float | PrimitiveType::Double)))
        .map(|(id, _)| *id)
        .collect();
    let nan_counts = nan_counts.into_iter().filter(|(id, _)| floats.contains(id)).collect();
    let bounds = |side: fn(&Column) -> &Option<Datum>| -> HashMap<i32, Datum> {
        columns.iter().filter(|(_, c)| !c.unbounded).filter_map(|(id, c)| Some((*id, side(c).clone()?))).collect()
    };
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_format(DataFileFormat::Parquet)
        .record_count(metadata.file_metadata().num_rows().max(0) as u64)
        .file_size_in_bytes(size)
        .column_sizes(columns.iter().map(|(id, c)| (*id, c.size)).collect())
        .value_counts(columns.iter().map(|(id, c)| (*id, c.values)).collect())
        .null_value_counts(columns.iter().filter_map(|(id, c)| Some((*id, c.nulls?))).collect())
        .nan_value_counts(nan_counts)
        .lower_bounds(bounds(|c| &c.lower))
        .upper_bounds(bounds(|c| &c.upper))
        .split_offsets(Some(metadata.row_groups().iter().filter_map(|g| g.file_offset()).collect()));
    builder
}

/// One column over the row groups seen so far.
struct Column {
    size: u64,
    values: u64,
    /// None: not known for some group.
    nulls: Option<u64>,
    lower: Option<Datum>,
    upper: Option<Datum>,
    unbounded: bool,
}

impl Default for Column {
    fn default() -> Self {
        Self { size: 0, values: 0, nulls: Some(0), lower: None, upper: None, unbounded: false }
    }
}

impl Column {
    fn widen(&mut self, ty: Option<&PrimitiveType>, statistics: &Statistics) {
        let read = |bytes: Option<&[u8]>| datum(ty?, statistics, bytes?);
        // A truncated bound is one all the same: the writer rounds it outwards.
        match (read(statistics.min_bytes_opt()), read(statistics.max_bytes_opt())) {
            (Some(min), Some(max)) => {
                self.lower = Some(self.lower.take().filter(|l| *l <= min).unwrap_or(min));
                self.upper = Some(self.upper.take().filter(|u| *u >= max).unwrap_or(max));
            }
            _ => self.unbounded = true,
        }
    }
}

/// Parquet's plain bytes are Iceberg's single-value form for all types but narrow decimals, which Parquet keeps as integers.
fn datum(ty: &PrimitiveType, statistics: &Statistics, bytes: &[u8]) -> Option<Datum> {
    if let PrimitiveType::Decimal { .. } = ty {
        let unscaled = match statistics {
            Statistics::Int32(_) => i128::from(i32::from_le_bytes(bytes.try_into().ok()?)),
            Statistics::Int64(_) => i128::from(i64::from_le_bytes(bytes.try_into().ok()?)),
            _ => return Datum::try_from_bytes(bytes, ty.clone()).ok(),
        };
        return Datum::try_from_bytes(&unscaled.to_be_bytes(), ty.clone()).ok();
    }
    Datum::try_from_bytes(bytes, ty.clone()).ok()
}
