//! A writer that is killed at each named point of an append: afterwards the log holds exactly what its last checkpoint says,
//! each record once. On a real Kafka (`LAKEWARD_TEST_KAFKA`) and on a SQLite file.
//!
//! The process that dies is this test binary again, running [`appender`] with `FAILPOINTS` set.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lakeward_log::Log;
use lakeward_log::conformance::{block, draft, read, reader, values};
use lakeward_log::embedded::EmbeddedLog;
use lakeward_log::kafka::KafkaLog;
use lakeward_runtime::config::{Codec, EmbeddedConfig, KafkaConfig, Secret};

/// Names the source to the child; without it [`appender`] does nothing.
const SOURCE: &str = "LAKEWARD_LOG_CRASH_SOURCE";
/// The child's SQLite file; without it the log is on Kafka.
const FILE: &str = "LAKEWARD_LOG_CRASH_FILE";
/// The child's `transaction.timeout.ms`; it then tries again when an append took too long.
const TIMEOUT: &str = "LAKEWARD_LOG_CRASH_TRANSACTION_MS";
/// Appends that a child makes when nothing stops it.
const APPENDS: u64 = 6;

/// Where the log is.
#[derive(Clone)]
enum Place {
    Kafka,
    /// A SQLite file.
    Embedded(PathBuf),
}

impl Place {
    fn open(&self) -> Arc<dyn Log> {
        match self {
            Self::Kafka => {
                let config = KafkaConfig {
                    brokers: std::env::var("LAKEWARD_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:22092".into()),
                    codec: Codec::Json,
                    partitions: 2,
                    replication: 1,
                    retention: Duration::from_secs(3600),
                    client: std::env::var(TIMEOUT)
                        .map(|ms| ("transaction.timeout.ms".to_owned(), Secret::new(ms)))
                        .into_iter()
                        .collect(),
                };
                KafkaLog::open(&config, "crash").unwrap()
            }
            Self::Embedded(path) => {
                EmbeddedLog::open(&EmbeddedConfig { path: path.clone(), codec: Codec::Json, partitions: 2 })
            }
        }
    }
}

/// The child: goes on from the last checkpoint, as a connector does, and says what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appender() {
    let Ok(source) = std::env::var(SOURCE) else { return };
    lakeward_runtime::crash::setup();
    let place = std::env::var_os(FILE).map_or(Place::Kafka, |file| Place::Embedded(file.into()));
    let topic = format!("{source}.public.a");
    let (mut writer, last) = place.open().writer(&source).await.unwrap();
    writer.ensure_topic(&topic).await.unwrap();
    let first = last.map_or(0, |checkpoint| checkpoint.draft.next_sequence);
    let mut sequence = first;
    while sequence < first + APPENDS {
        // The same number in both partitions, so that half an append would show.
        let value = sequence.to_string();
        let blocks = vec![block(&topic, &[(0, &value), (1, &value)])];
        match writer.append(&[], blocks, draft(sequence + 1)).await {
            Ok(_) => {
                println!("acknowledged {sequence}");
                sequence += 1;
            }
            Err(error) => {
                assert!(std::env::var_os(TIMEOUT).is_some() && error.is_retryable(), "{error:?}");
                println!("again: {error}");
                let (next, last) = place.open().writer(&source).await.unwrap();
                writer = next;
                writer.ensure_topic(&topic).await.unwrap();
                sequence = last.map_or(0, |checkpoint| checkpoint.draft.next_sequence);
            }
        }
    }
}

fn run_child(place: &Place, source: &str, failpoint: Option<&str>) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "appender", "--nocapture"]).env(SOURCE, source).env_remove("FAILPOINTS");
    if let Place::Embedded(file) = place {
        child.env(FILE, file);
    }
    if let Some(point) = failpoint {
        child.env("FAILPOINTS", format!("{point}=3*off->return"));
    }
    child.output().unwrap()
}

/// A source that no test has had before.
fn fresh() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("log_crash_{:x}_{:x}", std::process::id(), now)
}

async fn killed_at(place: Place, point: &str) {
    let source = fresh();
    let topic = format!("{source}.public.a");
    for round in 0..3 {
        let output = run_child(&place, &source, (round < 2).then_some(point));
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if round < 2 {
            assert!(!output.status.success(), "{point} did not kill: {stdout}{stderr}");
            assert!(stderr.contains(&format!("failpoint {point} fired")), "{point}: {stdout}{stderr}");
        } else {
            assert!(output.status.success(), "{point}: {stdout}{stderr}");
        }
        let acknowledged: u64 = stdout.matches("acknowledged").count() as u64;
        assert_eq!(acknowledged, if round < 2 { 3 } else { APPENDS });
        let last: u64 = stdout.lines().filter_map(|l| l.split("acknowledged ").nth(1)?.parse().ok()).max().unwrap();

        // Settles what the child left, as its successor would.
        let (_writer, checkpoint) = place.open().writer(&source).await.unwrap();
        let checkpoint = checkpoint.unwrap();
        let published = checkpoint.draft.next_sequence;
        // The append that was interrupted has happened, or has not.
        let interrupted = u64::from(round < 2);
        assert!(published > last && published <= last + 1 + interrupted, "{point}: {published} after {last}");
        if point == "log.append.committed" && round < 2 {
            assert_eq!(published, last + 2, "what was committed is there");
        } else if round < 2 {
            assert_eq!(published, last + 1, "what was not committed is not there");
        }
        let log = place.open();
        let mut reader = reader(&log, &source, &checkpoint.ends).await;
        let records = read(&mut reader, &checkpoint.ends).await;
        let expected: Vec<String> = (0..published).map(|n| n.to_string()).collect();
        for partition in [0, 1] {
            assert_eq!(values(&records, &topic, partition), expected, "{point}, partition {partition}");
        }
    }
}

/// A producer that stands still for longer than its transaction may: Kafka ends it, and treats the producer as one that was
/// replaced. It is told as what it is, the append is made again, and each record is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_takes_too_long_is_made_again() {
    for point in ["log.append.before_commit", "log.append.data_sent"] {
        let source = fresh();
        let topic = format!("{source}.public.a");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "appender", "--nocapture"]).env(SOURCE, &source).env(TIMEOUT, "1500");
        child.env("FAILPOINTS", format!("{point}=2*off->1*sleep(8000)->off"));
        let output = child.output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{point}: {stdout}{stderr}");
        assert!(
            stdout.contains("transaction.timeout.ms") && stdout.matches("again: ").count() == 1,
            "{point}: {stdout}"
        );
        let log = Place::Kafka.open();
        let (_writer, checkpoint) = log.writer(&source).await.unwrap();
        let checkpoint = checkpoint.unwrap();
        let mut reader = reader(&log, &source, &checkpoint.ends).await;
        let records = read(&mut reader, &checkpoint.ends).await;
        let expected: Vec<String> = (0..APPENDS).map(|n| n.to_string()).collect();
        for partition in [0, 1] {
            assert_eq!(values(&records, &topic, partition), expected, "{point}, partition {partition}");
        }
    }
}

macro_rules! points {
    ($($name:ident: $point:literal),* $(,)?) => {
        mod kafka {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                killed_at(Place::Kafka, $point).await;
            })*
        }
        mod embedded {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                killed_at(Place::Embedded(dir.path().join("log.db")), $point).await;
            })*
        }
    };
}

points!(
    killed_after_begin: "log.append.begun",
    killed_after_the_data: "log.append.data_sent",
    killed_after_the_checkpoint: "log.append.checkpoint_sent",
    killed_before_the_commit: "log.append.before_commit",
    killed_after_the_commit: "log.append.committed",
);
