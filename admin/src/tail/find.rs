//! Which table is meant: `its topic, its name in SQL, schema.table -> Found`.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakeward_event::codec::debezium::KnownTable;
use lakeward_event::{TableId, TableSchema, names};
use lakeward_lake::Lake;
use lakeward_log::Log;
use lakeward_runtime::config::{Config, SourceConfig, SourceKind};
use lakeward_runtime::{Error, Result};

use super::{Found, Writer};

/// A table that can be meant.
struct Candidate {
    /// In SQL, its topic, `source.schema.table`, `schema.table`: those that tell one table come first, the last may be that of several.
    names: [String; 4],
    found: Found,
}

impl Candidate {
    fn new(id: &TableId, source: &SourceConfig, topic: String, writer: Writer) -> Self {
        let in_sql = format!("{}.{}", names::namespace(id, &source.default_schema), id.name);
        Self {
            names: [in_sql, topic.clone(), format!("{}.{id}", id.source), id.to_string()],
            found: Found { source: source.clone(), topic, writer },
        }
    }
}

/// The table of this name, of whichever source.
pub async fn table(config: &Config, log: &dyn Log, name: &str) -> Result<Found> {
    let mut candidates = Vec::new();
    let mut in_lake = None;
    for source in &config.sources {
        candidates.extend(match source.kind {
            SourceKind::Debezium => {
                let known = match &mut in_lake {
                    Some(known) => known,
                    None => in_lake.insert(what_the_lake_knows(config).await),
                };
                of_debezium(log, source, known).await?
            }
            SourceKind::Postgres | SourceKind::Mongodb => of_ours(log, source).await?,
        });
    }
    if candidates.is_empty() {
        return Err(Error::configuration(format!(
            "there is no table `{name}`: the log has none at all yet; has `lakeward run` been started?"
        )));
    }
    for kind in 0..4 {
        let named = |candidate: &Candidate| candidate.names.get(kind).is_some_and(|known| known == name);
        if candidates.iter().filter(|candidate| named(candidate)).count() == 1
            && let Some(only) = candidates.iter().position(named)
        {
            return Ok(candidates.swap_remove(only).found);
        }
    }
    let likeness = |known: &&String| strsim::jaro_winkler(known, name);
    let nearest = candidates.iter().flat_map(|candidate| &candidate.names);
    let nearest = nearest.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let hint = nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    Err(Error::configuration(format!("the log has no table `{name}`, or several{hint}")))
}

async fn of_ours(log: &dyn Log, source: &SourceConfig) -> Result<Vec<Candidate>> {
    let mut tables: BTreeMap<TableId, Vec<Arc<TableSchema>>> = BTreeMap::new();
    for schema in log.schemas(&source.name).await? {
        tables.entry(schema.table.clone()).or_default().push(schema);
    }
    let candidate =
        |(id, versions): (TableId, _)| Candidate::new(&id, source, names::topic(&id), Writer::Lakeward(versions));
    Ok(tables.into_iter().map(candidate).collect())
}

/// Topics are tables there; the lake knows which ones, and with which columns and key they go on. What it has not yet is called as
/// its topic is, and told by its records.
async fn of_debezium(log: &dyn Log, source: &SourceConfig, known: &mut Known) -> Result<Vec<Candidate>> {
    let bounds = log.foreign_bounds(lakeward_sink::topic_filter(source)?).await?;
    let candidate = |topic: String| match known.remove(&(source.name.clone(), topic.clone())) {
        Some(known) => Candidate::new(&known.table.clone(), source, topic, Writer::Debezium(Some(known))),
        None => Candidate::new(&lakeward_sink::table_by_name(source, &topic), source, topic, Writer::Debezium(None)),
    };
    Ok(bounds.into_keys().map(candidate).collect())
}

/// Tables of the lake by source and topic.
type Known = BTreeMap<(String, String), KnownTable>;

/// [`in_the_lake`], or nothing where the lake is away: records tell their tables too.
async fn what_the_lake_knows(config: &Config) -> Known {
    in_the_lake(config).await.unwrap_or_else(|error| {
        tracing::warn!(error = %error, "the lake cannot tell what it knows of the tables");
        Known::new()
    })
}

/// What the lake knows of the tables of sources that a Debezium writes.
async fn in_the_lake(config: &Config) -> Result<Known> {
    let is_foreign = |name: &str| config.sources.iter().any(|s| s.name == name && s.kind == SourceKind::Debezium);
    let lake = Lake::open(&config.catalog, &config.warehouse).await?;
    let mut known = Known::new();
    for ident in lake.tables().await? {
        let Some(table) = lake.load(&ident).await? else { continue };
        let Some(id) = lakeward_sink::source_of(&table).filter(|id| is_foreign(&id.source)) else { continue };
        if let Some(topic) = lakeward_sink::committed_of(&table)?.offsets.into_keys().next() {
            known.insert((id.source.clone(), topic), lakeward_sink::known_table(&id, &table)?);
        }
    }
    Ok(known)
}
