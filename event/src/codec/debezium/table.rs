//! What is known of a topic's table so far: `columns as they appear -> TableSchema, a version per change`.
//!
//! Nobody announces the schema of these topics. Columns are known by their names, are added as records bring them, and widen;
//! one that a record does not have is null there, and stays.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::value::join;
use crate::schema::{Column, TableId, TableKind, TableSchema};
use crate::types::LogicalType;

/// A table as the lake has it: where the decoder of its topic goes on after a restart.
#[derive(Debug, Clone)]
pub struct KnownTable {
    pub table: TableId,
    pub kind: TableKind,
    /// Live columns, with the identities that the lake knows them by. Of a collection: none are needed.
    pub columns: Vec<Column>,
    /// Identity and type of columns that were given up for one of another type.
    pub retired: Vec<(i32, LogicalType)>,
    /// Names of the key's columns, in key order.
    pub key: Vec<String>,
}

/// Where the values of a field go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Column(usize),
    /// The column had the value's type once, and has another now: what comes late does not fit.
    Misfit(usize),
    /// Not the source's own.
    Skip,
}

#[derive(Debug, Clone)]
pub(super) struct Table {
    schema: Arc<TableSchema>,
    columns: Vec<Column>,
    retired: Vec<(i32, LogicalType)>,
    key: Vec<usize>,
}

impl Table {
    pub fn new(id: TableId, kind: TableKind) -> Self {
        let empty = match kind {
            TableKind::Documents => TableSchema::documents(id),
            TableKind::Relational => TableSchema { table: id, kind, version: 0, columns: Vec::new(), key: Vec::new() },
        };
        Self { schema: empty.into(), columns: Vec::new(), retired: Vec::new(), key: Vec::new() }
    }

    pub fn known(known: KnownTable) -> Self {
        let mut table = Self::new(known.table, known.kind);
        if known.kind == TableKind::Relational {
            table.key =
                known.key.iter().filter_map(|name| known.columns.iter().position(|c| c.name == *name)).collect();
            table.columns = known.columns;
            table.retired = known.retired;
            table.publish();
        }
        table
    }

    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    pub fn kind(&self) -> TableKind {
        self.schema.kind
    }

    pub fn column(&self, name: &[u8]) -> Option<usize> {
        self.columns.iter().position(|c| c.name.as_bytes() == name)
    }

    /// [`column`](Self::column), looked for at `place` first: rows have their columns in order.
    pub fn column_near(&self, place: usize, name: &[u8]) -> Option<usize> {
        let there = self.columns.get(place).is_some_and(|c| c.name.as_bytes() == name);
        if there { Some(place) } else { self.column(name) }
    }

    pub fn ty(&self, column: usize) -> Option<&LogicalType> {
        self.columns.get(column).map(|c| &c.ty)
    }

    /// The column for values of this type, which is made, widened or replaced where need be. Call [`publish`](Self::publish)
    /// once after all of a record's.
    pub fn place(&mut self, name: &str, ty: &LogicalType, source_type: &str) -> Target {
        let Some(index) = self.column(name.as_bytes()) else {
            self.columns.push(Column {
                id: self.identity(name),
                name: name.to_owned(),
                ty: ty.clone(),
                source_type: source_type.to_owned(),
                nullable: true,
            });
            return Target::Column(self.columns.len() - 1);
        };
        let column = &mut self.columns[index];
        match join(&column.ty, ty) {
            Some(joined) => column.ty = joined,
            None if self.retired.iter().any(|(id, old)| *id == column.id && join(old, ty).as_ref() == Some(old)) => {
                return Target::Misfit(index);
            }
            None => {
                self.retired.push((column.id, std::mem::replace(&mut column.ty, ty.clone())));
                source_type.clone_into(&mut column.source_type);
            }
        }
        Target::Column(index)
    }

    /// Follows from the name alone, so that a decoder that starts anew gives a column the identity that the lake knows it by.
    fn identity(&self, name: &str) -> i32 {
        let mut id = (xxh3_64(name.as_bytes()) & 0x7fff_ffff) as i32;
        while self.columns.iter().any(|c| c.id == id) {
            id = id.wrapping_add(1) & i32::MAX;
        }
        id
    }

    /// Makes these columns the key; Err: the one that the table does not have.
    pub fn set_key(&mut self, names: &[Vec<u8>]) -> Result<(), String> {
        let column = |name: &Vec<u8>| self.column(name).ok_or_else(|| String::from_utf8_lossy(name).into_owned());
        self.key = names.iter().map(column).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The name of the key's column at this place; None: the key is no longer.
    pub fn key_name(&self, place: usize) -> Option<&[u8]> {
        self.columns.get(*self.key.get(place)?).map(|column| column.name.as_bytes())
    }

    /// Makes what has changed the next version of the schema.
    pub fn publish(&mut self) {
        let old = &self.schema;
        if old.columns == self.columns && old.key == self.key {
            return;
        }
        self.schema = Arc::new(TableSchema {
            table: old.table.clone(),
            kind: old.kind,
            version: old.version.saturating_add(1),
            columns: self.columns.clone(),
            key: self.key.clone(),
        });
    }
}
