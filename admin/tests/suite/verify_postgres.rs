//! `verify` of a PostgreSQL source: equal under load, every type; and what is wrong is named.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::harness::{Pipeline, client};

const TYPES: &str = "
CREATE TABLE every (
    id int8 PRIMARY KEY, b bool, i2 int2, i4 int4, f4 float4, f8 float8, n numeric(12,3), n_free numeric, t text, v varchar(9), c char(6),
    u uuid, y bytea, d date, ts timestamp, tz timestamptz, tm time, iv interval, j json, jb jsonb, ip inet, ai int4[], at text[], af float8[]);
INSERT INTO every SELECT i, i % 2 = 0, i, -i, i / 3.0::float4, sqrt(i), i / 7.0, 1e30 / (i + 1), 'tab' || chr(9) || i || E'\\n\\\\', 'v' || i, 'c',
    gen_random_uuid(), decode(md5(i::text), 'hex'), '2024-01-01'::date - i * 1000, '1000-01-01'::timestamp + i * interval '1 day 1.5 s',
    now() - i * interval '1 h', '24:00', i * interval '1 month 1 s', '{\"a\" :  1}', '{\"b\": [1, 2.50]}', '10.0.0.1/8',
    ARRAY[i, NULL, -i], ARRAY['a', NULL, 'NULL', '', 'x y', '\"q\"', E'\\\\', '{}'], ARRAY[i / 3.0, 'NaN', '-0']
  FROM generate_series(1, 300) i;
INSERT INTO every (id, f4, f8, d, ts, tz) VALUES
    (1001, 'NaN', '-Infinity', 'infinity', '-infinity', 'infinity'), (1002, '-0', '-0', '0044-03-15 BC', '0044-03-15 12:00 BC', '0044-03-15 12:00+00 BC');
INSERT INTO every (id) VALUES (1003);
INSERT INTO every (id, n, ai) VALUES (1004, 'NaN', '{{1,2},{3,4}}'), (1005, 1, '[2:3]={1,2}');";

#[tokio::test(flavor = "multi_thread")]
async fn every_row_and_value_is_equal_under_load_and_what_is_not_is_named() {
    let mut pipeline = Pipeline::new("verify").await;
    pipeline.run(TYPES).await;
    pipeline
        .run(
            "CREATE TABLE orders (region text, id int, note text, PRIMARY KEY (region, id));
             INSERT INTO orders SELECT 'r' || i % 3, i, md5(i::text) FROM generate_series(1, 2000) i",
        )
        .await;
    pipeline.start().await;

    // A writer that never pauses.
    let stop = Arc::new(AtomicBool::new(false));
    let (url, stopped) = (pipeline.url.clone(), stop.clone());
    let writer = tokio::spawn(async move {
        let sql = client(&url).await;
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            sql.batch_execute(&format!(
                "BEGIN; UPDATE orders SET note = 'n{n}' WHERE id % 50 = {n} % 50; INSERT INTO orders VALUES ('new', {n}, NULL);
                 DELETE FROM orders WHERE region = 'new' AND id = {n} - 5; UPDATE every SET f8 = {n} / 7.0::float8, t = NULL WHERE id = {n} % 300; COMMIT"
            ))
            .await
            .unwrap();
        }
        n
    });
    for _ in 0..2 {
        let report = pipeline.settled(&[]).await;
        assert!(report.is_equal(), "{}", report.to_text());
        assert_eq!(report.tables.len(), 2);
        let every = report.tables.iter().find(|t| t.table.ends_with(".every")).unwrap();
        assert_eq!((every.source_rows, every.dead_letters), (305, 3), "{}", report.to_text());
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.unwrap() > 10);

    // Changes that the stream does not carry.
    pipeline
        .run(&format!(
            "ALTER PUBLICATION \"{}\" SET (publish = 'insert');
             UPDATE orders SET note = 'changed behind our back' WHERE region = 'r1' AND id = 7;
             DELETE FROM orders WHERE region = 'r2' AND id = 11;
             ALTER PUBLICATION \"{0}\" SET (publish = 'insert, update, delete, truncate')",
            pipeline.config.sources[0].publication
        ))
        .await;
    let report = pipeline.settled(&["*.orders".into()]).await;
    assert!(!report.is_equal());
    let [orders] = report.tables.as_slice() else { panic!("{}", report.to_text()) };
    let difference = orders.difference.as_ref().unwrap();
    let key = |region: &str, id: &str| {
        BTreeMap::from([("region".to_owned(), region.to_owned()), ("id".to_owned(), id.to_owned())])
    };
    assert_eq!(difference.unexpected, [key("r2", "11")], "{}", report.to_text());
    let [row] = difference.differing.as_slice() else { panic!("{}", report.to_text()) };
    assert_eq!(row.key, key("r1", "7"));
    assert_eq!(row.columns.keys().collect::<Vec<_>>(), ["note"]);
    assert_eq!(row.columns["note"].0.as_deref(), Some("changed behind our back"));
    assert_eq!((difference.totals.missing, difference.totals.doubled), (0, 0));

    // A name that is none is a mistake, not an empty answer.
    let error = pipeline.verify(&["nosuch".into()]).await.unwrap_err();
    assert_eq!(error.action(), lakeward_runtime::Action::Configuration, "{error}");
    pipeline.end().await;
}
