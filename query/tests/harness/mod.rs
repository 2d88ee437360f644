//! A lake of one test: tables written as the sink writes them, checkpoint rows, an engine on top.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Date32Array, Float64Array, Int32Array, Int64Array, ListBuilder, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::record_batch::RecordBatch;
use futures::StreamExt;
use iceberg::TableIdent;
use iceberg::spec::Operation;
use lakeward_event::LogicalType;
use lakeward_lake::system::{Appended, CheckpointRow, CheckpointTable, DeadLetterTable};
use lakeward_lake::{
    ColumnMap, Commit, DataFileWriter, Lake, SnapshotChange, SourceColumn, Table, TableChange, WriteOptions,
    arrow_schema, evolve, write_position_deletes,
};
use lakeward_query::pg::{Style, printer};
pub use lakeward_query::{Engine, Session};
use lakeward_runtime::config::Config;

/// Microseconds of a second; moments of these tests are seconds since 1970.
pub const S: i64 = 1_000_000;

pub struct TestLake {
    _dir: tempfile::TempDir,
    config: Config,
    pub lake: Lake,
    checkpoints: CheckpointTable,
}

impl TestLake {
    pub async fn local() -> Self {
        Self::open("").await
    }

    /// On the stack's MinIO, under a prefix of its own.
    pub async fn s3() -> Self {
        let endpoint = std::env::var("LAKEWARD_TEST_S3").unwrap_or_else(|_| "http://127.0.0.1:22090".into());
        let prefix = uuid::Uuid::new_v4();
        Self::open(&format!(
            "[warehouse]\nurl = 's3://lake/query-{prefix}'\nendpoint = '{endpoint}'\nregion = 'us-east-1'\n\
             access_key_id = 'lakeward'\nsecret_access_key = 'lakeward-secret'\n"
        ))
        .await
    }

    async fn open(warehouse: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "state_dir = '{}'\n[[source]]\nname = 'users'\nkind = 'postgres'\nurl = 'postgresql://u:p@127.0.0.1/users'\n\
             [log]\nkind = 'kafka'\nbrokers = '127.0.0.1:1'\n{warehouse}",
            dir.path().display()
        );
        let config = Config::parse(&text, []).unwrap();
        let lake = Lake::open(&config.catalog, &config.warehouse).await.unwrap();
        let checkpoints = CheckpointTable::open(&lake).await.unwrap();
        DeadLetterTable::open(&lake).await.unwrap();
        Self { _dir: dir, config, lake, checkpoints }
    }

    pub async fn engine(&self) -> Engine {
        Engine::open(&self.config, self.lake.clone()).await.unwrap()
    }

    /// A row of `lakeward.checkpoints`, true from the first second to the second.
    #[allow(clippy::too_many_arguments)]
    pub async fn checkpoint(
        &self,
        source: &str,
        id: i64,
        from: i64,
        to: i64,
        tables: &[(String, i64)],
        complete: bool,
        converging: &[&str],
    ) {
        let row = CheckpointRow {
            source: source.into(),
            checkpoint: id,
            position: "0/0".into(),
            watermark_from: from * S,
            watermark: to * S,
            committed_at: to * S,
            converging: converging.iter().map(|t| (*t).to_string()).collect(),
            complete,
            tables: tables.iter().cloned().collect::<BTreeMap<_, _>>(),
        };
        assert_eq!(self.checkpoints.append(vec![row]).await.unwrap(), Appended::Done);
    }
}

fn column(identity: &str, name: &str, ty: LogicalType, key: Option<usize>) -> SourceColumn {
    SourceColumn { identity: identity.into(), name: name.into(), ty, key }
}

async fn commit(lake: &Lake, table: &Table, change: TableChange) -> Table {
    match lake.commit(table, change).await.unwrap() {
        Commit::Done(table) => table,
        Commit::Conflict(_) => panic!("nobody else writes"),
    }
}

async fn write(lake: &Lake, table: &Table, columns: Vec<ArrayRef>) -> Vec<iceberg::spec::DataFile> {
    let schema = arrow_schema(table.metadata().current_schema()).unwrap();
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let mut writer = DataFileWriter::new(lake, table, WriteOptions::default()).await.unwrap();
    writer.write(&batch).await.unwrap();
    writer.finish().await.unwrap()
}

fn change(
    operation: Operation,
    added_data: Vec<iceberg::spec::DataFile>,
    added_deletes: Vec<iceberg::spec::DataFile>,
) -> TableChange {
    TableChange {
        snapshot: Some(SnapshotChange {
            operation,
            added_data,
            added_deletes,
            removed: Vec::new(),
            summary: HashMap::new(),
        }),
        ..TableChange::default()
    }
}

/// A table of `id` (key) and `name`, which remembers where its rows are, as a key index would.
pub struct Orders {
    lake: Lake,
    name: String,
    table: Table,
    rows: HashMap<i64, (String, u64)>,
}

impl Orders {
    pub async fn create(lake: &TestLake, namespace: &str, name: &str) -> Self {
        let columns = [column("1", "id", LogicalType::Long, Some(0)), column("2", "name", LogicalType::String, None)];
        let schema = evolve(None, &columns).unwrap().schema.unwrap();
        let id = TableIdent::from_strs([namespace, name]).unwrap();
        let table = lake.lake.create(&id, schema, None, HashMap::new()).await.unwrap();
        Self { lake: lake.lake.clone(), name: format!("{namespace}.{name}"), table, rows: HashMap::new() }
    }

    /// The table's name and newest snapshot, as a checkpoint row names them.
    pub fn at(&self) -> (String, i64) {
        (self.name.clone(), self.table.snapshot().unwrap().snapshot_id())
    }

    async fn data(&mut self, rows: &[(i64, &str)]) -> Vec<iceberg::spec::DataFile> {
        if rows.is_empty() {
            return Vec::new();
        }
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0)));
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.1)));
        let files = write(&self.lake, &self.table, vec![ids, names]).await;
        assert_eq!(files.len(), 1);
        for (position, row) in rows.iter().enumerate() {
            self.rows.insert(row.0, (files[0].file_path().to_string(), position as u64));
        }
        files
    }

    pub async fn append(&mut self, rows: &[(i64, &str)]) {
        let files = self.data(rows).await;
        self.table = commit(&self.lake, &self.table, change(Operation::Append, files, Vec::new())).await;
    }

    /// One commit: the old rows of `gone` deleted, `rows` written.
    pub async fn change(&mut self, rows: &[(i64, &str)], gone: &[i64]) {
        let mut deletes: BTreeMap<String, roaring::RoaringTreemap> = BTreeMap::new();
        for id in gone {
            let (path, position) = self.rows.remove(id).unwrap();
            deletes.entry(path).or_default().insert(position);
        }
        let data = self.data(rows).await;
        let live = self.table.files(self.at().1).await.unwrap();
        let deletes: Vec<_> = deletes.into_iter().collect();
        let deletes = write_position_deletes(&self.lake, &self.table, &live, &deletes).await.unwrap();
        self.table = commit(&self.lake, &self.table, change(Operation::Overwrite, data, deletes)).await;
    }
}

/// `users.moments`: `id`, `at` with a zone, `ts` without, `day`; row 1 is the beginning of 1970's second day, 2 and 3 are infinite, 4 is
/// NULL.
pub async fn moments(lake: &TestLake) -> (String, i64) {
    let columns = [
        column("1", "id", LogicalType::Long, Some(0)),
        column("2", "at", LogicalType::TimestampTz, None),
        column("3", "ts", LogicalType::Timestamp, None),
        column("4", "day", LogicalType::Date, None),
    ];
    let id = TableIdent::from_strs(["users", "moments"]).unwrap();
    let table =
        lake.lake.create(&id, evolve(None, &columns).unwrap().schema.unwrap(), None, HashMap::new()).await.unwrap();
    let micros = vec![Some(86_400 * S), Some(i64::MAX), Some(-i64::MAX), None];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
        Arc::new(TimestampMicrosecondArray::from(micros.clone()).with_timezone("UTC")),
        Arc::new(TimestampMicrosecondArray::from(micros)),
        Arc::new(Date32Array::from(vec![Some(1), Some(i32::MAX), Some(-i32::MAX), None])),
    ];
    let files = write(&lake.lake, &table, columns).await;
    let table = commit(&lake.lake, &table, change(Operation::Append, files, Vec::new())).await;
    ("users.moments".into(), table.snapshot().unwrap().snapshot_id())
}

/// A table whose columns change.
pub struct Wide {
    lake: Lake,
    table: Table,
    map: ColumnMap,
}

impl Wide {
    pub async fn create(lake: &TestLake) -> Self {
        let evolution = evolve(
            None,
            &[
                column("1", "id", LogicalType::Int, Some(0)),
                column("2", "name", LogicalType::String, None),
                column("3", "price", LogicalType::Double, None),
                column("4", "gone", LogicalType::String, None),
            ],
        )
        .unwrap();
        let id = TableIdent::from_strs(["users", "wide"]).unwrap();
        let table = lake.lake.create(&id, evolution.schema.unwrap(), None, HashMap::new()).await.unwrap();
        Self { lake: lake.lake.clone(), table, map: evolution.columns }
    }

    pub fn at(&self) -> (String, i64) {
        ("users.wide".into(), self.table.snapshot().unwrap().snapshot_id())
    }

    pub async fn append_old(&mut self) {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(vec![1, 2])),
            Arc::new(StringArray::from(vec!["one", "two"])),
            Arc::new(Float64Array::from(vec![1.5, f64::NAN])),
            Arc::new(StringArray::from(vec![Some("old"), None])),
        ];
        let files = write(&self.lake, &self.table, columns).await;
        self.table = commit(&self.lake, &self.table, change(Operation::Append, files, Vec::new())).await;
    }

    pub async fn evolve_and_append(&mut self) {
        let evolution = evolve(
            Some((self.table.metadata().current_schema(), &self.map)),
            &[
                column("1", "id", LogicalType::Long, Some(0)),
                column("2", "label", LogicalType::String, None),
                column("3", "price", LogicalType::Double, None),
                column("5", "extra", LogicalType::List(Box::new(LogicalType::String)), None),
            ],
        )
        .unwrap();
        let change_schema = TableChange { schema: evolution.schema, ..TableChange::default() };
        self.table = commit(&self.lake, &self.table, change_schema).await;
        let schema = arrow_schema(self.table.metadata().current_schema()).unwrap();
        let columns = schema
            .fields()
            .iter()
            .map(|field| -> ArrayRef {
                match field.name().as_str() {
                    "id" => Arc::new(Int64Array::from(vec![5_000_000_000])),
                    "label" => Arc::new(StringArray::from(vec!["big"])),
                    "price" => Arc::new(Float64Array::from(vec![2.5])),
                    "extra" => {
                        let arrow::datatypes::DataType::List(element) = field.data_type() else {
                            panic!("extra is a list")
                        };
                        let mut list = ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(element));
                        list.append_value([Some("a"), None, Some("b c")]);
                        Arc::new(list.finish())
                    }
                    _ => Arc::new(StringArray::from(vec![None::<&str>])),
                }
            })
            .collect();
        let files = write(&self.lake, &self.table, columns).await;
        self.table = commit(&self.lake, &self.table, change(Operation::Append, files, Vec::new())).await;
    }
}

/// The rows of an answer, columns joined by a space.
pub async fn rows(engine: &Engine, session: &mut Session, sql: &str) -> Vec<String> {
    let mut answer = engine.sql(session, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut out = Vec::new();
    while let Some(batch) = answer.batches.next().await {
        let batch = batch.unwrap();
        let print: Vec<_> = batch.columns().iter().map(|c| printer(c, Style::Text).unwrap()).collect();
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

/// A statement without rows.
pub async fn run(engine: &Engine, session: &mut Session, sql: &str) {
    let answer = engine.sql(session, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    assert!(!answer.is_query);
}

/// The error of a statement that is refused.
pub async fn refusal(engine: &Engine, session: &mut Session, sql: &str) -> String {
    match engine.sql(session, sql).await {
        Ok(_) => panic!("{sql} was not refused"),
        Err(error) => {
            assert_eq!(error.action(), lakeward_runtime::Action::Refused, "{sql}: {error}");
            error.to_string()
        }
    }
}
