//! One worker per source, in lockstep with its checkpoints.
//!
//! `Log::checkpoints, Log::records -> decoders -> SinkTable (pending) -> at a cut: all tables commit -> checkpoint row`
//!
//! A worker that fails is made anew from what the lake holds: nothing else is remembered. Each table is read from its own
//! offsets, so what it has already is not read again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use lakeward_event::codec::Decoder;
use lakeward_event::codec::debezium::Placeholder;
use lakeward_event::codec::registry::SchemaRegistry;
use lakeward_event::{Checkpoint, Ends, TableId, names};
use lakeward_lake::system::CheckpointTable;
use lakeward_log::{CheckpointReader, Log, RecordReader};
use lakeward_runtime::config::{Config, DocumentRule, SourceConfig, SourceKind};
use lakeward_runtime::{Error, Result};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::commit::{Committed, committed_of, raise};
use crate::cut::{Cutter, NoRow, RowState, TableAt, row};
use crate::dead_letter::{self, Places};
use crate::foreign::{self, Cuts};
use crate::retention::Held;
use crate::table::{Pending, Shared, SinkTable, full_name, ident, source_of};
use crate::visitor::{Schemas, Visitor};
use crate::{Until, checkpoints};

/// Checkpoints looked ahead: enough to see how far behind the worker is.
const LOOK_AHEAD: usize = 4_096;
/// Records read in one go while checkpoints are many and small: at most, and before it is known how large they are.
const RECORDS_PER_READ: i64 = 65_536;
const RECORDS_OF_FIRST_READ: i64 = 256;
/// Tables that commit at the same time: commits mostly wait for storage.
const COMMITS_AT_ONCE: usize = 8;
/// Checkpoint ids are microseconds.
const CHECKPOINTS_KEPT_MICROS: i64 = 3_600_000_000;

/// What all workers of a sink share.
pub struct Sink {
    pub config: Config,
    pub shared: Arc<Shared>,
    pub log: Arc<dyn Log>,
    pub rows: CheckpointTable,
    /// Of the codec `avro`.
    pub registry: Arc<dyn SchemaRegistry>,
    /// On topic names; None: all tables.
    pub tables: Option<globset::GlobMatcher>,
    pub until: Until,
    /// Microseconds since 1970: what others wrote before is what a run until caught up has to reach.
    pub started: i64,
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
    /// None: not made yet.
    checkpoints: Option<Box<dyn CheckpointReader>>,
    records: Box<dyn RecordReader>,
    /// None while records are read.
    visitor: Option<Box<Visitor>>,
    assigned: HashSet<(String, i32)>,
    /// End offsets that checkpoints have told since the start: of topics touched since the last row.
    ends: Ends,
    /// Up to where each partition is read, or held by its table.
    read: Ends,
    /// The last checkpoint whose records are read.
    last: Option<Checkpoint>,
    queue: VecDeque<Checkpoint>,
    cutter: Cutter,
    state: RowState,
    /// Bytes of pending changes that make tables commit before the next cut.
    budget: usize,
    /// What the tables hold, for whoever watches the log's retention.
    held: Held,
    /// Records of the next read: one holds a row or ten thousand, by its codec.
    records_per_read: i64,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Worker {
    /// Loads what the lake has of the source, and starts reading there.
    pub async fn open(sink: Arc<Sink>, source: SourceConfig, held: Held) -> Result<Self> {
        let (state, watermark) = checkpoints::state(&sink.rows, &source.name).await?;
        let schemas =
            Arc::new(Schemas { log: sink.log.clone(), source: source.name.clone(), known: RwLock::default() });
        schemas.refresh().await?;
        let config = &sink.config;
        let cutter = Cutter::new(micros(config.checkpoint_interval), micros(config.sink.commit_interval), watermark);
        let sources = config.sources.len().max(1) as u64;
        let foreign = source.kind == SourceKind::Debezium;
        if foreign && sink.tables.is_some() {
            return Err(Error::configuration(
                "--table cannot limit a source of kind \"debezium\": its cuts are of the sink's own making, and two sinks would make two. Give each sink a source with its own `topics`",
            )
            .with("source", &source.name));
        }
        // Those of a source that others write are made from what its tables hold, which is loaded first.
        let checkpoints = match foreign {
            true => None,
            false => Some(sink.log.checkpoints(&source.name, state.checkpoint).await?),
        };
        let mut worker = Self {
            checkpoints,
            records: sink.log.records(&source.name).await?,
            visitor: Some(Box::new(Visitor {
                placeholder: Arc::new(Placeholder::new(&source.unavailable_value_placeholder)),
                source: source.clone(),
                schemas: schemas.clone(),
                registry: sink.registry.clone(),
                handle: Handle::current(),
                topics: HashMap::new(),
                letters: Vec::new(),
                failure: Arc::default(),
            })),
            schemas,
            tables: BTreeMap::new(),
            others: BTreeMap::new(),
            assigned: HashSet::new(),
            ends: Ends::new(),
            read: Ends::new(),
            last: None,
            queue: VecDeque::new(),
            cutter,
            state,
            // A commit holds the changes, the index of them, the gathered columns and Parquet's buffers.
            budget: usize::try_from(config.sink.memory / sources / 4).unwrap_or(usize::MAX),
            held,
            records_per_read: RECORDS_OF_FIRST_READ,
            sink: sink.clone(),
            source,
        };
        worker.load_tables().await?;
        worker.expect_tables().await?;
        if worker.checkpoints.is_none() {
            worker.checkpoints = Some(Box::new(worker.cuts()?));
        }
        worker.tell_held();
        Ok(worker)
    }

    /// Checkpoints of our own, behind all that the lake has.
    fn cuts(&self) -> Result<Cuts> {
        let config = &self.sink.config;
        let newest = self.tables.values().filter_map(|table| table.committed().checkpoint).chain(self.state.checkpoint);
        Cuts::new(
            self.sink.log.clone(),
            &self.source,
            config.checkpoint_interval,
            config.sink.commit_interval,
            self.read.clone(),
            newest.max().unwrap_or(0),
        )
    }

    fn checkpoints(&mut self) -> Result<&mut Box<dyn CheckpointReader>> {
        self.checkpoints.as_mut().ok_or_else(|| Error::bug("the worker reads no checkpoints"))
    }

    /// Takes up tables that have a schema in the log, whether or not they have rows.
    async fn expect_tables(&mut self) -> Result<()> {
        for schema in self.schemas.newest() {
            let topic = names::topic(&schema.table);
            if !self.tables.contains_key(&topic) && !self.others.contains_key(&topic) {
                self.add_table(schema.table.clone(), topic.clone()).await?;
            }
            if let Some(table) = self.tables.get_mut(&topic) {
                table.expect(&schema);
            }
        }
        Ok(())
    }

    /// A table in its first snapshot may turn out to be empty: it is known by name before any row of it comes.
    async fn look_for_new(&mut self, converging: &BTreeSet<String>) -> Result<()> {
        let known = |name: &String| {
            self.tables.values().map(SinkTable::id).chain(self.others.values()).any(|id| id.to_string() == *name)
        };
        if converging.iter().all(known) {
            return Ok(());
        }
        self.schemas.refresh().await?;
        self.expect_tables().await
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
            let Some(id) = source_of(&table).filter(|id| id.source == self.source.name) else { continue };
            if self.source.kind != SourceKind::Debezium {
                let topic = names::topic(&id);
                self.add_table(id, topic).await?;
                continue;
            }
            // Others name their topics as they like: the table knows which one it holds. One that holds nothing yet is found again
            // by the first record of its topic.
            let Some(topic) = committed_of(&table)?.offsets.into_keys().next() else { continue };
            let (known, name) = (foreign::known(&id, &table)?, full_name(table.ident()));
            self.add_table(id, topic.clone()).await?;
            if let Some(visitor) = &mut self.visitor {
                visitor.open_foreign(&topic, &name, Some(known));
            }
        }
        Ok(())
    }

    async fn add_table(&mut self, id: TableId, topic: String) -> Result<()> {
        if let Some(other) = self.tables.values().find(|table| *table.id() == id) {
            return Err(Error::configuration(format!("two topics hold rows of {id}"))
                .with("source", &self.source.name)
                .with("one", other.topic())
                .with("other", topic));
        }
        if self.sink.tables.as_ref().is_some_and(|glob| !glob.is_match(&topic)) {
            self.others.insert(topic, id);
            return Ok(());
        }
        let rule = table_rule(&self.sink.config, &topic);
        let table =
            SinkTable::open(self.sink.shared.clone(), id, topic.clone(), &self.source.default_schema, rule).await?;
        if let Some(offsets) = table.committed().offsets.get(&topic) {
            raise(self.read.entry(topic.clone()).or_default(), offsets.iter().map(|(p, o)| (*p, *o)));
        }
        self.tables.insert(topic, table);
        Ok(())
    }

    /// Reads and commits until `shutdown`, or until the checkpoint asked for has its row.
    pub async fn run(&mut self, shutdown: &CancellationToken) -> Result<()> {
        let mut until = self.sink.until.clone();
        loop {
            if let Some(target) = self.target() {
                if self.state.checkpoint.is_some_and(|newest| newest >= target) {
                    return Ok(());
                }
                // The target can be told after its checkpoint was read, and nothing need follow it.
                if let Some(last) =
                    self.last.clone().filter(|last| last.id >= target && last.draft.cut && self.queue.is_empty())
                {
                    self.cut(&last).await?;
                    if self.state.checkpoint.is_some_and(|newest| newest >= target) {
                        return Ok(());
                    }
                }
                if self.last.as_ref().is_some_and(|last| last.id >= target)
                    && let Some(stopped) = self.tables.values_mut().find_map(SinkTable::take_stopped)
                {
                    return Err(Error::human("the source cannot catch up: a table has stopped").source(stopped));
                }
            }
            if self.queue.is_empty() {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return Ok(()),
                    checkpoint = self.checkpoints()?.next() => self.queue.push_back(checkpoint?),
                    () = changed(&mut until) => continue,
                }
            }
            while self.queue.len() < LOOK_AHEAD {
                match self.checkpoints()?.try_next().await? {
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

    /// The checkpoint that the source is to reach.
    fn target(&self) -> Option<i64> {
        let until = self.sink.until.as_ref()?;
        match self.source.kind {
            // Ids are times: a cut made since has all that was there.
            SourceKind::Debezium => Some(self.sink.started),
            SourceKind::Postgres | SourceKind::Mongodb => until.borrow().get(&self.source.name).copied(),
        }
    }

    /// Reads up to the next commit point, or as far as one read goes, and commits what is due.
    async fn step(&mut self) -> Result<()> {
        let newest = self.queue.back().map_or(0, |c| c.draft.watermark);
        let target = self.target();
        let mut touched = Ends::new();
        let mut records = 0;
        let mut point = false;
        let mut last: Option<Checkpoint> = None;
        let mut converging = BTreeSet::new();
        while let Some(checkpoint) = self.queue.pop_front() {
            converging.extend(checkpoint.draft.converging.iter().cloned());
            for (topic, partitions) in &checkpoint.ends {
                let stopped = self.is_stopped(topic);
                let (read, known) = (self.read.get(topic), self.ends.entry(topic.clone()).or_default());
                let of_topic = touched.entry(topic.clone()).or_default();
                for (partition, end) in partitions {
                    let from = of_topic.get(partition).or_else(|| read?.get(partition)).copied().unwrap_or(0);
                    records += if stopped { 0 } else { (end - from).max(0) };
                    raise(of_topic, [(*partition, *end)].into_iter());
                    raise(known, [(*partition, *end)].into_iter());
                }
            }
            let stride = self.cutter.stride(checkpoint.draft.watermark, newest);
            point = self.cutter.is_commit_point(&checkpoint, stride, target == Some(checkpoint.id));
            last = Some(checkpoint);
            if point || records >= self.records_per_read {
                break;
            }
        }
        let Some(last) = last else { return Ok(()) };
        self.look_for_new(&converging).await?;
        let held = self.bytes();
        self.read_to(touched).await?;
        self.records_per_read = records_per_read(records, self.bytes() - held, self.budget);
        self.last = Some(last.clone());
        if point {
            return self.cut(&last).await;
        }
        if self.bytes() > self.budget {
            tracing::debug!(source = %self.source.name, checkpoint = last.id, "committing before the cut, to bound memory");
            self.commit_tables(&last).await?;
        }
        Ok(())
    }

    /// Whether the topic's table has stopped at a bad record.
    fn is_stopped(&self, topic: &str) -> bool {
        self.tables.get(topic).is_some_and(SinkTable::is_stopped)
    }

    /// Bytes that wait for their tables' commits.
    fn bytes(&self) -> usize {
        self.tables.values().map(SinkTable::bytes).sum()
    }

    /// Reads every table's records up to these ends.
    async fn read_to(&mut self, touched: Ends) -> Result<()> {
        let foreign = self.source.kind == SourceKind::Debezium;
        for topic in touched.keys().filter(|_| !foreign) {
            if !self.tables.contains_key(topic) && !self.others.contains_key(topic) {
                if self.schemas.table(topic).is_none() {
                    self.schemas.refresh().await?;
                }
                // A schema is committed with the first records that need it, at the latest. So without one there are only
                // records of an append that was broken off: they are read over once the table is known.
                let Some(id) = self.schemas.table(topic) else {
                    tracing::debug!(source = %self.source.name, topic, "no schema, so no committed record");
                    continue;
                };
                self.add_table(id, topic.clone()).await?;
            }
        }
        let mut ends = Ends::new();
        for (topic, partitions) in touched {
            if foreign {
                self.start_foreign(&topic, &partitions).await?;
            } else if !self.tables.contains_key(&topic) {
                continue;
            }
            if self.is_stopped(&topic) {
                continue;
            }
            let read = self.read.entry(topic.clone()).or_default();
            for (partition, end) in partitions {
                let from = read.get(&partition).copied().unwrap_or(0);
                if end <= from {
                    continue;
                }
                if self.assigned.insert((topic.clone(), partition)) {
                    self.records.assign(&topic, partition, from).await?;
                }
                ends.entry(topic.clone()).or_default().insert(partition, end);
            }
        }
        if ends.is_empty() {
            return Ok(());
        }
        let mut visitor = self
            .visitor
            .take()
            .ok_or_else(|| Error::bug("records are being read already").with("source", &self.source.name))?;
        for topic in ends.keys() {
            match self.tables.get(topic) {
                _ if foreign => {}
                Some(table) => visitor.open(topic, &table.name())?,
                None => {}
            }
        }
        let back = self.records.read_to(&ends, visitor).await?;
        let mut visitor =
            back.into_any().downcast::<Visitor>().map_err(|_| Error::bug("the log gave back another visitor"))?;
        if let Some(error) = visitor.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        if foreign {
            self.take_told(&visitor).await?;
        }
        for (topic, letter) in visitor.letters.drain(..) {
            if let Some(table) = self.tables.get_mut(&topic) {
                table.push_letter(letter);
            }
        }
        for (topic, decoder) in &mut visitor.topics {
            let Some(table) = self.tables.get_mut(topic) else { continue };
            if decoder.decoder.rows() == 0 {
                continue;
            }
            let batches =
                decoder.decoder.flush().map_err(|e| Error::bug("decoded rows").with("topic", topic).source(e))?;
            for batch in batches {
                let places = decoder.places.split_front(batch.num_rows() as u32);
                table.push(Pending { batch, places });
            }
            decoder.places = Places::default();
        }
        self.visitor = Some(visitor);
        for (topic, partitions) in ends {
            raise(self.read.entry(topic).or_default(), partitions.into_iter());
        }
        Ok(())
    }

    /// Makes partitions of others ready that were never read: a log that was cut off before we came is no loss of ours.
    async fn start_foreign(&mut self, topic: &str, partitions: &BTreeMap<i32, i64>) -> Result<()> {
        let table = foreign::table_by_name(&self.source, topic);
        let name = full_name(&ident(&table, &self.source.default_schema));
        if let Some(visitor) = self.visitor.as_mut().filter(|visitor| !visitor.topics.contains_key(topic)) {
            visitor.open_foreign(topic, &name, None);
        }
        let read = self.read.entry(topic.to_owned()).or_default();
        if partitions.keys().all(|partition| read.contains_key(partition)) {
            return Ok(());
        }
        let wanted = topic.to_owned();
        let bounds = self.sink.log.foreign_bounds(Arc::new(move |topic| topic == wanted)).await?;
        for (partition, (first, _)) in bounds.into_values().flatten() {
            read.entry(partition).or_insert(first);
        }
        Ok(())
    }

    /// Takes up tables that records have told of.
    async fn take_told(&mut self, visitor: &Visitor) -> Result<()> {
        for (topic, reader) in &visitor.topics {
            let has_letters = || visitor.letters.iter().any(|(of, _)| of == topic);
            let id = match (reader.decoder.told(), self.tables.get(topic)) {
                (Some(told), Some(table)) if table.id() == told => continue,
                // Named by its topic so far, for its dead letters alone.
                (Some(told), Some(table)) if table.table().is_none() => told.clone(),
                (Some(told), None) => told.clone(),
                (None, None) if has_letters() => foreign::table_by_name(&self.source, topic),
                _ => continue,
            };
            let before = self.tables.remove(topic);
            self.add_table(id, topic.clone()).await?;
            if let (Some(table), Some(before)) = (self.tables.get_mut(topic), before) {
                before.into_letters().into_iter().for_each(|letter| table.push_letter(letter));
            }
        }
        Ok(())
    }

    /// Commits every table that has something pending.
    async fn commit_tables(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let read = &self.read;
        let dirty = self.tables.values_mut().filter(|t| t.is_dirty());
        let commits: Vec<_> = dirty.map(|table| commit_table(table, checkpoint, read)).collect();
        let mut running = futures::stream::iter(commits).buffer_unordered(COMMITS_AT_ONCE);
        let mut failed: Result<()> = Ok(());
        // Every commit is let run to its end: one that is dropped half-way is an outcome nobody knows.
        while let Some(done) = running.next().await {
            if failed.is_ok() {
                failed = done;
            }
        }
        drop(running);
        self.tell_held();
        failed
    }

    /// What the tables hold of their topics.
    fn held(&self) -> Ends {
        let of_table = |(topic, table): (&String, &SinkTable)| {
            Some((topic.clone(), table.committed().offsets.get(topic)?.clone()))
        };
        self.tables.iter().filter_map(of_table).collect()
    }

    fn tell_held(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.held());
    }

    /// Commits all tables exactly here, and writes the cut's row.
    async fn cut(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.commit_tables(checkpoint).await?;
        self.cutter.made(checkpoint);
        // The record that stopped it lies before this cut, and before every later one.
        if let Some(table) = self.tables.values().find(|table| table.is_stopped()) {
            tracing::debug!(source = %self.source.name, checkpoint = checkpoint.id, table = %table.name(), "no row: the table has stopped");
            return Ok(());
        }
        let Some(tables) = self.tables_now().await? else { return Ok(()) };
        let ends: BTreeMap<String, BTreeMap<i32, i64>> = self
            .tables
            .values()
            .map(|t| (t.topic().to_owned(), t.name()))
            .chain(
                self.others
                    .iter()
                    .map(|(topic, id)| (topic.clone(), full_name(&ident(id, &self.source.default_schema)))),
            )
            .filter_map(|(topic, name)| Some((name, self.ends.get(&topic)?.clone())))
            .collect();
        match row(checkpoint.id, &tables, &ends, &checkpoint.draft.converging, &self.state) {
            Ok(tables) => {
                let lag = (dead_letter::now() - checkpoint.draft.watermark) as f64 / 1e6;
                if checkpoints::append(&self.sink.rows, &self.source.name, checkpoint, &tables).await? {
                    self.state.advance(checkpoint.id, &tables);
                    self.release(checkpoint).await;
                    tracing::info!(
                        source = %self.source.name, checkpoint = checkpoint.id, position = %checkpoint.draft.position,
                        tables = tables.tables.len(), lag_seconds = lag, "cut"
                    );
                } else {
                    self.state = checkpoints::state(&self.sink.rows, &self.source.name).await?.0;
                }
                metrics::gauge!("lakeward_sink_lag_seconds", "source" => self.source.name.clone()).set(lag);
            }
            Err(NoRow::Older) => {}
            Err(NoRow::Passed(table)) => {
                tracing::info!(source = %self.source.name, checkpoint = checkpoint.id, table, "no row: the table is past this cut");
            }
            Err(NoRow::NotYet(table)) => {
                tracing::debug!(source = %self.source.name, checkpoint = checkpoint.id, table, "no row yet: another sink is behind");
            }
        }
        Ok(())
    }

    /// Tells the log what is in the lake: it is not read again, but for the checkpoints of the last hour, which `verify` may be
    /// reading. Only advice: where it fails, the log keeps more for a while.
    async fn release(&mut self, checkpoint: &Checkpoint) {
        let below = checkpoint.id - CHECKPOINTS_KEPT_MICROS;
        if let Err(error) = self.sink.log.may_drop(&self.source.name, &self.held(), below).await {
            tracing::warn!(error = %error, source = %self.source.name, "the log cannot drop what the lake holds");
        }
    }

    /// Where all tables of the source are. None: a table that another sink writes is not there yet.
    async fn tables_now(&mut self) -> Result<Option<Vec<TableAt>>> {
        let at = |topic: &str, id: &TableId, table: &lakeward_lake::Table, committed: &Committed| -> Option<TableAt> {
            Some(TableAt {
                name: full_name(table.ident()),
                source_name: id.to_string(),
                snapshot: table.snapshot()?.snapshot_id(),
                checkpoint: committed.checkpoint.unwrap_or(i64::MIN),
                offsets: committed.offsets.get(topic).cloned().unwrap_or_default(),
            })
        };
        let mut all: Vec<TableAt> = self
            .tables
            .iter()
            .filter_map(|(topic, table)| {
                let mut at = at(topic, table.id(), table.table()?, table.committed())?;
                // Everything read has been committed, or was nothing: an append that was broken off moves a partition's end
                // and leaves no record.
                if let Some(read) = self.read.get(topic) {
                    raise(&mut at.offsets, read.iter().map(|(p, o)| (*p, *o)));
                }
                Some(at)
            })
            .collect();
        for (topic, id) in &self.others {
            let found = self.sink.shared.lake.load(&ident(id, &self.source.default_schema)).await?;
            let known = match &found {
                Some(table) => at(topic, id, table, &committed_of(table)?),
                None => None,
            };
            match known {
                Some(table) => all.push(table),
                None if self.ends.contains_key(topic) => return Ok(None),
                None => {}
            }
        }
        Ok(Some(all))
    }
}

/// So many records as will fill half of the budget, if they are like the last ones.
fn records_per_read(records: i64, bytes: usize, budget: usize) -> i64 {
    let per_record = bytes / usize::try_from(records).unwrap_or(1).max(1);
    let fit = budget / 2 / per_record.max(1);
    i64::try_from(fit).map_or(RECORDS_PER_READ, |fit| fit.clamp(1, RECORDS_PER_READ))
}

/// Boxed here, where its lifetimes have names: in a closure the compiler cannot prove that the future may change threads.
fn commit_table<'a>(table: &'a mut SinkTable, checkpoint: &'a Checkpoint, read: &'a Ends) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        table.commit(checkpoint, read).await?;
        lakeward_runtime::crash_point!("sink.commit.between_tables");
        Ok(())
    })
}

/// Waits until a target is told; for ever where there is none.
async fn changed(until: &mut Until) {
    let told = match until {
        Some(until) => until.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending::<()>().await;
    }
}

/// The document rule of a table: by its topic's name, or else by the first glob that matches.
fn table_rule(config: &Config, topic: &str) -> Option<DocumentRule> {
    let exact = config.tables.get(topic);
    let by_glob = || {
        config
            .tables
            .iter()
            .find(|(glob, _)| globset::Glob::new(glob).is_ok_and(|glob| glob.compile_matcher().is_match(topic)))
            .map(|(_, table)| table)
    };
    exact.or_else(by_glob).and_then(|table| table.document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_bounded_by_what_records_hold() {
        let budget = 256 << 20;
        assert_eq!(records_per_read(256, 256 * 4_000_000, budget), 33);
        assert_eq!(records_per_read(65_536, 65_536 * 300, budget), RECORDS_PER_READ);
        assert_eq!(records_per_read(1, 1 << 30, budget), 1, "a read makes progress");
        assert_eq!(records_per_read(0, 0, budget), RECORDS_PER_READ);
    }
}
