//! Row selections and statistics, without any file.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::datasource::physical_plan::parquet::RowGroupAccess;
use roaring::RoaringTreemap;

use super::plan::access_for_test as access;
use super::statistics;

/// The live rows that an access plan reads.
fn live(groups: &[u64], deleted: &RoaringTreemap) -> Vec<u64> {
    let mut rows = Vec::new();
    let mut start = 0;
    for (group, access) in groups.iter().zip(access(groups, deleted)) {
        match access {
            RowGroupAccess::Scan => rows.extend(start..start + group),
            RowGroupAccess::Skip => {}
            RowGroupAccess::Selection(selection) => {
                let mut at = start;
                for selector in selection.iter() {
                    if !selector.skip {
                        rows.extend(at..at + selector.row_count as u64);
                    }
                    at += selector.row_count as u64;
                }
                assert_eq!(at, start + group, "a selection covers its row group");
            }
        }
        start += group;
    }
    rows
}

#[test]
fn selections_are_exactly_the_live_rows() {
    let groups = [5, 3, 1, 4];
    for mask in 0u32..1 << 13 {
        let deleted: RoaringTreemap = (0..13u64).filter(|i| mask >> i & 1 == 1).collect();
        let expected: Vec<u64> = (0..13).filter(|i| !deleted.contains(*i)).collect();
        assert_eq!(live(&groups, &deleted), expected, "{deleted:?}");
    }
}

fn file(rows: usize, bounds: Option<(i64, i64)>, nulls: usize) -> Statistics {
    let value = |v: Option<i64>| v.map_or(Precision::Absent, |v| Precision::Exact(ScalarValue::Int64(Some(v))));
    Statistics {
        num_rows: Precision::Exact(rows),
        total_byte_size: Precision::Inexact(1),
        column_statistics: vec![ColumnStatistics {
            null_count: Precision::Exact(nulls),
            min_value: value(bounds.map(|b| b.0)),
            max_value: value(bounds.map(|b| b.1)),
            ..ColumnStatistics::new_unknown()
        }],
    }
}

#[test]
fn counts_of_the_table_are_live_and_its_bounds_estimates_once_rows_are_deleted() {
    let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true).with_metadata(
        [(parquet::arrow::PARQUET_FIELD_ID_META_KEY.to_string(), "1".to_string())].into(),
    )]));
    let files = [file(10, Some((3, 9)), 1), file(5, None, 5), file(10, Some((-2, 4)), 0)];
    let exact = statistics::of_table(&schema, files.iter(), 0);
    assert_eq!(exact.num_rows, Precision::Exact(25));
    assert_eq!(exact.column_statistics[0].null_count, Precision::Exact(6));
    assert_eq!(exact.column_statistics[0].min_value, Precision::Exact(ScalarValue::Int64(Some(-2))));
    assert_eq!(exact.column_statistics[0].max_value, Precision::Exact(ScalarValue::Int64(Some(9))));
    let deleted = statistics::of_table(&schema, files.iter(), 20);
    assert_eq!(deleted.num_rows, Precision::Exact(5));
    assert_eq!(deleted.column_statistics[0].null_count, Precision::Inexact(5));
    assert_eq!(deleted.column_statistics[0].min_value, Precision::Inexact(ScalarValue::Int64(Some(-2))));
}
