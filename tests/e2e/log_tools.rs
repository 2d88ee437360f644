//! What people look into the log with, `topics` and `tail`, on both logs; and the warning before the log drops what is unread.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use mongodb::bson::doc;
use serde_json::{Value, json};

use crate::harness::{Lakeward, Mongo, Pipeline, Postgres, Servers, Tail, set_topic, wait_for, wait_until};

fn topics(lake: &Lakeward) -> Value {
    let output = lake.call(&["topics", "--format", "json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn topic(lake: &Lakeward, name: &str) -> Value {
    let found = topics(lake);
    assert_eq!(found["away"], json!([]), "{found}");
    let all = found["sources"][0]["topics"].as_array().unwrap();
    all.iter().find(|topic| topic["topic"] == name).unwrap_or_else(|| panic!("no {name}: {found}")).clone()
}

fn what_is_unread_is_shown(pipeline: Pipeline, retention: &Value) {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i",
    );
    let lake = pipeline.postgres(&users).build();
    let name = format!("{}.public.t", users.name);
    assert_eq!(topics(&lake)["sources"][0]["checkpoint"], Value::Null);
    lake.catch_up();
    // Held by the lake: caught up, though on Kafka a transaction's marker lies behind the last record.
    let caught_up = topic(&lake, &name);
    assert_eq!((&caught_up["lag"], &caught_up["unread_age"]), (&json!(0), &Value::Null), "{caught_up}");
    assert_eq!(caught_up["retention"], *retention, "{caught_up}");
    let partitions = caught_up["partitions"].as_array().unwrap();
    assert!(partitions.iter().all(|p| p["committed"] == p["end"] || p["end"] == json!(0)), "{caught_up}");
    // While another process holds the role's lock.
    let connectors = lake.start(&["connectors"]);
    users.execute("UPDATE t SET v = 'w' WHERE id <= 40");
    let behind = wait_for("the log to have more than the lake", || {
        let topic = topic(&lake, &name);
        (topic["lag"].as_i64() > Some(0)).then_some(topic)
    });
    assert!(behind["unread_age"].as_i64() > Some(0), "{behind}");
    assert_eq!(behind["retention_used"].is_number(), retention["until"] == "limit", "{behind}");
    let text = String::from_utf8(lake.call(&["topics"]).stdout).unwrap();
    for part in [name.as_str(), "oldest unread", &format!("source {}", users.name), "checkpoint"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    connectors.stop();
    lake.catch_up();
    assert_eq!(topic(&lake, &name)["lag"], json!(0));
}

#[test]
fn topics_show_what_is_unread_on_kafka() {
    what_is_unread_is_shown(Pipeline::new(), &json!({ "until": "limit", "ms": 3_600_000, "bytes": null }));
}

#[test]
fn topics_show_what_is_unread_in_the_embedded_log() {
    what_is_unread_is_shown(Pipeline::new().embedded(), &json!({ "until": "held" }));
}

fn changes_are_shown_as_they_come(pipeline: Pipeline, keeps: bool) {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(9,2), big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         INSERT INTO t VALUES (1, 'early', 1.50, repeat('x', 9000))",
    );
    let shop = Mongo::new();
    shop.collection("items").insert(doc! { "_id": 1, "name": "early" });
    let lake = pipeline.postgres(&users).mongo(&shop).build();
    let (in_sql, topic) = (format!("{}.t", users.name), format!("{}.public.t", users.name));
    let nothing = lake.call(&["tail", &in_sql]);
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {in_sql}"), &json!(1));
    lake.wait_for_value(&format!("select count(*) from {}.items", shop.name), &json!(1));

    let unknown = lake.call(&["tail", &format!("{in_sql}t")]);
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(2), "{text}");
    assert!(text.contains(&format!("did you mean `{in_sql}`")), "{text}");

    let mut tail = Tail::start(&lake, &[&topic, "--format", "json"]);
    let mut documents = Tail::start(&lake, &[&format!("{}.items", shop.name), "--format", "json"]);
    let mut people = Tail::start(&lake, &[&in_sql, "-n", "2"]);
    // "From now on" begins when a tail is ready, which nothing tells: changes until each has shown one.
    let session = users.session();
    let items = shop.collection("items");
    let ticking = crate::harness::Writer::start(move |n| {
        session.execute(&format!("INSERT INTO t VALUES ({}, 'tick')", 1000 + n));
        items.insert(doc! { "_id": 1000 + n as i64 });
    });
    let first = tail.json();
    assert_eq!((&first["op"], &first["after"]["v"]), (&json!("c"), &json!("tick")), "from now on: {first}");
    documents.json();
    assert!(people.line().contains(" insert   id="));
    ticking.end();
    people.ends();

    users.execute("INSERT INTO t VALUES (2, 'two', 2.5, repeat('y', 9000))");
    users.execute("UPDATE t SET v = 'changed' WHERE id = 2");
    users.execute("UPDATE t SET id = 3 WHERE id = 2; DELETE FROM t WHERE id = 3; TRUNCATE t");
    shop.collection("items").update(doc! { "_id": 1 }, doc! { "$set": { "name": "late" } });
    let mut next = |op: &str| loop {
        let change = tail.json();
        if change["after"]["v"] != "tick" {
            assert_eq!(change["op"], op, "{change}");
            for field in ["topic", "partition", "offset", "position", "commit_time", "sequence", "tx"] {
                assert!(!change[field].is_null(), "{field}: {change}");
            }
            assert_eq!(change["topic"], json!(topic));
            return change;
        }
    };
    let insert = next("c");
    assert_eq!((&insert["key"], &insert["after"]["n"]), (&json!({ "id": 2 }), &json!("2.50")));
    let update = next("u");
    assert_eq!((&update["after"]["v"], &update["unchanged"]), (&json!("changed"), &json!(["big"])), "{update}");
    // A key change, as the log has it: the old key goes, the new one comes.
    assert_eq!(next("d")["key"], json!({ "id": 2 }));
    assert_eq!(next("c")["key"], json!({ "id": 3 }));
    assert_eq!(next("d")["before"], json!({ "id": 3 }));
    next("t");
    let patch = wait_for("the document's change", || Some(documents.json()).filter(|change| change["op"] == "u"));
    assert_eq!(patch["key"]["_id"], json!("{\"$numberInt\":\"1\"}"), "as in the lake");
    assert!(patch.to_string().contains("late") && patch["position"].as_str().unwrap().contains('.'), "{patch}");

    // An interrupt is an orderly end.
    let pid = tail.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(tail.ends().is_empty());
    // So is a pipe that nobody reads any more, though nothing comes that could be written.
    documents.lines = None;
    let status = wait_for("tail to end", || documents.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));

    if keeps {
        let all = Tail::start(&lake, &[&in_sql, "--from-beginning", "-e", "--format", "json"]).ends();
        let all: Vec<Value> = all.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(all.first().map(|change| &change["op"]), Some(&json!("r")), "the snapshot first");
        assert_eq!(all.last().map(|change| &change["op"]), Some(&json!("t")), "a truncate once");
        assert_eq!(all.iter().filter(|change| change["op"] == "t").count(), 1);
        let sequences: Vec<_> = all.iter().map(|change| change["sequence"].as_u64()).collect();
        assert!(sequences.is_sorted(), "in the order of the source, not of partitions");
        let some = Tail::start(&lake, &[&in_sql, "--from-beginning", "--limit", "3"]).ends();
        assert_eq!(some.len(), 3);
    }
    running.stop();
}

#[test]
fn tail_follows_json_records_on_kafka() {
    changes_are_shown_as_they_come(Pipeline::new(), true);
}

#[test]
fn tail_follows_arrow_records_on_kafka() {
    changes_are_shown_as_they_come(Pipeline::new().codec("arrow"), true);
}

#[test]
fn tail_follows_avro_records_on_kafka() {
    changes_are_shown_as_they_come(Pipeline::new().codec("avro"), true);
}

/// Which drops what the lake holds, so that there is no beginning to start from.
#[test]
fn tail_follows_the_embedded_log() {
    changes_are_shown_as_they_come(Pipeline::new().embedded(), false);
}

/// A sink that stands still warns when half of a topic's retention has passed, long before anything is dropped.
#[test]
fn a_sink_that_falls_behind_the_retention_warns_in_time() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let lake = Pipeline::new().postgres(&users).build();
    lake.catch_up();
    let topic = format!("{}.public.t", users.name);
    set_topic(&Servers::get().kafka, &topic, "retention.ms", "60000");
    let running = lake.start(&[]);
    let count = format!("select count(*) from {}.t", users.name);
    users.execute("INSERT INTO t VALUES (0)");
    lake.wait_for_value(&count, &json!(2));
    // The catalog is away for a while, as far as commits go: somebody else writes to it, and does not come to an end.
    let catalog = lake.dir().join("catalog.db");
    let mut writer = Command::new("python3")
        .args(["-c", "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None); c.execute('BEGIN IMMEDIATE'); print('begun', flush=True); sys.stdin.read()"])
        .arg(&catalog)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut begun = String::new();
    BufReader::new(writer.stdout.take().unwrap()).read_line(&mut begun).unwrap();
    assert_eq!(begun, "begun\n");
    users.execute("INSERT INTO t VALUES (2)");
    wait_until("the sink warns", || running.log().contains("may drop records before they are read"));
    let log = running.log();
    let warning = log.lines().find(|line| line.contains("may drop records")).unwrap().to_owned();
    for part in ["WARN", &topic, "retention.ms", "retention_seconds=60"] {
        assert!(warning.contains(part), "{part} in {warning}");
    }
    let used =
        warning.split("used_percent=").nth(1).and_then(|rest| rest.split(' ').next()?.trim().parse::<u32>().ok());
    assert!(used.is_some_and(|used| (50..90).contains(&used)), "in time: {warning}");
    drop(writer.stdin.take());
    assert!(writer.wait().unwrap().success());
    lake.wait_for_value(&count, &json!(3));
    wait_until("it says that it has caught up", || running.log().contains("retention is long enough again"));
    running.stop();
}
