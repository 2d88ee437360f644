//! What an operator asks of the whole: `configuration + sources + log + lake -> an answer`. The only library that imports stages.
//!
//! # Layout
//! - [`verify`]: is the lake what its sources were, at one position of each?
//! - [`check`]: can every server be used as configured?
//! - [`status`]: how far is everything?
//! - [`topics`]: what is in the log, and how long?
//! - [`tail`]: what comes into it
//!
//! The command line parses arguments and prints what these return.

pub mod check;
mod clients;
pub mod status;
pub mod tail;
pub mod topics;
pub mod verify;
