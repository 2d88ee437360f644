//! The path with records of another form than `json`: the same lake, and a log that strangers can read.

use std::process::Command;

use mongodb::bson::doc;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::harness::{
    Lakeward, Mongo, Pipeline, Postgres, Servers, noise, produce_with_header, python, record_headers,
};

/// Every kind of change of both services as Arrow batches: keys that change their partition, values that updates leave out,
/// whole old rows, truncates, patches, documents.
#[test]
fn arrow_records_carry_every_change() {
    let mut rng = StdRng::seed_from_u64(4);
    let users = Postgres::new(
        "CREATE TABLE users (id int PRIMARY KEY, name text, tags text[], balance numeric(12,2), at timestamptz, u uuid);
         CREATE TABLE toast (id int PRIMARY KEY, n int, big text); ALTER TABLE toast ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE whole (id int PRIMARY KEY, n int, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE emptied (id int PRIMARY KEY, free numeric(5,1));
         INSERT INTO users SELECT i, 'user ' || i, ARRAY['a', NULL, i::text], i * 1.11, now(), gen_random_uuid() FROM generate_series(1, 2000) i;
         INSERT INTO whole SELECT i, i, NULL FROM generate_series(1, 50) i;
         INSERT INTO emptied VALUES (1, 'NaN'), (2, 1.5)",
    );
    for id in 1..=6 {
        users.execute(&format!("INSERT INTO toast VALUES ({id}, 0, '{}')", noise(&mut rng, 20_000)));
    }
    let shop = Mongo::new();
    let items = shop.collection("items");
    items.insert_many((0..500).map(|i| doc! { "_id": i, "price": i, "size": { "w": i } }).collect());
    let images = shop.collection_with_post_images("images");
    images.insert_many((0..20).map(|i| doc! { "_id": format!("i{i}"), "v": i }).collect());

    let lake = Pipeline::new().postgres(&users).mongo(&shop).codec("arrow").build();
    lake.catch_up();
    let (u, m) = (&users.name, &shop.name);
    assert_eq!(lake.value(&format!("select count(*) from {u}.users")), json!(2000));
    let running = lake.start(&[]);
    users.execute(
        "UPDATE users SET name = NULL, tags = '{}' WHERE id % 10 = 0;
         UPDATE users SET id = id + 10000 WHERE id <= 100;
         DELETE FROM users WHERE id BETWEEN 101 AND 200;
         UPDATE toast SET n = 1; UPDATE toast SET id = id + 100 WHERE id <= 2; UPDATE toast SET big = 'short' WHERE id = 3;
         UPDATE whole SET n = -n, note = 'changed' WHERE id % 2 = 0; DELETE FROM whole WHERE id > 40; UPDATE whole SET id = 900 WHERE id = 1;
         TRUNCATE emptied; INSERT INTO emptied VALUES (3, 'NaN')",
    );
    items.update(doc! { "_id": 1 }, doc! { "$inc": { "price": 100 }, "$set": { "size.h": 2 } });
    items.replace(doc! { "_id": 2 }, doc! { "price": 7.5, "label": "sale" });
    items.delete(doc! { "_id": 9 });
    images.update(doc! { "_id": "i1" }, doc! { "$set": { "v": "text" } });
    images.delete(doc! { "_id": "i2" });
    lake.wait_for_value(&format!("select count(*) from {u}.emptied where id = 3"), &json!(1));
    lake.wait_for_value(&format!("select count(*) from {m}.images"), &json!(19));
    lake.verify();
    assert_eq!(lake.value(&format!("select count(*) from {u}.users")), json!(1900));
    let letters = format!("select count(*) from lakeward.dead_letters where source = '{u}' and \"column\" = 'free'");
    assert_eq!(lake.value(&letters), json!(2), "values that their column cannot hold are told here too");
    running.stop();

    // While nothing runs; a column more is another version.
    users.execute(
        "ALTER TABLE users ADD COLUMN age int; UPDATE users SET age = 30 WHERE id = 300; UPDATE toast SET n = 2; DELETE FROM toast WHERE id = 4",
    );
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select sum(age) from {u}.users"), &json!(30));
    lake.verify();
    running.stop();

    let headers = record_headers(&Servers::get().kafka, u);
    assert!(headers.iter().all(|(_, header)| header.starts_with("arrow,")), "{headers:?}");
    let of_users = headers.iter().filter(|(topic, _)| topic.ends_with(".users")).count();
    assert!(of_users < 100, "{of_users} records for 2,300 changes");
}

/// A configuration that was changed and changed back: the log holds both forms, and one reader reads it through.
#[test]
fn a_log_may_change_its_codec() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t SELECT i, 0, 'v' || i FROM generate_series(1, 200) i",
    );
    let shop = Mongo::new();
    let items = shop.collection("items");
    items.insert_many((0..20).map(|i| doc! { "_id": i, "n": 0 }).collect());
    let lake = Pipeline::new().postgres(&users).mongo(&shop).build();
    let arrow = lake.variant("state", &[("codec = \"json\"", "codec = \"arrow\"")]);
    let connectors = |config: &std::path::Path| {
        let status = lake.start_with(config, &["connectors", "--until-caught-up"], "").wait();
        assert!(status.success(), "{status}");
    };
    let change = |n: i32| {
        users.execute(&format!(
            "UPDATE t SET n = {n} WHERE id % 2 = 0; DELETE FROM t WHERE id = {n}; INSERT INTO t VALUES (1000 + {n}, {n}, NULL);
             UPDATE t SET id = 2000 + {n} WHERE id = 100 + {n}"
        ));
        items.update(doc! { "_id": n }, doc! { "$set": { format!("f{n}"): n } });
        items.delete(doc! { "_id": 10 + n });
    };
    connectors(lake.config());
    change(1);
    connectors(&arrow);
    change(2);
    connectors(&arrow);
    change(3);
    connectors(lake.config());
    let headers = record_headers(&Servers::get().kafka, &users.name);
    let of_arrow = headers.iter().filter(|(_, header)| header.starts_with("arrow,")).count();
    assert!(of_arrow > 0 && headers.len() > of_arrow + 200, "{of_arrow} of {}", headers.len());

    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {}.t where id between 1001 and 1003", users.name), &json!(3));
    lake.wait_for_value(&format!("select count(*) from {}.items", shop.name), &json!(17));
    lake.verify();
    running.stop();
}

/// Bytes that say they are a batch and are none: one dead letter with the place of the record, and the rest goes on.
#[test]
fn an_unreadable_batch_is_a_dead_letter() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20)");
    let lake = Pipeline::new().postgres(&users).codec("arrow").build();
    let t = format!("{}.t", users.name);
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(20));
    let topic = format!("{}.public.t", users.name);
    let header = b"arrow,1,op sequence position";
    let offset = produce_with_header(&Servers::get().kafka, &topic, 1, header, b"\xff\xff\xff\xff\x10\0\0\0nonsense");
    users.execute("INSERT INTO t SELECT generate_series(21, 40)");
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(40));
    let letters = lake.sql(&format!(
        "select \"partition\", \"offset\", payload, error from lakeward.dead_letters where topic = '{topic}'"
    ));
    assert_eq!(letters.len(), 1, "{letters:?}");
    let payload = "\\xffffffff100000006e6f6e73656e7365";
    assert_eq!(
        (&letters[0]["partition"], &letters[0]["offset"], &letters[0]["payload"]),
        (&json!(1), &json!(offset), &json!(payload))
    );
    lake.verify();
    running.stop();
}

#[test]
fn a_codec_that_is_not_there_is_refused() {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY)");
    let lake = Pipeline::new().postgres(&users).codec("avro").build();
    let output = lake.call(&["check"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("\"avro\" is not there yet"), "{text}");
}

/// The example of docs/log.md, as it stands there, prints what PostgreSQL holds.
#[test]
fn the_documented_example_reads_our_records() {
    let users = Postgres::new(
        "CREATE TABLE orders (id int PRIMARY KEY, item text, price numeric(10,2), placed timestamptz, tags text[]);
         INSERT INTO orders SELECT i, 'item ' || i, i + 0.25, '2026-01-02 03:04:05+00', ARRAY['x', NULL] FROM generate_series(1, 300) i",
    );
    let lake: Lakeward = Pipeline::new().postgres(&users).codec("arrow").build();
    let connect = || assert!(lake.start(&["connectors", "--until-caught-up"]).wait().success());
    connect();
    users.execute("DELETE FROM orders WHERE id = 7; ALTER TABLE orders ADD COLUMN note text; UPDATE orders SET note = 'late' WHERE id = 8");
    connect();

    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/log.md")).unwrap();
    let example = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let script =
        example.replace("127.0.0.1:9092", &Servers::get().kafka).replace("users.", &format!("{}.", users.name));
    let output = Command::new(python()).arg("-c").arg(&script).output().expect("Python can be started");
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{failed}\n{script}");
    let rows: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ops = |op: char| rows.iter().filter(|row| row["op"] == json!(op as u32)).collect::<Vec<_>>();
    assert_eq!((ops('r').len(), ops('d').len(), ops('u').len()), (300, 1, 1), "{rows:?}");
    let first = ops('r').into_iter().find(|row| row["after"]["id"] == json!(1)).unwrap();
    assert_eq!(
        first["after"],
        json!({ "id": 1, "item": "item 1", "price": "1.25", "placed": "2026-01-02 03:04:05+00:00", "tags": ["x", null] })
    );
    assert_eq!(ops('d')[0]["before"]["id"], json!(7));
    assert_eq!(ops('u')[0]["after"]["note"], json!("late"));
}
