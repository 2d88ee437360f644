//! The lake on its real backends: every scenario runs on SQLite with a local directory, and on PostgreSQL with S3.

#![allow(clippy::unwrap_used)]

mod commits;
mod failures;
mod harness;
mod readers;
mod specs;
mod system;
mod writing;
