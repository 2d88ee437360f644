//! `lakeward check`: can everything be used as configured? `configuration + every server -> problems with their fix`.
//!
//! Every part is asked, whatever came of the others: a person wants the whole list at once.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lakeward_lake::Lake;
use lakeward_log::registry::RegistryClient;
use lakeward_runtime::config::{Config, LogConfig, SourceConfig, SourceKind};
use lakeward_runtime::{Error, Result};
use mongodb::bson::doc;
use serde::Serialize;

use crate::clients;

/// Clocks further apart than this make joins between sources inexact (design of the grid that checkpoints stand on).
const CLOCK_TOLERANCE: Duration = Duration::from_millis(500);
/// A server that says nothing for so long is a problem of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// Something that keeps Lakeward from working.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The part of the configuration: `source users`, `log`, `registry`, `catalog and warehouse`.
    pub place: String,
    pub what: String,
    pub fix: String,
}

impl Problem {
    fn new(place: &str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { place: place.to_owned(), what: what.into(), fix: fix.into() }
    }
}

/// For people: every problem with its fix.
pub fn to_text(problems: &[Problem]) -> String {
    if problems.is_empty() {
        return "no problem found\n".into();
    }
    let mut out: String = problems.iter().map(|p| format!("{}: {}\n    fix: {}\n", p.place, p.what, p.fix)).collect();
    out.push_str(&format!("{} problems found\n", problems.len()));
    out
}

/// Tries every source, the log, its schema registry, catalog and warehouse, and all clocks, and lists all problems; none: `lakeward
/// run` can start.
pub async fn check(config: &Config) -> Vec<Problem> {
    let sources = futures::future::join_all(config.sources.iter().map(source));
    let topics = futures::future::join_all(config.sources.iter().map(|source| topics(config, source)));
    let (sources, topics, log, registry, lake) =
        tokio::join!(sources, topics, log(config), registry(config), lake(config));
    let mut problems: Vec<Problem> = sources.into_iter().chain(topics).flatten().collect();
    if config.sources.is_empty() {
        problems.push(Problem::new(
            "source",
            "no source is configured",
            "add a [[source]]; `lakeward init` writes an example",
        ));
    }
    problems.extend(log);
    problems.extend(registry);
    problems.extend(lake);
    problems
}

async fn source(source: &SourceConfig) -> Vec<Problem> {
    let place = format!("source {}", source.name);
    let silent = || {
        vec![Problem::new(
            &place,
            "the server does not answer",
            "see whether it runs, and whether a firewall is in between",
        )]
    };
    let Ok(found) = tokio::time::timeout(PATIENCE, lakeward_connectors::problems(source)).await else {
        return silent();
    };
    let mut problems: Vec<Problem> = found.into_iter().map(|p| Problem::new(&place, p.what, p.fix)).collect();
    let offset = tokio::time::timeout(PATIENCE, clock_offset(source)).await;
    if let Ok(Ok(Some(offset))) = offset
        && offset.unsigned_abs() > CLOCK_TOLERANCE.as_micros() as u64
    {
        problems.push(Problem::new(
            &place,
            format!(
                "the server's clock is {} ms {} ours",
                offset.unsigned_abs() / 1000,
                if offset > 0 { "ahead of" } else { "behind" }
            ),
            "let both machines keep time by NTP: further apart than 500 ms, joins between sources are inexact",
        ));
    }
    problems
}

/// Topics that others write have to be there: nobody else will make them. A log that does not answer is told of elsewhere.
async fn topics(config: &Config, source: &SourceConfig) -> Vec<Problem> {
    if source.kind != SourceKind::Debezium {
        return Vec::new();
    }
    let asked = async {
        let filter = lakeward_sink::topic_filter(source)?;
        lakeward_log::open(&config.log, &config.name)?.foreign_bounds(filter).await
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(topics)) if topics.is_empty() => vec![Problem::new(
            &format!("source {}", source.name),
            format!("no topic matches {}", source.topics.join(", ")),
            "set `topics` to what the Debezium connector writes (its `topic.prefix`, schema and table), and see whether it has run",
        )],
        _ => Vec::new(),
    }
}

/// Source's clock minus ours, microseconds; None: a source without a server that we know. Errors are those of connecting, which the
/// connector's own look has told already.
async fn clock_offset(source: &SourceConfig) -> Result<Option<i64>> {
    match source.kind {
        SourceKind::Postgres => {
            let client = lakeward_connectors::postgres::client::connect(&source.url, "check").await?;
            lakeward_connectors::postgres::stream::clock_offset(&client).await.map(Some)
        }
        SourceKind::Mongodb => {
            let admin = clients::mongodb(&source.url, "check").await?.database("admin");
            let failed = |e: mongodb::error::Error| Error::retry("asking for the server's clock").source(e);
            // The first command makes the connection; the second one's round trip is measured.
            admin.run_command(doc! { "ping": 1 }).await.map_err(failed)?;
            let (before, started) = (now(), Instant::now());
            let reply = admin.run_command(doc! { "hello": 1 }).await.map_err(failed)?;
            let middle = before + started.elapsed().as_micros() as i64 / 2;
            // localTime is cut to milliseconds: half of one more on average.
            Ok(reply.get_datetime("localTime").ok().map(|time| time.timestamp_millis() * 1000 + 500 - middle))
        }
        SourceKind::Debezium => Ok(None),
    }
}

pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

async fn log(config: &Config) -> Vec<Problem> {
    const PLACE: &str = "log";
    let asked = async {
        let log = lakeward_log::open(&config.log, &config.name)?;
        // Any question that only a broker, or the file, can answer.
        let source = config.sources.first().map_or("lakeward", |s| &s.name);
        log.bounds(source).await.map(drop)
    };
    let (fix, silent) = match &config.log {
        LogConfig::Kafka(kafka) => (
            "see whether a broker listens at [log] brokers, and [log.client] for its security settings",
            format!("no broker at {} answers", kafka.brokers),
        ),
        LogConfig::Embedded(embedded) => (
            "see whether state_dir can be written, has space left, and is on a local disk",
            format!("{} does not answer", embedded.path.display()),
        ),
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(())) => Vec::new(),
        Ok(Err(error)) => vec![Problem::new(PLACE, error.to_string(), fix)],
        Err(_) => vec![Problem::new(PLACE, silent, fix)],
    }
}

async fn registry(config: &Config) -> Option<Problem> {
    let url = config.registry.as_ref()?;
    // The client has patience of its own.
    let asked = async { RegistryClient::open(url)?.look().await }.await;
    let fix = "see whether a schema registry answers at [log] registry, and takes the user and password in it";
    asked.err().map(|error| Problem::new("registry", error.to_string(), fix))
}

async fn lake(config: &Config) -> Vec<Problem> {
    const PLACE: &str = "catalog and warehouse";
    let look = async {
        match Lake::open(&config.catalog, &config.warehouse).await {
            Ok(lake) => lake.check().await,
            Err(error) => vec![error.to_string()],
        }
    };
    let fix = "see [catalog] and [warehouse]: addresses, credentials, and that the bucket exists and may be read, written and listed";
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(problems) => problems.into_iter().map(|what| Problem::new(PLACE, what, fix)).collect(),
        Err(_) => vec![Problem::new(PLACE, "no answer", fix)],
    }
}
