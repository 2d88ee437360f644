//! The binary as its users run it, on real servers: databases change -> `lakeward run` -> `lakeward sql`, `lakeward verify`.
//!
//! Every test has databases, collections, topics and a warehouse prefix of its own, and drops what would stay behind. The servers
//! are those of `LAKEWARD_TEST_*` (`deploy/local/stack.sh env`), else those of a stack at its default ports.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod codecs;
mod consistency;
mod debezium;
mod disk_full;
mod embedded;
mod faults;
mod harness;
mod kafka_behind_our_back;
mod kafka_connect;
mod kafka_security;
mod leaderless;
mod log_exactly_once;
mod log_tools;
mod path;
mod readers;
mod registry;
mod registry_security;
mod schema;
mod toast;
mod zombie;
