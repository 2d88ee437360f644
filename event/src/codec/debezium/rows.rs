//! Rows of a record into columns: `text of a row or a key -> Rows`, the way there by a layout or by what was observed.

use std::sync::Arc;

use super::documents::{self, Dialect};
use super::form::{Declaration, Form};
use super::table::{Table, Target};
use super::value::{self, Placeholder, Scratch, all_fields};
use crate::codec::json::columns::{Column, Rows};
use crate::codec::json::scan::{Bad, Parsed, Raw, Scanner, append_unescaped};
use crate::schema::TableSchema;

/// An inlined schema that was read.
pub(super) struct Layout {
    pub text: Vec<u8>,
    pub declaration: Declaration,
    /// By field, for the table's schema `resolved`.
    pub targets: Vec<Target>,
    pub resolved: Option<Arc<TableSchema>>,
}

#[derive(Default)]
pub(super) struct RowScratch {
    pub targets: Vec<Target>,
    pub unchanged: Vec<u8>,
    pub name: Vec<u8>,
    /// Column and text.
    pub misfits: Vec<(usize, String)>,
}

/// Whether the key's names are those of the table's key.
pub(super) fn has_key(table: &Table, payload: &[u8], plain: &mut Vec<u8>) -> Parsed<bool> {
    let (mut place, mut same) = (0, true);
    all_fields(payload, |name, scanner| {
        plain.clear();
        append_unescaped(Raw { bytes: name, escaped: name.contains(&b'\\'), at: 0 }, plain)?;
        same &= table.key_name(place) == Some(plain.as_slice());
        place += 1;
        scanner.value().map(drop)
    })?;
    Ok(same && table.key_name(place).is_none())
}

/// Appends a row that has the key's columns only.
pub(super) fn key_row(
    rows: &mut Rows,
    table: &Table,
    declaration: Option<&Declaration>,
    payload: &[u8],
    scratch: &mut Scratch,
    plain: &mut Vec<u8>,
) -> Parsed<()> {
    let columns = rows.start_row();
    let before = columns.first().map_or(0, Column::len);
    all_fields(payload, |name, scanner| {
        plain.clear();
        append_unescaped(Raw { bytes: name, escaped: name.contains(&b'\\'), at: 0 }, plain)?;
        let column = table.column(plain).filter(|column| columns.get(*column).is_some_and(|c| c.len() == before));
        let Some(column) = column else {
            return scanner.bad(format!("the key has {}, which the table has not", String::from_utf8_lossy(plain)));
        };
        let field = declaration.and_then(|d| d.fields.iter().find(|f| f.name.as_bytes() == plain.as_slice()));
        let form = field.map_or(&Form::Plain, |field| &field.declared.form);
        if !value::append(form, &mut columns[column], scanner, scratch)? {
            return scanner.bad(format!("the key's {} is not of its column's type", String::from_utf8_lossy(plain)));
        }
        Ok(())
    })?;
    for column in columns.iter_mut().filter(|column| column.len() == before) {
        column.append_null();
    }
    rows.end_row();
    Ok(())
}

/// Appends a whole row; what it has not is null. With a placeholder: true if it stood somewhere, `unchanged` then says where.
pub(super) fn fill(
    rows: &mut Rows,
    row: &[u8],
    layout: Option<&Layout>,
    placeholder: Option<&Placeholder>,
    own: &mut RowScratch,
    scratch: &mut Scratch,
) -> Parsed<bool> {
    let columns = rows.start_row();
    let before = columns.first().map_or(0, Column::len);
    own.unchanged.clear();
    let mut left_out = false;
    let mut scanner = Scanner::new(row);
    scanner.expect(b'{')?;
    let mut next = 0;
    while scanner.peek() != Some(b'}') {
        let (target, form) = match layout {
            Some(layout) => {
                let declared = &layout.declaration.fields;
                let field = match declared.get(next) {
                    Some(field) if scanner.take_exactly(&field.json_name) => Some(next),
                    _ => {
                        own.name.clear();
                        append_unescaped(scanner.string()?, &mut own.name)?;
                        scanner.expect(b':')?;
                        declared.iter().position(|field| field.name.as_bytes() == own.name.as_slice())
                    }
                };
                let target = field.and_then(|field| Some((field, *layout.targets.get(field)?, declared.get(field)?)));
                let Some((field, target, declared)) = target else {
                    return scanner.bad("a field that the inlined schema has not");
                };
                next = field + 1;
                (target, &declared.declared.form)
            }
            None => {
                scanner.string()?;
                scanner.expect(b':')?;
                let Some(target) = own.targets.get(next) else { return scanner.bad("a field too many") };
                next += 1;
                (*target, &Form::Plain)
            }
        };
        let start = scanner.at();
        let index = match target {
            Target::Column(index) | Target::Misfit(index) => index,
            Target::Skip => usize::MAX,
        };
        match columns.get_mut(index) {
            None => drop(scanner.value()?),
            Some(column) if column.len() != before => return scanner.bad("a field twice"),
            Some(column) if placeholder.is_some_and(|placeholder| placeholder.take(&mut scanner)) => {
                column.append_null();
                left_out = true;
                if own.unchanged.len() <= index / 8 {
                    own.unchanged.resize(index / 8 + 1, 0);
                }
                own.unchanged[index / 8] |= 1 << (index % 8);
            }
            Some(column) => {
                let fits = matches!(target, Target::Column(_))
                    && value::append(form, column, &mut scanner, scratch).is_ok_and(|fits| fits);
                if !fits {
                    scanner.rewind(start);
                    column.truncate(before);
                    column.append_null();
                    let raw = scanner.value()?;
                    if raw != b"null" {
                        own.misfits.push((index, shown(raw)));
                    }
                }
            }
        }
        if !scanner.take(b',') {
            break;
        }
    }
    scanner.expect(b'}')?;
    scanner.end()?;
    for column in columns.iter_mut().filter(|column| column.len() == before) {
        column.append_null();
    }
    rows.end_row();
    Ok(left_out)
}

/// A value for people: text without its quotes.
fn shown(raw: &[u8]) -> String {
    let mut text = Vec::new();
    let unquoted =
        raw.starts_with(b"\"") && Scanner::new(raw).string().and_then(|raw| append_unescaped(raw, &mut text)).is_ok();
    String::from_utf8_lossy(if unquoted { &text } else { raw }).into_owned()
}

/// Appends `_id` and, where `write` does it, `_doc`.
pub(super) fn document_row(rows: &mut Rows, id: &str, write: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> Parsed<()> {
    let [id_column, doc_column] = rows.start_row() else {
        return Err(Bad { reason: "not the columns of a collection".into(), at: 0 });
    };
    id_column.append_text(Raw { bytes: id.as_bytes(), escaped: false, at: 0 })?;
    if !doc_column.append_with(write) {
        doc_column.append_null();
    }
    rows.end_row();
    Ok(())
}

/// A row as a document, without what the transform added.
pub(super) fn unwrapped_document(row: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
    let mut first = true;
    out.push(b'{');
    all_fields(row, |name, scanner| {
        let raw = scanner.value()?;
        if name.starts_with(b"__") {
            return Ok(());
        }
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(name);
        out.extend_from_slice(b"\":");
        documents::canonical(raw, Dialect::Plain, out)
    })?;
    out.push(b'}');
    Ok(())
}
