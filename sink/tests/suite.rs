//! The sink on a real Kafka (`LAKEWARD_TEST_KAFKA`) and a lake in a folder: changes are published as a connector does, and
//! the tables are read back from their files and deletes.

#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeMap;

use harness::{Bench, Change, PATIENCE, change, delete, insert, read, truncate, update};

type Model = BTreeMap<i64, (Option<String>, Option<String>)>;

fn model(rows: &[(i64, &str, &str)]) -> Model {
    rows.iter().map(|(id, v, big)| (*id, (Some((*v).to_owned()), Some((*big).to_owned())))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_inserted_changed_and_deleted() {
    let mut bench = Bench::new("basic").await;
    bench.publish(&[read(1, "a", "A"), read(2, "b", "B"), read(3, "c", "C")]).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(1, "a", "A"), (2, "b", "B"), (3, "c", "C")]));

    bench.publish(&[insert(4, "d", "D"), update(1, "a2", Some("A2")), delete(2)]).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(1, "a2", "A2"), (3, "c", "C"), (4, "d", "D")]));
    assert_eq!(bench.delete_files().await, 1, "rows are deleted by position, in one file");

    // Everything at once, several times over one key.
    bench
        .publish(&[insert(5, "e", "E"), update(5, "e2", Some("E2")), delete(5), insert(5, "e3", "E3"), delete(3)])
        .await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(1, "a2", "A2"), (4, "d", "D"), (5, "e3", "E3")]));
}

/// Trap 27, and one snapshot row read twice by different waves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_rows_replace_what_is_there() {
    let mut bench = Bench::new("snapshot").await;
    bench.publish(&[insert(1, "new", "N"), read(2, "b", "B")]).await;
    bench.sink().await;
    bench.publish(&[read(1, "again", "N"), read(2, "b", "B"), read(3, "c", "C")]).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(1, "again", "N"), (2, "b", "B"), (3, "c", "C")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_left_out_are_kept() {
    let mut bench = Bench::new("toast").await;
    bench.publish(&[insert(1, "a", "BIG"), update(1, "a2", None), insert(2, "b", "B")]).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(1, "a2", "BIG"), (2, "b", "B")]));
    // From the lake, twice in a chain, and after a restart (every `sink` is one).
    bench
        .publish(&[update(1, "a3", None), update(1, "a4", None), update(2, "b2", Some("B2")), update(2, "b3", None)])
        .await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(1, "a4", "BIG"), (2, "b3", "B2")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_change_carries_values_left_out() {
    let mut bench = Bench::new("keys").await;
    bench.publish(&[insert(1, "a", "BIG")]).await;
    bench.sink().await;
    // 1 -> 2 -> 3 in one commit, the value always left out.
    let chain: Vec<Change> = [change(1, 2, "b", None), change(2, 3, "c", None)].concat();
    bench.publish(&chain).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(3, "c", "BIG")]));
    bench.publish(&change(3, 4, "d", None)).await;
    bench.sink().await;
    // The old key is used again.
    bench.publish(&[[insert(3, "x", "X")].to_vec(), change(4, 5, "e", None)].concat()).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(3, "x", "X"), (5, "e", "BIG")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_ends_everything_before_it() {
    let mut bench = Bench::new("truncate").await;
    bench.publish(&[insert(1, "a", "A"), insert(2, "b", "B")]).await;
    bench.sink().await;
    bench.publish(&[insert(3, "c", "C"), truncate(), insert(2, "new", "N")]).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(2, "new", "N")]));
    bench.publish(&[update(2, "newer", None)]).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(2, "newer", "N")]));
}

/// Trap 29: the key's column becomes wider, and old rows are still found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_widened_key_finds_its_old_rows() {
    let mut bench = Bench::new("widen").await;
    bench.publish(&[insert(1, "a", "A"), insert(2, "b", "B")]).await;
    bench.sink().await;
    bench.widen();
    bench.publish(&[update(1, "a2", None), delete(2), insert(1 << 40, "far", "F")]).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(1, "a2", "A"), (1 << 40, "far", "F")]));
}

/// The index is a cache: without it the table is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_index_is_rebuilt() {
    let mut bench = Bench::new("index").await;
    let rows: Vec<Change> = (0..2_000).map(|id| insert(id, "v", "big")).collect();
    bench.publish(&rows).await;
    bench.sink().await;
    bench.publish(&(0..500).map(|id| update(id, "w", None)).collect::<Vec<_>>()).await;
    bench.sink().await;
    bench.forget_index();
    bench
        .publish(&(400..600).map(|id| update(id, "x", None)).chain([delete(0), delete(1_999)]).collect::<Vec<_>>())
        .await;
    bench.sink().await;
    let mut expected = Model::new();
    for id in 1..1_999 {
        let v = if (400..600).contains(&id) {
            "x"
        } else if id < 500 {
            "w"
        } else {
            "v"
        };
        expected.insert(id, (Some(v.to_owned()), Some("big".to_owned())));
    }
    assert_eq!(bench.rows().await, expected);
}

/// Two sinks with state directories of their own: the one whose table moved without it stops, and nothing is doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sink_stops() {
    let mut bench = Bench::new("zombie").await;
    bench.publish(&[insert(1, "a", "A")]).await;
    bench.sink().await;
    let (mut first, mut second) = (bench.start_sink("one"), bench.start_sink("two"));
    for round in 0..6 {
        bench.publish(&[insert(10 + round, "r", "R"), update(1, "again", None)]).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    let ended = tokio::time::timeout(PATIENCE, async {
        tokio::select! { e = first.ended() => e, e = second.ended() => e }
    })
    .await
    .expect("one of the two stops");
    let message = ended.unwrap_err().to_string();
    assert!(message.contains("another sink commits to this table"), "{message}");
    first.stop().await;
    second.stop().await;
    bench.sink().await;
    let rows = bench.rows().await;
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), [1, 10, 11, 12, 13, 14, 15]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_state_dir_is_for_one_sink() {
    let mut bench = Bench::new("lock").await;
    bench.publish(&[insert(1, "a", "A")]).await;
    let running = bench.start_sink("same");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let mut second = bench.start_sink("same");
    let second = second.ended().await.unwrap_err().to_string();
    assert!(second.contains("another sink runs with this state_dir (process "), "{second}");
    running.stop().await;
}

/// A record that cannot be read becomes one dead letter, and the rest goes on.
/// Trap 22: a key's newest change lies in a partition that is read before the one that holds its older ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_moved_to_another_partition_stay_in_order() {
    let mut bench = Bench::new("moved").await;
    let older: Vec<Change> = (1..=60).flat_map(|id| [insert(id, "old", "B"), update(id, "older", Some("C"))]).collect();
    let mut newer: Vec<Change> = (1..=40).map(|id| update(id, "new", None)).collect();
    newer.extend((41..=60).map(delete));
    newer.extend((0..newer.len().abs_diff(older.len())).map(|n| insert(1000 + n as i64, "more", "M")));
    bench.publish_moved(&older, &newer).await;
    bench.sink().await;
    let rows = bench.rows().await;
    let wanted = |id: i64| match id {
        ..=40 => Some(("new", "C")),
        1000.. => Some(("more", "M")),
        _ => None,
    };
    for id in (1..=60).chain(1000..1060) {
        let found = rows.get(&id).map(|(v, big)| (v.as_deref().unwrap(), big.as_deref().unwrap()));
        assert_eq!(found, wanted(id), "row {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_record_is_a_dead_letter_once() {
    let mut bench = Bench::new("bad").await;
    bench.publish_with_garbage(&[insert(1, "a", "A"), insert(2, "b", "B")]).await;
    bench.sink().await;
    assert_eq!(bench.rows().await, model(&[(1, "a", "A"), (2, "b", "B")]));
    assert_eq!(bench.dead_letters().await, 1);
}

/// Documents and patches: columns appear, patches are completed from the commit and from the lake, an integer column keeps
/// its type when doubles come and the document keeps the value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_become_columns() {
    use lakeward_event::Op::{Create, Delete, Update};
    let set = |field: &str, value: &str| {
        format!(r#"{{"updatedFields":{{"{field}":{value}}},"removedFields":[],"truncatedArrays":[]}}"#)
    };
    let mut bench = Bench::new("documents").await;
    bench.documents();
    let (one, two) = (r#"{"_id":"a","n":{"$numberInt":"1"}}"#, r#"{"_id":"b","s":"x"}"#);
    let patch = set("n", r#"{"$numberInt":"2"}"#);
    bench
        .publish_documents(&[
            (Create, "a", Some(one), None),
            (Create, "b", Some(two), None),
            (Update, "a", None, Some(&patch)),
            (Create, "c", Some(r#"{"_id":"c"}"#), None),
        ])
        .await;
    bench.sink().await;
    let some = |text: &str| Some(text.to_owned());
    let rows = bench.texts("_id", &["n", "s"]).await;
    let row = |id: &str, values: [Option<String>; 2]| (id.to_owned(), values.to_vec());
    let expected = [row("a", [some("2"), None]), row("b", [None, some("x")]), row("c", [None, None])];
    assert_eq!(rows, BTreeMap::from(expected));

    let (first, second) = (set("t", "true"), set("n", r#"{"$numberDouble":"0.5"}"#));
    bench
        .publish_documents(&[
            (Update, "a", None, Some(&first)),
            (Update, "b", None, Some(&second)),
            (Delete, "c", None, None),
            (Update, "nobody", None, Some(&first)),
        ])
        .await;
    bench.sink().await;
    let rows = bench.texts("_id", &["n", "s", "t", "_doc"]).await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(rows["a"][..3], [some("2"), None, some("true")]);
    assert_eq!(rows["b"][..3], [None, some("x"), None]);
    assert!(rows["b"][3].as_ref().unwrap().contains("0.5"), "{rows:?}");
    assert_eq!(bench.dead_letters().await, 1, "a patch to a document that nobody has");
}
