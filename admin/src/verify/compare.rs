//! Two sides of a table to what is different: `rows of both -> sums per bucket -> keys of unequal buckets -> texts of some keys`.
//!
//! The first pass keeps 65,536 sums per side and no row, so its memory does not depend on the table; it is the only one where
//! nothing is wrong. The second pass keeps two hashes per row of the buckets that differ, at most [`SUSPECTS`] rows; the third
//! reads the rows of the keys that will be shown.

use std::collections::{BTreeMap, HashMap, HashSet};

use lakeward_runtime::Result;

use super::report::{Difference, DifferingKey, Totals};
use super::text::Row;

/// One side of a table: gives every row, as often as it is asked to, always the same ones.
pub trait Side {
    /// Hands every row to `visit`.
    async fn scan(&mut self, visit: &mut (dyn FnMut(&Row) + Send)) -> Result<()>;
}

const BUCKETS: usize = 1 << 16;
/// Rows per side that the second pass holds, 32 bytes each.
const SUSPECTS: u64 = 2_000_000;
/// Keys of each kind that are shown.
const SHOWN: usize = 20;
/// Characters of a value that are shown.
const SHOWN_TEXT: usize = 200;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    rows: u64,
    /// Sum of the rows' hashes: rows may come in any order, and a row that is there twice counts twice.
    sum: u128,
}

/// Rows and sums of one side.
pub struct Sums {
    buckets: Vec<Bucket>,
    pub rows: u64,
}

fn bucket(key_hash: u128) -> usize {
    (key_hash >> 112) as usize
}

impl Sums {
    fn new() -> Self {
        Self { buckets: vec![Bucket::default(); BUCKETS], rows: 0 }
    }

    fn add(&mut self, row: &Row) {
        let bucket = &mut self.buckets[bucket(row.key_hash())];
        bucket.rows += 1;
        bucket.sum = bucket.sum.wrapping_add(row.wide_hash());
        self.rows += 1;
    }
}

/// What a comparison found.
pub struct Outcome {
    pub source_rows: u64,
    pub lake_rows: u64,
    pub difference: Option<Difference>,
}

/// Compares all rows of both sides. `columns`: names in the order of the rows' columns; `key`: indexes of the key's.
pub async fn compare(
    source: &mut impl Side,
    lake: &mut impl Side,
    columns: &[String],
    key: &[usize],
) -> Result<Outcome> {
    let (mut left, mut right) = (Sums::new(), Sums::new());
    both(source, lake, |row| left.add(row), |row| right.add(row)).await?;
    let (source_rows, lake_rows) = (left.rows, right.rows);
    let unequal: Vec<usize> = (0..BUCKETS).filter(|b| left.buckets[*b] != right.buckets[*b]).collect();
    if unequal.is_empty() {
        return Ok(Outcome { source_rows, lake_rows, difference: None });
    }

    // As many of them as fit, the first one always.
    let mut held = 0;
    let looked_at: HashSet<usize> = unequal
        .iter()
        .copied()
        .take_while(|b| {
            let first = held == 0;
            held += left.buckets[*b].rows.max(right.buckets[*b].rows);
            first || held <= SUSPECTS
        })
        .collect();
    let mut suspects = (Vec::new(), Vec::new());
    let take = |into: &mut Vec<(u128, u64)>, row: &Row| {
        let hash = row.key_hash();
        if looked_at.contains(&bucket(hash)) {
            into.push((hash, row.hash()));
        }
    };
    both(source, lake, |row| take(&mut suspects.0, row), |row| take(&mut suspects.1, row)).await?;
    let found = merge(suspects.0, suspects.1);
    let totals = Totals {
        missing: found.missing.len() as u64,
        unexpected: found.unexpected.len() as u64,
        differing: found.differing.len() as u64,
        doubled: found.doubled.len() as u64,
        without_dead_letter: 0,
        all_counted: looked_at.len() == unequal.len(),
    };

    let lists = [&found.missing, &found.unexpected, &found.differing, &found.doubled];
    let wanted: HashSet<u128> = lists.iter().flat_map(|list| list.iter().take(SHOWN)).copied().collect();
    let mut rows: (HashMap<u128, Row>, HashMap<u128, Row>) = Default::default();
    let pick = |into: &mut HashMap<u128, Row>, row: &Row| {
        let hash = row.key_hash();
        if wanted.contains(&hash) {
            into.insert(hash, row.clone());
        }
    };
    both(source, lake, |row| pick(&mut rows.0, row), |row| pick(&mut rows.1, row)).await?;
    let (source_rows_shown, lake_rows_shown) = &rows;
    let keys = |list: &[u128]| -> Vec<BTreeMap<String, String>> {
        let row = |hash: &u128| source_rows_shown.get(hash).or_else(|| lake_rows_shown.get(hash));
        list.iter().take(SHOWN).filter_map(row).map(|row| key_of(row, columns, key)).collect()
    };
    let mut differing = Vec::new();
    for hash in found.differing.iter().take(SHOWN) {
        if let (Some(source), Some(lake)) = (source_rows_shown.get(hash), lake_rows_shown.get(hash)) {
            differing.push(differing_key(source, lake, columns, key));
        }
    }
    Ok(Outcome {
        source_rows,
        lake_rows,
        difference: Some(Difference {
            totals,
            missing: keys(&found.missing),
            unexpected: keys(&found.unexpected),
            doubled: keys(&found.doubled),
            differing,
            without_dead_letter: Vec::new(),
        }),
    })
}

/// Reads both sides at the same time.
async fn both(
    source: &mut impl Side,
    lake: &mut impl Side,
    mut left: impl FnMut(&Row) + Send,
    mut right: impl FnMut(&Row) + Send,
) -> Result<()> {
    tokio::try_join!(source.scan(&mut left), lake.scan(&mut right))?;
    Ok(())
}

fn key_of(row: &Row, columns: &[String], key: &[usize]) -> BTreeMap<String, String> {
    key.iter()
        .filter_map(|index| {
            Some((columns.get(*index)?.clone(), row.value(*index).map_or_else(|| "NULL".into(), shown)))
        })
        .collect()
}

fn differing_key(source: &Row, lake: &Row, columns: &[String], key: &[usize]) -> DifferingKey {
    let unequal = (0..columns.len()).filter(|index| source.value(*index) != lake.value(*index));
    DifferingKey {
        key: key_of(source, columns, key),
        columns: unequal
            .filter_map(|index| {
                let text = |row: &Row| row.value(index).map(shown);
                Some((columns.get(index)?.clone(), (text(source), text(lake))))
            })
            .collect(),
    }
}

fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    match text.char_indices().nth(SHOWN_TEXT) {
        None => text.into_owned(),
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], value.len()),
    }
}

/// Key hashes by what is wrong with them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    missing: Vec<u128>,
    unexpected: Vec<u128>,
    differing: Vec<u128>,
    doubled: Vec<u128>,
}

fn merge(mut source: Vec<(u128, u64)>, mut lake: Vec<(u128, u64)>) -> Found {
    source.sort_unstable();
    lake.sort_unstable();
    let mut found = Found::default();
    let (mut left, mut right) = (source.as_slice(), lake.as_slice());
    loop {
        let key = match (left.first(), right.first()) {
            (None, None) => return found,
            (Some((key, _)), None) | (None, Some((key, _))) => *key,
            (Some((a, _)), Some((b, _))) => *a.min(b),
        };
        let ours = take_run(&mut left, key);
        let theirs = take_run(&mut right, key);
        match (ours, theirs) {
            (_, []) => found.missing.push(key),
            ([], _) => found.unexpected.push(key),
            (ours, theirs) => {
                // The last change may have won in one of the doubled rows: both things are told.
                if theirs.len() > ours.len() {
                    found.doubled.push(key);
                }
                if !theirs.iter().any(|t| ours.contains(t)) {
                    found.differing.push(key);
                }
            }
        }
        if ours.is_empty() && theirs.len() > 1 {
            found.doubled.push(key);
        }
    }
}

fn take_run<'a>(rest: &mut &'a [(u128, u64)], key: u128) -> &'a [(u128, u64)] {
    let length = rest.iter().take_while(|(k, _)| *k == key).count();
    let (run, after) = rest.split_at(length);
    *rest = after;
    run
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
