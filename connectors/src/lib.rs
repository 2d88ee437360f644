//! Sources to the log: `source rows -> ChangeBatch -> log record`.
//!
//! # Layout
//! - [`postgres`]: PostgreSQL, by logical replication and COPY
//! - [`mongodb`]: MongoDB, by change stream and ranges of `_id`
//! - [`grid`]: the ticks that all sources share
//! - [`publisher`]: what every connector hands its changes to
//! - [`fit`]: rows above the largest record
//! - [`status`]: what running connectors tell of themselves
//! - this file: one source's connector, kept running

mod fit;
pub mod grid;
pub mod mongodb;
pub mod postgres;
pub mod publisher;
pub mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lakeward_event::Checkpoint;
use lakeward_event::codec::Encoder;
use lakeward_event::codec::arrow::ArrowEncoder;
use lakeward_event::codec::avro::AvroEncoder;
use lakeward_event::codec::json::JsonEncoder;
use lakeward_event::codec::registry::SchemaRegistry;
use lakeward_log::Log;
use lakeward_runtime::config::{Codec, SourceConfig, SourceKind};
use lakeward_runtime::{Error, Result};
use tokio_util::sync::CancellationToken;

pub use status::StatusBoard;

/// What a connector needs besides its source.
#[derive(Clone)]
pub struct ConnectorContext {
    pub checkpoint_interval: Duration,
    pub log: Arc<dyn Log>,
    pub codec: Codec,
    /// Of the codec `avro`.
    pub registry: Arc<dyn SchemaRegistry>,
    pub status: Arc<StatusBoard>,
    /// End once everything is published that was committed when the connector started.
    pub until_caught_up: bool,
}

/// Something that keeps a source from being captured, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub what: String,
    pub fix: String,
}

impl Problem {
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }
}

/// The first wait after a failure; doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A source that was never reached gives up after this: more likely a wrong address than a server that restarts.
const FIRST_CONTACT: Duration = Duration::from_secs(30);

/// Runs a source's connector until `shutdown` (None), or until it has caught up where the context asks for it (the checkpoint
/// that holds everything). Failures that a retry may cure are retried here; a connector that comes back goes on from the last
/// committed checkpoint.
pub async fn run(
    source: SourceConfig,
    context: ConnectorContext,
    shutdown: CancellationToken,
) -> Result<Option<Checkpoint>> {
    let started = Instant::now();
    let mut wait = FIRST_WAIT;
    loop {
        let attempt = Instant::now();
        let published = checkpoint_of(&context, &source.name);
        let outcome = match source.kind {
            SourceKind::Postgres => postgres::run(&source, &context, &shutdown).await,
            SourceKind::Mongodb => mongodb::run(&source, &context, &shutdown).await,
            // Somebody else's connector writes these topics.
            SourceKind::Debezium => return Ok(None),
        };
        let error = match outcome {
            Ok(checkpoint) => return Ok(checkpoint),
            Err(error) => error.with("source", &source.name),
        };
        context.status.update(&source.name, |s| s.last_error = Some(error.to_string()));
        let now = checkpoint_of(&context, &source.name);
        if now != published {
            wait = FIRST_WAIT;
        }
        if !error.is_retryable() || (now.is_none() && started.elapsed() > FIRST_CONTACT) {
            return Err(error);
        }
        tracing::warn!(error = %error, ran_s = attempt.elapsed().as_secs(), "connector failed, trying again");
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

fn checkpoint_of(context: &ConnectorContext, source: &str) -> Option<i64> {
    context.status.sources().get(source).and_then(|s| s.checkpoint)
}

/// Everything that keeps a source from being captured.
pub async fn problems(source: &SourceConfig) -> Vec<Problem> {
    match source.kind {
        SourceKind::Postgres => postgres::problems(source).await,
        SourceKind::Mongodb => mongodb::problems(source).await,
        SourceKind::Debezium => Vec::new(),
    }
}

/// By how much appends are smaller than a codec without inlined schemas would have them: those are most of each record, and an
/// append is in memory as a whole, and one transaction of the log.
pub(crate) fn append_divisor(codec: Codec) -> u32 {
    if codec == Codec::JsonWithSchemas { 8 } else { 1 }
}

/// The encoder of a codec.
pub fn encoder(codec: Codec, registry: &Arc<dyn SchemaRegistry>) -> Result<Box<dyn Encoder>> {
    Ok(match codec {
        Codec::Json => Box::<JsonEncoder>::default(),
        Codec::Avro => Box::new(AvroEncoder::new(registry.clone())),
        Codec::JsonWithSchemas => Box::new(JsonEncoder::default().with_inline_schemas(true)),
        Codec::Arrow => Box::new(ArrowEncoder::new().map_err(|e| Error::bug("the encoder cannot start").source(e))?),
    })
}
