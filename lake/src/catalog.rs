//! SQL catalogs: SQLite and PostgreSQL, in the tables of Iceberg's JDBC catalog (V1), which Spark, Trino and PyIceberg read.
//!
//! `Table's metadata location -> row of iceberg_tables -> every reader`. The row is the one thing that changes; a commit is one
//! `UPDATE` of it that names the location it expects.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use iceberg::{NamespaceIdent, TableIdent};
use lakeward_runtime::config::{CatalogConfig, CatalogKind};
use lakeward_runtime::{Action, Error, Result};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Row};

/// A statement takes milliseconds; beyond this the server is as good as away.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// Another process's write to the same SQLite file takes milliseconds too; below [`STATEMENT_TIMEOUT`], so that SQLite answers.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Commits of different tables run at once, each for one statement.
const CONNECTIONS: u32 = 8;

const CREATE: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL,
        table_namespace VARCHAR(255) NOT NULL,
        table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000),
        previous_metadata_location VARCHAR(1000),
        iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name))",
    "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL,
        namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255),
        property_value VARCHAR(1000),
        PRIMARY KEY (catalog_name, namespace, property_key))",
];
/// Views share the table; rows of a V0 catalog have no type and are tables.
const IS_TABLE: &str = "(iceberg_type = 'TABLE' OR iceberg_type IS NULL)";

/// A catalog's rows.
#[derive(Debug)]
pub struct Catalog {
    pool: Pool,
    /// Of the database, for errors: SQLite's file, PostgreSQL's `host:port`.
    place: String,
    name: String,
}

#[derive(Debug)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// How an insert or a swap of a row ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Done,
    /// The row is not what the statement expects; nothing was changed.
    Refused,
}

impl Catalog {
    /// Connects, and creates the catalog's tables (SQLite: also the file and its folder) if they are missing.
    pub async fn open(config: &CatalogConfig) -> Result<Self> {
        if config.kind == CatalogKind::Rest {
            return Err(Error::configuration("[catalog] kind: REST catalogs are not supported yet; use \"sql\""));
        }
        let url = config.url.expose();
        let (pool, place) = if url.starts_with("sqlite:") {
            let (pool, file) = sqlite(url).await?;
            (Pool::Sqlite(pool), file)
        } else if url.starts_with("postgresql://") || url.starts_with("postgres://") {
            let (pool, server) = postgres(url).await?;
            (Pool::Postgres(pool), server)
        } else {
            return Err(Error::configuration("[catalog] url: must begin with sqlite: or postgresql://"));
        };
        let catalog = Self { pool, place, name: config.name.clone() };
        catalog.create_tables().await?;
        Ok(catalog)
    }

    async fn create_tables(&self) -> Result<()> {
        for statement in CREATE {
            // Two processes that start at once can both find it missing, and PostgreSQL then fails one of them.
            if self.execute(statement, &[]).await.is_err() {
                self.execute(statement, &[]).await.map_err(|e| self.failed(e, "creating the catalog's tables"))?;
            }
        }
        // A catalog that an older JDBC client made (V0) lacks the type.
        if self.fetch("SELECT iceberg_type FROM iceberg_tables WHERE 1 = 0", &[]).await.is_err() {
            self.execute("ALTER TABLE iceberg_tables ADD COLUMN iceberg_type VARCHAR(5)", &[])
                .await
                .map_err(|e| self.failed(e, "adding iceberg_type to the catalog"))?;
        }
        Ok(())
    }

    pub async fn namespaces(&self) -> Result<Vec<String>> {
        let sql = "SELECT table_namespace FROM iceberg_tables WHERE catalog_name = $1
             UNION SELECT namespace FROM iceberg_namespace_properties WHERE catalog_name = $1 ORDER BY 1";
        let rows = self.fetch(sql, &[&self.name]).await.map_err(|e| self.failed(e, "listing namespaces"))?;
        Ok(rows.into_iter().filter_map(|mut row| row.pop().flatten()).collect())
    }

    /// Every table with its metadata location.
    pub async fn locations(&self) -> Result<HashMap<TableIdent, String>> {
        let sql = format!(
            "SELECT table_namespace, table_name, metadata_location FROM iceberg_tables WHERE catalog_name = $1 AND {IS_TABLE}"
        );
        let rows = self.fetch(&sql, &[&self.name]).await.map_err(|e| self.failed(e, "listing tables"))?;
        let mut tables = HashMap::with_capacity(rows.len());
        for row in rows {
            let Ok([Some(namespace), Some(name), Some(location)]) = <[Option<String>; 3]>::try_from(row) else {
                continue; // A row without a location is a table that never was.
            };
            tables.insert(TableIdent::new(NamespaceIdent::new(namespace), name), location);
        }
        Ok(tables)
    }

    /// Where a table's newest metadata is.
    pub(crate) async fn location(&self, id: &TableIdent) -> Result<Option<String>> {
        let sql = format!(
            "SELECT metadata_location FROM iceberg_tables
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3 AND {IS_TABLE}"
        );
        let args = [self.name.as_str(), &namespace(id), id.name()];
        let rows = self.fetch(&sql, &args).await.map_err(|e| self.failed(e, "looking up a table").with("table", id))?;
        Ok(rows.into_iter().next().and_then(|mut row| row.pop().flatten()))
    }

    /// Notes a namespace, as other clients do before they make a table in it.
    pub(crate) async fn create_namespace(&self, namespace: &str) -> Result<()> {
        let sql = "INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value)
             VALUES ($1, $2, 'exists', 'true') ON CONFLICT DO NOTHING";
        self.execute(sql, &[&self.name, namespace]).await.map_err(|e| self.failed(e, "creating a namespace"))?;
        Ok(())
    }

    /// Adds a table's row, if there is none. An error leaves the outcome unknown.
    pub(crate) async fn insert(&self, id: &TableIdent, location: &str) -> Result<Written> {
        let sql =
            "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location, iceberg_type)
             VALUES ($1, $2, $3, $4, 'TABLE') ON CONFLICT DO NOTHING";
        let args = [self.name.as_str(), &namespace(id), id.name(), location];
        let rows = self.execute(sql, &args).await.map_err(|e| self.failed(e, "creating a table").with("table", id))?;
        Ok(if rows == 1 { Written::Done } else { Written::Refused })
    }

    /// Compare-and-swap of a table's row. An error leaves the outcome unknown.
    pub(crate) async fn swap(&self, id: &TableIdent, from: &str, to: &str) -> Result<Written> {
        let sql = "UPDATE iceberg_tables SET metadata_location = $5, previous_metadata_location = $4
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3 AND metadata_location = $4";
        let args = [self.name.as_str(), &namespace(id), id.name(), from, to];
        let rows = self
            .execute(sql, &args)
            .await
            .map_err(|e| self.failed(e, "committing to the catalog").with("table", id))?;
        Ok(if rows == 1 { Written::Done } else { Written::Refused })
    }

    /// Whether rows can be written: adds one and takes it back.
    pub(crate) async fn probe(&self) -> Result<()> {
        let name = format!("probe_{}", uuid::Uuid::new_v4().simple());
        let problem = |e| self.failed(e, "writing to the catalog");
        self.execute(
            "INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value) VALUES ($1, $2, 'probe', 'true')",
            &[&self.name, &name],
        )
        .await
        .map_err(problem)?;
        self.execute(
            "DELETE FROM iceberg_namespace_properties WHERE catalog_name = $1 AND namespace = $2",
            &[&self.name, &name],
        )
        .await
        .map_err(problem)?;
        Ok(())
    }

    fn failed(&self, error: sqlx::Error, doing: &'static str) -> Error {
        failed(error, doing).with("catalog", &self.place)
    }

    async fn execute(&self, sql: &str, args: &[&str]) -> sqlx::Result<u64> {
        let run = async {
            match &self.pool {
                Pool::Sqlite(pool) => {
                    let query = args.iter().fold(sqlx::query(sql), |q, a| q.bind(*a));
                    Ok(query.execute(pool).await?.rows_affected())
                }
                Pool::Postgres(pool) => {
                    let query = args.iter().fold(sqlx::query(sql), |q, a| q.bind(*a));
                    Ok(query.execute(pool).await?.rows_affected())
                }
            }
        };
        tokio::time::timeout(STATEMENT_TIMEOUT, run).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    /// Rows of text columns.
    async fn fetch(&self, sql: &str, args: &[&str]) -> sqlx::Result<Vec<Vec<Option<String>>>> {
        let run = async {
            match &self.pool {
                Pool::Sqlite(pool) => {
                    let query = args.iter().fold(sqlx::query(sql), |q, a| q.bind(*a));
                    let rows = query.fetch_all(pool).await?;
                    rows.iter().map(|row| (0..row.len()).map(|i| row.try_get(i)).collect()).collect()
                }
                Pool::Postgres(pool) => {
                    let query = args.iter().fold(sqlx::query(sql), |q, a| q.bind(*a));
                    let rows = query.fetch_all(pool).await?;
                    rows.iter().map(|row| (0..row.len()).map(|i| row.try_get(i)).collect()).collect()
                }
            }
        };
        tokio::time::timeout(STATEMENT_TIMEOUT, run).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }
}

/// Iceberg writes levels of a namespace with dots; ours have one level.
fn namespace(id: &TableIdent) -> String {
    id.namespace().join(".")
}

/// The pool and the file.
async fn sqlite(url: &str) -> Result<(SqlitePool, String)> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|e| Error::configuration("[catalog] url: not an SQLite URL").source(e))?
        .create_if_missing(true)
        // Readers go on while a commit is written; a commit that was acknowledged survives a crash of the machine.
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT);
    let file = options.get_filename().to_owned();
    if let Some(folder) = file.parent().filter(|f| !f.as_os_str().is_empty()) {
        tokio::fs::create_dir_all(folder)
            .await
            .map_err(|e| Error::file(Action::Configuration, "the catalog's folder cannot be created", folder, e))?;
    }
    let place = file.display().to_string();
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(CONNECT_TIMEOUT)
        .connect_with(options)
        .await
        .map_err(|e| failed(e, "opening the catalog").with("catalog", &place))?;
    Ok((pool, place))
}

/// The pool and the server's `host:port`.
async fn postgres(url: &str) -> Result<(PgPool, String)> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|e| Error::configuration("[catalog] url: not a PostgreSQL URL").source(e))?
        .application_name("lakeward catalog");
    let server = format!("{}:{}", options.get_host(), options.get_port());
    // The pool would try again in silence until its time-out, and then not say why.
    let probe = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await;
    let connection = probe
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
        .map_err(|e| failed(e, "connecting to the catalog").with("catalog", &server))?;
    let _ = connection.close().await;
    let pool = PgPoolOptions::new();
    Ok((pool.max_connections(CONNECTIONS).acquire_timeout(CONNECT_TIMEOUT).connect_lazy_with(options), server))
}

/// Codes of databases that have no room left to write.
const DISK_FULL_POSTGRES: &str = "53100";
const SQLITE_FULL: &str = "13";
/// SQLite's answer where the file may not grow, and where the shared memory beside it cannot.
const SQLITE_IOERR_WRITE: &str = "778";
const SQLITE_IOERR_SHMSIZE: &str = "4874";

/// A database's error: wrong names, passwords and rights are the configuration's, anything else may pass.
fn failed(error: sqlx::Error, doing: &'static str) -> Error {
    let code = error.as_database_error().and_then(|e| e.code()).map(|c| c.into_owned()).unwrap_or_default();
    let message = match (&error, code.as_str()) {
        (_, "28P01" | "28000") => "the catalog's database refused the user or password; check [catalog] url",
        (_, "3D000") => "the catalog's database does not exist; create it, or correct [catalog] url",
        (_, "42501") => "the catalog's user lacks a right on its tables or schema",
        (_, DISK_FULL_POSTGRES | SQLITE_FULL | SQLITE_IOERR_WRITE | SQLITE_IOERR_SHMSIZE) => {
            "the disk of the catalog's database is full, or its quota is; free space there, and work goes on by itself"
        }
        (sqlx::Error::Configuration(_), _) => "[catalog] url cannot be used",
        (sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed, _) => {
            "the catalog's database cannot be reached"
        }
        _ => "the catalog's database failed",
    };
    let action = match (&error, code.as_str()) {
        (_, "28P01" | "28000" | "3D000" | "42501") | (sqlx::Error::Configuration(_), _) => Action::Configuration,
        _ => Action::Retry,
    };
    Error::new(action, message).with("while", doing).source(error)
}
