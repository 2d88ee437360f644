//! From the log to the lake: changes become rows of Iceberg tables, exactly once, at cuts that can be read together.
//!
//! `log records -> decoders -> ChangeBatch -> last change per key -> old rows (key index) -> data files + position deletes ->
//! one row delta per table -> row in lakeward.checkpoints`
//!
//! # Layout
//! - [`consumer`]: one worker per source, in lockstep with its checkpoints
//! - [`cut`]: which checkpoints tables commit at together, and when the row may be written; pure
//! - [`table`]: a table, its schema and what is pending for it
//! - [`reduce`]: last change per key, by columns
//! - [`documents`]: columns of MongoDB documents
//! - [`foreign`]: topics that others write: cuts of our own, tables that records tell
//! - [`key_index`]: which file and row a key stands at
//! - [`visitor`]: records to the decoders of their topics
//! - [`read`], [`writer`]: old rows in, data files and position deletes out
//! - [`commit`]: offsets in a table's history
//! - [`checkpoints`]: rows of `lakeward.checkpoints`
//! - [`dead_letter`]: what cannot be applied
//! - [`retention`]: whether the log will still have what is unread

mod checkpoints;
mod commit;
mod consumer;
mod cut;
mod dead_letter;
mod documents;
mod foreign;
pub mod key_index;
mod read;
mod reduce;
mod retention;
mod table;
mod visitor;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use lakeward_lake::Lake;
use lakeward_lake::system::{CheckpointTable, DeadLetterTable};
use lakeward_log::Log;
use lakeward_runtime::config::{Config, OnBadRecord, SourceConfig};
use lakeward_runtime::lock::RoleLock;
use lakeward_runtime::retry::Backoff;
use lakeward_runtime::{Action, Error, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use commit::{CHECKPOINT, Committed, OFFSETS, WATERMARK, committed_of};
use consumer::{Sink, Worker};
pub use foreign::{known as known_table, table_by_name, topic_filter};
use retention::Held;
use table::Shared;
pub use table::source_of;

/// Source to checkpoint id: the sink ends when each source named has a row with this id or a newer one. Sources may be added
/// while it runs; it waits for all configured ones.
pub type Targets = BTreeMap<String, i64>;
/// None: run until shutdown.
pub type Until = Option<watch::Receiver<Targets>>;

/// What a run is limited to.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Glob on topic names (`--table`); other tables are another sink's.
    pub tables: Option<String>,
    /// `--until-caught-up`.
    pub until: Until,
}

/// Runs a worker per source until `shutdown` (or until all targets have their rows). Nothing needs draining: what is not
/// committed is read again. An error ends all workers; those that a retry may cure are tried again here.
pub async fn run(
    config: &Config,
    lake: Lake,
    log: Arc<dyn Log>,
    options: Options,
    shutdown: CancellationToken,
) -> Result<()> {
    // Two would write the same index files.
    let _lock = RoleLock::take(&config.state_dir, "sink")?;
    let tables = match &options.tables {
        None => None,
        Some(glob) => {
            let glob = globset::Glob::new(glob).map_err(|e| Error::configuration(format!("--table: {e}")))?;
            Some(glob.compile_matcher())
        }
    };
    let shared = Arc::new(Shared {
        dead_letters: DeadLetterTable::open(&lake).await?,
        state_dir: config.state_dir.clone(),
        stop_on_bad_record: config.sink.on_bad_record == OnBadRecord::Stop,
        lake: lake.clone(),
    });
    let rows = CheckpointTable::open(&lake).await?;
    let sink = Arc::new(Sink {
        config: config.clone(),
        registry: lakeward_log::registry::open(config.registry.as_ref())?,
        shared,
        log,
        rows,
        tables,
        until: options.until,
        started: dead_letter::now(),
    });
    let mut workers = JoinSet::new();
    let stop = shutdown.child_token();
    for source in &config.sources {
        workers.spawn(work(sink.clone(), source.clone(), stop.clone()));
    }
    let mut first: Result<()> = Ok(());
    while let Some(ended) = workers.join_next().await {
        let ended = ended.unwrap_or_else(|e| Err(Error::bug("a worker of the sink died").source(e)));
        if let Err(error) = ended {
            stop.cancel();
            if first.is_ok() {
                first = Err(error);
            }
        }
    }
    first
}

/// One source's worker, and beside it the look at what the log will drop.
async fn work(sink: Arc<Sink>, source: SourceConfig, shutdown: CancellationToken) -> Result<()> {
    let held = Held::default();
    let ended = shutdown.child_token();
    let watched = retention::watch(sink.log.clone(), &source, &held, sink.tables.as_ref(), &ended);
    let worked = async {
        let _ended = ended.clone().drop_guard();
        keep_working(sink.clone(), source.clone(), held.clone(), &shutdown).await
    };
    tokio::join!(worked, watched).0
}

/// A worker, made anew after errors that pass.
async fn keep_working(sink: Arc<Sink>, source: SourceConfig, held: Held, shutdown: &CancellationToken) -> Result<()> {
    let mut backoff = Backoff::new();
    let what = format!("sink of {}", source.name);
    loop {
        let ended = async {
            let mut worker = Worker::open(sink.clone(), source.clone(), held.clone()).await?;
            worker.run(shutdown).await
        }
        .await;
        match ended {
            Ok(()) => return Ok(()),
            Err(_) if shutdown.is_cancelled() => return Ok(()),
            Err(error) => {
                let error =
                    if error.action() == Action::Rebase { Error::retry(what.as_str()).source(error) } else { error };
                backoff.wait(&what, error.with("source", &source.name), shutdown).await?;
            }
        }
    }
}
