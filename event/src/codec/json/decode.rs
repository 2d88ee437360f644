//! `records -> ChangeBatch`: the envelope is read once, front to back, straight into columns.

use std::sync::Arc;

use super::columns::{Column, Rows};
use super::connect;
use super::encode::implied_sides;
use super::header::{Header, RowId};
use super::scan::{Bad, Parsed, Raw, Scanner, append_unescaped};
use super::text;
use crate::batch::{ChangeBatch, ChangeMeta, MetaRow, Op};
use crate::codec::{Decoder, RecordRef, SchemaSource, find_schema};
use crate::error::Result;
use crate::schema::{TableKind, TableSchema};

/// Decoder of the `json` codec, for the records of one topic.
pub struct JsonDecoder {
    schemas: SchemaSource,
    /// A run of rows of one version each; the last one is being filled.
    runs: Vec<Run>,
    scratch: Scratch,
}

/// Rows of one schema version.
struct Run {
    schema: Arc<TableSchema>,
    /// `"name":` of each column as our encoder writes it: comparing bytes is cheaper than reading a name.
    names: Vec<Vec<u8>>,
    /// What stood before the last value's payload, its schema: the next one's is most often the same, and is not read again.
    schema_text: Vec<u8>,
    meta: ChangeMeta,
    after: Rows,
    before: Rows,
}

#[derive(Default)]
struct Scratch {
    unchanged: Vec<u8>,
    name: Vec<u8>,
}

impl JsonDecoder {
    pub fn new(schemas: SchemaSource) -> Self {
        Self { schemas, runs: Vec::new(), scratch: Scratch::default() }
    }
}

impl Decoder for JsonDecoder {
    fn push(&mut self, record: &RecordRef<'_>) -> Result<()> {
        // Debezium's tombstones, for compacted topics: the delete before it has said everything.
        let Some(value) = record.value else { return Ok(()) };
        let malformed = |reason: String| record.malformed(reason);
        let header = match record.header {
            Some(header) => Header::parse(header, &mut self.scratch.unchanged).map_err(malformed)?,
            None => return Err(malformed("it has no header `lakeward`".into())),
        };
        if self.runs.last().is_none_or(|run| run.schema.version != header.version) {
            self.runs.push(Run::new(find_schema(&self.schemas, header.version).map_err(malformed)?));
        }
        let Some(run) = self.runs.last_mut() else { return Ok(()) };
        let rows = run.meta.rows();
        let taken = std::str::from_utf8(value)
            .map_err(|error| Bad { reason: "not UTF-8".into(), at: error.valid_up_to() })
            .and_then(|_| run.push(value, record.key, &header, &mut self.scratch));
        if let Err(bad) = taken {
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

/// What the envelope says besides the rows.
#[derive(Default)]
struct Envelope<'a> {
    op: Option<Op>,
    position: u64,
    tx: Option<u64>,
    commit_ts: Option<i64>,
    patch: Option<&'a str>,
    /// Documents are kept for later: which rows there are depends on `op`.
    after: Option<Raw<'a>>,
    before: Option<Raw<'a>>,
    has_after: bool,
    has_before: bool,
    has_source: bool,
}

impl Run {
    fn new(schema: Arc<TableSchema>) -> Self {
        let names = schema.columns.iter().map(|column| {
            let mut name = Vec::new();
            text::write_string(&mut name, &column.name);
            name.push(b':');
            name
        });
        Self {
            names: names.collect(),
            schema_text: Vec::new(),
            meta: ChangeMeta::default(),
            after: Rows::new(&schema),
            before: Rows::new(&schema),
            schema,
        }
    }

    fn finish(mut self) -> Result<ChangeBatch> {
        let after = self.after.finish(&self.schema)?;
        let before = self.before.finish(&self.schema)?;
        ChangeBatch::try_new(self.schema, self.meta.finish()?, after, before)
    }

    fn push(&mut self, value: &[u8], key: Option<&[u8]>, header: &Header, scratch: &mut Scratch) -> Parsed<()> {
        let mut scanner = Scanner::new(value);
        let inline = enter_payload(&mut scanner, &mut self.schema_text)?;
        let documents = self.schema.kind == TableKind::Documents;
        let unchanged = header.unchanged.then_some(scratch.unchanged.as_slice());
        let mut envelope = Envelope::default();
        scanner.expect(b'{')?;
        loop {
            let name = scanner.string()?;
            scanner.expect(b':')?;
            match name.bytes {
                b"after" => {
                    once(&scanner, &mut envelope.has_after)?;
                    if documents {
                        envelope.after = document(&mut scanner)?;
                    } else {
                        row(&self.schema, &self.names, &mut self.after, &mut scanner, unchanged, &mut scratch.name)?;
                    }
                }
                b"before" => {
                    once(&scanner, &mut envelope.has_before)?;
                    if documents {
                        envelope.before = document(&mut scanner)?;
                    } else {
                        row(&self.schema, &self.names, &mut self.before, &mut scanner, None, &mut scratch.name)?;
                    }
                }
                b"source" => {
                    once(&scanner, &mut envelope.has_source)?;
                    source(&mut scanner, documents, &mut envelope)?;
                }
                b"op" => {
                    let letter = scanner.string()?;
                    envelope.op = match letter.bytes {
                        [letter] => Op::from_u8(*letter),
                        _ => None,
                    };
                    if envelope.op.is_none() {
                        return scanner.bad("unknown op");
                    }
                }
                // Under a schema the update description is Debezium's, and ours stands beside it.
                b"updateDescription" if inline => {
                    scanner.value()?;
                }
                b"updateDescription" | b"patch" => {
                    let patch = scanner.value()?;
                    envelope.patch = match std::str::from_utf8(patch) {
                        Ok("null") | Err(_) => None,
                        Ok(patch) => Some(patch),
                    };
                }
                _ => {
                    scanner.value()?;
                }
            }
            if !scanner.take(b',') {
                break;
            }
        }
        scanner.expect(b'}')?;
        if inline {
            scanner.expect(b'}')?;
        }
        scanner.end()?;
        let Some(op) = envelope.op else { return scanner.bad("no op") };
        if !(envelope.has_after && envelope.has_before && envelope.has_source) {
            return scanner.bad("not an envelope: before, after or source is missing");
        }
        if header.rest.patch.is_some() {
            return scanner.bad("a patch in the header");
        }
        if header.rest.misfits.iter().any(|(_, column, _)| usize::from(*column) >= self.names.len()) {
            return scanner.bad("a misfit of a column that the schema does not have");
        }
        if documents {
            let documents = [envelope.after, envelope.before];
            let sides = [&mut self.after, &mut self.before];
            let id = key_id(key, &mut scratch.name);
            document_rows(sides, op, documents, header.rest.ids.as_ref(), &id)?;
        }
        for (side, column, text) in &header.rest.misfits {
            self.meta.misfit(*side as u8, usize::from(*column), text);
        }
        self.meta.push(MetaRow {
            op,
            sequence: header.sequence,
            position: envelope.position,
            tx: envelope.tx,
            commit_ts: envelope.commit_ts,
            unchanged,
            patch: envelope.patch,
        });
        Ok(())
    }
}

/// Puts together the rows of a MongoDB change: `_id` from the key (or the header), `_doc` from the envelope.
pub(in crate::codec) fn document_rows(
    sides: [&mut Rows; 2],
    op: Op,
    documents: [Option<Raw<'_>>; 2],
    ids: Option<&[RowId; 2]>,
    key_id: &Parsed<Raw<'_>>,
) -> Parsed<()> {
    let implied = implied_sides(op as u8, documents[0].is_some(), documents[1].is_some());
    for (i, (rows, implied)) in sides.into_iter().zip([implied.0, implied.1]).enumerate() {
        let id = ids.map(|ids| &ids[i]);
        let present = id.map_or(implied, |id| matches!(id, RowId::Present(_)));
        if !present {
            if documents[i].is_some() {
                return Err(Bad { reason: "a document where the header says there is none".into(), at: 0 });
            }
            rows.append_null();
            continue;
        }
        let [id_column, doc_column] = rows.start_row() else {
            return Err(Bad { reason: "not the columns of a collection".into(), at: 0 });
        };
        match id {
            Some(RowId::Present(Some(id))) => {
                id_column.append_text(Raw { bytes: id.as_bytes(), escaped: false, at: 0 })?;
            }
            Some(_) => id_column.append_null(),
            None => id_column.append_text(key_id.clone()?)?,
        }
        match documents[i] {
            Some(document) => doc_column.append_text(document)?,
            None => doc_column.append_null(),
        }
        rows.end_row();
    }
    Ok(())
}

/// The text of `_id` in `{"id":"…"}`; under a schema it is made of the Extended JSON there, in `scratch`.
fn key_id<'a>(key: Option<&'a [u8]>, scratch: &'a mut Vec<u8>) -> Parsed<Raw<'a>> {
    let Some(key) = key.filter(|key| std::str::from_utf8(key).is_ok()) else {
        return Err(Bad { reason: "no key, or one that is not UTF-8".into(), at: 0 });
    };
    let mut scanner = Scanner::new(key);
    let inline = skip_schema(&mut scanner)?;
    scanner.expect(b'{')?;
    if scanner.string()?.bytes != b"id" {
        return scanner.bad("the key has no id");
    }
    scanner.expect(b':')?;
    let id = scanner.string()?;
    scanner.expect(b'}')?;
    if inline {
        scanner.expect(b'}')?;
    }
    scanner.end()?;
    if !inline {
        return Ok(id);
    }
    scratch.clear();
    append_unescaped(id, scratch)?;
    connect::read_json_id(scratch)
}

/// Moves to the payload of `{"schema":…,"payload":…}`, knowing the text before it by heart; false: there is no schema.
fn enter_payload(scanner: &mut Scanner<'_>, known: &mut Vec<u8>) -> Parsed<bool> {
    if !known.is_empty() && scanner.take_exactly(known) {
        return Ok(true);
    }
    let inline = skip_schema(scanner)?;
    if inline {
        known.clear();
        known.extend_from_slice(&scanner.text()[..scanner.at()]);
    }
    Ok(inline)
}

/// The same, reading the schema no closer than to find its end.
fn skip_schema(scanner: &mut Scanner<'_>) -> Parsed<bool> {
    scanner.expect(b'{')?;
    if scanner.peek() != Some(b'"') || scanner.string()?.bytes != b"schema" {
        scanner.rewind(0);
        return Ok(false);
    }
    scanner.expect(b':')?;
    scanner.value()?;
    scanner.expect(b',')?;
    if scanner.string()?.bytes != b"payload" {
        return scanner.bad("a schema without a payload behind it");
    }
    scanner.expect(b':')?;
    Ok(true)
}

fn once(scanner: &Scanner<'_>, seen: &mut bool) -> Parsed<()> {
    if std::mem::replace(seen, true) { scanner.bad("a field of the envelope twice") } else { Ok(()) }
}

fn document<'a>(scanner: &mut Scanner<'a>) -> Parsed<Option<Raw<'a>>> {
    if scanner.take_null() { Ok(None) } else { scanner.string().map(Some) }
}

/// Reads `source`: position, transaction and time; the rest is for others.
fn source(scanner: &mut Scanner<'_>, documents: bool, envelope: &mut Envelope<'_>) -> Parsed<()> {
    let mut cluster_time = (0u64, 0u64);
    scanner.expect(b'{')?;
    loop {
        let name = scanner.string()?;
        scanner.expect(b':')?;
        match name.bytes {
            b"ts_us" => envelope.commit_ts = number(scanner)?,
            b"lsn" => envelope.position = number(scanner)?.unwrap_or(0),
            b"clusterTime" => cluster_time.0 = number::<u32>(scanner)?.unwrap_or(0).into(),
            b"ord" => cluster_time.1 = number::<u32>(scanner)?.unwrap_or(0).into(),
            b"txId" if documents && !scanner.take_null() => {
                let hex = scanner.string()?.bytes;
                let hash = std::str::from_utf8(hex).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
                let Some(hash) = hash else { return scanner.bad("not a transaction") };
                envelope.tx = Some(hash);
            }
            b"txId" if documents => {}
            b"txId" => envelope.tx = number(scanner)?,
            _ => {
                scanner.value()?;
            }
        }
        if !scanner.take(b',') {
            break;
        }
    }
    if documents {
        envelope.position = cluster_time.0 << 32 | cluster_time.1;
    }
    scanner.expect(b'}')
}

fn number<T: std::str::FromStr>(scanner: &mut Scanner<'_>) -> Parsed<Option<T>> {
    let word = scanner.word();
    if word == b"null" {
        return Ok(None);
    }
    match std::str::from_utf8(word).ok().and_then(|word| word.parse().ok()) {
        Some(value) => Ok(Some(value)),
        None => scanner.bad("not a number of this field's range"),
    }
}

/// Reads one side's row. Every column must be there, in any order; what `unchanged` names is null whatever stands there.
fn row(
    schema: &TableSchema,
    names: &[Vec<u8>],
    rows: &mut Rows,
    scanner: &mut Scanner<'_>,
    unchanged: Option<&[u8]>,
    scratch: &mut Vec<u8>,
) -> Parsed<()> {
    if scanner.take_null() {
        rows.append_null();
        return Ok(());
    }
    let columns = rows.start_row();
    let before = columns.first().map_or(0, Column::len);
    let mut seen = 0;
    scanner.expect(b'{')?;
    while scanner.peek() != Some(b'}') {
        let index = match names.get(seen) {
            Some(name) if scanner.take_exactly(name) => seen,
            _ => find(schema, scanner, scratch)?,
        };
        let column = &mut columns[index];
        if column.len() != before {
            return scanner.bad(format!("column {} twice", schema.columns[index].name));
        }
        let left_out =
            unchanged.is_some_and(|bits| bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1));
        if left_out {
            scanner.value()?;
            column.append_null();
        } else {
            column.parse(scanner)?;
        }
        seen += 1;
        if !scanner.take(b',') {
            break;
        }
    }
    scanner.expect(b'}')?;
    if seen != columns.len() {
        return scanner.bad(format!("{} of {} columns", seen, columns.len()));
    }
    rows.end_row();
    Ok(())
}

/// The column whose name is next in a row that is not in our encoder's order or spelling.
fn find(schema: &TableSchema, scanner: &mut Scanner<'_>, scratch: &mut Vec<u8>) -> Parsed<usize> {
    let name = scanner.string()?;
    scratch.clear();
    append_unescaped(name, scratch)?;
    let found = schema.columns.iter().position(|column| column.name.as_bytes() == scratch.as_slice());
    let Some(index) = found else {
        return scanner.bad(format!(
            "column {} is not in schema version {}",
            String::from_utf8_lossy(scratch),
            schema.version
        ));
    };
    scanner.expect(b':')?;
    Ok(index)
}
