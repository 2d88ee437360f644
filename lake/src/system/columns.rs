//! Rows of the system tables to and from Arrow. The schemas are those of the documented surface: names, types and order.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, Int64Builder, ListBuilder, MapBuilder,
    MapFieldNames, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, FieldRef, Int32Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use iceberg::spec::{ListType, MapType, NestedField, PrimitiveType, Schema, Type};
use lakeward_runtime::{Error, Result};

use super::{CheckpointRow, DeadLetter, arrow_of};
use crate::table::Table;

const STRING: Type = Type::Primitive(PrimitiveType::String);
const LONG: Type = Type::Primitive(PrimitiveType::Long);
const INT: Type = Type::Primitive(PrimitiveType::Int);
const TIME: Type = Type::Primitive(PrimitiveType::Timestamptz);

pub(super) fn checkpoints() -> Result<Schema> {
    let converging = Type::List(ListType::new(NestedField::list_element(10, STRING, true).into()));
    let key = NestedField::map_key_element(11, STRING).into();
    let tables = Type::Map(MapType::new(key, NestedField::map_value_element(12, LONG, true).into()));
    let fields = [
        NestedField::required(1, "source", STRING),
        NestedField::required(2, "checkpoint", LONG),
        NestedField::required(3, "position", STRING),
        NestedField::required(4, "watermark_from", TIME),
        NestedField::required(5, "watermark", TIME),
        NestedField::required(6, "committed_at", TIME),
        NestedField::required(7, "converging", converging),
        NestedField::required(8, "complete", Type::Primitive(PrimitiveType::Boolean)),
        NestedField::required(9, "tables", tables),
    ];
    build(fields)
}

pub(super) fn dead_letters() -> Result<Schema> {
    let fields = [
        NestedField::required(1, "at", TIME),
        NestedField::required(2, "source", STRING),
        NestedField::required(3, "table", STRING),
        NestedField::optional(4, "column", STRING),
        NestedField::optional(5, "key", STRING),
        NestedField::optional(6, "position", STRING),
        NestedField::required(7, "topic", STRING),
        NestedField::required(8, "partition", INT),
        NestedField::required(9, "offset", LONG),
        NestedField::required(10, "error", STRING),
        NestedField::optional(11, "payload", STRING),
        NestedField::required(12, "attempt", INT),
    ];
    build(fields)
}

fn build<const N: usize>(fields: [NestedField; N]) -> Result<Schema> {
    let built = Schema::builder().with_fields(fields.into_iter().map(Arc::new)).build();
    built.map_err(|e| Error::bug("the schema of a system table").source(e))
}

fn batch(schema: SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(schema, columns).map_err(|e| Error::bug("making rows of a system table").source(e))
}

fn strings<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn optional<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

/// The element, or the key and value, of a nested column.
fn inner(schema: &SchemaRef, name: &str) -> Result<Vec<FieldRef>> {
    let missing =
        || Error::human("a system table lacks a column; was it changed by somebody else?").with("column", name);
    match schema.field_with_name(name).map_err(|_| missing())?.data_type() {
        DataType::List(element) => Ok(vec![element.clone()]),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => Ok(fields.to_vec()),
            _ => Err(missing()),
        },
        _ => Err(missing()),
    }
}

pub(super) fn encode_checkpoints(table: &Table, rows: &[CheckpointRow]) -> Result<RecordBatch> {
    let schema = arrow_of(table)?;
    let [element] = &inner(&schema, "converging")?[..] else { return Err(Error::bug("a list has one element field")) };
    let [key, value] = &inner(&schema, "tables")?[..] else { return Err(Error::bug("a map has a key and a value")) };
    let mut converging = ListBuilder::new(StringBuilder::new()).with_field(element.clone());
    let names = MapFieldNames { entry: "key_value".into(), key: key.name().clone(), value: value.name().clone() };
    let mut tables = MapBuilder::new(Some(names), StringBuilder::new(), Int64Builder::new())
        .with_keys_field(key.clone())
        .with_values_field(value.clone());
    for row in rows {
        for name in &row.converging {
            converging.values().append_value(name);
        }
        converging.append(true);
        for (name, snapshot) in &row.tables {
            tables.keys().append_value(name);
            tables.values().append_value(*snapshot);
        }
        tables.append(true).map_err(|e| Error::bug("making rows of a system table").source(e))?;
    }
    let columns: Vec<ArrayRef> = vec![
        strings(rows.iter().map(|r| r.source.as_str())),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.checkpoint))),
        strings(rows.iter().map(|r| r.position.as_str())),
        times(rows.iter().map(|r| r.watermark_from)),
        times(rows.iter().map(|r| r.watermark)),
        times(rows.iter().map(|r| r.committed_at)),
        Arc::new(converging.finish()),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.complete)))),
        Arc::new(tables.finish()),
    ];
    batch(schema, columns)
}

pub(super) fn encode_dead_letters(table: &Table, rows: &[DeadLetter]) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = vec![
        times(rows.iter().map(|r| r.at)),
        strings(rows.iter().map(|r| r.source.as_str())),
        strings(rows.iter().map(|r| r.table.as_str())),
        optional(rows.iter().map(|r| r.column.as_deref())),
        optional(rows.iter().map(|r| r.key.as_deref())),
        optional(rows.iter().map(|r| r.position.as_deref())),
        strings(rows.iter().map(|r| r.topic.as_str())),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.partition))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.offset))),
        strings(rows.iter().map(|r| r.error.as_str())),
        optional(rows.iter().map(|r| r.payload.as_deref())),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.attempt))),
    ];
    batch(arrow_of(table)?, columns)
}

/// The columns of a batch by name, with the types they must have. Other writers may have compacted the file.
struct Columns<'a>(&'a RecordBatch);

impl<'a> Columns<'a> {
    fn get(&self, name: &'static str) -> Result<&'a ArrayRef> {
        self.0.column_by_name(name).ok_or_else(|| malformed(name))
    }
    fn strings(&self, name: &'static str) -> Result<&'a StringArray> {
        self.get(name)?.as_string_opt::<i32>().ok_or_else(|| malformed(name))
    }
    fn longs(&self, name: &'static str) -> Result<&'a Int64Array> {
        self.get(name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| malformed(name))
    }
    fn ints(&self, name: &'static str) -> Result<&'a Int32Array> {
        self.get(name)?.as_primitive_opt::<Int32Type>().ok_or_else(|| malformed(name))
    }
    fn times(&self, name: &'static str) -> Result<&'a TimestampMicrosecondArray> {
        self.get(name)?.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| malformed(name))
    }
}

fn malformed(column: &'static str) -> Error {
    Error::human("a system table's column is missing or of another type").with("column", column)
}

fn text(array: &StringArray, row: usize) -> Option<String> {
    array.is_valid(row).then(|| array.value(row).to_owned())
}

pub(super) fn decode_checkpoints(batch: &RecordBatch) -> Result<Vec<CheckpointRow>> {
    let columns = Columns(batch);
    let (source, checkpoint, position) =
        (columns.strings("source")?, columns.longs("checkpoint")?, columns.strings("position")?);
    let (from, to, at) =
        (columns.times("watermark_from")?, columns.times("watermark")?, columns.times("committed_at")?);
    let converging = columns.get("converging")?.as_list_opt::<i32>().ok_or_else(|| malformed("converging"))?;
    let complete = columns.get("complete")?.as_boolean_opt().ok_or_else(|| malformed("complete"))?;
    let tables = columns.get("tables")?.as_map_opt().ok_or_else(|| malformed("tables"))?;
    let mut rows = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let names = converging.value(row);
        let names = names.as_string_opt::<i32>().ok_or_else(|| malformed("converging"))?;
        let entries = tables.value(row);
        let (Some(keys), Some(values)) =
            (entries.column(0).as_string_opt::<i32>(), entries.column(1).as_primitive_opt::<Int64Type>())
        else {
            return Err(malformed("tables"));
        };
        rows.push(CheckpointRow {
            source: source.value(row).to_owned(),
            checkpoint: checkpoint.value(row),
            position: position.value(row).to_owned(),
            watermark_from: from.value(row),
            watermark: to.value(row),
            committed_at: at.value(row),
            converging: names.iter().flatten().map(str::to_owned).collect(),
            complete: complete.value(row),
            tables: (0..entries.len()).map(|i| (keys.value(i).to_owned(), values.value(i))).collect(),
        });
    }
    Ok(rows)
}

pub(super) fn decode_dead_letters(batch: &RecordBatch) -> Result<Vec<DeadLetter>> {
    let columns = Columns(batch);
    let at = columns.times("at")?;
    let (source, table, topic) = (columns.strings("source")?, columns.strings("table")?, columns.strings("topic")?);
    let (column, key, position) = (columns.strings("column")?, columns.strings("key")?, columns.strings("position")?);
    let (error, payload) = (columns.strings("error")?, columns.strings("payload")?);
    let (partition, offset, attempt) = (columns.ints("partition")?, columns.longs("offset")?, columns.ints("attempt")?);
    let letter = |row| DeadLetter {
        at: at.value(row),
        source: source.value(row).to_owned(),
        table: table.value(row).to_owned(),
        column: text(column, row),
        key: text(key, row),
        position: text(position, row),
        topic: topic.value(row).to_owned(),
        partition: partition.value(row),
        offset: offset.value(row),
        error: error.value(row).to_owned(),
        payload: text(payload, row),
        attempt: attempt.value(row),
    };
    Ok((0..batch.num_rows()).map(letter).collect())
}
