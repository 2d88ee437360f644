//! COPY in text format, taken apart: `CopyData bytes -> lines -> fields as the server's output functions print them`.
//!
//! Grammar: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2>

/// Lines out of chunks of bytes; the server sends a line per message, and does not promise to.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Hands every whole line (without its end) to `each`.
    pub fn push<E>(&mut self, chunk: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.partial.is_empty() {
                each(line)?;
            } else {
                self.partial.extend_from_slice(line);
                each(&self.partial)?;
                self.partial.clear();
            }
            rest = after;
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Nothing is left of a line that did not end.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }
}

/// The fields of a line, still escaped.
pub fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    // A tab inside a value is written as \t.
    line.split(|b| *b == b'\t')
}

/// One field's text into `out`; false: NULL.
pub fn unescape(field: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    if field == b"\\N" {
        return false;
    }
    let mut rest = field;
    while let Some(at) = rest.iter().position(|b| *b == b'\\') {
        out.extend_from_slice(&rest[..at]);
        let Some(escaped) = rest.get(at + 1) else {
            rest = &[];
            break;
        };
        out.push(match escaped {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            other => *other,
        });
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_from_any_chunks() {
        let mut lines = Lines::default();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for chunk in [&b"a\tb\nc"[..], b"d", b"\n\nlast"] {
            lines
                .push(chunk, |line| {
                    seen.push(line.to_vec());
                    Ok::<(), ()>(())
                })
                .unwrap();
        }
        assert_eq!(seen, [b"a\tb".to_vec(), b"cd".to_vec(), b"".to_vec()]);
        assert!(!lines.is_empty());
    }

    #[test]
    fn escapes_are_undone_and_null_is_no_text() {
        let mut out = Vec::new();
        assert!(unescape(br"a\tb\\N\nc", &mut out));
        assert_eq!(out, b"a\tb\\N\nc");
        assert!(!unescape(br"\N", &mut out));
        assert!(unescape(b"", &mut out) && out.is_empty());
        assert!(unescape(br"\\x00ff", &mut out));
        assert_eq!(out, b"\\x00ff");
        assert_eq!(fields(b"1\t\\N\t").count(), 3);
    }
}
