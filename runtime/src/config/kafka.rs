//! librdkafka's properties in `[log.client]`: any passes through, but for those that the log's promises rest on.

use super::Secret;
use crate::error::{Error, Result};

/// A property that Lakeward sets itself: its name, the value it has (none that a user could write: None), and why.
const OURS: [(&str, Option<&str>, &str); 20] = [
    ("acks", Some("all"), "an append that was acknowledged must survive the death of a broker"),
    ("request.required.acks", Some("all"), "an append that was acknowledged must survive the death of a broker"),
    ("allow.auto.create.topics", Some("false"), "topics are made with the settings that readers need"),
    ("auto.commit.enable", Some("false"), "offsets are committed with the tables, in the lake"),
    ("enable.auto.commit", Some("false"), "offsets are committed with the tables, in the lake"),
    ("enable.auto.offset.store", Some("false"), "offsets are committed with the tables, in the lake"),
    ("group.id", None, "readers are in no group: they assign themselves what they read"),
    ("auto.offset.reset", Some("error"), "a log that was cut off must be an error, not a leap over what is missing"),
    ("bootstrap.servers", None, "brokers are named by log.brokers"),
    ("metadata.broker.list", None, "brokers are named by log.brokers"),
    ("delivery.report.only.error", Some("false"), "checkpoints are made of the offsets in delivery reports"),
    ("produce.offset.report", Some("true"), "checkpoints are made of the offsets in delivery reports"),
    ("enable.idempotence", Some("true"), "a record that is sent again would be there twice"),
    ("enable.partition.eof", Some("true"), "readers must learn where a partition ends"),
    ("isolation.level", Some("read_committed"), "records of appends that were broken off would be read"),
    ("queuing.strategy", Some("fifo"), "records must keep their order"),
    ("test.mock.num.brokers", None, "records would be in the memory of this process alone"),
    ("transactional.id", None, "it is made of `name` and the source's name, and ends a source's older writers"),
    ("enabled_events", None, "delivery reports come as events"),
    ("log.queue", None, "the client's log lines come by it"),
];

/// A property as the user wrote it; refused where it would break the log's promises. Another value than ours would be without
/// effect or do harm, and neither should pass in silence.
pub(super) fn property(name: &str, value: String) -> Result<Secret> {
    match OURS.iter().find(|(ours, ..)| *ours == name) {
        Some((_, ours, why)) if *ours != Some(value.as_str()) => {
            let is = ours.map(|ours| format!(" (to {ours})")).unwrap_or_default();
            Err(Error::configuration(format!(
                "log.client.\"{name}\": Lakeward sets this property itself{is}, since {why}; leave it out"
            )))
        }
        _ => Ok(Secret::new(value)),
    }
}
