//! Errors of the libraries below, as ours: found again under whatever they were wrapped in.

use std::error::Error as StdError;

use lakeward_runtime::error::{DISK_FULL, is_disk_full};
use lakeward_runtime::{Action, Error};

/// What the caller can do about a library's error: that of our own error or of the object store's, if one is among the causes.
fn action(error: &(dyn StdError + 'static)) -> Option<Action> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return Some(ours.action());
        }
        if let Some(store) = error.downcast_ref::<object_store::Error>() {
            return Some(store_action(store));
        }
        // `io::Error::source` skips the error it carries.
        if let Some(carried) = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref())
            && let Some(found) = action(carried)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// There is no room for what was to be written.
fn is_full(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if is_disk_full(io) {
                return true;
            }
            // `io::Error::source` skips the error it carries.
            if io.get_ref().is_some_and(|carried| is_full(carried)) {
                return true;
            }
        }
        next = error.source();
    }
    false
}

fn store_action(error: &object_store::Error) -> Action {
    use object_store::Error::*;
    match error {
        NotFound { source, .. } if is_missing_bucket(&**source) => Action::Configuration,
        // A file that a table names is gone.
        NotFound { .. } => Action::Human,
        PermissionDenied { .. } | Unauthenticated { .. } => Action::Configuration,
        InvalidPath { .. } | NotSupported { .. } | NotImplemented { .. } | UnknownConfigurationKey { .. } => {
            Action::Configuration
        }
        _ => Action::Retry,
    }
}

fn is_missing_bucket(source: &(dyn StdError + 'static)) -> bool {
    // The S3 error code is only in the text of the server's answer.
    let mut next = Some(source);
    while let Some(error) = next {
        if error.to_string().contains("NoSuchBucket") {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error of the object store while `doing` something with a location.
pub(crate) fn store(error: object_store::Error, doing: &'static str, location: &str) -> Error {
    use object_store::Error::*;
    let action = store_action(&error);
    let message = match &error {
        NotFound { source, .. } if is_missing_bucket(&**source) => {
            "the warehouse's bucket does not exist; create it, or correct [warehouse] url".to_owned()
        }
        NotFound { .. } => format!("a file of the warehouse is missing while {doing}"),
        PermissionDenied { .. } | Unauthenticated { .. } => format!(
            "the warehouse refused access while {doing}; check [warehouse] access_key_id, secret_access_key and the rights on it"
        ),
        _ if is_full(&error) => format!("the warehouse failed while {doing}: {DISK_FULL}"),
        _ if action == Action::Retry => {
            format!("the warehouse failed while {doing}; is it reachable, is its disk full?")
        }
        _ => format!("the warehouse refused while {doing}"),
    };
    Error::new(action, message).with("location", location).source(error)
}

/// An error of an upload, which carries the object store's.
pub(crate) fn upload(error: std::io::Error, doing: &'static str, location: &str) -> Error {
    match error.downcast::<object_store::Error>() {
        Ok(carried) => store(carried, doing, location),
        Err(error) => Error::retry(doing).with("location", location).source(error),
    }
}

/// An error of the iceberg crate: one of the storage keeps its action, anything else is data or metadata that is not as it
/// must be, and nothing that a retry cures.
pub(crate) fn iceberg(error: iceberg::Error, doing: &'static str) -> Error {
    let action = action(&error).unwrap_or(if error.retryable() { Action::Retry } else { Action::Human });
    Error::new(action, doing).source(error)
}

/// An error of the Parquet reader or writer.
pub(crate) fn parquet(error: parquet::errors::ParquetError, doing: &'static str, location: &str) -> Error {
    use parquet::errors::ParquetError::External;
    let External(inner) = error else { return Error::human(doing).with("location", location).source(error) };
    match inner.downcast::<std::io::Error>() {
        Ok(io) => upload(*io, doing, location),
        Err(inner) => match inner.downcast::<object_store::Error>() {
            Ok(carried) => store(*carried, doing, location),
            Err(inner) => {
                let action = action(&*inner).unwrap_or(Action::Human);
                Error::new(action, doing).with("location", location).source(inner)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_is_found_under_wrappers() {
        let refused = || object_store::Error::PermissionDenied {
            path: "a".into(),
            source: Box::new(std::io::Error::other("403")),
        };
        let ours = store(refused(), "writing", "s3://b/a");
        assert_eq!(ours.action(), Action::Configuration);
        let wrapped = ::iceberg::Error::new(::iceberg::ErrorKind::Unexpected, "x").with_source(ours);
        assert_eq!(iceberg(wrapped, "writing a manifest").action(), Action::Configuration);
        let io = std::io::Error::other(refused());
        let external = ::parquet::errors::ParquetError::External(Box::new(io));
        assert_eq!(parquet(external, "writing", "s3://b/a").action(), Action::Configuration);
        let missing = object_store::Error::NotFound { path: "a".into(), source: "<Code>NoSuchBucket</Code>".into() };
        assert!(store(missing, "writing", "s3://b/a").to_string().contains("bucket does not exist"));
    }
}
