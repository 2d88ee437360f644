//! Every answer is one moment of all services, also while the sink dies between the commits of two tables, again and again.

use std::sync::atomic::{AtomicBool, Ordering};

use mongodb::bson::doc;
use serde_json::Value;

use crate::harness::{Mongo, Pipeline, Postgres, Writer, heavy, wait_until};

/// Kills of the sink, and answers asked for meanwhile, at least.
const KILLS: usize = 6;
const ANSWERS: usize = 20;

#[test]
fn every_answer_is_one_moment() {
    let _heavy = heavy();
    // a and b: transfers keep their sum. The counter is written to MongoDB first, then to PostgreSQL: no moment has it larger there.
    let users = Postgres::new(
        "CREATE TABLE a (id int PRIMARY KEY, balance bigint NOT NULL); CREATE TABLE b (LIKE a INCLUDING ALL);
         CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL);
         INSERT INTO a SELECT i, 1000 FROM generate_series(1, 50) i; INSERT INTO b SELECT * FROM a;
         INSERT INTO counter VALUES (1, 0)",
    );
    let shop = Mongo::new();
    let counter = shop.collection("counter");
    counter.insert(doc! { "_id": 1, "n": 0_i64 });
    let lake = Pipeline::new().postgres(&users).mongo(&shop).postgres_catalog().build();
    let (u, m) = (&users.name, &shop.name);

    let session = users.session();
    let transfers = Writer::start(move |n| {
        let (from, to, amount) = (n % 50 + 1, n * 7 % 50 + 1, n % 13 + 1);
        session.execute(&format!(
            "BEGIN; UPDATE a SET balance = balance - {amount} WHERE id = {from};
             UPDATE b SET balance = balance + {amount} WHERE id = {to}; COMMIT"
        ));
    });
    let session = users.session();
    let counting = Writer::start(move |n| {
        counter.update(doc! { "_id": 1 }, doc! { "$set": { "n": n as i64 + 1 } });
        session.execute(&format!("UPDATE counter SET n = {} WHERE id = 1", n + 1));
    });
    let connectors = lake.start(&["connectors"]);
    let query = format!(
        "select (select sum(balance) from {u}.a) + (select sum(balance) from {u}.b) as total,
                (select sum(balance) from {u}.a) as a, (select n from {u}.counter) as second, (select n from {m}.counter) as first"
    );
    let sink = lake.start(&["sink"]);
    wait_until("there is a first answer", || lake.try_sql(&query).is_ok());
    drop(sink);

    let done = AtomicBool::new(false);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut answers = Vec::new();
            while !done.load(Ordering::Relaxed) || answers.len() < ANSWERS {
                answers.push(lake.sql(&query).remove(0));
            }
            answers
        });
        for kill in 0..KILLS {
            // Tables commit in no fixed order: each number of tables is left behind at some time.
            lake.start_failing(&["sink"], "sink.commit.between_tables", 2 + kill as u32 % 4)
                .dies_at("sink.commit.between_tables");
        }
        done.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    for answer in &answers {
        let number = |name: &str| answer[name].as_i64().unwrap_or_else(|| panic!("{name} in {answer}"));
        assert_eq!(number("total"), 100_000, "transfers are whole: {answer}");
        assert!(number("second") <= number("first"), "{u} is not ahead of {m}: {answer}");
    }
    let moments: std::collections::BTreeSet<i64> = answers.iter().filter_map(|a| a["second"].as_i64()).collect();
    assert!(moments.len() > 2, "the answers are of several moments: {moments:?}");
    let sink = lake.start(&["sink"]);
    transfers.more(10);
    counting.more(10);
    lake.verify();
    sink.stop();
    connectors.stop();
}
