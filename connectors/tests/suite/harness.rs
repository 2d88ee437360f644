//! What the tests share: servers, a source of its own for each test, and the log read back.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::Array;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lakeward_connectors::{ConnectorContext, StatusBoard};
use lakeward_event::codec::json::JsonDecoder;
use lakeward_event::codec::{Decoder, RecordRef};
use lakeward_event::{ChangeBatch, Checkpoint, Op, names};
use lakeward_log::kafka::KafkaLog;
use lakeward_log::{Log, RecordVisitor};
use lakeward_runtime::Result;
use lakeward_runtime::config::{Codec, KafkaConfig, OnBudget, Secret, SourceConfig, SourceKind};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// Nothing in a test takes longer, unless something hangs.
pub const PATIENCE: Duration = Duration::from_secs(180);

fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

pub fn postgres_url() -> String {
    env("LAKEWARD_TEST_POSTGRES", "postgresql://postgres:lakeward@127.0.0.1:22415/postgres")
}

pub async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Calls until it says true.
pub async fn until<F: AsyncFnMut() -> bool>(what: &str, mut done: F) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A database with a slot, and the log of it. Gone when dropped.
pub struct Source {
    pub sql: Client,
    pub config: SourceConfig,
    pub log: Arc<dyn Log>,
    pub status: Arc<StatusBoard>,
    admin_url: String,
    database: String,
}

impl Source {
    pub async fn new(test: &str) -> Self {
        Self::on(&postgres_url(), test).await
    }

    pub async fn on(admin_url: &str, test: &str) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("{test}_{}", &id[..8]);
        let admin = client(admin_url).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let (server, _) = admin_url.rsplit_once('/').unwrap();
        let url = format!("{server}/{name}");
        let kafka = KafkaConfig {
            brokers: env("LAKEWARD_TEST_KAFKA", "127.0.0.1:22092"),
            codec: Codec::Json,
            partitions: 2,
            replication: 1,
            retention: Duration::from_secs(3600),
            client: BTreeMap::new(),
        };
        Self {
            sql: client(&url).await,
            config: SourceConfig {
                name: name.clone(),
                kind: SourceKind::Postgres,
                url: Secret::new(url),
                include: vec![],
                exclude: vec![],
                default_schema: "public".into(),
                wal_budget: 10 << 30,
                on_budget: OnBudget::Stop,
                slot: name.clone(),
                publication: name.clone(),
                unavailable_value_placeholder: String::new(),
                topics: vec![],
            },
            log: KafkaLog::open(&kafka, "test").unwrap(),
            status: Arc::default(),
            admin_url: admin_url.to_owned(),
            database: name,
        }
    }

    pub async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Another connection to the database.
    pub async fn connect(&self) -> Client {
        client(self.config.url.expose()).await
    }

    fn context(&self, until_caught_up: bool) -> ConnectorContext {
        ConnectorContext {
            checkpoint_interval: Duration::from_millis(250),
            log: self.log.clone(),
            codec: Codec::Json,
            registry: lakeward_log::registry::open(None).unwrap(),
            status: self.status.clone(),
            until_caught_up,
        }
    }

    /// Starts a connector that runs until it is stopped.
    pub fn start(&self) -> Running {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(lakeward_connectors::run(self.config.clone(), self.context(false), shutdown.clone()));
        Running { shutdown, task }
    }

    /// Runs a connector until the log holds everything.
    pub async fn catch_up(&self) -> Checkpoint {
        let run = lakeward_connectors::run(self.config.clone(), self.context(true), CancellationToken::new());
        tokio::time::timeout(PATIENCE, run).await.expect("the connector never caught up").unwrap().unwrap()
    }

    pub async fn last(&self) -> Option<Checkpoint> {
        self.log.last_checkpoint(&self.config.name).await.unwrap()
    }

    /// Waits for a checkpoint that is so.
    pub async fn wait(&self, what: &str, so: impl Fn(&Checkpoint) -> bool) -> Checkpoint {
        let mut reader = self.log.checkpoints(&self.config.name, None).await.unwrap();
        tokio::time::timeout(PATIENCE, async {
            loop {
                let checkpoint = reader.next().await.unwrap();
                if so(&checkpoint) {
                    return checkpoint;
                }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    /// Every checkpoint so far.
    pub async fn checkpoints(&self) -> Vec<Checkpoint> {
        let mut reader = self.log.checkpoints(&self.config.name, None).await.unwrap();
        let last = self.last().await.map_or(0, |c| c.id);
        let mut all: Vec<Checkpoint> = Vec::new();
        while all.last().is_none_or(|c| c.id < last) {
            all.push(reader.next().await.unwrap());
        }
        all
    }

    /// Every change in the log, by sequence.
    pub async fn changes(&self) -> Vec<Change> {
        let source = &self.config.name;
        let topics: BTreeMap<String, BTreeMap<i32, (i64, i64)>> = self.log.bounds(source).await.unwrap();
        // After the bounds: a record's schema is never later than the record.
        let schemas = self.log.schemas(source).await.unwrap();
        let mut all = Vec::new();
        for (topic, partitions) in topics.iter().filter(|(t, _)| !t.contains(".__")) {
            for (partition, (start, end)) in partitions {
                let mut reader = self.log.records(source).await.unwrap();
                reader.assign(topic, *partition, *start).await.unwrap();
                let ours: Vec<_> = schemas.iter().filter(|s| names::topic(&s.table) == *topic).cloned().collect();
                let decoder = JsonDecoder::new(Arc::new(move |v| ours.iter().find(|s| s.version == v).cloned()));
                let ends = BTreeMap::from([(topic.clone(), BTreeMap::from([(*partition, *end)]))]);
                let visitor = reader.read_to(&ends, Box::new(Visitor { decoder })).await.unwrap();
                let mut visitor = *visitor.into_any().downcast::<Visitor>().unwrap();
                for batch in visitor.decoder.flush().unwrap() {
                    all.extend(changes_of(&batch, *partition));
                }
            }
        }
        all.sort_by_key(|c| (c.sequence, c.partition));
        all
    }

    /// The tables as a reader of the log has them.
    pub async fn tables(&self) -> Tables {
        let (mut tables, mut gone) = (Tables::new(), Tables::new());
        for change in self.changes().await {
            apply(&mut tables, &mut gone, change);
        }
        tables
    }

    /// The rows of a table as the server prints them, by the columns that make the key.
    pub async fn rows(&self, table: &str, keys: usize) -> BTreeMap<Vec<String>, Vec<Option<String>>> {
        let columns: Vec<String> = self
            .sql
            .query("SELECT quote_ident(attname) || '::text' FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum", &[&table])
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        let rows = self.sql.query(&format!("SELECT {} FROM {table}", columns.join(", ")), &[]).await.unwrap();
        rows.iter()
            .map(|row| {
                let values: Vec<Option<String>> = (0..columns.len()).map(|i| row.get(i)).collect();
                (values[..keys].iter().map(|v| v.clone().unwrap()).collect(), values)
            })
            .collect()
    }

    /// Source and log agree on a table (whose first column is its key), value by value.
    pub async fn assert_same(&self, table: &str) {
        let (log, source) = (self.tables().await, self.rows(table, 1).await);
        let empty = BTreeMap::new();
        let log = log.get(table).unwrap_or(&empty);
        let differing: Vec<_> = source
            .iter()
            .filter(|(key, row)| log.get(*key) != Some(row))
            .map(|(key, row)| (key, clip(Some(row)), clip(log.get(key))))
            .take(5)
            .collect();
        let extra: Vec<_> = log.keys().filter(|key| !source.contains_key(*key)).take(5).collect();
        assert!(
            differing.is_empty() && extra.is_empty(),
            "{table}: key, source, log: {differing:?}; only in the log: {extra:?}"
        );
        assert_eq!(source.len(), log.len());
    }
}

fn clip(row: Option<&Vec<Option<String>>>) -> String {
    let text = format!("{row:?}");
    text.chars().take(120).collect()
}

impl Drop for Source {
    fn drop(&mut self) {
        // The connector's task may hold the slot a moment longer.
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{0}' AND active_pid IS NOT NULL;
             SELECT pg_sleep(0.2);
             SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{0}';
             DROP DATABASE {0} WITH (FORCE)",
            self.database
        );
        let mut psql = Command::new("psql");
        psql.args([&self.admin_url, "-Xqtc", "SET synchronous_commit = local"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        for statement in sql.split(';') {
            psql.args(["-c", statement]);
        }
        let _ = psql.status();
    }
}

pub struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<Option<Checkpoint>>>,
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the connector does not stop").unwrap().unwrap();
    }

    /// As a crash does: nothing is said to anybody.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn failure(self) -> lakeward_runtime::Error {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the connector does not fail").unwrap().unwrap_err()
    }
}

struct Visitor {
    decoder: JsonDecoder,
}

impl RecordVisitor for Visitor {
    fn record(&mut self, record: &RecordRef<'_>) -> ControlFlow<()> {
        self.decoder.push(record).unwrap();
        ControlFlow::Continue(())
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

/// One change, its values as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// `schema.name`
    pub table: String,
    pub op: Op,
    pub sequence: u64,
    pub partition: i32,
    pub tx: Option<u64>,
    /// Microseconds since 1970.
    pub commit_ts: Option<i64>,
    pub before: Option<Vec<Option<String>>>,
    pub after: Option<Vec<Option<String>>>,
    pub unchanged: Vec<usize>,
    keys: Vec<usize>,
}

fn changes_of(batch: &ChangeBatch, partition: i32) -> Vec<Change> {
    let columns = batch.table().columns.len();
    let format = FormatOptions::default().with_null("\0");
    let side = |rows: &arrow::array::StructArray, row: usize| {
        rows.is_valid(row).then(|| {
            rows.columns()
                .iter()
                .map(|c| {
                    let text = ArrayFormatter::try_new(c, &format).unwrap().value(row).to_string();
                    (text != "\0").then_some(text)
                })
                .collect::<Vec<_>>()
        })
    };
    (0..batch.num_rows())
        .map(|row| Change {
            table: batch.table().table.to_string(),
            op: Op::from_u8(batch.ops()[row]).unwrap(),
            sequence: batch.sequences()[row],
            partition,
            tx: batch.tx().is_valid(row).then(|| batch.tx().value(row)),
            commit_ts: batch.commit_ts().is_valid(row).then(|| batch.commit_ts().value(row)),
            before: side(batch.before(), row),
            after: side(batch.after(), row),
            unchanged: (0..columns)
                .filter(|c| {
                    batch.unchanged().is_valid(row)
                        && batch.unchanged().value(row).get(c / 8).is_some_and(|b| b & (1 << (c % 8)) != 0)
                })
                .collect(),
            keys: batch.table().key.clone(),
        })
        .collect()
}

pub type Tables = BTreeMap<String, BTreeMap<Vec<String>, Vec<Option<String>>>>;

fn apply(tables: &mut Tables, gone: &mut Tables, change: Change) {
    let rows = tables.entry(change.table.clone()).or_default();
    let gone = gone.entry(change.table.clone()).or_default();
    let key = |row: &Vec<Option<String>>| -> Vec<String> {
        change.keys.iter().map(|k| row[*k].clone().expect("a key is not null")).collect()
    };
    match change.op {
        Op::Truncate => rows.clear(),
        Op::Delete => {
            let key = key(change.before.as_ref().unwrap());
            gone.extend(rows.remove(&key).map(|row| (key, row)));
        }
        Op::Create | Op::Update | Op::Read => {
            let mut after = change.after.clone().unwrap();
            if !change.unchanged.is_empty() {
                // A key change has deleted the old row in the change before.
                let old = match (&change.before, change.op) {
                    (Some(before), Op::Create) => gone.get(&key(before)),
                    _ => rows.get(&key(&after)),
                };
                for column in &change.unchanged {
                    after[*column] = old.and_then(|row| row[*column].clone());
                }
            }
            rows.insert(key(&after), after);
        }
    }
}

/// A PostgreSQL server of the test's own.
pub struct TestServer {
    child: Child,
    _data: tempfile::TempDir,
    pub url: String,
}

impl TestServer {
    /// Starts one with these lines in its configuration.
    pub async fn start(settings: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let directory = data.path().join("data");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let bin = ["15", "16", "17", "14"]
            .map(|v| format!("/usr/lib/postgresql/{v}/bin"))
            .into_iter()
            .find(|d| std::path::Path::new(d).exists())
            .unwrap_or_default();
        let tool = |name: &str| if bin.is_empty() { name.to_owned() } else { format!("{bin}/{name}") };
        // The server refuses to run as root.
        let root = Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n");
        let command = |program: &str| {
            if root {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--", program]);
                command
            } else {
                Command::new(program)
            }
        };
        if root {
            assert!(Command::new("chown").arg("postgres").arg(data.path()).status().unwrap().success());
        }
        let made = command(&tool("initdb"))
            .current_dir("/")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(&directory)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let child = command(&tool("postgres"))
            .current_dir("/")
            .arg("-D")
            .arg(&directory)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "wal_level=logical", "-c", "fsync=off", "-c", "max_prepared_transactions=5"])
            .args(settings.split_whitespace().flat_map(|s| ["-c", s]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
        let server = Self { child, _data: data, url };
        until("the server is up", async || tokio_postgres::connect(&server.url, NoTls).await.is_ok()).await;
        server
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // SIGQUIT: its children die at once; a fast shutdown would wait for connectors that a failed test has left.
        let _ = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}
