//! Dropping what the sink has committed: ends -> blocks wholly below them and old checkpoints deleted -> free pages given back.
//!
//! A little at a time, so that a connector's append does not wait: SQLite has one writing transaction.

use std::sync::Arc;

use lakeward_event::Ends;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Executor, Row};

use super::error::Doing;
use super::store::{BEGIN, PAGE_BYTES, Store};
use crate::Result;

/// Blocks deleted in one transaction; each has a megabyte at most before it is compressed, but for single large records.
const BLOCKS_AT_ONCE: i64 = 64;
/// Free space that stays in the file for the next appends: giving pages back and taking them again costs more than they do.
const SLACK_BYTES: u64 = 16 << 20;
/// Pages given back in one transaction.
const PAGES_AT_ONCE: u64 = 1024;
const DROPPING: &str = "dropping what is read from the log";

/// A topic-partition whose first block can go.
struct Droppable {
    topic: i64,
    partition: i32,
    below: i64,
}

/// [`crate::Log::may_drop`].
pub(super) async fn may_drop(store: Arc<Store>, source: String, below: Ends, checkpoint: i64) -> Result<()> {
    for droppable in droppable(&store, &source, &below).await? {
        while drop_some(&store, &droppable).await? {}
    }
    drop_checkpoints(&store, &source, checkpoint).await?;
    shrink(&store).await
}

/// What can be dropped at all, so that nothing is written where nothing is.
async fn droppable(store: &Store, source: &str, below: &Ends) -> Result<Vec<Droppable>> {
    let rows = sqlx::query(
        "SELECT t.name, t.id, p.number,
                (SELECT min(b.end_offset) FROM blocks b WHERE b.topic = t.id AND b.partition = p.number)
         FROM sources s JOIN topics t ON t.source = s.id JOIN partitions p ON p.topic = t.id WHERE s.name = ?",
    )
    .bind(source)
    .fetch_all(&mut *store.reading().await?)
    .await
    .doing(&store.path, DROPPING)?;
    let found = rows.iter().filter_map(|row| {
        let (name, topic, partition): (&str, i64, i32) = (row.get(0), row.get(1), row.get(2));
        let first_block_end: i64 = row.get::<Option<i64>, _>(3)?;
        let below = *below.get(name)?.get(&partition)?;
        (first_block_end <= below).then_some(Droppable { topic, partition, below })
    });
    Ok(found.collect())
}

/// Deletes some blocks; true: there may be more.
async fn drop_some(store: &Store, droppable: &Droppable) -> Result<bool> {
    let path = &store.path;
    let mut guard = store.writing().await?;
    let mut transaction = guard.begin_with(BEGIN).await.doing(path, DROPPING)?;
    let ends: Vec<i64> = sqlx::query_scalar(
        "DELETE FROM blocks WHERE id IN (
             SELECT id FROM blocks WHERE topic = ? AND partition = ? AND end_offset <= ? ORDER BY end_offset LIMIT ?)
         RETURNING end_offset",
    )
    .bind(droppable.topic)
    .bind(droppable.partition)
    .bind(droppable.below)
    .bind(BLOCKS_AT_ONCE)
    .fetch_all(&mut *transaction)
    .await
    .doing(path, DROPPING)?;
    if let Some(first) = ends.iter().max() {
        sqlx::query("UPDATE partitions SET first_offset = ? WHERE topic = ? AND number = ?")
            .bind(first)
            .bind(droppable.topic)
            .bind(droppable.partition)
            .execute(&mut *transaction)
            .await
            .doing(path, DROPPING)?;
    }
    transaction.commit().await.doing(path, DROPPING)?;
    Ok(ends.len() as i64 == BLOCKS_AT_ONCE)
}

/// Deletes checkpoints below `checkpoint`, but never the last one.
async fn drop_checkpoints(store: &Store, source: &str, checkpoint: i64) -> Result<()> {
    let path = &store.path;
    let mut guard = store.writing().await?;
    let mut transaction = guard.begin_with(BEGIN).await.doing(path, DROPPING)?;
    let dropped: Vec<i64> = sqlx::query_scalar(
        "DELETE FROM checkpoints WHERE source = (SELECT id FROM sources WHERE name = ?1) AND id < min(?2,
             (SELECT max(c.id) FROM checkpoints c JOIN sources s ON s.id = c.source WHERE s.name = ?1))
         RETURNING id",
    )
    .bind(source)
    .bind(checkpoint)
    .fetch_all(&mut *transaction)
    .await
    .doing(path, DROPPING)?;
    if let Some(newest) = dropped.iter().max() {
        sqlx::query("UPDATE sources SET dropped_to = max(dropped_to, ?) WHERE name = ?")
            .bind(newest)
            .bind(source)
            .execute(&mut *transaction)
            .await
            .doing(path, DROPPING)?;
    }
    transaction.commit().await.doing(path, DROPPING)
}

/// Gives the file's free pages back to the disk, where they are more than half of it and more than the slack.
async fn shrink(store: &Store) -> Result<()> {
    let slack = SLACK_BYTES / u64::from(PAGE_BYTES);
    let mut before = u64::MAX;
    loop {
        let mut guard = store.writing().await?;
        let (free, pages) =
            (pragma(&mut guard, store, "freelist_count").await?, pragma(&mut guard, store, "page_count").await?);
        // Also where nothing was given back: a file that somebody else has vacuumed may not let go of its pages.
        if free <= slack || free * 2 <= pages || free >= before {
            break;
        }
        before = free;
        let some = (free - slack).min(PAGES_AT_ONCE);
        guard.execute(format!("PRAGMA incremental_vacuum({some})").as_str()).await.doing(&store.path, DROPPING)?;
    }
    if before != u64::MAX {
        // The file is cut when the WAL has been copied into it.
        let mut guard = store.writing().await?;
        guard.execute("PRAGMA wal_checkpoint(PASSIVE)").await.doing(&store.path, DROPPING)?;
    }
    Ok(())
}

async fn pragma(connection: &mut SqliteConnection, store: &Store, name: &str) -> Result<u64> {
    let value: i64 =
        sqlx::query_scalar(&format!("PRAGMA {name}")).fetch_one(connection).await.doing(&store.path, DROPPING)?;
    Ok(u64::try_from(value).unwrap_or(0))
}
