//! How far snapshots are: what a checkpoint keeps of them. Pure: `ranges read, keys completed, marks passed -> State`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A key as the server's text, in key order.
pub type Key = Vec<String>;

/// Kept in `CheckpointDraft::snapshot`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Tables (oids) whose snapshot is finished.
    #[serde(default)]
    pub done: BTreeSet<u32>,
    /// Tables whose snapshot is not.
    #[serde(default)]
    pub tables: BTreeMap<u32, TableState>,
    /// How many snapshots were begun.
    #[serde(default)]
    pub attempts: u64,
}

impl State {
    /// A table's snapshot is to be taken, whatever there was of one. `again`: the log has rows of the table.
    pub fn begin(&mut self, oid: u32, name: String, again: bool) {
        self.attempts += 1;
        self.done.remove(&oid);
        self.tables.insert(oid, TableState { attempt: self.attempts, again, ..TableState::new(name) });
    }
}

/// The snapshot of one table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableState {
    /// `schema.name`
    pub name: String,
    pub stage: Stage,
    /// Which snapshot of the source this is: marks of one that was given up say nothing of the next.
    #[serde(default)]
    pub attempt: u64,
    /// The log has rows of the table that this snapshot may not see any more: it begins with a truncate record, which is not
    /// published yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// None until the first wave of the table has looked at it. A partitioned table may have none.
    #[serde(default)]
    pub leaves: Option<BTreeMap<u32, Leaf>>,
    /// Keys whose row is to be read because an update left values out; the number is that of the last wave when it was noted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "pairs")]
    pub incomplete: BTreeMap<Key, u64>,
    /// Keys that were to be completed and were not there: a delete, a key change or a whole row will tell.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unresolved: BTreeSet<Key>,
}

/// Where a table's snapshot stands; all are set by the loop that reads the stream, and survive a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Ranges are left to read.
    Reading,
    /// All ranges are read, P0 is written and has not arrived. Updates that leave values out are still completed.
    Closing,
    /// P0 has arrived; rows that were incomplete then are left to settle.
    Settling,
    /// None is left, P1 is written and has not arrived.
    Ending,
}

/// One leaf of a table (or the table itself): which of its pages are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leaf {
    /// `pg_relation_filenode`: another one is a rewrite, and what was read of the old one is void.
    pub filenode: u32,
    /// Pages of one range.
    pub step: u32,
    /// How many ranges; the last one has no upper end.
    pub ranges: u32,
    /// Ranges that are read and published.
    pub done: BTreeSet<u32>,
}

/// Pages `from..to` of a leaf; no upper end where `to` is None.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub table: u32,
    pub leaf: u32,
    pub index: u32,
    pub from: u32,
    pub to: Option<u32>,
}

/// Bytes of heap (and its TOAST) that one range aims at: it is held in memory as columns and once more as records.
pub const RANGE_BYTES: u64 = 16 << 20;

impl Leaf {
    /// Cuts `pages` pages, which hold `bytes` with their TOAST, into ranges of `range_bytes`.
    pub fn plan(filenode: u32, pages: u32, bytes: u64, range_bytes: u64) -> Self {
        let per_page = (bytes / u64::from(pages.max(1))).max(8192);
        let step = u32::try_from((range_bytes / per_page).max(1)).unwrap_or(u32::MAX);
        Self { filenode, step, ranges: pages.div_ceil(step).max(1), done: BTreeSet::new() }
    }

    fn is_read(&self) -> bool {
        self.done.len() as u64 >= u64::from(self.ranges)
    }
}

impl TableState {
    pub fn new(name: String) -> Self {
        Self {
            name,
            stage: Stage::Reading,
            attempt: 0,
            again: false,
            leaves: None,
            incomplete: BTreeMap::new(),
            unresolved: BTreeSet::new(),
        }
    }

    /// Ranges that are left to read.
    pub fn ranges_left(&self, table: u32) -> Vec<Range> {
        let mut left = Vec::new();
        for (oid, leaf) in self.leaves.iter().flatten() {
            for index in (0..leaf.ranges).filter(|i| !leaf.done.contains(i)) {
                let from = index.saturating_mul(leaf.step);
                let to = (index + 1 < leaf.ranges).then(|| from.saturating_add(leaf.step));
                left.push(Range { table, leaf: *oid, index, from, to });
            }
        }
        left
    }

    /// Takes what the catalog says of the leaves now. A leaf that was rewritten, gone or new makes the table start over: rows
    /// may have moved from one that is read to one that is not.
    pub fn look(&mut self, leaves: &BTreeMap<u32, Leaf>) -> bool {
        let over = match &self.leaves {
            None => false,
            Some(known) => {
                let same = known.len() == leaves.len()
                    && known.iter().all(|(oid, leaf)| leaves.get(oid).is_some_and(|now| now.filenode == leaf.filenode));
                if same {
                    return false;
                }
                true
            }
        };
        self.leaves = Some(leaves.clone());
        over
    }

    pub fn range_done(&mut self, range: &Range) {
        if let Some(leaf) = self.leaves.as_mut().and_then(|l| l.get_mut(&range.leaf)) {
            leaf.done.insert(range.index);
        }
    }

    pub fn is_read(&self) -> bool {
        self.leaves.as_ref().is_some_and(|leaves| leaves.values().all(Leaf::is_read))
    }

    pub fn is_settled(&self) -> bool {
        self.incomplete.is_empty() && self.unresolved.is_empty()
    }

    /// An update (or the new half of a key change) of `key` has been put into the log. `partial`: it left values out.
    /// `old`: the key before a key change.
    pub fn updated(&mut self, key: Key, old: Option<&Key>, partial: bool, wave: u64) {
        let marked = match old {
            Some(old) => self.forget(old),
            None => false,
        };
        let marked = self.unresolved.contains(&key) || self.incomplete.contains_key(&key) || marked;
        if !partial {
            self.forget(&key);
        } else if marked || matches!(self.stage, Stage::Reading | Stage::Closing) {
            self.unresolved.remove(&key);
            self.incomplete.insert(key, wave);
        }
    }

    /// A whole row or a delete of `key` has been put into the log.
    pub fn forget(&mut self, key: &Key) -> bool {
        self.incomplete.remove(key).is_some() | self.unresolved.remove(key)
    }

    pub fn truncated(&mut self) {
        self.incomplete.clear();
        self.unresolved.clear();
    }

    /// A wave with number `wave` has read the rows of `keys`, but for `missing`.
    pub fn completed(&mut self, keys: &[Key], missing: &[Key], wave: u64) {
        for key in keys {
            // Noted again since the wave began: the next wave's.
            if self.incomplete.get(key).is_some_and(|noted| *noted < wave) {
                self.incomplete.remove(key);
                if missing.contains(key) {
                    self.unresolved.insert(key.clone());
                }
            }
        }
    }
}

/// JSON has no maps whose keys are lists.
mod pairs {
    use super::Key;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<S: Serializer>(map: &BTreeMap<Key, u64>, serializer: S) -> Result<S::Ok, S::Error> {
        map.keys().collect::<Vec<_>>().serialize(serializer)
    }
    /// After a restart every key is older than the first wave.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Key, u64>, D::Error> {
        Ok(Vec::<Key>::deserialize(deserializer)?.into_iter().map(|key| (key, 0)).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        vec![text.to_owned()]
    }

    #[test]
    fn ranges_cover_every_page_and_the_last_has_no_end() {
        let mut table = TableState::new("public.t".into());
        table.look(&BTreeMap::from([(7, Leaf::plan(1, 5000, 5000 * 8192, RANGE_BYTES))]));
        let ranges = table.ranges_left(7);
        assert_eq!(
            ranges.iter().map(|r| (r.from, r.to)).collect::<Vec<_>>(),
            [(0, Some(2048)), (2048, Some(4096)), (4096, None)]
        );
        table.range_done(&ranges[1]);
        assert_eq!(table.ranges_left(7).len(), 2);
        assert!(!table.is_read());
        table.range_done(&ranges[0]);
        table.range_done(&ranges[2]);
        assert!(table.is_read());
        // An empty table has one range too: rows may come before the wave.
        assert_eq!(Leaf::plan(1, 0, 0, RANGE_BYTES).ranges, 1);
        // Big TOAST makes small ranges.
        assert_eq!(Leaf::plan(1, 100, 100 << 20, RANGE_BYTES).step, 16);
        assert_eq!(Leaf::plan(1, 100, 100 << 20, RANGE_BYTES / 8).step, 2);
    }

    #[test]
    fn a_rewrite_starts_the_table_over() {
        let mut table = TableState::new("public.t".into());
        let before = BTreeMap::from([(7, Leaf::plan(1, 10, 0, RANGE_BYTES))]);
        assert!(!table.look(&before));
        let range = table.ranges_left(7)[0];
        table.range_done(&range);
        assert!(!table.look(&before) && table.is_read());
        assert!(table.look(&BTreeMap::from([(7, Leaf::plan(2, 10, 0, RANGE_BYTES))])));
        assert!(!table.is_read());
    }

    #[test]
    fn an_incomplete_key_settles_by_wave_delete_or_whole_row() {
        let mut table = TableState::new("public.t".into());
        table.updated(key("1"), None, true, 4);
        table.completed(&[key("1")], &[], 4);
        assert!(!table.is_settled(), "noted during the wave: the wave may not have seen it");
        table.completed(&[key("1")], &[], 5);
        assert!(table.is_settled());

        table.updated(key("2"), None, true, 5);
        table.completed(&[key("2")], &[key("2")], 6);
        assert_eq!(table.unresolved.len(), 1);
        table.stage = Stage::Settling;
        // After P0 the mark goes with a key change, and a whole row ends it.
        table.updated(key("3"), Some(&key("2")), true, 6);
        assert!(table.unresolved.is_empty() && table.incomplete.contains_key(&key("3")));
        table.updated(key("9"), None, true, 6);
        assert!(!table.incomplete.contains_key(&key("9")), "after P0 the row of a resolved key is whole");
        table.updated(key("3"), None, false, 6);
        assert!(table.is_settled());

        // Between the last range and P0 a row may still be one that moved between ranges.
        let mut table = TableState::new("public.t".into());
        table.stage = Stage::Closing;
        table.updated(key("4"), None, true, 6);
        assert!(table.incomplete.contains_key(&key("4")));
        table.truncated();
        assert!(table.is_settled());
        table.updated(key("5"), None, true, 0);
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<TableState>(&text).unwrap(), table);
    }
}
