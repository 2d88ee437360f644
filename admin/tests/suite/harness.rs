//! A pipeline of its own for each test: database, topics, catalog and warehouse with fresh names, gone when it ends.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use lakeward_admin::verify::{Report, verify};
use lakeward_connectors::mongodb::builder::{DocumentBuilder, Place};
use lakeward_connectors::publisher::{Append, Progress, Publisher};
use lakeward_connectors::{ConnectorContext, StatusBoard};
use lakeward_event::{Position, TableId, TableSchema};
use lakeward_lake::Lake;
use lakeward_log::Log;
use lakeward_runtime::config::{Codec, Config};
use lakeward_runtime::{Error, Result};
use mongodb::Database;
use mongodb::bson::Document;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// Nothing in a test takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

pub async fn client(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn fresh(test: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{test}_{}", &id[..8])
}

/// A role that runs in this process.
struct Running {
    task: JoinHandle<Result<()>>,
    shutdown: CancellationToken,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

/// The configuration of one source's pipeline, and its roles.
pub struct Roles {
    pub config: Config,
    /// Of the source, and of its database.
    pub name: String,
    connector: Option<Running>,
    sink: Option<Running>,
    _folder: tempfile::TempDir,
}

impl Roles {
    fn new(name: &str, kind: &str, url: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let brokers = env("LAKEWARD_TEST_KAFKA", "127.0.0.1:22092");
        let text = format!(
            "name = \"{name}\"\nstate_dir = \"{at}/state\"\n[[source]]\nname = \"{name}\"\nkind = \"{kind}\"\nurl = \"{url}\"\n{more}\n\
             [log]\nkind = \"kafka\"\nbrokers = \"{brokers}\"\n[catalog]\nkind = \"sql\"\nurl = \"sqlite:{at}/catalog.db\"\n\
             [warehouse]\nurl = \"file://{at}/warehouse\"\n"
        );
        std::fs::create_dir_all(folder.path().join("state")).unwrap();
        let config = Config::parse(&text, std::iter::empty()).unwrap();
        Self { config, name: name.to_owned(), connector: None, sink: None, _folder: folder }
    }

    fn log(&self) -> Arc<dyn Log> {
        lakeward_log::open(&self.config.log, &self.config.name).unwrap()
    }

    fn start_connector(&mut self) {
        let context = ConnectorContext {
            checkpoint_interval: self.config.checkpoint_interval,
            log: self.log(),
            codec: self.config.log.codec(),
            registry: lakeward_log::registry::open(self.config.registry.as_ref()).unwrap(),
            status: Arc::new(StatusBoard::default()),
            until_caught_up: false,
        };
        let (source, shutdown) = (self.config.sources[0].clone(), CancellationToken::new());
        let run = lakeward_connectors::run(source, context, shutdown.clone());
        self.connector = Some(Running { task: tokio::spawn(async move { run.await.map(drop) }), shutdown });
    }

    /// Starts connector and sink, in this process.
    pub async fn start(&mut self) {
        self.start_connector();
        let lake = Lake::open(&self.config.catalog, &self.config.warehouse).await.unwrap();
        let (config, log, shutdown) = (self.config.clone(), self.log(), CancellationToken::new());
        let token = shutdown.clone();
        let task = tokio::spawn(async move {
            lakeward_sink::run(&config, lake, log, lakeward_sink::Options::default(), token).await
        });
        self.sink = Some(Running { task, shutdown });
    }

    async fn stop(&mut self) {
        for role in [self.connector.take(), self.sink.take()].into_iter().flatten() {
            role.stop().await;
        }
    }

    /// The answer once nothing is left out because it is still on its way.
    pub async fn settled(&self, tables: &[String]) -> Report {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.verify(tables).await;
            let waits = match &answer {
                Ok(report) => {
                    report.skipped.iter().any(|s| s.reason.contains("snapshot") || s.reason.contains("name it"))
                }
                Err(error) => error.is_retryable(),
            };
            if !waits || std::time::Instant::now() > deadline {
                return answer.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    pub async fn verify(&self, tables: &[String]) -> Result<Report> {
        self.verify_as(&self.config, tables).await
    }

    /// With another configuration than that of the roles.
    pub async fn verify_as(&self, config: &Config, tables: &[String]) -> Result<Report> {
        let asked = verify(config, tables, |line| eprintln!("{line}"));
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(Error::bug("verify hangs")))
    }
}

/// A PostgreSQL database and its pipeline.
pub struct Pipeline {
    pub sql: Client,
    pub url: String,
    admin_url: String,
    roles: Roles,
}

impl Deref for Pipeline {
    type Target = Roles;
    fn deref(&self) -> &Roles {
        &self.roles
    }
}

impl DerefMut for Pipeline {
    fn deref_mut(&mut self) -> &mut Roles {
        &mut self.roles
    }
}

impl Pipeline {
    pub async fn new(test: &str) -> Self {
        let name = fresh(test);
        let admin_url = env("LAKEWARD_TEST_POSTGRES", "postgresql://postgres:lakeward@127.0.0.1:22415/postgres");
        client(&admin_url).await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let url = format!("{}/{name}", admin_url.rsplit_once('/').unwrap().0);
        Self { sql: client(&url).await, roles: Roles::new(&name, "postgres", &url, ""), url, admin_url }
    }

    pub async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Ends connector and sink, and drops slot and database.
    pub async fn end(mut self) {
        self.roles.stop().await;
        let admin = client(&self.admin_url).await;
        let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT temporary AND NOT active";
        admin.execute(slots, &[&self.name]).await.unwrap();
        admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await.unwrap();
    }
}

/// A MongoDB database and its pipeline.
pub struct MongoPipeline {
    pub database: Database,
    roles: Roles,
}

impl Deref for MongoPipeline {
    type Target = Roles;
    fn deref(&self) -> &Roles {
        &self.roles
    }
}

impl DerefMut for MongoPipeline {
    fn deref_mut(&mut self) -> &mut Roles {
        &mut self.roles
    }
}

impl MongoPipeline {
    /// Captures the collections of a database, but for those that are called `left_out`.
    pub async fn new(test: &str) -> Self {
        let name = fresh(test);
        let server = env("LAKEWARD_TEST_MONGODB", "mongodb://127.0.0.1:22017/?replicaSet=rs0");
        let client = mongodb::Client::with_uri_str(&server).await.unwrap();
        let url = server.replacen("/?", &format!("/{name}?"), 1);
        let only = format!("include = [\"{name}.*\"]\nexclude = [\"*.left_out\"]");
        Self { database: client.database(&name), roles: Roles::new(&name, "mongodb", &url, &only) }
    }

    pub async fn insert(&self, collection: &str, documents: impl IntoIterator<Item = Document>) {
        self.database.collection::<Document>(collection).insert_many(documents).await.unwrap();
    }

    /// Appends changes that the source never had, as a connector that does wrong would: the lake is then not what the source is.
    pub async fn forge(
        &mut self,
        collection: &str,
        changes: impl FnOnce(&mut DocumentBuilder, &mut dyn FnMut() -> Place),
    ) {
        if let Some(connector) = self.roles.connector.take() {
            connector.stop().await;
        }
        let registry = lakeward_log::registry::open(None).unwrap();
        let encoder = lakeward_connectors::encoder(Codec::Json, &registry).unwrap();
        let (mut publisher, last) = Publisher::open(&self.log(), &self.name, encoder).await.unwrap();
        let last = last.unwrap().draft;
        let Position::Mongodb { cluster_time, .. } = last.position else { panic!("a position of PostgreSQL") };
        let schema = Arc::new(TableSchema::documents(TableId::new(&self.name, self.database.name(), collection)));
        publisher.register(&schema).await.unwrap();
        let mut builder = DocumentBuilder::new(schema);
        let mut sequences = 0;
        changes(&mut builder, &mut || {
            sequences += 1;
            Place { sequence: sequences - 1, cluster_time, tx: None, wall: Some(last.watermark) }
        });
        let progress = Progress {
            position: last.position,
            snapshot: last.snapshot,
            converging: last.converging,
            watermark_from: last.watermark_from,
            watermark: last.watermark,
            cut: false,
        };
        let batches = vec![builder.finish().unwrap()];
        publisher.publish(Append { batches, sequences, progress }).await.unwrap();
        drop(publisher);
        self.roles.start_connector();
    }

    /// Ends connector and sink, and drops the database.
    pub async fn end(mut self) {
        self.roles.stop().await;
        self.database.drop().await.unwrap();
    }
}
