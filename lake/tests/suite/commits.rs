//! Snapshots: rows appear, change and go; two writers never both win.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::DataType;
use iceberg::spec::{ManifestContentType, ManifestList, Operation, PrimitiveType, Type};
use lakeward_event::LogicalType;
use lakeward_lake::commit::SnapshotChange;
use lakeward_lake::{Commit, TableChange, arrow_schema, position_deletes};
use lakeward_runtime::Action;

use crate::harness::*;
use crate::on_both;

on_both!(rows_through_their_life, life);
async fn life(fresh: Fresh) {
    let lake = &fresh.lake;
    let id = ident("users", "Odd näme!");
    let table = create(lake, &id, &people()).await;
    assert_eq!(people_of(lake, &table).await, rows(&[]), "the first snapshot is there and empty");
    let first = table.snapshot().unwrap().snapshot_id();

    let table = append(lake, &table, &[(1, "a"), (2, "b"), (3, "c"), (4, "d")]).await;
    let appended = table.snapshot().unwrap().snapshot_id();
    assert_eq!((total(&table, "total-records"), total(&table, "total-data-files")), (4, 1));

    let table = row_delta(lake, &table, &[2, 3], &[(3, "C"), (5, "e")]).await;
    assert_eq!(people_of(lake, &table).await, rows(&[(1, "a"), (3, "C"), (4, "d"), (5, "e")]));
    assert_eq!(people_at(lake, &table, appended).await.len(), 4, "the older snapshot is as it was");
    assert_eq!(people_at(lake, &table, first).await.len(), 0);
    assert_eq!((total(&table, "total-records"), total(&table, "total-position-deletes")), (6, 2));
    assert_eq!((total(&table, "total-delete-files"), total(&table, "added-delete-files")), (1, 1));

    // A second delete of the same data file, and one of the new file.
    let table = row_delta(lake, &table, &[1, 5], &[]).await;
    assert_eq!(people_of(lake, &table).await, rows(&[(3, "C"), (4, "d")]));
    let files = table.files(table.snapshot().unwrap().snapshot_id()).await.unwrap();
    let deleted = position_deletes(lake, &table, &files).await.unwrap();
    let mut positions: Vec<Vec<u64>> = deleted.values().map(|d| d.iter().collect()).collect();
    positions.sort();
    assert_eq!(positions, [vec![0, 1, 2], vec![1]]);
    let sequences: BTreeSet<i64> = files.data.iter().map(|f| f.sequence_number).collect();
    assert_eq!(sequences, BTreeSet::from([2, 3]), "carried entries keep their sequence numbers");

    // Truncate: every file goes, and nothing is left in the totals.
    let removed = files.data.iter().chain(&files.deletes).map(|f| (*f.file).clone()).collect();
    let change = SnapshotChange { removed, ..SnapshotChange::new(Operation::Delete) };
    let table = done(lake.commit(&table, TableChange { snapshot: Some(change), ..Default::default() }).await.unwrap());
    assert_eq!(people_of(lake, &table).await, rows(&[]));
    for name in
        ["total-records", "total-data-files", "total-delete-files", "total-position-deletes", "total-files-size"]
    {
        assert_eq!(total(&table, name), 0, "{name}");
    }
    assert_eq!(total(&table, "deleted-data-files"), 2);

    let table = append(lake, &table, &[(9, "z")]).await;
    let list = table.snapshot().unwrap().manifest_list().to_owned();
    let list =
        ManifestList::parse_with_version(&lake.storage().get(&list).await.unwrap(), table.metadata().format_version());
    assert_eq!(list.unwrap().entries().len(), 1, "manifests of removed files only are dropped");

    // Another process sees the same.
    let other = fresh.reopen().await;
    let loaded = other.load(&id).await.unwrap().unwrap();
    assert_eq!(loaded.metadata(), table.metadata());
    assert_eq!(people_of(&other, &loaded).await, rows(&[(9, "z")]));
    assert_eq!(other.tables().await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(other.namespaces().await.unwrap(), ["users"]);
    assert_eq!(other.metadata_locations().await.unwrap()[&id], table.metadata_location());
    assert!(other.load(&ident("users", "other")).await.unwrap().is_none());
}

on_both!(a_table_is_created_once, created_once);
async fn created_once(fresh: Fresh) {
    let id = ident("users", "people");
    let other = fresh.reopen().await;
    let first = lakeward_lake::evolve(None, &people()).unwrap().schema.unwrap();
    let (a, b) = tokio::join!(
        fresh.lake.create(&id, first.clone(), None, HashMap::new()),
        other.create(&id, first.clone(), None, HashMap::new())
    );
    let (winner, loser) = match (a, b) {
        (Ok(winner), Err(loser)) | (Err(loser), Ok(winner)) => (winner, loser),
        both => panic!("{both:?}"),
    };
    assert_eq!(loser.action(), Action::Rebase);
    let table = other.load(&id).await.unwrap().unwrap();
    assert_eq!(table.metadata().uuid(), winner.metadata().uuid());
    assert_eq!(people_of(&other, &table).await, rows(&[]), "the loser took only its own files away");
}

on_both!(the_second_of_two_writers_is_told, conflict);
async fn conflict(fresh: Fresh) {
    let lake = &fresh.lake;
    let base = create(lake, &ident("users", "people"), &people()).await;
    let mine = write_people(lake, &base, &[(1, "mine")]).await;
    let theirs = append(lake, &base, &[(2, "theirs")]).await;
    let before = lake.storage().list(&format!("{}/metadata", base.location())).await.unwrap().len();
    let Commit::Conflict(newest) = lake.commit(&base, append_of(mine.clone())).await.unwrap() else {
        panic!("both writers won")
    };
    assert_eq!(newest.metadata(), theirs.metadata());
    let after = lake.storage().list(&format!("{}/metadata", base.location())).await.unwrap().len();
    assert_eq!(before, after, "a refused attempt leaves nothing");
    // The data file is still the caller's.
    let table = done(lake.commit(&newest, append_of(mine)).await.unwrap());
    assert_eq!(people_of(lake, &table).await, rows(&[(1, "mine"), (2, "theirs")]));
}

on_both!(eight_racing_writers_lose_and_double_nothing, race);
async fn race(fresh: Fresh) {
    const WRITERS: i64 = 8;
    const COMMITS: i64 = 5;
    let id = ident("users", "people");
    create(&fresh.lake, &id, &people()).await;
    let mut writers = tokio::task::JoinSet::new();
    // All begin with the same table, of which one can win.
    let loaded = Arc::new(tokio::sync::Barrier::new(WRITERS as usize));
    for writer in 0..WRITERS {
        let (lake, id, loaded) = (fresh.reopen().await, id.clone(), loaded.clone());
        writers.spawn(async move {
            let mut conflicts = 0;
            let mut table = lake.load(&id).await.unwrap().unwrap();
            loaded.wait().await;
            for commit in 0..COMMITS {
                let files = write_people(&lake, &table, &[(writer * COMMITS + commit, "x")]).await;
                loop {
                    match lake.commit(&table, append_of(files.clone())).await.unwrap() {
                        Commit::Done(next) => {
                            table = next;
                            break;
                        }
                        Commit::Conflict(newest) => {
                            conflicts += 1;
                            table = newest;
                        }
                    }
                }
            }
            conflicts
        });
    }
    let conflicts: i32 = writers.join_all().await.into_iter().sum();
    assert!(conflicts > 0, "the writers did not race");
    let table = fresh.lake.load(&id).await.unwrap().unwrap();
    let found = people_of(&fresh.lake, &table).await;
    assert_eq!(found.len() as i64, WRITERS * COMMITS);
    assert!(found.values().all(|names| names.len() == 1), "a row is doubled");
    assert_eq!(total(&table, "total-records"), WRITERS * COMMITS);
    assert_eq!(table.metadata().snapshots().len() as i64, WRITERS * COMMITS + 1);
}

on_both!(columns_change, columns);
async fn columns(fresh: Fresh) {
    let lake = &fresh.lake;
    let int = |key| column("1", "id", LogicalType::Long, key);
    let table = create(lake, &ident("users", "t"), &[int(Some(0)), column("2", "n", LogicalType::Int, None)]).await;
    let wide = [int(Some(0)), column("2", "m", LogicalType::Long, None), column("3", "extra", LogicalType::Json, None)];
    let table = evolve_to(lake, &table, &wide).await;
    let schema = table.metadata().current_schema();
    assert_eq!(schema.name_by_field_id(2), Some("m"));
    assert_eq!(*schema.field_by_id(2).unwrap().field_type, Type::Primitive(PrimitiveType::Long));
    assert_eq!(schema.schema_id(), 1);
    // A schema and a snapshot under it, in one commit.
    let map = lakeward_lake::ColumnMap::parse(&table.properties()["lakeward.columns"]).unwrap();
    let next = lakeward_lake::evolve(Some((schema, &map)), &[int(Some(0)), column("4", "m", LogicalType::Bool, None)])
        .unwrap();
    let change = TableChange {
        schema: next.schema,
        snapshot: Some(SnapshotChange::new(Operation::Append)),
        properties: HashMap::from([("lakeward.columns".to_owned(), next.columns.to_property())]),
    };
    let table = done(lake.commit(&table, change).await.unwrap());
    let schema = table.metadata().current_schema();
    let names: Vec<_> = schema.as_struct().fields().iter().map(|f| (f.id, f.name.as_str())).collect();
    assert_eq!(names, [(1, "id"), (2, "m__dropped1"), (3, "extra"), (4, "m")]);
    assert_eq!(table.snapshot().unwrap().schema_id(), Some(schema.schema_id()));
    assert_eq!(arrow_schema(schema).unwrap().field(3).data_type(), &DataType::Boolean);
    assert_eq!(table.metadata().last_column_id(), 4);
}

on_both!(many_commits_stay_cheap, many);
async fn many(fresh: Fresh) {
    let lake = &fresh.lake;
    let mut table = create(lake, &ident("users", "people"), &people()).await;
    const COMMITS: i64 = 110;
    for i in 0..COMMITS {
        table = append(lake, &table, &[(i, "x")]).await;
    }
    let list = lake.storage().get(table.snapshot().unwrap().manifest_list()).await.unwrap();
    let list = ManifestList::parse_with_version(&list, table.metadata().format_version()).unwrap();
    assert!(list.entries().len() < 30, "{} manifests were not merged", list.entries().len());
    assert!(list.entries().iter().all(|m| m.content == ManifestContentType::Data));
    let files = table.files(table.snapshot().unwrap().snapshot_id()).await.unwrap();
    let sequences: BTreeSet<i64> = files.data.iter().map(|f| f.sequence_number).collect();
    assert_eq!(sequences, (2..COMMITS + 2).collect(), "merged entries keep their sequence numbers");
    assert_eq!(people_of(lake, &table).await.len() as i64, COMMITS);
    // A delete of an old row still finds its file through the merged manifest.
    let table = row_delta(lake, &table, &[0], &[]).await;
    assert_eq!(people_of(lake, &table).await.len() as i64, COMMITS - 1);
    // Old metadata files go, in the background.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        let files = lake.storage().list(&format!("{}/metadata", table.location())).await.unwrap();
        let metadata = files.iter().filter(|f| f.ends_with(".metadata.json")).count();
        if metadata == 21 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{metadata} metadata files");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}
