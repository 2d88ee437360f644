//! Collections that are there when the connector starts.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, JavaScriptCodeWithScope, Regex, Timestamp, doc};
use lakeward_event::Op;

use super::*;

/// A value of every type that the server takes as an `_id`.
fn ids() -> Vec<Bson> {
    vec![
        Bson::MinKey,
        Bson::Null,
        Bson::Int32(5),
        Bson::Int64(6),
        Bson::Double(5.5),
        Bson::Double(f64::NAN),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Decimal128("7.10".parse().unwrap()),
        Bson::Int64(i64::MAX),
        Bson::String("b".into()),
        Bson::String("B".into()),
        Bson::String(String::new()),
        Bson::String("0123456789abcdef01234567".into()),
        Bson::String("{\"a\"".into()),
        Bson::String("null".into()),
        Bson::Document(doc! { "a": 1, "b": "x" }),
        Bson::Document(doc! {}),
        Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2] }),
        Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![7; 16] }),
        Bson::ObjectId(ObjectId::new()),
        Bson::Boolean(false),
        Bson::Boolean(true),
        Bson::DateTime(DateTime::from_millis(-5)),
        Bson::Timestamp(Timestamp { time: 3, increment: 4 }),
        Bson::MaxKey,
    ]
}

fn every_type() -> Document {
    doc! {
        "i": 5_i32, "l": i64::MIN, "d": 1e300, "z": -0.0, "nan": f64::NAN, "inf": f64::NEG_INFINITY, "s": "a\"\\\u{1}é\n",
        "o": ObjectId::new(), "t": DateTime::from_millis(i64::MAX), "n": Bson::Null, "u": Bson::Undefined,
        "b": Binary { subtype: BinarySubtype::UserDefined(0x85), bytes: vec![0, 255, 3] },
        "uuid": Binary { subtype: BinarySubtype::Uuid, bytes: vec![9; 16] },
        "r": Regex { pattern: "^a/\"".into(), options: "i".into() }, "ts": Timestamp { time: 7, increment: u32::MAX },
        "m": [Bson::MinKey, Bson::MaxKey, Bson::Boolean(true)], "nested": { "": [[], {}], "a.b": 1, "$x": { "$y": 2 } },
        "dec": (["1.50E+3", "NaN", "-Infinity", "-0.00"].map(|d| Bson::Decimal128(d.parse().unwrap())).to_vec()),
        "code": Bson::JavaScriptCode("f()".into()), "symbol": Bson::Symbol("s".into()),
        "scope": JavaScriptCodeWithScope { code: "g()".into(), scope: doc! { "x": 1 } },
        "long": "x".repeat(100_000),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_and_every_kind_of_id() {
    let mut source = Source::create("types").await;
    // Each range ends between other ids.
    source.range_rows = 2;
    let database = source.database();
    source.collection("values").insert_one(every_type()).await.unwrap();
    let documents: Vec<_> = ids().into_iter().enumerate().map(|(i, id)| doc! { "_id": id, "i": i as i32 }).collect();
    source.collection("mixed").insert_many(documents.clone()).await.unwrap();
    database.create_collection("empty").await.unwrap();
    database.run_command(doc! { "create": "collated", "collation": { "locale": "en" } }).await.unwrap();
    let words = ["a", "B", "b", "B2", "C", "Ä", "z", "10", "9"];
    source.collection("collated").insert_many(words.map(|w| doc! { "_id": w })).await.unwrap();
    source.collection("collated").insert_many((0..5).map(|i| doc! { "_id": { "s": format!("B{i}") } })).await.unwrap();
    let clustered = doc! { "create": "clustered", "clusteredIndex": { "key": { "_id": 1 }, "unique": true } };
    database.run_command(clustered).await.unwrap();
    source.collection("clustered").insert_many(documents).await.unwrap();
    database.run_command(doc! { "create": "view", "viewOn": "values", "pipeline": [] }).await.unwrap();
    source.collection("left_out").insert_one(doc! {}).await.unwrap();

    let last = source.catch_up().await;
    let mut reader = source.reader().await;
    reader.until(|c| c.id == last.id).await;
    let time = position(&last).0;
    for (name, count) in
        [("values", 1), ("mixed", ids().len()), ("empty", 0), ("collated", 14), ("clustered", ids().len())]
    {
        let expected = source.documents_at(name, time).await;
        assert_eq!(expected.len(), count);
        same(name, &reader.documents(&format!("{}.{name}", source.name)), &expected);
    }
    assert!(reader.documents(&format!("{}.left_out", source.name)).is_empty());
    assert_eq!(reader.count(Op::Read), 1 + 2 * ids().len() + 14);
    assert_eq!(last.draft.next_sequence, reader.count(Op::Read) as u64);

    // Once more: nothing is read again.
    let again = source.catch_up().await;
    assert_eq!(again.draft.next_sequence, last.draft.next_sequence);
    assert!(again.id > last.id && again.draft.watermark_from == last.draft.watermark_from);
    source.drop().await;
}

/// Collections come and go with the configuration: what was left out for a while is read anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_was_left_out_is_read_anew() {
    let source = Source::create("leftout").await;
    source.collection("a").insert_many((0..5).map(|i| doc! { "_id": i })).await.unwrap();
    source.catch_up().await;
    let mut without = source.config();
    without.exclude.push("*.a".into());
    source.outcome(&without, true).await.unwrap();
    source.collection("a").delete_one(doc! { "_id": 2 }).await.unwrap();
    source.outcome(&without, true).await.unwrap();
    let last = source.catch_up().await;
    let mut reader = source.reader().await;
    reader.until(|c| c.id == last.id).await;
    assert_eq!(source.compare(&reader, &last).await, 4);
    source.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_source_has_a_cut_at_every_tick() {
    let source = Source::create("idle").await;
    source.collection("a").insert_one(doc! { "_id": 1 }).await.unwrap();
    let running = source.start();
    let mut reader = source.reader().await;
    let first = reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
    let mut last = first.clone();
    let mut steps = Vec::new();
    for _ in 0..6 {
        let next = reader.until(|c| c.draft.cut).await;
        steps.push((next.draft.watermark - last.draft.watermark, next.wall_clock - next.draft.watermark));
        assert_eq!(next.draft.watermark_from, first.draft.watermark_from);
        assert!(position(&next).0 >= position(&last).0 && next.draft.next_sequence == first.draft.next_sequence);
        last = next;
    }
    // A machine that is busy with other tests passes over ticks now and then, not most of the time.
    assert!(steps.iter().all(|(step, late)| *step >= 1_000_000 && *late >= 0), "{steps:?}");
    let in_time = steps.iter().filter(|(step, late)| *step == 1_000_000 && *late < 1_500_000).count();
    assert!(in_time >= 3, "{steps:?}");
    assert!(position(&last).0 > position(&first).0);
    source.collection("a").insert_one(doc! { "_id": 2 }).await.unwrap();
    let moved = source.settle(&mut reader).await;
    assert!(moved.draft.watermark_from > last.draft.watermark);
    running.stop().await;
    source.drop().await;
}
