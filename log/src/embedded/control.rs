//! What is small: checkpoints, schemas, signals and bounds -> values in order; and waiting for new ones.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use lakeward_event::{Checkpoint, Ends, TableSchema};
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use super::error::Doing;
use super::store::{BEGIN, News, Store};
use crate::blocking::to_its_end;
use crate::{CheckpointReader, Error, PartitionUnread, Result, Retention, Signal, SignalReader, TopicUnread};

/// Values fetched at a time.
const BATCH: i64 = 1024;
/// A request to a connector that is not running is not meant for the one that starts tomorrow. Microseconds.
const SIGNAL_RETENTION: i64 = 3_600_000_000;
const READING: &str = "reading the log";
const SIGNALLING: &str = "sending a signal";

/// These are ours alone: what cannot be read was written by somebody else or a newer version, and nothing is skipped in
/// silence.
fn decode<T: DeserializeOwned>(value: &str, what: &'static str, path: &Path) -> Result<T> {
    serde_json::from_str(value).map_err(|e| {
        Error::human("the embedded log has a value that cannot be read: was it written by another version or program?")
            .with("file", path.display())
            .with("what", what)
            .source(e)
    })
}

/// The last committed checkpoint, as of the connection's transaction.
pub(super) async fn last(connection: &mut SqliteConnection, path: &Path, source: &str) -> Result<Option<Checkpoint>> {
    let value: Option<String> = sqlx::query_scalar(
        "SELECT c.value FROM checkpoints c JOIN sources s ON s.id = c.source WHERE s.name = ? ORDER BY c.id DESC LIMIT 1",
    )
    .bind(source)
    .fetch_optional(connection)
    .await
    .doing(path, READING)?;
    value.map(|value| decode(&value, "checkpoint", path)).transpose()
}

/// Every version of every table.
pub(super) async fn schemas(store: &Store, source: &str) -> Result<Vec<Arc<TableSchema>>> {
    let values: Vec<String> = sqlx::query_scalar(
        "SELECT c.value FROM schemas c JOIN sources s ON s.id = c.source WHERE s.name = ? ORDER BY c.table_id, c.version",
    )
    .bind(source)
    .fetch_all(&mut *store.reading().await?)
    .await
    .doing(&store.path, READING)?;
    let schema = |value: String| {
        let schema: TableSchema = decode(&value, "schema", &store.path)?;
        schema.validate().map_err(|e| {
            Error::human("a table schema in the embedded log is wrong").with("file", store.path.display()).source(e)
        })?;
        Ok(Arc::new(schema))
    };
    values.into_iter().map(schema).collect()
}

pub(super) async fn bounds(store: &Store, source: &str) -> Result<BTreeMap<String, BTreeMap<i32, (i64, i64)>>> {
    let rows = sqlx::query(
        "SELECT t.name, p.number, p.first_offset, p.end_offset
         FROM sources s JOIN topics t ON t.source = s.id JOIN partitions p ON p.topic = t.id WHERE s.name = ?",
    )
    .bind(source)
    .fetch_all(&mut *store.reading().await?)
    .await
    .doing(&store.path, READING)?;
    let mut bounds: BTreeMap<String, BTreeMap<i32, (i64, i64)>> = BTreeMap::new();
    for row in rows {
        bounds.entry(row.get(0)).or_default().insert(row.get(1), (row.get(2), row.get(3)));
    }
    Ok(bounds)
}

/// [`crate::Log::unread`]. Records have no time of their own: theirs is that of the first checkpoint that covers them.
pub(super) async fn unread(store: &Store, source: &str, held: &Ends) -> Result<BTreeMap<String, TopicUnread>> {
    let mut unread: BTreeMap<String, TopicUnread> = BTreeMap::new();
    for (topic, partitions) in bounds(store, source).await? {
        let of_topic = unread
            .entry(topic.clone())
            .or_insert_with(|| TopicUnread { retention: Retention::Held, partitions: BTreeMap::new() });
        for (partition, (first, end)) in partitions {
            let held = held.get(&topic).and_then(|of_topic| of_topic.get(&partition)).copied().unwrap_or(0);
            let from = held.max(first);
            let mut oldest = None;
            if from < end {
                // Names of topics hold nothing that JSON would escape.
                let path = format!("$.ends.\"{topic}\".\"{partition}\"");
                oldest = sqlx::query_scalar(
                    "SELECT json_extract(c.value, '$.wall_clock') FROM checkpoints c JOIN sources s ON s.id = c.source
                     WHERE s.name = ? AND json_extract(c.value, ?) > ? ORDER BY c.id LIMIT 1",
                )
                .bind(source)
                .bind(path)
                .bind(from)
                .fetch_optional(&mut *store.reading().await?)
                .await
                .doing(&store.path, READING)?;
            }
            of_topic.partitions.insert(partition, PartitionUnread { first, end, oldest });
        }
    }
    Ok(unread)
}

/// Writes a signal, and takes away those that nobody is meant to hear any more.
pub(super) async fn signal(store: Arc<Store>, source: &str, signal: &Signal) -> Result<()> {
    let value = serde_json::to_string(signal).map_err(|e| Error::bug("a signal cannot be written").source(e))?;
    let source = source.to_owned();
    to_its_end(async move {
        let (path, at) = (&store.path, crate::wall_clock()?);
        let mut guard = store.writing().await?;
        let mut transaction = guard.begin_with(BEGIN).await.doing(path, SIGNALLING)?;
        let written =
            sqlx::query("INSERT INTO signals (source, at, value) SELECT id, ?, ? FROM sources WHERE name = ?")
                .bind(at)
                .bind(value)
                .bind(&source)
                .execute(&mut *transaction)
                .await
                .doing(path, SIGNALLING)?;
        if written.rows_affected() == 0 {
            return Err(Error::human("no connector has ever run for this source, so nobody can be asked")
                .with("source", &source)
                .with("file", path.display()));
        }
        sqlx::query("DELETE FROM signals WHERE at < ?")
            .bind(at - SIGNAL_RETENTION)
            .execute(&mut *transaction)
            .await
            .doing(path, SIGNALLING)?;
        transaction.commit().await.doing(path, SIGNALLING)?;
        store.committed();
        Ok(())
    })
    .await
}

/// [`CheckpointReader`] on the embedded log.
pub(super) struct EmbeddedCheckpointReader {
    store: Arc<Store>,
    news: News,
    source: String,
    /// Everything up to this id was fetched.
    after: i64,
    /// Whether `after` is known to be of this log.
    known: bool,
    /// Fetched and not handed out yet.
    ready: VecDeque<Checkpoint>,
}

impl EmbeddedCheckpointReader {
    pub async fn open(store: Arc<Store>, source: &str, after: Option<i64>) -> Result<Self> {
        let (after, known) = match after {
            Some(after) => (after, after <= 0),
            // All that the log still has.
            None => (dropped_to(&store, source).await?, true),
        };
        Ok(Self { news: store.news(), store, source: source.to_owned(), after, known, ready: VecDeque::new() })
    }

    async fn fetch(&mut self) -> Result<()> {
        let rows = sqlx::query(
            "SELECT s.dropped_to, c.id, c.value,
                    EXISTS (SELECT 1 FROM checkpoints a WHERE a.source = s.id AND a.id = ?2)
             FROM sources s LEFT JOIN checkpoints c ON c.source = s.id AND c.id > ?2
             WHERE s.name = ?1 ORDER BY c.id LIMIT ?3",
        )
        .bind(&self.source)
        .bind(self.after)
        .bind(BATCH)
        .fetch_all(&mut *self.store.reading().await?)
        .await
        .doing(&self.store.path, READING)?;
        for row in rows {
            let (dropped_to, id): (i64, Option<i64>) = (row.get(0), row.get(1));
            if dropped_to > self.after {
                return Err(Error::human(
                    "checkpoints of the embedded log were dropped before they were read: was the lake set back, or is it \
                     another one?",
                )
                .with("source", &self.source)
                .with("after", self.after)
                .with("dropped_to", dropped_to));
            }
            if let Some(id) = id {
                // The sink's last one is never dropped (see `may_drop`), so one that is not there never was.
                self.known = self.known || row.get(3);
                if !self.known {
                    return Err(Error::human(
                        "the embedded log is not the one that the lake was filled from: was its file deleted? Lake and log \
                         begin anew together",
                    )
                    .with("source", &self.source)
                    .with("checkpoint", self.after)
                    .with("file", self.store.path.display()));
                }
                let value: &str = row.get(2);
                self.ready.push_back(decode(value, "checkpoint", &self.store.path)?);
                self.after = id;
            }
        }
        Ok(())
    }
}

/// The newest checkpoint that is not there any more; 0: all are.
async fn dropped_to(store: &Store, source: &str) -> Result<i64> {
    let dropped_to: Option<i64> = sqlx::query_scalar("SELECT dropped_to FROM sources WHERE name = ?")
        .bind(source)
        .fetch_optional(&mut *store.reading().await?)
        .await
        .doing(&store.path, READING)?;
    Ok(dropped_to.unwrap_or(0))
}

#[async_trait]
impl CheckpointReader for EmbeddedCheckpointReader {
    async fn next(&mut self) -> Result<Checkpoint> {
        loop {
            self.news.mark();
            if let Some(checkpoint) = self.try_next().await? {
                return Ok(checkpoint);
            }
            self.news.wait().await;
        }
    }

    async fn try_next(&mut self) -> Result<Option<Checkpoint>> {
        if self.ready.is_empty() {
            self.fetch().await?;
        }
        Ok(self.ready.pop_front())
    }
}

/// [`SignalReader`] on the embedded log.
pub(super) struct EmbeddedSignalReader {
    store: Arc<Store>,
    news: News,
    source: String,
    after: i64,
    ready: VecDeque<Signal>,
}

impl EmbeddedSignalReader {
    pub async fn open(store: Arc<Store>, source: &str) -> Result<Self> {
        // Of all sources: ids are given once, whatever was taken away since.
        let after: Option<i64> = sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'signals'")
            .fetch_optional(&mut *store.reading().await?)
            .await
            .doing(&store.path, READING)?;
        let after = after.unwrap_or(0);
        Ok(Self { news: store.news(), store, source: source.to_owned(), after, ready: VecDeque::new() })
    }
}

#[async_trait]
impl SignalReader for EmbeddedSignalReader {
    async fn next(&mut self) -> Result<Signal> {
        loop {
            if let Some(signal) = self.ready.pop_front() {
                return Ok(signal);
            }
            self.news.mark();
            let rows = sqlx::query(
                "SELECT g.id, g.value FROM signals g JOIN sources s ON s.id = g.source WHERE s.name = ? AND g.id > ?
                 ORDER BY g.id",
            )
            .bind(&self.source)
            .bind(self.after)
            .fetch_all(&mut *self.store.reading().await?)
            .await
            .doing(&self.store.path, READING)?;
            for row in &rows {
                self.ready.push_back(decode(row.get(1), "signal", &self.store.path)?);
                self.after = row.get(0);
            }
            if rows.is_empty() {
                self.news.wait().await;
            }
        }
    }
}
