//! A table under one schema version: source catalog -> [`TableSchema`] -> `<source>.__schemas` -> readers of the log.

use std::sync::Arc;

use arrow::datatypes::{Field, Fields};
use base64::Engine;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::error::{Error, Result};
use crate::types::LogicalType;

/// A table (PostgreSQL: schema and relation; MongoDB: database and collection) of one source, as the source spells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableId {
    pub source: String,
    /// PostgreSQL schema, MongoDB database.
    pub schema: String,
    /// PostgreSQL table, MongoDB collection.
    pub name: String,
}

impl TableId {
    pub fn new(source: impl Into<String>, schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { source: source.into(), schema: schema.into(), name: name.into() }
    }
}

/// `schema.name`, as the source's users say it.
impl std::fmt::Display for TableId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// What a table's rows hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// Columns known from the source's catalog.
    Relational,
    /// MongoDB: the fixed columns `_id` and `_doc` (see [`TableSchema::documents`]); the reader makes columns.
    Documents,
}

/// One column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Identity that survives a rename; PostgreSQL: `attnum`. Unique within the table, never used again.
    pub id: i32,
    pub name: String,
    #[serde(rename = "type")]
    pub ty: LogicalType,
    /// The source's own spelling of the type, such as `numeric(10,2)`.
    pub source_type: String,
    pub nullable: bool,
}

/// A table's columns and key under one version. Sent once per version on `<source>.__schemas`; every data record names its
/// version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    pub table: TableId,
    pub kind: TableKind,
    /// 1, 2, … per table; a change of columns or key makes the next one.
    pub version: u32,
    pub columns: Vec<Column>,
    /// Indexes into `columns`, in key order. Empty: the table has no key.
    pub key: Vec<usize>,
}

/// The name of the document column of MongoDB tables; never a field's column.
pub const DOC_COLUMN: &str = "_doc";
/// The key column of MongoDB tables.
pub const ID_COLUMN: &str = "_id";

impl TableSchema {
    /// The one schema of every MongoDB collection: `_id`, the key text of interface.md, and `_doc`, canonical Extended JSON
    /// v2 of the whole document (null where only a patch is known).
    pub fn documents(table: TableId) -> Self {
        let column = |id, name: &str, ty, source_type: &str, nullable| Column {
            id,
            name: name.into(),
            ty,
            source_type: source_type.into(),
            nullable,
        };
        Self {
            table,
            kind: TableKind::Documents,
            version: 1,
            columns: vec![
                column(1, ID_COLUMN, LogicalType::String, "_id", false),
                column(2, DOC_COLUMN, LogicalType::Json, "document", true),
            ],
            key: vec![0],
        }
    }

    /// The children of the `after` and `before` structs: one nullable field per column, in order.
    pub fn arrow_fields(&self) -> Fields {
        self.columns.iter().map(|c| Arc::new(Field::new(&c.name, c.ty.arrow(), true))).collect()
    }

    /// The value of this version's record on `<source>.__schemas`: the schema as a JSON object, and with it, under `arrow`, the
    /// IPC schema message of its batches in base64, for readers of the `arrow` codec that do not know our types. Ours make it
    /// from the rest.
    pub fn to_record(&self) -> Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Record<'a> {
            #[serde(flatten)]
            schema: &'a TableSchema,
            arrow: String,
        }
        let arrow = base64::engine::general_purpose::STANDARD.encode(codec::arrow::schema_message(self)?);
        Ok(serde_json::to_vec(&Record { schema: self, arrow })?)
    }

    pub fn is_key(&self, column: usize) -> bool {
        self.key.contains(&column)
    }

    /// Checks what the rest of Lakeward relies on.
    pub fn validate(&self) -> Result<()> {
        let what = || format!("schema of {} version {}", self.table, self.version);
        if let Some(bad) = self.key.iter().find(|k| **k >= self.columns.len()) {
            return Err(Error::malformed(what(), format!("key names column {bad} of {}", self.columns.len())));
        }
        let mut ids: Vec<_> = self.columns.iter().map(|c| c.id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|w| w[0] == w[1]) {
            return Err(Error::malformed(what(), "two columns with one id"));
        }
        for column in &self.columns {
            if let LogicalType::List(element) = &column.ty
                && matches!(**element, LogicalType::List(_))
            {
                return Err(Error::malformed(what(), format!("column {} is a list of lists", column.name)));
            }
        }
        Ok(())
    }
}
