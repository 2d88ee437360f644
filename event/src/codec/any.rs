//! The decoder of a topic: `record -> the codec that its header tells -> ChangeBatch`. A log keeps what it was written with, so
//! a topic holds records of several codecs once the configuration has changed.

use super::arrow::{self, ArrowDecoder};
use super::json::JsonDecoder;
use super::{Decoder, RecordRef, SchemaSource};
use crate::batch::ChangeBatch;
use crate::error::Result;

/// Decoder of one topic's records, of any codec.
pub struct AnyDecoder {
    json: JsonDecoder,
    arrow: ArrowDecoder,
    /// Whether the last record taken was of `arrow`.
    is_arrow: bool,
    /// What was taken before the last change of codec.
    done: Vec<ChangeBatch>,
}

impl AnyDecoder {
    /// Fails only where zstd cannot be set up.
    pub fn new(schemas: SchemaSource) -> Result<Self> {
        Ok(Self {
            json: JsonDecoder::new(schemas.clone()),
            arrow: ArrowDecoder::new(schemas)?,
            is_arrow: false,
            done: Vec::new(),
        })
    }
}

impl Decoder for AnyDecoder {
    fn push(&mut self, record: &RecordRef<'_>) -> Result<()> {
        let is_arrow = record.header.is_some_and(|header| header.starts_with(arrow::NAME.as_bytes()));
        if is_arrow != self.is_arrow {
            // Rows come out in the order in which they went in.
            self.done.extend(if self.is_arrow { self.arrow.flush()? } else { self.json.flush()? });
            self.is_arrow = is_arrow;
        }
        if is_arrow { self.arrow.push(record) } else { self.json.push(record) }
    }

    fn rows(&self) -> usize {
        self.done.iter().map(ChangeBatch::num_rows).sum::<usize>() + self.json.rows() + self.arrow.rows()
    }

    fn flush(&mut self) -> Result<Vec<ChangeBatch>> {
        let last = if self.is_arrow { self.arrow.flush() } else { self.json.flush() }?;
        let mut all = std::mem::take(&mut self.done);
        all.extend(last);
        Ok(all)
    }
}
