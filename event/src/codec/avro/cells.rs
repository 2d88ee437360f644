//! Cells of a batch in Avro's binary form: `column -> bytes of one cell`. Every column is a union of null and its type.

use uuid::Uuid;

use super::wire::{write_bytes, write_decimal, write_long};
use crate::codec::json::cells::{Cells, Values};

/// The branch of a union that is null.
pub const NULL: u8 = 0;
/// The branch of a union that is the other type: 1, as a zigzag number.
pub const PRESENT: u8 = 2;

/// Appends the cell.
#[inline]
pub fn write(cells: &Cells<'_>, row: usize, out: &mut Vec<u8>) {
    if cells.is_null(row) {
        out.push(NULL);
        return;
    }
    out.push(PRESENT);
    match &cells.values {
        Values::Bool(array) => out.push(array.value(row).into()),
        Values::I32(values) => write_long(out, values[row].into()),
        Values::I64(values) | Values::TimestampTz(values) => write_long(out, values[row]),
        Values::Float(values) => out.extend_from_slice(&values[row].to_le_bytes()),
        Values::Double(values) => out.extend_from_slice(&values[row].to_le_bytes()),
        Values::Decimal(values, _) => write_decimal(out, values[row]),
        Values::Text(array) => write_bytes(out, array.value(row).as_bytes()),
        Values::Uuid(array) => {
            let uuid = Uuid::from_slice(array.value(row)).unwrap_or_default();
            write_bytes(out, uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
        }
        Values::Binary(array) => write_bytes(out, array.value(row)),
        Values::List(offsets, elements) => {
            let range = offsets[row] as usize..offsets[row + 1] as usize;
            if !range.is_empty() {
                write_long(out, range.len() as i64);
                range.for_each(|element| write(elements, element, out));
            }
            // No more blocks.
            out.push(0);
        }
    }
}
