//! A disk of a few MiB, to be filled.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A file system in memory, mounted at a folder of its own.
pub struct Disk {
    dir: TempDir,
}

impl Disk {
    /// Err: this process may not mount, in the words of `mount`.
    pub fn new(mib: usize) -> Result<Self, String> {
        let dir = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700"), "lakeward-test"]).arg(dir.path());
        let output = mount.output().map_err(|e| e.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut filler = File::create(self.path().join("filler")).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            let zeros = vec![0; size];
            let full = loop {
                if let Err(error) = filler.write(&zeros) {
                    break error;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        }
    }

    /// Gives it back.
    pub fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may hold a file open for a moment.
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
    }
}
