//! `lakeward tail`: a table's changes as they come, whatever codec wrote them, ours or a Debezium. `log -> decoder -> lines`.
//!
//! Follows the source's checkpoints as the sink does, or the ends of a topic that a Debezium writes, so that nothing is shown that
//! was not committed, and takes no lock.
//!
//! # Layout
//! - this file: reading on
//! - [`find`]: which table is meant
//! - [`decoder`]: who reads its records
//! - [`line`]: a change as text or JSON
//! - [`printing`]: records to lines, in the order of the source

mod decoder;
mod find;
mod line;
mod printing;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use lakeward_event::codec::debezium::KnownTable;
use lakeward_event::{Ends, TableSchema};
use lakeward_log::{Log, RecordReader};
use lakeward_runtime::Result;
use lakeward_runtime::config::{Config, SourceConfig};
use tokio::time::sleep;
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

/// How often the ends of a topic that a Debezium writes are asked for: nobody tells of them.
const LOOK: Duration = Duration::from_millis(300);

/// A table of the log.
struct Found {
    source: SourceConfig,
    topic: String,
    writer: Writer,
}

/// Who writes the table's topic.
enum Writer {
    /// A connector of ours, and the versions of the table's schema so far.
    Lakeward(Vec<Arc<TableSchema>>),
    /// A Debezium, and what the lake knows of the table, if it has it.
    Debezium(Option<KnownTable>),
}

impl Found {
    /// First and end offset of each partition.
    async fn bounds(&self, log: &dyn Log) -> Result<BTreeMap<i32, (i64, i64)>> {
        let mut bounds = match &self.writer {
            Writer::Lakeward(_) => log.bounds(&self.source.name).await?,
            Writer::Debezium(_) => {
                let wanted = self.topic.clone();
                log.foreign_bounds(Arc::new(move |topic| topic == wanted)).await?
            }
        };
        Ok(bounds.remove(&self.topic).unwrap_or_default())
    }
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
    let found = find::table(config, log.as_ref(), table).await?;
    let last = match &found.writer {
        Writer::Lakeward(_) => log.last_checkpoint(&found.source.name).await?,
        Writer::Debezium(_) => None,
    };
    let bounds = found.bounds(log.as_ref()).await?;
    let begin = |(partition, (first, end)): (&i32, &(i64, i64))| {
        (*partition, if options.from_beginning { *first } else { *end })
    };
    let registry = lakeward_log::registry::open(config.registry.as_ref())?;
    let decoder = decoder::decoder(log.clone(), registry, &found)?;
    let printing = Printing::new(found.topic.clone(), decoder, options, bounds.iter().map(begin).collect(), out);
    let mut reading = Reading { log: log.clone(), found, printing };
    let work = async {
        let ends = bounds.iter().map(|(partition, (_, end))| (*partition, *end)).collect();
        let mut reader = reading.reader().await?;
        reading.read(&mut reader, ends).await?;
        if options.exit_at_end || reading.printing.is_done() {
            return Ok(());
        }
        match reading.found.writer {
            Writer::Lakeward(_) => reading.follow_checkpoints(&mut reader, last.map(|last| last.id)).await,
            Writer::Debezium(_) => reading.follow_ends(&mut reader).await,
        }
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
    /// Shows what each checkpoint above `after` commits, until nothing more is to be printed.
    async fn follow_checkpoints(&mut self, reader: &mut Box<dyn RecordReader>, after: Option<i64>) -> Result<()> {
        let mut checkpoints = self.log.checkpoints(&self.found.source.name, after).await?;
        while !self.printing.is_done() {
            let mut checkpoint = checkpoints.next().await?;
            if let Some(ends) = checkpoint.ends.remove(&self.found.topic) {
                self.read(reader, ends).await?;
            }
        }
        Ok(())
    }

    /// Shows what is added to the topic, until nothing more is to be printed.
    async fn follow_ends(&mut self, reader: &mut Box<dyn RecordReader>) -> Result<()> {
        while !self.printing.is_done() {
            sleep(LOOK).await;
            let bounds = self.found.bounds(self.log.as_ref()).await?;
            self.read(reader, bounds.into_iter().map(|(partition, (_, end))| (partition, end)).collect()).await?;
        }
        Ok(())
    }

    /// A reader of every partition that is known, from where it is.
    async fn reader(&self) -> Result<Box<dyn RecordReader>> {
        let mut reader = self.log.records(&self.found.source.name).await?;
        for (partition, position) in self.printing.positions() {
            reader.assign(&self.found.topic, partition, position).await?;
        }
        Ok(reader)
    }

    /// Shows everything up to these ends.
    async fn read(&mut self, reader: &mut Box<dyn RecordReader>, ends: BTreeMap<i32, i64>) -> Result<()> {
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
        let bounds = self.found.bounds(self.log.as_ref()).await?;
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
