//! Topics that a Debezium writes: its real records (event/tests/golden/debezium) into Kafka, our sink behind, and the lake equal to
//! what the source held at the end, cell by cell. Where it is not, the record had lost it already: each such loss is named here.
//!
//! A file of records is named by its folder too, which is a version of Debezium and a database: `2.7/pg-unwrapped`.

mod documents;
mod rows;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Foreign, Lakeward, Pipeline, Servers, Tail, Writer, create_topics, fresh, produce_foreign};

/// The records of a file, with topics under `name`. A schema stands in a line of its own, before the records that have it.
fn golden(file: &str, name: &str) -> Vec<Foreign> {
    let mut schemas = Vec::new();
    let mut records: Vec<(String, i64, Foreign)> = lines(file)
        .into_iter()
        .filter_map(|line| {
            if let Some(schema) = line["text"].as_str() {
                schemas.push(schema.to_owned());
                return None;
            }
            let (_, rest) = line["topic"].as_str()?.split_once('.')?;
            let bytes = |value: &Value| value.as_str().map(|text| text.as_bytes().to_vec());
            let part = |part: &str| {
                let text = line[part].as_str()?;
                let schema = line[format!("{part}_schema")].as_u64().map(|of| &schemas[of as usize]);
                let whole = schema.map(|schema| format!("{{\"schema\":{schema},\"payload\":{text}}}"));
                Some(whole.unwrap_or_else(|| text.to_owned()).into_bytes())
            };
            let headers = line["headers"].as_array().into_iter().flatten().filter_map(|header| {
                Some((header["key"].as_str()?.to_owned(), bytes(&header["value"]).unwrap_or_default()))
            });
            // `__debezium-heartbeat.<prefix>` is another's.
            let topic = (!line["topic"].as_str()?.starts_with("__")).then(|| format!("{name}.{rest}"))?;
            let record =
                Foreign { topic: topic.clone(), key: part("key"), value: part("value"), headers: headers.collect() };
            Some((topic, line["offset"].as_i64()?, record))
        })
        .collect();
    records.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    records.into_iter().map(|(.., record)| record).collect()
}

/// What the source of the file's records held at the end: a file of the same folder.
fn beside(file: &str, other: &str) -> Vec<Value> {
    let folder = file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    lines(&format!("{folder}{other}"))
}

/// `schema.table`, as the topics of a file have it.
fn topics(file: &str) -> std::collections::BTreeSet<String> {
    golden(file, "x").into_iter().filter_map(|record| Some(record.topic.split_once('.')?.1.to_owned())).collect()
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

/// `tail` shows what a Debezium writes: all that is there before any sink has run, and what comes, by what the lake knows of the table.
#[test]
fn tail_shows_what_a_debezium_writes() {
    let (lake, name, records) = behind("2.7/pg-default-schema", "schema = \"shop\"");
    let kafka = &Servers::get().kafka;
    let topic = format!("{name}.shop.toast");
    let (toast, others): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.topic == topic);
    let (first, second) = toast.split_at(toast.iter().position(|record| record.value.is_none()).unwrap());
    produce_foreign(kafka, first);
    let all = |lake: &Lakeward, table: &str| -> Vec<Value> {
        let lines = Tail::start(lake, &[table, "--from-beginning", "-e", "--format", "json"]).ends();
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let shown = all(&lake, &topic);
    assert_eq!(shown, all(&lake, &format!("{name}.toast")), "by the name in SQL");
    let ops: Vec<_> = shown.iter().map(|change| change["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["r", "c", "u", "u", "u", "d"], "{shown:?}");
    assert_eq!(shown[2]["unchanged"], json!(["t", "b", "j", "ta", "ia", "ba", "h", "c", "u"]));
    assert_eq!((&shown[2]["key"], &shown[2]["after"]["small"]), (&json!({ "id": 1 }), &json!(2)));
    for field in ["commit_time", "tx", "position", "sequence"] {
        assert!(!shown[2][field].is_null(), "{field}: {}", shown[2]);
    }
    assert_eq!((&shown[2]["topic"], &shown[2]["offset"]), (&json!(topic), &json!(2)));
    let wrong = lake.call(&["tail", &format!("{name}.tost")]);
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && text.contains(&format!("did you mean `{name}.toast`")), "{text}");

    // From now on: a tombstone, which names no table and no type, is a delete of the lake's table.
    lake.catch_up();
    let mut tail = Tail::start(&lake, &[&format!("{name}.toast"), "--format", "json"]);
    let tombstone = second[0].clone();
    let tick = move |_| produce_foreign(&Servers::get().kafka, std::slice::from_ref(&tombstone));
    let ticking = Writer::start(tick);
    let delete = tail.json();
    assert_eq!((&delete["op"], &delete["key"]), (&json!("d"), &json!({ "id": 1 })), "{delete}");
    ticking.end();
    let broken = Foreign { topic: topic.clone(), value: Some(b"{".to_vec()), ..Foreign::default() };
    produce_foreign(kafka, &[&[broken], &second[1..]].concat());
    let mut next = || loop {
        let change = tail.json();
        if change["op"] != "d" || change["key"] != json!({ "id": 1 }) {
            return change;
        }
    };
    assert!(next()["error"].as_str().unwrap().contains("byte 1"));
    let moved = next();
    assert_eq!(
        (&moved["op"], &moved["key"], &moved["before"]),
        (&json!("c"), &json!({ "id": 3 }), &json!({ "id": 1 }))
    );

    // Tables of other topics, and people's form.
    produce_foreign(kafka, &others);
    let lines = Tail::start(&lake, &[&format!("{name}.all_types"), "--from-beginning", "-n", "1"]).ends();
    assert!(
        lines[0].contains(" snapshot id=1 c_smallint=1 ") && lines[0].contains(" c_date=\"2024-02-29\" "),
        "{lines:?}"
    );
}

/// The same of documents, unwrapped and by their changes.
#[test]
fn tail_shows_documents_that_a_debezium_writes() {
    for (file, expected) in [("2.1/mongo-update-description", true), ("mongo-unwrapped", false)] {
        let (lake, name, records) = behind(file, "schema = \"store\"");
        produce_foreign(&Servers::get().kafka, &records);
        let lines =
            Tail::start(&lake, &[&format!("{name}.people"), "--from-beginning", "-e", "--format", "json"]).ends();
        let changes: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let people =
            records.iter().filter(|record| record.topic.ends_with(".people") && record.topic.contains(".store."));
        assert_eq!(changes.len(), people.count());
        assert_eq!(changes[0]["after"]["_doc"]["name"], json!("Ann"), "{}", changes[0]);
        assert_eq!(changes.iter().any(|change| !change["patch"].is_null()), expected, "{file}");
    }
}
