//! One table of the lake and what the sink holds for it.
//!
//! `ChangeBatches of its topic -> SinkTable (pending) -> schema change -> reduce -> key index -> files -> one commit`
//!
//! A commit is atomic: data, deletes and offsets in one snapshot. Nothing of a table is worth saving when a commit fails: the
//! worker is made anew and reads on from the offsets that the table holds.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use iceberg::{NamespaceIdent, TableIdent};
use lakeward_event::schema::TableKind;
use lakeward_event::{ChangeBatch, Checkpoint, Ends, TableId, TableSchema, key, names};
use lakeward_lake::system::{DeadLetter, DeadLetterTable};
use lakeward_lake::{
    COLUMNS_PROPERTY, ColumnMap, Commit, Evolution, KEY_PROPERTY, Lake, SOURCE_PROPERTY, SnapshotChange, SourceColumn,
    Table, TableChange, arrow_schema, evolve,
};
use lakeward_runtime::config::DocumentRule;
use lakeward_runtime::{Action, Error, Result};

use crate::commit::{Committed, committed_of};
use crate::dead_letter::{self, Places, Refusal};
use crate::key_index::{Definition, KeyIndex};
use crate::reduce::{Aligned, Feed, Layout, Reduction, reduce};
use crate::{documents, writer};

/// What all tables of a sink share.
pub struct Shared {
    pub lake: Lake,
    pub dead_letters: DeadLetterTable,
    pub state_dir: PathBuf,
    /// Whether a change that cannot be applied stops its table instead of becoming a dead letter.
    pub stop_on_bad_record: bool,
}

/// Changes that wait for their table's next commit.
pub struct Pending {
    pub batch: ChangeBatch,
    /// Which record each row came in.
    pub places: Places,
}

/// A table of the lake that this process writes.
pub struct SinkTable {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: TableId,
    pub(crate) topic: String,
    pub(crate) ident: TableIdent,
    pub(crate) rule: Option<DocumentRule>,
    /// None: not created yet.
    pub(crate) table: Option<Table>,
    pub(crate) columns: ColumnMap,
    pub(crate) index: Option<KeyIndex>,
    pub(crate) committed: Committed,
    pending: Vec<Pending>,
    /// Records that could not be read at all.
    letters: Vec<DeadLetter>,
    bytes: usize,
    /// Newest schema version seen.
    pub(crate) schema: Option<Arc<TableSchema>>,
    /// The bad record that stopped the table: it stays where it last committed, until the sink is started again.
    stopped: Option<Error>,
}

/// The name of a table in the lake.
pub fn ident(table: &TableId, default_schema: &str) -> TableIdent {
    TableIdent::new(NamespaceIdent::new(names::namespace(table, default_schema)), table.name.clone())
}

/// `namespace.table`
pub fn full_name(ident: &TableIdent) -> String {
    format!("{}.{}", ident.namespace().join("."), ident.name())
}

/// The table of the source that one in the lake holds; None: not ours.
pub fn source_of(table: &Table) -> Option<TableId> {
    serde_json::from_str(table.properties().get(SOURCE_PROPERTY)?).ok()
}

/// Runs work that blocks or computes for long where that does not hold up others.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::bug("a blocking task failed").source(error)),
    }
}

impl SinkTable {
    /// Loads what the lake has of the table.
    pub async fn open(
        shared: Arc<Shared>,
        id: TableId,
        topic: String,
        default_schema: &str,
        rule: Option<DocumentRule>,
    ) -> Result<Self> {
        let ident = ident(&id, default_schema);
        let mut this = Self {
            topic,
            id,
            table: None,
            columns: ColumnMap::default(),
            index: None,
            committed: Committed::default(),
            pending: Vec::new(),
            letters: Vec::new(),
            bytes: 0,
            schema: None,
            stopped: None,
            rule,
            ident,
            shared,
        };
        metrics::gauge!("lakeward_sink_table_stopped", "table" => this.name()).set(0.0);
        if let Some(table) = this.shared.lake.load(&this.ident).await? {
            this.committed = committed_of(&table)?;
            this.take(table)?;
        }
        Ok(this)
    }

    pub fn name(&self) -> String {
        full_name(&self.ident)
    }
    pub fn id(&self) -> &TableId {
        &self.id
    }
    pub fn topic(&self) -> &str {
        &self.topic
    }
    pub fn committed(&self) -> &Committed {
        &self.committed
    }
    pub fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }
    /// Something waits for a commit.
    pub fn is_dirty(&self) -> bool {
        !self.pending.is_empty() || !self.letters.is_empty() || (self.table.is_none() && self.schema.is_some())
    }
    /// Bytes of what waits.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A table that the source has and that nothing was read of yet: the next commit makes it, empty, so that it can be
    /// asked and verified. One of documents has `_id` and `_doc` until a document brings its fields.
    pub fn expect(&mut self, schema: &Arc<TableSchema>) {
        if self.table.is_none() && self.schema.is_none() {
            self.schema = Some(schema.clone());
        }
    }

    /// Whether the table has stopped at a bad record.
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Why the table has stopped; for the worker's end.
    pub fn take_stopped(&mut self) -> Option<Error> {
        self.stopped.take()
    }

    fn stop(&mut self, error: Error) {
        tracing::error!(
            error = %error, table = %self.name(),
            "the table stops at a bad record, and rows of lakeward.checkpoints wait; the source's other tables go on. Start the \
             sink again when the record can be applied, or with sink.on_bad_record = \"dead_letter\""
        );
        metrics::gauge!("lakeward_sink_table_stopped", "table" => self.name()).set(1.0);
        self.index = None;
        self.stopped = Some(error);
    }

    /// Takes changes that the next commit is to hold.
    pub fn push(&mut self, pending: Pending) {
        self.bytes += pending.batch.record_batch().get_array_memory_size() + pending.places.bytes();
        if self.schema.as_ref().is_none_or(|s| s.version <= pending.batch.table().version) {
            self.schema = Some(pending.batch.table().clone());
        }
        self.pending.push(pending);
    }

    /// Takes a record that could not be read.
    pub fn push_letter(&mut self, letter: DeadLetter) {
        self.bytes += letter.payload.as_ref().map_or(0, String::len) + 200;
        self.letters.push(letter);
    }

    /// What could not be read so far.
    pub fn into_letters(self) -> Vec<DeadLetter> {
        self.letters
    }

    /// The table at a newer metadata.
    fn take(&mut self, table: Table) -> Result<()> {
        match source_of(&table) {
            Some(source) if source == self.id => {}
            Some(other) => {
                return Err(Error::configuration(format!(
                    "two tables share a name in the lake: {} and {}.{other}",
                    self.id, other.source
                ))
                .with("table", self.name()));
            }
            None => {
                return Err(Error::human("the table exists already and is not Lakeward's: rename or drop it")
                    .with("table", self.name()));
            }
        }
        if let Some(columns) = table.properties().get(COLUMNS_PROPERTY) {
            self.columns = ColumnMap::parse(columns)?;
        }
        self.table = Some(table);
        Ok(())
    }

    /// The newest table after a refused commit. Its offsets must be where we left them: whoever moved them does our work.
    pub(crate) fn rebase(&mut self, newest: Table) -> Result<()> {
        if committed_of(&newest)? != self.committed {
            return Err(Error::human(
                "another sink commits to this table; this one stops (two sinks must not share tables)",
            )
            .with("table", self.name()));
        }
        tracing::info!(table = %self.name(), "somebody else changed the table; preparing the commit again");
        metrics::counter!("lakeward_sink_conflicts_total", "table" => self.name()).increment(1);
        self.take(newest)
    }

    /// Creates the table or changes its schema, so that it holds the columns.
    pub(crate) async fn ensure_schema(&mut self, wanted: &[SourceColumn]) -> Result<()> {
        loop {
            let Some(table) = self.table.clone() else {
                let evolution = evolve(None, wanted)?;
                self.create(evolution).await?;
                continue;
            };
            let evolution = evolve(Some((table.metadata().current_schema(), &self.columns)), wanted)?;
            let key = key_property(&evolution.key);
            if evolution.schema.is_none()
                && evolution.columns == self.columns
                && table.properties().get(KEY_PROPERTY) == Some(&key)
            {
                return Ok(());
            }
            for note in &evolution.notes {
                tracing::warn!(table = %self.name(), "{note}");
            }
            let columns = evolution.columns.to_property();
            // A change of the schema is a change like any other: it makes a snapshot, so that cuts can name it (trap 35).
            let change = TableChange {
                schema: evolution.schema,
                snapshot: Some(SnapshotChange {
                    operation: iceberg::spec::Operation::Append,
                    added_data: Vec::new(),
                    added_deletes: Vec::new(),
                    removed: Vec::new(),
                    summary: self.committed.to_summary(),
                }),
                properties: HashMap::from([(COLUMNS_PROPERTY.to_owned(), columns), (KEY_PROPERTY.to_owned(), key)]),
            };
            match self.shared.lake.commit(&table, change).await? {
                Commit::Done(table) => {
                    tracing::info!(table = %self.name(), "changed the table's schema");
                    self.take(table)?;
                    return Ok(());
                }
                Commit::Conflict(newest) => self.rebase(newest)?,
            }
        }
    }

    async fn create(&mut self, evolution: Evolution) -> Result<()> {
        let same_but_for_case = |other: &TableIdent| {
            *other != self.ident
                && other.namespace() == self.ident.namespace()
                && other.name().to_lowercase() == self.ident.name().to_lowercase()
        };
        if let Some(other) = self.shared.lake.tables().await?.iter().find(|t| same_but_for_case(t)) {
            return Err(Error::configuration("two tables of the lake would differ in case only")
                .with("table", self.name())
                .with("other", full_name(other)));
        }
        let schema = evolution.schema.ok_or_else(|| Error::bug("a new table without a schema"))?;
        let source = serde_json::to_string(&self.id).map_err(|e| Error::bug("a table's name").source(e))?;
        let properties = HashMap::from([
            (COLUMNS_PROPERTY.to_owned(), evolution.columns.to_property()),
            (KEY_PROPERTY.to_owned(), key_property(&evolution.key)),
            (SOURCE_PROPERTY.to_owned(), source),
            ("write.parquet.compression-codec".to_owned(), "zstd".to_owned()),
        ]);
        let table = match self.shared.lake.create(&self.ident, schema, None, properties).await {
            Ok(table) => table,
            Err(error) if error.action() == Action::Rebase => match self.shared.lake.load(&self.ident).await? {
                Some(table) => return self.rebase(table),
                None => return Err(error),
            },
            Err(error) => return Err(error),
        };
        tracing::info!(table = %self.name(), "created the table");
        self.take(table)
    }

    /// Field ids of the key.
    pub(crate) fn key(&self) -> Result<Vec<i32>> {
        let property = self.table.as_ref().and_then(|t| t.properties().get(KEY_PROPERTY));
        property.map_or(Ok(Vec::new()), |p| {
            serde_json::from_str(p).map_err(|e| {
                Error::human("table property `lakeward.key` cannot be read").with("table", self.name()).source(e)
            })
        })
    }

    /// The table's columns and what feeds them.
    pub(crate) fn layout(&self) -> Result<Layout> {
        let table = self.existing()?;
        let current = table.metadata().current_schema();
        let schema: SchemaRef = arrow_schema(current)?;
        let fields = current.as_struct().fields();
        let columns = fields
            .iter()
            .map(|field| {
                let mapped = self.columns.columns.iter().find(|c| c.field_id == field.id);
                Feed {
                    identity: mapped.and_then(|c| c.identity.parse().ok()),
                    dropped: mapped.is_none_or(|c| c.dropped),
                }
            })
            .collect();
        let key = self
            .key()?
            .iter()
            .map(|id| {
                fields.iter().position(|f| f.id == *id).ok_or_else(|| {
                    Error::human("table property `lakeward.key` names a column that is not there")
                        .with("table", self.name())
                })
            })
            .collect::<Result<_>>()?;
        Ok(Layout { schema, columns, key })
    }

    pub(crate) fn existing(&self) -> Result<&Table> {
        self.table.as_ref().ok_or_else(|| Error::bug("the table is not there yet").with("table", self.name()))
    }

    /// The key index, opened for the table and key as they are now.
    pub(crate) fn open_index(&self) -> Result<KeyIndex> {
        let table = self.existing()?;
        let uuid = table.metadata().uuid().to_string();
        let folder = self.shared.state_dir.join("index").join(&uuid);
        KeyIndex::open(&folder, Definition { table_uuid: uuid, encoding: key::VERSION, key: self.key()? })
    }

    /// Commits everything pending: the table is then at `checkpoint`, and holds its topic up to `ends`; or it has stopped.
    pub async fn commit(&mut self, checkpoint: &Checkpoint, ends: &Ends) -> Result<()> {
        match self.try_commit(checkpoint, ends).await {
            Ok(()) => Ok(()),
            Err(Refusal::BadRecord(error)) => {
                self.stop(error);
                Ok(())
            }
            Err(Refusal::Failed(error)) => Err(error),
        }
    }

    async fn try_commit(&mut self, checkpoint: &Checkpoint, ends: &Ends) -> Result<(), Refusal> {
        let started = std::time::Instant::now();
        let pending = std::mem::take(&mut self.pending);
        let letters = std::mem::take(&mut self.letters);
        self.bytes = 0;
        let offsets = Ends::from([(self.topic.clone(), ends.get(&self.topic).cloned().unwrap_or_default())]);
        let target = Committed {
            checkpoint: Some(checkpoint.id),
            watermark: checkpoint.draft.watermark,
            offsets: offsets.clone(),
        };
        let Some(schema) = self.schema.clone() else {
            // Nothing readable has ever been seen of this table, so there is no schema to make it with.
            return dead_letter::write(&self.shared, letters, offsets).await;
        };
        if pending.is_empty() && letters.is_empty() {
            match schema.kind {
                TableKind::Relational => self.ensure_schema(&source_columns(&schema)).await?,
                TableKind::Documents => documents::ensure_table(self).await?,
            }
            return Ok(());
        }
        let changes: usize = pending.iter().map(|p| p.batch.num_rows()).sum();
        let written = match schema.kind {
            TableKind::Relational => {
                self.ensure_schema(&source_columns(&schema)).await?;
                let layout = self.layout()?;
                let (reduction, places) = reduce_all(pending, &layout).await?;
                let mut all = letters;
                all.extend(dead_letter::of_reduction(&self.id, &self.name(), &self.topic, &reduction, &places));
                let converging = checkpoint.draft.converging.contains(&self.id.to_string());
                writer::commit(self, reduction, layout, target, all, &places, converging).await?
            }
            TableKind::Documents => documents::commit(self, pending, letters, target).await?,
        };
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(
            table = %self.name(), checkpoint = checkpoint.id, changes, rows = written.rows, deletes = written.deletes,
            files = written.files, seconds, "committed"
        );
        let name = self.name();
        metrics::counter!("lakeward_sink_changes_total", "table" => name.clone()).increment(changes as u64);
        metrics::counter!("lakeward_sink_rows_total", "table" => name.clone()).increment(written.rows as u64);
        metrics::counter!("lakeward_sink_deletes_total", "table" => name.clone()).increment(written.deletes);
        metrics::counter!("lakeward_sink_commits_total", "table" => name.clone()).increment(1);
        metrics::histogram!("lakeward_sink_commit_seconds", "table" => name.clone()).record(seconds);
        if let Some(index) = &self.index {
            metrics::gauge!("lakeward_sink_index_bytes", "table" => name.clone()).set(index.bytes() as f64);
            metrics::gauge!("lakeward_sink_index_keys", "table" => name).set(index.entries() as f64);
        }
        Ok(())
    }

    /// Notes a commit that is in.
    pub(crate) fn committed_at(&mut self, table: Table, committed: Committed) -> Result<()> {
        self.committed = committed;
        self.take(table)
    }
}

fn key_property(key: &[i32]) -> String {
    serde_json::to_string(key).unwrap_or_else(|_| "[]".to_owned())
}

/// The columns of a relational table as the evolution wants them.
fn source_columns(schema: &TableSchema) -> Vec<SourceColumn> {
    schema
        .columns
        .iter()
        .enumerate()
        .map(|(index, column)| SourceColumn {
            identity: column.id.to_string(),
            name: column.name.clone(),
            ty: column.ty.clone(),
            key: schema.key.iter().position(|k| *k == index),
        })
        .collect()
}

/// Aligns and reduces off the async threads.
pub(crate) async fn reduce_all(pending: Vec<Pending>, layout: &Layout) -> Result<(Reduction, Vec<Places>)> {
    let layout = layout.clone();
    blocking(move || {
        let mut places = Vec::with_capacity(pending.len());
        let mut batches = Vec::with_capacity(pending.len());
        for pending in pending {
            places.push(pending.places);
            batches.push(Aligned::new(pending.batch, &layout)?);
        }
        Ok((reduce(batches, !layout.key.is_empty()), places))
    })
    .await
}
