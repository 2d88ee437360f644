//! Topics that somebody else deletes, makes again or widens while Lakeward uses them: named, and never taken for what they were.

use lakeward_event::Ends;
use lakeward_event::codec::MAX_RECORD_BYTES;
use lakeward_log::conformance::{block, draft, read, reader, values};
use lakeward_log::{Error, TopicBlock, Writer};
use lakeward_runtime::Action;
use lakeward_runtime::config::Secret;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::*;

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap()
}

async fn delete(topic: &str) {
    for answer in admin().delete_topics(&[topic], &AdminOptions::new()).await.unwrap() {
        answer.unwrap();
    }
    // A topic's name is free when the broker has let go of it.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn create(topic: &str, partitions: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for answer in admin().create_topics([&new], &AdminOptions::new()).await.unwrap() {
        answer.unwrap();
    }
}

/// A client that believes in a missing topic after a second, not after half a minute.
fn open_impatient() -> Arc<dyn Log> {
    let mut config = config();
    for (name, value) in [("topic.metadata.propagation.max.ms", "1000"), ("topic.metadata.refresh.interval.ms", "500")]
    {
        config.client.insert(name.into(), Secret::new(value));
    }
    KafkaLog::open(&config, "suite").unwrap()
}

#[track_caller]
fn names(error: &Error, words: &[&str]) {
    assert_eq!(error.action(), Action::Human, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "no `{word}` in: {error}");
    }
}

async fn try_append(
    writer: &mut Box<dyn Writer>,
    topic: &str,
    sequence: u64,
) -> Result<lakeward_event::Checkpoint, Error> {
    writer.append(&[], vec![block(topic, &[(0, "x"), (0, "y"), (1, "z")])], draft(sequence)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_is_named_by_writers_from_then_on() {
    let (log, source) = (open_impatient(), fresh("deleted"));
    let (gone, kept) = (format!("{source}.public.gone"), format!("{source}.public.kept"));
    let (mut writer, _) = log.writer(&source).await.unwrap();
    let mut last = None;
    for (sequence, topic) in [(1, &gone), (2, &kept), (3, &gone)] {
        last = Some(try_append(&mut writer, topic, sequence).await.unwrap());
    }
    delete(&gone).await;
    let error = try_append(&mut writer, &gone, 4).await.unwrap_err();
    names(&error, &[&gone, "deleted", "partition=0"]);

    // Also after a connector has gone on for a while with other tables: checkpoints remember what there was.
    for round in 0..2 {
        let (mut writer, found) = log.writer(&source).await.unwrap();
        assert_eq!(found, last, "what failed left nothing");
        let error = writer.ensure_topic(&gone).await.unwrap_err();
        names(&error, &[&gone, &source, "deleted"]);
        last = Some(try_append(&mut writer, &kept, 5 + round).await.unwrap());
    }
    // Made again by hand, it is not what it was. New records would have offsets below those that the lake has.
    create(&gone, 3).await;
    let (mut writer, _) = log.writer(&source).await.unwrap();
    let error = writer.ensure_topic(&gone).await.unwrap_err();
    names(&error, &[&gone, "expected_end_offset=", "end_offset=0", "partition="]);
    try_append(&mut writer, &kept, 9).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_under_a_running_writer_is_noticed() {
    let (log, source) = (open_impatient(), fresh("again"));
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(&source).await.unwrap();
    let mut last = None;
    for sequence in 1..6 {
        last = Some(try_append(&mut writer, &topic, sequence).await.unwrap());
    }
    delete(&topic).await;
    create(&topic, 3).await;
    // The client may notice that the topic was gone, or the broker that it does not know the producer: acknowledged it is not.
    try_append(&mut writer, &topic, 6).await.unwrap_err();
    let (mut writer, found) = log.writer(&source).await.unwrap();
    assert_eq!(found, last);
    let error = try_append(&mut writer, &topic, 7).await.unwrap_err();
    names(&error, &[&topic, "deleted", "partition=", "expected_end_offset="]);
    assert_eq!(log.last_checkpoint(&source).await.unwrap(), last);
}

/// Trap 22, as far as the log goes: a writer keeps to the partitions that it knows, the next one uses all of them, and readers find
/// every record. That keys are in order then is for the sink, which merges partitions by `sequence`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_are_used_by_the_next_writer_and_read_by_all() {
    let (log, source) = (open(), fresh("widened"));
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(&source).await.unwrap();
    assert_eq!(writer.ensure_topic(&topic).await.unwrap(), 3);
    let first = try_append(&mut writer, &topic, 1).await.unwrap();
    let mut reader = reader(&log, &source, &first.ends).await;
    assert_eq!(read(&mut reader, &first.ends).await.len(), 3);
    for answer in admin().create_partitions([&NewPartitions::new(&topic, 5)], &AdminOptions::new()).await.unwrap() {
        answer.unwrap();
    }
    assert_eq!(writer.ensure_topic(&topic).await.unwrap(), 3);
    try_append(&mut writer, &topic, 2).await.unwrap();
    let (mut writer, _) = log.writer(&source).await.unwrap();
    assert_eq!(writer.ensure_topic(&topic).await.unwrap(), 5);
    let blocks = vec![block(&topic, &[(4, "four"), (0, "null"), (3, "three")])];
    let last = writer.append(&[], blocks, draft(3)).await.unwrap();
    assert!(last.complete && last.ends[&topic].len() == 5, "{last:?}");
    for partition in [3, 4] {
        reader.assign(&topic, partition, 0).await.unwrap();
    }
    let records = read(&mut reader, &last.ends).await;
    assert_eq!(values(&records, &topic, 0), ["x", "y", "null"]);
    assert_eq!((values(&records, &topic, 4), values(&records, &topic, 3)), (vec!["four".into()], vec!["three".into()]));
}

/// One record above what topics of ours take: refused before it is sent, with its place and size, and nothing of its append is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_above_the_largest_is_refused() {
    let (log, source) = (open(), fresh("large"));
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(&source).await.unwrap();
    let first = try_append(&mut writer, &topic, 1).await.unwrap();
    let mut large = block(&topic, &[(0, "small")]).block;
    let value = vec![b'x'; MAX_RECORD_BYTES + 1];
    large.push(1, None, Some(&value), None);
    let blocks = vec![TopicBlock { topic: topic.clone(), block: large }];
    let error = writer.append(&[], blocks, draft(2)).await.unwrap_err();
    names(&error, &[&topic, "partition=1", "bytes=67108865", "exclude the table"]);
    let (_, found) = log.writer(&source).await.unwrap();
    assert_eq!(found, Some(first.clone()));
    let ends: Ends = first.ends;
    let mut reader = reader(&log, &source, &ends).await;
    assert_eq!(read(&mut reader, &ends).await.len(), 3);
}
