//! Topics that a Debezium 2.x or 3.x for PostgreSQL or MongoDB writes with JsonConverter: `records -> ChangeBatch`. Read only.
//!
//! # Records
//! Each may have its schema inlined (`{"schema":…,"payload":…}`) or not, and be Debezium's envelope or an unwrapped row. What
//! a record is shows from itself; nothing is configured but the placeholder.
//!
//! | record | becomes |
//! |---|---|
//! | envelope `c`, `r`, `u` | the row in `after`; the placeholder of an update is a value left out |
//! | envelope `d`, and a tombstone | a delete of the record key's row; all else in `before` is Debezium's invention |
//! | envelope `t` | a truncate |
//! | envelope `m` (logical message) | nothing |
//! | unwrapped row | the row; a delete where `__deleted` is true or `__op` is `d`; names that start with `__` are not columns |
//! | MongoDB: `after` | the document, in canonical Extended JSON |
//! | MongoDB: `updateDescription` without `after` | a patch |
//! | MongoDB: unwrapped document | the document, its types as JSON tells them |
//!
//! # Columns
//! With a schema a column has the declared type ([`form`]); a value that cannot be what it claims is a misfit. Without one the JSON
//! tells: true and false, whole numbers (64 bits), other numbers (double), text, lists of these, JSON for objects and mixed
//! lists. Columns appear with their first value, and widen. A column whose type becomes one that cannot be joined is
//! replaced by one of the new type under its name; the old one is kept beside it. The key is that of the record.
//!
//! `sequence` counts what the decoder takes: the order of a partition is that of its offsets, and partitions have none
//! among each other.
//!
//! # Layout
//! - [`form`]: what an inlined schema declares
//! - [`table`]: columns and key as they become known
//! - [`value`], [`text`]: values to columns
//! - [`documents`]: MongoDB's dialects of Extended JSON
//! - [`record`]: a record taken apart
//! - [`rows`]: rows and keys to columns
//! - [`decode`]: records to batches

mod decode;
mod documents;
mod form;
mod record;
mod rows;
mod table;
mod text;
mod value;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use decode::DebeziumDecoder;
pub use table::KnownTable;
pub use value::Placeholder;

/// The header that holds the key which a row had before the change of it.
pub const OLD_KEY: &str = "__debezium.oldkey";

/// Debezium's default for values that a source left out.
pub use super::json::UNAVAILABLE;
