//! The decoder of a topic, whoever writes it: `Found -> Decoder`, with the schemas that our own records ask for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lakeward_event::codec::Decoder;
use lakeward_event::codec::any::AnyDecoder;
use lakeward_event::codec::debezium::{DebeziumDecoder, Placeholder};
use lakeward_event::codec::registry::SchemaRegistry;
use lakeward_event::{TableSchema, names};
use lakeward_log::Log;
use lakeward_runtime::{Error, Result};
use tokio::runtime::Handle;

use super::{Found, Writer};

/// Schema versions, read again when one is unknown.
struct Schemas {
    log: Arc<dyn Log>,
    source: String,
    topic: String,
    known: Mutex<HashMap<u32, Arc<TableSchema>>>,
    handle: Handle,
}

impl Schemas {
    /// On a thread that may block.
    fn find(&self, version: u32) -> Option<Arc<TableSchema>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(&version) {
            match self.handle.block_on(self.log.schemas(&self.source)) {
                Ok(all) => {
                    let ours = all.into_iter().filter(|s| names::topic(&s.table) == self.topic);
                    known.extend(ours.map(|schema| (schema.version, schema)));
                }
                Err(error) => tracing::warn!(error = %error, topic = self.topic, "cannot read the table's schemas"),
            }
        }
        known.get(&version).cloned()
    }
}

/// What reads the table's records, from any place in the topic.
pub fn decoder(log: Arc<dyn Log>, registry: Arc<dyn SchemaRegistry>, found: &Found) -> Result<Box<dyn Decoder>> {
    match &found.writer {
        Writer::Lakeward(versions) => {
            let schemas = Schemas {
                log,
                source: found.source.name.clone(),
                topic: found.topic.clone(),
                known: Mutex::new(versions.iter().map(|schema| (schema.version, schema.clone())).collect()),
                handle: Handle::current(),
            };
            let decoder = AnyDecoder::new(Arc::new(move |version| schemas.find(version)), Some(registry))
                .map_err(|e| Error::bug("the decoder cannot start").source(e))?;
            Ok(Box::new(decoder))
        }
        Writer::Debezium(known) => {
            let source = &found.source;
            let placeholder = Arc::new(Placeholder::new(&source.unavailable_value_placeholder));
            Ok(Box::new(DebeziumDecoder::new(
                &source.name,
                &source.default_schema,
                &found.topic,
                placeholder,
                known.clone(),
            )))
        }
    }
}
