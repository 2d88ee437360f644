//! Logical types: what a value means, whatever the source calls it. Source catalog -> `LogicalType` -> Arrow, Iceberg.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use serde::{Deserialize, Serialize};

/// The type of a column as Lakeward carries it. Every variant has exactly one Arrow type ([`LogicalType::arrow`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogicalType {
    Bool,
    /// 32 bits; int2 and int4.
    Int,
    /// 64 bits; int8 and oid.
    Long,
    Float,
    Double,
    /// `precision` 1 to 38, `0 <= scale <= precision`.
    Decimal {
        precision: u8,
        scale: i8,
    },
    /// Text in the source's own form.
    String,
    /// JSON text, as the source prints it.
    Json,
    /// 16 bytes.
    Uuid,
    Binary,
    /// Days since 1970-01-01; `infinity` is [`DATE_INFINITY`], `-infinity` its negative.
    Date,
    /// Microseconds since 1970-01-01T00:00:00, no zone; infinities as [`TIMESTAMP_INFINITY`].
    Timestamp,
    /// Microseconds since 1970-01-01T00:00:00Z.
    TimestampTz,
    /// A one-dimensional array whose first subscript is 1; elements can be null, and are never lists.
    List(Box<LogicalType>),
}

/// PostgreSQL's `infinity` as a date; DuckDB reads the same value so.
pub const DATE_INFINITY: i32 = i32::MAX;
/// PostgreSQL's `infinity` as a timestamp; DuckDB reads the same value so.
pub const TIMESTAMP_INFINITY: i64 = i64::MAX;
/// The name of a list's element field, Iceberg's and Parquet's convention.
pub const LIST_ELEMENT: &str = "element";

impl LogicalType {
    /// The one Arrow type of this logical type. Timestamps with a zone are in `UTC`.
    pub fn arrow(&self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int32,
            Self::Long => DataType::Int64,
            Self::Float => DataType::Float32,
            Self::Double => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
            Self::String | Self::Json => DataType::Utf8,
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Binary => DataType::Binary,
            Self::Date => DataType::Date32,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::List(element) => DataType::List(Arc::new(Field::new(LIST_ELEMENT, element.arrow(), true))),
        }
    }
}
