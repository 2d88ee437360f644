//! `records -> ChangeBatch`: the schema that a record names becomes a plan once, and by it the datum is read front to back,
//! straight into columns.

use std::collections::HashMap;
use std::sync::Arc;

use super::NAME;
use super::plan::{DocumentKey, Envelope, Part, Source};
use super::registered::Registered;
use super::wire::{Cursor, MAGIC, PREFIX};
use crate::batch::{ChangeBatch, ChangeMeta, MetaRow, Op};
use crate::codec::json::columns::Rows;
use crate::codec::json::connect::read_json_id;
use crate::codec::json::decode::document_rows;
use crate::codec::json::encode::is_unchanged;
use crate::codec::json::header::Header;
use crate::codec::json::scan::{Bad, Parsed, Raw};
use crate::codec::registry::SchemaRegistry;
use crate::codec::{Decoder, RecordRef, SchemaSource, find_schema};
use crate::error::Result;
use crate::schema::{TableKind, TableSchema};

/// Plans that are kept, at most. A topic has a few; ids that records make up cost a question each, and nothing more.
const MAX_PLANS: usize = 1024;

/// What an id stands for, or why it does not serve.
type Plan<T> = Result<Arc<T>, String>;

/// Decoder of the `avro` codec, for the records of one topic.
pub struct AvroDecoder {
    schemas: SchemaSource,
    registry: Arc<dyn SchemaRegistry>,
    /// By schema id and the version of our own schema.
    envelopes: HashMap<(u32, u32), Plan<Envelope>>,
    /// By schema id.
    keys: HashMap<u32, Plan<DocumentKey>>,
    /// Runs of rows of one version each; the last one is being filled.
    runs: Vec<Run>,
    unchanged: Vec<u8>,
}

/// Rows of one schema version.
struct Run {
    schema: Arc<TableSchema>,
    meta: ChangeMeta,
    after: Rows,
    before: Rows,
}

/// A record, taken apart as far as its bytes alone tell.
struct Parts<'a> {
    envelope: &'a Envelope,
    value: &'a [u8],
    /// The `id` of a collection's key, or what is wrong with the key.
    id: Result<&'a str, String>,
    unchanged: Option<&'a [u8]>,
    header: &'a Header,
}

impl AvroDecoder {
    /// A decoder that asks this registry for the schemas that records name.
    pub fn new(schemas: SchemaSource, registry: Arc<dyn SchemaRegistry>) -> Self {
        Self {
            schemas,
            registry,
            envelopes: HashMap::new(),
            keys: HashMap::new(),
            runs: Vec::new(),
            unchanged: Vec::new(),
        }
    }
}

impl Decoder for AvroDecoder {
    fn push(&mut self, record: &RecordRef<'_>) -> Result<()> {
        // A tombstone: the delete before it has said everything.
        let Some(value) = record.value else { return Ok(()) };
        let malformed = |reason: String| record.malformed(reason);
        let header = record.header.ok_or_else(|| malformed("it has no header `lakeward`".into()))?;
        let rest = header.strip_prefix(NAME.as_bytes()).and_then(|rest| rest.strip_prefix(b","));
        let rest = rest
            .ok_or_else(|| malformed(format!("header `{}` is not of this codec", String::from_utf8_lossy(header))))?;
        let header = Header::parse(rest, &mut self.unchanged).map_err(malformed)?;
        let id = schema_id(value).ok_or_else(|| malformed("it does not start with a schema id".into()))?;

        // Everything that can fail for other reasons than the datum comes before the columns are touched.
        let schema = match self.runs.last().filter(|run| run.schema.version == header.version) {
            Some(run) => run.schema.clone(),
            None => find_schema(&self.schemas, header.version).map_err(malformed)?,
        };
        let registry = self.registry.as_ref();
        let envelope = plan(&mut self.envelopes, (id, header.version), registry, id, |of| Envelope::new(of, &schema))?
            .map_err(|reason| malformed(format!("schema {id}: {reason}")))?;
        let key = match record.key.filter(|_| schema.kind == TableKind::Documents && header.rest.ids.is_none()) {
            None => Err("no key".into()),
            Some(key) => match schema_id(key) {
                None => Err("a key that does not start with a schema id".into()),
                Some(id) => match plan(&mut self.keys, id, registry, id, DocumentKey::new)? {
                    Err(reason) => Err(format!("key's schema {id}: {reason}")),
                    Ok(plan) => plan
                        .read(&mut Cursor::new(key, PREFIX))
                        .map_err(|bad| format!("key's byte {}: {}", bad.at, bad.reason)),
                },
            },
        };
        let parts = Parts {
            envelope: &envelope,
            value,
            id: key,
            unchanged: header.unchanged.then_some(self.unchanged.as_slice()),
            header: &header,
        };

        if self.runs.last().is_none_or(|run| run.schema.version != header.version) {
            self.runs.push(Run::new(schema));
        }
        let Some(run) = self.runs.last_mut() else { return Ok(()) };
        let rows = run.meta.rows();
        if let Err(bad) = run.push(&parts) {
            run.after.truncate(rows);
            run.before.truncate(rows);
            if rows == 0 {
                self.runs.pop();
            }
            return Err(malformed(format!("byte {}: {}", bad.at, bad.reason)));
        }
        Ok(())
    }

    fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.meta.rows()).sum()
    }

    fn flush(&mut self) -> Result<Vec<ChangeBatch>> {
        self.runs.drain(..).map(Run::finish).collect()
    }
}

/// The id before a datum.
fn schema_id(bytes: &[u8]) -> Option<u32> {
    match bytes {
        [MAGIC, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// What is kept for an id, or is now made of its schema. An error is the registry's; one inside the schema's or the id's.
fn plan<K: std::hash::Hash + Eq, T>(
    plans: &mut HashMap<K, Plan<T>>,
    key: K,
    registry: &dyn SchemaRegistry,
    id: u32,
    make: impl FnOnce(Registered) -> Result<T, String>,
) -> Result<Plan<T>> {
    if let Some(plan) = plans.get(&key) {
        return Ok(plan.clone());
    }
    // Not kept: the id may be given out later.
    let Some(schema) = registry.schema(id)? else { return Ok(Err("the registry does not have it".into())) };
    let plan = Registered::parse(&schema).and_then(make).map(Arc::new);
    if plans.len() >= MAX_PLANS {
        plans.clear();
    }
    plans.insert(key, plan.clone());
    Ok(plan)
}

/// What the envelope says besides the rows.
#[derive(Default)]
struct Said<'a> {
    op: Option<Op>,
    lsn: u64,
    cluster_time: (u64, u64),
    tx: Option<u64>,
    commit_ts: Option<i64>,
    patch: Option<&'a str>,
    after: Option<&'a str>,
    before: Option<&'a str>,
}

impl Run {
    fn new(schema: Arc<TableSchema>) -> Self {
        Self { meta: ChangeMeta::default(), after: Rows::new(&schema), before: Rows::new(&schema), schema }
    }

    fn finish(mut self) -> Result<ChangeBatch> {
        let after = self.after.finish(&self.schema)?;
        let before = self.before.finish(&self.schema)?;
        ChangeBatch::try_new(self.schema, self.meta.finish()?, after, before)
    }

    fn push(&mut self, parts: &Parts<'_>) -> Parsed<()> {
        let (header, envelope) = (parts.header, parts.envelope);
        let cursor = &mut Cursor::new(parts.value, PREFIX);
        let mut said = Said { patch: header.rest.patch.as_deref(), ..Said::default() };
        for part in &envelope.fields {
            match part {
                Part::After(row) => {
                    row.read_row(&envelope.schema, cursor, &mut self.after, |i| is_unchanged(parts.unchanged, i))?;
                }
                Part::Before(row) => row.read_row(&envelope.schema, cursor, &mut self.before, |_| false)?,
                Part::AfterDocument(text) => said.after = text.read(cursor)?,
                Part::BeforeDocument(text) => said.before = text.read(cursor)?,
                Part::Patch(text) => said.patch = text.read(cursor)?,
                Part::Source(fields) => said.source(fields, envelope, cursor)?,
                Part::Op(text) => {
                    let letter = text.read(cursor)?.map(str::as_bytes);
                    said.op = if let Some([letter]) = letter { Op::from_u8(*letter) } else { None };
                }
                Part::Other(ty) => envelope.schema.skip(*ty, cursor)?,
            }
        }
        cursor.end()?;
        let Some(op) = said.op else { return cursor.bad("unknown op") };
        if header.rest.misfits.iter().any(|(_, column, _)| usize::from(*column) >= self.schema.columns.len()) {
            return cursor.bad("a misfit of a column that the schema does not have");
        }
        let mut position = said.lsn;
        if self.schema.kind == TableKind::Documents {
            position = said.cluster_time.0 << 32 | said.cluster_time.1;
            let documents = [said.after.map(raw), said.before.map(raw)];
            let id = match &parts.id {
                Ok(id) => read_json_id(id.as_bytes()),
                Err(reason) => Err(Bad { reason: reason.clone().into(), at: 0 }),
            };
            document_rows([&mut self.after, &mut self.before], op, documents, header.rest.ids.as_ref(), &id)?;
        }
        for (side, column, text) in &header.rest.misfits {
            self.meta.misfit(*side as u8, usize::from(*column), text);
        }
        self.meta.push(MetaRow {
            op,
            sequence: header.sequence,
            position,
            tx: said.tx,
            commit_ts: said.commit_ts,
            unchanged: parts.unchanged,
            patch: said.patch,
        });
        Ok(())
    }
}

impl Said<'_> {
    /// Reads `source`: position, transaction and time; the rest is for others.
    fn source(&mut self, fields: &[Source], envelope: &Envelope, cursor: &mut Cursor<'_>) -> Parsed<()> {
        for field in fields {
            match field {
                Source::Micros(number) => self.commit_ts = number.read(cursor)?,
                // All 64 bits, as they were written.
                Source::Lsn(number) => self.lsn = number.read(cursor)?.unwrap_or(0) as u64,
                Source::Xid(number) => self.tx = number.read(cursor)?.map(|xid| xid as u64),
                Source::ClusterTime(number) => self.cluster_time.0 = half(number.read(cursor)?, cursor)?,
                Source::Ordinal(number) => self.cluster_time.1 = half(number.read(cursor)?, cursor)?,
                Source::TransactionHash(text) => {
                    let hash = text.read(cursor)?.map(|hex| u64::from_str_radix(hex, 16)).transpose();
                    self.tx = hash.or_else(|_| cursor.bad("not a transaction"))?;
                }
                Source::Other(ty) => envelope.schema.skip(*ty, cursor)?,
            }
        }
        Ok(())
    }
}

/// A text that stands for itself.
fn raw(text: &str) -> Raw<'_> {
    Raw { bytes: text.as_bytes(), escaped: false, at: 0 }
}

/// A number of 32 bits without a sign.
fn half(number: Option<i64>, cursor: &Cursor<'_>) -> Parsed<u64> {
    u32::try_from(number.unwrap_or(0)).map(u64::from).or_else(|_| cursor.bad("not a number of this field's range"))
}
