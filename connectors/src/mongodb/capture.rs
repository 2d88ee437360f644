//! The loop of one MongoDB source: `last checkpoint -> change stream + ranges -> builders -> Publisher::publish`.
//!
//! Checkpoints lie on the grid. A tick is placed before the first event whose time is at or after it; when the source is
//! idle, a note in the oplog proves that the tick has passed. An event's time is the running maximum of `wallTime`s.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bson::{Bson, RawDocumentBuf};
use lakeward_event::{ChangeBatch, Checkpoint, Op, Position, TableId, TableSchema};
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Error, Result};
use mongodb::Client;
use mongodb::change_stream::ChangeStream;
use tokio_util::sync::CancellationToken;

use super::builder::{DocumentBuilder, Place, unreadable};
use super::change_stream::{Change, Event, is_ambiguous, open};
use super::client::{clock_offset, connect, error, now, operation_time, oplog_note};
use super::collections::{Filter, list};
use super::resume_token::{data, token_time};
use super::snapshot::{Progress, RANGE_ROWS, Range, State, read_documents, read_range};
use crate::ConnectorContext;
use crate::grid::{tick_after, tick_at};
use crate::publisher::{Append, Progress as Published, Publisher};

/// What an append may weigh before it is cut, bytes of text.
const APPEND_BYTES: usize = 24 << 20;
/// Rows of an append before it is cut.
const APPEND_ROWS: usize = 50_000;
/// How long after a tick the note is written, by our estimate of the server's clock: longer than the estimate can be off.
const CLOCK_MARGIN: i64 = 20_000;
/// Collections that are read at once.
const READERS: usize = 4;
/// How often the server's clock is compared with ours.
const CLOCK_EVERY: i64 = 30_000_000;

type Name = (String, String);

/// Runs the source until `shutdown`, or with `until_caught_up` until the log holds what the source held at the start;
/// returns the last checkpoint.
pub async fn run(
    source: &SourceConfig,
    context: &ConnectorContext,
    shutdown: &CancellationToken,
) -> Result<Option<Checkpoint>> {
    Capture::start(source, context).await?.run(shutdown).await
}

struct Capture<'a> {
    source: &'a SourceConfig,
    context: &'a ConnectorContext,
    client: Client,
    filter: Filter,
    publisher: Publisher,
    stream: ChangeStream<RawDocumentBuf>,
    builders: HashMap<Name, DocumentBuilder>,
    /// Documents with an ambiguous patch since the last append: read again before it.
    again: BTreeMap<Name, Vec<Bson>>,
    progress: Progress,
    /// Cluster time of the last event, or of the token if that is later.
    time: u64,
    token: String,
    /// Running maximum of events' times, microseconds.
    last_wall: i64,
    watermark: i64,
    watermark_from: i64,
    /// Rows since the last append; also the next sequence within it.
    sequence: u64,
    clock_offset: i64,
    clock_asked: i64,
    /// A tick that has passed on the server's clock, and the cluster time of the note that proves it.
    note: Option<(i64, u64)>,
    may_note: bool,
    range_rows: i64,
    /// Everything up to here was there at the start.
    caught_up_at: u64,
    last: Option<Checkpoint>,
}

impl<'a> Capture<'a> {
    async fn start(source: &'a SourceConfig, context: &'a ConnectorContext) -> Result<Self> {
        context.status.update(&source.name, |s| s.state = "connecting".into());
        let client = connect(&source.url).await?;
        let filter = Filter::new(source)?;
        let (mut publisher, last) = Publisher::open(&context.log, &source.name, crate::encoder(context.codec)?).await?;
        let caught_up_at = operation_time(&client).await?;
        let mut progress = Progress::default();
        let (mut time, mut token, mut watermark, mut watermark_from) = (caught_up_at, String::new(), 0, 0);
        if let Some(last) = &last {
            let Position::Mongodb { cluster_time, token: at } = &last.draft.position else {
                return Err(Error::human("the log's checkpoints under this name are those of a PostgreSQL source")
                    .with("source", &source.name));
            };
            (time, token) = (*cluster_time, at.clone());
            (watermark, watermark_from) = (last.draft.watermark, last.draft.watermark_from);
            if !last.draft.snapshot.is_null() {
                progress = serde_json::from_value(last.draft.snapshot.clone())
                    .map_err(|e| Error::human("the last checkpoint's snapshot progress does not read").source(e))?;
            }
        }
        // The stream first: what a collection loses or gains while it is listed is then in the stream.
        let stream = open(&client, &token, time).await?;
        for (database, collection) in list(&client, &filter).await? {
            progress.collections.entry(format!("{database}.{collection}")).or_insert(State::Reading { after: None });
        }
        for name in progress.collections.keys() {
            if let Some((database, collection)) = name.split_once('.') {
                publisher.register(&schema(source, database, collection)).await?;
            }
        }
        let reading = progress.converging().len();
        tracing::info!(source = %source.name, collections = progress.collections.len(), reading, "capturing MongoDB");
        let clock_offset = clock_offset(&client).await?;
        Ok(Self {
            source,
            context,
            client,
            filter,
            publisher,
            stream,
            builders: HashMap::new(),
            again: BTreeMap::new(),
            progress,
            time,
            token,
            last_wall: watermark_from.saturating_sub(1),
            watermark,
            watermark_from,
            sequence: 0,
            clock_offset,
            clock_asked: now(),
            note: None,
            may_note: true,
            range_rows: RANGE_ROWS,
            caught_up_at,
            last,
        })
    }

    async fn run(&mut self, shutdown: &CancellationToken) -> Result<Option<Checkpoint>> {
        loop {
            if shutdown.is_cancelled() {
                self.publish(false).await?;
                return Ok(self.last.clone());
            }
            match self.stream.next_if_any().await.map_err(|e| error("reading the change stream", e))? {
                Some(raw) => self.event(&raw).await?,
                None => self.idle().await?,
            }
            if self.bytes() > APPEND_BYTES || self.sequence as usize > APPEND_ROWS {
                self.publish(false).await?;
            }
            if self.context.until_caught_up
                && let Some(last) = &self.last
                && last.draft.cut
                && last.draft.converging.is_empty()
                && self.time_of(last) >= self.caught_up_at
            {
                return Ok(self.last.clone());
            }
        }
    }

    fn time_of(&self, checkpoint: &Checkpoint) -> u64 {
        match &checkpoint.draft.position {
            Position::Mongodb { cluster_time, .. } => *cluster_time,
            Position::Postgres { .. } => 0,
        }
    }

    fn interval(&self) -> i64 {
        self.context.checkpoint_interval.as_micros() as i64
    }

    fn bytes(&self) -> usize {
        self.builders.values().map(DocumentBuilder::bytes).sum()
    }

    /// Takes an event, after the ticks that it shows to have passed.
    async fn event(&mut self, raw: &RawDocumentBuf) -> Result<()> {
        let Some(event) = Event::parse(raw)? else { return self.note_token() };
        let wall = event.wall.max(self.last_wall);
        let tick = tick_at(wall, self.interval());
        if tick > self.watermark {
            self.place(tick).await?;
        }
        self.last_wall = wall;
        if self.filter.takes(event.database, event.collection) {
            self.take(&event, wall).await?;
        }
        if let Change::Rename { to: (database, collection) } = event.change
            && self.filter.takes(database, collection)
        {
            // The documents under the new name are not in the stream; those under a dropped target are gone.
            self.truncate(database, collection, event.cluster_time, wall).await?;
            let state = State::Reading { after: None };
            self.progress.collections.insert(format!("{database}.{collection}"), state);
        }
        self.time = self.time.max(event.cluster_time);
        self.note_token()
    }

    fn note_token(&mut self) -> Result<()> {
        if let Some(token) = self.stream.resume_token() {
            self.token = data(&token)?;
        }
        Ok(())
    }

    async fn take(&mut self, event: &Event<'_>, wall: i64) -> Result<()> {
        let (database, collection) = (event.database, event.collection);
        if matches!(event.change, Change::Drop | Change::Rename { .. }) {
            self.truncate(database, collection, event.cluster_time, wall).await?;
            // Ranges that were read after the drop and published before it have just been wiped out: start over.
            if let Some(state) = self.progress.collections.get_mut(&format!("{database}.{collection}"))
                && *state != State::Done
            {
                *state = State::Reading { after: None };
            }
            return Ok(());
        }
        let place = Place { sequence: self.sequence, cluster_time: event.cluster_time, tx: event.tx, wall: Some(wall) };
        let id = event.id.ok_or_else(|| Error::bug("an event without _id"))?;
        if let Change::Patch { description } = event.change
            && is_ambiguous(description)?
        {
            let id = Bson::try_from(id).map_err(unreadable)?;
            self.builder(database, collection).await?;
            self.again.entry((database.into(), collection.into())).or_default().push(id);
            return Ok(());
        }
        let builder = self.builder(database, collection).await?;
        match event.change {
            Change::Document { insert, document } => {
                builder.document(if insert { Op::Create } else { Op::Update }, document, place)?;
            }
            Change::Patch { description } => builder.patch(id, description, place)?,
            Change::Delete => builder.delete(id, place)?,
            Change::Drop | Change::Rename { .. } => {}
        }
        self.sequence += 1;
        Ok(())
    }

    async fn truncate(&mut self, database: &str, collection: &str, cluster_time: u64, wall: i64) -> Result<()> {
        let place = Place { sequence: self.sequence, cluster_time, tx: None, wall: Some(wall) };
        self.builder(database, collection).await?.truncate(place);
        self.sequence += 1;
        Ok(())
    }

    /// The open builder of a collection, which may be seen for the first time.
    async fn builder(&mut self, database: &str, collection: &str) -> Result<&mut DocumentBuilder> {
        let name = (database.to_owned(), collection.to_owned());
        if !self.builders.contains_key(&name) {
            let full = format!("{database}.{collection}");
            let schema = schema(self.source, database, collection);
            if !self.progress.collections.contains_key(&full) {
                // Created while we watch: the stream has all of it.
                tracing::info!(source = %self.source.name, collection = %full, "new collection");
                self.progress.collections.insert(full, State::Done);
            }
            self.publisher.register(&schema).await?;
            self.builders.insert(name.clone(), DocumentBuilder::new(schema));
        }
        self.builders.get_mut(&name).ok_or_else(|| Error::bug("a builder is gone"))
    }

    /// Nothing to read at the moment: ticks by note, ranges of the snapshot, the clocks.
    async fn idle(&mut self) -> Result<()> {
        self.note_token()?;
        let token_time = token_time(&self.token).unwrap_or(0);
        self.time = self.time.max(token_time);
        self.progress.passed(self.time);
        if now() - self.clock_asked > CLOCK_EVERY {
            self.clock_offset = clock_offset(&self.client).await?;
            self.clock_asked = now();
            self.context.status.update(&self.source.name, |s| s.clock_offset = self.clock_offset);
        }
        if self.progress.collections.values().any(|s| matches!(s, State::Reading { .. })) {
            self.read_ranges().await?;
        }
        match self.note {
            Some((tick, at)) if self.time >= at => {
                self.note = None;
                if tick > self.watermark {
                    self.place(tick).await?;
                }
            }
            Some(_) => {}
            None => {
                let tick = tick_at(now() + self.clock_offset - CLOCK_MARGIN, self.interval());
                if tick > self.watermark {
                    self.note = self.prove(tick).await?;
                }
            }
        }
        Ok(())
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

    /// Publishes everything so far as the cut at `tick`.
    async fn place(&mut self, tick: i64) -> Result<()> {
        self.watermark_from = tick_after(self.last_wall, self.interval()).min(tick);
        self.watermark = tick;
        // What arrives from here on counts as later than the tick, whatever its own time.
        self.last_wall = self.last_wall.max(tick);
        self.publish(true).await
    }

    /// Appends what the builders hold. Without a row and not at a tick nothing is appended.
    async fn publish(&mut self, cut: bool) -> Result<()> {
        self.read_again().await?;
        if self.sequence == 0 && !cut {
            return Ok(());
        }
        self.progress.passed(self.time);
        let mut batches = Vec::new();
        for builder in self.builders.values_mut().filter(|b| b.rows() > 0) {
            batches.push(builder.finish()?);
        }
        lakeward_runtime::crash_point!("connector.stream.before_append");
        self.append(batches, cut).await
    }

    /// One append, with the progress that belongs to it.
    async fn append(&mut self, batches: Vec<ChangeBatch>, cut: bool) -> Result<()> {
        let rows = self.sequence;
        let append = Append {
            batches,
            sequences: std::mem::take(&mut self.sequence),
            progress: Published {
                position: Position::Mongodb { cluster_time: self.time, token: self.token.clone() },
                snapshot: serde_json::to_value(&self.progress)
                    .map_err(|e| Error::bug("snapshot progress does not serialize").source(e))?,
                converging: self.progress.converging(),
                watermark_from: self.watermark_from,
                watermark: self.watermark,
                cut,
            },
        };
        let checkpoint = self.publisher.publish(append).await?;
        self.context.status.committed(&self.source.name, &checkpoint, rows);
        let state = if checkpoint.draft.converging.is_empty() { "streaming" } else { "reading the first snapshot" };
        self.context.status.update(&self.source.name, |s| s.state = state.into());
        self.last = Some(checkpoint);
        Ok(())
    }

    /// Documents whose patches say too little, as they were at exactly the position of this append.
    async fn read_again(&mut self) -> Result<()> {
        for ((database, collection), ids) in std::mem::take(&mut self.again) {
            let (time, wall) = (self.time, self.last_wall);
            let mut sequence = self.sequence;
            let client = self.client.clone();
            let builder = self.builder(&database, &collection).await?;
            let read =
                read_documents(&client, (&database, &collection), ids, time, builder, (&mut sequence, wall)).await?;
            self.sequence = sequence;
            if !read {
                tracing::warn!(source = %self.source.name, collection = %format!("{database}.{collection}"),
                    "the server no longer has the moment of a patch that needs its document: reading the collection anew");
                self.progress.collections.insert(format!("{database}.{collection}"), State::Reading { after: None });
            }
        }
        Ok(())
    }

    /// A range of each of a few collections, all at one moment, with their progress in one append.
    async fn read_ranges(&mut self) -> Result<()> {
        // Hold the stream: everything published is at or before the moment that is read.
        self.publish(false).await?;
        let at = operation_time(&self.client).await?;
        if at < self.time {
            return Ok(()); // a primary that has yet to catch up: ask again
        }
        let due: Vec<(String, Option<serde_json::Value>)> = self
            .progress
            .collections
            .iter()
            .filter_map(|(name, state)| match state {
                State::Reading { after } => Some((name.clone(), after.clone())),
                _ => None,
            })
            .take(READERS)
            .collect();
        let (client, rows) = (&self.client, self.range_rows);
        let reads = due.into_iter().map(|(name, after)| {
            let source = self.source;
            async move {
                let (database, collection) = name.split_once('.').unwrap_or((&name, ""));
                let mut builder = DocumentBuilder::new(schema(source, database, collection));
                let mut sequence = 0;
                let range =
                    read_range(client, (database, collection), after.as_ref(), (at, rows), &mut builder, &mut sequence)
                        .await?;
                Ok::<_, Error>((name.clone(), range, builder, sequence))
            }
        });
        let ranges = futures::future::try_join_all(reads).await?;
        let mut batches = Vec::new();
        for (name, range, mut builder, read) in ranges {
            let Range::Read(state) = range else {
                self.range_rows = (self.range_rows / 2).max(100);
                continue;
            };
            self.progress.collections.insert(name, state);
            if read > 0 {
                let batch = builder.finish()?.with_sequence_base(self.sequence);
                batches.push(batch.map_err(|e| Error::bug("numbering a range").source(e))?);
                self.sequence += read;
            }
        }
        lakeward_runtime::crash_point!("connector.range.before_append");
        self.append(batches, false).await
    }
}

fn schema(source: &SourceConfig, database: &str, collection: &str) -> Arc<TableSchema> {
    Arc::new(TableSchema::documents(TableId::new(&source.name, database, collection)))
}
