//! Changes while the connector runs.

use bson::doc;
use lakeward_event::Op;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change() {
    let source = Source::create("changes").await;
    let a = source.collection("a");
    a.insert_many((0..40).map(
        |i| doc! { "_id": i, "n": i, "gone": true, "arr": [1, 2, 3, 4, 5], "in": { "x": 1, "y": [1, 2, { "z": 3 }] } },
    ))
    .await
    .unwrap();
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;

    let id = |i: i32| doc! { "_id": i };
    // Descriptions that say all: they are carried as patches.
    for (i, update) in [
        doc! { "$set": { "n": 100, "new": { "a": [1, { "b": 2 }] }, "text": "é\"\\\u{1}" } },
        doc! { "$unset": { "gone": "" }, "$inc": { "n": 5_i64 } },
        doc! { "$set": { "arr": [] } },
        doc! { "$rename": { "gone": "came" } },
        doc! { "$currentDate": { "at": true }, "$mul": { "n": 1.5 } },
        doc! { "$set": { "zz": 1, "aa": 2, "mm": 3 }, "$unset": { "n": "", "gone": "" } },
    ]
    .into_iter()
    .enumerate()
    {
        a.update_one(id(i as i32), update).await.unwrap();
    }
    a.update_one(id(6), vec![doc! { "$set": { "arr": { "$slice": ["$arr", 2] } } }]).await.unwrap();
    a.update_one(id(7), vec![doc! { "$set": { "n": { "$add": ["$n", 1] } } }, doc! { "$unset": "gone" }])
        .await
        .unwrap();
    let settled = source.settle(&mut reader).await;
    assert!(reader.patches >= 8, "{}", reader.patches);
    let patches = reader.patches;

    // Paths with dots, of which before 6.1 nobody can tell what they mean: documents are read again.
    for (i, update) in [
        doc! { "$set": { "in.x": 2, "in.y.2.z": 4, "arr.1": "second" } },
        doc! { "$unset": { "in.x": "", "in.y.0": "" } },
        doc! { "$push": { "arr": 6 } },
        doc! { "$push": { "arr": { "$each": [7, 8], "$slice": -2 } } },
        doc! { "$push": { "in.y": { "$each": [7, 8], "$slice": 1 } } },
        doc! { "$inc": { "in.x": 1 } },
        doc! { "$set": { "arr.9": "gap" } },
        doc! { "$set": { "in.0": "a field called 0" } },
    ]
    .into_iter()
    .enumerate()
    {
        a.update_one(id(10 + i as i32), update).await.unwrap();
    }
    let named = |name: &str, value: i32| doc! { "$replaceWith": { "$setField": { "field": name, "input": "$$ROOT", "value": value } } };
    a.update_one(id(20), vec![named("in.x", 77)]).await.unwrap();
    a.update_one(id(20), doc! { "$set": { "in.x": 78 } }).await.unwrap();
    a.update_one(id(21), vec![named("arr.0", 5)]).await.unwrap();
    a.update_one(id(22), vec![named("in.x", 1)]).await.unwrap();
    a.delete_one(id(22)).await.unwrap();
    a.update_one(id(23), vec![named("in.x", 1)]).await.unwrap();
    a.delete_one(id(23)).await.unwrap();
    a.insert_one(doc! { "_id": 23, "again": true }).await.unwrap();
    a.update_one(id(23), doc! { "$set": { "plain": 1 } }).await.unwrap();
    // A patch that only fits what the dotted one before it has made.
    a.update_one(id(24), doc! { "$set": { "in.x": 1, "list": [1, 2, 3] } }).await.unwrap();
    a.update_one(id(24), vec![doc! { "$set": { "list": { "$slice": ["$list", 1] } } }]).await.unwrap();
    source.settle(&mut reader).await;
    assert!(settled.draft.converging.is_empty());

    a.replace_one(id(30), doc! { "whole": "new" }).await.unwrap();
    a.delete_many(doc! { "_id": { "$gte": 35 } }).await.unwrap();
    a.insert_many((35..38).map(|i| doc! { "_id": i, "back": true })).await.unwrap();
    source
        .collection("later")
        .insert_many((0..300).map(|i| doc! { "_id": i, "created": "while it runs" }))
        .await
        .unwrap();
    source.collection("later").update_many(doc! {}, doc! { "$set": { "n": 1 } }).await.unwrap();
    source.collection("left_out").insert_one(doc! {}).await.unwrap();
    source.settle(&mut reader).await;
    assert!(reader.patches >= patches + 300);
    assert_eq!((reader.count(Op::Delete), reader.count(Op::Read)), (7, 40));
    running.stop().await;
    source.drop().await;
}

/// Documents that are to be read again, and then are not there any more or are known whole: nothing is read, and the source stays
/// exact.
#[tokio::test(flavor = "multi_thread")]
async fn what_need_not_be_read_again_is_not() {
    let source = Source::create("not_again").await;
    let (a, b) = (source.collection("a"), source.collection("b"));
    for collection in [&a, &b] {
        collection.insert_many((0..30).map(|i| doc! { "_id": i, "in": { "x": 0 } })).await.unwrap();
    }
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    // In one transaction, so that all of it is in one append.
    let mut session = source.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let dotted = doc! { "$set": { "in.x": 1 } };
    a.update_many(doc! {}, dotted.clone()).session(&mut session).await.unwrap();
    a.delete_many(doc! { "_id": { "$lt": 10 } }).session(&mut session).await.unwrap();
    for i in 10..20 {
        a.replace_one(doc! { "_id": i }, doc! { "whole": i }).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
    b.update_many(doc! {}, dotted).await.unwrap();
    b.drop().await.unwrap();
    let time = source.now().await;
    loop {
        let checkpoint = reader.next().await;
        assert!(checkpoint.draft.converging.is_empty(), "{:?}", checkpoint.draft.converging);
        source.compare(&reader, &checkpoint).await;
        if checkpoint.draft.cut && position(&checkpoint).0 >= time {
            break;
        }
    }
    assert_eq!((reader.count(Op::Delete), reader.patches), (10, 0));
    // Ten replaced, ten read again; those of b once at most, if they were read before the drop was seen.
    let updates = reader.count(Op::Update);
    assert!((20..=50).contains(&updates) && updates % 10 == 0, "{updates}");
    running.stop().await;
    source.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn post_images_come_whole() {
    let source = Source::create("images").await;
    let create = doc! { "create": "a", "changeStreamPreAndPostImages": { "enabled": true } };
    source.database().run_command(create).await.unwrap();
    let a = source.collection("a");
    a.insert_many((0..10).map(|i| doc! { "_id": i, "in": { "x": 1 } })).await.unwrap();
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    for _ in 0..5 {
        a.update_many(doc! {}, doc! { "$inc": { "in.x": 1, "n": 1 } }).await.unwrap();
    }
    source.settle(&mut reader).await;
    // One row for each update: nothing was read again.
    assert_eq!((reader.count(Op::Update), reader.patches), (50, 0));
    running.stop().await;
    source.drop().await;
}

/// An update of more than 16 MB with its image comes in fragments.
#[tokio::test(flavor = "multi_thread")]
async fn large_events_are_joined() {
    let source = Source::create("large").await;
    let create = doc! { "create": "a", "changeStreamPreAndPostImages": { "enabled": true } };
    source.database().run_command(create).await.unwrap();
    let a = source.collection("a");
    a.insert_one(doc! { "_id": 1, "x": "" }).await.unwrap();
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    a.update_one(doc! { "_id": 1 }, doc! { "$set": { "x": "x".repeat(10 << 20) } }).await.unwrap();
    a.update_one(doc! { "_id": 1 }, doc! { "$set": { "y": 1 } }).await.unwrap();
    source.settle(&mut reader).await;
    running.stop().await;
    source.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_are_dropped_and_renamed() {
    dropped_and_renamed(Source::create("ddl").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_of_a_deployment_are_dropped_and_renamed() {
    dropped_and_renamed(Source::of_deployment("ddl").await).await;
}

async fn dropped_and_renamed(source: Source) {
    let fill = async |name: &str, n: i32| {
        let documents = (0..n).map(|i| doc! { "_id": i, "of": name, "in": { "x": 1 } });
        source.collection(name).insert_many(documents).await.unwrap();
    };
    let rename = async |from: &str, to: &str, drop: bool| {
        let name = |c: &str| format!("{}.{c}", source.name);
        let command = doc! { "renameCollection": name(from), "to": name(to), "dropTarget": drop };
        source.client.database("admin").run_command(command).await.unwrap();
    };
    for name in ["dropped", "remade", "old", "over", "under"] {
        fill(name, 250).await;
    }
    let running = source.start();
    let mut reader = source.reader().await;
    reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    let full = |c: &str| format!("{}.{c}", source.name);

    source.collection("dropped").drop().await.unwrap();
    // What is to be read again is gone before it can be.
    source.collection("remade").update_many(doc! {}, doc! { "$inc": { "in.x": 1 } }).await.unwrap();
    source.collection("remade").drop().await.unwrap();
    fill("remade", 7).await;
    rename("old", "new", false).await;
    source.collection("new").update_many(doc! {}, doc! { "$inc": { "in.x": 1 } }).await.unwrap();
    fill("old", 3).await;
    rename("over", "under", true).await;
    source.settle(&mut reader).await;
    assert!(reader.documents(&full("dropped")).is_empty() && reader.documents(&full("over")).is_empty());
    assert_eq!((reader.documents(&full("remade")).len(), reader.documents(&full("old")).len()), (7, 3));
    assert_eq!((reader.documents(&full("new")).len(), reader.documents(&full("under")).len()), (250, 250));

    // Out of and into what is captured, and the whole database.
    rename("new", "left_out", false).await;
    fill("remade2", 5).await;
    rename("left_out", "back", false).await;
    source.settle(&mut reader).await;
    assert_eq!((reader.documents(&full("new")).len(), reader.documents(&full("back")).len()), (0, 250));
    source.database().drop().await.unwrap();
    fill("after", 2).await;
    source.settle(&mut reader).await;
    assert!(reader.documents(&full("back")).is_empty() && reader.documents(&full("after")).len() == 2);
    running.stop().await;
    source.drop().await;
}

/// Drops and renames among the ranges of a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn collections_are_remade_during_their_snapshot() {
    let mut source = Source::create("remade").await;
    source.range_rows = 50;
    for name in ["a", "b", "c"] {
        source.collection(name).insert_many((0..3000).map(|i| doc! { "_id": i, "old": true })).await.unwrap();
    }
    let running = source.start();
    let mut reader = source.reader().await;
    // Some ranges are in the log, the last is not.
    reader.until(|c| c.draft.next_sequence > 0 && c.draft.converging.len() == 3).await;
    for round in 0..3 {
        source.collection("a").drop().await.unwrap();
        source.collection("a").insert_many((0..400).map(|i| doc! { "_id": i * 3, "new": round })).await.unwrap();
        let command = doc! { "renameCollection": format!("{}.c", source.name), "to": format!("{}.b", source.name), "dropTarget": true };
        source.client.database("admin").run_command(command).await.unwrap();
        source.collection("c").insert_many((0..400).map(|i| doc! { "_id": i * 5, "new": round })).await.unwrap();
        source.collection("b").update_many(doc! {}, doc! { "$set": { "round": round } }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    source.settle(&mut reader).await;
    running.stop().await;
    source.drop().await;
}
