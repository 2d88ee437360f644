//! Connectors against real servers: one binary, a module per behaviour. Endpoints come from the environment, see CONTRIBUTING.
#![allow(clippy::unwrap_used)]

#[path = "suite/mongodb/mod.rs"]
mod mongodb;
#[path = "suite/pg_types.rs"]
mod pg_types;
