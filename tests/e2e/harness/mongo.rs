//! A MongoDB service: a fresh database, dropped at the end.

use mongodb::bson::{Document, doc};
use mongodb::{Client, Collection, Database};

use super::{Servers, block_on, fresh};

/// A database of its own on the shared replica set.
pub struct Mongo {
    /// The source's name in configuration, topics and SQL: also the database's.
    pub name: String,
    /// With the database as its path, as configuration wants it.
    pub url: String,
    database: Database,
}

impl Mongo {
    pub fn new() -> Self {
        Self::on(&Servers::get())
    }

    /// On a server of one's own.
    pub fn on(servers: &Servers) -> Self {
        let name = fresh("m");
        let mut url = url::Url::parse(&servers.mongodb).expect("LAKEWARD_TEST_MONGODB is a URL");
        url.set_path(&name);
        let client = block_on(Client::with_uri_str(url.as_str())).expect("MongoDB answers");
        Self { database: client.database(&name), url: url.to_string(), name }
    }

    pub fn collection(&self, name: &str) -> Documents {
        Documents(self.database.collection(name))
    }

    /// A collection whose events carry the whole document after each update.
    pub fn collection_with_post_images(&self, name: &str) -> Documents {
        let images = doc! { "create": name, "changeStreamPreAndPostImages": { "enabled": true } };
        block_on(self.database.run_command(images)).unwrap();
        self.collection(name)
    }
}

impl Drop for Mongo {
    fn drop(&mut self) {
        if let Err(error) = block_on(self.database.drop()) {
            eprintln!("database {} stays behind: {error}", self.name);
        }
    }
}

/// A collection, for any thread.
#[derive(Clone)]
pub struct Documents(Collection<Document>);

impl Documents {
    pub fn insert(&self, document: Document) {
        block_on(self.0.insert_one(document)).unwrap();
    }
    pub fn insert_many(&self, documents: Vec<Document>) {
        block_on(self.0.insert_many(documents)).unwrap();
    }
    pub fn update(&self, filter: Document, update: Document) {
        block_on(self.0.update_one(filter, update)).unwrap();
    }
    /// Inserts where nothing matches.
    pub fn replace(&self, filter: Document, document: Document) {
        block_on(self.0.replace_one(filter, document).upsert(true)).unwrap();
    }
    pub fn delete(&self, filter: Document) {
        block_on(self.0.delete_one(filter)).unwrap();
    }
}
