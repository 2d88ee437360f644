//! `records of one topic -> ChangeBatch`: values go from the record's text into columns; a schema is read once.

use std::sync::Arc;

use super::documents;
use super::form::Declaration;
use super::record::{Converted, Origin, Parts};
use super::rows::{Layout, RowScratch, document_row, fill, has_key, key_row, unwrapped_document};
use super::table::{KnownTable, Table, Target};
use super::value::{self, Placeholder, Scratch, all_fields};
use crate::batch::{ChangeBatch, ChangeMeta, MetaRow, Op};
use crate::codec::json::columns::Rows;
use crate::codec::json::scan::{Bad, Parsed, Raw, Scanner, append_unescaped};
use crate::codec::{Decoder, RecordRef};
use crate::error::Result;
use crate::schema::{TableId, TableKind, TableSchema};

/// Schemas kept in memory: those of the partitions that are behind a change, and of keys, stay at hand.
const SCHEMAS: usize = 8;

/// Decoder of the records of one topic.
pub struct DebeziumDecoder {
    /// The source's name, in every table's identity.
    source: String,
    default_schema: String,
    topic: String,
    placeholder: Arc<Placeholder>,
    /// None: no row was seen yet.
    table: Option<Arc<Table>>,
    /// Whether the last value was an unwrapped row; None: none was seen.
    flat: Option<bool>,
    values: Vec<Layout>,
    keys: Vec<Layout>,
    /// A run of rows of one schema each; the last one is being filled.
    runs: Vec<Run>,
    sequence: u64,
    scratch: Scratch,
    row: RowScratch,
}

/// Rows of one schema.
struct Run {
    schema: Arc<TableSchema>,
    meta: ChangeMeta,
    after: Rows,
    before: Rows,
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
}

fn bad<T>(reason: impl Into<std::borrow::Cow<'static, str>>) -> Parsed<T> {
    Err(Bad { reason: reason.into(), at: 0 })
}

impl DebeziumDecoder {
    /// Starts with what the lake knows of the topic's table, or with nothing.
    pub fn new(
        source: &str,
        default_schema: &str,
        topic: &str,
        placeholder: Arc<Placeholder>,
        known: Option<KnownTable>,
    ) -> Self {
        Self {
            source: source.to_owned(),
            default_schema: default_schema.to_owned(),
            topic: topic.to_owned(),
            placeholder,
            table: known.map(|known| Arc::new(Table::known(known))),
            flat: None,
            values: Vec::new(),
            keys: Vec::new(),
            runs: Vec::new(),
            sequence: 0,
            scratch: Scratch::default(),
            row: RowScratch::default(),
        }
    }

    /// The table that the topic holds; None: no row has told yet.
    pub fn table(&self) -> Option<&TableId> {
        self.table.as_ref().map(|table| &table.schema().table)
    }

    fn take(&mut self, record: &RecordRef<'_>) -> Parsed<()> {
        let known = |layouts: &[Layout], text: &[u8]| -> Option<usize> {
            layouts.iter().position(|layout| layout.text == text)
        };
        let key = match record.key {
            Some(key) => Converted::parse(key, self.keys.iter().map(|l| l.text.as_slice()))?,
            None => None,
        };
        let key_layout = match key.and_then(|key| key.schema) {
            Some(text) => Some(known(&self.keys, text).map_or_else(|| remember(&mut self.keys, text), Ok)?),
            None => None,
        };
        let value = match record.value {
            Some(value) => Converted::parse(value, self.values.iter().map(|l| l.text.as_slice()))?,
            None => None,
        };
        // For compacted topics behind a delete that has said everything, or the delete itself where records are unwrapped.
        let Some(value) = value else { return self.delete(key, key_layout, None, Origin::default()) };
        let value_layout = match value.schema {
            Some(text) => Some(known(&self.values, text).map_or_else(|| remember(&mut self.values, text), Ok)?),
            None => None,
        };
        let parts = Parts::parse(value.payload)?;
        let flat = !parts.is_envelope();
        if parts.op == Some(b'm') && !flat {
            return Ok(());
        }
        self.flat = Some(flat);
        let op = match (flat, if flat { parts.unwrapped_op } else { parts.op }) {
            (true, op) if parts.deleted || op == Some(b'd') => Op::Delete,
            // Without a word of what it is a row is an update: whatever was there, it is this now.
            (true, op) => op.and_then(Op::from_u8).unwrap_or(Op::Update),
            (false, Some(op)) => match Op::from_u8(op) {
                Some(op) => op,
                None => return bad("unknown op"),
            },
            (false, None) => return bad("no op"),
        };
        let row = if flat { Some(value.payload) } else { parts.after };
        match op {
            Op::Truncate => self.truncate(parts.origin),
            Op::Delete => {
                let old = if flat { row } else { parts.before };
                self.delete(key, key_layout, old.map(|old| (old, value_layout)), parts.origin)
            }
            Op::Create | Op::Update | Op::Read => {
                self.know_table(&parts, key)?;
                if self.table.as_ref().is_some_and(|table| table.kind() == TableKind::Documents) {
                    return self.put_document(op, &parts, row, key);
                }
                let Some(row) = row else { return bad("a change without its row") };
                self.put_row(op, row, value_layout, key, record.header, parts.origin)
            }
        }
    }

    /// Makes the table of the first row.
    fn know_table(&mut self, parts: &Parts<'_>, key: Option<Converted<'_>>) -> Parsed<()> {
        if self.table.is_some() {
            return Ok(());
        }
        let origin = &parts.origin;
        let unwrapped_document = || match (parts.id, key) {
            (Some(id), Some(key)) if self.flat == Some(true) => {
                let mut names = 0;
                let mut same = false;
                all_fields(key.payload, |name, scanner| {
                    names += 1;
                    same = name == b"id" && scanner.value()? == id;
                    Ok(())
                })
                .is_ok()
                    && same
                    && names == 1
            }
            _ => false,
        };
        let documents = origin.connector == Some(b"mongodb")
            || parts.patch.is_some()
            || (self.flat == Some(false) && parts.after.is_some_and(|after| after.starts_with(b"\"")))
            || unwrapped_document();
        let text = |raw: Option<&[u8]>| -> Parsed<Option<String>> {
            let Some(bytes) = raw else { return Ok(None) };
            let mut text = Vec::new();
            append_unescaped(Raw { bytes, escaped: bytes.contains(&b'\\'), at: 0 }, &mut text)?;
            Ok(Some(String::from_utf8_lossy(&text).into_owned()))
        };
        // `<prefix>.<schema>.<table>` where the record does not say.
        let mut words = self.topic.rsplit('.');
        let last = words.next().unwrap_or_default();
        let before_last = words.next().filter(|_| words.next().is_some());
        let schema = text(origin.schema.or(origin.db))?
            .unwrap_or_else(|| before_last.unwrap_or(&self.default_schema).to_owned());
        let name = text(origin.table)?.unwrap_or_else(|| last.to_owned());
        let kind = if documents { TableKind::Documents } else { TableKind::Relational };
        self.table = Some(Arc::new(Table::new(TableId::new(&self.source, schema, name), kind)));
        Ok(())
    }

    fn truncate(&mut self, origin: Origin<'_>) -> Parsed<()> {
        // Of a table that no row was seen of there is nothing to empty.
        let Some(run) = self.run() else { return Ok(()) };
        run.after.append_null();
        run.before.append_null();
        self.push_meta(Op::Truncate, origin, false, None);
        Ok(())
    }

    /// Deletes the key's row. `row`: the old row, for tables without a key, and its layout.
    fn delete(
        &mut self,
        key: Option<Converted<'_>>,
        key_layout: Option<usize>,
        row: Option<(&[u8], Option<usize>)>,
        origin: Origin<'_>,
    ) -> Parsed<()> {
        let Some(table) = self.table.clone() else { return Ok(()) };
        match (key, row) {
            (Some(key), _) if table.kind() == TableKind::Documents => {
                let id = self.document_key(key)?;
                let Some(run) = self.run() else { return Ok(()) };
                document_row(&mut run.before, &id, |_| None)?;
            }
            (Some(key), _) => {
                let layout = key_layout.and_then(|layout| self.keys.get(layout));
                let declaration = layout.map(|layout| &layout.declaration);
                // Borrowed apart from the layouts.
                let run = last_run(&mut self.runs, table.schema());
                key_row(&mut run.before, &table, declaration, key.payload, &mut self.scratch, &mut self.row.name)?;
            }
            (None, Some((row, layout))) if table.kind() == TableKind::Relational => {
                let table = self.resolve(row, layout, false)?;
                let run = last_run(&mut self.runs, table.schema());
                let layout = layout.and_then(|layout| self.values.get(layout));
                fill(&mut run.before, row, layout, None, &mut self.row, &mut self.scratch)?;
                self.row.misfits.clear();
            }
            // A tombstone of a table without a key: the delete before it has said everything.
            (None, _) if origin.connector.is_none() => return Ok(()),
            (None, _) => return bad("a delete without a key"),
        }
        if let Some(run) = self.runs.last_mut() {
            run.after.append_null();
        }
        self.push_meta(Op::Delete, origin, false, None);
        Ok(())
    }

    fn put_row(
        &mut self,
        op: Op,
        row: &[u8],
        layout: Option<usize>,
        key: Option<Converted<'_>>,
        old_key: Option<&[u8]>,
        origin: Origin<'_>,
    ) -> Parsed<()> {
        // An inserted text may read like the placeholder; only an update can leave a value out, or the second half of a key change.
        let partial = op == Op::Update || old_key.is_some();
        let mut table = self.resolve(row, layout, partial)?;
        if let Some(key) = key
            && !has_key(&table, key.payload, &mut self.row.name)?
        {
            let mut names = Vec::new();
            all_fields(key.payload, |name, scanner| {
                let mut plain = Vec::new();
                append_unescaped(Raw { bytes: name, escaped: name.contains(&b'\\'), at: 0 }, &mut plain)?;
                names.push(plain);
                scanner.value().map(drop)
            })?;
            let own = Arc::make_mut(&mut table);
            if let Err(name) = own.set_key(&names) {
                return bad(format!("the key has {name}, which is not in the row"));
            }
            own.publish();
            self.table = Some(table.clone());
        }
        let run = last_run(&mut self.runs, table.schema());
        let layout = layout.and_then(|layout| self.values.get(layout));
        let placeholder = partial.then_some(self.placeholder.as_ref());
        let left_out = fill(&mut run.after, row, layout, placeholder, &mut self.row, &mut self.scratch)?;
        let old = old_key.map(|old| {
            let rows = run.before.len();
            let done = key_row(&mut run.before, &table, None, old, &mut self.scratch, &mut self.row.name);
            if done.is_err() {
                run.before.truncate(rows);
            }
            done.is_ok()
        });
        match old {
            Some(true) => {}
            Some(false) if left_out => return bad("the old key cannot be read, and with it the values left out"),
            _ => run.before.append_null(),
        }
        self.push_meta(op, origin, left_out, None);
        Ok(())
    }

    /// The table with columns for all that the row brings.
    fn resolve(&mut self, row: &[u8], layout: Option<usize>, partial: bool) -> Parsed<Arc<Table>> {
        let Some(mut table) = self.table.clone() else { return bad("no table") };
        let flat = self.flat == Some(true);
        let is_added = |name: &[u8]| flat && name.starts_with(b"__");
        match layout.and_then(|layout| self.values.get_mut(layout)) {
            Some(layout) if layout.resolved.as_ref().is_some_and(|known| Arc::ptr_eq(known, table.schema())) => {}
            Some(layout) => {
                let own = Arc::make_mut(&mut table);
                layout.targets.clear();
                for field in &layout.declaration.fields {
                    let declared = &field.declared;
                    layout.targets.push(if is_added(field.name.as_bytes()) {
                        Target::Skip
                    } else {
                        own.place(&field.name, &declared.ty, &declared.source_type)
                    });
                }
                own.publish();
                layout.resolved = Some(own.schema().clone());
                self.table = Some(table.clone());
            }
            None => {
                let (targets, plain) = (&mut self.row.targets, &mut self.row.name);
                let (placeholder, scratch) = (&self.placeholder, &mut table);
                targets.clear();
                let mut next = 0;
                let mut grown = false;
                all_fields(row, |name, scanner| {
                    let raw = scanner.value()?;
                    if is_added(name) {
                        targets.push(Target::Skip);
                        return Ok(());
                    }
                    plain.clear();
                    append_unescaped(Raw { bytes: name, escaped: name.contains(&b'\\'), at: 0 }, plain)?;
                    let found = scratch.column_near(next, plain);
                    next = found.map_or(next, |found| found + 1);
                    let left_out = partial && placeholder.is(raw);
                    targets.push(match (found, value::infer(raw)) {
                        (Some(column), _) if left_out || scratch.ty(column).is_some_and(|ty| value::fits(ty, raw)) => {
                            Target::Column(column)
                        }
                        (_, Some(ty)) => {
                            grown = true;
                            Arc::make_mut(scratch).place(&String::from_utf8_lossy(plain), &ty, "its column")
                        }
                        // Null in a column that no value was seen of.
                        _ => Target::Skip,
                    });
                    Ok(())
                })?;
                if grown {
                    Arc::make_mut(&mut table).publish();
                    self.table = Some(table.clone());
                }
            }
        }
        Ok(table)
    }

    fn document_key(&mut self, key: Converted<'_>) -> Parsed<String> {
        let mut id = None;
        all_fields(key.payload, |name, scanner| {
            let raw = scanner.value()?;
            if name == b"id" {
                id = Some(raw);
            }
            Ok(())
        })?;
        let Some(id) = id else { return bad("the key has no id") };
        match documents::key_text(id, self.flat)? {
            Ok(text) => Ok(text),
            Err(error) => bad(error.to_string()),
        }
    }

    fn put_document(
        &mut self,
        op: Op,
        parts: &Parts<'_>,
        row: Option<&[u8]>,
        key: Option<Converted<'_>>,
    ) -> Parsed<()> {
        let Some(key) = key else { return bad("a document without a key") };
        let id = self.document_key(key)?;
        let text = &mut self.scratch.text;
        let document = &mut self.scratch.bytes;
        text.clear();
        document.clear();
        let mut patch = None;
        match row {
            Some(row) if self.flat == Some(true) => unwrapped_document(row, document)?,
            Some(row) => {
                let mut scanner = Scanner::new(row);
                append_unescaped(scanner.string()?, text)?;
                if text.trim_ascii_start().first() != Some(&b'{') {
                    return bad("not a document");
                }
                documents::document(text, document)?;
            }
            None => {
                let Some(description) = parts.patch else { return bad("an update without document or description") };
                documents::patch(description, text)?;
                match std::str::from_utf8(text) {
                    Ok(text) => patch = Some(text.to_owned()),
                    Err(_) => return bad("not UTF-8"),
                }
            }
        }
        let Some(table) = &self.table else { return bad("no table") };
        let run = last_run(&mut self.runs, table.schema());
        document_row(&mut run.after, &id, |out| (patch.is_none()).then(|| out.extend_from_slice(document)))?;
        run.before.append_null();
        self.push_meta(op, parts.origin, false, patch.as_deref());
        Ok(())
    }

    /// The run that takes the table's next row; None: no table is known.
    fn run(&mut self) -> Option<&mut Run> {
        let schema = self.table.as_ref()?.schema();
        Some(last_run(&mut self.runs, schema))
    }

    fn push_meta(&mut self, op: Op, origin: Origin<'_>, left_out: bool, patch: Option<&str>) {
        let Some(run) = self.runs.last_mut() else { return };
        for (column, text) in self.row.misfits.drain(..) {
            run.meta.misfit(b'a', column, &text);
        }
        run.meta.push(MetaRow {
            op,
            sequence: self.sequence,
            position: origin.position,
            tx: origin.tx,
            commit_ts: origin.commit_ts,
            unchanged: left_out.then_some(self.row.unchanged.as_slice()),
            patch,
        });
        self.sequence += 1;
    }
}

impl Decoder for DebeziumDecoder {
    fn push(&mut self, record: &RecordRef<'_>) -> Result<()> {
        let (table, runs) = (self.table.clone(), self.runs.len());
        let rows = self.runs.last().map_or(0, |run| run.meta.rows());
        self.row.misfits.clear();
        let Err(Bad { reason, at }) = self.take(record) else { return Ok(()) };
        // As if it had never been there.
        self.table = table;
        self.runs.truncate(runs);
        if let Some(run) = self.runs.last_mut() {
            run.after.truncate(rows);
            run.before.truncate(rows);
        }
        Err(record.malformed(format!("byte {at}: {reason}")))
    }

    fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.meta.rows()).sum()
    }

    fn flush(&mut self) -> Result<Vec<ChangeBatch>> {
        self.runs.drain(..).map(Run::finish).collect()
    }
}

/// Reads a schema that was not seen before; its place.
fn remember(layouts: &mut Vec<Layout>, text: &[u8]) -> Parsed<usize> {
    let Some(declaration) = Declaration::parse(text) else { return bad("the inlined schema cannot be read") };
    if layouts.len() >= SCHEMAS {
        layouts.remove(0);
    }
    layouts.push(Layout { text: text.to_vec(), declaration, targets: Vec::new(), resolved: None });
    Ok(layouts.len() - 1)
}

fn last_run<'r>(runs: &'r mut Vec<Run>, schema: &Arc<TableSchema>) -> &'r mut Run {
    let same = runs.last().is_some_and(|run| Arc::ptr_eq(&run.schema, schema));
    if !same {
        runs.push(Run::new(schema.clone()));
    }
    let last = runs.len() - 1;
    &mut runs[last]
}
