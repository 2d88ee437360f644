//! What users get wrong, and what comes in broken: a clear message, the right exit code, and nothing lost.

use mongodb::bson::doc;
use serde_json::json;

use crate::harness::{
    Lakeward, Mongo, Pipeline, Postgres, Servers, Stack, fresh, poll, produce, said, stream_records, wait_until,
};

fn pipeline() -> (Postgres, Lakeward) {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n int); INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 20) i",
    );
    let lake = Pipeline::new().postgres(&users).build();
    (users, lake)
}

#[test]
fn an_unknown_key_is_named_with_the_nearest() {
    let (_users, lake) = pipeline();
    let config = lake.variant("state", &[("commit_interval", "comit_interval")]);
    said(&lake.call_with(&config, &["run"]), 2, &["comit_interval", "did you mean `commit_interval`"]);
    said(&lake.call_with(&lake.dir().join("nowhere.toml"), &["run"]), 2, &["nowhere.toml", "lakeward init"]);
    said(&lake.call(&["run", "everything"]), 2, &["everything"]);
    said(&lake.call(&["run", "--source", "nobody"]), 2, &["nobody"]);
}

#[test]
fn servers_that_are_away_or_refuse_are_named() {
    let (users, lake) = pipeline();
    let servers = Servers::get();
    let host = |url: &str| url.rsplit_once('@').map_or(url, |(_, rest)| rest).split('/').next().unwrap().to_owned();
    let postgres = host(&users.url);

    // The password: nothing that time would cure.
    let config = lake.variant("state", &[("postgres:lakeward@", "postgres:wrong-password@")]);
    said(&lake.call_with(&config, &["check"]), 1, &["password"]);
    said(&lake.call_with(&config, &["run", "--until-caught-up"]), 2, &["password"]);

    // A port at which nobody listens: `check` says so at once, for each server.
    let config = lake.variant("state", &[(&format!("@{postgres}/"), "@127.0.0.1:9/")]);
    said(&lake.call_with(&config, &["check"]), 1, &[&users.name, "127.0.0.1:9"]);
    let config = lake.variant("state", &[(&format!("brokers = \"{}\"", servers.kafka), "brokers = \"127.0.0.1:9\"")]);
    said(&lake.call_with(&config, &["check"]), 1, &["127.0.0.1:9"]);
    let config =
        lake.variant("state", &[(&format!("endpoint = \"{}\"", servers.s3), "endpoint = \"http://127.0.0.1:9\"")]);
    said(&lake.call_with(&config, &["check"]), 1, &["127.0.0.1:9"]);

    // And with what is right, right.
    said(&lake.call(&["check"]), 0, &[]);
}

/// Says how to set it, and has everything once it is set.
#[test]
fn a_server_whose_wal_is_not_logical_is_told() {
    let stack = Stack::start(&["postgres"], &[]);
    let servers = stack.servers();
    let users =
        Postgres::on(&servers, "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'early')");
    let lake = Pipeline::new().postgres(&users).build();
    let restarted = |level: &str| {
        users.session().execute(&format!("ALTER SYSTEM SET wal_level = {level}"));
        stack.stop("postgres");
        stack.restart("postgres");
        assert_eq!(users.session().value("SHOW wal_level"), level);
    };
    restarted("replica");
    let words =
        ["wal_level is replica", "ALTER SYSTEM SET wal_level = logical", "restart the server", users.name.as_str()];
    said(&lake.call(&["check"]), 1, &words);
    said(&lake.call(&["run"]), 2, &words);
    said(&lake.call(&["run", "--until-caught-up"]), 2, &words);
    users.session().execute("INSERT INTO t VALUES (2, 'meanwhile')");

    restarted("logical");
    said(&lake.call(&["check"]), 0, &[]);
    let running = lake.start(&[]);
    users.session().execute("INSERT INTO t VALUES (3, 'after')");
    lake.wait_for_value(&format!("select count(*) from {}.t", users.name), &json!(3));
    lake.verify();
    running.stop();
}

/// Tables whose updates nobody could follow are named and left alone: the application's own updates go on. With a key they join.
#[test]
fn tables_without_replica_identity_are_told_and_left_alone() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1);
         CREATE TABLE keyless (id int NOT NULL, n int); INSERT INTO keyless VALUES (1, 1), (2, 1);
         CREATE TABLE silent (id int PRIMARY KEY, n int); INSERT INTO silent VALUES (1, 1), (2, 1);
         ALTER TABLE silent REPLICA IDENTITY NOTHING",
    );
    let lake = Pipeline::new().postgres(&users).build();
    let name = &users.name;
    said(
        &lake.call(&["check"]),
        1,
        &[
            "table public.keyless has no key",
            "add a primary key",
            "table public.silent has REPLICA IDENTITY NOTHING",
            "ALTER TABLE \"public\".\"silent\" REPLICA IDENTITY DEFAULT",
        ],
    );
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {name}.t"), &json!(1));
    for table in ["keyless", "silent"] {
        let log = running.log();
        assert!(log.contains(&format!("table public.{table} has")), "{log}");
        // Published without an identity, these would fail.
        users.execute(&format!("UPDATE {table} SET n = 2 WHERE id = 1; DELETE FROM {table} WHERE id = 2"));
        let missing = lake.try_sql(&format!("select * from {name}.{table}")).unwrap_err();
        assert_eq!(missing.0, 1, "{}", missing.1);
    }
    // What is not captured is not proven.
    let verified = lake.verify_any(&[]);
    assert_eq!(verified.code, 1, "{verified:?}");
    let report = verified.report.to_string();
    assert!(report.contains("keyless") && report.contains("silent"), "{report}");

    users.execute("ALTER TABLE keyless ADD PRIMARY KEY (id); ALTER TABLE silent REPLICA IDENTITY DEFAULT");
    for table in ["keyless", "silent"] {
        lake.wait_for_value(&format!("select sum(n) from {name}.{table}"), &json!(2));
        users.execute(&format!("UPDATE {table} SET n = 3; INSERT INTO {table} VALUES (4, 4)"));
    }
    lake.wait_for_value(&format!("select sum(n) from {name}.silent"), &json!(7));
    said(&lake.call(&["check"]), 0, &[]);
    lake.verify();

    // A table that loses its key while it is captured is said to be captured no longer, and why.
    users.execute("ALTER TABLE silent REPLICA IDENTITY NOTHING");
    let told = poll(|| running.log().contains("public.silent is not captured any more").then_some(()));
    assert!(told.is_some(), "{}", running.log());
    users.execute("UPDATE silent SET n = 5");
    let verified = lake.verify_any(&[]);
    assert_eq!(verified.code, 1, "{verified:?}");
    users.execute("ALTER TABLE silent REPLICA IDENTITY DEFAULT");
    lake.wait_for_value(&format!("select sum(n) from {name}.silent"), &json!(10));
    lake.verify();
    running.stop();
}

/// Without a replica set there are no change streams. The data stay; once it is one, all of them come.
#[test]
fn a_standalone_mongod_is_told() {
    let mut stack = Stack::start(&["mongodb"], &[("LAKEWARD_MONGO_SET", "")]);
    let shop = Mongo::on(&stack.servers());
    shop.collection("items").insert(doc! { "_id": 1, "name": "early" });
    let lake = Pipeline::new().mongo(&shop).build();
    let words = ["standalone", "--replSet", "rs.initiate()", shop.name.as_str()];
    said(&lake.call(&["check"]), 1, &words);
    said(&lake.call(&["run"]), 2, &words);
    said(&lake.call(&["run", "--until-caught-up"]), 2, &words);

    stack.stop("mongodb");
    stack.set(&[]);
    stack.restart("mongodb");
    said(&lake.call(&["check"]), 0, &[]);
    let running = lake.start(&[]);
    shop.collection("items").insert(doc! { "_id": 2, "name": "after" });
    lake.wait_for_value(&format!("select count(*) from {}.items", shop.name), &json!(2));
    lake.verify();
    running.stop();
}

/// `check` and `run` say it alike; what was captured meanwhile waits in the log.
#[test]
fn a_missing_bucket_is_told() {
    let (users, lake) = pipeline();
    let bucket = fresh("no-bucket-");
    let config = lake.variant("state", &[("s3://lake/", &format!("s3://{bucket}/"))]);
    let words = [bucket.as_str(), "bucket does not exist", "[warehouse] url"];
    said(&lake.call_with(&config, &["check"]), 1, &words);
    said(&lake.call_with(&config, &["run"]), 2, &words);
    said(&lake.call_with(&config, &["run", "--until-caught-up"]), 2, &words);
    users.execute("UPDATE t SET n = n + 100 WHERE id <= 5; DELETE FROM t WHERE id = 6");
    lake.catch_up();
    assert_eq!(lake.value(&format!("select count(*) from {}.t", users.name)), json!(19));
    let running = lake.start(&[]);
    lake.verify();
    running.stop();
}

#[test]
fn sql_that_is_wrong_or_would_write_is_refused() {
    let (users, lake) = pipeline();
    let t = format!("{}.t", users.name);
    said(&lake.call(&["sql", "-c", &format!("select * from {t}")]), 1, &["t"]);
    lake.catch_up();
    said(&lake.call(&["sql", "-c", &format!("select nothing from {t}")]), 1, &["nothing"]);
    said(&lake.call(&["sql", "-c", "selekt 1"]), 1, &["selekt"]);
    for statement in [
        format!("delete from {t}"),
        format!("insert into {t} values (1)"),
        format!("drop table {t}"),
        "create table x (i int)".into(),
    ] {
        said(&lake.call(&["sql", "-c", &statement]), 1, &["read"]);
    }
    said(&lake.call(&["sql", "--format", "xml", "-c", "select 1"]), 2, &["xml"]);
    assert_eq!(lake.value(&format!("select count(*) from {t}")), json!(20));
}

/// Somebody else writes into our topic: the record is set aside, with the place where it lies, and the rest goes on.
#[test]
fn an_unreadable_record_is_a_dead_letter() {
    let (users, lake) = pipeline();
    let t = format!("{}.t", users.name);
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(20));
    let topic = format!("{}.public.t", users.name);
    let broken = produce(&Servers::get().kafka, &topic, 1, b"{\"id\":3}", b"{\"op\": \"u\", \"after\": {\"id\": 3");
    let bytes = produce(&Servers::get().kafka, &topic, 0, b"\xff\xfe", b"\x00\xff not json");
    users.execute("UPDATE t SET n = n + 100; INSERT INTO t VALUES (21, 'more', 121)");
    lake.wait_for_value(&format!("select count(*) from {t} where n > 100"), &json!(21));
    let letters = lake.sql(&format!(
        "select topic, \"partition\", \"offset\", payload, error from lakeward.dead_letters where source = '{}' order by \"partition\"",
        users.name
    ));
    assert_eq!(letters.len(), 2, "{letters:?}");
    for (letter, (partition, offset, payload)) in letters
        .iter()
        .zip([(0, bytes, "\\x00ff206e6f74206a736f6e"), (1, broken, "{\"op\": \"u\", \"after\": {\"id\": 3")])
    {
        assert_eq!(
            (&letter["topic"], &letter["partition"], &letter["offset"]),
            (&json!(topic), &json!(partition), &json!(offset))
        );
        assert_eq!(letter["payload"], json!(payload));
        assert!(letter["error"].as_str().is_some_and(|e| !e.is_empty()), "{letter}");
    }
    running.kill();
    // They are not written again, and they hold nothing up.
    users.execute("DELETE FROM t WHERE id = 1");
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(20));
    assert_eq!(
        lake.value(&format!("select count(*) from lakeward.dead_letters where source = '{}'", users.name)),
        json!(2)
    );
    lake.verify();
    running.stop();
}

/// A user sets a table back, or writes to it, while the sink runs: it stops or rebases, and doubles nothing.
#[test]
fn a_table_set_back_by_somebody_else_is_noticed() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i",
    );
    let lake = Pipeline::new().postgres(&users).postgres_catalog().build();
    let t = format!("{}.t", users.name);
    lake.catch_up();
    let catalog = lake.catalog().unwrap();
    let row = format!("FROM iceberg_tables WHERE table_namespace = '{}' AND table_name = 't'", users.name);
    let before = catalog.value(&format!("SELECT metadata_location {row}"));
    let mut running = lake.start(&[]);
    users.execute("UPDATE t SET n = 1; INSERT INTO t VALUES (21, 1)");
    lake.wait_for_value(&format!("select sum(n) from {t}"), &json!(21));
    // What a restore of the catalog from a backup does.
    catalog.execute(&format!(
        "UPDATE iceberg_tables SET metadata_location = '{before}' {}",
        &row["FROM iceberg_tables ".len()..]
    ));
    users.execute("UPDATE t SET n = 2; INSERT INTO t VALUES (22, 2)");
    wait_until("the sink notices", || !running.is_running());
    let (status, log) = (running.wait(), running.log());
    assert_eq!(status.code(), Some(4), "a person must look: {log}");
    assert!(log.contains(&t), "it names the table: {log}");
    assert!(!stream_records(&Servers::get().kafka, &users.name).is_empty());
}

/// Where bad records stop a table, they stop that one: others of its source go on, rows of `lakeward.checkpoints` wait, and the
/// table goes on from the very record once it may.
#[test]
fn a_bad_record_stops_its_table_alone() {
    let users = Postgres::new(
        "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE bad (id int PRIMARY KEY, v text);
         INSERT INTO good VALUES (1); INSERT INTO bad VALUES (1, 'a')",
    );
    let lake = Pipeline::new().postgres(&users).build();
    let name = &users.name;
    let stopping = lake.variant("state", &[("[sink]\n", "[sink]\non_bad_record = \"stop\"\n")]);
    let running = lake.start_with(&stopping, &[], "");
    lake.wait_for_value(&format!("select count(*) from {name}.bad"), &json!(1));
    lake.wait_for_value(&format!("select count(*) from {name}.good"), &json!(1));
    let topic = format!("{name}.public.bad");
    let offset = produce(&Servers::get().kafka, &topic, 1, b"{\"id\":3}", b"not json");
    // Some of these come to lie behind it.
    users.execute("INSERT INTO good VALUES (2); INSERT INTO bad SELECT i, 'b' FROM generate_series(2, 20) i");
    // What the lake lacks of a table, and where its topic ends.
    let at = |table: &str| {
        let output = lake.call(&["topics", "--format", "json"]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let topics = found["sources"][0]["topics"].as_array().unwrap();
        let of = topics.iter().find(|topic| topic["topic"] == format!("{name}.public.{table}")).unwrap();
        let ends = of["partitions"].as_array().unwrap().iter().map(|p| p["end"].as_i64().unwrap());
        (of["lag"].as_i64().unwrap(), ends.sum::<i64>())
    };
    wait_until("the table stops", || running.log().contains("the table stops at a bad record"));
    let before = at("good").1;
    users.execute("INSERT INTO good VALUES (3)");
    wait_until("the other table goes on", || {
        let (lag, end) = at("good");
        lag == 0 && end > before
    });
    assert!(at("bad").0 > 0);
    for word in [topic.as_str(), &format!("{name}.bad"), "dead_letter"] {
        assert!(running.log().contains(word), "no {word} in: {}", running.log());
    }
    assert!(running.log().contains(&offset.to_string()));
    // Read together, tables stand at the last moment that is true of both.
    assert_eq!(lake.value(&format!("select count(*) from {name}.good")), json!(1));
    running.kill();

    // Still so after a restart; one that is to end says that it cannot.
    said(&lake.call_with(&stopping, &["run", "--until-caught-up"]), 4, &["a table has stopped", &topic, "offset"]);
    assert!(at("bad").0 > 0);
    assert_eq!(lake.value(&format!("select count(*) from lakeward.dead_letters where source = '{name}'")), json!(0));

    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {name}.good"), &json!(3));
    assert_eq!(lake.value(&format!("select count(*) from {name}.bad")), json!(20));
    assert_eq!(lake.value(&format!("select count(*) from lakeward.dead_letters where source = '{name}'")), json!(1));
    lake.verify();
    running.stop();
}

/// A value that no record of the log can hold is NULL in the lake and a dead letter; its row, its table and its source go on.
#[test]
fn a_value_above_the_largest_record_is_a_dead_letter() {
    for codec in ["json", "arrow"] {
        let users =
            Postgres::new("CREATE TABLE t (id int PRIMARY KEY, v text, n int); INSERT INTO t VALUES (1, 'small', 1)");
        let lake = Pipeline::new().postgres(&users).codec(codec).build();
        let t = format!("{}.t", users.name);
        let running = lake.start(&[]);
        lake.wait_for_value(&format!("select count(*) from {t}"), &json!(1));
        users.execute("INSERT INTO t VALUES (2, repeat('large', 15000000), 2), (3, 'after', 3)");
        lake.wait_for_value(&format!("select count(*) from {t}"), &json!(3));
        assert_eq!(
            lake.sql(&format!("select id, v, n from {t} order by id")),
            [
                json!({"id": 1, "v": "small", "n": 1}),
                json!({"id": 2, "v": null, "n": 2}),
                json!({"id": 3, "v": "after", "n": 3})
            ]
        );
        let letters = lake.sql(&format!(
            "select \"column\", key, payload from lakeward.dead_letters where source = '{}'",
            users.name
        ));
        assert_eq!(letters.len(), 1, "{letters:?}");
        assert_eq!((&letters[0]["column"], &letters[0]["key"]), (&json!("v"), &json!("{\"id\":2}")));
        let payload = letters[0]["payload"].as_str().unwrap();
        assert!(
            payload.starts_with("(75000000 bytes")
                && payload.contains("larger than a record")
                && payload.contains("largelarge")
        );
        // Made smaller, it is there.
        users.execute("UPDATE t SET v = 'small again' WHERE id = 2");
        lake.wait_for_value(&format!("select v from {t} where id = 2"), &json!("small again"));
        lake.verify();
        running.stop();
    }
}
