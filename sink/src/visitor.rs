//! Records as they are read: `Log::records -> Visitor -> the topic's decoder`, with the schemas that decoders ask for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use lakeward_event::codec::any::AnyDecoder;
use lakeward_event::codec::debezium::{DebeziumDecoder, KnownTable, Placeholder};
use lakeward_event::codec::registry::SchemaRegistry;
use lakeward_event::codec::{Decoder, RecordRef};
use lakeward_event::{TableId, TableSchema, names};
use lakeward_lake::system::DeadLetter;
use lakeward_log::{Log, RecordVisitor};
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Error, Result};
use tokio::runtime::Handle;

use crate::dead_letter::{self, Places};
use crate::foreign::TopicReader;

/// The schemas of a source's log, read again when a version is unknown.
pub(crate) struct Schemas {
    pub log: Arc<dyn Log>,
    pub source: String,
    pub known: RwLock<HashMap<(String, u32), Arc<TableSchema>>>,
}

impl Schemas {
    pub async fn refresh(&self) -> Result<()> {
        let all = self.log.schemas(&self.source).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(all.into_iter().map(|s| ((names::topic(&s.table), s.version), s)));
        Ok(())
    }

    pub fn get(&self, topic: &str, version: u32) -> Option<Arc<TableSchema>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(topic.to_owned(), version)).cloned()
    }

    /// The newest schema of each topic.
    pub fn newest(&self) -> Vec<Arc<TableSchema>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut newest: BTreeMap<&str, &Arc<TableSchema>> = BTreeMap::new();
        for ((topic, _), schema) in known.iter() {
            let slot = newest.entry(topic).or_insert(schema);
            if slot.version < schema.version {
                *slot = schema;
            }
        }
        newest.into_values().cloned().collect()
    }

    pub fn table(&self, topic: &str) -> Option<TableId> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|((t, _), _)| t == topic).map(|(_, schema)| schema.table.clone())
    }
}

/// Decodes records as they are read.
pub(crate) struct Visitor {
    pub source: SourceConfig,
    pub placeholder: Arc<Placeholder>,
    pub schemas: Arc<Schemas>,
    pub registry: Arc<dyn SchemaRegistry>,
    pub handle: Handle,
    pub topics: HashMap<String, TopicDecoder>,
    pub letters: Vec<(String, DeadLetter)>,
    /// A failure that is no record's fault.
    pub failure: Arc<Mutex<Option<Error>>>,
}

pub(crate) struct TopicDecoder {
    pub decoder: TopicReader,
    pub places: Places,
    pub table: String,
}

impl Visitor {
    /// Starts to decode a topic that others write. `table`: its name in the lake, or what it will most likely be.
    pub fn open_foreign(&mut self, topic: &str, table: &str, known: Option<KnownTable>) {
        let source = &self.source;
        let decoder =
            DebeziumDecoder::new(&source.name, &source.default_schema, topic, self.placeholder.clone(), known);
        let decoder = TopicReader::Debezium(Box::new(decoder));
        self.topics
            .insert(topic.to_owned(), TopicDecoder { decoder, places: Places::default(), table: table.to_owned() });
    }

    /// Starts to decode a topic.
    pub fn open(&mut self, topic: &str, table: &str) -> Result<()> {
        if self.topics.contains_key(topic) {
            return Ok(());
        }
        let (schemas, handle, failure) = (self.schemas.clone(), self.handle.clone(), self.failure.clone());
        let missing = Mutex::new(HashSet::new());
        let name = topic.to_owned();
        let find = move |version: u32| {
            if let Some(schema) = schemas.get(&name, version) {
                return Some(schema);
            }
            // A version that is not there after one look stays unknown: its records are dead letters.
            if missing.lock().unwrap_or_else(PoisonError::into_inner).insert(version)
                && let Err(error) = handle.block_on(schemas.refresh())
            {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            schemas.get(&name, version)
        };
        let decoder = AnyDecoder::new(Arc::new(find), Some(self.registry.clone()))
            .map_err(|e| Error::bug("the decoder cannot start").source(e))?;
        let decoder = TopicReader::Own(Box::new(decoder));
        self.topics
            .insert(topic.to_owned(), TopicDecoder { decoder, places: Places::default(), table: table.to_owned() });
        Ok(())
    }

    /// Breaks off at a failure that is no record's: what follows is read again, like this record.
    fn take(&mut self, record: &RecordRef<'_>) -> ControlFlow<()> {
        let Some(topic) = self.topics.get_mut(record.topic) else { return ControlFlow::Continue(()) };
        let first = topic.decoder.rows();
        let error = match topic.decoder.push(record) {
            Ok(()) => {
                if topic.decoder.rows() > first {
                    topic.places.push(first as u32, record.partition, record.offset);
                }
                return ControlFlow::Continue(());
            }
            Err(error) => error,
        };
        // Looking for the record's schema may have failed as well.
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match lakeward_log::registry::failure(error) {
            _ if failure.is_some() => {}
            Ok(error) => *failure = Some(error.with("topic", record.topic)),
            Err(error) => {
                let letter = dead_letter::of_record(&self.source.name, &topic.table, record, &error);
                self.letters.push((record.topic.to_owned(), letter));
                return ControlFlow::Continue(());
            }
        }
        ControlFlow::Break(())
    }
}

impl RecordVisitor for Visitor {
    fn record(&mut self, record: &RecordRef<'_>) -> ControlFlow<()> {
        self.take(record)
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}
