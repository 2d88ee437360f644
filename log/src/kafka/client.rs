//! Settings and calls that every client of a Kafka cluster shares: `[log]` -> librdkafka properties -> clients; metadata and
//! watermarks of the cluster -> topics, writer and readers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lakeward_runtime::config::KafkaConfig;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;

use super::error::{self, Doing};
use crate::Result;
pub(super) use crate::blocking::blocking;

/// How long one question to the cluster (metadata, watermarks) may take. A broker that restarts is back within it more often
/// than not; a caller that gets the error tries again anyway.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often, and how far apart, a partition without a leader is asked again.
const LEADER_TRIES: u32 = 5;
const LEADER_WAIT: Duration = Duration::from_millis(100);

/// What a client's broker connections said last, so that a time-out can name its cause.
#[derive(Debug, Default, Clone)]
pub(super) struct Context {
    last_error: Arc<Mutex<Option<String>>>,
}

impl Context {
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    pub fn note(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client error");
        let text = if reason.is_empty() { error.to_string() } else { reason.to_owned() };
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }
}

impl ClientContext for Context {
    // librdkafka says everything that matters a second time, as an error of the call it spoils: those are logged where they
    // are handled.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
    }
    fn error(&self, error: KafkaError, reason: &str) {
        self.note(&error, reason);
    }
}

impl ConsumerContext for Context {}

pub(super) type Consumer = BaseConsumer<Context>;

/// One cluster as one configuration sees it.
pub(super) struct Client {
    pub config: KafkaConfig,
    /// The configuration's `name`: prefix of transactional ids.
    pub name: String,
    /// Asks for metadata and watermarks; never assigned anything.
    observer: Consumer,
}

impl Client {
    pub fn new(config: &KafkaConfig, name: &str) -> Result<Self> {
        let context = Context::default();
        let properties = properties(config, &[], &[("isolation.level", "read_committed")]);
        let observer =
            Consumer::from_config_and_context(&properties, context).map_err(|e| error::creation(e, &config.brokers))?;
        Ok(Self { config: config.clone(), name: name.to_owned(), observer })
    }

    /// Properties of a client: ours that can be overridden, then the user's, then those that correctness rests on.
    pub fn properties(&self, defaults: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
        properties(&self.config, defaults, fixed)
    }

    pub fn doing<'a>(&'a self, what: &'a str) -> Doing<'a> {
        Doing { what, brokers: &self.config.brokers, topic: None, cause: self.observer.client().context().last_error() }
    }

    /// Serves the observer's own events (log lines, broker errors), so that they do not pile up and can be named.
    fn serve(&self) {
        while self.observer.poll(Duration::ZERO).is_some() {}
    }

    /// Topics whose name starts with `prefix`, each with its partitions, those without a leader left out. Blocks.
    ///
    /// Asks for all topics: asking for one by name creates it on brokers that create topics on demand.
    pub fn topics(&self, prefix: &str) -> Result<Vec<(String, Vec<i32>)>> {
        let metadata = self.observer.fetch_metadata(None, REQUEST_TIMEOUT);
        self.serve();
        let metadata = metadata.map_err(|e| error::classify(e, self.doing("reading the topics' metadata")))?;
        Ok(metadata
            .topics()
            .iter()
            .filter(|topic| topic.name().starts_with(prefix) && topic.error().is_none())
            .map(|topic| {
                let mut partitions: Vec<i32> =
                    topic.partitions().iter().filter(|p| p.leader() >= 0).map(|p| p.id()).collect();
                partitions.sort_unstable();
                (topic.name().to_owned(), partitions)
            })
            .collect())
    }

    /// A topic's partitions; None: there is no such topic. Blocks.
    pub fn topic(&self, name: &str) -> Result<Option<Vec<i32>>> {
        Ok(self.topics(name)?.into_iter().find(|(topic, _)| topic == name).map(|(_, partitions)| partitions))
    }

    /// First offset and committed end (the last stable offset) of a partition. Blocks.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let mut tries = 0;
        loop {
            let answer = self.observer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT);
            self.serve();
            match answer.map_err(|e| error::classify(e, self.doing("reading the topic's bounds").topic(topic))) {
                // A topic that has just been made has no leader for a moment.
                Err(e) if e.is_retryable() && tries < LEADER_TRIES => {
                    tries += 1;
                    std::thread::sleep(LEADER_WAIT);
                }
                settled => return settled,
            }
        }
    }

    /// A consumer that is in no group: it assigns itself partitions and offsets, and stores none.
    pub fn consumer(&self) -> Result<Arc<Consumer>> {
        let properties = self.properties(
            &[
                // Fetched and not yet read, per partition: a reader of hundreds of partitions stays in bounds, and a fetch
                // (1 MiB) still arrives before the one before it is read.
                ("queued.max.messages.kbytes", "2048"),
                // The default of a second would make every full queue a pause of a second.
                ("fetch.queue.backoff.ms", "10"),
                // A broker answers at once when there is something; this is how long it holds an idle request.
                ("fetch.wait.max.ms", "500"),
                // A row can be 64 MiB (see topics.rs), a fetch answer several rows.
                ("receive.message.max.bytes", "268435456"),
            ],
            &[
                // librdkafka wants a group for manual assignment too; nothing is ever committed under it.
                ("group.id", "lakeward-reader"),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("isolation.level", "read_committed"),
                ("auto.offset.reset", "error"),
                ("enable.partition.eof", "true"),
                ("allow.auto.create.topics", "false"),
            ],
        );
        let consumer = Consumer::from_config_and_context(&properties, Context::default())
            .map_err(|e| error::creation(e, &self.config.brokers))?;
        Ok(Arc::new(consumer))
    }
}

fn properties(config: &KafkaConfig, defaults: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
    let mut properties = ClientConfig::new();
    properties.set("client.id", "lakeward");
    for (key, value) in defaults {
        properties.set(*key, *value);
    }
    for (key, value) in &config.client {
        properties.set(key, value.expose());
    }
    properties.set("bootstrap.servers", &config.brokers);
    for (key, value) in fixed {
        properties.set(*key, *value);
    }
    properties
}

/// Destroying a client joins its threads and can wait for the broker: not on a thread that serves others.
pub(super) fn drop_elsewhere<T: Send + 'static>(value: T) {
    std::thread::spawn(move || drop(value));
}
