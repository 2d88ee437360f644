//! COPY BINARY cut at every place, and broken.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::postgres::catalog::{ReplicaIdentity, Table, TableColumn};
use crate::postgres::types::{ColumnType, Kind, Scalar};
use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use proptest::prelude::*;

/// `id int, v text`
fn builder() -> TableBuilder {
    let column = |number: i16, scalar: Scalar| TableColumn {
        number,
        name: format!("c{number}"),
        type_oid: 23,
        type_modifier: -1,
        source_type: "any".into(),
        nullable: true,
        column_type: ColumnType { logical: scalar.logical(), kind: Kind::Scalar(scalar), output: None },
    };
    let table = Table {
        oid: 1,
        schema: "public".into(),
        name: "t".into(),
        partitioned: false,
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column(1, Scalar::Int), column(2, Scalar::Text)],
        key: vec![0],
        generated_key: false,
    };
    TableBuilder::new(&table.shape("users", 1).unwrap())
}

fn stream(rows: &[(i32, Option<String>)]) -> Vec<u8> {
    let mut bytes = [&SIGNATURE[..], &[0, 0, 0, 0, 0, 0, 0, 3], b"ext"].concat();
    for (id, text) in rows {
        bytes.extend([0, 2, 0, 0, 0, 4]);
        bytes.extend(id.to_be_bytes());
        match text {
            None => bytes.extend([255; 4]),
            Some(text) => {
                bytes.extend((text.len() as i32).to_be_bytes());
                bytes.extend(text.as_bytes());
            }
        }
    }
    bytes.extend([255, 255]);
    bytes
}

const META: RowMeta = RowMeta { sequence: 0, position: 3, tx: None, commit_ts: Some(4) };

#[test]
fn streams_that_break_are_errors() {
    let whole = stream(&[(1, Some("x".into()))]);
    let feed = |bytes: &[u8]| {
        let mut decoder = CopyDecoder::new();
        decoder.feed(bytes, &mut builder(), META)?;
        decoder.finish()
    };
    assert!(feed(&whole).is_ok());
    for length in 0..whole.len() {
        assert!(feed(&whole[..length]).is_err(), "cut to {length}");
    }
    assert!(feed(&[&whole[..], &[0]].concat()).is_err(), "bytes behind the trailer");
    let mut other = whole.clone();
    other[23] = 3; // fields of the row
    assert!(feed(&other).is_err());
    other = whole.clone();
    other[14] = 1; // flags
    assert!(feed(&other).is_err());
    other = whole;
    other[0] = b'X';
    assert!(feed(&other).is_err());
}

proptest! {
    #[test]
    fn cuts_make_no_difference(rows in prop::collection::vec((any::<i32>(), prop::option::of("\\PC{0,20}")), 0..20), piece in 1usize..60) {
        let (mut decoder, mut builder, mut count) = (CopyDecoder::new(), builder(), 0);
        for chunk in stream(&rows).chunks(piece) {
            count += decoder.feed(chunk, &mut builder, RowMeta { sequence: count, ..META }).unwrap();
        }
        decoder.finish().unwrap();
        prop_assert_eq!(count as usize, rows.len());
        let batch = builder.finish().unwrap();
        prop_assert_eq!(batch.sequences(), &(0..count).collect::<Vec<_>>());
        let (ids, texts) = (batch.after().column(0).as_primitive::<Int32Type>(), batch.after().column(1).as_string::<i32>());
        for (i, (id, text)) in rows.iter().enumerate() {
            prop_assert_eq!(ids.value(i), *id);
            prop_assert_eq!(texts.is_valid(i).then(|| texts.value(i)), text.as_deref());
        }
        prop_assert_eq!(batch.before().null_count(), rows.len());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = CopyDecoder::new().feed(&bytes, &mut builder(), META);
        let behind_header = [&SIGNATURE[..], &[0; 8], &[0, 2], &bytes].concat();
        let _ = CopyDecoder::new().feed(&behind_header, &mut builder(), META);
    }
}
