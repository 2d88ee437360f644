//! A schema registry that wants TLS, and one behind a proxy that wants a password: the whole path through both, and what is told when
//! they refuse.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::harness::{Pipeline, Postgres, Servers, Stack, python, said};

/// The registry itself takes TLS only, with a certificate that no authority of the system has signed.
#[test]
fn tls_carries_the_whole_path_where_the_certificate_is_trusted() {
    let stack = Stack::start(&["registry"], &[("LAKEWARD_REGISTRY_TLS", "1")]);
    let servers = stack.servers();
    let registry = servers.registry.clone();
    assert!(registry.starts_with("https://"), "{registry}");
    let ca = stack.dir().join("run/registry-ca.pem").display().to_string();
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'first')");
    let mut lake = Pipeline::on(servers).postgres(&users).codec("avro").build();
    let count = format!("select count(*) from {}.t", users.name);

    lake.set_environment(&[("SSL_CERT_FILE", &ca)]);
    said(&lake.call(&["check"]), 0, &[]);
    lake.catch_up();
    // A second version of the table, by a process that registers it, and by one that asks for it.
    users.execute("ALTER TABLE t ADD COLUMN w int; INSERT INTO t VALUES (2, 'second', 2)");
    said(&lake.call(&["run", "connectors", "--until-caught-up"]), 0, &["schema registered"]);

    // Without the certificate nothing can be cured by time: 2, with the address and what to look at.
    lake.set_environment(&[]);
    let words = [registry.as_str(), "no TLS connection to the schema registry", "SSL_CERT_FILE", "UnknownIssuer"];
    said(&lake.call(&["check"]), 1, &words);
    said(&lake.call(&["run", "sink"]), 2, &words);
    let table = format!("{}.t", users.name);
    said(&lake.call(&["tail", &table, "--from-beginning", "-e"]), 2, &words);
    users.execute("ALTER TABLE t ADD COLUMN x int; INSERT INTO t VALUES (3, 'third', 3, 3)");
    said(&lake.call(&["run", "connectors"]), 2, &words);
    // Nothing was lost by it, or taken for a record that nobody can read.
    lake.set_environment(&[("SSL_CERT_FILE", &ca)]);
    lake.catch_up();
    assert_eq!((lake.value(&count), lake.value("select count(*) from lakeward.dead_letters")), (json!(3), json!(0)));
    let tail = lake.call(&["tail", &table, "--from-beginning", "-e", "--format", "json"]);
    said(&tail, 0, &["\"v\":\"third\""]);
    let running = lake.start(&[]);
    lake.verify();
    running.stop();

    // One side speaks TLS, and the other does not.
    let plain = lake.variant("state", &[("https://", "http://")]);
    said(
        &lake.call_with(&plain, &["check"]),
        1,
        &["the schema registry does not answer", "https, where it takes TLS only"],
    );
    let there = Servers::get().registry;
    let tls = lake.variant("state", &[(&registry, &there.replace("http://", "https://"))]);
    said(&lake.call_with(&tls, &["check"]), 1, &["no TLS connection to the schema registry", "https"]);
}

/// `basic_auth_proxy.py`, which lets nobody pass to the registry without these; killed when dropped.
struct Proxy {
    child: Child,
    address: String,
}

impl Proxy {
    fn start(upstream: &str, credentials: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/basic_auth_proxy.py");
        let mut command = Command::new(python());
        command.args([script, upstream, credentials]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python can be started");
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, address: format!("127.0.0.1:{}", port.trim()) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Apicurio knows users by an OpenID server only; user and password are asked for by a proxy in front of it.
#[test]
fn user_and_password_carry_the_whole_path() {
    let there = Servers::get();
    let proxy = Proxy::start(&there.registry, "lake:hunter@2");
    let path = there.registry.split_once("//").unwrap().1.split_once('/').unwrap().1;
    // As docs/log.md writes them.
    let (credentials, rest) = ("${env:REGISTRY_USER}:${env:REGISTRY_PASSWORD}", format!("{}/{path}", proxy.address));
    let servers = Servers { registry: format!("http://{credentials}@{rest}"), ..there };
    let users = Postgres::new("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'first')");
    let mut lake = Pipeline::on(servers).postgres(&users).codec("avro").build();
    lake.set_environment(&[("REGISTRY_USER", "lake"), ("REGISTRY_PASSWORD", "hunter%402")]);
    said(&lake.call(&["check"]), 0, &[]);
    lake.catch_up();
    let running = lake.start(&[]);
    users.execute("ALTER TABLE t ADD COLUMN w int; INSERT INTO t VALUES (2, 'second', 2)");
    lake.wait_for_value(&format!("select count(w) from {}.t", users.name), &json!(1));
    lake.verify();
    running.stop();

    // Nothing that time would cure: 2, with the address and what to look at, and without the password.
    users.execute("ALTER TABLE t ADD COLUMN x int; INSERT INTO t VALUES (3, 'third', 3, 3)");
    let refused = |lake: &crate::harness::Lakeward, config: &std::path::Path| {
        let words = [rest.as_str(), "the schema registry refused the credentials", "log.registry"];
        for (command, code) in [(&["check"][..], 1), (&["run"], 2)] {
            let text = said(&lake.call_with(config, command), code, &words);
            assert!(!text.contains("hunter") && !text.contains("lake:"), "a secret is shown: {text}");
        }
    };
    refused(&lake, &lake.variant("state", &[(&format!("{credentials}@"), "")]));
    lake.set_environment(&[("REGISTRY_USER", "lake"), ("REGISTRY_PASSWORD", "hunter3")]);
    refused(&lake, lake.config());
}
