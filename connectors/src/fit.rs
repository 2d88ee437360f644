//! Rows above the largest record of the log: `ChangeBatch -> ChangeBatch` whose rows all fit, before they are encoded.
//!
//! A value that makes its row too large becomes a misfit, like one that its column's type cannot hold: it is NULL in the lake, and a
//! dead letter says which value it was and how it begins. The rest of the row, and of the table, goes on.

use arrow::array::{Array, AsArray};
use arrow::compute::concat_batches;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lakeward_event::codec::{Encoder, MAX_RECORD_BYTES, RecordBlock};
use lakeward_event::schema::TableKind;
use lakeward_event::{ChangeBatch, Error, Result};

/// What a record may have, with room for what the log adds.
const LIMIT: usize = MAX_RECORD_BYTES - (64 << 10);
/// No codec makes more of a byte: JSON writes a control character as six.
const EXPANSION: usize = 8;
/// Bytes of the value that its dead letter shows.
const SHOWN: usize = 1 << 10;

/// The batch, without the values that make records too large. Errors: [`Error::Unsupported`] for a row that is too large by its
/// key, or by what cannot be left out.
pub(crate) fn fit(batch: ChangeBatch, encoder: &mut dyn Encoder) -> Result<ChangeBatch> {
    fit_to(batch, encoder, LIMIT)
}

fn fit_to(batch: ChangeBatch, encoder: &mut dyn Encoder, limit: usize) -> Result<ChangeBatch> {
    // No row is wider than the widest value of each column together: a look at offsets, for batches of any size.
    if widest(&batch) <= limit / EXPANSION {
        return Ok(batch);
    }
    let mut parts: Vec<ChangeBatch> = Vec::new();
    let mut kept = 0;
    for row in 0..batch.num_rows() {
        let one = batch.slice(row, 1);
        if bytes(&one)? <= limit / EXPANSION {
            continue;
        }
        let fitted = fit_row(one.clone(), encoder, limit)?;
        if fitted.misfits().of(0).count() > one.misfits().of(0).count() {
            parts.push(batch.slice(kept, row - kept));
            parts.push(fitted);
            kept = row + 1;
        }
    }
    if parts.is_empty() {
        return Ok(batch);
    }
    parts.push(batch.slice(kept, batch.num_rows() - kept));
    let whole = concat_batches(&batch.record_batch().schema(), parts.iter().map(ChangeBatch::record_batch))?;
    ChangeBatch::from_record_batch(batch.table().clone(), whole)
}

/// Bytes that no row of the batch exceeds.
fn widest(batch: &ChangeBatch) -> usize {
    batch.record_batch().columns().iter().map(|column| widest_value(column.as_ref())).sum()
}

/// Bytes of a column's largest value, at least.
fn widest_value(column: &dyn Array) -> usize {
    let largest = |offsets: &[i32]| offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0) as usize;
    match column.data_type() {
        DataType::Utf8 => largest(column.as_string::<i32>().value_offsets()),
        DataType::Binary => largest(column.as_binary::<i32>().value_offsets()),
        DataType::Struct(_) => column.as_struct().columns().iter().map(|column| widest_value(column.as_ref())).sum(),
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            largest(list.value_offsets()) * widest_value(list.values().as_ref())
        }
        fixed => fixed.primitive_width().unwrap_or(size_of::<i128>()),
    }
}

/// Leaves out the largest values of a row until it fits.
fn fit_row(mut one: ChangeBatch, encoder: &mut dyn Encoder, limit: usize) -> Result<ChangeBatch> {
    let mut block = RecordBlock::default();
    loop {
        block.clear();
        let encoded = match encoder.encode(&one, 1, &mut block) {
            Ok(()) => block.bytes(),
            // The codec's own word for a row that is too large.
            Err(Error::Unsupported(_)) => usize::MAX,
            Err(error) => return Err(error),
        };
        if encoded <= limit {
            return Ok(one);
        }
        let Some((side, column, size)) = largest(&one)? else {
            return Err(Error::Unsupported(format!(
                "a row of {} is larger than a record of the log ({MAX_RECORD_BYTES} bytes) by values that cannot be left out: exclude the table",
                one.table().table
            )));
        };
        let text =
            format!("({size} bytes; its row is larger than a record of the log) {}", beginning(&one, side, column)?);
        one = one.without_value(side, column, &text)?;
    }
}

fn bytes(one: &ChangeBatch) -> Result<usize> {
    one.record_batch().columns().iter().try_fold(0, |sum, column| Ok(sum + column.to_data().get_slice_memory_size()?))
}

/// The largest value of a one-row batch that can be left out: side, column, bytes. Old rows go first, the lake has them.
fn largest(one: &ChangeBatch) -> Result<Option<(u8, usize, usize)>> {
    if one.table().kind == TableKind::Documents {
        return Ok(None);
    }
    for (side, rows) in [(b'b', one.before()), (b'a', one.after())] {
        let mut found: Option<(u8, usize, usize)> = None;
        for (column, values) in rows.columns().iter().enumerate() {
            if rows.is_null(0) || values.is_null(0) || one.table().key.contains(&column) {
                continue;
            }
            let size = match values.data_type() {
                DataType::Utf8 => values.as_string::<i32>().value(0).len(),
                DataType::Binary => values.as_binary::<i32>().value(0).len(),
                _ => values.to_data().get_slice_memory_size()?,
            };
            // What is small is not what makes the row large.
            if size > SHOWN && found.is_none_or(|(_, _, largest)| size > largest) {
                found = Some((side, column, size));
            }
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// How a value begins, as text.
fn beginning(one: &ChangeBatch, side: u8, column: usize) -> Result<String> {
    let rows = if side == b'b' { one.before() } else { one.after() };
    let options = FormatOptions::new();
    let mut text = ArrayFormatter::try_new(rows.column(column), &options)?.value(0).try_to_string()?;
    let mut end = SHOWN.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, StringArray, StructArray};
    use arrow::buffer::NullBuffer;
    use lakeward_event::batch::MetaRow;
    use lakeward_event::codec::json::JsonEncoder;
    use lakeward_event::{ChangeMeta, Column, LogicalType, Op, TableId, TableSchema};

    use super::*;

    const LIMIT: usize = 20_000;

    /// Updates of `id, small, large`, each with its old row.
    fn batch(rows: &[(&str, &str, Option<&str>)]) -> ChangeBatch {
        let columns = [("id", LogicalType::Int), ("small", LogicalType::String), ("large", LogicalType::String)];
        let columns = columns.into_iter().enumerate().map(|(i, (name, ty))| Column {
            id: i as i32 + 1,
            name: name.into(),
            ty,
            source_type: String::new(),
            nullable: true,
        });
        let schema = Arc::new(TableSchema {
            table: TableId::new("s", "public", "t"),
            kind: TableKind::Relational,
            version: 1,
            columns: columns.collect(),
            key: vec![0],
        });
        let mut meta = ChangeMeta::default();
        for n in 0..rows.len() as u64 {
            let (unchanged, patch) = (None, None);
            meta.push(MetaRow {
                op: Op::Update,
                sequence: n,
                position: n,
                tx: None,
                commit_ts: None,
                unchanged,
                patch,
            });
        }
        let side = |small: Vec<Option<&str>>, large: Vec<Option<&str>>, valid: Vec<bool>| {
            let ids: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows.len() as i32));
            let columns = vec![ids, Arc::new(StringArray::from(small)) as ArrayRef, Arc::new(StringArray::from(large))];
            StructArray::try_new(schema.arrow_fields(), columns, Some(NullBuffer::from(valid))).unwrap()
        };
        let after = side(
            rows.iter().map(|r| Some(r.0)).collect(),
            rows.iter().map(|r| Some(r.1)).collect(),
            vec![true; rows.len()],
        );
        let before = side(
            vec![None; rows.len()],
            rows.iter().map(|r| r.2).collect(),
            rows.iter().map(|r| r.2.is_some()).collect(),
        );
        ChangeBatch::try_new(schema.clone(), meta.finish().unwrap(), after, before).unwrap()
    }

    fn large_of(rows: &StructArray) -> Vec<Option<&str>> {
        rows.column(2).as_string::<i32>().iter().collect()
    }

    #[test]
    fn only_what_is_too_large_is_left_out() {
        let (large, half) = ("x".repeat(30_000), "y".repeat(11_000));
        let rows =
            [("a", half.as_str(), None), ("b", &large, None), ("c", &half, Some(half.as_str())), ("d", "", None)];
        let fitted = fit_to(batch(&rows), &mut JsonEncoder::default(), LIMIT).unwrap();
        assert_eq!(large_of(fitted.after()), [Some(half.as_str()), None, Some(half.as_str()), Some("")]);
        // The old row is what the lake has anyway.
        assert_eq!(large_of(fitted.before())[2], None);
        assert_eq!(fitted.sequences(), [0, 1, 2, 3]);
        let misfits: Vec<_> = fitted.misfits().of(1).collect();
        assert_eq!((misfits.len(), misfits[0].0, misfits[0].1), (1, b'a', 2));
        assert!(
            misfits[0].2.starts_with("(30000 bytes") && misfits[0].2.ends_with("xxx") && misfits[0].2.len() < 1_200
        );
        assert_eq!(fitted.misfits().of(2).map(|(side, ..)| side).collect::<Vec<_>>(), [b'b']);
        assert_eq!(fitted.misfits().of(0).count() + fitted.misfits().of(3).count(), 0);
    }

    #[test]
    fn batches_of_small_rows_are_not_looked_at_row_by_row() {
        let batch = batch(&vec![("a", "some text", Some("c")); 100_000]);
        assert!(batch.record_batch().get_array_memory_size() > 100 * LIMIT);
        assert!(widest(&batch) < 200, "{}", widest(&batch));
        let fitted = fit_to(batch.clone(), &mut JsonEncoder::default(), LIMIT).unwrap();
        assert_eq!(fitted.record_batch(), batch.record_batch());
    }
}
