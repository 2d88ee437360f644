//! Snapshots beside the stream.

use std::time::Duration;

use crate::harness::{Source, TestServer, until};
use lakeward_event::Op;

/// Text of this length is stored outside of the row and does not compress.
const TOAST: &str = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300))";

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_exact_under_load() {
    let source = Source::new("load").await;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v int, pad text); INSERT INTO t SELECT i, 0, repeat('p', 400) FROM generate_series(1, 100000) i; CREATE TABLE empty (id int PRIMARY KEY)")
        .await;
    let writer = source.connect().await;
    let load = tokio::spawn(async move {
        for n in 0i32.. {
            let at = n.wrapping_mul(7919).rem_euclid(100_000);
            writer.execute("UPDATE t SET v = v + 1 WHERE id BETWEEN $1 AND $1 + 5", &[&at]).await.unwrap();
            writer.execute("DELETE FROM t WHERE id = $1", &[&(at + 50)]).await.unwrap();
            writer.execute("INSERT INTO t VALUES ($1, 1, 'new')", &[&(200_000 + n)]).await.unwrap();
            writer.execute("UPDATE t SET id = id + 500000 WHERE id = $1", &[&(at + 99)]).await.unwrap();
        }
    });
    let running = source.start();
    source.wait("the snapshot's end", |c| c.draft.cut && c.draft.converging.is_empty() && c.draft.watermark > 0).await;
    load.abort();
    let _ = load.await;
    running.stop().await;
    source.catch_up().await;
    source.assert_same("public.t").await;
    let changes = source.changes().await;
    assert!(changes.iter().any(|c| c.op == Op::Read) && changes.iter().any(|c| c.op == Op::Update));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_read_finished_ranges_again() {
    let source = Source::new("resume").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, pad text); INSERT INTO t SELECT i, repeat('p', 1000) FROM generate_series(1, 100000) i").await;
    let running = source.start();
    source.wait("the first range", |c| c.draft.next_sequence > 0).await;
    running.kill().await;
    let so_far = source.last().await.unwrap().draft.next_sequence;
    source.catch_up().await;
    source.assert_same("public.t").await;
    let reads = source.changes().await.len() as u64;
    assert_eq!(reads, 100_000, "{so_far} rows were published before the restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_between_waves_starts_the_table_over() {
    let source = Source::new("rewrite").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, pad text); INSERT INTO t SELECT i, repeat('p', 1000) FROM generate_series(1, 100000) i").await;
    let running = source.start();
    source.wait("the first range", |c| c.draft.next_sequence > 0).await;
    running.kill().await;
    assert!(source.last().await.unwrap().draft.next_sequence < 100_000, "the snapshot was done before the rewrite");
    // Trap 4: rows of pages that are not read move to pages that are.
    source.run("UPDATE t SET pad = 'moved' WHERE id % 2 = 0; CREATE INDEX backwards ON t ((-id)); CLUSTER t USING backwards").await;
    source.catch_up().await;
    source.assert_same("public.t").await;
}

/// Whether commits wait, in the WAL already and not yet visible, for a standby that is not there.
async fn hang_commits(server: &TestServer, hang: bool) {
    let admin = crate::harness::client(&server.url).await;
    let names = if hang { "nobody" } else { "" };
    admin.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    // The checkpointer tells the others; a new connection may be ahead of it.
    until("the setting is in force", async || {
        let probing = crate::harness::client(&server.url).await;
        let pid: i32 = probing.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let probe = probing.batch_execute("SELECT pg_logical_emit_message(true, 'probe', 'written')");
        let waits = until("the probe waits for a standby", async || {
            let waits = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1";
            admin.query_one(waits, &[&pid]).await.unwrap().get::<_, Option<bool>>(0) == Some(true)
        });
        tokio::pin!(probe);
        let hangs = tokio::select! {
            answer = &mut probe => {
                answer.unwrap();
                false
            }
            () = waits => true,
        };
        if hangs {
            // Ends its wait: a transaction that goes on hanging would be one more to wait for.
            probing.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
            let _ = probe.await;
        }
        hang == hangs
    })
    .await;
}

/// A transaction that is open, has an xid, and will commit without waiting for a standby.
async fn open_transaction(source: &Source) -> (tokio_postgres::Client, String) {
    let client = source.connect().await;
    client.batch_execute("SET synchronous_commit = local; BEGIN").await.unwrap();
    let xid = client.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    (client, xid)
}

async fn wait_for_blocked_on(source: &Source, xid: &str) {
    until("somebody waits for the transaction", async || {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted AND transactionid::text = $1";
        source.sql.query_one(sql, &[&xid]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
}

async fn wait_for_hanging(source: &Source, what: &str) {
    until("the commit hangs", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%' || $1 || '%'";
        source.sql.query_one(sql, &[&what]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_published_and_not_visible_is_not_overwritten() {
    // Trap 1: the stream has the update, a snapshot taken then still reads the old row.
    let server = TestServer::start("").await;
    let source = Source::on(&server.url, "published").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old')").await;
    source.catch_up().await;
    source.run("CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES (1, 'old')").await;
    // Keeps the snapshot of the second table waiting until the update hangs.
    let (earlier, _) = open_transaction(&source).await;
    let running = source.start();
    source.wait("the start", |c| c.draft.converging == ["public.late"]).await;
    hang_commits(&server, true).await;
    let writer = source.connect().await;
    let update = tokio::spawn(async move { writer.batch_execute("UPDATE late SET v = 'new'").await });
    wait_for_hanging(&source, "UPDATE late").await;
    until("the update is published", async || source.changes().await.iter().any(|c| c.op == Op::Update)).await;
    earlier.batch_execute("COMMIT").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(source.last().await.unwrap().draft.converging, ["public.late"], "the snapshot did not wait");
    hang_commits(&server, false).await;
    update.await.unwrap().unwrap();
    source
        .wait("the snapshot's end", |c| c.draft.cut && c.draft.converging.is_empty() && c.draft.next_sequence > 2)
        .await;
    running.stop().await;
    source.catch_up().await;
    source.assert_same("public.late").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_before_the_slot_that_is_not_visible_is_waited_for() {
    // Trap 2: in the WAL before the slot's start, not yet visible: neither in the stream nor in a snapshot taken at once. The
    // slot waits for what is open when it begins (`first`) and when it is half ready (`second`), and not for what comes then.
    let server = TestServer::start("").await;
    let source = Source::on(&server.url, "before").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old')").await;
    let (first, first_xid) = open_transaction(&source).await;
    let running = source.start();
    wait_for_blocked_on(&source, &first_xid).await;
    let (second, second_xid) = open_transaction(&source).await;
    hang_commits(&server, true).await;
    first.batch_execute("COMMIT").await.unwrap();
    wait_for_blocked_on(&source, &second_xid).await;
    let writer = source.connect().await;
    let insert = tokio::spawn(async move { writer.batch_execute("INSERT INTO t VALUES (2, 'hidden')").await });
    wait_for_hanging(&source, "hidden").await;
    second.batch_execute("COMMIT").await.unwrap();
    source.wait("the start", |c| c.id > 0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(source.last().await.unwrap().draft.converging, ["public.t"], "the snapshot did not wait");
    hang_commits(&server, false).await;
    insert.await.unwrap().unwrap();
    source.wait("the snapshot's end", |c| c.draft.cut && c.draft.converging.is_empty() && c.draft.watermark > 0).await;
    running.stop().await;
    source.catch_up().await;
    source.assert_same("public.t").await;
    let changes = source.changes().await;
    assert!(changes.iter().all(|c| c.op == Op::Read), "the insert is in the stream: not the case that was meant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_joins_while_its_writer_is_open() {
    // Trap 3: a transaction that wrote before the table joined the publication, and after it: the stream has the second row only.
    let source = Source::new("joins").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY)").await;
    source.catch_up().await;
    source.run("CREATE TABLE late (id int PRIMARY KEY)").await;
    let writer = source.connect().await;
    writer.batch_execute("BEGIN; INSERT INTO late VALUES (1)").await.unwrap();
    let running = source.start();
    source.wait("the start", |c| c.draft.converging == ["public.late"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(source.last().await.unwrap().draft.converging, ["public.late"], "the snapshot did not wait");
    writer.batch_execute("INSERT INTO late VALUES (2); COMMIT").await.unwrap();
    source
        .wait("the snapshot's end", |c| c.draft.cut && c.draft.converging.is_empty() && c.draft.next_sequence > 0)
        .await;
    running.stop().await;
    source.catch_up().await;
    source.assert_same("public.late").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_joins_a_running_connector_while_its_writer_is_open() {
    // The same, where the connector finds the table by itself.
    let source = Source::new("found").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY)").await;
    let running = source.start();
    source.wait("a settled checkpoint", |c| c.draft.cut && c.draft.converging.is_empty()).await;
    source.run("CREATE TABLE late (id int PRIMARY KEY)").await;
    let writer = source.connect().await;
    writer.batch_execute("BEGIN; INSERT INTO late VALUES (1)").await.unwrap();
    source.wait("the table is found", |c| c.draft.converging == ["public.late"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(source.last().await.unwrap().draft.converging, ["public.late"], "the snapshot did not wait");
    writer.batch_execute("INSERT INTO late VALUES (2); COMMIT").await.unwrap();
    source
        .wait("the snapshot's end", |c| c.draft.cut && c.draft.converging.is_empty() && c.draft.next_sequence > 0)
        .await;
    running.stop().await;
    source.catch_up().await;
    source.assert_same("public.late").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_updates_leave_out_are_completed() {
    let source = Source::new("toast").await;
    source
        .run(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, n int, big text);
             ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, 0, {TOAST} || i FROM generate_series(1, 3000) i"
        ))
        .await;
    let writer = source.connect().await;
    let load = tokio::spawn(async move {
        for n in 1i32.. {
            let id = n.wrapping_mul(37).rem_euclid(3000) + 1;
            // The value is left out by the first, the row goes to another key by the second, away by the third.
            writer.execute("UPDATE t SET n = n + 1 WHERE id = $1", &[&id]).await.unwrap();
            if n % 5 == 0 {
                writer.execute("UPDATE t SET id = id + 10000 WHERE id = $1", &[&id]).await.unwrap();
            }
            if n % 11 == 0 {
                writer.execute("DELETE FROM t WHERE id = $1", &[&id]).await.unwrap();
            }
        }
    });
    let running = source.start();
    let settled = source
        .wait("the snapshot's end", |c| c.draft.cut && c.draft.converging.is_empty() && c.draft.watermark > 0)
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.abort();
    let _ = load.await;
    running.stop().await;
    source.catch_up().await;
    source.assert_same("public.t").await;
    let changes = source.changes().await;
    assert!(
        changes.iter().any(|c| !c.unchanged.is_empty() && c.sequence < settled.draft.next_sequence),
        "no value was left out"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_range_has_is_completed_by_its_key() {
    // Trap 6: rows of unread pages move to pages that are read, and the stream leaves their big value out.
    let source = Source::new("moved").await;
    source.run("CREATE TABLE other (id int PRIMARY KEY)").await;
    source.catch_up().await;
    source
        .run(
            "CREATE TABLE t (id int PRIMARY KEY, n int, pad text, big text);
             ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, 0, repeat('p', 100), repeat(md5(i::text), 125) FROM generate_series(1, 20000) i",
        )
        .await;
    let running = source.start();
    source.wait("the first range", |c| c.draft.next_sequence > 0).await;
    running.kill().await;
    source.run("DELETE FROM t WHERE id <= 14000 AND id % 4 = 0").await;
    // What the killed connector's snapshot could still see makes no room.
    let readers = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL";
    while source.sql.query_one(readers, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    source.run("VACUUM t").await;
    // Read first by the stream: the ranges are done long before it comes to the update.
    source.run("INSERT INTO other SELECT generate_series(1, 50000)").await;
    source.run("UPDATE t SET n = 1 WHERE id > 17000").await;
    let oid: u32 = source.sql.query_one("SELECT 't'::regclass::oid", &[]).await.unwrap().get(0);
    let state = source.last().await.unwrap().draft.snapshot;
    let leaf = &state["tables"][oid.to_string()]["leaves"][oid.to_string()];
    let step = leaf["step"].as_i64().unwrap();
    let done: Vec<i64> = leaf["done"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).collect();
    assert!(done.len() < leaf["ranges"].as_u64().unwrap() as usize, "the snapshot was done before the update");
    let sql = "SELECT count(*) FROM t WHERE n = 1 AND (ctid::text::point)[0]::int8 / $1::int8 = ANY($2::int8[])";
    let moved: i64 = source.sql.query_one(sql, &[&step, &done]).await.unwrap().get(0);
    assert!(moved > 0, "no row has moved to {done:?} of {leaf}");
    source.catch_up().await;
    source.assert_same("public.t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_its_root() {
    let source = Source::new("partitioned").await;
    source
        .run(
            "CREATE TABLE t (id int, at int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
             CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100);
             CREATE TABLE t2 (at int, id int NOT NULL); ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (100) TO (200);
             INSERT INTO t SELECT i, i FROM generate_series(1, 150) i",
        )
        .await;
    source.catch_up().await;
    source.run("UPDATE t SET at = -1 WHERE id % 2 = 0; UPDATE t SET id = 190 WHERE id = 5").await;
    source.catch_up().await;
    source.assert_same("public.t").await;
}
