//! The changes that codecs and logs are measured with: of a table like a shop's orders, made here -> ChangeBatches.

use std::sync::{Arc, Mutex};

use arrow::array::{
    ArrayRef, Decimal128Array, Int32Array, Int64Array, StringArray, StructArray, TimestampMicrosecondArray,
};
use lakeward_event::batch::{ChangeMeta, MetaRow};
use lakeward_event::codec::registry::{RegisteredSchema, SchemaRegistry};
use lakeward_event::schema::TableKind;
use lakeward_event::{ChangeBatch, Column, LogicalType, Op, TableId, TableSchema};

/// What a connector hands over at once.
pub const BATCH: usize = 8_192;
/// As topics are made by default.
pub const PARTITIONS: i32 = 4;

/// The table, of a source of this name.
pub fn table(source: &str) -> Arc<TableSchema> {
    let columns = [
        ("id", LogicalType::Long),
        ("customer", LogicalType::Long),
        ("item", LogicalType::String),
        ("quantity", LogicalType::Int),
        ("price", LogicalType::Decimal { precision: 12, scale: 2 }),
        ("placed", LogicalType::TimestampTz),
        ("status", LogicalType::String),
        ("note", LogicalType::String),
    ];
    let columns = columns.into_iter().enumerate().map(|(i, (name, ty))| Column {
        id: i as i32 + 1,
        name: name.into(),
        ty,
        source_type: String::new(),
        nullable: true,
    });
    Arc::new(TableSchema {
        table: TableId::new(source, "public", "orders"),
        kind: TableKind::Relational,
        version: 1,
        columns: columns.collect(),
        key: vec![0],
    })
}

/// A number that looks random, the same in every run.
fn mixed(n: usize) -> u64 {
    let n = (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (n ^ n >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ n >> 32
}

/// So many changes, in batches as a connector makes them.
pub fn batches(schema: &Arc<TableSchema>, changes: usize) -> Vec<ChangeBatch> {
    (0..changes).step_by(BATCH).map(|first| batch(schema, first, BATCH.min(changes - first))).collect()
}

/// Inserts and updates in turn, of about 150 bytes each.
fn batch(schema: &Arc<TableSchema>, first: usize, rows: usize) -> ChangeBatch {
    const STATUS: [&str; 4] = ["placed", "paid", "shipped", "returned"];
    let of =
        |f: &dyn Fn(usize) -> String| Arc::new(StringArray::from_iter_values((first..first + rows).map(f))) as ArrayRef;
    let longs =
        |f: &dyn Fn(usize) -> i64| Arc::new(Int64Array::from_iter_values((first..first + rows).map(f))) as ArrayRef;
    let price = Decimal128Array::from_iter_values((first..first + rows).map(|n| i128::from(mixed(n) % 1_000_000)));
    let placed = TimestampMicrosecondArray::from_iter_values(
        (first..first + rows).map(|n| 1_700_000_000_000_000 + n as i64 * 977),
    );
    let after = StructArray::new(
        schema.arrow_fields(),
        vec![
            longs(&|n| n as i64),
            longs(&|n| (mixed(n) % 100_000) as i64),
            of(&|n| format!("item-{:08}", mixed(n) % 10_000_000)),
            Arc::new(Int32Array::from_iter_values((first..first + rows).map(|n| (mixed(n) % 100) as i32))),
            Arc::new(price.with_precision_and_scale(12, 2).unwrap()),
            Arc::new(placed.with_timezone("UTC")),
            of(&|n| STATUS[(mixed(n) % 4) as usize].to_owned()),
            of(&|n| format!("leave at the door, ring {} times; code {:016x}", mixed(n) % 9, mixed(n + 7))),
        ],
        None,
    );
    let before = StructArray::new_null(schema.arrow_fields(), rows);
    let mut meta = ChangeMeta::default();
    for n in first..first + rows {
        meta.push(MetaRow {
            op: if n % 2 == 0 { Op::Create } else { Op::Update },
            sequence: n as u64,
            position: 24_000_000 + n as u64 * 180,
            tx: Some(700 + n as u64 / 10),
            commit_ts: Some(1_700_000_000_000_000 + n as i64 / 10 * 977),
            unchanged: None,
            patch: None,
        });
    }
    ChangeBatch::try_new(schema.clone(), meta.finish().unwrap(), after, before).unwrap()
}

/// The schemas of `avro`, by number; a registry's answers come from memory but for the first of each.
#[derive(Default)]
pub struct Registry(Mutex<Vec<Arc<RegisteredSchema>>>);

impl SchemaRegistry for Registry {
    fn register(&self, _: &str, schema: &str) -> lakeward_event::Result<u32> {
        let mut known = self.0.lock().unwrap();
        known.push(Arc::new(RegisteredSchema { text: schema.into(), references: Vec::new() }));
        Ok(known.len() as u32 - 1)
    }

    fn schema(&self, id: u32) -> lakeward_event::Result<Option<Arc<RegisteredSchema>>> {
        Ok(self.0.lock().unwrap().get(id as usize).cloned())
    }
}
