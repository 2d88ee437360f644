//! The servers: those that every test shares, and stacks of a test's own, whose servers it may kill.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{env, wait_until};

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
    /// The schema registry's URL.
    pub registry: String,
}

impl Servers {
    /// The shared ones.
    pub fn get() -> Self {
        Self {
            postgres: env("LAKEWARD_TEST_POSTGRES", "postgresql://postgres:lakeward@127.0.0.1:22415/postgres"),
            mongodb: env("LAKEWARD_TEST_MONGODB", "mongodb://127.0.0.1:22017/?replicaSet=rs0"),
            kafka: env("LAKEWARD_TEST_KAFKA", "127.0.0.1:22092"),
            s3: env("LAKEWARD_TEST_S3", "http://127.0.0.1:22090"),
            registry: env("LAKEWARD_TEST_REGISTRY", "http://127.0.0.1:22081/apis/ccompat/v7"),
        }
    }
}

impl Servers {
    /// What the schema registry answers to a GET.
    pub fn registry(&self, path: &str) -> Value {
        self.ask_registry(path, &[])
    }

    /// Sets what a subject takes: `BACKWARD`, `NONE`, ….
    pub fn set_compatibility(&self, subject: &str, compatibility: &str) {
        let body = format!("{{\"compatibility\": \"{compatibility}\"}}");
        self.ask_registry(
            &format!("/config/{subject}"),
            &["-X", "PUT", "-H", "content-type: application/json", "-d", &body],
        );
    }

    fn ask_registry(&self, path: &str, options: &[&str]) -> Value {
        let url = format!("{}{path}", self.registry);
        let output = Command::new("curl").arg("-fsS").args(options).arg(&url).output().expect("curl can be started");
        assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
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
                "LAKEWARD_TEST_REGISTRY" => ("registry", &mut servers.registry),
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

    /// One of Kafka's tools, by class; what it prints.
    pub fn kafka_tool(&self, arguments: &[&str]) -> String {
        self.call(&[&["kafka-tool"], arguments].concat())
    }

    /// Adds a broker, node 2, to the stack's Kafka. Returns when it is in the cluster.
    pub fn second_broker(&self) -> Broker {
        let (run, data) = (self.dir.path().join("run"), self.dir.path().join("data"));
        let first = std::fs::read_to_string(run.join("kafka.properties")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = [
            ("process.roles", "broker".to_owned()),
            ("node.id", "2".to_owned()),
            ("listeners", format!("CLIENT://127.0.0.1:{port}")),
            ("advertised.listeners", format!("CLIENT://127.0.0.1:{port}")),
            ("log.dirs", data.join("kafka2").display().to_string()),
        ];
        let mut config: String = first
            .lines()
            .filter(|line| settings.iter().all(|(name, _)| !line.starts_with(&format!("{name}="))))
            .map(|line| format!("{line}\n"))
            .collect();
        for (name, value) in settings {
            config.push_str(&format!("{name}={value}\n"));
        }
        let path = run.join("kafka2.properties");
        std::fs::write(&path, config).unwrap();
        let meta = std::fs::read_to_string(data.join("kafka/meta.properties")).unwrap();
        let cluster = meta.lines().find_map(|line| line.strip_prefix("cluster.id=")).unwrap();
        let path = path.display().to_string();
        self.kafka_tool(&["kafka.tools.StorageTool", "format", "-t", cluster, "-c", &path]);
        self.start_second_broker()
    }

    /// Starts it again, with the data that it has. Returns when it is in the cluster.
    pub fn start_second_broker(&self) -> Broker {
        let (config, log) = (self.dir.path().join("run/kafka2.properties"), self.dir.path().join("log/kafka2.log"));
        let child = self
            .command(&["kafka-tool", "kafka.Kafka", &config.display().to_string()])
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let broker = Broker(child);
        wait_until("the second broker is there", || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("Kafka Server started"))
        });
        broker
    }

    /// Moves the only replicas of partitions. Returns when that is asked for; [`Stack::is_moved`] tells when it is done.
    pub fn move_partitions(&self, topic: &str, partitions: impl IntoIterator<Item = i32>, broker: i32) {
        let partitions: Vec<_> = partitions
            .into_iter()
            .map(|partition| json!({ "topic": topic, "partition": partition, "replicas": [broker] }))
            .collect();
        std::fs::write(self.plan(), json!({ "version": 1, "partitions": partitions }).to_string()).unwrap();
        self.reassign("--execute");
    }

    /// Whether the partitions of the last [`Stack::move_partitions`] are where they are to be.
    pub fn is_moved(&self) -> bool {
        let told = self.reassign("--verify");
        told.contains("is completed") && !told.contains("still in progress")
    }

    fn plan(&self) -> PathBuf {
        self.dir.path().join("plan.json")
    }

    fn reassign(&self, what: &str) -> String {
        let (brokers, plan) = (self.servers().kafka, self.plan().display().to_string());
        let tool = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
        self.kafka_tool(&[tool, "--bootstrap-server", &brokers, "--reassignment-json-file", &plan, what])
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/stack.sh");
        let mut command = Command::new(script);
        command.arg("--dir").arg(self.dir.path()).arg("--free-ports").args(arguments);
        // The shared stack's settings are not this one's.
        for name in [
            "LAKEWARD_PG_PORT",
            "LAKEWARD_MONGO_PORT",
            "LAKEWARD_KAFKA_PORT",
            "LAKEWARD_MINIO_PORT",
            "LAKEWARD_REGISTRY_PORT",
            "LAKEWARD_MONGO_SET",
            "LAKEWARD_KAFKA_SASL",
            "LAKEWARD_REGISTRY_TLS",
        ] {
            command.env_remove(name);
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    fn call(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("stack.sh can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "stack.sh {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

/// A broker beside the stack's own; killed when dropped.
pub struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Not `call`: a panic in a drop would hide the test's.
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/stack.sh");
        let _ = Command::new(script).arg("--dir").arg(self.dir.path()).arg("clean").output();
    }
}
