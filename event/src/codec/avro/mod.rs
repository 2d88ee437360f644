//! The `avro` codec: one record per change, in the shape of Debezium's envelope as Kafka Connect's `AvroConverter` writes it, with
//! schemas in a Confluent-compatible registry.
//!
//! `ChangeBatch -> AvroEncoder -> records -> log -> records -> AvroDecoder -> ChangeBatch`, exactly the same batch.
//!
//! # Record
//! Key and value are in Confluent's wire format: a zero byte, the schema's id (four bytes, the highest first), Avro's binary
//! form. A row's partition is that of its key in the `json` form, whatever the codec; a truncate is in every partition.
//! - **Key**: a record `Key` of the key columns, in key order; of the old row for a delete. Null where the table has no key, and
//!   for a truncate. MongoDB: `id`, the text of `_id` as Extended JSON ([`documents`]).
//! - **Value**: a record `Envelope` with `before`, `after` (both `Value`, the row, or null), `source`, `transaction` (always
//!   null), `op`, `ts_ms` (the encoder's clock, not read back). MongoDB: `after` and `before` are texts of canonical Extended
//!   JSON, `patch` is the exact text of the patch, and `updateDescription` Debezium's record of it. The fields of `source` are those of [`json`](super::json), which see.
//! - **Header** `lakeward`: `avro,` and then the header of [`json`](super::json). What a table's record has no place for, the patch of
//!   a table that is not a collection, would stand there too.
//!
//! # Schemas
//! Subjects are `<topic>-key` and `<topic>-value`. The namespace is the topic, so that the value's schema is called
//! `<topic>.Envelope`, which Debezium's transforms look for. Names that Avro does not take are changed ([`names`]); a field's
//! real column is then its property [`COLUMN`], a schema's real topic [`TOPIC`].
//!
//! Every column, the key's too, is a union of null and its type with the default null. So columns may come and go, in the order of
//! the day, and each version can be read by the one before and the one after. Types:
//!
//! | logical type | Avro |
//! |---|---|
//! | bool; int, long; float, double | `boolean`; `int`, `long`; `float`, `double`, all their values |
//! | decimal | `bytes` as `decimal` |
//! | string; json | `string`; as `io.debezium.data.Json` |
//! | uuid | `string` as `uuid` |
//! | binary | `bytes` |
//! | date | `int` as `date`; infinities are the largest value and its negative |
//! | timestamp | `long` as `local-timestamp-micros` and `io.debezium.time.MicroTimestamp`; infinities likewise |
//! | timestamptz | `long` as `timestamp-micros`; infinities likewise |
//! | list | `array` of nullable items |
//!
//! A column that the source left out is `__debezium_unavailable_value` where it is of texts or bytes (a list: an array of it; of
//! numbers, its bytes; of uuids, the UUID of that name), and null otherwise. The header says so without ambiguity.
//!
//! # Reading
//! The decoder reads by the schema whose id the record has, and finds our columns in it by name: fields may be in another order, be
//! missing (null) or unknown (skipped), be unions either way round, and be defined in schemas that theirs refers to; an `int` is
//! taken for a long and a `float` for a double. Any other type is refused rather than guessed.
//!
//! Why not `arrow-avro`: `docs/adr/0008-avro-records.md`.
//!
//! # Layout
//! - [`names`], [`schema`]: a table as schemas
//! - [`encode`], [`cells`], [`documents`]: columns to data
//! - [`registered`], [`plan`], [`decode`]: data to columns, by any schema, trusting none of it
//! - [`wire`]: Avro's binary form

mod cells;
mod decode;
mod documents;
mod encode;
mod names;
mod plan;
mod registered;
mod schema;
mod wire;

#[cfg(test)]
mod tests;

pub use decode::AvroDecoder;
pub use encode::AvroEncoder;

/// What the header of each of our records starts with.
pub(super) const NAME: &str = "avro";

/// Property of a field: the column's name, where the field's is another.
const COLUMN: &str = "lakeward.column";
/// Property of a record: the topic's name, where the namespace is another.
const TOPIC: &str = "lakeward.topic";
