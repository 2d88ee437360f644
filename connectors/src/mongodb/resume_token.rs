//! Resume tokens: `change stream -> token -> checkpoint -> change stream`, and the cluster time that a token holds.

use lakeward_runtime::{Error, Result};
use mongodb::bson::{self, Bson, Timestamp, doc};
use mongodb::change_stream::event::ResumeToken;

/// The hexadecimal `_data` of a token.
pub fn data(token: &ResumeToken) -> Result<String> {
    let unknown = || Error::human("a resume token is not of the known form; is the server newer than 8?");
    match bson::to_bson(token).map_err(|e| unknown().source(e))? {
        Bson::Document(document) => document.get_str("_data").map(str::to_owned).map_err(|e| unknown().source(e)),
        _ => Err(unknown()),
    }
}

/// The token with this `_data`.
pub fn from_data(data: &str) -> Result<ResumeToken> {
    #[derive(serde::Deserialize)]
    struct Holder {
        token: ResumeToken,
    }
    bson::to_vec(&doc! { "token": { "_data": data } })
        .ok()
        .and_then(|bytes| bson::from_slice::<Holder>(&bytes).ok())
        .map(|holder| holder.token)
        .ok_or_else(|| Error::bug("a resume token could not be made").with("data", data))
}

/// Seconds in the upper, increment in the lower 32 bits: a timestamp in one number that orders as it does.
pub fn cluster_time(t: Timestamp) -> u64 {
    (u64::from(t.time) << 32) | u64::from(t.increment)
}

pub fn timestamp(cluster_time: u64) -> Timestamp {
    Timestamp { time: (cluster_time >> 32) as u32, increment: cluster_time as u32 }
}

/// The cluster time of a token: a KeyString that begins with type byte 0x82 (timestamp), seconds and increment, big-endian
/// (mongo: `src/mongo/db/pipeline/resume_token.cpp`, `src/mongo/bson/.../key_string`).
pub fn token_time(data: &str) -> Option<u64> {
    let time = data.strip_prefix("82")?.get(..16)?;
    u64::from_str_radix(time, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_its_cluster_time() {
        // as a server sent it for clusterTime (1700000000, 5)
        let data = "826553F100000000052B0229296E04";
        assert_eq!(token_time(data), Some((1_700_000_000 << 32) | 5));
        assert_eq!(token_time("81"), None);
        let again = from_data(data).and_then(|t| super::data(&t));
        assert_eq!(again.ok().as_deref(), Some(data));
    }
}
