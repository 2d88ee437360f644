//! The views of schema `lakeward`: newest checkpoint rows, configuration, catalog -> `freshness`, `tables`, `sources`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use lakeward_lake::Table;
use lakeward_lake::system::CheckpointRow;
use lakeward_runtime::config::SourceKind;
use lakeward_runtime::{Error, Result};

use crate::cut::{Cut, source_of_namespace};

pub use lakeward_lake::system::NAMESPACE;

/// Names of the views; `checkpoints` and `dead_letters` beside them are Iceberg tables.
pub const VIEWS: [&str; 3] = ["freshness", "sources", "tables"];

/// The columns of a view.
pub fn view_schema(name: &str) -> Option<SchemaRef> {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let long = |name: &str| Field::new(name, DataType::Int64, true);
    let time = |name: &str| Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true);
    let seconds = |name: &str| Field::new(name, DataType::Float64, true);
    let texts = |name: &str| Field::new(name, DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), true);
    let fields = match name {
        // How old each source is in the lake, and what the present statement (else the last one that read tables) reads.
        "freshness" => vec![
            text("source", false),
            long("checkpoint"),
            time("watermark_from"),
            time("watermark"),
            time("committed_at"),
            seconds("age"),
            texts("converging"),
            time("cut"),
            long("cut_checkpoint"),
        ],
        "sources" => vec![
            text("source", false),
            text("kind", true),
            long("checkpoint"),
            text("position", true),
            time("watermark"),
            time("committed_at"),
            seconds("age"),
            long("tables"),
        ],
        "tables" => vec![
            text("namespace", false),
            text("name", false),
            text("source", true),
            long("snapshot_id"),
            Field::new("converging", DataType::Boolean, true),
            long("rows"),
            long("data_files"),
            long("delete_files"),
            time("committed_at"),
        ],
        _ => return None,
    };
    Some(Arc::new(Schema::new(fields)))
}

/// What the views are made of.
pub struct Facts<'a> {
    /// Now, microseconds since 1970.
    pub now: i64,
    pub configured: &'a [(String, SourceKind)],
    pub newest: &'a HashMap<String, CheckpointRow>,
    /// What `freshness` calls the cut.
    pub read: Option<&'a Cut>,
    /// Every source's table at its newest metadata; only for `tables`.
    pub tables: &'a [Table],
}

/// The rows of a view.
pub fn view(name: &str, facts: &Facts<'_>) -> Result<MemTable> {
    let Some(schema) = view_schema(name) else { return Err(Error::bug("no such view").with("view", name)) };
    let columns = match name {
        "freshness" => freshness(facts),
        "sources" => sources(facts),
        _ => tables(facts),
    };
    let batch =
        RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|e| Error::bug("columns of a view").source(e))?;
    MemTable::try_new(schema, vec![vec![batch]]).map_err(crate::engine::from_datafusion)
}

fn times() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_timezone("UTC")
}

fn age(now: i64, row: Option<&CheckpointRow>) -> Option<f64> {
    row.map(|r| now.saturating_sub(r.watermark) as f64 / 1e6)
}

/// All sources, configured or only known from their rows.
fn names<'a>(facts: &Facts<'a>) -> BTreeMap<&'a str, (Option<SourceKind>, Option<&'a CheckpointRow>)> {
    let mut names: BTreeMap<&str, (Option<SourceKind>, Option<&CheckpointRow>)> = BTreeMap::new();
    for (name, kind) in facts.configured {
        names.entry(name).or_default().0 = Some(*kind);
    }
    for (name, row) in facts.newest {
        names.entry(name).or_default().1 = Some(row);
    }
    names
}

fn freshness(facts: &Facts<'_>) -> Vec<ArrayRef> {
    let (mut source, mut checkpoint) = (StringBuilder::new(), Int64Builder::new());
    let (mut from, mut watermark, mut committed, mut cut) = (times(), times(), times(), times());
    let (mut ages, mut converging, mut cut_checkpoint) =
        (Float64Builder::new(), ListBuilder::new(StringBuilder::new()), Int64Builder::new());
    for (name, (_, row)) in names(facts) {
        source.append_value(name);
        checkpoint.append_option(row.map(|r| r.checkpoint));
        from.append_option(row.map(|r| r.watermark_from));
        watermark.append_option(row.map(|r| r.watermark));
        committed.append_option(row.map(|r| r.committed_at));
        ages.append_option(age(facts.now, row));
        converging.append_option(row.map(|r| r.converging.iter().map(Some).collect::<Vec<_>>()));
        let read = facts.read.and_then(|c| c.sources.iter().find(|s| s.source == name).map(|s| (c.at, s.checkpoint)));
        cut.append_option(read.and_then(|r| r.0));
        cut_checkpoint.append_option(read.map(|r| r.1));
    }
    vec![
        Arc::new(source.finish()),
        Arc::new(checkpoint.finish()),
        Arc::new(from.finish()),
        Arc::new(watermark.finish()),
        Arc::new(committed.finish()),
        Arc::new(ages.finish()),
        Arc::new(converging.finish()),
        Arc::new(cut.finish()),
        Arc::new(cut_checkpoint.finish()),
    ]
}

fn sources(facts: &Facts<'_>) -> Vec<ArrayRef> {
    let (mut source, mut kinds, mut position) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let (mut checkpoint, mut count, mut ages) = (Int64Builder::new(), Int64Builder::new(), Float64Builder::new());
    let (mut watermark, mut committed) = (times(), times());
    for (name, (kind, row)) in names(facts) {
        source.append_value(name);
        kinds.append_option(kind.map(|k| match k {
            SourceKind::Postgres => "postgres",
            SourceKind::Mongodb => "mongodb",
            SourceKind::Debezium => "debezium",
        }));
        checkpoint.append_option(row.map(|r| r.checkpoint));
        position.append_option(row.map(|r| r.position.as_str()));
        watermark.append_option(row.map(|r| r.watermark));
        committed.append_option(row.map(|r| r.committed_at));
        ages.append_option(age(facts.now, row));
        let tables = facts.tables.iter().filter(|t| source_of_namespace(&t.ident().namespace().to_string()) == name);
        count.append_value(tables.count() as i64);
    }
    vec![
        Arc::new(source.finish()),
        Arc::new(kinds.finish()),
        Arc::new(checkpoint.finish()),
        Arc::new(position.finish()),
        Arc::new(watermark.finish()),
        Arc::new(committed.finish()),
        Arc::new(ages.finish()),
        Arc::new(count.finish()),
    ]
}

fn tables(facts: &Facts<'_>) -> Vec<ArrayRef> {
    let (mut namespace, mut name, mut source) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let (mut snapshot, mut rows, mut data, mut deletes) =
        (Int64Builder::new(), Int64Builder::new(), Int64Builder::new(), Int64Builder::new());
    let (mut converging, mut committed) = (BooleanBuilder::new(), times());
    for table in facts.tables {
        let space = table.ident().namespace().to_string();
        let of = source_of_namespace(&space);
        let full = format!("{space}.{}", table.ident().name());
        converging.append_option(facts.newest.get(of).map(|r| r.converging.contains(&full)));
        name.append_value(table.ident().name());
        source.append_value(of);
        let newest = table.snapshot();
        let total = |key: &str| newest.and_then(|s| s.summary().additional_properties.get(key)?.parse::<i64>().ok());
        snapshot.append_option(newest.map(|s| s.snapshot_id()));
        rows.append_option(total("total-records").map(|t| t - total("total-position-deletes").unwrap_or(0)));
        data.append_option(total("total-data-files"));
        deletes.append_option(total("total-delete-files"));
        committed.append_option(newest.map(|s| s.timestamp_ms().saturating_mul(1000)));
        namespace.append_value(space);
    }
    vec![
        Arc::new(namespace.finish()),
        Arc::new(name.finish()),
        Arc::new(source.finish()),
        Arc::new(snapshot.finish()),
        Arc::new(converging.finish()),
        Arc::new(rows.finish()),
        Arc::new(data.finish()),
        Arc::new(deletes.finish()),
        Arc::new(committed.finish()),
    ]
}
