//! A broker that is too busy to answer: one of our own, whose process is halted for a while. Its connections stay, and say nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lakeward_log::conformance::{block, draft};
use lakeward_log::kafka::KafkaLog;
use tempfile::TempDir;

use super::{config, fresh};

/// A Kafka of `deploy/local` at ports of its own; its data go with it.
struct Broker {
    dir: TempDir,
}

impl Broker {
    fn start() -> Self {
        let broker = Self { dir: TempDir::new().unwrap() };
        broker.stack(&["--free-ports", "up", "kafka"]);
        broker
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.run_file("kafka.port").trim())
    }

    /// Sends its process a signal.
    fn signal(&self, name: &str) {
        let pid = self.run_file("kafka.pid");
        let pid = pid.split(' ').next().unwrap();
        assert!(Command::new("kill").args(["-s", name, pid]).status().unwrap().success());
    }

    fn run_file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join("run").join(name)).unwrap()
    }

    fn stack(&self, arguments: &[&str]) {
        let script: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/local/stack.sh");
        let mut command = Command::new(script);
        command.arg("--dir").arg(self.dir.path()).args(arguments);
        // The shared stack's settings are not this one's.
        command.env_remove("LAKEWARD_KAFKA_PORT").env_remove("LAKEWARD_KAFKA_SASL");
        let output = command.output().expect("stack.sh can be started");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.signal("CONT");
        self.stack(&["clean"]);
    }
}

/// A question for metadata runs out of time (10 s) with no connection telling why: it is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_busy_for_a_while_is_asked_again() {
    let broker = Broker::start();
    let mut config = config();
    config.brokers = broker.address();
    let (log, source) = (KafkaLog::open(&config, "busy").unwrap(), fresh("busy"));
    let topic = format!("{source}.public.a");
    let (mut writer, _) = log.writer(&source).await.unwrap();
    writer.ensure_topic(&topic).await.unwrap();
    writer.append(&[], vec![block(&topic, &[(0, "v")])], draft(1)).await.unwrap();
    // An append shows soon after it is made, not at once.
    let before = loop {
        let bounds = log.bounds(&source).await.unwrap();
        if bounds[&topic][&0].1 > 0 {
            break bounds;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };

    broker.signal("STOP");
    let answer = {
        let (log, source) = (log.clone(), source.clone());
        tokio::spawn(async move { log.bounds(&source).await })
    };
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!answer.is_finished(), "the broker is halted, and the question asked again");
    broker.signal("CONT");
    assert_eq!(answer.await.unwrap().unwrap(), before);
}
