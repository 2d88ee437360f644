//! A reader of JSON text that knows nothing of types: `bytes of a record -> Scanner -> columns`. It allocates nothing, and
//! never panics on what comes from outside.

use std::borrow::Cow;

use super::text::is_special;

/// Why a text cannot be read, and where.
#[derive(Debug, Clone)]
pub(crate) struct Bad {
    pub reason: Cow<'static, str>,
    /// Byte of the record's value.
    pub at: usize,
}

pub(crate) type Parsed<T> = Result<T, Bad>;

/// Deeper values than this are refused: a patch is as deep as MongoDB allows (100 levels) and a little.
const MAX_DEPTH: usize = 256;

pub(crate) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

/// A JSON string as it stands between its quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raw<'a> {
    pub bytes: &'a [u8],
    pub escaped: bool,
    pub at: usize,
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    pub fn bad<T>(&self, reason: impl Into<Cow<'static, str>>) -> Parsed<T> {
        Err(Bad { reason: reason.into(), at: self.at })
    }

    /// Byte of the text that is read next.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The whole text.
    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    /// Goes back to where [`at`](Self::at) was.
    pub fn rewind(&mut self, at: usize) {
        self.at = at.min(self.text.len());
    }

    /// The next byte that is not white space.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    #[inline]
    pub fn expect(&mut self, byte: u8) -> Parsed<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        self.bad(format!("expected `{}`", byte as char))
    }

    /// Moves past `byte` if it is next.
    #[inline]
    pub fn take(&mut self, byte: u8) -> bool {
        let next = self.peek() == Some(byte);
        self.at += usize::from(next);
        next
    }

    /// Moves past exactly these bytes if they are next.
    #[inline]
    pub fn take_exactly(&mut self, bytes: &[u8]) -> bool {
        let next = self.text[self.at..].starts_with(bytes);
        if next {
            self.at += bytes.len();
        }
        next
    }

    /// Moves past `null` if it is next.
    #[inline]
    pub fn take_null(&mut self) -> bool {
        self.peek() == Some(b'n') && self.take_exactly(b"null")
    }

    pub fn end(&mut self) -> Parsed<()> {
        if self.peek().is_some() { self.bad("bytes after the end") } else { Ok(()) }
    }

    /// A string; control characters in it are refused, escapes are left as they are.
    #[inline]
    pub fn string(&mut self) -> Parsed<Raw<'a>> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            let Some(run) = self.text[self.at..].iter().position(|b| is_special(*b)) else {
                return self.bad("string without an end");
            };
            self.at += run;
            match self.text[self.at] {
                b'"' => {
                    let bytes = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(Raw { bytes, escaped, at: start });
                }
                b'\\' => {
                    escaped = true;
                    if self.at + 1 >= self.text.len() {
                        return self.bad("string without an end");
                    }
                    self.at += 2;
                }
                _ => return self.bad("control character in a string"),
            }
        }
    }

    /// The bytes of a number, true, false or null.
    #[inline]
    pub fn word(&mut self) -> &'a [u8] {
        self.peek();
        let rest = &self.text[self.at..];
        let length = rest
            .iter()
            .position(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'-' | b'+'))
            .unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// Moves past any value, returning its bytes.
    pub fn value(&mut self) -> Parsed<&'a [u8]> {
        self.peek();
        let start = self.at;
        self.skip(0)?;
        Ok(&self.text[start..self.at])
    }

    fn skip(&mut self, depth: usize) -> Parsed<()> {
        if depth > MAX_DEPTH {
            return self.bad("nested too deeply");
        }
        match self.peek() {
            Some(b'"') => {
                let raw = self.string()?;
                check_escapes(raw)
            }
            Some(b'{') => {
                self.at += 1;
                if self.take(b'}') {
                    return Ok(());
                }
                loop {
                    let name = self.string()?;
                    check_escapes(name)?;
                    self.expect(b':')?;
                    self.skip(depth + 1)?;
                    if !self.take(b',') {
                        return self.expect(b'}');
                    }
                }
            }
            Some(b'[') => {
                self.at += 1;
                if self.take(b']') {
                    return Ok(());
                }
                loop {
                    self.skip(depth + 1)?;
                    if !self.take(b',') {
                        return self.expect(b']');
                    }
                }
            }
            _ => {
                let at = self.at;
                let word = self.word();
                if matches!(word, b"true" | b"false" | b"null") || is_number(word) {
                    return Ok(());
                }
                Err(Bad { reason: "not a value".into(), at })
            }
        }
    }
}

/// JSON's grammar of numbers, which Rust's is wider than (`+1`, `.5`, `inf`).
pub(crate) fn is_number(word: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
    let rest = word.strip_prefix(b"-").unwrap_or(word);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return false;
    }
    let mut rest = &rest[whole..];
    if let Some(after) = rest.strip_prefix(b".") {
        let count = digits(after);
        if count == 0 {
            return false;
        }
        rest = &after[count..];
    }
    if let [b'e' | b'E', after @ ..] = rest {
        let after = match after {
            [b'+' | b'-', after @ ..] => after,
            _ => after,
        };
        let count = digits(after);
        return count > 0 && count == after.len();
    }
    rest.is_empty()
}

fn check_escapes(raw: Raw<'_>) -> Parsed<()> {
    if raw.escaped { unescape(raw, &mut |_| {}) } else { Ok(()) }
}

/// Appends the string's characters to `out`.
pub(crate) fn append_unescaped(raw: Raw<'_>, out: &mut Vec<u8>) -> Parsed<()> {
    if !raw.escaped {
        out.extend_from_slice(raw.bytes);
        return Ok(());
    }
    unescape(raw, &mut |run| out.extend_from_slice(run))
}

fn unescape(raw: Raw<'_>, out: &mut dyn FnMut(&[u8])) -> Parsed<()> {
    let mut rest = raw.bytes;
    while let Some(run) = rest.iter().position(|b| *b == b'\\') {
        out(&rest[..run]);
        let bad = Bad { reason: "unknown escape in a string".into(), at: raw.at };
        let Some(letter) = rest.get(run + 1) else { return Err(bad) };
        let mut used = run + 2;
        let plain = match letter {
            b'"' | b'\\' | b'/' => *letter,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let Some(unit) = hex4(rest.get(used..used + 4)) else { return Err(bad) };
                used += 4;
                let mut code = u32::from(unit);
                if (0xD800..0xDC00).contains(&unit) {
                    let low = match rest.get(used..used + 2) {
                        Some(b"\\u") => hex4(rest.get(used + 2..used + 6)),
                        _ => None,
                    };
                    let Some(low @ 0xDC00..=0xDFFF) = low else { return Err(bad) };
                    used += 6;
                    code = 0x1_0000 + ((code - 0xD800) << 10) + u32::from(low - 0xDC00);
                }
                let Some(character) = char::from_u32(code) else { return Err(bad) };
                out(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[used..];
                continue;
            }
            _ => return Err(bad),
        };
        out(&[plain]);
        rest = &rest[used..];
    }
    out(rest);
    Ok(())
}

fn hex4(digits: Option<&[u8]>) -> Option<u16> {
    digits?.iter().try_fold(0u16, |value, byte| Some(value << 4 | (*byte as char).to_digit(16)? as u16))
}
