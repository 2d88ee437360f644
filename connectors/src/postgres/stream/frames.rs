//! Frames of the stream: `CopyData -> pgoutput message -> open builders`, and the shape of each table as the server describes it.

use std::collections::HashMap;

use bytes::Bytes;
use lakeward_event::TableId;
use lakeward_runtime::{Error, Result};

use super::append::Flush;
use super::{APPEND_BYTES, Stream};
use crate::postgres::capture::{Capture, as_of_relation};
use crate::postgres::catalog::{self, Table, TableShape};
use crate::postgres::mark;
use crate::postgres::pgoutput::{Frame, Message, Relation, Tuple, Value};
use crate::postgres::publication;
use crate::postgres::tuple::RowMeta;
use crate::publisher::Publisher;

impl Stream {
    pub(super) async fn frame(&mut self, bytes: Bytes) -> Result<()> {
        let malformed = |e| Error::retry("the server's message is not understood").source(e);
        let (start, data) = match Frame::parse(&bytes).map_err(malformed)? {
            Frame::XLogData { start, data, .. } => (start, data),
            Frame::Keepalive { reply, .. } => {
                if reply {
                    self.feedback().await?;
                }
                return Ok(());
            }
        };
        let (_, message) = Message::parse(data, false).map_err(malformed)?;
        match message {
            Message::Begin { final_lsn, commit_time, xid } => {
                if self.cut_at.as_ref().is_some_and(|(_, lsn)| final_lsn >= *lsn) {
                    self.place_cut().await?;
                }
                if let Some(tick) = self.cursor.tick_before(commit_time) {
                    self.flush(Vec::new(), Flush::Tick(tick)).await?;
                }
                if self.snapshots.holds(xid) {
                    self.held = Some(bytes);
                    return Ok(());
                }
                self.cursor.begin(xid, final_lsn, commit_time)?;
            }
            Message::Commit { end_lsn, .. } => {
                self.cursor.commit(end_lsn)?;
            }
            Message::Relation(relation) => self.relation(&relation).await?,
            Message::Insert { relation, new } => {
                if let Some(meta) = self.change(start, relation)? {
                    let capture = captured(&mut self.captures, relation)?;
                    let before = capture.builder.bytes();
                    let made = capture.builder.insert(&capture.binding, &new, meta).map_err(|e| capture.bad(e))?;
                    self.bytes += capture.builder.bytes().saturating_sub(before);
                    self.sequences += made;
                    if let Some(table) = self.snapshots.state.tables.get_mut(&relation)
                        && !table.is_settled()
                        && let Some(key) = capture.key(&new)
                    {
                        table.forget(&key);
                    }
                }
            }
            Message::Update { relation, old, new } => {
                if let Some(meta) = self.change(start, relation)? {
                    let capture = captured(&mut self.captures, relation)?;
                    let before = capture.builder.bytes();
                    let made = capture
                        .builder
                        .update(&capture.binding, old.as_ref(), &new, meta)
                        .map_err(|e| capture.bad(e))?;
                    self.bytes += capture.builder.bytes().saturating_sub(before);
                    self.sequences += made;
                    let wave = self.snapshots.wave();
                    if let Some(table) = self.snapshots.state.tables.get_mut(&relation) {
                        let old_key = capture.old_key(old.as_ref());
                        // An unchanged key column that is itself left out is in the old key.
                        let key = capture.key(&new).or_else(|| old_key.clone());
                        if let Some(key) = key {
                            let old_key = old_key.filter(|old| *old != key);
                            table.updated(key, old_key.as_ref(), leaves_out(&new), wave);
                        }
                    }
                }
            }
            Message::Delete { relation, old } => {
                if let Some(meta) = self.change(start, relation)? {
                    let capture = captured(&mut self.captures, relation)?;
                    let before = capture.builder.bytes();
                    let made = capture.builder.delete(&capture.binding, &old, meta).map_err(|e| capture.bad(e))?;
                    self.bytes += capture.builder.bytes().saturating_sub(before);
                    self.sequences += made;
                    if let Some(table) = self.snapshots.state.tables.get_mut(&relation)
                        && let Some(key) = capture.old_key(Some(&old))
                    {
                        table.forget(&key);
                    }
                }
            }
            Message::Truncate { relations, .. } => {
                for relation in relations.iter() {
                    if let Some(meta) = self.change(start, relation)? {
                        let capture = captured(&mut self.captures, relation)?;
                        self.sequences += capture.builder.truncate(meta).map_err(|e| capture.bad(e))?;
                        if let Some(table) = self.snapshots.state.tables.get_mut(&relation) {
                            table.truncated();
                        }
                    }
                }
            }
            Message::Logical { transactional: false, lsn, prefix, content } => {
                if let Some(message) = mark::parse(&self.source.slot, prefix, content) {
                    self.message(lsn, message).await?;
                }
            }
            Message::Logical { .. } | Message::Origin { .. } | Message::Type { .. } => {}
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => {
                return Err(Error::bug("the server streams transactions that are in progress, and was not asked to"));
            }
        }
        if self.sequences >= self.append_rows || self.bytes >= APPEND_BYTES {
            self.flush(Vec::new(), Flush::Data).await?;
        }
        Ok(())
    }

    /// Counts a change. None: it is published already, or of a table that is not captured.
    fn change(&mut self, lsn: u64, relation: u32) -> Result<Option<RowMeta>> {
        if !self.cursor.change(lsn)? {
            return Ok(None);
        }
        let described = match self.captures.get(&relation) {
            Some(capture) => capture.is_some(),
            None => {
                return Err(Error::retry("the server sent a change of a table that it did not describe")
                    .with("relation", relation));
            }
        };
        let Some(open) = self.cursor.open() else { return Ok(None) };
        // Also what is passed over because its columns cannot be told: the snapshot that makes up for it must see it.
        self.snapshots.publishes(open.xid);
        if !described {
            return Ok(None);
        }
        Ok(Some(RowMeta {
            sequence: self.sequences,
            position: lsn,
            tx: Some(u64::from(open.xid)),
            commit_ts: Some(open.commit_time),
        }))
    }

    /// The server describes a table before its first change, and again after anything about it has changed.
    async fn relation(&mut self, relation: &Relation<'_>) -> Result<()> {
        if let Some(Some(capture)) = self.captures.get_mut(&relation.oid)
            && let Some(batch) = capture.finish()?
        {
            self.ready.push(batch);
        }
        // Names and types may be the same and the attribute numbers not: a column dropped and added again.
        let current = catalog::read_table(&*self.sql, relation.oid).await?;
        let ours = self.tables.contains_key(&relation.oid) || {
            // Its transaction may be older than our look at the catalog.
            current.as_ref().is_some_and(|t| self.filter.matches(&t.schema, &t.name) && publication::unfit(t).is_none())
        };
        if !ours {
            self.captures.insert(relation.oid, None);
            return Ok(());
        }
        let Some(table) = current.or_else(|| self.tables.get(&relation.oid).cloned()) else {
            self.captures.insert(relation.oid, None);
            return Ok(());
        };
        let id = TableId::new(&self.source.name, &table.schema, &table.name);
        let mut capture = Capture::new(&table, self.shape(&table).await?, relation);
        if capture.is_none() {
            // DDL has run since this was written.
            let known = self.publisher().await?.versions(&id).to_vec();
            if let Some(older) = as_of_relation(&*self.sql, &table, relation, &known).await? {
                capture = Capture::new(&older, self.shape(&older).await?, relation);
            }
        }
        let Some(capture) = capture else {
            return self.start_over(relation.oid, &id);
        };
        self.started_over.remove(&relation.oid);
        self.publisher().await?.register(capture.shape.schema()).await?;
        self.captures.insert(relation.oid, Some(capture));
        Ok(())
    }

    /// A table's shape with its version.
    pub(super) async fn shape(&mut self, table: &Table) -> Result<TableShape> {
        let shape = table.shape(&self.source.name, 0)?;
        let version = self.publisher().await?.version_for(shape.schema());
        table.shape(&self.source.name, version)
    }

    /// A table's shape, its topic and schema made known.
    pub(super) async fn register(&mut self, table: &Table) -> Result<TableShape> {
        let shape = self.shape(table).await?;
        self.publisher().await?.register(shape.schema()).await?;
        Ok(shape)
    }

    /// The publisher, after the append under way.
    pub(super) async fn publisher(&mut self) -> Result<&mut Publisher> {
        self.settle().await?;
        self.lane.publisher().ok_or_else(|| Error::bug("the publisher is away and no append is under way"))
    }
}

fn captured(captures: &mut HashMap<u32, Option<Capture>>, relation: u32) -> Result<&mut Capture> {
    captures
        .get_mut(&relation)
        .and_then(Option::as_mut)
        .ok_or_else(|| Error::bug("a change of a table that is not captured"))
}

fn leaves_out(tuple: &Tuple<'_>) -> bool {
    tuple.iter().any(|value| matches!(value, Value::Unchanged))
}
