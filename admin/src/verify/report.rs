//! What `lakeward verify` answers, for people ([`Report::to_text`]) and for programs (serde).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// The answer about all tables asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub tables: Vec<TableReport>,
    /// Tables that could not be compared; one is enough for the answer no.
    pub skipped: Vec<Skipped>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// `namespace.table`, as in SQL.
    pub table: String,
    /// `source.schema.table`, as the source says it.
    pub source_table: String,
    pub source_rows: u64,
    pub lake_rows: u64,
    /// Both sides were read here: checkpoint id, position in the source's history, the lake's snapshot.
    pub checkpoint: i64,
    pub position: String,
    pub snapshot_id: i64,
    /// Every commit before this moment of the source's clock is in both sides. Microseconds since 1970.
    pub watermark: i64,
    /// Values that the lake's types cannot hold: NULL there, each with its dead letter.
    pub dead_letters: u64,
    /// None: every row and every value is equal.
    pub difference: Option<Difference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    pub table: String,
    pub reason: String,
}

/// What is different; lists are cut off, [`Totals`] are not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub totals: Totals,
    /// Keys of the source that the lake does not have.
    pub missing: Vec<BTreeMap<String, String>>,
    /// Keys of the lake that the source does not have.
    pub unexpected: Vec<BTreeMap<String, String>>,
    /// Keys that the lake has more than once.
    pub doubled: Vec<BTreeMap<String, String>>,
    pub differing: Vec<DifferingKey>,
    /// Values that the lake's types cannot hold, and for which `lakeward.dead_letters` has nothing.
    pub without_dead_letter: Vec<DifferingKey>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub missing: u64,
    pub unexpected: u64,
    pub differing: u64,
    pub doubled: u64,
    pub without_dead_letter: u64,
    /// False: there are more than these.
    pub all_counted: bool,
}

/// A key whose row is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DifferingKey {
    pub key: BTreeMap<String, String>,
    /// Column to its text in the source and in the lake; None: NULL.
    pub columns: BTreeMap<String, (Option<String>, Option<String>)>,
}

impl Report {
    /// Everything asked for was compared, there was something to compare, and nothing is different.
    pub fn is_equal(&self) -> bool {
        self.skipped.is_empty()
            && self.tables.iter().any(|t| t.source_rows > 0)
            && self.tables.iter().all(|t| t.difference.is_none())
    }

    /// One line per table, then what is wrong, then the answer.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let width = self.tables.iter().map(|t| t.table.len()).chain([5]).max().unwrap_or(5);
        if !self.tables.is_empty() {
            let _ = writeln!(
                out,
                "{:width$}  {:>12}  {:>12}  {:<11}  moment, position",
                "table", "source rows", "lake rows", "answer"
            );
        }
        for table in &self.tables {
            let answer = if table.difference.is_none() { "equal" } else { "DIFFERENT" };
            let _ = writeln!(
                out,
                "{:width$}  {:>12}  {:>12}  {answer:<11}  {}, {}",
                table.table,
                table.source_rows,
                table.lake_rows,
                super::text::moment(table.watermark),
                position(&table.position),
            );
        }
        for table in &self.tables {
            if table.dead_letters > 0 {
                let _ = writeln!(
                    out,
                    "{}: {} values that the lake cannot hold are NULL there, each with its dead letter",
                    table.table, table.dead_letters
                );
            }
            if let Some(difference) = &table.difference {
                difference.write(&table.table, &mut out);
            }
        }
        for skipped in &self.skipped {
            let _ = writeln!(out, "{}: not compared: {}", skipped.table, skipped.reason);
        }
        let _ = writeln!(out, "{}", self.answer());
        out
    }

    fn answer(&self) -> String {
        let rows: u64 = self.tables.iter().map(|t| t.source_rows).sum();
        let different = self.tables.iter().filter(|t| t.difference.is_some()).count();
        if self.is_equal() {
            return format!("no difference: {} tables, {rows} rows", self.tables.len());
        }
        let mut reasons = Vec::new();
        if different > 0 {
            reasons.push(format!("{different} of {} tables differ", self.tables.len()));
        }
        if !self.skipped.is_empty() {
            reasons.push(format!("{} tables were not compared", self.skipped.len()));
        }
        if rows == 0 {
            reasons.push("there was no row to compare".into());
        }
        reasons.join(", ")
    }
}

/// Without MongoDB's resume token, which says nothing to people.
fn position(position: &str) -> &str {
    position.split(' ').next().unwrap_or(position)
}

impl Difference {
    /// To be filled in.
    pub(super) fn nothing() -> Self {
        Self { totals: Totals { all_counted: true, ..Totals::default() }, ..Self::default() }
    }

    fn write(&self, table: &str, out: &mut String) {
        let totals = &self.totals;
        let more = if totals.all_counted { "" } else { "at least " };
        for (what, total, keys) in [
            ("missing in the lake", totals.missing, &self.missing),
            ("not in the source", totals.unexpected, &self.unexpected),
            ("more than once in the lake", totals.doubled, &self.doubled),
        ] {
            if total > 0 {
                let _ = writeln!(out, "{table}: {more}{total} keys {what}");
                for key in keys {
                    let _ = writeln!(out, "    {}", key_text(key));
                }
            }
        }
        for (what, total, rows) in [
            (format!("{more}{} keys differ", totals.differing), totals.differing, &self.differing),
            (
                format!("{} values that the lake cannot hold have no dead letter", totals.without_dead_letter),
                totals.without_dead_letter,
                &self.without_dead_letter,
            ),
        ] {
            if total == 0 {
                continue;
            }
            let _ = writeln!(out, "{table}: {what}");
            for row in rows {
                let _ = writeln!(out, "    {}", key_text(&row.key));
                for (column, (source, lake)) in &row.columns {
                    let text =
                        |value: &Option<String>| value.as_ref().map_or_else(|| "NULL".into(), |v| format!("{v:?}"));
                    let _ = writeln!(out, "        {column}: source {}, lake {}", text(source), text(lake));
                }
            }
        }
    }
}

fn key_text(key: &BTreeMap<String, String>) -> String {
    key.iter().map(|(column, value)| format!("{column}={value}")).collect::<Vec<_>>().join(" ")
}
