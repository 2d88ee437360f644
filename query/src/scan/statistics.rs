//! What may be said about rows: manifest entries -> DataFusion's statistics.
//!
//! Two different subjects, never mixed. A *file's* statistics (rows, bounds, null counts) describe the file as written,
//! deleted rows included: they decide what can be skipped. The *table's* row count is exactly the live rows; with deletes
//! its bounds and null counts are estimates, since the rows that gave them may be gone.

use std::collections::HashSet;

use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use iceberg::spec::{DataFile, Datum, PrimitiveLiteral};

use super::adapter::field_id;

/// A bound as a value of the column's Arrow type now (it may have been widened since). None where the type has no use of it.
fn scalar(datum: &Datum, ty: &DataType) -> Option<ScalarValue> {
    use PrimitiveLiteral as L;
    Some(match (datum.literal(), ty) {
        (L::Boolean(v), DataType::Boolean) => ScalarValue::Boolean(Some(*v)),
        (L::Int(v), DataType::Int32) => ScalarValue::Int32(Some(*v)),
        (L::Int(v), DataType::Int64) => ScalarValue::Int64(Some(i64::from(*v))),
        (L::Int(v), DataType::Date32) => ScalarValue::Date32(Some(*v)),
        (L::Long(v), DataType::Int64) => ScalarValue::Int64(Some(*v)),
        (L::Long(v), DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            ScalarValue::TimestampMicrosecond(Some(*v), zone.clone())
        }
        (L::Float(v), DataType::Float32) => ScalarValue::Float32(Some(v.0)),
        (L::Float(v), DataType::Float64) => ScalarValue::Float64(Some(f64::from(v.0))),
        (L::Double(v), DataType::Float64) => ScalarValue::Float64(Some(v.0)),
        (L::String(v), DataType::Utf8) => ScalarValue::Utf8(Some(v.clone())),
        (L::Int128(v), DataType::Decimal128(precision, scale)) => ScalarValue::Decimal128(Some(*v), *precision, *scale),
        _ => return None,
    })
}

/// Types whose bounds are values of the column itself. Text may be cut short, and of floats -0 and 0 are one.
fn bounds_are_values(ty: &DataType) -> bool {
    !matches!(ty, DataType::Utf8 | DataType::Float32 | DataType::Float64)
}

fn is_float(ty: &DataType) -> bool {
    matches!(ty, DataType::Float32 | DataType::Float64)
}

/// Float columns of these files that are not known to be free of NaN.
pub fn may_hold_nan<'a>(schema: &Schema, files: impl Iterator<Item = &'a DataFile> + Clone) -> HashSet<i32> {
    let floats = schema.fields().iter().filter(|f| is_float(f.data_type())).filter_map(|f| field_id(f));
    floats.filter(|id| files.clone().any(|file| !nan_free(file, *id))).collect()
}

/// Whether the file says that it has no NaN in this column; a file that never had the column has none.
fn nan_free(file: &DataFile, id: i32) -> bool {
    match file.nan_value_counts().get(&id) {
        Some(count) => *count == 0,
        None => file.record_count() == 0,
    }
}

/// Statistics of one file as it was written.
pub fn of_file(schema: &Schema, file: &DataFile) -> Statistics {
    let column_statistics = schema
        .fields()
        .iter()
        .map(|field| {
            let mut column = ColumnStatistics::new_unknown();
            let Some(id) = field_id(field) else { return column };
            if let Some(nulls) = file.null_value_counts().get(&id) {
                column.null_count = Precision::Exact(*nulls as usize);
            }
            let ty = field.data_type();
            if is_float(ty) && !nan_free(file, id) {
                return column;
            }
            let bounds = (file.lower_bounds().get(&id), file.upper_bounds().get(&id));
            if let (Some(lower), Some(upper)) = bounds
                && let (Some(lower), Some(upper)) = (scalar(lower, ty), scalar(upper, ty))
            {
                // Only exact bounds prune. Equal exact bounds also say that every value is this one, which holds only where
                // bounds are values.
                let exact = bounds_are_values(ty) || lower != upper;
                let precision = |v| if exact { Precision::Exact(v) } else { Precision::Inexact(v) };
                column.min_value = precision(lower);
                column.max_value = precision(upper);
            }
            column
        })
        .collect();
    Statistics {
        num_rows: Precision::Exact(file.record_count() as usize),
        total_byte_size: Precision::Inexact(file.file_size_in_bytes() as usize),
        column_statistics,
    }
}

/// Statistics of the table's live rows. `deleted`: rows of these files that are not live, each counted once.
pub fn of_table<'a>(schema: &Schema, files: impl Iterator<Item = &'a Statistics>, deleted: u64) -> Statistics {
    let mut total = Statistics::new_unknown(schema);
    let mut rows = 0usize;
    let mut bytes = 0usize;
    // Per column: the bounds over all files while each file has them, and the null count likewise.
    let mut columns: Vec<Option<(Option<Bounds>, Option<usize>)>> = vec![None; schema.fields().len()];
    for file in files {
        let file_rows = file.num_rows.get_value().copied().unwrap_or(0);
        rows += file_rows;
        bytes += file.total_byte_size.get_value().copied().unwrap_or(0);
        for (column, stats) in columns.iter_mut().zip(&file.column_statistics) {
            let nulls = stats.null_count.get_value().copied();
            if file_rows == 0 {
                continue;
            }
            let bounds = stats.min_value.get_value().cloned().zip(stats.max_value.get_value().cloned());
            let only_nulls = nulls == Some(file_rows);
            *column = Some(match column.take() {
                None => (bounds, nulls),
                Some((known, known_nulls)) => {
                    let nulls = known_nulls.zip(nulls).map(|(a, b)| a + b);
                    let bounds = if only_nulls { known } else { known.zip(bounds).map(widest) };
                    (bounds, nulls)
                }
            });
        }
    }
    let live = rows.saturating_sub(deleted as usize);
    total.num_rows = Precision::Exact(live);
    total.total_byte_size = Precision::Inexact(bytes);
    for (index, column) in columns.into_iter().enumerate() {
        let (Some((bounds, nulls)), Some(out)) = (column, total.column_statistics.get_mut(index)) else { continue };
        let ty = schema.field(index).data_type();
        if let Some(nulls) = nulls {
            out.null_count = if deleted == 0 { Precision::Exact(nulls) } else { Precision::Inexact(nulls.min(live)) };
        }
        if let Some((min, max)) = bounds {
            let exact = deleted == 0 && bounds_are_values(ty);
            let precision = |v| if exact { Precision::Exact(v) } else { Precision::Inexact(v) };
            out.min_value = precision(min);
            out.max_value = precision(max);
        }
    }
    total
}

/// Least and greatest value.
type Bounds = (ScalarValue, ScalarValue);

fn widest((a, b): (Bounds, Bounds)) -> Bounds {
    let min = if b.0 < a.0 { b.0 } else { a.0 };
    let max = if b.1 > a.1 { b.1 } else { a.1 };
    (min, max)
}
