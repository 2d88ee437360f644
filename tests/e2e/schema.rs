//! Tables change their shape under the pipeline: columns come, go, and get other names and types, keys too.

use serde_json::json;

use crate::harness::{Pipeline, Postgres};

#[test]
fn columns_come_and_go() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, name text, gone int, f real); INSERT INTO t VALUES (1, 'one', 1, 1.5)",
    );
    let lake = Pipeline::new().postgres(&users).build();
    let t = format!("{}.t", users.name);
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(1));

    users.execute("ALTER TABLE t ADD COLUMN age int; INSERT INTO t VALUES (2, 'two', 2, 2.5, 30)");
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(2));
    assert_eq!(
        lake.sql(&format!("select * from {t} where id = 2")),
        [json!({ "id": 2, "name": "two", "gone": 2, "f": 2.5, "age": 30 })]
    );
    assert_eq!(lake.value(&format!("select age from {t} where id = 1")), json!(null));

    // A rename is a rename: old rows have their values under the new name.
    users.execute("ALTER TABLE t RENAME name TO title; INSERT INTO t VALUES (3, 'three', 3, 3.5, 40)");
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(3));
    assert_eq!(
        lake.sql(&format!("select title from {t} order by id")),
        [json!({ "title": "one" }), json!({ "title": "two" }), json!({ "title": "three" })]
    );
    assert!(lake.try_sql(&format!("select name from {t}")).is_err());

    // A dropped column is kept, without values from then on; wider types hold the old values.
    users.execute(
        "ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ALTER f TYPE float8; INSERT INTO t VALUES (4, 'four', 0.1, 50)",
    );
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(4));
    assert_eq!(
        lake.sql(&format!("select id, title, f, age from {t} where id in (1, 4) order by id")),
        [
            json!({ "id": 1, "title": "one", "f": 1.5, "age": null }),
            json!({ "id": 4, "title": "four", "f": 0.1, "age": 50 })
        ]
    );
    assert_eq!(lake.value(&format!("select gone from {t} where id = 4")), json!(null));

    // While nothing runs: what the stream says of the columns is older than the catalog, and they are told apart all the same.
    running.stop();
    users.execute("UPDATE t SET title = title || '!' WHERE id > 2; ALTER TABLE t ADD COLUMN x text; UPDATE t SET x = 'x' || id; DELETE FROM t WHERE id = 2");
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(3));
    assert_eq!(
        lake.sql(&format!("select title, x from {t} order by id")),
        [
            json!({ "title": "one", "x": "x1" }),
            json!({ "title": "three!", "x": "x3" }),
            json!({ "title": "four!", "x": "x4" })
        ]
    );
    lake.verify();
    running.stop();
}

/// Trap 29: the key's values are the same rows under a wider type.
#[test]
fn a_widened_key_finds_its_rows() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 200) i",
    );
    let lake = Pipeline::new().postgres(&users).postgres_catalog().build();
    let t = format!("{}.t", users.name);
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {t}"), &json!(200));
    // In both halves of the key's range, before and after a restart, which has to rebuild or to keep its index.
    users.execute(
        "ALTER TABLE t ALTER id TYPE bigint;
         UPDATE t SET n = 1 WHERE id <= 100; DELETE FROM t WHERE id = 150; INSERT INTO t VALUES (5000000000, 1)",
    );
    lake.wait_for_value(&format!("select sum(n) from {t}"), &json!(101));
    assert_eq!(lake.value(&format!("select count(*) from {t}")), json!(200));
    running.kill();
    users.execute("UPDATE t SET n = n + 1; DELETE FROM t WHERE id = 1; UPDATE t SET id = 2 + 6000000000 WHERE id = 2");
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {t} where id > 6000000000"), &json!(1));
    assert_eq!(
        lake.sql(&format!("select count(*) as n, count(distinct id) as ids, sum(n) as sum from {t}")),
        [json!({ "n": 199, "ids": 199, "sum": 299 })]
    );
    lake.verify();
    running.stop();
}
