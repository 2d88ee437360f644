//! Somebody else changes the topics of a running pipeline: keys stay in order, and what is missing is named.

use serde_json::json;

use crate::harness::{
    Pipeline, Postgres, Servers, add_partitions, delete_topic, delete_topics, postgres_load, postgres_tables,
    stream_records, topics_of, wait_until,
};

/// Partitions are added in the middle of a stream, so that keys move to others while older changes of theirs are unread: new
/// partitions are read, and the lake is what the source is. (That the sink merges partitions by `sequence` whatever order it reads
/// them in is what `keys_that_moved_to_another_partition_stay_in_order` of its suite tries.)
#[test]
fn keys_stay_in_order_when_partitions_are_added() {
    let users = Postgres::new(&postgres_tables());
    let lake = Pipeline::new().postgres(&users).build();
    lake.catch_up();
    let writer = postgres_load(&users);
    // Cuts are to hold changes of a key from before and after: the sink reads only when all is written.
    let connectors = lake.start(&["connectors"]);
    writer.more(150);
    let brokers = Servers::get().kafka;
    for table in ["accounts", "events", "savings"] {
        add_partitions(&brokers, &format!("{}.public.{table}", users.name), 7);
    }
    writer.more(100);
    connectors.stop();
    let connectors = lake.start(&["connectors"]);
    writer.more(150);
    writer.end();
    connectors.stop();
    lake.catch_up();
    let running = lake.start(&[]);
    lake.verify();
    running.stop();
    // It was as the test wants it: keys stood in one partition before and in another one after.
    let mut places = std::collections::BTreeMap::<String, std::collections::BTreeSet<i32>>::new();
    for record in stream_records(&brokers, &users.name) {
        if record.op() != "t" {
            places.entry(format!("{} {}", record.topic, record.key)).or_default().insert(record.partition);
        }
    }
    let moved = places.values().filter(|partitions| partitions.len() > 1).count();
    assert!(moved > 10, "{moved} of {} keys have moved", places.len());
}

/// Without the source's control topics nobody could tell what was published: the connector does not begin anew beside what is
/// there.
#[test]
fn deleted_control_topics_are_named() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10)");
    for (control, of) in [("__checkpoints", "no checkpoint"), ("__schemas", "no schema")] {
        let lake = Pipeline::new().postgres(&users).build();
        lake.catch_up();
        let topic = format!("{}.{control}", users.name);
        delete_topic(&Servers::get().kafka, &topic);
        for _ in 0..2 {
            let mut running = lake.start(&["connectors"]);
            wait_until("the connector stops", || !running.is_running());
            assert_eq!(running.wait().code(), Some(4), "{}", running.log());
            let log = running.log();
            assert!(log.contains(&topic) && log.contains(of) && log.contains("docs/log.md"), "{log}");
        }
    }
}

/// Nothing of a source is in Kafka any more, and the connector takes it for a new one: the sink does not take the new records for those
/// that the lake holds. Begun anew by the steps of docs/log.md, the source is read again.
#[test]
fn a_log_that_is_gone_is_noticed_and_begun_anew() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i",
    );
    let lake = Pipeline::new().postgres(&users).build();
    lake.catch_up();
    let brokers = Servers::get().kafka;
    delete_topics(&brokers, std::slice::from_ref(&users.name));
    wait_until("the topics are gone", || topics_of(&brokers, &users.name).is_empty());
    // A moment after its reader has ended it is not in use any more.
    let drop_slot = || {
        let slots = "FROM pg_replication_slots WHERE database = current_database()";
        wait_until("the slot is dropped", || {
            users.rows(&format!("SELECT pg_drop_replication_slot(slot_name) {slots} AND NOT active"));
            users.value(&format!("SELECT count(*) {slots}")) == "0"
        });
    };
    drop_slot();
    users.execute("UPDATE t SET v = 1; DELETE FROM t WHERE id = 20");
    let mut running = lake.start(&[]);
    wait_until("the sink stops", || !running.is_running());
    assert_eq!(running.wait().code(), Some(4), "{}", running.log());
    let log = running.log();
    assert!(
        log.contains("not the one that the lake was filled from") && log.contains("Beginning a source anew"),
        "{log}"
    );

    drop_slot();
    let anew = format!("{}anew", users.name);
    let config = lake.variant(
        "state",
        &[(&format!("[[source]]\nname = \"{}\"", users.name), &format!("[[source]]\nname = \"{anew}\""))],
    );
    assert!(lake.start_with(&config, &["--until-caught-up"], "").wait().success());
    let running = lake.start_with(&config, &[], "");
    let verify = lake.call_with(&config, &["verify"]);
    assert!(verify.status.success(), "{verify:?}");
    running.stop();
    assert_eq!(lake.value(&format!("select count(*) from {anew}.t where v = 1")), json!(19));
    // The old one stays as it was.
    assert_eq!(lake.value(&format!("select count(*) from {}.t where v = 0", users.name)), json!(20));
    delete_topics(&brokers, &[anew]);
}

/// A topic that is gone stops its source, naming it; nothing is taken for read that was not.
#[test]
fn a_deleted_topic_is_named() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10)");
    let lake = Pipeline::new().postgres(&users).build();
    lake.catch_up();
    let topic = format!("{}.public.t", users.name);
    let brokers = Servers::get().kafka;
    delete_topic(&brokers, &topic);
    users.execute("INSERT INTO t VALUES (11)");
    let mut running = lake.start(&[]);
    wait_until("the connector stops", || !running.is_running());
    assert_eq!(running.wait().code(), Some(4), "{}", running.log());
    let log = running.log();
    assert!(log.contains(&topic) && log.contains("was deleted") && log.contains("docs/log.md"), "{log}");
    assert!(lake.call(&["topics"]).status.success());
    assert_eq!(lake.value(&format!("select count(*) from {}.t", users.name)), json!(10));
}
