//! What a reader has yet to read: watermarks, the ends that checkpoints tell, topic settings, and the time of one record for each
//! partition that is behind -> [`TopicUnread`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakeward_event::{Ends, names};
use rdkafka::consumer::Consumer as _;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Client, blocking, drop_elsewhere};
use super::topics::{Topics, is_data};
use super::{checkpoints, error};
use crate::{Bounds, PartitionUnread, Result, TopicUnread};

/// Partitions asked for their record at a time: each may buffer a fetch.
const AT_ONCE: usize = 64;
/// What has not come by then is left out: the brokers' word for it, not a promise that others rest on.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// [`crate::Log::unread`] of topics with these bounds.
pub(super) async fn unread(
    client: &Arc<Client>,
    topics: &Topics,
    bounds: Bounds,
    held: &Ends,
) -> Result<BTreeMap<String, TopicUnread>> {
    let behind: Vec<(String, i32, i64)> = bounds
        .iter()
        .flat_map(|(topic, partitions)| partitions.iter().map(move |(p, bounds)| (topic, *p, *bounds)))
        .filter_map(|(topic, partition, (first, end))| {
            let held = held.get(topic).and_then(|of_topic| of_topic.get(&partition)).copied().unwrap_or(0);
            let from = held.max(first);
            (from < end).then(|| (topic.clone(), partition, from))
        })
        .collect();
    let appended = {
        let client = client.clone();
        blocking(move || appended(&client, &behind)).await?
    };
    let names: Vec<&str> = bounds.keys().map(String::as_str).collect();
    let mut retention = topics.retention(&names).await?;
    let topic = |(topic, partitions): (String, BTreeMap<i32, (i64, i64)>)| {
        let partition = |(partition, (first, end))| {
            let oldest = appended.get(&(topic.clone(), partition)).copied();
            (partition, PartitionUnread { first, end, oldest })
        };
        let retention = retention.remove(&topic).unwrap_or(crate::Retention::Unknown);
        let partitions = partitions.into_iter().map(partition).collect();
        (topic, TopicUnread { retention, partitions })
    };
    Ok(bounds.into_iter().map(topic).collect())
}

/// First offset and end of the source's data topics, the ends as checkpoints tell them: the watermark counts markers and aborted
/// records too, and would show a reader that has everything as behind. Blocks.
pub(super) fn covered(client: &Arc<Client>, source: &str) -> Result<Bounds> {
    let ends = checkpoints::recover(client, &names::checkpoints_topic(source))?.ends;
    let mut bounds = BTreeMap::new();
    for (topic, partitions) in client.topics(&format!("{source}."))? {
        if !is_data(source, &topic) {
            continue;
        }
        let mut of_topic = BTreeMap::new();
        for partition in partitions {
            let (first, _) = client.watermarks(&topic, partition)?;
            let end = ends.get(&topic).and_then(|ends| ends.get(&partition)).copied().unwrap_or(first);
            of_topic.insert(partition, (first, end));
        }
        bounds.insert(topic, of_topic);
    }
    Ok(bounds)
}

/// When the first record at or above each offset was appended, microseconds since 1970. Blocks.
fn appended(client: &Client, places: &[(String, i32, i64)]) -> Result<HashMap<(String, i32), i64>> {
    let mut found = HashMap::new();
    if places.is_empty() {
        return Ok(found);
    }
    let consumer = client.consumer()?;
    let failed = |e| error::classify(e, client.doing("reading a record"));
    for places in places.chunks(AT_ONCE) {
        let mut list = TopicPartitionList::new();
        for (topic, partition, offset) in places {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).map_err(failed)?;
        }
        consumer.assign(&list).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        let mut missing = places.len();
        while missing > 0 && Instant::now() < deadline {
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let place = (message.topic().to_owned(), message.partition());
                    let Some(at) = message.timestamp().to_millis() else { continue };
                    if found.insert(place, at.saturating_mul(1000)).is_none() {
                        missing -= 1;
                        let mut done = TopicPartitionList::new();
                        done.add_partition(message.topic(), message.partition());
                        consumer.incremental_unassign(&done).map_err(failed)?;
                    }
                }
                Some(Err(error)) => consumer.client().context().note(&error, ""),
                None => {}
            }
        }
    }
    drop_elsewhere(consumer);
    Ok(found)
}
