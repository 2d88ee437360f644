//! What a log costs with each codec: `ChangeBatches -> encode -> append -> log -> read -> decode -> ChangeBatches`, beside
//! librdkafka's own producer and consumer on the same records, already encoded and never decoded.
//!
//! Needs Kafka (`LAKEWARD_TEST_KAFKA`). Wall time, and CPU time of this whole process, librdkafka's threads included; the broker
//! is another. The least of some rounds, for the machine may be busy. Appends are sized to take 200 ms, and one is encoded while the one before it is appended, as connectors do. One
//! line of JSON on stdout, for bench/run.py.
//!
//!   cargo bench -p lakeward-log --bench log -- [--changes N] [--rounds N]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use lakeward_event::codec::any::AnyDecoder;
use lakeward_event::codec::arrow::ArrowEncoder;
use lakeward_event::codec::avro::AvroEncoder;
use lakeward_event::codec::json::JsonEncoder;
use lakeward_event::codec::{Decoder, Encoder, HEADER, RecordBlock, RecordRef};
use lakeward_event::{ChangeBatch, CheckpointDraft, Ends, Position, TableSchema, names};
use lakeward_log::{Log, RecordVisitor, TopicBlock, Writer};
use lakeward_runtime::config::{Codec, EmbeddedConfig, KafkaConfig, LogConfig};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

#[path = "changes.rs"]
mod changes;
use changes::{BATCH, PARTITIONS};

/// How long an append is to take.
const APPEND: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, serde::Serialize)]
struct Cost {
    wall_s: f64,
    cpu_s: f64,
    /// Transactions, where there are any.
    appends: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|a| a == name);
        at.map_or(default, |at| arguments[at + 1].parse().unwrap_or_else(|_| panic!("{name} wants a number")))
    };
    let (changes, rounds) = (number("--changes", 1_000_000), number("--rounds", 3));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut results = BTreeMap::new();
    for _ in 0..rounds.max(1) {
        runtime.block_on(round(changes, &mut results));
    }
    let answer = serde_json::json!({
        "changes": changes, "partitions": PARTITIONS, "batch": BATCH, "rounds": rounds, "results": results,
    });
    println!("{answer}");
}

async fn round(count: usize, results: &mut BTreeMap<String, Cost>) {
    let folder = tempfile::tempdir().unwrap();
    let kafka = lakeward_log::open(&LogConfig::Kafka(kafka()), "bench").unwrap();
    for name in ["json", "avro", "arrow"] {
        let mut note = |what: &str, cost: Cost| {
            eprintln!("{what}: {:.2} s, {:.2} s of CPU, {} appends", cost.wall_s, cost.cpu_s, cost.appends);
            let least = results.entry(what.to_owned()).or_insert(cost);
            least.wall_s = least.wall_s.min(cost.wall_s);
            least.cpu_s = least.cpu_s.min(cost.cpu_s);
        };
        let source = fresh(name);
        let schema = changes::table(&source);
        let batches = Arc::new(changes::batches(&schema, count));
        note(&format!("kafka_{name}_publish"), publish(&kafka, &source, &schema, &batches, name).await);
        note(&format!("kafka_{name}_read"), read(&kafka, &source, &schema, count).await);

        let blocks = encoded(&batches, name);
        let raw = fresh("raw");
        note(&format!("librdkafka_{name}_produce"), tokio::task::block_in_place(|| produce(&raw, &blocks, None)));
        note(&format!("librdkafka_{name}_consume"), tokio::task::block_in_place(|| consume(&raw, &blocks)));
        let transactions = fresh("transactions");
        let cost = tokio::task::block_in_place(|| produce(&transactions, &blocks, Some(&transactions)));
        note(&format!("librdkafka_{name}_transactions"), cost);
        drop(blocks);
        delete(&[&raw, &transactions, &names::topic(&schema.table)]).await;

        let path = folder.path().join(format!("{name}.db"));
        let embedded = lakeward_log::open(&LogConfig::Embedded(embedded(&path)), "bench").unwrap();
        note(&format!("embedded_{name}_publish"), publish(&embedded, &source, &schema, &batches, name).await);
        note(&format!("embedded_{name}_read"), read(&embedded, &source, &schema, count).await);
    }
}

fn brokers() -> String {
    std::env::var("LAKEWARD_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:22092".into())
}

fn kafka() -> KafkaConfig {
    KafkaConfig {
        brokers: brokers(),
        codec: Codec::Json,
        partitions: PARTITIONS,
        replication: 1,
        retention: Duration::from_secs(3600),
        client: BTreeMap::new(),
    }
}

fn embedded(path: &Path) -> EmbeddedConfig {
    EmbeddedConfig { path: path.to_owned(), codec: Codec::Arrow, partitions: PARTITIONS }
}

fn fresh(what: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("bench_{what}_{:x}", now.as_micros())
}

/// Where the schemas of `avro` are.
static REGISTRY: LazyLock<Arc<changes::Registry>> = LazyLock::new(Arc::default);

fn encoder(codec: &str) -> Box<dyn Encoder> {
    match codec {
        "json" => Box::<JsonEncoder>::default(),
        "avro" => Box::new(AvroEncoder::new(REGISTRY.clone())),
        _ => Box::new(ArrowEncoder::new().unwrap()),
    }
}

/// CPU seconds of this process: user and system, from ticks of 10 ms.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |n: usize| fields[n].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

struct Watch(Instant, f64);

impl Watch {
    fn start() -> Self {
        Self(Instant::now(), cpu())
    }
    fn stop(self, appends: usize) -> Cost {
        Cost { wall_s: self.0.elapsed().as_secs_f64(), cpu_s: cpu() - self.1, appends }
    }
}

/// How many batches the next append takes, when the last one took so long.
fn next_size(size: usize, took: Duration) -> usize {
    let factor = APPEND.as_secs_f64() / took.as_secs_f64().max(0.001);
    ((size as f64 * factor.clamp(0.5, 2.0)).round() as usize).clamp(1, 64)
}

async fn publish(
    log: &Arc<dyn Log>,
    source: &str,
    schema: &Arc<TableSchema>,
    batches: &Arc<Vec<ChangeBatch>>,
    codec: &str,
) -> Cost {
    let (mut writer, _) = log.writer(source).await.unwrap();
    let topic = names::topic(&schema.table);
    writer.ensure_topic(&topic).await.unwrap();
    let watch = Watch::start();
    let (mut appends, mut at, mut size) = (0, 0, 1);
    let mut next = None;
    let mut encoder = Some(encoder(codec));
    loop {
        let to = (at + size).min(batches.len());
        let (batches, mut own) = (batches.clone(), encoder.take().unwrap());
        let encoding = tokio::task::spawn_blocking(move || {
            let mut block = RecordBlock::default();
            batches[at..to].iter().for_each(|batch| own.encode(batch, PARTITIONS, &mut block).unwrap());
            (block, own)
        });
        let begun = Instant::now();
        if let Some(block) = next.take() {
            append(writer.as_mut(), schema, &topic, block, appends).await;
            appends += 1;
            size = next_size(size, begun.elapsed());
        }
        let (block, own) = encoding.await.unwrap();
        encoder = Some(own);
        if block.is_empty() {
            break;
        }
        next = Some(block);
        at = to;
    }
    watch.stop(appends)
}

async fn append(writer: &mut dyn Writer, schema: &Arc<TableSchema>, topic: &str, block: RecordBlock, appends: usize) {
    let schemas: Vec<_> = (appends == 0).then(|| schema.clone()).into_iter().collect();
    let lsn = appends as u64 + 1;
    let draft = CheckpointDraft {
        position: Position::Postgres { lsn, partial: None, system_id: "1".into(), timeline: 1 },
        next_sequence: lsn,
        snapshot: serde_json::Value::Null,
        converging: Vec::new(),
        watermark_from: 0,
        watermark: 0,
        cut: true,
    };
    writer.append(&schemas, vec![TopicBlock { topic: topic.to_owned(), block }], draft).await.unwrap();
}

struct Rows {
    decoder: AnyDecoder,
    rows: usize,
}

impl RecordVisitor for Rows {
    fn record(&mut self, record: &RecordRef<'_>) -> ControlFlow<()> {
        self.decoder.push(record).unwrap();
        if self.decoder.rows() >= 8 * BATCH {
            self.rows += self.decoder.flush().unwrap().iter().map(ChangeBatch::num_rows).sum::<usize>();
        }
        ControlFlow::Continue(())
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

async fn read(log: &Arc<dyn Log>, source: &str, schema: &Arc<TableSchema>, count: usize) -> Cost {
    let watch = Watch::start();
    let topic = names::topic(&schema.table);
    let bounds = log.bounds(source).await.unwrap();
    let ends: BTreeMap<i32, i64> = bounds[&topic].iter().map(|(partition, (_, end))| (*partition, *end)).collect();
    let mut reader = log.records(source).await.unwrap();
    for partition in ends.keys() {
        reader.assign(&topic, *partition, 0).await.unwrap();
    }
    let schema = schema.clone();
    let decoder = AnyDecoder::new(Arc::new(move |_| Some(schema.clone())), Some(REGISTRY.clone())).unwrap();
    let back = reader.read_to(&Ends::from([(topic, ends)]), Box::new(Rows { decoder, rows: 0 })).await.unwrap();
    let mut rows = *back.into_any().downcast::<Rows>().unwrap();
    rows.rows += rows.decoder.flush().unwrap().iter().map(ChangeBatch::num_rows).sum::<usize>();
    assert_eq!(rows.rows, count);
    watch.stop(0)
}

fn encoded(batches: &[ChangeBatch], codec: &str) -> Vec<RecordBlock> {
    let mut encoder = encoder(codec);
    let encode = |batch: &ChangeBatch| {
        let mut block = RecordBlock::default();
        encoder.encode(batch, PARTITIONS, &mut block).unwrap();
        block
    };
    batches.iter().map(encode).collect()
}

/// librdkafka's producer with the settings of ours; with a transactional id, in transactions of 200 ms.
fn produce(topic: &str, blocks: &[RecordBlock], transactional_id: Option<&str>) -> Cost {
    let mut properties = ClientConfig::new();
    properties
        .set("bootstrap.servers", brokers())
        .set("enable.idempotence", "true")
        .set("compression.type", "zstd")
        .set("compression.level", "1")
        .set("linger.ms", "2")
        .set("batch.size", "1000000")
        .set("batch.num.messages", "100000")
        .set("queue.buffering.max.kbytes", "131072")
        .set("queue.buffering.max.messages", "1000000")
        .set("message.max.bytes", "67108864");
    if let Some(id) = transactional_id {
        properties.set("transactional.id", id);
    }
    create(topic);
    let producer: BaseProducer = properties.create().unwrap();
    producer.client().fetch_metadata(Some(topic), PATIENCE).unwrap();
    if transactional_id.is_some() {
        producer.init_transactions(PATIENCE).unwrap();
    }
    let watch = Watch::start();
    let (mut appends, mut begun) = (0, None::<Instant>);
    for block in blocks {
        if transactional_id.is_some() && begun.is_none() {
            producer.begin_transaction().unwrap();
            begun = Some(Instant::now());
        }
        for record in block.iter() {
            let headers = OwnedHeaders::new().insert(Header { key: HEADER, value: record.header });
            let mut to = BaseRecord::<[u8], [u8]>::to(topic).partition(record.partition).headers(headers);
            to.key = record.key;
            to.payload = record.value;
            while let Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) = producer.send(to) {
                producer.poll(Duration::from_millis(5));
                to = back;
            }
        }
        producer.poll(Duration::ZERO);
        if begun.is_some_and(|begun| begun.elapsed() >= APPEND) {
            producer.commit_transaction(PATIENCE).unwrap();
            (appends, begun) = (appends + 1, None);
        }
    }
    match begun {
        Some(_) => {
            producer.commit_transaction(PATIENCE).unwrap();
            appends += 1;
        }
        None => producer.flush(PATIENCE).unwrap(),
    }
    watch.stop(appends)
}

fn create(topic: &str) {
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap();
    let topic = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1)).set("max.message.bytes", "67108864");
    let options = AdminOptions::new();
    let done = tokio::runtime::Handle::current().block_on(admin.create_topics([&topic], &options)).unwrap();
    assert!(done.iter().all(Result::is_ok), "{done:?}");
}

async fn delete(topics: &[&str]) {
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap();
    admin.delete_topics(topics, &AdminOptions::new()).await.unwrap();
}

/// librdkafka's consumer, which looks at nothing.
fn consume(topic: &str, blocks: &[RecordBlock]) -> Cost {
    let watch = Watch::start();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", topic)
        .set("enable.auto.commit", "false")
        .set("fetch.message.max.bytes", "67108864")
        .set("receive.message.max.bytes", "100000000")
        .create()
        .unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&partitions).unwrap();
    let wanted: usize = blocks.iter().map(RecordBlock::len).sum();
    let mut found = 0;
    while found < wanted {
        consumer.poll(PATIENCE).expect("records within a minute").unwrap();
        found += 1;
    }
    watch.stop(0)
}
