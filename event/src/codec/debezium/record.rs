//! A record taken apart: `bytes -> schema and payload -> the parts of the envelope, or the row's own`.

use super::value::{all_fields, long};
use crate::codec::json::scan::{Bad, Parsed, Scanner};

/// Text that the JsonConverter wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Converted<'a> {
    /// None: `schemas.enable` is false.
    pub schema: Option<&'a [u8]>,
    pub payload: &'a [u8],
}

impl<'a> Converted<'a> {
    /// Parts schema and payload, which is not looked into; None: the value is null. `known` are schemas that need not be read again.
    pub fn parse<'k>(text: &'a [u8], known: impl Iterator<Item = &'k [u8]>) -> Parsed<Option<Self>> {
        if let Err(error) = std::str::from_utf8(text) {
            return Err(Bad { reason: "not UTF-8".into(), at: error.valid_up_to() });
        }
        let mut scanner = Scanner::new(text);
        if scanner.take_exactly(b"{\"schema\":") {
            let start = scanner.at();
            let same = known.into_iter().find(|known| scanner.take_exactly(known)).is_some();
            // Half of a longer schema is no schema: the comma says where it ends.
            if !(same && scanner.peek() == Some(b',')) {
                scanner.rewind(start);
                scanner.value()?;
            }
            let schema = &text[start..scanner.at()];
            if scanner.take(b',') && scanner.take_exactly(b"\"payload\":") {
                // All but the last brace: who reads the payload sees to its end.
                let payload = text[scanner.at()..].trim_ascii_end().strip_suffix(b"}").map(<[u8]>::trim_ascii);
                let Some(payload) = payload else { return scanner.bad("expected `}`") };
                let schema = (schema != b"null").then_some(schema);
                return Ok((payload != b"null").then_some(Self { schema, payload }));
            }
        }
        let payload = text.trim_ascii();
        Ok((payload != b"null").then_some(Self { schema: None, payload }))
    }
}

/// The parts of a record's payload, as raw JSON.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Parts<'a> {
    pub op: Option<u8>,
    pub after: Option<&'a [u8]>,
    pub before: Option<&'a [u8]>,
    pub source: Option<&'a [u8]>,
    pub patch: Option<&'a [u8]>,
    /// Unwrapped: `_id`.
    pub id: Option<&'a [u8]>,
    /// Unwrapped: what the transform added.
    pub deleted: bool,
    pub unwrapped_op: Option<u8>,
    pub origin: Origin<'a>,
    sides: bool,
}

/// Where a change comes from, as far as the record says.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub connector: Option<&'a [u8]>,
    pub db: Option<&'a [u8]>,
    pub schema: Option<&'a [u8]>,
    pub table: Option<&'a [u8]>,
    pub position: u64,
    pub tx: Option<u64>,
    /// Microseconds since 1970.
    pub commit_ts: Option<i64>,
}

impl<'a> Parts<'a> {
    pub fn parse(payload: &'a [u8]) -> Parsed<Self> {
        let mut parts = Self::default();
        all_fields(payload, |name, scanner| {
            let raw = scanner.value()?;
            let present = (raw != b"null").then_some(raw);
            match name {
                b"op" => parts.op = letter(raw),
                b"after" => (parts.after, parts.sides) = (present, true),
                b"before" => (parts.before, parts.sides) = (present, true),
                b"source" => parts.source = present.filter(|raw| raw.starts_with(b"{")),
                b"updateDescription" => parts.patch = present.filter(|raw| raw.starts_with(b"{")),
                b"_id" => parts.id = Some(raw),
                name if name.starts_with(b"__") => parts.added(&name[2..], raw),
                _ => {}
            }
            Ok(())
        })?;
        if let Some(source) = parts.source.filter(|_| parts.is_envelope()) {
            parts.origin = Origin::parse(source)?;
        }
        Ok(parts)
    }

    /// Debezium's envelope. A row of a table that has columns of these names and types would be taken for one.
    pub fn is_envelope(&self) -> bool {
        self.op.is_some() && self.source.is_some() && (self.sides || matches!(self.op, Some(b'm' | b't')))
    }

    /// A field that the unwrapping transform added, without its two underscores.
    fn added(&mut self, name: &[u8], raw: &'a [u8]) {
        let text = || string(raw);
        match name {
            b"deleted" => self.deleted = matches!(raw, b"true" | b"\"true\""),
            b"op" => self.unwrapped_op = letter(raw),
            b"lsn" | b"source_lsn" => self.origin.position = number(raw).unwrap_or(0),
            b"txId" | b"source_txId" => self.origin.tx = number(raw),
            b"source_ts_us" => self.origin.commit_ts = number(raw),
            b"source_ts_ms" => {
                let micros = number::<i64>(raw).and_then(|millis| millis.checked_mul(1_000));
                self.origin.commit_ts = self.origin.commit_ts.or(micros);
            }
            b"schema" | b"source_schema" => self.origin.schema = text(),
            b"db" | b"source_db" => self.origin.db = text(),
            b"table" | b"source_table" | b"collection" | b"source_collection" => self.origin.table = text(),
            b"connector" | b"source_connector" => self.origin.connector = text(),
            _ => {}
        }
    }
}

impl<'a> Origin<'a> {
    fn parse(source: &'a [u8]) -> Parsed<Self> {
        let mut origin = Self::default();
        let (mut millis, mut seconds, mut ord) = (None, None, None);
        all_fields(source, |name, scanner| {
            let raw = scanner.value()?;
            match name {
                b"connector" => origin.connector = string(raw),
                b"db" => origin.db = string(raw),
                b"schema" => origin.schema = string(raw),
                b"table" | b"collection" => origin.table = string(raw),
                b"lsn" => origin.position = number(raw).unwrap_or(0),
                b"txId" => origin.tx = number(raw),
                b"ts_us" => origin.commit_ts = number(raw),
                b"ts_ms" => millis = number::<i64>(raw),
                b"ord" => ord = number::<i64>(raw),
                _ => {}
            }
            Ok(())
        })?;
        if let Some(millis) = millis {
            seconds = u64::try_from(millis / 1_000).ok();
            origin.commit_ts = origin.commit_ts.or(millis.checked_mul(1_000));
        }
        // MongoDB: the cluster time, as far as the record has it; a document that a snapshot read has none.
        if let (Some(seconds), Some(ord)) = (seconds, ord.and_then(|ord| u64::try_from(ord).ok())) {
            origin.position = seconds << 32 | (ord & 0xffff_ffff);
        }
        Ok(origin)
    }
}

/// The one letter of an `op`.
fn letter(raw: &[u8]) -> Option<u8> {
    match raw {
        [b'"', letter, b'"'] => Some(*letter),
        _ => None,
    }
}

/// A string that needs no unescaping, or else as it stands: for names that are compared or shown.
fn string(raw: &[u8]) -> Option<&[u8]> {
    raw.strip_prefix(b"\"")?.strip_suffix(b"\"").filter(|text| !text.is_empty())
}

fn number<T: TryFrom<i64>>(raw: &[u8]) -> Option<T> {
    T::try_from(long(&mut Scanner::new(raw)).ok()?).ok()
}
