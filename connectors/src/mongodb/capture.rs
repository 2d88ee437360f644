//! The loop of one MongoDB source: `last checkpoint -> change stream + ranges -> builders -> Publisher::publish`.
//!
//! Checkpoints lie on the grid. A tick is placed before the first event whose time is at or after it, never inside a
//! transaction; when the source is idle, a note in the oplog proves that the tick has passed. An event's time is the running
//! maximum of `wallTime`s. At a cut the log holds exactly the events up to the position's cluster time.

mod ranges;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::{Bson, RawDocumentBuf};
use lakeward_event::{ChangeBatch, Checkpoint, Position, TableId, TableSchema};
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Error, Result};
use mongodb::Client;
use mongodb::change_stream::ChangeStream;
use tokio_util::sync::CancellationToken;

use super::builder::{DocumentBuilder, Place, unreadable};
use super::canonical;
use super::change_stream::{Change, Event, ends_stream, is_ambiguous, join, open, token};
use super::client::{clock_offset, connect, error, now, operation_time, oplog_note};
use super::collections::{Filter, list};
use super::resume_token::{data, token_time};
use super::snapshot::{Progress, RANGE_ROWS, State};
use super::ticks::Ticks;
use crate::ConnectorContext;
use crate::grid::tick_at;
use crate::publisher::{Append, Progress as Published, Publisher};

/// What an append may weigh before it is cut, bytes of text.
const APPEND_BYTES: usize = 24 << 20;
/// Rows of an append before it is cut.
const APPEND_ROWS: u64 = 50_000;
/// How long after a tick the note is written, by our estimate of the server's clock: longer than the estimate can be off.
const CLOCK_MARGIN: i64 = 20_000;
/// A commit stamped later than this after our estimate of the server's clock counts as if it were stamped now: one wrong
/// stamp must not hold back every tick until its time has come.
const CLOCK_AHEAD: i64 = 500_000;
/// How often the server's clock is compared with ours, and collections are listed: one that is created without a document has
/// no event before MongoDB 6.1.
const LOOK_EVERY: i64 = 30_000_000;
/// Ranges and stream take turns of this length; the stream's ends early when it has nothing to give.
const TURN: Duration = Duration::from_millis(500);
/// What a document weighs that is to be read again, until the first was.
const FIRST_WEIGHT: usize = 4 << 10;

/// Runs the source until `shutdown`, or with `until_caught_up` until the log holds what the source held at the start;
/// returns the last checkpoint.
pub async fn run(
    source: &SourceConfig,
    context: &ConnectorContext,
    shutdown: &CancellationToken,
) -> Result<Option<Checkpoint>> {
    run_with(source, context, shutdown, RANGE_ROWS / i64::from(crate::append_divisor(context.codec))).await
}

/// [`run`] with ranges of another size.
pub async fn run_with(
    source: &SourceConfig,
    context: &ConnectorContext,
    shutdown: &CancellationToken,
    range_rows: i64,
) -> Result<Option<Checkpoint>> {
    Capture::start(source, context, range_rows).await?.run(shutdown).await
}

/// A captured collection, with what it has for the next append.
struct Collection {
    database: String,
    collection: String,
    /// `database.collection`
    name: String,
    builder: DocumentBuilder,
    /// Documents, by the text of their `_id`, that were changed by patches that cannot be used: read again before the append.
    again: HashMap<String, Bson>,
}

struct Capture<'a> {
    source: &'a SourceConfig,
    context: &'a ConnectorContext,
    client: Client,
    filter: Filter,
    publisher: Publisher,
    stream: ChangeStream<RawDocumentBuf>,
    /// Events up to this token are in the log, and the stream may begin before it. Tokens order as their texts do.
    published_to: Option<String>,
    /// Fragments of a large event.
    parts: Option<RawDocumentBuf>,
    collections: Vec<Collection>,
    /// Indexes by database and collection.
    names: HashMap<String, HashMap<String, usize>>,
    progress: Progress,
    /// Cluster time of the last event, or of the token if that is later.
    time: u64,
    /// The last event was part of a transaction, of which more may follow.
    in_transaction: bool,
    /// The last event: its token is where the stream is. None: `token` is.
    last_event: Option<RawDocumentBuf>,
    token: String,
    ticks: Ticks,
    /// Rows since the last append; also the next sequence within it.
    sequence: u64,
    /// Documents to be read again before the next append, and what one weighed last time.
    again: usize,
    again_weight: usize,
    clock_offset: i64,
    /// When the clock was compared and collections were listed last.
    looked: i64,
    /// A tick that has passed on the server's clock, and the cluster time of the note that proves it.
    note: Option<(i64, u64)>,
    may_note: bool,
    /// Documents of the next range, and of one that the server does not refuse.
    range_rows: i64,
    full_range_rows: i64,
    /// An append is begun at so many changes.
    append_rows: u64,
    /// Rounds of ranges of which none was read.
    refusals: u32,
    /// When the stream's turn began.
    turn: Instant,
    /// Everything up to here was there at the start.
    caught_up_at: u64,
    last: Option<Checkpoint>,
    /// The last checkpoint is of this run.
    published: bool,
}

impl<'a> Capture<'a> {
    async fn start(source: &'a SourceConfig, context: &'a ConnectorContext, range_rows: i64) -> Result<Self> {
        context.status.update(&source.name, |s| s.state = "connecting".into());
        let client = connect(&source.url).await?;
        let filter = Filter::new(source)?;
        let (publisher, last) =
            Publisher::open(&context.log, &source.name, crate::encoder(context.codec, &context.registry)?).await?;
        let clock_offset = clock_offset(&client).await?;
        if clock_offset.abs() > CLOCK_AHEAD {
            tracing::warn!(source = %source.name, offset_us = clock_offset,
                "the server's clock is not ours: joins with other sources are inexact");
        }
        let caught_up_at = operation_time(&client).await?;
        let interval = context.checkpoint_interval.as_micros() as i64;
        let mut progress = Progress::default();
        let (mut time, mut token) = (caught_up_at, String::new());
        // What was committed before the first start is not known to be older than that.
        let mut ticks = Ticks::new(interval, now() + clock_offset, 0);
        if let Some(last) = &last {
            let Position::Mongodb { cluster_time, token: at } = &last.draft.position else {
                return Err(Error::human("the log's checkpoints under this name are those of a PostgreSQL source")
                    .with("source", &source.name));
            };
            if *cluster_time > caught_up_at {
                // The stream would wait for this moment in silence.
                return Err(Error::resnapshot(
                    "the log is ahead of the server: the server was set back, or is another one. Begin the source anew (docs/log.md, Beginning a source anew)",
                )
                .with("source", &source.name));
            }
            (time, token) = (*cluster_time, at.clone());
            ticks = Ticks::new(interval, last.draft.watermark_from.saturating_sub(1), last.draft.watermark);
            if !last.draft.snapshot.is_null() {
                progress = serde_json::from_value(last.draft.snapshot.clone())
                    .map_err(|e| Error::human("the last checkpoint's snapshot progress does not read").source(e))?;
            }
        }
        // A stream of another width does not know the token: it begins at the token's time, and what was published is passed over.
        let published_to = (last.is_some() && progress.database.as_deref() != filter.database()).then(|| token.clone());
        if published_to.is_none() {
            progress.database = filter.database().map(str::to_owned);
        }
        let from = if published_to.is_some() { "" } else { &token };
        // The stream first: what a collection loses or gains while it is listed is then in the stream.
        let stream = open(&client, filter.database(), from, time).await?;
        let mut capture = Self {
            source,
            context,
            client,
            filter,
            publisher,
            stream,
            published_to,
            parts: None,
            collections: Vec::new(),
            names: HashMap::new(),
            progress,
            time,
            in_transaction: true,
            last_event: None,
            token,
            ticks,
            sequence: 0,
            again: 0,
            again_weight: FIRST_WEIGHT,
            clock_offset,
            looked: now(),
            note: None,
            may_note: true,
            range_rows,
            full_range_rows: range_rows,
            append_rows: APPEND_ROWS / u64::from(crate::append_divisor(context.codec)),
            refusals: 0,
            turn: Instant::now(),
            caught_up_at,
            last,
            published: false,
        };
        capture.take_up().await?;
        Ok(capture)
    }

    /// Takes up the collections that exist, and lets go of those that the configuration leaves out now.
    async fn take_up(&mut self) -> Result<()> {
        let filter = &self.filter;
        self.progress.collections.retain(|name, _| {
            // A collection that is taken in again later has missed events: it must then be read anew.
            name.split_once('.').is_some_and(|(database, collection)| filter.takes(database, collection))
        });
        let known: Vec<String> = self.progress.collections.keys().cloned().collect();
        for name in &known {
            if let Some((database, collection)) = name.split_once('.') {
                self.index(database, collection).await?;
            }
        }
        for (database, collection) in list(&self.client, &self.filter).await? {
            if self.find(&database, &collection).is_some() {
                continue;
            }
            let index = self.index(&database, &collection).await?;
            let name = self.collections[index].name.clone();
            self.progress.collections.insert(name, State::Reading { after: None });
        }
        let reading = self.progress.converging().len();
        tracing::info!(source = %self.source.name, collections = self.collections.len(), reading, "capturing MongoDB");
        Ok(())
    }

    async fn run(&mut self, shutdown: &CancellationToken) -> Result<Option<Checkpoint>> {
        loop {
            if shutdown.is_cancelled() {
                self.publish(false).await?;
                return Ok(self.last.clone());
            }
            let idle = match self.stream.next_if_any().await.map_err(|e| error("reading the change stream", e))? {
                Some(fragment) => {
                    if let Some(raw) = join(&mut self.parts, fragment)? {
                        self.event(raw).await?;
                    }
                    false
                }
                None => {
                    self.idle().await?;
                    true
                }
            };
            if self.weight() > APPEND_BYTES || self.sequence > self.append_rows {
                self.publish(false).await?;
            }
            if (idle || self.turn.elapsed() > TURN) && self.is_reading() {
                self.read_ranges(shutdown).await?;
                self.turn = Instant::now();
            }
            if self.context.until_caught_up && self.has_caught_up() {
                return Ok(self.last.clone());
            }
        }
    }

    /// The last checkpoint is a cut that holds what the source held at the start.
    fn has_caught_up(&self) -> bool {
        let Some(last) = self.last.as_ref().filter(|_| self.published) else { return false };
        let Position::Mongodb { cluster_time, .. } = last.draft.position else { return false };
        last.draft.cut && last.draft.converging.is_empty() && cluster_time >= self.caught_up_at
    }

    fn is_reading(&self) -> bool {
        self.progress.collections.values().any(|s| matches!(s, State::Reading { .. }))
    }

    /// The server's clock, as we know it.
    fn server_now(&self) -> i64 {
        now() + self.clock_offset
    }

    /// Text that the next append has, or will have got from the server by then.
    fn weight(&self) -> usize {
        self.collections.iter().map(|c| c.builder.bytes()).sum::<usize>() + self.again * self.again_weight
    }

    /// Takes an event, after the tick that it shows to have passed.
    async fn event(&mut self, raw: RawDocumentBuf) -> Result<()> {
        if self.is_published(token(&raw).unwrap_or_default()) {
            return Ok(());
        }
        if ends_stream(&raw) {
            self.token = token(&raw).ok_or_else(|| Error::retry("a change event has no token"))?.to_owned();
            self.last_event = None;
            self.stream = open(&self.client, self.filter.database(), &self.token, self.time).await?;
            return Ok(());
        }
        if let Some(event) = Event::parse(&raw)? {
            let wall = event.wall.min(self.server_now() + CLOCK_AHEAD);
            // Events of one transaction share their cluster time: between two of them there is no moment.
            if event.cluster_time > self.time && self.ticks.before(wall).is_some() {
                self.passed(true);
                if let Some(tick) = self.ticks.before(wall) {
                    self.place(tick).await?;
                }
            }
            let wall = self.ticks.seen(wall);
            self.time = self.time.max(event.cluster_time);
            self.in_transaction = event.tx.is_some();
            if self.filter.takes(event.database, event.collection) {
                self.take(&event, wall).await?;
                self.ticks.committed(wall);
            }
            if let Change::Rename { to: (database, collection) } = event.change
                && self.filter.takes(database, collection)
            {
                // The documents under the new name are not in the stream; those under a dropped target are gone.
                let index = self.index(database, collection).await?;
                self.truncate(index, event.cluster_time, wall);
                let name = self.collections[index].name.clone();
                self.progress.collections.insert(name, State::Reading { after: None });
                self.ticks.committed(wall);
            }
        }
        self.last_event = Some(raw);
        Ok(())
    }

    /// Whether everything up to this token is in the log already; from the first that is not on, nothing is.
    fn is_published(&mut self, token: &str) -> bool {
        match &self.published_to {
            Some(last) if token <= last.as_str() => return true,
            // From here on positions have tokens of this stream.
            Some(_) => self.progress.database = self.filter.database().map(str::to_owned),
            None => {}
        }
        self.published_to = None;
        false
    }

    async fn take(&mut self, event: &Event<'_>, wall: i64) -> Result<()> {
        let index = match self.find(event.database, event.collection) {
            Some(index) => index,
            None => self.index(event.database, event.collection).await?,
        };
        let place = Place { sequence: self.sequence, cluster_time: event.cluster_time, tx: event.tx, wall: Some(wall) };
        let collection = &mut self.collections[index];
        let before = collection.again.len();
        match event.change {
            Change::Document { op, document } => {
                collection.builder.document(op, document, place)?;
                if before > 0 {
                    collection.again.remove(collection.builder.last_id());
                }
            }
            Change::Patch { id, description } => {
                let exact = matches!(self.progress.collections.get(&collection.name), Some(State::Done));
                let mut text = String::new();
                if before > 0 || !exact {
                    canonical::id_text(&mut text, id).map_err(unreadable)?;
                }
                if exact && !(before > 0 && collection.again.contains_key(&text)) && !is_ambiguous(description)? {
                    collection.builder.patch(id, description, place)?;
                } else {
                    if text.is_empty() {
                        canonical::id_text(&mut text, id).map_err(unreadable)?;
                    }
                    collection.again.insert(text, Bson::try_from(id).map_err(unreadable)?);
                    self.again += collection.again.len() - before;
                    return Ok(());
                }
            }
            Change::Delete { id } => {
                collection.builder.delete(id, place)?;
                if before > 0 {
                    collection.again.remove(collection.builder.last_id());
                }
            }
            Change::Drop | Change::Rename { .. } => {
                self.truncate(index, event.cluster_time, wall);
                // Ranges that were read after the drop and published before it have just been wiped out: start over.
                if let Some(state) = self.progress.collections.get_mut(&self.collections[index].name)
                    && *state != State::Done
                {
                    *state = State::Reading { after: None };
                }
                return Ok(());
            }
        }
        self.again -= before - collection.again.len();
        self.sequence += 1;
        Ok(())
    }

    /// The collection is empty from here on.
    fn truncate(&mut self, index: usize, cluster_time: u64, wall: i64) {
        let collection = &mut self.collections[index];
        self.again -= collection.again.len();
        collection.again.clear();
        collection.builder.truncate(Place { sequence: self.sequence, cluster_time, tx: None, wall: Some(wall) });
        self.sequence += 1;
    }

    fn find(&self, database: &str, collection: &str) -> Option<usize> {
        self.names.get(database)?.get(collection).copied()
    }

    /// The index of a collection, which may be seen for the first time.
    async fn index(&mut self, database: &str, collection: &str) -> Result<usize> {
        if let Some(index) = self.find(database, collection) {
            return Ok(index);
        }
        let schema = schema(self.source, database, collection);
        let name = format!("{database}.{collection}");
        let is_new = !self.progress.collections.contains_key(&name);
        // The log knows it and we do not: it was left out for a while, and what the log has of it is not what it is now.
        let was_left_out = is_new && !self.publisher.versions(&schema.table).is_empty();
        self.publisher.register(&schema).await?;
        if is_new {
            // Created while we watch: the stream has all of it.
            self.progress.collections.insert(name.clone(), State::Done);
        }
        let index = self.collections.len();
        self.names.entry(database.to_owned()).or_default().insert(collection.to_owned(), index);
        self.collections.push(Collection {
            database: database.to_owned(),
            collection: collection.to_owned(),
            name,
            builder: DocumentBuilder::new(schema),
            again: HashMap::new(),
        });
        if was_left_out {
            self.truncate(index, self.time, self.ticks.watermark());
        }
        Ok(index)
    }

    /// The server has nothing more for the moment: its token says how far that is, and a note proves that a tick has passed.
    async fn idle(&mut self) -> Result<()> {
        if !self.stream.is_alive() {
            return Err(Error::retry("the server closed the change stream"));
        }
        let token = self.stream.resume_token().map(|token| data(&token)).transpose()?;
        if let Some(token) = token.filter(|token| !self.is_published(token)) {
            self.token = token;
            self.last_event = None;
            self.in_transaction = false;
            self.time = self.time.max(token_time(&self.token).unwrap_or(0));
            self.passed(true);
        }
        match self.note {
            Some((tick, at)) if self.time >= at => {
                self.note = None;
                if let Some(tick) = self.ticks.before(tick) {
                    self.place(tick).await?;
                }
            }
            Some(_) => {}
            None => {
                let tick = tick_at(self.server_now() - CLOCK_MARGIN, self.interval());
                if let Some(tick) = self.ticks.before(tick) {
                    self.note = self.prove(tick).await?;
                }
            }
        }
        Ok(())
    }

    fn interval(&self) -> i64 {
        self.context.checkpoint_interval.as_micros() as i64
    }

    /// What will prove that a tick has passed: a note, or without the right to write one a later second of the cluster time.
    async fn prove(&mut self, tick: i64) -> Result<Option<(i64, u64)>> {
        if self.may_note {
            if let Some(at) = oplog_note(&self.client).await? {
                return Ok(Some((tick, at)));
            }
            self.may_note = false;
            tracing::warn!(source = %self.source.name,
                "no right to write oplog notes: freshness of the idle source trails by up to 10 s (grant appendOplogNote)");
        }
        Ok(Some((tick, ((tick / 1_000_000 + 1) as u64) << 32)))
    }

    /// Ends the snapshot of collections whose last range the stream has passed. `through`: nothing more can come at `time`.
    fn passed(&mut self, through: bool) {
        if let Some(read_at) = self.progress.passed(self.time, through) {
            // Nothing is known of these collections before they were read.
            self.ticks.committed((read_at >> 32) as i64 * 1_000_000 + 999_999);
        }
    }

    /// Publishes everything so far as the cut at `tick`.
    async fn place(&mut self, tick: i64) -> Result<()> {
        if now() - self.looked > LOOK_EVERY {
            self.clock_offset = clock_offset(&self.client).await?;
            self.context.status.update(&self.source.name, |s| s.clock_offset = self.clock_offset);
            self.look_for_new().await?;
            self.looked = now();
        }
        self.ticks.promised(tick);
        self.publish(true).await
    }

    /// Takes up collections that were created and that the stream says nothing of, because they have no document yet.
    async fn look_for_new(&mut self) -> Result<()> {
        for (database, collection) in list(&self.client, &self.filter).await? {
            if self.find(&database, &collection).is_none() {
                let index = self.index(&database, &collection).await?;
                let name = self.collections[index].name.clone();
                // Named in the next checkpoint, which is how the sink comes to know a table without rows.
                self.progress.collections.insert(name, State::Converging { until: self.time });
            }
        }
        Ok(())
    }

    /// Appends what the builders hold. Without a row and not at a tick nothing is appended.
    async fn publish(&mut self, cut: bool) -> Result<()> {
        self.read_again(cut).await?;
        if self.sequence == 0 && !cut {
            return Ok(());
        }
        let mut batches = Vec::new();
        for collection in self.collections.iter_mut().filter(|c| c.builder.rows() > 0) {
            batches.push(collection.builder.finish()?);
        }
        lakeward_runtime::crash_point!("connector.stream.before_append");
        self.append(batches, cut).await
    }

    /// One append, with the progress that belongs to it.
    async fn append(&mut self, batches: Vec<ChangeBatch>, cut: bool) -> Result<()> {
        if let Some(event) = self.last_event.take() {
            self.token = token(&event).ok_or_else(|| Error::retry("a change event has no token"))?.to_owned();
        }
        let rows = self.sequence;
        let append = Append {
            batches,
            sequences: std::mem::take(&mut self.sequence),
            progress: Published {
                position: Position::Mongodb { cluster_time: self.time, token: self.token.clone() },
                snapshot: serde_json::to_value(&self.progress)
                    .map_err(|e| Error::bug("snapshot progress does not serialize").source(e))?,
                converging: self.progress.converging(),
                // Between cuts the last commit can be after the promised tick.
                watermark_from: self.ticks.watermark_from(),
                watermark: self.ticks.watermark(),
                cut,
            },
        };
        let checkpoint = self.publisher.publish(append).await?;
        self.context.status.committed(&self.source.name, &checkpoint, rows);
        let state = if checkpoint.draft.converging.is_empty() { "streaming" } else { "reading the first snapshot" };
        self.context.status.update(&self.source.name, |s| s.state = state.into());
        self.last = Some(checkpoint);
        self.published = true;
        Ok(())
    }
}

fn schema(source: &SourceConfig, database: &str, collection: &str) -> Arc<TableSchema> {
    Arc::new(TableSchema::documents(TableId::new(&source.name, database, collection)))
}
