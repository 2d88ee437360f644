//! Whether the log will still have what the sink has yet to read: `Log::unread + what the lake holds -> a warning in time, a metric`.
//!
//! Runs beside the worker, so that it also speaks while the worker waits for a catalog or storage that is away: that is when it
//! is needed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lakeward_event::Ends;
use lakeward_log::{Log, TopicUnread};
use lakeward_runtime::Result;
use lakeward_runtime::config::{SourceConfig, SourceKind};
use tokio_util::sync::CancellationToken;

use crate::dead_letter::now;
use crate::foreign::topic_filter;

/// The part of a topic's retention that may pass unread before it is said, in tenths; and again at each tenth after it.
const SAID_FROM: u32 = 5;
/// After the start, for the worker to find out what the lake holds.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// So many looks in the shortest retention, within bounds: a look asks for the bounds of each partition.
const LOOKS: u32 = 40;
const RAREST: Duration = Duration::from_secs(300);
const OFTENEST: Duration = Duration::from_secs(2);

/// What the tables of a source hold of their topics; outlives the workers.
pub type Held = Arc<Mutex<Option<Ends>>>;

/// Looks again and again until shutdown. `tables` limits it to the topics that this sink reads.
pub async fn watch(
    log: Arc<dyn Log>,
    source: &SourceConfig,
    held: &Held,
    tables: Option<&globset::GlobMatcher>,
    shutdown: &CancellationToken,
) {
    let name = source.name.as_str();
    let mut said = HashMap::new();
    let mut pause = FIRST_LOOK;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        match look(log.as_ref(), source, held, tables).await {
            Ok(Some(unread)) => {
                let shortest = unread.values().filter_map(|topic| topic.retention.time()).min();
                pause = shortest.map_or(RAREST, |time| (time / LOOKS).clamp(OFTENEST, RAREST));
                tell(name, &used(&unread, now()), &unread, &mut said);
            }
            // The worker has not come so far.
            Ok(None) => pause = FIRST_LOOK,
            // Readers say it louder.
            Err(error) => {
                tracing::debug!(error = %error, source = name, "cannot see how long the log keeps what is unread")
            }
        }
    }
}

async fn look(
    log: &dyn Log,
    source: &SourceConfig,
    held: &Held,
    tables: Option<&globset::GlobMatcher>,
) -> Result<Option<BTreeMap<String, TopicUnread>>> {
    let held = held.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(held) = held else { return Ok(None) };
    let mut unread = match source.kind {
        SourceKind::Debezium => log.foreign_unread(topic_filter(source)?, &held).await?,
        SourceKind::Postgres | SourceKind::Mongodb => log.unread(&source.name, &held).await?,
    };
    unread.retain(|topic, _| tables.is_none_or(|glob| glob.is_match(topic)));
    Ok(Some(unread))
}

/// The part of its retention that each topic's oldest unread record has spent, for topics that drop by time. Above 1: it may
/// be gone.
fn used(unread: &BTreeMap<String, TopicUnread>, now: i64) -> BTreeMap<String, f64> {
    let of_topic = |(topic, unread): (&String, &TopicUnread)| {
        let kept = unread.retention.time()?.as_secs_f64();
        let age = unread.oldest().map_or(0.0, |at| now.saturating_sub(at).max(0) as f64 / 1e6);
        Some((topic.clone(), age / kept.max(0.001)))
    };
    unread.iter().filter_map(of_topic).collect()
}

/// Warns of a topic at each tenth once, and says when it is out of danger. `said`: the tenths so far.
fn tell(
    source: &str,
    used: &BTreeMap<String, f64>,
    unread: &BTreeMap<String, TopicUnread>,
    said: &mut HashMap<String, u32>,
) {
    for (topic, &used) in used {
        metrics::gauge!("lakeward_log_retention_used_ratio", "source" => source.to_owned(), "topic" => topic.clone())
            .set(used);
        let tenths = (used * 10.0).clamp(0.0, 1e6) as u32;
        match step(tenths, said.get(topic).copied()) {
            Step::Warn => {
                said.insert(topic.clone(), tenths);
                let kept = unread.get(topic).and_then(|topic| topic.retention.time()).unwrap_or_default();
                tracing::warn!(
                    source,
                    topic,
                    retention_seconds = kept.as_secs(),
                    used_percent = (used * 100.0) as u64,
                    "the sink is so far behind that Kafka may drop records before they are read, which cannot be made good: see \
                     what holds the sink up (`lakeward status`, and the errors before this), or raise the topic's retention.ms"
                );
            }
            Step::Relieved => {
                said.remove(topic);
                tracing::info!(source, topic, "the sink has caught up: the topic's retention is long enough again");
            }
            Step::Silent => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Warn,
    Relieved,
    Silent,
}

fn step(tenths: u32, said: Option<u32>) -> Step {
    match said {
        Some(said) if tenths < SAID_FROM && said >= SAID_FROM => Step::Relieved,
        Some(said) if tenths <= said => Step::Silent,
        _ if tenths >= SAID_FROM => Step::Warn,
        _ => Step::Silent,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lakeward_log::{PartitionUnread, Retention};

    use super::*;

    #[test]
    fn it_is_said_from_half_of_the_retention_on_and_at_each_tenth_once() {
        let mut said = None;
        let mut steps = Vec::new();
        for tenths in [0, 3, 4, 5, 5, 6, 5, 6, 9, 12, 12, 4, 2, 5] {
            let step = step(tenths, said);
            match step {
                Step::Warn => said = Some(tenths),
                Step::Relieved => said = None,
                Step::Silent => {}
            }
            steps.push(match step {
                Step::Warn => 'w',
                Step::Relieved => 'r',
                Step::Silent => '.',
            });
        }
        assert_eq!(steps.into_iter().collect::<String>(), "...w.w..ww.r.w");
    }

    #[test]
    fn the_oldest_unread_record_of_a_topic_counts_against_its_own_retention() {
        let hour = 3_600_000_000;
        let topic = |retention, oldest: [Option<i64>; 2]| TopicUnread {
            retention,
            partitions: (0..).zip(oldest.map(|oldest| PartitionUnread { first: 0, end: 9, oldest })).collect(),
        };
        let limit = |ms| Retention::Limit { ms, bytes: Some(1) };
        let now = 10 * hour;
        let unread = BTreeMap::from([
            ("half".to_owned(), topic(limit(Some(4 * 3_600_000)), [Some(9 * hour), Some(8 * hour)])),
            ("held".to_owned(), topic(limit(Some(1)), [None, None])),
            ("gone".to_owned(), topic(limit(Some(3_600_000)), [Some(7 * hour), None])),
            ("for ever".to_owned(), topic(limit(None), [Some(0), None])),
            ("embedded".to_owned(), topic(Retention::Held, [Some(0), None])),
        ]);
        let used = used(&unread, now);
        let expected = [("gone", 3.0), ("half", 0.5), ("held", 0.0)];
        assert_eq!(used.iter().map(|(topic, used)| (topic.as_str(), *used)).collect::<Vec<_>>(), expected);
    }
}
