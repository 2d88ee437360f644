//! PostgreSQL's side, exact under load: `hold -> temporary slot (LSN, snapshot) -> cut there -> COPY in that snapshot -> Row`.
//!
//! 1. A message in the WAL makes the connector hold between two commits ([`Mark::Hold`]).
//! 2. A temporary logical slot is created; the server gives an LSN and the snapshot of exactly the commits before it. The LSN is
//!    after the message, so the connector has published nothing beyond it.
//! 3. [`Signal::Cut`] names the LSN; the connector goes on and publishes a checkpoint at exactly that position.
//! 4. The sink commits it, and its row in `lakeward.checkpoints` names each table's snapshot.
//! 5. Both are read: the source in the imported snapshot, as the text of its own output functions.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use lakeward_connectors::postgres::catalog::{TableFilter, quote_identifier, quote_literal};
use lakeward_connectors::postgres::client::{connect, connect_replication, replication_error, sql_error};
use lakeward_connectors::postgres::mark::{Mark, Marker};
use lakeward_connectors::postgres::slot::open_transactions;
use lakeward_event::position::parse_lsn;
use lakeward_event::{Checkpoint, LogicalType, Position, TableId, names};
use lakeward_lake::ColumnMap;
use lakeward_log::Signal;
use lakeward_runtime::config::{Secret, SourceConfig};
use lakeward_runtime::error::Context as _;
use lakeward_runtime::{Error, Result};
use pg_walstream::PgReplicationConnection;
use tokio_postgres::Client;
use uuid::Uuid;

use super::compare::{Side, compare};
use super::copy::{Lines, fields, unescape};
use super::lake::{Awaited, DeadLetters, LakeColumn, LakeCut, LakeSide, Shape, await_cut, column_map, key_text, load};
use super::report::{Difference, DifferingKey, Report, Skipped, TableReport};
use super::text::{Canon, Row};
use super::{PATIENCE, Selection, Verifier};

/// How long the connector holds for us: the slot waits for the transactions that are open.
const HOLD: Duration = Duration::from_secs(45);
/// A cut can be missed (the connector restarted, a table was committed beyond it); each try is a new one.
const TRIES: u32 = 5;
/// Values without a dead letter that are shown.
const SHOWN: usize = 20;

/// The source at one LSN, and the checkpoint there.
struct Moment {
    /// In a transaction that reads the snapshot of this moment.
    client: Client,
    checkpoint: Checkpoint,
    cut: LakeCut,
}

pub async fn verify(
    verifier: &Verifier,
    source: &SourceConfig,
    selection: &mut Selection,
    report: &mut Report,
    progress: &mut impl FnMut(&str),
) -> Result<()> {
    let mut tries = 0;
    let moment = loop {
        tries += 1;
        match moment(verifier, source, progress).await? {
            Some(moment) => break moment,
            None if tries < TRIES => progress(&format!("{}: the cut was missed, trying again", source.name)),
            None => {
                return Err(Error::retry("no cut could be placed: the connector or the sink passed each")
                    .with("source", &source.name));
            }
        }
    };
    let filter = TableFilter::new(&source.include, &source.exclude)?;
    for table in tables(&moment.client).await? {
        let id = TableId::new(&source.name, &table.schema, &table.name);
        if !filter.matches(&table.schema, &table.name) || !selection.takes(&id, &source.default_schema) {
            continue;
        }
        match verify_table(verifier, source, &moment, &table, &id, progress).await? {
            Ok(compared) => report.tables.push(compared),
            Err(reason) => report.skipped.push(Skipped { table: super::sql_name(&id, &source.default_schema), reason }),
        }
    }
    Ok(())
}

// ---- the moment

/// One moment that the source, the log and the lake all have; None: it was missed, and another may not be.
async fn moment(verifier: &Verifier, source: &SourceConfig, progress: &mut impl FnMut(&str)) -> Result<Option<Moment>> {
    let name = &source.name;
    let last = verifier.log.last_checkpoint(name).await?.ok_or_else(|| {
        Error::retry("the source has no checkpoint yet: is `lakeward run` running?").with("source", name)
    })?;
    let mut checkpoints = verifier.log.checkpoints(name, Some(last.id)).await?;
    let control = connect(&source.url, "verify").await.with("source", name)?;
    let request = Uuid::new_v4().to_string();
    progress(&format!("{name}: asking for a cut"));
    let hold = Mark::Hold { request: request.clone(), seconds: HOLD.as_secs() };
    Marker::new(&control, &source.slot).await?.write(&control, &hold).await.with("source", name)?;
    let (client, lsn) = snapshot(&source.url, &control).await.with("source", name)?;
    verifier.log.signal(name, &Signal::Cut { request, lsn }).await?;

    let checkpoint = loop {
        let Ok(next) = tokio::time::timeout(PATIENCE, checkpoints.next()).await else {
            return Err(Error::retry(format!(
                "no cut arrived: the connector has written no checkpoint for {} s; is `lakeward run` running?",
                PATIENCE.as_secs()
            ))
            .with("source", name));
        };
        let next = next?;
        match &next.draft.position {
            Position::Postgres { lsn: at, partial: None, .. } if *at == lsn && next.draft.cut => break next,
            Position::Postgres { lsn: at, .. } if *at > lsn => return Ok(None),
            _ => {}
        }
    };
    progress(&format!("{name}: cut at {}, waiting for the lake", checkpoint.draft.position));
    let awaited = await_cut(&verifier.checkpoints, name, checkpoint.id, checkpoint.draft.watermark, PATIENCE).await?;
    Ok(match awaited {
        Awaited::Cut(cut) => Some(Moment { client, checkpoint, cut }),
        Awaited::Passed => None,
    })
}

/// A connection in a transaction that sees exactly the commits before an LSN, and that LSN.
async fn snapshot(url: &Secret, control: &Client) -> Result<(Client, u64)> {
    let replication = url.clone();
    let slot = tokio::task::spawn_blocking(move || temporary_slot(&replication));
    let (connection, lsn, name) = match tokio::time::timeout(HOLD, slot).await {
        Ok(slot) => slot.map_err(|e| Error::bug("creating a slot panicked").source(e))??,
        Err(_) => {
            let open = open_transactions(control).await?;
            return Err(Error::retry("the server waits for open transactions before it gives a snapshot")
                .with("open", open.join("; ")));
        }
    };
    let client = connect(url, "verify").await?;
    client
        .batch_execute(&format!(
            "SET row_security = off;
             BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
             SET TRANSACTION SNAPSHOT {}",
            quote_literal(&name)
        ))
        .await
        .map_err(|e| sql_error("importing the slot's snapshot", e))?;
    // The snapshot is the transaction's now; without its connection the slot is gone and holds back no WAL.
    drop(connection);
    Ok((client, lsn))
}

fn temporary_slot(url: &Secret) -> Result<(PgReplicationConnection, u64, String)> {
    let mut connection = connect_replication(url)?;
    let slot = format!("lakeward_verify_{}", Uuid::new_v4().simple());
    let row = connection
        .exec(&format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"))
        .map_err(|e| replication_error("creating a temporary slot", e))?;
    match (row.get_value(0, 1).as_deref().and_then(parse_lsn), row.get_value(0, 2)) {
        (Some(lsn), Some(snapshot)) => Ok((connection, lsn, snapshot)),
        _ => Err(Error::human("the server created a slot without a position or snapshot")),
    }
}

// ---- tables

/// A table as the source's catalog has it at the moment.
struct Table {
    schema: String,
    name: String,
    partitioned: bool,
    replica_identity: char,
    columns: Vec<Column>,
    /// Indexes into `columns`.
    key: Vec<usize>,
}

struct Column {
    number: i16,
    name: String,
    composite: bool,
    delimiter: u8,
}

/// Generated columns are left out: the stream does not carry them.
const TABLES: &str = "
SELECT n.nspname::text, c.relname::text, c.relkind = 'p', c.relreplident::text, a.attnum, a.attname::text,
       coalesce(element.typtype, base.typtype) = 'c', base.typdelim::text, k.place
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
CROSS JOIN LATERAL (
    WITH RECURSIVE beneath AS (
        SELECT t.* FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid
        UNION ALL
        SELECT t.* FROM beneath b JOIN pg_catalog.pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
    )
    SELECT b.typtype, b.typdelim, b.typelem, b.typoutput FROM beneath b WHERE b.typtype <> 'd'
) base
LEFT JOIN pg_catalog.pg_type element
    ON element.oid = base.typelem AND base.typoutput = 'pg_catalog.array_out'::regproc
LEFT JOIN LATERAL (
    SELECT key.place
    FROM pg_catalog.pg_index i, unnest(i.indkey) WITH ORDINALITY AS key(attnum, place)
    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
      AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
      AND key.place <= i.indnkeyatts AND key.attnum = a.attnum
) k ON true
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2, a.attnum";

async fn tables(client: &Client) -> Result<Vec<Table>> {
    let failed = |e| sql_error("reading the source's catalog", e);
    let rows = client.query(TABLES, &[]).await.map_err(failed)?;
    let mut tables: Vec<Table> = Vec::new();
    let mut places: Vec<BTreeMap<i64, usize>> = Vec::new();
    for row in &rows {
        let (schema, name): (String, String) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        if tables.last().is_none_or(|t| t.schema != schema || t.name != name) {
            let identity: String = row.try_get(3).map_err(failed)?;
            tables.push(Table {
                schema,
                name,
                partitioned: row.try_get(2).map_err(failed)?,
                replica_identity: identity.chars().next().unwrap_or('d'),
                columns: Vec::new(),
                key: Vec::new(),
            });
            places.push(BTreeMap::new());
        }
        let (Some(table), Some(places)) = (tables.last_mut(), places.last_mut()) else { continue };
        if let Some(place) = row.try_get::<_, Option<i64>>(8).map_err(failed)? {
            places.insert(place, table.columns.len());
        }
        let delimiter: String = row.try_get(7).map_err(failed)?;
        table.columns.push(Column {
            number: row.try_get(4).map_err(failed)?,
            name: row.try_get(5).map_err(failed)?,
            composite: row.try_get(6).map_err(failed)?,
            delimiter: delimiter.bytes().next().unwrap_or(b','),
        });
    }
    for (table, places) in tables.iter_mut().zip(places) {
        table.key = places.into_values().collect();
    }
    Ok(tables)
}

/// The comparison, or why there can be none.
async fn verify_table(
    verifier: &Verifier,
    source: &SourceConfig,
    moment: &Moment,
    table: &Table,
    id: &TableId,
    progress: &mut impl FnMut(&str),
) -> Result<Result<TableReport, String>> {
    let name = super::sql_name(id, &source.default_schema);
    if table.replica_identity == 'n' {
        return Ok(Err("it has REPLICA IDENTITY NOTHING and is not captured".into()));
    }
    if table.key.is_empty() {
        return Ok(Err("it has no key; tables without one are not captured yet".into()));
    }
    if moment.checkpoint.draft.converging.contains(&id.to_string()) {
        return Ok(Err("its snapshot is not finished".into()));
    }
    let Some(snapshot_id) = moment.cut.snapshots.get(&name).copied() else {
        return Ok(Err(format!("checkpoint {} does not name it: the lake does not have it", moment.checkpoint.id)));
    };
    progress(&format!("comparing {name}"));
    let lake_table = load(&verifier.lake, &name).await?;
    let map = column_map(&lake_table)?;
    let columns: Vec<String> = table.columns.iter().map(|c| c.name.clone()).collect();
    let shape = Shape::Relational { key: table.key.clone() };
    let mut lake = LakeSide::new(&verifier.lake, lake_table, snapshot_id, lake_columns(table, &map), shape);
    let letters = DeadLetters::read(&verifier.lake, &name).await?;
    let mut rows = PostgresSide {
        client: &moment.client,
        copy: copy_statement(table),
        columns: table.columns.iter().map(|column| canon(column, &map)).collect(),
        names: &columns,
        key: &table.key,
        letters: &letters,
        misfits: Misfits::default(),
    };
    let outcome = compare(&mut rows, &mut lake, &columns, &table.key).await.with("table", &name)?;
    let misfits = rows.misfits;
    let mut difference = outcome.difference;
    if misfits.without_letter > 0 {
        let difference = difference.get_or_insert_with(Difference::nothing);
        difference.totals.without_dead_letter = misfits.without_letter;
        difference.without_dead_letter = misfits.shown;
    }
    Ok(Ok(TableReport {
        table: name,
        source_table: names::topic(id),
        source_rows: outcome.source_rows + misfits.whole_rows,
        lake_rows: outcome.lake_rows,
        checkpoint: moment.checkpoint.id,
        position: moment.checkpoint.draft.position.to_string(),
        snapshot_id,
        watermark: moment.checkpoint.draft.watermark,
        dead_letters: misfits.with_letter,
        difference,
    }))
}

fn lake_columns(table: &Table, map: &ColumnMap) -> Vec<Option<LakeColumn>> {
    let one = |column: &Column| {
        let mapped = map.live(&column.number.to_string())?;
        Some(LakeColumn::new(mapped, column.composite && is_json(&mapped.ty)))
    };
    table.columns.iter().map(one).collect()
}

fn is_json(ty: &LogicalType) -> bool {
    matches!(ty, LogicalType::Json)
}

fn canon(column: &Column, map: &ColumnMap) -> Canon {
    match map.live(&column.number.to_string()).map(|mapped| &mapped.ty) {
        // Where the lake has no column, only NULL is equal.
        None => Canon::Exact,
        Some(ty) if column.composite && is_json(ty) => Canon::Composite,
        Some(ty) => Canon::of(ty, column.delimiter),
    }
}

fn copy_statement(table: &Table) -> String {
    let columns: Vec<String> = table.columns.iter().map(|c| quote_identifier(&c.name)).collect();
    // Rows of tables that inherit from this one are theirs.
    let only = if table.partitioned { "" } else { "ONLY " };
    format!(
        "COPY (SELECT {} FROM {only}{}.{}) TO STDOUT",
        columns.join(", "),
        quote_identifier(&table.schema),
        quote_identifier(&table.name)
    )
}

// ---- rows

struct PostgresSide<'a> {
    client: &'a Client,
    copy: String,
    columns: Vec<Canon>,
    names: &'a [String],
    key: &'a [usize],
    letters: &'a DeadLetters,
    misfits: Misfits,
}

/// Values that the lake's types cannot hold.
#[derive(Default)]
struct Misfits {
    with_letter: u64,
    /// Rows that are dead letters as a whole, because of their key.
    whole_rows: u64,
    without_letter: u64,
    shown: Vec<DifferingKey>,
}

impl Side for PostgresSide<'_> {
    async fn scan(&mut self, visit: &mut (dyn FnMut(&Row) + Send)) -> Result<()> {
        let failed = |e| sql_error("reading the source's rows", e);
        self.misfits = Misfits::default();
        let client = self.client;
        let stream = client.copy_out(&self.copy).await.map_err(failed)?;
        tokio::pin!(stream);
        let mut lines = Lines::default();
        let (mut row, mut text, mut unfit) = (Row::default(), Vec::new(), Vec::new());
        while let Some(chunk) = stream.try_next().await.map_err(failed)? {
            lines.push(&chunk, |line| self.line(line, &mut row, &mut text, &mut unfit, visit))?;
        }
        if !lines.is_empty() {
            return Err(Error::retry("the server's COPY ended inside a row"));
        }
        Ok(())
    }
}

impl PostgresSide<'_> {
    /// One row; the buffers are reused from row to row.
    fn line(
        &mut self,
        line: &[u8],
        row: &mut Row,
        text: &mut Vec<u8>,
        unfit: &mut Vec<(usize, String)>,
        visit: &mut (dyn FnMut(&Row) + Send),
    ) -> Result<()> {
        row.clear();
        unfit.clear();
        let mut values = fields(line);
        for (index, canon) in self.columns.iter().enumerate() {
            let field =
                values.next().ok_or_else(|| Error::human("the server's COPY has a row with too few columns"))?;
            row.push(|out| {
                if !unescape(field, text) {
                    return false;
                }
                let fits = canon.write(text, out);
                if !fits {
                    unfit.push((index, String::from_utf8_lossy(text).into_owned()));
                }
                fits
            });
        }
        if values.next().is_some() {
            return Err(Error::human("the server's COPY has a row with too many columns"));
        }
        row.finish(self.key);
        let whole = unfit.iter().any(|(index, _)| self.key.contains(index));
        if !unfit.is_empty() {
            self.misfits(row, unfit, whole);
        }
        // A row whose key cannot be held is in no table.
        if !whole {
            visit(row);
        }
        Ok(())
    }

    #[cold]
    fn misfits(&mut self, row: &Row, unfit: &[(usize, String)], whole: bool) {
        let texts: Vec<(&str, String)> = self
            .key
            .iter()
            .filter_map(|index| {
                // A key column that cannot be held is null in the letter's key.
                let value =
                    row.value(*index).map_or_else(|| "null".into(), |v| String::from_utf8_lossy(v).into_owned());
                Some((self.names.get(*index)?.as_str(), value))
            })
            .collect();
        let key = key_text(texts.iter().map(|(name, value)| (*name, value.as_str())));
        self.misfits.whole_rows += u64::from(whole);
        for (index, text) in unfit {
            let Some(column) = self.names.get(*index) else { continue };
            if self.letters.has(key.clone(), if whole { None } else { Some(column) }) {
                self.misfits.with_letter += 1;
                continue;
            }
            self.misfits.without_letter += 1;
            if self.misfits.shown.len() < SHOWN {
                self.misfits.shown.push(DifferingKey {
                    key: texts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
                    columns: BTreeMap::from([(column.clone(), (Some(text.clone()), None))]),
                });
            }
        }
    }
}
