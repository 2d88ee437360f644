//! A PostgreSQL service: a fresh database, changed through one connection, dropped with its slots at the end.

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::{Servers, block_on, fresh};

/// A database of its own on the shared server.
pub struct Postgres {
    /// The source's name in configuration, topics and SQL: also the database's.
    pub name: String,
    /// With user and password.
    pub url: String,
    admin_url: String,
    client: Client,
}

fn connect(url: &str) -> Client {
    block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("PostgreSQL answers");
        tokio::spawn(connection);
        client
    })
}

/// The same server, another database.
fn database_url(url: &str, database: &str) -> String {
    let mut url = url::Url::parse(url).expect("LAKEWARD_TEST_POSTGRES is a URL");
    url.set_path(database);
    url.to_string()
}

impl Postgres {
    /// A fresh database in which `setup` has run.
    pub fn new(setup: &str) -> Self {
        Self::on(&Servers::get(), setup)
    }

    /// On a server of one's own.
    pub fn on(servers: &Servers, setup: &str) -> Self {
        let (name, admin_url) = (&fresh("u"), servers.postgres.clone());
        block_on(connect(&admin_url).batch_execute(&format!("CREATE DATABASE {name}"))).unwrap();
        let url = database_url(&admin_url, name);
        let service = Self { name: name.to_owned(), client: connect(&url), url, admin_url };
        service.execute(setup);
        service
    }

    /// Runs one or more statements.
    pub fn execute(&self, sql: &str) {
        block_on(self.client.batch_execute(sql)).unwrap_or_else(|e| panic!("{e:?}: {}", super::clip(sql)));
    }

    /// Rows as PostgreSQL's own text; None: NULL.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages =
            block_on(self.client.simple_query(sql)).unwrap_or_else(|e| panic!("{e:?}: {}", super::clip(sql)));
        messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
                _ => None,
            })
            .collect()
    }

    /// The first value of the first row.
    pub fn value(&self, sql: &str) -> String {
        self.rows(sql)
            .first()
            .and_then(|row| row.first().cloned().flatten())
            .unwrap_or_else(|| panic!("no value: {sql}"))
    }

    /// Another connection to the same database, for a writer's thread; drops nothing.
    pub fn session(&self) -> Session {
        Session(connect(&self.url))
    }
}

/// A connection of its own.
pub struct Session(Client);

impl Session {
    /// The first value of the first row, as text.
    pub fn value(&self, sql: &str) -> String {
        let messages = block_on(self.0.simple_query(sql)).unwrap_or_else(|e| panic!("{e:?}: {sql}"));
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        row.unwrap_or_else(|| panic!("no row: {sql}"))
    }

    /// Runs one or more statements, as one transaction where there are several.
    pub fn execute(&self, sql: &str) {
        block_on(self.0.batch_execute(sql)).unwrap_or_else(|e| panic!("{e:?}: {}", super::clip(sql)));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let name = &self.name;
        let admin = connect(&self.admin_url);
        // A slot stays busy for a moment after its reader was killed; and a test that fails must not hide behind this.
        let slots = format!("FROM pg_replication_slots WHERE database = '{name}'");
        let cleaned = block_on(async {
            for _ in 0..100 {
                admin.batch_execute(&format!("SELECT pg_terminate_backend(active_pid) {slots} AND active")).await?;
                admin
                    .batch_execute(&format!("SELECT pg_drop_replication_slot(slot_name) {slots} AND NOT active"))
                    .await?;
                let left = admin.query(&format!("SELECT 1 {slots}"), &[]).await?;
                if left.is_empty() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await
        });
        if let Err(error) = cleaned {
            eprintln!("database {name} stays behind: {error}");
        }
    }
}
