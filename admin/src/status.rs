//! `lakeward status`: how far is everything? `log + catalog + sources -> Status`.
//!
//! Asked from outside of the processes that do the work: what a part does not answer is said in its place, the rest is shown.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use lakeward_connectors::postgres::client::{connect, sql_error};
use lakeward_lake::system::{CheckpointRow, CheckpointTable, NAMESPACE};
use lakeward_lake::{Lake, Table};
use lakeward_log::Log;
use lakeward_runtime::Result;
use lakeward_runtime::config::{Config, SourceConfig, SourceKind};
use serde::Serialize;

use crate::check::now;
use crate::verify::moment;

/// What has not answered by then is shown as away.
const PATIENCE: Duration = Duration::from_secs(15);

/// Everything at one look. Times are microseconds since 1970, ages microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    pub at: i64,
    pub sources: Vec<SourceStatus>,
    pub tables: Vec<TableStatus>,
    /// Rows of `lakeward.dead_letters`; None: the lake is away.
    pub dead_letters: Option<u64>,
    /// Parts that did not answer, and why.
    pub away: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceStatus {
    pub source: String,
    /// `postgres`, `mongodb`, `debezium`.
    pub kind: &'static str,
    /// The last checkpoint in the log: what the connector has published.
    pub log: Option<Reached>,
    /// The newest row of `lakeward.checkpoints`: what SQL reads.
    pub lake: Option<Reached>,
    /// Tables (`schema.name`) whose snapshot is not finished.
    pub converging: Vec<String>,
    /// PostgreSQL: the replication slot.
    pub slot: Option<Slot>,
    /// Debezium: the topics that are read.
    pub topics: Option<Topics>,
}

/// Topics that others write.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Topics {
    pub topics: usize,
    /// End offsets of all partitions, added up.
    pub offsets: u64,
}

/// A checkpoint that something has reached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reached {
    pub checkpoint: i64,
    pub position: String,
    /// Every commit before this moment of the source's clock is in it.
    pub watermark: i64,
    /// How long ago that was.
    pub age: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    /// Bytes of WAL that the server keeps for us, and the most it may.
    pub retained: Option<i64>,
    pub budget: u64,
    pub confirmed_flush: Option<String>,
    /// The server's word: `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableStatus {
    /// `namespace.table`
    pub table: String,
    /// Exact: records less deleted positions.
    pub rows: Option<i64>,
    pub snapshot_id: Option<i64>,
    /// The checkpoint at which the table was last changed; its watermark.
    pub checkpoint: Option<i64>,
    pub watermark: Option<i64>,
    pub data_files: Option<i64>,
    pub delete_files: Option<i64>,
    /// Committed to the table by its newest snapshot, at this moment.
    pub committed_at: Option<i64>,
}

/// Looks at the log, the lake and every source.
pub async fn status(config: &Config) -> Status {
    let mut status = Status { at: now(), ..Status::default() };
    let log = match lakeward_log::open(&config.log, &config.name) {
        Ok(log) => Some(log),
        Err(error) => {
            status.away.push(format!("log: {error}"));
            None
        }
    };
    // The lake before the log: it follows the log, so what was looked at in this order is never shown ahead of it.
    let lake = in_time("catalog and warehouse", look_at_lake(config)).await;
    let sources =
        futures::future::join_all(config.sources.iter().map(|source| look_at_source(source, log.as_ref()))).await;
    let mut newest = HashMap::new();
    match lake {
        Ok(lake) => {
            newest = lake.newest;
            status.tables = lake.tables;
            status.dead_letters = Some(lake.dead_letters);
        }
        Err(away) => status.away.push(away),
    }
    for (mut source, away) in sources {
        source.lake = newest.get(&source.source).map(|row| reached(row.checkpoint, &row.position, row.watermark));
        status.sources.push(source);
        status.away.extend(away);
    }
    status
}

pub(crate) fn reached(checkpoint: i64, position: &str, watermark: i64) -> Reached {
    Reached { checkpoint, position: position.to_owned(), watermark, age: now().saturating_sub(watermark) }
}

/// The answer, or why there is none in time.
pub(crate) async fn in_time<T>(place: &str, look: impl Future<Output = Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(format!("{place}: {error}")),
        Err(_) => Err(format!("{place}: no answer in {} s", PATIENCE.as_secs())),
    }
}

async fn look_at_source(source: &SourceConfig, log: Option<&Arc<dyn Log>>) -> (SourceStatus, Vec<String>) {
    let kind = match source.kind {
        SourceKind::Postgres => "postgres",
        SourceKind::Mongodb => "mongodb",
        SourceKind::Debezium => "debezium",
    };
    let mut found = SourceStatus {
        source: source.name.clone(),
        kind,
        log: None,
        lake: None,
        converging: Vec::new(),
        slot: None,
        topics: None,
    };
    let mut away = Vec::new();
    let place = format!("source {}", source.name);
    if let Some(log) = log
        && source.kind != SourceKind::Debezium
    {
        match in_time(&format!("log of {place}"), log.last_checkpoint(&source.name)).await {
            Ok(Some(last)) => {
                found.log = Some(reached(last.id, &last.draft.position.to_string(), last.draft.watermark));
                found.converging = last.draft.converging;
            }
            Ok(None) => {}
            Err(error) => away.push(error),
        }
    }
    if let Some(log) = log
        && source.kind == SourceKind::Debezium
    {
        match in_time(&format!("topics of {place}"), topics(source, log)).await {
            Ok(topics) => found.topics = Some(topics),
            Err(error) => away.push(error),
        }
    }
    if source.kind == SourceKind::Postgres {
        match in_time(&place, slot(source)).await {
            Ok(slot) => found.slot = slot,
            Err(error) => away.push(error),
        }
    }
    (found, away)
}

async fn topics(source: &SourceConfig, log: &Arc<dyn Log>) -> Result<Topics> {
    let bounds = log.foreign_bounds(lakeward_sink::topic_filter(source)?).await?;
    let ends = bounds.values().flat_map(|partitions| partitions.values()).map(|(_, end)| end.unsigned_abs());
    Ok(Topics { topics: bounds.len(), offsets: ends.sum() })
}

async fn slot(source: &SourceConfig) -> Result<Option<Slot>> {
    let client = connect(&source.url, "status").await?;
    let failed = |e| sql_error("looking at the replication slot", e);
    let row = client
        .query_opt(
            "SELECT active, pg_wal_lsn_diff(
                        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                        restart_lsn)::int8,
                    confirmed_flush_lsn::text, wal_status
               FROM pg_replication_slots WHERE slot_name = $1",
            &[&source.slot],
        )
        .await
        .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Slot {
        name: source.slot.clone(),
        active: row.try_get(0).map_err(failed)?,
        retained: row.try_get(1).map_err(failed)?,
        budget: source.wal_budget,
        confirmed_flush: row.try_get(2).map_err(failed)?,
        wal_status: row.try_get(3).map_err(failed)?,
    }))
}

struct LakeLook {
    newest: HashMap<String, CheckpointRow>,
    tables: Vec<TableStatus>,
    dead_letters: u64,
}

async fn look_at_lake(config: &Config) -> Result<LakeLook> {
    let lake = Lake::open(&config.catalog, &config.warehouse).await?;
    let mut found = LakeLook { newest: HashMap::new(), tables: Vec::new(), dead_letters: 0 };
    for id in lake.tables().await? {
        // Gone since it was listed, or still there.
        let Some(table) = lake.load(&id).await? else { continue };
        let name = format!("{}.{}", id.namespace(), id.name());
        let one = table_status(name, &table);
        if id.namespace().to_string() != NAMESPACE {
            found.tables.push(one);
        } else if id.name() == "dead_letters" {
            found.dead_letters = one.rows.and_then(|rows| u64::try_from(rows).ok()).unwrap_or(0);
        } else if id.name() == "checkpoints" {
            found.newest = CheckpointTable::open(&lake).await?.newest().await?;
        }
    }
    Ok(found)
}

fn table_status(name: String, table: &Table) -> TableStatus {
    let snapshot = table.snapshot();
    let summary = |key: &str| snapshot.and_then(|s| s.summary().additional_properties.get(key)?.parse::<i64>().ok());
    TableStatus {
        table: name,
        rows: summary("total-records").map(|records| records - summary("total-position-deletes").unwrap_or(0)),
        snapshot_id: snapshot.map(|s| s.snapshot_id()),
        checkpoint: summary("lakeward.checkpoint"),
        watermark: summary("lakeward.watermark"),
        data_files: summary("total-data-files"),
        delete_files: summary("total-delete-files"),
        committed_at: snapshot.map(|s| s.timestamp_ms().saturating_mul(1000)),
    }
}

impl Status {
    /// For people: sources, then tables, then what is wrong.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        for source in &self.sources {
            let _ = writeln!(out, "source {} ({})", source.source, source.kind);
            let line = |out: &mut String, what: &str, at: &Option<Reached>| {
                let _ = match at {
                    Some(at) => writeln!(
                        out,
                        "    {what:<9} {} ({} ago), checkpoint {}, {}",
                        moment(at.watermark),
                        age(at.age),
                        at.checkpoint,
                        // Without MongoDB's resume token.
                        at.position.split(' ').next().unwrap_or_default()
                    ),
                    None => writeln!(out, "    {what:<9} nothing yet"),
                };
            };
            match &source.topics {
                Some(topics) => {
                    let reached = source.lake.as_ref().and_then(|lake| lake.position.parse().ok()).unwrap_or(0);
                    let _ = writeln!(
                        out,
                        "    topics    {}, {} offsets, {} of them not in SQL yet",
                        topics.topics,
                        topics.offsets,
                        topics.offsets.saturating_sub(reached)
                    );
                }
                None if source.kind == "debezium" => {}
                None => line(&mut out, "published", &source.log),
            }
            line(&mut out, "in SQL", &source.lake);
            if !source.converging.is_empty() {
                let _ = writeln!(out, "    snapshot  not finished: {}", source.converging.join(", "));
            }
            match &source.slot {
                Some(slot) => {
                    let _ = writeln!(
                        out,
                        "    slot      {}, {}, {} of {} WAL retained{}",
                        slot.name,
                        if slot.active { "read" } else { "NOT READ" },
                        slot.retained.map_or_else(|| "?".into(), |bytes| size(bytes.unsigned_abs())),
                        size(slot.budget),
                        match slot.wal_status.as_deref() {
                            None | Some("reserved" | "extended") => String::new(),
                            Some(other) => format!(", {other}"),
                        }
                    );
                }
                None if source.kind == "postgres" => {
                    let _ = writeln!(out, "    slot      none");
                }
                None => {}
            }
        }
        if !self.tables.is_empty() {
            let width = self.tables.iter().map(|t| t.table.len()).chain([5]).max().unwrap_or(5);
            let _ = writeln!(
                out,
                "{:width$}  {:>14}  {:>20}  {:>10}  {:>12}  {:>12}",
                "table", "rows", "snapshot", "changed", "data files", "delete files"
            );
            let number = |value: Option<i64>| value.map_or_else(|| "-".into(), |v| v.to_string());
            for table in &self.tables {
                let changed = table.committed_at.map_or_else(|| "-".into(), |at| age(self.at.saturating_sub(at)));
                let _ = writeln!(
                    out,
                    "{:width$}  {:>14}  {:>20}  {changed:>10}  {:>12}  {:>12}",
                    table.table,
                    number(table.rows),
                    number(table.snapshot_id),
                    number(table.data_files),
                    number(table.delete_files)
                );
            }
        }
        match self.dead_letters {
            Some(0) | None => {}
            Some(letters) => {
                let _ = writeln!(out, "{letters} dead letters: SELECT * FROM lakeward.dead_letters");
            }
        }
        for away in &self.away {
            let _ = writeln!(out, "no answer from {away}");
        }
        out
    }
}

/// An age as people say it.
pub(crate) fn age(micros: i64) -> String {
    let seconds = micros.max(0) as f64 / 1e6;
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s if s < 86_400.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_away_is_said_and_the_rest_is_shown() {
        let status = Status {
            at: 100_000_000,
            sources: vec![SourceStatus {
                source: "users".into(),
                kind: "postgres",
                log: Some(Reached {
                    checkpoint: 7,
                    position: "0/10".into(),
                    watermark: 1_704_067_200_000_000,
                    age: 1_500_000,
                }),
                lake: None,
                converging: vec!["public.orders".into()],
                topics: None,
                slot: Some(Slot {
                    name: "shop_users".into(),
                    active: false,
                    retained: Some(3 << 20),
                    budget: 10 << 30,
                    confirmed_flush: Some("0/10".into()),
                    wal_status: Some("lost".into()),
                }),
            }],
            tables: Vec::new(),
            dead_letters: None,
            away: vec!["catalog and warehouse: refused".into()],
        };
        let text = status.to_text();
        for part in [
            "published 2024-01-01 00:00:00Z (1.5 s ago), checkpoint 7, 0/10",
            "in SQL    nothing yet",
            "not finished: public.orders",
            "NOT READ, 3.0 MiB of 10.0 GiB WAL retained, lost",
            "no answer from catalog and warehouse: refused",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
