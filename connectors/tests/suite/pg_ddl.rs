//! Tables that are changed while their changes wait to be read.

use std::time::Duration;

use lakeward_event::Op;

use crate::harness::Source;

#[tokio::test(flavor = "multi_thread")]
async fn columns_keep_their_identity_through_ddl_that_runs_ahead() {
    let source = Source::new("ddl").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, a text, b int)").await;
    source.catch_up().await;
    // All of it is in the WAL before the connector sees any.
    source
        .run(
            "INSERT INTO t VALUES (1, 'one', 1); ALTER TABLE t RENAME a TO c; INSERT INTO t VALUES (2, 'two', 2);
             ALTER TABLE t ADD d text; INSERT INTO t VALUES (3, 'three', 3, 'd'); ALTER TABLE t DROP b; INSERT INTO t VALUES (4, 'four', 'd4')",
        )
        .await;
    source.catch_up().await;
    let changes = source.changes().await;
    assert_eq!(changes.len(), 4);
    let schemas = source.log.schemas(&source.config.name).await.unwrap();
    for schema in &schemas {
        for column in &schema.columns {
            let id = match column.name.as_str() {
                "id" => 1,
                "a" | "c" => 2,
                "b" => 3,
                "d" => 4,
                other => panic!("{other}"),
            };
            assert_eq!(column.id, id, "{schema:?}");
        }
    }
    assert_eq!(changes[0].after.as_ref().unwrap()[1].as_deref(), Some("one"));
    assert_eq!(changes[3].after.as_ref().unwrap()[2].as_deref(), Some("d4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_renamed_before_anybody_read_it_keeps_its_identity() {
    let source = Source::new("renamed").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'one'), (2, 'two')").await;
    source.catch_up().await;
    source.run("ALTER TABLE t ADD x int").await;
    source.run("UPDATE t SET x = 10 WHERE id = 1").await;
    source.run("ALTER TABLE t RENAME x TO y").await;
    source.run("UPDATE t SET y = 20 WHERE id = 2").await;
    source.catch_up().await;
    let changes = source.changes().await;
    assert!(changes.iter().all(|c| c.op != Op::Truncate), "nothing had to be read again");
    let values: Vec<_> =
        changes.iter().filter(|c| c.op == Op::Update).map(|c| c.after.as_ref().unwrap()[2].as_deref()).collect();
    assert_eq!(values, [Some("10"), Some("20")]);
    let schemas = source.log.schemas(&source.config.name).await.unwrap();
    let names: Vec<_> =
        schemas.iter().flat_map(|s| &s.columns).filter(|c| c.id == 3).map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["x", "y"]);
    source.assert_same("public.t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_columns_cannot_be_told_is_read_again() {
    let source = Source::new("untold").await;
    source
        .run(
            "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 5000) i;
             CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
        )
        .await;
    source.catch_up().await;
    source.run("ALTER TABLE t ADD x int").await;
    source.run("UPDATE t SET x = id WHERE id <= 500").await;
    source.run("DELETE FROM t WHERE id > 4900").await;
    source.run("ALTER TABLE t RENAME x TO y").await;
    source.run("ALTER TABLE t ALTER y TYPE bigint").await;
    source.run("UPDATE t SET y = -1 WHERE id <= 100").await;
    let writer = source.connect().await;
    let load = tokio::spawn(async move {
        for n in 0i32.. {
            let id = n.wrapping_mul(7919).rem_euclid(4900) + 1;
            writer.execute("UPDATE t SET y = $1 WHERE id = $2", &[&i64::from(n), &id]).await.unwrap();
            writer.execute("DELETE FROM t WHERE id = $1", &[&(id + 3)]).await.unwrap();
            writer.execute("INSERT INTO t VALUES ($1, 'new', 1)", &[&(10_000 + n)]).await.unwrap();
        }
    });
    let before = source.last().await.unwrap().id;
    let running = source.start();
    source.wait("the new snapshot", |c| c.id > before && c.draft.converging == ["public.t"]).await;
    source.wait("its end", |c| c.id > before && c.draft.cut && c.draft.converging.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.abort();
    let _ = load.await;
    running.stop().await;
    source.catch_up().await;
    source.assert_same("public.t").await;
    source.assert_same("public.other").await;
    let changes = source.changes().await;
    let truncates: Vec<_> = changes.iter().filter(|c| c.op == Op::Truncate).collect();
    assert_eq!(truncates.len(), 2, "one barrier, in each of two partitions");
    assert!(truncates.iter().all(|c| c.table == "public.t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_anew_begins_empty() {
    let source = Source::new("anew").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'old'), (2, 'old')").await;
    source.catch_up().await;
    source.run("DROP TABLE t").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (2, 'new'), (3, 'new')").await;
    source.catch_up().await;
    source.assert_same("public.t").await;
    source.run("UPDATE t SET a = 'newer' WHERE id = 3").await;
    source.catch_up().await;
    source.assert_same("public.t").await;
    let truncates = source.changes().await.iter().filter(|c| c.op == Op::Truncate).count();
    assert_eq!(truncates, 2, "one barrier, in each of two partitions");
}
