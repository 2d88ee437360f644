//! What a reader has yet to read, and how long it has for it: `bounds, checkpoints, topic settings -> per topic and partition`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// How long a topic keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "until", rename_all = "snake_case")]
pub enum Retention {
    /// Until the sink has said that the lake holds them.
    Held,
    /// Until they are so old, or their partition so large; None: no limit of that kind.
    Limit { ms: Option<u64>, bytes: Option<u64> },
    /// Kafka does not let this user look.
    Unknown,
}

impl Retention {
    /// The age at which records go.
    pub fn time(self) -> Option<Duration> {
        match self {
            Self::Limit { ms, .. } => ms.map(Duration::from_millis),
            Self::Held | Self::Unknown => None,
        }
    }
}

/// A data topic as a reader sees it that holds everything below some offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicUnread {
    pub retention: Retention,
    pub partitions: BTreeMap<i32, PartitionUnread>,
}

impl TopicUnread {
    /// When the oldest unread record was appended, microseconds since 1970; None: everything is held.
    pub fn oldest(&self) -> Option<i64> {
        self.partitions.values().filter_map(|partition| partition.oldest).min()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PartitionUnread {
    /// The first offset that is still there.
    pub first: i64,
    /// After the last record that a checkpoint covers. Offsets can be fewer than this less `first`: on Kafka a transaction's marker
    /// takes one too.
    pub end: i64,
    /// When the first record that is not held was appended, microseconds since 1970. None: all below `end` is held, or what is
    /// not is gone.
    pub oldest: Option<i64>,
}
