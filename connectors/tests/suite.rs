//! Connectors on real servers: a database with a fresh name, the log on Kafka, and what a reader of the log makes of it.
//!
//! `pg_stream`: the stream, checkpoints, restarts. `pg_snapshot`: snapshots beside it. Servers come from the environment
//! (`LAKEWARD_TEST_POSTGRES`, `LAKEWARD_TEST_KAFKA`), by default those of the local stack; a test that changes settings of the
//! server starts its own.
#![allow(clippy::unwrap_used)]

#[path = "suite/harness.rs"]
mod harness;
#[path = "suite/pg_snapshot.rs"]
mod pg_snapshot;
#[path = "suite/pg_stream.rs"]
mod pg_stream;
