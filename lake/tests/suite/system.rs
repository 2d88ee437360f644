//! `lakeward.checkpoints` and `lakeward.dead_letters`.

use std::collections::BTreeMap;

use lakeward_lake::system::{Appended, CheckpointRow, CheckpointTable, DeadLetter, DeadLetterTable, Offsets};

use crate::harness::*;
use crate::on_both;

fn row(source: &str, checkpoint: i64, complete: bool) -> CheckpointRow {
    CheckpointRow {
        source: source.into(),
        checkpoint,
        position: format!("0/{checkpoint:X}"),
        watermark_from: checkpoint * 10 - 5,
        watermark: checkpoint * 10,
        committed_at: checkpoint * 10 + 1,
        converging: if complete { vec![] } else { vec![format!("{source}.new"), "x.y".into()] },
        complete,
        tables: BTreeMap::from([(format!("{source}.a"), checkpoint), (format!("{source}.b"), -checkpoint)]),
    }
}

on_both!(checkpoints_only_grow, grow);
async fn grow(fresh: Fresh) {
    let table = CheckpointTable::open(&fresh.lake).await.unwrap();
    assert!(table.newest().await.unwrap().is_empty());
    assert_eq!(table.append(vec![row("users", 1, true), row("items", 5, true)]).await.unwrap(), Appended::Done);
    for i in 2..=5 {
        assert_eq!(table.append(vec![row("users", i, i == 4)]).await.unwrap(), Appended::Done);
    }
    for old in [5, 3] {
        let refused = table.append(vec![row("items", 6, false), row("users", old, false)]).await.unwrap();
        assert_eq!(refused, Appended::Refused { source: "users".into(), newest: 5 });
    }
    let other = CheckpointTable::open(&fresh.reopen().await).await.unwrap();
    let newest = other.newest().await.unwrap();
    assert_eq!(newest["users"], row("users", 5, false));
    assert_eq!(newest["items"], row("items", 5, true), "a refused append writes none of its rows");
    let ids = |rows: Vec<CheckpointRow>| rows.iter().map(|r| r.checkpoint).collect::<Vec<_>>();
    assert_eq!(ids(other.rows("users", None).await.unwrap()), [5, 4]);
    // At watermark 30 the newest complete row is the first.
    assert_eq!(ids(other.rows("users", Some(30)).await.unwrap()), [5, 4, 3, 2, 1]);
    assert_eq!(ids(other.rows("users", Some(40)).await.unwrap()), [5, 4]);
}

on_both!(racing_checkpoints_stay_few_files, racing);
async fn racing(fresh: Fresh) {
    const ROWS: i64 = 30;
    CheckpointTable::open(&fresh.lake).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for source in ["a", "b"] {
        let lake = fresh.reopen().await;
        writers.spawn(async move {
            let table = CheckpointTable::open(&lake).await.unwrap();
            for i in 1..=ROWS {
                assert_eq!(table.append(vec![row(source, i, i == 1)]).await.unwrap(), Appended::Done);
            }
        });
    }
    writers.join_all().await;
    let table = CheckpointTable::open(&fresh.lake).await.unwrap();
    for source in ["a", "b"] {
        let rows = table.rows(source, Some(0)).await.unwrap();
        let expected: Vec<_> = (1..=ROWS).rev().map(|i| row(source, i, i == 1)).collect();
        assert_eq!(rows, expected, "every row once");
    }
    let table = fresh.lake.load(&ident("lakeward", "checkpoints")).await.unwrap().unwrap();
    let files = table.files(table.snapshot().unwrap().snapshot_id()).await.unwrap();
    assert!(files.data.len() <= 33, "{} files", files.data.len());
    assert_eq!(total(&table, "total-records"), 2 * ROWS);
}

on_both!(a_retry_writes_no_letter_twice, letters);
async fn letters(fresh: Fresh) {
    let table = DeadLetterTable::open(&fresh.lake).await.unwrap();
    let letter = |offset, column: Option<&str>| DeadLetter {
        at: 1,
        source: "users".into(),
        table: "users.orders".into(),
        column: column.map(str::to_owned),
        key: Some("{\"id\":1}".into()),
        position: None,
        topic: "users.public.orders".into(),
        partition: 2,
        offset,
        error: "does not fit".into(),
        payload: Some("NaN".into()),
        attempt: 1,
    };
    let done = |end| Offsets::from([("users.public.orders".to_owned(), BTreeMap::from([(2, end)]))]);
    let first = [letter(7, Some("price")), letter(7, Some("tax")), letter(9, None)];
    table.append(&first, &done(10)).await.unwrap();
    // The same again, as after a crash before the table's commit, with one more behind it.
    let mut again = first.to_vec();
    again.push(letter(12, None));
    table.append(&again, &done(13)).await.unwrap();
    table.append(&again, &done(13)).await.unwrap();
    let mut all = table.all().await.unwrap();
    all.sort_by_key(|l| (l.offset, l.column.clone()));
    assert_eq!(all, again);
}
