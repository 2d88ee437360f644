//! Array text to elements: `{1,NULL,"a \"b\""}` and, for pgvector, `[1,2,3]`.
//!
//! Grammar: <https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO>

/// How an array's text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Punctuation {
    pub open: u8,
    pub close: u8,
    pub delimiter: u8,
}

impl Punctuation {
    /// An array of a type whose `pg_type.typdelim` is `delimiter` (`,` for all but box).
    pub fn array(delimiter: u8) -> Self {
        Self { open: b'{', close: b'}', delimiter }
    }
    /// pgvector's `vector`.
    pub const VECTOR: Self = Self { open: b'[', close: b']', delimiter: b',' };
}

/// Hands each element of a one-dimensional array that begins at 1 to `each`, null as `None`; `scratch` holds elements that had to
/// be unescaped. Answers false, maybe after some elements, where the text is anything else or `each` answers false.
pub fn elements(
    text: &[u8],
    marks: Punctuation,
    scratch: &mut Vec<u8>,
    mut each: impl FnMut(Option<&[u8]>) -> bool,
) -> bool {
    let Some(mut rest) = text.strip_prefix(&[marks.open]) else { return false };
    if rest == [marks.close] {
        return true;
    }
    loop {
        let held = match rest.split_first() {
            Some((b'"', quoted)) => {
                let Some(after) = unquote(quoted, scratch) else { return false };
                rest = after;
                each(Some(scratch))
            }
            // An array inside the array; a dimension that begins elsewhere than at 1 fails at the first byte.
            Some((first, _)) if *first == marks.open => return false,
            _ => {
                let ends = |b: &u8| *b == marks.delimiter || *b == marks.close;
                let Some(length) = rest.iter().position(ends) else { return false };
                let (element, after) = rest.split_at(length);
                rest = after;
                match element {
                    b"" => false,
                    b"NULL" => each(None),
                    element if element.contains(&b'\\') => {
                        scratch.clear();
                        scratch.extend(element.iter().filter(|b| **b != b'\\'));
                        each(Some(scratch))
                    }
                    element => each(Some(element)),
                }
            }
        };
        if !held {
            return false;
        }
        match rest.split_first() {
            Some((mark, after)) if *mark == marks.delimiter => rest = after,
            Some((mark, [])) if *mark == marks.close => return true,
            _ => return false,
        }
    }
}

/// Reads up to the closing quote into `scratch`; the text behind it.
fn unquote<'a>(mut rest: &'a [u8], scratch: &mut Vec<u8>) -> Option<&'a [u8]> {
    scratch.clear();
    loop {
        let length = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
        scratch.extend_from_slice(&rest[..length]);
        match &rest[length..] {
            [b'"', after @ ..] => return Some(after),
            [b'\\', escaped, after @ ..] => {
                scratch.push(*escaped);
                rest = after;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
        let mut all = Vec::new();
        elements(text, Punctuation::array(b','), &mut Vec::new(), |e| {
            all.push(e.map(<[u8]>::to_vec));
            true
        })
        .then_some(all)
    }

    fn some(text: &str) -> Option<Vec<u8>> {
        Some(text.as_bytes().to_vec())
    }

    #[test]
    fn reads_what_the_server_prints() {
        assert_eq!(read(b"{}"), Some(vec![]));
        assert_eq!(read(b"{1,NULL,-3}"), Some(vec![some("1"), None, some("-3")]));
        assert_eq!(
            read(br#"{"a,b","NULL","","q\"\\",plain}"#),
            Some(vec![some("a,b"), some("NULL"), some(""), some("q\"\\"), some("plain")])
        );
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in [
            "[0:1]={1,2}",
            "{{1,2},{3,4}}",
            "{1,2",
            "{1,,2}",
            "{1}x",
            "",
            "{",
            "{\"a}",
            "{\"a\\",
            "{\"a\"b}",
            "{{}}",
            "{,}",
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_vector_has_brackets() {
        let mut sum = 0.0;
        assert!(elements(b"[1,2.5,-3]", Punctuation::VECTOR, &mut Vec::new(), |e| {
            sum += std::str::from_utf8(e.unwrap()).unwrap().parse::<f64>().unwrap();
            true
        }));
        assert_eq!(sum, 0.5);
    }

    proptest! {
        #[test]
        fn quoting_is_undone(values in prop::collection::vec(prop::option::of("\\PC*"), 1..8)) {
            let quoted: Vec<_> = values.iter().map(|v| match v {
                None => "NULL".to_owned(),
                Some(v) => format!("\"{}\"", v.replace('\\', "\\\\").replace('"', "\\\"")),
            }).collect();
            let expected: Vec<_> = values.iter().map(|v| v.as_deref().map(|v| v.as_bytes().to_vec())).collect();
            prop_assert_eq!(read(format!("{{{}}}", quoted.join(",")).as_bytes()), Some(expected));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "[{}\",\\\\a\\[\\]]*") {
            read(&bytes);
            read(text.as_bytes());
        }
    }
}
