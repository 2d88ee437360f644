//! One worker per source, in lockstep with its checkpoints.
//!
//! `Log::checkpoints, Log::records -> decoders -> SinkTable (pending) -> at a cut: all tables commit -> checkpoint row`
//!
//! A worker that fails is made anew from what the lake holds: nothing else is remembered. Each table is read from its own
//! offsets, so what it has already is not read again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use lakeward_event::codec::json::JsonDecoder;
use lakeward_event::codec::{Decoder, RecordRef};
use lakeward_event::{Checkpoint, Ends, TableId, TableSchema, names};
use lakeward_lake::system::{CheckpointTable, DeadLetter};
use lakeward_log::{CheckpointReader, Log, RecordReader, RecordVisitor};
use lakeward_runtime::config::{Codec, Config, SourceConfig};
use lakeward_runtime::{Error, Result};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::commit::{committed_of, raise};
use crate::cut::{Cutter, NoRow, RowState, TableAt, row};
use crate::dead_letter::{self, Places};
use crate::table::{Pending, Shared, SinkTable, full_name, ident, source_of};
use crate::{checkpoints, Until};

/// Checkpoints looked ahead: enough to see how far behind the worker is.
const LOOK_AHEAD: usize = 4_096;
/// Records read in one go while checkpoints are many and small.
const RECORDS_PER_READ: i64 = 65_536;
/// Tables that commit at the same time: commits mostly wait for storage.
const COMMITS_AT_ONCE: usize = 8;
/// How long a worker that waits for somebody else's part of a cut sleeps before it looks again.
const WAIT_FOR_TABLES: Duration = Duration::from_millis(200);

/// What all workers of a sink share.
pub struct Sink {
    pub config: Config,
    pub shared: Arc<Shared>,
    pub log: Arc<dyn Log>,
    pub codec: Codec,
    pub rows: CheckpointTable,
    /// On topic names; None: all tables.
    pub tables: Option<globset::GlobMatcher>,
    pub until: Until,
}

/// The schemas of a source's log, read again when a version is unknown.
struct Schemas {
    log: Arc<dyn Log>,
    source: String,
    known: RwLock<HashMap<(String, u32), Arc<TableSchema>>>,
}

impl Schemas {
    async fn refresh(&self) -> Result<()> {
        let all = self.log.schemas(&self.source).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(all.into_iter().map(|s| ((names::topic(&s.table), s.version), s)));
        Ok(())
    }

    fn get(&self, topic: &str, version: u32) -> Option<Arc<TableSchema>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(topic.to_owned(), version)).cloned()
    }

    fn table(&self, topic: &str) -> Option<TableId> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|((t, _), _)| t == topic).map(|(_, schema)| schema.table.clone())
    }
}

/// Decodes records as they are read.
struct Visitor {
    source: String,
    schemas: Arc<Schemas>,
    handle: Handle,
    topics: HashMap<String, TopicDecoder>,
    letters: Vec<(String, DeadLetter)>,
    /// A failure that is no record's fault.
    failure: Option<Error>,
}

struct TopicDecoder {
    decoder: Box<dyn Decoder>,
    places: Places,
    table: String,
}

impl Visitor {
    fn take(&mut self, record: &RecordRef<'_>) {
        let Some(topic) = self.topics.get_mut(record.topic) else { return };
        let first = topic.decoder.rows();
        match topic.decoder.push(record) {
            Ok(()) => {
                if topic.decoder.rows() > first {
                    topic.places.push(first as u32, record.partition, record.offset);
                }
            }
            Err(error) => {
                let letter = dead_letter::of_record(&self.source, &topic.table, record, &error);
                self.letters.push((record.topic.to_owned(), letter));
            }
        }
    }
}

impl RecordVisitor for Visitor {
    fn record(&mut self, record: &RecordRef<'_>) -> ControlFlow<()> {
        self.take(record);
        ControlFlow::Continue(())
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

/// A source's worker, from one start to its end.
pub struct Worker {
    sink: Arc<Sink>,
    source: SourceConfig,
    schemas: Arc<Schemas>,
    /// By topic.
    tables: BTreeMap<String, SinkTable>,
    /// Tables of the source that other sinks write, by topic.
    others: BTreeMap<String, TableId>,
    checkpoints: Box<dyn CheckpointReader>,
    records: Box<dyn RecordReader>,
    /// None while records are read.
    visitor: Option<Box<Visitor>>,
    /// Where each partition was first assigned.
    assigned: BTreeMap<(String, i32), i64>,
    /// End offsets known so far, of all topics.
    ends: Ends,
    queue: VecDeque<Checkpoint>,
    cutter: Cutter,
    state: RowState,
    /// Bytes of pending changes that make tables commit before the next cut.
    budget: usize,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Worker {
    /// Loads what the lake has of the source, and starts reading there.
    pub async fn open(sink: Arc<Sink>, source: SourceConfig) -> Result<Self> {
        let (state, watermark) = checkpoints::state(&sink.rows, &source.name).await?;
        let schemas =
            Arc::new(Schemas { log: sink.log.clone(), source: source.name.clone(), known: RwLock::default() });
        schemas.refresh().await?;
        let config = &sink.config;
        let cutter = Cutter::new(micros(config.checkpoint_interval), micros(config.sink.commit_interval), watermark);
        let sources = config.sources.len().max(1) as u64;
        let mut worker = Self {
            checkpoints: sink.log.checkpoints(&source.name, state.checkpoint).await?,
            records: sink.log.records(&source.name).await?,
            visitor: Some(Box::new(Visitor {
                source: source.name.clone(),
                schemas: schemas.clone(),
                handle: Handle::current(),
                topics: HashMap::new(),
                letters: Vec::new(),
                failure: None,
            })),
            schemas,
            tables: BTreeMap::new(),
            others: BTreeMap::new(),
            assigned: BTreeMap::new(),
            ends: Ends::new(),
            queue: VecDeque::new(),
            cutter,
            state,
            // A commit holds the changes, the index of them, the gathered columns and Parquet's buffers.
            budget: usize::try_from(config.sink.memory / sources / 4).unwrap_or(usize::MAX),
            sink: sink.clone(),
            source,
        };
        worker.load_tables().await?;
        Ok(worker)
    }

    /// Finds the tables of the source that the lake has.
    async fn load_tables(&mut self) -> Result<()> {
        let (own, prefix) = (self.source.name.clone(), format!("{}__", self.source.name));
        for ident in self.sink.shared.lake.tables().await? {
            let namespace = ident.namespace().join(".");
            if namespace != own && !namespace.starts_with(&prefix) {
                continue;
            }
            let Some(table) = self.sink.shared.lake.load(&ident).await? else { continue };
            if let Some(id) = source_of(&table).filter(|id| id.source == self.source.name) {
                self.add_table(id).await?;
            }
        }
        Ok(())
    }

    async fn add_table(&mut self, id: TableId) -> Result<()> {
        let topic = names::topic(&id);
        if self.sink.tables.as_ref().is_some_and(|glob| !glob.is_match(&topic)) {
            self.others.insert(topic, id);
            return Ok(());
        }
        let rule = table_rule(&self.sink.config, &topic);
        let table = SinkTable::open(self.sink.shared.clone(), id, &self.source.default_schema, rule).await?;
        if let Some(offsets) = table.committed().offsets.get(&topic) {
            raise(self.ends.entry(topic.clone()).or_default(), offsets.iter().map(|(p, o)| (*p, *o)));
        }
        self.tables.insert(topic, table);
        Ok(())
    }

    /// Reads and commits until `shutdown`, or until the checkpoint asked for has its row.
    pub async fn run(&mut self, shutdown: &CancellationToken) -> Result<()> {
        loop {
            if self.is_caught_up() {
                return Ok(());
            }
            if self.queue.is_empty() {
                let mut until = self.sink.until.clone();
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return Ok(()),
                    checkpoint = self.checkpoints.next() => self.queue.push_back(checkpoint?),
                    // The target is told: it may be behind us.
                    () = changed(&mut until) => { self.sink_until_seen(until); continue }
                }
            }
            while self.queue.len() < LOOK_AHEAD {
                match self.checkpoints.try_next().await? {
                    Some(checkpoint) => self.queue.push_back(checkpoint),
                    None => break,
                }
            }
            if shutdown.is_cancelled() {
                return Ok(());
            }
            self.step().await?;
        }
    }
}
