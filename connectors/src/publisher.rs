//! The publisher: what every connector hands its changes to. `ChangeBatch -> fit -> Encoder -> TopicBlock -> Writer::append ->
//! Checkpoint`.
//!
//! It owns the one living writer of a source, the version numbers of table schemas and the counter `sequence`. A connector
//! numbers the rows of one append from 0; the publisher adds what it has published before.

use std::collections::HashMap;
use std::sync::Arc;

use lakeward_event::codec::{Encoder, RecordBlock};
use lakeward_event::{ChangeBatch, Checkpoint, CheckpointDraft, Position, TableId, TableSchema, names};
use lakeward_log::{Log, TopicBlock, Writer};
use lakeward_runtime::{Error, Result};
use tokio::task::JoinHandle;

use crate::fit::fit;

/// What a connector says of an append; the publisher adds `next_sequence`, the log id and offsets.
#[derive(Debug, Clone)]
pub struct Progress {
    pub position: Position,
    /// See [`CheckpointDraft::snapshot`].
    pub snapshot: serde_json::Value,
    pub converging: Vec<String>,
    /// Microseconds since 1970, multiples of the grid.
    pub watermark_from: i64,
    pub watermark: i64,
    pub cut: bool,
}

/// One atomic append: batches in their order, with sequences that count from 0 over all of them.
#[derive(Debug)]
pub struct Append {
    pub batches: Vec<ChangeBatch>,
    /// How many sequences the batches use: the greatest is below this.
    pub sequences: u64,
    pub progress: Progress,
}

struct Topic {
    name: String,
    partitions: i32,
}

/// The writing side of one source.
pub struct Publisher {
    source: String,
    writer: Box<dyn Writer>,
    /// None only while a blocking thread has it.
    encoder: Option<Box<dyn Encoder>>,
    next_sequence: u64,
    topics: HashMap<TableId, Topic>,
    owners: HashMap<String, TableId>,
    /// Every version of every table, published or about to be.
    versions: HashMap<TableId, Vec<Arc<TableSchema>>>,
    /// To be sent with the next append.
    unsent: Vec<Arc<TableSchema>>,
}

impl Publisher {
    /// Ends older writers of the source and returns the last committed checkpoint with the publisher that continues from it.
    pub async fn open(
        log: &Arc<dyn Log>,
        source: &str,
        encoder: Box<dyn Encoder>,
    ) -> Result<(Self, Option<Checkpoint>)> {
        // Fence first: only after it is the last checkpoint really the last.
        let (writer, last) = log.writer(source).await?;
        let schemas = log.schemas(source).await?;
        check_control_topics(source, last.as_ref(), schemas.is_empty())?;
        let mut versions: HashMap<TableId, Vec<Arc<TableSchema>>> = HashMap::new();
        for schema in schemas {
            versions.entry(schema.table.clone()).or_default().push(schema);
        }
        for versions in versions.values_mut() {
            versions.sort_by_key(|s| s.version);
        }
        let publisher = Self {
            source: source.into(),
            writer,
            encoder: Some(encoder),
            next_sequence: last.as_ref().map_or(0, |c| c.draft.next_sequence),
            topics: HashMap::new(),
            owners: HashMap::new(),
            versions,
            unsent: Vec::new(),
        };
        Ok((publisher, last))
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Every version of a table's schema that the log has or is about to get, oldest first.
    pub fn versions(&self, table: &TableId) -> &[Arc<TableSchema>] {
        self.versions.get(table).map_or(&[], Vec::as_slice)
    }

    /// The version that a table of this shape has: that of a known schema if nothing but the version differs, else the next. An
    /// old version comes back where a snapshot has read the catalog ahead of the stream.
    pub fn version_for(&self, schema: &TableSchema) -> u32 {
        let known = self.versions(&schema.table);
        match known.iter().filter(|k| same_shape(k, schema)).map(|k| k.version).max() {
            Some(version) => version,
            None => known.iter().map(|k| k.version).max().unwrap_or(0) + 1,
        }
    }

    /// Makes a table's topic known and its schema part of the next append where it is new. Batches of the schema may be
    /// published from now on. Errors: `Configuration` when another table has the topic.
    pub async fn register(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        schema.validate().map_err(|e| Error::human("table cannot be carried").source(e))?;
        let table = &schema.table;
        if !self.topics.contains_key(table) {
            let name = names::topic(table);
            if let Some(owner) = self.owners.get(&name) {
                return Err(Error::configuration(format!(
                    "{owner} and {table} of source {} would share the topic {name}; exclude one of them, or part them by `topic` in [table.\"{name}\"]",
                    self.source
                )));
            }
            let partitions = self.writer.ensure_topic(&name).await?;
            self.owners.insert(name.clone(), table.clone());
            self.topics.insert(table.clone(), Topic { name, partitions });
        }
        let versions = self.versions.entry(table.clone()).or_default();
        if versions.iter().all(|known| known.version != schema.version) {
            versions.push(schema.clone());
            self.unsent.push(schema.clone());
        }
        Ok(())
    }

    /// Appends the batches and a checkpoint. An error spends the publisher: the outcome is unknown, open a new one.
    pub async fn publish(&mut self, append: Append) -> Result<Checkpoint> {
        let base = self.next_sequence;
        let blocks = self.encode(append.batches, base).await?;
        let Progress { position, snapshot, converging, watermark_from, watermark, cut } = append.progress;
        let next_sequence = base + append.sequences;
        let draft = CheckpointDraft { position, next_sequence, snapshot, converging, watermark_from, watermark, cut };
        let checkpoint = self.writer.append(&self.unsent, blocks, draft).await?;
        self.unsent.clear();
        self.next_sequence = next_sequence;
        Ok(checkpoint)
    }

    /// Encodes off the runtime's threads: a full append takes a tenth of a second.
    async fn encode(&mut self, batches: Vec<ChangeBatch>, base: u64) -> Result<Vec<TopicBlock>> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let mut jobs = Vec::with_capacity(batches.len());
        for batch in batches {
            let table = &batch.table().table;
            let topic =
                self.topics.get(table).ok_or_else(|| Error::bug("table was not registered").with("table", table))?;
            jobs.push((batch, topic.name.clone(), topic.partitions));
        }
        let mut encoder = self.encoder.take().ok_or_else(|| Error::bug("publisher is spent"))?;
        let (encoder, blocks) = tokio::task::spawn_blocking(move || {
            let blocks = encode_blocks(encoder.as_mut(), jobs, base);
            (encoder, blocks)
        })
        .await
        .map_err(|e| Error::bug("encoder panicked").source(e))?;
        self.encoder = Some(encoder);
        blocks
    }
}

fn encode_blocks(
    encoder: &mut dyn Encoder,
    jobs: Vec<(ChangeBatch, String, i32)>,
    base: u64,
) -> Result<Vec<TopicBlock>> {
    let mut blocks: Vec<TopicBlock> = Vec::new();
    for (batch, topic, partitions) in jobs {
        let table = batch.table().table.clone();
        let failed = |e: lakeward_event::Error| match lakeward_log::registry::failure(e) {
            Ok(registry) => registry.with("table", &table),
            Err(e @ lakeward_event::Error::Unsupported(_)) => Error::human("a change cannot be published").source(e),
            Err(e) => Error::bug("encoding").with("table", &table).source(e),
        };
        let batch = batch.with_sequence_base(base).map_err(failed)?;
        let batch = fit(batch, encoder).map_err(failed)?;
        // One block per topic: the order within a partition is all that counts.
        let index = blocks.iter().position(|b| b.topic == topic).unwrap_or_else(|| {
            blocks.push(TopicBlock { topic, block: RecordBlock::default() });
            blocks.len() - 1
        });
        encoder.encode(&batch, partitions, &mut blocks[index].block).map_err(failed)?;
    }
    Ok(blocks)
}

/// A schema is committed with a checkpoint, and rows with their schema: one without the other was deleted behind our back, and
/// whoever began anew would publish everything twice, or give a number to two schemas.
fn check_control_topics(source: &str, last: Option<&Checkpoint>, no_schemas: bool) -> Result<()> {
    let gone = |topic: String, what: &str| {
        Err(Error::human(format!(
            "{topic} holds {what} any more: the topic was deleted. Bring it back, or begin the source anew (docs/log.md, Beginning a source anew)"
        ))
        .with("source", source))
    };
    match last {
        None if !no_schemas => gone(names::checkpoints_topic(source), "no checkpoint"),
        Some(last) if no_schemas && last.draft.next_sequence > 0 => gone(names::schemas_topic(source), "no schema"),
        _ => Ok(()),
    }
}

/// Equal but for the version.
fn same_shape(a: &TableSchema, b: &TableSchema) -> bool {
    a.table == b.table && a.kind == b.kind && a.columns == b.columns && a.key == b.key
}

/// A publisher whose append runs beside the loop that reads the source: at most one append is under way.
pub struct Lane {
    idle: Option<Box<Publisher>>,
    flying: Option<JoinHandle<(Box<Publisher>, Result<Checkpoint>)>>,
}

impl Lane {
    pub fn new(publisher: Publisher) -> Self {
        Self { idle: Some(Box::new(publisher)), flying: None }
    }

    pub fn is_busy(&self) -> bool {
        self.flying.is_some()
    }

    /// The publisher, for what is not an append. None while one is under way: call [`settled`](Self::settled) first.
    pub fn publisher(&mut self) -> Option<&mut Publisher> {
        self.idle.as_deref_mut()
    }

    /// Starts an append; none must be under way.
    pub fn begin(&mut self, append: Append) -> Result<()> {
        let mut publisher = self.idle.take().ok_or_else(|| Error::bug("an append is under way already"))?;
        self.flying = Some(tokio::spawn(async move {
            let outcome = publisher.publish(append).await;
            (publisher, outcome)
        }));
        Ok(())
    }

    /// Waits for the append under way; pends for ever where there is none. Cancel safe.
    pub async fn settled(&mut self) -> Result<Checkpoint> {
        let Some(task) = self.flying.as_mut() else { return std::future::pending().await };
        let joined = task.await;
        self.flying = None;
        let (publisher, outcome) = joined.map_err(|e| Error::bug("publisher panicked").source(e))?;
        let checkpoint = outcome?;
        self.idle = Some(publisher);
        Ok(checkpoint)
    }
}
