//! MongoDB into a real Kafka: what the log holds at a cut, rebuilt row by row, is what the server held at the cut's cluster time.

mod changes;
mod failures;
mod log_reader;
mod refusals;
mod scope;
mod server;
mod snapshots;
mod under_load;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};
use lakeward_connectors::ConnectorContext;
use lakeward_connectors::mongodb::capture::run_with;
use lakeward_event::{Checkpoint, Position};
use lakeward_log::Log;
use lakeward_log::kafka::KafkaLog;
use lakeward_runtime::Result;
use lakeward_runtime::config::{Codec, KafkaConfig, OnBudget, Secret, SourceConfig, SourceKind};
use log_reader::LogReader;
use mongodb::{Client, Collection, Database};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// No wait of these tests should come near it.
const PATIENCE: Duration = Duration::from_secs(180);

/// Documents by the text of their `_id`.
type Documents = BTreeMap<String, Document>;

/// A database and a source name that no test has had before.
struct Source {
    client: Client,
    name: String,
    url: String,
    log: Arc<dyn Log>,
    range_rows: i64,
    /// Globs besides those of its database: with one, the stream is the deployment's.
    more: Vec<String>,
}

/// A connector that runs.
struct Running {
    task: JoinHandle<Result<Option<Checkpoint>>>,
    shutdown: CancellationToken,
}

impl Running {
    async fn stop(self) -> Option<Checkpoint> {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the connector ends").unwrap().unwrap()
    }

    /// Ends it in the middle of whatever it does.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|e| e.is_cancelled()));
    }
}

fn server() -> String {
    std::env::var("LAKEWARD_TEST_MONGODB").unwrap_or_else(|_| "mongodb://127.0.0.1:22017/?replicaSet=rs0".into())
}

fn open_log() -> Arc<dyn Log> {
    let config = KafkaConfig {
        brokers: std::env::var("LAKEWARD_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:22092".into()),
        codec: Codec::Json,
        partitions: 2,
        replication: 1,
        retention: Duration::from_secs(3600),
        client: BTreeMap::new(),
    };
    KafkaLog::open(&config, "suite").unwrap()
}

impl Source {
    async fn create(test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("mg{}_{test}_{}", COUNT.fetch_add(1, Ordering::Relaxed), &unique[..8]);
        let url = server();
        let client = Client::with_uri_str(&url).await.unwrap();
        Self { client, name, url, log: open_log(), range_rows: 100, more: Vec::new() }
    }

    /// The same, out of the stream of the whole deployment.
    async fn of_deployment(test: &str) -> Self {
        Self { more: vec!["no_such_database.*".into()], ..Self::create(test).await }
    }

    fn database(&self) -> Database {
        self.client.database(&self.name)
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.database().collection(name)
    }

    fn config(&self) -> SourceConfig {
        SourceConfig {
            name: self.name.clone(),
            kind: SourceKind::Mongodb,
            url: Secret::new(self.url.clone()),
            include: [vec![format!("{}.*", self.name)], self.more.clone()].concat(),
            exclude: vec!["*.left_out".into()],
            default_schema: self.name.clone(),
            wal_budget: 0,
            on_budget: OnBudget::Stop,
            slot: String::new(),
            publication: String::new(),
            unavailable_value_placeholder: String::new(),
            topics: Vec::new(),
        }
    }

    fn context(&self, until_caught_up: bool) -> ConnectorContext {
        ConnectorContext {
            checkpoint_interval: Duration::from_secs(1),
            log: self.log.clone(),
            codec: Codec::Json,
            registry: lakeward_log::registry::open(None).unwrap(),
            status: Arc::default(),
            until_caught_up,
        }
    }

    fn start(&self) -> Running {
        let shutdown = CancellationToken::new();
        let (config, context, token, rows) = (self.config(), self.context(false), shutdown.clone(), self.range_rows);
        let task = tokio::spawn(async move {
            let outcome = run_with(&config, &context, &token, rows).await;
            if let Err(error) = &outcome {
                // Shown beside the wait that then fails.
                println!("connector ended: {error}");
            }
            outcome
        });
        Running { task, shutdown }
    }

    /// Runs the connector until it has caught up; returns its last checkpoint.
    async fn catch_up(&self) -> Checkpoint {
        let last = self.outcome(&self.config(), true).await.unwrap().unwrap();
        assert!(last.draft.cut && last.draft.converging.is_empty());
        last
    }

    /// What comes of a run that ends by itself.
    async fn outcome(&self, config: &SourceConfig, until_caught_up: bool) -> Result<Option<Checkpoint>> {
        let (context, token) = (self.context(until_caught_up), CancellationToken::new());
        let run = run_with(config, &context, &token, self.range_rows);
        tokio::time::timeout(PATIENCE, run).await.expect("the connector ends")
    }

    async fn reader(&self) -> LogReader {
        LogReader::open(&self.log, &self.name).await
    }

    /// The newest cluster time.
    async fn now(&self) -> u64 {
        let reply = self.client.database("admin").run_command(doc! { "ping": 1 }).await.unwrap();
        let time = reply.get_timestamp("operationTime").unwrap();
        (u64::from(time.time) << 32) | u64::from(time.increment)
    }

    /// Moves the server's time on: a stream that begins now does not begin with the last write.
    async fn pass(&self) {
        let note = doc! { "appendOplogNote": 1, "data": { "test": "passes" } };
        self.client.database("admin").run_command(note).await.unwrap();
    }

    /// A collection as it was at a cluster time.
    async fn documents_at(&self, collection: &str, time: u64) -> Documents {
        let at = Timestamp { time: (time >> 32) as u32, increment: time as u32 };
        let command = doc! { "find": collection, "readConcern": { "level": "snapshot", "atClusterTime": at } };
        let mut cursor = self.database().run_cursor_command(command).await.unwrap().with_type::<RawDocumentBuf>();
        let mut documents = Documents::new();
        while cursor.advance().await.unwrap() {
            let document = Document::try_from(cursor.current()).unwrap();
            documents.insert(id_text(document.get("_id").unwrap()), document);
        }
        documents
    }

    /// The log at this checkpoint holds of every collection that is not converging exactly what the server held at its position;
    /// returns how many rows were compared.
    async fn compare(&self, reader: &LogReader, checkpoint: &Checkpoint) -> usize {
        let time = position(checkpoint).0;
        let mut rows = 0;
        for name in self.database().list_collection_names().await.unwrap() {
            let full = format!("{}.{name}", self.name);
            if name == "left_out" || name.starts_with("system.") || checkpoint.draft.converging.contains(&full) {
                continue;
            }
            let expected = self.documents_at(&name, time).await;
            rows += expected.len();
            same(&name, &reader.documents(&full), &expected);
        }
        rows
    }

    /// Reads the log until a cut that holds everything committed before this call, compares, and returns that cut.
    async fn settle(&self, reader: &mut LogReader) -> Checkpoint {
        let time = self.now().await;
        let cut = reader.until(|c| c.draft.cut && c.draft.converging.is_empty() && position(c).0 >= time).await;
        self.compare(reader, &cut).await;
        cut
    }

    async fn drop(self) {
        self.database().drop().await.unwrap();
    }
}

fn position(checkpoint: &Checkpoint) -> (u64, &str) {
    match &checkpoint.draft.position {
        Position::Mongodb { cluster_time, token } => (*cluster_time, token),
        other => panic!("not a position of MongoDB: {other}"),
    }
}

/// The text of an `_id` as interface.md has it, by another way than the connector's.
fn id_text(id: &Bson) -> String {
    lakeward_event::document::id_text(&id.clone().into_canonical_extjson().to_string()).unwrap()
}

/// Equal with types and order of fields; NaN equals NaN.
fn same(what: &str, found: &Documents, expected: &Documents) {
    let missing: Vec<_> = expected.keys().filter(|id| !found.contains_key(*id)).take(5).collect();
    let extra: Vec<_> = found.keys().filter(|id| !expected.contains_key(*id)).take(5).collect();
    assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, too many {extra:?}");
    for (id, document) in expected {
        let found = &found[id];
        assert!(
            found == document || format!("{found:?}") == format!("{document:?}"),
            "{what} {id}:\n log    {found:?}\n server {document:?}"
        );
    }
}
