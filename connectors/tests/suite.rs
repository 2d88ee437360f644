//! Connectors on real servers: a database with a fresh name, the log on Kafka, and what a reader of the log makes of it.
//!
//! `pg_types`: every type, by COPY and by the stream. `pg_stream`: the stream, checkpoints, restarts. `pg_ddl`: tables that
//! are changed meanwhile. `pg_snapshot`: snapshots beside
//! it. `mongodb`: the same of MongoDB. Servers come from the environment (`LAKEWARD_TEST_POSTGRES`, `LAKEWARD_TEST_MONGODB`,
//! `LAKEWARD_TEST_KAFKA`), by default those of the local stack; a test that changes settings of the server starts its own.
#![allow(clippy::unwrap_used)]

#[path = "suite/harness.rs"]
mod harness;
#[path = "suite/mongodb/mod.rs"]
mod mongodb;
#[path = "suite/pg_ddl.rs"]
mod pg_ddl;
#[path = "suite/pg_snapshot.rs"]
mod pg_snapshot;
#[path = "suite/pg_stream.rs"]
mod pg_stream;
#[path = "suite/pg_types.rs"]
mod pg_types;
