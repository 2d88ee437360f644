//! A Kafka that wants TLS and a password: the whole path through it by each mechanism, and what is told when it refuses.

use serde_json::json;

use crate::harness::{Pipeline, Postgres, Stack, said};

/// Of the stack's user `lakeward`.
const PASSWORD: &str = "lakeward-secret";

#[test]
fn tls_and_each_mechanism_carry_the_whole_path() {
    let stack = Stack::start(&["kafka"], &[("LAKEWARD_KAFKA_SASL", "1")]);
    let servers = stack.servers();
    let ca = stack.dir().join("run/kafka-ca.pem").display().to_string();
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (0, 'first')");
    let client = format!(
        "\"security.protocol\" = \"sasl_ssl\"\n\"sasl.mechanism\" = \"PLAIN\"\n\"sasl.username\" = \"lakeward\"\n\
         \"sasl.password\" = \"{PASSWORD}\"\n\"ssl.ca.location\" = \"{ca}\"\n"
    );
    let lake = Pipeline::on(servers.clone()).postgres(&users).log_client(&client).build();
    let count = format!("select count(*) from {}.t", users.name);
    let mechanisms = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
    for (rows, mechanism) in (1..).zip(mechanisms) {
        let config = lake.variant("state", &[("\"PLAIN\"", &format!("\"{mechanism}\""))]);
        said(&lake.call_with(&config, &["check"]), 0, &[]);
        // Connectors append, the sink reads.
        said(&lake.call_with(&config, &["run", "--until-caught-up"]), 0, &[]);
        assert_eq!(lake.value(&count), json!(rows), "{mechanism}");
        users.execute(&format!("INSERT INTO t VALUES ({rows}, '{mechanism}')"));
    }
    let tail = lake.call(&["tail", &format!("{}.t", users.name), "--from-beginning", "-n", "3", "--format", "json"]);
    said(&tail, 0, &["\"v\":\"SCRAM-SHA-256\""]);
    said(&lake.call(&["topics"]), 0, &[&format!("{}.public.t", users.name)]);

    // Nothing that time would cure: 2, with the brokers and what to look at.
    let brokers = servers.kafka.as_str();
    let password = format!("\"sasl.password\" = \"{PASSWORD}\"");
    for mechanism in mechanisms {
        let config = lake.variant(
            "state",
            &[("\"PLAIN\"", &format!("\"{mechanism}\"")), (&password, "\"sasl.password\" = \"wrong-password\"")],
        );
        let words = [brokers, "refused the connection's credentials", "sasl.password"];
        said(&lake.call_with(&config, &["run"]), 2, &words);
        if mechanism == "PLAIN" {
            said(&lake.call_with(&config, &["check"]), 1, &words);
        }
    }
    // The certificate's authority is not told; the names are.
    let config = lake.variant("state", &[(&format!("\"ssl.ca.location\" = \"{ca}\"\n"), "")]);
    said(&lake.call_with(&config, &["run"]), 2, &[brokers, "ssl.ca.location", "certificate verify failed"]);
    // Without TLS there is no answer that could be understood; the client's guess is passed on.
    let config = lake.variant("state", &[("\"sasl_ssl\"", "\"plaintext\"")]);
    said(&lake.call_with(&config, &["check"]), 1, &[brokers, "security.protocol"]);
    // What delivery rests on is not to be set.
    let config = lake.variant("state", &[("\"sasl_ssl\"\n", "\"sasl_ssl\"\n\"enable.idempotence\" = false\n")]);
    said(&lake.call_with(&config, &["run"]), 2, &["log.client.\"enable.idempotence\"", "leave it out"]);
}
