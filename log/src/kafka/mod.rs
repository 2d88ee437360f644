//! The log on Apache Kafka, through librdkafka.
//!
//! `Writer::append -> one transaction -> topics -> read_committed consumers -> readers`
//!
//! # Layout
//! - [`client`]: properties and calls that all clients share
//! - [`topics`]: what topics are made with
//! - [`writer`]: the transactional producer
//! - [`partition`], [`reader`]: records of data topics
//! - [`control`], [`checkpoints`]: the control topics, and finding one's place in the checkpoints
//! - [`unread`]: what a reader has yet to read, and until when
//! - [`error`]: what to do about librdkafka's errors

mod checkpoints;
mod client;
mod control;
mod error;
mod partition;
mod reader;
mod topics;
mod unread;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lakeward_event::{Checkpoint, Ends, TableSchema, names};
use lakeward_runtime::config::KafkaConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, FutureRecord};

use self::client::{Client, Context, blocking};
use self::control::{KafkaCheckpointReader, KafkaSignalReader, PARTITION};
use self::reader::KafkaRecordReader;
use self::topics::{Purpose, Topics};
use self::writer::KafkaWriter;
use crate::{
    Bounds, CheckpointReader, Error, Log, RecordReader, Result, Signal, SignalReader, TopicFilter, TopicUnread, Writer,
};

/// A signal that the brokers do not take in this time is not sent.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(20);

/// A [`Log`] on a Kafka cluster.
pub struct KafkaLog {
    client: Arc<Client>,
    topics: Arc<Topics>,
}

impl KafkaLog {
    /// Takes the cluster of `config`; `name` is the configuration's name. Connects with the first call, and needs a tokio
    /// runtime then.
    pub fn open(config: &KafkaConfig, name: &str) -> Result<Arc<dyn Log>> {
        let client = Arc::new(Client::new(config, name)?);
        let topics = Arc::new(Topics::new(client.clone())?);
        Ok(Arc::new(Self { client, topics }))
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn writer(&self, source: &str) -> Result<(Box<dyn Writer>, Option<Checkpoint>)> {
        let (writer, last) = KafkaWriter::open(self.client.clone(), self.topics.clone(), source).await?;
        Ok((Box::new(writer), last))
    }

    async fn last_checkpoint(&self, source: &str) -> Result<Option<Checkpoint>> {
        let (client, topic) = (self.client.clone(), names::checkpoints_topic(source));
        blocking(move || checkpoints::last(&client, &topic)).await
    }

    async fn checkpoints(&self, source: &str, after: Option<i64>) -> Result<Box<dyn CheckpointReader>> {
        let topic = names::checkpoints_topic(source);
        // A reader may be there before the source's first writer.
        self.topics.ensure(&topic, Purpose::Checkpoints).await?;
        let client = self.client.clone();
        let reader = blocking(move || {
            let start = match after {
                Some(after) => checkpoints::start_at(&client, &topic, after)?,
                None => client.watermarks(&topic, PARTITION)?.0,
            };
            KafkaCheckpointReader::new(client, &topic, start, after)
        })
        .await?;
        Ok(Box::new(reader))
    }

    async fn records(&self, _source: &str) -> Result<Box<dyn RecordReader>> {
        Ok(Box::new(KafkaRecordReader::new(self.client.clone())?))
    }

    async fn schemas(&self, source: &str) -> Result<Vec<Arc<TableSchema>>> {
        let (client, topic) = (self.client.clone(), names::schemas_topic(source));
        blocking(move || control::schemas(&client, &topic)).await
    }

    async fn signal(&self, source: &str, signal: &Signal) -> Result<()> {
        let topic = names::signals_topic(source);
        let found = {
            let (client, topic) = (self.client.clone(), topic.clone());
            blocking(move || client.topic(&topic)).await?
        };
        if found.is_none() {
            return Err(Error::human("no connector has ever run for this source, so nobody can be asked")
                .with("source", source)
                .with("topic", topic));
        }
        let value = serde_json::to_string(signal).map_err(|e| Error::bug("a signal cannot be written").source(e))?;
        let properties = self.client.properties(&[], &[("enable.idempotence", "true"), ("acks", "all")]);
        let producer = FutureProducer::<Context>::from_config_and_context(&properties, Context::default())
            .map_err(|e| error::creation(e, &self.client.config))?;
        let record = FutureRecord::<(), str>::to(&topic).partition(PARTITION).payload(&value);
        let sent = producer.send(record, SIGNAL_TIMEOUT).await;
        client::drop_elsewhere(producer);
        match sent {
            Ok(_) => Ok(()),
            Err((error, _)) => {
                let error: KafkaError = error;
                Err(error::classify(error, self.client.doing("sending a signal").topic(&topic)))
            }
        }
    }

    async fn signals(&self, source: &str) -> Result<Box<dyn SignalReader>> {
        let topic = names::signals_topic(source);
        self.topics.ensure(&topic, Purpose::Signals).await?;
        let client = self.client.clone();
        let reader = blocking(move || {
            let (_, end) = client.watermarks(&topic, PARTITION)?;
            KafkaSignalReader::new(client, &topic, end)
        })
        .await?;
        Ok(Box::new(reader))
    }

    async fn bounds(&self, source: &str) -> Result<Bounds> {
        let prefix = format!("{source}.");
        self.foreign_bounds(Arc::new(move |topic| topic.starts_with(&prefix))).await
    }

    async fn foreign_bounds(&self, wanted: TopicFilter) -> Result<Bounds> {
        let client = self.client.clone();
        blocking(move || {
            let mut bounds = Bounds::new();
            for (topic, partitions) in client.topics_where(|topic| wanted(topic))? {
                let mut of_topic = BTreeMap::new();
                for partition in partitions {
                    of_topic.insert(partition, client.watermarks(&topic, partition)?);
                }
                bounds.insert(topic, of_topic);
            }
            Ok(bounds)
        })
        .await
    }

    async fn unread(&self, source: &str, held: &Ends) -> Result<BTreeMap<String, TopicUnread>> {
        let (client, source) = (self.client.clone(), source.to_owned());
        let bounds = blocking(move || unread::covered(&client, &source)).await?;
        unread::unread(&self.client, &self.topics, bounds, held).await
    }

    async fn foreign_unread(&self, wanted: TopicFilter, held: &Ends) -> Result<BTreeMap<String, TopicUnread>> {
        unread::unread(&self.client, &self.topics, self.foreign_bounds(wanted).await?, held).await
    }
}
