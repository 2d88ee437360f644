//! The change stream: `server -> raw event -> Event`, borrowed from the event's bytes.

use std::time::Duration;

use bson::raw::RawDocument;
use bson::{RawBsonRef, RawDocumentBuf};
use lakeward_event::Op;
use lakeward_runtime::{Error, Result};
use mongodb::Client;
use mongodb::bson::doc;
use mongodb::change_stream::ChangeStream;
use mongodb::options::FullDocumentType;
use xxhash_rust::xxh3::xxh3_64;

use super::builder::unreadable;
use super::client::{bson_time, error, version};
use super::resume_token::{cluster_time, from_data};

/// How long the server may hold an empty answer back: how late a tick can be noticed.
const AWAIT: Duration = Duration::from_millis(100);

/// Opens the stream of one database, or of the deployment, after the token, or where there is none at the cluster time.
pub async fn open(
    client: &Client,
    database: Option<&str>,
    token: &str,
    at: u64,
) -> Result<ChangeStream<RawDocumentBuf>> {
    let version = version(client).await?;
    let database = database.map(|name| client.database(name));
    let watch = database.as_ref().map_or_else(|| client.watch(), |database| database.watch());
    let mut watch = watch.full_document(FullDocumentType::WhenAvailable).max_await_time(AWAIT).batch_size(10_000);
    if splits_large_events(version) {
        watch = watch.pipeline([doc! { "$changeStreamSplitLargeEvent": {} }]);
    }
    if version >= (6, 1, 0) {
        // Only so does a description say what its dots mean.
        watch = watch.show_expanded_events(true);
    }
    let watch = if token.is_empty() {
        watch.start_at_operation_time(bson_time(at))
    } else {
        watch.start_after(from_data(token)?)
    };
    Ok(watch.await.map_err(|e| error("opening the change stream", e))?.with_type())
}

/// 6.0.9 and later, but for the rapid releases 6.1 to 6.3: an event above 16 MB comes in fragments instead of ending the stream.
fn splits_large_events(version: (u32, u32, u32)) -> bool {
    version >= (7, 0, 0) || ((6, 0, 9)..(6, 1, 0)).contains(&version)
}

/// Joins a fragment of a large event to those before it. None: there are more to come.
pub fn join(parts: &mut Option<RawDocumentBuf>, fragment: RawDocumentBuf) -> Result<Option<RawDocumentBuf>> {
    let Some(split) = fragment.get("splitEvent").map_err(unreadable)?.and_then(|s| s.as_document()) else {
        return Ok(Some(fragment));
    };
    let number = |name| split.get_i32(name).map_err(|e| Error::retry("a fragment of an event has no number").source(e));
    let (number, of) = (number("fragment")?, number("of")?);
    let whole = match parts {
        Some(whole) if number > 1 => whole,
        None if number > 1 => return Err(Error::retry("an event begins with its second fragment")),
        _ => parts.insert(RawDocumentBuf::new()),
    };
    for element in fragment.iter() {
        let (name, value) = element.map_err(unreadable)?;
        // The last fragment's token is that of the whole event.
        if name != "splitEvent" && (name != "_id" || number == of) {
            whole.append_ref(name, value);
        }
    }
    Ok(if number == of { parts.take() } else { None })
}

/// The resume token of an event.
pub fn token(raw: &RawDocument) -> Option<&str> {
    raw.get_document("_id").ok()?.get_str("_data").ok()
}

/// The database whose stream this is was dropped: the stream ends here, and one that is opened after this event goes on.
pub fn ends_stream(raw: &RawDocument) -> bool {
    raw.get_str("operationType") == Ok("invalidate")
}

/// What an event says happened.
#[derive(Debug)]
pub enum Change<'a> {
    /// Insert, replace, or an update with its post-image.
    Document {
        op: Op,
        document: &'a RawDocument,
    },
    Patch {
        id: RawBsonRef<'a>,
        description: &'a RawDocument,
    },
    Delete {
        id: RawBsonRef<'a>,
    },
    Drop,
    Rename {
        to: (&'a str, &'a str),
    },
}

/// One event of interest.
#[derive(Debug)]
pub struct Event<'a> {
    pub database: &'a str,
    pub collection: &'a str,
    pub cluster_time: u64,
    /// Microseconds since 1970, cut to milliseconds by the server.
    pub wall: i64,
    pub tx: Option<u64>,
    pub change: Change<'a>,
}

impl<'a> Event<'a> {
    /// Reads an event; None for kinds that change no row.
    pub fn parse(raw: &'a RawDocument) -> Result<Option<Self>> {
        let missing = |name: &str| Error::retry(format!("a change event has no {name}"));
        let kind = raw.get_str("operationType").map_err(|_| missing("operationType"))?;
        if !matches!(kind, "insert" | "replace" | "update" | "delete" | "drop" | "rename") {
            tracing::debug!(kind, "change event passed over");
            return Ok(None);
        }
        let (database, collection) = namespace(raw, "ns").ok_or_else(|| missing("ns"))?;
        let time = raw.get_timestamp("clusterTime").map_err(|_| missing("clusterTime"))?;
        // Before 6.0 there is no wallTime; the cluster time's seconds are the primary's clock.
        let wall =
            raw.get_datetime("wallTime").map_or(i64::from(time.time) * 1_000_000, |t| t.timestamp_millis() * 1000);
        let document = |name: &str| raw.get(name).ok().flatten().and_then(|v| v.as_document());
        let id = || match document("documentKey") {
            Some(key) => key.get("_id").map_err(unreadable)?.ok_or_else(|| missing("documentKey._id")),
            None => Err(missing("documentKey")),
        };
        let change = match kind {
            "insert" | "replace" => Change::Document {
                op: if kind == "insert" { Op::Create } else { Op::Update },
                document: document("fullDocument").ok_or_else(|| missing("fullDocument"))?,
            },
            "update" => match document("fullDocument") {
                Some(document) => Change::Document { op: Op::Update, document },
                None => Change::Patch {
                    id: id()?,
                    description: document("updateDescription").ok_or_else(|| missing("updateDescription"))?,
                },
            },
            "delete" => Change::Delete { id: id()? },
            "drop" => Change::Drop,
            _ => Change::Rename { to: namespace(raw, "to").ok_or_else(|| missing("to"))? },
        };
        Ok(Some(Self { database, collection, cluster_time: cluster_time(time), wall, tx: transaction(raw), change }))
    }
}

fn namespace<'a>(raw: &'a RawDocument, field: &str) -> Option<(&'a str, &'a str)> {
    let ns = raw.get_document(field).ok()?;
    Some((ns.get_str("db").ok()?, ns.get_str("coll").ok()?))
}

/// Session id and transaction number in one number.
fn transaction(raw: &RawDocument) -> Option<u64> {
    let number = raw.get_i64("txnNumber").ok()?;
    let session = raw.get_document("lsid").ok()?;
    Some(xxh3_64(session.as_bytes()) ^ number as u64)
}

/// Whether a description names a path of which nobody can tell if it is one: before 6.1 `{$set: {"a.b": 5}}` and `$setField`
/// of a field that is called `a.b` give the same description and different documents.
pub fn is_ambiguous(description: &RawDocument) -> Result<bool> {
    if description.get("disambiguatedPaths").map_err(unreadable)?.is_some() {
        return Ok(false);
    }
    if let Ok(fields) = description.get_document("updatedFields") {
        for field in fields.iter() {
            if field.map_err(unreadable)?.0.contains('.') {
                return Ok(true);
            }
        }
    }
    if let Ok(fields) = description.get_array("removedFields") {
        for field in fields {
            if field.map_err(unreadable)?.as_str().is_some_and(|f| f.contains('.')) {
                return Ok(true);
            }
        }
    }
    if let Ok(arrays) = description.get_array("truncatedArrays") {
        for array in arrays {
            let array = array.map_err(unreadable)?;
            if array.as_document().and_then(|a| a.get_str("field").ok()).is_some_and(|f| f.contains('.')) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn fragments_become_one_event() {
        let mut parts = None;
        let whole = rawdoc! { "_id": { "_data": "0" }, "a": 1 };
        assert_eq!(join(&mut parts, whole.clone()).unwrap(), Some(whole));
        let first = rawdoc! { "_id": { "_data": "1" }, "splitEvent": { "fragment": 1, "of": 2 }, "a": 1 };
        let second = rawdoc! { "_id": { "_data": "2" }, "splitEvent": { "fragment": 2, "of": 2 }, "b": { "c": 2 } };
        assert_eq!(join(&mut parts, first.clone()).unwrap(), None);
        let joined = join(&mut parts, second.clone()).unwrap().unwrap();
        assert_eq!(joined, rawdoc! { "a": 1, "_id": { "_data": "2" }, "b": { "c": 2 } });
        assert_eq!(token(&joined), Some("2"));
        assert!(join(&mut parts, second).is_err());
    }

    #[test]
    fn only_dotted_paths_without_their_meaning_are_ambiguous() {
        let plain = rawdoc! { "updatedFields": { "a": 1 }, "removedFields": ["b"], "truncatedArrays": [{ "field": "c", "newSize": 1 }] };
        assert!(!is_ambiguous(&plain).unwrap());
        for dotted in [
            rawdoc! { "updatedFields": { "x": 0, "a.b": 1 } },
            rawdoc! { "removedFields": ["a.0"] },
            rawdoc! { "truncatedArrays": [{ "field": "c.d", "newSize": 1 }] },
        ] {
            assert!(is_ambiguous(&dotted).unwrap());
        }
        let said = rawdoc! { "updatedFields": { "a.b": 1 }, "disambiguatedPaths": { "a.b": ["a.b"] } };
        assert!(!is_ambiguous(&said).unwrap());
    }
}
