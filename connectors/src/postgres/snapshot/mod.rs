//! Snapshots in waves, beside the stream: `tables without a snapshot -> barrier -> waves -> converged`.
//!
//! # Layout
//! - [`state`]: how far each table is, as checkpoints keep it
//! - [`visibility`]: what a server snapshot sees
//! - [`wave`]: locks, an exported snapshot, ranges read by several connections
//! - this file: what runs beside the loop that reads the stream, and when. The loop ([`super::stream`]) owns a [`Snapshots`],
//!   decides when to publish, and holds the stream at the first transaction that the wave under way does not see.

pub mod state;
pub mod visibility;
pub mod wave;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use lakeward_runtime::config::Secret;
use lakeward_runtime::{Error, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::state::{Range, State};
use self::visibility::Visibility;
use self::wave::{Exported, Locked, Read, Wanted};
use super::client::{connect, sql_error};
use super::slot;

/// Connections that read ranges at the same time.
const CONNECTIONS: usize = 4;
/// Tables of one wave: each costs a lock held while the wave lasts.
const TABLES_AT_ONCE: usize = 32;
/// Between two waves, so that the stream that was held comes on.
const REST: Duration = Duration::from_millis(200);
/// After a refused lock.
pub const REFUSED: Duration = Duration::from_millis(500);
/// Between looks at the oldest transaction while a barrier waits.
const BARRIER_POLL: Duration = Duration::from_millis(50);

/// What is going on beside the stream; set by the loop that reads it.
enum Phase {
    /// Nothing before this moment.
    Rest(Instant),
    /// Waiting until everything committed before is visible.
    Barrier,
    /// Taking locks for a wave.
    Locking,
    /// Ranges are read under a snapshot that sees this.
    Reading { visibility: Visibility, since: Instant },
}

/// A task's end.
pub enum Outcome {
    BarrierPassed,
    /// None: refused.
    Locked(Option<Box<Locked>>),
    WaveOver,
}

pub struct Snapshots {
    url: Secret,
    source: String,
    /// See [`RANGE_BYTES`](state::RANGE_BYTES).
    range_bytes: u64,
    pub state: State,
    phase: Phase,
    barrier_wanted: bool,
    tasks: JoinSet<Result<Outcome>>,
    results: mpsc::Receiver<Read>,
    sender: mpsc::Sender<Read>,
    /// Transactions of which something was put into a batch since the last snapshot was taken.
    published: HashSet<u32>,
    /// Number of the last wave.
    wave: u64,
}

/// Something happened beside the stream.
pub enum Event {
    Read(Read),
    Ended(Outcome),
}

impl Snapshots {
    pub fn new(url: Secret, source: String, range_bytes: u64, state: State) -> Self {
        let (sender, results) = mpsc::channel(1);
        // The set of published transactions died with the process before: barrier anew at each start.
        let barrier_wanted = !state.tables.is_empty();
        Self {
            url,
            source,
            range_bytes,
            state,
            phase: Phase::Rest(Instant::now()),
            barrier_wanted,
            tasks: JoinSet::new(),
            results,
            sender,
            published: HashSet::new(),
            wave: 0,
        }
    }

    /// Nothing to do for any table.
    pub fn is_empty(&self) -> bool {
        self.state.tables.is_empty()
    }

    pub fn wave(&self) -> u64 {
        self.wave
    }

    /// Tables (`schema.name`) whose snapshot is not finished.
    pub fn converging(&self) -> Vec<String> {
        self.state.tables.values().map(|t| t.name.clone()).collect()
    }

    /// The publication has changed: nothing is read before a new barrier.
    pub fn want_barrier(&mut self) {
        self.barrier_wanted = true;
    }

    /// A row of this transaction goes into a batch.
    pub fn publishes(&mut self, xid: u32) {
        if !self.state.tables.is_empty() {
            self.published.insert(xid);
        }
    }

    /// Whether the stream must wait before this transaction: the wave's rows, which do not show it, are not published yet.
    pub fn holds(&self, xid: u32) -> bool {
        matches!(&self.phase, Phase::Reading { visibility, .. } if !visibility.sees(xid))
    }

    /// The next thing that happens beside the stream; pends where nothing goes on. Cancel safe.
    pub async fn next(&mut self) -> Result<Event> {
        tokio::select! {
            biased;
            Some(read) = self.results.recv() => Ok(Event::Read(read)),
            Some(joined) = self.tasks.join_next() => {
                let outcome = joined.map_err(|e| Error::bug("a task of the snapshot panicked").source(e))??;
                Ok(Event::Ended(outcome))
            }
            else => std::future::pending().await,
        }
    }

    /// A result that has arrived already: a wave's end can overtake its last ranges.
    pub fn try_read(&mut self) -> Option<Read> {
        self.results.try_recv().ok()
    }

    /// Starts what is due. Returns the tables that the next wave is for, when it is time for one.
    pub fn due(&mut self) -> Option<Vec<u32>> {
        let Phase::Rest(until) = self.phase else { return None };
        if self.is_empty() || Instant::now() < until {
            return None;
        }
        if self.barrier_wanted {
            self.barrier_wanted = false;
            self.phase = Phase::Barrier;
            self.tasks.spawn(barrier(self.url.clone(), self.source.clone()));
            return None;
        }
        let tables: Vec<u32> = self
            .state
            .tables
            .iter()
            .filter(|(_, t)| !t.is_read() || !t.incomplete.is_empty())
            .map(|(oid, _)| *oid)
            .take(TABLES_AT_ONCE)
            .collect();
        (!tables.is_empty()).then_some(tables)
    }

    pub fn rest(&mut self, time: Duration) {
        self.phase = Phase::Rest(Instant::now() + time);
    }

    pub fn lock(&mut self, wanted: BTreeMap<u32, Wanted>) {
        let (url, range_bytes) = (self.url.clone(), self.range_bytes);
        self.phase = Phase::Locking;
        self.tasks
            .spawn(async move { wave::lock(url, wanted, range_bytes).await.map(|l| Outcome::Locked(l.map(Box::new))) });
    }

    /// The caller has stopped publishing. Takes the snapshot, again and again for 5 s until it sees all that is published.
    /// None: it did not.
    pub async fn export(&mut self, locked: Locked) -> Result<Option<Exported>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(taken) = locked.try_export(self.published.iter().copied()).await? {
                // All of them are visible to this and every later snapshot.
                self.published.clear();
                return Ok(Some(locked.exported(taken)));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn read(&mut self, exported: Exported, ranges: Vec<Range>) {
        self.wave += 1;
        self.phase = Phase::Reading { visibility: exported.visibility.clone(), since: Instant::now() };
        let (url, sender) = (self.url.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            wave::read(exported, url, ranges, CONNECTIONS, sender).await?;
            Ok(Outcome::WaveOver)
        });
    }

    pub fn wave_over(&mut self) {
        if let Phase::Reading { since, .. } = &self.phase {
            tracing::debug!(
                source = self.source,
                wave = self.wave,
                took_ms = since.elapsed().as_millis() as u64,
                "wave of snapshots over"
            );
        }
        self.rest(REST);
    }
}

/// Returns once every transaction that was committed before this call is visible to new snapshots.
async fn barrier(url: Secret, source: String) -> Result<Outcome> {
    let client = connect(&url, "snapshot").await?;
    let failed = |e| sql_error("waiting for older transactions before the snapshot", e);
    let xid: String = client.query_one("SELECT pg_current_xact_id()::text", &[]).await.map_err(failed)?.get(0);
    let mut told = Instant::now();
    loop {
        let passed: bool = client
            .query_one("SELECT pg_snapshot_xmin(pg_current_snapshot()) > $1::text::xid8", &[&xid])
            .await
            .map_err(failed)?
            .get(0);
        if passed {
            return Ok(Outcome::BarrierPassed);
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            let open = slot::open_transactions(&client).await?;
            tracing::warn!(source, waiting_for = %open.join("; "), "the snapshot waits for open transactions");
        }
        tokio::time::sleep(BARRIER_POLL).await;
    }
}
