//! One statement, from text to a stream of batches.
//!
//! `text -> statement -> the tables it names -> one cut for their sources -> each table's snapshot there -> plan -> batches`

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::array::StringArray;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::catalog::{CatalogProviderList, MemoryCatalogProviderList, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionConfig;
use datafusion::sql::TableReference;
use datafusion::sql::parser::Statement as Parsed;
use iceberg::TableIdent;
use lakeward_lake::Lake;
use lakeward_runtime::config::{Config, SourceKind};
use lakeward_runtime::{Action, Error, Result};

use crate::catalog::{CATALOG, QueryCatalog};
use crate::cut::{AsOf, Cut, source_of_namespace};
use crate::scan::{Planner, SnapshotTable};
use crate::statement::{Kind, Statement, parse};
use crate::system;
use crate::tables::Tables;

/// Parquet footers kept in memory; a footer is a few KiB per row group.
const FOOTER_CACHE: usize = 256 << 20;
/// A join's smaller side up to this is built once and shared: only then does its dynamic filter prune the larger side's files
/// and row groups (in partitioned mode it is hidden behind the hash and prunes nothing).
const COLLECT_LEFT_BYTES: usize = 256 << 20;
const COLLECT_LEFT_ROWS: usize = 4_000_000;
/// An answer older than this says so, unless an older moment was asked for.
const STALE: i64 = 60 * 1_000_000;

/// What one client has set. Starts with [`Session::default`].
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// `SET lakeward.as_of`, `--as-of`.
    pub as_of: AsOf,
    options: Vec<(String, String)>,
    /// The cut of the last statement that read a source's table.
    pub last_cut: Option<Cut>,
}

/// What a statement gives.
pub struct Answer {
    pub schema: SchemaRef,
    pub batches: SendableRecordBatchStream,
    /// The moment that is read; None where no source's table is.
    pub cut: Option<Cut>,
    /// For the client's notices (stderr, `NOTICE`): the cut of an EXPLAIN, tables that are read again, an old answer.
    pub notices: Vec<String>,
    /// False for statements that have no rows to give, as SET.
    pub is_query: bool,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("schema", &self.schema).field("cut", &self.cut).finish_non_exhaustive()
    }
}

/// SQL over a lake. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    tables: Arc<Tables>,
    planner: Planner,
    configured: Vec<(String, SourceKind)>,
    /// Functions, rules and options that every statement starts from.
    template: SessionState,
}

/// A statement bound to its cut, ready to plan.
struct Bound {
    context: SessionContext,
    cut: Option<Cut>,
    notices: Vec<String>,
}

impl Engine {
    pub async fn open(config: &Config, lake: Lake) -> Result<Self> {
        let tables = Arc::new(Tables::open(lake.clone(), config.checkpoint_interval).await?);
        let runtime =
            RuntimeEnvBuilder::new().with_metadata_cache_limit(FOOTER_CACHE).build_arc().map_err(from_datafusion)?;
        runtime.register_object_store(lake.storage().url(), lake.storage().object_store());
        Ok(Self {
            inner: Arc::new(Inner {
                tables,
                planner: Planner::new(lake, Arc::clone(&runtime)),
                configured: config.sources.iter().map(|s| (s.name.clone(), s.kind)).collect(),
                template: template(runtime)?,
            }),
        })
    }

    /// What the lake holds now.
    pub fn tables(&self) -> &Tables {
        &self.inner.tables
    }

    /// Runs one statement.
    pub async fn sql(&self, session: &mut Session, text: &str) -> Result<Answer> {
        let mut statements = parse(text)?;
        match (statements.pop(), statements.is_empty()) {
            (Some(statement), true) => self.run(session, statement).await,
            (None, _) => Err(Error::refused("no statement")),
            _ => Err(Error::refused("one statement at a time")),
        }
    }

    /// Runs a parsed statement.
    pub async fn run(&self, session: &mut Session, statement: Statement) -> Result<Answer> {
        match statement.kind()? {
            Kind::SetAsOf(as_of) => {
                session.as_of = as_of;
                Ok(done())
            }
            Kind::SetOption { name, value } => {
                config(session)?.options_mut().set(&name, &value).map_err(from_datafusion)?;
                session.options.retain(|(n, _)| *n != name);
                session.options.push((name, value));
                Ok(done())
            }
            Kind::ShowAsOf => one_text("lakeward.as_of", session.as_of.to_string()),
            Kind::Query { parsed, explain } => {
                let Bound { context, cut, mut notices } = self.bind(session, &parsed).await?;
                let plan = context.state().statement_to_plan(parsed).await.map_err(from_datafusion)?;
                let allowed =
                    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
                allowed.verify_plan(&plan).map_err(|e| {
                    Error::refused("the lake is read-only, it changes only with its sources").source(from_datafusion(e))
                })?;
                let frame = context.execute_logical_plan(plan).await.map_err(from_datafusion)?;
                let batches = frame.execute_stream().await.map_err(from_datafusion)?;
                if explain {
                    notices.insert(0, cut.as_ref().map_or_else(|| Cut::default().notice(), Cut::notice));
                }
                if cut.is_some() {
                    session.last_cut.clone_from(&cut);
                }
                Ok(Answer { schema: batches.schema(), batches, cut, notices, is_query: true })
            }
        }
    }

    /// The columns that a query will give, without running it; None for statements that have none.
    pub async fn describe(&self, session: &Session, statement: Statement) -> Result<Option<SchemaRef>> {
        let Kind::Query { parsed, .. } = statement.kind()? else { return Ok(None) };
        let bound = self.bind(session, &parsed).await?;
        let plan = bound.context.state().statement_to_plan(parsed).await.map_err(from_datafusion)?;
        let plan = bound.context.state().optimize(&plan).map_err(from_datafusion)?;
        Ok(Some(Arc::new(plan.schema().as_arrow().clone())))
    }

    /// A context in which the statement's tables are at one cut.
    async fn bind(&self, session: &Session, parsed: &Parsed) -> Result<Bound> {
        let inner = &self.inner;
        let references = inner.template.resolve_table_references(parsed).map_err(from_datafusion)?;
        let locations = inner.tables.locations().await?;
        let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for id in locations.keys() {
            known.entry(id.namespace().to_string()).or_default().insert(id.name().to_string());
        }
        known.entry(system::NAMESPACE.to_string()).or_default().extend(system::VIEWS.map(str::to_string));

        // Names -> tables of the lake. DataFusion itself says what is wrong with names in other catalogs.
        let mut wanted: BTreeSet<(String, String)> = BTreeSet::new();
        for reference in references {
            let (namespace, name) = match &reference {
                TableReference::Bare { table } => (system::NAMESPACE, table.as_ref()),
                TableReference::Partial { schema, table } => (schema.as_ref(), table.as_ref()),
                TableReference::Full { catalog, schema, table } if catalog.as_ref() == CATALOG => {
                    (schema.as_ref(), table.as_ref())
                }
                TableReference::Full { .. } => continue,
            };
            if namespace == "information_schema" {
                continue;
            }
            if !known.get(namespace).is_some_and(|names| names.contains(name)) {
                return Err(unknown(&reference, namespace, name, &known));
            }
            wanted.insert((namespace.to_string(), name.to_string()));
        }

        let sources: BTreeSet<String> = wanted
            .iter()
            .filter(|(namespace, _)| namespace != system::NAMESPACE)
            .map(|(namespace, _)| source_of_namespace(namespace).to_string())
            .collect();
        let cut = match sources.is_empty() {
            true => None,
            false => Some(inner.tables.cut(&sources, session.as_of).await?),
        };
        let mut notices = Vec::new();
        if wanted.len() > 1 {
            notices.extend(loose(&inner.configured, &sources));
        }
        let mut bound: HashMap<(String, String), Arc<dyn TableProvider>> = HashMap::new();
        for (namespace, name) in wanted {
            let provider: Arc<dyn TableProvider> =
                if namespace == system::NAMESPACE && system::VIEWS.contains(&name.as_str()) {
                    Arc::new(self.view(&name, cut.as_ref().or(session.last_cut.as_ref())).await?)
                } else {
                    let id = TableIdent::from_strs([&namespace, &name])
                        .map_err(|e| Error::bug("a table's name").source(e))?;
                    Arc::new(SnapshotTable::new(self.plan(&id, cut.as_ref(), &mut notices).await?))
                };
            bound.insert((namespace, name), provider);
        }
        if let (AsOf::Latest, Some(cut)) = (session.as_of, &cut) {
            notices.extend(stale(cut, now()));
        }

        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.into(), Arc::new(QueryCatalog::new(known, bound, Arc::clone(&inner.tables))));
        let state = SessionStateBuilder::new_from_existing(inner.template.clone())
            .with_config(config(session)?)
            .with_catalog_list(Arc::new(catalogs))
            .build();
        Ok(Bound { context: SessionContext::new_with_state(state), cut, notices })
    }

    async fn plan(
        &self,
        id: &TableIdent,
        cut: Option<&Cut>,
        notices: &mut Vec<String>,
    ) -> Result<Arc<crate::scan::Plan>> {
        let inner = &self.inner;
        let of_source = cut.filter(|_| id.namespace().to_string() != system::NAMESPACE);
        let (table, snapshot_id) = match of_source {
            Some(cut) => {
                let name = format!("{}.{}", id.namespace(), id.name());
                let at = cut.table(&name)?;
                if let Some(exact) = at.last_exact {
                    notices.push(format!(
                        "table {name} is being read again from its source: it is shown as of {}",
                        crate::pg::timestamptz_text(exact)
                    ));
                }
                (inner.tables.load_with(id, at.snapshot_id).await?, at.snapshot_id)
            }
            None => {
                let table = inner.tables.load(id).await?;
                let table = table.ok_or_else(|| Error::refused(format!("table {id} does not exist any more")))?;
                let snapshot = table.snapshot().map(|s| s.snapshot_id());
                (table, snapshot.ok_or_else(|| Error::refused(format!("table {id} has no snapshot yet")))?)
            }
        };
        inner.planner.plan(&table, snapshot_id).await
    }

    async fn view(&self, name: &str, read: Option<&Cut>) -> Result<datafusion::datasource::MemTable> {
        let inner = &self.inner;
        let newest = inner.tables.newest().await?;
        let mut tables = Vec::new();
        if name != "freshness" {
            let locations = inner.tables.locations().await?;
            let mut ids: Vec<_> =
                locations.keys().filter(|id| id.namespace().to_string() != system::NAMESPACE).collect();
            ids.sort();
            for id in ids {
                tables.extend(inner.tables.load(id).await?);
            }
        }
        let facts = system::Facts { now: now(), configured: &inner.configured, newest: &newest, read, tables: &tables };
        system::view(name, &facts)
    }
}

fn template(runtime: Arc<RuntimeEnv>) -> Result<SessionState> {
    let builder = SessionStateBuilder::new()
        .with_config(config(&Session::default())?)
        .with_runtime_env(runtime)
        .with_default_features()
        // Readers of files and writers of files are no part of a lake's SQL.
        .with_table_factories(HashMap::new())
        .with_file_formats(Vec::new())
        .with_table_functions(HashMap::new());
    Ok(crate::pg::install(builder).build())
}

/// The options of one statement.
fn config(session: &Session) -> Result<SessionConfig> {
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, system::NAMESPACE)
        .with_create_default_catalog_and_schema(false);
    let options = config.options_mut();
    options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
    options.optimizer.hash_join_single_partition_threshold = COLLECT_LEFT_BYTES;
    options.optimizer.hash_join_single_partition_threshold_rows = COLLECT_LEFT_ROWS;
    for (name, value) in &session.options {
        options.set(name, value).map_err(from_datafusion)?;
    }
    Ok(config)
}

fn unknown(
    reference: &TableReference,
    namespace: &str,
    name: &str,
    known: &BTreeMap<String, BTreeSet<String>>,
) -> Error {
    let elsewhere: Vec<_> = known
        .iter()
        .flat_map(|(space, names)| names.iter().map(move |n| (space, n)))
        .filter(|(space, n)| n.eq_ignore_ascii_case(name) && (space.as_str(), n.as_str()) != (namespace, name))
        .map(
            |(space, n)| {
                if n.chars().any(char::is_uppercase) { format!("{space}.\"{n}\"") } else { format!("{space}.{n}") }
            },
        )
        .collect();
    match elsewhere.is_empty() {
        true => Error::refused(format!("table '{reference}' does not exist")),
        false => Error::refused(format!("table '{reference}' does not exist; there is {}", elsewhere.join(", "))),
    }
}

/// Says that a query of several tables reads some that were never true together.
fn loose(configured: &[(String, SourceKind)], sources: &BTreeSet<String>) -> Option<String> {
    let of_others = |(name, kind): &&(String, SourceKind)| *kind == SourceKind::Debezium && sources.contains(name);
    let foreign: Vec<&str> = configured.iter().filter(of_others).map(|(name, _)| name.as_str()).collect();
    (!foreign.is_empty()).then(|| {
        format!(
            "tables of {} are each as their topic was, not as their database was at one moment: others write these topics",
            foreign.join(", ")
        )
    })
}

/// Says how old an answer is, and which source holds it back.
fn stale(cut: &Cut, now: i64) -> Option<String> {
    let age = now.saturating_sub(cut.at?);
    if age < STALE {
        return None;
    }
    let behind = cut.sources.iter().min_by_key(|s| s.watermark)?;
    Some(format!(
        "the newest moment in the lake is {} seconds old: source {} is at {}",
        age / 1_000_000,
        behind.source,
        crate::pg::timestamptz_text(behind.watermark)
    ))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

fn done() -> Answer {
    let schema = Arc::new(Schema::empty());
    let batches = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), futures::stream::empty()));
    Answer { schema, batches, cut: None, notices: Vec::new(), is_query: false }
}

fn one_text(name: &str, value: String) -> Result<Answer> {
    let schema = Arc::new(Schema::new(vec![Field::new(name, DataType::Utf8, false)]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(StringArray::from(vec![value]))])
        .map_err(|e| Error::bug("one text").source(e))?;
    let batches = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), futures::stream::iter([Ok(batch)])));
    Ok(Answer { schema, batches, cut: None, notices: Vec::new(), is_query: true })
}

/// DataFusion's errors, by what the client does next. An error of ours that went through it comes out as it went in.
pub fn from_datafusion(error: DataFusionError) -> Error {
    let action = match error.find_root() {
        DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => Action::Retry,
        DataFusionError::Internal(_) => Action::Bug,
        _ => Action::Refused,
    };
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => from_datafusion(*inner),
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => Error::new(action, other.to_string()),
        },
        DataFusionError::Shared(shared) => match Arc::try_unwrap(shared) {
            Ok(inner) => from_datafusion(inner),
            Err(shared) => Error::new(action, shared.strip_backtrace()),
        },
        other => Error::new(action, other.strip_backtrace()),
    }
}
