//! librdkafka's errors -> ours, by what the caller does next.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::Error;

/// What was being done when it failed.
pub(super) struct Doing<'a> {
    pub what: &'a str,
    pub brokers: &'a str,
    pub topic: Option<&'a str>,
    /// What the client's connections said last.
    pub cause: Option<String>,
}

impl<'a> Doing<'a> {
    pub fn topic(self, topic: &'a str) -> Self {
        Self { topic: Some(topic), ..self }
    }
}

/// Why a client could not be made: only its properties can be wrong, it has not connected yet.
pub(super) fn creation(error: KafkaError, brokers: &str) -> Error {
    match error {
        // The value can be a password.
        KafkaError::ClientConfig(_, reason, key, _) => {
            Error::configuration(format!("[log.client] {key}: {reason}")).with("brokers", brokers)
        }
        other => Error::configuration("cannot make a Kafka client: check [log] and [log.client]")
            .with("brokers", brokers)
            .source(other),
    }
}

pub(super) fn classify(error: KafkaError, doing: Doing<'_>) -> Error {
    match error.rdkafka_error_code() {
        Some(code) => classify_code(code, doing).source(error),
        None => with_context(Error::retry(format!("{} failed", doing.what)), doing).source(error),
    }
}

pub(super) fn classify_code(code: Code, doing: Doing<'_>) -> Error {
    let what = doing.what;
    let error = match code {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::TransactionCoordinatorFenced => {
            Error::human("another connector for this source has taken over: only one may run")
        }
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Error::human(
            "a record is larger than the topic takes: raise the topic's max.message.bytes (and message.max.bytes in \
             [log.client] when above 64 MiB), or exclude the table",
        ),
        code if MISSING.contains(&code) => Error::human(
            "a topic or partition that Lakeward needs is missing: was it deleted, or are these other brokers?",
        ),
        Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL | Code::UnsupportedSASLMechanism => {
            Error::configuration("Kafka refused the connection's credentials: check [log.client]")
        }
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
        | Code::TimedOutQueue => {
            Error::retry(format!("Kafka does not answer, {what}: is it running, and is [log] brokers right?"))
        }
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
    if let Some(cause) = doing.cause {
        error = error.with("last_broker_error", cause);
    }
    error
}
