//! Columns of a Relation message against catalogs that DDL has changed since.

use lakeward_event::schema::TableKind;
use lakeward_event::{Column, LogicalType, TableId};

use super::*;
use crate::postgres::types::{ColumnType, Kind, Scalar};

const INT: u32 = 23;
const BIGINT: u32 = 20;
const TEXT: u32 = 25;

fn live(columns: &[(i16, &str, u32)]) -> Vec<TableColumn> {
    let column = |(number, name, type_oid): &(i16, &str, u32)| TableColumn {
        number: *number,
        name: (*name).to_owned(),
        type_oid: *type_oid,
        type_modifier: -1,
        source_type: String::new(),
        nullable: true,
        column_type: ColumnType { logical: LogicalType::String, kind: Kind::Scalar(Scalar::Text), output: None },
    };
    columns.iter().map(column).collect()
}

fn wanted<'a>(columns: &[(&'a str, u32)]) -> Vec<RelationColumn<'a>> {
    let column =
        |(name, type_oid): &(&'a str, u32)| RelationColumn { key: false, name, type_oid: *type_oid, type_modifier: -1 };
    columns.iter().map(column).collect()
}

/// One version with these ids and names.
fn known(columns: &[(i32, &str)]) -> Vec<Arc<TableSchema>> {
    let column = |(id, name): &(i32, &str)| Column {
        id: *id,
        name: (*name).to_owned(),
        ty: LogicalType::String,
        source_type: String::new(),
        nullable: true,
    };
    vec![Arc::new(TableSchema {
        table: TableId::new("s", "public", "t"),
        kind: TableKind::Relational,
        version: 1,
        columns: columns.iter().map(column).collect(),
        key: vec![0],
    })]
}

#[test]
fn a_new_column_renamed_before_it_was_read_is_told_by_its_place() {
    let now = live(&[(1, "id", INT), (2, "a", TEXT), (3, "y", INT)]);
    let log = known(&[(1, "id"), (2, "a")]);
    assert_eq!(numbers(&now, &[], &wanted(&[("id", INT), ("a", TEXT), ("x", INT)]), &log), Some(vec![1, 2, 3]));
    // The same type beside it does not matter: what lives now lived then.
    let now = live(&[(1, "id", INT), (2, "a", TEXT), (3, "y", INT), (4, "z", INT)]);
    assert_eq!(numbers(&now, &[], &wanted(&[("id", INT), ("a", TEXT), ("x", INT)]), &log), Some(vec![1, 2, 3]));
    // Nor does a column that was dropped before the log began.
    let now = live(&[(1, "id", INT), (3, "a", TEXT), (4, "y", TEXT)]);
    let log = known(&[(1, "id"), (3, "a")]);
    assert_eq!(numbers(&now, &[2], &wanted(&[("id", INT), ("a", TEXT), ("x", TEXT)]), &log), Some(vec![1, 3, 4]));
}

#[test]
fn a_dropped_column_is_told_by_the_log_or_by_being_the_only_one() {
    let now = live(&[(1, "id", INT), (4, "d", TEXT)]);
    let log = known(&[(1, "id"), (2, "a"), (3, "b")]);
    assert_eq!(numbers(&now, &[2, 3], &wanted(&[("id", INT), ("a", TEXT), ("b", INT)]), &log), Some(vec![1, 2, 3]));
    assert_eq!(numbers(&now, &[2, 3], &wanted(&[("id", INT), ("b", INT)]), &log), Some(vec![1, 3]));
    // Came and went unread.
    let log = known(&[(1, "id"), (2, "a")]);
    assert_eq!(numbers(&now, &[2, 3], &wanted(&[("id", INT), ("x", INT), ("d", TEXT)]), &log), Some(vec![1, 3, 4]));
}

#[test]
fn what_has_two_answers_or_none_is_not_guessed() {
    // Which of two that came and went?
    let now = live(&[(1, "id", INT), (4, "d", TEXT)]);
    let log = known(&[(1, "id")]);
    assert_eq!(numbers(&now, &[2, 3], &wanted(&[("id", INT), ("x", INT), ("d", TEXT)]), &log), None);
    // Renamed and retyped.
    let now = live(&[(1, "id", INT), (2, "y", BIGINT)]);
    assert_eq!(numbers(&now, &[], &wanted(&[("id", INT), ("x", INT)]), &log), None);
    // Two names exchanged: neither name nor place is to be trusted.
    let now = live(&[(1, "id", INT), (2, "b", INT), (3, "a", INT)]);
    assert_eq!(numbers(&now, &[], &wanted(&[("id", INT), ("a", INT), ("b", INT)]), &log), None);
    // More columns than there ever were, fewer than live.
    assert_eq!(numbers(&now, &[], &wanted(&[("id", INT), ("b", INT), ("a", INT), ("c", INT)]), &log), None);
    assert_eq!(numbers(&now, &[], &wanted(&[("id", INT), ("a", INT)]), &log), None);
}
