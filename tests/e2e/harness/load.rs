//! Changes of every kind, for ever: what fault tests run under.

use mongodb::bson::{Bson, doc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Documents, Mongo, Postgres, Writer, noise};

/// Rows of each table before anything else happens.
const ROWS: i64 = 500;
/// Hexadecimal digits of a value that PostgreSQL stores beside its row: over 8 kB, and nothing to compress.
const BIG: usize = 9_000;

/// Tables with their first rows, in two schemas: `accounts` and `savings` (whose balances have one sum), `events`, `other.pairs`,
/// and `quiet`, whose one row leaves a partition without records.
pub fn postgres_tables() -> String {
    format!(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
         CREATE TABLE savings (id int PRIMARY KEY, balance bigint NOT NULL);
         CREATE TABLE events (id bigint PRIMARY KEY, n bigint, note text, price numeric(12,2), ratio float8, tags text[],
                              at timestamptz, data jsonb, big text);
         ALTER TABLE events ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE quiet (id int PRIMARY KEY, v text);
         CREATE SCHEMA other;
         CREATE TABLE other.pairs (a int, b text, v uuid, d date, PRIMARY KEY (a, b));
         INSERT INTO quiet VALUES (1, 'never changed');
         INSERT INTO accounts SELECT i, 100 FROM generate_series(1, {ROWS}) i;
         INSERT INTO savings SELECT i, 100 FROM generate_series(1, {ROWS}) i;
         INSERT INTO events SELECT -i, i, 'first ' || i, i * 1.25, i / 3.0, ARRAY['a', i::text], now(), '{{\"i\": 1}}',
                (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 300) j)
                FROM generate_series(1, {ROWS}) i;
         INSERT INTO other.pairs SELECT i, 'b' || i, gen_random_uuid(), '2024-02-29' FROM generate_series(1, {ROWS}) i;"
    )
}

/// Changes the tables of [`postgres_tables`] without a pause: transfers over two tables, inserts, updates that leave big values
/// alone, deletes, key changes.
pub fn postgres_load(service: &Postgres) -> Writer {
    let session = service.session();
    let mut rng = StdRng::seed_from_u64(7);
    Writer::start(move |n| {
        let id = n as i64 + 1;
        let (from, to, amount) = (rng.random_range(1..=ROWS), rng.random_range(1..=ROWS), rng.random_range(1..50));
        let earlier = rng.random_range(-ROWS..=id.max(1));
        session.execute(&match n % 8 {
            0 | 4 => format!(
                "BEGIN;
                 UPDATE accounts SET balance = balance - {amount} WHERE id = {from};
                 UPDATE savings SET balance = balance + {amount} WHERE id = {to};
                 COMMIT"
            ),
            1 => {
                let big = if n % 32 == 1 { noise(&mut rng, BIG) } else { String::new() };
                format!(
                    "INSERT INTO events VALUES ({id}, {n}, 'note {n}', {n} * 0.01, 'NaN', '{{a,NULL,\"b c\"}}', now(), '{{\"n\": [{n}]}}', '{big}')"
                )
            }
            2 => format!(
                "UPDATE events SET n = {n}, note = NULL WHERE id BETWEEN {earlier} AND {earlier} + 3;
                 UPDATE events SET ratio = {n} / 7.0 WHERE id = {earlier}"
            ),
            3 => format!("UPDATE other.pairs SET v = gen_random_uuid(), d = DATE '2024-01-01' + {} WHERE a = {from}", n % 1000),
            5 => format!("DELETE FROM events WHERE id = {earlier}"),
            6 => format!("UPDATE events SET id = id + 1000000000 WHERE id = {earlier} AND id < 500000000"),
            _ => format!(
                "DELETE FROM other.pairs WHERE a = {from};
                 INSERT INTO other.pairs VALUES ({from}, 'again {n}', gen_random_uuid(), NULL)
                 ON CONFLICT (a, b) DO UPDATE SET v = excluded.v"
            ),
        });
    })
}

/// Collections with their first documents: `items` (patches arrive as they are), `notes` (with post-images).
pub fn mongo_tables(service: &Mongo) -> (Documents, Documents) {
    let items = service.collection("items");
    items.insert_many(
        (0..ROWS)
            .map(|i| doc! { "_id": i, "title": format!("Item {i}"), "stock": 10_i64, "size": { "w": i % 90, "h": 1 }, "tags": ["new"] })
            .collect(),
    );
    let notes = service.collection_with_post_images("notes");
    notes.insert_many(
        (0..ROWS)
            .map(|i| doc! { "_id": format!("note {i}"), "n": i, "at": Bson::DateTime(mongodb::bson::DateTime::now()) })
            .collect(),
    );
    (items, notes)
}

/// Changes the collections of [`mongo_tables`] without a pause: inserts, patches, replaces, deletes.
pub fn mongo_load((items, notes): &(Documents, Documents)) -> Writer {
    let (items, notes) = (items.clone(), notes.clone());
    let mut rng = StdRng::seed_from_u64(11);
    Writer::start(move |n| {
        let (id, new) = (rng.random_range(0..ROWS), ROWS + n as i64);
        match n % 7 {
            0 => items.update(doc! { "_id": id }, doc! { "$inc": { "stock": -1_i64 }, "$set": { "size.w": n as i64 } }),
            1 => items.insert(doc! { "_id": new, "title": "new", "stock": 1_i64, "more": noise(&mut rng, 40) }),
            2 => notes.update(
                doc! { "_id": format!("note {id}") },
                doc! { "$set": { "n": n as i64 }, "$unset": { "at": "" } },
            ),
            3 => items.replace(
                doc! { "_id": id },
                doc! { "title": format!("replaced {n}"), "stock": n as i64, "tags": ["a", n as i64] },
            ),
            4 => notes.insert(doc! { "text": format!("n{n}"), "n": n as i64 }),
            5 => items.delete(doc! { "_id": rng.random_range(0..new) }),
            _ => notes.replace(
                doc! { "_id": format!("note {id}") },
                doc! { "n": n as i64, "deep": { "a": { "b": n as i64 } } },
            ),
        }
    })
}
