//! The contract of the log on a real Kafka (`LAKEWARD_TEST_KAFKA`), and what only Kafka can do wrong.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lakeward_log::kafka::KafkaLog;
use lakeward_log::{Log, conformance};
use lakeward_runtime::config::{Codec, KafkaConfig};

fn brokers() -> String {
    std::env::var("LAKEWARD_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:22092".into())
}

fn config() -> KafkaConfig {
    KafkaConfig {
        brokers: brokers(),
        codec: Codec::Json,
        partitions: 3,
        replication: 1,
        retention: Duration::from_secs(3600),
        client: BTreeMap::new(),
    }
}

fn open() -> Arc<dyn Log> {
    KafkaLog::open(&config(), "suite").unwrap()
}

/// A source that no test has had before.
fn fresh(test: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("log_{test}_{:x}_{:x}", std::process::id(), now)
}

macro_rules! conform {
    ($($rule:ident),* $(,)?) => {
        mod contract {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                conformance::$rule(open(), &fresh(stringify!($rule))).await;
            })*
        }
    };
}

conform!(
    a_new_source_is_empty,
    records_come_back_in_order,
    a_reader_continues_where_it_was,
    a_failed_append_leaves_nothing,
    a_new_writer_fences_the_old,
    a_takeover_reads_the_last_checkpoint,
    complete_checkpoints_hold_all_ends,
    checkpoints_are_read_in_order,
    schemas_are_kept_by_version,
    signals_reach_who_listens,
    large_appends_come_back_whole,
);
