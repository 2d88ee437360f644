//! `lakeward tail` as a test runs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};

use serde_json::Value;

use super::{Lakeward, PATIENCE};

/// A running `lakeward tail`, its lines as they come.
pub struct Tail {
    pub child: Child,
    /// None: nobody reads any more.
    pub lines: Option<BufReader<ChildStdout>>,
}

impl Tail {
    pub fn start(lake: &Lakeward, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lakeward"))
            .arg("--config")
            .arg(lake.config())
            .arg("tail")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    pub fn line(&mut self) -> String {
        let mut lines = self.lines.take().unwrap();
        let mut line = String::new();
        self.in_time(|| lines.read_line(&mut line)).unwrap();
        self.lines = Some(lines);
        line.trim_end().to_owned()
    }

    pub fn json(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    /// Ends by itself, with 0.
    pub fn ends(mut self) -> Vec<String> {
        let lines = self.lines.take().unwrap();
        let rest = self.in_time(|| lines.lines().map(Result::unwrap).collect());
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{rest:?}");
        rest
    }

    /// What waits for lines: they end where none comes within [`PATIENCE`], since `tail` is killed then.
    fn in_time<T>(&self, read: impl FnOnce() -> T) -> T {
        let (done, wait) = mpsc::channel::<()>();
        let pid = self.child.id().to_string();
        let watchdog = std::thread::spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("tail {pid} says nothing for {PATIENCE:?}");
                let _ = Command::new("kill").args(["-KILL", &pid]).status();
            }
        });
        let read = read();
        drop(done);
        let _ = watchdog.join();
        read
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
