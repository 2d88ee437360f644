//! A pipeline of its own for each test: database, topics, catalog and warehouse with fresh names, gone when it is dropped.

use std::sync::Arc;
use std::time::Duration;

use lakeward_admin::verify::{Report, verify};
use lakeward_connectors::{ConnectorContext, StatusBoard};
use lakeward_lake::Lake;
use lakeward_runtime::config::Config;
use lakeward_runtime::{Error, Result};
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

/// A database and the configuration of its pipeline.
pub struct Pipeline {
    pub sql: Client,
    pub url: String,
    pub config: Config,
    pub name: String,
    admin_url: String,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<Result<()>>>,
    _folder: tempfile::TempDir,
}

impl Pipeline {
    pub async fn new(test: &str) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("{test}_{}", &id[..8]);
        let admin_url = env("LAKEWARD_TEST_POSTGRES", "postgresql://postgres:lakeward@127.0.0.1:22415/postgres");
        client(&admin_url).await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let url = format!("{}/{name}", admin_url.rsplit_once('/').unwrap().0);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let brokers = env("LAKEWARD_TEST_KAFKA", "127.0.0.1:22092");
        let text = format!(
            "name = \"{name}\"\nstate_dir = \"{at}/state\"\n[[source]]\nname = \"{name}\"\nkind = \"postgres\"\nurl = \"{url}\"\n\
             [log]\nkind = \"kafka\"\nbrokers = \"{brokers}\"\n[catalog]\nkind = \"sql\"\nurl = \"sqlite:{at}/catalog.db\"\n\
             [warehouse]\nurl = \"file://{at}/warehouse\"\n"
        );
        std::fs::create_dir_all(folder.path().join("state")).unwrap();
        let config = Config::parse(&text, std::iter::empty()).unwrap();
        Self {
            sql: client(&url).await,
            url,
            config,
            name,
            admin_url,
            shutdown: CancellationToken::new(),
            tasks: Vec::new(),
            _folder: folder,
        }
    }

    pub async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Starts connector and sink, in this process.
    pub async fn start(&mut self) {
        let log = lakeward_log::open(&self.config.log, &self.config.name).unwrap();
        let context = ConnectorContext {
            checkpoint_interval: self.config.checkpoint_interval,
            log: log.clone(),
            codec: self.config.log.codec(),
            status: Arc::new(StatusBoard::default()),
            until_caught_up: false,
        };
        let (source, token) = (self.config.sources[0].clone(), self.shutdown.clone());
        self.tasks.push(tokio::spawn(async move { lakeward_connectors::run(source, context, token).await.map(drop) }));
        let lake = Lake::open(&self.config.catalog, &self.config.warehouse).await.unwrap();
        let (config, token) = (self.config.clone(), self.shutdown.clone());
        self.tasks.push(tokio::spawn(async move {
            lakeward_sink::run(&config, lake, log, lakeward_sink::Options::default(), token).await
        }));
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
        let asked = verify(&self.config, tables, |line| eprintln!("{line}"));
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(Error::bug("verify hangs")))
    }

    /// Ends connector and sink, and drops slot and database.
    pub async fn end(mut self) {
        self.shutdown.cancel();
        for task in self.tasks.drain(..) {
            tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
        }
        let admin = client(&self.admin_url).await;
        let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT temporary AND NOT active";
        admin.execute(slots, &[&self.name]).await.unwrap();
        admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await.unwrap();
    }
}
