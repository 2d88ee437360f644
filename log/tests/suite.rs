//! The contract of the log, on a real Kafka (`LAKEWARD_TEST_KAFKA`) and on a SQLite file, and what only one of them can do wrong;
//! and the client of the schema registry (`LAKEWARD_TEST_REGISTRY`).

#![allow(clippy::unwrap_used)]

#[path = "suite/behind_our_back.rs"]
mod behind_our_back;
#[path = "suite/busy.rs"]
mod busy;
#[path = "suite/embedded.rs"]
mod embedded;
#[path = "suite/registry.rs"]
mod registry;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lakeward_log::kafka::KafkaLog;
use lakeward_log::{Log, conformance};
use lakeward_runtime::config::{Codec, KafkaConfig};

fn brokers() -> String {
    std::env::var("LAKEWARD_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:22092".into())
}

fn config() -> KafkaConfig {
    KafkaConfig {
        brokers: brokers(),
        codec: Codec::Json,
        partitions: 3,
        replication: 1,
        retention: Duration::from_secs(3600),
        client: BTreeMap::new(),
    }
}

fn open() -> Arc<dyn Log> {
    KafkaLog::open(&config(), "suite").unwrap()
}

/// A source that no test has had before.
fn fresh(test: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("log_{test}_{:x}_{:x}", std::process::id(), now)
}

macro_rules! conform {
    ($implementation:ident, $open:expr; $($rule:ident),* $(,)?) => {
        mod $implementation {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let (log, _keep) = $open;
                conformance::$rule(log, &fresh(stringify!($rule))).await;
            })*
        }
    };
}

/// Every rule, on every implementation.
mod contract {
    use super::*;

    macro_rules! rules {
        ($implementation:ident, $open:expr) => {
            conform!(
                $implementation, $open;
                a_new_source_is_empty,
                records_come_back_in_order,
                a_reader_continues_where_it_was,
                a_failed_append_leaves_nothing,
                a_new_writer_fences_the_old,
                a_takeover_reads_the_last_checkpoint,
                complete_checkpoints_hold_all_ends,
                checkpoints_are_read_in_order,
                schemas_are_kept_by_version,
                signals_reach_who_listens,
                large_appends_come_back_whole,
                advice_to_drop_leaves_what_is_above,
                what_is_unread_is_told,
            );
        };
    }

    rules!(kafka, (open(), ()));
    rules!(embedded, crate::embedded::open());
}

/// Situations that only Kafka has: other transactions in the log, a log cut off, brokers that refuse.
mod kafka {
    use lakeward_event::codec::RecordBlock;
    use lakeward_log::conformance::{Collector, block, draft, read, reader, values};
    use lakeward_log::{Error, TopicBlock};
    use lakeward_runtime::Action;
    use rdkafka::ClientConfig;
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    use rdkafka::client::DefaultClientContext;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    use rdkafka::{Offset, TopicPartitionList};

    use super::*;

    const WAIT: Duration = Duration::from_secs(30);

    /// A transactional producer beside the log's own, with what it has begun flushed to the broker.
    fn producer(transactional_id: &str) -> BaseProducer {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers())
            .set("transactional.id", transactional_id)
            .create()
            .unwrap();
        producer.init_transactions(WAIT).unwrap();
        producer
    }

    fn send(producer: &BaseProducer, topic: &str, partition: i32, value: &str) {
        producer
            .send(BaseRecord::<(), str>::to(topic).partition(partition).payload(value))
            .map_err(|(e, _)| e)
            .unwrap();
    }

    fn abort(producer: &BaseProducer, topic: &str, partition: i32, records: usize) {
        producer.begin_transaction().unwrap();
        for _ in 0..records {
            send(producer, topic, partition, "aborted");
        }
        producer.flush(WAIT).unwrap();
        producer.abort_transaction(WAIT).unwrap();
    }

    fn admin() -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap()
    }

    async fn create(topic: &str, setting: (&str, &str)) {
        let new = NewTopic::new(topic, 2, TopicReplication::Fixed(1)).set(setting.0, setting.1);
        for answer in admin().create_topics([&new], &AdminOptions::new()).await.unwrap() {
            answer.unwrap();
        }
    }

    async fn refused(log: &Arc<dyn Log>, source: &str, topic: &str, offset: i64, end: i64) -> Error {
        let mut reader = log.records(source).await.unwrap();
        reader.assign(topic, 0, offset).await.unwrap();
        let ends = BTreeMap::from([(topic.to_owned(), BTreeMap::from([(0, end)]))]);
        let visitor = Box::new(Collector { records: vec![], limit: usize::MAX });
        reader.read_to(&ends, visitor).await.map(|_| ()).unwrap_err()
    }

    /// The last checkpoint is found behind any number of aborted records and markers, and readers pass over them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn aborted_transactions_are_passed_over() {
        let (log, source) = (open(), fresh("aborts"));
        let (topic, checkpoints) = (format!("{source}.public.a"), format!("{source}.__checkpoints"));
        let (mut writer, _) = log.writer(&source).await.unwrap();
        writer.ensure_topic(&topic).await.unwrap();
        let other = producer(&format!("other.{source}"));
        let (mut before, mut last) = (None, None);
        for round in 0..4 {
            abort(&other, &topic, 0, 3);
            let value = format!("v{round}");
            let appended = writer.append(&[], vec![block(&topic, &[(0, &value)])], draft(round)).await.unwrap();
            before = last.replace(appended);
            abort(&other, &topic, 0, 1);
            // More than the first stretch that is looked through, and more than any later one's part of it.
            abort(&other, &checkpoints, 0, if round == 3 { 1500 } else { 5 });
        }
        assert_eq!(log.last_checkpoint(&source).await.unwrap(), last);
        let (mut writer, found) = log.writer(&source).await.unwrap();
        assert_eq!(found, last);
        let ends = last.unwrap().ends;
        let mut reader = reader(&log, &source, &ends).await;
        assert_eq!(values(&read(&mut reader, &ends).await, &topic, 0), ["v0", "v1", "v2", "v3"]);

        // An end that lies beyond markers and aborted records is reached too.
        let beyond = log.bounds(&source).await.unwrap()[&topic][&0].1;
        assert!(beyond > ends[&topic][&0]);
        let beyond = BTreeMap::from([(topic.clone(), BTreeMap::from([(0, beyond)]))]);
        assert!(read(&mut reader, &beyond).await.is_empty());

        let next = writer.append(&[], vec![], draft(9)).await.unwrap();
        assert!(next.complete);
        assert_eq!(next.ends[&topic][&0], ends[&topic][&0], "ends count records, not markers");
        let mut from = log.checkpoints(&source, before.map(|before| before.id)).await.unwrap();
        assert_eq!(from.next().await.unwrap().draft.next_sequence, 3);
        assert_eq!(from.next().await.unwrap(), next);
    }

    /// Fence first, then read: a zombie that has sent everything but the commit is neither seen nor lets its records be seen.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_zombie_cannot_commit_after_the_last_checkpoint_is_read() {
        let (log, source) = (open(), fresh("zombie"));
        let (topic, checkpoints) = (format!("{source}.public.a"), format!("{source}.__checkpoints"));
        let (mut writer, _) = log.writer(&source).await.unwrap();
        writer.ensure_topic(&topic).await.unwrap();
        let first = writer.append(&[], vec![block(&topic, &[(0, "first")])], draft(1)).await.unwrap();

        let zombie = producer(&format!("suite.{source}"));
        zombie.begin_transaction().unwrap();
        send(&zombie, &topic, 0, "zombie");
        let mut its = first.clone();
        its.id += 1;
        send(&zombie, &checkpoints, 0, &serde_json::to_string(&its).unwrap());
        zombie.flush(WAIT).unwrap();

        let (mut writer, found) = log.writer(&source).await.unwrap();
        assert_eq!(found.as_ref(), Some(&first));
        assert!(zombie.commit_transaction(WAIT).is_err(), "the zombie is fenced");
        assert_eq!(log.last_checkpoint(&source).await.unwrap(), Some(first.clone()));
        let second = writer.append(&[], vec![block(&topic, &[(0, "second")])], draft(2)).await.unwrap();
        let mut reader = reader(&log, &source, &second.ends).await;
        assert_eq!(values(&read(&mut reader, &second.ends).await, &topic, 0), ["first", "second"]);
    }

    /// An offset outside of the log is an error that says so, never a jump to where the log is.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_offset_outside_the_log_is_an_error() {
        let (log, source) = (open(), fresh("outside"));
        let topic = format!("{source}.public.a");
        let (mut writer, _) = log.writer(&source).await.unwrap();
        writer.ensure_topic(&topic).await.unwrap();
        let all: Vec<_> = (0..20).map(|_| (0, "x")).collect();
        let checkpoint = writer.append(&[], vec![block(&topic, &all)], draft(1)).await.unwrap();
        let end = checkpoint.ends[&topic][&0];
        let mut cut = TopicPartitionList::new();
        cut.add_partition_offset(&topic, 0, Offset::Offset(10)).unwrap();
        admin().delete_records(&cut, &AdminOptions::new()).await.unwrap();

        let error = refused(&log, &source, &topic, 4, end).await;
        assert_eq!(error.action(), Action::Human);
        let text = error.to_string();
        assert!(text.contains(&topic) && text.contains("offset=4") && text.contains("first_offset=10"), "{text}");
        let error = refused(&log, &source, &topic, 4000, 4001).await;
        assert_eq!(error.action(), Action::Human);
        assert!(error.to_string().contains("offset=4000"), "{error}");
        // At the start it reads.
        let mut reader = log.records(&source).await.unwrap();
        reader.assign(&topic, 0, 10).await.unwrap();
        let ends = BTreeMap::from([(topic.clone(), BTreeMap::from([(0, end)]))]);
        assert_eq!(read(&mut reader, &ends).await.len(), 10);
        let error = refused(&log, &source, &format!("{source}.public.gone"), 0, 1).await;
        assert_eq!(error.action(), Action::Human, "{error}");
    }

    /// What a topic refuses is told with its name and what to do, and ends the append as a whole.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn refusals_name_the_topic() {
        let (log, source) = (open(), fresh("refusals"));
        let (mut writer, _) = log.writer(&source).await.unwrap();
        let compacted = format!("{source}.public.compacted");
        create(&compacted, ("cleanup.policy", "compact")).await;
        let error = writer.ensure_topic(&compacted).await.unwrap_err();
        assert_eq!(error.action(), Action::Human);
        assert!(error.to_string().contains(&compacted) && error.to_string().contains("cleanup.policy"), "{error}");

        let narrow = format!("{source}.public.narrow");
        create(&narrow, ("max.message.bytes", "50000")).await;
        assert_eq!(writer.ensure_topic(&narrow).await.unwrap(), 2);
        let mut large = RecordBlock::default();
        // What compresses would be small enough.
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        })
        .take(200_000)
        .collect();
        large.push(0, None, Some(&noise), None);
        let blocks = vec![TopicBlock { topic: narrow.clone(), block: large }];
        let error = writer.append(&[], blocks, draft(1)).await.unwrap_err();
        assert_eq!(error.action(), Action::Human, "{error}");
        assert!(error.to_string().contains(&narrow) && error.to_string().contains("max.message.bytes"), "{error}");
        assert!(error.to_string().contains("partition=0"), "{error}");
        assert_eq!(log.last_checkpoint(&source).await.unwrap(), None);
    }

    /// Settings that cannot be are told by their key, without their value; brokers that are not there by their address.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn wrong_settings_and_missing_brokers_are_told() {
        let mut wrong = config();
        wrong.client.insert("sasl.passwrod".into(), lakeward_runtime::config::Secret::new("hunter2"));
        let error = KafkaLog::open(&wrong, "suite").map(|_| ()).unwrap_err();
        assert_eq!(error.action(), Action::Configuration);
        assert!(error.to_string().contains("sasl.passwrod") && !error.to_string().contains("hunter2"), "{error}");

        let mut away = config();
        away.brokers = "127.0.0.1:9".into();
        let error = KafkaLog::open(&away, "suite").unwrap().writer("nobody").await.map(|_| ()).unwrap_err();
        assert_eq!(error.action(), Action::Retry);
        assert!(error.to_string().contains("127.0.0.1:9") && error.to_string().contains("is it running"), "{error}");
        assert!(error.to_string().contains("Connection refused"), "what the connection said: {error}");
    }
}
