//! The consistent cut: rows of `lakeward.checkpoints` -> the moment a query reads and each table's snapshot there. Pure.
//!
//! A row is true for every moment of its source from `watermark_from` to `watermark`. Sources are read together at the newest
//! tick of the shared grid that lies inside such an interval of *each*: at equal watermarks only, a source that writes
//! seldom would hold back all others; at "the newest that all reached", two rows would be joined that were never true at once.

use std::collections::BTreeMap;
use std::fmt;

use lakeward_lake::system::CheckpointRow;
use lakeward_runtime::{Error, Result};

/// What moment a query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AsOf {
    /// The newest cut of the sources that the query uses.
    #[default]
    Latest,
    /// The newest cut at or before this moment, microseconds since 1970.
    Time(i64),
    /// Where the source that has this checkpoint is exactly at it.
    Checkpoint(i64),
}

impl AsOf {
    /// `latest`, a checkpoint id, or a time as RFC 3339 (a date alone is its midnight, UTC without a zone).
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || text.eq_ignore_ascii_case("latest") || text.eq_ignore_ascii_case("default") {
            return Ok(Self::Latest);
        }
        if let Ok(id) = text.parse::<i64>() {
            return Ok(Self::Checkpoint(id));
        }
        match arrow::compute::kernels::cast_utils::string_to_timestamp_nanos(text) {
            Ok(nanos) => Ok(Self::Time(nanos.div_euclid(1000))),
            Err(_) => Err(Error::refused(format!(
                "as_of: '{text}' is neither 'latest' nor a checkpoint id nor a time like 2026-01-01T00:00:00Z"
            ))),
        }
    }
}

impl fmt::Display for AsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Time(micros) => f.write_str(&crate::pg::timestamptz_text(*micros)),
            Self::Checkpoint(id) => write!(f, "{id}"),
        }
    }
}

/// Where one source is in a cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceCut {
    pub source: String,
    pub checkpoint: i64,
    pub watermark_from: i64,
    pub watermark: i64,
    pub committed_at: i64,
}

/// Where one table is in a cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableCut {
    pub snapshot_id: i64,
    /// The watermark of an older checkpoint, where the table was last exact: its snapshot is being taken again.
    pub last_exact: Option<i64>,
}

/// The moment that a query reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cut {
    /// Microseconds since 1970; None: the query reads no source's table.
    pub at: Option<i64>,
    pub sources: Vec<SourceCut>,
    /// By `namespace.table`: all tables that are in the cut, of the sources asked for.
    pub tables: BTreeMap<String, TableCut>,
    /// Tables (`namespace.table`) whose first snapshot is not finished.
    pub converging: Vec<String>,
}

impl Cut {
    /// One line for a notice: the moment and each source's checkpoint.
    pub fn notice(&self) -> String {
        let Some(at) = self.at else { return "no table of a source is read".into() };
        let sources: Vec<_> =
            self.sources.iter().map(|s| format!("{} at checkpoint {}", s.source, s.checkpoint)).collect();
        format!("cut {} ({})", crate::pg::timestamptz_text(at), sources.join(", "))
    }

    /// The table's snapshot, or why it has none.
    pub fn table(&self, name: &str) -> Result<&TableCut> {
        if let Some(table) = self.tables.get(name) {
            return Ok(table);
        }
        if self.converging.iter().any(|t| t == name) {
            return Err(Error::new(
                lakeward_runtime::Action::Refused,
                format!("table {name} is in its first snapshot: it can be read once that is finished"),
            ));
        }
        Err(Error::refused(format!("table {name} is not in a cut yet: no checkpoint names it")))
    }
}

/// What [`choose`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    Cut(Cut),
    /// The rows given do not reach back far enough to decide: read rows of this source down to below this watermark.
    Older {
        source: String,
        below: i64,
    },
}

/// The rows of one source, newest first, down to some complete row.
pub struct SourceRows {
    pub source: String,
    pub rows: Vec<CheckpointRow>,
    /// There are no older rows.
    pub all: bool,
}

/// The newest cut of these sources that `as_of` allows. `interval`: the grid, in microseconds.
pub fn choose(sources: &[SourceRows], as_of: AsOf, interval: i64) -> Result<Choice> {
    let interval = interval.max(1);
    for source in sources {
        if source.rows.is_empty() && source.all {
            return Err(Error::refused(format!("source {} has no checkpoint in the lake yet", source.source)));
        }
    }
    let newest = |s: &SourceRows| s.rows.first().map(|r| r.watermark);
    let Some(laggard) = sources.iter().min_by_key(|s| newest(s)) else { return Ok(Choice::Cut(Cut::default())) };
    let Some(reached) = newest(laggard) else { return Ok(older(laggard, i64::MAX)) };

    // Where the rows may be: at or below `upper`, and not below `lower`.
    let (upper, lower) = match as_of {
        AsOf::Latest => (reached, i64::MIN),
        AsOf::Time(time) if time > reached => {
            return Err(Error::refused(format!(
                "the lake has not reached {} yet: source {} is at {}",
                crate::pg::timestamptz_text(time),
                laggard.source,
                crate::pg::timestamptz_text(reached)
            )));
        }
        AsOf::Time(time) => (time, i64::MIN),
        AsOf::Checkpoint(id) => match sources.iter().find_map(|s| s.rows.iter().find(|r| r.checkpoint == id)) {
            Some(row) if row.watermark_from > reached => {
                return Err(Error::refused(format!(
                    "the lake has not reached checkpoint {id} in all sources: source {} is at {}",
                    laggard.source,
                    crate::pg::timestamptz_text(reached)
                )));
            }
            Some(row) => (row.watermark.min(reached), row.watermark_from),
            None => match sources.iter().find(|s| !s.all) {
                Some(short) => return Ok(older(short, i64::MIN)),
                None => return Err(Error::refused(format!("no source of this query has checkpoint {id}"))),
            },
        },
    };

    // One source needs no grid: each of its rows is a cut. An `upper` between two ticks is a moment like any other there.
    let floor = |t: i64| if sources.len() == 1 { t } else { t - t.rem_euclid(interval) };
    let mut at = floor(upper);
    let mut rows = Vec::with_capacity(sources.len());
    'lower: loop {
        rows.clear();
        for source in sources {
            let Some(index) = source.rows.iter().position(|r| r.watermark_from <= at) else {
                if source.all {
                    return Err(Error::refused(format!(
                        "no moment at or before {} is in the lake for every source of this query: the oldest row of source {} starts at {}",
                        crate::pg::timestamptz_text(at),
                        source.source,
                        source.rows.last().map_or_else(String::new, |r| crate::pg::timestamptz_text(r.watermark_from))
                    )));
                }
                return Ok(older(source, at));
            };
            let row = &source.rows[index];
            if row.watermark < at {
                // Between this row and the next one nothing is known: the next candidate is this row's end.
                at = floor(row.watermark);
                if at < lower {
                    return Err(Error::refused(format!(
                        "{as_of} is not a cut: source {} has no row there",
                        source.source
                    )));
                }
                continue 'lower;
            }
            rows.push((source, index));
        }
        break;
    }
    if at < lower {
        return Err(Error::refused(format!("{as_of} is not on the grid that sources are joined on")));
    }

    let mut cut = Cut { at: Some(at), ..Cut::default() };
    for (source, index) in rows {
        let row = &source.rows[index];
        cut.sources.push(SourceCut {
            source: source.source.clone(),
            checkpoint: row.checkpoint,
            watermark_from: row.watermark_from,
            watermark: row.watermark,
            committed_at: row.committed_at,
        });
        if let Some(choice) = add_tables(&mut cut, source, index)? {
            return Ok(choice);
        }
    }
    Ok(Choice::Cut(cut))
}

/// Each table's snapshot as of row `index`: rows are walked back to the newest complete one, which holds all tables.
fn add_tables(cut: &mut Cut, source: &SourceRows, index: usize) -> Result<Option<Choice>> {
    let row = &source.rows[index];
    let mut complete = false;
    for older in &source.rows[index..] {
        for (name, snapshot_id) in &older.tables {
            if !row.converging.contains(name) {
                cut.tables.entry(name.clone()).or_insert(TableCut { snapshot_id: *snapshot_id, last_exact: None });
            }
        }
        if older.complete {
            complete = true;
            break;
        }
    }
    if !complete && !source.all {
        return Ok(Some(older(source, row.watermark)));
    }
    for name in &row.converging {
        match last_exact(source, index, name) {
            LastExact::At(table) => {
                cut.tables.insert(name.clone(), table);
            }
            LastExact::Never => cut.converging.push(name.clone()),
            LastExact::Unknown(below) => return Ok(Some(older(source, below))),
        }
    }
    Ok(None)
}

enum LastExact {
    At(TableCut),
    Never,
    Unknown(i64),
}

/// A table that is read again keeps its last exact snapshot: that of the newest older row in which it was not converging.
fn last_exact(source: &SourceRows, index: usize, name: &str) -> LastExact {
    let mut exact_at = None;
    for row in &source.rows[index..] {
        if exact_at.is_none() && row.converging.iter().any(|t| t == name) {
            continue;
        }
        let watermark = *exact_at.get_or_insert(row.watermark);
        if let Some(snapshot_id) = row.tables.get(name) {
            return LastExact::At(TableCut { snapshot_id: *snapshot_id, last_exact: Some(watermark) });
        }
        if row.complete {
            return LastExact::Never; // the source did not have it before
        }
    }
    match source.rows.last() {
        Some(row) if !source.all => LastExact::Unknown(row.watermark_from.min(row.watermark)),
        _ => LastExact::Never,
    }
}

fn older(source: &SourceRows, below: i64) -> Choice {
    Choice::Older { source: source.source.clone(), below }
}

/// The source of a namespace: `<source>` or `<source>__<schema>`; names of sources hold no double underscore.
pub fn source_of_namespace(namespace: &str) -> &str {
    namespace.split("__").next().unwrap_or(namespace)
}

#[cfg(test)]
mod tests;
