//! Configuration: `lakeward.toml` and the environment -> checked [`Config`] -> every role.
//!
//! The types here are what the program needs; [`load`] has what the user writes, and turns one into the other.

mod kafka;
pub mod load;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

/// A whole, checked configuration. Defaults are filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// Prefixes transactional ids, slots and publications.
    pub name: String,
    /// Caches, spill and the embedded defaults.
    pub state_dir: PathBuf,
    /// The grid on which all sources place their checkpoints.
    pub checkpoint_interval: Duration,
    pub sources: Vec<SourceConfig>,
    /// By topic name or glob, as written.
    pub tables: BTreeMap<String, TableConfig>,
    pub log: LogConfig,
    /// `log.registry`: where the codec `avro` keeps its schemas, `http(s)://[USER:PASSWORD@]HOST…`. None: none, and records of that
    /// codec cannot be read.
    pub registry: Option<Secret>,
    pub catalog: CatalogConfig,
    pub warehouse: WarehouseConfig,
    pub sink: SinkConfig,
    pub query: QueryConfig,
    pub telemetry: TelemetryConfig,
}

#[derive(Debug, Clone)]
pub struct SourceConfig {
    pub name: String,
    pub kind: SourceKind,
    /// With its password: never logged.
    pub url: Secret,
    /// Globs on `schema.table`; empty: all of the user's tables.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Schema (PostgreSQL: `public`) or database (MongoDB: the URL's path) whose tables get the namespace `<source>`.
    pub default_schema: String,
    /// Bytes of WAL the slot may hold back.
    pub wal_budget: u64,
    pub on_budget: OnBudget,
    /// PostgreSQL: an existing slot or publication to adopt; default `<config name>_<source>`.
    pub slot: String,
    pub publication: String,
    /// Debezium: globs of topics to read.
    pub topics: Vec<String>,
    /// Debezium: what it writes in the place of a value that its source left out.
    pub unavailable_value_placeholder: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    Postgres,
    Mongodb,
    Debezium,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBudget {
    Resnapshot,
    Stop,
}

#[derive(Debug, Clone, Default)]
pub struct TableConfig {
    /// `always`, `conflict` or `never`; None: by the collection's post-images.
    pub document: Option<DocumentRule>,
}

/// When a MongoDB table keeps the whole original document in `_doc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentRule {
    Always,
    Conflict,
    Never,
}

#[derive(Debug, Clone)]
pub enum LogConfig {
    /// `kind = "embedded"`, and where there is no `[log]` section.
    Embedded(EmbeddedConfig),
    Kafka(KafkaConfig),
}

impl LogConfig {
    /// How records are encoded.
    pub fn codec(&self) -> Codec {
        match self {
            Self::Embedded(embedded) => embedded.codec,
            Self::Kafka(kafka) => kafka.codec,
        }
    }
}

#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// The SQLite file: `log.db` in `state_dir`.
    pub path: PathBuf,
    pub codec: Codec,
    /// Of topics that are new.
    pub partitions: i32,
}

#[derive(Debug, Clone)]
pub struct KafkaConfig {
    pub brokers: String,
    pub codec: Codec,
    /// For topics that Lakeward creates.
    pub partitions: i32,
    pub replication: i32,
    pub retention: Duration,
    /// librdkafka properties, passed through; values may be secrets.
    pub client: BTreeMap<String, Secret>,
}

/// How changes become records of the log. Readers need not know: each record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Json,
    /// Needs [`Config::registry`].
    Avro,
    /// `json` with `inline_schemas`: each key and value carries its schema.
    JsonWithSchemas,
    Arrow,
}

impl std::fmt::Display for Codec {
    /// As messages name it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Json => "json",
            Self::Avro => "avro",
            Self::JsonWithSchemas => "json with schemas",
            Self::Arrow => "arrow",
        })
    }
}

#[derive(Debug, Clone)]
pub struct CatalogConfig {
    pub kind: CatalogKind,
    pub name: String,
    /// `sqlite:…` or `postgresql://…`
    pub url: Secret,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogKind {
    Sql,
    Rest,
}

#[derive(Debug, Clone)]
pub struct WarehouseConfig {
    /// `file:///…` or `s3://bucket/prefix`, no slash at the end.
    pub url: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<Secret>,
    pub secret_access_key: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// A power of two times `checkpoint_interval`.
    pub commit_interval: Duration,
    /// Bytes: everything the sink buffers, the key index included.
    pub memory: u64,
    pub on_bad_record: OnBadRecord,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBadRecord {
    DeadLetter,
    Stop,
}

#[derive(Debug, Clone)]
pub struct QueryConfig {
    pub postgres: Option<String>,
    pub flight: Option<String>,
    pub http: Option<String>,
    pub users: Vec<QueryUser>,
}

#[derive(Debug, Clone)]
pub struct QueryUser {
    pub name: String,
    pub password: Secret,
}

#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Address of `/metrics`, `/healthz`, `/readyz`; None: not served.
    pub listen: Option<String>,
}

/// A value that prints and serializes as `****`.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }
    /// The value itself, for the one place that connects with it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("****")
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("****")
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("****")
    }
}
