//! What a table's schema must become: columns of the source -> Iceberg schema and column map. Pure.

use iceberg::spec::Schema;
use lakeward_event::LogicalType;
use lakeward_runtime::Result;
use serde::{Deserialize, Serialize};

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
    pub fn parse(_property: &str) -> Result<Self> {
        todo!()
    }
    pub fn to_property(&self) -> String {
        todo!()
    }
    /// The live column of a source identity.
    pub fn live(&self, _identity: &str) -> Option<&MappedColumn> {
        todo!()
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
pub fn evolve(_current: Option<(&Schema, &ColumnMap)>, _wanted: &[SourceColumn]) -> Result<Evolution> {
    todo!()
}
