//! The suite that tests each rule of the contract, the same for every implementation: a log and a fresh source name -> a panic
//! that says what is wrong.
//!
//! Each function wants a source that the log has never seen. What only one implementation can be made to do (aborted
//! transactions in the way, a log cut off by retention) is tested beside that implementation.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakeward_event::codec::{RecordBlock, RecordRef};
use lakeward_event::{
    Checkpoint, CheckpointDraft, Column, Ends, LogicalType, Position, TableId, TableSchema, schema::TableKind,
};
use lakeward_runtime::Action;

use crate::{CheckpointReader, Log, RecordReader, RecordVisitor, Signal, TopicBlock, Writer};

/// A complete checkpoint comes at least this often.
pub const COMPLETE_WITHIN: usize = 64;
/// No wait of the suite should come near it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub header: Option<Vec<u8>>,
}

/// Keeps copies of records; stops after `limit`.
#[derive(Debug)]
pub struct Collector {
    pub records: Vec<Read>,
    pub limit: usize,
}

impl RecordVisitor for Collector {
    fn record(&mut self, record: &RecordRef<'_>) -> ControlFlow<()> {
        self.records.push(Read {
            topic: record.topic.to_owned(),
            partition: record.partition,
            offset: record.offset,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            header: record.header.map(<[u8]>::to_vec),
        });
        if self.records.len() >= self.limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

pub fn draft(next_sequence: u64) -> CheckpointDraft {
    CheckpointDraft {
        position: Position::Postgres { lsn: next_sequence * 100, partial: None, system_id: "7".into(), timeline: 1 },
        next_sequence,
        snapshot: serde_json::Value::Null,
        converging: vec!["public.b".into()],
        watermark_from: 1_000_000,
        watermark: 2_000_000,
        cut: true,
    }
}

/// One record for each `(partition, value)`; the key is the value's first byte, the header `h`.
pub fn block(topic: &str, values: &[(i32, &str)]) -> TopicBlock {
    let mut block = RecordBlock::default();
    for (partition, value) in values {
        block.push(*partition, value.as_bytes().get(..1), Some(value.as_bytes()), Some(b"h"));
    }
    TopicBlock { topic: topic.to_owned(), block }
}

/// An append that fails on its way: its last record is for a partition that there is not.
fn poisoned(topic: &str, records: usize) -> TopicBlock {
    let mut poisoned = RecordBlock::default();
    for _ in 0..records {
        poisoned.push(0, Some(b"k"), Some(b"never to be seen"), None);
    }
    poisoned.push(1_000_000, None, Some(b"never to be seen"), None);
    TopicBlock { topic: topic.to_owned(), block: poisoned }
}

pub async fn read(reader: &mut Box<dyn RecordReader>, ends: &Ends) -> Vec<Read> {
    read_some(reader, ends, usize::MAX).await
}

async fn read_some(reader: &mut Box<dyn RecordReader>, ends: &Ends, limit: usize) -> Vec<Read> {
    let visitor = Box::new(Collector { records: Vec::new(), limit });
    let visitor = tokio::time::timeout(PATIENCE, reader.read_to(ends, visitor)).await.expect("read_to ends").unwrap();
    visitor.into_any().downcast::<Collector>().expect("the visitor comes back").records
}

/// A reader of every partition in `ends`, from offset 0.
pub async fn reader(log: &Arc<dyn Log>, source: &str, ends: &Ends) -> Box<dyn RecordReader> {
    let mut reader = log.records(source).await.unwrap();
    for (topic, partitions) in ends {
        for &partition in partitions.keys() {
            reader.assign(topic, partition, 0).await.unwrap();
        }
    }
    reader
}

pub fn values(records: &[Read], topic: &str, partition: i32) -> Vec<String> {
    records
        .iter()
        .filter(|r| r.topic == topic && r.partition == partition)
        .map(|r| String::from_utf8(r.value.clone().unwrap_or_default()).unwrap())
        .collect()
}

async fn next(reader: &mut Box<dyn CheckpointReader>) -> Checkpoint {
    tokio::time::timeout(PATIENCE, reader.next()).await.expect("a checkpoint comes").unwrap()
}

/// Asks until the answer is `expected`: what is appended can be read soon, not at once.
async fn eventually<T: PartialEq + std::fmt::Debug>(expected: T, ask: impl AsyncFn() -> T) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if answer == expected {
            return;
        }
        assert!(Instant::now() < deadline, "still {answer:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn append(writer: &mut Box<dyn Writer>, blocks: Vec<TopicBlock>, sequence: u64) -> Checkpoint {
    writer.append(&[], blocks, draft(sequence)).await.unwrap()
}

/// A source that nobody has written to has nothing, and asking for it is no error.
pub async fn a_new_source_is_empty(log: Arc<dyn Log>, source: &str) {
    assert_eq!(log.last_checkpoint(source).await.unwrap(), None);
    assert!(log.schemas(source).await.unwrap().is_empty());
    assert!(log.bounds(source).await.unwrap().is_empty());
    let (mut writer, last) = log.writer(source).await.unwrap();
    assert_eq!(last, None);
    assert_eq!(log.last_checkpoint(source).await.unwrap(), None);
    // A checkpoint needs no records.
    let first = append(&mut writer, vec![], 1).await;
    assert!(first.complete, "the first checkpoint of a writer is complete");
    assert!(first.ends.is_empty());
    eventually(Some(first), async || log.last_checkpoint(source).await.unwrap()).await;
}

/// What was appended is read as it was, in order per partition, and the checkpoint's ends are exact.
pub async fn records_come_back_in_order(log: Arc<dyn Log>, source: &str) {
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(source).await.unwrap();
    let partitions = writer.ensure_topic(&topic).await.unwrap();
    assert!(partitions >= 2, "the suite wants topics of two partitions or more");
    assert_eq!(writer.ensure_topic(&topic).await.unwrap(), partitions);

    let mut odd = RecordBlock::default();
    odd.push(1, None, None, None);
    odd.push(1, Some(b""), Some(b""), Some(b""));
    let blocks = vec![
        block(&topic, &[(0, "a1"), (1, "b1"), (0, "a2")]),
        block(&topic, &[(0, "a3")]),
        TopicBlock { topic: topic.clone(), block: odd },
    ];
    let first = append(&mut writer, blocks, 10).await;
    let second = append(&mut writer, vec![block(&topic, &[(0, "a4"), (1, "b2")])], 20).await;
    assert!(second.id > first.id);
    assert_eq!(second.draft, draft(20));

    let mut reader = reader(&log, source, &first.ends).await;
    let records = read(&mut reader, &first.ends).await;
    assert_eq!(values(&records, &topic, 0), ["a1", "a2", "a3"]);
    assert_eq!(values(&records, &topic, 1), ["b1", "", ""]);
    let odd: Vec<_> = records.iter().filter(|r| r.partition == 1).skip(1).collect();
    assert_eq!((&odd[0].key, &odd[0].value, &odd[0].header), (&None, &None, &None));
    assert_eq!(odd[1].value.as_deref(), Some(&b""[..]));
    assert_eq!(records[0].key.as_deref(), Some(&records[0].value.as_ref().unwrap()[..1]));
    assert_eq!(records[0].header.as_deref(), Some(&b"h"[..]));
    for partition in [0, 1] {
        let last = records.iter().filter(|r| r.partition == partition).map(|r| r.offset).max().unwrap();
        assert_eq!(first.ends[&topic][&partition], last + 1, "an end is the offset after the last record");
    }
    // What lies beyond an end is kept for the next call.
    let records = read(&mut reader, &second.ends).await;
    assert_eq!(values(&records, &topic, 0), ["a4"]);
    assert_eq!(values(&records, &topic, 1), ["b2"]);
    assert!(read(&mut reader, &second.ends).await.is_empty());
    let bounds = log.bounds(source).await.unwrap();
    assert_eq!(bounds[&topic][&0].0, 0);
    assert!(bounds[&topic][&0].1 >= second.ends[&topic][&0]);
}

/// A reader that knows an offset goes on there; a visitor that breaks off gets the next record next time.
pub async fn a_reader_continues_where_it_was(log: Arc<dyn Log>, source: &str) {
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(source).await.unwrap();
    writer.ensure_topic(&topic).await.unwrap();
    let first = append(&mut writer, vec![block(&topic, &[(0, "1"), (0, "2"), (0, "3")])], 1).await;
    let second = append(&mut writer, vec![block(&topic, &[(0, "4"), (0, "5")])], 2).await;
    let from = |offset| {
        let (log, topic) = (log.clone(), topic.clone());
        async move {
            let mut reader = log.records(source).await.unwrap();
            reader.assign(&topic, 0, offset).await.unwrap();
            assert!(reader.assign(&topic, 0, offset).await.is_err(), "a partition is assigned once");
            reader
        }
    };
    let mut from_end = from(first.ends[&topic][&0]).await;
    assert_eq!(values(&read(&mut from_end, &second.ends).await, &topic, 0), ["4", "5"]);
    let mut from_second = from(1).await;
    assert_eq!(values(&read(&mut from_second, &second.ends).await, &topic, 0), ["2", "3", "4", "5"]);
    let mut breaking = from(0).await;
    let mut all = Vec::new();
    for _ in 0..5 {
        let some = read_some(&mut breaking, &second.ends, 1).await;
        assert_eq!(some.len(), 1, "a visitor that breaks off gets nothing more");
        all.extend(some);
    }
    assert_eq!(values(&all, &topic, 0), ["1", "2", "3", "4", "5"]);
    assert!(read(&mut breaking, &second.ends).await.is_empty());
    let mut unassigned = log.records(source).await.unwrap();
    let visitor = Box::new(Collector { records: vec![], limit: 1 });
    assert!(unassigned.read_to(&second.ends, visitor).await.is_err(), "ends must be assigned");
}

/// An append that fails leaves nothing behind, and its writer is spent; the next one goes on from the last checkpoint.
pub async fn a_failed_append_leaves_nothing(log: Arc<dyn Log>, source: &str) {
    let topic = format!("{source}.public.a");
    let mut committed = Vec::new();
    let mut last = None;
    for round in 0..4 {
        let (mut writer, found) = log.writer(source).await.unwrap();
        assert_eq!(found, last, "the last checkpoint, whatever failed after it");
        writer.ensure_topic(&topic).await.unwrap();
        let value = format!("good {round}");
        let checkpoint = append(&mut writer, vec![block(&topic, &[(0, &value)])], round).await;
        committed.push(value);
        last = Some(checkpoint);
        // Enough records that a part of them is with the server before the failure.
        let schema = schema(source, 100 + u32::try_from(round).unwrap());
        let failed =
            writer.append(&[schema], vec![block(&topic, &[(0, "no")]), poisoned(&topic, 50_000)], draft(99)).await;
        assert!(failed.is_err());
        assert!(writer.append(&[], vec![], draft(99)).await.is_err(), "a writer is spent after a failure");
        eventually(last.clone(), async || log.last_checkpoint(source).await.unwrap()).await;
    }
    let ends = last.unwrap().ends;
    let mut reader = reader(&log, source, &ends).await;
    assert_eq!(values(&read(&mut reader, &ends).await, &topic, 0), committed);
    assert!(log.schemas(source).await.unwrap().is_empty(), "schemas of a failed append are not there");
}

/// A new writer ends the old one: nothing it appends afterwards can be read.
pub async fn a_new_writer_fences_the_old(log: Arc<dyn Log>, source: &str) {
    let topic = format!("{source}.public.a");
    let (mut old, _) = log.writer(source).await.unwrap();
    old.ensure_topic(&topic).await.unwrap();
    let first = append(&mut old, vec![block(&topic, &[(0, "old")])], 1).await;
    let (mut new, found) = log.writer(source).await.unwrap();
    assert_eq!(found, Some(first.clone()));
    let error = old.append(&[], vec![block(&topic, &[(0, "zombie")])], draft(2)).await.unwrap_err();
    assert!(!error.is_retryable(), "being replaced is not cured by trying again: {error}");
    assert_eq!(log.last_checkpoint(source).await.unwrap(), Some(first));
    let second = append(&mut new, vec![block(&topic, &[(0, "new")])], 3).await;
    assert!(second.complete, "the first checkpoint of a writer is complete");
    let mut reader = reader(&log, source, &second.ends).await;
    assert_eq!(values(&read(&mut reader, &second.ends).await, &topic, 0), ["old", "new"]);
}

/// Whenever the takeover comes, the checkpoint it returns is the last: an append that was under way is in it or never will be.
pub async fn a_takeover_reads_the_last_checkpoint(log: Arc<dyn Log>, source: &str) {
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(source).await.unwrap();
    writer.ensure_topic(&topic).await.unwrap();
    let mut last = append(&mut writer, vec![block(&topic, &[(0, "start")])], 0).await;
    let mut won = 0;
    for round in 1..12_u64 {
        let blocks = vec![block(&topic, &[(0, &format!("round {round}"))])];
        let appending = tokio::spawn(async move { writer.append(&[], blocks, draft(round)).await });
        tokio::time::sleep(Duration::from_millis(round * 4)).await;
        let (next_writer, found) = log.writer(source).await.unwrap();
        let found = found.expect("there is a checkpoint");
        if let Ok(checkpoint) = appending.await.unwrap() {
            assert_eq!(found, checkpoint, "an append that succeeded is what the next writer finds");
            won += 1;
        }
        assert_eq!(log.last_checkpoint(source).await.unwrap().as_ref(), Some(&found));
        assert!(found.id >= last.id);
        (writer, last) = (next_writer, found);
    }
    assert!(won > 0, "no append was ever first: the test says nothing");
    // Each committed checkpoint's records are there once, the others' are not.
    let last = append(&mut writer, vec![], 99).await;
    let mut checkpoints = log.checkpoints(source, None).await.unwrap();
    let mut committed = Vec::new();
    while let Some(checkpoint) = checkpoints.try_next().await.unwrap() {
        committed.push(checkpoint.draft.next_sequence);
    }
    committed.retain(|sequence| *sequence > 0 && *sequence < 99);
    let mut reader = reader(&log, source, &last.ends).await;
    let records = read(&mut reader, &last.ends).await;
    let read: Vec<u64> =
        values(&records, &topic, 0).iter().filter_map(|v| v.strip_prefix("round ")?.parse().ok()).collect();
    assert_eq!(read, committed);
}

/// Checkpoints hold what was touched, complete ones everything; from any of them on, the ends are known within a bound.
pub async fn complete_checkpoints_hold_all_ends(log: Arc<dyn Log>, source: &str) {
    let (busy, quiet) = (format!("{source}.public.busy"), format!("{source}.public.quiet"));
    let (mut writer, _) = log.writer(source).await.unwrap();
    let partitions = writer.ensure_topic(&busy).await.unwrap();
    writer.ensure_topic(&quiet).await.unwrap();
    let mut known: Ends = BTreeMap::new();
    for topic in [&busy, &quiet] {
        known.insert(topic.clone(), (0..partitions).map(|p| (p, 0)).collect());
    }
    let mut since_complete = 0;
    for round in 0..(2 * COMPLETE_WITHIN + 3) {
        let mut blocks = vec![block(&busy, &[(1, "x")])];
        if round == 1 {
            blocks.push(block(&quiet, &[(0, "y")]));
        }
        let checkpoint = append(&mut writer, blocks, round as u64).await;
        known.get_mut(&busy).unwrap().insert(1, checkpoint.ends[&busy][&1]);
        if round == 1 {
            known.get_mut(&quiet).unwrap().insert(0, checkpoint.ends[&quiet][&0]);
        }
        if checkpoint.complete {
            assert_eq!(checkpoint.ends, known);
            since_complete = 0;
        } else {
            since_complete += 1;
            assert!(since_complete < COMPLETE_WITHIN, "a complete checkpoint comes in time");
            let touched: Vec<_> = checkpoint.ends.iter().flat_map(|(t, ps)| ps.keys().map(move |p| (t, *p))).collect();
            let expected = if round == 1 { vec![(&busy, 1), (&quiet, 0)] } else { vec![(&busy, 1)] };
            assert_eq!(touched, expected);
        }
    }
    let (mut writer, _) = log.writer(source).await.unwrap();
    let checkpoint = append(&mut writer, vec![], 999).await;
    assert!(checkpoint.complete);
    assert_eq!(checkpoint.ends, known, "a new writer knows the ends exactly, markers not counted");
}

/// Checkpoints are read in order of id, none left out, from any id on; waiting can be given up and taken up again.
pub async fn checkpoints_are_read_in_order(log: Arc<dyn Log>, source: &str) {
    // A reader may be there first.
    let mut early = log.checkpoints(source, None).await.unwrap();
    assert!(early.try_next().await.unwrap().is_none());
    let (mut writer, _) = log.writer(source).await.unwrap();
    let mut written = Vec::new();
    for sequence in 0..400 {
        written.push(append(&mut writer, vec![], sequence).await);
    }
    assert!(written.windows(2).all(|pair| pair[0].id < pair[1].id));
    for expected in &written {
        assert_eq!(next(&mut early).await, *expected);
    }
    assert!(early.try_next().await.unwrap().is_none(), "nothing is left");
    for after in [0, 1, 120, 398, 399] {
        let mut reader = log.checkpoints(source, Some(written[after].id)).await.unwrap();
        for expected in &written[after + 1..] {
            assert_eq!(reader.try_next().await.unwrap().as_ref(), Some(expected), "after checkpoint {after}");
        }
        assert!(reader.try_next().await.unwrap().is_none());
    }
    let mut before_all = log.checkpoints(source, Some(0)).await.unwrap();
    assert_eq!(next(&mut before_all).await, written[0]);
    // Ids that no checkpoint has are of another log, below what this one has, within, and at its end.
    for never in [1, written[120].id - 1, written[399].id - 1] {
        let mut reader = log.checkpoints(source, Some(never)).await.unwrap();
        let error = reader.try_next().await.unwrap_err();
        assert!(error.action() == Action::Human && error.to_string().contains("not the one"), "{error}");
    }
    // Waiting: given up several times, then answered.
    for _ in 0..3 {
        assert!(tokio::time::timeout(Duration::from_millis(30), early.next()).await.is_err());
    }
    let later = append(&mut writer, vec![], 1000).await;
    assert_eq!(next(&mut early).await, later);
    let (waited, appended) = tokio::join!(next(&mut early), append(&mut writer, vec![], 1001));
    assert_eq!(waited, appended);
}

fn schema(source: &str, version: u32) -> Arc<TableSchema> {
    Arc::new(TableSchema {
        table: TableId::new(source, "public", "a"),
        kind: TableKind::Relational,
        version,
        columns: vec![Column {
            id: 1,
            name: "id".into(),
            ty: LogicalType::Long,
            source_type: "int8".into(),
            nullable: false,
        }],
        key: vec![0],
    })
}

/// Schemas come with the append that carries them, every version stays.
pub async fn schemas_are_kept_by_version(log: Arc<dyn Log>, source: &str) {
    let (mut writer, _) = log.writer(source).await.unwrap();
    let all: Vec<_> = (1..=3).map(|version| schema(source, version)).collect();
    writer.append(&all[..1], vec![], draft(1)).await.unwrap();
    eventually(all[..1].to_vec(), async || log.schemas(source).await.unwrap()).await;
    writer.append(&all, vec![], draft(2)).await.unwrap();
    eventually(all.clone(), async || log.schemas(source).await.unwrap()).await;
}

/// Signals reach readers that were there before them, in order, and no later ones.
pub async fn signals_reach_who_listens(log: Arc<dyn Log>, source: &str) {
    let cut = |request: &str| Signal::Cut { request: request.into(), lsn: 5 };
    assert!(log.signal(source, &cut("nobody")).await.is_err(), "no connector has ever run");
    let (_writer, _) = log.writer(source).await.unwrap();
    log.signal(source, &cut("early")).await.unwrap();
    let mut signals = log.signals(source).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), signals.next()).await.is_err());
    let snapshot = Signal::Snapshot { request: "two".into(), tables: vec!["public.a".into()] };
    log.signal(source, &cut("one")).await.unwrap();
    log.signal(source, &snapshot).await.unwrap();
    for expected in [cut("one"), snapshot] {
        let signal = tokio::time::timeout(PATIENCE, signals.next()).await.expect("a signal comes").unwrap();
        assert_eq!(signal, expected);
    }
}

/// One append of many records over all partitions comes back whole.
pub async fn large_appends_come_back_whole(log: Arc<dyn Log>, source: &str) {
    const RECORDS: usize = 100_000;
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(source).await.unwrap();
    let partitions = writer.ensure_topic(&topic).await.unwrap();
    let mut large = RecordBlock::default();
    for number in 0..RECORDS {
        let value = format!("{number:0200}");
        large.push(
            i32::try_from(number).unwrap() % partitions,
            Some(&value.as_bytes()[190..]),
            Some(value.as_bytes()),
            Some(b"h"),
        );
    }
    // One record far above Kafka's usual limit of 1 MiB, of bytes that do not compress.
    let mut state = 1_u64;
    let incompressible: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    })
    .take(5 << 20)
    .collect();
    large.push(0, None, Some(&incompressible), None);
    let checkpoint = append(&mut writer, vec![TopicBlock { topic: topic.clone(), block: large }], 1).await;
    let mut reader = reader(&log, source, &checkpoint.ends).await;
    let records = read(&mut reader, &checkpoint.ends).await;
    assert_eq!(records.len(), RECORDS + 1);
    for partition in 0..partitions {
        let numbers: Vec<usize> = records
            .iter()
            .filter(|r| r.partition == partition)
            .filter_map(|r| std::str::from_utf8(r.value.as_ref()?).ok()?.parse().ok())
            .collect();
        let expected: Vec<usize> =
            (0..RECORDS).filter(|n| i32::try_from(*n).unwrap() % partitions == partition).collect();
        assert_eq!(numbers, expected);
    }
    assert!(records.iter().any(|r| r.value.as_ref() == Some(&incompressible)));
}

/// What the sink says may go is gone or not; what lies above it stays, and so do the last checkpoint and every schema.
pub async fn advice_to_drop_leaves_what_is_above(log: Arc<dyn Log>, source: &str) {
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(source).await.unwrap();
    let partitions = writer.ensure_topic(&topic).await.unwrap();
    writer.append(&[schema(source, 1)], vec![], draft(0)).await.unwrap();
    let mut written = Vec::new();
    for round in 0..6 {
        let (zero, one) = (format!("a{round}"), format!("b{round}"));
        let mut values = vec![(0, zero.as_str()), (0, zero.as_str())];
        if round % 2 == 0 {
            values.push((1, one.as_str()));
        }
        written.push(append(&mut writer, vec![block(&topic, &values)], round + 1).await);
    }
    let kept = written[2].clone();
    let mut below = kept.ends.clone();
    // Not the end of an append: what is still needed of one stays.
    *below.get_mut(&topic).unwrap().get_mut(&0).unwrap() -= 1;
    log.may_drop(source, &below, kept.id).await.unwrap();
    log.may_drop(source, &below, kept.id).await.unwrap();
    log.may_drop(&format!("{source}x"), &below, i64::MAX).await.unwrap();

    let last = written[5].clone();
    eventually(Some(last.clone()), async || log.last_checkpoint(source).await.unwrap()).await;
    assert_eq!(log.schemas(source).await.unwrap(), [schema(source, 1)]);
    let mut checkpoints = log.checkpoints(source, Some(kept.id)).await.unwrap();
    for expected in &written[3..] {
        assert_eq!(next(&mut checkpoints).await, *expected);
    }
    let mut reader = log.records(source).await.unwrap();
    let mut ends = Ends::from([(topic.clone(), BTreeMap::new())]);
    for partition in 0..partitions {
        let from = below[&topic].get(&partition).copied().unwrap_or(0);
        reader.assign(&topic, partition, from).await.unwrap();
    }
    for checkpoint in &written {
        ends.get_mut(&topic).unwrap().extend(checkpoint.ends[&topic].clone());
    }
    let records = read(&mut reader, &ends).await;
    assert_eq!(values(&records, &topic, 0), ["a2", "a3", "a3", "a4", "a4", "a5", "a5"]);
    assert_eq!(values(&records, &topic, 1), ["b4"]);

    // Everything read: the log goes on from there.
    log.may_drop(source, &ends, i64::MAX).await.unwrap();
    eventually(Some(last.clone()), async || log.last_checkpoint(source).await.unwrap()).await;
    let (mut writer, found) = log.writer(source).await.unwrap();
    assert_eq!(found, Some(last));
    let after = append(&mut writer, vec![block(&topic, &[(0, "after")])], 9).await;
    assert!(after.complete);
    assert_eq!(after.ends[&topic][&1], ends[&topic][&1], "offsets go on");
    assert_eq!(values(&read(&mut reader, &after.ends).await, &topic, 0), ["after"]);
}

/// What is not held is told by topic and partition, with the time it was appended at; what is held is not, and nothing of ours
/// counts that is no record.
pub async fn what_is_unread_is_told(log: Arc<dyn Log>, source: &str) {
    assert!(log.unread(source, &Ends::new()).await.unwrap().is_empty());
    let (a, b) = (format!("{source}.public.a"), format!("{source}.public.b"));
    let (mut writer, _) = log.writer(source).await.unwrap();
    let before = crate::wall_clock().unwrap();
    let first = append(&mut writer, vec![block(&a, &[(0, "1"), (1, "2")]), block(&b, &[(0, "3")])], 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let between = crate::wall_clock().unwrap();
    let second = append(&mut writer, vec![block(&a, &[(1, "4"), (1, "5")])], 2).await;
    let after = crate::wall_clock().unwrap();
    // Appends without records move no end.
    for sequence in 3..6 {
        append(&mut writer, vec![], sequence).await;
    }
    eventually(true, async || {
        let unread = log.unread(source, &Ends::new()).await.unwrap();
        unread.get(&a).is_some_and(|topic| topic.partitions[&1].end == second.ends[&a][&1])
    })
    .await;

    let unread = log.unread(source, &Ends::new()).await.unwrap();
    assert_eq!(unread.keys().collect::<Vec<_>>(), [&a, &b], "data topics alone");
    // Kafka's clock ticks in milliseconds.
    let early = |at: Option<i64>| at.is_some_and(|at| at >= before - 1000 && at <= between);
    assert!(
        early(unread[&a].partitions[&0].oldest) && early(unread[&a].oldest()) && early(unread[&b].oldest()),
        "{unread:?}"
    );
    assert_eq!((unread[&a].partitions[&0].first, unread[&a].partitions[&0].end), (0, first.ends[&a][&0]));

    let mut held = first.ends.clone();
    let unread = log.unread(source, &held).await.unwrap();
    assert_eq!((unread[&a].partitions[&0].oldest, unread[&b].oldest()), (None, None), "{unread:?}");
    let late = unread[&a].oldest();
    assert!(late.is_some_and(|at| at >= between - 1000 && at <= after), "{unread:?}");
    assert_eq!(unread[&a].partitions[&1].oldest, late);

    held.get_mut(&a).unwrap().extend(&second.ends[&a]);
    let unread = log.unread(source, &held).await.unwrap();
    assert!(unread.values().all(|topic| topic.oldest().is_none()), "{unread:?}");
}
