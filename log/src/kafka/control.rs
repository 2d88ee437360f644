//! Reading the control topics, each of one partition: `<source>.__checkpoints`, `__schemas`, `__signals` -> values in order.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lakeward_event::codec::RecordRef;
use lakeward_event::{Checkpoint, TableSchema};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::client::{Client, blocking, drop_elsewhere};
use super::reader::Assigned;
use crate::{CheckpointReader, Error, Result, Signal, SignalReader};

/// The partition of every control topic.
pub(super) const PARTITION: i32 = 0;
/// How long a waiting reader stays in one call; also how long a reader that nobody waits for any more keeps its thread.
const WAIT_MS: i32 = 100;
/// What is committed is there: when it does not come for this long, no broker is behind it.
const STALL: Duration = Duration::from_secs(45);

/// Reads the records of a control topic from `start` to `end`. Blocks.
pub(super) fn read_range(
    client: &Arc<Client>,
    topic: &str,
    start: i64,
    end: i64,
    take: &mut dyn FnMut(&RecordRef<'_>) -> Result<()>,
) -> Result<()> {
    if start >= end {
        return Ok(());
    }
    let mut assigned = Assigned::new(client.clone())?;
    assigned.assign(topic, PARTITION, start)?;
    let result = read_below(&mut assigned, end, take, topic);
    drop_elsewhere(assigned);
    result
}

/// Reads on to `end`, which is committed. Blocks.
fn read_below(
    assigned: &mut Assigned,
    end: i64,
    take: &mut dyn FnMut(&RecordRef<'_>) -> Result<()>,
    topic: &str,
) -> Result<()> {
    let mut failure = None;
    let mut last_progress = (assigned.position(), Instant::now());
    loop {
        let reached = assigned.read_one(end, WAIT_MS, &mut |record| match take(record) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if reached {
            return Ok(());
        }
        if assigned.position() != last_progress.0 {
            last_progress = (assigned.position(), Instant::now());
        } else if last_progress.1.elapsed() > STALL {
            return Err(Error::retry("Kafka sends no records that it has: is a broker away?")
                .with("topic", topic)
                .with("offset", assigned.position())
                .with("end_offset", end));
        }
    }
}

/// The JSON value of a control record. These are ours alone: what cannot be read was written by somebody else or a newer
/// version, and nothing is skipped in silence.
pub(super) fn decode<T: DeserializeOwned>(record: &RecordRef<'_>) -> Result<T> {
    let fail =
        |message: &str| Error::human(message.to_owned()).with("topic", record.topic).with("offset", record.offset);
    let value = record.value.ok_or_else(|| fail("a control record has no value"))?;
    serde_json::from_slice(value)
        .map_err(|e| fail("a control record cannot be read: was it written by another version or program?").source(e))
}

/// Every version of every table. Blocks.
pub(super) fn schemas(client: &Arc<Client>, topic: &str) -> Result<Vec<Arc<TableSchema>>> {
    if client.topic(topic)?.is_none() {
        return Ok(Vec::new());
    }
    let (low, high) = client.watermarks(topic, PARTITION)?;
    // Compaction leaves the last of each key, at some time: until then there can be several, all alike.
    let mut found: BTreeMap<(String, u32), Arc<TableSchema>> = BTreeMap::new();
    read_range(client, topic, low, high, &mut |record| {
        let schema: TableSchema = decode(record)?;
        schema.validate().map_err(|e| {
            Error::human("a table schema is wrong").with("topic", topic).with("offset", record.offset).source(e)
        })?;
        found.insert((schema.table.to_string(), schema.version), Arc::new(schema));
        Ok(())
    })?;
    Ok(found.into_values().collect())
}

/// The key under which a schema is compacted.
pub(super) fn schema_key(schema: &TableSchema) -> Vec<u8> {
    serde_json::json!([schema.table.schema, schema.table.name, schema.version]).to_string().into_bytes()
}

/// Values of a control topic as they come. What was read and not yet handed out is kept here, so that a waiting call can be
/// dropped at any time.
struct Tail<T> {
    client: Arc<Client>,
    topic: String,
    assigned: Assigned,
    ready: VecDeque<T>,
    /// Set by the blocking part, told by the next call.
    failure: Option<Error>,
    /// The committed end when it was last asked for.
    known_end: i64,
}

impl<T: DeserializeOwned> Tail<T> {
    fn new(client: Arc<Client>, topic: &str, start: i64) -> Result<Self> {
        let mut assigned = Assigned::new(client.clone())?;
        assigned.assign(topic, PARTITION, start)?;
        Ok(Self { client, topic: topic.to_owned(), assigned, ready: VecDeque::new(), failure: None, known_end: start })
    }

    fn next(&mut self) -> Result<Option<T>> {
        match self.ready.pop_front() {
            Some(value) => Ok(Some(value)),
            None => self.failure.take().map_or(Ok(None), Err),
        }
    }

    /// Reads what comes within a moment. Blocks.
    fn wait(&mut self) {
        let Self { assigned, ready, failure, .. } = self;
        let mut undecodable = None;
        let result = assigned.read_one(i64::MAX, WAIT_MS, &mut |record| match decode(record) {
            Ok(value) => {
                ready.push_back(value);
                ControlFlow::Continue(())
            }
            Err(error) => {
                undecodable = Some(error);
                ControlFlow::Break(())
            }
        });
        *failure = undecodable.or(result.err());
    }

    /// Reads until there is a value or the committed end. Blocks.
    fn catch_up(&mut self) {
        let result = (|| -> Result<()> {
            if self.assigned.position() >= self.known_end {
                self.known_end = self.client.watermarks(&self.topic, PARTITION)?.1;
            }
            // A step at a time, so that the first value of a long log does not wait for the last.
            while self.ready.is_empty() && self.assigned.position() < self.known_end {
                let step = self.known_end.min(self.assigned.position() + 1024);
                let ready = &mut self.ready;
                read_below(
                    &mut self.assigned,
                    step,
                    &mut |record| {
                        ready.push_back(decode(record)?);
                        Ok(())
                    },
                    &self.topic,
                )?;
            }
            Ok(())
        })();
        self.failure = result.err();
    }
}

/// A [`Tail`] shared with the thread that reads for it.
struct SharedTail<T: Send + 'static> {
    tail: Option<Arc<Mutex<Tail<T>>>>,
}

impl<T: DeserializeOwned + Send + 'static> SharedTail<T> {
    fn new(tail: Tail<T>) -> Self {
        Self { tail: Some(Arc::new(Mutex::new(tail))) }
    }

    /// Runs one blocking step unless a value is ready, and takes the next value. Cancel safe: a value leaves the tail only with
    /// the answer.
    async fn step(&self, work: fn(&mut Tail<T>)) -> Result<Option<T>> {
        let Some(tail) = &self.tail else { return Err(Error::bug("a reader is used after its end")) };
        let mut guard = tail.clone().lock_owned().await;
        if let Some(value) = guard.next()? {
            return Ok(Some(value));
        }
        let mut guard = blocking(move || {
            work(&mut guard);
            guard
        })
        .await;
        guard.next()
    }

    async fn next(&self) -> Result<T> {
        loop {
            if let Some(value) = self.step(Tail::wait).await? {
                return Ok(value);
            }
        }
    }
}

impl<T: Send + 'static> Drop for SharedTail<T> {
    fn drop(&mut self) {
        if let Some(tail) = self.tail.take() {
            drop_elsewhere(tail);
        }
    }
}

/// [`CheckpointReader`] on Kafka.
pub(super) struct KafkaCheckpointReader {
    tail: SharedTail<Checkpoint>,
    topic: String,
    after: i64,
    /// Whether `after` is known to be of this log.
    known: bool,
}

impl KafkaCheckpointReader {
    /// Starts at `start`, an offset at or below the checkpoint `after`; None: the first one that is to be read. May block.
    pub fn new(client: Arc<Client>, topic: &str, start: i64, after: Option<i64>) -> Result<Self> {
        Ok(Self {
            tail: SharedTail::new(Tail::new(client, topic, start)?),
            topic: topic.to_owned(),
            after: after.unwrap_or(i64::MIN),
            known: after.is_none_or(|after| after <= 0),
        })
    }

    /// The checkpoint, unless it is not above `after`.
    fn take(&mut self, checkpoint: Checkpoint) -> Result<Option<Checkpoint>> {
        self.known |= checkpoint.id == self.after;
        if checkpoint.id <= self.after {
            return Ok(None);
        }
        // Checkpoints are never dropped, so one that is not there never was. Offsets of this log mean nothing to the lake, which
        // would take new records for ones that it holds.
        if !self.known {
            return Err(Error::human(
                "the log is not the one that the lake was filled from: were the source's topics deleted, or are these other \
                 brokers? Bring them back, or begin the source anew (docs/log.md, Beginning a source anew)",
            )
            .with("topic", &self.topic)
            .with("checkpoint", self.after));
        }
        self.after = checkpoint.id;
        Ok(Some(checkpoint))
    }
}

#[async_trait]
impl CheckpointReader for KafkaCheckpointReader {
    async fn next(&mut self) -> Result<Checkpoint> {
        loop {
            let checkpoint = self.tail.next().await?;
            if let Some(checkpoint) = self.take(checkpoint)? {
                return Ok(checkpoint);
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<Checkpoint>> {
        while let Some(checkpoint) = self.tail.step(Tail::catch_up).await? {
            if let Some(checkpoint) = self.take(checkpoint)? {
                return Ok(Some(checkpoint));
            }
        }
        Ok(None)
    }
}

/// [`SignalReader`] on Kafka.
pub(super) struct KafkaSignalReader {
    tail: SharedTail<Signal>,
}

impl KafkaSignalReader {
    pub fn new(client: Arc<Client>, topic: &str, start: i64) -> Result<Self> {
        Ok(Self { tail: SharedTail::new(Tail::new(client, topic, start)?) })
    }
}

#[async_trait]
impl SignalReader for KafkaSignalReader {
    async fn next(&mut self) -> Result<Signal> {
        self.tail.next().await
    }
}
