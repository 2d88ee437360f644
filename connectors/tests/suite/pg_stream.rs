//! The stream: every kind of change, checkpoints on the grid, restarts.

use std::collections::HashSet;
use std::time::Duration;

use lakeward_event::position::format_lsn;
use lakeward_event::{Op, Position};
use lakeward_log::Signal;
use lakeward_runtime::Action;

use crate::harness::{Source, until};

/// 250 ms, the harness's grid.
const TICK: i64 = 250_000;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_arrives_once() {
    let source = Source::new("kinds").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE SCHEMA other; CREATE TABLE other.t (a text, b int, n int, PRIMARY KEY (b, a))").await;
    source.catch_up().await;
    source
        .run(
            "INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 100) i;
             UPDATE t SET v = 'new' WHERE id % 3 = 0;
             DELETE FROM t WHERE id % 10 = 0;
             UPDATE t SET id = id + 1000 WHERE id % 7 = 0;
             INSERT INTO other.t VALUES ('x', 1, 1), ('x', 2, 2), (E'it''s\\\\', 3, NULL);
             UPDATE other.t SET n = 5 WHERE b = 2;
             CREATE TABLE emptied (id int PRIMARY KEY)",
        )
        .await;
    source.catch_up().await;
    source.run("INSERT INTO emptied VALUES (1), (2); TRUNCATE emptied; INSERT INTO emptied VALUES (3)").await;
    source.catch_up().await;
    source.assert_same("public.t").await;
    source.assert_same("public.emptied").await;
    let tables = source.tables().await;
    assert_eq!(tables["other.t"].len(), 3);
    assert_eq!(tables["other.t"][&vec!["2".to_owned(), "x".to_owned()]][2].as_deref(), Some("5"));

    let changes = source.changes().await;
    let truncates: Vec<_> = changes.iter().filter(|c| c.op == Op::Truncate).collect();
    assert_eq!(truncates.len(), 2, "a barrier in each of two partitions");
    assert_eq!(truncates[0].sequence, truncates[1].sequence);
    let sequences: HashSet<u64> = changes.iter().filter(|c| c.op != Op::Truncate).map(|c| c.sequence).collect();
    assert_eq!(sequences.len(), changes.len() - 2, "no sequence twice");
    let of_t = |op| changes.iter().filter(|c| c.table == "public.t" && c.op == op && c.tx.is_some()).count();
    let moved = (1..=100).filter(|i| i % 10 != 0 && i % 7 == 0).count();
    assert_eq!(of_t(Op::Create), 100 + moved);
    assert_eq!(of_t(Op::Update), 33);
    assert_eq!(of_t(Op::Delete), 10 + moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_come_on_the_grid_also_when_idle() {
    let source = Source::new("grid").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY)").await;
    let running = source.start();
    let settled = source.wait("a settled checkpoint", |c| c.draft.cut && c.draft.converging.is_empty()).await;
    source.run("INSERT INTO t VALUES (1)").await;
    let later = settled.draft.watermark + 8 * TICK;
    source.wait("two idle seconds", |c| c.draft.cut && c.draft.watermark >= later).await;
    running.stop().await;
    let all = source.checkpoints().await;
    let cuts: Vec<_> = all.iter().filter(|c| c.draft.cut).collect();
    for pair in all.windows(2) {
        assert!(pair[0].id < pair[1].id && pair[0].draft.watermark <= pair[1].draft.watermark);
    }
    for cut in &cuts {
        assert_eq!((cut.draft.watermark % TICK, cut.draft.watermark_from % TICK), (0, 0));
        assert!(cut.draft.watermark_from <= cut.draft.watermark, "{cut:?}");
    }
    let ticks: Vec<i64> = cuts.iter().map(|c| c.draft.watermark).filter(|w| *w > settled.draft.watermark).collect();
    assert!(ticks.len() >= 4, "an idle source has a cut for most ticks: {ticks:?}");
    // The insert is after `from` of the cut that has it, and no later cut's interval begins before it.
    let with = cuts.iter().find(|c| c.draft.next_sequence > settled.draft.next_sequence).unwrap();
    assert!(with.draft.watermark_from > settled.draft.watermark);
    assert_eq!(cuts.last().unwrap().draft.watermark_from, with.draft.watermark_from);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_inside_a_transaction_neither_doubles_nor_loses() {
    let source = Source::new("inside").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    source.catch_up().await;
    // One statement, many rows on one LSN each page, several appends.
    let rows = 300_000;
    source.run(&format!("INSERT INTO t SELECT i, repeat('x', 20) FROM generate_series(1, {rows}) i")).await;
    let mut interrupted = 0;
    for _ in 0..4 {
        let before = source.last().await.unwrap().id;
        let running = source.start();
        source
            .wait("the next append", |c| {
                c.id > before
                    && (matches!(&c.draft.position, Position::Postgres { partial: Some(_), .. }) || c.draft.cut)
            })
            .await;
        running.kill().await;
        if let Position::Postgres { partial: Some(_), .. } = source.last().await.unwrap().draft.position {
            interrupted += 1;
        }
    }
    assert!(interrupted > 0, "no restart fell into the transaction");
    source.catch_up().await;
    let changes = source.changes().await;
    let created: HashSet<_> = changes.iter().filter_map(|c| c.after.as_ref().and_then(|r| r[0].clone())).collect();
    assert_eq!(created.len(), rows);
    assert_eq!(changes.len(), rows, "rows published twice");
    let sequences: HashSet<u64> = changes.iter().map(|c| c.sequence).collect();
    assert_eq!(sequences.len(), rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_history_is_said_and_nothing_is_skipped() {
    let source = Source::new("lost").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY)").await;
    source.catch_up().await;
    source.run("INSERT INTO t VALUES (1)").await;
    // Somebody else moves the slot past what is published: trap 10.
    let slot = source.config.slot.clone();
    until("the slot is free", async || {
        source
            .sql
            .execute("SELECT pg_replication_slot_advance($1::text::name, pg_current_wal_lsn())", &[&slot])
            .await
            .is_ok()
    })
    .await;
    let error = source.start().failure().await;
    assert_eq!(error.action(), Action::Resnapshot);
    assert!(error.to_string().contains("past the last checkpoint"), "{error}");
    source.run(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    let error = source.start().failure().await;
    assert_eq!(error.action(), Action::Resnapshot);
    assert!(error.to_string().contains("slot is gone"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_read_the_same_whatever_the_role_has_set() {
    let source = Source::new("session").await;
    let database = source.config.name.clone();
    source
        .run(&format!(
            "ALTER DATABASE {database} SET DateStyle = 'German'; ALTER DATABASE {database} SET TimeZone = 'Asia/Tokyo';
             ALTER DATABASE {database} SET IntervalStyle = 'iso_8601'; ALTER DATABASE {database} SET bytea_output = 'escape';
             CREATE TABLE t (id int PRIMARY KEY, i interval, z timetz, r tstzrange);
             INSERT INTO t VALUES (1, '1 day 2 hours', '10:00+02', '[2020-01-01 00:00+00,)')"
        ))
        .await;
    source.catch_up().await;
    source.run("INSERT INTO t SELECT 2, i, z, r FROM t").await;
    source.catch_up().await;
    let tables = source.tables().await;
    let row = |id: &str| tables["public.t"][&vec![id.to_owned()]][1..].to_vec();
    assert_eq!(row("1")[0].as_deref(), Some("1 day 02:00:00"));
    assert_eq!(row("1")[2].as_deref(), Some("[\"2020-01-01 00:00:00+00\",)"));
    assert_eq!(row("1"), row("2"), "snapshot and stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_lies_exactly_where_it_was_asked_for() {
    let source = Source::new("cut").await;
    source
        .run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i")
        .await;
    let running = source.start();
    source.wait("a settled checkpoint", |c| c.draft.cut && c.draft.converging.is_empty()).await;
    let writer = source.connect().await;
    let load = tokio::spawn(async move {
        for n in 0.. {
            writer.execute("UPDATE t SET v = $1 WHERE id = $1 % 10 + 1", &[&n]).await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    for request in ["first", "second"] {
        let hold = format!(
            r#"{{"slot":"{}","clock":0,"mark":"hold","request":"{request}","seconds":20}}"#,
            source.config.slot
        );
        source.sql.execute("SELECT pg_logical_emit_message(false, 'lakeward', $1::text)", &[&hold]).await.unwrap();
        // What a temporary slot's consistent point is to `verify`: some LSN after the message, between two commits.
        let row = source.sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        let lsn = lakeward_event::position::parse_lsn(row.get(0)).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        source.log.signal(&source.config.name, &Signal::Cut { request: request.into(), lsn }).await.unwrap();
        let cut = source
            .wait("the cut", |c| {
                c.draft.cut && matches!(c.draft.position, Position::Postgres { lsn: at, .. } if at == lsn)
            })
            .await;
        // Nothing committed after the LSN is in it, all before is.
        let changes = source.changes().await;
        let inside = changes.iter().filter(|c| c.sequence < cut.draft.next_sequence && c.tx.is_some()).count();
        assert!(inside > 0 && inside < changes.iter().filter(|c| c.tx.is_some()).count() + 1, "{}", format_lsn(lsn));
    }
    load.abort();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_of_several_tables_empties_each() {
    let source = Source::new("several").await;
    source.run("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a)").await;
    source.catch_up().await;
    source.run("INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1), (2)").await;
    source.run("TRUNCATE a CASCADE").await;
    source.run("INSERT INTO a VALUES (3); INSERT INTO b VALUES (3)").await;
    source.catch_up().await;
    source.assert_same("public.a").await;
    source.assert_same("public.b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_hold_what_was_committed_before_their_tick_and_nothing_else() {
    let source = Source::new("ticks").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)").await;
    let running = source.start();
    source.wait("a settled checkpoint", |c| c.draft.cut && c.draft.converging.is_empty()).await;
    let writer = source.connect().await;
    let load = tokio::spawn(async move {
        for n in 1i32.. {
            writer.execute("UPDATE t SET v = $1", &[&n]).await.unwrap();
            // Pauses too: then a message of ours is what passes the tick.
            if n % 200 == 0 {
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(4)).await;
    load.abort();
    let _ = load.await;
    running.stop().await;
    source.catch_up().await;
    let changes = source.changes().await;
    let commits: Vec<(u64, i64)> =
        changes.iter().filter(|c| c.tx.is_some()).map(|c| (c.sequence, c.commit_ts.unwrap())).collect();
    let (mut with_changes, mut last) = (0, 0);
    for cut in source.checkpoints().await.iter().filter(|c| c.draft.cut) {
        assert!(cut.draft.watermark_from <= cut.draft.watermark, "true for no moment: {cut:?}");
        let (inside, after): (Vec<_>, Vec<_>) = commits.iter().partition(|(s, _)| *s < cut.draft.next_sequence);
        if let Some(newest) = inside.iter().map(|(_, at)| *at).max() {
            assert!(newest < cut.draft.watermark_from, "a commit of {newest} is in {cut:?}");
            with_changes += usize::from(inside.len() > last);
            last = inside.len();
        }
        // Commit times run backwards by a little: what counts is the first that is not in.
        if let Some((_, next)) = after.first() {
            assert!(*next + 5_000 >= cut.draft.watermark, "a commit of {next} is not in {cut:?}");
        }
    }
    assert!(with_changes > 5, "{with_changes} cuts of {} commits", commits.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_confirmed_than_is_committed_to_the_log() {
    let source = Source::new("confirm").await;
    source.run("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)").await;
    source.catch_up().await;
    let writer = source.connect().await;
    let load = tokio::spawn(async move {
        for n in 1i32.. {
            writer.execute("UPDATE t SET v = $1", &[&n]).await.unwrap();
        }
    });
    for round in 0..5 {
        let before = source.last().await.unwrap().id;
        let running = source.start();
        source.wait("some checkpoints", |c| c.id > before && c.draft.cut).await;
        tokio::time::sleep(Duration::from_millis(300 + 130 * round)).await;
        running.kill().await;
        let Position::Postgres { lsn, .. } = source.last().await.unwrap().draft.position else { panic!() };
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1::text";
        let confirmed: String = source.sql.query_one(sql, &[&source.config.slot]).await.unwrap().get(0);
        let confirmed = lakeward_event::position::parse_lsn(&confirmed).unwrap();
        assert!(confirmed <= lsn, "{} is confirmed, {} committed", format_lsn(confirmed), format_lsn(lsn));
    }
    load.abort();
    let _ = load.await;
    source.catch_up().await;
    source.assert_same("public.t").await;
}
