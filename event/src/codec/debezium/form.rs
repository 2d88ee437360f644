//! What an inlined schema declares: `{"type": "int64", "name": "io.debezium.time.MicroTimestamp", …} -> logical type, and the
//! form in which its values travel`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::codec::json::text::write_string;
use crate::types::LogicalType;

/// A schema of Kafka Connect, as JsonConverter inlines it.
#[derive(Debug, Deserialize)]
pub(super) struct ConnectSchema {
    #[serde(rename = "type")]
    ty: String,
    name: Option<String>,
    parameters: Option<BTreeMap<String, String>>,
    field: Option<String>,
    #[serde(default)]
    fields: Vec<ConnectSchema>,
    items: Option<Box<ConnectSchema>>,
}

/// How a value is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Form {
    /// As its JSON says: a literal, a number, text, base64 for bytes, text or any JSON for JSON. All there is without a schema.
    Plain,
    /// Days since 1970, with Debezium's several infinities.
    Date,
    /// ISO 8601 with or without a `Z` behind.
    IsoDate,
    IsoTime,
    IsoTimestamp,
    /// Since midnight, so many of them in a second.
    Time(i64),
    ZonedTime,
    /// Since 1970, so many of them in a second.
    Timestamp(i64),
    Interval,
    /// Base64 of a two's complement number, or a number, or its text.
    Decimal {
        scale: i32,
    },
    /// `{"scale": …, "value": …}`
    VariableDecimal,
    /// Base64 of so many bits.
    Bits(usize),
    Point,
    Line,
    Circle,
    Shape,
    List(Box<Form>),
}

/// A field as it is declared.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub ty: LogicalType,
    pub form: Form,
    /// For people: `int32`, `io.debezium.time.Date`.
    pub source_type: String,
}

/// A row's field, in the order of the schema.
#[derive(Debug)]
pub(super) struct DeclaredField {
    pub name: String,
    /// `"name":` as it stands in a record.
    pub json_name: Vec<u8>,
    pub declared: Declared,
}

/// What a schema says about a record.
#[derive(Debug)]
pub(super) struct Declaration {
    /// The fields of `after`, or of the record itself where it is a row.
    pub fields: Vec<DeclaredField>,
}

impl Declaration {
    /// Reads the text of a schema; None: it is none.
    pub fn parse(schema: &[u8]) -> Option<Self> {
        let schema: ConnectSchema = serde_json::from_slice(schema).ok()?;
        let named = |name: &str| schema.fields.iter().find(|f| f.field.as_deref() == Some(name));
        let envelope = named("op").is_some() && named("source").is_some();
        let row = if envelope { named("after").or_else(|| named("before")) } else { Some(&schema) };
        let fields = row.map(|row| row.fields.iter().filter_map(DeclaredField::of).collect());
        Some(Self { fields: fields.unwrap_or_default() })
    }
}

impl DeclaredField {
    fn of(schema: &ConnectSchema) -> Option<Self> {
        let name = schema.field.clone()?;
        let mut json_name = Vec::new();
        write_string(&mut json_name, &name);
        json_name.push(b':');
        Some(Self { name, json_name, declared: declared(schema) })
    }
}

const MILLIS: i64 = 1_000;
const MICROS: i64 = 1_000_000;
const NANOS: i64 = 1_000_000_000;

fn declared(schema: &ConnectSchema) -> Declared {
    use LogicalType as T;
    let parameter = |name: &str| schema.parameters.as_ref().and_then(|p| p.get(name)?.parse::<i32>().ok());
    let mut source_type = schema.name.clone().unwrap_or_else(|| schema.ty.clone());
    let (ty, form) = match schema.name.as_deref().unwrap_or_default() {
        "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => (T::Date, Form::Date),
        "io.debezium.time.IsoDate" => (T::Date, Form::IsoDate),
        // A time is text in the lake: 24:00:00 is one, and not every engine reads a time.
        "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => (T::String, Form::Time(MILLIS)),
        "io.debezium.time.MicroTime" => (T::String, Form::Time(MICROS)),
        "io.debezium.time.NanoTime" => (T::String, Form::Time(NANOS)),
        "io.debezium.time.IsoTime" => (T::String, Form::IsoTime),
        "io.debezium.time.ZonedTime" => (T::String, Form::ZonedTime),
        "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
            (T::Timestamp, Form::Timestamp(MILLIS))
        }
        "io.debezium.time.MicroTimestamp" => (T::Timestamp, Form::Timestamp(MICROS)),
        "io.debezium.time.NanoTimestamp" => (T::Timestamp, Form::Timestamp(NANOS)),
        "io.debezium.time.IsoTimestamp" => (T::Timestamp, Form::IsoTimestamp),
        "io.debezium.time.ZonedTimestamp" => (T::TimestampTz, Form::Plain),
        "io.debezium.time.Interval" => (T::String, Form::Interval),
        "io.debezium.data.Uuid" => (T::Uuid, Form::Plain),
        "io.debezium.data.Json" => (T::Json, Form::Plain),
        "io.debezium.data.VariableScaleDecimal" => (T::String, Form::VariableDecimal),
        "org.apache.kafka.connect.data.Decimal" => {
            let scale = parameter("scale").unwrap_or(0);
            let precision = parameter("connect.decimal.precision");
            source_type = match precision {
                Some(precision) => format!("decimal({precision},{scale})"),
                None => format!("decimal with scale {scale}"),
            };
            let narrow = precision.filter(|p| (1..=38).contains(p) && (0..=*p).contains(&scale));
            let ty = match (narrow.and_then(|p| u8::try_from(p).ok()), i8::try_from(scale)) {
                (Some(precision), Ok(scale)) => T::Decimal { precision, scale },
                _ => T::String,
            };
            (ty, Form::Decimal { scale })
        }
        "io.debezium.data.Bits" => {
            let length = parameter("length").and_then(|l| usize::try_from(l).ok()).filter(|l| *l <= 1 << 27);
            match length {
                Some(length) => (T::String, Form::Bits(length)),
                None => (T::Binary, Form::Plain),
            }
        }
        "io.debezium.data.geometry.Point" => (T::String, Form::Point),
        "io.debezium.data.geometry.Line" => (T::String, Form::Line),
        "io.debezium.data.geometry.Circle" => (T::String, Form::Circle),
        "io.debezium.data.geometry.Geometry" => (T::String, Form::Shape),
        _ => match schema.ty.as_str() {
            "boolean" => (T::Bool, Form::Plain),
            "int8" | "int16" | "int32" => (T::Int, Form::Plain),
            "int64" => (T::Long, Form::Plain),
            "float" => (T::Float, Form::Plain),
            "double" => (T::Double, Form::Plain),
            "string" => (T::String, Form::Plain),
            "bytes" => (T::Binary, Form::Plain),
            "array" => match schema.items.as_deref().map(declared) {
                // No list of lists, and no list of what is text for want of a type.
                Some(items) if !matches!(items.ty, T::List(_)) && items.form != Form::Shape => {
                    source_type = format!("array of {}", items.source_type);
                    (T::List(Box::new(items.ty)), Form::List(Box::new(items.form)))
                }
                _ => (T::Json, Form::Plain),
            },
            // Structs, maps, and what is yet to be thought of: as it stands.
            _ => (T::Json, Form::Plain),
        },
    };
    Declared { ty, form, source_type }
}
