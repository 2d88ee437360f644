//! What a table's schema must become: columns of the source -> Iceberg schema and column map. Pure: facts in, decision out.
//!
//! A column is known by its identity at the source, never by its name or place. Nothing is ever removed from the schema: data
//! files that have the column stay readable, and a field id is never used for anything else.

use std::collections::HashSet;

use iceberg::spec::{NestedField, NestedFieldRef, Schema, Type};
use lakeward_event::LogicalType;
use lakeward_runtime::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::types::iceberg_type;

/// A column as the source has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    /// What survives a rename: PostgreSQL's attribute number as text; of documents the field's name.
    pub identity: String,
    pub name: String,
    pub ty: LogicalType,
    /// Position in the key, from 0; None: not in the key.
    pub key: Option<usize>,
}

/// One column of the lake's table and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedColumn {
    /// [`SourceColumn::identity`].
    pub identity: String,
    /// Its name in the lake's table.
    pub name: String,
    #[serde(rename = "type")]
    pub ty: LogicalType,
    pub field_id: i32,
    /// The source does not have it any more (or has it under another type, in a column beside): NULL from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

/// Table property `lakeward.columns`: every column the table ever had.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ColumnMap {
    pub columns: Vec<MappedColumn>,
}

impl ColumnMap {
    /// Of a table property's text. `Action::Human` if it is not as Lakeward wrote it.
    pub fn parse(property: &str) -> Result<Self> {
        serde_json::from_str(property)
            .map_err(|e| Error::human("the table property lakeward.columns cannot be read").source(e))
    }

    pub fn to_property(&self) -> String {
        serde_json::to_string(self).expect("broken invariant: strings, numbers and types have a JSON form")
    }

    /// The live column of a source identity.
    pub fn live(&self, identity: &str) -> Option<&MappedColumn> {
        self.columns.iter().find(|c| !c.dropped && c.identity == identity)
    }
}

/// What has to happen for a table to hold the wanted columns.
#[derive(Debug)]
pub struct Evolution {
    /// The new current schema; None: no change.
    pub schema: Option<Schema>,
    pub columns: ColumnMap,
    /// Field ids of the key in key order: table property `lakeward.key` (JSON list).
    pub key: Vec<i32>,
    /// What a person should know (a type that could not be widened), one sentence each.
    pub notes: Vec<String>,
}

/// Add, widen, rename, drop (kept, optional); any other change of type makes a column beside.
///
/// A new table's field ids are 1, 2, … for its columns and then for lists' elements, as every Iceberg catalog assigns them.
/// Names that differ only in case are `Action::Human`: engines that ignore case could not read the table.
pub fn evolve(current: Option<(&Schema, &ColumnMap)>, wanted: &[SourceColumn]) -> Result<Evolution> {
    check_names(wanted)?;
    let (old_fields, map): (Vec<NestedFieldRef>, ColumnMap) = match current {
        Some((schema, map)) => (schema.as_struct().fields().to_vec(), map.clone()),
        None => Default::default(),
    };
    let highest = current.map_or(0, |(schema, map)| {
        schema.highest_field_id().max(map.columns.iter().map(|c| c.field_id).max().unwrap_or(0))
    });
    let mut draft = Draft { map, notes: Vec::new(), next_id: highest + 1 };
    draft.drop_missing(wanted);
    let mut live = Vec::with_capacity(wanted.len());
    for column in wanted {
        live.push(draft.place(column));
    }
    draft.resolve_names(&live);

    // Old fields keep their place; new ones follow in the source's order.
    let known: HashSet<i32> = old_fields.iter().map(|f| f.id).collect();
    let order = old_fields
        .iter()
        .map(|f| f.id)
        .chain(draft.map.columns.iter().map(|c| c.field_id).filter(|id| !known.contains(id)));
    let key = key_ids(wanted, &draft.map)?;
    let mut fields: Vec<NestedFieldRef> = Vec::new();
    let mut next_id = draft.next_id;
    for id in order.collect::<Vec<_>>() {
        let old = old_fields.iter().find(|f| f.id == id);
        let Some(column) = draft.map.columns.iter().find(|c| c.field_id == id) else {
            // A column that somebody else added: not ours to touch.
            fields.extend(old.cloned());
            continue;
        };
        let ty = field_type(old, &column.ty, &mut next_id)?;
        // Required only while it is in the key; a column that was optional stays so, its old rows may lack it.
        let required = key.contains(&id) && old.is_none_or(|f| f.required) && (old.is_some() || current.is_none());
        let field = NestedField::new(id, &column.name, ty, required);
        fields.push(field.into());
    }
    // Iceberg does not allow floats as identifiers, nor optional columns.
    let identifiers: Vec<i32> =
        fields.iter().filter(|f| key.contains(&f.id) && f.required && may_identify(f)).map(|f| f.id).collect();
    let identifiers = if identifiers.len() == key.len() { identifiers } else { Vec::new() };
    let old_identifiers: HashSet<i32> = current.iter().flat_map(|(schema, _)| schema.identifier_field_ids()).collect();
    let same = current.is_some() && fields == old_fields && old_identifiers == identifiers.iter().copied().collect();
    let schema = if same {
        None
    } else {
        let built = Schema::builder().with_fields(fields).with_identifier_field_ids(identifiers).build();
        Some(built.map_err(|e| Error::human("the table's new schema is not possible in Iceberg").source(e))?)
    };
    Ok(Evolution { schema, columns: draft.map, key, notes: draft.notes })
}

fn may_identify(field: &NestedField) -> bool {
    use iceberg::spec::PrimitiveType::{Double, Float};
    matches!(&*field.field_type, Type::Primitive(ty) if !matches!(ty, Float | Double))
}

fn check_names(wanted: &[SourceColumn]) -> Result<()> {
    let mut seen = std::collections::HashMap::new();
    for column in wanted {
        if let Some(other) = seen.insert(column.name.to_lowercase(), &column.name) {
            return Err(Error::human("two columns differ only in case").with("one", other).with("other", &column.name));
        }
    }
    Ok(())
}

fn key_ids(wanted: &[SourceColumn], map: &ColumnMap) -> Result<Vec<i32>> {
    let mut key: Vec<_> = wanted.iter().filter_map(|c| Some((c.key?, &c.identity))).collect();
    key.sort_unstable();
    let field_id = |identity: &String| {
        map.live(identity).map(|c| c.field_id).ok_or_else(|| Error::bug("a key column has no column in the lake"))
    };
    key.into_iter().map(|(_, identity)| field_id(identity)).collect()
}

/// The field's type; an old list keeps its element's id.
fn field_type(old: Option<&NestedFieldRef>, ty: &LogicalType, next_id: &mut i32) -> Result<Type> {
    let element = old.and_then(|f| match &*f.field_type {
        Type::List(list) => Some(list.element_field.id),
        _ => None,
    });
    iceberg_type(ty, &mut || {
        element.unwrap_or_else(|| {
            *next_id += 1;
            *next_id - 1
        })
    })
}

/// The column map while it changes.
struct Draft {
    map: ColumnMap,
    notes: Vec<String>,
    /// The next new field's id.
    next_id: i32,
}

impl Draft {
    fn drop_missing(&mut self, wanted: &[SourceColumn]) {
        for column in self.map.columns.iter_mut().filter(|c| !c.dropped) {
            column.dropped = !wanted.iter().any(|w| w.identity == column.identity);
        }
    }

    /// The field id of the live column for a wanted one.
    fn place(&mut self, wanted: &SourceColumn) -> i32 {
        let live = self.map.columns.iter_mut().find(|c| !c.dropped && c.identity == wanted.identity);
        if let Some(column) = live {
            if let Some(wider) = widened(&column.ty, &wanted.ty) {
                column.ty = wider;
                column.name.clone_from(&wanted.name);
                return column.field_id;
            }
            self.notes.push(format!(
                "column {} changed its type from {:?} to {:?}, which Iceberg cannot widen: it is a new column, the old one is kept beside",
                wanted.name, column.ty, wanted.ty
            ));
            column.dropped = true;
        }
        let field_id = self.next_id;
        self.next_id += 1;
        self.map.columns.push(MappedColumn {
            identity: wanted.identity.clone(),
            name: wanted.name.clone(),
            ty: wanted.ty.clone(),
            field_id,
            dropped: false,
        });
        field_id
    }

    /// A dropped column makes room for a live one of its name: `<name>__dropped<n>`.
    fn resolve_names(&mut self, live: &[i32]) {
        let mut taken: HashSet<String> =
            self.map.columns.iter().filter(|c| live.contains(&c.field_id)).map(|c| c.name.to_lowercase()).collect();
        for column in self.map.columns.iter_mut().filter(|c| !live.contains(&c.field_id)) {
            if !taken.insert(column.name.to_lowercase()) {
                let free =
                    (1..).map(|n| format!("{}__dropped{n}", column.name)).find(|n| taken.insert(n.to_lowercase()));
                column.name = free.expect("broken invariant: some number is free");
            }
        }
    }
}

/// The type that holds both what the column has and what the source sends now; None: Iceberg has no such promotion.
fn widened(has: &LogicalType, wants: &LogicalType) -> Option<LogicalType> {
    use LogicalType::*;
    match (has, wants) {
        (has, wants) if has == wants => Some(has.clone()),
        (Int | Long, Int | Long) => Some(Long),
        (Float | Double, Float | Double) => Some(Double),
        (Decimal { precision: p, scale: s }, Decimal { precision: q, scale: t }) if s == t => {
            Some(Decimal { precision: *p.max(q), scale: *s })
        }
        // The same Iceberg type; the logical one says how values print.
        (String, Json) | (Json, String) => Some(wants.clone()),
        (List(has), List(wants)) => widened(has, wants).map(|element| List(Box::new(element))),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
