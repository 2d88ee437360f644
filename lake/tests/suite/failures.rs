//! Answers that get lost, and what a user reads when something is wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lakeward_lake::{Commit, Lake};
use lakeward_runtime::Action;
use lakeward_runtime::config::{Secret, WarehouseConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::*;

/// Passes a PostgreSQL connection on. When armed, it breaks the connection at the next swap: the server gets the statement and
/// carries it out, its answer is lost. Broken mode: nothing connects.
struct LossyProxy {
    port: u16,
    armed: Arc<AtomicBool>,
}

impl LossyProxy {
    async fn start() -> Self {
        let url = url::Url::parse(&postgres_url("postgres")).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let armed = Arc::new(AtomicBool::new(false));
        let arm = armed.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(pass(client, server, arm.clone()));
            }
        });
        Self { port, armed }
    }
}

async fn pass(client: TcpStream, server: TcpStream, armed: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let losing = Arc::new(AtomicBool::new(false));
    let lose = losing.clone();
    let up = async move {
        let mut buffer = vec![0; 65_536];
        let mut swap_known = false;
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            // The statement is parsed first, and executed in a later message by its name.
            let text = &buffer[..n];
            swap_known |= text.windows(21).any(|w| w == b"UPDATE iceberg_tables");
            let executes = text.windows(9).any(|w| w == b"E\0\0\0\x09\0\0\0\0") || text.contains(&b'B');
            if swap_known
                && executes
                && text.windows(14).any(|w| w == b".metadata.json")
                && armed.swap(false, Ordering::SeqCst)
            {
                lose.store(true, Ordering::SeqCst);
            }
            if to_server.write_all(text).await.is_err() {
                return;
            }
        }
    };
    let down = async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
            if losing.load(Ordering::SeqCst) {
                return; // Both sides are dropped: the answer never comes.
            }
            if to_client.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { _ = up => {}, _ = down => {} }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_settled() {
    let fresh = Fresh::servers().await;
    let proxy = LossyProxy::start().await;
    let direct = url::Url::parse(fresh.catalog.url.expose()).unwrap();
    let mut through = direct.clone();
    through.set_port(Some(proxy.port)).unwrap();
    through.set_query(Some("sslmode=disable"));
    let lake = Lake::open(&catalog(through.to_string()), &fresh.warehouse).await.unwrap();
    let id = ident("users", "people");
    let mut table = create(&lake, &id, &people()).await;

    // The swap landed, its answer was lost.
    for i in 0..3 {
        let files = write_people(&lake, &table, &[(i, "x")]).await;
        proxy.armed.store(true, Ordering::SeqCst);
        let Commit::Done(next) = lake.commit(&table, append_of(files)).await.unwrap() else {
            panic!("a commit that landed was called a conflict")
        };
        assert!(!proxy.armed.load(Ordering::SeqCst), "the answer was not lost");
        table = next;
    }
    let seen = fresh.lake.load(&id).await.unwrap().unwrap();
    assert_eq!(seen.metadata(), table.metadata());
    assert_eq!(people_of(&fresh.lake, &seen).await, rows(&[(0, "x"), (1, "x"), (2, "x")]));

    // A lost answer that was a refusal is a conflict all the same.
    let newest = append(&fresh.lake, &seen, &[(9, "theirs")]).await;
    let files = write_people(&lake, &table, &[(4, "x")]).await;
    proxy.armed.store(true, Ordering::SeqCst);
    let Commit::Conflict(found) = lake.commit(&table, append_of(files)).await.unwrap() else {
        panic!("it cannot land")
    };
    assert_eq!(found.metadata(), newest.metadata());
    assert!(!proxy.armed.load(Ordering::SeqCst), "the answer was not lost");
}

#[tokio::test]
async fn a_dropped_or_replaced_table_stops_its_writer() {
    let fresh = Fresh::local().await;
    let lake = &fresh.lake;
    let id = ident("users", "people");
    let table = create(lake, &id, &people()).await;
    let other = create(lake, &ident("users", "other"), &people()).await;
    let pool = sqlx::SqlitePool::connect(fresh.catalog.url.expose()).await.unwrap();
    sqlx::query("UPDATE iceberg_tables SET metadata_location = $1 WHERE table_name = 'people'")
        .bind(other.metadata_location())
        .execute(&pool)
        .await
        .unwrap();
    let files = write_people(lake, &table, &[(1, "x")]).await;
    let error = lake.commit(&table, append_of(files.clone())).await.unwrap_err();
    assert_eq!(error.action(), Action::Human);
    assert!(error.to_string().contains("changed by somebody else"), "{error}");
    sqlx::query("DELETE FROM iceberg_tables WHERE table_name = 'people'").execute(&pool).await.unwrap();
    let error = lake.commit(&table, append_of(files)).await.unwrap_err();
    assert!(error.action() == Action::Human && error.to_string().contains("dropped"), "{error}");
    // A row that names a file which is not there.
    sqlx::query("UPDATE iceberg_tables SET metadata_location = metadata_location || 'x'").execute(&pool).await.unwrap();
    let error = lake.load(&ident("users", "other")).await.unwrap_err();
    assert!(error.action() == Action::Human && error.to_string().contains("missing"), "{error}");
}

#[tokio::test]
async fn only_live_files_can_be_removed() {
    let fresh = Fresh::local().await;
    let lake = &fresh.lake;
    let table = create(lake, &ident("users", "people"), &people()).await;
    let files = write_people(lake, &table, &[(1, "x")]).await;
    let mut change = append_of(vec![]);
    change.snapshot.as_mut().unwrap().removed = files;
    let before = lake.storage().list(&format!("{}/metadata", table.location())).await.unwrap().len();
    assert_eq!(lake.commit(&table, change).await.unwrap_err().action(), Action::Bug);
    let after = lake.storage().list(&format!("{}/metadata", table.location())).await.unwrap().len();
    assert_eq!(before, after, "a failed attempt leaves nothing");
}

/// What `check` says for a lake with these settings; empty if it cannot even be opened, with that error instead.
async fn told(catalog: lakeward_runtime::config::CatalogConfig, warehouse: WarehouseConfig) -> String {
    match Lake::open(&catalog, &warehouse).await {
        Ok(lake) => lake.check().await.join("\n"),
        Err(error) => {
            assert!(!error.to_string().contains("secret-password"));
            error.to_string()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said() {
    let fresh = Fresh::servers().await;
    assert_eq!(fresh.lake.check().await, Vec::<String>::new());
    let leftovers = fresh.lake.storage().list(fresh.lake.storage().warehouse_location()).await.unwrap();
    assert_eq!(leftovers, Vec::<String>::new(), "the check cleans up");
    let good = |change: &dyn Fn(&mut WarehouseConfig)| {
        let mut warehouse = fresh.warehouse.clone();
        change(&mut warehouse);
        told(fresh.catalog.clone(), warehouse)
    };
    let text = good(&|w| w.url = "s3://no-such-bucket-here/x".into()).await;
    assert!(text.contains("bucket does not exist"), "{text}");
    let text = good(&|w| w.secret_access_key = Some(Secret::new("secret-password"))).await;
    assert!(text.contains("refused access") && text.contains("secret_access_key"), "{text}");
    let text = good(&|w| w.endpoint = Some("http://127.0.0.1:9".into())).await;
    assert!(text.contains("is it reachable"), "{text}");
    let text = good(&|w| w.url = "ftp://x".into()).await;
    assert!(text.contains("[warehouse] url"), "{text}");

    let bad = |url: String| told(catalog(url), fresh.warehouse.clone());
    let text = bad(postgres_url("no_such_database_here")).await;
    assert!(text.contains("database does not exist"), "{text}");
    let text = bad("postgresql://postgres:secret-password@127.0.0.1:9/postgres".into()).await;
    assert!(text.contains("cannot be reached") && text.contains("127.0.0.1:9"), "{text}");
    let text = bad("mysql://x".into()).await;
    assert!(text.contains("[catalog] url"), "{text}");
    let mut refused = url::Url::parse(&postgres_url("postgres")).unwrap();
    refused.set_username("nobody_here").unwrap();
    refused.set_password(Some("secret-password")).unwrap();
    let text = bad(refused.to_string()).await;
    assert!(text.contains("user or password"), "{text}");
}
