//! `verify` of a MongoDB source: equal under load; a document that the lake has not, has too much, or has otherwise is named,
//! whatever its `_id` is; and nothing to compare is no success.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lakeward_admin::verify::{Report, TableReport};
use lakeward_connectors::mongodb::builder::{DocumentBuilder, Place};
use lakeward_event::Op;
use lakeward_runtime::Action;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, RawDocumentBuf, Regex, Timestamp, doc, rawdoc};

use super::harness::MongoPipeline;

const HEX: &str = "65a1b2c3d4e5f60718293a4b";

/// Ids of every kind, each with the text that names it; strings that look like another id among them.
fn ids() -> Vec<(Bson, &'static str)> {
    vec![
        (ObjectId::parse_str(HEX).unwrap().into(), HEX),
        ("plain".into(), "plain"),
        (7.into(), r#"{"$numberInt":"7"}"#),
        (i64::MAX.into(), r#"{"$numberLong":"9223372036854775807"}"#),
        (7.5.into(), r#"{"$numberDouble":"7.5"}"#),
        (doc! { "a": 1, "b": { "c": "x" } }.into(), r#"{"a":{"$numberInt":"1"},"b":{"c":"x"}}"#),
        (Bson::Null, "null"),
        (true.into(), "true"),
        (HEX.into(), r#""65a1b2c3d4e5f60718293a4b""#),
        (r#"{"$numberInt":"7"}"#.into(), r#""{\"$numberInt\":\"7\"}""#),
        (r#"{"a":{"$numberInt":"1"},"b":{"c":"x"}}"#.into(), r#""{\"a\":{\"$numberInt\":\"1\"},\"b\":{\"c\":\"x\"}}""#),
        ("null".into(), r#""null""#),
        ("true".into(), r#""true""#),
        ("\"plain\"".into(), r#""\"plain\"""#),
        ("".into(), ""),
    ]
}

fn every_type() -> Document {
    doc! {
        "i": 5_i32, "l": i64::MIN, "d": 0.1, "z": -0.0, "nan": f64::NAN, "s": "a\"\\\u{1}é\n", "o": ObjectId::new(), "yes": true,
        "t": DateTime::from_millis(1_700_000_000_123), "n": Bson::Null, "dec": Bson::Decimal128("1.50E+3".parse().unwrap()),
        "b": Binary { subtype: BinarySubtype::Generic, bytes: vec![0, 255, 3] },
        "uuid": Binary { subtype: BinarySubtype::Uuid, bytes: vec![9; 16] },
        "r": Regex { pattern: "^a/\"".into(), options: "i".into() }, "ts": Timestamp { time: 7, increment: 9 },
        "in": { "x": [1, 2.5, 7_i64, { "y": DateTime::from_millis(5) }], "": {} }, "": "no name", "I": "another case",
    }
}

fn raw(document: Document) -> RawDocumentBuf {
    RawDocumentBuf::from_document(&document).unwrap()
}

fn table<'a>(report: &'a Report, name: &str) -> &'a TableReport {
    let found = report.tables.iter().find(|t| t.table.ends_with(&format!(".{name}")));
    found.unwrap_or_else(|| panic!("{name} is not in {}", report.to_text()))
}

fn texts(keys: &[BTreeMap<String, String>]) -> Vec<&str> {
    let mut texts: Vec<&str> = keys.iter().map(|key| key["_id"].as_str()).collect();
    texts.sort_unstable();
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_equal_under_load_and_what_is_not_is_named() {
    let mut pipeline = MongoPipeline::new("verify").await;
    let of_each = |n: i32| ids().into_iter().map(move |(id, _)| doc! { "_id": id, "n": n, "s": "same" });
    for collection in ["changed", "missing", "same"] {
        pipeline.insert(collection, of_each(1)).await;
    }
    for collection in ["changed", "missing", "extra"] {
        pipeline.insert(collection, [doc! { "_id": "another", "n": 1, "s": "same" }]).await;
    }
    // Conflicts of types, fields without a column, and all types in one document and alone.
    pipeline.insert("types", every_type().into_iter().map(|(name, value)| doc! { name: value })).await;
    pipeline.insert("types", [every_type(), doc! { "i": "text", "s": 7, "in": true, "l": 1.5 }]).await;
    pipeline.insert("busy", (0..500).map(|i| doc! { "_id": i, "n": 0, "in": { "x": 0 }, "list": [1, 2, 3] })).await;
    pipeline.start().await;

    // A writer that never pauses.
    let stop = Arc::new(AtomicBool::new(false));
    let (busy, stopped) = (pipeline.database.collection::<Document>("busy"), stop.clone());
    let writer = tokio::spawn(async move {
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            let some = doc! { "_id": { "$mod": [50, n % 50] } };
            let set = doc! { "$set": { "n": n }, "$push": { "list": { "$each": [n], "$slice": -5 } } };
            busy.update_many(some.clone(), set).await.unwrap();
            busy.update_many(some, doc! { "$inc": { "in.x": 1 } }).await.unwrap();
            busy.insert_one(doc! { "_id": 1000 + n, "new": n }).await.unwrap();
            busy.delete_one(doc! { "_id": 1000 + n - 5 }).await.unwrap();
        }
        n
    });
    for _ in 0..2 {
        let report = pipeline.settled(&[]).await;
        assert!(report.is_equal(), "{}", report.to_text());
        assert_eq!(report.tables.len(), 6);
        let rows = |name| (table(&report, name).source_rows, table(&report, name).lake_rows);
        let all = ids().len() as u64;
        assert_eq!((rows("changed"), rows("same"), rows("extra")), ((all + 1, all + 1), (all, all), (1, 1)));
        assert!(rows("busy").0 >= 500 && rows("types").0 == every_type().len() as u64 + 2);
    }

    // Three ways in which the lake can be wrong.
    let again = |builder: &mut DocumentBuilder, place: &mut dyn FnMut() -> Place, op| {
        for document in of_each(2) {
            builder.document(op, &raw(document), place()).unwrap();
        }
    };
    pipeline.forge("changed", |builder, place| again(builder, place, Op::Update)).await;
    pipeline.forge("extra", |builder, place| again(builder, place, Op::Create)).await;
    pipeline
        .forge("missing", |builder, place| {
            for (id, _) in ids() {
                let id = raw(doc! { "_id": id });
                builder.delete(id.get("_id").unwrap().unwrap(), place()).unwrap();
            }
        })
        .await;
    let report = pipeline.settled(&[]).await;
    stop.store(true, Ordering::Relaxed);
    assert!(writer.await.unwrap() > 10);
    assert!(!report.is_equal());
    let mut named: Vec<&str> = ids().iter().map(|(_, text)| *text).collect();
    named.sort_unstable();
    let difference = |name| {
        let found = table(&report, name).difference.as_ref();
        found.unwrap_or_else(|| panic!("{name} is not different: {}", report.to_text()))
    };
    let (missing, extra, changed) = (difference("missing"), difference("extra"), difference("changed"));
    assert_eq!(texts(&missing.missing), named);
    assert_eq!(texts(&extra.unexpected), named);
    let keys: Vec<_> = changed.differing.iter().map(|row| row.key.clone()).collect();
    assert_eq!(texts(&keys), named);
    for row in &changed.differing {
        let n = (Some("1".to_owned()), Some("2".to_owned()));
        assert_eq!(row.columns, BTreeMap::from([("n".to_owned(), n)]));
    }
    for (found, all) in [(missing, 0), (extra, 1), (changed, 2)] {
        let totals = [found.totals.missing, found.totals.unexpected, found.totals.differing];
        let mut expected = [0; 3];
        expected[all] = ids().len() as u64;
        assert_eq!((totals, found.totals.doubled, found.totals.all_counted), (expected, 0, true));
    }
    for name in ["same", "types", "busy"] {
        assert_eq!(table(&report, name).difference, None, "{}", report.to_text());
    }
    assert!(report.to_text().ends_with("3 of 6 tables differ\n"), "{}", report.to_text());
    pipeline.end().await;
}

/// What one value deep in one document is enough for, in a field that has a column and in one that has none.
#[tokio::test(flavor = "multi_thread")]
async fn one_value_is_enough() {
    let mut pipeline = MongoPipeline::new("value").await;
    pipeline.insert("a", (0..1000).map(|i| doc! { "_id": i, "in": { "x": [1, { "y": i }] } })).await;
    pipeline.insert("b", (0..1000).map(|i| doc! { "_id": i, "n": 1, "N": 1_i64 })).await;
    pipeline.start().await;
    assert!(pipeline.settled(&[]).await.is_equal());
    let forged = rawdoc! { "_id": 77, "in": { "x": [1, { "y": 78 }] } };
    pipeline.forge("a", |builder, place| builder.document(Op::Update, &forged, place()).unwrap()).await;
    // 1 as another type of number
    let forged = rawdoc! { "_id": 5, "n": 1, "N": 1 };
    pipeline.forge("b", |builder, place| builder.document(Op::Update, &forged, place()).unwrap()).await;
    let report = pipeline.settled(&[]).await;
    for (name, id, column) in [("a", "77", "in"), ("b", "5", "(fields without a column)")] {
        let difference = table(&report, name).difference.as_ref().unwrap();
        let [row] = difference.differing.as_slice() else { panic!("{}", report.to_text()) };
        assert_eq!(row.key["_id"], format!("{{\"$numberInt\":\"{id}\"}}"));
        assert_eq!(row.columns.keys().collect::<Vec<_>>(), [column]);
    }
    pipeline.end().await;
}

/// A collection without a document is a table without a row, from its first snapshot on or from when it is created. Comparing
/// nothing proves nothing, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_compare_is_no_success() {
    let mut pipeline = MongoPipeline::new("nothing").await;
    pipeline.database.create_collection("nothing").await.unwrap();
    pipeline.insert("some", [doc! { "_id": 1 }]).await;
    pipeline.insert("left_out", [doc! { "_id": 1 }]).await;
    pipeline.start().await;
    let report = pipeline.settled(&["*.nothing".into()]).await;
    let nothing = table(&report, "nothing");
    assert_eq!((nothing.source_rows, nothing.lake_rows, &nothing.difference), (0, 0, &None));
    assert!(!report.is_equal() && report.skipped.is_empty());
    assert_eq!(report.to_text().lines().last(), Some("there was no row to compare"));
    assert!(pipeline.settled(&[]).await.is_equal(), "one table with rows is enough");

    // Collections that come later: the stream says nothing of them before their first document.
    pipeline.database.create_collection("later").await.unwrap();
    let report = pipeline.settled(&["*.later".into()]).await;
    assert_eq!((table(&report, "later").lake_rows, report.skipped.len()), (0, 0));
    for collection in ["nothing", "later"] {
        pipeline.insert(collection, (0..10).map(|i| doc! { "_id": i, "n": i })).await;
    }
    let report = pipeline.settled(&[]).await;
    assert!(report.is_equal(), "{}", report.to_text());
    assert_eq!((table(&report, "nothing").lake_rows, table(&report, "later").lake_rows), (10, 10));

    // A collection that the lake does not have.
    let mut config = pipeline.config.clone();
    config.sources[0].exclude.clear();
    let report = pipeline.verify_as(&config, &[]).await.unwrap();
    assert!(!report.is_equal());
    let [skipped] = report.skipped.as_slice() else { panic!("{}", report.to_text()) };
    assert!(skipped.table.ends_with(".left_out"), "{skipped:?}");
    assert!(skipped.reason.contains("does not name it: the lake does not have it"), "{skipped:?}");
    assert_eq!(report.to_text().lines().last(), Some("1 tables were not compared"));

    // A name that is none is a mistake, not an empty answer.
    let error = pipeline.verify(&["nosuch".into()]).await.unwrap_err();
    assert_eq!(error.action(), Action::Configuration, "{error}");
    pipeline.end().await;
}
