//! Which checkpoints tables commit at, and when a row may be written.
#![allow(clippy::unwrap_used)]
use super::*;
use lakeward_event::{CheckpointDraft, Position};
use proptest::prelude::*;

fn checkpoint(id: i64, from: i64, watermark: i64, cut: bool) -> Checkpoint {
    Checkpoint {
        id,
        draft: CheckpointDraft {
            position: Position::Postgres { lsn: 1, partial: None, system_id: "1".into(), timeline: 1 },
            next_sequence: 1,
            snapshot: serde_json::Value::Null,
            converging: Vec::new(),
            watermark_from: from,
            watermark,
            cut,
        },
        wall_clock: 0,
        ends: Default::default(),
        complete: false,
    }
}

/// A grid of 1 and commits at every 4.
fn cutter(last: Option<i64>) -> Cutter {
    Cutter::new(1, 4, last)
}

#[test]
fn commit_points_hold_a_new_multiple() {
    for (last, from, watermark, cut, stride, expected) in [
        (None, 4, 4, true, 1, true),
        (None, 5, 7, true, 1, false),
        (None, 3, 5, true, 1, true),
        (None, 3, 5, false, 1, false),
        // An idle source: the interval grows, but 4 was cut already.
        (Some(4), 4, 6, true, 1, false),
        (Some(4), 4, 8, true, 1, true),
        (Some(5), 4, 7, true, 1, false),
        // Behind: multiples of 8 only.
        (None, 4, 4, true, 2, false),
        (None, 4, 9, true, 2, true),
        (None, 12, 12, true, 2, false),
        // Before 1970 counts like after it.
        (None, -5, -3, true, 1, true),
        (None, -3, -1, true, 1, false),
    ] {
        let point = cutter(last).is_commit_point(&checkpoint(1, from, watermark, cut), stride, false);
        assert_eq!(point, expected, "last {last:?}, [{from}, {watermark}], cut {cut}, stride {stride}");
    }
}

#[test]
fn what_is_asked_for_is_a_commit_point() {
    let mut cutter = Cutter::new(10, 40, Some(80));
    assert!(cutter.is_commit_point(&checkpoint(1, 90, 90, true), 1, true));
    assert!(!cutter.is_commit_point(&checkpoint(1, 90, 90, false), 1, true), "inside a transaction it cannot be");
    assert!(cutter.is_commit_point(&checkpoint(1, 90, 93, true), 1, false), "off the grid: asked for by verify");
    cutter.made(&checkpoint(1, 90, 93, true));
    assert!(cutter.is_commit_point(&checkpoint(2, 90, 120, true), 1, false));
}

#[test]
fn strides_double_with_the_lag() {
    let cutter = cutter(None);
    for (lag, stride) in [(0, 1), (16, 1), (17, 2), (32, 2), (33, 4), (64, 4), (65, 8), (100_000, 64)] {
        assert_eq!(cutter.stride(1_000, 1_000 + lag), stride, "lag {lag}");
    }
}

fn at(name: &str, snapshot: i64, checkpoint: i64, offset: i64) -> TableAt {
    TableAt {
        name: format!("s.{name}"),
        source_name: format!("public.{name}"),
        snapshot,
        checkpoint,
        offsets: BTreeMap::from([(0, offset)]),
    }
}

fn ends(of: &[(&str, i64)]) -> BTreeMap<String, BTreeMap<i32, i64>> {
    of.iter().map(|(name, end)| (format!("s.{name}"), BTreeMap::from([(0, *end)]))).collect()
}

/// Trap 24: A commits at checkpoints 5 and 7, B at 6 and 7; row 6 would tear.
#[test]
fn a_cut_that_a_touched_table_has_passed_gets_no_row() {
    let before = RowState::default();
    let passed = row(6, &[at("a", 1, 7, 70), at("b", 2, 6, 60)], &ends(&[("a", 50), ("b", 60)]), &[], &before);
    assert_eq!(passed, Err(NoRow::Passed("s.a".into())));
    // Past by its name only: nothing of it lies between.
    assert!(row(6, &[at("a", 1, 7, 50), at("b", 2, 6, 60)], &ends(&[("a", 50), ("b", 60)]), &[], &before).is_ok());
    // Not known is not proven.
    assert!(row(6, &[at("a", 1, 7, 50)], &ends(&[]), &[], &before).is_err());
    // Committed early, at 5, and untouched since.
    assert!(row(6, &[at("a", 1, 5, 50), at("b", 2, 6, 60)], &ends(&[("a", 50), ("b", 60)]), &[], &before).is_ok());
    // A partition without a record.
    let empty = BTreeMap::from([("s.a".to_owned(), BTreeMap::from([(0, 50), (1, 0)]))]);
    assert!(row(6, &[at("a", 1, 6, 50)], &empty, &[], &before).is_ok());
    // Another sink has not come so far.
    let behind = row(6, &[at("a", 1, 5, 49)], &ends(&[("a", 50)]), &[], &before);
    assert_eq!(behind, Err(NoRow::NotYet("s.a".into())));
}

/// Trap 50.
#[test]
fn rows_only_grow() {
    let before = RowState { checkpoint: Some(6), ..RowState::default() };
    assert_eq!(row(6, &[], &ends(&[]), &[], &before), Err(NoRow::Older));
    assert_eq!(row(5, &[], &ends(&[]), &[], &before), Err(NoRow::Older));
}

#[test]
fn rows_name_what_changed_and_every_nth_names_all() {
    let mut state = RowState::default();
    let first = row(1, &[at("a", 10, 1, 1), at("b", 20, 1, 1)], &ends(&[]), &["public.b".into()], &state).unwrap();
    assert!(first.complete, "no row is known");
    assert_eq!(first.converging, ["s.b"]);
    assert_eq!(first.tables.len(), 2);
    state.advance(1, &first);
    let second = row(2, &[at("a", 11, 2, 2), at("b", 20, 1, 1)], &ends(&[]), &[], &state).unwrap();
    assert_eq!((second.complete, second.tables), (false, BTreeMap::from([("s.a".to_owned(), 11)])));
    let mut complete = 0;
    for cut in 2..=2 * i64::from(ROWS_PER_COMPLETE) + 1 {
        let row = row(cut, &[at("a", 11, 2, 2), at("b", 20, 1, 1)], &ends(&[]), &[], &state).unwrap();
        complete += u32::from(row.complete);
        state.advance(cut, &row);
    }
    assert_eq!(complete, 2);
}

/// A source of checkpoints and a sink that crashes between any two table commits. A table's state at an offset is that
/// offset, so a row is right when every table's snapshot, read through all rows, holds exactly what the checkpoint says.
#[derive(Debug, Clone)]
struct Step {
    /// Records that each table gets.
    touched: [i64; 3],
    idle: bool,
    cut: bool,
    /// Memory runs out here.
    early: bool,
    /// The worker dies after this many table commits from here.
    crash: Option<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let touched = proptest::array::uniform3(prop_oneof![2 => Just(0), 1 => 1..5i64]);
    (
        touched,
        any::<bool>(),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.3, 0..4usize),
    )
        .prop_map(|(touched, idle, cut, early, crash)| Step { touched, idle, cut, early, crash })
}

proptest! {
    #[test]
    fn every_row_is_one_moment(steps in proptest::collection::vec(step(), 1..60), stride in prop::sample::select(vec![1i64, 2])) {
        let names = ["a", "b", "c"];
        // The log: checkpoint and true ends of each table.
        let (mut log, mut ends_now, mut from) = (Vec::new(), [0i64; 3], 0);
        for (i, step) in steps.iter().enumerate() {
            let watermark = i as i64;
            let touched = if step.idle { [0; 3] } else { step.touched };
            if touched.iter().any(|t| *t > 0) {
                from = watermark;
            }
            for (end, more) in ends_now.iter_mut().zip(touched) {
                *end += more;
            }
            log.push((checkpoint(i as i64 + 1, from, watermark, step.cut), touched, ends_now));
        }
        // The lake: every snapshot's offset by id, and each table's newest.
        let mut snapshots = vec![0i64];
        let mut tables = [(0usize, 0i64, 0i64); 3]; // snapshot, checkpoint, offset
        let mut rows: Vec<(i64, RowTables)> = Vec::new();
        let mut fired = vec![false; steps.len()];
        let mut rounds = 0;
        'life: loop {
            rounds += 1;
            prop_assert!(rounds < 200);
            // A worker starts: from the newest row.
            let mut state = RowState::default();
            for (cut, row) in &rows {
                state.advance(*cut, row);
            }
            let watermark = state.checkpoint.map(|c| log[c as usize - 1].0.draft.watermark);
            // After a restart strides may be others.
            let stride = if rounds % 2 == 0 { stride } else { 1 };
            let mut cutter = Cutter::new(1, 4, watermark);
            let start = state.checkpoint.unwrap_or(0) as usize;
            let mut known = BTreeMap::<String, BTreeMap<i32, i64>>::new();
            let mut read = tables.map(|t| t.2);
            for (i, (checkpoint, touched, ends)) in log.iter().enumerate().skip(start) {
                for t in 0..3 {
                    if touched[t] > 0 {
                        known.insert(format!("s.{}", names[t]), BTreeMap::from([(0, ends[t])]));
                        read[t] = read[t].max(ends[t]);
                    }
                }
                let point = cutter.is_commit_point(checkpoint, stride, false);
                if !point && !steps[i].early {
                    continue;
                }
                let mut commits = 0;
                for t in 0..3 {
                    if read[t] == tables[t].2 {
                        continue;
                    }
                    if steps[i].crash == Some(commits) && !fired[i] {
                        fired[i] = true;
                        continue 'life;
                    }
                    snapshots.push(read[t]);
                    tables[t] = (snapshots.len() - 1, checkpoint.id, read[t]);
                    commits += 1;
                }
                if steps[i].crash == Some(commits) && !fired[i] {
                    fired[i] = true;
                    continue 'life;
                }
                if !point {
                    continue;
                }
                cutter.made(checkpoint);
                let at: Vec<TableAt> = (0..3)
                    .filter(|t| tables[*t].1 > 0)
                    .map(|t| at(names[t], tables[t].0 as i64, tables[t].1, tables[t].2))
                    .collect();
                if let Ok(row) = row(checkpoint.id, &at, &known, &[], &state) {
                    state.advance(checkpoint.id, &row);
                    for t in 0..3 {
                        let snapshot = state.tables.get(&format!("s.{}", names[t])).copied().unwrap_or(0);
                        prop_assert_eq!(snapshots[snapshot as usize], ends[t], "table {} at checkpoint {}", names[t], checkpoint.id);
                    }
                    rows.push((checkpoint.id, row));
                }
            }
            break;
        }
    }
}
