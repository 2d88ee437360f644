//! A disk with no room left: said with the path, waited for, and nothing lost.

use serde_json::json;

use crate::harness::{Disk, Lakeward, Pipeline, Postgres, Process, wait_until};

const ROWS: i64 = 500;

fn users() -> Postgres {
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY, n int, pad text)");
    insert(&users, 1);
    users
}

/// Rows that do not compress, with ids from here on.
fn insert(users: &Postgres, from: i64) {
    users.execute(&format!(
        "INSERT INTO t SELECT i, 0, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 20) WHERE i = i)
           FROM generate_series({from}, {}) i",
        from + ROWS - 1
    ));
}

fn wait_for_rows(lake: &Lakeward, users: &Postgres, rows: i64) {
    lake.wait_for_value(&format!("select count(*) from {}.t", users.name), &json!(rows));
}

/// Its log says that there is no room, where, and what to do.
#[track_caller]
fn says_full(running: &Process, place: &str) {
    wait_until("the log says that the disk is full", || {
        running
            .log()
            .lines()
            .any(|line| line.contains("is full") && line.contains(place) && line.contains("free space"))
    });
}

/// State, catalog and warehouse on one disk, as they are on a laptop.
#[test]
fn a_full_disk_is_waited_for() {
    let disk = match Disk::new(24) {
        Ok(disk) => disk,
        Err(why) => {
            // `files_that_may_not_grow` fails the same writes without a mount.
            eprintln!("skipped: a small file system cannot be mounted here: {why}");
            return;
        }
    };
    let users = users();
    let lake = Pipeline::new().postgres(&users).all_in(disk.path()).build();
    let place = disk.path().display().to_string();
    let mut running = lake.start(&[]);
    wait_for_rows(&lake, &users, ROWS);

    disk.fill();
    insert(&users, 1_000);
    users.execute("UPDATE t SET n = 1 WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0");
    says_full(&running, &place);
    // The connector is not held up, and the process waits for room.
    assert!(running.is_running(), "{}", running.log());
    let check = lake.call(&["check"]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(1), "{text}");
    assert!(text.contains("is full") && text.contains(&place), "{text}");
    // Killed there, and started where there is still no room.
    running.kill();
    let mut running = lake.start(&["--until-caught-up"]);
    says_full(&running, &place);
    assert!(running.is_running(), "{}", running.log());

    disk.free();
    let status = running.wait();
    assert_eq!(status.code(), Some(0), "{}", running.log());
    let rows = users.value("SELECT count(*) FROM t").parse().unwrap();
    wait_for_rows(&lake, &users, rows);
    let running = lake.start(&[]);
    lake.verify();
    running.stop();
}

/// The same where single files meet a limit, as under a quota: first the data file, then the catalog.
#[test]
fn files_that_may_not_grow_are_waited_for() {
    let users = users();
    let lake = Pipeline::new().postgres(&users).local_warehouse().build();
    lake.catch_up();
    insert(&users, 1_000);
    users.execute("UPDATE t SET n = 1 WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0");
    let mut running = lake.start_limited(&[], 64);
    says_full(&running, &lake.dir().display().to_string());
    assert!(running.is_running(), "{}", running.log());
    running.kill();
    lake.catch_up();
    let running = lake.start(&[]);
    lake.verify();
    running.stop();
}
