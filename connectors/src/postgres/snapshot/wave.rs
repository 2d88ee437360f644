//! One wave of snapshots: `locks -> exported snapshot -> ranges by COPY -> ChangeBatch`. See design.md's "The PostgreSQL
//! snapshot", steps 2 and 3, for why in this order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use lakeward_event::ChangeBatch;
use lakeward_event::position::parse_lsn;
use lakeward_runtime::config::Secret;
use lakeward_runtime::{Error, Result};
use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::state::{Key, Leaf, Range};
use super::visibility::Visibility;
use crate::postgres::catalog::{self, Table, TableShape, quote_literal};
use crate::postgres::client::{connect, sql_error};
use crate::postgres::copy::CopyDecoder;
use crate::postgres::tuple::{RowMeta, TableBuilder};

/// How long a wave hands out ranges. Every transaction that its snapshot does not see waits so long, and so does DDL.
const WAVE: Duration = Duration::from_secs(4);
/// Rows of one batch; the same as the stream's.
const BATCH_ROWS: usize = 65_536;
/// Keys looked up by one statement.
const KEYS_AT_ONCE: usize = 500;

/// What a wave is to read of one table.
#[derive(Clone)]
pub struct Wanted {
    pub table: Table,
    pub shape: TableShape,
    /// Keys of rows that an update left incomplete.
    pub keys: Vec<Key>,
}

/// Locks are held on every leaf of these tables, no snapshot is taken yet.
pub struct Locked {
    /// Its open transaction holds the locks.
    locks: Client,
    snapshots: Client,
    pub wanted: BTreeMap<u32, Wanted>,
    /// By table: its leaves as they are under the locks, nothing read.
    pub leaves: BTreeMap<u32, BTreeMap<u32, Leaf>>,
    names: BTreeMap<u32, String>,
}

/// A snapshot that connections can import while this lives.
pub struct Exported {
    _locks: Client,
    _snapshots: Client,
    name: String,
    pub visibility: Visibility,
    wanted: BTreeMap<u32, Wanted>,
    names: BTreeMap<u32, String>,
    /// What the rows say of where they come from.
    meta: RowMeta,
}

/// What a wave's connections report.
pub enum Read {
    Range {
        range: Range,
        batches: Vec<ChangeBatch>,
        rows: u64,
    },
    /// Rows of these keys as of the snapshot; those in `missing` are not there.
    Completed {
        table: u32,
        keys: Vec<Key>,
        missing: Vec<Key>,
        batches: Vec<ChangeBatch>,
        rows: u64,
    },
}

/// Takes the locks, and plans ranges of `range_bytes`. None: somebody holds a lock against ours (DDL), try later.
pub async fn lock(url: Secret, wanted: BTreeMap<u32, Wanted>, range_bytes: u64) -> Result<Option<Locked>> {
    let (locks, snapshots) = (connect(&url, "snapshot").await?, connect(&url, "snapshot").await?);
    let mut names = BTreeMap::new();
    let mut by_table = BTreeMap::new();
    locks
        .batch_execute("BEGIN; SET LOCAL lock_timeout = '500ms'")
        .await
        .map_err(|e| sql_error("beginning a wave", e))?;
    for (oid, table) in &wanted {
        let mut to_lock = vec![table.table.qualified()];
        for leaf in catalog::leaves(&locks, *oid).await? {
            to_lock.push(leaf.qualified.clone());
            names.insert(leaf.oid, leaf.qualified);
            by_table.insert(leaf.oid, *oid);
        }
        let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", to_lock.join(", "));
        match locks.batch_execute(&sql).await {
            Ok(()) => {}
            Err(error) if is_refused(&error) => return Ok(None),
            Err(error) => {
                return Err(sql_error("locking tables for a wave", error).with("table", &table.shape.schema().table));
            }
        }
        // Under the lock nothing changes any more; before it something may have.
        if catalog::read_table(&locks, *oid).await?.as_ref() != Some(&table.table) {
            return Ok(None);
        }
    }
    let oids: Vec<u32> = names.keys().copied().collect();
    let rows = locks
        .query(
            "SELECT o.oid, pg_relation_filenode(o.oid::regclass), pg_relation_size(o.oid::regclass) / current_setting('block_size')::int8,
                    pg_table_size(o.oid::regclass)
               FROM unnest($1::oid[]) AS o(oid)",
            &[&oids],
        )
        .await
        .map_err(|e| sql_error("measuring tables for a wave", e))?;
    let mut leaves: BTreeMap<u32, BTreeMap<u32, Leaf>> = wanted.keys().map(|oid| (*oid, BTreeMap::new())).collect();
    for row in rows {
        let oid: u32 = row.get(0);
        // Dropped while we asked: the next wave sees it gone.
        let (Some(filenode), Some(pages), Some(bytes)) =
            (row.get::<_, Option<u32>>(1), row.get::<_, Option<i64>>(2), row.get::<_, Option<i64>>(3))
        else {
            return Ok(None);
        };
        if let Some(leaves) = by_table.get(&oid).and_then(|table| leaves.get_mut(table)) {
            let pages = u32::try_from(pages).unwrap_or(u32::MAX);
            leaves.insert(oid, Leaf::plan(filenode, pages, u64::try_from(bytes).unwrap_or(0), range_bytes));
        }
    }
    Ok(Some(Locked { locks, snapshots, wanted, leaves, names }))
}

fn is_refused(error: &tokio_postgres::Error) -> bool {
    // A table dropped meanwhile is no longer among those wanted when the wave is tried again.
    error.code().is_some_and(|c| {
        *c == SqlState::LOCK_NOT_AVAILABLE || *c == SqlState::UNDEFINED_TABLE || *c == SqlState::T_R_DEADLOCK_DETECTED
    })
}

impl Locked {
    /// Takes one snapshot and gives it back if it does not see all of `published`. The caller publishes nothing meanwhile.
    pub async fn try_export(
        &self,
        published: impl Iterator<Item = u32>,
    ) -> Result<Option<(String, Visibility, RowMeta)>> {
        let failed = |e| sql_error("taking a snapshot", e);
        self.snapshots.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(failed)?;
        let row = self
            .snapshots
            .query_one(
                "SELECT pg_current_snapshot()::text, pg_export_snapshot(), pg_current_wal_insert_lsn()::text,
                        (extract(epoch FROM clock_timestamp()) * 1000000)::int8",
                &[],
            )
            .await
            .map_err(failed)?;
        let visibility = Visibility::parse(row.get(0))?;
        for xid in published {
            if !visibility.sees(xid) {
                self.snapshots.batch_execute("ROLLBACK").await.map_err(failed)?;
                return Ok(None);
            }
        }
        let position = row.get::<_, Option<&str>>(2).and_then(parse_lsn).unwrap_or(0);
        let meta = RowMeta { sequence: 0, position, tx: None, commit_ts: Some(row.get(3)) };
        Ok(Some((row.get(1), visibility, meta)))
    }

    /// Keeps the snapshot that [`try_export`](Self::try_export) has taken.
    pub fn exported(self, (name, visibility, meta): (String, Visibility, RowMeta)) -> Exported {
        Exported {
            _locks: self.locks,
            _snapshots: self.snapshots,
            name,
            visibility,
            wanted: self.wanted,
            names: self.names,
            meta,
        }
    }
}

/// Reads `ranges` and the wanted keys with up to `connections` connections, and sends what it has read; returns when the wave is
/// over, its time up or a leaf's lock refused. Locks and snapshot are gone then.
pub async fn read(
    exported: Exported,
    url: Secret,
    ranges: Vec<Range>,
    connections: usize,
    results: mpsc::Sender<Read>,
) -> Result<()> {
    let deadline = Instant::now() + WAVE;
    let wave = Arc::new(exported);
    let ranges = Arc::new(Mutex::new(VecDeque::from(ranges)));
    let keyed: Vec<u32> = wave.wanted.iter().filter(|(_, w)| !w.keys.is_empty()).map(|(oid, _)| *oid).collect();
    let mut readers = tokio::task::JoinSet::new();
    let left = ranges.lock().unwrap_or_else(PoisonError::into_inner).len();
    for index in 0..connections.min(left.max(1)) {
        let (wave, ranges, results, url) = (wave.clone(), ranges.clone(), results.clone(), url.clone());
        let keyed = if index == 0 { keyed.clone() } else { Vec::new() };
        readers.spawn(async move {
            let client = wave.import(&url).await?;
            for table in keyed {
                wave.complete(&client, table, &results).await?;
            }
            let mut first = true;
            loop {
                if !first && Instant::now() > deadline {
                    break;
                }
                first = false;
                let next = ranges.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(range) = next else { break };
                let Some(read) = wave.range(&client, range).await? else {
                    // DDL waits for our locks: end the wave for everybody.
                    ranges.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    break;
                };
                // Nobody listens any more: the connector ends.
                if results.send(read).await.is_err() {
                    break;
                }
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(joined) = readers.join_next().await {
        joined.map_err(|e| Error::bug("a reader of a snapshot panicked").source(e))??;
    }
    Ok(())
}

impl Exported {
    async fn import(&self, url: &Secret) -> Result<Client> {
        let client = connect(url, "snapshot").await?;
        client
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
                quote_literal(&self.name)
            ))
            .await
            .map_err(|e| sql_error("importing a snapshot", e))?;
        Ok(client)
    }

    /// None: the lock was refused, the transaction is broken off.
    async fn range(&self, client: &Client, range: Range) -> Result<Option<Read>> {
        let (Some(wanted), Some(name)) = (self.wanted.get(&range.table), self.names.get(&range.leaf)) else {
            return Err(Error::bug("a range of a table that the wave does not have"));
        };
        // Not ONLY the holder's lock: waiting behind DDL that waits for the holder would never end.
        match client.batch_execute(&format!("LOCK TABLE ONLY {name} IN ACCESS SHARE MODE NOWAIT")).await {
            Ok(()) => {}
            Err(error) if is_refused(&error) => return Ok(None),
            Err(error) => return Err(sql_error("locking a table for a range", error).with("table", name)),
        }
        let upper = range.to.map_or(String::new(), |to| format!(" AND ctid < '({to},0)'"));
        let sql = format!(
            "COPY (SELECT {} FROM ONLY {name} WHERE ctid >= '({},0)'{upper}) TO STDOUT (FORMAT binary)",
            wanted.shape.snapshot_select(),
            range.from
        );
        let (batches, rows) = self.copy(client, &wanted.shape, &sql).await?;
        Ok(Some(Read::Range { range, batches, rows }))
    }

    async fn complete(&self, client: &Client, table: u32, results: &mpsc::Sender<Read>) -> Result<()> {
        let Some(wanted) = self.wanted.get(&table) else { return Ok(()) };
        let columns: Vec<_> = wanted.table.key.iter().filter_map(|i| wanted.table.columns.get(*i)).collect();
        for keys in wanted.keys.chunks(KEYS_AT_ONCE) {
            let rows: Vec<String> = keys
                .iter()
                .map(|key| {
                    let values: Vec<String> = key
                        .iter()
                        .zip(&columns)
                        .map(|(text, column)| format!("{}::{}", quote_literal(text), column.source_type))
                        .collect();
                    values.join(", ")
                })
                .collect();
            let names: Vec<String> = columns.iter().map(|c| catalog::quote_identifier(&c.name)).collect();
            let names = names.join(", ");
            let sql = format!(
                "COPY (SELECT {} FROM {} WHERE ({names}) IN (({}))) TO STDOUT (FORMAT binary)",
                wanted.shape.snapshot_select(),
                wanted.table.qualified(),
                rows.join("), (")
            );
            let (batches, count) = self.copy(client, &wanted.shape, &sql).await?;
            let mut missing = Vec::new();
            if count < keys.len() as u64 {
                for (key, row) in keys.iter().zip(&rows) {
                    let sql = format!("SELECT 1 FROM {} WHERE ({names}) IN (({row}))", wanted.table.qualified());
                    let found = client.query_opt(&sql, &[]).await.map_err(|e| sql_error("looking for a row", e))?;
                    if found.is_none() {
                        missing.push(key.clone());
                    }
                }
            }
            let read = Read::Completed { table, keys: keys.to_vec(), missing, batches, rows: count };
            if results.send(read).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn copy(&self, client: &Client, shape: &TableShape, sql: &str) -> Result<(Vec<ChangeBatch>, u64)> {
        let what = || format!("reading {} for its snapshot", shape.schema().table);
        let stream = client.copy_out(sql).await.map_err(|e| sql_error(&what(), e))?;
        tokio::pin!(stream);
        let bad = |e| Error::human(what()).source(e);
        let (mut decoder, mut builder) = (CopyDecoder::new(), TableBuilder::new(shape));
        let (mut batches, mut rows) = (Vec::new(), 0);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| sql_error(&what(), e))?;
            rows += decoder.feed(&chunk, &mut builder, RowMeta { sequence: rows, ..self.meta }).map_err(bad)?;
            if builder.rows() >= BATCH_ROWS {
                batches.push(builder.finish().map_err(bad)?);
            }
        }
        decoder.finish().map_err(bad)?;
        if !builder.is_empty() {
            batches.push(builder.finish().map_err(bad)?);
        }
        Ok((batches, rows))
    }
}
