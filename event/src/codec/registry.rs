//! What the `avro` codec asks of a schema registry. The client that answers over HTTP is the log's.

use std::sync::Arc;

use crate::error::Result;

/// A Confluent-compatible registry. Answers come from memory but for what is asked for the first time, which blocks: callers
/// encode and decode off the runtime's threads. A failure is [`Error::Registry`](crate::error::Error::Registry), and no
/// record's fault.
pub trait SchemaRegistry: Send + Sync {
    /// The id of an Avro schema under a subject; registers it where the subject does not have it.
    fn register(&self, subject: &str, schema: &str) -> Result<u32>;
    /// The schema of an id. None: the registry has no such id.
    fn schema(&self, id: u32) -> Result<Option<Arc<RegisteredSchema>>>;
}

/// A schema as a registry keeps it, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredSchema {
    pub text: String,
    /// The schemas that it refers to and those that they refer to: each stands before the first that uses it.
    pub references: Vec<String>,
}
