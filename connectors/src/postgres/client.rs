//! Connections to the source server: `url -> Client` for SQL, `url -> PgReplicationConnection` for the stream.

use lakeward_runtime::config::Secret;
use lakeward_runtime::{Action, Error, Result};
use pg_walstream::{PgReplicationConnection, ReplicationError};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::SESSION_SETTINGS;
use super::catalog::{quote_identifier, quote_literal};

/// What a role or database may have set for its applications and that would break off or block a capture. We write nothing that
/// a standby must have, and while commits wait for one a snapshot's barrier must not wait with them.
const NO_LIMITS: [(&str, &str); 4] = [
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("synchronous_commit", "local"),
];

/// Opens a connection for SQL whose values read as interface.md says. `purpose` is its `application_name`.
pub async fn connect(url: &Secret, purpose: &str) -> Result<Client> {
    let mut config: Config = url
        .expose()
        .parse()
        .map_err(|e: tokio_postgres::Error| Error::configuration("url of the source is not understood").source(e))?;
    config.application_name(format!("lakeward {purpose}"));
    config.connect_timeout(std::time::Duration::from_secs(10));
    let (client, connection) = config
        .connect(NoTls)
        .await
        .map_err(|e| sql_error("connecting to the source", e).with("server", address(&config)))?;
    tokio::spawn(async move {
        // Whoever uses the client sees the failure as its own error; this is the driver's end.
        if let Err(error) = connection.await {
            tracing::debug!(error = %error, "connection to the source ended");
        }
    });
    let mut settings = String::new();
    for (name, value) in SESSION_SETTINGS.iter().chain(&NO_LIMITS) {
        settings.push_str(&format!("SET {name} = {};", quote_literal(value)));
    }
    client.batch_execute(&settings).await.map_err(|e| sql_error("setting up the connection", e))?;
    Ok(client)
}

/// Where a configuration points, for errors: `host:port`.
fn address(config: &Config) -> String {
    let hosts = config.get_hosts().iter().map(|host| match host {
        tokio_postgres::config::Host::Tcp(name) => name.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    });
    let ports = config.get_ports().iter().copied().chain(std::iter::repeat(5432));
    hosts.zip(ports).map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().join(", ")
}

/// Opens a replication connection to the same database, with the same settings.
pub fn connect_replication(url: &Secret) -> Result<PgReplicationConnection> {
    let mut parsed = url::Url::parse(url.expose())
        .map_err(|e| Error::configuration("url of the source is not understood").source(e))?;
    parsed.query_pairs_mut().append_pair("replication", "database").append_pair("application_name", "lakeward stream");
    let mut connection = PgReplicationConnection::connect(parsed.as_str())
        .map_err(|e| replication_error("opening the replication connection", e))?;
    for (name, value) in SESSION_SETTINGS.iter().chain(&NO_LIMITS) {
        connection
            .exec(&format!("SET {} = {}", quote_identifier(name), quote_literal(value)))
            .map_err(|e| replication_error("setting up the replication connection", e))?;
    }
    Ok(connection)
}

/// An SQL error by what to do about it.
pub fn sql_error(what: &str, error: tokio_postgres::Error) -> Error {
    let action = match error.code() {
        // No answer from the server: it is away.
        None => Action::Retry,
        Some(code) => match code.code().as_bytes() {
            // connection, resources, operator, lock and serialization failures
            [b'0', b'8', ..] | [b'5', b'3', ..] | [b'5', b'7', ..] | [b'4', b'0', ..] | [b'5', b'5', ..] => {
                Action::Retry
            }
            [b'2', b'8', ..] | [b'3', b'D', ..] => Action::Configuration,
            _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => Action::Configuration,
            _ => Action::Human,
        },
    };
    Error::new(action, what).source(error)
}

/// An error of the replication connection by what to do about it.
pub fn replication_error(what: &str, error: ReplicationError) -> Error {
    let action = match &error {
        ReplicationError::Authentication(_)
        | ReplicationError::Config(_)
        | ReplicationError::PermanentConnection(_) => Action::Configuration,
        ReplicationError::ReplicationSlot(_) => Action::Human,
        _ => Action::Retry,
    };
    Error::new(action, what).source(error)
}
