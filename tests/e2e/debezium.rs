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

/// Reads a whole file: half of the records, a killed sink, the other half.
fn load(file: &str, settings: &str) -> (Lakeward, String) {
    let (lake, name, records) = behind(file, settings);
    let kafka = &Servers::get().kafka;
    let (first, second): (Vec<_>, Vec<_>) = records.into_iter().enumerate().partition(|(i, _)| i % 7 < 3);
    // Each topic's own order stays: its first records come first.
    let mut all: Vec<Foreign> = first.into_iter().chain(second).map(|(_, record)| record).collect();
    let mut by_topic: BTreeMap<String, Vec<Foreign>> = BTreeMap::new();
    for record in golden(file, &name) {
        by_topic.entry(record.topic.clone()).or_default().push(record);
    }
    for record in all.iter_mut().rev() {
        *record = by_topic.get_mut(&record.topic).and_then(Vec::pop).unwrap();
    }
    let half = all.len() / 2;
    produce_foreign(kafka, &all[..half]);
    lake.start_failing(&[], "sink.commit.between_tables", 3).dies_at("sink.commit.between_tables");
    lake.start_failing(&[], "sink.checkpoint.before_row", 0).dies_at("sink.checkpoint.before_row");
    produce_foreign(kafka, &all[half..]);
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

/// How a value of the source stands in the lake, where the record itself says it otherwise than the server does.
fn as_recorded(table: &str, column: &str, source: &str) -> String {
    let array = |text: &str, from: &str, to: &str| text.replace(from, to);
    match (table, column) {
        // Without the currency's sign and the groups of thousands.
        (_, "c_money") => source.replace(['$', ','], ""),
        // Padded, as the table has it; the server's cast to text strips.
        (_, "c_char") => format!("{source:<5}"),
        ("all_types", "c_bool_arr") => array(&array(source, "t", "true"), "f", "false"),
        // Only its greatest length is in the schema, so it is filled up to that.
        (_, "c_varbit") => format!("{source:0>20}"),
        _ => source.to_owned(),
    }
}

/// Compares all tables of the source. `lost`: what is not as in the source, by `table.column` and key, and what it is then;
/// `"*"`: the column is not compared.
fn compare(lake: &Lakeward, name: &str, but: &[&str], lost: &[(&str, &str, Option<&str>)]) {
    let mut wrong = Vec::new();
    for (table, source) in source_rows() {
        if but.contains(&table.as_str()) {
            continue;
        }
        let found = lake_rows(lake, name, &table);
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
            let Some(there) = found.iter().find(|there| key(there, &keys) == own) else {
                wrong.push(format!("{table}: no row {own:?}"));
                continue;
            };
            for (column, value) in row {
                let path = format!("{table}.{column}");
                let text = own.iter().flatten().cloned().collect::<Vec<_>>().join(",");
                let exception = lost.iter().find(|(lost, key, _)| *lost == path && (*key == "*" || *key == text));
                if exception.is_some_and(|(_, key, to)| *key == "*" && *to == Some("*")) {
                    continue;
                }
                let expected = match exception {
                    Some((.., to)) => to.map(str::to_owned),
                    None => value.as_deref().map(|value| as_recorded(&table, column, value)),
                };
                let actual = there.get(column).cloned().flatten();
                if actual != expected && !same_map(actual.as_deref(), expected.as_deref()) {
                    wrong.push(format!("{path} {own:?}: {actual:?} for {expected:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

/// An hstore comes as JSON.
fn same_map(json: Option<&str>, hstore: Option<&str>) -> bool {
    let (Some(json), Some(hstore)) = (json, hstore) else { return false };
    let Ok(Value::Object(map)) = serde_json::from_str::<Value>(json) else { return false };
    let text = format!("{{{}}}", hstore.replace("=>NULL", "=>null").replace("\"=>", "\":"));
    serde_json::from_str::<Value>(&text).is_ok_and(|parsed| parsed == Value::Object(map))
}

/// Schemas in each record, decimals precise, adaptive times: everything that Debezium can say.
#[test]
fn records_with_schemas_make_the_sources_tables() {
    let (lake, name) = load("pg-default-schema", "schema = \"shop\"");
    compare(
        &lake,
        &name,
        // Of types that Debezium leaves out unless told otherwise.
        &["unknown_types"],
        &[
            // NaN and infinities are null in `precise`.
            ("num_special.n", "1", None),
            ("num_special.n", "2", None),
            ("num_special.n", "3", None),
            ("num_special.n", "4", None),
            ("num_special.n102", "1", None),
            ("num_special.n102", "11", None),
            // An enum[] that holds a NULL is null.
            ("all_types.c_enum_arr", "40", None),
        ],
    );
}
