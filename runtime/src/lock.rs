//! One process per role and state directory: `<state_dir>/<role>.lock` -> held, or the process id of who holds it.
//!
//! The system lets go of a lock when its process dies, however it dies; the file stays and means nothing by itself. Commands
//! that only read (`sql`, `status`, `verify`) take none.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Held until it is dropped.
#[derive(Debug)]
pub struct RoleLock {
    _file: File,
}

impl RoleLock {
    /// Takes the role, or says who has it. `role` is a file name and what people read: `sink`, `connector of users`. Errors:
    /// `Configuration`, also where the file cannot be made.
    pub fn take(state_dir: &Path, role: &str) -> Result<Self> {
        let path = state_dir.join(format!("{}.lock", role.replace(' ', "-")));
        let failed = |message: &'static str| {
            let path = path.clone();
            move |error| Error::configuration(message).with("path", path.display()).source(error)
        };
        std::fs::create_dir_all(state_dir).map_err(failed("state_dir cannot be made"))?;
        // Not truncated: until the lock is ours, the process id in it is another's.
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = opened.map_err(failed("a lock file in state_dir cannot be opened"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                let holder = match holder.trim() {
                    "" => String::new(),
                    pid => format!(" (process {pid})"),
                };
                return Err(Error::configuration(format!(
                    "another {role} runs with this state_dir{holder}: stop it, or give this one a state_dir of its own"
                ))
                .with("path", path.display()));
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(failed("a lock file in state_dir cannot be locked")(error));
            }
        }
        // Who reads it before it is written names nobody.
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed("a lock file in state_dir cannot be written"))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Action;

    #[test]
    fn a_role_is_taken_once_and_says_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("made/here");
        let held = RoleLock::take(&state, "connector of users").unwrap();
        let error = RoleLock::take(&state, "connector of users").unwrap_err();
        assert_eq!(error.action(), Action::Configuration);
        let text = error.to_string();
        assert!(text.contains("another connector of users runs with this state_dir"), "{text}");
        assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
        let other = RoleLock::take(&state, "connector of billing").unwrap();
        drop(held);
        let again = RoleLock::take(&state, "connector of users").unwrap();
        drop((again, other));
    }
}
