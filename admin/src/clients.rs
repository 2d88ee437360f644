//! Connections that an operator's commands open: `url -> client`. Those to PostgreSQL are the connector's own.

use std::time::Duration;

use lakeward_runtime::config::Secret;
use lakeward_runtime::{Error, Result};
use mongodb::Client;
use mongodb::options::ClientOptions;

/// How long a server may take to be found: longer than an election.
const SERVER_SELECTION: Duration = Duration::from_secs(15);

/// A MongoDB client; nothing is sent yet.
pub async fn mongodb(url: &Secret, purpose: &str) -> Result<Client> {
    let wrong = |e| Error::configuration("url of the source is not understood").source(e);
    let mut options = ClientOptions::parse(url.expose()).await.map_err(wrong)?;
    options.app_name = Some(format!("lakeward {purpose}"));
    options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
    Client::with_options(options).map_err(wrong)
}
