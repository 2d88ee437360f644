//! MongoDB documents to columns: `canonical Extended JSON v2 (the column _doc of the log) -> typed top-level columns`.
//!
//! The log carries documents and patches; whoever reads it makes columns, in two passes over a batch: [`ColumnSet::observe`]
//! says which columns are new or wider, the table's schema follows, and [`ColumnSet::build`] makes the arrays. A patch is
//! applied to the old document by [`apply_patch`].
//!
//! # Layout
//! - [`value`]: what a value of Extended JSON is, and its relaxed form
//! - [`columns`]: the columns of a collection, and documents in them
//! - [`patch`]: update descriptions

pub mod columns;
pub mod patch;
pub mod value;

use std::borrow::Cow;

use crate::codec::json::scan::{Bad, Scanner};
use crate::codec::json::text::write_string;
use crate::error::{Error, Result};

pub use columns::{ColumnChange, ColumnSet, Conflict, DocumentRule, Documents, FieldColumn};
pub use patch::apply_patch;

fn malformed(what: &str, bad: Bad) -> Error {
    Error::malformed(what, format!("byte {}: {}", bad.at, bad.reason))
}

/// The key text of an `_id`, given as canonical Extended JSON: the hex of an ObjectId, a string as it is, canonical Extended
/// JSON for anything else; strings that could be taken for one of the others are JSON strings.
pub fn id_text(id: &str) -> Result<String> {
    let mut scanner = Scanner::new(id.as_bytes());
    let parsed = scanner.value().and_then(|raw| {
        scanner.end()?;
        value::Value::parse(raw)
    });
    Ok(match parsed.map_err(|bad| malformed("_id", bad))? {
        value::Value::ObjectId(hex) => String::from_utf8_lossy(hex).into_owned(),
        value::Value::Text(raw) => {
            let mut text = Vec::new();
            crate::codec::json::scan::append_unescaped(raw, &mut text).map_err(|bad| malformed("_id", bad))?;
            id_text_of_string(&String::from_utf8_lossy(&text)).into_owned()
        }
        _ => id.trim().to_owned(),
    })
}

/// The key text of an `_id` that is a string.
pub fn id_text_of_string(id: &str) -> Cow<'_, str> {
    let hex = id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !hex && !matches!(id, "null" | "true" | "false") && !id.starts_with(['{', '"']) {
        return Cow::Borrowed(id);
    }
    let mut text = Vec::with_capacity(id.len() + 2);
    write_string(&mut text, id);
    Cow::Owned(String::from_utf8_lossy(&text).into_owned())
}

/// The `_id` of a document in canonical Extended JSON, as it stands there; None: it has none.
pub fn id_of(document: &str) -> Result<Option<&str>> {
    let mut fields = value::Fields::new(document.as_bytes()).map_err(|bad| malformed("document", bad))?;
    while let Some((name, raw)) = fields.next().map_err(|bad| malformed("document", bad))? {
        if name.bytes == b"_id" {
            return Ok(std::str::from_utf8(raw).ok());
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ids_share_a_text() {
        let ids = [
            (r#"{"$oid":"65a1b2c3d4e5f60718293a4b"}"#, "65a1b2c3d4e5f60718293a4b"),
            (r#""65a1b2c3d4e5f60718293a4b""#, r#""65a1b2c3d4e5f60718293a4b""#),
            (r#""plain \u00fc""#, "plain ü"),
            (r#""""#, ""),
            (r#""7""#, "7"),
            (r#"{"$numberInt":"7"}"#, r#"{"$numberInt":"7"}"#),
            (r#"{"$numberLong":"7"}"#, r#"{"$numberLong":"7"}"#),
            ("null", "null"),
            (r#""null""#, r#""null""#),
            ("true", "true"),
            (r#""true""#, r#""true""#),
            (r#""{}""#, r#""{}""#),
            (r#""\"x""#, r#""\"x""#),
            (r#"{"a":{"$numberInt":"1"}}"#, r#"{"a":{"$numberInt":"1"}}"#),
            (r#"{"$oid":"not an oid"}"#, r#"{"$oid":"not an oid"}"#),
        ];
        let mut texts = std::collections::HashSet::new();
        for (id, text) in ids {
            assert_eq!(id_text(id).unwrap(), text);
            assert!(texts.insert(text));
        }
        for bad in ["", "{", "nope", "1 2"] {
            assert!(id_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_id_may_stand_anywhere() {
        assert_eq!(id_of(r#"{"a":1, "_id" : {"$numberInt":"5"} }"#).unwrap(), Some(r#"{"$numberInt":"5"}"#));
        assert_eq!(id_of("{}").unwrap(), None);
        assert!(id_of("[]").is_err());
    }
}
