//! A mongod of a test's own, whose settings the test may change and which refuses what it is told to refuse.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::Client;

use super::PATIENCE;

/// What connectors call themselves; other connections are left alone.
const CONNECTOR: &str = "lakeward";

pub struct TestMongod {
    child: Child,
    _data: tempfile::TempDir,
    port: u16,
    pub client: Client,
    pub url: String,
}

/// `mongod` as `deploy/local/stack.sh` installs it, or else the one on the path.
fn mongod() -> Command {
    let cache = std::env::var("XDG_CACHE_HOME").map(PathBuf::from).or_else(|_| {
        let home = std::env::var("HOME").map(PathBuf::from);
        home.map(|home| home.join(".cache"))
    });
    let installed = cache.ok().and_then(|cache| {
        let homes = std::fs::read_dir(cache.join("lakeward")).ok()?;
        let mut homes: Vec<PathBuf> = homes.filter_map(|home| Some(home.ok()?.path())).collect();
        homes.retain(|home| home.join("mongod").exists());
        homes.sort();
        homes.pop()
    });
    match installed {
        Some(home) => {
            let mut command = Command::new(home.join("mongod"));
            command.env("LD_LIBRARY_PATH", home.join("lib"));
            command
        }
        None => Command::new("mongod"),
    }
}

impl TestMongod {
    /// A replica set of one, with these arguments besides.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments).await
    }

    /// One that wants to know who asks. `client` is allowed everything; `url` says nobody.
    pub async fn start_with_users() -> Self {
        let data = tempfile::tempdir().unwrap();
        let key = data.path().join("key");
        std::fs::write(&key, "a key that members of the set share").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key = key.to_str().unwrap().to_owned();
        let mut server = Self::start_in(data, &["--keyFile", &key]).await;
        // As long as there is no user, one may be made from this machine.
        server.command(doc! { "createUser": "root", "pwd": "root", "roles": ["root"] }).await;
        let port = server.port;
        let url = format!("mongodb://root:root@127.0.0.1:{port}/?directConnection=true");
        server.client = Client::with_uri_str(&url).await.unwrap();
        server
    }

    /// The URL of a new user with these roles.
    pub async fn user(&self, name: &str, roles: Vec<Document>) -> String {
        self.command(doc! { "createUser": name, "pwd": "secret", "roles": roles }).await;
        self.url.replacen("mongodb://", &format!("mongodb://{name}:secret@"), 1) + "&authSource=admin"
    }

    async fn start_in(data: tempfile::TempDir, arguments: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = mongod()
            .args(["--bind_ip", "127.0.0.1", "--replSet", "rs0", "--nounixsocket", "--quiet", "--dbpath"])
            .arg(data.path())
            .args(["--port", &port.to_string(), "--wiredTigerCacheSizeGB", "0.25"])
            .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
            // failCommand exists only so
            .args(["--setParameter", "enableTestCommands=1"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let url = format!("mongodb://127.0.0.1:{port}/?replicaSet=rs0");
        let direct = format!("mongodb://127.0.0.1:{port}/?directConnection=true");
        let client = Client::with_uri_str(&direct).await.unwrap();
        let server = Self { child, _data: data, port, client, url };
        let set = doc! { "_id": "rs0", "members": [{ "_id": 0, "host": format!("127.0.0.1:{port}") }] };
        server.command(doc! { "replSetInitiate": set }).await;
        let primary = async {
            while server.command(doc! { "hello": 1 }).await.get_bool("isWritablePrimary") != Ok(true) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, primary).await.expect("the server becomes primary");
        server
    }

    pub async fn command(&self, command: Document) -> Document {
        self.client.database("admin").run_command(command).await.unwrap()
    }

    pub async fn set(&self, parameter: &str, value: i32) {
        self.command(doc! { "setParameter": 1, parameter: value }).await;
    }

    /// From now on the connector's commands fail, `times` times (None: always), as `how` says: `failCommands`, and `errorCode`,
    /// `closeConnection` or `blockConnection`.
    pub async fn fail(&self, times: Option<i32>, how: Document) {
        let mode = times.map_or_else(|| Bson::from("alwaysOn"), |times| doc! { "times": times }.into());
        let mut data = doc! { "appName": CONNECTOR };
        data.extend(how);
        self.command(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data }).await;
    }

    /// Ends it; returns how many commands have failed since the server was started.
    pub async fn stop_failing(&self) -> i32 {
        let command = doc! { "configureFailPoint": "failCommand", "mode": "off" };
        self.command(command).await.get_i32("count").unwrap()
    }
}

impl Drop for TestMongod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
