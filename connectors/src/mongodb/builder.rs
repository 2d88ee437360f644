//! Changes of one collection to a `ChangeBatch`: `raw BSON -> text -> Arrow builders`, under the one schema of documents.

use std::sync::Arc;

use arrow::array::{NullBufferBuilder, StringBuilder, StructArray};
use bson::RawBsonRef;
use bson::raw::RawDocument;
use lakeward_event::batch::MetaRow;
use lakeward_event::{ChangeBatch, ChangeMeta, Op, TableSchema};
use lakeward_runtime::{Error, Result};

use super::canonical;

/// What stands beside a document in its row.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub sequence: u64,
    /// See [`super::resume_token::cluster_time`].
    pub cluster_time: u64,
    pub tx: Option<u64>,
    /// Microseconds since 1970.
    pub wall: Option<i64>,
}

/// Rows `_id`, `_doc`; null where the whole struct is.
#[derive(Default)]
struct Side {
    id: StringBuilder,
    doc: StringBuilder,
    valid: Validity,
}

/// `NullBufferBuilder` has no default capacity; this one has.
struct Validity(NullBufferBuilder);
impl Default for Validity {
    fn default() -> Self {
        Self(NullBufferBuilder::new(1024))
    }
}

impl Side {
    fn null(&mut self) {
        self.id.append_null();
        self.doc.append_null();
        self.valid.0.append_null();
    }
    fn row(&mut self, id: &str, doc: Option<&str>) {
        self.id.append_value(id);
        self.doc.append_option(doc);
        self.valid.0.append_non_null();
    }
    fn finish(&mut self, schema: &TableSchema) -> Result<StructArray> {
        let columns = vec![Arc::new(self.id.finish()) as _, Arc::new(self.doc.finish()) as _];
        StructArray::try_new(schema.arrow_fields(), columns, self.valid.0.finish())
            .map_err(|e| Error::bug("building a batch of documents").source(e))
    }
}

/// The open batch of one collection.
pub struct DocumentBuilder {
    schema: Arc<TableSchema>,
    after: Side,
    before: Side,
    meta: ChangeMeta,
    id: String,
    doc: String,
    bytes: usize,
}

impl DocumentBuilder {
    pub fn new(schema: Arc<TableSchema>) -> Self {
        Self {
            schema,
            after: Side::default(),
            before: Side::default(),
            meta: ChangeMeta::default(),
            id: String::new(),
            doc: String::new(),
            bytes: 0,
        }
    }

    pub fn rows(&self) -> usize {
        self.meta.rows()
    }

    /// Approximate bytes of text held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Text of the `_id` of the last row.
    pub fn last_id(&self) -> &str {
        &self.id
    }

    /// A whole document: insert, replace, update with its post-image, or a snapshot's row.
    pub fn document(&mut self, op: Op, document: &RawDocument, place: Place) -> Result<()> {
        let id = document
            .get("_id")
            .map_err(unreadable)?
            .ok_or_else(|| Error::human("a document has no _id").with("collection", &self.schema.table))?;
        self.set_id(id)?;
        self.doc.clear();
        canonical::document(&mut self.doc, document).map_err(unreadable)?;
        self.after.row(&self.id, Some(&self.doc));
        self.before.null();
        self.push(op, None, place);
        Ok(())
    }

    /// An update of which only the description is known, as canonical Extended JSON.
    pub fn patch(&mut self, id: RawBsonRef<'_>, description: &RawDocument, place: Place) -> Result<()> {
        self.set_id(id)?;
        self.doc.clear();
        canonical::document(&mut self.doc, description).map_err(unreadable)?;
        self.after.row(&self.id, None);
        self.before.null();
        let patch = std::mem::take(&mut self.doc);
        self.push(Op::Update, Some(&patch), place);
        self.doc = patch;
        Ok(())
    }

    pub fn delete(&mut self, id: RawBsonRef<'_>, place: Place) -> Result<()> {
        self.set_id(id)?;
        self.after.null();
        self.before.row(&self.id, None);
        self.push(Op::Delete, None, place);
        Ok(())
    }

    /// The collection is empty from here on.
    pub fn truncate(&mut self, place: Place) {
        self.after.null();
        self.before.null();
        self.push(Op::Truncate, None, place);
    }

    pub fn finish(&mut self) -> Result<ChangeBatch> {
        self.bytes = 0;
        let bug = |e| Error::bug("building a batch of documents").source(e);
        let after = self.after.finish(&self.schema)?;
        let before = self.before.finish(&self.schema)?;
        ChangeBatch::try_new(self.schema.clone(), self.meta.finish().map_err(bug)?, after, before).map_err(bug)
    }

    fn set_id(&mut self, id: RawBsonRef<'_>) -> Result<()> {
        self.id.clear();
        canonical::id_text(&mut self.id, id).map_err(unreadable)
    }

    fn push(&mut self, op: Op, patch: Option<&str>, place: Place) {
        self.bytes += self.id.len() + self.doc.len() + patch.map_or(0, str::len) + 64;
        let Place { sequence, cluster_time, tx, wall } = place;
        self.meta.push(MetaRow { op, sequence, position: cluster_time, tx, commit_ts: wall, unchanged: None, patch });
    }
}

/// BSON that the server sent and that does not read: the connection is made anew.
pub fn unreadable(error: canonical::BsonError) -> Error {
    Error::retry("the server sent BSON that cannot be read").source(error)
}
