//! Errors of decoding and checking what a change is; none but a registry's is caused by I/O.

/// What can be wrong with bytes or values that claim to be changes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes that do not have the form they claim (a record of the log, a server's message). The record goes to the dead
    /// letters, or the connection is made anew; nothing is skipped without a trace.
    #[error("{what}: {reason}")]
    Malformed { what: String, reason: String },
    /// The parts contradict each other: a column that the schema does not have, arrays of unequal length. Our bug.
    #[error("inconsistent {what}: {reason}")]
    Inconsistent { what: String, reason: String },
    /// Names or types that Lakeward cannot carry as configured; a person must decide.
    #[error("{0}")]
    Unsupported(String),
    /// A schema registry did not answer, or not as asked: no record's fault. The client's own error says what to do next.
    #[error(transparent)]
    Registry(Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl Error {
    pub fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), reason: reason.into() }
    }
    pub fn inconsistent(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Inconsistent { what: what.into(), reason: reason.into() }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
