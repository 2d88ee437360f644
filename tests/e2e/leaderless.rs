//! The broker with a partition's only replica is down: whoever needs the partition waits and says for which one, and nothing is lost
//! or doubled when it is back.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;

use crate::harness::{Pipeline, Postgres, Process, Stack, heavy, said, stream_records, wait_until};

/// Lines of a process that name the partition without a leader.
fn told(process: &Process, topic: &str) -> usize {
    let log = process.log();
    let line = |line: &&str| line.contains("no leader now") && line.contains(topic) && line.contains("partitions=1");
    log.lines().filter(line).count()
}

#[test]
fn a_partition_without_a_leader_is_named_and_waited_for() {
    let _heavy = heavy();
    let stack = Stack::start(&["kafka"], &[]);
    let brokers = stack.servers().kafka;
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE other (id int PRIMARY KEY);
         INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i; INSERT INTO other VALUES (1)",
    );
    let lake = Pipeline::on(stack.servers()).postgres(&users).build();
    // While there is one broker, which gets all topics.
    lake.catch_up();
    let topic = format!("{}.public.t", users.name);
    let second = stack.second_broker();
    stack.move_partitions(&topic, [1], 2);
    wait_until("the partition has moved", || stack.is_moved());

    // Published, and not yet read by the sink.
    let mut connectors = lake.start(&["connectors"]);
    users.execute("INSERT INTO t SELECT i, 0 FROM generate_series(21, 40) i");
    wait_until("the rows are published", || stream_records(&brokers, &users.name).len() >= 41);
    drop(second);
    let away = Instant::now();
    let mut sink = lake.start(&["sink"]);
    users.execute(
        "INSERT INTO t SELECT i, 0 FROM generate_series(41, 60) i; UPDATE t SET v = 1; INSERT INTO other VALUES (2)",
    );
    for process in [&connectors, &sink] {
        wait_until("it says what it waits for", || told(process, &topic) > 0);
    }
    let topics = lake.call(&["topics"]);
    said(&topics, 0, &["no leader now", &topic, "partitions=1"]);
    let verify = lake.call(&["verify"]);
    said(&verify, 3, &["no leader now", &topic, "partitions=1"]);
    // Not more often than they look for it.
    for process in [&connectors, &sink] {
        let (lines, seconds) = (told(process, &topic), away.elapsed().as_secs());
        assert!(lines as u64 <= 1 + seconds / 5, "{lines} in {seconds} s: {}", process.log());
    }
    assert!(connectors.is_running() && sink.is_running());
    // Nor by a guess, after a wait in silence.
    for (process, guess) in [(&connectors, "Kafka does not answer, sending"), (&sink, "Kafka sends no records")] {
        assert!(!process.log().contains(guess), "{}", process.log());
    }

    let _second = stack.start_second_broker();
    lake.wait_for_value(&format!("select count(*) from {}.t where v = 1", users.name), &json!(60));
    lake.wait_for_value(&format!("select count(*) from {}.other", users.name), &json!(2));
    lake.verify();
    connectors.stop();
    sink.stop();
    // No change of a key twice.
    let mut changes = BTreeMap::<String, usize>::new();
    for record in stream_records(&brokers, &users.name) {
        *changes.entry(format!("{} {} {}", record.topic, record.key, record.value["after"])).or_default() += 1;
    }
    assert_eq!((changes.len(), changes.values().max()), (122, Some(&1)), "{changes:?}");
}
