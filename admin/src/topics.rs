//! `lakeward topics`: what is in the log, how far the lake has read it, and how long it is kept. `log + lake -> Topics`.
//!
//! Asked from outside of the processes that do the work, and without their locks: what does not answer is said in its place, the
//! rest is shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lakeward_event::Ends;
use lakeward_lake::Lake;
use lakeward_log::{Log, PartitionUnread, Retention, TopicUnread};
use lakeward_runtime::Result;
use lakeward_runtime::config::{Config, LogConfig, SourceConfig, SourceKind};
use serde::Serialize;

use crate::check::now;
use crate::status::{Reached, age, in_time, reached, size};
use crate::verify::moment;

/// The log at one look. Times are microseconds since 1970, ages microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Topics {
    pub at: i64,
    /// `kafka` or `embedded`.
    pub log: &'static str,
    pub sources: Vec<SourceTopics>,
    /// Parts that did not answer, and why.
    pub away: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceTopics {
    pub source: String,
    /// What the connector has published last; None: nothing, or the topics are others'.
    pub checkpoint: Option<Reached>,
    pub topics: Vec<TopicStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopicStatus {
    pub topic: String,
    pub retention: Retention,
    /// Sum over the partitions; None: the lake is away.
    pub lag: Option<i64>,
    /// How long the oldest record that the lake does not hold has been there; None: it holds all.
    pub unread_age: Option<i64>,
    /// The part of the retention that this is; None: the topic drops nothing by time.
    pub retention_used: Option<f64>,
    pub partitions: Vec<PartitionStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartitionStatus {
    pub partition: i32,
    #[serde(flatten)]
    pub bounds: PartitionUnread,
    /// The lake holds everything below this; None: nothing was committed yet, or the lake is away.
    pub committed: Option<i64>,
    /// Offsets from there to the end; None: the lake is away.
    pub lag: Option<i64>,
}

/// Looks at every source's part of the log, and at what the lake holds of it.
pub async fn topics(config: &Config) -> Topics {
    let kind = match &config.log {
        LogConfig::Kafka(_) => "kafka",
        LogConfig::Embedded(_) => "embedded",
    };
    let mut found = Topics { at: now(), log: kind, ..Topics::default() };
    let held = match in_time("catalog and warehouse", held(config)).await {
        Ok(held) => Some(held),
        Err(away) => {
            found.away.push(away);
            None
        }
    };
    let log = match lakeward_log::open(&config.log, &config.name) {
        Ok(log) => log,
        Err(error) => {
            found.away.push(format!("log: {error}"));
            return found;
        }
    };
    let looks = config.sources.iter().map(|source| {
        let held = held.as_ref().map(|held| held.get(&source.name).cloned().unwrap_or_default());
        in_time("log", look(log.as_ref(), source, held))
    });
    for look in futures::future::join_all(looks).await {
        match look {
            Ok(source) => found.sources.push(source),
            Err(away) => found.away.push(away),
        }
    }
    found
}

/// What the lake holds of each source's topics.
async fn held(config: &Config) -> Result<BTreeMap<String, Ends>> {
    let lake = Lake::open(&config.catalog, &config.warehouse).await?;
    let mut held: BTreeMap<String, Ends> = BTreeMap::new();
    for ident in lake.tables().await? {
        let Some(table) = lake.load(&ident).await? else { continue };
        let Some(id) = lakeward_sink::source_of(&table) else { continue };
        held.entry(id.source).or_default().extend(lakeward_sink::committed_of(&table)?.offsets);
    }
    Ok(held)
}

async fn look(log: &dyn Log, source: &SourceConfig, held: Option<Ends>) -> Result<SourceTopics> {
    let name = &source.name;
    let nothing = Ends::new();
    let from = held.as_ref().unwrap_or(&nothing);
    let (last, unread) = match source.kind {
        SourceKind::Debezium => (None, log.foreign_unread(lakeward_sink::topic_filter(source)?, from).await?),
        SourceKind::Postgres | SourceKind::Mongodb => (log.last_checkpoint(name).await?, log.unread(name, from).await?),
    };
    let at = now();
    Ok(SourceTopics {
        source: name.clone(),
        checkpoint: last.map(|last| reached(last.id, &last.draft.position.to_string(), last.draft.watermark)),
        topics: unread.into_iter().map(|(topic, unread)| topic_status(topic, &unread, held.as_ref(), at)).collect(),
    })
}

fn topic_status(topic: String, unread: &TopicUnread, held: Option<&Ends>, at: i64) -> TopicStatus {
    let partition = |(&partition, &bounds): (&i32, &PartitionUnread)| {
        let committed = held.and_then(|held| held.get(&topic)?.get(&partition).copied());
        let lag = held.is_some().then(|| (bounds.end - committed.unwrap_or(0).max(bounds.first)).max(0));
        PartitionStatus { partition, bounds, committed, lag }
    };
    let partitions: Vec<PartitionStatus> = unread.partitions.iter().map(partition).collect();
    let unread_age = held.and_then(|_| unread.oldest()).map(|oldest| at.saturating_sub(oldest).max(0));
    let kept = held.and_then(|_| unread.retention.time());
    TopicStatus {
        retention: unread.retention,
        lag: partitions.iter().map(|partition| partition.lag).sum(),
        unread_age,
        retention_used: kept.map(|kept| unread_age.unwrap_or(0) as f64 / 1e6 / kept.as_secs_f64().max(0.001)),
        partitions,
        topic,
    }
}

fn retention_text(retention: Retention) -> String {
    let micros = |ms: u64| i64::try_from(ms.saturating_mul(1000)).unwrap_or(i64::MAX);
    match retention {
        Retention::Held => "until in the lake".into(),
        Retention::Unknown => "?".into(),
        Retention::Limit { ms: None, bytes: None } => "for ever".into(),
        Retention::Limit { ms: Some(ms), bytes: None } => age(micros(ms)),
        Retention::Limit { ms: None, bytes: Some(bytes) } => size(bytes),
        Retention::Limit { ms: Some(ms), bytes: Some(bytes) } => format!("{} or {}", age(micros(ms)), size(bytes)),
    }
}

const HEADER: [&str; 9] =
    ["topic", "partition", "first", "end", "in the lake", "lag", "oldest unread", "retention", "used"];
/// Columns of numbers and times, to the right.
const RIGHT: [bool; 9] = [false, true, true, true, true, true, true, true, true];

impl Topics {
    /// For people: a line for each partition, below its source.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        for source in &self.sources {
            let _ = match &source.checkpoint {
                Some(at) => writeln!(
                    out,
                    "source {} ({}): {} ({} ago), checkpoint {}, {}",
                    source.source,
                    self.log,
                    moment(at.watermark),
                    age(at.age),
                    at.checkpoint,
                    // Without MongoDB's resume token.
                    at.position.split(' ').next().unwrap_or_default()
                ),
                None => writeln!(out, "source {} ({}): no checkpoint", source.source, self.log),
            };
            if source.topics.is_empty() {
                continue;
            }
            let mut lines = vec![HEADER.map(str::to_owned)];
            lines.extend(source.topics.iter().flat_map(|topic| self.lines(topic)));
            let mut widths = [0; 9];
            for line in &lines {
                for (width, cell) in widths.iter_mut().zip(line) {
                    *width = cell.chars().count().max(*width);
                }
            }
            for line in lines {
                let cells = line.iter().zip(widths).zip(RIGHT).map(|((cell, width), right)| {
                    if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                });
                let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
            }
        }
        for away in &self.away {
            let _ = writeln!(out, "no answer from {away}");
        }
        out
    }

    fn lines(&self, topic: &TopicStatus) -> Vec<[String; 9]> {
        let number = |value: Option<i64>| value.map_or_else(|| "-".into(), |value| value.to_string());
        let line = |(place, partition): (usize, &PartitionStatus)| {
            let of_topic = |text: String| if place == 0 { text } else { String::new() };
            let unread = partition.lag.filter(|lag| *lag > 0).and(partition.bounds.oldest);
            [
                of_topic(topic.topic.clone()),
                partition.partition.to_string(),
                partition.bounds.first.to_string(),
                partition.bounds.end.to_string(),
                number(partition.committed),
                number(partition.lag),
                unread.map_or_else(|| "-".into(), |oldest| age(self.at.saturating_sub(oldest))),
                of_topic(retention_text(topic.retention)),
                of_topic(topic.retention_used.map_or_else(|| "-".into(), |used| format!("{:.0}%", used * 100.0))),
            ]
        };
        topic.partitions.iter().enumerate().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_from_what_the_lake_holds_or_the_beginning_of_the_log() {
        let day = 86_400_000_000;
        let bounds = |first, end, oldest| PartitionUnread { first, end, oldest };
        let unread = TopicUnread {
            retention: Retention::Limit { ms: Some(7 * 86_400_000), bytes: None },
            partitions: BTreeMap::from([
                (0, bounds(0, 120, None)),
                (1, bounds(10, 100, Some(2 * day))),
                (2, bounds(5, 9, Some(3 * day))),
            ]),
        };
        let held = Ends::from([("t".to_owned(), BTreeMap::from([(0, 120), (1, 60)]))]);
        let topic = topic_status("t".into(), &unread, Some(&held), 9 * day);
        let lags: Vec<_> = topic.partitions.iter().map(|p| (p.committed, p.lag)).collect();
        assert_eq!(lags, [(Some(120), Some(0)), (Some(60), Some(40)), (None, Some(4))]);
        assert_eq!((topic.lag, topic.unread_age), (Some(44), Some(7 * day)));
        assert_eq!(topic.retention_used.map(|used| (used * 100.0).round()), Some(100.0));
        let away = topic_status("t".into(), &unread, None, 9 * day);
        assert_eq!((away.lag, away.unread_age, away.retention_used), (None, None, None));

        let text = Topics {
            at: 9 * day,
            log: "kafka",
            sources: vec![SourceTopics { source: "users".into(), checkpoint: None, topics: vec![topic] }],
            away: vec!["catalog: refused".into()],
        }
        .to_text();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2], ["t", "0", "0", "120", "120", "0", "-", "7.0", "d", "100%"]);
        assert_eq!(lines[3], ["1", "10", "100", "60", "40", "7.0", "d"]);
        assert_eq!(lines[4], ["2", "5", "9", "-", "4", "6.0", "d"]);
        assert!(
            text.contains("source users (kafka): no checkpoint") && text.contains("no answer from catalog: refused")
        );
    }
}
