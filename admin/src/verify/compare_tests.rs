//! Two sides compared row by row: what is said of rows that are missing, doubled or different, and which reports prove nothing.
#![allow(clippy::unwrap_used)]

use super::*;

struct Rows(Vec<(u32, Option<&'static str>)>);

impl Side for Rows {
    async fn scan(&mut self, visit: &mut (dyn FnMut(&Row) + Send)) -> Result<()> {
        let mut row = Row::default();
        for (key, value) in &self.0 {
            row.clear();
            row.push(|out| {
                out.extend_from_slice(key.to_string().as_bytes());
                true
            });
            row.push(|out| {
                out.extend_from_slice(value.unwrap_or_default().as_bytes());
                value.is_some()
            });
            row.finish(&[0]);
            visit(&row);
        }
        Ok(())
    }
}

fn many() -> Vec<(u32, Option<&'static str>)> {
    (0..10_000).map(|key| (key, Some("same"))).collect()
}

async fn compared(source: Vec<(u32, Option<&'static str>)>, lake: Vec<(u32, Option<&'static str>)>) -> Outcome {
    let columns = ["id".to_owned(), "v".to_owned()];
    compare(&mut Rows(source), &mut Rows(lake), &columns, &[0]).await.unwrap()
}

#[tokio::test]
async fn equal_rows_in_any_order_are_equal() {
    let mut lake = many();
    lake.reverse();
    let outcome = compared(many(), lake).await;
    assert_eq!((outcome.source_rows, outcome.lake_rows, outcome.difference), (10_000, 10_000, None));
}

#[tokio::test]
async fn every_kind_of_difference_names_its_key() {
    let mut lake = many();
    lake.retain(|(key, _)| *key != 17);
    lake.push((20_000, Some("new")));
    lake[5].1 = None;
    lake.push((9_000, Some("same")));
    let difference = compared(many(), lake).await.difference.unwrap();
    let id = |key: &str| BTreeMap::from([("id".to_owned(), key.to_owned())]);
    assert_eq!(difference.missing, [id("17")]);
    assert_eq!(difference.unexpected, [id("20000")]);
    assert_eq!(difference.doubled, [id("9000")]);
    assert_eq!(
        difference.differing,
        [DifferingKey { key: id("5"), columns: BTreeMap::from([("v".into(), (Some("same".into()), None))]) }]
    );
    let totals =
        Totals { missing: 1, unexpected: 1, differing: 1, doubled: 1, without_dead_letter: 0, all_counted: true };
    assert_eq!(difference.totals, totals);
}

#[tokio::test]
async fn a_doubled_row_is_found_where_a_missing_one_hides_it() {
    // Counts are the same, and so would a sum by exclusive or be.
    let mut lake = many();
    lake[1] = lake[0];
    let difference = compared(many(), lake).await.difference.unwrap();
    assert_eq!((difference.totals.missing, difference.totals.doubled, difference.totals.differing), (1, 1, 0));
}

#[test]
fn a_report_without_rows_or_with_a_table_left_out_is_no_proof() {
    use super::super::report::{Report, Skipped, TableReport};
    let table = TableReport {
        table: "users.orders".into(),
        source_table: "users.public.orders".into(),
        source_rows: 3,
        lake_rows: 3,
        checkpoint: 1,
        position: "0/10".into(),
        snapshot_id: 1,
        watermark: 0,
        dead_letters: 0,
        difference: None,
    };
    let report = Report { tables: vec![table.clone()], skipped: Vec::new() };
    assert!(report.is_equal());
    assert!(report.to_text().contains("no difference: 1 tables, 3 rows"));
    let empty = Report { tables: vec![TableReport { source_rows: 0, lake_rows: 0, ..table }], skipped: Vec::new() };
    assert!(!empty.is_equal() && empty.to_text().contains("there was no row to compare"));
    let skipped = Skipped { table: "users.logs".into(), reason: "it has no key".into() };
    let report = Report { skipped: vec![skipped], ..report };
    assert!(!report.is_equal() && report.to_text().contains("users.logs: not compared: it has no key"));
    assert!(!Report::default().is_equal());
}
