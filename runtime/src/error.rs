//! One error type for everything that touches the outside, sorted by what the caller does next.

use std::fmt;
use std::io;
use std::path::Path;

/// What to do about an error. The command line turns it into the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Try again later, unchanged: a server is away. Exit 3.
    Retry,
    /// Somebody else was first: read the newest state and prepare again. Exit 3 if it comes that far.
    Rebase,
    /// The history needed is gone, the table or source must be read anew. Exit 4 where nobody does.
    Resnapshot,
    /// Stop: a person must look before anything goes on. Exit 4.
    Human,
    /// The configuration or the command is wrong. Exit 2.
    Configuration,
    /// The answer is no: bad SQL, differences found. Exit 1.
    Refused,
    /// A broken promise of our own code. Exit 4.
    Bug,
}

/// An error with its context and cause. Display is one line: message, then `key=value`, then the causes.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    action: Action,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(action: Action, message: impl Into<String>) -> Self {
        Self { inner: Box::new(Inner { action, message: message.into(), context: Vec::new(), source: None }) }
    }
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(Action::Retry, message)
    }
    pub fn rebase(message: impl Into<String>) -> Self {
        Self::new(Action::Rebase, message)
    }
    pub fn resnapshot(message: impl Into<String>) -> Self {
        Self::new(Action::Resnapshot, message)
    }
    pub fn human(message: impl Into<String>) -> Self {
        Self::new(Action::Human, message)
    }
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::new(Action::Configuration, message)
    }
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Action::Refused, message)
    }
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Action::Bug, message)
    }

    /// An error of the local file system while `doing` something with a path. A full disk is worth another try, anything else
    /// is `otherwise`.
    pub fn file(otherwise: Action, doing: &str, path: &Path, error: io::Error) -> Self {
        let full = is_disk_full(&error);
        let (action, message) =
            if full { (Action::Retry, format!("{doing}: {DISK_FULL}")) } else { (otherwise, doing.to_owned()) };
        Self::new(action, message).with("path", path.display()).source(error)
    }

    /// Adds what it happened to: `.with("table", id)`.
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.inner.context.push((key, value.to_string()));
        self
    }
    /// Adds the cause.
    pub fn source(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.inner.source = Some(cause.into());
        self
    }
    pub fn action(&self) -> Action {
        self.inner.action
    }
    pub fn message(&self) -> &str {
        &self.inner.message
    }
    pub fn is_retryable(&self) -> bool {
        matches!(self.inner.action, Action::Retry | Action::Rebase)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.inner.message.clone();
        for (key, value) in &self.inner.context {
            text.push_str(&format!(", {key}={value}"));
        }
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let cause_text = error.to_string();
            // Many libraries print their cause and return it as the source too; once is enough.
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            // An error of ours has printed its causes already.
            cause = if error.is::<Self>() { None } else { error.source() };
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.inner.action)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|e| e as _)
    }
}

/// What an error says of a full disk, after what was being done.
pub const DISK_FULL: &str = "the disk is full, or its quota is; free space there, and work goes on by itself";

/// No room, on the disk or under a limit, for what was to be written.
pub fn is_disk_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Adds context to a result of ours on its way up.
pub trait Context<T> {
    fn with(self, key: &'static str, value: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn with(self, key: &'static str, value: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.with(key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_with_context_and_causes() {
        let io = std::io::Error::other("connection reset");
        let inner = Error::retry("reading").with("topic", "a.b.c").source(io);
        let outer = Error::retry("sink").source(inner);
        assert_eq!(outer.to_string(), "sink: reading, topic=a.b.c: connection reset");
        assert!(outer.is_retryable());
    }

    #[test]
    fn a_cause_that_its_error_has_printed_is_not_repeated() {
        #[derive(Debug)]
        struct Loud(std::io::Error);
        impl fmt::Display for Loud {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "request failed: {}", self.0)
            }
        }
        impl std::error::Error for Loud {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = Error::retry("reading").source(Loud(io::Error::other("connection reset")));
        assert_eq!(error.to_string(), "reading: request failed: connection reset");
    }

    #[test]
    fn a_full_disk_passes() {
        let at = Path::new("/state/x");
        let full = Error::file(Action::Human, "writing", at, io::ErrorKind::StorageFull.into());
        assert!(
            full.is_retryable() && full.to_string().contains("disk is full") && full.to_string().contains("/state/x")
        );
        let denied = Error::file(Action::Human, "writing", at, io::ErrorKind::PermissionDenied.into());
        assert_eq!(denied.action(), Action::Human);
    }
}
