//! Two sinks that do not know of each other: state directories of their own, the same tables.

use serde_json::json;

use crate::harness::{Pipeline, Postgres, postgres_load, postgres_tables, wait_until};

#[test]
fn of_two_sinks_one_stops_and_no_row_is_doubled() {
    let users = Postgres::new(&postgres_tables());
    let lake = Pipeline::new().postgres(&users).postgres_catalog().build();
    let writer = postgres_load(&users);
    let connectors = lake.start(&["connectors"]);
    let other_config = lake.variant("other-state", &[]);
    let mut first = lake.start(&["sink"]);
    lake.wait_for_value(&format!("select count(*) > 0 from {}.events", users.name), &json!(true));
    let mut second = lake.start_with(&other_config, &["sink"], "");
    wait_until("one of the two sinks stops", || !first.is_running() || !second.is_running());
    let (mut stopped, left) = if first.is_running() { (second, first) } else { (first, second) };
    let status = stopped.wait();
    let log = stopped.log();
    assert!(status.code().is_some_and(|code| code != 0), "{status}: {log}");
    assert!(log.contains("another sink"), "it says why:\n{log}");
    writer.more(200);
    // `verify` names doubled keys; the left one has gone on alone.
    let report = lake.verify();
    assert_eq!(report["tables"].as_array().map(Vec::len), Some(5), "{report}");
    left.stop();
    connectors.stop();
}

/// One state directory is one sink's.
#[test]
fn a_second_sink_on_the_same_state_directory_does_not_start() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let lake = Pipeline::new().postgres(&users).build();
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {}.t", users.name), &json!(1));
    let mut second = lake.start(&["sink"]);
    assert_eq!(second.wait().code(), Some(2), "{}", second.log());
    assert!(second.log().contains("state_dir"), "{}", second.log());
    running.stop();
}
