//! Nothing but the databases: log, catalog and warehouse in `state_dir`.

use std::time::Duration;

use mongodb::bson::doc;
use rand::Rng;
use serde_json::{Value, json};

use crate::faults::Scene;
use crate::harness::{Mongo, Pipeline, Postgres, heavy, wait_until};

/// From an empty folder to a proved answer, with the roles in one process and in two.
#[test]
fn a_laptop_needs_only_its_databases() {
    let users = Postgres::new(
        "CREATE TABLE orders (id int PRIMARY KEY, item text, price numeric(12,2));
         INSERT INTO orders SELECT i, 'item-' || (i % 10), i FROM generate_series(1, 200) i",
    );
    let shop = Mongo::new();
    let items = shop.collection("items");
    items.insert_many((0..10).map(|i| doc! { "_id": format!("item-{i}"), "stock": i }).collect());
    let lake = Pipeline::new().postgres(&users).mongo(&shop).embedded().build();
    let text = std::fs::read_to_string(lake.config()).unwrap();
    assert!(!["[log]", "[catalog]", "[warehouse]"].iter().any(|section| text.contains(section)), "{text}");
    let checked = lake.call(&["check"]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    lake.catch_up();
    let join = format!(
        "select sum(o.price) from {}.orders o join {}.items i on i._id = o.item where i.stock > 7",
        users.name, shop.name
    );
    assert_eq!(lake.value(&join), json!(4140.0));

    let running = lake.start(&[]);
    users.execute("UPDATE orders SET price = price + 1; DELETE FROM orders WHERE id = 8");
    items.update(doc! { "_id": "item-9" }, doc! { "$set": { "stock": -1 } });
    lake.wait_for_value(&join, &json!(2071.0));
    assert_eq!(lake.verify()["tables"].as_array().map(Vec::len), Some(2));
    running.stop();

    let sink = lake.start(&["sink"]);
    let connectors = lake.start(&["connectors"]);
    users.execute("INSERT INTO orders VALUES (1000, 'item-8', 1)");
    lake.wait_for_value(&join, &json!(2072.0));
    lake.verify();
    let status = lake.call(&["status", "--format", "json"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    for source in status["sources"].as_array().unwrap() {
        assert!(source["log"]["checkpoint"].as_i64() >= source["lake"]["checkpoint"].as_i64(), "{status}");
        assert!(source["lake"]["checkpoint"].is_i64(), "{status}");
    }
    assert_eq!(status["away"], json!([]), "{status}");
    connectors.stop();
    sink.stop();
}

/// Who holds a role is named, and nobody who only reads is kept out.
#[test]
fn of_two_processes_in_a_role_the_second_stops() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let lake = Pipeline::new().postgres(&users).embedded().build();
    let running = lake.start(&[]);
    let count = format!("select count(*) from {}.t", users.name);
    lake.wait_for_value(&count, &json!(1));
    for roles in [&[][..], &["connectors"], &["sink"], &["--until-caught-up"]] {
        let mut second = lake.start(roles);
        let status = second.wait();
        let log = second.log();
        assert_eq!(status.code(), Some(2), "{roles:?}: {log}");
        assert!(log.contains(&format!("(process {})", running.id())) && log.contains("state_dir"), "{roles:?}: {log}");
    }
    // The first one has not noticed anything.
    users.execute("INSERT INTO t VALUES (2)");
    lake.wait_for_value(&count, &json!(2));
    lake.verify();
    running.kill();
    // A lock does not outlive its process.
    lake.catch_up();
}

/// The points of an append, and how often each is passed before it kills.
const POINTS: [(&str, u32); 6] = [
    ("log.append.begun", 3),
    ("log.append.data_sent", 5),
    ("log.append.checkpoint_sent", 2),
    ("log.append.before_commit", 4),
    ("log.append.committed", 6),
    ("connector.confirm.before", 2),
];

#[test]
fn processes_die_at_every_point_and_at_any_moment() {
    let _heavy = heavy();
    let scene = Scene::new(Pipeline::new().embedded());
    for (point, passes) in POINTS {
        scene.lake.start_failing(&[], point, passes).dies_at(point);
    }
    for _ in 0..4 {
        let running = scene.lake.start(&[]);
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(500..5_000)));
        running.kill();
    }
    let running = scene.lake.start(&[]);
    scene.proved([running]);
}

/// What the lake holds leaves the log: the file follows what is on its way, not what ever passed through.
#[test]
fn the_log_is_emptied_as_the_lake_takes_it() {
    let _heavy = heavy();
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, big text); CREATE TABLE quiet (id int PRIMARY KEY); INSERT INTO quiet VALUES (1)",
    );
    let lake = Pipeline::new().postgres(&users).embedded().build();
    let running = lake.start(&[]);
    let log = lake.dir().join("state/log.db");
    let size = || std::fs::metadata(&log).map_or(0, |file| file.len() >> 20);
    let mut largest = 0;
    for round in 1..=8 {
        // 8 MiB that do not compress to less than half.
        users.execute(&format!(
            "INSERT INTO t SELECT {round} * 1000 + i, (SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 512) j)
             FROM generate_series(1, 512) i"
        ));
        lake.wait_for_value(&format!("select count(*) from {}.t", users.name), &json!(512 * round));
        largest = largest.max(size());
    }
    assert!(largest > 0 && largest < 40, "{largest} MiB for 64 MiB that passed");
    // Its blocks are gone, and `verify` still finds the checkpoints that it needs.
    let status = || -> Value { serde_json::from_slice(&lake.call(&["status", "--format", "json"]).stdout).unwrap() };
    let from = status()["sources"][0]["lake"]["checkpoint"].as_i64();
    wait_until("cuts go on", || status()["sources"][0]["lake"]["checkpoint"].as_i64() > from);
    lake.verify();
    running.stop();
    assert!(size() < 40, "{} MiB are left", size());
    // A sink that begins anew goes on where the lake is.
    lake.catch_up();
    assert_eq!(lake.value(&format!("select count(*) from {}.quiet", users.name)), json!(1));
}

/// A log that was deleted beside a lake that was not: new records must not pass for those that the lake has.
#[test]
fn a_new_log_under_an_old_lake_is_noticed() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 500)");
    let lake = Pipeline::new().postgres(&users).embedded().build();
    lake.catch_up();
    std::fs::remove_file(lake.dir().join("state/log.db")).unwrap();
    let connectors = lake.start(&["connectors"]);
    users.execute("INSERT INTO t VALUES (1000)");
    let mut sink = lake.start(&["sink"]);
    let status = sink.wait();
    assert_eq!(status.code(), Some(4), "{}", sink.log());
    assert!(sink.log().contains("not the one that the lake was filled from"), "{}", sink.log());
    connectors.stop();
}
