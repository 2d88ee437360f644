//! The file: `state_dir/log.db` -> connections, the tables in it, and the news that something was committed.
//!
//! Readers never wait for the writer nor the writer for them (WAL); writers, of this process and others, wait for each other. A
//! commit is on disk when it returns (`synchronous=FULL`).

use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use lakeward_runtime::config::{Codec, EmbeddedConfig};
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::sync::{Mutex, MutexGuard, OnceCell, watch};

use super::error::{Doing, classify};
use crate::{Error, Result};

/// Version of the tables below, in the file's `user_version`.
const VERSION: i64 = 1;
/// `application_id`: "LKWL".
const APPLICATION: i64 = 0x4c4b_574c;
/// Large pages suit blobs; an idle checkpoint writes four of them.
pub(super) const PAGE_BYTES: u32 = 16 << 10;
/// How long a process waits for another's transaction. The longest one is a large append.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Switching a new file to WAL does not wait by itself when several processes do it at once.
const OPEN_TRIES: u32 = 50;
const OPEN_WAIT: Duration = Duration::from_millis(50);
/// What the WAL file shrinks back to after a large transaction.
const WAL_BYTES: &str = "67108864";
/// How often a waiting reader looks for what another process has committed. Within a process it is told.
const POLL: Duration = Duration::from_millis(50);

/// Offsets of a topic-partition are dense: `first_offset` is what is still there, `end_offset` is after the last record. A
/// block holds its records from `first_offset` to `end_offset`, and never part of two appends.
const TABLES: &str = "
    CREATE TABLE sources (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        epoch INTEGER NOT NULL,
        dropped_to INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE topics (
        id INTEGER PRIMARY KEY,
        source INTEGER NOT NULL REFERENCES sources (id),
        name TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE partitions (
        topic INTEGER NOT NULL REFERENCES topics (id),
        number INTEGER NOT NULL,
        first_offset INTEGER NOT NULL DEFAULT 0,
        end_offset INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (topic, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE blocks (
        id INTEGER PRIMARY KEY,
        topic INTEGER NOT NULL,
        partition INTEGER NOT NULL,
        first_offset INTEGER NOT NULL,
        end_offset INTEGER NOT NULL,
        records BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX blocks_by_end ON blocks (topic, partition, end_offset, first_offset);
    CREATE TABLE checkpoints (
        source INTEGER NOT NULL REFERENCES sources (id),
        id INTEGER NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (source, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE schemas (
        source INTEGER NOT NULL REFERENCES sources (id),
        table_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (source, table_id, version)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE signals (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        source INTEGER NOT NULL REFERENCES sources (id),
        at INTEGER NOT NULL,
        value TEXT NOT NULL
    ) STRICT;
";

/// One log file as one process sees it.
#[derive(Debug)]
pub(super) struct Store {
    pub path: PathBuf,
    /// Of topics that are new.
    pub partitions: i32,
    codec: Codec,
    connections: OnceCell<Connections>,
    /// Counts what this process has committed.
    commits: watch::Sender<u64>,
}

#[derive(Debug)]
struct Connections {
    /// The only one that writes; whoever holds it is the process's writer.
    writing: Mutex<SqliteConnection>,
    /// For what is small: checkpoints, schemas, signals, bounds. Readers of records have one each.
    reading: Mutex<SqliteConnection>,
}

impl Store {
    pub fn new(config: &EmbeddedConfig) -> Self {
        Self {
            path: config.path.clone(),
            partitions: config.partitions,
            codec: config.codec,
            connections: OnceCell::new(),
            commits: watch::Sender::new(0),
        }
    }

    /// The connection that writes. Transactions on it begin with [`BEGIN`].
    pub async fn writing(&self) -> Result<MutexGuard<'_, SqliteConnection>> {
        Ok(self.connections().await?.writing.lock().await)
    }

    pub async fn reading(&self) -> Result<MutexGuard<'_, SqliteConnection>> {
        Ok(self.connections().await?.reading.lock().await)
    }

    async fn connections(&self) -> Result<&Connections> {
        self.connections.get_or_try_init(|| self.open()).await
    }

    /// Boxed here, where its lifetime has a name: inside of the callers' futures the compiler cannot prove that it is `Send`.
    fn open(&self) -> BoxFuture<'_, Result<Connections>> {
        Box::pin(async move {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder).map_err(|e| {
                    Error::configuration("state_dir cannot be made").with("path", folder.display()).source(e)
                })?;
            }
            let mut writing = self.connect().await?;
            self.prepare(&mut writing).await?;
            Ok(Connections { writing: Mutex::new(writing), reading: Mutex::new(self.connect().await?) })
        })
    }

    /// A connection of one's own, for reading.
    pub async fn reader(&self) -> Result<SqliteConnection> {
        self.connections().await?;
        self.connect().await
    }

    async fn connect(&self) -> Result<SqliteConnection> {
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .page_size(PAGE_BYTES)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("journal_size_limit", WAL_BYTES)
            // What was read and not yet asked for: a block is a megabyte.
            .row_buffer_size(2)
            .disable_statement_logging();
        let mut tries = 0;
        loop {
            match options.connect().await.map_err(|e| classify(e, &self.path, "opening the embedded log")) {
                Err(error) if error.is_retryable() && tries < OPEN_TRIES => {
                    tries += 1;
                    tokio::time::sleep(OPEN_WAIT).await;
                }
                settled => return settled,
            }
        }
    }

    /// Makes the tables of a new file; refuses a file of another version.
    async fn prepare(&self, connection: &mut SqliteConnection) -> Result<()> {
        let doing = "opening the embedded log";
        let version = "PRAGMA user_version";
        let mut found: i64 = sqlx::query_scalar(version).fetch_one(&mut *connection).await.doing(&self.path, doing)?;
        if found == 0 {
            let mut transaction = connection.begin_with(BEGIN).await.doing(&self.path, doing)?;
            // Another process may have been first.
            found = sqlx::query_scalar(version).fetch_one(&mut *transaction).await.doing(&self.path, doing)?;
            if found == 0 {
                let statements =
                    format!("{TABLES} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}");
                transaction.execute(statements.as_str()).await.doing(&self.path, doing)?;
                transaction.commit().await.doing(&self.path, doing)?;
                found = VERSION;
            }
        }
        if found != VERSION {
            return Err(Error::human("the embedded log was written by another version of Lakeward")
                .with("file", self.path.display())
                .with("version", found)
                .with("known", VERSION));
        }
        Ok(())
    }

    /// Whether blocks are compressed: not where the codec's records are already.
    pub fn compress(&self) -> bool {
        self.codec != Codec::Arrow
    }

    /// Tells this process's readers that something was committed.
    pub fn committed(&self) {
        self.commits.send_modify(|commits| *commits = commits.wrapping_add(1));
    }

    /// What a reader that waits looks at; see [`News::wait`].
    pub fn news(&self) -> News {
        News(self.commits.subscribe())
    }
}

/// Begins a transaction that will write. Taken at once: one that began by reading could not wait for another's commit.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

/// A reader's ear for commits.
pub(super) struct News(watch::Receiver<u64>);

impl News {
    /// What is committed from here on ends the next [`wait`](Self::wait). Call it before looking for something new.
    pub fn mark(&mut self) {
        self.0.borrow_and_update();
    }

    /// Returns at a commit of this process since the mark, or when it is time to look for one of another process.
    pub async fn wait(&mut self) {
        // The sender lives as long as its readers, which hold the store.
        let _ = tokio::time::timeout(POLL, self.0.changed()).await;
    }
}
