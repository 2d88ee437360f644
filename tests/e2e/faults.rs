//! Any process dies at any point, and servers with it, while two services change without a pause: the lake is what they are.

use std::time::Duration;

use rand::Rng;
use serde_json::json;

use crate::harness::{
    Lakeward, Mongo, Pipeline, Postgres, Process, Stack, Writer, heavy, mongo_load, mongo_tables, postgres_load,
    postgres_tables, wait_until,
};

/// Two services under load and a pipeline for them.
pub struct Scene {
    writers: [Writer; 2],
    pub lake: Lakeward,
    users: Postgres,
    shop: Mongo,
}

impl Scene {
    pub fn new(pipeline: Pipeline) -> Self {
        let (users, shop) = (Postgres::new(&postgres_tables()), Mongo::new());
        let collections = mongo_tables(&shop);
        let lake = pipeline.postgres(&users).mongo(&shop).build();
        let writers = [postgres_load(&users), mongo_load(&collections)];
        Self { writers, lake, users, shop }
    }

    /// Some changes go by in both services.
    pub fn more(&self, changes: u64) {
        self.writers.iter().for_each(|w| w.more(changes));
    }

    /// No row of any table differs, while the writers go on and when they have ended. Then the processes end in order.
    pub fn proved<const N: usize>(self, processes: [Process; N]) {
        self.more(50);
        let names = self.all_there();
        for moment in ["under load", "at rest"] {
            if moment == "at rest" {
                self.writers.iter().for_each(Writer::end);
            }
            let report = self.lake.verify();
            let tables = report["tables"].as_array().unwrap();
            for name in &names {
                let table =
                    tables.iter().find(|t| t["table"] == json!(name)).unwrap_or_else(|| panic!("{moment}: no {name}"));
                assert!(table["source_rows"].as_u64() > Some(0), "{moment}: {table}");
                assert_eq!(table["source_rows"], table["lake_rows"], "{moment}: {table}");
            }
        }
        processes.into_iter().for_each(Process::stop);
    }

    /// Waits until every table has left its first snapshot; their names.
    pub fn all_there(&self) -> Vec<String> {
        let names: Vec<String> = ["accounts", "events", "savings", "quiet"]
            .map(|table| format!("{}.{table}", self.users.name))
            .into_iter()
            .chain([format!("{}__other.pairs", self.users.name)])
            .chain(["items", "notes"].map(|table| format!("{}.{table}", self.shop.name)))
            .collect();
        // A table in its first snapshot cannot be asked yet, and verify would say that it was not compared.
        let all: Vec<String> = names.iter().map(|name| format!("(select count(*) from {name})")).collect();
        let all = format!("select {}", all.join(" + "));
        wait_until("all tables have left their first snapshot", || self.lake.try_sql(&all).is_ok());
        names
    }
}

/// The points of the connectors' process while it streams, and how often each is passed before it kills.
const CONNECTOR_POINTS: [(&str, u32); 7] = [
    ("log.append.begun", 3),
    ("log.append.data_sent", 5),
    ("log.append.checkpoint_sent", 2),
    ("log.append.before_commit", 4),
    ("log.append.committed", 6),
    ("connector.stream.before_append", 3),
    ("connector.confirm.before", 2),
];

#[test]
fn connectors_die_at_every_point() {
    let _heavy = heavy();
    let scene = Scene::new(Pipeline::new());
    let sink = scene.lake.start(&["sink"]);
    // In the first snapshots, one service after the other, since one might be done with its own before the other begins.
    let snapshots =
        [("connector.wave.before_append", &scene.users.name), ("connector.range.before_append", &scene.shop.name)];
    for (point, source) in snapshots {
        scene.lake.start_failing(&["connectors", "--source", source], point, 0).dies_at(point);
    }
    for (point, passes) in CONNECTOR_POINTS {
        scene.lake.start_failing(&["connectors"], point, passes).dies_at(point);
    }
    let connectors = scene.lake.start(&["connectors"]);
    scene.proved([connectors, sink]);
}

/// The points of the sink's process.
const SINK_POINTS: [(&str, u32); 9] = [
    ("lake.commit.manifests_written", 2),
    ("lake.commit.before_swap", 9),
    ("lake.commit.after_swap", 8),
    ("sink.commit.data_written", 7),
    ("sink.commit.before_table", 10),
    ("sink.commit.between_tables", 3),
    ("sink.commit.between_tables", 6),
    ("sink.checkpoint.before_row", 2),
    ("sink.dead_letters.written", 0),
];

#[test]
fn the_sink_dies_at_every_point() {
    let _heavy = heavy();
    let scene = Scene::new(Pipeline::new().postgres_catalog());
    let connectors = scene.lake.start(&["connectors"]);
    for (point, passes) in SINK_POINTS {
        if point == "sink.dead_letters.written" {
            // A value that its column cannot hold, and that no later change removes.
            scene.users.execute("INSERT INTO events (id, price) VALUES (-1000000, 'NaN')");
        }
        scene.lake.start_failing(&["sink"], point, passes).dies_at(point);
    }
    let sink = scene.lake.start(&["sink"]);
    let letters = format!("select count(*) from lakeward.dead_letters where source = '{}'", scene.users.name);
    scene.lake.wait_for_value(&letters, &json!(1));
    scene.proved([connectors, sink]);
}

/// No point in particular: whatever the process is doing.
#[test]
fn everything_dies_at_any_moment() {
    let _heavy = heavy();
    let scene = Scene::new(Pipeline::new());
    for _ in 0..5 {
        let running = scene.lake.start(&[]);
        // The first rounds hit the start and the snapshot, the later ones the stream.
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(500..6_000)));
        running.kill();
    }
    let running = scene.lake.start(&[]);
    scene.proved([running]);
}

/// Lakeward's processes live on through it: they try again.
#[test]
fn kafka_and_minio_die_and_come_back() {
    let _heavy = heavy();
    let stack = Stack::start(&["kafka", "minio"], &[]);
    let scene = Scene::new(Pipeline::on(stack.servers()));
    let mut running = scene.lake.start(&[]);
    scene.lake.wait_for_value(&format!("select count(*) > 0 from {}.items", scene.shop.name), &json!(true));
    for server in ["minio", "kafka", "minio", "kafka"] {
        stack.kill(server);
        scene.more(100);
        stack.restart(server);
        scene.more(100);
        // A process may also end with 3 ("a retry may cure it"), as a supervisor would then start it again.
        if !running.is_running() {
            assert_eq!(running.wait().code(), Some(3), "after {server} was killed");
            running = scene.lake.start(&[]);
        }
    }
    scene.proved([running]);
}

/// The transactions' coordinator moves to another broker and back, under load: writers find it, and nothing is lost or doubled.
#[test]
fn the_transaction_coordinator_moves() {
    let _heavy = heavy();
    let stack = Stack::start(&["kafka"], &[]);
    let scene = Scene::new(Pipeline::on(stack.servers()));
    let mut running = scene.lake.start(&[]);
    scene.lake.wait_for_value(&format!("select count(*) > 0 from {}.items", scene.shop.name), &json!(true));
    let _second = stack.second_broker();
    for broker in [2, 1] {
        stack.move_partitions("__transaction_state", 0..4, broker);
        scene.more(50);
        wait_until("the partitions have moved", || stack.is_moved());
        scene.more(100);
        assert!(running.is_running(), "on broker {broker}: {}", running.log());
    }
    scene.proved([running]);
}
