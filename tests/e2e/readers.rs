//! The tables as others read them: PyIceberg and DuckDB, with delete files to be obeyed, against `lakeward sql`.

use std::process::Command;

use crate::harness::{Lakeward, Pipeline, Postgres, python};

const TABLE: &str = "
    CREATE TABLE t (id bigint PRIMARY KEY, n int, f float8, price numeric(12,2), exact numeric, t text, b bool, d date,
                    ts timestamp, tz timestamptz, u uuid, by bytea, j jsonb, a int[]);
    INSERT INTO t SELECT i, i, i / 3.0, i * 1.11, i * 0.1, 'text ' || i, i % 2 = 0, DATE '2020-01-01' + i, TIMESTAMP '2020-01-01' + i * INTERVAL '1.000001 s',
        now(), gen_random_uuid(), decode(md5(i::text), 'hex'), '{\"a\": 1}', ARRAY[i, NULL] FROM generate_series(1, 1000) i";

/// Leaves live delete files: rows of files that stay are replaced and deleted.
const CHANGES: &str = "
    UPDATE t SET n = -n, t = NULL, a = NULL, u = NULL WHERE id % 10 = 0;
    DELETE FROM t WHERE id % 7 = 0;
    UPDATE t SET id = id + 5000, f = 'NaN' WHERE id % 101 = 0;
    INSERT INTO t (id) VALUES (9999)";

/// Runs readers.py; it compares value by value, and says what differs.
fn compared(lake: &Lakeward, users: &Postgres, readers: &str) {
    let query = format!("select * from {}.t order by id", users.name);
    let answer = lake.call(&["sql", "--format", "arrow", "-c", &query]);
    assert!(answer.status.success(), "{answer:?}");
    let file = lake.dir().join("answer.arrow");
    std::fs::write(&file, answer.stdout).unwrap();
    let output = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/readers.py"))
        .arg(lake.config())
        .arg(format!("{}.t", users.name))
        .arg(&file)
        .arg(readers)
        .output()
        .expect("Python can be started");
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{failed}");
    for reader in readers.split(',') {
        assert!(said.contains(&format!("{reader}: 859 rows equal")), "{said}{failed}");
    }
}

fn changed(pipeline: Pipeline, users: &Postgres) -> Lakeward {
    let lake = pipeline.postgres(users).build();
    lake.catch_up();
    users.execute(CHANGES);
    assert_eq!(users.value("SELECT count(*) FROM t"), "859");
    lake.catch_up();
    lake
}

/// A catalog in PostgreSQL, files in MinIO.
#[test]
fn pyiceberg_reads_the_same_from_s3() {
    let users = Postgres::new(TABLE);
    let lake = changed(Pipeline::new().postgres_catalog(), &users);
    compared(&lake, &users, "pyiceberg");
}

/// A catalog in SQLite, files in a folder. (DuckDB's reader of S3 is not on the package index.)
#[test]
fn pyiceberg_and_duckdb_read_the_same_from_a_folder() {
    let users = Postgres::new(TABLE);
    let lake = changed(Pipeline::new().local_warehouse(), &users);
    compared(&lake, &users, "pyiceberg,duckdb");
}
