//! Offsets in a table's history: what a table holds of its topic, read from and written with its snapshots.
//!
//! The offset belongs to the table: it moves inside the commit that holds the data. Every snapshot of ours has it in its
//! summary, and the same metadata commit mirrors it in a table property, for the day when somebody else's expiry has removed
//! all of ours.

use std::collections::{BTreeMap, HashMap};

use lakeward_event::Ends;
use lakeward_lake::Table;
use lakeward_runtime::{Error, Result};

/// Snapshot summary and table property: JSON object of topic to partition to end offset.
pub const OFFSETS: &str = "lakeward.offsets";
/// Table property: what [`OFFSETS`] of the property is worth: the sequence number of the snapshot it was committed with.
pub const OFFSETS_SEQUENCE: &str = "lakeward.offsets-sequence";
/// Snapshot summary and table property: id of the checkpoint that the table is at.
pub const CHECKPOINT: &str = "lakeward.checkpoint";
/// Snapshot summary: the checkpoint's watermark, microseconds.
pub const WATERMARK: &str = "lakeward.watermark";

/// How far a table is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// None: nothing was ever committed by a sink.
    pub checkpoint: Option<i64>,
    /// Of the checkpoint, microseconds.
    pub watermark: i64,
    pub offsets: Ends,
}

impl Committed {
    /// As it is written into a snapshot's summary; nothing where nothing was committed yet.
    pub fn to_summary(&self) -> HashMap<String, String> {
        let Some(checkpoint) = self.checkpoint else { return HashMap::new() };
        HashMap::from([
            (OFFSETS.to_owned(), serde_json::to_string(&self.offsets).unwrap_or_default()),
            (WATERMARK.to_owned(), self.watermark.to_string()),
            (CHECKPOINT.to_owned(), checkpoint.to_string()),
        ])
    }

    /// As it is mirrored in the table's properties, by the commit that makes the snapshot of this sequence number.
    pub fn to_properties(&self, sequence_number: i64) -> HashMap<String, String> {
        let mut properties = self.to_summary();
        properties.insert(OFFSETS_SEQUENCE.to_owned(), sequence_number.to_string());
        properties
    }

    fn parse(fields: &HashMap<String, String>) -> Option<Result<Self>> {
        let offsets = fields.get(OFFSETS)?;
        Some(
            serde_json::from_str(offsets)
                .map(|offsets| Self {
                    checkpoint: fields.get(CHECKPOINT).and_then(|c| c.parse().ok()),
                    watermark: fields.get(WATERMARK).and_then(|w| w.parse().ok()).unwrap_or_default(),
                    offsets,
                })
                .map_err(|e| Error::human("the offsets in a table's history cannot be read").source(e)),
        )
    }
}

/// A snapshot's part in the decision.
#[derive(Debug, Clone)]
pub struct Ancestor<'a> {
    pub sequence_number: i64,
    pub summary: &'a HashMap<String, String>,
}

/// Reads how far a table is. Pure: `ancestors` are main's snapshots, newest first, as far as they are known; `whole`: the
/// last of them is the first of the table.
pub fn committed(ancestors: &[Ancestor<'_>], whole: bool, properties: &HashMap<String, String>) -> Result<Committed> {
    for ancestor in ancestors {
        if let Some(found) = Committed::parse(ancestor.summary) {
            return found;
        }
    }
    let Some(mirrored) = Committed::parse(properties) else { return Ok(Committed::default()) };
    // No snapshot of ours is left. If main reaches back to its beginning, ours were not expired: main was rolled back to
    // before them. And if main has not come as far as the property's snapshot, it was rolled back too.
    let at = properties.get(OFFSETS_SEQUENCE).and_then(|s| s.parse::<i64>().ok());
    let newest = ancestors.first().map(|a| a.sequence_number);
    match (at, newest) {
        (Some(at), Some(newest)) if newest >= at && !whole => mirrored,
        _ => Err(Error::human(
            "the table was rolled back to before what Lakeward committed: drop the table to load it again, or set its main \
             branch back to a snapshot that has `lakeward.offsets`",
        )),
    }
}

/// [`committed`] of a table as it is now.
pub fn committed_of(table: &Table) -> Result<Committed> {
    let mut ancestors = Vec::new();
    let mut next = table.snapshot();
    let mut whole = true;
    while let Some(snapshot) = next {
        ancestors.push(Ancestor {
            sequence_number: snapshot.sequence_number(),
            summary: &snapshot.summary().additional_properties,
        });
        next = match snapshot.parent_snapshot_id() {
            None => None,
            Some(parent) => {
                let parent = table.snapshot_by_id(parent);
                whole = parent.is_some();
                parent
            }
        };
    }
    committed(&ancestors, whole, table.properties()).map_err(|e| e.with("table", table.ident()))
}

/// Whether `ancestor` is a snapshot in the history of the table's main branch.
pub fn is_ancestor(table: &Table, ancestor: i64) -> bool {
    let mut next = table.snapshot();
    while let Some(snapshot) = next {
        if snapshot.snapshot_id() == ancestor {
            return true;
        }
        next = snapshot.parent_snapshot_id().and_then(|parent| table.snapshot_by_id(parent));
    }
    false
}

/// Raises `ends` to `newer` where that is further.
pub fn raise(ends: &mut BTreeMap<i32, i64>, newer: impl Iterator<Item = (i32, i64)>) {
    for (partition, end) in newer {
        let known = ends.entry(partition).or_insert(end);
        *known = end.max(*known);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(checkpoint: i64) -> Committed {
        let offsets = Ends::from([("t".to_owned(), BTreeMap::from([(0, checkpoint * 10)]))]);
        Committed { checkpoint: Some(checkpoint), watermark: 5, offsets }
    }

    /// Trap 26.
    #[test]
    fn offsets_are_those_of_the_newest_ancestor_that_has_them() {
        let (ours, older, foreign) = (at(7).to_summary(), at(6).to_summary(), HashMap::new());
        let newest_first = [&foreign, &ours, &older];
        let ancestors: Vec<Ancestor> = newest_first
            .iter()
            .zip([9, 8, 7])
            .map(|(summary, sequence_number)| Ancestor { sequence_number, summary })
            .collect();
        // The property may be newer than main after a rollback: ancestors win.
        assert_eq!(committed(&ancestors, true, &at(9).to_properties(10)).unwrap(), at(7));
    }

    #[test]
    fn the_property_counts_only_when_main_was_not_rolled_back() {
        let foreign = HashMap::new();
        let only = |sequence_number| vec![Ancestor { sequence_number, summary: &foreign }];
        let property = at(7).to_properties(8);
        assert_eq!(committed(&only(9), false, &property).unwrap(), at(7), "foreign expiry removed ours");
        assert!(committed(&only(3), false, &property).is_err(), "rolled back behind ours");
        assert!(committed(&only(1), true, &property).is_err(), "rolled back to the first snapshot");
        assert_eq!(committed(&only(1), true, &HashMap::new()).unwrap(), Committed::default(), "a new table");
    }
}
