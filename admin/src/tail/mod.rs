//! `lakeward tail`: a table's changes as they come, whatever codec wrote them. `log -> AnyDecoder -> lines`.
//!
//! Follows the source's checkpoints as the sink does, so that nothing is shown that was not committed, and takes no lock.
//!
//! # Layout
//! - this file: which table, and reading on
//! - [`line`]: a change as text or JSON
//! - [`printing`]: records to lines, in the order of the source

mod line;
mod printing;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use lakeward_event::{Ends, TableId, TableSchema, names};
use lakeward_log::Log;
use lakeward_runtime::config::{Config, SourceKind};
use lakeward_runtime::{Error, Result};
use tokio_util::sync::CancellationToken;

use self::printing::{Printing, Visitor};

/// How a change is printed, a line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
}

/// What is shown, and when it ends.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub form: Form,
    /// Everything that the log still has first; otherwise only what comes from now on.
    pub from_beginning: bool,
    /// Ends after so many changes.
    pub limit: Option<u64>,
    /// Ends when everything is shown that was there at the start.
    pub exit_at_end: bool,
}

/// A table of the log, by the names that people have for it.
struct Found {
    source: String,
    topic: String,
    versions: Vec<Arc<TableSchema>>,
}

/// Writes the changes of `table` (its topic, its name in SQL, or `schema.table` where one source has it) to `out` until `stop`, or as the
/// options say. Returns also when nobody reads `out` any more. Errors: `Configuration` for a table that the log does not know.
pub async fn tail(
    config: &Config,
    table: &str,
    options: Options,
    out: Box<dyn Write + Send>,
    stop: &CancellationToken,
) -> Result<()> {
    let log = lakeward_log::open(&config.log, &config.name)?;
    let found = find(config, log.as_ref(), table).await?;
    let last = log.last_checkpoint(&found.source).await?;
    let bounds = log.bounds(&found.source).await?.remove(&found.topic).unwrap_or_default();
    let begin = |(partition, (first, end)): (&i32, &(i64, i64))| {
        (*partition, if options.from_beginning { *first } else { *end })
    };
    let registry = lakeward_log::registry::open(config.registry.as_ref())?;
    let printing = Printing::new(log.clone(), registry, &found, options, bounds.iter().map(begin).collect(), out)?;
    let mut reading = Reading { log: log.clone(), found, printing };
    let work = async {
        let ends = bounds.iter().map(|(partition, (_, end))| (*partition, *end)).collect();
        let mut reader = reading.reader().await?;
        reading.read(&mut reader, ends).await?;
        if options.exit_at_end || reading.printing.is_done() {
            return Ok(());
        }
        let mut checkpoints = log.checkpoints(&reading.found.source, last.map(|last| last.id)).await?;
        while !reading.printing.is_done() {
            let mut checkpoint = checkpoints.next().await?;
            if let Some(ends) = checkpoint.ends.remove(&reading.found.topic) {
                reading.read(&mut reader, ends).await?;
            }
        }
        Ok(())
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        done = work => done,
    }
}

struct Reading {
    log: Arc<dyn Log>,
    found: Found,
    printing: Printing,
}

impl Reading {
    /// A reader of every partition that is known, from where it is.
    async fn reader(&self) -> Result<Box<dyn lakeward_log::RecordReader>> {
        let mut reader = self.log.records(&self.found.source).await?;
        for (partition, position) in self.printing.positions() {
            reader.assign(&self.found.topic, partition, position).await?;
        }
        Ok(reader)
    }

    /// Shows everything up to these ends.
    async fn read(&mut self, reader: &mut Box<dyn lakeward_log::RecordReader>, ends: BTreeMap<i32, i64>) -> Result<()> {
        loop {
            let mut ahead = BTreeMap::new();
            for (&partition, &end) in &ends {
                let position = match self.printing.position(partition) {
                    Some(position) => position,
                    // Added since the start.
                    None => {
                        reader.assign(&self.found.topic, partition, 0).await?;
                        self.printing.moved(partition, 0);
                        0
                    }
                };
                if position < end {
                    ahead.insert(partition, end);
                }
            }
            if ahead.is_empty() {
                return Ok(());
            }
            let visitor = Box::new(Visitor(self.printing.clone()));
            let asked = Ends::from([(self.found.topic.clone(), ahead.clone())]);
            match reader.read_to(&asked, visitor).await {
                Ok(_) => {
                    self.printing.reached(&ahead)?;
                    return Ok(());
                }
                Err(error) => {
                    self.printing.flush()?;
                    if !self.skip_what_is_gone().await? {
                        return Err(error);
                    }
                    *reader = self.reader().await?;
                }
            }
        }
    }

    /// Goes on at the log's beginning where records went before they were read; false: none did. The embedded log drops what
    /// the lake holds, and whoever reads slowly misses it.
    async fn skip_what_is_gone(&mut self) -> Result<bool> {
        let bounds = self.log.bounds(&self.found.source).await?.remove(&self.found.topic).unwrap_or_default();
        let mut gone = false;
        for (partition, (first, _)) in bounds {
            if let Some(position) = self.printing.position(partition).filter(|position| *position < first) {
                tracing::warn!(
                    topic = self.found.topic,
                    partition,
                    from = position,
                    to = first,
                    "records were dropped from the log before they could be shown"
                );
                self.printing.moved(partition, first);
                gone = true;
            }
        }
        Ok(gone)
    }
}

/// The table of this name, of whichever source.
async fn find(config: &Config, log: &dyn Log, table: &str) -> Result<Found> {
    let mut tables: BTreeMap<TableId, (Vec<String>, Vec<Arc<TableSchema>>)> = BTreeMap::new();
    for source in config.sources.iter().filter(|source| source.kind != SourceKind::Debezium) {
        for schema in log.schemas(&source.name).await? {
            let id = &schema.table;
            let known = tables.entry(id.clone()).or_insert_with(|| {
                let in_sql = format!("{}.{}", names::namespace(id, &source.default_schema), id.name);
                (vec![in_sql, names::topic(id), format!("{}.{id}", id.source), id.to_string()], Vec::new())
            });
            known.1.push(schema);
        }
    }
    if tables.is_empty() {
        return Err(Error::configuration(format!(
            "there is no table `{table}`: the log has none at all yet; has `lakeward run` been started?"
        )));
    }
    // Names that tell one table come first; `schema.table` may be that of several sources.
    for kind in 0..4 {
        let mut named: Vec<_> =
            tables.iter().filter(|(_, (names, _))| names.get(kind).is_some_and(|n| n == table)).collect();
        if let (Some((id, (_, versions))), true) = (named.pop(), named.is_empty()) {
            return Ok(Found { source: id.source.clone(), topic: names::topic(id), versions: versions.clone() });
        }
    }
    let names = || tables.values().flat_map(|(names, _)| names);
    let likeness = |name: &&String| strsim::jaro_winkler(name, table);
    let nearest = names().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let hint = nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    Err(Error::configuration(format!("the log has no table `{table}`, or several{hint}")))
}
