//! Process plumbing without domain: everything a daemon needs that is not about changes or tables.
//!
//! # Layout
//! - [`error`]: errors by what the caller does next
//! - [`config`]: `lakeward.toml` and the environment to a checked [`config::Config`]
//! - [`crash`]: named points where tests kill the process
//! - [`lock`]: one process per role and state directory
//! - [`retry`]: trying again, with waits that grow
//! - [`shutdown`]: signals to a token
//! - [`telemetry`]: logs and metrics
//! - [`health`]: `/metrics`, `/healthz`, `/readyz`

pub mod config;
pub mod crash;
pub mod error;
pub mod health;
pub mod lock;
pub mod retry;
pub mod shutdown;
pub mod telemetry;

#[doc(hidden)]
pub use fail;

pub use error::{Action, Error, Result};
