//! Connections to the source: `url -> Client`, what the server is, and its errors by what to do next.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lakeward_runtime::config::Secret;
use lakeward_runtime::{Action, Error, Result};
use mongodb::bson::{Bson, Document, Timestamp, doc};
use mongodb::error::ErrorKind;
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};

use super::resume_token::cluster_time;

/// How long a server may take to be found: longer than an election.
const SERVER_SELECTION: Duration = Duration::from_secs(15);

/// Connects, and makes sure that the server is a member of a replica set.
pub async fn connect(url: &Secret) -> Result<Client> {
    let mut options = ClientOptions::parse(url.expose())
        .await
        .map_err(|e| Error::configuration("url of the source is not understood").source(e))?;
    options.app_name = Some("lakeward".into());
    options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
    let client = Client::with_options(options).map_err(|e| error("connecting to the source", e))?;
    let hello =
        admin(&client).run_command(doc! { "hello": 1 }).await.map_err(|e| error("connecting to the source", e))?;
    if !hello.contains_key("setName") && hello.get_str("msg") != Ok("isdbgrid") {
        return Err(Error::configuration(
            "the MongoDB server is standalone and has no change streams: start mongod with --replSet rs0 and run rs.initiate() (one member is enough)",
        ));
    }
    Ok(client)
}

pub fn admin(client: &Client) -> Database {
    client.database("admin")
}

/// The newest cluster time that the primary knows: every write acknowledged before this call is at or before it.
pub async fn operation_time(client: &Client) -> Result<u64> {
    let reply =
        admin(client).run_command(doc! { "ping": 1 }).await.map_err(|e| error("asking for the cluster time", e))?;
    reply_time(&reply)
}

/// Writes a no-op into the oplog, so that the stream of an idle server moves; returns its cluster time. None: not allowed to.
pub async fn oplog_note(client: &Client) -> Result<Option<u64>> {
    let command = doc! { "appendOplogNote": 1, "data": { "lakeward": "tick" } };
    match admin(client).run_command(command).await {
        Ok(reply) => reply_time(&reply).map(Some),
        // Unauthorized, or a mongos without the command
        Err(e) if matches!(code(&e), Some(13 | 59)) => Ok(None),
        Err(e) => Err(error("writing a note into the oplog", e)),
    }
}

/// The server's version: major, minor, patch.
pub async fn version(client: &Client) -> Result<(u32, u32, u32)> {
    let reply =
        admin(client).run_command(doc! { "buildInfo": 1 }).await.map_err(|e| error("asking for the version", e))?;
    let part = |i| match reply.get_array("versionArray").ok().and_then(|v| v.get(i)) {
        Some(Bson::Int32(n)) => u32::try_from(*n).unwrap_or(0),
        _ => 0,
    };
    Ok((part(0), part(1), part(2)))
}

fn reply_time(reply: &Document) -> Result<u64> {
    match reply.get("operationTime") {
        Some(Bson::Timestamp(t)) => Ok(cluster_time(*t)),
        _ => Err(Error::configuration("the server's replies have no operationTime: is it a member of a replica set?")),
    }
}

/// The server's clock minus ours, microseconds, from the quickest of a few exchanges.
pub async fn clock_offset(client: &Client) -> Result<i64> {
    let mut best: Option<(Duration, i64)> = None;
    for _ in 0..3 {
        let (before, started) = (now(), Instant::now());
        let reply = admin(client)
            .run_command(doc! { "hello": 1 })
            .await
            .map_err(|e| error("asking for the server's clock", e))?;
        let took = started.elapsed();
        let Ok(local) = reply.get_datetime("localTime") else { continue };
        let middle = before + took.as_micros() as i64 / 2;
        // localTime is cut to milliseconds: half of one more on average
        let offset = local.timestamp_millis() * 1000 + 500 - middle;
        if best.is_none_or(|(quickest, _)| took < quickest) {
            best = Some((took, offset));
        }
    }
    best.map(|(_, offset)| offset).ok_or_else(|| Error::retry("the server does not tell its clock"))
}

/// Our clock, microseconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

pub fn bson_time(t: u64) -> Timestamp {
    super::resume_token::timestamp(t)
}

/// The server's error code, where it is the server that said no.
pub fn code(error: &mongodb::error::Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

/// Sorts a driver's error by what to do next.
pub fn error(doing: &str, error: mongodb::error::Error) -> Error {
    let (action, hint) = match (error.kind.as_ref(), code(&error)) {
        (ErrorKind::Authentication { .. }, _) | (_, Some(18)) => {
            (Action::Configuration, "user or password is wrong (authSource=admin in the url, perhaps?)")
        }
        (_, Some(13)) => (
            Action::Configuration,
            "the user lacks a privilege: role readAnyDatabase, or read on the database where include names one only",
        ),
        (ErrorKind::InvalidArgument { .. }, _) => (Action::Configuration, "url of the source is not understood"),
        // ChangeStreamHistoryLost, CappedPositionLost
        (_, Some(286 | 136)) => (
            Action::Resnapshot,
            "the oplog no longer holds the position: history is lost. Begin the source anew (docs/log.md, Beginning a source anew), with a larger oplog",
        ),
        // ChangeStreamFatalError
        (_, Some(280)) => (
            Action::Resnapshot,
            "the server cannot go on at the position, which is not one of its history: it was set back, or is another one. Begin the source anew (docs/log.md, Beginning a source anew)",
        ),
        // BSONObjectTooLarge
        (_, Some(10334)) => (
            Action::Human,
            "a change is larger than the 16 MB that the server can send: upgrade it to MongoDB 6.0.9, 7.0 or later, which send such a change in parts",
        ),
        // NotWritablePrimary, InterruptedAtShutdown, InterruptedDueToReplStateChange, NotPrimaryNoSecondaryOk,
        // NotPrimaryOrSecondary, PrimarySteppedDown, ShutdownInProgress
        (_, Some(10107 | 11600 | 11602 | 13435 | 13436 | 189 | 91)) => {
            (Action::Retry, "the replica set has no primary for the moment")
        }
        // CursorNotFound, CursorKilled
        (_, Some(43 | 237)) => (Action::Retry, "the server has closed the cursor"),
        (ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. }, _) => {
            (Action::Retry, "the connection to the server was lost")
        }
        (ErrorKind::ServerSelection { .. }, _) => {
            (Action::Retry, "server not reachable: does it run, are host, port and replica set name right?")
        }
        (_, Some(_)) => (Action::Retry, "the server refused"),
        _ => (Action::Retry, "the server went away"),
    };
    Error::new(action, format!("{doing}: {hint}")).source(error)
}
