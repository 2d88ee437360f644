//! Reading: partitions and offsets that the caller names -> committed records -> a visitor.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lakeward_event::Ends;
use lakeward_event::codec::RecordRef;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Client, Consumer, LEADER_PATIENCE, blocking, drop_elsewhere};
use super::error;
use super::partition::{Partition, Progress};
use crate::blocking::AbandonOnDrop;
use crate::{Error, RecordReader, RecordVisitor, Result};

/// Ends that are asked for are committed: when no partition brings anything for this long, no broker is behind them.
const STALL: Duration = Duration::from_secs(45);
/// How long one empty partition is waited for before the others are looked at again.
const WAIT_MS: i32 = 5;

/// What a visitor is told as, inside.
pub(super) type Take<'a> = &'a mut dyn FnMut(&RecordRef<'_>) -> ControlFlow<()>;

/// Partitions, and the consumer that fetches them. Every call may block.
pub(super) struct Assigned {
    client: Arc<Client>,
    partitions: Vec<Partition>,
    /// Place in `partitions` by topic and partition.
    places: HashMap<String, HashMap<i32, usize>>,
    /// Assigned with the next read, in one go.
    pending: TopicPartitionList,
    consumer: Arc<Consumer>,
}

impl Assigned {
    pub fn new(client: Arc<Client>) -> Result<Self> {
        let consumer = client.consumer()?;
        Ok(Self {
            client,
            partitions: Vec::new(),
            places: HashMap::new(),
            pending: TopicPartitionList::new(),
            consumer,
        })
    }

    pub fn assign(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        let places = self.places.entry(topic.to_owned()).or_default();
        if places.contains_key(&partition) {
            return Err(Error::bug("a partition is assigned twice").with("topic", topic).with("partition", partition));
        }
        self.partitions.push(Partition::new(self.consumer.clone(), topic, partition, offset)?);
        places.insert(partition, self.partitions.len() - 1);
        self.pending
            .add_partition_offset(topic, partition, Offset::Offset(offset))
            .map_err(|e| error::classify(e, self.client.doing("assigning a partition").topic(topic)))
    }

    fn start_pending(&mut self) -> Result<()> {
        if self.pending.count() > 0 {
            // librdkafka would wait for a topic that is not there, half a minute long and without a word.
            let elements = self.pending.elements();
            let wanted: HashSet<&str> = elements.iter().map(|element| element.topic()).collect();
            let there: HashSet<String> =
                self.client.topics_where(|topic| wanted.contains(topic))?.into_iter().map(|(topic, _)| topic).collect();
            for element in &elements {
                if !there.contains(element.topic()) {
                    let doing = self.client.doing("assigning a partition").topic(element.topic());
                    return Err(error::classify_code(RDKafkaErrorCode::UnknownTopicOrPartition, doing));
                }
            }
            self.consumer
                .incremental_assign(&self.pending)
                .map_err(|e| error::classify(e, self.client.doing("assigning partitions")))?;
            self.pending = TopicPartitionList::new();
        }
        Ok(())
    }

    /// Serves the consumer's own events (log lines, broker errors); records never come this way.
    fn serve(&self) {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            if let Err(error) = event {
                self.consumer.client().context().note(&error, "");
            }
        }
    }

    /// Reads the one partition of a control topic below `end`, or what comes within `wait_ms`; true: all below the end is read.
    pub fn read_one(&mut self, end: i64, wait_ms: i32, take: Take<'_>) -> Result<bool> {
        self.start_pending()?;
        self.serve();
        let client = self.client.clone();
        let Some(partition) = self.partitions.first_mut() else { return Ok(true) };
        Ok(partition.read(&client, end, wait_ms, take)? == Progress::Reached)
    }

    /// The first assigned partition's position.
    pub fn position(&self) -> i64 {
        self.partitions.first().map_or(0, |partition| partition.position)
    }

    /// [`RecordReader::read_to`]; `abandoned` ends it early.
    pub fn read_to(&mut self, ends: &Ends, abandoned: &AtomicBool, take: Take<'_>) -> Result<()> {
        self.start_pending()?;
        // Place and end of partitions that are not there yet.
        let mut open: Vec<(usize, i64)> = Vec::new();
        for (topic, partitions) in ends {
            for (&partition, &end) in partitions {
                let Some(&place) = self.places.get(topic).and_then(|places| places.get(&partition)) else {
                    return Err(Error::bug("reading a partition that is not assigned")
                        .with("topic", topic)
                        .with("partition", partition));
                };
                if self.partitions[place].position < end {
                    open.push((place, end));
                }
            }
        }
        let mut last_progress = Instant::now();
        // When the brokers were asked why nothing comes.
        let mut asked = last_progress;
        // Which open partition an idle round waits for.
        let mut turn = 0;
        while !open.is_empty() && !abandoned.load(Ordering::Relaxed) {
            let mut progress = false;
            let mut at = 0;
            while at < open.len() {
                let (place, end) = open[at];
                match self.partitions[place].read(&self.client, end, 0, take)? {
                    Progress::Reached => {
                        open.swap_remove(at);
                        progress = true;
                        continue;
                    }
                    Progress::Broke => return Ok(()),
                    Progress::Some => progress = true,
                    Progress::Nothing => {}
                }
                at += 1;
            }
            self.serve();
            if progress {
                last_progress = Instant::now();
                continue;
            }
            if last_progress.elapsed() > STALL {
                return Err(self.stalled(&open));
            }
            if last_progress.max(asked).elapsed() > LEADER_PATIENCE {
                let topics: HashSet<&str> =
                    open.iter().map(|&(place, _)| self.partitions[place].topic.as_str()).collect();
                if let Some(error) = self.client.without_leader(|topic| topics.contains(topic)) {
                    return Err(error);
                }
                asked = Instant::now();
            }
            turn += 1;
            if let Some(&(place, end)) = open.get(turn % open.len().max(1)) {
                match self.partitions[place].read(&self.client, end, WAIT_MS, take)? {
                    Progress::Broke => return Ok(()),
                    Progress::Nothing => {}
                    // What is reached is found so in the next round.
                    Progress::Reached | Progress::Some => last_progress = Instant::now(),
                }
            }
        }
        Ok(())
    }

    fn stalled(&self, open: &[(usize, i64)]) -> Error {
        let mut error = Error::retry("Kafka sends no records that it has: is a broker away?")
            .with("brokers", &self.client.config.brokers);
        if let Some(&(place, end)) = open.first() {
            let partition = &self.partitions[place];
            error = error
                .with("topic", &partition.topic)
                .with("partition", partition.partition)
                .with("offset", partition.position)
                .with("end_offset", end);
        }
        match self.consumer.client().context().last_error() {
            Some(cause) => error.with("last_broker_error", cause.text),
            None => error,
        }
    }
}

/// [`RecordReader`] on Kafka.
pub(super) struct KafkaRecordReader {
    /// None while a read is under way, and for good when one was abandoned: its records are neither read nor unread.
    assigned: Option<Assigned>,
}

impl KafkaRecordReader {
    pub fn new(client: Arc<Client>) -> Result<Self> {
        Ok(Self { assigned: Some(Assigned::new(client)?) })
    }

    fn take(&mut self) -> Result<Assigned> {
        self.assigned.take().ok_or_else(|| Error::bug("a reader is used after one of its reads was abandoned"))
    }
}

#[async_trait]
impl RecordReader for KafkaRecordReader {
    async fn assign(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        let mut assigned = self.take()?;
        let result = assigned.assign(topic, partition, offset);
        self.assigned = Some(assigned);
        result
    }

    async fn read_to(&mut self, ends: &Ends, visitor: Box<dyn RecordVisitor>) -> Result<Box<dyn RecordVisitor>> {
        let mut assigned = self.take()?;
        let ends = ends.clone();
        let abandoned = Arc::new(AtomicBool::new(false));
        let _guard = AbandonOnDrop(abandoned.clone());
        let mut visitor = visitor;
        let (assigned, visitor, result) = blocking(move || {
            let result = assigned.read_to(&ends, &abandoned, &mut |record| visitor.record(record));
            (assigned, visitor, result)
        })
        .await;
        self.assigned = Some(assigned);
        result.map(|()| visitor)
    }
}

impl Drop for KafkaRecordReader {
    fn drop(&mut self) {
        if let Some(assigned) = self.assigned.take() {
            drop_elsewhere(assigned);
        }
    }
}
