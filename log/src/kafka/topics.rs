//! The topics of a source, made with the settings that the log's promises need.

use std::time::{Duration, Instant};

pub(super) use lakeward_event::names::is_data_topic as is_data;
use lakeward_event::codec;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::RDKafkaErrorCode;
use std::sync::Arc;

use super::client::{Client, Context, blocking};
use super::error;
use crate::{Error, Result};

/// A created topic is usable when every broker knows its leaders; on a busy cluster that takes seconds.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// [`codec::MAX_RECORD_BYTES`] as librdkafka and brokers are told it.
pub(super) const MAX_RECORD_BYTES: &str = "67108864";
const _: () = assert!(codec::MAX_RECORD_BYTES == 67_108_864);
/// A request to a connector that is not running is not meant for the one that starts tomorrow.
const SIGNAL_RETENTION_MS: &str = "3600000";

/// What a topic is for; decides its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Never compacted: compaction loses the whole row behind a patch.
    Data,
    /// Never compacted, never cut: each checkpoint says what changed since the one before.
    Checkpoints,
    /// Compacted by table and version.
    Schemas,
    Signals,
}

pub(super) struct Topics {
    client: Arc<Client>,
    admin: AdminClient<Context>,
}

impl Topics {
    pub fn new(client: Arc<Client>) -> Result<Self> {
        let admin = AdminClient::from_config_and_context(&client.properties(&[], &[]), Context::default())
            .map_err(|e| error::creation(e, &client.config.brokers))?;
        Ok(Self { client, admin })
    }

    /// Creates the topic if it is missing, waits until it can be written to, and returns its number of partitions.
    pub async fn ensure(&self, topic: &str, purpose: Purpose) -> Result<i32> {
        let deadline = Instant::now() + CREATION_TIMEOUT;
        let mut created = false;
        loop {
            let found = {
                let (client, topic) = (self.client.clone(), topic.to_owned());
                blocking(move || client.partitions_with_leader(&topic)).await?
            };
            match found {
                Some(partitions) if self.is_whole(&partitions, purpose, created) => {
                    if !created && purpose != Purpose::Schemas {
                        self.refuse_compacted(topic).await?;
                    }
                    return i32::try_from(partitions.len())
                        .map_err(|_| Error::human("the topic has too many partitions").with("topic", topic));
                }
                None if !created => {
                    self.create(topic, purpose).await?;
                    created = true;
                }
                _ => {}
            }
            if Instant::now() > deadline {
                return Err(Error::retry("the topic was created, but Kafka shows no leader for its partitions")
                    .with("brokers", &self.client.config.brokers)
                    .with("topic", topic));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether every partition has a leader: ids are dense, so a leader that is missing shows as a gap, or (at the end, for a
    /// topic of ours) as a count that is too low.
    fn is_whole(&self, partitions: &[i32], purpose: Purpose, created: bool) -> bool {
        let dense = !partitions.is_empty() && partitions.iter().zip(0..).all(|(id, place)| *id == place);
        let wanted = if purpose == Purpose::Data { self.client.config.partitions } else { 1 };
        dense && (!created || partitions.len() as i64 >= i64::from(wanted))
    }

    async fn create(&self, topic: &str, purpose: Purpose) -> Result<()> {
        let config = &self.client.config;
        let retention = config.retention.as_millis().to_string();
        let partitions = if purpose == Purpose::Data { config.partitions } else { 1 };
        let settings: &[(&str, &str)] = match purpose {
            Purpose::Data => &[("cleanup.policy", "delete"), ("retention.ms", &retention), ("retention.bytes", "-1")],
            Purpose::Checkpoints => &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")],
            Purpose::Schemas => &[("cleanup.policy", "compact")],
            Purpose::Signals => &[("cleanup.policy", "delete"), ("retention.ms", SIGNAL_RETENTION_MS)],
        };
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(config.replication))
            .set("max.message.bytes", MAX_RECORD_BYTES);
        for (key, value) in settings {
            new = new.set(key, value);
        }
        let options =
            AdminOptions::new().operation_timeout(Some(CREATION_TIMEOUT)).request_timeout(Some(CREATION_TIMEOUT));
        let doing = || self.client.doing("creating a topic").topic(topic);
        let answers = self.admin.create_topics([&new], &options).await.map_err(|e| error::classify(e, doing()))?;
        for answer in answers {
            match answer {
                Ok(_) => tracing::info!(topic, partitions, "created topic"),
                // Another process of ours was first.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(error::classify_code(code, doing())),
            }
        }
        Ok(())
    }

    /// A topic that somebody else made can be compacted, and would lose what readers need.
    async fn refuse_compacted(&self, topic: &str) -> Result<()> {
        let options = AdminOptions::new().request_timeout(Some(CREATION_TIMEOUT));
        let answers = self
            .admin
            .describe_configs([&ResourceSpecifier::Topic(topic)], &options)
            .await
            .map_err(|e| error::classify(e, self.client.doing("reading the topic's settings").topic(topic)))?;
        for answer in answers {
            let policy = match &answer {
                Ok(resource) => resource.get("cleanup.policy").and_then(|entry| entry.value.clone()),
                // Describing settings needs a right that reading and writing do not; then it goes unchecked.
                Err(code) => {
                    tracing::debug!(topic, %code, "the topic's settings cannot be read");
                    None
                }
            };
            if policy.is_some_and(|policy| policy.contains("compact")) {
                return Err(Error::human(
                    "the topic is compacted, which loses changes that readers need: set its cleanup.policy to delete",
                )
                .with("topic", topic));
            }
        }
        Ok(())
    }
}
