//! MongoDB: `change stream, find by ranges -> raw BSON -> text -> ChangeBatch -> publisher`.
//!
//! The log carries documents and patches; columns are made by the reader, which alone sees all types of a field.
//!
//! # Layout
//! - [`client`]: connections, clocks, errors
//! - [`collections`]: which collections are captured, and what stands in the way
//! - [`change_stream`]: its events
//! - [`resume_token`]: tokens and the cluster times in them
//! - [`snapshot`]: ranges of `_id`, and why they are exact
//! - [`builder`], [`canonical`]: BSON to columns and to canonical Extended JSON
//! - [`ticks`]: which moments of the server's clock the stream has proven
//! - [`capture`]: the loop that joins them

pub mod builder;
pub mod canonical;
pub mod capture;
pub mod change_stream;
pub mod client;
pub mod collections;
pub mod resume_token;
pub mod snapshot;
pub mod ticks;

pub use capture::run;
pub use collections::problems;
