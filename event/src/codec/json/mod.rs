//! The `json` codec: one record per change, in the shape of Debezium's envelope, with or without its inlined schema.
//!
//! `ChangeBatch -> JsonEncoder -> records -> log -> records -> JsonDecoder -> ChangeBatch`, exactly the same batch.
//!
//! # Key
//! `{"column":value,…}` of the key columns, in key order; of the old row for a delete. Null where the table has no key, and
//! for a truncate. MongoDB: `{"id":"<text of _id>"}`.
//!
//! # Value
//! ```json
//! {"before":null,"after":{"id":1,"price":"12.30"},"source":{"version":"0.1.0","connector":"postgresql","name":"users",
//! "ts_ms":1700000000000,"ts_us":1700000000000123,"snapshot":"false","db":"users","schema":"public","table":"orders",
//! "txId":740,"lsn":24023128},"transaction":null,"op":"c","ts_ms":1700000000456}
//! ```
//! `ts_ms` of the envelope is the encoder's clock, and is not read back. Values of columns, exact in both directions:
//!
//! | logical type | JSON |
//! |---|---|
//! | bool; int, long | literal; number |
//! | float, double | number of the fewest digits that read back the same; `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | decimal | string, as the server prints it: `"12.30"` |
//! | string, json, uuid | string |
//! | binary | string, base64 |
//! | date | number of days since 1970-01-01; infinities are the largest value and its negative |
//! | timestamp | number of microseconds; infinities likewise |
//! | timestamptz | string `2020-01-01T00:00:00.123456Z`, `-0043-03-15T…` for 44 BC, `infinity`, `-infinity` |
//! | list | array |
//!
//! A column that the source left out is `"__debezium_unavailable_value"` in `after`, or what Debezium writes in its place for
//! the type ([`connect`]); the header says so without ambiguity. A create that is the second half of a key change has the old
//! key in `before`.
//!
//! MongoDB: `after` and `before` are strings that hold canonical Extended JSON; `updateDescription` is the patch as it is.
//! `source` has `db`, `collection`, and the cluster time as `clusterTime` (seconds) and `ord` (increment); `txId` is a
//! string of hexadecimal digits.
//!
//! # With schemas
//! Key and value each are `{"schema":…,"payload":…}`, the payload as above but for MongoDB: `id` of the key is `_id` as Extended
//! JSON, `updateDescription` has Debezium's form, and `patch` beside it is the exact one. The decoder takes either form, record by
//! record. The partition is that of the key without schema.
//!
//! # Header `lakeward`
//! `version,sequence` or `version,sequence,unchanged,rest`: the schema's version, the publisher's counter, the bitmap of
//! columns left out (hexadecimal, or `-`), and a JSON object, perhaps empty, of what is rare: `misfits`, a list of `[side, column, text]`, and
//! `ids`, the `_id` of `after` and of `before` (false: no such row) where they are not what key and `op` say.
//!
//! # Layout
//! - [`encode`], [`cells`]: columns to text
//! - [`connect`]: the schemas, and what they ask of values
//! - [`decode`], [`columns`]: text to columns
//! - [`header`]: the record header's form
//! - [`scan`], [`text`]: JSON without types, and values without JSON

pub(in crate::codec) mod cells;
pub(in crate::codec) mod columns;
pub(in crate::codec) mod connect;
pub(in crate::codec) mod decode;
pub(in crate::codec) mod encode;
pub(in crate::codec) mod header;
pub(crate) mod scan;
pub(crate) mod text;

#[cfg(test)]
mod tests;

pub use decode::JsonDecoder;
pub use encode::JsonEncoder;

/// What stands for a value that the source left out; Debezium's default.
pub const UNAVAILABLE: &str = "__debezium_unavailable_value";
