//! The record header of codecs with a record per change: `header -> version, sequence and what is rare`. The encoder writes it
//! ([`Rows::write_header`](super::encode::Rows::write_header)).

use serde::{Deserialize, Serialize};

use super::text;

/// A header, but for the bitmap, which goes into a buffer.
pub(in crate::codec) struct Header {
    pub version: u32,
    pub sequence: u64,
    /// There is a bitmap of columns left out.
    pub unchanged: bool,
    pub rest: Rest,
}

/// The rare part of the header.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::codec) struct Rest {
    /// `(side, column, text)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub misfits: Vec<(char, u16, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<[RowId; 2]>,
    /// An update description that the record itself has no place for: never in `json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<String>,
}

/// The `_id` of one side of a MongoDB change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(in crate::codec) enum RowId {
    /// `false`: there is no row on this side.
    Absent(bool),
    Present(Option<String>),
}

impl Header {
    /// Reads `version,sequence[,unchanged,rest]`, with the bitmap into `unchanged`.
    pub fn parse(header: &[u8], unchanged: &mut Vec<u8>) -> Result<Self, String> {
        let bad = || format!("header `{}` is not of this codec", String::from_utf8_lossy(header));
        let mut parts = std::str::from_utf8(header).map_err(|_| bad())?.splitn(4, ',');
        let version = parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?;
        let sequence = parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?;
        unchanged.clear();
        let has_unchanged = match parts.next() {
            None | Some("-") => false,
            Some(hex) => {
                text::parse_hex(hex.as_bytes(), unchanged).ok_or_else(bad)?;
                true
            }
        };
        let rest = match parts.next() {
            None => Rest::default(),
            Some(json) => serde_json::from_str(json).map_err(|_| bad())?,
        };
        if rest.misfits.iter().any(|(side, ..)| !matches!(side, 'a' | 'b')) {
            return Err(bad());
        }
        Ok(Self { version, sequence, unchanged: has_unchanged, rest })
    }
}
