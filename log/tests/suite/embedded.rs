//! Situations that only the embedded log has: several processes on one file, blocks that were dropped, a file that is damaged.
//!
//! Two logs opened on one file know no more of each other than two processes do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakeward_event::codec::RecordBlock;
use lakeward_log::conformance::{Collector, block, draft, read, reader, values};
use lakeward_log::embedded::EmbeddedLog;
use lakeward_log::{Error, Log, Signal, TopicBlock};
use lakeward_runtime::Action;
use lakeward_runtime::config::{Codec, EmbeddedConfig};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

const SOURCE: &str = "users";
const TOPIC: &str = "users.public.a";

pub fn at(dir: &Path) -> Arc<dyn Log> {
    // In a folder that is not there yet, as state_dir may be.
    EmbeddedLog::open(&EmbeddedConfig { path: dir.join("state/log.db"), codec: Codec::Json, partitions: 3 })
}

pub fn open() -> (Arc<dyn Log>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (at(dir.path()), dir)
}

/// The file, past the log.
async fn file(dir: &TempDir) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(dir.path().join("state/log.db"));
    SqliteConnection::connect_with(&options).await.unwrap()
}

async fn refused(log: &Arc<dyn Log>, offset: i64, end: i64) -> Error {
    let mut reader = log.records(SOURCE).await.unwrap();
    reader.assign(TOPIC, 0, offset).await.unwrap();
    let ends = BTreeMap::from([(TOPIC.to_owned(), BTreeMap::from([(0, end)]))]);
    let visitor = Box::new(Collector { records: vec![], limit: usize::MAX });
    reader.read_to(&ends, visitor).await.map(|_| ()).unwrap_err()
}

/// Incompressible bytes, different for each `seed`.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Kept through a crash of the machine: the promise is the file's settings, which tests cannot pull the plug on.
#[tokio::test]
async fn the_file_is_durable_and_gives_space_back() {
    let (log, dir) = open();
    log.writer(SOURCE).await.unwrap();
    let mut file = file(&dir).await;
    let pragma = async |connection: &mut SqliteConnection, name: &str| -> String {
        sqlx::query_scalar(&format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}"))
            .fetch_one(connection)
            .await
            .unwrap()
    };
    assert_eq!(pragma(&mut file, "journal_mode").await, "wal");
    assert_eq!(pragma(&mut file, "auto_vacuum").await, "2", "incremental");
}

/// Readers of another process get checkpoints, records and signals as they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_processes_read_along() {
    let (log, dir) = open();
    let other = at(dir.path());
    let mut checkpoints = other.checkpoints(SOURCE, None).await.unwrap();
    let waiting = tokio::spawn(async move {
        let first = checkpoints.next().await.unwrap();
        (first, checkpoints.next().await.unwrap())
    });
    let (mut writer, _) = log.writer(SOURCE).await.unwrap();
    let mut signals = log.signals(SOURCE).await.unwrap();
    let first = writer.append(&[], vec![block(TOPIC, &[(0, "1")])], draft(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let second = writer.append(&[], vec![block(TOPIC, &[(0, "2")])], draft(2)).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert_eq!(waited.expect("the second checkpoint is noticed").unwrap(), (first, second.clone()));
    let mut reader = reader(&other, SOURCE, &second.ends).await;
    assert_eq!(values(&read(&mut reader, &second.ends).await, TOPIC, 0), ["1", "2"]);
    let signal = Signal::Cut { request: "r".into(), lsn: 7 };
    let (heard, sent) = tokio::join!(signals.next(), other.signal(SOURCE, &signal));
    sent.unwrap();
    assert_eq!(heard.unwrap(), signal);
}

/// A writer of another process ends this one's: also an append that has everything but its commit behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_of_another_process_is_fenced() {
    let (log, dir) = open();
    let (mut old, _) = log.writer(SOURCE).await.unwrap();
    let first = old.append(&[], vec![block(TOPIC, &[(0, "old")])], draft(1)).await.unwrap();
    let (mut new, found) = at(dir.path()).writer(SOURCE).await.unwrap();
    assert_eq!(found, Some(first.clone()));
    let error = old.append(&[], vec![block(TOPIC, &[(0, "zombie")])], draft(2)).await.unwrap_err();
    assert_eq!(error.action(), Action::Human);
    assert!(error.to_string().contains("another connector"), "{error}");
    let second = new.append(&[], vec![block(TOPIC, &[(0, "new")])], draft(3)).await.unwrap();
    assert_eq!(second.ends[TOPIC][&0], 2);
    let mut reader = reader(&log, SOURCE, &second.ends).await;
    assert_eq!(values(&read(&mut reader, &second.ends).await, TOPIC, 0), ["old", "new"]);
}

/// Writers of several sources in several processes wait for each other; none fails, none is mixed up with another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_write_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let writers = (0..4_u64).map(|n| {
        // All at once, so that they also make the file at once.
        let log = at(dir.path());
        tokio::spawn(async move {
            let (source, topic) = (format!("s{n}"), format!("s{n}.public.a"));
            let (mut writer, _) = log.writer(&source).await.unwrap();
            let mut last = None;
            for round in 0..30 {
                let value = format!("{n}/{round}");
                last = Some(writer.append(&[], vec![block(&topic, &[(0, &value)])], draft(round)).await.unwrap());
            }
            let ends = last.unwrap().ends;
            let mut reader = reader(&log, &source, &ends).await;
            let expected: Vec<String> = (0..30).map(|round| format!("{n}/{round}")).collect();
            assert_eq!(values(&read(&mut reader, &ends).await, &topic, 0), expected);
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// An append that nobody waits for any more happens whole or not at all, and its writer is spent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_append_is_whole_or_nothing() {
    let (log, _dir) = open();
    let mut happened = 0;
    for round in 0..20_u64 {
        let (mut writer, before) = log.writer(SOURCE).await.unwrap();
        writer.ensure_topic(TOPIC).await.unwrap();
        let all: Vec<_> = (0..2000).map(|_| (0, "some bytes of a value")).collect();
        let append = writer.append(&[], vec![block(TOPIC, &all)], draft(round + 1));
        let _ = tokio::time::timeout(Duration::from_micros(round * 400), append).await;
        let (mut next, found) = log.writer(SOURCE).await.unwrap();
        let sequence = |c: &Option<lakeward_event::Checkpoint>| c.as_ref().map_or(0, |c| c.draft.next_sequence);
        happened += u64::from(sequence(&found) != sequence(&before));
        let bounds = log.bounds(SOURCE).await.unwrap()[TOPIC][&0];
        assert_eq!(bounds, (0, happened as i64 * 2000), "round {round}");
        drop(writer);
        next.append(&[], vec![], draft(sequence(&found))).await.unwrap();
    }
    assert!(happened > 0, "no append was ever fast enough: the test says nothing");
}

/// What was dropped is an error that says so, never a jump to where the log is; checkpoints too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_outside_the_log_is_an_error() {
    let (log, _dir) = open();
    let (mut writer, _) = log.writer(SOURCE).await.unwrap();
    let mut written = Vec::new();
    for round in 0..5 {
        written.push(writer.append(&[], vec![block(TOPIC, &[(0, "x"), (0, "y")])], draft(round)).await.unwrap());
    }
    log.may_drop(SOURCE, &written[2].ends, written[2].id).await.unwrap();
    assert_eq!(log.bounds(SOURCE).await.unwrap()[TOPIC][&0], (6, 10));
    for (offset, end) in [(0, 10), (5, 6), (5, 10)] {
        let error = refused(&log, offset, end).await;
        assert_eq!(error.action(), Action::Human);
        let text = error.to_string();
        assert!(
            text.contains(TOPIC) && text.contains(&format!("offset={offset}")) && text.contains("first_offset=6"),
            "{text}"
        );
    }
    for (offset, end) in [(4000, 4001), (9, 11)] {
        let error = refused(&log, offset, end).await;
        assert_eq!(error.action(), Action::Human);
        assert!(error.to_string().contains("the log ends before"), "{error}");
    }
    let error = log.checkpoints(SOURCE, Some(written[0].id)).await.unwrap().next().await.unwrap_err();
    assert_eq!(error.action(), Action::Human);
    assert!(error.to_string().contains("dropped before they were read"), "{error}");
    // A checkpoint that was never there: of a log that was deleted.
    let other = written[4].id - 1;
    let error = log.checkpoints(SOURCE, Some(other)).await.unwrap().try_next().await.unwrap_err();
    assert_eq!(error.action(), Action::Human);
    assert!(error.to_string().contains("not the one"), "{error}");
    let mut all = log.checkpoints(SOURCE, None).await.unwrap();
    assert_eq!(all.next().await.unwrap(), written[2]);
    let mut missing = log.records(SOURCE).await.unwrap();
    missing.assign("users.public.gone", 0, 0).await.unwrap();
    let ends = BTreeMap::from([("users.public.gone".to_owned(), BTreeMap::from([(0, 1)]))]);
    let visitor = Box::new(Collector { records: vec![], limit: 1 });
    let error = missing.read_to(&ends, visitor).await.map(|_| ()).unwrap_err();
    assert_eq!(error.action(), Action::Human);
    assert!(error.to_string().contains("users.public.gone"), "{error}");
}

/// A sink that keeps up keeps the file small; one that was away gets it back to small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_does_not_grow_for_ever() {
    let (log, dir) = open();
    let (mut writer, _) = log.writer(SOURCE).await.unwrap();
    let size = || std::fs::metadata(dir.path().join("state/log.db")).unwrap().len() >> 20;
    let mut append = async |seed: u64| {
        let mut block = RecordBlock::default();
        for n in 0..8 {
            block.push(0, None, Some(&noise(seed * 8 + n, 1 << 20)), None);
        }
        writer.append(&[], vec![TopicBlock { topic: TOPIC.into(), block }], draft(seed)).await.unwrap()
    };
    // Away: 96 MiB come together.
    let mut last = append(0).await;
    for seed in 1..12 {
        last = append(seed).await;
    }
    assert!(size() >= 64, "{} MiB", size());
    log.may_drop(SOURCE, &last.ends, last.id).await.unwrap();
    assert!(size() <= 24, "{} MiB after it was read", size());
    // Keeping up: 96 MiB more pass through.
    for seed in 12..24 {
        let checkpoint = append(seed).await;
        log.may_drop(SOURCE, &checkpoint.ends, checkpoint.id).await.unwrap();
    }
    assert!(size() <= 40, "{} MiB while keeping up", size());
    let mut file = file(&dir).await;
    let rows: (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM blocks), (SELECT count(*) FROM checkpoints), (SELECT count(*) FROM partitions)",
    )
    .fetch_one(&mut file)
    .await
    .unwrap();
    assert_eq!(rows, (0, 1, 3));
    let checked: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut file).await.unwrap();
    assert_eq!(checked, "ok");
}

/// A block that somebody changed, a file of another program or version: told, with the place, and never a panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_told() {
    let (log, dir) = open();
    let (mut writer, _) = log.writer(SOURCE).await.unwrap();
    writer.append(&[], vec![block(TOPIC, &[(0, "x"), (0, "y")])], draft(1)).await.unwrap();
    for blob in ["zeroblob(3)", "x'0003000000010203'", "x'0900000000'", "x'010300000001020304'", "x'0000000000'"] {
        let mut file = file(&dir).await;
        sqlx::query(&format!("UPDATE blocks SET records = {blob}")).execute(&mut file).await.unwrap();
        let error = refused(&log, 0, 2).await;
        assert_eq!(error.action(), Action::Human);
        assert!(error.to_string().contains("damaged") && error.to_string().contains(TOPIC), "{blob}: {error}");
    }
    let mut other = file(&dir).await;
    sqlx::query("DELETE FROM blocks").execute(&mut other).await.unwrap();
    assert!(refused(&log, 0, 2).await.to_string().contains("blocks are missing"));
    sqlx::query("UPDATE checkpoints SET value = '{}'").execute(&mut other).await.unwrap();
    let error = log.last_checkpoint(SOURCE).await.unwrap_err();
    assert!(error.action() == Action::Human && error.to_string().contains("checkpoint"), "{error}");
    sqlx::query("PRAGMA user_version = 99").execute(&mut other).await.unwrap();
    let error = at(dir.path()).writer(SOURCE).await.map(|_| ()).unwrap_err();
    assert!(error.action() == Action::Human && error.to_string().contains("version=99"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    std::fs::write(dir.path().join("state/log.db"), "not a database, but long enough to be looked at ".repeat(100))
        .unwrap();
    let error = at(dir.path()).last_checkpoint(SOURCE).await.unwrap_err();
    assert!(error.action() == Action::Human && error.to_string().contains("log.db"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state"), "a file where the folder should be").unwrap();
    let error = at(dir.path()).last_checkpoint(SOURCE).await.unwrap_err();
    assert_eq!(error.action(), Action::Configuration, "{error}");
}
