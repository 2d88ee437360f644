//! SQLite's errors -> ours, by what the caller does next.

use std::path::Path;

use crate::{Error, Result};

/// SQLite's primary result codes (<https://www.sqlite.org/rescode.html>); the extended ones have more in their upper bits.
const BUSY: i32 = 5;
const READONLY: i32 = 8;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const TOOBIG: i32 = 18;
const NOTADB: i32 = 26;

/// `doing` is what failed: "appending to the log".
pub(super) fn classify(error: sqlx::Error, path: &Path, doing: &str) -> Error {
    let code = error.as_database_error().and_then(|e| e.code()).and_then(|code| code.parse::<i32>().ok());
    let found = match code.map(|code| code & 0xff) {
        Some(BUSY) => Error::retry(format!("{doing}: another process holds the embedded log's file for too long")),
        Some(FULL) => Error::retry(format!("{doing}: the disk of state_dir is full")),
        Some(READONLY | CANTOPEN) => Error::configuration(format!(
            "{doing}: the embedded log's file cannot be opened or written; see to the rights of state_dir"
        )),
        Some(CORRUPT | NOTADB) => Error::human(format!("{doing}: the embedded log's file is damaged, or is no log")),
        Some(TOOBIG) => {
            Error::human(format!("{doing}: a record is larger than the embedded log takes (1 GB): exclude the table"))
        }
        _ => Error::retry(format!("{doing} failed")),
    };
    found.with("file", path.display()).source(error)
}

/// Adds what was done, and to which file, to an error of SQLite.
pub(super) trait Doing<T> {
    fn doing(self, path: &Path, what: &str) -> Result<T>;
}

impl<T> Doing<T> for sqlx::Result<T> {
    fn doing(self, path: &Path, what: &str) -> Result<T> {
        self.map_err(|error| classify(error, path, what))
    }
}
