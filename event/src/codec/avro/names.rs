//! Names that Avro takes: `topic, columns -> namespace, fields`. Avro knows letters, digits and `_`, no digit first.

use std::collections::HashMap;

use crate::names;
use crate::schema::{Column, TableSchema};

/// Subjects of a topic's schemas, as Confluent's serializers name them by default.
pub fn key_subject(topic: &str) -> String {
    format!("{topic}-key")
}

/// See [`key_subject`].
pub fn value_subject(topic: &str) -> String {
    format!("{topic}-value")
}

/// The namespace of a table's records: its topic, each part made a name.
pub fn namespace(table: &TableSchema) -> String {
    let topic = names::topic(&table.table);
    topic.split('.').map(name).collect::<Vec<_>>().join(".")
}

/// The field of each column. What is a name already stays; of the others every character that may not be in one becomes `_`,
/// as with Debezium, and a column whose name is taken then gets its id added, which no other column of the table ever has.
pub fn fields(columns: &[Column]) -> Vec<String> {
    // The real names first: a column must not lose its own to one that only looks like it.
    let mut taken: HashMap<String, usize> = HashMap::new();
    for (i, column) in columns.iter().enumerate() {
        if is_name(&column.name) {
            taken.entry(column.name.clone()).or_insert(i);
        }
    }
    let field = |(i, column): (usize, &Column)| {
        let mut field = name(&column.name);
        if *taken.entry(field.clone()).or_insert(i) != i {
            field = format!("{field}_{}", column.id.unsigned_abs());
            while *taken.entry(field.clone()).or_insert(i) != i {
                field.push('_');
            }
        }
        field
    };
    columns.iter().enumerate().map(field).collect()
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn name(text: &str) -> String {
    let mut name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::TableId;
    use crate::types::LogicalType;

    #[test]
    fn every_column_has_a_field_of_its_own() {
        let names = ["a b", "a_b", "a-b", "1st", "_1st", "ä", "", "id", "a_b_3"];
        let columns: Vec<_> = (1..)
            .zip(names)
            .map(|(id, name)| Column {
                id,
                name: name.into(),
                ty: LogicalType::Int,
                source_type: String::new(),
                nullable: true,
            })
            .collect();
        let fields = fields(&columns);
        assert_eq!(fields, ["a_b_1", "a_b", "a_b_3_", "_1st_4", "_1st", "_", "__7", "id", "a_b_3"]);
        assert!(fields.iter().all(|field| is_name(field)));
    }

    #[test]
    fn a_topic_becomes_a_namespace() {
        let table = TableSchema::documents(TableId::new("9-users", "", "Odd näme.2"));
        assert_eq!(namespace(&table), "_9_users._.Odd_n_me._2");
    }
}
