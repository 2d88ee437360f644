//! Values that PostgreSQL stores beside their row, and leaves out of an update that does not change them.

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::harness::{Pipeline, Postgres, noise};

#[test]
fn values_that_updates_leave_out_stay() {
    let mut rng = StdRng::seed_from_u64(3);
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, n int, big text, other text);
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE t ALTER other SET STORAGE EXTERNAL",
    );
    let mut insert = |id: i32| {
        let (big, other) = (noise(&mut rng, 16_000), noise(&mut rng, 9_000));
        users.execute(&format!("INSERT INTO t VALUES ({id}, 0, '{big}', '{other}')"));
    };
    (1..=4).for_each(&mut insert);
    assert_eq!(
        users.value("SELECT count(*) FROM t WHERE pg_column_size(big) >= 8192 AND pg_column_size(other) >= 8192"),
        "4"
    );
    let lake = Pipeline::new().postgres(&users).build();
    let t = format!("{}.t", users.name);
    let n = |lake: &crate::harness::Lakeward, expected: i64| {
        lake.wait_for_value(&format!("select sum(n) from {t}"), &json!(expected));
    };
    // Text by text, not by hash: what differs is to be seen.
    let same = |lake: &crate::harness::Lakeward| {
        let rows = lake.sql(&format!("select id, n, big, other from {t} order by id"));
        let source = users.rows("SELECT id, n, big, other FROM t ORDER BY id");
        assert_eq!(rows.len(), source.len());
        for (row, source) in rows.iter().zip(source) {
            assert_eq!(row["id"].to_string(), source[0].clone().unwrap());
            for (column, expected) in [("big", &source[2]), ("other", &source[3])] {
                let found = row[column].as_str().map(str::to_owned);
                assert!(found == *expected, "{column} of {}: {:.40?} instead of {:.40?}", row["id"], found, expected);
            }
        }
    };
    let running = lake.start(&[]);
    n(&lake, 0);
    same(&lake);
    // In the same cut as their insert, in one transaction and in several; twice; with the key; with the other big value.
    users.execute("BEGIN; INSERT INTO t SELECT 10, 0, big || 'x', other FROM t WHERE id = 1; UPDATE t SET n = 1 WHERE id = 10; COMMIT");
    users.execute("UPDATE t SET n = n + 1 WHERE id = 10; UPDATE t SET n = n + 1 WHERE id = 10");
    users.execute("UPDATE t SET other = reverse(other), n = 1 WHERE id = 2");
    users.execute("UPDATE t SET id = 30, n = 1 WHERE id = 3");
    n(&lake, 5);
    same(&lake);
    // In a later cut.
    users.execute("UPDATE t SET n = n + 1; UPDATE t SET id = 31 WHERE id = 30; UPDATE t SET other = NULL WHERE id = 4");
    n(&lake, 10);
    same(&lake);
    running.stop();
    // After a restart, changed while nothing ran; deleted and made again under its key.
    users.execute(
        "UPDATE t SET n = n + 1; UPDATE t SET id = 40 WHERE id = 4;
         BEGIN; DELETE FROM t WHERE id = 1; INSERT INTO t SELECT 1, 5, big, 'short' FROM t WHERE id = 2; UPDATE t SET n = 6 WHERE id = 1; COMMIT",
    );
    let running = lake.start(&[]);
    n(&lake, users.value("SELECT sum(n) FROM t").parse().unwrap());
    same(&lake);
    lake.verify();
    running.stop();
}
