//! What the user writes: TOML and `LAKEWARD__…` variables -> raw structs -> checked [`Config`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::error::Kind;
use figment::providers::Serialized;
use serde::Deserialize;
use toml::{Table, Value};

use super::*;
use crate::error::{Error, Result};

/// Prefix of variables that set a key: `LAKEWARD__SECTION__KEY`.
const ENV_PREFIX: &str = "LAKEWARD__";

/// Default of `checkpoint_interval`: fresh enough for people, rare enough that a checkpoint costs nothing.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Default of `commit_interval`: four checkpoints, so that a table makes 900 snapshots an hour at most.
const COMMIT_INTERVAL: Duration = Duration::from_secs(4);
/// Default of `wal_budget`: what a small server can spare.
const WAL_BUDGET: u64 = 10 << 30;
/// Debezium's own default.
const UNAVAILABLE_VALUE_PLACEHOLDER: &str = "__debezium_unavailable_value";
/// Default of `memory` for the sink.
const SINK_MEMORY: u64 = 1 << 30;
/// Default of `retention`: a sink may be down over a long weekend.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Default number of partitions of topics that Lakeward creates on Kafka.
const PARTITIONS: i32 = 4;
/// The same in the embedded log, which one sink reads: more would only make its batches smaller.
const EMBEDDED_PARTITIONS: i32 = 1;
/// Default codecs, by what the log is for: others read topics on Kafka too, nobody else reads the embedded log.
const KAFKA_CODEC: Codec = Codec::Json;
const EMBEDDED_CODEC: Codec = Codec::Arrow;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: Option<String>,
    state_dir: Option<String>,
    checkpoint_interval: Option<Span>,
    #[serde(default)]
    source: Vec<RawSource>,
    #[serde(default)]
    table: BTreeMap<String, RawTable>,
    log: Option<RawLog>,
    catalog: Option<RawCatalog>,
    warehouse: Option<RawWarehouse>,
    #[serde(default)]
    sink: RawSink,
    #[serde(default)]
    query: RawQuery,
    #[serde(default)]
    telemetry: RawTelemetry,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    name: String,
    kind: String,
    url: Option<String>,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    wal_budget: Option<Size>,
    on_budget: Option<String>,
    slot: Option<String>,
    publication: Option<String>,
    #[serde(default)]
    topics: Vec<String>,
    schema: Option<String>,
    unavailable_value_placeholder: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    mode: Option<String>,
    document: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    kind: String,
    brokers: Option<String>,
    codec: Option<String>,
    registry: Option<String>,
    #[serde(default)]
    inline_schemas: bool,
    partitions: Option<i32>,
    replication: Option<i32>,
    retention: Option<Span>,
    #[serde(default)]
    client: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCatalog {
    kind: Option<String>,
    name: Option<String>,
    url: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWarehouse {
    url: String,
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSink {
    commit_interval: Option<Span>,
    memory: Option<Size>,
    on_bad_record: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQuery {
    postgres: Option<String>,
    flight: Option<String>,
    http: Option<String>,
    #[serde(default)]
    users: Vec<RawUser>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUser {
    name: String,
    password: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTelemetry {
    listen: Option<String>,
}

/// A duration as users write it: `"500ms"`, `"7d"`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Span(Duration);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        humantime::parse_duration(&text).map(Self).map_err(|e| format!("`{text}` is not a time such as \"5s\": {e}"))
    }
}

/// A number of bytes as users write it: `"64MiB"`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Size(u64);

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(format!("`{text}` is not a size such as \"64MiB\"")),
        };
        let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
        bytes.map(Self).ok_or_else(|| format!("`{text}` is not a size such as \"64MiB\""))
    }
}

impl Config {
    /// Reads the file at `path` and the process's environment.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::configuration(format!(
                "cannot read the configuration file {} (`lakeward init` writes one; --config names another)",
                path.display()
            ))
            .source(e)
        })?;
        Self::parse(&text, std::env::vars()).map_err(|e| e.with("file", path.display()))
    }

    /// The same from text and variables.
    pub fn parse(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let env: BTreeMap<String, String> = env.into_iter().collect();
        let mut table: Table =
            toml::from_str(text).map_err(|e| Error::configuration(format!("not valid TOML: {e}")))?;
        override_from_env(&mut table, &env)?;
        let mut tree = Value::Table(table);
        interpolate(&mut tree, &env, "")?;
        let names = source_names(&tree);
        let raw: RawConfig = Figment::from(Serialized::defaults(&tree)).extract().map_err(|e| explain(e, &names))?;
        check(raw)
    }
}

/// Names of sources by their place, to speak of them in errors.
fn source_names(tree: &Value) -> Vec<String> {
    let sources = tree.get("source").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    sources.iter().map(|s| s.get("name").and_then(Value::as_str).unwrap_or("?").to_owned()).collect()
}

/// `LAKEWARD__LOG__BROKERS` sets `log.brokers`, `LAKEWARD__SOURCE__USERS__URL` the source `users`' `url`.
fn override_from_env(table: &mut Table, env: &BTreeMap<String, String>) -> Result<()> {
    for (variable, text) in env {
        let Some(path) = variable.strip_prefix(ENV_PREFIX) else { continue };
        let keys: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
        let (place, last): (&mut Table, &str) = match keys.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [key] => (&mut *table, key),
            ["source", name, key] => {
                let sources = table.get_mut("source").and_then(Value::as_array_mut);
                let source = sources
                    .and_then(|all| all.iter_mut().find(|s| s.get("name").and_then(Value::as_str) == Some(name)));
                let Some(source) = source.and_then(Value::as_table_mut) else {
                    return Err(Error::configuration(format!(
                        "{variable} sets a source `{name}` that the file does not have"
                    )));
                };
                (source, key)
            }
            [section, key] => {
                let place = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
                let Some(place) = place.as_table_mut() else {
                    return Err(Error::configuration(format!("{variable}: `{section}` is not a section")));
                };
                (place, key)
            }
            ["log", "client", ..] => {
                // librdkafka's properties have dots: LAKEWARD__LOG__CLIENT__SASL__MECHANISM
                let log = table.entry("log").or_insert_with(|| Value::Table(Table::new()));
                let client =
                    log.as_table_mut().map(|t| t.entry("client").or_insert_with(|| Value::Table(Table::new())));
                let Some(client) = client.and_then(Value::as_table_mut) else {
                    return Err(Error::configuration(format!("{variable}: `log.client` is not a section")));
                };
                client.insert(keys[2..].join("."), Value::String(text.clone()));
                continue;
            }
            _ => return Err(Error::configuration(format!("{variable} does not name a key"))),
        };
        let value = env_value(place.get(last), text);
        place.insert(last.to_owned(), value);
    }
    Ok(())
}

/// A variable is text; a number, a boolean or a list is meant where the text is one, unless the file has a string there.
fn env_value(present: Option<&Value>, text: &str) -> Value {
    if matches!(present, Some(Value::String(_))) {
        return Value::String(text.to_owned());
    }
    match toml::from_str::<Table>(&format!("v = {text}")).ok().and_then(|mut t| t.remove("v")) {
        Some(value @ (Value::Integer(_) | Value::Boolean(_) | Value::Array(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// Replaces `${env:NAME}` and `${file:PATH}` in every string.
fn interpolate(value: &mut Value, env: &BTreeMap<String, String>, path: &str) -> Result<()> {
    match value {
        Value::String(text) if text.contains("${") => *text = interpolate_text(text, env, path)?,
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                interpolate(item, env, &format!("{path}[{i}]"))?;
            }
        }
        Value::Table(table) => {
            for (key, item) in table.iter_mut() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                interpolate(item, env, &path)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn interpolate_text(text: &str, env: &BTreeMap<String, String>, path: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let Some(length) = rest[start..].find('}') else {
            return Err(Error::configuration(format!("{path}: `${{` without `}}`")));
        };
        let inside = &rest[start + 2..start + length];
        match inside.split_once(':') {
            Some(("env", name)) => {
                let value = env.get(name).ok_or_else(|| {
                    Error::configuration(format!("{path}: the environment variable {name} is not set"))
                })?;
                out.push_str(value);
            }
            Some(("file", file)) => {
                let value = std::fs::read_to_string(file)
                    .map_err(|e| Error::configuration(format!("{path}: cannot read {file}")).source(e))?;
                out.push_str(value.trim_end_matches(['\r', '\n']));
            }
            _ => {
                return Err(Error::configuration(format!(
                    "{path}: `${{{inside}}}` is neither ${{env:NAME}} nor ${{file:PATH}}"
                )));
            }
        }
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Says where the error is in the user's words, and which key was probably meant.
fn explain(error: figment::Error, sources: &[String]) -> Error {
    let Some(first) = error.clone().into_iter().next() else {
        return Error::configuration(error.to_string());
    };
    let mut place = first.path.clone();
    if place.first().is_some_and(|p| p == "source")
        && let Some(name) = place.get(1).and_then(|i| i.parse::<usize>().ok()).and_then(|i| sources.get(i))
    {
        place[1] = format!("`{name}`");
    }
    let at = if place.is_empty() { String::new() } else { format!("{}: ", place.join(".")) };
    match &first.kind {
        Kind::UnknownField(field, known) => {
            // figment counts the unknown key itself into the path
            let at = at.strip_suffix(&format!("{field}: ")).map_or(at.clone(), |s| s.trim_end_matches('.').to_owned());
            let section =
                if at.is_empty() { "at the top level".to_owned() } else { format!("in {}", at.trim_end_matches(": ")) };
            let nearest =
                known.iter().max_by(|a, b| strsim::jaro_winkler(field, a).total_cmp(&strsim::jaro_winkler(field, b)));
            let hint = nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Error::configuration(format!("unknown key `{field}` {section}{hint}"))
        }
        Kind::MissingField(field) => Error::configuration(format!("{at}the key `{field}` is missing")),
        kind => Error::configuration(format!("{at}{kind}")),
    }
}

fn one_of<T: Copy>(path: &str, text: &str, known: &[(&str, T)]) -> Result<T> {
    known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        Error::configuration(format!("{path}: `{text}` is not one of {}", names.join(", ")))
    })
}

/// Defaults and rules across fields.
fn check(mut raw: RawConfig) -> Result<Config> {
    let name = raw.name.unwrap_or_else(|| "lakeward".into());
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return Err(Error::configuration(format!(
            "name: `{name}` must consist of a-z, 0-9 and _ (it becomes part of slot names)"
        )));
    }
    let state_dir = PathBuf::from(raw.state_dir.unwrap_or_else(|| ".lakeward".into()));
    let checkpoint_interval = raw.checkpoint_interval.map_or(CHECKPOINT_INTERVAL, |s| s.0);
    if checkpoint_interval < Duration::from_millis(100) || checkpoint_interval > Duration::from_secs(3600) {
        return Err(Error::configuration("checkpoint_interval must be between 100ms and 1h"));
    }
    if raw.source.is_empty() {
        return Err(Error::configuration("no [[source]]: name at least one database"));
    }
    let mut sources: Vec<SourceConfig> = Vec::new();
    for source in raw.source {
        if sources.iter().any(|s| s.name == source.name) {
            return Err(Error::configuration(format!("two sources are called `{}`", source.name)));
        }
        sources.push(check_source(&name, source)?);
    }
    let mut tables = BTreeMap::new();
    for (pattern, table) in raw.table {
        let path = format!("table.\"{pattern}\"");
        globset::Glob::new(&pattern).map_err(|e| Error::configuration(format!("{path}: not a glob")).source(e))?;
        if let Some(mode) = &table.mode {
            one_of(&format!("{path}.mode"), mode, &[("mirror", ())])?;
        }
        let document = table.document.as_deref().map(|text| {
            use DocumentRule::*;
            one_of(&format!("{path}.document"), text, &[("always", Always), ("conflict", Conflict), ("never", Never)])
        });
        tables.insert(pattern, TableConfig { document: document.transpose()? });
    }
    let registry = raw.log.as_mut().and_then(|log| log.registry.take());
    let log = match raw.log {
        None => check_embedded(EMBEDDED_CODEC, None, &state_dir)?,
        Some(log) => check_log(log, &state_dir)?,
    };
    let registry = check_registry(registry.as_deref(), log.codec())?;
    let foreign = sources.iter().find(|s| s.kind == SourceKind::Debezium);
    if let (LogConfig::Embedded(_), Some(source)) = (&log, foreign) {
        return Err(Error::configuration(format!(
            "source.`{}`: a Debezium writes to Kafka: set `kind = \"kafka\"` and `brokers` in [log]",
            source.name
        )));
    }
    let commit_interval = raw.sink.commit_interval.map_or_else(|| COMMIT_INTERVAL.max(checkpoint_interval), |s| s.0);
    let ratio = commit_interval.as_micros() / checkpoint_interval.as_micros();
    if !commit_interval.as_micros().is_multiple_of(checkpoint_interval.as_micros()) || !ratio.is_power_of_two() {
        return Err(Error::configuration(format!(
            "sink.commit_interval: {} is not a power of two times checkpoint_interval ({})",
            humantime::format_duration(commit_interval),
            humantime::format_duration(checkpoint_interval)
        )));
    }
    let on_bad_record = raw.sink.on_bad_record.as_deref().map_or(Ok(OnBadRecord::DeadLetter), |text| {
        one_of("sink.on_bad_record", text, &[("dead_letter", OnBadRecord::DeadLetter), ("stop", OnBadRecord::Stop)])
    })?;
    let users = raw.query.users.into_iter().map(|u| QueryUser { name: u.name, password: Secret::new(u.password) });
    Ok(Config {
        catalog: check_catalog(raw.catalog, &state_dir)?,
        warehouse: check_warehouse(raw.warehouse, &state_dir)?,
        name,
        state_dir,
        checkpoint_interval,
        sources,
        tables,
        log,
        registry,
        sink: SinkConfig { commit_interval, memory: raw.sink.memory.map_or(SINK_MEMORY, |s| s.0), on_bad_record },
        query: QueryConfig {
            postgres: raw.query.postgres,
            flight: raw.query.flight,
            http: raw.query.http,
            users: users.collect(),
        },
        telemetry: TelemetryConfig { listen: raw.telemetry.listen },
    })
}

fn check_source(config_name: &str, raw: RawSource) -> Result<SourceConfig> {
    let name = raw.name;
    let path = format!("source.`{name}`");
    let letters = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !letters || name.contains("__") {
        return Err(Error::configuration(format!(
            "{path}: a source's name is [a-z][a-z0-9_]* without a double underscore"
        )));
    }
    if ["lakeward", "information_schema", "pg_catalog"].contains(&name.as_str()) {
        return Err(Error::configuration(format!("{path}: the name `{name}` is taken by a system schema")));
    }
    use SourceKind::*;
    let kind = one_of(
        &format!("{path}.kind"),
        &raw.kind,
        &[("postgres", Postgres), ("mongodb", Mongodb), ("debezium", Debezium)],
    )?;
    for glob in raw.include.iter().chain(&raw.exclude).chain(&raw.topics) {
        globset::Glob::new(glob)
            .map_err(|e| Error::configuration(format!("{path}: `{glob}` is not a glob")).source(e))?;
    }
    let url = match (kind, raw.url) {
        (Debezium, url) => url.unwrap_or_default(),
        (_, Some(url)) => url,
        (_, None) => return Err(Error::configuration(format!("{path}: the key `url` is missing"))),
    };
    let default_schema = match kind {
        Postgres => "public".to_owned(),
        Debezium => raw.schema.unwrap_or_else(|| "public".into()),
        Mongodb => url::Url::parse(&url)
            .ok()
            .map(|u| u.path().trim_matches('/').to_owned())
            .filter(|database| !database.is_empty())
            .ok_or_else(|| {
                Error::configuration(format!("{path}.url: name the default database: mongodb://host:port/DATABASE"))
            })?,
    };
    let on_budget = raw.on_budget.as_deref().map_or(Ok(OnBudget::Resnapshot), |text| {
        let known = [("resnapshot", OnBudget::Resnapshot), ("stop", OnBudget::Stop)];
        one_of(&format!("{path}.on_budget"), text, &known)
    })?;
    let own = format!("{config_name}_{name}");
    // PostgreSQL cuts identifiers at 63 bytes in silence, and two sources could then share a slot.
    if kind == Postgres && own.len() > 63 && (raw.slot.is_none() || raw.publication.is_none()) {
        return Err(Error::configuration(format!(
            "{path}: `{own}` is too long for a slot (63 bytes): shorten the name"
        )));
    }
    Ok(SourceConfig {
        kind,
        url: Secret::new(url),
        include: raw.include,
        exclude: raw.exclude,
        default_schema,
        wal_budget: raw.wal_budget.map_or(WAL_BUDGET, |s| s.0),
        on_budget,
        slot: raw.slot.unwrap_or_else(|| own.clone()),
        publication: raw.publication.unwrap_or(own),
        unavailable_value_placeholder: raw
            .unavailable_value_placeholder
            .unwrap_or_else(|| UNAVAILABLE_VALUE_PLACEHOLDER.into()),
        topics: if raw.topics.is_empty() { vec![format!("{name}.*")] } else { raw.topics },
        name,
    })
}

fn check_codec(codec: Option<&str>, inline_schemas: bool, default: Codec) -> Result<Codec> {
    let known = [("json", Codec::Json), ("avro", Codec::Avro), ("arrow", Codec::Arrow)];
    match (codec.map_or(Ok(default), |text| one_of("log.codec", text, &known))?, inline_schemas) {
        (codec, false) => Ok(codec),
        (Codec::Json, true) => Ok(Codec::JsonWithSchemas),
        _ => Err(Error::configuration("log.inline_schemas is for codec = \"json\"; leave it out with another one")),
    }
}

/// Also where the codec is another one: the log may hold records that need it.
fn check_registry(registry: Option<&str>, codec: Codec) -> Result<Option<Secret>> {
    let Some(text) = registry else {
        if codec == Codec::Avro {
            return Err(Error::configuration(
                "log.registry is missing: codec = \"avro\" needs a schema registry, such as registry = \"http://127.0.0.1:8081\"",
            ));
        }
        return Ok(None);
    };
    let url = url::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // The text is not quoted: it can hold a password.
    let Some(url) = url else {
        return Err(Error::configuration(
            "log.registry must be http://HOST:PORT or https://USER:PASSWORD@HOST, with a path where it has one",
        ));
    };
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::configuration(
            "log.registry must end with its path: the registry's own paths are put behind it",
        ));
    }
    Ok(Some(Secret::new(text)))
}

fn check_embedded(codec: Codec, partitions: Option<i32>, state_dir: &Path) -> Result<LogConfig> {
    let partitions = partitions.unwrap_or(EMBEDDED_PARTITIONS);
    if !(1..=1_000).contains(&partitions) {
        return Err(Error::configuration("log: partitions must be between 1 and 1000"));
    }
    Ok(LogConfig::Embedded(EmbeddedConfig { path: state_dir.join("log.db"), codec, partitions }))
}

fn check_log(raw: RawLog, state_dir: &Path) -> Result<LogConfig> {
    let is_kafka = one_of("log.kind", &raw.kind, &[("embedded", false), ("kafka", true)])?;
    if !is_kafka {
        let kafkas = [
            ("brokers", raw.brokers.is_some()),
            ("replication", raw.replication.is_some()),
            ("retention", raw.retention.is_some()),
            ("client", !raw.client.is_empty()),
        ];
        if let Some((key, _)) = kafkas.iter().find(|(_, is_set)| *is_set) {
            return Err(Error::configuration(format!(
                "log.{key} is for kind = \"kafka\"; the embedded log has no such key"
            )));
        }
        let codec = check_codec(raw.codec.as_deref(), raw.inline_schemas, EMBEDDED_CODEC)?;
        return check_embedded(codec, raw.partitions, state_dir);
    }
    let brokers = raw.brokers.ok_or_else(|| Error::configuration("log: the key `brokers` is missing"))?;
    let codec = check_codec(raw.codec.as_deref(), raw.inline_schemas, KAFKA_CODEC)?;
    let partitions = raw.partitions.unwrap_or(PARTITIONS);
    let replication = raw.replication.unwrap_or(1);
    if !(1..=10_000).contains(&partitions) || !(1..=100).contains(&replication) {
        return Err(Error::configuration("log: partitions and replication must be at least 1"));
    }
    let mut client = BTreeMap::new();
    for (key, value) in raw.client {
        let text = match value {
            Value::String(text) => text,
            Value::Integer(_) | Value::Boolean(_) | Value::Float(_) => value.to_string(),
            _ => return Err(Error::configuration(format!("log.client.\"{key}\" must be a string, number or boolean"))),
        };
        let value = kafka::property(&key, text)?;
        client.insert(key, value);
    }
    Ok(LogConfig::Kafka(KafkaConfig {
        brokers,
        codec,
        partitions,
        replication,
        retention: raw.retention.map_or(RETENTION, |s| s.0),
        client,
    }))
}

fn check_catalog(raw: Option<RawCatalog>, state_dir: &Path) -> Result<CatalogConfig> {
    let raw = raw.unwrap_or(RawCatalog { kind: None, name: None, url: None });
    let kind = raw
        .kind
        .as_deref()
        .map_or(Ok(CatalogKind::Sql), |text| one_of("catalog.kind", text, &[("sql", CatalogKind::Sql)]))?;
    let url = raw.url.unwrap_or_else(|| format!("sqlite:{}", state_dir.join("catalog.db").display()));
    if !["sqlite:", "postgresql://", "postgres://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(Error::configuration("catalog.url must start with sqlite: or postgresql://"));
    }
    Ok(CatalogConfig { kind, name: raw.name.unwrap_or_else(|| "lake".into()), url: Secret::new(url) })
}

fn check_warehouse(raw: Option<RawWarehouse>, state_dir: &Path) -> Result<WarehouseConfig> {
    let Some(raw) = raw else {
        let directory = std::path::absolute(state_dir.join("warehouse"))
            .map_err(|e| Error::configuration("state_dir: no such place").source(e))?;
        return Ok(WarehouseConfig {
            url: format!("file://{}", directory.display()),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
        });
    };
    let url = raw.url.trim_end_matches('/').to_owned();
    if !["s3://", "file:///"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(Error::configuration(format!(
            "warehouse.url: `{url}` must be s3://BUCKET/PREFIX or file:///ABSOLUTE/PATH"
        )));
    }
    Ok(WarehouseConfig {
        url,
        endpoint: raw.endpoint,
        region: raw.region,
        access_key_id: raw.access_key_id.map(Secret::new),
        secret_access_key: raw.secret_access_key.map(Secret::new),
    })
}
