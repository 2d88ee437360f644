//! The snapshot of a collection: `find by ranges of _id, each at one cluster time -> DocumentBuilder`, and its progress.
//!
//! Why it is exact. The stream is held while a range is read, and the range's time T is at or after everything published, so
//! a range never sets a row back behind an event that was published before it. Events up to T that follow the range are
//! published all the same, always with whole documents: a patch would not fit the later document, so what it is for is read
//! again as it was at the stream's position. They set a row back for a moment, and it is right again when the stream has
//! passed T: until then the collection converges. The order of `_id`s is the server's alone (comparison operators are
//! bracketed by type, collations order differently).

use std::collections::{BTreeMap, HashMap};

use lakeward_event::Op;
use lakeward_runtime::{Error, Result};
use mongodb::Client;
use mongodb::bson::{Bson, RawBsonRef, RawDocumentBuf, doc};
use serde::{Deserialize, Serialize};

use super::builder::{DocumentBuilder, Place, unreadable};
use super::client::{bson_time, code, error};

const SNAPSHOT_TOO_OLD: i32 = 239;
/// The collection was changed after the moment that is asked for.
const SNAPSHOT_UNAVAILABLE: i32 = 246;
/// The collection was dropped or renamed under a cursor.
const QUERY_PLAN_KILLED: i32 = 175;
/// Ids of one command: it must stay far below 16 MB.
const IDS_PER_READ: usize = 1_000;
const IDS_BYTES: usize = 4 << 20;

/// Documents of one range: a fraction of a second to read, far from the server's history window of five minutes.
pub const RANGE_ROWS: i64 = 20_000;
/// Text of one range, bytes: what an append may weigh.
const RANGE_BYTES: usize = 24 << 20;

/// Where a collection's snapshot is. Kept in every checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Set at first sight, and by a drop or rename among the ranges; ranges up to `after` (canonical Extended JSON of an `_id`)
    /// are read.
    Reading { after: Option<serde_json::Value> },
    /// Set after the last range; ends when the stream has passed the cluster time `until`.
    Converging { until: u64 },
    /// Exact at every cut.
    Done,
}

/// Every collection that is captured, by `database.collection`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub collections: BTreeMap<String, State>,
    /// The database whose stream the position's token is of; None: the deployment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

impl Progress {
    pub fn converging(&self) -> Vec<String> {
        self.collections.iter().filter(|(_, s)| **s != State::Done).map(|(name, _)| name.clone()).collect()
    }

    /// The stream holds every event before this cluster time, or if `through` at it too. Returns the greatest cluster time at
    /// which a collection was read that is exact from here on.
    pub fn passed(&mut self, time: u64, through: bool) -> Option<u64> {
        let mut latest = None;
        for state in self.collections.values_mut() {
            if let State::Converging { until } = *state
                && (until < time || (through && until == time))
            {
                *state = State::Done;
                latest = latest.max(Some(until));
            }
        }
        latest
    }

    /// A document of the collection was read at the cluster time `at`, which the stream may not have passed.
    pub fn read_ahead(&mut self, name: &str, at: u64) {
        match self.collections.get_mut(name) {
            Some(state @ State::Done) => *state = State::Converging { until: at },
            Some(State::Converging { until }) => *until = at.max(*until),
            // The ranges to come are read later still.
            Some(State::Reading { .. }) | None => {}
        }
    }
}

/// What reading a range came to.
pub enum Range {
    Read(State),
    /// The server no longer has this moment: ask again with a new one, and a smaller range.
    TooOld,
    /// The collection was dropped, renamed or given an index meanwhile: ask again with a new moment.
    Changed,
}

/// Reads the next range of a collection at the cluster time `at` into the builder; sequences count on from `sequence`.
pub async fn read_range(
    client: &Client,
    (database, collection): (&str, &str),
    after: Option<&serde_json::Value>,
    (at, rows): (u64, i64),
    builder: &mut DocumentBuilder,
    sequence: &mut u64,
) -> Result<Range> {
    // `min` is inclusive: the last document of the range before comes again.
    let limit = rows + i64::from(after.is_some());
    let mut command = doc! {
        "find": collection, "hint": { "_id": 1 }, "sort": { "_id": 1 }, "limit": limit, "batchSize": limit as i32,
        "readConcern": { "level": "snapshot", "atClusterTime": bson_time(at) },
    };
    let after_id = match after {
        Some(json) => Some(
            Bson::try_from(json.clone()).map_err(|e| Error::bug("an _id in the checkpoint does not read").source(e))?,
        ),
        None => None,
    };
    if let Some(after) = &after_id {
        command.insert("min", doc! { "_id": after.clone() });
    }
    let refused = |e: mongodb::error::Error| match code(&e) {
        Some(SNAPSHOT_TOO_OLD) => Ok(Range::TooOld),
        Some(SNAPSHOT_UNAVAILABLE | QUERY_PLAN_KILLED) => Ok(Range::Changed),
        _ => Err(error("reading a range", e).with("collection", format!("{database}.{collection}"))),
    };
    let mut cursor = match client.database(database).run_cursor_command(command).await {
        Ok(cursor) => cursor.with_type::<RawDocumentBuf>(),
        Err(e) => return refused(e),
    };
    let place = Place { sequence: 0, cluster_time: at, tx: None, wall: Some((at >> 32) as i64 * 1_000_000) };
    let (mut seen, mut last) = (0, None);
    let mut has_greatest = after_id == Some(Bson::MaxKey);
    while match cursor.advance().await {
        Ok(more) => more,
        Err(e) => return refused(e),
    } {
        let document = cursor.current();
        seen += 1;
        let id = document.get("_id").map_err(unreadable)?;
        // Compared as text: NaN is not equal to itself.
        if seen == 1
            && let (Some(after), Some(id)) = (after, id)
            && Bson::try_from(id).is_ok_and(|id| id.into_canonical_extjson() == *after)
        {
            continue;
        }
        builder.document(Op::Read, document, Place { sequence: *sequence, ..place })?;
        *sequence += 1;
        has_greatest |= matches!(id, Some(RawBsonRef::MaxKey));
        let full = builder.bytes() > RANGE_BYTES;
        if full || seen == limit {
            last = id.map(|id| id.to_raw_bson());
        }
        if full {
            break;
        }
    }
    let whole = seen < limit && builder.bytes() <= RANGE_BYTES;
    if whole && after.is_some() && !has_greatest {
        // A range without `max` ends before MaxKey, unlike a scan and unlike a range of a clustered collection.
        let command = doc! {
            "find": collection, "filter": { "_id": { "$eq": Bson::MaxKey } },
            "readConcern": { "level": "snapshot", "atClusterTime": bson_time(at) },
        };
        let mut cursor = match client.database(database).run_cursor_command(command).await {
            Ok(cursor) => cursor.with_type::<RawDocumentBuf>(),
            Err(e) => return refused(e),
        };
        while match cursor.advance().await {
            Ok(more) => more,
            Err(e) => return refused(e),
        } {
            builder.document(Op::Read, cursor.current(), Place { sequence: *sequence, ..place })?;
            *sequence += 1;
        }
    }
    Ok(Range::Read(match (whole, last) {
        (false, Some(id)) => {
            let id = Bson::try_from(id).map_err(unreadable)?;
            State::Reading { after: Some(id.into_canonical_extjson()) }
        }
        _ => State::Converging { until: at },
    }))
}

/// Reads documents exactly as they were at the cluster time `at`, as whole updates, and takes those that it found out of `ids`
/// (by the text of their `_id`). False: the server cannot give this moment.
pub async fn read_documents(
    client: &Client,
    (database, collection): (&str, &str),
    ids: &mut HashMap<String, Bson>,
    at: u64,
    builder: &mut DocumentBuilder,
    (sequence, wall): (&mut u64, i64),
) -> Result<bool> {
    let wanted: Vec<Bson> = ids.values().cloned().collect();
    let mut chunks: Vec<Vec<Bson>> = Vec::new();
    let mut bytes = 0;
    for id in wanted {
        // An _id is hardly ever more than a few bytes; an index entry can be larger than it should.
        let size = match &id {
            Bson::String(text) => text.len(),
            Bson::Binary(binary) => binary.bytes.len(),
            Bson::Document(_) => mongodb::bson::to_vec(&doc! { "": id.clone() }).map_or(IDS_BYTES, |b| b.len()),
            _ => 32,
        };
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < IDS_PER_READ && bytes + size < IDS_BYTES => chunk.push(id),
            _ => {
                chunks.push(vec![id]);
                bytes = 0;
            }
        }
        bytes += size;
    }
    let refused = |e: mongodb::error::Error| match code(&e) {
        Some(SNAPSHOT_TOO_OLD | SNAPSHOT_UNAVAILABLE | QUERY_PLAN_KILLED) => Ok(false),
        _ => Err(error("reading documents again", e).with("collection", format!("{database}.{collection}"))),
    };
    for chunk in chunks {
        let command = doc! {
            "find": collection, "filter": { "_id": { "$in": chunk } }, "hint": { "_id": 1 },
            "readConcern": { "level": "snapshot", "atClusterTime": bson_time(at) },
        };
        let mut cursor = match client.database(database).run_cursor_command(command).await {
            Ok(cursor) => cursor.with_type::<RawDocumentBuf>(),
            Err(e) => return refused(e),
        };
        while match cursor.advance().await {
            Ok(more) => more,
            Err(e) => return refused(e),
        } {
            let place = Place { sequence: *sequence, cluster_time: at, tx: None, wall: Some(wall) };
            builder.document(Op::Update, cursor.current(), place)?;
            *sequence += 1;
            ids.remove(builder.last_id());
        }
    }
    Ok(true)
}
