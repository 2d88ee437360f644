//! How much of the server is watched: one database where the configuration names one, and then rights on it are enough.

use lakeward_connectors::mongodb::problems;
use lakeward_event::Op;
use lakeward_runtime::Action;

use super::server::TestMongod;
use super::*;

/// `check` of this source, without what an idle source is told about notes.
async fn fixes(source: &Source) -> Vec<String> {
    let problems = problems(&source.config()).await;
    problems.into_iter().filter(|p| !p.what.contains("appendOplogNote")).map(|p| p.fix).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_read_one_database_is_enough() {
    let server = TestMongod::start_with_users().await;
    let mut source = Source::create("rights").await;
    source.client = server.client.clone();
    let a = source.collection("a");
    a.insert_many((0..300).map(|i| doc! { "_id": i, "in": { "x": 0 } })).await.unwrap();
    server.client.database("other").collection("a").insert_one(doc! {}).await.unwrap();

    source.url = server.user("stranger", vec![doc! { "role": "read", "db": "other" }]).await;
    let database = format!("grant the role read on the database {}", source.name);
    assert_eq!(fixes(&source).await.last(), Some(&database));
    let error = source.outcome(&source.config(), true).await.unwrap_err();
    assert_eq!(error.action(), Action::Configuration, "{error}");

    source.url = server.user("reader", vec![doc! { "role": "read", "db": source.name.as_str() }]).await;
    assert_eq!(fixes(&source).await, Vec::<String>::new());
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    a.update_many(doc! {}, doc! { "$inc": { "in.x": 1 } }).await.unwrap();
    source.settle(&mut reader).await;
    running.stop().await;

    // The same user, asked for more than it may read.
    source.more = vec!["other.*".into()];
    let fixes = fixes(&source).await;
    assert!(fixes.iter().any(|fix| fix.contains("grant the role readAnyDatabase, or let include")), "{fixes:?}");
}

/// The stream of a database ends where the database is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_database_is_gone_on_with() {
    let source = Source::create("gone").await;
    let fill = async |n: i32| {
        let documents = (0..100).map(|i| doc! { "_id": i, "n": n });
        source.collection("a").insert_many(documents).await.unwrap();
    };
    fill(0).await;
    source.pass().await;
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    source.database().drop().await.unwrap();
    fill(1).await;
    source.settle(&mut reader).await;
    for n in 2..5 {
        source.database().drop().await.unwrap();
        source.settle(&mut reader).await;
        fill(n).await;
    }
    source.settle(&mut reader).await;
    running.stop().await;
    // Dropped while nobody looks.
    source.database().drop().await.unwrap();
    fill(5).await;
    let last = source.catch_up().await;
    reader.until(|c| c.id == last.id).await;
    source.compare(&reader, &last).await;
    assert_eq!((reader.count(Op::Create), reader.count(Op::Read)), (500, 100));
    source.drop().await;
}

/// From one database to the deployment and back, at any point of a stream that never ends: the log has every event once, though no
/// token is known to the other stream.
#[tokio::test(flavor = "multi_thread")]
async fn the_stream_may_become_wider_and_narrower() {
    let mut source = Source::create("wider").await;
    let other = source.client.database(&format!("{}_other", source.name));
    let (a, b) = (source.collection("a"), other.collection::<Document>("b"));
    a.insert_one(doc! { "_id": -1 }).await.unwrap();
    source.pass().await;
    source.catch_up().await;
    let mut reader = source.reader().await;
    let (stop, client) = (CancellationToken::new(), source.client.clone());
    let (stopped, to, beside) = (stop.clone(), a.clone(), b.clone());
    let writer = tokio::spawn(async move {
        let mut session = client.start_session().await.unwrap();
        let mut inserted = 0;
        while !stopped.is_cancelled() {
            // Events of one moment, the last of them often in a database that only the deployment's stream sees.
            session.start_transaction().await.unwrap();
            for _ in 0..3 {
                to.insert_one(doc! { "_id": inserted }).session(&mut session).await.unwrap();
                inserted += 1;
            }
            if inserted % 2 == 0 {
                beside.insert_one(doc! {}).session(&mut session).await.unwrap();
            }
            session.commit_transaction().await.unwrap();
            beside.insert_one(doc! {}).await.unwrap();
        }
        inserted
    });
    for round in 0..8 {
        source.more = if round % 2 == 0 { vec!["no_such_database.*".into()] } else { Vec::new() };
        let running = source.start();
        // A cut, which an event has made: its token is the position.
        let last = reader.next().await.id;
        reader.until(|c| c.id > last && c.draft.cut).await;
        if round % 4 < 2 {
            running.kill().await;
        } else {
            running.stop().await;
        }
    }
    stop.cancel();
    let inserted = writer.await.unwrap();
    let last = source.catch_up().await;
    reader.until(|c| c.id == last.id).await;
    assert_eq!(source.compare(&reader, &last).await, inserted as usize + 1);
    assert_eq!(reader.count(Op::Create), inserted as usize, "an event is in the log once");
    other.drop().await.unwrap();
    source.drop().await;
}
