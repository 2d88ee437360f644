//! What a registry answers: `HTTP status and body -> id, schema, or an error by what the caller does next`.

use std::fmt;

use lakeward_event::Error as EventError;
use reqwest::header::LOCATION;
use reqwest::{RequestBuilder, StatusCode};
use serde::Deserialize;
use url::Url;

use super::registry;
use crate::Error;

/// Characters of the registry's own message that are passed on: an incompatibility can quote whole schemas.
const MESSAGE: usize = 1000;

/// A whole answer.
pub(super) struct Answer {
    status: StatusCode,
    body: Vec<u8>,
    /// False: the body went on beyond the limit.
    whole: bool,
    /// Where a redirect leads.
    location: Option<String>,
}

/// A schema as the registry tells it.
pub(super) struct Found {
    pub schema: String,
    pub references: Vec<Reference>,
}

/// A version of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub(super) struct Reference {
    pub subject: String,
    pub version: i64,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {} of subject {} of the registry", self.version, self.subject)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemaBody {
    schema: String,
    /// Avro, where it is missing.
    schema_type: Option<String>,
    #[serde(default)]
    references: Option<Vec<Reference>>,
}

#[derive(Deserialize)]
struct IdBody {
    id: u32,
}

#[derive(Deserialize)]
struct ErrorBody {
    error_code: i64,
    #[serde(default)]
    message: String,
}

/// What was being asked when it failed.
pub(super) struct Asked<'a> {
    pub what: &'a str,
    /// Its address, without password.
    pub registry: &'a str,
    pub subject: Option<&'a str>,
    pub id: Option<u32>,
}

impl<'a> Asked<'a> {
    pub fn subject(self, subject: &'a str) -> Self {
        Self { subject: Some(subject), ..self }
    }
    pub fn id(self, id: u32) -> Self {
        Self { id: Some(id), ..self }
    }

    fn context(&self, error: Error) -> Error {
        let mut error = error.with("log.registry", self.registry);
        if let Some(subject) = self.subject {
            error = error.with("subject", subject);
        }
        if let Some(id) = self.id {
            error = error.with("id", id);
        }
        error
    }

    /// There was no answer.
    pub fn unreachable(&self, error: reqwest::Error) -> Error {
        let ours = if is_tls(&error) {
            Error::configuration(
                "no TLS connection to the schema registry: see whether its address in log.registry is to begin with https, \
                 and whether this system trusts the authority that signed its certificate (SSL_CERT_FILE names another one)",
            )
        } else if error.is_builder() {
            Error::configuration("log.registry is not an address that can be asked")
        } else if error.is_timeout() {
            Error::retry("the schema registry does not answer in time")
        } else {
            Error::retry(
                "the schema registry does not answer: is it running, and is log.registry its address (https, where it takes TLS only)?",
            )
        };
        // The URL has no password any more, but it is told without parameters already.
        self.context(ours.source(error.without_url()))
    }
}

/// Whether there is a server, but no TLS that both sides take: a retry will not cure it.
pub(super) fn is_tls(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        // rustls' own words: it is not among our dependencies, its errors come as I/O errors.
        if ["invalid peer certificate", "received corrupt message", "received fatal alert"]
            .iter()
            .any(|p| text.contains(p))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// How a request went, as its metric tells it.
pub(super) fn outcome(answer: &Result<Answer, reqwest::Error>) -> &'static str {
    match answer {
        Ok(answer) if answer.status.is_success() => "ok",
        // An id or subject that it does not have; often one that it will have in a moment.
        Ok(answer) if answer.is_unknown() => "not_found",
        Ok(answer) if is_passing(answer.status) => "unavailable",
        Ok(_) => "refused",
        Err(_) => "no_answer",
    }
}

/// Whether the registry cannot answer now, and may later.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error()
}

/// No record can be read by such a schema.
pub(super) fn malformed(what: String, reason: impl Into<String>) -> EventError {
    EventError::malformed(what, reason)
}

impl Answer {
    /// Sends a request and reads what comes back, up to `limit` bytes.
    pub async fn read(request: RequestBuilder, limit: usize) -> Result<Self, reqwest::Error> {
        let mut response = request.send().await?;
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        let (status, mut body, mut whole) = (response.status(), Vec::new(), true);
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > limit {
                whole = false;
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Self { status, body, whole, location })
    }

    fn error(&self) -> Option<ErrorBody> {
        serde_json::from_slice(&self.body).ok()
    }

    /// It went well, and is a list, if a long one.
    pub fn is_list(&self) -> bool {
        let is_list = || serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(&self.body).is_ok();
        self.status.is_success() && if self.whole { is_list() } else { self.body.starts_with(b"[") }
    }

    /// A registry says that it does not have this schema, subject or version. What is no registry says 404 as well.
    pub fn is_unknown(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
            && self.error().is_some_and(|error| (40_401..=40_499).contains(&error.error_code))
    }

    /// The id that a registration came to.
    pub fn id(&self) -> Option<u32> {
        self.is_complete().then(|| serde_json::from_slice::<IdBody>(&self.body).ok()).flatten().map(|body| body.id)
    }

    fn is_complete(&self) -> bool {
        self.status.is_success() && self.whole
    }

    /// The Avro schema. `name`: what the schema is called in an error of its own.
    pub fn schema(&self, asked: &Asked<'_>, name: impl Fn() -> String) -> Result<Found, EventError> {
        if self.status.is_success() && !self.whole {
            return Err(malformed(name(), format!("it has more than {} bytes", super::MAX_BYTES)));
        }
        let body: Option<SchemaBody> = self.is_complete().then(|| serde_json::from_slice(&self.body).ok()).flatten();
        let Some(body) = body else { return Err(registry(self.refused(asked))) };
        match body.schema_type.as_deref() {
            None | Some("AVRO") => {}
            Some(other) => return Err(malformed(name(), format!("it is of type {}, not AVRO", clip(other)))),
        }
        Ok(Found { schema: body.schema, references: body.references.unwrap_or_default() })
    }

    /// Why this is not what was asked for.
    pub fn refused(&self, asked: &Asked<'_>) -> Error {
        let Asked { what, registry, .. } = asked;
        let status = self.status.as_u16();
        let told = self.error();
        let code = told.as_ref().map_or(0, |told| told.error_code);
        let error = match (status, code) {
            (401, _) => Error::configuration(
                "the schema registry refused the credentials: put user and password into log.registry, \
                 as in https://USER:PASSWORD@HOST (with `${env:NAME}` in their place)",
            ),
            (403, _) => Error::configuration(
                "the schema registry does not allow this to the user of log.registry: grant it to read schemas, and to register them",
            ),
            (409, _) => Error::human(format!(
                "the schema registry refused a table's new schema: it is not compatible with the subject's older ones. If \
                 readers can do without that, PUT {{\"compatibility\": \"NONE\"}} to {registry}/config/{} and start again",
                asked.subject.unwrap_or_default()
            )),
            (422, 42_201 | 42_202) => Error::bug("the schema registry takes a schema of ours for no schema"),
            (422, _) => Error::human(format!("the schema registry refused, {what}")),
            _ if is_passing(self.status) => Error::retry(format!("the schema registry cannot answer now, {what}")),
            (300..=399, _) => {
                let to = self.location.as_deref().and_then(|l| Url::parse(l).ok()).map(|mut url| {
                    url.set_query(None);
                    super::shown(&url)
                });
                Error::configuration(
                    "log.registry leads elsewhere: name the address at which the registry itself answers",
                )
                .with("leads_to", to.unwrap_or_else(|| "?".into()))
            }
            _ => Error::configuration(
                "there is no schema registry at log.registry: the address must be the one below which /subjects is \
                 (that of Apicurio ends in /apis/ccompat/v7)",
            ),
        };
        let error = asked.context(error).with("status", status);
        match told {
            Some(told) if !told.message.is_empty() => error.with("answer", clip(&told.message)),
            _ => error,
        }
    }
}

fn clip(text: &str) -> String {
    let mut clipped: String = text.chars().take(MESSAGE).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    clipped.replace(['\n', '\r'], " ")
}
