//! What goes wrong, and what is said then.

use lakeward_event::CheckpointDraft;
use lakeward_runtime::Action;

use super::*;

async fn error_of(source: &Source) -> lakeward_runtime::Error {
    source.outcome(&source.config(), false).await.unwrap_err()
}

/// The log ends at this second of 1970 or later.
async fn continue_at(source: &Source, second: u32) {
    let (mut writer, _) = source.log.writer(&source.name).await.unwrap();
    let token = format!("82{second:08X}000000012B0229296E04");
    let draft = CheckpointDraft {
        position: Position::Mongodb { cluster_time: (u64::from(second) << 32) | 1, token },
        next_sequence: 0,
        snapshot: serde_json::Value::Null,
        converging: Vec::new(),
        watermark_from: 1_000_000,
        watermark: 2_000_000,
        cut: true,
    };
    writer.append(&[], Vec::new(), draft).await.unwrap();
}

/// A server that was set back, or is another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_after_the_oplog_asks_for_a_new_snapshot() {
    let source = Source::create("after").await;
    continue_at(&source, u32::MAX - 1000).await;
    let error = error_of(&source).await;
    assert_eq!(error.action(), Action::Resnapshot, "{error}");
    assert!(error.to_string().contains("ahead of the server"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_called_so() {
    let mut source = Source::create("password").await;
    source.url = source.url.replacen("mongodb://", "mongodb://nobody:correct-horse@", 1);
    let error = error_of(&source).await;
    assert_eq!(error.action(), Action::Configuration, "{error}");
    let text = error.to_string();
    assert!(text.contains("user or password is wrong") && !text.contains("correct-horse"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_tried_again() {
    let mut source = Source::create("nowhere").await;
    source.url = "mongodb://127.0.0.1:9/?replicaSet=rs0&serverSelectionTimeoutMS=300".into();
    let error = error_of(&source).await;
    assert_eq!(error.action(), Action::Retry, "{error}");
    assert!(error.to_string().contains("server not reachable"), "{error}");
}
