//! The schema registry of the codec `avro`: Confluent's API over HTTP, as Confluent, Karapace, Redpanda and Apicurio serve it.
//!
//! `encoder: schema -> id`, `decoder: id -> schema and what it refers to`; both remembered, so that a record costs no request.
//!
//! # Layout
//! - this file: the client
//! - `answer`: what the registry answered -> ids and schemas, or an error by what the caller does next

mod answer;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lakeward_event::codec::registry::{RegisteredSchema, SchemaRegistry};
use lakeward_runtime::config::Secret;
use reqwest::Method;
use serde_json::json;
use tokio::runtime::Handle;
use url::Url;

use self::answer::{Answer, Asked, Found, Reference, malformed};
use crate::{Error, Result};

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// For a connection; a registry that is up takes one in no time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a whole request; the first of a schema makes the registry compare it with older ones.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Waits before a request is sent again whose connection broke: the registry may have closed it while it was idle.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// Waits before an id is given up. One that was just registered may not have reached the registry's other nodes.
const UNKNOWN_AFTER: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];
/// How long an id that serves no record is believed to do so.
const USELESS_FOR: Duration = Duration::from_secs(60);
/// Bytes of an answer, and of a schema with everything that it refers to.
const MAX_BYTES: usize = 16 << 20;
/// Schemas that one schema refers to, by itself or by others.
const MAX_REFERENCES: usize = 256;
/// Schemas, ids and useless ids remembered. Where there are more, all are forgotten, and those in use asked for once more.
const REMEMBERED: usize = 4096;

type EventError = lakeward_event::Error;
type EventResult<T> = lakeward_event::Result<T>;

/// The registry at `log.registry`; where none is configured, one that answers so. To be called on the runtime. Nothing is
/// connected to before the first question.
pub fn open(url: Option<&Secret>) -> Result<Arc<dyn SchemaRegistry>> {
    Ok(match url {
        Some(url) => Arc::new(RegistryClient::open(url)?),
        None => Arc::new(NotConfigured),
    })
}

/// In the place of a registry that nobody has named. The records that ask for it are good ones: no dead letters.
struct NotConfigured;

impl NotConfigured {
    fn error() -> EventError {
        registry(Error::configuration(
            "the log has records of the codec avro: set log.registry to the schema registry that they were written with",
        ))
    }
}

impl SchemaRegistry for NotConfigured {
    fn register(&self, _subject: &str, _schema: &str) -> EventResult<u32> {
        Err(Self::error())
    }
    fn schema(&self, _id: u32) -> EventResult<Option<Arc<RegisteredSchema>>> {
        Err(Self::error())
    }
}

/// What a registry's failure in a codec means: the client's own error, with its [`Action`](lakeward_runtime::Action). Err: the
/// codec's error is another one.
pub fn failure(error: EventError) -> Result<Error, EventError> {
    match error {
        EventError::Registry(cause) => Ok(match cause.downcast::<Error>() {
            Ok(error) => *error,
            Err(other) => Error::retry("the schema registry failed").source(other),
        }),
        other => Err(other),
    }
}

/// Asks a registry. Cheap where the answer is known already.
pub struct RegistryClient {
    http: reqwest::Client,
    /// With user and password, which the HTTP client takes out of it; never printed.
    base: Url,
    /// The same for people to read.
    shown: String,
    handle: Handle,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By subject and schema.
    ids: HashMap<(String, String), u32>,
    schemas: HashMap<u32, Arc<RegisteredSchema>>,
    /// Ids that serve no record.
    useless: HashMap<u32, Useless>,
}

struct Useless {
    since: Instant,
    /// What is wrong with which schema; None: the registry does not have the id.
    wrong: Option<(String, String)>,
}

impl RegistryClient {
    /// See [`open`].
    pub fn open(url: &Secret) -> Result<Self> {
        let wrong = |e: url::ParseError| Error::configuration("log.registry is not a URL").source(e);
        let base = Url::parse(url.expose()).map_err(wrong)?;
        let shown = shown(&base);
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            // A redirect most often leads to a page for people to log in at.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("lakeward/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::configuration("cannot make the schema registry's client").source(e.without_url()))?;
        Ok(Self { http, base, shown, handle: Handle::current(), known: Mutex::default() })
    }

    /// Whether a registry is there that takes our credentials.
    pub async fn look(&self) -> Result<()> {
        let answer = self.ask(Method::GET, &["subjects"], None).await?;
        if answer.is_list() { Ok(()) } else { Err(answer.refused(&self.asked("asking for its subjects"))) }
    }

    async fn register_now(&self, subject: &str, schema: &str) -> Result<u32> {
        // No `schemaType`: it is Avro, and older registries do not know the key.
        let body = json!({ "schema": schema }).to_string();
        let answer = self.ask(Method::POST, &["subjects", subject, "versions"], Some(body)).await?;
        answer.id().ok_or_else(|| answer.refused(&self.asked("registering a schema").subject(subject)))
    }

    /// The schema of an id and everything that it refers to.
    async fn schema_now(&self, id: u32) -> EventResult<Option<RegisteredSchema>> {
        // Registries count in signed numbers, and take a greater one for an address that they do not have.
        if i32::try_from(id).is_err() {
            return Ok(None);
        }
        let mut waits = UNKNOWN_AFTER.iter();
        let found = loop {
            let answer = self.ask(Method::GET, &["schemas", "ids", &id.to_string()], None).await.map_err(registry)?;
            if !answer.is_unknown() {
                let asked = self.asked("asking for a schema").id(id);
                break answer.schema(&asked, || format!("schema {id} of the registry"))?;
            }
            match waits.next() {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => return Ok(None),
            }
        };
        self.with_references(id, found).await.map(Some)
    }

    /// Depth first: what a schema refers to comes before it.
    async fn with_references(&self, id: u32, found: Found) -> EventResult<RegisteredSchema> {
        struct Open {
            /// None: the schema that was asked for.
            of: Option<Reference>,
            text: String,
            left: std::vec::IntoIter<Reference>,
        }
        let wrong = |reason: String| malformed(format!("schema {id} of the registry"), reason);
        let mut bytes = found.schema.len();
        let mut references = Vec::new();
        let mut done: HashSet<Reference> = HashSet::new();
        let mut path = vec![Open { of: None, text: found.schema, left: found.references.into_iter() }];
        while let Some(open) = path.last_mut() {
            let Some(reference) = open.left.next() else {
                let Some(open) = path.pop() else { break };
                let Some(reference) = open.of else { return Ok(RegisteredSchema { text: open.text, references }) };
                done.insert(reference);
                references.push(open.text);
                continue;
            };
            if done.contains(&reference) {
                continue;
            }
            if path.iter().any(|open| open.of.as_ref() == Some(&reference)) {
                return Err(wrong(format!("{reference} refers to itself, by way of others")));
            }
            if done.len() + path.len() > MAX_REFERENCES {
                return Err(wrong(format!("it refers to more than {MAX_REFERENCES} others")));
            }
            let found = self.version(&reference).await?;
            bytes += found.schema.len();
            if bytes > MAX_BYTES {
                return Err(wrong(format!("with what it refers to it has more than {MAX_BYTES} bytes")));
            }
            path.push(Open { of: Some(reference), text: found.schema, left: found.references.into_iter() });
        }
        Err(wrong("it has no end".into()))
    }

    /// A version of a subject, also one that was deleted: schemas go on referring to it.
    async fn version(&self, reference: &Reference) -> EventResult<Found> {
        let version = reference.version.to_string();
        let path = ["subjects", &reference.subject, "versions", &version];
        let answer = self.ask(Method::GET, &path, None).await.map_err(registry)?;
        if answer.is_unknown() {
            return Err(malformed(
                reference.to_string(),
                "another schema refers to it, and the registry does not have it",
            ));
        }
        let asked = self.asked("asking for a schema that another refers to").subject(&reference.subject);
        answer.schema(&asked, || reference.to_string())
    }

    /// One question. Errors: those of the connection; what the registry says is the answer's.
    async fn ask(&self, method: Method, path: &[&str], body: Option<String>) -> Result<Answer> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if method == Method::GET && path.first() == Some(&"subjects") && path.len() > 1 {
            url.set_query(Some("deleted=true"));
        }
        let mut waits = AGAIN_AFTER.iter();
        loop {
            let mut request = self
                .http
                .request(method.clone(), url.clone())
                .header("accept", format!("{CONTENT_TYPE}, application/json"));
            if let Some(body) = &body {
                request = request.header("content-type", CONTENT_TYPE).body(body.clone());
            }
            let begun = Instant::now();
            let answer = Answer::read(request, MAX_BYTES).await;
            metrics::histogram!("lakeward_registry_request_seconds").record(begun.elapsed());
            metrics::counter!("lakeward_registry_requests_total", "outcome" => answer::outcome(&answer)).increment(1);
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // Asking twice is as good as once, a registration too.
            match waits.next().filter(|_| !error.is_timeout() && !answer::is_tls(&error)) {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => return Err(self.asked("asking it").unreachable(error)),
            }
        }
    }

    fn asked<'a>(&'a self, what: &'a str) -> Asked<'a> {
        Asked { what, registry: &self.shown, subject: None, id: None }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As a codec's error.
fn registry(error: Error) -> EventError {
    EventError::Registry(Box::new(error))
}

/// A URL without what nobody should read.
fn shown(url: &Url) -> String {
    let mut bare = url.clone();
    // Both fail for URLs without a host only, which have neither.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    let text = bare.as_str().trim_end_matches('/');
    if url.username().is_empty() && url.password().is_none() {
        return text.to_owned();
    }
    text.replacen("://", "://****@", 1)
}

/// Makes room for one more.
fn bounded<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) -> &mut HashMap<K, V> {
    if map.len() >= REMEMBERED {
        map.clear();
    }
    map
}

impl SchemaRegistry for RegistryClient {
    fn register(&self, subject: &str, schema: &str) -> EventResult<u32> {
        let key = (subject.to_owned(), schema.to_owned());
        if let Some(id) = self.known().ids.get(&key) {
            return Ok(*id);
        }
        let id = self.handle.block_on(self.register_now(subject, schema)).map_err(registry)?;
        tracing::info!(subject, id, registry = self.shown, "schema registered");
        bounded(&mut self.known().ids).insert(key, id);
        Ok(id)
    }

    fn schema(&self, id: u32) -> EventResult<Option<Arc<RegisteredSchema>>> {
        {
            let known = self.known();
            if let Some(schema) = known.schemas.get(&id) {
                return Ok(Some(schema.clone()));
            }
            if let Some(useless) = known.useless.get(&id).filter(|useless| useless.since.elapsed() < USELESS_FOR) {
                return useless.wrong.clone().map_or(Ok(None), |(what, reason)| Err(malformed(what, reason)));
            }
        }
        let found = self.handle.block_on(self.schema_now(id)).map(|found| found.map(Arc::new));
        let mut known = self.known();
        let wrong = match &found {
            Ok(Some(schema)) => {
                bounded(&mut known.schemas).insert(id, schema.clone());
                return found;
            }
            Ok(None) => None,
            Err(EventError::Malformed { what, reason }) => Some((what.clone(), reason.clone())),
            Err(_) => return found,
        };
        bounded(&mut known.useless).insert(id, Useless { since: Instant::now(), wrong });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        let show = |url: &str| shown(&Url::parse(url).expect("a URL"));
        assert_eq!(show("https://key:s3cret@h.example:8443/ccompat/"), "https://****@h.example:8443/ccompat");
        assert_eq!(show("https://key@h.example"), "https://****@h.example");
        assert_eq!(show("http://h.example:8081/"), "http://h.example:8081");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut map = HashMap::new();
        for n in 0..=REMEMBERED {
            bounded(&mut map).insert(n, ());
        }
        assert_eq!(map.len(), 1);
    }
}
