//! A place in a source's change stream. The connector writes it into checkpoints and is the only one that reads it back.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a source is continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Position {
    Postgres {
        /// End LSN of the last whole commit that is published. Exactly this is confirmed to the server, never more.
        lsn: u64,
        /// A transaction of which only a part is published yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        partial: Option<PartialTransaction>,
        /// `IDENTIFY_SYSTEM`'s system identifier and timeline: another value is another history.
        system_id: String,
        timeline: u32,
    },
    Mongodb {
        /// Seconds in the upper, increment in the lower 32 bits.
        cluster_time: u64,
        /// The resume token's `_data`; empty before the first event or post-batch token.
        token: String,
    },
    /// Topics that others write: how many offsets lie below the ends that were read up to, in all. Made by the sink, for people:
    /// each table holds its own offsets.
    Topics { offsets: u64 },
}

/// A source transaction that is published up to a change; an LSN alone cannot say so (50 rows of one COPY share one).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialTransaction {
    pub xid: u32,
    /// LSN of the last published change.
    pub lsn: u64,
    /// How many changes of the transaction (of published tables, in decoding order) are published.
    pub index: u64,
}

/// PostgreSQL's `X/Y` spelling.
pub fn format_lsn(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

/// Reads `X/Y`.
pub fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some((u64::from(u32::from_str_radix(high, 16).ok()?) << 32) | u64::from(u32::from_str_radix(low, 16).ok()?))
}

/// As it stands in `lakeward.checkpoints`: an LSN, or cluster time and token.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres { lsn, .. } => f.write_str(&format_lsn(*lsn)),
            Self::Mongodb { cluster_time, token } => {
                write!(f, "{}.{} {token}", cluster_time >> 32, cluster_time & 0xFFFF_FFFF)
            }
            Self::Topics { offsets } => write!(f, "{offsets}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_is_the_servers() {
        assert_eq!(format_lsn(0x16_B374_D848), "16/B374D848");
        assert_eq!(parse_lsn("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(parse_lsn("16"), None);
    }
}
