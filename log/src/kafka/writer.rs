//! The one living writer of a source: blocks and a draft -> one Kafka transaction, its checkpoint record last.
//!
//! `begin -> schemas, data -> delivery reports (end offsets) -> checkpoint record -> commit`
//!
//! The checkpoint names the end offsets of the data before it in the same transaction, so the data's delivery reports are
//! waited for first: one more round trip per append, none per record.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lakeward_event::codec::HEADER;
use lakeward_event::{Checkpoint, CheckpointDraft, Ends, TableSchema, names};
use lakeward_runtime::crash_point;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::checkpoints;
use super::client::{Client, Context, LEADER_PATIENCE, blocking, drop_elsewhere};
use super::control::{PARTITION, schema_key};
use super::error;
use super::topics::{MAX_RECORD_BYTES, Purpose, Topics, is_data};
use crate::{COMPLETE_EVERY, Error, Result, TopicBlock, Writer};

/// Fencing an old writer waits for what it was committing.
const INIT_TIMEOUT: Duration = Duration::from_secs(60);
/// For a transaction's records, and again for its commit. Past it the broker has aborted the transaction anyway
/// (`transaction.timeout.ms`).
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60);
/// After which the broker ends a transaction by itself, where [log.client] does not say otherwise.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// A failed append is settled by the next writer in any case; this only spares readers the wait.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
/// While records are on their way and no report has come.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Records between two looks at the delivery reports, so that these do not pile up.
const RECORDS_PER_POLL: usize = 4096;

/// Where the delivery reports of one partition meet.
#[derive(Debug, Default)]
struct Delivered {
    /// Offset after the last delivered record of this append; 0: none.
    end: AtomicI64,
}

/// The first record that was not delivered.
#[derive(Debug, Clone)]
struct Failure {
    code: Code,
    topic: String,
    partition: i32,
}

/// Delivery reports of a producer. They come on the thread that polls, which is the one that sends.
#[derive(Debug, Default)]
struct Deliveries {
    context: Context,
    has_failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        self.context.note(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Delivered>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivered: Arc<Delivered>) {
        match result {
            Ok(message) => {
                delivered.end.fetch_max(message.offset() + 1, Ordering::Relaxed);
            }
            Err((error, message)) => {
                self.has_failed.store(true, Ordering::Relaxed);
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                // The first says why; those after it are purged because of it.
                failure.get_or_insert_with(|| Failure {
                    code,
                    topic: message.topic().to_owned(),
                    partition: message.partition(),
                });
            }
        }
    }
}

type Producer = BaseProducer<Deliveries>;

/// What a writer knows; lives on a blocking thread during an append.
struct State {
    client: Arc<Client>,
    source: String,
    producer: Producer,
    last_id: i64,
    /// End of every partition of every data topic.
    ends: Ends,
    /// Checkpoints to go until the next complete one.
    until_complete: u32,
    /// By topic and partition.
    deliveries: BTreeMap<String, Vec<Arc<Delivered>>>,
    /// Topics that are not what checkpoints say, and why.
    lost: BTreeMap<String, Lost>,
    /// When the transaction under way began.
    begun: Instant,
    transaction_timeout: Duration,
}

/// A topic that somebody else deleted, or deleted and made again: new records in it would have offsets that the lake takes for
/// ones it holds.
#[derive(Debug)]
enum Lost {
    Topic,
    Records { partition: i32, end: i64, found: i64 },
}

impl Lost {
    fn error(&self, topic: &str) -> Error {
        let error = Error::human(
            "a topic of Lakeward's was deleted, or cut off at its end, behind its back: what the lake had not read of it is \
             gone, and the lake would take new records for ones that it holds. Bring the topic back, or begin the source \
             anew (docs/log.md, Beginning a source anew)",
        )
        .with("topic", topic);
        match self {
            Self::Topic => error,
            Self::Records { partition, end, found } => {
                error.with("partition", partition).with("expected_end_offset", end).with("end_offset", found)
            }
        }
    }
}

pub(super) struct KafkaWriter {
    topics: Arc<Topics>,
    client: Arc<Client>,
    source: String,
    /// None: an append failed or was abandoned, and whether it happened only a new writer can tell.
    state: Option<State>,
}

impl KafkaWriter {
    /// Fences older writers, settles what they left, and only then reads the last checkpoint.
    pub async fn open(client: Arc<Client>, topics: Arc<Topics>, source: &str) -> Result<(Self, Option<Checkpoint>)> {
        topics.ensure(&names::checkpoints_topic(source), Purpose::Checkpoints).await?;
        topics.ensure(&names::schemas_topic(source), Purpose::Schemas).await?;
        topics.ensure(&names::signals_topic(source), Purpose::Signals).await?;
        let (state, last) = {
            let (client, source) = (client.clone(), source.to_owned());
            blocking(move || State::open(client, source)).await?
        };
        Ok((Self { topics, client, source: source.to_owned(), state: Some(state) }, last))
    }

    fn spent(&self) -> Error {
        Error::retry("the log's writer is spent, since its last append failed: open a new one")
            .with("source", &self.source)
    }
}

#[async_trait]
impl Writer for KafkaWriter {
    async fn ensure_topic(&mut self, topic: &str) -> Result<i32> {
        let Some(state) = &self.state else { return Err(self.spent()) };
        if let Some(lost) = state.lost.get(topic) {
            return Err(lost.error(topic).with("source", &self.source));
        }
        if let Some(partitions) = state.deliveries.get(topic) {
            return i32::try_from(partitions.len()).map_err(|e| Error::bug("too many partitions").source(e));
        }
        let prefix = format!("{}.", self.source);
        if !topic.starts_with(&prefix) || !is_data(&self.source, topic) {
            return Err(Error::bug("not a data topic of the source").with("source", &self.source).with("topic", topic));
        }
        let count = self.topics.ensure(topic, Purpose::Data).await?;
        let ends = {
            let (client, topic) = (self.client.clone(), topic.to_owned());
            blocking(move || (0..count).map(|p| Ok((p, client.watermarks(&topic, p)?.1))).collect::<Result<_>>())
                .await?
        };
        let Some(state) = &mut self.state else { return Err(self.spent()) };
        state.add_topic(topic, ends);
        Ok(count)
    }

    async fn append(
        &mut self,
        schemas: &[Arc<TableSchema>],
        blocks: Vec<TopicBlock>,
        draft: CheckpointDraft,
    ) -> Result<Checkpoint> {
        for block in &blocks {
            self.ensure_topic(&block.topic).await?;
        }
        let Some(mut state) = self.state.take() else { return Err(self.spent()) };
        let schemas = schemas.to_vec();
        let (state, checkpoint) = blocking(move || match state.append(&schemas, &blocks, draft) {
            Ok(checkpoint) => Ok((state, checkpoint)),
            Err(error) => {
                let _ = state.producer.abort_transaction(ABORT_TIMEOUT);
                Err(error)
            }
        })
        .await
        .map_err(|e: Error| e.with("source", &self.source))?;
        self.state = Some(state);
        Ok(checkpoint)
    }
}

impl Drop for KafkaWriter {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            drop_elsewhere(state);
        }
    }
}

impl State {
    fn open(client: Arc<Client>, source: String) -> Result<(Self, Option<Checkpoint>)> {
        let transactional_id = format!("{}.{source}", client.name);
        let properties = client.properties(
            &[
                ("compression.type", "zstd"),
                // librdkafka's default, 3, takes twice the CPU for a few percent fewer bytes.
                ("compression.level", "1"),
                // Records come in blocks of thousands, faster than they leave: batches fill by themselves, and a small append
                // hardly waits.
                ("linger.ms", "2"),
                ("batch.size", "1000000"),
                ("batch.num.messages", "100000"),
                // Copies of records on their way, at most: the blocks themselves are the caller's.
                ("queue.buffering.max.kbytes", "131072"),
                ("queue.buffering.max.messages", "1000000"),
                ("message.max.bytes", MAX_RECORD_BYTES),
                ("transaction.timeout.ms", &TRANSACTION_TIMEOUT.as_millis().to_string()),
            ],
            &[("transactional.id", transactional_id.as_str()), ("enable.idempotence", "true"), ("acks", "all")],
        );
        let producer = Producer::from_config_and_context(&properties, Deliveries::default())
            .map_err(|e| error::creation(e, &client.config))?;
        // An older writer's transaction that touched a partition without a leader cannot be ended, and would be waited for in
        // silence.
        client.topics(&format!("{source}."))?;
        if let Err(error) = producer.init_transactions(INIT_TIMEOUT) {
            producer.poll(Duration::ZERO);
            let mut doing = client.doing("fencing older writers");
            doing.cause = producer.context().context.last_error().map(error::Cause::in_passing).or(doing.cause);
            return Err(error::classify(error, doing).with("source", &source));
        }
        // From here on no older writer can commit, so what is last now stays last.
        let recovered = checkpoints::recover(&client, &names::checkpoints_topic(&source))?;
        let timeout = client.config.client.get("transaction.timeout.ms").and_then(|ms| ms.expose().parse().ok());
        let mut state = Self {
            client: client.clone(),
            source: source.clone(),
            producer,
            last_id: recovered.last.as_ref().map_or(0, |checkpoint| checkpoint.id),
            // Also of topics that are lost: whoever reads the checkpoints must find out.
            ends: recovered.ends,
            until_complete: 0,
            deliveries: BTreeMap::new(),
            lost: BTreeMap::new(),
            begun: Instant::now(),
            transaction_timeout: timeout.map_or(TRANSACTION_TIMEOUT, Duration::from_millis),
        };
        let found: BTreeMap<String, Vec<i32>> = client.topics(&format!("{source}."))?.into_iter().collect();
        for (topic, ends) in &state.ends {
            if !found.contains_key(topic) && ends.values().any(|end| *end > 0) {
                state.lost.insert(topic.clone(), Lost::Topic);
            }
        }
        for (topic, partitions) in found {
            if !is_data(&source, &topic) {
                continue;
            }
            let mut ends = BTreeMap::new();
            for partition in partitions {
                let (_, high) = client.watermarks(&topic, partition)?;
                let known = state.ends.get(&topic).and_then(|known| known.get(&partition)).copied();
                if let Some(end) = known.filter(|end| *end > high) {
                    state.lost.insert(topic.clone(), Lost::Records { partition, end, found: high });
                }
                // The watermark counts markers and aborted records too; the checkpoints know the last record.
                ends.insert(partition, known.unwrap_or(high));
            }
            state.add_topic(&topic, ends);
        }
        Ok((state, recovered.last))
    }

    fn add_topic(&mut self, topic: &str, ends: BTreeMap<i32, i64>) {
        self.deliveries.insert(topic.to_owned(), ends.iter().map(|_| Arc::default()).collect());
        self.ends.insert(topic.to_owned(), ends);
    }

    fn append(
        &mut self,
        schemas: &[Arc<TableSchema>],
        blocks: &[TopicBlock],
        draft: CheckpointDraft,
    ) -> Result<Checkpoint> {
        let begun = Instant::now();
        self.begun = begun;
        let deadline = begun + COMMIT_TIMEOUT;
        self.producer.begin_transaction().map_err(|e| self.failed(e, "beginning a transaction"))?;
        crash_point!("log.append.begun");

        let untracked = Arc::new(Delivered::default());
        let schemas_topic = names::schemas_topic(&self.source);
        for schema in schemas {
            let value = schema.to_record().map_err(|e| Error::bug("a schema cannot be written").source(e))?;
            let key = schema_key(schema);
            self.send(&schemas_topic, PARTITION, &untracked, Some(&key), Some(&value), None, deadline)?;
        }
        for block in blocks {
            self.send_block(block, deadline)?;
        }
        self.flush("sending records", deadline)?;
        crash_point!("log.append.data_sent");

        let checkpoint = self.checkpoint(draft)?;
        let value =
            serde_json::to_vec(&checkpoint).map_err(|e| Error::bug("a checkpoint cannot be written").source(e))?;
        let topic = names::checkpoints_topic(&self.source);
        self.send(&topic, PARTITION, &untracked, None, Some(&value), None, deadline)?;
        crash_point!("log.append.checkpoint_sent");
        self.flush("sending the checkpoint", deadline)?;
        crash_point!("log.append.before_commit");
        self.producer.commit_transaction(COMMIT_TIMEOUT).map_err(|e| self.failed(e, "committing a transaction"))?;
        crash_point!("log.append.committed");

        self.measure(blocks, begun);
        self.last_id = checkpoint.id;
        self.until_complete = if checkpoint.complete { COMPLETE_EVERY - 1 } else { self.until_complete - 1 };
        Ok(checkpoint)
    }

    fn measure(&self, blocks: &[TopicBlock], begun: Instant) {
        let count = |total: usize| u64::try_from(total).unwrap_or(u64::MAX);
        let source = || self.source.clone();
        metrics::histogram!("lakeward_log_append_seconds", "source" => source()).record(begun.elapsed());
        metrics::counter!("lakeward_log_records_total", "source" => source())
            .increment(count(blocks.iter().map(|b| b.block.len()).sum()));
        metrics::counter!("lakeward_log_bytes_total", "source" => source())
            .increment(count(blocks.iter().map(|b| b.block.bytes()).sum()));
    }

    fn send_block(&self, block: &TopicBlock, deadline: Instant) -> Result<()> {
        let Some(deliveries) = self.deliveries.get(&block.topic) else {
            return Err(Error::bug("a block for a topic that was not ensured").with("topic", &block.topic));
        };
        for (count, record) in block.block.iter().enumerate() {
            let delivered = usize::try_from(record.partition).ok().and_then(|partition| deliveries.get(partition));
            let Some(delivered) = delivered else {
                return Err(Error::bug("a record for a partition that the topic does not have")
                    .with("topic", &block.topic)
                    .with("partition", record.partition));
            };
            self.send(&block.topic, record.partition, delivered, record.key, record.value, record.header, deadline)?;
            if count % RECORDS_PER_POLL == RECORDS_PER_POLL - 1 {
                self.producer.poll(Duration::ZERO);
                self.check_deliveries("sending records")?;
            }
        }
        Ok(())
    }

    /// Hands one record to the client, which copies it; waits while its buffer is full.
    #[allow(clippy::too_many_arguments)] // The parts of a record, each borrowed: a struct would only name them again.
    fn send(
        &self,
        topic: &str,
        partition: i32,
        delivered: &Arc<Delivered>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        header: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<()> {
        let mut record = BaseRecord::<[u8], [u8], Arc<Delivered>>::with_opaque_to(topic, delivered.clone());
        record.partition = Some(partition);
        record.key = key;
        record.payload = value;
        record.headers =
            header.map(|value| OwnedHeaders::new_with_capacity(1).insert(Header { key: HEADER, value: Some(value) }));
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                    self.serve();
                    self.check_deliveries("sending records")?;
                    if Instant::now() > deadline {
                        return Err(
                            self.failed(KafkaError::MessageProduction(Code::MessageTimedOut), "sending records")
                        );
                    }
                    record = back;
                }
                Err((error, back)) => {
                    return Err(error::classify(
                        error,
                        self.doing("sending a record").topic(back.topic).partition(partition),
                    )
                    .with("bytes", value.map_or(0, <[u8]>::len)));
                }
            }
        }
    }

    /// Takes a batch of delivery reports, or waits a little. rdkafka's `poll` stays until its time-out has passed, whatever
    /// comes, and spins through the last millisecond of it: with a time-out it would take more CPU than the sending.
    fn serve(&self) {
        let before = self.producer.in_flight_count();
        self.producer.poll(Duration::ZERO);
        if self.producer.in_flight_count() == before {
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until everything sent is delivered. rdkafka's own `flush` looks every 100 ms only.
    fn flush(&self, what: &str, deadline: Instant) -> Result<()> {
        let (mut in_flight, mut moved) = (self.producer.in_flight_count(), Instant::now());
        while in_flight > 0 {
            self.serve();
            self.check_deliveries(what)?;
            let now_in_flight = self.producer.in_flight_count();
            if now_in_flight != in_flight {
                (in_flight, moved) = (now_in_flight, Instant::now());
            } else if moved.elapsed() > LEADER_PATIENCE {
                // The client waits for a leader as for a slow broker, and says nothing.
                if let Some(error) = self.client.without_leader(|topic| self.is_ours(topic)) {
                    return Err(error);
                }
                moved = Instant::now();
            }
            if Instant::now() > deadline {
                return Err(self.failed(KafkaError::MessageProduction(Code::MessageTimedOut), what));
            }
        }
        self.check_deliveries(what)
    }

    fn is_ours(&self, topic: &str) -> bool {
        topic.strip_prefix(&self.source).is_some_and(|rest| rest.starts_with('.'))
    }

    fn check_deliveries(&self, what: &str) -> Result<()> {
        let context = self.producer.context();
        if !context.has_failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let failure = context.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(Failure { code, topic, partition }) = failure else { return Ok(()) };
        // Being fenced shows in the first place as records that were not delivered.
        match self.fatal() {
            Some(error) => Err(error),
            None => Err(self.classify_code(code, self.doing(what).topic(&topic).partition(partition))),
        }
    }

    /// Completes the draft, and moves `ends` on to what was delivered.
    fn checkpoint(&mut self, draft: CheckpointDraft) -> Result<Checkpoint> {
        let mut touched = Ends::new();
        for (topic, deliveries) in &self.deliveries {
            for (partition, delivered) in (0..).zip(deliveries) {
                let end = delivered.end.swap(0, Ordering::Relaxed);
                if end > 0 {
                    touched.entry(topic.clone()).or_default().insert(partition, end);
                }
            }
        }
        for (topic, partitions) in &touched {
            let known = self.ends.entry(topic.clone()).or_default();
            for (&partition, &end) in partitions {
                // Offsets grow. Where they do not, the topic was made again since the append before.
                if let Some(expected) = known.insert(partition, end).filter(|known| end <= *known) {
                    return Err(Lost::Records { partition, end: expected, found: end }.error(topic));
                }
            }
        }
        let complete = self.until_complete == 0;
        crate::checkpoint(draft, self.last_id, if complete { self.ends.clone() } else { touched }, complete)
    }

    fn doing<'a>(&'a self, what: &'a str) -> error::Doing<'a> {
        let mut doing = self.client.doing(what);
        doing.cause = self.producer.context().context.last_error().map(error::Cause::in_passing).or(doing.cause);
        doing
    }

    fn failed(&self, error: KafkaError, what: &str) -> Error {
        if let Some(error) = self.fatal() {
            return error;
        }
        match error.rdkafka_error_code() {
            Some(code) => self.classify_code(code, self.doing(what)).source(error),
            None => error::classify(error, self.doing(what)),
        }
    }

    /// Kafka ends a transaction that stays open for too long, and from then on treats its producer as it does a replaced one. No
    /// other connector need be there: the next writer finds out what is last, and goes on.
    fn classify_code(&self, code: Code, doing: error::Doing<'_>) -> Error {
        let ended = error::is_fenced(code) || matches!(code, Code::InvalidTransactionalState | Code::State);
        if ended && self.begun.elapsed() >= self.transaction_timeout {
            return Error::retry(
                "an append took longer than transaction.timeout.ms, so Kafka ended its transaction: nothing of it is \
                 there, and it will be made again. If this comes again and again, the brokers are overloaded, or \
                 transaction.timeout.ms in [log.client] is too short",
            )
            .with("brokers", doing.brokers)
            .with("seconds", self.begun.elapsed().as_secs());
        }
        error::classify_code(code, doing)
    }

    /// What ended the producer for good, if anything did: usually a newer writer.
    fn fatal(&self) -> Option<Error> {
        let (code, reason) = self.producer.client().fatal_error()?;
        Some(self.classify_code(code, self.client.doing("appending")).with("reason", reason))
    }
}
