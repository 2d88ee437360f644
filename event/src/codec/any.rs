//! The decoder of a topic: `record -> the codec that its header tells -> ChangeBatch`. A log keeps what it was written with, so
//! a topic holds records of several codecs once the configuration has changed.

use std::sync::Arc;

use super::arrow::{self, ArrowDecoder};
use super::avro::{self, AvroDecoder};
use super::json::JsonDecoder;
use super::registry::SchemaRegistry;
use super::{Decoder, RecordRef, SchemaSource};
use crate::batch::ChangeBatch;
use crate::error::Result;

/// Decoder of one topic's records, of any codec.
pub struct AnyDecoder {
    json: JsonDecoder,
    arrow: ArrowDecoder,
    /// None: no registry is known.
    avro: Option<AvroDecoder>,
    /// What the last record taken was of.
    codec: Codec,
    /// What was taken before the last change of codec.
    done: Vec<ChangeBatch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Json,
    Arrow,
    Avro,
}

impl Codec {
    fn of(record: &RecordRef<'_>) -> Self {
        match record.header {
            Some(header) if header.starts_with(arrow::NAME.as_bytes()) => Self::Arrow,
            Some(header) if header.starts_with(avro::NAME.as_bytes()) => Self::Avro,
            _ => Self::Json,
        }
    }
}

impl AnyDecoder {
    /// Without a registry, records of `avro` are malformed. Fails only where zstd cannot be set up.
    pub fn new(schemas: SchemaSource, registry: Option<Arc<dyn SchemaRegistry>>) -> Result<Self> {
        Ok(Self {
            json: JsonDecoder::new(schemas.clone()),
            arrow: ArrowDecoder::new(schemas.clone())?,
            avro: registry.map(|registry| AvroDecoder::new(schemas, registry)),
            codec: Codec::Json,
            done: Vec::new(),
        })
    }

    /// None: of `avro`, without a registry.
    fn decoder(&mut self, codec: Codec) -> Option<&mut dyn Decoder> {
        match codec {
            Codec::Json => Some(&mut self.json),
            Codec::Arrow => Some(&mut self.arrow),
            Codec::Avro => self.avro.as_mut().map(|avro| avro as &mut dyn Decoder),
        }
    }

    fn flush_last(&mut self) -> Result<Vec<ChangeBatch>> {
        self.decoder(self.codec).map_or(Ok(Vec::new()), Decoder::flush)
    }
}

impl Decoder for AnyDecoder {
    fn push(&mut self, record: &RecordRef<'_>) -> Result<()> {
        let codec = Codec::of(record);
        if codec != self.codec {
            // Rows come out in the order in which they went in.
            let last = self.flush_last()?;
            self.done.extend(last);
            self.codec = codec;
        }
        match self.decoder(codec) {
            Some(decoder) => decoder.push(record),
            None => Err(record.malformed("it is of the codec `avro`: set `[log] registry` to where its schemas are")),
        }
    }

    fn rows(&self) -> usize {
        let avro = self.avro.as_ref().map_or(0, Decoder::rows);
        self.done.iter().map(ChangeBatch::num_rows).sum::<usize>() + self.json.rows() + self.arrow.rows() + avro
    }

    fn flush(&mut self) -> Result<Vec<ChangeBatch>> {
        let last = self.flush_last()?;
        let mut all = std::mem::take(&mut self.done);
        all.extend(last);
        Ok(all)
    }
}
