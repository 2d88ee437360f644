//! A fresh lake per test and what tests do with its tables.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use iceberg::spec::{DataFile, Operation};
use iceberg::{NamespaceIdent, TableIdent};
use lakeward_event::LogicalType;
use lakeward_lake::{
    COLUMNS_PROPERTY, ColumnMap, Commit, DataFileWriter, Lake, SourceColumn, Table, TableChange, WriteOptions,
    commit::SnapshotChange, evolve, position_deletes, write_position_deletes,
};
use lakeward_runtime::config::{CatalogConfig, CatalogKind, Secret, WarehouseConfig};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;
use sqlx::Connection;
use tempfile::TempDir;

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// `postgresql://…/<database>` on the test server.
pub fn postgres_url(database: &str) -> String {
    let base = variable("LAKEWARD_TEST_POSTGRES", "postgresql://postgres:lakeward@127.0.0.1:22415/postgres");
    let (server, _) = base.rsplit_once('/').unwrap();
    format!("{server}/{database}")
}

pub fn s3_endpoint() -> String {
    variable("LAKEWARD_TEST_S3", "http://127.0.0.1:22090")
}

/// A fresh lake, gone with the test.
pub struct Fresh {
    pub lake: Lake,
    pub catalog: CatalogConfig,
    pub warehouse: WarehouseConfig,
    _folder: Option<TempDir>,
}

pub fn catalog(url: String) -> CatalogConfig {
    CatalogConfig { kind: CatalogKind::Sql, name: "lake".into(), url: Secret::new(url) }
}

impl Fresh {
    /// SQLite and a local directory, neither of which exists yet.
    pub async fn local() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("state").display().to_string();
        let catalog = catalog(format!("sqlite:{root}/catalog/catalog.db"));
        let warehouse = WarehouseConfig {
            url: format!("file://{root}/warehouse"),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
        };
        let lake = Lake::open(&catalog, &warehouse).await.unwrap();
        Self { lake, catalog, warehouse, _folder: Some(folder) }
    }

    /// A database of its own on PostgreSQL and a prefix of its own on S3.
    pub async fn servers() -> Self {
        let name = format!("lake_{}", uuid::Uuid::new_v4().simple());
        let mut admin = sqlx::PgConnection::connect(&postgres_url("postgres")).await.unwrap();
        sqlx::query(&format!("CREATE DATABASE {name}")).execute(&mut admin).await.unwrap();
        let catalog = catalog(postgres_url(&name));
        let warehouse = WarehouseConfig {
            url: format!("s3://lake/{name}"),
            endpoint: Some(s3_endpoint()),
            region: Some("us-east-1".into()),
            access_key_id: Some(Secret::new("lakeward")),
            secret_access_key: Some(Secret::new("lakeward-secret")),
        };
        let lake = Lake::open(&catalog, &warehouse).await.unwrap();
        Self { lake, catalog, warehouse, _folder: None }
    }

    /// Another process's view of the same lake.
    pub async fn reopen(&self) -> Lake {
        Lake::open(&self.catalog, &self.warehouse).await.unwrap()
    }
}

/// Runs a scenario on both backends, as two tests.
#[macro_export]
macro_rules! on_both {
    ($name:ident, $scenario:ident) => {
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn local() {
                super::$scenario($crate::harness::Fresh::local().await).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn servers() {
                super::$scenario($crate::harness::Fresh::servers().await).await;
            }
        }
    };
}

pub fn ident(namespace: &str, name: &str) -> TableIdent {
    TableIdent::new(NamespaceIdent::new(namespace.into()), name.into())
}

pub fn column(identity: &str, name: &str, ty: LogicalType, key: Option<usize>) -> SourceColumn {
    SourceColumn { identity: identity.into(), name: name.into(), ty, key }
}

/// `id` bigint (key), `name` text.
pub fn people() -> Vec<SourceColumn> {
    vec![column("1", "id", LogicalType::Long, Some(0)), column("2", "name", LogicalType::String, None)]
}

pub async fn create(lake: &Lake, id: &TableIdent, columns: &[SourceColumn]) -> Table {
    let first = evolve(None, columns).unwrap();
    let properties = HashMap::from([(COLUMNS_PROPERTY.to_owned(), first.columns.to_property())]);
    lake.create(id, first.schema.unwrap(), None, properties).await.unwrap()
}

/// Changes the table's columns.
pub async fn evolve_to(lake: &Lake, table: &Table, columns: &[SourceColumn]) -> Table {
    let map = ColumnMap::parse(&table.properties()[COLUMNS_PROPERTY]).unwrap();
    let next = evolve(Some((table.metadata().current_schema(), &map)), columns).unwrap();
    let properties = HashMap::from([(COLUMNS_PROPERTY.to_owned(), next.columns.to_property())]);
    done(lake.commit(table, TableChange { schema: next.schema, snapshot: None, properties }).await.unwrap())
}

pub fn done(commit: Commit) -> Table {
    match commit {
        Commit::Done(table) => table,
        Commit::Conflict(newest) => panic!("conflict with {newest:?}"),
    }
}

/// Files of rows `(id, name)` of [`people`].
pub async fn write_people(lake: &Lake, table: &Table, rows: &[(i64, &str)]) -> Vec<DataFile> {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0)));
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.1)));
    write(lake, table, vec![ids, names], WriteOptions::default()).await
}

pub async fn write(lake: &Lake, table: &Table, columns: Vec<ArrayRef>, options: WriteOptions) -> Vec<DataFile> {
    let mut writer = DataFileWriter::new(lake, table, options).await.unwrap();
    let batch = RecordBatch::try_new(writer.arrow_schema().clone(), columns).unwrap();
    assert_eq!(writer.position(), 0);
    writer.write(&batch).await.unwrap();
    writer.finish().await.unwrap()
}

pub fn append_of(files: Vec<DataFile>) -> TableChange {
    let snapshot = SnapshotChange { added_data: files, ..SnapshotChange::new(Operation::Append) };
    TableChange { snapshot: Some(snapshot), ..TableChange::default() }
}

pub async fn append(lake: &Lake, table: &Table, rows: &[(i64, &str)]) -> Table {
    let files = write_people(lake, table, rows).await;
    done(lake.commit(table, append_of(files)).await.unwrap())
}

/// Deletes the rows with these ids and adds others, in one snapshot.
pub async fn row_delta(lake: &Lake, table: &Table, gone: &[i64], rows: &[(i64, &str)]) -> Table {
    let snapshot = table.snapshot().unwrap().snapshot_id();
    let files = table.files(snapshot).await.unwrap();
    let deleted = position_deletes(lake, table, &files).await.unwrap();
    let mut deletes = Vec::new();
    for live in &files.data {
        let path = live.file.file_path();
        let ids = read_column(lake, path, "id").await;
        let gone: RoaringTreemap = (0..ids.len() as u64)
            .filter(|row| !deleted.get(path).is_some_and(|d| d.contains(*row)))
            .filter(|row| gone.contains(&ids[*row as usize]))
            .collect();
        if !gone.is_empty() {
            deletes.push((path.to_owned(), gone));
        }
    }
    let added_deletes = write_position_deletes(lake, table, &files, &deletes).await.unwrap();
    let added_data = if rows.is_empty() { vec![] } else { write_people(lake, table, rows).await };
    let change = SnapshotChange { added_data, added_deletes, ..SnapshotChange::new(Operation::Overwrite) };
    done(lake.commit(table, TableChange { snapshot: Some(change), ..TableChange::default() }).await.unwrap())
}

pub async fn read_file(lake: &Lake, path: &str) -> Vec<RecordBatch> {
    let bytes = lake.storage().get(path).await.unwrap();
    ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap().map(Result::unwrap).collect()
}

async fn read_column(lake: &Lake, path: &str, name: &str) -> Vec<i64> {
    let mut values = Vec::new();
    for batch in read_file(lake, path).await {
        values.extend(batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().values());
    }
    values
}

/// The table's rows at a snapshot: id to names, so that a doubled row shows.
pub async fn people_at(lake: &Lake, table: &Table, snapshot: i64) -> BTreeMap<i64, Vec<String>> {
    let files = table.files(snapshot).await.unwrap();
    let deleted = position_deletes(lake, table, &files).await.unwrap();
    let mut rows: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for live in &files.data {
        let path = live.file.file_path();
        let mut row = 0;
        for batch in read_file(lake, path).await {
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let names = batch.column(1).as_string::<i32>();
            for i in 0..batch.num_rows() {
                if !deleted.get(path).is_some_and(|d| d.contains(row)) {
                    let name = if names.is_null(i) { "NULL" } else { names.value(i) };
                    rows.entry(ids.value(i)).or_default().push(name.to_owned());
                }
                row += 1;
            }
        }
    }
    rows
}

pub async fn people_of(lake: &Lake, table: &Table) -> BTreeMap<i64, Vec<String>> {
    people_at(lake, table, table.snapshot().unwrap().snapshot_id()).await
}

pub fn rows(expected: &[(i64, &str)]) -> BTreeMap<i64, Vec<String>> {
    expected.iter().map(|(id, name)| (*id, vec![(*name).to_owned()])).collect()
}

/// A number of the newest snapshot's summary.
pub fn total(table: &Table, name: &str) -> i64 {
    let summary = &table.snapshot().unwrap().summary().additional_properties;
    summary.get(name).unwrap_or_else(|| panic!("no {name} in {summary:?}")).parse().unwrap()
}
