//! Settings and calls that every client of a Kafka cluster shares: `[log]` -> librdkafka properties -> clients; metadata and
//! watermarks of the cluster -> topics, writer and readers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lakeward_runtime::config::KafkaConfig;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::error::{self, Cause, Doing};
pub(super) use crate::blocking::blocking;
use crate::{Error, Result};

/// How long one question to the cluster (metadata, watermarks) may take. A broker that restarts is back within it more often
/// than not; a caller that gets the error tries again anyway.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and how often, a partition is asked for that has no leader: one of a topic just made, or whose broker starts.
pub(super) const LEADER_PATIENCE: Duration = Duration::from_secs(5);
const LEADER_WAIT: Duration = Duration::from_millis(100);
/// Partitions, and further topics, that are named of those without a leader: one broker can have been that of thousands.
const LEADERLESS_NAMED: usize = 8;
/// How often metadata is asked for when there is no answer and no connection said why.
const UNEXPLAINED_TRIES: u32 = 3;

/// More than the connections say while one question runs out of time.
const EVENTS_OF_A_FAILURE: usize = 1000;
/// What a broker connection said some time ago says nothing about what fails now.
const CAUSE_LIFE: Duration = Duration::from_secs(60);

/// What a client's broker connections said last, so that a time-out can name its cause.
#[derive(Debug, Default, Clone)]
pub(super) struct Context {
    last_error: Arc<Mutex<Option<(Instant, Cause)>>>,
}

impl Context {
    pub fn last_error(&self) -> Option<Cause> {
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() < CAUSE_LIFE).map(|(_, cause)| cause.clone())
    }
    pub fn note(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client error");
        let text = if reason.is_empty() { error.to_string() } else { reason.to_owned() };
        let cause = Cause { code: error.rdkafka_error_code(), text };
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers are down" follows what each of them said, and says less.
        if cause.code != Some(RDKafkaErrorCode::AllBrokersDown) || last.is_none() {
            *last = Some((Instant::now(), cause));
        }
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

/// A topic of the cluster.
struct Found {
    name: String,
    /// By id, and whether it has a leader; None: the brokers cannot tell now.
    partitions: Option<Vec<(i32, bool)>>,
}

impl Found {
    fn is_led(&self) -> bool {
        self.partitions.as_ref().is_some_and(|partitions| partitions.iter().all(|(_, led)| *led))
    }
}

/// One cluster as one configuration sees it.
pub(super) struct Client {
    pub config: KafkaConfig,
    /// The configuration's `name`: prefix of transactional ids.
    pub name: String,
    /// Asks for metadata and watermarks; never assigned anything.
    observer: Consumer,
    /// Whether the cluster has: then the settings are right, and what fails later is a broker's doing.
    has_answered: AtomicBool,
}

impl Client {
    pub fn new(config: &KafkaConfig, name: &str) -> Result<Self> {
        let context = Context::default();
        let properties = properties(config, &[], &[("isolation.level", "read_committed")]);
        let observer =
            Consumer::from_config_and_context(&properties, context).map_err(|e| error::creation(e, config))?;
        Ok(Self { config: config.clone(), name: name.to_owned(), observer, has_answered: AtomicBool::new(false) })
    }

    /// Properties of a client: ours that can be overridden, then the user's, then those that correctness rests on.
    pub fn properties(&self, defaults: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
        properties(&self.config, defaults, fixed)
    }

    pub fn doing<'a>(&'a self, what: &'a str) -> Doing<'a> {
        Doing {
            what,
            brokers: &self.config.brokers,
            topic: None,
            partition: None,
            cause: self.observer.client().context().last_error().map(|cause| {
                match self.has_answered.load(Ordering::Relaxed) {
                    true => cause.in_passing(),
                    false => cause,
                }
            }),
        }
    }

    /// Serves the observer's own events (log lines, broker errors), so that they do not pile up, and so that an answer that failed
    /// can name its cause. rdkafka's `poll` takes one event at a time, and tells a log line as if there were none.
    fn serve<T>(&self, answer: &KafkaResult<T>) {
        if answer.is_ok() {
            self.has_answered.store(true, Ordering::Relaxed);
        }
        let polls = if answer.is_err() { EVENTS_OF_A_FAILURE } else { 1 };
        for _ in 0..polls {
            let _ = self.observer.poll(Duration::ZERO);
        }
    }

    /// Topics whose name starts with `prefix`, each with its partitions. Blocks.
    pub fn topics(&self, prefix: &str) -> Result<Vec<(String, Vec<i32>)>> {
        self.topics_where(|name| name.starts_with(prefix))
    }

    /// A topic's partitions; None: there is no such topic. Blocks.
    pub fn topic(&self, name: &str) -> Result<Option<Vec<i32>>> {
        Ok(self.topics_where(|topic| topic == name)?.pop().map(|(_, partitions)| partitions))
    }

    /// The wanted topics that there are. One without a leader is waited for, and an error in the end: left out it would pass for
    /// one that does not exist, and its records for ones that were never written. Blocks.
    pub fn topics_where(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Vec<i32>)>> {
        let found = self.led(&wanted)?;
        if let Some(error) = self.leaderless(&found) {
            return Err(error);
        }
        let partitions = |topic: Found| topic.partitions.unwrap_or_default().into_iter().map(|(id, _)| id).collect();
        Ok(found.into_iter().map(|topic| (topic.name.clone(), partitions(topic))).collect())
    }

    /// The error of those wanted topics that have no leader, for a while by now; None: all have one, or nobody can tell. Blocks.
    pub fn without_leader(&self, wanted: impl Fn(&str) -> bool) -> Option<Error> {
        self.leaderless(&self.led(&wanted).ok()?)
    }

    /// The wanted topics, as soon as all have leaders, or when that was waited for long enough.
    fn led(&self, wanted: &impl Fn(&str) -> bool) -> Result<Vec<Found>> {
        let begun = Instant::now();
        loop {
            let found = self.found(wanted)?;
            if found.iter().all(Found::is_led) || begun.elapsed() > LEADER_PATIENCE {
                return Ok(found);
            }
            std::thread::sleep(LEADER_WAIT);
        }
    }

    fn leaderless(&self, found: &[Found]) -> Option<Error> {
        let mut leaderless = found.iter().filter(|topic| !topic.is_led());
        let topic = leaderless.next()?;
        let error = Error::retry("a topic's partitions have no leader now: is a broker away?")
            .with("brokers", &self.config.brokers)
            .with("topic", &topic.name);
        let of_topic = topic.partitions.iter().flatten().filter(|(_, led)| !led);
        let ids: Vec<String> = of_topic.take(LEADERLESS_NAMED).map(|(id, _)| id.to_string()).collect();
        let error = if ids.is_empty() { error } else { error.with("partitions", ids.join(" ")) };
        let others: Vec<&str> = leaderless.take(LEADERLESS_NAMED).map(|topic| topic.name.as_str()).collect();
        Some(if others.is_empty() { error } else { error.with("others", others.join(" ")) })
    }

    /// Asks for all topics: asking for one by name creates it on brokers that create topics on demand.
    fn found(&self, wanted: &impl Fn(&str) -> bool) -> Result<Vec<Found>> {
        let mut asked = 0;
        let metadata = loop {
            let answer = self.observer.fetch_metadata(None, REQUEST_TIMEOUT);
            self.serve(&answer);
            asked += 1;
            match answer {
                Ok(metadata) => break metadata,
                Err(error) => {
                    let doing = self.doing("reading the topics' metadata");
                    // Brokers that cannot be reached are told of. No answer and no reason is one that is very busy.
                    let unexplained = doing.cause.is_none();
                    let error = error::classify(error, doing);
                    if asked == UNEXPLAINED_TRIES || !unexplained || !error.is_retryable() {
                        return Err(error);
                    }
                }
            }
        };
        let topics = metadata.topics().iter().filter(|topic| wanted(topic.name())).map(|topic| {
            let partitions = topic.error().is_none().then(|| {
                let mut partitions: Vec<_> = topic.partitions().iter().map(|p| (p.id(), p.leader() >= 0)).collect();
                partitions.sort_unstable();
                partitions
            });
            Found { name: topic.name().to_owned(), partitions }
        });
        Ok(topics.collect())
    }

    /// First offset and committed end (the last stable offset) of a partition. Blocks.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let begun = Instant::now();
        loop {
            let answer = self.observer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT);
            self.serve(&answer);
            let error = match answer {
                Ok(bounds) => return Ok(bounds),
                // The client says so too of a topic that it has not heard of yet: the cluster's own list decides.
                Err(error) if error::is_missing(&error) && self.has(topic, partition)? => {
                    Error::retry("the client does not know a partition yet that the brokers have")
                        .with("topic", topic)
                        .with("partition", partition)
                        .source(error)
                }
                Err(error) => {
                    let doing = self.doing("reading the topic's bounds").topic(topic).partition(partition);
                    error::classify(error, doing)
                }
            };
            if !error.is_retryable() || begun.elapsed() > LEADER_PATIENCE {
                return Err(error);
            }
            std::thread::sleep(LEADER_WAIT);
        }
    }

    /// Whether the brokers have the partition. Blocks.
    pub fn has(&self, topic: &str, partition: i32) -> Result<bool> {
        Ok(self.topic(topic)?.is_some_and(|partitions| partitions.contains(&partition)))
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
            .map_err(|e| error::creation(e, &self.config))?;
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
