//! MongoDB update descriptions: `old document + patch -> new document`, all canonical Extended JSON v2.
//!
//! A patch is `{"updatedFields": {path: value, …}, "removedFields": [path, …], "truncatedArrays": [{"field": path,
//! "newSize": n}, …], "disambiguatedPaths": {path: [name or index, …], …}}`, each part perhaps absent or null. Only the
//! documents and arrays on a path are taken apart; everything else is copied as text.

use std::borrow::Cow;
use std::collections::HashMap;

use super::value::{Fields, Value, elements};
use crate::codec::json::scan::{Bad, Parsed, Raw, Scanner, append_unescaped};
use crate::codec::json::text::write_string;
use crate::error::{Error, Result};

/// The server fills no larger gaps when an element is set beyond an array's end.
const MAX_GAP: usize = 1_500_000;

/// A value of which only what a patch touches is taken apart.
enum Node<'a> {
    Text(&'a [u8]),
    Document(Vec<(Cow<'a, str>, Node<'a>)>),
    Array(Vec<Node<'a>>),
}

/// One step of a path.
enum Step<'a> {
    /// A name, or an index where it meets an array.
    Either(Cow<'a, str>),
    Name(Cow<'a, str>),
    Index(usize),
}

/// The document after the patch. Fails, with nothing changed, where the patch does not fit: a path through a value that is
/// neither document nor array means that the old document is not the one that the patch was made for.
pub fn apply_patch(document: &str, patch: &str) -> Result<String> {
    let mut root = Node::Text(document.as_bytes());
    apply(&mut root, patch.as_bytes()).map_err(|bad| Error::malformed("update description", bad.reason))?;
    let mut out = Vec::with_capacity(document.len() + patch.len());
    root.write(&mut out);
    String::from_utf8(out).map_err(|error| Error::malformed("update description", error.to_string()))
}

fn bad<T>(reason: impl Into<Cow<'static, str>>) -> Parsed<T> {
    Err(Bad { reason: reason.into(), at: 0 })
}

fn apply<'a>(root: &mut Node<'a>, patch: &'a [u8]) -> Parsed<()> {
    let mut updated = None;
    let mut removed = None;
    let mut truncated = None;
    let mut paths = HashMap::new();
    let mut fields = Fields::new(patch)?;
    while let Some((name, raw)) = fields.next()? {
        let part = (raw != b"null").then_some(raw);
        match name.bytes {
            b"updatedFields" => updated = part,
            b"removedFields" => removed = part,
            b"truncatedArrays" => truncated = part,
            b"disambiguatedPaths" => paths = part.map(disambiguated).transpose()?.unwrap_or_default(),
            _ => return bad(format!("unknown part {}", String::from_utf8_lossy(name.bytes))),
        }
    }
    root.document()?;
    if let Some(removed) = removed {
        elements(removed, |path| {
            let path = string(path)?;
            root.remove(&steps(&path, &paths))
        })?;
    }
    if let Some(truncated) = truncated {
        elements(truncated, |entry| {
            let (mut field, mut size) = (None, None);
            let mut parts = Fields::new(entry)?;
            while let Some((name, raw)) = parts.next()? {
                match name.bytes {
                    b"field" => field = Some(string(raw)?),
                    b"newSize" => size = index(raw)?,
                    _ => {}
                }
            }
            let (Some(field), Some(size)) = (field, size) else {
                return bad("a truncated array without field or size");
            };
            root.truncate(&steps(&field, &paths), size)
        })?;
    }
    if let Some(updated) = updated {
        let mut fields = Fields::new(updated)?;
        while let Some((name, raw)) = fields.next()? {
            let path = unescaped(name)?;
            root.set(&steps(&path, &paths), raw)?;
        }
    }
    Ok(())
}

/// Paths whose dots are ambiguous, as lists of names and indexes.
fn disambiguated(raw: &[u8]) -> Parsed<HashMap<Cow<'_, str>, Vec<&[u8]>>> {
    let mut paths = HashMap::new();
    let mut fields = Fields::new(raw)?;
    while let Some((path, parts)) = fields.next()? {
        let mut list = Vec::new();
        elements(parts, |part| {
            list.push(part);
            Ok(())
        })?;
        paths.insert(unescaped(path)?, list);
    }
    Ok(paths)
}

fn steps<'p>(path: &'p str, paths: &'p HashMap<Cow<'p, str>, Vec<&'p [u8]>>) -> Vec<Step<'p>> {
    match paths.get(path) {
        Some(parts) => parts
            .iter()
            .map(|part| match (index(part), string(part)) {
                (Ok(Some(index)), _) => Step::Index(index),
                (_, Ok(name)) => Step::Name(name),
                // Neither: nothing has this name, so applying the path fails.
                _ => Step::Name(Cow::Borrowed("\u{0}")),
            })
            .collect(),
        None => path.split('.').map(|step| Step::Either(Cow::Borrowed(step))).collect(),
    }
}

fn index(raw: &[u8]) -> Parsed<Option<usize>> {
    Ok(match Value::parse(raw)? {
        Value::Int(value) => usize::try_from(value).ok(),
        Value::Long(value) => usize::try_from(value).ok(),
        _ => None,
    })
}

fn string(raw: &[u8]) -> Parsed<Cow<'_, str>> {
    let mut scanner = Scanner::new(raw);
    let text = scanner.string()?;
    scanner.end()?;
    unescaped(text)
}

fn unescaped(raw: Raw<'_>) -> Parsed<Cow<'_, str>> {
    if !raw.escaped {
        return match std::str::from_utf8(raw.bytes) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(_) => bad("not UTF-8"),
        };
    }
    let mut text = Vec::new();
    append_unescaped(raw, &mut text)?;
    String::from_utf8(text).map(Cow::Owned).or_else(|_| bad("not UTF-8"))
}

impl<'a> Node<'a> {
    /// Takes the value apart if it is a document or an array that has not been yet.
    fn open(&mut self) -> Parsed<()> {
        let Self::Text(raw) = self else { return Ok(()) };
        let raw = *raw;
        match Value::parse(raw)? {
            Value::Json(text) if text.starts_with(b"{") => {
                let mut list = Vec::new();
                let mut fields = Fields::new(text)?;
                while let Some((name, value)) = fields.next()? {
                    list.push((unescaped(name)?, Self::Text(value)));
                }
                *self = Self::Document(list);
            }
            Value::Json(text) => {
                let mut list = Vec::new();
                elements(text, |value| {
                    list.push(Self::Text(value));
                    Ok(())
                })?;
                *self = Self::Array(list);
            }
            _ => {}
        }
        Ok(())
    }

    fn document(&mut self) -> Parsed<&mut Vec<(Cow<'a, str>, Node<'a>)>> {
        // A document like {"$oid": "…"} reads as a value, but the root is a document in any case.
        if let Self::Text(raw) = self
            && raw.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
        {
            let mut list = Vec::new();
            let mut fields = Fields::new(raw)?;
            while let Some((name, value)) = fields.next()? {
                list.push((unescaped(name)?, Self::Text(value)));
            }
            *self = Self::Document(list);
        }
        match self {
            Self::Document(list) => Ok(list),
            _ => bad("not a document"),
        }
    }

    /// The value that a step leads to; None: there is nothing.
    fn child(&mut self, step: &Step<'_>) -> Parsed<Option<&mut Node<'a>>> {
        self.open()?;
        match (self, step) {
            (Self::Document(list), Step::Either(name) | Step::Name(name)) => {
                Ok(list.iter_mut().find(|(found, _)| found == name).map(|(_, node)| node))
            }
            (Self::Array(list), step) => match step.index() {
                Some(index) => Ok(list.get_mut(index)),
                None => bad("a name where the document has an array"),
            },
            _ => bad("a path through a value that has no fields"),
        }
    }

    fn parent(&mut self, path: &[Step<'_>]) -> Parsed<Option<&mut Node<'a>>> {
        let mut node = self;
        for step in path {
            match node.child(step)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        node.open()?;
        Ok(Some(node))
    }

    fn set(&mut self, path: &[Step<'_>], value: &'a [u8]) -> Parsed<()> {
        let Some((last, path)) = path.split_last() else { return bad("an empty path") };
        match (self.parent(path)?, last) {
            (Some(Self::Document(list)), Step::Either(name) | Step::Name(name)) => {
                match list.iter_mut().find(|(found, _)| found == name) {
                    Some((_, node)) => *node = Self::Text(value),
                    None => list.push((Cow::Owned(name.clone().into_owned()), Self::Text(value))),
                }
            }
            (Some(Self::Array(list)), step) => {
                let Some(index) = step.index() else { return bad("a name where the document has an array") };
                if index > list.len() + MAX_GAP {
                    return bad("an index far beyond the end of its array");
                }
                while list.len() <= index {
                    list.push(Self::Text(b"null"));
                }
                list[index] = Self::Text(value);
            }
            (Some(_), _) => return bad("a path through a value that has no fields"),
            (None, _) => return bad("a path through a field that the document does not have"),
        }
        Ok(())
    }

    /// Removing what is not there is done already.
    fn remove(&mut self, path: &[Step<'_>]) -> Parsed<()> {
        let Some((last, path)) = path.split_last() else { return bad("an empty path") };
        match (self.parent(path)?, last) {
            (Some(Self::Document(list)), Step::Either(name) | Step::Name(name)) => {
                list.retain(|(found, _)| found != name);
                Ok(())
            }
            (None, _) => Ok(()),
            _ => bad("a removed field of something that has no fields"),
        }
    }

    fn truncate(&mut self, path: &[Step<'_>], size: usize) -> Parsed<()> {
        match self.parent(path)? {
            Some(Self::Array(list)) => {
                list.truncate(size);
                Ok(())
            }
            _ => bad("a truncated array that is not one"),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(raw) => out.extend_from_slice(raw),
            Self::Document(list) => {
                out.push(b'{');
                for (i, (name, node)) in list.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    write_string(out, name);
                    out.push(b':');
                    node.write(out);
                }
                out.push(b'}');
            }
            Self::Array(list) => {
                out.push(b'[');
                for (i, node) in list.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    node.write(out);
                }
                out.push(b']');
            }
        }
    }
}

impl Step<'_> {
    fn index(&self) -> Option<usize> {
        match self {
            Self::Index(index) => Some(*index),
            // "01" and "+1" are names.
            Self::Either(text) if text == "0" || !text.starts_with(['0', '+']) => text.parse().ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn applied(document: &str, patch: &str, expected: &str) {
        assert_eq!(apply_patch(document, patch).unwrap(), expected);
    }

    #[test]
    fn fields_are_set_removed_and_appended() {
        let old = r#"{"_id":{"$numberInt":"1"},"a":{"b":{"$numberInt":"1"},"c":"x"},"gone":true,"k\n":1}"#;
        applied(
            old,
            r#"{"updatedFields":{"a.b":{"$numberInt":"2"},"new":{"z":null},"a.d":[]},"removedFields":["gone","no.such"]}"#,
            r#"{"_id":{"$numberInt":"1"},"a":{"b":{"$numberInt":"2"},"c":"x","d":[]},"k\n":1,"new":{"z":null}}"#,
        );
        applied(old, r#"{"updatedFields":null,"removedFields":null,"truncatedArrays":null}"#, old);
        applied("{}", r#"{"updatedFields":{"a":{"$numberInt":"1"}}}"#, r#"{"a":{"$numberInt":"1"}}"#);
    }

    #[test]
    fn arrays_are_set_extended_and_cut() {
        applied(r#"{"t":["a"]}"#, r#"{"updatedFields":{"t.5":"gap"}}"#, r#"{"t":["a",null,null,null,null,"gap"]}"#);
        applied(
            r#"{"t":[{"n":1},{"n":2},3,4]}"#,
            r#"{"updatedFields":{"t.1.n":7},"truncatedArrays":[{"field":"t","newSize":{"$numberInt":"2"}}]}"#,
            r#"{"t":[{"n":1},{"n":7}]}"#,
        );
        applied(
            r#"{"m":{"0":"name","l":[[1,2],[3]]}}"#,
            r#"{"updatedFields":{"m.0":"still a name","m.l.1.0":9}}"#,
            r#"{"m":{"0":"still a name","l":[[1,2],[9]]}}"#,
        );
    }

    /// Trap: a dotted name and a path look alike; only disambiguatedPaths tells.
    #[test]
    fn dotted_names_are_told_apart() {
        let old = r#"{"a.b":1,"a":{"b":1,"0":{"c.d":1}},"l":[{"x.y":1}]}"#;
        applied(
            old,
            r#"{"updatedFields":{"a.b":5},"disambiguatedPaths":{"a.b":["a.b"]}}"#,
            r#"{"a.b":5,"a":{"b":1,"0":{"c.d":1}},"l":[{"x.y":1}]}"#,
        );
        applied(
            old,
            r#"{"updatedFields":{"a.0.c.d":5,"l.0.x.y":6},"disambiguatedPaths":
                {"a.0.c.d":["a","0","c.d"],"l.0.x.y":["l",{"$numberInt":"0"},"x.y"]}}"#,
            r#"{"a.b":1,"a":{"b":1,"0":{"c.d":5}},"l":[{"x.y":6}]}"#,
        );
    }

    #[test]
    fn a_patch_for_another_document_is_refused() {
        for (document, patch) in [
            (r#"{"a":{"$numberInt":"1"}}"#, r#"{"updatedFields":{"a.b":1}}"#),
            (r#"{"a":{"$oid":"65a1b2c3d4e5f60718293a4b"}}"#, r#"{"updatedFields":{"a.$oid":"x"}}"#),
            ("{}", r#"{"updatedFields":{"a.b":1}}"#),
            (r#"{"a":[]}"#, r#"{"updatedFields":{"a.b":1}}"#),
            (r#"{"a":[]}"#, r#"{"updatedFields":{"a.01":1}}"#),
            (r#"{"a":[]}"#, r#"{"updatedFields":{"a.99999999999":1}}"#),
            (r#"{"a":1}"#, r#"{"truncatedArrays":[{"field":"a","newSize":1}]}"#),
            ("[]", "{}"),
            ("{}", "[]"),
            ("{}", r#"{"replaced":{}}"#),
            (r#"{"a":}"#, r#"{"updatedFields":{"b":1}}"#),
        ] {
            assert!(apply_patch(document, patch).is_err(), "{document} {patch}");
        }
    }

    proptest! {
        /// Against a model: top-level fields as a map, in order.
        #[test]
        fn top_level_patches_are_a_map(
            old in proptest::collection::btree_map("[a-e\"\\n]{1,2}", 0..9, 0..6),
            set in proptest::collection::btree_map("[a-e\"\\n]{1,2}", 10..19, 0..4),
            removed in proptest::collection::btree_set("[f-h]", 0..3),
            more in proptest::collection::btree_map("[f-h]", 0..9, 0..3),
        ) {
            let mut all = old.clone();
            all.extend(more);
            let patch = serde_json::json!({ "updatedFields": set, "removedFields": removed }).to_string();
            let new = apply_patch(&serde_json::to_string(&all).unwrap(), &patch).unwrap();
            let new: std::collections::BTreeMap<String, i32> = serde_json::from_str(&new).unwrap();
            let mut expected = all;
            expected.extend(set);
            expected.retain(|name, _| !removed.contains(name));
            prop_assert_eq!(new, expected);
        }

        #[test]
        fn broken_patches_never_panic(patch in "[{}\\[\\]\":,a.0]{0,24}", document in "[{}\\[\\]\":,a0]{0,16}") {
            let _ = apply_patch(&document, &patch);
            let fields = format!("{{\"updatedFields\":{patch}}}");
            let _ = apply_patch("{\"a\":[[],{}]}", &fields);
        }
    }
}
