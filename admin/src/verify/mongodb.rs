//! MongoDB's side: `newest cut in the lake -> its cluster time -> find at that time -> Row`.
//!
//! The server keeps a window of history (five minutes by default) in which any collection can be read as of a cluster time. So
//! nothing has to be asked of the connector: the newest cut that the sink has committed names a time, and both sides are read
//! there. Where reading takes longer than the window, a table starts over at a newer cut.

use std::time::{Duration, Instant};

use lakeward_connectors::postgres::catalog::TableFilter;
use lakeward_event::schema::{DOC_COLUMN, ID_COLUMN};
use lakeward_event::{LogicalType, TableId, names};
use lakeward_runtime::config::{DocumentRule, SourceConfig};
use lakeward_runtime::error::Context as _;
use lakeward_runtime::{Action, Error, Result};
use mongodb::bson::{Bson, Document, Timestamp, doc};
use mongodb::error::ErrorKind;
use mongodb::results::CollectionType;
use mongodb::{Client, Database};

use super::compare::{Side, compare};
use super::document::Fields;
use super::lake::{LakeColumn, LakeCut, LakeSide, Shape, column_map, load};
use super::report::{Report, Skipped, TableReport};
use super::text::Row;
use super::{PATIENCE, Selection, Verifier};
use crate::clients;

/// Documents per reply; replies end at 16 MiB whatever this is.
const BATCH: i32 = 10_000;
/// A table is started over so often where the window is shorter than its reading.
const TRIES: u32 = 3;
/// Between looks for a newer cut.
const LOOK: Duration = Duration::from_millis(300);

pub async fn verify(
    verifier: &Verifier,
    source: &SourceConfig,
    selection: &mut Selection,
    report: &mut Report,
    progress: &mut impl FnMut(&str),
) -> Result<()> {
    let client = clients::mongodb(&source.url, "verify").await.with("source", &source.name)?;
    let filter = TableFilter::new(&source.include, &source.exclude)?;
    // Everything that was written before this call is in the comparison.
    let asked = operation_time(&client).await.with("source", &source.name)?;
    progress(&format!("{}: waiting for a cut in the lake", source.name));
    let collections = collections(&client, &filter).await.with("source", &source.name)?;
    let mut cut = newer_cut(verifier, &source.name, asked).await?;
    for (database, collection) in collections {
        let id = TableId::new(&source.name, &database, &collection);
        if !selection.takes(&id, &source.default_schema) {
            continue;
        }
        let table = Collection { client: &client, source, id, never: verifier.never(source, &database, &collection) };
        let mut tries = 0;
        loop {
            tries += 1;
            match table.verify(verifier, &cut, progress).await {
                Ok(Ok(compared)) => report.tables.push(compared),
                Ok(Err(reason)) => {
                    report.skipped.push(Skipped { table: super::sql_name(&table.id, &source.default_schema), reason });
                }
                Err(error) if tries < TRIES && too_old(&error) => {
                    progress(&format!(
                        "{}: the server's history does not reach back to the cut, taking a newer one",
                        source.name
                    ));
                    let newer = cluster_time(&cut).unwrap_or(asked) + 1;
                    cut = newer_cut(verifier, &source.name, newer).await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            break;
        }
    }
    Ok(())
}

/// Every write acknowledged before this call is at or before the time it returns.
async fn operation_time(client: &Client) -> Result<u64> {
    let reply = client
        .database("admin")
        .run_command(doc! { "ping": 1 })
        .await
        .map_err(|e| Error::retry("asking the source for its cluster time").source(e))?;
    match reply.get("operationTime") {
        Some(Bson::Timestamp(time)) => Ok((u64::from(time.time) << 32) | u64::from(time.increment)),
        _ => Err(Error::configuration("the MongoDB server is not a member of a replica set")),
    }
}

/// Database and name of every collection (no views, no time series, none of the server's own) that the filter lets through.
async fn collections(client: &Client, filter: &TableFilter) -> Result<Vec<(String, String)>> {
    let failed = |e: mongodb::error::Error| Error::retry("listing the source's collections").source(e);
    let mut found = Vec::new();
    for database in client.list_database_names().await.map_err(failed)? {
        if matches!(database.as_str(), "admin" | "local" | "config") {
            continue;
        }
        let mut cursor = client.database(&database).list_collections().await.map_err(failed)?;
        while cursor.advance().await.map_err(failed)? {
            let collection = cursor.deserialize_current().map_err(failed)?;
            if matches!(collection.collection_type, CollectionType::Collection)
                && !collection.name.starts_with("system.")
                && filter.matches(&database, &collection.name)
            {
                found.push((database.clone(), collection.name));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `SnapshotTooOld`, `SnapshotUnavailable`.
fn too_old(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<mongodb::error::Error>()
            && let ErrorKind::Command(command) = error.kind.as_ref()
        {
            return matches!(command.code, 239 | 246);
        }
        cause = error.source();
    }
    false
}

/// `<seconds>.<increment> <token>`.
fn cluster_time(cut: &LakeCut) -> Result<u64> {
    let time = cut.row.position.split(' ').next().and_then(|time| {
        let (seconds, increment) = time.split_once('.')?;
        Some((u64::from(seconds.parse::<u32>().ok()?) << 32) | u64::from(increment.parse::<u32>().ok()?))
    });
    time.ok_or_else(|| {
        Error::human("the position of a checkpoint is not a cluster time").with("checkpoint", cut.row.checkpoint)
    })
}

/// The newest cut in the lake, once it is at or after a cluster time.
async fn newer_cut(verifier: &Verifier, source: &str, time: u64) -> Result<LakeCut> {
    let mut newest = None;
    let mut moved = Instant::now();
    loop {
        let cut = LakeCut::newest(&verifier.checkpoints, source).await?;
        let checkpoint = cut.as_ref().map(|cut| cut.row.checkpoint);
        if let Some(cut) = cut
            && cluster_time(&cut)? >= time
        {
            return Ok(cut);
        }
        if checkpoint != newest {
            newest = checkpoint;
            moved = Instant::now();
        }
        if moved.elapsed() > PATIENCE {
            return Err(Error::retry(format!(
                "no cut arrived: the lake has had no newer one for {} s; is `lakeward run` running?",
                PATIENCE.as_secs()
            ))
            .with("source", source));
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Verifier {
    /// Whether the collection is configured to keep no documents.
    fn never(&self, source: &SourceConfig, database: &str, collection: &str) -> bool {
        let topic = names::topic(&TableId::new(&source.name, database, collection));
        let matches = |glob: &str| {
            glob == topic || globset::Glob::new(glob).is_ok_and(|glob| glob.compile_matcher().is_match(&topic))
        };
        self.tables.iter().any(|(glob, table)| table.document == Some(DocumentRule::Never) && matches(glob))
    }
}

struct Collection<'a> {
    client: &'a Client,
    source: &'a SourceConfig,
    id: TableId,
    never: bool,
}

impl Collection<'_> {
    /// The comparison, or why there can be none.
    async fn verify(
        &self,
        verifier: &Verifier,
        cut: &LakeCut,
        progress: &mut impl FnMut(&str),
    ) -> Result<Result<TableReport, String>> {
        let name = super::sql_name(&self.id, &self.source.default_schema);
        if cut.row.converging.contains(&name) {
            return Ok(Err("its snapshot is not finished".into()));
        }
        let Some(snapshot_id) = cut.snapshots.get(&name).copied() else {
            return Ok(Err(format!("checkpoint {} does not name it: the lake does not have it", cut.row.checkpoint)));
        };
        progress(&format!("comparing {name}"));
        let table = load(&verifier.lake, &name).await?;
        let map = column_map(&table)?;
        let live = |name: &str| map.columns.iter().find(|c| !c.dropped && c.name == name);
        let mut fields: Vec<(String, LogicalType)> = Vec::new();
        let mut columns = vec![live(ID_COLUMN).map(|c| LakeColumn::new(c, false))];
        for column in map.columns.iter().filter(|c| !c.dropped && c.name != ID_COLUMN && c.name != DOC_COLUMN) {
            fields.push((column.identity.clone(), column.ty.clone()));
            columns.push(Some(LakeColumn::new(column, false)));
        }
        columns.push(live(DOC_COLUMN).map(|c| LakeColumn::new(c, false)));
        let fields = Fields::new(fields, self.never);
        let shown = fields.columns();
        let mut lake = LakeSide::new(&verifier.lake, table, snapshot_id, columns, Shape::Documents(fields.clone()));
        let mut rows = MongodbSide {
            database: self.client.database(&self.id.schema),
            collection: &self.id.name,
            at: cluster_time(cut)?,
            fields,
        };
        let outcome = compare(&mut rows, &mut lake, &shown, &[0]).await.with("table", &name)?;
        Ok(Ok(TableReport {
            table: name,
            source_table: names::topic(&self.id),
            source_rows: outcome.source_rows,
            lake_rows: outcome.lake_rows,
            checkpoint: cut.row.checkpoint,
            position: cut.row.position.clone(),
            snapshot_id,
            watermark: cut.row.watermark,
            dead_letters: 0,
            difference: outcome.difference,
        }))
    }
}

struct MongodbSide<'a> {
    database: Database,
    collection: &'a str,
    at: u64,
    fields: Fields,
}

impl Side for MongodbSide<'_> {
    async fn scan(&mut self, visit: &mut (dyn FnMut(&Row) + Send)) -> Result<()> {
        let failed = |e: mongodb::error::Error| Error::new(Action::Retry, "reading the source's documents").source(e);
        let at = Timestamp { time: (self.at >> 32) as u32, increment: self.at as u32 };
        let find = doc! {
            "find": self.collection,
            "filter": {},
            "batchSize": BATCH,
            "readConcern": { "level": "snapshot", "atClusterTime": Bson::Timestamp(at) },
        };
        let mut cursor = self.database.run_cursor_command(find).await.map_err(failed)?;
        let mut row = Row::default();
        while cursor.advance().await.map_err(failed)? {
            let document = Document::try_from(cursor.current())
                .map_err(|e| Error::human("the server sent a document that is no BSON").source(e))?;
            self.fields.of_source(&document, &mut row);
            visit(&row);
        }
        Ok(())
    }
}
