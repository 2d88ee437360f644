//! Logical types to Iceberg's, Iceberg schemas to Arrow's.
//!
//! `LogicalType -> iceberg Type -> Arrow schema of data files`; the Arrow type is the one [`LogicalType::arrow`] names, so that
//! columns of a change go into a data file as they are.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema as ArrowSchema, SchemaRef, TimeUnit};
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::{ListType, NestedField, PrimitiveType, Schema, Type};
use lakeward_event::LogicalType;
use lakeward_runtime::{Error, Result};

use crate::errors;

/// The Iceberg type of a logical type; `next_id` gives the field id of a list's element.
pub fn iceberg_type(ty: &LogicalType, next_id: &mut dyn FnMut() -> i32) -> Result<Type> {
    let primitive = match ty {
        LogicalType::Bool => PrimitiveType::Boolean,
        LogicalType::Int => PrimitiveType::Int,
        LogicalType::Long => PrimitiveType::Long,
        LogicalType::Float => PrimitiveType::Float,
        LogicalType::Double => PrimitiveType::Double,
        LogicalType::Decimal { precision, scale } => {
            let scale = u32::try_from(*scale).ok().filter(|s| *s <= u32::from(*precision));
            let (1..=38, Some(scale)) = (*precision, scale) else {
                return Err(Error::bug("a decimal that Iceberg cannot hold").with("type", format!("{ty:?}")));
            };
            PrimitiveType::Decimal { precision: u32::from(*precision), scale }
        }
        LogicalType::String | LogicalType::Json => PrimitiveType::String,
        LogicalType::Uuid => PrimitiveType::Uuid,
        LogicalType::Binary => PrimitiveType::Binary,
        LogicalType::Date => PrimitiveType::Date,
        LogicalType::Timestamp => PrimitiveType::Timestamp,
        LogicalType::TimestampTz => PrimitiveType::Timestamptz,
        LogicalType::List(element) => {
            let id = next_id();
            let element = iceberg_type(element, next_id)?;
            return Ok(Type::List(ListType::new(NestedField::list_element(id, element, false).into())));
        }
    };
    Ok(Type::Primitive(primitive))
}

/// The Arrow schema of an Iceberg schema: field ids as `PARQUET:field_id` metadata, `Utf8`, `Binary`, `FixedSizeBinary(16)` for
/// uuid, timestamps with a zone in `UTC` (as [`LogicalType::arrow`]; the iceberg crate says `+00:00`).
pub fn arrow_schema(schema: &Schema) -> Result<SchemaRef> {
    let theirs =
        schema_to_arrow_schema(schema).map_err(|e| errors::iceberg(e, "making the Arrow schema of a table"))?;
    let fields: Vec<FieldRef> = theirs.fields().iter().map(ours).collect();
    Ok(Arc::new(ArrowSchema::new(fields)))
}

fn ours(field: &FieldRef) -> FieldRef {
    let ty = match field.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        }
        // The canonical form; the iceberg crate uses large offsets.
        DataType::LargeBinary => DataType::Binary,
        DataType::List(element) => DataType::List(ours(element)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(ours).collect()),
        DataType::Map(entries, sorted) => DataType::Map(ours(entries), *sorted),
        same => same.clone(),
    };
    Arc::new(Field::clone(field).with_data_type(ty))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_column_has_one_arrow_type_from_wire_to_file() {
        let all = [
            LogicalType::Bool,
            LogicalType::Int,
            LogicalType::Long,
            LogicalType::Float,
            LogicalType::Double,
            LogicalType::Decimal { precision: 38, scale: 10 },
            LogicalType::String,
            LogicalType::Json,
            LogicalType::Uuid,
            LogicalType::Binary,
            LogicalType::Date,
            LogicalType::Timestamp,
            LogicalType::TimestampTz,
            LogicalType::List(Box::new(LogicalType::TimestampTz)),
        ];
        let mut next = 100;
        let mut next_id = || {
            next += 1;
            next
        };
        for ty in &all {
            let field = NestedField::optional(1, "c", iceberg_type(ty, &mut next_id).unwrap());
            let schema = Schema::builder().with_fields([field.into()]).build().unwrap();
            let arrow = arrow_schema(&schema).unwrap();
            assert!(arrow.field(0).data_type().equals_datatype(&ty.arrow()), "{ty:?}: {:?}", arrow.field(0));
            assert_eq!(arrow.field(0).metadata()["PARQUET:field_id"], "1");
        }
        let scale = LogicalType::Decimal { precision: 3, scale: 4 };
        assert!(iceberg_type(&scale, &mut next_id).is_err());
    }
}
