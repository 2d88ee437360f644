//! COPY BINARY to rows: `CopyData bytes -> CopyDecoder -> TableBuilder`.
//!
//! Form: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>: a header, then per row a count of fields and
//! each field's length and bytes, then a count of -1.

use lakeward_event::{Error, Result};

use super::tuple::{RowMeta, TableBuilder};

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xFF\r\n\0";
/// Signature, flags, length of the header's extension.
const HEADER: usize = 19;

/// Decodes one `COPY (SELECT {snapshot_select} FROM …) TO STDOUT (FORMAT binary)`.
#[derive(Default)]
pub struct CopyDecoder {
    state: State,
    /// The beginning of something whose end has not come yet.
    carry: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Header,
    Rows,
    /// The trailer has come.
    Ended,
}

/// What lies at the beginning of some bytes.
enum Part<'a> {
    Header(usize),
    Row(&'a [u8]),
    Trailer,
    /// Not whole yet.
    Open,
}

impl CopyDecoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the stream's next bytes, cut anywhere, and adds every row that is whole as `Op::Read`: the first with
    /// `meta.sequence`, each further one with one more. Answers how many.
    pub fn feed(&mut self, chunk: &[u8], builder: &mut TableBuilder, meta: RowMeta) -> Result<u64> {
        if self.carry.is_empty() {
            let (rows, used) = self.decode(chunk, builder, meta)?;
            self.carry.extend_from_slice(&chunk[used..]);
            return Ok(rows);
        }
        let mut bytes = std::mem::take(&mut self.carry);
        bytes.extend_from_slice(chunk);
        let (rows, used) = self.decode(&bytes, builder, meta)?;
        bytes.drain(..used);
        self.carry = bytes;
        Ok(rows)
    }

    /// The stream has ended: an error unless the trailer has come.
    pub fn finish(self) -> Result<()> {
        match self.state {
            State::Ended if self.carry.is_empty() => Ok(()),
            _ => Err(malformed("it breaks off")),
        }
    }

    /// Rows added, and bytes they took.
    fn decode(&mut self, bytes: &[u8], builder: &mut TableBuilder, meta: RowMeta) -> Result<(u64, usize)> {
        let (mut rows, mut used) = (0, 0);
        let columns = builder.schema().columns.len();
        loop {
            let rest = &bytes[used..];
            used += match self.next(rest, columns)? {
                Part::Header(length) => {
                    self.state = State::Rows;
                    length
                }
                Part::Row(fields) => {
                    builder.read(fields, RowMeta { sequence: meta.sequence + rows, ..meta })?;
                    rows += 1;
                    fields.len() + 2
                }
                Part::Trailer => {
                    self.state = State::Ended;
                    2
                }
                Part::Open => return Ok((rows, used)),
            };
        }
    }

    fn next<'a>(&self, bytes: &'a [u8], columns: usize) -> Result<Part<'a>> {
        match self.state {
            State::Header => {
                let Some(head) = bytes.first_chunk::<HEADER>() else { return Ok(Part::Open) };
                if !head.starts_with(SIGNATURE) || head[11..15] != [0; 4] {
                    return Err(malformed("it does not begin with a header that is known"));
                }
                let extension = u32::from_be_bytes([head[15], head[16], head[17], head[18]]) as usize;
                let length = HEADER + extension;
                Ok(if bytes.len() < length { Part::Open } else { Part::Header(length) })
            }
            State::Rows => {
                let Some((count, fields)) = bytes.split_first_chunk() else { return Ok(Part::Open) };
                match i16::from_be_bytes(*count) {
                    -1 => Ok(Part::Trailer),
                    count if usize::try_from(count) == Ok(columns) => {
                        let row = row_length(fields, columns)?;
                        Ok(row.and_then(|length| fields.get(..length)).map_or(Part::Open, Part::Row))
                    }
                    count => Err(malformed(&format!("a row of {count} fields for {columns} columns"))),
                }
            }
            State::Ended if bytes.is_empty() => Ok(Part::Open),
            State::Ended => Err(malformed("bytes behind the trailer")),
        }
    }
}

/// How long `columns` fields are; `None` where the bytes end before the last one's length.
fn row_length(fields: &[u8], columns: usize) -> Result<Option<usize>> {
    let mut at = 0usize;
    for _ in 0..columns {
        let Some(length) = fields.get(at..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
        let length = i32::from_be_bytes(*length);
        if length < -1 {
            return Err(malformed(&format!("a field of {length} bytes")));
        }
        at += 4 + usize::try_from(length).unwrap_or(0);
    }
    Ok(Some(at))
}

#[cold]
fn malformed(reason: &str) -> Error {
    Error::malformed("COPY stream", reason)
}

#[cfg(test)]
#[path = "copy/tests.rs"]
mod tests;
