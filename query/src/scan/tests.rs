//! Row selections and statistics; then scans of Parquet files whose deletes and metadata are given, each trap as it was seen.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Date32Array, FixedSizeBinaryArray, Float32Array, Float64Array, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::datasource::physical_plan::parquet::RowGroupAccess;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, Datum};
use lakeward_lake::{LiveFile, SnapshotFiles};
use object_store::local::LocalFileSystem;
use roaring::RoaringTreemap;

use super::plan::{Reader, access};
use super::{SnapshotTable, statistics};

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
    let schema = Arc::new(Schema::new(vec![
        Field::new("x", DataType::Int64, true)
            .with_metadata([(parquet::arrow::PARQUET_FIELD_ID_META_KEY.to_string(), "1".to_string())].into()),
    ]));
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

/// A table of Parquet files in a temporary directory.
struct Files {
    dir: tempfile::TempDir,
    files: SnapshotFiles,
    deletes: HashMap<String, Arc<RoaringTreemap>>,
}

const STORE: &str = "test://files/";

fn field(name: &str, ty: DataType, nullable: bool, id: i32) -> Field {
    Field::new(name, ty, nullable)
        .with_metadata([(parquet::arrow::PARQUET_FIELD_ID_META_KEY.to_string(), id.to_string())].into())
}

/// What a manifest would say about a file.
#[derive(Default)]
struct Said {
    bounds: Vec<(i32, Datum, Datum)>,
    nulls: Vec<(i32, u64)>,
    nans: Vec<(i32, u64)>,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), files: SnapshotFiles::default(), deletes: HashMap::new() }
    }

    fn add(&mut self, fields: Vec<Field>, columns: Vec<ArrayRef>, rows_per_group: usize, said: Said, deleted: &[u64]) {
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        let name = format!("{}.parquet", self.files.data.len());
        let path = self.dir.path().join(&name);
        let properties = parquet::file::properties::WriterProperties::builder()
            .set_max_row_group_row_count(Some(rows_per_group))
            .build();
        let out = std::fs::File::create(&path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(out, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let file = DataFileBuilder::default()
            .content(DataContentType::Data)
            .file_path(name.clone())
            .file_format(DataFileFormat::Parquet)
            .partition(iceberg::spec::Struct::empty())
            .partition_spec_id(0)
            .record_count(batch.num_rows() as u64)
            .file_size_in_bytes(std::fs::metadata(&path).unwrap().len())
            .null_value_counts(said.nulls.into_iter().collect())
            .nan_value_counts(said.nans.into_iter().collect())
            .lower_bounds(said.bounds.iter().map(|b| (b.0, b.1.clone())).collect())
            .upper_bounds(said.bounds.iter().map(|b| (b.0, b.2.clone())).collect())
            .build()
            .unwrap();
        self.files.data.push(LiveFile { file: Arc::new(file), sequence_number: 1, spec_id: 0 });
        if !deleted.is_empty() {
            self.deletes.insert(name, Arc::new(deleted.iter().copied().collect()));
        }
    }

    /// The table under these columns, as `t` in a session with these options.
    async fn table(&self, fields: Vec<Field>, options: &[(&str, &str)]) -> SessionContext {
        let mut config = SessionConfig::new().with_target_partitions(2);
        for (name, value) in options {
            config.options_mut().set(name, value).unwrap();
        }
        let builder = SessionStateBuilder::new().with_config(config).with_default_features();
        let context = SessionContext::new_with_state(crate::pg::install(builder).build());
        let store = Arc::new(LocalFileSystem::new_with_prefix(self.dir.path()).unwrap());
        let runtime = context.runtime_env();
        runtime.register_object_store(&url::Url::parse(STORE).unwrap(), Arc::clone(&store) as _);
        let reader = Reader {
            store,
            store_url: STORE.into(),
            footers: runtime.cache_manager.get_file_metadata_cache(),
            path: &|location| Ok(location.into()),
        };
        let schema = Arc::new(Schema::new(fields));
        let plan = reader.plan(1, schema, &self.files, &self.deletes, None).await.unwrap();
        context.register_table("t", Arc::new(SnapshotTable::new(Arc::new(plan)))).unwrap();
        context
    }
}

/// The rows of an answer, columns joined by a space.
async fn rows(context: &SessionContext, sql: &str) -> Vec<String> {
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let mut out = Vec::new();
    for batch in batches {
        let print: Vec<_> =
            batch.columns().iter().map(|c| crate::pg::printer(c, crate::pg::Style::Text).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let texts: Vec<_> = print
                .iter()
                .map(|p| {
                    let mut text = String::new();
                    p(row, &mut text);
                    text
                })
                .collect();
            out.push(texts.join(" "));
        }
    }
    out
}

fn longs(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

#[tokio::test]
async fn trap_38_deleted_rows_stay_deleted_under_a_limit_with_pushdown_on() {
    let fields = || vec![field("id", DataType::Int64, false, 1)];
    let mut files = Files::new();
    let said = Said { bounds: vec![(1, Datum::long(0), Datum::long(2999))], nulls: vec![(1, 0)], ..Said::default() };
    files.add(fields(), vec![longs(0..3000)], 1000, said, &(0..900).collect::<Vec<_>>());
    for pushdown in ["true", "false"] {
        let context = files.table(fields(), &[("datafusion.execution.parquet.pushdown_filters", pushdown)]).await;
        let ids = rows(&context, "select id from t where id >= 0 limit 3").await;
        assert_eq!(ids.len(), 3);
        assert!(ids.iter().all(|id| id.parse::<i64>().unwrap() >= 900), "{ids:?} with pushdown {pushdown}");
        assert_eq!(rows(&context, "select count(id) from t where id < 1000").await, ["100"]);
    }
}

#[tokio::test]
async fn trap_39_statistics_of_a_file_count_its_deleted_rows() {
    let fields = || vec![field("x", DataType::Int64, true, 1)];
    let mut files = Files::new();
    let column: Int64Array = (0..100).map(|i| (i >= 50).then_some(77)).collect();
    let said = Said { bounds: vec![(1, Datum::long(77), Datum::long(77))], nulls: vec![(1, 50)], ..Said::default() };
    files.add(fields(), vec![Arc::new(column)], 1000, said, &(0..50).collect::<Vec<_>>());
    let context = files.table(fields(), &[]).await;
    for (sql, count) in [
        ("select count(*) from t where x = 77", "50"),
        ("select count(*) from t where x is not null", "50"),
        ("select count(*) from t where x is null", "0"),
        ("select count(x) from t", "50"),
        ("select count(*) from t", "50"),
    ] {
        assert_eq!(rows(&context, sql).await, [count], "{sql}");
    }
}

#[tokio::test]
async fn trap_40_nan_is_above_every_bound() {
    let fields = || vec![field("f", DataType::Float64, true, 1)];
    for nans in [vec![(1, 1)], vec![]] {
        let mut files = Files::new();
        let said = Said { bounds: vec![(1, Datum::double(2.0), Datum::double(3.0))], nulls: vec![(1, 0)], nans };
        files.add(fields(), vec![Arc::new(Float64Array::from(vec![f64::NAN, 2.0, 3.0]))], 1000, said, &[]);
        let context = files.table(fields(), &[]).await;
        assert_eq!(rows(&context, "select count(*) from t where f > 5").await, ["1"]);
        assert_eq!(rows(&context, "select max(f) from t").await, ["NaN"]);
    }
    // Known to be free of it, floats prune as others do.
    let mut files = Files::new();
    let said =
        Said { bounds: vec![(1, Datum::double(2.0), Datum::double(3.0))], nulls: vec![(1, 0)], nans: vec![(1, 0)] };
    files.add(fields(), vec![Arc::new(Float64Array::from(vec![2.0, 3.0]))], 1000, said, &[]);
    let context = files.table(fields(), &[]).await;
    let plan = rows(&context, "explain analyze select * from t where f > 5").await.join("\n");
    assert!(plan.contains("files_ranges_pruned_statistics=1 total → 0 matched"), "{plan}");
}

#[tokio::test]
async fn columns_are_found_by_field_id() {
    let mut files = Files::new();
    let old = vec![
        field("id", DataType::Int32, false, 1),
        field("name", DataType::Utf8, true, 2),
        field("amount", DataType::Float32, true, 3),
    ];
    files.add(
        old,
        vec![
            Arc::new(Int32Array::from(vec![1, 2])),
            Arc::new(StringArray::from(vec!["dropped", "too"])),
            Arc::new(Float32Array::from(vec![0.5, 1.5])),
        ],
        1000,
        Said { bounds: vec![(1, Datum::int(1), Datum::int(2))], nulls: vec![(1, 0), (3, 0)], ..Said::default() },
        &[0],
    );
    // `amount` was renamed, and widened with `id`; `name` was dropped and added again as another column, `note` added.
    let new = || {
        vec![
            field("id", DataType::Int64, false, 1),
            field("name", DataType::Utf8, true, 6),
            field("amt", DataType::Float64, true, 3),
            field("note", DataType::Utf8, true, 7),
        ]
    };
    files.add(
        new(),
        vec![
            longs([3]),
            Arc::new(StringArray::from(vec!["new"])),
            Arc::new(Float64Array::from(vec![2.5])),
            Arc::new(StringArray::from(vec!["n"])),
        ],
        1000,
        Said::default(),
        &[],
    );
    let context = files.table(new(), &[]).await;
    assert_eq!(rows(&context, "select id, name, amt, note from t order by id").await, ["2  1.5 ", "3 new 2.5 n"]);
    assert_eq!(rows(&context, "select id from t where name is null").await, ["2"]);
    assert_eq!(rows(&context, "select id from t where amt > 1 and id < 3").await, ["2"]);
    assert_eq!(rows(&context, "select note from t where id = 3").await, ["n"]);
    assert_eq!(rows(&context, "select count(*) from t").await, ["2"]);
}

#[tokio::test]
async fn counts_come_from_statistics() {
    let fields = || vec![field("id", DataType::Int64, false, 1)];
    let mut files = Files::new();
    files.add(fields(), vec![longs(0..100)], 10, Said::default(), &[3, 4, 99]);
    files.add(fields(), vec![longs(100..200)], 10, Said::default(), &[]);
    let context = files.table(fields(), &[]).await;
    assert_eq!(rows(&context, "select count(*) from t").await, ["197"]);
    let plan = rows(&context, "explain select count(*) from t").await.join("\n");
    assert!(!plan.contains("DataSourceExec"), "{plan}");
    assert_eq!(rows(&context, "select min(id), max(id), sum(id) from t").await, ["0 199 19794"]);
}

#[tokio::test]
async fn uuids_compare_and_infinities_print() {
    let fields = || {
        vec![
            field("id", DataType::FixedSizeBinary(16), false, 1),
            field("day", DataType::Date32, true, 2),
            field("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true, 3),
            field("tag", DataType::Utf8, true, 4),
        ]
    };
    let ids = ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"];
    let bytes = ids.iter().map(|i| crate::pg::parse_uuid(i).unwrap());
    let mut files = Files::new();
    files.add(
        fields(),
        vec![
            Arc::new(FixedSizeBinaryArray::try_from_iter(bytes).unwrap()),
            Arc::new(Date32Array::from(vec![i32::MAX, 0])),
            Arc::new(TimestampMicrosecondArray::from(vec![0, -i64::MAX]).with_timezone("UTC")),
            Arc::new(StringArray::from(vec![ids[0], "none"])),
        ],
        1000,
        Said::default(),
        &[],
    );
    let context = files.table(fields(), &[]).await;
    for (sql, expected) in [
        ("select day from t where id = 'A0EEBC999C0B4EF8BB6D6BB9BD380A11'", "infinity"),
        ("select at from t where 'b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' = id", "-infinity"),
        (
            "select count(*) from t where id in ('b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')",
            "2",
        ),
        (
            "select count(*) from t where id between 'b0000000-0000-0000-0000-000000000000' and 'bfffffff-0000-0000-0000-000000000000'",
            "1",
        ),
        ("select count(*) from t where id::text like 'a0ee%'", "1"),
        ("select count(*) from t where id = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", "1"),
        ("select count(*) from t where id = tag", "1"),
        ("select count(*) from t a join t b on a.id = b.tag", "1"),
        ("select day::text || ' ' || at::text from t where tag = 'none'", "1970-01-01 -infinity"),
        ("select count(*) from t where day > '2020-01-01'", "1"),
        ("select count(*) from t where at < '2020-01-01T00:00:00Z'", "2"),
        ("select count(*) from t where at < timestamp '2020-01-01 00:00:00'", "2"),
        ("select max(day) from t", "infinity"),
    ] {
        assert_eq!(rows(&context, sql).await, [expected], "{sql}");
    }
    assert_eq!(context.sql("select id::text from t").await.unwrap().schema().field(0).name(), "t.id");
    let error = context.sql("select * from t where id = 'x'").await.unwrap_err().to_string();
    assert!(error.contains("invalid input syntax for type uuid"), "{error}");
}

#[tokio::test]
async fn trap_41_infinite_dates_compare() {
    let fields = || {
        vec![
            field("day", DataType::Date32, true, 2),
            field("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true, 3),
            field("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true, 4),
        ]
    };
    let mut files = Files::new();
    files.add(
        fields(),
        vec![
            Arc::new(Date32Array::from(vec![i32::MAX, 0, 1])),
            Arc::new(TimestampMicrosecondArray::from(vec![0, i64::MAX, 86_400_000_001]).with_timezone("UTC")),
            Arc::new(TimestampMicrosecondArray::from(vec![0, i64::MAX, -i64::MAX])),
        ],
        1000,
        Said::default(),
        &[],
    );
    let context = files.table(fields(), &[]).await;
    for (sql, expected) in [
        ("select count(*) from t where at > now()", "1"),
        ("select count(*) from t where ts > now()", "1"),
        ("select count(*) from t where day > now()", "1"),
        ("select count(*) from t where now() - interval '1 day' < day", "1"),
        ("select count(*) from t where day > current_date", "1"),
        ("select count(*) from t where at > now() - interval '1 day'", "1"),
        ("select count(*) from t where at > timestamp '2020-01-01 00:00:00'", "1"),
        ("select count(*) from t where at between '2020-01-01' and '2021-01-01'", "0"),
        ("select count(*) from t where day < at", "2"),
        ("select count(*) from t where at::date = day", "1"),
        ("select max(at::date) from t", "infinity"),
    ] {
        assert_eq!(rows(&context, sql).await, [expected], "{sql}");
    }
}
