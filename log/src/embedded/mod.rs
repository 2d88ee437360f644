//! The log in one SQLite file, `state_dir/log.db`, for a single machine: no server beside the sources' own.
//!
//! `Writer::append -> one transaction -> blocks, checkpoints -> readers of this process and others`
//!
//! Any number of processes of one machine may have the file open: roles that run apart, `status`, `verify`. The file has to be on
//! a local disk, as SQLite's locks and its shared memory want it.
//!
//! # Layout
//! - [`store`]: the file, its tables, and waiting for news
//! - [`block`]: records to blobs and back
//! - [`writer`]: the append
//! - [`reader`]: records of data topics
//! - [`control`]: checkpoints, schemas, signals
//! - [`retention`]: dropping what the sink has committed
//! - [`error`]: what to do about SQLite's errors

mod block;
mod control;
mod error;
mod reader;
mod retention;
mod store;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use lakeward_event::{Checkpoint, Ends, TableSchema};
use lakeward_runtime::config::EmbeddedConfig;

use self::control::{EmbeddedCheckpointReader, EmbeddedSignalReader};
use self::reader::EmbeddedRecordReader;
use self::store::Store;
use self::writer::EmbeddedWriter;
use crate::blocking::to_its_end;
use crate::{CheckpointReader, Log, RecordReader, Result, Signal, SignalReader, TopicUnread, Writer};

/// A [`Log`] in a SQLite file.
pub struct EmbeddedLog {
    store: Arc<Store>,
}

impl EmbeddedLog {
    /// The file of `config`; it is opened, or made, with the first call, which needs a tokio runtime.
    pub fn open(config: &EmbeddedConfig) -> Arc<dyn Log> {
        Arc::new(Self { store: Arc::new(Store::new(config)) })
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn writer(&self, source: &str) -> Result<(Box<dyn Writer>, Option<Checkpoint>)> {
        let (writer, last) = EmbeddedWriter::open(self.store.clone(), source).await?;
        Ok((Box::new(writer), last))
    }

    async fn last_checkpoint(&self, source: &str) -> Result<Option<Checkpoint>> {
        control::last(&mut *self.store.reading().await?, &self.store.path, source).await
    }

    async fn checkpoints(&self, source: &str, after: Option<i64>) -> Result<Box<dyn CheckpointReader>> {
        Ok(Box::new(EmbeddedCheckpointReader::open(self.store.clone(), source, after).await?))
    }

    async fn records(&self, _source: &str) -> Result<Box<dyn RecordReader>> {
        Ok(Box::new(EmbeddedRecordReader::open(self.store.clone()).await?))
    }

    async fn schemas(&self, source: &str) -> Result<Vec<Arc<TableSchema>>> {
        control::schemas(&self.store, source).await
    }

    async fn signal(&self, source: &str, signal: &Signal) -> Result<()> {
        control::signal(self.store.clone(), source, signal).await
    }

    async fn signals(&self, source: &str) -> Result<Box<dyn SignalReader>> {
        Ok(Box::new(EmbeddedSignalReader::open(self.store.clone(), source).await?))
    }

    async fn bounds(&self, source: &str) -> Result<BTreeMap<String, BTreeMap<i32, (i64, i64)>>> {
        control::bounds(&self.store, source).await
    }

    async fn unread(&self, source: &str, held: &Ends) -> Result<BTreeMap<String, TopicUnread>> {
        control::unread(&self.store, source, held).await
    }

    async fn may_drop(&self, source: &str, below: &Ends, checkpoint: i64) -> Result<()> {
        let (store, source, below) = (self.store.clone(), source.to_owned(), below.clone());
        to_its_end(retention::may_drop(store, source, below, checkpoint)).await
    }
}
