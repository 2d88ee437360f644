//! Tables of documents: the log carries documents and patches, the columns are made here.
//!
//! `ChangeBatches of _id, _doc, patch -> reduce -> whole documents -> column types -> schema change -> columns -> row delta`
//!
//! A patch is completed from the document before it, which is another change of the commit or `_doc` of the old row. Column
//! types are the table's own (`lakeward.columns`): the first type in order, widened by the union of what was seen.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, StringBuilder, new_null_array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema};
use lakeward_event::LogicalType;
use lakeward_event::document::DocumentRule as Rule;
use lakeward_event::document::{ColumnChange, ColumnSet, Documents, FieldColumn, apply_patch};
use lakeward_event::schema::{DOC_COLUMN, ID_COLUMN};
use lakeward_lake::system::DeadLetter;
use lakeward_lake::{SourceColumn, WriteOptions};
use lakeward_runtime::config::DocumentRule;
use lakeward_runtime::{Error, Result};

use crate::commit::Committed;
use crate::dead_letter::{self, Places, Refusal};
use crate::reduce::{Feed, LakeRows, Layout, Reduction, Source};
use crate::table::{Pending, SinkTable, blocking, reduce_all};
use crate::writer::{self, Base, DataFiles, Outcome, Rows, Written};

/// Rows per page: completing a patch decompresses a page per row.
const PAGE_ROWS: usize = 2_000;
/// Documents made into columns at a time.
const CHUNK_ROWS: usize = 16_384;
const ID: usize = 0;
const DOC: usize = 1;

/// `_id` and `_doc`, as the log has them.
fn log_layout() -> Layout {
    let columns = [ID_COLUMN, DOC_COLUMN].map(|name| Field::new(name, DataType::Utf8, true));
    let feed = |identity| Feed { identity: Some(identity), dropped: false };
    Layout { schema: Arc::new(Schema::new(columns.to_vec())), columns: vec![feed(1), feed(2)], key: vec![ID] }
}

/// The rule of a table. Whether a collection has post-images is not known here, and a patch without the whole old document
/// could not be applied: unless told otherwise every row keeps its document.
fn rule(configured: Option<DocumentRule>) -> Rule {
    match configured {
        None | Some(DocumentRule::Always) => Rule::Always,
        Some(DocumentRule::Conflict) => Rule::Conflict,
        Some(DocumentRule::Never) => Rule::Never,
    }
}

/// Whole documents of a commit, and what could not be made one.
struct Resolved {
    /// By row of the reduction; null: the row is left out.
    documents: StringArray,
    /// (row of the reduction, batch, row of the batch, why)
    failures: Vec<(u32, u32, String)>,
    /// Rows whose old row in the lake stays: a patch to it could not be applied.
    kept: HashSet<u128>,
}

/// Creates the table without a row: a collection that is empty so far has no fields.
pub(crate) async fn ensure_table(table: &mut SinkTable) -> Result<()> {
    let columns = document_columns(&field_columns(table));
    table.ensure_schema(&columns).await
}

/// Commits the pending changes of a table of documents.
pub(crate) async fn commit(
    table: &mut SinkTable,
    pending: Vec<Pending>,
    letters: Vec<DeadLetter>,
    target: Committed,
) -> Result<Written, Refusal> {
    let lake = table.shared.lake.clone();
    let rule = rule(table.rule);
    ensure_table(table).await?;
    let (reduction, places) = reduce_all(pending, &log_layout()).await?;
    let mut letters = letters;
    letters.extend(dead_letter::of_reduction(&table.id, &table.name(), &table.topic, &reduction, &places));
    let places = Arc::new(places);
    let reduction = blocking(move || {
        let mut reduction = reduction;
        reduction.sort(&log_layout(), &LakeRows::default())?;
        Ok(Arc::new(reduction))
    })
    .await?;
    let needed = needed(&reduction);
    let mut kept: Option<DataFiles> = None;
    loop {
        let layout = table.layout()?;
        let current = table.existing()?.clone();
        let mut base = Arc::new(Base::of(&lake, &current).await?);
        let mut hits = writer::look_up(table, &layout, &reduction, &base).await?;
        let files = match kept.take() {
            Some(files) => files,
            None => {
                let doc = layout
                    .schema
                    .index_of(DOC_COLUMN)
                    .map_err(|e| Error::human("the table has no `_doc`").source(e))?;
                let old = writer::read_lake(&lake, &base, &layout, &reduction, &hits, &[doc], &needed).await?;
                let whole = reduction.clone();
                let resolved = blocking(move || resolve(&whole, &old, doc)).await?;
                let mut all = letters.clone();
                for (batch, row, error) in &resolved.failures {
                    all.push(letter(table, &reduction, &places, (*batch, *row), None, error.clone(), None));
                }
                for hash in &resolved.kept {
                    if let Some((path, row)) = hits.rows.get(hash)
                        && let Some(rows) = hits.positions.get_mut(path)
                    {
                        rows.remove(*row);
                    }
                }
                hits.positions.retain(|_, rows| !rows.is_empty());

                let mut set = ColumnSet::new(field_columns(table));
                let known = set.columns().len();
                let documents = resolved.documents;
                let set = blocking({
                    let documents = documents.clone();
                    move || {
                        observe(&mut set, &documents, known)?;
                        Ok(set)
                    }
                })
                .await?;
                table.ensure_schema(&document_columns(set.columns())).await?;
                let layout = table.layout()?;
                let current = table.existing()?.clone();
                if let Some(snapshot) = current.snapshot()
                    && snapshot.snapshot_id() != base.snapshot
                {
                    // The change of the schema has made a snapshot of the same files, and the commit goes on top of it.
                    // Unless somebody else came between: then where the keys stand must be looked up again.
                    if snapshot.parent_snapshot_id() != Some(base.snapshot) {
                        continue;
                    }
                    base = Arc::new(Base::of(&lake, &current).await?);
                    let index = writer::index_at(table, &layout, &base).await?;
                    table.index = Some(index);
                }
                let mut built = build(reduction.clone(), documents, set, rule, table, &layout).await?;
                for (row, column, error, text) in std::mem::take(&mut built.letters) {
                    let at = at(&reduction, reduction.rows[row].1);
                    all.push(letter(table, &reduction, &places, at, column, error, text));
                }
                dead_letter::write(&table.shared, all, target.offsets.clone()).await?;
                let options = WriteOptions { max_page_rows: PAGE_ROWS, ..WriteOptions::default() };
                writer::write_rows(&lake, &current, Arc::new(built), options).await?
            }
        };
        match writer::finish(table, &base, &hits, reduction.truncated, files, &target).await? {
            Outcome::Done(written) => return Ok(written),
            Outcome::Again(files) if needed.is_empty() => kept = Some(files),
            // Documents were made from rows of the table: they are made again. The files become orphans.
            Outcome::Again(_) => {}
        }
    }
}

/// Columns of the fields that the table has.
fn field_columns(table: &SinkTable) -> Vec<FieldColumn> {
    let live = table.columns.columns.iter().filter(|c| !c.dropped && c.name != ID_COLUMN && c.name != DOC_COLUMN);
    live.map(|c| FieldColumn { name: c.identity.clone(), ty: c.ty.clone() }).collect()
}

/// All columns of a table of documents.
fn document_columns(fields: &[FieldColumn]) -> Vec<SourceColumn> {
    let column =
        |name: &str, ty: LogicalType, key| SourceColumn { identity: name.to_owned(), name: name.to_owned(), ty, key };
    let mut columns =
        vec![column(ID_COLUMN, LogicalType::String, Some(0)), column(DOC_COLUMN, LogicalType::Json, None)];
    columns.extend(fields.iter().map(|f| column(&f.name, f.ty.clone(), None)));
    columns
}

/// Takes up the fields of documents. Columns that the table has already and that cannot follow (integer to double is no
/// promotion of Iceberg's) stay as they are, and the rule for conflicts applies.
fn observe(set: &mut ColumnSet, documents: &StringArray, known: usize) -> Result<()> {
    for change in set.observe(documents) {
        if let ColumnChange::Widened { column, from, to: LogicalType::Double } = change
            && column < known
        {
            set.keep(column, from).map_err(|e| Error::bug("keeping a column's type").source(e))?;
        }
    }
    Ok(())
}

/// Rows of the lake whose documents are patched.
fn needed(reduction: &Reduction) -> Vec<u32> {
    let base = |(_, source): &(u128, Source)| {
        let mut source = *source;
        while let Source::Partial(index) = source {
            source = reduction.partials[index as usize].base;
        }
        match source {
            Source::Lake(index) => Some(index),
            _ => None,
        }
    };
    reduction.rows.iter().filter_map(base).collect()
}

/// Batch and row of the newest change of a row.
fn at(reduction: &Reduction, source: Source) -> (u32, u32) {
    match source {
        Source::Row { batch, row } => (batch, row),
        Source::Partial(index) => {
            let partial = reduction.partials[index as usize];
            (partial.batch, partial.row)
        }
        Source::Lake(_) | Source::Missing => (0, 0),
    }
}

/// Applies patches, oldest first.
fn resolve(reduction: &Reduction, old: &LakeRows, doc: usize) -> Result<Resolved> {
    let mut documents = StringBuilder::with_capacity(reduction.rows.len(), reduction.rows.len() * 64);
    let (mut failures, mut kept) = (Vec::new(), HashSet::new());
    let old_documents = old.columns.get(doc).and_then(Option::as_ref).map(|c| c.as_string::<i32>());
    let mut chain = Vec::new();
    for (hash, source) in &reduction.rows {
        chain.clear();
        let mut source = *source;
        while let Source::Partial(index) = source {
            let partial = reduction.partials[index as usize];
            chain.push((partial.batch, partial.row));
            source = partial.base;
        }
        let base = match source {
            Source::Row { batch, row } => {
                let documents = reduction.batches[batch as usize].batch().after().column(DOC).as_string::<i32>();
                documents.is_valid(row as usize).then(|| documents.value(row as usize))
            }
            Source::Lake(index) => {
                let row = old.rows.get(index as usize).copied().flatten().map(|r| r as usize);
                row.zip(old_documents).and_then(|(row, column)| column.is_valid(row).then(|| column.value(row)))
            }
            Source::Partial(_) | Source::Missing => None,
        };
        let Some(base) = base else {
            let (batch, row) = chain.first().copied().unwrap_or_else(|| at(reduction, source));
            failures.push((batch, row, "no whole document is known for this change".to_owned()));
            if matches!(source, Source::Lake(_)) {
                kept.insert(*hash);
            }
            documents.append_null();
            continue;
        };
        if chain.is_empty() {
            documents.append_value(base);
            continue;
        }
        let mut document = base.to_owned();
        for (batch, row) in chain.iter().rev() {
            let patch = reduction.batches[*batch as usize].batch().patch();
            if patch.is_null(*row as usize) {
                continue;
            }
            match apply_patch(&document, patch.value(*row as usize)) {
                Ok(next) => document = next,
                Err(error) => failures.push((*batch, *row, error.to_string())),
            }
        }
        documents.append_value(document);
    }
    Ok(Resolved { documents: documents.finish(), failures, kept })
}

/// Rows of documents as columns of the table, in pieces of [`CHUNK_ROWS`].
struct Built {
    whole: RecordBatch,
    hashes: Vec<u128>,
    /// (row, column, error, text)
    letters: Vec<(usize, Option<String>, String, Option<String>)>,
}

impl Rows for Built {
    fn len(&self) -> usize {
        self.hashes.len()
    }
    fn batch(&self, range: std::ops::Range<usize>) -> Result<RecordBatch> {
        Ok(self.whole.slice(range.start, range.len()))
    }
    fn hash(&self, row: usize) -> u128 {
        self.hashes[row]
    }
}

/// Second pass: documents to columns.
async fn build(
    reduction: Arc<Reduction>,
    documents: StringArray,
    set: ColumnSet,
    rule: Rule,
    table: &SinkTable,
    layout: &Layout,
) -> Result<Built> {
    // By column of the table: the column of the set, by its field's name.
    let schema = table.existing()?.metadata().current_schema().clone();
    let feeds: Vec<Option<usize>> = schema
        .as_struct()
        .fields()
        .iter()
        .map(|field| {
            let mapped = table.columns.columns.iter().find(|c| c.field_id == field.id && !c.dropped)?;
            set.columns().iter().position(|c| c.name == mapped.identity)
        })
        .collect();
    let layout = layout.clone();
    let set = Arc::new(Mutex::new(set));
    blocking(move || {
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        let mut letters = Vec::new();
        let mut good: Vec<bool> = (0..documents.len()).map(|row| documents.is_valid(row)).collect();
        let mut chunks = Vec::new();
        for start in (0..documents.len()).step_by(CHUNK_ROWS) {
            let range = start..documents.len().min(start + CHUNK_ROWS);
            let Documents { columns, doc, conflicts, malformed } = set
                .build(&documents.slice(range.start, range.len()), rule)
                .map_err(|e| Error::bug("documents to columns").source(e))?;
            for (row, error) in malformed {
                if good[start + row] {
                    good[start + row] = false;
                    letters.push((start + row, None, error.to_string(), Some(documents.value(start + row).to_owned())));
                }
            }
            if rule == Rule::Never {
                // With the document kept nothing is lost; without it the value must be kept here.
                for conflict in conflicts {
                    let error = "a value that its column cannot hold".to_owned();
                    letters.push((start + conflict.row, Some(conflict.field), error, Some(conflict.text)));
                }
            }
            let ids = reduction.gather(ID, range.clone(), &log_layout(), &LakeRows::default(), false)?;
            let doc: ArrayRef = Arc::new(doc);
            let arrays = layout
                .schema
                .fields()
                .iter()
                .zip(&feeds)
                .map(|(field, feed)| {
                    let array = match (field.name().as_str(), feed) {
                        (ID_COLUMN, _) => ids.clone(),
                        (DOC_COLUMN, _) => doc.clone(),
                        (_, Some(feed)) => columns[*feed].clone(),
                        (_, None) => new_null_array(field.data_type(), range.len()),
                    };
                    if array.data_type() == field.data_type() { Ok(array) } else { cast(&array, field.data_type()) }
                })
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| Error::bug("a field's type is not its column's").source(e))?;
            let keep = BooleanArray::from(good[range].to_vec());
            // A row that is left out may have a null where the table has none: it is filtered before the schema is checked.
            let loose = Arc::new(Schema::new(
                layout.schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>(),
            ));
            let filtered = RecordBatch::try_new(loose, arrays)
                .and_then(|batch| filter_record_batch(&batch, &keep))
                .and_then(|batch| RecordBatch::try_new(layout.schema.clone(), batch.columns().to_vec()))
                .map_err(|e| Error::bug("documents do not have the table's form").source(e))?;
            chunks.push(filtered);
        }
        let whole = arrow::compute::concat_batches(&layout.schema, &chunks)
            .map_err(|e| Error::bug("joining documents").source(e))?;
        let hashes = reduction.rows.iter().zip(&good).filter(|(_, good)| **good).map(|((hash, _), _)| *hash).collect();
        Ok(Built { whole, hashes, letters })
    })
    .await
}

fn letter(
    table: &SinkTable,
    reduction: &Reduction,
    places: &[Places],
    (batch, row): (u32, u32),
    column: Option<String>,
    error: String,
    payload: Option<String>,
) -> DeadLetter {
    let (partition, offset) = places.get(batch as usize).map_or((0, 0), |p| p.of(row as usize));
    let source = reduction.batches.get(batch as usize).map(crate::reduce::Aligned::batch);
    DeadLetter {
        at: dead_letter::now(),
        source: table.id.source.clone(),
        table: table.name(),
        column,
        key: source.map(|b| dead_letter::key_json(b, row as usize)),
        position: None,
        topic: table.topic.clone(),
        partition,
        offset,
        error,
        payload: payload.or_else(|| {
            let patch = source?.patch();
            patch.is_valid(row as usize).then(|| patch.value(row as usize).to_owned())
        }),
        attempt: 1,
    }
}
