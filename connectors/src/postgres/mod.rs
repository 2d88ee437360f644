//! PostgreSQL: `catalog -> TableShape`; `pgoutput message | COPY row -> TableBuilder -> ChangeBatch -> publisher`.
//!
//! # Layout
//! - this file: how a connector starts
//! - [`client`]: connections to the server
//! - [`publication`], [`slot`]: what the server sends, and from where
//! - [`mark`]: messages of ours in the WAL
//! - [`cursor`]: where the stream is and what that proves
//! - [`stream`]: the loop; [`capture`]: one table in it; [`attributes`]: its columns, where DDL has run since
//! - [`snapshot`]: waves of ranges beside the stream
//! - [`problems`]: what `lakeward check` asks of a source
//! - [`types`]: a column's PostgreSQL type to its logical type and the form its values travel in
//! - [`catalog`]: tables, columns and keys out of `pg_catalog`, and what a snapshot selects
//! - [`pgoutput`]: replication frames and pgoutput messages, borrowed from the buffer
//! - [`tuple`]: [`tuple::TableBuilder`], changes of one table to a `ChangeBatch`
//! - [`copy`]: COPY BINARY bytes to rows
//! - [`value`], [`array`], [`numeric`], [`datetime`], [`composite`]: single values
//! - [`column`]: Arrow columns that can take a value back

pub mod array;
mod attributes;
mod capture;
pub mod catalog;
pub mod client;
pub mod column;
pub mod composite;
pub mod copy;
pub mod cursor;
pub mod datetime;
pub mod mark;
pub mod numeric;
pub mod pgoutput;
mod problems;
pub mod publication;
pub mod slot;
pub mod snapshot;
pub mod stream;
pub mod tuple;
pub mod types;
pub mod value;

pub use problems::problems;

use std::collections::BTreeMap;
use std::sync::Arc;

use lakeward_event::Checkpoint;
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Action, Error, Result};
use tokio_util::sync::CancellationToken;

use self::catalog::{Table, TableFilter};
use self::client::{connect, connect_replication, replication_error, sql_error};
use self::cursor::Cursor;
use self::slot::Start;
use self::snapshot::Snapshots;
use self::snapshot::state::{RANGE_BYTES, State};
use self::stream::{Parts, Stream};
use crate::ConnectorContext;
use crate::publisher::{Lane, Publisher};

/// Runs the connector of one source until shutdown, or until it has caught up where that is asked for. An error that a retry
/// may cure is for the caller to retry: everything is opened anew.
pub async fn run(
    source: &SourceConfig,
    context: &ConnectorContext,
    shutdown: &CancellationToken,
) -> Result<Option<Checkpoint>> {
    let encoder = crate::encoder(context.codec, &context.registry)?;
    let sql = Arc::new(connect(&source.url, "connector").await?);
    // First: a server whose wal_level is minimal refuses the replication connection, and does not say why.
    require_logical(&sql).await?;
    let mut connection = connect_replication(&source.url)?;
    let identity = slot::identify(&mut connection)?;
    // Requests from now on are ours to answer.
    let signals = context.log.signals(&source.name).await?;
    // Ends an older connector of this source; the server may take a moment to see its connection go.
    let (publisher, last) = Publisher::open(&context.log, &source.name, encoder).await?;

    let filter = TableFilter::new(&source.include, &source.exclude)?;
    let tables = tables(source, context, &sql, &filter).await?;
    // The publication first: the server decodes with the catalog as of each change.
    let added = publication::ensure(&sql, &source.publication, &tables).await?;

    let database: String = sql
        .query_one("SELECT current_database()::text", &[])
        .await
        .map_err(|e| sql_error("asking for the database", e))?
        .get(0);
    let known = slot::find(&sql, &source.slot).await?;
    let start =
        slot::decide(last.as_ref(), known.as_ref(), &identity, slot::wal_end(&sql).await?, &source.slot, &database)?;
    let (lsn, partial) = match start {
        Start::Create => {
            let creator = connect(&source.url, "slot").await?;
            (slot::create(&creator, &sql, &source.slot).await?, None)
        }
        Start::Adopt { lsn } => (lsn, None),
        Start::Resume { lsn, partial } => (lsn, partial),
    };

    let draft = last.as_ref().map(|c| &c.draft);
    let in_log = |table: &Table| {
        !publisher.versions(&lakeward_event::TableId::new(&source.name, &table.schema, &table.name)).is_empty()
    };
    let state = snapshot_state(draft.map(|d| &d.snapshot), &tables, &added, in_log)?;
    let (from, watermark) = draft.map_or((0, 0), |d| (d.watermark_from, d.watermark));
    let interval = i64::try_from(context.checkpoint_interval.as_micros()).unwrap_or(i64::MAX);
    let cursor = Cursor::new(identity, interval, lsn, partial, from, watermark);
    let clock_offset = stream::clock_offset(&sql).await?;
    if clock_offset.abs() > 500_000 {
        tracing::warn!(
            source = source.name,
            offset_us = clock_offset,
            "the server's clock is not ours: joins with other sources are inexact"
        );
    }
    tracing::info!(
        source = source.name,
        slot = source.slot,
        lsn = lakeward_event::position::format_lsn(lsn),
        snapshots = state.tables.len(),
        "starting to stream"
    );
    let quoted = catalog::quote_identifier(&source.publication);
    connection
        .start_replication(
            &source.slot,
            lsn,
            &[("proto_version", "1"), ("publication_names", &quoted), ("messages", "true")],
        )
        .map_err(|e| replication_error("starting the stream", e))?;
    let range_bytes = RANGE_BYTES / u64::from(crate::append_divisor(context.codec));
    let snapshots = Snapshots::new(source.url.clone(), source.name.clone(), range_bytes, state);
    let stream = Stream::new(Parts {
        source: source.clone(),
        context: context.clone(),
        sql,
        connection,
        lane: Lane::new(publisher),
        cursor,
        snapshots,
        signals,
        tables,
        filter,
        clock_offset,
    })
    .await?;
    stream.run(shutdown).await
}

async fn require_logical(sql: &tokio_postgres::Client) -> Result<()> {
    let level: String = sql
        .query_one("SELECT current_setting('wal_level')", &[])
        .await
        .map_err(|e| sql_error("asking for wal_level", e))?
        .get(0);
    if level == "logical" {
        return Ok(());
    }
    Err(Error::configuration(format!(
        "wal_level is {level}, capture needs logical: ALTER SYSTEM SET wal_level = logical, then restart the server"
    )))
}

/// The tables to capture, by oid; those left out are told.
async fn tables(
    source: &SourceConfig,
    context: &ConnectorContext,
    sql: &tokio_postgres::Client,
    filter: &TableFilter,
) -> Result<BTreeMap<u32, Table>> {
    let mut fit = BTreeMap::new();
    let mut left_out = Vec::new();
    for table in catalog::list_tables(sql, filter).await? {
        match publication::unfit(&table) {
            None => {
                fit.insert(table.oid, table);
            }
            Some((what, fix)) => {
                tracing::warn!(source = source.name, fix, "{what}");
                left_out.push(what);
            }
        }
    }
    context.status.update(&source.name, |s| s.left_out = left_out);
    Ok(fit)
}

/// The snapshots to take: what the last checkpoint left unfinished, and every table that has joined the publication since.
/// `in_log`: whether a table of that name was in the log before.
fn snapshot_state(
    saved: Option<&serde_json::Value>,
    tables: &BTreeMap<u32, Table>,
    added: &std::collections::BTreeSet<u32>,
    in_log: impl Fn(&Table) -> bool,
) -> Result<State> {
    let mut state: State = match saved {
        None | Some(serde_json::Value::Null) => State::default(),
        Some(saved) => serde_json::from_value(saved.clone()).map_err(|e| {
            Error::new(Action::Human, "the snapshot's progress in the last checkpoint is not understood").source(e)
        })?,
    };
    state.done.retain(|oid| tables.contains_key(oid) && !added.contains(oid));
    state.tables.retain(|oid, _| tables.contains_key(oid) && !added.contains(oid));
    for (oid, table) in tables {
        if !state.done.contains(oid) && !state.tables.contains_key(oid) {
            state.begin(*oid, format!("{}.{}", table.schema, table.name), in_log(table));
        }
    }
    Ok(state)
}

/// What a connection must set before it reads values, as `name = value`: their text forms are those of interface.md whatever
/// the database or role has set. No value has a space, which a startup packet would need escaped. For the replication connection they go into the startup packet (`options`), for a snapshot's
/// into `SET`.
pub const SESSION_SETTINGS: [(&str, &str); 6] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO,MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
];

/// Seconds from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
pub const EPOCH_SECONDS: i64 = 946_684_800;
