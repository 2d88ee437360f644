//! What the tests share: services (a database each), pipelines (a configuration and its processes), writers that never pause.
//!
//! Tests are plain functions on threads; what is asynchronous is waited for on one runtime.

mod disk;
mod kafka;
mod lakeward;
mod load;
mod mongo;
mod postgres;
mod stack;
mod tail;

use std::future::IntoFuture;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::Rng;

pub use disk::Disk;
pub use kafka::{
    Foreign, Record, add_partitions, create_topics, delete_topic, delete_topics, produce, produce_foreign,
    produce_with_header, record_headers, records_beginning, set_topic, stream_records, topics_of,
};
pub use lakeward::{Lakeward, Pipeline, Process, said};
pub use load::{mongo_load, mongo_tables, postgres_load, postgres_tables};
pub use mongo::{Documents, Mongo};
pub use postgres::Postgres;
pub use stack::{Servers, Stack};
pub use tail::Tail;

/// Nothing takes longer, unless something hangs. Generous: debug builds, two cores, two tests at once.
pub const PATIENCE: Duration = Duration::from_secs(120);

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
});

/// Waits for a future on the common runtime. Not to be called from that runtime.
pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
    RUNTIME.block_on(async { future.await })
}

/// A server's address from the environment.
fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// The interpreter with the packages of deploy/local/requirements.in.
pub fn python() -> String {
    std::env::var("LAKEWARD_TEST_PYTHON").unwrap_or_else(|_| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/local/python.sh");
        let output = Command::new(script).stderr(Stdio::inherit()).output().expect("python.sh can be started");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    })
}

/// A name that nobody else has: letters only, so that it is a name everywhere.
pub fn fresh(prefix: &str) -> String {
    let mut rng = rand::rng();
    prefix.chars().chain((0..8).map(|_| char::from(rng.random_range(b'a'..=b'z')))).collect()
}

/// Random hexadecimal digits: nothing that PostgreSQL could compress.
pub fn noise(rng: &mut impl Rng, digits: usize) -> String {
    (0..digits).map(|_| char::from(b"0123456789abcdef"[rng.random_range(0..16)])).collect()
}

/// The beginning of a text that may be long.
pub fn clip(text: &str) -> String {
    text.chars().take(4_000).collect()
}

/// Asks again until there is an answer; None: there was none within [`PATIENCE`].
pub fn poll<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() >= deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// [`poll`] for an answer that must come; `what` is what was waited for.
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    poll(ask).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// [`wait_for`] a condition.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    wait_for(what, || done().then_some(()));
}

/// Held by tests that keep both cores busy, so that no two of them run at once.
pub fn heavy() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that changes a service again and again until it is stopped; it does not wait for Lakeward.
pub struct Writer {
    stop: Arc<AtomicBool>,
    changes: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Between two changes: a few hundred changes a second in all, which a debug build keeps up with.
const PACE: Duration = Duration::from_millis(4);

impl Writer {
    /// `change` gets 0, 1, 2 …; a panic of it ends the thread, and the test that waits for more.
    pub fn start(mut change: impl FnMut(u64) + Send + 'static) -> Self {
        let (stop, changes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, changes) = (stop.clone(), changes.clone());
            std::thread::spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    change(n);
                    changes.store(n + 1, Ordering::Relaxed);
                    std::thread::sleep(PACE);
                }
            })
        };
        Self { stop, changes, thread: Some(thread) }
    }

    /// How many changes were made so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Waits until `n` more changes were made.
    pub fn more(&self, n: u64) {
        let goal = self.changes() + n;
        wait_until("the writer goes on", || {
            assert!(!self.thread.as_ref().is_some_and(JoinHandle::is_finished), "the writer ended early");
            self.changes() >= goal
        });
    }

    /// Returns when the last change has been made.
    pub fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        wait_until("the writer ends", || self.thread.as_ref().is_none_or(JoinHandle::is_finished));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
