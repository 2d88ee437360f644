//! What data files and delete files say about themselves, and that it is true.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use iceberg::spec::{DataFile, PrimitiveLiteral};
use lakeward_event::LogicalType;
use lakeward_lake::{DataFileWriter, WriteOptions, write_position_deletes};
use parquet::basic::{Compression, LogicalType as ParquetType};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use roaring::RoaringTreemap;

use crate::harness::*;
use crate::on_both;

fn lower(file: &DataFile, id: i32) -> Option<PrimitiveLiteral> {
    file.lower_bounds().get(&id).map(|d| d.literal().clone())
}
fn upper(file: &DataFile, id: i32) -> Option<PrimitiveLiteral> {
    file.upper_bounds().get(&id).map(|d| d.literal().clone())
}

on_both!(a_data_file_describes_itself, describes);
async fn describes(fresh: Fresh) {
    let lake = &fresh.lake;
    let types = [
        LogicalType::Long,
        LogicalType::String,
        LogicalType::Double,
        LogicalType::Uuid,
        LogicalType::Decimal { precision: 9, scale: 2 },
        LogicalType::Decimal { precision: 30, scale: 2 },
        LogicalType::TimestampTz,
        LogicalType::List(Box::new(LogicalType::Double)),
        LogicalType::Bool,
        LogicalType::Float,
    ];
    let columns: Vec<_> = types
        .into_iter()
        .enumerate()
        .map(|(i, ty)| column(&i.to_string(), &format!("c{i}"), ty, (i == 0).then_some(0)))
        .collect();
    let table = create(lake, &ident("users", "t"), &columns).await;
    let options = WriteOptions { max_row_group_rows: 2, max_page_rows: 1, ..WriteOptions::default() };
    let long = format!("{}zzz", "y".repeat(100));
    let list = {
        let mut lists = ListBuilder::new(Float64Builder::new());
        for _ in 0..4 {
            lists.values().append_slice(&[1.0, f64::NAN]);
            lists.append(true);
        }
        lists.finish()
    };
    let schema = lakeward_lake::arrow_schema(table.metadata().current_schema()).unwrap();
    let DataType::List(element) = schema.field(7).data_type() else { panic!() };
    let (_, offsets, values, nulls) = list.into_parts();
    let list = ListArray::new(element.clone(), offsets, values, nulls);
    let batch: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![5, 6, -7, 8])),
        // The long text is in the first row group only: its truncated bound must still count.
        Arc::new(StringArray::from(vec![Some(long.as_str()), None, Some("b"), Some("c")])),
        Arc::new(Float64Array::from(vec![1.0, f64::NAN, -3.0, 4.0])),
        Arc::new(FixedSizeBinaryArray::try_from_iter([[9u8; 16], [1; 16], [255; 16], [3; 16]].iter()).unwrap()),
        Arc::new(Decimal128Array::from(vec![-105, 3, 12, 7]).with_precision_and_scale(9, 2).unwrap()),
        Arc::new(Decimal128Array::from(vec![-105, 3, i128::MAX >> 40, 7]).with_precision_and_scale(30, 2).unwrap()),
        Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX, 3, -5, 7]).with_timezone("UTC")),
        Arc::new(list),
        Arc::new(BooleanArray::from(vec![None::<bool>; 4])),
        Arc::new(Float32Array::from(vec![1.5, 2.5, -0.5, 0.0])),
    ];
    let files = write(lake, &table, batch, options).await;
    let [file] = &files[..] else { panic!("{} files", files.len()) };

    assert_eq!(file.record_count(), 4);
    assert_eq!((lower(file, 1), upper(file, 1)), (Some(PrimitiveLiteral::Long(-7)), Some(PrimitiveLiteral::Long(8))));
    let Some(PrimitiveLiteral::String(bound)) = upper(file, 2) else { panic!() };
    assert!(bound.as_str() >= long.as_str() && bound.len() <= 64, "{bound} is no bound of {long}");
    assert_eq!(lower(file, 2), Some(PrimitiveLiteral::String("b".into())));
    assert_eq!((file.null_value_counts()[&2], file.value_counts()[&2]), (1, 4));
    assert_eq!((lower(file, 3), upper(file, 3)), (None, None), "a NaN makes a column unbounded");
    assert_eq!((file.nan_value_counts()[&3], file.nan_value_counts()[&10]), (1, 0));
    assert_eq!(lower(file, 4), Some(PrimitiveLiteral::UInt128(u128::from_be_bytes([1; 16]))));
    assert_eq!(upper(file, 4), Some(PrimitiveLiteral::UInt128(u128::MAX)));
    assert_eq!(
        (lower(file, 5), upper(file, 5)),
        (Some(PrimitiveLiteral::Int128(-105)), Some(PrimitiveLiteral::Int128(12)))
    );
    assert_eq!(
        (lower(file, 6), upper(file, 6)),
        (Some(PrimitiveLiteral::Int128(-105)), Some(PrimitiveLiteral::Int128(i128::MAX >> 40)))
    );
    assert_eq!(
        (lower(file, 7), upper(file, 7)),
        (Some(PrimitiveLiteral::Long(-5)), Some(PrimitiveLiteral::Long(i64::MAX)))
    );
    // The list's element is the field after all columns.
    assert_eq!((file.value_counts()[&11], file.nan_value_counts()[&11], lower(file, 11)), (8, 4, None));
    assert_eq!((file.null_value_counts()[&9], lower(file, 9)), (4, None));
    assert_eq!(upper(file, 10), Some(PrimitiveLiteral::Float(2.5.into())));

    let bytes = lake.storage().get(file.file_path()).await.unwrap();
    assert_eq!(bytes.len() as u64, file.file_size_in_bytes());
    let footer = ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(&bytes)
        .unwrap();
    assert_eq!((footer.num_row_groups(), file.split_offsets().unwrap().len()), (2, 2));
    let schema = footer.file_metadata().schema_descr();
    let ids: Vec<_> = (0..schema.num_columns()).map(|i| schema.column(i).self_type().get_basic_info().id()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 11, 9, 10]);
    assert_eq!(schema.root_schema().get_fields()[7].get_basic_info().id(), 8);
    assert_eq!(schema.column(3).logical_type_ref(), Some(&ParquetType::Uuid));
    assert!(matches!(footer.row_group(0).column(0).compression(), Compression::ZSTD(_)));
    assert_eq!(footer.offset_index().unwrap()[0][0].page_locations().len(), 2, "one row per page");
    let read: Vec<_> = read_file(lake, file.file_path()).await;
    let names = arrow::compute::concat_batches(&read[0].schema(), &read).unwrap();
    assert_eq!(names.column(1).as_string::<i32>().value(0), long);

    // And through a manifest and back.
    let table = done(lake.commit(&table, append_of(files.clone())).await.unwrap());
    let live = table.files(table.snapshot().unwrap().snapshot_id()).await.unwrap();
    assert_eq!(*live.data[0].file, *file);
}

on_both!(files_are_cut_at_their_size, cut);
async fn cut(fresh: Fresh) {
    let lake = &fresh.lake;
    let table = create(lake, &ident("users", "people"), &people()).await;
    let options = WriteOptions { target_file_size: 20_000, ..WriteOptions::default() };
    let mut writer = DataFileWriter::new(lake, &table, options).await.unwrap();
    let mut expected: Vec<(String, u64)> = Vec::new();
    for i in 0..40i64 {
        // Text that does not compress.
        let names: Vec<String> = (0..50).map(|_| format!("{}{}", uuid::Uuid::new_v4(), uuid::Uuid::new_v4())).collect();
        let batch = RecordBatch::try_new(
            writer.arrow_schema().clone(),
            vec![Arc::new(Int64Array::from_iter_values(i * 50..(i + 1) * 50)), Arc::new(StringArray::from(names))],
        );
        let (path, at) = (writer.current_path().to_owned(), writer.position());
        match expected.last_mut().filter(|(p, _)| *p == path) {
            Some((_, rows)) => {
                assert_eq!(*rows, at);
                *rows += 50;
            }
            None => {
                assert_eq!(at, 0);
                expected.push((path, 50));
            }
        }
        writer.write(&batch.unwrap()).await.unwrap();
    }
    let files = writer.finish().await.unwrap();
    assert!(files.len() > 3);
    let written: Vec<_> = files.iter().map(|f| (f.file_path().to_owned(), f.record_count())).collect();
    assert_eq!(written, expected, "paths and positions told beforehand are those of the files");
    let empty = DataFileWriter::new(lake, &table, WriteOptions::default()).await.unwrap();
    assert!(empty.finish().await.unwrap().is_empty());
}

on_both!(delete_files_name_their_targets, delete_files);
async fn delete_files(fresh: Fresh) {
    let lake = &fresh.lake;
    let mut table = create(lake, &ident("users", "people"), &people()).await;
    for i in 0..2 {
        table = append(lake, &table, &[(i * 2, "a"), (i * 2 + 1, "b")]).await;
    }
    let files = table.files(table.snapshot().unwrap().snapshot_id()).await.unwrap();
    let paths: Vec<String> = files.data.iter().map(|f| f.file.file_path().to_owned()).collect();
    let deletes: Vec<_> = paths.iter().map(|p| (p.clone(), RoaringTreemap::from_iter([1u64]))).collect();
    let few = write_position_deletes(lake, &table, &files, &deletes).await.unwrap();
    assert_eq!(few.len(), 2);
    for (file, (path, _)) in few.iter().zip(&deletes) {
        assert_eq!(file.referenced_data_file().as_ref(), Some(path));
        let exact = PrimitiveLiteral::String(path.clone());
        let id = iceberg::metadata_columns::RESERVED_FIELD_ID_DELETE_FILE_PATH;
        assert_eq!(
            (lower(file, id), upper(file, id)),
            (Some(exact.clone()), Some(exact)),
            "bounds of the path are exact"
        );
    }
    // Many targets: one file, sorted; those that are no file of the snapshot count as new ones.
    let mut many = deletes;
    many.extend(
        (0..100).map(|i| (format!("{}/data/z{i:03}.parquet", table.location()), RoaringTreemap::from_iter([i]))),
    );
    many.reverse();
    let many = write_position_deletes(lake, &table, &files, &many).await.unwrap();
    let [file] = &many[..] else { panic!("{} files", many.len()) };
    assert_eq!((file.record_count(), file.referenced_data_file()), (102, None));
    let batches = read_file(lake, file.file_path()).await;
    let written: Vec<String> = batches
        .iter()
        .flat_map(|b| b.column(0).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(written.is_sorted());
}
