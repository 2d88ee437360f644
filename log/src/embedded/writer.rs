//! The one living writer of a source: blocks and a draft -> one SQLite transaction, its checkpoint last.
//!
//! `pack -> begin, fence -> schemas, blocks, ends -> checkpoint -> commit`
//!
//! A source's row has the epoch of the writer that may append. Opening a writer raises it; an append looks at it inside its own
//! transaction, and SQLite has one writing transaction at a time: what an older writer has not committed by then never is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use lakeward_event::names::is_data_topic;
use lakeward_event::{Checkpoint, CheckpointDraft, Ends, TableSchema};
use lakeward_runtime::crash_point;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use super::block::{Block, Packer};
use super::error::Doing;
use super::store::{BEGIN, Store};
use crate::blocking::{blocking, to_its_end};
use crate::{COMPLETE_EVERY, Error, Result, TopicBlock, Writer};

const OPENING: &str = "opening the log's writer";
const CREATING: &str = "making a topic in the log";
const APPENDING: &str = "appending to the log";

/// A topic of the source.
#[derive(Debug)]
struct Topic {
    id: i64,
    /// By partition, which count from 0.
    ends: BTreeMap<i32, i64>,
}

/// What a writer knows; away during an append.
#[derive(Debug)]
struct State {
    store: Arc<Store>,
    source: String,
    source_id: i64,
    epoch: i64,
    last_id: i64,
    topics: BTreeMap<String, Topic>,
    /// Checkpoints to go until the next complete one.
    until_complete: u32,
}

/// Blocks of one topic-partition, from offset `first` on.
#[derive(Debug)]
struct Packed {
    topic: String,
    topic_id: i64,
    partition: i32,
    first: i64,
    blocks: Vec<Block>,
}

pub(super) struct EmbeddedWriter {
    /// None: an append failed or was abandoned, and whether it happened only a new writer can tell.
    state: Option<State>,
    source: String,
}

impl EmbeddedWriter {
    /// Ends older writers, and reads the last checkpoint in the same transaction.
    pub async fn open(store: Arc<Store>, source: &str) -> Result<(Self, Option<Checkpoint>)> {
        let source = source.to_owned();
        let (state, last) = to_its_end(State::open(store, source.clone())).await?;
        Ok((Self { state: Some(state), source }, last))
    }

    fn spent(&self) -> Error {
        Error::retry("the log's writer is spent, since its last append failed: open a new one")
            .with("source", &self.source)
    }
}

#[async_trait]
impl Writer for EmbeddedWriter {
    async fn ensure_topic(&mut self, topic: &str) -> Result<i32> {
        let Some(state) = &mut self.state else { return Err(self.spent()) };
        state.ensure_topic(topic).await
    }

    async fn append(
        &mut self,
        schemas: &[Arc<TableSchema>],
        blocks: Vec<TopicBlock>,
        draft: CheckpointDraft,
    ) -> Result<Checkpoint> {
        for block in &blocks {
            self.ensure_topic(&block.topic).await?;
        }
        let Some(state) = self.state.take() else { return Err(self.spent()) };
        let schemas = schemas.to_vec();
        // On a task of its own: a caller that goes away must not leave a transaction open.
        let (state, checkpoint) = to_its_end(async move {
            let begun = Instant::now();
            let (records, bytes) =
                blocks.iter().fold((0, 0), |(records, bytes), b| (records + b.block.len(), bytes + b.block.bytes()));
            let (mut state, packed) = blocking(move || {
                let packed = state.pack(blocks)?;
                Ok::<_, Error>((state, packed))
            })
            .await?;
            let checkpoint = state.append(&schemas, packed, draft).await?;
            state.measure(records, bytes, begun);
            Ok::<_, Error>((state, checkpoint))
        })
        .await
        .map_err(|e| e.with("source", &self.source))?;
        self.state = Some(state);
        Ok(checkpoint)
    }
}

impl State {
    async fn open(store: Arc<Store>, source: String) -> Result<(Self, Option<Checkpoint>)> {
        let path = store.path.clone();
        let mut guard = store.writing().await?;
        let mut transaction = guard.begin_with(BEGIN).await.doing(&path, OPENING)?;
        let row = sqlx::query(
            "INSERT INTO sources (name, epoch) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET epoch = epoch + 1
             RETURNING id, epoch",
        )
        .bind(&source)
        .fetch_one(&mut *transaction)
        .await
        .doing(&path, OPENING)?;
        let (source_id, epoch) = (row.get(0), row.get(1));
        let last = super::control::last(&mut transaction, &path, &source).await?;
        let rows = sqlx::query(
            "SELECT t.name, t.id, p.number, p.end_offset FROM topics t JOIN partitions p ON p.topic = t.id
             WHERE t.source = ?",
        )
        .bind(source_id)
        .fetch_all(&mut *transaction)
        .await
        .doing(&path, OPENING)?;
        transaction.commit().await.doing(&path, OPENING)?;
        drop(guard);

        let mut topics: BTreeMap<String, Topic> = BTreeMap::new();
        for row in rows {
            let topic = topics.entry(row.get(0)).or_insert_with(|| Topic { id: row.get(1), ends: BTreeMap::new() });
            topic.ends.insert(row.get(2), row.get(3));
        }
        let last_id = last.as_ref().map_or(0, |checkpoint| checkpoint.id);
        Ok((Self { store, source, source_id, epoch, last_id, topics, until_complete: 0 }, last))
    }

    async fn ensure_topic(&mut self, topic: &str) -> Result<i32> {
        let count = |ends: &BTreeMap<i32, i64>| {
            i32::try_from(ends.len()).map_err(|e| Error::bug("too many partitions").source(e))
        };
        if let Some(known) = self.topics.get(topic) {
            return count(&known.ends);
        }
        if !topic.starts_with(&format!("{}.", self.source)) || !is_data_topic(&self.source, topic) {
            return Err(Error::bug("not a data topic of the source").with("source", &self.source).with("topic", topic));
        }
        let (store, source_id, name) = (self.store.clone(), self.source_id, topic.to_owned());
        let made = to_its_end(async move { create_topic(&store, source_id, &name).await }).await?;
        let count = count(&made.ends)?;
        self.topics.insert(topic.to_owned(), made);
        Ok(count)
    }

    /// Gathers the records of each topic-partition, in their order. Blocks the thread.
    fn pack(&self, blocks: Vec<TopicBlock>) -> Result<Vec<Packed>> {
        let mut packers: BTreeMap<String, BTreeMap<i32, Packer>> = BTreeMap::new();
        for TopicBlock { topic, block } in blocks {
            let Some(known) = self.topics.get(&topic) else {
                return Err(Error::bug("a block for a topic that was not ensured").with("topic", &topic));
            };
            let of_topic = packers.entry(topic.clone()).or_default();
            for record in block.iter() {
                if !known.ends.contains_key(&record.partition) {
                    return Err(Error::bug("a record for a partition that the topic does not have")
                        .with("topic", &topic)
                        .with("partition", record.partition));
                }
                let packer = of_topic.entry(record.partition).or_insert_with(|| Packer::new(self.store.compress()));
                packer.push(&record).map_err(|_| {
                    Error::human("a record is larger than the embedded log takes (1 GB): exclude the table")
                        .with("topic", &topic)
                })?;
            }
        }
        let mut packed = Vec::new();
        for (topic, partitions) in packers {
            for (partition, packer) in partitions {
                let Some((topic_id, first)) =
                    self.topics.get(&topic).and_then(|known| Some((known.id, *known.ends.get(&partition)?)))
                else {
                    return Err(Error::bug("a topic is gone").with("topic", &topic));
                };
                packed.push(Packed { topic: topic.clone(), topic_id, partition, first, blocks: packer.finish() });
            }
        }
        Ok(packed)
    }

    async fn append(
        &mut self,
        schemas: &[Arc<TableSchema>],
        packed: Vec<Packed>,
        draft: CheckpointDraft,
    ) -> Result<Checkpoint> {
        let store = self.store.clone();
        let path = &store.path;
        let mut guard = store.writing().await?;
        let mut transaction = guard.begin_with(BEGIN).await.doing(path, APPENDING)?;
        self.fence(&mut transaction).await?;
        crash_point!("log.append.begun");

        for schema in schemas {
            let value =
                serde_json::to_string(schema).map_err(|e| Error::bug("a schema cannot be written").source(e))?;
            sqlx::query("INSERT OR REPLACE INTO schemas (source, table_id, version, value) VALUES (?, ?, ?, ?)")
                .bind(self.source_id)
                .bind(schema.table.to_string())
                .bind(schema.version)
                .bind(value)
                .execute(&mut *transaction)
                .await
                .doing(path, APPENDING)?;
        }
        let mut touched = Ends::new();
        for run in packed {
            let mut offset = run.first;
            for block in run.blocks {
                let end = offset + block.records;
                sqlx::query(
                    "INSERT INTO blocks (topic, partition, first_offset, end_offset, records) VALUES (?, ?, ?, ?, ?)",
                )
                .bind(run.topic_id)
                .bind(run.partition)
                .bind(offset)
                .bind(end)
                .bind(block.bytes)
                .execute(&mut *transaction)
                .await
                .doing(path, APPENDING)?;
                offset = end;
            }
            sqlx::query("UPDATE partitions SET end_offset = ? WHERE topic = ? AND number = ?")
                .bind(offset)
                .bind(run.topic_id)
                .bind(run.partition)
                .execute(&mut *transaction)
                .await
                .doing(path, APPENDING)?;
            touched.entry(run.topic).or_default().insert(run.partition, offset);
        }
        crash_point!("log.append.data_sent");

        for (topic, partitions) in &touched {
            if let Some(topic) = self.topics.get_mut(topic) {
                topic.ends.extend(partitions);
            }
        }
        let complete = self.until_complete == 0;
        let all = || self.topics.iter().map(|(name, topic)| (name.clone(), topic.ends.clone())).collect();
        let checkpoint = crate::checkpoint(draft, self.last_id, if complete { all() } else { touched }, complete)?;
        let value =
            serde_json::to_string(&checkpoint).map_err(|e| Error::bug("a checkpoint cannot be written").source(e))?;
        sqlx::query("INSERT INTO checkpoints (source, id, value) VALUES (?, ?, ?)")
            .bind(self.source_id)
            .bind(checkpoint.id)
            .bind(value)
            .execute(&mut *transaction)
            .await
            .doing(path, APPENDING)?;
        crash_point!("log.append.checkpoint_sent");
        crash_point!("log.append.before_commit");
        transaction.commit().await.doing(path, APPENDING)?;
        crash_point!("log.append.committed");

        store.committed();
        self.last_id = checkpoint.id;
        self.until_complete = if complete { COMPLETE_EVERY - 1 } else { self.until_complete - 1 };
        Ok(checkpoint)
    }

    /// Whether this is still the source's writer, as of the transaction.
    async fn fence(&self, transaction: &mut SqliteConnection) -> Result<()> {
        let epoch: Option<i64> = sqlx::query_scalar("SELECT epoch FROM sources WHERE id = ?")
            .bind(self.source_id)
            .fetch_optional(transaction)
            .await
            .doing(&self.store.path, APPENDING)?;
        if epoch == Some(self.epoch) {
            return Ok(());
        }
        Err(Error::human("another connector for this source has taken over: only one may run")
            .with("file", self.store.path.display()))
    }

    fn measure(&self, records: usize, bytes: usize, begun: Instant) {
        let count = |total: usize| u64::try_from(total).unwrap_or(u64::MAX);
        let source = || self.source.clone();
        metrics::histogram!("lakeward_log_append_seconds", "source" => source()).record(begun.elapsed());
        metrics::counter!("lakeward_log_records_total", "source" => source()).increment(count(records));
        metrics::counter!("lakeward_log_bytes_total", "source" => source()).increment(count(bytes));
    }
}

/// The topic, made if it is missing.
async fn create_topic(store: &Store, source_id: i64, name: &str) -> Result<Topic> {
    let path = &store.path;
    let mut guard = store.writing().await?;
    let mut transaction = guard.begin_with(BEGIN).await.doing(path, CREATING)?;
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO topics (source, name) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id",
    )
    .bind(source_id)
    .bind(name)
    .fetch_one(&mut *transaction)
    .await
    .doing(path, CREATING)?;
    let partitions = "SELECT number, end_offset FROM partitions WHERE topic = ?";
    let mut rows = sqlx::query(partitions).bind(id).fetch_all(&mut *transaction).await.doing(path, CREATING)?;
    if rows.is_empty() {
        for number in 0..store.partitions {
            sqlx::query("INSERT INTO partitions (topic, number) VALUES (?, ?)")
                .bind(id)
                .bind(number)
                .execute(&mut *transaction)
                .await
                .doing(path, CREATING)?;
        }
        rows = sqlx::query(partitions).bind(id).fetch_all(&mut *transaction).await.doing(path, CREATING)?;
    }
    transaction.commit().await.doing(path, CREATING)?;
    Ok(Topic { id, ends: rows.iter().map(|row| (row.get(0), row.get(1))).collect() })
}
