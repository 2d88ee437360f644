//! Finding checkpoints: the last one, and the one to read on from, without reading the topic from its beginning.
//!
//! The last record is not at `end - 1`: transaction markers and aborted records lie between. So a stretch before the end is read,
//! and a longer one if it held none.

use std::sync::Arc;

use lakeward_event::{Checkpoint, Ends};

use super::client::Client;
use super::control::{PARTITION, decode, read_range};
use crate::Result;

/// Offsets in the first stretch. A checkpoint takes two (itself and its marker), and one in 64 is complete, so this holds a
/// complete one unless there were many aborts.
const STRETCH: i64 = 256;
/// Each next stretch is so many times as long.
const GROWTH: i64 = 4;

/// What the committed checkpoints say at the end of the log.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub last: Option<Checkpoint>,
    /// End offsets of every partition that was ever appended to: those of the last complete checkpoint, and what came after.
    pub ends: Ends,
}

/// The last committed checkpoint. Blocks.
pub(super) fn last(client: &Arc<Client>, topic: &str) -> Result<Option<Checkpoint>> {
    Ok(scan_back(client, topic, STRETCH / 16, |stretch| stretch.last.is_some())?.last)
}

/// The last committed checkpoint and the ends as of it. Blocks.
pub(super) fn recover(client: &Arc<Client>, topic: &str) -> Result<Recovered> {
    let stretch = scan_back(client, topic, STRETCH, |stretch| stretch.complete)?;
    Ok(Recovered { last: stretch.last, ends: stretch.ends })
}

#[derive(Default)]
struct Stretch {
    last: Option<Checkpoint>,
    ends: Ends,
    /// A complete checkpoint is in it, so `ends` lacks nothing.
    complete: bool,
}

/// Reads stretches of growing length before the committed end until one is enough or begins at the log's beginning.
fn scan_back(client: &Arc<Client>, topic: &str, first: i64, enough: impl Fn(&Stretch) -> bool) -> Result<Stretch> {
    if client.topic(topic)?.is_none() {
        return Ok(Stretch::default());
    }
    let (low, high) = client.watermarks(topic, PARTITION)?;
    let mut length = first;
    loop {
        let start = low.max(high.saturating_sub(length));
        let mut stretch = Stretch::default();
        read_range(client, topic, start, high, &mut |record| {
            let checkpoint: Checkpoint = decode(record)?;
            if checkpoint.complete {
                stretch.complete = true;
                stretch.ends = checkpoint.ends.clone();
            } else {
                for (topic, partitions) in &checkpoint.ends {
                    stretch.ends.entry(topic.clone()).or_default().extend(partitions);
                }
            }
            stretch.last = Some(checkpoint);
            Ok(())
        })?;
        if start == low || enough(&stretch) {
            return Ok(stretch);
        }
        length = length.saturating_mul(GROWTH);
    }
}

/// An offset from which the checkpoint `id`, or else the first one above it, is found soon. Ids grow with offsets, so halving finds
/// it. Blocks.
pub(super) fn start_at(client: &Arc<Client>, topic: &str, id: i64) -> Result<i64> {
    let (mut low, high) = client.watermarks(topic, PARTITION)?;
    let mut high = high;
    // Invariant: every checkpoint below `low` has an id below `id`.
    while high - low > STRETCH {
        let middle = low + (high - low) / 2;
        // The first checkpoint at or above the middle decides; a marker or an aborted record may lie there.
        match first_in(client, topic, middle, high)? {
            Some((offset, found)) if found < id => low = offset + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// Offset and id of the first checkpoint in a range.
fn first_in(client: &Arc<Client>, topic: &str, start: i64, end: i64) -> Result<Option<(i64, i64)>> {
    let mut from = start;
    while from < end {
        // A stretch of a few offsets nearly always holds one.
        let to = end.min(from + 8);
        let mut found = None;
        read_range(client, topic, from, to, &mut |record| {
            if found.is_none() {
                found = Some((record.offset, decode::<Checkpoint>(record)?.id));
            }
            Ok(())
        })?;
        if found.is_some() {
            return Ok(found);
        }
        from = to;
    }
    Ok(None)
}
