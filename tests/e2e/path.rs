//! The main job: what was written into two services is what `lakeward sql` answers and what `lakeward verify` proves.

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, DateTime, Decimal128, doc, oid::ObjectId};
use serde_json::{Value, json};

use crate::harness::{Mongo, Pipeline, Postgres, fresh};

const TYPES: &str = "
    CREATE TABLE types (
        id bigint PRIMARY KEY, b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric(12,3), free numeric,
        t text, v varchar(10), d date, ti time, ts timestamp, tz timestamptz, u uuid, by bytea, j jsonb, a int[], ta text[]);
    INSERT INTO types VALUES
        (1, true, -32768, 2147483647, 9223372036854775807, 1.5, 0.1, 123456789.125, 1e30, 'Grüße, \"q\"', 'v', '2024-02-29',
         '24:00:00', '2024-01-02 03:04:05.123456', '2024-01-02 03:04:05.5+02', '6b0c1f3e-9b3a-4a52-8f5e-0f6d3d8f6a11',
         '\\x00ff10', '{\"k\": [1, null]}', '{1,NULL,3}', '{a,\"b,c\"}'),
        (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
        (3, false, 0, 0, 0, 'NaN', '-Infinity', -0.001, 0.10, '', '', 'infinity', '00:00:00', '-infinity', 'infinity',
         '00000000-0000-0000-0000-000000000000', '', 'null', '{}', '{}');";

/// Every type that issue and interface name, as the server spells it, before and after the stream has touched it.
#[test]
fn values_of_all_types_are_exact() {
    let users = Postgres::new(TYPES);
    let lake = Pipeline::new().postgres(&users).build();
    lake.catch_up();
    let first = json!({
        "id": 1, "b": true, "i2": -32768, "i4": 2147483647, "i8": 9223372036854775807_i64, "f4": 1.5, "f8": 0.1,
        "n": 123456789.125, "free": "1000000000000000000000000000000", "t": "Grüße, \"q\"", "v": "v", "d": "2024-02-29",
        "ti": "24:00:00", "ts": "2024-01-02T03:04:05.123456", "tz": "2024-01-02T01:04:05.5+00:00",
        "u": "6b0c1f3e-9b3a-4a52-8f5e-0f6d3d8f6a11", "by": "\\x00ff10", "j": "{\"k\": [1, null]}", "a": [1, null, 3],
        "ta": ["a", "b,c"],
    });
    let third = json!({
        "id": 3, "b": false, "i2": 0, "i4": 0, "i8": 0, "f4": "NaN", "f8": "-Infinity", "n": -0.001, "free": "0.10",
        "t": "", "v": "", "d": "infinity", "ti": "00:00:00", "ts": "-infinity", "tz": "infinity",
        "u": "00000000-0000-0000-0000-000000000000", "by": "\\x", "j": "null", "a": [], "ta": [],
    });
    let rows = |lake: &crate::harness::Lakeward| lake.sql(&format!("select * from {}.types order by id", users.name));
    let snapshot = rows(&lake);
    assert_eq!(snapshot.len(), 3);
    compare(&snapshot[0], &first);
    compare(&snapshot[2], &third);
    let second = snapshot[1].as_object().unwrap();
    assert!(second.iter().all(|(column, value)| column == "id" || value.is_null()), "{second:?}");

    // The same values once more, as the stream decodes them: every row is rewritten under a new key.
    users.execute("INSERT INTO types SELECT id + 10, b, i2, i4, i8, f4, f8, n, free, t, v, d, ti, ts, tz, u, by, j, a, ta FROM types; DELETE FROM types WHERE id < 10");
    lake.catch_up();
    let streamed = rows(&lake);
    assert_eq!(streamed.len(), 3);
    for (row, before) in streamed.iter().zip(&snapshot) {
        let (mut row, id) = (row.clone(), before["id"].as_i64().unwrap());
        assert_eq!(row["id"], json!(id + 10));
        row["id"] = json!(id);
        assert_eq!(&row, before, "snapshot and stream agree");
    }
    let csv = lake.call(&[
        "sql",
        "--format",
        "csv",
        "-c",
        &format!("select id, t, b, d from {}.types order by id", users.name),
    ]);
    assert_eq!(
        String::from_utf8(csv.stdout).unwrap(),
        "id,t,b,d\n11,\"Grüße, \"\"q\"\"\",true,2024-02-29\n12,,,\n13,\"\",false,infinity\n"
    );
}

/// Names every column that differs.
fn compare(row: &Value, expected: &Value) {
    let columns = expected.as_object().unwrap();
    let wrong: Vec<String> = columns
        .iter()
        .filter(|(column, value)| row.get(*column) != Some(value))
        .map(|(column, value)| format!("{column}: {} instead of {value}", row.get(column).unwrap_or(&Value::Null)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(row.as_object().unwrap().len(), columns.len(), "no other columns: {row}");
}

/// Every kind of change of both services, in the first snapshot, while it runs, and after a restart; then one join of all.
#[test]
fn two_services_become_one_lake() {
    let users = Postgres::new(
        "CREATE TABLE users (id int PRIMARY KEY, name text, city text);
         CREATE TABLE orders (user_id int, item text, quantity int, PRIMARY KEY (user_id, item));
         CREATE TABLE emptied (id int PRIMARY KEY);
         CREATE SCHEMA audit; CREATE TABLE audit.log (id bigint PRIMARY KEY, what text);
         INSERT INTO users SELECT i, 'user ' || i, 'Oslo' FROM generate_series(1, 100) i;
         INSERT INTO orders SELECT i, 'item-' || (i % 10), i FROM generate_series(1, 100) i;
         INSERT INTO emptied VALUES (1), (2);
         INSERT INTO audit.log VALUES (1, 'made')",
    );
    let shop = Mongo::new();
    let items = shop.collection("items");
    items.insert_many((0..10).map(|i| doc! { "_id": format!("item-{i}"), "price": i, "size": { "w": i } }).collect());
    let (u, m) = (users.name.clone(), shop.name.clone());
    let lake = Pipeline::new().postgres(&users).mongo(&shop).postgres_catalog().build();
    lake.catch_up();
    assert_eq!(lake.value(&format!("select count(*) from {u}.users")), json!(100));
    assert_eq!(lake.value(&format!("select what from {u}__audit.log")), json!("made"));
    assert_eq!(lake.value(&format!("select sum(price) from {m}.items")), json!(45));
    assert_eq!(lake.value(&format!("select size from {m}.items where _id = 'item-3'")), json!("{\"w\":3}"));

    let running = lake.start(&[]);
    users.execute(
        "UPDATE users SET city = 'Lima' WHERE id <= 10;
         UPDATE users SET id = id + 1000 WHERE id BETWEEN 11 AND 20;
         DELETE FROM users WHERE id BETWEEN 21 AND 30;
         INSERT INTO users VALUES (5000, 'late', 'Rome');
         UPDATE orders SET item = 'item-0' WHERE user_id = 5;
         TRUNCATE emptied; INSERT INTO emptied VALUES (3);
         INSERT INTO audit.log VALUES (2, NULL)",
    );
    items.update(doc! { "_id": "item-1" }, doc! { "$inc": { "price": 100 }, "$set": { "size.h": 2 } });
    items.replace(doc! { "_id": "item-2" }, doc! { "price": 7, "label": "sale" });
    items.delete(doc! { "_id": "item-9" });
    let notes = shop.collection("notes");
    let id = ObjectId::new();
    notes.insert(doc! {
        "_id": id, "n": 1, "d": Decimal128::from_bytes([0; 16]), "at": DateTime::from_millis(1_700_000_000_123),
        "raw": Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2] }, "deep": { "a": [1, 2.5, "x"] },
    });
    lake.wait_for_value(&format!("select count(*) from {u}.users where city = 'Rome'"), &json!(1));
    lake.wait_for_value(&format!("select count(*) from {m}.notes"), &json!(1));
    lake.wait_for_value(&format!("select count(*) from {m}.items"), &json!(9));
    assert_eq!(
        lake.sql(&format!(
            "select count(*) as n, sum(id) as ids, count(*) filter (where city = 'Lima') as lima from {u}.users"
        )),
        [json!({ "n": 91, "ids": 5050 + 10 * 1000 - 255 + 5000, "lima": 10 })]
    );
    assert_eq!(lake.value(&format!("select item from {u}.orders where user_id = 5")), json!("item-0"));
    assert_eq!(lake.sql(&format!("select id from {u}.emptied")), [json!({ "id": 3 })]);
    assert_eq!(
        lake.sql(&format!(
            "select _id, price, size, label from {m}.items where _id in ('item-1', 'item-2') order by _id"
        )),
        [
            json!({ "_id": "item-1", "price": 101, "size": "{\"w\":1,\"h\":2}", "label": null }),
            json!({ "_id": "item-2", "price": 7, "size": null, "label": "sale" }),
        ]
    );
    compare_some(
        &lake.sql(&format!("select * from {m}.notes"))[0],
        &json!({ "_id": id.to_hex(), "n": 1, "at": "2023-11-14T22:13:20.123+00:00", "raw": "\\x0102", "deep": "{\"a\":[1,2.5,\"x\"]}" }),
    );
    running.stop();

    // While nothing runs: a table more, a table less rows, a column of its own.
    users.execute(
        "CREATE TABLE later (id int PRIMARY KEY, note text); INSERT INTO later VALUES (1, 'here');
         ALTER TABLE users ADD COLUMN age int; UPDATE users SET age = 30 WHERE id = 5000;
         DELETE FROM orders WHERE user_id > 50",
    );
    items.insert(doc! { "_id": "item-new", "price": 2.5 });
    lake.catch_up();
    assert_eq!(lake.sql(&format!("select * from {u}.later")), [json!({ "id": 1, "note": "here" })]);
    assert_eq!(lake.value(&format!("select sum(age) from {u}.users")), json!(30));
    let join = format!(
        "select count(*) from {u}.users u join {u}.orders o on o.user_id = u.id join {m}.items i on i._id = o.item
         where u.id between 31 and 60"
    );
    // Orders of users 31 to 50 are left, two of them for the deleted item-9.
    assert_eq!(lake.value(&join), json!(18));

    let running = lake.start(&[]);
    let report = lake.verify();
    let tables = report["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 7, "{report}");
    running.stop();
}

/// The columns named are as expected; there may be others.
fn compare_some(row: &Value, expected: &Value) {
    for (column, value) in expected.as_object().unwrap() {
        assert_eq!(row.get(column), Some(value), "{column} of {row}");
    }
}

/// What verify must not overlook: a row that the lake does not have, one that it should not have, and one that is different.
#[test]
fn verify_names_the_keys_that_differ() {
    let users = Postgres::new(
        "CREATE TABLE users (id int PRIMARY KEY, name text); INSERT INTO users SELECT i, 'user ' || i FROM generate_series(1, 500) i;
         CREATE TABLE same (id int PRIMARY KEY); INSERT INTO same VALUES (1)",
    );
    let shop = Mongo::new();
    let items = shop.collection("items");
    items.insert_many((0..50).map(|i| doc! { "_id": i, "n": i }).collect());
    let lake = Pipeline::new().postgres(&users).mongo(&shop).build();
    lake.catch_up();
    let running = lake.start(&[]);
    lake.verify();
    // Changes that the stream does not carry. (A publication without updates is not noticed by the connector, which checks it
    // when it starts.)
    let publication = users.value("SELECT pubname FROM pg_publication");
    users.execute(&format!(
        "ALTER PUBLICATION {publication} SET (publish = 'truncate');
         UPDATE users SET name = 'changed' WHERE id = 7; DELETE FROM users WHERE id = 8; INSERT INTO users VALUES (1234, 'new')"
    ));
    let verified = lake.verify_any(&[]);
    assert_eq!(verified.code, 1, "{verified:?}");
    let table = |name: String| {
        let tables = verified.report["tables"].as_array().unwrap();
        tables
            .iter()
            .find(|t| t["table"] == json!(name))
            .unwrap_or_else(|| panic!("{name} is in {}", verified.report))
            .clone()
    };
    let difference = table(format!("{}.users", users.name))["difference"].clone();
    assert_eq!(difference["missing"], json!([{ "id": "1234" }]), "{difference}");
    assert_eq!(difference["unexpected"], json!([{ "id": "8" }]));
    assert_eq!(
        difference["differing"],
        json!([{ "key": { "id": "7" }, "columns": { "name": ["changed", "user 7"] } }])
    );
    assert_eq!(table(format!("{}.same", users.name))["difference"], Value::Null);
    assert_eq!(table(format!("{}.items", shop.name))["difference"], Value::Null);
    running.stop();
}

/// Nothing to compare, or a name that is no table's, is not success.
#[test]
fn verify_of_nothing_fails() {
    let users = Postgres::new("CREATE TABLE nothing (id int PRIMARY KEY)");
    let lake = Pipeline::new().postgres(&users).build();
    let _running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {}.nothing", users.name), &json!(0));
    let verified = lake.verify_any(&[]);
    assert_eq!(verified.code, 1, "{verified:?}");
    let verified = lake.verify_any(&[&fresh("no.such")]);
    assert_eq!(verified.code, 2, "{verified:?}");
}

/// `init`, `check` and `status` of a pipeline that is all right.
#[test]
fn a_new_user_is_led_from_init_to_status() {
    let users = Postgres::new("CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (1)");
    let shop = Mongo::new();
    shop.collection("items").insert(doc! { "_id": 1 });
    let lake = Pipeline::new().postgres(&users).mongo(&shop).build();
    let config = lake.dir().join("new.toml");
    let made = lake.call_with(&config, &["init"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("[[source]]") && text.contains('#'), "{text}");
    assert_eq!(lake.call_with(&config, &["init"]).status.code(), Some(2), "it does not overwrite");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), text);

    let checked = lake.call(&["check"]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    lake.catch_up();
    let status = lake.call(&["status", "--format", "json"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let text = status.to_string();
    assert!(text.contains(&users.name) && text.contains(&shop.name), "{text}");
}
