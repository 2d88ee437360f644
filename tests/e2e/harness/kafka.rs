//! The log from outside: records as any other consumer of the topics gets them.

use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use super::{PATIENCE, block_on};

const TIMEOUT: Duration = Duration::from_secs(60);

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// A record of a data topic.
#[derive(Debug)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Second field of the header `lakeward`: the publisher's counter.
    pub sequence: i64,
    pub key: Value,
    /// The envelope.
    pub value: Value,
}

impl Record {
    /// c, u, d, r or t.
    pub fn op(&self) -> &str {
        self.value["op"].as_str().expect("an envelope has `op`")
    }
}

/// All committed records of the data topics of a source, in the order of topic, partition and offset. Of the `json` codec.
pub fn stream_records(brokers: &str, source: &str) -> Vec<Record> {
    let mut records = Vec::new();
    each_record(brokers, source, |message, header| {
        let sequence = header.split(',').nth(1).and_then(|s| s.parse().ok());
        records.push(Record {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            sequence: sequence.unwrap_or_else(|| panic!("a header with a sequence: {header}")),
            key: message.key().map(|k| serde_json::from_slice(k).unwrap()).unwrap_or_default(),
            value: serde_json::from_slice(message.payload().expect("a value")).unwrap(),
        });
    });
    records.sort_by(|a, b| (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset)));
    records
}

/// Of every committed record of a source, whatever its codec: topic, and header `lakeward`.
pub fn record_headers(brokers: &str, source: &str) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    each_record(brokers, source, |message, header| headers.push((message.topic().to_owned(), header.to_owned())));
    headers
}

/// Committed records of a source whose value, whatever its codec, begins so.
pub fn records_beginning(brokers: &str, source: &str, bytes: &[u8]) -> usize {
    let mut count = 0;
    each_record(brokers, source, |message, _| {
        count += usize::from(message.payload().is_some_and(|value| value.starts_with(bytes)))
    });
    count
}

fn each_record(brokers: &str, source: &str, mut take: impl FnMut(&BorrowedMessage<'_>, &str)) {
    let consumer: BaseConsumer = client(brokers)
        .set("group.id", "nobody")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(None, TIMEOUT).unwrap();
    let prefix = format!("{source}.");
    let mut partitions = TopicPartitionList::new();
    for topic in metadata.topics() {
        if topic.name().starts_with(&prefix) && !topic.name().starts_with(&format!("{prefix}__")) {
            for partition in topic.partitions() {
                partitions.add_partition_offset(topic.name(), partition.id(), Offset::Beginning).unwrap();
            }
        }
    }
    assert!(partitions.count() > 0, "{source} has topics");
    consumer.assign(&partitions).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut ended = 0;
    while ended < partitions.count() {
        assert!(Instant::now() < deadline, "the end of {ended} of {} partitions is reached", partitions.count());
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("reading {source}: {error}"),
            Some(Ok(message)) => {
                let header = message.headers().and_then(|h| h.iter().find(|h| h.key == "lakeward")?.value);
                let header = std::str::from_utf8(header.expect("a record has the header `lakeward`")).unwrap();
                take(&message, header);
            }
        }
    }
}

/// Puts a record of somebody else's into a topic; its offset.
pub fn produce(brokers: &str, topic: &str, partition: i32, key: &[u8], value: &[u8]) -> i64 {
    let producer: FutureProducer = client(brokers).create().unwrap();
    let record = FutureRecord::to(topic).partition(partition).key(key).payload(value);
    block_on(producer.send(record, TIMEOUT)).map_err(|(error, _)| error).unwrap().offset
}

/// A record as another's connector writes it.
#[derive(Debug, Clone, Default)]
pub struct Foreign {
    pub topic: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Makes topics of one partition for others' records.
pub fn create_topics(brokers: &str, topics: &[String]) {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().unwrap();
    let topics: Vec<NewTopic<'_>> = topics.iter().map(|t| NewTopic::new(t, 1, TopicReplication::Fixed(1))).collect();
    for result in block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap() {
        result.unwrap();
    }
}

/// Produces others' records, in order.
pub fn produce_foreign(brokers: &str, records: &[Foreign]) {
    let producer: FutureProducer = client(brokers).set("enable.idempotence", "true").create().unwrap();
    let sent: Vec<_> = records
        .iter()
        .map(|record| {
            let mut headers = OwnedHeaders::new();
            for (key, value) in &record.headers {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let mut out = FutureRecord::<[u8], [u8]>::to(&record.topic).partition(0).headers(headers);
            out.key = record.key.as_deref();
            out.payload = record.value.as_deref();
            producer.send_result(out).map_err(|(error, _)| error).unwrap()
        })
        .collect();
    for one in sent {
        block_on(one).unwrap().map_err(|(error, _)| error).unwrap();
    }
}

/// The same with our header and no key, as a record of the `arrow` codec has it.
pub fn produce_with_header(brokers: &str, topic: &str, partition: i32, header: &[u8], value: &[u8]) -> i64 {
    let producer: FutureProducer = client(brokers).create().unwrap();
    let headers = OwnedHeaders::new().insert(Header { key: "lakeward", value: Some(header) });
    let record = FutureRecord::<(), _>::to(topic).partition(partition).headers(headers).payload(value);
    block_on(producer.send(record, TIMEOUT)).map_err(|(error, _)| error).unwrap().offset
}

/// Sets one of a topic's settings; the others go back to the broker's.
pub fn set_topic(brokers: &str, topic: &str, name: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
    for answer in block_on(admin.alter_configs([&change], &AdminOptions::new())).unwrap() {
        answer.unwrap();
    }
}

pub fn add_partitions(brokers: &str, topic: &str, total: usize) {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().unwrap();
    for answer in block_on(admin.create_partitions([&NewPartitions::new(topic, total)], &AdminOptions::new())).unwrap()
    {
        answer.unwrap();
    }
}

pub fn delete_topic(brokers: &str, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().unwrap();
    for answer in block_on(admin.delete_topics(&[topic], &AdminOptions::new())).unwrap() {
        answer.unwrap();
    }
}

/// The topics of a source.
pub fn topics_of(brokers: &str, source: &str) -> Vec<String> {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().unwrap();
    let metadata = admin.inner().fetch_metadata(None, TIMEOUT).unwrap();
    let topics = metadata.topics().iter().map(|topic| topic.name().to_owned());
    topics.filter(|topic| topic.strip_prefix(source).is_some_and(|rest| rest.starts_with('.'))).collect()
}

/// Deletes all topics of these sources; what cannot be deleted stays.
pub fn delete_topics(brokers: &str, sources: &[String]) {
    let deleted = || -> Result<(), KafkaError> {
        let admin: AdminClient<DefaultClientContext> = client(brokers).set("log_level", "0").create()?;
        let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(5))?;
        let ours = |topic: &str| {
            sources.iter().any(|s| topic.strip_prefix(s.as_str()).is_some_and(|rest| rest.starts_with('.')))
        };
        let topics: Vec<&str> = metadata.topics().iter().map(|t| t.name()).filter(|t| ours(t)).collect();
        if !topics.is_empty() {
            for result in block_on(admin.delete_topics(&topics, &AdminOptions::new()))? {
                match result {
                    Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                    Err((topic, error)) => eprintln!("topic {topic} stays behind: {error}"),
                }
            }
        }
        Ok(())
    };
    if let Err(error) = deleted() {
        eprintln!("topics of {sources:?} stay behind: {error}");
    }
}
