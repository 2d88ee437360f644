//! Topics that a Debezium writes: its real records (event/tests/golden/debezium) into Kafka, our sink behind, and the lake equal to
//! what the source held at the end, cell by cell. Where it is not, the record had lost it already: each such loss is named here.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Foreign, Lakeward, Pipeline, Servers, create_topics, fresh, produce_foreign};

/// The records of a file, with topics under `name`.
fn golden(file: &str, name: &str) -> Vec<Foreign> {
    let mut records: Vec<(String, i64, Foreign)> = lines(file)
        .into_iter()
        .filter_map(|line| {
            let (_, rest) = line["topic"].as_str()?.split_once('.')?;
            let bytes = |value: &Value| value.as_str().map(|text| text.as_bytes().to_vec());
            let headers = line["headers"].as_array().into_iter().flatten().filter_map(|header| {
                Some((header["key"].as_str()?.to_owned(), bytes(&header["value"]).unwrap_or_default()))
            });
            // `__debezium-heartbeat.<prefix>` is another's.
            let topic = (!line["topic"].as_str()?.starts_with("__")).then(|| format!("{name}.{rest}"))?;
            let record = Foreign {
                topic: topic.clone(),
                key: bytes(&line["key"]),
                value: bytes(&line["value"]),
                headers: headers.collect(),
            };
            Some((topic, line["offset"].as_i64()?, record))
        })
        .collect();
    records.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    records.into_iter().map(|(.., record)| record).collect()
}

fn lines(file: &str) -> Vec<Value> {
    let path = format!("{}/event/tests/golden/debezium/{file}.ndjson", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A pipeline behind the topics of a file, which are there but empty, and the records for them.
fn behind(file: &str, settings: &str) -> (Lakeward, String, Vec<Foreign>) {
    let name = fresh("dbz");
    let records = golden(file, &name);
    let mut topics: Vec<String> = records.iter().map(|r| r.topic.clone()).collect();
    topics.dedup();
    create_topics(&Servers::get().kafka, &topics);
    (Pipeline::new().debezium(&name, settings).build(), name, records)
}

/// Reads a whole file: half of each topic's records, a sink that dies twice, the other half.
fn load(file: &str, settings: &str) -> (Lakeward, String) {
    let (lake, name, records) = behind(file, settings);
    let kafka = &Servers::get().kafka;
    let mut topics = BTreeMap::<&str, Vec<&Foreign>>::new();
    for record in &records {
        topics.entry(&record.topic).or_default().push(record);
    }
    let half = |second: bool| -> Vec<Foreign> {
        let parts = topics.values().map(|records| records.split_at(records.len().div_ceil(2)));
        parts.flat_map(|(a, b)| if second { b } else { a }).map(|record| (*record).clone()).collect()
    };
    produce_foreign(kafka, &half(false));
    let tables = u32::from(topics.len() > 3) * 3;
    lake.start_failing(&[], "sink.commit.between_tables", tables).dies_at("sink.commit.between_tables");
    lake.start_failing(&[], "sink.checkpoint.before_row", 0).dies_at("sink.checkpoint.before_row");
    produce_foreign(kafka, &half(true));
    lake.catch_up();
    (lake, name)
}

/// `table -> (key's text -> column -> text)` as the source held them at the end.
type Rows = Vec<BTreeMap<String, Option<String>>>;

fn source_rows() -> BTreeMap<String, Rows> {
    let mut tables = BTreeMap::<String, Rows>::new();
    for line in lines("pg-final-rows") {
        let row = line["row"].as_object().unwrap();
        let row = row.iter().map(|(name, value)| (name.clone(), value.as_str().map(str::to_owned))).collect();
        tables.entry(line["table"].as_str().unwrap().to_owned()).or_default().push(row);
    }
    // These were empty at the end.
    for table in ["index_identity", "nothing_identity"] {
        tables.entry(table.to_owned()).or_default();
    }
    tables
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

/// Compares the tables of the source that the lake has, but for some. `lost`: what is not as in the source, by `table.column` and key, and what it is then;
/// `"*"`: the column is not compared.
fn compare(mode: Mode, lake: &Lakeward, name: &str, but: &[&str], lost: &[(&str, &str, Option<&str>)]) {
    let mut wrong = Vec::new();
    let mut unused: Vec<_> = lost.iter().map(|(path, key, _)| (*path, *key)).collect();
    for (table, source) in source_rows() {
        if but.contains(&table.as_str()) {
            continue;
        }
        // Rows that are unwrapped do not say their table's name, the topic has it without what Kafka does not allow.
        let unwrapped = mode == Mode::Bare { time3_micros: false };
        let there = if unwrapped { table.replace([' ', 'ä', '$'], "_") } else { table.clone() };
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

/// Schemas in each record, decimals precise, adaptive times: everything that Debezium can say.
#[test]
fn records_with_schemas_make_the_sources_tables() {
    let (lake, name) = load("pg-default-schema", "schema = \"shop\"");
    let mut columns = vec![
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
    columns.extend(DEFAULTS.map(|column| (column, "*", ALL)));
    compare(Mode::Declared, &lake, &name, &[], &columns);

    // Each loss of ours has its row, once, although the sink died twice.
    let letters = lake.sql(&format!(
        "select \"table\", \"column\", payload, \"offset\" from lakeward.dead_letters where source = '{name}' order by 1, 4, 2"
    ));
    let found: Vec<_> = letters.iter().map(|l| (l["table"].as_str().unwrap(), l["offset"].as_i64().unwrap())).collect();
    let table = |table: &str| format!("{name}.{table}");
    let (no_key, times) = (table("no_key"), table("time_special"));
    let expected: Vec<(&str, i64)> = vec![
        // An update and a delete in a table without a key.
        (&no_key, 4),
        (&no_key, 5),
        (&times, 4),
        (&times, 4),
        (&times, 9),
        (&times, 9),
    ];
    assert_eq!(found, expected, "{letters:?}");
    assert_eq!(letters[2]["payload"], json!("-9223372036853775810"));
}

#[test]
fn other_modes_are_read_as_their_schemas_declare_them() {
    let settings = "schema = \"shop\"\nunavailable_value_placeholder = \"<<unavailable>>\"";
    let (lake, name) = load("pg-other-modes", settings);
    let captured = ["all_types", "num_special", "toast"];
    let others: Vec<String> = source_rows().into_keys().filter(|table| !captured.contains(&table.as_str())).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let all_types =
        "c_numeric_10_2|c_numeric|c_money|c_time|c_time3|c_ts|c_ts0|c_interval|c_bytea|c_num_arr|c_hstore|id";
    let toast = "id|small|t|b|u|h";
    let mut lost = Vec::new();
    for (table, rows) in source_rows() {
        let known = match table.as_str() {
            "all_types" => all_types,
            "toast" => toast,
            "num_special" => "id|n|n102",
            _ => continue,
        };
        for column in rows[0].keys().filter(|column| !known.split('|').any(|known| known == **column)) {
            lost.push((format!("{table}.{column}"), "*".to_owned(), ALL));
        }
    }
    let lost: Vec<_> = lost.iter().map(|(path, key, to)| (path.as_str(), key.as_str(), *to)).collect();
    compare(Mode::Doubles, &lake, &name, &others, &lost);
}

/// What cannot be told without a schema is what the record says, number or text; nothing else is different.
#[test]
fn records_without_schemas_keep_every_value() {
    let (lake, name) = load("pg-noschema-string", "schema = \"shop\"");
    let mut lost = bare_losses();
    // The spelling of `decimal.handling.mode = string`.
    lost.push(("num_special.n102", "1", Some("NAN")));
    compare(Mode::Bare { time3_micros: true }, &lake, &name, &["time_special", "unknown_types"], &lost);
    assert_eq!(lake.value(&format!("select count(*) from {name}.signals")), json!(5));
}

#[test]
fn unwrapped_rows_make_the_sources_tables() {
    let (lake, name) = load("pg-unwrapped", "schema = \"shop\"");
    let mut lost = bare_losses();
    lost.push(("num_special.n102", "1", Some("NAN")));
    // Of a type that is left out of the stream.
    lost.push(("all_types.c_name", "1", None));
    lost.push(("all_types.c_name", "40", None));
    // Truncates are dropped by the transform.
    let but = ["time_special", "unknown_types", "no_key", "index_identity", "nothing_identity"];
    compare(Mode::Bare { time3_micros: false }, &lake, &name, &but, &lost);
    let added = lake.rows(&format!("select * from {name}.customers"));
    assert!(added[0].iter().flatten().all(|name| !name.starts_with("__")), "{:?}", added[0]);
}

fn bare_losses() -> Vec<(&'static str, &'static str, Option<&'static str>)> {
    let mut lost = vec![
        ("num_special.n", "1", Some("NAN")),
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

/// Documents at the end, by collection and `_id` in canonical Extended JSON.
fn source_documents() -> BTreeMap<(String, String), Value> {
    let documents = lines("mongo-final-docs").into_iter().map(|line| {
        let document: Value = serde_json::from_str(line["document"].as_str().unwrap()).unwrap();
        ((line["collection"].as_str().unwrap().to_owned(), document["_id"].to_string()), document)
    });
    documents.collect()
}

/// Numbers by value, whatever their digits: `1e300` and `1E+300`.
fn normal(value: &Value) -> Value {
    match value {
        // What made the list has no such types, and took them for these.
        Value::Object(map) if map.len() == 1 && map.contains_key("$undefined") => Value::Null,
        Value::Object(map) if map.len() == 1 && map.contains_key("$symbol") => map["$symbol"].clone(),
        Value::Object(map) => match (map.get("$numberDouble").and_then(Value::as_str), map.len()) {
            (Some(text), 1) => json!({ "$numberDouble": text.parse::<f64>().unwrap().to_string() }),
            _ => Value::Object(map.iter().map(|(name, value)| (name.clone(), normal(value))).collect()),
        },
        Value::Array(items) => Value::Array(items.iter().map(normal).collect()),
        other => other.clone(),
    }
}

/// Integers without their width.
fn widthless(value: &Value) -> Value {
    match value {
        Value::Object(map) => match (map.get("$numberInt").or(map.get("$numberLong")), map.len()) {
            (Some(text), 1) => json!({ "$number": text }),
            _ => Value::Object(map.iter().map(|(name, value)| (name.clone(), widthless(value))).collect()),
        },
        Value::Array(items) => Value::Array(items.iter().map(widthless).collect()),
        other => other.clone(),
    }
}

/// Compares `_doc` of all collections. `wide`: integers keep their width.
fn compare_documents(lake: &Lakeward, name: &str, collections: &[&str], wide: bool) {
    let mut wrong = Vec::new();
    let mut expected: BTreeMap<(String, String), Value> =
        source_documents().into_iter().filter(|((of, _), _)| collections.contains(&of.as_str())).collect();
    assert!(!expected.is_empty());
    for collection in collections {
        let (database, table) = collection.split_once('.').unwrap();
        let space = if database == "store" { name.to_owned() } else { format!("{name}__{database}") };
        for row in lake.sql(&format!("select _id, _doc from {space}.\"{table}\"")) {
            let document: Value = serde_json::from_str(row["_doc"].as_str().unwrap()).unwrap();
            let form = |value: &Value| if wide { normal(value) } else { widthless(&normal(value)) };
            match expected.remove(&((*collection).to_owned(), document["_id"].to_string())) {
                Some(source) if form(&source) == form(&document) => {}
                Some(source) => wrong.push(format!("{collection}: {document}\nfor {source}")),
                None => wrong.push(format!("{collection}: {document} is not there")),
            }
        }
    }
    wrong.extend(expected.into_keys().map(|(collection, id)| format!("{collection}: {id} is missing")));
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

/// But for those that were dropped or renamed, of which there is no record, and one of documents that look like Extended JSON.
const COLLECTIONS: [&str; 9] = [
    "other.people",
    "store.gaps",
    "store.ids",
    "store.images",
    "store.odd_ids",
    "store.orders",
    "store.people",
    "store.plain_types",
    "store.types",
];

#[test]
fn whole_documents_make_the_sources_collections() {
    let (lake, name) = load("mongo-default", "schema = \"store\"");
    compare_documents(&lake, &name, &COLLECTIONS, true);
    // Fields are columns as of our own MongoDB sources.
    assert_eq!(lake.value(&format!("select age from {name}.people where name = 'Ann'")), json!(31));
    let ids = lake.rows(&format!("select _id from {name}.ids order by 1"));
    assert!(ids.contains(&vec![Some("string id".to_owned())]), "{ids:?}");
}

/// Updates without documents, applied by the sink; integers in them do not say how wide they are.
#[test]
fn update_descriptions_make_the_sources_collections() {
    let (lake, name) = load("mongo-update-description", "schema = \"store\"");
    compare_documents(&lake, &name, &COLLECTIONS, false);
}

#[test]
fn pre_images_are_read_over() {
    let (lake, name) = load("mongo-pre-image", "schema = \"store\"");
    compare_documents(&lake, &name, &["store.images"], true);
}

/// A key of a bare value, a broken record, and the rest goes on; `check`, `status`, `verify` and joins say what such a source is.
#[test]
fn an_operator_is_told_what_such_a_source_is() {
    let name = fresh("dbz");
    let lake = Pipeline::new().debezium(&name, "").build();
    let check = lake.call(&["check"]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
    assert!(check.status.code() == Some(1) && text.contains(&format!("no topic matches {name}.*")), "{text}");

    let kafka = &Servers::get().kafka;
    let topics = ["orders", "users"].map(|table| format!("{name}.public.{table}"));
    create_topics(kafka, &topics);
    let put = |topic: &str, key: &str, value: &str| {
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        produce_foreign(
            kafka,
            &[Foreign { topic: topic.to_owned(), key: bytes(key), value: bytes(value), ..Foreign::default() }],
        );
    };
    for id in 1..=3 {
        put(&topics[0], &format!(r#"{{"id":{id}}}"#), &format!(r#"{{"id":{id},"user_id":1}}"#));
    }
    put(&topics[0], "4", r#"{"id":4}"#);
    put(&topics[0], r#"{"id":5}"#, r#"{"id":5,"#);
    put(&topics[1], "broken", "broken");
    assert_eq!(lake.call(&["check"]).status.code(), Some(0));
    let running = lake.start(&[]);
    lake.wait_for_value(&format!("select count(*) from {name}.orders"), &json!(3));
    put(&topics[0], r#"{"id":6}"#, r#"{"id":6,"user_id":2}"#);
    // A value that was left out of a row that nobody has told before.
    let left_out = r#"{"before":null,"after":{"id":7,"user_id":2,"note":"__debezium_unavailable_value"},"source":{"lsn":1},"op":"u"}"#;
    put(&topics[0], r#"{"id":7}"#, left_out);
    put(&topics[1], r#"{"id":1}"#, r#"{"id":1,"name":"Ann"}"#);
    lake.wait_for_value(&format!("select count(*) from {name}.users"), &json!(1));
    lake.wait_for_value(&format!("select count(*) from {name}.orders"), &json!(5));
    running.stop();

    let letters = lake.sql(&format!(
        "select \"table\", topic, \"partition\", \"offset\", \"column\", key, payload, error from lakeward.dead_letters where source = '{name}' order by topic, \"offset\""
    ));
    let places: Vec<_> =
        letters.iter().map(|l| (l["topic"].as_str().unwrap(), l["offset"].as_i64().unwrap())).collect();
    assert_eq!(places, [(topics[0].as_str(), 3), (&topics[0], 4), (&topics[0], 6), (&topics[1], 0)], "{letters:?}");
    assert_eq!((&letters[3]["key"], &letters[3]["payload"]), (&json!("broken"), &json!("broken")));
    assert_eq!(letters[3]["table"], json!(format!("{name}.users")));
    assert_eq!((&letters[2]["key"], &letters[2]["column"]), (&json!(r#"{"id":7}"#), &json!("note")));

    let output = lake.call(&[
        "sql",
        "-c",
        &format!("select count(*) from {name}.orders o join {name}.users u on u.id = o.user_id"),
    ]);
    let notice = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && notice.contains("others write these topics"), "{notice}");
    let verified = lake.verify_any(&[]);
    assert_eq!(verified.code, 1);
    let skipped: Vec<_> = verified.report["skipped"].as_array().unwrap().iter().map(|s| s["table"].clone()).collect();
    assert_eq!(skipped.len(), 2, "{:?}", verified.report);
    assert!(verified.report["skipped"][0]["reason"].as_str().unwrap().contains("no database to compare with"));
    let status = String::from_utf8_lossy(&lake.call(&["status"]).stdout).into_owned();
    assert!(status.contains("topics    2, 9 offsets, 0 of them not in SQL yet"), "{status}");
    let topics: Value = serde_json::from_slice(&lake.call(&["topics", "--format", "json"]).stdout).unwrap();
    let lags: Vec<_> = topics["sources"][0]["topics"].as_array().unwrap().iter().map(|topic| &topic["lag"]).collect();
    assert_eq!(lags, [&json!(0), &json!(0)], "{topics}");
}
