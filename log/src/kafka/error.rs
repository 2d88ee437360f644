//! librdkafka's errors -> ours, by what the caller does next.

use lakeward_runtime::config::{KafkaConfig, Secret};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::Error;

/// What was being done when it failed.
pub(super) struct Doing<'a> {
    pub what: &'a str,
    pub brokers: &'a str,
    pub topic: Option<&'a str>,
    pub partition: Option<i32>,
    /// What the client's connections said last.
    pub cause: Option<Cause>,
}

/// What a broker connection said.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    pub code: Option<Code>,
    pub text: String,
}

impl Cause {
    /// Of a cluster that has taken these settings before: a broker that is going down or coming up breaks off handshakes too.
    pub fn in_passing(self) -> Self {
        Self { code: None, ..self }
    }
}

impl<'a> Doing<'a> {
    pub fn topic(self, topic: &'a str) -> Self {
        Self { topic: Some(topic), ..self }
    }
    pub fn partition(self, partition: i32) -> Self {
        Self { partition: Some(partition), ..self }
    }
}

/// Why a client could not be made: only its properties can be wrong, it has not connected yet.
pub(super) fn creation(error: KafkaError, config: &KafkaConfig) -> Error {
    let brokers = &config.brokers;
    match error {
        // The value can be a password; the client's reason may quote it.
        KafkaError::ClientConfig(_, reason, key, _) => {
            let quoted =
                config.client.get(&key).map(Secret::expose).filter(|value| !value.is_empty() && is_secret(&key));
            let reason = quoted.map_or(reason.clone(), |value| reason.replace(value, "****"));
            Error::configuration(format!("[log.client] {key}: {reason}")).with("brokers", brokers)
        }
        other => Error::configuration("cannot make a Kafka client: check [log] and [log.client]")
            .with("brokers", brokers)
            .source(other),
    }
}

/// Whether a property's value is nobody's business; librdkafka hides the same ones.
fn is_secret(property: &str) -> bool {
    ["password", "secret", "pem", "oauthbearer", "username"].iter().any(|part| property.contains(part))
}

pub(super) fn classify(error: KafkaError, doing: Doing<'_>) -> Error {
    match error.rdkafka_error_code() {
        Some(code) => classify_code(code, doing).source(error),
        None => with_context(Error::retry(format!("{} failed", doing.what)), doing).source(error),
    }
}

const CREDENTIALS: &str = "Kafka refused the connection's credentials: check sasl.mechanism, sasl.username and sasl.password in \
                           [log.client], and that the broker knows this user for this mechanism";
const TLS: &str = "no TLS connection to Kafka: check security.protocol, ssl.ca.location (the authority that signed the broker's \
                   certificate) and the names in [log] brokers, which the certificate must have";

fn is_credentials(code: Code) -> bool {
    matches!(code, Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism)
}

/// What the client of a writer that was replaced is told. One whose transaction took too long is told the same.
pub(super) fn is_fenced(code: Code) -> bool {
    use Code::{Fenced, InvalidProducerEpoch, ProducerFenced, TransactionCoordinatorFenced};
    matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch | TransactionCoordinatorFenced)
}

pub(super) fn classify_code(code: Code, doing: Doing<'_>) -> Error {
    let what = doing.what;
    let error = match code {
        code if is_fenced(code) => Error::human("another connector for this source has taken over: only one may run"),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Error::human(
            "a record is larger than the topic takes: raise the topic's max.message.bytes (and message.max.bytes in \
             [log.client] when above 64 MiB), or exclude the table",
        ),
        code if MISSING.contains(&code) => Error::human(
            "a topic or partition that Lakeward needs is missing: was it deleted, or are these other brokers?",
        ),
        code if is_credentials(code) => Error::configuration(CREDENTIALS),
        Code::SSL => Error::configuration(TLS),
        Code::TopicAuthorizationFailed => {
            Error::human("Kafka does not allow access to the topic: grant Read, Write, Describe and Create")
        }
        Code::ClusterAuthorizationFailed | Code::TransactionalIdAuthorizationFailed => Error::human(
            "Kafka does not allow transactions to this user: grant Write and Describe on the transactional id, IdempotentWrite on the cluster",
        ),
        Code::InvalidReplicationFactor => Error::configuration(
            "Kafka cannot place that many replicas: lower [log] replication, or start more brokers",
        ),
        Code::InvalidPartitions | Code::InvalidConfig | Code::PolicyViolation | Code::InvalidTopic => {
            Error::configuration(format!("Kafka refused, {what}"))
        }
        Code::InvalidTransactionTimeout => Error::configuration(
            "transaction.timeout.ms in [log.client] is above the broker's transaction.max.timeout.ms",
        ),
        Code::AllBrokersDown
        | Code::BrokerTransportFailure
        | Code::Resolve
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::MessageTimedOut
        | Code::BrokerNotAvailable
        | Code::TimedOutQueue => match doing.cause.as_ref().and_then(|cause| cause.code) {
            // librdkafka connects again and again, and lets the call run out of time: the connections say why.
            Some(code) if is_credentials(code) => Error::configuration(CREDENTIALS),
            Some(Code::SSL) => Error::configuration(TLS),
            _ => Error::retry(format!(
                "Kafka does not answer, {what}: is it running, and are [log] brokers and [log.client] security.protocol right?"
            )),
        },
        _ => Error::retry(format!("{what} failed, {code}")),
    };
    with_context(error, doing)
}

/// What a client says of topics and partitions that do not exist, as far as it knows.
pub(super) const MISSING: [Code; 4] =
    [Code::UnknownTopic, Code::UnknownTopicOrPartition, Code::UnknownPartition, Code::UnknownTopicId];

/// Whether the client believes that a topic or partition does not exist.
pub(super) fn is_missing(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(|code| MISSING.contains(&code))
}

/// Whether librdkafka goes on by itself after telling this: connections come back, leaders are found again.
pub(super) fn heals_by_itself(code: Code) -> bool {
    matches!(
        code,
        Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::BrokerNotAvailable
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::NetworkException
            | Code::OffsetNotAvailable
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NotCoordinator
            | Code::UnknownBroker
    )
}

fn with_context(error: Error, doing: Doing<'_>) -> Error {
    let mut error = error.with("brokers", doing.brokers);
    if let Some(topic) = doing.topic {
        error = error.with("topic", topic);
    }
    if let Some(partition) = doing.partition {
        error = error.with("partition", partition);
    }
    if let Some(cause) = doing.cause {
        error = error.with("last_broker_error", cause.text);
    }
    error
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use lakeward_runtime::Action;
    use lakeward_runtime::config::Codec;

    use super::*;

    fn timed_out(cause: Option<Cause>) -> Error {
        classify_code(
            Code::OperationTimedOut,
            Doing { what: "asking", brokers: "a:1", topic: None, partition: None, cause },
        )
    }

    #[test]
    fn a_time_out_is_what_the_connections_said() {
        let said = |code| Some(Cause { code: Some(code), text: "the reason".into() });
        assert_eq!(timed_out(None).action(), Action::Retry);
        assert_eq!(timed_out(said(Code::BrokerTransportFailure)).action(), Action::Retry);
        for (code, word) in [(Code::Authentication, "sasl.password"), (Code::SSL, "ssl.ca.location")] {
            let error = timed_out(said(code));
            assert_eq!(error.action(), Action::Configuration);
            let text = error.to_string();
            assert!(text.contains(word) && text.contains("the reason") && text.contains("a:1"), "{text}");
            // But not where the same settings have done before.
            let error = timed_out(said(code).map(Cause::in_passing));
            assert!(error.action() == Action::Retry && error.to_string().contains("the reason"), "{error}");
        }
    }

    #[test]
    fn a_property_that_cannot_be_is_told_without_its_secret() {
        let config = KafkaConfig {
            brokers: "a:1".into(),
            codec: Codec::Json,
            partitions: 1,
            replication: 1,
            retention: Duration::from_secs(1),
            client: BTreeMap::from([("ssl.key.pem".to_owned(), Secret::new("hunter2"))]),
        };
        let refused = |key: &str| {
            KafkaError::ClientConfig(
                rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
                "cannot read \"hunter2\"".into(),
                key.into(),
                "hunter2".into(),
            )
        };
        let text = creation(refused("ssl.key.pem"), &config).to_string();
        assert!(text.contains("ssl.key.pem") && text.contains("****") && !text.contains("hunter2"), "{text}");
    }
}
