//! Relations against shapes, and tuples to batches: unchanged values, changed keys, misfits.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::postgres::catalog::{Table, TableColumn};
use crate::postgres::pgoutput::Message;
use crate::postgres::types::{ColumnType, Kind, Scalar};
use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;

fn table(columns: &[(&str, Scalar)], key: &[usize]) -> Table {
    let column = |(number, (name, scalar)): (usize, &(&str, Scalar))| TableColumn {
        number: number as i16 + 1,
        name: (*name).into(),
        type_oid: 100 + number as u32,
        type_modifier: -1,
        source_type: "any".into(),
        nullable: true,
        column_type: ColumnType { logical: scalar.logical(), kind: Kind::Scalar(scalar.clone()), output: None },
    };
    Table {
        oid: 1,
        schema: "public".into(),
        name: "t".into(),
        partitioned: false,
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().enumerate().map(column).collect(),
        key: key.to_vec(),
        generated_key: false,
    }
}

/// A Relation message's columns, as number of the column in [`table`] and key flag.
fn relation(table: &Table, order: &[usize]) -> Relation<'static> {
    let column = |i: &usize| crate::postgres::pgoutput::RelationColumn {
        key: table.key.contains(i),
        name: table.columns[*i].name.clone().leak(),
        type_oid: table.columns[*i].type_oid,
        type_modifier: -1,
    };
    let columns = order.iter().map(column).collect();
    Relation { oid: 1, namespace: "public", name: "t", replica_identity: b'd', columns }
}

fn values(row: &[Option<&str>]) -> Vec<u8> {
    let mut bytes = (row.len() as u16).to_be_bytes().to_vec();
    for value in row {
        match value {
            None => bytes.push(b'n'),
            Some("<unchanged>") => bytes.push(b'u'),
            Some(text) => {
                bytes.push(b't');
                bytes.extend((text.len() as u32).to_be_bytes());
                bytes.extend(text.as_bytes());
            }
        }
    }
    bytes
}

fn insert(row: &[Option<&str>]) -> Vec<u8> {
    [&b"I\0\0\0\x01N"[..], &values(row)].concat()
}

fn update(kind: u8, old: &[Option<&str>], new: &[Option<&str>]) -> Vec<u8> {
    [&b"U\0\0\0\x01"[..], &[kind], &values(old), b"N", &values(new)].concat()
}

fn apply(builder: &mut TableBuilder, binding: &Binding, message: &[u8], sequence: u64) -> Result<u64> {
    let meta = RowMeta { sequence, position: 5, tx: None, commit_ts: None };
    match Message::parse(message, false).unwrap().1 {
        Message::Insert { new, .. } => builder.insert(binding, &new, meta),
        Message::Update { old, new, .. } => builder.update(binding, old.as_ref(), &new, meta),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tuples_are_bound_by_name() {
    let table = table(&[("id", Scalar::Int), ("v", Scalar::Text)], &[0]);
    let shape = table.shape("users", 1).unwrap();
    let binding = Binding::of(&relation(&table, &[1, 0]), &shape).unwrap();
    let mut builder = TableBuilder::new(&shape);
    assert_eq!(apply(&mut builder, &binding, &insert(&[Some("x"), Some("7")]), 0).unwrap(), 1);
    let batch = builder.finish().unwrap();
    assert_eq!(batch.after().column(0).as_primitive::<Int32Type>().value(0), 7);
    assert_eq!(batch.after().column(1).as_string::<i32>().value(0), "x");

    let mut other = relation(&table, &[0, 1]);
    other.columns[1].key = true;
    assert_eq!(Binding::of(&other, &shape), None);
    other = relation(&table, &[0, 0]);
    assert_eq!(Binding::of(&other, &shape), None);
    other = relation(&table, &[0]);
    assert_eq!(Binding::of(&other, &shape), None);
}

#[test]
fn a_key_that_stays_is_an_update_and_one_that_changes_two_rows() {
    let table = table(&[("id", Scalar::Text), ("v", Scalar::Text)], &[0]);
    let shape = table.shape("users", 1).unwrap();
    let binding = Binding::of(&relation(&table, &[0, 1]), &shape).unwrap();
    let mut builder = TableBuilder::new(&shape);
    // A key in TOAST is sent although it stays; its new value is left out and taken from there.
    let message = update(b'K', &[Some("k"), None], &[Some("<unchanged>"), Some("<unchanged>")]);
    assert_eq!(apply(&mut builder, &binding, &message, 10).unwrap(), 1);
    let message = update(b'K', &[Some("k"), None], &[Some("l"), Some("<unchanged>")]);
    assert_eq!(apply(&mut builder, &binding, &message, 11).unwrap(), 2);
    let message = update(b'O', &[Some("l"), Some("v")], &[Some("m"), Some("<unchanged>")]);
    assert_eq!(apply(&mut builder, &binding, &message, 13).unwrap(), 2);
    let message = insert(&[Some("n"), None]);
    assert_eq!(apply(&mut builder, &binding, &message, 15).unwrap(), 1);
    assert_eq!(builder.rows(), 6);
    assert!(builder.bytes() > 6 * META_BYTES);

    let batch = builder.finish().unwrap();
    assert_eq!(batch.ops(), b"udcdcc");
    assert_eq!(batch.sequences(), [10, 11, 12, 13, 14, 15]);
    let keys = |side: &StructArray| {
        let column = side.column(0).as_string::<i32>();
        (0..6).map(|i| if side.is_null(i) { "-".into() } else { column.value(i).to_owned() }).collect::<Vec<_>>()
    };
    assert_eq!(keys(batch.after()), ["k", "-", "l", "-", "m", "n"]);
    assert_eq!(keys(batch.before()), ["k", "k", "k", "l", "l", "-"]);
    assert_eq!(batch.after().column(1).as_string::<i32>().value(4), "v");
    let unchanged: Vec<_> = (0..6).map(|i| batch.unchanged().is_valid(i).then(|| batch.unchanged().value(i))).collect();
    assert_eq!(unchanged, [Some(&[2][..]), None, Some(&[2]), None, None, None]);
    assert_eq!((builder.rows(), builder.bytes()), (0, 0));
}

#[test]
fn misfits_say_their_side_and_column() {
    let table = table(&[("id", Scalar::Int), ("d", Scalar::Date)], &[0]);
    let shape = table.shape("users", 1).unwrap();
    let binding = Binding::of(&relation(&table, &[1, 0]), &shape).unwrap();
    let mut builder = TableBuilder::new(&shape);
    apply(&mut builder, &binding, &insert(&[Some("2024-01-01"), Some("1")]), 0).unwrap();
    apply(&mut builder, &binding, &update(b'O', &[Some("old"), Some("1")], &[Some("new"), Some("1")]), 1).unwrap();
    let batch = builder.finish().unwrap();
    assert_eq!(batch.misfits().of(0).count(), 0);
    assert_eq!(batch.misfits().of(1).collect::<Vec<_>>(), [(b'b', 1, "old"), (b'a', 1, "new")]);
    assert!(batch.after().column(1).is_null(1));
}

#[test]
fn tuples_of_another_length_are_errors() {
    let table = table(&[("id", Scalar::Int), ("v", Scalar::Text)], &[0]);
    let shape = table.shape("users", 1).unwrap();
    let binding = Binding::of(&relation(&table, &[0, 1]), &shape).unwrap();
    for message in [insert(&[Some("1")]), insert(&[Some("1"), None, None]), insert(&[])] {
        assert!(apply(&mut TableBuilder::new(&shape), &binding, &message, 0).is_err());
    }
    let message = update(b'O', &[Some("1"), Some("<unchanged>")], &[Some("1"), None]);
    assert!(apply(&mut TableBuilder::new(&shape), &binding, &message, 0).is_err());
}

#[test]
fn a_generated_key_is_refused() {
    let table = Table { generated_key: true, ..table(&[("id", Scalar::Int)], &[]) };
    let error = table.shape("users", 1).unwrap_err();
    assert_eq!(error.action(), lakeward_runtime::Action::Human);
    assert!(error.to_string().contains("public.t"), "{error}");
}
