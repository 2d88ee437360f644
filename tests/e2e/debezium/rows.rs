//! Tables of PostgreSQL, by each way that records say what is in them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{beside, load, topics};
use crate::harness::Lakeward;

/// `table -> (key's text -> column -> text)` as the source held them at the end.
type Rows = Vec<BTreeMap<String, Option<String>>>;

/// What the source held at the end, of the tables that the file has records of.
fn source_rows(file: &str) -> BTreeMap<String, Rows> {
    let mut tables = BTreeMap::<String, Rows>::new();
    for line in beside(file, "pg-final-rows") {
        let row = line["row"].as_object().unwrap();
        let row = row.iter().map(|(name, value)| (name.clone(), value.as_str().map(str::to_owned))).collect();
        tables.entry(line["table"].as_str().unwrap().to_owned()).or_default().push(row);
    }
    // These were empty at the end.
    for table in ["index_identity", "nothing_identity"] {
        tables.entry(table.to_owned()).or_default();
    }
    let topics = topics(file);
    tables.retain(|table, _| topics.contains(&format!("shop.{}", in_topic(table))));
    assert!(!tables.is_empty());
    tables
}

/// A table's name without what Kafka does not allow.
fn in_topic(table: &str) -> String {
    table.replace([' ', 'ä', '$'], "_")
}

fn lake_rows(lake: &Lakeward, name: &str, table: &str) -> Rows {
    let rows = lake.rows(&format!("select * from {name}.\"{table}\""));
    let names: Vec<String> = rows[0].iter().map(|name| name.clone().unwrap_or_default()).collect();
    rows[1..].iter().map(|row| names.iter().cloned().zip(row.iter().cloned()).collect()).collect()
}

const KEYS: [&str; 8] = ["id", "Id", "order_id", "line", "at", "dev", "a", "b"];

fn key(row: &BTreeMap<String, Option<String>>, keys: &[&str]) -> Vec<Option<String>> {
    keys.iter().filter_map(|key| row.get(*key).cloned()).collect()
}

/// How the records of a file say what the source held.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// Schemas inlined, default modes.
    Declared,
    /// Schemas inlined; decimals double, times and timestamps in milliseconds, bytes hexadecimal.
    Doubles,
    /// No schema, decimals as text. `time` with three digits is so many microseconds, or milliseconds.
    Bare { time3_micros: bool },
}

/// How a value of the source stands in the lake, where the record itself says it otherwise than the server does.
fn as_recorded(mode: Mode, table: &str, column: &str, source: &str) -> String {
    match (table, column) {
        // Without the currency's sign and the groups of thousands.
        (_, "c_money") => source.replace(['$', ','], ""),
        // Padded, as the table has it; the server's cast to text strips.
        (_, "c_char") => format!("{source:<5}"),
        // As the server prints them, which a cast to text does not quite.
        (_, "c_inet") => source.trim_end_matches("/128").to_owned(),
        (_, "c_xml") => source.trim_start_matches("<?xml version=\"1.0\"?>").to_owned(),
        (_, "c_bit1") => (source == "1").to_string(),
        ("all_types", "c_bool_arr") => source.replace('t', "true").replace('f', "false"),
        ("unknown_types", _) if mode == Mode::Declared => source.to_owned(),
        // Only its greatest length is in the schema, so it is filled up to that.
        (_, "c_varbit") if mode == Mode::Declared => format!("{source:0>20}"),
        _ => match mode {
            Mode::Declared => source.to_owned(),
            Mode::Doubles => match column {
                "c_time" => source.split_at(source.len().min(12)).0.to_owned(),
                "c_ts" => {
                    source.split_at(source.len().min(23)).0.trim_end_matches('0').trim_end_matches('.').to_owned()
                }
                "c_bytea" | "b" => source.trim_start_matches("\\x").to_owned(),
                _ => source.to_owned(),
            },
            Mode::Bare { time3_micros } => bare(time3_micros, table, column, source),
        },
    }
}

/// The number or text that stands in a record without a schema.
fn bare(time3_micros: bool, table: &str, column: &str, source: &str) -> String {
    let each = |list: &str, one: &dyn Fn(&str) -> String| {
        let inner = list.trim_matches(['{', '}']);
        let all: Vec<String> = inner
            .split(',')
            .filter(|item| !item.is_empty())
            .map(|item| if item == "NULL" { item.to_owned() } else { one(item.trim_matches('"')) })
            .collect();
        format!("{{{}}}", all.join(","))
    };
    let zoned = |text: &str, digits: usize| {
        let (moment, _) = text.split_once('+').unwrap();
        let (clock, fraction) = moment.split_once('.').unwrap_or((moment, ""));
        format!("{}.{fraction:0<digits$}Z", clock.replace(' ', "T"))
    };
    match (table, column) {
        (_, "c_date") | ("defaults", "d") | ("measures", "at") => days(source).to_string(),
        (_, "c_date_arr") => each(source, &|item| days(item).to_string()),
        (_, "c_tstz_arr") => each(source, &|item| zoned(item, 6)),
        (_, "c_time") => micros(source).to_string(),
        (_, "c_time3") if time3_micros => micros(source).to_string(),
        (_, "c_time3") => (micros(source) / 1_000).to_string(),
        (_, "c_ts") => moment(source).to_string(),
        (_, "c_ts0" | "c_ts3") => (moment(source).div_euclid(1_000)).to_string(),
        (_, "c_tstz") | ("defaults", "ts" | "now") | ("customers", "updated") => zoned(source, 6),
        (_, "c_tstz3") => zoned(source, 3),
        (_, "c_bytea") | ("toast" | "toast_full", "b") => base64(source),
        _ => source.to_owned(),
    }
}

fn days(date: &str) -> i64 {
    let parts: Vec<i64> = date.split('-').map(|part| part.parse().unwrap()).collect();
    let (year, month) = if parts[1] <= 2 { (parts[0] - 1, parts[1] + 9) } else { (parts[0], parts[1] - 3) };
    365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + parts[2] - 1 - 719_468
}

fn micros(time: &str) -> i64 {
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let parts: Vec<i64> = clock.split(':').map(|part| part.parse().unwrap()).collect();
    ((parts[0] * 60 + parts[1]) * 60 + parts[2]) * 1_000_000 + format!("{fraction:0<6}").parse::<i64>().unwrap()
}

fn moment(timestamp: &str) -> i64 {
    let (date, time) = timestamp.split_once(' ').unwrap();
    days(date) * 86_400_000_000 + micros(time)
}

fn base64(hex: &str) -> String {
    let bytes: Vec<u8> = hex.as_bytes()[2..]
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// What is not as in the source: `table.column`, the row's key, and what stands there. `"*"` as key: in all rows; as value: the column is
/// not compared.
type Lost<'a> = (&'a str, &'a str, Option<&'a str>);

/// Compares the tables of a file of records with what the lake has of them, but for some. Losses in tables that the file has not do not count.
fn compare(file: &str, mode: Mode, (lake, name): &(Lakeward, String), but: &[&str], lost: &[Lost<'_>]) {
    let mut wrong = Vec::new();
    let mut tables = source_rows(file);
    tables.retain(|table, _| !but.contains(&table.as_str()));
    let mut unused: Vec<_> = lost.iter().map(|(path, key, _)| (*path, *key)).collect();
    unused.retain(|(path, _)| path.split_once('.').is_some_and(|(table, _)| tables.contains_key(table)));
    for (table, source) in tables {
        // Rows that are unwrapped do not say their table's name, the topic has it without what Kafka does not allow.
        let unwrapped = mode == Mode::Bare { time3_micros: false };
        let there = if unwrapped { in_topic(&table) } else { table.clone() };
        let found = lake_rows(lake, name, &there);
        let keys: Vec<&str> = match table.as_str() {
            "measures" => vec!["at", "dev"],
            "order_lines" => vec!["order_id", "line"],
            "no_key" => vec!["a"],
            _ => vec!["id", "Id"],
        };
        assert!(keys.iter().any(|key| KEYS.contains(key)));
        if found.len() != source.len() {
            wrong.push(format!("{table}: {} rows for {}", found.len(), source.len()));
        }
        for row in &source {
            let own = key(row, &keys);
            let recorded: BTreeMap<_, _> = row
                .iter()
                .map(|(name, value)| (name.clone(), value.as_deref().map(|v| as_recorded(mode, &table, name, v))))
                .collect();
            let Some(there) = found.iter().find(|there| key(there, &keys) == key(&recorded, &keys)) else {
                wrong.push(format!("{table}: no row {own:?}"));
                continue;
            };
            for column in row.keys() {
                let path = format!("{table}.{column}");
                let text = own.iter().flatten().cloned().collect::<Vec<_>>().join(",");
                let exception = lost.iter().find(|(lost, key, _)| *lost == path && (*key == "*" || *key == text));
                unused.retain(|unused| exception.is_none_or(|used| (used.0, used.1) != *unused));
                if exception.is_some_and(|(_, key, to)| *key == "*" && *to == Some("*")) {
                    continue;
                }
                let expected = match exception {
                    Some((.., to)) => to.map(str::to_owned),
                    None => recorded[column].clone(),
                };
                let actual = there.get(column).cloned().flatten();
                if exception.is_some() && actual == recorded[column] {
                    wrong.push(format!("{path} {own:?} is not lost after all"));
                }
                let same = || match (mode, actual.as_deref(), expected.as_deref()) {
                    (Mode::Doubles, Some(actual), Some(expected)) if list_of_numbers(expected).is_some() => {
                        list_of_numbers(actual) == list_of_numbers(expected)
                    }
                    // As a double: the same number of `real`.
                    (Mode::Bare { .. }, Some(actual), Some(expected)) if table == "floats" => {
                        actual.parse::<f32>().ok() == expected.parse().ok()
                    }
                    (_, actual, expected) => same_map(actual, expected),
                };
                if actual != expected && !same() {
                    wrong.push(format!("{path} {own:?}: {actual:?} for {expected:?}"));
                }
            }
        }
    }
    assert!(unused.is_empty(), "{unused:?} are not in these tables");
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

/// Numbers as they are by value: `1.10` and `{1.10,NULL}`.
fn list_of_numbers(text: &str) -> Option<Vec<Option<f64>>> {
    let items = text.trim_matches(['{', '}']).split(',');
    items.map(|item| if item == "NULL" { Some(None) } else { item.parse().ok().map(Some) }).collect()
}

/// An hstore comes as JSON.
fn same_map(json: Option<&str>, hstore: Option<&str>) -> bool {
    let (Some(json), Some(hstore)) = (json, hstore) else { return false };
    let Ok(Value::Object(map)) = serde_json::from_str::<Value>(json) else { return false };
    let text = format!("{{{}}}", hstore.replace("=>NULL", "=>null").replace("\"=>", "\":"));
    serde_json::from_str::<Value>(&text).is_ok_and(|parsed| parsed == Value::Object(map))
}

const ALL: Option<&str> = Some("*");

/// NULL in a column with a default is written as the default.
const DEFAULTS: [&str; 10] = [
    "defaults.b",
    "defaults.d",
    "defaults.i",
    "defaults.j",
    "defaults.m",
    "defaults.n",
    "defaults.now",
    "defaults.t",
    "defaults.ts",
    "defaults.u",
];

/// What a moment loses in every `time.precision.mode`.
const MOMENTS_LOST: [Lost<'static>; 13] = [
    // In UTC, its offset gone; an offset with seconds is null.
    ("all_types.c_timetz", "*", ALL),
    ("time_special.ttz", "2", None),
    ("time_special.ttz", "3", Some("15:58:59.999999+00")),
    ("time_special.ttz", "13", Some("15:58:59.999999+00")),
    ("time_special.ttz", "4", Some("06:30:00+00")),
    ("time_special.ttz", "5", Some("12:05:06.789+00")),
    ("time_special.ttz", "15", Some("12:05:06.789+00")),
    // Beyond 64 bits of microseconds: null and a dead letter.
    ("time_special.ts", "5", None),
    ("time_special.ts", "15", None),
    ("time_special.tstz", "5", None),
    ("time_special.tstz", "15", None),
    // A snapshot loses BC.
    ("time_special.d", "3", Some("0044-03-15")),
    ("time_special.d", "6", Some("4713-01-01")),
];

/// Schemas in each record, decimals precise, adaptive times: everything that Debezium can say. `own`: what these records lose besides.
fn as_declared(file: &str, own: &[Lost<'_>]) -> (Lakeward, String) {
    let lake = load(file, "schema = \"shop\"");
    let mut lost = vec![
        // NaN and infinities are null in `precise`.
        ("num_special.n", "1", None),
        ("num_special.n", "2", None),
        ("num_special.n", "3", None),
        ("num_special.n", "4", None),
        ("num_special.n102", "1", None),
        ("num_special.n102", "11", None),
        // Zeros at the end of a number without a scale.
        ("all_types.c_numeric", "1", Some("100")),
        // The type `name` is left out of the stream, but not of the snapshot.
        ("all_types.c_name", "1", None),
        ("all_types.c_name", "40", None),
        // An enum[] that holds a NULL is null.
        ("all_types.c_enum_arr", "40", None),
        // An interval is a number with months of 30.4375 days.
        ("all_types.c_interval", "*", ALL),
        ("time_special.iv", "*", ALL),
        // Generated columns are in the snapshot alone.
        ("generated.twice", "*", ALL),
        // Of types that Debezium leaves out unless told otherwise.
        ("unknown_types.c_composite", "*", ALL),
        ("unknown_types.c_composite_arr", "*", ALL),
        ("unknown_types.c_tsquery", "*", ALL),
        ("unknown_types.c_lsn", "*", ALL),
        ("unknown_types.c_jsonpath", "*", ALL),
        ("unknown_types.c_multirange", "*", ALL),
        ("unknown_types.c_snapshot", "*", ALL),
    ];
    lost.extend(DEFAULTS.map(|column| (column, "*", ALL)));
    lost.extend(MOMENTS_LOST);
    lost.extend(own);
    compare(file, Mode::Declared, &lake, &[], &lost);
    lake
}

/// Each loss of ours has its row, once, although the sink died twice: table, offset, payload.
fn assert_letters((lake, name): &(Lakeward, String), expected: &[(&str, i64, Option<&str>)]) {
    let letters = lake.sql(&format!(
        "select \"table\", \"column\", payload, \"offset\" from lakeward.dead_letters where source = '{name}' order by 1, 4, 2"
    ));
    assert_eq!(letters.len(), expected.len(), "{letters:?}");
    for (letter, (table, offset, payload)) in letters.iter().zip(expected) {
        let place = (json!(format!("{name}.{table}")), json!(offset));
        assert_eq!((&letter["table"], &letter["offset"]), (&place.0, &place.1), "{letters:?}");
        assert!(payload.is_none_or(|payload| letter["payload"] == payload), "{letter} for {payload:?}");
    }
}

/// Beyond 64 bits of microseconds, as a snapshot has it and as the stream has it.
const TOO_LATE: [(&str, i64, Option<&str>); 4] = [
    ("time_special", 4, Some("-9223372036853775810")),
    ("time_special", 4, Some("+294276-12-31T23:59:59.999999Z")),
    ("time_special", 9, Some("-9223372036853775810")),
    ("time_special", 9, Some("+294276-12-31T23:59:59.999999Z")),
];

#[test]
fn records_with_schemas_make_the_sources_tables() {
    let lake = as_declared("pg-default-schema", &[]);
    // An update and a delete in a table without a key.
    let mut letters = vec![("no_key", 4, None), ("no_key", 5, None)];
    letters.extend(TOO_LATE);
    assert_letters(&lake, &letters);
}

#[test]
fn records_of_2_7_with_schemas_make_the_sources_tables() {
    let own = [
        // A type that it does not know.
        ("all_types.c_tsvector", "*", ALL),
        // A snapshot loses the calendar before 1582, of timestamps too.
        ("time_special.ts", "3", Some("0044-03-13 12:00:00 BC")),
        ("time_special.ts", "6", Some("4714-11-24 00:00:00 BC")),
        ("time_special.ts3", "3", Some("1582-10-20 00:00:00")),
        ("time_special.tstz", "3", Some("0044-03-13 12:00:00+00 BC")),
        ("time_special.tstz", "6", Some("4714-11-24 00:00:00+00 BC")),
        // 24:00:00 is the next day's first moment.
        ("time_special.ttz", "1", Some("00:00:00+00")),
        ("time_special.ttz", "11", Some("00:00:00+00")),
    ];
    assert_letters(&as_declared("2.7/pg-default-schema", &own), &TOO_LATE);
}

/// Without `ts_us` and `ts_ns`, in envelopes of version 1.
#[test]
fn records_of_2_1_with_schemas_make_the_sources_tables() {
    // A uuid[] that an update left out is null.
    assert_letters(&as_declared("2.1/pg-default-schema", &[("toast.u", "3", None)]), &[]);
}

/// Records with schemas of some columns only, by table.
fn some_columns(file: &str, mode: Mode, captured: &[(&str, &str)], own: &[Lost<'_>]) {
    let lake = load(file, "schema = \"shop\"\nunavailable_value_placeholder = \"<<unavailable>>\"");
    let mut lost = Vec::new();
    for (table, rows) in source_rows(file) {
        let (_, known) = captured.iter().find(|(name, _)| *name == table).unwrap();
        for column in rows[0].keys().filter(|column| !known.split('|').any(|known| known == **column)) {
            lost.push((format!("{table}.{column}"), "*".to_owned(), ALL));
        }
    }
    let mut lost: Vec<_> = lost.iter().map(|(path, key, to)| (path.as_str(), key.as_str(), *to)).collect();
    lost.extend(own);
    compare(file, mode, &lake, &[], &lost);
}

/// Decimals double, times and timestamps in milliseconds, bytes hexadecimal.
fn in_other_modes(file: &str) {
    let all_types =
        "c_numeric_10_2|c_numeric|c_money|c_time|c_time3|c_ts|c_ts0|c_interval|c_bytea|c_num_arr|c_hstore|id";
    let captured = [("all_types", all_types), ("toast", "id|small|t|b|u|h"), ("num_special", "id|n|n102")];
    some_columns(file, Mode::Doubles, &captured, &[]);
}

#[test]
fn other_modes_are_read_as_their_schemas_declare_them() {
    in_other_modes("pg-other-modes");
}

#[test]
fn other_modes_of_2_7_are_read_as_their_schemas_declare_them() {
    in_other_modes("2.7/pg-other-modes");
}

#[test]
fn other_modes_of_2_1_are_read_as_their_schemas_declare_them() {
    in_other_modes("2.1/pg-other-modes");
}

/// Columns with a moment, of the files that have these alone.
const MOMENTS: [(&str, &str); 2] = [
    ("all_types", "id|c_date|c_time|c_time3|c_timetz|c_ts|c_ts0|c_ts3|c_tstz|c_date_arr|c_tstz_arr"),
    ("time_special", "id|d|ts|tstz|t|ttz|ts3"),
];

#[test]
fn moments_are_read_as_iso_8601() {
    let mut own = vec![
        // 24:00:00 is no time of Java's.
        ("time_special.t", "1", Some("00:00:00")),
        ("time_special.t", "11", Some("00:00:00")),
    ];
    own.extend(MOMENTS_LOST);
    some_columns("pg-isostring", Mode::Declared, &MOMENTS, &own);
}

#[test]
fn moments_are_read_in_nanoseconds() {
    // Beyond the years 1677 to 2262.
    let rows = ["3", "4", "6", "13"];
    let mut own: Vec<_> = rows.into_iter().map(|row| ("time_special.ts", row, None)).collect();
    own.extend(["3", "4"].map(|row| ("time_special.ts3", row, None)));
    own.push(("time_special.ts3", "13", None));
    own.extend(MOMENTS_LOST);
    some_columns("pg-nanoseconds", Mode::Declared, &MOMENTS, &own);
}

/// What cannot be told without a schema is what the record says, number or text; nothing else is different.
fn without_schemas(file: &str, but: &[&str], own: &[Lost<'_>]) -> (Lakeward, String) {
    let lake = load(file, "schema = \"shop\"");
    let mut lost = bare_losses();
    lost.extend(own);
    compare(file, Mode::Bare { time3_micros: true }, &lake, &[&["time_special", "unknown_types"], but].concat(), &lost);
    lake
}

#[test]
fn records_without_schemas_keep_every_value() {
    let (lake, name) = without_schemas("pg-noschema-string", &[], &[]);
    assert_eq!(lake.value(&format!("select count(*) from {name}.signals")), json!(5));
}

#[test]
fn records_of_2_7_without_schemas_keep_every_value() {
    // A type that it does not know is base64.
    let odd = "Odd Näme$1";
    let (lake, name) = without_schemas("2.7/pg-noschema-string", &[odd], &[("all_types.c_tsvector", "*", ALL)]);
    // Its stream takes each byte of a name for a letter: another topic, another table, another column, and no key.
    let broken = "Odd N\u{ffc3}\u{ffa4}me$1";
    let columns = |table: &str| lake.rows(&format!("select * from {name}.\"{table}\"")).remove(0);
    assert!(columns(odd).contains(&Some("ünï".to_owned())));
    assert!(columns(broken).contains(&Some("\u{ffc3}\u{ffbc}n\u{ffc3}\u{ffaf}".to_owned())));
    assert_eq!(lake.value(&format!("select \"Id\" from {name}.\"{broken}\"")), json!(2));
    assert_letters(&(lake, name), &[(broken, 0, None)]);
}

#[test]
fn records_of_2_1_without_schemas_keep_every_value() {
    without_schemas("2.1/pg-noschema-string", &[], &[]);
}

fn unwrapped(file: &str, own: &[Lost<'_>]) {
    let lake = load(file, "schema = \"shop\"");
    let mut lost = bare_losses();
    // Of a type that is left out of the stream.
    lost.push(("all_types.c_name", "1", None));
    lost.push(("all_types.c_name", "40", None));
    lost.extend(own);
    // Truncates are dropped by the transform.
    let but = ["time_special", "unknown_types", "no_key", "index_identity", "nothing_identity"];
    compare(file, Mode::Bare { time3_micros: false }, &lake, &but, &lost);
    let (lake, name) = lake;
    let added = lake.rows(&format!("select * from {name}.customers"));
    assert!(added[0].iter().flatten().all(|name| !name.starts_with("__")), "{:?}", added[0]);
}

#[test]
fn unwrapped_rows_make_the_sources_tables() {
    unwrapped("pg-unwrapped", &[]);
}

#[test]
fn unwrapped_rows_of_2_7_make_the_sources_tables() {
    unwrapped("2.7/pg-unwrapped", &[("all_types.c_tsvector", "*", ALL)]);
}

/// What is lost where no schema tells.
fn bare_losses() -> Vec<Lost<'static>> {
    let mut lost = vec![
        // The spelling of `decimal.handling.mode = string`.
        ("num_special.n", "1", Some("NAN")),
        ("num_special.n102", "1", Some("NAN")),
        ("num_special.n", "2", Some("POSITIVE_INFINITY")),
        ("num_special.n", "3", Some("NEGATIVE_INFINITY")),
        ("num_special.n", "4", Some("POSITIVE_INFINITY")),
        ("num_special.n102", "11", Some("NAN")),
        ("all_types.c_enum_arr", "40", None),
        ("all_types.c_interval", "*", ALL),
        ("all_types.c_timetz", "*", ALL),
        // Bits are base64, a point is JSON.
        ("all_types.c_bit5", "*", ALL),
        ("all_types.c_varbit", "*", ALL),
        ("all_types.c_point", "*", ALL),
        ("generated.twice", "*", ALL),
    ];
    lost.extend(DEFAULTS.map(|column| (column, "*", ALL)));
    lost
}
