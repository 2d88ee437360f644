//! Messages that we write into the server's WAL to learn, when they arrive, what is before them in the stream.
//! `pg_logical_emit_message -> WAL -> pgoutput -> Mark`.
//!
//! They are not transactional: such a message stands in the stream where it stands in the WAL, so every commit that was
//! acknowledged before it was written has arrived before it. A keepalive proves nothing of the kind.

use lakeward_runtime::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, Statement};

use super::client::sql_error;

/// The prefix of our messages.
pub const PREFIX: &str = "lakeward";

/// What a message is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mark", rename_all = "snake_case")]
pub enum Mark {
    /// The source is idle and a tick has passed. Also written by whoever wants the clock to be seen.
    Tick,
    /// Written by `verify`: stop here, between two commits, until [`Signal::Cut`](lakeward_log::Signal::Cut) says where to cut, or
    /// `seconds` have passed.
    Hold { request: String, seconds: u64 },
    /// Written after a request for a cut: when it arrives, the cut's LSN has been passed.
    Cut { request: String },
    /// What was committed before `run --until-caught-up` started is before this.
    CaughtUp { run: String },
    /// P0 of design.md section 5: the last range of the table was read before this. `attempt`: see
    /// [`TableState::attempt`](super::snapshot::state::TableState::attempt).
    RangesRead { table: u32, run: String, attempt: u64 },
    /// P1: when this was written no row of the table was unresolved.
    Settled { table: u32, run: String, attempt: u64 },
}

/// A message as it arrives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Whose message it is: other connectors of the same database have other slots.
    pub slot: String,
    /// The server's clock just before the message was written, microseconds since 1970.
    pub clock: i64,
    #[serde(flatten)]
    pub mark: Mark,
}

/// Our message, if it is one for this slot.
pub fn parse(slot: &str, prefix: &str, content: &[u8]) -> Option<Message> {
    if prefix != PREFIX {
        return None;
    }
    // Anybody may write messages under any prefix: what does not read as one of ours is none.
    serde_json::from_slice::<Message>(content).ok().filter(|m| m.slot == slot)
}

/// Writes marks over an SQL connection.
pub struct Marker {
    statement: Statement,
    slot: String,
}

impl Marker {
    pub async fn new(client: &Client, slot: &str) -> Result<Self> {
        let version: i32 = client
            .query_one("SELECT current_setting('server_version_num')::int", &[])
            .await
            .map_err(|e| sql_error("asking for the server's version", e))?
            .get(0);
        // Before 17 the WAL writer flushes a message that is not transactional, 200 ms later at most.
        let flush = if version >= 170_000 { ", flush => true" } else { "" };
        let statement = client
            .prepare(&format!(
                "SELECT pg_logical_emit_message(false, '{PREFIX}', (jsonb_build_object('slot', $1::text,
                    'clock', (extract(epoch FROM clock_timestamp()) * 1000000)::int8) || $2::text::jsonb)::text{flush})::text"
            ))
            .await
            .map_err(|e| sql_error("preparing logical messages", e))?;
        Ok(Self { statement, slot: slot.to_owned() })
    }

    pub async fn write(&self, client: &Client, mark: &Mark) -> Result<()> {
        let text = serde_json::to_string(mark).map_err(|e| Error::bug("a mark is always JSON").source(e))?;
        client
            .query_one(&self.statement, &[&self.slot, &text])
            .await
            .map_err(|e| sql_error("writing a logical message", e))?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_our_slots_messages_are_ours() {
        let message =
            Message { slot: "a".into(), clock: 5, mark: Mark::RangesRead { table: 7, run: "x".into(), attempt: 1 } };
        let text = serde_json::to_vec(&message).unwrap();
        assert_eq!(parse("a", PREFIX, &text), Some(message));
        assert_eq!(parse("b", PREFIX, &text), None);
        assert_eq!(parse("a", "other", &text), None);
        assert_eq!(parse("a", PREFIX, b"hello"), None);
    }
}
