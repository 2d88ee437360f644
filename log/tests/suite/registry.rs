//! The registry's client, on a real Apicurio; what a registry does only when it is ill, or is none, is told by a responder of our own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use lakeward_event::codec::registry::{RegisteredSchema, SchemaRegistry};
use lakeward_event::{Error as EventError, Result as EventResult};
use lakeward_log::Error;
use lakeward_log::registry::{RegistryClient, failure, open};
use lakeward_runtime::Action;
use lakeward_runtime::config::Secret;
use serde_json::{Value, json};

use super::fresh;

type Found = EventResult<Option<Arc<RegisteredSchema>>>;

fn address() -> String {
    std::env::var("LAKEWARD_TEST_REGISTRY").unwrap_or_else(|_| "http://127.0.0.1:22081/apis/ccompat/v7".into())
}

fn client(url: &str) -> Arc<RegistryClient> {
    Arc::new(RegistryClient::open(&Secret::new(url)).unwrap())
}

async fn register(client: &Arc<RegistryClient>, subject: &str, schema: &str) -> EventResult<u32> {
    let (client, subject, schema) = (client.clone(), subject.to_owned(), schema.to_owned());
    tokio::task::spawn_blocking(move || client.register(&subject, &schema)).await.unwrap()
}

async fn schema(client: &Arc<RegistryClient>, id: u32) -> Found {
    let client = client.clone();
    tokio::task::spawn_blocking(move || client.schema(id)).await.unwrap()
}

/// The client's own error: no record's fault.
fn failed<T: std::fmt::Debug>(outcome: EventResult<T>) -> Error {
    failure(outcome.unwrap_err()).expect("a failure of the registry")
}

fn is_malformed<T: std::fmt::Debug>(outcome: EventResult<T>, part: &str) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, EventError::Malformed { .. }) && error.to_string().contains(part), "{error}");
}

/// A request past the client, for what it does not do itself.
async fn request(method: &str, path: &str, body: Value) -> Value {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let request = reqwest::Client::new()
        .request(method, format!("{}{path}", address()))
        .header("content-type", "application/vnd.schemaregistry.v1+json")
        .body(body.to_string());
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{path}: {status} {text}");
    serde_json::from_str(&text).unwrap()
}

fn record(name: &str, fields: &[(&str, &str)]) -> String {
    let field = |(name, ty): &(&str, &str)| json!({ "name": name, "type": ["null", ty], "default": null });
    let fields: Vec<_> = fields.iter().map(field).collect();
    json!({ "type": "record", "name": name, "fields": fields }).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_has_one_id_for_everybody() {
    let subject = fresh("registry_once");
    let (one, two) = (client(&address()), client(&format!("{}/", address())));
    one.look().await.unwrap();
    let text = record(&subject, &[("a", "int")]);
    let id = register(&one, &subject, &text).await.unwrap();
    assert_eq!(register(&one, &subject, &text).await.unwrap(), id);
    assert_eq!(register(&two, &subject, &text).await.unwrap(), id);
    let later = register(&two, &subject, &record(&subject, &[("b", "string"), ("a", "int")])).await.unwrap();
    assert_ne!(later, id);
    let found = schema(&two, id).await.unwrap().unwrap();
    assert_eq!(*found, RegisteredSchema { text, references: Vec::new() });
    for id in [i32::MAX as u32, u32::MAX] {
        assert_eq!(schema(&two, id).await.unwrap(), None, "{id}");
    }
    // Characters that mean something in a URL.
    let odd = format!("{subject} ü?#%-value");
    let id = register(&one, &odd, &record("odd", &[("a", "int")])).await.unwrap();
    assert!(schema(&one, id).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_come_before_what_uses_them() {
    let subject = fresh("registry_references");
    let name = |of: &str| format!("{subject}-{of}");
    let plain = |of: &str, fields: &[(&str, &str)]| record(&format!("{subject}_{of}"), fields);
    let using = |of: &str, used: &[&str]| {
        let fields: Vec<_> =
            used.iter().map(|used| json!({ "name": used, "type": format!("{subject}_{used}") })).collect();
        json!({ "type": "record", "name": format!("{subject}_{of}"), "fields": fields }).to_string()
    };
    let put = |of: &str, schema: &str, used: &[&str]| {
        let references: Vec<_> = used
            .iter()
            .map(|used| json!({ "name": format!("{subject}_{used}"), "subject": name(used), "version": 1 }))
            .collect();
        let body = json!({ "schema": schema, "references": references });
        let path = format!("/subjects/{}/versions", name(of));
        async move { request("POST", &path, body).await["id"].as_u64().unwrap() as u32 }
    };
    let (a, b, c) = (plain("a", &[("x", "int")]), using("b", &["a"]), using("c", &["b", "a"]));
    put("a", &a, &[]).await;
    put("b", &b, &["a"]).await;
    let id = put("c", &c, &["b", "a"]).await;
    let found = schema(&client(&address()), id).await.unwrap().unwrap();
    assert_eq!(*found, RegisteredSchema { text: c, references: vec![a, b] });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evolution_that_the_subject_does_not_take_needs_a_person() {
    let (subject, client) = (fresh("registry_evolution"), client(&address()));
    let narrow = record(&subject, &[("a", "int")]);
    let first = register(&client, &subject, &narrow).await.unwrap();
    request("PUT", &format!("/config/{subject}"), json!({ "compatibility": "BACKWARD" })).await;
    let second = register(&client, &subject, &record(&subject, &[("b", "string"), ("a", "int")])).await.unwrap();
    assert_ne!(first, second);
    let versions =
        reqwest::get(format!("{}/subjects/{subject}/versions", address())).await.unwrap().text().await.unwrap();
    assert_eq!(versions, "[1,2]");
    let other = record(&subject, &[("b", "string"), ("a", "string")]);
    let error = failed(register(&client, &subject, &other).await);
    let text = error.to_string();
    assert_eq!(error.action(), Action::Human, "{text}");
    let config = format!("{}/config/{subject}", address());
    for part in [&subject, "NONE", &config, "answer="] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    // What the message says helps, at once.
    request("PUT", &format!("/config/{subject}"), json!({ "compatibility": "NONE" })).await;
    register(&client, &subject, &other).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_of_another_type_reads_no_record() {
    let subject = fresh("registry_type");
    let text = json!({ "$schema": "http://json-schema.org/draft-07/schema#", "title": subject }).to_string();
    let body = json!({ "schemaType": "JSON", "schema": text });
    let id = request("POST", &format!("/subjects/{subject}/versions"), body).await["id"].as_u64().unwrap();
    is_malformed(
        schema(&client(&address()), id as u32).await,
        &format!("schema {id} of the registry: it is of type JSON"),
    );
}

/// A registry that goes away and comes back at the same address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_was_away_is_asked_again() {
    let subject = fresh("registry_away");
    let real = url::Url::parse(&address()).unwrap();
    let target = format!("{}:{}", real.host_str().unwrap(), real.port_or_known_default().unwrap());
    let mut relay = Relay::start("127.0.0.1:0", &target);
    let client = client(&format!("http://{}{}", relay.address, real.path()));
    let (first, second) = (record(&subject, &[("a", "int")]), record(&subject, &[("a", "int"), ("b", "int")]));
    let id = register(&client, &subject, &first).await.unwrap();

    relay.end();
    let error = failed(register(&client, &subject, &second).await);
    assert!(error.action() == Action::Retry && error.to_string().contains(&relay.address), "{error}");
    assert_eq!(failed(schema(&client, id).await).action(), Action::Retry);
    assert_eq!(failed(client.look().await.map_err(|e| EventError::Registry(Box::new(e)))).action(), Action::Retry);
    assert_eq!(register(&client, &subject, &first).await.unwrap(), id, "what is known needs no registry");

    let _relay = Relay::start(&relay.address, &target);
    assert_eq!(schema(&client, id).await.unwrap().unwrap().text, first);
    assert_ne!(register(&client, &subject, &second).await.unwrap(), id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_is_not_asked_again() {
    let text = record("r", &[("a", "int")]);
    let answer = json!({ "schema": text }).to_string();
    let late = Mutex::new(0);
    let responder = Responder::start(move |request| match request.path.as_str() {
        "/schemas/ids/7" => ok(&answer),
        // Another node of the registry has it first.
        "/schemas/ids/8" => {
            let mut asked = late.lock().unwrap();
            *asked += 1;
            if *asked == 1 { unknown() } else { ok(&answer) }
        }
        "/schemas/ids/10" => ok("{\"schema\":\"{}\",\"schemaType\":\"JSON\"}"),
        "/subjects/s/versions" => ok("{\"id\":7}"),
        _ => unknown(),
    });
    let client = client(&responder.url);
    for _ in 0..3 {
        assert_eq!(register(&client, "s", &text).await.unwrap(), 7);
        assert_eq!(schema(&client, 7).await.unwrap().unwrap().text, text);
        assert_eq!(schema(&client, 8).await.unwrap().unwrap().text, text);
        assert_eq!(schema(&client, 9).await.unwrap(), None);
        is_malformed(schema(&client, 10).await, "of type JSON");
    }
    let asked = |path: &str| responder.requests().iter().filter(|request| request.path == path).count();
    assert_eq!((asked("/schemas/ids/7"), asked("/subjects/s/versions"), asked("/schemas/ids/10")), (1, 1, 1));
    assert_eq!((asked("/schemas/ids/8"), asked("/schemas/ids/9")), (2, 3), "an id may come late, and is then given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_and_password_go_to_the_registry_and_nowhere_else() {
    let responder = Responder::start(|request| match request.headers.get("authorization").map(String::as_str) {
        // key:p@ss word
        Some("Basic a2V5OnBAc3Mgd29yZA==") => ok("{\"id\":1}"),
        _ => {
            (401, "content-type: application/json", json!({ "error_code": 401, "message": "Unauthorized" }).to_string())
        }
    });
    let with = |user: &str| responder.url.replace("://", &format!("://{user}@"));
    assert_eq!(register(&client(&with("key:p%40ss%20word")), "s", "\"int\"").await.unwrap(), 1);
    let outcome = register(&client(&with("key:hunter2")), "s", "\"int\"").await;
    let error = failed(outcome);
    let text = format!("{error} {error:?}");
    assert_eq!(error.action(), Action::Configuration);
    assert!(text.contains("log.registry") && text.contains("://****@") && text.contains("Unauthorized"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains("key:"), "{text}");
    // The HTTP client's errors tell addresses too.
    drop(responder);
    let error = failed(register(&client("http://key:hunter2@127.0.0.1:1/x?"), "s", "\"int\"").await);
    let text = format!("{error} {error:?}");
    assert!(error.action() == Action::Retry && !text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_registry_a_record_is_no_bad_one() {
    let error = failed(open(None).unwrap().schema(1));
    assert!(error.action() == Action::Configuration && error.to_string().contains("log.registry"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_says_what_to_do_next() {
    use Action::{Bug, Configuration, Human, Retry};
    let html = "<html>hello</html>";
    let told = |code: i64| json!({ "error_code": code, "message": "the registry's words" }).to_string();
    let cases: [(u16, &str, String, Action, &str); 17] = [
        (403, "", told(40_301), Configuration, "does not allow"),
        (404, "", told(404), Configuration, "no schema registry at log.registry"),
        (404, "", html.into(), Configuration, "no schema registry at log.registry"),
        (200, "", html.into(), Configuration, "no schema registry at log.registry"),
        (200, "", "{\"id\":\"x\"}".into(), Configuration, "no schema registry at log.registry"),
        (200, "", "{\"id\":-1}".into(), Configuration, "no schema registry at log.registry"),
        (200, "", String::new(), Configuration, "no schema registry at log.registry"),
        (204, "", String::new(), Configuration, "no schema registry at log.registry"),
        (302, "location: https://u:s3cret@login.example/?token=s3cret", String::new(), Configuration, "login.example"),
        (409, "", told(409), Human, "the registry's words"),
        (422, "", told(42_201), Bug, "the registry's words"),
        (422, "", told(42_205), Human, "the registry's words"),
        (408, "", String::new(), Retry, "cannot answer now"),
        (429, "", html.into(), Retry, "cannot answer now"),
        (500, "", told(50_001), Retry, "the registry's words"),
        (502, "", html.into(), Retry, "status=502"),
        (503, "", String::new(), Retry, "cannot answer now"),
    ];
    for (status, header, body, action, part) in cases {
        let answer = body.clone();
        let responder = Responder::start(move |_| (status, header, answer.clone()));
        let client = client(&responder.url);
        let error = failed(register(&client, "the-subject", "\"int\"").await);
        let text = error.to_string();
        assert_eq!(error.action(), action, "{status} {body}: {text}");
        assert!(
            text.contains(part) && text.contains(&responder.url) && text.contains("the-subject"),
            "{status}: {text}"
        );
        assert!(!text.contains("s3cret"), "{text}");
        // Neither is such an answer a schema, nor a reason to take a record for a bad one.
        assert_eq!(failed(schema(&client, 1).await).action(), action, "{status} {body}");
        assert_eq!(client.look().await.unwrap_err().action(), action, "{status} {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_is_worth_another_try() {
    let responder = Responder::start(|_| (200, "content-length: 1000", "{\"id\":".into()));
    let outcome = register(&client(&responder.url), "s", "\"int\"").await;
    assert_eq!(failed(outcome).action(), Action::Retry);
    assert_eq!(responder.requests().len(), 3);
    // TLS to a port that speaks none: no try will change that.
    let error = failed(register(&client(&address().replace("http://", "https://")), "s", "\"int\"").await);
    assert!(error.action() == Action::Configuration && error.to_string().contains("begin with https"), "{error}");
}

/// Every request, also one that is made again, is counted by how it went, and timed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_counted_by_their_outcome() {
    let responder = Responder::start(|request| match request.path.as_str() {
        "/schemas/ids/1" => ok("{\"schema\":\"\\\"int\\\"\"}"),
        "/schemas/ids/2" => unknown(),
        "/schemas/ids/3" => (503, "", String::new()),
        "/schemas/ids/4" => (401, "", String::new()),
        // The connection breaks off within the answer.
        _ => (200, "content-length: 1000", "{\"id\":".into()),
    });
    let client = client(&responder.url);
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    tokio::task::spawn_blocking(move || {
        metrics::with_local_recorder(&recorder, || {
            // What is known is not asked for again, and so not counted.
            for id in [1, 1, 2, 3, 4] {
                let _ = client.schema(id);
            }
            let _ = client.register("s", "\"int\"");
        });
    })
    .await
    .unwrap();
    let told = handle.render();
    for (outcome, requests) in [("ok", 1), ("not_found", 3), ("unavailable", 1), ("refused", 1), ("no_answer", 3)] {
        let line = format!("lakeward_registry_requests_total{{outcome=\"{outcome}\"}} {requests}\n");
        assert!(told.contains(&line), "no {line} in: {told}");
    }
    assert!(told.contains("lakeward_registry_request_seconds_count 9\n"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_without_an_end_are_nobodys() {
    let reference = |subject: &str| json!([{ "name": "n", "subject": subject, "version": 1 }]);
    let responder = Responder::start(move |request| match request.path.as_str() {
        "/schemas/ids/1" => ok(&json!({ "schema": "\"int\"", "references": reference("a") }).to_string()),
        "/schemas/ids/2" => ok(&json!({ "schema": "\"int\"", "references": reference("chain0") }).to_string()),
        "/schemas/ids/3" => ok(&json!({ "schema": "\"int\"", "references": reference("gone") }).to_string()),
        "/schemas/ids/4" => ok(&json!({ "schema": "x".repeat(17 << 20) }).to_string()),
        "/schemas/ids/5" => ok(&json!({ "schema": "x", "references": reference("proto") }).to_string()),
        "/subjects/a/versions/1" => ok(&json!({ "schema": "a", "references": reference("b") }).to_string()),
        "/subjects/b/versions/1" => ok(&json!({ "schema": "b", "references": reference("a") }).to_string()),
        "/subjects/proto/versions/1" => ok(&json!({ "schema": "b", "schemaType": "PROTOBUF" }).to_string()),
        path => match path.strip_prefix("/subjects/chain").and_then(|rest| rest.strip_suffix("/versions/1")) {
            Some(n) => {
                let next = format!("chain{}", n.parse::<u32>().unwrap() + 1);
                ok(&json!({ "schema": "c", "references": reference(&next) }).to_string())
            }
            None => unknown(),
        },
    });
    let client = client(&responder.url);
    is_malformed(schema(&client, 1).await, "version 1 of subject a of the registry refers to itself");
    is_malformed(schema(&client, 2).await, "more than 256");
    is_malformed(schema(&client, 3).await, "version 1 of subject gone of the registry: another schema refers to it");
    is_malformed(schema(&client, 4).await, "schema 4 of the registry: it has more than");
    is_malformed(schema(&client, 5).await, "version 1 of subject proto of the registry: it is of type PROTOBUF");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_says_nothing_is_not_waited_for_for_ever() {
    // Takes connections, and no more.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client(&format!("http://{}", listener.local_addr().unwrap()));
    let error = failed(register(&client, "s", "\"int\"").await);
    assert!(error.action() == Action::Retry && error.to_string().contains("in time"), "{error}");
}

type Response = (u16, &'static str, String);

fn ok(body: &str) -> Response {
    (200, "content-type: application/vnd.schemaregistry.v1+json", body.to_owned())
}

fn unknown() -> Response {
    (404, "content-type: application/json", json!({ "error_code": 40_403, "message": "not found" }).to_string())
}

#[derive(Clone)]
struct Request {
    /// Without the query.
    path: String,
    headers: BTreeMap<String, String>,
}

/// Answers every request by a function, on a thread of its own for each connection.
struct Responder {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    listener: Listener,
}

impl Responder {
    fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let (requests, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let heard = requests.clone();
        let listener = Listener::start("127.0.0.1:0", move |mut socket| {
            let (heard, answer) = (heard.clone(), answer.clone());
            thread::spawn(move || {
                let Some(request) = heard_from(&mut socket) else { return };
                heard.lock().unwrap().push(request.clone());
                let (status, header, body) = answer(&request);
                let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
                let length = if header.starts_with("content-length") {
                    String::new()
                } else {
                    format!("content-length: {}\r\n", body.len())
                };
                let _ = write!(socket, "HTTP/1.1 {status} x\r\n{header}{length}connection: close\r\n\r\n{body}");
                let _ = socket.shutdown(Shutdown::Write);
                // Until the other side has read it all: closing a socket with unread bytes resets it.
                let _ = socket.read_to_end(&mut Vec::new());
            });
        });
        Self { url: format!("http://{}", listener.address), requests, listener }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.listener.end();
    }
}

fn heard_from(socket: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let path = lines.next()?.split(' ').nth(1)?.split('?').next()?.to_owned();
    let headers: BTreeMap<String, String> =
        lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
    let length: usize = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    while bytes.len() < end + 4 + length {
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
        }
    }
    Some(Request { path, headers })
}

/// A listening thread that can be ended, after which its port is free again.
struct Listener {
    address: String,
    thread: Option<thread::JoinHandle<()>>,
    ended: Arc<std::sync::atomic::AtomicBool>,
}

impl Listener {
    fn start(address: &str, mut taken: impl FnMut(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stop = ended.clone();
        let thread = thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if stop.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                taken(socket);
            }
        });
        Self { address, thread: Some(thread), ended }
    }

    fn end(&mut self) {
        self.ended.store(true, std::sync::atomic::Ordering::SeqCst);
        // Wakes it up.
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Passes connections on, until it is ended with all of them.
struct Relay {
    address: String,
    listener: Listener,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn start(address: &str, target: &str) -> Self {
        let (open, target) = (Arc::new(Mutex::new(Vec::new())), target.to_owned());
        let kept = open.clone();
        let listener = Listener::start(address, move |socket| {
            let server = TcpStream::connect(&target).unwrap();
            for (from, to) in [(&socket, &server), (&server, &socket)] {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
            kept.lock().unwrap().extend([socket, server]);
        });
        Self { address: listener.address.clone(), listener, open }
    }

    fn end(&mut self) {
        self.listener.end();
        for socket in self.open.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}
