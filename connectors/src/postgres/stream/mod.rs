//! The loop that reads the stream: `pgoutput -> open builders -> append -> confirmed position`.
//!
//! One task reads and decodes; an append runs beside it, one at a time. Every table has one open builder, cut at a size, a change
//! of schema, or a checkpoint. Checkpoints are placed on the grid of the server's clock: before the first commit past a tick, or,
//! where the source is idle, when a message of ours arrives that was written after it.
//!
//! # Cuts that `verify` asks for
//! `verify` writes [`Mark::Hold`] into the WAL: when it arrives the loop stops, at a place before anything that comes later. Then
//! `verify` creates a temporary slot; its consistent point `L` lies after the message. [`Signal::Cut`] tells `L`, the loop goes on
//! and publishes a checkpoint whose position is exactly `L`, with `cut`, before the first commit beyond `L`. A hold ends after its
//! time without a signal; a signal that comes when the stream is past `L` is not answered, and `verify` tries again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use lakeward_event::{ChangeBatch, Checkpoint, Position, TableId};
use lakeward_log::{Signal, SignalReader};
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Error, Result, crash_point};
use pg_walstream::PgReplicationConnection;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::capture::{Capture, as_of_relation, delete_message, relation_of};
use super::catalog::{self, Table, TableFilter, TableShape};
use super::client::{replication_error, sql_error};
use super::cursor::{Cursor, tick_at};
use super::mark::{self, Mark, Marker};
use super::pgoutput::{Frame, Message, Relation, Tuple, Value};
use super::publication;
use super::snapshot::state::{Key, Range, Stage, TableState};
use super::snapshot::wave::{Locked, Read, Wanted};
use super::snapshot::{Event, Outcome, REFUSED, Snapshots};
use super::tuple::{RowMeta, TableBuilder};
use crate::ConnectorContext;
use crate::publisher::{Append, Lane, Progress};

/// An append is begun at this many rows or bytes: enough to make its fixed cost small, little enough to hold twice.
const APPEND_ROWS: u64 = 65_536;
const APPEND_BYTES: usize = 64 << 20;
/// Messages read in a row before everything else gets a look.
const MESSAGES_AT_ONCE: usize = 1024;
/// Between looks at the clock.
const PULSE: Duration = Duration::from_millis(25);
/// The server is told our position at least so often (its patience is 60 s by default).
const FEEDBACK: Duration = Duration::from_secs(5);
/// Between looks for new tables.
const DISCOVERY: Duration = Duration::from_secs(10);
/// The longest that a hold may last, whatever its message says.
const HOLD_LIMIT: Duration = Duration::from_secs(60);

/// Everything that [`Stream::new`] needs, connected and checked.
pub struct Parts {
    pub source: SourceConfig,
    pub context: ConnectorContext,
    pub sql: Arc<Client>,
    pub connection: PgReplicationConnection,
    pub lane: Lane,
    pub cursor: Cursor,
    pub snapshots: Snapshots,
    pub signals: Box<dyn SignalReader>,
    pub tables: BTreeMap<u32, Table>,
    pub filter: TableFilter,
    /// Server's clock minus ours, microseconds.
    pub clock_offset: i64,
}

pub struct Stream {
    source: SourceConfig,
    context: ConnectorContext,
    sql: Arc<Client>,
    marker: Arc<Marker>,
    connection: PgReplicationConnection,
    lane: Lane,
    cursor: Cursor,
    snapshots: Snapshots,
    signals: Box<dyn SignalReader>,
    /// Tables of the publication as the catalog has them.
    tables: BTreeMap<u32, Table>,
    filter: TableFilter,
    clock_offset: i64,
    interval: i64,

    /// By relation; None: sent, and not ours.
    captures: HashMap<u32, Option<Capture>>,
    /// Ended batches of the append to come.
    ready: Vec<ChangeBatch>,
    /// Sequences and bytes of the append to come.
    sequences: u64,
    bytes: usize,
    /// Rows of the append under way.
    flying: u64,
    /// Confirmed to the server.
    confirmed: u64,
    told: Instant,

    /// A frame that waits for the wave under way.
    held: Option<Bytes>,
    hold: Option<(String, Instant)>,
    cut_at: Option<(String, u64)>,
    /// Messages that are being written, and other work beside the loop.
    writes: JoinSet<Result<Written>>,
    tick_written: bool,
    discovered: Instant,
    /// Marks of an older run of this connector say nothing to this one.
    run: String,
    /// The clock of the mark that `--until-caught-up` waits for, once it has arrived.
    caught_up: Option<i64>,
    finished: Option<Checkpoint>,
}

enum Written {
    Mark,
    Tables(Vec<Table>),
    Clock(i64),
}

/// Our clock, microseconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

/// Server's clock minus ours, taken at the middle of a round trip.
pub async fn clock_offset(client: &Client) -> Result<i64> {
    let before = now();
    let server: i64 = client
        .query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8", &[])
        .await
        .map_err(|e| sql_error("asking for the server's time", e))?
        .get(0);
    Ok(server - (before + now()) / 2)
}

impl Stream {
    pub async fn new(parts: Parts) -> Result<Self> {
        let Parts { source, context, sql, connection, lane, cursor, snapshots, signals, tables, filter, clock_offset } =
            parts;
        let marker = Arc::new(Marker::new(&sql, &source.slot).await?);
        let interval = i64::try_from(context.checkpoint_interval.as_micros())
            .ok()
            .filter(|i| *i > 0)
            .ok_or_else(|| Error::configuration("checkpoint_interval is out of range"))?;
        let confirmed = cursor.lsn();
        let mut stream = Self {
            marker,
            interval,
            confirmed,
            source,
            context,
            sql,
            connection,
            lane,
            cursor,
            snapshots,
            signals,
            tables,
            filter,
            clock_offset,
            captures: HashMap::new(),
            ready: Vec::new(),
            sequences: 0,
            bytes: 0,
            flying: 0,
            told: Instant::now(),
            held: None,
            hold: None,
            cut_at: None,
            writes: JoinSet::new(),
            tick_written: false,
            discovered: Instant::now(),
            run: uuid::Uuid::new_v4().to_string(),
            caught_up: None,
            finished: None,
        };
        stream.resume_stages();
        Ok(stream)
    }

    /// Runs until shutdown, or with `until_caught_up` until the checkpoint that holds everything; returns the last one.
    pub async fn run(mut self, shutdown: &CancellationToken) -> Result<Option<Checkpoint>> {
        // Where this run begins is durable before anything else: a slot without a checkpoint would be adopted at another place.
        self.flush(Vec::new(), Flush::Always).await?;
        if self.context.until_caught_up {
            self.write(Mark::CaughtUp { run: self.run.clone() });
        }
        self.state("streaming");
        // Never cancelled: the loop drops the read instead, which loses nothing.
        let token = pg_walstream::CancellationToken::new();
        let mut pulse = tokio::time::interval(PULSE);
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.finished.is_some() {
                return Ok(self.finished);
            }
            let open = !self.is_held();
            if open {
                for _ in 0..MESSAGES_AT_ONCE {
                    let Some(frame) = self.connection.get_copy_data_async(&token).now_or_never() else { break };
                    self.frame(frame.map_err(|e| replication_error("reading the stream", e))?).await?;
                    if self.is_held() {
                        break;
                    }
                }
            }
            let open = open && !self.is_held();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                settled = self.lane.settled() => self.committed(settled?).await?,
                event = self.snapshots.next() => self.event(event?).await?,
                Some(written) = self.writes.join_next() => {
                    self.written(written.map_err(|e| Error::bug("writing a message panicked").source(e))??).await?;
                }
                signal = self.signals.next() => self.signal(signal?),
                _ = pulse.tick() => self.pulse().await?,
                frame = self.connection.get_copy_data_async(&token), if open => {
                    self.frame(frame.map_err(|e| replication_error("reading the stream", e))?).await?;
                }
            }
        }
        // What has been read is published; what is half-read of a transaction is skipped at the next start.
        self.flush(Vec::new(), Flush::Data).await?;
        self.settle().await?;
        self.state("stopped");
        Ok(None)
    }

    fn is_held(&self) -> bool {
        self.held.is_some() || self.hold.is_some()
    }

    fn state(&self, state: &str) {
        self.context.status.update(&self.source.name, |s| state.clone_into(&mut s.state));
    }

    // ---- the stream

    async fn frame(&mut self, bytes: Bytes) -> Result<()> {
        let malformed = |e| Error::retry("the server's message is not understood").source(e);
        let (start, data) = match Frame::parse(&bytes).map_err(malformed)? {
            Frame::XLogData { start, data, .. } => (start, data),
            Frame::Keepalive { reply, .. } => {
                if reply {
                    self.feedback().await?;
                }
                return Ok(());
            }
        };
        let (_, message) = Message::parse(data, false).map_err(malformed)?;
        match message {
            Message::Begin { final_lsn, commit_time, xid } => {
                if self.cut_at.as_ref().is_some_and(|(_, lsn)| final_lsn >= *lsn) {
                    self.place_cut().await?;
                }
                if let Some(tick) = self.cursor.tick_before(commit_time) {
                    self.flush(Vec::new(), Flush::Tick(tick)).await?;
                }
                if self.snapshots.holds(xid) {
                    self.held = Some(bytes);
                    return Ok(());
                }
                self.cursor.begin(xid, final_lsn, commit_time)?;
            }
            Message::Commit { end_lsn, .. } => {
                self.cursor.commit(end_lsn)?;
            }
            Message::Relation(relation) => self.relation(&relation).await?,
            Message::Insert { relation, new } => {
                if let Some(meta) = self.change(start, relation)? {
                    let capture = captured(&mut self.captures, relation)?;
                    let before = capture.builder.bytes();
                    let made = capture.builder.insert(&capture.binding, &new, meta).map_err(|e| capture.bad(e))?;
                    self.bytes += capture.builder.bytes().saturating_sub(before);
                    self.sequences += made;
                    if let Some(table) = self.snapshots.state.tables.get_mut(&relation)
                        && !table.is_settled()
                        && let Some(key) = capture.key(&new)
                    {
                        table.forget(&key);
                    }
                }
            }
            Message::Update { relation, old, new } => {
                if let Some(meta) = self.change(start, relation)? {
                    let capture = captured(&mut self.captures, relation)?;
                    let before = capture.builder.bytes();
                    let made = capture
                        .builder
                        .update(&capture.binding, old.as_ref(), &new, meta)
                        .map_err(|e| capture.bad(e))?;
                    self.bytes += capture.builder.bytes().saturating_sub(before);
                    self.sequences += made;
                    let wave = self.snapshots.wave();
                    if let Some(table) = self.snapshots.state.tables.get_mut(&relation) {
                        let old_key = capture.old_key(old.as_ref());
                        // An unchanged key column that is itself left out is in the old key.
                        let key = capture.key(&new).or_else(|| old_key.clone());
                        if let Some(key) = key {
                            let old_key = old_key.filter(|old| *old != key);
                            table.updated(key, old_key.as_ref(), leaves_out(&new), wave);
                        }
                    }
                }
            }
            Message::Delete { relation, old } => {
                if let Some(meta) = self.change(start, relation)? {
                    let capture = captured(&mut self.captures, relation)?;
                    let before = capture.builder.bytes();
                    let made = capture.builder.delete(&capture.binding, &old, meta).map_err(|e| capture.bad(e))?;
                    self.bytes += capture.builder.bytes().saturating_sub(before);
                    self.sequences += made;
                    if let Some(table) = self.snapshots.state.tables.get_mut(&relation)
                        && let Some(key) = capture.old_key(Some(&old))
                    {
                        table.forget(&key);
                    }
                }
            }
            Message::Truncate { relations, .. } => {
                for relation in relations.iter() {
                    if let Some(meta) = self.change(start, relation)? {
                        let capture = captured(&mut self.captures, relation)?;
                        self.sequences += capture.builder.truncate(meta).map_err(|e| capture.bad(e))?;
                        if let Some(table) = self.snapshots.state.tables.get_mut(&relation) {
                            table.truncated();
                        }
                    }
                }
            }
            Message::Logical { transactional: false, lsn, prefix, content } => {
                if let Some(message) = mark::parse(&self.source.slot, prefix, content) {
                    self.message(lsn, message).await?;
                }
            }
            Message::Logical { .. } | Message::Origin { .. } | Message::Type { .. } => {}
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => {
                return Err(Error::bug("the server streams transactions that are in progress, and was not asked to"));
            }
        }
        if self.sequences >= APPEND_ROWS || self.bytes >= APPEND_BYTES {
            self.flush(Vec::new(), Flush::Data).await?;
        }
        Ok(())
    }

    /// Counts a change. None: it is published already, or of a table that is not captured.
    fn change(&mut self, lsn: u64, relation: u32) -> Result<Option<RowMeta>> {
        if !self.cursor.change(lsn)? {
            return Ok(None);
        }
        match self.captures.get(&relation) {
            Some(Some(_)) => {}
            Some(None) => return Ok(None),
            None => {
                return Err(Error::retry("the server sent a change of a table that it did not describe")
                    .with("relation", relation));
            }
        }
        let Some(open) = self.cursor.open() else { return Ok(None) };
        self.snapshots.publishes(open.xid);
        Ok(Some(RowMeta {
            sequence: self.sequences,
            position: lsn,
            tx: Some(u64::from(open.xid)),
            commit_ts: Some(open.commit_time),
        }))
    }

    /// The server describes a table before its first change, and again after anything about it has changed.
    async fn relation(&mut self, relation: &Relation<'_>) -> Result<()> {
        if let Some(Some(capture)) = self.captures.get_mut(&relation.oid)
            && let Some(batch) = capture.finish()?
        {
            self.ready.push(batch);
        }
        // Names and types may be the same and the attribute numbers not: a column dropped and added again.
        let current = catalog::read_table(&*self.sql, relation.oid).await?;
        let ours = self.tables.contains_key(&relation.oid) || {
            // Its transaction may be older than our look at the catalog.
            current.as_ref().is_some_and(|t| self.filter.matches(&t.schema, &t.name) && publication::unfit(t).is_none())
        };
        if !ours {
            self.captures.insert(relation.oid, None);
            return Ok(());
        }
        let Some(table) = current.or_else(|| self.tables.get(&relation.oid).cloned()) else {
            self.captures.insert(relation.oid, None);
            return Ok(());
        };
        let id = TableId::new(&self.source.name, &table.schema, &table.name);
        let mut capture = Capture::new(&table, self.shape(&table).await?, relation);
        if capture.is_none() {
            // DDL has run since this was written.
            let known = self.publisher().await?.versions(&id).to_vec();
            if let Some(older) = as_of_relation(&*self.sql, &table, relation, &known).await? {
                capture = Capture::new(&older, self.shape(&older).await?, relation);
            }
        }
        let Some(capture) = capture else {
            return Err(Error::resnapshot(
                "the table was changed while its changes waited to be read, and their columns cannot be told any more",
            )
            .with("table", &id));
        };
        self.publisher().await?.register(capture.shape.schema()).await?;
        self.captures.insert(relation.oid, Some(capture));
        Ok(())
    }

    /// A table's shape with its version.
    async fn shape(&mut self, table: &Table) -> Result<TableShape> {
        let shape = table.shape(&self.source.name, 0)?;
        let version = self.publisher().await?.version_for(shape.schema());
        table.shape(&self.source.name, version)
    }

    /// A table's shape, its topic and schema made known.
    async fn register(&mut self, table: &Table) -> Result<TableShape> {
        let shape = self.shape(table).await?;
        self.publisher().await?.register(shape.schema()).await?;
        Ok(shape)
    }

    /// The publisher, after the append under way.
    async fn publisher(&mut self) -> Result<&mut crate::publisher::Publisher> {
        self.settle().await?;
        self.lane.publisher().ok_or_else(|| Error::bug("the publisher is away and no append is under way"))
    }

    // ---- messages, signals, the clock

    async fn message(&mut self, lsn: u64, message: mark::Message) -> Result<()> {
        if self.cut_at.as_ref().is_some_and(|(_, cut)| lsn > *cut) {
            self.place_cut().await?;
        }
        self.cursor.message(lsn, message.clock);
        if let Some(tick) = self.cursor.tick_before(message.clock) {
            self.flush(Vec::new(), Flush::Tick(tick)).await?;
        }
        match message.mark {
            Mark::Tick => self.tick_written = false,
            Mark::Cut { .. } => {}
            Mark::CaughtUp { run } if run == self.run => self.caught_up = Some(message.clock),
            Mark::Hold { request, seconds } => {
                // The signal may have been faster than the stream.
                if self.cut_at.as_ref().is_none_or(|(asked, _)| *asked != request) {
                    let limit = Duration::from_secs(seconds).min(HOLD_LIMIT);
                    tracing::debug!(source = self.source.name, request, "holding the stream");
                    self.hold = Some((request, Instant::now() + limit));
                }
            }
            Mark::RangesRead { table, run } if run == self.run => {
                if let Some(state) = self.snapshots.state.tables.get_mut(&table)
                    && state.stage == Stage::Closing
                {
                    state.stage = Stage::Settling;
                    self.advance(table);
                }
            }
            Mark::Settled { table, run } if run == self.run => {
                if self.snapshots.state.tables.get(&table).is_some_and(|t| t.stage == Stage::Ending)
                    && let Some(done) = self.snapshots.state.tables.remove(&table)
                {
                    self.snapshots.state.done.insert(table);
                    tracing::info!(source = self.source.name, table = done.name, "snapshot finished");
                }
            }
            Mark::CaughtUp { .. } | Mark::RangesRead { .. } | Mark::Settled { .. } => {}
        }
        Ok(())
    }

    fn write(&mut self, mark: Mark) {
        let (client, marker) = (self.sql.clone(), self.marker.clone());
        self.writes.spawn(async move {
            marker.write(&client, &mark).await?;
            Ok(Written::Mark)
        });
    }

    async fn written(&mut self, written: Written) -> Result<()> {
        match written {
            Written::Mark => Ok(()),
            Written::Clock(offset) => {
                self.clock_offset = offset;
                self.context.status.update(&self.source.name, |s| s.clock_offset = offset);
                Ok(())
            }
            Written::Tables(tables) => self.found(tables).await,
        }
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Cut { request, lsn } => {
                let begun = self.cursor.open().is_some_and(|open| open.changes > 0 && open.final_lsn >= lsn);
                if self.cursor.lsn() > lsn || begun {
                    tracing::warn!(source = self.source.name, request, "a cut was asked for too late");
                } else {
                    self.cut_at = Some((request.clone(), lsn));
                    self.write(Mark::Cut { request });
                }
                self.hold = None;
            }
            Signal::Snapshot { request, .. } => {
                tracing::warn!(
                    source = self.source.name,
                    request,
                    "taking a table's snapshot again is not possible yet"
                );
            }
        }
    }

    /// Everything up to the asked LSN has arrived, nothing after it.
    async fn place_cut(&mut self) -> Result<()> {
        if let Some((request, lsn)) = self.cut_at.take() {
            self.cursor.cut(lsn);
            tracing::debug!(source = self.source.name, request, "cut placed");
            self.flush(Vec::new(), Flush::Cut).await?;
        }
        Ok(())
    }

    /// What is due by the clock.
    async fn pulse(&mut self) -> Result<()> {
        if let Some((request, _)) = self.hold.as_ref().filter(|(_, until)| Instant::now() > *until) {
            tracing::warn!(source = self.source.name, request, "a hold ended without a cut");
            self.hold = None;
        }
        let due = tick_at(now() + self.clock_offset, self.interval);
        if due > self.cursor.watermark() && !self.tick_written && !self.is_held() {
            self.tick_written = true;
            self.write(Mark::Tick);
        }
        if self.told.elapsed() > FEEDBACK {
            self.feedback().await?;
        }
        if self.discovered.elapsed() > DISCOVERY {
            self.discovered = Instant::now();
            let (client, filter) = (self.sql.clone(), self.filter.clone());
            self.writes.spawn(async move { Ok(Written::Tables(catalog::list_tables(&*client, &filter).await?)) });
            let client = self.sql.clone();
            self.writes.spawn(async move { Ok(Written::Clock(clock_offset(&client).await?)) });
        }
        if let Some(tables) = self.snapshots.due() {
            self.plan_wave(tables).await?;
        }
        Ok(())
    }

    async fn feedback(&mut self) -> Result<()> {
        self.told = Instant::now();
        let lsn = self.confirmed;
        self.connection
            .send_standby_status_update(lsn, lsn, lsn, false)
            .await
            .map_err(|e| replication_error("confirming the position", e))
    }

    // ---- appends

    /// Hands everything that has arrived, and then `extra` (whose sequences count from 0 in each batch group of one read), to the
    /// log.
    async fn flush(&mut self, extra: Vec<(Vec<ChangeBatch>, u64)>, kind: Flush) -> Result<()> {
        for capture in self.captures.values_mut().flatten() {
            if let Some(batch) = capture.finish()? {
                self.ready.push(batch);
            }
        }
        for (batches, rows) in extra {
            for batch in batches {
                let numbered = batch.with_sequence_base(self.sequences);
                self.ready.push(numbered.map_err(|e| Error::bug("numbering a snapshot's rows").source(e))?);
            }
            self.sequences += rows;
        }
        if self.ready.is_empty() && matches!(kind, Flush::Data) {
            return Ok(());
        }
        self.settle().await?;
        let cut = match kind {
            Flush::Tick(tick) => {
                self.cursor.promised(tick);
                true
            }
            Flush::Cut => {
                // Off the grid, which tells the sink that somebody waits for this very cut.
                self.cursor.promised(self.cursor.clock());
                true
            }
            Flush::Data | Flush::Always => false,
        };
        let snapshot = serde_json::to_value(&self.snapshots.state)
            .map_err(|e| Error::bug("the snapshot's state is always JSON").source(e))?;
        let progress = Progress {
            position: self.cursor.position(),
            snapshot,
            converging: self.snapshots.converging(),
            watermark_from: self.cursor.watermark_from(),
            watermark: self.cursor.watermark(),
            cut,
        };
        self.flying = std::mem::take(&mut self.sequences);
        self.bytes = 0;
        crash_point!("connector.stream.before_append");
        self.lane.begin(Append { batches: std::mem::take(&mut self.ready), sequences: self.flying, progress })
    }

    /// Waits for the append under way.
    async fn settle(&mut self) -> Result<()> {
        if self.lane.is_busy() {
            let checkpoint = self.lane.settled().await?;
            self.committed(checkpoint).await?;
        }
        Ok(())
    }

    /// An append is durable: exactly its position is confirmed to the server.
    async fn committed(&mut self, checkpoint: Checkpoint) -> Result<()> {
        crash_point!("connector.confirm.before");
        let rows = std::mem::take(&mut self.flying);
        self.context.status.committed(&self.source.name, &checkpoint, rows);
        if let Position::Postgres { lsn, .. } = checkpoint.draft.position
            && lsn > self.confirmed
        {
            self.confirmed = lsn;
            self.feedback().await?;
        }
        if self.context.until_caught_up
            && checkpoint.draft.cut
            && checkpoint.draft.converging.is_empty()
            && self.caught_up.is_some_and(|clock| checkpoint.draft.watermark > clock)
        {
            self.finished = Some(checkpoint);
        }
        Ok(())
    }

    // ---- snapshots

    /// Marks of the run before may have arrived or not: they are written again.
    fn resume_stages(&mut self) {
        let tables: Vec<u32> = self.snapshots.state.tables.keys().copied().collect();
        for oid in tables {
            if let Some(table) = self.snapshots.state.tables.get_mut(&oid) {
                match table.stage {
                    Stage::Closing => self.write(Mark::RangesRead { table: oid, run: self.run.clone() }),
                    Stage::Ending => table.stage = Stage::Settling,
                    Stage::Reading | Stage::Settling => {}
                }
            }
            self.advance(oid);
        }
    }

    /// Takes a table to its next stage if it is ready for it.
    fn advance(&mut self, oid: u32) {
        let run = self.run.clone();
        let Some(table) = self.snapshots.state.tables.get_mut(&oid) else { return };
        let mark = match table.stage {
            Stage::Reading if table.is_read() => {
                table.stage = Stage::Closing;
                Mark::RangesRead { table: oid, run }
            }
            Stage::Settling if table.is_settled() => {
                table.stage = Stage::Ending;
                Mark::Settled { table: oid, run }
            }
            _ => return,
        };
        self.write(mark);
    }

    async fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Read(read) => self.read(read).await,
            Event::Ended(Outcome::BarrierPassed) => {
                self.snapshots.rest(Duration::ZERO);
                Ok(())
            }
            Event::Ended(Outcome::Locked(None)) => {
                tracing::info!(source = self.source.name, "a table is locked or was changed: its snapshot waits");
                self.snapshots.rest(REFUSED);
                Ok(())
            }
            Event::Ended(Outcome::Locked(Some(locked))) => self.open_wave(*locked).await,
            Event::Ended(Outcome::WaveOver) => {
                while let Some(read) = self.snapshots.try_read() {
                    self.read(read).await?;
                }
                self.snapshots.wave_over();
                // The stream goes on where it was held.
                if let Some(frame) = self.held.take() {
                    self.frame(frame).await?;
                }
                let tables: Vec<u32> = self.snapshots.state.tables.keys().copied().collect();
                for table in tables {
                    self.advance(table);
                }
                Ok(())
            }
        }
    }

    /// Reads the catalog for the wave to come, and has its locks taken.
    async fn plan_wave(&mut self, tables: Vec<u32>) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for oid in tables {
            let Some(table) = catalog::read_table(&*self.sql, oid).await? else {
                // Dropped: there is nothing to read, and nothing will follow.
                self.snapshots.state.tables.remove(&oid);
                continue;
            };
            if publication::unfit(&table).is_some() {
                continue;
            }
            let shape = self.register(&table).await?;
            let keys =
                self.snapshots.state.tables.get(&oid).map_or(Vec::new(), |t| t.incomplete.keys().cloned().collect());
            wanted.insert(oid, Wanted { table, shape, keys });
        }
        if wanted.is_empty() {
            self.snapshots.rest(REFUSED)
        } else {
            self.snapshots.lock(wanted)
        }
        Ok(())
    }

    /// The locks are held. Nothing is published while the snapshot is taken: this is the loop that publishes.
    async fn open_wave(&mut self, locked: Locked) -> Result<()> {
        let mut ranges: Vec<Range> = Vec::new();
        for (oid, leaves) in &locked.leaves {
            let Some(table) = self.snapshots.state.tables.get_mut(oid) else { continue };
            if table.stage == Stage::Reading {
                if table.look(leaves) {
                    tracing::info!(
                        source = self.source.name,
                        table = table.name,
                        "rewritten while its snapshot was taken: it starts over"
                    );
                }
                ranges.extend(table.ranges_left(*oid));
            }
        }
        let Some(exported) = self.snapshots.export(locked).await? else {
            tracing::info!(source = self.source.name, "a published transaction is not visible yet: the snapshot waits");
            self.snapshots.rest(REFUSED);
            return Ok(());
        };
        self.snapshots.read(exported, ranges);
        Ok(())
    }

    /// Rows of a wave and the progress they are, in one append.
    async fn read(&mut self, read: Read) -> Result<()> {
        let extra = match read {
            Read::Range { range, batches, rows } => {
                if let Some(table) = self.snapshots.state.tables.get_mut(&range.table) {
                    table.range_done(&range);
                }
                vec![(batches, rows)]
            }
            Read::Completed { table, keys, missing, batches, rows } => {
                let wave = self.snapshots.wave();
                if let Some(state) = self.snapshots.state.tables.get_mut(&table) {
                    state.completed(&keys, &missing, wave);
                }
                let mut extra = vec![(batches, rows)];
                if !missing.is_empty() {
                    extra.push(self.deletes(table, &missing).await?);
                }
                extra
            }
        };
        crash_point!("connector.wave.before_append");
        self.flush(extra, Flush::Always).await
    }

    /// Deletes for keys that a wave did not find.
    async fn deletes(&mut self, oid: u32, keys: &[Key]) -> Result<(Vec<ChangeBatch>, u64)> {
        let Some(table) = catalog::read_table(&*self.sql, oid).await? else { return Ok((Vec::new(), 0)) };
        let shape = self.register(&table).await?;
        let wrong = |e| Error::bug("a delete of our own making").source(e);
        let binding = super::tuple::Binding::of(&relation_of(&table), &shape)
            .ok_or_else(|| Error::bug("a relation of our own making has another shape"))?;
        let mut builder = TableBuilder::new(&shape);
        let mut rows = 0;
        for key in keys {
            let bytes = delete_message(&table, key);
            if let (_, Message::Delete { old, .. }) = Message::parse(&bytes, false).map_err(wrong)? {
                let meta = RowMeta {
                    sequence: rows,
                    position: self.cursor.lsn(),
                    tx: None,
                    commit_ts: Some(self.cursor.clock()),
                };
                rows += builder.delete(&binding, &old, meta).map_err(wrong)?;
            }
        }
        Ok((vec![builder.finish().map_err(wrong)?], rows))
    }

    /// The catalog's tables now: new ones join the publication and get a snapshot, those gone leave it.
    async fn found(&mut self, tables: Vec<Table>) -> Result<()> {
        let fit: BTreeMap<u32, Table> =
            tables.into_iter().filter(|t| publication::unfit(t).is_none()).map(|t| (t.oid, t)).collect();
        let before: BTreeSet<u32> = self.tables.keys().copied().collect();
        if before == fit.keys().copied().collect() {
            self.tables = fit;
            return Ok(());
        }
        let added = publication::ensure(&self.sql, &self.source.publication, &fit).await?;
        for oid in before.iter().filter(|oid| !fit.contains_key(oid)) {
            self.snapshots.state.tables.remove(oid);
            self.snapshots.state.done.remove(oid);
        }
        for (oid, table) in &fit {
            if added.contains(oid) || !before.contains(oid) {
                let name = format!("{}.{}", table.schema, table.name);
                tracing::info!(source = self.source.name, table = name, "new table");
                self.snapshots.state.done.remove(oid);
                self.snapshots.state.tables.insert(*oid, TableState::new(name));
                self.snapshots.want_barrier();
            }
        }
        self.tables = fit;
        // A relation that was passed over before may be ours now; the server describes it again after the publication changed.
        Ok(())
    }
}

/// Why something is handed to the log.
enum Flush {
    /// There is enough of it.
    Data,
    /// Even if it holds no change: its progress counts.
    Always,
    /// Everything acknowledged before this tick is in it.
    Tick(i64),
    /// Asked for, at the cursor's position.
    Cut,
}

fn captured(captures: &mut HashMap<u32, Option<Capture>>, relation: u32) -> Result<&mut Capture> {
    captures
        .get_mut(&relation)
        .and_then(Option::as_mut)
        .ok_or_else(|| Error::bug("a change of a table that is not captured"))
}

fn leaves_out(tuple: &Tuple<'_>) -> bool {
    tuple.iter().any(|value| matches!(value, Value::Unchanged))
}
