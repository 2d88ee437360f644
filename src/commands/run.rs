//! `lakeward run`: configuration -> connectors and sink in one process, until a signal or until caught up.

use std::sync::Arc;

use lakeward_connectors::{ConnectorContext, StatusBoard};
use lakeward_event::Checkpoint;
use lakeward_lake::Lake;
use lakeward_runtime::config::{Config, SourceConfig};
use lakeward_runtime::health::{self, Readiness};
use lakeward_runtime::lock::RoleLock;
use lakeward_runtime::{Error, Result, shutdown, telemetry};
use lakeward_sink::{Options, Targets};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    Connectors,
    Sink,
    Query,
}

#[derive(clap::Args)]
pub struct Args {
    /// connectors, sink, query; all of them without a name
    roles: Vec<Role>,
    /// Exit 0 once the lake holds everything that the sources had committed when this started
    #[arg(long)]
    until_caught_up: bool,
    /// Limits the connectors to one source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Limits the sink to tables whose topic matches
    #[arg(long, value_name = "GLOB")]
    table: Option<String>,
}

/// What a task of the process came to: the caught-up checkpoint of a source, or nothing.
type Outcome = Result<Option<(String, Checkpoint)>>;

pub async fn run(config: Config, args: &Args) -> Result<()> {
    let has = |role| args.roles.contains(&role) || (args.roles.is_empty() && role != Role::Query);
    if args.roles.contains(&Role::Query) {
        return Err(Error::configuration(
            "the query server does not exist yet: `lakeward sql` reads the lake without one",
        ));
    }
    if args.until_caught_up && !has(Role::Connectors) {
        return Err(Error::configuration(
            "--until-caught-up needs the role connectors, which knows what there was at the start",
        ));
    }
    let sources = sources(&config, args)?;
    let log = lakeward_log::open(&config.log, &config.name)?;
    let shutdown = shutdown::on_signals()?;
    let handle = telemetry::metrics()?;
    let readiness = Readiness::default();
    let mut tasks: JoinSet<Outcome> = JoinSet::new();
    if let Some(listen) = config.telemetry.listen.clone() {
        let (readiness, shutdown) = (readiness.clone(), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = health::serve(&listen, handle, readiness, shutdown.clone()).await {
                tracing::error!(error = %error, "health and metrics cannot be served");
                shutdown.cancel();
            }
        });
    }
    // The sink learns from here which checkpoints it must reach.
    let (targets, until) = watch::channel(Targets::new());
    if has(Role::Connectors) {
        // Two connectors of a source would take its slot from each other, and end each other's writer of the log. All locks
        // before any connector: a second process must not have begun anything.
        let lock = |source: &SourceConfig| RoleLock::take(&config.state_dir, &format!("connector of {}", source.name));
        let locks = sources.iter().map(lock).collect::<Result<Vec<_>>>()?;
        let context = ConnectorContext {
            checkpoint_interval: config.checkpoint_interval,
            log: log.clone(),
            codec: config.log.codec(),
            registry: lakeward_log::registry::open(config.registry.as_ref())?,
            status: Arc::new(StatusBoard::default()),
            until_caught_up: args.until_caught_up,
        };
        for (source, lock) in sources.into_iter().zip(locks) {
            let (context, shutdown) = (context.clone(), shutdown.clone());
            let part = readiness.register(format!("connector {}", source.name));
            tasks.spawn(async move {
                part.ready();
                let name = source.name.clone();
                let last = lakeward_connectors::run(source, context, shutdown).await?;
                drop(lock);
                Ok(last.map(|checkpoint| (name, checkpoint)))
            });
        }
    }
    if has(Role::Sink) {
        let lake = Lake::open(&config.catalog, &config.warehouse).await?;
        let options = Options { tables: args.table.clone(), until: args.until_caught_up.then_some(until) };
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            lakeward_sink::run(&config, lake, log, options, shutdown).await?;
            Ok(None)
        });
    }
    wait(tasks, targets, &shutdown).await
}

/// The sources whose connectors run here.
fn sources(config: &Config, args: &Args) -> Result<Vec<SourceConfig>> {
    let Some(name) = &args.source else { return Ok(config.sources.clone()) };
    let found: Vec<_> = config.sources.iter().filter(|s| s.name == *name).cloned().collect();
    if found.is_empty() {
        let known: Vec<_> = config.sources.iter().map(|s| s.name.as_str()).collect();
        return Err(Error::configuration(format!("--source {name}: the sources are {}", known.join(", "))));
    }
    Ok(found)
}

/// Waits for all parts. The first that fails stops the others, which end in order; its error is the process's.
async fn wait(
    mut tasks: JoinSet<Outcome>,
    targets: watch::Sender<Targets>,
    shutdown: &CancellationToken,
) -> Result<()> {
    let mut failed = None;
    while let Some(joined) = tasks.join_next().await {
        match joined.map_err(|e| Error::bug("a part of the process panicked").source(e)).and_then(|outcome| outcome) {
            Ok(Some((source, checkpoint))) => targets.send_modify(|reached| {
                reached.insert(source, checkpoint.id);
            }),
            Ok(None) => {}
            Err(error) => {
                if failed.is_none() {
                    tracing::error!(error = %error, "stopping");
                    failed = Some(error);
                    shutdown.cancel();
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}
