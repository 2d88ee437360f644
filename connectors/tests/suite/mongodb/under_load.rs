//! A writer that never pauses: snapshots, cuts and restarts in the middle of it.

use bson::doc;
use mongodb::ClientSession;

use super::*;

const ACCOUNTS: i32 = 1500;
const START: i32 = 1000;

/// Small pseudo-random numbers, the same in every run.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, sides: i32) -> i32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as i32
    }
}

/// Writers that go on until they are stopped.
struct Load {
    tasks: Vec<JoinHandle<u32>>,
    stop: CancellationToken,
}

impl Load {
    async fn start(source: &Source) -> Self {
        for side in ["left", "right"] {
            let accounts = (0..ACCOUNTS)
                .map(|i| doc! { "_id": i, "amount": START, "in": { "x": 0, "list": [1, 2, 3] }, "list": [0] });
            source.collection(side).insert_many(accounts).await.unwrap();
        }
        source.collection("mixed").insert_many((0..2000).map(|i| doc! { "_id": i, "s": "first" })).await.unwrap();
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        for seed in 1..=2 {
            let (client, database, stop) = (source.client.clone(), source.database(), stop.clone());
            tasks.push(tokio::spawn(async move {
                let mut session = client.start_session().await.unwrap();
                let (mut dice, mut done) = (Dice(seed * 7919), 0);
                while !stop.is_cancelled() {
                    match dice.roll(3) {
                        0 => transfer(&mut session, &database, &mut dice).await,
                        _ => change(&database, &mut dice).await,
                    }
                    done += 1;
                }
                done
            }));
        }
        Self { tasks, stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            assert!(task.await.unwrap() > 100, "the writer hardly wrote");
        }
    }
}

/// Moves an amount from one collection to the other, in a transaction that changes several documents; the sum stays.
async fn transfer(session: &mut ClientSession, database: &Database, dice: &mut Dice) {
    let amount = dice.roll(50);
    session.start_transaction().await.unwrap();
    for _ in 0..3 {
        for (side, amount) in [("left", -amount), ("right", amount)] {
            let id = dice.roll(ACCOUNTS);
            let update = doc! { "$inc": { "amount": amount } };
            let result = database
                .collection::<Document>(side)
                .update_one(doc! { "_id": id }, update)
                .session(&mut *session)
                .await;
            if result.is_err() {
                // a write conflict with the other writer
                let _ = session.abort_transaction().await;
                return;
            }
        }
    }
    let _ = session.commit_transaction().await;
}

async fn change(database: &Database, dice: &mut Dice) {
    let accounts = database.collection::<Document>(if dice.roll(2) == 0 { "left" } else { "right" });
    let mixed = database.collection::<Document>("mixed");
    let account = doc! { "_id": dice.roll(ACCOUNTS) };
    let id = dice.roll(4000);
    match dice.roll(9) {
        0 => accounts.update_one(account, doc! { "$inc": { "in.x": 1 } }).await.map(drop),
        1 => accounts
            .update_one(account, doc! { "$push": { "in.list": { "$each": [dice.roll(9)], "$slice": -4 } } })
            .await
            .map(drop),
        2 => accounts
            .update_one(account, doc! { "$push": { "list": { "$each": [dice.roll(9)], "$slice": -4 } } })
            .await
            .map(drop),
        3 => {
            accounts.update_one(account, vec![doc! { "$set": { "list": { "$slice": ["$list", 1] } } }]).await.map(drop)
        }
        4 => accounts.update_one(account, doc! { "$set": { "note": dice.roll(99) } }).await.map(drop),
        5 => accounts.update_one(account, doc! { "$unset": { "note": "" } }).await.map(drop),
        6 => mixed.delete_one(doc! { "_id": id }).await.map(drop),
        7 => mixed.replace_one(doc! { "_id": id }, doc! { "_id": id, "s": "replaced" }).upsert(true).await.map(drop),
        _ => mixed
            .update_many(
                doc! { "_id": { "$gte": id, "$lt": id + 20 } },
                doc! { "$set": { "s": dice.roll(9), "in": { "y": 1 } } },
            )
            .await
            .map(drop),
    }
    .ok(); // a write conflict with a transaction
}

fn sum(reader: &LogReader, source: &Source) -> i32 {
    ["left", "right"]
        .iter()
        .flat_map(|side| reader.documents(&format!("{}.{side}", source.name)).into_values())
        .map(|account| account.get_i32("amount").unwrap())
        .sum()
}

/// The proof of everything: what the log holds at a cut is what the server held at its cluster time.
#[tokio::test(flavor = "multi_thread")]
async fn cuts_are_exact() {
    let mut source = Source::create("cuts").await;
    source.range_rows = 150;
    let load = Load::start(&source).await;
    let running = source.start();
    let mut reader = source.reader().await;
    let (mut exact, mut watermark) = (0, 0);
    while exact < 6 {
        let cut = reader.until(|c| c.draft.cut).await;
        let rows = source.compare(&reader, &cut).await;
        let late = cut.wall_clock - cut.draft.watermark;
        assert!(cut.draft.watermark > watermark && late > 0);
        watermark = cut.draft.watermark;
        if cut.draft.converging.is_empty() {
            assert!(rows > 2 * ACCOUNTS as usize);
            assert_eq!(sum(&reader, &source), 2 * ACCOUNTS * START, "a cut splits a transaction");
            exact += 1;
        }
    }
    assert!(reader.patches > 0);
    load.stop().await;
    source.settle(&mut reader).await;
    running.stop().await;
    source.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_lose_and_double_nothing() {
    let mut source = Source::of_deployment("restart").await;
    source.range_rows = 100;
    let load = Load::start(&source).await;
    let mut reader = source.reader().await;
    let mut interrupted = 0;
    for round in 0..8 {
        let running = source.start();
        // Until something of this run is in the log, and then a little longer, each time another little.
        let last = reader.next().await.id;
        reader.until(|c| c.id > last).await;
        tokio::time::sleep(Duration::from_millis(61 * round)).await;
        interrupted += usize::from(!reader.next().await.draft.converging.is_empty());
        if round % 2 == 0 {
            running.kill().await;
        } else {
            running.stop().await;
        }
    }
    assert!(interrupted > 0, "no restart was inside the snapshot");
    let running = source.start();
    for _ in 0..2 {
        let cut = reader.until(|c| c.draft.cut && c.draft.converging.is_empty()).await;
        source.compare(&reader, &cut).await;
        assert_eq!(sum(&reader, &source), 2 * ACCOUNTS * START);
    }
    load.stop().await;
    source.settle(&mut reader).await;
    running.stop().await;
    source.drop().await;
}
