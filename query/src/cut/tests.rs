//! Cut selection, table by table: rows in, moment and snapshots out.
#![allow(clippy::unwrap_used)]

use super::*;

/// Ticks of one second; `from..=to` in seconds.
fn row(source: &str, checkpoint: i64, from: i64, to: i64, tables: &[(&str, i64)], complete: bool) -> CheckpointRow {
    CheckpointRow {
        source: source.into(),
        checkpoint,
        position: String::new(),
        watermark_from: from * S,
        watermark: to * S,
        committed_at: to * S,
        converging: Vec::new(),
        complete,
        tables: tables.iter().map(|(n, s)| ((*n).to_string(), *s)).collect(),
    }
}

const S: i64 = 1_000_000;

fn rows(source: &str, rows: Vec<CheckpointRow>) -> SourceRows {
    SourceRows { source: source.into(), rows, all: true }
}

fn cut(sources: &[SourceRows], as_of: AsOf) -> Cut {
    match choose(sources, as_of, S).unwrap() {
        Choice::Cut(cut) => cut,
        older => panic!("{older:?}"),
    }
}

fn refusal(sources: &[SourceRows], as_of: AsOf) -> String {
    choose(sources, as_of, S).unwrap_err().to_string()
}

#[test]
fn the_newest_tick_inside_an_interval_of_each() {
    // (a's intervals newest first, b's, the moment, checkpoint of a, checkpoint of b)
    type Intervals = &'static [(i64, i64)];
    let cases: &[(Intervals, Intervals, i64)] = &[
        (&[(5, 8)], &[(3, 9)], 8),
        (&[(8, 8), (4, 5)], &[(9, 9), (5, 5)], 5), // "what all reached" would join a at 8 with b at 5
        (&[(5, 9)], &[(8, 8)], 8),
        (&[(9, 9), (5, 5)], &[(8, 8), (2, 5)], 5), // trap 48: a at 5 is not a at 8
        (&[(12, 12), (9, 10), (1, 6)], &[(11, 11), (7, 8), (5, 6)], 6),
        (&[(100, 100), (7, 9)], &[(1, 7)], 7),
    ];
    for (a, b, at) in cases {
        let make = |name: &str, intervals: &[(i64, i64)]| {
            rows(name, intervals.iter().map(|(f, t)| row(name, *t * 10, *f, *t, &[("x.y", *t)], true)).collect())
        };
        let cut = cut(&[make("a", a), make("b", b)], AsOf::Latest);
        assert_eq!(cut.at, Some(at * S), "{a:?} {b:?}");
        for source in &cut.sources {
            assert!(source.watermark_from <= at * S && at * S <= source.watermark);
        }
    }
}

#[test]
fn no_common_moment_names_the_source() {
    let a = rows("a", vec![row("a", 1, 10, 11, &[], true)]);
    let b = rows("b", vec![row("b", 1, 3, 5, &[], true)]);
    let message = refusal(&[a, b], AsOf::Latest);
    assert!(message.contains("source a"), "{message}");
    let message = refusal(&[rows("c", vec![])], AsOf::Latest);
    assert!(message.contains("source c has no checkpoint"), "{message}");
}

#[test]
fn tables_are_walked_back_to_the_newest_complete_row() {
    let s = rows(
        "a",
        vec![
            row("a", 4, 4, 4, &[("a.t", 40)], false),
            row("a", 3, 3, 3, &[("a.u", 31), ("a.t", 30)], false),
            row("a", 2, 2, 2, &[("a.t", 20), ("a.u", 21), ("a.v", 22)], true),
            row("a", 1, 1, 1, &[("a.gone", 1), ("a.t", 10)], true),
        ],
    );
    let newest = cut(&[s], AsOf::Latest);
    let ids: Vec<_> = newest.tables.iter().map(|(n, t)| (n.as_str(), t.snapshot_id)).collect();
    assert_eq!(ids, [("a.t", 40), ("a.u", 31), ("a.v", 22)]);
    let message = newest.table("a.gone").unwrap_err().to_string();
    assert!(message.contains("not in a cut yet"), "{message}");
}

#[test]
fn rows_that_end_before_a_complete_one_ask_for_more() {
    let short = SourceRows { source: "a".into(), rows: vec![row("a", 4, 4, 4, &[("a.t", 40)], false)], all: false };
    assert_eq!(choose(&[short], AsOf::Latest, S).unwrap(), Choice::Older { source: "a".into(), below: 4 * S });
}

#[test]
fn a_moment_or_a_checkpoint_can_be_asked_for() {
    let a = || {
        rows(
            "a",
            vec![
                row("a", 30, 8, 9, &[("a.t", 3)], true),
                row("a", 20, 4, 6, &[("a.t", 2)], true),
                row("a", 10, 1, 2, &[("a.t", 1)], true),
            ],
        )
    };
    let b = || rows("b", vec![row("b", 7, 2, 20, &[("b.t", 5)], true)]);
    for (as_of, at, snapshot) in [
        (AsOf::Time(9 * S), 9, 3),
        (AsOf::Time(7 * S), 6, 2), // nothing is known of a at 7
        (AsOf::Time(5 * S + 1), 5, 2),
        (AsOf::Checkpoint(20), 6, 2),
        (AsOf::Checkpoint(30), 9, 3),
        (AsOf::Checkpoint(7), 9, 3), // b is there from 2 to 20
        (AsOf::Latest, 9, 3),
    ] {
        let cut = cut(&[a(), b()], as_of);
        assert_eq!((cut.at, cut.tables["a.t"].snapshot_id), (Some(at * S), snapshot), "{as_of:?}");
    }
    let message = refusal(&[a(), b()], AsOf::Time(10 * S));
    assert!(message.contains("source a is at"), "{message}");
    assert!(refusal(&[a(), b()], AsOf::Checkpoint(99)).contains("no source of this query has checkpoint 99"));
    assert!(refusal(&[a()], AsOf::Time(0)).contains("oldest row of source a"));
    // b leaves no room before 2, where checkpoint 10 is true from 1 on: it is joined at 2.
    assert_eq!(cut(&[a(), b()], AsOf::Checkpoint(10)).at, Some(2 * S));
}

#[test]
fn converging_tables_are_outside_or_at_their_last_exact_snapshot() {
    let mut newest = row("a", 5, 5, 5, &[("a.first", 50), ("a.again", 51)], false);
    newest.converging = vec!["a.first".into(), "a.again".into()];
    let mut before = row("a", 4, 4, 4, &[("a.again", 41)], false);
    before.converging = vec!["a.again".into(), "a.first".into()];
    let exact = row("a", 3, 3, 3, &[("a.other", 30)], false);
    let complete = row("a", 2, 2, 2, &[("a.again", 21), ("a.other", 20)], true);
    let cut = cut(&[rows("a", vec![newest, before, exact, complete])], AsOf::Latest);
    assert_eq!(cut.tables["a.again"], TableCut { snapshot_id: 21, last_exact: Some(3 * S) });
    assert_eq!(cut.tables["a.other"].snapshot_id, 30);
    assert!(cut.table("a.first").unwrap_err().to_string().contains("in its first snapshot"));
}

#[test]
fn as_of_is_parsed() {
    assert_eq!(AsOf::parse(" Latest").unwrap(), AsOf::Latest);
    assert_eq!(AsOf::parse("1767225600000000").unwrap(), AsOf::Checkpoint(1_767_225_600_000_000));
    assert_eq!(AsOf::parse("2026-01-01T00:00:00Z").unwrap(), AsOf::Time(1_767_225_600_000_000));
    assert_eq!(AsOf::parse("2026-01-01 01:00:00+01").unwrap(), AsOf::Time(1_767_225_600_000_000));
    assert!(AsOf::parse("yesterday").is_err());
}
