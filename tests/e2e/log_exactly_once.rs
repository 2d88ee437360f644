//! The log on its own, since the lake would absorb what is doubled: records against what a second slot delivers.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use serde_json::Value;

use crate::harness::{Pipeline, Postgres, Record, Servers, Writer, heavy, stream_records};

const SLOT_PLUGIN: &str = "test_decoding";

/// A change, by what tells it from every other: transaction, operation, key, and the value that each write makes anew.
type Change = (u32, char, i64, Option<i64>);

/// The points of an append and around it.
const POINTS: [(&str, u32); 7] = [
    ("log.append.begun", 4),
    ("log.append.data_sent", 3),
    ("log.append.checkpoint_sent", 5),
    ("log.append.before_commit", 2),
    ("log.append.committed", 3),
    ("connector.stream.before_append", 4),
    ("connector.confirm.before", 1),
];

#[test]
fn none_twice_and_none_missing() {
    let _heavy = heavy();
    let users = Postgres::new(
        "CREATE TABLE t (id bigint PRIMARY KEY, stamp bigint); CREATE TABLE emptied (id bigint PRIMARY KEY, stamp bigint);
         INSERT INTO t VALUES (1, 0); INSERT INTO emptied VALUES (1, 0)",
    );
    let lake = Pipeline::new().postgres(&users).build();
    let running = lake.start(&[]);
    // Before its snapshot is over, a table's rows would come as reads. A key of its own for the one row that does.
    for table in ["t", "emptied"] {
        lake.wait_for_value(&format!("select count(*) from {}.{table}", users.name), &serde_json::json!(1));
    }
    running.stop();
    let witness = format!("{}_witness", users.name);
    users.execute(&format!("SELECT pg_create_logical_replication_slot('{witness}', '{SLOT_PLUGIN}')"));

    let session = users.session();
    let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(5);
    let writer = Writer::start(move |n| {
        let (id, stamp) = (n as i64 * 100, n as i64 * 1000);
        let earlier = rng.random_range(0..=n as i64) * 100;
        session.execute(&match n % 10 {
            // Longer than what one append takes: a place inside a transaction is where a kill may find it.
            9 => format!("INSERT INTO t SELECT {id} + i, {stamp} + i FROM generate_series(1, 90) i"),
            4 => format!("BEGIN; UPDATE t SET id = -id - 1, stamp = {stamp} WHERE id = {earlier}; DELETE FROM t WHERE id = {id}; COMMIT"),
            5 => format!("DELETE FROM t WHERE id = {earlier}"),
            6 => format!("UPDATE t SET stamp = {stamp} + id WHERE id BETWEEN {earlier} AND {earlier} + 5"),
            7 if n % 50 == 7 => "TRUNCATE emptied".to_owned(),
            7 | 8 => format!("INSERT INTO emptied VALUES ({id}, {stamp})"),
            _ => format!("INSERT INTO t VALUES ({id}, {stamp})"),
        });
    });
    for (point, passes) in POINTS {
        lake.start_failing(&["connectors"], point, passes).dies_at(point);
    }
    writer.more(50);
    let killed = lake.start(&["connectors"]);
    writer.more(150);
    killed.kill();
    writer.end();
    lake.catch_up();

    let expected = witnessed(&users, &witness);
    let records = stream_records(&Servers::get().kafka, &users.name);
    for table in ["t", "emptied"] {
        let topic = format!("{}.public.{table}", users.name);
        let delivered = delivered(records.iter().filter(|r| r.topic == topic));
        let expected = &expected[table];
        assert!(expected.len() > 100, "{table} has changes: {}", expected.len());
        let different = delivered.iter().zip(expected).position(|(a, b)| a != b);
        if let Some(at) = different {
            let near = |changes: &[Change]| format!("{:?}", &changes[at..(at + 5).min(changes.len())]);
            panic!("{table}, change {at}: {} in the log, {} of the second slot", near(&delivered), near(expected));
        }
        assert_eq!(delivered.len(), expected.len(), "{table}: as many changes");
    }
    sequences_grow(&records);
    assert!(expected["emptied"].iter().filter(|change| change.1 == 't').count() > 2, "tables were emptied");
}

/// What the second slot delivers, per table in the order of commits.
fn witnessed(users: &Postgres, slot: &str) -> BTreeMap<String, Vec<Change>> {
    let mut changes: BTreeMap<String, Vec<Change>> = BTreeMap::new();
    for row in users.rows(&format!("SELECT xid, data FROM pg_logical_slot_get_changes('{slot}', NULL, NULL)")) {
        let (xid, data) = (row[0].as_deref().unwrap().parse().unwrap(), row[1].as_deref().unwrap());
        let Some(data) = data.strip_prefix("table public.") else { continue };
        let (table, rest) = data.split_once(": ").unwrap();
        let (operation, rest) = rest.split_once(": ").unwrap();
        // Of a key change both rows are there: `old-key: id[bigint]:1 new-tuple: id[bigint]:2 stamp[bigint]:3`.
        let (old, new) = match rest.split_once(" new-tuple: ") {
            Some((old, new)) => (Some(old), new),
            None => (None, rest),
        };
        let number = |text: &str, column: &str| -> Option<i64> {
            let (_, value) = text.split_once(&format!("{column}[bigint]:"))?;
            value.split(' ').next()?.parse().ok()
        };
        let of_table = changes.entry(table.to_owned()).or_default();
        let id = number(new, "id");
        match (operation, old) {
            ("INSERT", _) => of_table.push((xid, 'c', id.unwrap(), number(new, "stamp"))),
            ("UPDATE", None) => of_table.push((xid, 'u', id.unwrap(), number(new, "stamp"))),
            ("UPDATE", Some(old)) => {
                of_table.push((xid, 'd', number(old, "id").unwrap(), None));
                of_table.push((xid, 'c', id.unwrap(), number(new, "stamp")));
            }
            ("DELETE", _) => of_table.push((xid, 'd', id.unwrap(), None)),
            ("TRUNCATE", _) => of_table.push((xid, 't', 0, None)),
            other => panic!("{other:?}: {data}"),
        }
    }
    changes
}

/// What the log delivers of a table, in the order of `sequence`; a barrier counts once, and is in each partition once.
fn delivered<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Change> {
    let mut records: Vec<&Record> = records.collect();
    records.sort_by_key(|r| (r.sequence, r.partition));
    let mut barriers: BTreeMap<i64, BTreeSet<i32>> = BTreeMap::new();
    let mut changes = Vec::new();
    for record in records {
        let xid = record.value["source"]["txId"].as_u64().unwrap_or_default() as u32;
        let stamp = record.value["after"]["stamp"].as_i64();
        match record.op() {
            "t" => {
                let partitions = barriers.entry(record.sequence).or_default();
                assert!(partitions.insert(record.partition), "a barrier twice in a partition: {record:?}");
                if partitions.len() == 1 {
                    changes.push((xid, 't', 0, None));
                }
            }
            op @ ("c" | "u" | "d") => {
                let id = record.key["id"].as_i64().unwrap_or_else(|| panic!("a key: {record:?}"));
                changes.push((xid, op.chars().next().unwrap(), id, stamp));
            }
            "r" if record.key["id"] == 1 => {}
            op => panic!("{op} of a row that came later: {record:?}"),
        }
    }
    assert!(barriers.values().all(|partitions| partitions.len() == 2), "barriers are in all partitions: {barriers:?}");
    changes
}

/// In each partition from record to record; and no number twice in the source, but for a barrier's.
fn sequences_grow(records: &[Record]) {
    for pair in records.windows(2) {
        if (&pair[0].topic, pair[0].partition) == (&pair[1].topic, pair[1].partition) {
            assert!(pair[0].sequence < pair[1].sequence, "{:?} before {:?}", pair[0], pair[1]);
        }
    }
    let mut seen: BTreeMap<i64, &Record> = BTreeMap::new();
    for record in records {
        if let Some(before) = seen.insert(record.sequence, record) {
            let barrier = record.op() == "t" && before.op() == "t" && record.topic == before.topic;
            assert!(barrier, "one sequence, two records: {before:?} and {record:?}");
        }
    }
    assert!(records.iter().all(|r| r.value != Value::Null));
}
