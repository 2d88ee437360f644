//! One change as a line: a row of a `ChangeBatch` and its place in the log -> text for people, or a JSON object.
//!
//! Values are written as JSON in both: numbers and booleans as they are, `json` columns and MongoDB's documents as their own text,
//! lists as arrays, everything else (decimals too, which JSON readers would round) as PostgreSQL's text in a string.

use std::io::Write as _;

use arrow::array::{Array, AsArray, StructArray};
use lakeward_event::position::format_lsn;
use lakeward_event::schema::TableKind;
use lakeward_event::{ChangeBatch, LogicalType, Op, TableSchema};
use lakeward_runtime::{Error, Result};
use serde_json::value::RawValue;

use crate::verify::{Printer, moment};

/// Where a record lies.
pub struct Place<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
}

fn string(text: &str, out: &mut Vec<u8>) {
    // Writing to a Vec does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// JSON text as part of a line.
fn raw(text: &str, out: &mut Vec<u8>) {
    match serde_json::from_str::<&RawValue>(text) {
        // Between its values JSON may have line breaks; within strings it has not.
        Ok(json) => out.extend(json.get().bytes().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { b })),
        Err(_) => string(text, out),
    }
}

fn value(ty: &LogicalType, array: &dyn Array, row: usize, out: &mut Vec<u8>) -> Result<()> {
    if array.is_null(row) {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    if let LogicalType::List(element) = ty {
        let items = array.as_list::<i32>().value(row);
        out.push(b'[');
        for item in 0..items.len() {
            if item > 0 {
                out.push(b',');
            }
            value(element, items.as_ref(), item, out)?;
        }
        out.push(b']');
        return Ok(());
    }
    let mut bytes = Vec::new();
    Printer::new(array)?.write(row, &mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    match ty {
        LogicalType::Bool => out.extend_from_slice(if text == "t" { b"true" } else { b"false" }),
        LogicalType::Int | LogicalType::Long => out.extend_from_slice(&bytes),
        LogicalType::Json => raw(&text, out),
        // NaN and infinities are no JSON.
        LogicalType::Float | LogicalType::Double if text.ends_with(|c: char| c.is_ascii_digit()) => {
            out.extend_from_slice(&bytes);
        }
        _ => string(&text, out),
    }
    Ok(())
}

/// A row of the change, seen by columns.
struct Change<'a> {
    schema: &'a TableSchema,
    batch: &'a ChangeBatch,
    row: usize,
    op: Op,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    After,
    Before,
}

impl<'a> Change<'a> {
    fn new(batch: &'a ChangeBatch, row: usize) -> Result<Self> {
        let op = batch.ops().get(row).copied().and_then(Op::from_u8);
        let op =
            op.ok_or_else(|| Error::human("a change has an unknown operation").with("table", &batch.table().table))?;
        Ok(Self { schema: batch.table(), batch, row, op })
    }

    /// The struct of a side, where the change has it.
    fn side(&self, side: Side) -> Option<&'a StructArray> {
        let rows = if side == Side::After { self.batch.after() } else { self.batch.before() };
        rows.is_valid(self.row).then_some(rows)
    }

    /// Whether the source left the column out of `after`.
    fn is_unchanged(&self, column: usize) -> bool {
        let bits = self.batch.unchanged();
        bits.is_valid(self.row)
            && bits.value(self.row).get(column / 8).is_some_and(|byte| byte & (1 << (column % 8)) != 0)
    }

    fn misfit(&self, side: Side, column: usize) -> Option<&'a str> {
        let letter = if side == Side::After { b'a' } else { b'b' };
        let misfits = self.batch.misfits();
        if misfits.is_empty() {
            return None;
        }
        misfits.of(self.row).find(|(of, at, _)| *of == letter && *at == column).map(|(_, _, text)| text)
    }

    /// The row with the key: `before` has it where there is no `after`.
    fn key_side(&self) -> Option<&'a StructArray> {
        self.side(Side::After).or_else(|| self.side(Side::Before))
    }

    fn position(&self) -> String {
        let position = self.batch.positions().get(self.row).copied().unwrap_or_default();
        match self.schema.kind {
            TableKind::Relational => format_lsn(position),
            TableKind::Documents => format!("{}.{}", position >> 32, position & 0xFFFF_FFFF),
        }
    }

    fn commit_time(&self) -> Option<String> {
        let at = self.batch.commit_ts();
        at.is_valid(self.row).then(|| moment(at.value(self.row)))
    }

    fn patch(&self) -> Option<&'a str> {
        let patch = self.batch.patch();
        patch.is_valid(self.row).then(|| patch.value(self.row))
    }

    fn value(&self, rows: &StructArray, column: usize, out: &mut Vec<u8>) -> Result<()> {
        let Some(of_schema) = self.schema.columns.get(column) else { return Ok(()) };
        value(&of_schema.ty, rows.column(column).as_ref(), self.row, out)
    }
}

impl Change<'_> {
    /// Appends the columns that `show` lets through, each begun by `begin` (name, whether it is the first) and its value.
    fn columns(
        &self,
        side: Side,
        rows: &StructArray,
        show: impl Fn(usize) -> bool,
        mut begin: impl FnMut(&str, bool, &mut Vec<u8>),
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let mut first = true;
        for (column, of_schema) in self.schema.columns.iter().enumerate() {
            // The source sends the old row whole, or its key alone: what is null there is mostly not known.
            let is_left_out =
                side == Side::Before && rows.column(column).is_null(self.row) && self.misfit(side, column).is_none();
            if is_left_out || !show(column) {
                continue;
            }
            begin(&of_schema.name, first, out);
            first = false;
            self.value(rows, column, out)?;
        }
        Ok(())
    }

    fn object(&self, side: Side, rows: &StructArray, show: impl Fn(usize) -> bool, out: &mut Vec<u8>) -> Result<()> {
        out.push(b'{');
        self.columns(side, rows, show, json_name, out)?;
        out.push(b'}');
        Ok(())
    }

    /// `"after": {column: text}` of values that their columns cannot hold.
    fn misfits(&self, side: Side, out: &mut Vec<u8>) {
        let mut first = true;
        out.push(b'{');
        for (column, of_schema) in self.schema.columns.iter().enumerate() {
            if let Some(text) = self.misfit(side, column) {
                json_name(&of_schema.name, first, out);
                string(text, out);
                first = false;
            }
        }
        out.push(b'}');
    }

    fn has_misfits(&self) -> bool {
        let misfits = self.batch.misfits();
        !misfits.is_empty() && misfits.of(self.row).next().is_some()
    }
}

fn json_name(name: &str, first: bool, out: &mut Vec<u8>) {
    if !first {
        out.push(b',');
    }
    string(name, out);
    out.push(b':');
}

fn text_name(name: &str, _first: bool, out: &mut Vec<u8>) {
    out.push(b' ');
    out.extend_from_slice(name.as_bytes());
    out.push(b'=');
}

/// The change as one JSON object and a line break.
pub fn json(batch: &ChangeBatch, row: usize, place: &Place<'_>, out: &mut Vec<u8>) -> Result<()> {
    let change = Change::new(batch, row)?;
    let _ = write!(out, "{{\"op\":\"{}\",\"key\":", char::from(change.op as u8));
    match change.key_side() {
        Some(rows) if !change.schema.key.is_empty() => {
            change.object(Side::After, rows, |column| change.schema.is_key(column), out)?;
        }
        _ => out.extend_from_slice(b"null"),
    }
    for (side, name) in [(Side::Before, "before"), (Side::After, "after")] {
        let _ = write!(out, ",\"{name}\":");
        match change.side(side) {
            Some(rows) => change.object(side, rows, |c| side == Side::Before || !change.is_unchanged(c), out)?,
            None => out.extend_from_slice(b"null"),
        }
    }
    let unchanged: Vec<&str> = (0..)
        .zip(&change.schema.columns)
        .filter(|(at, _)| change.is_unchanged(*at))
        .map(|(_, c)| c.name.as_str())
        .collect();
    if !unchanged.is_empty() {
        out.extend_from_slice(b",\"unchanged\":");
        let _ = serde_json::to_writer(&mut *out, &unchanged);
    }
    if let Some(patch) = change.patch() {
        out.extend_from_slice(b",\"patch\":");
        raw(patch, out);
    }
    if change.has_misfits() {
        out.extend_from_slice(b",\"misfits\":{\"before\":");
        change.misfits(Side::Before, out);
        out.extend_from_slice(b",\"after\":");
        change.misfits(Side::After, out);
        out.push(b'}');
    }
    let sequence = batch.sequences().get(row).copied().unwrap_or_default();
    let _ = write!(out, ",\"position\":\"{}\",\"sequence\":{sequence},\"tx\":", change.position());
    match batch.tx().is_valid(row).then(|| batch.tx().value(row)) {
        Some(tx) => drop(write!(out, "{tx}")),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"commit_time\":");
    match change.commit_time() {
        Some(at) => string(&at, out),
        None => out.extend_from_slice(b"null"),
    }
    place_json(place, out);
    Ok(())
}

fn place_json(place: &Place<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"topic\":");
    string(place.topic, out);
    let _ = writeln!(out, ",\"partition\":{},\"offset\":{}}}", place.partition, place.offset);
}

/// The change as a line for people: when, what, the key, the columns, what was before, where.
pub fn text(batch: &ChangeBatch, row: usize, place: &Place<'_>, out: &mut Vec<u8>) -> Result<()> {
    let change = Change::new(batch, row)?;
    let op = match change.op {
        Op::Create => "insert",
        Op::Update => "update",
        Op::Delete => "delete",
        Op::Truncate => "truncate",
        Op::Read => "snapshot",
    };
    let _ = write!(out, "{:<27} {op:<8}", change.commit_time().as_deref().unwrap_or("-"));
    let is_key = |column| change.schema.is_key(column);
    if let Some(rows) = change.key_side() {
        change.columns(Side::After, rows, is_key, text_name, out)?;
    }
    if let Some(rows) = change.side(Side::After) {
        let shown = |column| {
            // A document that is known by its patch alone.
            let is_patched = change.patch().is_some() && rows.column(column).is_null(row);
            !is_key(column)
                && !is_patched
                && !change.is_unchanged(column)
                && change.misfit(Side::After, column).is_none()
        };
        change.columns(Side::After, rows, shown, text_name, out)?;
        for (column, of_schema) in change.schema.columns.iter().enumerate() {
            if change.is_unchanged(column) {
                let _ = write!(out, " {}=(unchanged)", of_schema.name);
            } else if let Some(text) = change.misfit(Side::After, column) {
                let _ = write!(out, " {}=(does not fit: {text})", of_schema.name);
            }
        }
    }
    if let Some(patch) = change.patch() {
        out.extend_from_slice(b" patch=");
        raw(patch, out);
    }
    if let Some(rows) = change.side(Side::Before) {
        let mut before = Vec::new();
        let is_known = change.op == Op::Delete;
        change.columns(Side::Before, rows, |column| !(is_known && is_key(column)), text_name, &mut before)?;
        if !before.is_empty() {
            out.extend_from_slice(b" (was");
            out.extend_from_slice(&before);
            out.push(b')');
        }
    }
    let _ = writeln!(out, "  [{} {}@{}]", change.position(), place.partition, place.offset);
    Ok(())
}

/// A record that is none of ours, or damaged.
pub fn bad_record_text(place: &Place<'_>, error: &lakeward_event::Error, out: &mut Vec<u8>) {
    let _ = writeln!(out, "cannot be decoded: {error}  [{}@{}]", place.partition, place.offset);
}

/// The same as JSON.
pub fn bad_record_json(place: &Place<'_>, error: &lakeward_event::Error, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"error\":");
    string(&error.to_string(), out);
    place_json(place, out);
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
