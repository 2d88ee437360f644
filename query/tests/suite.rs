//! SQL over a lake made with `lake`'s own writers: SQLite and a local directory, and once on S3 (MinIO).
#![allow(clippy::unwrap_used)]

mod harness;

use harness::*;

/// Two sources: `users.orders` and `inventory.items`.
async fn two_sources(lake: &TestLake) -> (Orders, Orders) {
    (Orders::create(lake, "users", "orders").await, Orders::create(lake, "inventory", "items").await)
}

async fn reads_cuts(lake: &TestLake) {
    let (mut orders, mut items) = two_sources(lake).await;
    orders.append(&[(1, "a"), (2, "b"), (3, "c")]).await;
    items.append(&[(1, "x"), (2, "y")]).await;
    lake.checkpoint("users", 10, 1, 5, &[orders.at()], true, &[]).await;
    lake.checkpoint("inventory", 20, 2, 4, &[items.at()], true, &[]).await;
    // Row 2 is changed, row 3 deleted: one commit of data and position deletes.
    orders.change(&[(2, "B")], &[2, 3]).await;
    lake.checkpoint("users", 11, 6, 9, &[orders.at()], false, &[]).await;
    // Not in any cut.
    items.append(&[(3, "z")]).await;

    let engine = lake.engine().await;
    let mut session = Session::default();
    // inventory has not reached 6: joined, orders is read where it was at 4.
    let joined = "select o.id, o.name, i.name from users.orders o join inventory.items i on o.id = i.id order by 1";
    assert_eq!(rows(&engine, &mut session, joined).await, ["1 a x", "2 b y"]);
    let cut = session.last_cut.clone().unwrap();
    assert_eq!((cut.at, cut.sources.len()), (Some(4 * S), 2));
    // Alone, it is read at its own newest.
    let orders_now = "select id, name from lake.users.orders order by id";
    assert_eq!(rows(&engine, &mut session, orders_now).await, ["1 a", "2 B"]);
    assert_eq!(rows(&engine, &mut session, "select count(*) from users.orders").await, ["2"]);
    assert_eq!(rows(&engine, &mut session, "select id from users.orders where name = 'b' or id = 3").await, [""; 0]);

    // A newer row of the other source moves the join on, within the time of a poll.
    lake.checkpoint("inventory", 21, 9, 12, &[items.at()], false, &[]).await;
    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    assert_eq!(rows(&engine, &mut session, joined).await, ["1 a x", "2 B y"]);
    assert_eq!(rows(&engine, &mut session, "select count(*) from inventory.items").await, ["3"]);

    for (as_of, expected) in [
        ("'1970-01-01T00:00:05Z'", vec!["1 a", "2 b", "3 c"]),
        ("10", vec!["1 a", "2 b", "3 c"]),
        ("'11'", vec!["1 a", "2 B"]),
        ("latest", vec!["1 a", "2 B"]),
    ] {
        run(&engine, &mut session, &format!("set lakeward.as_of = {as_of}")).await;
        assert_eq!(rows(&engine, &mut session, orders_now).await, expected, "{as_of}");
    }
    run(&engine, &mut session, "set lakeward.as_of = '2026-01-01T00:00:00Z'").await;
    let error = refusal(&engine, &mut session, joined).await;
    assert!(
        error.contains("has not reached 2026-01-01 00:00:00+00 yet: source users is at 1970-01-01 00:00:09+00"),
        "{error}"
    );
    assert_eq!(rows(&engine, &mut session, "show lakeward.as_of").await, ["2026-01-01 00:00:00+00"]);
}

#[tokio::test]
async fn a_query_reads_one_cut() {
    reads_cuts(&TestLake::local().await).await;
}

#[tokio::test]
async fn a_query_reads_one_cut_on_s3() {
    reads_cuts(&TestLake::s3().await).await;
}

#[tokio::test]
async fn tables_outside_the_cut_say_why() {
    let lake = TestLake::local().await;
    let (mut orders, mut items) = two_sources(&lake).await;
    let others = Orders::create(&lake, "users", "others").await;
    orders.append(&[(1, "a")]).await;
    items.append(&[(1, "x")]).await;
    lake.checkpoint("users", 1, 1, 2, &[orders.at()], true, &[]).await;
    let exact = orders.at();
    orders.append(&[(2, "again")]).await;
    lake.checkpoint("users", 2, 3, 4, &[orders.at(), others.at()], false, &["users.orders", "users.others"]).await;
    let engine = lake.engine().await;
    let mut session = Session::default();
    let error = refusal(&engine, &mut session, "select * from users.others").await;
    assert!(error.contains("table users.others is in its first snapshot"), "{error}");
    let error = refusal(&engine, &mut session, "select * from inventory.items").await;
    assert!(error.contains("source inventory has no checkpoint in the lake yet"), "{error}");
    let answer = engine.sql(&mut session, "select id from users.orders").await.unwrap();
    assert!(answer.notices.iter().any(|n| n.contains("users.orders is being read again")), "{:?}", answer.notices);
    assert_eq!(answer.cut.unwrap().tables["users.orders"].snapshot_id, exact.1);
    assert_eq!(rows(&engine, &mut session, "select id from users.orders").await, ["1"]);
    let error = refusal(&engine, &mut session, "select * from orders").await;
    assert!(error.contains("table 'orders' does not exist; there is users.orders"), "{error}");
}

#[tokio::test]
async fn the_schema_is_that_of_the_moment() {
    let lake = TestLake::local().await;
    let mut wide = Wide::create(&lake).await;
    wide.append_old().await;
    lake.checkpoint("users", 1, 1, 2, &[wide.at()], true, &[]).await;
    wide.evolve_and_append().await;
    lake.checkpoint("users", 2, 3, 4, &[wide.at()], true, &[]).await;
    let engine = lake.engine().await;
    let mut session = Session::default();
    // id was widened, label renamed from name, extra added, gone dropped (kept, NULL from then on).
    let all = "select id, label, price, extra, gone from users.wide order by id";
    assert_eq!(
        rows(&engine, &mut session, all).await,
        ["1 one 1.5  old", "2 two NaN  ", "5000000000 big 2.5 {a,NULL,\"b c\"} "]
    );
    assert_eq!(
        rows(&engine, &mut session, "select id from users.wide where price > 2 order by id").await,
        ["2", "5000000000"]
    );
    assert_eq!(rows(&engine, &mut session, "select id from users.wide where extra[1] = 'a'").await, ["5000000000"]);
    run(&engine, &mut session, "set lakeward.as_of = 1").await;
    assert_eq!(
        rows(&engine, &mut session, "select * from users.wide order by id").await,
        ["1 one 1.5 old", "2 two NaN "]
    );
}

#[tokio::test]
async fn only_what_reads_is_allowed() {
    let lake = TestLake::local().await;
    let mut orders = Orders::create(&lake, "users", "orders").await;
    orders.append(&[(1, "a")]).await;
    lake.checkpoint("users", 1, 1, 2, &[orders.at()], true, &[]).await;
    let engine = lake.engine().await;
    let mut session = Session::default();
    for sql in [
        "insert into users.orders values (2, 'b')",
        "update users.orders set name = 'b'",
        "delete from users.orders",
        "truncate table users.orders",
        "create table x as select * from users.orders",
        "create table users.x (a int)",
        "create view v as select 1",
        "create external table e stored as parquet location '/etc'",
        "copy (select 1) to '/tmp/lakeward-copied.parquet'",
        "copy users.orders to '/tmp/lakeward-copied.csv' stored as csv",
        "drop table users.orders",
        "drop schema users cascade",
        "alter table users.orders add column x int",
        "select * into users.copy from users.orders",
        "explain insert into users.orders values (2, 'b')",
    ] {
        let error = engine.sql(&mut session, sql).await.unwrap_err();
        assert_eq!(error.action(), lakeward_runtime::Action::Refused, "{sql}: {error}");
        assert!(
            error.to_string().contains("read-only") || sql.starts_with("explain") || sql.contains("into users.copy"),
            "{sql}: {error}"
        );
    }
    for sql in [
        "select * from '/etc/passwd'",
        "select * from \"/etc/passwd\"",
        "select * from read_csv('/etc/passwd')",
        "select * from read_parquet('/etc/passwd')",
        "set datafusion.catalog.location = '/'",
        "select 1; select 2",
        "selec 1",
        "",
    ] {
        refusal(&engine, &mut session, sql).await;
    }
    assert_eq!(rows(&engine, &mut session, "select count(*) from users.orders").await, ["1"]);
}

#[tokio::test]
async fn the_lake_can_be_looked_at() {
    let lake = TestLake::local().await;
    let (mut orders, mut items) = two_sources(&lake).await;
    orders.append(&[(1, "a"), (2, "b")]).await;
    orders.change(&[], &[1]).await;
    items.append(&[(1, "x")]).await;
    lake.checkpoint("users", 1, 1, 9, &[orders.at()], true, &[]).await;
    lake.checkpoint("inventory", 2, 3, 5, &[items.at()], true, &[]).await;
    let engine = lake.engine().await;
    let mut session = Session::default();
    let tables = rows(&engine, &mut session, "show tables").await;
    for expected in ["lake users orders BASE TABLE", "lake inventory items BASE TABLE", "lake lakeward freshness VIEW"]
    {
        assert!(tables.iter().any(|t| t == expected), "{tables:?}");
    }
    let columns =
        "select column_name, data_type from information_schema.columns where table_name = 'orders' order by 1";
    assert_eq!(rows(&engine, &mut session, columns).await, ["id Int64", "name Utf8"]);
    assert_eq!(
        rows(&engine, &mut session, "select source, checkpoint from lakeward.checkpoints order by 2").await,
        ["users 1", "inventory 2"]
    );
    assert_eq!(rows(&engine, &mut session, "select count(*) from lakeward.dead_letters").await, ["0"]);
    assert_eq!(
        rows(
            &engine,
            &mut session,
            "select namespace, name, rows, delete_files, converging from lakeward.tables order by 1"
        )
        .await,
        ["inventory items 1 0 false", "users orders 1 1 false"]
    );
    assert_eq!(
        rows(&engine, &mut session, "select source, kind, checkpoint, tables from lakeward.sources order by 1").await,
        ["inventory  2 1", "users postgres 1 1"]
    );
    let freshness = "select source, watermark, cut, age > 1000 from lakeward.freshness order by 1";
    assert_eq!(
        rows(&engine, &mut session, freshness).await,
        ["inventory 1970-01-01 00:00:05+00  true", "users 1970-01-01 00:00:09+00  true"]
    );
    rows(&engine, &mut session, "select * from users.orders, inventory.items").await;
    assert_eq!(
        rows(&engine, &mut session, freshness).await,
        [
            "inventory 1970-01-01 00:00:05+00 1970-01-01 00:00:05+00 true",
            "users 1970-01-01 00:00:09+00 1970-01-01 00:00:05+00 true"
        ]
    );
    // Within one statement the view tells of that statement's own cut.
    let own = "select distinct f.cut from lakeward.freshness f, users.orders o where f.source = 'users'";
    assert_eq!(rows(&engine, &mut session, own).await, ["1970-01-01 00:00:09+00"]);
    let answer = engine.sql(&mut session, "explain select * from users.orders").await.unwrap();
    assert_eq!(answer.notices[0], "cut 1970-01-01 00:00:09+00 (users at checkpoint 1)");
    assert!(answer.notices[1].contains("source users is at 1970-01-01 00:00:09+00"), "{:?}", answer.notices);
    let described = engine
        .describe(&session, lakeward_query::parse("select id, name from users.orders").unwrap().remove(0))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(described.fields().len(), 2);
}

/// The rest of an answer that fails while it is read.
async fn failure(engine: &Engine, session: &mut Session, sql: &str) -> String {
    match engine.sql(session, sql).await {
        Err(error) => error.to_string(),
        Ok(mut answer) => loop {
            match futures::StreamExt::next(&mut answer.batches).await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error.to_string(),
                None => panic!("{sql} has an answer"),
            }
        },
    }
}

/// Trap 41: what PostgreSQL answers to each of these, or a clear refusal where it has a value for which there is no type here.
#[tokio::test]
async fn infinities_are_those_of_postgresql() {
    let lake = TestLake::local().await;
    let moments = moments(&lake).await;
    lake.checkpoint("users", 1, 1, 2, &[moments], true, &[]).await;
    let engine = lake.engine().await;
    let mut session = Session::default();
    for (expression, expected) in [
        ("date_trunc('month', at)", ["1970-01-01 00:00:00+00", "infinity", "-infinity", ""]),
        ("date_trunc('year', ts)", ["1970-01-01 00:00:00", "infinity", "-infinity", ""]),
        ("date_trunc('month', day)", ["1970-01-01 00:00:00", "infinity", "-infinity", ""]),
        (
            "date_bin(interval '1 day', ts, timestamp '2000-01-01')",
            ["1970-01-02 00:00:00", "infinity", "-infinity", ""],
        ),
        ("at + interval '1 day'", ["1970-01-03 00:00:00+00", "infinity", "-infinity", ""]),
        ("interval '1 month' + ts", ["1970-02-02 00:00:00", "infinity", "-infinity", ""]),
        ("ts - interval '1 day 1 second'", ["1969-12-31 23:59:59", "infinity", "-infinity", ""]),
        ("date_trunc('day', at + interval '36 hours')", ["1970-01-03 00:00:00+00", "infinity", "-infinity", ""]),
        ("at + case when id > 2 then interval '1 day' end", ["", "", "-infinity", ""]),
        ("at::timestamp", ["1970-01-02 00:00:00", "infinity", "-infinity", ""]),
        ("ts::timestamptz", ["1970-01-02 00:00:00+00", "infinity", "-infinity", ""]),
        ("day::timestamp", ["1970-01-02 00:00:00", "infinity", "-infinity", ""]),
        ("ts::date", ["1970-01-02", "infinity", "-infinity", ""]),
        ("extract(epoch from at)", ["86400", "Infinity", "-Infinity", ""]),
        ("extract(month from ts)", ["1", "", "", ""]),
        ("at = 'infinity'", ["false", "true", "false", ""]),
        ("'-infinity' < day", ["true", "true", "false", ""]),
        ("ts = timestamp 'infinity'", ["false", "true", "false", ""]),
        ("day = '-infinity'::date", ["false", "false", "true", ""]),
        ("at < timestamp '1999-01-01'", ["true", "false", "true", ""]),
        ("at between '-infinity' and '2000-01-01'", ["true", "false", "true", ""]),
        ("at in ('infinity', '1970-01-02')", ["true", "true", "false", ""]),
    ] {
        let sql = format!("select {expression} from users.moments order by id");
        assert_eq!(rows(&engine, &mut session, &sql).await, expected, "{expression}");
    }
    for (sql, expected) in [
        ("select a.id from users.moments a join users.moments b on a.at = b.ts order by 1", vec!["1", "2", "3"]),
        (
            "select a.id from users.moments a join users.moments b on a.ts = b.at and b.id > 1 order by 1",
            vec!["2", "3"],
        ),
        ("select a.id from users.moments a join users.moments b on a.day = b.at order by 1", vec!["1", "2", "3"]),
        (
            "select a.id from users.moments a join (select id, ts as at from users.moments) b using (at) order by 1",
            vec!["1", "2", "3"],
        ),
        ("select date_trunc('day', at), count(*) from users.moments group by 1 having count(*) > 1", vec![]),
        ("select id from users.moments where at + interval '1 day' > now() order by 1", vec!["2"]),
        ("select id from users.moments where date_trunc('day', ts) > '2000-01-01' order by 1", vec!["2"]),
        ("select at - ts is not null from users.moments where id = 1", vec!["true"]),
    ] {
        assert_eq!(rows(&engine, &mut session, sql).await, expected, "{sql}");
    }
    for (expression, words) in [
        ("ts - timestamp '2000-01-01'", "cannot subtract infinite timestamps"),
        ("now() - at", "cannot subtract infinite timestamps"),
        ("day - date '2000-01-01'", "cannot subtract infinite timestamps"),
        ("extract(year from at)", "the year of an infinite timestamp is no integer"),
    ] {
        let error = failure(&engine, &mut session, &format!("select {expression} from users.moments")).await;
        assert!(error.contains(words), "{expression}: {error}");
        let finite = format!("select {expression} from users.moments where at = '1970-01-02'");
        assert_eq!(rows(&engine, &mut session, &finite).await.len(), 1, "{expression}");
    }
}
