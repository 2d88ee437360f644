//! What an operator asks, on real servers with a connector and a sink running. Servers come from the environment
//! (`LAKEWARD_TEST_POSTGRES`, `LAKEWARD_TEST_MONGODB`, `LAKEWARD_TEST_KAFKA`), by default those of the local stack; the lake is a
//! folder of the test.
#![allow(clippy::unwrap_used)]

#[path = "suite/harness.rs"]
mod harness;
#[path = "suite/verify_mongodb.rs"]
mod verify_mongodb;
#[path = "suite/verify_postgres.rs"]
mod verify_postgres;
