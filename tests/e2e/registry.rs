//! The schema registry of the codec `avro` away, wrong, or not of one mind with us: nothing is lost, and nothing takes a good record
//! for a bad one.

use serde_json::json;

use crate::faults::Scene;
use crate::harness::{Pipeline, Postgres, Servers, Stack, heavy, produce_with_header, wait_until};

/// What a process knows already goes on. One that starts asks for schemas again, in vain at first.
#[test]
fn a_registry_that_dies_and_comes_back_costs_nothing() {
    let _heavy = heavy();
    let stack = Stack::start(&["registry"], &[]);
    let scene = Scene::new(Pipeline::on(stack.servers()).codec("avro"));
    let (connectors, sink) = (scene.lake.start(&["connectors"]), scene.lake.start(&["sink"]));
    scene.more(100);
    scene.all_there();
    stack.kill("registry");
    scene.more(100);
    sink.kill();
    let sink = scene.lake.start(&["sink"]);
    wait_until("the sink waits for the registry", || {
        sink.log().lines().any(|line| line.contains("sink of") && line.contains("the schema registry does not answer"))
    });
    scene.more(100);
    stack.restart("registry");
    // Its schemas are there already, under the ids that records have.
    connectors.kill();
    let connectors = scene.lake.start(&["connectors"]);
    scene.proved([connectors, sink]);
}

/// A new version of a table while the registry is away: the connector tries again, with all that came since.
#[test]
fn a_column_that_comes_while_the_registry_is_away_waits_for_it() {
    let stack = Stack::start(&["registry"], &[]);
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i",
    );
    let lake = Pipeline::on(stack.servers()).postgres(&users).codec("avro").build();
    let running = lake.start(&[]);
    let count = format!("select count(*) from {}.t", users.name);
    lake.wait_for_value(&count, &json!(50));
    stack.kill("registry");
    users.execute("UPDATE t SET a = -1 WHERE id = 1; INSERT INTO t VALUES (51, 51)");
    lake.wait_for_value(&count, &json!(51));
    users.execute("ALTER TABLE t ADD COLUMN b text; INSERT INTO t VALUES (52, 52, 'new'); UPDATE t SET b = 'old' WHERE id <= 5; DELETE FROM t WHERE id = 10");
    wait_until("the connector says why it waits", || {
        running
            .log()
            .lines()
            .any(|l| l.contains("connector failed, trying again") && l.contains("the schema registry does not answer"))
    });
    users.execute("INSERT INTO t VALUES (53, 53, 'later')");
    stack.restart("registry");
    lake.wait_for_value(&format!("select count(b) from {}.t", users.name), &json!(7));
    lake.verify();
    let subject = format!("{}.public.t-value", users.name);
    assert_eq!(stack.servers().registry(&format!("/subjects/{subject}/versions")), json!([1, 2]));
    assert_eq!(lake.value("select count(*) from lakeward.dead_letters"), json!(0));
    running.stop();
}

/// A schema that the registry does not take stops the connector, with what to do; done, it goes on where it was.
#[test]
fn an_incompatible_schema_stops_until_somebody_decides() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)");
    let lake = Pipeline::new().postgres(&users).codec("avro").build();
    lake.catch_up();
    let subject = format!("{}.public.t-value", users.name);
    Servers::get().set_compatibility(&subject, "BACKWARD");
    // A type that no reader of the new schema takes the old one for.
    users.execute("ALTER TABLE t ADD COLUMN more text; UPDATE t SET more = 'x'");
    lake.catch_up();
    users.execute("ALTER TABLE t ALTER v TYPE text; UPDATE t SET v = v; INSERT INTO t VALUES (2, 'two', NULL)");
    let mut running = lake.start(&[]);
    let status = running.wait();
    let log = running.log();
    assert_eq!(status.code(), Some(4), "{log}");
    let line =
        log.lines().find(|line| line.contains("refused a table's new schema")).unwrap_or_else(|| panic!("{log}"));
    for part in [subject.as_str(), "NONE", "/config/"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    Servers::get().set_compatibility(&subject, "NONE");
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {}.t where v = 'two'", users.name), &json!(1));
    lake.verify();
    running.stop();
}

/// An id that nobody has registered is in a record that nobody can read: one dead letter with its place.
#[test]
fn a_record_of_an_unknown_schema_is_a_dead_letter() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20)");
    let lake = Pipeline::new().postgres(&users).codec("avro").build();
    let t = format!("{}.t", users.name);
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(20));
    let (topic, kafka) = (format!("{}.public.t", users.name), Servers::get().kafka);
    let offset = produce_with_header(&kafka, &topic, 1, b"avro,1,999999", b"\x00\x7f\xff\xff\xfe\x00");
    users.execute("INSERT INTO t SELECT generate_series(21, 40)");
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(40));
    let letters = lake.sql(&format!(
        "select \"partition\", \"offset\", payload, error from lakeward.dead_letters where topic = '{topic}'"
    ));
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    assert_eq!(
        (&letter["partition"], &letter["offset"], &letter["payload"]),
        (&json!(1), &json!(offset), &json!("\\x007ffffffe00"))
    );
    let error = letter["error"].as_str().unwrap();
    assert!(error.contains("schema 2147483646") && error.contains("does not have it"), "{error}");
    lake.verify();
    running.stop();
}

/// Records of before, and a configuration that forgot where their schemas are: the sink says so, and gives none of them up.
#[test]
fn a_registry_that_was_left_out_is_told() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20)");
    let lake = Pipeline::new().postgres(&users).codec("avro").build();
    assert!(lake.start(&["connectors", "--until-caught-up"]).wait().success());
    let registry = format!("registry = \"{}\"\n", Servers::get().registry);
    let without = lake.variant("state", &[("codec = \"avro\"", "codec = \"json\""), (&registry, "")]);
    let mut sink = lake.start_with(&without, &["sink"], "");
    let (status, log) = (sink.wait(), sink.log());
    assert!(status.code() == Some(2) && log.contains("set log.registry"), "{status}: {log}");
    let tail = lake.call_with(&without, &["tail", &format!("{}.t", users.name), "--from-beginning", "-e"]);
    let text = String::from_utf8_lossy(&tail.stderr).into_owned();
    assert!(tail.status.code() == Some(2) && text.contains("set log.registry"), "{text}");
    assert!(tail.stdout.is_empty(), "{tail:?}");

    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {}.t", users.name), &json!(20));
    assert_eq!(lake.value("select count(*) from lakeward.dead_letters"), json!(0));
    running.stop();
}

/// `check` asks it.
#[test]
fn check_tells_what_is_wrong_with_the_registry() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY)");
    let lake = Pipeline::new().postgres(&users).codec("avro").build();
    let good = lake.call(&["check"]);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    let registry = Servers::get().registry;
    let there = registry.split("/apis").next().unwrap();
    for (wrong, said) in
        [("http://key:hunter2@127.0.0.1:1", "does not answer"), (there, "there is no schema registry at log.registry")]
    {
        let output = lake.call_with(&lake.variant("state", &[(&registry, wrong)]), &["check"]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("registry: ") && text.contains(said) && !text.contains("hunter2"), "{text}");
    }
}

/// The embedded log takes the codec too.
#[test]
fn the_embedded_log_holds_avro_records() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 200) i",
    );
    let lake = Pipeline::new().postgres(&users).embedded().codec("avro").build();
    lake.catch_up();
    users.execute("UPDATE t SET v = NULL WHERE id <= 10; DELETE FROM t WHERE id > 190");
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(v) from {}.t", users.name), &json!(180));
    lake.verify();
    running.stop();
    // They are of that codec: another would need no registry.
    for of in ["key", "value"] {
        let versions = Servers::get().registry(&format!("/subjects/{}.public.t-{of}/versions", users.name));
        assert_eq!(versions, json!([1]), "{of}");
    }
}
