//! `lakeward verify`: is the lake what its sources were? Every row and every value, at one position of each source, under load.
//!
//! `a cut that source and lake both have -> rows of both -> Report`
//!
//! # Layout
//! - this file: which tables of which sources
//! - [`postgres`]: a cut at a temporary slot's LSN, rows as the server's own text; [`copy`]: that text taken apart
//! - [`mongodb`]: the newest cut's cluster time, documents at that time; [`document`]: documents and rows in one form
//! - [`lake`]: the lake at a checkpoint, rows out of its data files
//! - [`text`]: values of both sides in one form
//! - [`compare`]: two sides to their difference
//! - [`report`]: the answer

mod compare;
mod copy;
mod document;
mod lake;
mod mongodb;
mod postgres;
mod report;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use globset::{Glob, GlobMatcher};
use lakeward_event::{TableId, names};
use lakeward_lake::system::CheckpointTable;
use lakeward_lake::{Lake, SOURCE_PROPERTY};
use lakeward_log::Log;
use lakeward_runtime::config::{Config, SourceConfig, SourceKind, TableConfig};
use lakeward_runtime::{Error, Result};

pub use report::{Difference, DifferingKey, Report, Skipped, TableReport, Totals};
pub(crate) use text::Printer;
pub use text::moment;

/// How long nothing at all may come from the connector or the sink before we say that they do not run. Longer than a restart and
/// than the longest hold.
const PATIENCE: Duration = Duration::from_secs(60);

/// What every source's comparison needs.
struct Verifier {
    lake: Lake,
    checkpoints: CheckpointTable,
    log: Arc<dyn Log>,
    tables: BTreeMap<String, TableConfig>,
}

/// Compares tables of all sources with the lake. `tables`: globs on `source.schema.table`, `schema.table` or SQL's
/// `namespace.table`; none: all. `progress` gets lines for people. Errors: no cut arrives (retry), a glob that matches no table
/// (configuration), a server away (retry). A difference is no error: it is in the report.
pub async fn verify(config: &Config, tables: &[String], mut progress: impl FnMut(&str)) -> Result<Report> {
    let mut selection = Selection::new(tables)?;
    let log = lakeward_log::open(&config.log, &config.name)?;
    let lake = Lake::open(&config.catalog, &config.warehouse).await?;
    let checkpoints = CheckpointTable::open(&lake).await?;
    let verifier = Verifier { lake, checkpoints, log, tables: config.tables.clone() };
    let mut report = Report::default();
    for source in &config.sources {
        if !selection.may_want(&source.name) {
            continue;
        }
        if source.kind != SourceKind::Debezium {
            // What keeps the connector from appending (a partition without a leader) is told now, and by its name, rather than in a
            // minute as a cut that did not arrive.
            verifier.log.bounds(&source.name).await?;
        }
        match source.kind {
            SourceKind::Postgres => {
                postgres::verify(&verifier, source, &mut selection, &mut report, &mut progress).await?
            }
            SourceKind::Mongodb => {
                mongodb::verify(&verifier, source, &mut selection, &mut report, &mut progress).await?
            }
            SourceKind::Debezium => foreign(&verifier, source, &mut selection, &mut report).await?,
        }
    }
    selection.all_used()?;
    Ok(report)
}

/// Says of each table of a source that others write that it cannot be compared.
async fn foreign(
    verifier: &Verifier,
    source: &SourceConfig,
    selection: &mut Selection,
    report: &mut Report,
) -> Result<()> {
    let mut tables = Vec::new();
    for ident in verifier.lake.tables().await? {
        let Some(table) = verifier.lake.load(&ident).await? else { continue };
        let id = table.properties().get(SOURCE_PROPERTY).and_then(|id| serde_json::from_str::<TableId>(id).ok());
        tables.extend(id.filter(|id| id.source == source.name && selection.takes(id, &source.default_schema)));
    }
    let names: Vec<String> = match tables.is_empty() {
        true if selection.globs.is_empty() => vec![format!("{}.*", source.name)],
        _ => tables.iter().map(|id| sql_name(id, &source.default_schema)).collect(),
    };
    report.skipped.extend(names.into_iter().map(|table| Skipped {
        table,
        reason: "there is no database to compare with: others write its topic (kind \"debezium\")".into(),
    }));
    Ok(())
}

/// `namespace.table`, as in SQL and in `lakeward.checkpoints`.
fn sql_name(id: &TableId, default_schema: &str) -> String {
    format!("{}.{}", names::namespace(id, default_schema), id.name)
}

/// The tables that were asked for.
struct Selection {
    /// The glob as written, and whether it has matched.
    globs: Vec<(String, GlobMatcher, bool)>,
}

impl Selection {
    fn new(tables: &[String]) -> Result<Self> {
        let compile = |text: &String| {
            let glob = Glob::new(text.strip_prefix("lake.").unwrap_or(text))
                .map_err(|e| Error::configuration("not a name or glob of tables").with("glob", text).source(e))?;
            Ok((text.clone(), glob.compile_matcher(), false))
        };
        Ok(Self { globs: tables.iter().map(compile).collect::<Result<_>>()? })
    }

    fn takes(&mut self, id: &TableId, default_schema: &str) -> bool {
        let spellings = [names::topic(id), format!("{}.{id}", id.source), id.to_string(), sql_name(id, default_schema)];
        let mut taken = self.globs.is_empty();
        for (_, glob, used) in &mut self.globs {
            if spellings.iter().any(|name| glob.is_match(name)) {
                *used = true;
                taken = true;
            }
        }
        taken
    }

    /// Whether a source has to be asked at all: a name without wildcards whose first part is another source's needs none of it.
    fn may_want(&self, source: &str) -> bool {
        self.globs.is_empty()
            || self.globs.iter().any(|(text, ..)| {
                let name = text.strip_prefix("lake.").unwrap_or(text);
                let parts: Vec<&str> = name.split('.').collect();
                parts.len() < 3 || parts[0].contains(['*', '?', '[', '{']) || parts[0] == source
            })
    }

    fn all_used(&self) -> Result<()> {
        match self.globs.iter().find(|(_, _, used)| !used) {
            Some((text, ..)) => Err(Error::configuration("no table of the sources matches").with("table", text)),
            None => Ok(()),
        }
    }
}
