//! Records as they are read -> the topic's decoder -> changes in the order of the source -> lines.
//!
//! What is read in one go is put in the order of `sequence`: the partitions of a table come one after the other.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lakeward_event::codec::{Decoder, RecordRef};
use lakeward_event::{ChangeBatch, Op};
use lakeward_log::RecordVisitor;
use lakeward_runtime::{Error, Result};

use super::line::{self, Place};
use super::{Form, Options};

/// Changes decoded together, at most.
const AT_ONCE: usize = 4096;

/// Shared with the visitor, which a read that fails does not give back.
#[derive(Clone)]
pub struct Printing(Arc<Mutex<State>>);

struct State {
    topic: String,
    form: Form,
    decoder: Box<dyn Decoder>,
    /// Partition and offset of each record taken since the last flush, with the number of rows after it.
    taken: Vec<(usize, i32, i64)>,
    /// Everything below is printed, or taken.
    positions: BTreeMap<i32, i64>,
    out: Box<dyn Write + Send>,
    /// Changes to go.
    left: u64,
    /// A truncate of ours is in every partition; it is shown once.
    last_truncate: Option<u64>,
    done: bool,
    /// What went wrong on the reading thread.
    failure: Option<Error>,
}

impl Printing {
    /// Prints what `decoder` reads of `topic`, from these positions on.
    pub fn new(
        topic: String,
        decoder: Box<dyn Decoder>,
        options: Options,
        positions: BTreeMap<i32, i64>,
        out: Box<dyn Write + Send>,
    ) -> Self {
        let left = options.limit.unwrap_or(u64::MAX);
        Self(Arc::new(Mutex::new(State {
            topic,
            form: options.form,
            decoder,
            taken: Vec::new(),
            positions,
            out,
            left,
            last_truncate: None,
            done: left == 0,
            failure: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is to be printed: as many changes as were asked for, or nobody reads them.
    pub fn is_done(&self) -> bool {
        self.state().done
    }

    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.state().positions.clone()
    }

    pub fn position(&self, partition: i32) -> Option<i64> {
        self.state().positions.get(&partition).copied()
    }

    pub fn moved(&self, partition: i32, position: i64) {
        self.state().positions.insert(partition, position);
    }

    /// Prints what was taken.
    pub fn flush(&self) -> Result<()> {
        self.state().flush()
    }

    /// A read has come to its ends.
    pub fn reached(&self, ends: &BTreeMap<i32, i64>) -> Result<()> {
        let mut state = self.state();
        state.flush()?;
        if !state.done {
            state.positions.extend(ends);
        }
        Ok(())
    }
}

pub struct Visitor(pub Printing);

impl RecordVisitor for Visitor {
    fn record(&mut self, record: &RecordRef<'_>) -> ControlFlow<()> {
        let mut state = self.0.state();
        if let Err(error) = state.take(record) {
            state.failure = Some(error);
        }
        if state.done || state.failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

impl State {
    fn take(&mut self, record: &RecordRef<'_>) -> Result<()> {
        self.positions.insert(record.partition, record.offset + 1);
        match self.decoder.push(record) {
            Ok(()) => self.taken.push((self.decoder.rows(), record.partition, record.offset)),
            Err(error) => {
                self.print()?;
                let error = match lakeward_log::registry::failure(error) {
                    Ok(registry) => return Err(registry.with("topic", &self.topic)),
                    Err(error) => error,
                };
                let place = Place { topic: &self.topic, partition: record.partition, offset: record.offset };
                let mut bytes = Vec::new();
                match self.form {
                    Form::Text => line::bad_record_text(&place, &error, &mut bytes),
                    Form::Json => line::bad_record_json(&place, &error, &mut bytes),
                }
                self.write(&bytes)?;
            }
        }
        if self.decoder.rows() >= AT_ONCE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        self.print()?;
        let flushed = self.out.flush();
        self.written(flushed)
    }

    /// Prints what was decoded.
    fn print(&mut self) -> Result<()> {
        let taken = std::mem::take(&mut self.taken);
        let batches = self
            .decoder
            .flush()
            .map_err(|e| Error::human("records cannot be put together").with("topic", &self.topic).source(e))?;
        let mut rows: Vec<(u64, &ChangeBatch, usize, i32, i64)> = Vec::new();
        for batch in &batches {
            for (row, sequence) in batch.sequences().iter().enumerate() {
                let at = taken.partition_point(|(rows_after, ..)| *rows_after <= rows.len());
                let (_, partition, offset) = taken.get(at).copied().unwrap_or((0, -1, -1));
                rows.push((*sequence, batch, row, partition, offset));
            }
        }
        rows.sort_by_key(|(sequence, ..)| *sequence);
        let mut bytes = Vec::new();
        for (sequence, batch, row, partition, offset) in rows {
            if self.done {
                break;
            }
            if batch.ops().get(row) == Some(&(Op::Truncate as u8))
                && self.last_truncate.replace(sequence) == Some(sequence)
            {
                continue;
            }
            let place = Place { topic: &self.topic, partition, offset };
            bytes.clear();
            match self.form {
                Form::Text => line::text(batch, row, &place, &mut bytes)?,
                Form::Json => line::json(batch, row, &place, &mut bytes)?,
            }
            self.write(&bytes)?;
            self.left = self.left.saturating_sub(1);
            self.done = self.done || self.left == 0;
        }
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> Result<()> {
        let written = self.out.write_all(line);
        self.written(written)
    }

    /// `| head` has seen enough: no failure.
    fn written(&mut self, written: io::Result<()>) -> Result<()> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.done = true;
                Ok(())
            }
            other => other.map_err(|e| Error::refused("writing the changes").source(e)),
        }
    }
}
