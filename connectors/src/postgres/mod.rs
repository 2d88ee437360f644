//! PostgreSQL: `catalog -> TableShape`; `pgoutput message | COPY row -> TableBuilder -> ChangeBatch`.
//!
//! # Layout
//! - [`types`]: a column's PostgreSQL type to its logical type and the form its values travel in
//! - [`catalog`]: tables, columns and keys out of `pg_catalog`, and what a snapshot selects
//! - [`pgoutput`]: replication frames and pgoutput messages, borrowed from the buffer
//! - [`tuple`]: [`tuple::TableBuilder`], changes of one table to a `ChangeBatch`
//! - [`copy`]: COPY BINARY bytes to rows
//! - [`value`], [`array`], [`numeric`], [`datetime`], [`composite`]: single values
//! - [`column`]: Arrow columns that can take a value back

pub mod array;
pub mod catalog;
pub mod column;
pub mod composite;
pub mod copy;
pub mod datetime;
pub mod numeric;
pub mod pgoutput;
pub mod tuple;
pub mod types;
pub mod value;

/// What a connection must set before it reads values, as `name = value`: their text forms are those of interface.md whatever
/// the database or role has set. No value has a space, which a startup packet would need escaped. For the replication connection they go into the startup packet (`options`), for a snapshot's
/// into `SET`.
pub const SESSION_SETTINGS: [(&str, &str); 6] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO,MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
];

/// Seconds from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
pub const EPOCH_SECONDS: i64 = 946_684_800;
