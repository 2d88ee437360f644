//! Which checkpoints all touched tables commit at, and what a checkpoint row may say. Pure: facts in, decisions out.
//!
//! `checkpoints of a source -> Cutter -> commit here? -> tables commit -> RowFacts -> row of lakeward.checkpoints`
//!
//! A checkpoint is true for the interval from `watermark_from` to `watermark`. A worker commits exactly at the cut whose
//! interval holds a multiple of `commit_interval`, so that the cuts of different sources meet; one that is behind does so
//! for every 2nd, 4th, 8th … multiple, and still meets the others. Between cuts a table may commit at any checkpoint, to
//! bound memory: "reached" is not "at", so a cut that a touched table has passed gets no row.

use std::collections::{BTreeMap, BTreeSet};

use lakeward_event::Checkpoint;

/// A worker further behind than this many strides doubles its stride.
const BEHIND_STRIDES: i64 = 2;
/// The longest stride: 64 times 4 s is about as old as an answer should become while catching up.
const LONGEST_STRIDE: i64 = 64;
/// Rows between two that name all tables: as many does a reader look back at most.
pub const ROWS_PER_COMPLETE: u32 = 64;

/// Chooses the commit points of one source.
#[derive(Debug, Clone)]
pub struct Cutter {
    /// Microseconds.
    grid: i64,
    /// Microseconds; a multiple of `grid`.
    commit_interval: i64,
    /// Newest multiple of `commit_interval` that a cut was made for.
    last: i64,
}

impl Cutter {
    /// `last_watermark`: of the source's newest row in `lakeward.checkpoints`.
    pub fn new(grid: i64, commit_interval: i64, last_watermark: Option<i64>) -> Self {
        let commit_interval = commit_interval.max(1);
        let last = last_watermark.map_or(i64::MIN, |w| w.div_euclid(commit_interval) * commit_interval);
        Self { grid: grid.max(1), commit_interval, last }
    }

    /// How many commit intervals lie between two cuts, when the newest checkpoint known is at `newest_watermark`.
    pub fn stride(&self, watermark: i64, newest_watermark: i64) -> i64 {
        let mut stride = 1;
        let lag = newest_watermark.saturating_sub(watermark);
        while stride < LONGEST_STRIDE && lag > BEHIND_STRIDES * stride * 2 * self.commit_interval {
            stride *= 2;
        }
        stride
    }

    /// Whether all tables commit exactly at this checkpoint. `asked`: somebody waits for this very one.
    pub fn is_commit_point(&self, checkpoint: &Checkpoint, stride: i64, asked: bool) -> bool {
        let draft = &checkpoint.draft;
        if !draft.cut {
            return false;
        }
        // A cut off the grid was asked for by `verify`.
        if asked || draft.watermark.rem_euclid(self.grid) != 0 {
            return true;
        }
        let step = self.commit_interval.saturating_mul(stride);
        let multiple = draft.watermark.div_euclid(step) * step;
        multiple >= draft.watermark_from && multiple > self.last
    }

    /// Notes that the cut was made.
    pub fn made(&mut self, checkpoint: &Checkpoint) {
        let multiple = checkpoint.draft.watermark.div_euclid(self.commit_interval) * self.commit_interval;
        self.last = self.last.max(multiple);
    }
}

/// Where a table stands when a cut has been committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableAt {
    /// `namespace.table`
    pub name: String,
    /// `schema.name`, as checkpoints spell it in `converging`.
    pub source_name: String,
    pub snapshot: i64,
    /// The checkpoint that the snapshot names.
    pub checkpoint: i64,
    /// End offsets that the snapshot holds.
    pub offsets: BTreeMap<i32, i64>,
}

/// What the newest row of the source says, folded with those before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowState {
    pub checkpoint: Option<i64>,
    pub tables: BTreeMap<String, i64>,
    /// Rows since one that named all tables; None: none is known.
    pub since_complete: Option<u32>,
}

/// What the next row says about tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowTables {
    pub tables: BTreeMap<String, i64>,
    pub complete: bool,
    /// `namespace.table`
    pub converging: Vec<String>,
}

/// What keeps a cut from getting its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoRow {
    /// A newer row is there already.
    Older,
    /// This table holds changes after the cut.
    Passed(String),
    /// This table, which another sink writes, does not hold all changes before the cut.
    NotYet(String),
}

/// Decides the row of a cut that all tables have committed (trap 24). `ends`: end offsets by partition of each table's topic
/// as of the cut, where known; `converging`: names as the checkpoint spells them.
pub fn row(
    cut: i64,
    tables: &[TableAt],
    ends: &BTreeMap<String, BTreeMap<i32, i64>>,
    converging: &[String],
    before: &RowState,
) -> Result<RowTables, NoRow> {
    if before.checkpoint.is_some_and(|newest| newest >= cut) {
        return Err(NoRow::Older);
    }
    let converging: BTreeSet<&str> = converging.iter().map(String::as_str).collect();
    for table in tables {
        let known = ends.get(&table.name);
        // Ends that are not known yet belong to partitions not touched since the last row: what a table committed beyond
        // the cut can then not be told from what it had before it, and the row waits for a later cut.
        let stands = |(partition, offset): (&i32, &i64)| known.and_then(|k| k.get(partition)) == Some(offset);
        if table.checkpoint > cut && !table.offsets.iter().all(stands) {
            return Err(NoRow::Passed(table.name.clone()));
        }
        // A partition that was never written to ends at 0, and no table knows of it.
        let holds = |(partition, end): (&i32, &i64)| table.offsets.get(partition).copied().unwrap_or(0) >= *end;
        if !known.is_none_or(|ends| ends.iter().all(holds)) {
            return Err(NoRow::NotYet(table.name.clone()));
        }
    }
    let complete = before.since_complete.is_none_or(|rows| rows + 1 >= ROWS_PER_COMPLETE);
    let named = |table: &&TableAt| complete || before.tables.get(&table.name) != Some(&table.snapshot);
    Ok(RowTables {
        tables: tables.iter().filter(named).map(|t| (t.name.clone(), t.snapshot)).collect(),
        complete,
        converging: tables
            .iter()
            .filter(|t| converging.contains(t.source_name.as_str()))
            .map(|t| t.name.clone())
            .collect(),
    })
}

impl RowState {
    /// The state after a row was written.
    pub fn advance(&mut self, cut: i64, row: &RowTables) {
        self.checkpoint = Some(cut);
        if row.complete {
            self.tables.clear();
            self.since_complete = Some(0);
        } else {
            self.since_complete = self.since_complete.map(|n| n + 1);
        }
        self.tables.extend(row.tables.clone());
    }
}

#[cfg(test)]
mod tests;
