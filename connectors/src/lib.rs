//! Sources to the log: `source rows -> ChangeBatch -> log record`.
//!
//! # Layout
//! - [`postgres`]: PostgreSQL, by logical replication and COPY

pub mod postgres;
