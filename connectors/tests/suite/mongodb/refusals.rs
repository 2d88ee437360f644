//! What a server refuses while it is read: each error is one that a real mongod sends, by its own failpoint or because it cannot
//! do better, and what must be in the log afterwards is all of it.

use lakeward_event::Op;
use lakeward_runtime::{Action, Error};

use super::server::TestMongod;
use super::*;

/// A source on a server of its own, with `documents` of this size in `a` that are there before the connector is.
async fn source(test: &str, server: &TestMongod, documents: i32, bytes: usize) -> Source {
    let mut source = Source::create(test).await;
    source.url = server.url.clone();
    source.client = server.client.clone();
    fill(&source, 0..documents, bytes).await;
    source.pass().await;
    source
}

async fn fill(source: &Source, ids: std::ops::Range<i32>, bytes: usize) {
    let documents = ids.map(|i| doc! { "_id": i, "n": i, "in": { "x": 0 }, "text": "x".repeat(bytes) });
    source.collection("a").insert_many(documents).await.unwrap();
}

impl Source {
    /// Commands on the collection `a` that fail.
    fn of_a(&self, commands: &[&str], how: Document) -> Document {
        let mut all = doc! { "failCommands": commands, "namespace": format!("{}.a", self.name) };
        all.extend(how);
        all
    }

    /// Everything is in the log, and each document of the first snapshot once.
    async fn complete(&self, reads: usize) {
        let last = self.catch_up().await;
        let mut reader = self.reader().await;
        reader.until(|c| c.id == last.id).await;
        self.compare(&reader, &last).await;
        assert_eq!(reader.count(Op::Read), reads);
    }

    async fn error(&self) -> Error {
        self.outcome(&self.config(), true).await.unwrap_err()
    }
}

fn is(error: &Error, action: Action, text: &str) {
    assert_eq!(error.action(), action, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

/// The server keeps its history for a second, and gives the second half of a range three seconds later: ranges get smaller until
/// they come in one reply.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_take_longer_than_the_history_are_halved() {
    let server = TestMongod::start(&["--setParameter", "minSnapshotHistoryWindowInSeconds=1"]).await;
    // 16 of them are less than the 16 MB of a reply, 32 are more.
    let mut source = source("window", &server, 40, 900_000).await;
    source.range_rows = 32;
    let slow = doc! { "blockConnection": true, "blockTimeMS": 3000 };
    server.fail(None, source.of_a(&["getMore"], slow)).await;
    let client = source.client.clone();
    // History gets old only where there is news.
    let news = tokio::spawn(async move {
        loop {
            client.database("news").collection("a").insert_one(doc! {}).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let last = source.catch_up().await;
    news.abort();
    assert!(server.stop_failing().await > 0, "no range was slow");
    assert_eq!(last.draft.next_sequence, 40, "a range that was broken off is in the log");
    server.set("minSnapshotHistoryWindowInSeconds", 300).await;
    source.complete(40).await;
}

/// SnapshotTooOld and SnapshotUnavailable where a range begins: another moment is taken.
#[tokio::test(flavor = "multi_thread")]
async fn refused_moments_are_replaced() {
    let server = TestMongod::start(&[]).await;
    for code in [239, 246] {
        let source = source("moments", &server, 1000, 10).await;
        server.fail(Some(5), source.of_a(&["find"], doc! { "errorCode": code })).await;
        source.complete(1000).await;
    }
    assert_eq!(server.stop_failing().await, 10);
}

/// A server that refuses every moment is no reason to wait in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_can_never_be_read_is_told() {
    let server = TestMongod::start(&[]).await;
    for (code, text) in
        [(239, "raise minSnapshotHistoryWindowInSeconds"), (246, "no moment at which a range could be read")]
    {
        let source = source("never", &server, 50, 10).await;
        server.fail(None, source.of_a(&["find"], doc! { "errorCode": code })).await;
        let error = source.error().await;
        is(&error, Action::Retry, text);
        server.stop_failing().await;
        source.complete(50).await;
    }
}

/// Cursor, primary or connection are lost before a range or in the middle of it: nothing of it is in the log, and the next start
/// reads it.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_breaks_off_is_read_again() {
    let server = TestMongod::start(&[]).await;
    // More than one reply: the middle of a range.
    let mut source = source("breaks", &server, 20, 900_000).await;
    source.range_rows = 30;
    let (lost, closed) = (doc! { "closeConnection": true }, "the connection to the server was lost");
    for (command, how, text) in [
        ("find", lost.clone(), closed),
        ("getMore", lost, closed),
        ("getMore", doc! { "errorCode": 43 }, "the server has closed the cursor"),
        ("getMore", doc! { "errorCode": 237 }, "the server has closed the cursor"),
        ("find", doc! { "errorCode": 10107 }, "no primary"),
        ("getMore", doc! { "errorCode": 11602 }, "no primary"),
        ("getMore", doc! { "errorCode": 8 }, "the server refused"),
    ] {
        server.fail(Some(1), source.of_a(&[command], how)).await;
        is(&source.error().await, Action::Retry, text);
    }
    assert_eq!(server.stop_failing().await, 7);
    source.complete(20).await;
}

/// The same as a user has it: the connector starts over by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_outlives_a_connection() {
    let server = TestMongod::start(&[]).await;
    let source = source("outlives", &server, 500, 10).await;
    server.fail(Some(3), source.of_a(&["find"], doc! { "closeConnection": true })).await;
    let run = lakeward_connectors::run(source.config(), source.context(true), CancellationToken::new());
    let last = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap().unwrap();
    assert_eq!((last.draft.next_sequence, server.stop_failing().await), (500, 3));
    source.complete(500).await;
}

/// What ends a change stream for good is told with what to do about it, when it is opened and later.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_stream_says_what_to_do() {
    let server = TestMongod::start(&[]).await;
    for command in ["aggregate", "getMore"] {
        let source = source("ends", &server, 10, 10).await;
        for (code, action, text) in [
            (286, Action::Resnapshot, "the oplog no longer holds the position"),
            (280, Action::Resnapshot, "the server cannot go on at the position"),
            (10334, Action::Human, "a change is larger than the 16 MB"),
            (13, Action::Configuration, "lacks a privilege"),
        ] {
            server.fail(Some(1), doc! { "failCommands": [command], "errorCode": code }).await;
            is(&source.error().await, action, text);
        }
        // None of it is remembered: once the cause is mended the source goes on.
        source.complete(10).await;
    }
    assert_eq!(server.stop_failing().await, 8);
}

/// An oplog of its least size, filled until it no longer reaches back to the position.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_before_the_oplog_asks_for_a_new_snapshot() {
    let server = TestMongod::start(&["--oplogSize", "1", "--syncdelay", "1"]).await;
    let source = source("before", &server, 10, 10).await;
    source.catch_up().await;
    let lost = async {
        loop {
            for _ in 0..20 {
                let documents = (0..20).map(|_| doc! { "text": "x".repeat(100_000) });
                source.collection("left_out").insert_many(documents).await.unwrap();
            }
            // The server cuts it off beside its work.
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Err(error) = source.outcome(&source.config(), true).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, lost).await.expect("the oplog is cut off");
    is(&error, Action::Resnapshot, "the oplog no longer holds the position");
}

/// What passes by itself is not even noticed: the stream is opened again where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_goes_on() {
    let server = TestMongod::start(&[]).await;
    let source = source("stream", &server, 100, 10).await;
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    let mut failures = 0;
    // The failpoint does not know that the cursor is a stream's, as the server does.
    let no_primary = doc! { "errorCode": 10107, "errorLabels": ["ResumableChangeStreamError"] };
    for how in [doc! { "closeConnection": true }, no_primary, doc! { "errorCode": 43 }] {
        let mut all = doc! { "failCommands": ["getMore"] };
        all.extend(how);
        server.fail(Some(1), all).await;
        failures += 1;
        let a = source.collection("a");
        for n in 0..20 {
            a.update_many(doc! { "_id": { "$lt": 50 } }, doc! { "$inc": { "n": 1 } }).await.unwrap();
            a.insert_one(doc! { "_id": 1000 * failures + n }).await.unwrap();
        }
        source.settle(&mut reader).await;
    }
    assert_eq!(server.stop_failing().await, failures);
    assert_eq!((reader.count(Op::Update), reader.count(Op::Create)), (3 * 20 * 50, 3 * 20));
    running.stop().await;
}

/// Documents that are to be read again (a description with a dot, before 6.1), at a moment that the server does not give: they are
/// read as they are later, and the collection is not exact until the stream is there.
#[tokio::test(flavor = "multi_thread")]
async fn documents_are_read_again_at_another_moment() {
    let server = TestMongod::start(&[]).await;
    let source = source("again", &server, 200, 10).await;
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    for code in [239, 246] {
        server.fail(Some(2), source.of_a(&["find"], doc! { "errorCode": code })).await;
        for n in 0..5 {
            source.collection("a").update_many(doc! {}, doc! { "$inc": { "in.x": n } }).await.unwrap();
        }
        source.settle(&mut reader).await;
    }
    assert_eq!((server.stop_failing().await, reader.patches), (4, 0));
    running.stop().await;
}

/// A stream that is seconds behind what is read beside it, because it was away for so long: as long as it has not come to where a
/// collection or a document was read, the collection is converging; and all cuts are exact.
#[tokio::test(flavor = "multi_thread")]
async fn cuts_behind_a_slow_stream_are_exact() {
    let server = TestMongod::start(&[]).await;
    let mut source = Source::create("behind").await;
    (source.url, source.client) = (server.url.clone(), server.client.clone());
    source.collection("b").insert_one(doc! {}).await.unwrap();
    let last = source.catch_up().await;
    let mut reader = source.reader().await;
    reader.until(|c| c.id == last.id).await;
    fill(&source, 0..300, 10).await;
    let stop = CancellationToken::new();
    let (a, stopped) = (source.collection("a"), stop.clone());
    let writer = tokio::spawn(async move {
        let mut n = 0;
        while !stopped.is_cancelled() {
            n += 1;
            a.update_many(doc! { "_id": { "$mod": [10, n % 10] } }, doc! { "$set": { "n": n } }).await.unwrap();
            a.update_many(doc! { "_id": { "$mod": [40, n % 40] } }, doc! { "$set": { "in.x": n } }).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let running = source.start();
    let (mut exact, mut converging) = (0, 0);
    while exact < 5 {
        let cut = reader.until(|c| c.draft.cut).await;
        source.compare(&reader, &cut).await;
        if cut.draft.converging.is_empty() { exact += 1 } else { converging += 1 }
    }
    assert!(converging > 0, "the stream was never behind");
    // Moments that are refused, while the stream is exact: what is read later than the position is not called so.
    server.fail(Some(4), source.of_a(&["find"], doc! { "errorCode": 246 })).await;
    reader.until(|c| !c.draft.converging.is_empty()).await;
    for _ in 0..3 {
        let cut = reader.until(|c| c.draft.cut).await;
        source.compare(&reader, &cut).await;
    }
    stop.cancel();
    writer.await.unwrap();
    source.settle(&mut reader).await;
    running.stop().await;
}
