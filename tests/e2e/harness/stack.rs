//! The servers: those that every test shares, and stacks of a test's own, whose servers it may kill.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::env;

/// Addresses. The credentials of MinIO and its bucket are those of `deploy/local`.
#[derive(Debug, Clone)]
pub struct Servers {
    /// With user, password and a database to connect to.
    pub postgres: String,
    pub mongodb: String,
    /// `host:port`.
    pub kafka: String,
    /// `http://host:port`.
    pub s3: String,
}

impl Servers {
    /// The shared ones.
    pub fn get() -> Self {
        Self {
            postgres: env("LAKEWARD_TEST_POSTGRES", "postgresql://postgres:lakeward@127.0.0.1:22415/postgres"),
            mongodb: env("LAKEWARD_TEST_MONGODB", "mongodb://127.0.0.1:22017/?replicaSet=rs0"),
            kafka: env("LAKEWARD_TEST_KAFKA", "127.0.0.1:22092"),
            s3: env("LAKEWARD_TEST_S3", "http://127.0.0.1:22090"),
        }
    }
}

/// Servers at free ports, for one test; their data go with it.
pub struct Stack {
    dir: TempDir,
    /// Those that are its own, as stack.sh calls them.
    own: Vec<String>,
    /// What stack.sh gets in its environment.
    settings: Vec<(String, String)>,
}

impl Stack {
    /// `settings`: variables of `stack.sh`.
    pub fn start(servers: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut stack = Self {
            dir: TempDir::new().unwrap(),
            own: servers.iter().map(|&s| s.to_owned()).collect(),
            settings: Vec::new(),
        };
        stack.set(settings);
        stack.call(&[&["up"], servers].concat());
        stack
    }

    /// Variables of `stack.sh` for the starts to come.
    pub fn set(&mut self, settings: &[(&str, &str)]) {
        self.settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    }

    /// Its addresses in place of the shared ones.
    pub fn servers(&self) -> Servers {
        let mut servers = Servers::get();
        for line in self.call(&["env"]).lines() {
            let Some((name, value)) = line.trim_start_matches("export ").split_once('=') else { continue };
            // As bash quotes it.
            let value = value.replace(['\'', '"', '\\'], "");
            let (server, address) = match name {
                "LAKEWARD_TEST_POSTGRES" => ("postgres", &mut servers.postgres),
                "LAKEWARD_TEST_MONGODB" => ("mongodb", &mut servers.mongodb),
                "LAKEWARD_TEST_KAFKA" => ("kafka", &mut servers.kafka),
                "LAKEWARD_TEST_S3" => ("minio", &mut servers.s3),
                _ => continue,
            };
            if self.own.iter().any(|own| own == server) {
                assert_ne!(value, *address, "the stack has a {server} of its own");
                *address = value;
            }
        }
        servers
    }

    /// Where its servers' files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// An orderly end.
    pub fn stop(&self, server: &str) {
        self.call(&["down", server]);
    }

    /// SIGKILL.
    pub fn kill(&self, server: &str) {
        self.call(&["kill", server]);
    }

    /// Returns when it answers.
    pub fn restart(&self, server: &str) {
        self.call(&["start", server]);
    }

    fn call(&self, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/stack.sh");
        let mut command = Command::new(script);
        command.arg("--dir").arg(self.dir.path()).arg("--free-ports").args(arguments);
        // The shared stack's settings are not this one's.
        for name in [
            "LAKEWARD_PG_PORT",
            "LAKEWARD_MONGO_PORT",
            "LAKEWARD_KAFKA_PORT",
            "LAKEWARD_MINIO_PORT",
            "LAKEWARD_MONGO_SET",
            "LAKEWARD_KAFKA_SASL",
        ] {
            command.env_remove(name);
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        let output = command.output().expect("stack.sh can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "stack.sh {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Not `call`: a panic in a drop would hide the test's.
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/stack.sh");
        let _ = Command::new(script).arg("--dir").arg(self.dir.path()).arg("clean").output();
    }
}
