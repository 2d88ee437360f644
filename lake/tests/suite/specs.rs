//! A table whose partition spec somebody changed: deletes must stand where the data files they name stand, or readers prune them
//! and rows come back.

use std::collections::BTreeMap;

use iceberg::MetadataLocation;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, ManifestContentType, ManifestList, Struct, Transform,
    UnboundPartitionSpec,
};
use iceberg::spec::{Literal, TableMetadata, TableMetadataBuilder};
use lakeward_lake::Table;
use sqlx::Connection;

use crate::harness::*;

/// Changes the metadata as another engine does, behind our back.
async fn changed_by_somebody(
    fresh: &Fresh,
    table: &Table,
    change: impl FnOnce(TableMetadataBuilder) -> iceberg::Result<TableMetadataBuilder>,
) -> Table {
    let before = table.metadata_location();
    let builder = table.metadata().clone().into_builder(Some(before.to_owned()));
    let metadata: TableMetadata = change(builder).unwrap().build().unwrap().metadata;
    let location = before.parse::<MetadataLocation>().unwrap().with_next_version().to_string();
    fresh.lake.storage().put(&location, serde_json::to_vec(&metadata).unwrap().into()).await.unwrap();
    let mut catalog = sqlx::SqliteConnection::connect(fresh.catalog.url.expose()).await.unwrap();
    let swap = sqlx::query("UPDATE iceberg_tables SET metadata_location = $1 WHERE metadata_location = $2");
    let swapped = swap.bind(&location).bind(before).execute(&mut catalog).await.unwrap();
    assert_eq!(swapped.rows_affected(), 1);
    fresh.lake.load(table.ident()).await.unwrap().unwrap()
}

/// The same file, in partition `name` of spec 1.
fn in_partition(file: &DataFile, name: &str) -> DataFile {
    DataFileBuilder::default()
        .content(DataContentType::Data)
        .file_path(file.file_path().to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::from_iter([Some(Literal::string(name))]))
        .partition_spec_id(1)
        .record_count(file.record_count())
        .file_size_in_bytes(file.file_size_in_bytes())
        .build()
        .unwrap()
}

/// Files without a partition (ids from 0), and under a spec of its own files of the partitions `b` and `c`; then no partition
/// again. Three rows a file.
async fn two_specs(fresh: &Fresh, files: i64) -> Table {
    let lake = &fresh.lake;
    let plain = create(lake, &ident("users", "people"), &people()).await;
    let mut table = plain.clone();
    for i in 0..files {
        table = append(lake, &table, &[(i * 3, "a"), (i * 3 + 1, "a"), (i * 3 + 2, "a")]).await;
    }
    let table = changed_by_somebody(fresh, &table, |builder| {
        let spec = UnboundPartitionSpec::builder().add_partition_field(2, "name", Transform::Identity)?;
        builder.add_default_partition_spec(spec.build())
    })
    .await;
    let mut added = Vec::new();
    for i in 0..files {
        for (name, first) in [("b", 1000), ("c", 2000)] {
            let at = first + i * 3;
            let file = write_people(lake, &plain, &[(at, name), (at + 1, name), (at + 2, name)]).await;
            added.push(in_partition(&file[0], name));
        }
    }
    let table = done(lake.commit(&table, append_of(added)).await.unwrap());
    changed_by_somebody(fresh, &table, |builder| builder.set_default_partition_spec(0)).await
}

/// Of each data or delete file: spec and partition, as the manifests say.
async fn homes(fresh: &Fresh, table: &Table, content: ManifestContentType) -> BTreeMap<String, (i32, Struct)> {
    let storage = fresh.lake.storage();
    let list = storage.get(table.snapshot().unwrap().manifest_list()).await.unwrap();
    let list = ManifestList::parse_with_version(&list, table.metadata().format_version()).unwrap();
    let mut homes = BTreeMap::new();
    for manifest in list.entries().iter().filter(|m| m.content == content) {
        let bytes = storage.get(&manifest.manifest_path).await.unwrap();
        for entry in iceberg::spec::Manifest::parse_avro(&bytes).unwrap().entries() {
            let file = entry.data_file();
            homes.insert(file.file_path().to_owned(), (manifest.partition_spec_id, file.partition().clone()));
        }
    }
    homes
}

/// Data files that a delete file names.
async fn targets(fresh: &Fresh, delete: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for batch in read_file(&fresh.lake, delete).await {
        let column = batch.column_by_name("file_path").unwrap();
        let column = arrow::array::AsArray::as_string::<i32>(column);
        paths.extend(column.iter().flatten().map(str::to_owned));
    }
    paths.dedup();
    paths
}

/// Every delete file stands where each data file it names stands; how many there are.
async fn deletes_at_home(fresh: &Fresh, table: &Table) -> usize {
    let data = homes(fresh, table, ManifestContentType::Data).await;
    let deletes = homes(fresh, table, ManifestContentType::Deletes).await;
    for (delete, home) in &deletes {
        for target in targets(fresh, delete).await {
            assert_eq!(Some(home), data.get(&target), "{delete} names {target}");
        }
    }
    deletes.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_of_single_files_keep_spec_and_partition() {
    let fresh = Fresh::local().await;
    let table = two_specs(&fresh, 1).await;
    assert_eq!(people_of(&fresh.lake, &table).await.len(), 9);
    // Of each file a row, and a new version under the spec of now, in one snapshot; then one of the new file and one more.
    let table = row_delta(&fresh.lake, &table, &[1, 1001, 2001], &[(1, "A"), (1001, "B"), (2001, "C")]).await;
    assert_eq!(deletes_at_home(&fresh, &table).await, 3);
    let table = row_delta(&fresh.lake, &table, &[1001, 2000], &[]).await;
    assert_eq!(deletes_at_home(&fresh, &table).await, 5);
    let expected = [(0, "a"), (1, "A"), (2, "a"), (1000, "b"), (1002, "b"), (2001, "C"), (2002, "c")];
    assert_eq!(people_of(&fresh.lake, &table).await, rows(&expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletes_of_many_files_are_one_per_partition() {
    let fresh = Fresh::local().await;
    let table = two_specs(&fresh, 24).await;
    let gone: Vec<i64> = (0..24).flat_map(|i| [i * 3, 1000 + i * 3, 2000 + i * 3]).collect();
    let table = row_delta(&fresh.lake, &table, &gone, &[]).await;
    assert_eq!(deletes_at_home(&fresh, &table).await, 3, "spec 0, and the two partitions of spec 1");
    let left = people_of(&fresh.lake, &table).await;
    assert_eq!(left.len(), 24 * 6);
    assert!(left.keys().all(|id| !gone.contains(id)));
}
