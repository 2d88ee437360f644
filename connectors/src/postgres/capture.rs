//! One captured table as the stream sees it: `Relation -> shape, binding, builder`.

use std::sync::Arc;

use lakeward_event::{ChangeBatch, TableSchema};
use lakeward_runtime::{Error, Result};
use tokio_postgres::GenericClient;

use super::attributes;
use super::catalog::{self, Table, TableColumn, TableShape};
use super::pgoutput::{Old, OldKind, Relation, RelationColumn, Tuple, Value};
use super::snapshot::state::Key;
use super::tuple::{Binding, TableBuilder};

pub struct Capture {
    pub shape: TableShape,
    pub binding: Binding,
    pub builder: TableBuilder,
    /// Where the key's values are in a tuple, in key order.
    key_places: Vec<usize>,
}

impl Capture {
    /// None: the relation is not of this shape.
    pub fn new(table: &Table, shape: TableShape, relation: &Relation<'_>) -> Option<Self> {
        let binding = Binding::of(relation, &shape)?;
        // Two columns of a type that have exchanged their names.
        if !binding.in_order() {
            return None;
        }
        let mut key_places = Vec::with_capacity(table.key.len());
        for index in &table.key {
            let name = &table.columns.get(*index)?.name;
            key_places.push(relation.columns.iter().position(|c| c.name == name)?);
        }
        let builder = TableBuilder::new(&shape);
        Some(Self { shape, binding, builder, key_places })
    }

    /// The key of a row as the server's text. None where it is not whole (an old row that is not the key's).
    pub fn key(&self, tuple: &Tuple<'_>) -> Option<Key> {
        self.key_places
            .iter()
            .map(|place| match tuple.iter().nth(*place) {
                Some(Value::Text(text)) => String::from_utf8(text.to_vec()).ok(),
                _ => None,
            })
            .collect()
    }

    pub fn old_key(&self, old: Option<&Old<'_>>) -> Option<Key> {
        old.and_then(|old| match old.kind {
            OldKind::Key | OldKind::Row => self.key(&old.tuple),
        })
    }

    /// Ends the batch under way, if there is one.
    pub fn finish(&mut self) -> Result<Option<ChangeBatch>> {
        if self.builder.is_empty() {
            return Ok(None);
        }
        self.builder.finish().map(Some).map_err(|e| self.bad(e))
    }

    pub fn bad(&self, error: lakeward_event::Error) -> Error {
        Error::human("a change cannot be decoded").with("table", &self.shape.schema().table).source(error)
    }
}

/// The Relation message that the server would send for a table as the catalog has it.
pub fn relation_of(table: &Table) -> Relation<'_> {
    Relation {
        oid: table.oid,
        namespace: &table.schema,
        name: &table.name,
        replica_identity: table.replica_identity.letter(),
        columns: table
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| RelationColumn {
                key: table.key.contains(&index),
                name: &column.name,
                type_oid: column.type_oid,
                type_modifier: column.type_modifier,
            })
            .collect(),
    }
}

/// The catalog's table as it was when the server wrote `relation`: DDL has run since, and the stream is not there yet. `known`: the
/// table's schemas in the log. None: which attributes the columns are, or what a type was, cannot be known any more.
pub async fn as_of_relation<C: GenericClient + Sync>(
    client: &C,
    table: &Table,
    relation: &Relation<'_>,
    known: &[Arc<TableSchema>],
) -> Result<Option<Table>> {
    let dropped = catalog::dropped_columns(client, table.oid).await?;
    let Some(numbers) = attributes::numbers(&table.columns, &dropped, &relation.columns, known) else {
        return Ok(None);
    };
    let mut columns = Vec::with_capacity(relation.columns.len());
    for (wanted, number) in relation.columns.iter().zip(numbers) {
        let now = table.columns.iter().find(|c| c.number == number);
        if let Some(column) = now.filter(|c| c.type_oid == wanted.type_oid && c.type_modifier == wanted.type_modifier) {
            columns.push(TableColumn { name: wanted.name.to_owned(), ..column.clone() });
            continue;
        }
        let Some((column_type, source_type)) =
            catalog::column_type(client, wanted.type_oid, wanted.type_modifier).await?
        else {
            return Ok(None);
        };
        let before = known.iter().rev().find_map(|s| s.columns.iter().find(|c| c.id == i32::from(number)));
        columns.push(TableColumn {
            number,
            name: wanted.name.to_owned(),
            type_oid: wanted.type_oid,
            type_modifier: wanted.type_modifier,
            source_type,
            nullable: now.map(|c| c.nullable).or(before.map(|c| c.nullable)).unwrap_or(true),
            column_type,
        });
    }
    let numbers: Option<Vec<i16>> = table.key.iter().map(|i| table.columns.get(*i).map(|c| c.number)).collect();
    let place = |number: i16| columns.iter().position(|c| c.number == number);
    let mut table = table.clone();
    let Some(key) = numbers.unwrap_or_default().into_iter().map(place).collect() else { return Ok(None) };
    table.key = key;
    table.columns = columns;
    Ok(Some(table))
}

/// The bytes of a pgoutput Delete that names a row by its key.
pub fn delete_message(table: &Table, key: &Key) -> Vec<u8> {
    let mut message = vec![b'D'];
    message.extend_from_slice(&table.oid.to_be_bytes());
    message.push(b'K');
    // A table has at most 1,600 columns.
    message.extend_from_slice(&u16::try_from(table.columns.len()).unwrap_or(u16::MAX).to_be_bytes());
    for index in 0..table.columns.len() {
        match table.key.iter().position(|k| *k == index).and_then(|place| key.get(place)) {
            Some(text) => {
                message.push(b't');
                message.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
                message.extend_from_slice(text.as_bytes());
            }
            None => message.push(b'n'),
        }
    }
    message
}
