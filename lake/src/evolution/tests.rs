//! A table's columns through the life of its source.

#![allow(clippy::unwrap_used)]

use super::*;
use iceberg::spec::PrimitiveType;

fn column(identity: &str, name: &str, ty: LogicalType, key: Option<usize>) -> SourceColumn {
    SourceColumn { identity: identity.into(), name: name.into(), ty, key }
}

fn id_and(others: &[SourceColumn]) -> Vec<SourceColumn> {
    let mut all = vec![column("1", "id", LogicalType::Long, Some(0))];
    all.extend_from_slice(others);
    all
}

struct Lived {
    schema: Schema,
    map: ColumnMap,
}

impl Lived {
    fn new(wanted: &[SourceColumn]) -> Self {
        let first = evolve(None, wanted).unwrap();
        Self { schema: first.schema.unwrap(), map: first.columns }
    }
    fn then(&mut self, wanted: &[SourceColumn]) -> Evolution {
        let next = evolve(Some((&self.schema, &self.map)), wanted).unwrap();
        if let Some(schema) = &next.schema {
            self.schema = schema.clone();
        }
        self.map = ColumnMap::parse(&next.columns.to_property()).unwrap();
        next
    }
    fn fields(&self) -> Vec<(i32, String, bool)> {
        self.schema.as_struct().fields().iter().map(|f| (f.id, f.name.clone(), f.required)).collect()
    }
    fn primitive(&self, id: i32) -> PrimitiveType {
        self.schema.field_by_id(id).unwrap().field_type.as_primitive_type().unwrap().clone()
    }
}

fn field(id: i32, name: &str, required: bool) -> (i32, String, bool) {
    (id, name.into(), required)
}

#[test]
fn a_new_table_numbers_columns_then_elements() {
    let list = LogicalType::List(Box::new(LogicalType::Int));
    let table = Lived::new(&id_and(&[column("2", "tags", list, None), column("3", "v", LogicalType::Int, None)]));
    assert_eq!(table.fields(), [field(1, "id", true), field(2, "tags", false), field(3, "v", false)]);
    let Type::List(tags) = &*table.schema.field_by_id(2).unwrap().field_type else { panic!() };
    assert_eq!(tags.element_field.id, 4);
    assert_eq!(table.schema.identifier_field_ids().collect::<Vec<_>>(), [1]);
}

#[test]
fn nothing_changed_is_no_new_schema() {
    let list = LogicalType::List(Box::new(LogicalType::Int));
    let wanted = id_and(&[column("2", "tags", list, None)]);
    let mut table = Lived::new(&wanted);
    let next = table.then(&wanted);
    assert!(next.schema.is_none() && next.notes.is_empty());
    assert_eq!(next.key, [1]);
}

#[test]
fn add_rename_widen_drop_and_add_again() {
    let mut table = Lived::new(&id_and(&[column("2", "a", LogicalType::Int, None)]));
    table.then(&id_and(&[column("2", "a", LogicalType::Int, None), column("3", "b", LogicalType::Float, None)]));
    assert_eq!(table.fields(), [field(1, "id", true), field(2, "a", false), field(3, "b", false)]);
    // Renamed and widened at once; the field ids stay.
    table.then(&id_and(&[column("2", "aa", LogicalType::Long, None), column("3", "b", LogicalType::Double, None)]));
    assert_eq!(table.fields(), [field(1, "id", true), field(2, "aa", false), field(3, "b", false)]);
    assert_eq!((table.primitive(2), table.primitive(3)), (PrimitiveType::Long, PrimitiveType::Double));
    // A narrower source does not narrow the lake.
    assert!(
        table
            .then(&id_and(&[column("2", "aa", LogicalType::Int, None), column("3", "b", LogicalType::Double, None)]))
            .schema
            .is_none()
    );
    // Dropped: it stays. Added again under its name: it makes room.
    assert!(table.then(&id_and(&[column("2", "aa", LogicalType::Long, None)])).schema.is_none());
    assert!(table.map.live("3").is_none());
    table.then(&id_and(&[column("2", "aa", LogicalType::Long, None), column("4", "B", LogicalType::String, None)]));
    assert_eq!(
        table.fields(),
        [field(1, "id", true), field(2, "aa", false), field(3, "b__dropped1", false), field(4, "B", false)]
    );
    table.then(&id_and(&[column("2", "aa", LogicalType::Long, None), column("5", "b", LogicalType::String, None)]));
    assert_eq!(table.fields()[3..], [field(4, "B__dropped2", false), field(5, "b", false)]);
}

#[test]
fn swapped_names_are_two_renames() {
    let mut table =
        Lived::new(&id_and(&[column("2", "a", LogicalType::Int, None), column("3", "b", LogicalType::Int, None)]));
    table.then(&id_and(&[column("2", "b", LogicalType::Int, None), column("3", "a", LogicalType::Int, None)]));
    assert_eq!(table.fields(), [field(1, "id", true), field(2, "b", false), field(3, "a", false)]);
}

#[test]
fn another_type_is_a_column_beside_and_said() {
    let mut table = Lived::new(&id_and(&[column("2", "a", LogicalType::Int, None)]));
    let next = table.then(&id_and(&[column("2", "a", LogicalType::String, None)]));
    assert_eq!(next.notes.len(), 1, "{:?}", next.notes);
    assert_eq!(table.fields(), [field(1, "id", true), field(2, "a__dropped1", false), field(3, "a", false)]);
    assert_eq!(table.map.live("2").unwrap().field_id, 3);
}

#[test]
fn a_float_key_is_a_property_only() {
    let table = evolve(None, &[column("1", "f", LogicalType::Double, Some(0))]).unwrap();
    assert_eq!(table.key, [1]);
    assert_eq!(table.schema.unwrap().identifier_field_ids().count(), 0);
}

#[test]
fn the_key_is_in_key_order() {
    let wanted = [column("1", "a", LogicalType::Int, Some(1)), column("2", "b", LogicalType::Int, Some(0))];
    assert_eq!(evolve(None, &wanted).unwrap().key, [2, 1]);
}

#[test]
fn names_that_differ_in_case_only_are_told() {
    let wanted = id_and(&[column("2", "ID", LogicalType::Int, None)]);
    assert!(evolve(None, &wanted).unwrap_err().to_string().contains("differ only in case"));
}
