//! The topics of a source, made with the settings that the log's promises need.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakeward_event::codec;
pub(super) use lakeward_event::names::is_data_topic as is_data;
use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::RDKafkaErrorCode;

use super::client::{Client, Context, blocking};
use super::error;
use crate::{Error, Result, Retention};

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
            .map_err(|e| error::creation(e, &client.config))?;
        Ok(Self { client, admin })
    }

    /// Creates the topic if it is missing, waits until it can be written to, and returns its number of partitions.
    pub async fn ensure(&self, topic: &str, purpose: Purpose) -> Result<i32> {
        let deadline = Instant::now() + CREATION_TIMEOUT;
        let mut created = false;
        loop {
            let found = {
                let (client, topic) = (self.client.clone(), topic.to_owned());
                blocking(move || client.topic(&topic)).await?
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

    /// Whether every partition is there: ids are dense, and a topic that was just made has as many as were asked for.
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

    /// How long each topic keeps its records.
    pub async fn retention(&self, topics: &[&str]) -> Result<BTreeMap<String, Retention>> {
        let mut retention = BTreeMap::new();
        for (topic, settings) in self.settings(topics).await? {
            // Below zero: no limit.
            let limit = |name: &str| settings.get(name).and_then(|value| value.parse::<u64>().ok());
            let deletes = settings.get("cleanup.policy").is_none_or(|policy| policy.contains("delete"));
            let limit = |name| limit(name).filter(|_| deletes);
            let found = Retention::Limit { ms: limit("retention.ms"), bytes: limit("retention.bytes") };
            retention.insert(topic, found);
        }
        Ok(retention)
    }

    /// Settings of topics. Describing them needs a right that reading and writing do not: those that it is missing for are left
    /// out.
    async fn settings(&self, topics: &[&str]) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let options = AdminOptions::new().request_timeout(Some(CREATION_TIMEOUT));
        let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let answers = self
            .admin
            .describe_configs(&resources, &options)
            .await
            .map_err(|e| error::classify(e, self.client.doing("reading topics' settings")))?;
        let mut settings = BTreeMap::new();
        for answer in answers {
            match answer {
                Ok(resource) => {
                    let OwnedResourceSpecifier::Topic(topic) = resource.specifier else { continue };
                    let entries = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
                    settings.insert(topic, entries.collect());
                }
                Err(code) => tracing::debug!(%code, "a topic's settings cannot be read"),
            }
        }
        Ok(settings)
    }

    /// A topic that somebody else made can be compacted, and would lose what readers need.
    async fn refuse_compacted(&self, topic: &str) -> Result<()> {
        let settings = self.settings(&[topic]).await?;
        let policy = settings.get(topic).and_then(|settings| settings.get("cleanup.policy"));
        if policy.is_some_and(|policy| policy.contains("compact")) {
            return Err(Error::human(
                "the topic is compacted, which loses changes that readers need: set its cleanup.policy to delete",
            )
            .with("topic", topic));
        }
        Ok(())
    }
}
