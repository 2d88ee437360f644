//! A source that a test publishes by hand, a sink for it, and the table as its files say.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, StringArray, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use iceberg::{NamespaceIdent, TableIdent};
use lakeward_event::batch::MetaRow;
use lakeward_event::codec::json::JsonEncoder;
use lakeward_event::codec::{Encoder, RecordBlock};
use lakeward_event::schema::TableKind;
use lakeward_event::{
    ChangeBatch, ChangeMeta, CheckpointDraft, Column, LogicalType, Op, Position, TableId, TableSchema, names,
};
use lakeward_lake::system::{CheckpointTable, DeadLetterTable};
use lakeward_lake::{Lake, Table, position_deletes};
use lakeward_log::kafka::KafkaLog;
use lakeward_log::{Log, TopicBlock, Writer};
use lakeward_runtime::Result;
use lakeward_runtime::config::*;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing takes longer, unless something hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One change of the table `id, v, big`.
#[derive(Debug, Clone, Default)]
pub struct Change {
    op: Option<Op>,
    before: Option<i64>,
    after: Option<(i64, String, Option<String>)>,
    left_out: bool,
}

fn with(op: Op, id: i64, v: &str, big: Option<&str>) -> Change {
    Change {
        op: Some(op),
        before: None,
        after: Some((id, v.to_owned(), big.map(str::to_owned))),
        left_out: big.is_none(),
    }
}
pub fn insert(id: i64, v: &str, big: &str) -> Change {
    with(Op::Create, id, v, Some(big))
}
pub fn read(id: i64, v: &str, big: &str) -> Change {
    with(Op::Read, id, v, Some(big))
}
/// `big`: None, the source left it out.
pub fn update(id: i64, v: &str, big: Option<&str>) -> Change {
    with(Op::Update, id, v, big)
}
pub fn delete(id: i64) -> Change {
    Change { op: Some(Op::Delete), before: Some(id), ..Change::default() }
}
pub fn truncate() -> Change {
    Change { op: Some(Op::Truncate), ..Change::default() }
}
/// A key change: a delete, and a create that carries the old key.
pub fn change(from: i64, to: i64, v: &str, big: Option<&str>) -> Vec<Change> {
    vec![delete(from), Change { before: Some(from), ..with(Op::Create, to, v, big) }]
}

pub struct Bench {
    folder: tempfile::TempDir,
    pub source: String,
    pub lake: Lake,
    log: Arc<dyn Log>,
    writer: Box<dyn Writer>,
    encoder: JsonEncoder,
    schema: Arc<TableSchema>,
    sent: u32,
    sequence: u64,
    watermark: i64,
    last: i64,
}

pub struct RunningSink {
    shutdown: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl RunningSink {
    /// How it ended by itself.
    pub async fn ended(&mut self) -> Result<()> {
        (&mut self.task).await.unwrap()
    }
    /// Ends it.
    pub async fn stop(self) {
        self.shutdown.cancel();
        while !self.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
impl Drop for RunningSink {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn kafka() -> KafkaConfig {
    KafkaConfig {
        brokers: std::env::var("LAKEWARD_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:22092".into()),
        codec: Codec::Json,
        partitions: 3,
        replication: 1,
        retention: Duration::from_secs(3600),
        client: BTreeMap::new(),
    }
}

/// Ticks of the tests' grid, microseconds.
const TICK: i64 = 100_000;

impl Bench {
    pub async fn new(test: &str) -> Self {
        // Shown when a test fails.
        let _ = tracing_subscriber::fmt().with_env_filter("info").with_test_writer().try_init();
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let source = format!("sink_{test}_{:x}_{now:x}", std::process::id());
        let log = KafkaLog::open(&kafka(), "suite").unwrap();
        let (writer, _) = log.writer(&source).await.unwrap();
        let column = |id, name: &str, ty: LogicalType| Column {
            id,
            name: name.into(),
            ty,
            source_type: "test".into(),
            nullable: id != 1,
        };
        let schema = Arc::new(TableSchema {
            table: TableId::new(&source, "public", "things"),
            kind: TableKind::Relational,
            version: 1,
            columns: vec![
                column(1, "id", LogicalType::Int),
                column(2, "v", LogicalType::String),
                column(3, "big", LogicalType::String),
            ],
            key: vec![0],
        });
        let (catalog, warehouse) = places(folder.path());
        let lake = Lake::open(&catalog, &warehouse).await.unwrap();
        let watermark = 1_700_000_000_000_000;
        Self {
            folder,
            source,
            lake,
            log,
            writer,
            encoder: JsonEncoder::with_database("test"),
            schema,
            sent: 0,
            sequence: 1,
            watermark,
            last: 0,
        }
    }

    /// Version 2 of the table: the key is a bigint.
    pub fn widen(&mut self) {
        let mut schema = self.schema.as_ref().clone();
        schema.version += 1;
        schema.columns[0].ty = LogicalType::Long;
        self.schema = Arc::new(schema);
    }

    /// Appends changes and a checkpoint that is a cut.
    pub async fn publish(&mut self, changes: &[Change]) {
        self.append(changes, |_| {}).await;
    }

    /// The same, with a record between that no codec wrote.
    pub async fn publish_with_garbage(&mut self, changes: &[Change]) {
        self.append(changes, |block| block.push(1, Some(b"{}"), Some(b"not json"), Some(b"1,9"))).await;
    }

    /// Appends changes, and behind them in the same append later ones whose keys have all moved to the first partition.
    pub async fn publish_moved(&mut self, changes: &[Change], later: &[Change]) {
        let batch = self.batch(changes);
        self.sequence += changes.len() as u64;
        let mut moved = RecordBlock::default();
        JsonEncoder::with_database("test").encode(&self.batch(later), 1, &mut moved).unwrap();
        // `append_batch` counts those of `batch`.
        self.sequence += later.len() as u64 - changes.len() as u64;
        self.append_batch(&batch, |block| {
            for record in moved.iter() {
                block.push(record.partition, record.key, record.value, record.header);
            }
        })
        .await;
    }

    async fn append(&mut self, changes: &[Change], more: impl FnOnce(&mut RecordBlock)) {
        let batch = self.batch(changes);
        self.append_batch(&batch, more).await;
    }

    /// Makes the table one of documents.
    pub fn documents(&mut self) {
        self.schema = Arc::new(TableSchema::documents(self.schema.table.clone()));
    }

    /// Appends changes of documents: op, `_id`, whole document, patch.
    pub async fn publish_documents(&mut self, changes: &[(Op, &str, Option<&str>, Option<&str>)]) {
        let mut meta = ChangeMeta::default();
        for (i, (op, _, _, patch)) in changes.iter().enumerate() {
            meta.push(MetaRow {
                op: *op,
                sequence: self.sequence + i as u64,
                position: self.sequence,
                tx: None,
                commit_ts: Some(self.watermark),
                unchanged: None,
                patch: *patch,
            });
        }
        let deleted = |op: Op| op == Op::Delete;
        let side = |of_deletes: bool| {
            let here = |op: Op| deleted(op) == of_deletes;
            let ids = changes.iter().map(|(op, id, ..)| here(*op).then_some(*id));
            let docs = changes.iter().map(|(op, _, doc, _)| if here(*op) { *doc } else { None });
            let valid: Vec<bool> = changes.iter().map(|(op, ..)| here(*op)).collect();
            let columns: Vec<ArrayRef> =
                vec![Arc::new(StringArray::from_iter(ids)), Arc::new(StringArray::from_iter(docs))];
            StructArray::try_new(self.schema.arrow_fields(), columns, Some(NullBuffer::from(valid))).unwrap()
        };
        let batch = ChangeBatch::try_new(self.schema.clone(), meta.finish().unwrap(), side(false), side(true)).unwrap();
        self.append_batch(&batch, |_| {}).await;
    }

    async fn append_batch(&mut self, batch: &ChangeBatch, more: impl FnOnce(&mut RecordBlock)) {
        let topic = names::topic(&self.schema.table);
        let partitions = self.writer.ensure_topic(&topic).await.unwrap();
        let mut block = RecordBlock::default();
        self.encoder.encode(batch, partitions, &mut block).unwrap();
        more(&mut block);
        self.sequence += batch.num_rows() as u64;
        self.watermark += TICK;
        let schemas: Vec<_> = (self.sent < self.schema.version).then(|| self.schema.clone()).into_iter().collect();
        self.sent = self.schema.version;
        let draft = CheckpointDraft {
            position: Position::Postgres { lsn: self.sequence, partial: None, system_id: "1".into(), timeline: 1 },
            next_sequence: self.sequence,
            snapshot: serde_json::Value::Null,
            converging: Vec::new(),
            watermark_from: self.watermark,
            watermark: self.watermark,
            cut: true,
        };
        let checkpoint = self.writer.append(&schemas, vec![TopicBlock { topic, block }], draft).await.unwrap();
        self.last = checkpoint.id;
    }

    fn batch(&self, changes: &[Change]) -> ChangeBatch {
        let mut meta = ChangeMeta::default();
        for (i, change) in changes.iter().enumerate() {
            meta.push(MetaRow {
                op: change.op.unwrap(),
                sequence: self.sequence + i as u64,
                position: self.sequence,
                tx: Some(1),
                commit_ts: Some(self.watermark),
                unchanged: change.left_out.then_some(&[0b100][..]),
                patch: None,
            });
        }
        let ids = |ids: Vec<Option<i64>>| -> ArrayRef {
            match self.schema.columns[0].ty {
                LogicalType::Int => Arc::new(Int32Array::from_iter(ids.into_iter().map(|i| i.map(|i| i as i32)))),
                _ => Arc::new(Int64Array::from(ids)),
            }
        };
        let after: Vec<_> = changes.iter().map(|c| c.after.clone()).collect();
        let rows = |columns: Vec<ArrayRef>, valid: Vec<bool>| {
            StructArray::try_new(self.schema.arrow_fields(), columns, Some(NullBuffer::from(valid))).unwrap()
        };
        let after = rows(
            vec![
                ids(after.iter().map(|a| a.as_ref().map(|a| a.0)).collect()),
                Arc::new(StringArray::from_iter(after.iter().map(|a| a.as_ref().map(|a| a.1.clone())))),
                Arc::new(StringArray::from_iter(after.iter().map(|a| a.as_ref().and_then(|a| a.2.clone())))),
            ],
            after.iter().map(Option::is_some).collect(),
        );
        let none = || -> ArrayRef { Arc::new(StringArray::new_null(changes.len())) };
        let before = rows(
            vec![ids(changes.iter().map(|c| c.before).collect()), none(), none()],
            changes.iter().map(|c| c.before.is_some()).collect(),
        );
        ChangeBatch::try_new(self.schema.clone(), meta.finish().unwrap(), after, before).unwrap()
    }

    fn config(&self, state: &str) -> Config {
        let (catalog, warehouse) = places(self.folder.path());
        Config {
            name: "suite".into(),
            state_dir: self.folder.path().join(state),
            checkpoint_interval: Duration::from_micros(TICK as u64),
            sources: vec![SourceConfig {
                name: self.source.clone(),
                kind: SourceKind::Postgres,
                url: Secret::new("postgresql://nowhere"),
                include: Vec::new(),
                exclude: Vec::new(),
                topics: Vec::new(),
                default_schema: "public".into(),
                wal_budget: 1,
                on_budget: OnBudget::Stop,
                slot: String::new(),
                publication: String::new(),
                unavailable_value_placeholder: String::new(),
            }],
            tables: BTreeMap::new(),
            log: LogConfig::Kafka(kafka()),
            registry: None,
            catalog,
            warehouse,
            sink: SinkConfig {
                commit_interval: Duration::from_micros(TICK as u64),
                memory: 256 << 20,
                on_bad_record: OnBadRecord::DeadLetter,
            },
            query: QueryConfig { postgres: None, flight: None, http: None, users: Vec::new() },
            telemetry: TelemetryConfig { listen: None },
        }
    }

    /// Runs a sink until it has everything published, and ends it.
    pub async fn sink(&mut self) {
        let targets = BTreeMap::from([(self.source.clone(), self.last)]);
        let (_keep, until) = watch::channel(targets);
        let options = lakeward_sink::Options { tables: None, until: Some(until) };
        let config = self.config("state");
        let run = lakeward_sink::run(&config, self.lake.clone(), self.log.clone(), options, CancellationToken::new());
        tokio::time::timeout(PATIENCE, run).await.expect("the sink catches up").unwrap();
    }

    /// Starts a sink with a state directory of this name.
    pub fn start_sink(&self, state: &str) -> RunningSink {
        let (config, lake, log) = (self.config(state), self.lake.clone(), self.log.clone());
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let task = tokio::spawn(async move { lakeward_sink::run(&config, lake, log, Default::default(), token).await });
        RunningSink { shutdown, task }
    }

    pub fn forget_index(&self) {
        std::fs::remove_dir_all(self.folder.path().join("state/index")).unwrap();
    }

    fn ident(&self) -> TableIdent {
        TableIdent::new(NamespaceIdent::new(self.source.clone()), "things".into())
    }

    /// The table at the newest checkpoint row, which must be its newest snapshot.
    async fn table(&self) -> Table {
        let table = self.lake.load(&self.ident()).await.unwrap().unwrap();
        let rows = CheckpointTable::open(&self.lake).await.unwrap().rows(&self.source, None).await.unwrap();
        assert_eq!(rows[0].checkpoint, self.last, "the last checkpoint has its row");
        let named = rows.iter().find_map(|row| row.tables.get(&format!("{}.things", self.source)));
        assert_eq!(named, Some(&table.snapshot().unwrap().snapshot_id()));
        table
    }

    /// The live rows, by key; a key that is there twice is a failure.
    pub async fn rows(&self) -> BTreeMap<i64, (Option<String>, Option<String>)> {
        let texts = self.texts("id", &["v", "big"]).await;
        texts.into_iter().map(|(id, mut v)| (id.parse().unwrap(), (v.remove(0), v.remove(0)))).collect()
    }

    /// The live rows as text, by key; a key that is there twice is a failure. A column that a file does not have is NULL.
    pub async fn texts(&self, key: &str, columns: &[&str]) -> BTreeMap<String, Vec<Option<String>>> {
        let table = self.table().await;
        let files = table.files(table.snapshot().unwrap().snapshot_id()).await.unwrap();
        let deleted = position_deletes(&self.lake, &table, &files).await.unwrap();
        let mut rows = BTreeMap::new();
        for live in &files.data {
            let path = live.file.file_path();
            let bytes = self.lake.storage().get(path).await.unwrap();
            let mut position = 0;
            for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
                let batch = batch.unwrap();
                let text = |name: &str, row: usize| {
                    let column = arrow::compute::cast(batch.column_by_name(name)?, &DataType::Utf8).unwrap();
                    let column = column.as_string::<i32>();
                    column.is_valid(row).then(|| column.value(row).to_owned())
                };
                for row in 0..batch.num_rows() {
                    if !deleted.get(path).is_some_and(|gone| gone.contains(position)) {
                        let key = text(key, row).unwrap();
                        let old = rows.insert(key.clone(), columns.iter().map(|c| text(c, row)).collect());
                        assert_eq!(old, None, "key {key} is there twice");
                    }
                    position += 1;
                }
            }
        }
        rows
    }

    pub async fn delete_files(&self) -> usize {
        let table = self.table().await;
        table.files(table.snapshot().unwrap().snapshot_id()).await.unwrap().deletes.len()
    }

    pub async fn dead_letters(&self) -> usize {
        let letters = DeadLetterTable::open(&self.lake).await.unwrap().all().await.unwrap();
        letters.iter().filter(|l| l.source == self.source).count()
    }
}

/// A catalog in SQLite and a warehouse in a folder.
fn places(folder: &std::path::Path) -> (CatalogConfig, WarehouseConfig) {
    let file = |name: &str| -> PathBuf { folder.join(name) };
    std::fs::create_dir_all(file("warehouse")).unwrap();
    let catalog = CatalogConfig {
        kind: CatalogKind::Sql,
        name: "lake".into(),
        url: Secret::new(format!("sqlite:{}?mode=rwc", file("catalog.db").display())),
    };
    let warehouse = WarehouseConfig {
        url: format!("file://{}", file("warehouse").display()),
        endpoint: None,
        region: None,
        access_key_id: None,
        secret_access_key: None,
    };
    (catalog, warehouse)
}
