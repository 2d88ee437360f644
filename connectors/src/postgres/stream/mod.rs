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

//!
//! # Layout
//! - this file: the loop
//! - [`frames`]: changes and tables as the server sends them
//! - [`marks`]: messages of ours, requests, the clock
//! - [`append`]: what is handed to the log, and what is confirmed after it
//! - [`waves`]: snapshots beside the stream

mod append;
mod frames;
mod marks;
mod waves;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use lakeward_event::{ChangeBatch, Checkpoint};
use lakeward_log::SignalReader;
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Error, Result};
use pg_walstream::PgReplicationConnection;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use self::append::Flush;
use super::capture::Capture;
use super::catalog::{Table, TableFilter};
use super::client::{replication_error, sql_error};
use super::cursor::Cursor;
use super::mark::{Mark, Marker};
use super::snapshot::Snapshots;
use crate::ConnectorContext;
use crate::publisher::Lane;

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
/// Snapshots that a table may take again in a row because its changes cannot be read.
const START_OVERS: u32 = 5;
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
    /// How often in a row a table's snapshot was begun again although ranges of it had been read.
    started_over: HashMap<u32, u32>,
    /// Ended batches of the append to come.
    ready: Vec<ChangeBatch>,
    /// Sequences and bytes of the append to come.
    sequences: u64,
    /// An append is begun at so many.
    append_rows: u64,
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
        let append_rows = APPEND_ROWS / u64::from(crate::append_divisor(context.codec));
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
            started_over: HashMap::new(),
            ready: Vec::new(),
            sequences: 0,
            append_rows,
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

    async fn feedback(&mut self) -> Result<()> {
        self.told = Instant::now();
        let lsn = self.confirmed;
        self.connection
            .send_standby_status_update(lsn, lsn, lsn, false)
            .await
            .map_err(|e| replication_error("confirming the position", e))
    }
}
