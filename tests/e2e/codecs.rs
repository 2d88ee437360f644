//! The path with records of another form than `json`: the same lake, and a log that strangers can read.

use std::process::Command;

use mongodb::bson::doc;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::harness::{
    Lakeward, Mongo, Pipeline, Postgres, Servers, noise, produce_with_header, python, record_headers, records_beginning,
};

/// Every kind of change of both services, and every type: keys that change their partition, values that updates leave out, whole old
/// rows, truncates, patches, documents, a column that comes in between. What is looked at then: the services, of which the lake holds
/// everything, and the headers of the records of the first.
fn every_change_is_carried(codec: &'static str, look: impl FnOnce(&Postgres, &Mongo, &[(String, String)])) {
    let mut rng = StdRng::seed_from_u64(4);
    let users = Postgres::new(
        "CREATE TABLE users (id int PRIMARY KEY, name text, tags text[], balance numeric(12,2), at timestamptz, u uuid);
         CREATE TABLE toast (id int PRIMARY KEY, n int, big text); ALTER TABLE toast ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE whole (id int PRIMARY KEY, n int, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE emptied (id int PRIMARY KEY, free numeric(5,1));
         CREATE TABLE types (
            id bigint PRIMARY KEY, b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric(12,3), free numeric, t text, v varchar(10),
            d date, ti time, tiz timetz, ts timestamp, tz timestamptz, iv interval, u uuid, by bytea, j json, jb jsonb, ip inet, a int[],
            ta text[], na numeric(5,2)[], tza timestamptz[], ba bytea[], ua uuid[], da date[], bo bool[], \"odd name\" int, \"Ünlaut\" text);
         INSERT INTO types VALUES
            (1, true, -32768, -2147483648, -9223372036854775808, 1.5, 0.1, -123456789.125, 1e30, 'Grüße, \"q\"', 'v', '2024-02-29', '24:00:00',
             '12:00:00+02', '2024-01-02 03:04:05.123456', '2024-01-02 03:04:05.5+02', '1 mon 2 days 00:00:03', '6b0c1f3e-9b3a-4a52-8f5e-0f6d3d8f6a11',
             '\\x00ff10', '{\"k\": [1,  null]}', '{\"k\": 1e400}', '10.0.0.0/8', '{1,NULL,3}', '{a,\"b,c\",NULL}', '{1.25,NULL,-9.99}',
             '{2024-01-01 00:00:00+00,infinity}', '{\"\\\\x00\",NULL}', '{6b0c1f3e-9b3a-4a52-8f5e-0f6d3d8f6a11}', '{0001-01-01,-infinity}', '{t,NULL,f}', 7, 'ö'),
            (3, false, 32767, 2147483647, 9223372036854775807, 'NaN', '-Infinity', 999999999.999, 0.10, '', '', 'infinity', '00:00:00',
             '00:00:00-12', '-infinity', 'infinity', '-1 day', '00000000-0000-0000-0000-000000000000', '', 'null', '{}', '::1', '{}', '{}', '{}', '{}',
             '{}', '{}', '{}', '{}', NULL, ''),
            (4, NULL, 0, 0, 0, 'Infinity', 1e-300, 0, -0.000000000000000000000000000000000000001, '__debezium_unavailable_value', NULL, '0001-01-01 BC',
             '00:00:00.000001', NULL, '4713-01-01 00:00:00 BC', '1969-12-31 23:59:59.999999+00', NULL, NULL, '\\x5f5f', NULL, NULL, NULL, '{-1}', '{\"\"}',
             NULL, NULL, NULL, NULL, NULL, NULL, -1, NULL);
         INSERT INTO types (id) VALUES (2);
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

    let lake = Pipeline::new().postgres(&users).mongo(&shop).codec(codec).build();
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
         UPDATE types SET i4 = i4 + 0; UPDATE types SET id = id + 10; DELETE FROM types WHERE id = 12;
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

    look(&users, &shop, &record_headers(&Servers::get().kafka, u));
}

#[test]
fn arrow_records_carry_every_change() {
    every_change_is_carried("arrow", |_, _, headers| {
        assert!(headers.iter().all(|(_, header)| header.starts_with("arrow,")), "{headers:?}");
        let of_users = headers.iter().filter(|(topic, _)| topic.ends_with(".users")).count();
        assert!(of_users < 100, "{of_users} records for 2,300 changes");
    });
}

/// With the schemas in the registry, a version for each that the table had.
#[test]
fn avro_records_carry_every_change() {
    every_change_is_carried("avro", |users, shop, headers| {
        assert!(headers.iter().all(|(_, header)| header.starts_with("avro,")), "{headers:?}");
        let versions = |subject: &str| Servers::get().registry(&format!("/subjects/{subject}/versions"));
        let topic = |table: &str| format!("{}.public.{table}", users.name);
        assert_eq!(versions(&format!("{}-value", topic("users"))), json!([1, 2]), "a column came");
        assert_eq!(versions(&format!("{}-key", topic("users"))), json!([1]));
        assert_eq!(versions(&format!("{}-value", topic("types"))), json!([1]));
        assert_eq!(versions(&format!("{0}.{0}.items-value", shop.name)), json!([1]));
    });
}

/// A configuration that was changed and changed back: the log holds all forms, and one reader reads it through.
#[test]
fn a_log_may_change_its_codec() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t SELECT i, 0, 'v' || i FROM generate_series(1, 200) i",
    );
    let shop = Mongo::new();
    let items = shop.collection("items");
    items.insert_many((0..20).map(|i| doc! { "_id": i, "n": 0 }).collect());
    let lake = Pipeline::new().postgres(&users).mongo(&shop).codec("avro").build();
    let variant = |codec: &str| lake.variant("state", &[("codec = \"avro\"", &format!("codec = \"{codec}\""))]);
    let (json, arrow, with_schemas) = (variant("json"), variant("arrow"), variant("json\"\ninline_schemas = true #"));
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
    connectors(&json);
    change(1);
    connectors(lake.config());
    change(2);
    connectors(&arrow);
    change(3);
    connectors(&with_schemas);
    change(4);
    connectors(lake.config());
    change(5);
    connectors(&json);
    let headers = record_headers(&Servers::get().kafka, &users.name);
    let of = |codec: &str| headers.iter().filter(|(_, header)| header.starts_with(codec)).count();
    assert!(of("arrow,") > 0 && of("avro,") > 200 && headers.len() > of("avro,") + of("arrow,") + 300, "{headers:?}");
    assert!(records_beginning(&Servers::get().kafka, &users.name, b"{\"schema\":") > 50);

    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {}.t where id between 1001 and 1005", users.name), &json!(5));
    lake.wait_for_value(&format!("select count(*) from {}.items", shop.name), &json!(15));
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
    let lake = Pipeline::new().postgres(&users).codec("protobuf").build();
    let output = lake.call(&["check"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("`protobuf` is not one of"), "{text}");
}

/// The examples of docs/log.md, as they stand there, print what PostgreSQL holds.
#[test]
fn the_documented_example_reads_arrow_records() {
    let rows = read_as_documented("arrow", |examples, _| examples[0].clone());
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

#[test]
fn the_documented_example_reads_avro_records() {
    let rows = read_as_documented("avro", |examples, servers| {
        let example = examples.iter().find(|example| example.contains("fastavro")).expect("an example");
        let (records, _) = examples[0].split_once("schemas = {}").expect("`records`");
        format!("{records}{}", example.replace("http://127.0.0.1:8081", &servers.registry))
    });
    let ops = |op: &str| rows.iter().filter(|row| row["op"] == json!(op)).collect::<Vec<_>>();
    assert_eq!((ops("r").len(), ops("d").len(), ops("u").len()), (300, 1, 1), "{rows:?}");
    let first = ops("r").into_iter().find(|row| row["after"]["id"] == json!(1)).unwrap();
    assert_eq!(
        first["after"],
        json!({ "id": 1, "item": "item 1", "price": "1.25", "placed": "2026-01-02 03:04:05+00:00", "tags": ["x", null] })
    );
    assert_eq!((&first["key"], &first["source"]["table"]), (&json!({ "id": 1 }), &json!("orders")));
    assert_eq!((&ops("d")[0]["before"]["id"], &ops("d")[0]["key"]), (&json!(7), &json!({ "id": 7 })));
    assert_eq!(ops("u")[0]["after"]["note"], json!("late"));
}

/// What a script prints, a JSON value a line, that is made of the page's examples, for a table of this codec.
fn read_as_documented(codec: &'static str, script: impl FnOnce(&[String], &Servers) -> String) -> Vec<Value> {
    let users = Postgres::new(
        "CREATE TABLE orders (id int PRIMARY KEY, item text, price numeric(10,2), placed timestamptz, tags text[]);
         INSERT INTO orders SELECT i, 'item ' || i, i + 0.25, '2026-01-02 03:04:05+00', ARRAY['x', NULL] FROM generate_series(1, 300) i",
    );
    let lake: Lakeward = Pipeline::new().postgres(&users).codec(codec).build();
    let connect = || assert!(lake.start(&["connectors", "--until-caught-up"]).wait().success());
    connect();
    users.execute("DELETE FROM orders WHERE id = 7; ALTER TABLE orders ADD COLUMN note text; UPDATE orders SET note = 'late' WHERE id = 8");
    connect();

    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/log.md")).unwrap();
    let examples: Vec<String> = page
        .split("```python\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .map(|example| {
            example.replace("127.0.0.1:9092", &Servers::get().kafka).replace("users.", &format!("{}.", users.name))
        })
        .collect();
    let script = script(&examples, &Servers::get());
    let output = Command::new(python()).arg("-c").arg(&script).output().expect("Python can be started");
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{failed}\n{script}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
