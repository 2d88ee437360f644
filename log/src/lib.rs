//! The durable log between stages: what a source's connector appends and everybody else reads.
//!
//! `connectors -> Writer::append -> topics -> Log::records, Log::checkpoints -> sink`
//!
//! # Layout
//! - this file: the contract, and the rules every implementation keeps
//! - [`conformance`]: the suite that tests each rule, against every implementation
//! - [`kafka`]: Apache Kafka through librdkafka
//! - [`embedded`]: one SQLite file, for a single machine
//! - [`registry`]: the schema registry of the codec `avro`
//! - `unread`: what a reader has yet to read, and how long it has for it
//!
//! # The contract
//! A source's log is a set of topics with partitions, and offsets within each partition.
//!
//! - **Atomicity.** [`Writer::append`] makes its records and its checkpoint readable together or not at all, whatever dies when.
//! - **Order.** Records of one append keep their order within a partition; an append's records follow those of the append
//!   before. Offsets grow but are neither dense nor gapless.
//! - **Durability.** When `append` has returned `Ok`, the records survive the death of every process of ours, and nothing but
//!   their retention removes them. Readers see them soon after, not always before it returns.
//! - **Fencing.** [`Log::writer`] ends every older writer of the source: once it has returned, none of their appends can
//!   become readable. Only then is the last checkpoint read, so it is the last.
//! - **Outcome unknown.** An `append` that fails has either happened or not; the writer is spent. A new [`Log::writer`] tells which.
//! - **Reading.** Readers see committed records only, name the offsets they start from, and get each record once and in
//!   order per partition. An offset below the log's start is an error (the log was cut off), never a reset.
//! - **Checkpoints** are read in order of id, none left out. Reading on from one that was dropped is an error too.
//! - **Retention.** A log keeps records for a time (Kafka), or until the one sink that reads it says that it holds them
//!   ([`Log::may_drop`], embedded). The last checkpoint and every schema stay.

mod blocking;
pub mod conformance;
pub mod embedded;
pub mod kafka;
pub mod registry;
mod unread;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use lakeward_event::codec::{RecordBlock, RecordRef};
use lakeward_event::{Checkpoint, CheckpointDraft, Ends, TableSchema};
use lakeward_runtime::config::LogConfig;
pub use lakeward_runtime::error::{Error, Result};
pub use unread::{PartitionUnread, Retention, TopicUnread};

/// Records for one topic within an append.
#[derive(Debug)]
pub struct TopicBlock {
    pub topic: String,
    pub block: RecordBlock,
}

/// Every so many checkpoints, and the first of a writer, hold all end offsets. A reader that joins late reads at most so many
/// to know every end, and a source of a thousand partitions adds 15 KiB to one checkpoint a minute.
pub const COMPLETE_EVERY: u32 = 64;

/// The configured log; `name` is the configuration's name. Nothing is connected to or opened before the first call.
pub fn open(config: &LogConfig, name: &str) -> Result<Arc<dyn Log>> {
    match config {
        LogConfig::Kafka(config) => kafka::KafkaLog::open(config, name),
        LogConfig::Embedded(config) => Ok(embedded::EmbeddedLog::open(config)),
    }
}

/// Which topics are meant, by name.
pub type TopicFilter = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// First and end offset by topic and partition.
pub type Bounds = BTreeMap<String, BTreeMap<i32, (i64, i64)>>;

/// A log that holds any number of sources. Cheap to clone behind its `Arc`.
#[async_trait]
pub trait Log: Send + Sync {
    /// Ends older writers of `source`, settles what they left, and returns the last committed checkpoint.
    async fn writer(&self, source: &str) -> Result<(Box<dyn Writer>, Option<Checkpoint>)>;

    /// The last committed checkpoint, without disturbing the source's writer.
    async fn last_checkpoint(&self, source: &str) -> Result<Option<Checkpoint>>;

    /// Checkpoints with an id above `after` (None: all that the log still has), in order, waiting for new ones. Where `after`
    /// (above 0) was never one of its checkpoints, the first of them is an error instead: it is not the log that the reader knows.
    async fn checkpoints(&self, source: &str, after: Option<i64>) -> Result<Box<dyn CheckpointReader>>;

    /// A reader of data records with nothing assigned yet.
    async fn records(&self, source: &str) -> Result<Box<dyn RecordReader>>;

    /// Every schema version of every table of the source, as of now.
    async fn schemas(&self, source: &str) -> Result<Vec<Arc<TableSchema>>>;

    /// Asks the source's running connector for something; it is answered by what the connector does.
    async fn signal(&self, source: &str, signal: &Signal) -> Result<()>;

    /// Signals written after this call returned, in order. A connector calls it at its start.
    async fn signals(&self, source: &str) -> Result<Box<dyn SignalReader>>;

    /// First and end offset by topic and partition of the source's topics (on Kafka control topics too).
    async fn bounds(&self, source: &str) -> Result<Bounds>;

    /// First and end offset of topics that others write, where the log is one that others can write to.
    async fn foreign_bounds(&self, _wanted: TopicFilter) -> Result<Bounds> {
        Err(Error::configuration(
            "topics that others write can only be read from Kafka: set `kind = \"kafka\"` in [log]",
        ))
    }

    /// What somebody who holds everything below `held` has yet to read of the source's data topics, as of the last checkpoint.
    async fn unread(&self, source: &str, held: &Ends) -> Result<BTreeMap<String, TopicUnread>>;

    /// The same of topics that others write, up to what is committed.
    async fn foreign_unread(&self, wanted: TopicFilter, _held: &Ends) -> Result<BTreeMap<String, TopicUnread>> {
        self.foreign_bounds(wanted).await.map(|_| BTreeMap::new())
    }

    /// Advice of the sink: nobody will read records below these ends, nor checkpoints below the id `checkpoint`, again. A log
    /// that keeps them anyway is right too; what was advised is never read back.
    async fn may_drop(&self, _source: &str, _below: &Ends, _checkpoint: i64) -> Result<()> {
        Ok(())
    }
}

/// The wall clock, microseconds since 1970.
fn wall_clock() -> Result<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.map_err(|e| Error::human("the clock is before 1970").source(e))?;
    i64::try_from(since.as_micros()).map_err(|e| Error::human("the clock is beyond its range").source(e))
}

/// Makes a checkpoint of a draft. `ends`: of what was touched, or of everything where `complete`.
fn checkpoint(draft: CheckpointDraft, last_id: i64, ends: Ends, complete: bool) -> Result<Checkpoint> {
    let wall_clock = wall_clock()?;
    Ok(Checkpoint { id: wall_clock.max(last_id + 1), draft, wall_clock, ends, complete })
}

/// The one living writer of a source.
#[async_trait]
pub trait Writer: Send {
    /// Makes sure that the topic exists, and returns its number of partitions.
    async fn ensure_topic(&mut self, topic: &str) -> Result<i32>;

    /// Appends the schema records (to `<source>.__schemas`), the blocks in their order, and last a checkpoint made of
    /// `draft`. The draft is completed with id, wall clock and end offsets, and returned.
    async fn append(
        &mut self,
        schemas: &[Arc<TableSchema>],
        blocks: Vec<TopicBlock>,
        draft: CheckpointDraft,
    ) -> Result<Checkpoint>;
}

/// Checkpoints of a source, in order.
#[async_trait]
pub trait CheckpointReader: Send {
    /// The next one; waits until there is one. Cancel safe.
    async fn next(&mut self) -> Result<Checkpoint>;
    /// The next one if it is committed already.
    async fn try_next(&mut self) -> Result<Option<Checkpoint>>;
}

/// Records of topic-partitions that the caller assigns, up to ends that it names.
#[async_trait]
pub trait RecordReader: Send {
    /// Starts a partition at `offset` (inclusive). A partition is assigned once.
    async fn assign(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()>;

    /// Hands the visitor every record below `ends` that it has not seen, in order per partition (partitions interleave
    /// freely), and returns when all partitions in `ends` have reached their end. Partitions in `ends` must be assigned.
    /// Records at or above an end are kept for the next call. The visitor comes back even when it broke off.
    async fn read_to(&mut self, ends: &Ends, visitor: Box<dyn RecordVisitor>) -> Result<Box<dyn RecordVisitor>>;
}

/// What takes records as they are read, on a thread where blocking is allowed.
pub trait RecordVisitor: Send {
    fn record(&mut self, record: &RecordRef<'_>) -> ControlFlow<()>;
    /// For getting the concrete visitor back.
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send>;
}

/// A request to a source's connector.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "signal", rename_all = "snake_case")]
pub enum Signal {
    /// Place a cut exactly at this LSN: after the last commit at or before it. Used by `verify`.
    Cut { request: String, lsn: u64 },
    /// Take the tables' (`schema.name`) snapshot again.
    Snapshot { request: String, tables: Vec<String> },
}

#[async_trait]
pub trait SignalReader: Send {
    /// The next signal; waits. Cancel safe.
    async fn next(&mut self) -> Result<Signal>;
}
